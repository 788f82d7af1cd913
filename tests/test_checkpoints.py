"""Checkpoints of the version before load, and go on as that version did.

Each file holds what a checkpoint needs (``weights``, flat, and ``state``, a state_dict), what was
fed to the next steps (``given``), and what these came to (``weights_after``, ``alpha_after``).
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from optimizer_parts import NAMES, QUICK, SHAPES, compiled
from torch import nn

from clmeta import Hessian, MetaOptimize

FOLDER = Path(__file__).parent / "data" / "checkpoints"
HOW = {"alpha0": 1e-2, "eta": 1e-2, "gamma": 0.9, "weight_decay": 0.1}
RULES = {
    "native": {"base": "adamw", "meta": "adam", "blocks": "layer"},
    "lists": {"base": "rmsprop", "meta": "lion", "blocks": "tensor"},
    "masked": {"base": "sgdm", "meta": "rmsprop", "blocks": "scalar"},
    "node": {"base": "lion", "meta": "adam", "blocks": "node"},
    "weight": {"base": "adamw", "meta": "sgdm", "blocks": "weight"},
    "node_masked": {"base": "adamw", "meta": "rmsprop", "blocks": "node"},
    "fixed": {"base": "adamw", "meta": "none", "blocks": "layer"},
    "float": {"base": "adamw", "meta": "adam", "blocks": "weight"},
    "half": {"base": "adamw", "meta": "adam", "blocks": "layer"},
}
NESTEROV = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True)
DIAGONAL = Hessian("diagonal", smoothing=0.9, low=0.0, seed=3)
OTHERS = {
    "wrapped": {"base": torch.optim.AdamW, "meta": "adam", "blocks": "layer"},
    "wrapped_sgd": {"base": NESTEROV, "meta": "adam", "blocks": "layer"},
    "exact": {"base": "adamw", "meta": "adam", "blocks": "layer", "hessian": "exact"},
    "diagonal": {"base": "sgdm", "meta": "adam", "blocks": "layer", "hessian": DIAGONAL},
}
#: What rounding may do: of weights, and relative to step sizes, which are never in half precision.
TOLERANCES = {
    torch.float64: ({"rtol": 1e-12, "atol": 1e-14}, 1e-12),
    torch.float32: ({"rtol": 1e-5, "atol": 1e-6}, 1e-5),
    torch.bfloat16: ({"rtol": 1e-2, "atol": 1e-3}, 1e-4),
}


def split(flat):
    counts = [torch.Size(shape).numel() for shape in SHAPES]
    return [x.view(shape) for x, shape in zip(flat.split(counts), SHAPES, strict=True)]


def loss(params, targets):
    """Neither quadratic nor separable, so that second derivatives matter."""
    parts = [p - c for p, c in zip(params, targets, strict=True)]
    separate = sum((d**4).sum() + (d**2).sum() for d in parts) / 4
    return separate + sum(d.sum() for d in parts) ** 2 / 20


def assert_goes_on(name, options):
    file = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    params = [nn.Parameter(w.clone()) for w in split(file["weights"])]
    optimizer = MetaOptimize(zip(NAMES, params, strict=True), **HOW, **options)
    optimizer.load_state_dict(file["state"])
    tolerance, relative = TOLERANCES[params[0].dtype]
    afters = zip(file["given"], file["weights_after"], file["alpha_after"], strict=True)
    for given, weights, alpha in afters:
        optimizer.zero_grad()
        if optimizer.needs_graph:
            loss(params, split(given)).backward(create_graph=True)
        else:
            for p, g in zip(params, split(given), strict=True):
                p.grad = g.clone()
        optimizer.step()
        optimizer.zero_grad()
        found = torch.cat([p.detach().flatten() for p in params])
        torch.testing.assert_close(found, weights, **tolerance)
        torch.testing.assert_close(optimizer.alpha, alpha, rtol=relative, atol=0)
    return file, optimizer


@pytest.mark.parametrize("engine", ["auto", *QUICK, compiled])
@pytest.mark.parametrize("name", RULES)
def test_a_checkpoint_of_the_version_before_goes_on_by_any_engine(name, engine):
    if (name, engine) == ("half", "native"):
        pytest.skip("there are no C programs for half precision")
    assert_goes_on(name, {**RULES[name], "engine": engine})


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_kind_goes_on(name):
    assert_goes_on(name, OTHERS[name])


@pytest.mark.parametrize("name", [*RULES, *OTHERS])
def test_the_steps_of_a_checkpoint_are_not_those_of_a_fresh_optimiser(name):
    """So that what is loaded matters, and the tests above can fail."""
    file = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    moved = file["weights_after"][0] - file["weights"]
    assert file["alpha_after"].shape[0] == len(file["given"]) == 5
    assert moved.abs().max() > 0
    if name != "fixed":
        assert not torch.allclose(file["alpha_after"], file["alpha_after"][:1], rtol=1e-6)


def test_every_stored_checkpoint_is_tried():
    assert {path.stem for path in FOLDER.glob("*.pt")} == RULES.keys() | OTHERS.keys()
