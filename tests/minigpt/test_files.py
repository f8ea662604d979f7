"""The file layer: nothing half-written, nothing damaged taken for whole, one clear line for each fault."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minigpt import files
from minigpt.config import GPTConfig, parameter_shapes
from minigpt.errors import InputError, RunError
from minigpt.files import (
    atomic_directory,
    atomic_file,
    check_vocabulary,
    clean_leftovers,
    load_model,
    load_tensors,
    provenance,
    read_json,
    remove_directory,
    save_model,
    save_tensors,
    sha256_of_file,
    storage,
    write_atomic,
    write_json,
)
from minigpt.files import tensors as tensors_module

ROOT = Path(files.__file__).resolve().parent.parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="kills, forks and limits of POSIX")

CONFIG = GPTConfig(vocab_size=11, n_positions=5, n_embd=6, n_layer=2, n_head=2, eos_token_id=10)


def refused(call, *words: str, kind: type[Exception] = InputError) -> str:
    """The one line of an error of exactly this kind, which has all of `words`."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert word in message, message
    return message


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tensors_of(config: GPTConfig, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in parameter_shapes(config).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Same names, dtypes, shapes and bits."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def build(header, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, byte by byte; `header` as a dict or as the text itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# --- Faults of a tensor file, one by one -----------------------------------------------------------

ONE = entry("F32", [1], 0, 4)
ONE_TEXT = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'

FAULTS = {
    "empty": (b"", ["truncated", "0 bytes"]),
    "shorter than the length": (b"\x08\0\0\0", ["truncated", "4 bytes"]),
    "header cut": (build({"w": ONE})[:20], ["truncated", "header"]),
    "data cut": (build({"w": ONE}, b"123"), ["truncated", "'w'", "byte 4"]),
    "data missing": (build({"w": ONE}), ["truncated", "'w'"]),
    "header too long": (build({"w": ONE}, b"1234", 100_000_001), ["100000001", "100000000"]),
    "header of eight exabytes": (b"\xff" * 16, ["18446744073709551615"]),
    "header of no bytes": (build(b""), ["not a JSON object"]),
    "a text file": (b"It was the best of times, it was the worst of times", ["header would have"]),
    "not JSON": (build(b"{'w': 1}"), ["header", "not JSON"]),
    "JSON cut": (build(b'{"w":{"dtype":"F32"}'), ["header", "not JSON"]),
    "an array": (build(b"[1,2]"), ["not a JSON object"]),
    "an array in braces": (build(b'{"w":1},{"v":2}'), ["header", "not JSON"]),
    "leading space": (build(b' {"w":' + ONE_TEXT + b"}", b"1234"), ["not a JSON object"]),
    "padded with tabs": (build(b'{"w":' + ONE_TEXT + b"}\t", b"1234"), ["padded with spaces"]),
    "not UTF-8": (build(b'{"w\xff":' + ONE_TEXT + b"}", b"1234"), ["header", "not UTF-8 at byte 3"]),
    "half a surrogate pair": (build(b'{"\\ud800":' + ONE_TEXT + b"}", b"1234"), ["not a valid safetensors"]),
    "brackets without end": (build(b'{"w":' + b"[" * 200_000 + b"}"), ["header", "not JSON"]),
    "a number without end": (build(b'{"w":' + b"9" * 5_000 + b"}"), ["header", "not JSON"]),
    "tensor twice": (build(b'{"w":%b,"w":%b}' % (ONE_TEXT, ONE_TEXT), b"1234"), ["header", "'w' twice"]),
    "field twice": (
        build(b'{"w":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        ["header", "'dtype' twice"],
    ),
    "metadata not a map": (build({"__metadata__": ["pt"], "w": ONE}, b"1234"), ["__metadata__"]),
    "metadata null": (build({"__metadata__": None, "w": ONE}, b"1234"), ["__metadata__"]),
    "metadata not strings": (build({"__metadata__": {"step": 3}, "w": ONE}, b"1234"), ["__metadata__"]),
    "entry not a map": (build({"w": [0, 4]}, b"1234"), ["'w'", "data_offsets"]),
    "entry without a shape": (
        build({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
        ["'w'", "shape"],
    ),
    "unknown dtype": (build({"w": entry("F33", [1], 0, 4)}, b"1234"), ["'w'", "'F33'", "F32"]),
    "dtype not a string": (build({"w": entry(["F32"], [1], 0, 4)}, b"1234"), ["'w'", "dtype"]),
    "a dtype of eight bits": (build({"w": entry("F8_E4M3", [4], 0, 4)}, b"1234"), ["'w'", "'F8_E4M3'"]),
    "shape not a list": (build({"w": entry("F32", 1, 0, 4)}, b"1234"), ["'w'", "shape"]),
    "shape of fractions": (build({"w": entry("F32", [1.0], 0, 4)}, b"1234"), ["'w'", "[1.0]"]),
    "shape of booleans": (build({"w": entry("F32", [True], 0, 4)}, b"1234"), ["'w'", "[True]"]),
    "negative shape": (build({"w": entry("F32", [-1, -1], 0, 4)}, b"1234"), ["'w'", "[-1, -1]"]),
    "shape of another size": (
        build({"w": entry("F32", [2], 0, 4)}, b"1234"),
        ["'w'", "(2,)", "8 bytes", "4"],
    ),
    "shape beyond all memory": (build({"w": entry("F32", [2**40, 2**40], 0, 4)}, b"1234"), ["'w'"]),
    "empty, but too wide": (build({"w": entry("F32", [0, 2**60, 2**60], 0, 0)}), ["'w'", "not possible"]),
    "too many axes": (build({"w": entry("F32", [1] * 70, 0, 4)}, b"1234"), ["'w'", "not possible"]),
    "one offset": (build({"w": {**ONE, "data_offsets": [4]}}, b"1234"), ["'w'", "[begin, end]"]),
    "offsets reversed": (build({"w": entry("F32", [1], 4, 0)}, b"1234"), ["'w'", "[4, 0]"]),
    "offsets negative": (build({"w": entry("F32", [1], -4, 0)}, b"1234"), ["'w'", "[-4, 0]"]),
    "offsets of fractions": (build({"w": entry("F32", [1], 0, 4.0)}, b"1234"), ["'w'", "4.0"]),
    "beyond the end": (build({"w": entry("F32", [1], 2**62, 2**62 + 4)}, b"1234"), ["'w'", "have 4"]),
    "hole before": (build({"w": entry("F32", [1], 4, 8)}, b"12345678"), ["hole of 4", "the header", "'w'"]),
    "hole between": (
        build({"v": ONE, "w": entry("F32", [1], 6, 10)}, b"1234567890"),
        ["hole of 2", "'v'", "'w'"],
    ),
    "overlap": (build({"v": ONE, "w": entry("F32", [1], 2, 6)}, b"123456"), ["'v'", "'w'", "overlap"]),
    "the same bytes twice": (build({"v": ONE, "w": ONE}, b"1234"), ["'v'", "'w'", "overlap"]),
    "bytes left over": (build({"w": ONE}, b"12345"), ["1 bytes after", "'w'"]),
    "bytes of nobody": (build({}, b"12345"), ["5 bytes after the header"]),
    "a boolean of 7": (build({"w": entry("BOOL", [2], 0, 2)}, b"\x01\x07"), ["'w'", "BOOL"]),
    "NaN": (
        build({"w": entry("F32", [2, 2], 0, 16)}, np.array([0, 1, np.nan, np.inf], "<f4").tobytes()),
        ["'w'", "nan at (1, 0)"],
    ),
    "infinity": (
        build({"w": entry("F64", [2], 0, 16)}, np.array([0, -np.inf], "<f8").tobytes()),
        ["'w'", "-inf at (1)"],
    ),
    "NaN of a scalar": (build({"w": entry("F16", [], 0, 2)}, b"\x00\x7e"), ["'w'", "nan at ()"]),
    "NaN of bfloat16": (build({"w": entry("BF16", [2], 0, 4)}, b"\0\0\xc0\x7f"), ["'w'", "nan at (1)"]),
    "the first of two": (
        build({"v": entry("F16", [1], 0, 2), "w": entry("F16", [1], 2, 4)}, b"\x00\x7c\x00\x7e"),
        ["'v'", "inf at (0)"],
    ),
    "a producer without its sum": (
        build({"__metadata__": {"producer": "minigpt"}, "w": ONE}, b"1234"),
        ["damaged", "missing"],
    ),
    "a wrong sum": (build({"__metadata__": {"sha256": "00"}, "w": ONE}, b"1234"), ["damaged", "'00'"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_a_tensor_file(tmp_path, fault):
    content, words = FAULTS[fault]
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    refused(lambda: load_tensors(path), str(path), *words)


def test_names_with_line_feeds_stay_on_one_line(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(build({"a\nb": entry("F32", [2], 0, 4)}, b"1234"))
    refused(lambda: load_tensors(path), r"'a\nb'")


def test_tensor_file_that_cannot_be_opened(tmp_path):
    path = tmp_path / "some.safetensors"
    refused(lambda: load_tensors(path), str(path), "no such file")
    path.mkdir()
    refused(lambda: load_tensors(path), str(path))


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_tensor_file_without_permission(tmp_path):
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"w": np.zeros(2)})
    path.chmod(0)
    refused(lambda: load_tensors(path), str(path), "permission denied")


def test_the_library_has_the_last_word(tmp_path, monkeypatch):
    """What our own checks let pass is still shown to the library before a tensor is read."""
    path = tmp_path / "some.safetensors"
    path.write_bytes(build({"w": ONE, "v": ONE}, b"1234"))
    monkeypatch.setattr(tensors_module, "_check_layout", lambda *arguments: None)
    refused(lambda: load_tensors(path), str(path), "not a valid safetensors file", "invalid offset")


def test_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "some.safetensors"
    path.write_bytes(build({"w": entry("U8", [100_000], 0, 100_000)}, bytes(100_000)))
    monkeypatch.setattr(tensors_module, "_check_with_library", lambda path: os.truncate(path, 50_000))
    refused(lambda: load_tensors(path), str(path), "'w'", "truncated")


# --- Our own files: every bit is vouched for -------------------------------------------------------


def small_file(path: Path) -> tuple[dict[str, np.ndarray], bytes]:
    tensors = {
        "a.weight": np.array([[1.5, -2.0]], "f4"),
        "a.bias": np.array([3, 0], "i2"),
        "none": np.zeros((0, 3), "f2"),
        "on": np.array([True]),
    }
    save_tensors(path, tensors, {"step": "10"})
    return tensors, path.read_bytes()


@contextmanager
def byte_flipped(path: Path, position: int, flip: int):
    """Change one byte in place, and change it back."""

    def change():
        with open(path, "r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ flip]))

    change()
    yield
    change()


def test_no_flipped_byte_goes_unnoticed(tmp_path):
    path = tmp_path / "some.safetensors"
    _, whole = small_file(path)
    for position in range(len(whole)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            with byte_flipped(path, position, flip):
                refused(lambda: load_tensors(path), str(path))
    assert path.read_bytes() == whole


def test_no_truncation_or_addition_goes_unnoticed(tmp_path):
    path = tmp_path / "some.safetensors"
    _, whole = small_file(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(lambda: load_tensors(path), str(path))
    for more in (b"\0", b" ", whole):
        path.write_bytes(whole + more)
        refused(lambda: load_tensors(path), str(path))


def test_exchanged_tensors_do_not_go_unnoticed(tmp_path):
    """Damage of more than one byte that leaves a valid file: two equally shaped tensors renamed."""
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"aa": np.zeros(3), "ab": np.ones(3)})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"aa"', b'"xx"').replace(b'"ab"', b'"aa"').replace(b'"xx"', b'"ab"'))
    refused(lambda: load_tensors(path), str(path), "damaged", "SHA-256")


def test_the_sum_is_what_the_docstring_says(tmp_path):
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"b": np.array([[1, 2]], ">i2"), "a": np.float32(0.5).reshape(())}, {"note": "é"})
    content = (
        b'{"format":"pt","note":"\\u00e9","producer":"minigpt"}\n'
        b'["a","F32",[]]\n\x00\x00\x00\x3f'
        b'["b","I16",[1,2]]\n\x01\x00\x02\x00'
    )
    _, metadata = load_tensors(path)
    assert metadata == {
        "format": "pt",
        "note": "é",
        "producer": "minigpt",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_a_file_of_others_needs_no_sum(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(build({"__metadata__": {"format": "pt"}, "w": ONE}, np.float32(2.5).tobytes()))
    tensors, metadata = load_tensors(path)
    assert tensors["w"] == 2.5
    assert metadata == {"format": "pt"}


# --- Round trips -----------------------------------------------------------------------------------

stored_dtypes = st.sampled_from(["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
arrays = hnp.arrays(
    stored_dtypes.map(np.dtype),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    elements={"allow_nan": False, "allow_infinity": False},
)
names_of_tensors = st.text(max_size=8).filter(lambda name: name != "__metadata__")


@settings(max_examples=50, deadline=None)
@given(
    tensors=st.dictionaries(names_of_tensors, arrays, max_size=5),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
)
def test_round_trip(tmp_path_factory, tensors, metadata):
    folder = tmp_path_factory.mktemp("round")
    path = folder / "some.safetensors"
    save_tensors(path, tensors, metadata)
    loaded, notes = load_tensors(path)
    assert same(loaded, tensors)
    own = {"format", "producer", "sha256"}
    assert {key: text for key, text in notes.items() if key not in own} == {
        key: text for key, text in metadata.items() if key not in own
    }
    for array in loaded.values():
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.flags.aligned

    # The same content in another order, byte order and layout gives the same bytes; so does a copy.
    again = folder / "again.safetensors"
    other = {
        name: np.asfortranarray(array).astype(array.dtype.newbyteorder(">")) if array.ndim else array
        for name, array in reversed(tensors.items())
    }
    save_tensors(again, other, dict(reversed(metadata.items())))
    assert again.read_bytes() == path.read_bytes()
    save_tensors(again, loaded, notes)
    assert again.read_bytes() == path.read_bytes()
    assert names(folder) == ["again.safetensors", "some.safetensors"]


def test_data_lie_at_multiples_of_their_size(tmp_path):
    """Programs that map a file into memory count on it."""
    path = tmp_path / "some.safetensors"
    tensors = {"a": np.ones(3, "?"), "b": np.ones(1, "f2"), "c": np.ones(1, "f4"), "d": np.ones(2, "f8")}
    save_tensors(path, tensors)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    for name, tensor in tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.itemsize == 0


@pytest.mark.parametrize("stored", ["float16", "float32", "float64"])
@pytest.mark.parametrize("wanted", [None, "float32", "float64"])
def test_conversion(tmp_path, stored, wanted):
    path = tmp_path / "some.safetensors"
    values = np.array([1 / 3, -0.0, 6e-8, 65504.0]).astype(stored)
    save_tensors(path, {"w": values, "n": np.arange(3)})
    tensors, _ = load_tensors(path, dtype=wanted)
    assert tensors["w"].dtype == (wanted or stored)
    assert tensors["w"].tobytes() == values.astype(wanted or stored).tobytes()
    assert tensors["n"].dtype == np.int64


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    path = tmp_path / "some.safetensors"
    values = np.array([1.0, -2.5, 3.3895314e38, 1e-40, -0.0], "f4")
    bits = (values.view("u4") >> 16).astype("<u2")
    path.write_bytes(build({"w": entry("BF16", [5], 0, 10)}, bits.tobytes()))
    expected = (bits.astype("u4") << 16).view("f4")
    for wanted in (None, "float32", "float64"):
        tensor = load_tensors(path, dtype=wanted)[0]["w"]
        assert tensor.dtype == (wanted or "float32")
        np.testing.assert_array_equal(tensor, expected)
        np.testing.assert_array_equal(np.signbit(tensor), np.signbit(expected))
    np.testing.assert_array_equal(expected[:2], values[:2])


def test_a_number_that_does_not_fit(tmp_path):
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"w": np.array([1.0, -1e300])})
    assert load_tensors(path)[0]["w"][1] == -1e300
    refused(lambda: load_tensors(path, dtype="float32"), str(path), "'w'", "float32", "(1)")


@pytest.mark.parametrize("dtype", ["float16", "int32", "double trouble", 7])
def test_other_dtypes_are_not_offered(tmp_path, dtype):
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"w": np.zeros(2)})
    refused(lambda: load_tensors(path, dtype=dtype), "float32 or float64", repr(dtype))


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"w": np.zeros(2, complex)}, {}, ["'w'", "complex128", "F32"]),
        ({"w": np.array(["a"])}, {}, ["'w'", "<U1"]),
        ({"__metadata__": np.zeros(2)}, {}, ["__metadata__"]),
        ({7: np.zeros(2)}, {}, ["7"]),
        ({"\ud800": np.zeros(2)}, {}, ["Unicode"]),
        ({"w": np.zeros(2)}, {"step": 3}, ["metadata", "('step', 3)"]),
        ({"w": np.zeros(2)}, {"x": "y" * 10_000}, ["header", "limit of 5000"]),
    ],
    ids=["complex", "strings", "reserved", "number", "surrogate", "metadata", "long"],
)
def test_what_cannot_be_saved(tmp_path, monkeypatch, tensors, metadata, words):
    monkeypatch.setattr(tensors_module, "_LONGEST_HEADER", 5000)
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"before")
    refused(lambda: save_tensors(path, tensors, metadata), str(path), *words)
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["some.safetensors"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_that_are_none_are_not_saved(tmp_path, value, dtype):
    """Such a file could not be read again, and it would take the place of one that can."""
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"w": np.zeros(3)})
    before = path.read_bytes()
    bad = np.zeros((2, 3), dtype)
    bad[1, 2] = value
    refused(lambda: save_tensors(path, {"v": bad}), str(path), "'v'", f"{value} at (1, 2)", kind=RunError)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["some.safetensors"]


