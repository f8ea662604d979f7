"""Lesson 11: the comparison. Every method of the course from one base, on the same tasks, at the same budget.

1. The plan: for each method and task a learning rate chosen from a small grid on validation data, then several seeds.
   Prompting, which trains nothing, and training from scratch stand beside the methods.
2. The five trade-offs: what is trained and stored, memory, training speed, inference cost, quality; and forgetting.
3. Pictures: quality against size, what was learnt against what was forgotten, where memory goes.

The whole plan, `make compare`, takes about an hour and a half on two cores and goes on where it was stopped. Every
run is a process of its own with one BLAS thread, so that the cores are busy whatever the size of the model.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lessons import METHODS
from lessons.common import plotting, runner, sweep
from lessons.common.measure import step_cost
from lessons.common.method import Method, n_trainable, trunk_of
from lessons.common.runner import Run
from lessons.common.scenarios import as_questions, delimiter, few_shot, written_scores
from lessons.common.sweep import Job, Result
from lessons.common.table import deviation, spread, table
from lessons.common.tasks import PairTask, Task, load_task
from lessons.common.tuning import Budget, fine_tune
from minigpt import GPT, Tokenizer, bases, files
from minigpt.data import pydocs, tinyworld
from minigpt.data.tokens import encode_documents
from minigpt.errors import InputError, RunError
from minigpt.evaluation import evaluate_batches, text_batches
from minigpt.multiple_choice import score_choices
from minigpt.objectives import Batch

# ---------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Entry:
    """A task of the comparison, and the budget that every method gets on it.

    Attributes
    ----------
    metric : str
        The headline figure of the task, larger is better.
    n : int
        Training records.
    steps, batch_size : int
    test : int
        Test records that are scored.
    """

    metric: str
    n: int
    steps: int
    batch_size: int
    test: int


TASKS: dict[str, Entry] = {
    "sentiment-target": Entry("accuracy", n=400, steps=120, batch_size=16, test=500),
    "pydocs-topics": Entry("accuracy", n=1000, steps=120, batch_size=16, test=500),
    "rewriting": Entry("rougeL", n=1000, steps=160, batch_size=16, test=100),
    "translation": Entry("bleu", n=2000, steps=240, batch_size=16, test=100),
    "addition": Entry("exact_match", n=2000, steps=240, batch_size=16, test=100),
    "cards": Entry("exact_match", n=2000, steps=160, batch_size=16, test=200),
}
"""Adding a task is one entry here; it has to be one of `lessons.common.tasks`."""

SCRATCH = "scratch"
PROMPTING = {"zero-shot": 0, "few-shot": 4}
"""Methods that train nothing: how many solved examples they put before each question."""
QUESTION = "What is this text about?"  # of labelled data that brings no question along
GRID = (1 / 3, 1.0, 3.0)
GRID_SEED = 100  # of the runs that choose the learning rate: none of the final ones
SEEDS = 5
BASE = "base-s"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes
    ----------
    methods, tasks : sequence of str
    seeds : int
    shrink : int
        Divides steps and records, for quick runs.
    grid : sequence of float
        Factors on each method's own learning rate.
    base : str
    """

    methods: Sequence[str]
    tasks: Sequence[str]
    seeds: int
    shrink: int = 1
    grid: Sequence[float] = GRID
    base: str = BASE

    def job(self, method: str, task: str, lr: float | None, seed: int, scored: bool = True) -> Job:
        """One run, with all that decides about it; one of the grid is not scored on the test split."""
        entry = TASKS[task]
        return {
            "method": method,
            "task": task,
            "base": self.base,
            "lr": lr,
            "seed": seed,
            "scored": scored,
            "n": max(32, entry.n // self.shrink),
            "steps": max(2, entry.steps // self.shrink),
            "batch_size": entry.batch_size,
            "test": max(16, entry.test // self.shrink),
            "windows": max(2, 32 // self.shrink),
        }

    def grid_jobs(self) -> list[Job]:
        """The runs that choose learning rates."""
        return [
            self.job(method, task, factor * class_of(method).learning_rate, GRID_SEED, scored=False)
            for task in self.tasks
            for method in self.methods
            for factor in self.grid
        ]

    def final_jobs(self, chosen: Mapping[tuple[str, str], float]) -> list[Job]:
        """The runs whose figures count, at the chosen learning rates."""
        tuned = [
            self.job(method, task, chosen[method, task], seed)
            for seed in range(self.seeds)
            for task in self.tasks
            for method in self.methods
        ]
        return [self.job(method, task, None, 0) for task in self.tasks for method in PROMPTING] + tuned


def choose(results: Iterable[Result]) -> dict[tuple[str, str], float]:
    """The learning rate of each method and task with the lowest validation loss.

    Parameters
    ----------
    results : iterable of Result
        Of the grid; runs that diverged do not count.

    Returns
    -------
    rates : dict of (method, task) to float

    Raises
    ------
    RunError
        If every rate of a grid diverged.
    """
    losses: dict[tuple[str, str], dict[float, float]] = {}
    for result in results:
        cell = losses.setdefault((result.job["method"], result.job["task"]), {})
        if not result.error:
            cell[result.job["lr"]] = min(result.values["eval_losses"])
    lost = sorted(" on ".join(cell) for cell, found in losses.items() if not found)
    if lost:
        raise RunError(f"every learning rate of the grid diverged: {', '.join(lost)}")
    return {cell: min(found, key=lambda lr: found[lr]) for cell, found in losses.items()}


# ---------------------------------------------------------------------------------------------- one run


@lru_cache(maxsize=2)
def _base(name: str) -> tuple[GPT, Tokenizer]:
    return bases.load(name)


@lru_cache(maxsize=4)
def _task(name: str, base: str, n: int) -> Task:
    return load_task(name, _base(base)[1], n)


@lru_cache(maxsize=2)
def _held_out(base: str, windows: int) -> list[Batch]:
    # Text like the base's own: what it forgets shows here.
    tokenizer = _base(base)[1]
    batches = []
    for corpus in (pydocs.corpus(), tinyworld.corpus(1)):  # its held-out documents are the same for any number
        tokens = encode_documents(tokenizer, corpus.validation[: 8 * windows])
        batches += text_batches(tokens, 128, 16, limit=windows)
    return batches


def class_of(name: str) -> type[Method]:
    """The method of this name; training from scratch is full fine-tuning of a fresh model."""
    return METHODS["full" if name == SCRATCH else name]


def method_of(name: str, n_labels: int | None, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of a job with its settings."""
    return class_of(name)(n_labels=n_labels, **(settings or {}))


def start_of(name: str, base: GPT, seed: int) -> GPT:
    """The model that a job starts from: the base, or for training from scratch a fresh one of its size."""
    return GPT(base.config, seed=seed) if name == SCRATCH else base


def measure(job: Job) -> dict[str, Any]:
    """Do one run of the comparison and score it.

    Parameters
    ----------
    job : dict
        Of `Plan.job`; ``settings`` of the method may be added.

    Returns
    -------
    values : dict
        ``trained`` parameters, ``eval_steps``, ``eval_losses``, ``seconds`` of training; if the job is to be scored,
        ``scores`` on the test split and ``forgetting`` (rise of the base's own held-out loss in nats a token, with the
        technique in place).
    """
    base, _ = _base(job["base"])
    task = _task(job["task"], job["base"], job["n"])
    if job["method"] in PROMPTING:
        return prompted(base, task, PROMPTING[job["method"]], job["test"])
    budget = Budget(job["steps"], job["batch_size"], job["lr"], evaluations=5, validation_limit=64, workers=1)
    method = method_of(job["method"], task.n_labels, job.get("settings"))
    done = fine_tune(method, start_of(job["method"], base, job["seed"]), task, budget, job["seed"])
    values: dict[str, Any] = {
        "trained": done.n_trainable,
        "eval_steps": done.history.eval_steps,
        "eval_losses": done.history.eval_losses,
        "seconds": done.history.seconds,
    }
    if job["scored"]:
        values["scores"] = scores(done.model, task, job["test"])
        trunk = trunk_of(done.model)
        held_out = _held_out(job["base"], job["windows"])
        before, after = (evaluate_batches(model, held_out)[0] for model in (base, trunk))
        values["forgetting"] = after - before
    return values


def scores(model: Any, task: Task, limit: int) -> dict[str, float]:
    """What a tuned model reaches on the first test records of a task, by the task's kind."""
    if isinstance(task, PairTask):
        return written_scores(model, task, limit)
    return task.score(model, limit=limit)


def prompted(base: GPT, task: Task, shots: int, limit: int) -> dict[str, Any]:
    """What the base reaches by prompting alone; it is asked for labels as multiple choice."""
    room = base.config.n_positions
    if isinstance(task, PairTask):
        found = written_scores(base, few_shot(task, shots, room), limit, first_line=True)
    else:
        asked = PairTask(
            tinyworld.as_pairs(task.data, task.data.provenance.get("question", QUESTION)), task.tokenizer, room
        )
        asked = few_shot(asked, shots, room)
        choices = score_choices(base, task.tokenizer, as_questions(asked, limit), delimiter=delimiter(asked))
        found = {"accuracy": choices.acc}
    return {"scores": found, "trained": 0, "forgetting": 0.0, "eval_steps": [], "eval_losses": [], "seconds": 0.0}


# ---------------------------------------------------------------------------------------------- what it costs


def costs(job: Job) -> dict[str, Any]:
    """What a method costs on a task: memory and work of a step, bytes to store, latency of a generated token.

    Parameters
    ----------
    job : dict
        With ``method``, ``task``, ``base``, ``n``, ``batch_size``.

    Returns
    -------
    values : dict
        ``step`` (a `StepCost`), ``stored_bytes``, ``trained``, and for tasks with completions ``latency_ms`` as it is,
        ``merged_latency_ms`` (None where it cannot be merged) and ``base_latency_ms``.
    """
    base, _ = _base(job["base"])
    task = _task(job["task"], job["base"], job["n"])
    method = method_of(job["method"], task.n_labels)
    batch = task.batches(job["batch_size"], 0)
    tuned = method.apply(start_of(job["method"], base, 0), 0, data=[batch(step) for step in range(4)])
    values: dict[str, Any] = {
        "step": step_cost(tuned, task.objective, batch(0)).as_record(),
        "trained": n_trainable(tuned),
    }
    with tempfile.TemporaryDirectory() as directory:
        method.save(tuned, Path(directory) / "saved")
        values["stored_bytes"] = sum(p.stat().st_size for p in Path(directory, "saved").rglob("*") if p.is_file())
    if isinstance(task, PairTask):
        values["base_latency_ms"] = token_latency(base)
        values["latency_ms"] = token_latency(tuned)
        try:
            merged = method.merge(tuned)
        except InputError:
            values["merged_latency_ms"] = None
        else:
            values["merged_latency_ms"] = token_latency(merged)
    return values


def token_latency(model: GPT, new: int = 64, repeats: int = 5) -> float:
    """Median milliseconds for a generated token at batch 1, after a prompt of 16."""
    prompt = [list(range(1, 17))]
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        model.generate(prompt, new, temperature=0)
        times.append((time.perf_counter() - began) / new * 1e3)
    return statistics.median(times[1:])


# ---------------------------------------------------------------------------------------------- what came out


@dataclass(frozen=True)
class Cell:
    """A method on a task, over the seeds.

    Attributes
    ----------
    method, task : str
    lr : float or None
        The chosen one; None for prompting.
    score, forgetting : list of float
        One a seed that did not diverge.
    diverged : int
    trained : int
    seconds_a_step : float
    to_target : list of float or None
        Seconds until the validation loss has made nine tenths of full fine-tuning's way; None where it never did.
    """

    method: str
    task: str
    lr: float | None
    score: list[float]
    forgetting: list[float]
    diverged: int
    trained: int
    seconds_a_step: float
    to_target: list[float | None]


def cells(results: Sequence[Result], metric: Mapping[str, str]) -> list[Cell]:
    """The final runs, gathered by method and task in the order in which they were planned."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result.job["task"], result.job["method"]), []).append(result)
    gathered = []
    for (task, method), runs in grouped.items():
        good = [r for r in runs if not r.error]
        target = target_loss([r for r in grouped.get((task, "full"), []) if not r.error])
        gathered.append(
            Cell(
                method,
                task,
                runs[0].job["lr"],
                [r.values["scores"][metric[task]] for r in good],
                [r.values["forgetting"] for r in good],
                len(runs) - len(good),
                good[0].values["trained"] if good else 0,
                statistics.median(r.values["seconds"] / r.job["steps"] for r in good) if good else math.nan,
                [None if target is None else time_to(r, target) for r in good],
            )
        )
    return gathered


def target_loss(full: Sequence[Result]) -> float | None:
    """The validation loss nine tenths of the way from full fine-tuning's first evaluation to its best."""
    if not full:
        return None
    first = statistics.mean(r.values["eval_losses"][0] for r in full)
    best = statistics.mean(min(r.values["eval_losses"]) for r in full)
    return first - 0.9 * (first - best)


def time_to(result: Result, target: float) -> float | None:
    """Seconds of training until the validation loss was at the target, None if it never was."""
    for step, loss in zip(result.values["eval_steps"], result.values["eval_losses"], strict=True):
        if loss <= target:
            return result.values["seconds"] * step / result.job["steps"]
    return None


def tidy(results: Sequence[Result]) -> str:
    """All runs as CSV, one a line: settings first, then figures."""
    rows = []
    for r in results:
        row: dict[str, Any] = dict(r.job) | {"error": r.error, "run_seconds": r.seconds}
        if not r.error:
            row |= {f"score_{name}": value for name, value in r.values["scores"].items()}
            row |= {name: r.values.get(name) for name in ("forgetting", "trained", "seconds")}
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def scatter(values: Sequence[float]) -> float:
    """Standard deviation over the seeds; of a single one 0."""
    return deviation(values) if len(values) > 1 else 0.0


def relative(cells_of: Sequence[Cell]) -> dict[str, float]:
    """Mean score of each method over the tasks, where training from scratch is 0 and full fine-tuning 1.

    A task on which those two are equal to within their spread says nothing and is left out.
    """
    means = {(c.method, c.task): statistics.mean(c.score) for c in cells_of if c.score}
    spreads = {(c.method, c.task): scatter(c.score) for c in cells_of if c.score}
    values: dict[str, list[float]] = {}
    for (method, task), mean in means.items():
        low, high = means.get((SCRATCH, task)), means.get(("full", task))
        if low is None or high is None or high - low <= spreads[SCRATCH, task] + spreads["full", task]:
            continue
        values.setdefault(method, []).append((mean - low) / (high - low))
    return {method: statistics.mean(v) for method, v in values.items()}


# ---------------------------------------------------------------------------------------------- pictures

FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "the model's own weights": (
        plotting.BLUE,
        ("full", "last_layer", "ulmfit", "bitfit", "importance", "embedding_rows"),
    ),
    "low-rank updates": (plotting.VERMILLION, ("lora", "rslora", "dora", "pissa", "loraplus", "qlora")),
    "new layers": (plotting.GREEN, ("adapters", "ia3")),
    "learnt prompts": (plotting.PURPLE, ("prompt_tuning", "prefix_tuning")),
}


def colour(method: str) -> str:
    """The colour of a method's family; grey for baselines."""
    return next((c for c, members in FAMILIES.values() if method in members), plotting.GREY)


@plotting.style()
def quality_picture(found: Sequence[Cell]) -> Figure:
    """Score against the number of trained parameters, a panel a task, with the front of what nothing else beats."""
    names = list(dict.fromkeys(c.task for c in found))
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = plotting.new(rows, columns, height=3.4 * rows, squeeze=False)
    for axis, task in zip(axes.flat, names, strict=False):
        points = sorted(
            (
                (c.trained, statistics.mean(c.score), scatter(c.score), c.method)
                for c in found
                if c.task == task and c.score
            ),
        )
        for trained, mean, error, method in points:
            if trained:
                axis.errorbar(trained, mean, error, color=colour(method), marker="o", markersize=5, linewidth=1.2)
            else:  # prompting has no place on a logarithmic axis
                axis.axhline(mean, color=plotting.GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        low, high = axis.get_ylim()
        upwards = sorted(points, key=lambda point: point[1])
        places = plotting.spaced([(mean - low) / (high - low) for _, mean, *_ in upwards], 0.052)
        for (trained, mean, _, method), place in zip(upwards, places, strict=True):
            axis.annotate(
                method,
                (trained, mean) if trained else (1, (mean - low) / (high - low)),
                (1.03, place),
                xycoords="data" if trained else "axes fraction",
                textcoords="axes fraction",
                fontsize=7,
                va="center",
                color=colour(method),
                arrowprops={"arrowstyle": "-", "color": colour(method), "linewidth": 0.4, "alpha": 0.6},
            )
        front, best = [], -math.inf
        for trained, mean, *_ in points:
            if trained and mean > best:
                best = mean
                front.append((trained, mean))
        axis.plot(*zip(*front, strict=True), color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        plotting.logarithmic(axis)
        axis.set_title(task)
        axis.set_xlabel("trained parameters")
        axis.set_ylabel(TASKS[task].metric)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    return figure


@plotting.style()
def forgetting_picture(found: Sequence[Cell]) -> Figure:
    """What was learnt, on the scale from scratch (0) to full fine-tuning (1), against what was forgotten."""
    figure, axis = plotting.new(height=4.6)
    learnt = relative(found)
    for method, value in learnt.items():
        lost = [statistics.mean(c.forgetting) for c in found if c.method == method and c.forgetting]
        if method == SCRATCH:
            continue
        axis.scatter(statistics.mean(lost), value, color=colour(method), s=40, zorder=3)
        axis.annotate(
            method, (statistics.mean(lost), value), (5, 4), textcoords="offset points", fontsize=9, color=colour(method)
        )
    axis.axvline(0, color=plotting.GREY, linewidth=1)
    axis.axhline(1, color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_xlabel("forgotten: rise of the base's own held-out loss (nats a token)")
    axis.set_ylabel("learnt: 0 from scratch, 1 full fine-tuning")
    axis.set_title("Learnt against forgotten, mean over the tasks")
    return figure


@plotting.style()
def memory_picture(costs_of: Mapping[str, dict[str, Any]], task: str) -> Figure:
    """Weights, gradients, optimizer state and activations of one step, a bar a method."""
    methods = list(costs_of)
    figure, axis = plotting.new(height=0.9 + 0.32 * len(methods))
    left = np.zeros(len(methods))
    parts = (
        ("weights", plotting.SKY),
        ("activations", plotting.GREEN),
        ("gradients", plotting.ORANGE),
        ("optimizer", plotting.VERMILLION),
    )
    for part, shade in parts:
        amounts = np.array([costs_of[m]["step"][part] / 1e6 for m in methods])
        axis.barh(methods, amounts, left=left, color=shade, height=0.7, label=part)
        left += amounts
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("MB")
    axis.set_title(f"Memory of one training step, {task}", pad=28)
    axis.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 1), frameon=False, fontsize=9)
    return figure


@plotting.style()
def tradeoffs_picture(found: Sequence[Cell], costs_of: Mapping[str, dict[str, Any]]) -> Figure:
    """The trade-offs side by side: a row a method, a column a trade-off."""
    learnt = relative(found)
    methods = [m for m in costs_of if m in learnt]
    lost = {m: statistics.mean(f for c in found if c.method == m for f in c.forgetting) for m in methods}

    def milliseconds(m: str) -> float:
        one, merged = costs_of[m].get("latency_ms"), costs_of[m].get("merged_latency_ms")
        return merged or one or math.nan

    columns: list[tuple[str, dict[str, float], bool]] = [
        ("quality\n0 scratch\n1 full", {m: learnt[m] for m in methods}, False),
        ("forgetting\nnats\na token", lost, False),
        ("\ntrained\nparameters", {m: float(costs_of[m]["trained"]) for m in methods}, True),
        ("memory\nof a step\nMB", {m: costs_of[m]["step"]["bytes"] / 1e6 for m in methods}, False),
        ("time\nof a step\nms", {m: costs_of[m]["step"]["seconds"] * 1e3 for m in methods}, False),
        ("latency\nof a token\nms", {m: milliseconds(m) for m in methods}, False),
    ]
    figure, axes = plotting.new(1, len(columns), height=1.4 + 0.3 * len(methods), sharey=True)
    for axis, (title, values, logarithmic) in zip(axes, columns, strict=True):
        for row, method in enumerate(methods):
            axis.plot(values[method], row, "o", color=colour(method), markersize=6)
        axis.set_title(title, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        if logarithmic:
            plotting.logarithmic(axis)
            axis.margins(x=0.15)
        else:
            known = [v for v in values.values() if not math.isnan(v)]
            low, high = min(0.0, *known), max(0.0, *known)
            axis.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes[0].set_yticks(range(len(methods)), methods, fontsize=9)
    axes[0].invert_yaxis()
    return figure


# ---------------------------------------------------------------------------------------------- the lesson

CORE_METHODS = ("full", "last_layer", "lora", "adapters", "bitfit", "prompt_tuning", SCRATCH)
CORE_TASKS = ("sentiment-target", "translation")
COST_TASK = "translation"


def plan_of(run: Run) -> Plan:
    """What this run compares."""
    settings = run.settings
    if settings.quick:
        return Plan((*METHODS, SCRATCH), CORE_TASKS, seeds=1, shrink=40, grid=(1.0,), base="base-xs")
    if settings.full:
        return Plan((*METHODS, SCRATCH), tuple(TASKS), SEEDS)
    return Plan(CORE_METHODS, CORE_TASKS, seeds=1, shrink=2, grid=(1.0,), base="base-xs")


def lesson(run: Run) -> None:
    """Everything that `make lesson-11` and `make compare` do."""
    settings = run.settings
    if settings.data is not None:
        raise InputError("the comparison runs on its own tasks; the other lessons take DATA")
    plan = plan_of(run)
    kept = run.directory / ("quick" if settings.quick else "full" if settings.full else "core")
    metric = {task: TASKS[task].metric for task in plan.tasks}
    run.heading("The plan")
    n_grid, n_final = len(plan.grid_jobs()), (len(plan.methods) * plan.seeds + len(PROMPTING)) * len(plan.tasks)
    run.say(
        f"  {len(plan.methods)} methods on {len(plan.tasks)} tasks from {plan.base}: {n_grid} runs to choose learning "
        f"rates, {n_final} that count ({plan.seeds} seeds)\n"
        f"  done ones are kept in {kept}: the same command goes on from there"
    )
    chosen = choose(sweep.run(measure, plan.grid_jobs(), kept, title="choosing learning rates"))
    finals = sweep.run(measure, plan.final_jobs(chosen), kept, title="final runs")
    found = cells(finals, metric)
    paid = {r.job["method"]: r.values for r in sweep.run(costs, cost_jobs(plan), kept, workers=1, title="costs")}
    show(run, plan, found, paid)
    files.write_atomic(run.directory / "runs.csv", tidy(finals).encode())
    run.results |= {
        "plan": asdict(plan),
        "tasks": {task: asdict(TASKS[task]) for task in plan.tasks},
        "learning_rates": {f"{method} on {task}": lr for (method, task), lr in chosen.items()},
        "cells": [asdict(c) for c in found],
        "costs": paid,
        "relative": relative(found),
    }
    for cell in found:
        if cell.score:
            run.report(f"{cell.task}/{cell.method}", cell.score, TASKS[cell.task].metric)


def cost_jobs(plan: Plan) -> list[Job]:
    """One measurement of cost for each method, on a task with completions."""
    task = COST_TASK
    return [
        {"measure": "cost", "method": m, "task": task, "base": plan.base, "n": 64, "batch_size": TASKS[task].batch_size}
        for m in plan.methods
    ]


def show(run: Run, plan: Plan, found: Sequence[Cell], paid: Mapping[str, dict[str, Any]]) -> None:
    """Tables and pictures."""
    run.heading("Quality")
    by_cell = {(c.method, c.task): c for c in found}
    learnt = relative(found)
    rows = []
    for method in sorted((*plan.methods, *PROMPTING), key=lambda m: -learnt.get(m, -math.inf)):
        row = [method]
        for task in plan.tasks:
            cell = by_cell[method, task]
            lost = f" ({cell.diverged} diverged)" if cell.diverged else ""
            row.append((spread(cell.score, 3) if cell.score else "–") + lost)
        rows.append([*row, f"{learnt[method]:.2f}" if method in learnt else "–"])
    headers = ["method", *(f"{task} ({TASKS[task].metric})" for task in plan.tasks), "0 scratch … 1 full"]
    run.say(table(rows, headers))

    run.heading(f"What it costs ({COST_TASK}, batch of {TASKS[COST_TASK].batch_size})")
    rows = []
    for method, cost in paid.items():
        step, merged = cost["step"], cost["merged_latency_ms"]
        reached = by_cell[method, COST_TASK].to_target
        times = [t for t in reached if t is not None]
        forgotten = [f for c in found if c.method == method for f in c.forgetting]
        rows.append(
            [
                method,
                f"{cost['trained']:,}",
                f"{cost['stored_bytes'] / 1e3:,.0f}",
                f"{step['bytes'] / 1e6:.1f}",
                f"{step['flops'] / 1e6:,.0f}",
                f"{step['seconds'] * 1e3:.0f}",
                f"{statistics.median(times):.1f}" if len(times) > len(reached) / 2 else "never",
                f"{cost['latency_ms']:.2f}",
                "–" if merged is None else f"{merged:.2f}",
                f"{statistics.mean(forgotten):+.2f}" if forgotten else "–",
            ]
        )
    headers = [
        "method", "trained", "stored (kB)", "memory (MB)", "Mflop a step", "ms a step", "s to target", "ms a token",
        "merged", "forgotten (nats)",
    ]  # fmt: skip
    run.say(table(rows, headers))
    run.picture("quality", quality_picture(found))
    run.picture("memory", memory_picture(paid, COST_TASK))
    if learnt:
        run.picture("forgetting", forgetting_picture(found))
        run.picture("tradeoffs", tradeoffs_picture(found, paid))


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-11``; gives the exit code."""
    return runner.main(11, __doc__, lesson, argv)


if __name__ == "__main__":
    sys.exit(main())
