"""Meta-parameters other than step sizes, against finite differences of the same definition."""

import dataclasses
import math

import pytest
import torch
from definition import (
    engine,
    finite_difference_trace,
    loss,
    moved,
    nominal_run,
    problem,
    relative_error,
)

from clmeta.errors import BadArgument
from clmeta.general.meta_parameters import MAPS
from clmeta.rules import SGD, Adam, Lion, RMSprop, SGDm
from clmeta.softlion import SoftLion

CASES = {
    "momentum": (SGDm(), 0.0, ("rho",)),
    "momentum and step size": (SGDm(), 0.0, ("alpha", "rho")),
    "normaliser decay": (RMSprop(lam=0.9), 0.0, ("lam",)),
    "weight decay": (SGD(), 0.1, ("weight_decay",)),
    "interpolation": (SoftLion(eps=0.1), 0.0, ("c",)),
    "all of Adam": (Adam(lam=0.9), 0.1, ("alpha", "weight_decay", "rho", "lam")),
    "all of smooth Lion": (SoftLion(eps=0.1), 0.1, ("weight_decay", "rho", "c")),
}


def learned(rule, kappa, kinds):
    """The base update with two entries of beta, one per block, for each kind in turn."""

    def update(x, beta, g, t):
        def of_block(i):
            value = {
                kind: torch.exp(beta[2 * k + i])
                if kind in ("alpha", "weight_decay")
                else torch.sigmoid(beta[2 * k + i])
                for k, kind in enumerate(kinds)
            }
            alpha, decay = value.pop("alpha", 0.05), value.pop("weight_decay", kappa)
            return dataclasses.replace(rule, **value), alpha, decay

        return moved(x, g, t, of_block)

    return update


@pytest.mark.parametrize("approximation", ["full", "2x2", "L"])
@pytest.mark.parametrize("case", CASES)
def test_meta_gradient_of_any_meta_parameter_is_the_finite_difference(case, approximation):
    rule, kappa, kinds = CASES[case]
    optimiser = engine(rule, Adam(), kappa, approximation=approximation, learn=kinds)
    states, z = nominal_run(optimiser)
    update = learned(rule, kappa, kinds)
    expected = finite_difference_trace(optimiser, states, z, update, Adam())
    assert relative_error(optimiser.trace_matrix(), expected) < 1e-7
    x, y = problem()[1][0]
    g = torch.func.grad(loss)(optimiser.params, x, y)
    optimiser.step(x, y)
    meta_gradient = expected.T @ torch.cat([each.flatten() for each in g.values()])
    assert relative_error(optimiser.z, meta_gradient) < 1e-7


def test_condensed_trace_of_several_kinds_is_exact_without_the_hessian():
    kinds = ("alpha", "rho", "weight_decay")
    runs = [
        engine(Adam(), Adam(), 0.1, learn=kinds, hessian="free", condensed=condensed)
        for condensed in (True, False)
    ]
    for run in runs:
        nominal_run(run)
    torch.testing.assert_close(runs[0].beta, runs[1].beta)
    torch.testing.assert_close(runs[0].trace_matrix(), runs[1].trace_matrix())
    assert runs[0].memory_bytes()["kept"] < runs[1].memory_bytes()["kept"]


def test_values_stay_in_their_ranges_and_move_per_block():
    optimiser = engine(SGDm(), Adam(), 0.1, eta=0.5, learn=("alpha", "rho", "weight_decay"))
    nominal_run(optimiser)
    values = optimiser.meta_parameters()
    assert (values["alpha"] > 0).all()
    assert (values["weight_decay"] > 0).all()
    assert ((values["rho"] > 0) & (values["rho"] < 1)).all()
    assert all(v[0] != v[1] for v in values.values())
    assert optimiser.labels[:3] == ["alpha[body]", "alpha[head]", "rho[body]"]


def test_step_size_stays_when_only_momentum_is_learned():
    optimiser = engine(SGDm(), Adam(), 0.0, learn="rho")
    nominal_run(optimiser)
    assert optimiser.step_sizes() == {"body": pytest.approx(0.05), "head": pytest.approx(0.05)}
    assert optimiser.meta_parameters()["rho"][0] != 0.9


def test_each_kind_may_have_its_own_meta_step_size():
    optimiser = engine(SGDm(), SGD(), 0.0, learn=("alpha", "rho"), eta={"alpha": 0.0, "rho": 0.1})
    nominal_run(optimiser)
    assert optimiser.step_sizes()["body"] == pytest.approx(0.05)
    assert optimiser.meta_parameters()["rho"][0] != 0.9


@pytest.mark.parametrize("name", MAPS.names())
def test_maps_invert_and_increase(name):
    map_ = MAPS.get(name)
    for value in (0.001, 0.3, 0.999):
        beta = torch.tensor(map_.start("value", value), dtype=torch.float64)
        assert float(map_.forward(beta)) == pytest.approx(value)
    assert map_.forward(torch.tensor(1.0)) > map_.forward(torch.tensor(0.5))


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (Lion(), {"learn": "c"}, "Lion's direction with respect to c is zero"),
        (Lion(), {"learn": "rho"}, "SoftLion"),
        (SGD(), {"learn": "rho"}, "SGD has no such meta-parameter; it has: alpha, weight_decay"),
        (SGD(), {"learn": "weight_decay"}, "strictly between 0 and inf"),
        (SGDm(rho=0.0), {"learn": "rho"}, "rho=0.0: learned, it must start strictly between 0"),
        (SGD(), {"learn": ()}, "name at least one of"),
        (SGD(), {"learn": {"alpha": "tanh"}}, "unknown map"),
        (SGD(), {"eta": {"rho": 1.0}}, "give one value for each of: alpha"),
    ],
)
def test_what_cannot_be_learned_is_refused(rule, options, message):
    with pytest.raises(BadArgument, match=message):
        engine(rule, SGD(), 0.0, **options)


def test_smooth_lion_tends_to_lion():
    generator = torch.Generator().manual_seed(0)
    exact, smooth = Lion(), SoftLion(eps=1e-12)
    state = {"m": torch.randn(20, generator=generator)}
    g = torch.randn(20, generator=generator)
    u, new = smooth.update(g, state, 1)
    v, same = exact.update(g, {"m": state["m"].clone()}, 1)
    torch.testing.assert_close(u, v, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new["m"], same["m"])
    assert math.isclose(float(u.abs().max()), 1.0, rel_tol=1e-4)
