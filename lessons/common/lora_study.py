"""Lesson 7's experiments: what LoRA costs, which rank and which matrices, its relatives, and what it has learnt."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tqdm import tqdm

from lessons import METHODS
from lessons.common import plotting
from lessons.common.adapter_study import HeadOnly
from lessons.common.measure import StepCost, step_cost
from lessons.common.method import Method
from lessons.common.plotting import End
from lessons.common.runner import Run
from lessons.common.table import spread, table
from lessons.common.tasks import Task
from lessons.common.tuning import Budget, fine_tune
from minigpt import GPT, RunError
from minigpt.objectives import LanguageModelling

ALL = "all-linear"


@dataclass(frozen=True)
class Plan:
    """Sizes of an experiment.

    Attributes
    ----------
    base : str
    tasks : (str, str)
        Of pairs, for everything; of labelled texts, for the relatives.
    second : str
        Another task of pairs, for a second adapter.
    records : int
        Training records of a task.
    budget : Budget
    ranks, alphas : tuple of int
    rs_ranks : tuple of int
        Of rsLoRA.
    rank : int
        Of everything that has one rank.
    targets : bool
        Whether sets of matrices are compared at equal budget.
    labelled : tuple of str
        The methods that are tried on labelled texts; all if empty.
    label_steps : int
        Training steps there.
    rate_factors : tuple of float
        Factors on each method's learning rate that are tried on pairs, to see whether a method loses by its rate.
    seeds, headline : int
        Of the ablations, and of the comparison of methods.
    scored : int or None
        Records of the test split that are looked at.
    step_base : str
        Model whose step is measured.
    repeats : int
        Of what is timed.
    """

    base: str = "base-s"
    tasks: tuple[str, str] = ("rewriting", "pydocs-topics")
    second: str = "translation"
    records: int = 2000
    budget: Budget = field(default_factory=lambda: Budget(steps=150, workers=1))
    ranks: tuple[int, ...] = (1, 8, 64)
    rs_ranks: tuple[int, ...] = (64,)
    alphas: tuple[int, ...] = ()
    rank: int = 8
    targets: bool = False
    labelled: tuple[str, ...] = ("full fine-tuning", "LoRA", "head only")
    label_steps: int = 100
    rate_factors: tuple[float, ...] = ()
    seeds: int = 1
    headline: int = 1
    scored: int | None = 200
    step_base: str = "base-m"
    repeats: int = 5


CORE = Plan()
FULL = replace(
    CORE,
    ranks=(1, 2, 4, 8, 16, 32, 64),
    rs_ranks=(1, 2, 4, 8, 16, 32, 64),
    alphas=(1, 4, 16, 64, 256),
    targets=True,
    labelled=(),
    rate_factors=(1 / 3, 1.0, 3.0),
    seeds=3,
    headline=5,
)
QUICK = replace(
    CORE,
    base="base-xs",
    tasks=("rewriting", "topic"),
    records=32,
    budget=Budget(steps=2, batch_size=4, workers=1),
    ranks=(1, 4),
    rs_ranks=(4,),
    alphas=(1,),
    rank=4,
    targets=True,
    labelled=(),
    label_steps=2,
    rate_factors=(1.0,),
    scored=4,
    step_base="base-xs",
    repeats=1,
)


RATES = {"full": 3e-3}
"""Learning rates on pairs that are not the method's usual one; a full run shows what others would give."""

# ---------------------------------------------------------------------------------------------- what is tried


@dataclass(frozen=True)
class Outcome:
    """What a method reached on a task, a value a seed.

    Attributes
    ----------
    method : Method
    trainable : int
    loss, accuracy : list of float
        On the test split.
    models : list
        The tuned models.
    """

    method: Method
    trainable: int
    loss: list[float]
    accuracy: list[float]
    models: list[Any]

    def as_record(self) -> dict[str, Any]:
        """Ready for JSON."""
        settings = {"method": self.method.name, "settings": asdict(self.method)}
        return settings | {"trainable": self.trainable, "loss": self.loss, "accuracy": self.accuracy}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """What a record holds of it: everything but the models."""
        method = make(record["method"], **record["settings"])
        return cls(method, record["trainable"], record["loss"], record["accuracy"], [])


