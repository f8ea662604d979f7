"""Lesson 11: the comparison. Every method of the course from one base, on the same tasks, at the same budget.

1. How to compare: a learning rate chosen on validation data, seeds with an interval, differences in pairs, and which
   methods nothing else beats.
2. The plan: for each method and task a small grid of learning rates, longer where the best is at its end, then several
   seeds. Prompting, which trains nothing, and training from scratch stand beside the methods.
3. The five trade-offs: what is trained and stored, memory, training speed, inference cost, quality; and forgetting.
4. What one setting does: LoRA's rank, the length of a prompt, the size of adapters, the density of a mask, the scale of
   the model.
5. Pictures: quality against size, what was learnt against what was forgotten, where memory goes.

The whole plan, `make compare`, takes about an hour and a half on two cores and goes on where it was stopped. Every
run is a process of its own with one BLAS thread, so that the cores are busy whatever the size of the model.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from kernels import Backend
from lessons import METHODS
from lessons.common import derivation, gradcheck, plotting, runner, sweep
from lessons.common.derivation import Derivation
from lessons.common.gradcheck import Check
from lessons.common.lora_serving import MultiLoRA
from lessons.common.measure import in_turns, median_seconds, step_cost
from lessons.common.method import Method, n_trainable, trunk_of
from lessons.common.runner import Run
from lessons.common.scenarios import as_questions, delimiter, few_shot, written_scores
from lessons.common.sweep import Job, Result
from lessons.common.table import deviation, markdown, spread, table
from lessons.common.tasks import CONTINUATIONS, PairTask, Task, in_batches, load_task
from lessons.common.tuning import Budget, fine_tune
from lessons.common.verdicts import student_t
from lessons.lesson_07_lora import factors_of
from minigpt import GPT, Tokenizer, bases, files
from minigpt.data import pydocs, tinyworld
from minigpt.data.tokens import encode_documents
from minigpt.errors import InputError, RunError
from minigpt.evaluation import evaluate_batches, text_batches
from minigpt.multiple_choice import score_choices
from minigpt.objectives import Batch

# ---------------------------------------------------------------------------------------------- how to compare


def choose_rate(rates: Sequence[float], losses: Sequence[float]) -> int:
    """Which learning rate to take: that of the lowest validation loss.

    The test split has no part in it: a rate that was chosen on the test split makes its score too good.

    Parameters
    ----------
    rates : sequence of k floats
        In any order, above 0.
    losses : sequence of k floats
        Validation loss of the run with each rate; NaN or infinite where it diverged, and then it does not count.

    Returns
    -------
    chosen : int
        Index into `rates`. Of equal losses the one with the lowest rate; -1 if every run diverged.

    Examples
    --------
    >>> choose_rate([0.1, 0.3, 0.9], [2.5, 2.1, math.nan])
    1
    """
    ### BEGIN SOLUTION
    known = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
    return min(known, key=lambda i: (losses[i], rates[i]), default=-1)
    ### END SOLUTION


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds, and the interval that holds the mean of all seeds with some confidence.

    With n values, their mean m and their sample standard deviation s (the sum of squares over n − 1), the ends are

        m ± t · s/√n

    where t is the quantile of Student's t at (1 + level)/2 with n − 1 degrees of freedom (`student_t`): 2.8 for five
    seeds at 95 %, 4.3 for three, 12.7 for two. Student (1908), "The probable error of a mean".

    Parameters
    ----------
    values : sequence of n floats
        One a seed, two or more.
    level : float
        Of confidence, in (0, 1).

    Returns
    -------
    mean, low, high : float

    Examples
    --------
    >>> [round(v, 2) for v in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    ### BEGIN SOLUTION
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    margin = student_t((1 + level) / 2, n - 1) * math.sqrt(variance / n)
    return mean, mean - margin, mean + margin
    ### END SOLUTION


def paired_interval(
    first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference first − second of two methods, with its interval, seed by seed.

    Runs with one seed share the order of their batches, so part of their spread is common to both. It is gone from
    their difference, and the interval of the mean difference (`mean_interval`) is narrower than one made of both
    spreads.

    Parameters
    ----------
    first, second : dict of int to float
        Seed → score. A seed that only one of them has, because the other's run diverged, is left out; two at least
        are in both.
    level : float
        Of confidence, in (0, 1).

    Returns
    -------
    mean, low, high : float
    """
    ### BEGIN SOLUTION
    shared = sorted(first.keys() & second.keys())
    return mean_interval([first[seed] - second[seed] for seed in shared], level)
    ### END SOLUTION