# --- Writing: the disk -----------------------------------------------------------------------------


def test_write_and_replace(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, b"one")
    write_atomic(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["f"]


@posix
def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    write_atomic(tmp_path / "f", b"")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_is_not_the_name_of_a_file(tmp_path):
    refused(lambda: write_atomic(tmp_path / "no" / "f", b""), str(tmp_path / "no"), "no folder")
    (tmp_path / "d").mkdir()
    refused(lambda: write_atomic(tmp_path / "d", b""), str(tmp_path / "d"), "directory")
    (tmp_path / "f").write_bytes(b"")
    refused(lambda: write_atomic(tmp_path / "f" / "g", b""), "no folder")


@posix
def test_names_that_the_system_does_not_take(tmp_path):
    """Already the question whether such a name exists is answered with an error."""
    path = tmp_path / ("x" * 5000)

    def directory():
        with atomic_directory(path):
            pytest.fail("must not come so far")

    for read in (load_tensors, load_model, read_json, sha256_of_file):
        refused(lambda read=read: read(path), "too long")
    tensors = tensors_of(CONFIG)
    for write in (
        lambda: write_atomic(path, b""),
        lambda: save_tensors(path, tensors),
        lambda: save_model(path, CONFIG, tensors),
        directory,
    ):
        refused(write, "too long", "nothing was changed", kind=RunError)
    assert names(tmp_path) == []


@posix
def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: write_atomic(tmp_path / "pipe", b""), "device or pipe")
    assert not (tmp_path / "pipe").is_file()


