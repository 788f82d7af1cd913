"""Separate random generators for everything that a stream draws, none of them global."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """The CPU generator for one purpose at one place in a stream.

    Purposes are ``classes`` (the class order), ``permutation`` (one per task), ``order`` (of the
    samples, one per task and pass) and ``augment`` (one per task and pass). Each generator is
    seeded by a hash of all three arguments, so that no draw moves another one: a longer task, one
    more task or another augmentation leaves everything else as it was.
    """
    label = "/".join(["clmeta", str(seed), purpose, *map(str, place)])
    number = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number % (1 << 63))


def permutation(n: int, seed: int, purpose: str, *place: int) -> Tensor:
    """A uniformly random permutation of 0..n-1, int64 (n,)."""
    return torch.randperm(n, generator=generator(seed, purpose, *place))
