"""One run from its config, and many over processes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from clmeta import MetaOptimize
from clmeta.config import RunConfig
from clmeta.errors import BadArgument, NonFiniteError, RunFolderError
from clmeta.jobs import Job, run_jobs
from clmeta.models import make_model
from clmeta.recorder import Recorder
from clmeta.runfolder import RunFolder
from clmeta.runner import derive_seed, numerics, prepare, run
from clmeta.strategies.plain import learn_online
from clmeta.streams import load_dataset, permuted_inputs

SMALL = RunConfig(
    stream="permuted_inputs",
    stream_options={"tasks": 2, "steps_per_task": 30},
    model="mlp",
    model_options={"hidden": 8},
    blocks="layer",
    alpha0=1e-3,
)


def trajectory(folder):
    return pd.read_parquet(folder / "trajectory")


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


# --- the plain loop -------------------------------------------------------------------------


def make_learner(seed=0):
    stream = permuted_inputs(load_dataset("digits"), tasks=3, steps_per_task=40, seed=seed)
    model = make_model("mlp", stream.input_shape, stream.n_classes, {"hidden": 8}, seed=seed)
    named = model.named_parameters()
    return model, MetaOptimize(named, blocks="layer", alpha0=1e-3, gamma=0.999), stream


def test_the_plain_loop_is_five_lines_of_pytorch():
    model, optimizer, stream = make_learner()
    right, losses, alphas = [], [], []
    for x, y, _, _ in stream:
        output = model(x)
        right.append(float((output.argmax(1) == y).float().mean()))
        optimizer.zero_grad()
        loss = F.cross_entropy(output, y)
        loss.backward()
        losses.append(loss.detach())
        alphas.append(optimizer.alpha.clone())
        optimizer.step()

    class Kept:
        def __init__(self):
            self.rows, self.ends = [], []

        def before_step(self, optimizer):
            self.alpha = optimizer.alpha.clone()

        def record(self, task, loss, correct):
            self.rows.append((task, float(loss.detach()), float(correct), self.alpha))

        def end_task(self, task, test_accuracy):
            self.ends.append((task, len(self.rows), test_accuracy))

    other_model, other_optimizer, stream = make_learner()
    kept = Kept()
    result = learn_online(other_model, other_optimizer, stream, recorder=kept)
    assert [row[2] for row in kept.rows] == right
    assert [row[1] for row in kept.rows] == torch.stack(losses).tolist()
    assert all(torch.equal(row[3], alpha) for row, alpha in zip(kept.rows, alphas, strict=True))
    mine, its = model.state_dict(), other_model.state_dict()
    assert all(torch.equal(mine[key], its[key]) for key in mine)
    assert [end[:2] for end in kept.ends] == [(0, 40), (1, 80), (2, 120)]
    assert result.accuracy == pytest.approx(sum(right) / len(right))
    assert result.task_accuracy == pytest.approx([sum(right[i : i + 40]) / 40 for i in (0, 40, 80)])
    assert result.test_accuracy == [end[2] for end in kept.ends]
    assert result.steps == 120


def test_correctness_is_that_of_the_prediction_before_the_update():
    """One image with a huge step size: wrong when first seen, right ever after."""
    data = load_dataset("digits")
    stream = permuted_inputs(data, tasks=1, steps_per_task=1)
    model = make_model("linear", stream.input_shape, stream.n_classes, seed=0)
    ((x, y, _, _),) = list(stream)
    with torch.no_grad():
        model.output.bias[int(y)] = -10.0
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    assert learn_online(model, optimizer, stream, evaluate=False).accuracy == 0
    assert int(model(x).argmax()) == int(y)


def test_a_batch_counts_each_of_its_samples():
    stream = permuted_inputs(load_dataset("digits"), tasks=2, batch_size=7)
    model = make_model("mlp", stream.input_shape, stream.n_classes, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = learn_online(model, optimizer, stream, evaluate=False)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y, _, _ in stream)
    assert found.accuracy == right / sum(stream.n_samples(task) for task in (0, 1))


def test_progress_is_reported_while_it_goes_on_and_at_the_end(monkeypatch):
    monkeypatch.setattr("clmeta.strategies.plain.REPORT_EVERY", 0.0)
    model, optimizer, stream = make_learner()
    seen = []
    result = learn_online(model, optimizer, stream, on_progress=seen.append)
    assert [p.step for p in seen[:120]] == list(range(1, 121))
    assert {p.steps for p in seen} == {120}
    assert seen[-1].accuracy == result.accuracy
    assert seen[-1].alpha == optimizer.step_sizes()
    assert [p.task for p in seen[:120:40]] == [0, 1, 2]


def test_testing_leaves_a_network_in_training_mode():
    modes = set()

    class Noisy(torch.nn.Linear):
        def forward(self, x):
            modes.add((self.training, torch.is_grad_enabled()))
            return super().forward(x.flatten(1))

    stream = permuted_inputs(load_dataset("digits"), tasks=2, steps_per_task=5)
    model = Noisy(64, 10)
    learn_online(model, torch.optim.SGD(model.parameters(), lr=1e-3), stream)
    assert modes == {(True, True), (False, False)}
    assert model.training


# --- one run --------------------------------------------------------------------------------


def test_a_run_leaves_a_complete_folder(tmp_path):
    result = run(SMALL, tmp_path / "run")
    rows = trajectory(tmp_path / "run")
    blocks = ["alpha.hidden.0", "alpha.output"]
    assert list(rows.columns) == ["step", "task", "loss", "correct", *blocks]
    assert rows["step"].tolist() == list(range(60))
    assert rows["task"].tolist() == [0] * 30 + [1] * 30
    assert (rows[blocks].iloc[0] - 1e-3).abs().max() < 1e-9
    summary = RunFolder(tmp_path / "run").summary
    assert summary["cumulative_accuracy"] == pytest.approx(rows["correct"].mean())
    assert summary["cumulative_accuracy"] == pytest.approx(result.online.accuracy)
    assert summary["mean_test_accuracy"] == pytest.approx(sum(result.online.test_accuracy) / 2)
    config = RunFolder(tmp_path / "run").config
    assert config["method"] == "adamw/adam layer"
    assert config["resolved"]["blocks"] == {"hidden.0": 8 * 65, "output": 10 * 9}
    assert config["resolved"]["stream"]["boundaries"] == [0, 30]


def test_a_run_is_repeated_exactly_from_its_folder(tmp_path):
    config = small(
        base="rmsprop",
        base_options={"lam": 0.99},
        meta="lion",
        blocks={"first": ["hidden"], "rest": "*"},
        weight_decay=0.01,
        seed=3,
        stream_options={"tasks": 2, "steps_per_task": 30, "augment": "crop-flip", "repeats": 2},
    )
    run(config, tmp_path / "one")
    again = RunConfig.from_file(tmp_path / "one" / "config.json")
    assert again == config
    run(again, tmp_path / "two")
    pd.testing.assert_frame_equal(trajectory(tmp_path / "one"), trajectory(tmp_path / "two"))


def test_paired_runs_see_the_same_data_from_the_same_weights():
    one = prepare(small(seed=4))
    two = prepare(small(seed=4, base="lion", meta="none", alpha0=0.1, blocks="scalar"))
    mine, its = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(mine[key], its[key]) for key in mine)
    for (x, y, task, step), other in zip(one.stream, two.stream, strict=True):
        assert torch.equal(x, other[0])
        assert torch.equal(y, other[1])
        assert (task, step) == other[2:]


def test_the_network_can_keep_its_weights_while_the_data_changes():
    one, two = prepare(small(seed=4)), prepare(small(seed=5))
    same = prepare(small(seed=4, stream_options={"tasks": 2, "steps_per_task": 30, "seed": 5}))
    weight = "output.weight"
    assert torch.equal(same.model.state_dict()[weight], one.model.state_dict()[weight])
    assert not torch.equal(two.model.state_dict()[weight], one.model.state_dict()[weight])
    assert torch.equal(next(iter(same.stream))[0], next(iter(two.stream))[0])


def test_seeds_of_different_purposes_differ():
    seeds = {derive_seed(seed, what) for seed in range(50) for what in ("model", "training")}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_run_leaves_the_process_as_it_was(tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run(small(threads=2), tmp_path / "run")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_run_is_not_replaced_by_accident(tmp_path):
    run(SMALL, tmp_path / "run")
    before = trajectory(tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds a finished run"):
        run(small(seed=1), tmp_path / "run")
    pd.testing.assert_frame_equal(trajectory(tmp_path / "run"), before)
    run(small(seed=1), tmp_path / "run", overwrite=True)
    assert not trajectory(tmp_path / "run").equals(before)


def test_an_interrupted_run_keeps_every_step(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("clmeta.strategies.plain.REPORT_EVERY", 0.0)
        run(SMALL, tmp_path / "run", on_progress=stop)
    assert len(trajectory(tmp_path / "run")) == 1
    assert not RunFolder(tmp_path / "run").finished


def test_a_diverging_run_says_where_and_keeps_what_led_to_it(tmp_path):
    config = small(meta="none", base="sgd", alpha0=1e30)
    with pytest.raises(NonFiniteError, match="step"):
        run(config, tmp_path / "run")
    assert not RunFolder(tmp_path / "run").finished
    assert len(trajectory(tmp_path / "run")) > 1


def test_any_torch_optimiser_is_a_base(tmp_path):
    wrapped = small(base="torch.optim:AdamW", base_options={"eps": 1e-8}, blocks="scalar")
    run(wrapped, tmp_path / "run")
    assert trajectory(tmp_path / "run")["alpha.all"].nunique() > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": "permuted_pixels"}, "stream='permuted_pixels': unknown stream"),
        ({"stream_options": {"taks": 3}}, "taks=3: unknown option of stream"),
        ({"stream": "abrupt_classes", "stream_options": {"tasks": 20}}, "tasks=20"),
        ({"dataset": "digitz"}, "dataset='digitz': unknown dataset; did you mean 'digits'"),
        ({"dataset": "no/such.npz"}, "dataset='no/such.npz'"),
        ({"dataset_options": {"size": 3}}, "dataset option size=3: unknown"),
        ({"model": "mlpp"}, "model='mlpp': unknown model"),
        ({"base": "adamm"}, "base='adamm': unknown rule.*torch optimiser"),
        ({"meta": "adamm"}, "meta='adamm': unknown rule.*none"),
        ({"base_options": {"momentum": 0.9}}, "base option momentum=0.9: unknown; known: rho"),
        ({"base_options": {"rho": 1.5}}, "rho=1.5"),
        ({"base": "torch.optim:Adamm"}, "base='torch.optim:Adamm'"),
        ({"meta": "torch.optim:AdamW"}, "meta='torch.optim:AdamW'"),
        ({"blocks": "layers"}, "blocks='layers'"),
        ({"blocks": {"a": ["hidden"]}}, "parameters in no block"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"strategy": "naïve"}, "strategy='naïve': unknown strategy"),
        ({"strategy_options": {"speed": 2}}, "strategy option speed=2: unknown"),
        ({"alpha_min": 1.0}, "alpha0=0.001: must lie between"),
    ],
)
def test_bad_options_are_named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(BadArgument, match=message):
        run(small(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_does_not_fit_the_images_is_refused(tmp_path, monkeypatch):
    (tmp_path / "narrow_nets.py").write_text(
        "import torch\n\n\ndef five(input_shape, n_classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))\n\n\n"
        "def flat(input_shape, n_classes):\n    return torch.nn.Linear(100, n_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadArgument, match=r"output has shape \(2, 5\).*\(2, 10\)"):
        prepare(small(model="narrow_nets:five", model_options={}))
    with pytest.raises(BadArgument, match=r"fails on images of shape \(1, 8, 8\)"):
        prepare(small(model="narrow_nets:flat", model_options={}))


# --- the config -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "mend"),
    [
        ("gamma", 1.01, "discount"),
        ("gamma", -0.1, "discount"),
        ("alpha0", 0.0, "above 0"),
        ("alpha0", float("nan"), "finite"),
        ("alpha0", "1e-4", "number"),
        ("eta", -1e-3, "negative"),
        ("weight_decay", -1.0, "negative"),
        ("seed", -1, "seed"),
        ("seed", 1.5, "whole"),
        ("threads", 0, "at least 1"),
        ("nonfinite", "ignore", "skip"),
        ("stream", "", "text"),
        ("download", "yes", "true or false"),
        ("model_options", [1], "mapping"),
        ("model_options", {"f": float("inf")}, "finite"),
        ("alpha_max", 1e-9, "alpha_max"),
    ],
)
def test_impossible_values_are_refused_at_once(option, value, mend):
    with pytest.raises(BadArgument, match=mend):
        small(**{option: value})


def test_a_config_is_a_value():
    options = {"tasks": 3}
    config = small(stream_options=options)
    options["tasks"] = 4
    assert config.stream_options == {"tasks": 3}
    assert config == small(stream_options={"tasks": 3})
    assert len({config, small(stream_options={"tasks": 3}), SMALL}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 4  # type: ignore[misc]


def test_keys_tell_apart_what_is_computed_and_nothing_else():
    assert SMALL.key() == small(data_root="elsewhere", threads=2, name="mine").key()
    assert SMALL.key() != small(seed=1).key()
    assert SMALL.key(without=("seed",)) == small(seed=1).key(without=("seed",))
    assert SMALL.key() != small(model_options={"hidden": 9}).key()


def test_unknown_options_and_broken_files_are_named(tmp_path):
    with pytest.raises(BadArgument, match="alpha=1: unknown option; known: stream"):
        RunConfig.from_dict({"alpha": 1})
    with pytest.raises(BadArgument, match="not JSON"):
        RunConfig.from_json("{")
    with pytest.raises(BadArgument, match="JSON object"):
        RunConfig.from_json("[]")
    with pytest.raises(BadArgument, match=r"No such file.*pass a run's config.json"):
        RunConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadArgument, match="not a text file"):
        RunConfig.from_file(tmp_path)


# --- many runs ------------------------------------------------------------------------------


def test_processes_give_what_one_process_gives(tmp_path):
    def jobs(where):
        return [Job(small(seed=seed), tmp_path / where / str(seed)) for seed in (0, 1, 2)]

    events = []
    ends = run_jobs(jobs("many"), 2, events.append)
    assert [end.kind for end in ends] == ["finished"] * 3
    assert [end.job for end in ends] == [0, 1, 2]
    assert sorted(e.job for e in events if e.kind == "started") == [0, 1, 2]
    assert [end.kind for end in run_jobs(jobs("one"), 1)] == ["finished"] * 3
    for seed in "012":
        pd.testing.assert_frame_equal(
            trajectory(tmp_path / "many" / seed), trajectory(tmp_path / "one" / seed)
        )


def test_a_failure_does_not_stop_the_others(tmp_path):
    (tmp_path / "file").write_text("in the way")
    jobs = [
        Job(small(meta="none", base="sgd", alpha0=1e30), tmp_path / "diverges"),
        Job(SMALL, tmp_path / "file" / "below"),
        Job(SMALL, tmp_path / "fine"),
    ]
    ends = run_jobs(jobs)
    assert [end.kind for end in ends] == ["failed", "failed", "finished"]
    assert "step" in str(ends[0].error)
    assert "cannot make" in str(ends[1].error)
    assert RunFolder(tmp_path / "fine").finished


DIES = """
import os, signal, torch

