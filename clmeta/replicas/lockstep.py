"""Several streams gone through in step, a segment at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clmeta.streams import Stream


@dataclass
class Segment:
    """Steps within one task of every stream.

    Attributes:
        x: float32 (steps, R, batch, C, H, W); y: int64 (steps, R, batch).
        task: each stream's task.
        ends: the streams (row numbers) whose task ends with this segment.
        done: those that end altogether.
    """

    x: Tensor
    y: Tensor
    task: list[int]
    ends: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)


class _Source:
    """One stream's batches from a step on, with a block of them at hand."""

    def __init__(self, stream: Stream, step: int) -> None:
        self.stream = stream
        self.blocks = self._from(step)
        self.next: tuple[Tensor, Tensor, int, bool] | None = next(self.blocks, None)
        self.advance()

    def _from(self, step: int) -> Iterator[tuple[Tensor, Tensor, int, bool]]:
        """(batches, labels, task, whether the task ends here), whole batches apart from a rest."""
        size = self.stream.batch_size
        first, start = self.stream.locate(step)
        for task in range(first, self.stream.n_tasks):
            left = self.stream.n_samples(task) - start * size
            for images, labels in self.stream.blocks(task, start):
                left -= len(labels)
                whole, rest = len(labels) // size, len(labels) % size
                cut = whole * size
                if whole:
                    x = images[:cut].view(whole, size, *images.shape[1:])
                    yield x, labels[:cut].view(whole, size), task, left == 0 and rest == 0
                if rest:
                    yield images[None, cut:], labels[None, cut:], task, left == 0
            start = 0

    def advance(self) -> None:
        if self.next is None:
            self.at_end = True
            return
        self.at_end = False
        self.x, self.y, self.task, self.last = self.next
        self.next = next(self.blocks, None)
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.y) - self.at


class Lockstep:
    """The same numbers of steps of several streams, until one ends; then of those that are kept.

    Args:
        streams: the streams.
        step: of all of them, with which to begin.
    """

    def __init__(self, streams: Sequence[Stream], step: int = 0) -> None:
        self._sources = [_Source(stream, step) for stream in streams]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these streams only."""
        self._sources = [self._sources[r] for r in rows]

    def __iter__(self) -> Iterator[Segment]:
        while self._sources and not any(source.at_end for source in self._sources):
            sources = list(self._sources)
            count = min(source.left for source in sources)
            cuts = [slice(source.at, source.at + count) for source in sources]
            both = list(zip(sources, cuts, strict=True))
            segment = Segment(
                torch.stack([source.x[cut] for source, cut in both], 1),
                torch.stack([source.y[cut] for source, cut in both], 1),
                [source.task for source in sources],
            )
            for row, source in enumerate(sources):
                source.at += count
                if source.left == 0:
                    if source.last:
                        segment.ends.append(row)
                    if source.next is None:
                        segment.done.append(row)
                    source.advance()
            yield segment
