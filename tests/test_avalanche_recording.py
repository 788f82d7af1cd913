"""Recorder and metrics under Avalanche: what is written, and what counts."""

import json
import math

import pandas as pd
import pytest
import torch
from avalanche_parts import (
    IGNORED,
    GrowingNet,
    ManyHeads,
    Spy,
    build,
    evaluator,
    growing,
    meta_optimize,
    mlp,
    online,
    permuted,
    train,
    trajectory,
)

from clmeta import BadArgument, NonFiniteError, RunFolderError
from clmeta.record.recorder import Recorder
from clmeta.record.runfolder import RunFolder
from clmeta.strategies import (
    PrequentialAccuracy,
    StepSizeMetric,
    StepSizeRecorder,
    learn_online,
)
from clmeta.strategies.recording import test_accuracy as measure

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]


# ---- the recorder ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
def test_it_writes_what_the_plain_loop_writes(tmp_path, batch_size):
    stream = permuted(batch_size=batch_size)
    model = mlp()
    optimizer = meta_optimize(model)
    with Recorder(tmp_path / "plain", optimizer.block_names, config={}) as recorder:
        learn_online(model, optimizer, stream, recorder=recorder)
    model, benchmark = mlp(), stream.benchmark()
    with StepSizeRecorder(tmp_path / "online", test_stream=benchmark.test_stream) as recorder:
        train(online(model, [recorder], train_mb_size=batch_size), benchmark)
    for read in (trajectory, lambda folder: pd.read_parquet(folder / "tasks.parquet")):
        pd.testing.assert_frame_equal(read(tmp_path / "plain"), read(tmp_path / "online"))
    assert RunFolder(tmp_path / "online").finished
    config = json.loads((tmp_path / "online" / "config.json").read_text())
    assert config["strategy"] == "Online" and config["train_mb_size"] == batch_size
    assert config["optimizer"]["alpha0"] == 1e-3


def rows_of_the_stream(strategy, batch):
    """Positions of the stream's samples in the mini-batch, found by looking for them."""
    return [
        next(i for i, row in enumerate(strategy.mb_x) if torch.equal(row, sample))
        for sample in batch
    ]


