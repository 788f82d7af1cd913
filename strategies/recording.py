"""An Avalanche plugin that writes the same run folder as the plain loop, step by step."""

from __future__ import annotations

import math
import os
from types import TracebackType
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import avalanche_forward
from torch.utils.data import DataLoader

from clmeta.errors import bad
from clmeta.record.attached import block_names, describe_optimizer
from clmeta.record.checkpoint import Checkpoint
from clmeta.record.recorder import Recorder
from clmeta.record.runfolder import RunFolder
from clmeta.strategies.memories import quieten
from clmeta.strategies.prequential import Prequential, own_task, predicting

#: Test samples per forward pass.
TEST_BATCH = 512


class StepSizeRecorder(SupervisedPlugin):
    """Records step sizes, loss and correctness of every training iteration into a run folder.

    Use it as a context manager, or call `close` when training is over::

        with StepSizeRecorder("runs/naive", config={"seed": 0}) as recorder:
            strategy = Naive(..., plugins=[MetaOptimizePlugin(), recorder])
            for experience in benchmark.train_stream:
                strategy.train(experience, shuffle=False)

    The folder is that of `clmeta.Recorder`; ``step`` counts training iterations, ``task``
    is the experience's index (for online sub-experiences, their task's), ``correct`` the share of
    the stream's own samples that were predicted right before the update, and ``loss`` the loss
    that the strategy descends, penalties and memory samples included. Works with any torch
    optimiser, one step size per parameter group.

    After ``maybe_load_checkpoint`` the strategy has another recorder: get it by `of`. It starts a
    new trajectory in the same folder and moves the unfinished one to ``trajectory.interrupted-N``.

    Args:
        folder: the run folder.
        config: what repeats the run, JSON-able; names of strategy and plugins are added.
        part_steps, overwrite: as in `Recorder`.
        test_stream: experiences; the task's own is measured when the task ends.

    Raises:
        BadArgument: for a config without a JSON form, or `close` when nothing was recorded.
        RunFolderError: at once if the folder holds a finished run; later as `Recorder` does.
        NonFiniteError: when a part is written and the optimiser withheld an update.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        config: dict[str, Any] | None = None,
        part_steps: int = 10_000,
        overwrite: bool = False,
        test_stream: Any = None,
    ) -> None:
        super().__init__()
        self._recorder: Recorder | None = None
        self.folder = folder
        self.config = dict(config or {})
        self.part_steps, self.overwrite = part_steps, overwrite
        self.test_stream = test_stream
        self._own = Prequential()
        self._task: int | None = None
        self._strategy: Any = None
        self._resume: Any = None
        self.checkpoint: Checkpoint | None = None
        RunFolder(folder).check_free(overwrite)

    @staticmethod
    def of(strategy: Any) -> StepSizeRecorder:
        """The recorder among a strategy's plugins.

        Raises:
            BadArgument: if there is none.
        """
        found = next((p for p in strategy.plugins if isinstance(p, StepSizeRecorder)), None)
        if found is None:
            bad("plugins", [type(p).__name__ for p in strategy.plugins], "has no StepSizeRecorder")
        return found

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Open the run folder, at the first training."""
        quieten(strategy)
        self._open(strategy)

    def _open(self, strategy: Any) -> None:
        """Open the run folder, unless it is; also where training goes on in an experience."""
        if self._recorder is not None:
            return
        self._strategy = strategy
        self._recorder = Recorder(
            self.folder,
            block_names(strategy.optimizer),
            config={**_describe(strategy), **self.config},
            part_steps=self.part_steps,
            overwrite=self.overwrite and self._resume is None,
            resume=self._resume,
        )

    def state(self) -> dict[str, Any]:
        """Where the recording stands, for a checkpoint (`clmeta.strategies.resuming`)."""
        recorder = None if self._recorder is None else self._recorder.state()
        return {"recorder": recorder, "task": self._task}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, with the next step."""
        self._resume, self._task = state["recorder"], state["task"]

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Of online sub-experiences, the first of the next task shows that a task has ended."""
        task = own_task(strategy.experience)
        if self._task is not None and task != self._task:
            self._end_task(strategy)
        self._task, self._strategy = task, strategy

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the step sizes that this iteration uses."""
        self._open(strategy)
        assert self._recorder is not None
        self._own.begin(strategy)
        self._recorder.before_step(strategy.optimizer)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Record the step."""
        assert self._recorder is not None and self._task is not None
        self._recorder.record(self._task, strategy.loss, self._own.hits(strategy))

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """A whole experience ends its task; of sub-experiences it is not known yet."""
        self._open(strategy)
        if not hasattr(strategy.experience, "origin_experience"):
            self._end_task(strategy)

    def close(self, summary: dict[str, Any] | None = None) -> None:
        """Finish the run: write what is left and ``summary.json``.

        Args:
            summary: further entries of the summary.
        """
        if self._recorder is None:
            bad(
                "recorder",
                str(self.folder),
                "nothing was recorded; after loading a checkpoint close "
                "StepSizeRecorder.of(strategy)",
            )
        if self._task is not None:
            self._end_task(self._strategy)
        self._strategy = None
        self._recorder.close(summary)
        if self.checkpoint is not None:
            self.checkpoint.clear()

    def __enter__(self) -> StepSizeRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._recorder is not None:
            self._recorder.__exit__(kind, error, trace)

    def __getstate__(self) -> dict[str, Any]:
        # A run folder is held by one process: a copy opens it again when it trains.
        alone = {"_recorder": None, "_task": None, "_strategy": None, "checkpoint": None}
        return {**self.__dict__, **alone}

    def _end_task(self, strategy: Any) -> None:
        assert self._recorder is not None and self._task is not None
        task, self._task = self._task, None
        accuracy = math.nan
        if self.test_stream is not None:
            accuracy = test_accuracy(strategy, self.test_stream[task])
        self._recorder.end_task(task, accuracy)


def test_accuracy(strategy: Any, experience: Any) -> float:
    """Share of an experience's samples that the model, in evaluation mode, labels right."""
    dataset = experience.dataset.eval()
    loader = DataLoader(dataset, batch_size=TEST_BATCH, collate_fn=dataset.collate_fn)
    right = torch.zeros((), device=strategy.device)
    with predicting(strategy.model):
        for batch in loader:
            x, y, *rest = [column.to(strategy.device) for column in batch]
            if hasattr(experience, "task_labels"):
                output = avalanche_forward(strategy.model, x, rest[-1])
            else:
                output = strategy.model(x)
            right += output.argmax(1).eq(y).sum()
    return float(right) / len(dataset)


def _describe(strategy: Any) -> dict[str, Any]:
    optimizer = strategy.optimizer
    return {
        "method": f"{type(strategy).__name__} {type(optimizer).__name__}",
        "strategy": type(strategy).__name__,
        "plugins": [type(plugin).__name__ for plugin in strategy.plugins],
        "optimizer": describe_optimizer(optimizer),
        "train_mb_size": strategy.train_mb_size,
        "train_epochs": strategy.train_epochs,
    }
