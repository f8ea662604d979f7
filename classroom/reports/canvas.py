"""Canvas: marks into one column of the gradebook that a teacher exported, for its import page.

Canvas makes a new assignment of a column that it does not know, so the column must be there already: the assignment
exists in Canvas, without marks. Every other byte of the file stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from classroom.reports.class_table import Row
from classroom.reports.clean import clean_line
from classroom.reports.gradebook import Column, find_lines
from classroom.reports.sheet import Sheet, number
from classroom.roster import same
from minigpt.errors import InputError

_NOT_MARKS = (*(f"{a} {b}" for a in ("current", "final") for b in ("score", "points", "grade")), "override")


def column_of(sheet: Sheet, title: str) -> int:
    """Which column of a gradebook an assignment has.

    Parameters
    ----------
    sheet : Sheet
    title : str
        Of the assignment, with or without its number in brackets.

    Raises
    ------
    InputError
        If this is no gradebook of Canvas, or the title is that of none or several of its columns, or of one that takes
        no marks.
    """
    header = [same(cell) for cell in sheet.rows[0]] if sheet.rows else []
    known = len(header) > 3 and "student" in header[0] and "id" in header and any("section" in cell for cell in header)
    if not known:
        raise InputError("This is no gradebook exported from Canvas: its header needs Student, ID and Section.")
    last = max(i for i, cell in enumerate(header) if "section" in cell)
    titles = [i for i in range(last + 1, len(header)) if not any(name in header[i] for name in _NOT_MARKS)]
    hits = [i for i in titles if header[i] == same(title)] or [
        i for i in titles if header[i].rpartition(" (")[0] == same(title)
    ]
    if len(hits) != 1:
        choices = ", ".join(repr(clean_line(sheet.rows[0][i])) for i in titles) or "none"
        raise InputError(f"{clean_line(title)!r} is not one column of the gradebook; assignments in it: {choices}.")
    if any("read only" in same(sheet.rows[i][hits[0]]) for i in _heads(sheet, hits[0])):
        raise InputError(f"Canvas does not take marks for {clean_line(title)!r}: the column is read only.")
    return hits[0]


def _heads(sheet: Sheet, target: int) -> list[int]:
    """Rows above the students': they hold the points that can be had."""
    rows = sheet.rows
    return [i for i in range(1, len(rows)) if len(rows[i]) > target and same(rows[i][0]).startswith("points possible")]


def fill_canvas(sheet: Sheet, column: str, rows: Sequence[Row]) -> list[str]:
    """Set the marks of all students that have some.

    Parameters
    ----------
    sheet : Sheet
        Changed in place: cells of one column.
    column : str
        Title of the assignment; see `column_of`.
    rows : sequence of Row

    Returns
    -------
    notes : list of str
        Whom the sheet does not have, whose marks Canvas will not take, and what else a teacher should know.

    Raises
    ------
    InputError
        As `column_of`.
    """
    target, notes = column_of(sheet, column), []
    header = [same(cell) for cell in sheet.rows[0]]
    heads = _heads(sheet, target)
    lines = [i for i, row in enumerate(sheet.rows) if i and len(row) > target and i not in heads]
    most = next((r.report["max"] for r in rows if r.report is not None), None)
    for cells in (sheet.rows[i] for i in heads):
        if most is not None and cells[target].strip() not in ("", number(most), f"{most:.2f}", f"{most:.1f}"):
            notes.append(f"Canvas has {clean_line(cells[target])} points possible, the lesson {number(most)}")

    def cells_of(name: str) -> list[str]:
        return [same(sheet.rows[i][header.index(name)]) if name in header else "" for i in lines]

    columns: list[Column] = [
        (cells_of("id"), lambda s: [s.canvas_id]),
        (cells_of("sis user id"), lambda s: [s.id]),
        (cells_of("sis login id"), lambda s: [s.id, s.email]),
        (cells_of("student"), lambda s: [s.name, _last_first(s.name)]),
    ]
    found, missing = find_lines(rows, lines, columns, "Canvas gradebook")
    notes += missing
    for student, marks, line in found:
        if same(sheet.rows[line][target]) == "ex":
            notes.append(f"{clean_line(student.id, 80)}: excused in Canvas, left so; marks {marks}")
        else:
            sheet.set(line, target, marks)
    return notes


def _last_first(name: str) -> str:
    first, _, last = name.rpartition(" ")
    return f"{last}, {first}" if first and "," not in name else name
