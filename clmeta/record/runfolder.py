"""A run folder: where its files lie, whether the run finished, and how files are written safely.

::

    config.json       everything needed to repeat the run
    environment.json  versions, platform, git revision
    trajectory/       part-00000.parquet, part-00001.parquet, ...: one row a step
    tasks.parquet     one row a task
    summary.json      written last: a run is finished if and only if it is there
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clmeta.errors import RunFolderError, bad


@contextmanager
def _explained(path: Path, action: str) -> Iterator[None]:
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
    with _explained(path, "write"):
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
    except (TypeError, ValueError) as error:
        bad(argument, content, f"{error}; use numbers, text, lists, dicts and None")


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.environment_file = self.path / "environment.json"
        self.trajectory = self.path / "trajectory"
        self.tasks_file = self.path / "tasks.parquet"
        self.summary_file = self.path / "summary.json"
        self._unlock: Callable[[], object] | None = None

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.summary_file.is_file()

    @property
    def config(self) -> dict[str, Any]:
        """What the run was started with. Raises RunFolderError if missing or corrupt."""
        return self._read(self.config_file)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, platform and git revision. Raises RunFolderError if missing or corrupt."""
        return self._read(self.environment_file)

    @property
    def summary(self) -> dict[str, Any]:
        """What the run ended with. Raises RunFolderError if it did not finish."""
        return self._read(self.summary_file)

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            mend = "is this a run folder, and did the run get that far?"
            raise RunFolderError(f"{file} is missing: {mend}") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{file} cannot be read ({error}): repeat the run") from error
        if not isinstance(content, dict):
            raise RunFolderError(f"{file} does not hold a JSON object: repeat the run")
        return content

    def write_json(self, file: Path, content: str) -> None:
        """Write text to ``file``, complete or not at all."""
        write_atomically(file, lambda stream: stream.write(content.encode("utf-8")))

    def check_free(self, overwrite: bool = False) -> None:
        """Refuse a finished run; writes nothing.

        Raises:
            RunFolderError: if the run is finished and ``overwrite`` is false.
        """
        if self.finished and not overwrite:
            raise RunFolderError(
                f"{self.path} holds a finished run: choose another folder or pass overwrite=True"
            )

    def prepare(self, overwrite: bool = False) -> None:
        """Make the folder ready for a new run and hold it against all others.

        What an unfinished run left is moved to ``trajectory.interrupted-N`` (with its
        ``config.json`` and ``tasks.parquet``); a finished run is removed if ``overwrite`` says so.

        Raises:
            RunFolderError: if a finished run is there, another process or recorder writes to it,
                or the folder cannot be written.
        """
        self.check_free(overwrite)
        with _explained(self.path, "make"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold()
            try:
                self.check_free(overwrite)  # another run may have finished until we got hold of it
            except RunFolderError:
                self.release()
                raise
            if self.finished:
                self.clear()
            elif self.trajectory.is_dir() and any(self.trajectory.glob("part-*.parquet")):
                self._set_aside()
            self.trajectory.mkdir(exist_ok=True)
            for leftover in (*self.trajectory.glob(".*.tmp"), *self.path.glob(".*.tmp")):
                leftover.unlink()

    def clear(self) -> None:
        """Remove what a finished run recorded; nothing happens where none is."""
        if self.finished:
            # The marker goes first: a kill in between leaves an unfinished run, not a lie.
            self.summary_file.unlink()
            shutil.rmtree(self.trajectory, ignore_errors=True)
            self.tasks_file.unlink(missing_ok=True)

    def _set_aside(self) -> None:
        number = 0
        while (aside := self.path / f"trajectory.interrupted-{number}").exists():
            number += 1
        self.trajectory.rename(aside)
        for file in (self.config_file, self.environment_file, self.tasks_file):
            if file.exists():
                file.rename(aside / f"_{file.name}")  # "_": not read as part of the trajectory

    def _hold(self) -> None:
        """Lock the folder; the lock ends with this object or process, however that ends."""
        lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        self.release()
        self._unlock = weakref.finalize(self, os.close, lock)
        try:
            if not _locked(lock):
                gc.collect()  # it may be held by what nobody refers to any more
                if not _locked(lock):
                    self.release()
                    raise RunFolderError(
                        f"{self.path} is being written by another process, or by another recorder "
                        "of this one: close that one or choose another folder"
                    )
        except RunFolderError:
            raise
        except OSError:
            pass  # a file system without locks

    def release(self) -> None:
        """Let others write to the folder."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None


def _locked(file: int) -> bool:
    """Lock an open file against every other that is open on it, in this process too."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
