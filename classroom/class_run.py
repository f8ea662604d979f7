"""Grading a class: many submissions of one lesson, a worker process each, a row as soon as one is done.

First everything is taken in and frozen; only then does the first line of a student's code run. A row holds one
submission's report under a seal made with the secret, so that neither a student's code nor an accident can put one
there; the same command goes on after any interruption, and grades again only what has no row, what changed, and what
the grader failed at. Who is late, and what that costs, is worked out when the tables are written: a deadline can be
moved without grading anything again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import hmac
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import connection
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from classroom import assignment, base, handout, late, manifest, recorded, sandbox, submissions
from classroom.exercise import Exercise
from classroom.reports import canvas, moodle, statistics
from classroom.reports.class_table import STATES, Row, class_csv, class_html
from classroom.reports.clean import clean, clean_line
from classroom.reports.github import github
from classroom.reports.gradescope import gradescope
from classroom.reports.html import report_html
from classroom.reports.junit import junit
from classroom.reports.nbgrader import nbgrader
from classroom.reports.sheet import Sheet
from classroom.reports.text import report_text
from classroom.roster import Roster, Student, read_roster, same
from classroom.secret import read_secret, seed_id
from classroom.source import path_of
from minigpt.errors import InputError, RunError
from minigpt.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
Grade = Callable[[Path, int, bytes, str], dict[str, Any]]
"""Tree of graded files, lesson, secret, isolation level → report."""


@dataclass(frozen=True)
class Settings:
    """What a class run is told.

    Attributes
    ----------
    lesson : int
    submissions, roster, out : Path
    secret : Path, optional
        File of the secret, made if there is none; by default ``staff/secret`` in `out`.
    late : Path, optional
        Late policy, JSON.
    slip_days : Path, optional
        Table of slip days used, kept from lesson to lesson; by default beside `late`.
    canvas, moodle : Path, optional
        Exported sheets to fill in; the filled copies go to ``exports`` in `out`.
    canvas_column, moodle_column : str
    workers : int
        Submissions graded at the same time; 0 for one a core.
    level : str
        Isolation to try at most, as in `classroom.sandbox`.
    """

    lesson: int
    submissions: Path
    roster: Path
    out: Path
    secret: Path | None = None
    late: Path | None = None
    slip_days: Path | None = None
    canvas: Path | None = None
    canvas_column: str = ""
    moodle: Path | None = None
    moodle_column: str = "Grade"
    workers: int = 0
    level: str = "auto"


@dataclass
class _Item:
    """One submission on its way through a run."""

    key: str
    student: Student
    known: bool
    found: submissions.Found
    taken: submissions.Taken | None = None
    rejected: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """What a worker process is given."""

    tree: str
    lesson: int
    secret: bytes
    level: str
    row: str
    log: str
    fingerprint: Mapping[str, Any]
    submission: Mapping[str, Any]
    planned: Mapping[str, int]


# ------------------------------------------------------------------------------------------------ rows


def _seal(row: Mapping[str, Any], secret: bytes) -> str:
    text = json.dumps({k: v for k, v in row.items() if k != "seal"}, sort_keys=True)
    return hmac.new(secret, b"row:" + text.encode(), hashlib.sha256).hexdigest()


def _write_row(path: str | Path, row: dict[str, Any], secret: bytes) -> None:
    # Through JSON once, so that what is sealed is what will be read.
    row = json.loads(json.dumps(row, allow_nan=False))
    write_atomic(path, json.dumps(row | {"seal": _seal(row, secret)}, indent=1).encode())


def _read_row(path: Path, fingerprint: Mapping[str, Any], secret: bytes) -> dict[str, Any] | None:
    """The row of a submission; None if there is none of just this submission, lesson, secret and course."""
    try:
        row = json.loads(path.read_bytes())
        good = hmac.compare_digest(str(row["seal"]), _seal(row, secret)) and row["fingerprint"] == dict(fingerprint)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return row if good else None


def _check_report(report: Mapping[str, Any], planned: Mapping[str, int]) -> None:
    """Refuse a report that cannot be right: each planned exercise once, points in range, the total their sum."""
    ids = [e["id"] for e in report["exercises"]]
    if ids != list(planned):
        raise RunError(f"the report has the exercises {ids} instead of {list(planned)}")
    for e in report["exercises"]:
        if e["max_points"] != planned[e["id"]] or not 0 <= e["points"] <= e["max_points"]:
            raise RunError(f"the report gives exercise {e['id']} {e['points']} of {e['max_points']} points")
    if not math.isclose(report["total"], sum(e["points"] for e in report["exercises"]), abs_tol=1e-9):
        raise RunError("the total of the report is not the sum of its points")
    if report["max"] != sum(planned.values()):
        raise RunError("the maximum of the report is not the sum of its exercises'")


def _work(job: _Job, grade: Grade, scratch: str) -> None:
    """Body of a worker process: one submission. Whatever it prints goes to a log for the teacher."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is the parent's business; and the parent can end the whole group
    tempfile.tempdir = scratch
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    report = grade(Path(job.tree), job.lesson, job.secret, job.level)
    _check_report(report, job.planned)
    report["submission"] = dict(report.get("submission") or {}) | dict(job.submission)
    _write_row(job.row, {"fingerprint": dict(job.fingerprint), "report": report, "error": ""}, job.secret)


