"""Addresses and ranges of arrays, as the C programs read them, and threads to run those."""

from __future__ import annotations

import functools
import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

#: Numbers per piece. A sum over a piece is made in the weights' own precision, by 64 or 32 lanes.
PIECE = 65_536
#: Numbers that are worth a thread: passing work to one takes as long as moving about so many.
SHARE = 262_144


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="clmeta")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)


def in_threads(function: Callable[..., None], count: int, numbers: int, *args: Any) -> None:
    """Call ``function(first, last, *args)`` for all of 0 to count, by as many threads as pay.

    Args:
        function: releases Python's lock, as C programs do.
        count: of pieces, or of learners.
        numbers: that are moved in all.
    """
    threads = min(torch.get_num_threads(), max(1, numbers // SHARE), max(1, count))
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


class Table:
    """Where the arrays of some tensors are, and how they are cut into pieces.

    Args:
        sizes: numbers of each tensor.
        names: of the arrays that there are of each.
        widths: of those whose gradient is an outer product, its second factor's length; else 0.
        runs: numbers that may not be cut apart, of each tensor; its width or 1 unless given.

    Attributes:
        pieces: (tensor, first number, numbers) of each piece, one after the other.
        ends: for each tensor, the number of pieces up to it.
        sums: room for a number per piece.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        names: Sequence[str],
        widths: Sequence[int] = (),
        runs: Sequence[int] = (),
    ) -> None:
        self.count = len(sizes)
        self.total = sum(sizes)
        self.widths = array("q", widths or [0] * self.count)
        self._place = {name: k * self.count for k, name in enumerate(names)}
        self._pointers = array("q", bytes(8 * self.count * len(names)))
        self.pieces = array("q")
        self.ends = []
        for k, size in enumerate(sizes):
            run = runs[k] if runs else max(self.widths[k], 1)
            step = max(run, PIECE // run * run)
            for start in range(0, size, step):
                self.pieces.extend((k, start, min(step, size - start)))
            self.ends.append(len(self.pieces) // 3)
        self.sums = array("d", bytes(8 * len(self.pieces) // 3))

    def put(self, name: str, addresses: Iterable[int]) -> None:
        """Where the array ``name`` of each tensor begins."""
        at = self._place[name]
        self._pointers[at : at + self.count] = array("q", addresses)

    def address(self, name: str) -> int:
        """Where the addresses of all tensors' ``name`` begin; they follow in the order of names."""
        return address(self._pointers) + 8 * self._place[name]


def address(numbers: array[Any]) -> int:
    """Where an array begins."""
    return numbers.buffer_info()[0]