FAILURES = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "quota",
    errno.EFBIG: "size limit",
    errno.EROFS: "read-only",
    errno.EIO: "disk error",
    errno.EACCES: "permission denied",
    errno.EBUSY: "busy",
}


@pytest.mark.parametrize("number", FAILURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_disk_refuses(tmp_path, monkeypatch, step, number):
    path = tmp_path / "f"
    write_atomic(path, b"before")

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    message = refused(lambda: write_atomic(path, b"after"), str(path), "nothing was changed", kind=RunError)
    assert FAILURES[number] in message.lower()
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["f"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("size", [10, 10_000_000])
def test_disk_full_for_real(tmp_path, monkeypatch, size):
    """The temporary is a device that is always full: small data fail at the flush, large ones before."""
    path = tmp_path / "f"
    write_atomic(path, b"before")

    def open_full(name, mode):
        Path(name).symlink_to("/dev/full")
        return open(name, "wb")

    monkeypatch.setattr(storage, "open", open_full, raising=False)
    refused(lambda: write_atomic(path, bytes(size)), "disk full", str(path), kind=RunError)
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["f"]


@posix
def test_limit_on_file_sizes(tmp_path):
    """A limit of the shell (`ulimit -f`) stops a write in the middle of a tensor."""
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"w": np.ones(10)})
    before = path.read_bytes()
    script = """
import resource, signal, sys
import numpy as np
from minigpt.errors import RunError
from minigpt.files import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_tensors(sys.argv[1], {"w": np.ones(1_000_000)})
except RunError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == f"file size limit reached while writing {path}; nothing was changed"
    assert path.read_bytes() == before
    assert names(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, InputError, FileNotFoundError, SystemExit])
def test_block_that_raises(tmp_path, stop):
    """The exception arrives as it was, also an OSError about something else."""
    path = tmp_path / "f"
    write_atomic(path, b"before")
    error = stop(2, "no such thing")

    def block():
        with atomic_file(path) as file:
            file.write(b"after")
            raise error

    with pytest.raises(stop) as caught:
        block()
    assert caught.value is error
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["f"]


@posix
def test_a_folder_that_was_not_confirmed(tmp_path, monkeypatch):
    """The rename has happened, so the message must not say that nothing was changed."""
    real = os.fsync
    failing = errno.EIO

    def fsync(number):
        if os.path.isdir(f"/proc/self/fd/{number}") or os.fstat(number).st_mode & 0o040000:
            raise OSError(failing, os.strerror(failing))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    message = refused(lambda: write_atomic(tmp_path / "f", b"1"), "is written", "f", kind=RunError)
    assert "nothing was changed" not in message
    assert (tmp_path / "f").read_bytes() == b"1"
    failing = errno.EINVAL  # a file system that cannot do it
    write_atomic(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"2"


def test_everything_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    """File, rename, folder, in this order: another order loses data in a power failure."""
    log = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)

        def logged(*arguments, step=step, real=real):
            is_folder = step == "fsync" and os.fstat(arguments[0]).st_mode & 0o040000
            log.append("folder" if is_folder else step)
            return real(*arguments)

        monkeypatch.setattr(os, step, logged)
    write_atomic(tmp_path / "f", b"1")
    assert log == ["fsync", "replace", "folder"] if os.name == "posix" else ["fsync", "replace"]


def test_two_writers_of_one_name(tmp_path):
    """Threads that write the same file at the same time: the result is one of theirs, whole."""
    path = tmp_path / "f"
    contents = [bytes([i]) * 100_000 for i in range(4)]
    faults = []

    def write(content):
        try:
            for _ in range(10):
                write_atomic(path, content)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["f"]


# --- Writing: leftovers ----------------------------------------------------------------------------


def dead_pid() -> int:
    """The pid of a process that has been and is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_leftovers_of_the_dead_are_cleaned(tmp_path):
    dead, host = dead_pid(), storage._HOST
    stale = [f".f.{host}-{dead}-00000000-0.tmp", f".other.name.{host}-{dead}-00000000-12.tmp"]
    stale.append(f".f.{host}-{os.getpid()}-00000000-0.tmp")  # the pid is ours, the process was another
    for name in stale:
        (tmp_path / name).write_bytes(b"half")
    folder = tmp_path / f".d.{host}-{dead}-00000000-1.tmp"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "x").write_bytes(b"half")
    kept = [
        f".f.{host}-{os.getpid()}-{storage._PROCESS}-999999.tmp",  # ours: somebody is at work
        f".f.{host}-{os.getppid()}-00000000-0.tmp",  # a process that lives
        f".f.00000000-{dead}-00000000-0.tmp",  # another machine's, on a shared disk
        f".f.{host}-{dead}-00000000.tmp",  # not a name of ours
        ".hidden.tmp",
        "f.tmp",
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"half")
    write_atomic(tmp_path / "f", b"1")
    assert names(tmp_path) == sorted([*kept, "f"])


