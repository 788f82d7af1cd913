"""The files of a trajectory: what they are called, and whether all of them are there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clmeta.errors import RunFolderError
from clmeta.record.tables import opened, read_table

if TYPE_CHECKING:
    import numpy as np

#: What columns are kept as; step sizes, ``alpha.<block>``, as float32.
KINDS = {"step": "int64", "task": "int32", "loss": "float32", "correct": "float32"}
#: Of the table of tasks.
TASKS = {
    "task": "int32",
    "first_step": "int64",
    "steps": "int64",
    "online_accuracy": "float64",
    "test_accuracy": "float64",
}


def part_file(trajectory: Path, number: int) -> Path:
    """Where the part of a number lies."""
    return trajectory / f"part-{number:05d}.parquet"


def part_files(trajectory: Path) -> list[Path]:
    """The parts in a folder, in order, complete and under their own names.

    Raises:
        RunFolderError: names what is missing, or stands there beside the parts.
    """
    try:
        found = {path.name for path in trajectory.iterdir() if not path.name.startswith(("_", "."))}
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunFolderError(f"{trajectory} cannot be read: {reason}; repeat the run") from error
    known = sorted((p for p in found if part_file(trajectory, _number(p)).name == p), key=_number)
    strange = sorted(found.difference(known))
    if strange:
        raise RunFolderError(
            f"{trajectory} holds {_listed(strange)}, which is no part's name (as a service that "
            "syncs folders makes): keep one file of each part, under the part's own name"
        )
    expected = range(_number(known[-1]) + 1) if known else range(0)
    check_there(trajectory, expected)
    return [trajectory / name for name in known]


def read_trajectory(
    trajectory: Path, steps: int | None = None, columns: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Columns of all parts, in the order recorded: (steps,) each, as they were written.

    Args:
        trajectory: the folder.
        steps: how many there are, as the run's summary says; None for a run without one.
        columns: those wanted, of which step sizes may be missing; None for all.

    Raises:
        RunFolderError: if parts are missing, doubled, exchanged, damaged, or not all alike.
    """
    import numpy as np

    paths = part_files(trajectory)
    names = list(opened(paths[0]).schema_arrow.names) if paths else []
    kinds = {**KINDS, **{name: "float32" for name in names if name not in KINDS}}
    wanted = None if columns is None else {"step", *columns}
    parts = []
    at = 0
    for path in paths:
        part = read_table(path, kinds, wanted)
        if not np.array_equal(part["step"], np.arange(at, at + len(part["step"]))):
            mend = "bring back the part that was there, or repeat the run"
            raise RunFolderError(f"{path} does not go on at step {at}: {mend}")
        at += len(part["step"])
        parts.append(part)
    if not at:
        raise RunFolderError(f"{trajectory} holds no steps: repeat the run")
    if steps is not None and at != steps:
        raise RunFolderError(
            f"{trajectory} holds {at} steps, {paths[-1].name} the last of them, and the run had "
            f"{steps}: bring back the parts that are missing, or repeat the run"
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_there(trajectory: Path, numbers: range) -> None:
    """Raise RunFolderError, with their names, if parts of these numbers are missing."""
    paths = [part_file(trajectory, number) for number in numbers]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise RunFolderError(
            f"{trajectory} lacks {_listed(missing)}: bring back what was lost, or repeat the run"
        )


def keep_parts(trajectory: Path, parts: int, steps: int) -> None:
    """Leave the first parts of an unfinished run, which are to hold so many steps, and no others.

    Raises:
        RunFolderError: if some are missing or damaged, or hold other steps; nothing is removed.
    """
    check_there(trajectory, range(parts))
    kept = [part_file(trajectory, number) for number in range(parts)]
    there = sum(opened(path).metadata.num_rows for path in kept)
    if there != steps:
        raise RunFolderError(
            f"{trajectory} holds {there} steps in {parts} parts, and the run to go on with counts "
            f"{steps}: bring back its parts, or repeat the run"
        )
    past = [path for path in trajectory.glob("part-*") if path not in kept]
    for path in sorted(past, reverse=True):
        path.unlink()


def _number(name: str) -> int:
    digits = name.removeprefix("part-").removesuffix(".parquet")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
