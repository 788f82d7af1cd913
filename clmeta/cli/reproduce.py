"""The command ``clmeta reproduce``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

BASES = "adamw,rmsprop,lion,sgdm"


class Experiment(str, Enum):
    """Experiments of the paper."""

    FIGURE_4 = "figure-4"


def reproduce(
    experiment: Annotated[Experiment, typer.Argument(help="Which of the paper's experiments.")],
    bases: Annotated[
        str, typer.Option(help="Base updates, each with its published meta update.")
    ] = BASES,
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0-4; the paper has five.")] = "0-4",
    dataset: Annotated[
        str, typer.Option(help="Data of CIFAR100's shape: a name, .npz file or image folder.")
    ] = "cifar100",
    data_root: Annotated[Path, typer.Option(help="Folder of named data sets.")] = Path("data"),
    download: Annotated[bool, typer.Option(help="Fetch a data set that is missing.")] = True,
    tasks: Annotated[int, typer.Option(help="Tasks; 10 in the paper, or 5.", min=1)] = 10,
    classes_per_task: Annotated[
        int, typer.Option(help="Classes of a task; 10 in the paper, or 20.", min=1)
    ] = 10,
    steps_per_task: Annotated[
        int | None,
        typer.Option(help="Steps of a task. Default: one pass.", min=1, show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            help="Processes at a time. Default: one for each core; on a GPU one.",
            min=1,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for runs, table and figures. Default: runs/EXPERIMENT-DATASET.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Repeat an experiment of the paper: runs, table, figures; start it again to go on."""
    from clmeta.cli.reproduction import EXPERIMENTS
    from clmeta.runs.parse import parse_seeds

    folder = output or Path("runs") / f"{experiment.value}-{Path(dataset).stem}"
    report = EXPERIMENTS.get(experiment.value)(
        folder,
        [name.strip() for name in bases.split(",") if name.strip()],
        parse_seeds(seeds),
        processes=jobs,
        dataset=dataset,
        data_root=str(data_root),
        download=download,
        device=device,
        tasks=tasks,
        classes_per_task=classes_per_task,
        steps_per_task=steps_per_task,
    )
    typer.echo(report.table)
    for warning in report.warnings:
        typer.echo(f"Note: {warning}.")
    typer.echo("Table and figures:")
    for path in report.files:
        typer.echo(f"  {path}")
