"""Exercises as data: what a judge and a student's copy work on. No code, no pickles.

For one seed, every case has its arguments, what the reference answers to them, and what each typical mistake would
answer. A lesson's recorded exercises are a directory: ``exercises.json`` says what there is, and ``arrays.npz`` holds a
message of `classroom.values` for each case.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classroom.values import decode, encode
from minigpt.errors import InputError

SCHEMA = 1
EXERCISES_FILE = "exercises.json"
ARRAYS_FILE = "arrays.npz"


class Outcome(NamedTuple):
    """What a call leaves behind: its answer, and the arguments that the exercise says it changes."""

    answer: Any
    mutated: dict[str, Any]


class Tolerance(NamedTuple):
    """How far an element may be off: ``relative · max(largest expected magnitude of its array, floor)``.

    Attributes
    ----------
    float64 : float
        Relative, for an array that is answered in float64.
    float32 : float
        The same in float32: eight times what the reference itself loses in float32.
    floor : float
        Absolute; for arrays that are zero but for rounding.
    """

    float64: float
    float32: float
    floor: float


@dataclass(frozen=True)
class RecordedCase:
    """One call.

    Attributes
    ----------
    name : str
    args : mapping of str to value
    expected : Outcome or None
        What the reference leaves behind; None before it has run.
    tolerance : Tolerance or None
    mistakes : mapping of str to Outcome
        Label of a typical mistake → what it leaves behind. One that raises here has no entry.
    """

    name: str
    args: Mapping[str, Any]
    expected: Outcome | None = None
    tolerance: Tolerance | None = None
    mistakes: Mapping[str, Outcome] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedExercise:
    """An exercise with the cases of one seed; attributes as in `classroom.exercise.Exercise`.

    Attributes
    ----------
    hints : mapping of str to str
        Label of a typical mistake → what to tell the student.
    """

    id: str
    function: str
    title: str
    points: int
    needs: tuple[str, ...]
    mutates: tuple[str, ...]
    view: str
    float32: bool
    seconds: float
    cases: tuple[RecordedCase, ...]
    hints: Mapping[str, str]


@dataclass(frozen=True)
class Recorded:
    """All exercises of a lesson, in order, for one seed."""

    lesson: int
    exercises: tuple[RecordedExercise, ...]


def save(recorded: Recorded, directory: Path) -> None:
    """Write completed exercises into a directory, which is made.

    Parameters
    ----------
    recorded : Recorded
        With expected values.
    directory : path
    """
    exercises, arrays = [], {}
    for exercise in recorded.exercises:
        cases = []
        for number, case in enumerate(exercise.cases):
            assert case.expected is not None
            assert case.tolerance is not None
            message = encode(
                {
                    "args": dict(case.args),
                    "expected": tuple(case.expected),
                    "mistakes": {label: tuple(outcome) for label, outcome in case.mistakes.items()},
                }
            )
            arrays[_entry(exercise.id, number)] = np.frombuffer(message, dtype=np.uint8)
            cases.append({"name": case.name, "tolerance": case.tolerance._asdict()})
        exercises.append({**vars(exercise), "cases": cases})
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, "lesson": recorded.lesson, "exercises": exercises}, indent=1)
    (directory / EXERCISES_FILE).write_text(text + "\n", encoding="utf-8")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    (directory / ARRAYS_FILE).write_bytes(buffer.getvalue())


def load_recorded(directory: Path) -> Recorded:
    """Read what `save` wrote. NamedTuples come as `classroom.values.Named`; nobody's code runs.

    Raises
    ------
    InputError
        If the files are missing or not as they were written.
    """
    try:
        stored = json.loads((directory / EXERCISES_FILE).read_text(encoding="utf-8"))
        with np.load(directory / ARRAYS_FILE, allow_pickle=False) as arrays:
            exercises = tuple(_exercise(entry, arrays) for entry in stored["exercises"])
        schema, lesson = stored["schema"], stored["lesson"]
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing") from None
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:  # BadValue is a ValueError
        raise InputError(f"{directory} does not hold recorded exercises: {error}") from None
    if schema != SCHEMA:
        raise InputError(f"{directory} has schema {schema}; this program reads schema {SCHEMA}")
    return Recorded(lesson, exercises)


def _exercise(entry: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> RecordedExercise:
    cases = tuple(
        _case(case, arrays[_entry(entry["id"], number)].tobytes()) for number, case in enumerate(entry["cases"])
    )
    fixed = {name: tuple(entry[name]) for name in ("needs", "mutates")}
    return RecordedExercise(**{**entry, **fixed, "cases": cases})


def _case(case: dict[str, Any], message: bytes) -> RecordedCase:
    content = decode(message)
    return RecordedCase(
        name=case["name"],
        args=content["args"],
        expected=Outcome(*content["expected"]),
        tolerance=Tolerance(**case["tolerance"]),
        mistakes={label: Outcome(*outcome) for label, outcome in content["mistakes"].items()},
    )


def _entry(exercise: str, number: int) -> str:
    return f"{exercise}/{number}"
