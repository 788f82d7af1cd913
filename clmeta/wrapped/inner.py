"""The inner optimiser of a wrapped base follows our groups and shares our state."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import optimizer as torchs

from clmeta.errors import BadArgument, bad
from clmeta.ground.checks import OURS
from clmeta.wrapped.building import (
    Factory,
    Groups,
    build,
    check,
    complain,
    name_of,
    owners_of,
    settings_of,
)
from clmeta.wrapped.whole import OwnAttributes, Whole, restore, saved


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two lists hold the same tensors in the same order."""
    return len(one) == len(other) and all(map(operator.is_, one, other))


def carry_over(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Give a group the settings of another, and none else."""
    for key, value in source.items():
        if key not in OURS and (key not in target or target[key] is not value):
            target[key] = value
    for key in [key for key in target if key not in source and key not in OURS]:
        del target[key]


class Inner:
    """An inner optimiser that follows our groups and shares one dictionary of state with us.

    Attributes:
        optimizer: the inner optimiser.
        name: what errors call it.
        owners: the block of each of its groups.
        takes_closure: whether its ``step`` can be given a closure.
        copies: where its state was copied to before a step, by parameter and name.
        turned: whether it was seen to climb without ``maximize``, or to descend with it.
    """

    def __init__(self, factory: Factory, groups: Groups, learns: bool) -> None:
        self.name = name_of(factory)
        self.optimizer = build(factory, groups)
        self.owners = owners_of(self.optimizer, groups, self.name)
        check(self.optimizer, self.name, learns)
        self._keeps_settings(groups)
        self.turned = False
        self.fills = len(self.optimizer.state) > 0
        self.takes_closure = len(inspect.signature(self.optimizer.step).parameters) > 0
        self.attributes = OwnAttributes(self.optimizer)
        self.copies: dict[Any, Tensor] = {}
        self.show(groups)

    @property
    def groups(self) -> Groups:
        """The inner optimiser's groups."""
        return self.optimizer.param_groups

    def by_block(self, groups: Groups) -> list[tuple[dict[str, Any], Groups]]:
        """Our groups, each with the inner ones that lie in it."""
        inner: list[Groups] = [[] for _ in groups]
        for owner, theirs in zip(self.owners, self.groups, strict=True):
            inner[owner].append(theirs)
        return list(zip(groups, inner, strict=True))

    def show(self, groups: Groups) -> None:
        """Our groups show the inner optimiser's settings."""
        for mine, inner in self.by_block(groups):
            if len(inner) == 1:  # of several, none speaks for the block
                carry_over(inner[0], mine)

    def follow(self, groups: Groups, factory: Factory) -> None:
        """The inner groups and state take over what was set, swapped or grown in ours since."""
        for mine, inner in self.by_block(groups):
            if len(inner) == 1:
                carry_over(mine, inner[0])
                if same(inner[0]["params"], mine["params"]):
                    continue
            now = {id(p): p for p in mine["params"]}
            before = {id(p) for theirs in inner for p in theirs["params"]}
            new = [p for key, p in now.items() if key not in before]
            if now.keys() != before:
                for theirs in inner:
                    theirs["params"] = [p for p in theirs["params"] if id(p) in now]
                inner[-1]["params"] += new
                if len(inner) == 1:
                    inner[0]["params"] = list(mine["params"])
                self._fill(new, mine, factory)

    def _fill(self, params: list[Tensor], group: dict[str, Any], factory: Factory) -> None:
        """The state of late parameters, of a base that makes it when it is built."""
        new = [p for p in params if not self.optimizer.state.get(p)]
        if new and self.fills:
            made = build(factory, [{**group, "params": new}]).state
            self.optimizer.state.update({p: made[p] for p in new if p in made})

    def _keeps_settings(self, groups: Groups) -> None:
        """Raise BadArgument if the base left a group's setting out, or at its own default."""
        for owner, theirs in zip(self.owners, self.groups, strict=True):
            mine = groups[owner]
            for key, value in settings_of(mine).items():
                default = self.optimizer.defaults.get(key, value)
                if key not in theirs or (theirs[key] is default is not value and default != value):
                    mend = f"base={self.name!r} drops this setting of its groups; remove it"
                    bad(f"params[{mine['name']!r}] {key}", value, mend)

    def add(self, group: dict[str, Any], index: int) -> None:
        """Add a group of ours, as the block of this index; the base checks its settings."""
        had = len(self.groups)
        new = {"params": [*group["params"]], **settings_of(group), "lr": group["alpha0"]}
        complain(self.name, self.optimizer.add_param_group, new)
        self.owners += [index] * (len(self.groups) - had)
        try:
            check(self.optimizer, self.name, learns=False)
        except BadArgument:
            del self.groups[had:]
            del self.owners[had:]
            raise

    def share(self, state: MutableMapping[Any, Any]) -> MutableMapping[Any, Any]:
        """Put what ``state`` holds into the inner optimiser's own dictionary, and give that."""
        theirs = self.optimizer.state
        if theirs is not state:
            theirs.clear()
            theirs.update(state)
        return theirs

    def descends(self, group: dict[str, Any]) -> bool:
        """Whether a group is moved against its gradients; ``maximize`` turns that round."""
        return bool(group.get("maximize")) is self.turned

    def saved(self) -> dict[str, Any]:
        """The optimiser's kind, its groups' settings and what it keeps of its own."""
        groups = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.groups
        ]
        kind = type(self.optimizer).__qualname__
        own = saved(self.optimizer, self.attributes)
        return {"inner": kind, "groups": copy.deepcopy(groups), **own}

    def restore(self, held: Mapping[str, Any]) -> None:
        """Take over what `saved` gave. Raises BadArgument for another optimiser's."""
        mine = type(self.optimizer).__qualname__
        if held["inner"] != mine:
            bad("state_dict base", held["inner"], f"this optimiser wraps {mine}; make it alike")
        for group, settings in zip(self.groups, held["groups"], strict=True):
            group.update(copy.deepcopy(settings))
        restore(self.optimizer, held)

    def __getstate__(self) -> dict[str, Any]:
        known = self.attributes.changed(self.optimizer).keys()
        whole = Whole(self.optimizer)
        return {**self.__dict__, "optimizer": whole, "attributes": [*known], "copies": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.optimizer = state["optimizer"].optimizer
        self.attributes = OwnAttributes(self.optimizer, known=state["attributes"])


class GlobalHooks:
    """torch's hooks on the steps of all optimisers, which ran for ours and not for an inner one."""

    KINDS: tuple[dict[int, Any], ...] = (
        torchs._global_optimizer_pre_hooks,
        torchs._global_optimizer_post_hooks,
    )

    def __init__(self) -> None:
        self.held: list[dict[int, Any]] = [{}, {}]

    def swap(self) -> None:
        """Take the hooks away, or give them back."""
        for i, hooks in enumerate(self.KINDS):
            if hooks or self.held[i]:
                kept, self.held[i] = self.held[i], dict(hooks)
                hooks.clear()
                hooks.update(kept)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap them for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
