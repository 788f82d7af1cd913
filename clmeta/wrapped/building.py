"""The inner optimiser of a wrapped base is built over our groups, and refused if it cannot step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from clmeta.errors import BadArgument, bad
from clmeta.ground.checks import OURS

Factory = Callable[..., torch.optim.Optimizer]
Groups = list[dict[str, Any]]
TRACE = "h"


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """The inner optimiser's own settings in a group of either optimiser."""
    return {key: value for key, value in group.items() if key not in OURS}


def name_of(factory: Factory) -> str:
    """What errors call a base: its name, with the keywords that it was given."""
    if not isinstance(factory, functools.partial):
        return str(getattr(factory, "__name__", type(factory).__name__))
    given = ", ".join(f"{key}={value!r}" for key, value in factory.keywords.items())
    return f"{name_of(factory.func)}({given})"


def build(factory: Factory, groups: Groups) -> torch.optim.Optimizer:
    """The inner optimiser over the same groups, with their own settings for it.

    A class (or ``functools.partial`` of one) that takes ``lr`` and ``weight_decay`` gets alpha0
    and, unless told otherwise, 0: decay belongs to MetaOptimize, which must see it to
    differentiate through it.

    Raises:
        BadArgument: if it cannot be built; the base's own complaint follows the base's name.
    """
    name = name_of(factory)
    partial = factory if isinstance(factory, functools.partial) else functools.partial(factory)
    target, given = partial.func, partial.keywords
    options: dict[str, Any] = {}
    mine = [{"params": [*group["params"]], **settings_of(group)} for group in groups]
    if inspect.isclass(target):
        if not issubclass(target, torch.optim.Optimizer):
            bad("base", name, "is no torch.optim.Optimizer; pass a rule or an optimiser's class")
        accepted = inspect.signature(target).parameters
        options = {"lr": groups[0]["alpha0"], "weight_decay": 0.0}
        options = {k: v for k, v in options.items() if k in accepted and k not in given}
        if "lr" in accepted:
            mine = [{**new, "lr": group["alpha0"]} for new, group in zip(mine, groups, strict=True)]
    inner = complain(name, factory, mine, **options)
    if not isinstance(inner, torch.optim.Optimizer):
        bad("base", name, "must return a torch.optim.Optimizer for the parameters given")
    return inner


def complain(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call the base's code; its own errors are shown as they are, behind its name."""
    try:
        return function(*args, **options)
    except BadArgument:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise BadArgument(f"base={name!r}: {line}") from error


def owners_of(inner: torch.optim.Optimizer, groups: Groups, name: str) -> list[int]:
    """The block that each group of the inner optimiser lies in.

    Raises:
        BadArgument: if the inner optimiser mixes blocks, or holds more or fewer parameters.
    """
    blocks = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
    owners: list[int] = []
    seen: set[int] = set()
    for theirs in inner.param_groups:
        ids = {id(p) for p in theirs["params"]}
        if not ids <= blocks.keys():
            bad("base", name, "holds parameters that MetaOptimize was not given; use those given")
        mine = sorted({blocks[i] for i in ids})
        if len(mine) > 1:
            shown = " and ".join(repr(groups[i]["name"]) for i in mine[:2])
            bad("base", name, f"puts the blocks {shown} into one group; keep the groups given")
        owners.append(mine[0] if mine else min(len(owners), len(groups) - 1))
        seen |= ids
    left = [groups[i]["name"] for key, i in blocks.items() if key not in seen]
    if left:
        bad("base", name, f"leaves out parameters of block {left[0]!r}; use all of those given")
    return owners


def check(inner: torch.optim.Optimizer, name: str, learns: bool) -> None:
    """Raise BadArgument for an optimiser whose steps cannot be taken with lr = alpha."""
    if learns and isinstance(inner, torch.optim.LBFGS):
        bad("base", name, "searches along a line with closures; pass a first-order optimiser")
    for group in inner.param_groups:
        if "lr" not in group:
            bad("base", name, "has no 'lr' in its groups, so its step size cannot be set")
        if group.get("differentiable"):
            bad("base", name, "nothing is differentiated through a step; pass differentiable=False")
        kappa = group.get("weight_decay", 0)
        if kappa:
            bad(
                "base",
                name if "weight_decay" in name else f"{name}(weight_decay={kappa})",
                f"decay must be MetaOptimize's own; give the base weight_decay=0 and pass "
                f"weight_decay={kappa} to MetaOptimize",
            )
    check_state(inner.state, name)


def check_state(state: MutableMapping[Any, Any], name: str) -> None:
    """Raise BadArgument for a state that the trace cannot be kept beside."""
    for p, entries in state.items():
        if isinstance(p, Tensor) and not isinstance(entries, dict):
            bad("base", name, f"keeps a {type(entries).__name__} per parameter, not a dict")
        if isinstance(p, Tensor) and TRACE in entries:
            bad("base", name, f"keeps a state named {TRACE!r}, MetaOptimize's trace; rename it")
