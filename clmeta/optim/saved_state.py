"""One parameter's entries of a state dict, checked and copied to where the parameter is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clmeta.engines.sizes import state_dtype
from clmeta.errors import bad, require
from clmeta.ground.checks import finite
from clmeta.ground.shards import is_sharded

WHOLE = (
    "is whole and the weight sharded, or the reverse: save and load by torch.distributed."
    "checkpoint.state_dict, with StateDictOptions(full_state_dict=True) where one side is whole"
)


def copied(p: Tensor, entries: Any, template: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Copies of a parameter's entries; nothing of them is shared with what was given.

    Args:
        p: the parameter.
        entries: what was saved of its state.
        template: name to what a fresh state has there, of which shape and dtype count. There may
            be further entries, those of a wrapped torch optimiser.
        where: what messages call it.

    Raises:
        BadArgument: if an entry is missing, or of another kind or shape.
    """
    require(isinstance(entries, Mapping), where, entries, "must be a mapping from name to value")
    if not entries:
        return {}
    for name in template:
        # A wrapped optimiser may have state before its first step, where there is no trace yet.
        if name not in entries and "step" in template:
            bad(where, [*map(str, entries)], f"lacks {name!r}, which this optimiser's rules need")
    trace = entries.get("h")
    cast = isinstance(trace, Tensor) and trace.dtype != state_dtype(p)
    return {
        name: _exact(p, value, template[name], f"{where}: {name}")
        if name in template
        else _by_torch(p, name, value, cast, where)
        for name, value in entries.items()
    }


def _exact(p: Tensor, value: Any, like: Any, where: str) -> Any:
    """An entry that the rules made: its shape is known, and its precision its own."""
    if like.dim() == 0 and not like.is_floating_point():
        value = scalar(value)
        count = finite(value) and 0 <= value < 2**53 and value == int(value)
        require(count, where, value, "must be a count of steps")
        return torch.tensor(int(value), device=p.device)
    if not isinstance(value, Tensor):
        bad(where, value, "must be a tensor")
    plain = not (value.is_meta or value.is_complex() or value.layout != torch.strided)
    require(plain, where, value, "must hold real numbers, all of them")
    if value.shape != like.shape:
        bad(where, tuple(value.shape), f"is its shape there and {tuple(like.shape)} here")
    require(is_sharded(value) == is_sharded(p), where, tuple(value.shape), WHOLE)
    if value.shape != p.shape:
        return value.to(device=p.device, dtype=like.dtype, copy=True)
    # Laid out as the parameter is, so that both can be gone through as one array.
    return torch.empty_like(p, dtype=like.dtype).detach().copy_(value)


def scalar(value: Any) -> Any:
    """The number that a tensor of one element holds; anything else as it is."""
    one = isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta
    return value.item() if one else value


def _by_torch(p: Tensor, name: str, value: Any, cast: bool, where: str) -> Any:
    """A wrapped optimiser's entry, copied as torch does: ``step`` stays where and what it was.

    Torch casts all to the weights' dtype; that is wanted only from weights of another precision.
    """
    if isinstance(value, Tensor):
        require(not value.is_meta, f"{where}: {name}", value, "has no numbers")
        if name == "step":
            return value.clone()
        dtype = p.dtype if cast and value.is_floating_point() else value.dtype
        return value.to(device=p.device, dtype=dtype, copy=True)
    if isinstance(value, Mapping):
        return {key: _by_torch(p, str(key), each, cast, where) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_by_torch(p, "", each, cast, where) for each in value)
    return copy.deepcopy(value)