@pytest.mark.parametrize("name", ["Naive", "Replay", "ER_ACE", "DER", "MIR"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_only_the_streams_own_samples_count(tmp_path, name, batch_size):
    # A whole pass ends with a batch that is short.
    stream = growing(tasks=2, batch_size=batch_size, steps=25 if batch_size == 1 else None)
    assert batch_size == 1 or {len(y) for _, y, *_ in stream} > {batch_size}
    batches, own = iter(stream), []

    def count(strategy):
        x, y, *_ = next(batches)
        rows = rows_of_the_stream(strategy, x)
        predicted = strategy.mb_output[rows].argmax(1)
        own.append(float(predicted.eq(y).float().mean()))

    model = GrowingNet(units=9, masking=False)
    accuracy = PrequentialAccuracy(every=5)
    with StepSizeRecorder(tmp_path / "run") as recorder:
        spy = Spy("after_update", count)
        optimizer = meta_optimize(model, alpha0=3e-3, eta=1e-3)
        strategy = build(
            name, model, optimizer, [recorder, spy, evaluator(accuracy)], train_mb_size=batch_size
        )
        train(strategy, stream.benchmark(task_labels="constant"))
    table = trajectory(tmp_path / "run")
    assert len(table) == len(stream)
    assert table.correct.tolist() == pytest.approx(own)
    assert 0.1 < table.correct.mean() < 0.99
    sizes = torch.tensor([len(y) for _, y, *_ in stream])
    shares = torch.tensor(own)
    assert accuracy.result() == pytest.approx(float((shares * sizes).sum() / sizes.sum()))


def test_strategies_that_predict_after_their_updates_are_asked_before(tmp_path):
    model, early = mlp(), []

    def predict(strategy):
        with torch.no_grad():
            early.append(bool(model(strategy.mb_x).argmax(1).eq(strategy.mb_y)))

    with StepSizeRecorder(tmp_path / "run") as recorder:
        spy = Spy("before_training_iteration", predict)
        strategy = build("MER", model, meta_optimize(model, alpha0=1e-2), [spy, recorder])
        train(strategy, permuted().benchmark(task_labels="constant"))
    assert trajectory(tmp_path / "run").correct.astype(bool).tolist() == early
    assert any(early)


def test_any_optimiser_is_recorded_one_column_a_group(tmp_path):
    model = mlp()
    groups = [{"params": model[1].parameters(), "lr": 0.1}, {"params": model[3].parameters()}]
    with StepSizeRecorder(tmp_path / "run") as recorder:
        train(
            online(model, [recorder], optimizer=torch.optim.SGD(groups, lr=0.2)),
            permuted().benchmark(),
        )
    table = trajectory(tmp_path / "run")
    assert table["alpha.group0"].unique() == pytest.approx([0.1])
    assert table["alpha.group1"].unique() == pytest.approx([0.2])


def test_single_sample_experiences_belong_to_their_task(tmp_path):
    from avalanche.benchmarks import split_online_stream

    stream, model = permuted(steps=8), mlp()
    benchmark = stream.benchmark()
    single = split_online_stream(
        benchmark.train_stream, experience_size=1, shuffle=False, access_task_boundaries=False
    )
    folder = tmp_path / "run"
    with StepSizeRecorder(folder, test_stream=benchmark.test_stream) as recorder:
        strategy = build("Naive", model, meta_optimize(model), [recorder])
        strategy.train(single, shuffle=False)
    assert trajectory(folder).task.tolist() == [0] * 8 + [1] * 8
    tasks = pd.read_parquet(folder / "tasks.parquet")
    assert tasks.steps.tolist() == [8, 8]
    # Nothing says that the last sub-experience is the last one: its task ends with `close`.
    assert tasks.test_accuracy.between(0, 1).all()
    after = measure(strategy, benchmark.test_stream[1])
    assert tasks.test_accuracy[1] == pytest.approx(after)
    assert len(list((folder / "trajectory").glob("part-*"))) == 2


def test_a_multi_head_model_is_tested_with_its_tasks_head(tmp_path):
    model = ManyHeads()
    benchmark = permuted(steps=200).benchmark(task_labels=True)
    with StepSizeRecorder(tmp_path / "run", test_stream=benchmark.test_stream) as recorder:
        optimizer = meta_optimize(model, blocks="scalar", alpha0=3e-3)
        train(build("Naive", model, optimizer, [recorder]), benchmark)
    assert pd.read_parquet(tmp_path / "run" / "tasks.parquet").test_accuracy.min() > 0.3


def test_a_finished_run_is_refused_before_anything_trains(tmp_path):
    stream, model = permuted(tasks=1), mlp()
    with StepSizeRecorder(tmp_path / "run") as recorder:
        train(online(model, [recorder]), stream.benchmark())
    with pytest.raises(RunFolderError, match="holds a finished run"):
        StepSizeRecorder(tmp_path / "run")
    StepSizeRecorder(tmp_path / "run", overwrite=True)


def test_an_exception_leaves_an_unfinished_run_with_every_step(tmp_path):
    def fail(strategy):
        if strategy.clock.train_iterations == 17:
            raise KeyboardInterrupt

    model = mlp()
    with pytest.raises(KeyboardInterrupt), StepSizeRecorder(tmp_path / "run") as recorder:
        train(online(model, [recorder, Spy("before_backward", fail)]), permuted().benchmark())
    assert len(trajectory(tmp_path / "run")) == 17
    assert not RunFolder(tmp_path / "run").finished


def test_a_withheld_update_is_raised_at_the_end_of_the_task(tmp_path):
    def spoil(strategy):
        if strategy.clock.train_iterations == 5:
            next(iter(strategy.model.parameters())).grad.fill_(math.nan)

    model = mlp()
    with (
        pytest.raises(NonFiniteError, match="step 5"),
        StepSizeRecorder(tmp_path / "run") as recorder,
    ):
        train(online(model, [recorder, Spy("before_update", spoil)]), permuted().benchmark())
    assert len(trajectory(tmp_path / "run")) == 30


# ---- metrics -----------------------------------------------------------------------------------


def test_tensorboard_shows_a_curve_a_block(tmp_path):
    from avalanche.logging import TensorboardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, logger = mlp(), TensorboardLogger(tmp_path / "tb")
    metrics = evaluator(StepSizeMetric(), PrequentialAccuracy(), loggers=[logger])
    with StepSizeRecorder(tmp_path / "run") as recorder:
        train(online(model, [recorder], evaluator=metrics), permuted(steps=10).benchmark())
    logger.writer.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    table = trajectory(tmp_path / "run")
    for block in ("1", "3"):
        points = events.Scalars(f"StepSize/train_phase/train_stream/{block}")
        assert [p.step for p in points] == list(range(20))
        assert [p.value for p in points] == pytest.approx(table[f"alpha.{block}"].tolist())
    assert len({p.value for p in points}) > 10
    points = events.Scalars("PrequentialAccuracy/train_phase/train_stream")
    assert [p.value for p in points] == pytest.approx(table.correct.expanding().mean().tolist())
    assert events.Tags()["histograms"] == []
    assert len(events.Tags()["scalars"]) == 3


def test_metrics_are_python_floats_every_so_often():
    model, step_sizes = mlp(), StepSizeMetric(every=4)
    metrics = evaluator(step_sizes, PrequentialAccuracy(every=4, window=3))
    strategy = online(model, evaluator=metrics)
    train(strategy, permuted(tasks=1, steps=10).benchmark())
    every = metrics.get_all_metrics()
    steps, values = every["StepSize/train_phase/train_stream/1"]
    assert steps == [0, 4, 8] and {type(v) for v in values} == {float}
    assert step_sizes.result()["1"] == values[-1]
    steps, values = every["PrequentialAccuracy/train_phase/train_stream"]
    assert steps == [3, 7] and all(v in (0, 1 / 3, 2 / 3, 1) for v in values)


def test_prequential_accuracy_forgets_what_left_the_window():
    metric = PrequentialAccuracy(window=2)
    assert math.isnan(metric.result())
    for hits in ([True], [True, False], [False, False, False]):
        metric._pending.append(torch.tensor(hits))
    assert metric.result() == pytest.approx(1 / 5)
    metric.reset()
    assert math.isnan(metric.result())


@pytest.mark.parametrize("make", [StepSizeMetric, PrequentialAccuracy])
def test_metrics_refuse_impossible_numbers(make):
    with pytest.raises(BadArgument, match="every=0: must be a whole number"):
        make(every=0)
