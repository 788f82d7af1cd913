"""The gradients that one step of an inner optimiser uses, and which of them is g_t, at w_t."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from clmeta.ground.shards import whole
from clmeta.wrapped.building import TRACE
from clmeta.wrapped.inner import GlobalHooks, Inner

Closure = Callable[[], Any]
#: By parameter: the gradient that a step's closure left, and its version.
Spent = dict[Tensor, tuple[Any, int]]


class Withheld(Exception):
    """A gradient was not finite: leaves the inner optimiser's step."""


def product(h: Tensor | None, g: Tensor) -> Tensor:
    """<h, g>, a number that is not finite if g is not; without h, 0 times g."""
    if g.is_sparse:
        g = g.coalesce()
        places, g = g.indices(), g.values()
        h = None if h is None else h[tuple(places)]
    return whole(g.sum() * 0 if h is None else (h * g).sum())


def masked(g: Tensor, ok: Tensor) -> Tensor:
    """g, or zeros where not ok."""
    ok = ok.to(g.device)
    if g.is_sparse:
        g = g.coalesce()
        values = torch.where(ok, g.values(), torch.zeros_like(g.values()))
        return torch.sparse_coo_tensor(
            g.indices(), values, g.shape, is_coalesced=True, check_invariants=False
        )
    return torch.where(ok, g, torch.zeros_like(g))


def copied(x: Any, key: Any, copies: dict[Any, Tensor]) -> Any:
    """A copy of a tensor, or of a list; tensors in lists are taken to be replaced, not changed.

    Args:
        copies: by key, where copies are made again and again, as fresh memory costs more.
    """
    if not isinstance(x, Tensor):
        return copy.copy(x)
    made = copies.get(key)
    if made is None or (made.shape, made.dtype, made.device) != (x.shape, x.dtype, x.device):
        made = copies[key] = x.detach().clone()
    return made.copy_(x.detach())


def restore(now: Tensor, before: Any, ok: Tensor) -> None:
    """``now <- before`` unless ok, where they are alike; nothing is read back for it."""
    if isinstance(before, Tensor) and before.shape == now.shape:
        now.copy_(torch.where(ok.to(now.device), now, before.to(now)))


