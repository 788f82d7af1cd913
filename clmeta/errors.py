"""The errors that clmeta raises on purpose; the command line prints them as one line."""

from __future__ import annotations

from typing import Any, NoReturn

#: Most letters of what a message says of a value.
LONGEST = 1000


class ClmetaError(Exception):
    """Base of every error that clmeta raises on purpose; its text obeys no stranger's codes."""

    def __str__(self) -> str:
        return printable(super().__str__())


class BadArgument(ClmetaError, ValueError):
    """An argument that cannot work; the message names argument, value and mend."""


class NonFiniteError(ClmetaError, ArithmeticError):
    """A gradient or meta-gradient was not finite; the update was withheld."""


class RunFolderError(ClmetaError, OSError):
    """A run folder that cannot be written, read, or must not be overwritten."""


class InUse(RunFolderError):
    """A run folder that another process, or another recorder of this one, writes to."""


def bad(argument: str, value: Any, mend: str) -> NoReturn:
    """Raise BadArgument as ``argument=value: mend``, on one line."""
    mend = mend if len(mend) <= LONGEST else f"{mend[: LONGEST - 3]}..."
    raise BadArgument(_one_line(f"{argument[:120]}={brief(value)}: {mend}"))


def brief(value: Any) -> str:
    """A value in one line of at most 120 characters, whatever it is."""
    try:
        shown = _one_line(repr(value))
    except Exception:  # a number of thousands of digits, a list inside itself a thousand times, ...
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= 120 else shown[:117] + "..."


def printable(text: str) -> str:
    """Text whose control codes, which a terminal would obey, are written as escapes.

    Line breaks stay.
    """
    if text.isprintable():
        return text
    plain = (c if c.isprintable() or c == "\n" else f"{c!a}"[1:-1] for c in text)
    return "".join(plain)


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def require(condition: bool, argument: str, value: Any, mend: str) -> None:
    """Raise BadArgument unless ``condition`` holds."""
    if not condition:
        bad(argument, value, mend)
