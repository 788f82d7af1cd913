"""Avalanche plugins that keep an optimiser's state and learned step sizes through a run."""

from __future__ import annotations

import functools
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clmeta import MetaOptimize
from clmeta.errors import ClmetaError, bad
from clmeta.optim.blocked import SCHEDULED
from clmeta.strategies.growth import adopt
from clmeta.strategies.memories import quieten


class KeepOptimizerState(SupervisedPlugin):
    """Keeps any optimiser's state where Avalanche would lose it.

    Avalanche empties ``optimizer.state`` before the first experience, and the state of every
    parameter that is replaced when a head grows; it refuses to grow when no parameter group is
    the only one near. With this plugin nothing is emptied, replaced parameters keep their state
    padded with zeros, and new ones join a group, see `clmeta.strategies.growth`. A head that
    grows during an evaluation is followed at once, so that training never goes on with parameters
    that the model no longer uses.

    Parameters that were left out of the optimiser stay out (Avalanche would add them).

    Raises:
        BadArgument: for ``train(reset_optimizer_state=True)``, or if it cannot be told which block
            a new parameter belongs to.
        ClmetaError: at the first epoch after something else emptied the state.
    """

    def __init__(self) -> None:
        super().__init__()
        self._optimizer: torch.optim.Optimizer | None = None
        self._known: dict[str, Tensor] = {}
        self._held: set[str] = set()

    def attach(self, strategy: Any) -> None:
        """Learn the parameters' names; done by itself before the first training or evaluation."""
        named = dict(strategy.model.named_parameters())
        if self._known:
            if all(self._known.get(name) is not p for name, p in named.items()):
                bad(
                    "plugins",
                    type(self).__name__,
                    "this plugin belongs to another model; make a new one for every strategy",
                )
            return
        mine = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        strange = len(mine - {id(p) for p in named.values()})
        if strange:
            bad(
                "optimizer",
                f"{strange} parameters that are not the model's",
                "the model changed after the optimiser was made; make the optimiser last, and "
                "add this plugin before the first evaluation",
            )
        self._known = named
        self._optimizer = strategy.optimizer
        self._held = self._with_state(strategy.optimizer)

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot work before anything trains."""
        quieten(strategy)
        self.check_optimizer(strategy)
        self.attach(strategy)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """An evaluation before the first training grows heads too."""
        self.attach(strategy)

    def after_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Follow a head that the evaluation has grown."""
        now = dict(strategy.model.named_parameters())
        if any(self._known.get(name) is not p for name, p in now.items()):
            self._follow(strategy)

    def after_train_dataset_adaptation(
        self, strategy: Any, *args: Any, reset_optimizer_state: bool = False, **kwargs: Any
    ) -> None:
        """Take the place of Avalanche's own update until the model is adapted."""
        if reset_optimizer_state:
            bad(
                "reset_optimizer_state",
                True,
                "would empty the base state and the traces and leave step sizes that fit neither; "
                "make a new optimiser and strategy to start afresh",
            )
        strategy.make_optimizer = functools.partial(self._follow, strategy)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """The model is adapted: give Avalanche its method back."""
        strategy.__dict__.pop("make_optimizer", None)

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """All other plugins have prepared the experience: check what they did."""
        self.check_optimizer(strategy)
        if strategy.optimizer is not self._optimizer:
            self.replaced(strategy)
            self._optimizer, self._held = strategy.optimizer, set()
        lost = self._held - self._with_state(strategy.optimizer)
        if lost:
            raise ClmetaError(
                f"the optimiser's state of {', '.join(sorted(lost)[:3])} was emptied, by a plugin "
                "such as FromScratchTrainingPlugin or by reset_optimizer(); for a learner that "
                "starts afresh make a new model, optimiser and strategy for each experience"
            )

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Remember which parameters have state."""
        self._held = self._with_state(strategy.optimizer)

    def check_optimizer(self, strategy: Any) -> None:
        """Raise for an optimiser that this plugin cannot keep; any torch optimiser will do."""

    def replaced(self, strategy: Any) -> None:
        """Called when something put another optimiser into the strategy."""

    def _follow(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.attach(strategy)
        now = dict(strategy.model.named_parameters())
        adopt(strategy.optimizer, self._known, now)
        self._known = now
        strategy.optimized_param_id = now

    def _with_state(self, optimizer: torch.optim.Optimizer) -> set[str]:
        return {name for name, p in self._known.items() if optimizer.state.get(p)}


class MetaOptimizePlugin(KeepOptimizerState):
    """Lets `clmeta.MetaOptimize` run under any Avalanche strategy.

    As `KeepOptimizerState`, so that old weights keep their traces h and base state when a head
    grows; blocks, step sizes and meta state are never touched. In addition it carries step sizes
    over when a plugin makes the optimiser anew from its ``defaults`` (PackNet, which means to
    empty base state and traces), and refuses what would overwrite them:

    Raises:
        BadArgument: for a strategy that uses an optimiser of its own (AR1, L2P), a re-created
            optimiser with other blocks, or, unless step sizes are fixed (``meta="none"``), a
            learning-rate schedule (`LRSchedulerPlugin` or torch's own).
    """

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot work before anything trains."""
        super().before_training(strategy)
        if _is_fixed(strategy.optimizer):
            return
        for plugin in strategy.plugins:
            scheduler = getattr(plugin, "scheduler", None)
            if getattr(scheduler, "optimizer", None) is strategy.optimizer:
                bad("plugins", f"{type(plugin).__name__}({type(scheduler).__name__})", SCHEDULED)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Find a schedule that was stepped behind our back."""
        self.check_optimizer(strategy)

    def check_optimizer(self, strategy: Any) -> None:
        """Raise unless it is MetaOptimize and its step sizes are what it made them."""
        optimizer = strategy.optimizer
        if not isinstance(optimizer, MetaOptimize):
            bad(
                "optimizer",
                type(optimizer).__name__,
                f"{type(strategy).__name__} does not use the MetaOptimize that this plugin is "
                "for; strategies that make their own optimiser (AR1, L2P) cannot use it, in "
                "others pass optimizer=MetaOptimize(...)",
            )
        if _is_fixed(optimizer):
            return
        alpha, sizes = optimizer.alpha, optimizer.sizes
        for i, group in enumerate(optimizer.param_groups):
            shown = group["lr"]
            is_view = isinstance(shown, Tensor) and shown.data_ptr() == alpha[i].data_ptr()
            if not is_view:
                bad(f"group['lr'] of block {group['name']!r}", shown, f"something {SCHEDULED}")
        # Comparing values waits for the device: not once a sample.
        online = hasattr(strategy.experience, "origin_experience")
        if not online and not torch.equal(sizes.alpha, sizes.beta.exp()):
            bad("group['lr']", alpha.tolist(), f"something {SCHEDULED}")

    def replaced(self, strategy: Any) -> None:
        """Carry step sizes and meta state over to an optimiser of the same kind and blocks."""
        old, new = self._optimizer, strategy.optimizer
        assert isinstance(old, MetaOptimize)
        if [_shapes(g) for g in old.param_groups] != [_shapes(g) for g in new.param_groups]:
            bad(
                "optimizer",
                new.block_names,
                f"was made anew with other blocks; need {old.block_names}",
            )
        for mine, theirs in zip(old.param_groups, new.param_groups, strict=True):
            theirs["name"] = mine["name"]
        new.load_state_dict({**new.state_dict(), "param_groups": old.state_dict()["param_groups"]})


def _is_fixed(optimizer: Any) -> bool:
    """Whether step sizes are not learned, so that a schedule may set them."""
    return isinstance(optimizer, MetaOptimize) and optimizer.sizes.rule is None


def _shapes(group: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in group["params"]]
