"""Options from files: a run's folder, JSON or TOML."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from clmeta.errors import BadArgument, bad

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_options(path: str | os.PathLike[str], argument: str = "config") -> dict[str, Any]:
    """What a run folder's ``config.json``, a JSON file or a TOML file holds.

    Raises:
        BadArgument: for a folder without ``config.json``, or a file that is neither.
    """
    file = Path(path)
    said = os.fspath(path)
    if file.is_dir():
        file = file / "config.json"
        if not file.exists():
            bad(argument, said, "this folder holds no config.json; give a run's folder")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise BadArgument(
            f"{argument}={said!r}: {reason}; give a run's folder, a JSON file or a TOML file"
        ) from None
    is_json = file.suffix == ".json" or text.lstrip().startswith("{")
    try:
        options = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError as error:
        bad(argument, said, f"not {'JSON' if is_json else 'TOML'} ({error}); mend the file")
    if not isinstance(options, dict):
        bad(argument, said, "must hold options by name: a JSON object, or TOML")
    return options
