"""Which mistake an answer looks like: one of the exercise's typical ones, or one of those that any exercise sees.

A typical mistake is recognised by what it answers: if it would have given the student's answer in every case, it is
named, with the exercise's own hint. What is then left is looked at for itself: zeros, a flipped sign, a constant
factor, other axes, a step too far.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from classroom import judge
from classroom.judge import Difference, compare
from classroom.recorded import Outcome, RecordedCase, RecordedExercise, Tolerance
from classroom.values import Named, Rng
from classroom.views import both

CLOSE = 1e-6
"""Relative: how well a guess at what was done has to fit. Looser than the judge, who has spoken already."""
MAX_ITEMS = 6
MAX_AXES = 5
MAX_SIZE = 100_000
"""Elements of an array that other axes and sums are tried on: guessing must not take longer than grading."""


class Diagnosis(NamedTuple):
    """A likely cause: a slug for statistics, and a sentence or two for the student."""

    label: str
    text: str


NONE = Diagnosis("", "")


def typical(exercise: RecordedExercise, outcomes: Sequence[tuple[RecordedCase, Outcome]]) -> Diagnosis:
    """The typical mistake that gives this student's answer in every case, or `NONE`.

    Parameters
    ----------
    exercise : RecordedExercise
    outcomes : sequence of (case with plain values, plain outcome)
        Every case that was answered, right or wrong; a mistake must explain all of them.
    """
    for label, hint in exercise.hints.items():
        if outcomes and all(_explains(exercise, case, label, outcome) for case, outcome in outcomes):
            return Diagnosis(label, hint)
    return NONE


def _explains(exercise: RecordedExercise, case: RecordedCase, label: str, actual: Outcome) -> bool:
    mistake = case.mistakes.get(label)
    if mistake is None:
        return False
    assert case.tolerance is not None
    theirs, ours = both(exercise.view, case.args, mistake.answer, actual.answer)
    mistaken, actual = Outcome(theirs, mistake.mutated), Outcome(ours, actual.mutated)
    return compare(mistaken, actual, case.tolerance, exercise.float32) is None


def general(difference: Difference, args: Mapping[str, Any], tolerance: Tolerance) -> Diagnosis:
    """What a wrong answer looks like, whatever the exercise.

    Parameters
    ----------
    difference : Difference
        What the judge found.
    args : mapping of str to value
        The call's arguments, plain: a factor that is one of their sizes or numbers is named by it.
    tolerance : Tolerance
    """
    e, a = difference.expected, difference.actual
    for name, value in args.items():
        if difference.place.startswith(f"the argument {name},"):
            if isinstance(value, Rng):
                return Diagnosis("generator-unused", f"Draw from {name}, the generator that is given.")
            if judge.same(value, a):
                told = f"{name} is as it was before the call: change the array itself, not what its name stands for."
                return Diagnosis("not-in-place", told)
    if a is None and e is not None:
        return Diagnosis("returns-none", "Nothing is returned there: is a return missing, or behind a branch?")
    for guess in (_structure, _other_form, _not_finite, _numbers):
        found = guess(difference, args, tolerance)
        if found:
            return found
    return NONE


def raised(kind: str, message: str) -> Diagnosis:
    """What an exception's class suggests, and of a ValueError also its message."""
    texts = {
        "RecursionError": "The function calls itself without an end.",
        "MemoryError": "It wants more memory than the limit: is an array larger than it needs to be?",
        "UnboundLocalError": "A name is read before it is set on this path through the function.",
        "NameError": "A name is used that is not defined here: a typing mistake, or an import that is missing.",
        "IndexError": "An index is outside its axis; count from 0, and look at the sizes in this case.",
        "TypeError": "A value of another kind than the operation takes, or another number of arguments.",
        "ValueError": "Often shapes that do not fit: compare them with the docstring, for the shapes of this case.",
        "UFuncTypeError": "An operation in place would change the dtype of its array.",
        "LinAlgError": "A decomposition failed: is the matrix the one that is meant?",
    }
    text = texts.get(kind, "")
    if kind == "ValueError" and not re.search(r"shape|broadcast|dimension|size|ax[ei]s|inhomogeneous", message):
        text = ""  # many things are a ValueError; NumPy's are mostly about shapes
    return Diagnosis(f"raises-{kind.lower()}", text)


# ---------------------------------------------------------------------------------------------- guesses


def _structure(difference: Difference, args: Mapping[str, Any], tolerance: Tolerance) -> Diagnosis | None:
    """Tuples: too few or too many items."""
    e, a = difference.expected, difference.actual
    if difference.kind == "length" and isinstance(e, (tuple, Named)):
        return Diagnosis("wrong-length", f"The docstring lists {len(_items(e))} results, in an order.")
    if difference.kind == "type" and isinstance(e, tuple) and len(e) > 1 and isinstance(a, np.ndarray):
        return Diagnosis("wrong-length", f"One array came where the docstring lists {len(e)} results.")
    return None