def make(name: str, **settings: Any) -> Any:
    """A method by name."""
    return METHODS[name](**settings)


def relatives(rank: int, n_labels: int | None) -> dict[str, Method]:
    """LoRA, its relatives and its rivals by name, at the same rank on the same matrices."""
    shared: dict[str, Any] = {"r": rank, "target_modules": ALL, "n_labels": n_labels}
    methods: dict[str, Method] = {"full fine-tuning": make("full", n_labels=n_labels)}
    names = {"LoRA": "lora", "rsLoRA": "rslora", "DoRA": "dora", "PiSSA": "pissa", "LoRA+": "loraplus"}
    methods |= {shown: make(name, **shared) for shown, name in names.items()}
    if n_labels is not None:
        methods["head only"] = HeadOnly(n_labels=n_labels)
    return methods


MATRICES: dict[str, dict[str, Any]] = {
    "q": {"target_modules": ["c_attn"], "enable_lora": (True, False, False)},
    "q, v": {"target_modules": ["c_attn"], "enable_lora": (True, False, True)},
    "q, k, v (fused)": {"target_modules": ["c_attn"]},
    "attention output": {"target_modules": ["attn.c_proj"]},
    "all of attention": {"target_modules": ["c_attn", "attn.c_proj"]},
    "MLP": {"target_modules": ["mlp.c_fc", "mlp.c_proj"]},
    "all": {"target_modules": ALL},
}
"""Sets of matrices that are compared at equal numbers of trained parameters."""


def at_budget(base: GPT, target: Mapping[str, Any], parameters: int, n_labels: int | None) -> Method:
    """LoRA on these matrices with the rank that trains nearest to so many parameters; s = 2 at any rank."""
    at_one = make("lora", r=1, **target).apply(base)
    each = sum(p.data.size for p in at_one.parameters() if p.trainable)
    r = max(1, round(parameters / each))
    return make("lora", r=r, lora_alpha=2 * r, n_labels=n_labels, **target)


def plan_studies(base: GPT, task: Task, plan: Plan) -> dict[str, dict[str, Method]]:
    """Study → name in it → method, for the task on which everything is tried."""

    def lora(name: str = "lora", **settings: Any) -> Method:
        return make(name, target_modules=ALL, n_labels=task.n_labels, **settings)

    studies = {
        "methods": relatives(plan.rank, task.n_labels),
        "rank": {str(r): lora(r=r) for r in plan.ranks},
        "rank, rsLoRA": {str(r): lora("rslora", r=r) for r in plan.rs_ranks},
        "alpha": {str(a): lora(r=plan.rank, lora_alpha=a) for a in plan.alphas},
    }
    if plan.targets:
        whole = make("lora", r=4, target_modules=ALL).apply(base)
        parameters = sum(p.data.size for p in whole.parameters() if p.trainable)
        studies["matrices"] = {
            name: at_budget(base, target, parameters, task.n_labels) for name, target in MATRICES.items()
        }
    return studies


def rates_for(task: Task) -> dict[str, float]:
    """Learning rate by the method's name, where it is not the method's usual one."""
    return RATES if task.n_labels is None else {}


