"""Which meta-parameters are learned, and the maps from beta to their valid ranges.

The paper learns step sizes, alpha = exp(beta). Any number that enters the base update
differentiably can be learned in the same way (docs/method.md; the paper's Sec. 9 leaves it
open): momentum rho = sigmoid(beta), weight decay kappa = exp(beta), and so on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.func import jvp

from clmeta.errors import bad, require
from clmeta.lookup import Wanted
from clmeta.registry import Registry
from clmeta.rules import Rule


@dataclass(frozen=True)
class Map:
    """An increasing map from beta onto an open range of values.

    Args:
        forward: beta to value, on tensors.
        inverse: value to beta, on numbers.
        low, high: the open range of values.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[float], float]
    low: float = -math.inf
    high: float = math.inf

    def start(self, argument: str, value: float) -> float:
        """The beta of a first value.

        Raises:
            BadArgument: outside the open range, where beta would be infinite.
        """
        mend = f"learned, it must start strictly between {self.low:g} and {self.high:g}"
        require(self.low < value < self.high, argument, value, mend)
        return self.inverse(value)


MAPS: Registry[Map] = Registry(
    "map", Wanted(f"a {Map.__module__}.Map", lambda found: isinstance(found, Map))
)
MAPS.register("exp", about="Positive values, changed by factors.")(
    Map(torch.exp, math.log, low=0.0)
)
MAPS.register("sigmoid", about="Values between 0 and 1.")(
    Map(torch.sigmoid, lambda p: math.log(p / (1 - p)), low=0.0, high=1.0)
)
MAPS.register("identity", about="Any value, changed additively.")(
    Map(lambda beta: beta, lambda value: value)
)

DEFAULT_MAPS = {
    "alpha": "exp",
    "weight_decay": "exp",
    "rho": "sigmoid",
    "lam": "sigmoid",
    "c": "sigmoid",
}
#: Meta-parameters of the base update itself; all others are fields of its rule.
OF_THE_UPDATE = ("alpha", "weight_decay")

Learn: TypeAlias = "str | Sequence[str] | Mapping[str, str]"


def parse_learn(learn: Learn, base: Rule) -> dict[str, Map]:
    """Kind of meta-parameter to its map, in order.

    Args:
        learn: names, or a mapping from name to the name of a map in ``MAPS``.
        base: base rule, whose numeric fields can be learned.

    Raises:
        BadArgument: for a name that is no meta-parameter, one without a known map, or a field
            on which the rule's direction does not depend differentiably.
    """
    if isinstance(learn, str):
        learn = (learn,)
    named = dict(learn) if isinstance(learn, Mapping) else {k: DEFAULT_MAPS.get(k) for k in learn}
    fields = [
        f.name
        for f in dataclasses.fields(base)
        if isinstance(getattr(base, f.name), float) and f.name != "eps"
    ]
    known = ", ".join((*OF_THE_UPDATE, *fields))
    require(len(named) > 0, "learn", learn, f"name at least one of: {known}")
    maps = {}
    for kind, map_name in named.items():
        rule = type(base).__name__
        if kind not in OF_THE_UPDATE and kind not in fields:
            bad("learn", kind, f"{rule} has no such meta-parameter; it has: {known}")
        if map_name is None:
            bad("learn", kind, f"say its range: learn={{{kind!r}: 'exp' | 'sigmoid' | 'identity'}}")
        maps[kind] = MAPS.get(map_name, f"learn[{kind!r}]")
        if kind not in OF_THE_UPDATE and not direction_depends_on(base, kind):
            bad(
                "learn",
                kind,
                f"the derivative of {rule}'s direction with respect to {kind} is zero, so it "
                "cannot be learned; use a smooth rule (for Lion: clmeta.softlion.SoftLion)",
            )
    return maps


def _third_direction(rule: Rule, gradients: Tensor) -> Tensor:
    state = rule.init(gradients[0])
    for t, g in enumerate(gradients, start=1):
        u, state = rule.update(g, state, t)
    return u


def _samples() -> Tensor:
    # Fixed and away from zero, so that no derivative vanishes by accident.
    return torch.tensor([[0.7, -1.3], [-0.4, 0.9], [1.1, 0.6]], dtype=torch.float64)


def direction_depends_on(rule: Rule, field: str) -> bool:
    """Whether the third direction of a sample run has a derivative with respect to a field."""
    value = torch.tensor(float(getattr(rule, field)), dtype=torch.float64)

    def run(v: Tensor) -> Tensor:
        return _third_direction(dataclasses.replace(rule, **{field: v}), _samples())

    return bool(jvp(run, (value,), (torch.ones_like(value),))[1].abs().max() > 0)


def direction_depends_on_gradient(rule: Rule) -> bool:
    """Whether the third direction of a sample run has a derivative with respect to gradients."""
    g = _samples()
    tangent = torch.tensor([[0.3, 0.5], [-0.8, 0.2], [0.9, -0.7]], dtype=g.dtype)
    return bool(jvp(lambda x: _third_direction(rule, x), (g,), (tangent,))[1].abs().max() > 0)
