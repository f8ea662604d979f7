"""A class: everybody has a row, an interruption costs nothing, and nobody's fault is anybody else's."""

import csv
import hmac
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from classroom import class_run
from classroom.class_run import Settings, key_of, run
from classroom.secret import read_secret, seed_id
from minigpt.errors import InputError
from tests.classroom.fake_grader import EXERCISES, grade

ROOT = Path(class_run.__file__).resolve().parent.parent
DUE = {"deadline": "2026-10-02 23:59", "timezone": "Europe/Berlin", "percent": 10, "slip_days": 1}


class Class:
    """A folder with submissions, a class list and a place for the results."""

    def __init__(self, place: Path) -> None:
        self.place, self.log = place, place / "graded.txt"
        (place / "sent").mkdir()
        self.names: list[str] = []

    def sends(self, name: str, wish: str = "", folder: str = "") -> Path:
        path = self.place / "sent" / (folder or name) / "kernels/gelu.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {wish}\n# by {name}\n")
        os.utime(path, (1.79e9, 1.79e9))
        if name not in self.names:
            self.names.append(name)
        return path

    def roster(self, *more: str) -> Path:
        path = self.place / "class.csv"
        lines = ["id,name,received_at", *(f"{n},Student {n}," for n in self.names), *more]
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path

    def settings(self, **more) -> Settings:
        roster = more.pop("roster", None) or self.roster()
        out = more.pop("out", self.place / "out")
        return Settings(7, self.place / "sent", roster, out, **({"workers": 2} | more))

    def grade(self, **more) -> int:
        return run(self.settings(**more), EXERCISES, grade)

    def graded(self) -> list[str]:
        """Names of what the grader has seen since the last time."""
        names = sorted(self.log.read_text().split()) if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return names

    def table(self, out: str = "out") -> dict[str, dict[str, str]]:
        with (self.place / out / "class.csv").open(newline="", encoding="utf-8") as file:
            return {line["student"]: line for line in csv.DictReader(file)}

    def attention(self) -> str:
        return (self.place / "out/attention.txt").read_text("utf-8")


@pytest.fixture
def class_(tmp_path, monkeypatch):
    # Drawing costs more than all the rest: it is done where the picture is looked at.
    monkeypatch.setattr(class_run.statistics, "picture", lambda figures, title, path: path.write_bytes(b"a picture"))
    return Class(tmp_path)


def test_everybody_has_a_row(tmp_path):
    class_ = Class(tmp_path)
    for name in ("ada", "alan", "grace"):
        class_.sends(name)
    class_.names.append("zoë")
    assert class_.grade() == 0
    table = class_.table()
    assert list(table) == ["ada", "alan", "grace", "zoë"]
    assert [line["state"] for line in table.values()] == ["graded"] * 3 + ["no submission"]
    assert table["zoë"]["total"] == ""
    assert class_.graded() == ["ada", "alan", "grace"]
    out = class_.place / "out"
    for path in ("class.html", "statistics.csv", "pass_rate.png", "exports/nbgrader.csv", "students/ada/report.html"):
        assert (out / path).stat().st_size > 0
    assert (out / "pass_rate.png").read_bytes().startswith(b"\x89PNG")
    for path in (
        "students/ada/report.txt",
        "exports/junit/ada.xml",
        "exports/gradescope/ada.json",
        "exports/github/ada.json",
    ):
        assert "SECRET-DETAIL" not in (out / path).read_text("utf-8")
    assert not (out / "students/zo").exists()
    assert json.loads((out / "exports/gradescope/ada.json").read_text())["score"] == float(table["ada"]["total"])


def test_secret_is_private_and_nowhere_else(class_):
    class_.sends("ada")
    class_.grade()
    path = class_.place / "out/staff/secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    secret = path.read_text().strip()
    assert len(secret) == 64
    for file in (class_.place / "out").rglob("*"):
        if file.is_file() and file != path:
            assert secret.encode() not in file.read_bytes()
            assert bytes.fromhex(secret) not in file.read_bytes()
    assert seed_id(bytes.fromhex(secret)) in (class_.place / "out/class.html").read_text()
    assert seed_id(bytes.fromhex(secret)) not in (class_.place / "out/students/ada/report.txt").read_text()


