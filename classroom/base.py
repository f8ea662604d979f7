"""The course that a submission's files are put into, and the grading of one submission of a class.

For lesson N that is the handout with the exercises of earlier lessons solved: nobody loses points twice for one
mistake. The bodies of lesson N and of later lessons are not in it.
"""

from __future__ import annotations

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
        text = file.read_text(encoding="utf-8")
        module = path.removesuffix(".py").replace("/", ".")
        bodies = source.marked(text, path)
        solved = {name: body.body for name, body in bodies.items() if f"{module}:{name}" in earlier}
        text = source.substitute(text, path, solved) if solved else text
        found[path] = handout.module(text, path, messages.get(path, {})).encode()
    return found


def grade_submission(tree: Path, lesson: int, secret: bytes, level: str = "auto") -> dict[str, Any]:
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

    Raises
    ------
    InputError
        As root on a machine without isolation.
    """
    inputs = assignment.inputs(lesson, secret)
    return grading.grade(tree, inputs, assignment.complete, files(lesson), level=level, of_class=True)
