"""Steps of stacked learners in whole tensors, masked, reading nothing back: compiled or on CUDA.

Compiled, each parameter's arrays are read once and written once, and gradients that are outer
products are formed on the way, never in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clmeta.engines.fuse import Fused
from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.stacked import Stacked
from clmeta.engines.stepsizes import meta_changes


class DeviceSteps:
    """Steps a `Stacked` whose blocks are whole tensors.

    Args:
        stacked: the learners.
        compiled: by ``torch.compile``'s compiler.
    """

    def __init__(self, stacked: Stacked, compiled: bool = False) -> None:
        self.stacked = stacked
        self.compiled = compiled
        self.build()

    def build(self) -> None:
        """Forget the compiled program, which holds for one number of learners."""
        self._program: Fused | None = None

    def step(self, grads: Sequence[Gradient]) -> None:
        """One update of all learners.

        Raises:
            CannotCompile: at the first step, if there is no working compiler.
        """
        s = self.stacked
        names = (*s.slots, *(("h",) if s.h else ()))
        scalars = [s.alpha, s.t, s.steps, s.gamma, s.kappa, s.eta, s.low, s.high]
        arrays = [s.beta, s.calls, s.withheld, s.first, s.culprits, *s.meta_state.values()]
        kinds = [isinstance(g, Outer) for g in grads]
        for i, g in enumerate(grads):
            arrays += [s.w[i], *(s.slots[name][i] for name in s.slots), *(s.h[i : i + 1])]
            arrays += [g.a, g.b] if isinstance(g, Outer) else [g]

        def program(*flat: Tensor) -> list[Tensor]:
            values, rest = flat[: len(scalars)], list(flat[len(scalars) :])
            counts = [rest.pop(0) for _ in range(5)]
            meta_state = {name: rest.pop(0) for name in s.meta_state}
            packs = []
            for is_outer in kinds:
                arrays = [rest.pop(0) for _ in range(1 + len(names))]
                g = rest.pop(0) * rest.pop(0) if is_outer else rest.pop(0)
                packs.append((g.to(arrays[-1].dtype), arrays))
            self._step(values, counts, meta_state, packs, names)
            return []

        with torch.no_grad():
            if not self.compiled:
                program(*scalars, *arrays)
                return
            if self._program is None:
                self._program = Fused(program, scalars, arrays)
            self._program(scalars, arrays)

    def _step(
        self,
        scalars: Sequence[Tensor],
        counts: Sequence[Tensor],
        meta_state: dict[str, Tensor],
        packs: Sequence[tuple[Tensor, list[Tensor]]],
        names: Sequence[str],
    ) -> None:
        """dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h + dw, where ok."""
        s = self.stacked
        alpha, t, steps, gamma, kappa, eta, low, high = scalars
        beta, calls, withheld, first, culprits = counts
        adaptive = s.meta is not None
        products = [arrays[-1] * g if adaptive else g for g, arrays in packs]
        parts = torch.stack([x.reshape(len(x), -1).sum(1) for x in products], 1).to(beta.dtype)
        z = torch.zeros_like(beta).scatter_add(1, s.block, parts)
        ok = torch.isfinite(z).all(1, keepdim=True)
        is_first = ~ok[:, 0] & (first < 0)
        culprits.copy_(torch.where(is_first[:, None], ~torch.isfinite(z), culprits))
        first.copy_(torch.where(is_first, calls, first))
        withheld.add_(~ok[:, 0])
        calls.add_(1)
        count = steps + 1
        alphas = alpha.gather(1, s.block)
        shrink, decay = alphas * kappa, gamma * (1 - alphas * kappa)
        for i, (g, (w, *state)) in enumerate(packs):
            lead = (-1,) + (1,) * (g.dim() - 1)
            now = dict(zip(names, state, strict=True))
            old = {name: now[name] for name in s.slots}
            u, new = s.base.update(g, old, count.view(lead))
            dw = -(alphas[:, i].reshape(lead) * u) - shrink[:, i].reshape(lead) * w
            changes = [(old[name], new[name]) for name in old] + [(w, w + dw)]
            if adaptive:
                changes.append((now["h"], decay[:, i].reshape(lead) * now["h"] + dw))
            keep = ok.view(lead)
            values = [torch.where(keep, after, before) for before, after in changes]
            for (before, _), value in zip(changes, values, strict=True):
                before.copy_(value.to(before.dtype))
        steps.copy_(torch.where(ok, count, steps))
        if s.meta is None:
            return
        moves = s.active & ok
        changes = meta_changes(s.meta, z, beta, meta_state, t + 1, eta, low, high)
        for before, after in (*changes, (t, t + 1)):
            before.copy_(torch.where(moves, after, before))
        alpha.copy_(beta.exp())
