"""From what is written on the command line to values: options, blocks, seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clmeta.errors import bad

#: Values that Python and JSON spell differently.
PYTHON = {"True": True, "False": False, "None": None}


def parse_value(text: str) -> Any:
    """A JSON value, such as ``5``, ``1e-3``, ``true``, ``[64, 64]`` or ``null``; text otherwise.

    Python's spellings ``True``, ``False`` and ``None`` do as well.
    """
    if text in PYTHON:
        return PYTHON[text]
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return float(text)  # "1e-3" is JSON, ".5" and "1." are not
    except ValueError:
        return text


def parse_options(argument: str, words: Sequence[str] | None) -> dict[str, Any] | None:
    """``["tasks=5", "hidden=[64, 64]"]`` as a dict; None if there are none.

    Raises:
        BadArgument: for a word without ``=``, or a name that is given twice.
    """
    if not words:
        return None
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            bad(argument, word, "write name=value, e.g. tasks=5")
        if name in options:
            bad(argument, word, f"{name} is given twice; give it once")
        options[name] = parse_value(text)
    return options


def parse_blocks(text: str) -> str | dict[str, Any]:
    """A way to form blocks, or prefixes by block: ``body=features,classifier.1;head=classifier.3``.

    A JSON mapping does as well.

    Raises:
        BadArgument: for text that is neither.
    """
    mend = "write a name such as layer, or body=features,classifier.1;head=classifier.3"
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            bad("blocks", text, f"not JSON ({error}); {mend}")
    if "=" not in text:
        return text
    blocks: dict[str, Any] = {}
    for part in text.split(";"):
        name, equals, prefixes = part.partition("=")
        listed = [prefix.strip() for prefix in prefixes.split(",") if prefix.strip()]
        if not equals or not name.strip() or not listed or name.strip() in blocks:
            bad("blocks", text, mend)
        blocks[name.strip()] = listed
    return blocks


def parse_seeds(text: str) -> list[int]:
    """Seeds such as ``3``, ``0-4`` or ``0,1,7-9``, in the order written.

    Raises:
        BadArgument: for anything else, a range that runs backwards, or a repeated seed.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            bad("seeds", text, "write whole numbers and ranges, e.g. 0-4 or 0,1,7-9")
        if dash and int(last) < int(first):
            bad("seeds", text, f"the range {part.strip()} runs backwards; write {last}-{first}")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) < len(seeds):
        bad("seeds", text, "a seed is given twice; give each once")
    return seeds
