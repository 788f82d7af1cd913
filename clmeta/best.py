"""The best of a sweep, where users look for it."""

from clmeta.sweep.best import best

__all__ = ["best"]
