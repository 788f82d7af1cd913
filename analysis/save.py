"""All registered plots of a set of runs as files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clmeta.analysis.plots import PLOTS, NothingToPlot
from clmeta.errors import RunFolderError, bad, require
from clmeta.ground.checks import texts
from clmeta.ground.reading import as_path
from clmeta.lookup import describe, failing_as, short_names
from clmeta.record.files import write_atomically

FORMATS = ("png", "pdf", "svg")


def save_plots(
    runs: pd.DataFrame,
    folder: str | os.PathLike[str],
    formats: Iterable[str] = ("png", "pdf"),
    names: Iterable[str] | None = None,
) -> list[Path]:
    """Draw every registered plot and save it as ``folder/NAME.FORMAT``; returns the paths.

    Plots that the runs have nothing for, e.g. switches of a stationary stream, are left out.

    Args:
        runs: from `clmeta.analysis.load_runs`.
        folder: made if missing.
        formats: of png, pdf and svg.
        names: the plots wanted, by name or ``package.module:function``; None: all.

    Raises:
        BadArgument: for an unknown plot or format.
        RunFolderError: if the folder cannot be written.
    """
    formats = texts("formats", formats)
    for wanted in formats:
        if wanted not in FORMATS:
            bad("formats", wanted, f"unknown format; known: {', '.join(FORMATS)}")
    labels = short_names(PLOTS if names is None else texts("names", names))
    plots = {label: PLOTS.get(name, "names") for name, label in labels.items()}
    folder = as_path("folder", folder)
    paths = []
    for name, draw in plots.items():
        try:
            with failing_as("plot", name):
                axes = draw(runs)
        except NothingToPlot:
            continue
        require(isinstance(axes, Axes), "plot", name, f"gave {describe(axes)}; return the axes")
        for extension in formats:
            paths.append(save_figure(cast(Figure, axes.figure), folder / f"{name}.{extension}"))
    return paths


def save_figure(figure: Figure, path: Path) -> Path:
    """Save a figure for print, in the format of the path's ending, whole; returns the path.

    Raises:
        RunFolderError: if the folder cannot be written.
    """
    path = as_path("path", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(
            f"cannot write {path}: {reason}; choose a folder that can be written"
        ) from error
    # Type 42: fonts that journals accept and that stay text in an editor.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
        extension = path.suffix.removeprefix(".")
        write_atomically(path, lambda file: figure.savefig(file, dpi=300, format=extension))
    return path
