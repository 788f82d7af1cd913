"""Small C programs, built once per machine by the C compiler that it has, and kept.

They are plain C without Python's or torch's headers, so building one takes a fraction of a second.
``CC`` names another compiler, ``CLMETA_CACHE`` another folder than ``~/.cache/clmeta``;
``CLMETA_NATIVE=0`` turns them off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

#: No errno and no traps, so that roots and choices become vector instructions. Not -ffast-math:
#: it would drop the checks for numbers that are not finite, and flush denormals process-wide.
FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fno-fast-math",
    "-fno-math-errno",
    "-fno-trapping-math",
)
#: For this processor; vectors of 64 bytes, where it has them, bring 3 to 8 % (docs/speed.md).
NATIVE = (
    ("-mcpu=native",)
    if platform.machine() in ("arm64", "aarch64")
    else ("-march=native", "-mprefer-vector-width=512")
)
LIMIT = 60


class CannotBuild(Exception):
    """Why there is no program; nothing was changed."""


def compiler() -> list[str] | None:
    """The C compiler's command, or None where there is none or it is turned off."""
    if os.environ.get("CLMETA_NATIVE", "1") == "0" or ctypes.sizeof(ctypes.c_long) != 8:
        return None
    try:
        given = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # an open quotation
        return None
    for command in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    return None


def cache_folder() -> Path:
    """Where built programs are kept."""
    given = os.environ.get("CLMETA_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "clmeta"


@functools.cache
def _machine() -> str:
    """What a program built for this processor depends on; home folders are shared by machines."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


@functools.cache
def load(source: str) -> ctypes.CDLL:
    """The program built from C source, from the cache where it is there.

    Raises:
        CannotBuild: where there is no compiler, or it or the folder does not work.
    """
    command = compiler()
    if command is None:
        raise CannotBuild("no C compiler")
    parts = (source, *command, *FLAGS, *NATIVE, platform.platform(), _machine())
    key = _digest("\n".join(parts).encode())
    try:
        folder = cache_folder()
        for kept in folder.glob(f"{key}-*.so"):
            if kept.stem == f"{key}-{_digest(kept.read_bytes())}":
                return ctypes.CDLL(str(kept))
            kept.unlink()  # half written, or damaged: loading it could end the process
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            built = _build(command, source, Path(place))
            kept = folder / f"{key}-{_digest(built.read_bytes())}.so"
            os.replace(built, kept)
        return ctypes.CDLL(str(kept))
    except (OSError, RuntimeError):  # no home, no place to write to, or none to run from
        pass
    try:
        with tempfile.TemporaryDirectory(prefix="clmeta-") as place:
            return ctypes.CDLL(str(_build(command, source, Path(place))))
    except OSError as error:
        raise CannotBuild(str(error)) from error


def declare(function: Any, kinds: str) -> Any:
    """A C function that takes long integers (l) and pointers (p) and returns nothing."""
    function.argtypes = [{"l": ctypes.c_long, "p": ctypes.c_void_p}[kind] for kind in kinds]
    function.restype = None
    return function


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _build(command: list[str], source: str, folder: Path) -> Path:
    text, built = folder / "program.c", folder / "program.so"
    text.write_text(source, encoding="utf-8")
    said = ""
    for flags in ((*FLAGS, *NATIVE), FLAGS):  # not every compiler knows its own processor
        line = [*command, *flags, str(text), "-o", str(built), "-lm"]
        try:
            done = subprocess.run(
                line, capture_output=True, text=True, errors="replace", timeout=LIMIT
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise CannotBuild(str(error)) from error
        if done.returncode == 0:
            return built
        said = done.stderr.strip()
    raise CannotBuild(said.splitlines()[0] if said else "the C compiler failed")
