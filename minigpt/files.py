"""Everything that minigpt puts on disk and takes from it: whole files or none, and no damaged ones.

Writing: a file comes into being under a temporary name in its own folder, is forced to the disk, and
is then renamed. Whoever opens the final name finds the old content or the new, never a mixture,
whenever the process is killed.

Reading: a file that is not what it should be raises `InputError` with one line that names the file
and the key; nothing is repaired or passed over in silence.

Models are Hugging Face GPT-2 directories; tensors here are a plain dict of NumPy arrays.
"""

import errno
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import secrets
import shutil
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import threadpoolctl
from safetensors import SafetensorError, safe_open

from minigpt.config import GPTConfig, parameter_shapes
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
    with _write_faults(path):
        _check_folder(path)
        if path.is_dir():
            raise InputError(f"{path}: cannot write a file, there is a directory of that name")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: cannot write a file in the place of a device or pipe")
    clean_leftovers(path.parent)
    temporary = _temporary_name(path, "tmp")
    with _write_faults(path):
        file = open(temporary, "xb")  # noqa: SIM115 (closed below, in two ways)
    try:
        try:
            yield file
        except OSError as error:
            # An error of another kind is about something else that the block does.
            if error.errno in _STORAGE_FAULTS:
                raise _write_error(path, error) from error
            raise
        with _write_faults(path):
            _flush(file)
            file.close()
            os.replace(temporary, path)
    except BaseException:
        # The first error is the one to report: on a full disk, closing fails once more.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path)


def _flush(file: BinaryIO) -> None:
    """Wait until the disk has the bytes."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
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
def _write_faults(path: Path) -> Iterator[None]:
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
    with _write_faults(path):
        _check_folder(path)
        clean_leftovers(path.parent)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: cannot write a directory, there is a file of that name")
    temporary = _temporary_name(path, "tmp")
    with _write_faults(path):
        temporary.mkdir()
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno in _STORAGE_FAULTS:
                raise _write_error(path, error) from error
            raise
        with _write_faults(path):
            _sync_tree(temporary)
            _swap_in(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path)


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            file = os.open(Path(folder, name), os.O_RDWR)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        _sync_folder(Path(folder, "all of it"))


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
def _read_faults(path: Path) -> Iterator[None]:
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
    with _read_faults(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: PathLike) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises
    ------
    InputError
        If it is missing, not UTF-8, not JSON, not an object, or names a key twice.
    """
    path = Path(path)
    with _read_faults(path):
        data = path.read_bytes()
    return _parse_json(data, str(path))


def write_json(path: PathLike, values: dict[str, Any]) -> None:
    """Write an object as JSON, atomically, with its keys sorted: the same content, the same bytes.

    Raises
    ------
    InputError, RunError
        As `write_atomic`.
    """
    write_atomic(path, _json_bytes(values))


def _json_bytes(values: dict[str, Any]) -> bytes:
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


def _parse_json(data: bytes, what: str) -> dict[str, Any]:
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


# --- Tensors: the safetensors format ---------------------------------------------------------------
#
# An unsigned 64-bit N, N bytes of JSON, then the data. The JSON has for every tensor its dtype, shape
# and the two ends of its bytes in the data; `__metadata__` is a map of strings. Written here and not
# by the library, because that one puts the metadata in another order each time.

_DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_BFLOAT16 = "BF16"  # the upper half of a float32: NumPy has no such type
_LONGEST_HEADER = 100_000_000
_PRODUCER = "minigpt"


