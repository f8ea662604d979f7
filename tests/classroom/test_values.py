"""Values to bytes and back; and bytes that are none."""

from __future__ import annotations

import json
import math
import pickle
import struct
from typing import Any, NamedTuple

import numpy as np
import pytest

from classroom import values
from classroom.values import BadValue, Foreign, Named, Ops, Rng, decode, encode, plain


class Pair(NamedTuple):
    left: Any
    right: Any


def npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def message(nodes: Any, *blocks: bytes) -> bytes:
    skeleton = nodes if isinstance(nodes, bytes) else json.dumps(nodes).encode()
    parts = [struct.pack("<4sII", b"MGV1", len(skeleton), len(blocks)), skeleton]
    return b"".join([*parts, *(struct.pack("<Q", len(block)) + block for block in blocks)])


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -(2**127),
        1.5,
        -0.0,
        math.inf,
        5e-324,
        1e308,
        "",
        "αβ\ud800\x00\n",
        (),
        [],
        {},
        (1, [2.0, ("x", None)]),
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    back = decode(encode(value))
    assert repr(back) == repr(value)
    assert type(back) is type(value)


def test_nan_comes_back() -> None:
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize("dtype", ["bool", "i1", "u1", "i2", "u4", "i8", "f2", "f4", "f8", ">f8", ">i4"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (1, 5, 1), (3, 2)])
def test_arrays_come_back_to_the_bit(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).standard_normal(shape) * 50).astype(dtype)
    back = decode(encode(array))
    assert type(back) is np.ndarray
    assert back.dtype == np.dtype(dtype).newbyteorder("<")
    assert back.shape == shape
    assert (back == array).all()
    assert back.flags.writeable


def test_any_layout_of_an_array() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    for view in (array.T, array[:, ::-1, ::2], np.asfortranarray(array), np.broadcast_to(array[:1], (5, 3, 4))):
        assert (decode(encode(view)) == view).all()
    stored = npy(b"{'descr': '<f8', 'fortran_order': True, 'shape': (2, 3), }\n", np.arange(6.0).tobytes())
    assert (decode(message([["array", 0]], stored)) == np.arange(6.0).reshape(3, 2).T).all()


def test_named_tuples_generators_and_operations() -> None:
    pair = Pair(np.ones(2), (1, Pair(None, "x")))
    named = decode(encode(pair))
    assert isinstance(named, Named)
    assert named.type_name.endswith(":Pair")
    assert named.fields == ("left", "right")
    back = decode(encode(pair), named=lambda name, fields, items: Pair(*items))
    assert back.right[1] == Pair(None, "x")
    assert decode(encode({"rng": Rng(2**60), "ops": Ops()})) == {"rng": Rng(2**60), "ops": Ops()}
    assert decode(encode(named)).items[1] == named.items[1]
    drawn = decode(encode(Rng(5)), rng=np.random.default_rng).random()
    assert drawn == np.random.default_rng(5).random()


def test_what_is_no_value_comes_as_its_name() -> None:
    class Mine(np.ndarray):
        pass

    assert decode(encode(object())) == Foreign("object")
    assert decode(encode(np.ones(2, complex))) == Foreign("ndarray of dtype complex128")
    assert decode(encode(np.array([None]))) == Foreign("ndarray of dtype object")
    assert decode(encode({1, 2})) == Foreign("set")
    masked = decode(encode(np.ma.masked_all(3)))
    assert masked.type_name == "masked array"
    mine = decode(encode(np.ones(3).view(Mine)))
    assert mine.type_name.endswith("Mine")
    assert (mine.array == 1).all()


def test_scalars_of_numpy_keep_their_dtype() -> None:
    back = plain(np.float32(0.1))
    assert (back.dtype, back.shape) == (np.float32, ())
    assert plain(np.bool_(True)).dtype == np.bool_
    assert type(plain(True)) is bool


def test_truth_values_are_0_and_1() -> None:
    block = npy(b"{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }\n", b"\x00\x02\xff")
    assert decode(message([["array", 0]], block)).view(np.uint8).tolist() == [0, 1, 1]


