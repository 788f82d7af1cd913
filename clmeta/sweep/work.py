"""Do one chunk of a sweep: claim its runs, train them together or one by one, keep errors."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from clmeta.errors import ClmetaError, RunFolderError
from clmeta.record.files import as_json
from clmeta.record.runfolder import RunFolder
from clmeta.sweep.claims import Claims
from clmeta.sweep.jobs import Event, OnEvent
from clmeta.sweep.plan import ERROR, PRIVATE, Chunk, SweepRun


def do_chunk(
    number: int,
    chunk: Chunk,
    tell: OnEvent,
    *,
    job: str | None = None,
    fatal: tuple[type[BaseException], ...] = (),
) -> Event:
    """Do what is missing of a chunk; a run that fails leaves ``error.json`` and stops no other.

    Args:
        number: of the chunk, for what is told.
        chunk: the chunk.
        tell: called with every `Event`.
        job: the cluster job that this process is, if any.
        fatal: errors that are not a run's and end everything.

    Returns:
        The last that was told.
    """
    worker = _Worker(number, chunk, _leaving_if_unheard(tell), fatal)
    tell(Event(number, "started"))
    try:
        with Claims(chunk.output / PRIVATE / "claims", job=job) as claims:
            if claims.take(run.name for run in chunk.missing):
                worker.work()
                last = Event(number, "finished")
            else:
                last = Event(number, "finished", elsewhere=True)
    except RunFolderError as error:  # claims cannot be written: nothing else could
        last = Event(number, "failed", error=str(error))
    except KeyboardInterrupt:
        tell(Event(number, "interrupted"))
        raise
    except _Unheard as unheard:
        raise BrokenPipeError from unheard
    tell(last)
    return last


class _Unheard(BaseException):
    """The process that listened is gone; no error of a run, so no handler of those may catch it."""


def _leaving_if_unheard(tell: OnEvent) -> OnEvent:
    def told(event: Event) -> None:
        try:
            tell(event)
        except OSError as error:
            raise _Unheard from error

    return told


class _Worker:
    def __init__(
        self, number: int, chunk: Chunk, tell: OnEvent, fatal: tuple[type[BaseException], ...]
    ) -> None:
        self.number = number
        self.chunk = chunk
        self.tell = tell
        self.fatal = fatal
        self.runs = 1

    def work(self) -> None:
        """Train what is missing, together where that is possible."""
        from clmeta.replicas.going_on import homes

        together = [run for run in self.chunk.runs if run.finished or not run.failed_alone]
        settled: set[str] = set()
        begun = {name for home in homes(self.chunk.output) for name in home.names}
        batched = len(together) > 1 or any(run.name in begun for run in together)
        if batched and any(not run.finished for run in together):
            settled = self._together(together)
        for run in self.chunk.missing:
            if run.name not in settled:
                self._alone(run)

    def _together(self, runs: Sequence[SweepRun]) -> set[str]:
        """Train runs as one program; the names of those that failed for good."""
        from clmeta.replicas.run import ReplicasFailed, ReplicaWarning, run_replicas

        missing = [run for run in runs if not run.finished]
        failed: dict[int, BaseException] = {}
        self.runs = len(missing)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", ReplicaWarning)
            given = [run.config for run in runs], [run.folder for run in runs]
            try:
                # Finished runs train along, so that rounding is that of the whole chunk.
                run_replicas(*given, on_progress=self._progress, chunk=len(runs), along=True)
            except self.fatal:
                raise
            except ReplicasFailed as error:
                failed = error.errors
            except RunFolderError as error:
                failed = dict.fromkeys(range(len(runs)), error)
            except Exception as error:
                # Whose error it is shows when each runs by itself; the batch's own (memory that
                # does not suffice) shows here only.
                line = f"{type(error).__name__}: {error}".splitlines()[0]
                note = f"{len(missing)} runs go one by one: {line}"
                self.tell(Event(self.number, "note", error=note))
        for warning in noted:
            self.tell(Event(self.number, "note", error=str(warning.message)))
        for number, run in enumerate(runs):
            if run.finished and run in missing:
                self._finished(run)
            elif number in failed and run in missing:
                # A full disk is no fault of one run: all of them are to train together again.
                own = not isinstance(failed[number], RunFolderError)
                self._failed(run, failed[number], alone=own)
        return {runs[number].name for number in failed}

    def _alone(self, run: SweepRun) -> None:
        from clmeta.replicas.run import repeat_together
        from clmeta.runs.runner import run as train

        self.runs = 1
        step = RunFolder(run.folder).checkpointed
        if step is not None:
            self.tell(Event(self.number, "note", error=f"{run.name} goes on from step {step}"))
        try:
            if run.company:
                given = run.config, run.folder, run.company
                repeat_together(*given, on_progress=self._progress)
            else:
                train(run.config, run.folder, on_progress=self._progress)
        except self.fatal:
            raise
        except Exception as error:
            self._failed(run, error, alone=True)
        else:
            self._finished(run)

    def _progress(self, at: Any) -> None:
        of_a_run: dict[str, Any] = {n: getattr(at, n, None) for n in ("accuracy", "alpha")}
        self.tell(
            Event(self.number, "progress", runs=self.runs, done=at.step, steps=at.steps, **of_a_run)
        )

    def _finished(self, run: SweepRun) -> None:
        (run.folder / ERROR).unlink(missing_ok=True)
        self.tell(Event(self.number, "run finished", run=run.name))

    def _failed(self, run: SweepRun, error: BaseException, alone: bool) -> None:
        expected = isinstance(error, ClmetaError)
        line = str(error) if expected else f"{type(error).__name__}: {error}".splitlines()[0]
        trace = None if expected else "".join(traceback.format_exception(error))
        keep_error(run, line, trace, alone)
        self.tell(Event(self.number, "run failed", error=line, trace=trace, run=run.name))


def keep_error(run: SweepRun, error: str, trace: str | None, alone: bool) -> None:
    """Write ``error.json`` into the run's folder, if anything can be written there."""
    content = {"error": error, "trace": trace, "alone": alone, "time": time.time()}
    with suppress(OSError):
        run.folder.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(run.folder)
        folder.write_json(run.folder / ERROR, as_json("error", content))
