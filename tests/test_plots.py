"""Each registered plot draws what the numbers say, legibly, and touches no global state."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from clmeta.analysis import (
    PLOTS,
    NothingToPlot,
    accuracy_per_task,
    plot,
    plot_accuracy_per_task,
    plot_cumulative_accuracy,
    plot_switches,
    plot_trajectories,
    save_plots,
)
from clmeta.analysis.style import COLORS, thin
from clmeta.errors import BadArgument, RunFolderError


def make_runs(
    methods: dict[str, list[str]], seeds: int = 3, tasks: int = 3, length: int = 50
) -> pd.DataFrame:
    """Runs as `load_runs` gives them; step sizes leap at each switch and decay."""
    steps = tasks * length
    draw = np.random.default_rng(0)
    names = [f"{method}-{seed}" for method in methods for seed in range(seeds)]
    frames = []
    for method, blocks in methods.items():
        for seed in range(seeds):
            right = draw.random(steps) < 0.5
            table = {
                "method": pd.Categorical([method] * steps, categories=list(methods)),
                "seed": seed,
                "run": pd.Categorical([f"{method}-{seed}"] * steps, categories=names),
                "step": np.arange(steps),
                "task": np.arange(steps) // length,
                "steps": 1,
                "correct": right.astype(float),
                "cumulative_accuracy": np.cumsum(right) / np.arange(1, steps + 1),
                "test_accuracy": np.where(np.arange(steps) % length == length - 1, 0.5, np.nan),
            }
            for block in blocks:
                noise = np.exp(draw.normal(0, 0.05, steps))
                table[f"alpha.{block}"] = 1e-3 * noise / (1 + np.arange(steps) % length)
            frames.append(pd.DataFrame(table))
    return pd.concat(frames, ignore_index=True)


TWO = {"fixed": ["all"], "adaptive": ["body", "head"]}


@pytest.mark.parametrize("name", PLOTS.names())
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_plot_takes_runs_and_returns_axes_of_its_own_or_those_given(name, seeds) -> None:
    runs = make_runs(TWO, seeds)
    before = dict(matplotlib.rcParams)
    own = PLOTS.get(name)(runs)
    given_axes = Figure().add_subplot()
    assert PLOTS.get(name)(runs, ax=given_axes) is given_axes
    assert PLOTS.get(name)(runs, given_axes) is given_axes
    assert own.get_xlabel() and own.get_ylabel()
    own.figure.savefig("/dev/null", format="png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", PLOTS.names())
def test_a_figure_fits_a_paper_column_and_its_type_is_legible(name) -> None:
    axes = PLOTS.get(name)(make_runs(TWO))
    figure = axes.figure
    figure.draw_without_rendering()
    assert figure.get_figwidth() == 3.25
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.get_legend().get_texts()]
    texts += [axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels(minor=True)]
    assert min(text.get_fontsize() for text in texts if text.get_text()) >= 7
    box = figure.get_tightbbox()
    assert box.x0 >= -0.01 and box.x1 <= 3.25 + 0.01


def test_a_trajectory_is_one_line_a_block_with_a_band_and_boundaries_on_a_log_axis() -> None:
    runs = make_runs(TWO)
    axes = plot_trajectories(runs)
    lines = {line.get_label(): line for line in axes.get_lines() if line.get_label()[0] != "_"}
    assert set(lines) == {"fixed", "adaptive: body", "adaptive: head"}
    head = runs[runs["method"] == "adaptive"].groupby("step")["alpha.head"]
    expected = np.exp(head.agg(lambda alpha: np.log(alpha).mean()))
    np.testing.assert_allclose(lines["adaptive: head"].get_ydata(), expected)
    assert axes.get_yscale() == "log"
    assert len(axes.collections) == 3
    verticals = [line for line in axes.get_lines() if len(set(line.get_xdata())) == 1]
    assert sorted(line.get_xdata()[0] for line in verticals) == [50, 100]


def test_lines_differ_without_colour_too() -> None:
    axes = plot_trajectories(make_runs({"one": ["a", "b", "c", "d", "e"]}))
    named = [line for line in axes.get_lines() if line.get_label()[0] != "_"]
    assert len({line.get_color() for line in named}) == 5
    assert len({str(line._dash_pattern) for line in named}) == 5


@pytest.mark.parametrize("red", [0.11238, 0.29275])
def test_no_two_colours_look_alike_without_red_or_without_green_cones(red: float) -> None:
    # Viénot, Brettel & Mollon (1999): red and green light are seen as one mixture of both.
    seen = []
    for color in COLORS:
        r, g, b = np.array(to_rgb(color)) ** 2.2
        seen.append(np.array([red * r + (1 - red) * g, b]) ** (1 / 2.2))
    for i, one in enumerate(seen):
        assert all(np.abs(one - other).max() > 0.1 for other in seen[:i])


def test_many_blocks_keep_a_readable_legend() -> None:
    axes = plot_trajectories(make_runs({"one": [f"tensor{i}" for i in range(40)]}, seeds=1))
    assert len(axes.get_legend().get_texts()) <= 8
    assert len([line for line in axes.get_lines() if len(line.get_xdata()) > 2]) == 40


def test_switches_start_from_one() -> None:
    axes = plot_switches(make_runs(TWO), before=10, after=20)
    for line in axes.get_lines():
        if line.get_label()[0] != "_":
            assert line.get_ydata()[line.get_xdata() == 0].tolist() == pytest.approx([1.0])
            assert (line.get_xdata().min(), line.get_xdata().max()) == (-10, 20)


def test_cumulative_accuracy_ends_at_the_mean_of_the_runs() -> None:
    runs = make_runs({"one": ["a"]})
    line = next(line for line in plot_cumulative_accuracy(runs).get_lines()[::-1])
    final = runs[runs["step"] == runs["step"].max()]["cumulative_accuracy"]
    assert line.get_ydata()[-1] == pytest.approx(final.mean())


def test_accuracy_per_task_shows_the_means_per_task() -> None:
    runs = make_runs({"one": ["a"]})
    axes = plot_accuracy_per_task(runs)
    expected = accuracy_per_task(runs).groupby("task")["online_accuracy"].mean()
    np.testing.assert_allclose(axes.containers[0].lines[0].get_ydata(orig=False), expected)


def test_an_accuracy_axis_shows_what_is_possible_although_intervals_reach_beyond() -> None:
    runs = make_runs({"one": ["a"]}, seeds=2)
    runs["cumulative_accuracy"] = np.where(runs["seed"] == 0, 0.1, 0.95)
    low, high = plot_cumulative_accuracy(runs).get_ylim()
    assert 0 <= low < high <= 1


def test_all_plots_are_saved_in_all_formats(tmp_path: Path) -> None:
    paths = save_plots(make_runs(TWO), tmp_path / "figures")
    assert len(paths) == 2 * len(PLOTS.names())
    for path in paths:
        start = b"\x89PNG" if path.suffix == ".png" else b"%PDF"
        assert path.read_bytes().startswith(start)


def test_what_the_runs_do_not_have_is_left_out(tmp_path: Path) -> None:
    runs = make_runs({"one": ["a"]}, tasks=1).assign(test_accuracy=np.nan)
    names = {path.stem for path in save_plots(runs, tmp_path, ["png"])}
    assert names == set(PLOTS.names()) - {"switches", "test_accuracy_per_task"}
    with pytest.raises(NothingToPlot, match="no task switch"):
        plot_switches(runs)


def test_a_new_plot_is_one_decorated_definition(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(PLOTS, "_entries", dict(PLOTS._entries))

    @plot("losses")
    def plot_losses(runs: pd.DataFrame, ax):
        """Nothing but a point."""
        ax.plot([1], [1])
        return ax

    assert (tmp_path / "losses.png") in save_plots(make_runs(TWO, 1), tmp_path, ["png"], ["losses"])


def test_what_cannot_be_saved_is_one_clear_error(tmp_path: Path) -> None:
    runs = make_runs({"one": ["a"]}, seeds=1)
    with pytest.raises(BadArgument, match="formats='bmp': unknown format; known: png, pdf, svg"):
        save_plots(runs, tmp_path, ["bmp"])
    with pytest.raises(BadArgument, match="names='trajectory': unknown plot; did you mean"):
        save_plots(runs, tmp_path, names=["trajectory"])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*choose a folder"):
        save_plots(runs, tmp_path / "file" / "figures")


@given(arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e3, 1e3)), st.integers(2, 60))
def test_thinning_a_line_hides_no_peak(values, points) -> None:
    kept = thin(values, points)
    assert len(kept) <= points + 3
    assert (np.diff(kept) > 0).all()
    assert {0, len(values) - 1} <= set(kept.tolist())
    assert values[kept].max() == values.max() and values[kept].min() == values.min()
