"""How far several runs are, and which of them failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clmeta.errors import ClmetaError

#: Seconds between two reports of progress.
REPORT_EVERY = 0.25


class ReplicasFailed(ClmetaError):
    """Some runs ended by an error; all others are finished.

    Attributes:
        errors: number of each failed run, in the order of the configs, to its error.
    """

    def __init__(self, errors: dict[int, BaseException], folders: Sequence[Path]) -> None:
        self.errors = errors
        first = min(errors)
        text = f"{len(errors)} of {len(folders)} runs failed; {folders[first]}: {errors[first]}"
        super().__init__(text)


@dataclass(frozen=True)
class ReplicasProgress:
    """Where all runs of a call stand.

    Attributes:
        step: steps done, over all runs.
        steps: steps of all runs.
        finished, failed: numbers of runs.
        runs: number of all runs.
    """

    step: int
    steps: int
    finished: int
    failed: int
    runs: int


OnReplicasProgress = Callable[[ReplicasProgress], object]


class Tally:
    """Counts steps and ends, and reports now and then."""

    def __init__(self, steps: int, runs: int, on_progress: OnReplicasProgress | None) -> None:
        self.steps, self.runs, self.on_progress = steps, runs, on_progress
        self.done = self.finished = 0
        self.errors: dict[int, BaseException] = {}
        self.due = time.monotonic() + REPORT_EVERY

    def add(self, steps: int) -> None:
        """So many learner-steps more are done."""
        self.done += steps
        if time.monotonic() >= self.due:
            self.report()

    def end(self, ends: dict[int, BaseException | None]) -> None:
        """Runs ended, by number: with an error, or None."""
        for number, error in ends.items():
            if error is None:
                self.finished += 1
            else:
                self.errors[number] = error

    def report(self) -> None:
        """Report progress now."""
        if self.on_progress is not None:
            state = (self.done, self.steps, self.finished, len(self.errors), self.runs)
            self.on_progress(ReplicasProgress(*state))
            self.due = time.monotonic() + REPORT_EVERY
