"""What ``clmeta best`` prints: a line for each choice, the values it was chosen from, warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from clmeta.sweep.best import Best
from clmeta.sweep.metrics import METRICS, Metric


def print_best(
    choices: Sequence[Best], metric: str, level: float = 0.95, console: Console | None = None
) -> None:
    """Print choices made by ``metric``, whose intervals have confidence ``level``."""
    console = console or Console(highlight=False)
    unit = METRICS.get(metric)
    label = metric.replace("_", " ")
    for choice in choices:
        console.print(f"{choice.method}: {said(choice, label, unit)}", markup=False, soft_wrap=True)
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column(choice.option)
        table.add_column("seeds", justify="right")
        table.add_column(label, justify="right")
        table.add_column("best ahead by (paired)", justify="right")
        for row in choice.table.to_dict("records"):
            table.add_row(
                json.dumps(row["value"]),
                str(row["n"]),
                interval(row["mean"], row["high"], unit),
                "" if math.isnan(row["gain"]) else interval(row["gain"], row["gain_high"], unit),
            )
        console.print(table)
        for warning in choice.warnings:
            console.print(f"Note: {warning}.", markup=False, soft_wrap=True)
        console.print()
    console.print(f"Mean over seeds ± half-width of its {level:.0%} confidence interval.")


def said(choice: Best, label: str, unit: Metric) -> str:
    """A choice as one line."""
    seeds = f"{choice.seeds} seed{'s' if choice.seeds > 1 else ''}"
    value = json.dumps(choice.value)
    reported = interval(choice.mean, choice.high, unit)
    return f"best {choice.option} = {value}, {label} {reported} over {seeds}"


def interval(mean: float, high: float, unit: Metric) -> str:
    """A mean and the half-width of its interval, in percent for shares."""
    scale, mark = (100, " %") if unit.share else (1, "")
    digits = 2 if unit.share else 4
    half = scale * (high - mean)
    width = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return f"{scale * mean:.{digits}f}{mark}{width}"
