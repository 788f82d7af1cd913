"""An optimiser with all that it holds, where torch copies and saves state and groups only."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Optimizer = torch.optim.Optimizer
#: Attributes of every torch optimiser that torch sees to itself; hooks are never copied.
TORCHS = (
    "defaults",
    "state",
    "param_groups",
    "_zero_grad_profile_name",
    "_warned_capturable_if_run_uncaptured",
)


def _is_hooks(name: str) -> bool:
    return name.startswith("_optimizer_") and name.endswith("_hooks")


class Whole:
    """Holds an optimiser; a copy or pickle of it holds one with all attributes but the hooks."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __getstate__(self) -> dict[str, Any]:
        kind = type(self.optimizer)
        if kind.__getstate__ is not Optimizer.__getstate__:
            return {"itself": self.optimizer}
        held: dict[int, Whole] = {}
        attributes = {
            name: _replaced(value, Optimizer, lambda each: held.setdefault(id(each), Whole(each)))
            for name, value in vars(self.optimizer).items()
            if not _is_hooks(name)
        }
        return {"kind": kind, "attributes": attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "itself" in state:
            self.optimizer = state["itself"]
            return
        kind, attributes = state["kind"], state["attributes"]
        self.optimizer = kind.__new__(kind)
        self.optimizer.__setstate__(
            {k: _replaced(v, Whole, lambda each: each.optimizer) for k, v in attributes.items()}
        )


def _replaced(value: Any, kind: type, make: Any) -> Any:
    """The value, or the members of a list or tuple, with those of a kind replaced."""
    if isinstance(value, kind):
        return make(value)
    if type(value) in (list, tuple) and any(isinstance(each, kind) for each in value):
        return type(value)(_replaced(each, kind, make) for each in value)
    return value


def nested(optimizer: Optimizer) -> Iterator[tuple[str, Optimizer]]:
    """The optimisers that another one holds, as attributes or in lists, by name."""
    for name, value in vars(optimizer).items():
        for i, each in enumerate(value if isinstance(value, list | tuple) else [value]):
            if isinstance(each, Optimizer):
                yield f"{name}.{i}", each


def _is_data(value: Any, params: set[int]) -> bool:
    """Whether a value is numbers, text and tensors, and no parameter among them."""
    if isinstance(value, Tensor):
        return id(value) not in params
    if isinstance(value, Mapping):
        return all(_is_data(each, params) for pair in value.items() for each in pair)
    if type(value) in (list, tuple):
        return all(_is_data(each, params) for each in value)
    return value is None or type(value) in (bool, int, float, str)


def _mark(value: Any) -> Any:
    """What changes when a value does."""
    if isinstance(value, Tensor):
        return "tensor", id(value), value._version
    if isinstance(value, Mapping):
        return [(_mark(key), _mark(each)) for key, each in value.items()]
    if type(value) in (list, tuple):
        return [_mark(each) for each in value]
    return type(value), value


class OwnAttributes:
    """An optimiser's attributes beside torch's that changed since it was built.

    Those that did not are settings, or facts of a process such as its rank, and belong to no
    checkpoint. ``known`` are names of those that had changed before.
    """

    def __init__(self, optimizer: Optimizer, known: Sequence[str] = ()) -> None:
        data = self.data(optimizer)
        self.marks = {name: _mark(value) for name, value in data.items() if name not in known}

    @staticmethod
    def data(optimizer: Optimizer) -> dict[str, Any]:
        """The attributes that are data."""
        params = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {
            name: value
            for name, value in vars(optimizer).items()
            if name not in TORCHS and not _is_hooks(name) and _is_data(value, params)
        }

    def changed(self, optimizer: Optimizer) -> dict[str, Any]:
        """The attributes that changed, by name."""
        return {
            name: value
            for name, value in self.data(optimizer).items()
            if name not in self.marks or self.marks[name] != _mark(value)
        }


def _overrides(optimizer: Optimizer) -> bool:
    kind = type(optimizer)
    return any(
        getattr(kind, name) is not getattr(Optimizer, name)
        for name in ("state_dict", "load_state_dict")
    )


def saved(optimizer: Optimizer, attributes: OwnAttributes) -> dict[str, Any]:
    """What an optimiser holds beside torch's state and groups, for a checkpoint."""
    out: dict[str, Any] = {"attributes": attributes.changed(optimizer)}
    inside = {
        name: each.state_dict()
        for name, each in nested(optimizer)
        if each.state is not optimizer.state
    }
    if inside:
        out["nested"] = inside
    if _overrides(optimizer):
        out["own"] = optimizer.state_dict()
    return {key: _containers(value) for key, value in out.items()}


def _containers(value: Any) -> Any:
    """The same tensors in dictionaries of their own, which nothing is added to later."""
    return {k: _containers(v) for k, v in value.items()} if isinstance(value, dict) else value


def restore(optimizer: Optimizer, held: Mapping[str, Any]) -> None:
    """Take over copies of what `saved` gave, by the optimiser's own means where it has them."""
    held = copy.deepcopy(dict(held))
    for name, value in held.get("attributes", {}).items():
        now = getattr(optimizer, name, None)
        if isinstance(value, Tensor) and isinstance(now, Tensor):
            value = value.to(now)
            if now.shape == value.shape:  # other things may hold this very tensor
                now.copy_(value)
                continue
        setattr(optimizer, name, value)
    inside = dict(nested(optimizer))
    for name, state in held.get("nested", {}).items():
        each = inside[name]
        groups = each.param_groups
        each.load_state_dict(state)
        for group, loaded in zip(groups, each.param_groups, strict=True):
            group.update(loaded)
        each.param_groups = groups  # which the outer optimiser may hold too
    if "own" in held:
        before = {p: dict(e) for p, e in optimizer.state.items() if isinstance(p, Tensor)}
        optimizer.load_state_dict(held["own"])
        for p, entries in before.items():
            _keep_precision(optimizer.state.get(p, {}), entries)


def _keep_precision(loaded: dict[str, Any], exact: dict[str, Any]) -> None:
    """Undo torch's cast of a state to its parameter's dtype."""
    for key, value in exact.items():
        now = loaded.get(key)
        if (
            isinstance(value, Tensor)
            and isinstance(now, Tensor)
            and now.shape == value.shape
            and now.dtype != value.dtype
        ):
            loaded[key] = value
