"""The command ``clmeta best``: a line for each choice, the values it was chosen from, warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clmeta.cli import options as o
from clmeta.cli.command import Argument, command
from clmeta.cli.console import console, print_table
from clmeta.runs.imports import import_modules
from clmeta.runs.options import NUMBER, PAIRS

if TYPE_CHECKING:
    from clmeta.sweep.best import Best
    from clmeta.sweep.metrics import Metric

CHOICE = "Choice"


@command(
    "best",
    [
        Argument("folders", "A sweep's folder, run folders, or globs.", many=True),
        o.own(
            "option",
            "The swept option to choose, e.g. eta or stream_options.tasks.",
            panel=CHOICE,
            default="alpha0",
        ),
        o.own(
            "metric",
            "cumulative_accuracy, test_accuracy, last_task_accuracy or loss.",
            panel=CHOICE,
            default="cumulative_accuracy",
        ),
        o.own("where", "Only runs with this, e.g. meta=none.", kind=PAIRS, panel=CHOICE),
        o.own(
            "tune_seeds",
            "Seeds to choose on, e.g. 0-2.",
            kind=o.SEEDS_KIND,
            panel=CHOICE,
            default_said="all",
        ),
        o.own(
            "report_seeds",
            "Other seeds to report on, e.g. 3-7.",
            kind=o.SEEDS_KIND,
            panel=CHOICE,
            default_said="all",
        ),
        o.own("level", "Confidence of the intervals.", kind=NUMBER, panel=CHOICE, default=0.95),
        o.IMPORTS,
    ],
)
def best(
    folders: Sequence[str],
    option: str,
    metric: str,
    where: dict[str, Any] | None,
    tune_seeds: list[int] | None,
    report_seeds: list[int] | None,
    level: float,
    imports: Sequence[str],
) -> None:
    """Choose the best fixed step size, or another swept option, with its confidence interval."""
    import_modules(imports)
    from clmeta.sweep.best import best as choose

    choices = choose(
        *folders,
        option=option.replace("-", "_"),
        metric=metric,
        where=where,
        tune_seeds=tune_seeds,
        report_seeds=report_seeds,
        level=level,
    )
    print_best(choices, metric, level)


def print_best(choices: Sequence[Best], metric: str, level: float = 0.95) -> None:
    """Print choices made by ``metric``, whose intervals have confidence ``level``."""
    from clmeta.sweep.metrics import METRICS

    out = console()
    unit = METRICS.get(metric, "metric")
    label = metric.replace("_", " ")
    for choice in choices:
        out.print(f"{choice.method}: {said(choice, label, unit)}", soft_wrap=True)
        rows = [
            (
                json.dumps(row["value"]),
                str(row["n"]),
                interval(row["mean"], row["high"], unit),
                "" if math.isnan(row["gain"]) else interval(row["gain"], row["gain_high"], unit),
            )
            for row in choice.table.to_dict("records")
        ]
        headings = (choice.option, "seeds", label, "best ahead by\n(paired)")
        print_table(f"Chosen on {seeds_said(choice.tuned_on)}", headings, rows)
        for warning in choice.warnings:
            out.print(f"Note: {warning}.", soft_wrap=True)
        out.print()
    out.print(f"Mean over seeds ± half-width of its {level:.0%} confidence interval.")


def said(choice: Best, label: str, unit: Metric) -> str:
    """A choice as one line."""
    reported = interval(choice.mean, choice.high, unit)
    value, seeds = json.dumps(choice.value), seeds_said(choice.reported_on)
    return f"best {choice.option} = {value}, {label} {reported} over {seeds}"


def seeds_said(seeds: Sequence[int]) -> str:
    """``3 seeds (0-2)``: how many and which."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    which = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({which})"


def interval(mean: float, high: float, unit: Metric) -> str:
    """A mean and the half-width of its interval, in percent for shares."""
    scale, mark = (100, " %") if unit.share else (1, "")
    digits = 2 if unit.share else 4
    half = scale * (high - mean)
    width = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return f"{scale * mean:.{digits}f}{mark}{width}"