# ------------------------------------------------------------------------------------------------ the run


def course_hash(lesson: int, exercises: Sequence[Exercise]) -> str:
    """SHA-256 over what decides points: the grader, the lesson's exercises and the modules they are in."""
    files = {*ROOT.glob("classroom/*.py"), ROOT / f"classroom/exercises/lesson_{lesson:02d}.py"}
    files |= {ROOT / path_of(exercise.function) for exercise in exercises}
    digest = hashlib.sha256()
    for file in sorted(f for f in files if f.is_file()):
        digest.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def key_of(name: str) -> str:
    """A folder name for any student's id: safe on every file system, and another one for every other id."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,50}", name):
        return name
    plain = re.sub(r"[^a-z0-9_-]+", "-", same(name).encode("ascii", "ignore").decode())[:40].strip("-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{plain or 'student'}.{digest}"


def _gather(settings: Settings, roster: Roster, zone: Any) -> tuple[list[_Item], list[str]]:
    """Who sent which submission; of several of one student the latest, and what a person should know."""
    found, attention = submissions.find(settings.submissions)
    sent: dict[str, list[submissions.Found]] = {}
    items = []
    for one in found:
        student, reason = roster.who(one)
        if student is not None:
            sent.setdefault(student.id, []).append(one)
            continue
        name = clean_line(one.name, 80)
        attention.append(f"{name!r} is nobody's: {reason}. It is graded under its own name.")
        items.append(_Item("unknown." + key_of(one.name), Student(id=name), False, one))
    for student in roster.students:
        own = sent.get(student.id, [])
        if not own:
            attention.append(f"{clean_line(student.id, 80)} has no submission")
            continue
        own.sort(key=lambda one: (one.attempt, submissions.received(one, zone)[0], one.name))
        item = _Item(key_of(student.id), student, True, own[-1])
        if len(own) > 1:
            others = ", ".join(repr(clean_line(one.name, 80)) for one in own[:-1])
            note = f"the latest of {len(own)} submissions counts, {clean_line(own[-1].name, 80)!r}; not {others}"
            item.notes.append(note)
            attention.append(f"{clean_line(student.id, 80)}: {note}")
        items.append(item)
    return items, attention


def _known_files() -> set[str]:
    """Files of the course, which a submission may hold without a word."""
    rooms = ("kernels", "minigpt", "lessons", "classroom", "notebooks", "tests")
    files = {path.relative_to(ROOT).as_posix() for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()}
    names = (recorded.EXERCISES_FILE, recorded.ARRAYS_FILE)
    public = {f"{handout.PUBLIC}/lesson_{n:02d}/{name}" for n in assignment.lessons() for name in names}
    return files | public | {path.name for path in ROOT.iterdir()} | {manifest.MANIFEST}


def run(settings: Settings, exercises: Sequence[Exercise], grade: Grade = base.grade_submission) -> int:
    """Grade a class and write all its tables.

    Parameters
    ----------
    settings : Settings
    exercises : sequence of Exercise
        Of the lesson.
    grade : callable
        A function at the top of a module: each worker process imports it.

    Returns
    -------
    code : int
        0 if every submission has its marks or a reason for having none; 1 if the grader failed at one.

    Raises
    ------
    InputError
        If a file cannot be used.
    KeyboardInterrupt
        After the workers are gone. Rows that are done stay.
    """
    roster = Roster(read_roster(settings.roster))
    policy = late.read_policy(settings.late) if settings.late else None
    zone = (policy.deadline.tzinfo if policy else None) or UTC
    if settings.canvas and not settings.canvas_column:
        raise InputError("--canvas needs --canvas-column: the title of the assignment in the gradebook.")
    # A sheet that cannot be filled in is told before the class is graded, not after.
    if settings.canvas:
        canvas.column_of(Sheet.load(settings.canvas), settings.canvas_column)
    if settings.moodle:
        moodle.columns_of(Sheet.load(settings.moodle), settings.moodle_column)
    staff, planned = settings.out / "staff", {exercise.id: exercise.points for exercise in exercises}
    try:
        for folder in (settings.out, staff, staff / "rows", staff / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        staff.chmod(0o700)
    except OSError as error:
        raise InputError(f"{clean_line(settings.out)!r} cannot be written: {error.strerror}.") from None
    secret = read_secret(settings.secret or staff / "secret")

    items, attention = _gather(settings, roster, zone)
    if not items:
        raise InputError(f"There are no submissions in {clean_line(settings.submissions)!r}.")
    wanted, known = sorted({path_of(exercise.function) for exercise in exercises}), _known_files()
    course = course_hash(settings.lesson, exercises)
    jobs: dict[str, _Job] = {}
    for item in items:
        try:
            item.taken = submissions.take(item.found, wanted, staff / "submissions" / item.key, known)
        except submissions.Rejected as reason:
            item.rejected = str(reason)
            continue
        moment, _ = _received(item, zone)
        jobs[item.key] = _Job(
            tree=str(item.taken.tree),
            lesson=settings.lesson,
            secret=secret,
            level=settings.level,
            row=str(staff / "rows" / f"{item.key}.json"),
            log=str(staff / "logs" / f"{item.key}.txt"),
            fingerprint={
                "lesson": settings.lesson,
                "seed_id": seed_id(secret),
                "course": course,
                "sha256": item.taken.sha256,
                "student": item.student.id,
            },
            submission={
                "student": clean_line(item.student.id),
                "path": clean_line(item.found.name),
                "sha256": item.taken.sha256,
                "files": item.taken.files,
                "ignored": [*item.taken.notes, *(f"{name} is not read" for name in item.taken.ignored)],
                "received_at": _stamp(moment, zone),
                "late_seconds": 0,
            },
            planned=planned,
        )
    waiting = [key for key, job in jobs.items() if not _done(job)]
    graded = len(jobs) - len(waiting)
    print(f"{len(items)} submissions, {graded} graded before. Seed id {seed_id(secret)}.", flush=True)
    workers = settings.workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    limit = 120 + 10 * sum(exercise.seconds for exercise in exercises)
    modules = [f"classroom.exercises.lesson_{settings.lesson:02d}", *{e.function.split(":")[0] for e in exercises}]
    bar = tqdm(
        total=len(jobs), initial=graded, unit="submission", desc="grading", dynamic_ncols=True, smoothing=0.1
    )  # fmt: skip
    with bar, tempfile.TemporaryDirectory(prefix="minigpt-class-", ignore_cleanup_errors=True) as scratch:
        for _ in _each_done([jobs[key] for key in waiting], grade, workers, limit, modules, Path(scratch)):
            bar.update()
    return _write_all(settings, roster, policy, zone, items, jobs, planned, attention, secret)


def _received(item: _Item, zone: Any) -> tuple[datetime, str]:
    if item.known and item.student.received_at:
        return late.parse_time(item.student.received_at, zone), "class list"
    return submissions.received(item.found, zone)


def _stamp(moment: datetime, zone: Any) -> str:
    """A time as reports show it: to the second, in the time zone of the class."""
    return moment.astimezone(zone).isoformat(timespec="seconds")


def _done(job: _Job) -> bool:
    row = _read_row(Path(job.row), job.fingerprint, job.secret)
    return row is not None and not row["error"] and all(e["status"] != "error" for e in row["report"]["exercises"])


@contextmanager
def _one_thread() -> Iterator[None]:
    """A process started within uses one thread for its linear algebra: as many submissions run as there are cores."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _each_done(
    jobs: Sequence[_Job], grade: Grade, workers: int, limit: float, modules: Sequence[str], scratch: Path
) -> Iterator[_Job]:
    """Run the jobs, `workers` at a time, each in a process of its own; yield each as it ends, well or not.

    A worker that dies, or goes on for more than `limit` seconds, costs its own row: "grader error". Its temporary files
    lie in a folder of their own in `scratch`, which goes when the worker has gone, whatever it has died of.
    """
    if not jobs:
        return
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        # Imports take a second, grading less: they are done once, in the process that the workers are forked from.
        context.set_forkserver_preload([__name__, *modules])
    scratch.chmod(0o711)  # the sandbox may have another identity, and has to come through
    todo, running = list(reversed(jobs)), {}  # type: ignore[var-annotated]
    try:
        with _one_thread():
            while todo or running:
                while todo and len(running) < workers:
                    job = todo.pop()
                    place = Path(tempfile.mkdtemp(dir=scratch))
                    place.chmod(0o711)
                    process = context.Process(target=_work, args=(job, grade, str(place)))
                    process.start()
                    running[process.sentinel] = (process, job, time.monotonic() + limit, place)
                ended = connection.wait(list(running), timeout=1.0)
                for sentinel, (process, job, until, place) in list(running.items()):
                    if sentinel not in ended and time.monotonic() < until:
                        continue
                    reason = ""
                    if sentinel not in ended:
                        reason = f"took more than {limit:.0f} seconds"
                        _end(process)
                    process.join()
                    del running[sentinel]
                    shutil.rmtree(place, ignore_errors=True)
                    if process.exitcode != 0 or _read_row(Path(job.row), job.fingerprint, job.secret) is None:
                        _fail(job, reason or _cause(process.exitcode, Path(job.log)))
                    yield job
    finally:
        for process, *_ in running.values():
            _end(process)
            process.join()


