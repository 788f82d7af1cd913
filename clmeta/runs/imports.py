"""Modules of users' own, imported before names are looked up, so that what they register counts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from clmeta.errors import BadArgument
from clmeta.lookup import load_module


def find_from_here() -> None:
    """Make modules of the working folder importable, as ``python -m`` does, but searched last."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def import_modules(names: Iterable[str]) -> None:
    """Import each module; the working folder is searched last.

    Raises:
        BadArgument: for a module that is missing or fails, saying that its names are needed.
    """
    for name in names:
        if name in sys.modules:
            continue
        find_from_here()
        try:
            load_module(name, "imports")
        except BadArgument as error:
            raise BadArgument(f"{error}; it registers names that are used here") from error
