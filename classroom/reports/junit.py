"""JUnit XML, which the pages of continuous-integration systems show: a test case an exercise, points as properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from classroom.reports.clean import clean, clean_line
from classroom.reports.text import points, status_name


def junit(report: Mapping[str, Any]) -> str:
    """Return a report as JUnit XML.

    An exercise that is not right is a failure, one where the grader or the child failed an error, one not begun or
    waiting for another is skipped. Attributes take characters that XML cannot hold even escaped; `clean` names them.
    """
    exercises = report["exercises"]
    tags = [_tag(e["status"]) for e in exercises]
    suite = ET.Element(
        "testsuite",
        name=clean_line(report["assignment"]),
        tests=str(len(exercises)),
        failures=str(tags.count("failure")),
        errors=str(tags.count("error")),
        skipped=str(tags.count("skipped")),
        time=f"{sum(e.get('seconds') or 0 for e in exercises):.3f}",
    )
    submission = report.get("submission") or {}
    properties = {
        "student": submission.get("student"),
        "sha256": submission.get("sha256"),
        "isolation": (report.get("isolation") or {}).get("level"),
        "points": points(report["total"]),
        "max_points": points(report["max"]),
    }
    for penalty in report.get("penalties") or []:
        properties[f"penalty: {clean_line(penalty['reason'])}"] = points(penalty["points"])
    _properties(suite, properties)
    for e, tag in zip(exercises, tags, strict=True):
        module, _, function = str(e["function"]).partition(":")
        case = ET.SubElement(
            suite,
            "testcase",
            classname=clean_line(module),
            name=clean_line(f"{e['id']} {function}: {e['title']}"),
            time=f"{e.get('seconds') or 0:.3f}",
        )
        own = {"points": points(e["points"]), "max_points": points(e["max_points"]), "diagnosis": e["diagnosis"]}
        _properties(case, own)
        if tag:
            message = clean(e.get("message") or "", 4000)
            first = clean_line(message.split("\n", 1)[0] or status_name(e))
            ET.SubElement(case, tag, message=first, type=clean_line(e["status"], 40)).text = message
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _tag(status: str) -> str:
    if status in ("not_implemented", "skipped"):
        return "skipped"
    return {"passed": "", "failed": "failure"}.get(status, "error")


def _properties(parent: ET.Element, values: Mapping[str, Any]) -> None:
    group = ET.SubElement(parent, "properties")
    for name, value in values.items():
        if value not in (None, ""):
            ET.SubElement(group, "property", name=clean_line(name), value=clean_line(value))
