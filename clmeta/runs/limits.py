"""The numbers of a run: each possible by itself, and beside the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clmeta.errors import require
from clmeta.ground.checks import ALPHA0, ETA, GAMMA, NUMBERS, WEIGHT_DECAY, check_numbers
from clmeta.ground.seeds import check_seed

#: More threads or processes than any machine has cores; as many would not start.
MOST_CORES = 1024
#: The options that are looked at together.
TOGETHER = (*NUMBERS, "alpha_min", "alpha_max", "seed")


def check_run_numbers(options: Mapping[str, Any]) -> None:
    """Raise BadArgument for step sizes, discounts, bounds or a seed that cannot work.

    Args:
        options: those named in `TOGETHER`, each already of its kind.
    """
    usual = dict(zip(NUMBERS, (ALPHA0, ETA, GAMMA, WEIGHT_DECAY), strict=True))
    for name in NUMBERS:
        for number in _each(options[name]):
            check_numbers({**usual, name: number})
    low, high = options["alpha_min"], options["alpha_max"]
    require(low is None or 0 <= low < math.inf, "alpha_min", low, "must lie in [0, infinity)")
    require(high is None or high > (low or 0), "alpha_max", high, f"must exceed alpha_min={low}")
    first = options["alpha0"]
    for number in _each(first):
        inside = (low or 0) <= number <= (math.inf if high is None else high)
        require(inside, "alpha0", first, f"must lie between alpha_min={low} and alpha_max={high}")
    check_seed(options["seed"])


def _each(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]
