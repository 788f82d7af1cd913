"""A file of numbers, text and tensors: whole or absent, and known to be damaged where it is.

A line that says what it is and the checksum of the rest come first, then what ``torch.save`` wrote.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from clmeta._version import __version__
from clmeta.errors import RunFolderError
from clmeta.record.files import write_atomically

#: What the first line begins with; another layout of the rest has another number.
MAGIC, VERSION = "clmeta checkpoint", 1
#: Longer than any first line.
HEAD = 256


class CheckpointWarning(UserWarning):
    """A checkpoint could not be used, and an earlier state is gone on from."""


class Damaged(Exception):
    """Why a file is no whole checkpoint."""


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of numbers, text, lists, dicts and tensors, whole or not at all.

    Raises:
        RunFolderError: if it cannot be written, or its content is of another kind.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getbuffer()
    try:
        torch.load(io.BytesIO(body), weights_only=True, map_location="meta")
    except pickle.UnpicklingError as error:
        kind = str(error).split("Unsupported global: GLOBAL ")[-1].split(" ")[0]
        raise RunFolderError(
            f"cannot write {path}: a part's state holds a {kind}; it must be made of numbers, "
            "text, lists, dicts and tensors"
        ) from None
    first = f"{MAGIC} {VERSION} {__version__} {_checksum(body)}\n".encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot make {path.parent}: {error.strerror}") from error
    write_atomically(path, lambda file: (file.write(first), file.write(body)))


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, on the CPU.

    Raises:
        Damaged: for a file that is not whole.
        RunFolderError: for a whole one of another version, or that cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}; make it readable") from error
    first, newline, body = content[:HEAD].partition(b"\n")
    words = first.decode("ascii", "replace").split()
    if not newline or words[:2] != MAGIC.split() or len(words) != 5:
        raise Damaged("is damaged at its beginning")
    version, by, checksum = words[2:]
    body = content[len(first) + 1 :]
    if _checksum(body) != checksum:
        raise Damaged("is damaged")
    if version != str(VERSION):
        raise RunFolderError(
            f"{path}: a checkpoint of form {version}, written by clmeta {by}; this is {__version__}"
            f", which reads form {VERSION}: go on with that version, or start anew"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle that is none of torch's
            return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Damaged(f"cannot be read ({str(error).splitlines()[0]})") from error


def _checksum(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
