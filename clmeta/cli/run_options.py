"""The options of a run on any command that has them: in its signature, and from words to values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from clmeta.cli import options
from clmeta.runs.config import RunConfig
from clmeta.runs.parse import parse_blocks, parse_options

Command = TypeVar("Command", bound=Callable[..., Any])


def parameter_name(option: str) -> str:
    """The command line's name of a RunConfig option: ``stream_options`` is given one by one."""
    return option.removesuffix("s") if option.endswith("_options") else option


def with_run_options(command: Command) -> Command:
    """A command that takes ``**given`` gets every run option there, but for the seed.

    The types are those of `clmeta.cli.options`; an option that is not given is None.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    shared = [
        inspect.Parameter(
            name := parameter_name(field.name),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=getattr(options, name.title().replace("_", "")),
        )
        for field in dataclasses.fields(RunConfig)
        if field.name != "seed"
    ]
    kept = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.kind is not p.VAR_KEYWORD
    ]
    command.__signature__ = inspect.Signature([*kept, *shared])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*kept, *shared)}
    return command


def given_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """RunConfig options from the command line's, without those that were not given.

    Raises:
        BadArgument: for words that don't parse.
    """
    result: dict[str, Any] = {}
    for field in dataclasses.fields(RunConfig):
        value = given.get(parameter_name(field.name))
        if value is None:
            continue
        if field.name.endswith("_options"):
            value = parse_options(parameter_name(field.name).replace("_", "-"), value)
        elif field.name == "blocks":
            value = parse_blocks(value)
        if value is not None:
            result[field.name] = value
    return result
