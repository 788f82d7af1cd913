"""Online accuracy: over all past steps, per task, and in a table over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clmeta.analysis.statistics import mean_over_seeds, paired_differences
from clmeta.errors import require

RUN = ["method", "seed", "run"]


def cumulative_accuracy(correct: np.ndarray) -> np.ndarray:
    """Online accuracy averaged over all past steps: a_t = (1/t) sum_{tau <= t} correct_tau.

    Args:
        correct: share of each step's batch that was predicted right before the update, (steps,).
    """
    values = np.asarray(correct, np.float64)
    return np.cumsum(values) / np.arange(1, len(values) + 1)


def accuracy_per_task(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracies of each run on each task.

    Columns: ``method, seed, run, task, first_step, steps, online_accuracy, test_accuracy``; the
    last is measured at the task's end, NaN where it was not.

    Args:
        runs: from `load_runs`; thinned frames give the same result.
    """
    require("correct" in runs, "runs", list(runs.columns), "load the column 'correct'")
    parts = pd.DataFrame({column: runs[column] for column in (*RUN, "task", "steps")})
    parts["first_step"] = runs["step"] - runs["steps"] + 1
    parts["online_accuracy"] = runs["correct"].astype(np.float64) * runs["steps"]
    parts["test_accuracy"] = runs.get("test_accuracy", np.nan)
    tasks = parts.groupby([*RUN, "task"], observed=True, sort=True)
    result = tasks.agg(
        first_step=("first_step", "min"),
        steps=("steps", "sum"),
        online_accuracy=("online_accuracy", "sum"),
        test_accuracy=("test_accuracy", "last"),
    )
    result["online_accuracy"] /= result["steps"]
    return result.reset_index()


def final_accuracy(runs: pd.DataFrame) -> pd.DataFrame:
    """Cumulative accuracy at each run's last step: ``method, seed, run, steps, final_accuracy``."""
    column = "cumulative_accuracy"
    require(column in runs, "runs", list(runs.columns), f"load the column {column!r}")
    last = runs.loc[runs.groupby("run", observed=True)["step"].idxmax()]
    result = last[RUN].copy()
    result["steps"] = last["step"] + 1
    result["final_accuracy"] = last[column].astype(np.float64)
    return result.reset_index(drop=True)


def summary_table(
    runs: pd.DataFrame, baseline: str | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Final cumulative accuracy by method, with confidence intervals over seeds.

    Indexed by ``method``, best first. Columns: ``seeds``, ``steps`` (per run), ``accuracy``,
    ``low``, ``high`` (NaN with one seed); with a baseline also ``gain``, ``gain_low``,
    ``gain_high``, the paired differences to it. Accuracies are shares in [0, 1].

    Raises:
        BadArgument: as `paired_differences` does.
    """
    require(isinstance(baseline, str | None), "baseline", baseline, "must be a method's name")
    final = final_accuracy(runs)
    table = mean_over_seeds(final, "final_accuracy", level=level)
    table = table.rename(columns={"mean": "accuracy", "n": "seeds"}).set_index("method")
    table["steps"] = final.groupby("method", observed=True)["steps"].max()
    table = table[["seeds", "steps", "accuracy", "low", "high"]]
    if baseline is not None:
        gains = paired_differences(final, "final_accuracy", baseline, level=level)
        gains = gains.set_index("method")[["mean", "low", "high"]]
        gains.columns = pd.Index(["gain", "gain_low", "gain_high"])
        table = table.join(gains)
    table.index = table.index.astype(str)
    return table.sort_values("accuracy", ascending=False)
