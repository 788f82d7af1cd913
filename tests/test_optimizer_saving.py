"""MetaOptimize saved, pickled or copied goes on bit for bit."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import pytest
import torch
from optimizer_parts import build, every_kind, gradients, run, snapshot
from torch import nn

from clmeta import BadArgument, MetaOptimize


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_saved_and_reloaded_optimiser_continues_bit_for_bit(make, dtype):
    params, optimizer = build(make, dtype)
    run(params, optimizer, gradients(5))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others, reloaded = build(make, dtype, seed=3)
    for q, p in zip(others, params, strict=True):
        q.data.copy_(p.data)
    reloaded.load_state_dict(torch.load(file, weights_only=True))
    assert reloaded.step_sizes() == optimizer.step_sizes()
    run(params, optimizer, gradients(5, seed=2))
    run(others, reloaded, gradients(5, seed=2))
    for a, b in zip(snapshot(params, optimizer), snapshot(others, reloaded), strict=True):
        assert torch.equal(a, b)


@every_kind
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_pickled_or_copied_optimiser_continues_alone(make, how):
    params, optimizer = build(make)
    run(params, optimizer, gradients(5))
    twin = pickle.loads(pickle.dumps(optimizer)) if how == "pickle" else copy.deepcopy(optimizer)
    others = [p for group in twin.param_groups for p in group["params"]]
    before = snapshot(params, optimizer)
    run(others, twin, gradients(5, seed=2))
    for a, b in zip(before, snapshot(params, optimizer), strict=True):
        assert torch.equal(a, b)
    run(params, optimizer, gradients(5, seed=2))
    for a, b in zip(snapshot(params, optimizer), snapshot(others, twin), strict=True):
        assert torch.equal(a, b)
    assert twin.param_groups[0]["lr"].item() == twin.alpha[0].item()


def test_another_optimisers_state_is_refused():
    w = nn.Parameter(torch.ones(2))
    optimizer = MetaOptimize([w])
    with pytest.raises(BadArgument, match="not MetaOptimize's"):
        optimizer.load_state_dict(torch.optim.SGD([w], lr=1.0).state_dict())
    with pytest.raises(BadArgument, match="other blocks"):
        optimizer.load_state_dict(MetaOptimize([w], blocks="tensor").state_dict())
    with pytest.raises(BadArgument, match="state_dict base"):
        optimizer.load_state_dict(MetaOptimize([w], "sgd").state_dict())


def wrapping(make, **settings):
    w = nn.Parameter(torch.ones(2))
    return w, MetaOptimize([w], functools.partial(make, **settings))


def test_settings_of_a_wrapped_optimiser_are_saved_and_restored():
    w, optimizer = wrapping(torch.optim.AdamW, betas=(0.5, 0.6))
    v, other = wrapping(torch.optim.AdamW)
    u, untold = wrapping(torch.optim.AdamW)
    w.grad = torch.ones(2)
    optimizer.step()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    u.grad = torch.ones(2)
    untold.step()
    for x, each in ((w, optimizer), (v, other), (u, untold)):
        x.data.fill_(1.0)
        x.grad = torch.tensor([-3.0, 0.5])
        each.step()
    assert torch.equal(v, w)
    assert not torch.equal(u, w)


def test_another_wrapped_optimisers_state_is_refused():
    _, optimizer = wrapping(torch.optim.AdamW)
    _, other = wrapping(torch.optim.SGD, momentum=0.9)
    with pytest.raises(BadArgument, match="state_dict base='AdamW': this optimiser wraps SGD"):
        other.load_state_dict(optimizer.state_dict())
