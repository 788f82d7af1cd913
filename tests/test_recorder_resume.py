"""A recorder that goes on from its state leaves the files of one that was never stopped."""

import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmeta.errors import BadArgument, RunFolderError
from clmeta.record.recorder import Recorder
from clmeta.record.runfolder import RunFolder

CONFIG = {"seed": 0, "stream_options": {"tasks": 3}}
BLOCKS = ["body", "head"]


def do(recorder: Recorder, tasks: list[int], start: int, stop: int) -> None:
    """Steps from one to another, of tasks with so many each; a task ends after its last."""
    ends = {sum(tasks[: i + 1]): i for i in range(len(tasks))}
    for step in range(start, stop):
        task = sum(end <= step for end in ends)
        loss = torch.tensor(1 / (step + 1)) if step % 2 else 1 / (step + 1)
        correct = math.nan if step % 5 == 4 else step % 3 == 0
        recorder.record(task, loss, correct, torch.tensor([1e-3 * step, 0.2]))
        if step + 1 in ends:
            recorder.end_task(task, 0.5)


def parquet(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("tasks.parquet"), *folder.glob("trajectory/*")]
    return {file.name: file.read_bytes() for file in files}


def saved(state, folder: Path):
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


@settings(max_examples=15, deadline=None)
@given(
    part_steps=st.integers(1, 7),
    tasks=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    stops=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.booleans()), max_size=3),
)
def test_files_after_any_number_of_kills_are_those_of_a_run_never_stopped(
    part_steps, tasks, stops
) -> None:
    """Each stop: how far the run got, what it did after its state was taken, whether it flushed."""
    total = sum(tasks)
    with tempfile.TemporaryDirectory() as temporary:
        whole, stopped = Path(temporary, "whole"), Path(temporary, "stopped")
        with Recorder(whole, BLOCKS, config=CONFIG, part_steps=part_steps) as recorder:
            do(recorder, tasks, 0, total)
        at, state = 0, None
        for share, more, flushed in stops:
            recorder = Recorder(stopped, BLOCKS, config=CONFIG, part_steps=part_steps, resume=state)
            until = at + round(share * (total - at))
            do(recorder, tasks, at, until)
            state, at = saved(recorder.state(), Path(temporary)), until
            do(recorder, tasks, at, min(total, at + more))
            if flushed:
                recorder.flush()
            recorder.folder.release()  # as the system does when it kills
        with Recorder(
            stopped, BLOCKS, config=CONFIG, part_steps=part_steps, resume=state
        ) as recorder:
            assert recorder.steps == at
            do(recorder, tasks, at, total)
        assert parquet(stopped) == parquet(whole)
        ours, theirs = RunFolder(stopped).summary, RunFolder(whole).summary
        assert {k: v for k, v in ours.items() if k not in ("seconds", "finished")} == {
            k: v for k, v in theirs.items() if k not in ("seconds", "finished")
        }


def stopped(folder: Path) -> dict:
    """The state of a run that was stopped in its third part."""
    recorder = Recorder(folder, BLOCKS, config=CONFIG, part_steps=4)
    do(recorder, [20], 0, 10)
    state = recorder.state()
    recorder.folder.release()
    return state


def test_taking_the_state_changes_nothing_and_shares_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, BLOCKS, config=CONFIG, part_steps=8)
    do(recorder, [20], 0, 5)
    before, first = parquet(tmp_path), recorder.state()
    assert parquet(tmp_path) == before and recorder.steps == 5
    first["rows"]["loss"].zero_()
    assert recorder.state()["rows"]["loss"].min() > 0
    recorder.close()
    with pytest.raises(RunFolderError, match="closed"):
        recorder.state()


def test_a_run_goes_on_only_where_its_parts_and_its_config_are(tmp_path: Path) -> None:
    state = stopped(tmp_path)
    other = {**CONFIG, "seed": 7}
    with pytest.raises(RunFolderError, match=r"another config \(seed=0 there and 7 here\)"):
        Recorder(tmp_path, BLOCKS, config=other, part_steps=4, resume=state)
    with pytest.raises(BadArgument, match=r"resume\['blocks'\]=.*must be those of the recorder: a"):
        Recorder(tmp_path, ["a"], config=CONFIG, part_steps=4, resume=state)
    for damage, message in (
        (lambda part: part.unlink(), "lacks part-00001.parquet"),
        (lambda part: part.write_bytes(b"PAR1"), "part-00001.parquet cannot be read"),
        (lambda part: shutil.copy(part.with_name("kept"), part), "holds 12 steps in 2 parts"),
    ):
        part = tmp_path / "trajectory" / "part-00001.parquet"
        damage(part)
        with pytest.raises(RunFolderError, match=message):
            Recorder(tmp_path, BLOCKS, config=CONFIG, part_steps=4, resume=state)
        if not part.with_name("kept").exists():
            with Recorder(tmp_path / "longer", BLOCKS, part_steps=8) as longer:
                do(longer, [20], 0, 8)
            shutil.copy(tmp_path / "longer/trajectory/part-00000.parquet", part.with_name("kept"))


def places(value, path=()):
    for key in value if isinstance(value, dict) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def test_a_state_that_is_damaged_anywhere_is_refused_by_the_name_of_the_entry(
    tmp_path: Path,
) -> None:
    state = stopped(tmp_path)
    wrong = [
        None,
        "x",
        [],
        {},
        -3,
        10**400,
        torch.ones(7, 2),
        torch.ones(2, device="meta"),
        math.nan,
    ]
    before = parquet(tmp_path)
    for path in list(places(state)):
        for value in ["left out", *wrong]:
            damaged = {**state, "rows": {**state["rows"]}, "tasks": {**state["tasks"]}}
            holder = damaged
            for key in path[:-1]:
                holder = holder[key]
            if isinstance(value, str) and value == "left out":
                del holder[path[-1]]
            else:
                holder[path[-1]] = value
            with pytest.raises(BadArgument, match=rf"resume.*{path[-1]}"):
                Recorder(tmp_path, BLOCKS, config=CONFIG, part_steps=4, resume=damaged)
    assert parquet(tmp_path) == before
    with Recorder(tmp_path, BLOCKS, config=CONFIG, part_steps=4, resume=state) as recorder:
        do(recorder, [20], 10, 20)
