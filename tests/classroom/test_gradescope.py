"""The autograder for Gradescope: what is in the zip, and that it grades where Gradescope would run it."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from classroom import assignment
from classroom.class_run import ROOT
from classroom.reports.gradescope import build
from classroom.source import path_of
from minigpt.errors import InputError

LESSON = 2
SECRET = bytes(range(32))


def test_zip(tmp_path):
    build(LESSON, SECRET, tmp_path / "a.zip")
    build(LESSON, SECRET, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = set(archive.namelist())
        assert {"setup.sh", "run_autograder", "constraints.txt", "requirements.txt", "autograder.json"} <= names
        assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "runs/"))]
        for name in ("setup.sh", "run_autograder"):
            assert archive.getinfo(name).external_attr >> 16 & 0o111
            assert archive.read(name).startswith(b"#!/bin/sh\n")
            assert b"\r" not in archive.read(name)
        assert b"numpy" in archive.read("requirements.txt")
        assert archive.testzip() is None
    with pytest.raises(InputError, match="99"):
        build(99, SECRET, tmp_path / "c.zip")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["right", "link"])
def test_grades_a_submission(tmp_path, kind):
    build(LESSON, SECRET, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "source")
    exercises = assignment.load(LESSON)
    place = tmp_path / "place"
    for file in {path_of(exercise.function) for exercise in exercises}:
        target = place / "submission" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link":
            target.symlink_to("/etc/passwd")
        else:
            target.write_bytes((ROOT / file).read_bytes())
    (place / "submission/conftest.py").write_text("raise SystemExit\n")
    users = [{"email": "ada@x.org", "sid": "ada"}]
    (place / "submission_metadata.json").write_text(json.dumps({"created_at": "2026-10-02T20:00:00Z", "users": users}))
    command = [sys.executable, "-m", "classroom.reports.gradescope", "run", str(place)]
    done = subprocess.run(command, cwd=tmp_path / "source", env=os.environ | {"PYTHONPATH": ""}, check=False)
    assert done.returncode == 0
    made = json.loads((place / "results/results.json").read_text())
    if kind == "link":
        assert (made["score"], made["tests"]) == (0, [])
        assert "symbolic link" in made["output"]
    else:
        assert made["score"] == sum(exercise.points for exercise in exercises)
        assert [test["number"] for test in made["tests"]] == [exercise.id for exercise in exercises]
        assert "conftest.py" in made["output"]
        assert "student: ada" in made["output"]
    assert SECRET.hex() not in json.dumps(made)
