"""Where a training step's time goes, by operation, and what each operation's fast form gains over its
reference.

One worker's share of the work: half of the batch, one BLAS thread, one process. Times are CPU seconds of the
thread, so that other work on the machine disturbs them little.

    python -m benchmarks.profile_step [--config mini] [--whole] [--no-gains]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from benchmarks.common import (
    SIZES,
    Size,
    child_task,
    machine,
    machine_line,
    markdown_table,
    run_child,
    write_results,
)

MODULE = "benchmarks.profile_step"
MATRIX_PRODUCTS = ("linear_forward", "linear_backward_input", "linear_backward_weight")


class Timers:
    """Wraps every operation of a backend's table; an operation called by another counts in the outer one."""

    def __init__(self, ops: Any) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.calls: dict[str, int] = defaultdict(int)
        self.work: dict[str, float] = defaultdict(float)
        self._step: dict[str, float] = defaultdict(float)
        for name, function in vars(ops).items():
            setattr(ops, name, self._wrap(name, function))

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            result = function(*args, **kwargs)
            self._step[name] += time.thread_time() - start
            self.calls[name] += 1
            if name in MATRIX_PRODUCTS:
                self.work[name] += matrix_flops(name, args)
            else:
                self.work[name] += sum(a.nbytes for a in flat_arrays((args, result)))
            return result

        return timed

    def end_step(self) -> None:
        """Close the books of one step."""
        for name in self.calls:
            self.seconds[name].append(self._step[name])
        self._step.clear()

    def forget(self) -> None:
        """Start anew, after warming up."""
        for book in (self.seconds, self.calls, self.work, self._step):
            book.clear()


def matrix_flops(name: str, args: tuple[Any, ...]) -> float:
    """Of one call of a linear operation."""
    first, second = args[0], args[1]
    rows = first.size // first.shape[-1]
    return 2.0 * rows * first.shape[-1] * (second.shape[-1] if name != "linear_backward_input" else second.shape[0])


def flat_arrays(value: Any) -> list[Any]:
    """All arrays in nested tuples and lists, each once."""
    found: dict[int, Any] = {}

    def walk(item: Any) -> None:
        if hasattr(item, "nbytes"):
            found[id(item)] = item
        elif isinstance(item, (tuple, list)):
            for part in item:
                walk(part)

    walk(value)
    return list(found.values())


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What a child process does: times a step, by operation if asked."""
    import numpy as np

    from benchmarks.training_speed import batches
    from kernels import get_backend
    from kernels.memory import keep_freed_memory
    from minigpt import GPT, GPTConfig
    from minigpt.objectives import LanguageModelling
    from minigpt.optim import AdamW
    from minigpt.parallel import Comm, Replica
    from minigpt.parameters import FlatParameters

    keep_freed_memory()
    size = Size(**task["size"])
    backend = get_backend("numpy", task["reference"])
    model = GPT(GPTConfig(**size.sizes), seed=0, backend=backend)
    parameters = AdamW.order(model.parameters(), (), 0.1)
    optimizer = AdamW(parameters, backend, (), (0.9, 0.99), 1e-8, 0.1)
    flat = FlatParameters(parameters, backend)
    replica = Replica(model, LanguageModelling(), flat, optimizer, Comm())
    timers = Timers(backend.ops) if task["by_op"] else None
    data = [{"ids": ids, "targets": targets} for ids, targets in batches(size)]
    rates = [1e-3] * len(optimizer.segments)
    times = []
    warmup = max(3, task["steps"] // 4)
    for i in range(warmup + task["steps"]):
        if i == warmup and timers is not None:
            timers.forget()
        start = time.thread_time()
        replica.step(data[i % len(data)], size.tokens, 1, i, rates, 1.0, 0)
        times.append(time.thread_time() - start)
        if timers is not None:
            timers.end_step()
    result: dict[str, Any] = {"ms": float(np.median(times[warmup:])) * 1e3}
    if timers is not None:
        steps = task["steps"]
        result["ops"] = {
            name: {
                "ms": statistics.median(timers.seconds[name]) * 1e3,
                "calls": timers.calls[name] / steps,
                "work": timers.work[name] / steps,
            }
            for name in timers.calls
        }
    return result


def report(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    total, ops = record["by_op"]["ms"], record["by_op"]["ops"]
    rows = []
    for name, op in sorted(ops.items(), key=lambda item: -item[1]["ms"]):
        unit = "GFLOP/s" if name in MATRIX_PRODUCTS else "GB/s"
        rate = op["work"] / op["ms"] / 1e6 if op["ms"] else 0.0
        rows.append([name, f"{op['ms']:.2f}", f"{op['ms'] / total:.1%}", f"{op['calls']:.0f}", f"{rate:.0f} {unit}"])
    rest = total - sum(op["ms"] for op in ops.values())
    rows.append(["everything else", f"{rest:.2f}", f"{rest / total:.1%}", "", ""])
    parts = [
        f"# Where a step's time goes: {record['name']}",
        machine_line(record["machine"]),
        f"{record['size']}, one process, one BLAS thread: {total:.2f} ms of CPU time a step with the timers, "
        f"{record['ms']:.2f} ms without. GB/s counts what goes in and comes out of an operation once; one "
        "that passes over it several times shows less than the memory gives.",
        markdown_table(["operation", "ms", "share", "calls", "rate"], rows),
    ]
    if record["gains"]:
        gains = [
            [op, f"{ms:.2f}", f"{ms - record['ms']:+.2f}", f"{ms / record['ms']:.2f}"]
            for op, ms in sorted(record["gains"].items(), key=lambda item: -item[1])
        ]
        parts += [
            "What each fast form gains: the whole step with that operation's reference form instead.",
            markdown_table(["reference form of", "ms a step", "slower by", "ratio"], gains),
        ]
    return "\n\n".join(parts)


def main() -> None:
    task = child_task(sys.argv[1:])
    if task is not None:
        print(json.dumps(measure(task)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=list(SIZES), default="mini")
    parser.add_argument("--whole", action="store_true", help="the whole batch instead of one worker's half")
    parser.add_argument("--steps", type=int, help="steps to time")
    parser.add_argument("--no-gains", action="store_true", help="leave out the comparison with the reference forms")
    arguments = parser.parse_args()
    from benchmarks.training_speed import STEPS
    from kernels.backend import OPS

    size = SIZES[arguments.config]
    if not arguments.whole:
        size = replace(size, batch_size=size.batch_size // 2)
    steps = arguments.steps or STEPS[arguments.config]

    def child(reference: tuple[str, ...] = (), by_op: bool = False) -> dict[str, Any]:
        task = {"size": asdict(size), "steps": steps, "reference": reference, "by_op": by_op}
        return run_child(MODULE, task, threads=1)

    record: dict[str, Any] = {
        "name": arguments.config,
        "machine": machine(),
        "size": asdict(size),
        "by_op": child(by_op=True),
        "ms": child()["ms"],
        "gains": {},
    }
    if not arguments.no_gains:
        record["gains"] = {op: child((op,))["ms"] for op in OPS if op != "dropout"}
        record["gains"]["all"] = child(tuple(OPS))["ms"]
    write_results(f"profile_{arguments.config}", record, report(record))


if __name__ == "__main__":
    main()
