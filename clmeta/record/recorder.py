"""Record every step of a run into a run folder, cheaply and so that a kill loses little."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmeta.errors import ClmetaError, NonFiniteError, RunFolderError, bad, require
from clmeta.record.environment import describe_environment
from clmeta.record.rows import (
    TaskTotals,
    added,
    as_array,
    kept_number,
    kept_vector,
    null_if_nan,
    write_table,
)
from clmeta.record.runfolder import RunFolder, as_json

Number = float | bool | Tensor
Row = tuple[int, Any, Any, Any]


@dataclass
class _Part:
    """The part being filled and the totals of all parts before it.

    Flushing swaps it for its successor in one assignment, so that an interrupt at any point
    neither drops rows nor writes them twice.
    """

    number: int = 0
    first_step: int = 0
    rows: list[Row] = field(default_factory=list)
    tasks: dict[int, TaskTotals] = field(default_factory=dict)


class Recorder:
    """Writes a run folder: the trajectory at every step, totals per task, configuration.

    Columns of the trajectory: ``step`` (int64, from 0), ``task`` (int32), ``loss`` and ``correct``
    (float32, of the prediction made before the update; ``correct`` is the share of the batch) and
    ``alpha.<block>`` (float32, the step size used in that step). Columns of ``tasks.parquet``:
    ``task, first_step, steps, online_accuracy, test_accuracy`` (NaN when not measured).

    Use it as a context manager: leaving normally finishes the run (``summary.json``), leaving by an
    exception keeps what was recorded and leaves the run unfinished.

    Args:
        folder: the run folder; made if missing. What an unfinished run left there is moved aside.
        block_names: the step sizes recorded, in the order of ``alpha``.
        config: everything needed to repeat the run; must have a JSON form.
        part_steps: steps a Parquet part; a killed process loses at most that many. A part also ends
            with its task.
        overwrite: replace a finished run.

    Raises:
        BadArgument: for block names that are missing or repeat, or a config without a JSON form.
        RunFolderError: for a folder that cannot be written or holds a finished run.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        block_names: Sequence[str],
        *,
        config: dict[str, Any],
        part_steps: int = 10_000,
        overwrite: bool = False,
    ) -> None:
        names = list(block_names)
        require(len(names) > 0, "block_names", names, "name at least one block")
        require(len(set(names)) == len(names), "block_names", names, "names must differ")
        require(part_steps >= 1, "part_steps", part_steps, "must be at least 1")
        config_text = as_json("config", config)
        self.block_names = names
        self.folder = RunFolder(folder)
        self.folder.prepare(overwrite)
        self.folder.write_json(self.folder.config_file, config_text)
        environment = as_json("environment", describe_environment())
        self.folder.write_json(self.folder.environment_file, environment)
        self._part_steps = part_steps
        self._part = _Part()
        self._n_blocks = len(names)
        self._alpha_before: Any = None
        self._optimizer: Any = None
        self._closed = False
        self._started = time.monotonic()

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return self._part.first_step + len(self._part.rows)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the step sizes that ``optimizer``'s next step will use, for the next `record`.

        Works with `MetaOptimize` and, reading ``group["lr"]``, with any torch optimiser that has a
        parameter group per block. Non-finite updates that the optimiser withheld are raised when a
        part is written.
        """
        self._optimizer = optimizer
        alpha = getattr(optimizer, "alpha", None)
        if alpha is None:
            alpha = [group["lr"] for group in optimizer.param_groups]
        self._alpha_before = kept_vector(alpha)

    def record(
        self,
        task: int,
        loss: Number,
        correct: Number,
        alpha: Number | Sequence[float] | None = None,
    ) -> None:
        """Record one step; a few microseconds, without synchronising with the device.

        Args:
            task: index of the task, from 0.
            loss: mean loss of the batch before the update.
            correct: share of the batch predicted right before the update.
            alpha: step sizes used in this step, shape (blocks,); when left out, those kept by
                `before_step`.

        Raises:
            BadArgument: if ``alpha`` does not have one value a block, or a value is no number.
            RunFolderError: if a part cannot be written; its rows stay in memory, and `flush` tries
                again. Also if the recorder is closed.
            NonFiniteError: after a part was written, if it holds a step size that is not finite or
                the optimiser withheld an update.
        """
        if self._closed:
            raise RunFolderError(f"{self.folder.path} is closed: record into a new Recorder")
        if alpha is not None:
            kept = kept_vector(alpha)
        elif self._alpha_before is not None:
            kept, self._alpha_before = self._alpha_before, None
        else:
            bad("alpha", None, "pass alpha or call before_step first")
        if len(kept) != self._n_blocks:
            bad("alpha", kept, f"must have {self._n_blocks} values, one a block")
        part = self._part
        part.rows.append((task, kept_number("loss", loss), kept_number("correct", correct), kept))
        if len(part.rows) >= self._part_steps:
            self.flush()

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
        columns = self._columns(part)
        path = self.folder.trajectory / f"part-{part.number:05d}.parquet"
        write_table(path, columns)
        steps = part.first_step + len(part.rows)
        self._part = _Part(part.number + 1, steps, [], added(part.tasks, columns))
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
        self._closed = True
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
                self._closed = True
                self.folder.release()

    def _columns(self, part: _Part) -> dict[str, np.ndarray]:
        task, loss, correct, alpha = zip(*part.rows, strict=True)
        count = len(part.rows)
        values = as_array(alpha, self._n_blocks)
        columns: dict[str, np.ndarray] = {
            "step": np.arange(part.first_step, part.first_step + count, dtype=np.int64),
            "task": np.asarray(task, dtype=np.int32),
            "loss": as_array(loss, 1).reshape(count),
            "correct": as_array(correct, 1).reshape(count),
        }
        for index, name in enumerate(self.block_names):
            columns[f"alpha.{name}"] = np.ascontiguousarray(values[:, index])
        return columns

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
        names, totals = sorted(self._part.tasks), self._part.tasks
        columns: dict[str, np.ndarray] = {
            "task": np.array(names, np.int32),
            "first_step": np.array([totals[task].first_step for task in names], np.int64),
            "steps": np.array([totals[task].steps for task in names], np.int64),
            "online_accuracy": np.array([totals[task].accuracy for task in names], np.float64),
            "test_accuracy": np.array([totals[task].test_accuracy for task in names], np.float64),
        }
        write_table(self.folder.tasks_file, columns)
