"""Experiments of the paper from one command: the runs, then table and figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmeta.cli.launch import Launch
from clmeta.ground.reading import as_path
from clmeta.lookup import Wanted, takes
from clmeta.record.files import write_atomically
from clmeta.record.runfolder import RunFolder
from clmeta.registry import Registry
from clmeta.runs.config import RunConfig
from clmeta.sweep.best import best
from clmeta.sweep.plan import sweep_runs
from clmeta.sweep.protocol import ROWS, figure_4
from clmeta.sweep.run import SweepResult

if TYPE_CHECKING:
    from clmeta.analysis.reproduction import RowRuns

EXPERIMENTS: Registry[Callable[..., Report | None]] = Registry(
    "experiment", Wanted("a function that makes a Report: (output, bases, seeds)", takes(3))
)
#: Points of a curve in the shortest task; peaks are found among them.
POINTS = 200


@dataclass(frozen=True)
class Report:
    """What an experiment left: its files, the table as text, and what to know before citing it."""

    files: list[Path]
    table: str
    warnings: list[str]


@EXPERIMENTS.register("figure-4")
def reproduce_figure_4(
    output: str | os.PathLike[str],
    bases: Sequence[str] = tuple(ROWS),
    seeds: Sequence[int] = range(5),
    *,
    processes: int | None = None,
    dry: bool = False,
    **options: Any,
) -> Report | None:
    """Non-stationary CIFAR100 (Sec. 7.2): fixed step sizes, scalar and two blocks; Figs. 4, 7, 8.

    Runs that are finished in ``output`` are kept, so a stopped reproduction goes on where it was.

    Args:
        output: folder that gets ``runs/``, ``table.md``, ``table.csv`` and the figures.
        bases: names in `clmeta.sweep.protocol.ROWS`.
        seeds: at least two for intervals; the paper has five.
        processes: at a time; None: one for each core.
        dry: only check and list the runs; there is no report then.
        options: further keywords of `clmeta.sweep.protocol.figure_4`.

    Raises:
        BadArgument, RunFolderError, RunsFailed: as sweeps do.
    """
    configs = figure_4(bases, seeds, **options).configs()
    folder = as_path("output", output)
    runs = sweep_runs(folder / "runs", configs)
    result = Launch(runs, folder / "runs", processes=processes).do(dry=dry)
    return None if dry else report(folder, bases, result, published=_as_published(configs[0]))


def _as_published(config: RunConfig) -> bool:
    """Whether the published curves are of this experiment: CIFAR100, all of ten tasks of ten."""
    options = config.stream_options
    length = (options.get("tasks"), options.get("classes_per_task"), options.get("steps_per_task"))
    return Path(config.dataset).stem == "cifar100" and length == (10, 10, None)


def report(folder: Path, bases: Sequence[str], result: SweepResult, *, published: bool) -> Report:
    """Table and figures of finished runs."""
    from clmeta.analysis import reproduction
    from clmeta.analysis.save import save_figure

    rows: dict[str, RowRuns] = {}
    warnings: list[str] = []
    for base in bases:
        rows[base], notes = _row(base, result)
        warnings += notes
    table = reproduction.results_table(rows)
    text = reproduction.to_markdown(table)
    files = [folder / "table.md", folder / "table.csv"]
    write_atomically(files[0], lambda file: file.write(text.encode()))
    write_atomically(files[1], lambda file: table.to_csv(file, index=False))
    several = any(run.config.stream_options.get("tasks", 2) > 1 for run in result.runs)
    figures = {"figure-4": reproduction.figure_4, "figure-7": reproduction.figure_7}
    if several:
        figures["figure-8"] = reproduction.figure_8
    for name, draw in figures.items():
        figure = draw(rows, published)
        files += [save_figure(figure, folder / f"{name}.{end}") for end in ("png", "pdf")]
    return Report(files, text, warnings)


def _row(base: str, result: SweepResult) -> tuple[RowRuns, list[str]]:
    """The best fixed step size of a base update, and the adaptive runs beside it."""
    from clmeta.analysis.load import load_runs
    from clmeta.analysis.reproduction import BLOCKS, SCALAR, RowRuns

    mine = [run for run in result.runs if run.finished and run.config.base == base]
    fixed = [run for run in mine if run.config.meta == "none"]
    choice = best(*(run.folder for run in fixed))[0]
    chosen = [run for run in fixed if run.config.alpha0 == choice.value]
    names = {"scalar": SCALAR, "head": BLOCKS}
    label = f"fixed {choice.value:g}"
    parts = {label: chosen}
    for run in mine:
        if run.config.meta != "none":
            parts.setdefault(names[str(run.config.blocks)], []).append(run)
    folders = [run.folder for part in parts.values() for run in part]
    runs = load_runs(*folders, every=_every(folders[0]))
    method_of = {run.folder.name: label for label, part in parts.items() for run in part}
    runs["method"] = _relabel(runs["run"], method_of, list(parts))
    notes = [f"{base}, alpha0={choice.value:g}: {warning}" for warning in choice.warnings]
    return RowRuns(ROWS.get(base).published, label, runs), notes


def _every(folder: Path) -> int:
    """Steps between two points: 1 in short tasks, 25 in the paper's of 5,000."""
    import pandas as pd

    shortest = int(pd.read_parquet(RunFolder(folder).tasks_file)["steps"].min())
    return max(1, shortest // POINTS)


def _relabel(runs: Any, method_of: dict[str, str], order: list[str]) -> Any:
    import pandas as pd

    names = {run: method_of[Path(str(run)).name] for run in runs.cat.categories}
    return pd.Categorical(runs.astype(str).map(names), categories=order)
