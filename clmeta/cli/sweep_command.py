"""What ``clmeta sweep`` does round a sweep: its folder, what the terminal says, the table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from clmeta.cli.sweep_display import SweepDisplay
from clmeta.cli.tables import percent
from clmeta.errors import ClmetaError
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.sweep.plan import SweepRun, sweep_runs
from clmeta.sweep.run import Launcher, LocalLauncher, SweepResult, run_sweep
from clmeta.sweep.spec import SweepSpec

#: Most rows of the table at the end.
ROWS = 40


class SweepFailed(ClmetaError):
    """Some runs of a sweep failed; all others were done."""


@dataclass
class SweepCommand:
    """A sweep as the command line asks for it.

    Args:
        spec: the runs.
        output: the sweep's folder; None: the spec's, or one in ``runs/`` named after what is swept.
        processes: at a time on this machine; None: one for each core, on a GPU one.
        chunk: runs trained together; None: chosen.
        slurm: options of the cluster; None: this machine.
    """

    spec: SweepSpec
    output: Path | None = None
    processes: int | None = None
    chunk: int | None = None
    slurm: Mapping[str, Any] | None = None

    def run(self, *, dry: bool = False) -> SweepResult:
        """Do the sweep, or only list its runs, and print what came out.

        Raises:
            BadArgument, RunFolderError: as `run_sweep` does.
            SweepFailed: at the end, if runs failed.
        """
        configs = self.spec.configs()
        folder = self.output or Path(self.spec.output or default_output(configs))
        runs = sweep_runs(folder, configs)
        if dry:
            print_runs(runs)
            return SweepResult(folder, runs)
        launcher = self._launcher(folder, configs)
        try:
            with SweepDisplay() as display:
                result = run_sweep(
                    configs, folder, launcher=launcher, chunk=self.chunk, watcher=display
                )
        except KeyboardInterrupt:
            _say(f"Stopped. Finished runs are kept in {folder}; the same command does the rest.")
            raise
        print_results(result)
        raise_failures(result)
        return result

    def _launcher(self, folder: Path, configs: Sequence[RunConfig]) -> Launcher:
        if self.slurm is not None:
            from clmeta.sweep.cluster import ClusterLauncher

            return ClusterLauncher(folder, self.slurm)
        on_device = any(config.device != "cpu" for config in configs)
        return LocalLauncher(self.processes or (1 if on_device else None))


def default_output(configs: Sequence[RunConfig]) -> Path:
    """``runs/`` and a name made of what is swept, but for the seeds: more seeds join the others."""
    methods = sorted({config.key(without=("seed",)) for config in configs})
    digest = hashlib.sha256(" ".join(methods).encode()).hexdigest()[:6]
    first = configs[0]
    words = ["sweep", first.stream, Path(first.dataset).stem, digest]
    return Path("runs") / re.sub(r"[^\w.+-]+", "-", "-".join(words))


def print_runs(runs: Sequence[SweepRun]) -> None:
    """A line a run: finished, failed or missing, and its folder."""
    console = Console(highlight=False)
    for run in runs:
        state = "finished" if run.finished else "failed  " if run.error else "missing "
        console.print(f"{state}  {run.folder}", soft_wrap=True, markup=False)
    done = sum(run.finished for run in runs)
    console.print(f"{len(runs)} runs, {done} finished")


def print_results(result: SweepResult) -> None:
    """A row a method, best first: seeds, online and test accuracy with intervals."""
    from clmeta.analysis.labels import method_labels

    done = [run for run in result.runs if run.finished]
    console = Console(highlight=False)
    methods: dict[str, list[dict[str, Any]]] = {}
    labels = method_labels([run.config.to_dict() for run in done])
    for label, run in zip(labels, done, strict=True):
        methods.setdefault(label, []).append(RunFolder(run.folder).summary)

    def score(summaries: list[dict[str, Any]]) -> float:
        return sum(s["cumulative_accuracy"] or 0.0 for s in summaries) / len(summaries)

    table = Table(title="Finished runs, best method first", title_justify="left")
    table.add_column("method")
    table.add_column("seeds", justify="right")
    table.add_column("online accuracy", justify="right")
    table.add_column("test accuracy at task ends", justify="right")
    ranked = sorted(methods.items(), key=lambda item: -score(item[1]))
    for label, summaries in ranked[:ROWS]:
        table.add_row(
            label,
            str(len(summaries)),
            percent([s["cumulative_accuracy"] for s in summaries]),
            percent([s["mean_test_accuracy"] for s in summaries]),
        )
    if done:
        console.print(table)
        if len(ranked) > ROWS:
            console.print(f"{len(ranked) - ROWS} further methods are not shown.")
        if any(len(summaries) > 1 for summaries in methods.values()):
            console.print("Mean over seeds ± half-width of its 95 % confidence interval.")
    console.print(f"Run folders: {result.output}", soft_wrap=True, markup=False)


def raise_failures(result: SweepResult) -> None:
    """Say which runs failed and why, and raise SweepFailed if any did."""
    if not result.failed:
        return
    for name, trace in result.traces.items():
        _say(f"{name}:\n{trace}")
    for name, error in result.failed.items():
        _say(f"failed: {result.output / name}: {error}")
    raise SweepFailed(
        f"{len(result.failed)} of {len(result.runs)} runs failed, {len(result.folders)} are "
        "finished; each failed run's error.json says why; the same command tries them again"
    )


def _say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)
