"""GeneralMetaOptimize with rules of the user's own."""

from dataclasses import dataclass

import pytest
import torch
from definition import engine, nominal_run

from clmeta.errors import BadArgument
from clmeta.general import APPROXIMATIONS
from clmeta.rules import SGD, Rule


@dataclass(frozen=True)
class Normalised(Rule):
    """u = g / sqrt(1 + mean g^2): mixes the weights of a tensor."""

    strength: float = 1.0

    def update(self, g, state, t):
        return g / torch.sqrt(1 + self.strength * (g * g).mean()), state


@dataclass(frozen=True)
class Rounded(Rule):
    """A direction without derivative that does not say so."""

    def update(self, g, state, t):
        return torch.sign(g), state


@dataclass(frozen=True)
class Outside(Rule):
    """A direction that is computed outside torch."""

    def update(self, g, state, t):
        return torch.from_numpy(g.numpy() * 2), state


@dataclass(frozen=True)
class Counting(Rule):
    """State that is not of floating point."""

    def init(self, like):
        return {"n": torch.zeros((), dtype=torch.int64)}

    def update(self, g, state, t):
        return g, {"n": state["n"] + 1}


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_a_users_rule_works_at_both_levels_unchanged(approximation):
    optimiser = engine(
        Normalised(), Normalised(), 0.0, approximation=approximation,
        learn={"alpha": "exp", "strength": "exp"},
    )  # fmt: skip
    nominal_run(optimiser)
    values = optimiser.meta_parameters()
    assert (values["alpha"] != 0.05).all()
    assert (values["strength"] != 1.0).all()


@pytest.mark.parametrize(
    ("base", "meta", "options", "message"),
    [
        (Rounded(), SGD(), {}, "base=.*derivative zero by the gradient"),
        (SGD(), Rounded(), {"approximation": "2x2"}, "meta=.*derivative zero"),
        (Outside(), SGD(), {}, "base=.*torch cannot differentiate Outside"),
        (Counting(), SGD(), {}, "Counting's state 'n' must be of floating point"),
        (Normalised(), SGD(), {"learn": "strength"}, "say its range"),
    ],
)
def test_rules_that_cannot_be_differentiated_are_refused(base, meta, options, message):
    with pytest.raises(BadArgument, match=message):
        engine(base, meta, 0.0, **options)


def test_a_rule_without_derivative_is_welcome_where_none_is_needed():
    nominal_run(engine(Rounded(), Rounded(), 0.0, hessian="free"))
