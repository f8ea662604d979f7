"""Typical mistakes are called by their names, and others by what they look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from classroom import diagnosis
from classroom.judge import compare
from classroom.recorded import Outcome, RecordedCase, RecordedExercise, Tolerance
from classroom.values import plain

TOLERANCE = Tolerance(1e-9, 1e-5, 1e-3)
RNG = np.random.default_rng(0)
E = RNG.standard_normal((3, 4))
CUBE = RNG.standard_normal((2, 3, 4))
SQUARE = RNG.standard_normal((4, 4))
ARGS = {"x": RNG.standard_normal((3, 7)), "scaling": 0.25, "mask": np.array([True] * 5 + [False])}

LOOKS = {
    "returns-none": (E, None, "Nothing is returned"),
    "all-zeros": (E, np.zeros_like(E), "Every element is 0"),
    "sign-flipped": (E, -E, "other way round"),
    "transposed": (SQUARE, SQUARE.T.copy(), "transpose"),
    "transposed, other shape": (E, E.T.copy(), "transpose"),
    "axes-permuted": (CUBE, CUBE.transpose(0, 2, 1).copy(), "another order"),
    "other-shape": (E, E[..., None], "only the shape"),
    "not-summed": (E[0], np.stack([E[0] / 4, E[0] * 3 / 4]), "sum over axis 0"),
    "constant-factor, size": (E, E / 7, "1/7; 7 is the size of axis 1 of x"),
    "constant-factor, root": (E, E * np.sqrt(7), "√7"),
    "constant-factor, rows": (E, E * 21, "21; 21 is the number of elements of x"),
    "constant-factor, argument": (E, E * 0.25, "0.25 is scaling"),
    "constant-factor, mask": (E, E / 5, "number of true elements of mask"),
    "constant-factor, twice": (E, 2 * E, "twice"),
    "constant-factor, unknown": (E, E * 1.2345, "1.2345 times"),
    "constant-factor, number": (3.0, 3.0 / 7, "1/7"),
    "constant-shift": (E, E + 0.5, "larger by 0.5"),
    "off-by-one, late": (E, np.vstack([np.zeros((1, 4)), E[:-1]]), "one step too late"),
    "off-by-one, early": (E, np.vstack([E[1:], np.zeros((1, 4))]), "one step too early"),
    "reversed": (E, E[::-1].copy(), "reverse order"),
    "float32-inside": (E, E.astype("f").astype(float), "too few digits"),
    "one-place": (E, np.vstack([E[:-1], E[-1:] * 3 + RNG.standard_normal((1, 4))]), "Only the last place along axis 0"),
    "not-finite-nan": (E, np.where(E.max() == E, np.nan, E), "1 elements are NaN"),
    "not-finite-infinite": (E, np.where(E.max() == E, np.inf, E), "overflows"),
    "should-be-infinite": (np.array([1.0, -np.inf]), np.array([1.0, -1e9]), "should be infinite"),
    "wrong-length": ((E, E), (E,), "2 results"),
    "wrong-length, array": ((E, E), E, "2 results"),
}


@pytest.mark.parametrize("name", LOOKS)
def test_looks(name: str) -> None:
    expected, actual, told = LOOKS[name]
    found = compare(Outcome(plain(expected), {}), Outcome(plain(actual), {}), TOLERANCE, True)
    assert found is not None
    cause = diagnosis.general(found, plain(ARGS), TOLERANCE)
    assert cause.label == name.split(",")[0]
    assert told in cause.text, cause.text


def test_what_looks_like_nothing_gets_no_name() -> None:
    found = compare(Outcome(E, {}), Outcome(RNG.standard_normal(E.shape), {}), TOLERANCE, True)
    assert found is not None
    assert diagnosis.general(found, plain(ARGS), TOLERANCE) == diagnosis.NONE


def test_of_a_very_large_answer_no_sums_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.stack([E, 2 * E])
    found = compare(Outcome(plain(whole.sum(0)), {}), Outcome(plain(whole), {}), TOLERANCE, True)
    assert found is not None
    assert diagnosis.general(found, {}, TOLERANCE).label == "not-summed"
    monkeypatch.setattr(diagnosis, "MAX_SIZE", whole.size - 1)
    assert diagnosis.general(found, {}, TOLERANCE) == diagnosis.NONE


def test_swapped_results() -> None:
    a, b, c = E, E[0], E[1:]
    swapped = diagnosis.swapped(plain((a, b, c)), plain((b, a, c)), TOLERANCE, True)
    assert swapped.label == "swapped"
    assert "item 1 should be item 0, item 0 should be item 1" in swapped.text
    assert diagnosis.swapped(plain((a, b, c)), plain((b, a, c + 1)), TOLERANCE, True) == diagnosis.NONE
    assert diagnosis.swapped(plain((a, a)), plain((a, b)), TOLERANCE, True) == diagnosis.NONE


def exercise(cases: tuple[RecordedCase, ...], **hints: str) -> RecordedExercise:
    return RecordedExercise("1.01", "m:f", "t", 1, (), (), "", True, 1.0, cases, hints)


def case(name: str, expected: Any, **mistakes: Any) -> RecordedCase:
    outcomes = {label: Outcome(value, {}) for label, value in mistakes.items()}
    return RecordedCase(name, {}, Outcome(expected, {}), TOLERANCE, outcomes)


def test_a_typical_mistake_must_explain_every_case() -> None:
    one, two = case("one", 1.0, twice=2.0, squared=1.0), case("two", 3.0, twice=6.0, squared=9.0)
    whole = exercise((one, two), twice="Twice.", squared="Squared.")

    def label(*answers: float) -> str:
        pairs = [(c, Outcome(a, {})) for c, a in zip((one, two), answers, strict=True)]
        return diagnosis.typical(whole, pairs).label

    assert label(2.0, 6.0) == "twice"
    assert label(1.0, 9.0) == "squared"
    assert label(2.0, 9.0) == ""
    assert label(2.0, 3.0) == ""
    assert diagnosis.typical(whole, []) == diagnosis.NONE


def test_a_mistake_that_raises_explains_no_answer() -> None:
    one = case("one", 1.0)
    whole = exercise((one,), raises="It raises.")
    assert diagnosis.typical(whole, [(one, Outcome(2.0, {}))]) == diagnosis.NONE


def test_exceptions_have_causes() -> None:
    assert diagnosis.raised("RecursionError", "").label == "raises-recursionerror"
    assert "without an end" in diagnosis.raised("RecursionError", "").text
    assert diagnosis.raised("Unheard", "").text == ""


def test_only_a_value_error_about_shapes_is_put_down_to_them() -> None:
    for wrong in (
        lambda: np.ones(3) + np.ones(4),
        lambda: np.ones((2, 3)) @ np.ones((2, 3)),
        lambda: np.ones(3).sum(1),
    ):
        with pytest.raises(ValueError, match=r"shape|dimension|axis") as caught:
            wrong()
        assert "shapes" in diagnosis.raised("ValueError", str(caught.value)).text
    assert diagnosis.raised("ValueError", "the vocabulary has no word 'x'") == ("raises-valueerror", "")
