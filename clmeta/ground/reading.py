"""What people and files hand in as text: paths, JSON; of any content, without a traceback."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clmeta.errors import bad, require

#: Lists and mappings inside each other, at most; what anybody means has a handful.
DEEPEST = 50


def as_path(argument: str, value: Any) -> Path:
    """A path, ``~`` being home.

    Raises:
        BadArgument: for what is none, or leads to the home of nobody.
    """
    is_path = isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str)
    require(is_path, argument, value, "must be a path: text or a pathlib.Path")
    check_text(argument, os.fspath(value))
    try:
        path = Path(value).expanduser()
        os.lstat(path)
    except RuntimeError:
        bad(argument, os.fspath(value), "there is no such user; write the path of the home folder")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            bad(argument, os.fspath(value), "is too long for a path; give a shorter one")
    return path


def check_text(argument: str, text: str) -> None:
    """Raise BadArgument for text with characters that no file's name can have."""
    try:
        fits = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        fits = False
    require(fits, argument, text, "has a character that cannot be in a name; leave it out")


def loads(text: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: for text that is none, or lists and mappings too deep inside each other.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError("it is no text")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise ValueError for lists and mappings more than `DEEPEST` deep inside each other."""
    layer, depth = [value], 0
    while layer:
        depth += 1
        if depth > DEEPEST + 1:
            raise ValueError(_DEEP)
        inside: list[Any] = []
        for each in layer:
            if isinstance(each, Mapping):
                inside += each.values()
            elif isinstance(each, (list, tuple)):
                inside += each
        layer = inside


_DEEP = f"lists and mappings stand more than {DEEPEST} deep inside each other"
