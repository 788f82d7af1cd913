"""The ordinary PyTorch loop over a stream: predict, learn, record; no framework between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clmeta.errors import bad
from clmeta.record.attached import block_names
from clmeta.strategies.backward import backward

if TYPE_CHECKING:
    from clmeta.record.checkpoint import Checkpoint
    from clmeta.record.recorder import Recorder
    from clmeta.streams import Stream

#: Seconds between two reports of progress.
REPORT_EVERY = 0.25
#: Test images per forward pass.
TEST_BATCH = 512
#: What a `Tally` has counted.
COUNTS = (
    *("task", "steps", "samples", "task_samples", "right", "task_right"),
    *("shares", "test_accuracy"),
)


@dataclass(frozen=True)
class Progress:
    """Where an online run stands.

    Attributes:
        step: steps done.
        steps: steps in all.
        task: index of the current task, from 0.
        accuracy: online accuracy over all steps so far, a share in [0, 1].
        alpha: current step sizes, block name to number.
    """

    step: int
    steps: int
    task: int
    accuracy: float
    alpha: dict[str, float]


@dataclass(frozen=True)
class OnlineResult:
    """What an online run comes to.

    Attributes:
        steps: steps done.
        accuracy: share of all samples that were predicted right before they were learnt from.
        task_accuracy: the same within each task.
        test_accuracy: on each task's test set at the task's end; empty if not measured.
    """

    steps: int
    accuracy: float
    task_accuracy: list[float]
    test_accuracy: list[float]


OnProgress = Callable[[Progress], object]


def learn_online(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: Stream,
    *,
    recorder: Recorder | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    on_progress: OnProgress | None = None,
    evaluate: bool = True,
    checkpoint: Checkpoint | None = None,
) -> OnlineResult:
    """Learn from a stream once, in its order, telling the learner nothing about tasks.

    Equal to::

        for x, y, task, step in stream:
            output = model(x)
            optimizer.zero_grad()
            loss(output, y).backward()
            optimizer.step()

    Nothing is read back from the device between reports of progress and ends of tasks.

    Args:
        model: maps float32 (batch, C, H, W) to logits (batch, n_classes).
        optimizer: over the model's parameters; never reset.
        stream: yields ``x, y, task, step``.
        recorder: gets loss, correctness and step sizes of every step, and every task's end.
        loss: mean loss of a batch from logits and labels.
        on_progress: called about four times a second, and at the end.
        evaluate: measure test accuracy at the end of each task.
        checkpoint: gets model, optimiser and counts as parts; what it holds is gone on from.

    Raises:
        NonFiniteError: at the end of a task, if the optimiser withheld an update.
    """
    model.train()
    tally = Tally(stream, optimizer, recorder, on_progress, evaluate)
    steps: Iterable[Any] = stream
    if checkpoint is not None:
        for name, part in {"model": model, "optimizer": optimizer, "tally": tally}.items():
            checkpoint.add(name, part)
        steps = checkpoint.steps(stream)
    for x, y, task, _ in steps:
        if task != tally.task:
            tally.end_task(model)
            tally.task = task
        output = model(x)
        value = loss(output, y)
        optimizer.zero_grad(set_to_none=True)
        backward(value, optimizer)
        hits = output.detach().argmax(1).eq(y)
        if recorder is None:
            optimizer.step()
        else:
            recorder.before_step(optimizer)
            optimizer.step()
            recorder.record(task, value, hits)
        tally.add(hits, len(y), task)
    tally.end_task(model)
    return tally.result()


class Tally:
    """Counts right predictions on the device, ends tasks, and reports now and then."""

    def __init__(
        self,
        stream: Stream,
        optimizer: torch.optim.Optimizer,
        recorder: Recorder | None,
        on_progress: OnProgress | None,
        evaluate: bool,
    ) -> None:
        self.stream, self.optimizer, self.recorder = stream, optimizer, recorder
        self.on_progress, self.evaluate = on_progress, evaluate
        self.task = self.steps = self.samples = self.task_samples = 0
        self.right = self.task_right = 0
        self.pending: list[Tensor] = []
        self.shares: list[float] = []
        self.test_accuracy: list[float] = []
        self.due = time.monotonic() + REPORT_EVERY if on_progress else float("inf")

    def add(self, hits: Tensor, samples: int, task: int) -> None:
        """Count a step: which of its samples were predicted right, (samples,)."""
        self.pending.append(hits)
        self.steps += 1
        self.samples += samples
        self.task_samples += samples
        if len(self.pending) >= 10_000:
            self._count()
        if time.monotonic() >= self.due:
            self.report(task)

    def _count(self) -> None:
        if self.pending:
            right = int(torch.cat(self.pending).sum())
            self.right += right
            self.task_right += right
            self.pending.clear()

    def accuracy(self) -> float:
        """Share of all samples so far that were predicted right."""
        self._count()
        return self.right / self.samples if self.samples else float("nan")

    def state(self) -> dict[str, Any]:
        """All counts, as plain numbers."""
        self._count()
        return {name: getattr(self, name) for name in COUNTS}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with the counts."""
        for name in COUNTS:
            setattr(self, name, state[name])

    def end_task(self, model: nn.Module) -> None:
        """Note the task's own share and test accuracy; its successor is to be set as `task`.

        Raises:
            NonFiniteError: if the optimiser withheld an update.
        """
        if self.recorder is not None:
            self.recorder.flush()  # what led to an error is on disk before the error is raised
        check, score = getattr(self.optimizer, "check_finite", None), float("nan")
        if check is not None:
            check()
        if self.evaluate:
            score = accuracy(model, *self.stream.test_set(self.task))
            self.test_accuracy.append(score)
        if self.recorder is not None:
            self.recorder.end_task(self.task, score)
        self._count()
        self.shares.append(self.task_right / self.task_samples)
        self.task_right = self.task_samples = 0

    def result(self) -> OnlineResult:
        """What all tasks came to, after a last report."""
        self.report(self.task)
        return OnlineResult(self.steps, self.accuracy(), self.shares, self.test_accuracy)

    def report(self, task: int) -> None:
        """Report progress now."""
        if self.on_progress is not None:
            alpha = step_sizes(self.optimizer)
            self.on_progress(Progress(self.steps, len(self.stream), task, self.accuracy(), alpha))
            self.due = time.monotonic() + REPORT_EVERY


def step_sizes(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Block name to step size, of MetaOptimize or any torch optimiser (a block per group)."""
    named = getattr(optimizer, "step_sizes", None)
    if named is not None:
        return dict(named())
    rates = (float(group["lr"]) for group in optimizer.param_groups)
    return dict(zip(block_names(optimizer), rates, strict=True))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of ``x`` (N, C, H, W) that the model, in evaluation mode, labels as ``y`` (N,)."""
    if len(y) == 0:
        bad("y", tuple(y.shape), "the test set is empty; give at least one image")
    was_training = model.training
    model.eval()
    right: Any = 0
    try:
        for images, labels in zip(x.split(TEST_BATCH), y.split(TEST_BATCH), strict=True):
            right = right + model(images).argmax(1).eq(labels).sum()
    finally:
        model.train(was_training)
    return float(right) / len(y)
