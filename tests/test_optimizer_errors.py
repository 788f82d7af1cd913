"""MetaOptimize refuses what cannot work, naming argument, value and mend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clmeta import BadArgument, MetaOptimize
from clmeta.rules import Adam, Rule

W = [nn.Parameter(torch.ones(2))]
NAMED = [("one.weight", W[0])]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaOptimize(W, gamma=1.5), r"gamma=1\.5: .*\[0, 1\]"),
        (lambda: MetaOptimize(W, alpha0=0), r"alpha0=0: .*positive"),
        (lambda: MetaOptimize(W, alpha0=math.nan), "alpha0=nan: must be a finite number"),
        (lambda: MetaOptimize(W, eta=-1.0), r"eta=-1\.0: must not be negative"),
        (lambda: MetaOptimize(W, weight_decay=-1), "weight_decay=-1"),
        (lambda: MetaOptimize(W, "adamm"), "base='adamm': unknown rule; did you mean 'adam'"),
        (lambda: MetaOptimize(W, 3), "base=3"),
        (lambda: MetaOptimize(W, meta="lino"), "meta='lino': .*known: .*lion"),
        (lambda: MetaOptimize(W, blocks="rows"), "blocks='rows': unknown .*known: .*layer"),
        (lambda: MetaOptimize(W, blocks="layer"), r"needs names; .*named_parameters"),
        (lambda: MetaOptimize(NAMED, blocks="head"), "belong to the last layer 'one'"),
        (lambda: MetaOptimize(NAMED, blocks={"a": "two"}), "no parameter has this prefix"),
        (lambda: MetaOptimize([]), "pass at least one parameter"),
        (lambda: MetaOptimize(W + W), "listed twice"),
        (lambda: MetaOptimize([torch.ones(2, dtype=torch.complex64)]), "real floating-point"),
        (lambda: MetaOptimize([{"weights": W}]), "dict with the key 'params'"),
        (lambda: MetaOptimize([{"params": W, "lr": 1}]), "is called alpha0"),
        (lambda: MetaOptimize([{"params": W, "gamma": 2}]), "gamma=2"),
        (lambda: MetaOptimize(W, alpha_min=1.0), r"alpha_min=1\.0: must not exceed alpha0"),
        (lambda: MetaOptimize(W, alpha_max=1e-9), "alpha_max=1e-09"),
        (lambda: MetaOptimize(W, nonfinite="ignore"), "nonfinite='ignore'"),
        (
            lambda: MetaOptimize(W, lambda p: torch.optim.AdamW(p, weight_decay=0.3)),
            r"weight_decay=0\.3.*to MetaOptimize",
        ),
        (lambda: MetaOptimize(W, lambda p: None), r"must return a torch\.optim\.Optimizer"),
        (lambda: MetaOptimize(W, torch.optim.LBFGS), "first-order"),
        (lambda: MetaOptimize(W, torch.optim.SGD, blocks="weight"), "one lr per block"),
        (lambda: Adam(rho=1.0), r"rho=1\.0: must lie in \[0, 1\)"),
    ],
)
def test_bad_input_names_argument_value_and_mend(make, message):
    with pytest.raises(BadArgument, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = MetaOptimize(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(BadArgument, match="dense gradients"):
        optimizer.step()


class Whole(Rule):
    def update(self, g, state, t):
        return g.sum(), state


class First(Rule):
    def update(self, g, state, t):
        return (g if t == 1 else 0.5 * g), state


class NoPair(Rule):
    def update(self, g, state, t):
        return g


class NoCount(Rule):
    def update(self, g, state):
        return g, state


class NoSlots(Rule):
    def init(self, like):
        return {"m": torch.zeros_like(like)}

    def update(self, g, state, t):
        return state["m"], {"m": g}


class Loses(Rule):
    slots = ("m",)

    def update(self, g, state, t):
        return g, {}


@pytest.mark.parametrize(
    ("rule", "level", "message"),
    [
        (Whole, "base", r"base='Whole': u is \(\) for a g of \(3,\)"),
        (Whole, "meta", r"meta='Whole': u is \(\) for a g of \(2,\)"),
        (First, "meta", r"meta='First': .*torch.where\(t == 1, a, b\)"),
        (NoPair, "base", r"base='NoPair': update\(self, g, state, t\) returns"),
        (NoCount, "base", "base='NoCount': .* positional argument"),
        (NoSlots, "base", r"base='NoSlots': its state is \['m'\] and its slots \(\)"),
        (Loses, "meta", "meta='Loses': m is NoneType"),
    ],
)
def test_a_rule_that_lacks_something_is_refused_by_name(rule, level, message):
    rules = {"base": "sgd", "meta": "sgd", level: rule()}
    with pytest.raises(BadArgument, match=message):
        MetaOptimize([nn.Parameter(torch.ones(3))], **rules)


def test_a_base_rule_may_decide_by_the_number_of_the_update():
    w = nn.Parameter(torch.zeros(1))
    optimizer = MetaOptimize([w], First(), "none", alpha0=1.0)
    for _ in range(2):
        w.grad = torch.ones(1)
        optimizer.step()
    assert w.item() == -1.5


@pytest.mark.parametrize("blocks", ["scalar", "tensor"])
def test_a_schedule_of_torchs_is_refused_in_any_loop(blocks):
    w, v = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = MetaOptimize([w, v], blocks=blocks)
    w.grad = v.grad = torch.ones(3)
    before = w.detach().clone()
    torch.optim.lr_scheduler.LinearLR(optimizer)
    with pytest.raises(BadArgument, match=r"group\['lr'\].*remove the schedule"):
        optimizer.step()
    assert torch.equal(before, w)


def test_an_assigned_lr_is_refused_by_the_blocks_name():
    w = nn.Parameter(torch.ones(3))
    optimizer = MetaOptimize([("layer.weight", w)], blocks="layer")
    optimizer.param_groups[0]["lr"] = 1.0
    w.grad = torch.ones(3)
    with pytest.raises(BadArgument, match=r"group\['lr'\] of block 'layer'=1.0"):
        optimizer.step()


def test_torchs_lr_is_refused_with_what_it_is_called_here():
    with pytest.raises(BadArgument, match=r"lr=0\.001: .* alpha0 is the first one"):
        MetaOptimize([nn.Parameter(torch.ones(3))], lr=1e-3)
