"""A run folder: where its files lie, whether the run finished, and how files are written safely.

::

    config.json       everything needed to repeat the run
    environment.json  versions, platform, git revision
    trajectory/       part-00000.parquet, part-00001.parquet, ...: one row a step
    tasks.parquet     one row a task
    checkpoints/      while it goes on: from where it goes on after a kill
    model.pt          the final weights, where they are kept
    summary.json      written last: a run is finished if and only if it is there
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmeta.errors import InUse, RunFolderError
from clmeta.ground.names import flatten
from clmeta.ground.reading import as_path, loads
from clmeta.record.files import explained, write_atomically
from clmeta.record.lock import lock
from clmeta.record.tables import read_table
from clmeta.record.trajectory import TASKS, keep_parts, read_trajectory

if TYPE_CHECKING:
    import numpy as np


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; need not exist yet. ``~`` is home.

    Raises:
        BadArgument: for what is no path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path("folder", path)
        self.config_file = self.path / "config.json"
        self.environment_file = self.path / "environment.json"
        self.trajectory = self.path / "trajectory"
        self.tasks_file = self.path / "tasks.parquet"
        self.model_file = self.path / "model.pt"
        self.summary_file = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"
        self._unlock: Callable[[], object] | None = None

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.summary_file.is_file()

    @property
    def checkpoint_files(self) -> list[Path]:
        """The checkpoints that it holds, the newest first."""
        return sorted(self.checkpoints.glob("step-*.pt"), reverse=True)

    @property
    def checkpointed(self) -> int | None:
        """Steps that were done when the newest of them was written; None without one."""
        newest = next(iter(self.checkpoint_files), None)
        return None if newest is None else int(newest.stem.removeprefix("step-"))

    def checkpoint_file(self, step: int) -> Path:
        """Where the checkpoint lies that is written after so many steps."""
        return self.checkpoints / f"step-{step:012d}.pt"

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

    def read_trajectory(self, columns: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """What was recorded of every step, (steps,) a column; of these columns, or of all.

        Raises:
            RunFolderError: if it is not what the run recorded; see `clmeta.record.trajectory`.
        """
        steps = None
        if self.finished:
            steps = self.summary.get("steps")
            if type(steps) is not int:
                raise RunFolderError(f"{self.summary_file}: steps={steps!r}: repeat the run")
        return read_trajectory(self.trajectory, steps, columns)

    def read_tasks(self) -> dict[str, np.ndarray]:
        """``tasks.parquet``, (tasks,) a column. Raises RunFolderError if missing or damaged."""
        return read_table(self.tasks_file, TASKS)

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            content = loads(file.read_text(encoding="utf-8"))
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
        with explained(self.path, "make"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold()
            try:
                self.check_free(overwrite)  # another run may have finished until we got hold of it
                if self.finished:
                    self.clear()
                elif self._begun():
                    self._set_aside()
                self.model_file.unlink(missing_ok=True)  # of the run before
                self.trajectory.mkdir(exist_ok=True)
                self._check_empty()
                self._remove_leftovers()
            except BaseException:
                self.release()
                raise

    def _check_empty(self) -> None:
        """Refuse to write among what was not removed: two runs would be read as one."""
        left = [path.name for path in self.trajectory.iterdir() if not path.name.startswith(".")]
        if left:
            raise RunFolderError(
                f"{self.trajectory} holds {left[0]}, which is of no run that is known here: remove "
                "it, or choose another folder"
            )

    def _remove_leftovers(self) -> None:
        """What a kill left half written; nobody else writes here."""
        for pattern in (".*.tmp", "trajectory*/.*.tmp", "checkpoints/.*.tmp"):
            for leftover in [*self.path.glob(pattern)]:
                leftover.unlink()

    def reopen(self, config_text: str, parts: int, steps: int) -> None:
        """Hold the folder of an unfinished run that goes on; parts past it are removed.

        Args:
            config_text: what ``config.json`` must hold.
            parts: how many parts the run has written up to where it goes on.
            steps: how many steps are in those.

        Raises:
            RunFolderError: if the run is finished, has another config, lacks parts or holds other
                ones, is being written by another, or the folder cannot be written.
        """
        with explained(self.path, "open"):
            self._check_reopened(config_text)
            self._hold()
            try:
                self._check_reopened(config_text)
                keep_parts(self.trajectory, parts, steps)
                self._remove_leftovers()
            except BaseException:
                self.release()
                raise

    def _check_reopened(self, config_text: str) -> None:
        if self.finished:
            raise RunFolderError(f"{self.path} holds a finished run: it cannot go on")
        there, given = flatten(self.config), flatten(json.loads(config_text))
        differing = [
            f"{name}={there.get(name)!r} there and {given.get(name)!r} here"
            for name in {**there, **given}
            if (name in there, there.get(name)) != (name in given, given.get(name))
        ]
        if differing:
            raise RunFolderError(
                f"{self.path} holds a run of another config ({'; '.join(differing[:5])}): repeat "
                "its options, or choose another folder"
            )

    def clear(self) -> None:
        """Remove what a finished run recorded; nothing happens where none is.

        Raises:
            RunFolderError: if something cannot be removed. Links, which may lead to what is shared,
                are refused before anything is.
        """
        if not self.finished:
            return
        folders = [path for path in (self.trajectory, self.checkpoints) if path.exists()]
        for path in folders:
            if path.is_symlink() or not path.is_dir():
                raise RunFolderError(
                    f"{path} is {'a link' if path.is_symlink() else 'no folder'}, which is not "
                    "overwritten: remove it, or choose another folder"
                )
        with explained(self.path, "remove what is in"):
            # The marker goes first: a kill in between leaves an unfinished run, not a lie.
            self.summary_file.unlink()
            for path in folders:
                shutil.rmtree(path)
            self.tasks_file.unlink(missing_ok=True)

    def _begun(self) -> bool:
        """Whether an unfinished run has left anything that is worth keeping."""
        kept = (*self.trajectory.glob("part-*.parquet"), *self.checkpoint_files)
        return any(kept) or (self.path / ".interrupted").exists()

    def _set_aside(self) -> None:
        number = 0
        while (aside := self.path / f"trajectory.interrupted-{number}").exists():
            number += 1
        # First what a start would go on from: it needs all the rest.
        waiting = self.path / ".interrupted"
        waiting.mkdir(exist_ok=True)
        known = (self.checkpoints, self.config_file, self.environment_file, self.tasks_file)
        for file in known:
            if file.exists():
                file.rename(waiting / f"_{file.name}")  # "_": not read as part of the trajectory
        self.trajectory.mkdir(exist_ok=True)
        self.trajectory.rename(aside)
        for file in waiting.iterdir():
            file.rename(aside / file.name)
        waiting.rmdir()

    def _hold(self) -> None:
        """Lock the folder; the lock ends with this object or process, however that ends."""
        self.release()
        self._unlock = lock(self.path / ".lock", self)
        if self._unlock is None:
            gc.collect()  # it may be held by what nobody refers to any more
            self._unlock = lock(self.path / ".lock", self)
        if self._unlock is None:
            raise InUse(
                f"{self.path} is being written by another process, or by another recorder of this "
                "one: close that one or choose another folder"
            )

    def release(self) -> None:
        """Let others write to the folder."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None
