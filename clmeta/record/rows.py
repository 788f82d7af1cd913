"""From values handed over at each step to columns of a Parquet file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmeta.errors import bad
from clmeta.record.runfolder import write_atomically


def kept_number(argument: str, value: Any) -> Any:
    """A value to keep: a number, or a copy on a device that must not be waited for.

    Raises:
        BadArgument: names ``argument`` if the value is a tensor of several elements.
    """
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        bad(argument, value, "must be one number a step: take the mean over the batch")
    return value.item() if value.is_cpu else value.detach().clone()


def kept_vector(values: Any) -> Sequence[Any] | Tensor:
    """One value a block, shape (blocks,), kept likewise: the optimiser changes its own in place."""
    if isinstance(values, Tensor):
        flat = values.detach() if values.ndim == 1 else values.detach().reshape(-1)
        return tuple(flat.tolist()) if flat.is_cpu else flat.clone()
    if isinstance(values, (int, float)):
        return (values,)
    return tuple(float(value) for value in values)


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


def added(tasks: dict[int, TaskTotals], columns: dict[str, np.ndarray]) -> dict[int, TaskTotals]:
    """The totals per task with a part's steps added."""
    result = {task: TaskTotals(**vars(totals)) for task, totals in tasks.items()}
    for task in np.unique(columns["task"]):
        chosen = columns["task"] == task
        first = int(columns["step"][int(np.argmax(chosen))])
        totals = result.setdefault(int(task), TaskTotals(first))
        totals.steps += int(chosen.sum())
        totals.correct += float(columns["correct"][chosen].sum(dtype=np.float64))
    return result


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
