"""A learner that fails ends alone; what cannot be batched goes one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from replica_parts import assert_same_run, both, config, trajectory
from torch import nn

from clmeta.errors import BadArgument, NonFiniteError, RunFolderError
from clmeta.record.recorder import Recorder
from clmeta.replicas.program import ReplicaWarning
from clmeta.replicas.run import ReplicasFailed, run_replicas
from clmeta.runs.runner import prepare, run

# ---- non-finite values and other failures -----------------------------------------------------


class Fragile(nn.Module):
    """Fails numerically for the learner whose first weight is below a limit."""

    def __init__(self, input_shape, n_classes, fail_below=-1e9):
        super().__init__()
        self.output = nn.Linear(int(np.prod(input_shape)), n_classes)
        self.fail_below = fail_below

    def forward(self, x):
        first = self.output.weight[0, 0]
        poison = torch.where(first < self.fail_below, torch.log(first - first - 1), 0 * first)
        return self.output(x.flatten(1)) + poison


def fragile(**options):
    return config(**{"model": f"{__name__}:Fragile", "model_options": {}, **options})


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_non_finite_learner_harms_no_other(nonfinite, fine, tmp_path):
    blocks = "weight" if fine else "scalar"
    probe = [prepare(fragile(seed=seed)).model.output.weight[0, 0].item() for seed in range(4)]
    limit = min(probe) + 1e-6
    options = {"model_options": {"fail_below": limit}, "nonfinite": nonfinite, "blocks": blocks}
    configs = [fragile(seed=seed, **options) for seed in range(4)]
    worst = int(np.argmin(probe))
    folders = [tmp_path / str(seed) for seed in range(4)]
    if nonfinite == "raise":
        with pytest.raises(ReplicasFailed, match="1 of 4 runs failed") as caught:
            run_replicas(configs, folders)
        assert list(caught.value.errors) == [worst]
        assert isinstance(caught.value.errors[worst], NonFiniteError)
        assert not (folders[worst] / "summary.json").exists()
        assert len(trajectory(folders[worst])) > 0
    else:
        run_replicas(configs, folders)
        summary = json.loads((folders[worst] / "summary.json").read_text())
        assert summary["withheld"] == 200
    for seed in set(range(4)) - {worst}:
        run(configs[seed], tmp_path / f"alone-{seed}")
        assert_same_run(folders[seed], tmp_path / f"alone-{seed}")


def test_an_update_withheld_now_and_then_equals_the_single_run(tmp_path):
    """Learners whose counts of updates differ still share a tile."""
    options = {"model_options": {"fail_below": -0.05}, "nonfinite": "skip", "base": "adamw"}
    configs = [fragile(seed=seed, alpha0=5e-3, **options) for seed in range(3)]
    together, alone = both(configs, tmp_path)
    for folders in zip(together, alone, strict=True):
        counts = [json.loads((f / "summary.json").read_text())["withheld"] for f in folders]
        assert counts[0] == counts[1]
        assert_same_run(*folders)


def test_a_folder_that_cannot_be_written_ends_its_learner_alone(tmp_path, monkeypatch):
    record = Recorder.record

    def failing(self, *args, **options):
        if self.folder.path.name == "full" and self.steps >= 50:
            raise RunFolderError("cannot write: No space left on device")
        return record(self, *args, **options)

    monkeypatch.setattr(Recorder, "record", failing)
    folders = [tmp_path / "good", tmp_path / "full", tmp_path / "fine"]
    configs = [config(seed=seed) for seed in range(3)]
    with pytest.raises(ReplicasFailed, match="No space left"):
        run_replicas(configs, folders)
    assert (folders[0] / "summary.json").exists()
    assert (folders[2] / "summary.json").exists()
    assert len(trajectory(folders[1])) == 50


def test_a_folder_that_cannot_be_made_ends_its_learner_alone(tmp_path):
    """The others of its batch, and the batches after it, train."""
    (tmp_path / "taken").write_text("a file is in the way")
    folders = [tmp_path / "good", tmp_path / "taken", tmp_path / "fine", tmp_path / "later"]
    configs = [*(config(seed=seed) for seed in range(3)), config(base="lion", alpha0=1e-4)]
    with pytest.raises(ReplicasFailed, match="1 of 4 runs failed") as caught:
        run_replicas(configs, folders)
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.errors[1], RunFolderError)
    for number in (0, 2, 3):
        run(configs[number], tmp_path / f"alone-{number}")
        assert_same_run(folders[number], tmp_path / f"alone-{number}")


def test_no_folder_that_can_be_made_is_told_for_each_run(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.write_text("a file is in the way")
    with pytest.raises(ReplicasFailed, match="2 of 2 runs failed"):
        run_replicas([config(seed=0), config(seed=1)], folders)


def test_an_interrupt_keeps_what_was_recorded(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        long = {"tasks": 1, "steps_per_task": 3000}
        run_replicas(
            [config(seed=s, stream_options=long) for s in (0, 1)], folders, on_progress=stop
        )
    for folder in folders:
        assert len(trajectory(folder)) > 0
        assert not (folder / "summary.json").exists()


def test_a_finished_run_is_refused_before_anything_is_written(tmp_path):
    run_replicas([config(seed=0)], [tmp_path / "a"])
    with pytest.raises(RunFolderError, match="finished"):
        run_replicas([config(seed=1), config(seed=0)], [tmp_path / "b", tmp_path / "a"])
    assert not (tmp_path / "b").exists()
    run_replicas([config(seed=0)], [tmp_path / "a"], overwrite=True)


def test_arguments_that_cannot_work_are_named(tmp_path):
    with pytest.raises(BadArgument, match="folders"):
        run_replicas([config(seed=0)], [])
    with pytest.raises(BadArgument, match="share a folder"):
        run_replicas([config(seed=0), config(seed=1)], [tmp_path, tmp_path])
    with pytest.raises(BadArgument, match="chunk"):
        run_replicas([config(seed=0)], [tmp_path], chunk=0)
    with pytest.raises(BadArgument, match="hidden"):
        run_replicas([config(model_options={"hidden": 0})], [tmp_path / "x"])
    assert not (tmp_path / "x").exists()


# ---- what cannot be batched -------------------------------------------------------------------


class Normalised(nn.Sequential):
    """A network with running statistics."""

    def __init__(self, input_shape, n_classes):
        super().__init__(
            nn.Flatten(),
            nn.Linear(int(np.prod(input_shape)), 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, n_classes),
        )


class Branching(nn.Module):
    """A network whose program depends on its data."""

    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.output = nn.Linear(int(np.prod(input_shape)), n_classes)

    def forward(self, x):
        out = self.output(x.flatten(1))
        return out if float(x.detach().sum()) > 10 else 2 * out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {
                "model": f"{__name__}:Normalised",
                "stream_options": {"tasks": 1, "steps_per_task": 20, "batch_size": 4},
            },
            "buffers",
        ),
        (
            {
                "model": f"{__name__}:Branching",
                "stream_options": {"tasks": 1, "steps_per_task": 20},
            },
            "one by one",
        ),
        (
            {
                "base": "torch.optim:SGD",
                "model": "linear",
                "stream_options": {"tasks": 1, "steps_per_task": 20},
            },
            "torch optimiser",
        ),
    ],
)
def test_what_cannot_be_batched_goes_one_by_one_and_says_so(options, reason, tmp_path):
    configs = [config(**{"model_options": {}, **options}, seed=seed) for seed in (0, 1)]
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.warns(ReplicaWarning, match=reason):
        run_replicas(configs, folders)
    assert all((folder / "summary.json").exists() for folder in folders)


def test_progress_counts_all_steps(tmp_path):
    seen = []
    configs = [config(seed=seed) for seed in range(3)]
    run_replicas(configs, [tmp_path / str(i) for i in range(3)], on_progress=seen.append, chunk=2)
    assert (seen[-1].step, seen[-1].steps, seen[-1].finished, seen[-1].runs) == (600, 600, 3, 3)