class Dies(torch.nn.Linear):
    def __init__(self, input_shape, n_classes):
        super().__init__(64, 10)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.training and self.calls > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x.flatten(1))
"""


def test_a_killed_process_takes_only_its_own_run_with_it(tmp_path, monkeypatch):
    (tmp_path / "deadly_nets.py").write_text(DIES)
    monkeypatch.chdir(tmp_path)
    deadly = small(model="deadly_nets:Dies", model_options={}, blocks="scalar")
    diverging = small(meta="none", base="sgd", alpha0=1e30)
    jobs = [
        Job(deadly, tmp_path / "dies"),
        Job(diverging, tmp_path / "diverges"),
        Job(SMALL, tmp_path / "a"),
        Job(SMALL, tmp_path / "b"),
    ]
    ends = run_jobs(jobs, 2)
    assert [end.kind for end in ends] == ["failed", "failed", "finished", "finished"]
    assert "process died" in str(ends[0].error)
    assert "step" in str(ends[1].error)


LONG = """
import sys
from pathlib import Path
from clmeta.config import RunConfig
from clmeta.jobs import Job, run_jobs

if __name__ == "__main__":
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    config = RunConfig(stream_options={"tasks": 1, "steps_per_task": 2_000_000})
    jobs = [Job(config, folder / name) for name in ("a", "b")]
    def show(event):
        print(event.kind, flush=True)
    try:
        run_jobs(jobs, processes, show)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_an_interrupt_keeps_what_all_processes_recorded(tmp_path):
    (tmp_path / "long.py").write_text(LONG)
    command = [sys.executable, "long.py", str(tmp_path), "2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("progress") and all((tmp_path / n).exists() for n in ("a", "b")):
                break
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(120) == 130
    kept = 0
    for name in ("a", "b"):
        assert not RunFolder(tmp_path / name).finished
        rows = trajectory(tmp_path / name)
        assert rows.get("step", pd.Series()).tolist() == list(range(len(rows)))
        kept += len(rows)
    assert kept > 50


def test_recording_costs_little(tmp_path):
    """Well under the bound of 5 % is measured in benchmarks/; this catches a tenfold slip."""
    _, optimizer, _ = make_learner()
    names = optimizer.block_names
    with Recorder(tmp_path / "run", names, config={}) as recorder:
        begin = time.perf_counter()
        for _ in range(2000):
            recorder.before_step(optimizer)
            recorder.record(0, 0.5, 1.0)
        cost = (time.perf_counter() - begin) / 2000
    assert cost < 500e-6
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2000


def test_subnormal_numbers_are_flushed_in_a_run_and_the_callers_setting_comes_back():
    tiny = torch.tensor([1e-38])
    before = bool(tiny * 0.1)
    with numerics(threads=1):
        assert not torch.any(tiny * 0.1)
    assert bool(tiny * 0.1) is before
