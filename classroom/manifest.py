"""Which files a handout has, with the SHA-256 of each: what was given out can be told from what was handed in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from minigpt.errors import InputError

MANIFEST = "MANIFEST.json"
SCHEMA = 1


def write(tree: Path) -> None:
    """Write the manifest of all files below `tree`."""
    paths = sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {path: sha256(tree / path) for path in paths}
    (tree / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "files": files}, indent=1) + "\n", encoding="utf-8")


def read(tree: Path) -> dict[str, str]:
    """Path → SHA-256 of every file that was given out.

    Raises
    ------
    InputError
        If there is no manifest, or none that can be read.
    """
    path = tree / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except FileNotFoundError:
        raise InputError(f"{path} is missing: this is no handout") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def handout_hash(tree: Path) -> str:
    """One hash for the whole handout: that of its manifest."""
    read(tree)
    return sha256(tree / MANIFEST)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
