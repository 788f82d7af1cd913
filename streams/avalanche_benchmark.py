"""A stream as an Avalanche benchmark, equal sample by sample to its plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.errors import require
from clmeta.streams.arraydata import BLOCK

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario

    from clmeta.streams.stream import Stream

TASK_LABELS = (False, True, "constant")


class TaskSamples(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One task of a stream as a map-style dataset: (x float32 (C, H, W), y int).

    Nothing is computed before it is asked for, and no images are kept. Items read in sequence are
    made 64 at a time; read in any other order they are the same, one by one.

    Attributes:
        stream: the stream.
        task: the task's number in the sequence.
        targets: the labels in the same order.
    """

    def __init__(self, stream: Stream, task: int) -> None:
        self.stream = stream
        self.task = task
        self._changes = stream.distinct_task(task)
        self._expected = 0
        self._first = 0
        self._ready: list[tuple[Tensor, int] | None] = []

    @property
    def targets(self) -> Sequence[int]:
        """The labels, in order."""
        return Targets(self)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        place = i - self._first
        if 0 <= place < len(self._ready):
            item = self._ready[place]
            if item is not None:
                # Handed out once: whoever changes it in place changes nothing for the next reader.
                self._ready[place] = None
                self._expected = i + 1
                return item
        if i != self._expected:
            self._expected = i + 1
            images, labels = self._make(i, i + 1)
            return images[0], int(labels[0])
        images, labels = self._make(i, min(i + BLOCK, len(self)))
        self._first = i
        self._ready = list(zip(images.unbind(), labels.tolist(), strict=True))
        return self[i]

    def labels(self) -> Tensor:
        """All labels of the task, in order, int64 (n,)."""
        raise NotImplementedError

    def _make(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {"stream": self.stream, "task": self.task}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["stream"], state["task"])  # type: ignore[misc]


class TrainSamples(TaskSamples):
    """The training samples of a task, in the order of the plain loop."""

    def __init__(self, stream: Stream, task: int) -> None:
        super().__init__(stream, task)
        self._order: tuple[Tensor, Tensor | None] | None = None

    def __len__(self) -> int:
        return self.stream.n_samples(self.task)

    def labels(self) -> Tensor:
        """All labels of the task, in order, int64 (n,)."""
        index, _ = self._order or self.stream.task_order(self.task)
        return self.stream.seen_labels(self.stream.data.y_train[index], self._changes)

    def _make(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if self._order is None:
            self._order = self.stream.task_order(self.task)
        index, draws = self._order
        part = slice(start, stop)
        return self.stream.render(
            index[part], None if draws is None else draws[part], self._changes
        )


class TestSamples(TaskSamples):
    """The test samples of a task, in file order."""

    __test__ = False  # not a test case, whatever its name

    def __len__(self) -> int:
        chosen = self._changes.test
        return len(self.stream.data.x_test) if chosen is None else len(chosen)

    def labels(self) -> Tensor:
        """All labels of the task, in order, int64 (n,)."""
        labels, chosen = self.stream.data.y_test, self._changes.test
        return self.stream.seen_labels(labels if chosen is None else labels[chosen], self._changes)

    def _make(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.stream.render_test(start, stop, self._changes)


class Targets(Sequence[int]):
    """The labels of a task, computed when the first one is asked for."""

    def __init__(self, samples: TaskSamples) -> None:
        self._samples = samples
        self._labels: list[int] | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: Any) -> Any:
        if self._labels is None:
            self._labels = self._samples.labels().tolist()
        return self._labels[i]

    def __getstate__(self) -> dict[str, Any]:
        return {"_samples": self._samples, "_labels": None}


def make_benchmark(stream: Stream, *, task_labels: bool | str = False) -> CLScenario:
    """The stream as an Avalanche benchmark: one experience per task of the sequence.

    ``train_stream[i]`` holds the samples of task i in the order of the plain loop, every pass and
    augmentation included, so ``strategy.train(experience, shuffle=False)`` with ``train_epochs=1``
    and ``train_mb_size=stream.batch_size`` sees exactly what ``for x, y, task, step in stream``
    yields. ``test_stream[i]`` holds the test samples of task i. Experiences carry Avalanche's
    classes timeline (``classes_in_this_experience`` and so on) and ``samples``, the dataset behind
    them with its ``stream`` and ``task``.

    Args:
        stream: the stream.
        task_labels: True labels samples by distinct task, so that a repeated task keeps its label
            (for task-aware strategies and multi-head models); ``"constant"`` labels all of them 0,
            for strategies that need a label but shall not be told the task; False gives none.

    Raises:
        BadArgument: for other ``task_labels``.
    """
    require(
        task_labels in TASK_LABELS, "task_labels", task_labels, "give True, False or 'constant'"
    )
    from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
    from avalanche.benchmarks.utils import (
        ConstantSequence,
        TaskAwareSupervisedClassificationDataset,
        TaskLabels,
        as_classification_dataset,
    )
    from avalanche.benchmarks.utils.data_attribute import DataAttribute

    def dataset(samples: TaskSamples) -> Any:
        if task_labels is False:
            return as_classification_dataset(samples)
        label = samples.task % stream.n_distinct_tasks if task_labels is True else 0
        attributes = [
            DataAttribute(samples.targets, "targets"),
            TaskLabels(ConstantSequence(label, len(samples))),
        ]
        return TaskAwareSupervisedClassificationDataset([samples], data_attributes=attributes)

    sources: dict[str, list[TaskSamples]] = {
        "train": [TrainSamples(stream, task) for task in range(stream.n_tasks)],
        "test": [TestSamples(stream, task) for task in range(stream.n_tasks)],
    }
    benchmark = benchmark_from_datasets(
        **{name: [dataset(samples) for samples in source] for name, source in sources.items()}
    )
    if task_labels is not False:
        benchmark = with_task_labels(benchmark)
    for name, source in sources.items():
        _add_timeline(benchmark.streams[name], source)
    return benchmark


def _add_timeline(experiences: Any, sources: list[TaskSamples]) -> None:
    """What Avalanche's `with_classes_timeline` adds, without a pass over all targets in Python."""
    present = [set(torch.unique(samples.labels()).tolist()) for samples in sources]
    everything = set().union(*present)
    seen: set[int] = set()
    for experience, samples, classes in zip(experiences, sources, present, strict=True):
        experience.samples = samples
        # Lists, as Avalanche's protocol says: its multi-head classifier indexes with them.
        experience.classes_in_this_experience = sorted(classes)
        experience.previous_classes = sorted(seen)
        seen |= classes
        experience.classes_seen_so_far = sorted(seen)
        experience.future_classes = sorted(everything - seen)
