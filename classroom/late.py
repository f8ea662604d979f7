"""What a late submission costs.

Lateness is the time from the student's own deadline (an extension goes before the common one) to when the submission
came in; when it is graded does not matter. Within the grace time it costs nothing; after that it counts from the
deadline. Each day, or hour, that has begun costs a share of the points reached, up to a cap. A day ends at the
deadline's time of day in its time zone, also where the clocks change in between; an hour is 60 minutes. Slip days, if
there are any, go first: whole days, at most as many as the student has left from other assignments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from classroom.reports import sheet
from classroom.reports.clean import clean_line
from classroom.reports.text import duration, points
from classroom.roster import same
from minigpt.errors import InputError


@dataclass(frozen=True)
class Policy:
    """When a lesson is due, and what lateness costs.

    Attributes
    ----------
    deadline : datetime
        With its time zone (a `zoneinfo.ZoneInfo` where the clocks change).
    grace_minutes : float
    percent : float
        Of the points reached, for each day or hour begun.
    per : {"day", "hour"}
    cap : float
        Most that lateness can cost, in percent.
    slip_days : int
        Days that a student has in all, over all lessons.
    extensions : mapping of str to datetime
        Student's id, as `classroom.roster.same` gives it → own deadline.
    """

    deadline: datetime
    grace_minutes: float = 0.0
    percent: float = 10.0
    per: str = "day"
    cap: float = 100.0
    slip_days: int = 0
    extensions: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Late:
    """How late a submission is, and what that costs.

    Attributes
    ----------
    seconds : float
        After the student's deadline; 0 for one in time.
    units : int
        Days or hours begun that are paid for, slip days taken off.
    slip_days : int
        Used up by this submission.
    percent : float
        Of the points reached.
    reason : str
        For the report; empty where nothing is to be said.
    """

    seconds: float = 0.0
    units: int = 0
    slip_days: int = 0
    percent: float = 0.0
    reason: str = ""


def lateness(policy: Policy, student: str, received: datetime, slip_left: int = 0) -> Late:
    """Return what it costs that `student` handed in at `received`.

    Parameters
    ----------
    policy : Policy
    student : str
        Id.
    received : datetime
        With a time zone.
    slip_left : int
        Slip days that the student has not used in other lessons; they are used only where the cost becomes less.

    Returns
    -------
    late : Late

    Raises
    ------
    ValueError
        If `received` has no time zone.
    """
    if received.tzinfo is None:
        raise ValueError(f"the time of a submission needs a time zone: {received}")
    due = policy.extensions.get(same(student), policy.deadline)
    # Two times in one zone are subtracted as their clocks show them, so both go to UTC first.
    seconds = (received.astimezone(UTC) - due.astimezone(UTC)).total_seconds()
    if seconds <= 0:
        return Late()
    if seconds <= policy.grace_minutes * 60:
        return Late(seconds, reason=f"{duration(seconds)} late, within the grace time")
    slip = min(max(0, slip_left), _days_begun(due, received))
    units = _units_begun(policy.per, due, received, slip)
    without = _units_begun(policy.per, due, received, 0)
    percent = min(policy.cap, units * policy.percent)
    if percent == min(policy.cap, without * policy.percent):  # they would be gone for nothing
        slip, units = 0, without
    reason = f"{duration(seconds)} late"
    if slip:
        reason += f", {slip} slip day{'s' if slip > 1 else ''} used"
    if units:
        reason += f": {units} {policy.per}{'s' if units > 1 else ''} at {points(policy.percent)} %"
        reason += f", at most {points(policy.cap)} %" if units * policy.percent > policy.cap else ""
    return Late(seconds, units, slip, percent, reason)


def _units_begun(per: str, due: datetime, received: datetime, slip: int) -> int:
    """Days or hours begun between the deadline, moved by slip days, and the submission."""
    if per == "day":
        return _days_begun(due, received) - slip
    after = _days_after(due, slip)
    return max(0, math.ceil((received.astimezone(UTC) - after.astimezone(UTC)).total_seconds() / 3600))


def _days_after(due: datetime, days: int) -> datetime:
    """The same time of day `days` later: adding to a time in a zone moves the date, not the elapsed time."""
    return due + timedelta(days=days)


def _days_begun(due: datetime, received: datetime) -> int:
    """Least number of days by which `due` must be moved to lie at `received` or after it."""
    target = received.astimezone(UTC)
    days = max(0, int((target - due.astimezone(UTC)).total_seconds() // 86400) - 1)
    while _days_after(due, days).astimezone(UTC) < target:
        days += 1
    return days


# ------------------------------------------------------------------------------------------------ reading it


def parse_zone(name: str) -> tzinfo:
    """A time zone by its name in the IANA database, as Europe/Berlin, or UTC.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(f"There is no time zone {clean_line(name)!r}; use a name like Europe/Berlin or UTC.") from None


