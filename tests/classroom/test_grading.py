"""From answers to a report; a fault of the grader is neither a zero nor a full mark."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classroom import grading, judge
from classroom.recorded import Recorded, RecordedExercise
from classroom.sandbox import GraderFault, Isolation, Reply, Sandbox
from classroom.values import plain
from minigpt.errors import InputError
from tests.classroom import toy

WHOLE = toy.complete(toy.inputs())
AFFINE = WHOLE.exercises[0]


class FakeBox:
    """Answers as the right functions would, in this process: what is looked at here is not the sandbox."""

    isolation = Isolation("process", ("processor time",), ("UDP",))
    printed = suspicious = ""
    open = 0

    def __init__(self, stage: Path, level: str, limits: Any) -> None:
        self.stage = stage

    def __enter__(self) -> FakeBox:
        FakeBox.open += 1
        return self

    def close(self) -> None:
        FakeBox.open -= 1

    def call(self, function: str, args: Mapping[str, Any], seconds: float) -> Reply:
        if ":" not in function:
            return Reply("message", {"kind": "imported", "number": 1})
        exercise = next(e for e in WHOLE.exercises if e.function == function)
        answer = toy.answers(exercise, args)
        return Reply(
            "message", plain({"kind": "answer", "answer": answer, "args": dict(args), "seconds": 0.1, "number": 1})
        )


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "Sandbox", FakeBox)
    FakeBox.open = 0


def messages(exercise: RecordedExercise, change: Any = lambda answer: answer) -> list[dict[str, Any]]:
    return [
        plain({"kind": "answer", "answer": change(toy.answers(exercise, c.args)), "args": dict(c.args), "seconds": 0.5})
        for c in exercise.cases
    ]


def test_all_right(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, toy.RIGHT)
    assert toy.points(report) == [3, 2, 1]
    assert report["isolation"] == {
        "level": "process",
        "enforced": ["processor time"],
        "not_enforced": ["UDP"],
        "refused": [],
    }
    assert set(report["env"]) == {"python", "numpy", "platform"}
    assert [[c["name"] for c in e["cases"]] for e in report["exercises"]] == [
        [c.name for c in e.cases] for e in WHOLE.exercises
    ]


def test_points_are_a_share_rounded_down_to_a_quarter() -> None:
    for right, points in ((0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)):
        sent = messages(AFFINE)
        for message in sent[right:]:
            message["answer"] = message["answer"] + 1
        assert grading.judged(AFFINE, sent)["points"] == points
    two = grading.judged(replace(AFFINE, points=1), [*messages(AFFINE)[:2], messages(AFFINE, lambda y: -y)[2]])
    assert two["points"] == 0.5
    assert two["status"] == "failed"


def test_an_edit_is_told_by_its_name_and_costs_the_case() -> None:
    sent = messages(AFFINE)
    sent[1]["args"]["weight"] = sent[1]["args"]["weight"] + 1
    entry = grading.judged(AFFINE, sent)
    assert (entry["points"], entry["diagnosis"]) == (2.0, "argument-changed")
    assert "argument weight in place" in entry["message"]
    assert grading.judged(replace(AFFINE, mutates=("weight",)), sent)["diagnosis"] != "argument-changed"


def test_a_student_who_wants_another_function_waits_for_it() -> None:
    other = {"kind": "raised", "type": "NotImplementedError", "message": "", "where": "", "function": "moments"}
    needs = replace(AFFINE, needs=("1.00",))
    entry = grading.judged(needs, [other] * 3)
    assert (entry["status"], entry["points"]) == ("skipped", 0)
    assert "1.00" in entry["message"]
    own = other | {"function": "affine"}
    assert grading.judged(needs, [own] * 3)["status"] == "not_implemented"
    entry = grading.judged(needs, [own, *messages(AFFINE)[1:]])
    assert (entry["status"], entry["points"]) == ("failed", 2)


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "passed", "passed": True},
        {"kind": "answer"},
        {"kind": "answer", "answer": 1, "args": None, "seconds": 0.0},
        {"kind": "answer", "answer": 1, "args": {}, "seconds": "x"},
        {"kind": "raised", "type": None},
        {"kind": "imported"},
    ],
)
def test_messages_of_another_form_are_no_answers(message: dict[str, Any]) -> None:
    entry = grading.judged(AFFINE, [message] * 3)
    assert (entry["status"], entry["points"]) == ("failed", 0)


def raising(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("a bug of ours")


def test_a_fault_of_the_grader_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write(tmp_path, toy.RIGHT)
    report = grading.grade(tmp_path, toy.inputs(), raising, toy.BASE)
    assert {e["status"] for e in report["exercises"]} == {"error"}
    assert toy.points(report) == [0, 0, 0]
    assert "a bug of ours" in report["exercises"][0]["detail"]
    assert "a bug of ours" not in report["exercises"][0]["message"]
    monkeypatch.setattr(judge, "compare", raising)
    assert {e["status"] for e in toy.grade(tmp_path, toy.RIGHT)["exercises"]} == {"error"}
    monkeypatch.undo()
    monkeypatch.setattr(grading, "Sandbox", FakeBox)
    monkeypatch.setattr(FakeBox, "__enter__", raising)
    assert {e["status"] for e in toy.grade(tmp_path, toy.RIGHT)["exercises"]} == {"error"}


def test_cases_that_are_lost_or_added_are_an_error(tmp_path: Path) -> None:
    toy.write(tmp_path, toy.RIGHT)

    def fewer(recorded: Recorded) -> Recorded:
        whole = toy.complete(recorded)
        first = replace(whole.exercises[0], cases=whole.exercises[0].cases[1:])
        return replace(whole, exercises=(first, *whole.exercises[1:]))

    for complete in (fewer, lambda r: r, lambda r: replace(toy.complete(r), exercises=toy.complete(r).exercises[1:])):
        report = grading.grade(tmp_path, toy.inputs(), complete, toy.BASE)
        assert {e["status"] for e in report["exercises"]} == {"error"}


def test_the_report_must_hold_every_case_once() -> None:
    inputs = toy.inputs()
    entries = [grading.judged(e, messages(e)) for e in WHOLE.exercises]
    grading._reconcile(inputs, entries)
    broken = [
        entries[1:],
        [*entries, entries[0]],
        [entries[0] | {"cases": entries[0]["cases"][:-1]}, *entries[1:]],
        [entries[0] | {"points": 3.5}, *entries[1:]],
        [entries[0] | {"status": "failed"}, *entries[1:]],
        [entries[0] | {"cases": [c | {"passed": False} for c in entries[0]["cases"]]}, *entries[1:]],
    ]
    for report in broken:
        with pytest.raises(GraderFault):
            grading._reconcile(inputs, report)
    with pytest.raises(GraderFault):
        grading._reconcile(replace(inputs, exercises=()), [])


def test_the_state_is_that_of_the_first_case_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands above that case's message: "ran too long" does not go with a wrong number."""
    replies = iter([{"kind": "raised", "type": "MemoryError", "message": "", "where": "", "function": "affine"}])

    def call(self: FakeBox, function: str, args: Mapping[str, Any], seconds: float) -> Reply:
        if ":" not in function:
            return Reply("message", {"kind": "imported", "number": 1})
        first = next(replies, None)
        return Reply("message", first) if first else Reply("timeout")

    monkeypatch.setattr(FakeBox, "call", call)
    first, second, _ = toy.grade(tmp_path, toy.RIGHT)["exercises"]
    assert first["status"] == "failed"
    assert "MemoryError" in first["message"]
    assert second["status"] == "timeout"


