"""What the networks of replicas may hold beside the weights that are learnt."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from optimizer_parts import QUICK
from replica_parts import assert_same_run, both, config, trajectory
from torch import nn

from clmeta.replicas.lockstep import Lockstep
from clmeta.replicas.program import Program, ReplicaWarning
from clmeta.replicas.run import run_replicas
from clmeta.runs.runner import prepare, run


class Holding(nn.Module):
    """A network whose own random numbers, which no run learns, are held in one of several ways."""

    def __init__(self, input_shape, n_classes, held="frozen"):
        super().__init__()
        numbers = torch.randn(int(np.prod(input_shape)), 12) / 8
        self.held = held
        self.numbers = numbers
        if held in ("frozen", "detached"):
            self.numbers = nn.Parameter(numbers, requires_grad=held == "detached")
        self.output = nn.Linear(12, n_classes)

    def forward(self, x):
        return self.output(torch.tanh(x.flatten(1) @ self.numbers.detach()))


class Bursting(nn.Module):
    """A network whose gradient is not finite, for any of its learners."""

    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.output = nn.Linear(int(np.prod(input_shape)), n_classes)

    def forward(self, x):
        return self.output(x.flatten(1)) * torch.inf


class Scaled(nn.Module):
    """A network with a parameter that is a single number, of no dimension unless told."""

    def __init__(self, input_shape, n_classes, shape=()):
        super().__init__()
        self.output = nn.Linear(int(np.prod(input_shape)), n_classes)
        self.scale = nn.Parameter(torch.ones(tuple(shape)))

    def forward(self, x):
        return self.scale * self.output(x.flatten(1))


def scaled(**options):
    return config(**{"model": f"{__name__}:Scaled", "model_options": {}, **options})


def holding(held, **options):
    model = {"model": f"{__name__}:Holding", "model_options": {"held": held}}
    return config(**{**model, **options})


@pytest.mark.parametrize("held", ["frozen", "detached"])
def test_each_learner_keeps_its_own_parameters_that_are_not_learnt(held, tmp_path):
    lengths = [60, 100, 80]  # so that learners leave one after another
    configs = [
        holding(held, seed=i, stream_options={"tasks": 2, "steps_per_task": n})
        for i, n in enumerate(lengths)
    ]
    for folders in zip(*both(configs, tmp_path), strict=True):
        assert_same_run(*folders)


def test_tensors_that_are_no_parameters_and_differ_are_not_shared(tmp_path):
    """Also where the first and the last learner have the same, as those of one seed do."""
    configs = [holding("attribute", seed=s, alpha0=a) for s, a in ((0, 1e-3), (1, 1e-3), (0, 1e-4))]
    together = [tmp_path / f"together-{i}" for i in range(3)]
    with pytest.warns(ReplicaWarning, match="batched and ordinary gradients differ"):
        run_replicas(configs, together)
    for i, each in enumerate(configs):
        run(each, tmp_path / f"alone-{i}")
        assert_same_run(together[i], tmp_path / f"alone-{i}")


def test_tensors_that_are_no_parameters_and_equal_are_batched(tmp_path):
    configs = [holding("attribute", alpha0=alpha0) for alpha0 in (1e-3, 1e-4)]
    for folders in zip(*both(configs, tmp_path), strict=True):
        assert_same_run(*folders)


def test_gradients_that_cannot_be_compared_are_not_trusted(tmp_path):
    options = {"model": f"{__name__}:Bursting", "model_options": {}, "nonfinite": "skip"}
    configs = [config(seed=seed, **options) for seed in (0, 1)]
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.warns(ReplicaWarning, match="no gradient is finite"):
        run_replicas(configs, folders)
    for folder in folders:
        assert json.loads((folder / "summary.json").read_text())["withheld"] == 200


@pytest.mark.parametrize("blocks", ["scalar", "node", "weight"])
def test_a_parameter_of_no_dimension_learns_as_one_of_a_single_entry(blocks, tmp_path):
    options = {"blocks": blocks, "alpha0": 1e-4}
    folders = []
    for shape in ([], [1]):
        configs = [scaled(seed=s, model_options={"shape": shape}, **options) for s in (0, 1)]
        folders += [[tmp_path / f"{len(shape)}-{seed}" for seed in (0, 1)]]
        run_replicas(configs, folders[-1])
    for none, one in zip(*folders, strict=True):
        pd.testing.assert_frame_equal(trajectory(none), trajectory(one))


@pytest.mark.parametrize("blocks", ["scalar", "node", "weight"])
@pytest.mark.parametrize("engine", QUICK)
def test_a_parameter_of_no_dimension_is_stepped_alike_by_every_engine(engine, blocks):
    prepared = [prepare(scaled(seed=seed, eta=1e-2, blocks=blocks)) for seed in (0, 1)]
    eager, other = (Program(prepared, each) for each in ("eager", engine))
    (segment, *_) = Lockstep([p.stream for p in prepared])
    for program in (eager, other):
        program.run(segment)
    one, two = eager.learners, other.learners
    torch.testing.assert_close(one.sizes.alpha, two.sizes.alpha, rtol=1e-5, atol=0)
    for a, b in zip(one.w, two.w, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
