"""Streams and data by name: presets, options, and the digits at hand."""

import torch
from stream_parts import DATA, equal, numbered

from clmeta.streams import (
    STREAMS,
    load_dataset,
    make_stream,
    preset_dataset,
    stream_from_description,
    stream_options,
)


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


def test_digits_are_at_hand_with_a_split_that_never_changes():
    digits = load_dataset("digits")
    assert digits.image_shape == (1, 8, 8) and digits.n_classes == 10
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert digits.fingerprint == "b0aa6110dc4fad80"
    assert torch.bincount(digits.y_test).min() >= 34
    assert int(digits.x_train.max()) == 255
