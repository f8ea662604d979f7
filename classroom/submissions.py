"""Taking in what students sent: folders and zips that nobody has read, under the names that an LMS gives them.

Nothing is unpacked as a whole. A submission is listed; a listing with anything in it that no honest one holds (a
link, a pipe, a path that leads out, more than a course's files can be) rejects the submission with the reason; and of
the rest only the graded files are copied, each read once. From then on the copy is what counts: it is graded, and its
SHA-256 stands in the report.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from classroom.fill import KEPT_SUFFIX
from classroom.reports.clean import clean_line
from minigpt.errors import InputError

SKIPPED = frozenset(
    (
        *("__MACOSX", "__pycache__", ".git", ".hg", ".idea", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache"),
        *(".ruff_cache", ".venv", ".vscode", "node_modules", "venv"),
    )
)
"""Folders that are not looked into: tools fill them, links and thousands of files included."""


class Rejected(Exception):
    """A submission that is not taken in; the message is the reason."""


@dataclass(frozen=True)
class Limits:
    """How much a submission may hold; generous for a copy of the handout with a student's own files.

    Attributes
    ----------
    graded_bytes : int
        Of one graded file.
    total_bytes : int
        Of all files, unpacked; of a zip, also packed.
    files : int
    depth : int
        Folders in folders.
    """

    graded_bytes: int = 1_000_000
    total_bytes: int = 200_000_000
    files: int = 5_000
    depth: int = 30


@dataclass(frozen=True)
class Found:
    """One submission as it lies in the teacher's folder.

    Attributes
    ----------
    name : str
        Name of the folder or file; of several files that belong together, of the first.
    paths : tuple of Path
        One folder, one zip, or one or more Python files.
    column : str
        Which column of the class list `owner` is to be found in; empty if any may be.
    owner : str
        Who sent it, as the name says.
    attempt : int
        Number that grows from one submission of a student to the next, where the name has one.
    sent : datetime, optional
        Time in the name, with no time zone.
    marked_late : bool
        Whether the LMS wrote so into the name.
    """

    name: str
    paths: tuple[Path, ...]
    column: str
    owner: str
    attempt: int = 0
    sent: datetime | None = None
    marked_late: bool = False


@dataclass
class Taken:
    """A frozen copy.

    Attributes
    ----------
    tree : Path
        Folder that holds the graded files found, under their names in the course, and nothing else.
    sha256 : str
        Of names and contents of the graded copy.
    files : list of str
    ignored : list of str
        Files that the course does not know; they are never read.
    notes : list of str
        What the student should know: missing, renamed or badly encoded files. Cleaned.
    """

    tree: Path
    sha256: str
    files: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------ who sent what

_CANVAS = re.compile(r"(?P<name>[^_]+)_(?P<late>LATE_)?(?P<owner>\d+)_(?P<attempt>\d+)_(?P<file>.+)", re.DOTALL)
_MOODLE = re.compile(r"(?P<name>.+)_(?P<owner>\d+)_assignsubmission_(?:file|onlinetext)(?P<file>_.*)?", re.DOTALL)
_BLACKBOARD = re.compile(
    r".+?_(?P<owner>[^_]+)_attempt_(?P<sent>\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d)(?P<file>[_.].*)?", re.DOTALL
)


def find(directory: str | Path) -> tuple[list[Found], list[str]]:
    """Find the submissions in a folder.

    Understood are ``id/`` and ``id.zip``, and the names of files and folders in what Canvas
    (``lovelaceada_LATE_1815_77_layernorm.py``), Moodle (``Ada Lovelace_1815_assignsubmission_file_``) and Blackboard
    (``Lesson 7_ada_attempt_2026-10-02-23-59-00.zip``) let a teacher download.

    Parameters
    ----------
    directory : path

    Returns
    -------
    found : list of Found
        In the order of their names.
    left : list of str
        What else lies there, with the reason why it is no submission. Cleaned.

    Raises
    ------
    InputError
        If there is no such folder.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"There is no folder of submissions at {clean_line(directory)!r}.")
    found: list[Found] = []
    loose: dict[tuple[str, str], list[Found]] = {}
    left = []
    for path in sorted(directory.iterdir()):
        name, mode = path.name, path.lstat().st_mode
        if name in SKIPPED or name.startswith("."):
            continue
        if stat.S_ISDIR(mode):
            found.append(_named(name, path))
        elif not stat.S_ISREG(mode):
            left.append(f"{clean_line(name)}: {_kind(mode)}, neither a folder nor a file")
        elif name.lower().endswith(".zip"):
            found.append(_named(name, path))
        elif name.lower().endswith(".py"):
            one = _named(name, path)
            loose.setdefault((one.column, one.owner), []).append(one)
        else:
            left.append(f"{clean_line(name)}: neither a folder, a zip nor a Python file")
    for files in loose.values():
        last = max(files, key=lambda f: (f.sent or datetime.min, f.attempt))
        paths = tuple(p for f in files for p in f.paths)
        late = any(f.marked_late for f in files)
        found.append(Found(files[0].name, paths, last.column, last.owner, last.attempt, last.sent, late))
    return sorted(found, key=lambda f: f.name), left


