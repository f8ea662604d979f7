"""Training speed and memory against PyTorch: eager and through torch.compile.

Every measurement is a process of its own, and the sides take turns: ours, eager, compiled, ours, eager, …
All start from the same weights, see the same batches and must report the same losses.

    python -m benchmarks.training_speed            # all sizes, five pairs
    python -m benchmarks.training_speed --quick    # one look
    python -m benchmarks.training_speed --scaling  # how time grows with T, C and L
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    SIZES,
    Comparison,
    Size,
    child_task,
    in_turns,
    machine,
    machine_line,
    markdown_table,
    median_time,
    note,
    peak_megabytes,
    run_child,
    write_results,
)

MODULE = "benchmarks.training_speed"
SIDES = ("ours", "eager", "compile")
STEPS = {"mini": 150, "mini512": 50, "10m": 15}
COMPARED = 5
"""Losses of so many first steps are compared; later ones drift apart by the rounding of float32."""
TOLERANCE = 2e-4  # relative, on those losses
AIMS = {"mini": (1.0, 1.2), "mini512": (1.0, 1.2), "10m": (0.9, 1.0)}
"""Least and wanted ratio to the better of PyTorch's two."""


# ---------------------------------------------------------------------------------------------- in the child


def batches(size: Size, count: int = 16) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random windows, the same ones on both sides."""
    tokens = np.random.default_rng(1).integers(
        0, size.vocab_size, (count, size.batch_size, size.n_positions + 1), dtype=np.int64
    )
    return [(np.ascontiguousarray(t[:, :-1]), np.ascontiguousarray(t[:, 1:])) for t in tokens]


def timed_steps(step: Any, size: Size, steps: int) -> dict[str, Any]:
    """Warm up with a quarter as many steps, then time each step."""
    data = batches(size)
    losses, times = [], []
    warmup = max(COMPARED, steps // 4)
    for i in range(warmup + steps):
        ids, targets = data[i % len(data)]
        start = time.perf_counter()
        losses.append(step(ids, targets))
        times.append(time.perf_counter() - start)
    return {
        "ms": statistics.median(times[warmup:]) * 1e3,
        "fastest_ms": min(times[warmup:]) * 1e3,
        "peak_mb": peak_megabytes(),
        "losses": losses[:COMPARED],
        "last_loss": losses[-1],
    }


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What a child process does."""
    if task["side"] == "peak":
        return matrix_product_peak()
    size = Size(**task["size"])
    if task["side"] == "ours":
        from benchmarks.ours import OurTrainer

        with OurTrainer(size.sizes, size.batch_size) as trainer:
            result = timed_steps(trainer.step, size, task["steps"])
            return {**result, "processes": trainer.workers}
    if task["side"] == "torch-peak":
        return torch_product_peak(task["threads"])
    import torch

    from benchmarks.rivals import TorchTrainer

    torch.set_num_threads(task["threads"])
    with np.load(task["weights"]) as file:
        rival = TorchTrainer(size.sizes, dict(file), compiled=task["side"] == "compile")
    return {**timed_steps(rival.step, size, task["steps"]), "threads": torch.get_num_threads()}


def matrix_product_peak(n: int = 1024) -> dict[str, Any]:
    """NumPy's best rate on a large float32 matrix product."""
    a = np.random.default_rng(0).random((n, n), dtype=np.float32)
    return {"gflops": 2 * n**3 / median_time(lambda: a @ a) / 1e9}


def torch_product_peak(threads: int, n: int = 1024) -> dict[str, Any]:
    """PyTorch's best rate on a large float32 matrix product."""
    import torch

    torch.set_num_threads(threads)
    a = torch.rand(n, n)
    return {"gflops": 2 * n**3 / median_time(lambda: a @ a) / 1e9}


# ---------------------------------------------------------------------------------------------- in the parent


def peaks(threads: int) -> dict[str, float]:
    """Matrix-product rates of both libraries, with one thread and with all."""
    size = asdict(SIZES["mini"])
    rates = {}
    for n in sorted({1, threads}):
        rates[f"numpy {n}"] = run_child(MODULE, {"side": "peak"}, threads=n)["gflops"]
        rates[f"torch {n}"] = run_child(MODULE, {"side": "torch-peak", "threads": n, "size": size})["gflops"]
    return {name: round(rate, 1) for name, rate in rates.items()}


