"""Means and intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from clmeta.errors import bad, require
from clmeta.ground.checks import check_level


def half_width(deviation: np.ndarray, count: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Half the width of Student's t interval of a mean: t_{n-1, (1+level)/2} s / sqrt(n).

    Args:
        deviation: sample standard deviations (ddof = 1).
        count: numbers of samples n; where n < 2 the result is NaN.
        level: of confidence, in (0, 1).
    """
    level = check_level(level)
    n = np.asarray(count)
    freedom = np.where(n > 1, n - 1, 1)
    width = stats.t.ppf((1 + level) / 2, freedom) * np.asarray(deviation) / np.sqrt(freedom + 1)
    return np.where(n > 1, width, np.nan)


def mean_over_seeds(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str] = ("method",),
    *,
    level: float = 0.95,
    geometric: bool = False,
) -> pd.DataFrame:
    """Mean and confidence interval of ``value`` in each group; each row counts as one seed.

    Columns: ``by``, ``mean``, ``low``, ``high``, ``n``. With one seed there is no interval: ``low``
    and ``high`` are NaN. Rows where ``value`` is NaN do not count.

    Args:
        frame: one row for each group and seed.
        value: the column averaged.
        by: columns that make a group.
        level: of confidence.
        geometric: average logarithms, for positive quantities such as step sizes; the interval is
            then that of the geometric mean.

    Raises:
        BadArgument: for an unknown column, a run with several rows in a group, several runs of
            one seed in a group, or a geometric mean of values that are not positive.
    """
    by = list(by)
    for column in (value, *by):
        if column not in frame:
            bad("value" if column == value else "by", column, "no such column in the frame")
    kept = frame.loc[frame[value].notna()]
    if "run" in kept and "run" not in by and kept.duplicated([*by, "run"]).any():
        bad("by", by, "a run has several rows in one group: group by more, or average within runs")
    if "seed" in kept and not {"seed", "run"} & set(by):
        _refuse_repeats(kept[kept["seed"] != -1], by)
    values = kept[value].astype(np.float64)
    if geometric:
        require(bool((values > 0).all()), "value", value, "a geometric mean needs values above 0")
        values = pd.Series(np.log(values), index=values.index)
    grouped = values.groupby([kept[column] for column in by], observed=True, sort=True)
    result = grouped.agg(mean="mean", deviation="std", n="count").reset_index()
    width = half_width(result["deviation"].to_numpy(), result["n"].to_numpy(), level)
    result["low"], result["high"] = result["mean"] - width, result["mean"] + width
    if geometric:
        columns = ["mean", "low", "high"]
        result[columns] = np.exp(result[columns])
    return result[[*by, "mean", "low", "high", "n"]]


def _refuse_repeats(frame: pd.DataFrame, by: list[str]) -> None:
    """Runs of one seed see the same data from the same weights: they are no independent samples."""
    twice = frame[frame.duplicated([*by, "seed"])]
    if len(twice):
        first = twice.iloc[0]
        where = ", ".join(f"{column}={first[column]!s}" for column in by)
        mend = f"several runs with it in the group {where}; leave out all but one, such as a copy"
        bad("seed", int(first["seed"]), mend)


def paired_differences(
    frame: pd.DataFrame, value: str, baseline: str, *, level: float = 0.95
) -> pd.DataFrame:
    """Differences to a baseline, seed by seed, with intervals.

    Runs of one seed see the same data, so their difference varies less than either; the interval
    is Student's t over the differences. Columns: ``method, mean, low, high, n, p``; ``p`` is the
    two-sided paired t-test's, NaN below two seeds.

    Args:
        frame: one row for each method and seed, e.g. from `final_accuracy`.
        value: the column compared.
        baseline: the method subtracted.
        level: of confidence.

    Raises:
        BadArgument: for an unknown baseline, two runs of one method and seed, or no common seed.
    """
    known = [str(method) for method in frame["method"].unique()]
    if baseline not in known:
        bad("baseline", baseline, f"no such method; known: {', '.join(known)}")
    twice = frame[frame.duplicated(["method", "seed"])]
    if len(twice):
        first = twice.iloc[0]
        bad("seed", int(first["seed"]), f"method {first['method']!r} has several runs with it")
    table = frame.pivot(index="seed", columns="method", values=value).astype(np.float64)
    rows = []
    for method in known:
        if method == baseline:
            continue
        change = (table[method] - table[baseline]).dropna().to_numpy()
        require(len(change) > 0, "baseline", baseline, f"shares no seed with {method!r}")
        n = len(change)
        deviation = change.std(ddof=1) if n > 1 else np.nan
        width = float(half_width(np.array(deviation), np.array(n), level))
        mean = float(change.mean())
        p = np.nan
        if n > 1 and deviation > 0:
            p = float(2 * stats.t.sf(abs(mean) / (deviation / np.sqrt(n)), n - 1))
        rows.append((method, mean, mean - width, mean + width, n, p))
    return pd.DataFrame(rows, columns=["method", "mean", "low", "high", "n", "p"])
