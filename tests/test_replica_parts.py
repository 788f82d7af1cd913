"""What replicas are made of: batched gradients, streams in step, memory."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer_parts import QUICK, native, needs_compiler
from torch import nn

from clmeta.engines.gradient import Outer
from clmeta.models import make_model
from clmeta.native import cc as _cc
from clmeta.replicas import pool as _pool
from clmeta.replicas.lockstep import Lockstep, Segment
from clmeta.replicas.network import BatchedNetwork, NotBatchable
from clmeta.replicas.pool import pool, pool_backward
from clmeta.replicas.program import Program
from clmeta.replicas.size import learner_bytes
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import prepare


def config(**options):
    pytest.importorskip("sklearn")
    small = {"stream_options": {"tasks": 2, "steps_per_task": 100}, "model_options": {"hidden": 16}}
    return RunConfig(**{"weight_decay": 0.01, "alpha0": 1e-3, **small, **options})


def assert_gradients(models, x, y):
    """Gradients, losses and shares of all models equal autograd's; returns gradients by name and
    the program's calls."""
    names = [name for name, _ in models[0].named_parameters()]
    weights = [
        torch.stack([dict(m.named_parameters())[name].detach() for m in models]) for name in names
    ]
    network = BatchedNetwork(models[0], names)
    grads, losses, shares = network(weights, x, y)
    for row, model in enumerate(models):
        out = model(x[row])
        loss = nn.functional.cross_entropy(out, y[row])
        torch.testing.assert_close(losses[row], loss.detach())
        assert shares[row] == (out.argmax(1) == y[row]).float().mean()
        for mine, theirs in zip(grads, torch.autograd.grad(loss, model.parameters()), strict=True):
            dense = mine.dense() if isinstance(mine, Outer) else mine
            torch.testing.assert_close(dense[row], theirs, rtol=1e-4, atol=1e-6)
    (program, _) = next(iter(network._programs.values()))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return dict(zip(names, grads, strict=True)), calls


def test_gradients_equal_autograd_and_linear_ones_stay_factored():
    models = [make_model("cnn", (3, 12, 12), 5, {"channels": [4, 6]}, seed=s) for s in range(3)]
    x, y = torch.rand(3, 1, 3, 12, 12), torch.tensor([[0], [2], [4]])
    grads, calls = assert_gradients(models, x, y)
    assert calls.count(torch.ops.aten.add.Tensor) == 2  # the convolutions add their biases
    assert isinstance(grads["classifier.1.weight"], Outer)
    assert not isinstance(grads["features.0.weight"], Outer)


@pytest.mark.parametrize("in_c", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooling_equals_torch_also_at_ties(in_c, dtype, monkeypatch):
    if not in_c:
        monkeypatch.setattr(_pool, "_in_c", lambda x: None)
    elif _cc.compiler() is None:
        pytest.skip("there is no C compiler")
    assert not in_c or _pool._in_c(torch.zeros(1, 2, 2, dtype=dtype)) is not None
    for shape in ((5, 4, 8, 6), (1, 3, 2, 2), (2, 3, 6, 38)):
        x = torch.randint(-2, 3, shape).to(dtype).requires_grad_()
        g = torch.randn(*shape[:2], shape[2] // 2, shape[3] // 2, dtype=dtype)
        expected = nn.functional.max_pool2d(x, 2)
        (gradient,) = torch.autograd.grad(expected, x, g)
        with torch.no_grad():
            assert torch.equal(pool(x), expected)
            assert torch.equal(pool_backward(g, x), gradient)
            masked = gradient * (x > 0)
            assert torch.equal(pool_backward(g, x, positive=True), masked)


@pytest.mark.parametrize("at", range(4))
def test_pooling_lets_no_nan_get_lost(at):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 2)
    x.view(-1)[at] = math.nan
    assert pool(x).isnan().all()


@pytest.mark.parametrize(
    "window", [{"kernel_size": 3, "stride": 2}, {"kernel_size": 2, "padding": 1}]
)
def test_other_pooling_is_left_to_torch(window):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 2, 3), nn.MaxPool2d(**window)

        def forward(self, x):
            return self.pool(self.conv(x)).flatten(1)

    torch.manual_seed(0)
    model = Pooled()
    names = [name for name, _ in model.named_parameters()]
    weights = [p.detach()[None] for p in model.parameters()]
    x, y = torch.rand(1, 1, 1, 8, 8), torch.tensor([[1]])
    grads, _, _ = BatchedNetwork(model, names)(weights, x, y)
    loss = nn.functional.cross_entropy(model(x[0]), y[0])
    for mine, theirs in zip(grads, torch.autograd.grad(loss, model.parameters()), strict=True):
        torch.testing.assert_close(mine[0], theirs, rtol=1e-4, atol=1e-6)


