"""What is shown while runs go on, and how numbers are shown to people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from clmeta.cli import display as module
from clmeta.cli.display import Display, alphas, duration
from clmeta.cli.tables import percent, span
from clmeta.runs.config import RunConfig
from clmeta.sweep.jobs import Event
from clmeta.sweep.plan import Chunk, SweepRun


def test_numbers_are_shown_shortly():
    assert alphas({"all": 1.234e-3}) == "alpha 1.2e-03"
    assert alphas(dict.fromkeys("abcd", 1e-3) | {"e": 1e-5}) == "alpha 1.0e-05..1.0e-03"
    assert [duration(s) for s in (8.4, 125, 3725)] == ["8 s", "2 min 05 s", "1 h 02 min"]
    assert percent([0.5]) == "50.0%"
    assert percent([None]) == "-"
    assert span([{"a": 1e-4, "b": 1e-2}, {"a": 1e-2, "b": 1e-2}]) == "1.0e-03 to 1.0e-02"


def test_intervals_are_students():
    """Three values 1, 2, 3 percent: half-width 4.303 / sqrt(3) = 2.48 (t with 2 freedoms)."""
    assert percent([0.01, 0.02, 0.03]) == "2.0% ± 2.5"


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def planned(folder: Path, *sizes: int, finished: int = 0) -> Display:
    """A display of chunks of so many runs, called r0, r1, ...; they train alone or together."""
    names = [f"r{i}" for i in range(sum(sizes))]
    runs = iter([SweepRun(RunConfig(), folder / name) for name in names])
    chunks = [Chunk(tuple(next(runs) for _ in range(size)), folder) for size in sizes]
    display = Display({n: folder / n for n in names}, {n: f"method {n}" for n in names})
    display.plan(sum(sizes) + finished, finished, chunks)
    return display


def finish(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    summary = {"cumulative_accuracy": 0.5, "step_sizes": {"all": 1e-3}}
    (folder / name / "summary.json").write_text(json.dumps(summary))


def test_the_time_left_counts_from_the_first_progress_and_all_planned_runs(clock, tmp_path):
    display = planned(tmp_path, 4, 6, finished=2)
    clock[0] += 50  # processes start
    display.show(Event(0, "started"))
    assert display.left() is None
    display.show(Event(0, "progress", runs=4, done=0, steps=100))
    display.show(Event(0, "progress", runs=4, done=5, steps=100))
    clock[0] += 8
    display.show(Event(0, "progress", runs=4, done=25, steps=100))
    # 0.8 runs' worth in 8 seconds, 9 of 10 to go
    assert display.left() == pytest.approx(90)
    display.show(Event(0, "run finished", run="r0"))
    assert display.done == 3


def test_without_a_terminal_every_end_is_a_line_and_a_note_is_said_once(clock, tmp_path, capsys):
    display = planned(tmp_path, 1, 1, finished=1)
    finish(tmp_path, "r0")
    for number in range(2):
        display.show(Event(number, "started"))
        display.show(Event(number, "note", error="runs go one by one"))
    clock[0] += 12
    display.show(Event(0, "run finished", run="r0"))
    display.show(Event(1, "progress", done=1, steps=2))
    clock[0] += 31
    display.show(Event(1, "progress", done=1, steps=2))
    display.show(Event(1, "run failed", run="r1", error="no luck"))
    assert capsys.readouterr().err.splitlines() == [
        "3 runs, 1 finished; 2 to do",
        "Note: runs go one by one.",
        "method r0: finished after 12 s, accuracy 50.0%, alpha 1.0e-03",
        "2 of 3 runs done, 83%, 43 s, about 31 s left",
        "method r1: failed after 43 s: no luck",
    ]


def test_interrupted_runs_are_not_done(clock, tmp_path, capsys):
    display = planned(tmp_path, 1, 2)
    finish(tmp_path, "r1")
    for number in range(2):
        display.show(Event(number, "started"))
    clock[0] += 5
    display.show(Event(1, "run finished", run="r1"))
    for number in range(2):
        display.show(Event(number, "interrupted"))
    said = capsys.readouterr().err
    assert display.done == 1
    assert said.count("interrupted after 5 s") == 2
    assert "r0: interrupted" in said and "r2: interrupted" in said
    with display.console.capture() as shown:
        display.console.print(display._picture())
    assert shown.get().startswith("1 of 3 runs done") and " 33% " in shown.get()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars_fit_the_window_and_say_that_processes_start(clock, tmp_path, monkeypatch, width):
    display = planned(tmp_path, 1, 3)
    display.console = Console(width=width, force_terminal=True, stderr=True)

    def lines() -> list[str]:
        with display.console.capture() as shown:
            display.console.print(display._picture())
        return shown.get().rstrip("\n").split("\n")

    display.show(Event(0, "started"))
    clock[0] += 3
    assert lines()[0].split() == ["0", "of", "4", "runs", "done", "3", "s,", "starting"]
    assert "%" not in "".join(lines()), "nothing is known of how far they are"
    display.show(Event(0, "progress", done=1, steps=100, accuracy=0.7, alpha={"all": 1e-3}))
    display.show(Event(1, "started"))
    clock[0] += 84
    display.show(Event(0, "progress", done=60, steps=100, accuracy=0.7, alpha={"all": 1e-3}))
    display.show(Event(1, "progress", done=10, steps=100, runs=3))
    first, alone, together = lines()
    assert "1 min 27 s, about" in first and first.endswith("left")
    assert "60%  method r0" in alone and "accuracy 70.0%" in alone
    assert "10%  method r1 and 2 more" in together
    assert all(len(line) <= width for line in (first, alone, together))
