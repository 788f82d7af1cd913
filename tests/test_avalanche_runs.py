"""Runs under Avalanche that stop and go on, and runs by a strategy's name."""

import pickle
import re
from pathlib import Path

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
from clmeta.lookup import check_options
from clmeta.record.recorder import Recorder
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


# ---- the guide ---------------------------------------------------------------------------------


def examples():
    text = (Path(__file__).parents[1] / "docs" / "avalanche.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", [0, 1])
def test_the_guides_examples_run(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(examples()[number], f"docs/avalanche.md, example {number}", "exec"), {})
    assert len(examples()) == 2
    assert any(tmp_path.rglob("*.parquet" if number == 0 else "events.out.*"))
