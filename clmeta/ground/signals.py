"""SIGTERM and SIGHUP as a request that loops honour between two steps, so that nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

#: Seconds in which a loop has to come by and ask.
GRACE = 10.0
#: Seconds in which further signals are the same request: a group of processes gets it at once,
#: and those started by others from them once more.
TOGETHER = 1.0
ASKED_BY = ("SIGTERM", "SIGHUP")


class Terminated(KeyboardInterrupt):
    """The process was asked to end; handled as Ctrl-C is, so that what was recorded is kept.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@dataclass
class _Watch:
    """What has come since a `stopping` began."""

    grace: float
    signum: int | None = None
    since: float = 0.0
    asked: bool = False
    ending: bool = False
    timer: threading.Timer | None = None
    handled: dict[int, Any] = field(default_factory=dict)

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Note the request; end at once where no loop asks, or for a second one."""
        if self.ending:  # what is written on the way out must not be disturbed
            return
        if self.signum is None and self.asked:
            self.signum, self.since = signum, time.monotonic()
            self.timer = threading.Timer(self.grace, _again, (signum, self))
            self.timer.daemon = True
            self.timer.start()
        elif self.signum is None or time.monotonic() - self.since >= min(TOGETHER, self.grace):
            self.signum = self.signum or signum
            self.end()

    def end(self) -> NoReturn:
        self.ending = True
        self.rest()
        assert self.signum is not None
        raise Terminated(self.signum)

    def rest(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


_watch: _Watch | None = None


@contextmanager
def stopping(grace: float = GRACE, also: Sequence[int] = ()) -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP ask loops to stop instead of killing the process.

    A loop that calls `stop_requested` between its steps finds the request, saves, and calls
    `stop`. Where none has called it yet, none does within ``grace`` seconds, or another signal
    comes, `Terminated` is raised there and then. Handlers other than the system's stay, as does
    ignoring (``nohup``); in other threads than the main one, and inside another `stopping`, nothing
    changes.

    Args:
        grace: seconds.
        also: further signals, whatever handles them now.

    Raises:
        Terminated: as said above.
    """
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _watch = _Watch(grace)
    try:
        for number in (*(getattr(signal, name) for name in ASKED_BY), *also):
            if number in also or signal.getsignal(number) is signal.SIG_DFL:
                watch.handled[number] = signal.signal(number, watch.receive)
        yield
    finally:
        _watch = None
        watch.rest()
        for number, before in watch.handled.items():
            signal.signal(number, before)


def stop_requested() -> int | None:
    """The number of the signal that asks for an end; None if none does. Call it between steps."""
    watch = _watch
    if watch is None:
        return None
    watch.asked = True
    if watch.signum is not None:
        watch.rest()
    return watch.signum


def stop() -> NoReturn:
    """Raise `Terminated` for the request that `stop_requested` found, once all is saved.

    Raises:
        Terminated: always.
    """
    if _watch is None or _watch.signum is None:
        raise Terminated(signal.SIGTERM)
    _watch.end()


def _again(signum: int, watch: _Watch) -> None:
    """Nobody asked: the main thread is to be interrupted wherever it is."""
    if _watch is watch:
        watch.since = -1e9
        signal.pthread_kill(threading.main_thread().ident or 0, signum)


# A forked child ends by a signal, as its parent expects of it; one that comes at once waits until
# the handlers are back.

_mask: set[Any] = set()


def _before_fork() -> None:
    global _mask
    if _watch is not None:
        _mask = signal.pthread_sigmask(signal.SIG_BLOCK, _watch.handled)


def _in_parent() -> None:
    if _watch is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


def _in_child() -> None:
    global _watch
    if _watch is not None:
        for number, before in _watch.handled.items():
            signal.signal(number, before)
        _watch = None
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
