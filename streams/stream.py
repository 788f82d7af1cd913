"""A continual stream: a re-iterable object that replays the same samples from its seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.errors import bad, require
from clmeta.ground.checks import whole
from clmeta.ground.seeds import check_seed
from clmeta.streams.arraydata import ArrayData
from clmeta.streams.augment import AUGMENTATIONS
from clmeta.streams.draws import generator, permutation
from clmeta.streams.order import Drawn, Order
from clmeta.streams.position import next_step, position
from clmeta.streams.schedule import Schedule
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

    A loop that stopped after ``step`` goes on with ``stream.steps_from(step + 1)``; where it stands
    can be kept as ``stream.state(step + 1)``, which `restore` takes for this stream only.

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
        schedule = Schedule(
            family,
            batch_size=batch_size,
            epochs=epochs,
            steps_per_task=steps_per_task,
            repeats=repeats,
        )
        seed = check_seed(seed)
        self._augmentation = None if augment is None else AUGMENTATIONS.get(augment, "augment")
        self.data = data if device is None else data.to(device)
        self.name = name
        self.seed = seed
        self.batch_size = schedule.batch_size
        self.n_classes = family.n_classes
        self.n_distinct_tasks = family.n_tasks
        self.n_tasks = schedule.n_tasks
        self._family = family
        self._schedule = schedule
        self.options = {**options, "seed": seed, **schedule.options, "augment": augment}
        # A 0-dim tensor on the device: dividing by a Python number is not exact on CUDA.
        self._white = torch.tensor(255.0, device=self.data.device)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the learner sees."""
        return self.data.image_shape

    @cached_property
    def steps_per_task(self) -> list[int]:
        """Steps of each task."""
        return [self._schedule.steps_of(task) for task in range(self.n_tasks)]

    @cached_property
    def boundaries(self) -> list[int]:
        """The step with which each task begins."""
        return [self._schedule.start(task) for task in range(self.n_tasks)]

    def __len__(self) -> int:
        """Steps in all."""
        return self._schedule.steps

    def __iter__(self) -> Iterator[Step]:
        return self.steps_from(0)

    def steps_from(self, step: int) -> Iterator[Step]:
        """The steps from number ``step`` on; no step is made, and no pass drawn, to get there.

        Raises:
            BadArgument: for a step that the stream does not have; its length is the end.
        """
        task, start = self.locate(step)
        return self._steps(task, start)

    def _steps(self, first: int, start: int) -> Iterator[Step]:
        for task in range(first, self.n_tasks):
            yield from self.task_batches(task, start)
            start = 0

    def locate(self, step: int) -> tuple[int, int]:
        """The task that step number ``step`` is in, and the steps of that task before it.

        For the stream's length, which is its end, that is a task more than there are.
        """
        step, mend = whole("step", step), f"the stream has steps 0 to {len(self) - 1}"
        require(0 <= step <= len(self), "step", step, f"{mend}, and ends at {len(self)}")
        return self._schedule.locate(step)

    def state(self, step: int) -> dict[str, Any]:
        """Where a loop stands whose next step is number ``step``: plain data, for `restore`."""
        self.locate(step)
        return position(self, step)

    def restore(self, state: Mapping[str, Any]) -> Iterator[Step]:
        """The steps from a `state` on, equal to the bit to what the loop would have gone on with.

        Raises:
            BadArgument: for the state of another stream, naming what differs.
        """
        return self.steps_from(next_step(self, state))

    def __getitem__(self, index: Any) -> Any:
        """No step is had by its number: a DataLoader, which asks for that, is told so."""
        mend = (
            "a stream is no map-style dataset; go through it: for x, y, task, step in stream. "
            "batch_size is the stream's own, and each step is a batch already"
        )
        bad("stream index", index, mend)

    def task_batches(self, task: int, start: int = 0) -> Iterator[Step]:
        """The steps of one task only; the same that iterating over the whole stream gives there.

        Args:
            task: its number in the sequence.
            start: steps of it to leave out.

        Raises:
            BadArgument: if there is no task of that number.
        """
        task = self._check_task(task)
        start = whole("start", start, least=0)
        size, step = self.batch_size, self._schedule.start(task) + start
        for images, labels in self.blocks(task, start):
            for x, y in zip(images.split(size), labels.split(size), strict=True):
                yield x, y, task, step
                step += 1

    def blocks(self, task: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """One task in blocks of whole batches: float32 (n, C, H, W) and int64 (n,), n near 64.

        The first ``start`` steps are left out; the first block is then a view of a block's rest,
        so that batches lie in memory as they always do.
        """
        changes, task = self.distinct_task(task), int(task)
        start = whole("start", start, least=0)
        for index, draws, before in self._order(task, changes).blocks(start):
            images, labels = self.render(index, draws, changes)
            yield (images[before:], labels[before:]) if before else (images, labels)

    def distinct_task(self, task: int) -> Task:
        """What task number ``task`` of the sequence does to the data."""
        task = self._check_task(task)
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
        task = self._check_task(task)
        parts = list(self._order(task, self.distinct_task(task)).passes())
        index = torch.cat([part[0] for part in parts])
        draws = [part[1] for part in parts if part[1] is not None]
        return index, torch.cat(draws) if draws else None

    def n_samples(self, task: int) -> int:
        """Training samples that a task shows, each pass counted."""
        return self._schedule.samples(self._check_task(task))

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
            "options": dict(self.options),
            "data": self.data.describe(),
            "n_tasks": self.n_tasks,
            "n_classes": self.n_classes,
            "steps": len(self),
            "boundaries": list(self.boundaries),
            **self._family.describe(),
        }

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.options.items() if v is not None}
        options = ", ".join(f"{key}={value!r}" for key, value in shown.items())
        return (
            f"<{self.name}({self.data.name}, {options}): {self.n_tasks} tasks, {len(self)} steps, "
            f"{self.n_classes} classes>"
        )

    def _check_task(self, task: int) -> int:
        number = whole("task", task)
        there = 0 <= number < self.n_tasks
        require(there, "task", task, f"the stream has tasks 0 to {self.n_tasks - 1}")
        return number

    def _as_seen(self, images: Tensor, labels: Tensor, changes: Task) -> tuple[Tensor, Tensor]:
        if changes.pixels is not None:
            n, channels, height, width = images.shape
            places = changes.pixels.expand(n, channels, height * width)
            images = images.flatten(2).gather(2, places).view(n, channels, height, width)
        return images.to(torch.float32).div_(self._white), self.seen_labels(labels, changes)

    def seen_labels(self, labels: Tensor, changes: Task) -> Tensor:
        """The data's labels as the learner is told them in a task."""
        return labels if changes.labels is None else changes.labels.index_select(0, labels)

    def _order(self, task: int, changes: Task) -> Order:
        """The order of a task's samples; every pass has generators of its own."""
        size = self._schedule.size(task)

        def draw(number: int, count: int) -> Drawn:
            # All of a pass is drawn even where it is cut, so that its start is always the same.
            index = permutation(size, self.seed, "order", task, number)[:count]
            index = index.to(self.data.device)
            if changes.train is not None:
                index = changes.train[index]
            if self._augmentation is None:
                return index, None
            random = generator(self.seed, "augment", task, number)
            return index, self._augmentation.draw(size, random)[:count].to(self.data.device)

        return Order(size, self._schedule.samples(task), self.batch_size, draw)
