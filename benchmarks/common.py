"""What all benchmarks share: sizes, fresh processes, pairs and their ratios, the machine, result files."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
BLAS_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")
"""Settings of the environment that choose how matrix products run; they are recorded, never changed."""


@dataclass(frozen=True)
class Size:
    """A model and its batch: V, T, L, H, C, B."""

    vocab_size: int
    n_positions: int
    n_layer: int
    n_head: int
    n_embd: int
    batch_size: int

    @property
    def sizes(self) -> dict[str, int]:
        """The model's part, under the names of `GPTConfig`."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.batch_size * self.n_positions

    @property
    def n_parameters(self) -> int:
        """Without the position table, as nanoGPT counts."""
        C = self.n_embd
        return self.vocab_size * C + self.n_layer * (12 * C * C + 13 * C) + 2 * C

    @property
    def flops(self) -> float:
        """Of a step, forward and backward: 6N + 12·L·C·T a token, nanoGPT's rule (masked scores count)."""
        return self.tokens * (6 * self.n_parameters + 12 * self.n_layer * self.n_embd * self.n_positions)


SIZES = {
    "mini": Size(vocab_size=65, n_positions=64, n_layer=4, n_head=4, n_embd=128, batch_size=12),
    "mini512": Size(vocab_size=512, n_positions=128, n_layer=4, n_head=4, n_embd=128, batch_size=16),
    "10m": Size(vocab_size=65, n_positions=256, n_layer=6, n_head=6, n_embd=384, batch_size=4),
}


# ------------------------------------------------------------------------------------------ fresh processes


def run_child(module: str, task: Mapping[str, Any], threads: int | None = None) -> dict[str, Any]:
    """Run ``python -m module --child TASK`` in a process of its own and give back the JSON of its last line.

    `others` is added: how many cores everything else on the machine used meanwhile. It should be near 0.
    """
    env = dict(os.environ)
    if threads is not None:
        env |= {name: str(threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    busy, own, began = machine_seconds(), children_seconds(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, "--child", json.dumps(task)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} {json.dumps(task)} failed with exit code {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    elapsed = time.perf_counter() - began
    others = (machine_seconds() - busy - (children_seconds() - own)) / elapsed
    result["others"] = round(max(0.0, others), 2)
    return result


def child_task(argv: Sequence[str]) -> dict[str, Any] | None:
    """The task, in a process that `run_child` started."""
    return json.loads(argv[1]) if argv[:1] == ["--child"] else None


def machine_seconds() -> float:
    """CPU seconds that the whole machine has spent at work since it started; 0 where that is not known."""
    try:
        fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def wait_for_quiet(limit: float = 120.0, busy: float = 0.15) -> bool:
    """Wait, `limit` seconds at most, until all else uses less than `busy` cores for two seconds."""
    end = time.monotonic() + limit
    while True:
        before, own = machine_seconds(), children_seconds()
        time.sleep(2.0)
        if (machine_seconds() - before - (children_seconds() - own)) / 2.0 < busy:
            return True
        if time.monotonic() > end:
            return False


def peak_megabytes() -> float:
    """Peak resident memory of this process and its living children; what the children share with it counts once."""
    try:
        own = _status("self", "VmHWM")
        task = Path("/proc/self/task")
        pids = [pid for thread in task.iterdir() for pid in (thread / "children").read_text().split()]
    except OSError:
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
    return own + sum(_status(pid, "VmHWM") - _status(pid, "RssShmem") for pid in pids)


def _status(pid: str, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


# ---------------------------------------------------------------------------------------------- pairs


@dataclass
class Comparison:
    """Measurements of both sides, taken in turns: the first of one side belongs to the first of the other."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Their time over ours, pair by pair: above 1 we are quicker."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def text(self) -> str:
        """Median of the ratios, with the smallest and the largest."""
        r = self.ratios
        return f"{statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})"


def in_turns(
    measures: Mapping[str, Callable[[], dict[str, Any]]], pairs: int, quiet: float = 120.0
) -> dict[str, list[dict[str, Any]]]:
    """Call all measures in turn, `pairs` times over, waiting for a quiet machine before each."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in measures}
    for i in range(pairs):
        for name, measure in measures.items():
            if quiet and not wait_for_quiet(quiet):
                note("the machine is busy with other work: figures will be off")
            result = measure()
            results[name].append(result)
            shown = {k: round(v, 3) for k, v in result.items() if isinstance(v, (int, float))}
            note(f"  {i + 1}/{pairs} {name}: {shown}")
    return results


def note(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def median_time(
    function: Callable[[], Any],
    seconds: float = 0.5,
    least: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median time of a call, after one to warm up."""
    function()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times)


# ---------------------------------------------------------------------------------------------- records


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    import numpy as np
    import threadpoolctl

    assert np.__version__  # loaded, so that its BLAS is in the list below
    blas = [f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip()
            for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]  # fmt: skip
    versions = {}
    for name in ("numpy", "torch", "transformers", "tokenizers", "tiktoken", "regex"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "blas": blas,
        "environment": {name: os.environ[name] for name in BLAS_VARIABLES if name in os.environ},
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """Model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_line(record: Mapping[str, Any]) -> str:
    """The machine in one line of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    line = (
        f"{record['date']}; {record['cores']} cores of {record['cpu']}; "
        f"Python {record['python']}, {versions}; BLAS of NumPy: {', '.join(record['blas'])}"
    )
    if record["environment"]:
        line += "; environment " + ", ".join(f"{k}={v}" for k, v in record["environment"].items())
    return line


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write_results(name: str, record: Mapping[str, Any], text: str) -> None:
    """Print the table and write ``results/NAME.json`` and ``results/NAME.md``."""
    print("\n" + text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    note(f"written to {RESULTS / name}.json and .md")
