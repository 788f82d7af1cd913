"""MetaOptimize against the authors' recorded runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer_parts import QUICK
from torch import nn
from torch.nn.functional import cross_entropy

from clmeta import MetaOptimize
from clmeta.rules import Adam, Lion, RMSprop


class PaperCNN(nn.Module):
    """The network of the recorded runs."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, x):
        return self.classifier(self.features(x))


AUTHORS = {
    "adamw_adam_scalar": (Adam(accumulate=True), Adam(accumulate=True), "scalar", 1e-4, 0.1, 1e-3),
    "adamw_adam_2block": (Adam(accumulate=True), Adam(accumulate=True), "head", 1e-4, 0.1, 1e-3),
    "rmsprop_rmsprop_2block": (RMSprop(), RMSprop(), "head", 1e-3, 0.0, 1e-2),
    "lion_lion_2block": (Lion(), Lion(), "head", 1e-4, 0.01, 1e-3),
}


@pytest.mark.parametrize("case", sorted(AUTHORS))
@pytest.mark.parametrize("engine", QUICK)
def test_trajectories_equal_the_authors_optimiser(shared, case, engine):
    recorded = np.load(shared / "data" / "parity_400_steps.npz")
    base, meta, blocks, alpha0, kappa, eta = AUTHORS[case]
    steps = 50 if engine == "masked" else 400
    net = PaperCNN()
    net.load_state_dict({n: torch.from_numpy(recorded[f"w0/{n}"]) for n in net.state_dict()})
    optimizer = MetaOptimize(
        net.named_parameters(),
        base,
        meta,
        blocks,
        alpha0=alpha0,
        eta=eta,
        gamma=0.999,
        weight_decay=kappa,
        engine=engine,
    )
    x = torch.from_numpy(recorded["x"]).float() / 255
    y = torch.from_numpy(recorded["y"]).long()
    alphas = []
    for i in range(steps):
        alphas.append(optimizer.alpha.tolist())
        optimizer.zero_grad()
        cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        optimizer.step()
    error = np.abs(np.array(alphas) / recorded[f"{case}/alpha"][:steps] - 1)
    assert error[:50].max() < 1e-4
    assert error[-1].max() < 0.1
