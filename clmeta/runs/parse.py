"""From what is written on the command line to values, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from clmeta.errors import bad, require
from clmeta.ground.reading import loads
from clmeta.lookup import did_you_mean

#: Values that Python and JSON spell differently.
PYTHON = {"True": True, "False": False, "None": None}
#: Most runs that one command starts; a slip of the finger should not fill the memory.
MOST_RUNS = 100_000
#: Most digits of a seed that is written, all below 2^63.
MOST_DIGITS = 19


def parse_value(text: str) -> Any:
    """A JSON value, such as ``5``, ``1e-3``, ``true``, ``[64,64]`` or ``null``; text otherwise.

    Python's spellings ``True``, ``False`` and ``None`` do as well.
    """
    if text in PYTHON:
        return PYTHON[text]
    try:
        return loads(text)
    except ValueError:
        pass
    try:
        return float(text)  # "1e-3" is JSON, ".5" and "1." are not
    except ValueError:
        return text


def write_value(value: Any) -> str:
    """A value as it is written on the command line; inverse to `parse_value`."""
    if isinstance(value, str) and parse_value(value) == value:
        return value
    if isinstance(value, float):
        texts = (f"{value:g}", f"{value:.0e}", repr(value))
        short = [re.sub(r"e(-?)\+?0*(?=\d)", r"e\1", text) for text in texts]
        return min((text for text in short if float(text) == value), key=len, default="nan")
    return json.dumps(value, separators=(",", ":"))


def among(name: str, known: Iterable[str]) -> str:
    """``did you mean 'eta'? known: alpha0, eta``, for messages about a name that is not known."""
    known = list(known)
    return f"{did_you_mean(name, known)} known: {', '.join(known)}".strip()


def parse_options(argument: str, words: Iterable[str]) -> dict[str, Any]:
    """``["tasks=5", "hidden=[64,64]"]`` as a dict.

    Raises:
        BadArgument: for a word without ``=``, or a name that is given twice.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        require(bool(equals and name), argument, word, "write name=value, e.g. tasks=5")
        require(name not in options, argument, word, f"{name} is given twice; give it once")
        options[name] = parse_value(text)
    return options


def parse_by_block(argument: str, text: str) -> Any:
    """A number, or one for each block: ``body=1e-4,head=1e-3``; a JSON mapping does as well.

    Raises:
        BadArgument: for a block without a number, or given twice.
    """
    value = parse_value(text)
    if not isinstance(value, str) or "=" not in value:
        return value
    numbers: dict[str, Any] = {}
    for part in value.replace(";", ",").split(","):
        block, equals, number = part.rpartition("=")
        block = block.strip()
        mend = "write a number, or one for each block: body=1e-4,head=1e-3"
        require(bool(equals and block) and block not in numbers, argument, text, mend)
        numbers[block] = parse_value(number.strip())
    return numbers


def parse_blocks(argument: str, text: str) -> str | dict[str, Any]:
    """A way to form blocks, or prefixes by block: ``body=features,classifier.1;head=classifier.3``.

    A JSON mapping does as well.

    Raises:
        BadArgument: for text that is neither.
    """
    mend = "write a name such as layer, or body=features,classifier.1;head=classifier.3"
    if text.lstrip().startswith("{"):
        try:
            return loads(text)
        except ValueError as error:
            bad(argument, text, f"not JSON ({error}); {mend}")
    if "=" not in text:
        return text
    blocks: dict[str, Any] = {}
    for part in text.split(";"):
        name, equals, prefixes = part.partition("=")
        listed = [prefix.strip() for prefix in prefixes.split(",") if prefix.strip()]
        if not equals or not name.strip() or not listed or name.strip() in blocks:
            bad(argument, text, mend)
        blocks[name.strip()] = listed
    return blocks


def parse_seeds(argument: str, text: str) -> list[int]:
    """Seeds such as ``3``, ``0-4`` or ``0,1,7-9``, in the order written.

    Raises:
        BadArgument: for anything else, a range that runs backwards, a repeated seed, or more seeds
            than anybody means.
    """
    require(isinstance(text, str), argument, text, "must be text, e.g. 0-4")
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            bad(argument, text, "write whole numbers and ranges, e.g. 0-4 or 0,1,7-9")
        digits = max(len(first), len(last))
        mend = f"a seed of {digits:,} digits; give at most {MOST_DIGITS}"
        require(digits <= MOST_DIGITS, argument, text, mend)
        low, high = int(first), int(last or first)
        mend = f"the range {part.strip()} runs backwards; write {last}-{first}"
        require(low <= high, argument, text, mend)
        count = len(seeds) + high - low + 1
        require(count <= MOST_RUNS, argument, text, f"{count:,} seeds; give at most {MOST_RUNS:,}")
        seeds += range(low, high + 1)
    require(len(set(seeds)) == len(seeds), argument, text, "a seed is given twice; give each once")
    return seeds


def split_values(text: str) -> list[str]:
    """Parts between the commas that are not inside brackets, braces or double quotes."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        if letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
