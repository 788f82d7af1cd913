"""Each special case against a transcription of its own paper, step by step."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import hessian

from clmeta.autostep import Autostep
from clmeta.errors import BadArgument, NonFiniteError
from clmeta.special import SPECIAL, fixed_step_size, hypergradient, idbd, scalar_sgd, xu


def half_square(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """delta^2 / 2 of a linear learner, one example."""
    return 0.5 * (y - x @ params["w"]) ** 2


def curved(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (torch.tanh(x @ params["w"]) - y).pow(2).mean() + 0.1 * params["w"].pow(4).sum()


def zeros(n: int) -> dict[str, Tensor]:
    return {"w": torch.zeros(n, dtype=torch.float64)}


def f64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Tracking:
    """Sutton's (1992) tracking problem: 20 normal inputs, 5 relevant, one of whose signs flips
    every 20 steps."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.s = torch.zeros(20, dtype=torch.float64)
        self.s[:5] = 1
        self.t = 0

    def next(self) -> tuple[Tensor, Tensor]:
        if self.t % 20 == 0:
            self.s[torch.randint(5, (1,), generator=self.generator)] *= -1
        self.t += 1
        x = torch.randn(20, generator=self.generator, dtype=torch.float64)
        return x, x @ self.s


def batches(count: int, n: int = 4, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(normal(size, n), normal(size)) for _ in range(count)]


def sutton_1992(w, beta, h, x, y, theta):
    """Figure 2 of the paper, weight by weight."""
    w, beta, h = list(w), list(beta), list(h)
    delta = y - sum(wi * xi for wi, xi in zip(w, x, strict=True))
    for i in range(len(w)):
        beta[i] = beta[i] + theta * delta * x[i] * h[i]
        alpha = math.exp(beta[i])
        w[i] = w[i] + alpha * delta * x[i]
        h[i] = h[i] * max(0.0, 1 - alpha * x[i] ** 2) + alpha * delta * x[i]
    return w, beta, h


def test_idbd_is_suttons_algorithm():
    n, alpha0, theta = 5, 0.2, 0.01
    learner = idbd(half_square, zeros(n), alpha0, theta)
    w, beta, h = [0.0] * n, [math.log(alpha0)] * n, [0.0] * n
    rectified = 0
    for x, y in batches(150, n):
        x, y = x[0], y[0]
        learner.step(x, y)
        w, beta, h = sutton_1992(w, beta, h, x.tolist(), y.item(), theta)
        rectified += sum(math.exp(b) * xi**2 > 1 for b, xi in zip(beta, x.tolist(), strict=True))
        torch.testing.assert_close(learner.params["w"], f64(w))
        torch.testing.assert_close(learner.beta, f64(beta))
        trace = learner.trace_matrix().diagonal()
        torch.testing.assert_close(trace, f64(h))
    assert rectified > 5  # the rectifier was at work


def test_idbd_finds_suttons_step_sizes():
    """Published: relevant inputs' step sizes go to about 0.13, irrelevant ones' to 0.

    The long way there is made by the transcription, which the engine equals; the engine goes on.
    """
    task, theta = Tracking(1), 0.02
    learner = idbd(half_square, zeros(20), alpha0=0.05, theta=theta)
    w, h = torch.zeros(2, 20, dtype=torch.float64)
    beta = learner.beta.clone()
    for _ in range(18_000):
        x, y = task.next()
        delta = y - x @ w
        beta += theta * delta * x * h
        w = w + beta.exp() * delta * x
        h = h * (1 - beta.exp() * x**2).clamp(min=0) + beta.exp() * delta * x
    state = learner.state_dict()
    state["x"][0]["w"].copy_(w)
    state["y"]["beta"].copy_(beta)
    state["X"][0]["w"].copy_(h[None])
    learner.load_state_dict(state)
    path = []
    for _ in range(300):
        learner.step(*task.next())
        path.append(learner.meta_parameters()["alpha"])
    alpha = torch.stack(path).mean(0)
    assert float(alpha[:5].mean()) == pytest.approx(0.13, abs=0.02)
    assert float(alpha[5:].max()) < 0.01


