"""The exercises of every lesson: references, other right ways and typical mistakes, on the cases of several seeds.

Answers are compared as a grader compares them: by `classroom.judge`, on plain values, through the exercise's view.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classroom import assignment, grading, judge, source, values, views
from classroom.exercise import Exercise
from classroom.recorded import Outcome, RecordedCase, RecordedExercise

ROOT = Path(__file__).parents[2]
SEEDS = (assignment.PUBLIC_SEED, b"a class", b"another class")
EXERCISES = {exercise.id: exercise for exercise in assignment.every()}

each = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: f"{e.id}-{e.name}")


@functools.cache
def lesson_for(lesson: int, seed: bytes) -> dict[str, tuple[RecordedExercise, RecordedExercise]]:
    complete = assignment.complete(assignment.inputs(lesson, seed))
    return {exercise.id: (exercise, grading.plain_exercise(exercise)) for exercise in complete.exercises}


def recorded(exercise: Exercise, seed: bytes) -> RecordedExercise:
    """The exercise's cases for a seed, with all answers."""
    return lesson_for(exercise.lesson, seed)[exercise.id][0]


def plain(exercise: Exercise, seed: bytes) -> RecordedExercise:
    """The same as the judge compares it."""
    return lesson_for(exercise.lesson, seed)[exercise.id][1]


def bodies(exercise: Exercise) -> dict[str, Callable[..., Any]]:
    """The function with each of its other right bodies."""
    module = importlib.import_module(exercise.module)
    return {a.name: source.function(module, exercise.name, a.body) for a in exercise.alternatives}


def difference(
    exercise: Exercise, case: RecordedCase, expected: Outcome | None, actual: Outcome
) -> judge.Difference | None:
    """What a grader would say of plain outcomes."""
    assert expected is not None
    assert case.tolerance is not None
    theirs, ours = views.both(exercise.view, case.args, expected.answer, actual.answer)
    outcomes = Outcome(theirs, expected.mutated), Outcome(ours, actual.mutated)
    return judge.compare(*outcomes, case.tolerance, exercise.float32)


def wrong_in(exercise: Exercise, seed: bytes, function: Callable[..., Any]) -> dict[str, str]:
    """Cases in which a function answers wrongly or changes an argument without leave, with what it does."""
    found = {}
    for drawn, case in zip(recorded(exercise, seed).cases, plain(exercise, seed).cases, strict=True):
        args = {name: assignment.argument(value) for name, value in drawn.args.items()}
        answer = values.plain(function(**args))
        after = {name: values.plain(value) for name, value in values.after(drawn.args, args).items()}
        outcome = Outcome(answer, {name: after[name] for name in exercise.mutates if name in after})
        unlike = difference(exercise, case, case.expected, outcome)
        changed = judge.edited(case.args, after, exercise.mutates)
        if unlike or changed:
            found[case.name] = f"{unlike} {changed}"
    return found


def numbers(value: Any) -> Iterator[np.ndarray]:
    """Every number and array of an answer."""
    if isinstance(value, Mapping):
        yield from numbers(list(value.values()))
    elif isinstance(value, (tuple, list, values.Named)):
        for item in getattr(value, "items", value):
            yield from numbers(item)
    elif isinstance(value, (bool, int, float, np.ndarray, np.generic)):
        yield np.asarray(value)


def finite(value: Any) -> bool:
    """Whether no number of an answer is NaN or infinite."""
    return all(np.isfinite(array).all() for array in numbers(value))


# ---------------------------------------------------------------------------------------------- the list


def test_every_marked_function_has_one_exercise() -> None:
    functions = [exercise.function for exercise in EXERCISES.values()]
    assert sorted(functions) == sorted(source.all_marked(ROOT))


@pytest.mark.parametrize("lesson", assignment.lessons())
def test_exercises_are_numbered(lesson: int) -> None:
    exercises = assignment.load(lesson)
    assert [exercise.id for exercise in exercises] == [f"{lesson}.{n:02d}" for n in range(1, len(exercises) + 1)]
    assert len(exercises) >= 3


