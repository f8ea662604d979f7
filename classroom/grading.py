"""One submission, one lesson: from files to a report.

1. Stage: the course as it was given out, with the submission's graded files in it, in a fresh directory.
2. A sandbox makes the calls, one at a time. It knows the arguments of the current call and nothing else.
3. Its whole process tree is killed. Only then does the reference run (`complete`), in this process.
4. The judge compares; each exercise that is wrong gets its likely cause.
5. Reconciliation: every planned case stands in the report exactly once, and passes on the evidence of an answer.

What goes wrong on our side is status "error", which is neither a zero nor a full mark.
"""

from __future__ import annotations

import math
import platform
import secrets
import signal
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from classroom import diagnosis, judge, manifest
from classroom.recorded import Outcome, Recorded, RecordedCase, RecordedExercise
from classroom.reports.clean import clean, clean_line
from classroom.sandbox import GraderFault, Isolation, Limits, Reply, Sandbox
from classroom.source import FOLDERS, path_of
from classroom.values import Named, Ops, Rng, plain
from classroom.views import both
from minigpt.errors import InputError

SCHEMA = 1
VERSION = "1"
"""Of the grader: another one when the same submission could get other points."""
MAX_SOURCE = 1 << 20
"""Bytes of a source file."""
IMPORT_SECONDS = 20.0
"""Processor time for importing a module."""

Complete = Callable[[Recorded], Recorded]


@dataclass(eq=False)
class _Result:
    """What came of one case: how it ended, what was left behind, what is to be said of it."""

    kind: str = "not run"
    outcome: Outcome | None = None
    after: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    passed: bool = False
    label: str = ""
    cause: str = ""
    error: str = ""
    seconds: float = 0.0


def grade_own(root: Path, recorded: Recorded, level: str = "auto") -> dict[str, Any]:
    """Grade a tree on cases whose answers are known to everybody, as a student does.

    Parameters
    ----------
    root : Path
        A handout, or this repository.
    recorded : Recorded
        With expected values.
    level : str, optional
    """
    bare = replace(recorded, exercises=tuple(without_answers(e) for e in recorded.exercises))
    return grade(root, bare, lambda _: recorded, level=level)


