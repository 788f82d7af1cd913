"""Many learners in one process: runs that share a network and rules train as one batched program.

Each is what `clmeta.runs.runner.run` makes of the same config: same data, same initial weights,
same recording, step sizes equal to rounding (tests/test_replicas.py). Figures are in docs/speed.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clmeta.errors import ClmetaError, RunFolderError, require
from clmeta.record.runfolder import RunFolder
from clmeta.replicas.chunk import Chunk
from clmeta.replicas.network import NotBatchable
from clmeta.replicas.program import Program, ReplicaWarning
from clmeta.replicas.size import ELSEWHERE, ELSEWHERE_ON_DEVICE, choose_chunk, most_that_fit
from clmeta.replicas.together import together
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import Prepared, numerics, prepare, run

#: Seconds between two reports of progress.
REPORT_EVERY = 0.25


class ReplicasFailed(ClmetaError):
    """Some runs ended by an error; all others are finished.

    Attributes:
        errors: number of each failed run, in the order of the configs, to its error.
    """

    def __init__(self, errors: dict[int, BaseException], folders: Sequence[Path]) -> None:
        self.errors = errors
        first = min(errors)
        text = f"{len(errors)} of {len(folders)} runs failed; {folders[first]}: {errors[first]}"
        super().__init__(text)


@dataclass(frozen=True)
class ReplicasProgress:
    """Where all runs of a call stand.

    Attributes:
        step: steps done, over all runs.
        steps: steps of all runs.
        finished, failed: numbers of runs.
        runs: number of all runs.
    """

    step: int
    steps: int
    finished: int
    failed: int
    runs: int


OnReplicasProgress = Callable[[ReplicasProgress], object]
Numbered = tuple[int, RunConfig, Path]


def run_replicas(
    configs: Sequence[RunConfig],
    folders: Sequence[str | os.PathLike[str]],
    *,
    on_progress: OnReplicasProgress | None = None,
    chunk: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Train and record all runs, batching those that share network and rule pair.

    Runs of one batch may differ in seed, stream, alpha0, eta, gamma, weight decay, bounds and
    blocks. Networks that cannot be batched, torch optimisers as base, and strategies other than
    ``"plain"`` go one by one, with a `ReplicaWarning`.

    Args:
        configs: the runs.
        folders: the run folder of each.
        on_progress: called about four times a second with a `ReplicasProgress`.
        chunk: how many learners at most train at a time; by default found by a short measurement
            within the memory there is.
        overwrite: replace finished runs.

    Returns:
        The folders, as paths.

    Raises:
        BadArgument: before anything is trained or written, for a config that cannot work.
        RunFolderError: likewise, for a folder that holds a finished run.
        ReplicasFailed: after all runs, if some ended by an error of their own (a non-finite
            update, a full disk); what they recorded is kept.
    """
    paths = [Path(folder) for folder in folders]
    require(len(paths) == len(configs), "folders", paths, f"give one for each of {len(configs)}")
    distinct = len({path.resolve() for path in paths}) == len(paths)
    require(distinct, "folders", paths, "two runs share a folder")
    require(chunk is None or chunk >= 1, "chunk", chunk, "must be at least 1")
    for path in paths:
        RunFolder(path).check_free(overwrite)
    groups: dict[str, list[Numbered]] = {}
    steps = []
    for number, (config, path) in enumerate(zip(configs, paths, strict=True)):
        prepared = prepare(config)
        steps.append(len(prepared.stream))
        groups.setdefault(_group(prepared), []).append((number, config, path))
    tally = _Tally(sum(steps), len(configs), on_progress)
    for members in groups.values():
        _run_group(members, steps, chunk, overwrite, tally)
    tally.report()
    if tally.errors:
        raise ReplicasFailed(tally.errors, paths)
    return paths


