"""An option of a run is written once: help, docstring, checks and optimisers agree."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from runner_parts import SMALL, small, trajectory

from clmeta import GeneralMetaOptimize, MetaOptimize
from clmeta.errors import BadArgument
from clmeta.ground.names import NOT_METHOD
from clmeta.replicas.run import run_replicas
from clmeta.runs.config import NOT_IDENTITY, OPTIONS, RunConfig
from clmeta.runs.runner import prepare, run


def test_every_field_is_an_option_and_stands_in_the_docstring():
    assert list(OPTIONS) == [field.name for field in dataclasses.fields(RunConfig)]
    text = " ".join(str(RunConfig.__doc__).split())
    for name, option in OPTIONS.items():
        assert f"{name}: {option.help}" in text, name
    assert max(map(len, str(RunConfig.__doc__).splitlines())) <= 100


@pytest.mark.parametrize("optimizer", [MetaOptimize, GeneralMetaOptimize])
def test_defaults_of_the_optimisers_are_those_of_a_run(optimizer):
    taken = inspect.signature(optimizer.__init__).parameters
    both = [name for name in taken if name in OPTIONS and not name.endswith("hessian")]
    assert {"base", "meta", "blocks", "alpha0", "eta", "gamma", "weight_decay"} <= set(both)
    config = RunConfig()
    assert {n: taken[n].default for n in both if n != "seed"} == {
        n: getattr(config, n) for n in both if n != "seed"
    }


def test_what_does_not_make_a_method_is_the_same_for_figures_and_for_runs():
    assert {*NOT_IDENTITY, "seed", "method"} == NOT_METHOD


def test_numbers_and_paths_of_other_libraries_are_taken():
    config = small(
        seed=np.int64(3),
        alpha0=np.float32(0.5),
        threads=torch.tensor(2),
        evaluate=np.bool_(False),
        data_root=Path("somewhere"),
        model_options={"hidden": np.int32(8)},
    )
    assert config == small(seed=3, alpha0=0.5, threads=2, evaluate=False, data_root="somewhere")
    assert json.loads(config.to_json())["seed"] == 3
    with pytest.raises(BadArgument, match="seed=True: must be a whole number"):
        small(seed=True)


def test_an_infinite_bound_is_kept_in_json():
    config = small(blocks="node", alpha_max=math.inf, alpha_min=0)
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert RunConfig.from_json(text) == config
    with pytest.raises(BadArgument, match="alpha_max=nan"):
        small(alpha_max=math.nan)


# ---- numbers that differ between blocks --------------------------------------------------------


def test_numbers_may_differ_between_blocks():
    config = small(
        alpha0={"output": 1e-2, "*": 1e-3},
        eta={"output": 0.5},
        gamma={"hidden.0": 0.5},
        weight_decay={"*": 0.1},
    )
    groups = {g["name"]: g for g in prepare(config).optimizer.param_groups}
    assert list(groups) == ["hidden.0", "output"]
    numbers = {name: [groups[b][name] for b in groups] for name in ("alpha0", "eta", "gamma")}
    assert numbers == {"alpha0": [1e-3, 1e-2], "eta": [1e-3, 0.5], "gamma": [0.5, 0.999]}
    assert [group["weight_decay"] for group in groups.values()] == [0.1, 0.1]


def test_equal_numbers_for_each_block_are_one_number_for_all(tmp_path):
    run(small(alpha0={"hidden.0": 1e-3, "output": 1e-3}), tmp_path / "each")
    run(SMALL, tmp_path / "all")
    pd.testing.assert_frame_equal(trajectory(tmp_path / "each"), trajectory(tmp_path / "all"))


@pytest.mark.parametrize("blocks", ["node", "weight"])
def test_fine_step_sizes_start_where_their_tensor_does(tmp_path, blocks):
    config = small(blocks=blocks, alpha0={"output.bias": 1e-2, "*": 1e-3})
    run(config, tmp_path / "run")
    first = trajectory(tmp_path / "run").iloc[0]
    assert first["alpha.output.bias"] == pytest.approx(1e-2)
    assert first["alpha.output.weight"] == pytest.approx(1e-3)


def test_runs_with_numbers_for_each_block_train_together_as_alone(tmp_path):
    configs = [
        small(seed=seed, alpha0={"output": 1e-2, "*": 1e-3}, eta={"output": 0.1}) for seed in (0, 1)
    ]
    run_replicas(configs, [tmp_path / "0", tmp_path / "1"])
    for config in configs:
        run(config, tmp_path / "alone" / str(config.seed))
        pd.testing.assert_frame_equal(
            trajectory(tmp_path / str(config.seed)),
            trajectory(tmp_path / "alone" / str(config.seed)),
            rtol=1e-4,
        )


def test_a_method_is_named_by_the_numbers_of_its_blocks():
    fixed = small(meta="none", alpha0={"hidden.0": 1e-3, "output": 1e-2})
    assert fixed.method == "adamw fixed hidden.0=0.001,output=0.01"
    again = RunConfig.from_json(fixed.to_json())
    assert again == fixed and again.key() == fixed.key() and hash(again) == hash(fixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha0": {}}, "alpha0={}: name at least one block"),
        ({"alpha0": {"output": 0.0}}, "alpha0=0.0: a step size must be above 0"),
        ({"alpha0": {"output": "x"}}, r"alpha0\['output'\]='x': must be a finite number"),
        ({"gamma": {"output": 2}}, "gamma=2.0: a discount"),
        ({"alpha0": {"output": 1.0}, "alpha_max": 0.1}, "must lie between"),
        ({"eta": {"outputs": 0.1}}, "no block 'outputs'; did you mean 'output'?"),
    ],
)
def test_numbers_of_blocks_are_checked(changes, message):
    with pytest.raises(BadArgument, match=message):
        prepare(small(**changes))
