"""Partition of named parameters into blocks, each with step sizes of its own.

Coordinate i of the weights belongs to block b(i) and is moved with alpha = exp(beta[b(i)])
(Sec. 2 of the paper).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from clmeta.errors import bad, require
from clmeta.lookup import Wanted, failing_as, takes
from clmeta.registry import Registry

Blocks: TypeAlias = "str | Mapping[str, str | Sequence[str]]"
Partition: TypeAlias = "dict[str, list[str]]"

BLOCKS: Registry = Registry(
    "way to form blocks",
    Wanted("a function from parameter names to blocks: (names) -> {block: names}", takes(1)),
)
#: Granularities with many step sizes within a block.
FINE = ("node", "weight")
#: What torch puts into the names of modules that it compiles, shards or checkpoints.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain_name(name: str) -> str:
    """A parameter's name in the network itself, without the parts that torch's wrappers add.

    The ``module.`` of data-parallel wrappers stays: it is a name that networks use too.
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name


def layer_of(name: str) -> str:
    """The module that owns a parameter: its name without the last part."""
    return name.rpartition(".")[0] or name


@BLOCKS.register("scalar", about="One step size for all weights.")
def _scalar(names: Sequence[str]) -> Partition:
    return {"all": list(names)}


@BLOCKS.register("layer", about="One step size per module that owns parameters.")
def _layer(names: Sequence[str]) -> Partition:
    blocks: Partition = {}
    for name in names:
        blocks.setdefault(layer_of(name), []).append(name)
    return blocks


@BLOCKS.register("tensor", about="One step size per parameter tensor.")
@BLOCKS.register("node", about="One step size per unit, shared by its incoming weights.")
@BLOCKS.register("weight", about="One step size per weight.")
def _tensor(names: Sequence[str]) -> Partition:
    return {name: [name] for name in names}


@BLOCKS.register("head", about="The paper's two blocks: the last layer, and all before it.")
def _head(names: Sequence[str]) -> Partition:
    last = layer_of(names[-1])
    body = [name for name in names if layer_of(name) != last]
    if not body:
        bad("blocks", "head", f"all parameters belong to the last layer {last!r}; use 'scalar'")
    return {"body": body, "head": [name for name in names if layer_of(name) == last]}


def has_prefix(name: str, prefix: str) -> bool:
    """Whether a parameter is in the module of this name, or has it; wrappers don't count."""
    name, prefix = plain_name(name), plain_name(prefix.rstrip("."))
    return name == prefix or name.startswith(prefix + ".")


def _by_prefix(names: Sequence[str], blocks: Mapping[str, str | Sequence[str]]) -> Partition:
    """Blocks from parameter-name prefixes; ``"*"`` takes every parameter no other block takes."""
    require(len(blocks) > 0, "blocks", dict(blocks), "name at least one block")
    taken: dict[str, str] = {}
    rest: str | None = None
    for block, value in blocks.items():
        prefixes = [value] if isinstance(value, str) else value
        listed = isinstance(prefixes, Sequence) and all(isinstance(p, str) for p in prefixes)
        mend = "must be a parameter-name prefix or a list of them"
        require(listed, f"blocks[{block!r}]", value, mend)
        if "*" in prefixes:
            require(rest is None, "blocks", dict(blocks), "only one block may take the rest, '*'")
            rest, prefixes = block, [p for p in prefixes if p != "*"]
        for prefix in prefixes:
            found = [name for name in names if has_prefix(name, prefix)]
            if not found:
                layers = ", ".join(dict.fromkeys(layer_of(name) for name in names))
                bad(f"blocks[{block!r}]", prefix, f"no parameter has this prefix; layers: {layers}")
            for name in found:
                if taken.setdefault(name, block) != block:
                    bad(
                        f"blocks[{block!r}]",
                        prefix,
                        f"parameter {name!r} is in block {taken[name]!r} already; "
                        "give every parameter to one block",
                    )
    missed = [name for name in names if name not in taken]
    if missed and rest is None:
        shown = ", ".join(missed[:4]) + (", ..." if len(missed) > 4 else "")
        bad(
            "blocks",
            dict(blocks),
            f"parameters in no block: {shown}; add their prefixes, or '*' for the rest",
        )
    for name in missed:
        taken[name] = str(rest)
    partition: Partition = {str(block): [] for block in blocks}
    for name in names:
        partition[taken[name]].append(name)
    empty = [block for block, members in partition.items() if not members]
    require(not empty, "blocks", empty, "these blocks hold no parameter; remove them")
    return partition


def partition_names(names: Iterable[str], blocks: Blocks) -> Partition:
    """Block name to the names of its parameters; every parameter in exactly one block.

    Args:
        names: parameter names in the model's order; those of wrapped modules (``_orig_mod.``)
            form blocks of the names that the network has without its wrapper.
        blocks: ``"scalar"``, ``"layer"``, ``"tensor"``, ``"head"``, ``"node"``, ``"weight"`` or a
            mapping from block name to one or several parameter-name prefixes (``"*"`` takes the
            rest). ``"node"`` and ``"weight"`` form a block per tensor, finer inside.
            ``"package.module:name"`` is a function from the names to the result.

    Raises:
        BadArgument: for an unknown name, a prefix that matches nothing, or a parameter that is
            in no block or in two.
    """
    names = list(names)
    given = {plain_name(name): name for name in names}
    if len(given) < len(names):
        given = {name: name for name in names}
    if isinstance(blocks, Mapping):
        partition = _by_prefix([*given], blocks)
    else:
        with failing_as("blocks", blocks):
            partition = BLOCKS.get(blocks, "blocks")([*given])
            complete = sorted(name for members in partition.values() for name in members)
        mend = "must give {block: names} with each parameter in exactly one block"
        require(complete == sorted(given) and all(partition.values()), "blocks", blocks, mend)
    return {block: [given[name] for name in members] for block, members in partition.items()}


def fine_shape(
    like: Tensor | torch.Size, granularity: str, units: Sequence[int] = (0,)
) -> tuple[int, ...]:
    """Shape of beta that broadcasts against a tensor: per weight, or per unit.

    Args:
        like: the tensor, or its shape.
        granularity: ``"weight"`` or ``"node"``.
        units: the dimensions of a weight tensor that count units; a unit's incoming weights are
            a slice along them. In linear layers and convolutions that is the first, in
            transposed convolutions the second. Every entry of a bias or other vector is a unit.
    """
    shape = tuple(like.shape if isinstance(like, Tensor) else like)
    if granularity == "weight" or len(shape) < 2:
        return shape
    return tuple(size if i in units else 1 for i, size in enumerate(shape))