def parse_time(text: str, zone: tzinfo) -> datetime:
    """A time as ``2026-10-02 23:59`` in `zone`, or with an offset of its own.

    A time that the clocks show twice, when summer time ends, is the later one: in the student's favour.

    Raises
    ------
    InputError
        If it is no time, or one that the clocks skip when summer time begins.
    """
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(f"{clean_line(text)!r} is no time; write it as 2026-10-02 23:59.") from None
    if time.tzinfo is not None:
        return time
    time = time.replace(tzinfo=zone, fold=1)
    if time.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != time.replace(tzinfo=None):
        raise InputError(f"{clean_line(text)} does not exist in {zone}: the clocks are put forward over it.")
    return time


_SETTINGS = ("deadline", "timezone", "grace_minutes", "percent", "per", "cap", "slip_days", "extensions")


def read_policy(path: str | Path) -> Policy:
    """Read a policy from a JSON file.

    Its keys are ``deadline`` and ``timezone``, and optionally ``grace_minutes``, ``percent``, ``per`` (day or hour),
    ``cap``, ``slip_days`` and ``extensions``: either student → deadline, or the name of a CSV, beside this file, with
    the columns ``student`` and ``deadline``.

    Raises
    ------
    InputError
        If the file cannot be read, or a setting is unknown or out of its range.
    """
    shown = repr(clean_line(path))
    try:
        settings = json.loads(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise InputError(f"The late policy {shown} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"The late policy {shown} is not JSON: {clean_line(error)}.") from None
    if not isinstance(settings, dict):
        raise InputError(f"The late policy {shown} must be a JSON object.")
    for name in settings:
        if name not in _SETTINGS:
            raise InputError(
                f"The late policy {shown} has an unknown setting {clean_line(name)!r}; there are: "
                f"{', '.join(_SETTINGS)}."
            )
    for name in ("deadline", "timezone"):
        if not isinstance(settings.get(name), str):
            raise InputError(f"The late policy {shown} needs a text {name!r}.")
    zone = parse_zone(settings["timezone"])
    extensions = settings.get("extensions", {})
    if isinstance(extensions, str):
        extensions = _extension_table(Path(path).parent / extensions)
    if not isinstance(extensions, dict) or not all(isinstance(v, str) for v in extensions.values()):
        raise InputError(f"In the late policy {shown} 'extensions' must be student: deadline, or the name of a CSV.")
    per = settings.get("per", "day")
    if per not in ("day", "hour"):
        raise InputError(f"In the late policy {shown} 'per' is {clean_line(per)!r}; it must be day or hour.")
    slip = _within(settings, "slip_days", 0, 1000, shown)
    if slip != int(slip):
        raise InputError(f"In the late policy {shown} 'slip_days' is {slip}; it must be a whole number.")
    return Policy(
        deadline=parse_time(settings["deadline"], zone),
        grace_minutes=_within(settings, "grace_minutes", 0, 10_000, shown),
        percent=_within(settings, "percent", 10, 100, shown),
        per=per,
        cap=_within(settings, "cap", 100, 100, shown),
        slip_days=int(slip),
        extensions={same(student): parse_time(time, zone) for student, time in extensions.items()},
    )


def _within(settings: Mapping[str, Any], name: str, default: float, most: float, shown: str) -> float:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise InputError(f"In the late policy {shown} {name!r} is {clean_line(value)!r}; allowed are 0 to {most:g}.")
    return float(value)


def _extension_table(path: Path) -> dict[str, str]:
    rows = sheet.Sheet.load(path).rows
    header = [same(cell) for cell in rows[0]] if rows else []
    if "student" not in header or "deadline" not in header:
        raise InputError(f"The extensions in {clean_line(path)!r} need the columns student and deadline.")
    table: dict[str, str] = {}
    for row in rows[1:]:
        if any(cell.strip() for cell in row):
            cells = dict(zip(header, row, strict=False))
            table[cells["student"]] = cells.get("deadline", "")
    return table


# ------------------------------------------------------------------------------------------------ slip days


class SlipDays:
    """Who has used how many slip days for which lesson: a CSV that stays from one lesson to the next.

    A lesson graded again replaces its own lines, so nobody pays twice.

    Parameters
    ----------
    path : path, optional
        Read if it exists; None for a table that is not kept.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.used: dict[tuple[str, int], int] = {}
        if path is None or not Path(path).exists():
            return
        for line, row in enumerate(sheet.read(path)[1:], 2):
            try:
                student, lesson, days = row
                self.used[same(student), int(lesson)] = int(days)
            except ValueError:
                raise InputError(f"Row {line} of {clean_line(path)!r} is not student, lesson, days.") from None

    def left(self, student: str, lesson: int, total: int) -> int:
        """Slip days that a student can use for `lesson`, of `total` in all."""
        other = sum(days for (who, which), days in self.used.items() if who == same(student) and which != lesson)
        return max(0, total - other)

    def text(self, lesson: int, used: Mapping[str, int]) -> str:
        """The table as CSV, with `used` (student's id → days) in place of what `lesson` had before."""
        rows = {key: days for key, days in self.used.items() if key[1] != lesson}
        rows |= {(same(student), lesson): days for student, days in used.items() if days}
        return sheet.write(("student", "lesson", "days"), [(s, str(n), rows[s, n]) for s, n in sorted(rows)])