def test_what_the_sandbox_imports_cannot_be_found_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solutions of earlier lessons are in it; the sandbox itself may come with another identity."""
    stages = []

    class Looking(FakeBox):
        def __enter__(self) -> FakeBox:
            stages.append((self.stage.name, *(stat.S_IMODE(p.stat().st_mode) for p in (self.stage.parent, self.stage))))
            return super().__enter__()

    monkeypatch.setattr(grading, "Sandbox", Looking)
    toy.grade(tmp_path, toy.RIGHT)
    toy.grade(tmp_path, toy.RIGHT)
    assert {(above, own) for _, above, own in stages} == {(0o711, 0o755)}
    names = {name for name, *_ in stages}
    assert len(names) == 2
    assert min(map(len, names)) == 32


def test_the_reference_comes_after_the_sandbox(tmp_path: Path) -> None:
    def complete(recorded: Recorded) -> Recorded:
        assert FakeBox.open == 0
        return toy.complete(recorded)

    report = grading.grade(toy.write(tmp_path, toy.RIGHT), toy.inputs(), complete, toy.BASE)
    assert toy.points(report) == [3, 2, 1]


def test_a_students_own_tree(tmp_path: Path) -> None:
    toy.write(tmp_path, {**toy.BASE, **toy.RIGHT})
    assert toy.points(grading.grade_own(tmp_path, WHOLE)) == [3, 2, 1]
    with pytest.raises(InputError, match="no directory"):
        grading.grade_own(tmp_path / "absent", WHOLE)


def test_the_name_of_a_level_is_checked() -> None:
    with pytest.raises(InputError, match="no isolation level 'docker'"):
        Sandbox(".", "docker")


def test_the_call_is_shown_with_its_shapes() -> None:
    case = replace(AFFINE.cases[0], args={"x": np.ones((2, 3), "f"), "eps": 1e-5, "ids": [1] * 99, "out": None})
    shown = grading._call(AFFINE, case)
    assert shown == "affine(x (2, 3) float32, eps=1e-05, ids=a list of 99, out=None)"


def test_a_report_that_lost_a_case_is_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = grading._entry
    monkeypatch.setattr(grading, "_entry", lambda e, *rest: (made := entry(e, *rest)) | {"cases": made["cases"][1:]})
    with pytest.raises(GraderFault, match="every planned case exactly once"):
        toy.grade(tmp_path, toy.RIGHT)
