"""What the terminal shows while runs go on: a bar for all, a line a process, the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.text import Text

from clmeta.cli.console import console
from clmeta.errors import RunFolderError, printable
from clmeta.record.runfolder import RunFolder
from clmeta.sweep.jobs import Event
from clmeta.sweep.plan import Chunk

#: Seconds between two lines where there is no terminal to move a bar on.
LINE_EVERY = 30.0
#: Seconds of progress before it tells how long the rest takes.
SETTLING = 2.0
#: Step sizes shown one by one; of more blocks the smallest and the largest are shown.
MOST_BLOCKS = 3
#: Fewest characters of a bar.
LEAST_BAR = 6


def alphas(step_sizes: Mapping[str, float]) -> str:
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
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def counted(runs: int) -> str:
    """``1 run``, ``2 runs``."""
    return f"{runs} run{'' if runs == 1 else 's'}"


def bar(share: float | None, width: int) -> str:
    """A bar in text with its percentage, which alone stands where there is little room.

    Empty while nothing is known yet.
    """
    if share is None:
        return " " * (width + 6)
    width = width if width >= LEAST_BAR else 0
    full = min(int(share * width), width)
    return f"{'━' * full}{'─' * (width - full)} {min(share, 1):4.0%}"


@dataclass
class _UnderWay:
    """A chunk that a process does."""

    names: list[str]
    started: float
    share: float | None = None
    note: str = "starting"


def _after(chunk: _UnderWay | None) -> str:
    return "" if chunk is None else f" after {duration(time.monotonic() - chunk.started)}"


class Display:
    """A context that shows on standard error how runs go.

    On a terminal bars move; each run that ends leaves a line. Elsewhere there are these lines, and
    one about all runs every half minute.

    Args:
        folders: the runs' names and folders.
        labels: the runs' names and what to call them.
    """

    def __init__(self, folders: Mapping[str, Path], labels: Mapping[str, str]) -> None:
        self.console = console(stderr=True)
        self.folders, self.labels = folders, labels
        self.total = self.done = self.planned = 0
        self.failed: set[str] = set()
        self.ended: set[str] = set()
        self.chunks: Sequence[Chunk] = ()
        self.under_way: dict[int, _UnderWay] = {}
        self.waits = False
        self.notes: set[str | None] = set()
        self.began = self.said = time.monotonic()
        self.first: tuple[float, float] | None = None
        self.live = Live(
            console=self.console, get_renderable=self._picture, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    # ---- what happens ----------------------------------------------------------------------

    def plan(self, runs: int, finished: int, chunks: Sequence[Chunk]) -> None:
        """Of ``runs``, so many are finished; the chunks are about to be done here."""
        self.total, self.done, self.chunks = runs, finished, chunks
        self.under_way, self.ended, self.first, self.waits = {}, set(), None, False
        self.planned = sum(len(chunk.missing) for chunk in chunks)
        if self.planned and not self.console.is_terminal:
            self._line(f"{counted(runs)}, {finished} finished; {self.planned} to do")

    def waiting(self, finished: int) -> None:
        """Other processes do what is left."""
        self.done, self.waits = finished, True
        self._now_and_then()

    def show(self, event: Event) -> None:
        """Show one event."""
        now = time.monotonic()
        if event.kind == "started":
            names = [run.name for run in self.chunks[event.job].missing]
            self.under_way[event.job] = _UnderWay(names, now)
        chunk = self.under_way.get(event.job)
        if event.kind == "progress" and chunk is not None and event.steps:
            chunk.share = event.done / event.steps
            chunk.note = f"{event.runs} runs together" if event.runs > 1 else ""
            if event.accuracy is not None:
                chunk.note = f"accuracy {event.accuracy:.1%}  {alphas(event.alpha or {})}"
        elif event.kind in ("run finished", "run failed") and event.run:
            self._end(event.run, event.kind.removeprefix("run "), chunk, event.error)
        elif event.kind == "note" and event.error not in self.notes:
            self.notes.add(event.error)
            self._line(f"Note: {event.error}.")
        elif event.kind in ("interrupted", "failed"):
            names = chunk.names if chunk else [r.name for r in self.chunks[event.job].missing]
            left = [name for name in names if name not in self.ended]
            if event.kind == "interrupted" and left:
                self._line(f"{self._called(left)}: interrupted{_after(chunk)}")
            else:
                for name in left:
                    self._end(name, event.kind, chunk, event.error)
        if event.kind in ("finished", "failed", "interrupted"):
            self.under_way.pop(event.job, None)
        if self.first is None and (done := self._done_here()) > 0:
            self.first = (now, done)
        self._now_and_then()

    def _end(self, name: str, how: str, chunk: _UnderWay | None, error: str | None) -> None:
        self.ended.add(name)
        said = f"{self._called([name])}: {how}{_after(chunk)}"
        if how == "finished":
            self.done += 1
            with suppress(RunFolderError):
                summary = RunFolder(self.folders[name]).summary
                said += f", accuracy {summary['cumulative_accuracy']:.1%}"
                said += f", {alphas(summary['step_sizes'])}"
        elif how == "failed":
            self.failed.add(name)
            said += f": {error}" if error and self.total > 1 else ""
        self._line(said)

    # ---- what it looks like ----------------------------------------------------------------

    def left(self) -> float | None:
        """Seconds that the planned runs will take yet, at the pace so far; None at the start.

        Processes take seconds to start, so the clock runs from the first progress.
        """
        done = self._done_here()
        if self.first is None:
            return None
        seconds, gain = time.monotonic() - self.first[0], done - self.first[1]
        if seconds < SETTLING or gain <= 0:
            return None
        return seconds * max(self.planned - done, 0.0) / gain

    def _done_here(self) -> float:
        """Runs' worth of work done since the plan."""
        running = 0.0
        for chunk in self.under_way.values():
            left = [name for name in chunk.names if name not in self.ended]
            running += len(left) * (chunk.share or 0.0)
        return len(self.ended) + running

    def _state(self) -> tuple[str, float | None, str]:
        """Runs done, share of all work, time: what is said of all runs."""
        text = f"{self.done} of {counted(self.total)} done"
        if self.failed:
            text += f", {len(self.failed)} failed"
        left, done = self.left(), self._done_here()
        took = duration(time.monotonic() - self.began)
        if self.waits:
            return text, None, f"{took}, waiting for runs that another process does"
        if done == 0:
            return text, None, f"{took}, starting"
        before = self.total - self.planned
        share = (before + done) / max(self.total, 1)
        return text, share, took if left is None else f"{took}, about {duration(left)} left"

    def _picture(self) -> Group:
        text, share, timing = self._state()
        width = min(32, self.console.width - len(text) - len(timing) - 9)
        row = [text, timing] if share is None else [text, bar(share, width), timing]
        lines = [Text("  ".join(row))]
        for chunk in self.under_way.values():
            left = [name for name in chunk.names if name not in self.ended]
            if left:
                row = [f"  {bar(chunk.share, 10)}", self._called(left), chunk.note]
                lines.append(Text(printable("  ".join(row))))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)

    def _called(self, names: Sequence[str]) -> str:
        first = self.labels.get(names[0], names[0])
        return f"{first} and {len(names) - 1} more" if len(names) > 1 else first

    def _line(self, text: str) -> None:
        self.said = time.monotonic()
        self.console.print(text)

    def _now_and_then(self) -> None:
        if not self.console.is_terminal and time.monotonic() - self.said >= LINE_EVERY:
            text, share, timing = self._state()
            self._line(", ".join([text, *([] if share is None else [f"{share:.0%}"]), timing]))
