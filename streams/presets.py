"""The settings of published experiments, as streams with names of their own."""

from __future__ import annotations

from typing import Any

from clmeta.streams.arraydata import ArrayData
from clmeta.streams.catalog import STREAMS, make_stream, stream_options
from clmeta.streams.stream import Stream


class Preset:
    """A registered stream with options already chosen; any of them can still be given.

    Args:
        stream: registered name of the stream.
        dataset: name of the data that the published experiment used; any of its shape will do.
        settings: the options chosen.
    """

    def __init__(self, stream: str, dataset: str, **settings: Any) -> None:
        self.stream = stream
        self.dataset = dataset
        self.settings = settings

    def __call__(self, data: ArrayData, **options: Any) -> Stream:
        """The stream over ``data``."""
        settings = dict(self.settings)
        if options.get("epochs") is not None:
            settings.pop("steps_per_task", None)
        return make_stream(self.stream, data, **{**settings, **options})

    def options(self) -> dict[str, Any]:
        """Every option with its default."""
        return {**stream_options(self.stream), **self.settings}


def preset_dataset(name: str) -> str | None:
    """The data set of a preset, or None for a stream that is not a preset.

    Raises:
        BadArgument: for an unknown stream.
    """
    build = STREAMS.get(name)
    return build.dataset if isinstance(build, Preset) else None


STREAMS.register(
    "cifar100-10x10",
    "The paper's CIFAR100: 10 tasks of 10 classes, one shared head, crop and flip (Sec. 7.2).",
)(
    Preset(
        "abrupt_classes",
        "cifar100",
        tasks=10,
        classes_per_task=10,
        head="shared",
        augment="crop-flip",
    )
)
STREAMS.register(
    "cifar100-5x20",
    "The paper's other CIFAR100: 5 tasks of 20 classes, one shared head, crop and flip.",
)(
    Preset(
        "abrupt_classes",
        "cifar100",
        tasks=5,
        classes_per_task=20,
        head="shared",
        augment="crop-flip",
    )
)
STREAMS.register(
    "input-permuted-mnist",
    "MNIST under a new pixel permutation every 5,000 steps, a million steps.",
)(Preset("permuted_inputs", "mnist", tasks=200, steps_per_task=5_000))
STREAMS.register(
    "label-permuted-cifar10",
    "CIFAR10 under a new label permutation every 2,500 steps, a million steps.",
)(Preset("permuted_labels", "cifar10", tasks=400, steps_per_task=2_500))
