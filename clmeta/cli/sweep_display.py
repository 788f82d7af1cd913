"""One bar for a whole sweep: runs done and failed, share of the work, time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from clmeta.cli.display import duration
from clmeta.sweep.jobs import Event
from clmeta.sweep.work import Told

#: Seconds between two lines where there is no terminal to move a bar on.
LINE_EVERY = 30.0
#: Seconds of progress before it tells how long the rest takes.
SETTLING = 2.0


class SweepDisplay:
    """A context that shows a sweep's events on standard error.

    On a terminal a bar moves; elsewhere there is a line every half minute and for every failure.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.shares: dict[int, float] = {}
        self.settled: dict[int, int] = {}
        self.runs = self.done = self.failed = self.planned = 0
        self.notes: set[str | None] = set()
        self.first: tuple[float, float] | None = None
        self.said = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", style="cyan"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.row = self.bar.add_task("", total=1.0, note="")

    def __enter__(self) -> SweepDisplay:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def plan(self, runs: int, finished: int, planned: int) -> None:
        """Of ``runs``, so many are finished and so many are about to be done here."""
        self.runs, self.done, self.planned = runs, finished, planned
        self.shares, self.settled = {}, {}
        self.first = None
        self._refresh()

    def waiting(self, finished: int) -> None:
        """Other processes do what is left."""
        self.done = finished
        self._refresh("waiting for runs that another process does")

    def show(self, event: Event) -> None:
        """Show one event."""
        job = event.job
        if event.kind in ("run finished", "run failed"):
            self.settled[job] = self.settled.get(job, 0) + 1
            self.shares[job] = self.settled[job]
            self.done += event.kind == "run finished"
        if event.kind == "run failed" and isinstance(event, Told):
            self.failed += 1
            self.bar.print(f"{event.run}: failed: {event.error}", markup=False, soft_wrap=True)
        if event.kind == "note" and event.error not in self.notes:
            self.notes.add(event.error)
            self.bar.print(event.error, markup=False, soft_wrap=True)
        if event.kind == "failed":
            self.bar.print(f"failed: {event.error}", markup=False, soft_wrap=True)
        if event.kind == "progress" and isinstance(event, Told) and event.steps:
            part = event.runs * event.done / event.steps
            self.shares[job] = self.settled.get(job, 0) + part
        self._refresh()

    def left(self) -> float | None:
        """Seconds that the planned runs will take yet, at the pace so far; None at the start.

        Processes take seconds to start, so the clock runs from the first progress.
        """
        share = sum(self.shares.values())
        if share > 0 and self.first is None:
            self.first = (time.monotonic(), share)
        if self.first is None:
            return None
        seconds, gain = time.monotonic() - self.first[0], share - self.first[1]
        if seconds < SETTLING or gain <= 0:
            return None
        return seconds * max(self.planned - share, 0.0) / gain

    def _refresh(self, note: str | None = None) -> None:
        text = f"{self.done} of {self.runs} runs done"
        if self.failed:
            text += f", {self.failed} failed"
        partial = sum(self.shares.values()) - sum(self.settled.values())
        share = (self.done + self.failed + partial) / max(self.runs, 1)
        if note is None:
            left = self.left()
            note = "starting" if left is None else f"{duration(left)} left"
        self.bar.update(self.row, description=text, completed=min(share, 1.0), note=note)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said >= LINE_EVERY:
            self.said = now
            self.console.print(f"{text}, {share:.0%}, {note}", soft_wrap=True)
