"""A few learners trained together from start to end, each recorded into its own run folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clmeta.errors import ClmetaError, InUse, RunFolderError
from clmeta.ground.randomness import forked
from clmeta.record.checkpoint import Checkpoint
from clmeta.record.interval import Interval
from clmeta.record.recorder import Recorder
from clmeta.record.runfolder import RunFolder
from clmeta.replicas.agreement import check
from clmeta.replicas.company import company
from clmeta.replicas.going_on import Home, Member
from clmeta.replicas.lockstep import Lockstep, Segment
from clmeta.replicas.program import Program, ReplicaWarning
from clmeta.runs.config import FACTS, RunConfig
from clmeta.runs.going_on import same_run
from clmeta.runs.prepared import Prepared, prepare
from clmeta.runs.runner import summary
from clmeta.runs.weights import save_model
from clmeta.strategies.plain import OnlineResult, accuracy

#: What the learners are called in their checkpoints.
PART = "chunk"
#: Learner-steps from which compiling for some seconds pays.
WORTH_COMPILING = 50_000


@dataclass
class Learner:
    """One run on its way: what it learns with, where it records, what it has come to.

    One without a recorder trains along, so that the others round as they did with it.
    """

    member: int
    prepared: Prepared
    recorder: Recorder | None
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
        members: the runs.
        home: where their checkpoints are.
        begun: go on from what is at home.
        overwrite: replace finished runs.
        tell: called after every segment with the learner-steps it did.

    Raises:
        NotBatchable: before any folder is touched.
    """

    def __init__(
        self,
        members: Sequence[Member],
        home: Home,
        overwrite: bool,
        tell: Callable[[int], object],
        begun: bool = False,
    ) -> None:
        self.members, self.home, self.overwrite, self.tell = members, home, overwrite, tell
        self.begun = begun
        self.prepared = [prepare(member.config) for member in members]
        steps = sum(len(p.stream) for p in self.prepared)
        engine = self.prepared[0].config.engine
        self.program = Program(self.prepared, engine, compiled=steps >= WORTH_COMPILING)
        check(self.program, self.prepared)
        self.learners: list[Learner] = []
        self.checkpoint = Checkpoint(home.path, every=members[0].config.checkpoint_every)
        self.spoilt = False
        #: Whether all that are recorded in the checkpoint are recorded on: it serves others too.
        self.complete = True

    def state(self) -> dict[str, Any]:
        """Everything that changes while the learners train, of those that go on."""
        return {
            "going": [learner.member for learner in self.learners],
            "learners": [
                {
                    "recorder": None if each.recorder is None else each.recorder.state(),
                    "task_accuracy": each.task_accuracy,
                    "test_accuracy": each.test_accuracy,
                }
                for each in self.learners
            ],
            "tensors": self.program.learners.tensors(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what the learners had come to; `train` keeps those that went on."""
        for mine, saved in zip(self.program.learners.tensors(), state["tensors"], strict=True):
            mine.copy_(saved)

    def train(self) -> dict[int, BaseException | None]:
        """Do all runs; number of each to its error, or None if it finished."""
        ends: dict[int, BaseException | None] = {}
        step, saved = 0, None
        if self.begun:
            step, saved = self.checkpoint.step, self.checkpoint.saved(PART)
        going = range(len(self.members)) if saved is None else saved["going"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(forked())
            for at, member in enumerate(going):
                try:
                    learner = self._learner(member, saved and saved["learners"][at], stack)
                except (ClmetaError, OSError) as error:
                    ends[self.members[member].number] = error
                    if saved is not None:  # the others would not round as before
                        raise
                    continue
                self.learners.append(learner)
            self.prepared = []
            if not any(learner.recorder for learner in self.learners):
                return ends
            if len(self.learners) < len(self.members):
                self.program.keep([learner.member for learner in self.learners])
            self.checkpoint.add(PART, self)
            if self.begun:
                self.checkpoint.restore()
            else:  # what others left who began so, and were all replaced since
                self.home.remove()
            if not self.complete:
                self.checkpoint.interval = Interval()
            if step:
                self.tell(step * len(self.learners))
            self._go(step, ends)
        if self.complete and not self.spoilt:
            self.home.remove()
        return ends

    def _learner(self, member: int, saved: Any, stack: contextlib.ExitStack) -> Learner:
        """A run that begins, or goes on from what was saved of it."""
        prepared, folder = self.prepared[member], self.members[member].folder
        recorder = None
        resume = saved and saved["recorder"]
        if folder is not None and (saved is None or resume is not None):
            try:
                recorder = stack.enter_context(self._recorder(folder, prepared, member, resume))
            except RunFolderError as error:
                # A full disk or closed folder passes; what is recorded then goes on.
                passes = getattr(error.__cause__, "errno", None) is not None
                if resume is None or passes or isinstance(error, InUse):
                    raise
                text = f"{error}; it trains along and is done anew afterwards"
                warnings.warn(text, ReplicaWarning, stacklevel=2)
        spent = resume is None or recorder is not None or self.home.finished(member)
        self.complete = self.complete and spent
        named = dict(prepared.model.named_parameters())
        learnt: list[Tensor] = [named[name] for name in self.program.network.names]
        prepared.model.train()
        told = (list(saved[key]) for key in ("task_accuracy", "test_accuracy")) if saved else ()
        return Learner(member, prepared, recorder, learnt, *told)

    def _go(self, step: int, ends: dict[int, BaseException | None]) -> None:
        """All steps from one on."""
        self.checkpoint.interval.start(step)
        if self.checkpoint.interval.saves:
            self.home.write()
        feed = Lockstep([learner.prepared.stream for learner in self.learners], step)
        for segment in feed:
            results = [values.tolist() for values in self.program.run(segment)]
            step += len(segment.y)
            for row, learner in enumerate(self.learners):
                self._after(row, learner, segment, *results)
            self.tell(len(segment.y) * len(self.learners))
            going = [r for r, each in enumerate(self.learners) if not (each.finished or each.error)]
            if len(going) < len(self.learners):
                for each in self.learners:
                    number = self.members[each.member].number
                    if (each.finished or each.error) and each.recorder is not None:
                        ends[number] = each.error
                self.learners = [self.learners[r] for r in going]
                if not any(learner.recorder for learner in self.learners):
                    return
                feed.keep(going)
                self.program.keep(going)
            self.checkpoint.between(step)

    def _recorder(self, folder: Path, prepared: Prepared, member: int, resume: Any) -> Recorder:
        names = prepared.optimizer.block_names
        content = prepared.contents()
        content[FACTS] |= company([each.config for each in self.members], member)
        if resume is not None:
            content = same_run(RunFolder(folder), content)
        return Recorder(
            folder, names, config=content, overwrite=self.overwrite and not resume, resume=resume
        )

    def _after(
        self, row: int, learner: Learner, segment: Segment, losses: Any, shares: Any, alphas: Any
    ) -> None:
        """Record one learner's steps of a segment; an error ends this learner and no other."""
        recorder, count = learner.recorder, len(learner.prepared.optimizer.block_names)
        if recorder is None:
            learner.finished = row in segment.done
            return
        try:
            for loss, share, alpha in zip(losses, shares, alphas, strict=True):
                recorder.record(segment.task[row], loss[row], share[row], alpha[row][:count])
            self._check(row, learner)
            if row in segment.ends:
                self._end_task(row, learner, recorder, segment.task[row])
            if row in segment.done:
                self._finish(row, learner, recorder)
        except (ClmetaError, OSError) as error:
            learner.error = error
            if isinstance(error, (RunFolderError, OSError)):
                # A full disk is no fault of the run's: the last checkpoint, which has it, stays.
                self.spoilt, self.checkpoint.interval = True, Interval()
            recorder.__exit__(type(error), error, error.__traceback__)

    def _check(self, row: int, learner: Learner) -> None:
        if learner.config.nonfinite == "raise" and self.program.withheld(row):
            self.program.check_finite(row)

    def _end_task(self, row: int, learner: Learner, recorder: Recorder, task: int) -> None:
        score = float("nan")
        if learner.config.evaluate:
            self._hand_back(row, learner)
            score = accuracy(learner.prepared.model, *learner.prepared.stream.test_set(task))
            learner.test_accuracy.append(score)
        learner.task_accuracy.append(recorder.end_task(task, score))

    @torch.no_grad()
    def _hand_back(self, row: int, learner: Learner) -> None:
        """Give a learner's own network the weights that it has come to."""
        for p, w in zip(learner.learnt, self.program.learners.w, strict=True):
            p.copy_(w[row])

    def _finish(self, row: int, learner: Learner, recorder: Recorder) -> None:
        steps = learner.prepared.stream.steps_per_task
        right = sum(n * a for n, a in zip(steps, learner.task_accuracy, strict=True))
        online = OnlineResult(
            sum(steps), right / sum(steps), learner.task_accuracy, learner.test_accuracy
        )
        if learner.config.save_model:
            self._hand_back(row, learner)
            save_model(recorder.folder.path, learner.prepared.model)
        sizes, withheld = self.program.step_sizes(row), self.program.withheld(row)
        recorder.close(summary(learner.config, online, sizes, withheld))
        learner.finished = True