def swapped(expected: Any, actual: Any, tolerance: Tolerance, float32: bool) -> Diagnosis:
    """Whether the items of a tuple are all there in another order."""
    e, a = _items(expected), _items(actual)
    if not 2 <= len(e) <= MAX_ITEMS or len(a) != len(e):
        return NONE
    for order in itertools.permutations(range(len(e))):
        if order != tuple(range(len(e))) and all(
            compare(Outcome(e[i], {}), Outcome(a[j], {}), tolerance, float32) is None for i, j in enumerate(order)
        ):
            return Diagnosis("swapped", f"The results are right and in another order: {_order(order)}.")
    return NONE


def _items(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Named):
        return value.items
    return value if isinstance(value, tuple) else ()  # a list holds elements, in whatever number there are


def _order(order: tuple[int, ...]) -> str:
    return ", ".join(f"item {j} should be item {i}" for i, j in enumerate(order) if i != j)


def _other_form(difference: Difference, args: Mapping[str, Any], tolerance: Tolerance) -> Diagnosis | None:
    """Shapes: transposed, an axis kept or lost, not summed."""
    e, a = _floats(difference.expected), _floats(difference.actual)
    if difference.kind != "shape" or e is None or a is None or a.size > MAX_SIZE:
        return None
    for axes in _permutations(a.ndim):
        if e.ndim == a.ndim and _close(a.transpose(axes), e):
            return _permuted(axes)
    if a.size == e.size and _close(a.reshape(e.shape), e):
        return Diagnosis("other-shape", f"The numbers are right; only the shape is {a.shape} instead of {e.shape}.")
    if a.ndim > e.ndim and a.size > e.size:
        for axes in itertools.combinations(range(a.ndim), a.ndim - e.ndim):
            if _close(a.sum(axes), e):
                return Diagnosis("not-summed", f"The sum over {_axes(axes)} is missing.")
            if _close(a.mean(axes), e):
                return Diagnosis("not-averaged", f"The mean over {_axes(axes)} is missing.")
    if sorted(a.shape) == sorted(e.shape):
        return Diagnosis("axes-permuted", "The axes are in another order than in the docstring.")
    return None


def _not_finite(difference: Difference, args: Mapping[str, Any], tolerance: Tolerance) -> Diagnosis | None:
    if difference.kind != "finite":
        return None
    e, a = _floats(difference.expected), _floats(difference.actual)
    assert e is not None
    assert a is not None
    extra = ~np.isfinite(a) & np.isfinite(e)
    if not extra.any():
        return Diagnosis("should-be-infinite", "Some elements should be infinite (or no number) and are not.")
    what = "NaN" if np.isnan(a[extra]).any() else "infinite"
    if e.size == 1 and what == "infinite":
        return None  # a best value that was never found starts there
    causes = {
        "NaN": "0/0, ∞ − ∞ and the root or logarithm of a negative number give NaN.",
        "infinite": "An exponential that overflows, or a division by 0, gives infinity.",
    }
    return Diagnosis(f"not-finite-{what.lower()}", f"{int(extra.sum())} elements are {what}. {causes[what]}")


def _numbers(difference: Difference, args: Mapping[str, Any], tolerance: Tolerance) -> Diagnosis | None:
    """Same shape, other numbers."""
    e, a = _floats(difference.expected), _floats(difference.actual)
    if difference.kind != "values" or e is None or a is None or e.shape != a.shape or not e.any():
        return None
    if isinstance(difference.expected, int):
        return None  # an index or a count: its sign or a factor says nothing
    finite = np.isfinite(e) & np.isfinite(a)
    e, a = np.where(finite, e, 0.0), np.where(finite, a, 0.0)
    if not a.any():
        return Diagnosis("all-zeros", "Every element is 0.")
    off = float(np.abs(a - e).max() / np.abs(e).max())
    if off <= 1e-5:
        return Diagnosis(
            "float32-inside",
            f"It is right to {off:.0e} of the largest element: too little. Something inside is computed in too few "
            "digits, or a small constant is another one.",
        )
    if _close(a, -e):
        return Diagnosis("sign-flipped", "The sign is the other way round.")
    ratio = _constant_ratio(e, a)
    if ratio is not None:
        cause = _named_factor(ratio, args)
        if e.size == 1 and not cause:
            return None  # any two numbers have a ratio
        return Diagnosis("constant-factor", f"Every element is {ratio:.6g} times what it should be{cause}.")
    for axes in _permutations(a.ndim):
        if a.transpose(axes).shape == e.shape and _close(a.transpose(axes), e):
            return _permuted(axes)
    for axis in range(e.ndim):
        if e.shape[axis] > 2:
            head, tail = _cut(axis, slice(None, -1)), _cut(axis, slice(1, None))
            for one, other, way in ((head, tail, "early"), (tail, head, "late")):
                if e[other].any() and _close(a[one], e[other]):
                    return Diagnosis("off-by-one", f"Along axis {axis} everything comes one step too {way}.")
            if _close(np.flip(a, axis), e):
                return Diagnosis("reversed", f"Along axis {axis} everything comes in the reverse order.")
    shift = a - e
    if a.size > 2 and _close(shift, np.full_like(shift, shift.flat[0])):
        return Diagnosis("constant-shift", f"Every element is larger by {shift.flat[0]:.6g} than it should be.")
    if e.ndim:
        return _where(e, a)
    return None


