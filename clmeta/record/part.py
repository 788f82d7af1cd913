"""The part of a trajectory being filled, and the totals of all parts before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmeta.errors import NonFiniteError, bad, require
from clmeta.ground.checks import finite
from clmeta.record.rows import Row, as_array, null_if_nan

#: Rows as arrays: task (n,), loss (n,), correct (n,), alpha (n, blocks).
Table = dict[str, np.ndarray]
#: What a column of rows, and of totals, is kept as.
ROWS = {"task": np.int32, "loss": np.float32, "correct": np.float32, "alpha": np.float32}
TOTALS = {
    "task": np.int32,
    "first_step": np.int64,
    "steps": np.int64,
    "correct": np.float64,
    "test_accuracy": np.float64,
}
#: Seconds that no run takes.
LONGEST = 1e12


@dataclass
class TaskTotals:
    """Where a task began, its steps, and how many were predicted right."""

    first_step: int
    steps: int = 0
    correct: float = 0.0
    test_accuracy: float = math.nan

    @property
    def accuracy(self) -> float:
        """Online accuracy: the share predicted right before the update, over the task's steps."""
        return self.correct / self.steps


@dataclass
class Part:
    """The part being filled and the totals of all parts before it.

    Flushing swaps it for its `successor` in one assignment, so that an interrupt at any point
    neither drops rows nor writes them twice.

    Attributes:
        number: of the part.
        first_step: its first.
        packed: its first rows, already as arrays; None if there are none.
        rows: those after, as they were kept.
        tasks: totals of the parts before.
    """

    number: int = 0
    first_step: int = 0
    packed: Table | None = None
    rows: list[Row] = field(default_factory=list)
    tasks: dict[int, TaskTotals] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Rows in this part."""
        return len(self.rows) + (0 if self.packed is None else len(self.packed["task"]))

    @property
    def steps(self) -> int:
        """Steps recorded in this part and all before it."""
        return self.first_step + self.count

    def table(self, n_blocks: int) -> Table:
        """All rows as arrays."""
        columns: list[tuple[Any, ...]] = [*zip(*self.rows, strict=True)] or [()] * len(ROWS)
        task, loss, correct, alpha = columns
        count = len(self.rows)
        made: Table = {
            "task": np.asarray(task, dtype=np.int32),
            "loss": as_array(loss, 1).reshape(count),
            "correct": as_array(correct, 1).reshape(count),
            "alpha": as_array(alpha, n_blocks),
        }
        if self.packed is None:
            return made
        return {name: np.concatenate([self.packed[name], made[name]]) for name in ROWS}

    def pack(self, n_blocks: int) -> Part:
        """The same part with all of its rows as arrays."""
        return replace(self, packed=self.table(n_blocks), rows=[]) if self.rows else self

    def columns(self, block_names: Sequence[str]) -> dict[str, np.ndarray]:
        """The part as it is written: a row for each step."""
        table = self.table(len(block_names))
        alpha = table.pop("alpha")
        columns = {"step": np.arange(self.first_step, self.steps, dtype=np.int64), **table}
        for index, name in enumerate(block_names):
            columns[f"alpha.{name}"] = np.ascontiguousarray(alpha[:, index])
        return columns

    @staticmethod
    def check_finite(columns: dict[str, np.ndarray], block_names: Sequence[str]) -> None:
        """Raise NonFiniteError, naming step and block, for a step size that is not finite."""
        for name in block_names:
            finite = np.isfinite(columns[f"alpha.{name}"])
            if not finite.all():
                step = columns["step"][int(np.argmin(finite))]
                raise NonFiniteError(f"step {step}: the step size of block {name!r} is not finite")

    def successor(self, columns: dict[str, np.ndarray]) -> Part:
        """The empty part after this one, whose columns are given."""
        tasks = {task: TaskTotals(**vars(totals)) for task, totals in self.tasks.items()}
        for task in np.unique(columns["task"]):
            chosen = columns["task"] == task
            first = int(columns["step"][int(np.argmax(chosen))])
            totals = tasks.setdefault(int(task), TaskTotals(first))
            totals.steps += int(chosen.sum())
            totals.correct += float(columns["correct"][chosen].sum(dtype=np.float64))
        return Part(self.number + 1, self.steps, tasks=tasks)

    def totals(self) -> dict[str, Any]:
        """Steps, tasks and online accuracy of all parts before this one."""
        correct = sum(task.correct for task in self.tasks.values())
        share = correct / self.first_step if self.first_step else math.nan
        return {
            "steps": self.first_step,
            "tasks": len(self.tasks),
            "cumulative_accuracy": null_if_nan(share),
        }

    # ---- as plain data -------------------------------------------------------------------------

    def state(self, n_blocks: int) -> dict[str, Any]:
        """Numbers and tensors from which `restored` makes an equal part."""
        totals = self.tasks.items()
        tasks = {
            "task": [task for task, _ in totals],
            **{name: [getattr(each, name) for _, each in totals] for name in [*TOTALS][1:]},
        }
        kinds = TOTALS.items()
        return {
            "part": self.number,
            "first_step": self.first_step,
            "steps": self.steps,
            "tasks": {name: torch.from_numpy(np.array(tasks[name], kind)) for name, kind in kinds},
            "rows": {
                name: torch.from_numpy(array.copy()) for name, array in self.table(n_blocks).items()
            },
        }

    @classmethod
    def restored(cls, state: Any, block_names: list[str], argument: str = "resume") -> Part:
        """The part of a recorder whose state is given.

        Raises:
            BadArgument: names the entry that is missing, of another kind, or does not fit.
        """
        blocks, n_blocks = entry(state, "blocks", argument), len(block_names)
        mend = f"must be those of the recorder: {', '.join(block_names)}"
        same = isinstance(blocks, list) and blocks == block_names
        require(same, f"{argument}['blocks']", blocks, mend)
        number = _count(state, "part", argument)
        first_step = _count(state, "first_step", argument)
        rows = _arrays(state, "rows", ROWS, argument, n_blocks)
        totals = _arrays(state, "tasks", TOTALS, argument, n_blocks)
        steps, mend = _count(state, "steps", argument), "does not agree with the other entries"
        agree = steps == first_step + len(rows["task"]) and (number > 0) == (first_step > 0)
        require(agree, f"{argument}['steps']", steps, mend)
        agree = int(totals["steps"].sum()) == first_step and bool((totals["steps"] > 0).all())
        require(agree, f"{argument}['tasks']['steps']", totals["steps"].tolist(), mend)
        lines = zip(*(totals[name].tolist() for name in TOTALS), strict=True)
        tasks = {task: TaskTotals(*rest) for task, *rest in lines}
        require(len(tasks) == len(totals["task"]), f"{argument}['tasks']['task']", [*tasks], mend)
        return cls(number, first_step, rows if len(rows["task"]) else None, [], tasks)


def entry(holder: Any, key: str, argument: str) -> Any:
    """A value of a recorder's state. Raises BadArgument where there is none."""
    mend = "must be what Recorder.state() gave"
    require(isinstance(holder, Mapping), argument, holder, mend)
    require(key in holder, argument, [*holder], f"lacks {key!r}; it {mend}")
    return holder[key]


