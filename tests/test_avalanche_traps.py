"""What Avalanche and its plugins do to an optimiser, and what becomes of it."""

import functools

import pytest
import torch
from avalanche_parts import (
    IGNORED,
    Spy,
    build,
    meta_optimize,
    mlp,
    permuted,
    silent,
    train,
    weights,
)
from torch import nn

from clmeta import BadArgument, ClmetaError, MetaOptimize
from clmeta.strategies import MetaOptimizePlugin, Online, learn_online

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]


@pytest.mark.parametrize("keep", [True, False])
def test_state_loaded_before_the_first_training_is_kept(keep):
    """Avalanche empties it; the second case shows that the plugin is what saves it."""
    stream = permuted(tasks=2)
    donor = mlp()
    trained = meta_optimize(donor)
    learn_online(donor, trained, permuted(tasks=1), evaluate=False)
    model = mlp()
    optimizer = meta_optimize(model)
    optimizer.load_state_dict(trained.state_dict())
    strategy = build("Naive", model, optimizer)
    if not keep:
        strategy.plugins.pop(0)
    spy = Spy("before_training_epoch", lambda strategy: len(optimizer.state))
    strategy.plugins.insert(0, spy)
    train(strategy, stream.benchmark(), tasks=1)
    assert spy.seen == [4 if keep else 0]


def test_avalanche_has_its_method_back_after_adaptation():
    model = mlp()
    strategy = build("Naive", model, meta_optimize(model))
    train(strategy, permuted().benchmark())
    assert "make_optimizer" not in vars(strategy)


def test_an_asked_for_reset_is_refused():
    model = mlp()
    strategy = build("Naive", model, meta_optimize(model))
    with pytest.raises(BadArgument, match=r"reset_optimizer_state=True.*make a new optimiser"):
        strategy.train(permuted().benchmark().train_stream, reset_optimizer_state=True)


def test_from_scratch_training_is_told_to_make_a_new_learner():
    from avalanche.training.plugins import FromScratchTrainingPlugin

    model = mlp()
    optimizer = meta_optimize(model, blocks="scalar")
    strategy = build("Naive", model, optimizer, [FromScratchTrainingPlugin()])
    benchmark = permuted().benchmark()
    with pytest.warns(DeprecationWarning, match="reset_optimizer"):
        strategy.train(benchmark.train_stream[0])
        with pytest.raises(ClmetaError, match=r"was emptied.*FromScratch.*make a new model"):
            strategy.train(benchmark.train_stream[1])


@pytest.mark.parametrize("when", ["constructor", "experience"])
def test_a_strategy_with_an_optimiser_of_its_own_is_named(when):
    """As AR1 (in the constructor) and L2P (at each experience)."""
    from avalanche.training.supervised import Naive

    class Own(Naive):
        def _before_training_exp(self, **kwargs):
            super()._before_training_exp(**kwargs)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    model = mlp()
    mine = meta_optimize(model)
    given = torch.optim.SGD(model.parameters(), lr=0.1) if when == "constructor" else mine
    strategy = Own(model=model, optimizer=given, evaluator=silent(), plugins=[MetaOptimizePlugin()])
    with pytest.raises(BadArgument, match=r"optimizer='SGD': Own does not use.*AR1, L2P"):
        strategy.train(permuted().benchmark().train_stream)


def test_a_scheduler_plugin_is_refused_before_anything_trains():
    from avalanche.training.plugins import LRSchedulerPlugin

    model = mlp()
    optimizer = meta_optimize(model)
    schedule = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    strategy = build("Naive", model, optimizer, [schedule])
    with pytest.raises(BadArgument, match=r"LRSchedulerPlugin\(StepLR\).*step sizes are learned"):
        strategy.train(permuted().benchmark().train_stream)
    assert strategy.clock.train_iterations == 0


@pytest.mark.parametrize("how", ["torch's scheduler", "assignment"])
def test_a_step_size_written_behind_our_back_is_found(how):
    model = mlp()
    optimizer = meta_optimize(model)

    def write(strategy):
        if how == "assignment":
            optimizer.param_groups[0]["lr"] = 0.1
        else:
            schedule.step()

    spy = Spy("after_training_epoch", write)
    strategy = build("Naive", model, optimizer, [spy])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    benchmark = permuted().benchmark()
    with pytest.raises(BadArgument, match=r"group\['lr'\].*something writes group\['lr'\]"):
        for experience in benchmark.train_stream:
            strategy.train(experience)
    assert optimizer.sizes.calls <= 51  # found at the first step after the writing


def test_mir_looks_ahead_with_the_first_blocks_current_step_size():
    model = mlp()
    optimizer = meta_optimize(model)
    strategy = build("MIR", model, optimizer)
    spy = Spy("before_backward", lambda s: float(s.optimizer.param_groups[0]["lr"]))
    strategy.plugins.append(spy)
    shown = Spy("before_training_iteration", lambda s: s.optimizer.step_sizes()["1"])
    strategy.plugins.append(shown)
    train(strategy, permuted().benchmark(task_labels="constant"))
    assert spy.seen == shown.seen
    assert len(set(spy.seen)) > 40


def test_packnet_makes_the_optimiser_anew_and_step_sizes_live_on():
    from avalanche.models.packnet import PackNetModel, PackNetPlugin
    from avalanche.training.supervised import Naive

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    model = PackNetModel(net)
    optimizer = meta_optimize(model, blocks="scalar")
    sizes = []
    spies = [
        Spy("after_training_exp", lambda s: sizes.append(s.optimizer.step_sizes())),
        Spy("before_training_iteration", lambda s: sizes.append(s.optimizer.step_sizes())),
    ]
    strategy = Naive(
        model=model,
        optimizer=optimizer,
        train_epochs=2,
        evaluator=silent(),
        plugins=[MetaOptimizePlugin(), PackNetPlugin(1, 0.5), *spies],
    )
    for experience in permuted(steps=15).benchmark(task_labels=True).train_stream:
        strategy.train(experience)
    assert strategy.optimizer is not optimizer
    assert isinstance(strategy.optimizer, MetaOptimize)
    assert strategy.optimizer.block_names == ["all"]
    end_of_first = sizes[30]
    assert sizes[31] == end_of_first != {"all": pytest.approx(1e-3)}
    assert strategy.optimizer.step_sizes() != end_of_first


def test_a_plugin_serves_one_strategy():
    plugin = MetaOptimizePlugin()
    for again in (False, True):
        model = mlp()
        make = functools.partial(
            Online, model=model, optimizer=meta_optimize(model), plugins=[plugin]
        )
        if again:
            with pytest.raises(BadArgument, match="make a new one for every strategy"):
                make()
        else:
            make()


def test_an_optimiser_made_before_the_model_changed_is_refused():
    model = mlp()
    optimizer = meta_optimize(model)
    model[3] = nn.Linear(16, 4)
    with pytest.raises(BadArgument, match=r"2 parameters that are not the model's.*make the"):
        Online(model=model, optimizer=optimizer)


def test_single_sample_experiences_learn_the_same():
    from avalanche.benchmarks import split_online_stream

    stream, results = permuted(steps=12), []
    for single in (False, True):
        model = mlp()
        optimizer = meta_optimize(model)
        strategy = build("Naive", model, optimizer)
        experiences = stream.benchmark().train_stream
        if single:
            experiences = split_online_stream(
                experiences, experience_size=1, shuffle=False, access_task_boundaries=False
            )
        strategy.train(experiences, shuffle=False)
        results.append(weights(model))
    assert torch.equal(*results)
