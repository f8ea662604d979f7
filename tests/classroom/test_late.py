"""The late policy: a table of expected penalties, clocks that change, slip days, and what is refused."""

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from classroom.late import Policy, SlipDays, lateness, parse_time, read_policy
from minigpt.errors import InputError

BERLIN = ZoneInfo("Europe/Berlin")
DUE = datetime(2026, 10, 2, 23, 59, tzinfo=BERLIN)
DAYS = Policy(DUE, grace_minutes=10, percent=10, cap=35, extensions={"zoë": datetime(2026, 10, 4, 12, tzinfo=BERLIN)})
HOURS = Policy(DUE, grace_minutes=10, percent=2, per="hour", cap=50)
S, M, H, D = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("policy", "student", "after", "units", "percent"),
    [
        (DAYS, "ada", -D, 0, 0),
        (DAYS, "ada", 0 * S, 0, 0),
        (DAYS, "ada", S, 0, 0),  # within the grace time
        (DAYS, "ada", 10 * M, 0, 0),
        (DAYS, "ada", 10 * M + S, 1, 10),  # after it, counted from the deadline
        (DAYS, "ada", D, 1, 10),
        (DAYS, "ada", D + S, 2, 20),
        (DAYS, "ada", 3 * D, 3, 30),
        (DAYS, "ada", 3 * D + H, 4, 35),  # the cap
        (DAYS, "ada", 40 * D, 40, 35),
        (DAYS, "zoë", 12 * H, 0, 0),  # her own deadline is 36 h and a minute later
        (DAYS, "ZOE\u0308", 12 * H, 0, 0),
        (DAYS, "zoë", 36 * H + 12 * M, 1, 10),
        (HOURS, "ada", 10 * M, 0, 0),
        (HOURS, "ada", 11 * M, 1, 2),
        (HOURS, "ada", H, 1, 2),
        (HOURS, "ada", H + S, 2, 4),
        (HOURS, "ada", D, 24, 48),
        (HOURS, "ada", D + S, 25, 50),
        (HOURS, "ada", 30 * H, 30, 50),
    ],
)
def test_table(policy, student, after, units, percent):
    received = (DUE.astimezone(UTC) + after).astimezone(ZoneInfo("Asia/Tokyo"))
    late = lateness(policy, student, received)
    assert (late.units, late.percent) == (units, percent)
    own = policy.extensions["zoë"] if student != "ada" else DUE
    assert late.seconds == max(0, (received.astimezone(UTC) - own.astimezone(UTC)).total_seconds())
    assert bool(late.reason) == (late.seconds > 0)


@pytest.mark.parametrize(
    ("due", "received", "units"),
    [
        # Summer time ends on 25 October: that day has 25 hours.
        ("2026-10-24T20:00:00+02:00", "2026-10-25T20:00:00+01:00", 1),
        ("2026-10-24T20:00:00+02:00", "2026-10-25T20:00:01+01:00", 2),
        ("2026-10-24T20:00:00+02:00", "2026-10-25T19:30:00+01:00", 1),
        # It begins on 29 March: that day has 23.
        ("2026-03-28T20:00:00+01:00", "2026-03-29T20:00:00+02:00", 1),
        ("2026-03-28T20:00:00+01:00", "2026-03-29T20:30:00+02:00", 2),
    ],
)
def test_days_end_at_the_time_of_day_of_the_deadline(due, received, units):
    policy = Policy(datetime.fromisoformat(due).astimezone(BERLIN))
    assert lateness(policy, "ada", datetime.fromisoformat(received)).units == units


def test_seconds_are_elapsed_time_also_between_two_times_of_one_zone():
    due = datetime(2026, 10, 24, 20, tzinfo=BERLIN)
    assert lateness(Policy(due), "ada", datetime(2026, 10, 25, 20, tzinfo=BERLIN)).seconds == 25 * 3600


@pytest.mark.parametrize(
    ("received", "units"), [("2026-10-25T03:00:00+01:00", 25 - 20 + 3), ("2026-10-25T02:30:00+01:00", 8)]
)
def test_hours_are_sixty_minutes_also_at_night(received, units):
    due = datetime(2026, 10, 24, 20, tzinfo=BERLIN)
    late = lateness(Policy(due, percent=1, per="hour"), "ada", datetime.fromisoformat(received))
    assert late.units == units  # 20:00 to 03:00 is 8 hours that night, by the clock 7


