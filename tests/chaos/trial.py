"""One case: undisturbed for comparison, then killed again and again until it ends by itself."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases import Case
from compare import leftovers, unequal, unreadable
from inside import Board
from reader_parts import Reader, Task

#: What is done to a start, and how often of ten.
WAYS = {
    "all": 3,
    "write": 3,
    "parent": 1,
    "worker": 1,
    "term": 1,
    "full": 1,
    "closed": 1,
    "small": 1,
}
KILLS = ("all", "write", "parent", "worker", "term")
#: By a signal from another process.
WAYS_OUTSIDE = ("all", "parent", "worker", "term")
#: Starts that may end with an error because of what was done to one before.
PATIENCE = 3
#: Seconds after which a start hangs.
HANGS = 200
BEGIN = """
import sys

if __name__ == "__main__":
    sys.path.insert(1, {here!r})
    import inside

    inside.begin(**{plan!r})
"""


@dataclass
class Undisturbed:
    """What a case leaves, and how long it took."""

    folder: Path
    seconds: float
    touches: int
    runs: list[str]


@dataclass
class Result:
    """What was done to a case, and what was wrong then."""

    starts: int = 0
    done: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    twice: float = 0
    late: float = 0

    def note(self, kind: str, what: str) -> None:
        self.wrong.setdefault(kind, []).append(what)

    @property
    def kills(self) -> int:
        return sum(self.done[way] for way in KILLS)


class Place:
    """A folder in which a case is started, with the processes to do it."""

    def __init__(self, reader: Reader, case: Case, folder: Path, runs: list[str]) -> None:
        self.reader, self.case, self.folder, self.runs = reader, case, folder, runs
        self.out, self.temporary = folder / "out", folder / "tmp"
        for each in (self.out, self.temporary, folder / "home"):
            each.mkdir(parents=True)
        self.board_file = folder / "board"
        self.board = Board.new(self.board_file, runs)

    def start(self, **plan: Any) -> Task:
        self.board = Board.new(self.board_file, self.runs)
        given = {"folder": str(self.out), "board": str(self.board_file), "names": self.runs}
        code = BEGIN.format(
            here=str(Path(__file__).parent), plan={**given, "small_demo": self.case.demo, **plan}
        )
        home = {"XDG_CONFIG_HOME": str(self.folder / "home"), "TMPDIR": str(self.temporary)}
        return self.reader.start(self.folder, ["python", code], list(self.case.step), **home)

    def undisturbed(self) -> Undisturbed:
        started = time.monotonic()
        task = self.start()
        if task.wait():
            raise RuntimeError(f"{self.case.name}, undisturbed, fails:\n{task.failure}")
        runs = [str(p.parent.relative_to(self.out)) for p in self.out.rglob("config.json")]
        return Undisturbed(self.out, time.monotonic() - started, self.board.touches, sorted(runs))


class Trial:
    """A case that is killed ``kills`` times at most."""

    def __init__(
        self, place: Place, undisturbed: Undisturbed, random: random.Random, ways: dict[str, int]
    ) -> None:
        self.place, self.random, self.ways = place, random, ways
        self.undisturbed, self.result = undisturbed, Result()
        self.way = ""
        self.last = dict.fromkeys(undisturbed.runs, 0.0)

    def do(self, kills: int) -> Result:
        for _ in range(kills):
            way = self.random.choices(list(self.ways), list(self.ways.values()))[0]
            task = self.place.start(**self._plan(way))
            status = self._disturb(way, task)
            self._look(way, task)
            if status == 0 and way in KILLS:
                break
            self.result.done[way] += 1
            if status == 0:  # what could not be removed then goes with the next start
                self._to_its_end()
                break
        else:
            self._to_its_end()
        self._compare()
        return self.result

    def _plan(self, way: str) -> dict[str, Any]:
        at = self.random.randrange(1, 1 + self.undisturbed.touches)
        if way == "write":
            return {"kill_at": at, "whole": self.random.random() < 0.7}
        if way in ("full", "closed"):
            many = self.random.choice((1, 3, 30, 10**6))
            return {"fault": way, "fault_at": at, "fault_for": many}
        if way == "small":
            return {"fault": way, "size": self.random.randrange(2000, 30_000)}
        return {}

    def _disturb(self, way: str, task: Task) -> int:
        """Wait, kill if that is the way, and wait for the end."""
        self.result.starts += 1
        until = self.random.uniform(0, 0.8 * self.undisturbed.seconds)
        if way in WAYS_OUTSIDE and not self._ends(task, until):
            others = [pid for pid in group(task.pid) if pid != task.pid]
            pid = self.random.choice(others) if way == "worker" and others else task.pid
            asked = self.random.choice((signal.SIGTERM, signal.SIGHUP))
            with suppress(ProcessLookupError):
                kill = os.kill if way in ("parent", "worker") else os.killpg
                kill(pid, asked if way == "term" else signal.SIGKILL)
        if not self._ends(task, HANGS):
            self.result.note("hangs", f"{way}: {task.failure}")
            with suppress(ProcessLookupError):
                os.killpg(task.pid, signal.SIGKILL)
        return task.wait()

    def _ends(self, task: Task, seconds: float) -> bool:
        """Whether the task ends within some time."""
        deadline = time.monotonic() + seconds
        while task.going and (left := deadline - time.monotonic()) > 0:
            try:
                os.kill(task.pid, 0)
            except ProcessLookupError:  # the answer was read with the one before
                return True
            select.select([self.place.reader.process.stdout], [], [], min(left, 0.2))
        return not task.going

    def _look(self, way: str, task: Task) -> None:
        """What can be said after any end."""
        for each in unreadable(self.place.out):
            self.result.note("unreadable", f"{way}: {each}")
        if "Traceback" in task.failure and not self._explained(task.failure):
            self.result.note("tracebacks", f"{way}: {task.failure}")
        for name in self.undisturbed.runs:
            row = self.place.board.read(name)
            if row["first"] < 0:
                continue
            twice = self.last[name] - row["first"]
            self.result.twice = max(self.result.twice, twice)
            if self.place.case.twice is not None and twice > self.place.case.twice:
                self.result.note(
                    "lost", f"{name}: {twice:.0f} steps are done twice after {self.way}"
                )
            self.last[name] = row["last"]
            late = row["now"] - row["saved"] - row["promised"] - row["longest"]
            if self.place.case.twice is None:
                self.result.late = max(self.result.late, late)
                if late > 0.5:
                    self.result.note("lost", f"{name}: {late:.1f} s more than promised, {way}")
        self.way = way

    def _explained(self, said: str) -> bool:
        """Whether code of one's own ended with an error that is meant for its author."""
        if "ResourceWarning: unclosed file" in said:  # a signal came between `open` and `with`
            return True
        last = [line for line in said.splitlines() if line and not line.startswith(" ")][-1]
        return self.place.case.step[0] == "python" and last.startswith("clmeta.")

    def _to_its_end(self) -> None:
        for attempt in range(PATIENCE):
            task = self.place.start()
            status = self._disturb("", task)
            self._look("again", task)
            if status == 0:
                return
            if attempt == PATIENCE - 1:
                self.result.note("stuck", f"status {status}:\n{task.failure}")

    def _compare(self) -> None:
        found, expected = self.place.out, self.undisturbed.folder
        for each in unequal(found, expected):
            self.result.note("unequal", each)
        for each in leftovers(found, expected):
            self.result.note("leftovers", each)
        for path in self.place.temporary.iterdir():
            self.result.note("leftovers", f"temporary directory: {path.name}")
        if not self.result.wrong:
            shutil.rmtree(self.place.folder)


def group(leader: int) -> list[int]:
    """The processes of a group that are alive; none where the system does not tell."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            tracker = b"resource_tracker" in stat.with_name("cmdline").read_bytes()  # Python's own
            if int(fields[2]) == leader and fields[0] not in "ZX" and not tracker:
                found.append(int(stat.parent.name))
    return found
