"""Small networks, every kind of MetaOptimize and a loop, for the tests of torch's contract."""

from __future__ import annotations

import functools

import torch
from torch import nn

from clmeta import MetaOptimize

SGDM = functools.partial(torch.optim.SGD, momentum=0.9)
SETTINGS = {"alpha0": 1e-2, "eta": 0.1, "gamma": 0.9, "weight_decay": 0.1}

KINDS = {
    "scalar": {},
    "layer": {"base": "lion", "blocks": "layer"},
    "tensor": {"base": "sgdm", "meta": "lion", "blocks": "tensor"},
    "node": {"blocks": "node"},
    "weight": {"base": "rmsprop", "meta": "sgdm", "blocks": "weight"},
    "fixed": {"meta": "none", "blocks": "layer"},
    "fixed weights": {"meta": "none", "blocks": "weight"},
    "wrapped": {"base": torch.optim.AdamW, "blocks": "layer"},
    "wrapped, fixed": {"base": SGDM, "meta": "none", "blocks": "tensor"},
    "exact": {"base": "sgdm", "hessian": "exact", "blocks": "layer"},
    "diagonal": {"base": "adamw", "hessian": "diagonal", "blocks": "scalar"},
}


def net(seed=0, width=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def make(kind, seed=0, model=None, **changes):
    """A network and its optimiser."""
    model = net(seed) if model is None else model
    return model, MetaOptimize(model.named_parameters(), **{**SETTINGS, **KINDS[kind], **changes})


def learn(model, optimizer, steps=4, seed=1):
    """Some steps, with the graph of the gradients where the optimiser needs it."""
    inputs = torch.Generator().manual_seed(seed)
    params = [*model.parameters()]
    for _ in range(steps):
        loss = model(torch.randn(8, 4, generator=inputs)).square().mean()
        grads = torch.autograd.grad(loss, params, create_graph=optimizer.needs_graph)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        optimizer.zero_grad()


def twin_of(model, kind, **changes):
    """Another network of the same weights, and a fresh optimiser of the same kind."""
    other, optimizer = make(kind, seed=7, **changes)
    other.load_state_dict(model.state_dict())
    return other, optimizer


def everything(model, optimizer):
    """All numbers of a network and its optimiser, copied."""
    numbers = [p.detach().clone() for p in model.parameters()] + [optimizer.alpha.clone()]
    for p in model.parameters():
        state = optimizer.state.get(p, {})
        numbers += [torch.as_tensor(state[key]).clone() for key in sorted(state)]
    return numbers


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b.to(a.dtype))