def save_tensors(path: PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, atomically; the same content gives the same bytes.

    The metadata get three more entries, which replace any of that name: ``format`` ("pt": older
    transformers ask for it), ``producer`` and ``sha256``. The last is the SHA-256 of

    1. the other metadata as JSON (keys sorted, no spaces, ASCII) and a line feed, then
    2. for each tensor, by sorted name: ``["name","dtype",[shape]]`` as such JSON, a line feed, and
       the tensor's little-endian bytes as they stand in the file,

    so that it vouches for every part of the file that has a meaning.

    Parameters
    ----------
    path : path
    tensors : dict of str to array
        Booleans, integers, float16, float32 or float64, of any shape.
    metadata : dict of str to str, optional

    Raises
    ------
    InputError
        If a name, a dtype or the metadata cannot be stored, or as `write_atomic`.
    RunError
        If a tensor holds NaN or infinity, or as `write_atomic`.
    """
    with atomic_file(path) as file:
        _write_tensors(file, Path(path), tensors, metadata or {})


def _write_tensors(file: BinaryIO, path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    ready = []
    for name, tensor in tensors.items():
        code = _CODES.get(tensor.dtype.newbyteorder("<"))
        if not isinstance(name, str) or name == "__metadata__":
            raise InputError(f"{path}: a tensor cannot have the name {name!r}")
        if code is None:
            raise InputError(f"{path}: tensor {name!r} has dtype {tensor.dtype}; known are {_names(_DTYPES)}")
        array = np.asarray(tensor, dtype=_DTYPES[code], order="C")
        fault = _first_not_finite(array)
        if fault is not None:
            raise RunError(f"tensor {name!r} holds {fault}: not written to {path}; nothing was changed")
        ready.append((name, code, array))
    for item in metadata.items():
        if not all(isinstance(word, str) for word in item):
            raise InputError(f"{path}: metadata must map strings to strings, got {item!r}")

    ready.sort(key=lambda entry: entry[0])
    notes = {**metadata, "format": "pt", "producer": _PRODUCER}
    notes["sha256"] = _digest(notes, ready)
    header: dict[str, Any] = {"__metadata__": dict(sorted(notes.items()))}
    # Wide elements first, so that each tensor lies at a multiple of its element's size.
    ready.sort(key=lambda entry: -entry[2].itemsize)
    offset = 0
    for name, code, array in ready:
        ends = [offset, offset + array.nbytes]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": ends}
        offset += array.nbytes
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: a name or metadata entry is not valid Unicode") from error
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise InputError(f"{path}: a header of {len(text)} bytes is over the limit of {_LONGEST_HEADER}")
    file.write(struct.pack("<Q", len(text)) + text)
    for _, _, array in ready:
        file.write(_bytes_of(array))


def _bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def _digest(metadata: dict[str, str], tensors: Iterable[tuple[str, str, np.ndarray]]) -> str:
    """SHA-256 as `save_tensors` defines it; `tensors` come by sorted name."""

    def line(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    digest = hashlib.sha256(line({key: text for key, text in metadata.items() if key != "sha256"}))
    for name, code, array in tensors:
        digest.update(line([name, code, list(array.shape)]))
        digest.update(_bytes_of(array))
    return digest.hexdigest()


def _first_not_finite(array: np.ndarray) -> str | None:
    """Words for the first NaN or infinity of an array, or None."""
    if array.dtype.kind != "f":
        return None
    finite = np.isfinite(array)
    if finite.all():
        return None
    index = np.unravel_index(int(np.argmin(finite)), array.shape)
    where = ", ".join(str(int(i)) for i in index)
    return f"{array[index]} at ({where})"


def load_tensors(path: PathLike, dtype: str | np.dtype | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file, with every check that its format allows.

    Parameters
    ----------
    path : path
    dtype : "float32" or "float64", optional
        What floating-point tensors are converted to. None leaves them as stored; bfloat16, which
        NumPy lacks, comes as float32. Other tensors are never converted.

    Returns
    -------
    tensors : dict of str to array
        In the order of the file; fresh and writable.
    metadata : dict of str to str

    Raises
    ------
    InputError
        If the file is missing, truncated or no safetensors file; if its header is too long, not JSON,
        has a key twice, an unknown dtype, or offsets with holes, overlaps or beyond the end; if the
        SHA-256 of a file that `save_tensors` wrote is wrong; if a tensor holds NaN or infinity.

    References
    ----------
    https://github.com/huggingface/safetensors#format
    """
    path = Path(path)
    target = _float_type(dtype)
    tensors: dict[str, np.ndarray] = {}
    with _read_faults(path), open(path, "rb") as file:
        start, entries, metadata = _read_header(file, path)
        _check_with_library(path)

        def stored() -> Iterator[tuple[str, str, np.ndarray]]:
            for entry in sorted(entries):
                tensors[entry.name] = array = _read_tensor(file, path, start, entry)
                yield entry.name, entry.dtype, array

        if "sha256" in metadata or metadata.get("producer") == _PRODUCER:
            recorded, found = metadata.get("sha256", "missing"), _digest(metadata, stored())
            if found != recorded:
                raise InputError(
                    f"{path}: damaged: the SHA-256 in its header is {recorded!r}, its content has {found!r}"
                )
        else:
            for _ in stored():
                pass
    return {
        entry.name: _usable(tensors.pop(entry.name), entry, target, path)
        for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end, entry.name))
    }, metadata


