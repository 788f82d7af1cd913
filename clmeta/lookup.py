"""Things found by ``package.module:name``, and what is asked of things from outside.

The command line and Python take such a path wherever a registered name does; `Registry.get`
resolves it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin

from clmeta.errors import BadArgument, ClmetaError, bad, brief, require
from clmeta.ground.checks import number, whole

FORM = "write package.module:name, as in torch.optim:AdamW"
_NAMES = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"


@dataclass(frozen=True)
class Least:
    """The least value of a number, in an annotation: ``Annotated[float, Least(0)]``.

    Attributes:
        value: the bound.
        itself: whether the number may be the bound itself.
    """

    value: float
    itself: bool = True

    def check(self, argument: str, number: float) -> None:
        """Raise BadArgument for a number below the bound, or one that is not finite."""
        fits = number >= self.value if self.itself else number > self.value
        mend = f"must be finite and {'at least' if self.itself else 'above'} {self.value:g}"
        require(fits and math.isfinite(number), argument, number, mend)


@dataclass(frozen=True)
class Wanted:
    """What an imported object must be.

    Attributes:
        what: in words, after "must name".
        fits: whether an object is that.
        made: from the object to what is used.
    """

    what: str
    fits: Callable[[Any], bool] = callable
    made: Callable[[Any], Any] = lambda found: found


def takes(count: int, *keywords: str) -> Callable[[Any], bool]:
    """A test whether something can be called with ``count`` arguments and these keywords.

    It may take more; of a callable whose signature is not known it is believed.
    """

    def test(found: Any) -> bool:
        if not callable(found):
            return False
        try:
            inspect.signature(found).bind_partial(*[None] * count, **dict.fromkeys(keywords))
        except TypeError:
            return False
        except ValueError:  # no signature to be had
            pass
        return True

    return test


def is_path(name: object) -> bool:
    """Whether a name has the form ``package.module:name``."""
    return isinstance(name, str) and re.fullmatch(f"{_NAMES}:{_NAMES}", name) is not None


def short_name(name: str) -> str:
    """What tables and folders call a thing: ``Net`` for ``package.module:Net``, else its name."""
    return name.partition(":")[2] if is_path(name) else name


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name to its `short_name`, or where two share that, to the whole path with dots."""
    names = list(dict.fromkeys(names))
    short = [short_name(name) for name in names]
    return {
        name: each if short.count(each) == 1 else name.replace(":", ".")
        for name, each in zip(names, short, strict=True)
    }


def load_module(name: str, argument: str, value: str | None = None) -> ModuleType:
    """A module by its dotted name; the working folder is searched last.

    Args:
        name: ``package.module``.
        argument: what messages call it.
        value: what was given for it; the name itself by default.

    Raises:
        BadArgument: if there is no such module, or its import fails.
    """
    value = name if value is None else value
    with _working_folder_last(), failing_as(argument, value, f"importing {name} fails"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise
            where = "install it, or run where it can be imported: the working folder is searched"
            bad(argument, value, f"there is no module {error.name!r}; {where}")
        except SystemExit as error:
            raise RuntimeError(f"it ends the program with exit status {error.code}") from error


def load_object(path: str, argument: str) -> Any:
    """What ``package.module:name`` names.

    Raises:
        BadArgument: if there is no such module or name, or its import fails.
    """
    require(is_path(path), argument, path, FORM)
    module, _, name = path.partition(":")
    found: Any = load_module(module, argument, path)
    for part in name.split("."):
        found = _member(found, part, argument, path)
    return found


def _member(owner: Any, part: str, argument: str, path: str) -> Any:
    with failing_as(argument, path, f"looking up {part} fails"):
        try:
            return getattr(owner, part)
        except AttributeError:
            there = [each for each in dir(owner) if not each.startswith("_")]
            hint = did_you_mean(part, there) or "check the name after ':'"
            bad(argument, path, f"{describe(owner)} has no {part!r}; {hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'adamw'?``, or nothing where no known name is close."""
    known = list(known)
    exact = [each for each in known if each.lower() == name.lower()]
    close = exact or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def describe(found: Any) -> str:
    """An object in words: ``the class Net``, ``the function wide(x)``, ``the int 3``."""
    if isinstance(found, ModuleType):
        return f"module {found.__name__!r}"
    if inspect.isclass(found):
        return f"the class {found.__name__}"
    if inspect.isroutine(found):
        try:
            return f"the function {found.__name__}{inspect.signature(found)}"
        except (TypeError, ValueError):
            return f"the function {found.__name__}"
    return f"the {type(found).__name__} {brief(found)}"


@contextmanager
def failing_as(argument: str, value: Any, what: str = "fails") -> Iterator[None]:
    """Errors of code that is not clmeta's own, as one that names the argument, with their place.

    Raises:
        BadArgument: for any exception but clmeta's own.
    """
    try:
        yield
    except ClmetaError:
        raise
    except Exception as error:
        raise BadArgument(f"{argument}={brief(value)}: {what} with {said(error)}") from error


def said(error: BaseException) -> str:
    """An exception in a line: its type, its first line, and where in the user's code it came up."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()[:300]}" if lines else type(error).__name__
    here, standard = os.path.dirname(__file__), os.path.dirname(os.__file__)
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((here, standard, "<"))
        and f"{os.sep}site-packages{os.sep}" not in frame.filename
    ]
    if not theirs:
        return text
    return f"{text} ({os.path.basename(theirs[-1].filename)}, line {theirs[-1].lineno})"


@contextmanager
def _working_folder_last() -> Iterator[None]:
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


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

    Of annotations, those that are just ``int``, ``float`` or ``bool`` count, also as
    ``Annotated[float, Least(0)]``.

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
    parameters = _signature(function).parameters
    for name, value in options.items():
        if value is not known[name]:
            _check_kind(parameters[name].annotation, f"{argument} {name}", value)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # an annotation that has a meaning for type checkers only
        return inspect.signature(function)


def _check_kind(annotation: Any, argument: str, value: Any) -> None:
    bounds: list[Any] = []
    if get_origin(annotation) is Annotated:
        annotation, *bounds = get_args(annotation)
    kind = getattr(annotation, "__name__", annotation)
    if kind == "int":
        whole(argument, value)
    elif kind == "float":
        number(argument, value)
    elif kind == "bool":
        require(isinstance(value, bool), argument, value, "must be true or false")
    for bound in bounds:
        if isinstance(bound, Least):
            bound.check(argument, value)
