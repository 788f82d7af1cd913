"""MetaOptimize against its twin for any settings; the rule pairs are in `test_laws.py`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_parts import NAMES, QUICK, feed, gradients, params_of
from torch import nn
from twin import Twin

from clmeta import MetaOptimize
from clmeta.rules import Adam

SPECS = {
    "scalar": [[0, 1, 2, 3]],
    "layer": [[0, 1], [2, 3]],
    "tensor": [[0], [1], [2], [3]],
}


def numbers(least, most):
    """Numbers that single precision has as well."""
    return st.just(least) | st.floats(max(least, 1e-30), most)


@pytest.mark.parametrize("engine", QUICK)
@settings(max_examples=25, deadline=None)
@given(
    spec=st.sampled_from(sorted(SPECS)),
    alpha0=st.floats(1e-6, 1e-1),
    eta=numbers(0, 0.1),
    gamma=numbers(0, 1),
    kappa=numbers(0, 1),
    piece=st.integers(1, 20),
)
def test_settings_and_pieces_do_not_break_the_equations(
    engine, spec, alpha0, eta, gamma, kappa, piece
):
    params = params_of()
    twin = Twin(
        [p.detach() for p in params], SPECS[spec], Adam(), Adam(), alpha0, eta, gamma, kappa
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clmeta.engines.pieces.PIECE", piece)
        patch.setattr("clmeta.native.table.PIECE", piece)
        optimizer = MetaOptimize(
            list(zip(NAMES, params, strict=True)),
            blocks=spec,
            alpha0=alpha0,
            eta=eta,
            gamma=gamma,
            weight_decay=kappa,
            engine=engine,
        )
        for grads in gradients(8):
            feed(params, grads)
            optimizer.step()
            twin.step(grads)
    for p, w in zip(params, twin.w, strict=True):
        torch.testing.assert_close(p.detach().flatten(), tensor(w), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(optimizer.alpha, tensor(twin.alpha), rtol=1e-8, atol=0)


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_a_step_size_that_is_too_small_grows_by_itself():
    target = torch.tensor([1.0, -2.0, 3.0])
    w = nn.Parameter(torch.zeros(3))
    optimizer = MetaOptimize([w], "sgd", "adam", alpha0=1e-4, eta=1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        ((w - target) ** 2).sum().backward()
        optimizer.step()
    assert optimizer.step_sizes()["all"] > 10 * 1e-4
    assert torch.allclose(w, target, atol=0.1)
