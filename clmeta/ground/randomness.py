"""The generators that training may draw from, as plain data: Python's, numpy's and torch's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def randomness() -> dict[str, Any]:
    """Where all global generators stand: tensors, numbers and tuples only.

    Those of CUDA devices are there where CUDA has been used.
    """
    state: Any = np.random.get_state()  # noqa: NPY002 (the generator that is global)
    name, keys, *rest = state
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(keys.astype(np.int64)), *map(float, rest)),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_randomness(state: dict[str, Any]) -> None:
    """Go on where the generators stood."""
    random.setstate(state["python"])
    name, keys, place, has_gauss, gauss = state["numpy"]
    numbers = keys.numpy().astype(np.uint32)
    np.random.set_state((name, numbers, int(place), int(has_gauss), gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def forked() -> Iterator[None]:
    """What is drawn inside moves no generator outside."""
    before = randomness()
    try:
        yield
    finally:
        restore_randomness(before)
