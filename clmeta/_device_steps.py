"""Steps of stacked learners on an accelerator, without synchronising."""

from __future__ import annotations

from collections.abc import Sequence

from clmeta._batched import Gradient
from clmeta._stacked import Stacked, masked_step


class DeviceSteps:
    """Steps a `Stacked` whose blocks are whole tensors by `masked_step`."""

    def __init__(self, stacked: Stacked) -> None:
        self.stacked = stacked
        self.build()

    def build(self) -> None:
        """Nothing is prepared."""

    def step(self, grads: Sequence[Gradient]) -> None:
        """One update of all learners."""
        masked_step(self.stacked, grads)