def tasks(size: Size, weights: Path, steps: int, threads: int, sides: tuple[str, ...]) -> dict[str, Any]:
    """One measurement a side, each in a fresh process."""

    def measurement(side: str) -> Any:
        task = {
            "side": side,
            "size": asdict(size),
            "weights": str(weights),
            "steps": steps,
            "threads": threads,
        }
        return lambda: run_child(MODULE, task)

    return {side: measurement(side) for side in sides}


def save_weights(size: Size, directory: str) -> Path:
    """Initial weights for PyTorch's side, so that it need not import ours."""
    from minigpt import GPTConfig
    from minigpt.model import initial_weights

    path = Path(directory) / "weights.npz"
    np.savez(path, **initial_weights(GPTConfig(**size.sizes), seed=0))
    return path


def check_same_work(name: str, results: dict[str, list[dict[str, Any]]]) -> float:
    """Largest relative difference between the sides' first losses; stop if it is not rounding."""
    ours = np.array(results["ours"][0]["losses"])
    worst = 0.0
    for side, runs in results.items():
        for run in runs:
            worst = max(worst, float(np.max(np.abs(np.array(run["losses"]) - ours) / ours)))
            if worst > TOLERANCE:
                raise SystemExit(f"{name}: {side} does other work: losses {run['losses']} against {ours.tolist()}")
    return worst


def compare(name: str, size: Size, pairs: int, steps: int, threads: int, quiet: float) -> dict[str, Any]:
    """All sides at one size."""
    note(f"{name}: {size}")
    with tempfile.TemporaryDirectory() as directory:
        weights = save_weights(size, directory)
        results = in_turns(tasks(size, weights, steps, threads, SIDES), pairs, quiet)
    worst = check_same_work(name, results)
    ours = [run["ms"] for run in results["ours"]]
    ratios = {side: Comparison(ours, [run["ms"] for run in results[side]]) for side in SIDES[1:]}
    better = min(SIDES[1:], key=lambda side: statistics.median(run["ms"] for run in results[side]))
    return {
        "size": asdict(size),
        "steps": steps,
        "runs": results,
        "loss_difference": worst,
        "tokens_per_second": {
            s: size.tokens / statistics.median(r["ms"] for r in runs) * 1e3 for s, runs in results.items()
        },
        "gflops": {s: size.flops / statistics.median(r["ms"] for r in runs) / 1e6 for s, runs in results.items()},
        "peak_mb": {s: max(r["peak_mb"] for r in runs) for s, runs in results.items()},
        "ratios": {side: {"text": c.text, "all": c.ratios} for side, c in ratios.items()},
        "better_rival": better,
        "ratio": statistics.median(ratios[better].ratios),
        "least_and_aim": AIMS.get(name),
        "busiest_other": max(r["others"] for runs in results.values() for r in runs),
    }


