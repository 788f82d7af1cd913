"""The few operations that rules are written in: pure, differentiable, and formulas of one number.

A decay may be a number or a tensor (a learned meta-parameter).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = "float | Tensor"


def bias(decay: Scalar, t: Scalar) -> Scalar:
    """``1 - decay^t``, what a zero-started average with this decay has seen of its input.

    On tensors through ``expm1``: in float32 ``1 - 0.999^1`` itself would be wrong by 3e-5.
    """
    if isinstance(decay, Tensor):
        return -torch.expm1(t * torch.log(decay))
    if isinstance(t, Tensor):
        return -torch.expm1(t * math.log(decay)) if decay > 0 else torch.ones_like(t)
    return 1 - decay**t


def ema(x: Tensor, y: Tensor, decay: Scalar) -> Tensor:
    """``decay x + (1 - decay) y``."""
    if isinstance(decay, Tensor):
        return decay * x + (1 - decay) * y
    return torch.lerp(x, y, 1 - decay)


def ema_of_square(x: Tensor, y: Tensor, decay: Scalar) -> Tensor:
    """``decay x + (1 - decay) y^2``."""
    if isinstance(decay, Tensor):
        return decay * x + (1 - decay) * y * y
    return torch.addcmul(decay * x, y, y, value=1 - decay)


def accumulate(x: Tensor, y: Tensor, decay: Scalar) -> Tensor:
    """``decay x + y``."""
    return decay * x + y


def over_root(x: Tensor, v: Tensor, eps: float, x_scale: Scalar, v_scale: Scalar) -> Tensor:
    """``(x / x_scale) / sqrt(v / v_scale + eps)``.

    Epsilon stands inside the root, so the derivative at v = 0 is finite. One product fewer than
    the formula read literally.
    """
    return x / (torch.sqrt(v + eps * v_scale) * (x_scale / v_scale**0.5))