def pareto_front(cost: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Which points nothing else beats: the Pareto front.

    A point is beaten if another one costs no more and is no worse, and is strictly better in one of the two. Of equal
    points none beats the other.

    Parameters
    ----------
    cost : (n,)
        Less is better.
    quality : (n,)
        More is better.

    Returns
    -------
    front : (n,) bool
        In the order of the points.
    """
    ### BEGIN SOLUTION
    cheap = cost[:, None] <= cost[None, :]  # (n, n): row i against column j
    good = quality[:, None] >= quality[None, :]
    strict = (cost[:, None] < cost[None, :]) | (quality[:, None] > quality[None, :])
    return np.logical_not((cheap & good & strict).any(axis=0))
    ### END SOLUTION


def check_choice(backend: Backend) -> list[Check]:
    """Which rate is taken: of the lowest loss, of equal ones the lowest rate, never one that diverged."""
    cases = {
        "the lowest loss": (1, ([0.1, 0.3, 0.9], [2.5, 2.1, 2.2])),
        "not the one that diverged": (0, ([0.1, 0.3, 0.9], [2.5, math.nan, math.inf])),
        "of equal ones the lowest rate": (2, ([0.9, 0.3, 0.1], [2.0, 2.5, 2.0])),
        "none, if all diverged": (-1, ([0.1, 0.3], [math.nan, math.inf])),
    }
    return [gradcheck.agree(name, wanted, partial(choose_rate, *given)) for name, (wanted, given) in cases.items()]


def check_intervals(backend: Backend) -> list[Check]:
    """Against Student's printed table, and: of many made-up experiments so many intervals hold the truth."""
    five, three = [0.5, 0.7, 0.6, 0.9, 0.8], [1.0, 2.0, 3.0]

    def held() -> bool:
        draws = np.random.default_rng(0).standard_normal((2000, 3))
        found = [mean_interval(draw.tolist(), 0.8) for draw in draws]
        return abs(sum(low < 0 < high for _, low, high in found) / len(found) - 0.8) < 0.03

    return [
        gradcheck.agree("five seeds, 95 %: t = 2.776445", _interval(five, 2.776445105), lambda: mean_interval(five)),
        gradcheck.agree(
            "three seeds, 90 %: t = 2.919986", _interval(three, 2.919985580), lambda: mean_interval(three, 0.9)
        ),
        gradcheck.agree("80 % of 2,000 intervals hold the truth", 1.0, held),
    ]


def _interval(values: Sequence[float], t: float) -> list[float]:
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    return [mean, mean - t * error, mean + t * error]


def check_pairs(backend: Backend) -> list[Check]:
    """Differences by seed, whatever the order, and without the seeds that only one of the two has."""
    first, second = {0: 0.50, 1: 0.70, 2: 0.91, 7: 0.1}, {2: 0.80, 1: 0.61, 0: 0.40, 5: 0.9}
    wanted = _interval([0.10, 0.09, 0.11], 4.302652730)
    return [gradcheck.agree("seeds 0, 1 and 2", wanted, lambda: paired_interval(first, second))]


def check_front(backend: Backend) -> list[Check]:
    """Against a search through all pairs, with equal points among them."""
    cost, quality = np.random.default_rng(0).integers(0, 6, (2, 12)).astype(float)

    def beaten(i: int) -> bool:
        return any(
            cost[j] <= cost[i] and quality[j] >= quality[i] and (cost[j] < cost[i] or quality[j] > quality[i])
            for j in range(12)
        )

    return [gradcheck.agree("front", [not beaten(i) for i in range(12)], lambda: pareto_front(cost, quality))]


DERIVATIONS = (
    Derivation(
        "A learning rate is chosen on other data",
        """
        rate = argmin over the grid of the *validation* loss, with a seed that none of the final runs has
        The least of k noisy figures is too low, the more so the larger k: what chose may not judge.
        """,
        (choose_rate,),
        check_choice,
    ),
    Derivation(
        "A mean, and how well it is known",
        """
        m = (1/n) Σ v_i,   s² = (1/(n − 1)) Σ (v_i − m)²,   interval m ± t s/√n
        (m − μ)/(s/√n) has Student's distribution with n − 1 degrees of freedom: s is itself only an estimate, so the
        interval is wider than ±1.96 s/√n, with few seeds much wider: t = 2.8 with five, 4.3 with three, 12.7 with two.
        """,
        (mean_interval,),
        check_intervals,
    ),
    Derivation(
        "Differences in pairs",
        """
        d_i = a_i − b_i, seed by seed:   var d = var a + var b − 2 cov(a, b)
        Runs of one seed see the same batches in the same order. What that does to both is gone from the difference.
        """,
        (paired_interval,),
        check_pairs,
    ),
    Derivation(
        "What nothing else beats",
        """
        j beats i  ⇔  cost_j ≤ cost_i and quality_j ≥ quality_i, one of them strictly;   front = all that none beats
        """,
        (pareto_front,),
        check_front,
    ),
)


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
    "continuations": Entry("true_reward", n=1000, steps=120, batch_size=16, test=100),
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
FURTHER = 2
"""How many rates beyond an end of its grid are tried, while the best one lies there."""
GRID_SEED = 100  # of the runs that choose the learning rate: none of the final ones
SEEDS = 5
BASE = "base-s"


@dataclass(frozen=True)
class Sweep:
    """One setting of a method, at several values.

    Attributes
    ----------
    title : str
        What is varied, for an axis.
    method : str
    setting : str
        Of the method; ``"base"`` is the model itself.
    values : tuple
    beside : str
        Another method that is run at the same bases, to compare with.
    """

    title: str
    method: str
    setting: str
    values: tuple[Any, ...]
    beside: str = ""

    @property
    def methods(self) -> tuple[str, ...]:
        """The method, and the one beside it."""
        return (self.method, self.beside) if self.beside else (self.method,)


SWEEPS = {
    "rank": Sweep("LoRA's rank", "lora", "r", (1, 2, 4, 8, 16, 32, 64)),
    "prompt length": Sweep("virtual tokens", "prompt_tuning", "num_virtual_tokens", (1, 5, 20, 50)),
    "adapter size": Sweep("adapter's bottleneck", "adapters", "bottleneck", (1, 4, 16, 64)),
    "density": Sweep("share of the entries that is trained", "importance", "density", (0.001, 0.01, 0.05, 0.2)),
    "scale": Sweep("parameters of the base", "prompt_tuning", "base", tuple(bases.BASES), beside="full"),
}
SWEEP_TASK = "translation"


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
    sweeps : dict of str to Sweep
        On `SWEEP_TASK`.
    sweep_seeds : int
    backend : str
        Where the runs compute; a job says so if it is not NumPy.
    """

    methods: Sequence[str]
    tasks: Sequence[str]
    seeds: int
    shrink: int = 1
    grid: Sequence[float] = GRID
    base: str = BASE
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    sweep_seeds: int = 1
    backend: str = "numpy"

    @property
    def place(self) -> dict[str, str]:
        """What a job says of the backend."""
        return {} if self.backend == "numpy" else {"backend": self.backend}

    def job(
        self,
        method: str,
        task: str,
        lr: float | None,
        seed: int,
        scored: bool = True,
        settings: Mapping[str, Any] | None = None,
        base: str = "",
    ) -> Job:
        """One run, with all that decides about it; one of the grid is not scored on the test split."""
        entry = TASKS[task]
        return {
            "method": method,
            "task": task,
            "base": base or self.base,
            "settings": dict(settings or {}),
            "lr": lr,
            "seed": seed,
            "scored": scored,
            "n": max(32, entry.n // self.shrink),
            "steps": max(2, entry.steps // self.shrink),
            "batch_size": entry.batch_size,
            "test": max(16, entry.test // self.shrink),
            "windows": max(2, 32 // self.shrink),
        } | self.place

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

    def sweep_jobs(self, name: str, rates: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> list[Job]:
        """The runs of a sweep: every value of its setting, at each of these rates of every method, with these seeds."""
        swept = self.sweeps[name]
        return [
            self.job(
                method,
                SWEEP_TASK,
                lr,
                seed,
                scored=seed != GRID_SEED,
                settings={} if swept.setting == "base" else {swept.setting: value},
                base=value if swept.setting == "base" else "",
            )
            for method in swept.methods
            for value in swept.values
            for lr in rates[variant(method, value)]
            for seed in seeds
        ]


def variant(method: str, value: Any) -> str:
    """What a method is called at one value of a sweep."""
    return f"{method} at {value}"


def cell_of(job: Job) -> tuple[str, str]:
    """What has a learning rate of its own: a method on a task."""
    return job["method"], job["task"]


def choose(results: Iterable[Result], by: Callable[[Job], tuple[str, str]] = cell_of) -> dict[tuple[str, str], float]:
    """The learning rate of each method and task with the lowest validation loss; see `choose_rate`.

    Parameters
    ----------
    results : iterable of Result
        Of the grid; runs that diverged do not count.
    by : (job) -> (str, str), optional
        What has a learning rate of its own, instead of method and task.

    Returns
    -------
    rates : dict of (method, task) to float

    Raises
    ------
    RunError
        If every rate of a grid diverged.
    """
    tried: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for result in results:
        loss = math.nan if result.error else min(result.values["eval_losses"])
        tried.setdefault(by(result.job), []).append((result.job["lr"], loss))
    chosen = {cell: choose_rate(*zip(*runs, strict=True)) for cell, runs in tried.items()}
    lost = sorted(" on ".join(cell) for cell, index in chosen.items() if index < 0)
    if lost:
        raise RunError(f"every learning rate of the grid diverged: {', '.join(lost)}")
    return {cell: tried[cell][index][0] for cell, index in chosen.items()}


def tune(
    jobs: Sequence[Job],
    runs: Callable[[Sequence[Job]], list[Result]],
    by: Callable[[Job], tuple[str, str]] = cell_of,
) -> dict[tuple[str, str], float]:
    """Do the runs of a grid, and choose; where the best rate is the lowest or the highest of several, go on that way.

    The best of a grid that lies at its end says that the grid is too narrow, and a method with a rate that is too low
    or too high is compared with others at their best.

    Parameters
    ----------
    jobs : sequence of dict
        Of the grid.
    runs : (jobs) -> list of Result
        Does them.
    by : (job) -> (str, str), optional
        As for `choose`, which says what is given and raised.
    """
    results = list(runs(jobs))
    for _ in range(FURTHER):
        beyond = []
        for cell, lr in choose(results, by).items():
            own = [r.job for r in results if by(r.job) == cell]
            rates = sorted(job["lr"] for job in own)
            if len(rates) > 1 and lr == rates[0]:
                beyond.append({**own[0], "lr": lr * rates[0] / rates[1]})
            elif len(rates) > 1 and lr == rates[-1]:
                beyond.append({**own[0], "lr": lr * rates[-1] / rates[-2]})
        if not beyond:
            break
        results += runs(beyond)
    return choose(results, by)


# ---------------------------------------------------------------------------------------------- one run


@lru_cache(maxsize=2)
def _base(name: str, backend: str = "numpy") -> tuple[GPT, Tokenizer]:
    return bases.load(name, backend=backend)


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
    return GPT(base.config, seed=seed, backend=base.backend) if name == SCRATCH else base


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
    base, _ = _base(job["base"], job.get("backend", "numpy"))
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
    if not isinstance(task, PairTask):
        return task.score(model, limit=limit)
    loss, _ = evaluate_batches(model, in_batches(task.encoded("test"), limit))
    found = written_scores(model, task, limit) | rewarded(model, task, limit)
    return found | {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def rewarded(model: GPT, task: PairTask, limit: int, asked: PairTask | None = None) -> dict[str, float]:
    """Mean true reward of the greedy completions, for the task that has one: continuations of stories.

    Parameters
    ----------
    model : GPT
    task : PairTask
    limit : int
        Test records.
    asked : PairTask, optional
        The same records with solved examples before each prompt. Then only the first line counts, as nobody has told
        the model where to stop, and what is judged is still the continuation of the record's own prompt.
    """
    if task.name != CONTINUATIONS:
        return {}
    prompts = [pair.prompt for pair in (asked or task).data.test[:limit]]
    written = (asked or task).complete(model, prompts, task.longest("test"))
    if asked:
        written = [text.strip().partition("\n")[0] for text in written]
    rewards = [tinyworld.true_reward(pair.prompt, text) for pair, text in zip(task.data.test, written, strict=False)]
    return {"true_reward": math.fsum(rewards) / len(rewards)}


def prompted(base: GPT, task: Task, shots: int, limit: int) -> dict[str, Any]:
    """What the base reaches by prompting alone; it is asked for labels as multiple choice."""
    room = base.config.n_positions
    if isinstance(task, PairTask):
        asked = few_shot(task, shots, room)
        found = written_scores(base, asked, limit, first_line=True) | rewarded(base, task, limit, asked)
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
        ``merged_latency_ms`` (None where it cannot be merged), ``base_latency_ms``, and ``mixed_latency_ms`` of
        `mixed_latency`.
    """
    base, _ = _base(job["base"], job.get("backend", "numpy"))
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
        models = {"base": base, "tuned": tuned}
        with suppress(InputError):  # what cannot be merged stays as it is
            models["merged"] = method.merge(tuned)
        latencies = token_latencies(models)
        values["base_latency_ms"], values["latency_ms"] = latencies["base"], latencies["tuned"]
        values["merged_latency_ms"] = latencies.get("merged")
        values["mixed_latency_ms"], values["one_batch"] = mixed_latency(base, tuned)
    return values


def token_latencies(models: Mapping[str, GPT], new: int = 64, turns: int = 25) -> dict[str, float]:
    """Median milliseconds for a generated token at batch 1, after a prompt of 16, of models that take turns.

    It is what `generate` takes, and that has a faster way for plain GPTs, merged ones among them.
    """

    def seconds(model: GPT) -> float:
        began = time.perf_counter()
        model.generate([list(range(1, 17))], new, temperature=0)
        return time.perf_counter() - began

    found = in_turns({name: partial(seconds, model) for name, model in models.items()}, turns)
    return {name: 1e3 * each / new for name, each in found.items()}


def mixed_latency(base: GPT, tuned: GPT, rows: int = 8, new: int = 32, repeats: int = 15) -> tuple[float, bool]:
    """What a batch costs whose rows belong to two tasks: milliseconds for one more token of all rows.

    LoRA's adapters can share one pass, each row with its own. Everything else takes a batch for each task.

    Returns
    -------
    milliseconds : float
    one_batch : bool
        Whether one pass served both tasks.
    """
    prompts = [list(range(1, 17))] * rows
    try:
        branches = factors_of(tuned, base)
    except InputError:  # an update that is not beside the base's layers
        branches = {}
    if not branches:
        half = prompts[: rows // 2]
        return 2e3 * median_seconds(lambda: tuned.generate(half, new, temperature=0), repeats) / new, False
    both = MultiLoRA(base, {"first": branches, "second": branches})
    names = ["first", "second"] * (rows // 2)
    return 1e3 * median_seconds(lambda: both.generate(prompts, new, names, temperature=0), repeats) / new, True


# ---------------------------------------------------------------------------------------------- what came out


@dataclass(frozen=True)
class Cell:
    """A method on a task, over the seeds.

    Attributes
    ----------
    method, task : str
    lr : float or None
        The chosen one; None for prompting.
    seeds : list of int
        Those whose runs did not diverge.
    score, forgetting : list of float
        One each.
    diverged : int
    trained : int
    seconds_a_step : float
    to_target : list of float or None
        Seconds until the validation loss has made nine tenths of full fine-tuning's way; None where it never did.
    """

    method: str
    task: str
    lr: float | None
    seeds: list[int]
    score: list[float]
    forgetting: list[float]
    diverged: int
    trained: int
    seconds_a_step: float
    to_target: list[float | None]

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed → score."""
        return dict(zip(self.seeds, self.score, strict=True))


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
                [r.job["seed"] for r in good],
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
    """All runs as CSV, one a line: settings first, then figures, then the versions of what made them."""
    rows, made = [], files.provenance()
    versions = {name: made[name] for name in ("minigpt", "git_commit", "python", "numpy", "platform")}
    for r in results:
        row: dict[str, Any] = dict(r.job) | {"error": r.error, "run_seconds": r.seconds}
        row["settings"] = json.dumps(r.job.get("settings", {}), sort_keys=True)
        if not r.error:
            row |= {f"score_{name}": value for name, value in r.values["scores"].items()}
            row |= {name: r.values.get(name) for name in ("forgetting", "trained", "seconds")}
        rows.append(row | versions)
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


def against_full(found: Sequence[Cell], method: str) -> dict[int, float]:
    """Seed → how much higher a method's score is than full fine-tuning's, mean over the tasks that both have."""
    full = {c.task: c.by_seed for c in found if c.method == "full"}
    each: dict[int, list[float]] = {}
    for cell in found:
        if cell.method == method:
            for seed in cell.by_seed.keys() & full.get(cell.task, {}).keys():
                each.setdefault(seed, []).append(cell.by_seed[seed] - full[cell.task][seed])
    tasks = max(map(len, each.values()), default=0)
    return {seed: statistics.mean(v) for seed, v in each.items() if len(v) == tasks}


@dataclass(frozen=True)
class Swept:
    """A method at one value of a sweep.

    Attributes
    ----------
    sweep, method : str
    value : int, float or str
    lr : float
    trained : int
    parameters : int
        Of the base.
    seeds : list of int
    score, loss : list of float
        On the test split, one a seed that did not diverge.
    """

    sweep: str
    method: str
    value: Any
    lr: float
    trained: int
    parameters: int
    seeds: list[int]
    score: list[float]
    loss: list[float]


def run_sweep(plan: Plan, name: str, kept: Path, cluster: str = "") -> tuple[list[Swept], list[Result]]:
    """Run a sweep: a learning rate for each of its values, as for the methods themselves, and then the seeds."""
    swept = plan.sweeps[name]

    def value_of(job: Job) -> Any:
        return job["base"] if swept.setting == "base" else job["settings"][swept.setting]

    def of(job: Job) -> tuple[str, str]:
        return variant(job["method"], value_of(job)), job["task"]

    grid = {
        variant(method, value): [factor * class_of(method).learning_rate for factor in plan.grid]
        for method in swept.methods
        for value in swept.values
    }
    jobs = plan.sweep_jobs(name, grid, [GRID_SEED])
    chosen = tune(
        jobs, partial(sweep.run, measure, directory=kept, title=f"{name}, learning rates", cluster=cluster), of
    )
    rates = {what: [lr] for (what, _), lr in chosen.items()}
    jobs = plan.sweep_jobs(name, rates, range(plan.sweep_seeds))
    results = sweep.run(measure, jobs, kept, title=name, cluster=cluster)
    gathered: dict[tuple[str, Any], list[Result]] = {}
    for result in results:
        gathered.setdefault((result.job["method"], value_of(result.job)), []).append(result)
    metric, points = TASKS[SWEEP_TASK].metric, []
    for (method, value), runs in gathered.items():
        good = [r for r in runs if not r.error]
        points.append(
            Swept(
                name,
                method,
                value,
                runs[0].job["lr"],
                good[0].values["trained"] if good else 0,
                _base(runs[0].job["base"])[0].n_parameters,
                [r.job["seed"] for r in good],
                [r.values["scores"][metric] for r in good],
                [r.values["scores"]["loss"] for r in good],
            )
        )
    return points, results


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
def seeds_picture(n: int, repeats: int = 40) -> Figure:
    """The same made-up experiment, repeated: its interval over n seeds each time, and whether that holds the truth.

    Two methods are equally good, and every seed's difference is drawn from a normal distribution around 0.

    Parameters
    ----------
    n : int
        Seeds, 2 or more.
    repeats : int
    """
    draws = np.random.default_rng(0).normal(0.0, 0.02, (repeats, n))
    figure, axis = plotting.new(height=3.4)
    missed = 0
    for place, draw in enumerate(draws):
        mean, low, high = mean_interval(draw.tolist())
        wrong = not low < 0 < high
        missed += wrong
        shade = plotting.VERMILLION if wrong else plotting.BLUE
        axis.plot([place, place], [low, high], color=shade, linewidth=1.6)
        axis.scatter([place] * n, draw, color=shade, s=5, alpha=0.5, linewidth=0)
        axis.plot(place, mean, "o", color=shade, markersize=4)
    axis.axhline(0, color=plotting.GREY, linewidth=1)
    axis.set_ylim(-0.1, 0.1)
    axis.set_xlim(-1, repeats)
    axis.set_xlabel("experiment; a small dot a seed, the line the 95 % interval of the mean")
    axis.set_ylabel("difference in accuracy")
    axis.set_title(f"{n} seeds: {missed} of {repeats} find a difference where there is none")
    return figure


@plotting.style()
def quality_picture(found: Sequence[Cell]) -> Figure:
    """Score against the number of trained parameters, a panel a task, with the front of what nothing else beats.

    Colours are families. Named are the methods of the front, full fine-tuning, training from scratch and prompting.
    """
    names = list(dict.fromkeys(c.task for c in found))
    figure, axes = plotting.panels(len(names), height=3.4)
    for axis, task in zip(axes, names, strict=True):
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
        tried = [point for point in points if point[0]]  # by rising cost
        cost, quality = np.array([(trained, mean) for trained, mean, *_ in tried]).T
        front = pareto_front(cost, quality)
        axis.plot(cost[front], quality[front], color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        named = {"full", SCRATCH, *PROMPTING, *(tried[i][-1] for i in np.flatnonzero(front))}
        ends = [(trained or None, mean, method) for trained, mean, _, method in points if method in named]
        name_at_the_side(axis, ends, apart=0.075, fontsize=8)
        plotting.logarithmic(axis)
        axis.set_title(task)
        axis.set_xlabel("trained parameters")
        axis.set_ylabel(TASKS[task].metric)
    families = [
        Line2D([], [], color=shade, marker="o", linestyle="", label=name) for name, (shade, _) in FAMILIES.items()
    ]
    figure.legend(handles=families, loc="outside upper left", ncols=len(families), frameon=False, fontsize=9)
    return figure


@plotting.style()
def forgetting_picture(found: Sequence[Cell]) -> Figure:
    """What was learnt, on the scale from scratch (0) to full fine-tuning (1), against what was forgotten."""
    figure, axis = plotting.new(height=4.8)
    learnt = relative(found)
    ends = []
    for method, value in learnt.items():
        if method == SCRATCH:  # starts with nothing to forget
            continue
        lost = statistics.mean(f for c in found if c.method == method for f in c.forgetting)
        axis.scatter(lost, value, color=colour(method), s=40, zorder=3)
        ends.append((lost, value, method))
    axis.axvline(0, color=plotting.GREY, linewidth=1)
    axis.axhline(1, color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)))
    axis.margins(y=0.08)
    name_at_the_side(axis, ends)
    axis.set_xlabel("forgotten: rise of the base's own held-out loss (nats a token)")
    axis.set_ylabel("learnt: 0 from scratch, 1 full fine-tuning")
    axis.set_title("Learnt against forgotten, mean over the tasks")
    return figure


def name_at_the_side(
    axis: Axes, points: Sequence[tuple[float | None, float, str]], apart: float = 0.055, fontsize: float = 9
) -> None:
    """Names of points (x, y, method) in a column right of the axes, where none covers another, with a line to each.

    A point without an x is a line across the axes, and named from where that ends. The names are `apart` of the axes'
    height from each other.
    """
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    upwards = sorted(points, key=lambda point: point[1])
    heights = [(y - low) / (high - low) for _, y, _ in upwards]
    places = plotting.spaced(heights, apart)
    for (x, y, method), height, place in zip(upwards, heights, places, strict=True):
        axis.annotate(
            method,
            (1, height) if x is None else (x, y),
            (1.04, place),
            xycoords="axes fraction" if x is None else "data",
            textcoords="axes fraction",
            fontsize=fontsize,
            va="center",
            color=colour(method),
            arrowprops={"arrowstyle": "-", "color": colour(method), "linewidth": 0.5, "alpha": 0.6},
        )


@plotting.style()
def sweeps_picture(points: Sequence[Swept]) -> Figure:
    """Test loss over the values of each sweep, a panel each, a dot a seed."""
    names = list(dict.fromkeys(p.sweep for p in points))
    figure, axes = plotting.panels(len(names), height=3.2)
    for axis, name in zip(axes, names, strict=True):
        ends = []
        for method in dict.fromkeys(p.method for p in points if p.sweep == name):
            line = [p for p in points if p.sweep == name and p.method == method and p.loss]
            x = [p.parameters if isinstance(p.value, str) else p.value for p in line]
            means = [statistics.mean(p.loss) for p in line]
            for place, p in zip(x, line, strict=True):
                axis.scatter([place] * len(p.loss), p.loss, color=colour(method), s=14, alpha=0.5, linewidth=0)
            axis.plot(x, means, color=colour(method), marker="o", markersize=4)
            ends.append(plotting.End(x[-1], means[-1], method, colour(method)))
        plotting.logarithmic(axis, 10 if name in ("scale", "density") else 2)
        if name == "density":
            axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_title(name)
        axis.set_xlabel(SWEEPS[name].title)
        axis.set_ylabel("test loss (nats a token)")
        plotting.label_ends(axis, ends)
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

    def latency(m: str) -> float:
        one, merged = costs_of[m].get("latency_ms"), costs_of[m].get("merged_latency_ms")
        return (merged or one or math.nan) / costs_of[m].get("base_latency_ms", math.nan)

    columns: list[tuple[str, dict[str, float], bool]] = [
        ("quality\n0 scratch\n1 full", {m: learnt[m] for m in methods}, False),
        ("forgetting\nnats\na token", lost, False),
        ("\ntrained\nparameters", {m: float(costs_of[m]["trained"]) for m in methods}, True),
        ("memory\nof a step\nMB", {m: costs_of[m]["step"]["bytes"] / 1e6 for m in methods}, False),
        ("time\nof a step\nms", {m: costs_of[m]["step"]["seconds"] * 1e3 for m in methods}, False),
        ("latency\nof a token\n× base", {m: latency(m) for m in methods}, False),
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

SWEEP_SEEDS = 3
CORE_METHODS = ("full", "last_layer", "lora", "adapters", "bitfit", "prompt_tuning", SCRATCH)
CORE_TASKS = ("sentiment-target", "translation")
COST_TASK = "translation"


def plan_of(run: Run) -> Plan:
    """What this run compares."""
    settings = run.settings
    if settings.quick:
        smallest = {name: replace(s, values=s.values[:2]) for name, s in SWEEPS.items()}
        return Plan((*METHODS, SCRATCH), CORE_TASKS, 1, shrink=40, grid=(1.0,), base="base-xs", sweeps=smallest)
    if settings.full:
        return Plan((*METHODS, SCRATCH), tuple(TASKS), SEEDS, sweeps=SWEEPS, sweep_seeds=SWEEP_SEEDS)
    return Plan(CORE_METHODS, CORE_TASKS, seeds=1, shrink=2, grid=(1.0,), base="base-xs")


def lesson(run: Run) -> None:
    """Everything that `make lesson-11` and `make compare` do."""
    settings = run.settings
    if settings.data is not None:
        raise InputError("the comparison runs on its own tasks; the other lessons take DATA")
    derivation.require(derivation.derive(run, DERIVATIONS), "the comparison")
    plan = replace(plan_of(run), backend=run.backend.spec)
    kept = run.directory / ("quick" if settings.quick else "full" if settings.full else "core")
    metric = {task: TASKS[task].metric for task in plan.tasks}
    run.heading("The plan")
    n_grid, n_final = len(plan.grid_jobs()), (len(plan.methods) * plan.seeds + len(PROMPTING)) * len(plan.tasks)
    run.say(
        f"  {len(plan.methods)} methods on {len(plan.tasks)} tasks from {plan.base}: {n_grid} runs to choose learning "
        f"rates (and some more where the best is at an end of the grid), {n_final} that count ({plan.seeds} seeds)\n"
        f"  done ones are kept in {kept}: the same command goes on from there"
    )
    cluster = settings.cluster
    runs = partial(sweep.run, measure, directory=kept, title="choosing learning rates", cluster=cluster)
    chosen = tune(plan.grid_jobs(), runs)
    finals = sweep.run(measure, plan.final_jobs(chosen), kept, title="final runs", cluster=cluster)
    found = cells(finals, metric)
    swept = [run_sweep(plan, name, kept, cluster) for name in plan.sweeps]
    points = [point for part, _ in swept for point in part]
    paid = {r.job["method"]: r.values for r in sweep.run(costs, cost_jobs(plan), kept, workers=1, title="costs")}
    show(run, plan, found, paid)
    if points:
        show_sweeps(run, points)
    everything = [*finals, *(result for _, results in swept for result in results)]
    files.write_atomic(run.directory / "runs.csv", tidy(everything).encode())
    run.results |= {
        "plan": asdict(plan),
        "tasks": {task: asdict(TASKS[task]) for task in plan.tasks},
        "learning_rates": {f"{method} on {task}": lr for (method, task), lr in chosen.items()},
        "cells": [asdict(c) for c in found],
        "sweeps": [asdict(p) for p in points],
        "costs": paid,
        "relative": relative(found),
    }
    files.write_atomic(run.directory / "comparison.md", readme_table(run.results).encode())
    for cell in found:
        if cell.score:
            # what comes out of a smaller base and fewer steps has no place in the full run's bands
            run.report(f"{cell.task}/{cell.method}", cell.score, TASKS[cell.task].metric, banded=run.settings.full)


def cost_jobs(plan: Plan) -> list[Job]:
    """One measurement of cost for each method, on a task with completions."""
    task = COST_TASK
    return [
        {"measure": "cost", "method": m, "task": task, "base": plan.base, "n": 64, "batch_size": TASKS[task].batch_size}
        | plan.place
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
    if plan.seeds > 1 and "full" in plan.methods:
        rows = []
        for method in plan.methods:
            apart = against_full(found, method)
            if method != "full" and len(apart) > 1:
                mean, low, high = paired_interval(apart, dict.fromkeys(apart, 0.0))
                rows.append([method, f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}", str(len(apart))])
        run.say("\n" + table(rows, ["score against full fine-tuning's", "mean over tasks", "95 % interval", "seeds"]))

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
                f"{step['measured_peak'] / 1e6:.1f}",
                f"{step['flops'] / 1e6:,.0f}",
                f"{step['seconds'] * 1e3:.0f}",
                f"{statistics.median(times):.1f}" if len(times) > len(reached) / 2 else "never",
                f"{cost['latency_ms'] / cost['base_latency_ms']:.1f}",
                "–" if merged is None else f"{merged / cost['base_latency_ms']:.1f}",
                f"{cost['mixed_latency_ms']:.2f}{'' if cost['one_batch'] else ' (2)'}",
                f"{statistics.mean(forgotten):+.2f}" if forgotten else "–",
            ]
        )
    headers = [
        "method", "trained", "stored (kB)", "memory (MB)", "peak (MB)", "MFLOP a step", "ms a step", "s to target",
        "× base's token", "merged", "8 rows of 2 tasks", "forgotten (nats)",
    ]  # fmt: skip
    run.say(table(rows, headers))
    run.say(
        "  memory: counted; peak: measured over the weights. × base's token: time of a generated token, in turns with\n"
        "  the base's, and once the update is merged. 8 rows of 2 tasks: ms for one more token of all rows,\n"
        "  (2) where each task takes a batch of its own. s to target: until the validation loss has made nine tenths\n"
        "  of full fine-tuning's way."
    )
    run.picture("quality", quality_picture(found))
    run.picture("memory", memory_picture(paid, COST_TASK))
    if learnt:
        run.picture("forgetting", forgetting_picture(found))
        run.picture("tradeoffs", tradeoffs_picture(found, paid))


def show_sweeps(run: Run, points: Sequence[Swept]) -> None:
    """Tables and a picture of what one setting does."""
    run.heading(f"One setting at a time, on {SWEEP_TASK}")
    for name in dict.fromkeys(p.sweep for p in points):
        rows = [
            [f"{p.method}, {p.value}", f"{p.trained:,}", f"{p.lr:g}", spread(p.loss, 3), spread(p.score, 3)]
            if p.score
            else [f"{p.method}, {p.value}", f"{p.trained:,}", f"{p.lr:g}", "diverged", ""]
            for p in points
            if p.sweep == name
        ]
        headers = [SWEEPS[name].title, "trained", "learning rate", "test loss", TASKS[SWEEP_TASK].metric]
        run.say(table(rows, headers) + "\n")
    run.picture("sweeps", sweeps_picture(points))


def readme_table(results: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table, from a record's ``results``: what each method costs and reaches.

    Parameters
    ----------
    results : dict
        With ``plan``, ``cells``, ``costs`` and ``relative``.
    """
    plan, learnt, paid = results["plan"], results["relative"], results["costs"]
    by_cell = {(c["method"], c["task"]): c for c in results["cells"]}
    headers = ["method", "trained", "step memory (MB)", "a token's time once merged, × base", "forgotten (nats)"]
    headers += [f"{task} ({TASKS[task].metric})" for task in plan["tasks"]]
    rows = []
    for method in sorted((*plan["methods"], *PROMPTING), key=lambda m: -learnt.get(m, -math.inf)):
        cost = paid.get(method)
        lost = [f for task in plan["tasks"] for f in by_cell[method, task]["forgetting"]]
        row = [method, *["–"] * 3]
        if cost:
            token = cost["merged_latency_ms"] or cost["latency_ms"]
            slower = token / cost["base_latency_ms"]
            row = [method, f"{cost['trained']:,}", f"{cost['step']['bytes'] / 1e6:.1f}", f"{slower:.1f}"]
        row.append(f"{statistics.mean(lost):+.2f}" if cost and lost else "–")
        row += [
            spread(c["score"], 3) if c["score"] else "diverged" for c in (by_cell[method, t] for t in plan["tasks"])
        ]
        rows.append(row)
    return markdown(rows, headers)


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-11``; gives the exit code."""
    return runner.main(11, __doc__, lesson, argv, takes=runner.NOTHING, clusters=sweep.CLUSTERS)


if __name__ == "__main__":
    sys.exit(main())
