"""The class as a table: a row a student, in the order of the class list; nobody is left out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median
from typing import Any

from classroom.reports import html, sheet
from classroom.reports.clean import clean_line
from classroom.reports.statistics import mistake_rows, statistics_rows
from classroom.reports.text import duration, points
from classroom.roster import Student

STATES = {
    "graded": "graded",
    "missing": "no submission",
    "rejected": "submission rejected",
    "error": "grader error",
}
"""What can have become of a submission. Only the first has marks; the others have an empty cell, never a 0."""


@dataclass(frozen=True)
class Row:
    """What became of one student, or of one submission that is nobody's.

    Attributes
    ----------
    student : Student
        Of a submission from nobody in the class list: its id is the submission's name.
    state : str
        Key of `STATES`.
    report : mapping or None
        With penalties; None where nothing was graded.
    known : bool
        Whether the student is in the class list.
    notes : tuple of str
        For the teacher.
    received_at, time_from : str
        When the submission came in, and where that was read.
    """

    student: Student
    state: str
    report: Mapping[str, Any] | None = None
    known: bool = True
    notes: tuple[str, ...] = field(default=())
    received_at: str = ""
    time_from: str = ""

    @property
    def total(self) -> float | None:
        """Points after penalties; None where there are no marks."""
        return float(self.report["total"]) if self.state == "graded" and self.report is not None else None

    @property
    def penalty(self) -> float:
        """Points taken off."""
        return sum(p["points"] for p in self.report["penalties"]) if self.report is not None else 0.0


def class_csv(rows: Sequence[Row], exercises: Sequence[str]) -> str:
    """Return the class table as CSV.

    Parameters
    ----------
    rows : sequence of Row
    exercises : sequence of str
        Ids; a column each.
    """
    header = ["student", "name", "email", "section", "state", "total", "max", "penalty", "late_seconds"]
    header += [*exercises, "received_at", "time_from", "sha256", "notes"]
    return sheet.write(header, [_cells(row, exercises) for row in rows])


def _cells(row: Row, exercises: Sequence[str]) -> list[Any]:
    student, report = row.student, row.report
    own = {e["id"]: e for e in report["exercises"]} if report is not None else {}
    submission = report["submission"] if report is not None else {}
    scores = [own[x]["points"] if x in own and own[x]["status"] != "error" else None for x in exercises]
    return [
        student.id,
        student.name,
        student.email,
        student.section,
        STATES[row.state] + ("" if row.known else ", not in the class list"),
        row.total,
        report["max"] if report is not None else None,
        row.penalty if report is not None else None,
        submission.get("late_seconds"),
        *scores,
        row.received_at,
        row.time_from,
        submission.get("sha256", ""),
        "; ".join(row.notes),
    ]


def class_html(
    title: str,
    rows: Sequence[Row],
    items: Sequence[Mapping[str, Any]],
    about: Sequence[tuple[str, str]],
    attention: Sequence[str],
    image: bytes = b"",
    links: Mapping[str, str] | None = None,
) -> str:
    """Return the class as an HTML page for the teacher: figures, picture, what needs a look, the table.

    Parameters
    ----------
    title : str
    rows : sequence of Row
    items : sequence of dict
        From `classroom.reports.statistics.statistics`.
    about : sequence of (str, str)
        Facts of the run: isolation, seed id.
    attention : sequence of str
        What a person has to decide.
    image : bytes
        PNG of the pass rates.
    links : mapping of str to str
        Student's id → relative address of the report.
    """
    marks = [row.total for row in rows if row.total is not None]
    most = max((row.report["max"] for row in rows if row.report is not None), default=0)
    counts = {name: sum(row.state == state for row in rows) for state, name in STATES.items()}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    parts = [f"<h1>{html.text(title)}</h1>", f'<p class="soft">{escape(told)}</p>']
    if marks:
        parts.append(
            f'<p class="total">mean <strong>{points(sum(marks) / len(marks))}</strong>, median '
            f"<strong>{points(median(marks))}</strong> of {points(most)} points</p>"
        )
    if attention:
        listed = "".join(f"<li>{html.text(line, 400)}</li>" for line in attention)
        parts.append(f"<h2>To be looked at</h2>\n<ul>{listed}</ul>")
    if items:
        parts.append("<h2>Exercises</h2>")
        if image:
            data = base64.b64encode(image).decode("ascii")
            alt = "Bars: for each exercise, which part of the class has it right, tried it, or has not begun."
            parts.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
        columns = [("", "id"), ("exercise", ""), ("tried", "n"), ("right", "n"), ("mean", "n"), ("discrimination", "n")]
        parts.append(html.table(columns, _escaped(statistics_rows(items))))
        mistakes = mistake_rows(items)
        if mistakes:
            columns = [("", "id"), ("students", "n"), ("mistake", ""), ("what they were told", "")]
            parts += ["<h2>Commonest mistakes</h2>", html.table(columns, _escaped(mistakes))]
    ids = [item["id"] for item in items]
    columns = [("student", ""), ("name", ""), ("state", ""), ("late", "n"), ("points", "n")]
    columns += [(clean_line(i, 12), "n") for i in ids]
    cells = []
    for row in rows:
        name = html.text(row.student.id, 80)
        if links and row.student.id in links:
            name = f'<a href="{escape(links[row.student.id], quote=True)}">{name}</a>'
        own = {e["id"]: e for e in row.report["exercises"]} if row.report is not None else {}
        late = (row.report or {"submission": {}})["submission"].get("late_seconds") or 0
        css = "passed" if row.state == "graded" else "error" if row.state == "error" else "part"
        state = f'<span class="{css}">{escape(STATES[row.state])}</span>'
        state += "" if row.known else ", not in the class list"
        scores = [_score(own[i]) if i in own else "" for i in ids]
        total = "" if row.total is None else f"<strong>{points(row.total)}</strong>"
        cells.append([name, html.text(row.student.name), state, duration(late) if late > 0 else "", total, *scores])
    parts += ["<h2>Students</h2>", html.table(columns, cells)]
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{html.text(value, 600)}</dd>" for name, value in about)
    parts.append(f"<h2>About this run</h2>\n<dl>{facts}</dl>")
    return html.page(title, "\n".join(parts))


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Plain text as HTML."""
    return [[escape(cell, quote=True) for cell in row] for row in rows]


def _score(exercise: Mapping[str, Any]) -> str:
    return f'<span class="{html.kind(exercise)}">{points(exercise["points"])}</span>'
