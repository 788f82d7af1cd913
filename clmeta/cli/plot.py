"""The command ``clmeta plot``."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

from clmeta.cli import options as o
from clmeta.cli.command import Argument, command
from clmeta.cli.console import print_paths, say
from clmeta.errors import RunFolderError
from clmeta.ground.reading import as_path
from clmeta.record.find import find_runs
from clmeta.record.runfolder import RunFolder
from clmeta.runs.imports import import_modules
from clmeta.runs.options import FLAG, NAMES, WHOLE

DRAW = "Drawing"
FORMATS = ("png", "pdf")


@command(
    "plot",
    [
        Argument("runs", "Run folders, folders of them, or globs.", many=True),
        o.own("output", "Folder for the figures.", "--output", "-o", panel=DRAW, default="figures"),
        o.own(
            "names",
            "Only this one; see clmeta list plots.",
            "--plot",
            "-p",
            kind=dataclasses.replace(NAMES, metavar="PLOT"),
            panel=DRAW,
            default_said="all",
        ),
        o.own(
            "formats",
            "png, pdf or svg.",
            "--format",
            "-f",
            kind=dataclasses.replace(NAMES, metavar="FORMAT"),
            panel=DRAW,
            default=FORMATS,
            default_said=" and ".join(FORMATS),
        ),
        o.own(
            "every",
            "Read one step in so many, for long runs.",
            kind=WHOLE,
            panel=DRAW,
            least=1,
            default=1,
        ),
        o.own(
            "unfinished",
            "Include what unfinished runs recorded.",
            kind=FLAG,
            panel=DRAW,
            default=False,
        ),
        o.changed(o.OVERWRITE, about="Replace figures that are there.", panel=DRAW),
        o.IMPORTS,
    ],
)
def plot(
    runs: Sequence[str],
    output: str,
    names: Sequence[str] | None,
    formats: Sequence[str],
    every: int,
    unfinished: bool,
    overwrite: bool,
    imports: Sequence[str],
) -> None:
    """Draw step sizes and accuracies of finished runs, averaged over seeds."""
    import_modules(imports)
    draw(
        runs,
        as_path("output", output),
        names,
        formats,
        every=every,
        unfinished=unfinished,
        overwrite=overwrite,
    )


def draw(
    runs: Sequence[str | Path],
    output: Path,
    names: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
    *,
    every: int = 1,
    unfinished: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Draw figures of run folders and print their paths.

    Args:
        runs: run folders, folders of them, or globs.
        output: folder for the figures.
        names: of the plots; all without.
        formats: of png, pdf and svg.
        every: read one step in so many.
        unfinished: include what unfinished runs recorded.
        overwrite: replace figures that are there.

    Raises:
        BadArgument: for an unknown plot or format.
        RunFolderError: if there is no run, figures are in the way, or the folder cannot be written.
    """
    if not unfinished and not any(RunFolder(path).finished for path in find_runs(*runs)):
        said = ", ".join(map(str, runs))
        raise RunFolderError(f"{said}: no run is finished; --unfinished draws what is there")
    from clmeta.analysis import PLOTS, load_runs, save_plots

    wanted = list(PLOTS if names is None else names)
    there = [path for n in wanted for f in formats if (path := output / f"{n}.{f}").exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise RunFolderError(
            f"{there[0]}{more}: there already; give --overwrite to replace, or another --output"
        )
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        frame = load_runs(*runs, every=every, unfinished="keep" if unfinished else "skip")
    for note in notes:
        say(f"Note: {note.message}.")
    paths = save_plots(frame, output, formats, names)
    print_paths("Figures", paths)
    return paths
