"""Taking in submissions: who sent what, what is copied, what is rejected and why."""

import io
import os
import stat
import struct
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from classroom.submissions import Found, Limits, Rejected, Taken, encoding_note, find, received, take
from minigpt.errors import InputError

WANTED = ("kernels/gelu.py", "kernels/linear.py")
GELU, LINEAR = b"def gelu(x):\n    return x\n", b"def linear(x):\n    return x\n"
SMALL = Limits(graded_bytes=1000, total_bytes=20_000, files=10, depth=4)


def folder(place: Path, name: str = "ada", **files: bytes) -> Path:
    path = place / name
    for file, data in (files or {"kernels/gelu.py": GELU, "kernels/linear.py": LINEAR}).items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(data)
    return path


def packed(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def one(*paths: Path) -> Found:
    return Found(paths[0].name, paths, "", "ada")


def taken(path: Path, out: Path, wanted=WANTED, **settings) -> Taken:
    return take(one(path), wanted, out, **settings)


def reason(path: Path, out: Path, limits: Limits = SMALL) -> str:
    with pytest.raises(Rejected) as caught:
        take(one(path), WANTED, out, limits=limits)
    assert not out.exists() or not any(out.rglob("*"))
    message = str(caught.value)
    assert message.isprintable()
    return message


# ---------------------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize(
    ("name", "column", "owner", "attempt", "late"),
    [
        ("ada.zip", "", "ada", 0, False),
        ("Ada.ZIP", "", "Ada", 0, False),
        ("lovelaceada_1815_77_work.zip", "canvas_id", "1815", 77, False),
        ("lovelaceada_LATE_1815_77_work.zip", "canvas_id", "1815", 77, True),
        ("Ada Lovelace_1815_assignsubmission_file_work.zip", "moodle_id", "1815", 0, False),
        ("Anna_Maria_12_assignsubmission_file_my_work.zip", "moodle_id", "12", 0, False),
        ("Lesson 7_ada_attempt_2026-10-02-23-59-00_work.zip", "", "ada", 0, False),
        ("Lesson 7_ada_attempt_2026-10-02-23-59-00.zip", "", "ada", 0, False),
        ("a_b.zip", "", "a_b", 0, False),
    ],
)
def test_names_of_zips(tmp_path, name, column, owner, attempt, late):
    packed(tmp_path / name, {"kernels/gelu.py": GELU})
    (found,), left = find(tmp_path)
    assert (found.column, found.owner, found.attempt, found.marked_late) == (column, owner, attempt, late)
    assert left == []


def test_folders_and_what_is_no_submission(tmp_path):
    folder(tmp_path, "ada")
    folder(tmp_path, "Ada Lovelace_1815_assignsubmission_file_")
    (tmp_path / "notes.docx").write_bytes(b"x")
    (tmp_path / "linked").symlink_to(tmp_path / "ada")
    os.mkfifo(tmp_path / "pipe.zip")
    for hidden in (".DS_Store", "__MACOSX"):
        (tmp_path / hidden).mkdir()
    found, left = find(tmp_path)
    assert [(f.column, f.owner) for f in found] == [("moodle_id", "1815"), ("", "ada")]
    assert len(left) == 3
    assert any("notes.docx" in line for line in left)
    assert any("linked" in line and "symbolic link" in line for line in left)
    assert any("pipe.zip" in line and "FIFO" in line for line in left)


def test_loose_files_of_one_student_are_one_submission(tmp_path):
    for name in ("lovelaceada_1815_77_gelu.py", "lovelaceada_LATE_1815_78_linear-1.py", "turingalan_12_3_gelu.py"):
        (tmp_path / name).write_bytes(GELU)
    found, _ = find(tmp_path)
    assert [(f.owner, f.attempt, f.marked_late, len(f.paths)) for f in found] == [
        ("1815", 78, True, 2),
        ("12", 3, False, 1),
    ]
    result = take(found[0], WANTED, tmp_path / "out")
    assert result.files == list(WANTED)
    assert any("kernels/linear.py was taken from 'linear-1.py'" in note for note in result.notes)


