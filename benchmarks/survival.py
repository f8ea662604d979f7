"""Training that is killed, again and again, and goes on: the final weights must be the uninterrupted run's bytes.

    python -m benchmarks.survival --kills 200

A tiny model trains on two workers with a checkpoint every other step. SIGKILL hits it at a random moment; ``--resume``
goes on, is killed too, and so on until the run gets to its end; then the next run begins, until enough kills have hit.
Half of the moments are drawn from a whole run's length, start-up included. The other half are meant for the writes:
after a random while the directory is watched for a temporary file, and the kill follows within milliseconds.
What a kill hit is told by what it left: a temporary file means that a write was under way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, machine, machine_line, markdown_table, note, write_results
from minigpt import files
from minigpt.training import checkpoints

STEPS = 80
SETTINGS = {
    "preset": "nano", "tokenizer": "char", "steps": STEPS, "batch-size": 4, "dropout": 0.1, "warmup": 5,
    "eval-every": 10, "eval-windows": 20, "checkpoint-every": 2, "log-every": 1, "workers": 2,
}  # fmt: skip
FLAGS = ("--keep-best", "--quiet")
HITS = {
    "start": "before the first step of a sitting",
    "steps": "between writes",
    "checkpoint": "inside the write of a checkpoint",
    "other write": "inside another write (record, log, model)",
    "end": "after the last step",
}


@dataclass
class Report:
    """What happened.

    Attributes
    ----------
    kills : Counter
        By what the kill hit, a key of `HITS`.
    per_run : list of int
        Kills that each finished run survived.
    different : list of str
        What was not as in the uninterrupted run.
    seconds : float
    """

    kills: Counter[str] = field(default_factory=Counter)
    per_run: list[int] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    seconds: float = 0.0


def survive(kills: int, seed: int = 0, progress: bool = False) -> Report:
    """Kill runs until so many kills have hit; each run goes on until it has finished, and is then compared.

    Parameters
    ----------
    kills : int
    seed : int
        Of the moments. What a moment hits still depends on the machine.
    progress : bool
        Say on stderr how far it is.

    Raises
    ------
    RuntimeError
        If a run fails for another reason than a kill.
    """
    rng = random.Random(seed)
    report, began = Report(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(50)]
        text.write_text(" ".join(rng.choices(words, k=2000)))
        whole = Path(folder, "whole")
        _finish(_start(text, whole))
        length = time.monotonic() - began
        expected = _outcome(whole)
        while (total := report.kills.total()) < kills:
            out = Path(folder, f"run-{len(report.per_run)}")
            hits = 0
            while total + hits < kills:
                hit = _kill(_start(text, out), out, rng, length)
                if hit is None:  # it was quicker
                    break
                report.kills[hit] += 1
                hits += 1
            else:
                _finish(_start(text, out))
            found = _outcome(out)
            names = expected.keys() | found.keys()
            report.different += [f"{out.name}: {n}" for n in sorted(names) if expected.get(n) != found.get(n)]
            report.per_run.append(hits)
            if progress:
                note(f"{report.kills.total()} kills, {dict(report.kills)}, different: {report.different}")
    report.seconds = time.monotonic() - began
    return report


def _start(text: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "minigpt", "train", "--data", str(text), "--out", str(out), *FLAGS]
    for name, value in SETTINGS.items():
        command += [f"--{name}", str(value)]
    if out.exists():
        command.append("--resume")
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_die_with_parent
    )


def _die_with_parent() -> None:
    # Whoever kills this program means the training too.
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _finish(process: subprocess.Popen) -> None:
    _, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with exit code {process.returncode}: {err.decode()}")


def _kill(process: subprocess.Popen, out: Path, rng: random.Random, length: float) -> str | None:
    """Kill a run at a random moment; what that hit, or None if the run was at its end before."""
    there = checkpoints(out)
    before = int(there[-1].stem.removeprefix("step-")) if there else 0
    in_a_write = rng.random() < 0.5
    moment = time.monotonic() + rng.uniform(0.0, length)
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.001)
    if in_a_write:
        while process.poll() is None and not _temporaries(out):
            pass  # asleep it would miss them: a write takes milliseconds
        time.sleep(rng.uniform(0.0, 0.003))
    process.kill()
    _, err = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode > 0:
        raise RuntimeError(f"a run ended with exit code {process.returncode}: {err.decode()}")
    left = _temporaries(out)
    if any(path.parent.name == "checkpoints" for path in left) or len(checkpoints(out)) > 1:
        return "checkpoint"
    if left:
        return "other write"
    after = _step(out)
    return "end" if after == STEPS else "steps" if after > before else "start"


def _temporaries(out: Path) -> list[Path]:
    """Files and directories of unfinished writes."""
    found = []
    for folder in (out, out / "checkpoints"):
        try:
            found += [Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(".")]
        except FileNotFoundError:
            continue
    return found


def _step(out: Path) -> int:
    """The last step in the log."""
    try:
        lines = (out / "log.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith(b"\n") else 0


def _outcome(out: Path) -> dict[str, Any]:
    """All files of a finished run with their content, but for times."""
    outcome: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        outcome[name] = path.read_bytes() if path.is_file() else None
    lines = [json.loads(line) for line in outcome["log.jsonl"].splitlines()]
    outcome["log.jsonl"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    result = json.loads(outcome["run.json"])["result"]
    outcome["run.json"] = {k: v for k, v in result.items() if k != "seconds"}
    for path in checkpoints(out):
        tensors, _ = files.load_tensors(path)
        outcome[str(path.relative_to(out))] = {name: array.tobytes() for name, array in tensors.items()}
    return outcome


def main() -> int:
    """Run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    report = survive(arguments.kills, arguments.seed, progress=True)
    record = {"machine": machine(), "settings": SETTINGS, "seed": arguments.seed, **vars(report)}
    rows = [[text, report.kills[key]] for key, text in HITS.items()]
    text = "\n".join(
        [
            "# Kills survived",
            "",
            machine_line(record["machine"]),
            "",
            markdown_table(["SIGKILL", "times"], [*rows, ["together", report.kills.total()]]),
            "",
            f"{len(report.per_run)} runs of {STEPS} steps finished, after {min(report.per_run)} to "
            f"{max(report.per_run)} kills each; different from the uninterrupted run: "
            f"{', '.join(report.different) or 'none'}. {report.seconds:.0f} s.",
        ]
    )
    write_results("survival", record, text)
    return 1 if report.different else 0


if __name__ == "__main__":
    sys.exit(main())
