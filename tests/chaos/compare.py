"""Whether files can be read, and whether two folders hold the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet

from clmeta.errors import ClmetaError
from clmeta.record.checkpoint_file import Damaged, read

#: What two equal runs differ in: when they were, and where they were started.
WHEN = {"summary.json": ("seconds", "finished"), "environment.json": ("started", "command", "git")}
STAYS = (".lock",)
ASIDE = "trajectory.interrupted-"


def files(folder: Path) -> dict[str, Path]:
    """All files by their names below a folder, in order."""
    there = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path for path in there}


def unreadable(folder: Path) -> Iterator[str]:
    """Files that are there under their own name, and not whole."""
    for name, path in files(folder).items():
        if path.name.startswith(".") or path.name.endswith(".tmp") or ".sweep/claims" in name:
            continue
        try:
            if path.suffix == ".parquet":
                parquet.read_table(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".pt" and path.parent.name.endswith("checkpoints"):
                read(path)
        except (OSError, ValueError, ClmetaError, Damaged) as error:
            if path.exists():  # a process that was left alone goes on
                yield f"{name}: {type(error).__name__}: {error}"


def content(path: Path) -> object:
    """What two files that are equal have in common."""
    if path.name in WHEN:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in facts.items() if name not in WHEN[path.name]}
    return path.suffix if path.suffix == ".pdf" else path.read_bytes()  # a PDF holds its date


def unequal(found: Path, expected: Path) -> Iterator[str]:
    """Files that are missing, or hold something else."""
    there = files(found)
    for name, path in files(expected).items():
        if path.name in STAYS:
            continue
        if name not in there:
            yield f"{name} is missing"
        elif content(there[name]) != content(path):
            yield f"{name} differs"


def leftovers(found: Path, expected: Path) -> Iterator[str]:
    """Files and folders that an undisturbed process does not leave.

    What was recorded before there was any checkpoint may be kept beside what was done anew. A claim
    that was killed half written names nobody, and counts as alive for a while.
    """
    known = {path.relative_to(expected) for path in expected.rglob("*")}
    for path in found.rglob(".sweep/claims/.*"):
        if path.stat().st_size == 0 or not path.read_text().endswith("}"):
            known |= {path.relative_to(found), *path.relative_to(found).parents}
    for path in sorted(found.rglob("*")):
        name = path.relative_to(found)
        aside = any(part.startswith(ASIDE) for part in name.parts) and path.suffix != ".pt"
        if not (aside or name in known or path.name in STAYS):
            yield str(name)
