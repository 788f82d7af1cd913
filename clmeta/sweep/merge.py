"""Options of several sources put together, keyword by keyword."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clmeta.errors import bad
from clmeta.runs.config import OPTIONS


def dotted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with a dot for each keyword of a mapping of them: ``stream_options.tasks``."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if name.endswith("_options") and isinstance(value, Mapping):
            flat |= {f"{name}.{keyword}": each for keyword, each in value.items()}
        else:
            flat[name] = value
    return flat


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `dotted`.

    Raises:
        BadArgument: for a dotted name whose first part is not a mapping of keywords.
    """
    result: dict[str, Any] = {}
    for name, value in options.items():
        option, dot, keyword = name.partition(".")
        if not dot:
            result[name] = value
        elif option.endswith("_options"):
            result.setdefault(option, {})[keyword] = value
        else:
            bad("option", name, "only *_options have keywords, as in stream_options.tasks")
    return result


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`dotted` options with changes; modules to import add up."""
    result = {**dotted(options), **dotted(changes)}
    if "imports" in result:
        plain = OPTIONS["imports"].plain
        result["imports"] = [
            x for each in (options, changes) for x in plain(each.get("imports", ()))
        ]
    return result


def without(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """`dotted` options but for those named."""
    gone = set(names)
    return {k: v for k, v in dotted(options).items() if not {k, k.partition(".")[0]} & gone}
