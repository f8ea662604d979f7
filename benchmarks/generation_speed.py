"""Generation with a key/value cache at batch 1: ours, transformers' `generate`, a bare PyTorch loop.

All are greedy from the same weights and must give the same tokens. Each measurement is a process of its own,
and the sides take turns.

    python -m benchmarks.generation_speed [--quick]
"""

from __future__ import annotations

import argparse
import json
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
    note,
    peak_megabytes,
    run_child,
    write_results,
)

MODULE = "benchmarks.generation_speed"
SIDES = ("ours", "transformers", "loop", "loop-1-thread")
AIMS = {"transformers": 5.0, "loop": 2.0}
MODELS = {"mini, 256 positions": replace(SIZES["mini"], n_positions=256), "10m": SIZES["10m"]}
PROMPT, NEW = 16, 224


def spread_weights(size: Size) -> dict[str, np.ndarray]:
    """Weights five times as wide as initial ones, so that the greedy token has a clear lead everywhere."""
    from minigpt import GPTConfig
    from minigpt.model import initial_weights

    weights = initial_weights(GPTConfig(**size.sizes, initializer_range=0.1), seed=0)
    return weights


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What a child process does: milliseconds a token, the fastest and the median of a few runs."""
    size = Size(**task["size"])
    prompt = np.random.default_rng(2).integers(0, size.vocab_size, PROMPT).tolist()
    with np.load(task["weights"]) as file:
        weights = dict(file)
    side = task["side"]
    if side == "ours":
        from minigpt import GPT, GPTConfig

        model = GPT(GPTConfig(**size.sizes), seed=0)
        for p in model.parameters():
            p.data[...] = weights[p.name]

        def generate() -> list[int]:
            return model.generate([prompt], max_new_tokens=NEW, temperature=0)[0].tolist()
    else:
        import torch

        from benchmarks.rivals import TorchDecoder, transformers_model

        torch.set_num_threads(1 if side == "loop-1-thread" else task["threads"])
        if side == "transformers":
            rival = transformers_model(size.sizes, weights)
            ids = torch.tensor([prompt])

            def generate() -> list[int]:
                with torch.inference_mode():
                    return rival.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=NEW,
                        do_sample=False,
                        use_cache=True,
                    )[0].tolist()
        else:
            decoder = TorchDecoder(size.sizes, weights)

            def generate() -> list[int]:
                return decoder.generate(prompt, NEW)

    tokens = generate()
    times = []
    for _ in range(task["repeats"]):
        start = time.perf_counter()
        generate()
        times.append((time.perf_counter() - start) / NEW)
    return {
        "ms": statistics.median(times) * 1e3,
        "fastest_ms": min(times) * 1e3,
        "peak_mb": peak_megabytes(),
        "tokens": tokens,
    }


def compare(name: str, size: Size, pairs: int, repeats: int, threads: int, quiet: float) -> dict[str, Any]:
    """All sides on one model."""
    note(f"{name}: {size}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "weights.npz"
        np.savez(path, **spread_weights(size))

        def measurement(side: str) -> Any:
            task = {
                "side": side,
                "size": asdict(size),
                "weights": str(path),
                "repeats": repeats,
                "threads": threads,
            }
            return lambda: run_child(MODULE, task, threads=1 if side == "ours" else None)

        results = in_turns({side: measurement(side) for side in SIDES}, pairs, quiet)
    reference = results["ours"][0]["tokens"]
    for side, runs in results.items():
        for run in runs:
            if run.pop("tokens") != reference:
                raise SystemExit(f"{name}: {side} generates other tokens than ours")
    ours = [run["ms"] for run in results["ours"]]
    ratios = {side: Comparison(ours, [run["ms"] for run in results[side]]) for side in SIDES[1:]}
    return {
        "size": asdict(size),
        "runs": results,
        "ms": {side: statistics.median(run["ms"] for run in runs) for side, runs in results.items()},
        "peak_mb": {side: max(run["peak_mb"] for run in runs) for side, runs in results.items()},
        "ratios": {side: {"text": c.text, "all": c.ratios} for side, c in ratios.items()},
        "busiest_other": max(r["others"] for runs in results.values() for r in runs),
    }


def report(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = []
    for name, c in record["models"].items():
        rows.append(
            [name, *(f"{c['ms'][s]:.3f}" for s in SIDES), *(c["ratios"][s]["text"] for s in SIDES[1:]),
             *(f"{c['peak_mb'][s]:.0f}" for s in SIDES[:3]), c["busiest_other"]]
        )  # fmt: skip
    return "\n\n".join(
        [
            "# Generation speed",
            machine_line(record["machine"]),
            f"Milliseconds a token, batch 1, greedy, {PROMPT} tokens of prompt and {NEW} new ones, "
            "same tokens on all "
            f"sides. PyTorch with {record['threads']} threads (its bare loop also with one), ours "
            "with one BLAS "
            "thread. Ratio = their time over ours, median (smallest-largest); aims: "
            f"{AIMS['transformers']} over transformers, {AIMS['loop']} over the loop. MB: peak "
            "resident memory.",
            markdown_table(
                [
                    "model",
                    "ours",
                    "transformers",
                    "loop",
                    "loop, 1 thread",
                    "over transformers",
                    "over loop",
                    "over loop, 1 thread",
                    "ours MB",
                    "transformers MB",
                    "loop MB",
                    "others",
                ],
                rows,
            ),
        ]
    )


def main() -> None:
    task = child_task(sys.argv[1:])
    if task is not None:
        print(json.dumps(measure(task)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(MODELS), help="only this one; may be given again")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one pair")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--quiet", type=float, default=120.0, metavar="S", help="wait so long for an idle machine")
    arguments = parser.parse_args()
    pairs = 1 if arguments.quick else arguments.pairs
    record: dict[str, Any] = {"machine": machine(), "threads": arguments.threads, "models": {}}
    for name in arguments.model or MODELS:
        record["models"][name] = compare(
            name, MODELS[name], pairs, 2 if arguments.quick else 5, arguments.threads, arguments.quiet
        )
    write_results("generation_speed_quick" if arguments.quick else "generation_speed", record, report(record))


if __name__ == "__main__":
    main()
