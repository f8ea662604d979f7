"""Whole files or none: writing under a temporary name, renaming into place, and what killed writers leave behind.

A file comes into being under a temporary name in its own folder, is forced to the disk, and is then renamed. Whoever
opens the final name finds the old content or the new, never a mixture, whenever the process is killed.
"""

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from minigpt.errors import InputError, RunError

PathLike = str | os.PathLike[str]


# --- Writing: a file -------------------------------------------------------------------------------

# What can befall any write to a file that is already open, with the words for it.
_STORAGE_FAULTS = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota used up",
    errno.EFBIG: "file size limit reached",
    errno.EROFS: "file system is read-only",
    errno.EIO: "disk error",
}
_FAULTS = {
    **_STORAGE_FAULTS,
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


def write_atomic(path: PathLike, data: bytes) -> None:
    """Write a whole file: afterwards, or after a crash, it has the old content or the new.

    Parameters
    ----------
    path : path
    data : bytes

    Raises
    ------
    InputError
        If `path` cannot name a file: no such folder, a directory, a device.
    RunError
        If the disk is full or refuses the write; the old file is intact.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` when the block is left without an exception.

    After any exception, from the block or from the disk, `path` is untouched and the temporary file
    is gone. What an earlier process left behind when it was killed is removed too.

    Raises
    ------
    InputError, RunError
        As `write_atomic`.
    """
    path = Path(path)
    with write_faults(path):
        _check_folder(path)
        if path.is_dir():
            raise InputError(f"{path}: cannot write a file, there is a directory of that name")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: cannot write a file in the place of a device or pipe")
    clean_leftovers(path.parent)
    temporary = _temporary_name(path, "tmp")
    with write_faults(path):
        file = open(temporary, "xb")  # noqa: SIM115 (closed below, in two ways)
    try:
        try:
            yield file
        except OSError as error:
            # An error of another kind is about something else that the block does.
            if error.errno in _STORAGE_FAULTS:
                raise _write_error(path, error) from error
            raise
        with write_faults(path):
            flush_to_disk(file)
            file.close()
            os.replace(temporary, path)
    except BaseException:
        # The first error is the one to report: on a full disk, closing fails once more.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path)


def flush_to_disk(file: BinaryIO) -> None:
    """Wait until the disk has the bytes."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the name `path` itself survive a power failure."""
    if os.name != "posix":
        return  # elsewhere a directory cannot be opened, and the system does this on its own
    try:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        # Some network file systems know no such request, and a folder may be writable but not
        # readable: the rename is then as safe as it gets.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise RunError(f"{path} is written, but the disk did not confirm it: {error.strerror}") from error


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")


def _write_error(path: Path, error: OSError) -> RunError:
    reason = _FAULTS.get(error.errno or 0, error.strerror or type(error).__name__)
    return RunError(f"{reason} while writing {path}; nothing was changed")


@contextmanager
def write_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _write_error(path, error) from error


# --- Temporary names, and what killed processes leave behind ---------------------------------------

# A temporary is `.<final name>.<host>-<pid>-<process>-<count>.<kind>`. The third part tells a process
# from an earlier one that had the same pid.
_LEFTOVER = re.compile(r"\.(.+)\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-\d+\.(tmp|old)", re.DOTALL)
_HOST = hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:8]
_PROCESS = secrets.token_hex(4)
_COUNT = itertools.count()


