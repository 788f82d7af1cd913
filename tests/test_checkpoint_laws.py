"""The law of going on: a loop restored at every step computes what it would have without a stop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clmeta import Checkpoint, MetaOptimize
from clmeta.strategies.backward import backward
from clmeta.streams import load_dataset, make_stream

STEPS = 10


class Everything(nn.Module):
    """Draws of its own, running statistics, and a buffer that its state dict leaves out."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)
        )
        self.head = nn.Linear(6, 10)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += len(x)
        return self.head(torch.tanh(self.body(x)) * (1 + self.seen / 100))


def learner(**options):
    torch.manual_seed(3)
    model = Everything()
    usual = {"alpha0": 1e-2, "eta": 1e-1, "weight_decay": 0.1}
    return model, MetaOptimize(model.named_parameters(), **{**usual, **options})


def a_stream(kind="permuted_inputs", **options):
    options = {"tasks": 2, "steps_per_task": STEPS // 2, "batch_size": 4, **options}
    return make_stream(kind, load_dataset("digits"), augment="crop-flip", **options)


def went(stream, checkpoint, model, optimizer, most):
    """What is seen of at most so many steps."""
    found = []
    for x, y, _, step in checkpoint.steps(stream):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        backward(loss, optimizer)
        optimizer.step()
        found.append((step, x.sum().item(), y.tolist(), loss.item(), optimizer.alpha.tolist()))
        if len(found) == most:
            break
    return found


CASES = {
    f"{base}-{meta}-{blocks}-{engine}": {
        "base": base,
        "meta": meta,
        "blocks": blocks,
        "engine": engine,
    }
    for engine in ("native", "eager")
    for blocks in ("scalar", "layer", "node", "weight")
    for base, meta in (("sgd", "lion"), ("sgdm", "rmsprop"), ("adamw", "adam"), ("lion", "none"))
}
CASES |= {
    "wrapped": {"base": lambda ps: torch.optim.NAdam(ps, lr=1e-2), "blocks": "layer"},
    "wrapped momentum": {"base": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9)},
    "exact": {"hessian": "exact"},
    "diagonal": {"hessian": "diagonal", "blocks": "layer"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_loop_that_begins_anew_at_every_step_is_the_loop(options, tmp_path):
    stream, (model, optimizer) = a_stream(), learner(**options)
    torch.manual_seed(0)
    wanted = went(stream, Checkpoint(tmp_path / "never", every=None), model, optimizer, STEPS)
    found = []
    for _ in range(STEPS):
        again, its = learner(**options)
        torch.manual_seed(len(found))  # what another process happens to stand at
        checkpoint = Checkpoint(tmp_path, every=None, model=again, optimizer=its)
        found += went(a_stream(), checkpoint, again, its, 1)
        checkpoint.save(len(found), a_stream())
    assert found == wanted
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
