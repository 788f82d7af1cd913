"""Runs under Avalanche that stop and go on, and runs by a strategy's name."""

import math
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
from avalanche_parts import (
    IGNORED,
    GrowingNet,
    build,
    copied,
    evaluator,
    growing,
    meta_optimize,
    mlp,
    online,
    permuted,
    train,
    trajectory,
    weights,
)

from clmeta import BadArgument, MetaOptimize
from clmeta.lookup import check_options, keywords_of
from clmeta.record.recorder import Recorder
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run
from clmeta.strategies import (
    STRATEGIES,
    MetaOptimizePlugin,
    Online,
    PrequentialAccuracy,
    StepSizeMetric,
    StepSizeRecorder,
)
from clmeta.strategies.registry import COMMON

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]


# ---- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Naive", "Replay", "SynapticIntelligence", "Online"])
@pytest.mark.parametrize("blocks", ["layer", "weight"])
def test_a_checkpoint_continues_bit_for_bit(tmp_path, kind, blocks):
    from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

    benchmark = growing().benchmark(task_labels="constant")

    def fresh():
        model = GrowingNet()
        optimizer = meta_optimize(model, blocks=blocks)
        if kind == "Online":
            return Online(model=model, optimizer=optimizer)
        return build(kind, model, optimizer)

    strategy = fresh()
    train(strategy, benchmark, tasks=2)
    save_checkpoint(strategy, tmp_path / "checkpoint.pkl")
    strategy.train(benchmark.train_stream[2], shuffle=False)
    resumed, start = maybe_load_checkpoint(fresh(), tmp_path / "checkpoint.pkl")
    assert start == 2
    assert isinstance(resumed.optimizer, MetaOptimize)
    resumed.train(benchmark.train_stream[2], shuffle=False)
    assert torch.equal(weights(strategy.model), weights(resumed.model))
    assert strategy.optimizer.step_sizes() == resumed.optimizer.step_sizes()
    assert len(set(resumed.optimizer.step_sizes().values()) - {1e-3}) > 1


def test_a_loaded_recorder_keeps_what_the_old_one_wrote(tmp_path):
    from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

    benchmark, folder = permuted(tasks=3, steps=10).benchmark(), tmp_path / "run"

    def fresh():
        model = mlp()
        recorder = StepSizeRecorder(folder)
        return online(model, [recorder]), recorder

    strategy = fresh()[0]
    train(strategy, benchmark, tasks=2)
    save_checkpoint(strategy, tmp_path / "checkpoint.pkl")
    strategy, stale = maybe_load_checkpoint(fresh()[0], tmp_path / "checkpoint.pkl")[0], fresh()[1]
    strategy.train(benchmark.train_stream[2])
    with pytest.raises(BadArgument, match=r"nothing was recorded.*StepSizeRecorder.of\(strategy\)"):
        stale.close()
    StepSizeRecorder.of(strategy).close()
    assert trajectory(folder).task.tolist() == [2] * 10
    aside = pd.read_parquet(folder / "trajectory.interrupted-0")
    assert aside.task.tolist() == [0] * 10 + [1] * 10


def test_a_strategy_without_a_recorder_has_none():
    with pytest.raises(BadArgument, match="has no StepSizeRecorder"):
        StepSizeRecorder.of(online(mlp()))


def test_plugins_survive_an_ordinary_pickle():
    model = mlp()
    strategy = online(model, [], evaluator=evaluator(StepSizeMetric(), PrequentialAccuracy()))
    train(strategy, permuted(tasks=1).benchmark())
    plugin = next(p for p in strategy.plugins if isinstance(p, MetaOptimizePlugin))
    copy = pickle.loads(pickle.dumps((model, strategy.optimizer, plugin)))
    assert copied(copy[1], copy[0][1].weight)["h"].any()


# ---- by name -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["online", "replay", "ewc", "si", "lwf", "er-ace", "der"])
def test_every_registered_strategy_runs_and_repeats(tmp_path, name):
    stream, results, reports = permuted(steps=20), [], []
    for folder in ("a", "b"):
        model = mlp()
        optimizer = meta_optimize(model)
        with Recorder(tmp_path / folder, optimizer.block_names, config={}) as recorder:
            torch.manual_seed(3)
            result = STRATEGIES.get(name)(
                model, optimizer, stream, recorder=recorder, on_progress=reports.append
            )
        results.append((result, optimizer.step_sizes(), trajectory(tmp_path / folder)))
    (first, sizes, table), (second, again, _) = results
    assert (first, sizes) == (second, again)
    assert first.steps == len(table) == 40
    assert first.accuracy == pytest.approx(table.correct.mean())
    assert first.task_accuracy == pytest.approx(table.groupby("task").correct.mean().tolist())
    assert len(first.test_accuracy) == 2
    assert reports[-1].step == 40 and reports[-1].alpha == again


def test_online_by_name_is_plain_by_name():
    stream, results = permuted(), []
    for name in ("plain", "online"):
        model = mlp()
        optimizer = meta_optimize(model)
        results.append((STRATEGIES.get(name)(model, optimizer, stream), optimizer.step_sizes()))
    assert results[0] == results[1]


def test_options_of_registered_strategies_are_checked():
    check_options(STRATEGIES.get("replay"), {"mem_size": 5}, "option", skip=3, hidden=COMMON)
    with pytest.raises(BadArgument, match="mem_size"):
        check_options(STRATEGIES.get("replay"), {"memory": 5}, "option", skip=3, hidden=COMMON)


#: Every number that a strategy can be given, with values that cannot work.
WRONG = {
    "mem_size": (0, -5, 2.5, "many", True),
    "batch_size_mem": (0, -1, 1.5),
    "ewc_lambda": (-1, math.inf, math.nan, "strong"),
    "si_lambda": (-1e-3, math.nan),
    "alpha": (-0.1, math.inf),
    "beta": (-0.1, True),
    "temperature": (0, -2.0, math.inf),
}


def own_options(name):
    return keywords_of(STRATEGIES.get(name), skip=3, hidden=COMMON) or {}


def test_every_number_of_every_strategy_is_tried_below():
    numbers = {option for name in STRATEGIES for option in own_options(name)}
    assert numbers == set(WRONG)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if own_options(name)])
def test_options_out_of_range_are_named_before_anything_is_written(name, tmp_path):
    for option in own_options(name):
        for value in WRONG[option]:
            message = f"strategy option {option}={value!r}: must be"
            with pytest.raises(BadArgument, match=re.escape(message)):
                STRATEGIES.get(name)(None, None, None, **{option: value})
            if not isinstance(value, float) or math.isfinite(value):
                config = RunConfig(strategy=name, strategy_options={option: value})
                with pytest.raises(BadArgument, match=re.escape(message)):
                    run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_of_numpy_are_taken(tmp_path):
    options = {"mem_size": np.int64(5), "batch_size_mem": np.int32(2)}
    stream_options = {"tasks": 2, "steps_per_task": 5}
    config = RunConfig(stream_options=stream_options, strategy="replay", strategy_options=options)
    assert run(config, tmp_path / "run").online.steps == 10
