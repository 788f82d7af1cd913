"""Sweeps: many runs over all cores or a cluster, resumed by starting them again."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from clmeta.errors import RunFolderError, require
from clmeta.ground.checks import NUMBERS, count_or_none
from clmeta.ground.reading import as_path
from clmeta.runs.config import RunConfig
from clmeta.runs.several import run_configs
from clmeta.sweep.claims import Claims
from clmeta.sweep.jobs import Event, OnEvent, run_jobs
from clmeta.sweep.leftovers import remove_leftovers
from clmeta.sweep.plan import PRIVATE, Chunk, SweepRun, plan, sweep_runs
from clmeta.sweep.work import do_chunk, keep_error

#: Seconds between two looks at runs that another process does.
POLL = 0.5


class Launcher(Protocol):
    """Does chunks somewhere and tells what happens; a chunk's last event is one of its ends."""

    at_a_time: int
    #: Whether chunks are done on this machine, so that measurements here hold for them.
    here: bool
    #: Bytes of its host that each chunk may take, where they are done elsewhere and that is known.
    memory: int | None

    def __call__(self, chunks: Sequence[Chunk], tell: OnEvent) -> object:
        """Do the chunks; returns when all have ended."""


class LocalLauncher:
    """Chunks over processes of this machine.

    Args:
        processes: how many at a time; None: one for each core this process may use.
    """

    here = True
    memory: int | None = None

    def __init__(self, processes: int | None = None) -> None:
        self.at_a_time = count_or_none("processes", processes) or cores()

    def __call__(self, chunks: Sequence[Chunk], tell: OnEvent) -> list[Event]:
        """Do the chunks; returns when all have ended."""
        return run_jobs(chunks, self.at_a_time, tell, do=do_chunk)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class SweepResult:
    """What became of a sweep.

    Attributes:
        output: the sweep's folder.
        runs: all of its runs.
        failed: by the run folder's name, in one line, why a run failed; each folder's
            ``error.json`` has more.
        traces: tracebacks of errors that clmeta does not raise on purpose.
    """

    output: Path
    runs: list[SweepRun]
    failed: dict[str, str] = field(default_factory=dict)
    traces: dict[str, str] = field(default_factory=dict)

    @property
    def folders(self) -> list[Path]:
        """Folders of the finished runs."""
        return [run.folder for run in self.runs if run.finished]


class Watcher(Protocol):
    """Gets told how it goes."""

    def plan(self, runs: int, finished: int, chunks: Sequence[Chunk]) -> None:
        """Of ``runs``, so many are finished; the chunks are about to be done here."""

    def waiting(self, finished: int) -> None:
        """Other processes do what is left."""

    def show(self, event: Event) -> None:
        """Something happened to one of the chunks last planned."""


def run_sweep(
    configs: Sequence[RunConfig],
    output: str | os.PathLike[str],
    *,
    launcher: Launcher | None = None,
    chunk: int | None = None,
    watcher: Watcher | None = None,
) -> SweepResult:
    """Do the runs that are not finished yet; a run that fails stops no other.

    Runs that differ in seed, blocks and numbers only train together where their network allows
    it. A sweep that was stopped, however it was, is started again with the same arguments; what was
    under way goes on from its last checkpoint. Sweeps that share a folder, even on
    several machines, share its runs and wait for each other's.

    Args:
        configs: the runs, e.g. from `SweepSpec.configs`.
        output: folder that gets a run folder for each, named after what the run computes.
        launcher: where runs go; by default to all cores of this machine.
        chunk: runs trained together; None: as a short measurement says, and no more than leave
            work for every process.
        watcher: gets told how it goes.

    Returns:
        What became of it, failures included.

    Raises:
        BadArgument: before anything is trained or written, for a config that cannot work.
        RunFolderError: if ``output`` cannot be written.
        KeyboardInterrupt: after the runs under way have written what they recorded.
    """
    configs, folder = run_configs("configs", configs), as_path("output", output)
    count_or_none("chunk", chunk)
    if launcher is None:
        launcher = LocalLauncher(1 if configs[0].device != "cpu" else None)
    require(callable(launcher), "launcher", launcher, "must be a launcher, such as LocalLauncher()")
    runs = sweep_runs(folder, configs)
    check([run.config for run in runs if not run.finished], folder, launcher)
    return do_runs(runs, folder, launcher=launcher, chunk=chunk, watcher=watcher)


