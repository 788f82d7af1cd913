"""What step sizes do at a task switch, in numbers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from clmeta.analysis import (
    average_windows,
    boundary_windows,
    end_over_start,
    response_table,
    switch_response,
)
from clmeta.errors import BadArgument


def frame(alphas: dict[str, np.ndarray], length: int, seed: int = 0) -> pd.DataFrame:
    """One run's frame from step sizes per block."""
    steps = len(next(iter(alphas.values())))
    keys = {"method": "m", "seed": seed, "run": f"run{seed}", "step": np.arange(steps)}
    columns = {f"alpha.{block}": values for block, values in alphas.items()}
    return pd.DataFrame({**keys, "task": np.arange(steps) // length, "steps": 1, **columns})


@settings(deadline=None)
@given(
    logs=arrays(np.float64, (60, 2), elements=st.floats(-20, 0)),
    length=st.integers(5, 30),
    before=st.integers(0, 40),
)
def test_fold_change_is_one_at_the_switch_and_alpha_over_it_elsewhere(logs, length, before) -> None:
    alphas = np.exp(logs)
    windows = boundary_windows(frame({"a": alphas[:, 0], "b": alphas[:, 1]}, length), before)
    np.testing.assert_allclose(windows.loc[windows["offset"] == 0, "fold"], 1.0)
    start = windows["task"].to_numpy() * length
    column = (windows["block"] == "b").to_numpy().astype(int)
    expected = alphas[start + windows["offset"], column] / alphas[start, column]
    np.testing.assert_allclose(windows["fold"], expected)
    assert windows["offset"].min() == -min(before, length)
    assert windows["offset"].max() < length
    assert set(windows["task"]) == set(range(1, -(-60 // length)))


def test_windows_average_geometrically_over_switches_and_count_runs_not_switches() -> None:
    rises = np.array([[2.0, 8.0], [4.0, 4.0], [1.0, 64.0]])  # of two switches in each of three runs
    runs = pd.concat(
        frame({"a": np.array([3, 3, 1, up, 5, 5 * down])}, 2, seed)
        for seed, (up, down) in enumerate(rises)
    )
    curve = average_windows(boundary_windows(runs, before=0)).set_index("offset")
    assert curve.loc[0, ["mean", "low", "high"]].tolist() == pytest.approx([1.0, 1.0, 1.0])
    per_run = np.log(rises).mean(axis=1)
    width = stats.t.ppf(0.975, 2) * per_run.std(ddof=1) / np.sqrt(3)
    assert curve["n"].tolist() == [3, 3]
    assert curve.loc[1, "mean"] == pytest.approx(np.exp(per_run.mean()))
    assert curve.loc[1, "high"] == pytest.approx(np.exp(per_run.mean() + width))


def test_offsets_that_some_switches_lack_are_left_out_of_averages() -> None:
    uneven = frame({"a": np.ones(8)}, 3)  # the last task has 2 steps
    curve = average_windows(boundary_windows(uneven, before=0))
    assert curve["offset"].tolist() == [0, 1]


def test_rise_and_time_to_peak_are_those_of_each_switch() -> None:
    alpha = np.array([5, 4, 3, 2, 2, 3, 8, 4, 1, 2, 3, 4.0])
    found = switch_response(frame({"a": alpha}, 4))
    assert found["task"].tolist() == [1, 2]
    assert found["at_switch"].tolist() == [2.0, 1.0]
    assert found["peak"].tolist() == [8.0, 4.0]
    assert found["rise"].tolist() == [4.0, 4.0]
    assert found["steps_to_peak"].tolist() == [2, 3]
    assert switch_response(frame({"a": alpha}, 4), after=1)["steps_to_peak"].tolist() == [1, 1]
    assert end_over_start(frame({"a": alpha}, 4))["ratio"].tolist() == [0.8]


def test_a_stationary_run_has_no_switch() -> None:
    with pytest.raises(BadArgument, match="at least two tasks"):
        boundary_windows(frame({"a": np.ones(5)}, 5))


def published_runs(path: Path) -> pd.DataFrame:
    """The published AdamW curves of ten tasks of 5,000 steps, as a frame of runs."""
    table = pd.read_csv(path).query("classes_per_task == 10 and base == 'AdamW'")
    frames = []
    for variant, curves in table[table["quantity"].str.startswith("alpha")].groupby("variant"):
        wide = curves.pivot(index="step", columns="quantity", values="value")
        wide = wide.add_prefix("alpha.").reset_index()
        keys = {"method": variant, "seed": 0, "run": variant, "task": wide["step"] // 5000}
        frames.append(wide.assign(**keys, steps=100))
    return pd.concat(frames, ignore_index=True)


def test_the_published_facts_show_in_the_published_curves(shared: Path) -> None:
    table = response_table(published_runs(shared / "data" / "published_cifar100_curves.csv"))
    assert table.loc[("scalar", "alpha"), "rise"] == pytest.approx(7, abs=0.5)
    assert table.loc[("scalar", "alpha"), "steps_to_peak"] == pytest.approx(780, abs=10)
    assert table.loc[("2 blocks", "alpha_block0"), "rise"] == pytest.approx(7, abs=0.5)
    assert table.loc[("2 blocks", "alpha_block1"), "rise"] == pytest.approx(12, abs=0.5)
    assert table.loc[("2 blocks", "alpha_block0"), "end_over_start"] == pytest.approx(
        0.04, abs=0.005
    )
    assert table.loc[("2 blocks", "alpha_block1"), "end_over_start"] == pytest.approx(2.2, abs=0.05)
