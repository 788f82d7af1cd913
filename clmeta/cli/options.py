"""Options of commands beside those of a run, each written once."""

from __future__ import annotations

import dataclasses
from typing import Any

from clmeta.runs.config import OPTIONS
from clmeta.runs.limits import MOST_CORES
from clmeta.runs.options import FLAG, RUN, TEXT, WHOLE, Kind, Option
from clmeta.runs.parse import parse_seeds

SEEDS_KIND = Kind("SEEDS", lambda argument, value: value, parse_seeds)


def own(
    name: str, about: str, *flags: str, kind: Kind = TEXT, panel: str = RUN, **more: Any
) -> Option:
    """An option of a command; its long flag follows from its name unless one is given."""
    flags = flags or (f"--{name.replace('_', '-')}",)
    return Option(name, more.pop("default", None), about, panel, kind, flags, **more)


def changed(option: Option, **changes: Any) -> Option:
    """An option with another default or other words about it."""
    return dataclasses.replace(option, **changes)


CONFIG = own(
    "config",
    "Start from this: a run's folder, or a JSON or TOML file of options; other options change it.",
    "--config",
    "-c",
)
SEEDS = own("seeds", "One run for each, e.g. 0-4 or 0,1,7-9.", kind=SEEDS_KIND, default_said="0")
OUTPUT = own("output", "Folder for the runs.", "--output", "-o")
JOBS = own("jobs", "Processes at a time.", "--jobs", "-j", kind=WHOLE, least=1, most=MOST_CORES)
OVERWRITE = own("overwrite", "Replace finished runs.", kind=FLAG, default=False)
SKIP_FINISHED = own(
    "skip_finished", "Keep finished runs and do the others.", kind=FLAG, default=False
)
DRY_RUN = own(
    "dry_run",
    "Check everything and list the runs, finished or not, without doing them.",
    kind=FLAG,
    default=False,
)
REPRODUCIBLE = own(
    "reproducible",
    "Train each run by itself, so that what comes out depends on its options and nothing else; "
    "runs that train together round together.",
    kind=FLAG,
    default=False,
)
TRUST = own(
    "trust",
    "Load the modules that the file of options names; it may be by somebody who means harm.",
    kind=FLAG,
    default=False,
)
IMPORTS = OPTIONS["imports"]
#: One process for each core.
CORES = changed(JOBS, default_said="one for each core; on a GPU one")
