"""How true are the approximations of the meta-gradient? A study on a real stream.

    python benchmarks/fidelity.py [--steps 600] [--grid-steps 240] [--out docs/figures]

Digits with permuted inputs (three tasks), a 64-16-10 ReLU network with a block per layer, float64.
Every mode's meta-gradient is taken along the run of the Hessian-free optimiser. Writes
``fidelity.png``, ``fidelity.pdf`` and the numbers behind them, ``fidelity.csv``; prints tables.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from clmeta import MetaOptimize
from clmeta.analysis.fidelity import EXACT, MODES, Fidelity, fidelity, fidelity_grid
from clmeta.analysis.fidelity_cost import peak_bytes
from clmeta.analysis.fidelity_plot import plot_fidelity_panels
from clmeta.errors import NonFiniteError
from clmeta.general import functional_loss
from clmeta.models import make_model
from clmeta.streams import load_dataset, permuted_inputs

TASKS, BATCH, HIDDEN, WINDOW = 3, 16, 16, 30
ORDER = [
    EXACT,
    "2x2/exact",
    "L/exact",
    "L/exact condensed",
    "L/diagonal",
    "L/diagonal sampled",
    "L/free",
]
#: The exact diagonal takes n products a step: in the main runs only.
GRID_MODES = [mode for mode in ORDER if mode != "L/diagonal"]
STUDIES: dict[str, dict[str, Any]] = {
    "AdamW, meta Adam": {"base": "adamw", "meta": "adam", "alpha0": 2e-3},
    "SGDm, meta Adam": {"base": "sgdm", "meta": "adam", "alpha0": 0.05},
}
#: Step sizes held fixed, where only the Hessian's treatment can matter.
ALPHAS = {
    "AdamW, meta Adam": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "SGDm, meta Adam": (0.01, 0.03, 0.1, 0.3, 1.0),
}
LARGE_ETA: dict[str, Any] = {
    "base": "sgd",
    "meta": "sgd",
    "blocks": "layer",
    "alpha0": 0.5,
    "eta": 0.1,
    "gamma": 0.99,
}
ETA, GAMMA = 0.01, 0.99
ETAS, GAMMAS = (0.001, 0.01, 0.03, 0.1), (0.9, 0.999, 1.0)  # beside ETA and GAMMA


def problem(steps: int, seed: int) -> tuple[Any, dict, list[tuple], list[int]]:
    """Loss, parameters, batches and first steps of the tasks."""
    stream = permuted_inputs(
        load_dataset("digits"),
        tasks=TASKS,
        batch_size=BATCH,
        steps_per_task=steps // TASKS,
        seed=seed,
    )
    model = make_model("mlp", stream.input_shape, stream.n_classes, {"hidden": HIDDEN}, seed=seed)
    loss, params = functional_loss(model.double(), cross_entropy)
    batches = [(x.double().clone(), y.clone()) for x, y, _, _ in stream]
    return loss, params, batches, stream.boundaries[1:]


def optimiser_cost(batches: list[tuple], seed: int) -> dict[str, Any]:
    """The same for a whole step (forward, backward, update) of ``MetaOptimize`` itself."""
    torch.manual_seed(seed)
    model = make_model("mlp", (1, 8, 8), 10, {"hidden": HIDDEN}, seed=seed).double()
    optimiser = MetaOptimize(model.named_parameters(), "adamw", "adam", "layer")

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()

    times = []
    for batch in batches:
        started = time.perf_counter()
        step(*batch)
        times.append(1e3 * (time.perf_counter() - started))
    peak = peak_bytes(lambda: step(*batches[0]), torch.device("cpu"))
    n = sum(p.numel() for p in model.parameters())
    kept = 4 * n * 8  # weights, m, v, h
    return {
        "mode": "MetaOptimize",
        "ms": statistics.median(times),
        "peak_bytes": peak,
        "kept_bytes": kept,
        "failed_at": -1,
    }


def total(run: Fidelity, against: str) -> pd.DataFrame:
    """Scores of the sum over the whole run, all blocks together."""
    table = run.scores(against, sums=len(run.loss))
    return table[table["block"] == "all"].set_index("mode")


def summary(run: Fidelity) -> pd.DataFrame:
    """A row a mode: step by step against the exact mode, in total against the forward view."""
    whole = run.scores()
    local = run.scores(window=WINDOW)
    whole, local = (t[t["block"] == "all"] for t in (whole, local))
    table = whole.set_index("mode")[["cosine", "sign", "bias"]]
    table["worst window"] = local.groupby("mode")["cosine"].min()
    table = table.reindex([mode for mode in ORDER if mode in run.z])
    table.loc[EXACT, ["cosine", "sign", "bias", "worst window"]] = [1, 1, 0, 1]
    for view in ("live", "frozen"):
        table[f"total, {view}"] = total(run, f"forward/{view}")["bias"]
    return table.join(run.cost.set_index("mode"))


def over_alpha(title: str, loss: Any, params: dict, batches: list[tuple]) -> pd.DataFrame:
    """Median cosine with ``L``/``exact`` (``full`` is the same here) by fixed step size."""
    settings = {**STUDIES[title], "meta": "none", "blocks": "layer", "gamma": GAMMA}
    settings["modes"] = [m for m in GRID_MODES if m.startswith("L/")]
    columns = {}
    for alpha in ALPHAS[title]:
        run = fidelity(loss, params, batches, **{**settings, "alpha0": alpha})
        scores = run.scores("L/exact", window=WINDOW).query("block == 'all'")
        columns[alpha] = scores.groupby("mode")["cosine"].median()
        columns[alpha]["(loss, last 30 steps)"] = run.loss[-30:].mean()
    return pd.DataFrame(columns).rename_axis("mode")


def losses_over_eta(title: str, loss: Any, params: dict, batches: list[tuple]) -> pd.DataFrame:
    """How well the run itself learned, by eta."""
    row = {}
    for eta in ETAS:
        settings = {**STUDIES[title], "blocks": "layer", "gamma": GAMMA, "eta": eta}
        row[eta] = fidelity(loss, params, batches, modes=[], **settings).loss[-30:].mean()
    return pd.DataFrame([row], index=["(loss, last 30 steps)"]).rename_axis("mode")


def on_their_own(loss: Any, params: dict, batches: list[tuple]) -> pd.DataFrame:
    """Loss at the end where each mode makes its own run, with a large meta step size."""
    row = {}
    for mode in (EXACT, "2x2/exact", "L/exact", "L/exact condensed", "L/free"):
        try:
            run = fidelity(loss, params, batches, modes=[], driver=mode, **LARGE_ETA)
            row[mode] = float(run.loss[-30:].mean())
        except NonFiniteError as error:
            row[mode] = f"diverged, {str(error).split(':')[0]}"
    return pd.DataFrame([row], index=["loss, last 30 steps"]).rename_axis("mode")


def show(table: pd.DataFrame) -> None:
    """Print as Markdown."""
    table = table.reset_index()
    print("| " + " | ".join(map(str, table.columns)) + " |")
    print("|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        cells = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row)
        print("| " + " | ".join(cells) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="of the main runs")
    parser.add_argument("--grid-steps", type=int, default=240, help="of the runs over eta, gamma")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    assert set(ORDER) <= set(MODES.names())
    loss, params, batches, switches = problem(arguments.steps, arguments.seed)
    loss, params, few, _ = problem(arguments.grid_steps, arguments.seed)
    panels, parts = {}, []
    for title, rules in STUDIES.items():
        settings = {**rules, "blocks": "layer"}
        run = fidelity(
            loss,
            params,
            batches,
            modes=ORDER,
            forward=("live", "frozen"),
            eta=ETA,
            gamma=GAMMA,
            **settings,
        )
        print(f"## {title}\n")
        print(f"loss, last 30 steps: {run.loss[-30:].mean():.3f}; ", end="")
        print("step sizes at the end:", np.exp(run.beta[-1]).round(4), "\n")
        show(summary(run))
        shared = {"modes": GRID_MODES, "window": WINDOW, **settings}
        over_eta = fidelity_grid(loss, params, few, etas=ETAS, gammas=[GAMMA], **shared)
        over_gamma = fidelity_grid(loss, params, few, etas=[ETA], gammas=GAMMAS, **shared)
        centre = over_eta[over_eta["eta"] == ETA]
        grids = {"eta": over_eta, "gamma": pd.concat([over_gamma, centre])}
        show(losses_over_eta(title, loss, params, few))
        show(over_alpha(title, loss, params, few))
        panels[title] = {"time": run.scores(window=WINDOW), **grids}
        for name, table in panels[title].items():
            parts.append(table.assign(study=title, part=name))
        for name, table in grids.items():
            median = table[table["block"] == "all"].groupby(["mode", name])["cosine"].median()
            show(median.unstack().reindex(GRID_MODES[1:]))
    show(on_their_own(loss, params, few))
    show(pd.DataFrame([optimiser_cost(batches, arguments.seed)]).set_index("mode"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).round(4).to_csv(arguments.out / "fidelity.csv", index=False)
    figure = plot_fidelity_panels(panels, switches)
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for extension in ("png", "pdf"):
            figure.savefig(arguments.out / f"fidelity.{extension}", dpi=300)


if __name__ == "__main__":
    main()
