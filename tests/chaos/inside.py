"""Inside a process that is to be disturbed: counts what it does, and lets its files go wrong.

`begin` is called before anything else in the process. Steps are noted on a board, a file of numbers
in shared memory, which outlives any kill. Every touch of a file in the process's folder is counted;
at a given one the process is killed, or from it on for a while the disk is full or closed.
"""

from __future__ import annotations

import builtins
import errno
import io
import mmap
import multiprocessing.util
import os
import resource
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: On the board first: touches of files so far.
HEAD = 8
#: Then of each run: the step it began at, steps done, the seconds on the clock at its last step
#: and last checkpoint, seconds promised between two of those, longest step.
ROW = struct.Struct("6d")
_spawn = multiprocessing.util.spawnv_passfds
FIELDS = ("first", "last", "now", "saved", "promised", "longest")


class Board:
    """The numbers of all runs of a process and of those that it starts."""

    def __init__(self, file: Path, names: list[str]) -> None:
        self.names = {name: number for number, name in enumerate(names)}
        with open(file, "r+b") as opened:
            self.memory = mmap.mmap(opened.fileno(), HEAD + ROW.size * max(1, len(names)))

    @staticmethod
    def new(file: Path, names: list[str]) -> Board:
        row = ROW.pack(-1, 0, 0, 0, 0, 0)
        file.write_bytes(bytes(HEAD) + row * max(1, len(names)))
        return Board(file, names)

    def touch(self) -> int:
        count = struct.unpack_from("q", self.memory)[0] + 1
        struct.pack_into("q", self.memory, 0, count)
        return count

    @property
    def touches(self) -> int:
        return struct.unpack_from("q", self.memory)[0]

    def read(self, name: str) -> dict[str, float]:
        values = ROW.unpack_from(self.memory, HEAD + ROW.size * self.names[name])
        return dict(zip(FIELDS, values, strict=True))

    def write(self, name: str, **values: float) -> None:
        row = {**self.read(name), **values}
        ROW.pack_into(self.memory, HEAD + ROW.size * self.names[name], *row.values())