def _named(name: str, path: Path) -> Found:
    if match := _CANVAS.fullmatch(name):
        late = match["late"] is not None
        return Found(name, (path,), "canvas_id", match["owner"], int(match["attempt"][:18]), None, late)
    if match := _MOODLE.fullmatch(name):
        return Found(name, (path,), "moodle_id", match["owner"])
    if match := _BLACKBOARD.fullmatch(name):
        try:
            sent = datetime.strptime(match["sent"], "%Y-%m-%d-%H-%M-%S")
        except ValueError:
            sent = None
        return Found(name, (path,), "", match["owner"], 0, sent)
    return Found(name, (path,), "", re.sub(r"\.(zip|py)$", "", name, flags=re.IGNORECASE))


def received(found: Found, zone: tzinfo = UTC) -> tuple[datetime, str]:
    """When a submission came in, as far as it says so itself, and where that was read.

    Never the time of grading. A teacher who has the LMS's times gives them in the class list; they go before this.

    Parameters
    ----------
    found : Found
    zone : tzinfo
        Time zone of a time in a name.

    Returns
    -------
    time : datetime, with time zone
    source : str
        ``"name"``, ``"timestamp.txt"`` (nbgrader's) or ``"file"`` (time of the last change: a student can set it, and
        some downloads set it to the time of the download).
    """
    if found.sent is not None:
        return found.sent.replace(tzinfo=zone, fold=0), "name"
    first = found.paths[0]
    if first.is_dir() and not first.is_symlink():
        for path in (first / "timestamp.txt", *sorted(first.glob("*/timestamp.txt"))):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 200:
                time = _nbgrader_time(path.read_text("utf-8", "replace").strip())
                if time is not None:
                    return time, "timestamp.txt"
        times = [p.lstat().st_mtime for p in _walk_files(first, Limits())] or [first.lstat().st_mtime]
    else:
        times = [p.lstat().st_mtime for p in found.paths]
    return datetime.fromtimestamp(min(max(times), 4e9), UTC), "file"


def _nbgrader_time(text: str) -> datetime | None:
    """nbgrader writes ``2026-10-02 21:59:00.123 UTC``; the zone is UTC or a name like America/Los_Angeles."""
    time, _, name = text.rpartition(" ")
    try:
        return datetime.fromisoformat(time).replace(tzinfo=ZoneInfo(name))
    except (ValueError, ZoneInfoNotFoundError, OSError):
        return None


def _walk_files(folder: Path, limits: Limits) -> Iterator[Path]:
    """Regular files of a folder that may hold anything; as many as the limits allow."""
    try:
        yield from (entry.path for entry in _list_folder(folder, limits))
    except Rejected:
        return


# ------------------------------------------------------------------------------------------------ what is in it


@dataclass(frozen=True)
class _Entry:
    """A regular file of a submission: its path with /, its size, and where its bytes are."""

    name: str
    size: int
    path: Path
    info: zipfile.ZipInfo | None = None


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a pipe (FIFO)"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return name
    return "of an unknown kind"


