"""The forward view (the paper's Sec. 2, eq. 4) along a run that has been made.

What a step size is *for* is ``F_t = (1 - gamma) sum_{tau > t} gamma^(tau-t-1) f_tau(w_tau)``, and
d F_t / d beta_t is what the meta-gradients approximate. It needs the future, so no learner can use
it; after a run it can be computed, by going back through every step that was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from clmeta.errors import bad, require
from clmeta.general import GeneralMetaOptimize
from clmeta.general.curvature import gradient
from clmeta.ground.checks import count_or_none, one_of, whole
from clmeta.ground.forward import Tree, scale, tree_map

META = ("frozen", "live")


def forward_view(
    engine: GeneralMetaOptimize,
    loss: Callable[..., Tensor],
    states: Sequence[dict[str, Any]],
    batches: Sequence[tuple],
    *,
    meta: str = "frozen",
    horizon: int | None = None,
    block: int = 100,
) -> Tensor:
    """d F_t / d beta_t for every step t of a run, by unrolled reverse differentiation.

    With s the state of the whole learner, s+ = T_t(s) its step t, J_t = d T_t / d s and e_w the
    embedding of the weights, going back from the last step::

        A_t = e_w grad f_t(w_t) + gamma J_t^T A_{t+1}
        d F_t / d beta_t = (1 - gamma) (rows of beta of J_t^T A_{t+1})

    with weight 1 instead of (1 - gamma) at the first step of the run, because beta before it
    counts as beta_0, just as in H. Everything goes through T: weights, base state, and beta, which
    persists, so that a change of beta_t shifts all later beta. ``meta`` says what else it does:

    * ``"frozen"``: nothing. Later meta updates are constants. ``L``/``exact`` is this.
    * ``"live"``: later meta-gradients, the trace that they come from and the meta rule's state
      react too, in the way of the engine that made the run. This is the derivative of what
      really happens. ``full`` aims at it where ``full`` makes the run, and differs from it by
      what Algorithm 1 holds constant (Y and the base state's tangents inside T) and, along
      another mode's run, by reacting through its own trace instead of that mode's.

    Bounds of beta count as inactive in ``frozen``.

    Args:
        engine: the one that made the run, or one built like it.
        loss: its loss.
        states: ``engine.state_dict()`` before each step; only ``t``, ``x``, ``y`` and ``X`` are
            used. Step t's own is ``states[t]``; the whole run is kept in memory.
        batches: of each step, as they were given to ``engine.step``.
        meta: ``"frozen"`` or ``"live"``.
        horizon: each t sees at least the next ``horizon`` losses, as far as the run has them: all
            up to ``horizon`` after the end of its block. None: all up to the end of the run.
        block: steps in a block; costs (block + horizon) / block sweeps.

    Returns:
        (steps, M), in the order of ``engine.labels``.

    Raises:
        BadArgument: for an unknown ``meta``, a ``live`` view of an engine whose own trace is not
            ``L`` (its step has no closed form to go back through here), or lengths that differ.
    """
    one_of("meta", meta, tuple(META))
    if meta == "live" and engine.approximation != "L":
        bad("meta", meta, f"the run was made by {engine.approximation!r}; 'live' needs an 'L' run")
    steps = len(batches)
    require(len(states) == steps, "states", len(states), f"give one per batch, {steps}")
    horizon = count_or_none("horizon", horizon)
    block = whole("block", block, least=1)
    if horizon is None:
        block, horizon = max(steps, 1), 0
    back = _live if meta == "live" else _frozen
    out = engine.beta.new_zeros(steps, engine.beta.numel())
    for start in range(0, steps, block):
        stop = min(start + block, steps)
        adjoint: Tree = None
        for t in range(min(stop + horizon, steps) - 1, start - 1, -1):
            state, step = back(engine, loss, states[t], batches[t])
            pulled, g = _pull(step, state, adjoint)
            if t < stop:
                first = states[t]["t"] == 0
                out[t] = pulled["beta"] * (1 if first else 1 - engine.gamma)
            weights, rest = pulled["x"]
            adjoint = scale({**pulled, "x": (weights, rest)}, engine.gamma)
            adjoint["x"] = (tree_map(torch.add, adjoint["x"][0], g), adjoint["x"][1])
    return out


def suggested_horizon(gamma: float, weight: float = 0.01) -> int:
    """Number of steps after which gamma^steps has fallen to ``weight``.

    Raises:
        BadArgument: for gamma = 1, where it never does.
    """
    require(0 <= gamma < 1, "gamma", gamma, "for gamma = 1 give a horizon of your own")
    return 1 if gamma <= weight else math.ceil(math.log(weight) / math.log(gamma))


def _pull(step: Callable[[Tree], tuple], state: Tree, adjoint: Tree) -> tuple[Tree, Tree]:
    """``J^T adjoint`` of one step, and the gradient of its loss; None stands for a zero adjoint."""
    _, back, g = vjp(step, state, has_aux=True)  # type: ignore[misc]
    if adjoint is None:
        return tree_map(torch.zeros_like, state), g
    return back(adjoint)[0], g


def _frozen(engine: GeneralMetaOptimize, loss: Callable, saved: dict, batch: tuple) -> tuple:
    """One step as a function of x and beta; what the meta update adds to beta is a constant."""
    t = saved["t"] + 1

    def step(s: Tree) -> tuple[Tree, Tree]:
        g, _ = gradient(loss, s["x"][0], batch)
        return {"x": engine.map.move(s["x"], s["beta"], g, t), "beta": s["beta"]}, g

    return {"x": saved["x"], "beta": saved["y"]["beta"]}, step


def _live(engine: GeneralMetaOptimize, loss: Callable, saved: dict, batch: tuple) -> tuple:
    """One step of an ``L`` engine as a function of everything that it carries on."""
    t, map_ = saved["t"] + 1, engine.map

    def step(s: Tree) -> tuple[Tree, Tree]:
        dx = scale(s["X"], engine.gamma)
        at = engine.curvature.at(s["x"][0], dx[0], batch)
        z = map_.meta_gradient(s["X"][0], at.g)
        y = map_.update_meta({"beta": s["beta"], "state": s["meta"]}, z, t)
        x, new_x = map_.advance_base(s["x"], s["beta"], at, t, dx, map_.identity(z), False)
        return {"x": x, "beta": y["beta"], "meta": y["state"], "X": new_x}, at.g

    y = saved["y"]
    return {"x": saved["x"], "beta": y["beta"], "meta": y["state"], "X": saved["X"]}, step
