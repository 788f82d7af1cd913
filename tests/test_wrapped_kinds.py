"""A base's own ways work as they do without MetaOptimize: state, groups, modes, hooks."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from wrapped_parts import Eager, Modes, Sharp, Strict, give, gradients, held, parameters, run, split

from clmeta import BadArgument, MetaOptimize

SHAPES = [(4, 3), (4,)]


def test_state_made_at_construction_is_kept_and_shown():
    params, others = parameters(SHAPES), parameters(SHAPES)
    ours = MetaOptimize(params, Eager, "none", alpha0=1e-2)
    theirs = Eager(others, lr=1e-2)
    assert torch.equal(ours.state[params[0]]["sum"], torch.full_like(params[0], 0.1))
    run(ours, params, gradients(3, SHAPES))
    run(theirs, others, gradients(3, SHAPES))
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)
    assert ours.state["steps"] == 3


class Forgets(torch.optim.SGD):
    """Throws all of its state away in every third step."""

    def step(self, closure=None):
        out = super().step(closure)
        self.count = getattr(self, "count", 0) + 1
        if self.count % 3 == 0:
            self.state = type(self.state)(dict)
        return out


def test_state_that_a_base_throws_away_is_gone_and_the_trace_is_not():
    forgets = functools.partial(Forgets, momentum=0.9)
    params, others = parameters(SHAPES), parameters(SHAPES)
    ours, theirs = (
        MetaOptimize(params, forgets, "sgd", eta=0.0, gamma=1.0),
        forgets(others, lr=1e-4),
    )
    run(ours, params, gradients(7, SHAPES))
    run(theirs, others, gradients(7, SHAPES))
    start = parameters(SHAPES)
    for p, q, w in zip(params, others, start, strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(ours.state[p]["h"], p.detach() - w)


class Fresh(torch.optim.SGD):
    """Begins anew whenever it finds a state empty, and counts how often."""

    begun = 0

    def step(self, closure=None):
        for p in held(self):
            if len(self.state[p]) == 0:
                type(self).begun += 1
                self.state[p]["seen"] = True
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(p.grad, alpha=group["lr"])


def test_a_base_never_sees_the_trace_among_its_state():
    (w,) = parameters([(3,)])
    optimizer = MetaOptimize([w], Fresh)
    run(optimizer, [w], gradients(1, [(3,)]))
    del optimizer.state[w]["seen"]  # only the trace is left
    begun = Fresh.begun
    run(optimizer, [w], gradients(2, [(3,)]))
    assert Fresh.begun == begun + 1
    assert optimizer.state[w]["h"].any()


# ---- settings of groups ----------------------------------------------------------------------


def momenta(blocks="scalar", meta="none"):
    a, b = parameters([(4, 3), (4,)])
    groups = [{"params": [("a", a)], "momentum": 0.9}, {"params": [("b", b)], "momentum": 0.5}]
    return [a, b], MetaOptimize(groups, torch.optim.SGD, meta, blocks, alpha0=1e-2)


@pytest.mark.parametrize("blocks", ["scalar", "tensor", "layer"])
def test_settings_of_groups_reach_the_base(blocks):
    params, ours = momenta(blocks)
    a, b = parameters([(4, 3), (4,)])
    groups = [{"params": [a], "momentum": 0.9}, {"params": [b], "momentum": 0.5}]
    theirs = torch.optim.SGD(groups, lr=1e-2)
    run(ours, params, gradients(5, SHAPES))
    run(theirs, [a, b], gradients(5, SHAPES))
    for p, q in zip(params, (a, b), strict=True):
        torch.testing.assert_close(p, q)
    assert [group["momentum"] for group in ours.param_groups] == [0.9, 0.5]


def test_settings_of_the_base_are_shown_and_may_be_changed_while_it_runs():
    params, ours = momenta()
    others, theirs = parameters([(4, 3), (4,)]), []
    theirs = torch.optim.SGD(others, lr=1e-2, momentum=0.9)
    theirs.add_param_group({"params": parameters([(2,)], seed=4)})
    for optimizer, given in ((ours, params), (theirs, others)):
        optimizer.param_groups[1]["momentum"] = 0.9
        run(optimizer, given, gradients(3, SHAPES))
        for group in optimizer.param_groups:
            group["momentum"] = 0.1
        run(optimizer, given, gradients(3, SHAPES))
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q)
    assert ours.param_groups[0]["nesterov"] is False


def test_settings_that_the_base_changes_are_shown_and_saved():
    (w,), (v,) = parameters([(3,)]), parameters([(3,)])
    optimizer, again = MetaOptimize([w], Modes), MetaOptimize([v], Modes)
    optimizer.train()
    run(optimizer, [w], gradients(3, [(3,)]))
    assert optimizer.param_groups[0]["steps"] == 3
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["steps"] == 3
    run(again, [v], gradients(1, [(3,)]))  # it was saved while it trained
    assert again.param_groups[0]["steps"] == 4
    assert optimizer.param_groups[0]["steps"] == 3


def test_a_base_checks_the_settings_of_its_groups_itself():
    a, b = parameters([(4, 3), (6, 3)])
    groups = [{"params": [a, b], "orthogonal": True}]
    optimizer = MetaOptimize(groups, Strict, alpha0=1e-2)
    run(optimizer, [a, b], gradients(3, [(4, 3), (6, 3)]))
    optimizer.add_param_group({"params": parameters([(2,)]), "orthogonal": False, "momentum": 0.5})
    assert [group["orthogonal"] for group in optimizer.param_groups] == [True, False]
    with pytest.raises(BadArgument, match="base='Strict': say for each group whether it is"):
        MetaOptimize([a], Strict)
    with pytest.raises(BadArgument, match=r"base='Strict': .*'rank'"):
        MetaOptimize([{**groups[0], "rank": 3}], Strict)


class Picky(torch.optim.SGD):
    """Takes matrices only, with no decay."""

    def add_param_group(self, param_group):
        if any(p.dim() != 2 for p in param_group["params"]):
            raise ValueError("matrices only")
        super().add_param_group(param_group)


def test_a_group_that_the_base_refuses_leaves_nothing_behind():
    (w,) = parameters([(4, 3)])
    optimizer = MetaOptimize([w], Picky)
    with pytest.raises(BadArgument, match="base='Picky': matrices only"):
        MetaOptimize(parameters([(4,)]), Picky)
    for refused, message in (
        ({"params": parameters([(4,)])}, "base='Picky': matrices only"),
        ({"params": parameters([(4, 2)]), "differentiable": True}, "differentiable=False"),
    ):
        with pytest.raises(BadArgument, match=message):
            optimizer.add_param_group(refused)
        assert list(optimizer.step_sizes()) == ["all"]
        run(optimizer, [w], gradients(1, [(4, 3)]))
    optimizer.add_param_group({"params": parameters([(4, 2)]), "name": "fits"})
    assert list(optimizer.step_sizes()) == ["all", "fits"]


def test_a_setting_that_a_factory_drops_is_refused():
    def drops(groups):
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=1.0)

    with pytest.raises(BadArgument, match=r"params\['group0'\] momentum=0.9: .*drops this setting"):
        MetaOptimize([{"params": parameters([(3,)]), "momentum": 0.9}], drops)


def test_a_base_may_divide_blocks_but_not_join_them():
    params = parameters()
    optimizer = MetaOptimize(params, split, eta=0.05)
    run(optimizer, params, gradients(10))
    twins = parameters()
    plain = MetaOptimize(twins, torch.optim.SGD, eta=0.05)
    run(plain, twins, gradients(10))
    assert optimizer.step_sizes() == pytest.approx(plain.step_sizes())

    def joins(groups):
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=1.0)

    with pytest.raises(BadArgument, match="the blocks 'param0' and 'param1' into one group"):
        MetaOptimize(parameters(), joins, blocks="tensor")


# ---- modes, hooks and gradients --------------------------------------------------------------


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
