"""C programs read memory by address: what moves, changes or overflows must be noticed."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from optimizer_parts import every_granularity, needs_compiler
from torch import nn

from clmeta import BadArgument, MetaOptimize
from clmeta.rules import Adam, Rule

pytestmark = needs_compiler


def learn(w, optimizer, steps=3, start=0):
    for k in range(start, start + steps):
        w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(k)).to(w.dtype)
        optimizer.step()


@every_granularity
def test_weights_turned_under_the_same_address_are_noticed(granularity):
    found = []
    for engine in ("auto", "eager"):
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(4, 4))
        optimizer = MetaOptimize(
            [("a.w", w)], blocks=granularity, alpha0=1e-2, eta=1e-2, engine=engine
        )
        learn(w, optimizer)
        w.data = w.data.t()
        learn(w, optimizer, start=3)
        found.append(w.detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_gradient_stored_with_its_sign_flipped_is_read_right():
    def gradient(w):
        w.grad = torch._neg_view(-torch.ones(4, 4))
        assert w.grad.is_neg()

    for blocks in ("scalar", "weight"):
        w = nn.Parameter(torch.zeros(4, 4))
        optimizer = MetaOptimize([w], "sgd", "none", blocks, alpha0=0.1, engine="native")
        gradient(w)
        optimizer.step()
        torch.testing.assert_close(w.detach(), torch.full((4, 4), -0.1))


def test_layouts_may_take_turns_with_parameters_that_miss_gradients():
    found = []
    for engine in ("native", "eager"):
        a, b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
        optimizer = MetaOptimize([a, b], alpha0=0.1, eta=0, engine=engine)
        for k in range(9):
            a.grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(k))
            b.grad = torch.ones(3) if k % 7 == 0 else None
            if k % 7 == 0:  # laid out otherwise
                a.grad = a.grad.t().contiguous().t()
            optimizer.step()
        found.append((a.detach(), b.detach()))
    torch.testing.assert_close(*found)


# ---- rules that only look like formulas ----------------------------------------------------


@dataclass(frozen=True)
class Odd(Rule):
    """Its update is given by the test."""

    kind: str = ""
    slots: ClassVar[tuple[str, ...]] = ("m",)

    def update(self, g, state, t):
        return ODD[self.kind](g, state, t)


def in_place(g, state, t):
    m = state["m"]
    m *= 0.9
    m += g
    return m, state


class Counter:
    """How often a rule was called, which is no business of a rule's."""

    calls = 0

    def __call__(self, g, state, t):
        self.calls += 1
        return g * (1 + 0.1 * self.calls), state


COUNTER = Counter()
#: Those that look at t's own kind: they are formulas as meta updates, whose t is always a tensor,
#: or are refused there.
BASE_ONLY = {
    "equals": lambda g, s, t: (g if t == 1 else g * 0.5, s),
    "differs": lambda g, s, t: (g if t != 2 else -g, s),
    "member": lambda g, s, t: (g if t in (1, 3) else g * 0.5, s),
    "key": lambda g, s, t: (g * {1: 0.0, 2: 0.5}.get(t, 1.0), s),
    "kind": lambda g, s, t: (g if isinstance(t, int) and t % 2 else -g, s),
}
ODD = {
    **BASE_ONLY,
    "random": lambda g, s, t: (g * random.choice([0.0, 2.0]), s),
    "counter": COUNTER,
    "in place": in_place,
    "in place, late": lambda g, s, t: (s["m"] * 1.0, {"m": s["m"].add_(g)}),
    "logic": lambda g, s, t: (g * ((g > 0) | (g < -1)), s),
    "sum of truths": lambda g, s, t: (g * torch.add(g > 0, g < 1), s),
    "rounded": lambda g, s, t: (torch.round(g * 100), s),
}


def learnt(rules, granularity, engine):
    """Weights and step sizes by rules whose luck and count start anew."""
    for go in ("trying", "learning"):  # a rule that is tried is called more often
        random.seed(0)
        COUNTER.calls = 0
        w = nn.Parameter(torch.zeros(4, 4))
        how = {"alpha0": 0.1, "eta": 0.1, "alpha_min": 0.0, "engine": engine}
        optimizer = MetaOptimize([("a.w", w)], *rules, granularity, **how)
        random.seed(0)
        COUNTER.calls = 0
        learn(w, optimizer, 1 if go == "trying" else 6)
    beta = optimizer.state[w].get("beta", optimizer.alpha.log())
    return w.detach(), beta, optimizer.z


@every_granularity
@pytest.mark.parametrize("kind", ODD)
def test_a_base_rule_that_is_no_formula_is_called_as_it_is(kind, granularity):
    for meta in ("none", "sgd"):
        rules = Odd(kind), meta
        mine, theirs = (learnt(rules, granularity, engine) for engine in ("auto", "eager"))
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)
        with pytest.raises(BadArgument, match=r"engine='native': .*; 'auto' takes what there is"):
            learnt(rules, granularity, "native")


