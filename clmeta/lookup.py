"""Find things by ``package.module:name`` and check the keywords that they take."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clmeta.errors import BadArgument, bad, require

#: Annotation to what a value must be; true and false are no numbers.
KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: type(value) is int, "must be a whole number"),
    "float": (lambda value: type(value) in (int, float), "must be a number"),
    "bool": (lambda value: type(value) is bool, "must be true or false"),
}


def load_object(path: str, argument: str) -> Any:
    """What ``package.module:name`` names; the working folder is searched last.

    Raises:
        BadArgument: if the module cannot be imported or has no such name.
    """
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, ValueError) as error:
        mend = f"cannot import {module_name!r} ({error}); write package.module:name"
        raise BadArgument(f"{argument}={path!r}: {mend}") from error
    except AttributeError as error:
        raise BadArgument(f"{argument}={path!r}: {error}; check the name after ':'") from error
    finally:
        if added:
            sys.path.remove(here)
    return found


def keywords_of(
    function: Callable[..., Any], skip: int = 0, hidden: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The keywords that a function takes, each with its default (or ``...`` without one).

    None if it takes any keyword, or if its signature is not known.

    Args:
        function: what will be called.
        skip: leading parameters that are filled in otherwise.
        hidden: names of further parameters that are filled in otherwise.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        p.name: ... if p.default is p.empty else p.default
        for p in parameters
        if p.kind in by_name and p.name not in hidden
    }


def check_options(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    argument: str,
    *,
    skip: int = 0,
    hidden: Sequence[str] = (),
) -> None:
    """Refuse keywords that ``function`` does not take, and values not of the annotated kind.

    Of annotations, those that are just ``int``, ``float`` or ``bool`` count.

    Args:
        function: what will be called; ``skip`` and ``hidden`` as in `keywords_of`.
        options: the keywords to check.
        argument: what an option is called in the message.
    """
    known = keywords_of(function, skip, hidden)
    if known is None:
        return
    for name, value in options.items():
        if name not in known:
            bad(f"{argument} {name}", value, f"unknown; known: {', '.join(known) or 'none'}")
    parameters = inspect.signature(function).parameters
    for name, value in options.items():
        kind = getattr(parameters[name].annotation, "__name__", parameters[name].annotation)
        if isinstance(kind, str) and kind in KINDS and value != known[name]:
            fits, mend = KINDS[kind]
            require(fits(value), f"{argument} {name}", value, mend)