def seconds_of(state: Any, argument: str = "resume") -> float:
    """The seconds that a recorder's state counts. Raises BadArgument for anything else."""
    seconds = entry(state, "seconds", argument)
    fits = finite(seconds) and 0 <= seconds < LONGEST
    require(fits, f"{argument}['seconds']", seconds, "must be a number of at least 0")
    return float(seconds)


def _count(state: Any, key: str, argument: str) -> int:
    value = entry(state, key, argument)
    if type(value) is not int or not 0 <= value < 2**62:
        bad(f"{argument}[{key!r}]", value, "must be a whole number of at least 0")
    return value


def _arrays(state: Any, key: str, kinds: Mapping[str, Any], argument: str, width: int) -> Table:
    holder, argument = entry(state, key, argument), f"{argument}[{key!r}]"
    found: Table = {}
    for name, kind in kinds.items():
        value, where = entry(holder, name, argument), f"{argument}[{name!r}]"
        if not isinstance(value, Tensor):
            bad(where, value, "must be a tensor")
        count = len(found["task"]) if found else len(value) if value.ndim else 0
        shape = (count, width) if name == "alpha" else (count,)
        dtype, told = np.dtype(kind).name, f"{value.dtype} {tuple(value.shape)}"
        plain = value.layout == torch.strided and not value.is_meta
        fits = plain and value.shape == shape and str(value.dtype) == f"torch.{dtype}"
        require(fits, where, told, f"must be of dtype {dtype} and shape {shape}")
        found[name] = value.detach().cpu().numpy().copy()
    return found


def task_columns(tasks: Mapping[int, TaskTotals]) -> dict[str, np.ndarray]:
    """The table of tasks: a row for each."""
    names = sorted(tasks)
    return {
        "task": np.array(names, np.int32),
        "first_step": np.array([tasks[task].first_step for task in names], np.int64),
        "steps": np.array([tasks[task].steps for task in names], np.int64),
        "online_accuracy": np.array([tasks[task].accuracy for task in names], np.float64),
        "test_accuracy": np.array([tasks[task].test_accuracy for task in names], np.float64),
    }