def try_rates(base: GPT, methods: Mapping[str, Method], task: Task, plan: Plan, seed: int) -> dict[str, list[float]]:
    """Validation loss of each method at several factors of its learning rate; infinite where it diverged."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    grid = [(name, method, factor) for name, method in methods.items() for factor in plan.rate_factors]
    for name, method, factor in tqdm(grid, desc=f"{short(task)}: learning rates", unit="run"):
        lr = rates_for(task).get(method.name, method.learning_rate) * factor
        try:
            run = fine_tune(method, base, task, replace(plan.budget, lr=lr, evaluations=1), seed)
        except RunError:
            found[name].append(math.inf)
        else:
            found[name].append(run.history.eval_losses[-1])
    return found


def try_all(
    base: GPT,
    studies: Mapping[str, Mapping[str, Method]],
    task: Task,
    plan: Plan,
    first_seed: int,
) -> dict[str, dict[str, Outcome]]:
    """Train and score all of a task's methods, those of the study "methods" with as many seeds as the headline has.

    A method that stands in several studies is trained once.

    Parameters
    ----------
    base : GPT
        Is not changed.
    studies : dict of str to dict
        As `plan_studies` gives them.
    task : Task
    plan : Plan
    first_seed : int
    """
    seeds = {
        study: range(first_seed, first_seed + (plan.headline if study == "methods" else plan.seeds))
        for study in studies
    }
    jobs = [(study, name, method) for study, methods in studies.items() for name, method in methods.items()]
    done: dict[str, Outcome] = {}
    found: dict[str, dict[str, Outcome]] = {study: {} for study in studies}
    with tqdm(total=len(jobs), desc=task.name, unit="method") as bar:
        for study, name, method in jobs:
            bar.set_postfix_str(f"{study}: {name}")
            key = repr(method)
            if key not in done:
                budget = replace(plan.budget, lr=rates_for(task).get(method.name))
                runs = [fine_tune(method, base, task, budget, seed) for seed in seeds[study]]
                scores = [task.score(run.model, limit=plan.scored) for run in runs]
                done[key] = Outcome(
                    method,
                    runs[0].n_trainable,
                    [score["loss"] for score in scores],
                    [score["accuracy"] for score in scores],
                    [run.model for run in runs],
                )
            found[study][name] = done[key]
            bar.update()
    return found


# ---------------------------------------------------------------------------------------------- costs


def step_costs(base: GPT, plan: Plan) -> dict[str, StepCost]:
    """One training step of full fine-tuning and of LoRA, on random tokens."""
    rng = np.random.default_rng(0)
    length = min(128, base.config.n_positions)
    ids = rng.integers(0, base.config.vocab_size, (plan.budget.batch_size, length + 1))
    batch = {"ids": ids[:, :-1].copy(), "targets": ids[:, 1:].copy()}
    methods = {
        "full fine-tuning": make("full"),
        "LoRA on c_attn": make("lora", r=plan.rank),
        "LoRA on all": make("lora", r=plan.rank, target_modules=ALL),
        "DoRA on all": make("dora", r=plan.rank, target_modules=ALL),
    }
    return {name: step_cost(m.apply(base), LanguageModelling(), batch, plan.repeats) for name, m in methods.items()}


def show_costs(run: Run, costs: Mapping[str, StepCost]) -> None:
    """A table of what a step takes, and the shares that LoRA needs of it."""
    full, lora = costs["full fine-tuning"], costs["LoRA on all"]

    def mega(value: float) -> str:
        return f"{value / 1e6:.2f}"

    rows = [
        [
            name, f"{c.trainable:,}", f"{c.seconds * 1e3:.0f}", f"{c.flops / 1e9:.2f}", mega(c.weights),
            mega(c.gradients), mega(c.optimizer), mega(c.activations), mega(c.measured_peak),
        ]
        for name, c in costs.items()
    ]  # fmt: skip
    headers = ["one step", "trained", "ms", "GFLOP", "weights", "gradients", "optimizer", "activations", "peak (MB)"]
    run.say(table(rows, headers))
    run.say(
        "\n  GFLOP: matrix products. MB: what is held, by kind; the peak is measured over the weights. Gradients and\n"
        "  optimizer all but vanish; activations do not, as every layer above the lowest adapter hands its gradient on."
    )
    run.results["step"] = {name: c.as_record() for name, c in costs.items()}
    run.report("lora_matrix_work", lora.flops / full.flops, "of full fine-tuning's")
    run.report("lora_memory", lora.bytes / full.bytes, "of full fine-tuning's")
    run.report("lora_step_time", lora.seconds / full.seconds, "of full fine-tuning's", banded=False)


def token_milliseconds(models: Mapping[str, GPT], repeats: int) -> dict[str, float]:
    """Median time of a generated token, one row, with the cache; the models take turns."""
    new = min(64, *(model.config.n_positions - 8 for model in models.values()))
    ids = np.ones((1, 8), dtype=np.int64)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            began = time.perf_counter()
            model.generate(ids, new, temperature=0.0)
            times[name].append((time.perf_counter() - began) / new)
    return {name: statistics.median(values[1:]) * 1e3 for name, values in times.items()}  # the first one warms up


# ---------------------------------------------------------------------------------------------- what was learnt


def similarity_grids(
    A1: np.ndarray, A2: np.ndarray, similarity: Callable[[np.ndarray, np.ndarray, int, int], float], most: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of the first i directions of one adapter with the first j of another, and what chance gives.

    Parameters
    ----------
    A1, A2 : (r, d)
    similarity : callable
        The lesson's `subspace_similarity`.
    most : int
        Directions of each that are looked at.

    Returns
    -------
    grid, floor : (min(r1, most), min(r2, most))
    """
    I, J = min(len(A1), most), min(len(A2), most)
    grid = np.array([[similarity(A1, A2, i + 1, j + 1) for j in range(J)] for i in range(I)])
    i, j = np.indices(grid.shape) + 1
    return grid, np.maximum(i, j) / A1.shape[1]