def test_secret_file(tmp_path):
    first = read_secret(tmp_path / "deep/secret")
    assert read_secret(tmp_path / "deep/secret") == first
    assert read_secret(tmp_path / "other") != first
    for bad in ("", "xyz", "ab12"):
        (tmp_path / "bad").write_text(bad)
        with pytest.raises(InputError, match="no secret"):
            read_secret(tmp_path / "bad")


def test_same_secret_gives_the_same_bytes_and_another_one_others(class_, tmp_path):
    """Acceptance case 47."""
    for n in range(6):
        class_.sends(f"s{n}")
    (tmp_path / "mine").write_text("ab" * 32)
    (tmp_path / "other").write_text("cd" * 32)
    class_.grade(secret=tmp_path / "mine")
    class_.grade(secret=tmp_path / "mine", out=tmp_path / "again", workers=1)
    class_.grade(secret=tmp_path / "other", out=tmp_path / "third")
    first, again, third = ((tmp_path / out / "class.csv").read_bytes() for out in ("out", "again", "third"))
    assert first == again
    assert first != third


def test_a_rerun_grades_only_what_is_new_or_changed(class_):
    for name in ("ada", "alan", "grace"):
        class_.sends(name)
    class_.grade()
    before = class_.table()
    class_.graded()
    assert class_.grade() == 0
    assert class_.graded() == []
    assert class_.table() == before
    class_.sends("alan", "other words")
    class_.sends("zoë")
    assert class_.grade() == 0
    assert class_.graded() == sorted(["alan", key_of("zoë")])
    assert class_.table()["ada"] == before["ada"]
    assert class_.table()["alan"]["sha256"] != before["alan"]["sha256"]


def test_another_secret_or_course_grades_all_again(class_, monkeypatch, tmp_path):
    class_.sends("ada")
    class_.grade()
    class_.graded()
    (tmp_path / "mine").write_text("ab" * 32)
    class_.grade(secret=tmp_path / "mine")
    assert class_.graded() == ["ada"]
    monkeypatch.setattr(class_run, "course_hash", lambda lesson, exercises: "another")
    class_.grade(secret=tmp_path / "mine")
    assert class_.graded() == ["ada"]


@pytest.mark.parametrize("forged", ["total", "whole", "seal"])
def test_a_row_that_was_edited_is_graded_again(class_, forged):
    class_.sends("ada")
    class_.grade()
    before = class_.table()
    class_.graded()
    path = class_.place / "out/staff/rows/ada.json"
    row = json.loads(path.read_text())
    if forged == "total":
        row["report"]["exercises"][1]["points"] = 4
        row["report"]["total"] = 6
    elif forged == "whole":
        row = {"report": row["report"]}
    else:
        row["seal"] = hmac.new(b"guess", b"row", "sha256").hexdigest()
    path.write_text(json.dumps(row))
    class_.grade()
    assert class_.graded() == ["ada"]
    assert class_.table() == before


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ("kill the worker", "killed by signal 9"),
        ("raise", r"RuntimeError: the reference \x1b[31m failed"),
        ("exit", "ended with code 0"),
        ("forge", "gives exercise 7.01 99 of 2 points"),
        ("drop", "has the exercises ['7.01']"),
        ("half an error", "in exercise 7.02"),
    ],
)
def test_a_fault_costs_one_row_and_no_points(class_, wish, reason, capsys):
    """Acceptance case 46."""
    class_.sends("ada")
    class_.sends("bad", wish)
    class_.sends("grace")
    assert class_.grade() == 1
    table = class_.table()
    assert [line["state"] for line in table.values()] == ["graded", "grader error", "graded"]
    assert table["bad"]["total"] == ""
    assert reason in table["bad"]["notes"]
    assert reason in class_.attention()
    assert "grader failed at 1" in capsys.readouterr().err
    assert not (class_.place / "out/students/bad").exists()
    class_.graded()
    assert class_.grade() == 1
    assert class_.graded() == ["bad"]


