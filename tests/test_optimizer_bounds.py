"""Step sizes of MetaOptimize stay within their bounds."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_parts import PATHS, feed, gradients, params_of
from torch import nn

from clmeta import BadArgument, MetaOptimize


def test_step_sizes_stay_within_their_bounds():
    params = params_of(dtype=torch.float32)
    optimizer = MetaOptimize(
        params, blocks="tensor", alpha0=1e-3, eta=1.0, alpha_min=5e-4, alpha_max=2e-3
    )
    for grads in gradients(20):
        feed(params, grads)
        optimizer.step()
        for alpha in optimizer.step_sizes().values():
            assert 5e-4 * 0.999 <= alpha <= 2e-3 * 1.001


def test_weightwise_step_sizes_are_bounded_by_default():
    params = params_of(dtype=torch.float32)
    optimizer = MetaOptimize(params, blocks="weight", alpha0=1e-3, eta=10.0)
    for grads in gradients(20):
        feed(params, grads)
        optimizer.step()
    for p in params:
        alpha = optimizer.state[p]["beta"].exp()
        assert alpha.min() >= 0.99e-7
        assert alpha.max() <= 0.101


@pytest.mark.parametrize("path", PATHS)
def test_step_sizes_stay_finite_even_without_bounds(path):
    params = params_of(dtype=torch.float32)
    optimizer = MetaOptimize(params, "sgd", "sgd", alpha0=1e-3, eta=1e6, nonfinite="skip")
    PATHS[path](optimizer)
    for grads in gradients(20):
        feed(params, grads)
        optimizer.step()
    assert math.isfinite(optimizer.step_sizes()["all"])


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
