"""What the tasks of a stream are: which samples, which labels, which pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from clmeta.errors import bad
from clmeta.ground.checks import one_of
from clmeta.streams.arraydata import ArrayData
from clmeta.streams.draws import permutation

HEADS = ("shared", "growing", "full")


@dataclass(frozen=True)
class Task:
    """One task, as changes of the data set; None means that nothing is changed.

    Attributes:
        train: indices of its training images, int64 (n,).
        test: indices of its test images.
        labels: what the learner is told for each label of the data, int64 (classes,).
        pixels: which pixel of the image is shown in each place, int64 (H W,); all channels alike.
    """

    train: Tensor | None = None
    test: Tensor | None = None
    labels: Tensor | None = None
    pixels: Tensor | None = None


class TaskFamily(Protocol):
    """The different tasks of a stream, each made when it is needed."""

    n_tasks: int
    n_classes: int

    def task(self, index: int) -> Task:
        """The task of that number, 0 to n_tasks - 1; the same at every call."""
        ...

    def size(self, index: int) -> int:
        """How many training images it has."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was drawn, for the record."""
        ...


class ClassTasks:
    """Groups of classes, in an order drawn from the seed.

    Args:
        data: the data set.
        tasks: number of tasks.
        classes_per_task: classes in each; None divides the classes of the data evenly.
        head: ``shared``: labels 0..classes_per_task-1 in every task, the output units change their
            meaning at each switch (the paper's setting); ``growing``: labels numbered in order of
            appearance; ``full``: the data's own labels.
        seed: of the class order.
    """

    def __init__(
        self, data: ArrayData, tasks: int, classes_per_task: int | None, head: str, seed: int
    ) -> None:
        one_of("head", head, HEADS)
        each = data.n_classes // tasks if classes_per_task is None else classes_per_task
        needed = tasks * max(each, 1)
        if needed > data.n_classes:
            most = data.n_classes // max(each, 1)
            if most == 0:
                mend = (
                    f"{data.name} has {data.n_classes} classes in all; use at most as many a task"
                )
                bad("classes_per_task", each, mend)
            bad(
                "tasks",
                tasks,
                f"{tasks} tasks of {max(each, 1)} classes need {needed} classes, but {data.name} "
                f"has {data.n_classes}; use at most {most} tasks, or "
                "fewer classes_per_task",
            )
        if head == "shared" and each < 2:
            bad(
                "classes_per_task",
                each,
                "with a shared head of one unit there is nothing to learn; use at least 2 classes, "
                "or head='growing' or 'full'",
            )
        self.n_tasks = tasks
        self.classes_per_task = each
        self.n_classes = {"shared": each, "growing": tasks * each, "full": data.n_classes}[head]
        self.class_order = permutation(data.n_classes, seed, "classes")[: tasks * each]
        self._head = head
        self._data = data
        self._train = _by_class(data.y_train, data.n_classes)
        self._test = _by_class(data.y_test, data.n_classes)
        for task in range(tasks):
            if sum(len(self._test[c]) for c in self.classes(task)) == 0:
                classes = ", ".join(map(str, self.classes(task)))
                bad("tasks", tasks, f"task {task} (classes {classes}) has no test images; add some")

    def classes(self, index: int) -> list[int]:
        """The task's classes by the data's own labels, in the order drawn."""
        first = index * self.classes_per_task
        return self.class_order[first : first + self.classes_per_task].tolist()

    def task(self, index: int) -> Task:
        """The images of the task's classes, in file order, and their relabelling."""
        classes = self.classes(index)
        labels = None
        if self._head != "full":
            first = 0 if self._head == "shared" else index * self.classes_per_task
            labels = torch.full((self._data.n_classes,), -1, dtype=torch.int64)
            labels[classes] = torch.arange(first, first + len(classes))
            labels = labels.to(self._data.device)
        return Task(
            train=torch.cat([self._train[c] for c in classes]).sort().values,
            test=torch.cat([self._test[c] for c in classes]).sort().values,
            labels=labels,
        )

    def size(self, index: int) -> int:
        """Training images of the task's classes."""
        return sum(len(self._train[c]) for c in self.classes(index))

    def describe(self) -> dict[str, Any]:
        """The classes in order of appearance, by the data's own labels."""
        return {"class_order": self.class_order.tolist()}


def _by_class(labels: Tensor, n_classes: int) -> list[Tensor]:
    counts = torch.bincount(labels, minlength=n_classes).tolist()
    return list(torch.argsort(labels, stable=True).split(counts))


class _WholeData:
    """Tasks that each use every image of the data."""

    def __init__(self, data: ArrayData, tasks: int, seed: int) -> None:
        self.n_tasks = tasks
        self.n_classes = data.n_classes
        self._data = data
        self._seed = seed

    def size(self, index: int) -> int:
        """All training images."""
        return len(self._data.x_train)

    def describe(self) -> dict[str, Any]:
        """Nothing beyond the seed."""
        return {}


class PixelTasks(_WholeData):
    """Every task sees all images through its own fixed permutation of pixel positions."""

    def task(self, index: int) -> Task:
        """A bijection of the H W positions, drawn from the seed and the task's number."""
        _, height, width = self._data.image_shape
        pixels = permutation(height * width, self._seed, "permutation", index)
        return Task(pixels=pixels.to(self._data.device))


class LabelTasks(_WholeData):
    """Every task sees all images with its own fixed permutation of the labels."""

    def task(self, index: int) -> Task:
        """A bijection of the labels, drawn from the seed and the task's number."""
        labels = permutation(self.n_classes, self._seed, "permutation", index)
        return Task(labels=labels.to(self._data.device))


class OneTask(_WholeData):
    """The data set as it is."""

    def task(self, index: int) -> Task:
        """No change."""
        return Task()
