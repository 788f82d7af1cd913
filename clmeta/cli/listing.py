"""What ``clmeta list`` prints: every registry's names, what they are, the options they take."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from clmeta.lookup import keywords_of
from clmeta.strategies.registry import COMMON

#: Kind to module and name of its registry.
REGISTRIES = {
    "rules": ("clmeta.rules", "RULES"),
    "blocks": ("clmeta.blocks", "BLOCKS"),
    "streams": ("clmeta.streams", "STREAMS"),
    "datasets": ("clmeta.streams", "DATASETS"),
    "models": ("clmeta.models", "MODELS"),
    "strategies": ("clmeta.strategies.entries", "STRATEGIES"),
    "plots": ("clmeta.analysis", "PLOTS"),
}


def _stream_options(name: str, entry: Any) -> dict[str, Any] | None:
    from clmeta.streams import stream_options

    return stream_options(name)


#: How to find an entry's options, for the kinds that have any.
OPTIONS: dict[str, Callable[[str, Any], dict[str, Any] | None]] = {
    "rules": lambda name, entry: keywords_of(entry),
    "streams": _stream_options,
    "models": lambda name, entry: keywords_of(entry, skip=2),
    "strategies": lambda name, entry: keywords_of(entry, skip=3, hidden=COMMON),
}


def print_listing(kinds: Sequence[str], console: Console | None = None) -> None:
    """A table for each kind: name, one line about it, its options with their defaults."""
    console = console or Console(highlight=False)
    for kind in kinds:
        module, attribute = REGISTRIES[kind]
        registry = getattr(importlib.import_module(module), attribute)
        table = Table(title=kind, title_justify="left", title_style="bold", box=None)
        table.add_column("name", style="cyan", no_wrap=True)
        table.add_column("what it is")
        options = OPTIONS.get(kind)
        if options is not None:
            table.add_column("options")
        for name, about in registry.about().items():
            row = [name, about]
            if options is not None:
                row.append(_shown(options(name, registry.get(name))))
            table.add_row(*row)
        console.print(table)
        console.print()


def _shown(options: dict[str, Any] | None) -> str:
    if options is None:
        return "any"
    return ", ".join(k if v is ... else f"{k}={v!r}" for k, v in options.items())