class Number(float):
    """Its own methods say something else."""

    def __float__(self) -> float:
        raise SystemExit

    def hex(self) -> str:
        raise SystemExit

    __repr__ = __str__ = hex  # type: ignore[assignment]


def test_methods_of_a_subclass_are_not_asked() -> None:
    assert decode(encode(Number(2.5))) == 2.5


GOOD = npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n", bytes(16))

BAD = {
    "nothing": b"",
    "short": b"MGV1",
    "pickle": pickle.dumps([1, 2]),
    "other magic": message([["none"]]).replace(b"MGV1", b"MGV2"),
    "huge skeleton": struct.pack("<4sII", b"MGV1", 2**32 - 1, 0),
    "huge count": struct.pack("<4sII", b"MGV1", 2, 2**32 - 1) + b"[]",
    "truncated": message([["array", 0]], GOOD)[:-1],
    "something behind": message([["none"]]) + b"x",
    "node behind": message([["none"], ["none"]]),
    "no node": message([]),
    "no list": message({"a": 1}),
    "brackets": message(b"[" * 60_000),
    "deep": message([["tuple", 1]] * 40 + [["none"]]),
    "not text": message(b"\xff\xfe[]"),
    "NaN in the skeleton": message(b'[["float",NaN]]'),
    "a number of JSON": message(b'[["float",1.5]]'),
    "no number": message([["float", "1.5; import os"]]),
    "too large a number": message([["float", "0x1p99999"]]),
    "long integer": message([["int", "9" * 5000]]),
    "other digits": message([["int", "١٢"]]),
    "unknown kind": message([["eval", "1"]]),
    "kind is no text": message([[["a"], 1]]),
    "more items than there are": message([["list", 10**9]]),
    "negative items": message([["list", -1], ["none"]]),
    "a list as key": message([["dict", 1], ["list", 0], ["none"]]),
    "array that is not there": message([["array", 1]], GOOD),
    "array before the first": message([["array", -1]], GOOD),
    "nodes without end": message([["list", 30_000]] + [["none"]] * 30_000),
    "8 TB": message([["array", 0]], npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }\n")),
    "too few bytes": message([["array", 0]], GOOD[:-8]),
    "too many bytes": message([["array", 0]], GOOD + bytes(8)),
    "negative shape": message([["array", 0]], GOOD.replace(b"(2,)", b"(-2)")),
    "objects": message([["array", 0]], GOOD.replace(b"<f8", b"|O8")),
    "text": message([["array", 0]], GOOD.replace(b"<f8", b"<U2")),
    "code in the header": message([["array", 0]], npy(b"{'descr': __import__('os'), 'shape': (2,), }\n", bytes(16))),
    "other version": message([["array", 0]], GOOD.replace(b"NUMPY\x01", b"NUMPY\x02")),
    "header length": message([["array", 0]], GOOD.replace(b"\x01\x00" + GOOD[8:9], b"\x01\x00\x10", 1)),
    "many axes": message(
        [["array", 0]],
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 1), }\n", bytes(8)),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bytes_that_are_no_message_are_refused(name: str) -> None:
    with pytest.raises(BadValue):
        decode(BAD[name])


def test_what_is_too_large_is_refused_before_it_is_sent() -> None:
    deep: Any = None
    for _ in range(30):
        deep = [deep]
    for value in (
        deep,
        [None] * (values.MAX_NODES + 1),
        2**200,
        np.zeros(values.MAX_BYTES // 8 + 1),
        ["x" * 2_000_000],
    ):
        with pytest.raises(BadValue):
            encode(value)
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(BadValue):
        encode(ring)


def test_every_prefix_of_a_message_is_refused() -> None:
    whole = encode({"x": np.arange(3.0), "y": ("text", 1.5, None)})
    for length in range(len(whole)):
        with pytest.raises(BadValue):
            decode(whole[:length])


def test_what_is_left_of_arguments_says_whether_a_generator_was_drawn_from() -> None:
    sent = {"x": 1, "rng": Rng(5), "other": Rng(5), "ops": Ops()}
    args = {"x": 2, "rng": np.random.default_rng(5), "other": np.random.default_rng(5), "ops": object()}
    args["rng"].random()
    assert values.after(sent, args) == {"x": 2, "rng": "drawn from", "other": "as it was"}
