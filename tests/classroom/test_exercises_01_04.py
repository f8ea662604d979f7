"""Lessons 1 to 4: every graded function has an exercise whose cases tell right from wrong."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classroom import assignment, judge, source
from classroom.exercise import Exercise
from classroom.recorded import Outcome, Recorded, RecordedCase, RecordedExercise, Tolerance
from classroom.values import Named, plain

ROOT = Path(__file__).parents[2]
LESSONS = (1, 2, 3, 4)
SEEDS = (assignment.PUBLIC_SEED, b"another class", b"and one more")
FILES = {
    1: ("kernels.", "minigpt.bpe:"),
    2: ("lessons.lesson_02_ulmfit_target:",),
    3: ("lessons.lesson_03_ulmfit_classifier:", "lessons.common.classifier:"),
    4: ("lessons.lesson_04_instruction_tuning:",),
}
EXERCISES = {exercise.id: exercise for lesson in LESSONS for exercise in assignment.load(lesson)}

each = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: f"{exercise.id} {exercise.name}")


@functools.cache
def recorded(exercise_id: str, seed: bytes) -> RecordedExercise:
    """The exercise's cases for a seed, with all answers as the judge gets them."""
    found = next(r for r in whole_lesson(EXERCISES[exercise_id].lesson, seed).exercises if r.id == exercise_id)
    cases = [
        replace(
            case,
            expected=as_judged(case.expected),
            mistakes={label: as_judged(outcome) for label, outcome in case.mistakes.items()},
        )
        for case in found.cases
    ]
    return replace(found, cases=tuple(cases))


@functools.cache
def whole_lesson(lesson: int, seed: bytes) -> Recorded:
    return assignment.complete(assignment.inputs(lesson, seed))


def as_judged(outcome: Outcome | None) -> Outcome:
    assert outcome is not None
    return Outcome(plain(outcome.answer), plain(outcome.mutated))


def agree(expected: Any, actual: Outcome, tolerance: Tolerance | None) -> bool:
    """Whether the judge takes the answer for right."""
    assert tolerance is not None
    return judge.compare(expected, actual, tolerance, float32=True) is None


def edited(function: Callable[..., Any], case: RecordedCase, mutates: tuple[str, ...]) -> list[str]:
    """Names of the arguments that the function changes and is not meant to."""
    args = copy.deepcopy(dict(case.args))
    function(**args)
    return judge.edited(plain(dict(case.args)), plain(args), mutates)


def form(value: Any) -> Any:
    """Types, shapes and dtypes of an answer.

    What a list or a dict holds and how much of it is what some exercises ask for, and no form.
    """
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype
    if isinstance(value, (Named, Outcome)):
        return getattr(value, "type_name", ""), [form(item) for item in getattr(value, "items", value)]
    if isinstance(value, tuple):
        return [form(item) for item in value]
    return type(value)


def numbers(value: Any) -> Iterator[np.ndarray]:
    """Every number and array of an answer."""
    if isinstance(value, dict):
        yield from numbers([*value.values()])
    elif isinstance(value, (tuple, list, Named)):
        for item in getattr(value, "items", value):
            yield from numbers(item)
    elif value is not None:
        yield np.asarray(value)


# ---------------------------------------------------------------------------------------------- the list


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_marked_function_has_one_exercise(lesson: int) -> None:
    marked = {name for name in source.all_marked(ROOT) if name.startswith(FILES[lesson])}
    exercises = [exercise for exercise in EXERCISES.values() if exercise.lesson == lesson]
    assert sorted(exercise.function for exercise in exercises) == sorted(marked)
    assert [exercise.id for exercise in exercises] == [f"{lesson}.{n:02d}" for n in range(1, len(exercises) + 1)]
    assert len(exercises) >= 3


