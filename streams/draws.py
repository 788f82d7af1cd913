"""Separate random generators for everything that a stream draws, none of them global."""

from __future__ import annotations

import torch
from torch import Tensor

from clmeta.ground.seeds import derive_seed


def generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """The CPU generator for one purpose at one place in a stream.

    Purposes are ``classes`` (the class order), ``permutation`` (one per task), ``order`` (of the
    samples, one per task and pass) and ``augment`` (one per task and pass).
    """
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *place))


def permutation(n: int, seed: int, purpose: str, *place: int) -> Tensor:
    """A uniformly random permutation of 0..n-1, int64 (n,)."""
    return torch.randperm(n, generator=generator(seed, purpose, *place))