@pytest.mark.parametrize(
    ("left", "after", "slip", "units", "percent"),
    [
        (3, 2 * D, 2, 0, 0),
        (1, 2 * D, 1, 1, 10),
        (0, 2 * D, 0, 2, 20),
        (3, 5 * M, 0, 0, 0),
        (2, 6 * D, 0, 6, 35),
        (3, 6 * D, 3, 3, 30),
    ],
)
def test_slip_days(left, after, slip, units, percent):
    late = lateness(DAYS, "ada", DUE + after, left)
    assert (late.slip_days, late.units, late.percent) == (slip, units, percent)


def test_slip_days_where_hours_cost():
    late = lateness(HOURS, "ada", (DUE + D).astimezone(UTC) + 3 * H, 1)
    assert (late.slip_days, late.units, late.percent) == (1, 3, 6)
    late = lateness(HOURS, "ada", (DUE + D).astimezone(UTC) - H, 1)
    assert (late.slip_days, late.units) == (1, 0)


def test_reason():
    assert lateness(DAYS, "ada", DUE + 2 * D, 1).reason == "2 d late, 1 slip day used: 1 day at 10 %"
    assert lateness(DAYS, "ada", DUE + 5 * M).reason == "5 min late, within the grace time"
    assert lateness(DAYS, "ada", DUE + 9 * D).reason == "9 d late: 9 days at 10 %, at most 35 %"


def test_time_without_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        lateness(DAYS, "ada", datetime(2026, 10, 3))


def test_times_as_text():
    assert parse_time("2026-10-02 23:59", BERLIN) == DUE
    assert parse_time("2026-10-02T21:59:00+00:00", ZoneInfo("Asia/Tokyo")) == DUE
    twice = parse_time("2026-10-25 02:30", BERLIN)
    assert twice.astimezone(UTC) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)  # the later of the two
    with pytest.raises(InputError, match="does not exist"):
        parse_time("2026-03-29 02:30", BERLIN)
    with pytest.raises(InputError, match="no time"):
        parse_time("tomorrow", BERLIN)


def policy(tmp_path, **settings):
    path = tmp_path / "late.json"
    path.write_text(json.dumps({"deadline": "2026-10-02 23:59", "timezone": "Europe/Berlin"} | settings))
    return read_policy(path)


def test_policy_file(tmp_path):
    assert policy(tmp_path) == Policy(DUE)
    full = policy(
        tmp_path, grace_minutes=15, percent=5, per="hour", cap=40, slip_days=4, extensions={"Zoë": "2026-10-04 12:00"}
    )
    assert full == Policy(DUE, 15, 5, "hour", 40, 4, {"zoë": datetime(2026, 10, 4, 12, tzinfo=BERLIN)})
    (tmp_path / "own.csv").write_text("student,reason,deadline\nZoë,ill,2026-10-04 12:00\n", "utf-8")
    assert policy(tmp_path, extensions="own.csv").extensions == full.extensions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"timezone": 3}, "timezone"),
        ({"deadline": "soon"}, "soon"),
        ({"penalty": 3}, "unknown setting 'penalty'"),
        ({"percent": 101}, "'percent' is '101'; allowed are 0 to 100"),
        ({"percent": True}, "percent"),
        ({"percent": "10"}, "percent"),
        ({"cap": -1}, "cap"),
        ({"grace_minutes": float("nan")}, "grace_minutes"),
        ({"per": "week"}, "day or hour"),
        ({"slip_days": 1.5}, "whole number"),
        ({"extensions": ["ada"]}, "extensions"),
        ({"extensions": "none.csv"}, "none.csv"),
    ],
)
def test_wrong_policies(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        policy(tmp_path, **settings)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_policy_that_is_no_json_object(tmp_path, text):
    (tmp_path / "late.json").write_text(text)
    with pytest.raises(InputError, match="JSON"):
        read_policy(tmp_path / "late.json")


def test_slip_days_over_lessons(tmp_path):
    path = tmp_path / "slip.csv"
    first = SlipDays(path)
    assert first.left("ada", 2, 3) == 3
    path.write_text(first.text(2, {"Ada": 2, "alan": 0}))
    second = SlipDays(path)
    assert second.left("ada", 3, 3) == 1
    assert second.left("ada", 2, 3) == 3  # graded again, lesson 2 does not pay for itself
    assert second.left("alan", 3, 3) == 3
    path.write_text(second.text(3, {"ada": 1}))
    path.write_text(SlipDays(path).text(2, {"ada": 1}))
    assert SlipDays(path).used == {("ada", 2): 1, ("ada", 3): 1}
    path.write_text("student,lesson,days\nada,two,1\n")
    with pytest.raises(InputError, match="Row 2"):
        SlipDays(path)