def test_a_suspicious_row_is_told_and_the_class_goes_on(class_):
    """Acceptance case 30."""
    class_.sends("ada")
    class_.sends("bad", "suspicious")
    class_.sends("grace")
    assert class_.grade() == 0
    table = class_.table()
    assert [line["state"] for line in table.values()] == ["graded", "graded", "graded"]
    assert (table["bad"]["total"], table["bad"]["7.02"]) == ("2", "0")
    assert "exercise 7.02 is suspicious" in class_.attention()
    assert "A person has to look at this" in (class_.place / "out/students/bad/report.txt").read_text("utf-8")


def test_a_fault_that_passes_is_mended_by_the_next_run(class_):
    class_.sends("ada")
    class_.sends("bad", "kill the worker once")
    assert class_.grade() == 1
    class_.graded()
    assert class_.grade() == 0
    assert class_.graded() == ["bad"]
    assert class_.table()["bad"]["state"] == "graded"


def test_a_worker_that_goes_on_for_ever(class_, monkeypatch):
    class_.sends("ada")
    class_.sends("bad", "sleep")
    each = class_run._each_done
    monkeypatch.setattr(
        class_run, "_each_done", lambda jobs, grade, workers, _, *rest: each(jobs, grade, workers, 3, *rest)
    )
    assert class_.grade() == 1
    assert "took more than 3 seconds" in class_.table()["bad"]["notes"]
    assert class_.table()["ada"]["state"] == "graded"