def test_cleaning_is_never_a_reason_to_fail(tmp_path, monkeypatch):
    clean_leftovers(tmp_path / "no such folder")
    leftover = tmp_path / f".f.{storage._HOST}-{dead_pid()}-00000000-0.tmp"
    leftover.write_bytes(b"half")

    def fail(*arguments, **options):
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(Path, "unlink", fail)
    write_atomic(tmp_path / "f", b"1")
    assert (tmp_path / "f").read_bytes() == b"1"
    assert leftover.exists()


# --- Writing: directories --------------------------------------------------------------------------


def fill(directory: Path, word: str) -> None:
    (directory / "sub").mkdir()
    (directory / "a").write_text(word)
    (directory / "sub" / "b").write_text(word)


def content_of(directory: Path) -> list[tuple[str, str]]:
    return sorted(
        (path.relative_to(directory).as_posix(), path.read_text()) for path in directory.rglob("*") if path.is_file()
    )


def is_about(directory: Path, word: str) -> bool:
    return content_of(directory) == [("a", word), ("sub/b", word)]


def test_directory_is_new_or_replaced(tmp_path):
    path = tmp_path / "step-10"
    for word in ("one", "two"):
        with atomic_directory(path) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".")
            fill(temporary, word)
            (temporary / word).write_text(word)
            (temporary / word).unlink()
        assert is_about(path, word)
        assert names(tmp_path) == ["step-10"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError, FileNotFoundError])
def test_directory_block_that_raises(tmp_path, stop, there):
    path = tmp_path / "step-10"
    if there:
        path.mkdir()
        fill(path, "before")
    error = stop(2, "no such thing")

    def block():
        with atomic_directory(path) as temporary:
            fill(temporary, "after")
            raise error

    with pytest.raises(stop) as caught:
        block()
    assert caught.value is error
    assert names(tmp_path) == (["step-10"] if there else [])
    assert not there or is_about(path, "before")


