"""``clmeta demo``: ten tasks of real digits, a fixed step size against two that adapt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from clmeta.cli.display import duration
from clmeta.cli.launch import draw, print_paths, run_all
from clmeta.cli.tables import print_table
from clmeta.runs.config import RunConfig
from clmeta.sweep.jobs import Job

#: Best of 3e-4, 1e-3, 2e-3, 3e-3, 5e-3 and 1e-2 on seeds 10 and 11, which the demo does not use.
BEST_FIXED = 2e-3
#: The adaptive methods start one order below it, as the paper does, with the default eta.
ALPHA0 = BEST_FIXED / 10

SETTING = RunConfig(stream="permuted_inputs", dataset="digits", model="mlp", base="adamw")
METHODS = {
    f"fixed {BEST_FIXED:g}": {"meta": "none", "alpha0": BEST_FIXED},
    "adaptive, scalar": {"blocks": "scalar", "alpha0": ALPHA0},
    "adaptive, per layer": {"blocks": "layer", "alpha0": ALPHA0},
}

INTRODUCTION = (
    "The 1,797 real digit images of scikit-learn, ten tasks: each shows all training images once, "
    "one at a time, through another fixed permutation of their pixels. Nothing tells the learner "
    f"when a task ends. An MLP learns with AdamW, its step size fixed at {BEST_FIXED:g}, the best "
    f"of a grid, or adapted by MetaOptimize from {ALPHA0:g} on: one for all weights, or one for "
    "each layer."
)


def demo_jobs(output: Path, seeds: Sequence[int], overwrite: bool = False) -> list[Job]:
    """The demo's runs: three methods, each with every seed."""
    fixed = SETTING.to_dict()
    return [
        Job(
            RunConfig.from_dict({**fixed, **options, "name": name, "seed": seed}),
            output / "runs" / f"{folder}-seed-{seed}",
            overwrite,
        )
        for (name, options), folder in zip(
            METHODS.items(), ("fixed", "scalar", "layer"), strict=True
        )
        for seed in seeds
    ]


def run_demo(
    output: Path, *, seeds: Sequence[int] = (0, 1, 2), processes: int = 2, overwrite: bool = False
) -> None:
    """Run the demo; ends with a table, the run folders and figures.

    Args:
        output: folder for runs and figures.
        seeds: one run of each method for each.
        processes: runs at a time.
        overwrite: replace an earlier demo; otherwise its finished runs are kept and only missing
            ones are done.

    Raises:
        RunFolderError: if ``output`` cannot be written.
    """
    started = time.monotonic()
    console = Console(highlight=False)
    console.print(INTRODUCTION, end="\n\n")
    jobs = demo_jobs(output, seeds, overwrite)
    run_all(jobs, processes, skip_finished=not overwrite)
    folders = [job.folder for job in jobs]
    console.print()
    print_table(folders, "Online accuracy: of predictions made before learning from each image")
    print_paths("Run folders", folders)
    draw(folders, output / "figures", None, ["png", "pdf"])
    console.print(f"Done in {duration(time.monotonic() - started)}.")
