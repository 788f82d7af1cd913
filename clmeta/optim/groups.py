"""From what a user passes as ``params`` to one parameter group per block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from clmeta.blocks import Blocks, partition_names, plain_name
from clmeta.errors import bad, require

NEEDS_NAMES = ("layer", "head")
FORMS = "pass model.parameters(), model.named_parameters(), a model or a list of groups"
A_GROUP = "a group is a dict with the key 'params'"
UNITS = "lists the dimensions of a weight that count units, such as (0,) or (1,)"
UNORDERED = (
    "params is a set: its order, and so which tensor a checkpoint's numbers go to, changes from "
    "run to run; pass a list"
)


class Given:
    """The parameters that a user passed, with what is known of them.

    Args:
        params: tensors, (name, tensor) pairs or a module.
        argument: what they are called in messages.

    Attributes:
        named: name to parameter, in order.
        own_names: whether the names are the user's.
        units: id of a parameter to the dimensions of it that count units, where a module tells
            that it is not the first; None where they are no dimensions of it.
    """

    def __init__(self, params: Any, argument: str) -> None:
        self.units: dict[int, tuple[int, ...] | None] = {}
        if isinstance(params, nn.Module):
            self.units = transposed(params)
        self.named: dict[str, Tensor] = {}
        entries = listed(params, argument)
        self.own_names = bool(entries) and not isinstance(entries[0], Tensor)
        held: set[int] = set()
        for i, entry in enumerate(entries):
            name, p = self._pair(entry, i, argument)
            require(id(p) not in held, argument, name, "is listed twice; list it once")
            held.add(id(p))
            require(name not in self.named, argument, name, "two parameters have this name")
            _check(p, name, argument)
            self.named[name] = p

    def _pair(self, entry: Any, i: int, argument: str) -> tuple[str, Tensor]:
        pair = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Tensor)
        if isinstance(entry, Tensor) and not self.own_names:
            return f"param{i}", entry
        if not (pair and self.own_names and isinstance(entry[0], str)):
            bad(argument, type(entry).__name__, f"{FORMS}, not a mix")
        return entry

    def names_of(self, members: Iterable[str]) -> dict[str, Any]:
        """What a group keeps of its members' names, under torch's own key."""
        return {"param_names": [plain_name(name) for name in members]} if self.own_names else {}


def listed(params: Any, argument: str) -> list[Any]:
    """The entries of what a user passed; a module is its named parameters."""
    if isinstance(params, nn.Module):
        while isinstance(params, nn.DataParallel | nn.parallel.DistributedDataParallel):
            params = params.module
        return list(params.named_parameters())
    if isinstance(params, Tensor):
        return [params]
    if isinstance(params, Mapping):
        bad(argument, "a mapping", "pass a list of groups or named pairs (params.items())")
    if isinstance(params, str) or not isinstance(params, Iterable):
        bad(argument, params, FORMS)
    return list(params)


def _check(p: Tensor, name: str, argument: str) -> None:
    if not p.is_floating_point():
        mend = "only real floating-point parameters have step sizes"
        bad(argument, f"{name}: {p.dtype}", mend)
    if not (p.is_leaf or p.retains_grad):
        bad(argument, name, "is computed from other tensors; pass the leaves that it comes from")


def transposed(module: nn.Module) -> dict[int, tuple[int, ...] | None]:
    """Ids of transposed convolutions' weights, (in, out / groups, ...), to where their units are.

    With several groups of several inputs each, a unit is no slice of the weight: None.
    """
    found: dict[int, tuple[int, ...] | None] = {}
    for layer in module.modules():
        if isinstance(layer, _ConvTransposeNd):
            depthwise = (0, 1) if layer.groups == layer.in_channels else None
            found[id(layer.weight)] = (1,) if layer.groups == 1 else depthwise
    return found


def _split(given: Given, blocks: Blocks, argument: str) -> list[dict[str, Any]]:
    if not given.own_names and (isinstance(blocks, Mapping) or blocks in NEEDS_NAMES):
        shown = dict(blocks) if isinstance(blocks, Mapping) else blocks
        bad("blocks", shown, f"needs names; pass {argument}=model.named_parameters()")
    groups = []
    for block, members in partition_names(given.named, blocks).items():
        params = [given.named[name] for name in members]
        group = {"name": block, "params": params, **given.names_of(members)}
        if blocks == "node" and id(params[0]) in given.units:
            group["units"] = given.units[id(params[0])]
            mend = f"units of the transposed convolution {block!r}, whose groups have several "
            mend += "inputs each, are no slices of its weight; use 'tensor' or 'weight'"
            require(group["units"] is not None, "blocks", blocks, mend)
        groups.append(group)
    return groups


def make_groups(params: Any, blocks: Blocks) -> list[dict[str, Any]]:
    """One group per block, in order, each with ``params`` and a unique ``name``.

    Args:
        params: parameters, (name, parameter) pairs, a module, or groups of those. Blocks are
            formed within each group given, so ``"scalar"`` means one step size per group; a
            group's other entries (``alpha0``, ``weight_decay``, ...) hold for its blocks.
        blocks: see ``clmeta.blocks.partition_names``.

    Raises:
        BadArgument: naming what is wrong, and the mend.
    """
    mend = "is a name, such as 'layer', or a mapping from block name to parameter-name prefixes"
    require(isinstance(blocks, str | Mapping), "blocks", blocks, mend)
    entries = listed(params, "params")
    require(len(entries) > 0, "params", entries, "pass at least one parameter")
    if isinstance(params, set | frozenset):
        warnings.warn(UNORDERED, FutureWarning, stacklevel=3)
    if not isinstance(entries[0], Mapping):
        given = Given(params if isinstance(params, nn.Module) else entries, "params")
        return _split(given, blocks, "params")
    if isinstance(blocks, Mapping):
        bad("blocks", dict(blocks), "blocks by prefix need params=model.named_parameters()")
    groups: list[dict[str, Any]] = []
    for i, entry in enumerate(entries):
        groups += _groups_of(entry, i, blocks)
    require(any(group["params"] for group in groups), "params", [], "pass at least one parameter")
    _make_unique(groups)
    return groups


def read_group(entry: Any, argument: str) -> tuple[dict[str, Any], Given]:
    """A group's settings without ``params`` and its names, and its parameters."""
    if not isinstance(entry, Mapping) or "params" not in entry:
        bad(argument, type(entry).__name__, A_GROUP)
    if isinstance(entry["params"], set | frozenset):
        bad(f"{argument}['params']", "a set", "has no order; pass a list")
    given = Given(entry["params"], f"{argument}['params']")
    settings = {key: value for key, value in entry.items() if key not in ("params", "param_names")}
    if "name" in settings:
        name = settings["name"]
        require(isinstance(name, str) and name != "", f"{argument}['name']", name, "must be a text")
    if "units" in settings:
        _check_units(settings["units"], given, f"{argument}['units']")
    if not given.own_names and "param_names" in entry:
        given = Given([*zip(entry["param_names"], given.named.values(), strict=True)], argument)
    return settings, given


