"""Which exercises there are, and their recorded form: drawn from a secret, completed later, kept without code."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from classroom import assignment, recorded, values
from classroom.exercise import Alternative, Case, Exercise, Ops, Rng, Wrong
from classroom.recorded import Outcome
from minigpt.errors import InputError

MODULE = '''"""A lesson."""

from typing import NamedTuple


class Cache(NamedTuple):
    """Of the forward."""

    scale: float
    rows: object


def accumulate(total, x, cache, rng, ops, weights=None):
    """Add to the total, in place."""
    ### BEGIN SOLUTION
    noise = rng.standard_normal(x.shape)
    total += ops.linear_forward(x, cache.rows, None).sum(0) * cache.scale
    return {"sum": total.sum(), "count": len(x), "noise": noise, "empty": x * 0}
    ### END SOLUTION
'''


class Cache(NamedTuple):
    scale: float
    rows: Any


def cases(rng: np.random.Generator) -> list[Case]:
    n = int(rng.integers(2, 9))
    x = rng.standard_normal((n, 3))
    cache = Cache(0.5, rng.standard_normal((3, 2)))
    args = {"total": np.zeros(2), "x": x, "cache": cache, "rng": Rng(5), "ops": Ops()}
    return [Case("plain", args), Case("with weights", {**args, "weights": [(1, "a"), None, {"k": True, (1, 2): 7}]})]


EXERCISE = Exercise(
    id="3.01",
    function="lesson_of_the_test:accumulate",
    title="Accumulate",
    points=2,
    cases=cases,
    wrong=(
        Wrong("mean", "The sum is wanted, not the mean.", ".sum(0) *", ".mean(0) *"),
        Wrong("raises", "It must not raise.", "len(x)", "len(3)"),
    ),
    alternatives=(Alternative("none", "return None"),),
    needs=("1.01",),
    mutates=("total", "weights"),
)


@pytest.fixture
def lesson(tmp_path, monkeypatch) -> int:
    (tmp_path / "lesson_of_the_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lesson_of_the_test", raising=False)
    monkeypatch.setattr(assignment, "load", lambda number: (EXERCISE,))
    yield 3
    sys.modules.pop("lesson_of_the_test", None)


# ---------------------------------------------------------------------------------------------- the course


def test_every_lesson_has_exercises_and_all_of_them_enough_typical_mistakes():
    assert assignment.lessons() == list(range(1, 15))
    assert all(len(assignment.load(lesson)) >= 3 for lesson in assignment.lessons())
    assert sum(len(exercise.wrong) for exercise in assignment.every()) >= 150


def test_exercises_stand_in_the_module_of_their_lesson():
    for lesson in assignment.lessons():
        for exercise in assignment.load(lesson):
            assert exercise.lesson == lesson
            assert exercise.function == f"{exercise.module}:{exercise.name}"
            assert callable(assignment.reference(exercise))


def test_a_lesson_without_exercises_is_named():
    with pytest.raises(InputError, match=r"lesson 99 has no exercises; .*1, 2"):
        assignment.load(99)


def test_a_function_without_markers_is_no_exercise():
    with pytest.raises(InputError, match="no marked function linear_forward"):
        assignment.reference_body("kernels.linear:linear_forward")
    assert assignment.reference_body("kernels.linear:linear_backward_input") == "return dy @ weight.T\n"


# ---------------------------------------------------------------------------------------------- drawing


def drawn(lesson: int, secret: bytes) -> bytes:
    return values.encode([dict(case.args) for e in assignment.inputs(lesson, secret).exercises for case in e.cases])


def test_cases_follow_from_the_secret_the_lesson_and_the_exercise(lesson, monkeypatch):
    assert drawn(lesson, b"one") == drawn(lesson, b"one")
    other = Exercise(**{**vars(EXERCISE), "id": "3.02"})
    results = [drawn(lesson, b"one"), drawn(lesson, b"two"), drawn(lesson, assignment.PUBLIC_SEED)]
    monkeypatch.setattr(assignment, "load", lambda number: (other,))
    results.append(drawn(lesson, b"one"))
    assert len(set(results)) == 4


def test_nothing_is_answered_before_the_cases_are_completed(lesson, monkeypatch):
    def ran(*_: Any, **__: Any) -> None:
        raise AssertionError("the reference ran")

    monkeypatch.setattr(assignment, "reference", ran)
    monkeypatch.setattr(assignment, "variants", ran)
    exercise = assignment.inputs(lesson, b"one").exercises[0]
    assert exercise.hints == {"mean": "The sum is wanted, not the mean.", "raises": "It must not raise."}
    for name in ("id", "function", "title", "points", "needs", "mutates", "view", "float32", "seconds"):
        assert getattr(exercise, name) == getattr(EXERCISE, name)
    for case in exercise.cases:
        assert case.expected is None
        assert case.tolerance is None
        assert case.mistakes == {}


# ---------------------------------------------------------------------------------------------- completing


def test_completing_runs_the_reference_and_every_mistake_on_copies(lesson):
    inputs = assignment.inputs(lesson, b"one")
    completed = assignment.complete(inputs)
    case = completed.exercises[0].cases[0]
    x, cache = case.args["x"], case.args["cache"]
    assert np.array_equal(case.args["total"], np.zeros(2))  # the arguments are as they were drawn
    wanted = (x @ cache.rows).sum(0) * cache.scale
    np.testing.assert_allclose(case.expected.mutated["total"], wanted)
    assert set(case.expected.mutated) == {"total"}  # `weights` is not given here
    assert set(completed.exercises[0].cases[1].expected.mutated) == {"total", "weights"}
    assert case.expected.answer["count"] == len(x)
    np.testing.assert_array_equal(
        case.expected.answer["noise"], np.random.default_rng(5).standard_normal(x.shape)
    )  # a fresh generator each call
    np.testing.assert_allclose(case.mistakes["mean"].mutated["total"], wanted / len(x))
    assert set(case.mistakes) == {"mean"}  # the other one raises


def test_what_the_reference_raises_is_not_hidden(lesson, monkeypatch):
    def fails(**_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(assignment, "reference", lambda exercise: fails)
    with pytest.raises(ZeroDivisionError):
        assignment.complete(assignment.inputs(lesson, b"one"))


def test_a_mistake_that_does_not_fit_is_an_error(lesson, monkeypatch):
    broken = Exercise(**{**vars(EXERCISE), "wrong": (Wrong("gone", "Not there.", "no such text", ""),)})
    monkeypatch.setattr(assignment, "load", lambda number: (broken,))
    with pytest.raises(InputError, match=r"3\.01 gone: .*occurs 0 times"):
        assignment.complete(assignment.inputs(lesson, b"one"))


def tolerance(function: Callable[..., Any], x: np.ndarray, float32: bool = True) -> recorded.Tolerance:
    exercise = Exercise(**{**vars(EXERCISE), "mutates": (), "float32": float32})
    expected = assignment.outcome(function, {"x": x}, ())
    return assignment._tolerance(expected, function, {"x": x}, exercise)


def test_the_tolerance_of_float32_is_what_the_reference_loses_there():
    x = np.array([1.0, 1e4 + 1e-3])
    lost = abs(float(np.float32(x[1])) - x[1])

    def cancels(x: np.ndarray) -> np.ndarray:
        return (x - 1e4)[1:] * 1e3  # about 1, of which float32 keeps a digit or two

    def loses(x: np.ndarray) -> dict[str, Any]:
        return {"small": (x - 1e4)[1:], "large": x[1:] * 1e-3}  # 1e-3 beside 10

    given = tolerance(cancels, x)
    assert given.float64 == 1e-9
    assert given.floor == pytest.approx(1e-3)
    assert given.float32 == pytest.approx(8 * lost * 1e3, rel=1e-3)
    # Of several arrays the worst; relative to each array's own size, down to the floor.
    given = tolerance(loses, x)
    assert given.floor == pytest.approx(1e-3 * x[1] * 1e-3)
    assert given.float32 == pytest.approx(8 * lost / given.floor, rel=1e-3)
    # Where the reference loses nothing, or float32 is not taken, a few units in the last place.
    least = 8 * 2.0**-23
    assert tolerance(cancels, x, float32=False).float32 == least
    assert tolerance(lambda x: x * 0, x) == recorded.Tolerance(1e-9, least, 1e-3)
    assert tolerance(lambda x: [3, "text"], x) == recorded.Tolerance(1e-9, least, 1e-3)


# ---------------------------------------------------------------------------------------------- keeping


def test_recorded_exercises_come_back_as_they_were(lesson, tmp_path):
    public = assignment.complete(assignment.inputs(lesson, assignment.PUBLIC_SEED))
    recorded.save(public, tmp_path / "public" / "lesson_03")
    back = recorded.load_recorded(tmp_path / "public" / "lesson_03")
    assert back.lesson == 3
    for was, now in zip(public.exercises, back.exercises, strict=True):
        assert {**vars(was), "cases": ()} == {**vars(now), "cases": ()}
        for a, b in zip(was.cases, now.cases, strict=True):
            assert (a.name, a.tolerance) == (b.name, b.tolerance)
            assert isinstance(b.expected, Outcome)
            same(dict(a.args), b.args)
            same(a.expected.answer, b.expected.answer)
            same(a.expected.mutated, b.expected.mutated)
            assert set(a.mistakes) == set(b.mistakes)
            for label in a.mistakes:
                same(a.mistakes[label].mutated, b.mistakes[label].mutated)
    named = back.exercises[0].cases[0].args["cache"]
    assert named == values.Named(f"{Cache.__module__}:Cache", ("scale", "rows"), named.items)


def same(a: Any, b: Any) -> None:
    assert values.encode(values.plain(a)) == values.encode(b)


def test_what_is_kept_is_json_and_arrays_of_bytes(lesson, tmp_path):
    recorded.save(assignment.complete(assignment.inputs(lesson, b"one")), tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.*") if p.suffix != ".py") == ["arrays.npz", "exercises.json"]
    text = (tmp_path / "exercises.json").read_text()
    assert EXERCISE.wrong[0].find not in text
    assert json.loads(text)["exercises"][0]["hints"]["mean"] == "The sum is wanted, not the mean."
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["3.01/0", "3.01/1"]
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint8)}


def test_two_records_of_the_same_cases_are_the_same_bytes(lesson, tmp_path):
    for name in "ab":
        recorded.save(assignment.complete(assignment.inputs(lesson, b"one")), tmp_path / name)
    for file in ("arrays.npz", "exercises.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("damage", ["no json", "no npz", "other schema", "cut", "entry gone", "flipped", "no text"])
def test_damaged_records_are_refused_in_one_line(lesson, tmp_path, damage):
    recorded.save(assignment.complete(assignment.inputs(lesson, b"one")), tmp_path)
    text, arrays = tmp_path / "exercises.json", tmp_path / "arrays.npz"
    if damage == "no json":
        text.unlink()
    elif damage == "no npz":
        arrays.unlink()
    elif damage == "other schema":
        text.write_text(text.read_text().replace('"schema": 1', '"schema": 2'))
    elif damage == "cut":
        arrays.write_bytes(arrays.read_bytes()[:-40])
    elif damage == "entry gone":
        with zipfile.ZipFile(arrays) as old:
            content = {name: old.read(name) for name in old.namelist()[1:]}
        with zipfile.ZipFile(arrays, "w") as new:
            for name, data in content.items():
                new.writestr(name, data)
    elif damage == "flipped":
        np.savez(arrays, **{f"3.01/{n}": np.zeros(50, np.uint8) for n in (0, 1)})
    else:
        text.write_text("[]")
    with pytest.raises(InputError) as caught:
        recorded.load_recorded(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_object_array_is_never_unpickled(lesson, tmp_path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit('unpickled')",)

    recorded.save(assignment.complete(assignment.inputs(lesson, b"one")), tmp_path)
    np.savez(tmp_path / "arrays.npz", **{f"3.01/{n}": np.array([Trap()], dtype=object) for n in (0, 1)})
    with pytest.raises(InputError, match="does not hold recorded exercises"):
        recorded.load_recorded(tmp_path)