def learners_at_a_time(
    configs: Sequence[RunConfig],
    *,
    chunk: int | None = None,
    processes: int = 1,
    measure: bool = True,
    memory: int | None = None,
) -> int:
    """How many of the runs to train at a time; 1 if their network cannot be batched.

    Args:
        configs: runs that may train together (see `run_replicas`).
        chunk: how many, if they can be batched at all; None: found out.
        processes: on this machine that train so many each at the same time.
        measure: find it by a short measurement on this machine, which will train them; otherwise
            all for which the memory is predicted to suffice.
        memory: bytes of the host that one process may take on the machine that trains, where
            nothing is measured; None: a modest guess, as for a GPU's memory.

    Raises:
        BadArgument: for a config that cannot work.
    """
    measure = measure and chunk is None
    config = configs[0] if measure else dataclasses.replace(configs[0], device="cpu")
    if config.strategy != "plain" or len(configs) == 1:
        return 1
    prepared = prepare(config)
    try:
        Program([prepared])
        if measure:
            return choose_chunk(configs, len(prepared.stream) * len(configs), processes)
    except NotBatchable:
        return 1
    if chunk is not None:
        return chunk
    if configs[0].device != "cpu":
        memory = ELSEWHERE_ON_DEVICE
    return most_that_fit(prepared, ELSEWHERE if memory is None else memory, len(configs))


def _group(prepared: Prepared) -> str:
    """What learners of one batch must have in common."""
    stream, tasks = prepared.stream, None
    if stream.batch_size > 1:  # smaller batches at the ends of tasks must coincide
        tasks = (stream.batch_size, *(stream.n_samples(task) for task in range(stream.n_tasks)))
    return together(prepared.config, (stream.input_shape, stream.n_classes, tasks))


def _run_group(
    members: list[Numbered],
    steps: Sequence[int],
    size: int | None,
    overwrite: bool,
    tally: _Tally,
) -> None:
    config = members[0][1]
    # Learners of equal length end together.
    members = sorted(members, key=lambda member: steps[member[0]])
    with numerics(config.threads):
        try:
            if config.strategy != "plain":
                raise NotBatchable(f"strategy {config.strategy!r} has a loop of its own")
            if size is None:
                total = sum(steps[number] for number, *_ in members)
                size = choose_chunk([c for _, c, _ in members], total)
            for part in _even(members, size):
                ends = Chunk(part, overwrite, tally.add).train()
                tally.end(ends)
        except NotBatchable as reason:
            warnings.warn(
                f"model={config.model!r}: {len(members)} runs go one by one: {reason}",
                ReplicaWarning,
                stacklevel=3,
            )
            for member in members:
                _run_alone(member, overwrite, tally)


def _even(members: list[Numbered], size: int) -> list[list[Numbered]]:
    """As few parts of at most ``size`` as possible, of about equal sizes."""
    count = -(-len(members) // size)
    bounds = [round(i * len(members) / count) for i in range(count + 1)]
    return [members[a:b] for a, b in itertools.pairwise(bounds)]


def _run_alone(member: Numbered, overwrite: bool, tally: _Tally) -> None:
    number, config, folder = member
    done = 0

    def progress(at: Any) -> None:
        nonlocal done
        tally.add(at.step - done)
        done = at.step

    try:
        run(config, folder, overwrite=overwrite, on_progress=progress)
    except (ClmetaError, OSError) as error:
        tally.end({number: error})
    else:
        tally.end({number: None})


class _Tally:
    """Counts steps and ends, and reports now and then."""

    def __init__(self, steps: int, runs: int, on_progress: OnReplicasProgress | None) -> None:
        self.steps, self.runs, self.on_progress = steps, runs, on_progress
        self.done = self.finished = 0
        self.errors: dict[int, BaseException] = {}
        self.due = time.monotonic() + REPORT_EVERY

    def add(self, steps: int) -> None:
        self.done += steps
        if time.monotonic() >= self.due:
            self.report()

    def end(self, ends: dict[int, BaseException | None]) -> None:
        for number, error in ends.items():
            if error is None:
                self.finished += 1
            else:
                self.errors[number] = error

    def report(self) -> None:
        if self.on_progress is not None:
            state = (self.done, self.steps, self.finished, len(self.errors), self.runs)
            self.on_progress(ReplicasProgress(*state))
            self.due = time.monotonic() + REPORT_EVERY


__all__ = [
    "ReplicaWarning",
    "ReplicasFailed",
    "ReplicasProgress",
    "RunFolderError",
    "learners_at_a_time",
    "run_replicas",
]