def update_facts(weight: np.ndarray, update: np.ndarray, directions: int) -> dict[str, float]:
    """How an update lies to the weight that it changes.

    Parameters
    ----------
    weight, update : (in, out)
    directions : int
        Largest singular directions of the update that are looked at.

    Returns
    -------
    facts : dict
        ``size``: ‖ΔW‖/‖W‖. ``captured``: share of ‖ΔW‖² in those directions. ``amplification``: ‖ΔW‖ over the part of
        W that lies in them, ‖Uᵀ W V‖ (arXiv:2106.09685, section 7.3).
    """
    U, S, Vt = np.linalg.svd(update, full_matrices=False)
    inside = U[:, :directions].T @ weight @ Vt[:directions].T
    size = float(np.linalg.norm(update))
    return {
        "size": size / float(np.linalg.norm(weight)),
        "captured": float((S[:directions] ** 2).sum() / (S**2).sum()),
        "amplification": size / float(np.linalg.norm(inside)),
    }


# ---------------------------------------------------------------------------------------------- pictures


@plotting.style()
def shapes_picture(n_in: int, n_out: int, r: int) -> Figure:
    """A frozen weight and the factors of its update, drawn to one scale, with how many numbers each holds."""
    figure, ax = plotting.new(height=2.6)
    gap = 0.16 * max(n_in, n_out)
    parts = [
        (f"ΔW = s·(B A)ᵀ\n{n_in} × {n_out}: {n_in * n_out:,}", n_in, n_out, plotting.SKY, "="),
        (f"Aᵀ\n{n_in} × {r}: {n_in * r:,}", n_in, r, plotting.VERMILLION, "·"),
        (f"Bᵀ\n{r} × {n_out}: {r * n_out:,}", r, n_out, plotting.VERMILLION, ""),
    ]
    x = 0.0
    for label, height, wide, colour, sign in parts:
        ax.add_patch(Rectangle((x, -height / 2), wide, height, facecolor=colour, edgecolor="white"))
        ax.text(x + wide / 2, -n_in / 2 - 0.06 * n_in, label, ha="center", va="top")
        x += wide + gap
        ax.text(x - gap / 2, 0, sign, ha="center", va="center", fontsize=20)
    share = r * (n_in + n_out) / (n_in * n_out)
    ax.set_title(f"Rank {r}: {r * (n_in + n_out):,} numbers instead of {n_in * n_out:,} ({share:.1%})")
    ax.set_xlim(-0.3 * gap, x)
    ax.set_ylim(-n_in / 2 - 0.4 * n_in, n_in / 2)
    ax.set_aspect("equal")
    ax.axis("off")
    return figure


