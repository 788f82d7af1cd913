"""Where the generators stand that training may draw from: Python's, numpy's and torch's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def _stand_on_cuda(states: Any) -> None:
    if states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states)


#: How a global generator says where it stands, and is put there; CUDA's where it has been used.
KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "python": (random.getstate, random.setstate),
    "numpy": (np.random.get_state, np.random.set_state),
    "torch": (torch.get_rng_state, torch.set_rng_state),
    "cuda": (
        lambda: torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        _stand_on_cuda,
    ),
}


def standing(kinds: Iterable[str] = KINDS) -> dict[str, Any]:
    """Where the generators of these kinds stand."""
    return {kind: KINDS[kind][0]() for kind in kinds}


def stand(states: dict[str, Any]) -> None:
    """Have generators stand where `standing` said."""
    for kind, state in states.items():
        KINDS[kind][1](state)


def same(one: Any, other: Any) -> bool:
    """Whether a generator stands at the same place in both."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def seed_all(seed: int) -> None:
    """Have every generator begin at a seed below 2^63."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def randomness() -> dict[str, Any]:
    """Where all generators stand, as tensors, numbers and tuples only."""
    states = standing()
    name, keys, *rest = states["numpy"]
    plain = (str(name), torch.from_numpy(keys.astype(np.int64)), *map(float, rest))
    return {**states, "numpy": plain}


def restore_randomness(state: dict[str, Any]) -> None:
    """Have the generators stand where `randomness` said."""
    name, keys, place, has_gauss, gauss = state["numpy"]
    numbers = keys.numpy().astype(np.uint32)
    stand({**state, "numpy": (name, numbers, int(place), int(has_gauss), gauss)})


@contextmanager
def forked(*kinds: str) -> Iterator[None]:
    """What is drawn inside moves no generator outside, or none of these kinds."""
    before = standing(kinds or KINDS)
    try:
        yield
    finally:
        stand(before)
