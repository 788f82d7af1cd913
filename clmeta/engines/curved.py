"""Hessian-aware traces in ordinary training: second derivatives of a graph that was kept.

The ``L`` approximation with a condensed trace (equations.md, section 3; Sec. 5 and 6 of the
paper). One vector h per weight is carried forward through the base update, and so is one tangent
per number of base state, X~::

    dg     = Hess (gamma h)                          one Hessian-vector product
    du, X~ = JVP of the rule along (dg, gamma X~)
    h     <- gamma (1 - alpha kappa) h - alpha du + dw

For one block this is exact ``L``. For more, h is the row sum of the trace matrix: what one
block's beta does to another block's weights is credited to the block of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.engines.masked import MaskedPath
from clmeta.errors import bad, require
from clmeta.ground import ops
from clmeta.ground.checks import HESSIANS
from clmeta.ground.forward import quiet_first_use
from clmeta.rules import Rule

if TYPE_CHECKING:
    from clmeta.optim.optimizer import MetaOptimize

TANGENT = "d_"


@dataclass(frozen=True)
class Hessian:
    """What ``MetaOptimize`` does with second derivatives.

    Args:
        kind: ``"free"``, none; ``"exact"``, Hessian-vector products; ``"diagonal"``, the
            unbiased estimate v * (Hess v) of its diagonal, v random signs (Bekas, Kokiopoulou,
            Saad 2007). Either costs one backward pass through the gradient's graph a step.
        smoothing: decay of a bias-corrected running average of the diagonal, in [0, 1);
            0 for none. The average lags behind the weights but its noise is lower.
        low, high: the diagonal is clipped to them after smoothing; None for no bound. ``low=0``
            keeps a trace from growing in directions of negative curvature.
        seed: seed of the random signs.
    """

    kind: str = "exact"
    smoothing: float = 0.0
    low: float | None = None
    high: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.kind in HESSIANS, "hessian", self.kind, f"must be one of {HESSIANS}")
        require(0 <= self.smoothing < 1, "smoothing", self.smoothing, "must lie in [0, 1)")
        empty = self.low is not None and self.high is not None and self.low > self.high
        require(not empty, "low", self.low, f"must not exceed high={self.high}")
        plain = self.smoothing == 0 and self.low is None and self.high is None
        if self.kind != "diagonal" and not plain:
            bad("hessian", self.kind, "smoothing and clipping are for the diagonal; leave them out")


class CurvedPath(MaskedPath):
    """Steps of all blocks with curvature; gradients must come with their graph."""

    remade = ("_dg", "_averages")

    def __init__(
        self, optimizer: MetaOptimize, rule: Rule, granularity: str | None, hessian: Hessian
    ) -> None:
        if not rule.differentiable:
            bad(
                "base",
                type(rule).__name__,
                f"its direction has derivative zero, so hessian={hessian.kind!r} would equal "
                "hessian='free'; use that, or a differentiable rule",
            )
        quiet_first_use()
        super().__init__(optimizer, rule, granularity)
        self.hessian = hessian
        self.noise = torch.Generator(optimizer.sizes.beta.device).manual_seed(hessian.seed)
        self._dg: dict[Tensor, Tensor] = {}
        self._averages: dict[Tensor, dict[str, Tensor]] = {}

    def saved(self) -> dict[str, Any]:
        """Where the random signs stand."""
        return {"noise": self.noise.get_state()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on with the random signs."""
        self.noise.set_state(saved["noise"].cpu())

    def _prepare(self, active: list[Any], z: Tensor) -> None:
        """Change of every gradient along gamma h; marks z of blocks where it is not finite."""
        members = [(p, s, group) for _, group, block in active for p, _, s in block]
        params, grads = [p for p, *_ in members], [p.grad for p, *_ in members]
        if not any(g is not None and g.requires_grad for g in grads):
            bad(
                "hessian",
                self.hessian.kind,
                "the gradients have no graph; call loss.backward(create_graph=True)",
            )
        diagonal = self.hessian.kind == "diagonal"
        if diagonal:
            along = [self._signs(p) for p in params]
        else:
            along = [(group["gamma"] * s["h"]).to(p.dtype) for p, s, group in members]
        kept = [
            (g, v) for g, v in zip(grads, along, strict=True) if g is not None and g.requires_grad
        ]
        with torch.enable_grad():
            products = torch.autograd.grad(
                [g for g, _ in kept],
                params,
                grad_outputs=[v for _, v in kept],
                allow_unused=True,
            )
        self._dg, self._averages = {}, {}
        for (p, s, group), v, product in zip(members, along, products, strict=True):
            dg = torch.zeros_like(s["h"]) if product is None else product.detach().to(s["h"].dtype)
            if diagonal:
                dg = self._smoothed(p, s, v * dg) * group["gamma"] * s["h"]
            self._dg[p] = dg
        for i, _, block in active:
            for p, _, _ in block:
                z[i] += (self._dg[p].sum() * 0).to(z)

    def _signs(self, p: Tensor) -> Tensor:
        bits = torch.randint(0, 2, p.shape, generator=self.noise, device=p.device)
        return (2 * bits - 1).to(p.dtype)

    def _smoothed(self, p: Tensor, state: dict[str, Any], sample: Tensor) -> Tensor:
        """Diagonal after smoothing and clipping; the average moves on with the step."""
        decay = self.hessian.smoothing
        if decay:
            old = state.setdefault("curvature", torch.zeros_like(sample))
            average = ops.ema(old, sample, decay)
            self._averages[p] = {"curvature": average}
            sample = average / ops.bias(decay, state["step"] + 1)
        if self.hessian.low is not None or self.hessian.high is not None:
            sample = torch.clamp(sample, self.hessian.low, self.hessian.high)
        return sample

    def _direction(
        self, p: Tensor, g: Tensor, state: dict[str, Any], gamma: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Direction and next state with their tangents along (dg, gamma X~)."""
        slots = self.rule.slots
        old = {name: state[name] for name in slots}
        tangents = {
            name: gamma * state.setdefault(TANGENT + name, torch.zeros_like(state[name]))
            for name in slots
        }
        t = state["step"] + 1
        (u, new), (du, dnew) = torch.func.jvp(  # type: ignore[misc]
            lambda g, s: self.rule.update(g, s, t), (g.detach(), old), (self._dg[p], tangents)
        )
        moved = {TANGENT + name: x for name, x in dnew.items()}
        return u, {**new, **moved, **self._averages.get(p, {})}, du
