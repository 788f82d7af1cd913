"""A continual stream: a re-iterable object that replays the same samples from its seed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.errors import bad, require
from clmeta.ground.checks import whole
from clmeta.ground.seeds import check_seed
from clmeta.streams.arraydata import BLOCK, ArrayData
from clmeta.streams.augment import AUGMENTATIONS
from clmeta.streams.draws import generator, permutation
from clmeta.streams.tasks import Task, TaskFamily

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario

Step = tuple[Tensor, Tensor, int, int]


class Stream:
    """Tasks one after another, each a sequence of samples cut into batches::

        for x, y, task, step in stream:
            ...

    ``x`` float32 (batch, C, H, W) in [0, 1]; ``y`` int64 (batch,); ``task`` and ``step`` count
    from 0 and never start again. Every iteration gives the same, whatever the learner or anybody
    else draws from the global generators in between. ``x`` and ``y`` are views of a block of about
    64 samples, new at every iteration: keep a clone rather than a view for long.

    A task is one or more passes over its images, each in a new random order; the last pass may be
    cut short. Batches run on across passes, so only the last one of a task can be smaller.

    Made by `abrupt_classes`, `permuted_inputs`, `permuted_labels`, `stationary` or `make_stream`.

    Args:
        data: the data set.
        family: the different tasks.
        name: registered name of the stream.
        options: the constructor's arguments besides the common ones below, for `describe`.
        seed: of every draw, 0 or more.
        batch_size: samples per step.
        epochs: passes over the images of each task; one, unless ``steps_per_task`` is given.
        steps_per_task: steps of each task, fewer or more than one pass.
        repeats: how often the whole sequence of tasks is gone through; orders are drawn anew.
        augment: None or a registered augmentation, such as ``crop-flip``.
        device: where batches are; None is where the data is.

    Raises:
        BadArgument: naming the argument that cannot work.
    """

    def __init__(
        self,
        data: ArrayData,
        family: TaskFamily,
        *,
        name: str,
        options: dict[str, Any],
        seed: int = 0,
        batch_size: int = 1,
        epochs: int | None = None,
        steps_per_task: int | None = None,
        repeats: int = 1,
        augment: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        batch_size = whole("batch_size", batch_size, least=1)
        repeats = whole("repeats", repeats, least=1)
        seed = check_seed(seed)
        if epochs is not None and steps_per_task is not None:
            bad("epochs", epochs, "steps_per_task is given too; give one of the two")
        if steps_per_task is not None:
            steps_per_task = whole("steps_per_task", steps_per_task, least=1)
        else:
            epochs = whole("epochs", 1 if epochs is None else epochs, least=1)
        self._augmentation = None if augment is None else AUGMENTATIONS.get(augment, "augment")
        self.data = data if device is None else data.to(device)
        self.name = name
        self.seed = seed
        self.batch_size = batch_size
        self.n_classes = family.n_classes
        self.n_distinct_tasks = family.n_tasks
        self.n_tasks = family.n_tasks * repeats
        self._family = family
        self._options = {
            **options,
            "seed": seed,
            "batch_size": batch_size,
            "epochs": epochs,
            "steps_per_task": steps_per_task,
            "repeats": repeats,
            "augment": augment,
        }
        sizes = [family.size(task) for task in range(family.n_tasks)]
        for task, size in enumerate(sizes):
            if batch_size > size:
                bad(
                    "batch_size",
                    batch_size,
                    f"task {task} has only {size} images; use at most that",
                )
        if steps_per_task is not None:
            self._samples = [steps_per_task * batch_size] * self.n_tasks
        else:
            self._samples = [size * (epochs or 1) for size in sizes] * repeats
        self._sizes = sizes * repeats
        self.steps_per_task = [-(-n // batch_size) for n in self._samples]
        self.boundaries = list(accumulate(self.steps_per_task, initial=0))[:-1]
        # A 0-dim tensor on the device: dividing by a Python number is not exact on CUDA.
        self._white = torch.tensor(255.0, device=self.data.device)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the learner sees."""
        return self.data.image_shape

    def __len__(self) -> int:
        """Steps in all."""
        return self.boundaries[-1] + self.steps_per_task[-1]

    def __iter__(self) -> Iterator[Step]:
        for task in range(self.n_tasks):
            yield from self.task_batches(task)

    def __getitem__(self, index: Any) -> Any:
        """No step is had by its number: a DataLoader, which asks for that, is told so."""
        mend = (
            "a stream is no map-style dataset; go through it: for x, y, task, step in stream. "
            "batch_size is the stream's own, and each step is a batch already"
        )
        bad("stream index", index, mend)

    def task_batches(self, task: int) -> Iterator[Step]:
        """The steps of one task only; the same that iterating over the whole stream gives there.

        Raises:
            BadArgument: if there is no task of that number.
        """
        self._check_task(task)
        size, step = self.batch_size, self.boundaries[task]
        for images, labels in self.blocks(task):
            for x, y in zip(images.split(size), labels.split(size), strict=True):
                yield x, y, task, step
                step += 1

    def blocks(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One task in blocks of whole batches: float32 (n, C, H, W) and int64 (n,), n near 64."""
        changes = self.distinct_task(task)
        for index, draws in self._order(task, changes):
            yield self.render(index, draws, changes)

    def distinct_task(self, task: int) -> Task:
        """What task number ``task`` of the sequence does to the data."""
        self._check_task(task)
        return self._family.task(task % self.n_distinct_tasks)

    def render(self, index: Tensor, draws: Tensor | None, changes: Task) -> tuple[Tensor, Tensor]:
        """Training images and labels at ``index``, as the learner sees them."""
        images = self.data.x_train.index_select(0, index)
        if self._augmentation is not None and draws is not None:
            images = self._augmentation.apply(images, draws)
        return self._as_seen(images, self.data.y_train.index_select(0, index), changes)

    def render_test(self, start: int, stop: int, changes: Task) -> tuple[Tensor, Tensor]:
        """Test images and labels ``start`` to ``stop`` of a task, as the learner sees them."""
        chosen: Tensor | slice = slice(start, stop)
        if changes.test is not None:
            chosen = changes.test[chosen]
        return self._as_seen(self.data.x_test[chosen], self.data.y_test[chosen], changes)

    def task_order(self, task: int) -> tuple[Tensor, Tensor | None]:
        """All training indices of a task in order, int64 (n,), and their augmentation draws."""
        changes = self.distinct_task(task)
        parts = list(self._passes(task, changes))
        index = torch.cat([part[0] for part in parts])
        draws = [part[1] for part in parts if part[1] is not None]
        return index, torch.cat(draws) if draws else None

    def n_samples(self, task: int) -> int:
        """Training samples that a task shows, each pass counted."""
        self._check_task(task)
        return self._samples[task]

    def test_set(self, task: int) -> tuple[Tensor, Tensor]:
        """The test images of a task, float32 (n, C, H, W) as the learner would see them, and y."""
        changes = self.distinct_task(task)
        count = len(self.data.x_test) if changes.test is None else len(changes.test)
        return self.render_test(0, count, changes)

    def benchmark(self, *, task_labels: bool | str = False) -> CLScenario:
        """This stream as an Avalanche benchmark; see `make_benchmark`."""
        from clmeta.streams.avalanche_benchmark import make_benchmark

        return make_benchmark(self, task_labels=task_labels)

    def describe(self) -> dict[str, Any]:
        """Everything needed to make this stream again, given the data; JSON-able.

        `stream_from_description` does it.
        """
        return {
            "stream": self.name,
            "options": dict(self._options),
            "data": self.data.describe(),
            "n_tasks": self.n_tasks,
            "n_classes": self.n_classes,
            "steps": len(self),
            "boundaries": list(self.boundaries),
            **self._family.describe(),
        }

    def __repr__(self) -> str:
        shown = {k: v for k, v in self._options.items() if v is not None}
        options = ", ".join(f"{key}={value!r}" for key, value in shown.items())
        return (
            f"<{self.name}({self.data.name}, {options}): {self.n_tasks} tasks, {len(self)} steps, "
            f"{self.n_classes} classes>"
        )

    def _check_task(self, task: int) -> None:
        there = 0 <= whole("task", task) < self.n_tasks
        require(there, "task", task, f"the stream has tasks 0 to {self.n_tasks - 1}")

    def _as_seen(self, images: Tensor, labels: Tensor, changes: Task) -> tuple[Tensor, Tensor]:
        if changes.pixels is not None:
            n, channels, height, width = images.shape
            places = changes.pixels.expand(n, channels, height * width)
            images = images.flatten(2).gather(2, places).view(n, channels, height, width)
        return images.to(torch.float32).div_(self._white), self.seen_labels(labels, changes)

    def seen_labels(self, labels: Tensor, changes: Task) -> Tensor:
        """The data's labels as the learner is told them in a task."""
        return labels if changes.labels is None else changes.labels.index_select(0, labels)

    def _passes(self, task: int, changes: Task) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Indices and augmentation draws, one pass after another until the task is full."""
        size, left, number = self._sizes[task], self._samples[task], 0
        while left > 0:
            # All of a pass is drawn even where it is cut, so that its start is always the same.
            index = permutation(size, self.seed, "order", task, number)[:left].to(self.data.device)
            if changes.train is not None:
                index = changes.train[index]
            draws = None
            if self._augmentation is not None:
                random = generator(self.seed, "augment", task, number)
                draws = self._augmentation.draw(size, random)[:left].to(self.data.device)
            yield index, draws
            left -= len(index)
            number += 1

    def _order(self, task: int, changes: Task) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The same, cut into blocks that hold whole batches."""
        block = max(1, BLOCK // self.batch_size) * self.batch_size
        left = self._samples[task]
        index: Tensor | None = None
        draws: Tensor | None = None
        for more, more_draws in self._passes(task, changes):
            left -= len(more)
            index = more if index is None else torch.cat([index, more])
            if more_draws is not None:
                draws = more_draws if draws is None else torch.cat([draws, more_draws])
            whole = len(index) if left == 0 else len(index) // self.batch_size * self.batch_size
            for start in range(0, whole, block):
                chosen = slice(start, min(start + block, whole))
                yield index[chosen], None if draws is None else draws[chosen]
            index = index[whole:]
            draws = None if draws is None else draws[whole:]
