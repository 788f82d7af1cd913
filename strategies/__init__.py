"""Ways to learn from a stream: the plain loop, and everything for Avalanche.

Avalanche takes about ten seconds to import; it is imported when one of its names here is first
used, and not by ``import clmeta.strategies``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# From `entries`, which enters Avalanche's strategies.
from clmeta.strategies.entries import STRATEGIES

if TYPE_CHECKING:
    from clmeta.strategies.metrics import PrequentialAccuracy, StepSizeMetric
    from clmeta.strategies.online import Online
    from clmeta.strategies.plain import OnlineResult, Progress, learn_online
    from clmeta.strategies.plugins import KeepOptimizerState, MetaOptimizePlugin
    from clmeta.strategies.recording import StepSizeRecorder
    from clmeta.strategies.resuming import going_on, resumable

__all__ = [
    "STRATEGIES",
    "KeepOptimizerState",
    "MetaOptimizePlugin",
    "Online",
    "OnlineResult",
    "PrequentialAccuracy",
    "Progress",
    "StepSizeMetric",
    "StepSizeRecorder",
    "going_on",
    "learn_online",
    "resumable",
]

_WHERE = {
    "KeepOptimizerState": "plugins",
    "MetaOptimizePlugin": "plugins",
    "Online": "online",
    "OnlineResult": "plain",
    "PrequentialAccuracy": "metrics",
    "Progress": "plain",
    "StepSizeMetric": "metrics",
    "StepSizeRecorder": "recording",
    "going_on": "resuming",
    "learn_online": "plain",
    "resumable": "resuming",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