def report(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows, memory = [], []
    for name, c in record["sizes"].items():
        speed, rate = c["tokens_per_second"], c["gflops"]
        least, aim = c["least_and_aim"]
        rows.append(
            [name, *(f"{speed[s]:,.0f}" for s in SIDES), *(c["ratios"][s]["text"] for s in SIDES[1:]),
             f"{least} / {aim}", *(f"{rate[s]:.0f}" for s in SIDES),
             f"{c['loss_difference']:.0e}", c["busiest_other"]]
        )  # fmt: skip
        peak = c["peak_mb"]
        memory.append(
            [
                name,
                *(f"{peak[s]:.0f}" for s in SIDES),
                f"{peak['ours'] / min(peak['eager'], peak['compile']):.2f}",
            ]
        )
    rates = ", ".join(f"{name} thread{'s' * (name[-1] != '1')}: {rate:.0f}" for name, rate in record["peaks"].items())
    return "\n\n".join(
        [
            "# Training speed",
            machine_line(record["machine"])
            + f"; PyTorch with {record['threads']} threads, ours with as many processes.",
            "Tokens a second; ratio = PyTorch's time over ours in the same pair, median "
            "(smallest-largest), above "
            "1 we are quicker; GFLOP/s by 6N + 12·L·C·T a token; cores that other work took meanwhile.",
            markdown_table(
                [
                    "size",
                    "ours tok/s",
                    "eager tok/s",
                    "compile tok/s",
                    "over eager",
                    "over compile",
                    "least / aim",
                    "ours GFLOP/s",
                    "eager",
                    "compile",
                    "loss differs by",
                    "others",
                ],
                rows,
            ),
            f"Measured matrix-product rate (1024³, float32), GFLOP/s: {rates}.",
            "Peak resident memory in MB (ours: all processes together, shared pages once); the last "
            "column is ours over "
            "the smaller of PyTorch's.",
            markdown_table(["size", "ours", "eager", "compile", "share"], memory),
        ]
    )


def scaling(threads: int, quick: bool, quiet: float) -> None:
    """How the time of a step grows when one of T, C and L doubles."""
    base = Size(vocab_size=65, n_positions=128, n_layer=4, n_head=4, n_embd=128, batch_size=4)
    grown = {
        "T": [replace(base, n_positions=T) for T in (64, 128, 256, 512)],
        "C": [replace(base, n_embd=C, n_head=C // 32) for C in (64, 128, 256, 512)],
        "L": [replace(base, n_layer=L) for L in (2, 4, 8, 16)],
    }
    rows, record = [], {"machine": machine(), "base": asdict(base), "factors": {}}
    for factor, steps_of in grown.items():
        points: dict[str, list[float]] = {"ours": [], "eager": []}
        values = []
        for size in steps_of:
            value = {"T": size.n_positions, "C": size.n_embd, "L": size.n_layer}[factor]
            values.append(value)
            note(f"{factor} = {value}")
            with tempfile.TemporaryDirectory() as directory:
                weights = save_weights(size, directory)
                measures = tasks(size, weights, 10 if quick else 40, threads, ("ours", "eager"))
                results = in_turns(measures, 1 if quick else 3, quiet)
            for side in points:
                points[side].append(statistics.median(run["ms"] for run in results[side]))
        slopes = {side: float(np.polyfit(np.log(values), np.log(ms), 1)[0]) for side, ms in points.items()}
        record["factors"][factor] = {"values": values, "ms": points, "slope": slopes}
        for side, ms in points.items():
            rows.append(
                [
                    factor,
                    side,
                    ", ".join(map(str, values)),
                    ", ".join(f"{t:.1f}" for t in ms),
                    f"{slopes[side]:.2f}",
                ]
            )
    text = "\n\n".join(
        [
            "# How the time of a step grows",
            machine_line(record["machine"]),
            f"From {base}, one factor at a time. The slope is that of log time over log size: 1 is linear, 2 "
            "quadratic. In theory: T between 1 (products with weights) and 2 (attention), C towards 2, L 1.",
            markdown_table(["factor", "side", "values", "ms a step", "slope"], rows),
        ]
    )
    write_results("scaling", record, text)


def main() -> None:
    task = child_task(sys.argv[1:])
    if task is not None:
        print(json.dumps(measure(task)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", choices=list(SIZES), help="only this size; may be given again")
    parser.add_argument("--pairs", type=int, default=5, help="how often every side is measured")
    parser.add_argument("--quick", action="store_true", help="one pair of few steps")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--scaling", action="store_true", help="how time grows with T, C and L, instead")
    parser.add_argument("--quiet", type=float, default=120.0, metavar="S", help="wait so long for an idle machine")
    arguments = parser.parse_args()
    if arguments.scaling:
        scaling(arguments.threads, arguments.quick, arguments.quiet)
        return
    record: dict[str, Any] = {
        "machine": machine(),
        "threads": arguments.threads,
        "peaks": peaks(arguments.threads),
    }
    record["sizes"] = {}
    for name in arguments.config or SIZES:
        steps = math.ceil(STEPS[name] / 4) if arguments.quick else STEPS[name]
        pairs = 1 if arguments.quick else arguments.pairs
        record["sizes"][name] = compare(name, SIZES[name], pairs, steps, arguments.threads, arguments.quiet)
    write_results("training_speed_quick" if arguments.quick else "training_speed", record, report(record))


if __name__ == "__main__":
    main()
