"""How true is an approximation? Meta-gradients of many modes along one and the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from clmeta.analysis.fidelity_cost import peak_bytes, seconds
from clmeta.analysis.forward_view import forward_view
from clmeta.errors import NonFiniteError, bad, require
from clmeta.general import GeneralMetaOptimize
from clmeta.ground.checks import listed, whole
from clmeta.lookup import Wanted
from clmeta.registry import Registry

#: Name to the arguments of ``GeneralMetaOptimize`` that make this mode.
MODES: Registry[dict[str, Any]] = Registry(
    "mode",
    Wanted("a dict of GeneralMetaOptimize's arguments", lambda found: isinstance(found, dict)),
)
EXACT, FREE, FORWARD = "full/exact", "L/free", "forward/"

MODES.register(EXACT, about="Algorithm 1: the reference.")(
    {"approximation": "full", "hessian": "exact"}
)
MODES.register("2x2/exact", about="The trace is a constant inside the step.")(
    {"approximation": "2x2", "hessian": "exact"}
)
MODES.register("L/exact", about="Meta updates are constants as well.")(
    {"approximation": "L", "hessian": "exact", "condensed": False}
)
MODES.register("L/exact condensed", about="One trace vector, the row sum of H.")(
    {"approximation": "L", "hessian": "exact", "condensed": True}
)
MODES.register("L/diagonal", about="The Hessian's diagonal, exactly.")(
    {"approximation": "L", "hessian": "diagonal"}
)
MODES.register("L/diagonal sampled", about="The Hessian's diagonal from one random vector a step.")(
    {"approximation": "L", "hessian": "diagonal", "diagonal_samples": 1}
)
MODES.register(FREE, about="No second-order work: the practical optimiser, Algorithm 3.")(
    {"approximation": "L", "hessian": "free"}
)


@dataclass(frozen=True)
class Fidelity:
    """Meta-gradients along one run.

    Attributes:
        z: series to (steps, M) meta-gradients: one per mode, and ``"forward/frozen"`` and
            ``"forward/live"`` where asked for. NaN from the step on at which a mode failed.
        labels: M names of the entries of beta, such as ``"alpha[head]"``.
        loss: (steps,) loss before each update.
        beta: (steps, M) meta-parameters used in each step.
        gamma: discount.
        cost: a row per mode: ``ms`` and ``peak_bytes`` of a step, measured; ``kept_bytes`` between
            steps; ``failed_at``, the step at which its meta-gradient was not finite, or -1.
    """

    z: dict[str, np.ndarray]
    labels: list[str]
    loss: np.ndarray
    beta: np.ndarray
    gamma: float
    cost: pd.DataFrame

    def scores(
        self, against: str = EXACT, *, sums: int = 1, window: int | None = None
    ) -> pd.DataFrame:
        """Cosine, sign agreement and bias of each mode, per block and for all blocks together.

        With a and r the mode's and the reference's meta-gradients in a window, each summed over
        ``sums`` successive steps::

            cosine = <a, r> / (|a| |r|)            over the window's time (and blocks, for "all")
            sign   = share of entries with equal sign, where r is not zero
            bias   = sum sign(r) (a - r) / sum |r|  mean signed relative error, weighted by |r|:
                     0 true, -0.5 half as large, -1 nothing, above 0 too large

        Comparing with the forward view. Let C[tau, t] = (1 - gamma) gamma^(tau-t-1) times the
        derivative of f_tau(w_tau) by beta_t, for t < tau. The backward view's z_tau is the sum of
        row tau (all past changes, one loss), the forward view's d F_t / d beta_t that of column t
        (one change, all future losses). Step by step the two are therefore *not* comparable, even
        where both are exact; their sums over the whole run are the same number. Over shorter sums
        they differ by the entries that leave through the edges, which is about
        1 / ((1 - gamma) sums) of them: so sum over several times 1 / (1 - gamma) steps, and read
        the exact mode's score as the best that any mode can have. ``sums=len(loss)`` compares the
        whole run: then ``bias`` is the relative error of the total, and ``cosine`` is its sign
        in each block.

        Args:
            against: the reference, a series of ``z``.
            sums: steps summed before comparing.
            window: steps in a window, rounded down to whole sums; None for one over all.

        Returns:
            Columns mode, block, start (first step of the window), cosine, sign, bias.

        Raises:
            BadArgument: for an unknown reference, or sums or windows longer than the run.
        """
        require(against in self.z, "against", against, f"one of {', '.join(self.z)}")
        steps = len(self.loss)
        sums = whole("sums", sums, least=1)
        require(sums <= steps, "sums", sums, f"the run has {steps} steps")
        window = steps if window is None else whole("window", window, least=1)
        require(sums <= window <= steps, "window", window, f"from sums={sums} to {steps} steps")
        summed = {name: _sum(z, sums) for name, z in self.z.items()}
        reference, rows, size = summed.pop(against), [], window // sums
        for name, series in summed.items():
            if name.startswith(FORWARD) and not against.startswith(FORWARD):
                continue
            for start in range(0, len(reference) - size + 1, size):
                a, r = series[start : start + size], reference[start : start + size]
                for j, block in enumerate([*self.labels, "all"]):
                    part = slice(None) if block == "all" else slice(j, j + 1)
                    numbers = score(a[:, part].ravel(), r[:, part].ravel())
                    rows.append({"mode": name, "block": block, "start": start * sums, **numbers})
        return pd.DataFrame(rows)


def score(a: np.ndarray, r: np.ndarray) -> dict[str, float]:
    """Cosine, sign agreement and bias of ``a`` against ``r``; see `Fidelity.scores`.

    Entries at which the reference itself is not finite are left out.
    """
    there = np.isfinite(r)
    a, r = a[there], r[there]
    if not np.isfinite(a).all() or not r.any():
        return {"cosine": np.nan, "sign": np.nan, "bias": np.nan}
    sign, size = np.sign(r), np.abs(r).max()
    unit_a, unit_r = a / (np.abs(a).max() or 1), r / size  # no square of a huge number overflows
    norm = np.linalg.norm(unit_a) * np.linalg.norm(unit_r)
    return {
        "cosine": float(unit_a @ unit_r / norm) if norm != 0 else np.nan,
        "sign": float((np.sign(a) == sign)[r != 0].mean()),
        "bias": float((sign * (a / size - unit_r)).sum() / np.abs(unit_r).sum()),
    }


def fidelity(
    loss: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    batches: Iterable[tuple],
    *,
    modes: Iterable[str] | None = None,
    driver: str = FREE,
    forward: str | Iterable[str] = (),
    horizon: int | None = None,
    **settings: Any,
) -> Fidelity:
    """Meta-gradients of several modes along the run that one of them makes.

    The run is common: weights, base state, beta and meta state come from the ``driver``, and are
    put into every other mode's engine before each step. What each mode keeps of its own are its
    sensitivities (X, Y, Q), hence its trace. So differences are in the meta-gradient only, and
    never the consequence of having learned differently.

    Args:
        loss, params: as ``GeneralMetaOptimize`` takes them; float64 keeps rounding out of it.
        batches: one tuple per step, the further arguments of the loss.
        modes: names in ``MODES``; None for all. A further mode is one entry there.
        driver: the mode that makes the run.
        forward: ``"frozen"`` and ``"live"``, the forward views wanted; see `forward_view`.
        horizon: steps that the forward views see ahead; None: to the end of the run.
        **settings: further arguments of ``GeneralMetaOptimize``: ``base``, ``meta``, ``blocks``,
            ``alpha0``, ``eta``, ``gamma``, ``weight_decay`` ...

    Raises:
        BadArgument: for an unknown mode, no batches, or a setting that a mode cannot have.
        NonFiniteError: if the driver's run diverges. Where another mode's meta-gradient does,
            its series is NaN from there on, and ``cost.failed_at`` says where.
    """
    names = MODES.names() if modes is None else listed("modes", modes)
    forward = listed("forward", forward)
    for key in ("approximation", "hessian", "condensed", "meta_first", "rectify"):
        if key in settings:
            bad(key, settings[key], "part of a mode, or not comparable along one run; see MODES")
    batches = list(batches)
    require(len(batches) > 0, "batches", batches, "give at least one step")
    made = dict.fromkeys([driver, *names])
    engines = {
        name: GeneralMetaOptimize(loss, params, **settings, **MODES.get(name, "modes"))
        for name in made
    }
    main = engines[driver]
    device, steps = main.beta.device, len(batches)
    z = {name: np.full((steps, main.beta.numel()), np.nan) for name in engines}
    ms = {name: np.full(steps, np.nan) for name in engines}
    beta, losses, failed = np.empty_like(z[driver]), np.empty(steps), {}
    states = []
    for t, batch in enumerate(batches):
        state = main.state_dict()
        if forward:
            states.append({key: state[key] for key in ("t", "x", "y", "X")})
        beta[t] = main.beta.cpu().numpy()
        for name, engine in engines.items():
            if name in failed:
                continue
            if engine is not main:
                put_on_the_run(engine, state)
            started = seconds(device)
            try:
                value = engine.step(*batch)
            except NonFiniteError:
                if engine is main:
                    raise
                failed[name] = t
                continue
            ms[name][t] = 1e3 * (seconds(device) - started)
            z[name][t] = engine.z.cpu().numpy()
            if engine is main:
                losses[t] = float(value)
    series = {name: z[name] for name in names}
    for meta in forward:
        view = forward_view(main, loss, states, batches, meta=meta, horizon=horizon)
        series[FORWARD + meta] = view.cpu().numpy()
    cost = pd.DataFrame(
        {
            "mode": name,
            "ms": float(np.median(ms[name][: failed.get(name, steps)]))
            if failed.get(name) != 0
            else np.nan,
            "peak_bytes": _peak(engines[name], batches[-1]),
            "kept_bytes": engines[name].memory_bytes()["kept"],
            "failed_at": failed.get(name, -1),
        }
        for name in names
    )
    return Fidelity(series, main.labels, losses, beta, main.gamma, cost)


def put_on_the_run(engine: GeneralMetaOptimize, state: Mapping[str, Any]) -> None:
    """Weights, base state, beta and meta state of another engine; own sensitivities stay."""
    own = engine.state_dict()
    engine.load_state_dict({**own, **{key: state[key] for key in ("t", "x", "y")}})


def fidelity_grid(
    loss: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    batches: Iterable[tuple],
    *,
    etas: Iterable[float],
    gammas: Iterable[float],
    against: str = EXACT,
    sums: int = 1,
    window: int | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """`Fidelity.scores` of runs with each eta and gamma.

    Args:
        loss, params, batches: as for `fidelity`.
        etas, gammas: meta step sizes and discounts; every pair is a run.
        against, sums, window: as for `Fidelity.scores`.
        **settings: as for `fidelity`.

    Returns:
        The scores with the columns ``eta`` and ``gamma`` in front.
    """
    batches, gammas = list(batches), list(gammas)
    parts = []
    for eta in etas:
        for gamma in gammas:
            run = fidelity(loss, params, batches, eta=eta, gamma=gamma, **settings)
            scores = run.scores(against, sums=sums, window=window)
            scores.insert(0, "gamma", gamma)
            scores.insert(0, "eta", eta)
            parts.append(scores)
    require(len(parts) > 0, "etas", etas, "give at least one eta and one gamma")
    return pd.concat(parts, ignore_index=True)


def _sum(z: np.ndarray, steps: int) -> np.ndarray:
    """Sums over successive whole groups of steps; what is left over at the end is left out."""
    groups = len(z) // steps
    return z[: groups * steps].reshape(groups, steps, -1).sum(1)


def _peak(engine: GeneralMetaOptimize, batch: tuple) -> float:
    """Peak memory of one more step; NaN where the mode can make none."""
    try:
        return peak_bytes(lambda: engine.step(*batch), engine.beta.device)
    except NonFiniteError:
        return np.nan