def test_interrupted_half_way_and_resumed(class_, tmp_path):
    """Ctrl-C: the rows so far stay, no process is left, and the next run does the rest, each once."""
    for n in range(12):
        class_.sends(f"s{n:02d}", "short sleep")
    settings = class_.settings()
    code = (
        "import sys; from pathlib import Path; from classroom.class_run import Settings, run\n"
        "from tests.classroom.fake_grader import EXERCISES, grade\n"
        f"sent, roster, out = map(Path, {[str(p) for p in (settings.submissions, settings.roster, settings.out)]})\n"
        "run(Settings(7, sent, roster, out, workers=2), EXERCISES, grade)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    rows = settings.out / "staff/rows"
    until = time.monotonic() + 120
    while time.monotonic() < until and (not rows.exists() or len(list(rows.glob("*.json"))) < 3):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the foreground
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in errors
    done = {path.stem for path in rows.glob("*.json")}
    assert 3 <= len(done) < 12
    assert all("report" in json.loads(path.read_text()) for path in rows.glob("*.json"))
    class_.graded()
    assert class_.grade() == 0
    assert set(class_.graded()) == {f"s{n:02d}" for n in range(12)} - done
    assert len(class_.table()) == 12


def test_duplicate_unknown_and_missing_students_are_listed(class_):
    """Acceptance case 48."""
    class_.sends("ada")
    old = class_.sends("ada", "old", folder="ada@x.org")
    os.utime(old, (1.7e9, 1.7e9))
    class_.sends("nobody")
    (class_.place / "sent/essay.docx").write_bytes(b"x")
    roster = class_.place / "list.csv"
    roster.write_text("id,email\nada,ada@x.org\nalan,alan@x.org\n")
    assert class_.grade(roster=roster) == 0
    table = class_.table()
    assert list(table) == ["ada", "alan", "nobody"]
    assert table["nobody"]["state"] == "graded, not in the class list"
    assert table["nobody"]["total"] != ""
    assert table["alan"]["state"] == "no submission"
    assert "the latest of 2 submissions counts, 'ada'; not 'ada@x.org'" in table["ada"]["notes"]
    text = class_.attention()
    for piece in ("'nobody' is nobody's", "alan has no submission", "latest of 2", "essay.docx"):
        assert piece in text
    assert sorted(class_.graded()) == ["ada", "unknown.nobody"]


def test_rejected_submissions_have_no_marks(class_):
    class_.sends("ada")
    path = class_.sends("bad")
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert class_.grade() == 0
    table = class_.table()
    assert table["bad"]["state"] == "submission rejected"
    assert "symbolic link" in table["bad"]["notes"]
    assert table["bad"]["total"] == ""
    assert class_.graded() == ["ada"]


def test_nothing_handed_in_keeps_the_marks_that_were_there(class_):
    """A folder without a graded file has no marks; a zero would be the teacher's decision."""
    class_.sends("ada").unlink()
    (class_.place / "sent/ada/essay.txt").write_text("see attachment")
    gradebook = class_.place / "gradebook.csv"
    gradebook.write_bytes(b"Student,ID,SIS Login ID,Section,Lesson 7 (3)\r\nStudent ada,9,ada,One,5\r\n")
    assert class_.grade(canvas=gradebook, canvas_column="Lesson 7") == 0
    assert class_.table()["ada"]["state"] == "submission rejected"
    assert (class_.place / "out/exports/canvas.csv").read_bytes() == gradebook.read_bytes()


def test_what_an_earlier_run_has_written_goes(class_):
    class_.sends("ada")
    class_.sends("grace")
    gradebook = class_.place / "gradebook.csv"
    gradebook.write_bytes(b"Student,ID,SIS Login ID,Section,Lesson 7 (3)\r\nStudent ada,9,ada,One,\r\n")
    class_.grade(canvas=gradebook, canvas_column="Lesson 7")
    out = class_.place / "out"
    (out / "students/grace/talk.txt").write_text("a teacher's own")
    for name in ("ada", "grace"):
        (class_.place / f"sent/{name}/kernels/gelu.py").unlink()
    assert class_.grade() == 0
    assert sorted(p.relative_to(out / "students").as_posix() for p in (out / "students").rglob("*")) == [
        "grace", "grace/talk.txt"
    ]  # fmt: skip
    assert sorted(p.name for p in (out / "exports").rglob("*.*")) == ["nbgrader.csv"]
    assert not (out / "statistics.csv").exists()


def test_an_extension_for_nobody_is_told(class_):
    class_.sends("ada")
    extensions = {"Ada ": "2026-10-05 23:59", "adda": "2026-10-06 23:59"}
    (class_.place / "late.json").write_text(json.dumps(DUE | {"extensions": extensions}))
    class_.grade(late=class_.place / "late.json")
    assert "an extension is for 'adda', and nobody in the class list has this id" in class_.attention()
    assert "'ada'" not in class_.attention()


def test_slip_days_are_kept_where_they_help_nobody(class_):
    """Who is not in the class list has none; and 0 points cannot become more."""
    class_.sends("stranger")
    class_.names.clear()
    class_.sends("ada")
    class_.sends("grace", "nothing right")
    (class_.place / "late.json").write_text(json.dumps(DUE | {"deadline": "2026-09-20 23:59"}))
    class_.grade(late=class_.place / "late.json")
    assert (class_.place / "slip_days.csv").read_text().splitlines()[1:] == ["ada,7,1"]
    reports = {path.parent.name: path.read_text() for path in (class_.place / "out/students").glob("*/report.txt")}
    assert len(reports) == 3
    assert [name for name, text in reports.items() if "1 slip day used" in text] == ["ada"]


def test_no_worker_leaves_files_behind(class_, tmp_path, monkeypatch):
    """Not one that is killed either: what it was given to import holds solutions."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(class_run.tempfile, "tempdir", str(temporary))
    class_.sends("ada", "leave a file")
    class_.sends("bad", "leave a file and die")
    assert class_.grade() == 1
    assert [line["state"] for line in class_.table().values()] == ["graded", "grader error"]
    assert (class_.place / "left.txt").read_text().splitlines() == [str(temporary)] * 2
    assert list(temporary.iterdir()) == []


def test_what_is_graded_is_what_was_taken_in(class_):
    """Acceptance case 42: the hash in the report is that of the graded copy."""
    path = class_.sends("ada")
    class_.grade()
    before = class_.table()["ada"]["sha256"]
    path.write_text("# something else\n")
    copy = class_.place / "out/staff/submissions/ada/kernels/gelu.py"
    assert copy.read_text() == "# \n# by ada\n"
    row = json.loads((class_.place / "out/staff/rows/ada.json").read_text())
    assert row["report"]["submission"]["sha256"] == before
    class_.grade()
    assert class_.table()["ada"]["sha256"] != before


def test_lateness_is_worked_out_again_without_grading(class_):
    for name in ("ada", "alan", "grace"):
        class_.sends(name)
    (class_.place / "late.json").write_text(json.dumps(DUE))
    received = {"ada": "2026-10-02T23:59:00+02:00", "alan": "2026-10-04 23:00", "grace": ""}
    path = class_.place / "list.csv"
    path.write_text("id,received_at\n" + "".join(f"{k},{v}\n" for k, v in received.items()))
    class_.grade(roster=path)
    plain = class_.table()
    class_.graded()
    assert class_.grade(roster=path, late=class_.place / "late.json") == 0
    assert class_.graded() == []
    table = class_.table()
    assert table["ada"]["total"] == plain["ada"]["total"]
    assert float(table["alan"]["penalty"]) == pytest.approx(0.1 * float(plain["alan"]["total"]), abs=0.006)
    assert float(table["alan"]["total"]) == pytest.approx(
        float(plain["alan"]["total"]) - float(table["alan"]["penalty"])
    )
    assert table["alan"]["time_from"] == "class list"
    assert table["grace"]["time_from"] == "file"
    assert "1 slip day used: 1 day at 10 %" in (class_.place / "out/students/alan/report.txt").read_text()
    assert (class_.place / "slip_days.csv").read_text().splitlines()[1:] == ["alan,7,1"]
    assert "The times of 1 submissions are their files'" in class_.attention()
    class_.grade(roster=path, late=class_.place / "late.json")
    assert class_.table() == table  # a slip day is not used twice by grading twice


def test_canvas_and_moodle_sheets(class_):
    class_.sends("ada")
    canvas, moodle = class_.place / "gradebook.csv", class_.place / "worksheet.csv"
    canvas.write_bytes(b"Student,ID,SIS Login ID,Section,Lesson 7 (3)\r\nStudent ada,9,ada,One,\r\n")
    moodle.write_bytes(b"Identifier,Full name,Grade,Last modified (grade)\nParticipant 4,Student ada,,-\n")
    before = canvas.read_bytes()
    class_.grade(canvas=canvas, canvas_column="Lesson 7", moodle=moodle)
    total = class_.table()["ada"]["total"].encode()
    exports = class_.place / "out/exports"
    assert (exports / "canvas.csv").read_bytes() == before.replace(b"One,\r\n", b"One," + total + b"\r\n")
    assert (exports / "moodle.csv").read_bytes() == moodle.read_bytes().replace(b"ada,,", b"ada," + total + b",")
    assert canvas.read_bytes() == before


def test_what_cannot_be_used_is_told_before_grading(class_):
    class_.sends("ada")
    gradebook = class_.place / "gradebook.csv"
    gradebook.write_bytes(b"Student,ID,SIS Login ID,Section,Lesson 7 (3)\r\nStudent ada,9,ada,One,\r\n")
    for more, message in (
        ({"canvas": class_.place / "none.csv"}, "canvas-column"),
        ({"canvas": class_.place / "none.csv", "canvas_column": "x"}, "none.csv"),
        ({"canvas": gradebook, "canvas_column": "Leson 7"}, "'Leson 7' is not one column"),
        ({"moodle": gradebook}, "needs one column 'Grade'"),
        ({"late": class_.place / "none.json"}, "none.json"),
        ({"roster": class_.place / "none.csv"}, "none.csv"),
        ({"out": class_.place / "class.csv"}, "cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            class_.grade(**more)
    assert class_.graded() == []
    (class_.place / "empty").mkdir()
    with pytest.raises(InputError, match="no submissions"):
        run(Settings(7, class_.place / "empty", class_.roster(), class_.place / "out"), EXERCISES, grade)


@pytest.mark.parametrize("name", ["ada", "Ada", "zoë", "../../x", "a/b", "", "CON", "x" * 300, "a.b", "\ud800"])
def test_keys_are_safe_file_names(name):
    key = key_of(name)
    assert key.isascii()
    assert 0 < len(key) < 80
    assert not set(key) & set('/\\:*?"<>| ')
    assert not key.startswith(".")
    assert key == key.lower()


def test_keys_tell_everybody_apart():
    names = ["ada", "Ada", "a-b", "a b", "a_b", "zoë", "zoe", "ze", "", "student"]
    assert len({key_of(name) for name in names}) == len(names)
