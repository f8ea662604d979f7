"""Which exercises a lesson has, and what they are for one seed.

Recording has two halves, because no answer may exist while a student's code runs: `inputs` draws the cases, and
`complete`, when that code is dead, runs the reference and every typical mistake on them.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import classroom.exercises
from classroom import source, values, views
from classroom.exercise import Exercise, Ops, Rng
from classroom.recorded import Outcome, Recorded, RecordedCase, RecordedExercise, Tolerance
from minigpt.errors import InputError

PUBLIC_SEED = b"public"
"""Seed of the cases that students see."""

EXACT = 1e-9
"""Relative tolerance of float64 answers."""
FLOOR = 1e-3
"""Magnitude below which an array counts as zero but for rounding, as a part of the answer's largest, or of 1."""
SLACK = 8
"""A float32 answer may lose this many times what the reference loses in float32: other orders of summing are right."""
SINGLE = SLACK * float(np.finfo(np.float32).eps)
"""The least relative tolerance of float32 answers: a reference that works in float32 anyway loses nothing to itself."""


def lessons() -> list[int]:
    """Numbers of the lessons that have exercises."""
    names = [module.name for module in pkgutil.iter_modules(classroom.exercises.__path__)]
    return sorted(int(name.removeprefix("lesson_")) for name in names if name.startswith("lesson_"))


def load(lesson: int) -> tuple[Exercise, ...]:
    """The exercises of a lesson, in the order in which a student should do them.

    Raises
    ------
    InputError
        If the lesson has none.
    """
    if lesson not in lessons():
        raise InputError(f"lesson {lesson} has no exercises; lessons with exercises: {', '.join(map(str, lessons()))}")
    return importlib.import_module(f"classroom.exercises.lesson_{lesson:02d}").EXERCISES


def every() -> Iterator[Exercise]:
    """All exercises of the course, lesson by lesson."""
    for lesson in lessons():
        yield from load(lesson)


def inputs(lesson: int, secret: bytes) -> Recorded:
    """The cases of a lesson for one secret, without any answer.

    Parameters
    ----------
    lesson : int
    secret : bytes
        The same secret gives the same cases; without it they cannot be told in advance.
    """
    return Recorded(lesson, tuple(_drawn(exercise, secret) for exercise in load(lesson)))


def complete(recorded: Recorded) -> Recorded:
    """The same cases with what the reference and every typical mistake answer.

    Raises
    ------
    Exception
        What the reference raises. A mistake that raises in a case has no answer there.
    """
    exercises = {exercise.id: exercise for exercise in load(recorded.lesson)}
    return replace(recorded, exercises=tuple(_completed(r, exercises[r.id]) for r in recorded.exercises))


def variants(exercise: Exercise) -> dict[str, Callable[..., Any]]:
    """The exercise's function with each typical mistake in it, by label.

    Raises
    ------
    InputError
        If an edit does not fit the reference body exactly once.
    """
    module, body = importlib.import_module(exercise.module), reference_body(exercise.function)
    return {
        wrong.label: source.function(
            module, exercise.name, source.edited(body, wrong.find, wrong.replace, f"{exercise.id} {wrong.label}")
        )
        for wrong in exercise.wrong
    }


def reference(exercise: Exercise) -> Callable[..., Any]:
    """The course's own function."""
    return getattr(importlib.import_module(exercise.module), exercise.name)


def reference_body(function: str) -> str:
    """What stands between the markers of ``"package.module:function"``, dedented.

    Raises
    ------
    InputError
        If the module marks no such function.
    """
    module, name = function.split(":")
    path = importlib.import_module(module).__file__
    assert path is not None
    bodies = source.marked(Path(path).read_text(encoding="utf-8"), path)
    if name not in bodies:
        raise InputError(f"{module} has no marked function {name}")
    return bodies[name].body


