"""``clmeta list``: every registry's names, what they are, the options they take.

Finding them takes seconds, in which torch and others are imported, so they are remembered; errors
about names are then found at once too.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clmeta.cli import options as o
from clmeta.cli.command import Argument, command
from clmeta.errors import RunFolderError, require
from clmeta.lookup import Wanted, keywords_of
from clmeta.native.cc import cache_folder
from clmeta.record.files import write_atomically
from clmeta.registry import Registry
from clmeta.runs.imports import import_modules
from clmeta.runs.parse import among, write_value
from clmeta.sweep.spec import SweepSpec


def _stream_options(name: str, entry: Any) -> dict[str, Any] | None:
    from clmeta.streams import stream_options

    return stream_options(name)


def _strategy_options(name: str, entry: Any) -> dict[str, Any] | None:
    from clmeta.strategies.registry import COMMON

    return keywords_of(entry, skip=3, hidden=COMMON)


def _no_options(name: str, entry: Any) -> dict[str, Any]:
    return {}


#: Kind to module and name of its registry, and how to find an entry's options.
KINDS: dict[str, tuple[str, str, Callable[[str, Any], dict[str, Any] | None]]] = {
    "rules": ("clmeta.rules", "RULES", lambda name, entry: keywords_of(entry)),
    "blocks": ("clmeta.blocks", "BLOCKS", _no_options),
    "streams": ("clmeta.streams", "STREAMS", _stream_options),
    "datasets": ("clmeta.streams", "DATASETS", _no_options),
    "models": ("clmeta.models", "MODELS", lambda name, entry: keywords_of(entry, skip=2)),
    "engines": ("clmeta.engines.choose", "ENGINES", _no_options),
    "strategies": ("clmeta.strategies.entries", "STRATEGIES", _strategy_options),
    "plots": ("clmeta.analysis", "PLOTS", _no_options),
}
#: Options of a run to the kind of what they name, and what one of it is called.
NAMED = {
    "stream": ("streams", "stream"),
    "model": ("models", "model"),
    "strategy": ("strategies", "strategy"),
    "base": ("rules", "rule"),
    "meta": ("rules", "rule"),
    "engine": ("engines", "engine"),
}
#: Words that do beside registered names.
ALSO = {"meta": ("none",), "engine": ("auto",)}


@command(
    "list",
    [Argument("kind", f"One of {', '.join(KINDS)}. Default: all.", required=False), o.IMPORTS],
)
def listing(kind: str | None, imports: Sequence[str]) -> None:
    """Show rules, blocks, streams, datasets, models, engines, strategies and plots by name."""
    require(kind is None or kind in KINDS, "kind", kind, f"unknown; {among(kind or '', KINDS)}")
    import_modules(imports)
    from clmeta.cli.console import print_entries

    for each in KINDS if kind is None else [kind]:
        print_entries(each, entries(each) if imports else _remembered(each) or _remember(each))


def entries(kind: str) -> list[tuple[str, str]]:
    """The names of a kind, each with one line about it and its options as they are typed."""
    module, attribute, options_of = KINDS[kind]
    registry = getattr(importlib.import_module(module), attribute)
    rows = []
    for name, about in registry.about().items():
        options = options_of(name, registry.get(name))
        said = "any" if options is None else ", ".join(map(_typed, options, options.values()))
        rows.append((name, f"{about.rstrip('.')}. Options: {said}." if said else about))
    return rows


def _typed(name: str, default: Any) -> str:
    return name if default is ... else f"{name}={write_value(default)}"


def check_names(spec: SweepSpec) -> None:
    """Raise BadArgument for a name that is known not to be there; nothing is imported for it."""
    sources = [spec.options, *spec.methods]
    grids = [spec.grid, *(method.get("grid", {}) for method in spec.methods)]
    if any(source.get("imports") for source in sources):
        return
    for option, (kind, singular) in NAMED.items():
        names = [source[option] for source in sources if option in source]
        names += [name for grid in grids for name in grid.get(option, ())]
        known: Registry[str] = Registry(singular, Wanted(f"a {singular}"))
        for name, about in _remembered(kind) or () if names else ():
            known.register(name, about)(about)
        also = ALSO.get(option, ())
        for name in names if known.names() else ():
            if isinstance(name, str) and ":" not in name and name not in also:
                known.get(name, option, also=also)


# ---- what is remembered --------------------------------------------------------------------


def _file(kind: str) -> Path:
    """Where a kind's names are kept: another file whenever clmeta's own code changes."""
    stamp = hashlib.sha256()
    for folder, _, files in os.walk(Path(__file__).parents[1], followlinks=True):
        for name in sorted(files):
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                found = os.stat(path)
                stamp.update(f"{path} {found.st_size} {found.st_mtime_ns}".encode())
    return cache_folder() / f"names-{kind}-{stamp.hexdigest()[:16]}.json"


def _remembered(kind: str) -> list[tuple[str, str]] | None:
    with suppress(OSError, ValueError):
        return [(name, about) for name, about in json.loads(_file(kind).read_text())]
    return None


def _remember(kind: str) -> list[tuple[str, str]]:
    rows, file = entries(kind), _file(kind)
    with suppress(OSError, RunFolderError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in file.parent.glob(f"names-{kind}-*.json"):
            old.unlink()
        write_atomically(file, lambda stream: stream.write(json.dumps(rows).encode()))
    return rows