@each
def test_points_hints_and_variants(exercise: Exercise) -> None:
    assert 1 <= exercise.points <= 5
    assert len(exercise.wrong) >= 4
    assert len(exercise.alternatives) >= (1 if exercise.points == 1 else 2)
    labels = [wrong.label for wrong in exercise.wrong]
    assert len(set(labels)) == len(labels)
    body = assignment.reference_body(exercise.function)
    for wrong in exercise.wrong:
        assert wrong.label == "-".join(wrong.label.lower().split())
        assert wrong.hint.endswith(".")
        assert len(wrong.hint) > 30
        ast.parse(f"def f():\n    {wrong.hint!r}")
        assert body.count(wrong.find) == 1
    for alternative in exercise.alternatives:
        assert not source.same_code(alternative.body, body), alternative.name


@each
def test_what_the_body_calls_is_told(exercise: Exercise) -> None:
    names = {
        node.id
        for node in ast.walk(ast.parse(assignment.reference_body(exercise.function)))
        if isinstance(node, ast.Name)
    }
    called = {other.id for other in EXERCISES.values() if other.name in names}
    assert called == set(exercise.needs)


@each
def test_cases_have_the_same_names_for_every_seed_and_other_numbers(exercise: Exercise) -> None:
    cases = [recorded(exercise.id, seed).cases for seed in SEEDS]
    names = [[case.name for case in of_seed] for of_seed in cases]
    assert names[0] == names[1] == names[2]
    assert len(set(names[0])) == len(names[0]) >= 5
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = zip(cases[first], cases[second], strict=True)
        other = [judge.edited(plain(dict(a.args)), plain(dict(b.args)), ()) for a, b in pairs]
        assert sum(map(bool, other)) >= len(other) / 2


# ---------------------------------------------------------------------------------------------- right and wrong


@each
def test_the_reference_leaves_its_arguments_as_they_are(exercise: Exercise) -> None:
    function = assignment.reference(exercise)
    for seed in SEEDS:
        for case in recorded(exercise.id, seed).cases:
            assert not edited(function, case, exercise.mutates), case.name


@each
def test_other_right_bodies_pass(exercise: Exercise) -> None:
    module = importlib.import_module(exercise.module)
    for alternative in exercise.alternatives:
        function = source.function(module, exercise.name, alternative.body)
        for seed in SEEDS:
            for case in recorded(exercise.id, seed).cases:
                answer = as_judged(assignment.outcome(function, case.args, exercise.mutates))
                assert agree(case.expected, answer, case.tolerance), (alternative.name, case.name)
                assert not edited(function, case, exercise.mutates), (alternative.name, case.name)


@each
def test_the_stub_raises(exercise: Exercise) -> None:
    module = importlib.import_module(exercise.module)
    path = source.path_of(exercise.function)
    text = (ROOT / path).read_text(encoding="utf-8")
    text = source.strip(text, path, dict.fromkeys(source.marked(text, path), "write me"))
    body = source.suite(text, path, exercise.name)
    assert body is not None
    function = source.function(module, exercise.name, body)
    for case in recorded(exercise.id, SEEDS[0]).cases:
        with pytest.raises(NotImplementedError, match="write me"):
            assignment.outcome(function, case.args, exercise.mutates)


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_every_mistake_is_caught_and_told_from_the_others(exercise: Exercise, seed: bytes) -> None:
    of_seed = recorded(exercise.id, seed)
    labels = [wrong.label for wrong in exercise.wrong]
    for case in of_seed.cases:
        for label in labels:
            assert label in case.mistakes, f"{label} raises in {case.name}"
            assert form(case.mistakes[label]) == form(case.expected), f"{label} has another form in {case.name}"
            if all(np.isfinite(array).all() for array in numbers(case.expected)):
                assert all(np.isfinite(array).all() for array in numbers(case.mistakes[label])), (label, case.name)
    for i, label in enumerate(labels):
        # A student may work in float32: then, too, the mistake must show.
        assert any(not agree(c.expected, c.mistakes[label], coarse(c.tolerance)) for c in of_seed.cases), label
        for other in labels[:i]:
            assert any(not agree(c.mistakes[other], c.mistakes[label], c.tolerance) for c in of_seed.cases), (
                f"{label} and {other} answer the same"
            )


def coarse(tolerance: Tolerance | None) -> Tolerance:
    assert tolerance is not None
    return Tolerance(tolerance.float32, tolerance.float32, tolerance.floor)
