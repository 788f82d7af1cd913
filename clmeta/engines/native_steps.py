"""The CPU step of stacked learners by the same C programs as a single learner's.

One learner after the other: the products and then the move, whose trace is still in the cache.
Gradients that are outer products are formed on the way, never in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.native import program_of
from clmeta.engines.stacked import Stacked
from clmeta.native.c_source import C_TYPES
from clmeta.native.kernels import MetaMove, Moves
from clmeta.native.table import Table, address, in_threads


class NativeSteps:
    """Steps a `Stacked` whose blocks are whole tensors, on the CPU.

    Args:
        stacked: the learners.
        moves: the base rule's programs, from `moves_for`.
    """

    def __init__(self, stacked: Stacked, moves: Moves) -> None:
        self.stacked, self.moves = stacked, moves
        meta = stacked.meta
        self.meta = program_of(MetaMove, meta, stacked.beta.dtype) if meta is not None else None
        self.build()

    def build(self) -> None:
        """Make the table again at the next step, after learners were dropped."""
        self._table: Table | None = None
        self._widths: list[int] = []

    def _tabulate(self, widths: list[int]) -> Table:
        s, learners = self.stacked, range(len(self.stacked))
        sizes = [w[0].numel() for w in s.w]
        names = (*self.moves.names, "second")
        table = Table(sizes * len(learners), names, widths * len(learners))
        arrays = {"w": s.w, **s.slots, **({"h": s.h} if s.h else {})}
        for name, xs in arrays.items():
            table.put(name, rows_of(xs, len(learners)))
        self.ends = array("q", table.ends)
        self.block = array("q", s.block.flatten().tolist())
        self.eta = s.eta.double().expand_as(s.beta).contiguous()
        self.low, self.high = (
            x.double().expand_as(s.beta).contiguous() for x in (s.low, s.high)
        )  # fmt: skip
        return table

    def step(self, grads: Sequence[Gradient]) -> None:
        """One update of all learners; those whose z is not finite are left as they are."""
        s, count = self.stacked, len(self.stacked)
        widths = [g.b.shape[-1] if isinstance(g, Outer) else 0 for g in grads]
        if self._table is None or widths != self._widths:
            self._widths = widths
            self._table = self._tabulate(widths)
        table = self._table
        first = [plain(g.a if isinstance(g, Outer) else g) for g in grads]
        second = [plain(g.b) if isinstance(g, Outer) else g for g in grads]
        table.put("g", rows_of(first, count))
        table.put("second", rows_of(second, count))
        alphas = s.alphas().double()
        shrink = alphas * s.kappa
        t = (s.steps + 1).expand_as(alphas)
        numbers = torch.stack([t, alphas, shrink, s.gamma * (1 - shrink)])
        z = torch.empty(s.beta.shape, dtype=torch.float64)
        ok = torch.empty(count, 1, dtype=torch.bool)
        in_threads(
            self.moves.learners,
            count,
            table.total,
            address(table.pieces),
            address(self.ends),
            z.shape[1],
            address(self.block),
            len(s.w),
            table.address("g"),
            table.count,
            table.address("h") if s.h else None,
            table.address("second"),
            address(table.widths),
            numbers.data_ptr(),
            address(self.moves.constants),
            address(table.sums),
            z.data_ptr(),
            ok.data_ptr(),
        )
        s.calls += 1
        everyone = bool(ok.all())
        if not everyone:
            s.note(z, ok)
        s.steps += ok
        if self.meta is None or not self.meta.takes(s.beta, s.meta_state):
            s.meta_update(z.to(s.beta.dtype), None if everyone else ok)
            return
        active = s.active if everyone else s.active & ok
        given = (active, z, self.eta, self.low, self.high)
        self.meta([x.data_ptr() for x in given], s.beta, s.t, s.meta_state)
        torch.exp(s.beta, out=s.alpha)


def plain(x: Tensor) -> Tensor:
    """The tensor, or a copy whose numbers are stored as they are and in order."""
    return x.resolve_neg().contiguous()


def rows_of(xs: Sequence[Tensor], count: int) -> list[int]:
    """Addresses of each learner's part of each (R, ...) tensor, learner by learner."""
    starts = [(x.data_ptr(), x.stride(0) * x.element_size()) for x in xs]
    return [start + r * step for r in range(count) for start, step in starts]


def plain_arrays(stacked: Stacked) -> bool:
    """Whether all arrays are the CPU's, contiguous, and of one dtype that there is C for."""
    dtype = stacked.w[0].dtype
    slots = (x for xs in stacked.slots.values() for x in xs)
    return dtype in C_TYPES and all(
        x.dtype == dtype and x.device.type == "cpu" and x.is_contiguous()
        for x in (*stacked.w, *stacked.h, *slots)
    )


def moves_for(stacked: Stacked) -> Moves | None:
    """The base rule's programs, where the learners' arrays are such as they take."""
    if not plain_arrays(stacked):
        return None
    return program_of(Moves, stacked.base, stacked.w[0].dtype, bool(stacked.h))
