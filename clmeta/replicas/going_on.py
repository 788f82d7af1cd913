"""Where learners that train together leave their checkpoints, and who is among them.

::

    .chunks/KEY/members.json     folders' names and options of all that began together
    .chunks/KEY/checkpoints/     as of a single run; each holds the learners that still go on

Their rounding may depend on who trains along. So they go on as they began, whatever else is asked
for by then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clmeta.errors import BadArgument, RunFolderError
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.runs.going_on import EXACT
from clmeta.runs.trust import code_of

#: Beside the run folders.
CHUNKS = ".chunks"
NOTE = "members.json"


@dataclass(frozen=True)
class Member:
    """One run of a chunk: its number among those asked for and its folder; None: trains along."""

    config: RunConfig
    folder: Path | None
    number: int = -1


@dataclass(frozen=True)
class Home:
    """Where a chunk's own files are.

    Attributes:
        path: the folder.
        members: run folder, as seen from the one that ``.chunks`` is in, and config of all that
            began together, in order.
    """

    path: Path
    members: tuple[tuple[str, RunConfig], ...]

    @classmethod
    def of(cls, runs: Sequence[tuple[Path, RunConfig]]) -> Home:
        """The home of runs that begin; it lies beside the first one's folder."""
        beside = min(path.resolve().parent for path, _ in runs)
        members = [(os.path.relpath(path.resolve(), beside), config) for path, config in runs]
        text = json.dumps([[name, config.to_dict()] for name, config in members])
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(beside / CHUNKS / key, tuple(members))

    @property
    def names(self) -> list[str]:
        """Names of the members' folders."""
        return [name for name, _ in self.members]

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(RunFolder(self.path).checkpoint_files)

    def finished(self, member: int) -> bool:
        """Whether a member's run has reached its end."""
        return RunFolder(self.path.parents[1] / self.names[member]).finished

    def write(self) -> None:
        """Note who is among them, if it is not noted yet.

        Raises:
            RunFolderError: if that cannot be written.
        """
        if self._note.exists():
            return
        content = [{"name": name, "config": config.to_dict()} for name, config in self.members]
        text = json.dumps(content, indent=1) + "\n"
        for last in (False, True):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                RunFolder(self.path).write_json(self._note, text)
                return
            except RunFolderError:
                if last or self.path.is_dir():
                    raise
            except OSError as error:
                if last or not isinstance(error, FileNotFoundError):
                    raise RunFolderError(f"cannot make {self.path}: {error.strerror}") from error
            # Another start took the folder, empty as it was, for what a kill had left.

    @property
    def _note(self) -> Path:
        return self.path / NOTE

    def remove(self) -> None:
        """Nothing is left to go on with."""
        # The note goes last: until then it says that all of it is spent.
        shutil.rmtree(RunFolder(self.path).checkpoints, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def homes(beside: Path) -> Iterator[Home]:
    """All chunks with a checkpoint whose run folders lie in a folder; a damaged note is none."""
    return (home for home in _noted(beside) if home.begun)


def remove_spent(beside: Path) -> None:
    """Remove what a kill left of chunks in a folder of which all runs have finished."""
    for home in _noted(beside):
        if all(map(home.finished, range(len(home.members)))):
            home.remove()
    for empty in (*beside.glob(f"{CHUNKS}/*"), beside / CHUNKS):
        with suppress(OSError):
            empty.rmdir()


def _noted(beside: Path) -> Iterator[Home]:
    for note in sorted(beside.glob(f"{CHUNKS}/*/{NOTE}")):
        with suppress(OSError, ValueError, TypeError, KeyError, BadArgument, AttributeError):
            content: list[dict[str, Any]] = json.loads(note.read_text(encoding="utf-8"))
            members = [(each["name"], RunConfig.from_dict(each["config"])) for each in content]
            yield Home(note.parent, tuple(members))


def begun_chunks(
    configs: Sequence[RunConfig], paths: Sequence[Path]
) -> tuple[list[tuple[Home, list[Member]]], list[int]]:
    """Chunks that were killed, with their members, and the runs that are in none of them."""
    asked = {path.resolve(): number for number, path in enumerate(paths)}
    known = {name for config in configs for name in code_of(config.to_dict())}
    found, free = [], set(range(len(paths)))
    for beside in sorted({path.resolve().parent for path in paths}):
        for home in homes(beside):
            members = []
            for name, config in home.members:
                number = asked.get(Path(os.path.normpath(beside / name)))
                if number in free and _goes_on(config, configs[number], paths[number]):
                    members.append(Member(config, paths[number], number))
                elif code_of(config.to_dict()) <= known:
                    members.append(Member(config, None))
                else:  # a note can be a stranger's: it may load nothing that was not asked for
                    members = []
                    break
            numbers = {member.number for member in members if member.folder is not None}
            if numbers:
                found.append((home, members))
                free -= numbers
    return found, [number for number in range(len(paths)) if number in free]


def _goes_on(began: RunConfig, asked: RunConfig, folder: Path) -> bool:
    """Whether what began is what is asked for, and has not reached its end."""
    same = all(getattr(began, name) == getattr(asked, name) for name in EXACT)
    return same and not RunFolder(folder).finished
