"""Lesson 5's experiment: fine-tune what each ranking picks, and rank groups of parameters by a forest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from lessons import METHODS
from lessons.common import sweep
from lessons.common.classifier import Classifier
from lessons.common.forest import spearman, top_overlap
from lessons.common.groups import ChosenGroups, Interventions, Study, compared, parameter_groups, study
from lessons.common.method import Method, Tuned
from lessons.common.ranking_pictures import ranking_picture, sweep_picture
from lessons.common.runner import Run
from lessons.common.sweep import Job
from lessons.common.table import deviation, spread, table
from lessons.common.tasks import Task, load_task
from lessons.common.tuning import Budget, fine_tune
from minigpt import GPT, RunError, bases
from minigpt.objectives import Batch
from minigpt.optim import ParameterGroup


class Everything(Method):
    """Full fine-tuning, to compare with."""

    learning_rate: ClassVar[float] = 1e-3

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """Free all parameters."""
        trunk.unfreeze()

    def groups(self, tuned: Tuned) -> Sequence[ParameterGroup]:
        """A fresh head goes faster than the trunk."""
        return (ParameterGroup("score*", lr_scale=10.0),) if isinstance(tuned, Classifier) else ()


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment.

    Attributes
    ----------
    base, pairs, labels : str
        Base model and tasks.
    records : int
        Training records of generated tasks.
    densities, label_densities : tuple of float
        Shares of the entries that are trained.
    seeds : int
        In a full run the headline density has `HEADLINE_SEEDS`.
    pair_steps, label_steps, batch_size : int
        Of every fine-tuning.
    scored : int
        Test records.
    masks_per_group, trees, rows : int
        Of the forest: random masks, trees, and records on which the loss is taken.
    workers : int
        Processes; 0: one a core.
    """

    base: str = "base-s"
    pairs: str = "translation"
    labels: str = "pydocs-topics"
    records: int = 2000
    densities: tuple[float, ...] = (0.001, 0.01, 0.1)
    label_densities: tuple[float, ...] = (0.01,)
    seeds: int = 1
    pair_steps: int = 60
    label_steps: int = 40
    batch_size: int = 16
    scored: int = 160
    masks_per_group: int = 20
    trees: int = 300
    rows: int = 32
    workers: int = 0


CORE = Plan()
FULL = replace(CORE, densities=(0.001, 0.003, 0.01, 0.03, 0.1, 0.2), label_densities=(0.001, 0.01, 0.1), seeds=3)
QUICK = Plan("base-xs", labels="topic", records=64, densities=(0.01,), pair_steps=4, label_steps=2, batch_size=4,
             scored=8, masks_per_group=6, trees=25, rows=4, workers=1)  # fmt: skip
HEADLINE = 0.01
HEADLINE_SEEDS = 5
CONTROLS = ("magnitude", "random", "bottom_k")
JUDGED = "gradient"
PROOF = 0.1
"""Share of the entries in the proof of the group ranking."""


def rate(density: float, task: Task) -> float:
    """Peak of the learning rate, the same for every ranking: the fewer entries, the farther each has to go.

    With labels it is that of the head, which is trained in every run; see `MaskedMethod.groups`.
    """
    return min(0.03, 0.003 / math.sqrt(density)) if task.n_labels is None else 0.01


@lru_cache(maxsize=4)
def load(base: str, task: str, records: int, backend: str) -> tuple[GPT, Task]:
    """Base and task by name, once a process."""
    model, tokenizer = bases.load(base, backend=backend)
    return model, load_task(task, tokenizer, records)


def one_run(job: Job) -> dict[str, Any]:
    """Fine-tune one choice of entries and score it; in a process of its own.

    A job's ``groups`` are an order in which whole groups are taken; ``score`` is a ranking of single entries, or
    ``"full"``.
    """
    base, task = load(job["base"], job["data"], job["records"], job["backend"])
    density, seed = job["density"], job["seed"]
    lr = None if job["score"] == "full" else rate(density, task)
    budget = Budget(job["steps"], job["batch_size"], lr, workers=1)
    method: Method
    if job["score"] == "full":
        method = Everything(n_labels=task.n_labels)
    elif job["groups"]:
        method = ChosenGroups(n_labels=task.n_labels, density=density, order=tuple(job["groups"]))
    else:
        importance: Any = METHODS["importance"]
        method = importance(n_labels=task.n_labels, density=density, score=job["score"], per_tensor=job["per_tensor"])
    run = fine_tune(method, base, task, budget, seed)
    return task.score(run.model, limit=job["scored"]) | {"n_trainable": run.n_trainable}


