"""What a sweep does at a time: the same on every start, and no more than fits into memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clmeta.errors import RunFolderError
from clmeta.replicas import size as _chunk_size
from clmeta.replicas.run import learners_at_a_time
from clmeta.replicas.size import SHARE, learner_bytes
from clmeta.runs.runner import prepare
from clmeta.sweep import plan as chunks
from clmeta.sweep.spec import SweepSpec
from clmeta.sweep.work import do_chunk

SHORT = {"stream_options": {"tasks": 1, "steps_per_task": 20}}
SPEC = SweepSpec(SHORT, {"alpha0": [1e-4, 1e-3], "blocks": ["scalar", "layer"]}, seeds=[0, 1])


@pytest.fixture(autouse=True)
def digits():
    pytest.importorskip("sklearn")


def sweep_runs(output: Path) -> list[chunks.SweepRun]:
    return chunks.sweep_runs(output, SPEC.configs())


def finish(run: chunks.SweepRun) -> None:
    run.folder.mkdir()
    (run.folder / "summary.json").write_text("{}")


def names(planned: list[chunks.Chunk]) -> list[list[str]]:
    return [[run.name for run in chunk.runs] for chunk in planned]


def memory_for(learners: int) -> int:
    """Bytes of which so many learners may take their share."""
    return int(learner_bytes(prepare(SPEC.configs()[0])) * (learners + 0.5) / SHARE)


# ---- the same on every start ------------------------------------------------------------------


@pytest.mark.parametrize("again", [3, 4, None], ids=["the same size", "a larger one", "none"])
def test_chunks_of_a_size_asked_for_stay_when_started_again(tmp_path, again):
    runs = sweep_runs(tmp_path)
    planned = chunks.plan(tmp_path, runs, at_a_time=1, chunk=3, measure=False)
    assert sorted(len(chunk.runs) for chunk in planned) == [2, 3, 3]
    finish(runs[0])
    assert chunks.plan(tmp_path, runs, at_a_time=1, chunk=again, measure=False) == planned


def test_chunks_larger_than_a_size_asked_for_are_planned_anew_and_forgotten(tmp_path):
    runs = sweep_runs(tmp_path)
    chunks.plan(tmp_path, runs, at_a_time=1, chunk=4, measure=False)
    finish(runs[0])
    planned = chunks.plan(tmp_path, runs, at_a_time=1, chunk=2, measure=False)
    assert sorted(name for chunk in names(planned) for name in chunk) == sorted(
        run.name for run in runs[1:]
    )
    assert max(len(chunk.runs) for chunk in planned) == 2
    written = json.loads((tmp_path / ".sweep" / "chunks.json").read_text())["chunks"]
    assert written == names(planned)
    assert chunks.plan(tmp_path, runs, at_a_time=1, measure=False) == planned


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"chunks": 3}', '{"chunks": [[3]]}', '{"chunks": [null]}']
)
def test_a_damaged_plan_is_an_error_that_says_what_to_do_and_a_damaged_error_none(tmp_path, text):
    runs = sweep_runs(tmp_path)
    (tmp_path / ".sweep").mkdir()
    (tmp_path / ".sweep" / "chunks.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"chunks.json cannot be read: remove it"):
        chunks.plan(tmp_path, runs, at_a_time=1, measure=False)
    runs[0].folder.mkdir()
    (runs[0].folder / "error.json").write_text(text)
    assert runs[0].error is None and not runs[0].failed_alone


# ---- memory -----------------------------------------------------------------------------------


def test_processes_that_train_at_the_same_time_share_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_chunk_size, "available_bytes", lambda device: memory_for(4))
    configs = SPEC.configs()
    assert learners_at_a_time(configs) == 4
    assert learners_at_a_time(configs, processes=2) == 2
    assert learners_at_a_time(configs, processes=8) == 1
    planned = chunks.plan(tmp_path, sweep_runs(tmp_path), at_a_time=2)
    assert [len(chunk.runs) for chunk in planned] == [2, 2, 2, 2]


def test_a_task_of_a_cluster_gets_what_fits_into_the_memory_asked_for(tmp_path):
    planned = chunks.plan(
        tmp_path, sweep_runs(tmp_path), at_a_time=1, measure=False, memory=memory_for(3)
    )
    assert sorted(len(chunk.runs) for chunk in planned) == [2, 3, 3]


def test_memory_is_predicted_for_a_task_that_asks_for_none(monkeypatch):
    monkeypatch.setattr("clmeta.replicas.run.ELSEWHERE", memory_for(3))
    assert learners_at_a_time(SPEC.configs(), measure=False) == 3


def test_a_number_asked_for_is_not_bounded_by_a_prediction():
    assert learners_at_a_time(SPEC.configs(), chunk=6, measure=False, memory=1) == 6


def test_free_memory_needs_nothing_of_one_system_and_may_be_unknown(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert learners_at_a_time(SPEC.configs()) == 8
    monkeypatch.setattr(_chunk_size, "available_bytes", lambda device: None)
    assert learners_at_a_time(SPEC.configs()) == 8


def test_runs_that_cannot_train_together_after_all_say_why(tmp_path, monkeypatch):
    def full(*args, **options):
        raise MemoryError("tried to allocate 40 GiB\nand more")

    monkeypatch.setattr("clmeta.replicas.run.run_replicas", full)
    runs = tuple(sweep_runs(tmp_path)[:2])
    told = []
    do_chunk(0, chunks.Chunk(runs, tmp_path), told.append)
    (note,) = [event.error for event in told if event.kind == "note"]
    assert note == "2 runs go one by one: MemoryError: tried to allocate 40 GiB"
    assert all(run.finished for run in runs)
