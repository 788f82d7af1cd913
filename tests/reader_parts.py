"""Processes that do what a user types, from Pythons that have the libraries: see `reader.py`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What most tasks import sooner or later; torch loads its compiler when an optimiser first steps.
LIBRARIES = (
    *("rich", "sklearn.datasets", "scipy.stats", "pyarrow.parquet"),
    *("matplotlib.backends.backend_pdf", "torch._dynamo", "torch.func"),
    *("clmeta.cli.app", "clmeta.streams", "clmeta.analysis.plots"),
    *("clmeta.general", "clmeta.replicas.run", "clmeta.sweep.run"),
)

Step = list[str]


class Task:
    """A process that does some steps; it ends by itself or by a signal to ``pid``.

    Attributes:
        pid: its id, which is its group's too.
    """

    def __init__(self, reader: Reader, place: Path, steps: list[Step]) -> None:
        self.reader, self.place, self.steps = reader, place, steps
        self.pid = int(reader.answer())
        self.status: int | None = None

    @property
    def going(self) -> bool:
        """Whether it has not ended."""
        return self.status is None and not self.reader.answered

    def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        if self.status is None:
            self.status, self.reader.task = int(self.reader.answer()), None
        return self.status

    @property
    def done(self) -> int:
        """How many steps were begun."""
        return len(list(self.place.glob("out-*.txt")))

    def out(self, number: int = -1) -> str:
        """What a step, by default the last one, prints; of one under way, so far."""
        return self._said("out", number)

    def err(self, number: int = -1) -> str:
        """What it prints to standard error."""
        return self._said("err", number)

    @property
    def failure(self) -> str:
        """All that the last step printed."""
        return self.out(self.done - 1) + self.err(self.done - 1)

    def _said(self, stream: str, number: int) -> str:
        file = self.place / f"{stream}-{number % len(self.steps)}.txt"
        return file.read_text(encoding="utf-8") if file.exists() else ""


class Reader:
    """A running ``reader.py``, which does one task at a time; ``libraries`` are loaded once."""

    def __init__(self, *libraries: str) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="reader-")
        self.complaints = open(f"{self.place.name}/complaints.txt", "w+", encoding="utf-8")  # noqa: SIM115
        self.task: Task | None = None
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "reader.py"), *libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            cwd=ROOT,
            # A process that is forked from one with threads at work waits for them for ever.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    @property
    def answered(self) -> bool:
        """Whether there is something to read."""
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    @property
    def alive(self) -> bool:
        """Whether it can do more."""
        return self.process.poll() is None

    def start(self, folder: Path, *steps: Step, **environment: str) -> Task:
        """Begin to do the steps in a folder."""
        self._stop()  # what a test that failed left
        self.count += 1
        place = Path(self.place.name, str(self.count))
        place.mkdir()
        asked = {"folder": str(folder), "steps": steps, "environment": environment}
        (place / "task.json").write_text(json.dumps(asked), encoding="utf-8")
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # there will be no answer
            print(place / "task.json", file=self.process.stdin, flush=True)
        self.task = Task(self, place, list(steps))
        return self.task

    def do(self, folder: Path, *steps: Step, **environment: str) -> Task:
        """Do the steps in a folder, to their end or the first that fails."""
        task = self.start(folder, *steps, **environment)
        task.wait()
        return task

    def answer(self) -> str:
        """The next line of the process."""
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if not line:
            self.process.wait()
            self.complaints.seek(0)
            said = self.complaints.read()
            raise RuntimeError(f"the reader ended with {self.process.returncode}:\n{said}")
        return line

    def _stop(self) -> None:
        if self.task is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.task.pid, signal.SIGKILL)
            self.task.wait()

    def close(self) -> None:
        """End it, and its task."""
        self._stop()
        self.process.kill()
        self.process.communicate()
        self.complaints.close()
        self.place.cleanup()
