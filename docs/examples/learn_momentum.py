"""Momentum and step size learned together, online, on a stream whose target drifts.

    python docs/examples/learn_momentum.py [--steps 2000] [--out docs/figures/learn_momentum.png]

A linear learner follows a target that holds still, then drifts, then holds still again, for so many
steps each. The step size starts far too small, at 1e-3, and momentum starts far off on either side,
at 0.05 or at 0.95. Step sizes are bounded by 1, which the drift makes them reach. Dashed lines: the
step size is learned and momentum stays. The meta-gradient of momentum goes beyond the paper, whose
Sec. 9 names it as open.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from clmeta.general import GeneralMetaOptimize
from clmeta.rules import Adam, SGDm

PHASES = 3
DRIFT = 0.03
SCALES = torch.logspace(0, -1, 10)


def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Half the mean squared error of a linear learner."""
    return 0.5 * ((x @ params["w"] - y) ** 2).mean()


def stream(steps: int, seed: int = 0, n: int = 10, batch: int = 4, noise: float = 0.1):
    """(x, y) with y = <target, x> + noise; the target drifts in the middle phase of three."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(n, generator=generator)
    velocity = torch.zeros(n)
    for phase in range(PHASES):
        for _ in range(steps):
            if phase == 1:
                # A smooth path: the velocity forgets within 100 steps.
                kick = torch.randn(n, generator=generator)
                velocity = 0.99 * velocity + (1 - 0.99**2) ** 0.5 * DRIFT * kick
                target = target + velocity
            x = SCALES * torch.randn(batch, n, generator=generator)
            yield x, x @ target + noise * torch.randn(batch, generator=generator)


def run(
    steps: int, learn: tuple[str, ...], rho: float, alpha0: float = 1e-3
) -> dict[str, np.ndarray]:
    """Loss, step size and momentum at every step."""
    eta = {"alpha": 1e-2, "rho": 2e-2}
    learner = GeneralMetaOptimize(
        loss,
        {"w": torch.zeros(10)},
        base=SGDm(rho=rho),
        meta=Adam(),
        alpha0=alpha0,
        eta={kind: eta[kind] for kind in learn},
        gamma=0.99,
        learn=learn,
        alpha_max=1.0,
    )
    path: dict[str, list[float]] = {"loss": [], "alpha": [], "rho": []}
    for x, y in stream(steps):
        path["loss"].append(float(learner.step(x, y)))
        values = learner.meta_parameters()
        path["alpha"].append(float(values["alpha"]))
        path["rho"].append(float(values.get("rho", torch.tensor(rho))))
    return {name: np.array(values) for name, values in path.items()}


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last ``width`` values."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    return (total[width:] - total[:-width]) / width


def main() -> None:
    """Run the three learners and draw their trajectories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="steps of each of the three phases")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/learn_momentum.png"))
    args = parser.parse_args()
    width = max(1, args.steps // 10)
    figure, axes = plt.subplots(3, 1, figsize=(7, 7.5), sharex=True, constrained_layout=True)
    for rho, color in ((0.05, "tab:blue"), (0.95, "tab:orange")):
        for learn, style in ((("alpha", "rho"), "-"), (("alpha",), "--")):
            path = run(args.steps, learn, rho)
            label = f"momentum {'learned from' if 'rho' in learn else 'fixed at'} {rho}"
            look = {"color": color, "linestyle": style, "linewidth": 1.3}
            mean = smooth(path["loss"], width)
            steps = np.arange(len(mean)) + len(path["loss"]) - len(mean)
            axes[0].plot(steps, mean, label=label, **look)
            axes[1].plot(path["alpha"], **look)
            axes[2].plot(path["rho"], **look)
            by_phase = [part.mean() for part in np.split(path["loss"], PHASES)]
            print(label.ljust(28), "mean loss by phase:", " ".join(f"{v:.4f}" for v in by_phase))
    titles = (f"loss (mean of {width} steps)", "step size", "momentum")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_ylabel(title)
        ax.axvspan(args.steps, 2 * args.steps, color="0.92", zorder=0)
        ax.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    axes[2].set_xlabel("step (grey: the target drifts)")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130)
    print("wrote", args.out)


if __name__ == "__main__":
    main()