def _check_regular(name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Rejected(f"{clean_line(name)} is {_kind(status.st_mode)}; send plain files only")
    if status.st_nlink > 1:
        raise Rejected(f"{clean_line(name)} is a hard link; send plain files only")


def _list_folder(folder: Path, limits: Limits) -> list[_Entry]:
    entries: list[_Entry] = []
    total = seen = 0
    todo = [("", folder, 0)]
    while todo:
        prefix, place, depth = todo.pop()
        if depth > limits.depth:
            raise Rejected(f"its folders lie more than {limits.depth} deep")
        with os.scandir(place) as listing:
            for item in listing:
                seen += 1
                if seen > limits.files:
                    raise Rejected(f"it holds more than {limits.files} files")
                name, status = prefix + item.name, item.stat(follow_symlinks=False)
                if item.name in SKIPPED:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    todo.append((name + "/", Path(item.path), depth + 1))
                    continue
                _check_regular(name, status)
                total += status.st_size
                entries.append(_Entry(name, status.st_size, Path(item.path)))
                _check_total(total, limits)
    return sorted(entries, key=lambda entry: entry.name)


def _check_total(total: int, limits: Limits) -> None:
    if total > limits.total_bytes:
        raise Rejected(f"it holds {_size(total)} or more; {_size(limits.total_bytes)} are allowed")


def _size(n: int) -> str:
    for name, unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= unit:
            return f"{n / unit:.3g} {name}"
    return f"{n} bytes"


def _directory_bytes(file: BinaryIO, length: int) -> int:
    """Bytes of a zip's list of contents, as its last record says; zipfile reads all of it before one can look."""
    file.seek(max(0, length - 65_557))
    tail = file.read()
    at = len(tail) - 22
    if at < 0 or tail[at : at + 4] != b"PK\5\6" or tail[-2:] != b"\0\0":
        at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise Rejected("it is not a zip that can be read")
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise Rejected("it is a zip of the large kind (zip64), which no submission needs")
    return int(struct.unpack_from("<L", tail, at + 12)[0])


def _list_zip(path: Path, archive: zipfile.ZipFile, limits: Limits) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    total = 0
    infos = archive.infolist()
    if len(infos) > limits.files:
        raise Rejected(f"it holds more than {limits.files} files")
    for info in infos:
        name = info.orig_filename.replace("\\", "/")
        parts = name.split("/")
        if "\0" in name or name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts:
            raise Rejected(f"the path {clean_line(info.orig_filename)!r} in it leads out of the submission")
        if len(parts) > limits.depth:
            raise Rejected(f"its folders lie more than {limits.depth} deep")
        if name.endswith("/") or not SKIPPED.isdisjoint(parts):
            continue
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
            raise Rejected(f"{clean_line(name)} is {_kind(mode)}; send plain files only")
        if info.flag_bits & 1:
            raise Rejected(f"{clean_line(name)} is encrypted")
        total += info.file_size
        name = "/".join(part for part in parts if part not in ("", "."))
        if name in entries:
            raise Rejected(f"it holds {clean_line(name)} twice")
        entries[name] = _Entry(name, info.file_size, path, info)
    if total > limits.total_bytes:
        raise Rejected(f"it unpacks to {_size(total)}; {_size(limits.total_bytes)} are allowed")
    return sorted(entries.values(), key=lambda entry: entry.name)


def _read_file(entry: _Entry, most: int) -> bytes:
    """Read at most `most` bytes of a file, which must still be what it was when it was listed."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(entry.path, flags)
    except OSError as error:
        raise Rejected(f"{clean_line(entry.name)} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        _check_regular(entry.name, os.fstat(descriptor))
        return file.read(most)


_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, struct.error, RuntimeError)


def _contents(found: Found, limits: Limits, wanted: Sequence[str]) -> tuple[dict[str, bytes], list[str], list[str]]:
    """Bytes of the wanted files, names of all files, and what to tell the student about them."""
    paths = found.paths
    if len(paths) == 1 and paths[0].is_dir() and not paths[0].is_symlink():
        entries = _list_folder(paths[0], limits)
        zips = [entry for entry in entries if entry.name.lower().endswith(".zip")]
        if len(zips) == 1 and not any(entry.name.endswith(".py") for entry in entries):
            paths = (zips[0].path,)  # a folder that an LMS made around what the student sent
        else:
            return _choose(entries, wanted, lambda entry: _read_file(entry, limits.graded_bytes + 1), limits)
    if not paths[0].name.lower().endswith(".zip"):
        entries = []
        for path in paths:
            status = path.lstat()
            _check_regular(path.name, status)
            match = _CANVAS.fullmatch(path.name) or _MOODLE.fullmatch(path.name) or _BLACKBOARD.fullmatch(path.name)
            name = (match["file"] or "").lstrip("_") if match else path.name
            entries.append(_Entry(name or path.name, status.st_size, path))
        return _choose(entries, wanted, lambda entry: _read_file(entry, limits.graded_bytes + 1), limits)

    status = paths[0].lstat()
    _check_regular(paths[0].name, status)
    _check_total(status.st_size, limits)
    data = BytesIO(_read_file(_Entry(paths[0].name, status.st_size, paths[0]), limits.total_bytes))
    if _directory_bytes(data, len(data.getbuffer())) > 400 * limits.files:
        raise Rejected(f"it holds more than {limits.files} files")
    try:
        with zipfile.ZipFile(data) as archive:

            def read(entry: _Entry) -> bytes:
                assert entry.info is not None
                if entry.info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise Rejected(f"{clean_line(entry.name)} is packed by a method other than deflate")
                with archive.open(entry.info) as file:
                    return file.read(limits.graded_bytes + 1)

            return _choose(_list_zip(paths[0], archive, limits), wanted, read, limits)
    except _BAD_ZIP as error:
        raise Rejected(f"it is not a zip that can be read: {clean_line(error)}") from None


def _plain(name: str) -> str:
    """A file's name without what browsers and Canvas add to a second copy: gelu (1).py, gelu-2.py, gelu - Copy.py."""
    return re.sub(r"( ?\(\d+\)|-\d+| - copy| copy)+(?=\.py$)", "", name.rsplit("/", 1)[-1].lower())


def _choose(
    entries: Sequence[_Entry], wanted: Sequence[str], read: Callable[[_Entry], bytes], limits: Limits
) -> tuple[dict[str, bytes], list[str], list[str]]:
    """Find each wanted file: in the place where most of them lie together, else alone under its own name."""
    names = {entry.name: entry for entry in entries}
    votes: dict[str, int] = {}
    for name in names:
        for file in wanted:
            if name == file or name.endswith("/" + file):
                prefix = name[: len(name) - len(file)]
                votes[prefix] = votes.get(prefix, 0) + 1
    root = min(votes, key=lambda prefix: (-votes[prefix], prefix.count("/"), prefix), default="")
    chosen = {file: root + file for file in wanted if root + file in names}

    sources = [name for name in names if name.endswith(".py")]
    if len(wanted) == len(sources) == 1 and not chosen and not _plain(sources[0]).startswith("lesson_"):
        chosen = {wanted[0]: sources[0]}  # lou.py, and nothing else; lesson_03….py would be another lesson's

    notes = [f"a second copy in {clean_line(p)} is not read" for p in sorted(votes) if p != root]
    notes += [
        f"{file} was taken from {clean_line(name)!r}" for file, name in chosen.items() if _plain(name) != _plain(file)
    ]
    for file in wanted:
        if file in chosen:
            continue
        base = file.rsplit("/", 1)[-1]
        alone = [name for name in names if _plain(name) == base.lower() and name not in chosen.values()]
        if len(alone) == 1:
            chosen[file] = alone[0]
            notes.append(f"{file} was taken from {clean_line(alone[0])!r}")
            continue
        if alone:
            notes.append(f"{file} is missing, and which of these it is cannot be told: {_listed(alone)}")
            continue
        near = [
            n
            for n in sources
            if n not in chosen.values() and difflib.get_close_matches(n.rsplit("/", 1)[-1].lower(), [base], 1, 0.7)
        ]
        notes.append(f"{file} is missing" + (f"; there is {_listed(near)}, which is not read" if near else ""))

    contents = {}
    for file, name in chosen.items():
        data = read(names[name])
        if len(data) > limits.graded_bytes:
            raise Rejected(f"{file} holds more than {_size(limits.graded_bytes)}")
        contents[file] = data
    taken = set(chosen.values())
    others = [name.removeprefix(root) for name in names if name not in taken]
    return contents, others, notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(clean_line(name)) for name in sorted(names)[:5])


