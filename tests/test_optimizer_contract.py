"""MetaOptimize behaves as torch's own optimisers do: gradients, groups, closures, weights."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_parts import MAKERS, build, every_kind, feed, gradients, params_of, run
from torch import nn

from clmeta import MetaOptimize


@every_kind
def test_gradients_are_never_written(make):
    params, optimizer = build(make)
    for grads in gradients(4):
        feed(params, grads)
        held = [p.grad for p in params]
        copies = [g.clone() for g in held]
        optimizer.step()
        for p, g, before in zip(params, held, copies, strict=True):
            assert p.grad is g
            assert torch.equal(g, before)


@every_kind
def test_parameters_without_gradient_are_skipped_and_shift_nothing(make):
    params, optimizer = build(make)
    other, reference = build(make)
    for grads in gradients(6):
        feed(params, grads)
        feed(other, grads)
        for p in (*params[:2], *other[2:]):
            p.grad = None
        optimizer.step()
        reference.step()
    start = params_of(dtype=torch.float32)
    assert all(torch.equal(p, q) for p, q in zip(params[:2], start[:2], strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(params[2:], start[2:], strict=True))
    ours, theirs = optimizer.step_sizes(), reference.step_sizes()
    still = [name for name in ours if name.startswith("one")]
    assert all(ours[name] == pytest.approx(1e-4) for name in still)
    assert all(theirs[name] == pytest.approx(1e-4) for name in theirs if name not in still)


@every_kind
def test_a_late_parameter_does_not_stall_its_block(make):
    params, optimizer = build(make)
    for step, grads in enumerate(gradients(6)):
        feed(params, grads)
        if step < 3:
            params[1].grad = None
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in params)
    assert not torch.equal(params[1], params_of(dtype=torch.float32)[1])


def test_closure_gives_its_loss_with_gradients_on():
    w = nn.Parameter(torch.ones(2))
    optimizer = MetaOptimize([w])

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert w.grad is not None
    optimizer.zero_grad()
    assert w.grad is None


@every_kind
def test_a_group_added_later_starts_at_its_own_alpha0(make):
    params, optimizer = build(make)
    run(params, optimizer, gradients(3))
    before = optimizer.step_sizes()
    new = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [new], "name": "new", "alpha0": 0.25})
    after = optimizer.step_sizes()
    assert after == {**before, "new": 0.25}
    new.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(new, torch.ones(3))
    assert optimizer.param_groups[-1]["lr"].item() == optimizer.alpha[-1].item()


def test_the_groups_lr_is_always_the_step_size_in_use():
    params, optimizer = build(MAKERS["auto"])
    seen = optimizer.param_groups[1]["lr"]
    run(params, optimizer, gradients(4))
    assert seen.item() != pytest.approx(1e-4, rel=1e-6)
    assert seen.item() == optimizer.step_sizes()["two"]


def test_groups_keep_their_own_settings():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MetaOptimize(
        [
            {"params": [a], "name": "decayed", "weight_decay": 0.5},
            {"params": [b], "alpha0": 1e-2},
        ],
        "sgd",
        "none",
        alpha0=1e-1,
    )
    assert optimizer.block_names == ["decayed", "group1"]
    a.grad, b.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert a.tolist() == pytest.approx([0.95, 0.95])
    assert b.tolist() == [1.0, 1.0]
    assert optimizer.step_sizes() == pytest.approx({"decayed": 1e-1, "group1": 1e-2})


def test_grad_scaler_skips_and_unscales_as_for_torch():
    params, optimizer = build(MAKERS["auto"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for bad in (False, True):
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params) * (math.inf if bad else 1.0)
        before = [p.detach().clone() for p in params]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(p, q) for p, q in zip(params, before, strict=True))
        assert moved is not bad
    assert optimizer.withheld == 0


def state_dtypes(params, optimizer):
    """Dtypes of all state but a wrapped optimiser's own, and counts of steps."""
    rule = optimizer.base_rule
    names = {"h"} if rule is None else optimizer.state[params[0]].keys() - {"step"}
    return [optimizer.state[p][name].dtype for p in params for name in sorted(names)]


@every_kind
def test_half_precision_weights_keep_state_in_float32(make):
    params, optimizer = build(make, torch.float16)
    run(params, optimizer, gradients(3, dtype=torch.float16))
    assert optimizer.alpha.dtype == torch.float32
    assert all(dtype == torch.float32 for dtype in state_dtypes(params, optimizer))
    assert all(p.dtype == torch.float16 for p in params)
    others, reloaded = build(make, torch.float16)
    reloaded.load_state_dict(optimizer.state_dict())
    assert state_dtypes(others, reloaded) == state_dtypes(params, optimizer)


def test_non_contiguous_weights_move_as_contiguous_ones_do():
    shape = (2, 3, 4, 4)
    plain = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    last = nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    first, second = MetaOptimize([plain]), MetaOptimize([last])
    for (g,) in gradients(5, shapes=[shape], dtype=torch.float32):
        plain.grad, last.grad = g.clone(), g.clone(memory_format=torch.channels_last)
        first.step()
        second.step()
    torch.testing.assert_close(plain, last)
    torch.testing.assert_close(first.alpha, second.alpha)


def test_weights_swapped_under_the_optimiser_are_followed():
    w = nn.Parameter(torch.zeros(3))
    optimizer = MetaOptimize([w], "sgd", "none", alpha0=1.0)
    for _ in range(2):
        w.grad = torch.ones(3)
        optimizer.step()
        w.data = w.data.clone()
    assert w.tolist() == [-2.0, -2.0, -2.0]
