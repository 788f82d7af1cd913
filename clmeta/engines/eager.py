"""Algorithm 3 in torch's operations: any device, any granularity, any number of learners.

Off the CPU nothing is read back: every new value is computed from the old ones and written where
the update is sound. On the CPU that is read once, and arrays are gone through in pieces that fit
the cache. The same text is what ``torch.compile`` compiles (`clmeta.engines.compiled`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.learners import Engine, Learners
from clmeta.engines.pieces import Piece, Plan
from clmeta.engines.sizes import are_finite, blend, meta_update, put, state_dtype
from clmeta.errors import bad
from clmeta.native.trace import elementwise
from clmeta.rules import Rule

#: Numbers far below what rounding takes from the largest.
SMALL = {
    dtype: torch.finfo(dtype).max * torch.finfo(dtype).eps / 8
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
OF_SHARDS = (
    "is no formula of each number alone, which is all that sharded weights can be stepped by"
)


class Values(NamedTuple):
    """The numbers of one piece: Python's for one learner on the CPU, else shaped to broadcast."""

    t: Any
    alpha: Any
    gamma: Any
    kappa: Any
    eta: Any
    low: Any
    high: Any
    ok: Tensor | None


class Eager(Engine):
    """Steps of all blocks, tensor by tensor.

    Args:
        masked: read nothing back; by default off the CPU.
    """

    #: Whether tensors are stepped whole, also where the rule would allow to cut them.
    uncut = False

    def __init__(self, masked: bool | None = None) -> None:
        self.masked = masked
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}

    def step(self, learners: Learners, grads: Sequence[Gradient]) -> bool:
        """One update of all learners; those whose z is not finite are left as they are."""
        if self._plan is None or self._plan.learners is not learners:
            masked = not learners.on_cpu if self.masked is None else self.masked
            whole = self.uncut or learners.shards is not None
            base = learners.base
            if learners.shards is not None and not elementwise(base):
                bad("base", type(base).__name__, OF_SHARDS)
            self._plan = Plan(learners, masked, whole)
        self.advance(self._plan, grads)
        return True

    def advance(self, plan: Plan, grads: Sequence[Gradient]) -> None:
        """z = <h, g>; then all moves; then beta <- meta_update(beta, z) of whole blocks."""
        s, sizes = plan.learners, plan.learners.sizes
        dense = list(map(_dense, grads, s.w))
        fine_z = _products(plan, dense)
        self.prepare(s, grads)
        held, ok = ~torch.isfinite(sizes.z), None
        if plan.masked or bool(held.any()):
            ok = ~held.any(1)
        kept: list[tuple[Tensor | None, ...]] = []
        for piece, v in zip(plan.pieces, _values(plan, ok), strict=True):
            moved = meta = None
            if v is not None:
                moved = self._move(s, piece, piece.of(dense[piece.i]), v)
            if v is not None and s.fine and s.meta is not None:
                z, beta = piece.of(fine_z[piece.i]), piece.fine["beta"]
                state = {name: piece.fine[name] for name in s.meta.slots}
                t = v.t if isinstance(v.t, Tensor) else z.new_tensor(v.t)
                meta = meta_update(s.meta, z, beta, state, t, v.eta, v.low, v.high, v.ok)
            kept.append((moved, meta))
        for t in s.steps:
            t += 1 if ok is None else ok.to(t.device)
        above = None
        if s.fine:
            s.show_fine()
        else:
            above = s.meta_update(ok)
        if any(x is not None for each in kept for x in each) or s.shards is not None:
            held = held | plan.by_block(kept)
        if above is not None:
            held = held | above
        if plan.masked or bool(held.any()):
            sizes.note_withheld(held)

    def _move(self, s: Learners, piece: Piece, g: Tensor, v: Values) -> Tensor | None:
        """dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h - alpha du + dw.

        du is the change of u along the trace, 0 without curvature. Gives what `put` does.
        """
        w, h, old, decay = piece.w, piece.h, piece.slots, v.gamma
        u, new, du = self.direction(s.base, piece, g, v)
        if isinstance(v.kappa, Tensor):
            u = u + v.kappa * w
        elif v.kappa:
            u = torch.add(u, w, alpha=v.kappa)
        if isinstance(v.kappa, Tensor) or v.kappa:
            decay = v.gamma * (1 - v.alpha * v.kappa)
        along = u if du is None else u + du
        a = -v.alpha
        if isinstance(a, Tensor):
            along = a * along
            u, a = along if du is None else a * u, 1.0
        slots = [(before, new[name].to(before.dtype)) for name, before in old.items()]
        steps = (u,) if du is None else (u, along)
        small = v.ok is None and _is_small(w, a, steps, decay)
        if small and are_finite(*(after for _, after in slots)):
            blend(w, 1.0, u, a, out=w)
            if h is not None:
                blend(h, decay, along, a, out=h)
            for before, after in slots:
                before.copy_(after)
            return None
        pairs = [(w, blend(w, 1.0, u, a)), *slots]
        if h is not None:
            pairs.append((h, blend(h, decay, along, a)))
        return put(pairs, v.ok)

    def direction(
        self, rule: Rule, piece: Piece, g: Tensor, v: Values
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Direction u, next state, and the change of u along the trace; None where that is 0."""
        return *rule.update(g, piece.slots, v.t), None

    def prepare(self, s: Learners, grads: Sequence[Gradient]) -> None:
        """What a step needs of all blocks at once; marks z where it is not finite."""


def _is_small(w: Tensor, a: float, steps: Sequence[Tensor], decay: Any) -> bool:
    """Whether moves a x are lost in the rounding of numbers near the largest, and none overflows.

    Args:
        steps: the directions x.
        decay: of the trace; at most 1.
    """
    most = SMALL.get(w.dtype, 0.0)
    for x in steps:
        flat = x.reshape(-1)
        if not abs(a) * math.sqrt(torch.dot(flat, flat)) < most:
            return False
    return bool((decay >= -1).all() if isinstance(decay, Tensor) else decay >= -1)


def _dense(g: Gradient, w: Tensor) -> Tensor:
    """A gradient (R, *shape), in the dtype of the state."""
    g = g.dense() if isinstance(g, Outer) else g
    g = g if g.dim() == w.dim() else g[None]
    dtype = state_dtype(w)
    return g if g.dtype == dtype else g.to(dtype)


def _products(plan: Plan, dense: Sequence[Tensor]) -> list[Tensor]:
    """z by block into the sizes, and that of each unit or weight in the form of beta."""
    s, z = plan.learners, plan.learners.sizes.z
    fine_z = [torch.zeros_like(each["beta"]) for each in s.fine if s.meta is not None]
    parts = []
    for piece in plan.pieces:
        g = piece.of(dense[piece.i])
        if piece.flat and piece.h is not None:
            parts.append(torch.dot(piece.h, g))
            continue
        each = g * (0 if piece.h is None else piece.h)
        if fine_z:
            own = piece.of(fine_z[piece.i])
            own.copy_(each.sum_to_size(own.shape))
            if s.shards is not None:
                s.shards.over_units(piece.i, own)
        total = each.sum() if piece.row is not None else each.reshape(len(s), -1).sum(1)
        parts.append(total.to(z.device))
    joined = torch.stack(parts) if plan.single else torch.cat([x.reshape(-1) for x in parts])
    if s.shards is not None:
        joined = s.shards.total(joined)
    z.zero_().view(-1).index_add_(0, plan.blocks, joined.to(z.dtype))
    return fine_z


def _values(plan: Plan, ok: Tensor | None) -> Iterator[Values | None]:
    """Each piece's numbers; None where its one learner's update is withheld."""
    s = plan.learners
    columns = {**plan.settings(), "alpha": s.sizes.alpha.gather(1, s.block)}
    lists: dict[str, Any] = {}
    if not plan.masked:
        lists = {**plan.listed, "alpha": columns["alpha"].tolist()}
        counts = [t.tolist() for t in s.steps]
    for piece in plan.pieces:
        i, row, w = piece.i, piece.row, piece.w
        here = ok if ok is None or row is None else ok[row]
        numbers: dict[str, Any]
        if row is not None and not plan.masked:
            if here is not None and not bool(here):
                yield None
                continue
            numbers = {name: x[row][i] for name, x in lists.items()}
            numbers["t"], here = counts[i][row] + 1, None
        else:
            lead = (-1,) + (1,) * (w.dim() - 1) if row is None else ()
            at: Any = slice(None) if row is None else row
            numbers = {name: x[at, i] for name, x in columns.items()}
            numbers["t"] = s.steps[i][at] + 1
            dtype = state_dtype(w)
            numbers = {name: x.to(w.device, dtype).view(lead) for name, x in numbers.items()}
            here = None if here is None else here.to(w.device).view(lead)
        if s.fine:
            numbers["alpha"] = piece.fine["beta"].exp()
        yield Values(**numbers, ok=here)
