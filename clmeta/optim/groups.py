"""From what a user passes as ``params`` to one parameter group per block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from clmeta.blocks import Blocks, partition_names
from clmeta.errors import bad, require

NEEDS_NAMES = ("layer", "head")


def _named(params: Any, argument: str) -> tuple[dict[str, Tensor], bool]:
    """Name to parameter in order, and whether the names are the user's."""
    entries = [params] if isinstance(params, Tensor) else list(params)
    require(len(entries) > 0, argument, entries, "pass at least one parameter")
    named: dict[str, Tensor] = {}
    own = not isinstance(entries[0], Tensor)
    for i, entry in enumerate(entries):
        is_pair = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Tensor)
        if own != is_pair or not (is_pair or isinstance(entry, Tensor)):
            bad(
                argument,
                type(entry).__name__,
                "pass model.parameters(), model.named_parameters() or a list of groups, not a mix",
            )
        name, p = entry if is_pair else (f"param{i}", entry)
        if any(p is other for other in named.values()):
            bad(argument, name, "this parameter is listed twice; list it once")
        require(name not in named, argument, name, "two parameters have this name")
        if not p.is_floating_point():
            bad(
                argument,
                f"{name}: {p.dtype}",
                "only real floating-point parameters have step sizes",
            )
        named[name] = p
    return named, own


def _split(
    named: dict[str, Tensor], own_names: bool, blocks: Blocks, argument: str
) -> dict[str, list[Tensor]]:
    if not own_names and (isinstance(blocks, Mapping) or blocks in NEEDS_NAMES):
        shown = dict(blocks) if isinstance(blocks, Mapping) else blocks
        bad("blocks", shown, f"needs names; pass {argument}=model.named_parameters()")
    partition = partition_names(named, blocks)
    return {block: [named[name] for name in names] for block, names in partition.items()}


def make_groups(params: Any, blocks: Blocks) -> list[dict[str, Any]]:
    """One group per block, in order, each with ``params`` and a unique ``name``.

    Args:
        params: parameters, (name, parameter) pairs, or groups. Blocks are formed within each
            group given, so ``"scalar"`` means one step size per group; a group's other entries
            (``alpha0``, ``weight_decay``, ...) hold for its blocks.
        blocks: see ``clmeta.blocks.partition_names``.
    """
    if isinstance(params, Mapping):
        bad("params", "a mapping", "pass a list of groups or named pairs (params.items())")
    entries: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    require(len(entries) > 0, "params", entries, "pass at least one parameter")
    if not isinstance(entries[0], Mapping):
        named, own = _named(entries, "params")
        split = _split(named, own, blocks, "params")
        return [{"name": name, "params": members} for name, members in split.items()]
    if isinstance(blocks, Mapping):
        bad("blocks", dict(blocks), "blocks by prefix need params=model.named_parameters()")
    groups: list[dict[str, Any]] = []
    for i, entry in enumerate(entries):
        groups += _groups_of(entry, i, blocks)
    _make_unique(groups)
    return groups


def _groups_of(entry: Any, i: int, blocks: Blocks) -> Iterable[dict[str, Any]]:
    if not isinstance(entry, Mapping) or "params" not in entry:
        bad(f"params[{i}]", type(entry).__name__, "a group is a dict with the key 'params'")
    group = {key: value for key, value in entry.items() if key not in ("params", "name")}
    named, own = _named(entry["params"], f"params[{i}]")
    name = str(entry.get("name", f"group{i}"))
    if blocks == "scalar":
        return [{**group, "name": name, "params": list(named.values())}]
    split = _split(named, own, blocks, f"params[{i}]")
    return [
        {**group, "name": block if own else f"{name}/{block}", "params": members, "_given": name}
        for block, members in split.items()
    ]


def _make_unique(groups: list[dict[str, Any]]) -> None:
    names = [group["name"] for group in groups]
    for group in groups:
        given = group.pop("_given", None)
        if given is not None and names.count(group["name"]) > 1:
            group["name"] = f"{given}/{group['name']}"
