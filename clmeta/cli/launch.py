"""The one way from configs to finished run folders: checks, what is in the way, bars, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clmeta.cli.console import console, print_paths, say
from clmeta.cli.display import Display, counted
from clmeta.cli.tables import print_results
from clmeta.errors import ClmetaError, RunFolderError, bad
from clmeta.ground.names import method_labels
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.sweep.plan import SweepRun
from clmeta.sweep.run import Launcher, LocalLauncher, SweepResult, check, do_runs

#: Run folders listed one by one; of more the folder of all is named.
MOST_LISTED = 40


class RunsFailed(ClmetaError):
    """Some runs failed; all others were done."""


@dataclass
class Launch:
    """Runs as the command line asks for them.

    Args:
        runs: each with its folder, at or below ``output``.
        output: the folder of all.
        title: what stands over the table.
        processes: at a time on this machine; None: one for each core, on a GPU one.
        together: whether runs may train together as one program.
        chunk: how many do; None: chosen.
        finished: what becomes of finished runs that are there: ``"keep"`` them, ``"replace"`` them
            or ``"refuse"`` to start.
        slurm: options of the cluster; None: this machine.
        seen: description of the data that must be the runs'; empty: any.
        note: something to say before they start.
    """

    runs: Sequence[SweepRun]
    output: Path
    title: str = "Finished runs, best method first"
    processes: int | None = None
    together: bool = True
    chunk: int | None = None
    finished: str = "keep"
    slurm: Mapping[str, Any] | None = None
    seen: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None

    def do(self, *, dry: bool = False) -> SweepResult:
        """Do the runs, or only check and list them, and print what came out.

        Raises:
            BadArgument: before anything is trained or written, for options that cannot work, or a
                data set that is not the one that is to be repeated.
            RunFolderError: likewise, for finished runs in the way, kept ones of other options, or
                a folder that cannot be written.
            RunsFailed: after all others are done, if runs failed.
        """
        launcher = self._launcher()
        todo = [r for r in self.runs if self.finished != "keep" or not r.finished]
        check([run.config for run in todo], self.output, launcher)
        if self.seen:
            check_same_data(self.seen, self.runs[0].config)
        self._look_at_finished()
        if self.note is not None:
            say(f"Note: {self.note}.")
        if dry:
            print_runs(self.runs)
            return SweepResult(self.output, list(self.runs))
        result = self._train(launcher)
        folders = result.folders
        print_results(folders, self.title)
        listed = folders if len(folders) <= MOST_LISTED else [self.output]
        if folders:
            print_paths("Run folders", listed)
        raise_failures(result)
        return result

    def _launcher(self) -> Launcher:
        if self.slurm is not None:
            from clmeta.sweep.cluster import ClusterLauncher

            return ClusterLauncher(self.output, self.slurm)
        on_device = any(run.config.device != "cpu" for run in self.runs)
        return LocalLauncher(self.processes or (1 if on_device else None))

    def _look_at_finished(self) -> None:
        """Raise RunFolderError for finished runs that are neither wanted nor to be replaced."""
        done = [run for run in self.runs if run.finished]
        if self.finished == "refuse" and done:
            said = ", ".join(str(run.folder) for run in done)
            raise RunFolderError(
                f"{said}: finished already; give --overwrite to replace, --skip-finished to keep, "
                "or another --output"
            )
        for run in done if self.finished == "keep" else ():
            if RunConfig.from_file(run.folder, trust=True).key() != run.config.key():
                raise RunFolderError(
                    f"{run.folder}: holds a finished run of other options; give --overwrite to "
                    "replace it, or another --output"
                )

    def _train(self, launcher: Launcher) -> SweepResult:
        if self.finished == "replace":
            for run in self.runs:
                if run.folder.is_dir():
                    folder = RunFolder(run.folder)
                    folder.prepare(overwrite=True)
                    folder.release()
        configs = [{**run.config.to_dict(), "method": run.config.method} for run in self.runs]
        labels = {
            run.name: f"{label}, seed {run.config.seed}"
            for run, label in zip(self.runs, method_labels(configs), strict=True)
        }
        try:
            with Display({run.name: run.folder for run in self.runs}, labels) as display:
                return do_runs(
                    self.runs,
                    self.output,
                    launcher=launcher,
                    chunk=self.chunk,
                    together=self.together,
                    watcher=display,
                )
        except KeyboardInterrupt:
            kept = [str(run.folder) for run in self.runs if run.folder.exists()]
            where = ", ".join(kept) if len(kept) <= 3 else str(self.output)
            again = "the same command"
            if self.finished != "keep":
                again += " with --skip-finished"
                again += " in place of --overwrite" if self.finished == "replace" else ""
            what = f"What was recorded is kept in {where}" if kept else "Nothing was recorded yet"
            say(f"Stopped. {what}; {again} does the rest.")
            raise


def check_same_data(before: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse to repeat a run on data that are not what it saw, whatever they are called.

    Raises:
        BadArgument: naming what differs.
    """
    from clmeta.runs.prepared import load_data

    now = load_data(config).describe()
    differs = [name for name in before if before[name] != now.get(name)]
    if now["fingerprint"] != before["fingerprint"]:
        said = ", ".join(f"{name} {before[name]} then, {now.get(name)} now" for name in differs)
        mend = f"is not the data that the run saw ({said}); give --dataset to use other data"
        bad("dataset", config.dataset, mend)


def print_runs(runs: Sequence[SweepRun]) -> None:
    """A line a run: finished, failed or missing, and its folder."""
    out = console()
    for run in runs:
        state = "finished" if run.finished else "failed  " if run.error else "missing "
        out.print(f"{state}  {run.folder}", soft_wrap=True)
    done = sum(run.finished for run in runs)
    out.print(f"{counted(len(runs))}, {done} finished")


def raise_failures(result: SweepResult) -> None:
    """Say which runs failed and why, equal errors once, and raise RunsFailed if any did."""
    if not result.failed:
        return
    folders = {run.name: run.folder for run in result.runs}
    for name, trace in result.traces.items():
        console(stderr=True).print(f"{folders[name]}:\n{trace}", soft_wrap=True)
    by_error: dict[str, list[str]] = {}
    for name, error in result.failed.items():
        by_error.setdefault(error, []).append(str(folders[name]))
    said = "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {error}"
        for error, names in by_error.items()
    )
    if len(result.runs) == 1:
        raise RunsFailed(said)
    raise RunsFailed(f"{len(result.failed)} of {len(result.runs)} runs failed: {said}")
