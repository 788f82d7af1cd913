"""When a head grows: which block a new parameter joins, and what becomes of an old one's state.

Works on any torch optimiser; imports no framework.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from clmeta.blocks import has_prefix, plain_name
from clmeta.errors import bad

Named = Mapping[str, Tensor]


def adopt(optimizer: torch.optim.Optimizer, known: Named, now: Named) -> None:
    """Make an optimiser follow a model whose parameters were replaced or added.

    A parameter that was replaced under its name keeps its place, its block and its state, padded
    with zeros to its new shape: the trace h and the base state of old weights go on, those of new
    weights start at zero, and step sizes per unit or weight start at the block's ``alpha0``. A
    parameter of a new name joins a block, see `block_of`. Parameters that were known and not in
    the optimiser stay out of it.

    Args:
        optimizer: any torch optimiser; its groups and state are changed in place.
        known: name to parameter, when the optimiser last followed the model.
        now: name to parameter, as the model is now.

    Raises:
        BadArgument: if no block can be told for a new parameter, or a base state cannot grow.
    """
    places = {
        id(p): (group, j) for group in optimizer.param_groups for j, p in enumerate(group["params"])
    }
    groups = {name: places[id(p)][0] for name, p in {**now, **known}.items() if id(p) in places}
    for name, p in now.items():
        old = known.get(name)
        if old is p or id(p) in places:
            continue
        if old is None:
            # `groups` stays as it was: one new parameter says nothing about its neighbours.
            group = block_of(name, groups, optimizer)
            group["params"].append(p)
            if "param_names" in group:
                group["param_names"].append(plain_name(name))
        elif id(old) in places:
            group, j = places[id(old)]
            group["params"][j] = p
            state = optimizer.state.pop(old, None)
            if state:
                fresh = group.get("alpha0") if getattr(optimizer, "granularity", None) else None
                optimizer.state[p] = grown(state, old, p, fresh)


def block_of(
    name: str, groups: Mapping[str, dict[str, Any]], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The parameter group that a new parameter joins.

    In this order: the block whose prefix it has, if blocks were given by prefix; the block that
    holds every parameter of the nearest enclosing module that has any; the block that holds every
    parameter of the same own name (``weight``, ``bias``) there.

    Args:
        name: the new parameter's name.
        groups: name to group, of the parameters in the optimiser.
        optimizer: where the groups are.

    Raises:
        BadArgument: if all three leave it open.
    """
    chosen = _by_prefix(name, optimizer)
    if chosen is not None:
        return chosen
    own, found = name.rpartition(".")[2], None
    for module in _enclosing(name):
        inside = {n: g for n, g in groups.items() if n.startswith(module)}
        if not inside:
            continue
        alike = {n: g for n, g in inside.items() if n.rpartition(".")[2] == own}
        for candidates in (inside, alike):
            if found is None and len({id(group) for group in candidates.values()}) == 1:
                found = next(iter(candidates.values()))
        break
    if found is None:
        bad(
            "blocks",
            [group.get("name", f"group{i}") for i, group in enumerate(optimizer.param_groups)],
            f"the model grew a parameter {name!r} that could belong to several blocks; name its "
            "block by prefix, blocks={'head': ['classifier'], 'body': ['*']}",
        )
    return found


def _enclosing(name: str) -> Iterator[str]:
    """``"a.b.c"``: ``"a.b."``, ``"a."``, ``""``."""
    while name:
        name = name.rpartition(".")[0]
        yield name + "." if name else ""


def _by_prefix(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    blocks = optimizer.defaults.get("blocks")
    if not isinstance(blocks, Mapping):
        return None
    by_name = {group.get("name"): group for group in optimizer.param_groups}
    rest = None
    for block, value in blocks.items():
        for prefix in [value] if isinstance(value, str) else value:
            if prefix == "*":
                rest = by_name.get(str(block))
            elif has_prefix(name, prefix):
                return by_name.get(str(block))
    return rest


def grown(
    state: dict[str, Any], old: Tensor, new: Tensor, alpha0: float | None = None
) -> dict[str, Any]:
    """A parameter's optimiser state for the parameter that replaces it, zero-padded.

    Args:
        state: tensors shaped like ``old``, or broadcastable to it along whole dimensions; numbers
            and 0-dim tensors (step counts) are kept.
        old, new: the parameters; old weights are the leading corner of the new ones.
        alpha0: with step sizes per unit or weight, where those of new weights start.

    Raises:
        BadArgument: for a tensor of another shape.
    """
    out: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            out[key] = value
            continue
        fill = math.log(alpha0) if key == "beta" and alpha0 is not None else 0.0
        shape = _shape_for(key, value, old, new)
        padded = value.new_full(shape, fill).to(new.device)
        corner = tuple(slice(min(a, b)) for a, b in zip(value.shape, shape, strict=True))
        padded[corner] = value[corner].to(new.device)
        out[key] = padded
    return out


def _shape_for(key: str, value: Tensor, old: Tensor, new: Tensor) -> tuple[int, ...]:
    """The shape of a state entry for the new parameter; a dimension of 1 stays 1."""
    if value.shape == old.shape:
        return tuple(new.shape)
    fits = value.dim() == old.dim() == new.dim() and all(
        size in (1, whole) for size, whole in zip(value.shape, old.shape, strict=True)
    )
    if not fits:
        bad(
            "base",
            f"state {key!r} of shape {tuple(value.shape)}",
            f"cannot follow a parameter that grows from {tuple(old.shape)} to {tuple(new.shape)}; "
            "use a rule such as 'adamw', or a model that does not grow",
        )
    return tuple(
        1 if size == 1 else target for size, target in zip(value.shape, new.shape, strict=True)
    )
