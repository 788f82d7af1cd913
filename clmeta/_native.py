"""The CPU path by small C programs made from the rules' own formulas; all else goes by lists.

Falls back to `ListPath`, step by step, where a rule is not a formula, there is no C compiler, or
weights and gradients are not dense arrays of float32 or float64 laid out alike.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta._cc import CannotBuild
from clmeta._expression import CannotTrace
from clmeta._kernels import C_TYPES, PIECE, MetaMove, Moves
from clmeta._lists import ListPath, Slot, _safe
from clmeta.rules import Rule

if TYPE_CHECKING:
    from clmeta.optimizer import MetaOptimize

#: Numbers that are worth a thread: passing work to one takes as long as moving about so many.
SHARE = 262_144


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="clmeta")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _made(build: Callable[..., Any], rule: Rule, *args: Any) -> Any:
    """A compiled program, or None where there is none."""
    try:
        return build(rule, *args)
    except (CannotTrace, CannotBuild) as reason:
        text = "no native step for %s, which takes the slower way: %s"
        logging.getLogger("clmeta").info(text, rule, reason)
        return None


def is_native(rule: Rule, dtype: torch.dtype, adaptive: bool) -> bool:
    """Whether there is a C program for a base rule on weights of this dtype."""
    return dtype in C_TYPES and _made(Moves, rule, dtype, adaptive) is not None


class Table:
    """Addresses and ranges of all parameters that have gradients, as the C programs read them.

    Args:
        slots: one per parameter.
        owners: the index of each one's block.
        moves: the base rule's programs.
    """

    def __init__(self, slots: list[Slot], owners: list[int], moves: Moves | None) -> None:
        self.slots, self.owners, self.moves = slots, owners, moves
        self.params = [slot.p for slot in slots]
        self.dtype = self.params[0].dtype
        self.strides = [p.stride() for p in self.params]
        self.fits = moves is not None and all(self._alike(slot) for slot in slots)
        if moves is None or not self.fits:
            return
        count = self.count = len(slots)
        self.pointers = array("q", bytes(8 * count * len(moves.names)))
        self.place = {name: k * count for k, name in enumerate(moves.names)}
        for name, at in self.place.items():
            if name != "g":
                held = self.params if name == "w" else [slot.state[name] for slot in slots]
                self.pointers[at : at + count] = array("q", [x.data_ptr() for x in held])
        self.pieces = array("q")
        self.ends = []
        for k, p in enumerate(self.params):
            for start in range(0, p.numel(), PIECE):
                self.pieces.extend((k, start, min(PIECE, p.numel() - start)))
            self.ends.append(len(self.pieces) // 3)
        self.sums = array("d", bytes(8 * len(self.pieces) // 3))
        self.total = sum(p.numel() for p in self.params)

    def _alike(self, slot: Slot) -> bool:
        """Whether a parameter and its state are one dense array each, in one order."""
        p = slot.p
        plain = type(p) in (Tensor, torch.nn.Parameter) and p.device.type == "cpu"
        dense = p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last)
        return (
            (plain and dense and p.dtype == self.dtype and p.dtype in C_TYPES)
            and all(x.dtype == p.dtype and x.stride() == p.stride() for x in slot.tensors)
        )  # fmt: skip

    def takes(self, grads: list[Tensor]) -> bool:
        """Whether the gradients are laid out like their parameters; notes their addresses."""
        if not self.fits:
            return False
        for g, stride in zip(grads, self.strides, strict=True):
            if g.dtype is not self.dtype or g.layout is not torch.strided or g.stride() != stride:
                return False
        at = self.place["g"]
        self.pointers[at : at + self.count] = array("q", [g.data_ptr() for g in grads])
        return True

    def address(self, name: str) -> int:
        """Where the addresses of all parameters' ``name`` begin."""
        return self.pointers.buffer_info()[0] + 8 * self.place[name]

    def each(self, function: Callable[..., None], *args: Any) -> None:
        """Call a program for all pieces, by as many threads as torch uses and as are worth it."""
        count = len(self.sums)
        threads = min(torch.get_num_threads(), max(1, self.total // SHARE))
        if threads == 1:
            function(0, count, *args)
            return
        cuts = [count * k // threads for k in range(threads + 1)]
        others = [
            _threads().submit(function, first, last, *args)
            for first, last in itertools.pairwise(cuts[1:])
        ]
        function(0, cuts[1], *args)
        for other in others:
            other.result()


class NativePath(ListPath):
    """Steps of all blocks on the CPU, each array read and written once (equations.md, sec. 4)."""

    remade: tuple[str, ...] = (*ListPath.remade, "tables", "programs")

    def __init__(self, optimizer: MetaOptimize, rule: Rule) -> None:
        super().__init__(optimizer, rule)
        self.tables: dict[str, Table] = {}
        self.programs: dict[Any, Any] = {}

    def _program(self, build: Any, rule: Rule, *args: Any) -> Any:
        key = (build, *args)
        if key not in self.programs:
            self.programs[key] = _made(build, rule, *args)
        return self.programs[key]

    def _table(self, slots: list[Slot], owners: list[int], adaptive: bool) -> Table:
        table = self.tables.get("now")
        if table is None or table.slots != slots or table.owners != owners:
            dtype = slots[0].p.dtype
            moves = None
            if dtype in C_TYPES:
                moves = self._program(Moves, self.rule, dtype, adaptive)
            table = self.tables["now"] = Table(slots, owners, moves)
        return table

    def step(self) -> None:
        """One update of every block with a gradient."""
        sizes, groups = self.optimizer.sizes, self.optimizer.param_groups
        adaptive = sizes.rule is not None
        names = (*self.rule.slots, "h") if adaptive else self.rule.slots
        slots, owners, grads = [], [], []
        for i, group in enumerate(groups):
            for p in group["params"]:
                if p.grad is not None:
                    slots.append(self._slot(p, names))
                    owners.append(i)
                    grads.append(p.grad)
        if not grads:
            return
        table = self._table(slots, owners, adaptive)
        if not table.takes(grads):
            super().step()
            return
        z = self._products(table, adaptive)
        if not all(map(math.isfinite, z)):
            sizes.note_withheld(torch.tensor(z, dtype=sizes.beta.dtype), torch.tensor(True))
            return
        self._move_all(table)
        if adaptive:
            self._meta(z, owners)

    def _products(self, table: Table, adaptive: bool) -> list[float]:
        """z = <h, g> by block; with fixed step sizes, 0 where all of g is finite."""
        pieces, sums = table.pieces.buffer_info()[0], table.sums.buffer_info()[0]
        assert table.moves is not None
        if adaptive:
            table.each(table.moves.product, pieces, table.address("h"), table.address("g"), sums)
        else:
            table.each(table.moves.check, pieces, table.address("g"), sums)
        parts: list[list[float]] = [[] for _ in self.optimizer.param_groups]
        start = 0
        for owner, end in zip(table.owners, table.ends, strict=True):
            parts[owner].extend(table.sums[start:end])
            start = end
        return [math.fsum(_safe(part)) for part in parts]

    def _move_all(self, table: Table) -> None:
        """dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h + dw."""
        assert table.moves is not None
        alphas = self.optimizer.sizes.alpha.tolist()
        shrinks, decays = [], []
        for alpha, group in zip(alphas, self.optimizer.param_groups, strict=True):
            shrink = alpha * group["weight_decay"]
            shrinks.append(shrink)
            decays.append(group["gamma"] * (1 - shrink))
        numbers = array("d")
        for slot in table.slots:
            slot.state["step"] += 1
            numbers.append(slot.state["step"])
        for values in (alphas, shrinks, decays):
            numbers.extend([values[owner] for owner in table.owners])
        table.each(
            table.moves.move,
            table.pieces.buffer_info()[0],
            table.pointers.buffer_info()[0],
            table.count,
            numbers.buffer_info()[0],
            table.moves.constants.buffer_info()[0],
        )
        # Autograd must learn that weights changed, or it would use them in an older graph.
        torch.autograd.graph.increment_version(table.params)

    def _meta(self, z: list[float], owners: list[int]) -> None:
        sizes, groups = self.optimizer.sizes, self.optimizer.param_groups
        assert sizes.rule is not None
        program = self._program(MetaMove, sizes.rule, sizes.beta.dtype)
        if program is None:
            self.meta_update(torch.tensor(z, dtype=sizes.beta.dtype), sorted(set(owners)))
            return
        low, high = self.optimizer.beta_bounds(groups[0])
        active = bytearray(len(groups))
        for owner in owners:
            active[owner] = 1
        keep = array("b", active)
        numbers = array("d", z)
        etas = array("d", [group["eta"] for group in groups])
        program.function(
            len(groups),
            *(x.buffer_info()[0] for x in (keep, numbers, etas)),
            -math.inf if low is None else low,
            high,
            *(x.data_ptr() for x in (sizes.beta, sizes.t, *sizes.state.values())),
            program.constants.buffer_info()[0],
        )
        torch.exp(sizes.beta, out=sizes.alpha)
