"""MetaOptimize with rules of the user's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clmeta import BadArgument, MetaOptimize
from clmeta.rules import Adam, RMSprop, Rule, SGDm


def test_a_users_own_rule_is_one_class():
    class SignSGD(Rule):
        def update(self, g, state, t):
            return torch.sign(g), state

    w = nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = MetaOptimize([w], SignSGD(), "sgd", alpha0=0.5, eta=0.0)
    w.grad = torch.tensor([2.0, -3.0])
    optimizer.step()
    assert w.tolist() == [0.5, -0.5]


def test_a_users_rule_may_return_its_old_state_as_direction():
    class Stale(Rule):
        slots = ("m",)

        def update(self, g, state, t):
            return state["m"], {"m": g}

    w = nn.Parameter(torch.zeros(1))
    optimizer = MetaOptimize([w], Stale(), "none", alpha0=1.0)
    for g in (1.0, 2.0, 4.0):
        w.grad = torch.tensor([g])
        optimizer.step()
    assert w.item() == -(0.0 + 1.0 + 2.0)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (SGDm, {"accumulate": "False"}, "accumulate='False': must be true or false"),
        (SGDm, {"rho": "abc"}, "rho='abc': must be a number"),
        (Adam, {"lam": True}, "lam=True: must be a number"),
        (RMSprop, {"eps": None}, "eps=None: must be a number"),
    ],
)
def test_options_of_another_kind_are_refused(rule, options, message):
    with pytest.raises(BadArgument, match=message):
        rule(**options)


@pytest.mark.parametrize("blocks", ["scalar", "node", "weight"])
def test_a_weight_of_no_dimension_is_a_weight_like_others(blocks):
    seen = []
    for shape in ((), (1,)):
        w = nn.Parameter(torch.ones(shape))
        optimizer = MetaOptimize([w], "sgd", "sgd", blocks, alpha0=0.1, eta=0.1)
        for _ in range(3):
            w.grad = w.detach().clone()
            optimizer.step()
        seen.append((w.item(), list(optimizer.step_sizes().values())))
    assert seen[0] == seen[1]
    assert seen[0][0] < 1
