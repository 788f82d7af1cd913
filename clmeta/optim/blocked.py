"""An optimiser whose parameter groups are blocks, each with a step size shown as its ``lr``."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from clmeta.engines.sizes import StepSizes
from clmeta.errors import bad, require
from clmeta.ground.checks import (
    NUMBERS,
    check_bounds,
    check_numbers,
    finite,
    step_size_bounds,
)
from clmeta.optim.groups import read_group

SCHEDULED = (
    "writes group['lr'], which is MetaOptimize's own view of its step sizes; remove the schedule "
    "(step sizes are learned; alpha0 sets the first ones), pass meta='none' to let a schedule set "
    "them, or use a torch.optim optimiser with it"
)

#: What a bound may be missed by where it was rounded to float32.
ROUNDING = 1e-6


class Blocked(torch.optim.Optimizer):
    """One parameter group per block; ``group["lr"]`` is a view of its alpha.

    Where step sizes are learned nothing else may write it. With fixed ones (``meta="none"``) what
    is written there, by a schedule or by hand, is the block's alpha from then on.
    """

    sizes: StepSizes
    granularity: str | None
    bounds: tuple[float | None, float | None]
    _config: dict[str, str]
    _lrs: list[Tensor]
    _version: int

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks, in the order of the groups."""
        return [group["name"] for group in self.param_groups]

    def beta_bounds(self, group: dict[str, Any]) -> tuple[float, float]:
        """Bounds of a block's beta = log alpha; above, alpha is always kept finite."""
        low, high = step_size_bounds(group["alpha0"], *self.bounds, fine=bool(self.granularity))
        largest = self.sizes.largest
        return math.log(low) if low else -math.inf, min(math.log(high or math.inf), largest)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a block; it starts at the group's ``alpha0`` with a name of its own.

        Args:
            param_group: ``params`` (parameters, named ones or a module) and, if they differ from
                the optimiser's own, ``name``, ``alpha0``, ``eta``, ``gamma``, ``weight_decay``;
                for ``"node"`` also ``units``, the dimensions that count units, see
                ``clmeta.blocks.fine_shape``.

        Raises:
            BadArgument: naming the entry, its value and the mend; nothing is added then.
        """
        group, given = read_group(param_group, "param_group")
        if "lr" in group:
            bad("lr", group["lr"], "a block's first step size is called alpha0")
        numbers = {name: group.get(name, self.defaults[name]) for name in NUMBERS}
        group.update(check_numbers(numbers))
        check_bounds(group["alpha0"], *self.bounds, fine=bool(self.granularity))
        name = group.setdefault("name", f"group{len(self.param_groups)}")
        require(name not in self.block_names, "name", name, "a block has this name; choose another")
        held = {id(p): each["name"] for each in self.param_groups for p in each["params"]}
        for label, p in given.named.items():
            if id(p) in held:
                bad("param_group['params']", label, f"is in block {held[id(p)]!r} already")
        group["params"] = [*given.named.values()]
        # Torch wants names in all groups or in none: the first group decides.
        named = "param_names" in self.param_groups[0] if self.param_groups else given.own_names
        if named and given.own_names:
            group.update(given.names_of(given.named))
        elif named:
            group["param_names"] = [f"{name}.{i}" for i in range(len(given.named))]
        defaults, self.defaults = self.defaults, {}
        try:
            super().add_param_group(group)
        finally:
            self.defaults = defaults
        try:
            self._added(self.param_groups[-1])
        except Exception:
            del self.param_groups[-1]
            raise
        self.sizes.add_block(group["alpha0"])
        self._bind()

    def _added(self, group: dict[str, Any]) -> None:
        """A group was added. Raises BadArgument if it cannot be stepped."""

    def _bind(self) -> None:
        """Make every ``group["lr"]`` a view of its alpha."""
        self._lrs = list(self.sizes.alpha[0].unbind())
        self._version = self.sizes.alpha._version
        # Not shown to be read: torch's checkpoints keep those entries that a live group has too.
        meta = {"config": self._config}
        for group, bound in zip(self.param_groups, self._lrs, strict=True):
            group["lr"], group["meta"] = bound, meta

    def _lr_written(self) -> bool:
        """Whether something wrote to a ``group["lr"]`` since the last step."""
        if self.sizes.alpha._version != self._version:
            return True
        shown = [group["lr"] for group in self.param_groups]
        return not all(map(operator.is_, shown, self._lrs))

    def _refuse_lr(self) -> None:
        """Raise BadArgument for what was written to ``group["lr"]`` of learned step sizes."""
        for group, bound in zip(self.param_groups, self._lrs, strict=True):
            if group["lr"] is not bound:
                name = f"group['lr'] of block {group['name']!r}"
                bad(name, group["lr"], f"something {SCHEDULED}")
        bad("group['lr']", self.sizes.alpha[0].tolist(), f"something {SCHEDULED}")

    @torch.no_grad()
    def _follow_lr(self) -> None:
        """Take over what was written to ``group["lr"]`` of fixed step sizes."""
        if self.sizes.rule is not None or not self._lr_written():
            return
        values = [self._step_size(group) for group in self.param_groups]
        for bound, value in zip(self._lrs, values, strict=True):
            if value is not bound:
                bound.copy_(torch.as_tensor(value).reshape(()))
        self.sizes.beta.copy_(self.sizes.alpha.log())
        self._bind()

    def _step_size(self, group: dict[str, Any]) -> Any:
        """What stands in ``group["lr"]``; BadArgument unless it is one. Reads no accelerator."""
        argument, lr = f"group['lr'] of block {group['name']!r}", group["lr"]
        value = lr
        if isinstance(lr, Tensor):
            require(lr.numel() == 1, argument, lr, "must be one number")
            if lr.device.type != "cpu":
                return lr
            value = lr.item()
        mend = "must be a step size: a finite number, not negative"
        require(finite(value) and value >= 0, argument, value, mend)
        low, high = self.bounds
        over, under = 1 + ROUNDING, 1 - ROUNDING
        inside = (low is None or low * under <= value) and (high is None or value <= high * over)
        mend = f"must lie between alpha_min={low} and alpha_max={high}"
        require(inside, argument, value, mend)
        return lr
