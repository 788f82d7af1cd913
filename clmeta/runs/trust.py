"""Which code a file of options may have loaded: none but registered names and torch's optimisers.

What stands in a file may be a stranger's. Any function that can be imported, installed ones too,
would be called with arguments out of the same file, so its modules are loaded only for those who
say that they trust it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from clmeta.errors import bad, require
from clmeta.lookup import is_path

#: Entries of a file whose text names no code.
NOT_CODE = ("name", "method", "output", "data_root", "resolved", "slurm")
#: What a file may name at any time.
HARMLESS = re.compile(r"torch\.optim:[A-Za-z]+")
#: An option of a cluster that can hold no command.
PLAIN = re.compile(r"[\w.,:=/@%+-]*")

Trust = bool | Collection[str]


def check_trusted(argument: str, path: str, content: Mapping[str, Any], trust: Trust) -> None:
    """Refuse a file that names code of its own, unless it is trusted.

    Args:
        argument, path: what messages call the file.
        content: what stands in it.
        trust: True; or the modules that the user named, whose own names it may then use.

    Raises:
        BadArgument: naming the first such entry and what to do.
    """
    if trust is True:
        return
    modules = () if trust is False else trust
    for entry, name in _named(content):
        module, _, rest = name.partition(":")
        if HARMLESS.fullmatch(name) or (module in modules and "." not in rest):
            continue
        mend = (
            f"{entry}={name!r} loads the module {module!r}, which may do anything; if you trust "
            "who wrote the file, give --trust (in Python trust=True)"
        )
        bad(argument, path, mend)
    slurm = content.get("slurm", {})
    for entry, value in slurm.items() if isinstance(slurm, Mapping) else ():
        plain = isinstance(value, (int, float)) or (
            isinstance(value, str) and PLAIN.fullmatch(value) is not None
        )
        mend = f"slurm.{entry} can run commands; if you trust who wrote the file, give --trust"
        require(plain and "python" not in entry, argument, path, mend)


def code_of(options: Mapping[str, Any]) -> set[str]:
    """The code that options of a run name which nobody registered, and modules to import."""
    return {name for _, name in _named(options)}


def names_code(options: Mapping[str, Any]) -> bool:
    """Whether options of a run name such code."""
    return bool(code_of(options))


def _named(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Entries that name code, and what they name: paths anywhere, and all modules to import."""
    for entry, value in content.items():
        if entry in NOT_CODE:
            continue
        whole = entry == "imports"
        waiting = [value]
        while waiting:
            each = waiting.pop()
            if isinstance(each, str) and (whole or is_path(each)):
                yield entry, each
            elif isinstance(each, Mapping):
                if entry in ("run", "grid", "runs"):  # tables of options, as the file itself is
                    yield from _named(each)
                else:
                    waiting += each.values()
            elif isinstance(each, (list, tuple)):
                waiting += each
