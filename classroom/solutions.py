"""A pack of a lesson's solutions, for students to go on with; see `classroom.fill`."""

from __future__ import annotations

from pathlib import Path

from classroom import assignment, handout, source
from classroom.fill import Solved, write_pack


def solved(root: Path, lesson: int) -> list[Solved]:
    """The functions of a lesson as they are in the handout and as they are solved.

    Parameters
    ----------
    root : path
        This repository.
    lesson : int
    """
    messages = handout.stub_messages(root)
    found = []
    for exercise in assignment.load(lesson):
        path = source.path_of(exercise.function)
        text = (root / path).read_text(encoding="utf-8")
        stub = source.suite(source.strip(text, path, messages[path]), path, exercise.name)
        solution = source.suite(text, path, exercise.name)
        assert stub is not None
        assert solution is not None
        found.append(Solved(exercise.id, exercise.function, stub, solution))
    return found


def pack(root: Path, lesson: int, out: Path) -> int:
    """Write a lesson's pack; gives the number of functions in it."""
    functions = solved(root, lesson)
    write_pack(out, lesson, functions)
    return len(functions)
