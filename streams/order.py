"""The order in which a task shows its samples, had from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clmeta.streams.arraydata import BLOCK

#: Indices, int64 (n,), and the numbers that their augmentation drew, int64 (n, k) or None.
Drawn = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Order:
    """One task's samples: pass after pass over its images, the last one cut short.

    Attributes:
        size: images of the task, which every pass draws anew.
        samples: of all passes together.
        batch_size: samples a step, at most ``size``; the last step may have fewer.
        draw: the first samples of a pass, given its number and how many; whatever is asked for
            before, the same.
    """

    size: int
    samples: int
    batch_size: int
    draw: Callable[[int, int], Drawn]

    def passes(self, first: int = 0) -> Iterator[Drawn]:
        """One pass after another, from number ``first`` on."""
        for number in range(first, -(-self.samples // self.size)):
            yield self.draw(number, min(self.size, self.samples - number * self.size))

    def blocks(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor | None, int]]:
        """Blocks of whole batches, from the one that holds step ``start`` on; none before it.

        The third is how many samples of a block come before that step. Blocks are the same
        wherever one starts.
        """
        batch, size = self.batch_size, self.size
        target = start * batch
        if target >= self.samples:
            return
        # A batch is complete, and in a block, with the pass that holds the last of its samples.
        number = (min(target + batch, self.samples) - 1) // size
        first = number * size // batch * batch
        index: Tensor | None = None
        draws: Tensor | None = None
        if first < number * size:
            begun = slice(first - (number - 1) * size, None)
            index, draws = _part(self.draw(number - 1, size), begun)
        block = max(1, BLOCK // batch) * batch
        skip = (target - first) // block * block
        before = target - first - skip
        left = self.samples - number * size
        for more, more_draws in self.passes(number):
            left -= len(more)
            index = more if index is None else torch.cat([index, more])
            if more_draws is not None:
                draws = more_draws if draws is None else torch.cat([draws, more_draws])
            whole = len(index) if left == 0 else len(index) // batch * batch
            for at in range(skip, whole, block):
                yield *_part((index, draws), slice(at, min(at + block, whole))), before
                before = 0
            index, draws = _part((index, draws), slice(whole, None))
            skip = 0


def _part(drawn: Drawn, chosen: slice) -> Drawn:
    index, draws = drawn
    return index[chosen], None if draws is None else draws[chosen]
