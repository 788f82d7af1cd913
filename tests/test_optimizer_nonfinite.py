"""Gradients that are not finite reach nothing, and nothing waits for a device to know."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_parts import build, every_kind, feed, gradients, snapshot

from clmeta import NonFiniteError

BAD_STEP = 2


@every_kind
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_gradient_reaches_nothing_and_is_named(make, value):
    params, optimizer = build(make)
    for step, grads in enumerate(gradients(4)):
        feed(params, grads)
        if step == BAD_STEP:
            params[2].grad[0, 1] = value
        before = snapshot(params, optimizer)
        optimizer.step()
        if step == BAD_STEP:
            for a, b in zip(before, snapshot(params, optimizer), strict=True):
                assert torch.equal(a, b)
    assert all(torch.isfinite(p).all() for p in params)
    with pytest.raises(NonFiniteError, match=r"step 2: .*'two"):
        optimizer.step_sizes()
    with pytest.raises(NonFiniteError):
        optimizer.state_dict()


@every_kind
def test_a_skipped_step_is_as_if_it_had_not_been(make):
    grads = list(gradients(6))
    runs = []
    for poisoned in (True, False):
        params, optimizer = build(make)
        optimizer.nonfinite = "skip"
        for step, each in enumerate(grads):
            if poisoned and step == 3:
                feed(params, each)
                params[0].grad.fill_(math.nan)
                optimizer.step()
            feed(params, each)
            optimizer.step()
        assert optimizer.withheld == int(poisoned)
        assert all(math.isfinite(alpha) for alpha in optimizer.step_sizes().values())
        runs.append(snapshot(params, optimizer))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
