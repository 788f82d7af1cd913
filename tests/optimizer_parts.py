"""Small parameters, gradients and every path of MetaOptimize, for the tests of it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from clmeta import MetaOptimize
from clmeta.engines.lists import ListPath
from clmeta.engines.masked import MaskedPath

SHAPES = [(4, 3), (4,), (2, 4), (2,)]
NAMES = ["one.weight", "one.bias", "two.weight", "two.bias"]


def params_of(seed=0, dtype=torch.float64, shapes=SHAPES):
    make = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(s, generator=make, dtype=torch.float64).to(dtype)) for s in shapes
    ]


def gradients(steps, seed=1, dtype=torch.float64, shapes=SHAPES):
    make = torch.Generator().manual_seed(seed)
    drift = [torch.randn(s, generator=make, dtype=torch.float64) for s in shapes]
    for _ in range(steps):
        yield [
            (d + torch.randn(s, generator=make, dtype=torch.float64)).to(dtype)
            for s, d in zip(shapes, drift, strict=True)
        ]


def feed(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = g.to(p.dtype, copy=True)


def masked(optimizer):
    """The accelerators' path, on the CPU."""
    optimizer._path = MaskedPath(optimizer, optimizer._path.rule, optimizer.granularity)
    return optimizer


def lists(optimizer):
    """The path without a C compiler."""
    optimizer._path = ListPath(optimizer, optimizer._path.rule)
    return optimizer


#: What makes an optimiser of rules take each of its paths.
PATHS = {"native": lambda optimizer: optimizer, "lists": lists, "masked": masked}

MAKERS = {
    "native": lambda params: MetaOptimize(params, blocks="layer"),
    "lists": lambda params: lists(MetaOptimize(params, blocks="layer")),
    "masked": lambda params: masked(MetaOptimize(params, blocks="layer")),
    "wrapped": lambda params: MetaOptimize(params, torch.optim.AdamW, blocks="layer"),
    "fused": lambda params: MetaOptimize(
        params, functools.partial(torch.optim.AdamW, fused=True), blocks="layer"
    ),
    "weight": lambda params: MetaOptimize(params, blocks="weight"),
    "node": lambda params: MetaOptimize(params, blocks="node"),
    "weight, masked": lambda params: masked(MetaOptimize(params, blocks="weight")),
    "node, masked": lambda params: masked(MetaOptimize(params, blocks="node")),
    "fixed": lambda params: MetaOptimize(params, meta="none", blocks="layer"),
}
every_path = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def build(make, dtype=torch.float32, seed=0):
    params = params_of(seed, dtype)
    return params, make(list(zip(NAMES, params, strict=True)))


def run(params, optimizer, grads):
    for each in grads:
        feed(params, each)
        optimizer.step()


def snapshot(params, optimizer):
    return [p.detach().clone() for p in params] + [optimizer.alpha.clone()]
