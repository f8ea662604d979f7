"""Values to bytes and back, for two processes of which one is not trusted. Standalone: needs NumPy only.

A message is a skeleton and blocks::

    b"MGV1"  length of the skeleton (4 bytes)  number of blocks (4 bytes)  skeleton  (length (8 bytes)  block)*

The skeleton is JSON: a flat list of nodes in prefix order, each ``[kind, …]``, so that depth is counted by us and not
by the JSON parser. A block is an array in NumPy's own npy format, version 1.0. Nothing is ever unpickled, and nothing
is allocated on the word of a header: its shape and dtype must give exactly the bytes that have arrived.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC = b"MGV1"
MAX_BYTES = 32 << 20
"""A whole message."""
MAX_SKELETON = 1 << 20
MAX_NODES = 20_000
MAX_BLOCKS = 1_000
MAX_DEPTH = 16
MAX_AXES = 8
MAX_DIGITS = 40
"""Of an integer."""

_HEAD = struct.Struct("<4sII")
_LENGTH = struct.Struct("<Q")
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..)"
    rb"\{'descr': '(?P<descr>(?:\|b1|\|i1|\|u1|<[iu][248]|<f[248]))', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,10}(?:, \d{1,10})*,?)?)\), \} *\n",
    re.DOTALL,
)
_DTYPES = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}


class BadValue(ValueError):
    """Bytes that are no message, or a value that cannot be one; says why in one line."""


@dataclass(frozen=True)
class Rng:
    """An argument: ``np.random.default_rng(seed)``, made afresh for each call where the function runs."""

    seed: int


@dataclass(frozen=True)
class Ops:
    """An argument: the reference operations (`Backend.ops`) of the tree that the function runs in."""


@dataclass(frozen=True)
class Foreign:
    """What came instead of a value: its type's name, and its elements where it was some kind of array."""

    type_name: str
    array: np.ndarray | None = None


@dataclass(frozen=True)
class Named:
    """A NamedTuple as data: ``"module:Class"``, the names of its fields, and what they hold."""

    type_name: str
    fields: tuple[str, ...]
    items: tuple[Any, ...]


