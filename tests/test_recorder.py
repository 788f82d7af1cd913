"""A run folder holds every step recorded, and what the run was."""

import copy
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmeta import MetaOptimize
from clmeta.analysis import load_runs
from clmeta.errors import BadArgument, NonFiniteError, RunFolderError
from clmeta.record.recorder import Recorder
from clmeta.record.runfolder import RunFolder
from clmeta.rules import Lion

CONFIG = {"stream": {"name": "permuted_inputs", "tasks": 2}, "alpha0": 1e-4, "seed": 3}


def record_steps(recorder: Recorder, steps: int, task: int = 0, start: int = 0) -> None:
    for i in range(start, start + steps):
        recorder.record(task, 1.0 / (i + 1), float(i % 2), [1e-3 + i, 2e-3])


def test_pandas_reads_the_trajectory_with_nothing_of_ours(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run", ["body", "head"], config=CONFIG, part_steps=4) as recorder:
        record_steps(recorder, 10)
    frame = pd.read_parquet(tmp_path / "run" / "trajectory")
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        "step": "int64",
        "task": "int32",
        "loss": "float32",
        "correct": "float32",
        "alpha.body": "float32",
        "alpha.head": "float32",
    }
    assert frame["step"].tolist() == list(range(10))
    np.testing.assert_array_equal(frame["alpha.body"], np.float32([1e-3 + i for i in range(10)]))
    np.testing.assert_array_equal(frame["loss"], np.float32([1 / (i + 1) for i in range(10)]))


@settings(max_examples=25, deadline=None)
@given(
    part_steps=st.integers(1, 9),
    tasks=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    values=st.randoms(use_true_random=False),
)
def test_parts_put_together_are_what_was_recorded(part_steps, tasks, values) -> None:
    rows = [
        (task, values.random(), values.random() < 0.5, (values.random(), values.random()))
        for task, steps in enumerate(tasks)
        for _ in range(steps)
    ]
    with tempfile.TemporaryDirectory() as folder:
        with Recorder(folder, ["a", "b"], config={}, part_steps=part_steps) as recorder:
            for task, loss, correct, alpha in rows:
                recorder.record(task, loss, correct, alpha)
        read = pd.read_parquet(Path(folder) / "trajectory")
        per_task = pd.read_parquet(Path(folder) / "tasks.parquet")
    assert read["step"].tolist() == list(range(len(rows)))
    assert read["task"].tolist() == [row[0] for row in rows]
    np.testing.assert_array_equal(read["loss"], np.float32([row[1] for row in rows]))
    np.testing.assert_array_equal(read["correct"], np.float32([row[2] for row in rows]))
    np.testing.assert_array_equal(read[["alpha.a", "alpha.b"]], np.float32([r[3] for r in rows]))
    assert per_task["steps"].tolist() == tasks
    assert per_task["first_step"].tolist() == [sum(tasks[:i]) for i in range(len(tasks))]
    expected = read.groupby("task")["correct"].mean()
    np.testing.assert_allclose(per_task["online_accuracy"], expected, rtol=1e-6)


def test_step_sizes_are_those_of_the_step_although_the_optimiser_changes_them_in_place(
    tmp_path: Path,
) -> None:
    alpha, loss = torch.tensor([1.0, 2.0]), torch.tensor(0.5, requires_grad=True) * 1
    with Recorder(tmp_path, ["a", "b"], config={}) as recorder:
        for _ in range(3):
            recorder.record(0, loss, torch.tensor(True), alpha)
            alpha.mul_(10)
    frame = pd.read_parquet(tmp_path / "trajectory")
    assert frame["alpha.b"].tolist() == [2.0, 20.0, 200.0]
    assert frame["correct"].tolist() == [1.0, 1.0, 1.0]


def test_before_step_keeps_the_step_sizes_that_the_step_will_use(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [w], "lr": 0.1 * (i + 1)} for i, w in enumerate(weights)]
    )
    with Recorder(tmp_path, ["a", "b"], config={}) as recorder:
        for _ in range(2):
            recorder.before_step(optimizer)
            for group in optimizer.param_groups:
                group["lr"] *= 2
            recorder.record(0, 0.0, 1.0)
        with pytest.raises(BadArgument, match=r"alpha=None: .*before_step"):
            recorder.record(0, 0.0, 1.0)
    frame = pd.read_parquet(tmp_path / "trajectory")
    np.testing.assert_allclose(frame[["alpha.a", "alpha.b"]], [[0.1, 0.2], [0.2, 0.4]])


def test_a_finished_run_tells_what_it_was(tmp_path: Path) -> None:
    with Recorder(tmp_path, ["a"], config=CONFIG) as recorder:
        for i in range(8):
            recorder.record(0, 1.0, float(i < 6), 0.1)
        assert recorder.end_task(0, test_accuracy=0.9) == 0.75
        recorder.record(1, 1.0, 0.0, 0.1)
        recorder.close({"note": "first", "final_test": math.nan})
    folder = RunFolder(tmp_path)
    assert folder.finished
    assert folder.config == CONFIG
    assert folder.summary["cumulative_accuracy"] == pytest.approx(6 / 9)
    assert folder.summary["note"] == "first" and folder.summary["final_test"] is None
    assert folder.environment["versions"]["torch"] == torch.__version__
    assert {"python", "platform", "cpu", "threads", "cuda", "git"} <= set(folder.environment)
    tasks = pd.read_parquet(tmp_path / "tasks.parquet")
    assert tasks["online_accuracy"].tolist() == [0.75, 0.0]
    assert tasks["test_accuracy"][0] == 0.9 and math.isnan(tasks["test_accuracy"][1])