@pytest.mark.parametrize("step", ["fsync", "rename", "second rename"])
def test_directory_disk_refuses(tmp_path, monkeypatch, step):
    path = tmp_path / "step-10"
    path.mkdir()
    fill(path, "before")
    real = os.rename
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if step == "second rename" and len(calls) != 2:
            return real(*arguments)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, step.split()[-1], fail)

    def block():
        with atomic_directory(path) as temporary:
            fill(temporary, "after")

    refused(block, "disk full", str(path), "nothing was changed", kind=RunError)
    assert is_about(path, "before")
    assert names(tmp_path) == ["step-10"]


def test_directory_disk_full_inside(tmp_path):
    def block():
        with atomic_directory(tmp_path / "step-10"):
            raise OSError(errno.ENOSPC, "full")

    refused(block, "disk full", "step-10", kind=RunError)
    assert names(tmp_path) == []


def test_what_is_not_the_name_of_a_directory(tmp_path):
    def block(path):
        with atomic_directory(path):
            pytest.fail("must not come so far")

    (tmp_path / "f").write_bytes(b"1")
    refused(lambda: block(tmp_path / "f"), "there is a file")
    refused(lambda: block(tmp_path / "no" / "d"), "no folder")
    assert names(tmp_path) == ["f"]


@posix
def test_directory_through_a_link(tmp_path):
    """A link to a big disk stays a link."""
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "runs")
    with atomic_directory(tmp_path / "runs") as temporary:
        fill(temporary, "one")
    assert (tmp_path / "runs").is_symlink()
    assert is_about(tmp_path / "disk" / "runs", "one")
    assert names(tmp_path / "disk") == ["runs"]


@posix
def test_every_file_of_a_directory_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    synced, renamed = set(), []
    fsync, rename = os.fsync, os.rename

    def log_fsync(number):
        synced.add((os.fstat(number).st_ino, bool(renamed)))
        fsync(number)

    def log_rename(*arguments):
        renamed.append(arguments)
        rename(*arguments)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "rename", log_rename)
    with atomic_directory(tmp_path / "step-10") as temporary:
        fill(temporary, "one")
    whole = [tmp_path / "step-10", *(tmp_path / "step-10").rglob("*")]
    assert len(whole) == 4
    for path in whole:
        assert (path.stat().st_ino, False) in synced, path
    assert (tmp_path.stat().st_ino, True) in synced


def test_a_directory_moved_aside_is_put_back(tmp_path):
    """Killed between the two renames: the old directory is out of sight, the new one not yet named."""
    host, dead = storage._HOST, dead_pid()
    aside = tmp_path / f".step-10.{host}-{dead}-00000000-1.old"
    aside.mkdir()
    fill(aside, "before")
    ready = tmp_path / f".step-10.{host}-{dead}-00000000-0.tmp"
    ready.mkdir()
    fill(ready, "after")
    clean_leftovers(tmp_path)
    assert names(tmp_path) == ["step-10"]
    assert is_about(tmp_path / "step-10", "before")
    # With its successor in place it is litter.
    shutil.copytree(tmp_path / "step-10", aside)
    clean_leftovers(tmp_path)
    assert names(tmp_path) == ["step-10"]


def test_half_deleted_directories_are_never_put_back(tmp_path, monkeypatch):
    """A successor that came and went must not bring back what was being deleted."""
    aside = tmp_path / f".step-10.{storage._HOST}-{dead_pid()}-00000000-1.old"
    aside.mkdir()
    fill(aside, "before")
    (tmp_path / "step-10").mkdir()

    def killed(path, **options):
        (Path(path) / "a").unlink()
        raise OSError(errno.EIO, "stopped here")

    monkeypatch.setattr(shutil, "rmtree", killed)
    clean_leftovers(tmp_path)
    monkeypatch.undo()
    (tmp_path / "step-10").rmdir()
    clean_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_remove_directory(tmp_path, monkeypatch):
    path = tmp_path / "step-10"
    path.mkdir()
    fill(path, "one")

    def killed(path, **options):
        assert not (tmp_path / "step-10").exists()  # out of sight before the first file goes
        raise OSError(errno.EIO, "stopped here")

    monkeypatch.setattr(shutil, "rmtree", killed)
    refused(lambda: remove_directory(path), "disk error", "deleting", str(path), kind=RunError)
    monkeypatch.undo()
    assert not path.exists()
    path.mkdir()
    remove_directory(path)
    assert not path.exists()
    refused(lambda: remove_directory(path), "deleting", str(path), kind=RunError)


# --- kill -9 ---------------------------------------------------------------------------------------

# A process that forks a writer for every line of the file layer and kills it right before that line.
# Functions that only compute are left out, and what "tensors" has covered is not traced again.
# Prints what was found after each death.
KILLER = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from minigpt import files
from minigpt.files import storage
from minigpt.files import tensors as tensors_module
from minigpt.config import GPTConfig, parameter_shapes

kind, folder = sys.argv[1], Path(sys.argv[2])
os.fsync = lambda number: None  # what is written survives the death of a process without it
QUIET = {"write_tensors", "_digest", "line", "_check_parameters", "_first_not_finite", "json_bytes",
         "name_list", "_listed", "_bytes_of", "_architecture", "<listcomp>", "<genexpr>", "_is_running"}
if kind != "tensors":
    QUIET |= {"clean_leftovers", "_check_folder", "_temporary_name", "write_faults", "flush_to_disk"}
if kind == "directory":
    QUIET |= {"atomic_file"}

HERE = os.path.dirname(files.__file__)

def killed_at(count, write):
    pid = os.fork()
    if pid == 0:
        left = count
        def trace(frame, event, argument):
            nonlocal left
            if os.path.dirname(frame.f_code.co_filename) != HERE or frame.f_code.co_name in QUIET:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)
        write()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

def tensors(config, seed):
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype("f4") for n, s in parameter_shapes(config).items()}

shape = dict(vocab_size=5, n_positions=3, n_embd=4, n_layer=1)
old, new = GPTConfig(**shape, n_head=1), GPTConfig(**shape, n_head=2)
weights = {"old": tensors(old, 0), "new": tensors(new, 1)}
configs = {"old": old, "new": new}

def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)

if kind == "tensors":
    def write(which):
        files.save_tensors(folder / "w.safetensors", weights[which])
    def state():
        found, _ = files.load_tensors(folder / "w.safetensors")
        return [which for which in weights if equal(found, weights[which])]
