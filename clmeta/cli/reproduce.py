"""The command ``clmeta reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clmeta.cli import options as o
from clmeta.cli.command import Argument, command
from clmeta.cli.console import console, print_paths
from clmeta.ground.names import file_name, shown
from clmeta.runs.config import OPTIONS
from clmeta.runs.imports import import_modules
from clmeta.runs.options import WHOLE
from clmeta.sweep.protocol import figure_4

PAPER = "Experiment"
BASES = ("adamw", "rmsprop", "lion", "sgdm")
DEFAULTS = {**(figure_4.__kwdefaults__ or {})}


@command(
    "reproduce",
    [
        Argument("experiment", "Which of the paper's experiments: figure-4."),
        o.own(
            "bases",
            "Base updates, each with its published meta update.",
            panel=PAPER,
            default=",".join(BASES),
        ),
        o.changed(
            o.SEEDS,
            about="One run of each for each; the paper has five.",
            panel=PAPER,
            default_said="0-4",
        ),
        o.own(
            "tasks",
            "Tasks; 10 in the paper, or 5.",
            kind=WHOLE,
            panel=PAPER,
            least=1,
            default=DEFAULTS["tasks"],
        ),
        o.own(
            "classes_per_task",
            "Classes of a task; 10 in the paper, or 20.",
            kind=WHOLE,
            panel=PAPER,
            least=1,
            default=DEFAULTS["classes_per_task"],
        ),
        o.own(
            "steps_per_task",
            "Steps of a task.",
            kind=WHOLE,
            panel=PAPER,
            least=1,
            default_said="one pass",
        ),
        o.changed(
            OPTIONS["dataset"],
            about="Data of CIFAR100's shape: a name, .npz file or image folder.",
            default=DEFAULTS["dataset"],
        ),
        *(OPTIONS[name] for name in ("data_root", "download", "device", "imports")),
        o.CORES,
        o.changed(
            o.OUTPUT,
            about="Folder for runs, table and figures.",
            default_said="runs/EXPERIMENT-DATASET",
        ),
        o.DRY_RUN,
    ],
)
def reproduce(
    experiment: str,
    bases: str,
    seeds: list[int] | None,
    jobs: int | None,
    output: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Repeat an experiment of the paper: runs, table, figures; start it again to go on."""
    import_modules(options["imports"])
    from clmeta.cli.reproduction import EXPERIMENTS

    perform = EXPERIMENTS.get(experiment)
    name = file_name(shown(experiment), Path(shown(options["dataset"])).stem)
    report = perform(
        output or Path("runs") / name,
        [name.strip() for name in bases.split(",") if name.strip()],
        seeds or range(5),
        processes=jobs,
        dry=dry_run,
        **options,
    )
    if report is not None:
        out = console()
        out.print(report.table, soft_wrap=True)
        for warning in report.warnings:
            out.print(f"Note: {warning}.")
        print_paths("Table and figures", report.files)