class _Entry(NamedTuple):
    """One tensor of a header; `begin` and `end` count from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _read_header(file: BinaryIO, path: Path) -> tuple[int, list[_Entry], dict[str, str]]:
    """Where the data start, the tensors and the metadata, all checked against the file's size."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise InputError(f"{path}: truncated: {size} bytes, a safetensors file has at least 8")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST_HEADER:
        raise InputError(
            f"{path}: not a safetensors file: its header would have {length} bytes, the limit is {_LONGEST_HEADER}"
        )
    if length > size - 8:
        raise InputError(f"{path}: truncated: the header has {length} bytes, the file only {size - 8} after it")
    text = file.read(length)
    if not text.startswith(b"{") or not text.rstrip(b" ").endswith(b"}"):
        raise InputError(f"{path}: not a safetensors file: its header is not a JSON object padded with spaces")
    header = _parse_json(text, f"{path}: header")

    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: __metadata__ in the header must map strings to strings")
    entries = [_read_entry(path, name, fields) for name, fields in header.items()]
    _check_layout(path, entries, size - 8 - length)
    return 8 + length, entries, metadata


def _read_entry(path: Path, name: str, fields: Any) -> _Entry:
    def is_sizes(value: Any) -> bool:
        return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)

    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise InputError(f"{path}: tensor {name!r} needs dtype, shape and data_offsets in the header")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype != _BFLOAT16 and (not isinstance(dtype, str) or dtype not in _DTYPES):
        raise InputError(
            f"{path}: tensor {name!r} has the unknown dtype {dtype!r}; known are {_names(_DTYPES)} and {_BFLOAT16}"
        )
    if not is_sizes(shape):
        raise InputError(f"{path}: tensor {name!r} has the shape {shape!r}, not a list of sizes")
    if not is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{path}: tensor {name!r} has data_offsets {offsets!r}, not [begin, end]")
    begin, end = offsets
    itemsize = 2 if dtype == _BFLOAT16 else _DTYPES[dtype].itemsize
    if end - begin != math.prod(shape) * itemsize:
        raise InputError(
            f"{path}: tensor {name!r} of shape {_shape(shape)} and dtype {dtype} needs "
            f"{math.prod(shape) * itemsize} bytes, its data_offsets give it {end - begin}"
        )
    return _Entry(name, dtype, tuple(shape), begin, end)


def _check_layout(path: Path, entries: list[_Entry], size: int) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    reached, before = 0, "the header"
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.end > size:
            raise InputError(
                f"{path}: truncated: tensor {entry.name!r} ends at byte {entry.end} of the data, which have {size}"
            )
        if entry.begin > reached:
            raise InputError(
                f"{path}: a hole of {entry.begin - reached} bytes between {before} and tensor {entry.name!r}"
            )
        if entry.begin < reached:
            raise InputError(f"{path}: {before} and tensor {entry.name!r} overlap")
        reached, before = entry.end, f"tensor {entry.name!r}"
    if reached < size:
        raise InputError(f"{path}: {size - reached} bytes after {before} belong to no tensor")


def _check_with_library(path: Path) -> None:
    """A second opinion from those who define the format."""
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file: {' '.join(str(error).split())}") from error


