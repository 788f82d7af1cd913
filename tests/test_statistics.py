"""Means over seeds have Student intervals, and differences are taken seed by seed."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from clmeta.analysis import (
    mean_over_seeds,
    paired_differences,
)
from clmeta.errors import BadArgument


@given(
    values=arrays(np.float64, st.integers(2, 12), elements=st.floats(-100, 100)),
    level=st.sampled_from([0.8, 0.95]),
)
def test_intervals_are_student_t_intervals(values, level) -> None:
    table = pd.DataFrame({"method": "m", "run": range(len(values)), "v": values})
    row = mean_over_seeds(table, "v", level=level).iloc[0]
    error = stats.sem(values)
    assert row["n"] == len(values)
    assert row["mean"] == pytest.approx(values.mean(), abs=1e-9)
    if error > 1e-9:
        low, high = stats.t.interval(level, len(values) - 1, values.mean(), error)
        assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    samples = np.random.default_rng(0).normal(size=(2000, 3))
    table = pd.DataFrame({"method": np.repeat(np.arange(2000), 3), "v": samples.ravel()})
    rows = mean_over_seeds(table, "v")
    assert 0.94 < ((rows["low"] < 0) & (rows["high"] > 0)).mean() < 0.96


def test_one_seed_has_a_mean_and_no_interval_and_no_warning() -> None:
    table = pd.DataFrame({"method": ["m"], "seed": [0], "run": ["r"], "v": [0.4]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = mean_over_seeds(table, "v").iloc[0]
    assert row["mean"] == 0.4 and math.isnan(row["low"]) and math.isnan(row["high"])


def test_geometric_means_average_logarithms() -> None:
    table = pd.DataFrame({"method": "m", "run": range(3), "alpha": [1e-4, 1e-3, 1e-2]})
    row = mean_over_seeds(table, "alpha", geometric=True).iloc[0]
    assert row["mean"] == pytest.approx(1e-3)
    assert row["high"] / row["mean"] == pytest.approx(row["mean"] / row["low"])
    with pytest.raises(BadArgument, match="above 0"):
        mean_over_seeds(table.assign(alpha=[0.0, 1, 1]), "alpha", geometric=True)


def test_several_rows_of_a_run_are_not_taken_for_seeds() -> None:
    table = pd.DataFrame({"method": "m", "run": ["r", "r"], "v": [0.1, 0.2]})
    with pytest.raises(BadArgument, match="several rows in one group"):
        mean_over_seeds(table, "v")


def test_repeats_of_a_seed_are_not_taken_for_seeds() -> None:
    """A copy of a run, or the same on another device, says nothing new."""
    table = pd.DataFrame(
        {"method": "m", "seed": [0, 1, 1], "run": ["a", "b", "copy"], "v": [0.1, 0.2, 0.2]}
    )
    with pytest.raises(BadArgument, match=r"seed=1: several runs.*method=m; leave out all but one"):
        mean_over_seeds(table, "v")
    assert mean_over_seeds(table.iloc[:2], "v")["n"].tolist() == [2]
    assert mean_over_seeds(table.assign(method=["m", "m", "o"]), "v")["n"].tolist() == [2, 1]
    assert mean_over_seeds(table, "v", ["method", "run"])["n"].tolist() == [1, 1, 1]
    unknown = table.assign(seed=-1)  # the configs don't say
    assert mean_over_seeds(unknown, "v")["n"].tolist() == [3]


def test_paired_differences_agree_with_the_paired_t_test() -> None:
    draw = np.random.default_rng(1)
    seeds, shared = np.arange(6), draw.normal(size=6)
    a, b = shared, shared + 0.5 + 0.1 * draw.normal(size=6)
    table = pd.DataFrame(
        {"method": ["a"] * 6 + ["b"] * 6, "seed": [*seeds, *seeds[::-1]], "v": [*a, *b[::-1]]}
    )
    row = paired_differences(table, "v", "a").iloc[0]
    test = stats.ttest_rel(b, a)
    interval = test.confidence_interval(0.95)
    assert row["method"] == "b" and row["n"] == 6
    assert row["mean"] == pytest.approx((b - a).mean())
    assert row["p"] == pytest.approx(test.pvalue)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))


def test_pairs_must_be_unique_and_share_seeds() -> None:
    table = pd.DataFrame({"method": ["a", "a", "b"], "seed": [0, 0, 1], "v": 1.0})
    with pytest.raises(BadArgument, match="seed=0: method 'a' has several runs"):
        paired_differences(table, "v", "a")
    with pytest.raises(BadArgument, match="shares no seed with 'b'"):
        paired_differences(table.iloc[1:], "v", "a")
    with pytest.raises(BadArgument, match="baseline='c': no such method; known: a, b"):
        paired_differences(table, "v", "c")
