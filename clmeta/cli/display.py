"""What the terminal shows while runs go on: a bar for all, a bar for each, accuracy, step sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from clmeta.sweep.jobs import ENDS, Event, Job

#: Step sizes shown one by one; of more blocks the smallest and the largest are shown.
MOST_BLOCKS = 3


def alphas(step_sizes: dict[str, float]) -> str:
    """Step sizes in a few characters: ``alpha 3.1e-04``, or their range if there are many."""
    values = list(step_sizes.values())
    if len(values) > MOST_BLOCKS:
        return f"alpha {min(values):.1e}..{max(values):.1e}"
    return "alpha " + " ".join(f"{value:.1e}" for value in values)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``8 s``, ``2 min 05 s``, ``1 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


class Display:
    """A context that shows the events of `clmeta.sweep.jobs.run_jobs` on standard error.

    On a terminal bars move; elsewhere there is one line for each run that ends.

    Args:
        jobs: the runs, in the order of their numbers in the events.
        labels: what to call them.
    """

    def __init__(self, jobs: Sequence[Job], labels: Sequence[str]) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.labels = list(labels)
        self.width = max(map(len, self.labels), default=0)
        self.shares = [0.0] * len(jobs)
        self.latest: dict[int, Event] = {}
        self.started: dict[int, float] = {}
        self.rows: dict[int, TaskID] = {}
        self.done = 0
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.all = self.bars.add_task(self._all_text(), total=len(jobs), note="")

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        number = event.job
        if event.kind == "started":
            self.started[number] = time.monotonic()
            text = f"{self.labels[number]:{self.width}}"
            self.rows[number] = self.bars.add_task(text, total=None, note="starting")
        elif event.progress is not None:
            self.latest[number] = event
            progress = event.progress
            note = f"accuracy {progress.accuracy:.1%}  {alphas(progress.alpha)}"
            row, total, done = self.rows[number], progress.steps, progress.step
            self.bars.update(row, total=total, completed=done, note=note)
            self.shares[number] = progress.step / progress.steps
        if event.kind in ENDS:
            self._end(event)
        self.bars.update(self.all, completed=sum(self.shares), description=self._all_text())

    def _end(self, event: Event) -> None:
        number = event.job
        self.done += 1
        self.shares[number] = 1.0
        row = self.rows.pop(number, None)
        if row is not None:
            self.bars.remove_task(row)
        line = f"{self.labels[number]:{self.width}}  {self._verdict(event)}"
        self.bars.print(line, soft_wrap=True, markup=False)

    def _verdict(self, event: Event) -> str:
        took = time.monotonic() - self.started.get(event.job, time.monotonic())
        last = self.latest.get(event.job)
        if last is None or last.progress is None:
            return f"{event.kind} after {duration(took)}"
        seen = f"accuracy {last.progress.accuracy:.1%}  {alphas(last.progress.alpha)}"
        return f"{event.kind} after {duration(took)}  {seen}"

    def _all_text(self) -> str:
        return f"{f'{self.done} of {len(self.shares)} runs done':{self.width}}"