def mahmood_2012(w, alpha, h, v, x, y, mu, tau):
    """Table 1 of the paper, weight by weight."""
    w, alpha, h, v = list(w), list(alpha), list(h), list(v)
    delta = y - sum(wi * xi for wi, xi in zip(w, x, strict=True))
    for i in range(len(w)):
        size = abs(delta * x[i] * h[i])
        v[i] = max(size, v[i] + alpha[i] * x[i] ** 2 * (size - v[i]) / tau)
        if v[i] != 0:
            alpha[i] = alpha[i] * math.exp(mu * delta * x[i] * h[i] / v[i])
    scale = max(sum(a * xi**2 for a, xi in zip(alpha, x, strict=True)), 1.0)
    for i in range(len(w)):
        alpha[i] = alpha[i] / scale
        w[i] = w[i] + alpha[i] * delta * x[i]
        h[i] = h[i] * (1 - alpha[i] * x[i] ** 2) + alpha[i] * delta * x[i]
    return w, alpha, h, v, scale


def test_autostep_is_mahmoods_algorithm():
    task = Tracking(0)
    learner = Autostep(half_square, zeros(20), alpha0=0.04, mu=0.05, tau=100.0)
    w, alpha, h, v = [0.0] * 20, [0.04] * 20, [0.0] * 20, [0.0] * 20
    overshoots = 0
    for _ in range(200):
        x, y = task.next()
        learner.step(x, y)
        w, alpha, h, v, scale = mahmood_2012(w, alpha, h, v, x.tolist(), y.item(), 0.05, 100.0)
        overshoots += scale > 1
        torch.testing.assert_close(learner.params["w"], f64(w))
        torch.testing.assert_close(learner.alpha["w"], f64(alpha))
    assert 0 < overshoots < 200  # the step was normalised, and not always
    torch.testing.assert_close(learner.v["w"], f64(v))


def test_autostep_withholds_what_is_not_finite():
    learner = Autostep(half_square, zeros(3))
    with pytest.raises(NonFiniteError, match="step 0"):
        learner.step(torch.ones(3, dtype=torch.float64), torch.tensor(math.nan))
    assert learner.params["w"].abs().max() == 0
    with pytest.raises(BadArgument, match="tau=0"):
        Autostep(half_square, zeros(3), tau=0)


def test_xu_accumulates_through_the_exact_hessian():
    learner = xu(curved, {"w": torch.ones(4).double()}, alpha0=0.05, eta=0.1)
    w, beta = torch.ones(4).double(), torch.full((4,), 0.05).double().log()
    trace = torch.zeros(4, 4, dtype=torch.float64)
    for x, y in batches(30):
        g = torch.func.grad(lambda w, x=x, y=y: curved({"w": w}, x, y))(w)
        hess = hessian(lambda w, x=x, y=y: curved({"w": w}, x, y))(w)
        beta = beta - 0.1 * trace.T @ g
        trace = trace - torch.diag(beta.exp()) @ hess @ trace - torch.diag(beta.exp() * g)
        w = w - beta.exp() * g
        learner.step(x, y)
        torch.testing.assert_close(learner.beta, beta)
        torch.testing.assert_close(learner.trace_matrix(), trace)


def test_condensed_xu_keeps_the_row_sums():
    """With beta held still the condensed trace is H's row sum, from one product a step."""
    calls = []

    def counted(params, x, y):
        calls.append(1)
        return curved(params, x, y)

    w = {"w": torch.ones(4).double()}
    full, condensed = (xu(counted, w, eta=0.0, condensed=c) for c in (False, True))
    for x, y in batches(10):
        full.step(x, y)
        calls.clear()
        condensed.step(x, y)
        assert len(calls) == 1
    rows = condensed.trace_matrix()
    torch.testing.assert_close(rows.sum(1), full.trace_matrix().sum(1))
    torch.testing.assert_close(condensed.z.sum(), full.z.sum())
    assert (full.trace_matrix() - rows).abs().max() > 1e-3