def grade(
    tree: Path,
    inputs: Recorded,
    complete: Complete,
    base: Mapping[str, bytes] | None = None,
    level: str = "auto",
    of_class: bool = False,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Grade one submission.

    Parameters
    ----------
    tree : Path
        The submission: its graded files lie under their names in the course.
    inputs : Recorded
        Cases without answers.
    complete : callable
        Recorded → the same with answers. Called when nothing of the submission runs any more.
    base : mapping of str to bytes, optional
        The course that the graded files are put into, path → content. By default the submission's own tree.
    level : str, optional
        Isolation; see `classroom.sandbox`.
    of_class : bool, optional
        Whether this is one of many: then it is refused as root without isolation.
    limits : Limits, optional

    Returns
    -------
    report : dict
        JSON; every text in it is clean.

    Raises
    ------
    InputError
        If `tree` is no directory, or a class is not to be graded like this.
    """
    if not tree.is_dir():
        raise InputError(f"{tree} is no directory")
    wanted = sorted({path_of(exercise.function) for exercise in inputs.exercises})
    handed, notes = _handed_in(tree, wanted)
    session = _Session(
        dict(base) if base is not None else _own_files(tree), handed, level, limits or Limits(), of_class
    )
    results: dict[str, list[_Result]] = {e.id: [_Result() for _ in e.cases] for e in inputs.exercises}
    faults: dict[str, str] = {}
    try:
        with session:
            session.load()
            for exercise in inputs.exercises:
                session.run(exercise, results[exercise.id])
        completed = _checked(complete(inputs), inputs)
    except InputError:
        raise
    except Exception:
        faults = dict.fromkeys(results, traceback.format_exc())
        completed = inputs
    exercises: list[dict[str, Any]] = []
    passed: set[str] = set()
    for exercise in completed.exercises:
        fault = faults.get(exercise.id, "")
        if not fault:
            try:
                _judge(plain_exercise(exercise), results[exercise.id])
            except Exception:
                fault = traceback.format_exc()
        suspicious = session.suspicious.get(exercise.id, "")
        entry = _entry(exercise, results[exercise.id], passed, fault, suspicious)
        if entry["status"] == "passed":
            passed.add(exercise.id)
        exercises.append(entry)
    _reconcile(inputs, exercises)
    missing = [f"{path} was not handed in" for path in wanted if path not in handed]
    return {
        "schema": SCHEMA,
        "assignment": f"Lesson {inputs.lesson}",
        "lesson": inputs.lesson,
        "handout_hash": manifest.handout_hash(tree) if (tree / manifest.MANIFEST).is_file() else "",
        "grader_version": VERSION,
        "env": {"python": platform.python_version(), "numpy": np.__version__, "platform": platform.platform()},
        "isolation": _isolation(session.isolation),
        "submission": {"files": sorted(handed), "ignored": [clean_line(note) for note in [*missing, *notes]]},
        "not_imported": sorted(session.broken),
        "printed": clean(session.printed, 4000),
        "exercises": exercises,
        "penalties": [],
        "total": sum(entry["points"] for entry in exercises),
        "max": sum(entry["max_points"] for entry in exercises),
    }


def without_answers(exercise: RecordedExercise) -> RecordedExercise:
    """The exercise as it is before a student's code runs."""
    return replace(exercise, cases=tuple(RecordedCase(case.name, case.args) for case in exercise.cases))


def plain_exercise(exercise: RecordedExercise) -> RecordedExercise:
    """The exercise with answers as the judge compares them: as they would come back from the other side."""
    return replace(exercise, cases=tuple(map(_plain_case, exercise.cases)))


def judged(exercise: RecordedExercise, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An exercise's part of a report, from what a runner would have sent for each case.

    Parameters
    ----------
    exercise : RecordedExercise
        As `plain_exercise` gives it.
    messages : sequence of mapping
        Plain values.
    """
    results = [_Result() for _ in exercise.cases]
    for message, result in zip(messages, results, strict=True):
        _take(Reply("message", message), exercise, result)
    _judge(exercise, results)
    return _entry(exercise, results, set())


# ---------------------------------------------------------------------------------------------- files


def _handed_in(tree: Path, wanted: Sequence[str]) -> tuple[dict[str, bytes], list[str]]:
    """The graded files of a submission, and what is to be said of its others."""
    files, notes = {}, []
    for path in wanted:
        try:
            content = _regular(tree, path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                notes.append(f"{path} cannot be read: {error.strerror}")
            continue
        if content is None:
            notes.append(f"{path} is no regular file of at most {MAX_SOURCE} bytes: not read")
        else:
            files[path] = content
    return files, notes


def _own_files(tree: Path) -> dict[str, bytes]:
    """Every module of a student's own tree."""
    files = {}
    for folder in FOLDERS:
        for path in sorted((tree / folder).rglob("*.py")):
            name = path.relative_to(tree).as_posix()
            content = _regular(tree, name)
            if content is not None:
                files[name] = content
    return files


def _regular(tree: Path, name: str) -> bytes | None:
    """The content of a regular file that no link leads to; None for anything else and for one that is too large."""
    path = tree
    for part in name.split("/"):
        path = path / part
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return None
    if not stat.S_ISREG(mode) or path.stat().st_size > MAX_SOURCE:
        return None
    return path.read_bytes()


@contextmanager
def _stage(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A fresh directory with these files, which the sandbox may read under another identity.

    It lies in one that cannot be listed, under a name that cannot be guessed: there are solutions of earlier lessons in
    it, and other people may have accounts on the machine.
    """
    with tempfile.TemporaryDirectory(prefix="minigpt-stage-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        root = Path(folder).resolve() / secrets.token_hex(16)
        root.mkdir()
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)
        for place in [root, *(p for p in root.rglob("*") if p.is_dir())]:
            place.chmod(0o755)
        yield root


# ---------------------------------------------------------------------------------------------- calls


class _Session:
    """The sandboxes of one submission: one, and another after each that a call has ended."""

    def __init__(
        self, base: dict[str, bytes], handed: dict[str, bytes], level: str, limits: Limits, of_class: bool
    ) -> None:
        self.base, self.handed = base, handed
        self.level, self.limits, self.of_class = level, limits, of_class
        self.isolation: Isolation | None = None
        self.broken: dict[str, _Result] = {}
        self.suspicious: dict[str, str] = {}
        self.printed = ""
        self._box: Sandbox | None = None
        self._root: Path | None = None
        self._staged: Any = None

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_box("")
        self._unstage()

    def load(self) -> None:
        """Put the files together, and find out which of them cannot be imported.

        A module that fails may be imported by others: each graded file is then tried alone, in the course as it was
        given out, and one that is to blame is left out for the sake of the rest.
        """
        modules = {path: path.removesuffix(".py").replace("/", ".") for path in self.handed}
        self._restage({**self.base, **self.handed})
        failed = self._import_all(modules)
        if not failed:
            return
        guilty = failed
        if len(self.handed) > 1 and any(self.base.get(path) != content for path, content in self.handed.items()):
            guilty = {}
            for path, module in modules.items():
                self._restage({**self.base, path: self.handed[path]})
                guilty |= self._import_all({path: module})
            if guilty:
                rest = {path: content for path, content in self.handed.items() if path not in guilty}
                self._restage({**self.base, **rest})
                guilty = self._import_all({p: m for p, m in modules.items() if p not in guilty}) | guilty
            else:
                self._restage({**self.base, **self.handed})
                guilty = failed
        self.broken = guilty

    def run(self, exercise: RecordedExercise, results: list[_Result]) -> None:
        """Make the calls of an exercise; after one that does not come back, the rest is not made."""
        blocked = self.broken.get(path_of(exercise.function))
        if blocked is not None:
            for result in results:
                result.kind, result.text, result.label = blocked.kind, blocked.text, blocked.label
            return
        for number, (case, result) in enumerate(zip(exercise.cases, results, strict=True)):
            reply = self._call(exercise.function, case.args, exercise.seconds, exercise.id)
            _take(reply, exercise, result)
            if reply.kind != "message":
                self._end_box(exercise.id)
                for later in results[number + 1 :]:
                    later.text = f"Not called: {result.text[0].lower()}{result.text[1:]}"
                return

    def _import_all(self, modules: Mapping[str, str]) -> dict[str, _Result]:
        failed = {}
        for path, module in modules.items():
            reply = self._call(module, {}, IMPORT_SECONDS, "")
            if reply.kind != "message" or reply.message["kind"] != "imported":
                result = _Result()
                _take(reply, None, result)
                result.text = f"{path} cannot be imported: {result.text[0].lower()}{result.text[1:]}"
                result.kind = "not imported"
                failed[path] = result
                if reply.kind != "message":
                    self._end_box("")
        return failed

    def _call(self, function: str, args: Mapping[str, Any], seconds: float, exercise: str) -> Reply:
        if self._box is None:
            assert self._root is not None
            self._box = Sandbox(self._root, self.level, self.limits).__enter__()
            self.isolation = self._box.isolation
            if self.of_class:
                self.isolation.for_class()
        return self._box.call(function, args, seconds)

    def _end_box(self, exercise: str) -> None:
        box, self._box = self._box, None
        if box is not None:
            box.close()
            self.printed = (self.printed + box.printed)[:4000]
            if box.suspicious:
                self.suspicious[exercise] = box.suspicious

    def _restage(self, files: Mapping[str, bytes]) -> None:
        self._end_box("")
        self._unstage()
        self._staged = _stage(files)
        self._root = self._staged.__enter__()

    def _unstage(self) -> None:
        staged, self._staged = self._staged, None
        if staged is not None:
            staged.__exit__(None, None, None)


def _take(reply: Reply, exercise: RecordedExercise | None, result: _Result) -> None:
    """Put what came of a call into words; the answer itself is judged later."""
    result.kind, message = reply.kind, reply.message
    if reply.kind == "message":
        try:
            _take_message(message, exercise, result)
        except (KeyError, TypeError, AttributeError, ValueError):
            result.kind, result.outcome = "invalid", None
            result.text, result.label = "It gave no valid answer: a message of another form.", "no-valid-answer"
    elif reply.kind == "timeout" or (reply.kind == "crashed" and reply.number in _processor_signals()):
        seconds = f" It may use {exercise.seconds:g} s." if exercise is not None else ""
        result.kind, result.label = "timeout", "timeout"
        result.text = f"It did not come back in time, and was ended: a loop without an end?{seconds}"
    elif reply.kind == "crashed":
        name = signal.Signals(reply.number).name if reply.number in set(signal.Signals) else "a signal"
        result.label = "crashed"
        result.text = f"The process crashed (signal {reply.number}, {name}) before answering."
        if reply.number == getattr(signal, "SIGKILL", 9):
            result.text = "The process was killed before answering: a limit on memory or processor time, most likely."
    elif reply.kind == "ended":
        result.label = "ended"
        result.text = f"The process ended before answering (exit status {reply.number}): no answer, no points."
    elif reply.kind == "keeper gone":
        result.label = "ended"
        result.text = "The process that watches over this one was ended before an answer came."
    else:
        result.kind, result.label = "invalid", "no-valid-answer"
        result.text = f"It gave no valid answer: {clean_line(reply.why)}."


def _take_message(message: Mapping[str, Any], exercise: RecordedExercise | None, result: _Result) -> None:
    kind = message["kind"]
    result.kind = kind if kind in ("answer", "raised", "not imported", "imported", "too large") else "invalid"
    if kind == "answer" and exercise is not None:
        after = dict(message["args"])
        result.outcome = Outcome(message["answer"], {name: after[name] for name in exercise.mutates if name in after})
        result.after = after
        seconds = message["seconds"]
        result.seconds = seconds if type(seconds) is float and 0 <= seconds < 1e6 else 0.0
    elif kind in ("raised", "not imported"):
        name, text = clean_line(message["type"], 100), clean(message["message"], 1000)
        place, function = clean_line(message["where"]), clean_line(message["function"])
        where = f" ({place})" if place else ""
        cause = diagnosis.raised(name, text)
        result.text = f"It raised {name}{': ' if text else ''}{text}{where}"
        result.label, result.cause = cause.label, cause.text
        own = exercise is not None and function == exercise.function.split(":")[1]
        if kind == "raised" and name == "NotImplementedError":
            result.kind = "not written" if own or not function else "needs"
        elif name == "SystemExit":
            result.text = f"It ended the process before answering (SystemExit){where}: no answer, no points."
            result.label, result.cause = "ended", ""
        elif name == "MemoryError":
            result.text = f"It ran into the resource limit on memory (MemoryError){where}."
    elif kind == "too large":
        result.text, result.label = f"Its answer cannot be sent: {clean_line(message['message'])}.", "no-valid-answer"
    else:
        result.text, result.label = "It gave no valid answer: a message of another form.", "no-valid-answer"


def _processor_signals() -> tuple[int, ...]:
    return (int(signal.SIGXCPU),) if hasattr(signal, "SIGXCPU") else ()


# ---------------------------------------------------------------------------------------------- judging


def _judge(exercise: RecordedExercise, results: list[_Result]) -> None:
    """Compare every answer; find the likely cause where one is wrong."""
    differences: dict[int, judge.Difference] = {}
    answered: list[tuple[RecordedCase, Outcome]] = []
    for number, (case, result) in enumerate(zip(exercise.cases, results, strict=True)):
        if result.kind != "answer":
            continue
        assert result.outcome is not None
        assert case.expected is not None
        assert case.tolerance is not None
        theirs, ours = both(exercise.view, case.args, case.expected.answer, result.outcome.answer)
        expected, actual = Outcome(theirs, case.expected.mutated), Outcome(ours, result.outcome.mutated)
        difference = judge.compare(expected, actual, case.tolerance, exercise.float32)
        changed = judge.edited(case.args, result.after, exercise.mutates)
        answered.append((case, result.outcome))
        if difference is not None:
            differences[number] = difference
            result.text = _sentence(difference.text)
        if changed:
            names = ", ".join(changed)
            told = f"The call changes its argument {names} in place; the caller still needs it as it was."
            result.text = f"{told} {result.text}" if result.text else told
            result.label, result.cause = "argument-changed", f"Work on a copy of {names}, or make a new array."
        result.passed = difference is None and not changed
    if not differences:
        return
    cause = diagnosis.typical(exercise, answered) if len(answered) == len(results) else diagnosis.NONE
    for number, difference in differences.items():
        result, case = results[number], exercise.cases[number]
        if result.label:
            continue
        found = cause if cause.label else _one_cause(exercise, case, result, difference)
        result.label, result.cause = found


def _one_cause(
    exercise: RecordedExercise, case: RecordedCase, result: _Result, difference: judge.Difference
) -> diagnosis.Diagnosis:
    assert case.expected is not None
    assert case.tolerance is not None
    assert result.outcome is not None
    found = diagnosis.swapped(case.expected.answer, result.outcome.answer, case.tolerance, exercise.float32)
    return found if found.label else diagnosis.general(difference, case.args, case.tolerance)


def _plain_case(case: RecordedCase) -> RecordedCase:
    """The case as it would come back from the other side."""
    assert case.expected is not None
    mistakes = {label: _plain_outcome(outcome) for label, outcome in case.mistakes.items()}
    return replace(case, args=plain(dict(case.args)), expected=_plain_outcome(case.expected), mistakes=mistakes)


def _plain_outcome(outcome: Outcome) -> Outcome:
    return Outcome(plain(outcome.answer), plain(dict(outcome.mutated)))


# ---------------------------------------------------------------------------------------------- the report


def _entry(
    exercise: RecordedExercise,
    results: Sequence[_Result],
    passed: set[str],
    fault: str = "",
    suspicious: str = "",
) -> dict[str, Any]:
    """An exercise's part of the report."""
    status, first = _status(results), next((r for r in results if not r.passed), None)
    if suspicious:
        status = "suspicious"
    if fault or (first is None and status != "passed"):
        status = "error"
    counted = 0 if status in ("error", "suspicious") else sum(result.passed for result in results)
    message = ""
    if fault:
        message = "The grader failed here. This says nothing about your solution; your teacher sees what happened."
    elif suspicious:
        message = f"A person has to look at this: {suspicious}."
    elif first is not None:
        message = _message(exercise, results, first, passed)
    label, cause = ("", "") if first is None or fault else (first.label, first.cause)
    if status in ("not_implemented", "skipped"):
        label, cause = "", ""
    return {
        "id": exercise.id,
        "title": exercise.title,
        "function": exercise.function,
        "points": math.floor(4 * exercise.points * counted / len(results)) / 4,
        "max_points": exercise.points,
        "status": status,
        "diagnosis": label,
        "cause": clean_line(cause, 600),
        "message": clean(message, 4000),
        "detail": clean("\n".join(part for part in (fault, suspicious) if part), 8000),
        "cases": [
            {
                "name": case.name,
                "passed": result.passed and status not in ("error", "suspicious"),
                "message": clean(result.text, 1000),
            }
            for case, result in zip(exercise.cases, results, strict=True)
        ],
        "needs": list(exercise.needs),
        "seconds": round(sum(result.seconds for result in results), 4),
    }


def _status(results: Sequence[_Result]) -> str:
    kinds = [result.kind for result in results]
    if results and all(result.passed and result.kind == "answer" for result in results):
        return "passed"
    if kinds and all(kind == "not written" for kind in kinds):
        return "not_implemented"
    if kinds and all(kind == "needs" for kind in kinds):
        return "skipped"
    return "timeout" if next(result.kind for result in results if not result.passed) == "timeout" else "failed"


def _message(exercise: RecordedExercise, results: Sequence[_Result], first: _Result, passed: set[str]) -> str:
    """What a student is told: the call, what is wrong, and why it may be so."""
    status = _status(results)
    if status == "not_implemented":
        return ""
    waiting = [
        need for need in exercise.needs if need not in passed and need.split(".")[0] == exercise.id.split(".")[0]
    ]
    if status == "skipped":
        return f"It calls a function that is not written yet: {', '.join(waiting) or first.text}."
    if first.kind == "not imported":
        return first.text
    case = exercise.cases[list(results).index(first)]
    lines = [f"Case “{case.name}”: {_call(exercise, case)}", first.text]
    if first.cause:
        lines.append(f"Likely cause: {first.cause}")
    if waiting:
        lines.append(f"It calls a function that is not right yet ({', '.join(waiting)}): begin with that one.")
    return "\n".join(lines)


def _call(exercise: RecordedExercise, case: RecordedCase) -> str:
    """The call with its shapes: "f(x (2, 3), weight (3,), eps=1e-05)"."""
    return f"{exercise.function.split(':')[1]}({', '.join(_shown(name, value) for name, value in case.args.items())})"


def _shown(name: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{name} {value.shape}" + ("" if value.dtype == np.float64 else f" {value.dtype}")
    if isinstance(value, Rng):
        return f"{name}=default_rng({value.seed})"
    if isinstance(value, Ops):
        return f"{name}=kernels.linear"
    if isinstance(value, Named):
        return f"{name}=a {value.type_name.rpartition(':')[2]}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"{name}=a {type(value).__name__}"
    if isinstance(value, float):
        return f"{name}={value:.6g}"
    text = repr(value)
    return f"{name}={text}" if len(text) <= 60 and not isinstance(value, dict) else f"{name}={judge.described(value)}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text[-1:] not in ".)" else f"{text[:1].upper()}{text[1:]}"


def _isolation(isolation: Isolation | None) -> dict[str, Any]:
    if isolation is None:
        return {"level": "none started", "enforced": [], "not_enforced": []}
    refused = [clean_line(reason) for reason in isolation.refused]
    return {
        "level": isolation.level,
        "enforced": list(isolation.enforced),
        "not_enforced": list(isolation.not_enforced),
        "refused": refused,
    }


# ---------------------------------------------------------------------------------------------- reconciliation


def _checked(completed: Recorded, inputs: Recorded) -> Recorded:
    """The completed cases, if they are the planned ones, each with an answer."""
    if _planned(completed) != _planned(inputs):
        raise GraderFault("the completed cases are not the planned ones")
    if any(case.expected is None or case.tolerance is None for e in completed.exercises for case in e.cases):
        raise GraderFault("a case has no expected answer")
    return completed


def _planned(recorded: Recorded) -> list[tuple[str, str]]:
    return [(exercise.id, case.name) for exercise in recorded.exercises for case in exercise.cases]


def _reconcile(inputs: Recorded, exercises: Sequence[Mapping[str, Any]]) -> None:
    """Every planned case exactly once, and points that its cases account for."""
    planned = _planned(inputs)
    if len(set(planned)) != len(planned) or not planned:
        raise GraderFault("the plan has no case, or one twice")
    if [(entry["id"], case["name"]) for entry in exercises for case in entry["cases"]] != planned:
        raise GraderFault("the report does not hold every planned case exactly once")
    for entry in exercises:
        share = sum(case["passed"] for case in entry["cases"]) / len(entry["cases"])
        if entry["points"] > entry["max_points"] * share or (entry["status"] == "passed") != (share == 1):
            raise GraderFault(f"the points of {entry['id']} are not what its cases say")
