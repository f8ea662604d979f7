"""``python -m classroom COMMAND``: grade your own work, fill in what a teacher has released; for teachers the rest.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from classroom.recorded import Recorded, load_recorded
from minigpt.errors import InputError, RunError

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m classroom", description="Exercises of the course: grading, and what belongs to it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_commands(commands)
    command = parser.prog
    try:
        if importlib.util.find_spec("classroom.teacher"):  # a student's copy of the course has none
            importlib.import_module("classroom.teacher").add_commands(commands)
        arguments = parser.parse_args(argv)
        command = arguments.command
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show α shows a question mark
        return arguments.run(arguments)
    except (InputError, RunError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    grade = commands.add_parser(
        "grade",
        help="judge your exercises of a lesson on the public cases",
        description="Judges what you have written for a lesson, in seconds. An exercise that is not begun is no error.",
        epilog="The exit code is 0 whatever the points are; 1 if the grader itself failed.",
    )
    grade.add_argument("lesson", type=int, metavar="N", help="number of the lesson")
    grade.add_argument("--json", action="store_true", help="print the whole report as JSON")
    grade.set_defaults(run=_grade)

    fill = commands.add_parser(
        "fill",
        help="fill in solutions that your teacher has released",
        description="Fills solved functions from a teacher's pack into your files, where nothing is written yet. What "
        "you have written stays.",
    )
    fill.add_argument("pack", type=Path, metavar="PACK.zip", help="the pack")
    which = fill.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="replace your own too; your file is kept beside the new one")
    which.add_argument(
        "--only", nargs="+", default=[], metavar="ID", help="fill these exercises (3.02 …), your own of them too"
    )
    fill.set_defaults(run=_fill)


def _grade(arguments: argparse.Namespace) -> int:
    import json

    from classroom import grading
    from classroom.reports.text import printed_lines, report_text

    report = grading.grade_own(ROOT, public(arguments.lesson))
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join([report_text(report), *printed_lines(report)]))
    return RunError.exit_code if any(e["status"] == "error" for e in report["exercises"]) else 0


def _fill(arguments: argparse.Namespace) -> int:
    from classroom.fill import fill, read_pack

    for line in fill(ROOT, read_pack(arguments.pack), arguments.only, arguments.all):
        print(line)
    return 0


def public(lesson: int) -> Recorded:
    """The public cases of a lesson: as recorded in a student's copy of the course, else drawn.

    Raises
    ------
    InputError
        If the lesson has no exercises.
    """
    if importlib.util.find_spec("classroom.assignment"):
        assignment = importlib.import_module("classroom.assignment")
        return assignment.complete(assignment.inputs(lesson, assignment.PUBLIC_SEED))
    folder = Path(__file__).resolve().parent / "public"
    there = sorted(int(path.name.removeprefix("lesson_")) for path in folder.glob("lesson_*"))
    if lesson not in there:
        raise InputError(f"lesson {lesson} has no exercises; there are {', '.join(map(str, there))}")
    return load_recorded(folder / f"lesson_{lesson:02d}")


if __name__ == "__main__":
    sys.exit(main())
