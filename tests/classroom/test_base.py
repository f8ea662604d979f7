"""The course that a submission's files are put into."""

from __future__ import annotations

from classroom import assignment, base, source


def test_earlier_lessons_are_solved_and_no_others() -> None:
    lesson = 7
    files = base.files(lesson)
    assert not any(b"SOLUTION" in content for content in files.values())
    solved = 0
    for exercise in assignment.every():
        path = source.path_of(exercise.function)
        ours = source.suite((base.ROOT / path).read_text(encoding="utf-8"), path, exercise.name)
        theirs = source.suite(files[path].decode(), path, exercise.name)
        assert ours is not None
        assert theirs is not None
        assert source.same_code(ours, theirs) == (exercise.lesson < lesson), exercise.id
        assert (f"exercise {exercise.id} is not written yet" in theirs) == (exercise.lesson >= lesson), exercise.id
        solved += exercise.lesson < lesson
    assert solved > 30
