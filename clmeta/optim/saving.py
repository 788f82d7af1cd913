"""What an optimiser with step sizes of its own saves, and how it is loaded, pickled and copied.

A state dict has torch's form, in which everything stands with the group or the parameter that it
is of, so that all that keeps, cuts up or shards state dicts of torch's optimisers keeps these::

    state         {parameter: {"step", slots of the base update, "h", fine "beta", "meta_..."}}
    param_groups  [{settings, "lr": alpha, "meta": {"beta", "t", "state", ...}}], a block each
    meta          {"clmeta": the version that wrote it}
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from clmeta._version import __version__
from clmeta.engines.learners import Engine
from clmeta.errors import bad
from clmeta.optim.blocked import Blocked
from clmeta.optim.checkpoint import COUNTS, Checkpoint, read
from clmeta.optim.store import Store, fill_state
from clmeta.rules import Rule
from clmeta.wrapped.engine import Wrapped

#: Attributes that go with a pickled or copied optimiser, beside torch's own.
PICKLED = ("sizes", "granularity", "bounds", "nonfinite", "_config", "_engines", "_rule")


class Saved(Blocked):
    """A torch optimiser whose state is its own, its step sizes' and its way's to step."""

    nonfinite: str
    _engines: list[Engine]
    _rule: Rule | None
    _store: Store

    def check_finite(self) -> None:
        """Raise NonFiniteError, naming step and block, if an update was withheld."""
        if self.nonfinite == "raise":
            self.sizes.check_finite(self.block_names)

    # ---- saving ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Torch's ``state`` and ``param_groups``, where each group has its step size's ``meta``.

        Holds tensors, numbers and strings only: ``torch.load(weights_only=True)`` reads it. As in
        torch the tensors of ``state`` are the optimiser's own and not copies.

        Raises:
            NonFiniteError: if an update was withheld, unless ``nonfinite="skip"``.
        """
        self._follow_lr()
        self.check_finite()
        # Before the user's hooks, which are to see all of it.
        handle = self.register_state_dict_post_hook(_complete, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def _metas(self) -> list[dict[str, Any]]:
        """What a checkpoint needs of each block beside its settings, in plain numbers."""
        saved = self.sizes.state_dict()
        slots = {slot: values.tolist() for slot, values in saved["state"].items()}
        columns = (saved[key].tolist() for key in ("beta", "t", "culprits"))
        metas: list[dict[str, Any]] = [
            {
                "config": dict(self._config),
                "beta": beta,
                "t": t,
                "culprit": culprit,
                "state": {slot: values[i] for slot, values in slots.items()},
                "shapes": [None if is_lazy(p) else list(p.shape) for p in group["params"]],
            }
            for i, (group, beta, t, culprit) in enumerate(
                zip(self.param_groups, *columns, strict=True)
            )
        ]
        counts = {name: int(saved[name]) for name in COUNTS}
        metas[0]["whole"] = {**counts, "path": self._engines[0].saved()}
        return metas

    # ---- loading -----------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit from what ``state_dict`` gave; shares nothing with it afterwards.

        Raises:
            BadArgument: if it is another optimiser's, has other blocks, parameters or rules, or
                is broken; the optimiser is as before then.
        """
        if not isinstance(state_dict, Mapping):
            bad("state_dict", state_dict, "must be a mapping, as state_dict() gives it")
        found: list[Checkpoint] = []

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            found.append(read(self, given))
            return {"state": {}, "param_groups": found[-1].groups}

        def take(_: torch.optim.Optimizer) -> None:
            self._take(found[-1])

        # After the user's hooks, which may unwrap a form of their own, and before those that are
        # to see what was loaded.
        first = self.register_load_state_dict_pre_hook(check)
        last = self.register_load_state_dict_post_hook(take, prepend=True)
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            first.remove()
            last.remove()

    def _take(self, checkpoint: Checkpoint) -> None:
        self.state.update(checkpoint.state)
        self.sizes.load_state_dict(checkpoint.sizes)
        if checkpoint.alpha is not None:
            self.sizes.alpha[0].copy_(checkpoint.alpha)
        if checkpoint.path is not None:
            self._engines[0].restore(checkpoint.path)
        self._bind()

    # ---- state before the first step -------------------------------------------------------

    def template(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """What a fresh state of a parameter holds, without its numbers; {} if it has no shape."""
        state: dict[str, Tensor] = {}
        if not is_lazy(p):
            self._fill(torch.empty(p.shape, dtype=p.dtype, device="meta"), state, group)
        return state

    def _fill(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        extra = self._engines[0].state_names
        fill_state(p, state, self._rule, self.sizes.rule, self.granularity, group, extra)

    def _wants_state(self) -> bool:
        """Whether a step is to make state only, as torch's checkpoints ask of fresh optimisers.

        They set every ``lr`` to 0 and every gradient to zeros, step, and put ``lr`` back.
        """
        if self.state or not all(_is_zero(group["lr"]) for group in self.param_groups):
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        return not any(bool(g.any()) for g in grads if g is not None)

    def _make_state(self) -> None:
        """State of every parameter with a gradient as the first step makes it; nothing moves."""
        self._engines[0].make_state(self.param_groups, self.state)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._fill(p, self.state[p], group)

    def _added(self, group: dict[str, Any]) -> None:
        engines = self.__dict__.get("_engines", ())
        if engines and isinstance(engines[0], Wrapped):
            engines[0].added(group)

    def _renew(self) -> None:
        """Look for all arrays again, as after loading, copying and growing."""
        if self._rule is not None:
            self._store = Store(self, self._rule, self._engines[0].state_names)
        for engine in self._engines:
            if isinstance(engine, Wrapped):
                engine.owner = self

    # ---- pickling and copying ----------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self._follow_lr()
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in PICKLED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch adds it after loading; a second optimiser is built from `defaults` as keywords.
        self.defaults.pop("differentiable", None)
        if "_engines" in state:
            self._renew()
            self._bind()


def _is_zero(value: Any) -> bool:
    return isinstance(value, Tensor | Real) and bool(value == 0)


def _complete(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """Torch's part of a state dict with what it does not know of."""
    metas = optimizer._metas()
    groups = [
        {**group, "lr": group["lr"].clone(), "meta": meta}
        for group, meta in zip(saved["param_groups"], metas, strict=True)
    ]
    return {**saved, "param_groups": groups, "meta": {"clmeta": __version__}}
