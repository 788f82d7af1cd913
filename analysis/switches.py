"""What step sizes do at a task switch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clmeta.analysis.load import ALPHA, block_names
from clmeta.analysis.statistics import mean_over_seeds
from clmeta.errors import require

KEYS = ["method", "seed", "run", "task", "block"]


def task_starts(run: pd.DataFrame) -> np.ndarray:
    """Rows of one run at which a task begins, the first task's included."""
    task = run["task"].to_numpy()
    return np.flatnonzero(np.diff(task, prepend=task[0] - 1))


def boundary_windows(
    runs: pd.DataFrame, before: int = 500, after: int | None = None, every: int = 1
) -> pd.DataFrame:
    """Step sizes round every switch as fold change: alpha(t) / alpha(at the switch).

    The step size at the switch is the one used in the first step of the new task; it knows nothing
    of that task yet. The first task's start is no switch. A window reaches at most to the
    neighbouring switches.

    Columns: ``method, seed, run, task, block, offset, fold``; ``offset`` counts steps since the
    switch, negative before it; ``fold`` is 1 at offset 0.

    Args:
        runs: from `load_runs`.
        before: steps before the switch.
        after: steps after it; None: up to the next switch.
        every: keep offsets that are multiples of this.

    Raises:
        BadArgument: if there is no switch, or a length is negative.
    """
    require(before >= 0, "before", before, "must not be negative")
    require(after is None or after >= 0, "after", after, "must not be negative")
    pieces = []
    for (method, seed, name), run in runs.groupby(["method", "seed", "run"], observed=True):
        run = run.sort_values("step", kind="stable")
        step, task = run["step"].to_numpy(), run["task"].to_numpy()
        starts = task_starts(run)
        ends = np.append(starts[1:], len(step))
        blocks = [block for block in block_names(run) if run[ALPHA + block].notna().any()]
        alphas = {block: run[ALPHA + block].to_numpy(np.float64) for block in blocks}
        for previous, start, end in zip(starts[:-1], starts[1:], ends[1:], strict=True):
            offset = step[previous:end] - step[start]
            last = offset[-1] if after is None else after
            rows = np.flatnonzero((offset >= -before) & (offset <= last) & (offset % every == 0))
            for block, alpha in alphas.items():
                piece = {"offset": offset[rows], "fold": alpha[previous + rows] / alpha[start]}
                key = {"method": method, "seed": seed, "run": name, "task": task[start]}
                pieces.append(pd.DataFrame({**key, "block": block, **piece}))
    require(len(pieces) > 0, "runs", "no switch", "load runs of at least two tasks")
    windows = pd.concat(pieces, ignore_index=True)
    for column in ("method", "run"):
        windows[column] = windows[column].astype(runs[column].dtype)
    windows["block"] = pd.Categorical(windows["block"], categories=block_names(runs))
    return windows


def average_windows(windows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Fold change averaged over switches within each run, then over runs with an interval.

    Means are geometric. Switches of one run are not independent, so the interval counts runs.
    Offsets that not every switch of a run has are left out. Columns: ``method, block, offset, mean,
    low, high, n``.
    """
    logs = windows.assign(fold=np.log(windows["fold"]))
    per_run = ["method", "block", "run", "offset"]
    curve = logs.groupby(per_run, observed=True)["fold"].agg(["mean", "size"]).reset_index()
    most = curve.groupby(["method", "block", "run"], observed=True)["size"].transform("max")
    curve = curve[curve["size"] == most]
    curve = curve.assign(fold=np.exp(curve["mean"])).drop(columns=["mean", "size"])
    return mean_over_seeds(
        curve, "fold", ["method", "block", "offset"], level=level, geometric=True
    )


def switch_response(runs: pd.DataFrame, after: int | None = None) -> pd.DataFrame:
    """How far and how fast each step size rises after each switch.

    One row for each run, block and switch: ``method, seed, run, task, block, at_switch`` (alpha in
    the task's first step), ``peak`` (largest alpha in the window), ``rise`` = peak / at_switch and
    ``steps_to_peak``.

    Args:
        runs: from `load_runs`; with a thinned frame peaks fall on kept steps.
        after: steps searched after the switch; None: up to the next switch.

    Raises:
        BadArgument: if there is no switch.
    """
    windows = boundary_windows(runs, before=0, after=after)
    rows = windows.loc[windows.groupby(KEYS, observed=True)["fold"].idxmax()]
    result = rows.rename(columns={"fold": "rise", "offset": "steps_to_peak"}).reset_index(drop=True)
    starts = runs.loc[runs.groupby(["run", "task"], observed=True)["step"].idxmin()]
    at_switch = starts.melt(
        id_vars=["run", "task"],
        value_vars=[ALPHA + block for block in block_names(runs)],
        var_name="block",
        value_name="at_switch",
    )
    at_switch["block"] = at_switch["block"].str.removeprefix(ALPHA).astype(result["block"].dtype)
    result = result.merge(at_switch, on=["run", "task", "block"])
    result["peak"] = result["rise"] * result["at_switch"]
    return result[[*KEYS, "at_switch", "peak", "rise", "steps_to_peak"]]


def end_over_start(runs: pd.DataFrame) -> pd.DataFrame:
    """Each block's step size in the last step over that in the first.

    Columns: ``method, seed, run, block, start, end, ratio``.
    """
    rows = []
    for (method, seed, name), run in runs.groupby(["method", "seed", "run"], observed=True):
        run = run.sort_values("step", kind="stable")
        for block in block_names(run):
            alpha = run[ALPHA + block].to_numpy(np.float64)
            if not np.isnan(alpha).all():
                rows.append((method, seed, name, block, alpha[0], alpha[-1], alpha[-1] / alpha[0]))
    columns = ["method", "seed", "run", "block", "start", "end", "ratio"]
    return pd.DataFrame(rows, columns=columns)


def response_table(runs: pd.DataFrame, after: int | None = None) -> pd.DataFrame:
    """The facts of `switch_response` and `end_over_start`, averaged over switches and runs.

    Indexed by method and block; columns ``rise``, ``steps_to_peak``, ``end_over_start``, each the
    mean over runs of the mean over switches (geometric for the ratios).
    """
    response = switch_response(runs, after)
    response["rise"] = np.log(response["rise"])
    keys = ["method", "block"]
    per_run = response.groupby([*keys, "run"], observed=True)[["rise", "steps_to_peak"]].mean()
    table = per_run.groupby(keys, observed=True).mean()
    ends = end_over_start(runs)
    ends["ratio"] = np.log(ends["ratio"])
    ratio = ends.groupby(keys, observed=True)["ratio"].mean()
    table.index = pd.MultiIndex.from_tuples([(str(m), str(b)) for m, b in table.index], names=keys)
    table["end_over_start"] = np.exp(ratio.reindex(table.index))
    table["rise"] = np.exp(table["rise"])
    return table
