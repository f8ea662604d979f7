"""CSV: reading other people's tables, changing single cells of them in place, and writing our own safely.

A cell that begins with ``=``, ``+``, ``-`` or ``@`` is a formula to a spreadsheet, whoever typed it, so text that could
begin one is written with an apostrophe before it. `protect` can be undone: `unprotect` gives back the same text.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from classroom.reports.clean import clean, clean_line
from minigpt.errors import InputError

_FORMULA = re.compile(r"\s*'*[=+\-@\t\r\n＝＋－＠]")  # Excel takes the full-width signs for the plain ones


def protect(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return "'" + text if _FORMULA.match(text) else text


def unprotect(text: str) -> str:
    """Undo `protect`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


def number(value: float) -> str:
    """A number of points with two decimals at most, which is what an LMS keeps; never -0."""
    return f"{value + 0.0:.2f}".rstrip("0").rstrip(".")


def write(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a CSV: text cleaned, protected and quoted where needed, numbers as numbers, None as an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    for row in (header, *rows):
        writer.writerow([protect(clean(c)) if isinstance(c, str) else "" if c is None else number(c) for c in row])
    return file.getvalue()


def read(path: str | Path) -> list[list[str]]:
    """Rows of a CSV that someone exported or `write` made: any of its usual separators, with or without a BOM."""
    return [[unprotect(cell) for cell in row] for row in Sheet.load(path).rows]


class Sheet:
    """A CSV whose cells can be set while every other byte stays as it was.

    Parameters
    ----------
    text : str
    encoding : str
        Of the file, to write it back.

    Attributes
    ----------
    rows : list of list of str
        Values of the cells.
    separator : str
        ``,``, ``;`` or a tab: the one of which the first line has most.
    """

    def __init__(self, text: str, encoding: str = "utf-8") -> None:
        self.encoding = encoding
        first = re.sub(r'"[^"]*"', "", text.split("\n", 1)[0])
        self.separator = max(",;\t", key=first.count)
        self.rows: list[list[str]] = []
        self._pieces: list[str] = []  # the text; cells at odd places, what is between them at even ones
        self._cells: list[list[int]] = []  # row, column -> place in _pieces
        self._parse(text)

    @classmethod
    def load(cls, path: str | Path) -> Sheet:
        """Read a file.

        Raises
        ------
        InputError
            If it cannot be read, or is neither UTF-8 nor UTF-16 text.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{clean_line(path)!r} cannot be read: {error.strerror}.") from None
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            encoding = "utf-16-le" if data.startswith(b"\xff") else "utf-16-be"
        else:
            encoding = "utf-8"
        try:
            return cls(data.decode(encoding), encoding)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{clean_line(path)!r}, line {line}, is not UTF-8: save it as UTF-8.") from None

    def _parse(self, text: str) -> None:
        at = 1 if text.startswith("\ufeff") else 0
        self._pieces.append(text[:at])
        pattern = re.compile(rf'("(?:[^"]|"")*"[^{self.separator}\r\n]*|[^{self.separator}\r\n]*)')
        row: list[str] = []
        places: list[int] = []
        while at < len(text) or row:
            match = pattern.match(text, at)
            assert match is not None  # the pattern matches the empty text
            places.append(len(self._pieces))
            raw = match.group()
            self._pieces.append(raw)
            row.append(_value(raw))
            at = match.end()
            end = re.compile(r"\r\n|\n|\r|").match(text, at)
            assert end is not None
            between = end.group() or text[at : at + 1]
            self._pieces.append(between)
            at += len(between)
            if between != self.separator:
                self.rows.append(row)
                self._cells.append(places)
                row, places = [], []

    def set(self, row: int, column: int, value: str) -> None:
        """Write into one cell; quoted if it was quoted or has to be."""
        place = self._cells[row][column]
        old = self._pieces[place]
        if old.startswith('"') or re.search(rf'["\r\n{self.separator}]', value):
            value = '"' + value.replace('"', '""') + '"'
        self._pieces[place] = value
        self.rows[row][column] = _value(value)

    def bytes(self) -> bytes:
        """The file as it is now."""
        return "".join(self._pieces).encode(self.encoding)


def _value(raw: str) -> str:
    if not raw.startswith('"'):
        return raw
    body, _, rest = raw[1:].rpartition('"')
    return body.replace('""', '"') + rest
