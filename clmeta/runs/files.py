"""Options from files: a run's folder, JSON or TOML."""

from __future__ import annotations

import os
import sys
from typing import Any

from clmeta.errors import BadArgument, bad
from clmeta.ground.reading import as_path, check_depth, loads
from clmeta.runs.trust import Trust, check_trusted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_options(
    path: str | os.PathLike[str], argument: str = "config", *, trust: Trust = False
) -> dict[str, Any]:
    """What a run folder's ``config.json``, a JSON file or a TOML file holds.

    Args:
        path: the folder or file.
        argument: what messages call it.
        trust: whether code that it names may be loaded; see `clmeta.runs.trust`.

    Raises:
        BadArgument: for a folder without ``config.json``, a file that is neither, or code that is
            not trusted.
    """
    file = as_path(argument, path)
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
        options = loads(text) if is_json else tomllib.loads(text)
        check_depth(options)
    except (ValueError, RecursionError) as error:
        bad(argument, said, f"not {'JSON' if is_json else 'TOML'} ({error}); mend the file")
    if not isinstance(options, dict):
        bad(argument, said, "must hold options by name: a JSON object, or TOML")
    check_trusted(argument, said, options, trust)
    return options
