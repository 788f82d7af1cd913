"""Checks of the numbers that MetaOptimize takes."""

from __future__ import annotations

import math
from typing import Any

from clmeta.errors import require

#: Default bounds of step sizes per unit or weight, relative to alpha0; unbounded ones diverge.
FINE_BOUNDS = (1e-4, 1e2)
NUMBERS = ("alpha0", "eta", "gamma", "weight_decay")
NONFINITE = ("raise", "skip")
HESSIANS = ("free", "exact", "diagonal")
DISCOUNT = "a discount lies in [0, 1]; the paper uses 0.999 for switching tasks, 1 for stationary"


def check_numbers(values: dict[str, Any]) -> None:
    """Raise BadArgument for an impossible alpha0, eta, gamma or weight_decay."""
    alpha0, eta, gamma, kappa = (values[name] for name in NUMBERS)
    for name in NUMBERS:
        value = values[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        mend = f"must be a finite number; this is a {type(value).__name__}"
        require(number and math.isfinite(value), name, value, mend)
    require(alpha0 > 0, "alpha0", alpha0, "a step size must be above 0: positive, e.g. 1e-4")
    require(eta >= 0, "eta", eta, "must not be negative; the paper uses 1e-3")
    require(0 <= gamma <= 1, "gamma", gamma, DISCOUNT)
    require(kappa >= 0, "weight_decay", kappa, "must not be negative; 0 for none")


def step_size_bounds(
    alpha0: float, low: float | None, high: float | None, fine: bool
) -> tuple[float | None, float | None]:
    """Bounds of step sizes; ``fine`` granularities have some by default."""
    if fine:
        low = alpha0 * FINE_BOUNDS[0] if low is None else low
        high = alpha0 * FINE_BOUNDS[1] if high is None else high
    return low, high


def check_bounds(alpha0: float, low: float | None, high: float | None, fine: bool) -> None:
    """Raise BadArgument for impossible bounds, or an alpha0 outside of them."""
    low, high = step_size_bounds(alpha0, low, high, fine)
    require(low is None or low >= 0, "alpha_min", low, "must not be negative")
    require(high is None or high > (low or 0), "alpha_max", high, f"must exceed alpha_min={low}")
    require((low or 0) <= alpha0, "alpha_min", low, f"must not exceed alpha0={alpha0}")
    require(high is None or alpha0 <= high, "alpha_max", high, f"must be >= alpha0={alpha0}")
