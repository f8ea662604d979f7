"""What lesson 8 measures: methods on tasks over seeds, the price of a step and of a token, adapters switched off."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullFormatter

from lessons import METHODS
from lessons.common import plotting, sweep
from lessons.common.measure import StepCost, in_turns, step_cost
from lessons.common.method import Method
from lessons.common.plotting import End
from lessons.common.runner import Run
from lessons.common.sweep import Job, Result
from lessons.common.table import spread, table
from lessons.common.tasks import Task, load_task
from lessons.common.tuning import Budget, fine_tune
from minigpt import GPT, bases
from minigpt.context import KVCache
from minigpt.errors import InputError, RunError
from minigpt.heads import lm_logits
from minigpt.objectives import LanguageModelling

PLACEMENTS = ("houlsby", "pfeiffer", "parallel", "parallel_mlp")


@dataclass(frozen=True)
class Plan:
    """What the experiment runs.

    Attributes
    ----------
    base : str
    tasks : tuple of str
        The studies of initial scale, LayerNorm and depth are on the first.
    records : int
        Training records of a task.
    budget : Budget
    sizes, placements : tuple
        Of the size sweep.
    size : int
        Bottleneck in the other studies.
    init_stds : tuple of float
    seeds : int
    scored : int or None
        Test records; None for all.
    repeats : int
        Of what is timed.
    processes : int
        Runs at a time; 0: one a core.
    """

    base: str = "base-s"
    tasks: tuple[str, ...] = ("rewriting", "pydocs-topics")
    records: int = 2000
    budget: Budget = field(default_factory=lambda: Budget(steps=120, workers=1))
    sizes: tuple[int, ...] = (1, 8, 64)
    placements: tuple[str, ...] = ("houlsby", "parallel")
    size: int = 8
    init_stds: tuple[float, ...] = (0.0, 1e-3, 0.1, 1.0)
    seeds: int = 1
    scored: int | None = 200
    repeats: int = 9
    processes: int = 0


CORE = Plan()
FULL = replace(  # the same budget and test records: its bands are what a core run is compared with
    CORE,
    sizes=(1, 2, 4, 8, 16, 32, 64),
    placements=PLACEMENTS,
    init_stds=(0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0),
    seeds=5,
)
QUICK = Plan(
    base="base-xs",
    tasks=("rewriting", "topic"),
    records=32,
    budget=Budget(steps=2, batch_size=4, workers=1),
    sizes=(1, 2),
    placements=("houlsby",),
    size=2,
    init_stds=(1e-3, 1.0),
    scored=4,
    repeats=1,
    processes=1,
)


class HeadOnly(Method):
    """A classifier head on the frozen base: what every other method has to beat."""

    name: ClassVar[str] = "head only"
    learning_rate: ClassVar[float] = 3e-3

    def install(self, trunk: GPT, seed: int, data: Any) -> None:
        """Nothing of the base is trained."""


def make(method: str, settings: Mapping[str, Any]) -> Method:
    """A method by name."""
    return (HeadOnly if method == HeadOnly.name else METHODS[method])(**settings)


@dataclass(frozen=True)
class Variant:
    """One thing that is tried.

    Attributes
    ----------
    study, label : str
        What it belongs to, and what it is called there.
    method : str
    settings : dict
        Of the method.
    """

    study: str
    label: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)


OTHERS = (
    Variant("methods", "full", "full"),
    Variant("methods", "lora r=4", "lora", {"r": 4, "lora_alpha": 8}),
    Variant("methods", "bitfit", "bitfit"),
    Variant("methods", "ia3", "ia3"),
)
"""What adapters are compared with."""


def variants(plan: Plan, labelled: bool, n_layer: int, first: bool) -> list[Variant]:
    """All that is tried on a task."""

    def adapters(study: str, label: str, bottleneck: int, **settings: Any) -> Variant:
        return Variant(study, label, "adapters", {"bottleneck": bottleneck, **settings})

    tried = [*OTHERS, *([Variant("methods", HeadOnly.name, HeadOnly.name)] if labelled else [])]
    for placement in plan.placements:
        tried += [adapters("sizes", f"{placement} m={m}", m, placement=placement) for m in plan.sizes]
    if first:
        bare: dict[str, Any] = {"placement": plan.placements[0], "train_layernorm": False}
        tried += [adapters("init", f"{std:g}", plan.size, **bare, init_std=std) for std in plan.init_stds]
        tried += [adapters("layernorm", f"without m={m}", m, **bare) for m in plan.sizes]
        tried += [adapters("depth", f"{i}", plan.size, **bare, layers_to_transform=(i,)) for i in range(n_layer)]
        tried.append(adapters("depth", "all", plan.size, **bare))
    return tried


def everything(plan: Plan, tasks: Mapping[str, Task], n_layer: int) -> list[tuple[str, Variant]]:
    """All that is tried on all tasks, by the task's name."""
    return [
        (name, variant)
        for i, (name, task) in enumerate(tasks.items())
        for variant in variants(plan, task.n_labels is not None, n_layer, i == 0)
    ]


