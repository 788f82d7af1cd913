"""What a recorder needs of a torch optimiser: blocks, step sizes, settings, word of each step."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch

from clmeta.errors import bad, require


class Follower(Protocol):
    """What wants to know of each step."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called when the optimiser is about to make a step."""


def follow(optimizer: torch.optim.Optimizer, follower: Follower) -> Any:
    """Tell a follower before each step, until the handle given back is removed.

    The optimiser does not keep the follower alive.
    """
    known = weakref.ref(follower)

    def before(*_: Any) -> None:
        there = known()
        if there is not None:
            there.before_step(optimizer)

    return optimizer.register_step_pre_hook(before)


def block_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of its parameter groups; of unnamed ones ``group0``, ``group1``, ..."""
    return [str(group.get("name", f"group{i}")) for i, group in enumerate(optimizer.param_groups)]


def checked_names(given: Any) -> list[str]:
    """Names of blocks as a list. Raises BadArgument for anything else, none, or two alike."""
    mend = "pass the optimiser whose step sizes are recorded, or the names of its blocks"
    listed = isinstance(given, Iterable) and not isinstance(given, (str, torch.nn.Module))
    require(listed, "optimizer", given, mend)
    try:
        names = list(given)
    except TypeError:
        bad("optimizer", given, mend)
    require(all(isinstance(name, str) for name in names), "optimizer", names, mend)
    require(len(names) > 0, "block_names", names, "name at least one block")
    require(len(set(names)) == len(names), "block_names", names, "names must differ")
    return names


def alpha_of(optimizer: torch.optim.Optimizer) -> Any:
    """One step size a block, as the next step will use them."""
    alpha = getattr(optimizer, "alpha", None)
    return [group["lr"] for group in optimizer.param_groups] if alpha is None else alpha


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its name and the arguments it was made with, as far as they have a JSON form."""
    arguments = {key: _plain(value) for key, value in optimizer.defaults.items()}
    kept = {key: value for key, value in arguments.items() if value is not None}
    return {"name": type(optimizer).__name__, **kept}


def _plain(value: Any) -> Any:
    if isinstance(value, (int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, type) or not (isinstance(value, float) or dataclasses.is_dataclass(value)):
        return getattr(value, "__name__", None)
    return str(value)
