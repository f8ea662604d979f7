"""Whether the grader deserves trust: it is graded by solutions of which we know what they must get.

For every exercise, on the public cases and on cases of two other seeds: the reference and every alternative get full
marks; every typical mistake loses points and is called by its own name; one that edits an argument is told which. For
every lesson, through a real sandbox: the reference gets full marks, what students start from gets nothing and is not
begun, one mistake and one edited argument are found. The attacks of the test suite gain nothing.

What is ours runs in this process where no sandbox is named: it is the judge that is looked at then.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from classroom import assignment, base, grading, source
from classroom.exercise import Exercise, Ops, Rng
from classroom.recorded import Recorded, RecordedExercise
from classroom.sandbox import Limits, offered
from classroom.values import plain
from minigpt.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
ATTACKS = ROOT / "tests" / "classroom" / "attacks"
SEEDS = (assignment.PUBLIC_SEED, b"check one", b"check two")
ATTACK_SECONDS = 1.0
FEWEST_MISTAKES = 4


@dataclass
class Tally:
    """What was tried of a lesson, and what went otherwise than it must.

    Attributes
    ----------
    exercises, alternatives, edits, attacks : int
        How many were tried.
    mistakes, caught, named : int
        Typical mistakes; of them those that lost points for every seed, and those that were called by their name for
        every seed.
    failures : list of str
    """

    exercises: int = 0
    alternatives: int = 0
    edits: int = 0
    attacks: int = 0
    mistakes: int = 0
    caught: int = 0
    named: int = 0
    failures: list[str] = field(default_factory=list)


def run(lessons: Sequence[int]) -> int:
    """Check lessons, print a table, and return the exit code.

    Parameters
    ----------
    lessons : sequence of int
        Numbers; all that have exercises if empty.

    Returns
    -------
    code : int
        0, or 1 if anything went otherwise than it must.

    Raises
    ------
    InputError
        For a lesson that has no exercises.
    """
    numbers = list(lessons) or assignment.lessons()
    isolation = offered()
    print(f"isolation: {isolation.level}; not enforced here: {', '.join(isolation.not_enforced) or 'nothing'}")
    tallies = {}
    attacks = sorted(ATTACKS.glob("*.py"))
    with tqdm(total=len(numbers), unit="lesson", dynamic_ncols=True, leave=False) as bar:
        for place, lesson in enumerate(numbers):
            bar.set_description(f"lesson {lesson}")
            tally = tallies[lesson] = Tally()
            exercises = assignment.load(lesson)
            for exercise in exercises:
                _check_exercise(exercise, tally)
            files = base.files(lesson)
            _check_sandbox(lesson, exercises, files, tally)
            # Each attack costs seconds: every one is tried once, on one of the lessons.
            for attack in attacks[place :: len(numbers)]:
                _check_attack(attack, lesson, exercises, files, tally, "number of processes" in isolation.enforced)
            bar.update()
    return _told(tallies)


# ---------------------------------------------------------------------------------------------- the judge


def _check_exercise(exercise: Exercise, tally: Tally) -> None:
    tally.exercises += 1
    recorded = [_recorded(exercise, seed) for seed in SEEDS]
    module, right = importlib.import_module(exercise.module), assignment.reference(exercise)
    alternatives = {a.name: source.function(module, exercise.name, a.body) for a in exercise.alternatives}
    for name, function in {"the reference": right, **alternatives}.items():
        for one in recorded:
            entry = _judged(one, function)
            if entry["status"] != "passed" or entry["points"] != exercise.points:
                tally.failures.append(f"{exercise.id}: {name} does not get full marks: {entry['message']}")
                break
    tally.alternatives += len(alternatives)
    variants = assignment.variants(exercise)
    if len(variants) < FEWEST_MISTAKES:
        tally.failures.append(f"{exercise.id}: {len(variants)} typical mistakes; at least {FEWEST_MISTAKES} are needed")
    for label, function in variants.items():
        tally.mistakes += 1
        entries = [_judged(one, function) for one in recorded]
        caught = all(entry["points"] < exercise.points for entry in entries)
        given = {entry["diagnosis"] for entry in entries}
        tally.caught += caught
        tally.named += caught and given == {label}
        if not caught:
            tally.failures.append(f"{exercise.id}: the mistake {label} gets full marks")
        elif given != {label}:
            others = ", ".join(sorted(name or "no name" for name in given - {label}))
            tally.failures.append(f"{exercise.id}: the mistake {label} is called {others}")
    for name in _editable(recorded[0]):
        tally.edits += 1
        entry = _judged(recorded[0], _editing(right, name))
        if entry["points"] or entry["diagnosis"] != "argument-changed" or f"argument {name} " not in entry["message"]:
            tally.failures.append(f"{exercise.id}: that {name} is edited in place is not told")


def _recorded(exercise: Exercise, seed: bytes) -> RecordedExercise:
    complete = assignment.complete(_only(assignment.inputs(exercise.lesson, seed), exercise.id))
    return complete.exercises[0]


def _only(recorded: Recorded, id: str) -> Recorded:
    return replace(recorded, exercises=tuple(e for e in recorded.exercises if e.id == id))


def _judged(exercise: RecordedExercise, function: Callable[..., Any]) -> dict[str, Any]:
    """The report on a function of our own, called in this process."""
    messages = []
    for case in exercise.cases:
        args = {name: _argument(value) for name, value in case.args.items()}
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            try:
                answer = function(**args)
            except Exception as error:
                name = exercise.function.split(":")[1]
                said = {"type": type(error).__name__, "message": str(error), "where": "", "function": name}
                messages.append({"kind": "raised", **said})
                continue
        after = {name: value for name, value in args.items() if not isinstance(case.args[name], (Rng, Ops))}
        messages.append(plain({"kind": "answer", "answer": answer, "args": after, "seconds": 0.0}))
    return grading.judged(exercise, messages)


def _argument(value: Any) -> Any:
    if isinstance(value, Rng):
        return np.random.default_rng(value.seed)
    if isinstance(value, Ops):
        return importlib.import_module("kernels.linear")
    return copy.deepcopy(value)


def _editable(exercise: RecordedExercise) -> list[str]:
    """Arguments that are arrays in every case and are not meant to be changed."""
    return [
        name
        for name in exercise.cases[0].args
        if name not in exercise.mutates
        and all(isinstance(c.args.get(name), np.ndarray) and c.args[name].size for c in exercise.cases)
    ]


def _editing(right: Callable[..., Any], name: str) -> Callable[..., Any]:
    def function(**args: Any) -> Any:
        answer = copy.deepcopy(right(**args))
        array = args[name]
        array[...] = ~array if array.dtype == np.bool_ else array + array.dtype.type(1)
        return answer

    return function


# ---------------------------------------------------------------------------------------------- the sandbox


def _check_sandbox(lesson: int, exercises: Sequence[Exercise], files: Mapping[str, bytes], tally: Tally) -> None:
    paths = {source.path_of(exercise.function) for exercise in exercises}
    originals = {path: (ROOT / path).read_text(encoding="utf-8") for path in paths}
    report = _graded(lesson, originals, files)
    for entry in report["exercises"]:
        if entry["status"] != "passed":
            tally.failures.append(f"{entry['id']}: the reference does not pass in the sandbox: {_of(entry)}")
    report = _graded(lesson, {path: files[path].decode() for path in paths}, files)
    for entry in report["exercises"]:
        if (entry["status"], entry["points"]) != ("not_implemented", 0):
            tally.failures.append(
                f"{entry['id']}: what students start from is {entry['status']}, {entry['points']} points"
            )
    # One exercise of the lesson, which nothing else is built on, with a mistake; and editing what it is given.
    needed = {need for exercise in exercises for need in exercise.needs}
    chosen = next(e for e in reversed(exercises) if e.id not in needed and _editable(_recorded(e, SEEDS[0])))
    body, wrong = assignment.reference_body(chosen.function), chosen.wrong[0]
    mistaken = source.edited(body, wrong.find, wrong.replace, wrong.label)
    name = _editable(_recorded(chosen, SEEDS[0]))[0]
    edit = f"def right():\n{textwrap.indent(body, '    ')}answer = right()\n{name}[...] = {name} == 0\nreturn answer\n"
    for what, text, label in (("a mistake", mistaken, wrong.label), ("an edited argument", edit, "argument-changed")):
        path = source.path_of(chosen.function)
        entries = _graded(
            lesson, originals | {path: source.substitute(originals[path], path, {chosen.name: text})}, files
        )
        for entry in entries["exercises"]:
            if entry["id"] != chosen.id and entry["status"] != "passed":
                tally.failures.append(f"{entry['id']}: {what} in {chosen.id} has cost it points: {_of(entry)}")
            if entry["id"] == chosen.id and (entry["points"] >= chosen.points or entry["diagnosis"] != label):
                tally.failures.append(f"{chosen.id}: {what} is not found in the sandbox: {_of(entry)}")


def _check_attack(
    attack: Path, lesson: int, exercises: Sequence[Exercise], files: Mapping[str, bytes], tally: Tally, bounded: bool
) -> None:
    if attack.stem == "fork_bomb" and not bounded:
        print("fork_bomb: not tried, the number of processes is not limited here")
        return
    tally.attacks += 1
    chosen = exercises[0]
    path = source.path_of(chosen.function)
    original = (ROOT / path).read_text(encoding="utf-8")
    parameters = assignment.inputs(lesson, SEEDS[1]).exercises[0].cases[0].args
    text = source.substitute(original, path, {chosen.name: f"return attack({', '.join(parameters)})\n"})
    text += "\n\n" + attack.read_text(encoding="utf-8")
    report = _graded(lesson, {path: text}, files, only=chosen.id, seconds=ATTACK_SECONDS)
    entry = report["exercises"][0]
    if entry["points"] or entry["status"] in ("passed", "error"):
        tally.failures.append(f"{chosen.id}: the attack {attack.stem} gets {entry['points']} points: {_of(entry)}")


def _graded(
    lesson: int, texts: Mapping[str, str], files: Mapping[str, bytes], only: str = "", seconds: float = 0.0
) -> dict[str, Any]:
    inputs = assignment.inputs(lesson, SEEDS[1])
    if only:
        inputs = _only(inputs, only)
    if seconds:
        inputs = replace(inputs, exercises=tuple(replace(e, seconds=seconds) for e in inputs.exercises))
    with _tree(texts) as tree:
        limits = Limits(patience_seconds=3.0) if seconds else Limits()
        return grading.grade(tree, inputs, assignment.complete, files, limits=limits)


@contextmanager
def _tree(texts: Mapping[str, str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        yield Path(folder)


def _of(entry: Mapping[str, Any]) -> str:
    return f"{entry['status']}, {entry['diagnosis'] or 'no name'}: {entry['message'] or entry['detail'][-500:]}"


# ---------------------------------------------------------------------------------------------- words


def _told(tallies: Mapping[int, Tally]) -> int:
    heads = ("lesson", "exercises", "right ways", "mistakes", "caught", "by name", "edits told", "attacks", "failures")
    rows = [
        (
            n,
            t.exercises,
            t.exercises + t.alternatives,
            t.mistakes,
            t.caught,
            t.named,
            t.edits,
            t.attacks,
            len(t.failures),
        )
        for n, t in tallies.items()
    ]
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, len(heads)))))  # type: ignore[arg-type, misc]
    print("  ".join(f"{head:>{len(head)}}" for head in heads))
    for row in rows:
        print("  ".join(f"{cell:>{len(head)}}" for cell, head in zip(row, heads, strict=True)))
    total, caught = sum(t.mistakes for t in tallies.values()), sum(t.caught for t in tallies.values())
    named = sum(t.named for t in tallies.values())
    if not total:
        raise InputError("there is no exercise to check")
    print(f"catch rate: {caught} of {total} typical mistakes lose points ({caught / total:.1%}), {named} by their name")
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    for failure in failures:
        print(f"FAILED  {failure}")
    return 1 if failures else 0
