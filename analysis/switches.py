"""What step sizes do at a task switch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from clmeta.analysis.load import ALPHA, block_names
from clmeta.analysis.statistics import mean_over_seeds
from clmeta.errors import require
from clmeta.ground.checks import whole


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
    pieces = [
        pd.DataFrame(
            {**switch.key, "offset": switch.offset, "fold": switch.alpha / switch.at_switch}
        )
        for switch in _switches(runs, before, after, every)
    ]
    require(len(pieces) > 0, "runs", "no switch", "load runs of at least two tasks")
    return _typed(pd.concat(pieces, ignore_index=True), runs)


@dataclass
class _Switch:
    """One block's step sizes round one switch."""

    key: dict[str, Any]
    offset: np.ndarray
    alpha: np.ndarray
    at_switch: float


def _switches(
    runs: pd.DataFrame, before: int, after: int | None, every: int = 1
) -> Iterator[_Switch]:
    before, every = whole("before", before, least=0), whole("every", every, least=1)
    after = None if after is None else whole("after", after, least=0)
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
                key = {"method": method, "seed": seed, "run": name}
                key |= {"task": task[start], "block": block}
                yield _Switch(key, offset[rows], alpha[previous + rows], float(alpha[start]))


def _typed(result: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    for column in ("method", "run"):
        result[column] = result[column].astype(runs[column].dtype)
    result["block"] = pd.Categorical(result["block"], categories=block_names(runs))
    return result


def average_windows(windows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Fold change averaged over switches within each run, then over runs with an interval.

    Means are geometric. Switches of one run are not independent, so the interval counts runs.
    Offsets that not every switch of a run has are left out. Columns: ``method, block, offset, mean,
    low, high, n``.
    """
    logs = windows.assign(fold=np.log(windows["fold"]))
    per_run = ["method", "block", "seed", "run", "offset"]
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
    rows = []
    for switch in _switches(runs, before=0, after=after):
        top = int(np.argmax(switch.alpha))
        peak, start = float(switch.alpha[top]), switch.at_switch
        found = {"at_switch": start, "peak": peak, "rise": peak / start}
        rows.append({**switch.key, **found, "steps_to_peak": int(switch.offset[top])})
    require(len(rows) > 0, "runs", "no switch", "load runs of at least two tasks")
    return _typed(pd.DataFrame(rows), runs)


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
