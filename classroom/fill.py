"""Solved bodies from a teacher's pack into a student's files, so that one lesson does not hold up the next.

What a student has written stays, unless it is asked for by name or with ``--all``; then it is kept beside the file.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from classroom import source
from minigpt.errors import InputError
from minigpt.files import write_atomic

SCHEMA = 1
PACK_FILE = "pack.json"
MAX_BYTES = 8 << 20
KEPT_SUFFIX = ".before-fill"


@dataclass(frozen=True)
class Solved:
    """One function of a pack.

    Attributes
    ----------
    id : str
        Of the exercise.
    function : str
        ``"package.module:function"``.
    stub, solution : str
        What the function does in the handout, and solved: its lines after the docstring, dedented.
    """

    id: str
    function: str
    stub: str
    solution: str


def write_pack(path: Path, lesson: int, functions: Collection[Solved]) -> None:
    """Write a pack: a zip with one JSON file.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    content = {"schema": SCHEMA, "lesson": lesson, "functions": [vars(solved) for solved in functions]}
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(PACK_FILE), json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def read_pack(path: Path) -> list[Solved]:
    """Read a pack.

    Raises
    ------
    InputError
        If it is none, or one of another schema.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(PACK_FILE).file_size > MAX_BYTES:
                raise InputError(f"{path}: {PACK_FILE} is larger than {MAX_BYTES} bytes")
            content = json.loads(archive.read(PACK_FILE))
        if content["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {content['schema']}; this program reads schema {SCHEMA}")
        return [Solved(**entry) for entry in content["functions"]]
    except FileNotFoundError:
        raise InputError(f"there is no pack {path}") from None
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no pack of solutions: {error}") from None


def fill(root: Path, pack: Collection[Solved], only: Collection[str] = (), everything: bool = False) -> Iterator[str]:
    """Fill solved bodies into the files below `root`, one line of report for each function.

    Parameters
    ----------
    root : path
        The student's repository.
    pack : collection of Solved
    only : collection of str
        Ids of the exercises to fill, even those that the student has begun; empty for all that are untouched.
    everything : bool
        Fill all, even those that the student has begun.

    Yields
    ------
    line : str
        Id, function and what was done.

    Raises
    ------
    InputError
        For an id that is not in the pack, and a file that is missing or cannot be parsed; nothing is written then.
    """
    unknown = set(only) - {solved.id for solved in pack}
    if unknown:
        ids = ", ".join(solved.id for solved in pack)
        raise InputError(f"exercise {min(unknown)} is not in this pack; it has {ids}")
    texts: dict[str, str] = {}
    given: dict[str, str] = {}
    kept: dict[str, str] = {}
    report = []
    for solved in pack:
        if only and solved.id not in only:
            continue
        path = source.path_of(solved.function)
        name = solved.function.split(":")[1]
        if path not in texts:
            texts[path] = given[path] = _read(root, path)
        now = source.suite(texts[path], path, name)
        if now is None:
            raise InputError(f"{path}: no function {name}; exercise {solved.id} cannot be filled in")
        if source.same_code(now, solved.solution):
            done = "solved already"
        elif source.same_code(now, solved.stub):
            done = "filled in"
        elif only or everything:
            kept.setdefault(path, _unused(root, path))
            done = f"filled in; yours is in {kept[path]}"
        else:
            report.append(f"{solved.id}  {name}: yours, left as it is")
            continue
        if done != "solved already":
            texts[path] = source.with_suite(texts[path], path, name, solved.solution)
        report.append(f"{solved.id}  {name}: {done}")
    for path, text in texts.items():
        if text != given[path]:
            if path in kept:
                write_atomic(root / kept[path], given[path].encode())
            write_atomic(root / path, text.encode())
    yield from report


def _read(root: Path, path: str) -> str:
    try:
        return (root / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing below {root.resolve()}; run this in the course's folder") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _unused(root: Path, path: str) -> str:
    """A name beside the file under which nothing is kept yet."""
    names = (f"{path}{KEPT_SUFFIX}{'' if n == 1 else f'-{n}'}" for n in itertools.count(1))
    return next(name for name in names if not (root / name).exists())
