"""The CPU path by small C programs made from the rules' own formulas; all else goes by lists.

Falls back to `ListPath`, step by step, where a rule is not a formula, there is no C compiler, or
weights and gradients are not dense arrays of float32 or float64 laid out alike.
"""

from __future__ import annotations

import logging
import math
import operator
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.engines.lists import ListPath, Slot, _safe
from clmeta.native.c_source import C_TYPES
from clmeta.native.cc import CannotBuild
from clmeta.native.expression import CannotTrace
from clmeta.native.kernels import MetaMove, Moves, sum_products
from clmeta.native.table import Table, address, in_threads
from clmeta.rules import Rule

if TYPE_CHECKING:
    from clmeta.optim.optimizer import MetaOptimize


def program_of(build: Callable[..., Any], rule: Rule, *args: Any) -> Any:
    """A compiled program, or None where there is none."""
    try:
        return build(rule, *args)
    except (CannotTrace, CannotBuild) as reason:
        text = "no native step for %s, which takes the slower way: %s"
        logging.getLogger("clmeta").info(text, rule, reason)
        return None


def is_native(rule: Rule, dtype: torch.dtype, adaptive: bool) -> bool:
    """Whether there is a C program for a base rule on weights of this dtype."""
    return dtype in C_TYPES and program_of(Moves, rule, dtype, adaptive) is not None


def layout(x: Tensor) -> tuple[Any, ...]:
    """What tells whether a tensor's numbers are where, what and in the order that they were."""
    return x.data_ptr(), x.dtype, x.numel(), x.stride()


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is an array in this process's memory, its numbers stored as they are."""
    kind = type(x) in (Tensor, torch.nn.Parameter)
    return kind and x.is_cpu and x.layout is torch.strided and not x.is_neg()


class Rows:
    """The table of all parameters that have gradients.

    Args:
        slots: one per parameter.
        owners: the index of each one's block.
        moves: the base rule's programs, if there are any.

    Attributes:
        fits: whether the programs can be used.
    """

    def __init__(self, slots: list[Slot], owners: list[int], moves: Moves | None) -> None:
        self.slots, self.owners = slots, owners
        self.params = [slot.p for slot in slots]
        self.layouts = self._layouts()
        self.dtype = self.params[0].dtype
        self.strides = [p.stride() for p in self.params]
        self.fits = moves is not None and all(self._alike(slot) for slot in slots)
        if moves is None or not self.fits:
            return
        self.moves = moves
        self.table = Table([p.numel() for p in self.params], moves.names)
        self.table.put("w", [p.data_ptr() for p in self.params])
        for name in slots[0].names:
            self.table.put(name, [slot.state[name].data_ptr() for slot in slots])

    def _layouts(self) -> list[Any]:
        # Storage can move under a tensor, as when it is shared with another process.
        states = [x.data_ptr() for slot in self.slots for x in slot.tensors]
        return [*map(layout, self.params), *states]

    def valid(self, params: list[Tensor], owners: list[int], states: dict[Tensor, Any]) -> bool:
        """Whether these are the parameters, blocks and state, and all arrays where they were."""
        if owners != self.owners or not all(map(operator.is_, params, self.params)):
            return False
        for slot in self.slots:
            state = states.get(slot.p)
            if state is not slot.state:
                return False
            if not all(map(operator.is_, map(state.get, slot.names), slot.tensors)):
                return False
        return self.layouts == self._layouts()

    def _alike(self, slot: Slot) -> bool:
        """Whether a parameter and its state are one dense array each, in one order."""
        p = slot.p
        dense = p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last)
        mine = (self.dtype, p.shape, p.stride())
        return dense and all(
            is_plain(x) and (x.dtype, x.shape, x.stride()) == mine for x in (p, *slot.tensors)
        )

    def takes(self, grads: list[Tensor]) -> bool:
        """Whether the gradients are laid out like their parameters; notes their addresses."""
        if not self.fits:
            return False
        for g, stride in zip(grads, self.strides, strict=True):
            plain = type(g) is Tensor and g.layout is torch.strided and not g.is_neg()
            if not plain or g.dtype is not self.dtype or g.stride() != stride:
                return False
        self.table.put("g", [g.data_ptr() for g in grads])
        return True


