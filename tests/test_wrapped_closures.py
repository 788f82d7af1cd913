"""Bases that evaluate the closure themselves: they get it, and z is that of the gradient at w_t."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from wrapped_parts import Sharp, held, parameters

from clmeta import MetaOptimize

ALPHA0, ETA = 1e-2, 0.1


class Then(torch.optim.SGD):
    """Evaluates at w_t, then elsewhere, and steps by the second gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()
        for p in held(self):
            p.add_(0.1)
        closure()
        for p in held(self):
            p.sub_(0.1)
        super().step()
        return loss


class Elsewhere(torch.optim.SGD):
    """Evaluates at another point only, as averaging methods do."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in held(self):
            p.add_(0.1)
        loss = closure()
        for p in held(self):
            p.sub_(0.1)
        super().step()
        return loss


class NoClosure(torch.optim.SGD):
    """Takes no closure at all."""

    def step(self):
        super().step()


def problem(base, **settings):
    """f(w) = sum w^3 from [1, 2], and how often it was evaluated."""
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = MetaOptimize(
        [w], base, **{"meta": "sgd", "alpha0": ALPHA0, "eta": ETA, "gamma": 1.0} | settings
    )
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(w.detach().clone())
        optimizer.zero_grad()
        loss = (w**3).sum()
        loss.backward()
        return loss

    return w, optimizer, closure, calls


def slope(w):
    return 3 * w**2


def expected(shift, elsewhere, steps=3):
    """Weights and alpha of a base that steps by the slope at w + shift; z is of that at w."""
    w, h, beta = torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0, math.log(ALPHA0)
    for _ in range(steps):
        alpha = math.exp(beta)
        dw = -alpha * slope(w + shift(w))
        beta -= ETA * float((h * slope(w + elsewhere)).sum()) if torch.is_tensor(h) else 0.0
        w, h = w + dw, h + dw
    return w, math.exp(beta)


@pytest.mark.parametrize(
    ("base", "shift", "elsewhere", "evaluations"),
    [
        (torch.optim.SGD, 0.0, 0.0, 1),
        (NoClosure, 0.0, 0.0, 1),
        (Then, 0.1, 0.0, 2),
        (Elsewhere, 0.1, 0.1, 1),
    ],
)
def test_z_is_that_of_the_gradient_at_w_t_if_there_is_one(base, shift, elsewhere, evaluations):
    w, optimizer, closure, calls = problem(base)
    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert len(calls) == 3 * evaluations
    assert losses[0] == pytest.approx(9.0 if base is not Elsewhere else 1.1**3 + 2.1**3)
    end, alpha = expected(lambda w: shift, elsewhere)
    torch.testing.assert_close(w.detach(), end)
    assert optimizer.step_sizes()["all"] == pytest.approx(alpha)


def test_a_sharpness_aware_base_learns_from_the_gradient_before_its_step():
    w, optimizer, closure, calls = problem(Sharp)
    for _ in range(3):
        closure()
        optimizer.step(closure)
    assert len(calls) == 6
    end, alpha = expected(lambda w: 0.05 * slope(w), 0.0)
    torch.testing.assert_close(w.detach(), end)
    assert optimizer.step_sizes()["all"] == pytest.approx(alpha)


def test_gradients_of_the_last_step_are_not_taken_for_those_at_w_t():
    """`Elsewhere` leaves a gradient behind; keeping or clearing it must make no difference."""
    w, kept, closure, _ = problem(Elsewhere)
    v, cleared, other, _ = problem(Elsewhere)
    for _ in range(4):
        kept.step(closure)
        cleared.step(other)
        cleared.zero_grad()
    assert torch.equal(w, v)
    assert kept.step_sizes() == cleared.step_sizes()


def test_a_closure_gives_what_a_step_after_backward_gives():
    w, first, closure, _ = problem(torch.optim.AdamW, meta="adam", weight_decay=0.1)
    v, second, other, _ = problem(torch.optim.AdamW, meta="adam", weight_decay=0.1)
    for _ in range(5):
        first.step(closure)
        other()
        second.step()
    assert torch.equal(w, v)
    assert first.step_sizes() == second.step_sizes()


def test_without_the_closure_the_base_says_itself_what_it_needs():
    w, optimizer, closure, _ = problem(Sharp)
    closure()
    with pytest.raises(RuntimeError, match="sharpness-aware steps need a closure"):
        optimizer.step()
    optimizer.step(closure)
    assert w[0] < 1


@pytest.mark.parametrize(
    ("base", "call"), [(torch.optim.AdamW, 0), (Then, 0), (Then, 1), (Sharp, 0), (Sharp, 1)]
)
def test_an_evaluation_that_is_not_finite_is_withheld(base, call):
    w, optimizer, closure, calls = problem(base, nonfinite="skip")

    def step(poisoned):
        made = len(calls)

        def each():
            loss = closure()
            if poisoned and len(calls) == made + call + 1:
                w.grad[0] = math.nan
            return loss

        if base is Sharp:
            each()
        optimizer.step(each)

    step(poisoned=False)
    before, sizes = w.detach().clone(), optimizer.step_sizes()
    step(poisoned=True)
    assert optimizer.withheld == 1
    assert torch.equal(w, before)
    assert optimizer.step_sizes() == sizes
    step(poisoned=False)
    assert torch.isfinite(w).all()
    assert not torch.equal(w, before)


def test_hooks_of_other_optimisers_run_in_a_closure_too():
    _, optimizer, closure, _ = problem(torch.optim.SGD)
    v = torch.nn.Parameter(torch.ones(1))
    other, seen = torch.optim.SGD([v], lr=0.1), []

    def both():
        v.grad = torch.ones(1)
        other.step()
        return closure()

    handle = register_optimizer_step_pre_hook(lambda each, args, kwargs: seen.append(each))
    try:
        optimizer.step(both)
    finally:
        handle.remove()
    assert [type(each).__name__ for each in seen] == ["MetaOptimize", "SGD"]


def test_a_sharpness_aware_base_keeps_its_inner_momentum_in_checkpoints():
    def sharp(params):
        return Sharp(params, momentum=0.9)

    ends = []
    for reload in (False, True):
        w, optimizer, closure, _ = problem(sharp)
        for _ in range(3):
            closure()
            optimizer.step(closure)
        if reload:
            v, again, other, _ = problem(sharp)
            v.data.copy_(w.data)
            again.load_state_dict(optimizer.state_dict())
            w, optimizer, closure = v, again, other
        for _ in range(3):
            closure()
            optimizer.step(closure)
        ends.append((w.detach().clone(), optimizer.step_sizes()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_parameters_without_gradient_stay_where_they_are():
    w, unused = parameters([(3,), (3,)])
    optimizer = MetaOptimize([w, unused], torch.optim.SGD, weight_decay=0.5, alpha0=0.1)
    before = unused.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(unused, before)
