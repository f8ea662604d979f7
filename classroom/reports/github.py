"""GitHub Classroom: the result that an autograding step hands to the reporter step.

A step prints ``result=BASE64`` into the file that ``$GITHUB_OUTPUT`` names; the reporter reads it from its environment.
The reporter adds up the scores of the tests, so each exercise is a test with its own points.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from classroom.reports.clean import clean, clean_line


def github(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as the JSON of a GitHub Classroom test runner (version 1).

    ``tests`` is always there: the reporter fails without. A penalty is a test of its own with a negative score, since
    the reporter knows no other place for it.
    """
    tests = []
    for line, e in enumerate(report["exercises"], 1):
        passed, broken = e["status"] == "passed", e["status"] == "error"
        test = {
            "name": clean_line(f"{e['id']} {e['title']}"),
            "status": "pass" if passed else "error" if broken else "fail",
            "score": e["points"],
            "test_code": clean_line(e["function"]),
            "filename": clean_line(str(e["function"]).split(":")[0].replace(".", "/") + ".py"),
            "line_no": 0,
            "duration": round(float(e.get("seconds") or 0), 3),
            "task_id": line,
        }
        tests.append(test if passed else test | {"message": clean(e.get("message") or e["status"], 2000)})
    for penalty in report.get("penalties") or []:
        name = clean_line(penalty["reason"])
        tests.append(
            {"name": name, "status": "fail", "score": -penalty["points"], "message": name, "test_code": ""}
            | {"filename": "", "line_no": 0, "duration": 0.0, "task_id": len(tests) + 1}
        )
    states = {test["status"] for test in tests}
    status = "error" if "error" in states else "fail" if "fail" in states or not tests else "pass"
    return {"version": 1, "status": status, "max_score": report["max"], "tests": tests}


def github_output(report: Mapping[str, Any]) -> str:
    """The line for ``$GITHUB_OUTPUT``."""
    text = json.dumps(github(report), allow_nan=False)
    return f"result={base64.b64encode(text.encode()).decode('ascii')}\n"
