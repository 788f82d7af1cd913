"""A state dict, read against the optimiser that is to go on from it: checked and copied whole.

Nothing of the optimiser is changed here, so a dict that is refused leaves it as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from clmeta.blocks import plain_name
from clmeta.engines.sizes import StepSizes
from clmeta.errors import bad, require
from clmeta.ground.checks import HUGE, NUMBERS, OURS, check_numbers, finite
from clmeta.optim.saved_state import copied, scalar

if TYPE_CHECKING:
    from clmeta.optim.saving import Saved

#: Of the optimiser as a whole; saved with its first block.
COUNTS = {"calls": 0, "withheld": 0, "first_withheld": -1}


@dataclass
class Checkpoint:
    """What a state dict holds, as copies that nothing else shares.

    Attributes:
        groups: as torch loads them.
        state: parameter to its entries.
        sizes: what ``StepSizes.load_state_dict`` takes.
        alpha: (B,) fixed step sizes as they were; None for learned ones, which follow beta.
        path: what the way to step takes; None if that was not saved.
    """

    groups: list[dict[str, Any]]
    state: dict[Any, Any]
    sizes: dict[str, Any]
    alpha: Tensor | None
    path: Mapping[str, Any] | None


def read(optimizer: Saved, given: Any) -> Checkpoint:
    """Check a state dict against an optimiser and copy what it holds.

    Raises:
        BadArgument: if it is another optimiser's, has other blocks, parameters, shapes or rules,
            or if something in it is missing or of the wrong kind.
    """
    groups = _get(given, "param_groups", list, "state_dict")
    states = _get(given, "state", Mapping, "state_dict")
    for i, group in enumerate(groups):
        keys = _get(group, "params", list, _place(i))
        fits = all(type(key) in (int, str) for key in keys) and len({*keys}) == len(keys)
        require(fits, _place(i, "params"), keys, "must list a key for each parameter")
    metas = _metas(given, groups)
    _check_blocks(optimizer.block_names, groups)
    for i, meta in enumerate(metas):
        _check_config(optimizer._config, _get(meta, "config", Mapping, _place(i, "meta")))
    _check_order(optimizer.param_groups, groups)
    loaded: list[dict[str, Any]] = []
    state: dict[Any, Any] = {}
    known = set()
    for i, (mine, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        _check_shapes(mine, metas[i], _place(i, "meta"))
        loaded.append(_group(mine, saved, _place(i)))
        for (label, p), key in zip(_members(mine), saved["params"], strict=True):
            known.add(key)
            if key in states:
                where = f"state_dict['state'][{key!r}] of {label}"
                state[p] = copied(p, states[key], optimizer.template(p, mine), where)
    strays = [key for key in states if key not in known]
    if optimizer._rule is None:  # what a wrapped optimiser keeps of all its parameters
        own = [key for key in strays if isinstance(key, str)]
        state.update({key: copy.deepcopy(states[key]) for key in own})
        strays = [key for key in strays if key not in own]
    require(not strays, "state_dict['state']", strays, "belong to parameters that no group lists")
    sizes, path = _sizes(metas, optimizer.sizes), _path(metas)
    if path is not None:
        optimizer._engines[0].check(path)
    alpha, fixed = _alpha(groups, sizes["beta"]), optimizer.sizes.rule is None
    return Checkpoint(loaded, state, sizes, alpha if fixed else None, path)


# ---- finding and naming ------------------------------------------------------------------------


def _place(i: int, *keys: str) -> str:
    return f"state_dict['param_groups'][{i}]" + "".join(f"[{key!r}]" for key in keys)


def _get(holder: Any, key: str, kind: Any, where: str) -> Any:
    """A value of a mapping, or BadArgument if it is missing or of the wrong kind."""
    if not isinstance(holder, Mapping):
        bad(where, holder, "must be a mapping, as state_dict() gives it")
    require(key in holder, where, [*map(str, holder)], f"lacks {key!r}, which state_dict() gives")
    value = holder[key]
    mend = f"must be a {kind.__name__.lower()}"
    require(isinstance(value, kind), f"{where}[{key!r}]", value, mend)
    return value


def _list(holder: Mapping[str, Any], key: str, kind: Any, count: int, where: str) -> list[Any]:
    """A list with one thing of a kind for each of some parameters; [] where there is none."""
    values = holder.get(key)
    if values is None:
        return []
    fits = isinstance(values, list) and len(values) == count
    fits = fits and all(isinstance(value, kind) for value in values)
    require(fits, f"{where}[{key!r}]", values, f"must be a list for {count} parameters")
    return values


def _members(group: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a group, each with what messages call it."""
    names = group.get("param_names")
    for i, p in enumerate(group["params"]):
        yield (repr(names[i]) if names else f"parameter {i} of block {group['name']!r}"), p


