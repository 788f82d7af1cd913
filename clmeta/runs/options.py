"""What an option of a run is: its help, kind, unit and checks, written once on RunConfig's fields.

The command line's options and help, RunConfig's docstring and its checks follow from it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clmeta.errors import bad, require
from clmeta.ground.checks import check_number, whole
from clmeta.ground.reading import check_depth, check_text
from clmeta.lookup import did_you_mean
from clmeta.record.files import jsonable
from clmeta.record.interval import every
from clmeta.runs.parse import parse_blocks, parse_by_block, parse_options, parse_value, write_value

DATA, LEARNER, STEPS, RUN = "Data", "Network and strategy", "Step sizes", "Run"


@dataclass(frozen=True)
class Kind:
    """The values of an option.

    Attributes:
        metavar: stands for the value in help.
        plain: (argument, value) to the value that is kept; BadArgument for one of another kind.
        parse: (argument, text) to a value; text itself by default.
        many: given several times, so that ``parse`` gets all words.
    """

    metavar: str
    plain: Callable[[str, Any], Any]
    parse: Callable[[str, Any], Any] = lambda argument, text: text
    many: bool = False

    def read(self, argument: str, words: Any) -> Any:
        """The value that words of the command line stand for; BadArgument if for none."""
        return self.plain(argument, self.parse(argument, words))

    def or_none(self) -> Kind:
        """The same, or None, written ``none``."""
        nothing = ("none", "None", "null")
        return dataclasses.replace(
            self,
            plain=lambda argument, v: None if v is None else self.plain(argument, v),
            parse=lambda argument, t: None if t in nothing else self.parse(argument, t),
        )


def _text(argument: str, value: Any) -> str:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    require(isinstance(value, str), argument, value, "must be text")
    require(value.strip() != "", argument, value, "must not be empty")
    check_text(argument, value)
    return value


def _flag(argument: str, value: Any) -> bool:
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        value = value.item()
    require(isinstance(value, bool), argument, value, "must be true or false")
    return value


def _number(argument: str, value: Any) -> float:
    return float(check_number(argument, value))


def _bound(argument: str, value: Any) -> float:
    """A number or infinity, which is kept as a number and written ``inf`` where JSON has none."""
    endless = isinstance(value, (float, str)) and value in (math.inf, "inf")
    return math.inf if endless else _number(argument, value)


def _by_block(argument: str, value: Any) -> float | dict[str, float]:
    if not isinstance(value, Mapping):
        return _number(argument, value)
    require(len(value) > 0, argument, dict(value), "name at least one block")
    return {_text(argument, k): _number(f"{argument}[{k!r}]", v) for k, v in value.items()}


def _mapping(argument: str, value: Any) -> dict[str, Any]:
    """Copied, so that later changes to it don't reach the config."""
    require(isinstance(value, Mapping), argument, value, "must be a mapping of options")
    require(all(isinstance(k, str) for k in value), argument, dict(value), "keys must be text")
    try:
        check_depth(value)
        return json.loads(json.dumps(dict(value), allow_nan=False, default=jsonable))
    except (TypeError, ValueError):
        bad(
            argument,
            dict(value),
            "must be made of text, finite numbers, lists and mappings, a few deep",
        )


def _blocks(argument: str, value: Any) -> Any:
    return (_mapping if isinstance(value, Mapping) else _text)(argument, value)


def _names(argument: str, value: Any) -> tuple[str, ...]:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    require(listed, argument, value, "must be a list of names")
    return tuple(dict.fromkeys(_text(argument, each) for each in value))


def _value(argument: str, text: str) -> Any:
    return parse_value(text)


TEXT = Kind("TEXT", _text)
FLAG = Kind("", _flag, _value)
WHOLE = Kind("N", whole, _value)
NUMBER = Kind("NUMBER", _number, _value)
NAMES = Kind("MODULE", _names, many=True)
PAIRS = Kind("NAME=VALUE", _mapping, parse_options, many=True)

#: The annotation of a field to the kind of its values.
KINDS = {
    "str": TEXT,
    "str | None": TEXT.or_none(),
    "bool": FLAG,
    "int": WHOLE,
    "Every": Kind("STEPS|TIME", every).or_none(),
    "Bound": Kind("NUMBER", _bound, _value).or_none(),
    "ByBlock": Kind("NUMBER", _by_block, parse_by_block),
    "Blocks": Kind("BLOCKS", _blocks, parse_blocks),
    "Mapping[str, Any]": PAIRS,
    "tuple[str, ...]": NAMES,
}


@dataclass(frozen=True)
class Option:
    """An option of a run.

    Attributes:
        name: RunConfig's.
        default: its value where nothing is given.
        about: what it is, with its unit.
        panel: under which heading help shows it.
        kind: of its values.
        flags: on the command line, the long one first.
        default_said: what is said of the default where its value says too little.
        choices: all values that it can have, if they are few.
        least, most: its smallest and largest value, if there is one.
        identity: whether it changes what a run computes.
        apart: whether runs that differ in it must not train together.
        adaptive: whether it has no use for fixed step sizes.
    """

    name: str
    default: Any
    about: str
    panel: str
    kind: Kind
    flags: tuple[str, ...]
    default_said: str | None = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    identity: bool = True
    apart: bool = True
    adaptive: bool = False

    def plain(self, value: Any) -> Any:
        """The value as it is kept.

        Raises:
            BadArgument: for one that cannot work, whatever the other options are.
        """
        value = self.kind.plain(self.name, value)
        for each in (value if self.kind.many else [value]) if self.choices else ():
            use = f"{did_you_mean(str(each), self.choices)} use one of {', '.join(self.choices)}"
            require(each in self.choices, self.name, each, use.strip())
        if self.least is not None:
            require(value >= self.least, self.name, value, f"must be at least {self.least}")
        if self.most is not None:
            require(value <= self.most, self.name, value, f"must be at most {self.most:,}")
        return value

    def read(self, words: Any) -> Any:
        """The value that words of the command line stand for; BadArgument if for none."""
        return self.plain(self.kind.parse(self.name, words))

    @property
    def help(self) -> str:
        """What it is and its default."""
        said = self.default_said
        if said is None and isinstance(self.default, bool):
            said = "yes" if self.default else "no"
        elif said is None and self.default not in ({}, (), None):
            said = write_value(self.default)
        return self.about if said is None else f"{self.about} Default: {said}."


def option(default: Any, about: str, panel: str, **more: Any) -> Any:
    """A dataclass field that is an option; ``more`` are further attributes of `Option`."""
    metadata = {"about": about, "panel": panel, **more}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options_of(config: type) -> dict[str, Option]:
    """The options that a dataclass's fields are, by name."""
    found = {}
    for field in dataclasses.fields(config):
        more = dict(field.metadata)
        kind = KINDS[str(field.type)]
        singular = field.name.removesuffix("s") if kind.many else field.name
        flags = (f"--{singular.replace('_', '-')}", *more.pop("short", ()))
        if kind is FLAG:
            flags = (f"{flags[0]}/--no-{singular.replace('_', '-')}",)
        default = {} if field.default is dataclasses.MISSING else field.default
        found[field.name] = Option(field.name, default, kind=kind, flags=flags, **more)
    return found


def documented(config: type) -> type:
    """Decorator that writes the options into the class's docstring, for ``{options}``."""
    entries = [
        textwrap.fill(
            f"{name}: {each.help}", 100, initial_indent=" " * 8, subsequent_indent=" " * 12
        )
        for name, each in options_of(config).items()
    ]
    config.__doc__ = (config.__doc__ or "").replace("        {options}", "\n".join(entries))
    return config
