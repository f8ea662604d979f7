"""Moodle: marks into the grading worksheet that a teacher downloaded, for "Upload grading worksheet".

Moodle refuses a worksheet that lacks ``Identifier`` or the dates, and one whose dates are older than its own, so all
else stays as it is, byte for byte. Headers are in the language of the site; a teacher can name them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from classroom.reports.class_table import Row
from classroom.reports.clean import clean_line
from classroom.reports.gradebook import Column, find_lines
from classroom.reports.sheet import Sheet, number
from classroom.roster import same
from minigpt.errors import InputError


def columns_of(sheet: Sheet, column: str = "Grade", identifier: str = "Identifier") -> tuple[int, int]:
    """Which columns of a worksheet hold the marks, and what Moodle knows a student by.

    Raises
    ------
    InputError
        If a header is not there once.
    """
    header = [same(cell) for cell in sheet.rows[0]] if sheet.rows else []
    for name in (column, identifier):
        if header.count(same(name)) != 1:
            has = ", ".join(repr(clean_line(cell)) for cell in (sheet.rows[0] if sheet.rows else [])) or "nothing"
            raise InputError(f"The Moodle worksheet needs one column {clean_line(name)!r}; it has: {has}.")
    return header.index(same(column)), header.index(same(identifier))


def fill_moodle(sheet: Sheet, rows: Sequence[Row], column: str = "Grade", identifier: str = "Identifier") -> list[str]:
    """Set the marks of all students that have some.

    Parameters
    ----------
    sheet : Sheet
        Changed in place: cells of one column.
    rows : sequence of Row
    column, identifier : str
        Headers of the marks and of what Moodle knows a student by (``Participant 1815``).

    Returns
    -------
    notes : list of str
        Whom the worksheet does not have, and what else a teacher should know.

    Raises
    ------
    InputError
        As `columns_of`.
    """
    target, who = columns_of(sheet, column, identifier)
    header = [same(cell) for cell in sheet.rows[0]]
    lines = [i for i, row in enumerate(sheet.rows) if i and len(row) > max(target, who)]
    notes = []
    most = next((row.report["max"] for row in rows if row.report is not None), None)
    top = header.index("maximum grade") if "maximum grade" in header else -1
    comma = top >= 0 and any("," in sheet.rows[i][top] for i in lines if len(sheet.rows[i]) > top)
    for text in sorted({sheet.rows[i][top].strip() for i in lines if len(sheet.rows[i]) > top} if top >= 0 else set()):
        if most is not None and re.fullmatch(r"\d+([.,]\d+)?", text) and float(text.replace(",", ".")) != most:
            notes.append(f"Moodle has {text} as the maximum grade, the lesson {number(most)}")

    def cells(*names: str) -> list[str]:
        at = next((header.index(name) for name in names if name in header), -1)
        return [same(sheet.rows[i][at]) if 0 <= at < len(sheet.rows[i]) else "" for i in lines]

    numbers = [re.sub(r"^\D+", "", sheet.rows[i][who]) for i in lines]
    columns: list[Column] = [
        (numbers, lambda s: [s.moodle_id]),
        (cells("email address", "email"), lambda s: [s.email]),
        (cells("id number"), lambda s: [s.id]),
        (cells("full name"), lambda s: [s.name]),
    ]
    found, missing = find_lines(rows, lines, columns, "Moodle worksheet")
    for _, marks, line in found:
        sheet.set(line, target, marks.replace(".", ",") if comma else marks)
    return notes + missing