Found = dict[str, dict[str, dict[float, list[float]]]]
"""Task → ranking → density → a value a seed."""


def show_sweep(
    run: Run, plan: Plan, base: GPT, tasks: Mapping[str, Task], scores: Sequence[str], scratch: Path
) -> None:
    """Fine-tune what each ranking picks, at every density, on every task; tables, a picture and the figures."""
    run.heading("How well the choice can be fine-tuned")
    first_seed = run.settings.seed
    jobs: list[dict[str, Any]] = []
    for name, task in tasks.items():
        densities = plan.densities if task.n_labels is None else plan.label_densities
        jobs += [job(run, plan, name, task, "full", 1.0, first_seed + i) for i in range(plan.seeds)]
        for density in densities:
            headline = run.settings.full and density == HEADLINE
            seeds = range(first_seed, first_seed + (HEADLINE_SEEDS if headline else plan.seeds))
            jobs += [job(run, plan, name, task, score, density, seed) for score in scores for seed in seeds]
            if density == HEADLINE:
                jobs += [job(run, plan, name, task, "gradient", density, seed, per_tensor=True) for seed in seeds]
    found: Found = {name: {} for name in tasks}
    accuracies: dict[str, list[float]] = {}
    for result in sweep.run(one_run, jobs, scratch, plan.workers, title="fine-tuning"):
        told, task = result.job, tasks[result.job["data"]]
        score = told["score"] + (", per tensor" if told["per_tensor"] else "")
        if result.error:
            raise RunError(f"{told['data']}, {score}, {100 * told['density']:g} %: {result.error}")
        by_density = found[told["data"]].setdefault(score, {})
        by_density.setdefault(told["density"], []).append(result.values["loss"])
        if task.n_labels is not None and (told["density"] in (HEADLINE, 1.0)):
            accuracies.setdefault(score, []).append(result.values["accuracy"])
    lines = {}
    for name, task in tasks.items():
        of_task = found[name]
        shared = sorted({d for by in of_task.values() for d in by if d < 1})
        before = {"base": task.score(base, limit=plan.scored)["loss"]} if task.n_labels is None else {}
        full = of_task.pop("full")[1.0]
        lines[name] = {"all entries": float(np.mean(full))}
        table_rows = [[score, *(spread(by[d]) if d in by else "" for d in shared)] for score, by in of_task.items()]
        table_rows += [["all entries", *[spread(full)] * len(shared)]]
        table_rows += [[what, *[f"{value:.3f}"] * len(shared)] for what, value in before.items()]
        run.say(f"\n  {name}: {unit_of(task)} on the test split")
        run.say(table(table_rows, ["trained", *(f"{100 * d:g} %" for d in shared)]))
        for density in shared:
            at = {score: by[density] for score, by in of_task.items() if density in by}
            run.say(f"  {verdict(at, density)}")
        short = "own" if run.settings.data else "pairs" if task.n_labels is None else "labels"
        shown = HEADLINE if HEADLINE in shared else shared[0]
        for score in ("gradient", "fisher", "magnitude", "random", "bottom_k"):
            run.report(f"{short}_loss_{score}", of_task[score][shown], unit_of(task))
        run.report(f"{short}_loss_all", full, unit_of(task))
    if accuracies:
        run.say(f"\n  accuracy with labels, {100 * HEADLINE:g} % trained and the head:")
        run.say(table([[score, spread(values)] for score, values in accuracies.items()], ["trained", "accuracy"]))
    for score in accuracies.keys() & {"gradient", "random", "full"}:
        run.report(f"labels_accuracy_{score}", accuracies[score], "share")
    run.results["accuracy"] = accuracies
    run.results["sweep"] = {
        name: {score: {str(d): values for d, values in by.items()} for score, by in of_task.items()}
        for name, of_task in found.items()
    } | {"all entries": lines}
    run.picture("density", density_picture(found, lines, {name: unit_of(task) for name, task in tasks.items()}))


WHOLE = ("forest, top", "random groups", "forest, bottom")
"""Orders of the proof in which large groups come as early as small ones."""
SPREAD_OUT = ("single entries, random", "single entries, gradient")


