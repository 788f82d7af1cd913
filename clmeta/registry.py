"""One table from names to things: rules, streams, datasets, models, plots, strategies."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from clmeta.errors import bad

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind; adding one is one decorated definition.

    Args:
        kind: what an entry is called in error messages and listings, e.g. ``"stream"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._about: dict[str, str] = {}

    def register(self, name: str, about: str | None = None) -> Callable[[T], T]:
        """Decorator that enters an object under ``name``.

        Args:
            name: the name that users write; must be new.
            about: one line for listings; by default the first line of the docstring.

        Raises:
            BadArgument: if the name is taken.
        """

        def enter(entry: T) -> T:
            if name in self._entries:
                bad("name", name, f"there is a {self.kind} of that name already; choose another")
            self._entries[name] = entry
            lines = (about or entry.__doc__ or "").strip().splitlines()
            self._about[name] = lines[0] if lines else ""
            return entry

        return enter

    def get(self, name: str, argument: str | None = None) -> T:
        """The entry called ``name``.

        Raises:
            BadArgument: for an unknown name; the message lists the known ones.
        """
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            close = difflib.get_close_matches(str(name), self._entries, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            known = ", ".join(self.names())
            bad(argument or self.kind, name, f"unknown {self.kind}; {hint}known: {known}")

    def names(self) -> list[str]:
        """The known names, sorted."""
        return sorted(self._entries)

    def about(self) -> dict[str, str]:
        """Name to one-line description, sorted by name."""
        return {name: self._about[name] for name in self.names()}

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
