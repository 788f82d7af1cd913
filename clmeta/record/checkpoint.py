"""Checkpoints of training under way: whole, checked, and never a stranger's code."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from clmeta.errors import RunFolderError, require
from clmeta.ground.randomness import randomness, restore_randomness
from clmeta.ground.signals import stop, stop_requested
from clmeta.record.checkpoint_file import CheckpointWarning, Damaged, read, write
from clmeta.record.files import explained
from clmeta.record.interval import DEFAULT, Interval
from clmeta.record.runfolder import RunFolder

#: Files kept: the newest, and the one before, should the newest be damaged.
KEPT = 2
#: How a part gives its state and takes it back.
METHODS = (("state_dict", "load_state_dict"), ("state", "restore"), ("get_state", "set_state"))


class Checkpoint:
    """Lets a loop go on, bit for bit, from where its process was killed::

        checkpoint = Checkpoint("runs/mine", model=model, optimizer=optimizer)
        with Recorder("runs/mine", optimizer, resume=checkpoint) as recorder:
            for x, y, task, step in checkpoint.steps(stream):
                ...

    `steps` first puts back what the last checkpoint holds, if there is one: all parts, the place in
    the stream, and the generators of Python, numpy and torch. Then it gives the stream's steps, and
    writes a checkpoint between two of them whenever one is due. A finished recording removes them.

    A file is written whole or not at all, holds numbers, text and tensors only
    (``torch.load(weights_only=True)``), and carries a checksum. The one before is kept: if the
    newest is damaged, a `CheckpointWarning` says so and the one before is gone on from.

    Args:
        folder: files go to ``checkpoints/`` in it.
        every: steps between two checkpoints (``1000``), or time (``"60s"``, ``"5min"``); None for
            none but those by `save`. Times are stretched where writing takes more than 1 % of them.
        parts: all that changes while training, by names of your choice. Each has ``state_dict`` and
            ``load_state_dict`` (modules, optimisers, schedulers, ...), ``state`` and ``restore``,
            or, as ``torch.Generator``, ``get_state`` and ``set_state``.

    Raises:
        BadArgument: for a part without such methods, or an interval that is none.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | str | None = DEFAULT,
        **parts: Any,
    ) -> None:
        self._run = RunFolder(folder)
        self.folder = self._run.checkpoints
        self.interval = Interval.of("every", every)
        self.parts: dict[str, Any] = {}
        for name, part in parts.items():
            self.add(name, part)
        self._content: dict[str, Any] | None = None
        self._looked = False

    def add(self, name: str, part: Any) -> None:
        """Another part, which is saved and put back with the others."""
        kind = type(part).__name__
        mend = "needs state_dict and load_state_dict, state and restore, or get_state and set_state"
        there = any(all(hasattr(part, each) for each in both) for both in METHODS)
        require(there and not isinstance(part, type), name, kind, mend)
        require(name not in self.parts, name, kind, "another part has that name")
        self.parts[name] = part

    @property
    def step(self) -> int:
        """Steps that were done when what is gone on from was written; 0 without a checkpoint."""
        content = self._found()
        return 0 if content is None else content["step"]

    def saved(self, name: str) -> Any:
        """What is gone on from holds of a part; None without a checkpoint."""
        content = self._found()
        return None if content is None else content["parts"].get(name)

    def steps(self, stream: Iterable[Any]) -> Iterator[Any]:
        """The stream's steps from where the checkpoint stands; writes checkpoints between them.

        Args:
            stream: a `clmeta.streams.Stream`, which finds any step at once, or anything else that
                gives the same at each iteration, whose first steps are then passed over.

        Raises:
            BadArgument: for a checkpoint of another stream.
            RunFolderError: for one of other parts or of another version, or that cannot be
                written.
        """
        content = self._found()
        done, place = (0, None) if content is None else (content["step"], content["place"])
        rest = _from(stream, done, place)  # before the generators that it draws from are put back
        self.restore()
        self.interval.start(done)
        for item in rest:
            yield item
            done += 1
            self.between(done, stream)

    def between(self, step: int, stream: Any = None) -> None:
        """Between two steps: save if it is due; if the process is asked to end, save and do so.

        Raises:
            Terminated: if a signal asked the process to end; see `clmeta.ground.signals`.
            RunFolderError: as `save` does.
        """
        asked = stop_requested() is not None
        if self.interval.due(step) or (asked and self.interval.saves):
            self.save(step, stream)
        if asked:
            stop()

    def save(self, step: int, stream: Any = None) -> Path:
        """Write a checkpoint now; ``step`` is the number of steps done. Returns the file.

        Raises:
            RunFolderError: if it cannot be written; those before are untouched.
        """
        started = time.monotonic()
        content = {
            "step": step,
            "place": _place(stream, step),
            "parts": {name: _state(part) for name, part in self.parts.items()},
            "randomness": randomness(),
        }
        file = self._run.checkpoint_file(step)
        for later in self._run.checkpoint_files:  # than what was gone on from: damaged, or stale
            if later.name > file.name:
                later.unlink(missing_ok=True)
        write(file, content)
        with explained(self.folder, "remove what is in"):
            for old in self._run.checkpoint_files[KEPT:]:
                old.unlink(missing_ok=True)
        self.interval.saved(step, time.monotonic() - started)
        return file

    def restore(self) -> int:
        """Put back all parts and generators; returns the steps done, 0 without a checkpoint.

        Raises:
            RunFolderError: for a checkpoint of other parts or of another version.
        """
        content = self._found()
        if content is None:
            return 0
        there, here = (", ".join(sorted(x)) or "none" for x in (content["parts"], self.parts))
        if there != here:
            raise RunFolderError(f"{self.folder} holds the parts {there}, not {here}: give those")
        for name, part in self.parts.items():
            try:
                _restore(part, content["parts"][name])
            except (ValueError, RuntimeError, KeyError) as error:
                reason = " ".join(str(error).split())
                raise RunFolderError(
                    f"{self.folder}: {name} is not what it was ({reason}): make it as before, or "
                    "choose another folder"
                ) from error
        restore_randomness(content["randomness"])
        return content["step"]

    def clear(self) -> None:
        """Remove all checkpoints: of a run that is finished, or that starts anew.

        Raises:
            RunFolderError: if one cannot be removed.
        """
        with explained(self.folder, "remove what is in"):
            for file in self._run.checkpoint_files:
                file.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or holds something else
            self.folder.rmdir()
        self._content, self._looked = None, True

    def _found(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole."""
        files = [] if self._looked else self._run.checkpoint_files
        self._looked = True
        for file, before in zip(files, [*files[1:], None], strict=False):
            try:
                self._content = read(file)
                break
            except Damaged as error:
                goes = f"going on from {before.name}" if before else "starting from the beginning"
                warnings.warn(f"{file} {error}; {goes}", CheckpointWarning, stacklevel=4)
        return self._content


def _place(stream: Any, step: int) -> Any:
    """Where a loop stands in a stream, as the stream says it; or nothing but the step."""
    return stream.state(step) if hasattr(stream, "restore") else None


def _from(stream: Iterable[Any], step: int, place: Any) -> Iterator[Any]:
    """The steps from a place on; others' steps are gone through up to there."""
    if place is not None:
        return stream.restore(place)  # type: ignore[attr-defined]
    items = iter(stream)
    for _ in islice(items, step):
        pass
    return items


def _state(part: Any) -> Any:
    """A part's state; of a module all buffers, and whether each module is in training mode."""
    give = next(both[0] for both in METHODS if hasattr(part, both[0]))
    state = getattr(part, give)()
    if not isinstance(part, nn.Module):
        return state
    kept = {k: v for k, v in part.named_buffers() if k not in state}
    modes = {name: module.training for name, module in part.named_modules()}
    learnt = {name: p.requires_grad for name, p in part.named_parameters()}
    grads = {name: p.grad for name, p in part.named_parameters() if p.grad is not None}
    return {"state": state, "buffers": kept, "training": modes, "learnt": learnt, "grads": grads}


def _restore(part: Any, state: Any) -> None:
    take = next(both[1] for both in METHODS if hasattr(part, both[0]))
    if not isinstance(part, nn.Module):
        getattr(part, take)(state)
        return
    part.load_state_dict(state["state"])
    buffers = dict(part.named_buffers())
    for name, value in state["buffers"].items():
        buffers[name].copy_(value)
    for name, module in part.named_modules():
        module.training = state["training"][name]
    for name, p in part.named_parameters():
        grad = state["grads"].get(name)
        p.requires_grad_(state["learnt"][name])
        p.grad = None if grad is None else grad.to(p.device)
