"""A grader for tests of the class run: quick, and told by the submission itself what is to go wrong with it."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from classroom.exercise import Case, Exercise, Wrong
from tests.classroom.reports_data import exercise, report


def _no_cases(rng: np.random.Generator) -> list[Case]:
    return []


EXERCISES = tuple(
    Exercise(f"7.{n:02d}", f"kernels.gelu:f{n}", f"Exercise {n}", points, _no_cases, (Wrong("w", "h", "f", "r"),))
    for n, points in ((1, 2), (2, 4))
)


def grade(tree: Path, lesson: int, secret: bytes, level: str) -> dict[str, Any]:
    """Points that depend on the file and on the secret, unless the file's first line asks for a fault."""
    path = tree / "kernels/gelu.py"
    source = path.read_text() if path.exists() else ""
    wish = source.split("\n", 1)[0].removeprefix("# ")
    with (tree.parents[3] / "graded.txt").open("a") as log:
        log.write(f"{tree.name}\n")
    if wish == "kill the worker" or (wish == "kill the worker once" and _first_time(tree)):
        os.kill(os.getpid(), signal.SIGKILL)
    if wish.startswith("leave a file"):
        Path(tempfile.mkdtemp(), "solution.py").write_text("")
        with (tree.parents[3] / "left.txt").open("a") as log:
            log.write(f"{Path(tempfile.gettempdir()).parents[1]}\n")
        if wish.endswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
    if wish == "raise":
        raise RuntimeError("the reference \x1b[31m failed")
    if wish == "exit":
        os._exit(0)  # without a row
    if wish == "forge":
        return report([exercise(1, 99, 2, "passed"), exercise(2, 4, 4, "passed")])
    if wish == "drop":
        return report([exercise(1, 2, 2, "passed")])
    if wish == "nothing right":
        return report([exercise(1, 0, 2, "failed"), exercise(2, 0, 4, "failed")])
    if wish == "sleep":
        time.sleep(60)
    if wish == "short sleep":
        time.sleep(0.3)
    score = hashlib.sha256(secret + source.encode()).digest()[0] % 16 / 4
    made = report(
        [
            exercise(1, 2, 2, "passed"),
            exercise(2, score, 4, "failed", f"worth {score}", diagnosis="no-scale"),
        ]
    )
    if wish == "suspicious":
        told = "A person has to look at this: the process that watches over it was stopped from inside."
        made["exercises"][1] |= {"status": "suspicious", "points": 0, "message": told}
        made["total"] = 2
    if wish == "half an error":
        made["exercises"][1] |= {"status": "error", "points": 0}
        made["total"] = 2
    return made


def _first_time(tree: Path) -> bool:
    mark = tree.parent / f"{tree.name}.seen"
    if mark.exists():
        return False
    mark.touch()
    return True