@each
def test_form(exercise: Exercise) -> None:
    assert 1 <= exercise.points <= 5
    assert exercise.view in ("", *views.VIEWS)
    assert len(exercise.wrong) >= 4
    assert len(exercise.alternatives) >= (1 if exercise.points == 1 else 2)
    labels = [wrong.label for wrong in exercise.wrong]
    assert len(set(labels)) == len(labels)
    body = assignment.reference_body(exercise.function)
    for wrong in exercise.wrong:
        assert wrong.label == "-".join(wrong.label.lower().split())
        assert len(wrong.hint) > 20
        assert wrong.hint.endswith(".")
        assert body.count(wrong.find) == 1, wrong.label
    for alternative in exercise.alternatives:
        assert not source.same_code(alternative.body, body), alternative.name


@each
def test_needs_name_what_the_body_calls(exercise: Exercise) -> None:
    tree = ast.parse(assignment.reference_body(exercise.function))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {other.id for other in EXERCISES.values() if other.name in names} == set(exercise.needs)


@each
def test_cases_have_the_same_names_for_every_seed_and_other_numbers(exercise: Exercise) -> None:
    drawn = [recorded(exercise, seed).cases for seed in SEEDS]
    names = [case.name for case in drawn[0]]
    assert all([case.name for case in cases] == names for cases in drawn)
    assert len(set(names)) == len(names)
    if not drawn[0][0].args:
        assert len(names) == 1
        return
    assert len(names) >= 5
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = zip(drawn[first], drawn[second], strict=True)
        same = [values.encode(dict(a.args)) == values.encode(dict(b.args)) for a, b in pairs]
        assert sum(same) <= len(same) // 2


# ---------------------------------------------------------------------------------------------- right


@each
def test_the_reference_is_right_and_leaves_its_arguments(exercise: Exercise) -> None:
    reference = assignment.reference(exercise)
    for seed in SEEDS:
        assert wrong_in(exercise, seed, reference) == {}
        for case in recorded(exercise, seed).cases:
            assert finite(case.expected) or "NaN" in str(reference.__doc__), case.name


@each
def test_other_right_bodies_pass(exercise: Exercise) -> None:
    for name, function in bodies(exercise).items():
        for seed in SEEDS:
            assert wrong_in(exercise, seed, function) == {}, name


# ---------------------------------------------------------------------------------------------- wrong


@each
def test_the_stub_raises(exercise: Exercise) -> None:
    path = source.path_of(exercise.function)
    text = (ROOT / path).read_text(encoding="utf-8")
    text = source.strip(text, path, dict.fromkeys(source.marked(text, path), "write me"))
    body = source.suite(text, path, exercise.name)
    assert body is not None
    function = source.function(importlib.import_module(exercise.module), exercise.name, body)
    for case in recorded(exercise, SEEDS[0]).cases:
        with pytest.raises(NotImplementedError, match="write me"):
            assignment.outcome(function, case.args, exercise.mutates)


@each
def test_mistakes_have_the_form_of_an_answer(exercise: Exercise) -> None:
    for case in (case for seed in SEEDS for case in plain(exercise, seed).cases):
        allowed = ("values", "length") if finite(case.expected) else ("values", "length", "finite")
        for wrong in exercise.wrong:
            assert wrong.label in case.mistakes, f"{wrong.label} raises in {case.name}"
            answer = case.mistakes[wrong.label]
            assert finite(answer) or not finite(case.expected), (wrong.label, case.name)
            found = difference(exercise, case, case.expected, answer)
            assert found is None or found.kind in allowed, (wrong.label, case.name, found)


@each
def test_every_mistake_is_caught_and_told_from_the_others(exercise: Exercise) -> None:
    for seed in SEEDS:
        cases = plain(exercise, seed).cases
        labels = [wrong.label for wrong in exercise.wrong]
        for i, label in enumerate(labels):
            # A student may work in float32: then, too, the mistake must show.
            assert any(difference(exercise, coarse(c), c.expected, c.mistakes[label]) is not None for c in cases), (
                f"{label} passes"
            )
            for other in labels[:i]:
                assert any(difference(exercise, c, c.mistakes[other], c.mistakes[label]) is not None for c in cases), (
                    f"{other} and {label} answer the same"
                )


def coarse(case: RecordedCase) -> RecordedCase:
    assert case.tolerance is not None
    return replace(case, tolerance=case.tolerance._replace(float64=case.tolerance.float32))
