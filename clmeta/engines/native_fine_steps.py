"""Stacked learners with a step size per unit or weight, by the C program of a single learner."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.native import program_of
from clmeta.engines.native_steps import plain, plain_arrays, rows_of
from clmeta.engines.stacked import Stacked
from clmeta.engines.stacked_fine import FineSteps
from clmeta.native.kernels import sum_products
from clmeta.native.kernels_fine import META, FineMoves
from clmeta.native.table import Table, address, in_threads


class NativeFineSteps(FineSteps):
    """`FineSteps` on the CPU.

    Args:
        stacked: the learners.
        moves: the rules' programs, from `fine_moves_for`.
    """

    def __init__(self, stacked: Stacked, moves: FineMoves) -> None:
        self.moves = moves
        super().__init__(stacked)

    def build(self) -> None:
        """Look all arrays up, again after learners were dropped."""
        s, count = self.stacked, len(self.stacked)
        self.beta = [beta.contiguous() for beta in self.beta]
        self.alpha = [torch.empty_like(beta) for beta in self.beta]
        sizes = [w[0].numel() for w in s.w] * count
        pairs = zip(s.w, self.beta, strict=True)
        runs = [max(w[0].numel() // max(b[0].numel(), 1), 1) for w, b in pairs] * count
        self.table = Table(sizes, self.moves.names, runs=runs)
        self.units = Table(sizes, self.moves.unit_names)
        self.runs = array("q", runs)
        self.owners = torch.tensor(self.table.pieces[::3].tolist())
        for name, xs in {"w": s.w, **s.slots, **({"h": s.h} if s.h else {})}.items():
            self.table.put(name, rows_of(xs, count))
        self.units.put("alpha", rows_of(self.alpha, count))
        self.units.put("beta", rows_of(self.beta, count))
        for name in self.meta_state[0]:
            self.units.put(META + name, rows_of([each[name] for each in self.meta_state], count))

    def step(self, grads: Sequence[Gradient]) -> None:
        """One update of all learners; those whose z is not finite are left as they are."""
        s, count = self.stacked, len(self.stacked)
        s.calls += 1
        dense = [plain(g.dense() if isinstance(g, Outer) else g) for g in grads]
        table = self.table
        table.put("g", rows_of(dense, count))
        sum_products(self.moves.product, table, traced=bool(s.h))
        sums = torch.frombuffer(table.sums, dtype=torch.float64)
        parts = sums.new_zeros(table.count).index_add_(0, self.owners, sums)
        z = s.by_block(parts.view(count, -1))
        ok = torch.isfinite(z).all(1, keepdim=True)
        s.note(z, ok)
        for alpha, beta in zip(self.alpha, self.beta, strict=True):
            torch.exp(beta, out=alpha)
        t = s.steps + 1
        columns = (t, s.gamma, s.kappa, s.eta, s.low, s.high)
        numbers = torch.stack([x.double().expand(count, len(s.w)) for x in columns])
        rows_ok = ok.expand(count, len(s.w)).contiguous()
        in_threads(
            self.moves.fine,
            len(table.sums),
            table.total,
            address(table.pieces),
            table.address("g"),
            self.units.address("alpha"),
            table.count,
            address(self.runs),
            rows_ok.data_ptr(),
            numbers.data_ptr(),
            address(self.moves.constants),
            address(self.moves.meta_constants),
        )
        s.steps.copy_(torch.where(ok, t, s.steps))
        if s.meta is not None:
            self._show()


def fine_moves_for(stacked: Stacked) -> FineMoves | None:
    """The rules' programs, where the learners' arrays are such as they take."""
    if not plain_arrays(stacked):
        return None
    return program_of(FineMoves, stacked.base, stacked.meta, stacked.w[0].dtype)
