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

import numpy as np
import torch
from torch import Tensor

from clmeta.errors import ClmetaError, NonFiniteError, RunFolderError, bad, require
from clmeta.ground.checks import whole
from clmeta.record.attached import (
    alpha_of,
    block_names,
    checked_names,
    describe_optimizer,
    follow,
)
from clmeta.record.environment import describe_environment
from clmeta.record.rows import (
    Part,
    kept_number,
    kept_share,
    kept_vector,
    null_if_nan,
    task_columns,
    write_table,
)
from clmeta.record.runfolder import RunFolder, as_json

Number = float | bool | Tensor


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
        part_steps: steps a Parquet part; a killed process loses at most that many. A part also ends
            with its task.
        overwrite: replace a finished run.

    Raises:
        BadArgument: for what is no optimiser, names that are missing or repeat, or a config without
            a JSON form.
        RunFolderError: for a folder that cannot be written or holds a finished run.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        optimizer: torch.optim.Optimizer | Sequence[str],
        *,
        config: Mapping[str, Any] | None = None,
        part_steps: int = 10_000,
        overwrite: bool = False,
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
        self.folder.prepare(overwrite)
        self.folder.write_json(self.folder.config_file, config_text)
        environment = as_json("environment", describe_environment())
        self.folder.write_json(self.folder.environment_file, environment)
        self._part_steps = part_steps
        self._part = Part()
        self._n_blocks = len(names)
        self._alpha_before: Any = None
        self._optimizer: Any = attached
        self._follows = None if attached is None else follow(attached, self)
        self._closed = False
        self._started = time.monotonic()

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
        self._alpha_before = kept_vector(alpha_of(optimizer))

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
        if self._closed:
            raise RunFolderError(f"{self.folder.path} is closed: record into a new Recorder")
        kept = self._used() if alpha is None else kept_vector(self._listed(alpha))
        if len(kept) != self._n_blocks:
            blocks = ", ".join(self.block_names)
            bad("alpha", kept, f"must have {self._n_blocks} values, one a block ({blocks})")
        part = self._part
        task = whole("task", task)
        part.rows.append((task, kept_number("loss", loss), kept_share("correct", correct), kept))
        if len(part.rows) >= self._part_steps:
            self.flush()

    def _used(self) -> Any:
        """The step sizes of the last step; where a step was left out, those that still hold."""
        kept, self._alpha_before = self._alpha_before, None
        if kept is None and self._follows is None:
            bad("alpha", None, "pass alpha or call before_step first")
        if kept is None and not self._part.steps:
            bad("alpha", None, "no step was made yet: record after optimizer.step(), or pass alpha")
        return kept_vector(alpha_of(self._optimizer)) if kept is None else kept

    def _listed(self, alpha: Any) -> Any:
        if not isinstance(alpha, Mapping):
            return alpha
        mend = f"must have the blocks {', '.join(self.block_names)}"
        require(set(alpha) == set(self.block_names), "alpha", dict(alpha), mend)
        return [alpha[name] for name in self.block_names]

    def end_task(self, task: int, test_accuracy: float = math.nan) -> float:
        """Write what was recorded and the task's row; returns its online accuracy.

        Args:
            task: index of the task.
            test_accuracy: accuracy on the task's test set, in [0, 1]; NaN if not measured.

        Raises:
            BadArgument: if no step of the task was recorded, or the accuracy is impossible.
            RunFolderError, NonFiniteError: as `record` does.
        """
        accuracy = float(test_accuracy)
        possible = math.isnan(accuracy) or 0 <= accuracy <= 1
        require(possible, "test_accuracy", accuracy, "must be a share between 0 and 1")
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
        if not part.rows:
            return
        columns = part.columns(self.block_names)
        path = self.folder.trajectory / f"part-{part.number:05d}.parquet"
        write_table(path, columns)
        self._part = part.successor(columns)
        self._check_finite(columns)

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
        totals = self._part.tasks.values()
        correct = sum(task.correct for task in totals)
        facts = {
            "steps": self.steps,
            "tasks": len(totals),
            "cumulative_accuracy": null_if_nan(correct / self.steps if self.steps else math.nan),
            "seconds": round(time.monotonic() - self._started, 3),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.folder.write_json(self.folder.summary_file, as_json("summary", {**facts, **given}))
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
                with suppress(ClmetaError):  # the error on its way out says more
                    self.flush()
                with suppress(ClmetaError):
                    self._write_tasks()
            finally:
                self._release()

    def _check_finite(self, columns: dict[str, np.ndarray]) -> None:
        check = getattr(self._optimizer, "check_finite", None)
        if check is not None:
            check()
        for name in self.block_names:
            finite = np.isfinite(columns[f"alpha.{name}"])
            if not finite.all():
                step = columns["step"][int(np.argmin(finite))]
                raise NonFiniteError(f"step {step}: the step size of block {name!r} is not finite")

    def _write_tasks(self) -> None:
        write_table(self.folder.tasks_file, task_columns(self._part.tasks))
