"""Small C programs, built once per machine by the C compiler that it has, and kept.

They are plain C without Python's or torch's headers, so building one takes a fraction of a second.
``CC`` names another compiler, ``CLMETA_CACHE`` another folder than ``~/.cache/clmeta``;
``CLMETA_NATIVE=0`` turns them off. A folder in which others could put programs is not used.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
#: Seconds that the compiler may take; that a failure is remembered; after which what a build left
#: behind is nobody's.
LIMIT, REMEMBERED, DEAD = 60, 3600, 600
#: Failures of this process, by key.
_failed: dict[str, str] = {}


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
        CannotBuild: where there is no compiler, or it does not work; that is remembered.
    """
    command = compiler()
    if command is None:
        raise CannotBuild("no C compiler")
    parts = (source, *command, *FLAGS, *NATIVE, platform.platform(), _machine())
    key = _digest("\n".join(parts).encode())
    if key in _failed:
        raise CannotBuild(_failed[key])
    try:
        folder = _own(cache_folder().absolute())
        if folder is not None:
            with suppress(OSError):  # no place to write to, or none to run from
                return _kept(folder, key, command, source)
        with _workplace(Path(tempfile.gettempdir()), "clmeta-") as place:
            return ctypes.CDLL(str(_build(command, source, place)))
    except (CannotBuild, OSError, RuntimeError) as error:  # of these the last: no home
        _failed[key] = str(error)
        raise CannotBuild(str(error)) from error


def declare(library: ctypes.CDLL, name: str, kinds: str) -> Any:
    """A C function that takes long integers (l) and pointers (p) and returns nothing.

    Raises:
        CannotBuild: if the library has none of that name.
    """
    function = getattr(library, name, None)
    if function is None:
        raise CannotBuild(f"the program has no {name}")
    function.argtypes = [{"l": ctypes.c_long, "p": ctypes.c_void_p}[kind] for kind in kinds]
    function.restype = None
    return function


@functools.cache
def _own(folder: Path) -> Path | None:
    """The folder, made where it is not there; None, with a warning, if others could change it."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in (folder, *folder.parents, *folder.resolve().parents, folder.resolve()):
            if not _is_safe(each, shared=each.resolve() != folder.resolve()):
                warnings.warn(
                    f"programs are not kept in {folder}, as others could change {each}; make it "
                    "yours alone, or name another folder with CLMETA_CACHE",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return None
        return folder
    return None


def _is_safe(path: Path, shared: bool = False) -> bool:
    """Whether only the user and root can change a file, or what a folder holds.

    Args:
        shared: a sticky folder will do, as what lies in it can't be replaced by others.
    """
    found = path.stat()
    closed = not found.st_mode & 0o022 or (shared and bool(found.st_mode & stat.S_ISVTX))
    return closed and found.st_uid in (0, os.getuid())


def _kept(folder: Path, key: str, command: list[str], source: str) -> ctypes.CDLL:
    """A program from the cache, built where it is not there."""
    failed = folder / f"{key}.failed"
    if failed.exists() and _is_safe(failed):
        if 0 <= time.time() - failed.stat().st_mtime < REMEMBERED:
            raise CannotBuild(failed.read_text(encoding="utf-8"))
        failed.unlink()
    for kept in folder.glob(f"{key}-*.so"):
        if _is_safe(kept) and kept.stem == f"{key}-{_digest(kept.read_bytes())}":
            return ctypes.CDLL(str(kept))
        kept.unlink()  # half written, or damaged: loading it could end the process
    with _workplace(folder, "build-") as place:
        try:
            built = _build(command, source, place)
        except CannotBuild as error:
            failed.write_text(str(error), encoding="utf-8")
            raise
        kept = folder / f"{key}-{_digest(built.read_bytes())}.so"
        os.replace(built, kept)
    return ctypes.CDLL(str(kept))


@contextmanager
def _workplace(folder: Path, prefix: str) -> Iterator[Path]:
    """A folder to build in; those that killed processes left behind are cleared away."""
    for left in folder.glob(f"{prefix}*"):
        with suppress(OSError):
            found = left.lstat()
            mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if mine and time.time() - found.st_mtime > DEAD:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as place:
        yield Path(place)


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
