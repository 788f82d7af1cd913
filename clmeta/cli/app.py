"""The command line: ``clmeta demo | run | plot | sweep | best | reproduce | list``.

Nothing heavy is imported before a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from clmeta._version import __version__
from clmeta.cli import options as o
from clmeta.cli.reproduce import reproduce
from clmeta.cli.run_options import given_options, with_run_options
from clmeta.cli.sweep import best, sweep
from clmeta.errors import BadArgument, ClmetaError

app = typer.Typer(
    name="clmeta",
    help="Continual learning with step sizes that adapt themselves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Kind(str, Enum):
    """What `clmeta list` can list."""

    RULES = "rules"
    BLOCKS = "blocks"
    STREAMS = "streams"
    DATASETS = "datasets"
    MODELS = "models"
    STRATEGIES = "strategies"
    PLOTS = "plots"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for runs and figures.")
    ] = Path("demo"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Runs at a time.", min=1)] = 2,
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0-2 or 0,1,7-9.")] = "0-2",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the runs of an earlier demo.")
    ] = False,
) -> None:
    """Ten tasks of real digits, fixed against adaptive step sizes, in about a minute."""
    from clmeta.cli.demo import run_demo
    from clmeta.runs.parse import parse_seeds

    run_demo(output, seeds=parse_seeds(seeds), processes=jobs, overwrite=overwrite)


@app.command()
@with_run_options
def run(
    config: o.Config = None,
    seeds: o.Seeds = None,
    output: o.Output = None,
    jobs: o.Jobs = 1,
    overwrite: o.Overwrite = False,
    skip_finished: o.SkipFinished = False,
    **given: Any,
) -> None:
    """Learn online from a stream and record every step into run folders."""
    from clmeta.cli.launch import launch
    from clmeta.runs.parse import parse_seeds

    launch(
        config,
        given_options(given),
        seeds=None if seeds is None else parse_seeds(seeds),
        output=output,
        processes=jobs,
        overwrite=overwrite,
        skip_finished=skip_finished,
    )


@app.command()
def plot(
    runs: Annotated[list[str], typer.Argument(help="Run folders, folders of them, or globs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures.")] = Path(
        "figures"
    ),
    plots: Annotated[
        list[str] | None,
        typer.Option("--plot", "-p", help="Only this one; see clmeta list plots. Repeatable."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="png, pdf or svg. Repeatable. Default: png and pdf."),
    ] = None,
    every: Annotated[int, typer.Option(help="Read one step in so many, for long runs.", min=1)] = 1,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Include what unfinished runs recorded.")
    ] = False,
) -> None:
    """Draw step sizes and accuracies of finished runs, averaged over seeds."""
    from clmeta.cli.launch import draw

    draw(runs, output, plots, formats or ["png", "pdf"], every=every, unfinished=unfinished)


app.command()(sweep)
app.command()(best)
app.command()(reproduce)


@app.command("list")
def list_(
    kind: Annotated[Kind | None, typer.Argument(help="Only these.", show_default="all")] = None,
) -> None:
    """Show registered rules, blocks, streams, data sets, models, strategies and plots."""
    from clmeta.cli.listing import print_listing

    print_listing([kind.value] if kind else [each.value for each in Kind])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error, without a traceback."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        code = 1
    except (ClmetaError, OSError) as error:
        code = _fail(str(error), 2 if isinstance(error, BadArgument) else 1)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted", 130)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        code = getattr(error, "exit_code", 2)
        if error.format_message():  # nothing to say after the help was shown
            _fail(_usage(error), code)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> str:
    """A usage error of typer's as one line."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "clmeta"
    return f"{error.format_message().rstrip('.')}. See {command} --help."


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
