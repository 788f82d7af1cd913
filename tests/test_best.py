"""The best value of a swept option, chosen among runs whose scores are known."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from clmeta.errors import BadArgument
from clmeta.record.recorder import Recorder
from clmeta.runs.config import RunConfig
from clmeta.sweep.best import best

#: Online accuracy by step size, for seeds 0 to 3.
SCORES = {
    1e-4: [0.50, 0.52, 0.51, 0.53],
    1e-3: [0.60, 0.61, 0.62, 0.60],
    1e-2: [0.4, 0.7, 0.4, 0.3],
}
STEPS = 100


def write_run(output, score, *, finished=True, **options):
    """A run that predicts the first ``score`` of its steps right."""
    config = RunConfig(**{"meta": "none", **options})
    content = {**config.to_dict(), "method": config.method}
    recorder = Recorder(output / config.key(), ["all"], config=content)
    for step in range(STEPS):
        recorder.record(0, 1 - score, float(step < round(STEPS * score)), [config.alpha0])
    recorder.end_task(0, score / 2)
    if finished:
        recorder.close({"mean_test_accuracy": score / 2})
    recorder.folder.release()


@pytest.fixture
def sweep(tmp_path):
    for alpha0, scores in SCORES.items():
        for seed, score in enumerate(scores):
            write_run(tmp_path, score, alpha0=alpha0, seed=seed)
    return tmp_path


def test_the_value_with_the_best_mean_is_chosen_with_its_interval(sweep):
    (choice,) = best(sweep)
    assert (choice.option, choice.value, choice.seeds) == ("alpha0", 1e-3, 4)
    interval = stats.t.interval(0.95, 3, 0.6075, stats.sem(SCORES[1e-3]))
    assert (choice.low, choice.high) == pytest.approx(interval)
    assert choice.mean == pytest.approx(0.6075)
    assert not any("edge" in warning for warning in choice.warnings)


def test_the_table_has_every_value_and_how_far_the_best_is_ahead_seed_by_seed(sweep):
    table = best(sweep)[0].table
    assert list(table["value"]) == [1e-3, 1e-4, 1e-2]
    assert table["gain"].iloc[1] == pytest.approx(0.0925)
    ahead = [a - b for a, b in zip(SCORES[1e-3], SCORES[1e-4], strict=True)]
    low, high = stats.t.interval(0.95, 3, 0.0925, stats.sem(ahead))
    assert (table["gain_low"].iloc[1], table["gain_high"].iloc[1]) == pytest.approx((low, high))
    assert math.isnan(table["gain"].iloc[0])


@pytest.mark.parametrize(("value", "direction"), [(1e-5, "downwards"), (1e-1, "upwards")])
def test_a_best_value_at_the_edge_of_the_grid_is_a_warning(sweep, value, direction):
    for seed in range(4):
        write_run(sweep, 0.8, alpha0=value, seed=seed)
    (choice,) = best(sweep)
    assert choice.value == value
    assert any("edge of its grid" in w and w.endswith(direction) for w in choice.warnings)


def test_choosing_on_some_seeds_reports_on_the_others(sweep):
    (choice,) = best(sweep, tune_seeds=[1], report_seeds=[0, 2, 3])
    assert choice.value == 1e-2, "seed 1 is its lucky one"
    assert choice.mean == pytest.approx((0.4 + 0.4 + 0.3) / 3)
    assert choice.seeds == 3
    assert not any("same seeds" in warning for warning in choice.warnings)
    assert best(sweep, tune_seeds=[1])[0].mean == choice.mean, "all others is the default"


def test_choosing_and_reporting_on_the_same_seeds_is_a_warning(sweep):
    assert any("same seeds" in warning for warning in best(sweep)[0].warnings)


def test_a_value_that_failed_on_a_seed_is_not_chosen(sweep):
    for seed in range(4):
        write_run(sweep, 0.9, alpha0=1e-1, seed=seed, finished=seed != 2)
    (choice,) = best(sweep)
    assert choice.value == 1e-3
    assert "left out, as runs are missing or failed: alpha0 = 0.1 (3 of 4 seeds)" in choice.warnings


def test_each_method_gets_its_own_choice_and_where_selects(sweep):
    for seed in range(2):
        write_run(sweep, 0.3, alpha0=1e-3, seed=seed, base="sgd")
        write_run(sweep, 0.2, alpha0=1e-2, seed=seed, base="sgd")
        write_run(sweep, 0.9, alpha0=1e-2, seed=seed, meta="adam")  # has one value only
    choices = best(sweep, tune_seeds=[0], report_seeds=[1])
    assert [(c.value, "sgd" in c.method) for c in choices] in (
        [(1e-3, False), (1e-3, True)],
        [(1e-3, True), (1e-3, False)],
    )
    (only,) = best(sweep, where={"base": "sgd"})
    assert "sgd" in only.method


def test_a_method_with_fewer_seeds_is_judged_on_its_own(sweep):
    for alpha0, score in ((1e-4, 0.3), (1e-3, 0.4)):
        for seed in (0, 1):
            write_run(sweep, score, base="lion", alpha0=alpha0, seed=seed)
    chosen = {choice.seeds: choice.value for choice in best(sweep)}
    assert chosen == {4: 1e-3, 2: 1e-3}


def test_a_run_that_diverged_has_no_loss_to_win_with(tmp_path):
    for alpha0, loss in ((1e-4, 1.6), (1e18, 1.5)):
        config = RunConfig(meta="none", alpha0=alpha0)
        recorder = Recorder(tmp_path / config.key(), ["all"], config=config.to_dict())
        for step in range(3):
            recorder.record(0, math.nan if step and alpha0 > 1 else loss, 0.0, [alpha0])
        recorder.end_task(0)
        recorder.close({})
        recorder.folder.release()
    (choice,) = best(tmp_path, metric="loss")
    assert choice.value == 1e-4
    assert any("left out" in warning for warning in choice.warnings)


def test_other_metrics_and_other_options(sweep):
    assert best(sweep, metric="test_accuracy")[0].mean == pytest.approx(0.6075 / 2)
    assert best(sweep, metric="last_task_accuracy")[0].mean == pytest.approx(0.6075)
    least = best(sweep, metric="loss")[0]
    assert (least.value, least.mean) == (1e-3, pytest.approx(1 - 0.6075))
    for tasks in (2, 3):
        write_run(sweep, tasks / 10, seed=9, base="lion", stream_options={"tasks": tasks})
    (choice,) = best(sweep, option="stream_options.tasks", where={"base": "lion"})
    assert choice.value == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"metric": "accuracy"}, "metric='accuracy': unknown metric"),
        ({"option": "alpha"}, "option='alpha': known: alpha0"),
        ({"option": "eta"}, "option='eta': no method has runs with two values of it"),
        ({"where": {"base": "lion"}}, "no run has these values"),
        ({"tune_seeds": [7]}, "tune_seeds=[7]: no run has these seeds; there are [0, 1, 2, 3]"),
        ({"tune_seeds": [0, 1], "report_seeds": [1, 2]}, "report_seeds=[1]: are tune_seeds too"),
        ({"tune_seeds": [0, 1, 2, 3]}, "no seed is left to report on"),
    ],
)
def test_bad_questions_are_refused_in_one_line(sweep, asked, said):
    with pytest.raises(BadArgument) as caught:
        best(sweep, **asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_prints_the_choice_and_its_warnings(sweep, capsys):
    from clmeta.cli.app import main

    with pytest.raises(SystemExit) as caught:
        main(["best", str(sweep), "--tune-seeds", "0-1", "--report-seeds", "2-3"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "best alpha0 = 0.01" not in out
    assert "best alpha0 = 0.001, cumulative accuracy 61.00 %" in out
    assert "over 2 seeds (2-3)" in out, "those reported on"
    assert "Chosen on 2 seeds (0-1)" in out