def _read_tensor(file: BufferedReader, path: Path, start: int, entry: _Entry) -> np.ndarray:
    """A tensor as stored; bfloat16 as its bits."""
    dtype = np.dtype("<u2") if entry.dtype == _BFLOAT16 else _DTYPES[entry.dtype]
    try:
        array = np.empty(entry.shape, dtype)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: tensor {entry.name!r} of shape {_shape(entry.shape)} is not possible here"
        ) from error
    file.seek(start + entry.begin)
    if file.readinto(_bytes_of(array)) != array.nbytes:
        raise InputError(f"{path}: truncated while it was read, in tensor {entry.name!r}")
    if entry.dtype == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise InputError(f"{path}: tensor {entry.name!r} is BOOL, but holds bytes other than 0 and 1")
    return array


def _usable(array: np.ndarray, entry: _Entry, target: np.dtype | None, path: Path) -> np.ndarray:
    """A stored tensor in the machine's byte order and the wished dtype, with all values finite."""
    if entry.dtype == _BFLOAT16:
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    what = f"{path}: tensor {entry.name!r}"
    fault = _first_not_finite(array)
    if fault is not None:
        raise InputError(f"{what} holds {fault}")
    return array if target is None or array.dtype.kind != "f" else _converted(array, target, what)


def _converted(array: np.ndarray, target: np.dtype, what: str) -> np.ndarray:
    """Finite numbers in another floating-point type, if they fit."""
    with np.errstate(over="ignore"):  # reported below, with its place
        converted = array.astype(target, copy=False)
    fault = _first_not_finite(converted) if target.itemsize < array.itemsize else None
    if fault is not None:
        raise InputError(f"{what} does not fit into {target}: {fault}")
    return converted


def _float_type(dtype: str | np.dtype | None) -> np.dtype | None:
    if dtype is None:
        return None
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        wanted = np.dtype("O")
    if wanted not in (np.dtype("float32"), np.dtype("float64")):
        raise InputError(f"dtype must be float32 or float64, got {dtype!r}")
    return wanted


def _shape(shape: Iterable[int]) -> str:
    return str(tuple(shape))


def _names(words: Iterable[str], most: int = 0) -> str:
    """Words in a row; beyond `most` (if not 0) only how many more."""
    listed = [word if word.isprintable() else repr(word) for word in words]
    shown = listed[:most] if most else listed
    more = f" and {len(listed) - len(shown)} more" if len(listed) > len(shown) else ""
    return ", ".join(shown) + more


# --- Models: Hugging Face GPT-2 directories --------------------------------------------------------

_PREFIX = "transformer."
_HEAD = "lm_head.weight"


def save_model(directory: PathLike, config: GPTConfig, tensors: dict[str, np.ndarray]) -> None:
    """Write a model directory that transformers opens unchanged, or leave what was there.

    All files are on the disk under temporary names before the first is renamed, so a full disk
    changes nothing. Then a `config.json` that is not the new one goes first and the new one comes
    last: at no moment does a `config.json` stand beside weights of another model.

    Parameters
    ----------
    directory : path
        Made if it is not there; other files in it (a tokenizer) are left alone.
    config : GPTConfig
    tensors : dict of str to array
        Exactly the names and shapes of `parameter_shapes`, in one of float16, float32 and float64.

    Raises
    ------
    InputError
        If the tensors are not those of the configuration.
    RunError
        If a value is not finite, or as `write_atomic`.
    """
    directory = Path(directory)
    _check_parameters(f"{directory}: tensors to save", config, tensors, {})
    dtypes = sorted({tensor.dtype.name for tensor in tensors.values()})
    if len(dtypes) > 1 or dtypes[0] not in ("float16", "float32", "float64"):
        raise InputError(f"{directory}: a model is saved in one of float16, float32, float64, got {_names(dtypes)}")
    with _write_faults(directory):
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory}: cannot save a model, there is a file of that name")
        directory.mkdir(parents=True, exist_ok=True)

    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    config_path = directory / "config.json"
    new_config = _json_bytes(config.to_json_dict(dtypes[0]))
    weights_path = directory / "model.safetensors"
    # They are renamed in the opposite order, the weights first.
    with (
        atomic_file(config_path) as config_file,
        atomic_file(directory / "generation_config.json") as generation_file,
        atomic_file(weights_path) as weights_file,
    ):
        config_file.write(new_config)
        generation_file.write(_json_bytes({"_from_model_config": True, **ids}))
        _write_tensors(weights_file, weights_path, tensors, {"architecture": _architecture(config)})
        for file in (config_file, generation_file, weights_file):
            _flush(file)
        with _write_faults(config_path):
            if config_path.exists() and config_path.read_bytes() != new_config:
                config_path.unlink()
                _sync_folder(config_path)