def density_picture(found: Found, lines: Mapping[str, Mapping[str, float]], units: Mapping[str, str]) -> Figure:
    """The sweep, with those rankings that were tried at every density; arguments as for `sweep_picture`."""
    drawn = {}
    for name, of_task in found.items():
        most = max(map(len, of_task.values()))
        drawn[name] = {score: by for score, by in of_task.items() if len(by) == most}
    return sweep_picture(drawn, lines, units)


def from_record(
    record: Mapping[str, Any], scores: Sequence[str]
) -> tuple[Found, dict[str, dict[str, float]], dict[str, str]]:
    """What a full run's record holds of the sweep, in the lesson's order: what `density_picture` draws."""
    swept = record["results"]["sweep"]
    kinds = {FULL.pairs: "pairs", FULL.labels: "labels"}
    found = {
        name: {
            score: {float(d): values for d, values in swept[name][score].items()}
            for score in (*scores, "gradient, per tensor")
            if score in swept[name]
        }
        for name in kinds
    }
    units = {name: record["figures"][f"{kinds[name]}_loss_all"]["unit"] for name in found}
    return found, swept["all entries"], units


def job(
    run: Run, plan: Plan, name: str, task: Task, score: str, density: float, seed: int,
    per_tensor: bool = False, groups: Sequence[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """One run of the sweep, ready for JSON."""
    return {
        "base": plan.base, "data": name, "records": plan.records, "backend": run.backend.spec, "score": score,
        "density": density, "per_tensor": per_tensor, "groups": list(groups), "seed": seed,
        "steps": plan.pair_steps if task.n_labels is None else plan.label_steps,
        "batch_size": plan.batch_size, "scored": plan.scored,
    }  # fmt: skip


def verdict(losses: Mapping[str, Sequence[float]], density: float) -> str:
    """Whether looking at gradients was worth it at one density: the plain ranking, chosen before, and the best control.

    Parameters
    ----------
    losses : dict of str to sequence of float
        Score → losses, one a seed.
    density : float
    """
    means = {score: float(np.mean(v)) for score, v in losses.items()}
    control = min(CONTROLS, key=lambda score: means[score])
    gap = means[control] - means[JUDGED]
    if min(len(losses[JUDGED]), len(losses[control])) < 2:
        words = "is ahead" if gap > 0 else "is behind", " (one seed)"
    elif abs(gap) <= math.hypot(deviation(losses[JUDGED]), deviation(losses[control])):
        words = "makes no difference beyond the spread of the seeds", ""
    else:
        words = "pays" if gap > 0 else "does not pay", ""
    return (
        f"at {100 * density:g} %: {JUDGED} {means[JUDGED]:.3f}, best control {control} {means[control]:.3f}: "
        f"the ranking {''.join(words)}"
    )


def unit_of(task: Task) -> str:
    """What all runs are judged by: of completions or of labels."""
    return f"loss (nats a {'token' if task.n_labels is None else 'text'})"


def show_forest(run: Run, plan: Plan, base: GPT, name: str, task: Task, scratch: Path) -> Study:
    """Rank groups of parameters by a forest, hold it to its gates, and train what it puts first and last.

    Returns
    -------
    study : Study
        Of the first seed.
    """
    groups = parameter_groups(base)
    n_masks = plan.masks_per_group * len(groups.names)
    run.heading(f"Which of {len(groups.names)} groups carry the change: {n_masks} random halves of it")
    studies = []
    for seed in range(run.settings.seed, run.settings.seed + plan.seeds):
        steps = plan.pair_steps if task.n_labels is None else plan.label_steps
        budget = Budget(steps, plan.batch_size, workers=1)
        tuned = fine_tune(Everything(n_labels=task.n_labels), base, task, budget, seed).model
        batch = task.validation(plan.rows)[0]
        interventions = Interventions(base, tuned, groups, task.objective, batch)
        studies.append(study(interventions, n_masks, plan.trees, seed=seed, progress="masks"))
    a = studies[0]
    show_study(run, a, groups.sizes)
    run.report("forest_r2", [s.r2 for s in studies], "share")
    for other in compared(a):
        values = [spearman(s.importance.mean[:-1], compared(s)[other]) for s in studies]
        run.report(f"spearman_{other.replace(' ', '_')}", values, "rank correlation")
    if refusal := a.refusal():
        run.say(f"  no ranking: {refusal}")
        return a
    order = a.order
    ranked = {
        "forest, top": order,
        "forest, per entry": np.argsort(-a.importance.mean[:-1] / groups.sizes, kind="stable").tolist(),
        "forest, bottom": order[::-1],
        "first order, per entry": np.argsort(-compared(a)["first order"] / groups.sizes, kind="stable").tolist(),
    }
    seeds = range(run.settings.seed, run.settings.seed + plan.seeds)
    jobs, titles = [], []
    for seed in seeds:
        luck = np.random.default_rng([seed, 11]).permutation(len(order)).tolist()
        for title, chosen in [*ranked.items(), ("random groups", luck)]:
            jobs.append(job(run, plan, name, task, "groups", PROOF, seed, groups=chosen))
            titles.append(title)
        for score in ("random", "gradient"):
            jobs.append(job(run, plan, name, task, score, PROOF, seed))
            titles.append(f"single entries, {score}")
    proof: dict[str, list[float]] = {}
    results = {sweep.key(r.job): r for r in sweep.run(one_run, jobs, scratch, plan.workers, title="proof")}
    for title, told in zip(titles, jobs, strict=True):
        result = results[sweep.key(told)]
        if result.error:
            raise RunError(f"{title}: {result.error}")
        proof.setdefault(title, []).append(result.values["loss"])
    run.say(f"\n  the proof: {100 * PROOF:g} % of the entries trained, taken group by group in each order")
    run.say(table([[title, spread(values)] for title, values in proof.items()], ["order", unit_of(task)]))
    means = {title: float(np.mean(values)) for title, values in proof.items()}
    if max(means[title] for title in SPREAD_OUT) < min(means[title] for title in WHOLE):
        run.say(
            "  single entries, even random ones, do better than the groups that the forest puts first: a few in every\n"
            "  matrix move the whole model, a whole group moves one place of it"
        )
    for title in ("forest, top", "forest, per entry", "forest, bottom", "random groups"):
        run.report(f"proof_{title.replace(', ', '_').replace(' ', '_')}", proof[title], unit_of(task))
    run.results["proof"] = proof
    run.picture("groups", ranking_picture(a, proof, unit_of(task)))
    return a


def show_study(run: Run, a: Study, sizes: np.ndarray) -> None:
    """The ranking with its intervals, its gates, and how other rankings agree with it."""
    run.say(
        f"  loss {a.base_loss:.3f} at the base, {a.tuned_loss:.3f} with the whole change; {len(a.losses)} losses took "
        f"{a.seconds:.0f} s"
    )
    dummy = len(a.names) - 1
    table_rows = [
        [a.names[i], f"{sizes[i]:,}" if i < dummy else "0", f"{a.importance.mean[i]:.4f}",
         f"{a.importance.low[i]:.4f} to {a.importance.high[i]:.4f}",
         *(f"{v[i]:.3f}" if i < dummy else "" for v in (a.ridge, a.leave_one_out, a.first_order))]
        for i in [*a.order[:10], dummy]
    ]  # fmt: skip
    headers = ["group", "entries", "forest", "interval", "ridge", "leave one out", "first order"]
    run.say(table(table_rows, headers))
    run.say(
        f"  gates: R² on rows not seen {a.r2:.2f} (at least 0.5), shuffled losses {a.shuffled_r2:.2f} (about 0), "
        f"dummy {'covers' if a.importance.covers_zero(dummy) else 'DOES NOT COVER'} 0"
    )
    agreement = {
        other: {"spearman": spearman(a.importance.mean[:-1], v), "top 5": top_overlap(a.importance.mean[:-1], v, 5)}
        for other, v in compared(a).items()
    }
    for other, how in agreement.items():
        run.say(
            f"  {other}: rank correlation with the forest {how['spearman']:.2f}, {5 * how['top 5']:.0f} of its top 5"
        )
    run.results["study"] = {
        "names": a.names, "r2": a.r2, "shuffled_r2": a.shuffled_r2, "agreement": agreement,
        "base_loss": a.base_loss, "tuned_loss": a.tuned_loss, "masks": len(a.losses),
        "importance": {n: list(map(float, v)) for n, v in zip(a.importance._fields, a.importance, strict=True)},
        "refusal": a.refusal(),
        **{n: list(map(float, v)) for n, v in compared(a).items()},
    }  # fmt: skip
