"""The few operations that rules are written in, pure on tensors and in place on lists.

A rule is written once. Called with tensors, these operations are pure and differentiable, for
``torch.func`` and for the meta level. Called with *lists* of tensors they work in place through
``torch._foreach``, which is how the optimiser steps a whole block with a dozen calls.
A decay may be a number or a tensor (a learned meta-parameter).
"""

from __future__ import annotations

import math
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

Scalar: TypeAlias = "float | Tensor"
Values = TypeVar("Values", Tensor, list[Tensor])


def bias(decay: Scalar, t: Scalar) -> Scalar:
    """``1 - decay^t``, what a zero-started average with this decay has seen of its input.

    On tensors through ``expm1``: in float32 ``1 - 0.999^1`` itself would be wrong by 3e-5.
    """
    if isinstance(decay, Tensor):
        return -torch.expm1(t * torch.log(decay))
    if isinstance(t, Tensor):
        return -torch.expm1(t * math.log(decay)) if decay > 0 else torch.ones_like(t)
    return 1 - decay**t


def ema(x: Values, y: Values, decay: Scalar) -> Values:
    """``decay x + (1 - decay) y``; a list ``x`` is overwritten."""
    if isinstance(x, list):
        torch._foreach_lerp_(x, y, 1 - decay)  # type: ignore[arg-type]
        return x
    if isinstance(decay, Tensor):
        return decay * x + (1 - decay) * y
    return torch.lerp(x, y, 1 - decay)


def ema_of_square(x: Values, y: Values, decay: Scalar) -> Values:
    """``decay x + (1 - decay) y^2``; a list ``x`` is overwritten."""
    if isinstance(x, list):
        torch._foreach_mul_(x, decay)
        torch._foreach_addcmul_(x, y, y, 1 - decay)
        return x
    if isinstance(decay, Tensor):
        return decay * x + (1 - decay) * y * y
    return torch.addcmul(decay * x, y, y, value=1 - decay)


def accumulate(x: Values, y: Values, decay: Scalar) -> Values:
    """``decay x + y``; a list ``x`` is overwritten."""
    if isinstance(x, list):
        torch._foreach_mul_(x, decay)
        torch._foreach_add_(x, y)
        return x
    return decay * x + y


def mix(x: Values, y: Values, weight: Scalar) -> Values:
    """``weight x + (1 - weight) y`` as a new value; overwrites nothing."""
    if isinstance(x, list):
        return list(torch._foreach_lerp(x, y, 1 - weight))  # type: ignore[arg-type]
    if isinstance(weight, Tensor):
        return weight * x + (1 - weight) * y
    return torch.lerp(x, y, 1 - weight)


def copy(x: Values) -> Values:
    """A copy that later in-place operations on ``x`` leave alone."""
    return [each.clone() for each in x] if isinstance(x, list) else x


def divide(x: Values, by: Scalar) -> Values:
    """``x / by`` as a new value."""
    return list(torch._foreach_div(x, by)) if isinstance(x, list) else x / by


def sign(x: Values) -> Values:
    """The sign of every entry as a new value."""
    return list(torch._foreach_sign(x)) if isinstance(x, list) else torch.sign(x)


def over_root(x: Values, v: Values, eps: float, x_scale: Scalar, v_scale: Scalar) -> Values:
    """``(x / x_scale) / sqrt(v / v_scale + eps)`` as a new value.

    Epsilon stands inside the root, so the derivative at v = 0 is finite (equations.md, section 3).
    """
    if isinstance(x, list):
        # One root and one product fewer than the formula read literally.
        denominator = torch._foreach_add(v, eps * v_scale)
        torch._foreach_sqrt_(denominator)
        torch._foreach_mul_(denominator, x_scale / v_scale**0.5)
        return list(torch._foreach_div(x, denominator))
    return (x / x_scale) / torch.sqrt(v / v_scale + eps)