def _architecture(config: GPTConfig) -> str:
    """What of a configuration decides the logits: kept beside the weights, compared when they are read."""
    fields = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner_size", "layer_norm_epsilon")
    return " ".join(f"{field}={getattr(config, field)}" for field in fields)


def load_model(directory: PathLike, dtype: str | np.dtype | None = None) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """Read a GPT-2 directory of this package or of transformers.

    The weights may be in one file or in shards with an index, and their names with or without
    ``transformer.``. An ``lm_head.weight`` that equals the embedding and the causal-mask buffers of
    old files are dropped.

    Parameters
    ----------
    directory : path
    dtype : "float32" or "float64", optional
        None: a model stored in float64 stays so, every other becomes float32.

    Returns
    -------
    config : GPTConfig
    tensors : dict of str to array
        Names, order and shapes of `parameter_shapes`.

    Raises
    ------
    InputError
        As `load_tensors`, if the configuration is not one that is implemented, or if tensors are
        missing, left over or of the wrong shape.
    """
    directory = Path(directory)
    target = _float_type(dtype)
    with _read_faults(directory):
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory")
    config_path = directory / "config.json"
    fields = read_json(config_path)
    try:
        config = GPTConfig.from_json_dict(fields)
    except InputError as error:
        raise InputError(f"{config_path}: {error}") from error
    weights_path, stored, metadata = _load_weights(directory)

    if config.n_layer > len(stored):  # before that many names are made up
        raise InputError(f"{config_path}: n_layer is {config.n_layer}, but {weights_path} has {len(stored)} tensors")
    tensors: dict[str, np.ndarray] = {}
    spelled: dict[str, str] = {}
    head = stored.pop(_HEAD, None)
    for key, tensor in stored.items():
        name = key if key.startswith(_PREFIX) else _PREFIX + key
        if name in tensors:
            raise InputError(f"{weights_path}: has both {name!r} and {name.removeprefix(_PREFIX)!r}")
        if not _is_mask_buffer(name, tensor, config):
            tensors[name], spelled[name] = tensor, key
    _check_parameters(str(weights_path), config, tensors, spelled)
    if head is not None and not np.array_equal(head, tensors["transformer.wte.weight"]):
        raise InputError(f"{weights_path}: {_HEAD} differs from transformer.wte.weight; the head must be tied to it")
    if metadata.get("architecture", _architecture(config)) != _architecture(config):
        raise InputError(
            f"{config_path} says {_architecture(config)}, "
            f"but {weights_path.name} was saved with {metadata['architecture']!r}"
        )
    wrong = [name for name, tensor in tensors.items() if tensor.dtype.kind != "f"]
    if wrong:
        raise InputError(f"{weights_path}: not floating-point numbers: {_names(wrong, most=5)}")
    if target is None:
        target = np.result_type(np.float32, *(tensor.dtype for tensor in tensors.values()))
    return config, {
        name: _converted(tensors.pop(name), target, f"{weights_path}: tensor {name!r}")
        for name in parameter_shapes(config)
    }


def _load_weights(directory: Path) -> tuple[Path, dict[str, np.ndarray], dict[str, str]]:
    """The tensors of one file, or of all shards of an index, with their stored names and dtypes."""
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    with _read_faults(directory):
        if single.exists():
            return single, *load_tensors(single)
        if index.exists():
            return index, _load_shards(index), {}
        only_pickle = (directory / "pytorch_model.bin").exists()
    if only_pickle:
        raise InputError(
            f"{directory}: has only pytorch_model.bin, a pickle, which is not read; convert it with "
            f'python -c "from transformers import GPT2LMHeadModel as M; '
            f'M.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"'
        )
    raise InputError(f"{directory}: no model.safetensors in it")


