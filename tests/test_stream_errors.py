"""Bad input of streams fails when they are made, in one line with argument, value and mend."""

import pytest
import torch

from clmeta.errors import BadArgument
from clmeta.streams import (
    ArrayData,
    abrupt_classes,
    load_dataset,
    make_stream,
    permuted_inputs,
    permuted_labels,
    stationary,
    stream_from_description,
)

X = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
DATA = ArrayData(X, torch.arange(40) % 10, X[:20], torch.arange(20) % 10, name="small")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: abrupt_classes(DATA, 11), r"tasks=11: .*small has 10; use at most 10 tasks"),
        (
            lambda: abrupt_classes(DATA, 4, 3),
            r"tasks=4: 4 tasks of 3 classes need 12 classes, .* use at most 3 tasks",
        ),
        (lambda: abrupt_classes(DATA, 10), r"classes_per_task=1: .*head='growing'"),
        (lambda: abrupt_classes(DATA, 0), r"tasks=0: must be a whole number of at least 1"),
        (lambda: abrupt_classes(DATA, 2, 0), r"classes_per_task=0: must be a whole number"),
        (lambda: abrupt_classes(DATA, 2, head="two"), r"head='two': .*shared, growing, full"),
        (lambda: permuted_inputs(DATA, 1.5), r"tasks=1.5: must be a whole number"),
        (lambda: permuted_labels(DATA, -1), r"tasks=-1: must be a whole number"),
        (lambda: stationary(DATA, steps_per_task=0), r"steps_per_task=0: must be a whole number"),
        (lambda: stationary(DATA, epochs=0), r"epochs=0: must be a whole number"),
        (lambda: stationary(DATA, epochs=True), r"epochs=True: must be a whole number"),
        (lambda: stationary(DATA, epochs=1, steps_per_task=5), r"epochs=1: .*one of the two"),
        (lambda: stationary(DATA, repeats=0), r"repeats=0: must be a whole number"),
        (lambda: stationary(DATA, batch_size=0), r"batch_size=0: must be a whole number"),
        (lambda: stationary(DATA, batch_size=41), r"batch_size=41: task 0 has only 40 images"),
        (lambda: abrupt_classes(DATA, 5, batch_size=9), r"batch_size=9: task 0 has only 8"),
        (lambda: stationary(DATA, seed=-1), r"seed=-1: must be a whole number of at least 0"),
        (lambda: stationary(DATA, seed=0.5), r"seed=0.5: must be a whole number"),
        (lambda: stationary(DATA, augment="crop_flip"), r"augment='crop_flip': .*'crop-flip'"),
        (lambda: stationary(DATA, device="cuda:99"), r"device='cuda:99': not available .*'cpu'"),
        (lambda: stationary(DATA, device="abacus"), r"device='abacus': not available"),
        (lambda: stationary(DATA, epoch=2), r"epoch=2: unknown option .*known: .*epochs"),
        (lambda: make_stream("abrupt_clases", DATA), r"unknown stream; did you mean 'abrupt_class"),
        (lambda: make_stream("stationary", DATA, tasks=2), r"tasks=2: unknown option"),
        (lambda: make_stream("cifar100-10x10", DATA), r"tasks=10: 10 tasks of 10 classes need 100"),
        (lambda: stationary("digits"), r"data='str': give what .*load_dataset returns"),
        (lambda: stationary(DATA).test_set(1), r"task=1: the stream has tasks 0 to 0"),
        (lambda: list(stationary(DATA).task_batches(-1)), r"task=-1: the stream has tasks 0 to 0"),
        (lambda: stream_from_description({}, DATA), r"description={}: 'stream' is missing"),
        (
            lambda: stream_from_description(stationary(load_dataset("digits")).describe(), DATA),
            r"data='small \w+': the stream was made of digits \w+; load that data",
        ),
    ],
)
def test_impossible_arguments_are_refused_with_the_mend(make, message):
    with pytest.raises(BadArgument, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((X, torch.arange(40) % 10 + 1, X, torch.arange(40) % 10), r"y_train.* from 1 to 10.*0 to"),
        ((X, torch.arange(40) % 2 * 3, X, torch.arange(40) % 2), r"2 different labels from 0 to 3"),
        ((X, torch.arange(40) % 4 - 1, X, torch.arange(40) % 2), r"labels from -1 to 2"),
        ((X, torch.arange(40) % 2, X, torch.arange(40) % 3), r"y_test.*training labels are 0 to 1"),
        ((X, torch.zeros(39), X, torch.zeros(40)), r"y_train.*there are 40 images"),
        ((X, torch.zeros(40) + 0.5, X, torch.zeros(40)), r"y_train.*whole numbers"),
        ((X, torch.zeros(40, 2), X, torch.zeros(40)), r"one label per image"),
        ((X, ["a"] * 40, X, ["a"] * 40), r"y_train.*give numbers"),
        ((X[:0], torch.zeros(0), X, torch.zeros(40)), r"x_train.*no images"),
        ((X, torch.zeros(40), X[:, :, :3], torch.zeros(40)), r"x_test.*of that shape"),
        ((X.float() - 100, torch.zeros(40), X, torch.zeros(40)), r"x_train.*not normalised"),
        ((X / 255 * torch.nan, torch.zeros(40), X, torch.zeros(40)), r"values from nan to nan"),
        ((X[0, 0, 0], torch.zeros(4), X, torch.zeros(40)), r"x_train=\(4,\): give images as"),
        ((X.repeat(1, 5, 2, 2), torch.zeros(40), X, torch.zeros(40)), r"1, 3 or 4 channels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_the_mend(arrays, message):
    with pytest.raises(BadArgument, match=message) as caught:
        ArrayData(*arrays)
    assert "\n" not in str(caught.value)


def test_a_task_without_test_images_is_refused():
    lopsided = ArrayData(X, torch.arange(40) % 4, X[:10], torch.zeros(10))
    with pytest.raises(BadArgument, match="has no test images"):
        abrupt_classes(lopsided, 2)


def test_tasks_of_more_classes_than_there_are_name_the_classes():
    with pytest.raises(BadArgument, match=r"classes_per_task=20: digits has 10 classes in all"):
        abrupt_classes(load_dataset("digits"), tasks=2, classes_per_task=20)
