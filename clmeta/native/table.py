"""Addresses and ranges of arrays, as the C programs read them, and threads to run those."""

from __future__ import annotations

import functools
import itertools
import os
from array import array
from collections.abc import Callable, Sequence
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


def threads_for(numbers: int, count: int) -> int:
    """How many threads pay for moving so many numbers, in ``count`` parts."""
    return min(torch.get_num_threads(), max(1, numbers // SHARE), max(1, count))


def in_threads(function: Callable[..., None], threads: int, count: int, *args: Any) -> None:
    """Call ``function(first, last, *args)`` for all of 0 to count.

    Args:
        function: releases Python's lock, as C programs do.
    """
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


def pieces_of(sizes: Sequence[int], runs: Sequence[int]) -> tuple[array[int], array[int]]:
    """(tensor, first number, numbers) of each piece, flat; number of pieces up to each tensor.

    Args:
        sizes: numbers of each tensor.
        runs: numbers that may not be cut apart, of each tensor.
    """
    pieces, ends = array("q"), array("q")
    for k, (size, run) in enumerate(zip(sizes, runs, strict=True)):
        step = max(run, PIECE // run * run)
        for start in range(0, size, step):
            pieces.extend((k, start, min(step, size - start)))
        ends.append(len(pieces) // 3)
    return pieces, ends


def address(numbers: array[Any]) -> int:
    """Where an array begins."""
    return numbers.buffer_info()[0]
