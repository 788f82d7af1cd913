"""The general engine against the definition of its trace (Sec. 3 of the paper)."""

import itertools

import pytest
import torch
from definition import (
    engine,
    finite_difference_trace,
    learned_step_sizes,
    loss,
    nominal_run,
    problem,
    relative_error,
)
from torch.func import grad

from clmeta.rules import SGD, Adam, Lion, RMSprop, SGDm

BASES = {
    "sgd": (SGD(), 0.0),
    "sgdm": (SGDm(), 0.0),
    "rmsprop": (RMSprop(), 0.0),
    "adamw": (Adam(), 0.1),
}
METAS = {"sgd": SGD(), "sgdm": SGDm(), "rmsprop": RMSprop(), "adam": Adam()}


@pytest.mark.parametrize(
    ("base", "meta", "approximation"), list(itertools.product(BASES, METAS, ("full", "2x2", "L")))
)
def test_trace_is_the_finite_difference_of_its_definition(base, meta, approximation):
    rule, kappa = BASES[base]
    optimiser = engine(rule, METAS[meta], kappa, approximation=approximation, hessian="exact")
    states, z = nominal_run(optimiser)
    update = learned_step_sizes(rule, kappa)
    expected = finite_difference_trace(optimiser, states, z, update, METAS[meta])
    assert relative_error(optimiser.trace_matrix(), expected) < 1e-7


@pytest.mark.parametrize("approximation", ["full", "2x2", "L"])
def test_hessian_free_trace_is_the_definition_with_constant_gradients(approximation):
    optimiser = engine(Adam(), Adam(), 0.1, approximation=approximation, hessian="free")
    states, z = nominal_run(optimiser)
    update = learned_step_sizes(Adam(), 0.1)
    expected = finite_difference_trace(optimiser, states, z, update, Adam(), "free")
    assert relative_error(optimiser.trace_matrix(), expected) < 1e-7


def test_approximations_differ_where_they_should():
    """Guards the tests above: with equal traces they could not tell the modes apart."""
    traces = {}
    for approximation in ("full", "2x2", "L"):
        optimiser = engine(Adam(), SGD(), 0.1, approximation=approximation)
        nominal_run(optimiser)
        traces[approximation] = optimiser.trace_matrix()
    assert relative_error(traces["2x2"], traces["full"]) > 1e-5
    assert relative_error(traces["L"], traces["2x2"]) > 1e-5


@pytest.mark.parametrize("approximation", ["full", "2x2", "L"])
def test_lion_on_both_sides_is_the_hessian_free_form(approximation):
    """Its direction is a sign, whose derivative is zero away from sign changes."""
    params, _ = problem()
    generator = torch.Generator().manual_seed(5)
    optimiser = engine(Lion(), Lion(), 0.1, approximation=approximation, hessian="exact")
    names = list(params)
    w = {n: p.clone() for n, p in params.items()}
    m = {n: torch.zeros_like(p) for n, p in params.items()}
    h = {n: torch.zeros_like(p) for n, p in params.items()}
    beta = torch.full((2,), 0.05, dtype=torch.float64).log()
    meta_m = torch.zeros_like(beta)
    for _ in range(30):
        batch = (
            torch.randn(4, 3, generator=generator, dtype=torch.float64),
            torch.randn(4, generator=generator, dtype=torch.float64),
        )
        g = grad(loss)(w, *batch)
        z = torch.stack([(h[n] * g[n]).sum() for n in names])
        for i, n in enumerate(names):
            alpha = beta[i].exp()
            u = torch.sign(0.9 * m[n] + 0.1 * g[n])
            m[n] = 0.99 * m[n] + 0.01 * g[n]
            dw = -alpha * (u + 0.1 * w[n])
            w[n] = w[n] + dw
            h[n] = 0.9 * (1 - 0.1 * alpha) * h[n] + dw
        beta = beta - 0.05 * torch.sign(0.9 * meta_m + 0.1 * z)
        meta_m = 0.99 * meta_m + 0.01 * z
        optimiser.step(*batch)
        torch.testing.assert_close(optimiser.beta, beta, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(optimiser.params, w, rtol=1e-11, atol=1e-12)
    trace = optimiser.trace_matrix()
    torch.testing.assert_close(trace[:6, 0], h["body"].flatten(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(trace[6:, 1], h["head"], rtol=1e-10, atol=1e-12)
    assert trace[:6, 1].abs().max() == 0
    assert trace[6:, 0].abs().max() == 0


def test_forward_view_is_approached_as_eta_vanishes():
    """Summed backward updates against eq. 4's meta-gradients by unrolled differentiation."""
    params, batches = problem()
    batches = batches + [(x.flip(0), 0.5 * y) for x, y in batches]
    gamma, count = 0.8, len(batches)
    # One beta per time, all equal, each with its own derivative.
    betas = torch.full((count, 2), 0.05, dtype=torch.float64).log().requires_grad_()
    w, losses = params, []
    for t, batch in enumerate(batches):
        losses.append(loss(w, *batch))
        g = torch.autograd.grad(losses[-1], list(w.values()), create_graph=True) if t else None
        if g is None:
            g = list(grad(loss)(w, *batch).values())
        alpha = betas[t].exp()
        w = {n: w[n] - alpha[i] * g[i] for i, n in enumerate(w)}
    forward = torch.zeros(2, dtype=torch.float64)
    for tau in range(1, count):
        by_time = torch.autograd.grad(losses[tau], betas, retain_graph=True)[0]
        for t in range(tau):
            # A change of beta_t lasts; beta_0 also stands for all earlier times.
            weight = gamma ** (tau - 1 - t) * ((1 - gamma) if t else 1.0)
            forward += weight * by_time[t:].sum(0)
    errors = []
    for eta in (1e-1, 1e-2, 1e-3):
        optimiser = engine(SGD(), SGD(), 0.0, approximation="full", eta=eta, gamma=gamma)
        before = optimiser.beta
        for batch in batches:
            optimiser.step(*batch)
        ratio = (before - optimiser.beta) / (eta * forward)
        errors.append(float((ratio - 1).abs().max()))
    assert errors[2] < 1e-2
    # First order in eta: ten times smaller steps, ten times smaller difference.
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.5)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)
