"""Commands made of options that know their own kind, check and help; see `clmeta.runs.options`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from clmeta.cli.console import WIDEST, write_entries
from clmeta.errors import BadArgument
from clmeta.runs.config import OPTIONS
from clmeta.runs.options import DATA, FLAG, LEARNER, RUN, STEPS, Option

#: The order of headings.
PANELS = ["Arguments", "its own", DATA, LEARNER, STEPS, RUN, "Cluster", "Help"]
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": WIDEST}


def _place(panel: str) -> int:
    return PANELS.index(panel) if panel in PANELS else 1


class _Typed(click.Option):
    """An option whose words become values by its own kind."""

    def __init__(self, option: Option) -> None:
        many = option.kind.many
        said = f"{option.help} Repeatable." if many else option.help
        metavar = f"[{'|'.join(option.choices)}]" if option.choices else option.kind.metavar
        flag = {"is_flag": True} if option.kind is FLAG else {"metavar": metavar}
        super().__init__(
            [*option.flags, option.name], help=said, default=None, multiple=many, **flag
        )
        self.panel = option.panel


class Argument(click.Argument):
    """A word without a flag, which help explains as it does options."""

    panel = "Arguments"

    def __init__(self, name: str, about: str, *, required: bool = True, many: bool = False) -> None:
        super().__init__([name], required=required, nargs=-1 if many else 1)
        self.about = about

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Its name and what it is."""
        return self.make_metavar(ctx), self.about


class Command(click.Command):
    """A command whose help has its options under headings, and whose errors name them as typed."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options under the headings of their panels, those of the command's own first."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                panels.setdefault(getattr(param, "panel", "Help"), []).append(record)
        longest = max(len(name) for rows in panels.values() for name, _ in rows)
        for panel, rows in sorted(panels.items(), key=lambda item: _place(item[0])):
            with formatter.section(panel):
                write_entries(formatter, rows, longest)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; an error about an argument calls it what was typed."""
        try:
            return super().invoke(ctx)
        except BadArgument as error:
            raise BadArgument(self.as_typed(str(error))) from error

    def as_typed(self, message: str) -> str:
        """``gamma=3.0: ...`` as ``--gamma=3.0: ...``, where there is such an option.

        Of an unknown name it is said how names of one's own come to be known.
        """
        options = {param.name: param for param in self.params if isinstance(param, click.Option)}
        if "or package.module:name" in message and "imports" in options:
            message += "; --import loads a module that registers names"
        named = re.match(r"(\w+)(?:=True\b|(?=[=\[]))", message)
        if named is None or named[1] not in options:
            return message
        return max(options[named[1]].opts, key=len) + message[named.end() :]


class Group(click.Group):
    """The commands, listed in the order in which they were added."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A line each."""
        with formatter.section("Commands"):
            write_entries(
                formatter, [(name, c.get_short_help_str(200)) for name, c in self.commands.items()]
            )


def command(
    name: str, options: Sequence[Option | Argument], of_a_run: bool = False
) -> Callable[[Callable[..., Any]], Command]:
    """Decorator that makes a function a command.

    The function gets the values of ``options`` by name, the default for those not given; and as
    further keywords those of a run's options that were given.

    Args:
        name: the command's.
        options: options and arguments of its own.
        of_a_run: whether it has the options of a run, but for the seed.
    """
    shared = [o for name, o in OPTIONS.items() if of_a_run and name != "seed"]
    own = [option for option in options if isinstance(option, Option)]

    def decorate(function: Callable[..., Any]) -> Command:
        def called(**words: Any) -> Any:
            values = {o.name: o.default for o in own} | _given(own, words)
            values |= {a.name: words[a.name] for a in options if isinstance(a, Argument)}
            return function(**values, **_given(shared, words))

        params: list[click.Parameter] = [
            _Typed(o) if isinstance(o, Option) else o for o in (*options, *shared)
        ]
        doc = (function.__doc__ or "").partition("\n\n")[0]
        return Command(name, SETTINGS, called, params, help=doc)

    return decorate


def _given(options: Sequence[Option], words: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the options that were given."""
    return {
        o.name: o.plain(said) if isinstance(said, bool) else o.read(said)
        for o in options
        if (said := words[o.name]) not in (None, ())
    }