@plotting.style()
def rank_picture(ranks: Mapping[str, Mapping[str, Outcome]], full: Outcome, task: Task, rank_of_alpha: int) -> Figure:
    """Test loss over the rank for LoRA and rsLoRA, full fine-tuning beside it; and over α where that was tried."""
    alphas = ranks.get("alpha", {})
    figure, axes = plotting.new(1, 2 if len(alphas) > 1 else 1, height=4.2, sharey=True, squeeze=False)
    shown = [
        ("LoRA (α/r)", ranks["rank"], plotting.BLUE),
        ("rsLoRA (α/√r)", ranks["rank, rsLoRA"], plotting.VERMILLION),
    ]
    ends = [_lines(axes[0, 0], shown, full, "rank r")]
    axes[0, 0].set_ylabel(loss_unit(task))
    axes[0, 0].set_title(f"{short(task)}: rank (α = 16)")
    if len(alphas) > 1:
        ends.append(_lines(axes[0, 1], [(f"LoRA, r = {rank_of_alpha}", alphas, plotting.BLUE)], full, "α"))
        axes[0, 1].set_title("and scale")
    for panel, of_panel in zip(axes[0], ends, strict=True):  # the panels share their limits, which are final only now
        plotting.label_ends(panel, of_panel)
    return figure


def _lines(axes: Any, shown: Sequence[tuple[str, Mapping[str, Outcome], str]], full: Outcome, label: str) -> list[End]:
    # Gives the ends of the lines, to be named.
    places = sorted({int(x) for _, outcomes, _ in shown for x in outcomes})
    ends = []
    for name, outcomes, colour in shown:
        found = {place: outcomes[str(place)] for place in sorted(map(int, outcomes))}  # a record sorts them as words
        x = list(found)
        means = [math.fsum(o.loss) / len(o.loss) for o in found.values()]
        for place, o in found.items():
            axes.scatter(
                [place] * len(o.loss), o.loss, color=colour, s=16, alpha=0.6, linewidth=0, zorder=3, clip_on=False
            )
        axes.plot(x, means, color=colour, marker="o" if len(x) == 1 else None, clip_on=False)
        ends.append(End(x[-1], means[-1], name, colour))
    level = math.fsum(full.loss) / len(full.loss)
    axes.axhline(level, color=plotting.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    ends.append(End(places[-1], level, "full fine-tuning", plotting.GREY))
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_xlim(places[0] / 1.15, places[-1])
    axes.set_xlabel(label)
    return ends


@plotting.style()
def methods_picture(results: Sequence[tuple[Task, Mapping[str, Outcome]]]) -> Figure:
    """What each method reached on each task, a dot a seed."""
    figure, axes = plotting.new(1, len(results), height=3.6, squeeze=False)
    for column, (task, outcomes) in enumerate(results):
        ax = axes[0, column]
        for row, (name, outcome) in enumerate(outcomes.items()):
            values = outcome.loss if task.n_labels is None else outcome.accuracy
            colour = plotting.GREY if name in ("full fine-tuning", "head only") else plotting.PALETTE[row % 6]
            ax.scatter(values, [row] * len(values), color=colour, s=30, alpha=0.7, linewidth=0, zorder=3)
            ax.scatter([math.fsum(values) / len(values)], [row], color=colour, marker="|", s=300, linewidth=2)
        ax.set_yticks(range(len(outcomes)), list(outcomes))
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"{loss_unit(task)}, less is better" if task.n_labels is None else "accuracy, more is better")
        ax.set_title(short(task))
    return figure


