"""The secret of a class run: it decides the inputs that a class is graded on."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from classroom.reports.clean import clean_line
from minigpt.errors import InputError

BYTES = 32


def read_secret(path: Path) -> bytes:
    """Read the secret of a run, or make one that only its owner can read.

    Raises
    ------
    InputError
        If the file holds no secret.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        try:
            secret = bytes.fromhex(path.read_text("ascii").strip())
        except (OSError, ValueError):
            secret = b""
        if len(secret) < 16:
            raise InputError(f"{clean_line(path)!r} holds no secret: 32 hexadecimal digits or more.") from None
        return secret
    except OSError as error:
        raise InputError(f"The secret cannot be kept at {clean_line(path)!r}: {error.strerror}.") from None
    secret = secrets.token_bytes(BYTES)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret.hex() + "\n")
    return secret


def seed_id(secret: bytes) -> str:
    """A short name of a secret, which tells two apart and gives neither away."""
    return hashlib.sha256(b"seed id:" + secret).hexdigest()[:12]