# ---- whose it is -------------------------------------------------------------------------------


def _metas(given: Mapping[str, Any], groups: Sequence[Any]) -> list[Mapping[str, Any]]:
    """What each group holds of its block's step size; from one table for all in older dicts."""
    metas = [group.get("meta") for group in groups]
    if metas and all(isinstance(meta, Mapping) and "beta" in meta for meta in metas):
        return metas
    old = given.get("meta")
    if not (isinstance(old, Mapping) and "beta" in old):
        bad("state_dict", [*map(str, given)], "has no 'meta'; it is not MetaOptimize's")
    where = "state_dict['meta']"
    state = _get(old, "state", Mapping, where)
    columns = {key: _column(old, key, where, len(groups)) for key in ("beta", "t", "culprits")}
    slots = {key: _column(state, key, where, len(groups)) for key in state}
    whole = {key: int(_get(old, key, Tensor, where)) for key in COUNTS}
    shared = {"config": _get(old, "config", Mapping, where)}
    whole["path"] = _get(old, "path", Mapping, where)
    return [
        {
            **shared,
            "beta": columns["beta"][i],
            "t": columns["t"][i],
            "culprit": bool(columns["culprits"][i]),
            "state": {key: column[i] for key, column in slots.items()},
            **({} if i else {"whole": whole}),
        }
        for i in range(len(groups))
    ]


def _column(holder: Mapping[str, Any], key: str, where: str, blocks: int) -> list[Any]:
    value = _get(holder, key, Tensor, where)
    if tuple(value.shape) != (blocks,):
        mend = f"is its shape; there are {blocks} blocks, each with one number"
        bad(f"{where}[{key!r}]", tuple(value.shape), mend)
    return value.tolist()


def _bare(names: Sequence[str]) -> list[str]:
    """Names without wrappers, a data-parallel one's ``module.`` before all of them included."""
    names = [plain_name(str(name)) for name in names]
    wrapped = all(name.startswith("module.") for name in names)
    return [name.removeprefix("module.") for name in names] if wrapped else names


def _check_blocks(mine: Sequence[str], groups: Sequence[Mapping[str, Any]]) -> None:
    names = [str(group.get("name")) for group in groups]
    if _bare(names) == _bare(mine):
        return
    order = sorted(_bare(names)) == sorted(_bare(mine))
    what = "in another order" if order else "other blocks"
    bad("state_dict", names, f"has {what} than this optimiser's {[*mine]}; make it alike")


def _check_config(mine: Mapping[str, str], saved: Mapping[str, Any]) -> None:
    for key, value in mine.items():
        # Fixed step sizes are the same at any granularity.
        if saved.get(key) != value and not (key == "granularity" and mine["meta"] == "none"):
            bad(f"state_dict {key}", saved.get(key), f"this optimiser has {value}; make it alike")


