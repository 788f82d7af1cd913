"""Files that are complete or absent, and values as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clmeta.errors import RunFolderError, bad


@contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Turn the system's error into a RunFolderError that says what to do."""
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(
            f"cannot {action} {path}: {reason}; free space or choose a folder that can be written "
            "(what was written before is kept)"
        ) from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file that is complete or absent, whenever the process or machine stops.

    Args:
        path: the file; replaced as a whole if it is there already.
        write: called with a binary file to write to.

    Raises:
        RunFolderError: if the disk is full or the folder cannot be written; an older file at
            ``path`` is then untouched.
    """
    # A leading dot keeps a half-written file out of what pandas and pyarrow read from a folder.
    temporary = path.with_name(f".{path.name}.tmp")
    with explained(path, "write"):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def jsonable(value: Any) -> Any:
    """Numbers of numpy and torch as Python's own; json's ``default``."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def as_json(argument: str, content: dict[str, Any]) -> str:
    """``content`` as strict JSON text.

    Raises:
        BadArgument: names ``argument`` if something in it has no JSON form (NaN has none).
    """
    try:
        return json.dumps(content, indent=2, allow_nan=False, default=jsonable) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        bad(argument, content, f"{error}; use numbers, text, lists, dicts and None")
