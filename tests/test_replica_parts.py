"""What replicas are made of: batched gradients, streams in step, memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clmeta._batched import BatchedNetwork, NotBatchable, Outer
from clmeta._chunk_size import learner_bytes
from clmeta._device_steps import DeviceSteps
from clmeta._lockstep import Lockstep
from clmeta._pool import pool, pool_backward
from clmeta._program import Program
from clmeta._tiles import Tiles
from clmeta.config import RunConfig
from clmeta.models import make_model
from clmeta.runner import prepare


def config(**options):
    pytest.importorskip("sklearn")
    small = {"stream_options": {"tasks": 2, "steps_per_task": 100}, "model_options": {"hidden": 16}}
    return RunConfig(**{"weight_decay": 0.01, "alpha0": 1e-3, **small, **options})


def test_gradients_equal_autograd_and_linear_ones_stay_factored():
    models = [make_model("cnn", (3, 12, 12), 5, {"channels": [4, 6]}, seed=s) for s in range(3)]
    names = [name for name, _ in models[0].named_parameters()]
    weights = [
        torch.stack([dict(m.named_parameters())[name].detach() for m in models]) for name in names
    ]
    x, y = torch.rand(3, 1, 3, 12, 12), torch.tensor([[0], [2], [4]])
    grads, losses, _ = BatchedNetwork(models[0], names)(weights, x, y)
    kinds = dict(zip(names, grads, strict=True))
    assert isinstance(kinds["classifier.1.weight"], Outer)
    assert not isinstance(kinds["features.0.weight"], Outer)
    for row, model in enumerate(models):
        loss = nn.functional.cross_entropy(model(x[row]), y[row])
        torch.testing.assert_close(losses[row], loss.detach())
        for mine, theirs in zip(grads, torch.autograd.grad(loss, model.parameters()), strict=True):
            dense = mine.dense() if isinstance(mine, Outer) else mine
            torch.testing.assert_close(dense[row], theirs, rtol=1e-4, atol=1e-6)


def test_pooling_equals_torch_also_at_ties():
    x = torch.randint(0, 3, (5, 4, 8, 6)).float().requires_grad_()
    g = torch.randn(5, 4, 4, 3)
    expected = nn.functional.max_pool2d(x, 2)
    (gradient,) = torch.autograd.grad(expected, x, g)
    with torch.no_grad():
        assert torch.equal(pool(x), expected)
        assert torch.equal(pool_backward(g, x), gradient)


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


@pytest.mark.parametrize("base", ["sgd", "sgdm", "rmsprop", "adamw", "lion"])
@pytest.mark.parametrize("meta", ["none", "adam"])
def test_the_masked_step_of_accelerators_equals_the_tiles(base, meta):
    """What a GPU runs, uncompiled, is checked here on the CPU."""
    blocks = ("scalar", "head", "layer")
    configs = [
        config(base=base, meta=meta, seed=s, blocks=b, eta=1e-2) for s, b in enumerate(blocks)
    ]
    prepared = [prepare(each) for each in configs]
    tiled, whole = Program(prepared), Program(prepared)
    assert isinstance(tiled.steps, Tiles)
    whole.steps = DeviceSteps(whole.stacked)
    (segment, *_) = Lockstep([p.stream for p in prepared])
    for program in (tiled, whole):
        program.run(segment)
    torch.testing.assert_close(tiled.stacked.alpha, whole.stacked.alpha, rtol=1e-5, atol=0)
    for a, b in zip(tiled.stacked.w, whole.stacked.w, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_masked_step_keeps_its_tensors():
    """As a CUDA graph needs: it replays writes to the same places."""
    prepared = [prepare(config(seed=seed)) for seed in (0, 1)]
    program = Program(prepared)
    program.steps = DeviceSteps(program.stacked)
    before = [tensor.data_ptr() for tensor in program.tensors()]
    (segment, *_) = Lockstep([p.stream for p in prepared])
    program.run(segment)
    assert [tensor.data_ptr() for tensor in program.tensors()] == before
