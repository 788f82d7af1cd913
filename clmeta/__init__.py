"""Continual learning with step sizes that adapt themselves.

``MetaOptimize`` wraps any first-order optimiser and learns its step sizes while training
(Sharifnassab, Salehkaleybar, Sutton, ICML 2025). ``clmeta.streams``, ``clmeta.strategies`` and
``clmeta.analysis`` stand on it and are imported by name.
"""

import importlib
from typing import TYPE_CHECKING, Any

from clmeta._version import __version__

if TYPE_CHECKING:
    from clmeta.engines.curved import Hessian
    from clmeta.errors import BadArgument, ClmetaError, NonFiniteError, RunFolderError
    from clmeta.general import GeneralMetaOptimize
    from clmeta.optim.optimizer import MetaOptimize
    from clmeta.record.checkpoint import Checkpoint
    from clmeta.record.recorder import Recorder
    from clmeta.runs.weights import load_model

#: Public name to its module; loaded on first use, so that the command line's help needs no torch.
_HOME = {
    "BadArgument": "errors",
    "Checkpoint": "record.checkpoint",
    "ClmetaError": "errors",
    "GeneralMetaOptimize": "general",
    "Hessian": "engines.curved",
    "MetaOptimize": "optim.optimizer",
    "NonFiniteError": "errors",
    "Recorder": "record.recorder",
    "RunFolderError": "errors",
    "load_model": "runs.weights",
}

__all__ = [
    "BadArgument",
    "Checkpoint",
    "ClmetaError",
    "GeneralMetaOptimize",
    "Hessian",
    "MetaOptimize",
    "NonFiniteError",
    "Recorder",
    "RunFolderError",
    "__version__",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clmeta' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"clmeta.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
