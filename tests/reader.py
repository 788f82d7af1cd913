"""Does what a user types, each time in a fresh process, without importing the libraries each time.

``python tests/reader.py MODULE ...`` loads the libraries once. For each line on standard input, the
path of a JSON object, it forks; the new process, a session of its own, does the object's ``steps``
in its ``folder``, with its ``environment``, warnings as errors and no network. The answers are the
process's id and, when it has ended, its exit status. What step i prints is in ``out-i.txt`` and
``err-i.txt`` beside the object. Steps: ``["python", code]``, ``["file", name, text]``,
``["clmeta", *arguments]`` and ``["script", path, *arguments]``.
"""

from __future__ import annotations

import atexit
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
    """One step, as if typed; the search path begins as Python has it then."""
    kind, *words = step
    if kind == "python":
        # A file, since processes that are started afresh import it.
        main.__file__ = str(folder / "typed.py")
        Path(main.__file__).write_text(words[0], encoding="utf-8")
        sys.modules["__main__"], sys.argv, sys.path[0] = main, [main.__file__], str(folder)
        exec(compile(words[0], main.__file__, "exec"), main.__dict__)
    elif kind == "file":
        (folder / words[0]).write_text(words[1], encoding="utf-8")
    elif kind == "clmeta":
        sys.path[0] = str(Path(sys.executable).parent)
        from clmeta.cli import main as clmeta

        clmeta(words)
    else:
        sys.argv, sys.path[0] = words, str((ROOT / words[0]).parent)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def follow(file: Path) -> int:
    """Do all steps; the exit status of the first that fails."""
    os.setsid()
    print(os.getpid(), flush=True)  # from now on it can be ended, with all that it starts
    asked = json.loads(file.read_text(encoding="utf-8"))
    signal.alarm(SECONDS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    socket.socket.connect = _offline  # type: ignore[method-assign]
    warnings.simplefilter("error")
    for action in getattr(sys.modules.get("avalanche_parts"), "IGNORED", ()):
        warnings.filterwarnings("ignore", action.split(":")[1])
    os.environ.update(asked["environment"])
    folder = Path(asked["folder"])
    os.chdir(folder)
    main = types.ModuleType("__main__")
    for number, step in enumerate(asked["steps"]):
        for stream, name in ((1, "out"), (2, "err")):
            said = file.with_name(f"{name}-{number}.txt")
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
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
        raise OSError(f"what users type here must work without a network; tried {address}")
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
                atexit._run_exitfuncs()
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
