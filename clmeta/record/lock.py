"""Locks on files: each ends with who holds it, however that ends, and is never a child's."""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Callable
from pathlib import Path

#: Files that this process has locked.
_held: set[int] = set()


def lock(path: Path, owner: object) -> Callable[[], object] | None:
    """Lock a file against everybody else, this process included; None if somebody holds it.

    Ends when what is given back is called, with ``owner``, or with this process. A child that this
    process forks holds nothing. Where a file system has no locks, everybody gets them.

    Raises:
        OSError: if the file cannot be opened.
    """
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(file)
        return None
    except OSError:
        pass  # a file system without locks
    _held.add(file)
    return weakref.finalize(owner, _let_go, file)


def _let_go(file: int) -> None:
    if file in _held:
        _held.discard(file)
        os.close(file)


def _forget() -> None:
    """In a forked child: its copies would keep the locks when this process lets go of them."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
