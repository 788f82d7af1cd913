"""Stacked learners with a step size per unit or per weight, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clmeta.blocks import fine_shape
from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.stacked import Stacked, masked_move
from clmeta.engines.stepsizes import meta_changes
from clmeta.engines.tiles import TILE


class FineSteps:
    """Steps a `Stacked` whose blocks are ``"node"`` or ``"weight"``: one block per tensor.

    beta of parameter i has shape (R, *fine_shape). On the CPU the arrays are gone through in
    pieces that fit the cache; nothing is read back from the device.
    """

    def __init__(self, stacked: Stacked) -> None:
        self.stacked = s = stacked
        assert s.granularity is not None
        self.beta = [
            s.beta[:, :1]
            .view((-1,) + (1,) * (w.dim() - 1))
            .repeat(1, *fine_shape(w[0], s.granularity))
            for w in s.w
        ]
        meta = s.meta
        self.meta_state = [meta.init(beta) if meta is not None else {} for beta in self.beta]
        self.build()

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes, beside the `Stacked`'s."""
        return [*self.beta, *(x for state in self.meta_state for x in state.values())]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all learners but those in ``rows``."""
        index = torch.tensor(rows, device=self.stacked.beta.device)
        self.beta = [x[index] for x in self.beta]
        self.meta_state = [{k: x[index] for k, x in state.items()} for state in self.meta_state]

    def build(self) -> None:
        """Cut the arrays, again after learners were dropped."""
        s = self.stacked
        self.places: list[tuple[int, tuple[slice, ...]]] = []
        for i, w in enumerate(s.w):
            count, size = len(w), max(w[0].numel(), 1)
            if w.device.type != "cpu" or w.dim() == 1:
                self.places.append((i, (slice(0, count),)))
                continue
            rows = max(1, min(count, TILE // size))
            units = max(1, TILE // (size // w.shape[1])) if rows == 1 else w.shape[1]
            self.places += [
                (i, (slice(r, r + rows), slice(u, u + units)))
                for r in range(0, count, rows)
                for u in range(0, w.shape[1], units)
            ]

    def step(self, grads: Sequence[Gradient]) -> None:
        """One update of all learners."""
        s = self.stacked
        s.calls += 1
        dense = [
            (g.dense() if isinstance(g, Outer) else g).to(w.dtype)
            for g, w in zip(grads, s.h or s.w, strict=True)
        ]
        parts = torch.zeros_like(s.block, dtype=s.beta.dtype)
        fine_z = [torch.zeros_like(beta) for beta in self.beta] if s.h else []
        for i, place in self.places:
            product = s.h[i][place] * dense[i][place] if s.h else dense[i][place]
            if s.h:
                z = fine_z[i][place]
                z += product.sum_to_size(z.shape)
            parts[place[0], i] += product.reshape(len(product), -1).sum(1)
        z = s.by_block(parts)
        ok = torch.isfinite(z).all(1, keepdim=True)
        s.note(z, ok)
        t = s.steps + 1
        for i, place in self.places:
            lead = (-1,) + (1,) * (dense[i].dim() - 1)
            rows = place[0]
            here, count = ok[rows].view(lead), t[rows].view(lead)
            beta = self.beta[i][place]
            masked_move(s, i, place, dense[i][place], beta.exp(), count, here)
            if s.meta is not None:
                self._meta(i, place, fine_z[i][place], count, here)
        s.steps.copy_(torch.where(ok, t, s.steps))
        if s.meta is not None:
            self._show()

    def _meta(self, i: int, place: tuple[slice, ...], z: Tensor, count: Tensor, ok: Tensor) -> None:
        """The meta update within one piece; its count is the learner's own."""
        s, rows = self.stacked, place[0]
        assert s.meta is not None
        old = {name: x[place] for name, x in self.meta_state[i].items()}
        lead = (-1,) + (1,) * (z.dim() - 1)
        eta, low, high = (x[rows].view(lead) for x in (s.eta, s.low, s.high))
        for before, after in meta_changes(
            s.meta, z, self.beta[i][place], old, count, eta, low, high
        ):
            before.copy_(torch.where(ok, after, before))

    def _show(self) -> None:
        """alpha for display: the geometric mean of the step sizes of each tensor."""
        s = self.stacked
        means = torch.stack([beta.reshape(len(beta), -1).mean(1) for beta in self.beta], 1)
        s.beta.scatter_(1, s.block, means.to(s.beta.dtype))
        torch.exp(s.beta, out=s.alpha)
