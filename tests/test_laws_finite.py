"""What a step writes is finite, on every engine, whatever finite numbers come in."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from benches import made
from laws import Case
from optimizer_parts import NAMES, QUICK, feed, params_of, slow
from torch import nn

from clmeta import MetaOptimize, NonFiniteError
from clmeta.rules import Adam

LARGEST = torch.finfo(torch.float32).max
#: alpha0, and the gradients' magnitudes step by step.
EXTREMES = {
    "a large step": (1e10, [1e30, 1e30]),
    "a meta-gradient beyond float32": (1.0, [1e37, 1e37, 1e37]),
    "a meta-gradient whose square is": (1.0, [1.0, 1e10, 1e12]),
    "the largest": (1e-3, [LARGEST, LARGEST]),
    "the largest that a square allows": (1e2, [1e18, 1.8e19, 1e19]),
}
PAIRS = [("sgd", "adam"), ("sgdm, accumulate", "sgd"), ("adam", "lion"), ("rmsprop", "rmsprop")]
WIDE = {"alpha_min": None, "alpha_max": None}


def extreme(grads, size, row):
    """A learner's gradients with some numbers as large as ``size``, of either sign."""
    for g in grads:
        flat = g[row].view(-1)
        flat[::3] = flat[::3].sign() * size
    return grads


def assert_finite(learners):
    z = learners.sizes.z
    assert all(x.isfinite().all() for x in learners.tensors() if x is not z)
    assert learners.sizes.alpha.isfinite().all()


@pytest.mark.parametrize("engine", [*QUICK, pytest.param("compiled", marks=slow)])
@pytest.mark.parametrize("granularity", ["layer", "node", "weight"])
@pytest.mark.parametrize("name", EXTREMES)
def test_only_finite_numbers_are_written_and_the_others_are_counted(engine, granularity, name):
    alpha0, sizes = EXTREMES[name]
    held = 0
    for (base, meta), learners in itertools.product(PAIRS, (0, 2)):
        case = Case(base, meta, granularity, learners, "dense", torch.float32)
        stepped = made(case, engine, alpha0=alpha0, nonfinite="skip", **WIDE)
        # A meta-gradient that overflows withholds the learner; of two, the last one alone.
        for grads, size in zip(case.gradients(), sizes, strict=False):
            stepped.step(extreme([g.clone() for g in grads], size, -1))
            assert_finite(stepped)
        withheld = stepped.sizes.withheld.tolist()
        assert max(withheld) <= len(sizes)
        assert withheld[:-1] == [0] * (len(withheld) - 1)
        held += withheld[-1]
        for grads in case.gradients()[4:6]:
            stepped.step(grads)
            assert_finite(stepped)
    assert held


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("granularity", ["layer", "node", "weight"])
@pytest.mark.parametrize("base", ["sgd", "adam", "lion"])
def test_only_the_numbers_that_are_not_finite_stay(engine, granularity, base):
    found = []
    for size in (1.0, LARGEST):
        params = params_of(dtype=torch.float32)
        how = {"alpha0": 10.0, "engine": engine, "nonfinite": "skip"}
        optimizer = MetaOptimize(zip(NAMES, params, strict=True), base, "adam", granularity, **how)
        grads = [torch.ones_like(p) for p in params]
        grads[0].view(-1)[0] = size
        before = params[0].detach().clone()
        feed(params, grads)
        optimizer.step()
        found.append(params[0].detach().view(-1).clone())
        if size != 1.0 and base != "lion":
            assert optimizer.withheld == 1
            assert found[1][0] == before.view(-1)[0]
    assert torch.equal(found[0][1:], found[1][1:])
    assert found[1].isfinite().all()


@pytest.mark.parametrize("engine", QUICK)
def test_what_was_kept_back_is_raised_once_values_are_read(engine):
    w, v = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    named = {"one": w, "two": v}.items()
    optimizer = MetaOptimize(named, "sgd", blocks="tensor", alpha0=1e10, engine=engine)
    for size in (1.0, 1e30, 1e30):
        w.grad, v.grad = torch.ones(3), torch.full((3,), size)
        optimizer.step()
    with pytest.raises(NonFiniteError, match=r"step 1: .*'two'.*2 in all"):
        optimizer.step_sizes()


@pytest.mark.parametrize("engine", QUICK)
def test_beta_goes_on_after_a_meta_gradient_whose_square_overflows(engine):
    w = nn.Parameter(torch.ones(3))
    how = {"alpha0": 1.0, "eta": 1e-2, "engine": engine, "nonfinite": "skip"}
    optimizer = MetaOptimize([w], "sgd", Adam(), **how)
    seen = []
    for size in (1.0, 1e12, 1e12, 1.0, 1.0, 1.0):
        w.grad = torch.full((3,), size)
        optimizer.step()
        seen.append(float(optimizer.alpha))
        assert all(x.isfinite().all() for x in optimizer.sizes.tensors())
    assert optimizer.withheld == 1
    assert seen[2] == seen[1]
    assert seen[-1] != seen[-2]


INNER = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", EXTREMES)
def test_what_a_torch_optimiser_made_non_finite_is_put_back(inner, name):
    alpha0, sizes = EXTREMES[name]
    params = params_of(dtype=torch.float32)
    how = {"alpha0": alpha0, "nonfinite": "skip", "blocks": "layer"}
    optimizer = MetaOptimize(zip(NAMES, params, strict=True), INNER[inner], "adam", **how)
    for size in (1.0, *sizes, 1.0):
        grads = [torch.ones_like(p) for p in params]
        grads[0].view(-1)[0] = size
        feed(params, grads)
        before = params[0].detach().clone()
        states = {k: x.clone() for k, x in optimizer.state[params[0]].items()}
        counted = optimizer.withheld
        optimizer.step()
        kept = [x for p in params for x in optimizer.state[p].values()]
        assert all(x.isfinite().all() for x in (*params, *kept, optimizer.alpha))
        if torch.equal(before, params[0]) and states:
            assert optimizer.withheld == counted + 1
            for k, x in states.items():
                assert torch.equal(optimizer.state[params[0]][k], x)


@pytest.mark.parametrize("kind", ["exact", "diagonal"])
@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_curvature_lets_nothing_through(kind, base):
    w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    how = {"alpha0": 1e5, "hessian": kind, "nonfinite": "skip"}
    optimizer = MetaOptimize([w], base, Adam(), **how)
    for scale in (1.0, 1e15, 1e30, 1.0):
        loss = (scale * w.square()).sum()
        (w.grad,) = torch.autograd.grad(loss, [w], create_graph=True)
        optimizer.step()
        kept = [w, optimizer.alpha, *optimizer.state[w].values()]
        assert all(x.isfinite().all() for x in kept)
    assert optimizer.withheld
