"""Record every step of a run into a run folder, cheaply and so that a kill loses little."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from clmeta.errors import ClmetaError, RunFolderError, bad, require
from clmeta.ground.checks import whole
from clmeta.record.attached import alpha_of, block_names, checked_names, describe_optimizer, follow
from clmeta.record.checkpoint import Checkpoint
from clmeta.record.environment import describe_environment
from clmeta.record.files import as_json
from clmeta.record.part import Part, seconds_of, task_columns
from clmeta.record.rows import (
    kept_alpha,
    kept_number,
    kept_share,
    kept_task,
    null_if_nan,
    write_table,
)
from clmeta.record.runfolder import RunFolder
from clmeta.record.trajectory import part_file

Number = float | bool | Tensor
#: What the recorder is called among the parts of a checkpoint.
PART = "recorder"


class Recorder:
    """Writes a run folder: the trajectory at every step, totals per task, configuration.

    In a loop of one's own::

        with Recorder("runs/mine", optimizer) as recorder:
            for x, y, task, step in stream:
                output = model(x)
                loss = F.cross_entropy(output, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.record(task, loss, output.argmax(1) == y)

    Columns of the trajectory: ``step`` (int64, from 0), ``task`` (int32), ``loss`` and ``correct``
    (float32, of the prediction made before the update; ``correct`` is the share of the batch) and
    ``alpha.<block>`` (float32, the step size used in that step). Columns of ``tasks.parquet``:
    ``task, first_step, steps, online_accuracy, test_accuracy`` (NaN when not measured).

    Use it as a context manager: leaving normally finishes the run (``summary.json``), leaving by an
    exception keeps what was recorded and leaves the run unfinished.

    Args:
        folder: the run folder; made if missing. What an unfinished run left there is moved aside.
        optimizer: whose step sizes are recorded: `MetaOptimize`, or any torch optimiser, one step
            size per parameter group. Or the names of the step sizes, where each `record` is given
            their values or follows a `before_step`.
        config: everything needed to repeat the run; must have a JSON form. What the optimiser was
            made with is added to it.
        part_steps: steps a Parquet part, which also ends with its task; a kill loses at most these.
        overwrite: replace a finished run.
        resume: a `Checkpoint`, of which the recorder becomes a part, or what `state` gave: the
            unfinished run in the folder goes on from there, its parts those of a run never stopped.

    Raises:
        BadArgument: for what is no optimiser, names that are missing or repeat, a config without
            a JSON form, or a ``resume`` that is no recorder's state.
        RunFolderError: for a folder that cannot be written or holds a finished run; with ``resume``
            also for one of another config, or that lacks parts.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        optimizer: torch.optim.Optimizer | Sequence[str],
        *,
        config: Mapping[str, Any] | None = None,
        part_steps: int = 10_000,
        overwrite: bool = False,
        resume: Checkpoint | Mapping[str, Any] | None = None,
    ) -> None:
        config = {} if config is None else config
        require(isinstance(config, Mapping), "config", config, "must be a mapping, such as a dict")
        attached = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
        if attached is not None:
            about = {"method": type(attached).__name__, "optimizer": describe_optimizer(attached)}
            config, optimizer = {**about, **config}, block_names(attached)
        names = checked_names(optimizer)
        part_steps = whole("part_steps", part_steps, least=1)
        config_text = as_json("config", dict(config))
        self.block_names = names
        self.folder = RunFolder(folder)
        self._checkpoint = resume if isinstance(resume, Checkpoint) else None
        if self._checkpoint is not None:
            resume = None if overwrite else self._checkpoint.saved(PART)
            self._checkpoint.add(PART, self)
        self._part, before = Part(), 0.0
        if resume is None:
            self.folder.prepare(overwrite)
            if overwrite and self._checkpoint is not None:
                self._checkpoint.clear()
            self.folder.write_json(self.folder.config_file, config_text)
            environment = as_json("environment", describe_environment())
            self.folder.write_json(self.folder.environment_file, environment)
        else:
            self._part, before = Part.restored(resume, names), seconds_of(resume)
            self.folder.reopen(config_text, self._part.number, self._part.first_step)
        self._part_steps, self._n_blocks = part_steps, len(names)
        self._alpha_before: Any = None
        self._optimizer: Any = attached
        self._follows = None if attached is None else follow(attached, self)
        self._closed = False
        self._started = time.monotonic() - before
        if resume is not None and self.folder.tasks_file.exists():
            self._write_tasks()  # it may count steps that are to be done again

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return self._part.steps

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the step sizes that ``optimizer``'s next step will use, for the next `record`.

        An optimiser that the recorder was made with does this by itself. Works with
        `MetaOptimize` and, reading ``group["lr"]``, with any torch optimiser that has a parameter
        group per block. Non-finite updates that the optimiser withheld are raised when a part is
        written.
        """
        self._optimizer = optimizer
        self._alpha_before = kept_alpha(self.block_names, alpha_of(optimizer))

    def record(
        self,
        task: int,
        loss: Number,
        correct: Number = math.nan,
        alpha: Number | Sequence[float] | Mapping[str, float] | None = None,
    ) -> None:
        """Record one step; a few microseconds, without synchronising with the device.

        Args:
            task: index of the task, from 0.
            loss: mean loss of the batch before the update.
            correct: share of the batch predicted right before the update, or a bool tensor that
                says it of each sample; NaN where nothing is classified.
            alpha: step sizes used in this step, shape (blocks,) or by name; when left out, those
                that the optimiser's last step used.

        Raises:
            BadArgument: if ``alpha`` does not have one value a block, a value is no number, or the
                optimiser has not made a step yet.
            RunFolderError: if a part cannot be written; its rows stay in memory, and `flush` tries
                again. Also if the recorder is closed.
            NonFiniteError: after a part was written, if it holds a step size that is not finite or
                the optimiser withheld an update.
        """
        self._check_open()
        kept = self._used() if alpha is None else kept_alpha(self.block_names, alpha)
        row = (kept_task(task), kept_number("loss", loss), kept_share("correct", correct), kept)
        self._part.rows.append(row)
        self._alpha_before = None
        if self._part.count >= self._part_steps:
            self.flush()

    def _used(self) -> Any:
        """The step sizes of the last step; where a step was left out, those that still hold."""
        if self._alpha_before is not None:
            return self._alpha_before
        if self._follows is None:
            bad("alpha", None, "pass alpha or call before_step first")
        if not self._part.steps:
            bad("alpha", None, "no step was made yet: record after optimizer.step(), or pass alpha")
        return kept_alpha(self.block_names, alpha_of(self._optimizer))

    def end_task(self, task: int, test_accuracy: float = math.nan) -> float:
        """Write what was recorded and the task's row; returns its online accuracy.

        Args:
            task: index of the task.
            test_accuracy: accuracy on the task's test set, in [0, 1]; NaN if not measured.

        Raises:
            BadArgument: if no step of the task was recorded, or the accuracy is impossible.
            RunFolderError, NonFiniteError: as `record` does.
        """
        task = kept_task(task)
        accuracy = float(kept_share("test_accuracy", test_accuracy))
        try:
            self.flush()
        finally:
            known = task in self._part.tasks
            if known:
                self._part.tasks[task].test_accuracy = accuracy
                self._write_tasks()
        require(known, "task", task, "record at least one step of the task before it ends")
        return self._part.tasks[task].accuracy

    def flush(self) -> None:
        """Write the steps recorded since the last part as a part of their own."""
        part = self._part
        if not part.count:
            return
        columns = part.columns(self.block_names)
        write_table(part_file(self.folder.trajectory, part.number), columns)
        self._part = part.successor(columns)
        check = getattr(self._optimizer, "check_finite", None)
        if check is not None:
            check()
        part.check_finite(columns, self.block_names)

    def state(self) -> dict[str, Any]:
        """Everything from which ``Recorder(..., resume=state)`` goes on, after a kill as well.

        Holds numbers, text and tensors only: ``torch.load(weights_only=True)`` reads it. Writes no
        part and ends none, so that the files of a run that goes on are those of one that was never
        stopped. Shares nothing with the recorder.

        Raises:
            RunFolderError: if the recorder is closed.
        """
        self._check_open()
        self._part = self._part.pack(self._n_blocks)  # what is kept on a device is fetched once
        return {
            "blocks": list(self.block_names),
            **self._part.state(self._n_blocks),
            "seconds": time.monotonic() - self._started,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave of this recorder, or of the one that it was resumed from."""
        self._part = Part.restored(state, self.block_names)

    def _check_open(self) -> None:
        if self._closed:
            raise RunFolderError(f"{self.folder.path} is closed: record into a new Recorder")

    def close(self, summary: dict[str, Any] | None = None) -> None:
        """Write everything and finish the run.

        ``summary.json`` gets ``steps``, ``tasks``, ``cumulative_accuracy``, ``seconds``,
        ``finished`` (UTC time) and the entries of ``summary``. Closing twice does nothing.

        Raises:
            BadArgument: if ``summary`` has no JSON form.
            RunFolderError, NonFiniteError: as `record` does; the run is then not finished.
        """
        if self._closed:
            return
        given = {key: null_if_nan(value) for key, value in (summary or {}).items()}
        as_json("summary", given)
        self.flush()
        self._write_tasks()
        facts = {
            **self._part.totals(),
            "seconds": round(time.monotonic() - self._started, 3),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.folder.write_json(self.folder.summary_file, as_json("summary", {**facts, **given}))
        if self._checkpoint is not None:
            with suppress(RunFolderError):  # the run is finished; a later start removes them
                self._checkpoint.clear()
        self._release()

    def _release(self) -> None:
        self._closed = True
        if self._follows is not None:
            self._follows.remove()
        self.folder.release()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            try:
                for keep in (self.flush, self._write_tasks):
                    with suppress(ClmetaError):  # the error on its way out says more
                        keep()
            finally:
                self._release()

    def _write_tasks(self) -> None:
        write_table(self.folder.tasks_file, task_columns(self._part.tasks))