def _check_units(units: Any, given: Given, argument: str) -> None:
    whole = isinstance(units, tuple | list) and all(type(unit) is int for unit in units)
    require(whole and len(units) > 0, argument, units, UNITS)
    for name, p in given.named.items():
        within = is_lazy(p) or p.dim() < 2 or all(0 <= unit < p.dim() for unit in units)
        require(within, argument, units, f"{UNITS}; {name!r} has no such dimension")


def _groups_of(entry: Any, i: int, blocks: Blocks) -> list[dict[str, Any]]:
    settings, given = read_group(entry, f"params[{i}]")
    name = settings.pop("name", f"group{i}")
    if blocks == "scalar" or not given.named:
        members = [*given.named.values()]
        return [{**settings, "name": name, "params": members, **given.names_of(given.named)}]
    groups = _split(given, blocks, f"params[{i}]")
    for group in groups:
        group["name"] = group["name"] if given.own_names else f"{name}/{group['name']}"
        group["_given"] = name
    return [{**group, **settings} for group in groups]


def _make_unique(groups: list[dict[str, Any]]) -> None:
    names = [group["name"] for group in groups]
    for group in groups:
        given = group.pop("_given", None)
        if given is not None and names.count(group["name"]) > 1:
            group["name"] = f"{given}/{group['name']}"
