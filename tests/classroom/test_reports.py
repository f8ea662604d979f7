"""Reports for people and for other systems: what is in them, and that a student's text is only ever text."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.image import imread

from classroom.reports import sheet
from classroom.reports.canvas import fill_canvas
from classroom.reports.class_table import Row, class_csv, class_html
from classroom.reports.clean import clean, clean_line
from classroom.reports.github import github, github_output
from classroom.reports.gradescope import gradescope
from classroom.reports.html import report_html
from classroom.reports.junit import junit
from classroom.reports.moodle import fill_moodle
from classroom.reports.nbgrader import nbgrader
from classroom.reports.sheet import Sheet
from classroom.reports.statistics import mistake_rows, picture, statistics, statistics_csv
from classroom.reports.text import duration, points, printed_lines, report_text
from classroom.roster import Student
from minigpt.errors import InputError
from tests.classroom.reports_data import HOSTILE, exercise, hostile, report

# ---------------------------------------------------------------------------------------------- clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain αβγ 漢字 é\tx\n", "plain αβγ 漢字 é\tx\n"),
        ("a\r\nb\rc\x0bd\x85e\u2028f", "a\nb\nc\nd\ne\nf"),
        ("\x00\x07\x1b[2J\x7f\x9b", "\\x00\\x07\\x1b[2J\\x7f\\x9b"),
        ("\u202e\u2066\u200f\u200b\ufeff", "\\u202e\\u2066\\u200f\\u200b\\ufeff"),
        ("\ud800\udfff", "\\ud800\\udfff"),
        ("\uffff\ufdd0\U0001fffe\U0010ffff", "\\uffff\\ufdd0\\U0001fffe\\U0010ffff"),
        ("\U000e0041", "\\U000e0041"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        (12.5, "12.5"),
        ("👩\u200d🔬 नि\u200dक", "👩\u200d🔬 नि\u200dक"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected
    assert clean(clean(text)) == expected
    clean(text).encode("utf-8")


def test_clean_leaves_nothing_that_acts():
    every = "".join(map(chr, range(0x110000)))
    kept = clean(every, limit=10**8)
    kept.encode("utf-8")
    ET.fromstring(f"<x>{kept.replace('&', '&amp;').replace('<', '&lt;')}</x>")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", kept)


@pytest.mark.parametrize("text", ["x" * 1000, "\x00" * 1000, "é\n" * 500])
@pytest.mark.parametrize("limit", [10, 60, 200])
def test_clean_is_bounded_and_settles(text, limit):
    for function in (clean, clean_line):
        once = function(text, limit)
        assert len(once) <= limit
        assert function(once, limit) == once
    if limit > 50:
        assert "1000 characters" in clean(text, limit)


def test_clean_line():
    assert clean_line(" a\r\n\tb\n") == "a b"


# ---------------------------------------------------------------------------------------------- text and HTML


def test_points_and_duration():
    assert [points(x) for x in (2, 2.0, 1.5, 0.25, 0, 10, 100)] == ["2", "2", "1.5", "0.25", "0", "10", "100"]
    assert [duration(x) for x in (0, 61, 3600, 90_000, 86_400 * 3 + 59)] == [
        "0 s",
        "1 min 1 s",
        "1 h",
        "1 d 1 h",
        "3 d 59 s",
    ]


def test_text_report():
    shown = report(penalties=[{"reason": "1 d late", "points": 0.35}], total=3.15)
    shown["submission"]["late_seconds"] = 3700
    text = report_text(shown)
    lines = text.splitlines()
    for name, mark, score in (
        ("Exercise 1", "[+]", "2 / 2"),
        ("Exercise 2", "[~]", "1.5 / 3"),
        ("Exercise 3", "[ ]", "0 / 2"),
    ):
        (line,) = [line for line in lines if name in line and "/" in line]
        assert mark in line
        assert line.endswith(score)
    assert "3.15 of 8 points" in lines
    assert any(line.endswith("-0.35") and "1 d late" in line for line in lines)
    assert "y[0, 1] is 2.0 and should be 1.0." in text
    assert "1 of 2 cases are right; not these:" in text
    assert "- size-1" in text
    assert "- odd shapes" not in text
    assert "needs 7.03" in text
    assert "late         by 1 h 1 min" in lines
    assert "landlock: memory, TCP; not enforced here: UDP" in text
    assert "conftest.py" in text
    assert "SECRET-DETAIL" not in text
    assert max(map(len, lines)) <= 96


def test_what_is_next():
    def following(*states):
        exercises = [exercise(i, 2 * (s == "passed"), 2, s) for i, s in enumerate(states, 1)]
        text = report_text(report(exercises))
        match = re.search(r"^Next: (\S+)", text, re.MULTILINE)
        return match[1] if match else text

    assert following("passed", "not_implemented", "failed") == "7.02"
    assert following("failed", "not_implemented") == "7.01"
    assert following("skipped", "error", "timeout") == "7.03"
    assert "All exercises of this lesson are done." in following("passed", "passed")


def test_a_file_that_cannot_be_imported_comes_first():
    broken = report(not_imported=["kernels/linear.py"])
    assert "Next: mend what keeps this file from being imported\n      kernels/linear.py" in report_text(broken)
    assert "kernels/linear.py" in inert(report_html(broken)).text


def test_what_was_printed():
    assert printed_lines(report()) == printed_lines(report(printed=" \n")) == []
    head, *lines = printed_lines(report(printed="(2, 3)\n\x1b[31mred\n"))
    assert "one after the other" in head
    assert lines[0] == "  (2, 3)"
    assert "\x1b" not in lines[1]
    assert printed_lines(report(printed="x\n" * 50), 40)[-1] == "  … and 10 more lines"
    assert "aloud" not in report_text(report(printed="aloud")) + report_html(report(printed="aloud"))


def test_not_begun_is_no_error():
    text = report_text(report([exercise(1, 0, 2, "not_implemented"), exercise(2, 0, 2, "not_implemented")]))
    assert "not begun" in text
    assert not re.search("error|fail|wrong", text)


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def inert(text):
    """A whole page in which nothing runs and nothing is loaded."""
    page = Page(text)
    assert not {"script", "iframe", "object", "link", "form", "svg", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(a.startswith(("data:image/png;base64,", "students/")) for a in addresses)
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text
    return page


def test_html_report():
    page = inert(report_html(report(penalties=[{"reason": "1 d late", "points": 0.35}], total=3.15)))
    for piece in (
        "3.15",
        "partly right",
        "y[0, 1] is 2.0 and should be 1.0.",
        "not begun",
        "1 d late",
        "−0.35",
        "conftest.py",
    ):
        assert piece in page.text
    assert "SECRET-DETAIL" not in page.text


def test_pages_have_both_schemes():
    assert "prefers-color-scheme: dark" in report_html(report())


# ---------------------------------------------------------------------------------------------- hostile text


def test_hostile_text_is_inert_everywhere():
    """Acceptance case 44, for every form of a report."""
    spoilt = hostile()
    text = report_text(spoilt)
    text.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    page = inert(report_html(spoilt))
    assert "<script>alert(1)</script>" in page.text  # as text
    for made in (gradescope(spoilt), github(spoilt)):
        assert clean(json.loads(json.dumps(made))["tests"][0]["name"]) == made["tests"][0]["name"]
        json.dumps(made, ensure_ascii=False).encode("utf-8")
    tree = ET.fromstring(junit(spoilt).encode("utf-8"))
    assert "]]>" in tree.find(".//failure").text
    row = Row(Student(HOSTILE, HOSTILE, HOSTILE), "graded", spoilt, False, (HOSTILE,), HOSTILE)
    inert(
        class_html(HOSTILE, [row], statistics([spoilt]), [(HOSTILE, HOSTILE)], [HOSTILE], b"", {HOSTILE: "students/x"})
    )
    for table in (class_csv([row], ["7.01"]), nbgrader([row], HOSTILE), statistics_csv(statistics([spoilt]))):
        table.encode("utf-8")
        cells = [cell for line in csv.reader(io.StringIO(table, newline="")) for cell in line]
        assert not [cell for cell in cells if re.match(r"\s*[=+@＝]|-\D", cell)]


# ---------------------------------------------------------------------------------------------- CSV

NAMES = [
    '=HYPERLINK("http://x")',
    "+1",
    "-1+2",
    "@SUM(A1)",
    " =1",
    "＝1",
    "'quoted",
    "'=x",
    "''+x",
    'a,"b"',
    "two\nlines",
]
NAMES += ["x;y\tz", "Zoë 漢字", "", "-", "'"]


@pytest.mark.parametrize("name", NAMES)
def test_cells_round_trip(tmp_path, name):
    """Acceptance case 45."""
    text = sheet.write(["student", "points"], [[name, 1.5], ["next", -2]])
    (tmp_path / "x.csv").write_bytes(text.encode())
    assert sheet.read(tmp_path / "x.csv") == [["student", "points"], [name, "1.5"], ["next", "-2"]]
    _, (cell, _), _ = csv.reader(io.StringIO(text, newline=""))
    assert not re.match(r"\s*[=+\-@＝]", cell)
    if name and name[0].isalpha():
        assert cell == name


def test_protect_can_be_undone():
    for text in [a + b + c for a in ("", "'", "''", " ") for b in "=+-@\t＠" for c in ("", "x", "'")] + [
        "",
        "'",
        "x",
        "'x",
    ]:
        assert sheet.unprotect(sheet.protect(text)) == text


def test_numbers():
    values = [0.1 + 0.2, 12, 0, -0.0, 1.005, 100.0, 2.675]
    assert [sheet.number(x) for x in values] == ["0.3", "12", "0", "0", "1", "100", "2.67"]


@pytest.mark.parametrize(
    "text",
    [
        'a,b\r\n1,"x,""y\nz"\r\n',
        "\ufeffa;b\n1;2",
        "a,b\n\n1,\n",
        "",
        "a\n",
        'a,"b\nc",d\r\n,,\r\n',
        "a\tb\n1\t2",
        'a,"open',
        'x,"a"b,c\n',
    ],
)
def test_sheet_keeps_every_byte(text):
    made = Sheet(text)
    assert made.bytes() == text.encode()
    body = text.removeprefix("\ufeff")
    if "open" not in text:
        rows = list(csv.reader(io.StringIO(body, newline=""), delimiter=made.separator))
        assert made.rows == [row or [""] for row in rows]


def test_setting_a_cell_changes_only_it():
    made = Sheet('a,b,c\r\n"1","2",3\r\n4,5,6')
    made.set(1, 1, "9.5")
    made.set(2, 2, "x,y")
    made.set(2, 0, "")
    assert made.bytes() == b'a,b,c\r\n"1","9.5",3\r\n,5,"x,y"'
    assert made.rows[1][1] == "9.5"


def test_utf_16(tmp_path):
    data = "\ufeffid\tname\r\nada\tZoë\r\n".encode("utf-16-le")
    (tmp_path / "x.csv").write_bytes(data)
    made = Sheet.load(tmp_path / "x.csv")
    assert made.rows[1] == ["ada", "Zoë"]
    assert made.bytes() == data


# ---------------------------------------------------------------------------------------------- the class

ADA = Student("ada", "Ada Lovelace", "ada@x.org", canvas_id="1815", moodle_id="31")
ALAN = Student("alan", "Turing, Alan", "alan@x.org")
ZOE = Student("zoë", "Zoë O'Neil", "zoe@x.org")


def graded(student, total, **more):
    return Row(student, "graded", report() | {"total": total}, **more)


def test_class_table():
    late = report() | {"penalties": [{"reason": "late", "points": 1.25}], "total": 2.25}
    late["submission"]["late_seconds"] = 90
    broken = report([exercise(1, 2, 2, "passed"), exercise(2, 0, 3, "error")])
    rows = [
        Row(ADA, "graded", late, received_at="2026-10-02T20:00:00+00:00", time_from="class list"),
        Row(ALAN, "missing"),
    ]
    rows += [
        Row(ZOE, "error", broken, notes=("grader error: in exercise 7.02",)),
        Row(Student("x.zip"), "rejected", known=False),
    ]
    table = list(csv.DictReader(io.StringIO(class_csv(rows, ["7.01", "7.02", "7.03"]), newline="")))
    assert [line["student"] for line in table] == ["ada", "alan", "zoë", "x.zip"]
    assert [line["total"] for line in table] == ["2.25", "", "", ""]
    assert [line["7.02"] for line in table] == ["1.5", "", "", ""]
    assert (table[0]["penalty"], table[0]["late_seconds"], table[0]["sha256"]) == ("1.25", "90", "cd" * 32)
    assert table[1]["state"] == "no submission"
    assert table[2]["state"] == "grader error"
    assert "7.02" in table[2]["notes"]
    assert table[3]["state"] == "submission rejected, not in the class list"
    page = inert(
        class_html(
            "Lesson 7", rows, statistics([late]), [("seed id", "abc")], ["look here"], b"png", {"ada": "students/ada"}
        )
    )
    for piece in ("look here", "no submission", "grader error", "abc", "no scale", "mean 2.25"):
        assert piece in page.text
    assert page.tags.count("img") == 1


def test_statistics_of_a_class_that_can_be_worked_out_by_hand():
    def one(a, b, state_b="failed", label=""):
        return report(
            [
                exercise(1, a, 2, "passed" if a == 2 else "failed", diagnosis="swap" if a < 2 else ""),
                exercise(2, b, 4, state_b, diagnosis=label),
            ]
        )

    class_ = [
        one(2, 4, "passed"),
        one(2, 3, label="no-scale"),
        one(0, 1, label="no-scale"),
        one(0, 0, "not_implemented"),
    ]
    class_.append(report([exercise(1, 0, 2, "error", diagnosis="swap"), exercise(2, 4, 4, "passed")]))
    first, second = statistics(class_)
    assert (first["students"], first["attempted"], first["full"], first["mean"]) == (4, 4, 2, 1.0)
    assert (second["students"], second["attempted"], second["full"], second["mean"]) == (5, 4, 2, 2.4)
    assert first["mistakes"] == {"swap": 2}
    assert second["mistakes"] == {"no-scale": 2}
    assert first["discrimination"] == pytest.approx(np.corrcoef([2, 2, 0, 0], [4, 3, 1, 0])[0, 1])
    assert second["discrimination"] == pytest.approx(np.corrcoef([4, 3, 1, 0, 4], [2, 2, 0, 0, 0])[0, 1])
    assert mistake_rows([first, second]) == [["7.01", "2", "swap", ""], ["7.02", "2", "no scale", ""]]


def test_statistics_where_nothing_varies():
    (only,) = statistics([report([exercise(1, 2, 2, "passed")])])
    assert only["discrimination"] is None
    assert statistics([]) == []
    assert ",,\r\n" in statistics_csv([only])


def test_mistakes_are_in_order():
    class_ = [report([exercise(1, 0, 2, "failed", diagnosis=label)]) for label in ("b", "a", "c", "c", "b", "b")]
    items = statistics(class_)
    assert "b 3, c 2, a 1" in statistics_csv(items)
    assert [row[1:3] for row in mistake_rows(items, 2)] == [["3", "b"], ["2", "c"]]


def test_a_mistake_comes_with_what_was_told():
    told = exercise(1, 0, 2, "failed", diagnosis="no-scale", cause="The factor <b>1/√d</b> is missing.")
    items = statistics([report([told])])
    assert mistake_rows(items) == [["7.01", "1", "no scale", "The factor <b>1/√d</b> is missing."]]
    row = Row(Student("ada", "Ada", ""), "graded", report([told]), True, (), "")
    page = inert(class_html("Lesson 7", [row], items, [], [], b"", {}))
    assert "The factor <b>1/√d</b> is missing." in page.text


def test_picture(tmp_path):
    class_ = [
        report([exercise(1, 2, 2, "passed"), exercise(2, 0, 2, s)]) for s in ("failed", "not_implemented", "failed")
    ]
    path = picture(statistics(class_), "Lesson 7: $a$ <title>", tmp_path / "rate.png")
    pixels = imread(path)[..., :3]
    blue, orange = np.array([0, 0x72, 0xB2]) / 255, np.array([0xE6, 0x9F, 0]) / 255
    share = [float((np.abs(pixels - colour).max(axis=2) < 0.02).mean()) for colour in (blue, orange)]
    assert share[0] > share[1] > 0.01  # a full bar, and two thirds of one


# ---------------------------------------------------------------------------------------------- other systems


def test_gradescope():
    made = gradescope(report(penalties=[{"reason": "late", "points": 0.5}], total=3.0))
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["score"] == 3.0
    assert [(t["number"], t["score"], t["max_score"], t["status"]) for t in made["tests"]] == [
        ("7.01", 2, 2, "passed"),
        ("7.02", 1.5, 3, "failed"),
        ("7.03", 0, 2, "failed"),
        ("7.04", 0, 1, "failed"),
    ]
    assert made["tests"][1]["tags"] == ["no-scale"]
    assert {t["output_format"] for t in made["tests"]} | {made["output_format"], made["test_name_format"]} == {"text"}
    assert "late: -0.5 points" in made["output"]
    assert "SECRET-DETAIL" not in json.dumps(made)
    fields = {
        "score",
        "execution_time",
        "output",
        "output_format",
        "test_output_format",
        "test_name_format",
        "visibility",
    }
    assert set(made) == fields | {"stdout_visibility", "tests"}


def test_github():
    made = github(report(penalties=[{"reason": "late", "points": 0.5}], total=3.0))
    assert (made["version"], made["status"], made["max_score"]) == (1, "fail", 8)
    assert sum(test["score"] for test in made["tests"]) == 3.0
    assert made["tests"][0]["status"] == "pass"
    assert "message" not in made["tests"][0]
    assert made["tests"][1]["message"].startswith("Called function_2")
    assert made["tests"][0]["filename"] == "lessons/lesson_07_lora.py"
    assert github(report([exercise(1, 2, 2, "passed")]))["status"] == "pass"
    assert github(report([exercise(1, 2, 2, "passed"), exercise(2, 0, 1, "error")]))["status"] == "error"
    assert github(report([])) == {"version": 1, "status": "fail", "max_score": 0, "tests": []}
    name, _, data = github_output(report()).strip().partition("=")
    assert name == "result"
    assert json.loads(base64.b64decode(data)) == github(report())


def test_junit():
    exercises = [*report()["exercises"], exercise(5, 0, 1, "timeout", "too long"), exercise(6, 0, 1, "error", "broke")]
    root = ET.fromstring(junit(report(exercises)))
    (suite,) = root
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "1",
        "errors": "2",
        "skipped": "2",
    }
    cases = suite.findall("testcase")
    assert [[child.tag for child in case if child.tag != "properties"] for case in cases] == [
        [],
        ["failure"],
        ["skipped"],
        ["skipped"],
        ["error"],
        ["error"],
    ]
    properties = {p.get("name"): p.get("value") for p in cases[1].iter("property")}
    assert properties == {"points": "1.5", "max_points": "3", "diagnosis": "no-scale"}
    whole = {p.get("name"): p.get("value") for p in suite.find("properties")}
    assert (whole["points"], whole["max_points"], whole["student"]) == ("3.5", "10", "ada")
    assert cases[1].find("failure").get("message") == "Called function_2(x (2, 3))."


def test_nbgrader():
    late = report() | {"penalties": [{"reason": "late", "points": 1.0}], "total": 2.5}
    rows = [Row(ADA, "graded", late, received_at="2026-10-02T20:00:00+00:00"), Row(ALAN, "missing"), graded(ZOE, 3.5)]
    ada, alan, zoe = csv.DictReader(io.StringIO(nbgrader(rows, "lesson-07", "2026-10-02T23:59:00+02:00"), newline=""))
    assert ada == {
        "assignment": "lesson-07",
        "duedate": "2026-10-02T23:59:00+02:00",
        "timestamp": "2026-10-02T20:00:00+00:00",
        "student_id": "ada",
        "last_name": "Lovelace",
        "first_name": "Ada",
        "email": "ada@x.org",
        "raw_score": "3.5",
        "late_submission_penalty": "1",
        "score": "2.5",
        "max_score": "8",
    }
    assert (alan["last_name"], alan["first_name"], alan["score"]) == ("Turing", "Alan", "")
    assert (zoe["last_name"], zoe["late_submission_penalty"], zoe["score"]) == ("O'Neil", "0", "3.5")


# ---------------------------------------------------------------------------------------------- Canvas and Moodle

CANVAS = (
    "\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Lesson 6 (11),Lesson 7 (12),Final Score\r\n"
    '"    Points Possible",,,,,10,8,(read only)\r\n'
    '"Lovelace, Ada",1815,u1,someone,One,9.00,,90\r\n'
    '"Turing, Alan",1912,u2,alan,"One, Two",,1.00,50\r\n'
    '"O\'Neil, Zoë",1999,,,One,,EX,10\r\n'
    '"Student, Test",2000,,,One,,,0\r\n'
)


def test_canvas_changes_one_column_and_nothing_else():
    made = Sheet(CANVAS)
    rows = [graded(ADA, 3.456), graded(ALAN, 8.0), graded(ZOE, 2.0), graded(Student("grace", "Grace Hopper"), 1.0)]
    notes = fill_canvas(made, "lesson 7", rows)
    expected = CANVAS.replace("One,9.00,,90", "One,9.00,3.46,90").replace('"One, Two",,1.00,50', '"One, Two",,8,50')
    assert made.bytes() == expected.encode()
    assert len(notes) == 2
    assert any(note.startswith("zoë: excused") and "2" in note for note in notes)
    assert any(note.startswith("grace: not in the Canvas gradebook; marks 1") for note in notes)


def test_canvas_number_goes_before_a_name():
    made = Sheet(CANVAS)
    fill_canvas(made, "Lesson 7 (12)", [graded(Student("x", "Turing, Alan", canvas_id="1815"), 5.0)])
    assert made.rows[2][6] == "5"
    assert made.rows[3][6] == "1.00"


def test_canvas_leaves_cells_of_students_without_marks():
    made = Sheet(CANVAS)
    assert (
        fill_canvas(made, "Lesson 7", [Row(ADA, "missing"), Row(ALAN, "error", report()), Row(ZOE, "rejected")]) == []
    )
    assert made.bytes() == CANVAS.encode()


def test_canvas_two_students_of_one_name():
    text = CANVAS.replace("O'Neil, Zoë", "Turing, Alan").replace(",alan,", ",,")
    made = Sheet(text)
    notes = fill_canvas(made, "Lesson 7", [graded(Student("alan", "Alan Turing"), 5.0)])
    assert made.bytes() == text.encode()
    assert notes == ["alan: more than once in the Canvas gradebook; marks 5"]


def test_canvas_other_points_possible_are_told():
    made = Sheet(CANVAS.replace("10,8,(read", "10,20,(read"))
    assert fill_canvas(made, "Lesson 7", [graded(ADA, 1.0)]) == ["Canvas has 20 points possible, the lesson 8"]


@pytest.mark.parametrize("column", ["Lesson", "Lesson 8", "Final Score", "Section", ""])
def test_canvas_unknown_column(column):
    with pytest.raises(InputError, match=r"assignments in it: 'Lesson 6 \(11\)', 'Lesson 7 \(12\)'"):
        fill_canvas(Sheet(CANVAS), column, [graded(ADA, 1.0)])


def test_canvas_read_only_column_and_other_files():
    with pytest.raises(InputError, match="read only"):
        fill_canvas(Sheet(CANVAS.replace("10,8,", "10,(read only),")), "Lesson 7", [])
    for text in ("", "a,b\n", "Name,Number,Class,Lesson 7\nx,1,2,\n"):
        with pytest.raises(InputError, match="no gradebook"):
            fill_canvas(Sheet(text), "Lesson 7", [])


MOODLE = (
    'Identifier,"Full name","Email address",Status,Grade,"Maximum Grade","Last modified (grade)","Feedback comments"\n'
    '"Participant 31","Ada L.",,"Submitted for grading",,8.00,-,"keep ""this"""\n'
    '"Participant 32","Alan Turing",alan@x.org,"No submission","2.00",8.00,"Friday, 2 October 2026, 11:59 PM",\n'
)


def test_moodle_changes_one_column_and_nothing_else():
    made = Sheet(MOODLE)
    notes = fill_moodle(made, [graded(ADA, 3.5), graded(ALAN, 7.25), graded(ZOE, 1.0)])
    expected = MOODLE.replace('grading",,8.00', 'grading",3.5,8.00').replace('"2.00"', '"7.25"')
    assert made.bytes() == expected.encode()
    assert notes == ["zoë: not in the Moodle worksheet; marks 1"]


def test_moodle_decimal_comma_other_names_and_maximum():
    text = "Identificador;Calificación;Maximum Grade\nParticipante 31;;10,00\n"
    made = Sheet(text)
    notes = fill_moodle(made, [graded(ADA, 3.5)], "Calificación", "Identificador")
    assert made.bytes().decode() == text.replace(";;", ";3,5;")
    assert notes == ["Moodle has 10,00 as the maximum grade, the lesson 8"]


@pytest.mark.parametrize("text", ["", "Identifier,Mark\n", "Identifier,Grade,Grade\n"])
def test_moodle_other_files(text):
    with pytest.raises(InputError, match="one column 'Grade'"):
        fill_moodle(Sheet(text), [graded(ADA, 1.0)])
