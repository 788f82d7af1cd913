"""The CPU step of stacked learners: in place, on tiles that fit a core's cache.

A tile is a range of learners by a range of one parameter's numbers. Large parameters are cut into
tiles of one learner each, whose numbers are Python's; of small ones a tile holds all learners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.stacked import Stacked, masked_move

#: Numbers per tile: the half dozen arrays of them fit a core's second-level cache.
TILE = 32_768


class Tile:
    """Learners ``rows`` and numbers ``columns`` of parameter i, as 2-D views of all its arrays."""

    def __init__(self, s: Stacked, i: int, rows: slice, columns: slice) -> None:
        self.i, self.rows, self.columns = i, rows, columns
        self.one = rows.stop - rows.start == 1

        def view(x: Tensor) -> Tensor:
            flat = x.view(len(x), -1)[rows, columns]
            return flat[0] if self.one else flat

        self.w = view(s.w[i])
        self.h = view(s.h[i]) if s.h else None
        self.slots = {name: [view(xs[i])] for name, xs in s.slots.items()}


class Tiles:
    """Steps a `Stacked` whose blocks are whole tensors, on the CPU.

    Raises nothing; learners whose update is not finite are left as they are and counted.
    """

    def __init__(self, stacked: Stacked) -> None:
        self.stacked = stacked
        self.tiles: list[Tile] = []
        self.build()

    def build(self) -> None:
        """Cut the arrays, again after learners were dropped."""
        s, count = self.stacked, len(self.stacked)
        self.tiles = []
        for i, w in enumerate(s.w):
            size = w[0].numel()
            rows = max(1, min(count, TILE // max(size, 1)))
            # Whole rows of a matrix, so that an outer product is cut along its first factor only.
            width = w.shape[-1]
            columns = size if rows > 1 or size <= TILE else max(width, TILE // width * width)
            for r in range(0, count, rows):
                for c in range(0, size, columns):
                    self.tiles.append(
                        Tile(
                            s,
                            i,
                            slice(r, min(r + rows, count)),
                            slice(c, min(c + columns, size)),
                        )
                    )
        self.counts = [int(n) for n in s.steps[:, 0].tolist()]

    def step(self, grads: Sequence[Gradient]) -> None:
        """One update of all learners."""
        s = self.stacked
        s.calls += 1
        parts = torch.zeros_like(s.block, dtype=s.beta.dtype)
        flat = [
            g if isinstance(g, Outer) else g.reshape(len(s), -1).to(w.dtype)
            for g, w in zip(grads, s.h or s.w, strict=True)
        ]
        for tile in self.tiles:
            parts[tile.rows, tile.i] += _product(tile, flat[tile.i])
        z = s.by_block(parts)
        good = torch.isfinite(z).all(1)
        ok = good.tolist()
        uniform = all(ok) and len(set(self.counts)) == 1
        alphas = s.alphas()
        numbers = alphas.tolist()
        if not all(ok):
            s.note(z, good[:, None])
        for tile in self.tiles:
            g = _cut(tile, flat[tile.i])
            row = tile.rows.start
            if tile.one:
                if ok[row]:
                    alpha = numbers[row][tile.i]
                    decay = s.gammas[row] * (1 - alpha * s.kappas[row])
                    self._move(tile, g, self.counts[row] + 1, -alpha, s.kappas[row], decay)
            elif uniform:
                a, kappa = alphas[tile.rows, tile.i, None], s.kappa[tile.rows]
                decay = s.gamma[tile.rows] * (1 - a * kappa)
                self._move(tile, g, self.counts[0] + 1, -a, kappa, decay)
            else:
                self._move_masked(tile, g, alphas, good)
        self.counts = [n + o for n, o in zip(self.counts, ok, strict=True)]
        s.steps += good[:, None]
        s.meta_update(z, None if all(ok) else good[:, None])

    def _move(
        self, tile: Tile, g: Tensor, t: int, minus_alpha: Any, kappa: Any, decay: Any
    ) -> None:
        """w <- w - alpha (u + kappa w); h <- gamma (1 - alpha kappa) h + the same change."""
        rule, s = self.stacked.base, self.stacked
        if rule.foreach:
            u = rule.update([g], tile.slots, t)[0][0]
        else:
            old = {name: xs[0] for name, xs in tile.slots.items()}
            u, new = rule.update(g, old, t)
            u = u.clone() if any(u is x for x in old.values()) else u
            for name, x in old.items():
                x.copy_(new[name])
        if tile.one:
            if kappa:
                u = torch.add(u, tile.w, alpha=kappa)
            tile.w.add_(u, alpha=minus_alpha)
            if tile.h is not None:
                tile.h.mul_(decay).add_(u, alpha=minus_alpha)
            return
        if any(s.kappas[tile.rows]):
            u = torch.addcmul(u, tile.w, kappa)
        tile.w.addcmul_(u, minus_alpha)
        if tile.h is not None:
            tile.h.mul_(decay).addcmul_(u, minus_alpha)

    def _move_masked(self, tile: Tile, g: Tensor, alphas: Tensor, good: Tensor) -> None:
        """The same where some learners have had fewer updates than others, or have none now."""
        s, i, rows = self.stacked, tile.i, tile.rows
        lead = (-1,) + (1,) * (s.w[i].dim() - 1)
        masked_move(
            s,
            i,
            rows,
            g.view(-1, *s.w[i].shape[1:]),
            alphas[rows, i].view(lead),
            s.steps[rows].view(lead) + 1,
            good[rows].view(lead),
        )


def _cut(tile: Tile, g: Gradient) -> Tensor:
    """The tile's part of a gradient (R, n) or outer product."""
    if not isinstance(g, Outer):
        part = g[tile.rows, tile.columns]
        return part[0] if tile.one else part
    width = g.b.shape[-1]
    if tile.one:
        a = g.a[tile.rows.start, tile.columns.start // width : -(-tile.columns.stop // width)]
        return (a * g.b[tile.rows.start]).view(-1)
    return (g.a[tile.rows] * g.b[tile.rows]).flatten(1)


def _product(tile: Tile, g: Gradient) -> Tensor:
    """<h, g> of each learner over the tile; for fixed step sizes a number to judge g by.

    Either is finite only if the gradient is: 0 times infinity is not a number.
    """
    if isinstance(g, Outer) and tile.one:
        width = g.b.shape[-1]
        a = g.a[tile.rows.start, tile.columns.start // width : -(-tile.columns.stop // width), 0]
        b = g.b[tile.rows.start, 0]
        if tile.h is None:
            return a.abs().max() * b.abs().max()
        return torch.dot(torch.mv(tile.h.view(-1, width), b), a)
    part = _cut(tile, g)
    if tile.h is None:
        return part.sum(-1)
    return torch.dot(tile.h, part) if tile.one else (tile.h * part).sum(1)