def _end(process: Any) -> None:
    """Kill a worker and its group."""
    if hasattr(os, "killpg"):
        # It may not have made its group yet, or be gone.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _cause(code: int | None, log: Path) -> str:
    if code is not None and code < 0:
        return f"the worker was killed by signal {-code}"
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            lines = clean(file.read()).strip().splitlines()
    except OSError:
        lines = []
    return f"the worker ended with code {code}: {clean_line(lines[-1] if lines else 'nothing in its log', 300)}"


def _fail(job: _Job, reason: str) -> None:
    _write_row(job.row, {"fingerprint": dict(job.fingerprint), "report": None, "error": reason}, job.secret)


# ------------------------------------------------------------------------------------------------ what is written


def _write_all(
    settings: Settings,
    roster: Roster,
    policy: late.Policy | None,
    zone: Any,
    items: Sequence[_Item],
    jobs: Mapping[str, _Job],
    planned: Mapping[str, int],
    attention: list[str],
    secret: bytes,
) -> int:
    out = settings.out
    ledger_path = settings.slip_days or (settings.late.with_name("slip_days.csv") if settings.late else None)
    ledger = late.SlipDays(ledger_path if policy and policy.slip_days else None)
    used: dict[str, int] = {}
    rows: dict[str, Row] = {}
    strangers: list[Row] = []
    keys: dict[str, str] = {}
    from_files = 0
    for item in items:
        row, slip, notes = _row(item, jobs.get(item.key), policy, zone, ledger, settings.lesson)
        attention += [f"{clean_line(item.student.id, 80)}: {note}" for note in notes]
        from_files += policy is not None and row.state == "graded" and row.time_from == "file"
        if item.known:
            used[item.student.id] = slip
        keys[item.student.id] = item.key
        if item.known:
            rows[item.student.id] = row
        else:
            strangers.append(row)
    if from_files:
        attention.append(
            f"The times of {from_files} submissions are their files' and may be the download's or set by the student: "
            "give the LMS's in a column received_at of the class list."
        )
    listed = {same(student.id) for student in roster.students}
    for name in sorted(set(policy.extensions if policy else ()) - listed):
        attention.append(f"an extension is for {clean_line(name, 80)!r}, and nobody in the class list has this id")
    table = [rows.get(student.id) or Row(student, "missing") for student in roster.students] + strangers

    exports = out / "exports"
    for name in ("students", "exports/gradescope", "exports/github", "exports/junit"):
        (out / name).mkdir(parents=True, exist_ok=True)
    _withdraw(out)
    links = {}
    for row in table:
        if row.report is None or row.state != "graded":
            continue
        key = keys[row.student.id]
        links[row.student.id] = f"students/{quote(key)}/report.html"
        (out / "students" / key).mkdir(exist_ok=True)
        shown = _shown(row.report)
        _write(out / "students" / key / "report.txt", report_text(shown))
        _write(out / "students" / key / "report.html", report_html(shown))
        _write(exports / "gradescope" / f"{key}.json", json.dumps(gradescope(shown), indent=1, allow_nan=False))
        _write(exports / "github" / f"{key}.json", json.dumps(github(shown), indent=1, allow_nan=False))
        _write(exports / "junit" / f"{key}.xml", junit(shown))

    title = next((str(r.report["assignment"]) for r in table if r.report is not None), f"Lesson {settings.lesson}")
    due = policy.deadline.isoformat() if policy else ""
    _write(out / "class.csv", class_csv(table, list(planned)))
    _write(exports / "nbgrader.csv", nbgrader(table, f"lesson-{settings.lesson:02d}", due))
    if settings.canvas:
        sheet = Sheet.load(settings.canvas)
        attention += canvas.fill_canvas(sheet, settings.canvas_column, table)
        write_atomic(exports / "canvas.csv", sheet.bytes())
    if settings.moodle:
        sheet = Sheet.load(settings.moodle)
        attention += moodle.fill_moodle(sheet, table, settings.moodle_column)
        write_atomic(exports / "moodle.csv", sheet.bytes())
    if policy and policy.slip_days and ledger_path is not None:
        _write(ledger_path, ledger.text(settings.lesson, used))

    reports = [row.report for row in table if row.state == "graded" and row.report is not None]
    figures = statistics.statistics(reports)
    image = b""
    if figures:
        _write(out / "statistics.csv", statistics.statistics_csv(figures))
        statistics.picture(figures, f"{title}: who has which exercise right", out / "pass_rate.png")
        image = (out / "pass_rate.png").read_bytes()
    levels = sorted({clean_line(_level(report), 300) for report in reports})
    about = [("seed id", seed_id(secret)), ("isolation", "; ".join(levels)), ("late policy", due or "none")]
    _write(out / "class.html", class_html(title, table, figures, about, attention, image, links))
    _write(out / "attention.txt", "".join(f"{clean_line(line, 500)}\n" for line in attention))

    failed = sum(row.state == "error" for row in table)
    counts = ", ".join(f"{sum(r.state == s for r in table)} {name}" for s, name in STATES.items())
    print(f"{counts}.", *(f"Isolation {level}." for level in levels))
    for line in attention[:15]:
        print(f"  - {clean_line(line, 300)}")
    if len(attention) > 15:
        print(f"  - … and {len(attention) - 15} more in {clean_line(out / 'attention.txt')}")
    print(f"Read {clean_line(out / 'class.html')}; reports for students are in {clean_line(out / 'students')}.")
    if failed:
        print(f"The grader failed at {failed}: see staff/logs; the same command tries them again.", file=sys.stderr)
    return 1 if failed else 0


