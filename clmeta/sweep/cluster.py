"""A sweep's chunks as tasks of a SLURM cluster, through submitit."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from clmeta.errors import BadArgument, ClmetaError, bad
from clmeta.ground.checks import mapping, positive, whole
from clmeta.ground.machine import GIB
from clmeta.ground.reading import as_path
from clmeta.ground.signals import Terminated, stopping
from clmeta.record.files import write_atomically
from clmeta.sweep.jobs import Event, OnEvent
from clmeta.sweep.plan import PRIVATE, Chunk
from clmeta.sweep.work import do_chunk

#: Seconds between two looks at the tasks.
POLL = 1.0
#: Seconds between two notes of a task's progress, and between two looks at the queue.
SLOW = 10.0
#: Longest time of a task, in minutes, unless told otherwise.
MINUTES = 60
#: Tasks at a time unless told otherwise.
TASKS = 16
#: Options that submitit has for every kind of cluster; others are SLURM's own.
SHARED = ("name", "nodes", "mem_gb", "cpus_per_task", "gpus_per_node", "tasks_per_node")


def minutes(text: Any) -> int:
    """SLURM's times in minutes: ``90``, ``1:30:00``, ``2-12:00:00``; rounded up.

    Raises:
        BadArgument: for anything else.
    """
    if type(text) is int and 0 < text < 10**9:
        return text
    form = r"(?:(\d{1,9})-)?(?:(\d{1,9}):)?(\d{1,9})(?::(\d{1,9}))?"
    match = re.fullmatch(form, text) if isinstance(text, str) else None
    if match is None or not any(int(part or 0) for part in match.groups()):
        bad("time", text, "write minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, first, middle, last = (int(part or 0) for part in match.groups())
    if match[1] and not match[2]:  # days-hours
        return days * 1440 + middle * 60
    if match[1] and match[4] is None:  # days-hours:minutes
        return days * 1440 + first * 60 + middle
    if match[2] and match[4] is None:  # minutes:seconds
        return first + (middle > 0)
    return days * 1440 + first * 60 + middle + (last > 0)


#: What submitit has a cluster send to a task that has to leave soon.
LEAVE = signal.SIGUSR2


class ChunkTask:
    """What a task of the cluster does; preempted, it saves, is requeued and goes on from there."""

    def __call__(self, chunk: Chunk) -> list[Event]:
        """Do a chunk; returns what became of its runs."""
        import submitit
        from submitit.core.utils import UncompletedJobError

        said: list[Event] = []
        noted = 0.0

        def tell(event: Event) -> None:
            nonlocal noted
            if event.kind != "progress":
                said.append(event)
            elif time.monotonic() - noted > SLOW:
                noted = time.monotonic()
                _note_progress(chunk, event)

        job = submitit.JobEnvironment().job_id
        leave = signal.getsignal(LEAVE)
        try:
            with stopping(also=(LEAVE,)):
                do_chunk(0, chunk, tell, job=str(job), fatal=(UncompletedJobError,))
        except Terminated as asked:
            if asked.signum != LEAVE or not callable(leave):
                raise
            leave(LEAVE, None)  # submitit's: it queues the task again and ends this process
        return said

    def checkpoint(self, chunk: Chunk) -> Any:
        """What to queue when the task has to leave: the same chunk again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, chunk)