def _where(e: np.ndarray, a: np.ndarray) -> Diagnosis | None:
    """Whether it is one end of an axis that is wrong."""
    wrong = ~np.isclose(a, e, rtol=CLOSE, atol=CLOSE * float(np.abs(e).max()))
    for axis, size in enumerate(e.shape):
        places = np.flatnonzero(wrong.any(tuple(i for i in range(e.ndim) if i != axis)))
        if size > 2 and len(places) == 1:
            name = {0: "the first", size - 1: "the last"}.get(int(places[0]), "one")
            return Diagnosis("one-place", f"Only {name} place along axis {axis} (index {places[0]}) is wrong.")
    return None


def _cut(axis: int, part: slice) -> tuple[slice, ...]:
    return (*([slice(None)] * axis), part)


def _permutations(ndim: int) -> Iterator[tuple[int, ...]]:
    if 2 <= ndim <= MAX_AXES:
        yield from itertools.islice(itertools.permutations(range(ndim)), 1, None)


def _permuted(axes: tuple[int, ...]) -> Diagnosis:
    if len(axes) == 2:
        return Diagnosis("transposed", "It is the transpose of what is expected.")
    return Diagnosis("axes-permuted", f"The numbers are right; the axes are in another order ({axes} puts them right).")


def _axes(axes: tuple[int, ...]) -> str:
    return "axis " + " and ".join(map(str, axes))


def _floats(value: Any) -> np.ndarray | None:
    if isinstance(value, (bool, str)) or value is None:
        return None
    if isinstance(value, (int, float)) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiu"):
        return np.asarray(value, dtype=np.float64)
    return None


def _close(a: np.ndarray, e: np.ndarray) -> bool:
    if a.shape != e.shape or not a.size:
        return False
    if not (np.isfinite(a) == np.isfinite(e)).all():
        return False
    kept = np.isfinite(e)
    scale = float(np.abs(e[kept]).max(initial=0.0))
    return scale > 0 and bool((np.abs(a[kept] - e[kept]) <= CLOSE * scale).all())


def _constant_ratio(e: np.ndarray, a: np.ndarray) -> float | None:
    """c with a = c·e, or None."""
    place = np.unravel_index(int(np.abs(e).argmax()), e.shape)
    ratio = float(a[place] / e[place])
    if e.size < 2 or not ratio or not math.isfinite(ratio):
        return ratio if e.size == 1 and ratio and math.isfinite(ratio) else None
    return ratio if _close(a, ratio * e) else None


def _named_factor(ratio: float, args: Mapping[str, Any]) -> str:
    """ ", which is 1/5: 5 is the size of axis 0 of x" where the ratio is made of a number of this call."""
    for size, source in _sizes(args):
        ways = [(size, f"{size:g}"), (1 / size, f"1/{size:g}")]
        if size > 1 and size == int(size):
            ways += [(math.sqrt(size), f"√{size:g}"), (1 / math.sqrt(size), f"1/√{size:g}")]
        for value, word in ways:
            if abs(ratio - value) <= CLOSE * abs(value):
                return f", which is {word}; {size:g} is {source}"
    for value, word in ((2.0, "twice"), (0.5, "half"), (-2.0, "minus twice"), (-0.5, "minus half")):
        if abs(ratio - value) <= CLOSE * abs(value):
            return f", {word}"
    return ""


def _sizes(args: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """Numbers that a factor could be: scalars, sizes of axes, numbers of rows and of elements; none that is 0 or 1."""
    for name, value in args.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _may_be_factor(value):
            yield float(value), name
        for array, place in _arrays(value, name):
            for axis, size in enumerate(array.shape):
                if size > 1:
                    yield float(size), f"the size of axis {axis} of {place}"
            for end in range(2, array.ndim + 1):
                if math.prod(array.shape[:end]) > 1:
                    axes = (
                        "the number of elements of" if end == array.ndim else f"the product of the first {end} axes of"
                    )
                    yield float(math.prod(array.shape[:end])), f"{axes} {place}"
            if array.dtype == np.bool_ and array.sum() > 1:
                yield float(array.sum()), f"the number of true elements of {place}"


def _may_be_factor(value: float) -> bool:
    return math.isfinite(value) and abs(value) > 1e-12 and value != 1


def _arrays(value: Any, name: str) -> Iterator[tuple[np.ndarray, str]]:
    if isinstance(value, np.ndarray):
        yield value, name
    elif isinstance(value, Named):
        for field, item in zip(value.fields, value.items, strict=True):
            yield from _arrays(item, f"{name}.{field}")
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value[:4]):
            yield from _arrays(item, f"{name}[{i}]")
