"""The report as plain text: what a student sees after `make grade-N`, and what a teacher can mail.

First the ladder, an exercise a line; then, for each exercise that is not yet right, what went wrong; then the one to do
next. An exercise that nobody has begun is not an error, and gets no more than its line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from .clean import clean, clean_line

WIDTH = 96
STATUS = {
    "passed": "done",
    "failed": "not right yet",
    "error": "grader error",
    "timeout": "ran too long",
    "not_implemented": "not begun",
    "skipped": "waits",
    "suspicious": "to be looked at",
}
"""What each status is called in front of a person."""
QUIET = ("passed", "not_implemented", "skipped")
"""Of these the line in the ladder says all, unless there is a message."""


def points(value: float) -> str:
    """Points without needless digits: 2, 1.5, 0.25."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def status_name(exercise: Mapping[str, Any]) -> str:
    """The name of an exercise's status; partly right is told from wrong."""
    if exercise["status"] == "failed" and exercise["points"] > 0:
        return "partly right"
    return STATUS.get(exercise["status"], clean_line(exercise["status"], 40))


def header_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what a report says about itself, cleaned; what is not known is left out."""
    submission = report.get("submission") or {}
    isolation = report.get("isolation") or {}
    environment = report.get("env") or {}
    held, open_ = isolation.get("enforced") or [], isolation.get("not_enforced") or []
    level = f"{isolation['level']}: {', '.join(map(str, held)) or 'nothing'}" if "level" in isolation else ""
    if level and open_:
        level += f"; not enforced here: {', '.join(map(str, open_))}"
    late = submission.get("late_seconds") or 0
    lines = [
        ("student", submission.get("student")),
        ("received", submission.get("received_at")),
        ("late", f"by {duration(late)}" if late > 0 else ""),
        ("graded copy", f"SHA-256 {submission['sha256']}" if submission.get("sha256") else ""),
        ("isolation", level),
        ("graded with", ", ".join(f"{name} {value}" for name, value in environment.items())),
    ]
    return [(name, clean_line(value, 600)) for name, value in lines if value]


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 2 d 3 h, 5 min 10 s."""
    rest, parts = max(0, int(seconds)), []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def next_step(report: Mapping[str, Any]) -> tuple[str, str] | None:
    """What to do next, and where: mend a file that cannot be imported, else the first exercise of the ladder that can
    be worked on and is not done."""
    for path in report.get("not_imported") or []:
        return "mend what keeps this file from being imported", clean_line(path)
    for e in report["exercises"]:
        if e["status"] not in ("passed", "skipped", "error"):
            return f"{clean_line(e['id'], 12)}  {clean_line(e['title'])}", clean_line(e["function"]).replace(":", ", ")
    return None


def failure_lines(exercise: Mapping[str, Any]) -> list[str]:
    """What is to be said about an exercise that is not right: its message, and its cases if only some fail."""
    lines = clean(exercise.get("message") or "", 4000).splitlines()
    cases = exercise.get("cases") or []
    failed = [case for case in cases if not case["passed"]]
    if failed and len(failed) < len(cases):
        lines.append(f"{len(cases) - len(failed)} of {len(cases)} cases are right; not these:")
        lines += [f"  - {clean_line(case['name'], 80)}" for case in failed]
    return lines


def report_text(report: Mapping[str, Any], width: int = WIDTH) -> str:
    """Return a report as plain text.

    Parameters
    ----------
    report : mapping
        As `classroom.grading.grade` makes it.
    width : int
        Columns of a line; only names without a blank may make a line longer.

    Returns
    -------
    text : str
        Ends in one newline. Holds no `detail` of an exercise: that is for the teacher.
    """
    title = clean_line(report.get("assignment") or f"Lesson {report.get('lesson', '')}", 120)
    lines = [title, "=" * len(title)]
    for name, value in header_lines(report):
        lines += textwrap.wrap(f"{name:<12} {value}", width, subsequent_indent=" " * 13)
    lines.append("")

    exercises = report["exercises"]
    for e in exercises:
        score = f"{points(e['points'])} / {points(e['max_points'])}"
        start = f"  [{_mark(e)}] {clean_line(e['id'], 12):<6} {status_name(e):<16}"
        room = max(12, width - len(start) - len(score) - 2)
        name = clean_line(e["title"], room)
        lines.append(f"{start}{name:<{room}} {score:>{width - len(start) - room - 1}}")
    for penalty in report.get("penalties") or []:
        start = f"      {clean_line(penalty['reason'], width - 22)}"
        lines.append(f"{start:<{width - 10}}{'-' + points(penalty['points']):>10}")
    lines += ["", f"{points(report['total'])} of {points(report['max'])} points"]

    for e in exercises:
        told = failure_lines(e)
        if not told or (e["status"] in QUIET and not e.get("message")):
            continue
        head = f"{clean_line(e['id'], 12)}  {clean_line(e['title'])}: {status_name(e)}"
        lines += ["", *textwrap.wrap(head, width), f"      {clean_line(e['function'])}"]
        for line in told:
            indent = "      " + " " * (len(line) - len(line.lstrip()))
            lines += textwrap.wrap(line.strip(), width, initial_indent=indent, subsequent_indent=indent) or [""]

    following = next_step(report)
    if following is not None:
        what, where = following
        lines += ["", f"Next: {what}", f"      {where}"]
    elif exercises and all(e["status"] == "passed" for e in exercises):
        lines += ["", "All exercises of this lesson are done."]
    notes = [clean_line(note, 300) for note in (report.get("submission") or {}).get("ignored") or []]
    if notes:
        lines += ["", "About the files:"]
        for note in notes[:20]:
            lines += textwrap.wrap(note, width, initial_indent="  - ", subsequent_indent="    ")
        lines += [f"  - … and {len(notes) - 20} more"] if len(notes) > 20 else []
    return "\n".join(line.rstrip() for line in lines) + "\n"


def printed_lines(report: Mapping[str, Any], most: int = 40) -> list[str]:
    """What a student's code printed, for its author: with public cases there is nothing in it to keep from anybody."""
    lines = clean(report.get("printed") or "", 4000).rstrip().splitlines()
    if not lines:
        return []
    more = [f"  … and {len(lines) - most} more lines"] if len(lines) > most else []
    return ["Printed by your code, all calls one after the other:", *(f"  {line}" for line in lines[:most]), *more]


def _mark(exercise: Mapping[str, Any]) -> str:
    """One sign for the ladder, so that it can be read at a glance without colour."""
    if exercise["status"] == "failed":
        return "~" if exercise["points"] > 0 else "x"
    return {"passed": "+", "not_implemented": " ", "skipped": " "}.get(exercise["status"], "!")
