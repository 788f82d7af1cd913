"""What the ways to make a step have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clmeta.optim.optimizer import MetaOptimize


class Path:
    """One way to step all blocks of a `MetaOptimize`; belongs to one."""

    #: Attributes that are made again at the next step, and so are neither copied nor pickled.
    remade: tuple[str, ...] = ()

    def __init__(self, optimizer: MetaOptimize) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        """One update of every block with a gradient."""
        raise TypeError(f"{type(self).__name__} does not say how to step")

    def meta_update(self, z: Tensor, active: Sequence[int], ok: Tensor | None = None) -> None:
        """The meta update of the blocks that had gradients, where ok (None: known to be)."""
        keep = None
        if ok is not None or len(active) < len(z):
            keep = torch.zeros(len(z), dtype=torch.bool, device=z.device)
            for i in active:
                keep[i] = True if ok is None else ok
        self.optimizer.meta_update(z, keep)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint needs beside the optimiser's own state."""
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `saved` gave."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **{name: {} for name in self.remade}}
