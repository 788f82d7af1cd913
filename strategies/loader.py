"""Mini-batches of a map-style dataset in its own order, cut from blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

#: Samples that are put together at a time: few enough to be fresh in the cache.
BLOCK = 64


class SliceLoader:
    """Mini-batches as lists of tensors, in the dataset's order.

    Equal to ``DataLoader(dataset, batch_size, shuffle=False)``, but samples are collated and moved
    to the device a block at a time and mini-batches are slices of the block, which at batch size
    one costs a few microseconds instead of tens.

    Args:
        dataset: map-style, of tuples of tensors and numbers.
        batch_size: samples per mini-batch; the last one can be smaller.
        device: where mini-batches are wanted.
    """

    def __init__(self, dataset: Any, batch_size: int, device: torch.device) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = device
        self._collate: Callable[[list[Any]], Any] = getattr(dataset, "collate_fn", default_collate)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        count, size = len(self.dataset), self.batch_size
        block = max(1, BLOCK // size) * size
        for start in range(0, count, block):
            items = [self.dataset[i] for i in range(start, min(start + block, count))]
            columns = [column.to(self.device) for column in self._collate(items)]
            for batch in zip(*(column.split(size) for column in columns), strict=True):
                yield list(batch)
