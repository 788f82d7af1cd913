"""Batches whose draws are the loader's own go on from any of them."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

from clmeta.ground.randomness import forked, same, seed_all, standing
from clmeta.strategies.feed import Feed

DRAWS = {
    "python": random.random,
    "numpy": np.random.random,
    "torch": lambda: float(torch.rand(())),
}


class Loader:
    """Draws from one kind of generator for each batch."""

    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        return (DRAWS[self.kind]() for _ in range(6))


@pytest.fixture(autouse=True)
def left_as_they_were():
    with forked():
        yield


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", DRAWS)
def test_a_feed_that_was_pickled_gives_what_it_would_have_given(kind, again):
    most = 15 if again else 6
    for stop in range(most):
        seed_all(1)
        feed = Feed(Loader(kind), again)
        wanted = []
        for number in range(most):
            if number == stop:
                kept = pickle.dumps(feed)
            wanted.append(next(feed))
            DRAWS[kind]()  # training draws in between
        seed_all(2 + stop)  # what another process stands at
        restored = pickle.loads(kept)
        found = []
        for _ in range(most - stop):
            found.append(next(restored))
            DRAWS[kind]()
        assert found == wanted[stop:]


@pytest.mark.parametrize("kind", DRAWS)
def test_what_a_loader_draws_moves_no_generator_of_training(kind):
    feed = Feed(Loader(kind))
    before = standing()
    assert len(list(feed)) == 6
    assert all(same(before[each], now) for each, now in standing().items())
