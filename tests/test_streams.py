"""What every stream promises: replay, pairing, laws of its draws."""

import json
import pickle
import time
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_parts import DATA, PLAIN, equal, numbered, numbers

from clmeta.errors import BadArgument
from clmeta.streams import (
    abrupt_classes,
    load_dataset,
    make_stream,
    permuted_inputs,
    stationary,
    stream_from_description,
)

common_options = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**40), "batch_size": st.integers(1, 12)},
    optional={
        "epochs": st.integers(1, 3),
        "repeats": st.integers(1, 2),
        "augment": st.sampled_from([None, "crop-flip", "crop", "flip"]),
    },
)
any_stream = st.builds(
    lambda name, common, steps: make_stream(
        name,
        DATA,
        **({} if name == "stationary" else {"tasks": 3}),
        **({**common, "steps_per_task": steps, "epochs": None} if steps else common),
    ),
    st.sampled_from(PLAIN),
    common_options,
    st.none() | st.integers(1, 30),
)


@given(any_stream)
@settings(max_examples=40, deadline=None)
def test_every_stream_keeps_the_protocol_and_replays(stream):
    steps = list(stream)
    assert [step for _, _, _, step in steps] == list(range(len(stream)))
    assert [task for _, _, task, _ in steps] == [
        task for task, n in enumerate(stream.steps_per_task) for _ in range(n)
    ]
    assert [steps[first][2] for first in stream.boundaries] == list(range(stream.n_tasks))
    for x, y, _, _ in steps:
        assert x.dtype == torch.float32 and x.shape[1:] == stream.input_shape
        assert y.dtype == torch.int64 and y.shape == x.shape[:1]
        assert x.min() >= 0 and x.max() <= 1
        assert y.min() >= 0 and y.max() < stream.n_classes
    last_of_a_task = {first - 1 for first in [*stream.boundaries[1:], len(stream)]}
    assert all(len(y) == stream.batch_size for _, y, _, step in steps if step not in last_of_a_task)
    assert equal(steps, stream)
    assert equal(steps, pickle.loads(pickle.dumps(stream)))
    description = json.loads(json.dumps(stream.describe()))
    assert equal(steps, stream_from_description(description, DATA))


