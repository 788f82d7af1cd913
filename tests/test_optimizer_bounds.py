"""Step sizes of MetaOptimize stay within their bounds."""

from __future__ import annotations

import torch
from optimizer_parts import feed, gradients, params_of

from clmeta import MetaOptimize


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
