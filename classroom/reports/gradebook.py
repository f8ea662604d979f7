"""What Canvas' and Moodle's tables have in common: one line a student, known by one of several columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from classroom.reports.class_table import Row
from classroom.reports.clean import clean_line
from classroom.reports.sheet import number
from classroom.roster import Student, same

Column = tuple[Sequence[str], Callable[[Student], Sequence[str]]]
"""A column's cells as `same` gives them, and what a student's may be."""


def find_lines(
    rows: Sequence[Row], lines: Sequence[int], columns: Sequence[Column], book: str
) -> tuple[list[tuple[Student, str, int]], list[str]]:
    """The lines of all students who have marks; the first column that has a student decides.

    Parameters
    ----------
    rows : sequence of Row
    lines : sequence of int
        Of the sheet, for each cell of the columns.
    columns : sequence of Column
        The surest first.
    book : str
        Its name in the notes.

    Returns
    -------
    found : list of (Student, str, int)
        With their marks and the line.
    notes : list of str
        Whom the book does not have, or has more than once.
    """
    found, notes = [], []
    for student, total in ((row.student, row.total) for row in rows):
        if total is None:
            continue
        hit: list[int] = []
        for cells, keys in columns:
            wanted = {same(key) for key in keys(student)} - {""}
            hit = [line for line, cell in zip(lines, cells, strict=True) if cell in wanted]
            if hit:
                break
        if len(hit) == 1:
            found.append((student, number(total), hit[0]))
        else:
            how = "more than once" if hit else "not"
            notes.append(f"{clean_line(student.id, 80)}: {how} in the {book}; marks {number(total)}")
    return found, notes
