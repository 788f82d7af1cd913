"""Autostep, the field's tuning-free reference for step sizes per weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from clmeta.errors import NonFiniteError, require
from clmeta.general.curvature import Params, gradient, hessian_diagonal
from clmeta.general.layout import check_params
from clmeta.ground.checks import check_number, count_or_none, positive
from clmeta.ground.forward import quiet_first_use, tree_map
from clmeta.ground.seeds import check_seed


class Autostep:
    """Autostep (Mahmood, Sutton, Degris, Pilarski 2012): IDBD with normalised meta steps.

    For each weight, with g the gradient and d the Hessian's diagonal::

        v     <- max(|g h|, v + (alpha d / tau) (|g h| - v))
        alpha <- alpha exp(-mu g h / v)            where v is not zero
        M      = max(sum over all weights of alpha d, 1)
        alpha <- alpha / M
        w     <- w - alpha g
        h     <- h (1 - alpha d) - alpha g

    For the loss ``(y - w x)^2 / 2`` of a linear learner, g = -delta x and d = x^2, and this is
    the paper's algorithm. For other losses it is an extension; d is then held at or above zero.

    Args:
        loss: ``loss(params, *batch)``, a scalar, as in ``GeneralMetaOptimize``.
        params: name to real floating-point tensor, all of one dtype and device; copied.
        alpha0: first step size of every weight.
        mu: meta step size; the paper finds 0.01 good throughout.
        tau: time in steps over which the normaliser v forgets.
        diagonal_samples: None for the exact diagonal, from n Hessian-vector products a step;
            else the random vectors of ``clmeta.general.curvature.hessian_diagonal``.
        seed: seed of the random vectors.

    Memory: four numbers per weight, and for the diagonal about 64 gradients at a time.

    Raises:
        BadArgument: for arguments that cannot work.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        params: Mapping[str, Tensor],
        alpha0: float = 0.1,
        mu: float = 0.01,
        tau: float = 1e4,
        *,
        diagonal_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        quiet_first_use()
        alpha0, mu = float(positive("alpha0", alpha0)), float(check_number("mu", mu))
        require(mu >= 0, "mu", mu, "a meta step size must not be negative")
        require(check_number("tau", tau) >= 1, "tau", tau, "a time of at least one step")
        diagonal_samples = count_or_none("diagonal_samples", diagonal_samples)
        self._loss, self.mu, self.tau, self._samples = loss, mu, tau, diagonal_samples
        self.params: Params = check_params(params)
        self.alpha: Params = tree_map(lambda w: torch.full_like(w, alpha0), self.params)
        self.h: Params = tree_map(torch.zeros_like, self.params)
        self.v: Params = tree_map(torch.zeros_like, self.params)
        self.t = 0
        device = next(iter(self.params.values())).device
        self._generator = torch.Generator(device).manual_seed(check_seed(seed))

    @torch.no_grad()
    def step(self, *batch: Any) -> Tensor:
        """One update; the loss of the batch before it, a 0-dim tensor.

        Raises:
            NonFiniteError: if loss, gradient or curvature is not finite; nothing is updated then.
        """
        g, value = gradient(self._loss, self.params, batch)
        d = hessian_diagonal(
            self._loss, self.params, batch, samples=self._samples, generator=self._generator
        )
        finite = [torch.isfinite(x).all() for part in (g, d) for x in part.values()]
        if not torch.stack([torch.isfinite(value), *finite]).all():
            raise NonFiniteError(
                f"step {self.t}: loss, gradient or curvature not finite; the update was withheld. "
                "Scale inputs, or lower alpha0"
            )
        d = tree_map(lambda x: x.clamp(min=0), d)
        v, alpha = {}, {}
        for n, old in self.v.items():
            correlation = g[n] * self.h[n]
            size = correlation.abs()
            forgetting = self.alpha[n] * d[n] / self.tau
            v[n] = torch.maximum(size, old + forgetting * (size - old))
            safe = torch.where(v[n] > 0, v[n], torch.ones_like(old))
            alpha[n] = self.alpha[n] * torch.exp(-self.mu * correlation / safe)
        overshoot = torch.stack([(alpha[n] * d[n]).sum() for n in d]).sum().clamp(min=1)
        self.v = v
        self.alpha = {n: a / overshoot for n, a in alpha.items()}
        moves = {n: -a * g[n] for n, a in self.alpha.items()}
        self.params = {n: w + moves[n] for n, w in self.params.items()}
        self.h = {n: h * (1 - self.alpha[n] * d[n]) + moves[n] for n, h in self.h.items()}
        self.t += 1
        return value

    def step_sizes(self) -> dict[str, float]:
        """Parameter name to the geometric mean of its weights' step sizes."""
        return {n: float(a.log().mean().exp()) for n, a in self.alpha.items()}
