"""Any torch optimiser as the base update: its step is taken with lr = alpha and observed."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.engines.lists import state_dtype, usable_grad
from clmeta.engines.path import Path
from clmeta.errors import bad

if TYPE_CHECKING:
    from clmeta.optim.optimizer import MetaOptimize

Factory = Callable[[Any], torch.optim.Optimizer]


def build(factory: Factory, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The inner optimiser over the same groups, without a weight decay of its own.

    A class (or ``functools.partial`` of one) that takes ``weight_decay`` gets 0 unless told
    otherwise; decay belongs to MetaOptimize, which must see it to differentiate through it.

    Raises:
        BadArgument: if the optimiser decays weights itself, or is not an optimiser.
    """
    options: dict[str, Any] = {}
    target = factory.func if isinstance(factory, functools.partial) else factory
    given = factory.keywords if isinstance(factory, functools.partial) else {}
    if inspect.isclass(target):
        accepted = inspect.signature(target).parameters
        options = {k: v for k, v in {"weight_decay": 0.0, "lr": 1e-3}.items() if k in accepted}
        options = {k: v for k, v in options.items() if k not in given}
    inner = factory([{"params": list(g["params"])} for g in groups], **options)
    shown = getattr(target, "__name__", repr(factory))
    if not isinstance(inner, torch.optim.Optimizer):
        bad("base", shown, "must return a torch.optim.Optimizer for the parameters given")
    for group in inner.param_groups:
        if group.get("weight_decay", 0):
            bad(
                "base",
                f"{shown}(weight_decay={group['weight_decay']})",
                f"decay must be MetaOptimize's own; give the base weight_decay=0 and pass "
                f"weight_decay={group['weight_decay']} to MetaOptimize",
            )
        if "lr" not in group:
            bad("base", shown, "has no 'lr' in its groups, so its step size cannot be set")
    if isinstance(inner, torch.optim.LBFGS):
        bad("base", shown, "searches along a line with closures; pass a first-order optimiser")
    return inner


#: Entries of an inner group that are ours and not the inner optimiser's settings.
OURS = ("params", "lr")


class WrappedPath(Path):
    """Steps of all blocks by an inner torch optimiser that shares this one's state."""

    def __init__(self, optimizer: MetaOptimize, factory: Factory) -> None:
        super().__init__(optimizer)
        self.inner = build(factory, optimizer.param_groups)

    def saved(self) -> dict[str, Any]:
        """The inner optimiser's kind and its groups' settings, some of which change as it runs."""
        groups = [
            {key: value for key, value in group.items() if key not in OURS}
            for group in self.inner.param_groups
        ]
        return {"inner": type(self.inner).__qualname__, "groups": copy.deepcopy(groups)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Give the inner groups the saved settings. Raises BadArgument for another optimiser's."""
        mine = type(self.inner).__qualname__
        if saved["inner"] != mine:
            bad("state_dict base", saved["inner"], f"this optimiser wraps {mine}; make it alike")
        for group, settings in zip(self.inner.param_groups, saved["groups"], strict=True):
            group.update(copy.deepcopy(settings))

    def _share(self) -> None:
        """Inner groups and state follow ours, whatever was swapped, grown or loaded since."""
        groups = self.optimizer.param_groups
        while len(self.inner.param_groups) < len(groups):
            self.inner.add_param_group({"params": groups[len(self.inner.param_groups)]["params"]})
        for mine, theirs in zip(groups, self.inner.param_groups, strict=True):
            theirs["params"] = mine["params"]
        self.inner.state = self.optimizer.state

    def step(self) -> None:
        """One update of every block with a gradient (equations.md, section 4)."""
        optimizer, sizes = self.optimizer, self.optimizer.sizes
        self._share()
        z = torch.zeros_like(sizes.beta)
        active: list[tuple[int, dict[str, Any], list[Tensor]]] = []
        for i, group in enumerate(optimizer.param_groups):
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                g, h = usable_grad(p), optimizer.state[p].get("h")
                z[i] += (g.sum() * 0 if h is None else (h * g).sum()).to(z)
            if params:
                active.append((i, group, params))
        if not active:
            return
        ok = torch.isfinite(z).all()
        sizes.note_withheld(z, ~ok)
        on_host = sizes.beta.device.type == "cpu"
        if on_host and not bool(ok):
            return
        before = {p: p.detach().clone() for _, _, params in active for p in params}
        self._inner_step(active, ok, on_host)
        for i, group, params in active:
            for p in params:
                self._observe(p, before[p], sizes.alpha[i], group, None if on_host else ok)
        if sizes.rule is not None:
            self.meta_update(z, [i for i, *_ in active], None if on_host else ok)

    def _inner_step(self, active: list[Any], ok: Tensor, on_host: bool) -> None:
        sizes = self.optimizer.sizes
        alphas: Any = sizes.alpha.tolist() if on_host else list(sizes.alpha.unbind())
        for group, alpha in zip(self.inner.param_groups, alphas, strict=True):
            takes_tensor = group.get("fused") or group.get("capturable")
            if not on_host and not takes_tensor and "capturable" in group:
                group["capturable"] = takes_tensor = True
            # Without a tensor lr this reads from the device: such optimisers know no other way.
            group["lr"] = alpha if on_host or takes_tensor else float(alpha)
        if on_host:
            self.inner.step()
            return
        # Off the host nothing is read back: a bad gradient is shown to the inner optimiser as 0.
        held = {p: p.grad for _, _, params in active for p in params}
        try:
            for p, g in held.items():
                assert g is not None
                p.grad = torch.where(ok.to(g.device), g, torch.zeros_like(g))
            self.inner.step()
        finally:
            for p, g in held.items():
                p.grad = g

    def _observe(
        self, p: Tensor, before: Tensor, alpha: Tensor, group: dict[str, Any], ok: Tensor | None
    ) -> None:
        """``dw`` is what the inner step did plus ``-alpha kappa w``; the trace follows it."""
        w, dtype = p.detach(), state_dtype(p)
        alpha, kappa = alpha.to(device=p.device, dtype=dtype), group["weight_decay"]
        dw = w.to(dtype) - before.to(dtype)
        if kappa:
            dw = dw - alpha * kappa * before.to(dtype)
            w.copy_(before + dw)
        if ok is not None:
            ok = ok.to(p.device)
            w.copy_(torch.where(ok, w, before))
        if self.optimizer.sizes.rule is None:
            return
        state = self.optimizer.state[p]
        h = state.get("h")
        if h is None:
            h = state["h"] = torch.zeros_like(p, dtype=dtype).detach()
        new = group["gamma"] * (1 - alpha * kappa) * h + dw
        h.copy_(new if ok is None else torch.where(ok, new, h))
