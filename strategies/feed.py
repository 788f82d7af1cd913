"""Mini-batches from a loader whose draws are its own, so that it can go on from any batch."""

from __future__ import annotations

from collections.abc import Iterator
from types import GeneratorType
from typing import Any

import torch

from clmeta.ground.randomness import forked, same, seed_all, stand, standing
from clmeta.strategies.loader import SliceLoader


class Feed:
    """An iterator over a loader, once or again and again.

    The loader draws from generators that begin at a seed and are nobody else's, of the kinds that
    its first batch draws from. So a feed that was pickled after k batches, and unpickled, stands
    where it stood once k batches were passed over.

    Args:
        loader: gives mini-batches.
        again: begin anew at its end.

    Attributes:
        loader: the loader.
        done: batches given.
    """

    def __init__(self, loader: Any, again: bool = False) -> None:
        self.loader, self.again = loader, again
        self.done = 0
        self._draws = not isinstance(loader, SliceLoader)
        self._seed = int(torch.randint(2**62, ())) if self._draws else 0
        self._begun: Iterator[Any] | None = None
        self._stands: dict[str, Any] | None = None

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Any:
        if self._begun is None:
            self._begun = self._cycle()
            for _ in range(self.done):
                self._next()
        batch = self._next()
        self.done += 1
        return batch

    def _next(self) -> Any:
        assert self._begun is not None
        if not self._draws:
            return next(self._begun)
        if self._stands is None:
            return self._first(self._begun)
        outside = standing(self._stands)
        stand(self._stands)
        try:
            return next(self._begun)
        finally:
            self._stands = standing(self._stands)
            stand(outside)

    def _first(self, begun: Iterator[Any]) -> Any:
        """The first batch, which tells what the loader draws from; keeping all apart is dear."""
        with forked():
            seed_all(self._seed)
            before = standing()
            batch = next(begun)
            now = standing()
            self._stands = {kind: now[kind] for kind in now if not same(before[kind], now[kind])}
            return batch

    def _cycle(self) -> Iterator[Any]:
        yield from self.loader
        while self.again:
            yield from self.loader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_begun": None, "_stands": None}


def instead_of(found: Any) -> Any:
    """A feed instead of Avalanche's endless generator over a loader that has not begun yet."""
    if isinstance(found, GeneratorType) and found.__name__ == "cycle" and found.gi_frame:
        return Feed(found.gi_frame.f_locals["loader"], again=True)
    return found