# ---------------------------------------------------------------------------------------------- runs


@lru_cache(maxsize=4)
def _loaded(base: str, backend: str, task: str, records: int) -> tuple[GPT, Task]:
    model, tokenizer = bases.load(base, backend=backend)
    return model, load_task(task, tokenizer, records)


def measure(job: Job) -> dict[str, Any]:
    """One run: train a method on a task and score it; where asked, with adapters switched off as well."""
    base, task = _loaded(job["base"], job["backend"], job["task"], job["records"])
    method = make(job["method"], {**job["settings"], "n_labels": task.n_labels})
    run = fine_tune(method, base, task, Budget(**job["budget"]), job["seed"])
    score = task.score(run.model, limit=job["scored"])
    found: dict[str, Any] = {"trainable": run.n_trainable, "accuracy": score["accuracy"], "loss": score["loss"]}
    if job["study"] == "depth" and job["label"] == "all":
        found["switched_off"] = spans(run.model, task, base.config.n_layer, job["scored"])
    return found


@dataclass(frozen=True)
class Outcome:
    """What a variant reached on a task, one entry a seed; NaN where a run diverged.

    Attributes
    ----------
    trainable : int
    accuracy, loss : list of float
        On the test split.
    results : list of Result
    """

    trainable: int
    accuracy: list[float]
    loss: list[float]
    results: list[Result]

    def __getitem__(self, metric: str) -> list[float]:
        return self.accuracy if metric == "accuracy" else self.loss

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return math.fsum(self[metric]) / len(self[metric])

    @classmethod
    def of(cls, results: list[Result]) -> Outcome:
        """Of the runs of one variant."""

        def values(name: str) -> list[Any]:
            return [r.values.get(name, math.nan) for r in results]

        trainable = [n for n in values("trainable") if n == n]
        return cls(trainable[0] if trainable else 0, values("accuracy"), values("loss"), results)

    def cells(self) -> list[str]:
        """For a table: trainable parameters, accuracy, loss."""
        if any(math.isnan(v) for v in self.accuracy):
            return [f"{self.trainable:,}", "diverged", ""]
        return [f"{self.trainable:,}", spread(self.accuracy), spread(self.loss)]

    def as_record(self) -> dict[str, Any]:
        """Ready for JSON."""
        first = self.results[0].job
        runs = [r.values or {"error": r.error} for r in self.results]
        return {"method": first["method"], "settings": first["settings"], "runs": runs}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """What a record holds of it: everything but the jobs and their times."""
        return cls.of([Result({}, {} if "error" in r else r, r.get("error", ""), math.nan) for r in record["runs"]])


Outcomes = dict[str, dict[str, Outcome]]
"""Study → label of the variant → what it reached."""


def from_record(outcomes: Mapping[str, Any]) -> dict[str, Outcomes]:
    """What a full run's record holds of its outcomes, by task and in the plan's order."""
    return {
        task: {
            kind: {label: Outcome.from_record(o) for label, o in found.items()}
            for kind, found in outcomes[task].items()
        }
        for task in FULL.tasks
    }


METRICS = {"accuracy": "accuracy on the test split", "loss": "test loss (nats a token)"}
"""What a task is judged by, and what an axis says of it."""


def metric_of(outcomes: Outcomes) -> str:
    """Labelled texts are judged by accuracy, completions by loss: whole ones are right late, and then all at once."""
    return "accuracy" if HeadOnly.name in outcomes["methods"] else "loss"


