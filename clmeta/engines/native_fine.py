"""A step size per unit or weight on the CPU by a C program; all else goes as on accelerators."""

from __future__ import annotations

import math
import operator
from array import array
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.engines.masked import MaskedPath
from clmeta.engines.native import is_plain, layout, program_of
from clmeta.native.c_source import C_TYPES
from clmeta.native.kernels import sum_products
from clmeta.native.kernels_fine import META, FineMoves
from clmeta.native.table import Table, address, in_threads
from clmeta.rules import Rule

if TYPE_CHECKING:
    from clmeta.optim.optimizer import MetaOptimize


class FineRows:
    """The table of all parameters that have gradients, and their step sizes' memory.

    Args:
        params: the parameters.
        states: the optimiser's state of each, with beta.
        moves: the rules' programs, if there are any.
    """

    def __init__(
        self, params: list[Tensor], states: list[dict[str, Any]], moves: FineMoves | None
    ) -> None:
        self.params = params
        self.layouts = self._layouts(params, states)
        self.fits = moves is not None and all(map(self._alike, params, states))
        if moves is None or not self.fits:
            return
        self.moves = moves
        self.alpha = [torch.empty_like(state["beta"]) for state in states]
        runs = [
            p.numel() // max(a.numel(), 1) or 1 for p, a in zip(params, self.alpha, strict=True)
        ]
        sizes = [p.numel() for p in params]
        self.runs = array("q", runs)
        self.table = Table(sizes, moves.names, runs=runs)
        self.units = Table(sizes, moves.unit_names)
        self.table.put("w", [p.data_ptr() for p in params])
        self.units.put("alpha", [a.data_ptr() for a in self.alpha])
        for name in moves.names[2:]:
            self.table.put(name, [state[name].data_ptr() for state in states])
        for name in moves.unit_names[1:]:
            self.units.put(name, [state[name].data_ptr() for state in states])

    @staticmethod
    def _layouts(params: list[Tensor], states: list[dict[str, Any]]) -> list[Any]:
        arrays = (x for state in states for name, x in state.items() if name != "step")
        return [*map(layout, params), *map(layout, arrays)]

    def valid(self, params: list[Tensor], states: list[dict[str, Any]]) -> bool:
        """Whether these are the parameters, and all arrays where they were."""
        same = len(params) == len(self.params) and all(map(operator.is_, params, self.params))
        return same and self.layouts == self._layouts(params, states)

    @staticmethod
    def _alike(p: Tensor, state: dict[str, Any]) -> bool:
        """Whether a parameter and its state are contiguous arrays of one dtype."""
        return all(
            is_plain(x)
            and x.dtype == p.dtype
            and x.is_contiguous()
            and x.shape == (state["beta"].shape if _of_units(name) else p.shape)
            for name, x in {"w": p, **state}.items()
            if name != "step"
        )

    def takes(self, grads: list[Tensor]) -> bool:
        """Whether the gradients are such as the weights; notes their addresses."""
        if not self.fits:
            return False
        for g, p in zip(grads, self.params, strict=True):
            if g.dtype is not p.dtype or not is_plain(g) or not g.is_contiguous():
                return False
        self.table.put("g", [g.data_ptr() for g in grads])
        return True


def _of_units(name: str) -> bool:
    return name == "beta" or name.startswith(META)


class NativeFinePath(MaskedPath):
    """Steps of all blocks on the CPU with a step size per unit or weight."""

    remade: tuple[str, ...] = ("tables", "programs")

    def __init__(self, optimizer: MetaOptimize, rule: Rule, granularity: str) -> None:
        super().__init__(optimizer, rule, granularity)
        self.tables: dict[str, FineRows] = {}
        self.programs: dict[torch.dtype, FineMoves | None] = {}

    def _rows(self, params: list[Tensor], states: list[dict[str, Any]]) -> FineRows:
        rows = self.tables.get("now")
        if rows is None or not rows.valid(params, states):
            dtype = params[0].dtype
            if dtype not in self.programs:
                self.programs[dtype] = (
                    program_of(FineMoves, self.rule, self.optimizer.sizes.rule, dtype)
                    if dtype in C_TYPES
                    else None
                )
            same = all(p.dtype == dtype for p in params)
            moves = self.programs[dtype] if same else None
            rows = self.tables["now"] = FineRows(params, states, moves)
        return rows

    def step(self) -> None:
        """One update of every block with a gradient."""
        sizes, groups = self.optimizer.sizes, self.optimizer.param_groups
        params, states, owners = [], [], []
        for i, group in enumerate(groups):
            for p in group["params"]:
                if p.grad is not None:
                    params.append(p)
                    states.append(self._state(p, group["alpha0"]))
                    owners.append(i)
        if not params:
            return
        rows = self._rows(params, states)
        if not rows.takes([p.grad for p in params]):
            super().step()
            return
        z = self._products(rows, owners)
        if not all(map(math.isfinite, z)):
            sizes.note_withheld(torch.tensor(z, dtype=sizes.beta.dtype), torch.tensor(True))
            return
        for alpha, state in zip(rows.alpha, states, strict=True):
            torch.exp(state["beta"], out=alpha)
            state["step"] += 1
        self._move_all(rows, owners, [float(state["step"]) for state in states])
        for i in sorted(set(owners)):
            members = [(p, p, s) for p, s, j in zip(params, states, owners, strict=True) if j == i]
            self._show(i, members)

    def _products(self, rows: FineRows, owners: list[int]) -> list[float]:
        """<h, g> by block, which is finite only where all is; with fixed step sizes 0."""
        table = rows.table
        sum_products(rows.moves.product, table, traced="h" in rows.moves.names)
        z, start = [0.0] * len(self.optimizer.param_groups), 0
        for owner, end in zip(owners, table.ends, strict=True):
            z[owner] += sum(table.sums[start:end])
            start = end
        return z

    def _move_all(self, rows: FineRows, owners: list[int], counts: list[float]) -> None:
        """The step of weights, traces, step sizes and their state, in one pass."""
        table, groups = rows.table, self.optimizer.param_groups
        bounds = [self.optimizer.beta_bounds(group) for group in groups]
        lows = [-math.inf if low is None else low for low, _ in bounds]
        highs = [high for _, high in bounds]
        by_group = [[group[name] for group in groups] for name in ("gamma", "weight_decay", "eta")]
        numbers = array("d", counts)
        for values in (*by_group, lows, highs):
            numbers.extend([values[owner] for owner in owners])
        ok = array("b", [1]) * table.count
        in_threads(
            rows.moves.fine,
            len(table.sums),
            table.total,
            address(table.pieces),
            table.address("g"),
            rows.units.address("alpha"),
            table.count,
            address(rows.runs),
            address(ok),
            address(numbers),
            address(rows.moves.constants),
            address(rows.moves.meta_constants),
        )
        for p in rows.params:
            torch.autograd.graph.increment_version(p)
