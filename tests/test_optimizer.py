"""MetaOptimize against its twin: every rule pair, path and granularity."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_parts import NAMES, PATHS, feed, gradients, params_of
from torch import nn
from twin import Twin

from clmeta import MetaOptimize
from clmeta.rules import SGD, Adam, Lion, RMSprop, SGDm

BASES = [
    SGD(),
    SGDm(),
    SGDm(accumulate=True),
    SGDm(stale=True),
    RMSprop(),
    Adam(),
    Adam(accumulate=True),
    Lion(),
]
METAS = [None, SGD(), SGDm(), RMSprop(), Adam(), Adam(accumulate=True), Lion()]
SPECS = {
    "scalar": [[0, 1, 2, 3]],
    "layer": [[0, 1], [2, 3]],
    "tensor": [[0], [1], [2], [3]],
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("meta", METAS, ids=str)
@pytest.mark.parametrize("base", BASES, ids=str)
def test_every_rule_pair_equals_the_twin(base, meta, path):
    params = params_of()
    twin = Twin([p.detach() for p in params], SPECS["layer"], base, meta, 1e-2, 1e-2, 0.9, 0.1)
    optimizer = MetaOptimize(
        zip(NAMES, params, strict=True),
        base,
        meta or "none",
        "layer",
        alpha0=1e-2,
        eta=1e-2,
        gamma=0.9,
        weight_decay=0.1,
    )
    PATHS[path](optimizer)
    for grads in gradients(25):
        feed(params, grads)
        optimizer.step()
        twin.step(grads)
    for p, w in zip(params, twin.w, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(optimizer.alpha, twin.alpha, rtol=1e-9, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    spec=st.sampled_from(sorted(SPECS)),
    alpha0=st.floats(1e-6, 1e-1),
    eta=st.floats(0, 0.1),
    gamma=st.floats(0, 1),
    kappa=st.floats(0, 1),
    batch=st.integers(1, 20),
    path=st.sampled_from(["native", "lists"]),
)
def test_hyperparameters_and_batches_do_not_break_the_equations(
    spec, alpha0, eta, gamma, kappa, batch, path
):
    params = params_of()
    twin = Twin(
        [p.detach() for p in params], SPECS[spec], Adam(), Adam(), alpha0, eta, gamma, kappa
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clmeta.engines.lists.BATCH", batch)
        patch.setattr("clmeta.native.table.PIECE", batch)
        optimizer = MetaOptimize(
            list(zip(NAMES, params, strict=True)),
            blocks=spec,
            alpha0=alpha0,
            eta=eta,
            gamma=gamma,
            weight_decay=kappa,
        )
        PATHS[path](optimizer)
        for grads in gradients(8):
            feed(params, grads)
            optimizer.step()
            twin.step(grads)
    for p, w in zip(params, twin.w, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(optimizer.alpha, twin.alpha, rtol=1e-8, atol=0)


@pytest.mark.parametrize("blocks", ["node", "weight"])
def test_fine_step_sizes_equal_the_twin_with_a_block_each(blocks):
    params = [nn.Parameter(torch.randn(2, 3, dtype=torch.float64))]
    cells = [[(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1), (1, 2)]]
    if blocks == "weight":
        cells = [[cell] for cell in itertools.product(range(2), range(3))]
    start = [params[0].detach()[i, j].clone() for cell in cells for i, j in cell]
    sizes = [len(cell) for cell in cells]
    ends = list(itertools.accumulate(sizes))
    index = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    twin = Twin(start, index, Adam(), Adam(), 1e-2, 1e-2, 0.9, 0.1)
    optimizer = MetaOptimize(
        params, blocks=blocks, alpha0=1e-2, eta=1e-2, gamma=0.9, weight_decay=0.1
    )
    for (g,) in gradients(20, shapes=[(2, 3)]):
        feed(params, [g])
        optimizer.step()
        twin.step([g[i, j] for cell in cells for i, j in cell])
    got = [params[0].detach()[i, j] for cell in cells for i, j in cell]
    torch.testing.assert_close(torch.stack(got), torch.stack(twin.w), rtol=1e-9, atol=1e-12)
    beta = optimizer.state[params[0]]["beta"].flatten()
    torch.testing.assert_close(beta.exp(), twin.alpha, rtol=1e-9, atol=0)
    mean = torch.stack(twin.beta).mean().exp().item()
    assert optimizer.step_sizes()["param0"] == pytest.approx(mean)


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
