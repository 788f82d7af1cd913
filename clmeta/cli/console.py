"""Where the command line prints, and the one way in which it lays out lists and tables."""

from __future__ import annotations

import codecs
import io
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clmeta.errors import printable

#: Columns where output is read by a program: a row of a table is a line.
UNBOUNDED = 10_000
#: Most columns of running text.
WIDEST = 100
#: What stands for our own signs where they cannot be written.
PLAIN = {"±": "+-", "━": "=", "─": "-", "…": "~"}
#: Columns round a cell of a table.
PADDING = 3


class _Plain(Console):
    """Shows text as it is: no control code or markup in a name or path does anything."""

    def render_str(self, text: str, *args: Any, **options: Any) -> Text:
        """Text of ours and of others, which may have any characters."""
        return super().render_str(printable(text), *args, **options)


def console(stderr: bool = False) -> Console:
    """Standard output, or standard error; not wrapped where no person reads it."""
    made = _Plain(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = UNBOUNDED
    return made


def write_anything() -> None:
    """Let standard output write what its encoding lacks in other words, and go on."""
    codecs.register_error("clmeta", _in_other_words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="clmeta")


def _in_other_words(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(each) or f"{each!a}"[1:-1] for each in letters), error.end


def say(text: str) -> None:
    """A message on standard error; in a window it is wrapped between words."""
    console(stderr=True).print(text)


def print_paths(what: str, paths: Iterable[str | Path]) -> None:
    """Paths under a heading, one a line, never wrapped."""
    out = console()
    out.print(f"{what}:")
    for path in paths:
        out.print(f"  {path}", soft_wrap=True)


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first column is text and whose others are numbers.

    Where the window is too narrow for it a row takes several lines; no word is broken.
    """
    out, rows = console(), list(rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0)
    for row in rows:
        table.add_row(*row)
    columns = list(zip(headings, *rows, strict=True))
    parts = [[part for cell in columns[0] for part in cell.split()]]
    parts += [[line for cell in column for line in cell.split("\n")] for column in columns[1:]]
    if sum(max(map(len, each)) + PADDING for each in parts) <= out.width:
        out.print(table)
        return
    out.print(title, style="bold")
    for first, *others in rows:
        out.print(f"\n{first}")
        for heading, cell in zip(headings[1:], others, strict=True):
            out.print(f"    {' '.join(heading.split())}: {cell}")
    out.print()


def write_entries(
    formatter: click.HelpFormatter, rows: Sequence[tuple[str, str]], longest: int = 0
) -> None:
    """Names with what they mean: beside each other, or below where that leaves little room.

    Args:
        formatter: what writes them.
        rows: names and meanings.
        longest: letters of the longest name of all lists that are to be aligned.
    """
    most = 28 if formatter.width >= 90 else 22 if formatter.width >= 70 else 6
    indent = " " * formatter.current_indent
    column = min(max(longest, *(len(name) for name, _ in rows)) + 2, most)
    wrap = textwrap.TextWrapper(
        formatter.width - len(indent) - column, break_long_words=False, break_on_hyphens=False
    )
    for name, text in rows:
        lines = wrap.wrap(text) or [""]
        first = "" if len(name) + 2 > column else lines.pop(0)
        for start, line in [(name, first), *(("", line) for line in lines)]:
            formatter.write(f"{indent}{start:{column}}{line}".rstrip() + "\n")


def print_entries(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A list of names with what they mean, as help shows options."""
    formatter = click.HelpFormatter(max_width=min(WIDEST, console().width))
    formatter.write(f"{title}\n")
    formatter.indent()
    write_entries(formatter, rows)
    click.echo(printable(formatter.getvalue()))
