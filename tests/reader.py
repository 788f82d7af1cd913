"""A reader of the pages: does what a section shows, each time in a fresh process.

``python tests/reader.py MODULE ...`` loads the libraries once. For each line on standard input, the
path of a JSON list of steps, it forks, does the steps in the file's folder, with warnings as errors
and without a network, and answers with the exit status. What step i printed is in ``said-i.txt``
beside the file. Steps: ``["python", code]``, ``["file", name, text]``, ``["clmeta", *arguments]``
and ``["script", path, *arguments]``.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300
_connect = socket.socket.connect


def do(step: list[str], folder: Path, main: types.ModuleType) -> None:
    """One step, as if typed."""
    kind, *words = step
    if kind == "python":
        # A file, since processes that are started afresh import it.
        main.__file__ = str(folder / "typed.py")
        Path(main.__file__).write_text(words[0], encoding="utf-8")
        sys.modules["__main__"], sys.argv = main, [main.__file__]
        exec(compile(words[0], main.__file__, "exec"), main.__dict__)
    elif kind == "file":
        (folder / words[0]).write_text(words[1], encoding="utf-8")
    elif kind == "clmeta":
        from clmeta.cli import main as clmeta

        clmeta(words)
    else:
        sys.argv, sys.path[0] = words, str((ROOT / words[0]).parent)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def follow(file: Path) -> int:
    """Do a section's steps; the exit status of the first that fails."""
    signal.alarm(SECONDS)
    socket.socket.connect = _offline  # type: ignore[method-assign]
    warnings.simplefilter("error")
    for action in getattr(sys.modules.get("avalanche_parts"), "IGNORED", ()):
        warnings.filterwarnings("ignore", action.split(":")[1])
    folder = file.parent / "here"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    main = types.ModuleType("__main__")
    for number, step in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        said = os.open(file.parent / f"said-{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        status: Any = 0
        try:
            do(step, folder, main)
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        if status:
            return status if isinstance(status, int) else 1
    return 0


def _offline(connection: socket.socket, address: object) -> None:
    if connection.family != socket.AF_UNIX:
        raise OSError(f"what pages show must work without a network; tried {address}")
    _connect(connection, address)


def serve(modules: list[str]) -> None:
    """Load the modules, then follow what comes on standard input until it ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche's libraries complain while they are imported
        for module in modules:
            importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = follow(Path(line.strip()))
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
