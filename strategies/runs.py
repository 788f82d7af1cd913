"""A whole run of a stream under an Avalanche strategy, with the plain loop's results."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clmeta import MetaOptimize
from clmeta.ground.randomness import forked
from clmeta.strategies.backward import backward
from clmeta.strategies.online import Online
from clmeta.strategies.plain import Tally
from clmeta.strategies.plugins import KeepOptimizerState, MetaOptimizePlugin
from clmeta.strategies.prequential import Prequential
from clmeta.strategies.resuming import going_on, resumable

if TYPE_CHECKING:
    from clmeta.record.checkpoint import Checkpoint
    from clmeta.record.recorder import Recorder
    from clmeta.strategies.plain import OnlineResult, OnProgress
    from clmeta.strategies.registry import Made
    from clmeta.streams import Stream


def learn_with(
    made: Made,
    model: nn.Module,
    optimizer: Any,
    stream: Stream,
    *,
    recorder: Recorder | None = None,
    on_progress: OnProgress | None = None,
    evaluate: bool = True,
    checkpoint: Checkpoint | None = None,
) -> OnlineResult:
    """Learn from a stream once under an Avalanche strategy; see `plain.learn_online`.

    The strategy sees whole experiences in order, unshuffled, all with task label 0, and test
    accuracy is measured at the end of each task. What memories draw follows ``torch.manual_seed``.

    Args:
        made: Avalanche class, its keywords, plugins.
        model, optimizer, stream, recorder, on_progress, evaluate, checkpoint: as in
            `plain.learn_online`.
    """
    strategy_class, options, plugins = made
    strategy_class = resumable(_keeping_graphs(strategy_class))
    watch = _Watch(stream, optimizer, recorder, on_progress, evaluate)
    keep = MetaOptimizePlugin() if isinstance(optimizer, MetaOptimize) else KeepOptimizerState()
    if not issubclass(strategy_class, Online):
        options = {**options, "train_epochs": 1}
    with warnings.catch_warnings():
        # What Avalanche's code says about Avalanche's code is no use to who runs it by name.
        warnings.filterwarnings("ignore", "No loggers specified", UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"avalanche\.")
        strategy = strategy_class(
            model=model,
            optimizer=optimizer,
            train_mb_size=stream.batch_size,
            device=next(model.parameters()).device,
            plugins=[keep, *plugins, watch],
            evaluator=None,
            **options,
        )
        with _repeatable():
            experiences = stream.benchmark(task_labels="constant").train_stream
            if checkpoint is not None:
                checkpoint.add("tally", watch.tally)
                known = {"stream": stream, "data": stream.data, "watch": watch}
                experiences = going_on(strategy, experiences, checkpoint, known=known)
            for experience in experiences:
                strategy.train(experience, shuffle=False)
    return watch.tally.result()


def _keeping_graphs(strategy_class: Any) -> Any:
    """The strategy with a backward pass that an optimiser with a Hessian can go on from."""

    class Curved(strategy_class):
        def backward(self) -> None:
            backward(self.loss, self.optimizer)

    return strategy_class if issubclass(strategy_class, Online) else Curved


@contextmanager
def _repeatable() -> Iterator[None]:
    """Python's and numpy's generators, which storage policies draw from, follow torch's."""
    with forked("python", "numpy"):
        seed = int(torch.randint(2**32 - 1, ()))
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (Avalanche uses it)
        yield


class _Watch(SupervisedPlugin):
    """Counts, reports and records, as the plain loop does."""

    def __init__(
        self,
        stream: Stream,
        optimizer: Any,
        recorder: Recorder | None,
        on_progress: OnProgress | None,
        evaluate: bool,
    ) -> None:
        super().__init__()
        self.recorder = recorder
        self.tally = Tally(stream, optimizer, recorder, on_progress, evaluate)
        self._own = Prequential()

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self._own.begin(strategy)
        if self.recorder is not None:
            self.recorder.before_step(strategy.optimizer)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        hits, task = self._own.hits(strategy), strategy.experience.current_experience
        self.tally.task = task
        if self.recorder is not None:
            self.recorder.record(task, strategy.loss, hits)
        self.tally.add(hits, len(hits), task)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.tally.end_task(strategy.model)