def try_all(plan: Plan, todo: Sequence[tuple[str, Variant]], seeds: Sequence[int], backend: str) -> dict[str, Outcomes]:
    """Train and score every variant on its task, with every seed.

    Parameters
    ----------
    plan : Plan
    todo : sequence of (task, Variant)
    seeds : sequence of int
    backend : str

    Returns
    -------
    outcomes : dict
        Name of a task → its outcomes.

    Raises
    ------
    RunError
        If a run diverged that should not: a start far from the identity may.
    """
    common = {"base": plan.base, "backend": backend, "records": plan.records, "scored": plan.scored}
    common |= {"budget": asdict(plan.budget)}
    jobs = [common | asdict(variant) | {"task": task, "seed": seed} for task, variant in todo for seed in seeds]
    with tempfile.TemporaryDirectory() as folder:  # a fresh one: results of an earlier run may be of other code
        results = sweep.run(measure, jobs, folder, plan.processes if backend == "numpy" else 1, title="training")
    found: dict[str, Outcomes] = {}
    for (task, variant), start in zip(todo, range(0, len(jobs), len(seeds)), strict=True):
        runs = results[start : start + len(seeds)]
        failed = [r.error for r in runs if r.error]
        if failed and variant.study != "init":
            raise RunError(f"{task}, {variant.label}: {failed[0]}")
        outcome = Outcome.of(runs)
        found.setdefault(task, {}).setdefault(variant.study, {})[variant.label] = outcome
    return found


def token_seconds(models: Mapping[str, GPT], tokens: int, repeats: int) -> dict[str, float]:
    """Median time of one more token at batch 1 with a key/value cache, through each model's layers.

    `generate` has a short cut for plain GPTs, which would count against every model whose layers were changed.

    Parameters
    ----------
    models : dict of str to GPT
    tokens, repeats : int
        Tokens of a sequence, and sequences of each model.
    """
    found = in_turns({name: partial(_sequence_seconds, model, tokens) for name, model in models.items()}, repeats)
    return {name: seconds / tokens for name, seconds in found.items()}


def _sequence_seconds(model: GPT, tokens: int) -> float:
    config, backend = model.config, model.backend
    ids = backend.asarray(np.zeros((1, 1), np.int64))
    cache = KVCache(
        backend, config.n_layer, 1, config.n_head, config.n_positions, config.n_embd // config.n_head, model.dtype
    )
    began = time.perf_counter()
    for _ in range(tokens):
        ctx = model.context(cache=cache)
        hidden, _ = model.forward(ids, ctx)
        backend.to_numpy(lm_logits(hidden[:, -1], model.wte, ctx))
    return time.perf_counter() - began


def switched_off(tuned: Any, blocks: Iterable[int]) -> Any:
    """A copy of a model with adapters, in which those of some blocks add nothing."""
    twin = tuned.copy()
    prefixes = tuple(f"transformer.h.{i}." for i in blocks)
    for p in twin.parameters():
        if p.name.startswith(prefixes) and ".adapter.up." in p.name:
            p.data = twin.backend.zeros(p.data.shape, p.data.dtype)
    return twin


def spans(tuned: Any, task: Task, n_layer: int, scored: int | None) -> list[list[float | None]]:
    """Test loss with the adapters of blocks first to last switched off after training.

    Houlsby et al. (2019), arXiv:1902.00751, figure 6.

    Returns
    -------
    loss : L rows of L
        By first and last block; None where the first comes after the last.
    """

    def without(first: int, last: int) -> float | None:
        off = switched_off(tuned, range(first, last + 1))
        return task.score(off, limit=scored)["loss"] if first <= last else None

    return [[without(first, last) for last in range(n_layer)] for first in range(n_layer)]


# ---------------------------------------------------------------------------------------------- tables


