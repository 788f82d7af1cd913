"""Curvature-aware step sizes from the command line's runs: plain loop, replicas, Avalanche."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from avalanche_parts import IGNORED

from clmeta import BadArgument, MetaOptimize
from clmeta.record.runfolder import RunFolder
from clmeta.replicas.run import ReplicaWarning, run_replicas
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run
from clmeta.strategies.plain import learn_online
from clmeta.streams import load_dataset, permuted_inputs

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]
SMALL = RunConfig(
    stream_options={"tasks": 2, "steps_per_task": 15},
    model_options={"hidden": [8]},
    alpha0=0.05,
    base="sgd",
    eta=0.05,
    evaluate=False,
)


def alphas(folder):
    return RunFolder(folder).summary["step_sizes"]


def test_a_run_with_the_exact_hessian_moves_step_sizes_differently(tmp_path):
    for hessian in ("free", "exact", "diagonal"):
        run(dataclasses.replace(SMALL, hessian=hessian), tmp_path / hessian)
    free, exact, diagonal = (alphas(tmp_path / h) for h in ("free", "exact", "diagonal"))
    assert exact["all"] != pytest.approx(free["all"], rel=1e-6)
    assert diagonal["all"] != pytest.approx(exact["all"], rel=1e-6)
    assert RunFolder(tmp_path / "exact").config["method"] == "sgd/adam scalar, exact Hessian"


@pytest.mark.parametrize("strategy", ["er-ace", "der"])
def test_strategies_with_a_loop_of_their_own_do_such_runs(tmp_path, strategy):
    options = {"strategy": strategy, "strategy_options": {"mem_size": 10, "batch_size_mem": 2}}
    for hessian in ("free", "exact", "diagonal"):
        run(dataclasses.replace(SMALL, hessian=hessian, **options), tmp_path / hessian)
    free, exact, diagonal = (alphas(tmp_path / h) for h in ("free", "exact", "diagonal"))
    assert exact["all"] != pytest.approx(free["all"], rel=1e-6)
    assert diagonal["all"] != pytest.approx(exact["all"], rel=1e-6)


def test_replicas_do_such_runs_one_by_one_and_say_so(tmp_path):
    config = dataclasses.replace(SMALL, hessian="exact")
    run(config, tmp_path / "alone")
    with pytest.warns(ReplicaWarning, match="second derivatives"):
        run_replicas([config, SMALL], [tmp_path / "exact", tmp_path / "free"])
    assert alphas(tmp_path / "exact") == alphas(tmp_path / "alone")
    assert alphas(tmp_path / "free") != alphas(tmp_path / "exact")


def test_the_plain_loop_keeps_the_graph_only_where_it_is_needed():
    stream = permuted_inputs(load_dataset("digits"), tasks=1, steps_per_task=3)
    for hessian in ("free", "exact"):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        optimizer = MetaOptimize(model.parameters(), hessian=hessian)
        learn_online(model, optimizer, stream, evaluate=False)
        assert model[1].weight.grad.requires_grad is (hessian == "exact")


def test_an_unknown_kind_is_refused():
    with pytest.raises(BadArgument, match="hessian='full': use one of free, exact, diagonal"):
        dataclasses.replace(SMALL, hessian="full")
