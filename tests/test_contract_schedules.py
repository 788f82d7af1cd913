"""A schedule sets fixed step sizes as it sets torch's, and never learned ones."""

from __future__ import annotations

import copy
import functools
import math
import pickle

import pytest
import torch
from contract_parts import SGDM, assert_same, everything, learn, net, twin_of
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler as schedules

from clmeta import BadArgument, MetaOptimize
from clmeta.rules import SGDm

FIXED = {
    "sgd": {"base": "sgd"},
    "sgdm": {"base": SGDm(accumulate=True)},
    "layer": {"base": SGDm(accumulate=True), "blocks": "layer"},
    "weight": {"base": SGDm(accumulate=True), "blocks": "weight"},
    "node": {"base": SGDm(accumulate=True), "blocks": "node"},
    "wrapped": {"base": SGDM, "blocks": "tensor"},
}
every_fixed = pytest.mark.parametrize("kind", FIXED)


def fixed(kind, model=None, **changes):
    model = net() if model is None else model
    options = {"meta": "none", "alpha0": 0.1, **FIXED[kind], **changes}
    return model, MetaOptimize(model.named_parameters(), **options)


def chained(optimizer):
    first = schedules.LinearLR(optimizer, 0.1, total_iters=3)
    return schedules.ChainedScheduler([first, schedules.ExponentialLR(optimizer, 0.9)])


def sequence(optimizer):
    first = schedules.ConstantLR(optimizer, 0.1, total_iters=2)
    then = schedules.CosineAnnealingLR(optimizer, 4)
    return schedules.SequentialLR(optimizer, [first, then], milestones=[2])


SCHEDULES = {
    "warm up from 0": lambda o: schedules.LambdaLR(o, lambda step: min(1.0, step / 3)),
    "linear": lambda o: schedules.LinearLR(o, 0.1, total_iters=4),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 6),
    "steps": lambda o: schedules.StepLR(o, 2, 0.5),
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.5, total_steps=20, cycle_momentum=False),
    "cycles": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    "chained": chained,
    "sequence": sequence,
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def step(model, optimizer, seed):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@every_fixed
@every_schedule
def test_a_scheduled_step_size_moves_weights_as_torchs_does(kind, schedule):
    model, optimizer = fixed(kind)
    other = net()
    momentum = 0.0 if kind == "sgd" else 0.9
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=momentum)
    both = schedule(optimizer), schedule(theirs)
    for seed in range(8):
        lr = theirs.param_groups[0]["lr"]
        assert [*optimizer.step_sizes().values()] == pytest.approx([lr] * len(optimizer.alpha))
        step(model, optimizer, seed)
        step(other, theirs, seed)
        for each in both:
            each.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_plateau_lowers_the_step_size():
    _, optimizer = fixed("layer")
    schedule = schedules.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for _ in range(2):
        schedule.step(1.0)
    assert optimizer.step_sizes() == pytest.approx({"0": 0.05, "2": 0.05})


@every_fixed
def test_what_is_written_by_hand_is_the_blocks_alpha(kind):
    model, optimizer = fixed(kind)
    names = optimizer.block_names
    for value in (0.25, torch.tensor(0.125), 0):
        optimizer.param_groups[0]["lr"] = value
        expected = {**dict.fromkeys(names, 0.1), names[0]: float(value)}
        assert optimizer.step_sizes() == pytest.approx(expected)
        assert optimizer.alpha[0] == value
        assert optimizer.param_groups[0]["lr"].data_ptr() == optimizer.alpha[0].data_ptr()
        before = model[0].weight.detach().clone()
        step(model, optimizer, 1)
        assert torch.equal(before, model[0].weight) == (value == 0)


@every_fixed
@every_schedule
@pytest.mark.parametrize("how", ["state dict", "distributed", "deepcopy"])
def test_a_schedule_goes_on_from_a_checkpoint(kind, schedule, how):
    model, optimizer = fixed(kind)
    schedulers = schedule(optimizer)
    for seed in range(3):
        step(model, optimizer, seed)
        schedulers.step()
    if how == "deepcopy":
        (other, loaded), resumed = copy.deepcopy((model, optimizer)), None
    else:
        other, loaded = fixed(kind)
        other.load_state_dict(model.state_dict())
        resumed = schedule(loaded)
        if how == "state dict":
            loaded.load_state_dict(optimizer.state_dict())
        else:
            set_optimizer_state_dict(other, loaded, get_optimizer_state_dict(model, optimizer))
        resumed.load_state_dict(schedulers.state_dict())
    assert loaded.step_sizes() == optimizer.step_sizes()
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, loaded, seed)
        if resumed is not None:
            schedulers.step()
            resumed.step()
    assert_same(everything(model, optimizer), everything(other, loaded))
    first, second = optimizer.param_groups[0], loaded.param_groups[0]
    assert first["initial_lr"] == second["initial_lr"]


