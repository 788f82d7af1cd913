"""Small parameters, gradients, and every way to step MetaOptimize, for the tests of it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from clmeta import MetaOptimize
from clmeta.engines.choose import ENGINES
from clmeta.engines.eager import Eager
from clmeta.native import cc
from clmeta.rules import Rule

SHAPES = [(4, 3), (4,), (2, 4), (2,)]
NAMES = ["one.weight", "one.bias", "two.weight", "two.bias"]


@ENGINES.register("masked", about="The way of accelerators, on the CPU: nothing is read back.")
def masked():
    return Eager(masked=True)


needs_compiler = pytest.mark.skipif(cc.compiler() is None, reason="there is no C compiler")
slow = pytest.mark.slow
native = pytest.param("native", marks=needs_compiler)
#: What torch compiles takes seconds a case; .ci/run leaves all but the ordinary ones out.
compiling = [slow, pytest.mark.compiled]
compiled = pytest.param("compiled", marks=compiling)

#: Engines that step rules; the compiled one takes seconds for each form of a step.
QUICK = [native, "eager", "masked"]
every_engine = pytest.mark.parametrize("engine", [*QUICK, compiled])
every_granularity = pytest.mark.parametrize("granularity", ["scalar", "layer", "node", "weight"])


class Changing(Rule):
    """Has an attribute that may change between steps."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "scale", 1.0)

    def update(self, g, state, t):
        object.__setattr__(self, "scale", self.scale + 1)
        return g * self.scale, state


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
        p.grad = None if g is None else g.to(p.dtype, copy=True)


def layers(engine, blocks="layer", **options):
    """What makes an optimiser with a step size a layer, or finer ones."""
    return lambda params: MetaOptimize(params, blocks=blocks, engine=engine, **options)


#: Optimisers of every kind, each for weights of any dtype.
MAKERS = {
    "auto": layers("auto"),
    "eager": layers("eager"),
    "masked": layers("masked"),
    "wrapped": lambda params: MetaOptimize(params, torch.optim.AdamW, blocks="layer"),
    "fused": lambda params: MetaOptimize(
        params, functools.partial(torch.optim.AdamW, fused=True), blocks="layer"
    ),
    "weight": layers("auto", "weight"),
    "node": layers("auto", "node"),
    "weight, eager": layers("eager", "weight"),
    "node, eager": layers("eager", "node"),
    "weight, masked": layers("masked", "weight"),
    "node, masked": layers("masked", "node"),
    "fixed": layers("auto", meta="none"),
}
COMPILED = {
    "compiled": layers("compiled"),
    "node, compiled": layers("compiled", "node"),
    "weight, compiled": layers("compiled", "weight"),
}
every_kind = pytest.mark.parametrize(
    "make",
    [*MAKERS.values(), *(pytest.param(make, marks=compiling) for make in COMPILED.values())],
    ids=[*MAKERS, *COMPILED],
)


def build(make, dtype=torch.float32, seed=0):
    params = params_of(seed, dtype)
    return params, make(list(zip(NAMES, params, strict=True)))


def run(params, optimizer, grads):
    for each in grads:
        feed(params, each)
        optimizer.step()


def snapshot(params, optimizer):
    return [p.detach().clone() for p in params] + [optimizer.alpha.clone()]
