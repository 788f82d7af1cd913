"""The commands ``clmeta sweep`` and ``clmeta best``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from clmeta.cli.run_options import given_options, with_run_options

SWEEP, CLUSTER = "Sweep", "Cluster"


class Where(str, Enum):
    """Where a sweep's runs go."""

    LOCAL = "local"
    SLURM = "slurm"


@with_run_options
def sweep(
    spec: Annotated[
        Path | None, typer.Argument(help="The sweep as a TOML file; options given here win.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="A run option's values, e.g. alpha0=1e-5,1e-4 or stream_options.tasks=5,10. "
            "Repeatable: every combination is run.",
            metavar="OPTION=VALUE,...",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Every combination with each of these, e.g. 0-4. Default: 0.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the sweep. Default: in runs/, named after what is swept.",
            show_default=False,
            rich_help_panel=SWEEP,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            help="Processes at a time. Default: one for each core; on a GPU one.",
            min=1,
            show_default=False,
            rich_help_panel=SWEEP,
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            help="Runs trained together as one program; a stopped sweep loses at most those under "
            "way. Default: found by a short measurement.",
            min=1,
            show_default=False,
            rich_help_panel=SWEEP,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only list the runs, finished or not.", rich_help_panel=SWEEP
        ),
    ] = False,
    launcher: Annotated[
        Where, typer.Option(help="This machine or a SLURM cluster.", rich_help_panel=CLUSTER)
    ] = Where.LOCAL,
    partition: Annotated[
        str | None, typer.Option(help="Partition of the cluster.", rich_help_panel=CLUSTER)
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            help="Longest time of a task: minutes, or days-hours:minutes:seconds. Default: 60.",
            show_default=False,
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    gpus_per_task: Annotated[
        int | None, typer.Option(help="GPUs of a task.", min=0, rich_help_panel=CLUSTER)
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            help="Any other option that submitit knows, e.g. account=lab, mem_gb=8, "
            "array_parallelism=20 (tasks at a time). Repeatable.",
            metavar="NAME=VALUE",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Run a grid or list of options, over seeds; start it again and it does what is missing."""
    from clmeta.cli.sweep_command import SweepCommand
    from clmeta.runs.parse import parse_options, parse_seeds
    from clmeta.sweep.spec import SweepSpec, parse_grid

    start = SweepSpec() if spec is None else SweepSpec.from_file(spec)
    cluster = {
        **start.slurm,
        "partition": partition,
        "time": time,
        "gpus_per_task": gpus_per_task,
        **(parse_options("slurm", slurm) or {}),
    }
    listed = None if seeds is None else parse_seeds(seeds)
    SweepCommand(
        start.changed(given_options(given), parse_grid(grid), listed),
        output=output,
        processes=jobs,
        chunk=chunk,
        slurm={k: v for k, v in cluster.items() if v is not None} if launcher == "slurm" else None,
    ).run(dry=dry_run)


def best(
    folders: Annotated[list[Path], typer.Argument(help="A sweep's folder, or run folders.")],
    option: Annotated[
        str, typer.Option(help="The swept option to choose, e.g. eta or stream_options.tasks.")
    ] = "alpha0",
    metric: Annotated[
        str,
        typer.Option(help="cumulative_accuracy, test_accuracy, last_task_accuracy or loss."),
    ] = "cumulative_accuracy",
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only runs with this, e.g. meta=none. Repeatable.", metavar="NAME=VALUE"),
    ] = None,
    tune_seeds: Annotated[
        str | None, typer.Option(help="Seeds to choose on, e.g. 0-2. Default: all.")
    ] = None,
    report_seeds: Annotated[
        str | None, typer.Option(help="Other seeds to report on, e.g. 3-7. Default: all.")
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence of the intervals.")] = 0.95,
) -> None:
    """Choose the best fixed step size, or another swept option, with its confidence interval."""
    from clmeta.cli.best_report import print_best
    from clmeta.runs.parse import parse_options, parse_seeds
    from clmeta.sweep.best import best as choose

    choices = choose(
        *folders,
        option=option.replace("-", "_"),
        metric=metric,
        where=parse_options("where", where),
        tune_seeds=None if tune_seeds is None else parse_seeds(tune_seeds),
        report_seeds=None if report_seeds is None else parse_seeds(report_seeds),
        level=level,
    )
    print_best(choices, metric, level)
