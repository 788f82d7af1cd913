"""Tables of finished runs for the terminal: each method's mean over seeds with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from clmeta.record.runfolder import RunFolder


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval over seeds; NaN for a single value."""
    from clmeta.analysis.statistics import half_width

    array = np.array(values, dtype=np.float64)
    deviation = array.std(ddof=1) if len(array) > 1 else np.nan
    return float(array.mean()), float(half_width(np.array(deviation), np.array(len(array))))


def percent(values: Sequence[float | None]) -> str:
    """Mean and interval of shares as ``77.1 % ± 0.4``; a dash if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, half = mean_interval(known)
    return f"{mean:.1%}" if math.isnan(half) else f"{mean:.1%} ± {100 * half:.1f}"


def span(step_sizes: Sequence[dict[str, float]]) -> str:
    """Smallest to largest block, each a geometric mean over seeds: ``3.4e-04 to 6.1e-03``."""
    logs = np.log([[max(value, 1e-300) for value in run.values()] for run in step_sizes])
    means = np.exp(logs.mean(axis=0))
    low, high = f"{means.min():.1e}", f"{means.max():.1e}"
    return low if low == high else f"{low} to {high}"


def print_table(folders: Sequence[Path], title: str, console: Console | None = None) -> None:
    """A row for each method: online accuracy over the whole stream, test accuracy, step sizes.

    Args:
        folders: finished runs; runs of one method differ in their seed.
        title: what stands over the table.
        console: where to print; standard output by default.

    Raises:
        RunFolderError: for a folder that does not hold a finished run.
    """
    console = console or Console(highlight=False)
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("method", overflow="fold")
    table.add_column("seeds", justify="right")
    table.add_column("online\naccuracy", justify="right")
    table.add_column("test\naccuracy", justify="right")
    table.add_column("step sizes\nat the end", justify="right")
    by_method: dict[str, list[dict]] = {}
    for folder in folders:
        summary = RunFolder(folder).summary
        by_method.setdefault(summary["method"], []).append(summary)
    for method, runs in by_method.items():
        table.add_row(
            method,
            str(len(runs)),
            percent([run["cumulative_accuracy"] for run in runs]),
            percent([run["mean_test_accuracy"] for run in runs]),
            span([run["step_sizes"] for run in runs]),
        )
    console.print(table)
    note = "Test accuracy is each task's own, at its end."
    if any(len(runs) > 1 for runs in by_method.values()):
        note += " Means over seeds ± half-width of the 95 % confidence interval."
    console.print(note)