def test_random_layers_are_not_batchable():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5))
    names = [name for name, _ in model.named_parameters()]
    weights = [p.detach()[None] for p in model.parameters()]
    with pytest.raises(NotBatchable):
        BatchedNetwork(model, names)(weights, torch.rand(1, 1, 1, 2, 2), torch.tensor([[1]]))


def test_lockstep_gives_each_stream_its_own_steps():
    configs = [
        config(seed=0, stream_options={"tasks": 2, "steps_per_task": 70}),
        config(seed=1, stream_options={"tasks": 3, "steps_per_task": 50}),
    ]
    streams = [prepare(each).stream for each in configs]
    seen = [[], []]
    ends = [[], []]
    for segment in Lockstep(streams):
        for x, y in zip(segment.x, segment.y, strict=True):
            for row in (0, 1):
                seen[row].append((x[row], y[row], segment.task[row]))
        for row in segment.ends:
            ends[row].append(len(seen[row]))
    assert ends[0] == [70, 140]
    for row, stream in enumerate(streams):
        for (x, y, task, _), (mine_x, mine_y, mine_task) in zip(stream, seen[row], strict=False):
            assert torch.equal(x, mine_x)
            assert torch.equal(y, mine_y)
            assert task == mine_task


def test_predicted_memory_grows_with_the_network_and_the_trace():
    small, large = (prepare(config(model_options={"hidden": n})) for n in (8, 64))
    assert learner_bytes(small) < learner_bytes(large)
    fixed = prepare(config(meta="none", model_options={"hidden": 8}))
    assert learner_bytes(fixed) < learner_bytes(small)


every_engine = pytest.mark.parametrize("engine", QUICK)


