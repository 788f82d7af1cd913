"""MetaOptimize behaves as torch's own optimisers do, and refuses what cannot work."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle

import pytest
import torch
from test_optimizer import NAMES, feed, gradients, masked, params_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clmeta import BadArgument, MetaOptimize, NonFiniteError
from clmeta.rules import Adam

MAKERS = {
    "lists": lambda params: MetaOptimize(params, blocks="layer"),
    "masked": lambda params: masked(MetaOptimize(params, blocks="layer")),
    "wrapped": lambda params: MetaOptimize(params, torch.optim.AdamW, blocks="layer"),
    "fused": lambda params: MetaOptimize(
        params, functools.partial(torch.optim.AdamW, fused=True), blocks="layer"
    ),
    "weight": lambda params: MetaOptimize(params, blocks="weight"),
    "node": lambda params: MetaOptimize(params, blocks="node"),
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


@every_path
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


@every_path
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


@every_path
def test_gradients_are_never_written(make):
    params, optimizer = build(make)
    for grads in gradients(4):
        feed(params, grads)
        held = [p.grad for p in params]
        copies = [g.clone() for g in held]
        optimizer.step()
        for p, g, before in zip(params, held, copies, strict=True):
            assert p.grad is g
            assert torch.equal(g, before)


@every_path
def test_parameters_without_gradient_are_skipped_and_shift_nothing(make):
    params, optimizer = build(make)
    other, reference = build(make)
    for grads in gradients(6):
        feed(params, grads)
        feed(other, grads)
        for p in (*params[:2], *other[2:]):
            p.grad = None
        optimizer.step()
        reference.step()
    start = params_of(dtype=torch.float32)
    assert all(torch.equal(p, q) for p, q in zip(params[:2], start[:2], strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(params[2:], start[2:], strict=True))
    ours, theirs = optimizer.step_sizes(), reference.step_sizes()
    still = [name for name in ours if name.startswith("one")]
    assert all(ours[name] == pytest.approx(1e-4) for name in still)
    assert all(theirs[name] == pytest.approx(1e-4) for name in theirs if name not in still)


@every_path
def test_a_late_parameter_does_not_stall_its_block(make):
    params, optimizer = build(make)
    for step, grads in enumerate(gradients(6)):
        feed(params, grads)
        if step < 3:
            params[1].grad = None
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in params)
    assert not torch.equal(params[1], params_of(dtype=torch.float32)[1])


def test_closure_gives_its_loss_with_gradients_on():
    w = nn.Parameter(torch.ones(2))
    optimizer = MetaOptimize([w])

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert w.grad is not None
    optimizer.zero_grad()
    assert w.grad is None


@every_path
def test_a_group_added_later_starts_at_its_own_alpha0(make):
    params, optimizer = build(make)
    run(params, optimizer, gradients(3))
    before = optimizer.step_sizes()
    new = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [new], "name": "new", "alpha0": 0.25})
    after = optimizer.step_sizes()
    assert after == {**before, "new": 0.25}
    new.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(new, torch.ones(3))
    assert optimizer.param_groups[-1]["lr"].item() == optimizer.alpha[-1].item()


def test_the_groups_lr_is_always_the_step_size_in_use():
    params, optimizer = build(MAKERS["lists"])
    seen = optimizer.param_groups[1]["lr"]
    run(params, optimizer, gradients(4))
    assert seen.item() != pytest.approx(1e-4, rel=1e-6)
    assert seen.item() == optimizer.step_sizes()["two"]


def test_grad_scaler_skips_and_unscales_as_for_torch():
    params, optimizer = build(MAKERS["lists"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for bad in (False, True):
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params) * (math.inf if bad else 1.0)
        before = [p.detach().clone() for p in params]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(p, q) for p, q in zip(params, before, strict=True))
        assert moved is not bad
    assert optimizer.withheld == 0


@pytest.mark.parametrize("path", ["lists", "masked", "wrapped", "weight"])
def test_half_precision_weights_keep_state_in_float32(path):
    params, optimizer = build(MAKERS[path], torch.float16)
    run(params, optimizer, gradients(3, dtype=torch.float16))
    assert optimizer.alpha.dtype == torch.float32
    assert all(optimizer.state[p]["h"].dtype == torch.float32 for p in params)
    assert all(p.dtype == torch.float16 for p in params)
    others, reloaded = build(MAKERS[path], torch.float16)
    reloaded.load_state_dict(optimizer.state_dict())
    assert all(reloaded.state[p]["h"].dtype == torch.float32 for p in others)


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


@pytest.mark.parametrize("path", ["lists", "masked", "weight"])
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


@pytest.mark.parametrize("path", ["masked", "weight", "node"])
def test_the_accelerators_path_never_reads_from_the_device(path):
    params, optimizer = build(MAKERS[path])
    with NoReads():
        run(params, optimizer, gradients(3))
        params[0].grad.fill_(math.nan)
        optimizer.step()


def test_step_sizes_stay_within_their_bounds():
    params = params_of(dtype=torch.float32)
    optimizer = MetaOptimize(
        params, blocks="tensor", alpha0=1e-3, eta=1.0, alpha_min=5e-4, alpha_max=2e-3
    )
    for grads in gradients(20):
        feed(params, grads)
        optimizer.step()
        for alpha in optimizer.step_sizes().values():
            assert 5e-4 * 0.999 <= alpha <= 2e-3 * 1.001


def test_weightwise_step_sizes_are_bounded_by_default():
    params = params_of(dtype=torch.float32)
    optimizer = MetaOptimize(params, blocks="weight", alpha0=1e-3, eta=10.0)
    for grads in gradients(20):
        feed(params, grads)
        optimizer.step()
    for p in params:
        alpha = optimizer.state[p]["beta"].exp()
        assert alpha.min() >= 0.99e-7
        assert alpha.max() <= 0.101


def test_non_contiguous_weights_move_as_contiguous_ones_do():
    shape = (2, 3, 4, 4)
    plain = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    last = nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    first, second = MetaOptimize([plain]), MetaOptimize([last])
    for (g,) in gradients(5, shapes=[shape], dtype=torch.float32):
        plain.grad, last.grad = g.clone(), g.clone(memory_format=torch.channels_last)
        first.step()
        second.step()
    torch.testing.assert_close(plain, last)
    torch.testing.assert_close(first.alpha, second.alpha)


def test_weights_swapped_under_the_optimiser_are_followed():
    w = nn.Parameter(torch.zeros(3))
    optimizer = MetaOptimize([w], "sgd", "none", alpha0=1.0)
    for _ in range(2):
        w.grad = torch.ones(3)
        optimizer.step()
        w.data = w.data.clone()
    assert w.tolist() == [-2.0, -2.0, -2.0]


def test_groups_keep_their_own_settings():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MetaOptimize(
        [
            {"params": [a], "name": "decayed", "weight_decay": 0.5},
            {"params": [b], "alpha0": 1e-2},
        ],
        "sgd",
        "none",
        alpha0=1e-1,
    )
    assert optimizer.block_names == ["decayed", "group1"]
    a.grad, b.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert a.tolist() == pytest.approx([0.95, 0.95])
    assert b.tolist() == [1.0, 1.0]
    assert optimizer.step_sizes() == pytest.approx({"decayed": 1e-1, "group1": 1e-2})


W = [nn.Parameter(torch.ones(2))]
NAMED = [("one.weight", W[0])]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaOptimize(W, gamma=1.5), r"gamma=1\.5: .*\[0, 1\]"),
        (lambda: MetaOptimize(W, alpha0=0), r"alpha0=0: .*positive"),
        (lambda: MetaOptimize(W, alpha0=math.nan), "alpha0=nan: must be a finite number"),
        (lambda: MetaOptimize(W, eta=-1.0), r"eta=-1\.0: must not be negative"),
        (lambda: MetaOptimize(W, weight_decay=-1), "weight_decay=-1"),
        (lambda: MetaOptimize(W, "adamm"), "base='adamm': unknown rule; did you mean 'adam'"),
        (lambda: MetaOptimize(W, 3), "base=3"),
        (lambda: MetaOptimize(W, meta="lino"), "meta='lino': .*known: .*lion"),
        (lambda: MetaOptimize(W, blocks="rows"), "blocks='rows': unknown .*known: .*layer"),
        (lambda: MetaOptimize(W, blocks="layer"), r"needs names; .*named_parameters"),
        (lambda: MetaOptimize(NAMED, blocks="head"), "belong to the last layer 'one'"),
        (lambda: MetaOptimize(NAMED, blocks={"a": "two"}), "no parameter has this prefix"),
        (lambda: MetaOptimize([]), "pass at least one parameter"),
        (lambda: MetaOptimize(W + W), "listed twice"),
        (lambda: MetaOptimize([torch.ones(2, dtype=torch.complex64)]), "real floating-point"),
        (lambda: MetaOptimize([{"weights": W}]), "dict with the key 'params'"),
        (lambda: MetaOptimize([{"params": W, "lr": 1}]), "is called alpha0"),
        (lambda: MetaOptimize([{"params": W, "gamma": 2}]), "gamma=2"),
        (lambda: MetaOptimize(W, alpha_min=1.0), r"alpha_min=1\.0: must not exceed alpha0"),
        (lambda: MetaOptimize(W, alpha_max=1e-9), "alpha_max=1e-09"),
        (lambda: MetaOptimize(W, nonfinite="ignore"), "nonfinite='ignore'"),
        (
            lambda: MetaOptimize(W, lambda p: torch.optim.AdamW(p, weight_decay=0.3)),
            r"weight_decay=0\.3.*to MetaOptimize",
        ),
        (lambda: MetaOptimize(W, lambda p: None), r"must return a torch\.optim\.Optimizer"),
        (lambda: MetaOptimize(W, torch.optim.LBFGS), "first-order"),
        (lambda: MetaOptimize(W, torch.optim.SGD, blocks="weight"), "one lr per block"),
        (lambda: Adam(rho=1.0), r"rho=1\.0: must lie in \[0, 1\)"),
    ],
)
def test_bad_input_names_argument_value_and_mend(make, message):
    with pytest.raises(BadArgument, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = MetaOptimize(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(BadArgument, match="dense gradients"):
        optimizer.step()


def test_another_optimisers_state_is_refused():
    w = nn.Parameter(torch.ones(2))
    optimizer = MetaOptimize([w])
    with pytest.raises(BadArgument, match="not MetaOptimize's"):
        optimizer.load_state_dict(torch.optim.SGD([w], lr=1.0).state_dict())
    with pytest.raises(BadArgument, match="other blocks"):
        optimizer.load_state_dict(MetaOptimize([w], blocks="tensor").state_dict())
    with pytest.raises(BadArgument, match="state_dict base"):
        optimizer.load_state_dict(MetaOptimize([w], "sgd").state_dict())