def _load_shards(index: Path) -> dict[str, np.ndarray]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{index}: weight_map must map tensors to files")
    for name, file in where.items():
        # A file elsewhere is not part of this directory, whatever the index says.
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\:]+\.safetensors", file):
            raise InputError(f"{index}: {name!r} must be in a .safetensors file of this directory, not {file!r}")
    absent = sorted({file for file in where.values() if not index.with_name(file).exists()})
    if absent:
        raise InputError(f"{index}: no such file beside it: {_names(absent, most=5)}")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(where.values())):
        shard, _ = load_tensors(index.with_name(file))
        promised = {name for name, place in where.items() if place == file}
        if promised != shard.keys():
            faults = [
                ("missing", sorted(promised - shard.keys())),
                ("left over", sorted(shard.keys() - promised)),
            ]
            raise InputError(f"{index.with_name(file)}: does not fit {index.name}: {_listed(faults)}")
        tensors.update(shard)
    return tensors


def _is_mask_buffer(name: str, tensor: np.ndarray, config: GPTConfig) -> bool:
    """Old files carry the causal mask of each layer, (1, 1, n, n), and the number it puts in."""
    match = re.fullmatch(r"transformer\.h\.(\d{1,9})\.attn\.(bias|masked_bias)", name)
    if match is None or int(match[1]) >= config.n_layer:
        return False
    if match[2] == "masked_bias":
        return tensor.size == 1
    return tensor.ndim == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3]


def _check_parameters(what: str, config: GPTConfig, tensors: dict[str, np.ndarray], spelled: dict[str, str]) -> None:
    """All tensors of a configuration are there, with their shapes, and no others.

    `spelled` has the names of the file, where they differ from ours.
    """
    shapes = parameter_shapes(config)
    faults = [
        ("missing", [name for name in shapes if name not in tensors]),
        ("left over", [spelled.get(name, name) for name in tensors if name not in shapes]),
        (
            "wrong shape",
            [
                f"{spelled.get(name, name)} {_shape(tensors[name].shape)} instead of {_shape(shape)}"
                for name, shape in shapes.items()
                if name in tensors and tensors[name].shape != shape
            ],
        ),
    ]
    if any(names for _, names in faults):
        raise InputError(f"{what}: does not fit the configuration: {_listed(faults)}")


def _listed(faults: list[tuple[str, list[str]]]) -> str:
    return "; ".join(f"{kind}: {_names(names, most=5)}" for kind, names in faults if names)


def check_vocabulary(tokenizer_vocab_size: int, config: GPTConfig) -> None:
    """Make sure that a tokenizer and a model speak of the same ids.

    Raises
    ------
    InputError
        If they differ in the size of the vocabulary.
    """
    if tokenizer_vocab_size != config.vocab_size:
        raise InputError(
            f"the tokenizer has a vocabulary of {tokenizer_vocab_size} tokens, the model one of {config.vocab_size}"
        )


# --- Where a result came from ----------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """What a run should record about where and with what it ran.

    Returns
    -------
    dict
        ``date`` (UTC), ``python``, ``numpy``, ``platform``, ``cpu``, ``cores``, ``blas`` (one entry
        for each library loaded: name, version, threads), ``minigpt`` (version), ``git_commit`` and
        ``git_changes`` (None unless the package stands in a git checkout of its own). Ready for JSON.
    """
    root = Path(__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "--no-optional-locks", "status", "--porcelain") if commit else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "blas": [
            {"name": pool["internal_api"], "version": pool["version"], "threads": pool["num_threads"]}
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "minigpt": _own_version(root),
        "git_commit": commit,
        "git_changes": None if changes is None else bool(changes),
    }


def _own_version(root: Path) -> str | None:
    # A checkout speaks for itself: what pip has installed may be another one.
    project = root / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    try:
        return importlib.metadata.version("minigpt")
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """The answer of git in the package's own checkout; None without git or outside of one."""
    if not (root / ".git").exists():  # a checkout further up is somebody else's
        return None
    return _output_of("git", "-C", str(root), *arguments)


def _cpu_model() -> str:
    if sys.platform.startswith("linux"):
        with suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