elif kind == "model":
    def write(which):
        files.save_model(folder, configs[which], weights[which])
    def state():
        # Looked at without load_model, as another program would.
        if not (folder / "config.json").exists():
            return ["no config"]
        config = GPTConfig.from_json_dict(json.loads((folder / "config.json").read_text()))
        found, _ = files.load_tensors(folder / "model.safetensors")
        which = [w for w in weights if equal(found, weights[w]) and config == configs[w]]
        loaded = files.load_model(folder)
        assert which and loaded[0] == configs[which[0]] and equal(loaded[1], found)
        return which
else:
    def write(which):
        with files.atomic_directory(folder / "step") as temporary:
            files.save_tensors(temporary / "w.safetensors", weights[which])
            files.write_json(temporary / "state.json", {"which": which})
    def state():
        files.clean_leftovers(folder)
        found, _ = files.load_tensors(folder / "step" / "w.safetensors")
        which = files.read_json(folder / "step" / "state.json")["which"]
        return [which] if equal(found, weights[which]) else []

outcomes, kills, litter = {}, 0, set()
write("old")
while killed_at(kills, lambda: write("new")):
    kills += 1
    found = state()
    assert len(found) == 1, (kills, found)
    outcomes[found[0]] = outcomes.get(found[0], 0) + 1
    write("old")  # whatever is there, the next write works and cleans up
    litter.update(p.name for p in folder.iterdir() if p.name.startswith("."))
    assert kills % 10 or state() == ["old"]
assert state() == ["new"]
print(json.dumps({"kills": kills, "outcomes": outcomes, "litter": sorted(litter)}))
"""


def run_script(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@posix
@pytest.mark.parametrize(
    ("kind", "outcomes"),
    [
        ("tensors", {"old", "new"}),
        ("model", {"old", "no config", "new"}),
        ("directory", {"old", "new"}),
    ],
)
def test_killed_at_every_line(tmp_path, kind, outcomes):
    found = json.loads(run_script(KILLER, kind, str(tmp_path)))
    assert found["kills"] > 25
    assert found["outcomes"].keys() == outcomes
    assert found["litter"] == []


WRITER = """
import sys
import numpy as np
from minigpt.files import save_tensors
print("ready", flush=True)
while True:
    for value in (1.0, 2.0):
        save_tensors(sys.argv[1], {"w": np.full((700, 700), value, "f4"), "v": np.full(9, value)})
"""


@posix
def test_killed_at_any_moment(tmp_path):
    """Kills from outside, most of them in the middle of two megabytes."""
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"w": np.full((700, 700), 1.0, "f4"), "v": np.full(9, 1.0)})
    rng = np.random.default_rng(0)
    kills = interrupted = 0
    while kills < 3 or (interrupted == 0 and kills < 20):
        kills += 1
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        interrupted += len(names(tmp_path)) > 1
        tensors, _ = load_tensors(path)
        assert np.unique(tensors["w"]).size == 1
        assert tensors["w"][0, 0] == tensors["v"][0]
    assert interrupted > 0
    save_tensors(path, tensors)
    assert names(tmp_path) == ["w.safetensors"]


# --- Models ----------------------------------------------------------------------------------------


def test_model_round_trip(tmp_path):
    for dtype, ours in [("float32", "float32"), ("float64", "float64"), ("float16", "float32")]:
        tensors = tensors_of(CONFIG, dtype=dtype)
        directory = tmp_path / "deep" / dtype
        save_model(directory, CONFIG, tensors)
        assert names(directory) == ["config.json", "generation_config.json", "model.safetensors"]
        config, loaded = load_model(directory)
        assert config == CONFIG
        assert list(loaded) == list(parameter_shapes(CONFIG))
        assert same(loaded, {name: tensor.astype(ours) for name, tensor in tensors.items()})
        for wanted in ("float32", "float64"):
            _, loaded = load_model(directory, dtype=wanted)
            assert same(loaded, {name: tensor.astype(wanted) for name, tensor in tensors.items()})


def test_model_directory_is_deterministic_and_leaves_other_files_alone(tmp_path):
    for name, seeds in [("a", [0]), ("b", [1, 0])]:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "vocab.json").write_text("{}")
        for seed in seeds:
            save_model(directory, CONFIG, dict(reversed(tensors_of(CONFIG, seed).items())))
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    generation = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert generation == {"_from_model_config": True, "bos_token_id": None, "eos_token_id": 10}


def write_foreign(directory: Path, config: GPTConfig, tensors: dict[str, np.ndarray], **more) -> Path:
    """A model directory as another program would write it: no sum, no note of the architecture."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**config.to_json_dict(), **more}))
    header, data = {}, b""
    codes = {code: name for name, code in [("F16", "f2"), ("F32", "f4"), ("F64", "f8"), ("I64", "i8")]}
    for name, tensor in tensors.items():
        begin = len(data)
        data += tensor.tobytes()
        header[name] = entry(codes[tensor.dtype.str[1:]], list(tensor.shape), begin, len(data))
    (directory / "model.safetensors").write_bytes(build(header, data))
    return directory


def test_model_without_prefix_with_masks_and_head(tmp_path):
    tensors = tensors_of(CONFIG)
    for prefix in ("", "transformer."):
        stored = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        for layer in range(2):
            stored[f"{prefix}h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 5, 5), "f4"))
            stored[f"{prefix}h.{layer}.attn.masked_bias"] = np.array(-1e4, "f4")
        stored["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
        _, loaded = load_model(write_foreign(tmp_path / "m", CONFIG, stored))
        assert list(loaded) == list(parameter_shapes(CONFIG))
        assert same(loaded, tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("transformer.h.1.ln_2.bias"), ["missing: transformer.h.1.ln_2.bias"]),
        (
            lambda t: t.update({"transformer.h.2.ln_2.bias": np.ones(6)}),
            ["left over: transformer.h.2.ln_2.bias"],
        ),
        (
            lambda t: t.update({"transformer.wpe.weight": np.ones((6, 5))}),
            ["wrong shape: transformer.wpe.weight (6, 5) instead of (5, 6)"],
        ),
        (
            lambda t: (t.pop("transformer.ln_f.bias"), t.update({"ln_f.Bias": np.ones(6)})),
            ["missing: transformer.ln_f.bias; left over: ln_f.Bias"],
        ),
        (lambda t: t.update({"a\nb": np.ones(1)}), [r"left over: 'a\nb'"]),
        (lambda t: t.update({"wpe.weight": np.ones((5, 6))}), ["both 'transformer.wpe.weight' and 'wpe.weight'"]),
        (lambda t: t.update({"lm_head.weight": np.ones((11, 6))}), ["lm_head.weight differs"]),
        (lambda t: t.update({"lm_head.weight": np.ones((11, 7))}), ["lm_head.weight differs"]),
        (
            lambda t: t.update({"transformer.h.0.attn.bias": np.ones((1, 5, 5))}),
            ["left over: transformer.h.0.attn.bias"],
        ),
        (
            lambda t: t.update({"transformer.h.2.attn.bias": np.ones((1, 1, 5, 5))}),
            ["left over: transformer.h.2.attn.bias"],
        ),
        (
            lambda t: t.update({"transformer.h.0.attn.masked_bias": np.ones(2)}),
            ["left over: transformer.h.0.attn.masked_bias"],
        ),
        (
            lambda t: t.update({"transformer.ln_f.bias": np.ones(6, "i8")}),
            ["not floating-point numbers: transformer.ln_f.bias"],
        ),
        (
            lambda t: t["transformer.ln_f.bias"].__setitem__(4, np.nan),
            ["'transformer.ln_f.bias'", "nan at (4)"],
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if ".0." in name][:0],
            ["missing: transformer.h.0.ln_1.weight", "transformer.h.0.attn.c_proj.weight and 7 more"],
        ),
        (
            lambda t: t.update({f"x{i}": np.ones(1) for i in range(5)}),
            ["left over: x0, x1, x2, x3, x4"],
        ),
        (lambda t: t.clear(), ["n_layer is 2", "0 tensors"]),
    ],
)
def test_model_whose_tensors_do_not_fit(tmp_path, change, words):
    tensors = tensors_of(CONFIG)
    change(tensors)
    directory = write_foreign(tmp_path / "m", CONFIG, tensors)
    message = refused(lambda: load_model(directory), str(directory / "model.safetensors"), *words)
    assert ("more" in message) == ("and 7 more" in message)


