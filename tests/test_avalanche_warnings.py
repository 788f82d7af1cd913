"""What Avalanche says about its own code reaches nobody; what the user's code says does."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from avalanche_parts import IGNORED, Spy, build, meta_optimize, mlp, permuted, silent, train

from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run
from clmeta.strategies import STRATEGIES, StepSizeRecorder

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]
MEMORIES = ("Replay", "ER_ACE", "DER", "MIR", "MER")
SMALL = RunConfig(stream_options={"tasks": 2, "steps_per_task": 12}, model_options={"hidden": 8})


@pytest.fixture
def filters():
    """Warnings as errors, and a check that nobody touched that."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        before = list(warnings.filters)
        yield
        assert list(warnings.filters) == before


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_a_run_by_name_shows_nothing(name, tmp_path, filters, recwarn):
    run(RunConfig.from_dict({**SMALL.to_dict(), "strategy": name}), tmp_path / "run")
    assert not list(recwarn)


@pytest.mark.parametrize("name", MEMORIES)
def test_strategies_with_our_plugin_show_nothing(name, filters):
    model = mlp()
    benchmark = permuted(steps=12).benchmark(task_labels="constant")
    train(build(name, model, meta_optimize(model)), benchmark)


def test_the_recorder_alone_is_enough(tmp_path, filters):
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.supervised import Naive

    model = mlp()
    with StepSizeRecorder(tmp_path / "run") as recorder:
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            train_epochs=1,
            evaluator=silent(),
            plugins=[ReplayPlugin(mem_size=10), recorder],
        )
        train(strategy, permuted(steps=12).benchmark())


def test_a_memory_holds_what_it_held_with_the_warning():
    from avalanche.training.plugins import ReplayPlugin

    held = []
    for quiet in (True, False):
        model, replay = mlp(), ReplayPlugin(mem_size=10, batch_size_mem=2)
        loud = Spy("before_training_exp", lambda _, r=replay: vars(r.storage_policy).pop("update"))
        plugins = [replay] if quiet else [replay, loud]
        strategy = build("Naive", model, meta_optimize(model), plugins)
        torch.manual_seed(0)
        stream = permuted(tasks=1, steps=12).benchmark(task_labels="constant")
        if quiet:
            train(strategy, stream)
        else:
            with pytest.warns(DeprecationWarning, match="deprecated function update"):
                train(strategy, stream)
        held.append([(x, y) for x, y, *_ in replay.storage_policy.buffer])
    assert len(held[0]) == 10
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(*held, strict=True))


def test_a_memory_of_ones_own_is_left_as_it_is():
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    class Mine(ReservoirSamplingBuffer):
        updates = 0

        def update(self, strategy, **kwargs):
            self.updates += 1
            self.post_adapt(strategy, strategy.experience)

    mine, model = Mine(10), mlp()
    replay = ReplayPlugin(mem_size=10, storage_policy=mine)
    train(build("Naive", model, meta_optimize(model), [replay]), permuted(steps=12).benchmark())
    assert mine.updates == 2 and len(mine.buffer) == 10


def test_warnings_of_the_users_own_code_are_shown():
    def outdated(strategy):
        warnings.warn("this is mine", DeprecationWarning, stacklevel=1)

    model = mlp()
    strategy = build("Replay", model, meta_optimize(model), [Spy("after_training_exp", outdated)])
    with pytest.warns(DeprecationWarning, match="this is mine") as shown:
        train(strategy, permuted(steps=12).benchmark(task_labels="constant"))
    assert {str(warning.message) for warning in shown} == {"this is mine"}


def test_a_memory_is_copied_and_saved_with_its_strategy():
    import dill

    model = mlp()
    strategy = build("Replay", model, meta_optimize(model))
    benchmark = permuted(steps=12).benchmark(task_labels="constant")
    train(strategy, benchmark, tasks=1)
    (replay,) = (p for p in strategy.plugins if hasattr(p, "storage_policy"))
    for other in (copy.deepcopy(replay), dill.loads(dill.dumps(replay))):
        policy = other.storage_policy
        before = len(replay.storage_policy.buffer)
        policy.resize(strategy, 3)
        strategy.experience = benchmark.train_stream[1]
        policy.update(strategy)
        assert len(policy.buffer) == 3 and len(replay.storage_policy.buffer) == before
