"""Many learners in one process: runs that share a network and rules train as one batched program.

Each is what `clmeta.runs.runner.run` makes of the same config: same data, same initial weights,
same recording, step sizes equal to rounding (tests/test_replicas.py). Figures are in docs/speed.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clmeta.errors import ClmetaError, RunFolderError, require
from clmeta.ground.checks import count_or_none, listed, whole
from clmeta.ground.reading import as_path
from clmeta.record.runfolder import RunFolder
from clmeta.replicas.chunk import Chunk
from clmeta.replicas.going_on import Home, Member, begun_chunks, remove_spent
from clmeta.replicas.network import NotBatchable
from clmeta.replicas.program import Program, ReplicaWarning
from clmeta.replicas.progress import OnReplicasProgress, ReplicasFailed, ReplicasProgress, Tally
from clmeta.replicas.size import ELSEWHERE, ELSEWHERE_ON_DEVICE, choose_chunk, most_that_fit
from clmeta.replicas.together import together
from clmeta.runs.config import RunConfig
from clmeta.runs.prepared import Prepared, prepare
from clmeta.runs.runner import numerics, run
from clmeta.runs.several import run_configs

Numbered = tuple[int, RunConfig, Path]


def run_replicas(
    configs: Sequence[RunConfig],
    folders: Sequence[str | os.PathLike[str]],
    *,
    on_progress: OnReplicasProgress | None = None,
    chunk: int | None = None,
    overwrite: bool = False,
    along: bool = False,
) -> list[Path]:
    """Train and record all runs, batching those that share network and rule pair.

    Runs that were batched and killed go on from their last checkpoint, in the batch that they
    began in, whatever ``chunk`` is by then.

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
        along: leave finished runs as they are, but let them train along, so that those they are
            batched with round as they would have.

    Returns:
        The folders, as paths.

    Raises:
        BadArgument: before anything is trained or written, for a config that cannot work.
        RunFolderError: likewise, for a folder that holds a finished run.
        ReplicasFailed: after all runs, if some ended by an error of their own (a non-finite
            update, a full disk); what they recorded is kept.
    """
    configs = run_configs("configs", configs)
    paths = [as_path("folders", folder) for folder in listed("folders", folders)]
    require(len(paths) == len(configs), "folders", paths, f"give one for each of {len(configs)}")
    distinct = len({path.resolve() for path in paths}) == len(paths)
    require(distinct, "folders", paths, "two runs share a folder")
    chunk = count_or_none("chunk", chunk)
    for path in () if along else paths:
        RunFolder(path).check_free(overwrite)
    for beside in {path.resolve().parent for path in paths}:
        remove_spent(beside)
    steps = []
    begun, waiting = ([], range(len(configs))) if overwrite else begun_chunks(configs, paths)
    kinds = []
    for config in configs:
        prepared = prepare(config)
        steps.append(len(prepared.stream))
        kinds.append(_group(prepared))
    tally = Tally(sum(steps), len(configs), on_progress)
    for home, members in begun:
        with numerics(members[0].config.threads):
            ends = Chunk(members, home, False, tally.add, begun=True).train()
        tally.end(ends)
        numbers = {member.number for member in members if member.folder is not None}
        waiting = sorted({*waiting, *(numbers - ends.keys())})
    groups: dict[str, list[Numbered]] = {}
    for number in waiting:
        groups.setdefault(kinds[number], []).append((number, configs[number], paths[number]))
    for group in groups.values():
        _run_group(group, steps, chunk, overwrite, tally)
    tally.report()
    if tally.errors:
        raise ReplicasFailed(tally.errors, paths)
    return paths


def repeat_together(
    config: RunConfig,
    folder: str | os.PathLike[str],
    company: Sequence[RunConfig | None],
    *,
    on_progress: OnReplicasProgress | None = None,
) -> Path:
    """Repeat one run of several that trained together; the others train along, unrecorded.

    Killed, it goes on from its last checkpoint, as `run_replicas` does.

    Args:
        config: the run.
        folder: its folder.
        company: all of them in order, as `clmeta.replicas.company.company_of` gives them.
        on_progress: as for `run_replicas`.

    Raises:
        ClmetaError, OSError: what ended the run.
    """
    path = as_path("folder", folder)
    members = [Member(config, path, 0) if each is None else Member(each, None) for each in company]
    home = Home.of([(path, member.config) for member in members])
    remove_spent(home.path.parents[1])
    tally = Tally(sum(len(prepare(m.config).stream) for m in members), 1, on_progress)
    ends: dict[int, BaseException | None] = {}
    with numerics(config.threads):
        if home.begun and RunFolder(path).config_file.exists():
            ends = Chunk(members, home, False, tally.add, begun=True).train()
        if not ends:  # it begins, or anew where its own record is gone or damaged
            ends = Chunk(members, home, False, tally.add).train()
    error = ends[0]
    tally.report()
    if error is not None:
        raise error
    return path


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
    configs, processes = run_configs("configs", configs), whole("processes", processes, least=1)
    chunk = count_or_none("chunk", chunk)
    measure = measure and chunk is None
    config = configs[0] if measure else dataclasses.replace(configs[0], device="cpu")
    if config.strategy != "plain" or len(configs) == 1:
        return 1
    prepared = prepare(config)
    try:
        Program([prepared], prepared.config.engine)
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
    tally: Tally,
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
                tally.end(_chunk(part, overwrite, tally).train())
        except NotBatchable as reason:
            warnings.warn(
                f"model={config.model!r}: {len(members)} runs go one by one: {reason}",
                ReplicaWarning,
                stacklevel=3,
            )
            for member in members:
                _run_alone(member, overwrite, tally)


def _chunk(part: Sequence[Numbered], overwrite: bool, tally: Tally) -> Chunk:
    """Learners that begin; finished ones that are not to be replaced train along."""
    home = Home.of([(path, config) for _, config, path in part])
    members = []
    for number, config, path in part:
        done = RunFolder(path).finished and not overwrite
        members.append(Member(config, None) if done else Member(config, path, number))
    return Chunk(members, home, overwrite, tally.add)


def _even(members: list[Numbered], size: int) -> list[list[Numbered]]:
    """As few parts of at most ``size`` as possible, of about equal sizes."""
    count = -(-len(members) // size)
    bounds = [round(i * len(members) / count) for i in range(count + 1)]
    return [members[a:b] for a, b in itertools.pairwise(bounds)]


def _run_alone(member: Numbered, overwrite: bool, tally: Tally) -> None:
    number, config, folder = member
    done = 0
    if RunFolder(folder).finished and not overwrite:
        return

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


__all__ = [
    "ReplicaWarning",
    "ReplicasFailed",
    "ReplicasProgress",
    "RunFolderError",
    "learners_at_a_time",
    "run_replicas",
]