def show_costs(run: Run, base: GPT, task: Task, plan: Plan) -> None:
    """Parameters, step and token of every technique, as language models."""
    run.heading("What a step and a token cost")
    batch = task.batches(plan.budget.batch_size)(0)
    ids = batch["ids"]
    batch = {"ids": ids, "targets": batch.get("targets", np.where(ids == ids[:, :1], -100, ids))}
    m = plan.size
    ours = [Variant("", f"{p} m={m}", "adapters", {"bottleneck": m, "placement": p}) for p in PLACEMENTS]
    steps: dict[str, StepCost] = {}
    formulas: dict[str, str] = {}
    models: dict[str, GPT] = {}
    states: dict[str, str] = {}
    for variant in (*OTHERS, *ours):
        method: Any = make(variant.method, variant.settings)
        tuned = method.apply(base)
        steps[variant.label] = step_cost(tuned, LanguageModelling(), batch, plan.repeats)
        formulas[variant.label] = f"{method.count(base.config):,}" if hasattr(method, "count") else ""
        try:
            models[variant.label], states[variant.label] = method.merge(tuned), "merged"
        except InputError:
            models[variant.label], states[variant.label] = tuned, "stays"
    tokens = token_seconds(models, 5 * plan.repeats, 3 * plan.repeats)
    rows = [
        [
            label,
            f"{step.trainable:,}",
            formulas[label],
            f"{100 * step.trainable / base.n_parameters:.2f} %",
            f"{1e3 * step.seconds:.1f}",
            f"{(step.gradients + step.optimizer) / 1e6:.2f}",
            f"{step.activations / 1e6:.2f}",
            f"{step.measured_peak / 1e6:.2f}",
            f"{1e6 * tokens[label]:.0f}",
            states[label],
        ]
        for label, step in steps.items()
    ]
    headers = ["", "trained", "formula", "of base", "step ms", "dW + Adam MB", "kept MB",
               "peak MB", "token µs", ""]  # fmt: skip
    run.say(table(rows, headers, "lrrrrrrrrl"))
    run.say(
        "\n  Gradients and optimizer state shrink with what is trained. What is kept of the forward, the activations,\n"
        "  shrinks less: the gradient still has to pass through the frozen layers on its way down. What\n"
        "  BitFit and IA3 learn folds into the weights; an adapter is two more products and a GELU for\n"
        "  every token, after or beside the layer it belongs to."
    )
    run.results["costs"] = {
        label: {"step": step.as_record(), "token_seconds": tokens[label], "state": states[label]}
        for label, step in steps.items()
    }
    slow = tokens[ours[0].label] / tokens["full"]
    run.report("adapter_time_a_token", slow, "× base", digits=2, banded=False)


def show_quality(run: Run, results: Mapping[str, Outcomes], base: GPT, plan: Plan) -> None:
    """What every method and size reaches."""
    run.heading("What each reaches")
    for task, outcomes in results.items():
        found = outcomes["methods"] | outcomes["sizes"]
        rows = [[label, *o.cells()] for label, o in sorted(found.items(), key=lambda item: item[1].trainable)]
        run.say(table(rows, [task, "trainable", "accuracy", "test loss"]) + "\n")
    run.say("  Sorted by size: a row that is worse than one above it pays for parameters and gets nothing for them.")
    sizes = dict.fromkeys(plan.placements, plan.sizes)
    run.picture("quality", quality_picture(results, sizes, base.n_parameters))


def show_choices(run: Run, task: str, outcomes: Outcomes, base: GPT, plan: Plan) -> None:
    """Initial scale, LayerNorms, and which blocks' adapters matter."""
    home, L = plan.placements[0], base.config.n_layer
    run.heading(f"What matters in an adapter: {task}, {home}, m = {plan.size} unless it says otherwise")
    rows = [[f"initial σ = {std}", *o.cells()] for std, o in outcomes["init"].items()]
    for m in plan.sizes:
        rows.append([f"m = {m}, LayerNorms frozen", *outcomes["layernorm"][f"without m={m}"].cells()])
        rows.append([f"m = {m}, LayerNorms trained", *outcomes["sizes"][f"{home} m={m}"].cells()])
    depth = outcomes["depth"]
    rows += [["adapters in " + ("all blocks" if i == "all" else f"block {i}"), *o.cells()] for i, o in depth.items()]
    run.say(table(rows, ["", "trainable", "accuracy", "test loss"]))
    run.say(
        "\n  At σ = 0 neither matrix ever leaves 0, and only the last bias is trained. On BERT, Houlsby et al. found\n"
        "  starts above σ = 0.01 to do worse, and the upper blocks' adapters to matter most: compare."
    )
    run.picture("choices", choices_picture(outcomes, plan.sizes, home))

    gained = gained_by_switching_off(depth)
    run.picture("depth", depth_picture(gained.mean(0), depth))
    for i, word in ((0, "lowest"), (L - 1, "highest")):
        run.report(f"loss_without_the_{word}_adapters", gained[:, i, i].tolist(), "nats more")


def gained_by_switching_off(depth: Mapping[str, Outcome]) -> np.ndarray:
    """What the loss gains without the adapters of blocks first to last, (seeds, L, L)."""
    off = np.array([r.values["switched_off"] for r in depth["all"].results], dtype=float)
    return off - np.array(depth["all"].loss)[:, None, None]


