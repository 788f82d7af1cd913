"""Lion with a smooth sign, for learning Lion's own meta-parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clmeta.ground.ops import Scalar
from clmeta.rules import RULES, Rule


@RULES.register("softlion")
@dataclass(frozen=True)
class SoftLion(Rule):
    """x = c m + (1 - c) g; u = x / sqrt(x^2 + eps); then m <- rho m + (1 - rho) g.

    Lion's sign has derivative zero, so nothing about its momentum or interpolation can be learned
    by a meta-gradient. This rule tends to Lion as eps -> 0. It is not in the paper.

    Args:
        rho: momentum.
        c: interpolation between momentum and gradient in the direction.
        eps: square of the magnitude below which the direction is linear instead of a sign.
    """

    rho: float = 0.99
    c: float = 0.9
    eps: float = 1e-6
    slots: ClassVar[tuple[str, ...]] = ("m",)

    def update(
        self, g: Tensor, state: dict[str, Tensor], t: Scalar
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Direction x / sqrt(x^2 + eps) with the old momentum m."""
        m = state["m"]
        x = self.c * m + (1 - self.c) * g
        return x / torch.sqrt(x * x + self.eps), {"m": self.rho * m + (1 - self.rho) * g}
