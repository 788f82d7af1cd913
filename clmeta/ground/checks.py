"""Checks of numbers and of one of several names, those that MetaOptimize takes among them."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeGuard

from clmeta.errors import bad, require

#: Default bounds of step sizes per unit or weight, relative to alpha0; unbounded ones diverge.
FINE_BOUNDS = (1e-4, 1e2)
NUMBERS = ("alpha0", "eta", "gamma", "weight_decay")
#: Entries of a group that are MetaOptimize's; all others are a wrapped optimiser's, or a tool's.
OURS = frozenset(("params", "param_names", "name", "lr", "meta", "units", *NUMBERS))
NONFINITE = ("raise", "skip")
HESSIANS = ("free", "exact", "diagonal")
#: Defaults of MetaOptimize and of runs; the discount is for problems that change.
ALPHA0, ETA, GAMMA, WEIGHT_DECAY = 1e-4, 1e-3, 0.999, 0.0
DISCOUNT = "a discount lies in [0, 1]; the paper uses 0.999 for switching tasks, 1 for stationary"
#: The smallest and largest normal float32 number, for weights of any dtype.
TINY, HUGE = 2.0**-126, (2 - 2.0**-23) * 2.0**127
#: Up to here the products of two step sizes, as in second moments, are float32 numbers too.
LARGEST = math.sqrt(HUGE)


def whole(argument: str, value: Any, least: int | None = None) -> int:
    """A whole number as Python's own; numpy's and torch's count as well, true and false do not.

    Raises:
        BadArgument: for anything else, or a number below ``least``.
    """
    mend = "must be a whole number" + ("" if least is None else f" of at least {least}")
    try:
        number = operator.index(value)
    except TypeError:
        bad(argument, value, mend)
    allowed = not isinstance(value, bool) and (least is None or number >= least)
    require(allowed, argument, value, mend)
    require(abs(number) < 2**63, argument, number, f"must lie in [{least or 0}, 2^63)")
    return number


def count_or_none(argument: str, value: Any) -> int | None:
    """A whole number of at least 1; None stays None."""
    return None if value is None else whole(argument, value, least=1)


def number(argument: str, value: Any) -> float:
    """A number as Python's own; numpy's count as well, true and false do not.

    Raises:
        BadArgument: for anything else.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    require(is_number, argument, value, "must be a number")
    try:
        return float(value)
    except OverflowError:
        bad(argument, value, "must be a number of floating point, below 1e308")


def listed(argument: str, value: Any) -> list[Any]:
    """Several things as a list, where one text stands for a list of one.

    Raises:
        BadArgument: for what is neither.
    """
    if isinstance(value, str):
        return [value]
    try:
        return list(value)
    except TypeError:
        bad(argument, value, "must be a list")


def texts(argument: str, value: Any) -> list[str]:
    """Text as a list, where one stands for a list of one. Raises BadArgument for anything else."""
    values = listed(argument, value)
    require(
        all(isinstance(each, str) for each in values), argument, value, "must be a list of text"
    )
    return values


def mapping(argument: str, value: Any) -> dict[str, Any]:
    """A mapping whose keys are text, as a dict. Raises BadArgument for anything else."""
    fits = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    require(fits, argument, value, "must be a mapping with text as keys")
    return dict(value)


def finite(value: Any) -> TypeGuard[float]:
    """Whether something is a finite number; text, tensors and truth values are none."""
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    return bool(abs(number) < math.inf)


def check_number(argument: str, value: Any) -> float:
    """A finite number as Python's own: 0, or of a size that float32 holds.

    Raises:
        BadArgument: for another kind of thing (a bool, text, a tensor), and other numbers.
    """
    if not finite(value):
        bad(argument, value, f"must be a finite number; this is a {type(value).__name__}")
    sized = value == 0 or TINY <= abs(value) <= HUGE
    mend = f"is no number of float32, which has 0 and {TINY:.2g} to {HUGE:.2g}"
    require(bool(sized), argument, value, mend)
    return value if type(value) in (int, float) else float(value)


def positive(argument: str, value: Any) -> float:
    """A finite number above 0 as Python's own. Raises BadArgument for anything else."""
    value = check_number(argument, value)
    require(value > 0, argument, value, "must be above 0")
    return value


def check_level(value: Any) -> float:
    """A level of confidence. Raises BadArgument unless it is a number between 0 and 1."""
    level = check_number("level", value)
    require(0 < level < 1, "level", level, "must lie between 0 and 1, e.g. 0.95")
    return level


def check_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """alpha0, eta, gamma and weight_decay as Python's numbers; BadArgument for impossible ones."""
    numbers = {name: check_number(name, values[name]) for name in NUMBERS}
    alpha0, eta, gamma, kappa = numbers.values()
    require(alpha0 > 0, "alpha0", alpha0, "a step size must be above 0: positive, e.g. 1e-4")
    require(alpha0 <= LARGEST, "alpha0", alpha0, f"must be at most {LARGEST:.2g}; e.g. 1e-4")
    require(eta >= 0, "eta", eta, "must not be negative; the paper uses 1e-3")
    require(0 <= gamma <= 1, "gamma", gamma, DISCOUNT)
    require(kappa >= 0, "weight_decay", kappa, "must not be negative; 0 for none")
    return numbers


def one_of(argument: str, value: Any, names: Sequence[str]) -> None:
    """Raise BadArgument unless a value is one of some names."""
    mend = f"must be one of {', '.join(names)}"
    require(isinstance(value, str) and value in names, argument, value, mend)


def step_size_bounds(
    alpha0: float, low: float | None, high: float | None, fine: bool
) -> tuple[float | None, float | None]:
    """Bounds of step sizes; ``fine`` granularities have some by default."""
    if fine:
        low = alpha0 * FINE_BOUNDS[0] if low is None else low
        high = alpha0 * FINE_BOUNDS[1] if high is None else high
    return low, high


def check_bounds(alpha0: float, low: Any, high: Any, fine: bool) -> None:
    """Raise BadArgument for impossible bounds, or an alpha0 outside of them."""
    if low is not None:
        check_number("alpha_min", low)
    if high is not None and not (isinstance(high, float) and high == math.inf):
        check_number("alpha_max", high)
    low, high = step_size_bounds(alpha0, low, high, fine)
    require(low is None or low >= 0, "alpha_min", low, "must not be negative")
    require(high is None or high > (low or 0), "alpha_max", high, f"must exceed alpha_min={low}")
    require((low or 0) <= alpha0, "alpha_min", low, f"must not exceed alpha0={alpha0}")
    require(high is None or alpha0 <= high, "alpha_max", high, f"must be >= alpha0={alpha0}")
