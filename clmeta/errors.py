"""The errors that clmeta raises on purpose; the command line prints them as one line."""

from __future__ import annotations

from typing import Any, NoReturn


class ClmetaError(Exception):
    """Base of every error that clmeta raises on purpose."""


class BadArgument(ClmetaError, ValueError):
    """An argument that cannot work; the message names argument, value and mend."""


class NonFiniteError(ClmetaError, ArithmeticError):
    """A gradient or meta-gradient was not finite; the update was withheld."""


class RunFolderError(ClmetaError, OSError):
    """A run folder that cannot be written, read, or must not be overwritten."""


def bad(argument: str, value: Any, mend: str) -> NoReturn:
    """Raise BadArgument as ``argument=value: mend``, on one line."""
    shown = _one_line(repr(value))
    if len(shown) > 120:
        shown = shown[:117] + "..."
    raise BadArgument(_one_line(f"{argument}={shown}: {mend}"))


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def require(condition: bool, argument: str, value: Any, mend: str) -> None:
    """Raise BadArgument unless ``condition`` holds."""
    if not condition:
        bad(argument, value, mend)
