"""The online strategy: the plain loop, with everything that Avalanche adds to it."""

import pytest
import torch
from avalanche_parts import (
    IGNORED,
    Spy,
    build,
    meta_optimize,
    mlp,
    permuted,
    train,
    weights,
)

from clmeta import BadArgument
from clmeta.strategies import KeepOptimizerState, Online, learn_online

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]

LOOP = [
    "before_training_exp",
    "before_training_epoch",
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
    "after_training_epoch",
    "after_training_exp",
]


def test_an_unknown_name_is_an_attribute_error():
    import clmeta.strategies

    with pytest.raises(AttributeError, match="no attribute 'Offline'"):
        clmeta.strategies.Offline  # noqa: B018


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("kind", ["meta", "torch"])
def test_online_is_the_plain_loop_bit_for_bit(batch_size, kind):
    stream = permuted(batch_size=batch_size, augment=None)
    results = []
    for way in ("plain", "online"):
        model = mlp()
        optimizer = (
            meta_optimize(model)
            if kind == "meta"
            else torch.optim.AdamW(model.parameters(), lr=1e-3)
        )
        if way == "plain":
            learn_online(model, optimizer, stream, evaluate=False)
        else:
            strategy = Online(model=model, optimizer=optimizer, train_mb_size=batch_size)
            strategy.train(stream.benchmark().train_stream)
        shown = [float(group["lr"]) for group in optimizer.param_groups]
        results.append((weights(model), shown))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    if kind == "meta":
        assert min(results[0][1]) > 0
        assert results[0][1][0] != pytest.approx(1e-3)


def test_online_calls_every_callback_that_naive_calls_in_the_same_order():
    stream, events = permuted(steps=3), {}
    for name in ("Naive", "Online"):
        seen = events[name] = []
        spies = [Spy(event, lambda s, event=event, seen=seen: seen.append(event)) for event in LOOP]
        model = mlp()
        optimizer = meta_optimize(model)
        if name == "Naive":
            strategy = build(name, model, optimizer, spies)
        else:
            strategy = Online(model=model, optimizer=optimizer, plugins=spies)
        train(strategy, stream.benchmark())
    assert events["Online"] == events["Naive"]
    assert len(events["Online"]) == 2 * (4 + 3 * 8)


def test_online_adds_penalties_as_naive_does():
    from avalanche.training.plugins import EWCPlugin

    stream, results = permuted(), []
    for name in ("Naive", "Online"):
        model = mlp()
        optimizer = meta_optimize(model)
        if name == "Naive":
            strategy = build("EWC", model, optimizer, ewc_lambda=5.0)
        else:
            plugins = [EWCPlugin(ewc_lambda=5.0)]
            strategy = Online(model=model, optimizer=optimizer, plugins=plugins)
        train(strategy, stream.benchmark())
        results.append(weights(model))
    model = mlp()
    learn_online(model, meta_optimize(model), stream, evaluate=False)
    assert torch.equal(*results)
    assert not torch.equal(results[0], weights(model))


def test_online_keeps_the_streams_order_under_replay_too():
    from avalanche.training.plugins import ReplayPlugin

    stream, model = permuted(), mlp()
    spy = Spy("before_forward", lambda strategy: strategy.mb_x[0].clone())
    plugins = [ReplayPlugin(mem_size=10), spy]
    strategy = Online(model=model, optimizer=meta_optimize(model), plugins=plugins)
    strategy.train(stream.benchmark().train_stream)
    for seen, (x, *_) in zip(spy.seen, stream, strict=True):
        assert torch.equal(seen, x[0])


def test_online_refuses_to_shuffle():
    model = mlp()
    strategy = Online(model=model, optimizer=meta_optimize(model))
    with pytest.raises(BadArgument, match=r"shuffle=True: an online learner keeps"):
        strategy.train(permuted().benchmark().train_stream, shuffle=True)


def test_online_reads_through_workers_in_the_same_order():
    stream, results = permuted(tasks=1), []
    for options in ({}, {"num_workers": 1}):
        model = mlp()
        strategy = Online(model=model, optimizer=meta_optimize(model))
        strategy.train(stream.benchmark().train_stream, **options)
        results.append(weights(model))
    assert torch.equal(*results)


def test_online_stops_when_a_plugin_says_so():
    class Stop(KeepOptimizerState):
        def after_training_iteration(self, strategy, *args, **kwargs):
            if strategy.clock.train_iterations == 4:
                strategy.stop_training()

    model = mlp()
    strategy = Online(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), plugins=[Stop()]
    )
    strategy.train(permuted(tasks=1).benchmark().train_stream)
    assert strategy.clock.train_iterations == 5


def test_online_reports_the_same_metrics_as_naive():
    from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
    from avalanche.logging import TextLogger
    from avalanche.training.plugins import EvaluationPlugin

    stream, results = permuted(steps=10), []
    for name in ("Naive", "Online"):
        with open("/dev/null", "w") as nowhere:
            evaluator = EvaluationPlugin(
                accuracy_metrics(minibatch=True, epoch=True, stream=True),
                loss_metrics(minibatch=True, epoch=True),
                loggers=[TextLogger(nowhere)],
            )
            model = mlp()
            optimizer = meta_optimize(model)
            if name == "Naive":
                strategy = build(name, model, optimizer, eval_mb_size=512)
                at = strategy.plugins.index(strategy.evaluator)
                strategy.evaluator = strategy.plugins[at] = evaluator
            else:
                strategy = Online(model=model, optimizer=optimizer, evaluator=evaluator)
            benchmark = stream.benchmark()
            train(strategy, benchmark)
            strategy.eval(benchmark.test_stream)
            results.append(evaluator.get_all_metrics())
            evaluator.loggers = []
    assert results[0] == results[1]
    assert any(len(values) == 20 for _, values in results[0].values())


def test_a_subclass_of_online_may_override_avalanches_hooks():
    class Counting(Online):
        count = 0

        def _before_update(self, **kwargs):
            self.count += 1
            super()._before_update(**kwargs)

    model = mlp()
    strategy = Counting(model=model, optimizer=meta_optimize(model))
    strategy.train(permuted(tasks=1, steps=6).benchmark().train_stream)
    assert strategy.count == 6
