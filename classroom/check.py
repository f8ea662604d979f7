"""Whether the grader deserves trust: it is graded by solutions of which we know what they must get.

For every exercise, on the public cases and on cases of two other seeds: the reference and every alternative get full
marks; what students start from gets nothing and is not begun; every typical mistake loses points and is called by its
own name; one that edits an argument is told which. All that is ours, so it runs in this process: it is the judge that
is looked at.

Through a real sandbox, once a lesson, a submission in which one exercise is not begun, one has a mistake, one edits an
argument and all others are right; and the attacks of the test suite, which gain nothing.
"""

from __future__ import annotations

import copy
import importlib
import inspect
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

from classroom import assignment, base, grading, source, values
from classroom.exercise import Exercise
from classroom.recorded import Recorded, RecordedExercise
from classroom.sandbox import Limits, offered
from classroom.values import plain
from minigpt.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
ATTACKS = ROOT / "tests" / "classroom" / "attacks"
SEEDS = (assignment.PUBLIC_SEED, b"check one", b"check two")
ATTACK_SECONDS = 1.0
FEWEST_MISTAKES = 4


@dataclass(frozen=True)
class _Seed:
    """A lesson's exercises for one seed: as they are called, and, by their ids, as the judge compares them."""

    recorded: Recorded
    judged: Mapping[str, RecordedExercise]


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
    bounded = "number of processes" in isolation.enforced
    tallies = {}
    attacks = sorted(ATTACKS.glob("*.py"))
    with tqdm(total=len(numbers), unit="lesson", dynamic_ncols=True, leave=False) as bar:
        for lesson in numbers:
            bar.set_description(f"lesson {lesson}")
            tally = tallies[lesson] = Tally()
            exercises, files = assignment.load(lesson), base.files(lesson)
            seeds = [_seed(lesson, seed) for seed in SEEDS]
            for exercise in exercises:
                _check_exercise(exercise, seeds, files, tally)
            _check_sandbox(exercises, seeds[-1].recorded, files, tally)
            # What an attack can do does not depend on the exercise: they are all tried on the first.
            for attack in attacks if lesson == numbers[0] else ():
                bar.set_description(attack.stem)
                if attack.stem == "fork_bomb" and not bounded:
                    bar.write("fork_bomb: not tried, the number of processes is not limited here")
                    continue
                _check_attack(attack, exercises[0], seeds[-1].recorded, files, tally)
            bar.update()
    return _told(tallies)


# ---------------------------------------------------------------------------------------------- the judge


def _check_exercise(exercise: Exercise, seeds: Sequence[_Seed], files: Mapping[str, bytes], tally: Tally) -> None:
    tally.exercises += 1
    path = source.path_of(exercise.function)
    module, right = importlib.import_module(exercise.module), assignment.reference(exercise)
    alternatives = {a.name: source.function(module, exercise.name, a.body) for a in exercise.alternatives}
    for name, function in {"the reference": right, **alternatives}.items():
        for seed in seeds:
            entry = _judged(exercise, seed, function)
            if entry["status"] != "passed" or entry["points"] != exercise.points:
                tally.failures.append(f"{exercise.id}: {name} does not get full marks: {entry['message']}")
                break
    tally.alternatives += len(alternatives)
    stub = source.suite(files[path].decode(), path, exercise.name)
    assert stub is not None
    entry = _judged(exercise, seeds[0], source.function(module, exercise.name, stub))
    if (entry["status"], entry["points"]) != ("not_implemented", 0):
        tally.failures.append(f"{exercise.id}: what students start from is {_of(entry)}, {entry['points']} points")
    variants = assignment.variants(exercise)
    if len(variants) < FEWEST_MISTAKES:
        tally.failures.append(f"{exercise.id}: {len(variants)} typical mistakes; at least {FEWEST_MISTAKES} are needed")
    for label, function in variants.items():
        tally.mistakes += 1
        entries = [_judged(exercise, seed, function) for seed in seeds]
        caught = all(entry["points"] < exercise.points for entry in entries)
        given = {entry["diagnosis"] for entry in entries}
        tally.caught += caught
        tally.named += caught and given == {label}
        if not caught:
            tally.failures.append(f"{exercise.id}: the mistake {label} gets full marks")
        elif given != {label}:
            others = ", ".join(sorted(name or "no name" for name in given - {label}))
            tally.failures.append(f"{exercise.id}: the mistake {label} is called {others}")
    for name in _editable(seeds[0].judged[exercise.id]):
        tally.edits += 1
        entry = _judged(exercise, seeds[0], _editing(right, name))
        if entry["points"] or entry["diagnosis"] != "argument-changed" or f"argument {name} " not in entry["message"]:
            tally.failures.append(f"{exercise.id}: that {name} is edited in place is not told")


