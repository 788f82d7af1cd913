"""From values handed over at each step to columns of a Parquet file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmeta.errors import bad, require
from clmeta.ground.checks import whole
from clmeta.record.files import write_atomically

#: Task, loss, share predicted right, step sizes.
Row = tuple[int, Any, Any, Any]
#: The largest index of a task that an int32 column holds.
LAST_TASK = 2**31 - 1


def kept_task(value: Any) -> int:
    """The index of a task. Raises BadArgument for anything that a column of int32 cannot hold."""
    task = whole("task", value, least=0)
    require(task <= LAST_TASK, "task", value, f"must be at most {LAST_TASK}")
    return task


def kept_number(argument: str, value: Any) -> Any:
    """A value to keep: a number, or a copy on a device that must not be waited for.

    Raises:
        BadArgument: names ``argument`` if the value is no number, or several.
    """
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        return _kept_tensor(argument, value, ())
    return _float(argument, value, "must be one number a step")


def kept_share(argument: str, value: Any) -> Any:
    """The share of a batch that was predicted right, kept likewise; also from its hits, (n,)."""
    if isinstance(value, Tensor) and value.dtype == torch.bool and value.numel() > 1:
        value = value.float().mean()
    share = kept_number(argument, value)
    if type(share) is float and not 0 <= share <= 1 and share == share:
        bad(argument, value, "must be a share between 0 and 1, or NaN where nothing is classified")
    return share


def kept_alpha(block_names: Sequence[str], value: Any) -> Sequence[Any] | Tensor:
    """Step sizes, in order or by name, as one value a block: shape (blocks,), kept likewise.

    Raises:
        BadArgument: for what is no number, or not one a block.
    """
    blocks = ", ".join(block_names)
    if isinstance(value, Mapping):
        names = [*value]
        alike = len(names) == len(block_names) and all(name in value for name in block_names)
        require(alike, "alpha", value, f"must have the blocks {blocks}")
        value = [value[name] for name in block_names]
    kept = _vector(value)
    if len(kept) != len(block_names):
        bad("alpha", kept, f"must have {len(block_names)} values, one a block ({blocks})")
    return kept


def _vector(value: Any) -> Sequence[Any] | Tensor:
    """The optimiser changes its own in place, so values are copied."""
    mend = "must be numbers, one a block"
    if isinstance(value, Tensor):
        kept = _kept_tensor("alpha", value, (-1,))
        return tuple(kept) if type(kept) is list else kept
    if isinstance(value, str | bytes):
        bad("alpha", value, mend)
    shape: Any = value
    each = value if isinstance(value, Iterable) and np.ndim(shape) else (value,)
    return tuple([x if type(x) is float else _float("alpha", x, mend) for x in each])


def _kept_tensor(argument: str, value: Tensor, shape: tuple[int, ...]) -> Any:
    """A number or list from the CPU; a copy of the given shape from a device."""
    if not shape and value.numel() != 1:
        bad(argument, value, "must be one number a step: take the mean over the batch")
    plain = value.layout == torch.strided and not (value.is_meta or value.is_complex())
    require(plain, argument, value, "must hold real numbers")
    flat = value.detach() if value.ndim == len(shape) else value.detach().reshape(shape)
    if not flat.is_cpu:
        return flat.clone()
    listed: Any = flat.tolist()
    return [float(x) for x in listed] if shape else float(listed)


def _float(argument: str, value: Any, mend: str) -> float:
    if isinstance(value, str | bytes) or np.ndim(value):
        bad(argument, value, mend)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        bad(argument, value, mend)


def null_if_nan(value: Any) -> Any:
    """JSON has no NaN: None stands for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_array(values: tuple[Any, ...], width: int) -> np.ndarray:
    """Float32 array (len(values), width) from tensors, numbers or sequences."""
    if not values:
        return np.empty((0, width), np.float32)
    with np.errstate(over="ignore"):  # what float32 does not hold is infinite there
        return _as_array(values, width)


def _as_array(values: tuple[Any, ...], width: int) -> np.ndarray:
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
