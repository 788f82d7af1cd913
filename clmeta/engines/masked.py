"""The path for accelerators and for step sizes per unit or weight: pure, masked on the device.

Every new value is computed from the old ones and written where the update is sound, so nothing is
read back and a non-finite gradient reaches neither weights nor step sizes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.blocks import fine_shape
from clmeta.engines.lists import state_dtype, usable_grad
from clmeta.engines.path import Path
from clmeta.engines.stepsizes import meta_changes
from clmeta.rules import Rule

if TYPE_CHECKING:
    from clmeta.optim.optimizer import MetaOptimize

META = "meta_"


#: Numbers at a time on the CPU, so that temporaries stay in a core's cache.
PIECE = 16_384


def write(old: Tensor, new: Tensor, ok: Tensor) -> None:
    """``old <- new`` where ok (0-dim bool on the device)."""
    if old.dtype == new.dtype:
        torch.where(ok, new, old, out=old)
    else:
        old.copy_(torch.where(ok, new.to(old.dtype), old))


def pieces(p: Tensor) -> list[Any]:
    """A tensor's first dimension in slices of about `PIECE` numbers."""
    if p.dim() == 0 or p.numel() <= PIECE:
        return [...]
    rows = max(1, PIECE // (p.numel() // p.shape[0]))
    return [slice(start, start + rows) for start in range(0, p.shape[0], rows)]


class MaskedPath(Path):
    """Steps of all blocks, tensor by tensor, without reading from the device."""

    def __init__(self, optimizer: MetaOptimize, rule: Rule, granularity: str | None) -> None:
        super().__init__(optimizer)
        self.rule = rule
        self.granularity = granularity

    def _state(self, p: Tensor, alpha0: float) -> dict[str, Any]:
        state = self.optimizer.state[p]
        dtype = state_dtype(p)
        meta = self.optimizer.sizes.rule
        if "step" not in state:
            like = torch.zeros_like(p, dtype=dtype).detach()
            state["step"] = torch.zeros((), device=p.device, dtype=dtype)
            state.update(self.rule.init(like))
        elif not isinstance(state["step"], Tensor):  # from a checkpoint made on the CPU
            state["step"] = torch.tensor(float(state["step"]), device=p.device, dtype=dtype)
        if meta is not None and "h" not in state:
            state["h"] = torch.zeros_like(p, dtype=dtype).detach()
        if self.granularity and "beta" not in state:
            shape = fine_shape(p, self.granularity)
            beta = torch.full(shape, math.log(alpha0), device=p.device, dtype=dtype)
            state["beta"] = beta
            if meta is not None:
                state.update({META + k: v for k, v in meta.init(beta).items()})
        return state

    def step(self) -> None:
        """One update of every block with a gradient."""
        sizes = self.optimizer.sizes
        adaptive = sizes.rule is not None
        z = torch.zeros_like(sizes.beta)
        fine_z: dict[Tensor, Tensor] = {}
        active: list[tuple[int, dict[str, Any], list[tuple[Tensor, Tensor, dict[str, Any]]]]] = []
        for i, group in enumerate(self.optimizer.param_groups):
            members = [
                (p, usable_grad(p), self._state(p, group["alpha0"]))
                for p in group["params"]
                if p.grad is not None
            ]
            if not members:
                continue
            for p, g, state in members:
                if self.granularity and adaptive:
                    fine_z[p] = self._fine_z(g, state)
                    z[i] += fine_z[p].sum().to(z)
                else:
                    z[i] += (state["h"] * g if adaptive else g).sum().to(z)
            active.append((i, group, members))
        if not active:
            return
        self._prepare(active, z)
        ok = torch.isfinite(z).all()
        sizes.note_withheld(z, ~ok)
        for i, group, members in active:
            for p, g, state in members:
                ok_here = ok.to(p.device)
                if self.granularity:
                    self._fine(p, g, state, group, fine_z.get(p), ok_here)
                    continue
                alpha = sizes.alpha[i].to(p.device)
                self._move(p, g, state, alpha, group["gamma"], group["weight_decay"], ok_here)
            if self.granularity:
                self._show(i, members)
        if adaptive and not self.granularity:
            self.meta_update(z, [i for i, *_ in active], ok)

    def _prepare(self, active: list[Any], z: Tensor) -> None:
        """What a step needs of all blocks at once; marks z where it is not finite."""

    def _fine_z(self, g: Tensor, state: dict[str, Any]) -> Tensor:
        """<h, g> of each unit or weight, in beta's shape."""
        h, z = state["h"], torch.empty_like(state["beta"])
        for part in pieces(h) if h.device.type == "cpu" else [...]:
            z[part] = (h[part] * g[part]).sum_to_size(z[part].shape)
        return z

    def _fine(
        self,
        p: Tensor,
        g: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        z: Tensor | None,
        ok: Tensor,
    ) -> None:
        """One parameter with a step size per unit or weight; on the CPU piece by piece."""
        cut = p.device.type == "cpu" and type(self)._direction is MaskedPath._direction
        parts = pieces(p) if cut else [...]
        numbers = group["gamma"], group["weight_decay"]
        count = state["step"].clone()
        for part in parts:
            here = state
            if len(parts) > 1:
                here = {name: x[part] for name, x in state.items() if name != "step"}
                here["step"] = count.clone()
            w, dg = (p.detach()[part], g[part]) if len(parts) > 1 else (p, g)
            self._move(w, dg, here, here["beta"].exp(), *numbers, ok)
            if z is not None:
                self._fine_meta(z[part], here, group, ok)
        write(state["step"], count + 1, ok)

    def _move(
        self,
        p: Tensor,
        g: Tensor,
        state: dict[str, Any],
        alpha: Tensor,
        gamma: float,
        kappa: float,
        ok: Tensor,
    ) -> None:
        """dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h - alpha du + dw.

        du is the change of u along the trace, 0 without curvature.
        """
        u, new, du = self._direction(p, g, state, gamma)
        w = p.detach()
        dw = -alpha * (u + kappa * w if kappa else u)
        write(w, w + dw, ok)
        if "h" in state:
            h = gamma * (1 - alpha * kappa) * state["h"]
            write(state["h"], (h if du is None else h - alpha * du) + dw, ok)
        for name, after in new.items():
            write(state[name], after, ok)
        write(state["step"], state["step"] + 1, ok)

    def _direction(
        self, p: Tensor, g: Tensor, state: dict[str, Any], gamma: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Direction u, next state, and the change of u along the trace; None where that is 0."""
        old = {name: state[name] for name in self.rule.slots}
        u, new = self.rule.update(g, old, state["step"] + 1)
        return u, {name: new[name] for name in old}, None

    def _fine_meta(
        self, z: Tensor, state: dict[str, Any], group: dict[str, Any], ok: Tensor
    ) -> None:
        """The meta update of beta within one tensor; its count is the parameter's own."""
        rule = self.optimizer.sizes.rule
        assert rule is not None
        old = {name: state[META + name] for name in rule.slots}
        count = torch.clamp(state["step"], min=1)
        bounds = self.optimizer.beta_bounds(group)
        for before, after in meta_changes(
            rule, z, state["beta"], old, count, group["eta"], *bounds
        ):
            write(before, after, ok)

    def _show(self, i: int, members: list[tuple[Tensor, Tensor, dict[str, Any]]]) -> None:
        """The block's alpha for display: the geometric mean of its step sizes."""
        sizes = self.optimizer.sizes
        mean = torch.stack([state["beta"].mean() for _, _, state in members]).mean()
        sizes.beta[i] = mean.to(sizes.beta)
        sizes.alpha[i] = sizes.beta[i].exp()
