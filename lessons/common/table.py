"""Plain text tables for the terminal, and values with their spread."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], align: str = "", indent: int = 2) -> str:
    """Rows under headers, in columns.

    Parameters
    ----------
    rows : sequence of rows
        Cells are shown by `str`.
    headers : sequence of str
        One a column.
    align : str
        One letter a column, ``l`` or ``r``; by default the first column is to the left, the others to the right.
    indent : int
        Blanks before each line.

    Returns
    -------
    text : str
        Lines without trailing blanks.

    Raises
    ------
    ValueError
        If a row has another number of cells than there are headers.

    Examples
    --------
    >>> print(table([["uniform", 6.93], ["unigram", 5.31]], ["model", "loss"], indent=0))
    model    loss
    -------  ----
    uniform  6.93
    unigram  5.31
    """
    cells = [[str(cell) for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row of {len(row)} cells under {len(headers)} headers: {row}")
    align = align or "l" + "r" * (len(headers) - 1)
    widths = [max(map(width, column)) for column in zip(headers, *cells, strict=True)]
    lines = [list(headers), ["-" * w for w in widths], *cells]
    return "\n".join(
        (" " * indent + "  ".join(_pad(cell, w, a) for cell, w, a in zip(line, widths, align, strict=True))).rstrip()
        for line in lines
    )


def markdown(rows: Sequence[Sequence[Any]], headers: Sequence[str], align: str = "") -> str:
    """The same as a Markdown table; arguments as for `table`.

    Examples
    --------
    >>> print(markdown([["uniform", 6.93]], ["model", "loss"]), end="")
    | model | loss |
    |:---|---:|
    | uniform | 6.93 |
    """
    align = align or "l" + "r" * (len(headers) - 1)
    marks = ["---:" if a == "r" else ":---" for a in align]
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (headers, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, f"|{'|'.join(marks)}|")
    return "\n".join(lines) + "\n"


def width(text: str) -> int:
    """Columns that a text takes in a terminal: two for a wide character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(cell: str, to: int, align: str) -> str:
    blanks = " " * (to - width(cell))
    return blanks + cell if align == "r" else cell + blanks


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation of runs that differ in their seed; a single value stands alone.

    Examples
    --------
    >>> spread([1.0, 2.0, 3.0], 1)
    '2.0 ± 1.0'
    >>> spread([2.5], 1)
    '2.5'
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {deviation(values):.{digits}f}"


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation, of two values or more."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
