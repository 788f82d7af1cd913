"""Modes, hooks, copies and gradients of a base work as they do without MetaOptimize."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from wrapped_parts import Modes, Sharp, Strict, give, gradients, held, parameters, run

from clmeta import MetaOptimize

SHAPES = [(4, 3), (4,)]


def test_modes_reach_the_base():
    (w,) = parameters([(3,)])
    start = w.detach().clone()
    optimizer = MetaOptimize([w], Modes, alpha0=1e-2)
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        run(optimizer, [w], gradients(1, [(3,)]))
    optimizer.train()
    assert torch.equal(w, start + 1)
    run(optimizer, [w], gradients(2, [(3,)]))
    moved = w.detach().clone()
    optimizer.eval()
    torch.testing.assert_close(w.detach(), moved - 1)
    assert optimizer.param_groups[0]["training"] is False
    twin = copy.deepcopy(optimizer)
    twin.train()
    assert twin.param_groups[0]["training"] is True
    assert optimizer.param_groups[0]["training"] is False


@pytest.mark.parametrize("base", ["adamw", torch.optim.AdamW])
def test_modes_are_nothing_to_a_base_without_them(base):
    (w,) = parameters([(3,)])
    optimizer = MetaOptimize([w], base)
    optimizer.train()
    optimizer.eval()
    run(optimizer, [w], gradients(1, [(3,)]))


class Nested(torch.optim.SGD):
    """Calls the step of the class above, which torch hooks too."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("base", ["sgd", torch.optim.SGD, Nested, functools.partial(Nested)])
def test_torchs_global_hooks_run_once_a_step(base):
    torch.optim.SGD(parameters([(1,)]), lr=1.0)  # torch hooks a class when it is first built
    w = torch.nn.Parameter(torch.zeros(1))
    seen = []

    def halve(optimizer, args, kwargs):
        seen.append(("before", optimizer))
        for p in held(optimizer):
            p.grad.mul_(0.5)

    def after(optimizer, args, kwargs):
        seen.append(("after", optimizer))

    handles = [register_optimizer_step_pre_hook(halve), register_optimizer_step_post_hook(after)]
    try:
        optimizer = MetaOptimize([w], base, alpha0=1.0)
        assert seen == []  # building one is no step
        own = [optimizer.register_step_pre_hook(lambda *_: seen.append("own")) for _ in range(2)]
        w.grad = torch.ones(1)
        optimizer.step()
        assert w.item() == pytest.approx(-0.5)
        assert seen == [("before", optimizer), "own", "own", ("after", optimizer)]
        [handle.remove() for handle in own]
        w.grad = torch.ones(1)
        torch.optim.SGD([w], lr=1.0).step()
        assert len(seen) == 6
    finally:
        [handle.remove() for handle in handles]


class Clears(torch.optim.SGD):
    """Clears more than gradients."""

    def zero_grad(self, set_to_none=True):
        self.cleared = getattr(self, "cleared", 0) + 1
        for p in held(self):
            p.grad = None if set_to_none else torch.full_like(p, 7.0)


def test_a_base_with_its_own_zero_grad_uses_it():
    (w,) = parameters([(3,)])
    optimizer = MetaOptimize([w], Clears)
    run(optimizer, [w], gradients(1, [(3,)]))
    optimizer.zero_grad(set_to_none=False)
    assert w.grad.eq(7).all()
    optimizer.zero_grad()
    assert w.grad is None


def test_a_sharp_base_can_be_copied_with_what_it_holds():
    (w,) = parameters([(3,)])
    optimizer = MetaOptimize([w], lambda params: Sharp(params, momentum=0.9), eta=0.05)
    twin = copy.deepcopy(optimizer)
    ends = []
    for each in (optimizer, twin):
        (p,) = held(each)

        def closure(p=p):
            p.grad = 3 * p.detach() ** 2
            return (p**3).sum()

        for _ in range(4):
            closure()
            each.step(closure)
        ends.append((p.detach(), each.step_sizes()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_a_base_may_sort_its_parameters_and_checkpoints_still_fit():
    shapes = [(2, 3), (6, 3), (4, 3)]
    params, others = parameters(shapes), parameters(shapes, seed=7)
    make = functools.partial(MetaOptimize, base=Strict, eta=0.01)
    first = make([{"params": params, "orthogonal": False}])
    again = make([{"params": others, "orthogonal": False}])
    run(first, params, gradients(3, shapes))
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    last = next(iter(gradients(1, shapes, seed=8)))
    for optimizer, given in ((first, params), (again, others)):
        give(given, last)
        optimizer.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)