def _temporary_name(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{_PROCESS}-{next(_COUNT)}.{kind}")


def clean_leftovers(folder: PathLike) -> None:
    """Remove what processes of this machine that are no more left half-written in `folder`.

    A directory that `atomic_directory` had moved aside, without its successor having taken the place,
    is put back. Every write cleans the folder it goes to; a reader need call this only before it
    looks which directories there are.
    """
    # Another process may clean at the same moment, and files of another user may be out of reach:
    # leftovers are litter, never a reason to fail.
    with suppress(OSError):
        for leftover in sorted(Path(folder).iterdir()):
            match = _LEFTOVER.fullmatch(leftover.name)
            if match is None:
                continue
            name, host, pid, process, kind = match.groups()
            if host != _HOST or _is_running(int(pid), process):
                continue
            with suppress(OSError):
                final = leftover.with_name(name)
                if kind == "old" and not final.exists():
                    os.rename(leftover, final)
                else:
                    _discard(leftover)


def _is_running(pid: int, process: str) -> bool:
    """Whether the process that made a temporary may still be at work on it."""
    if pid == os.getpid():
        return process == _PROCESS
    if sys.platform == "win32":
        import ctypes

        # os.kill(pid, 0) would be Ctrl-C there. 0x1000: the right to ask, 259: still active.
        kernel32 = ctypes.windll.kernel32
        handle = kernel32.OpenProcess(0x1000, False, pid)
        if not handle:
            return False
        code = ctypes.c_ulong()
        kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel32.CloseHandle(handle)
        return code.value == 259
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is there, and belongs to another user
    return True


def _discard(leftover: Path) -> None:
    """Delete a temporary file or directory."""
    if leftover.is_dir():
        if leftover.name.endswith(".old"):
            # Half deleted, it must not look like something to put back.
            leftover = leftover.rename(leftover.with_name(leftover.name[: -len("old")] + "tmp"))
        shutil.rmtree(leftover)
    else:
        leftover.unlink()


# --- Writing: a directory --------------------------------------------------------------------------


@contextmanager
def atomic_directory(path: PathLike) -> Iterator[Path]:
    """Fill a temporary directory that becomes `path` when the block is left without an exception.

    A directory that is already there is replaced. POSIX has no single step for that: if the process
    dies between the two renames, `path` is missing until `clean_leftovers` of its folder, or the next
    write to it, puts the old one back.

    Yields
    ------
    Path
        A hidden directory beside `path` to write into.

    Raises
    ------
    InputError, RunError
        As `write_atomic`.
    """
    path = Path(os.path.realpath(path))
    with write_faults(path):
        _check_folder(path)
        clean_leftovers(path.parent)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: cannot write a directory, there is a file of that name")
    temporary = _temporary_name(path, "tmp")
    with write_faults(path):
        temporary.mkdir()
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno in _STORAGE_FAULTS:
                raise _write_error(path, error) from error
            raise
        with write_faults(path):
            _sync_tree(temporary)
            _swap_in(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path)


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            file = os.open(Path(folder, name), os.O_RDWR)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        sync_folder(Path(folder, "all of it"))


def _swap_in(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    aside = _temporary_name(path, "old")
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(aside, path)
        raise
    # Whatever cannot be deleted now is litter for the next write.
    with suppress(OSError):
        _discard(aside)


def remove_directory(path: PathLike) -> None:
    """Delete a directory so that a crash leaves it whole or gone.

    Raises
    ------
    RunError
        If the system refuses.
    """
    path = Path(path)
    condemned = _temporary_name(path, "tmp")
    try:
        os.rename(path, condemned)
        shutil.rmtree(condemned)
    except OSError as error:
        reason = _FAULTS.get(error.errno or 0, error.strerror or type(error).__name__)
        raise RunError(f"{reason} while deleting {path}") from error


# --- Reading ---------------------------------------------------------------------------------------


@contextmanager
def read_faults(path: Path) -> Iterator[None]:
    """Say what is wrong with a file that cannot be opened or read."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a directory, not a file") from error
    except PermissionError as error:
        raise InputError(f"{path}: permission denied") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or type(error).__name__}") from error


def sha256_of_file(path: PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    path = Path(path)
    with read_faults(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: PathLike) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises
    ------
    InputError
        If it is missing, not UTF-8, not JSON, not an object, or names a key twice.
    """
    path = Path(path)
    with read_faults(path):
        data = path.read_bytes()
    return parse_json(data, str(path))


def write_json(path: PathLike, values: dict[str, Any]) -> None:
    """Write an object as JSON, atomically, with its keys sorted: the same content, the same bytes.

    Raises
    ------
    InputError, RunError
        As `write_atomic`.
    """
    write_atomic(path, json_bytes(values))


def json_bytes(values: dict[str, Any]) -> bytes:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


class _DuplicateKey(ValueError):
    pass


def _object_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys; here neither is believed."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _DuplicateKey(f"has the key {key!r} twice")
        values[key] = value
    return values


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """`what` is the beginning of the message."""
    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=_object_once)
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{what}: not JSON: {error.msg} at character {error.pos}") from error
    except _DuplicateKey as error:
        raise InputError(f"{what}: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise InputError(f"{what}: not JSON that can be read") from error
    if not isinstance(values, dict):
        raise InputError(f"{what}: must be a JSON object, got {type(values).__name__}")
    return values