class Evaluations:
    """What the inner optimiser is given for a closure; watches what it evaluates.

    z is that of the first evaluation at w_t; where there is none (sharpness-aware methods evaluate
    elsewhere), of the gradients that were there before the step; without them, of the first
    evaluation anywhere.

    Attributes:
        z: (B,) meta-gradients.
        active: block to its parameters that had a gradient.
        finite: (B,) whether all gradients used were, in each block.
        before, state: w_t and the inner state, of the parameters that may move.
        loss: what the closure gave at first.
    """

    def __init__(
        self,
        inner: Inner,
        traces: Mapping[Tensor, Tensor],
        like: Tensor,
        closure: Closure | None,
        spent: Spent,
    ) -> None:
        self.inner, self.traces, self.closure, self.spent = inner, traces, closure, spent
        self.on_host = like.device.type == "cpu"
        self.hooks = GlobalHooks()
        self.loss: Any = None
        self.calls = 0
        self.held: dict[Tensor, Tensor] = {}
        self.z, self.active = self._measure(torch.zeros_like(like), fresh=closure is not None)
        self.entry = self.finite = torch.isfinite(self.z)
        self.found = torch.zeros_like(self.finite.all())  # an evaluation at w_t
        if closure is not None:
            self.finite = torch.ones_like(self.entry)
            moving = [p for group in inner.groups for p in group["params"]]
        else:
            moving = [p for params in self.active.values() for p in params]
        self.before = {} if self.is_bad else {p: p.detach().clone() for p in moving}
        state = inner.optimizer.state
        self.state = {
            p: {k: copied(x, (p, k), inner.copies) for k, x in state.get(p, {}).items()}
            for p in self.before
        }

    @property
    def is_bad(self) -> bool:
        """Whether something is known not to be finite; off the host that is never known."""
        return self.on_host and not bool(self.finite.all())

    def _measure(self, zero: Tensor, fresh: bool) -> tuple[Tensor, dict[int, list[Tensor]]]:
        """z and the parameters with a gradient, now; of fresh gradients only, if so."""
        z, active = zero.clone(), dict[int, list[Tensor]]()
        for i, group in zip(self.inner.owners, self.inner.groups, strict=True):
            sign = 1 if self.inner.descends(group) else -1
            for p in group["params"]:
                if p.grad is not None and not (fresh and self._is_stale(p)):
                    active.setdefault(i, []).append(p)
                    z[i] += sign * product(self.traces.get(p), p.grad).to(z)
        return z, active

    def _is_stale(self, p: Tensor) -> bool:
        """Whether a gradient is what the last step's closure left."""
        left, version = self.spent.get(p, (None, 0))
        return left is not None and left() is p.grad and left()._version == version

    def _is_here(self) -> Tensor:
        """Whether the weights are still w_t; off the host, nothing is read back for it."""
        same = torch.ones_like(self.found)
        for p, w in self.before.items():
            same = same & whole((p == w).all()).to(same.device)
            if self.on_host and not bool(same):
                break
        return same

    def __call__(self) -> Any:
        """Evaluate the closure, with gradients on and the user's hooks in force."""
        assert self.closure is not None
        here = self._is_here()
        self.give_back()
        with torch.enable_grad(), self.hooks.swapped():
            loss = self.closure()
        z, active = self._measure(torch.zeros_like(self.z), fresh=False)
        if self.calls == 0:
            self.loss = loss
            if self.active:  # not at w_t, so the gradients before the step were
                self.finite = self.finite & (self.entry | here)
            else:
                self.z, self.active = z, active
        self.calls += 1
        self.finite = self.finite & torch.isfinite(z)
        if self.is_bad:
            raise Withheld
        chosen = here & ~self.found
        self.z = torch.where(chosen, z, self.z)
        if not self.on_host or bool(chosen):
            self.active = active
        self.found = self.found | here
        self.mask(self.finite)
        return loss

    def step(self, optimizer: torch.optim.Optimizer) -> Any:
        """The inner optimiser's step. Raises Withheld where a number is known not to be finite."""
        with self.hooks.swapped():
            if self.closure is None:
                self.mask(self.entry)
            out = optimizer.step() if self.closure is None else optimizer.step(self)
            if self.calls == 0:
                self.finite = self.entry
                if self.is_bad:
                    raise Withheld
            return self.loss if out is None else out

    def mask(self, finite: Tensor) -> None:
        """Off the host nothing is read back: bad gradients are shown to the inner one as zeros."""
        if self.on_host:
            return
        ok = finite.all()
        params = (p for group in self.inner.groups for p in group["params"])
        self.held = {p: p.grad for p in params if p.grad is not None}
        for p, g in self.held.items():
            p.grad = masked(g, ok)

    def give_back(self) -> None:
        """The gradients are the user's own tensors again."""
        for p, g in self.held.items():
            p.grad = g
        self.held = {}

    def is_finite(self, p: Tensor) -> Tensor:
        """Whether the weights, their inner state and their trace are finite now."""
        entries = self.inner.optimizer.state.get(p, {}).values()
        floats = (x for x in entries if isinstance(x, Tensor) and x.is_floating_point())
        finite = torch.ones_like(self.found, device=p.device)
        for x in (p.detach(), *floats):
            if self.on_host and math.isfinite(whole(x.sum())):
                continue  # as a sum is finite only if all are
            finite = finite & whole(torch.isfinite(x).all()).to(p.device)
        return finite

    def undo(self, p: Tensor, ok: Tensor) -> None:
        """Weights and inner state are those of w_t again, unless ok; not the trace."""
        state = self.inner.optimizer.state
        if not self.on_host:
            restore(p.detach(), self.before[p], ok)
            for key, x in state.get(p, {}).items():
                if isinstance(x, Tensor) and key != TRACE:
                    restore(x, self.state[p].get(key, torch.zeros_like(x)), ok)
        elif not ok:
            p.detach().copy_(self.before[p])
            entries, before = state.get(p, {}), self.state[p]
            for key in entries.keys() - before.keys() - {TRACE}:
                del entries[key]
            for key, x in before.items():
                now = entries.get(key)
                if isinstance(now, Tensor) and isinstance(x, Tensor) and now.shape == x.shape:
                    now.copy_(x)  # other things may hold this very tensor
                else:
                    entries[key] = x.clone() if isinstance(x, Tensor) else x

    def left(self) -> Spent:
        """The gradients left behind, which are not those of the next step's w_t."""
        if self.closure is None:
            return {}
        grads = {p: p.grad for p in self.before if p.grad is not None}
        return {p: (weakref.ref(g), g._version) for p, g in grads.items()}
