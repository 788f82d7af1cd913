"""From an optimiser's groups and state to the learners that engines step: views, made when needed.

State belongs to ``optimizer.state[p]``, where checkpoints, growing heads and users find and replace
it; so at every step it is looked up whether all arrays are still those that the views are of.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.blocks import fine_shape
from clmeta.engines.learners import Learners, Numbers
from clmeta.engines.sizes import state_dtype
from clmeta.errors import bad
from clmeta.ground.shards import Shards, full_like, local, local_gradient
from clmeta.native.program import TAG
from clmeta.rules import Rule

if TYPE_CHECKING:
    from clmeta.optim.blocked import Blocked

#: Sets of parameters with gradients for which views are kept, as heads take turns.
KEPT = 16
SPARSE = "MetaOptimize needs dense gradients; pass sparse=False"


class Store:
    """The learners of one optimiser.

    Args:
        optimizer: whose groups and state are looked at.
        base: its base rule.
        extra: names of what else is kept of each parameter, zero at first.
    """

    def __init__(self, optimizer: Blocked, base: Rule, extra: Sequence[str]) -> None:
        self.optimizer, self.base, self.extra = optimizer, base, extra
        self._kept: dict[tuple[int, ...], View] = {}

    def learners(self) -> tuple[Learners, list[Tensor]] | None:
        """The learners of all parameters that have gradients, and these; None if there are none."""
        params, owners, grads = [], [], []
        for i, group in enumerate(self.optimizer.param_groups):
            for p in group["params"]:
                g = p.grad
                if g is not None:
                    params.append(p)
                    owners.append(i)
                    grads.append(g)
        if not params:
            return None
        for g in grads:
            if g.layout is not torch.strided:
                bad("gradient", str(g.layout), SPARSE)
        key = tuple(map(id, params))
        view = self._kept.get(key)
        if view is None or not view.valid(params, owners, self.optimizer):
            if len(self._kept) >= KEPT:
                self._kept.clear()
            view = self._kept[key] = View(self.optimizer, self.base, self.extra, params, owners)
        view.follow_numbers(self.optimizer)
        if view.learners.shards is not None:
            grads = list(map(local_gradient, grads, params))
        return view.learners, grads


class View:
    """Learners over some parameters of an optimiser, and what they were made from."""

    def __init__(
        self,
        optimizer: Blocked,
        base: Rule,
        extra: Sequence[str],
        params: list[Tensor],
        owners: list[int],
    ) -> None:
        self.params, self.owners = params, owners
        sizes, meta = optimizer.sizes, optimizer.sizes.rule
        self.beta = sizes.beta
        slots = (*base.slots, *extra)
        self.names = [*slots, *(("h",) if meta else ())]
        self.fine_names: list[str] = []
        if optimizer.granularity:
            self.fine_names = ["beta", *(TAG + name for name in (meta.slots if meta else ()))]
        self.states = [optimizer.state[p] for p in params]
        for p, i, state in zip(params, owners, self.states, strict=True):
            group = optimizer.param_groups[i]
            fill_state(p, state, base, meta, optimizer.granularity, group, extra)
        self.keys = ["step", *self.names, *self.fine_names]
        self.tensors = [[state[key] for key in self.keys] for state in self.states]
        shards = Shards.of(params, [state["beta"] for state in self.states if self.fine_names])
        self.is_whole = shards is None
        self.layouts = self._layouts()
        self.numbers: Any = None
        count = len(optimizer.param_groups)
        device = sizes.beta.device
        block = torch.tensor([owners], device=device)
        wide = torch.float64 if device.type == "cpu" else sizes.beta.dtype
        views = [[local(x)[None] for x in xs] for xs in self.tensors]
        arrays = {key: [xs[at] for xs in views] for at, key in enumerate(self.keys)}
        self.learners = Learners(
            base,
            meta,
            optimizer.granularity,
            sizes,
            Numbers(*torch.empty(5, 1, count, dtype=wide, device=device)),
            [local(p)[None] for p in params],
            arrays.get("h", []),
            {name: arrays[name] for name in slots},
            arrays["step"],
            block,
            torch.zeros(1, count, dtype=torch.bool, device=device).scatter_(1, block, True),
            [
                {name.removeprefix(TAG): arrays[name][i] for name in self.fine_names}
                for i in range(len(params))
            ]
            if self.fine_names
            else [],
            params,
            shards=shards,
        )

    def _layouts(self) -> list[Any]:
        # Storage can move under a tensor, as when it is shared with another process.
        params = self.params if self.is_whole else map(local, self.params)
        arrays: Any = (x for xs in self.tensors for x in xs)
        states = [x.data_ptr() for x in (arrays if self.is_whole else map(local, arrays))]
        return [*((p.data_ptr(), p.dtype, p.shape, p.stride()) for p in params), *states]

    def valid(self, params: list[Tensor], owners: list[int], optimizer: Blocked) -> bool:
        """Whether these are the parameters, blocks and state, and all arrays where they were."""
        if owners != self.owners or not all(map(operator.is_, params, self.params)):
            return False
        if self.beta is not optimizer.sizes.beta:  # blocks were added
            return False
        get: Any = optimizer.state.get
        for p, state, tensors in zip(params, self.states, self.tensors, strict=True):
            if get(p) is not state:
                return False
            if not all(map(operator.is_, map(state.get, self.keys), tensors)):
                return False
        return self.layouts == self._layouts()

    def follow_numbers(self, optimizer: Blocked) -> None:
        """Take over the groups' settings, which may be changed between steps."""
        groups = optimizer.param_groups
        now = [[g[name] for g in groups] for name in ("eta", "gamma", "weight_decay", "alpha0")]
        if now == self.numbers:
            return
        self.numbers = now
        lows, highs = zip(*map(optimizer.beta_bounds, groups), strict=True)
        numbers = self.learners.numbers
        for x, values in zip(numbers, (*now[:3], lows, highs), strict=True):
            x.copy_(torch.tensor([values], dtype=torch.float64))


def _zeros(p: Tensor) -> Tensor:
    like = torch.zeros_like(p, dtype=state_dtype(p), memory_format=torch.preserve_format)
    return like.detach()


def fill_state(
    p: Tensor,
    state: dict[str, Any],
    base: Rule | None,
    meta: Rule | None,
    granularity: str | None,
    group: Mapping[str, Any],
    extra: Sequence[str],
) -> None:
    """Make what a parameter's state lacks: count, slots, trace; with a granularity, beta's too.

    Args:
        p: the parameter; its shape, dtype, device and sharding count.
        state: its entries, to which what lacks is added.
        base: the base rule; None where another optimiser makes its own state.
        meta: the meta rule; None for fixed step sizes, which have no trace.
        granularity: ``"node"``, ``"weight"`` or None.
        group: with ``alpha0``, the first step size, and for ``"node"`` perhaps ``units``.
        extra: names of further tensors like p.
    """
    if base is not None:
        step = state.get("step")
        if step is None:
            state.update(base.init(_zeros(p)))
            step = 0
        if not isinstance(step, Tensor) or step.dtype != torch.int64 or step.device != p.device:
            state["step"] = torch.tensor(int(step), device=p.device)
        state.update({name: _zeros(p) for name in extra if name not in state})
    if meta is None:
        return
    if "h" not in state:
        state["h"] = _zeros(p)
    if granularity and "beta" not in state:
        shape = fine_shape(p, granularity, group.get("units", (0,)))
        beta = full_like(p, shape, math.log(group["alpha0"]), state_dtype(p))
        state["beta"] = beta
        state.update({TAG + name: x for name, x in meta.init(beta).items()})
