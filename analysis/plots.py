"""Figures of step sizes and accuracies; each takes runs and ``ax=None`` and returns the axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from clmeta.analysis import style
from clmeta.analysis.accuracy import accuracy_per_task
from clmeta.analysis.load import block_names, melt_alphas
from clmeta.analysis.statistics import mean_over_seeds
from clmeta.analysis.switches import average_windows, boundary_windows
from clmeta.errors import BadArgument
from clmeta.lookup import Wanted, takes
from clmeta.registry import Registry


class Plot(Protocol):
    """A registered plot."""

    def __call__(self, runs: pd.DataFrame, ax: Axes | None = None) -> Axes:
        """Draw ``runs`` on ``ax`` or on axes of its own; returns the axes."""


def _own_axes(draw: Callable[..., Axes]) -> Callable[..., Axes]:
    """A function of runs and axes that makes axes of its own where none are given."""

    @functools.wraps(draw)
    def drawn(runs: pd.DataFrame, ax: Axes | None = None, **options: Any) -> Axes:
        return draw(runs, style.new_axes() if ax is None else ax, **options)

    return drawn


PLOTS: Registry[Plot] = Registry(
    "plot", Wanted("a function that draws: (runs, ax), returning the axes", takes(2), _own_axes)
)


class NothingToPlot(BadArgument):
    """The runs have nothing that this plot shows, e.g. no task switch."""


def plot(name: str) -> Callable[[Callable[..., Axes]], Callable[..., Axes]]:
    """Register a function ``(runs, ax, **options) -> axes``, which then may leave ``ax`` out."""

    def enter(draw: Callable[..., Axes]) -> Callable[..., Axes]:
        return PLOTS.register(name)(_own_axes(draw))

    return enter


@plot("trajectories")
def plot_trajectories(
    runs: pd.DataFrame, ax: Axes, *, blocks: Iterable[str] | None = None, level: float = 0.95
) -> Axes:
    """Step sizes over time: a line a block, geometric mean and band over seeds, log axis."""
    long = melt_alphas(runs, blocks)
    if long.empty:
        raise NothingToPlot("runs: no step sizes; load some blocks")
    curves = mean_over_seeds(
        long, "alpha", ["method", "block", "step"], level=level, geometric=True
    )
    style.mark_boundaries(ax, switch_steps(runs))
    _draw_blocks(ax, curves, "step")
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel(r"step size $\alpha$")
    _step_axis(ax, runs["step"].max())
    style.add_legend(ax)
    return ax


@plot("switches")
def plot_switches(
    runs: pd.DataFrame,
    ax: Axes,
    *,
    before: int | None = None,
    after: int | None = None,
    level: float = 0.95,
) -> Axes:
    """Step sizes round a switch: fold change since it, mean over switches, band over seeds.

    ``before`` is by default a tenth of the shortest task; ``after`` reaches to the next switch.
    """
    if runs["task"].nunique() < 2:
        raise NothingToPlot("runs: no task switch; load runs of at least two tasks")
    if not block_names(runs):
        raise NothingToPlot("runs: no step sizes; load some blocks")
    lengths = runs.groupby(["run", "task"], observed=True)["steps"].sum()
    reach = int(lengths.min()) // 10 if before is None else before
    curves = average_windows(boundary_windows(runs, reach, after), level=level)
    ax.axvline(0, color="0.6", linewidth=0.5, zorder=0)
    ax.axhline(1, color="0.8", linewidth=0.5, zorder=0)
    _draw_blocks(ax, curves, "offset")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(style.number_format())
    ax.yaxis.set_minor_formatter(FuncFormatter(_two_and_five))
    low, high = ax.get_ylim()
    if high < 5 * low:  # too little for ticks at powers of ten
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("steps since the switch")
    ax.set_ylabel(r"$\alpha\;/\;\alpha$ at the switch")
    _step_axis(ax, curves["offset"].max(), curves["offset"].min())
    style.add_legend(ax)
    return ax


@plot("cumulative_accuracy")
def plot_cumulative_accuracy(
    runs: pd.DataFrame, ax: Axes, *, skip: int | None = None, level: float = 0.95
) -> Axes:
    """Online accuracy averaged over all past steps, mean and band over seeds.

    The first ``skip`` steps are left out, by default one in a hundred: averages of a few
    predictions jump, and would set the scale.
    """
    if "cumulative_accuracy" not in runs:
        raise NothingToPlot("runs: load the column 'cumulative_accuracy'")
    last = int(runs["step"].max())
    shown = runs[runs["step"] >= (last // 100 if skip is None else skip)]
    curves = mean_over_seeds(shown, "cumulative_accuracy", ["method", "step"], level=level)
    style.mark_boundaries(ax, switch_steps(runs))
    looks = _looks(curves["method"])
    for method, curve in curves.groupby("method", observed=True):
        color, line = looks[method]
        _draw(ax, curve, "step", color, line, str(method))
    _share_axis(ax)
    ax.set_xlabel("step")
    ax.set_ylabel("cumulative accuracy (%)")
    _step_axis(ax, last)
    style.add_legend(ax)
    return ax


@plot("online_accuracy_per_task")
def plot_accuracy_per_task(
    runs: pd.DataFrame, ax: Axes, *, measure: str = "online_accuracy", level: float = 0.95
) -> Axes:
    """Online accuracy within each task, mean and interval over seeds."""
    table = accuracy_per_task(runs)
    if table[measure].isna().all():
        raise NothingToPlot(f"runs: {measure} was not measured")
    means = mean_over_seeds(table, measure, ["method", "task"], level=level)
    looks = _looks(means["method"])
    few = means["task"].nunique() <= 30
    for index, (method, curve) in enumerate(means.groupby("method", observed=True)):
        color, line = looks[method]
        if not few:
            _draw(ax, curve.assign(task=curve["task"] + 1), "task", color, line, str(method))
            continue
        shift = 0.12 * (index - (len(looks) - 1) / 2)
        bars = np.nan_to_num((curve["high"] - curve["mean"]).to_numpy())
        ax.errorbar(
            curve["task"] + 1 + shift,
            curve["mean"],
            yerr=bars if bars.any() else None,
            color=color,
            linestyle=line,
            linewidth=0.8,
            marker=style.MARKERS[index % len(style.MARKERS)],
            markersize=3,
            capsize=1.5,
            elinewidth=0.7,
            label=str(method),
        )
    _share_axis(ax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel("task")
    name = "online accuracy" if measure == "online_accuracy" else "test accuracy"
    ax.set_ylabel(f"{name} (%)")
    style.add_legend(ax)
    return ax


@plot("test_accuracy_per_task")
def plot_test_accuracy_per_task(runs: pd.DataFrame, ax: Axes, *, level: float = 0.95) -> Axes:
    """Test accuracy on each task at its end, mean and interval over seeds."""
    return plot_accuracy_per_task(runs, ax, measure="test_accuracy", level=level)


def switch_steps(runs: pd.DataFrame) -> list[int]:
    """Steps at which tasks begin, the first excluded, in the run with most tasks."""
    starts = runs.groupby(["run", "task"], observed=True)["step"].min()
    most = starts.groupby("run", observed=True).size().idxmax()
    return sorted(int(step) for step in starts.xs(most, level="run"))[1:]


def _looks(groups: pd.Series) -> dict[Hashable, tuple[str, Any]]:
    """Colour and line style of each method, by its place among all methods loaded."""
    names = list(groups.cat.categories) if hasattr(groups, "cat") else sorted(groups.unique())
    colors, lines = style.COLORS, style.LINES
    looks = {n: (colors[i % len(colors)], lines[i % len(lines)]) for i, n in enumerate(names)}
    present = set(groups.unique())
    return {name: look for name, look in looks.items() if name in present}


def _draw_blocks(ax: Axes, curves: pd.DataFrame, x: str) -> None:
    """One line for each method and block: of one method a colour a block, of several a colour a
    method and a line style a block."""
    methods = _looks(curves["method"])
    lines = curves.groupby(["method", "block"], observed=True).ngroups
    for method, of_method in curves.groupby("method", observed=True):
        blocks = list(dict.fromkeys(of_method["block"]))
        colors = _block_colors(len(blocks))
        named = _named(len(blocks), len(methods), lines)
        for index, block in enumerate(blocks):
            color, line = methods[method]
            if len(blocks) > 1:
                line = style.LINES[index % len(style.LINES)]
            if len(methods) == 1:
                color, label = colors[index], str(block)
            else:
                single = len(blocks) == 1 or lines > style.MOST_NAMED
                label = str(method) if single else f"{method}: {block}"
            curve = of_method[of_method["block"] == block]
            _draw(ax, curve, x, color, line, label if index in named else "_hidden")


def _block_colors(count: int) -> list[Any]:
    """The palette's colours, or for more blocks a scale from first to last."""
    if count <= len(style.COLORS):
        return list(style.COLORS[:count])
    return list(colormaps["viridis"](np.linspace(0, 0.92, count)))


