"""Step sizes and prequential accuracy as Avalanche metrics, for its loggers."""

from __future__ import annotations

from collections import deque
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from clmeta.ground.checks import count_or_none, whole
from clmeta.record.attached import alpha_of, block_names
from clmeta.strategies.prequential import Prequential

PHASE = "train_phase/train_stream"


class StepSizeMetric(PluginMetric):
    """The step size alpha of each block, in the iterations in which it is used.

    Emits ``StepSize/train_phase/train_stream/<block>``, one value per block, as Python floats, so
    that TensorBoard and others draw them as curves; ``x`` is the training iteration, from 0. Shows
    every parameter group of any torch optimiser.

    Args:
        every: iterations between two values; the values are read from the device then.

    Raises:
        BadArgument: unless ``every`` is at least 1.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.every = whole("every", every, least=1)
        self._values: dict[str, float] = {}
        self._due = False

    def result(self, *args: Any) -> dict[str, float]:
        """Block to step size, as last read."""
        return dict(self._values)

    def reset(self, *args: Any) -> None:
        """Forget the values."""
        self._values = {}

    def before_training_iteration(self, strategy: Any) -> None:
        """Read the step sizes that this iteration's update will use."""
        self._due = strategy.clock.train_iterations % self.every == 0
        if self._due:
            self._values = read_step_sizes(strategy.optimizer)

    def after_training_iteration(self, strategy: Any) -> list[MetricValue] | None:
        """Emit them."""
        super().after_training_iteration(strategy)
        if not self._due:
            return None
        step = strategy.clock.train_iterations
        return [
            MetricValue(self, f"StepSize/{PHASE}/{block}", value, step)
            for block, value in self._values.items()
        ]

    def __str__(self) -> str:
        return "StepSize"


def read_step_sizes(optimizer: Any) -> dict[str, float]:
    """Block name to step size, of any torch optimiser; one read from the device if it can be."""
    alpha = alpha_of(optimizer)
    values = alpha.tolist() if isinstance(alpha, Tensor) else map(float, alpha)
    return dict(zip(block_names(optimizer), values, strict=True))


class PrequentialAccuracy(PluginMetric):
    """Share of the stream's own samples that were predicted right before they were learnt from.

    Emits ``PrequentialAccuracy/train_phase/train_stream`` as a Python float; memory samples of
    replay strategies do not count. Over the whole run, and never reset at a task's start, this is
    the field's online accuracy.

    Args:
        every: iterations between two values; values are read from the device then.
        window: count the last so many iterations only; None counts all.

    Raises:
        BadArgument: unless ``every`` and ``window`` are at least 1.
    """

    def __init__(self, every: int = 1, window: int | None = None) -> None:
        super().__init__()
        self.every = whole("every", every, least=1)
        self.window = count_or_none("window", window)
        self._own = Prequential()
        self.reset()

    def reset(self, *args: Any) -> None:
        """Start counting anew."""
        self._pending: list[Tensor] = []
        self._recent: deque[tuple[int, int]] = deque(maxlen=self.window)
        self._right = self._seen = 0

    def result(self, *args: Any) -> float:
        """The share, in [0, 1]; not a number before the first iteration."""
        for hits in self._pending:
            self._add(int(hits.sum()), len(hits))
        self._pending.clear()
        return self._right / self._seen if self._seen else float("nan")

    def _add(self, right: int, seen: int) -> None:
        if self.window is not None:
            if len(self._recent) == self.window:
                old_right, old_seen = self._recent[0]
                self._right -= old_right
                self._seen -= old_seen
            self._recent.append((right, seen))
        self._right += right
        self._seen += seen

    def before_training_iteration(self, strategy: Any) -> None:
        """Note the mini-batch before memory samples join it."""
        self._own.begin(strategy)

    def after_training_iteration(self, strategy: Any) -> MetricValue | None:
        """Count, and emit when it is time."""
        super().after_training_iteration(strategy)
        self._pending.append(self._own.hits(strategy))
        step = strategy.clock.train_iterations
        if (step + 1) % self.every:
            return None
        return MetricValue(self, f"PrequentialAccuracy/{PHASE}", self.result(), step)

    def __str__(self) -> str:
        return "PrequentialAccuracy"
