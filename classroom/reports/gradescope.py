"""Gradescope: results.json, and the zip that makes an autograder of a lesson."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from classroom import assignment, base, submissions
from classroom.reports.clean import clean, clean_line
from classroom.reports.text import header_lines, points, status_name
from classroom.secret import read_secret
from classroom.source import path_of
from minigpt.errors import InputError, RunError
from minigpt.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("kernels", "minigpt", "lessons", "classroom")

_SETUP = """\
#!/bin/sh
# Run once, when Gradescope builds the image: a Python that is new enough, and the packages of the course.
set -eu
python=
for name in python3.14 python3.13 python3.12 python3.11; do
  if command -v "$name" >/dev/null; then python=$name; break; fi
done
apt-get update
if [ -z "$python" ]; then python=python3.11; apt-get install -y python3.11; fi
apt-get install -y "$python-venv"
"$python" -m venv /autograder/venv
cd /autograder/source
/autograder/venv/bin/python -m pip install --constraint constraints.txt $(cat requirements.txt)
chmod -R go-rwx /autograder/source
"""

_RUN = """\
#!/bin/sh
# Run for each submission. Without a results.json Gradescope says that the autograder failed, which is then the truth.
cd /autograder/source && exec /autograder/venv/bin/python -m classroom.reports.gradescope run /autograder
"""


def gradescope(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as Gradescope's results.json.

    Every text is given as plain text, which Gradescope escapes. The score on top is the total after penalties; it goes
    before the sum of the tests.
    """
    tests = [
        {
            "name": clean_line(f"{e['title']} ({str(e['function']).split(':')[-1]})"),
            "name_format": "text",
            "number": clean_line(e["id"], 12),
            "score": e["points"],
            "max_score": e["max_points"],
            "status": "passed" if e["status"] == "passed" else "failed",
            "output": clean(f"{status_name(e)}\n{e.get('message') or ''}".strip(), 5000),
            "output_format": "text",
            "tags": [clean_line(e["diagnosis"], 60)] if e["diagnosis"] else [],
            "visibility": "visible",
        }
        for e in report["exercises"]
    ]
    about = [f"{name}: {value}" for name, value in header_lines(report)]
    about += [f"{clean_line(p['reason'])}: -{points(p['points'])} points" for p in report.get("penalties") or []]
    about += [clean_line(note, 300) for note in (report.get("submission") or {}).get("ignored") or []][:20]
    return {
        "score": report["total"],
        "execution_time": round(sum(float(e.get("seconds") or 0) for e in report["exercises"])),
        "output": "\n".join(about),
        "output_format": "text",
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
    }


def build(lesson: int, secret: bytes, out: Path, root: Path = ROOT) -> int:
    """Write an autograder for a lesson, to be uploaded to Gradescope.

    It holds solutions and the secret: it is for Gradescope's configuration page only.

    Parameters
    ----------
    lesson : int
    secret : bytes
    out : Path
        A zip.
    root : Path, optional
        This repository.

    Returns
    -------
    count : int
        Files in it.

    Raises
    ------
    InputError
        If the lesson has no exercises, or the file cannot be written.
    """
    assignment.load(lesson)
    import tomllib

    requirements = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = sorted(p for folder in FOLDERS for p in (root / folder).rglob("*.py") if "__pycache__" not in p.parts)
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in names}
    files["constraints.txt"] = (root / "constraints.txt").read_bytes()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements).encode()
    files["autograder.json"] = json.dumps({"lesson": lesson, "secret": secret.hex()}).encode()
    files |= {"setup.sh": _SETUP.encode(), "run_autograder": _RUN.encode()}
    try:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                info = zipfile.ZipInfo(name)  # of a fixed date: the same course gives the same zip
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = (0o100755 if name in ("setup.sh", "run_autograder") else 0o100644) << 16
                archive.writestr(info, data)
    except OSError as error:
        raise InputError(f"{clean_line(out)!r} cannot be written: {error.strerror}.") from None
    return len(files)


def run(place: Path, root: Path = ROOT, level: str = "auto") -> None:
    """Grade the submission that Gradescope has put into its folder, and write results.json.

    Parameters
    ----------
    place : Path
        Gradescope's ``/autograder``: ``submission``, ``submission_metadata.json`` and ``results`` are in it.
    root : Path, optional
        The unpacked autograder.
    level : str, optional
        Isolation; see `classroom.sandbox`.

    Raises
    ------
    InputError
        If the machine does not offer the isolation that a class needs.
    RunError
        If the grader failed. There is no results.json then, and so no zero.
    """
    settings = json.loads((root / "autograder.json").read_text("utf-8"))
    lesson, secret = settings["lesson"], bytes.fromhex(settings["secret"])
    try:
        metadata = json.loads((place / "submission_metadata.json").read_text("utf-8"))
        users = ", ".join(str(user.get("sid") or user.get("email") or "") for user in metadata.get("users", []))
        received_at = str(metadata.get("created_at", ""))
    except (OSError, ValueError, AttributeError):
        users, received_at = "", ""
    results = place / "results" / "results.json"
    results.unlink(missing_ok=True)
    wanted = sorted({path_of(exercise.function) for exercise in assignment.load(lesson)})
    known = {path.relative_to(root).as_posix() for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    found = submissions.Found("submission", (place / "submission",), "", users)
    with tempfile.TemporaryDirectory() as folder:
        try:
            taken = submissions.take(found, wanted, Path(folder) / "tree", known)
        except submissions.Rejected as reason:
            text = f"Not graded: {reason}. Hand in again."
            made: dict[str, Any] = {"score": 0, "output": text, "output_format": "text", "tests": []}
        else:
            report = base.grade_submission(taken.tree, lesson, secret, level)
            broken = [e["id"] for e in report["exercises"] if e["status"] == "error"]
            if broken:
                raise RunError(f"the grader failed at {', '.join(broken)}")
            report["submission"] |= {"student": users, "sha256": taken.sha256, "received_at": received_at}
            report["submission"]["ignored"] = [*taken.notes, *taken.ignored]
            made = gradescope(report)
    results.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(results, json.dumps(made, indent=1, allow_nan=False).encode())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``python -m classroom autograder``."""
    parser.add_argument("--lesson", type=int, required=True, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.zip")
    parser.add_argument(
        "--secret", type=Path, required=True, metavar="FILE", help="made if absent; keep it for regrades"
    )


def autograder(arguments: argparse.Namespace) -> int:
    """``python -m classroom autograder``; returns the exit code."""
    count = build(arguments.lesson, read_secret(arguments.secret), arguments.out)
    print(
        f"{clean_line(arguments.out)}: {count} files. It holds solutions and the secret: only Gradescope may have it."
    )
    return 0


def main(arguments: Sequence[str]) -> int:
    """``run PLACE``: what ``run_autograder`` calls."""
    if len(arguments) != 2 or arguments[0] != "run":
        print("gradescope: run PLACE", file=sys.stderr)
        return InputError.exit_code
    try:
        run(Path(arguments[1]))
    except (InputError, RunError) as error:
        print(f"gradescope: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
