"""Tensors in the safetensors format, with every check that the format allows.

An unsigned 64-bit N, N bytes of JSON, then the data. The JSON has for every tensor its dtype, shape and the two ends
of its bytes in the data; `__metadata__` is a map of strings. Written here and not by the library, because that one puts
the metadata in another order each time.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from minigpt.errors import InputError, RunError
from minigpt.files.storage import (
    PathLike,
    atomic_file,
    flush_to_disk,
    json_bytes,
    parse_json,
    read_faults,
    sync_folder,
    write_faults,
)

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
        write_tensors(file, Path(path), tensors, metadata or {})


def save_with_settings(
    directory: PathLike,
    tensors_file: str,
    tensors: dict[str, np.ndarray],
    settings: dict[str, dict[str, Any]],
    stale: Iterable[str] = (),
) -> None:
    """Write tensors and the JSON files that explain them into a directory, or leave what was there.

    All files are on the disk under temporary names before the first is renamed. Settings that are not the new ones go
    first and the new ones come last: at no moment do they stand beside tensors of something else. Other files in the
    directory are left alone.

    Parameters
    ----------
    directory : path
        Made if it is not there.
    tensors_file : str
    tensors : dict of str to array
    settings : dict of str to dict
        Name of a JSON file → what it holds.
    stale : iterable of str
        Settings that something else may have left here; they are removed.

    Raises
    ------
    InputError, RunError
        As `save_tensors`.
    """
    directory = Path(directory)
    with write_faults(directory):
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory}: cannot write a directory, there is a file of that name")
        directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # files are renamed in the opposite order, the tensors first
        opened = []
        for name, values in settings.items():
            opened.append(stack.enter_context(atomic_file(directory / name)))
            opened[-1].write(json_bytes(values))
        opened.append(stack.enter_context(atomic_file(directory / tensors_file)))
        write_tensors(opened[-1], directory / tensors_file, tensors, {})
        for file in opened:
            flush_to_disk(file)
        for name in (*settings, *stale):
            path = directory / name
            with write_faults(path):
                if path.exists() and (name not in settings or path.read_bytes() != json_bytes(settings[name])):
                    path.unlink()
                    sync_folder(path)


def write_tensors(file: BinaryIO, path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    ready = []
    for name, tensor in tensors.items():
        code = _CODES.get(tensor.dtype.newbyteorder("<"))
        if not isinstance(name, str) or name == "__metadata__":
            raise InputError(f"{path}: a tensor cannot have the name {name!r}")
        if code is None:
            raise InputError(f"{path}: tensor {name!r} has dtype {tensor.dtype}; known are {name_list(_DTYPES)}")
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
    target = float_type(dtype)
    tensors: dict[str, np.ndarray] = {}
    with read_faults(path), open(path, "rb") as file:
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
    header = parse_json(text, f"{path}: header")

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
            f"{path}: tensor {name!r} has the unknown dtype {dtype!r}; known are {name_list(_DTYPES)} and {_BFLOAT16}"
        )
    if not is_sizes(shape):
        raise InputError(f"{path}: tensor {name!r} has the shape {shape!r}, not a list of sizes")
    if not is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{path}: tensor {name!r} has data_offsets {offsets!r}, not [begin, end]")
    begin, end = offsets
    itemsize = 2 if dtype == _BFLOAT16 else _DTYPES[dtype].itemsize
    if end - begin != math.prod(shape) * itemsize:
        raise InputError(
            f"{path}: tensor {name!r} of shape {shown_shape(shape)} and dtype {dtype} needs "
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
            f"{path}: tensor {entry.name!r} of shape {shown_shape(entry.shape)} is not possible here"
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
    return array if target is None or array.dtype.kind != "f" else convert(array, target, what)


def convert(array: np.ndarray, target: np.dtype, what: str) -> np.ndarray:
    """Finite numbers in another floating-point type, if they fit."""
    with np.errstate(over="ignore"):  # reported below, with its place
        converted = array.astype(target, copy=False)
    fault = _first_not_finite(converted) if target.itemsize < array.itemsize else None
    if fault is not None:
        raise InputError(f"{what} does not fit into {target}: {fault}")
    return converted


def float_type(dtype: str | np.dtype | None) -> np.dtype | None:
    if dtype is None:
        return None
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        wanted = np.dtype("O")
    if wanted not in (np.dtype("float32"), np.dtype("float64")):
        raise InputError(f"dtype must be float32 or float64, got {dtype!r}")
    return wanted


def shown_shape(shape: Iterable[int]) -> str:
    return str(tuple(shape))


def name_list(words: Iterable[str], most: int = 0) -> str:
    """Words in a row; beyond `most` (if not 0) only how many more."""
    listed = [word if word.isprintable() else repr(word) for word in words]
    shown = listed[:most] if most else listed
    more = f" and {len(listed) - len(shown)} more" if len(listed) > len(shown) else ""
    return ", ".join(shown) + more
