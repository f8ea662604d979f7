"""Reports as the grader makes them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

# NUL, ESC, a change of direction, half a pair, a code point that XML lacks, markup of every kind, an end of CDATA.
HOSTILE = '\x00\x1b[31m\u202eevil\ud800\uffff<script>alert(1)</script>]]>&amp;"\'</pre>\r\n=HYPERLINK("http://x")'


def exercise(number: int, points: float, most: int, status: str, message: str = "", **more: Any) -> dict[str, Any]:
    """One exercise of a report."""
    return {
        "id": f"7.{number:02d}",
        "title": f"Exercise {number}",
        "function": f"lessons.lesson_07_lora:function_{number}",
        "points": points,
        "max_points": most,
        "status": status,
        "diagnosis": "",
        "cause": "",
        "message": message,
        "detail": "SECRET-DETAIL",
        "cases": [],
        "needs": [],
        "seconds": 0.25,
    } | more


def report(exercises: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    """A report of one student: one right, one partly, one not begun, one that waits."""
    if exercises is None:
        cases = [
            {"name": "odd shapes", "passed": True, "message": ""},
            {"name": "size-1", "passed": False, "message": ""},
        ]
        told = "Called function_2(x (2, 3)).\ny[0, 1] is 2.0 and should be 1.0."
        exercises = [
            exercise(1, 2, 2, "passed"),
            exercise(2, 1.5, 3, "failed", told, diagnosis="no-scale", cases=cases),
            exercise(3, 0, 2, "not_implemented"),
            exercise(4, 0, 1, "skipped", "needs 7.03", needs=["7.03"]),
        ]
    return {
        "schema": 1,
        "assignment": "Lesson 7: LoRA",
        "lesson": 7,
        "handout_hash": "ab" * 32,
        "grader_version": "1",
        "env": {"python": "3.11", "numpy": "2.4"},
        "isolation": {"level": "landlock", "enforced": ["memory", "TCP"], "not_enforced": ["UDP"]},
        "submission": {
            "student": "ada",
            "path": "ada.zip",
            "sha256": "cd" * 32,
            "files": ["lessons/lesson_07_lora.py"],
            "ignored": ["conftest.py"],
            "received_at": "2026-10-02T20:00:00+00:00",
            "late_seconds": 0,
        },
        "exercises": exercises,
        "penalties": [],
        "total": sum(e["points"] for e in exercises),
        "max": sum(e["max_points"] for e in exercises),
    } | more


def hostile() -> dict[str, Any]:
    """A report in which everything that a student can choose is meant to do harm."""
    spoilt = exercise(
        1, 0, 2, "failed", HOSTILE, diagnosis=HOSTILE, cause=HOSTILE, cases=[{"name": HOSTILE, "passed": False}]
    )
    spoilt["cases"].append({"name": "good", "passed": True})
    result = report([spoilt, exercise(2, 0, 3, "error", HOSTILE)], not_imported=[HOSTILE], printed=HOSTILE)
    result["submission"] |= {"student": HOSTILE, "path": HOSTILE, "files": [HOSTILE], "ignored": [HOSTILE]}
    result["penalties"] = [{"reason": HOSTILE, "points": 0.0}]
    return result
