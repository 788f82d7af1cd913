"""Algorithm 3 written down as it stands: AdamW base, Adam meta, tensor by tensor, out of place.

What `benchmarks/speed.py` measures the fast paths against.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class Transcription:
    """One step size per block of parameters, in the letters of Algorithm 3."""

    def __init__(
        self,
        blocks: Iterable[Iterable[Tensor]],
        alpha0: float = 1e-4,
        eta: float = 1e-3,
        gamma: float = 0.999,
        kappa: float = 0.1,
        rho: float = 0.9,
        lam: float = 0.999,
        eps: float = 1e-10,
    ) -> None:
        self.blocks = [list(block) for block in blocks]
        self.eta, self.gamma, self.kappa = eta, gamma, kappa
        self.rho, self.lam, self.eps = rho, lam, eps
        self.m, self.v, self.h = (
            {p: torch.zeros_like(p) for block in self.blocks for p in block} for _ in range(3)
        )
        self.beta = [torch.tensor(math.log(alpha0)) for _ in self.blocks]
        self.m_bar, self.v_bar = ([torch.zeros(()) for _ in self.blocks] for _ in range(2))
        self.t = 0

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for block in self.blocks:
            for p in block:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of weights and step sizes."""
        self.t += 1
        rho_hat, lam_hat = 1 - self.rho**self.t, 1 - self.lam**self.t
        for b, block in enumerate(self.blocks):
            alpha = torch.exp(self.beta[b])
            z = torch.zeros(())
            for p in block:
                z = z + (self.h[p] * p.grad).sum()
            for p in block:
                g = p.grad
                self.m[p] = self.rho * self.m[p] + (1 - self.rho) * g
                self.v[p] = self.lam * self.v[p] + (1 - self.lam) * g * g
                u = (self.m[p] / rho_hat) / torch.sqrt(self.v[p] / lam_hat + self.eps)
                dw = -alpha * (u + self.kappa * p)
                p.copy_(p + dw)
                self.h[p] = self.gamma * (1 - alpha * self.kappa) * self.h[p] + dw
            self.m_bar[b] = self.rho * self.m_bar[b] + (1 - self.rho) * z
            self.v_bar[b] = self.lam * self.v_bar[b] + (1 - self.lam) * z * z
            u = (self.m_bar[b] / rho_hat) / torch.sqrt(self.v_bar[b] / lam_hat + self.eps)
            self.beta[b] = self.beta[b] - self.eta * u