def test_model_of_many_faults_is_told_in_one_line(tmp_path):
    tensors = {name: tensor.T[:1] for name, tensor in tensors_of(CONFIG).items()}
    directory = write_foreign(tmp_path / "m", CONFIG, tensors)
    message = refused(lambda: load_model(directory), "wrong shape: transformer.wte.weight (1, 11) instead of (11, 6)")
    assert message.count(" instead of ") == 5
    assert message.endswith(f"and {len(tensors) - 5} more")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_head": 4}, ["config.json", "n_embd must be a multiple of n_head"]),
        ({"n_layer": 10**9}, ["config.json", "n_layer is 1000000000", "28 tensors"]),
        ({"n_layer": 3}, ["missing: transformer.h.2.ln_1.weight", "and 7 more"]),
        ({"n_layer": 1}, ["left over: transformer.h.1.", "and 7 more"]),
        ({"n_inner": 12}, ["wrong shape: transformer.h.0.mlp.c_fc.weight (6, 24) instead of (6, 12)"]),
        ({"vocab_size": 12}, ["wrong shape: transformer.wte.weight (11, 6) instead of (12, 6)"]),
        ({"activation_function": "relu"}, ["config.json", "activation_function", "'relu'"]),
        ({"model_type": "opt"}, ["config.json", "model_type", "'opt'"]),
    ],
)
@pytest.mark.parametrize("ours", [True, False])
def test_model_with_the_wrong_configuration(tmp_path, values, words, ours):
    directory = tmp_path / "m"
    if ours:
        save_model(directory, CONFIG, tensors_of(CONFIG))
        (directory / "config.json").write_text(json.dumps({**CONFIG.to_json_dict(), **values}))
    else:
        write_foreign(directory, CONFIG, tensors_of(CONFIG), **values)
    refused(lambda: load_model(directory), str(directory), *words)


@pytest.mark.parametrize(
    ("field", "value"), [("n_head", 3), ("layer_norm_epsilon", 1e-6), ("layer_norm_epsilon", 3e-5)]
)
def test_model_whose_configuration_fits_but_is_another(tmp_path, field, value):
    """No shape tells it: the weights remember with what they were saved."""
    save_model(tmp_path, CONFIG, tensors_of(CONFIG))
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, field: value}))
    was = getattr(CONFIG, field)
    refused(lambda: load_model(tmp_path), "config.json", f"{field}={value}", f"{field}={was}")
    # What does not change the logits may be edited by hand.
    (tmp_path / "config.json").write_text(json.dumps({**fields, "attn_pdrop": 0.5, "eos_token_id": 3}))
    assert load_model(tmp_path)[0].eos_token_id == 3


def test_configuration_that_is_no_json(tmp_path):
    save_model(tmp_path, CONFIG, tensors_of(CONFIG))
    path = tmp_path / "config.json"
    for content, word in [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "object"),
        (b'{"n_head": 1, "n_head": 2}', "'n_head' twice"),
        (b'{"\xff": 1}', "not UTF-8"),
        (b"[" * 200_000, "not JSON"),
        (b"\0" * 100, "not JSON"),
    ]:
        path.write_bytes(content)
        refused(lambda: load_model(tmp_path), str(path), word)
    path.unlink()
    refused(lambda: load_model(tmp_path), str(path), "no such file")


def test_no_flipped_byte_of_a_configuration_is_a_traceback(tmp_path):
    """config.json is the user's to edit, so a change may load; but then as the same function."""
    config = GPTConfig(vocab_size=11, n_positions=5, n_embd=6, n_layer=1, n_head=2)
    tensors = tensors_of(config)
    save_model(tmp_path, config, tensors)
    path = tmp_path / "config.json"
    fields = ["n_head", "n_layer", "n_embd", "inner_size", "layer_norm_epsilon", "vocab_size", "n_positions"]
    loads = 0
    for position in range(path.stat().st_size):
        for flip in (1, 2, 64):
            with byte_flipped(path, position, flip):
                try:
                    found, loaded = load_model(tmp_path)
                except InputError as error:
                    message = str(error)
                else:
                    message = "loaded"
                    loads += 1
                    assert [getattr(found, name) for name in fields] == [getattr(config, name) for name in fields]
                    assert same(loaded, tensors)
                assert len(message.splitlines()) == 1
    assert 0 < loads < 3 * path.stat().st_size


def test_directories_that_hold_no_model(tmp_path):
    refused(lambda: load_model(tmp_path / "no"), str(tmp_path / "no"), "no such directory")
    (tmp_path / "file").write_bytes(b"")
    refused(lambda: load_model(tmp_path / "file"), str(tmp_path / "file"), "no such directory")
    write_json(tmp_path / "config.json", CONFIG.to_json_dict())
    refused(lambda: load_model(tmp_path), str(tmp_path), "no model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    message = refused(lambda: load_model(tmp_path), "pytorch_model.bin", "save_pretrained")
    # The advice is a command that can be pasted.
    code = re.search(r'python -c "(.*)"', message)
    assert code is not None
    compile(code[1], "advice", "exec")


def shards(directory: Path, parts: dict[str, dict[str, np.ndarray]], weight_map: dict | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", CONFIG.to_json_dict())
    for file, tensors in parts.items():
        save_tensors(directory / file, tensors)
    where = {name: file for file, tensors in parts.items() for name in tensors}
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map or where})
    return directory


