"""Run folders by where they lie."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from clmeta.errors import RunFolderError, require
from clmeta.ground.reading import as_path


def find_runs(*folders: str | os.PathLike[str]) -> list[Path]:
    """Run folders at, or anywhere below, the given folders or globs; sorted, each once.

    What is a folder is no glob, whatever its name; ``~`` is home.

    Raises:
        RunFolderError: if one of them leads to no run folder.
    """
    require(len(folders) > 0, "folders", [], "name at least one folder that holds runs")
    found: dict[Path, None] = {}
    for given in folders:
        mend = "give each folder, text or a path, as an argument of its own: *folders for a list"
        require(isinstance(given, (str, os.PathLike)), "folders", given, mend)
        folder = as_path("folders", given)
        matches = _matches(folder) or [folder]
        inside = [
            config.parent
            for match in matches
            if match.is_dir()
            for config in sorted(match.rglob("config.json"))
            if (config.parent / "trajectory").is_dir()
        ]
        if not inside:
            raise RunFolderError(
                f"no run at or below {str(given)!r}: give a folder that holds config.json and "
                "trajectory/"
            )
        found.update(dict.fromkeys(path.resolve() for path in inside))
    return list(found)


def _matches(pattern: Path) -> list[Path]:
    """What a glob matches; as much of it as is a folder stands for that folder alone."""
    there = next(path for path in (pattern, *pattern.parents) if path.is_dir())
    rest = pattern.relative_to(there)
    return [Path(name) for name in sorted(glob.glob(os.path.join(glob.escape(str(there)), rest)))]
