"""How figures look: one paper column wide, colours that everyone can tell apart, type of 7 pt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import blended_transform_factory

#: Okabe and Ito's palette, without the yellow that vanishes on white paper.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
#: Line styles tell lines apart in print without colour.
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (7, 1.5, 1, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

COLUMN_WIDTH = 3.25  # inches
HEIGHT = 2.3
LEGEND_ROW = 0.13
FONT = 8.0  # points
SMALL_FONT = 7.0
#: Of more lines than this only some are named in the legend.
MOST_NAMED = 8


def new_axes(width: float = COLUMN_WIDTH, height: float = HEIGHT) -> Axes:
    """Axes of a new figure that belongs to no window and to no global state."""
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return dress(figure.add_subplot())


def dress(axes: Axes) -> Axes:
    """Give axes the fonts and spines of all figures here; returns them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=SMALL_FONT)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_fontsize(FONT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_fontsize(SMALL_FONT)
    return axes


def add_legend(axes: Axes) -> None:
    """Legend above the axes, where it hides no line, in as many columns as fit; none for one line.

    In a figure of its own the legend may use the figure's whole width.
    """
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    figure = axes.figure
    alone = len(figure.axes) == 1
    across = figure.transFigure if alone else axes.transAxes
    room = (figure if alone else axes).bbox.width
    for columns in (4, 3, 2, 1):
        legend = axes.legend(
            handles,
            labels,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            bbox_transform=blended_transform_factory(across, axes.transAxes),
            borderaxespad=0.2,
            ncols=columns,
            fontsize=SMALL_FONT,
            frameon=False,
            handlelength=2.4,
            columnspacing=1.0,
            labelspacing=0.25,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)  # labels are names, whatever signs are in them
        if legend.get_window_extent().width <= room:
            break
    if isinstance(figure, Figure) and tuple(figure.get_size_inches()) == (COLUMN_WIDTH, HEIGHT):
        rows = math.ceil(len(labels) / columns)
        figure.set_figheight(HEIGHT + LEGEND_ROW * (rows - 1))  # the axes keep their size


def number_format(unit: float = 1.0, suffix: str = "") -> FuncFormatter:
    """Tick labels as multiples of ``unit``, without trailing zeros: 0.45 -> "45" for unit 0.01."""

    def text(value: float, _: float | None = None) -> str:
        shown = f"{value / unit:.6g}".replace("-", "\N{MINUS SIGN}")
        return shown if value == 0 else shown + suffix

    return FuncFormatter(text)


def step_format(last: float) -> FuncFormatter:
    """Tick labels of a step axis that ends at ``last``: 2000, 20k, 2M."""
    if last >= 1_000_000:
        return number_format(1e6, "M")
    return number_format(1e3, "k") if last >= 10_000 else number_format()


def mark_boundaries(axes: Axes, steps: Iterable[float], most: int = 60) -> None:
    """Thin grey lines at task switches; none if they would cover the plot."""
    steps = list(steps)
    if len(steps) <= most:
        for step in steps:
            axes.axvline(step, color="0.8", linewidth=0.5, zorder=0)


def thin(values: np.ndarray, points: int = 2000) -> np.ndarray:
    """Indices of at most about ``points`` values that draw the same line: no peak is lost.

    The line is cut into runs of neighbours; of each its lowest and its highest value are kept, and
    the line's ends.
    """
    values = np.asarray(values)
    if len(values) <= points:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), max(points // 2, 1) + 1).astype(int)
    kept = {0, len(values) - 1}
    for start, end in itertools.pairwise(edges):
        piece = values[start:end]
        if np.isnan(piece).all():
            kept.add(int(start))
        else:
            kept.update((start + int(np.nanargmin(piece)), start + int(np.nanargmax(piece))))
    return np.array(sorted(kept))
