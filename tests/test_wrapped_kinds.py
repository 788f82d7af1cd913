"""A base's own state and the settings of its groups work as they do without MetaOptimize."""

from __future__ import annotations

import functools

import pytest
import torch
from wrapped_parts import Eager, Modes, Strict, gradients, held, parameters, run, split

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
