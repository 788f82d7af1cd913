"""Claims on runs, so that sweeps that share a folder, on one machine or several, share the work.

A claim is a small file that names the process which does a run. It is taken back when that
process is known to be dead (same machine) or has not touched the file for a while (elsewhere).
Run folders have a lock of their own; claims only keep work from being done twice.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from clmeta.errors import RunFolderError
from clmeta.ground.reading import loads

#: Seconds between two signs of life of a claim's holder.
BEAT = 5.0
#: Seconds without a sign of life after which another machine's claim counts as left behind.
PATIENCE = 90.0


def machine() -> str:
    """What a process number is unique in: host, boot and process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def birth(pid: int) -> str | None:
    """A mark of when a process of this machine started; None if it is dead.

    Process numbers are used again, so a number alone does not tell that a process is the same.
    """
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


class Claims:
    """The claims of this process in one folder; a context that releases them all.

    Args:
        folder: where claims are kept; made if missing.
        job: the cluster job that this process is, if any; a claim of the same job is one that this
            job left behind before it was requeued.
        beat: seconds between signs of life.
        patience: seconds after which a claim from another machine counts as left behind.

    Raises:
        RunFolderError: if the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        job: str | None = None,
        beat: float = BEAT,
        patience: float = PATIENCE,
    ) -> None:
        self.folder = Path(folder)
        self.patience = patience
        self.token = uuid.uuid4().hex
        self.owner = {
            "machine": machine(),
            "pid": os.getpid(),
            "birth": birth(os.getpid()),
            "job": job,
            "token": self.token,
        }
        self.held: set[str] = set()
        self._stop = threading.Event()
        self._pulse = threading.Thread(target=self._keep_alive, args=(beat,), daemon=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._explain(error) from error

    def __enter__(self) -> Claims:
        self._pulse.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self.release(list(self.held))

    def take(self, names: Iterable[str]) -> bool:
        """Claim all of ``names`` or, if another process holds one of them, none.

        Raises:
            RunFolderError: if the folder cannot be written.
        """
        taken: list[str] = []
        for name in names:
            if not self._take_one(name):
                self.release(taken)
                return False
            taken.append(name)
        return True

    def release(self, names: Iterable[str]) -> None:
        """Give claims up; those that this process does not hold are left alone.

        One that cannot be removed, where a folder was closed, ends with this process.
        """
        for name in names:
            self.held.discard(name)
            if self._read(name).get("token") == self.token:
                with suppress(OSError):
                    self._path(name).unlink()

    def holder_alive(self, name: str) -> bool:
        """Whether another process holds ``name`` and gives signs of life."""
        if not self._path(name).exists():
            return False
        with self._probe() as probe:
            return self._alive(self._path(name), self._read(name), probe.now)

    def remove_dead(self) -> None:
        """Remove what processes that are known to be dead have left; of others nothing."""
        with suppress(OSError), self._probe() as probe:
            for path in self.folder.iterdir():
                owner = _content(path)
                if path != probe.path and not self._alive(path, owner, probe.now):
                    self._clear(path, owner)

    def remove_if_empty(self) -> None:
        """Remove the folder of claims and the one it is in, where nothing is left in them."""
        with suppress(OSError):
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _probe(self) -> _Probe:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # another may have removed it, empty
            return _Probe(self.folder / f".{uuid.uuid4().hex}", json.dumps(self.owner))
        except OSError as error:
            raise self._explain(error) from error

    def _take_one(self, name: str) -> bool:
        path = self._path(name)
        try:
            with self._probe() as probe:
                for _ in range(3):
                    if probe.become(path):
                        self.held.add(name)
                        return True
                    owner = self._read(name)
                    if self._alive(path, owner, probe.now):
                        return False
                    self._clear(path, owner)
        except RunFolderError:
            raise
        except OSError as error:
            raise self._explain(error) from error
        return False

    def _clear(self, path: Path, owner: dict[str, Any]) -> None:
        """Remove a claim that was left behind, unless someone else did and claimed anew."""
        aside = path.with_name(f".{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            os.rename(path, aside)  # only one of several that see the same claim gets it
            if _content(aside) != owner:
                with suppress(OSError):
                    os.link(aside, path)
            aside.unlink()

    def _alive(self, path: Path, owner: dict[str, Any], now: float) -> bool:
        if owner.get("token") == self.token:
            return False
        if owner.get("job") is not None and owner["job"] == self.owner["job"]:
            return False
        here = owner.get("machine") == self.owner["machine"]
        if here and isinstance(owner.get("birth"), str) and type(owner.get("pid")) is int:
            return birth(owner["pid"]) == owner["birth"]
        try:
            # A sign of life from the future is none: somebody's clock was wrong.
            return abs(now - path.stat().st_mtime) < self.patience
        except FileNotFoundError:
            return False

    def _read(self, name: str) -> dict[str, Any]:
        return _content(self._path(name))

    def _keep_alive(self, beat: float) -> None:
        while not self._stop.wait(beat):
            for name in list(self.held):
                with suppress(OSError):
                    os.utime(self._path(name))

    def _explain(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"cannot write {self.folder}: {error.strerror}; free space or choose an output folder "
            "that can be written (what was finished is kept)"
        )


class _Probe:
    """A new file beside the claims: its time is the file system's now, and it may become a claim.

    Clocks of machines differ, so ages are counted on the clock that stamps the files.
    """

    def __init__(self, path: Path, content: str) -> None:
        self.path = path
        self.content = content
        try:
            path.write_text(content)
            self.now = path.stat().st_mtime
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise

    def become(self, claim: Path) -> bool:
        """Be the claim, unless there is one; its content is there as soon as it is."""
        try:
            os.link(self.path, claim)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with open(claim, "x") as file:
                    file.write(self.content)
            except FileExistsError:
                return False
        return True

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *error: object) -> None:
        self.path.unlink(missing_ok=True)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
