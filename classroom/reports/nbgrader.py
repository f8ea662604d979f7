"""nbgrader: the columns of ``nbgrader export``, for scripts and sheets that expect them."""

from __future__ import annotations

from collections.abc import Sequence

from classroom.reports import sheet
from classroom.reports.class_table import Row

_WHO = ("assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email")
HEADER = (*_WHO, "raw_score", "late_submission_penalty", "score", "max_score")


def nbgrader(rows: Sequence[Row], assignment: str, due: str = "") -> str:
    """Return a class as nbgrader exports it, students without marks included with empty cells.

    Parameters
    ----------
    rows : sequence of Row
    assignment : str
    due : str
        Deadline, ISO 8601.
    """
    lines = []
    for row in rows:
        student = row.student
        first, last = student.first_name, student.last_name
        if not (first or last) and "," in student.name:
            last, first = (part.strip() for part in student.name.split(",", 1))
        elif not (first or last):
            first, _, last = student.name.rpartition(" ")
        total = row.total
        raw = None if total is None else total + row.penalty
        most = row.report["max"] if row.report is not None else None
        penalty = None if total is None else row.penalty
        who = [assignment, due, row.received_at, student.id, last, first, student.email]
        lines.append([*who, raw, penalty, total, most])
    return sheet.write(HEADER, lines)
