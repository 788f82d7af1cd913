"""Partition of named parameters into blocks, each with step sizes of its own.

Equations.md, section 1: coordinate i of the weights belongs to block b(i) and is moved with
alpha = exp(beta[b(i)]).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from clmeta.errors import bad, require
from clmeta.registry import Registry

Blocks: TypeAlias = "str | Mapping[str, str | Sequence[str]]"
Partition: TypeAlias = "dict[str, list[str]]"

BLOCKS: Registry = Registry("way to form blocks")
#: Granularities with many step sizes within a block.
FINE = ("node", "weight")


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


def _matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


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
            found = [name for name in names if _matches(name, prefix)]
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
        names: parameter names in the model's order.
        blocks: ``"scalar"``, ``"layer"``, ``"tensor"``, ``"head"``, ``"node"``, ``"weight"`` or a
            mapping from block name to one or several parameter-name prefixes (``"*"`` takes the
            rest). ``"node"`` and ``"weight"`` form a block per tensor, finer inside.

    Raises:
        BadArgument: for an unknown name, a prefix that matches nothing, or a parameter that is
            in no block or in two.
    """
    names = list(names)
    if isinstance(blocks, Mapping):
        return _by_prefix(names, blocks)
    return BLOCKS.get(blocks, "blocks")(names)


def make_blocks(named: Iterable[tuple[str, Tensor]], blocks: Blocks) -> Partition:
    """``partition_names`` for ``model.named_parameters()`` or ``params.items()``."""
    return partition_names((name for name, _ in named), blocks)


def fine_shape(like: Tensor, granularity: str) -> tuple[int, ...]:
    """Shape of beta that broadcasts against a tensor: per weight, or per unit (first dimension).

    A unit's incoming weights are the slice along the first dimension of a weight tensor; every
    entry of a bias or other vector is a unit of its own.
    """
    if granularity == "weight" or like.dim() == 0:
        return tuple(like.shape)
    return (like.shape[0],) + (1,) * (like.dim() - 1)
