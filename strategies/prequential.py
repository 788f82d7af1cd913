"""Which rows of a mini-batch are the stream's own, and which of them were predicted right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Prequential:
    """Predictions made before the update, on the stream's own samples only.

    Replay puts memory samples into the mini-batch: behind the stream's own (`ReplayPlugin`) or, in
    DER, before them. Strategies that update several times an iteration (MER, LaMAML) predict
    afterwards; for these a prediction is made beforehand, with dropout off.

    Call `begin` in ``before_training_iteration`` and `hits` in ``after_training_iteration``.
    Nothing is read back from the device, except with DER, until the order is known.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._loaded: Tensor | None = None
        self._labels: Tensor | None = None
        self._early: Tensor | None = None
        self._memory_first: bool | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Prequential.__init__(self)

    def begin(self, strategy: Any) -> None:
        """Note the mini-batch as the loader gave it, before anything is added to it."""
        x, y = strategy.mb_x, strategy.mb_y
        self._rows = own_rows(strategy, len(y))
        self._loaded, self._labels = x, y
        self._early = None
        if hasattr(strategy, "_inner_updates"):  # Avalanche's name for several updates
            with predicting(strategy.model):
                self._early = strategy.forward()

    def hits(self, strategy: Any) -> Tensor:
        """Bool (n,): which of the n own samples were predicted right before the update."""
        assert self._labels is not None, "begin was not called in this iteration"
        rows, labels = self._rows, self._labels[: self._rows]
        if self._early is not None:
            return self._early[:rows].argmax(1).eq(labels)
        output = strategy.mb_output.detach()
        added = len(output) - len(self._labels)
        if added > 0 and self._is_memory_first(strategy.mb_x, added):
            output = output[added:]
        return output[:rows].argmax(1).eq(labels)

    def _is_memory_first(self, x: Tensor, added: int) -> bool:
        if self._memory_first is not None:
            return self._memory_first
        loaded = self._loaded
        assert loaded is not None
        behind = torch.equal(x[: len(loaded)], loaded)
        first = torch.equal(x[added:], loaded)
        if behind != first:  # else the sample itself was drawn from memory: the same prediction
            self._memory_first = first
        return first


def own_rows(strategy: Any, rows: int) -> int:
    """How many leading rows of the loader's mini-batch are the stream's own."""
    loader = getattr(strategy.dataloader, "loader", strategy.dataloader)
    size = strategy.train_mb_size
    sizes, sets = getattr(loader, "batch_sizes", None), getattr(loader, "datasets", None)
    if sizes and sets and type(loader).__name__ == "ReplayDataLoader":
        # The last batch of the stream's own samples can be short; the memory's rows follow it.
        done = strategy.clock.train_epoch_iterations * sizes[0]
        size = min(sizes[0], len(sets[0]) - done)
    return min(rows, size)


def own_task(experience: Any) -> int:
    """Index of the task an experience belongs to; sub-experiences of one task share it."""
    return int(getattr(experience, "origin_experience", experience).current_experience)


@contextmanager
def predicting(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
