"""Weights that are spread over processes (DTensor, as FSDP2 makes them): each steps its own part.

All that a step needs of the others are sums: of z, of squares, and of what a unit's weights in
several processes say. Step sizes are the same in every process, as what moves them is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor; asked by its looks, as importing the class takes long."""
    return hasattr(x, "placements") and hasattr(x, "device_mesh")


def local(x: Any) -> Tensor:
    """This process's part of a tensor that is spread over several; writes to it are writes to x."""
    return x.detach().to_local() if is_sharded(x) else x.detach()


def local_gradient(g: Any, p: Any) -> Tensor:
    """This process's part of a gradient, cut as its parameter is."""
    if not is_sharded(g):
        return g
    return g.detach().redistribute(p.device_mesh, p.placements).to_local()


def whole(x: Any) -> Tensor:
    """A number that torch's operations gave of sharded tensors, in one place."""
    return x.full_tensor() if is_sharded(x) else x


def full_like(p: Any, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Tensor:
    """A tensor of a shape that broadcasts against p, on its device and cut as it is."""
    if not is_sharded(p):
        return torch.full(shape, value, dtype=dtype, device=p.device)
    from torch.distributed.tensor import Replicate, full

    cuts = [
        Replicate() if kind.is_shard() and shape[kind.dim] != p.shape[kind.dim] else kind
        for kind in p.placements
    ]
    return full(shape, value, dtype=dtype, device_mesh=p.device_mesh, placements=cuts)


def _groups(x: Any, but: Any = None) -> list[Any]:
    """The groups of processes over which x is cut (and ``but``, which broadcasts to it, is not)."""
    if not is_sharded(x):
        return []
    cut = [kind.is_shard() for kind in x.placements]
    other = [kind.is_shard() for kind in but.placements] if but is not None else [False] * len(cut)
    pairs = enumerate(zip(cut, other, strict=True))
    return [x.device_mesh.get_group(axis) for axis, (a, b) in pairs if a and not b]


class Shards:
    """How P tensors, some of them cut, are summed over processes.

    Args:
        tensors: the tensors.
        units: of each, what has an entry per unit or weight; [] where there is nothing.
    """

    def __init__(self, tensors: Sequence[Tensor], units: Sequence[Tensor] = ()) -> None:
        self.sizes = [x.numel() for x in units]
        self._tensors: dict[tuple[Any, ...], list[int]] = {}
        self._units: dict[tuple[Any, ...], list[int]] = {}
        for i, x in enumerate(tensors):
            self._tensors.setdefault(tuple(_groups(x)), []).append(i)
        for i, x in enumerate(units):
            self._units.setdefault(tuple(_groups(x)), []).append(i)
        self._over = [_groups(x, u) for x, u in zip(tensors, units, strict=False)]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], units: Sequence[Tensor] = ()) -> Shards | None:
        """The shards of tensors; None where all are whole."""
        return cls(tensors, units) if any(map(is_sharded, tensors)) else None

    def total(self, x: Tensor) -> Tensor:
        """Sums (..., P) over the parts of each tensor, from those of this process."""
        return _reduced(x, self._tensors)

    def total_units(self, x: Tensor) -> Tensor:
        """Sums (..., P) over the units of each tensor, from those of this process."""
        return _reduced(x, self._units)

    def over_units(self, i: int, x: Tensor) -> None:
        """Add up in place, for each unit of tensor i, what its weights in all processes give."""
        for group in self._over[i]:
            dist.all_reduce(x, group=group)


def _reduced(x: Tensor, indices: dict[tuple[Any, ...], list[int]]) -> Tensor:
    out = x.clone()
    for groups, members in indices.items():
        part = x[..., members].contiguous()
        for group in groups:
            dist.all_reduce(part, group=group)
        out[..., members] = part
    return out
