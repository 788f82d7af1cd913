"""The optimiser is the general engine with hessian "free" and approximation "L"."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import autograd, nn

from clmeta import MetaOptimize
from clmeta.general import GeneralMetaOptimize, functional_loss
from clmeta.rules import SGD, Adam, Lion, RMSprop, SGDm

RULES = {
    "sgd": SGD(),
    "sgdm": SGDm(),
    "rmsprop": RMSprop(),
    "adam": Adam(),
    "lion": Lion(),
}
BLOCKS = ["scalar", "layer", "node", "weight"]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    w = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    xs = [torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(x, (x @ w).argmax(1)) for x in xs]


def compare(steps: int, base, meta, blocks, mode: dict, rtol: float, **options) -> None:
    """Both run side by side; every step's weights and step sizes must agree."""
    settings = {"alpha0": 1e-3, "eta": 1e-2, "gamma": 0.99, "weight_decay": 0.1} | options
    model = network()
    bounds = {"alpha_min": 0.0, "alpha_max": math.inf}
    optimiser = MetaOptimize(
        model.named_parameters(), base, meta, blocks, **settings, **bounds, **mode
    )
    loss, params = functional_loss(model, F.cross_entropy)
    mode = {"hessian": "free", "condensed": True} | mode
    general = GeneralMetaOptimize(loss, params, base, meta, blocks, **settings, **mode)
    for x, y in batches(steps):
        value = F.cross_entropy(model(x), y)
        weights = list(model.parameters())
        curved = mode["hessian"] != "free"
        for p, g in zip(weights, autograd.grad(value, weights, create_graph=curved), strict=True):
            p.grad = g
        optimiser.step()
        torch.testing.assert_close(general.step(x, y), value.detach(), rtol=rtol, atol=rtol)
    sizes = general.step_sizes()
    for block, alpha in optimiser.step_sizes().items():
        assert sizes[block] == pytest.approx(alpha, rel=rtol), block
        assert alpha != pytest.approx(1e-3, rel=1e-5), "the step sizes have moved"
    for name, p in model.named_parameters():
        torch.testing.assert_close(general.params[name], p.detach(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("steps", [40, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("base", "meta"), list(itertools.product(RULES, RULES)))
def test_hessian_free_engine_is_the_optimiser_for_every_rule_pair(base, meta, steps):
    compare(steps, RULES[base], RULES[meta], "layer", {}, rtol=1e-8)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_hessian_free_engine_is_the_optimiser_at_every_granularity(blocks):
    compare(50, Adam(), Adam(), blocks, {}, rtol=1e-8)


@pytest.mark.parametrize("base", ["sgd", "sgdm", "rmsprop", "adam"])
@pytest.mark.parametrize("blocks", ["scalar", "layer"])
def test_exact_hessian_in_the_optimiser_is_the_condensed_engine(base, blocks):
    compare(50, RULES[base], Adam(), blocks, {"hessian": "exact"}, rtol=1e-7)
