"""Acceptance cases 41–43 and 45–49: hostile submissions and whole classes, through the grader as a teacher runs it.

What these cases ask of single parts is in test_submissions, test_reports, test_late and test_class_run; here a class of
all of them goes through the real grader at once, by the command that a teacher gives.
"""

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from classroom import assignment, base
from classroom.class_run import ROOT
from classroom.reports import sheet
from classroom.source import path_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a class is graded on Linux"),
]
ATTACKS = Path(__file__).with_name("attacks")
LESSON = 2
FILES = sorted({path_of(exercise.function) for exercise in assignment.load(LESSON)})
MOST = sum(exercise.points for exercise in assignment.load(LESSON))
NAMES = {
    "right": '=HYPERLINK("http://x","y")',
    "stub": 'a, "b"\nc',
    "crlf": "Zoë 漢字",
    "latin": "-1+2",
    "evil": "<script>alert(1)</script>",
    "writer": "Writer",
    "nobody": "@x",
    "linked": "'=quoted",
    "bomb": "ＡＢ",
}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def table(path: Path) -> dict[str, dict[str, str]]:
    header, *rows = sheet.read(path)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """One class, graded; then graded again by another run with the same secret."""
    place = tmp_path_factory.mktemp("class")
    sent = place / "sent"
    right = {name: (ROOT / name).read_bytes() for name in FILES}
    stub = base.files(LESSON)
    put(sent / "right", right)
    put(sent / "stub", {name: stub[name] for name in FILES})
    put(sent / "crlf", {name: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") for name, data in right.items()})
    put(sent / "latin", {name: b"# caf\xe9\n" + data for name, data in right.items()})
    message = "\\x00\\x1b[31m\\u202e\\ud800<script>alert(1)</script>]]>&\\uffff"
    put(sent / "evil", {name: f"raise ValueError('{message}')\n".encode() for name in FILES})
    put(sent / "evil", {"\x1b[31m<b>.py": b"", "conftest.py": b""})
    writes = (ATTACKS / "late_writer.py").read_bytes() + b"\nattack()\n"
    put(sent / "writer", {name: data + b"\n\n" + writes for name, data in right.items()})
    put(sent / "linked", right)
    (sent / "linked" / FILES[0]).unlink()
    (sent / "linked" / FILES[0]).symlink_to(ROOT / FILES[0])
    with (
        zipfile.ZipFile(sent / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros.bin", "w") as file,
    ):
        for _ in range(250):
            file.write(bytes(1_000_000))
    with zipfile.ZipFile(sent / "stranger.zip", "w") as archive:
        for name, data in right.items():
            archive.writestr(f"work/{name}", data)
    with (place / "class.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "received_at"])
        writer.writerows([key, name, "2026-10-25 12:00"] for key, name in NAMES.items())
    late = {"deadline": "2026-10-24 12:00", "timezone": "Europe/Berlin", "percent": 10}
    late["extensions"] = {"crlf": "2026-10-25 12:00"}
    (place / "late.json").write_text(json.dumps(late))
    runs = []
    for out in ("out", "again"):
        command = [sys.executable, "-m", "classroom", "grade-all", "--lesson", str(LESSON), "--submissions", str(sent)]
        command += ["--roster", str(place / "class.csv"), "--out", str(place / out), "--late", str(place / "late.json")]
        command += ["--secret", str(place / "secret")]
        runs.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False))
    assert runs[0].returncode == runs[1].returncode == 0, runs[0].stderr + runs[1].stderr
    return place, runs


def test_41_hostile_archives_are_rejected_with_the_reason(graded):
    place, _ = graded
    rows = table(place / "out/class.csv")
    assert rows["linked"]["state"] == rows["bomb"]["state"] == "submission rejected"
    assert "symbolic link" in rows["linked"]["notes"]
    assert "unpacks to 250 MB; 200 MB are allowed" in rows["bomb"]["notes"]
    assert rows["linked"]["total"] == rows["bomb"]["total"] == ""


def test_35_reports_written_by_a_submission_change_nothing(graded):
    place, _ = graded
    rows = table(place / "out/class.csv")
    assert {rows[key]["state"] for key in ("right", "writer")} == {"graded"}
    assert float(rows["right"]["total"]) == round(MOST * 0.9, 2)
    forged = [path for path in (place / "out").rglob("*.json") if '"total": 100' in path.read_text("utf-8")]
    assert forged == []


def test_42_hash_of_the_graded_copy(graded):
    place, _ = graded
    rows = table(place / "out/class.csv")
    copy = place / "out/staff/submissions/right"
    assert {p.relative_to(copy).as_posix() for p in copy.rglob("*.py")} == set(FILES)
    assert rows["right"]["sha256"] in (place / "out/students/right/report.txt").read_text("utf-8")
    assert len({rows[key]["sha256"] for key in ("right", "stub", "crlf", "latin", "evil")}) == 5


def test_43_encodings(graded):
    place, _ = graded
    rows = table(place / "out/class.csv")
    assert float(rows["crlf"]["total"]) == MOST
    # A stray byte in a comment is no obstacle to Python; it is named all the same.
    assert float(rows["latin"]["total"]) == round(MOST * 0.9, 2)
    assert "not UTF-8" in rows["latin"]["notes"] or "byte 0xe9" in rows["latin"]["notes"]
    report = (place / "out/students/latin/report.txt").read_text("utf-8")
    assert "save" in report
    assert "UTF-8" in report


def test_44_every_report_of_hostile_text_parses(graded):
    place, _ = graded
    for path in (place / "out").rglob("*"):
        if path.suffix in (".txt", ".html", ".csv", ".xml", ".json") and "logs" not in path.parts:
            text = path.read_text("utf-8")
            assert not set(text) & {"\x00", "\x1b", "\u202e", "\uffff"}, path
            assert "<script>" not in text or path.suffix in (".txt", ".csv", ".json"), path
    for path in (place / "out/exports/junit").iterdir():
        ET.parse(path)


def test_45_names_round_trip(graded):
    place, _ = graded
    rows = table(place / "out/class.csv")
    assert {key: rows[key]["name"] for key in NAMES} == NAMES
    for name in ("class.csv", "exports/nbgrader.csv", "statistics.csv"):
        with (place / "out" / name).open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [
            cell for cell in cells if cell.startswith(("=", "+", "@")) or (cell[:1] == "-" and cell[1:2].isalpha())
        ]


def test_46_a_killed_worker_costs_one_row(graded, tmp_path):
    """The next run grades only what has no row; how a killed worker gets to have none is in test_class_run."""
    place, _ = graded
    rows = place / "out/staff/rows"
    before = {path.name: path.read_bytes() for path in rows.iterdir()}
    (rows / "right.json").write_text(json.dumps({"error": "killed"}))
    os.utime(rows / "stub.json", (1e9, 1e9))
    command = [sys.executable, "-m", "classroom", "grade-all", "--lesson", str(LESSON), "--submissions"]
    command += [str(place / "sent"), "--roster", str(place / "class.csv"), "--out", str(place / "out")]
    command += ["--secret", str(place / "secret"), "--late", str(place / "late.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (rows / "stub.json").stat().st_mtime == 1e9  # not written again
    assert json.loads((rows / "right.json").read_bytes())["report"]["total"] == MOST
    assert set(before) == {path.name for path in rows.iterdir()}


def test_47_the_same_secret_gives_the_same_bytes(graded):
    place, runs = graded
    for name in ("class.csv", "statistics.csv", "exports/nbgrader.csv"):
        assert (place / "out" / name).read_bytes() == (place / "again" / name).read_bytes()
    assert runs[0].stdout.replace("/out/", "/again/") == runs[1].stdout.replace("/out/", "/again/")


def test_48_nobody_is_dropped(graded):
    place, runs = graded
    rows = table(place / "out/class.csv")
    assert list(rows) == [*NAMES, "stranger.zip"]
    assert rows["nobody"]["state"] == "no submission"
    assert rows["stranger.zip"]["state"] == "graded, not in the class list"
    assert float(rows["stranger.zip"]["1.01" if LESSON == 1 else f"{LESSON}.01"]) > 0
    for piece in ("nobody has no submission", "'stranger.zip' is nobody's"):
        assert piece in runs[0].stdout


def test_49_lateness_over_the_end_of_summer_time(graded):
    place, _ = graded
    rows = table(place / "out/class.csv")
    # 25 hours by a stopwatch, one day by the clocks of Berlin.
    assert (rows["right"]["late_seconds"], float(rows["right"]["total"])) == ("90000", round(MOST * 0.9, 2))
    assert (rows["crlf"]["late_seconds"], float(rows["crlf"]["total"])) == ("0", MOST)
