"""Growing heads under Avalanche's strategies: traces and step sizes live through them."""

import functools

import pytest
import torch
from avalanche_parts import (
    IGNORED,
    GrowingNet,
    ManyHeads,
    Spy,
    build,
    copied,
    growing,
    meta_optimize,
    mlp,
    permuted,
    train,
    weights,
)

from clmeta import MetaOptimize
from clmeta.strategies import Online

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]

STRATEGIES = [
    "Naive",
    "Replay",
    "EWC",
    "SynapticIntelligence",
    "LwF",
    "ER_ACE",
    "MIR",
    "MAS",
    "GEM",
    "MER",
]
GRANULARITIES = ["scalar", "layer", "tensor", "head", "node", "weight"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_traces_and_step_sizes_live_through_a_growing_head(name):
    stream = growing()
    model = GrowingNet()
    optimizer = meta_optimize(model)
    before, after = [], []

    def state(strategy, where):
        where.append({**copied(optimizer, model.head.weight), **optimizer.step_sizes()})

    spies = [
        Spy("after_training_exp", lambda strategy: state(strategy, before)),
        Spy("before_training_epoch", lambda strategy: state(strategy, after)),
    ]
    strategy = build(name, model, optimizer, spies)
    train(strategy, stream.benchmark(task_labels="constant"))
    assert model.head.out_features == 9
    assert optimizer.block_names == ["body", "classifier.classifier"]
    for old, new, units in zip(before[:-1], after[1:], (3, 6), strict=True):
        assert old.keys() == new.keys() and old["h"].abs().sum() > 0
        for key, value in old.items():
            if isinstance(value, torch.Tensor) and value.dim():
                assert torch.equal(new[key][:units], value), key
                assert not new[key][units:].any(), key
            else:
                assert new[key] == value, key
    assert all(size != pytest.approx(1e-3, rel=1e-6) for size in optimizer.step_sizes().values())


def test_der_runs_with_a_head_of_full_width():
    """It compares stored logits with later ones: its head can neither gain nor mask units."""
    model = GrowingNet(units=9, masking=False)
    optimizer = meta_optimize(model)
    strategy = build("DER", model, optimizer)
    train(strategy, growing().benchmark(task_labels="constant"))
    assert optimizer.state[model.head.weight]["step"] == 75
    assert all(size != pytest.approx(1e-3, rel=1e-6) for size in optimizer.step_sizes().values())


@pytest.mark.parametrize("name", ["Naive", "Replay", "EWC", "LwF", "ER_ACE"])
def test_a_head_per_task_joins_the_heads_block(name):
    model = ManyHeads()
    optimizer = meta_optimize(model, blocks={"body": "body", "heads": "classifier"})
    strategy = build(name, model, optimizer)
    train(strategy, permuted(tasks=3, steps=15).benchmark(task_labels=True))
    body, heads = optimizer.param_groups
    assert len(body["params"]) == 2
    assert {id(p) for p in heads["params"]} == {id(p) for p in model.classifier.parameters()}
    assert len(heads["params"]) == 6
    assert all(optimizer.state[p]["h"].any() for p in heads["params"])


@pytest.mark.parametrize("blocks", GRANULARITIES)
@pytest.mark.parametrize("net", [GrowingNet, ManyHeads])
def test_every_granularity_grows(blocks, net):
    model = net()
    optimizer = meta_optimize(model, blocks=blocks)
    names = optimizer.block_names
    stream = growing(steps=10) if net is GrowingNet else permuted(tasks=3, steps=10)
    strategy = Online(model=model, optimizer=optimizer)
    train(strategy, stream.benchmark(task_labels=True))
    assert optimizer.block_names == names
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]["h"].shape == p.shape for p in held)
    assert set(optimizer.state) <= set(held)


@pytest.mark.parametrize("hessian", ["exact", "diagonal"])
def test_traces_that_carry_curvature_grow_too(hessian):
    model = GrowingNet()
    optimizer = meta_optimize(model, hessian=hessian)
    spy = Spy("before_training_epoch", lambda strategy: copied(optimizer, model.head.weight))
    train(Online(model=model, optimizer=optimizer, plugins=[spy]), growing(steps=10).benchmark())
    for units, state in zip((3, 6), spy.seen[1:], strict=True):
        assert state["h"][:units].any() and not state["h"][units:].any()
    assert torch.isfinite(weights(model)).all()


def test_a_wrapped_torch_optimiser_grows():
    model = GrowingNet()
    optimizer = meta_optimize(model, base=functools.partial(torch.optim.AdamW, foreach=True))
    spy = Spy("before_training_epoch", lambda strategy: copied(optimizer, model.head.weight))
    strategy = build("Naive", model, optimizer, [spy])
    train(strategy, growing().benchmark())
    _, second, third = spy.seen
    assert second["exp_avg"].shape == (6, 16) and second["exp_avg"][:3].any()
    assert third["h"].shape == (9, 16) and third["h"][:6].any() and not third["h"][6:].any()
    assert third["step"] == 50


def test_baselines_keep_their_state_in_the_same_way():
    model = GrowingNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    spy = Spy("before_training_epoch", lambda strategy: copied(optimizer, model.head.weight))
    strategy = Online(model=model, optimizer=optimizer, plugins=[spy])
    train(strategy, growing().benchmark())
    assert spy.seen[2]["exp_avg"][:6].any() and not spy.seen[2]["exp_avg"][6:].any()


@pytest.mark.parametrize("how", ["before", "during"])
def test_a_head_that_an_evaluation_grows_is_followed_at_once(how):
    model = GrowingNet()
    optimizer = meta_optimize(model)
    benchmark = growing().benchmark()
    strategy = build("Naive", model, optimizer, eval_every=-1)
    if how == "before":
        strategy.eval(benchmark.test_stream)
    else:
        at_ten = Spy(
            "after_training_iteration",
            lambda s: s.eval(benchmark.test_stream) if s.clock.train_iterations == 9 else None,
        )
        strategy.plugins.insert(1, at_ten)
    strategy.train(benchmark.train_stream[0], shuffle=False)
    assert model.head.out_features == 9
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    moved = optimizer.state[model.head.weight]
    assert moved["step"] == 25
    assert moved["h"][:3].any()


def test_parameters_left_out_of_the_optimiser_stay_out():
    model = mlp()
    frozen = model[1].weight.detach().clone()
    optimizer = MetaOptimize(model[3].named_parameters(), alpha0=1e-2)
    train(build("Naive", model, optimizer), permuted().benchmark())
    assert torch.equal(model[1].weight, frozen)
    assert len(optimizer.param_groups[0]["params"]) == 2