def after(sent: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """What arguments hold when a call is over: of a generator whether it was drawn from, of operations nothing.

    Parameters
    ----------
    sent : mapping of str to value
        As they were sent.
    args : mapping of str to value
        What the function was called with.
    """
    left = {}
    for name, value in args.items():
        if isinstance(sent[name], Rng):
            fresh = np.random.default_rng(sent[name].seed)
            left[name] = "as it was" if value.bit_generator.state == fresh.bit_generator.state else "drawn from"
        elif not isinstance(sent[name], Ops):
            left[name] = value
    return left


# ---------------------------------------------------------------------------------------------- to bytes


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[list[Any]] = []
        self.blocks: list[bytes] = []

    def block(self, array: np.ndarray) -> int:
        if len(self.blocks) >= MAX_BLOCKS:
            raise BadValue(f"more than {MAX_BLOCKS} arrays")
        if array.nbytes > MAX_BYTES:
            raise BadValue(f"an array of {array.nbytes} bytes; at most {MAX_BYTES} are read")
        plain = np.array(array, dtype=array.dtype.newbyteorder("<"), copy=True, subok=False, order="C")
        file = io.BytesIO()
        np.lib.format.write_array(file, plain, version=(1, 0), allow_pickle=False)
        self.blocks.append(file.getvalue())
        return len(self.blocks) - 1

    def write(self, value: Any, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise BadValue(f"nested deeper than {MAX_DEPTH}")
        if len(self.nodes) >= MAX_NODES:
            raise BadValue(f"more than {MAX_NODES} values")
        kind = type(value)
        if value is None or kind is bool:
            self.nodes.append([{None: "none", True: "true", False: "false"}[value]])
        elif isinstance(value, (np.ndarray, np.generic)):
            self._array(value)
        elif isinstance(value, int):
            # The bare type's own methods: a subclass may have others.
            if int.bit_length(value) > 128:
                raise BadValue("an integer of more than 128 bits")
            self.nodes.append(["int", int.__repr__(value)])
        elif isinstance(value, float):
            self.nodes.append(["float", float.hex(value)])
        elif isinstance(value, str):
            self.nodes.append(["str", str.__str__(value)])
        elif isinstance(value, tuple) and hasattr(kind, "_fields"):
            fields = [str(name) for name in kind._fields]
            self.nodes.append(["named", f"{kind.__module__}:{kind.__qualname__}", fields, tuple.__len__(value)])
            for item in tuple.__iter__(value):
                self.write(item, depth + 1)
        elif kind in (tuple, list):
            self.nodes.append([kind.__name__, len(value)])
            for item in value:
                self.write(item, depth + 1)
        elif isinstance(value, dict):
            self.nodes.append(["dict", dict.__len__(value)])
            for key, item in dict.items(value):
                self.write(key, depth + 1)
                self.write(item, depth + 1)
        elif kind is Rng:
            self.nodes.append(["rng", str(value.seed)])
        elif kind is Ops:
            self.nodes.append(["ops"])
        elif kind is Named:
            self.nodes.append(["named", value.type_name, list(value.fields), len(value.items)])
            for item in value.items:
                self.write(item, depth + 1)
        elif kind is Foreign:
            block = [] if value.array is None else [self.block(value.array)]
            self.nodes.append(["foreign", value.type_name, *block])
        else:
            self.nodes.append(["foreign", _type_name(kind)])

    def _array(self, value: Any) -> None:
        kind = type(value)
        if value.dtype.str[1:] not in _DTYPES:
            what = f"{kind.__name__} of dtype {value.dtype}" if isinstance(value, np.ndarray) else kind.__name__
            self.nodes.append(["foreign", what])
        elif kind is np.ndarray or isinstance(value, np.generic):
            self.nodes.append(["array", self.block(np.asarray(value))])
        else:
            name = "masked array" if isinstance(value, np.ma.MaskedArray) else _type_name(kind)
            self.nodes.append(["foreign", name, self.block(value.view(np.ndarray))])


def _type_name(kind: type) -> str:
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"[:200]


def encode(value: Any) -> bytes:
    """Return a value as a message.

    Parameters
    ----------
    value : float, int, bool, str, None, array, tuple, list, dict, NamedTuple, Rng, Ops
        Anything else becomes `Foreign`: its type's name.

    Raises
    ------
    BadValue
        If it is nested too deep or too large.
    """
    writer = _Writer()
    writer.write(value)
    skeleton = json.dumps(writer.nodes, separators=(",", ":")).encode("ascii")
    if len(skeleton) > MAX_SKELETON:
        raise BadValue(f"more than {MAX_SKELETON} characters of text and numbers")
    parts = [_HEAD.pack(MAGIC, len(skeleton), len(writer.blocks)), skeleton]
    for block in writer.blocks:
        parts += [_LENGTH.pack(len(block)), block]
    message = b"".join(parts)
    if len(message) > MAX_BYTES:
        raise BadValue(f"{len(message)} bytes; at most {MAX_BYTES} are read")
    return message


# ---------------------------------------------------------------------------------------------- from bytes


class _Reader:
    def __init__(self, nodes: list[Any], blocks: list[memoryview], builders: dict[str, Callable[..., Any]]) -> None:
        self.nodes = nodes
        self.blocks = blocks
        self.builders = builders
        self.at = 0

    def read(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise BadValue(f"nested deeper than {MAX_DEPTH}")
        if self.at >= len(self.nodes):
            raise BadValue("the message ends early")
        node = self.nodes[self.at]
        self.at += 1
        if type(node) is not list or not node or type(node[0]) is not str:
            raise BadValue("a node without a kind")
        kind, *rest = node
        match kind, rest:
            case "none", []:
                return None
            case (("true" | "false"), []):
                return kind == "true"
            case "int", [str(text)] if re.fullmatch(rf"-?\d{{1,{MAX_DIGITS}}}", text, re.ASCII):
                return int(text)
            case "float", [str(text)] if len(text) < 40:
                return _float(text)
            case "str", [str(text)]:
                return text
            case "array", [int(number)]:
                return self._block(number)
            case (("tuple" | "list"), [int(count)]):
                items = [self.read(depth + 1) for _ in range(self._count(count))]
                return tuple(items) if kind == "tuple" else items
            case "named", [str(name), list(fields), int(count)] if all(type(f) is str for f in fields):
                items = [self.read(depth + 1) for _ in range(self._count(count))]
                return self.builders["named"](name, tuple(fields), tuple(items))
            case "dict", [int(count)]:
                result = {}
                for _ in range(self._count(count)):
                    key = self.read(depth + 1)
                    if not _is_key(key):
                        raise BadValue("a key that is no text, integer or tuple of integers")
                    result[key] = self.read(depth + 1)
                return result
            case "rng", [str(text)] if re.fullmatch(rf"\d{{1,{MAX_DIGITS}}}", text, re.ASCII):
                return self.builders["rng"](int(text))
            case "ops", []:
                return self.builders["ops"]()
            case "foreign", [str(name)]:
                return Foreign(name[:200])
            case "foreign", [str(name), int(number)]:
                return Foreign(name[:200], self._block(number))
        raise BadValue("a node of unknown kind")

    def _count(self, count: int) -> int:
        if not 0 <= count <= len(self.nodes) - self.at:
            raise BadValue("more items than the message has")
        return count

    def _block(self, number: int) -> np.ndarray:
        if not 0 <= number < len(self.blocks):
            raise BadValue("an array that is not in the message")
        return _npy(self.blocks[number])


def _is_key(key: Any) -> bool:
    return type(key) in (str, int, bool) or (type(key) is tuple and all(type(k) is int for k in key))


def _float(text: str) -> float:
    try:
        return float.fromhex(text)
    except (ValueError, OverflowError):
        raise BadValue("a number that is none") from None


def _npy(block: memoryview) -> np.ndarray:
    header = _NPY.match(block[:4096])
    if header is None or len(header["size"]) != 2 or struct.unpack("<H", header["size"])[0] != header.end() - 10:
        raise BadValue("an array whose header is not that of a plain npy block")
    dtype = np.dtype(header["descr"].decode())
    shape = tuple(int(size) for size in header["shape"].decode().replace(",", " ").split())
    data = block[header.end() :]
    if len(shape) > MAX_AXES or math.prod(shape) * dtype.itemsize != len(data):
        raise BadValue(f"an array of {len(data)} bytes whose header says shape {shape} and dtype {dtype}")
    try:
        array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if header["fortran"] == b"True" else "C")
    except ValueError:
        raise BadValue(f"an array of shape {shape}") from None
    # A byte other than 0 and 1 is no truth value that NumPy knows how to compare.
    return np.asarray(array.view(np.uint8) != 0) if dtype == np.bool_ else array.copy()


def decode(
    message: bytes,
    named: Callable[[str, tuple[str, ...], tuple[Any, ...]], Any] = Named,
    rng: Callable[[int], Any] = Rng,
    ops: Callable[[], Any] = Ops,
) -> Any:
    """Return the value of a message.

    Parameters
    ----------
    message : bytes
    named, rng, ops : callable, optional
        What makes a NamedTuple (type name, fields, items), a generator (seed) and the operations; by default
        the plain data `Named`, `Rng` and `Ops`, so that decoding runs nobody's code.

    Raises
    ------
    BadValue
        If the bytes are not exactly one message within the limits of this module.
    """
    view = memoryview(message)
    if len(view) < _HEAD.size or len(view) > MAX_BYTES:
        raise BadValue(f"a message of {len(view)} bytes")
    magic, size, count = _HEAD.unpack_from(view)
    if magic != MAGIC or size > MAX_SKELETON or count > MAX_BLOCKS:
        raise BadValue("bytes that are no message")
    at = _HEAD.size + size
    if at > len(view):
        raise BadValue("a message that ends early")
    try:
        nodes = json.loads(bytes(view[_HEAD.size : at]).decode("ascii"), parse_float=_none, parse_constant=_none)
    except (ValueError, RecursionError):
        raise BadValue("a skeleton that cannot be read") from None
    if type(nodes) is not list or len(nodes) > MAX_NODES:
        raise BadValue(f"a skeleton that is no list of at most {MAX_NODES} nodes")
    blocks = []
    for _ in range(count):
        if at + _LENGTH.size > len(view):
            raise BadValue("a message that ends early")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if length > len(view) - at:
            raise BadValue("a message that ends early")
        blocks.append(view[at : at + length])
        at += length
    reader = _Reader(nodes, blocks, {"named": named, "rng": rng, "ops": ops})
    value = reader.read()
    if reader.at != len(nodes) or at != len(view):
        raise BadValue("a message with something behind its end")
    return value


def _none(text: str) -> None:
    """JSON's own numbers with a point, and NaN, have no place in a skeleton: a node with one is of unknown kind."""


def plain(value: Any) -> Any:
    """The value as the other side would receive it: scalars of NumPy as arrays without axes, NamedTuples as `Named`."""
    return decode(encode(value))
