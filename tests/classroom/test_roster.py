"""The class list: what it may look like, and who a submission is from."""

import pytest

from classroom.roster import Roster, Student, read_roster
from classroom.submissions import Found
from minigpt.errors import InputError


def roster(tmp_path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "class.csv"
    path.write_bytes(text.encode(encoding))
    return read_roster(path)


def test_plain_list(tmp_path):
    students = roster(tmp_path, 'id,Name,EMAIL,canvas_id\nada,"Lovelace, Ada",a@b.c,17\n\nalan, Alan Turing ,,\n')
    assert students == [
        Student("ada", "Lovelace, Ada", "a@b.c", canvas_id="17"),
        Student("alan", "Alan Turing"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_encodings_and_separators(tmp_path, encoding, separator):
    students = roster(tmp_path, f"id{separator}name\r\nzoë{separator}Zoë Ω\r\n", encoding)
    assert [(s.id, s.name) for s in students] == [("zoë", "Zoë Ω")]


def test_names_are_taken_as_they_stand(tmp_path):
    (odd,) = roster(tmp_path, "id,name\nodd,'=quoted\n")
    assert odd.name == "'=quoted"


def test_first_and_last_name(tmp_path):
    (ada,) = roster(tmp_path, "id,first_name,last_name\nada,Ada,Lovelace\n")
    assert (ada.name, ada.first_name, ada.last_name) == ("Ada Lovelace", "Ada", "Lovelace")


def test_canvas_export_as_it_is(tmp_path):
    text = (
        "Student,ID,SIS User ID,SIS Login ID,Section,Lesson 7 (99)\n"
        "    Points Possible,,,,,10\n"
        '"Lovelace, Ada",1815,u1,ada,One,\n'
        '"Student, Test",1900,,,One,\n'
    )
    ada, test = roster(tmp_path, text)
    assert (ada.id, ada.canvas_id, ada.name, ada.section) == ("ada", "1815", "Lovelace, Ada", "One")
    assert (test.id, test.canvas_id) == ("1900", "1900")


def test_moodle_worksheet_as_it_is(tmp_path):
    text = "Identifier,Full name,Email address,Status,Grade\nParticipant 1815,Ada Lovelace,ada@x.org,Submitted,\n"
    (ada,) = roster(tmp_path, text)
    assert (ada.id, ada.moodle_id, ada.name) == ("ada@x.org", "1815", "Ada Lovelace")
    (blind,) = roster(tmp_path, "Identifier,Status,Grade\nParticipant 1815,Submitted,\n")
    assert (blind.id, blind.moodle_id) == ("Participant 1815", "1815")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("id,name\n", "names no student"),
        ("who,points\nada,3\n", "needs a column 'id'; it has: who, points"),
        ("id,name\nada,A\n,B\n", "Row 3 .* no id"),
        ("id,name\nada,A\nalan,B\nADA,C\n", "Rows 2 and 4 .* 'ADA'"),
    ],
)
def test_wrong_lists(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        roster(tmp_path, text)


def test_list_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_roster(tmp_path / "none.csv")
    (tmp_path / "class.csv").write_bytes(b"id,name\nada,caf\xe9\n")
    with pytest.raises(InputError, match="line 2"):
        read_roster(tmp_path / "class.csv")


ADA = Student("ada", "Ada Lovelace", "ada@x.org", github="countess", canvas_id="1815", moodle_id="31")
ALAN = Student("alan", "Turing, Alan", canvas_id="1912", moodle_id="32")
ZOE = Student("zoë", "Zoë Alan", github="alan-z")
CLASS = Roster([ADA, ALAN, ZOE])


@pytest.mark.parametrize(
    ("owner", "column", "student"),
    [
        ("ada", "", ADA),
        ("ADA", "", ADA),
        ("ada@x.org", "", ADA),
        ("countess", "", ADA),
        ("lesson-7-countess", "", ADA),
        ("lesson-7-alan-z", "", ZOE),
        ("Ada Lovelace", "", ADA),
        ("lovelaceada", "", ADA),
        ("Alan Turing", "", ALAN),
        ("zoe\u0308", "", ZOE),
        ("1815", "canvas_id", ADA),
        ("32", "moodle_id", ALAN),
        ("31", "canvas_id", None),
        ("9", "canvas_id", None),
        ("grace", "", None),
        ("lovelace", "", None),
        ("", "", None),
    ],
)
def test_who(owner, column, student):
    hit, reason = CLASS.who(Found(f"turingalan_{owner}.zip", (), column, owner))
    assert hit == student
    assert bool(reason) == (student is None)


def test_canvas_name_only_where_the_list_has_no_numbers():
    found = Found("turingalan_1912_7_work.zip", (), "canvas_id", "1912")
    assert Roster([Student("a", "Ada Lovelace"), Student("t", "Alan Turing")]).who(found)[0].id == "t"
    assert Roster([Student("a", "Ada Lovelace", canvas_id="3"), Student("t", "Alan Turing")]).who(found)[0] is None


def test_two_of_one_name_are_nobody():
    hit, reason = Roster([Student("a1", "Ada B"), Student("a2", "Ada B")]).who(Found("Ada B.zip", (), "", "Ada B"))
    assert hit is None
    assert "a1 or a2" in reason
