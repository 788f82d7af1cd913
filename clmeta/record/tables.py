"""Parquet files of numbers, read so that a damaged one is an error that says which and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmeta.errors import RunFolderError

if TYPE_CHECKING:
    import numpy as np


def opened(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``. Raises RunFolderError if it is missing or damaged."""
    import pyarrow.parquet as pq

    with _readable(path):
        return pq.ParquetFile(path)


def read_table(
    path: Path, kinds: Mapping[str, Any], columns: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Columns of a file as arrays (rows,).

    Args:
        path: the file.
        kinds: the columns that it must have, and no others, with the type of each.
        columns: those wanted; None for all.

    Raises:
        RunFolderError: if it is missing, damaged, or has other columns, types or missing values.
    """
    import numpy as np
    import pyarrow as pa

    with opened(path) as file:
        there = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
        expected = {name: pa.from_numpy_dtype(np.dtype(kind)) for name, kind in kinds.items()}
        for name in {**expected, **there}:
            said, wanted = (types.get(name, "missing") for types in (there, expected))
            if said != wanted:
                wanted = "unknown" if wanted == "missing" else wanted
                _wrong(path, f"column {name!r} is {said}, not {wanted}")
        names = [name for name in there if columns is None or name in set(columns)]
        with _readable(path):
            table = file.read(columns=names)
    for name in names:
        if table.column(name).null_count and np.dtype(kinds[name]).kind != "f":  # else NaN
            _wrong(path, f"column {name!r} lacks values")
    return {name: table.column(name).to_numpy() for name in names}


def _wrong(path: Path, what: str) -> None:
    raise RunFolderError(f"{path}: {what}; repeat the run")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is missing: repeat the run") from error
    except RunFolderError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        reason = " ".join(str(error).split()) or "it is empty"
        raise RunFolderError(f"{path} cannot be read ({reason}): repeat the run") from error
