"""A few learners trained together from start to end, each recorded into its own run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clmeta.errors import ClmetaError
from clmeta.record.recorder import Recorder
from clmeta.replicas.lockstep import Lockstep, Segment
from clmeta.replicas.network import NotBatchable
from clmeta.replicas.program import Program
from clmeta.runs.config import FACTS, RunConfig
from clmeta.runs.runner import Prepared, prepare, summary
from clmeta.strategies.plain import OnlineResult, accuracy

#: Learner-steps from which compiling for some seconds pays.
WORTH_COMPILING = 50_000
#: Samples on which batched gradients are compared with the network's own; an odd number, for a
#: majority.
SAMPLES = 5
#: Largest difference of the two, relative to a tensor's largest number: on the CPU, and on devices
#: whose convolutions may round to TF32.
TOLERANCE = 1e-3
TOLERANCE_ON_DEVICE = 1e-2


@dataclass
class Learner:
    """One run on its way: what it learns with, where it records, what it has come to."""

    index: int
    folder: Path
    prepared: Prepared
    recorder: Recorder
    learnt: list[Tensor]
    task_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    error: BaseException | None = None
    finished: bool = False

    @property
    def config(self) -> RunConfig:
        """What it was asked to do."""
        return self.prepared.config


class Chunk:
    """Learners of one group, from prepared configs to finished run folders.

    Args:
        runs: (number, config, folder) of each.
        overwrite: replace finished runs.
        tell: called after every segment with the learner-steps it did.

    Raises:
        NotBatchable: before any folder is touched.
    """

    def __init__(
        self,
        runs: Sequence[tuple[int, RunConfig, Path]],
        overwrite: bool,
        tell: Callable[[int], object],
    ) -> None:
        self.runs, self.overwrite, self.tell = runs, overwrite, tell
        self.prepared = [prepare(config) for _, config, _ in runs]
        steps = sum(len(p.stream) for p in self.prepared)
        self.program = Program(self.prepared, compiled=steps >= WORTH_COMPILING)
        self.check()

    def check(self) -> None:
        """Batched losses and gradients against the network's own, for every learner.

        More than half of the samples must agree: rounding may turn a single maximum or ReLU
        elsewhere.
        """
        first = next(iter(Lockstep([p.stream for p in self.prepared])))
        samples = zip(first.x[:SAMPLES], first.y[:SAMPLES], strict=True)
        agreed, finite = torch.stack([self._compared(x, y) for x, y in samples], 2)
        if not finite.any():
            raise NotBatchable("no gradient is finite from the start")
        if not (2 * agreed.sum(1) > agreed.shape[1]).all():
            raise NotBatchable("batched and ordinary gradients differ")

    def _compared(self, x: Tensor, y: Tensor) -> Tensor:
        """Bool (2, R): whether loss and gradients of one batch are the network's own, and finite.

        Where the network's own numbers are not finite, nor may be the batched ones.
        """
        grads, losses, _ = self.program.gradients(x, y)
        dense = [g if isinstance(g, Tensor) else g.dense() for g in grads]
        compared = []
        for row, prepared in enumerate(self.prepared):
            named = dict(prepared.model.named_parameters())
            params = [named[name] for name in self.program.network.names]
            loss = torch.nn.functional.cross_entropy(prepared.model(x[row]), y[row])
            pairs = zip(
                [losses[row], *(g[row] for g in dense)],
                [loss.detach(), *torch.autograd.grad(loss, params)],
                strict=True,
            )
            each = torch.stack([_close(mine, theirs) for mine, theirs in pairs])
            compared.append(each.all(0))
        return torch.stack(compared, 1)

    def train(self) -> dict[int, BaseException | None]:
        """Do all runs; number of each to its error, or None if it finished."""
        program, learners = self.program, []
        ends: dict[int, BaseException | None] = {}
        with contextlib.ExitStack() as stack:
            started = []
            for row, ((index, _, folder), prepared) in enumerate(
                zip(self.runs, self.prepared, strict=True)
            ):
                try:
                    recorder = stack.enter_context(self._recorder(folder, prepared))
                except (ClmetaError, OSError) as error:
                    ends[index] = error
                    continue
                started.append(row)
                named = dict(prepared.model.named_parameters())
                learnt: list[Tensor] = [named[name] for name in program.network.names]
                prepared.model.train()
                learners.append(Learner(index, folder, prepared, recorder, learnt))
            if not learners:
                return ends
            if ends:
                program.keep(started)
            feed = Lockstep([learner.prepared.stream for learner in learners])
            self.prepared = []
            for segment in feed:
                results = [values.tolist() for values in program.run(segment)]
                for row, learner in enumerate(learners):
                    self._after(row, learner, segment, *results)
                self.tell(len(segment.y) * len(learners))
                going = [r for r, each in enumerate(learners) if not (each.finished or each.error)]
                if len(going) < len(learners):
                    for learner in learners:
                        if learner.finished or learner.error:
                            ends[learner.index] = learner.error
                    learners = [learners[r] for r in going]
                    if not learners:
                        break
                    feed.keep(going)
                    program.keep(going)
        return ends

    def _recorder(self, folder: Path, prepared: Prepared) -> Recorder:
        config = prepared.config
        content = {**config.to_dict(), "method": config.method, FACTS: prepared.facts()}
        names = prepared.optimizer.block_names
        return Recorder(folder, names, config=content, overwrite=self.overwrite)

    def _after(
        self, row: int, learner: Learner, segment: Segment, losses: Any, shares: Any, alphas: Any
    ) -> None:
        """Record one learner's steps of a segment; an error ends this learner and no other."""
        recorder, count = learner.recorder, len(learner.prepared.optimizer.block_names)
        try:
            for loss, share, alpha in zip(losses, shares, alphas, strict=True):
                recorder.record(segment.task[row], loss[row], share[row], alpha[row][:count])
            self._check(row, learner)
            if row in segment.ends:
                self._end_task(row, learner, segment.task[row])
            if row in segment.done:
                self._finish(row, learner)
        except (ClmetaError, OSError) as error:
            learner.error = error
            recorder.__exit__(type(error), error, error.__traceback__)

    def _check(self, row: int, learner: Learner) -> None:
        if learner.config.nonfinite == "raise" and self.program.withheld(row):
            self.program.check_finite(row)

    def _end_task(self, row: int, learner: Learner, task: int) -> None:
        score = float("nan")
        if learner.config.evaluate:
            with torch.no_grad():
                for p, w in zip(learner.learnt, self.program.learners.w, strict=True):
                    p.copy_(w[row])
            score = accuracy(learner.prepared.model, *learner.prepared.stream.test_set(task))
            learner.test_accuracy.append(score)
        learner.task_accuracy.append(learner.recorder.end_task(task, score))

    def _finish(self, row: int, learner: Learner) -> None:
        steps = learner.prepared.stream.steps_per_task
        right = sum(n * a for n, a in zip(steps, learner.task_accuracy, strict=True))
        online = OnlineResult(
            sum(steps), right / sum(steps), learner.task_accuracy, learner.test_accuracy
        )
        sizes, withheld = self.program.step_sizes(row), self.program.withheld(row)
        learner.recorder.close(summary(learner.config, online, sizes, withheld))
        learner.finished = True


def _close(mine: Tensor, theirs: Tensor) -> Tensor:
    """Bool (2,): whether ``mine`` is ``theirs`` or neither is finite; whether ``theirs`` is."""
    scale = theirs.abs().max()
    finite = torch.isfinite(scale)
    tolerance = TOLERANCE if theirs.device.type == "cpu" else TOLERANCE_ON_DEVICE
    same = (mine - theirs).abs().max() <= tolerance * scale + 1e-30
    return torch.stack([torch.where(finite, same, ~torch.isfinite(mine).all()), finite])
