"""From one process with one BLAS thread to two: worker processes and ranks of MPI, beside each other, and what more
ranks would give.

Every measurement is a fresh process (or job of mpiexec), and the sides take turns: alone, two processes, two ranks,
alone, … All train the same model on the same batches and must report the same losses.

    python -m benchmarks.scaling            # five turns at `small`
    python -m benchmarks.scaling --quick    # one look at a small model
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import (
    Comparison,
    child_task,
    in_turns,
    machine,
    machine_line,
    markdown_table,
    note,
    run_child,
    write_results,
)
from lessons.common import ranks
from lessons.lesson_14_scaling import (
    BATCH,
    NETWORKS,
    RANKS,
    Link,
    Plan,
    all_reduce_seconds,
    batch_seconds,
    fit_link,
    fixed_part,
    step_seconds,
)
from minigpt.config import preset

MODULE = "benchmarks.scaling"
SMALL = Plan("small", rows=8, tokens=256, steps=8, repeats=0, messages=())
QUICK = Plan("base-s", rows=8, tokens=64, steps=4, repeats=0, messages=())
MESSAGES = (1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 41_943_040)
LEAST = 1.7
TOLERANCE = 2e-5  # relative, on the losses of the first steps
COMPARED = 5


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """What a child process does."""
    way: Callable[..., dict[str, Any]] = ranks.under_mpi if task["way"] == "mpi" else ranks.perform
    result = way(task["size"], task["task"])
    return {"ms": 1e3 * result["seconds"], "losses": result["losses"]}


def sides(plan: Plan, with_mpi: bool) -> dict[str, tuple[str, int, int]]:
    """Name → how it is run, on how many ranks, with how many rows."""
    found = {"alone": ("processes", 1, plan.rows), "half": ("processes", 1, plan.rows // 2)}
    for way in ("processes", "mpi")[: 1 + with_mpi]:
        found |= {f"{way}, same batch": (way, 2, plan.rows), f"{way}, twice": (way, 2, 2 * plan.rows)}
    return found


def compare(plan: Plan, turns: int, quiet: float, with_mpi: bool) -> dict[str, Any]:
    """All sides in turns."""

    def measurement(way: str, size: int, rows: int) -> Callable[[], dict[str, Any]]:
        task = {"way": way, "size": size, "task": plan.task(rows)}
        return lambda: run_child(MODULE, task, threads=1)

    results = in_turns({name: measurement(*side) for name, side in sides(plan, with_mpi).items()}, turns, quiet)
    alone = results["alone"][0]["losses"][:COMPARED]
    worst = max(
        abs(a - b) / b
        for name, runs in results.items()
        if "same" in name
        for run in runs
        for a, b in zip(run["losses"], alone, strict=False)
    )
    if worst > TOLERANCE:
        raise SystemExit(f"ranks do other work than one process: losses differ by {worst:.1e}")
    ms = {name: [run["ms"] for run in runs] for name, runs in results.items()}
    ratios = {name: Comparison(ms[name], ms["alone"]) for name in ms if name not in ("alone", "half")}
    return {
        "preset": plan.preset, "rows": plan.rows, "tokens": plan.tokens, "ms": ms, "loss_difference": worst,
        "ratios": {name: {"text": c.text, "median": statistics.median(c.ratios)} for name, c in ratios.items()},
        "busiest_other": max(run["others"] for name in ("alone", "half") for run in results[name]),
    }  # fmt: skip


def on_paper(compared: Mapping[str, Any], links: Mapping[str, Link]) -> list[dict[str, Any]]:
    """Step times and speed-ups of more ranks on a batch of `BATCH` rows, from the measured step."""
    alone, half = (statistics.median(compared["ms"][name]) / 1e3 for name in ("alone", "half"))
    fixed = fixed_part(alone, half)
    whole = batch_seconds(alone, fixed, compared["rows"])
    nbytes = 4 * preset(compared["preset"]).n_parameters
    rows = []
    for name, link in links.items():
        for size in RANKS:
            step = step_seconds(whole, fixed, nbytes, size, link)
            rows.append(
                {
                    "link": name, **link._asdict(), "ranks": size, "step": step, "faster": whole / step,
                    "all_reduce": all_reduce_seconds(nbytes, size, *link),
                    "alone": whole, "fixed": fixed, "nbytes": nbytes,
                }
            )  # fmt: skip
    return rows


def report(record: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    c, paper = record["compared"], record["paper"]
    ms = {name: statistics.median(values) for name, values in c["ms"].items()}
    rows = [
        [name, f"{ms[name]:.1f}", ratio["text"] if "same" in name else f"{2 * ratio['median']:.2f}"]
        for name, ratio in c["ratios"].items()
    ]
    parts = [
        "# From one process to two, and on paper to 64",
        machine_line(record["machine"]) + "; every process has one BLAS thread.",
        f"`{c['preset']}`, {c['rows']} rows of {c['tokens']} tokens a step. One process takes {ms['alone']:.1f} ms "
        f"({ms['half']:.1f} ms for half the rows). Speed-up: its time over that of two ranks in the same turn, median "
        f"(smallest-largest) for the same batch; for twice the batch, in tokens a second. At least {LEAST} is asked "
        f"for at `small`. Losses agree to {c['loss_difference']:.0e}; others took up to {c['busiest_other']} cores.",
        markdown_table(["two ranks by", "ms a step", "speed-up"], rows),
    ]
    if record["messages"]:
        link = Link(**record["link"])
        parts += [
            "## What a sum over two ranks costs",
            "Reduce-scatter and all-gather of a float32 vector by MPI, as a training step does them; median. As a "
            f"line: {1e6 * link.latency:.0f} µs a message and {link.bandwidth / 1e9:.2f} GB/s.",
            markdown_table(
                ["bytes", "µs", "the line says"],
                [
                    [
                        f"{m['bytes']:,}",
                        f"{1e6 * m['seconds']:,.0f}",
                        f"{1e6 * all_reduce_seconds(m['bytes'], 2, *link):,.0f}",
                    ]
                    for m in record["messages"]
                ],
            ),
        ]
    first = paper[0]
    table = []
    for name in dict.fromkeys(row["link"] for row in paper):
        of = {row["ranks"]: row for row in paper if row["link"] == name}
        any_row = of[1]
        table.append(
            [name, f"{1e6 * any_row['latency']:.0f}", f"{any_row['bandwidth'] / 1e9:.4g}"]
            + [f"{1e3 * of[n]['all_reduce']:.1f} / {of[n]['faster']:.1f}" for n in (2, 8, 64)]
        )
    parts += [
        "## On paper: 8 and 64 ranks",
        f"One batch of {BATCH} rows, shared by n ranks: T(n) = fixed + (T(1) − fixed)/n + 2(n − 1)(α + bytes/(n·β)), a "
        f"ring. From the measured steps T(1) is {first['alone']:.2f} s, of which {1e3 * first['fixed']:.0f} ms do not "
        f"depend on the rows; the gradient has {first['nbytes'] / 1e6:.1f} MB. α and β of the networks are "
        "**assumed**; only the first row is this machine's own, where two ranks share one memory, which more ranks "
        "would have to share too. "
        "Nothing here was run on more than two cores.",
        markdown_table(["joined by", "α (µs)", "β (GB/s)", "2 ranks: all-reduce (ms) / faster", "8", "64"], table),
    ]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    task = child_task(sys.argv[1:] if argv is None else argv)
    if task is not None:
        print(json.dumps(measure(task)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="how often every side is measured")
    parser.add_argument("--quick", action="store_true", help="one turn of a small model")
    parser.add_argument("--quiet", type=float, default=120.0, metavar="S", help="wait so long for an idle machine")
    arguments = parser.parse_args(argv)
    plan = QUICK if arguments.quick else SMALL
    with_mpi = ranks.mpiexec() is not None
    if not with_mpi:
        note(f"without MPI: {ranks.MISSING}")
    compared = compare(plan, 1 if arguments.quick else arguments.turns, arguments.quiet, with_mpi)
    messages: list[dict[str, Any]] = []
    links: dict[str, Link] = {}
    if with_mpi:
        sizes = MESSAGES[::4] if arguments.quick else MESSAGES
        task = {"kind": "all_reduce", "sizes": list(sizes), "repeats": 3 if arguments.quick else 30}
        turns = [ranks.under_mpi(2, task)["seconds"] for _ in range(1 if arguments.quick else arguments.turns)]
        seconds = np.median(turns, axis=0).tolist()
        messages = [{"bytes": b, "seconds": s} for b, s in zip(sizes, seconds, strict=True)]
        links["two ranks here"] = fit_link(sizes, seconds)
    record = {
        "machine": machine(),
        "compared": compared,
        "messages": messages,
        "link": links["two ranks here"]._asdict() if links else None,
        "paper": on_paper(compared, links | NETWORKS),
    }
    write_results("data_parallel_quick" if arguments.quick else "data_parallel", record, report(record))


if __name__ == "__main__":
    main()