@given(any_stream, st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_one_task_alone_is_the_same_as_in_the_whole(stream, which):
    task = which % stream.n_tasks
    assert equal(stream.task_batches(task), [step for step in stream if step[2] == task])


@given(any_stream)
@settings(max_examples=20, deadline=None)
def test_the_learner_cannot_move_the_stream_nor_the_stream_the_learner(stream):
    expected = [(x.clone(), *rest) for x, *rest in stream]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    seen = []
    for x, y, task, step in stream:
        seen.append((x.clone(), y.clone(), task, step))
        torch.rand(3)
        x.zero_()
    assert equal(expected, seen)
    torch.set_rng_state(before)
    for _ in stream:
        pass
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(0, 2**40), st.integers(1, 3), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_each_pass_shows_every_sample_of_the_task_once(seed, epochs, batch_size):
    stream = abrupt_classes(DATA, tasks=2, seed=seed, epochs=epochs, batch_size=batch_size)
    shown = numbers(stream)
    for task in range(2):
        of_task = shown[task * 30 * epochs : (task + 1) * 30 * epochs]
        passes = [of_task[i * 30 : (i + 1) * 30] for i in range(epochs)]
        assert all(len(set(one)) == 30 for one in passes)
        assert len({frozenset(one) for one in passes}) == 1
        assert len({tuple(one) for one in passes}) == epochs


def test_tasks_longer_than_the_data_are_reshuffled_on_each_pass():
    stream = stationary(DATA, steps_per_task=150)
    shown = numbers(stream)
    assert sorted(shown[:60]) == sorted(shown[60:120]) == list(range(60))
    assert shown[:60] != shown[60:120]
    assert len(set(shown[120:])) == 30


@given(st.integers(0, 2**40))
@settings(max_examples=15, deadline=None)
def test_no_setting_shifts_the_draws_of_another(seed):
    def order(**options):
        return numbers(abrupt_classes(DATA, tasks=2, seed=seed, **options))

    reference = order()
    assert order(batch_size=7) == reference
    assert order(head="full") == reference
    assert order(repeats=2)[:60] == reference
    assert order(steps_per_task=11)[:11] == reference[:11]
    assert order(steps_per_task=11)[11:] == reference[30:41]
    assert order(steps_per_task=40)[:30] == reference[:30]
    more = abrupt_classes(DATA, tasks=5, classes_per_task=2, seed=seed)
    fewer = abrupt_classes(DATA, tasks=3, classes_per_task=2, seed=seed)
    assert more.describe()["class_order"][:6] == fewer.describe()["class_order"]
    assert equal(list(more)[: len(fewer)], fewer)
    inputs = permuted_inputs(DATA, tasks=2, seed=seed)
    assert equal(list(permuted_inputs(DATA, tasks=3, seed=seed))[:120], inputs)


def test_seeds_differ_and_seed_zero_is_not_special():
    orders = {tuple(numbers(stationary(DATA, seed=seed))) for seed in range(20)}
    assert len(orders) == 20


def test_a_step_shows_pixels_divided_by_255():
    x, _, _, _ = next(iter(stationary(DATA)))
    number = int((x[0, 0, 0, 0] * 255).round())
    assert torch.equal(x[0], DATA.x_train[number].float() / 255)


def test_a_million_steps_take_no_time_and_no_memory_before_they_are_asked_for():
    data = numbered(6000, 100, 10, (1, 8, 8))
    tracemalloc.start()
    start = time.perf_counter()
    stream = make_stream("input-permuted-mnist", data)
    iterator = iter(stream)
    next(iterator)
    took = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 0.5
    assert peak < 2_000_000
    state = pickle.dumps(stream)
    assert len(state) < 1.2 * (data.x_train.numel() + 8 * len(data.y_train)) + 50_000


def test_repr_says_what_it_is():
    shown = repr(abrupt_classes(DATA, tasks=5, augment="flip", seed=4))
    for part in ("abrupt_classes", "numbered", "seed=4", "augment='flip'", "5 tasks", "60 steps"):
        assert part in shown
    assert repr(DATA) == "ArrayData('numbered': 60 train + 20 test images of 1x4x4, 10 classes)"


def test_draws_are_the_same_on_every_machine():
    stream = abrupt_classes(DATA, tasks=5, seed=7)
    assert stream.describe()["class_order"] == CLASS_ORDER_OF_SEED_7
    assert numbers(stationary(DATA, seed=7))[:8] == ORDER_OF_SEED_7


CLASS_ORDER_OF_SEED_7 = [5, 8, 2, 0, 9, 1, 7, 6, 3, 4]
ORDER_OF_SEED_7 = [8, 9, 45, 4, 55, 37, 47, 19]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PLAIN)
def test_a_stream_on_the_gpu_shows_the_same(name):
    on_cpu = make_stream(name, DATA, augment="crop-flip")
    on_gpu = make_stream(name, DATA, augment="crop-flip", device="cuda")
    moved = [(x.cpu(), y.cpu(), t, s) for x, y, t, s in on_gpu]
    assert next(iter(on_gpu))[0].device.type == "cuda"
    assert equal(on_cpu, moved)
    assert on_gpu.describe() == on_cpu.describe()


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"batch_size": None}])
def test_a_data_loader_is_told_that_a_stream_is_gone_through(options):
    loader = torch.utils.data.DataLoader(permuted_inputs(DATA), **options)
    with pytest.raises(BadArgument, match="for x, y, task, step in stream"):
        next(iter(loader))


def test_a_stream_has_no_step_of_a_number():
    stream = permuted_inputs(DATA)
    for use in (lambda: stream[0], lambda: stream[-1:], lambda: load_dataset(stream)):
        with pytest.raises(BadArgument, match="is no map-style dataset"):
            use()
