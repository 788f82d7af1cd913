"""Many jobs over a few processes: events while they go on, an outcome for each at the end."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from clmeta.ground.signals import stopping

#: Seconds that an interrupted process has to write what it recorded.
GRACE = 30.0


@dataclass(frozen=True)
class Event:
    """Something that happened to job number `job`.

    Kinds: ``"started"``, ``"progress"``, ``"run finished"``, ``"run failed"``, ``"note"`` for
    something to know, in `error`; and as a job's last ``"finished"``, ``"failed"`` or
    ``"interrupted"``.

    Attributes:
        job: its number.
        kind: one of those above.
        error: one line, for what failed.
        trace: the traceback, if the error is not one that clmeta raises on purpose.
        run: the name of the run's folder, for what happened to a run.
        runs: how many runs the progress covers.
        done: steps done of `steps`, for each of them.
        steps: steps in all.
        accuracy, alpha: online accuracy so far and step sizes, of a run that trains alone.
        elsewhere: the job ended undone, because another process holds one of its runs.
    """

    job: int
    kind: str
    error: str | None = None
    trace: str | None = None
    run: str | None = None
    runs: int = 1
    done: int = 0
    steps: int = 0
    accuracy: float | None = None
    alpha: Mapping[str, float] | None = None
    elsewhere: bool = False


OnEvent = Callable[[Event], object]
#: Does job number so-and-so, tells what happens, and returns the job's last event.
Do = Callable[[int, Any, OnEvent], Event]
ENDS = ("finished", "failed", "interrupted")


def run_jobs(jobs: Sequence[Any], processes: int, tell: OnEvent, do: Do) -> list[Event]:
    """Do all jobs, each to its end whatever becomes of the others.

    Args:
        jobs: whatever ``do`` does.
        processes: how many to do at a time; 1 does them in this process.
        tell: called in this process with every event.
        do: does one job; a function of a module, so that processes find it.

    Returns:
        The last event of each job, in order.

    Raises:
        KeyboardInterrupt: after every job under way has written what it recorded.
    """
    if processes <= 1 or len(jobs) <= 1:
        return [do(number, job, tell) for number, job in enumerate(jobs)]
    return _Pool(jobs, min(processes, len(jobs)), tell, do).run()


def _work(pipe: Connection, do: Do) -> None:
    """A worker process: jobs come in, events go out; SIGTERM stops it, all else is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError), stopping():
        while True:
            number, job = pipe.recv()
            do(number, job, pipe.send)


class _Pool:
    """A pipe per process, so that a process that is killed takes nothing with it but its job."""

    def __init__(self, jobs: Sequence[Any], processes: int, tell: OnEvent, do: Do) -> None:
        self.jobs = jobs
        self.do = do
        self.tell = tell
        self.waiting = deque(range(len(jobs)))
        self.ends: dict[int, Event] = {}
        self.context = multiprocessing.get_context("spawn")
        self.workers: dict[Connection, BaseProcess] = {}
        self.doing: dict[Connection, int] = {}
        self.processes = processes

    def run(self) -> list[Event]:
        try:
            for _ in range(self.processes):
                self._hire()
            while self.workers:
                self._listen()
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            for process in self.workers.values():
                process.kill()
        return [self.ends[number] for number in range(len(self.jobs))]

    def _hire(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(theirs, self.do), daemon=True)
        with _ignoring_interrupts():
            process.start()
        theirs.close()
        self.workers[ours] = process
        self._assign(ours)

    def _assign(self, pipe: Connection) -> None:
        if self.waiting:
            number = self.waiting.popleft()
            self.doing[pipe] = number
            with contextlib.suppress(BrokenPipeError):  # it died; the pipe's end will say so
                pipe.send((number, self.jobs[number]))
        else:
            self._dismiss(pipe)

    def _dismiss(self, pipe: Connection) -> BaseProcess:
        pipe.close()
        self.doing.pop(pipe, None)
        process = self.workers.pop(pipe)
        process.join(GRACE)
        return process

    def _listen(self, timeout: float | None = None) -> None:
        for pipe in wait(list(self.workers), timeout):
            assert isinstance(pipe, Connection)
            try:
                event = pipe.recv()
            except (EOFError, OSError):
                self._bury(pipe)
                continue
            self.tell(event)
            if event.kind in ENDS:
                self.ends[event.job] = event
                del self.doing[pipe]
                self._assign(pipe)

    def _bury(self, pipe: Connection) -> None:
        number = self.doing.get(pipe)
        process = self._dismiss(pipe)
        if number is not None:
            error = f"its process died (exit code {process.exitcode}); out of memory?"
            event = Event(number, "failed", error=error)
            self.ends[number] = event
            self.tell(event)
        if self.waiting:
            self._hire()

    def _interrupt(self) -> None:
        """Let every process write what it recorded, and wait for it."""
        self.waiting.clear()
        for process in self.workers.values():
            process.terminate()
        for pipe, process in self.workers.items():
            process.join(GRACE)
            if pipe in self.doing:
                self.tell(Event(self.doing[pipe], "interrupted"))


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes started inside don't get a terminal's Ctrl-C, which is the parent's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
