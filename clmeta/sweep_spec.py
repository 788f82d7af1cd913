"""What a sweep is made of, where users look for it."""

from clmeta.sweep.spec import SweepSpec

__all__ = ["SweepSpec"]
