"""Any torch optimiser as the base update: its step is taken with lr = alpha and observed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from clmeta.engines.learners import Engine
from clmeta.engines.sizes import StepSizes, state_dtype
from clmeta.errors import bad
from clmeta.wrapped.building import TRACE, Factory, Groups, check_state, settings_of
from clmeta.wrapped.evaluations import Closure, Evaluations, Spent, Withheld, copied, restore
from clmeta.wrapped.inner import Inner
from clmeta.wrapped.probe import probe


class Owner(Protocol):
    """The optimiser whose groups and state an inner one shares."""

    param_groups: Groups
    state: Any
    sizes: StepSizes

    def beta_bounds(self, group: dict[str, Any]) -> tuple[float, float]:
        """Bounds of a block's beta."""


class Wrapped(Engine):
    """Steps of all blocks by an inner torch optimiser, which shares the owner's groups and state.

    Args:
        owner: whose groups and state these are.
        factory: makes the inner optimiser from parameter groups.
    """

    def __init__(self, owner: Owner, factory: Factory) -> None:
        self.owner, self.factory = owner, factory
        learns = owner.sizes.rule is not None
        self.inner = Inner(factory, self._groups, learns)
        self.spent: Spent = {}
        owner.state = self.inner.optimizer.state
        if learns:
            alphas = [self._groups[i]["alpha0"] for i in self.inner.owners]
            self.inner.turned = probe(self.inner.optimizer, alphas, self.inner.name)

    # ---- what is the owner's ----------------------------------------------------------------

    @property
    def _groups(self) -> Groups:
        return self.owner.param_groups

    @property
    def _alpha(self) -> Tensor:
        return self.owner.sizes.alpha[0]

    @property
    def _learns(self) -> bool:
        return self.owner.sizes.rule is not None

    @contextmanager
    def _lent(self, but: int = 0) -> Iterator[dict[Tensor, Tensor]]:
        """The inner optimiser has our groups' settings and our state; gives the traces.

        They are no part of the state meanwhile: the inner optimiser sees what it would without us.

        Args:
            but: how many of our last groups it does not have yet.
        """
        inner, groups = self.inner, self._groups
        state = inner.share(self.owner.state)
        inner.follow(groups[: len(groups) - but], self.factory)
        traces = {
            p: entries.pop(TRACE)
            for p, entries in state.items()
            if isinstance(p, Tensor) and TRACE in entries
        }
        try:
            yield traces
        finally:
            # It may have replaced the dictionary, or put anything into it.
            state = self.owner.state = inner.optimizer.state
            check_state(state, inner.name)
            for p, h in traces.items():
                state.setdefault(p, {})[TRACE] = h
            inner.show(self._groups)

    def _note(self, z: Tensor, finite: Tensor, kept: Tensor | None = None) -> None:
        """Show z, not a number where a block's gradients were not finite; count what was withheld.

        Args:
            kept: (B,) whether anything of a block was put back, as it was not finite.
        """
        sizes, held = self.owner.sizes, ~finite
        sizes.z[0].copy_(torch.where(finite, z.to(sizes.z), torch.nan))
        sizes.note_withheld((held if kept is None else held | kept)[None])

    def _meta_update(self, z: Tensor, active: Sequence[int], ok: Tensor | None) -> Tensor:
        """The meta update of the blocks that had gradients, where ok (None: known to be).

        Returns:
            (B,) the blocks that were kept back.
        """
        sizes = self.owner.sizes
        sizes.z[0].copy_(z)
        keep = torch.zeros_like(sizes.culprits)
        for i in active:
            keep[0, i] = True if ok is None else ok
        lows, highs = zip(*map(self.owner.beta_bounds, self._groups), strict=True)
        etas = [group["eta"] for group in self._groups]
        eta, low, high = sizes.beta.new_tensor([etas, lows, highs]).unsqueeze(1)
        held = sizes.update(eta, low, high, keep)
        return keep[0] & False if held is None else held[0]

    def _trace(self, p: Tensor, dtype: torch.dtype) -> Tensor:
        state = self.owner.state.setdefault(p, {})
        if TRACE not in state:
            state[TRACE] = torch.zeros_like(p, dtype=dtype).detach()
        return state[TRACE]

    # ---- stepping ---------------------------------------------------------------------------

    def run(self, closure: Closure | None) -> Any:
        """One step, in which the inner optimiser evaluates the closure; gives its loss."""
        if closure is None or self.inner.takes_closure:
            return self._step(closure)
        with torch.enable_grad():
            loss = closure()
        self._step(None)
        return loss

    def _step(self, closure: Closure | None) -> Any:
        with self._lent() as traces:
            seen = Evaluations(self.inner, traces, self._alpha, closure, self.spent)
            if closure is None and not seen.active:
                return None
            try:
                if seen.is_bad:
                    raise Withheld
                given = self._set_lrs()
                loss = seen.step(self.inner.optimizer)
            except Withheld:
                for p in seen.before:
                    seen.undo(p, seen.found & False)
                self._note(seen.z, seen.finite)
                return seen.loss
            finally:
                seen.give_back()
                self.spent = seen.left()
            self._check_lrs(given)
        ok = None if seen.on_host else seen.finite.all()
        kept, alphas = torch.zeros_like(seen.finite), self._alpha.unbind()
        for i, group in enumerate(self._groups):
            active = set(seen.active.get(i, ()))
            for p in group["params"]:
                if p in active or (p.grad is not None and p in seen.before):
                    kept[i] |= self._observe(p, seen, alphas[i], group, ok).to(kept.device)
        if self._learns and seen.active:
            kept |= self._meta_update(seen.z, sorted(seen.active), ok)
        self._note(seen.z, seen.finite, kept)
        return loss

    def _set_lrs(self) -> list[Any]:
        on_host = self._alpha.device.type == "cpu"
        alphas: Any = self._alpha.tolist() if on_host else list(self._alpha.unbind())
        for i, group in zip(self.inner.owners, self.inner.groups, strict=True):
            takes_tensor = group.get("fused") or group.get("capturable")
            if not on_host and not takes_tensor and "capturable" in group:
                group["capturable"] = takes_tensor = True
            # Without a tensor lr this reads from the device: such optimisers know no other way.
            group["lr"] = alphas[i] if on_host or takes_tensor else float(alphas[i])
        return [group["lr"] for group in self.inner.groups]

    def _check_lrs(self, given: list[Any]) -> None:
        """Raise BadArgument if the inner optimiser has a schedule of its own."""
        for group, lr in zip(self.inner.groups, given, strict=True):
            if group["lr"] is not lr and (isinstance(lr, Tensor) or group["lr"] != lr):
                mend = "writes its own lr in a step, which is MetaOptimize's to set; switch it off"
                bad("base", self.inner.name, mend)

    def _observe(
        self, p: Tensor, seen: Evaluations, alpha: Tensor, group: dict[str, Any], ok: Tensor | None
    ) -> Tensor:
        """``dw`` is what the inner step did plus ``-alpha kappa w``; the trace follows it.

        Returns:
            Whether weights, state and trace were put back, as they would not be finite.
        """
        w, dtype, before = p.detach(), state_dtype(p), seen.before[p]
        decay, kappa = group["gamma"], group["weight_decay"]
        dw = w.to(dtype) - before.to(dtype)
        if kappa:
            alpha = alpha.to(device=p.device, dtype=dtype)
            decay = decay * (1 - alpha * kappa)
            dw -= alpha * kappa * before.to(dtype)
            w.copy_(before + dw)
        h = kept = dw
        if self._learns:
            h = self._trace(p, dtype)
            kept = copied(h, (p, TRACE), self.inner.copies)
            h.mul_(decay).add_(dw)
        finite = seen.is_finite(p)
        sound = finite if ok is None else finite & ok.to(p.device)
        seen.undo(p, sound)
        if not (seen.on_host and sound):
            restore(h, kept, sound)
        return ~finite if ok is None else ~finite & ok.to(p.device)

    # ---- the inner optimiser's own methods, saving and copying --------------------------------

    def call(self, name: str, *args: Any) -> bool:
        """Call the inner optimiser's own method of that name; False if it has none of its own."""
        theirs = getattr(type(self.inner.optimizer), name, None)
        if theirs is None or theirs is getattr(torch.optim.Optimizer, name, None):
            return False
        with self._lent():
            getattr(self.inner.optimizer, name)(*args)
        return True

    def added(self, group: dict[str, Any]) -> None:
        """Give the inner optimiser the group that was just added to ours."""
        with self._lent(but=1):
            self.inner.add(group, len(self._groups) - 1)

    def make_state(self, groups: Sequence[dict[str, Any]], state: Any) -> None:
        """Let the inner optimiser make its state, by a step of size 0 along the gradients."""
        with self._lent():
            for group in self.inner.groups:
                group["lr"] = 0.0
            self.inner.optimizer.step()

    def saved(self) -> dict[str, Any]:
        """The inner optimiser's kind, its groups' settings and what it keeps of its own."""
        with self._lent():
            return self.inner.saved()

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raise BadArgument unless they are settings of an inner optimiser of this kind."""
        mine, theirs = type(self.inner.optimizer).__qualname__, saved.get("inner")
        if theirs != mine:
            bad("state_dict base", theirs, f"this optimiser wraps {mine}; make it alike")
        groups, count = saved.get("groups"), len(self.inner.groups)
        fits = isinstance(groups, list) and len(groups) == count
        if not (fits and all(isinstance(settings, Mapping) for settings in groups or ())):
            bad("state_dict base", groups, f"must list the settings of {count} groups")
        for name in ("attributes", "nested", "own"):
            held = saved.get(name, {})
            if not (isinstance(held, Mapping) and all(isinstance(key, str) for key in held)):
                bad(f"state_dict base {name}", held, "must be a mapping from names")

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `saved` gave."""
        for i, settings in zip(self.inner.owners, saved["groups"], strict=True):
            if self.inner.owners.count(i) == 1:
                self._groups[i].update(settings_of(settings))
        with self._lent():
            self.inner.restore(saved)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "spent": {}, "owner": None}
