"""From values handed over at each step to columns of a Parquet file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmeta.errors import bad
from clmeta.record.runfolder import write_atomically

#: Task, loss, share predicted right, step sizes.
Row = tuple[int, Any, Any, Any]


def kept_number(argument: str, value: Any) -> Any:
    """A value to keep: a number, or a copy on a device that must not be waited for.

    Raises:
        BadArgument: names ``argument`` if the value is a tensor of several elements.
    """
    if not isinstance(value, Tensor):
        try:
            return float(value)
        except (TypeError, ValueError):
            bad(argument, value, "must be one number a step")
    if value.numel() != 1:
        bad(argument, value, "must be one number a step: take the mean over the batch")
    return value.item() if value.is_cpu else value.detach().clone()


def kept_share(argument: str, value: Any) -> Any:
    """The share of a batch that was predicted right, kept likewise; also from its hits, (n,)."""
    if isinstance(value, Tensor) and value.dtype == torch.bool and value.numel() > 1:
        value = value.float().mean()
    return kept_number(argument, value)


def kept_vector(values: Any) -> Sequence[Any] | Tensor:
    """One value a block, shape (blocks,), kept likewise: the optimiser changes its own in place."""
    if isinstance(values, Tensor):
        flat = values.detach() if values.ndim == 1 else values.detach().reshape(-1)
        return tuple(flat.tolist()) if flat.is_cpu else flat.clone()
    try:
        return tuple(float(value) for value in (values if np.ndim(values) else (values,)))
    except (TypeError, ValueError):
        bad("alpha", values, "must be numbers, one a block")


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


def null_if_nan(value: Any) -> Any:
    """JSON has no NaN: None stands for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_array(values: tuple[Any, ...], width: int) -> np.ndarray:
    """Float32 array (len(values), width) from tensors, numbers or sequences."""
    if isinstance(values[0], Tensor):
        try:
            stacked = torch.stack(values)
            return stacked.reshape(len(values), width).float().cpu().numpy()
        except (RuntimeError, TypeError):
            pass  # tensors of several shapes or devices, or numbers among them
    listed = [value.tolist() if isinstance(value, Tensor) else value for value in values]
    try:
        return np.array(listed, dtype=np.float32).reshape(len(values), width)
    except ValueError:  # shape () beside shape (1,)
        return np.array([np.reshape(value, width) for value in listed], dtype=np.float32)


@dataclass
class Part:
    """The part being filled and the totals of all parts before it.

    Flushing swaps it for its `successor` in one assignment, so that an interrupt at any point
    neither drops rows nor writes them twice.
    """

    number: int = 0
    first_step: int = 0
    rows: list[Row] = field(default_factory=list)
    tasks: dict[int, TaskTotals] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps recorded in this part and all before it."""
        return self.first_step + len(self.rows)

    def columns(self, block_names: Sequence[str]) -> dict[str, np.ndarray]:
        """The part's table: a row for each step."""
        task, loss, correct, alpha = zip(*self.rows, strict=True)
        count = len(self.rows)
        values = as_array(alpha, len(block_names))
        columns: dict[str, np.ndarray] = {
            "step": np.arange(self.first_step, self.steps, dtype=np.int64),
            "task": np.asarray(task, dtype=np.int32),
            "loss": as_array(loss, 1).reshape(count),
            "correct": as_array(correct, 1).reshape(count),
        }
        for index, name in enumerate(block_names):
            columns[f"alpha.{name}"] = np.ascontiguousarray(values[:, index])
        return columns

    def successor(self, columns: dict[str, np.ndarray]) -> Part:
        """The empty part after this one, whose columns are given."""
        tasks = {task: TaskTotals(**vars(totals)) for task, totals in self.tasks.items()}
        for task in np.unique(columns["task"]):
            chosen = columns["task"] == task
            first = int(columns["step"][int(np.argmax(chosen))])
            totals = tasks.setdefault(int(task), TaskTotals(first))
            totals.steps += int(chosen.sum())
            totals.correct += float(columns["correct"][chosen].sum(dtype=np.float64))
        return Part(self.number + 1, self.steps, [], tasks)


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


def write_table(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns as one Parquet file, complete or not at all. Raises RunFolderError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # pa.table(columns) would import pandas, most of a second, in the middle of training.
    arrays = [
        pa.Array.from_buffers(pa.from_numpy_dtype(c.dtype), len(c), [None, pa.py_buffer(c)])
        for c in columns.values()
    ]
    table = pa.table(arrays, names=list(columns))
    write_atomically(path, lambda file: pq.write_table(table, file, use_dictionary=["task"]))