@every_granularity
@pytest.mark.parametrize("kind", sorted(ODD.keys() - BASE_ONLY))
def test_a_meta_rule_that_is_no_formula_is_called_as_it_is(kind, granularity):
    rules = "sgd", Odd(kind)
    mine, theirs = (learnt(rules, granularity, engine) for engine in ("auto", "eager"))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    if granularity in ("node", "weight"):  # where a program moves beta too
        with pytest.raises(BadArgument, match=r"engine='native': .*; 'auto' takes what there is"):
            learnt(rules, granularity, "native")
    else:
        for a, b in zip(learnt(rules, granularity, "native"), mine, strict=True):
            assert torch.equal(a, b)


@dataclass(frozen=True)
class Scaled(Rule):
    """A frozen rule whose option can change all the same."""

    scale: list = field(default_factory=lambda: [1.0])

    def update(self, g, state, t):
        return g * self.scale[0], state


def test_an_option_that_can_change_is_read_at_every_step():
    w, rule = nn.Parameter(torch.zeros(1)), Scaled()
    optimizer = MetaOptimize([w], rule, "none", alpha0=1.0)
    for rule.scale[0] in (1.0, 2.0):
        w.grad = torch.ones(1)
        optimizer.step()
    assert w.item() == -3.0


@dataclass(frozen=True)
class Clamped(Rule):
    """NaN where the gradient is negative, through every function that could lose it."""

    kind: str = "clamp"

    def update(self, g, state, t):
        root, one = torch.sqrt(g), 1 + 0 * g
        found = {
            "clamp": lambda: root.clamp(min=1e-8, max=5.0),
            "maximum": lambda: torch.maximum(one, root),
            "minimum": lambda: torch.minimum(root, one),
            "fmax": lambda: torch.fmax(root, one),
        }[self.kind]()
        return found, state


@pytest.mark.parametrize("kind", ["clamp", "maximum", "minimum", "fmax"])
def test_nan_is_lost_only_where_torch_loses_it(kind):
    found = []
    for engine in ("native", "eager"):
        w = nn.Parameter(torch.zeros(3))
        how = {"alpha0": 0.1, "engine": engine, "nonfinite": "skip"}
        optimizer = MetaOptimize([w], Clamped(kind), "none", **how)
        w.grad = torch.tensor([-1.0, 0.25, 9.0])
        optimizer.step()
        found.append(w.detach())
        assert optimizer.withheld == (kind != "fmax")
    torch.testing.assert_close(*found)
    assert (found[0][0] == 0) == (kind != "fmax")  # what is not a number was kept back


def test_a_meta_update_that_is_not_a_number_does_not_become_a_step_size():
    for engine in ("native", "eager"):
        w = nn.Parameter(torch.ones(3))
        how = {"eta": 0.1, "engine": engine, "nonfinite": "skip"}
        optimizer = MetaOptimize([w], "sgd", Adam(eps=0.0), **how)
        before = optimizer.alpha.clone()
        w.grad = torch.ones(3)
        optimizer.step()  # h = 0, so the meta update divides 0 by 0
        assert torch.equal(optimizer.alpha, before)
        assert optimizer.withheld == 1
        optimizer.step()
        assert optimizer.withheld == 1
        assert not torch.equal(optimizer.alpha, before)


@dataclass(frozen=True)
class Backwards(Rule):
    """State in another order than its slots, and in another dtype."""

    dtype: str = "float32"
    slots: ClassVar[tuple[str, ...]] = ("a", "b")

    def init(self, like):
        zeros = torch.zeros_like(like, dtype=getattr(torch, self.dtype))
        return {"b": zeros, "a": zeros.clone()}

    def update(self, g, state, t):
        a, b = state["a"] * 0.5 + g, state["b"] + 2 * g
        return a + 0.1 * b, {"a": a.to(state["a"]), "b": b.to(state["b"])}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_state_in_another_order_or_dtype_is_not_mixed_up(dtype):
    found = []
    for engine in ("native", "eager"):
        w = nn.Parameter(torch.ones(3))
        how = {"alpha0": 1e-2, "eta": 1e-2, "engine": engine}
        optimizer = MetaOptimize([w], "sgd", Backwards(dtype), **how)
        learn(w, optimizer, 6)
        found.append([optimizer.alpha, *(optimizer.sizes.state[k].double() for k in "ab")])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0)


def test_a_checkpoint_keeps_a_meta_state_of_another_dtype():
    w = nn.Parameter(torch.ones(3))
    saved, loaded = (MetaOptimize([w], "sgd", Backwards("float64")) for _ in range(2))
    learn(w, saved)
    saved.sizes.state["a"].fill_(1 + 1e-12)  # more digits than beta's dtype has
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert torch.equal(loaded.sizes.state["a"], saved.sizes.state["a"])


def test_a_checkpoint_of_another_precision_is_taken_over_in_ones_own():
    w, v = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    saved, loaded = MetaOptimize([w]), MetaOptimize([v])
    learn(w, saved)
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert {x.dtype for x in loaded.sizes.state.values()} == {torch.float64}
    learn(v, loaded, start=3)
    learn(w, saved, start=3)
    torch.testing.assert_close(loaded.alpha.float(), saved.alpha, rtol=1e-5, atol=0)
