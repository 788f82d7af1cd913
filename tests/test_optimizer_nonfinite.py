"""Gradients that are not finite reach nothing, and nothing waits for a device to know."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_parts import (
    MAKERS,
    NAMES,
    build,
    every_path,
    feed,
    gradients,
    masked,
    params_of,
    run,
    snapshot,
)
from torch.utils._python_dispatch import TorchDispatchMode

from clmeta import MetaOptimize, NonFiniteError

BAD_STEP = 2


@every_path
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_gradient_reaches_nothing_and_is_named(make, value):
    params, optimizer = build(make)
    for step, grads in enumerate(gradients(4)):
        feed(params, grads)
        if step == BAD_STEP:
            params[2].grad[0, 1] = value
        before = snapshot(params, optimizer)
        optimizer.step()
        if step == BAD_STEP:
            for a, b in zip(before, snapshot(params, optimizer), strict=True):
                assert torch.equal(a, b)
    assert all(torch.isfinite(p).all() for p in params)
    with pytest.raises(NonFiniteError, match=r"step 2: .*'two"):
        optimizer.step_sizes()
    with pytest.raises(NonFiniteError):
        optimizer.state_dict()


@pytest.mark.parametrize("path", ["native", "lists", "masked", "weight"])
def test_a_skipped_step_is_as_if_it_had_not_been(path):
    grads = list(gradients(6))
    runs = []
    for poisoned in (True, False):
        params = params_of(dtype=torch.float32)
        named = list(zip(NAMES, params, strict=True))
        blocks = "weight" if path == "weight" else "layer"
        optimizer = MetaOptimize(named, blocks=blocks, nonfinite="skip")
        if path == "masked":
            masked(optimizer)
        for step, each in enumerate(grads):
            if poisoned and step == 3:
                feed(params, each)
                params[0].grad.fill_(math.nan)
                optimizer.step()
            feed(params, each)
            optimizer.step()
        assert optimizer.withheld == int(poisoned)
        assert all(math.isfinite(alpha) for alpha in optimizer.step_sizes().values())
        runs.append(snapshot(params, optimizer))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


class NoReads(TorchDispatchMode):
    """Fails on whatever would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "read from the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", ["masked", "weight, masked", "node, masked"])
def test_the_accelerators_path_never_reads_from_the_device(path):
    params, optimizer = build(MAKERS[path])
    with NoReads():
        run(params, optimizer, gradients(3))
        params[0].grad.fill_(math.nan)
        optimizer.step()
