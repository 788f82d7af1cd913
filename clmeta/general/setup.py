"""First values, meta step sizes and bounds of the meta-parameters, as vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from clmeta.errors import bad, require
from clmeta.general.layout import Layout
from clmeta.general.meta_parameters import Map
from clmeta.ground.checks import number
from clmeta.rules import Rule


def eta_of(eta: float | Mapping[str, float], kind: str, kinds: Mapping[str, Map]) -> float:
    """The meta step size of one learned kind.

    Raises:
        BadArgument: if it is negative, or a mapping does not name exactly the learned kinds.
    """
    if isinstance(eta, Mapping):
        if set(eta) != set(kinds):
            bad("eta", dict(eta), f"give one value for each of: {', '.join(kinds)}")
        eta = eta[kind]
    value = number("eta", eta)
    require(0 <= value < math.inf, "eta", eta, "a meta step size must be finite and not negative")
    return value


def meta_vectors(
    maps: Mapping[str, Map],
    layout: Layout,
    base: Rule,
    alpha0: float | Mapping[str, float],
    weight_decay: float,
    eta: float | Mapping[str, float],
    alpha_min: float | None,
    alpha_max: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(M,) first beta, meta step sizes, lower and upper bounds, and (B,) first step sizes."""
    alpha = layout.given("alpha0", alpha0)
    for value in alpha.values():
        require(0 <= value < math.inf, "alpha0", value, "step sizes are finite and not negative")
    parts: list[tuple[Tensor, ...]] = []
    for kind, map_ in maps.items():
        low, high = -math.inf, math.inf
        values, label = alpha, "alpha0"
        if kind == "alpha":
            low = _bound(map_, "alpha_min", alpha_min, low)
            high = _bound(map_, "alpha_max", alpha_max, high)
            require(low < high, "alpha_min", alpha_min, "must lie below alpha_max")
            for value in alpha.values():
                inside = (alpha_min is None or alpha_min <= value) and (
                    alpha_max is None or value <= alpha_max
                )
                mend = f"must lie between alpha_min={alpha_min} and alpha_max={alpha_max}"
                require(inside, "alpha0", value, mend)
        else:
            first = weight_decay if kind == "weight_decay" else getattr(base, kind)
            values, label = layout.given(kind, first), kind
        beta = layout.spread({block: map_.start(label, v) for block, v in values.items()})
        numbers = (eta_of(eta, kind, maps), low, high)
        parts.append((beta, *(torch.full_like(beta, number) for number in numbers)))
    beta, etas, lows, highs = (torch.cat(part) for part in zip(*parts, strict=True))
    return beta, etas, lows, highs, layout.spread(alpha)


def _bound(map_: Map, argument: str, value: float | None, none: float) -> float:
    """Bound of beta for one of the step size; ``none`` where there is none, or it is never met."""
    if value is None or value == none or value <= map_.low:
        return none
    return map_.start(argument, value)
