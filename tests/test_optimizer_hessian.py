"""Curvature in ordinary training equals the general engine's condensed ``L``."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from clmeta import BadArgument, Hessian, MetaOptimize, NonFiniteError
from clmeta.general import GeneralMetaOptimize
from clmeta.rules import SGD, Adam, Lion, RMSprop, SGDm

pytestmark = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
STEPS = 30


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(steps=STEPS, seed=1):
    make = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(2, 3, generator=make, dtype=torch.float64)
        yield x, (x[:, 0] > 0).long()


def train(net, optimizer, data):
    for x, y in data:
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward(create_graph=True)
        optimizer.step()
    optimizer.zero_grad()


SETTINGS = {"alpha0": 1e-2, "eta": 1e-2, "gamma": 0.9, "weight_decay": 0.1}


@pytest.mark.parametrize("blocks", ["scalar", "layer"])
@pytest.mark.parametrize("base", [SGD(), SGDm(), RMSprop(), Adam()], ids=str)
def test_exact_equals_the_general_engine(base, blocks):
    net = network()
    engine = GeneralMetaOptimize(
        lambda params, x, y: cross_entropy(functional_call(net, params, (x,)), y),
        {name: p.detach().clone() for name, p in net.named_parameters()},
        base,
        "adam",
        blocks,
        approximation="L",
        hessian="exact",
        condensed=True,
        **SETTINGS,
    )
    optimizer = MetaOptimize(
        net.named_parameters(), base, "adam", blocks, hessian="exact", **SETTINGS
    )
    for x, y in batches():
        engine.step(x, y)
    train(net, optimizer, batches())
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), engine.params[name], rtol=1e-8, atol=1e-12)
    ours = optimizer.step_sizes()
    assert ours == pytest.approx(engine.step_sizes(), rel=1e-8)
    free = MetaOptimize(network().named_parameters(), base, "adam", blocks, **SETTINGS)
    other = network()
    free = MetaOptimize(other.named_parameters(), base, "adam", blocks, **SETTINGS)
    train(other, free, batches())
    assert free.step_sizes() != pytest.approx(ours, rel=1e-6)


def quadratic(w, scale):
    return 0.5 * (scale * (w - 1) ** 2).sum()


@pytest.mark.parametrize("base", [SGD(), Adam()], ids=str)
def test_the_estimated_diagonal_is_exact_where_the_hessian_is_diagonal(base):
    scale = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    start = torch.zeros(3, dtype=torch.float64)
    engine = GeneralMetaOptimize(
        lambda params: quadratic(params["w"], scale),
        {"w": start},
        base,
        approximation="L",
        hessian="diagonal",
        **SETTINGS,
    )
    w = nn.Parameter(start.clone())
    optimizer = MetaOptimize([w], base, hessian="diagonal", **SETTINGS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        quadratic(w, scale).backward(create_graph=True)
        optimizer.step()
        engine.step()
    torch.testing.assert_close(w.detach(), engine.params["w"], rtol=1e-9, atol=1e-12)
    assert optimizer.step_sizes()["all"] == pytest.approx(engine.step_sizes()["all"], rel=1e-8)


def test_smoothing_averages_the_diagonal_and_clipping_bounds_it():
    scale = torch.tensor([-2.0, 5.0], dtype=torch.float64)
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    how = Hessian("diagonal", smoothing=0.9, low=0.0, high=1.0)
    optimizer = MetaOptimize([w], "sgd", "sgd", alpha0=0.1, eta=0.0, gamma=1.0, hessian=how)
    trace = torch.zeros(2, dtype=torch.float64)
    for _ in range(5):
        g = scale * (w.detach() - 1)
        trace = trace * (1 - 0.1 * torch.tensor([0.0, 1.0])) - 0.1 * g
        optimizer.zero_grad()
        quadratic(w, scale).backward(create_graph=True)
        optimizer.step()
    torch.testing.assert_close(optimizer.state[w]["h"], trace)
    # The average of a constant is that constant, from the first step on.
    average = optimizer.state[w]["curvature"] / (1 - 0.9**5)
    torch.testing.assert_close(average, scale)


@pytest.mark.parametrize("hessian", ["exact", Hessian("diagonal", smoothing=0.9)], ids=str)
def test_a_reloaded_optimiser_continues_bit_for_bit(hessian):
    runs = []
    for interrupted in (False, True):
        net = network()
        optimizer = MetaOptimize(net.named_parameters(), blocks="layer", hessian=hessian)
        data = list(batches(10))
        train(net, optimizer, data[:5])
        if interrupted:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = MetaOptimize(net.named_parameters(), blocks="layer", hessian=hessian)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        train(net, optimizer, data[5:])
        runs.append([p.detach() for p in net.parameters()] + [optimizer.alpha])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_a_graph_that_was_not_kept_is_named():
    net = network()
    optimizer = MetaOptimize(net.parameters(), hessian="exact")
    x, y = next(batches())
    cross_entropy(net(x), y).backward()
    with pytest.raises(BadArgument, match=r"no graph; call loss\.backward\(create_graph=True\)"):
        optimizer.step()


@pytest.mark.parametrize("hessian", ["exact", "diagonal"])
def test_curvature_that_is_not_finite_is_withheld_and_named(hessian):
    # The derivative of |w|^1.5 is finite at 0 and its second derivative is not.
    w = nn.Parameter(torch.tensor([0.0, 1.0]))
    v = nn.Parameter(torch.tensor([1.0]))
    optimizer = MetaOptimize([("a.w", w), ("b.v", v)], "sgd", blocks="layer", hessian=hessian)
    (w.abs() ** 1.5).sum().add((v**2).sum()).backward(create_graph=True)
    optimizer.step()
    optimizer.zero_grad()
    assert w.tolist() == [0.0, 1.0]
    assert v.tolist() == [1.0]
    with pytest.raises(NonFiniteError, match=r"step 0: .*'a'"):
        optimizer.step_sizes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": Lion(), "hessian": "exact"}, "derivative zero"),
        ({"hessian": "full"}, "hessian='full': must be one of"),
        ({"approximation": "2x2"}, r"only 'L' here; see clmeta\.general"),
        ({"base": torch.optim.SGD, "hessian": "exact"}, "pass rules for both updates"),
        ({"meta": "none", "hessian": "exact"}, "pass rules for both updates"),
    ],
)
def test_what_has_no_meaning_is_refused(options, message):
    with pytest.raises(BadArgument, match=message):
        MetaOptimize([nn.Parameter(torch.ones(1))], **options)


def test_options_of_the_diagonal_are_refused_elsewhere():
    with pytest.raises(BadArgument, match="are for the diagonal"):
        Hessian("exact", smoothing=0.5)
    with pytest.raises(BadArgument, match="smoothing=1"):
        Hessian("diagonal", smoothing=1)
    assert math.isclose(Hessian("diagonal", low=0.0, high=1.0).high, 1.0)