def outcome(function: Callable[..., Any], args: Mapping[str, Any], mutates: tuple[str, ...]) -> Outcome:
    """What a call leaves behind, on copies of the arguments."""
    mine = {name: argument(value) for name, value in args.items()}
    answer = function(**mine)
    after = values.after(args, mine)
    return Outcome(answer, {name: after[name] for name in mutates if name in after})


def argument(value: Any) -> Any:
    """What a function is called with: a copy; a generator and the operations themselves for what stands for them."""
    if isinstance(value, Rng):
        return np.random.default_rng(value.seed)
    if isinstance(value, Ops):
        return importlib.import_module("kernels.backend").Backend("numpy", np).ops
    return copy.deepcopy(value)


# ---------------------------------------------------------------------------------------------- recording


def _drawn(exercise: Exercise, secret: bytes) -> RecordedExercise:
    digest = hmac.new(secret, f"{exercise.lesson}:{exercise.id}".encode(), hashlib.sha256).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return RecordedExercise(
        id=exercise.id,
        function=exercise.function,
        title=exercise.title,
        points=exercise.points,
        needs=exercise.needs,
        mutates=exercise.mutates,
        view=exercise.view,
        float32=exercise.float32,
        seconds=exercise.seconds,
        cases=tuple(RecordedCase(case.name, dict(case.args)) for case in exercise.cases(rng)),
        hints={wrong.label: wrong.hint for wrong in exercise.wrong},
    )


def _completed(recorded: RecordedExercise, exercise: Exercise) -> RecordedExercise:
    right, mistakes = reference(exercise), variants(exercise)
    cases = []
    for case in recorded.cases:
        expected = outcome(right, case.args, exercise.mutates)
        answers = {label: _answer_of(mistake, case.args, exercise.mutates) for label, mistake in mistakes.items()}
        cases.append(
            replace(
                case,
                expected=expected,
                tolerance=_tolerance(expected, right, case.args, exercise),
                mistakes={label: answer for label, answer in answers.items() if answer is not None},
            )
        )
    return replace(recorded, cases=tuple(cases))


def _answer_of(mistake: Callable[..., Any], args: Mapping[str, Any], mutates: tuple[str, ...]) -> Outcome | None:
    # Overflow and the like are the mistake's business. One that raises cannot be recognised by its answer.
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        try:
            return outcome(mistake, args, mutates)
        except Exception:
            return None


def _tolerance(expected: Outcome, right: Callable[..., Any], args: Mapping[str, Any], exercise: Exercise) -> Tolerance:
    arrays = list(_floats(_seen(expected, args, exercise)))
    floor = FLOOR * max([1.0, *(_largest(a) for a in arrays)])
    if not exercise.float32:
        return Tolerance(EXACT, SINGLE, floor)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        narrow = {name: _narrow(v) for name, v in args.items()}
        single = list(_floats(_seen(outcome(right, narrow, exercise.mutates), narrow, exercise)))
    lost = [
        _largest(b - a) / max(_largest(a), floor)
        for a, b in zip(arrays, single, strict=True)
        if a.shape == b.shape and np.isfinite(b).all()
    ]
    return Tolerance(EXACT, max([SINGLE, *(SLACK * x for x in lost)]), floor)


def _seen(outcome: Outcome, args: Mapping[str, Any], exercise: Exercise) -> Outcome:
    return outcome._replace(answer=views.seen(exercise.view, args, outcome.answer))


def _narrow(value: Any) -> Any:
    """The value with every float64 array in float32."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float32) if value.dtype == np.float64 else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_narrow, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(_narrow, value))
    if isinstance(value, Mapping):
        return {key: _narrow(v) for key, v in value.items()}
    return value


def _floats(value: Any) -> Iterator[np.ndarray]:
    """Every float in a value, as float64 arrays, in order."""
    if isinstance(value, (float, np.floating)) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
        yield np.asarray(value, dtype=np.float64)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from _floats(value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floats(item)


def _largest(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max(initial=0.0))
