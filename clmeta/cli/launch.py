"""From the command line's options to finished runs: checks, run folders, bars, a table."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from clmeta.cli.display import Display
from clmeta.cli.tables import print_table
from clmeta.errors import ClmetaError, RunFolderError, bad, require
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import FACTS, RunConfig
from clmeta.sweep.jobs import Event, Job, run_jobs


def launch(
    config_file: Path | None,
    given: Mapping[str, Any],
    *,
    seeds: Sequence[int] | None = None,
    output: Path | None = None,
    processes: int = 1,
    overwrite: bool = False,
    skip_finished: bool = False,
) -> list[Path]:
    """Run one config for each seed and print a table of what came out.

    Args:
        config_file: a run's ``config.json`` to start from; RunConfig's defaults without one, and
            a preset's own data set.
        given: options that change it.
        seeds: one run each; the config's own seed without.
        output: folder that gets a run folder ``seed-N`` for each seed.
        processes: runs at a time.
        overwrite: replace finished runs.
        skip_finished: keep finished runs and do the others.

    Returns:
        The run folders.

    Raises:
        BadArgument: before anything is trained or written, for options that cannot work, or a
            data set that is not the one that ``config_file``'s run saw.
        RunFolderError: likewise, for finished runs in the way, or kept ones of other options.
        RunsFailed: after all others are done, if runs failed.
    """
    start = _defaults(given) if config_file is None else RunConfig.from_file(config_file)
    config = RunConfig.from_dict({**start.to_dict(), **given})
    if config_file is not None and not {"dataset", "dataset_options"} & set(given):
        check_same_data(config_file, config)
    configs = [replace(config, seed=seed) for seed in seeds or [config.seed]]
    folder = output or default_folder(config)
    jobs = [Job(each, folder / f"seed-{each.seed}", overwrite) for each in configs]
    run_all(jobs, processes, skip_finished=skip_finished)
    folders = [job.folder for job in jobs]
    print_table(folders, f"{config.stream} on {Path(config.dataset).name}")
    print_paths("Run folders", folders)
    return folders


def run_all(jobs: Sequence[Job], processes: int, *, skip_finished: bool = False) -> None:
    """Check all jobs, then do them with moving bars; failures are reported after the others."""
    if skip_finished:
        jobs = [job for job in jobs if not _kept(job)]
    refuse_finished(jobs)
    check_jobs(jobs)
    labels = [f"{job.config.method}, seed {job.config.seed}" for job in jobs]
    try:
        with Display(jobs, labels) as display:
            ends = run_jobs(jobs, processes, display.show)
    except KeyboardInterrupt:
        kept = [str(job.folder) for job in jobs if job.folder.exists()]
        Console(stderr=True).print(
            f"Stopped. What was recorded is kept in {', '.join(kept) or 'no folder yet'}; "
            "the same command with --skip-finished does the rest.",
            highlight=False,
            soft_wrap=True,
        )
        raise
    failed = [(job, end) for job, end in zip(jobs, ends, strict=True) if end.kind == "failed"]
    if failed:
        raise RunsFailed(failed, len(jobs))


def _kept(job: Job) -> bool:
    """Whether the job's finished run is there; raise RunFolderError if it is one of other options.

    With ``overwrite`` such a run is not kept but replaced.
    """
    if not RunFolder(job.folder).finished:
        return False
    same = RunConfig.from_file(job.folder).key() == job.config.key()
    if not same and not job.overwrite:
        raise RunFolderError(
            f"output={str(job.folder)!r}: holds a finished run of other options; pass --overwrite "
            "to replace it, or another --output"
        )
    return same


class RunsFailed(ClmetaError):
    """Some runs failed; the message says which and why."""

    def __init__(self, failed: Sequence[tuple[Job, Event]], count: int) -> None:
        for job, end in failed:
            if end.trace:  # not an error that clmeta raises on purpose: show all of it
                Console(stderr=True).print(f"{job.folder}:\n{end.trace}", markup=False)
        said = "; ".join(f"{job.folder}: {end.error}" for job, end in failed)
        super().__init__(said if count == 1 else f"{len(failed)} of {count} runs failed: {said}")


def refuse_finished(jobs: Sequence[Job]) -> None:
    """Raise RunFolderError if a job would replace a finished run without being told to."""
    done = [str(j.folder) for j in jobs if not j.overwrite and RunFolder(j.folder).finished]
    if done:
        raise RunFolderError(
            f"output={', '.join(done)!r}: finished already; pass --overwrite to replace, "
            "--skip-finished to keep, or another --output"
        )


def check_same_data(config_file: Path, config: RunConfig) -> None:
    """Refuse to repeat a run on data that are not what it saw, whatever they are called.

    Raises:
        BadArgument: naming what differs.
    """
    from clmeta.runs.runner import load_data

    file = config_file / "config.json" if config_file.is_dir() else config_file
    facts = json.loads(file.read_text(encoding="utf-8")).get(FACTS, {})
    before = facts.get("stream", {}).get("data")
    if not before:  # written by hand, or before anything was prepared
        return
    now = load_data(config).describe()
    differs = [name for name in before if before[name] != now.get(name)]
    if now["fingerprint"] != before["fingerprint"]:
        said = ", ".join(f"{name} {before[name]} then, {now.get(name)} now" for name in differs)
        mend = f"is not the data that the run saw ({said}); give --dataset to use other data"
        bad("dataset", config.dataset, mend)


def check_jobs(jobs: Sequence[Job]) -> None:
    """Build everything that the jobs train with, once for all seeds of a method.

    Raises:
        BadArgument: for the first config that cannot work.
    """
    from clmeta.runs.runner import prepare

    for config in {job.config.key(without=("seed",)): job.config for job in jobs}.values():
        prepare(config)
    folders = [job.folder.resolve() for job in jobs]
    require(len(set(folders)) == len(folders), "output", folders, "two runs share a folder")


def _defaults(given: Mapping[str, Any]) -> RunConfig:
    """What a run starts from without a file: a preset brings the data set that it was made for."""
    from clmeta.streams import preset_dataset

    start = RunConfig()
    dataset = preset_dataset(given["stream"]) if "stream" in given else None
    return start if dataset is None else replace(start, dataset=dataset)


def default_folder(config: RunConfig) -> Path:
    """``runs/`` and a name made of the options: readable, and different for different methods."""
    blocks = config.blocks if isinstance(config.blocks, str) else "+".join(config.blocks)
    method = (
        f"{config.base}-fixed" if config.meta == "none" else f"{config.base}-{config.meta}-{blocks}"
    )
    words = [config.stream, Path(config.dataset).stem, method, config.key(without=("seed",))[:6]]
    return Path("runs") / re.sub(r"[^\w.+-]+", "-", "-".join(words))


def print_paths(what: str, paths: Sequence[Path]) -> None:
    """Paths under a heading, one a line, never wrapped."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{what}:")
    for path in paths:
        console.print(f"  {path}")


def draw(
    runs: Sequence[str | Path],
    output: Path,
    plots: Sequence[str] | None,
    formats: Sequence[str],
    *,
    every: int = 1,
    unfinished: bool = False,
) -> list[Path]:
    """Draw figures of run folders and print their paths.

    Args:
        runs: run folders, folders of them, or globs.
        output: folder for the figures.
        plots: names of the plots; all without.
        formats: of png, pdf and svg.
        every: read one step in so many.
        unfinished: include what unfinished runs recorded.

    Raises:
        BadArgument: for an unknown plot or format.
        RunFolderError: if there is no run, or the folder cannot be written.
    """
    from clmeta.analysis import load_runs, save_plots

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        frame = load_runs(*runs, every=every, unfinished="keep" if unfinished else "skip")
    for note in notes:
        Console(stderr=True).print(f"note: {note.message}", markup=False, soft_wrap=True)
    paths = save_plots(frame, output, formats, plots)
    print_paths("Figures", paths)
    return paths
