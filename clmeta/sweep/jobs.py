"""Many runs over a few processes: events while they go on, an outcome for each at the end."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmeta.errors import ClmetaError
from clmeta.runs.config import RunConfig

if TYPE_CHECKING:
    from clmeta.strategies.plain import Progress

#: Seconds that an interrupted process has to write what it recorded.
GRACE = 30.0


@dataclass(frozen=True)
class Job:
    """One run to do: its config and its folder."""

    config: RunConfig
    folder: Path
    overwrite: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened to job number `job`.

    Attributes:
        job: index into the jobs.
        kind: ``"started"``, ``"progress"``, ``"finished"``, ``"failed"`` or ``"interrupted"``.
        progress: where the run stands, for ``"progress"``.
        error: one line, for ``"failed"``.
        trace: the traceback, if the error is not one that clmeta raises on purpose.
    """

    job: int
    kind: str
    progress: Progress | None = None
    error: str | None = None
    trace: str | None = None


OnEvent = Callable[[Event], object]
#: Does job number so-and-so, tells what happens, and returns the job's last event.
Do = Callable[[int, Any, OnEvent], Event]
ENDS = ("finished", "failed", "interrupted")


def run_jobs(
    jobs: Sequence[Any],
    processes: int = 1,
    on_event: OnEvent | None = None,
    do: Do | None = None,
) -> list[Event]:
    """Do all jobs, each to its end whatever becomes of the others.

    Args:
        jobs: the runs, each a `Job`; or whatever ``do`` does.
        processes: how many to do at a time; 1 does them in this process.
        on_event: called in this process with every event.
        do: does one job; a function of a module, so that processes find it.

    Returns:
        The last event of each job, in order.

    Raises:
        KeyboardInterrupt: after every run under way has written what it recorded.
    """
    tell = on_event or (lambda event: None)
    do = do or _run_here
    if processes <= 1 or len(jobs) <= 1:
        return [do(number, job, tell) for number, job in enumerate(jobs)]
    return _Pool(jobs, min(processes, len(jobs)), tell, do).run()


def _run_here(number: int, job: Job, tell: OnEvent) -> Event:
    from clmeta.runs.runner import run

    tell(Event(number, "started"))
    try:
        run(
            job.config,
            job.folder,
            overwrite=job.overwrite,
            on_progress=lambda progress: tell(Event(number, "progress", progress)),
        )
        last = Event(number, "finished")
    except KeyboardInterrupt:
        tell(Event(number, "interrupted"))
        raise
    except ClmetaError as error:
        last = Event(number, "failed", error=str(error))
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        last = Event(number, "failed", error=line, trace=traceback.format_exc())
    tell(last)
    return last


def _work(pipe: Connection, do: Do) -> None:
    """A worker process: jobs come in, events go out; SIGTERM interrupts, SIGINT is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        while True:
            number, job = pipe.recv()
            do(number, job, pipe.send)


def _interrupt(signum: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the writing
    raise KeyboardInterrupt


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
