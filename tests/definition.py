"""The definition of the trace (Sec. 3, eqs. 5-7 of the paper), to check the engine against.

Nothing here uses the engine's own step: the replay is the system written out again, and
derivatives come from central differences of it.
"""

import itertools

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from clmeta.general import APPROXIMATIONS, HESSIANS, GeneralMetaOptimize

STEPS = 7
EPS = 1e-6
ETA = 0.05
BLOCKS = ("body", "head")
MODES = list(itertools.product(APPROXIMATIONS, HESSIANS))


def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    hidden = torch.tanh(x @ params["body"])
    return ((hidden @ params["head"] - y) ** 2).mean() + 0.1 * (params["body"] ** 4).sum()


def problem() -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Eight weights in two blocks, and seven batches."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    params = {"body": normal(3, 2), "head": normal(2)}
    return params, [(normal(4, 3), 2 * normal(4)) for _ in range(STEPS)]


def engine(base, meta, kappa, **options) -> GeneralMetaOptimize:
    params, _ = problem()
    settings = {"alpha0": 0.05, "eta": ETA, "gamma": 0.9, "blocks": "tensor"}
    return GeneralMetaOptimize(loss, params, base, meta, weight_decay=kappa, **settings | options)


def nominal_run(optimiser):
    """The engine's states before each step and after the last, and the meta-gradients used."""
    states, z = [optimiser.state_dict()], []
    for batch in problem()[1]:
        optimiser.step(*batch)
        states.append(optimiser.state_dict())
        z.append(optimiser.z)
    return states, z


def learned_step_sizes(rule, kappa):
    """The base update with alpha = exp(beta) per block, as a function of (x, beta, g, t)."""

    def update(x, beta, g, t):
        return moved(x, g, t, lambda i: (rule, torch.exp(beta[i]), kappa))

    return update


def moved(x, g, t, of_block):
    """``w - alpha (u + kappa w)`` with the i-th block's (rule, alpha, kappa)."""
    w, state = x
    new_w, new_state = {}, {}
    for i, name in enumerate(BLOCKS):
        rule, alpha, kappa = of_block(i)
        u, new_state[name] = rule.update(g[name], state[name], t)
        new_w[name] = w[name] - alpha * (u + kappa * w[name])
    return new_w, new_state


def finite_difference_trace(optimiser, states, z, update, meta, hessian="exact"):
    """H at the end, by the definition: perturb beta at every time and replay.

    Y and X~ are frozen inside the step (in ``full``), H is as well in ``2x2``, and the
    meta-gradients are in ``L``.
    """
    gamma, mode, m = optimiser.gamma, optimiser.approximation, optimiser.beta.numel()
    batches = problem()[1]

    def gradient(w, t):
        if hessian == "free":
            w = states[t]["x"][0]
        return grad(loss)(w, *batches[t])

    def next_trace(x, beta, h, t):
        columns = []
        for j in range(m):
            tangent_w = {n: gamma * h[n][j] for n in h}
            tangent_state = {
                n: {slot: gamma * v[j] for slot, v in slots.items()}
                for n, slots in states[t]["X"][1].items()
            }
            tangents = ((tangent_w, tangent_state), states[t]["Y"]["beta"][j])

            def step(x, beta):
                return update(x, beta, gradient(x[0], t), t + 1)

            columns.append(jvp(step, (x, beta), tangents)[1][0])
        return {n: torch.stack([c[n] for c in columns]) for n in h}

    def replay(start: int, delta: Tensor) -> Tensor:
        x, y, h = states[start]["x"], states[start]["y"], states[start]["X"][0]
        y = {**y, "beta": y["beta"] + delta}
        for t in range(start, STEPS):
            g = gradient(x[0], t)
            meta_gradient = z[t]
            if mode != "L":
                trace = h if mode == "full" else states[t]["X"][0]
                meta_gradient = sum(torch.einsum("k...,...->k", trace[n], g[n]) for n in g)
            if mode == "full":
                h = next_trace(x, y["beta"], h, t)
            x = update(x, y["beta"], g, t + 1)
            u, state = meta.update(meta_gradient, y["state"], t + 1)
            y = {"beta": y["beta"] - ETA * u, "state": state}
        return torch.cat([w.flatten() for w in x[0].values()])

    total = torch.zeros(8, m, dtype=torch.float64)
    shifts = EPS * torch.cat([torch.eye(m), -torch.eye(m)]).double()
    for start in range(STEPS):
        ends = vmap(lambda delta, s=start: replay(s, delta))(shifts)
        derivative = (ends[:m] - ends[m:]).T / (2 * EPS)
        total += gamma ** (STEPS - 1 - start) * ((1 - gamma) if start else 1.0) * derivative
    return total


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
