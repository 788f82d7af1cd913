"""How many samples and steps each task of a stream has, and where it begins."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from itertools import accumulate

from clmeta.errors import bad, require
from clmeta.ground.checks import whole
from clmeta.streams.tasks import TaskFamily

#: All of a stream's tasks; each has its numbers in memory, and in what is recorded.
MOST_TASKS = 10_000_000


class Schedule:
    """The lengths of all tasks; those of repeated ones are kept once.

    Attributes:
        n_distinct: different tasks.
        n_tasks: tasks in all, repeats counted.
        steps: steps in all.

    Args:
        family: the different tasks.
        batch_size, epochs, steps_per_task, repeats: as of `Stream`.

    Raises:
        BadArgument: for a count that cannot work.
    """

    def __init__(
        self,
        family: TaskFamily,
        *,
        batch_size: int,
        epochs: int | None,
        steps_per_task: int | None,
        repeats: int,
    ) -> None:
        self.batch_size = whole("batch_size", batch_size, least=1)
        repeats = whole("repeats", repeats, least=1)
        if epochs is not None and steps_per_task is not None:
            bad("epochs", epochs, "steps_per_task is given too; give one of the two")
        if steps_per_task is not None:
            steps_per_task = whole("steps_per_task", steps_per_task, least=1)
        else:
            epochs = whole("epochs", 1 if epochs is None else epochs, least=1)
        self.options = {
            "batch_size": self.batch_size,
            "epochs": epochs,
            "steps_per_task": steps_per_task,
            "repeats": repeats,
        }
        self.n_distinct, self.n_tasks = family.n_tasks, family.n_tasks * repeats
        mend = f"a stream has at most {MOST_TASKS} tasks, repeats counted; use fewer, but longer"
        require(self.n_distinct <= MOST_TASKS, "tasks", self.n_distinct, mend)
        require(self.n_tasks <= MOST_TASKS, "repeats", repeats, mend)
        self._sizes = array("q", map(family.size, range(self.n_distinct)))
        for task, size in enumerate(self._sizes):
            if self.batch_size > size:
                mend = f"task {task} has only {size} images; use at most that"
                bad("batch_size", self.batch_size, mend)
        steps = [self.steps_of(task) for task in range(self.n_distinct)]
        self._a_round = sum(steps)
        self.steps = self._a_round * repeats
        long = "epochs" if steps_per_task is None else "steps_per_task"
        mend = f"makes {self.steps} steps in all; use fewer: at most {sys.maxsize} in all"
        require(self.steps <= sys.maxsize, long, self.options[long], mend)
        self._starts = array("q", accumulate(steps[:-1], initial=0))

    def size(self, task: int) -> int:
        """Training images of a task."""
        return self._sizes[task % self.n_distinct]

    def samples(self, task: int) -> int:
        """Training samples that a task shows, each pass counted."""
        steps, epochs = self.options["steps_per_task"], self.options["epochs"]
        return self.size(task) * (epochs or 1) if steps is None else steps * self.batch_size

    def steps_of(self, task: int) -> int:
        """Steps of a task."""
        return -(-self.samples(task) // self.batch_size)

    def start(self, task: int) -> int:
        """The step with which a task begins."""
        before, distinct = divmod(task, self.n_distinct)
        return before * self._a_round + self._starts[distinct]

    def locate(self, step: int) -> tuple[int, int]:
        """The task that holds a step, and the steps of it before that one."""
        before, rest = divmod(step, self._a_round)
        distinct = bisect_right(self._starts, rest) - 1
        return before * self.n_distinct + distinct, rest - self._starts[distinct]