# ---------------------------------------------------------------------------------------------- pictures


@plotting.style()
def bottleneck_picture(d: int, m: int) -> Figure:
    """An adapter drawn to scale, and where the four placements put it."""
    grid = {"width_ratios": [1.5, 1, 1, 1, 1]}
    figure, (shape, *places) = plotting.new(1, 5, height=4.6, gridspec_kw=grid)
    levels = (
        (0.0, d, plotting.SKY),
        (1.0, m, plotting.VERMILLION),
        (2.0, d, plotting.SKY),
    )
    for height, wide, colour in levels:
        shape.add_patch(Rectangle((-wide / 2, height), wide, 0.18, facecolor=colour))
    shape.text(0, -0.06, f"a: {d}", ha="center", va="top", fontsize=9)
    shape.text(-m / 2 - 2, 1.09, f"gelu(aD + b):\n{m}", ha="right", va="center", fontsize=9)
    shape.text(0, 2.24, f"f(a): {d}", ha="center", va="bottom", fontsize=9)
    for (low, below, _), (high, above, _), matrix in zip(levels, levels[1:], ("D", "U"), strict=False):
        corners = [(-below / 2, low + 0.18), (below / 2, low + 0.18), (above / 2, high), (-above / 2, high)]
        shape.add_patch(Polygon(corners, facecolor="#EFEFEF", zorder=0))
        shape.text(0, (low + high) / 2 + 0.09, matrix, ha="center", va="center", color=plotting.GREY, fontsize=12)
    arrow = {"arrowstyle": "->", "color": plotting.GREY, "connectionstyle": "arc3,rad=0.25", "linewidth": 1.4}
    shape.annotate("", (0.54 * d, 2.45), (0.54 * d, 0.05), arrowprops=arrow, annotation_clip=False)
    shape.text(0, 2.62, "y = a + f(a)", ha="center", va="bottom")
    shape.set_xlim(-0.6 * d, d)
    shape.set_ylim(-0.25, 3.05)
    shape.set_title(f"{2 * d * m + m + d:,} numbers")
    for panel, placement in zip(places, PLACEMENTS, strict=True):
        _placement(panel, placement)
    for panel in (shape, *places):
        panel.axis("off")
    return figure