class Files:
    """Counts touches of files below a folder; at some of them something happens."""

    def __init__(self, folder: str, board: Board, plan: dict[str, Any]) -> None:
        self.folder, self.board = os.path.realpath(folder) + os.sep, board
        self.kill_at, self.whole = plan.get("kill_at"), plan.get("whole", True)
        first = plan.get("fault_at", 0)
        self.fault = plan.get("fault")
        self.faulty = range(first, first + plan.get("fault_for", 0))
        self.open = io.open

    def begin(self) -> None:
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync", "link"):
            setattr(os, name, self._counted(getattr(os, name)))
        builtins.open = io.open = self._open  # type: ignore[assignment]

    def mine(self, path: Any) -> bool:
        if not isinstance(path, str | os.PathLike):
            return isinstance(path, int)
        return os.path.realpath(path).startswith(self.folder)

    def happens(self, writes: bool) -> None:
        """Count a touch, and do what is planned for it."""
        count = self.board.touch()
        if count == self.kill_at:
            kill(self.whole)
        if count in self.faulty and self.fault == "closed":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if count in self.faulty and self.fault == "full" and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _counted(self, function: Any) -> Any:
        def call(path: Any, *others: Any, **named: Any) -> Any:
            if self.mine(path) or "dir_fd" in named:
                self.happens(writes=function.__name__ in ("mkdir", "link"))
            return function(path, *others, **named)

        return call

    def _open(self, file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
        writes = mode[:1] in ("w", "x") and "+" not in mode and isinstance(file, str | os.PathLike)
        if not writes or not self.mine(file):
            return self.open(file, mode, *others, **named)
        self.happens(writes=True)
        opened = io.BufferedWriter(_Torn(file, mode[:1], self), 256)
        if "b" in mode:
            return opened
        return io.TextIOWrapper(opened, encoding=named.get("encoding"))


class _Torn(io.FileIO):
    """A file of which half of a write may have reached the disk."""

    def __init__(self, path: Any, mode: str, files: Files) -> None:
        super().__init__(path, mode)
        self.files = files

    def write(self, content: Any) -> int:
        half = memoryview(content)[: len(content) // 2]
        count = self.files.board.touches + 1
        if count == self.files.kill_at or (count in self.files.faulty and half):
            super().write(half)
        self.files.happens(writes=True)
        return super().write(content)


def kill(whole: bool) -> None:
    os.kill(0 if whole else os.getpid(), signal.SIGKILL)


def watch(board: Board, folder: str) -> None:
    """Note steps and checkpoints of every run on the board."""
    from clmeta.record.interval import SHARE, Interval
    from clmeta.record.recorder import Recorder

    begin, record, start, saved = (
        Recorder.__init__,
        Recorder.record,
        Interval.start,
        Interval.saved,
    )
    running: set[str] = set()

    def name(recorder: Recorder) -> str:
        return os.path.relpath(os.path.realpath(recorder.folder.path), os.path.realpath(folder))

    def begun(recorder: Recorder, *args: Any, **named: Any) -> None:
        begin(recorder, *args, **named)
        if name(recorder) in board.names:
            now = time.monotonic()
            board.write(name(recorder), first=recorder.steps, last=recorder.steps, now=now)
            board.write(name(recorder), saved=now, promised=0, longest=0)
            running.add(name(recorder))

    def recorded(recorder: Recorder, *args: Any, **named: Any) -> None:
        record(recorder, *args, **named)
        if name(recorder) in board.names:
            now, row = time.monotonic(), board.read(name(recorder))
            longest = max(row["longest"], now - row["now"])
            board.write(name(recorder), last=recorder.steps, now=now, longest=longest)

    def starts(interval: Interval, step: int) -> None:
        start(interval, step)
        for each in running:
            promised = max(board.read(each)["promised"], min(interval.seconds, 1e9))
            board.write(each, saved=time.monotonic(), promised=promised)

    def is_saved(interval: Interval, step: int, cost: float) -> None:
        saved(interval, step, cost)
        for each in running:
            board.write(each, promised=max(board.read(each)["promised"], cost / SHARE))

    Recorder.__init__, Recorder.record = begun, recorded  # type: ignore[method-assign]
    Interval.start, Interval.saved = starts, is_saved  # type: ignore[method-assign]


def forked(path: Any, args: Any, passed: Any) -> int:
    """Starts a worker from what is loaded already, and with nothing open that is not its own."""
    text = next((os.fsdecode(each) for each in args if b"spawn_main" in os.fsencode(each)), None)
    if text is None:
        return _spawn(path, args, passed)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)
        kept = {0, 1, 2, *passed}
        for number in [int(each) for each in os.listdir("/dev/fd")]:
            if number not in kept:
                try:
                    os.close(number)
                except OSError:
                    continue
        from multiprocessing.spawn import spawn_main

        sys.argv = ["-c", "--multiprocessing-fork"]
        eval(text.partition("; ")[2], {"spawn_main": spawn_main})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(status)


def begin(folder: str, board: str, names: list[str], **plan: Any) -> None:
    """Before all else: see the top of this file."""
    notes = Board(Path(board), names)
    tempfile.tempdir = None
    multiprocessing.util.spawnv_passfds = forked
    if plan.get("fault") == "small":
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["size"], plan["size"]))
    watch(notes, folder)
    if plan.get("small_demo"):
        small_demo()
    Files(folder, notes, plan).begin()


def small_demo() -> None:
    """The demo with little to learn."""
    import dataclasses

    from clmeta.cli import demo

    small = {"tasks": 2, "steps_per_task": 100}
    demo.SETTING = dataclasses.replace(demo.SETTING, stream_options=small, checkpoint_every=15)
