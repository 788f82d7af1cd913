"""One bar for a sweep: what is done, what failed, how long the rest takes."""

from __future__ import annotations

import pytest

from clmeta.cli import sweep_display
from clmeta.cli.sweep_display import SweepDisplay
from clmeta.sweep.work import Told


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(sweep_display.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_counts_from_the_first_progress_and_all_planned_runs(clock):
    display = SweepDisplay()
    display.plan(runs=12, finished=2, planned=10)
    clock[0] += 50  # processes start
    display.show(Told(0, "started"))
    assert display.left() is None
    display.show(Told(0, "progress", runs=4, done=0, steps=100))
    display.show(Told(0, "progress", runs=4, done=5, steps=100))
    clock[0] += 8
    display.show(Told(0, "progress", runs=4, done=25, steps=100))
    # 0.8 runs' worth in 8 seconds, 9 of 10 to go
    assert display.left() == pytest.approx(90)
    display.show(Told(0, "run finished", run="a"))
    assert display.done == 3


def test_without_a_terminal_failures_and_notes_are_said_once(clock, capsys):
    display = SweepDisplay()
    display.plan(runs=2, finished=0, planned=2)
    for number in range(2):
        display.show(Told(number, "note", error="runs go one by one"))
    display.show(Told(0, "run failed", run="a", error="no luck"))
    clock[0] += 31
    display.show(Told(1, "progress", done=1, steps=2))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "runs go one by one",
        "a: failed: no luck",
        "0 of 2 runs done, 1 failed, 75%, 31 s left",
    ]