def test_a_schedule_made_anew_finds_where_it_began_as_with_torch():
    model, other = net(), net()
    ours = functools.partial(MetaOptimize, meta="none", base="sgd", alpha0=0.1)
    theirs = functools.partial(torch.optim.SGD, lr=0.1)
    shown = []
    for make_one, each in ((ours, model), (theirs, other)):
        optimizer = make_one(each.named_parameters())
        schedule = schedules.ExponentialLR(optimizer, 0.5)
        step(each, optimizer, 0)
        schedule.step()
        loaded = make_one(each.named_parameters())
        loaded.load_state_dict(optimizer.state_dict())
        again = schedules.ExponentialLR(loaded, 0.5, last_epoch=0)
        step(each, loaded, 0)
        again.step()
        shown.append((float(loaded.param_groups[0]["lr"]), float(again.base_lrs[0])))
    assert shown[0] == pytest.approx(shown[1])


def test_an_optimiser_with_a_schedule_can_be_pickled():
    model, optimizer = fixed("layer")
    schedules.ExponentialLR(optimizer, 0.5)
    step(model, optimizer, 0)
    other, loaded = pickle.loads(pickle.dumps((model, optimizer)))
    step(other, loaded, 1)
    step(model, optimizer, 1)
    assert_same(everything(model, optimizer), everything(other, loaded))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "x", None, True, torch.ones(2), [0.1]])
def test_what_is_no_step_size_is_refused_by_the_blocks_name(value):
    model, optimizer = fixed("layer")
    optimizer.param_groups[1]["lr"] = value
    for read in (optimizer.step_sizes, optimizer.state_dict, lambda: optimizer.alpha):
        with pytest.raises(BadArgument, match=r"group\['lr'\] of block '2'"):
            read()
    before = model[0].weight.detach().clone()
    with pytest.raises(BadArgument, match=r"group\['lr'\] of block '2'"):
        step(model, optimizer, 0)
    assert torch.equal(before, model[0].weight)


def test_a_schedule_keeps_to_bounds_that_were_given():
    _, optimizer = fixed("layer", alpha_min=0.01, alpha_max=0.1)
    optimizer.param_groups[0]["lr"] = 0.01
    assert optimizer.step_sizes()["0"] == pytest.approx(0.01)
    optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(BadArgument, match=r"between alpha_min=0\.01 and alpha_max=0\.1"):
        optimizer.step_sizes()


LEARNED = {
    "layer": {"blocks": "layer"},
    "node": {"blocks": "node"},
    "wrapped": {"base": torch.optim.AdamW},
}


@pytest.mark.parametrize("options", LEARNED.values(), ids=LEARNED)
@every_schedule
def test_learned_step_sizes_take_no_schedule(options, schedule):
    model = net()
    optimizer = MetaOptimize(model.named_parameters(), **options)
    learn(model, optimizer, 2)
    before = [p.detach().clone() for p in model.parameters()]
    schedule(optimizer)
    with pytest.raises(BadArgument, match=r"group\['lr'\].*meta='none'"):
        step(model, optimizer, 0)
    assert_same(before, [*model.parameters()])


def test_fixed_step_sizes_of_units_are_all_their_blocks():
    """So a schedule reaches each of them, and what grows starts where its block is."""
    for blocks in ("node", "weight"):
        w = nn.Parameter(torch.zeros(3, 2))
        optimizer = MetaOptimize([("w", w)], "sgd", "none", blocks, alpha0=0.5)
        optimizer.param_groups[0]["lr"] = 0.25
        w.grad = torch.ones(3, 2)
        optimizer.step()
        assert torch.equal(w, torch.full((3, 2), -0.25))


def test_a_twin_keeps_the_scheduled_step_size_exactly():
    """What is written need not be exp of a number that float32 holds."""
    model, optimizer = twin_of(net(), "fixed")
    for value in (0.1, 0.3, 1e-5, 0.7):
        optimizer.param_groups[0]["lr"] = value
        _, loaded = twin_of(model, "fixed")
        loaded.load_state_dict(optimizer.state_dict())
        assert loaded.alpha[0] == torch.tensor(value)
