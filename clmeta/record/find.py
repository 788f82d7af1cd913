"""Run folders by where they lie."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from clmeta.errors import RunFolderError, require


def find_runs(*folders: str | os.PathLike[str]) -> list[Path]:
    """Run folders at, or anywhere below, the given folders or globs; sorted, each once.

    Raises:
        RunFolderError: if one of them leads to no run folder.
    """
    require(len(folders) > 0, "folders", [], "name at least one folder that holds runs")
    found: dict[Path, None] = {}
    for given in folders:
        mend = "give each folder, text or a path, as an argument of its own: *folders for a list"
        require(isinstance(given, (str, os.PathLike)), "folders", given, mend)
        matches = [Path(match) for match in sorted(glob.glob(str(given)))] or [Path(given)]
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
