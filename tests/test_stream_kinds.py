"""What each kind of stream shows."""

import pytest
import torch
from stream_parts import DATA, numbered, numbers

from clmeta.streams import abrupt_classes, permuted_inputs, permuted_labels, stationary


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
