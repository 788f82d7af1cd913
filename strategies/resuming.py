"""An Avalanche strategy that goes on from the middle of an experience, bit for bit.

What plugins keep can be had by pickling only, which could run anybody's code when it is read. So
the pickle is signed with a key that is the user's own, and no byte of another is looked at.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clmeta.errors import RunFolderError
from clmeta.ground import signing
from clmeta.record.checkpoint import Checkpoint
from clmeta.strategies.feed import Feed, instead_of
from clmeta.strategies.recording import StepSizeRecorder


def resumable(strategy_class: Any) -> Any:
    """An Avalanche strategy's class, whose objects `going_on` can go on with."""

    class Resumable(strategy_class):
        #: Called after each step, when all plugins have had their say.
        after_step: Callable[[], object] | None = None
        #: Whether the next call of `train` goes on in an experience.
        going_on = False
        dataloader: Any

        def _before_training(self, **kwargs: Any) -> None:
            if not self.going_on:
                super()._before_training(**kwargs)

        def _before_training_exp(self, **kwargs: Any) -> None:
            if not self.going_on:
                super()._before_training_exp(**kwargs)
                for name, value in vars(self).items():
                    setattr(self, name, instead_of(value))

        def _before_training_epoch(self, **kwargs: Any) -> None:
            if not self.going_on:
                super()._before_training_epoch(**kwargs)
                self.dataloader = Watched(self.dataloader)

        def training_epoch(self, **kwargs: Any) -> None:
            self.going_on = False
            self.dataloader.after_step = self.after_step
            super().training_epoch(**kwargs)

        def __getstate__(self) -> dict[str, Any]:
            return {k: v for k, v in vars(self).items() if k not in ("after_step", "going_on")}

    Resumable.__name__ = strategy_class.__name__
    return Resumable


def going_on(
    strategy: Any,
    experiences: Sequence[Any],
    checkpoint: Checkpoint,
    *,
    known: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """The experiences to train on, from the step at which the checkpoint stands::

        strategy = resumable(Naive)(model=model, optimizer=optimizer, plugins=plugins)
        for experience in going_on(strategy, benchmark.train_stream, Checkpoint("runs/mine")):
            strategy.train(experience, shuffle=False)

    The first may be one that is half done: the strategy goes on in its middle. Between two steps a
    checkpoint is written where one is due: of strategy, model, optimiser and plugins, generators,
    and a `StepSizeRecorder` among the plugins; not of the experiences' data.

    Args:
        strategy: of a class made by `resumable`, new, with one epoch for each experience.
        experiences: all of them, the same at every start.
        checkpoint: parts of it are saved too.
        known: by names of your choice what the strategy refers to and is there again at every
            start.

    Raises:
        NotOurs: for a checkpoint that another user wrote.
        RunFolderError: where none can be written, or read.
    """
    place = Place()
    theirs = {f"experience {i}": each for i, each in enumerate(experiences)}
    data = {id(leaf): leaf for each in experiences for leaf in leaves(each.dataset)}
    theirs |= {f"data {i}": leaf for i, leaf in enumerate(data.values())}
    for each in strategy.plugins:
        if isinstance(each, StepSizeRecorder):
            each.checkpoint = checkpoint
            checkpoint.add("recorder", each)
            theirs["recorder"] = each
    remade = {"model": strategy.model, "optimizer": strategy.optimizer}
    checkpoint.add("place", place)
    checkpoint.add("strategy", Whole(strategy, {**theirs, **(known or {})}, remade))

    def after_step() -> None:
        place.steps += 1
        checkpoint.between(place.steps)

    if checkpoint.interval.saves and not checkpoint.step:
        checkpoint.parts["strategy"].state()  # what cannot be saved is told before it trains
    checkpoint.interval.start(checkpoint.restore())
    strategy.after_step = after_step
    for place.experience in range(place.experience, len(experiences)):  # noqa: B020
        yield experiences[place.experience]


@dataclass
class Place:
    """The experience that is learnt, and the steps done of all."""

    experience: int = 0
    steps: int = 0

    def state(self) -> dict[str, int]:
        """Both numbers."""
        return dict(vars(self))

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from them."""
        vars(self).update(state)


def leaves(dataset: Any) -> Iterator[Any]:
    """What an Avalanche dataset takes its samples from in the end."""
    inner = getattr(dataset, "_flat_data", dataset)
    if hasattr(inner, "_datasets"):
        for each in inner._datasets:
            yield from leaves(each)
    else:
        yield inner


class Watched(Feed):
    """A feed that says when the step with its last batch is over; else as the loader is."""

    after_step: Callable[[], object] | None = None
    #: Whether a step is over that was not told of yet.
    untold = False

    def __next__(self) -> Any:
        if self.after_step is not None and self.untold:
            self.after_step()
        self.untold = False
        batch = super().__next__()
        self.untold = True
        return batch

    def __len__(self) -> int:
        return len(self.loader)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "after_step": None, "untold": False}


class Whole:
    """All of a strategy as a part of a checkpoint.

    Args:
        strategy: the strategy.
        known: by name what is no part of it: it is there again when the strategy is restored.
        remade: by name what is there again too, but takes back what it was.
    """

    def __init__(self, strategy: Any, known: Mapping[str, Any], remade: Mapping[str, Any]) -> None:
        self.strategy, self.known = strategy, known
        self.remade = {**remade, "strategy": strategy}

    def state(self) -> dict[str, Any]:
        """The pickle, uint8 (n,), and its signature.

        Raises:
            RunFolderError: naming what cannot be pickled.
        """
        self.strategy.mbatch = self.strategy.mb_output = None
        self.strategy.loss = self.strategy._make_empty_loss()
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, self.known, self.remade).dump(self.strategy)
            content = buffer.getvalue()
            signature = signing.sign(content)
        except (pickle.PicklingError, AttributeError, TypeError, OSError) as error:
            name = type(self.strategy).__name__
            raise RunFolderError(
                f"no checkpoint can be written of {name}: {error}; without checkpoints "
                "(--checkpoint-every none, every=None) it runs"
            ) from error
        return {"pickle": torch.frombuffer(bytearray(content), dtype=torch.uint8), "by": signature}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Everything is as it was. Raises NotOurs for what another user has written."""
        content = state["pickle"].numpy().tobytes()
        signing.check(content, state["by"], "a strategy's checkpoint")
        _Unpickler(io.BytesIO(content), self.known, self.remade).load()
        self.strategy.going_on = True


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, known: Mapping[str, Any], remade: Mapping[str, Any]) -> None:
        super().__init__(file, protocol=4)
        self.known = {id(thing): name for name, thing in known.items()}
        self.remade = {id(thing): name for name, thing in remade.items()}

    def persistent_id(self, thing: Any) -> Any:
        return self.known.get(id(thing))

    def reducer_override(self, thing: Any) -> Any:
        name = self.remade.get(id(thing))
        if name is None:
            return NotImplemented
        state = thing.__getstate__() if hasattr(thing, "__getstate__") else vars(thing)
        return _Remade, (name,), state, None, None, _set


class _Remade:
    """Stands in a pickle for what is there again."""


def _set(thing: Any, state: Any) -> None:
    if hasattr(type(thing), "__setstate__"):
        thing.__setstate__(state)
    else:
        vars(thing).update(state)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, known: Mapping[str, Any], remade: Mapping[str, Any]) -> None:
        super().__init__(file)
        self.known, self.remade = known, remade

    def persistent_load(self, name: Any) -> Any:
        return self.known[name]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (_Remade.__module__, _Remade.__qualname__):
            return self.remade.__getitem__
        return super().find_class(module, name)
