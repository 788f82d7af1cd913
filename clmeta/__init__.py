"""Continual learning with step sizes that adapt themselves.

``MetaOptimize`` wraps any first-order optimiser and learns its step sizes while training
(Sharifnassab, Salehkaleybar, Sutton, ICML 2025). ``clmeta.streams``, ``clmeta.strategies`` and
``clmeta.analysis`` stand on it and are imported by name.
"""

from clmeta._curved import Hessian
from clmeta._version import __version__
from clmeta.errors import BadArgument, ClmetaError, NonFiniteError, RunFolderError
from clmeta.optimizer import MetaOptimize

__all__ = [
    "BadArgument",
    "ClmetaError",
    "Hessian",
    "MetaOptimize",
    "NonFiniteError",
    "RunFolderError",
    "__version__",
]