def test_an_exception_keeps_what_was_recorded_and_leaves_the_run_unfinished(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, ["a", "b"], config={}, part_steps=4)
    with pytest.raises(KeyboardInterrupt), recorder:
        record_steps(recorder, 6)
        raise KeyboardInterrupt
    assert len(pd.read_parquet(tmp_path / "trajectory")) == 6
    assert not RunFolder(tmp_path).finished
    with pytest.raises(RunFolderError, match="closed"):
        record_steps(recorder, 1)


def test_a_step_size_that_is_not_finite_is_written_and_then_raised(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, ["a", "b"], config={}, part_steps=3)
    record_steps(recorder, 1)
    recorder.record(0, 0.1, 1.0, [0.1, math.nan])
    with pytest.raises(NonFiniteError, match=r"step 1: .*'b'"):
        record_steps(recorder, 1)
    assert len(pd.read_parquet(tmp_path / "trajectory")) == 3


def test_an_update_that_the_optimiser_withheld_is_raised_after_the_part_is_written(
    tmp_path: Path,
) -> None:
    class Withholding(torch.optim.SGD):
        alpha = torch.tensor([0.1])

        def check_finite(self) -> None:
            raise NonFiniteError("step 0: the gradient of block 'a' is not finite")

    optimizer = Withholding([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    recorder = Recorder(tmp_path, ["a"], config={})
    recorder.before_step(optimizer)
    recorder.record(0, 0.1, 1.0)
    with pytest.raises(NonFiniteError, match="gradient of block 'a'"):
        recorder.end_task(0)
    assert len(pd.read_parquet(tmp_path / "trajectory")) == 1
    assert len(pd.read_parquet(tmp_path / "tasks.parquet")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_names": []}, r"block_names=\[\]: name at least one"),
        ({"block_names": ["a", "a"]}, r"block_names=.*differ"),
        ({"part_steps": 0}, r"part_steps=0: must be a whole number of at least 1"),
        ({"config": {"model": object()}}, r"config=.*object has no JSON form"),
        ({"config": {"eta": math.inf}}, r"config=.*use numbers"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    given_arguments = {"block_names": ["a"], "config": {}, **arguments}
    with pytest.raises(BadArgument, match=message):
        Recorder(tmp_path / "run", given_arguments.pop("block_names"), **given_arguments)
    assert not (tmp_path / "run").exists()


def test_a_wrong_value_is_refused_at_its_step(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, ["a", "b"], config={})
    with pytest.raises(BadArgument, match=r"alpha=.*2 values, one a block"):
        recorder.record(0, 0.1, 1.0, [0.1])
    with pytest.raises(BadArgument, match=r"correct=.*mean over the batch"):
        recorder.record(0, 0.1, torch.tensor([1.0, 0.0]), [0.1, 0.1])
    with pytest.raises(BadArgument, match=r"loss=tensor.*mean over the batch"):
        recorder.record(0, torch.ones(2), 1.0, [0.1, 0.1])
    with pytest.raises(BadArgument, match="loss=None: must be one number a step"):
        recorder.record(0, None, 1.0, [0.1, 0.1])
    with pytest.raises(BadArgument, match="alpha='fast': must be numbers, one a block"):
        recorder.record(0, 0.1, 1.0, "fast")
    with pytest.raises(BadArgument, match=r"alpha=.*must have the blocks a, b"):
        recorder.record(0, 0.1, 1.0, {"a": 0.1})
    with pytest.raises(BadArgument, match=r"task='first': must be a whole number"):
        recorder.record("first", 0.1, 1.0, [0.1, 0.1])
    with pytest.raises(BadArgument, match="task=0: record at least one step"):
        recorder.end_task(0)
    record_steps(recorder, 1)
    with pytest.raises(BadArgument, match="test_accuracy=93"):
        recorder.end_task(0, 93.0)


# ---- in a loop of one's own --------------------------------------------------------------------


def ordinary_loop(optimizer, model, recorder, steps=3):
    """Returns the step sizes that each step used."""
    used = []
    for i in range(steps):
        x, y = torch.full((4, 3), 1.0 + i), torch.tensor([0, 1, 1, 0])
        output = model(x)
        loss = torch.nn.functional.cross_entropy(output, y)
        optimizer.zero_grad()
        loss.backward()
        used.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        recorder.record(0, loss, output.argmax(1) == y)
    return used


@pytest.mark.parametrize("make", [
    lambda model: MetaOptimize(model.named_parameters(), blocks="tensor", eta=0.1, alpha0=0.01),
    lambda model: MetaOptimize(model.named_parameters(), torch.optim.SGD, blocks="tensor"),
    lambda model: torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1),
])  # fmt: skip
def test_an_optimiser_given_to_the_recorder_is_followed(tmp_path: Path, make) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = make(model)
    with Recorder(tmp_path, optimizer) as recorder:
        used = ordinary_loop(optimizer, model, recorder)
    frame = pd.read_parquet(tmp_path / "trajectory")
    names = [group.get("name", f"group{i}") for i, group in enumerate(optimizer.param_groups)]
    np.testing.assert_array_equal(frame[[f"alpha.{name}" for name in names]], np.float32(used))
    assert (frame["correct"] * 4).isin(range(5)).all()

    def too_late(_):
        raise AssertionError("the optimiser still tells a recorder that is closed")

    recorder.before_step = too_late
    optimizer.step()


def test_the_config_says_what_the_optimiser_was_made_with(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.ones(1))]
    made = {
        "meta": MetaOptimize(weights, base=Lion(rho=0.9), alpha_max=math.inf, blocks="tensor"),
        "class": MetaOptimize(weights, base=torch.optim.AdamW, gamma=0.9),
        "torch": torch.optim.AdamW(weights, lr=0.25),
    }
    found = {}
    for name, optimizer in made.items():
        with Recorder(tmp_path / name, optimizer, config={"seed": 1, "note": name}) as recorder:
            recorder.record(0, 0.0, 1.0, 0.5)
        config = RunFolder(tmp_path / name).config
        assert config["seed"] == 1 and config["note"] == name
        found[name] = config["optimizer"]
    assert found["meta"]["name"] == "MetaOptimize" and found["meta"]["alpha0"] == 1e-4
    assert found["meta"]["base"].startswith("Lion(rho=0.9") and found["meta"]["alpha_max"] == "inf"
    assert found["class"]["base"] == "AdamW" and found["class"]["gamma"] == 0.9
    assert found["torch"]["lr"] == 0.25 and found["torch"]["betas"] == [0.9, 0.999]
    labels = set(load_runs(tmp_path)["method"])
    assert len(labels) == 3 and "AdamW, note=torch" not in labels


def test_a_step_that_was_left_out_used_the_step_sizes_that_still_hold(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with Recorder(tmp_path, optimizer) as recorder:
        with pytest.raises(BadArgument, match=r"no step was made yet: record after optimizer"):
            recorder.record(0, 0.1)
        optimizer.step()
        recorder.record(0, 0.1)
        recorder.record(0, 0.1)  # as where a gradient scaler skips a step
    frame = pd.read_parquet(tmp_path / "trajectory")
    assert frame["alpha.group0"].tolist() == [0.5, 0.5]
    assert frame["correct"].isna().all(), "nothing was classified"
    assert RunFolder(tmp_path).summary["cumulative_accuracy"] is None


def test_step_sizes_are_taken_by_name(tmp_path: Path) -> None:
    sizes = {"body": 0.1, "head": 0.2}
    with Recorder(tmp_path, sizes) as recorder:
        recorder.record(np.int64(0), np.float32(0.5), True, {"head": 2.0, "body": 1.0})
    frame = pd.read_parquet(tmp_path / "trajectory")
    assert frame[["alpha.body", "alpha.head"]].to_numpy().tolist() == [[1.0, 2.0]]


def test_a_recorder_that_is_dropped_is_not_kept_by_its_optimiser(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    lost = [Recorder(tmp_path, optimizer)]
    lost.clear()
    optimizer.step()
    with Recorder(tmp_path, optimizer) as recorder:
        optimizer.step()
        recorder.record(0, 0.0)
    assert copy.deepcopy(optimizer).state_dict() == optimizer.state_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.nn.Linear(2, 1), "optimizer=Linear.*: pass the optimiser whose step sizes"),
        ("body", "optimizer='body': pass the optimiser whose step sizes are recorded, or the na"),
        (None, "optimizer=None: pass the optimiser"),
        ([0.1, 0.2], r"optimizer=\[0.1, 0.2\]: pass the optimiser"),
    ],
)
def test_what_is_no_optimiser_is_refused(tmp_path: Path, given, message) -> None:
    with pytest.raises(BadArgument, match=message):
        Recorder(tmp_path / "run", given)
    with pytest.raises(BadArgument, match="config='seed': must be a mapping"):
        Recorder(tmp_path / "run", ["a"], config="seed")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_recording_does_not_wait_for_the_device(tmp_path: Path) -> None:
    values = torch.tensor([0.1, 0.2], device="cuda")
    recorder = Recorder(tmp_path, ["a", "b"], config={})
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            recorder.record(0, values.sum(), values[0] > 0, values)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recorder.close()
    np.testing.assert_allclose(pd.read_parquet(tmp_path / "trajectory")["alpha.b"], [0.2] * 3)


def test_importing_the_recorder_leaves_pandas_and_matplotlib_alone() -> None:
    script = (
        "import sys; import clmeta.record.recorder; "
        "assert not {'pandas', 'matplotlib', 'pyarrow', 'avalanche'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ))
