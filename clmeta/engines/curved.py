"""Hessian-aware traces in ordinary training: second derivatives of a graph that was kept.

The ``L`` approximation with a condensed trace (docs/method.md; Sec. 5 and 6 of the
paper). One vector h per weight is carried forward through the base update, and so is one tangent
per number of base state, X~::

    dg     = Hess (gamma h)                          one Hessian-vector product
    du, X~ = JVP of the rule along (dg, gamma X~)
    h     <- gamma (1 - alpha kappa) h - alpha du + dw

For one block this is exact ``L``. For more, h is the row sum of the trace matrix: what one
block's beta does to another block's weights is credited to the block of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clmeta.engines.eager import Eager, Values
from clmeta.engines.gradient import Gradient
from clmeta.engines.learners import Learners
from clmeta.engines.pieces import Piece
from clmeta.errors import bad, require
from clmeta.ground import ops
from clmeta.ground.checks import HESSIANS, number, one_of, whole
from clmeta.ground.forward import quiet_first_use
from clmeta.rules import Rule

UNIT = "must lie in [0, 1)"
TANGENT, CURVATURE = "d_", "curvature"
#: What torch says where a function can be differentiated once only.
NO_SECOND = "is not implemented"
MATH = (
    "for attention, run the network under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), for "
    "recurrent layers under torch.backends.cudnn.flags(enabled=False); or pass hessian='free'"
)


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
        one_of("hessian", self.kind, HESSIANS)
        require(0 <= number("smoothing", self.smoothing) < 1, "smoothing", self.smoothing, UNIT)
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name))
        whole("seed", self.seed, least=0)
        empty = self.low is not None and self.high is not None and self.low > self.high
        require(not empty, "low", self.low, f"must not exceed high={self.high}")
        plain = self.smoothing == 0 and self.low is None and self.high is None
        if self.kind != "diagonal" and not plain:
            bad("hessian", self.kind, "smoothing and clipping are for the diagonal; leave them out")


class Curved(Eager):
    """Steps of all blocks with curvature; gradients must come with their graph."""

    needs_graph = True
    uncut = True

    def __init__(self, rule: Rule, hessian: Hessian, device: torch.device) -> None:
        if not rule.differentiable:
            bad(
                "base",
                type(rule).__name__,
                f"its direction has derivative zero, so hessian={hessian.kind!r} would equal "
                "hessian='free'; use that, or a differentiable rule",
            )
        quiet_first_use()
        super().__init__()
        self.hessian = hessian
        self.noise = torch.Generator(device).manual_seed(hessian.seed)
        smoothed = (CURVATURE,) if hessian.smoothing else ()
        self.state_names = (*(TANGENT + name for name in rule.slots), *smoothed)
        self._dg: list[Tensor] = []
        self._averages: list[dict[str, Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_dg": [], "_averages": []}

    def saved(self) -> dict[str, Any]:
        """Where the random signs stand."""
        return {"noise": self.noise.get_state()}

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raise BadArgument unless it holds where random signs stand."""
        try:
            torch.Generator(self.noise.device).set_state(saved["noise"].cpu())
        except (KeyError, AttributeError, TypeError, RuntimeError):
            bad("state_dict 'noise'", saved.get("noise"), "is no state of a random generator")

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with the random signs."""
        self.noise.set_state(saved["noise"].cpu())

    def prepare(self, s: Learners, grads: Sequence[Gradient]) -> None:
        """Change of every gradient along gamma h; marks z of blocks where it is not finite."""
        if s.shards is not None:
            mend = "sharded weights have no second derivatives here; pass hessian='free'"
            bad("hessian", self.hessian.kind, mend)
        pairs = [(g, p) for g, p in zip(grads, s.leaves, strict=True) if isinstance(g, Tensor)]
        if not any(g.requires_grad for g, _ in pairs):
            bad(
                "hessian",
                self.hessian.kind,
                "the gradients have no graph; call loss.backward(create_graph=True)",
            )
        diagonal = self.hessian.kind == "diagonal"
        gamma = s.numbers.gamma.gather(1, s.block)[0]
        along = []
        for i, p in enumerate(s.leaves):
            h = s.h[i][0]
            along.append(self._signs(p) if diagonal else (gamma[i].to(h) * h).to(p.dtype))
        kept = [(g, v) for (g, _), v in zip(pairs, along, strict=True) if g.requires_grad]
        products = self._products(list(s.leaves), kept)
        self._dg, self._averages = [], []
        for i, (v, product) in enumerate(zip(along, products, strict=True)):
            h = s.h[i][0]
            averages: dict[str, Tensor] = {}
            dg = torch.zeros_like(h) if product is None else product.detach().to(h.dtype)
            if diagonal:
                sample, averages = self._smoothed(s, i, v * dg)
                dg = sample * gamma[i].to(h) * h
            self._dg.append(dg)
            self._averages.append(averages)
            s.sizes.z[0, s.block[0, i]] += (dg.sum() * 0).to(s.sizes.z)

    def _products(
        self, params: list[Tensor], kept: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor | None, ...]:
        """The Hessian of the loss times what stands with each gradient."""
        grads, along = zip(*kept, strict=True)
        try:
            with torch.enable_grad():
                return torch.autograd.grad(grads, params, grad_outputs=along, allow_unused=True)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[0]
            if NO_SECOND not in said:
                raise
            bad("hessian", self.hessian.kind, f"{said.rstrip('.')}; {MATH}")

    def _signs(self, p: Tensor) -> Tensor:
        bits = torch.randint(0, 2, p.shape, generator=self.noise, device=p.device)
        return (2 * bits - 1).to(p.dtype)

    def _smoothed(self, s: Learners, i: int, sample: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Diagonal after smoothing and clipping, and the average, which moves on with the step."""
        decay = self.hessian.smoothing
        averages: dict[str, Tensor] = {}
        if decay:
            average = ops.ema(s.slots[CURVATURE][i][0], sample, decay)
            averages = {CURVATURE: average}
            sample = average / ops.bias(decay, (s.steps[i][0] + 1).to(sample.dtype))
        if self.hessian.low is not None or self.hessian.high is not None:
            sample = torch.clamp(sample, self.hessian.low, self.hessian.high)
        return sample, averages

    def direction(
        self, rule: Rule, piece: Piece, g: Tensor, v: Values
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Direction and next state with their tangents along (dg, gamma X~)."""
        old = {name: piece.slots[name] for name in rule.slots}
        tangents = {name: v.gamma * piece.slots[TANGENT + name] for name in old}
        (u, new), (du, dnew) = torch.func.jvp(  # type: ignore[misc]
            lambda g, s: rule.update(g, s, v.t), (g.detach(), old), (self._dg[piece.i], tangents)
        )
        moved = {TANGENT + name: x for name, x in dnew.items()}
        return u, {**new, **moved, **self._averages[piece.i]}, du