@plotting.style()
def matrices_picture(outcomes: Mapping[str, Outcome], task: Task) -> Figure:
    """Test loss of each set of matrices at about the same number of trained parameters."""
    figure, ax = plotting.new(height=3.6)
    for row, outcome in enumerate(outcomes.values()):
        ax.scatter(outcome.loss, [row] * len(outcome.loss), color=plotting.BLUE, s=30, alpha=0.7, linewidth=0, zorder=3)
        ax.scatter([math.fsum(outcome.loss) / len(outcome.loss)], [row], color=plotting.BLUE, marker="|", s=300)
    names = [f"{name}, r = {o.method.r} ({o.trainable:,})" for name, o in outcomes.items()]  # type: ignore[attr-defined]
    ax.set_yticks(range(len(outcomes)), names)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(loss_unit(task))
    ax.set_title(f"{short(task)}: the same number of parameters elsewhere")
    return figure


@plotting.style()
def similarity_picture(
    grids: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: tuple[str, str], matrix: str
) -> Figure:
    """Similarity of two adapters' directions, what chance gives there, and the difference; a row each of `grids`."""
    figure, axes = plotting.new(len(grids), 3, height=2.9 * len(grids) + 0.3, squeeze=False)
    for row, (name, (grid, floor)) in enumerate(grids.items()):
        for ax, values, title in zip(axes[row], (grid, floor, grid - floor), TITLES, strict=True):
            image = ax.imshow(
                values, cmap=plotting.INTENSITY, vmin=0, vmax=1, origin="lower", aspect="auto",
                extent=(0.5, values.shape[1] + 0.5, 0.5, values.shape[0] + 0.5),
            )  # fmt: skip
            ax.grid(visible=False)
            for axis, n in ((ax.xaxis, values.shape[1]), (ax.yaxis, values.shape[0])):
                axis.set_ticks(range(1, n + 1, max(1, n // 5)))
            ax.set_xlabel(f"first j {labels[1]}")
            if row == 0:
                ax.set_title(title)
        axes[row, 0].set_ylabel(f"{name} at {matrix}\nfirst i {labels[0]}")
    figure.colorbar(image, ax=axes, shrink=0.6, label="similarity")
    return figure


TITLES = ("measured", "chance: max(i, j)/d", "above chance")


@plotting.style()
def spectrum_picture(weight: np.ndarray, updates: Mapping[str, np.ndarray], name: str) -> Figure:
    """Singular values of a weight and of what each method has added to it."""
    figure, ax = plotting.new(height=4.0)
    colours = (plotting.VERMILLION, plotting.BLUE, plotting.SKY, plotting.GREEN)
    lines = {"the base's weight": (weight, plotting.GREY)}
    lines |= {label: (update, colours[i % 4]) for i, (label, update) in enumerate(updates.items())}
    ends = []
    for label, (matrix, colour) in lines.items():
        values = np.linalg.svd(matrix, compute_uv=False)
        values = values[values > values[0] * 1e-5]
        places = np.arange(1, len(values) + 1)
        ax.plot(places, values, color=colour)
        ends.append(End(float(places[-1]), float(values[-1]), label, colour))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlim(0, ends[0].x)
    ax.set_xlabel("which singular value")
    ax.set_ylabel("its size")
    ax.set_title(f"{name}: what was there, and what training added")
    plotting.label_ends(ax, ends)
    return figure


@plotting.style()
def updates_picture(updates: Mapping[str, np.ndarray], name: str) -> Figure:
    """What each method has added to a weight, number by number, all on one scale.

    Parameters
    ----------
    updates : dict of str to (in, out)
    name : str
        Of the weight.
    """
    figure, axes = plotting.new(len(updates), 1, height=1.75 * len(updates) + 0.5, sharex=True, squeeze=False)
    most = max(float(np.quantile(np.abs(update), 0.995)) for update in updates.values())
    for ax, (label, update) in zip(axes[:, 0], updates.items(), strict=True):
        image = ax.imshow(update, cmap=plotting.SIGNED, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        ax.set_title(f"{label}: rank {np.linalg.matrix_rank(update, tol=np.linalg.norm(update, 2) * 1e-4)}")
        ax.set_ylabel("input")
        ax.grid(visible=False)
    axes[-1, 0].set_xlabel(f"output of {name}")
    figure.colorbar(image, ax=axes, shrink=0.6, label="ΔW", extend="both")
    return figure


# ---------------------------------------------------------------------------------------------- showing it


def short(task: Task) -> str:
    """The task's name without its source."""
    return task.name.removeprefix("tinyworld.")


def loss_unit(task: Task) -> str:
    """What the test loss is counted in."""
    return f"test loss (nats a {'token' if task.n_labels is None else 'text'})"


def outcome_table(outcomes: Mapping[str, Outcome], first: str) -> str:
    """One line a variant: what it trains, what it reached."""
    rows = [[name, f"{o.trainable:,}", spread(o.loss), spread(o.accuracy)] for name, o in outcomes.items()]
    return table(rows, [first, "trained", "test loss", "accuracy"])


def try_labelled(base: GPT, task: Task, plan: Plan, seed: int) -> dict[str, Outcome]:
    """LoRA, its relatives and its rivals as classifiers."""
    methods = relatives(plan.rank, task.n_labels)
    methods = {name: method for name, method in methods.items() if name in plan.labelled or not plan.labelled}
    plan = replace(plan, budget=replace(plan.budget, steps=plan.label_steps))
    return try_all(base, {"methods": methods}, task, plan, seed)["methods"]


def show_labelled(run: Run, task: Task, found: Mapping[str, Outcome]) -> None:
    """A table of what the classifiers reached, and the figures."""
    run.heading(f"What it reaches: {short(task)}")
    run.say(outcome_table(found, "method"))
    run.results[short(task)] = {name: outcome.as_record() for name, outcome in found.items()}
    for name in ("full fine-tuning", "LoRA", "head only"):
        run.report(f"{short(task)}: {name}", found[name].accuracy, "accuracy")


EXPECTED = """\
  expect the loss to fall with the rank: the base has met such pairs among its texts and cannot do them yet, and a low
  rank cannot carry all that is to be learnt. At a high rank α/r leaves LoRA a small step and α/√r does not: there
  rsLoRA should be far ahead, and level with full fine-tuning. At equal steps that beats all adapters of rank 8 here."""


def show_results(run: Run, task: Task, results: Mapping[str, Mapping[str, Outcome]], plan: Plan) -> None:
    """Tables of all studies, the picture of the ranks, and the figures."""
    titles = {"methods": f"method (r = {plan.rank})", "rank": "LoRA, rank", "rank, rsLoRA": "rsLoRA, rank"}
    for study, outcomes in results.items():
        if outcomes:
            run.say(outcome_table(outcomes, titles.get(study, study)) + "\n")
    if run.settings.data is None:
        run.say(EXPECTED)
    run.picture("rank", rank_picture(results, results["methods"]["full fine-tuning"], task, plan.rank))
    if "matrices" in results:
        run.picture("matrices", matrices_picture(results["matrices"], task))
    run.results[short(task)] = {
        study: {name: outcome.as_record() for name, outcome in outcomes.items()} for study, outcomes in results.items()
    }
    for name, outcome in results["methods"].items():
        run.report(f"{short(task)}: {name}", outcome.loss, "test loss")


def show_rates(run: Run, losses: Mapping[str, Sequence[float]], plan: Plan) -> None:
    """Validation loss of every method at other learning rates."""
    headers = ["validation loss", *(f"learning rate × {factor:.2g}" for factor in plan.rate_factors)]
    run.say(table([[name, *(f"{loss:.3f}" for loss in row)] for name, row in losses.items()], headers))
    run.results["rates"] = {"factors": plan.rate_factors} | {
        name: [loss if math.isfinite(loss) else None for loss in row] for name, row in losses.items()
    }


def show_learnt(
    run: Run,
    base: GPT,
    task: Task,
    results: Mapping[str, Mapping[str, Outcome]],
    plan: Plan,
    factors: Callable[[Any, str], Any],
    similarity: Callable[[np.ndarray, np.ndarray, int, int], float],
) -> None:
    """Whether two runs find the same directions, and how LoRA's update lies to full fine-tuning's.

    Parameters
    ----------
    run, base, task, results, plan
        As they were.
    factors : (tuned, name) -> (A, B, scaling)
        Of a layer.
    similarity : callable
        The lesson's `subspace_similarity`.
    """
    run.heading("What has been learnt")
    host = base.backend.to_numpy
    most = max(plan.ranks)
    few, many = (results["rank"][str(r)].models[0] for r in (plan.rank, most))
    method = make("lora", r=most, target_modules=ALL, n_labels=task.n_labels)
    other = fine_tune(method, base, task, plan.budget, run.settings.seed + 100).model  # a seed that no run has had
    name = f"transformer.h.{base.config.n_layer - 1}.attn.c_attn"

    def update(model: Any) -> np.ndarray:
        A, B, scaling = factors(model, name)
        return scaling * (host(B) @ host(A)).T

    def learnt(model: Any) -> np.ndarray:
        _, S, Vt = np.linalg.svd(update(model).T, full_matrices=False)
        return S[:most, None] * Vt[:most]

    grids = {
        what: similarity_grids(directions(many), directions(other), similarity)
        for what, directions in (("A", lambda model: host(factors(model, name)[0])), ("B A", learnt))
    }
    run.picture(
        "similarity",
        similarity_picture(grids, (f"of r = {most}", "of another seed"), name.removeprefix("transformer.")),
    )
    rows = [
        [what, f"{grid[0, 0]:.2f}", f"{floor[0, 0]:.2f}", f"{grid[-1, -1]:.2f}", f"{floor[-1, -1]:.2f}"]
        for what, (grid, floor) in grids.items()
    ]
    run.say(f"  two seeds, {name}: do the first directions agree?")
    run.say(table(rows, ["of", "first one", "by chance", f"first {len(grids['A'][0])}", "by chance"]))
    run.say("\n  expect another seed to find the first direction again, far above chance, and later ones less and less")
    run.results["similarity"] = {what: {"measured": g.tolist(), "chance": f.tolist()} for what, (g, f) in grids.items()}
    grid, floor = grids["B A"]
    run.report("similarity_above_chance", float(grid[0, 0] - floor[0, 0]), "of 1")

    full = {p.name: host(p.data) for p in results["methods"]["full fine-tuning"].models[0].parameters()}
    weight = next(host(p.data) for p in base.parameters() if p.name == f"{name}.weight")
    updates = {"full fine-tuning": full[f"{name}.weight"] - weight}
    updates |= {f"LoRA, r = {r}": update(model) for r, model in ((plan.rank, few), (most, many))}
    facts, rows = {}, []
    for label, change in updates.items():
        facts[label] = f = update_facts(weight, change, plan.rank)
        shared = similarity(change, updates["full fine-tuning"], plan.rank, plan.rank)  # of output directions
        chance = plan.rank / change.shape[1]
        sizes = [f"{f['size']:.3f}", f"{f['captured']:.2f}", f"{f['amplification']:.1f}"]
        rows.append([label, *sizes, f"{shared:.2f} ({chance:.2f})"])
    run.say(f"\n  the update of {name}")
    headers = ["", "‖ΔW‖/‖W‖", f"in its first {plan.rank}", "amplification", "in full's first (by chance)"]
    run.say(table(rows, headers))
    run.results["updates"] = facts
    run.picture("updates", updates_picture(updates, name.removeprefix("transformer.")))
    run.picture("spectrum", spectrum_picture(weight, updates, name.removeprefix("transformer.")))
