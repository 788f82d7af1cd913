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
from clmeta.engines.sizes import blend, meta_update, put, state_dtype
from clmeta.errors import bad
from clmeta.native.trace import elementwise
from clmeta.rules import Rule

#: Numbers at a time on the CPU, so that temporaries stay in a core's second-level cache.
PIECE = 65_536
OF_SHARDS = (
    "is no formula of each number alone, which is all that sharded weights can be stepped by"
)


class Piece(NamedTuple):
    """A part of tensor i that is stepped by one call of each operation.

    Attributes:
        row: the one learner that it is of; None for all of them, stacked.
        flat: whether its numbers are taken as one row, whatever their tensor's shape.
        cut: which of the numbers, or of the learner's units; None for all.
        w, h, slots, fine: views of the learners' arrays.
    """

    i: int
    row: int | None
    flat: bool
    cut: slice | None
    w: Tensor
    h: Tensor | None
    slots: dict[str, Tensor]
    fine: dict[str, Tensor]

    def of(self, x: Tensor) -> Tensor:
        """The piece of another array in the form of tensor i's (R, *shape)."""
        return part(x, self.row, self.flat, self.cut)


def part(x: Tensor, row: int | None, flat: bool, cut: slice | None) -> Tensor:
    """A piece of an array (R, *shape)."""
    if row is not None:
        x = x.reshape(-1) if flat else x[row]
    return x if cut is None else x[cut]


def pieces_of(s: Learners, masked: bool, uncut: bool) -> list[Piece]:
    """All of the learners' arrays in pieces; whole tensors where the rule may look at several."""
    pieces: list[Piece] = []
    rules = (s.base, s.meta if s.fine else None)
    alone = uncut or not all(elementwise(rule) for rule in rules if rule is not None)
    for i, w in enumerate(s.w):
        fine, size, rows = s.fine[i] if s.fine else {}, w[0].numel(), range(len(w))
        arrays = (w, *(xs[i] for xs in s.slots.values()), *s.h[i : i + 1])
        places: list[tuple[int | None, bool, slice | None]] = [(None, False, None)]
        if alone or len(w) == 1:
            places = [(row, False, None) for row in rows]
        if not (masked or alone) and all(x.is_contiguous() for x in arrays):
            unit = fine["beta"].shape[1] if fine and w.dim() > 1 else 0
            if not fine and len(w) == 1 and size <= PIECE:
                places = [(0, True, None)]
            elif not fine and size > PIECE:
                places = [(r, True, c) for r in rows for c in _cuts(size, PIECE, r * size)]
            elif fine and size > PIECE and unit == w.shape[1]:
                most = max(1, PIECE // (size // unit))
                places = [(r, False, c) for r in rows for c in _cuts(unit, most, 0)]
        for place in places:
            pieces.append(
                Piece(
                    i,
                    *place,
                    part(w, *place),
                    part(s.h[i], *place) if s.h else None,
                    {name: part(xs[i], *place) for name, xs in s.slots.items()},
                    {name: part(x, *place) for name, x in fine.items()},
                )
            )
    return pieces


def _cuts(size: int, most: int, start: int) -> list[slice]:
    return [slice(start + at, start + min(at + most, size)) for at in range(0, size, most)]


class Plan:
    """The pieces of some learners, and the block that each piece's part of z belongs to."""

    def __init__(self, s: Learners, masked: bool, uncut: bool = False) -> None:
        self.learners, self.masked = s, masked
        self.pieces = pieces_of(s, masked, uncut)
        first = s.active.shape[1] * torch.arange(len(s), device=s.block.device)
        rows = [slice(None) if p.row is None else slice(p.row, p.row + 1) for p in self.pieces]
        both = zip(self.pieces, rows, strict=True)
        self.blocks = torch.cat([s.block[at, p.i] + first[at] for p, at in both])
        self.single = all(p.row is not None for p in self.pieces)
        self._columns: dict[str, Tensor] = {}
        self._version = -1
        self.listed: dict[str, Any] = {}

    def settings(self) -> dict[str, Tensor]:
        """Each setting's value (R, P) for each tensor; as lists too, where they may be read."""
        numbers, block = self.learners.numbers, self.learners.block
        if self.masked or self._version != numbers.eta._version:
            self._columns = {name: x.gather(1, block) for name, x in numbers._asdict().items()}
            if not self.masked:
                self._version = numbers.eta._version
                self.listed = {name: x.tolist() for name, x in self._columns.items()}
        return self._columns


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
        ok: Tensor | None = None
        if plan.masked or not all(map(math.isfinite, sizes.z.flatten().tolist())):
            ok = torch.isfinite(sizes.z).all(1)
            sizes.note_withheld(ok)
            if not plan.masked and not bool(ok.any()):
                return
        for piece, v in zip(plan.pieces, _values(plan, ok), strict=True):
            if v is None:
                continue
            self._move(s, piece, piece.of(dense[piece.i]), v)
            if s.fine and s.meta is not None:
                z, beta = piece.of(fine_z[piece.i]), piece.fine["beta"]
                state = {name: piece.fine[name] for name in s.meta.slots}
                t = v.t if isinstance(v.t, Tensor) else z.new_tensor(v.t)
                meta_update(s.meta, z, beta, state, t, v.eta, v.low, v.high, v.ok)
        for t in s.steps:
            t += 1 if ok is None else ok.to(t.device)
        if s.fine:
            s.show_fine()
        else:
            s.meta_update(ok)

    def _move(self, s: Learners, piece: Piece, g: Tensor, v: Values) -> None:
        """dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h - alpha du + dw.

        du is the change of u along the trace, 0 without curvature.
        """
        w, old = piece.w, piece.slots
        u, new, du = self.direction(s.base, piece, g, v)
        if isinstance(v.kappa, Tensor):
            u = u + v.kappa * w
        elif v.kappa:
            u = torch.add(u, w, alpha=v.kappa)
        blend(w, 1.0, u, -v.alpha, v.ok)
        if piece.h is not None:
            decay = v.gamma * (1 - v.alpha * v.kappa)
            blend(piece.h, decay, u if du is None else u + du, -v.alpha, v.ok)
        for name, before in old.items():
            put(before, new[name], v.ok)

    def direction(
        self, rule: Rule, piece: Piece, g: Tensor, v: Values
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Direction u, next state, and the change of u along the trace; None where that is 0."""
        return *rule.update(g, piece.slots, v.t), None

    def prepare(self, s: Learners, grads: Sequence[Gradient]) -> None:
        """What a step needs of all blocks at once; marks z where it is not finite."""


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
