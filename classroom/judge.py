"""Whether an answer is right: type, shape, dtype, finite, values, in this order; on values rebuilt from bytes.

Everything here is plain data (`classroom.values.plain`): numbers, text, arrays of NumPy's own class. No method of a
student's object is ever called, and a comparison that comes to no result is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from classroom.recorded import Outcome, Tolerance
from classroom.values import Foreign, Named, Ops, Rng

ORDER = ("type", "length", "shape", "dtype", "finite", "values")


@dataclass(frozen=True)
class Difference:
    """Where an answer is not what it should be.

    Attributes
    ----------
    kind : str
        One of `ORDER`.
    place : str
        "the answer", "item 2 of the answer".
    text : str
        What is wrong there, in one sentence.
    expected, actual : value
        What stands there.
    """

    kind: str
    place: str
    text: str
    expected: Any
    actual: Any


def compare(expected: Outcome, actual: Outcome, tolerance: Tolerance, float32: bool) -> Difference | None:
    """The first difference in the judge's order, or None if the answer is right.

    Parameters
    ----------
    expected, actual : Outcome
        Plain values.
    tolerance : Tolerance
    float32 : bool
        Whether float32 is taken for float64.
    """
    if float32 and expected.answer is not None and any(same(v, expected.answer) for v in expected.mutated.values()):
        # The answer stands in the caller's array, whose dtype does not say in which precision it was computed.
        tolerance = tolerance._replace(float64=tolerance.float32)
    found = list(_differences(expected.answer, actual.answer, tolerance, float32, "the answer"))
    for name, value in expected.mutated.items():
        place = f"the argument {name}, which the call changes,"
        found += _differences(value, actual.mutated.get(name), tolerance, float32, place)
    return min(found, key=lambda difference: ORDER.index(difference.kind), default=None)


def edited(before: Mapping[str, Any], after: Mapping[str, Any], mutates: tuple[str, ...]) -> list[str]:
    """Names of the arguments that the call has changed and was not meant to.

    Parameters
    ----------
    before, after : mapping of str to value
        Plain values. Of generators and operations nothing is compared; any other argument that is not there counts
        as changed.
    mutates : tuple of str
    """
    judged = [name for name in before if name not in mutates and not isinstance(before[name], (Rng, Ops))]
    return [name for name in judged if name not in after or not same(before[name], after[name])]


# ---------------------------------------------------------------------------------------------- differences


def _differences(e: Any, a: Any, tolerance: Tolerance, float32: bool, place: str) -> Iterator[Difference]:
    if isinstance(e, np.ndarray) and e.ndim == 0:
        yield from _number(e.item(), a, tolerance, float32 or e.dtype == np.float32, place)
    elif isinstance(e, np.ndarray):
        yield from _array(e, a, tolerance, float32, place)
    elif isinstance(e, (bool, int, float)):
        yield from _number(e, a, tolerance, float32, place)
    elif isinstance(e, Named):
        # The class, wherever it is defined: a tree may be loaded under another name.
        same_class = isinstance(a, Named) and a.type_name.rpartition(":")[2] == e.type_name.rpartition(":")[2]
        if not same_class or a.fields != e.fields:
            yield _of_type(e, a, place)
        else:
            for name, x, y in zip(e.fields, e.items, a.items, strict=True):
                yield from _differences(x, y, tolerance, float32, f"{name} of {place}")
    elif isinstance(e, (tuple, list)):
        items = a.items if isinstance(a, Named) else a
        if not isinstance(items, (tuple, list)):
            yield _of_type(e, a, place)
        elif len(items) != len(e):
            yield Difference("length", place, f"{place} has {_count(len(items))}, not {len(e)}", e, a)
        else:
            for i, (x, y) in enumerate(zip(e, items, strict=True)):
                yield from _differences(x, y, tolerance, float32, f"item {i} of {place}")
    elif isinstance(e, dict):
        if not isinstance(a, dict):
            yield _of_type(e, a, place)
        elif e.keys() != a.keys():
            missing, extra = [k for k in e if k not in a], [k for k in a if k not in e]
            what = [f"lacks {key!r}" for key in missing[:1]] + [f"has {str(extra[:1])[1:-1][:80]}"] * bool(extra)
            yield Difference("length", place, f"{place} {' and '.join(what)}; {len(e)} keys are expected", e, a)
        else:
            for key in e:
                yield from _differences(e[key], a[key], tolerance, float32, f"{key!r} of {place}")
    elif type(e) is not type(a):
        yield _of_type(e, a, place)
    elif e != a:
        yield Difference("values", place, f"{place} is {_short(a)}, not {_short(e)}", e, a)


def _number(e: Any, a: Any, tolerance: Tolerance, float32: bool, place: str) -> Iterator[Difference]:
    if isinstance(a, np.ndarray) and a.ndim:
        yield Difference("shape", place, f"{place} is an array of shape {a.shape}, not a single number", e, a)
        return
    if not _is_number(a):
        yield _of_type(e, a, place)
        return
    dtype = a.dtype if isinstance(a, np.ndarray) and a.dtype.kind == "f" else None
    a = a.item() if isinstance(a, np.ndarray) else a
    if isinstance(e, bool) != isinstance(a, bool) or (isinstance(e, int) and isinstance(a, float)):
        yield _of_type(e, a, place)
    elif not isinstance(e, float):
        if e != a:
            yield Difference("values", place, f"{place} is {_short(a)}, not {_short(e)}", e, a)
    elif dtype is not None and not _dtype_fits(np.dtype(np.float64), dtype, float32):
        yield Difference("dtype", place, f"{place} is of dtype {dtype}, not float64", e, a)
    else:
        # A number of Python's own does not say in which precision it was computed.
        single = float32 and dtype != np.float64
        yield from _floats(np.float64(e), np.float64(a), tolerance, single, place)


def _array(e: np.ndarray, a: Any, tolerance: Tolerance, float32: bool, place: str) -> Iterator[Difference]:
    if isinstance(a, Foreign) and a.array is not None and not a.type_name.endswith(("masked array", "matrix")):
        a = a.array  # some other class of arrays: judged by what it holds
    if not isinstance(a, np.ndarray):
        if _is_number(a):
            yield Difference("shape", place, f"{place} is a single number, not an array of shape {e.shape}", e, a)
        else:
            yield _of_type(e, a, place)
    elif a.shape != e.shape:
        yield Difference("shape", place, f"{place} has shape {a.shape}, not {e.shape}", e, a)
    elif not _dtype_fits(e.dtype, a.dtype, float32):
        yield Difference("dtype", place, f"{place} is of dtype {a.dtype}, not {e.dtype}", e, a)
    elif e.dtype.kind == "f":
        single = a.dtype == np.float32 and e.dtype == np.float64
        yield from _floats(e, a, tolerance, single or e.dtype == np.float32, place)
    elif not (wrong := e != a).any():
        return
    else:
        yield _values(e, a, wrong, place)


def _floats(e: Any, a: Any, tolerance: Tolerance, single: bool, place: str) -> Iterator[Difference]:
    e, a = np.asarray(e, dtype=np.float64), np.asarray(a, dtype=np.float64)
    finite = np.isfinite(e)
    if not (finite == np.isfinite(a)).all() or not _equal(e[~finite], a[~finite]):
        unlike = (finite != np.isfinite(a)) | (~finite & ~((e == a) | (np.isnan(e) & np.isnan(a))))
        yield _values(e, a, unlike, place, "finite")
        return
    largest = float(np.abs(e[finite]).max(initial=0.0))
    relative = tolerance.float32 if single else tolerance.float64
    # Written so that a comparison with NaN would be a failure.
    off = np.abs(np.where(finite, a, 0.0) - np.where(finite, e, 0.0))
    right = ~finite | (off <= relative * max(largest, tolerance.floor))
    if not right.all():
        yield _values(e, a, ~right, place)


def _equal(e: np.ndarray, a: np.ndarray) -> bool:
    return bool(((e == a) | (np.isnan(e) & np.isnan(a))).all())


def _values(e: np.ndarray, a: np.ndarray, wrong: np.ndarray, place: str, kind: str = "values") -> Difference:
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"{place} at {list(index)}" if index else place
    count = f" ({int(wrong.sum())} of {wrong.size} elements are wrong; this is the first)" if wrong.size > 1 else ""
    text = f"{where}: expected {_short(e[index].item())}, got {_short(a[index].item())}{count}"
    return Difference(kind, place, text, e, a)


def _of_type(e: Any, a: Any, place: str) -> Difference:
    return Difference("type", place, f"{place} is {described(a)}; expected is {described(e)}", e, a)


def _dtype_fits(e: np.dtype, a: np.dtype, float32: bool) -> bool:
    if e == a:
        return True
    if e == np.float64:
        return float32 and a == np.float32
    # Any integer of four bytes and more will do for one: machines differ. The small ones save memory, and are meant.
    return e.kind in "iu" and a.kind in "iu" and e.itemsize >= 4 and a.itemsize >= 4


# ---------------------------------------------------------------------------------------------- words


def described(value: Any) -> str:
    """What a value is, in words: "an array of shape (2, 3)", "None", "a tuple of 2"."""
    if value is None:
        return "None"
    if isinstance(value, Foreign):
        return f"a {value.type_name}, which is no answer"
    if isinstance(value, Named):
        return f"a {value.type_name.rpartition(':')[2]}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}" if value.ndim else f"a single number of dtype {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict of {len(value)}"
    names = {bool: "a truth value", int: "an integer", float: "a number", str: "a text"}
    return names.get(type(value), f"a {type(value).__name__}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, np.ndarray) and value.ndim == 0)


def _count(n: int) -> str:
    return "1 item" if n == 1 else f"{n} items"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.8g}"
    return repr(value)[:120]


def same(x: Any, y: Any) -> bool:
    """Whether two plain values are the same to the bit."""
    if isinstance(x, np.ndarray):
        same_form = isinstance(y, np.ndarray) and x.dtype == y.dtype and x.shape == y.shape
        return same_form and x.tobytes() == y.tobytes()
    if isinstance(x, Named):
        return isinstance(y, Named) and x.fields == y.fields and same(x.items, y.items)
    if type(x) is not type(y):
        return False
    if isinstance(x, (tuple, list)):
        return len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, dict):
        return list(x) == list(y) and all(same(x[key], y[key]) for key in x)
    if isinstance(x, float):
        return x.hex() == y.hex()
    return bool(x == y)
