"""The exercises of every lesson: references, other right ways and typical mistakes, on the cases of several seeds.

Answers are compared as a grader compares them: by `classroom.judge`, on plain values, through the exercise's view.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classroom import assignment, judge, source, values, views
from classroom.exercise import Exercise
from classroom.recorded import Outcome, RecordedCase, RecordedExercise, Tolerance

ROOT = Path(__file__).parents[2]
SEEDS = (assignment.PUBLIC_SEED, b"a class", b"another class")
EXERCISES = {exercise.id: exercise for exercise in assignment.every()}

each = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: f"{e.id}-{e.name}")
with_seeds = pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.decode().replace(" ", "-"))


@functools.cache
def recorded_lesson(lesson: int, seed: bytes) -> dict[str, RecordedExercise]:
    recorded = assignment.complete(assignment.inputs(lesson, seed))
    return {exercise.id: exercise for exercise in recorded.exercises}


def recorded(exercise: Exercise, seed: bytes) -> RecordedExercise:
    """The exercise's cases for a seed, with all answers."""
    return recorded_lesson(exercise.lesson, seed)[exercise.id]


def bodies(exercise: Exercise) -> dict[str, Callable[..., Any]]:
    """The function with each of its other right bodies."""
    module = importlib.import_module(exercise.module)
    return {a.name: source.function(module, exercise.name, a.body) for a in exercise.alternatives}


def difference(exercise: Exercise, case: RecordedCase, expected: Outcome, actual: Outcome) -> judge.Difference | None:
    """What a grader would say."""
    assert case.tolerance is not None

    def seen(outcome: Outcome) -> Outcome:
        answer = views.seen(exercise.view, case.args, values.plain(outcome.answer))
        return Outcome(answer, values.plain(outcome.mutated))

    return judge.compare(seen(expected), seen(actual), case.tolerance, exercise.float32)


def edited(args: Mapping[str, Any], function: Callable[..., Any], mutates: tuple[str, ...]) -> list[str]:
    """Arguments that a call changes without leave."""
    mine = {name: assignment._argument(value) for name, value in args.items()}
    before = {name: values.plain(copy.deepcopy(value)) for name, value in args.items()}
    function(**mine)
    known = {name for name, value in args.items() if not isinstance(value, (values.Rng, values.Ops))}
    return judge.edited(before, {name: values.plain(mine[name]) for name in known}, mutates)


def numbers(value: Any) -> Iterator[np.ndarray]:
    """Every number and array of an answer."""
    if isinstance(value, Mapping):
        yield from numbers(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
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
        same = [
            values.encode(values.plain(dict(a.args))) == values.encode(values.plain(dict(b.args))) for a, b in pairs
        ]
        assert sum(same) <= len(same) // 2


# ---------------------------------------------------------------------------------------------- right


@each
@with_seeds
def test_the_reference_is_right_and_leaves_its_arguments(exercise: Exercise, seed: bytes) -> None:
    reference = assignment.reference(exercise)
    for case in recorded(exercise, seed).cases:
        assert case.expected is not None
        again = assignment.outcome(reference, case.args, exercise.mutates)
        assert difference(exercise, case, case.expected, again) is None, case.name
        assert finite(case.expected) or "NaN" in str(reference.__doc__), case.name
        assert edited(case.args, reference, exercise.mutates) == [], case.name


@each
@with_seeds
def test_other_right_bodies_pass(exercise: Exercise, seed: bytes) -> None:
    for name, function in bodies(exercise).items():
        for case in recorded(exercise, seed).cases:
            assert case.expected is not None
            answer = assignment.outcome(function, case.args, exercise.mutates)
            assert difference(exercise, case, case.expected, answer) is None, (name, case.name)
            assert edited(case.args, function, exercise.mutates) == [], (name, case.name)


# ---------------------------------------------------------------------------------------------- wrong


@each
@with_seeds
def test_mistakes_have_the_form_of_an_answer(exercise: Exercise, seed: bytes) -> None:
    for case in recorded(exercise, seed).cases:
        assert case.expected is not None
        for wrong in exercise.wrong:
            assert wrong.label in case.mistakes, f"{wrong.label} raises in {case.name}"
            answer = case.mistakes[wrong.label]
            assert finite(answer) or not finite(case.expected), (wrong.label, case.name)
            found = difference(exercise, case, case.expected, answer)
            allowed = ("values", "length") if finite(case.expected) else ("values", "length", "finite")
            assert found is None or found.kind in allowed, (wrong.label, case.name, found)


@each
@with_seeds
def test_every_mistake_is_caught_and_told_from_the_others(exercise: Exercise, seed: bytes) -> None:
    cases = recorded(exercise, seed).cases
    labels = [wrong.label for wrong in exercise.wrong]
    for i, label in enumerate(labels):
        # A student may work in float32: then, too, the mistake must show.
        assert any(
            difference(exercise, coarse(case), case.expected, case.mistakes[label]) is not None  # type: ignore[arg-type]
            for case in cases
        ), f"{label} passes"
        for other in labels[:i]:
            assert any(
                difference(exercise, case, case.mistakes[other], case.mistakes[label]) is not None for case in cases
            ), f"{other} and {label} answer the same"


def coarse(case: RecordedCase) -> RecordedCase:
    assert case.tolerance is not None
    tolerance = Tolerance(case.tolerance.float32, case.tolerance.float32, case.tolerance.floor)
    return RecordedCase(case.name, case.args, case.expected, tolerance, case.mistakes)
