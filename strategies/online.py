"""The online learner as an Avalanche strategy: whole experiences, sample by sample, in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate

from clmeta import MetaOptimize
from clmeta.errors import require
from clmeta.strategies.backward import backward
from clmeta.strategies.loader import SliceLoader
from clmeta.strategies.plugins import KeepOptimizerState, MetaOptimizePlugin

Callback = Callable[..., Any]

EVENTS = (
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
)


class Online(SupervisedTemplate):
    """Learns each sample once, in the stream's order, with an optimiser that is never reset.

    ``strategy.train(experience)`` on whole experiences, with ``train_mb_size`` of the stream (one,
    by default), is the plain loop::

        for x, y, task, step in stream:
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    bit for bit, and nearly as fast; plugins, evaluator, growing heads and `eval` work as in any
    strategy. Nothing tells the optimiser where a task ends. `MetaOptimizePlugin` (or, for another
    optimiser, `KeepOptimizerState`) is added unless it is among ``plugins``.

    Which callbacks plugins and metrics implement is looked up at the start of each experience;
    those that do nothing cost nothing.

    Args:
        model: maps mini-batches to logits.
        optimizer: any torch optimiser; `clmeta.MetaOptimize` for step sizes that are learned.
        criterion: mean loss of a mini-batch; cross-entropy by default.
        train_mb_size: samples per update.
        eval_mb_size: samples per forward pass in `eval`.
        device: where the model lives.
        plugins: Avalanche plugins, in the order in which they are called.
        evaluator: Avalanche's ``EvaluationPlugin`` with metrics and loggers; None for none.
        eval_every, peval_mode: periodic evaluation, as in Avalanche; -1 for none.

    Raises:
        BadArgument: for ``train(shuffle=True)``, and as the plugins do.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[..., Any] | None = None,
        train_mb_size: int = 1,
        eval_mb_size: int = 512,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: Any = None,
        eval_every: int = -1,
        peval_mode: str = "epoch",
    ) -> None:
        plugins = list(plugins or [])
        if not any(isinstance(plugin, KeepOptimizerState) for plugin in plugins):
            meta = isinstance(optimizer, MetaOptimize)
            plugins.insert(0, MetaOptimizePlugin() if meta else KeepOptimizerState())
        with warnings.catch_warnings():
            # Without an evaluator nobody expects metrics to be logged.
            warnings.filterwarnings("ignore", "No loggers specified", UserWarning)
            super().__init__(
                model=model,
                optimizer=optimizer,
                criterion=torch.nn.CrossEntropyLoss() if criterion is None else criterion,
                train_mb_size=train_mb_size,
                train_epochs=1,
                eval_mb_size=eval_mb_size,
                device=device,
                plugins=plugins,
                evaluator=evaluator,
                eval_every=eval_every,
                peval_mode=peval_mode,
            )
        for plugin in plugins:
            if isinstance(plugin, KeepOptimizerState):
                plugin.attach(self)

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Learn experiences in order; see Avalanche. Samples are never shuffled."""
        shuffle = kwargs.setdefault("shuffle", False)  # seen by plugins: replay shuffles otherwise
        require(not shuffle, "shuffle", shuffle, "an online learner keeps the stream's order")
        return super().train(experiences, eval_streams, **kwargs)

    def make_train_dataloader(
        self, num_workers: int = 0, shuffle: bool = False, **kwargs: Any
    ) -> None:
        """Mini-batches in order; with ``num_workers``, by Avalanche's own loader."""
        if num_workers:
            super().make_train_dataloader(num_workers=num_workers, shuffle=False, **kwargs)
        else:
            self.dataloader = SliceLoader(self.adapted_dataset, self.train_mb_size, self.device)

    def backward(self) -> None:
        """Backward pass; keeps its graph for `MetaOptimize` with ``hessian`` other than free."""
        backward(self.loss, self.optimizer)

    def training_epoch(self, **kwargs: Any) -> None:
        """Avalanche's training loop, calling only what is there to be called."""
        calls = {event: callbacks(self, event) for event in EVENTS}
        begin, end = calls["before_training_iteration"], calls["after_training_iteration"]
        before_forward, after_forward = calls["before_forward"], calls["after_forward"]
        before_backward, after_backward = calls["before_backward"], calls["after_backward"]
        before_update, after_update = calls["before_update"], calls["after_update"]
        # Plugins add their penalties to `loss` from the moment it exists.
        penalised = bool(before_forward or after_forward or before_backward)
        for self.mbatch in self.dataloader:  # noqa: B020
            if self._stop_training:
                break
            self._unpack_minibatch()
            for call in begin:
                call(self, **kwargs)
            self.optimizer.zero_grad()
            if penalised:
                self.loss = self._make_empty_loss()
            for call in before_forward:
                call(self, **kwargs)
            self.mb_output = self.forward()
            for call in after_forward:
                call(self, **kwargs)
            if penalised:
                self.loss += self.criterion()
            else:
                self.loss = self.criterion()
            for call in before_backward:
                call(self, **kwargs)
            self.backward()
            for call in after_backward:
                call(self, **kwargs)
            for call in before_update:
                call(self, **kwargs)
            self.optimizer_step()
            for call in after_update:
                call(self, **kwargs)
            for call in end:
                call(self, **kwargs)


def callbacks(strategy: SupervisedTemplate, event: str) -> list[Callback]:
    """What has to be called at an event, in order: bound methods that are not the empty default."""
    trigger = f"_{event}"
    if getattr(type(strategy), trigger) is not getattr(SupervisedTemplate, trigger):
        return [lambda strategy, **kwargs: getattr(strategy, trigger)(**kwargs)]
    return [
        getattr(plugin, event)
        for plugin in strategy.plugins
        if (
            _evaluates(plugin, event)
            if isinstance(plugin, EvaluationPlugin)
            else implements(plugin, event, SupervisedPlugin)
        )
    ]


def implements(thing: Any, event: str, empty: type) -> bool:
    """Whether an object has a callback of its own rather than the empty one of its base class."""
    if event in getattr(thing, "__dict__", {}):
        return True
    method = getattr(type(thing), event, None)
    return method is not None and method is not getattr(empty, event, None)


def _evaluates(plugin: EvaluationPlugin, event: str) -> bool:
    """An evaluator copies the experience at every event; only where something comes of it."""
    return (
        implements(plugin, event, SupervisedPlugin)
        or any(implements(metric, event, PluginMetric) for metric in plugin.metrics)
        or any(implements(logger, event, SupervisedPlugin) for logger in plugin.loggers)
    )
