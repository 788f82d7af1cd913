"""Algorithm 1 in full: the general engine and all its approximations."""

from clmeta.general.checks import APPROXIMATIONS, HESSIANS
from clmeta.general.engine import GeneralMetaOptimize
from clmeta.general.functional import functional_loss

__all__ = ["APPROXIMATIONS", "HESSIANS", "GeneralMetaOptimize", "functional_loss"]