def encoding_note(file: str, data: bytes) -> str:
    """What keeps Python from reading a source file as text; empty if nothing does. A BOM and CRLF do not."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"{file} is saved as UTF-16; save it as UTF-8"
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
        text = data.decode(encoding)
    except SyntaxError as error:
        return f"{file} is not UTF-8: {clean_line(error.msg)}; save it as UTF-8"
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"{file}, line {line}: byte 0x{data[error.start]:02x} is not {error.encoding}; save the file as UTF-8"
    return f"{file}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}: a NUL character" if "\0" in text else ""


def take(
    found: Found,
    wanted: Sequence[str],
    destination: Path,
    known: Collection[str] = (),
    limits: Limits = Limits(),
) -> Taken:
    """Copy the graded files of a submission.

    Parameters
    ----------
    found : Found
    wanted : sequence of str
        Graded files, as paths in the course: ``"kernels/gelu.py"``.
    destination : Path
        A folder that is made, or emptied of an earlier copy.
    known : collection of str
        Paths of the course's other files: that a submission holds them too needs no word.
    limits : Limits

    Returns
    -------
    taken : Taken

    Raises
    ------
    Rejected
        With the reason, in words for the student, also where no graded file is in it: nothing that was read is not 0
        points. Nothing is left in `destination` then.
    """
    if destination.exists():
        shutil.rmtree(destination)
    try:
        contents, others, notes = _contents(found, limits, wanted)
    except OSError as error:
        raise Rejected(f"it cannot be read: {clean_line(error.strerror or error)}") from None
    if not contents:
        near = next((f"; {note}" for note in notes if "which" in note), "")
        raise Rejected(f"no graded file of this lesson is in it{near}")
    destination.mkdir(parents=True)
    digest = hashlib.sha256()
    for file in sorted(contents):
        data = contents[file]
        digest.update(f"{file}\0{len(data)}\0".encode() + data)
        path = destination / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if note := encoding_note(file, data):
            notes.append(note)
    ignored = sorted(clean_line(name) for name in others if name not in known and KEPT_SUFFIX not in name)
    return Taken(destination, digest.hexdigest(), sorted(contents), ignored, notes)
