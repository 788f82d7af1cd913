"""Gradient and curvature of a loss, as a base update sees them: exact, diagonal or free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from clmeta.errors import bad
from clmeta.ground.forward import Tree, each, leaves, tree_map

Params = dict[str, Tensor]


def gradient(loss: Callable[..., Tensor], params: Params, batch: tuple) -> tuple[Params, Tensor]:
    """Gradient and value of ``loss(params, *batch)``."""
    return grad_and_value(loss)(params, *batch)


def hessian_products(
    loss: Callable[..., Tensor],
    params: Params,
    batch: tuple,
    tangents: Params,
    chunk: int | None = None,
) -> tuple[Params, Tensor, Params]:
    """Gradient, value, and the Hessian times each of k tangents.

    One pass through the loss and its gradient, and one backward pass through both per tangent:
    the Hessian is symmetric, so that this is the forward product too. It needs less time than
    forward over reverse mode, and torch knows it for more functions.
    """
    with sdpa_kernel(SDPBackend.MATH):  # attention's other kernels have one derivative only
        out = vjp(lambda p: gradient(loss, p, batch), params)
    (g, value), backward = out[0], out[1]

    def one(tangent: Params) -> tuple[Tree, Params]:
        return (g, value), backward((tangent, torch.zeros_like(value)))[0]

    _, products = each(one, tangents, chunk)
    return g, value, products


def _unflatten(flat: Tensor, like: Params) -> Params:
    """(k, n) to one (k, *shape) tensor per parameter."""
    parts = flat.split([p.numel() for p in like.values()], dim=1)
    return {n: x.reshape(-1, *p.shape) for (n, p), x in zip(like.items(), parts, strict=True)}


def hessian_diagonal(
    loss: Callable[..., Tensor],
    params: Params,
    batch: tuple = (),
    *,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 64,
) -> Params:
    """Diagonal of the Hessian of the loss, in the shapes of the parameters.

    Exactly, from n Hessian-vector products with unit vectors; or, with ``samples``, by the
    unbiased estimator of Bekas, Kokiopoulou and Saad (2007), the mean of v * (Hess v) over
    vectors v of random signs, from ``samples`` products. The estimator is exact for any v where
    the Hessian is diagonal.

    Args:
        loss: ``loss(params, *batch)``, a scalar.
        params: name to tensor; n numbers in all.
        batch: further arguments of the loss.
        samples: number of random vectors; None for the exact diagonal.
        generator: source of the random signs.
        chunk: products made at once; the working memory is about ``chunk`` gradients.

    Raises:
        BadArgument: if ``samples`` is not positive.
    """
    if samples is not None and samples < 1:
        bad("samples", samples, "use at least one, or None for the exact diagonal")
    first = next(leaves(params))
    n = sum(p.numel() for p in params.values())

    total = tree_map(torch.zeros_like, params)
    for start in range(0, n if samples is None else samples, chunk):
        if samples is None:
            size = min(chunk, n - start)
            flat = first.new_zeros(size, n)
            flat[torch.arange(size), torch.arange(start, start + size)] = 1
        else:
            shape = (min(chunk, samples - start), n)
            bits = torch.randint(0, 2, shape, generator=generator, device=first.device)
            flat = (2 * bits - 1).to(first.dtype)
        v = _unflatten(flat, params)
        hv = hessian_products(loss, params, batch, v)[2]
        total = tree_map(lambda s, a, b: s + (a * b).sum(0), total, v, hv)
    return total if samples is None else tree_map(lambda s: s / samples, total)


class Curvature:
    """Gradient of a batch's loss, and its change along tangents of the weights.

    Args:
        loss: ``loss(params, *batch)``, a scalar.
        hessian: ``"exact"``, ``"diagonal"`` or ``"free"``; see Sec. 6 of the paper.
        samples: random vectors for the diagonal; None for the exact one.
        chunk: tangents handled at once; None for all.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        hessian: str,
        samples: int | None = None,
        generator: torch.Generator | None = None,
        chunk: int | None = None,
    ) -> None:
        self.loss, self.hessian, self.chunk = loss, hessian, chunk
        self.samples, self.generator = samples, generator

    def at(self, params: Params, tangents: Params, batch: tuple) -> Linearised:
        """Loss, gradient and the gradient's change along each tangent at these weights."""
        if self.hessian == "exact":
            g, value, dg = hessian_products(self.loss, params, batch, tangents, self.chunk)
            return Linearised(self, params, batch, value, g, dg, None)
        g, value = gradient(self.loss, params, batch)
        if self.hessian == "free":
            return Linearised(self, params, batch, value, g, None, None)
        diagonal = hessian_diagonal(
            self.loss,
            params,
            batch,
            samples=self.samples,
            generator=self.generator,
            chunk=self.chunk or 64,
        )
        dg = tree_map(torch.mul, tangents, diagonal)
        return Linearised(self, params, batch, value, g, dg, diagonal)


class Linearised:
    """What one batch says about the loss around the current weights.

    Attributes:
        value: the loss.
        g: its gradient.
        dg: change of the gradient along each tangent, leading dimension k; None if ``free``.
        diagonal: diagonal of the Hessian, if ``diagonal``.
    """

    def __init__(
        self,
        curvature: Curvature,
        params: Params,
        batch: tuple[Any, ...],
        value: Tensor,
        g: Params,
        dg: Params | None,
        diagonal: Params | None,
    ) -> None:
        self._curvature, self._params, self._batch = curvature, params, batch
        self.value, self.g, self.dg, self.diagonal = value, g, dg, diagonal

    def differentiable(self, params: Params, tangents: Params) -> Linearised:
        """The same as a function of weights and tangents, to be differentiated once more.

        ``exact`` differentiates the loss once more; ``diagonal`` holds the diagonal constant;
        ``free`` holds the gradient constant.
        """
        if self._curvature.hessian == "free":
            return self
        if self.diagonal is None:
            return self._curvature.at(params, tangents, self._batch)
        g = tree_map(
            lambda g, d, w, w0: g + d * (w - w0), self.g, self.diagonal, params, self._params
        )
        dg = tree_map(torch.mul, tangents, self.diagonal)
        return Linearised(
            self._curvature, self._params, self._batch, self.value, g, dg, self.diagonal
        )