@pytest.mark.parametrize("base", ["sgd", "adam"])
@pytest.mark.parametrize("form", ["additive", "multiplicative"])
def test_hypergradient_descent_is_baydins_algorithm(base, form):
    """Their Algorithms 4 (SGD-HD) and 5 (Adam-HD), with Adam's eps inside the root."""
    learner = hypergradient(curved, {"w": torch.ones(4).double()}, base, 0.02, 0.003, form)
    w, alpha = torch.ones(4).double(), 0.02
    last = m = v = torch.zeros(4).double()
    for t, (x, y) in enumerate(batches(40), start=1):
        g = torch.func.grad(lambda w, x=x, y=y: curved({"w": w}, x, y))(w)
        product = float(g @ last)
        alpha = (
            alpha + 0.003 * product
            if form == "additive"
            else alpha * math.exp(0.003 * alpha * product)
        )
        u = g
        if base == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            u = m / (1 - 0.9**t) / (v / (1 - 0.999**t) + 1e-10).sqrt()
        w, last = w - alpha * u, u
        learner.step(x, y)
        assert learner.step_sizes()["all"] == pytest.approx(alpha, rel=1e-9)
        torch.testing.assert_close(learner.params["w"], w)
    assert abs(alpha - 0.02) > 1e-5


def test_scalar_sgd_is_algorithm_2():
    """With its closed form for Y, which the engine gets from one forward product."""
    gamma, eta = 0.9, 0.05
    learner = scalar_sgd(curved, {"w": torch.ones(4).double()}, 0.05, eta, gamma)
    w, beta, sensitivity = torch.ones(4).double(), torch.tensor(0.05).double().log(), 1.0
    trace = torch.zeros(4, dtype=torch.float64)
    for x, y in batches(30):
        g = torch.func.grad(lambda w, x=x, y=y: curved({"w": w}, x, y))(w)
        hess = hessian(lambda w, x=x, y=y: curved({"w": w}, x, y))(w)
        alpha = beta.exp()
        curvature = trace @ hess @ trace
        w, beta, trace, sensitivity = (
            w - alpha * g,
            beta - eta * trace @ g,
            gamma * (trace - alpha * hess @ trace) - sensitivity * alpha * g,
            gamma * sensitivity + (1 - gamma) - gamma**2 * eta * curvature,
        )
        learner.step(x, y)
        torch.testing.assert_close(learner.beta[0], beta)
        torch.testing.assert_close(learner.trace_matrix()[:, 0], trace)
        assert learner.meta_sensitivity().item() == pytest.approx(float(sensitivity), rel=1e-9)
    assert abs(float(sensitivity) - 1) > 1e-3


def test_fixed_step_size_is_the_base_update():
    w = torch.ones(4).double().requires_grad_()
    learner = fixed_step_size(curved, {"w": w}, "sgd", alpha0=0.05)
    plain = torch.optim.SGD([w], lr=0.05)
    for x, y in batches(20):
        plain.zero_grad()
        curved({"w": w}, x, y).backward()
        plain.step()
        learner.step(x, y)
    torch.testing.assert_close(learner.params["w"], w.detach())
    assert learner.step_sizes() == {"all": pytest.approx(0.05)}
    assert float(learner.z.abs().sum()) > 0


def test_special_cases_are_listed_by_name():
    assert SPECIAL.names() == ["fixed", "hypergradient", "idbd", "scalar-sgd", "xu"]
    with pytest.raises(BadArgument, match="additive, multiplicative"):
        hypergradient(curved, zeros(4), form="relative")


def test_additive_step_sizes_can_be_held_at_zero():
    """Gradients that flip their sign push a step size down, and through zero without a bound."""
    lowest = {}
    for bound in (None, 0.0):
        optimiser = hypergradient(
            lambda params, sign: sign * params["w"].sum(),
            {"w": torch.zeros(2, dtype=torch.float64)},
            alpha0=0.01,
            eta=0.1,
            form="additive",
            alpha_min=bound,
        )
        seen = []
        for step in range(6):
            optimiser.step((-1.0) ** step)
            seen.append(min(optimiser.step_sizes().values()))
        lowest[bound] = min(seen)
    assert lowest[None] < 0
    assert lowest[0.0] == 0


def test_a_first_step_size_outside_its_bounds_is_refused():
    with pytest.raises(BadArgument, match=r"alpha0=0\.01: must lie between alpha_min=0\.1"):
        hypergradient(
            lambda params: params["w"].sum(), {"w": torch.zeros(2)}, alpha0=0.01, alpha_min=0.1
        )
