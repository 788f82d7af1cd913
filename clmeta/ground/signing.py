"""Bytes that were written by this user, and by nobody else, are known by a signature."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from clmeta.errors import ClmetaError

#: Bytes of a key.
LENGTH = 32


class NotOurs(ClmetaError):
    """Something was not written by this user of this machine, or was changed since."""


def key_file() -> Path:
    """Where the user's key is: ``~/.config/clmeta/key``, or below ``$XDG_CONFIG_HOME``."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "clmeta" / "key"


def sign(content: bytes) -> str:
    """The signature of some bytes by the user's key, which is made on first use.

    Raises:
        NotOurs: where others could read or write the key.
        OSError: where no key can be kept.
    """
    return hmac.new(_key(), content, hashlib.sha256).hexdigest()


def check(content: bytes, signature: str, what: str) -> None:
    """Raise NotOurs, naming what it is, unless the signature is that of `sign`."""
    if not hmac.compare_digest(sign(content), signature):
        raise NotOurs(
            f"{what} was not written by this user here, or was changed since: it holds objects, "
            "which could run any code, so it is not read; start anew, or go on where it was "
            f"written (its key is that machine's {key_file()})"
        )


def _key() -> bytes:
    file = key_file()
    with suppress(FileExistsError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = file.with_name(f".key-{secrets.token_hex(8)}")
        if not file.exists():
            try:
                descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "wb") as stream:
                    stream.write(secrets.token_bytes(LENGTH))
                    stream.flush()
                    os.fsync(descriptor)
                os.link(made, file)  # the first of several processes gives the key to all
            finally:
                made.unlink(missing_ok=True)
    status = file.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise NotOurs(f"{file} can be read or written by others: chmod 600 it, or remove it")
    key = file.read_bytes()
    if len(key) != LENGTH:
        raise NotOurs(f"{file} holds {len(key)} bytes, not a key of {LENGTH}: remove it")
    return key
