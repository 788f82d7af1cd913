"""Step sizes of MetaOptimize stay within their bounds."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_parts import QUICK, feed, gradients, params_of
from torch import nn

from clmeta import BadArgument, MetaOptimize


@pytest.mark.parametrize("engine", QUICK)
def test_step_sizes_stay_within_their_bounds(engine):
    params = params_of(dtype=torch.float32)
    bounds = {"alpha_min": 5e-4, "alpha_max": 2e-3}
    optimizer = MetaOptimize(params, blocks="tensor", alpha0=1e-3, eta=1.0, engine=engine, **bounds)
    for grads in gradients(20):
        feed(params, grads)
        optimizer.step()
        for alpha in optimizer.step_sizes().values():
            assert 5e-4 * 0.999 <= alpha <= 2e-3 * 1.001


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("blocks", ["node", "weight"])
def test_finer_step_sizes_are_bounded_by_default(engine, blocks):
    params = params_of(dtype=torch.float32)
    optimizer = MetaOptimize(params, blocks=blocks, alpha0=1e-3, eta=10.0, engine=engine)
    for grads in gradients(20):
        feed(params, grads)
        optimizer.step()
    for p in params:
        alpha = optimizer.state[p]["beta"].exp()
        assert alpha.min() >= 0.99e-7
        assert alpha.max() <= 0.101


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("blocks", ["scalar", "node", "weight"])
def test_step_sizes_stay_finite_even_without_bounds(engine, blocks):
    params = params_of(dtype=torch.float32)
    bounds = {"alpha_min": 0.0, "alpha_max": math.inf}
    how = {"alpha0": 1e-3, "eta": 1e6, "nonfinite": "skip", "engine": engine, **bounds}
    optimizer = MetaOptimize(params, "sgd", "sgd", blocks, **how)
    for grads in gradients(20):
        feed(params, grads)
        optimizer.step()
    assert all(map(math.isfinite, optimizer.step_sizes().values()))


def test_bounds_of_finer_step_sizes_follow_a_groups_own_alpha0():
    w = nn.Parameter(torch.ones(3))
    optimizer = MetaOptimize([{"params": [w], "alpha0": 0.5}], blocks="weight", alpha0=1e-4)
    w.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.step_sizes()["group0/param0"] == pytest.approx(0.5, rel=0.01)


def test_a_groups_alpha0_outside_the_bounds_is_refused():
    w = nn.Parameter(torch.ones(3))
    with pytest.raises(BadArgument, match=r"alpha_max=0\.1: must be >= alpha0=1\.0"):
        MetaOptimize([{"params": [w], "alpha0": 1.0}], alpha_max=0.1)
