"""MetaOptimize with rules of the user's own."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_parts import build, feed, gradients, layers
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


class Normalised(Rule):
    """No formula of one number: it looks at all that it is given."""

    def update(self, g, state, t):
        return g / (g.norm() + 1e-8), state


@pytest.mark.parametrize("blocks", ["layer", "node", "weight"])
@pytest.mark.parametrize("level", ["base", "meta"])
@pytest.mark.parametrize("engine", ["auto", "eager", "masked"])
def test_a_rule_that_looks_at_several_numbers_is_given_whole_tensors(
    engine, level, blocks, monkeypatch
):
    """Large ones too, of which other rules are given a piece at a time."""
    monkeypatch.setattr("clmeta.engines.pieces.PIECE", 5)
    rules = {"base": "sgd", "meta": "sgd", level: Normalised()}
    make = layers(engine, blocks, alpha0=1e-2, eta=1e-1, gamma=1.0, alpha_min=0.0, **rules)
    params, optimizer = build(make, torch.float64)
    w = [p.detach().clone() for p in params]
    h = [torch.zeros_like(p) for p in params]
    owner = [0, 0, 1, 1] if blocks == "layer" else [0, 1, 2, 3]
    beta = [torch.full(fine(p, blocks), math.log(1e-2), dtype=torch.float64) for p in w]
    for grads in gradients(6):
        feed(params, grads)
        optimizer.step()
        z = [h_i * g for h_i, g in zip(h, grads, strict=True)]
        if blocks == "layer":
            sums = [sum(z[i].sum() for i in range(4) if owner[i] == b) for b in (0, 1)]
            moves = normal(torch.stack(sums)) if level == "meta" else torch.stack(sums)
            moves = [moves[b] for b in owner]
        else:
            sums = [z_i.sum_to_size(b.shape) for z_i, b in zip(z, beta, strict=True)]
            moves = list(map(normal, sums)) if level == "meta" else sums
        for i, g in enumerate(grads):
            dw = -beta[i].exp() * (normal(g) if level == "base" else g)
            w[i], h[i], beta[i] = w[i] + dw, h[i] + dw, beta[i] - 0.1 * moves[i]
    for p, mine in zip(params, w, strict=True):
        torch.testing.assert_close(p.detach(), mine, rtol=1e-12, atol=1e-14)


def normal(x):
    return x / (x.norm() + 1e-8)


def fine(p, blocks):
    """The shape of a tensor's step sizes."""
    if blocks == "layer":
        return ()
    return p.shape if blocks == "weight" else (len(p), *(1 for _ in p.shape[1:]))
