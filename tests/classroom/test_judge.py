"""What the judge takes for right, and what for which fault."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from classroom import views
from classroom.judge import Difference, compare, edited
from classroom.recorded import Outcome, Tolerance
from classroom.values import Rng, plain

TOLERANCE = Tolerance(1e-9, 1e-5, 1e-3)
E = np.random.default_rng(0).standard_normal((3, 4))


class Factors(NamedTuple):
    A: Any
    B: Any


class Others(NamedTuple):
    A: Any
    B: Any


def difference(expected: Any, actual: Any, float32: bool = True) -> Difference | None:
    return compare(Outcome(plain(expected), {}), Outcome(plain(actual), {}), TOLERANCE, float32)


def kind(expected: Any, actual: Any, float32: bool = True) -> str:
    found = difference(expected, actual, float32)
    return found.kind if found else ""


RIGHT = {
    "same": (E, E),
    "rounding": (E, E * (1 + 1e-11)),
    "float32": (E, E.astype("f")),
    "big endian": (E, E.astype(">f8")),
    "list for tuple": ((E, 1), [E, 1]),
    "named tuple for tuple": ((E, 1), Factors(E, 1)),
    "number of NumPy": (1.5, np.float64(1.5)),
    "array without axes": (1.5, np.array(1.5)),
    "number for an array without axes": (np.float64(1.5), 1.5),
    "integer for a float": (2.0, 2),
    "integers of four bytes": (np.arange(3), np.arange(3, dtype="i4")),
    "integer of NumPy": (3, np.int32(3)),
    "truth of NumPy": (True, np.bool_(True)),
    "infinite where it should be": (np.array([1.0, -np.inf, np.nan]), np.array([1.0, -np.inf, np.nan])),
    "infinite number": (np.inf, np.inf),
    "dict in another order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "zero but for rounding": (np.zeros(3), np.full(3, 1e-13)),
    "none": (None, None),
    "empty": (np.zeros((0, 3)), np.zeros((0, 3))),
    "text": ("ab", "ab"),
}

WRONG = {
    "none": (E, None, "type"),
    "list": (E, E.tolist(), "type"),
    "tuple": (E, (E,), "type"),
    "matrix": (E, E.view(np.matrix), "type"),
    "masked": (E, np.ma.array(E), "type"),
    "complex": (E, E + 0j, "type"),
    "objects": (E, E.astype(object), "type"),
    "text": (E, "passed", "type"),
    "array for a tuple": ((E, E), E, "type"),
    "array for a text": ("ab", np.ones(2), "type"),
    "number for a text": ("1", 1, "type"),
    "truth for a number": (1.0, True, "type"),
    "number for a truth": (True, 1, "type"),
    "float for an integer": (3, 3.0, "type"),
    "something for none": (None, 0, "type"),
    "another named tuple": (Factors(E, 1), Others(E, 1), "type"),
    "plain tuple for a named one": (Factors(E, 1), (E, 1), "type"),
    "one too few": ((E, E), (E,), "length"),
    "one too many": ((E,), (E, E), "length"),
    "other keys": ({"a": 1}, {"b": 1}, "length"),
    "scalar": (np.zeros((3, 4)), 0.0, "shape"),
    "scalar array": (np.zeros((3, 4)), np.float64(0), "shape"),
    "array for a number": (1.0, np.ones(1), "shape"),
    "broadcast": (np.zeros((3, 4)), np.zeros((1, 4)), "shape"),
    "rank": (E, E[None], "shape"),
    "column": (np.zeros(3), np.zeros((3, 1)), "shape"),
    "empty": (np.zeros((3, 4)), np.zeros((0, 4)), "shape"),
    "half": (E, E.astype(np.float16), "dtype"),
    "integers": (np.zeros(3), np.zeros(3, int), "dtype"),
    "truths": (np.zeros(3), np.zeros(3, bool), "dtype"),
    "integers for truths": (np.ones(3, bool), np.ones(3, int), "dtype"),
    "wide for bytes": (np.ones(3, np.uint8), np.ones(3, int), "dtype"),
    "double for single": (E.astype("f"), E, "dtype"),
    "half number": (1.5, np.float16(1.5), "dtype"),
    "all NaN": (E, E * np.nan, "finite"),
    "one NaN": (E, np.where(E.max() == E, np.nan, E), "finite"),
    "NaN number": (1.5, float("nan"), "finite"),
    "infinite": (E, E + np.inf, "finite"),
    "finite for infinite": (np.array([1.0, -np.inf]), np.array([1.0, -1e9]), "finite"),
    "other infinity": (np.array([1.0, -np.inf]), np.array([1.0, np.inf]), "finite"),
    "NaN for infinite": (np.array([1.0, -np.inf]), np.array([1.0, np.nan]), "finite"),
    "a little off": (E, E * (1 + 1e-7), "values"),
    "float32 off": (E, (E * (1 + 1e-3)).astype("f"), "values"),
    "small gradients as zeros": (np.full(3, 1e-6), np.zeros(3), "values"),
    "integer": (np.arange(3), np.array([0, 1, 3]), "values"),
    "other text": ("ab", "ac", "values"),
    "other integer": (3, 4, "values"),
    "other truth": (True, False, "values"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(name: str) -> None:
    expected, actual = RIGHT[name]
    assert difference(expected, actual) is None


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str) -> None:
    expected, actual, what = WRONG[name]
    assert kind(expected, actual) == what


def test_float32_where_the_exercise_does_not_take_it() -> None:
    assert kind(E, E.astype("f"), float32=False) == "dtype"
    assert kind(1.5, np.float32(1.5), float32=False) == "dtype"
    assert kind(1.5, 1.5 * (1 + 1e-7), float32=False) == "values"
    assert kind(1.5, 1.5 * (1 + 1e-7)) == ""  # Python's own number does not say in what it was computed


def test_the_order_is_type_shape_dtype_finite_values() -> None:
    wrong = {"values": E + 1, "finite": E * np.nan, "dtype": E.astype(np.float16), "shape": E.T, "type": None}
    names = list(wrong)
    for i, later in enumerate(names):
        for earlier in names[i + 1 :]:
            assert kind((E, E), (wrong[later], wrong[earlier])) == earlier


def test_the_first_wrong_element_is_named() -> None:
    actual = E.copy()
    actual[1, 2:] += 1
    found = difference((1, E), (1, actual))
    assert found is not None
    assert found.place == "item 1 of the answer"
    assert found.text.startswith(f"item 1 of the answer at [1, 2]: expected {E[1, 2]:.8g}, got {E[1, 2] + 1:.8g}")
    assert "2 of 12 elements" in found.text


def test_arguments_that_the_call_changes_are_answers() -> None:
    expected, actual = Outcome(None, {"out": E}), Outcome(None, {"out": E + 1})
    found = compare(expected, actual, TOLERANCE, True)
    assert found is not None
    assert "the argument out, which the call changes" in found.text
    assert compare(expected, expected, TOLERANCE, True) is None
    lost = compare(expected, Outcome(None, {}), TOLERANCE, True)
    assert lost is not None
    assert lost.kind == "type"


def test_edited_arguments() -> None:
    before = plain({"x": E, "cache": Factors(E, (1.0, None)), "n": 3, "d": {"a": E}, "rng": Rng(1)})
    assert edited(before, before, ()) == []
    nan = plain({"x": np.full(2, np.nan)})
    assert edited(nan, nan, ()) == []
    changed = {
        "x": E + 1e-16 + (E.max() == E) * 1e-15,
        "cache": Factors(E, (-1.0, None)),
        "n": 3.0,
        "d": {"a": E, "b": 1},
    }
    for name, value in changed.items():
        assert edited(before, before | {name: plain(value)}, ()) == [name]
        assert edited(before, before | {name: plain(value)}, (name,)) == []
    assert edited(before, {k: v for k, v in before.items() if k != "rng"}, ()) == []
    assert edited(before, {k: v for k, v in before.items() if k != "x"}, ()) == ["x"]
    zero = plain({"x": np.zeros(2)})
    assert edited(zero, plain({"x": -np.zeros(2)}), ()) == ["x"]


def test_views_take_both_signs_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    U, S, Vt = np.linalg.svd(rng.standard_normal((6, 4)), full_matrices=False)
    signs = np.array([1, -1, -1, 1])
    cases = {
        "svd_signs": ((U, S, Vt), (U * signs, S, Vt * signs[:, None]), (U * signs, S, Vt)),
        "lora_signs": ((Vt, U), (Vt * signs[:, None], U * signs), (Vt * signs[:, None], U)),
        "row_signs": (Vt, Vt * signs[:, None], Vt[::-1]),
    }
    for name, (expected, right, wrong) in cases.items():
        seen = [plain(views.seen(name, {}, plain(value))) for value in (expected, right, wrong)]
        assert kind(seen[0], seen[1]) == "", name
        assert kind(seen[0], seen[2]) != "", name


@pytest.mark.parametrize("name", ["svd_signs", "lora_signs", "row_signs"])
@pytest.mark.parametrize("answer", [None, 1.0, (), (None, None), ("a", "b"), (E, E[0]), (E, E), [E], E[0], E > 0])
def test_a_view_leaves_other_forms_to_the_judge(name: str, answer: Any) -> None:
    views.seen(name, {}, plain(answer))
    assert views.seen("", {}, 3) == 3


def test_a_form_that_a_view_does_not_know_is_compared_as_it_is() -> None:
    rng = np.random.default_rng(1)
    U, S, Vt = np.linalg.svd(rng.standard_normal((6, 4)), full_matrices=False)
    expected = plain((-U, S, -Vt))
    for answer in ([U, S], (U, S, Vt[:3]), None, (U.astype(">f8"), S)):
        theirs, ours = views.both("svd_signs", {}, expected, plain(answer))
        assert theirs is expected
        assert kind(theirs, ours) != ""
    theirs, ours = views.both("svd_signs", {}, expected, plain((U, S, Vt)))
    assert theirs is not expected
    assert kind(theirs, ours) == ""
    # A view that fails at an answer leaves it alone as well.
    expected = plain((1.0, (E, E, E, 1)))
    assert views.both("ppo_loss", {}, expected, expected) == (expected, expected)


def test_factors_whose_product_would_fill_the_memory_are_left_alone() -> None:
    long = np.zeros((1_000_000, 1))
    for name, answer in (("svd_product", (long, long.T)), ("lora_product", (long.T, long, 1.0))):
        assert views.seen(name, {}, answer) is answer


def test_the_dtype_of_a_given_array_is_not_the_students() -> None:
    coarse = (E * (1 + 1e-7)).astype("f").astype(float)
    other = np.ones(3)

    def kind_of(answer: Any, out: Any, expected: Any = E, float32: bool = True) -> str:
        outcomes = Outcome(plain(expected), {"out": plain(E)}), Outcome(plain(answer), {"out": plain(out)})
        found = compare(*outcomes, TOLERANCE, float32)
        return found.kind if found else ""

    assert kind_of(coarse, coarse) == ""
    assert kind_of(coarse.astype("f"), coarse) == ""
    assert kind_of(coarse, coarse, float32=False) == "values"
    assert kind_of(E * 1.001, E) == kind_of(E, E * 1.001) == "values"
    # What is changed in place, and is not the answer, keeps the digits that it had.
    assert kind_of(None, coarse, expected=None) == "values"
    assert kind_of(other, coarse, expected=other) == "values"
    assert difference(E, coarse) is not None
