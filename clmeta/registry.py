"""One table from names to things: rules, streams, datasets, models, plots, strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from clmeta.errors import bad, require
from clmeta.lookup import Wanted, describe, did_you_mean, is_path, load_object

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind; adding one is one decorated definition.

    Args:
        kind: what an entry is called in error messages and listings, e.g. ``"stream"``.
        wanted: what ``package.module:name`` must name to serve as an entry.
    """

    def __init__(self, kind: str, wanted: Wanted) -> None:
        self.kind = kind
        self.wanted = wanted
        self._entries: dict[str, T] = {}
        self._about: dict[str, str] = {}
        self._sources: list[tuple[Any, T]] = []

    def register(
        self, name: str, about: str | None = None, *, source: Any = None
    ) -> Callable[[T], T]:
        """Decorator that enters an object under ``name``.

        Args:
            name: the name that users write; must be new, and without a colon.
            about: one line for listings; by default the first line of the docstring.
            source: what the entry was made of, where a decorator gives that back to its module;
                imported by its path it then stands for the entry.

        Raises:
            BadArgument: if the name is taken or has a colon.
        """
        require(":" not in name, "name", name, "a colon is for package.module:name; leave it out")

        def enter(entry: T) -> T:
            if name in self._entries:
                bad("name", name, f"there is a {self.kind} of that name already; choose another")
            self._entries[name] = entry
            self._sources += [(entry, entry), (source, entry)]
            lines = (about or entry.__doc__ or "").strip().splitlines()
            self._about[name] = lines[0] if lines else ""
            return entry

        return enter

    def get(
        self,
        name: str,
        argument: str | None = None,
        *,
        wanted: Wanted | None = None,
        also: Sequence[str] = (),
    ) -> T:
        """The entry called ``name``, or the object that ``package.module:name`` names.

        Args:
            name: a registered name or a path to import.
            argument: what messages call it; the registry's kind by default.
            wanted: what an imported object must be, where more will do than as an entry.
            also: further words that the caller knows, for messages.

        Raises:
            BadArgument: for an unknown name (the message lists the known ones), an import that
                fails, or an object of the wrong kind.
        """
        argument = argument or self.kind
        if isinstance(name, str) and ":" in name:
            return self._imported(name, argument, wanted or self.wanted)
        if not isinstance(name, str) or name not in self._entries:
            known = [*self.names(), *also]
            text = name if isinstance(name, str) else ""
            hint = did_you_mean(text, known)
            if not hint and is_path(dotted := ":".join(text.rsplit(".", 1))):
                hint = f"did you mean {dotted!r}?"
            more = "package.module:name" + (f" of {wanted.what}" if wanted else "")
            listed = f"known: {', '.join(known)}, or {more}"
            bad(argument, name, f"unknown {self.kind}; {hint}{' ' if hint else ''}{listed}")
        return self._entries[name]

    def _imported(self, path: str, argument: str, wanted: Wanted) -> T:
        found = load_object(path, argument)
        for source, entry in self._sources:
            if source is found and source is not None:
                return entry
        if not wanted.fits(found):
            bad(argument, path, f"is {describe(found)}; it must name {wanted.what}")
        return wanted.made(found)

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
