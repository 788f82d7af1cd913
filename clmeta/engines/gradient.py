"""Gradients of many learners, some of which are kept as the factors of an outer product."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Outer:
    """A gradient (R, M, N) given as a b with a (R, M, 1) and b (R, 1, N); never formed whole."""

    a: Tensor
    b: Tensor

    def dense(self) -> Tensor:
        """The gradient itself, (R, M, N)."""
        return self.a * self.b


Gradient = Tensor | Outer