def _row(
    item: _Item, job: _Job | None, policy: late.Policy | None, zone: Any, ledger: late.SlipDays, lesson: int
) -> tuple[Row, int, list[str]]:
    """The row of one submission, the slip days it uses, and what a person should know."""
    moment, time_from = _received(item, zone)
    notes, told = list(item.notes), []
    facts: dict[str, Any] = {"known": item.known, "received_at": _stamp(moment, zone), "time_from": time_from}
    if job is None:
        told.append(f"submission rejected: {item.rejected}")
        return Row(item.student, "rejected", notes=(*notes, item.rejected), **facts), 0, told
    assert item.taken is not None
    notes += item.taken.notes
    row = _read_row(Path(job.row), job.fingerprint, job.secret)
    error = "its row is missing" if row is None else row["error"]
    report = None if row is None or error else row["report"]
    if report is not None:
        broken = [e["id"] for e in report["exercises"] if e["status"] == "error"]
        error = f"in exercise {', '.join(broken)}" if broken else ""
        told += [f"exercise {e['id']} is suspicious" for e in report["exercises"] if e["status"] == "suspicious"]
        report["submission"]["received_at"] = _stamp(moment, zone)
    if error or report is None:
        told.append(f"grader error: {error}")
        return Row(item.student, "error", report, notes=(*notes, f"grader error: {error}"), **facts), 0, told
    cost = late.Late()
    if policy is not None:
        worth = item.known and report["total"] > 0  # slip days of nobody, or for 0 points, are none
        left = ledger.left(item.student.id, lesson, policy.slip_days) if worth else 0
        cost = late.lateness(policy, item.student.id, moment, left)
        apply(report, cost)
        if item.found.column == "canvas_id" and item.found.marked_late != (cost.seconds > 0):
            says = "late" if item.found.marked_late else "in time"
            told.append(f"Canvas says {says}, the time {_stamp(moment, zone)} ({time_from}) does not")
    return Row(item.student, "graded", report, notes=tuple(notes), **facts), cost.slip_days, told


