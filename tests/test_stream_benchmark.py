"""A stream's Avalanche benchmark equals its plain loop, and any Avalanche strategy takes it."""

import pickle
import warnings

import pytest
import torch
from torch import nn

from clmeta.errors import BadArgument
from clmeta.streams import ArrayData, abrupt_classes, load_dataset, make_stream, permuted_inputs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from avalanche.benchmarks.scenarios import CLScenario
    from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
    from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
    from avalanche.training.supervised import LwF, Naive, Replay

pytestmark = [
    pytest.mark.filterwarnings("ignore:No loggers specified"),
    pytest.mark.filterwarnings("ignore:No benchmark provided"),
]

X = torch.randint(
    0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
DATA = ArrayData(X, torch.arange(40) % 4, X[:12], torch.arange(12) % 4, name="small")
CASES = {
    "abrupt": ("abrupt_classes", {"tasks": 2, "augment": "crop-flip", "epochs": 2}),
    "growing": ("abrupt_classes", {"tasks": 2, "head": "growing", "repeats": 2}),
    "inputs": ("permuted_inputs", {"tasks": 3, "steps_per_task": 7, "augment": "flip"}),
    "labels": ("permuted_labels", {"tasks": 2, "steps_per_task": 100}),
    "stationary": ("stationary", {"epochs": 3}),
}


@pytest.fixture(params=CASES)
def stream(request):
    name, options = CASES[request.param]
    return make_stream(name, DATA, seed=2, **options)


class Keep(SupervisedPlugin):
    """Keeps every batch that a strategy trains on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def after_update(self, strategy, **kwargs):
        step = strategy.clock.train_iterations
        self.seen.append(
            (strategy.mb_x, strategy.mb_y, strategy.experience.current_experience, step)
        )


def train(stream, kind=Naive, model=None, task_labels=False, **options):
    model = model or nn.Sequential(
        nn.Flatten(), nn.Linear(torch.Size(stream.input_shape).numel(), stream.n_classes)
    )
    strategy = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=stream.batch_size,
        train_epochs=1,
        eval_mb_size=16,
        plugins=[keep := Keep()],
        evaluator=EvaluationPlugin(),
        **options,
    )
    benchmark = stream.benchmark(task_labels=task_labels)
    for experience in benchmark.train_stream:
        strategy.train(experience, shuffle=False)
    strategy.eval(benchmark.test_stream)
    return keep.seen


def same(steps, others):
    steps, others = list(steps), list(others)
    assert len(steps) == len(others)
    for (x, y, *rest), (other_x, other_y, *other_rest) in zip(steps, others, strict=True):
        assert torch.equal(x, other_x) and torch.equal(y, other_y) and rest == other_rest


@pytest.mark.parametrize("batch_size", [1, 6])
@pytest.mark.parametrize("case", CASES)
def test_naive_trains_on_exactly_the_steps_of_the_plain_loop(case, batch_size):
    name, options = CASES[case]
    stream = make_stream(name, DATA, batch_size=batch_size, **options)
    torch.manual_seed(5)
    same(train(stream), stream)


def test_items_are_the_samples_of_the_loop_in_any_order(stream):
    assert isinstance(stream.benchmark(), CLScenario)
    benchmark = stream.benchmark()
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == stream.n_tasks
    for task, experience in enumerate(benchmark.train_stream):
        expected = [(x[0], int(y)) for x, y, _, _ in stream.task_batches(task)]
        dataset = experience.dataset
        assert len(dataset) == len(expected)
        assert list(dataset.targets) == [y for _, y in expected]
        shuffled = torch.randperm(len(expected)).tolist()
        for i in [*range(len(expected)), *shuffled, *range(len(expected))]:
            x, y = dataset[i]
            assert torch.equal(x, expected[i][0]) and y == expected[i][1]
            x.zero_()  # whoever changes an item changes it for nobody else
        assert experience.samples.stream is stream and experience.samples.task == task
        with pytest.raises(IndexError):
            experience.samples[len(expected)]


def test_test_sets_are_those_of_the_stream(stream):
    for task, experience in enumerate(stream.benchmark().test_stream):
        x, y = stream.test_set(task)
        items = [experience.dataset[i] for i in range(len(experience.dataset))]
        assert torch.equal(torch.stack([item[0] for item in items]), x)
        assert [item[1] for item in items] == y.tolist() == list(experience.dataset.targets)


def test_a_pickled_benchmark_is_the_same(stream):
    benchmark = stream.benchmark(task_labels=True)
    half_read = benchmark.train_stream[0].dataset[0]
    again = pickle.loads(pickle.dumps(benchmark))
    for one, other in zip(benchmark.train_stream, again.train_stream, strict=True):
        for i in range(len(one.dataset)):
            x, y, task_label = one.dataset[i]
            other_x, other_y, other_label = other.dataset[i]
            assert torch.equal(x, other_x) and (y, task_label) == (other_y, other_label)
    assert torch.equal(half_read[0], again.train_stream[0].dataset[0][0])
    data = {id(e.samples.stream.data) for s in again.streams.values() for e in s}
    assert len(data) == 1


def test_experiences_know_their_classes():
    stream = abrupt_classes(DATA, tasks=2, head="growing", repeats=2)
    train_stream = stream.benchmark().train_stream
    assert [e.classes_in_this_experience for e in train_stream] == [[0, 1], [2, 3]] * 2
    assert [e.previous_classes for e in train_stream][:3] == [[], [0, 1], [0, 1, 2, 3]]
    assert [e.classes_seen_so_far for e in train_stream][:2] == [[0, 1], [0, 1, 2, 3]]
    assert [e.future_classes for e in train_stream][:2] == [[2, 3], []]


def test_task_labels_name_the_distinct_task_or_nothing():
    stream = abrupt_classes(DATA, tasks=2, repeats=2)
    named = stream.benchmark(task_labels=True).train_stream
    assert [e.task_label for e in named] == [0, 1, 0, 1]
    assert [e.dataset[0][2] for e in named] == [0, 1, 0, 1]
    constant = stream.benchmark(task_labels="constant").train_stream
    assert [e.task_label for e in constant] == [0, 0, 0, 0]
    assert len(stream.benchmark().train_stream[0].dataset[0]) == 2
    with pytest.raises(BadArgument, match="task_labels='yes'"):
        stream.benchmark(task_labels="yes")


class Heads(MultiTaskModule):
    """A multi-head model."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU())
        self.heads = MultiHeadClassifier(20, 2)

    def forward(self, x, task_labels):
        return self.heads(self.body(x), task_labels)


def test_strategies_that_need_task_labels_and_growing_heads_run():
    digits = load_dataset("digits")
    stream = abrupt_classes(digits, tasks=2, steps_per_task=20)
    same(train(stream, LwF, alpha=1.0, temperature=2.0, task_labels="constant"), stream)
    same(train(stream, model=Heads(), task_labels=True), stream)
    growing = abrupt_classes(digits, tasks=2, steps_per_task=20, head="growing")
    model = nn.Sequential(nn.Flatten(), IncrementalClassifier(64, 1))
    same(train(growing, model=model), growing)


def test_a_replay_buffer_fills_from_the_stream():
    stream = permuted_inputs(load_dataset("digits"), tasks=2, steps_per_task=20)
    with pytest.warns(DeprecationWarning, match="deprecated function update"):  # Avalanche's own
        seen = train(stream, Replay, mem_size=10)
    same([(x[:1], y[:1], *rest) for x, y, *rest in seen], stream)
    assert [len(y) for _, y, _, _ in seen[-5:]] == [2] * 5


def test_the_benchmark_of_a_million_steps_is_made_without_reading_an_image(monkeypatch):
    stream = make_stream("input-permuted-mnist", DATA)
    monkeypatch.setattr(type(stream), "render", None)
    benchmark = stream.benchmark()
    assert sum(len(e.dataset) for e in benchmark.train_stream) == 1_000_000
