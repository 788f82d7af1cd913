"""Some learners' arrays as the C programs read them, and a step by those programs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.learners import Learners
from clmeta.native.program import TAG, MetaProgram, StepProgram
from clmeta.native.table import address, in_threads, pieces_of, threads_for


class Job:
    """Some learners' arrays as their programs read them."""

    def __init__(self, s: Learners, program: StepProgram, meta: MetaProgram | None) -> None:
        self.s, self.program, self.meta = s, program, meta
        self.count = len(s) * len(s.w)
        self.sizes = [w[0].numel() for w in s.w] * len(s)
        self.total = sum(self.sizes)
        #: What the addresses point to lives as long as this.
        self.arrays = self._pointers(program.arrays)
        self.second = array("q", bytes(8 * self.count))
        self.alpha = [torch.empty_like(each["beta"]) for each in s.fine]
        self.units = self._pointers(program.units, s.fine)
        self.steps = array("q", _rows(s.steps, len(s)))
        starts = torch.arange(len(s))[:, None] * s.active.shape[1]
        self.block = array("q", (s.block + starts).flatten().tolist())
        self.ok = array("b", bytes(len(s)))
        self.held = array("b", bytes(s.active.numel()))
        self.widths: list[int] = []
        #: Whether to make a step by functions of their own, as threads do.
        self.apart = False
        self.strides = [w.stride()[1:] for w in s.w]

    def _pointers(self, names: Sequence[str], fine: Sequence[Any] = ()) -> array[int]:
        s, out = self.s, array("q")
        held: dict[str, Iterable[Tensor]] = {"g": s.w, "w": s.w, "h": s.h, **s.slots}
        if fine:
            held["alpha"], held["beta"] = self.alpha, [each["beta"] for each in fine]
            slots = s.meta.slots if s.meta is not None else ()
            held |= {TAG + name: [each[name] for each in fine] for name in slots}
        for name in names if fine or names[0] == "g" else ():
            out.extend(_rows(held[name], len(s)))
        return out

    def _cut(self, widths: list[int]) -> None:
        """Cut the tensors into pieces, again as gradients come in another form."""
        s = self.s
        rows = [x.numel() // max(a.numel(), 1) or 1 for x, a in zip(s.w, self.alpha, strict=False)]
        runs = [max(run, 1) for run in (rows or widths)] * len(s)
        self.pieces, self.ends = pieces_of(self.sizes, runs)
        self.sums = array("d", bytes(8 * len(self.pieces) // 3))
        self.row = array("q", rows * len(s) or [0] * self.count)
        self.width, self.widths = array("q", widths * len(s)), widths
        arrays = [self.pieces, self.ends, self.block, self.row, self.width]
        arrays += [self.arrays, self.second, self.units, self.steps]
        n, sizes = s.numbers, s.sizes
        numbers = (sizes.alpha, n.gamma, n.kappa, n.eta, n.low, n.high)
        constants = (self.program.constants, self.program.meta_constants)
        fields = [self.count, len(s.w), s.active.shape[1]]
        fields += [address(x) for x in arrays]
        fields += [x.data_ptr() for x in numbers]
        fields += [address(x) for x in constants]
        fields += [address(self.sums), sizes.z.data_ptr(), address(self.ok), address(self.held)]
        self.job = array("q", fields)
        threads = threads_for(self.total, len(s) if len(s) > 1 else len(self.sums))
        self.threads = threads

    def step(self, grads: Sequence[Gradient]) -> None:
        """One update of all learners; what would not be finite is left as it is."""
        s, program = self.s, self.program
        held = self._put(grads)
        for alpha, each in zip(self.alpha, s.fine, strict=True):
            torch.exp(each["beta"], out=alpha)
        job = address(self.job)
        if self.apart or (len(s) == 1 and self.threads > 1):
            in_threads(program.products, self.threads, len(self.sums), job)
            program.settle(0, len(s), job)
            in_threads(program.moves, self.threads, len(self.sums), job)
        else:
            in_threads(program.learners, self.threads, len(s), job)
        del held
        if any(self.ok):
            if s.leaves:
                # Autograd must learn that weights changed, or it would use them in old graphs.
                torch.autograd.graph.increment_version(s.leaves)
            if s.fine:
                s.show_fine()
            elif s.meta is not None:
                self._meta()
        if any(self.held):
            s.sizes.note_withheld(torch.tensor(self.held).bool().view(s.active.shape))

    def _put(self, grads: Sequence[Gradient]) -> list[Tensor]:
        """Note where the gradients are; what is returned must live until they were read."""
        s, learners = self.s, len(self.s)
        first: list[Tensor] = []
        second: list[Tensor] = []
        widths = []
        for g, w, stride in zip(grads, s.w, self.strides, strict=True):
            outer = isinstance(g, Outer) and s.granularity != "weight"
            widths.append(g.b.shape[-1] if outer else 0)  # type: ignore[union-attr]
            if isinstance(g, Outer):
                second.append(_plain(g.b) if outer else w)
                first.append(_plain(g.a if outer else g.dense()))
                continue
            second.append(w)
            shown = g.stride()[-len(stride) :] if stride else ()
            if type(g) is Tensor and g.dtype is w.dtype and shown == stride and not g.is_neg():
                first.append(g)
            else:
                first.append(torch.empty_like(w).copy_(g.reshape(w.shape)))
        if widths != self.widths:
            self._cut(widths)
        alone = learners == 1
        places = [g.data_ptr() for g in first] if alone else _rows(first, learners)
        self.arrays[: self.count] = array("q", places)
        if any(widths):
            self.second[:] = array("q", _rows(second, learners))
        return first + second

    def _meta(self) -> None:
        """The meta update of all blocks of the learners that are well."""
        s, sizes, n = self.s, self.s.sizes, self.s.numbers
        if self.meta is None:
            held = s.meta_update(None if all(self.ok) else torch.tensor(self.ok).bool())
            for k, bad in enumerate([] if held is None else held.flatten().tolist()):
                self.held[k] |= bad
            return
        state = (sizes.state[name] for name in self.meta.slots)
        given = [x.data_ptr() for x in (sizes.z, n.eta, n.low, n.high)]
        given += [address(self.held), *(x.data_ptr() for x in (sizes.t, sizes.beta, *state))]
        head = (sizes.beta.numel(), sizes.beta.shape[1], s.active.data_ptr(), address(self.ok))
        self.meta.move(*head, *given, address(self.meta.constants))
        sizes.show()


def _rows(xs: Iterable[Tensor], count: int) -> list[int]:
    """Addresses of each learner's part of each (R, ...) tensor, learner by learner."""
    starts = [(x.data_ptr(), x.stride(0) * x.element_size()) for x in xs]
    return [start + r * step for r in range(count) for start, step in starts]


def _plain(x: Tensor) -> Tensor:
    """The tensor, or a copy whose numbers are stored as they are and in order."""
    return x.resolve_neg().contiguous()
