"""Whether a run may go on from what another start of it left."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from clmeta.errors import RunFolderError
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import FACTS, OPTIONS, PROCESS
from clmeta.runs.parse import write_value
from clmeta.strategies.registry import CHECKPOINT

#: Options that must be the same for the same bits.
EXACT = tuple(name for name, each in OPTIONS.items() if each.identity or name in PROCESS)
MEND = "give the same options, --overwrite to start anew, or another --output"


def same_run(folder: RunFolder, content: dict[str, Any]) -> dict[str, Any]:
    """What ``config.json`` holds of the unfinished run that is to go on.

    Args:
        folder: of the run.
        content: what its ``config.json`` would hold now.

    Raises:
        RunFolderError: naming the options, or data, that are not the same.
    """
    there = folder.config
    usual = {name: OPTIONS[name].default for name in EXACT}
    before = {name: there.get(name, usual[name]) for name in EXACT}
    differs = [name for name in EXACT if before[name] != content[name]]
    if differs:
        said = ", ".join(
            f"{name} was {write_value(before[name])}, is now {write_value(content[name])}"
            for name in differs
        )
        raise RunFolderError(
            f"{folder.path} holds an unfinished run of other options: {said}; {MEND}"
        )
    if there.get(FACTS) != content[FACTS]:
        raise RunFolderError(
            f"{folder.path} holds an unfinished run of other data, or of a network that is built "
            f"otherwise now; {MEND}"
        )
    return there


def takes_checkpoints(strategy: Callable[..., Any]) -> bool:
    """Whether runs of a strategy can go on from where they were killed."""
    return CHECKPOINT in inspect.signature(strategy).parameters
