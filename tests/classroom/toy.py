"""A small course to try the grader on: three functions in two files, which need nothing but NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from classroom import grading
from classroom.recorded import Outcome, Recorded, RecordedCase, RecordedExercise, Tolerance
from classroom.sandbox import Limits

ATTACKS = Path(__file__).with_name("attacks")
LIMITS = Limits(patience_seconds=3.0, memory_bytes=1 << 30)
TOLERANCE = Tolerance(1e-9, 1e-5, 1e-3)

HEAD = "import numpy as np\n\n"
AFFINE = "def affine(x, weight, bias):\n    return x @ weight + bias\n\n\n"
MOMENTS = "def moments(x):\n    return x.mean(0), x.var(0)\n\n\n"
COUNTS = "def counts(ids, size):\n    return np.bincount(ids, minlength=size)\n"
STUB = '    raise NotImplementedError("not written yet")\n\n\n'

BASE = {
    "kernels/__init__.py": b"from kernels import more, toy\n",
    "kernels/toy.py": (HEAD + "def affine(x, weight, bias):\n" + STUB + "def moments(x):\n" + STUB).encode(),
    "kernels/more.py": (HEAD + "def counts(ids, size):\n" + STUB).encode(),
}
RIGHT = {"kernels/toy.py": HEAD + AFFINE + MOMENTS, "kernels/more.py": HEAD + COUNTS}


def attacked(name: str, **constants: Any) -> dict[str, str]:
    """The right files, with `affine` from an attack."""
    text = (ATTACKS / f"{name}.py").read_text()
    for constant, value in constants.items():
        text = text.replace(f"{constant} = 0\n", f"{constant} = {value!r}\n")
    affine = "def affine(x, weight, bias):\n    return attack(x, weight, bias)\n\n\n"
    return RIGHT | {"kernels/toy.py": text + "\n\n" + HEAD + affine + MOMENTS}


def with_body(body: str) -> dict[str, str]:
    """The right files, with another body of `affine`."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return RIGHT | {"kernels/toy.py": f"{HEAD}def affine(x, weight, bias):\n{lines}\n\n{MOMENTS}"}


def inputs(seed: int = 0, seconds: float = 1.0) -> Recorded:
    """Cases without answers."""
    rng = np.random.default_rng(seed)

    def affine_case(name: str, rows: int, n: int, out: int) -> RecordedCase:
        shapes = {"x": (rows, n), "weight": (n, out), "bias": (out,)}
        return RecordedCase(name, {arg: rng.standard_normal(shape) for arg, shape in shapes.items()})

    affine = (affine_case("plain", 3, 4, 5), affine_case("one row", 1, 2, 3), affine_case("odd sizes", 7, 5, 9))
    moments = (RecordedCase("plain", {"x": rng.standard_normal((4, 3))}), RecordedCase("one", {"x": np.ones((1, 2))}))
    counts = (
        RecordedCase("plain", {"ids": rng.integers(0, 5, 9), "size": 5}),
        RecordedCase("absent last", {"ids": np.array([0, 0, 2]), "size": 6}),
    )

    def exercise(id: str, name: str, points: int, cases: tuple[RecordedCase, ...]) -> RecordedExercise:
        return RecordedExercise(id, f"kernels.{name}", name, points, (), (), "", True, seconds, cases, {})

    return Recorded(
        1,
        (
            exercise("1.01", "toy:affine", 3, affine),
            exercise("1.02", "toy:moments", 2, moments),
            exercise("1.03", "more:counts", 1, counts),
        ),
    )


def answers(exercise: RecordedExercise, args: Mapping[str, Any]) -> Any:
    """What is right."""
    if exercise.id == "1.01":
        return args["x"] @ args["weight"] + args["bias"]
    if exercise.id == "1.02":
        return args["x"].mean(0), args["x"].var(0)
    return np.bincount(args["ids"], minlength=args["size"])


def complete(recorded: Recorded) -> Recorded:
    """The cases with their answers, and two typical mistakes of the first exercise."""

    def completed(exercise: RecordedExercise, case: RecordedCase) -> RecordedCase:
        args, mistakes = case.args, {}
        if exercise.id == "1.01":
            mistakes["no-bias"] = Outcome(args["x"] @ args["weight"], {})
            mistakes["bias-twice"] = Outcome(args["x"] @ args["weight"] + 2 * args["bias"], {})
        return replace(case, expected=Outcome(answers(exercise, args), {}), tolerance=TOLERANCE, mistakes=mistakes)

    def with_hints(exercise: RecordedExercise) -> RecordedExercise:
        hints = {"no-bias": "The bias is not added.", "bias-twice": "The bias is added twice."}
        cases = tuple(completed(exercise, case) for case in exercise.cases)
        return replace(exercise, cases=cases, hints=hints if exercise.id == "1.01" else {})

    return replace(recorded, exercises=tuple(map(with_hints, recorded.exercises)))


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Files below a folder, which is returned."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def grade(folder: Path, files: Mapping[str, str | bytes], level: str = "auto", **settings: Any) -> dict[str, Any]:
    """The report of a submission of these files."""
    recorded = settings.pop("inputs", None) or inputs()
    return grading.grade(write(folder, files), recorded, complete, BASE, level=level, limits=LIMITS, **settings)


def by_id(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Exercises of a report by their id."""
    return {exercise["id"]: exercise for exercise in report["exercises"]}


def points(report: Mapping[str, Any]) -> list[float]:
    """Points of the three exercises."""
    return [exercise["points"] for exercise in report["exercises"]]