def do_runs(
    runs: Sequence[SweepRun],
    output: Path,
    *,
    launcher: Launcher,
    chunk: int | None = None,
    together: bool = True,
    watcher: Watcher | None = None,
) -> SweepResult:
    """Do the runs that are not finished yet, which were checked before; see `run_sweep`.

    Args:
        runs: each with its folder, at or below ``output``.
        output: the folder of all.
        launcher, chunk, watcher: as for `run_sweep`.
        together: whether runs may train together, which changes how they round.

    Raises:
        RunFolderError, KeyboardInterrupt: as `run_sweep` does.
    """
    chunk = count_or_none("chunk", chunk)
    result = SweepResult(output, list(runs))
    remove_leftovers(output, runs)
    if watcher is not None:
        watcher.plan(len(runs), sum(run.finished for run in runs), ())
    if any(not run.finished for run in runs):
        sweep = _Sweep(result, launcher, watcher)
        try:
            sweep.do(chunk, together)
        finally:
            remove_leftovers(output, runs)
    return result


def check(configs: Sequence[RunConfig], output: Path, launcher: Launcher) -> None:
    """Everything that can be known before training.

    What runs train with is built, once for those that differ in numbers only.

    Args:
        configs: the runs that are to be done.
        output: the folder of all.
        launcher: where they will be done.

    Raises:
        BadArgument: for the first config that cannot work.
        RunFolderError: if the output is no folder or cannot be written.
    """
    from clmeta.runs.prepared import prepare

    if configs:
        check_writable(output)
    for config in {_built(config): config for config in configs}.values():
        prepare(config if launcher.here else dataclasses.replace(config, device="cpu"))


def _built(config: RunConfig) -> str:
    """Differs wherever what is built may differ; numbers `RunConfig` checks by itself."""
    numbers = [name for name in NUMBERS if not isinstance(getattr(config, name), Mapping)]
    return f"{config.key(without=('seed', *numbers))} {config.device} {config.imports}"


def check_writable(folder: Path) -> None:
    """Raise RunFolderError if a folder cannot be made or written; nothing is made."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "must not be written" if there.is_dir() else "is no folder"
        mend = "choose an output folder that can be written"
        raise RunFolderError(f"cannot write {folder}: {there} {reason}; {mend}")


class _Sweep:
    def __init__(self, result: SweepResult, launcher: Launcher, watcher: Watcher | None) -> None:
        self.result = result
        self.launcher = launcher
        self.watcher = watcher
        self.claims = Claims(result.output / PRIVATE / "claims")
        #: What runs had failed of before; another error is another sweep's, whatever its date.
        self.known = {run.name: run.error for run in result.runs}
        self.tried: set[Chunk] = set()
        self.under_way: list[Chunk] = []

    def do(self, chunk: int | None, together: bool) -> None:
        chunks = self._plan(chunk) if together else self._apart()
        while todo := [c for c in chunks if c not in self.tried and c.missing]:
            free = [c for c in todo if not self._held(c)]
            if free:
                self._tell_plan(free)
                self.under_way = free
                self.launcher(free, self._listen)
            else:
                self._tell_waiting()
                time.sleep(POLL)
        for run in self.result.runs:  # what another sweep tried in the meantime
            if not run.finished and run.error is not None:
                self.result.failed.setdefault(run.name, run.error["error"])

    def _apart(self) -> list[Chunk]:
        runs, output = self.result.runs, self.result.output
        return [Chunk((run,), output) for run in runs if not run.finished]

    def _plan(self, chunk: int | None) -> list[Chunk]:
        with self.claims as claims:
            while not claims.take(["plan"]):
                time.sleep(POLL)
            return plan(
                self.result.output,
                self.result.runs,
                at_a_time=self.launcher.at_a_time,
                chunk=chunk,
                measure=self.launcher.here,
                memory=self.launcher.memory,
            )

    def _held(self, chunk: Chunk) -> bool:
        """Whether another process does one of its runs, or has just failed at all of them."""
        missing = chunk.missing
        if any(self.claims.holder_alive(run.name) for run in missing):
            return True
        if missing and all(run.error not in (None, self.known[run.name]) for run in missing):
            self.tried.add(chunk)
            return True
        return False

    def _listen(self, event: Event) -> None:
        chunk = self.under_way[event.job]
        if event.kind == "run failed" and event.run:
            self._note(event.run, event)
        elif event.kind == "failed":  # not a run's failure: its process died, or no claim
            for run in chunk.missing:
                keep_error(run, event.error or "failed", event.trace, alone=False)
                self._note(run.name, event)
            self.tried.add(chunk)
        elif event.kind == "finished" and not event.elsewhere:
            self.tried.add(chunk)
        if self.watcher is not None:
            self.watcher.show(event)

    def _note(self, name: str, event: Event) -> None:
        self.result.failed[name] = event.error or "failed"
        if event.trace:
            self.result.traces[name] = event.trace

    def _tell_plan(self, chunks: Sequence[Chunk]) -> None:
        if self.watcher is not None:
            runs = self.result.runs
            self.watcher.plan(len(runs), sum(run.finished for run in runs), chunks)

    def _tell_waiting(self) -> None:
        if self.watcher is not None:
            self.watcher.waiting(sum(run.finished for run in self.result.runs))