def test_shards(tmp_path):
    tensors = tensors_of(CONFIG)
    first = dict(list(tensors.items())[:9])
    parts = {
        "model-00001-of-00002.safetensors": first,
        "model-00002-of-00002.safetensors": {n: t for n, t in tensors.items() if n not in first},
    }
    directory = shards(tmp_path / "m", parts)
    assert same(load_model(directory)[1], tensors)

    where = {name: file for file, part in parts.items() for name in part}
    one, two = parts
    ln_f, wte = "transformer.ln_f.bias", "transformer.wte.weight"
    for weight_map, words in [
        ({**where, "x": one}, [one, "missing: x"]),
        ({name: file for name, file in where.items() if name != wte}, [one, f"left over: {wte}"]),
        ({**where, ln_f: one}, [one, f"missing: {ln_f}"]),
        ({**where, ln_f: "no.safetensors"}, ["index.json", "no such file", "no.safetensors"]),
        ({**where, ln_f: "../m/" + two}, ["index.json", f"'{ln_f}'", "../m/"]),
        ({**where, ln_f: str(directory / two)}, ["index.json", f"'{ln_f}'", "this directory"]),
        ({**where, ln_f: 7}, ["index.json", f"'{ln_f}'", "7"]),
        ({**where, ln_f: "pytorch_model.bin"}, ["index.json", "pytorch_model.bin"]),
        ([wte], ["index.json", "weight_map"]),
    ]:
        shards(directory, parts, weight_map)
        refused(lambda: load_model(directory), *words)
    shards(directory, {one: first})
    refused(lambda: load_model(directory), "index.json", "missing: transformer.h.0.ln_2.bias", "and 14 more")


def test_save_refuses_what_is_not_the_model(tmp_path):
    tensors = tensors_of(CONFIG)
    directory = tmp_path / "m"
    save_model(directory, CONFIG, tensors)
    before = {name: (directory / name).read_bytes() for name in names(directory)}
    other = GPTConfig(vocab_size=11, n_positions=5, n_embd=6, n_layer=1, n_head=2)
    nan = {name: tensor.copy() for name, tensor in tensors.items()}
    nan["transformer.ln_f.bias"][2] = np.nan
    bias = "transformer.ln_f.bias"
    for config, values, kind, words in [
        (other, tensors, InputError, ["left over: transformer.h.1.ln_1.weight"]),
        (CONFIG, {**tensors, bias: np.ones(7, "f4")}, InputError, [bias, "(7,) instead of (6,)"]),
        (CONFIG, {**tensors, "lm_head.weight": np.ones(1)}, InputError, ["left over: lm_head.weight"]),
        (CONFIG, {**tensors, bias: np.ones(6)}, InputError, ["float32, float64"]),
        (CONFIG, {n: t.astype("i4") for n, t in tensors.items()}, InputError, ["int32"]),
        (CONFIG, nan, RunError, [bias, "nan at (2)"]),
        (GPTConfig(11, 5, 6, 2, 2, layer_norm_epsilon=1e-3), nan, RunError, [bias, "nan at (2)"]),
    ]:
        refused(lambda config=config, values=values: save_model(directory, config, values), *words, kind=kind)
        assert {name: (directory / name).read_bytes() for name in names(directory)} == before
    (tmp_path / "file").write_bytes(b"")
    refused(lambda: save_model(tmp_path / "file", CONFIG, tensors), str(tmp_path / "file"), "a file of that name")
    refused(lambda: save_model(tmp_path / "file" / "m", CONFIG, tensors), str(tmp_path / "file"), kind=RunError)


def test_save_on_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    save_model(tmp_path, CONFIG, tensors_of(CONFIG))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    real = os.fsync
    for allowed in range(3):
        calls = []

        def fail(number, calls=calls, allowed=allowed):
            calls.append(number)
            if len(calls) > allowed:
                raise OSError(errno.ENOSPC, "full")
            real(number)

        monkeypatch.setattr(os, "fsync", fail)
        other = GPTConfig(11, 5, 6, 2, n_head=3)
        refused(lambda other=other: save_model(tmp_path, other, tensors_of(other, 1)), "disk full", kind=RunError)
        monkeypatch.undo()
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


# --- The rest --------------------------------------------------------------------------------------


def test_check_vocabulary():
    check_vocabulary(11, CONFIG)
    for size in (10, 12):
        refused(lambda size=size: check_vocabulary(size, CONFIG), "tokenizer", str(size), "model", "11")


def test_json_files(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": [1, None], "a": "é\n"})
    assert path.read_bytes() == b'{\n  "a": "\xc3\xa9\\n",\n  "b": [\n    1,\n    null\n  ]\n}\n'
    assert read_json(path) == {"b": [1, None], "a": "é\n"}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == {"b": [1, None], "a": "é\n"}
    refused(lambda: read_json(tmp_path), str(tmp_path))


def test_sha256_of_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256_of_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    refused(lambda: sha256_of_file(tmp_path / "y"), str(tmp_path / "y"), "no such file")


def test_provenance(monkeypatch):
    record = json.loads(json.dumps(provenance()))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])
    assert record["python"] == sys.version.split()[0]
    assert record["numpy"] == np.__version__
    assert re.fullmatch(r"\d+\.\d+.*", record["minigpt"])
    assert record["cpu"]
    assert record["cores"] == os.cpu_count()
    assert all(pool.keys() == {"name", "version", "threads"} for pool in record["blas"])
    if record["git_commit"] is not None:
        assert re.fullmatch("[0-9a-f]{40}", record["git_commit"])
        assert isinstance(record["git_changes"], bool)
    # Without git a run is recorded all the same.
    monkeypatch.setenv("PATH", "")
    record = provenance()
    assert record["git_commit"] is None
    assert record["git_changes"] is None


def test_provenance_in_a_checkout_of_somebody_else(tmp_path, monkeypatch):
    """Installed below another project's checkout, that project's commit says nothing about us."""
    site = tmp_path / "project" / "venv" / "site-packages"
    (site / "minigpt").mkdir(parents=True)
    module = sys.modules["minigpt.files.provenance"]
    monkeypatch.setattr(module, "__file__", str(site / "minigpt" / "files" / "provenance.py"))
    monkeypatch.setattr(module, "_output_of", lambda *command: "answer of " + command[0])
    assert provenance()["git_commit"] is None
    (site / ".git").mkdir()
    assert provenance()["git_commit"] == "answer of git"