def _named(blocks: int, methods: int, lines: int) -> set[int]:
    """Which of a method's blocks the legend names, so that it stays readable."""
    if lines <= style.MOST_NAMED:
        return set(range(blocks))
    if methods > 1:
        return {0}
    return set(np.linspace(0, blocks - 1, style.MOST_NAMED - 2).round().astype(int).tolist())


def _draw(ax: Axes, curve: pd.DataFrame, x: str, color: Any, line: Any, label: str) -> None:
    kept = curve.iloc[style.thin(curve["mean"].to_numpy())]
    ax.plot(kept[x], kept["mean"], color=color, linestyle=line, linewidth=1.0, label=label)
    if kept["low"].notna().any():
        ax.fill_between(
            kept[x], kept["low"], kept["high"], color=color, alpha=0.18, linewidth=0, zorder=1
        )


def _step_axis(ax: Axes, last: float, first: float = 0) -> None:
    ax.set_xlim(first, max(last, first + 1))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(style.step_format(last))


def _share_axis(ax: Axes) -> None:
    """Percent; intervals of few seeds may reach beyond what is possible, the axis does not."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, 0.0), min(high, 1.0))
    ax.yaxis.set_major_formatter(style.number_format(0.01))


def _two_and_five(value: float, _: float | None = None) -> str:
    """Between powers of ten label 2 and 5; on a log axis the others would crowd."""
    digit = value / 10 ** np.floor(np.log10(value))
    return f"{value:g}" if round(float(digit), 6) in (2, 5) else ""
