"""Where each weight's entries of a meta-parameter vector are, at any granularity."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from clmeta.blocks import FINE, Blocks, fine_shape, partition_names
from clmeta.errors import bad, require
from clmeta.ground.checks import number


class Layout:
    """Place of every parameter in a vector with one entry per block, unit or weight.

    Attributes:
        block_names: names of the blocks (one per tensor for ``"node"`` and ``"weight"``).
        size: B.
    """

    def __init__(self, params: Mapping[str, Tensor], blocks: Blocks) -> None:
        partition = partition_names(params, blocks)
        fine = blocks if isinstance(blocks, str) and blocks in FINE else None
        self.block_names = list(partition)
        self._fine = fine is not None
        self.size = 0
        self.spans: dict[str, tuple[int, int]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for block, names in partition.items():
            shape = fine_shape(params[names[0]], fine) if fine else ()
            self.spans[block] = (self.size, self.size + math.prod(shape))
            self.size = self.spans[block][1]
            for name in names:
                self._shapes[name] = shape
        self._block_of = {name: block for block, names in partition.items() for name in names}

    def labels(self) -> list[str]:
        """(B,) names of the entries, e.g. ``"fc.weight[3]"``."""
        names: list[str] = []
        for block, (start, stop) in self.spans.items():
            names += [f"{block}[{i}]" for i in range(stop - start)] if self._fine else [block]
        return names

    def expand(self, values: Tensor, name: str) -> Tensor:
        """A parameter's entries of a (B,) vector, in a shape that broadcasts against it."""
        start, stop = self.spans[self._block_of[name]]
        return values[start:stop].reshape(self._shapes[name])

    def gather(self, products: Mapping[str, Tensor]) -> Tensor:
        """(B,) sums of one number per weight over each block, unit or weight."""
        sums: dict[str, Tensor] = {}
        for name, product in products.items():
            block = self._block_of[name]
            start, stop = self.spans[block]
            part = product.reshape(stop - start, -1).sum(1)
            sums[block] = sums[block] + part if block in sums else part
        return torch.cat([sums[block] for block in self.block_names])

    def given(self, argument: str, given: float | Mapping[str, float]) -> dict[str, float]:
        """Block to value, from one number or one per block.

        Raises:
            BadArgument: if a mapping does not name exactly the blocks.
        """
        if not isinstance(given, Mapping):
            return dict.fromkeys(self.block_names, number(argument, given))
        if set(given) != set(self.block_names):
            bad(argument, dict(given), f"give one value per block: {', '.join(self.block_names)}")
        return {block: number(argument, given[block]) for block in self.block_names}

    def spread(self, values: Mapping[str, float]) -> Tensor:
        """(B,) float64 entries from one value per block."""
        sizes = [stop - start for start, stop in self.spans.values()]
        each = torch.tensor([values[block] for block in self.block_names], dtype=torch.float64)
        return each.repeat_interleave(torch.tensor(sizes))

    def by_block(self, values: Tensor) -> dict[str, Tensor]:
        """Block name to its entries of a (B,) vector."""
        return {block: values[start:stop] for block, (start, stop) in self.spans.items()}


def check_params(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies of the parameters.

    Raises:
        BadArgument: unless they are a dict of real floating-point tensors of one type and device.
    """
    if not isinstance(params, Mapping):
        bad("params", type(params).__name__, "pass a dict from name to tensor")
    require(len(params) > 0, "params", dict(params), "pass at least one tensor")
    first = next(iter(params.values()))
    for name, p in params.items():
        if not isinstance(p, Tensor) or not p.is_floating_point():
            bad(f"params[{name!r}]", getattr(p, "dtype", p), "pass a real floating-point tensor")
        if (p.dtype, p.device) != (first.dtype, first.device):
            mend = f"all parameters must be {first.dtype} on {first.device}, like the first"
            bad(f"params[{name!r}]", f"{p.dtype} on {p.device}", mend)
        require(p.numel() > 0, f"params[{name!r}]", tuple(p.shape), "leave empty tensors out")
    return {name: p.detach().clone() for name, p in params.items()}
