"""Tables of finished runs for the terminal: each method's mean over seeds with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clmeta.cli.console import console, print_table
from clmeta.ground.names import method_labels
from clmeta.record.runfolder import RunFolder

#: Most rows of a table at the end.
ROWS = 40


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval over seeds; NaN for a single value."""
    from clmeta.analysis.statistics import half_width

    array = np.array(values, dtype=np.float64)
    deviation = array.std(ddof=1) if len(array) > 1 else np.nan
    return float(array.mean()), float(half_width(np.array(deviation), np.array(len(array))))


def percent(values: Sequence[float | None]) -> str:
    """Mean and interval of shares as ``77.1% ± 0.4``; a dash if there are none."""
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


def print_results(folders: Sequence[Path], title: str) -> None:
    """A row for each method, best first: seeds, online and test accuracy, step sizes.

    Args:
        folders: finished runs; runs of one method differ in their seed.
        title: what stands over the table.

    Raises:
        RunFolderError: for a folder that does not hold a finished run.
    """
    runs = [RunFolder(folder) for folder in folders]
    methods: dict[str, list[dict[str, Any]]] = {}
    for label, run in zip(method_labels([run.config for run in runs]), runs, strict=True):
        methods.setdefault(label, []).append(run.summary)

    def score(summaries: list[dict[str, Any]]) -> float:
        return sum(s["cumulative_accuracy"] or 0.0 for s in summaries) / len(summaries)

    ranked = sorted(methods.items(), key=lambda item: -score(item[1]))
    if not ranked:
        return
    rows = [
        (
            label,
            str(len(summaries)),
            percent([s["cumulative_accuracy"] for s in summaries]),
            percent([s["mean_test_accuracy"] for s in summaries]),
            span([s["step_sizes"] for s in summaries]),
        )
        for label, summaries in ranked[:ROWS]
    ]
    headings = ("method", "seeds", "online\naccuracy", "test\naccuracy", "step sizes\nat the end")
    print_table(title, headings, rows)
    note = "Test accuracy is each task's own, at its end."
    if len(ranked) > ROWS:
        note = f"{len(ranked) - ROWS} further methods are not shown. {note}"
    if any(len(summaries) > 1 for summaries in methods.values()):
        note += " Means over seeds ± half-width of the 95 % confidence interval."
    console().print(note)
    print_withheld(runs)


def print_withheld(runs: Sequence[RunFolder]) -> None:
    """Say how many steps were withheld, and where most were, if any were."""
    counts = [(run.summary.get("withheld") or 0, run.summary.get("steps"), run) for run in runs]
    some = [each for each in counts if each[0]]
    if some:
        most, steps, run = max(some, key=lambda each: each[0])
        said = f"Not finite, and so withheld: updates of {len(some)} of {len(runs)} runs, at most"
        console().print(f"{said} in {most} of {steps} steps ({run.path}).", soft_wrap=True)