def _placement(ax: Axes, placement: str) -> None:
    parallel, both = placement.startswith("parallel"), placement in ("houlsby", "parallel")
    ax.set_title(placement.replace("_", " "), fontsize=10)
    ax.plot([0, 0], [-0.1, 6.3], color=plotting.GREY, linewidth=1.6)
    for bottom, sublayer, has in ((0.2, "attention", both), (3.3, "MLP", True)):
        into, out = bottom, bottom + 2.6
        ax.plot([0, 1.1, 1.1, 0], [into, into, out, out], color=plotting.GREY, linewidth=1.2, zorder=1)
        ax.text(0, out, "+", ha="center", va="center", fontsize=10, zorder=3,
                bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": plotting.GREY})  # fmt: skip
        boxes = [(1.1, bottom + 0.75, sublayer, "#DDDDDD", "black")]
        if has and parallel:
            ax.plot([1.1, 2.55, 2.55, 1.1], [into + 0.3, into + 0.3, out - 0.3, out - 0.3], color=plotting.GREY,
                    linewidth=1.2, zorder=1)  # fmt: skip
            boxes.append((2.55, bottom + 1.3, "adapter", plotting.VERMILLION, "white"))
        elif has:
            boxes.append((1.1, bottom + 1.85, "adapter", plotting.VERMILLION, "white"))
        for x, y, name, colour, ink in boxes:
            turned = 90 if parallel and has else 0
            wide, tall = (0.62, 1.5) if turned else (1.9, 0.62)
            y = bottom + 1.3 if turned else y
            ax.add_patch(Rectangle((x - wide / 2, y - tall / 2), wide, tall, facecolor=colour, zorder=2))
            ax.text(x, y, name, rotation=turned, ha="center", va="center", fontsize=8, color=ink, zorder=3)
    ax.set_xlim(-0.35, 3.0)
    ax.set_ylim(-0.3, 6.6)


@plotting.style()
def start_picture(stds: Sequence[float], added: Sequence[float], losses: Sequence[float], base_loss: float) -> Figure:
    """How far from the base a model with fresh adapters is, over the initial standard deviation.

    Parameters
    ----------
    stds : sequence of float
    added : sequence of float
        Length of what an adapter adds, as a share of its input's.
    losses : sequence of float
        Of the model before the first step.
    base_loss : float
    """
    figure, (left, right) = plotting.new(1, 2, height=3.6)
    left.plot(stds, added, color=plotting.BLUE, marker="o", markersize=4)
    left.set_yscale("log")
    left.set_ylabel("length of f(x) / length of x")
    left.set_title("What one adapter adds")
    right.plot(stds, losses, color=plotting.VERMILLION, marker="o", markersize=4)
    right.axhline(base_loss, color=plotting.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    right.text(stds[0], base_loss, "the base", color=plotting.GREY, va="bottom")
    right.set_ylabel("loss before the first step (nats)")
    right.set_title("Where training begins")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.set_xlabel("initial σ of both matrices")
    left.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    return figure


@plotting.style()
def costs_picture(costs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Memory of a training step as stacked bars, and the time of one more generated token.

    Parameters
    ----------
    costs : dict
        Method → ``"step"`` (a `StepCost`'s record), ``"token_seconds"``, ``"state"``.
    """
    figure, (memory, time_) = plotting.new(
        1, 2, height=1.3 + 0.36 * len(costs), sharey=True, gridspec_kw={"width_ratios": [1.9, 1]}
    )
    parts = (
        ("weights", "#BFBFBF"), ("gradients", plotting.VERMILLION), ("optimizer", plotting.GREEN),
        ("activations", plotting.SKY),
    )  # fmt: skip
    for row, cost in enumerate(costs.values()):
        start = 0.0
        for part, colour in parts:
            size = cost["step"][part] / 1e6
            memory.barh(row, size, left=start, color=colour, height=0.7)
            start += size
        memory.text(start, row, f" {start:.1f}", va="center", fontsize=9)
        merged = cost["state"] == "merged"
        colour = plotting.BLUE if merged else plotting.VERMILLION
        time_.scatter([1e6 * cost["token_seconds"]], [row], color=colour, s=40, linewidth=0, zorder=3)
    memory.set_yticks(range(len(costs)), list(costs))
    memory.set_ylim(len(costs) - 0.4, -0.6)
    memory.set_xlim(right=1.12 * memory.get_xlim()[1])
    memory.set_xlabel("memory of a training step (MB)")
    time_.set_xlim(0, 1.12 * max(1e6 * cost["token_seconds"] for cost in costs.values()))
    time_.set_xlabel("time of one more token (µs)")
    time_.set_title("Token")
    memory.set_title("Step")
    for ax in (memory, time_):
        ax.grid(axis="y", visible=False)
    handles: list[Any] = [Patch(color=colour, label=part) for part, colour in parts]
    handles += [
        Line2D([], [], color=colour, marker="o", linestyle="", label=name)
        for colour, name in ((plotting.BLUE, "merged"), (plotting.VERMILLION, "adapters stay"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9,
                  handletextpad=0.4, columnspacing=1.2)  # fmt: skip
    return figure


def dots(ax: Axes, x: float, values: Sequence[float], colour: str) -> None:
    """A dot a seed."""
    ax.scatter([x] * len(values), values, color=colour, s=14, alpha=0.5, linewidth=0)


@plotting.style()
def quality_picture(results: Mapping[str, Outcomes], sizes: Mapping[str, Sequence[int]], base_size: int) -> Figure:
    """Quality over trainable parameters: a line for each placement of adapters, a point for each other method.

    Parameters
    ----------
    results : mapping
        Task → outcomes.
    sizes : mapping of str to sequence of int
        Placement → bottlenecks, in the order of the line.
    base_size : int
        Parameters of the base.
    """
    figure, axes = plotting.new(1, len(results), height=4.6, squeeze=False)
    for ax, (task, outcomes) in zip(axes[0], results.items(), strict=True):
        metric, ends = metric_of(outcomes), []
        for colour, (placement, bottlenecks) in zip(plotting.PALETTE, sizes.items(), strict=False):
            line = [outcomes["sizes"][f"{placement} m={m}"] for m in bottlenecks]
            x, y = [o.trainable for o in line], [o.mean(metric) for o in line]
            ax.plot(x, y, color=colour, marker="o", markersize=4)
            for o in line:
                dots(ax, o.trainable, o[metric], colour)
            ends.append(End(x[-1], y[-1], placement.replace("_", " "), colour))
        for name, o in outcomes["methods"].items():
            ax.scatter([o.trainable], [o.mean(metric)], color=plotting.BLACK, s=26, marker="D")
            dots(ax, o.trainable, o[metric], plotting.BLACK)
            left = name == "full"
            ax.annotate(
                name,
                (o.trainable, o.mean(metric)),
                xytext=(-7 if left else 7, -3),
                textcoords="offset points",
                ha="right" if left else "left",
                va="top",
                fontsize=9,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
        ax.set_xscale("log")
        ax.set_xlim(right=3 * base_size)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(task)
        ax.set_xlabel("trainable parameters")
        ax.set_ylabel(METRICS[metric])
        plotting.label_ends(ax, ends, 12)
    return figure


@plotting.style()
def choices_picture(outcomes: Outcomes, sizes: Sequence[int], placement: str) -> Figure:
    """Quality over the initial standard deviation, and over the bottleneck with and without LayerNorms."""
    metric = metric_of(outcomes)
    figure, (left, right) = plotting.new(1, 2, height=3.8)
    init = outcomes["init"]
    for place, o in enumerate(init.values()):
        dots(left, place, o[metric], plotting.BLUE)
    left.plot([o.mean(metric) for o in init.values()], color=plotting.BLUE, marker="o", markersize=4)
    left.set_xticks(range(len(init)), list(init), fontsize=8)
    left.set_xlabel("initial σ of both matrices")
    left.set_ylabel(METRICS[metric])
    left.set_title("How near to the identity?")
    if metric == "loss":
        left.set_yscale("log")  # a start far away costs several times the loss
        for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
            axis(FuncFormatter(lambda v, _: f"{v:.1f}"))
    ends = []
    lines = {
        "LayerNorms trained": [outcomes["sizes"][f"{placement} m={m}"] for m in sizes],
        "frozen": [outcomes["layernorm"][f"without m={m}"] for m in sizes],
    }
    for colour, (name, line) in zip(plotting.PALETTE[1:], lines.items(), strict=False):
        for m, o in zip(sizes, line, strict=True):
            dots(right, m, o[metric], colour)
        right.plot(sizes, [o.mean(metric) for o in line], color=colour, marker="o", markersize=4)
        ends.append(End(sizes[-1], line[-1].mean(metric), name, colour))
    right.set_xscale("log", base=2)
    right.set_xticks(list(sizes), [str(m) for m in sizes])
    right.set_xlabel("bottleneck m")
    right.set_title("LayerNorms too?")
    plotting.label_ends(right, ends)
    return figure


@plotting.style()
def depth_picture(gained: np.ndarray, depth: Mapping[str, Outcome]) -> Figure:
    """What switching adapters off after training adds to the loss, and the loss with adapters in one block alone.

    Parameters
    ----------
    gained : (L, L)
        By first and last block; NaN where the first comes after the last.
    depth : mapping of str to Outcome
        Block, or ``"all"``.
    """
    figure, (left, right) = plotting.new(1, 2, height=3.8)
    L = gained.shape[0]
    shown = np.ma.masked_invalid(gained)
    top = max(float(shown.max()), 1e-9)  # a model that learnt nothing loses nothing
    left.imshow(shown, cmap=plotting.INTENSITY, vmin=0, vmax=top)
    for (first, last), value in np.ndenumerate(gained):
        if not math.isnan(value):
            colour = "white" if value > 0.6 * top else "black"
            left.text(last, first, f"{value:+.2f}", ha="center", va="center", color=colour)
    left.set_xticks(range(L))
    left.set_yticks(range(L))
    left.grid(visible=False)
    left.set_xlabel("to block")
    left.set_ylabel("from block")
    left.set_title("Loss added by switching off (nats)")
    for place, o in enumerate(depth.values()):
        right.bar(place, o.mean("loss"), color=plotting.SKY, width=0.6)
        dots(right, place, o.loss, plotting.BLACK)
    right.set_xticks(range(len(depth)), list(depth))
    right.set_xlim(-0.6, len(depth) - 0.4)
    right.set_ylim(bottom=0)
    right.set_ylabel("test loss (nats)")
    right.set_xlabel("block that has adapters")
    right.set_title("Trained in one block only")
    return figure
