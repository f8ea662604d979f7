"""The check of the grader finds what is wrong with exercises, with the sandbox and with the grader.

That it finds nothing in the course as it is, is its own run: ``make grader-check``.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from classroom import assignment, base, check, grading, source
from classroom.exercise import Alternative, Exercise, Wrong

LESSON = 11
FIRST = assignment.load(LESSON)[0]
FILES = base.files(LESSON)


def found(
    monkeypatch: pytest.MonkeyPatch, exercise: Exercise, files: Mapping[str, bytes] = FILES
) -> tuple[check.Tally, str]:
    """What the check says of an exercise."""
    monkeypatch.setattr(assignment, "load", lambda lesson: (exercise,))
    tally = check.Tally()
    check._check_exercise(exercise, [check._seed(LESSON, seed) for seed in check.SEEDS], files, tally)
    return tally, "\n".join(tally.failures)


def test_of_a_good_exercise_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tally, failures = found(monkeypatch, FIRST)
    assert failures == ""
    assert tally.mistakes == tally.caught == tally.named == len(FIRST.wrong)
    assert (tally.exercises, tally.alternatives) == (1, len(FIRST.alternatives))


def test_a_mistake_that_is_none_and_one_that_answers_like_another(monkeypatch: pytest.MonkeyPatch) -> None:
    body = assignment.reference_body(FIRST.function)
    none = Wrong("none", "No mistake at all.", body, body + "\n")
    twin = replace(FIRST.wrong[0], label="twin")
    tally, failures = found(monkeypatch, replace(FIRST, wrong=(*FIRST.wrong, none, twin)))
    assert f"{FIRST.id}: the mistake none gets full marks" in failures
    assert f"the mistake twin is called {FIRST.wrong[0].label}" in failures
    assert (tally.mistakes, tally.caught, tally.named) == tuple(len(FIRST.wrong) + n for n in (2, 1, 0))
    assert len(tally.failures) == 2


def test_another_way_that_is_wrong_and_too_few_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Alternative("a wrong one", "return None\n")
    _, failures = found(monkeypatch, replace(FIRST, wrong=FIRST.wrong[:3], alternatives=(other,)))
    assert "a wrong one does not get full marks" in failures
    assert "3 typical mistakes; at least 4" in failures


def test_a_stub_that_is_no_stub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    path = source.path_of(FIRST.function)
    _, failures = found(monkeypatch, FIRST, {path: FILES[path].replace(b"raise NotImplementedError(", b"return repr(")})
    assert "what students start from is failed" in failures


def test_a_judge_that_sees_no_edits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    exercise = next(e for e in assignment.load(LESSON) if e.name == "pareto_front")
    monkeypatch.setattr(grading.judge, "edited", lambda *_: [])
    tally, failures = found(monkeypatch, exercise)
    assert tally.edits == 2
    assert f"{exercise.id}: that cost is edited in place is not told" in failures
    assert len(tally.failures) == 2


@pytest.mark.parametrize("fault", ["", "generous", "strict"])
def test_the_submission_in_the_sandbox(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    graded = grading.grade

    def faulty(*args: Any, **settings: Any) -> dict[str, Any]:
        report = graded(*args, **settings)
        for entry in report["exercises"]:
            if fault == "generous":
                entry |= {"status": "passed", "points": entry["max_points"], "diagnosis": ""}
            elif fault == "strict":
                entry |= {"status": "failed", "points": 0, "diagnosis": "off-by-one"}
        return report

    monkeypatch.setattr(grading, "grade", faulty)
    tally = check.Tally()
    exercises = assignment.load(LESSON)
    check._check_sandbox(exercises, check._seed(LESSON, check.SEEDS[0]).recorded, FILES, tally)
    assert len(tally.failures) == {"": 0, "generous": 3, "strict": len(exercises)}[fault]


def test_an_attack_that_gains_points_is_told(tmp_path: Path) -> None:
    attack = tmp_path / "learnt.py"
    body = textwrap.indent(assignment.reference_body(FIRST.function), "    ")
    attack.write_text(f"def attack({', '.join(inspect.signature(assignment.reference(FIRST)).parameters)}):\n{body}")
    tally = check.Tally()
    check._check_attack(attack, FIRST, check._seed(LESSON, check.SEEDS[0]).recorded, FILES, tally)
    assert tally.failures == [f"{FIRST.id}: the attack learnt gets {FIRST.points:.1f} points: passed, no name: "]