@pytest.mark.parametrize("engine", [native, "masked"])
@pytest.mark.parametrize("base", ["sgd", "sgdm", "rmsprop", "adamw", "lion"])
@pytest.mark.parametrize("meta", ["none", "adam"])
def test_every_engine_steps_learners_as_the_eager_one(base, meta, engine):
    """What a GPU runs, uncompiled, is checked here on the CPU."""
    blocks = ("scalar", "head", "layer")
    short = {"stream_options": {"tasks": 1, "steps_per_task": 30}}
    configs = [
        config(base=base, meta=meta, seed=s, blocks=b, eta=1e-2, **short)
        for s, b in enumerate(blocks)
    ]
    prepared = [prepare(each) for each in configs]
    eager, other = Program(prepared, "eager"), Program(prepared, engine)
    (segment, *_) = Lockstep([p.stream for p in prepared])
    for program in (eager, other):
        program.run(segment)
        program.keep([0, 2])
        program.run(Segment(segment.x[:9, ::2], segment.y[:9, ::2], [0, 0]))
    one, two = eager.learners, other.learners
    torch.testing.assert_close(one.sizes.alpha, two.sizes.alpha, rtol=1e-5, atol=0)
    for a, b in zip(one.w, two.w, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("blocks", ["node", "weight"])
@pytest.mark.parametrize(
    ("base", "meta"), [("adamw", "adam"), ("lion", "none"), ("lion", "sgd"), ("sgd", "lion")]
)
def test_step_sizes_per_unit_or_weight_are_stepped_in_c_as_by_torch(base, meta, blocks):
    prepared = [
        prepare(config(base=base, meta=meta, seed=seed, blocks=blocks, eta=0.01 * seed, alpha0=a))
        for seed, a in enumerate((1e-3, 1e-4, 1e-3))
    ]
    slow, fast = Program(prepared, "eager"), Program(prepared, "native")
    (segment, *_) = Lockstep([p.stream for p in prepared])
    poisoned = segment.x[:30].clone()
    poisoned[7, 1] = math.nan
    for program in (slow, fast):
        program.run(Segment(poisoned, segment.y[:30], segment.task))
        assert program.learners.sizes.withheld.tolist() == [0, 1, 0]
        program.keep([1, 2])
        program.run(Segment(segment.x[30:50, 1:], segment.y[30:50, 1:], [0, 0]))
        assert [t.tolist() for t in program.learners.steps] == [[49, 50]] * len(fast.learners.w)
    for a, b in zip(slow.learners.tensors(), fast.learners.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("meta", ["none", "adam"])
@every_engine
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_learner_whose_gradient_is_not_finite_stays_and_the_others_do_not(meta, engine, bad):
    prepared = [prepare(config(meta=meta, seed=seed, blocks="layer")) for seed in range(3)]
    program = Program(prepared, engine)
    (segment, *_) = Lockstep([p.stream for p in prepared])
    program.run(Segment(segment.x[:5], segment.y[:5], segment.task))
    grads, _, _ = program.gradients(segment.x[5], segment.y[5])
    outer = next(g for g in grads if isinstance(g, Outer))
    outer.b[1, 0, 3] = bad
    outer.a[1, 2, 0] = 1e30  # each finite, the product not
    s = program.learners
    before = [x.clone() for x in s.w]
    program.update(grads)
    assert s.sizes.withheld.tolist() == [0, 1, 0]
    assert s.sizes.first.tolist() == [-1, 5, -1]
    assert [t.tolist() for t in s.steps] == [[6, 5, 6]] * len(s.w)
    for old, new in zip(before, s.w, strict=True):
        assert [torch.equal(a, b) for a, b in zip(old, new, strict=True)] == [False, True, False]


@needs_compiler
def test_threads_share_the_learners_and_change_nothing(monkeypatch):
    monkeypatch.setattr("clmeta.native.table.SHARE", 1)
    prepared = [prepare(config(seed=seed, blocks="layer")) for seed in range(3)]
    programs = [Program(prepared, "native") for _ in range(2)]
    (segment, *_) = Lockstep([p.stream for p in prepared])
    for threads, program in enumerate(programs, 1):
        torch.set_num_threads(threads)
        try:
            program.run(Segment(segment.x[:9], segment.y[:9], segment.task))
        finally:
            torch.set_num_threads(1)
    for a, b in zip(*(program.learners.tensors() for program in programs), strict=True):
        assert torch.equal(a, b)


def test_the_masked_step_keeps_its_tensors():
    """As a CUDA graph needs: it replays writes to the same places."""
    prepared = [prepare(config(seed=seed)) for seed in (0, 1)]
    program = Program(prepared, "masked")
    before = [tensor.data_ptr() for tensor in program.learners.tensors()]
    (segment, *_) = Lockstep([p.stream for p in prepared])
    program.run(segment)
    assert [tensor.data_ptr() for tensor in program.learners.tensors()] == before


class Crooked(nn.Module):
    """Every disguise that a reshape can have, and some that are none."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = x.view(-1, 3, 2, 2).reshape(-1, 12).unsqueeze(1).permute(1, 0, 2).reshape(-1, 3, 4)
        x = x.transpose(1, 2).transpose(1, 2).permute(0, 2, 1).reshape(-1, 12)
        x = torch.tanh(self.first(x.view(-1, 12)))
        return self.second(x.view(-1, 2, 3).permute(0, 2, 1).flatten(1).expand(len(x), 6)).view(
            -1, 3
        )


@pytest.mark.parametrize("batch", [1, 4])
def test_a_simplified_program_computes_the_same(batch):
    torch.manual_seed(0)
    x, y = torch.randn(3, batch, 3, 2, 2), torch.randint(0, 3, (3, batch))
    _, calls = assert_gradients([Crooked() for _ in range(3)], x, y)
    assert torch.ops.aten.mul.Scalar not in calls  # a bias, times addmm's 1


class Turned(nn.Module):
    """Pools what does not lie in order."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)).transpose(2, 3), 2)
        return self.last(x.transpose(2, 3).reshape(-1, 8))


@pytest.mark.parametrize("batch", [1, 3])
def test_pooling_of_turned_images_equals_autograd(batch):
    torch.manual_seed(0)
    x, y = torch.randn(2, batch, 1, 4, 4), torch.randint(0, 3, (2, batch))
    assert_gradients([Turned() for _ in range(2)], x, y)
