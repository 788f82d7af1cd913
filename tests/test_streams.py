"""What a stream promises: replay, pairing, laws of its draws, and what each kind shows."""

import json
import pickle
import time
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmeta.streams import (
    STREAMS,
    ArrayData,
    abrupt_classes,
    load_dataset,
    make_stream,
    permuted_inputs,
    permuted_labels,
    preset_dataset,
    stationary,
    stream_from_description,
    stream_options,
)

PLAIN = ["abrupt_classes", "permuted_inputs", "permuted_labels", "stationary"]


def numbered(n_train=60, n_test=20, n_classes=10, shape=(1, 4, 4), name="numbered"):
    """Images that can be told apart: the first pixels hold the image's number."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n_train + n_test, *shape), dtype=torch.uint8, generator=generator)
    flat = x.view(len(x), -1)
    flat[:, 0] = torch.arange(len(x)) % 256
    flat[:, 1] = torch.arange(len(x)) // 256
    y = torch.arange(n_train + n_test) % n_classes
    train, test = x[:n_train].clone(), x[n_train:].clone()
    return ArrayData(train, y[:n_train].clone(), test, y[n_train:].clone(), name=name)


DATA = numbered()


def numbers(stream):
    """The number of each training image in the order shown; not for permuted pixels."""
    return [int(v) for x, _, _, _ in stream for v in (x[:, 0, 0, 0] * 255).round()]


def equal(a, b):
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        torch.equal(xa, xb) and torch.equal(ya, yb) and rest_a == rest_b
        for (xa, ya, *rest_a), (xb, yb, *rest_b) in zip(a, b, strict=True)
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


@given(st.integers(0, 2**40))
@settings(max_examples=15, deadline=None)
def test_augmentation_changes_pixels_and_nothing_else(seed):
    # Labels name the images here, so that the order can be read from them.
    x = torch.randint(1, 256, (30, 3, 8, 8), dtype=torch.uint8)
    data = ArrayData(x, torch.arange(30), x, torch.arange(30))
    plain = list(stationary(data, seed=seed, epochs=2))
    augmented = list(stationary(data, seed=seed, epochs=2, augment="crop-flip"))
    assert [int(y) for _, y, _, _ in plain] == [int(y) for _, y, _, _ in augmented]
    assert not equal(plain, augmented)
    assert equal(stationary(data, seed=seed, epochs=2, augment="crop-flip"), augmented)
    first, second = augmented[:30], augmented[30:]
    by_label = [
        sorted(((int(y), x) for x, y, _, _ in half), key=lambda p: p[0]) for half in (first, second)
    ]
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(*by_label, strict=True))


def test_crop_flip_is_a_window_of_the_padded_image_mirrored_or_not():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    data = ArrayData(image.repeat(2, 1, 1, 1), [0, 1], image, [0])
    padded = torch.zeros(16, 16)
    padded[4:12, 4:12] = image[0, 0].float() / 255
    windows = {
        (row, column, flip): window.flip(-1) if flip else window
        for row in range(9)
        for column in range(9)
        for flip in (0, 1)
        for window in [padded[row : row + 8, column : column + 8]]
    }
    seen = [
        key
        for x, _, _, _ in stationary(data, epochs=400, augment="crop-flip")
        for key, window in windows.items()
        if torch.equal(x[0, 0], window)
    ]
    rows, columns, flips = (set(values) for values in zip(*seen, strict=True))
    assert rows == columns == set(range(9)) and flips == {0, 1}
    assert len(seen) >= 800


def test_seeds_differ_and_seed_zero_is_not_special():
    orders = {tuple(numbers(stationary(DATA, seed=seed))) for seed in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize("head", ["shared", "growing", "full"])
def test_abrupt_classes_follow_one_drawn_class_order(head):
    stream = abrupt_classes(DATA, tasks=5, classes_per_task=2, head=head, seed=3)
    order = stream.describe()["class_order"]
    assert sorted(order) == list(range(10)) != order
    assert stream.n_classes == (2 if head == "shared" else 10)
    labels = [int(y) for _, y, _, _ in stream]
    originals = [number % 10 for number in numbers(stream)]
    for original, label, (_, _, task, _) in zip(originals, labels, stream, strict=True):
        place = order.index(original)
        assert place // 2 == task
        assert label == {"shared": place % 2, "growing": place, "full": original}[head]
    for task in range(5):
        x, y = stream.test_set(task)
        true = ((x[:, 0, 0, 0] * 255).round().long()) % 10
        assert sorted(set(true.tolist())) == sorted(order[2 * task : 2 * task + 2])
        for original, label in zip(true.tolist(), y.tolist(), strict=True):
            place = order.index(original)
            assert label == {"shared": place % 2, "growing": place, "full": original}[head]


def test_a_growing_head_over_some_classes_needs_only_those_units():
    assert abrupt_classes(DATA, tasks=2, classes_per_task=3, head="growing").n_classes == 6
    assert abrupt_classes(DATA, tasks=2, classes_per_task=3, head="full").n_classes == 10
    assert abrupt_classes(DATA, tasks=10, head="full").n_tasks == 10


def test_permuted_inputs_show_each_image_through_one_bijection_a_task():
    data = numbered(shape=(3, 4, 4))
    stream = permuted_inputs(data, tasks=3, seed=5)
    plain = list(stationary(data, seed=5))
    permutations = [stream.distinct_task(task).pixels for task in range(3)]
    for places in permutations:
        assert sorted(places.tolist()) == list(range(16))
    assert len({tuple(p.tolist()) for p in permutations}) == 3
    for (x, y, _, _), (x0, y0, _, _) in zip(stream.task_batches(0), plain, strict=True):
        assert torch.equal(x.flatten(2), x0.flatten(2)[:, :, permutations[0]])
        assert torch.equal(y, y0)
    x, y = stream.test_set(2)
    assert torch.equal(x.flatten(2), (data.x_test.float() / 255).flatten(2)[:, :, permutations[2]])
    assert torch.equal(y, data.y_test)


def test_permuted_labels_rename_the_classes_by_one_bijection_a_task():
    stream = permuted_labels(DATA, tasks=4, seed=5)
    renamings = []
    for task in range(4):
        renaming = {}
        for x, y, _, _ in stream.task_batches(task):
            original = int((x[0, 0, 0, 0] * 255).round()) % 10
            assert renaming.setdefault(original, int(y)) == int(y)
        assert sorted(renaming.values()) == list(range(10))
        x, y = stream.test_set(task)
        assert y.tolist() == [renaming[int(label)] for label in DATA.y_test]
        renamings.append(tuple(sorted(renaming.items())))
    assert len(set(renamings)) == 4


def test_repeats_bring_the_same_tasks_back_in_a_new_order():
    stream = permuted_labels(DATA, tasks=2, repeats=3, steps_per_task=20)
    assert stream.n_tasks == 6 and stream.n_distinct_tasks == 2
    assert [stream.distinct_task(t).labels.tolist() for t in range(6)] == [
        stream.distinct_task(t % 2).labels.tolist() for t in range(6)
    ]
    shown = numbers(stream)
    assert shown[:20] != shown[40:60]
    assert torch.equal(stream.test_set(0)[1], stream.test_set(4)[1])


def test_tasks_longer_than_the_data_are_reshuffled_on_each_pass():
    stream = stationary(DATA, steps_per_task=150)
    shown = numbers(stream)
    assert sorted(shown[:60]) == sorted(shown[60:120]) == list(range(60))
    assert shown[:60] != shown[60:120]
    assert len(set(shown[120:])) == 30


def test_a_step_shows_pixels_divided_by_255():
    x, _, _, _ = next(iter(stationary(DATA)))
    number = int((x[0, 0, 0, 0] * 255).round())
    assert torch.equal(x[0], DATA.x_train[number].float() / 255)


def test_presets_are_the_published_settings():
    paper = make_stream("cifar100-10x10", numbered(200, 100, 100, (3, 8, 8)))
    assert (paper.n_tasks, paper.n_classes) == (10, 10)
    assert paper.describe()["options"]["augment"] == "crop-flip"
    other = make_stream("cifar100-5x20", numbered(200, 100, 100, (3, 8, 8)))
    assert (other.n_tasks, other.n_classes) == (5, 20)
    for name, length, dataset in (
        ("input-permuted-mnist", 5_000, "mnist"),
        ("label-permuted-cifar10", 2_500, "cifar10"),
    ):
        stream = make_stream(name, DATA)
        assert len(stream) == 1_000_000 and set(stream.steps_per_task) == {length}
        assert preset_dataset(name) == dataset
        assert len(make_stream(name, DATA, tasks=2)) == 2 * length
        assert len(make_stream(name, DATA, tasks=2, epochs=1)) == 2 * 60
    assert preset_dataset("stationary") is None


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


def test_every_registered_stream_lists_and_takes_its_options():
    data = numbered(200, 100, 100)
    for name in STREAMS:
        options = stream_options(name)
        assert {"seed", "batch_size", "epochs", "steps_per_task", "repeats", "augment"} <= set(
            options
        )
        assert STREAMS.about()[name]
        stream = make_stream(name, data, **options)
        assert equal(
            list(stream.task_batches(0))[:5], list(make_stream(name, data).task_batches(0))[:5]
        )
        rebuilt = stream_from_description(stream.describe(), data)
        assert rebuilt.describe() == stream.describe()


def test_repr_says_what_it_is():
    shown = repr(abrupt_classes(DATA, tasks=5, augment="flip", seed=4))
    for part in ("abrupt_classes", "numbered", "seed=4", "augment='flip'", "5 tasks", "60 steps"):
        assert part in shown
    assert repr(DATA) == "ArrayData('numbered': 60 train + 20 test images of 1x4x4, 10 classes)"


def test_digits_are_at_hand_with_a_split_that_never_changes():
    digits = load_dataset("digits")
    assert digits.image_shape == (1, 8, 8) and digits.n_classes == 10
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert digits.fingerprint == "b0aa6110dc4fad80"
    assert torch.bincount(digits.y_test).min() >= 34
    assert int(digits.x_train.max()) == 255


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
