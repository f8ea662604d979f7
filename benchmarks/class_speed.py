"""Grading a class: time, memory, and whether a killed run goes on without losing or repeating a row.

The submissions are made of what the course knows about its exercises: solutions in several styles, typical mistakes,
stubs, and a few that never end, take all memory, start processes or do not even parse. They are graded once without
interruption, and once more, with the same secret, by a run that is killed with SIGKILL when half of the rows are there,
and started again. The two class tables must be equal to the last byte.

    python -m benchmarks.class_speed                         # 200 submissions of lesson 1
    python -m benchmarks.class_speed --students 20 --lesson 7
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT, machine, machine_line, markdown_table, note, wait_for_quiet, write_results
from classroom import assignment, source
from classroom.exercise import Exercise

KINDS = {"right": 0.60, "alternative": 0.14, "mistake": 0.16, "stub": 0.08, "hostile": 0.02}
"""Share of the exercises of a submission that are of this kind."""
HOSTILE = (
    "while True:\n    pass\n",
    "hoard = []\nwhile True:\n    hoard.append(bytearray(10**8))\n",
    "import os\nos._exit(0)\n",
    "import subprocess\nreturn subprocess.run(['sleep', '100'])\n",
)
UNREADABLE = b"def broken(:\n"


@dataclass
class Graded:
    """One run of the command.

    Attributes
    ----------
    seconds : float
    peak_megabytes : float
        Largest proportional set size of all its processes together, looked at four times a second.
    rows : int
        There when it ended.
    """

    seconds: float
    peak_megabytes: float
    rows: int


def submission(exercises: tuple[Exercise, ...], rng: random.Random) -> tuple[dict[str, bytes], Counter[str]]:
    """The files of a made-up student, and of how many exercises of each kind they are made."""
    bodies: dict[str, dict[str, str]] = {}
    made: Counter[str] = Counter()
    for exercise in exercises:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        made[kind] += 1
        reference = assignment.reference_body(exercise.function)
        if kind == "alternative":
            body = rng.choice(exercise.alternatives).body
        elif kind == "mistake":
            wrong = rng.choice(exercise.wrong)
            body = source.edited(reference, wrong.find, wrong.replace, wrong.label)
        elif kind == "stub":
            body = f"raise NotImplementedError({exercise.id!r})\n"
        elif kind == "hostile":
            body = rng.choice(HOSTILE)
        else:
            body = reference
        bodies.setdefault(source.path_of(exercise.function), {})[exercise.name] = body
    files = {
        path: source.substitute((ROOT / path).read_text(encoding="utf-8"), path, of_file).encode()
        for path, of_file in bodies.items()
    }
    if rng.random() < 0.01:
        files[min(files)] = UNREADABLE
        made["unreadable"] += 1
    return files, made


def make_class(folder: Path, lesson: int, students: int, seed: int) -> Counter[str]:
    """Write the submissions and the class list; how many exercises of each kind there are."""
    rng, exercises = random.Random(seed), assignment.load(lesson)
    made: Counter[str] = Counter()
    names = [f"student{i:03d}" for i in range(students)]
    for name in names:
        files, kinds = submission(exercises, rng)
        made += kinds
        for path, data in files.items():
            (folder / "sent" / name / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "sent" / name / path).write_bytes(data)
    with (folder / "class.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "name"], *([name, name.title()] for name in names)])
    return made


def grade(folder: Path, out: str, lesson: int, kill_at: int = 0) -> Graded:
    """Run ``grade-all``; with `kill_at`, until so many rows are there, and then kill it and nothing else."""
    command = [
        sys.executable, "-m", "classroom", "grade-all", "--lesson", str(lesson), "--submissions", str(folder / "sent"),
        "--roster", str(folder / "class.csv"), "--out", str(folder / out), "--secret", str(folder / "secret"),
    ]  # fmt: skip
    rows, peak, began = folder / out / "staff" / "rows", 0.0, time.perf_counter()
    said = folder / f"{out}.txt"
    with (
        said.open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            peak = max(peak, tree_megabytes(process.pid))
            if kill_at and rows.is_dir() and len(list(rows.glob("*.json"))) >= kill_at:
                process.kill()
            time.sleep(0.25)
    if process.returncode and not kill_at:
        errors = [error for path in rows.glob("*.json") if (error := json.loads(path.read_bytes())["error"])]
        raise SystemExit(f"exit code {process.returncode}: {errors}\n{said.read_text(errors='replace')[-2000:]}")
    return Graded(time.perf_counter() - began, peak, len(list(rows.glob("*.json"))))


def tree_megabytes(pid: int) -> float:
    """Memory of a process and everything under it; what they share counts once."""
    total = 0
    try:
        for process in [(root := psutil.Process(pid)), *root.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it has ended, or is one that the sandbox does not let us look into
    except psutil.NoSuchProcess:
        pass
    return total / 1e6


def left_running(folder: Path) -> list[int]:
    """Processes that still have this class in their arguments or their working directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def measure(lesson: int, students: int, seed: int) -> dict[str, Any]:
    """Both runs of a class, and what differs between their tables."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = make_class(folder, lesson, students, seed)
        whole = grade(folder, "whole", lesson)
        note(f"without interruption: {whole}")
        killed = grade(folder, "killed", lesson, kill_at=students // 2)
        time.sleep(2.0)  # for the workers to see that their parent is gone
        left = left_running(folder)
        resumed = grade(folder, "killed", lesson)
        note(f"killed: {killed}, resumed: {resumed}, left running: {left}")
        tables = [(folder / out / "class.csv").read_bytes() for out in ("whole", "killed")]
        _, *lines = (row[0] for row in csv.reader(tables[1].decode("utf-8-sig").splitlines()))
        return {
            "made": dict(made),
            "whole": vars(whole),
            "killed": vars(killed),
            "resumed": vars(resumed),
            "left_running": len(left),
            "rows": len(lines),
            "different_students": len(set(lines)),
            "equal": tables[0] == tables[1],
        }


def main() -> int:
    """Run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=200)
    parser.add_argument("--lesson", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of what the students have written")
    arguments = parser.parse_args()
    wait_for_quiet()
    found = measure(arguments.lesson, arguments.students, arguments.seed)
    record = {"machine": machine(), "settings": vars(arguments), **found}
    rows = [
        [what, f"{found[key]['seconds']:.0f}", f"{found[key]['peak_megabytes']:.0f}", found[key]["rows"]]
        for what, key in (("whole class", "whole"), ("until killed", "killed"), ("gone on", "resumed"))
    ]
    kinds = ", ".join(f"{n} {kind}" for kind, n in found["made"].items())
    whole = found["rows"] == found["different_students"] == arguments.students
    text = "\n".join(
        [
            "# Grading a class",
            "",
            machine_line(record["machine"]),
            "",
            f"{arguments.students} submissions of lesson {arguments.lesson}; exercises by kind: {kinds}.",
            "",
            markdown_table(["run", "seconds", "peak MB", "rows"], rows),
            "",
            f"After the kill {found['left_running']} processes were left; {found['rows']} rows of "
            f"{found['different_students']} students; the class table is "
            f"{'equal to' if found['equal'] else 'different from'} that of the uninterrupted run.",
        ]
    )
    write_results("class_speed", record, text)
    return 0 if whole and found["equal"] and not found["left_running"] else 1


if __name__ == "__main__":
    sys.exit(main())
