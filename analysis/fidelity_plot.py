"""Figures of a fidelity study; each takes scores and ``ax=None`` and returns the axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from clmeta.analysis import style
from clmeta.errors import require
from clmeta.ground.checks import one_of

MEASURES = {
    "cosine": ("cosine", 1.0),
    "sign": ("equal signs", 1.0),
    "bias": ("bias", 0.0),
}
AXES = {"start": "step", "eta": r"meta step size $\eta$", "gamma": r"discount $\gamma$"}


def plot_fidelity(
    scores: pd.DataFrame,
    ax: Axes | None = None,
    *,
    measure: str = "cosine",
    x: str = "start",
    block: str = "all",
    switches: Iterable[float] = (),
    modes: Iterable[str] | None = None,
) -> Axes:
    """One measure of every mode, over time, eta or gamma: a line a mode.

    Over eta and gamma a point is the median over the windows of the run: a mode that is far off in
    a few windows does not hide what it does in the others. Values of gamma are spaced evenly.

    Args:
        scores: of `Fidelity.scores` or `fidelity_grid`.
        ax: axes; new ones if None.
        measure: ``"cosine"``, ``"sign"`` or ``"bias"``; bias is shown from -1.5 to 1.5, beyond
            which it lies on the edge.
        x: ``"start"``, ``"eta"`` or ``"gamma"``.
        block: an entry of beta, or ``"all"``.
        switches: steps at which tasks begin.
        modes: the modes that have a look of their own, in order, so that several axes agree; those
            without scores are left out. None: those with scores.

    Raises:
        BadArgument: for an unknown measure, x or block.
    """
    one_of("measure", measure, tuple(MEASURES))
    require(
        x in AXES and x in scores, "x", x, f"one of {', '.join(k for k in AXES if k in scores)}"
    )
    blocks = list(dict.fromkeys(scores["block"]))
    require(block in blocks, "block", block, f"one of {', '.join(blocks)}")
    ax = style.new_axes() if ax is None else ax
    style.mark_boundaries(ax, switches)
    label, true = MEASURES[measure]
    ax.axhline(true, color="0.6", linewidth=0.5, zorder=0)
    table = scores[scores["block"] == block].groupby(["mode", x], sort=False)[measure].median()
    places = sorted(scores[x].unique())
    at = {value: index if x == "gamma" else value for index, value in enumerate(places)}
    there = list(dict.fromkeys(scores["mode"]))
    for index, mode in enumerate(there if modes is None else modes):
        if mode not in there:
            continue
        values = table[mode].sort_index()
        if measure == "bias":
            values = values.clip(-1.5, 1.5)
        ax.plot(
            [at[value] for value in values.index],
            values,
            color=style.COLORS[index % len(style.COLORS)],
            linestyle=style.LINES[index % len(style.LINES)],
            linewidth=1.0,
            marker=None if x == "start" else style.MARKERS[index % len(style.MARKERS)],
            markersize=3,
            label=mode,
        )
    if measure == "bias":
        ax.set_ylim(-1.6, 1.6)
    if x == "eta":
        ax.set_xscale("log")
    elif x == "gamma":
        ax.set_xticks(range(len(places)), [f"{value:g}" for value in places])
        ax.margins(x=0.1)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.xaxis.set_major_formatter(style.step_format(max(places)))
    ax.set_xlabel(AXES[x])
    ax.set_ylabel(label)
    if len(ax.figure.axes) == 1:
        style.add_legend(ax)
    return ax


def plot_fidelity_panels(
    studies: Mapping[str, Mapping[str, pd.DataFrame]], switches: Iterable[float] = ()
) -> Figure:
    """A column a study: cosine and bias over time, cosine over eta, cosine over gamma.

    Args:
        studies: title to ``{"time": scores, "eta": scores, "gamma": scores}``; the first
            study's modes over time are in the legend.
        switches: steps at which tasks begin.
    """
    rows = [("cosine", "start", "time"), ("bias", "start", "time"), ("cosine", "eta", "eta")]
    rows.append(("cosine", "gamma", "gamma"))
    switches = list(switches)
    modes = list(dict.fromkeys(next(iter(studies.values()))["time"]["mode"]))
    width = style.COLUMN_WIDTH * max(len(studies), 1)
    figure = Figure(figsize=(width, 1.75 * len(rows) + 0.4), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(studies), squeeze=False, sharey="row")
    for column, (title, parts) in enumerate(studies.items()):
        for row, (measure, x, part) in enumerate(rows):
            ax = grid[row, column]
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(which="both", labelsize=style.SMALL_FONT)
            marks = switches if x == "start" else ()
            plot_fidelity(parts[part], ax, measure=measure, x=x, switches=marks, modes=modes)
            for text in (ax.xaxis.label, ax.yaxis.label):
                text.set_fontsize(style.FONT)
            ax.yaxis.label.set_visible(column == 0)
            if x == "eta":
                ax.xaxis.set_minor_locator(NullLocator())
        grid[0, column].set_title(title, fontsize=style.FONT)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(math.ceil(len(labels) / 2), 4),
        fontsize=style.SMALL_FONT,
        frameon=False,
        handlelength=2.6,
    )
    return figure
