"""Learners' arrays in pieces, each of which is stepped by one call of each operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clmeta.engines.learners import Learners
from clmeta.native.trace import elementwise

#: Numbers at a time on the CPU, so that temporaries stay in a core's second-level cache.
PIECE = 65_536


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

    def by_block(self, kept: Sequence[Sequence[Tensor | None]]) -> Tensor:
        """(R, B) the blocks of which any piece was kept back somewhere, as `put` says."""
        s, z, parts = self.learners, self.learners.sizes.z, []
        for piece, found in zip(self.pieces, kept, strict=True):
            rows = len(s) if piece.row is None else 1
            count = z.new_zeros(rows)
            for x in found:
                count = count if x is None else count + x.reshape(rows, -1).any(1).to(z)
            parts.append(count)
        joined = torch.cat(parts)
        joined = joined if s.shards is None else s.shards.total(joined)
        return torch.zeros_like(z).view(-1).index_add_(0, self.blocks, joined).view_as(z) > 0

    def settings(self) -> dict[str, Tensor]:
        """Each setting's value (R, P) for each tensor; as lists too, where they may be read."""
        numbers, block = self.learners.numbers, self.learners.block
        if self.masked or self._version != numbers.eta._version:
            self._columns = {name: x.gather(1, block) for name, x in numbers._asdict().items()}
            if not self.masked:
                self._version = numbers.eta._version
                self.listed = {name: x.tolist() for name, x in self._columns.items()}
        return self._columns