class ClusterLauncher:
    """Does a sweep's chunks as tasks of a job array, and waits for them.

    Args:
        output: the sweep's folder, which all machines of the cluster must see.
        options: ``partition``, ``time`` (see `minutes`), ``gpus_per_task``, ``cpus_per_task``,
            ``mem_gb``, ``array_parallelism`` (tasks at a time), and any option that submitit knows
            for SLURM.
        cluster: ``"slurm"``, or ``"local"`` for processes of this machine that submitit starts.

    Raises:
        BadArgument: if submitit or SLURM is not installed, or for an option that they refuse.
    """

    here = False

    def __init__(
        self, output: Path, options: Mapping[str, Any] | None = None, *, cluster: str = "slurm"
    ) -> None:
        given: dict[str, Any] = {"array_parallelism": TASKS, "cpus_per_task": 1, "name": "clmeta"}
        given.update({} if options is None else mapping("options", options))
        timeout = minutes(given.pop("time", MINUTES))
        self.cluster = cluster
        self.memory: int | None = None
        self.at_a_time = whole("array_parallelism", given["array_parallelism"], least=1)
        if "mem_gb" in given:
            self.memory = int(positive("mem_gb", given["mem_gb"]) * GIB)
        output = as_path("output", output)
        try:
            submitit = importlib.import_module("submitit")
        except ModuleNotFoundError:
            bad("launcher", cluster, "needs submitit: pip install 'clmeta[slurm]'")
        named = {_submitit_name(option): value for option, value in given.items()}
        try:
            folder = output / PRIVATE / "tasks" / "%j"
            self.executor = submitit.AutoExecutor(folder=folder.absolute(), cluster=cluster)
            self.executor.update_parameters(timeout_min=timeout, **named)
        except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            mend = "use it where sbatch and srun are, with options that submitit knows"
            raise BadArgument(f"launcher={cluster!r}: {said[0]}; {mend}") from None

    def __call__(self, chunks: Sequence[Chunk], tell: OnEvent) -> None:
        """Queue the chunks and wait for them; interrupted, the tasks go on."""
        try:
            jobs = self.executor.map_array(ChunkTask(), chunks)
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ClmetaError(f"the cluster refused the tasks: {said[-1]}") from error
        waiting = dict(enumerate(jobs))
        queue = _Queue(self.cluster)
        try:
            while waiting:
                for number, job in list(waiting.items()):
                    if queue.ended(job):
                        del waiting[number]
                        _tell_end(number, job, tell)
                        _progress_file(chunks[number]).unlink(missing_ok=True)
                    else:
                        _tell_progress(number, chunks[number], tell)
                time.sleep(POLL if waiting else 0)
        except KeyboardInterrupt:
            ids = sorted({job.job_id.split("_")[0] for job in waiting.values()})
            _say(f"The tasks go on; end them with scancel {' '.join(ids)}.")
            raise


def _submitit_name(option: str) -> str:
    return option if option in SHARED or option.startswith("slurm_") else f"slurm_{option}"


class _Queue:
    """Tells which tasks have ended; it asks the queue, as not every cluster keeps accounts."""

    def __init__(self, cluster: str) -> None:
        self.slurm = cluster == "slurm"
        self.looked = time.monotonic()
        self.unseen: dict[str, int] = {}

    def ended(self, job: Any) -> bool:
        """Whether a task has left its result, or left the queue without one."""
        if not self.slurm:
            return job.done()
        if job.paths.result_pickle.exists():
            return True
        if time.monotonic() - self.looked > SLOW:
            self.looked = time.monotonic()
            queued = _queued()
            for name in self.unseen:
                self.unseen[name] += queued is not None and name not in queued
        # Twice unseen: a result may take a moment to show on a shared file system.
        return self.unseen.setdefault(job.job_id, 0) >= 2


def _queued() -> set[str] | None:
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(done.stdout.split())


def _tell_end(number: int, job: Any, tell: OnEvent) -> None:
    log = job.paths.stderr
    if not job.paths.result_pickle.exists():
        error = f"its task {job.job_id} ended without a result; its log is {log}"
        tell(Event(number, "failed", error=error))
        return
    error = job.exception()
    if error is not None:
        said = str(error).strip().splitlines() or [type(error).__name__]
        tell(Event(number, "failed", error=f"task {job.job_id}: {said[-1]}; its log is {log}"))
        return
    for event in job.result():
        if event.kind != "started":
            tell(Event(**{**event.__dict__, "job": number}))


def _progress_file(chunk: Chunk) -> Path:
    return chunk.output / PRIVATE / f"progress-{chunk.runs[0].name}.json"


def _note_progress(chunk: Chunk, event: Event) -> None:
    text = json.dumps({"runs": event.runs, "done": event.done, "steps": event.steps})
    with suppress(OSError):  # a full disk shows where it matters
        write_atomically(_progress_file(chunk), lambda file: file.write(text.encode()))


def _tell_progress(number: int, chunk: Chunk, tell: OnEvent) -> None:
    with suppress(OSError, ValueError, TypeError):
        noted = json.loads(_progress_file(chunk).read_text())
        tell(Event(number, "progress", **noted))


def _say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)
