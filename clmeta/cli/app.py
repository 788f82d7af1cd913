"""The command line: ``clmeta demo | run | plot | sweep | best | reproduce | list``.

Nothing heavy is imported before a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from contextlib import suppress

import click

from clmeta._version import __version__
from clmeta.cli.best import best
from clmeta.cli.command import SETTINGS, Group
from clmeta.cli.console import write_anything
from clmeta.cli.demo import demo
from clmeta.cli.listing import listing
from clmeta.cli.plot import plot
from clmeta.cli.reproduce import reproduce
from clmeta.cli.run import run, sweep
from clmeta.errors import BadArgument, ClmetaError, printable
from clmeta.ground.signals import Terminated, stopping

#: Most letters of an error.
LONGEST_LINE = 2000

app = Group(
    "clmeta",
    help="Continual learning with step sizes that adapt themselves.",
    context_settings=SETTINGS,
    no_args_is_help=True,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=lambda ctx, param, wanted: _show_version(ctx, wanted),
            help="Show the version.",
        )
    ],
)
for each in (demo, run, plot, sweep, best, reproduce, listing):
    app.add_command(each)


def _show_version(ctx: click.Context, wanted: bool) -> None:
    if wanted:
        click.echo(__version__)
        ctx.exit()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error, without a traceback."""
    write_anything()
    code: object = 0
    try:
        with stopping():
            code = app.main(arguments, prog_name="clmeta", standalone_mode=False)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        code = 1
    except (ClmetaError, OSError) as error:
        code = _fail(str(error), 2 if isinstance(error, BadArgument) else 1)
    except (KeyboardInterrupt, click.Abort) as error:
        code = _interrupted(error if isinstance(error, Terminated) else error.__cause__)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = error.exit_code
    except click.ClickException as error:
        code = _fail(_usage(error), error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted(by: BaseException | None) -> int:
    """By a signal other than Ctrl-C the status is 128 and its number, as a shell's is."""
    if isinstance(by, Terminated):
        return _fail(str(by), 128 + by.signum)
    return _fail("interrupted", 130)


def _usage(error: click.ClickException) -> str:
    """A usage error as one line."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "clmeta"
    return f"{error.format_message().rstrip('.')}. See {command} --help."


def _fail(message: str, code: int) -> int:
    said = " ".join(message.split())
    line = printable(f"error: {said if len(said) <= LONGEST_LINE else said[:LONGEST_LINE] + '...'}")
    if sys.stderr.isatty():  # where a person reads it, between words
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    with suppress(OSError):  # the terminal may be gone
        print(line, file=sys.stderr)
    return code
