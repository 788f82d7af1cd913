"""Several runs as an argument."""

from __future__ import annotations

from typing import Any

from clmeta.errors import require
from clmeta.ground.checks import listed
from clmeta.runs.config import RunConfig


def run_configs(argument: str, value: Any) -> list[RunConfig]:
    """Several runs as a list. Raises BadArgument for anything else, or none."""
    configs = listed(argument, value)
    fits = len(configs) > 0 and all(isinstance(config, RunConfig) for config in configs)
    require(fits, argument, value, "must be a list of at least one RunConfig")
    return configs
