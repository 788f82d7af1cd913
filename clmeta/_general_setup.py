"""First values, meta step sizes and bounds of the meta-parameters, as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from clmeta._layout import Layout
from clmeta.errors import bad, require
from clmeta.meta_parameters import Map
from clmeta.rules import Rule

Numbers = list[float]


def eta_of(eta: float | Mapping[str, float], kind: str, kinds: Mapping[str, Map]) -> float:
    """The meta step size of one learned kind.

    Raises:
        BadArgument: if it is negative, or a mapping does not name exactly the learned kinds.
    """
    if isinstance(eta, Mapping):
        if set(eta) != set(kinds):
            bad("eta", dict(eta), f"give one value for each of: {', '.join(kinds)}")
        eta = eta[kind]
    require(0 <= eta < math.inf, "eta", eta, "a meta step size must be finite and not negative")
    return float(eta)


def meta_vectors(
    maps: Mapping[str, Map],
    layout: Layout,
    base: Rule,
    alpha0: float | Mapping[str, float],
    weight_decay: float,
    eta: float | Mapping[str, float],
    alpha_min: float | None,
    alpha_max: float | None,
) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """(M,) first beta, meta step sizes, lower and upper bounds, and the (B,) first step sizes."""
    beta: Numbers = []
    etas: Numbers = []
    low: Numbers = []
    high: Numbers = []
    alpha = layout.first_values("alpha0", alpha0)
    for value in alpha:
        require(0 <= value < math.inf, "alpha0", value, "step sizes are finite and not negative")
    for kind, map_ in maps.items():
        if kind == "alpha":
            beta += [map_.start("alpha0", value) for value in alpha]
            bounds = (
                -math.inf if not alpha_min else map_.start("alpha_min", alpha_min),
                math.inf if alpha_max in (None, math.inf) else map_.start("alpha_max", alpha_max),
            )
            require(bounds[0] < bounds[1], "alpha_min", alpha_min, "must lie below alpha_max")
        else:
            value = weight_decay if kind == "weight_decay" else getattr(base, kind)
            beta += [map_.start(kind, value)] * layout.size
            bounds = (-math.inf, math.inf)
        etas += [eta_of(eta, kind, maps)] * layout.size
        low += [bounds[0]] * layout.size
        high += [bounds[1]] * layout.size
    return beta, etas, low, high, alpha
