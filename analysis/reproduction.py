"""Figures and table of the paper's non-stationary CIFAR100 experiment (Sec. 7.2), from runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clmeta.analysis import style
from clmeta.analysis.accuracy import summary_table
from clmeta.analysis.plots import plot_cumulative_accuracy, plot_switches, plot_trajectories
from clmeta.analysis.published import QUANTITIES, published_curves
from clmeta.analysis.statistics import mean_over_seeds
from clmeta.analysis.switches import end_over_start, switch_response

SCALAR, BLOCKS = "scalar", "2 blocks"
VARIANTS = {SCALAR: "scalar", BLOCKS: "head"}


@dataclass(frozen=True)
class RowRuns:
    """Runs of one base update: ``method`` is ``"fixed ..."`` (the best one), scalar or 2 blocks.

    Attributes:
        published: the row's name in the published curves.
        fixed: the method's name of the best fixed step size.
        runs: from `clmeta.analysis.load_runs`.
    """

    published: str
    fixed: str
    runs: pd.DataFrame

    @property
    def adaptive(self) -> pd.DataFrame:
        """The runs whose step sizes are learned; methods keep the colours of all."""
        return self.runs[self.runs["method"] != self.fixed]

    def variant(self, method: str) -> str:
        """The published name of a method's variant."""
        return VARIANTS.get(method, "fixed")


def figure_4(rows: Mapping[str, RowRuns], published: bool) -> Figure:
    """Cumulative accuracy, a panel a base update; dotted: the published means."""
    return _panels(rows, _accuracy, published)


def figure_7(rows: Mapping[str, RowRuns], published: bool) -> Figure:
    """Step sizes over the run, a panel a base update; dotted: the published means."""
    return _panels(rows, _step_sizes, published)


def figure_8(rows: Mapping[str, RowRuns], published: bool) -> Figure:
    """Step sizes round a task switch as fold change, a panel a base update."""
    return _panels(rows, _switches, published)


def results_table(rows: Mapping[str, RowRuns]) -> pd.DataFrame:
    """One row a method: accuracy, paired gain over the best fixed step size, response to switches.

    Accuracies in percent with 95 % intervals over seeds. ``rise`` (peak over the step size at the
    switch), ``steps_to_peak`` and ``end_over_start`` are per block, written ``block value``, means
    over switches and then seeds (geometric for ratios) with their intervals.
    """
    parts = []
    for name, row in rows.items():
        table = summary_table(row.runs, baseline=row.fixed)
        order = [row.fixed, *(m for m in VARIANTS if m in table.index)]
        table = table.loc[order].reset_index()
        table.insert(0, "base", name)
        scale = ["accuracy", "low", "high", "gain", "gain_low", "gain_high"]
        table[scale] *= 100
        for column, shown in _responses(row).items():
            table[column] = [shown.get(method, "") for method in table["method"]]
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def to_markdown(table: pd.DataFrame) -> str:
    """`results_table` for reading."""
    lines = [
        "| base | step sizes | seeds | accuracy % (95 % interval) | gain over best fixed | "
        "rise after a switch | steps to its peak | end / start |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        accuracy = f"{row['accuracy']:.2f}" + _interval(row["low"], row["high"])
        gain = ""
        if not np.isnan(row["gain"]):
            gain = f"{row['gain']:+.2f}" + _interval(row["gain_low"], row["gain_high"], "+")
        facts = (row["rise"], row["steps_to_peak"], row["end_over_start"])
        cells = (row["base"], row["method"], row["seeds"], accuracy, gain, *facts)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _interval(low: float, high: float, sign: str = "") -> str:
    return "" if np.isnan(low) else f" ({low:{sign}.2f} to {high:{sign}.2f})"


def _responses(row: RowRuns) -> dict[str, dict[str, str]]:
    """Column to method to text."""
    keys = ["method", "block", "seed", "run"]
    ends = end_over_start(row.adaptive).rename(columns={"ratio": "end_over_start"})
    shown = {"end_over_start": _per_block(ends, "end_over_start", True, "{:.3g}")}
    if row.runs["task"].nunique() < 2:
        return {"rise": {}, "steps_to_peak": {}, **shown}
    response = switch_response(row.adaptive)
    response["rise"] = np.log(response["rise"])
    per_run = response.groupby(keys, observed=True)[["rise", "steps_to_peak"]].mean().reset_index()
    per_run["rise"] = np.exp(per_run["rise"])
    return {
        "rise": _per_block(per_run, "rise", True, "{:.2f}"),
        "steps_to_peak": _per_block(per_run, "steps_to_peak", False, "{:.0f}"),
        **shown,
    }


def _per_block(frame: pd.DataFrame, value: str, geometric: bool, form: str) -> dict[str, str]:
    means = mean_over_seeds(frame, value, ["method", "block"], geometric=geometric)
    shown: dict[str, list[tuple[str, str]]] = {}
    for row in means.to_dict("records"):
        text = form.format(row["mean"])
        if not np.isnan(row["low"]):
            text += f" ({form.format(row['low'])} to {form.format(row['high'])})"
        shown.setdefault(str(row["method"]), []).append((f"{row['block']} ", text))
    return {
        method: "; ".join(text if len(pairs) == 1 else block + text for block, text in pairs)
        for method, pairs in shown.items()
    }


def _panels(
    rows: Mapping[str, RowRuns], draw: Callable[[RowRuns, Axes, bool], None], published: bool
) -> Figure:
    across = min(len(rows), 2)
    down = -(-len(rows) // across)
    size = (style.COLUMN_WIDTH * across, (style.HEIGHT + 0.4) * down)
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    # All panels first: a legend takes the whole figure's width if its axes stand alone.
    panels = [style.dress(figure.add_subplot(down, across, k + 1)) for k in range(len(rows))]
    for axes, (name, row) in zip(panels, rows.items(), strict=True):
        draw(row, axes, published)
        axes.annotate(
            name, (0.01, 0.02), xycoords="axes fraction", fontsize=style.SMALL_FONT, va="bottom"
        )
    return figure


def _accuracy(row: RowRuns, axes: Axes, published: bool) -> None:
    plot_cumulative_accuracy(row.runs, axes)
    if published:
        for line in list(axes.get_lines()):
            method = str(line.get_label())
            if method in row.runs["method"].cat.categories:
                curve = published_curves(row.published, row.variant(method))
                _dotted(axes, curve["step"], curve["value"] / 100, line.get_color())


def _step_sizes(row: RowRuns, axes: Axes, published: bool) -> None:
    plot_trajectories(row.adaptive, axes)
    if published:
        for method in (SCALAR, BLOCKS):
            for quantity in QUANTITIES.values():
                curve = published_curves(row.published, row.variant(method), quantity)
                _dotted(axes, curve["step"], curve["value"], "0.4")


def _switches(row: RowRuns, axes: Axes, published: bool) -> None:
    plot_switches(row.adaptive, axes)


def _dotted(axes: Axes, x: pd.Series, y: pd.Series, color: Any) -> None:
    if len(x):
        axes.plot(x, y, color=color, linestyle=":", linewidth=0.8, label="_published")