def _seed(lesson: int, seed: bytes) -> _Seed:
    recorded = assignment.complete(assignment.inputs(lesson, seed))
    return _Seed(recorded, {exercise.id: grading.plain_exercise(exercise) for exercise in recorded.exercises})


def _judged(exercise: Exercise, seed: _Seed, function: Callable[..., Any]) -> dict[str, Any]:
    """The report on a function of our own, called in this process."""
    messages = []
    for case in _with_id(seed.recorded, exercise.id).cases:
        args = {name: assignment.argument(value) for name, value in case.args.items()}
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            try:
                answer = function(**args)
            except Exception as error:
                said = {"type": type(error).__name__, "message": str(error), "where": "", "function": exercise.name}
                messages.append({"kind": "raised", **said})
                continue
        after = values.after(case.args, args)
        messages.append(plain({"kind": "answer", "answer": answer, "args": after, "seconds": 0.0}))
    return grading.judged(seed.judged[exercise.id], messages)


def _with_id(recorded: Recorded, id: str) -> RecordedExercise:
    return next(exercise for exercise in recorded.exercises if exercise.id == id)


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


def _check_sandbox(exercises: Sequence[Exercise], recorded: Recorded, files: Mapping[str, bytes], tally: Tally) -> None:
    """One submission: an exercise that is not begun, one with a mistake, one that edits an argument; the rest right."""
    needed = {need for exercise in exercises for need in exercise.needs}
    editable = {e.id: names for e in recorded.exercises if (names := _editable(e))}
    free = [exercise for exercise in exercises if exercise.id not in needed]
    editing = next((exercise for exercise in free if exercise.id in editable), None)  # some lessons have no arrays
    unbegun, mistaken = [exercise for exercise in free if exercise is not editing][:2]
    wrong = mistaken.wrong[0]
    bodies = {
        unbegun: 'raise NotImplementedError("not written yet")\n',
        mistaken: source.edited(
            assignment.reference_body(mistaken.function), wrong.find, wrong.replace, f"{mistaken.id} {wrong.label}"
        ),
    }
    must = {unbegun.id: "", mistaken.id: wrong.label}
    if editing is not None:
        bodies[editing] = _edited_body(editing, editable[editing.id][0])
        must[editing.id] = "argument-changed"
    texts = {}
    for path in {source.path_of(exercise.function) for exercise in exercises}:
        other = {e.name: body for e, body in bodies.items() if source.path_of(e.function) == path}
        texts[path] = source.substitute((ROOT / path).read_text(encoding="utf-8"), path, other)
    for entry in _graded(texts, recorded, files)["exercises"]:
        if entry["id"] not in must:
            right = entry["status"] == "passed"
        elif entry["id"] == unbegun.id:
            right = (entry["status"], entry["points"]) == ("not_implemented", 0)
        else:
            right = entry["points"] < entry["max_points"] and entry["diagnosis"] == must[entry["id"]]
        if not right:
            wanted = must.get(entry["id"], "passed") or "not_implemented"
            tally.failures.append(f"{entry['id']}: in the sandbox it should be {wanted}; it is {_of(entry)}")


def _edited_body(exercise: Exercise, name: str) -> str:
    """The reference, and after it an edit of an argument."""
    parameters = ", ".join(inspect.signature(assignment.reference(exercise)).parameters)
    body = textwrap.indent(assignment.reference_body(exercise.function), "    ")
    edit = f"{name}[...] = {name} == 0\n"
    return f"def right({parameters}):\n{body}\nanswer = right({parameters})\n{edit}return answer\n"


def _check_attack(
    attack: Path, exercise: Exercise, recorded: Recorded, files: Mapping[str, bytes], tally: Tally
) -> None:
    tally.attacks += 1
    chosen = replace(_with_id(recorded, exercise.id), seconds=ATTACK_SECONDS)
    path = source.path_of(exercise.function)
    original = (ROOT / path).read_text(encoding="utf-8")
    text = source.substitute(original, path, {exercise.name: f"return attack({', '.join(chosen.cases[0].args)})\n"})
    text += "\n\n" + attack.read_text(encoding="utf-8")
    report = _graded({path: text}, replace(recorded, exercises=(chosen,)), files, Limits(patience_seconds=3.0))
    (entry,) = report["exercises"]
    if entry["points"] or entry["status"] in ("passed", "error"):
        tally.failures.append(f"{entry['id']}: the attack {attack.stem} gets {entry['points']} points: {_of(entry)}")


def _graded(
    texts: Mapping[str, str], recorded: Recorded, files: Mapping[str, bytes], limits: Limits | None = None
) -> dict[str, Any]:
    """The report on a submission of these files."""
    inputs = replace(recorded, exercises=tuple(map(grading.without_answers, recorded.exercises)))
    with _tree(texts) as tree:
        return grading.grade(tree, inputs, lambda _: recorded, files, limits=limits)


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