def apply(report: dict[str, Any], cost: late.Late) -> None:
    """Enter lateness into a report: its seconds, the penalty in points, and the total after it."""
    report["submission"]["late_seconds"] = int(cost.seconds)
    if cost.reason:
        lost = round(report["total"] * cost.percent / 100 + 1e-9, 2)
        report["penalties"] = [*report["penalties"], {"reason": cost.reason, "points": lost}]
        report["total"] = round(report["total"] - lost, 2)


def _shown(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report without what is for the teacher only."""
    exercises = [{k: v for k, v in e.items() if k != "detail"} for e in report["exercises"]]
    return {k: v for k, v in report.items() if k != "printed"} | {"exercises": exercises}


def _level(report: Mapping[str, Any]) -> str:
    isolation = report.get("isolation") or {}
    held = ", ".join(map(str, isolation.get("enforced") or [])) or "nothing"
    return f"{isolation.get('level', 'unknown')} ({held})"


def _withdraw(out: Path) -> None:
    """Take away what an earlier run has written for submissions and systems that this one may not know any more."""
    for pattern in ("students/*/report.txt", "students/*/report.html", "exports/*/*.json", "exports/*/*.xml"):
        for path in out.glob(pattern):
            path.unlink()
    for folder in (out / "students").glob("*/"):
        with suppress(OSError):  # a teacher has put something there, which stays
            folder.rmdir()
    for name in ("exports/canvas.csv", "exports/moodle.csv", "statistics.csv", "pass_rate.png"):
        (out / name).unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    write_atomic(path, text.encode("utf-8"))


# ------------------------------------------------------------------------------------------------ command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``python -m classroom grade-all``."""
    add = parser.add_argument
    add("--lesson", type=int, required=True, metavar="N")
    add("--submissions", type=Path, required=True, metavar="DIR", help="folders, zips or Python files")
    add("--roster", type=Path, required=True, metavar="CSV", help="class list, or an LMS's export")
    add("--out", type=Path, required=True, metavar="DIR", help="made if absent; the same one goes on where it stopped")
    add("--secret", type=Path, metavar="FILE", help="made if absent; default: staff/secret in --out")
    add("--late", type=Path, metavar="JSON", help="late policy")
    add("--slip-days", type=Path, metavar="CSV", help="slip days used; default: slip_days.csv beside the late policy")
    add("--canvas", type=Path, metavar="CSV", help="gradebook exported from Canvas, to be filled in")
    add("--canvas-column", default="", metavar="TITLE", help="title of the assignment in it")
    add("--moodle", type=Path, metavar="CSV", help="grading worksheet from Moodle, to be filled in")
    add("--moodle-column", default="Grade", metavar="NAME", help="header of the marks in it; default: %(default)s")
    add("--workers", type=int, default=0, metavar="N", help="submissions at a time; default: one a core")
    add("--level", default="auto", help="isolation to try at most: auto, process, landlock or namespaces")


def grade_all(arguments: argparse.Namespace) -> int:
    """``python -m classroom grade-all``; returns the exit code."""
    names = Settings.__dataclass_fields__
    settings = Settings(**{name: value for name, value in vars(arguments).items() if name in names})
    if settings.workers < 0:
        raise InputError(f"--workers is {settings.workers}; it must be 1 or more, or 0 for one a core.")
    exercises = assignment.load(settings.lesson)
    sandbox.offered(settings.level).for_class()
    grade = functools.partial(base.grade_submission, course=base.files(settings.lesson))
    try:
        return run(settings, exercises, grade)
    except KeyboardInterrupt:
        print("\nFinished rows are kept: the same command goes on from here.", file=sys.stderr)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade a class as ``make grade-all`` does; returns the exit code."""
    parser = argparse.ArgumentParser(prog="grade-all", description="Grade a class.")
    add_arguments(parser)
    try:
        return grade_all(parser.parse_args(arguments))
    except (InputError, RunError) as error:
        print(f"grade-all: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
