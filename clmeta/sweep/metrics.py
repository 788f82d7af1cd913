"""One number per finished run, to compare runs by; adding one is one decorated definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clmeta.errors import RunFolderError
from clmeta.lookup import Wanted, takes
from clmeta.record.runfolder import RunFolder
from clmeta.registry import Registry


@dataclass(frozen=True)
class Metric:
    """A number of a run folder, and which way is better.

    Attributes:
        read: from a finished run's folder to the number; NaN where it was not measured.
        higher: whether more is better.
        share: whether it is a share in [0, 1], shown in percent.
    """

    read: Callable[[RunFolder], float]
    higher: bool = True
    share: bool = True


METRICS: Registry[Metric] = Registry(
    "metric",
    Wanted(
        "a function from a RunFolder to a number, or a clmeta.sweep.metrics.Metric",
        lambda found: isinstance(found, Metric) or takes(1)(found),
        lambda found: found if isinstance(found, Metric) else Metric(found),
    ),
)


def metric(
    name: str, *, higher: bool = True, share: bool = True
) -> Callable[[Callable[[RunFolder], float]], Callable[[RunFolder], float]]:
    """Decorator that enters a function of a finished run's folder as a metric."""

    def enter(read: Callable[[RunFolder], float]) -> Callable[[RunFolder], float]:
        METRICS.register(name, about=read.__doc__, source=read)(Metric(read, higher, share))
        return read

    return enter


def _share(folder: RunFolder, name: str) -> float:
    """A share that the run's summary holds; NaN where it was not measured."""
    value: Any = folder.summary.get(name)
    value = math.nan if value is None else value
    if type(value) not in (int, float) or not (0 <= value <= 1 or value != value):
        raise RunFolderError(
            f"{folder.summary_file}: {name}={value!r} is no share between 0 and 1: repeat the run"
        )
    return float(value)


@metric("cumulative_accuracy")
def cumulative_accuracy(folder: RunFolder) -> float:
    """Online accuracy over all steps: share predicted right before the update."""
    return _share(folder, "cumulative_accuracy")


@metric("test_accuracy")
def test_accuracy(folder: RunFolder) -> float:
    """Accuracy on each task's test set at the task's end, mean over tasks."""
    return _share(folder, "mean_test_accuracy")


@metric("last_task_accuracy")
def last_task_accuracy(folder: RunFolder) -> float:
    """Online accuracy within the last task."""
    accuracies = folder.read_tasks()["online_accuracy"]
    return float(accuracies[-1]) if len(accuracies) else math.nan


@metric("loss", higher=False, share=False)
def loss(folder: RunFolder) -> float:
    """Mean loss over all steps, each before its update (nats); NaN if one was not finite."""
    losses = folder.read_trajectory(["loss"])["loss"].astype(np.float64)
    return float(losses.mean()) if np.isfinite(losses).all() else math.nan
