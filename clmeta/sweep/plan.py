"""What a sweep does at a time: runs that can train as replicas together, the same on every start.

The runs of a chunk are trained as one batched program, whose rounding may depend on who is in it.
So a chunk, once planned, is written down, and a sweep that starts again does the same chunks.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clmeta.errors import RunFolderError
from clmeta.ground.reading import loads
from clmeta.record.files import write_atomically
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.sweep.folders import run_folder

#: Most runs of a chunk, on the CPU and on a GPU, unless told otherwise: what is lost when a sweep
#: is killed stays bearable.
MOST = 32
MOST_ON_DEVICE = 256
#: Where a sweep keeps its own files, inside its output folder.
PRIVATE = ".sweep"
#: In the folder of a run that failed: why.
ERROR = "error.json"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        config: the run.
        folder: its folder.
        company: with whom it is to train, to repeat one that did (`clmeta.replicas.company`).
    """

    config: RunConfig
    folder: Path
    company: tuple[RunConfig | None, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name, which depends on what the run computes and on nothing else."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return RunFolder(self.folder).finished

    @property
    def error(self) -> dict[str, Any] | None:
        """What ``error.json`` says about the last failure: ``error, trace, alone, time``.

        None without one, or where it is damaged: the run is then simply done again.
        """
        try:
            said = loads((self.folder / ERROR).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return said if isinstance(said, dict) and isinstance(said.get("error"), str) else None

    @property
    def failed_alone(self) -> bool:
        """Whether it failed by itself, so that those it was batched with need not see it again."""
        return bool((self.error or {}).get("alone"))


@dataclass(frozen=True)
class Chunk:
    """Runs that are done together, by one process."""

    runs: tuple[SweepRun, ...]
    output: Path

    @property
    def missing(self) -> list[SweepRun]:
        """The runs that did not reach their end yet."""
        return [run for run in self.runs if not run.finished]


def sweep_runs(output: Path, configs: Sequence[RunConfig]) -> list[SweepRun]:
    """Each config with its folder below ``output``; configs that compute the same once."""
    runs = {run_folder(output, config): config for config in reversed(configs)}
    return [SweepRun(config, folder) for folder, config in reversed(runs.items())]


def plan(
    output: Path,
    runs: Sequence[SweepRun],
    *,
    at_a_time: int,
    chunk: int | None = None,
    measure: bool = True,
    memory: int | None = None,
) -> list[Chunk]:
    """Chunks that hold every unfinished run, those planned before unchanged.

    Only chunks larger than ``chunk``, planned before by another size, are planned anew, and of
    those only what has no checkpoint to go on from.

    Call it while no other process plans in the same folder (`clmeta.sweep.claims`).

    Args:
        output: the sweep's folder.
        runs: all runs.
        at_a_time: chunks that will be done at the same time; a group of runs that can train
            together is spread over as many.
        chunk: most runs of a chunk, where they can train together; None: as
            `clmeta.replicas.learners_at_a_time` says.
        measure, memory: passed on to it.

    Raises:
        RunFolderError: if the plan cannot be read or written.
    """
    from clmeta.replicas.going_on import homes
    from clmeta.replicas.run import learners_at_a_time
    from clmeta.replicas.together import together

    file = output / PRIVATE / "chunks.json"
    by_name = {run.name: run for run in runs}
    written: list[list[str]] = []
    kept: list[list[str]] = []
    waiting = {run.name: run for run in runs if not run.finished}
    going = [set(home.names) for home in homes(output)]
    for names in _read(file):
        to_do = all(name in by_name for name in names) and any(name in waiting for name in names)
        if to_do and chunk is not None and len(names) > chunk and not _begun(names, going):
            continue  # a chunk size asked for holds for all that is still to begin
        written.append(names)
        if to_do:
            kept.append(names)
            for name in names:
                waiting.pop(name, None)
    groups: dict[str, list[SweepRun]] = {}
    for run in waiting.values():
        groups.setdefault(together(run.config), []).append(run)
    added: list[list[str]] = []
    for group_runs in groups.values():
        configs = [run.config for run in group_runs]
        most = learners_at_a_time(
            configs,
            chunk=chunk,
            processes=min(at_a_time, len(waiting)),
            measure=measure,
            memory=memory,
        )
        if chunk is None:
            bound = MOST if configs[0].device == "cpu" else MOST_ON_DEVICE
            most = min(most, bound, math.ceil(len(group_runs) / at_a_time))
        count = math.ceil(len(group_runs) / most)
        bounds = [round(i * len(group_runs) / count) for i in range(count + 1)]
        names = [run.name for run in group_runs]
        added += [names[a:b] for a, b in itertools.pairwise(bounds)]
    if added:
        _write(file, written + added)
    return [Chunk(tuple(by_name[name] for name in names), output) for names in kept + added]


def _begun(names: Sequence[str], going: Sequence[set[str]]) -> bool:
    return any(each.issubset(names) for each in going)


def _read(file: Path) -> list[list[str]]:
    try:
        chunks = loads(file.read_text(encoding="utf-8"))["chunks"]
        if not all(isinstance(name, str) for names in chunks for name in names):
            raise ValueError
        return [list(names) for names in chunks]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"{file} cannot be read: remove it; finished runs are kept without it"
        ) from None


def _write(file: Path, chunks: list[list[str]]) -> None:
    text = json.dumps({"chunks": chunks}, indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda stream: stream.write(text.encode()))
