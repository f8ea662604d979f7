"""The course that a submission's files are put into, and the grading of one submission of a class.

For lesson N that is the handout with the exercises of earlier lessons solved: nobody loses points twice for one
mistake. The bodies of lesson N and of later lessons are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classroom import assignment, grading, handout, source

ROOT = Path(__file__).resolve().parent.parent


def files(lesson: int, root: Path = ROOT) -> dict[str, bytes]:
    """The course for grading a lesson: path → content of every module.

    Parameters
    ----------
    lesson : int
    root : Path, optional
        This repository.
    """
    messages = handout.stub_messages(root)
    earlier = {exercise.function for exercise in assignment.every() if exercise.lesson < lesson}
    found = {}
    for path, file in source.modules(root):
        solved = {function.split(":")[1] for function in earlier if source.path_of(function) == path}
        text = file.read_text(encoding="utf-8")
        found[path] = handout.module(text, path, messages.get(path, {}), solved).encode()
    return found


def grade_submission(
    tree: Path, lesson: int, secret: bytes, level: str = "auto", course: Mapping[str, bytes] | None = None
) -> dict[str, Any]:
    """Grade one submission of a class.

    Parameters
    ----------
    tree : Path
        Its graded files, under their names in the course.
    lesson : int
    secret : bytes
        Decides the inputs; the same for the whole class.
    level : str, optional
        Isolation; see `classroom.sandbox`.
    course : mapping of str to bytes, optional
        What `files` gives for the lesson, for whoever has it already.

    Raises
    ------
    InputError
        As root on a machine without isolation.
    """
    inputs = assignment.inputs(lesson, secret)
    course = files(lesson) if course is None else course
    return grading.grade(tree, inputs, assignment.complete, course, level=level, of_class=True)
