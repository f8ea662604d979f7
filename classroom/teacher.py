"""The teacher's commands of ``python -m classroom``. They are not in a handout."""

from __future__ import annotations

import argparse
from pathlib import Path

from classroom import class_run
from classroom.reports import gradescope

ROOT = Path(__file__).resolve().parent.parent


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add them to the parser."""
    handout = commands.add_parser(
        "handout",
        help="write the students' repository",
        description="Writes a complete repository for students, without solutions, hidden cases and typical mistakes.",
    )
    handout.add_argument(
        "--out", type=Path, default=ROOT / "dist" / "handout", metavar="DIR", help="(dist/handout); replaced if there"
    )
    handout.set_defaults(run=_handout)

    solutions = commands.add_parser(
        "solutions",
        help="make a pack of a lesson's solutions to release",
        description="Makes a pack of a lesson's solved functions. Students fill it in with: make fill PACK=file.zip",
    )
    solutions.add_argument("--lesson", type=int, required=True, metavar="N")
    solutions.add_argument("--out", type=Path, required=True, metavar="PACK.zip")
    solutions.set_defaults(run=_solutions)

    grade_all = commands.add_parser(
        "grade-all",
        help="grade a class",
        description="Grades every submission of a lesson on cases that nobody has seen, and writes reports and tables.",
        epilog="The same command goes on where it was stopped.",
    )
    class_run.add_arguments(grade_all)
    grade_all.set_defaults(run=class_run.grade_all)

    autograder = commands.add_parser(
        "autograder",
        help="make an autograder for Gradescope",
        description="Writes the zip that Gradescope makes an autograder of. It holds solutions and the secret.",
    )
    gradescope.add_arguments(autograder)
    autograder.set_defaults(run=gradescope.autograder)

    check = commands.add_parser(
        "check",
        help="grade the grader",
        description="Tries solutions, stubs, typical mistakes, other right ways and attacks; prints the catch rate.",
    )
    check.add_argument("lessons", type=int, nargs="*", metavar="N", help="lessons to check; default: all")
    check.set_defaults(run=_check)


def _handout(arguments: argparse.Namespace) -> int:
    from classroom import handout, manifest

    handout.build(ROOT, arguments.out)
    files = manifest.read(arguments.out)
    print(f"{arguments.out}: {len(files)} files, handout {manifest.handout_hash(arguments.out)[:12]}")
    return 0


def _solutions(arguments: argparse.Namespace) -> int:
    from classroom import solutions

    count = solutions.pack(ROOT, arguments.lesson, arguments.out)
    print(f"{arguments.out}: {count} functions of lesson {arguments.lesson}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from classroom import check

    return check.run(arguments.lessons)
