"""One way for a student's text into a report: nothing in it can act, and nothing in it disappears.

A submission chooses its file names, its error messages and what it prints. Terminals act on escape sequences, editors
on marks that turn the direction of writing, XML parsers refuse control characters, and a lone surrogate cannot be
written to a file at all. Each such character becomes its own visible name, as in ``\\x1b``. What markup needs beyond
that (HTML, XML, CSV) is done where the markup is written.
"""

from __future__ import annotations

import re
from typing import Any

LIMIT = 20_000
"""Characters that a text keeps unless told otherwise."""

_NEWLINE = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0e-\x1f\x7f-\x9f"  # control characters, ESC among them; tab and newline are kept
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # direction of writing, invisible characters
    "\ufff9-\ufffb\ufdd0-\ufdef\U000e0000-\U000e0fff"  # annotations, code points that are no characters, tags
    + "".join(f"{chr(plane * 0x10000 + 0xFFFE)}-{chr(plane * 0x10000 + 0xFFFF)}" for plane in range(17))
    + "\ud800-\udfff]"  # halves of a pair that no encoding can write
)


def _name(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clean(text: Any, limit: int = LIMIT) -> str:
    """Return text that is safe to print, to save as UTF-8 and to put into XML once escaped.

    Parameters
    ----------
    text : str, bytes or any other value
        Bytes are taken as UTF-8; what is neither is taken as `str(text)`, so only values of our own may come here.
    limit : int
        Characters to keep; of a longer text the beginning stays, and how much is left out is said.

    Returns
    -------
    text : str, at most `limit` characters; lines end in ``\\n``. Cleaning it again changes nothing.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    # Only the part that can stay is looked at: a message may have a hundred megabytes.
    text = str(text)
    kept = _UNSAFE.sub(_name, _NEWLINE.sub("\n", text[: limit + 1]))
    if len(text) <= limit and len(kept) <= limit:
        return kept
    mark = f" … ({len(text)} characters in all)" if limit >= 60 else "…"
    return kept[: limit - len(mark)] + mark


def clean_line(text: Any, limit: int = 200) -> str:
    """Return `clean(text)` as one line: what would break the line or jump a column becomes a blank."""
    return clean(re.sub(r"[\t\n]+", " ", clean(text, max(limit, LIMIT))).strip(), limit)