def _check_order(mine: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a dict in which a parameter's name stands at another place than here.

    Names that are not here at all may have been given anew: places count then, as in torch.
    """
    for i, (group, saved) in enumerate(zip(mine, groups, strict=True)):
        count, given = len(group["params"]), len(saved["params"])
        mend = f"block {group['name']!r} has {count} parameters here; make it alike"
        require(count == given, _place(i, "params"), given, mend)
        _list(saved, "param_names", str, count, _place(i))
    here, there = _all_names(mine), _all_names(groups)
    if len(here) != len(there):
        return
    for name, other in zip(here, there, strict=True):
        if name != other and other in here:
            mend = f"stands where this optimiser has {name!r}: its parameters are in another order"
            bad("state_dict parameter", other, mend)


def _all_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    return _bare([name for group in groups for name in group.get("param_names") or ()])


# ---- what is of a group ------------------------------------------------------------------------


def _check_shapes(mine: Mapping[str, Any], meta: Mapping[str, Any], where: str) -> None:
    shapes = _list(meta, "shapes", list | None, len(mine["params"]), where)
    for (label, p), shape in zip(_members(mine), shapes, strict=False):
        if shape is None or is_lazy(p):
            continue
        if not all(isinstance(size, int) for size in shape) or tuple(shape) != tuple(p.shape):
            mend = f"is its shape there and {tuple(p.shape)} here; load it into a network alike"
            bad(f"state_dict {label}", shape, mend)


def _group(mine: Mapping[str, Any], saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A group as torch is to load it: the saved settings, with this optimiser's own entries."""
    numbers = check_numbers({name: _get(saved, name, object, where) for name in NUMBERS})
    kept = {key: value for key, value in mine.items() if key in OURS - {"params", *NUMBERS}}
    settings = {key: value for key, value in saved.items() if key not in OURS}
    return {**settings, **numbers, **kept, "params": list(saved["params"])}


def _sizes(metas: Sequence[Mapping[str, Any]], mine: StepSizes) -> dict[str, Any]:
    """Betas, counts and meta state of all blocks, as vectors."""
    betas, counts, culprits = [], [], []
    state: dict[str, list[float]] = {slot: [] for slot in mine.state}
    for i, meta in enumerate(metas):
        where = _place(i, "meta")
        # A fixed step size that a schedule has set to 0 has the beta -inf.
        zero = mine.rule is None and isinstance(meta["beta"], float) and meta["beta"] == -math.inf
        betas.append(-math.inf if zero else _number(meta, "beta", where))
        mend = "must be the logarithm of a step size"
        require(betas[-1] <= math.log(HUGE), f"{where}['beta']", betas[-1], mend)
        counts.append(_number(meta, "t", where, 0))
        culprits.append(_get(meta, "culprit", bool, where))
        # Torch's full checkpoints leave out what is empty.
        held = _get({"state": {}, **meta}, "state", Mapping, where)
        if held.keys() != state.keys():
            bad(f"{where}['state']", [*held], f"this optimiser's meta update has {[*state]}")
        for slot, column in state.items():
            column.append(_number(held, slot, f"{where}['state']"))
    whole = _whole(metas)
    numbers = {key: _count(whole, key, min(x, 0)) for key, x in COUNTS.items() if key in whole}
    return {
        "beta": torch.tensor(betas, dtype=torch.float64),
        "t": torch.tensor(counts, dtype=torch.float64),
        "culprits": torch.tensor(culprits),
        "state": {slot: torch.tensor(x, dtype=torch.float64) for slot, x in state.items()},
        **{key: torch.tensor(int(numbers.get(key, first))) for key, first in COUNTS.items()},
    }


def _number(holder: Mapping[str, Any], key: str, where: str, least: float = -math.inf) -> float:
    value = _get(holder, key, object, where)
    fits = finite(value) and value >= least and abs(value) <= HUGE
    require(fits, f"{where}[{key!r}]", value, "must be a finite number" + " from 0" * (least == 0))
    return float(value)


def _count(holder: Mapping[str, Any], key: str, least: int) -> int:
    value = _get(holder, key, object, "state_dict 'whole'")
    whole = finite(value) and least <= value < 2**53 and value == int(value)
    return int(value) if whole else bad(f"state_dict 'whole'[{key!r}]", value, "must be a count")


def _whole(metas: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What is of the whole optimiser; of the first, where a dict was put together of several."""
    whole: Any = next((meta["whole"] for meta in metas if "whole" in meta), {})
    require(isinstance(whole, Mapping), "state_dict 'whole'", whole, "must be a mapping")
    return whole


def _path(metas: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    path = _whole(metas).get("path")
    require(isinstance(path, Mapping | None), "state_dict 'path'", path, "must be a mapping")
    return path


def _alpha(groups: Sequence[Mapping[str, Any]], beta: Tensor) -> Tensor:
    """Fixed step sizes as they were, which rounding may have parted from exp(beta)."""
    alpha = beta.exp()
    for i, group in enumerate(groups):
        lr = group.get("lr", alpha[i])
        lr = scalar(lr)
        fits = finite(lr) and 0 <= lr <= HUGE
        require(fits, _place(i, "lr"), lr, "must be a step size: a finite number, not negative")
        alpha[i] = float(lr)
    return alpha
