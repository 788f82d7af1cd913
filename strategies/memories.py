"""Avalanche's memories, updated without the warning that Avalanche gives about itself.

Avalanche 0.6 calls a method of its own that it calls deprecated at the end of every experience
(replay, ER_ACE, MIR, MER, ...). Each call shows a DeprecationWarning and resets the process's
filter for all DeprecationWarnings, so that neither the user's filters nor ours can hide it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from avalanche.training.storage_policy import ExemplarsBuffer


def update(policy: ExemplarsBuffer, strategy: Any, **kwargs: Any) -> None:
    """What ``ExemplarsBuffer.update`` does besides warning."""
    policy.post_adapt(strategy, strategy.experience)


def quieten(strategy: Any) -> None:
    """Give each memory of a strategy and its plugins the update that does not warn.

    Memories with an ``update`` of their own keep it; called by anyone else the class still warns.
    """
    for policy in _memories(strategy):
        if type(policy).update is ExemplarsBuffer.update:
            policy.update = functools.partial(update, policy)


def _memories(strategy: Any) -> Iterator[ExemplarsBuffer]:
    for owner in (strategy, *strategy.plugins):
        for held in vars(owner).values():
            policy = getattr(held, "storage_policy", held)
            if isinstance(policy, ExemplarsBuffer):
                yield policy