def test_no_folder_of_submissions(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        find(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------- when


def test_times(tmp_path):
    zone = ZoneInfo("Europe/Berlin")
    path = packed(tmp_path / "Lesson 7_ada_attempt_2026-10-02-23-59-00.zip", {"kernels/gelu.py": GELU})
    (found,), _ = find(tmp_path)
    assert received(found, zone) == (datetime(2026, 10, 2, 21, 59, tzinfo=UTC), "name")
    os.utime(path, (1e9, 1e9))
    assert received(one(path), zone) == (datetime.fromtimestamp(1e9, UTC), "file")

    tree = folder(tmp_path, "nb/ada")
    for file in tree.rglob("*.py"):
        os.utime(file, (1e9, 1e9))
    os.utime(tree / "kernels/gelu.py", (1.1e9, 1.1e9))
    os.utime(tree, (1.5e9, 1.5e9))  # changes when a folder is copied
    assert received(one(tree), zone) == (datetime.fromtimestamp(1.1e9, UTC), "file")
    (tree / "timestamp.txt").write_text("2026-10-02 21:59:30.5 America/Los_Angeles\n")
    time, source = received(one(tree), zone)
    assert (time.astimezone(UTC), source) == (datetime(2026, 10, 3, 4, 59, 30, 500000, tzinfo=UTC), "timestamp.txt")
    (tree / "timestamp.txt").write_text("yesterday /etc/passwd")
    assert received(one(tree), zone)[1] == "file"


def test_impossible_time_in_a_name(tmp_path):
    packed(tmp_path / "L_ada_attempt_2026-13-02-23-59-00.zip", {"kernels/gelu.py": GELU})
    (found,), _ = find(tmp_path)
    assert found.sent is None
    assert found.owner == "ada"


# ---------------------------------------------------------------------------------------------- what is copied


@pytest.mark.parametrize("prefix", ["", "handout/", "a/b/"])
def test_folder_and_zip_give_the_same_copy(tmp_path, prefix):
    files = {f"{prefix}kernels/gelu.py": GELU, f"{prefix}kernels/linear.py": LINEAR, f"{prefix}readme.md": b"hello"}
    by_folder = taken(folder(tmp_path, **files), tmp_path / "one")
    by_zip = taken(packed(tmp_path / "ada.zip", files), tmp_path / "two")
    assert by_folder.sha256 == by_zip.sha256
    for result in (by_folder, by_zip):
        assert result.files == list(WANTED)
        assert result.ignored == ["readme.md"]
        assert result.notes == []
        assert {p.relative_to(result.tree).as_posix() for p in result.tree.rglob("*") if p.is_file()} == set(WANTED)
        assert (result.tree / "kernels/gelu.py").read_bytes() == GELU


def test_hash_is_of_the_copy_and_of_nothing_else(tmp_path):
    path = folder(tmp_path)
    first = taken(path, tmp_path / "one")
    (path / "notes.txt").write_bytes(b"other")
    assert taken(path, tmp_path / "two").sha256 == first.sha256
    (path / "kernels/gelu.py").write_bytes(GELU + b"#")
    changed = taken(path, tmp_path / "two")
    assert changed.sha256 != first.sha256
    # A file that holds what would come next in the stream is not two files.
    for name, between in (("glued", b"\0"), ("glued twice", b"\0\0")):
        glued = folder(tmp_path, name, **{"kernels/gelu.py": GELU + b"kernels/linear.py" + between + LINEAR})
        assert taken(glued, tmp_path / "four").sha256 != first.sha256
    # Moving bytes from one file to the other is another submission.
    swapped = folder(tmp_path, "swapped", **{"kernels/gelu.py": LINEAR, "kernels/linear.py": GELU})
    assert taken(swapped, tmp_path / "three").sha256 != first.sha256


def test_an_earlier_copy_is_replaced(tmp_path):
    taken(folder(tmp_path), tmp_path / "out")
    less = folder(tmp_path, "less", **{"kernels/gelu.py": GELU})
    assert taken(less, tmp_path / "out").files == ["kernels/gelu.py"]
    assert not (tmp_path / "out/kernels/linear.py").exists()


def test_known_files_and_tools_folders_need_no_word(tmp_path):
    files = {"kernels/gelu.py": GELU, "kernels/linear.py": LINEAR, "kernels/softmax.py": b"", "conftest.py": b""}
    path = folder(tmp_path, **files, **{".venv/lib/x.py": b"", "__pycache__/x.pyc": b""})
    (path / ".venv/lib/python").symlink_to("/usr/bin/python3")
    result = taken(path, tmp_path / "out", known={"kernels/softmax.py"})
    assert result.ignored == ["conftest.py"]


def test_renamed_missing_and_ambiguous_files_are_named(tmp_path):
    result = taken(folder(tmp_path, **{"gelu (1).py": GELU, "Linear - Copy.py": LINEAR}), tmp_path / "out")
    assert result.files == list(WANTED)
    assert "kernels/gelu.py was taken from 'gelu (1).py'" in result.notes

    result = taken(
        folder(tmp_path, "b", **{"kernels/gelu.py": GELU, "kernels/linear_final.py": LINEAR}), tmp_path / "out"
    )
    assert result.files == ["kernels/gelu.py"]
    assert result.notes == ["kernels/linear.py is missing; there is 'kernels/linear_final.py', which is not read"]
    assert result.ignored == ["kernels/linear_final.py"]

    two = {"kernels/gelu.py": GELU, "old/linear.py": LINEAR, "new/linear.py": LINEAR}
    result = taken(folder(tmp_path, "c", **two), tmp_path / "out")
    assert result.files == ["kernels/gelu.py"]
    assert result.notes == [
        "kernels/linear.py is missing, and which of these it is cannot be told: 'new/linear.py', 'old/linear.py'"
    ]


def test_second_copy_of_the_course(tmp_path):
    files = {"kernels/gelu.py": GELU, "kernels/linear.py": LINEAR, "backup/kernels/gelu.py": b"old"}
    result = taken(folder(tmp_path, **files), tmp_path / "out")
    assert (result.tree / "kernels/gelu.py").read_bytes() == GELU
    assert result.notes == ["a second copy in backup/ is not read"]


def test_nothing_graded_in_it(tmp_path):
    """It was not read, which is not 0 points; an earlier copy does not stay to be graded in its place."""
    taken(folder(tmp_path, "before", **{"kernels/gelu.py": GELU}), tmp_path / "out")
    with pytest.raises(Rejected, match=r"^no graded file of this lesson is in it$"):
        taken(folder(tmp_path, "essay", **{"essay.txt": b"x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(Rejected, match=r"there is 'gelus\.py', which is not read"):
        taken(folder(tmp_path, "near", **{"gelus.py": GELU, "b.py": b""}), tmp_path / "out")


def test_the_only_source_file_is_the_only_graded_one(tmp_path):
    """lou.py, and nothing else, where one file is graded."""
    for place in (folder(tmp_path, "lou", **{"lou.py": GELU, "notes.txt": b""}), tmp_path / "loose" / "lou.py"):
        place.parent.mkdir(exist_ok=True)
        if place.suffix:
            place.write_bytes(GELU)
        result = taken(place, tmp_path / "out", wanted=["kernels/gelu.py"])
        assert (result.tree / "kernels/gelu.py").read_bytes() == GELU
        assert result.notes == ["kernels/gelu.py was taken from 'lou.py'"]
    for name, files in (("two", ("a.py", "b.py")), ("other", ("lessons/lesson_03_ulmfit_classifier.py",))):
        place = folder(tmp_path, name, **dict.fromkeys(files, b""))
        with pytest.raises(Rejected, match="no graded file"):
            taken(place, tmp_path / "out", wanted=["kernels/gelu.py"])


def test_what_fill_has_kept_is_not_mentioned(tmp_path):
    files = dict.fromkeys(("kernels/gelu.py", "kernels/gelu.py.before-fill", "kernels/gelu.py.before-fill-2"), GELU)
    assert taken(folder(tmp_path, "ada", **files, **{"mine.py": b""}), tmp_path / "out").ignored == ["mine.py"]


def test_zip_in_the_folder_that_an_lms_made(tmp_path):
    place = tmp_path / "Ada Lovelace_1815_assignsubmission_file_"
    packed(place / "work.zip", {"x/kernels/gelu.py": GELU, "x/kernels/linear.py": LINEAR})
    assert taken(place, tmp_path / "out").files == list(WANTED)


def test_backslashes_of_windows_zips(tmp_path):
    path = packed(tmp_path / "ada.zip", {"kernels\\gelu.py": GELU, "kernels\\linear.py": LINEAR})
    assert taken(path, tmp_path / "out").files == list(WANTED)


# ---------------------------------------------------------------------------------------------- what is rejected


@pytest.mark.parametrize("name", ["kernels/gelu.py", "elsewhere.txt"])
def test_symbolic_link(tmp_path, name):
    path = folder(tmp_path)
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to("/etc/passwd")
    assert "symbolic link" in reason(path, tmp_path / "out")


def test_linked_folder_is_not_followed(tmp_path):
    path = folder(tmp_path)
    (path / "more").symlink_to("/etc")
    assert "symbolic link" in reason(path, tmp_path / "out")


def test_fifo_socket_and_hard_link(tmp_path):
    path = folder(tmp_path, "fifo", **{"kernels/linear.py": LINEAR})
    os.mkfifo(path / "kernels/gelu.py")  # reading it would never end
    assert "FIFO" in reason(path, tmp_path / "out")
    path = folder(tmp_path, "hard")
    os.link(path / "kernels/gelu.py", path / "twice.py")
    assert "hard link" in reason(path, tmp_path / "out")


def test_device(tmp_path):
    path = folder(tmp_path, "device")
    try:
        os.mknod(path / "zero.py", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device")
    assert "device" in reason(path, tmp_path / "out")


def test_too_much(tmp_path):
    path = folder(tmp_path, "big")
    with (path / "model.bin").open("wb") as file:
        file.truncate(2 << 30)  # a sparse file: 2 GB to read, nothing on the disk
    assert "2.15 GB" in reason(path, tmp_path / "out", Limits())
    assert "more than 10 files" in reason(
        folder(tmp_path, "many", **{f"{i}.txt": b"" for i in range(11)}), tmp_path / "out"
    )
    assert "4 deep" in reason(folder(tmp_path, "deep", **{"a/b/c/d/e/f.txt": b""}), tmp_path / "out")
    big = folder(tmp_path, "source", **{"kernels/gelu.py": b"#" * 1001})
    assert "kernels/gelu.py holds more than 1 kB" in reason(big, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    ["../kernels/gelu.py", "a/../../x.py", "/etc/cron.d/x", "C:\\x.py", "..\\x.py", "x/..", "kernels/gelu.py\0.txt"],
)
def test_paths_that_lead_out(tmp_path, name):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("kernels/gelu.py", GELU)
        info = zipfile.ZipInfo("x")
        info.filename = info.orig_filename = name
        archive.writestr(info, LINEAR)
    path = tmp_path / "ada.zip"
    path.write_bytes(data.getvalue())
    assert "leads out" in reason(path, tmp_path / "out")
    assert not (tmp_path / "kernels").exists()


@pytest.mark.parametrize(
    ("mode", "what"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "FIFO"), (stat.S_IFCHR, "device")]
)
def test_special_files_in_a_zip(tmp_path, mode, what):
    info = zipfile.ZipInfo("kernels/gelu.py")
    info.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "ada.zip", "w") as archive:
        archive.writestr(info, b"/etc/passwd")
    assert what in reason(tmp_path / "ada.zip", tmp_path / "out")


def test_zip_bombs(tmp_path):
    bomb = packed(tmp_path / "bomb.zip", {"kernels/gelu.py": GELU, "zeros.bin": bytes(30_000)})
    assert "unpacks to 30 kB; 20 kB are allowed" in reason(bomb, tmp_path / "out")
    many = packed(tmp_path / "many.zip", {f"{i}.txt": b"" for i in range(11)})
    assert "more than 10 files" in reason(many, tmp_path / "out")
    heavy = packed(tmp_path / "heavy.zip", {"noise.bin": os.urandom(25_000)}, zipfile.ZIP_STORED)
    assert "20 kB are allowed" in reason(heavy, tmp_path / "out")


def test_zip_that_lies_about_a_size(tmp_path):
    path = packed(tmp_path / "ada.zip", {"kernels/gelu.py": bytes(15_000)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<L", 10)  # its list of contents says 10 bytes
    path.write_bytes(data)
    assert "cannot be" in reason(path, tmp_path / "out") or "not a zip" in reason(path, tmp_path / "out")


def test_list_of_contents_larger_than_any_submission_has(tmp_path, monkeypatch):
    limits = Limits(total_bytes=10_000_000, files=10)
    packed(tmp_path / "ada.zip", {f"{i:0200d}": b"" for i in range(100)})
    monkeypatch.setattr("classroom.submissions.zipfile.ZipFile", None)  # it would read all of the list
    assert "more than 10 files" in reason(tmp_path / "ada.zip", tmp_path / "out", limits)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a zip"),
        (b"PK\3\4 nothing", "not a zip"),
        (b"Rar!\x1a\7\0" + bytes(100), "not a zip"),
        (b"PK\5\6" + bytes(10), "not a zip"),
        (b"PK\6\7" + bytes(16) + b"PK\5\6" + bytes(18), "zip64"),
    ],
)
def test_what_is_no_zip(tmp_path, data, what):
    (tmp_path / "ada.zip").write_bytes(data)
    assert what in reason(tmp_path / "ada.zip", tmp_path / "out")


def test_broken_encrypted_and_foreign_packing(tmp_path):
    path = packed(tmp_path / "broken.zip", {"kernels/gelu.py": os.urandom(300)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    assert "not a zip that can be read" in reason(path, tmp_path / "out")

    path = packed(tmp_path / "secret.zip", {"kernels/gelu.py": GELU})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in reason(path, tmp_path / "out")

    path = packed(tmp_path / "lzma.zip", {"kernels/gelu.py": GELU}, zipfile.ZIP_LZMA)
    assert "other than deflate" in reason(path, tmp_path / "out")


def test_one_path_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "ada.zip", "w") as archive:
        archive.writestr("kernels/gelu.py", GELU)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("kernels/gelu.py", LINEAR)
    assert "kernels/gelu.py twice" in reason(tmp_path / "ada.zip", tmp_path / "out")


def test_file_that_becomes_a_link_while_it_is_read(tmp_path, monkeypatch):
    path = folder(tmp_path)
    opened = os.open

    def swap(target, flags, *rest):
        if str(target).endswith("gelu.py"):
            os.unlink(target)
            os.symlink("/etc/passwd", target)
        return opened(target, flags, *rest)

    monkeypatch.setattr("classroom.submissions.os.open", swap)
    assert "kernels/gelu.py cannot be read" in reason(path, tmp_path / "out")


# ---------------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (GELU, ""),
        (b"\xef\xbb\xbf" + GELU, ""),
        (GELU.replace(b"\n", b"\r\n"), ""),
        ("# αβγ\n".encode(), ""),
        (b"# -*- coding: latin-1 -*-\n# caf\xe9\n", ""),
        (b"x = 1\n# caf\xe9\n", "line 2: byte 0xe9"),
        ("x = 1\n".encode("utf-16"), "UTF-16"),
        (b"# coding: klingon\n", "klingon"),
        (b"x = 1\n\0\n", "line 2: a NUL"),
    ],
)
def test_encodings(tmp_path, data, note):
    message = encoding_note("kernels/gelu.py", data)
    assert (note in message) if note else message == ""
    assert message.isprintable()
    result = taken(folder(tmp_path, **{"kernels/gelu.py": data, "kernels/linear.py": LINEAR}), tmp_path / "out")
    assert (result.tree / "kernels/gelu.py").read_bytes() == data
    assert result.notes == ([message] if message else [])
