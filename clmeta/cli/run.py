"""The commands ``clmeta run`` and ``clmeta sweep``: one method, or a grid or list of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clmeta.cli import options as o
from clmeta.cli.command import Argument, command
from clmeta.cli.listing import check_names
from clmeta.errors import bad, require
from clmeta.ground.names import shown
from clmeta.ground.reading import as_path
from clmeta.runs.config import RunConfig
from clmeta.runs.files import read_options
from clmeta.runs.options import PAIRS, WHOLE, Kind
from clmeta.sweep.spec import SweepSpec, parse_grid, refuse_useless

SWEEP, CLUSTER = "Sweep", "Cluster"
GRID = Kind(
    "OPTION=VALUE,...",
    lambda argument, value: value,
    lambda argument, words: parse_grid(words),
    many=True,
)
#: Where a sweep's runs go.
PLACES = ("local", "slurm")


@command(
    "run",
    [
        o.CONFIG,
        o.changed(o.SEEDS, default_said="0, or the config's"),
        o.changed(o.OUTPUT, default_said="in runs/, named after the options"),
        o.own("resume", "Go on with the unfinished run in this folder, from its last checkpoint."),
        o.changed(o.JOBS, default=1),
        o.OVERWRITE,
        o.SKIP_FINISHED,
        o.REPRODUCIBLE,
        o.DRY_RUN,
        o.TRUST,
    ],
    of_a_run=True,
)
def run(
    config: str | None,
    seeds: list[int] | None,
    output: str | None,
    resume: str | None,
    jobs: int,
    overwrite: bool,
    skip_finished: bool,
    reproducible: bool,
    dry_run: bool,
    trust: bool,
    **given: Any,
) -> None:
    """Learn online from a stream and record every step into run folders.

    A run that was killed goes on, bit for bit, when the same command is given again.
    """
    require(
        not (overwrite and skip_finished),
        "overwrite",
        overwrite,
        "finished runs are either replaced or kept: drop this or --skip-finished",
    )
    if resume is not None:
        from clmeta.record.runfolder import RunFolder

        for name, value in {"config": config, "seeds": seeds, "output": output}.items():
            require(value is None, name, value, "is the folder's own with --resume; leave it out")
        there = bool(RunFolder(resume).checkpoint_files)
        mend = (
            "holds no checkpoint of its own to go on from; give the run's own command again, or "
            "the sweep's, whose runs go on together"
        )
        require(there, "resume", resume, mend)
        config = resume
    spec = _start("config", config, trust, given).changed(given, {}, seeds)
    check_names(spec)
    configs = spec.configs()
    methods = len({each.key(without=("seed",)) for each in configs})
    if methods > 1:
        bad("config", config, f"is a sweep of {methods} methods; use clmeta sweep")
    refuse_useless(given, configs)
    from clmeta.cli.launch import Launch
    from clmeta.replicas.company import company_of
    from clmeta.sweep.folders import seed_folders
    from clmeta.sweep.plan import SweepRun

    folder = _folder(resume or output, spec, configs)
    folders = [folder] if resume is not None else seed_folders(folder, configs)
    company: tuple[RunConfig | None, ...] = ()
    if config is not None and len(configs) == 1 and not reproducible:
        company = company_of(read_options(config, trust=True), configs[0])
    others = f"the {len(company) - 1} runs that it trained with train along, so that it rounds as"
    Launch(
        [SweepRun(each, place, company) for each, place in zip(configs, folders, strict=True)],
        folder,
        f"{shown(configs[0].stream)} on {Path(shown(configs[0].dataset)).name}",
        processes=jobs,
        together=False,
        finished="replace" if overwrite else "keep" if skip_finished else "refuse",
        seen=spec.seen,
        note=f"{others} it did; --reproducible trains it by itself" if company else None,
    ).do(dry=dry_run)


@command(
    "sweep",
    [
        Argument(
            "spec", "The sweep as a TOML or JSON file; options given here win.", required=False
        ),
        o.changed(
            o.CONFIG,
            about="Start from this: a run's folder, or a JSON or TOML file of options or of a "
            "sweep, as SPEC; other options change it.",
        ),
        o.own(
            "grid",
            "A run option's values, e.g. alpha0=1e-5,1e-4 or stream_options.tasks=5,10: every "
            "combination is run. Without any, the runs of one method differ in their seeds.",
            kind=GRID,
            panel=SWEEP,
            default={},
        ),
        o.changed(o.SEEDS, about="Every combination with each of these, e.g. 0-4.", panel=SWEEP),
        o.changed(
            o.OUTPUT,
            about="Folder of the sweep; one that is there is gone on with.",
            panel=SWEEP,
            default_said="in runs/, named after what is swept",
        ),
        o.changed(o.CORES, panel=SWEEP),
        o.own(
            "chunk",
            "Runs trained together as one program; stopped, they go on together.",
            kind=WHOLE,
            panel=SWEEP,
            least=1,
            default_said="found by a short measurement",
        ),
        o.changed(o.REPRODUCIBLE, panel=SWEEP),
        o.changed(o.DRY_RUN, panel=SWEEP),
        o.changed(o.TRUST, panel=SWEEP),
        o.own(
            "launcher",
            "This machine or a SLURM cluster.",
            panel=CLUSTER,
            choices=PLACES,
            default=PLACES[0],
        ),
        o.own("partition", "Partition of the cluster.", panel=CLUSTER),
        o.own(
            "time",
            "Longest time of a task: minutes, or days-hours:minutes:seconds.",
            panel=CLUSTER,
            default_said="60",
        ),
        o.own("gpus_per_task", "GPUs of a task.", panel=CLUSTER, kind=WHOLE, least=0),
        o.own(
            "slurm",
            "Any other option that submitit knows, e.g. account=lab, mem_gb=8, "
            "array_parallelism=20 (tasks at a time).",
            panel=CLUSTER,
            kind=PAIRS,
            default={},
        ),
    ],
    of_a_run=True,
)
def sweep(
    spec: str | None,
    config: str | None,
    grid: dict[str, list[Any]],
    seeds: list[int] | None,
    output: str | None,
    jobs: int | None,
    chunk: int | None,
    reproducible: bool,
    dry_run: bool,
    trust: bool,
    launcher: str,
    partition: str | None,
    time: str | None,
    gpus_per_task: int | None,
    slurm: dict[str, Any],
    **given: Any,
) -> None:
    """Run a grid or list of options, over seeds; start it again and it does what is missing."""
    require(None in (spec, config), "config", config, "is given beside SPEC; give one of the two")
    argument, file = ("config", config) if spec is None else ("spec", spec)
    start = _start(argument, file, trust, given)
    both = "trains runs together, --reproducible one by one; give one of the two"
    require(not (reproducible and chunk), "chunk", chunk, both)
    plan = start.changed(given, grid, seeds)
    check_names(plan)
    configs = plan.configs()
    refuse_useless([*given, *grid], configs)
    asked = {"partition": partition, "time": time, "gpus_per_task": gpus_per_task}
    cluster = {**plan.slurm, **{k: v for k, v in asked.items() if v is not None}, **slurm}
    if launcher == PLACES[0]:
        for name, value in {**asked, "slurm": slurm or None}.items():
            require(value is None, name, value, "is for a cluster: give --launcher slurm as well")
    from clmeta.cli.launch import Launch
    from clmeta.sweep.plan import sweep_runs

    folder = _folder(output, plan, configs)
    runs = sweep_runs(folder, configs)
    Launch(
        runs,
        folder,
        processes=jobs,
        together=not reproducible,
        chunk=chunk,
        slurm=cluster if launcher == "slurm" else None,
        seen=plan.seen,
        note="one run only; --grid and --seeds make more" if len(runs) == 1 else None,
    ).do(dry=dry_run)


def _start(argument: str, file: str | None, trust: bool, given: Mapping[str, Any]) -> SweepSpec:
    """What a file says, which may name code of modules that were typed; without one, nothing."""
    if file is None:
        return SweepSpec()
    return SweepSpec.from_file(file, argument, trust=trust or given.get("imports", ()))


def _folder(output: str | None, spec: SweepSpec, configs: Sequence[RunConfig]) -> Path:
    from clmeta.sweep.folders import default_output

    given = output or spec.output
    return default_output(configs) if given is None else as_path("output", given)