class NativePath(ListPath):
    """Steps of all blocks on the CPU, each array read and written once (equations.md, sec. 4)."""

    remade: tuple[str, ...] = (*ListPath.remade, "tables", "programs")

    def __init__(self, optimizer: MetaOptimize, rule: Rule) -> None:
        super().__init__(optimizer, rule)
        self.tables: dict[str, Rows] = {}
        self.programs: dict[Any, Any] = {}

    def _program(self, build: Any, rule: Rule, *args: Any) -> Any:
        key = (build, *args)
        if key not in self.programs:
            self.programs[key] = program_of(build, rule, *args)
        return self.programs[key]

    def _rows(self, params: list[Tensor], owners: list[int]) -> Rows:
        rows = self.tables.get("now")
        if rows is None or not rows.valid(params, owners, self.optimizer.state):
            adaptive = self.optimizer.sizes.rule is not None
            names = (*self.rule.slots, "h") if adaptive else self.rule.slots
            slots = [self._slot(p, names) for p in params]
            dtype = params[0].dtype
            moves = None
            if dtype in C_TYPES:
                moves = self._program(Moves, self.rule, dtype, adaptive)
            rows = self.tables["now"] = Rows(slots, owners, moves)
        return rows

    def step(self) -> None:
        """One update of every block with a gradient."""
        sizes = self.optimizer.sizes
        adaptive = sizes.rule is not None
        params, owners, grads = [], [], []
        for i, group in enumerate(self.optimizer.param_groups):
            for p in group["params"]:
                g = p.grad
                if g is not None:
                    params.append(p)
                    owners.append(i)
                    grads.append(g)
        if not grads:
            return
        rows = self._rows(params, owners)
        if not rows.takes(grads):
            super().step()
            return
        z = self._products(rows, adaptive)
        if not all(map(math.isfinite, z)):
            sizes.note_withheld(torch.tensor(z, dtype=sizes.beta.dtype), torch.tensor(True))
            return
        self._move_all(rows)
        self.blocks.clear()  # the lists' batches, made for other counts of updates
        if adaptive:
            self._meta(z, owners)

    def _products(self, rows: Rows, adaptive: bool) -> list[float]:
        """z = <h, g> by block; with fixed step sizes, 0 where all of g is finite."""
        table = rows.table
        sum_products(rows.moves.product, table, traced=adaptive)
        parts: list[list[float]] = [[] for _ in self.optimizer.param_groups]
        start = 0
        for owner, end in zip(rows.owners, table.ends, strict=True):
            parts[owner].extend(table.sums[start:end])
            start = end
        return [math.fsum(_safe(part)) for part in parts]

    def _move_all(self, rows: Rows) -> None:
        """dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h + dw."""
        table = rows.table
        alphas = self.optimizer.sizes.alpha.tolist()
        shrinks, decays = [], []
        for alpha, group in zip(alphas, self.optimizer.param_groups, strict=True):
            shrink = alpha * group["weight_decay"]
            shrinks.append(shrink)
            decays.append(group["gamma"] * (1 - shrink))
        numbers = array("d")
        for slot in rows.slots:
            slot.state["step"] += 1
            numbers.append(slot.state["step"])
        for values in (alphas, shrinks, decays):
            numbers.extend([values[owner] for owner in rows.owners])
        in_threads(
            rows.moves.move,
            len(table.sums),
            table.total,
            address(table.pieces),
            table.address("g"),
            table.count,
            None,
            address(table.widths),
            address(numbers),
            address(rows.moves.constants),
        )
        # Autograd must learn that weights changed, or it would use them in an older graph.
        for p in rows.params:
            torch.autograd.graph.increment_version(p)

    def _meta(self, z: list[float], owners: list[int]) -> None:
        sizes, groups = self.optimizer.sizes, self.optimizer.param_groups
        assert sizes.rule is not None
        program = self._program(MetaMove, sizes.rule, sizes.beta.dtype)
        if program is None or not program.takes(sizes.beta, sizes.state):
            self.meta_update(torch.tensor(z, dtype=sizes.beta.dtype), sorted(set(owners)))
            return
        low, high = self.optimizer.beta_bounds(groups[0])
        active = bytearray(len(groups))
        for owner in owners:
            active[owner] = 1
        etas = [group["eta"] for group in groups]
        lows, highs = [-math.inf if low is None else low], [high]
        held: list[array[Any]] = [array("b", active)]  # alive during the call
        held += [array("d", x) for x in (z, etas, lows * len(groups), highs * len(groups))]
        program([*map(address, held)], sizes.beta, sizes.t, sizes.state)
        torch.exp(sizes.beta, out=sizes.alpha)
