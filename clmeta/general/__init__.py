"""Algorithm 1 in full: the general engine and all its approximations."""

from clmeta.general.engine import GeneralMetaOptimize

__all__ = ["GeneralMetaOptimize"]
