"""The general engine against the definition of its trace (equations.md, section 6).

Nothing here uses the engine's own step: the replay below is the system written out again, and
derivatives come from central differences of it.
"""

import itertools

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from clmeta.general import GeneralMetaOptimize
from clmeta.rules import SGD, Adam, Lion, RMSprop, SGDm

STEPS = 7
EPS = 1e-6
BASES = {
    "sgd": (SGD(), 0.0),
    "sgdm": (SGDm(), 0.0),
    "rmsprop": (RMSprop(), 0.0),
    "adamw": (Adam(), 0.1),
}
METAS = {"sgd": SGD(), "sgdm": SGDm(), "rmsprop": RMSprop(), "adam": Adam()}


def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    hidden = torch.tanh(x @ params["body"])
    return ((hidden @ params["head"] - y) ** 2).mean() + 0.1 * (params["body"] ** 4).sum()


def problem() -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    params = {"body": normal(3, 2), "head": normal(2)}
    return params, [(normal(4, 3), 2 * normal(4)) for _ in range(STEPS)]


def engine(base, meta, kappa, **options) -> GeneralMetaOptimize:
    params, _ = problem()
    settings = {"alpha0": 0.05, "eta": 0.05, "gamma": 0.9, "blocks": "tensor"}
    return GeneralMetaOptimize(loss, params, base, meta, weight_decay=kappa, **settings | options)


def nominal_run(optimiser):
    """The engine's states before each step, and after the last; and the meta-gradients used."""
    states, z = [optimiser.state_dict()], []
    for batch in problem()[1]:
        optimiser.step(*batch)
        states.append(optimiser.state_dict())
        z.append(optimiser.z)
    return states, z


def base_update(rule, kappa, t):
    def update(x, beta, g):
        w, state = x
        new_w, new_state = {}, {}
        for i, name in enumerate(("body", "head")):
            u, new_state[name] = rule.update(g[name], state[name], t)
            new_w[name] = w[name] - torch.exp(beta[i]) * (u + kappa * w[name])
        return new_w, new_state

    return update


def finite_difference_trace(optimiser, states, z, base, meta, kappa, hessian="exact"):
    """H at the end, by the definition: perturb beta at every time and replay.

    Y and X~ are frozen inside the step (in ``full``), H is as well in ``2x2``, and the
    meta-gradients are in ``L``.
    """
    gamma, mode = optimiser.gamma, optimiser.approximation
    batches = problem()[1]

    def replay(start: int, delta: Tensor) -> Tensor:
        x, y, h = states[start]["x"], states[start]["y"], states[start]["X"][0]
        y = {**y, "beta": y["beta"] + delta}
        for t in range(start, STEPS):
            frozen = states[t]

            def gradient(w, t=t, frozen=frozen):
                if hessian == "free":
                    return grad(loss)(frozen["x"][0], *batches[t])
                return grad(loss)(w, *batches[t])

            update = base_update(base, kappa, t + 1)

            def step(x, beta, update=update, gradient=gradient):
                return update(x, beta, gradient(x[0]))

            g = gradient(x[0])
            if mode == "L":
                meta_gradient = z[t]
            else:
                trace = h if mode == "full" else frozen["X"][0]
                meta_gradient = sum(torch.einsum("k...,...->k", trace[n], g[n]) for n in g)
            if mode == "full":
                columns = []
                for j in range(2):
                    tangent_w = {n: gamma * h[n][j] for n in h}
                    tangent_state = {
                        n: {s: gamma * v[j] for s, v in slots.items()}
                        for n, slots in frozen["X"][1].items()
                    }
                    tangents = ((tangent_w, tangent_state), frozen["Y"]["beta"][j])
                    columns.append(jvp(step, (x, y["beta"]), tangents)[1][0])
                h = {n: torch.stack([c[n] for c in columns]) for n in h}
            x = step(x, y["beta"])
            u, state = meta.update(meta_gradient, y["state"], t + 1)
            y = {"beta": y["beta"] - 0.05 * u, "state": state}
        return torch.cat([w.flatten() for w in x[0].values()])

    total = torch.zeros(8, 2, dtype=torch.float64)
    shifts = EPS * torch.cat([torch.eye(2), -torch.eye(2)]).double()
    for start in range(STEPS):
        ends = vmap(lambda delta, s=start: replay(s, delta))(shifts)
        derivative = (ends[:2] - ends[2:]).T / (2 * EPS)
        total += gamma ** (STEPS - 1 - start) * ((1 - gamma) if start else 1.0) * derivative
    return total


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("base", "meta", "approximation"), list(itertools.product(BASES, METAS, ("full", "2x2", "L")))
)
def test_trace_is_the_finite_difference_of_its_definition(base, meta, approximation):
    rule, kappa = BASES[base]
    optimiser = engine(rule, METAS[meta], kappa, approximation=approximation, hessian="exact")
    states, z = nominal_run(optimiser)
    expected = finite_difference_trace(optimiser, states, z, rule, METAS[meta], kappa)
    assert relative_error(optimiser.trace_matrix(), expected) < 1e-7


@pytest.mark.parametrize("approximation", ["full", "2x2", "L"])
def test_hessian_free_trace_is_the_definition_with_constant_gradients(approximation):
    optimiser = engine(Adam(), Adam(), 0.1, approximation=approximation, hessian="free")
    states, z = nominal_run(optimiser)
    expected = finite_difference_trace(optimiser, states, z, Adam(), Adam(), 0.1, "free")
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
