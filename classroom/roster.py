"""The class list: who is who.

A CSV with a header. It needs a column that names each student (``id``); all others are optional: ``name`` or
``first_name`` and ``last_name``, ``email``, ``github``, ``section``, ``canvas_id``, ``moodle_id``, ``received_at``
(when the submission came in, from the LMS). What Canvas (gradebook) and Moodle (grading worksheet) export will do as it
is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from classroom.reports.clean import clean_line
from classroom.reports.sheet import Sheet
from classroom.submissions import Found
from minigpt.errors import InputError

COLUMNS = {
    "id": ("id", "student_id", "student id", "username", "user name", "sis login id", "login", "id number"),
    "name": ("name", "full name", "fullname", "student"),
    "first_name": ("first_name", "first name"),
    "last_name": ("last_name", "last name", "surname"),
    "email": ("email", "email address", "e-mail"),
    "github": ("github", "github username", "github_username"),
    "section": ("section",),
    "canvas_id": ("canvas_id", "canvas id"),
    "moodle_id": ("moodle_id", "identifier"),
    "received_at": ("received_at", "received", "timestamp", "submitted_at"),
}
"""Field of a student → what its column may be called, upper and lower case alike."""


@dataclass(frozen=True)
class Student:
    """A line of the class list; what the list does not say is empty.

    Attributes
    ----------
    id : str
        Unique in the list, however it is capitalised.
    moodle_id : str
        Digits: of ``Participant 1815`` the 1815.
    received_at : str
        ISO 8601, or as near as the table had it.
    """

    id: str
    name: str = ""
    email: str = ""
    github: str = ""
    section: str = ""
    canvas_id: str = ""
    moodle_id: str = ""
    received_at: str = ""
    first_name: str = ""
    last_name: str = ""


def same(text: str) -> str:
    """What two spellings of one name have in common: composed characters, no case, no outer blanks."""
    return unicodedata.normalize("NFC", text).strip().casefold()


def read_roster(path: str | Path) -> list[Student]:
    """Read a class list.

    Parameters
    ----------
    path : path

    Returns
    -------
    students : list of Student
        In the order of the file.

    Raises
    ------
    InputError
        If a column is missing, a student has no id, or two have the same one: with the line.
    """
    rows = Sheet.load(path).rows
    shown = repr(clean_line(path))
    if not rows:
        raise InputError(f"The class list {shown} is empty.")
    header = [same(cell) for cell in rows[0]]
    column = {f: [header.index(n) for n in names if n in header] for f, names in COLUMNS.items()}
    if "sis login id" in header and "id" in header:  # Canvas calls its own number ID
        column["canvas_id"] = [header.index("id")]
        column["id"] = [i for i in column["id"] if i != header.index("id")] + column["canvas_id"]
    if not column["id"]:
        column["id"] = column["email"] or column["moodle_id"]
    if not column["id"]:
        raise InputError(f"The class list {shown} needs a column 'id'; it has: {', '.join(map(clean_line, rows[0]))}.")

    students: list[Student] = []
    lines: dict[str, int] = {}
    for line, row in enumerate(rows[1:], 2):
        cells = [cell.strip() for cell in row] + [""] * len(header)
        values = {f: next((cells[i] for i in at if cells[i]), "") for f, at in column.items()}
        if not any(cells) or same(row[0]).startswith("points possible"):
            continue
        if not values["id"]:
            raise InputError(f"Row {line} of the class list {shown} has no id.")
        if not values["name"]:
            values["name"] = f"{values['first_name']} {values['last_name']}".strip()
        values["moodle_id"] = re.sub(r"^\D+", "", values["moodle_id"])
        if same(values["id"]) in lines:
            first = lines[same(values["id"])]
            who = repr(clean_line(values["id"]))
            raise InputError(f"Rows {first} and {line} of the class list {shown} are both {who}.")
        lines[same(values["id"])] = line
        students.append(Student(**values))
    if not students:
        raise InputError(f"The class list {shown} names no student.")
    return students


class Roster:
    """The class list, asked who a submission is from.

    Parameters
    ----------
    students : sequence of Student
    """

    def __init__(self, students: Sequence[Student]) -> None:
        self.students = list(students)

    def who(self, found: Found) -> tuple[Student | None, str]:
        """Find the sender.

        A number from an LMS is looked up in that LMS's column, and only where the list has none, the name beside it is.
        Any other name must be somebody's id, e-mail address, login on GitHub or full name, and nobody else's.

        Returns
        -------
        student : Student, or None
        reason : str
            Why it is nobody; cleaned.
        """
        owner = same(found.owner)
        if found.column:
            hits = [s for s in self.students if same(getattr(s, found.column)) == owner]
            if not hits and not any(getattr(s, found.column) for s in self.students):
                lms_name = _letters(found.name.split("_", 1)[0])
                hits = [s for s in self.students if lms_name and lms_name in _orders(s)]
        else:
            hits = []
            for field in ("id", "email", "github", "canvas_id", "moodle_id"):
                hits = hits or [s for s in self.students if owner and same(getattr(s, field)) == owner]
            # GitHub Classroom names a repository after the assignment and the login.
            hits = hits or [s for s in self.students if s.github and owner.endswith("-" + same(s.github))]
            hits = hits or [s for s in self.students if _letters(owner) and _letters(owner) in _orders(s)]
        if len(hits) == 1:
            return hits[0], ""
        if hits:
            return None, f"may be {' or '.join(clean_line(s.id, 60) for s in hits[:5])}"
        return None, f"nobody in the class list is {clean_line(found.owner, 80)!r}"


def _letters(name: str) -> str:
    return "".join(c for c in same(name) if c.isalnum())


def _orders(student: Student) -> set[str]:
    """A full name as one word: as it stands (Lovelace, Ada), and with the last name first and last."""
    first, _, last = student.name.rpartition(" ")
    orders = {student.name, f"{last} {first}", f"{student.last_name} {student.first_name}"}
    if "," in student.name:
        last, _, first = student.name.partition(",")
        orders.add(f"{first} {last}")
    return {_letters(order) for order in orders} - {""}
