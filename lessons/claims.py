"""The claims ledger: what lecture notes say about fine-tuning, and what the course's own runs say to it.

Every claim is taken apart into inequalities whose thresholds stand here, beside the claim, before there is a figure.
The figures come from the committed records of the full lessons and of the comparison, and, where no lesson measures
what a claim needs, from `lessons.claim_measurements`. See `lessons.common.verdicts` for the four verdicts.

``make claims`` reads the records; ``make claims FULL=1`` measures what the ledger itself has to measure, and writes
``lessons/records/claims.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lessons import claim_measurements as own
from lessons.common import plotting, runner
from lessons.common.runner import RECORDS
from lessons.common.table import markdown, table
from lessons.common.verdicts import Judged, Part, Verdict, combined, condition, judge
from lessons.lesson_11_comparison import mean_interval
from minigpt import files
from minigpt.errors import InputError

OWN = 0
"""In the place of a lesson's number: what the ledger measures itself."""
RECORD = "claims.json"
MARGIN = 0.02
"""Of a score between 0 and 1: differences up to it count as none."""
CHANCE = {"sentiment-target": 0.5, "pydocs-topics": 0.1, "cards": 0.5}
"""What guessing reaches on a task; 0 on all others."""
LEARNT = 0.1
"""A method has learnt a task if its score is so far above guessing; else it has nothing to keep or lose."""


class MissingError(InputError):
    """A record, or a figure in it, is not there."""


# ---------------------------------------------------------------------------------------------- evidence


def command(source: int) -> str:
    """What makes a record."""
    return {OWN: "make claims FULL=1", 11: "make compare"}.get(source, f"make lesson-{source} FULL=1")


@dataclass(frozen=True)
class Evidence:
    """The records, by the number of their lesson; the ledger's own measurements at `OWN`.

    Attributes
    ----------
    records : dict of int to dict
    """

    records: Mapping[int, Mapping[str, Any]]

    @classmethod
    def read(cls, directory: Path, measurements: Mapping[str, Any] | None = None) -> Evidence:
        """Of a directory of records; with measurements, these instead of those of its ledger."""
        paths = {number: directory / f"lesson-{number:02d}.json" for number in range(1, 15)}
        records = {number: files.read_json(path) for number, path in paths.items() if path.exists()}
        if measurements is None and (directory / RECORD).exists():
            measurements = files.read_json(directory / RECORD)["measurements"]
        return cls(records if measurements is None else records | {OWN: measurements})

    def at(self, source: int, *path: str | int) -> Any:
        """What stands in a record under these keys.

        Raises
        ------
        MissingError
            If there is no such record or figure; says how to make it.
        """
        if source not in self.records:
            name = "the ledger's own measurements" if source == OWN else f"lesson {source}'s record"
            raise MissingError(f"{name}: not there yet; `{command(source)}` makes it")
        found: Any = self.records[source]
        for key in path:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                where = " / ".join(map(str, path))
                raise MissingError(f"no {where} in what `{command(source)}` made: make it again") from None
        return found

    def figure(self, lesson: int, name: str) -> list[float]:
        """A reported figure, one value a seed."""
        return list(self.at(lesson, "figures", name, "values"))

    def result(self, lesson: int, *path: str | int) -> Any:
        """From the results of a lesson."""
        return self.at(lesson, "results", *path)

    # What the comparison holds.

    @property
    def tasks(self) -> list[str]:
        """Of the comparison."""
        return list(self.result(11, "plan", "tasks"))

    def cell(self, method: str, task: str, what: str = "score") -> dict[int, float]:
        """Seed → score or forgetting of a method on a task of the comparison."""
        for cell in self.result(11, "cells"):
            if (cell["method"], cell["task"]) == (method, task):
                return dict(zip(cell["seeds"], cell[what], strict=True))
        raise MissingError(f"no {method} on {task} in what `{command(11)}` made: make it again")

    def swept(self, sweep: str, method: str, value: Any, what: str = "loss") -> dict[int, float]:
        """Seed → test loss or score at one value of a sweep of the comparison."""
        for point in self.result(11, "sweeps"):
            if (point["sweep"], point["method"], point["value"]) == (sweep, method, value):
                return dict(zip(point["seeds"], point[what], strict=True))
        raise MissingError(f"no {sweep} at {value} in what `{command(11)}` made: make it again")

    # What the ledger has measured itself.

    def arm(self, study: str, name: str, what: str) -> dict[int, float]:
        """Seed → figure of one of the ledger's own fine-tuning runs."""
        return {int(seed): value for seed, value in self.at(OWN, "arms", study, name, what).items()}

    def study(self, what: str, **settings: Any) -> list[dict[str, Any]]:
        """The results of one of the ledger's own small studies, one a seed."""
        found = own.of_study(self.at(OWN), what, **settings)
        if not found:
            raise MissingError(f"no {what} in what `{command(OWN)}` made: make it again")
        return found


def less(first: Mapping[int, float] | Sequence[float], second: Mapping[int, float] | Sequence[float]) -> list[float]:
    """First − second, seed by seed; sequences are in the order of the seeds."""
    a, b = (dict(enumerate(v)) if not isinstance(v, Mapping) else v for v in (first, second))
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def idle(who: str, scores: Mapping[int, float], task: str) -> str:
    """Why a part is not judged: that somebody has learnt next to nothing of the task; empty if not so."""
    learnt = statistics.mean(scores.values()) - CHANCE.get(task, 0.0) > LEARNT
    return "" if learnt else f"{who} learns next to nothing there"


def mean_over(cells: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Seed → mean over several cells, of the seeds that all of them have."""
    shared = set.intersection(*(set(cell) for cell in cells))
    return {seed: statistics.mean(cell[seed] for cell in cells) for seed in sorted(shared)}


# ---------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Found:
    """What the records say to a claim.

    Attributes
    ----------
    parts : list of Part
    note : str
        One more sentence with figures.
    """

    parts: list[Part]
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement, and how it is judged.

    Attributes
    ----------
    number : int
    statement : str
        As lecture notes have it.
    rule : str
        What has to be so for it to hold: the inequalities of `parts`.
    sources : tuple of int
        Lessons whose records are read; `OWN` for the ledger's own measurements.
    parts : (Evidence) -> Found
    """

    number: int
    statement: str
    rule: str
    sources: tuple[int, ...]
    parts: Callable[[Evidence], Found]


CLAIMS: dict[int, Claim] = {}


def claim(number: int, statement: str, rule: str, *sources: int) -> Callable[[Callable[[Evidence], Found]], Any]:
    """Enter a claim into the ledger; the function under it finds its parts."""

    def enter(parts: Callable[[Evidence], Found]) -> Callable[[Evidence], Found]:
        CLAIMS[number] = Claim(number, statement, rule, sources, parts)
        return parts

    return enter


@claim(
    1,
    "Gradual unfreezing lessens forgetting, against unfreezing all at once.",
    "the base's held-out loss rises less, in both recipes, at equal steps",
    OWN,
)
def gradual_unfreezing(e: Evidence) -> Found:
    parts, costs = [], []
    for recipe in ("one rate", "ULMFiT's rates"):
        slow, fast = (f"{way}, {recipe}" for way in ("gradual", "all at once"))
        lessened = less(e.arm("unfreezing", fast, "forgetting"), e.arm("unfreezing", slow, "forgetting"))
        parts.append(Part(recipe, lessened, 0.0, "nats a token"))
        costs.append(statistics.mean(less(e.arm("unfreezing", fast, "score"), e.arm("unfreezing", slow, "score"))))
    return Found(parts, f"accuracy that it costs: {', '.join(f'{c:+.3f}' for c in costs)}")


@claim(
    2,
    "Slanted triangular rates help; the rise is the short side of the triangle, the fall the long one.",
    "lower test loss than a constant rate at each budget, and than a triangle with the long side first",
    2,
    OWN,
)
def slanted_rates(e: Evidence) -> Found:
    parts = []
    for steps in ("30", "80", "240"):
        slanted, constant = (adapted(e, steps, f"{name}, one rate") for name in ("slanted triangular", "constant"))
        parts.append(Part(f"{steps} steps", less(constant, slanted), 0.0, "nats a token"))
    rise = {share: {int(s): v for s, v in e.at(OWN, "slant", share).items()} for share in ("0.1", "0.9")}
    parts.append(Part("short rise, against a long one", less(rise["0.9"], rise["0.1"]), 0.0, "nats a token"))
    return Found(parts)


def adapted(e: Evidence, steps: str, row: str) -> list[float]:
    """Lesson 2's test loss on the target text, one a seed."""
    target = e.result(2, "data", "name")
    return [run["test"][target] for run in e.result(2, "after", steps, row, "runs")]


def forgot(e: Evidence, steps: str, row: str) -> list[float]:
    """Lesson 2's rise of the loss on the base's own texts, one a seed."""
    before = e.result(2, "before")
    general = sorted(before.keys() - {e.result(2, "data", "name")})
    return [
        statistics.mean(run["test"][name] - before[name] for name in general)
        for run in e.result(2, "after", steps, row, "runs")
    ]


@claim(
    3,
    "Discriminative learning rates help.",
    "lower loss on the new text, less forgotten, and higher accuracy of a classifier, each against one rate",
    2,
    3,
)
def discriminative(e: Evidence) -> Found:
    one, graded = (f"slanted triangular, {kind}" for kind in ("one rate", "discriminative"))
    ways = ("all at once + stlr", "all at once + discr + stlr")
    accuracy = [e.result(3, "tables", "sentiment-target", way, "accuracies") for way in ways]
    return Found(
        [
            Part("loss on new text", less(adapted(e, "80", one), adapted(e, "80", graded)), 0.0, "nats a token"),
            Part("forgetting", less(forgot(e, "80", one), forgot(e, "80", graded)), 0.0, "nats a token"),
            Part("classifier", less(accuracy[1], accuracy[0]), 0.0, "accuracy"),
        ]
    )


@claim(
    4,
    "Importance by gradient beats random choice of the trained parameters at equal budget.",
    "lower test loss with 1 % of the entries, on both tasks",
    5,
)
def gradient_importance(e: Evidence) -> Found:
    parts = []
    for task, unit in (("translation", "nats a token"), ("pydocs-topics", "nats a text")):
        chance, ranked = (e.result(5, "sweep", task, score, "0.01") for score in ("random", "gradient"))
        parts.append(Part(task, less(chance, ranked), 0.0, unit))
    return Found(parts)


@claim(
    5,
    "Ranking parameters by a random forest agrees with ranking them by gradients, and is worth its price.",
    "rank correlation above 0.5 with the first-order ranking of the groups; lower loss when what it ranks first is "
    "trained than when as many entries of the largest gradients are",
    5,
)
def random_forest(e: Evidence) -> Found:
    proof = [e.result(5, "proof", title) for title in ("single entries, gradient", "forest, top")]
    masks = e.result(5, "study", "masks")
    return Found(
        [
            Part("agreement", e.figure(5, "spearman_first_order"), 0.5, "rank correlation"),
            Part("worth", less(*proof), 0.0, "nats a token"),
        ],
        f"price: {masks:,} losses of the model, against 16 gradients",
    )


@claim(
    6,
    "Importance ranking has been abandoned because of the number of parameters.",
    "ranking all parameters takes longer than the fine-tuning of 240 steps that it is done for",
    OWN,
)
def ranking_abandoned(e: Evidence) -> Found:
    by_base: dict[str, list[float]] = {}
    for found in e.study("ranking price"):
        by_base.setdefault(found["job"]["base"], []).append(found["ranking"] / found["training"])
    return Found(
        [Part(base, shares, 1.0, "of the training's time") for base, shares in by_base.items()],
        "16 backward passes and one sort at any size; in the literature sparse fine-tuning by such scores goes on",
    )


@claim(
    7,
    "Truncated SVD is the best rank-r approximation.",
    "no rival is nearer in the Frobenius and in the spectral norm; nor does another matrix of the rank keep more of "
    "what the model can do",
    6,
    OWN,
)
def truncated_svd(e: Evidence) -> Found:
    found = e.study("rivals")
    # "Best" is said of every matrix: one that a rival comes nearer to refutes it, and a mean says nothing.
    parts = [
        Part(f"{norm} norm, at the worst", [min(one[norm] for one in found)], -1e-9, "of its error", exact=True)
        for norm in ("frobenius", "spectral")
    ]
    rise = less(e.figure(6, "aware_loss_above_base"), e.figure(6, "plain_loss_above_base"))
    return Found([*parts, Part("the model's loss", rise, 0.0, "nats a token")], "the theorem is Eckart and Young's")


@claim(
    8,
    "PCA is the special case of the SVD in which all singular values are different.",
    "different singular values make the SVD's first axis the principal one; equal ones make PCA and SVD disagree",
    OWN,
)
def pca_and_svd(e: Evidence) -> Found:
    found = e.study("components")
    return Found(
        [
            Part("different values suffice", [one["cosine"] for one in found], 0.99, "cosine"),
            Part("equal values spoil it", [one["error"] for one in found], 1e-6, "of the variance"),
        ],
        "right: PCA is the SVD of centred data, variances σ²/(n − 1); different σ only make its axes unique up to sign",
    )


@claim(
    9,
    "LoRA with 4,608 parameters for a layer of 512 × 64 saves 86 %.",
    "at least 85.5 % fewer: trained parameters of the layer; bytes of a training step of a whole model",
    7,
    OWN,
)
def lora_count(e: Evidence) -> Found:
    found = e.study("counted")[0]
    step = 1 - e.figure(7, "lora_memory")[0]
    return Found(
        [
            Part("the layer's trained parameters", [1 - found["lora"] / found["weight"]], 0.855, "saved", exact=True),
            Part("memory of a step", [step], 0.855, "saved", exact=True),
        ],
        f"r = 8: 8 · (512 + 64) = {found['lora']:,} of {found['weight']:,}",
    )


@claim(
    10,
    "LoRA matches full fine-tuning with a small fraction of the parameters.",
    f"its score is at most {MARGIN} below full fine-tuning's, on each task of the comparison",
    11,
)
def lora_matches(e: Evidence) -> Found:
    share = e.result(11, "costs", "lora", "trained") / e.result(11, "costs", "full", "trained")
    parts = []
    for task in e.tasks:
        lora, full = (e.cell(method, task) for method in ("lora", "full"))
        parts.append(Part(task, less(lora, full), -MARGIN, "score", void=idle("full fine-tuning", full, task)))
    return Found(parts, f"it trains {share:.1%} as many parameters")


@claim(
    11,
    "Ranks 4 to 32 are the good trade.",
    "rank 4 has a lower loss than rank 1, and what 64 gains over 32 is less than a tenth of what 64 gains over 1",
    7,
    11,
)
def good_ranks(e: Evidence) -> Found:
    parts = []
    for task, at in (
        ("rewriting", lambda r: dict(enumerate(e.result(7, "rewriting", "rank", str(r), "loss")))),
        ("translation", lambda r: e.swept("rank", "lora", r)),
    ):
        one, four, most, more = (at(r) for r in (1, 4, 32, 64))
        rest = [0.1 * whole - last for whole, last in zip(less(one, more), less(most, more), strict=True)]
        parts += [
            Part(f"{task}: 4 is better than 1", less(one, four), 0.0, "nats a token"),
            Part(f"{task}: 64 is hardly more than 32", rest, 0.0, "nats a token"),
        ]
    return Found(parts)


@claim(
    12,
    "Adapting only the attention layers is often enough.",
    f"score at most {MARGIN} below that of as many parameters spread over all layers, on each task of which these have "
    "learnt anything",
    OWN,
)
def attention_only(e: Evidence) -> Found:
    tasks = sorted(name.removeprefix("all, ") for name in e.at(OWN, "arms", "targets") if name.startswith("all, "))
    parts = []
    for task in tasks:
        attention, every = (e.arm("targets", f"{where}, {task}", "score") for where in ("all of attention", "all"))
        parts.append(Part(task, less(attention, every), -MARGIN, "score", void=idle("LoRA", every, task)))
    return Found(parts)


@claim(
    13,
    "LoRA adds no inference latency once it is merged; adapters do.",
    "a token takes less than 5 % longer than the base's with merged LoRA, more than 5 % with adapters",
    OWN,
)
def latency(e: Evidence) -> Found:
    found = e.study("latency")
    slower = {name: [one[name] / one["base"] - 1 for one in found] for name in ("LoRA, merged", "adapters")}
    beside = statistics.mean(one["LoRA, not merged"] / one["base"] - 1 for one in found)
    return Found(
        [
            Part("merged LoRA adds none", [0.05 - share for share in slower["LoRA, merged"]], 0.0, "of a token's time"),
            Part("adapters add some", slower["adapters"], 0.05, "of a token's time"),
        ],
        f"LoRA that is not merged: {beside:+.0%}",
    )


@claim(
    14,
    "Adapters can be swapped per task on one base.",
    "an adapter that is loaded into the base after another one gives the logits it was trained to, to 1e-5 of the "
    "largest; the base stays as it is; each is better at its own task than the other's",
    OWN,
)
def swapping(e: Evidence) -> Found:
    parts = []
    for method in ("lora", "adapters"):
        found = e.study("swapped", method=method)
        off = max(max(one["difference"], one["base_moved"]) for one in found)
        parts += [
            Part(f"{method}: itself again", [1e-5 - off], 0.0, "of the largest logit", exact=True),
            Part(f"{method}: best at its own", [one["other"] - one["own"] for one in found], 0.0, "nats a token"),
        ]
    return Found(parts)


@claim(
    15,
    "LoRA does not work for arithmetic or poker.",
    f"its share of right answers is less than {LEARNT} above what guessing reaches; judged only where full fine-tuning "
    "is above that, because otherwise nothing works at this budget",
    11,
)
def arithmetic(e: Evidence) -> Found:
    parts = []
    for task in ("addition", "cards"):
        full, lora = (e.cell(method, task) for method in ("full", "lora"))
        gains = [LEARNT - (score - CHANCE.get(task, 0.0)) for score in lora.values()]
        parts.append(Part(task, gains, 0.0, "right answers", void=idle("full fine-tuning", full, task)))
    return Found(parts)


PEFT = ("lora", "adapters", "bitfit", "ia3", "prompt_tuning", "prefix_tuning")


@claim(
    16,
    "Full fine-tuning forgets, parameter-efficient methods forget less, multitask training avoids it.",
    "full: the base's held-out loss rises by more than 0.05; the mean of six PEFT methods rises less; a mixture of "
    "tasks rises by less than 0.05, and its own tasks lose at most 0.05 against training on each alone",
    4,
    11,
)
def forgetting(e: Evidence) -> Found:
    full = mean_over([e.cell("full", task, "forgetting") for task in e.tasks])
    peft = mean_over([e.cell(method, task, "forgetting") for method in PEFT for task in e.tasks])
    changes = [e.figure(4, f"mixture_{text}_loss_change") for text in ("tinyworld", "pydocs")]
    kept = less(e.figure(4, "mixture_score"), e.figure(4, "one_task_each_score"))
    return Found(
        [
            Part("full forgets", list(full.values()), 0.05, "nats a token"),
            Part("PEFT forgets less", less(full, peft), 0.0, "nats a token"),
            Part(
                "multitask: the base's own text",
                [0.05 - statistics.mean(both) for both in zip(*changes, strict=True)],
                0.0,
                "nats a token",
            ),
            Part("multitask: its own tasks", kept, -0.05, "score"),
        ]
    )


@claim(
    17,
    "Parameter-efficient fine-tuning needs far less memory.",
    "LoRA on all layers saves more than half of full fine-tuning's bytes of a step, part by part",
    7,
)
def memory(e: Evidence) -> Found:
    full, lora = (e.result(7, "step", name) for name in ("full fine-tuning", "LoRA on all"))

    def saved(*names: str) -> list[float]:
        return [1 - sum(lora[name] for name in names) / sum(full[name] for name in names)]

    shown = {
        "gradients and optimizer": ("gradients", "optimizer"),
        "activations": ("activations",),
        "the whole step": ("bytes",),
        "the whole step, measured": ("measured_peak",),
    }
    return Found([Part(name, saved(*names), 0.5, "saved", exact=True) for name, names in shown.items()])


@claim(
    18,
    "Training 15 to 20 % of the weights is enough.",
    f"with 20 % of the entries, picked by gradient: loss at most 5 % above full fine-tuning's; score at most {MARGIN} "
    "below it",
    5,
    11,
)
def a_fifth(e: Evidence) -> Found:
    part, whole = e.result(5, "sweep", "translation", "gradient", "0.2"), e.figure(5, "pairs_loss_all")
    some, full = e.swept("density", "importance", 0.2, "score"), e.swept("scale", "full", "base-s", "score")
    return Found(
        [
            Part("loss, lesson 5", [1.05 * b - a for a, b in zip(part, whole, strict=False)], 0.0, "nats a token"),
            Part("score, translation", less(some, full), -MARGIN, "score"),
        ]
    )


@claim(
    19,
    "Soft prompts lose on small models and gain with scale.",
    "behind full fine-tuning on the smallest base, and less so on the largest; on two tasks",
    9,
    11,
)
def prompts_and_scale(e: Evidence) -> Found:
    scale = e.result(9, "scale")
    sizes = sorted(scale, key=lambda name: scale[name]["n_parameters"])
    gaps = [less(scale[name]["all parameters"], scale[name]["soft prompt"]) for name in (sizes[0], sizes[-1])]
    points = [p for p in e.result(11, "sweeps") if p["sweep"] == "scale"]
    ends = sorted({(p["parameters"], p["value"]) for p in points})
    loss = [less(e.swept("scale", "prompt_tuning", b), e.swept("scale", "full", b)) for _, b in (ends[0], ends[-1])]
    return Found(
        [
            Part("sentiment: loses when small", gaps[0], MARGIN, "accuracy"),
            Part("sentiment: gains with scale", less(*gaps), 0.0, "accuracy"),
            Part("translation: loses when small", loss[0], 0.0, "nats a token"),
            Part("translation: gains with scale", less(*loss), 0.0, "nats a token"),
        ]
    )


@claim(
    20,
    "The tokens nearest to a soft prompt's vectors cluster in meaning.",
    "another base finds them more alike than tokens dealt out at random, and more than those nearest to the prompt "
    "before its training",
    OWN,
)
def prompt_neighbours(e: Evidence) -> Found:
    parts = []
    for task in ("sentiment-pairs", "topic-pairs"):
        found = e.study("reading", task=task)
        parts += [
            Part(f"{task}: beyond chance", [one["trained"] - one["chance"] for one in found], 0.0, "cosine"),
            Part(f"{task}: by training", [one["trained"] - one["untrained"] for one in found], 0.0, "cosine"),
        ]
    return Found(parts, "every prompt starts from random vectors")


@claim(
    21,
    "A frozen body with a trained last layer falls behind what reaches into the body.",
    f"by more than {MARGIN}: a classifier's head alone behind all parameters, the last block behind full fine-tuning",
    3,
    11,
)
def last_layer(e: Evidence) -> Found:
    parts = []
    for task in ("sentiment-target", "pydocs-topics"):
        whole, head = (e.figure(3, f"{task}_{way}") for way in ("all_at_once", "head_only"))
        parts.append(Part(f"{task}, head only", less(whole, head), MARGIN, "accuracy"))
    for task in e.tasks:
        full = e.cell("full", task)
        ahead, void = less(full, e.cell("last_layer", task)), idle("full fine-tuning", full, task)
        parts.append(Part(f"{task}, last block", ahead, MARGIN, "score", void=void))
    return Found(parts)


@claim(
    22,
    "PPO raises reward within a KL budget, and can be over-optimised.",
    "the true reward rises over the supervised policy's; KL stays below that of a run without a price on it; that run "
    "has a higher learnt and a lower true reward",
    10,
)
def ppo(e: Evidence) -> Found:
    figure = {
        name: {what: e.figure(10, f"{name}_{what}") for what in ("true_reward", "learnt_reward", "kl")}
        for name in ("ppo", "ppo_without_price")
    }
    priced, free = figure["ppo"], figure["ppo_without_price"]
    start = e.figure(10, "supervised_true_reward")
    return Found(
        [
            Part("true reward rises", less(priced["true_reward"], start), 0.0, "reward"),
            Part("the price holds KL", less(free["kl"], priced["kl"]), 0.0, "nats a response"),
            Part("without it: learnt reward up", less(free["learnt_reward"], priced["learnt_reward"]), 0.0, "σ"),
            Part("without it: true reward down", less(priced["true_reward"], free["true_reward"]), 0.0, "reward"),
        ],
        f"KL with the price: {statistics.mean(priced['kl']):.1f} nats a response",
    )


@claim(
    23,
    "Pre-training saves labels.",
    "from the base, the middle number of labels gives a higher accuracy than the largest does from scratch",
    3,
)
def saves_labels(e: Evidence) -> Found:
    parts = []
    for task, starts in e.result(3, "labels").items():
        counts = sorted(map(int, starts["from scratch"]))
        few, many = str(counts[(len(counts) - 1) // 2]), str(counts[-1])
        gain = less(starts["from the base"][few]["accuracies"], starts["from scratch"][many]["accuracies"])
        parts.append(Part(f"{task}: {few} against {many}", gain, 0.0, "accuracy"))
    return Found(parts)


@claim(
    24,
    "Multitask fine-tuning needs very many examples.",
    f"with the fewest examples a task, the mixture is more than {MARGIN} behind one model each; and with a quarter of "
    "the most it is more than 0.1 behind what it reaches with all",
    4,
)
def multitask_examples(e: Evidence) -> Found:
    curves = [run["curve"] for run in e.result(4, "runs")]
    counts = sorted(map(int, curves[0]))
    fewest, quarter, most = (str(counts[i]) for i in (0, -2, -1))
    behind = [c[fewest]["one task each"] - c[fewest]["mixture"] for c in curves]
    wanting = [c[most]["mixture"] - c[quarter]["mixture"] for c in curves]
    return Found(
        [
            Part(f"{fewest} a task: behind one model each", behind, MARGIN, "score"),
            Part(f"{quarter} a task: behind {most}", wanting, 0.1, "score"),
        ]
    )


@claim(
    25,
    "LoRA reaches its result with a fraction of full fine-tuning's data.",
    f"with a quarter of the data its score is at most {MARGIN} below full fine-tuning's with all; and the quarter "
    "costs it less than full fine-tuning; judged where full fine-tuning, and LoRA, have learnt anything",
    OWN,
)
def data_fraction(e: Evidence) -> Found:
    arms_ = e.at(OWN, "arms", "data")
    tasks = sorted({name.split(", ")[2] for name in arms_})

    def score(method: str, share: str, task: str) -> dict[int, float]:
        return e.arm("data", f"{method}, {share}, {task}", "score")

    parts = []
    for task in tasks:
        lost = {m: less(score(m, "1", task), score(m, "0.25", task)) for m in ("lora", "full")}
        reached = less(score("lora", "0.25", task), score("full", "1", task))
        nothing = idle("full fine-tuning", score("full", "1", task), task)
        none_to_lose = nothing or idle("LoRA", score("lora", "1", task), task)
        parts += [
            Part(f"{task}: a quarter suffices", reached, -MARGIN, "score", void=nothing),
            Part(f"{task}: better than full does", less(lost["full"], lost["lora"]), 0.0, "score", void=none_to_lose),
        ]
    return Found(parts)


@claim(
    26,
    "Dense weights are badly approximated by low rank, their updates well.",
    "at rank 8 the weights' error is above half their norm and above the update's; the update cut to rank 8 and to "
    "rank 32 keeps nine tenths of the gain",
    6,
)
def low_rank(e: Evidence) -> Found:
    weights, update = (e.figure(6, f"{kind}_error_at_rank_8") for kind in ("weights", "update"))
    kept = {
        rank: [(u["before"] - u["update_losses"][rank]) / (u["before"] - u["after"]) for u in e.result(6, "updates")]
        for rank in ("8", "32")
    }
    return Found(
        [
            Part("weights: badly", weights[:1], 0.5, "of the norm", exact=True),  # the base's: no seed is in them
            Part("updates: better than weights", less(weights, update), 0.0, "of the norm"),
            *(Part(f"updates: well, rank {rank}", values, 0.9, "of the gain") for rank, values in kept.items()),
        ]
    )


@claim(
    27,
    "PPO forgets less than supervised fine-tuning.",
    "more supervised training has forgotten more at the same true reward, and at the end of the run",
    10,
)
def ppo_forgets(e: Evidence) -> Found:
    ends = [[path[-1][1] for path in e.result(10, "forgetting", name)] for name in ("more supervised", "PPO")]
    return Found(
        [
            Part("at equal true reward", e.figure(10, "supervised_forgets_more_than_ppo"), 0.0, "nats a token"),
            Part("at the end", less(*ends), 0.0, "nats a token"),
        ]
    )


@claim(
    28,
    "BLEU is the plain average of n-gram precisions.",
    "the two differ by less than a point on made-up systems, and rank them alike (rank correlation above 0.95)",
    OWN,
)
def bleu_average(e: Evidence) -> Found:
    found = e.study("bleu")
    halves = {name: statistics.mean(one["halves"][name] for one in found) for name in ("bleu", "average")}
    return Found(
        [
            Part("the same value", [1 - one["difference"] for one in found], 0.0, "points of 100"),
            Part("the same ranking", [one["spearman"] for one in found], 0.95, "rank correlation"),
        ],
        f"right: geometric mean times a brevity penalty; the first half of every reference has a plain average of "
        f"{halves['average']:.0f} and a BLEU of {halves['bleu']:.0f}",
    )


# ---------------------------------------------------------------------------------------------- the ledger


@dataclass(frozen=True)
class Entry:
    """A claim with its verdict.

    Attributes
    ----------
    number : int
    statement, rule : str
    verdict : Verdict
    condition : str
        Where it holds and where not, if its parts differ.
    parts : list of Judged
    note : str
    missing : str
        What is not there and how to make it; then there are no parts.
    commands : list of str
        That give the figures.
    """

    number: int
    statement: str
    rule: str
    verdict: Verdict
    condition: str = ""
    parts: list[Judged] = field(default_factory=list)
    note: str = ""
    missing: str = ""
    commands: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> str:
        """Fewest and most of its parts, or ``exact``."""
        counts = sorted({part.seeds for part in self.parts if part.seeds})
        if not counts:
            return "exact" if self.parts else "–"
        return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def settle(claim_: Claim, evidence: Evidence) -> Entry:
    """The verdict on one claim."""
    told: dict[str, Any] = {
        "number": claim_.number,
        "statement": claim_.statement,
        "rule": claim_.rule,
        "commands": list(dict.fromkeys(command(source) for source in claim_.sources)),
    }
    try:
        found = claim_.parts(evidence)
    except MissingError as missing:
        return Entry(verdict=Verdict.UNKNOWN, missing=str(missing), **told)
    parts = judge(found.parts, mean_interval)
    return Entry(verdict=combined(parts), condition=condition(parts), parts=parts, note=found.note, **told)


def ledger(evidence: Evidence, numbers: Sequence[int] = ()) -> list[Entry]:
    """The verdicts on all claims, or on some."""
    return [settle(CLAIMS[number], evidence) for number in (numbers or sorted(CLAIMS))]


def shown(part: Judged) -> str:
    """A part's figure with its interval and threshold."""
    digits = 3 if max(abs(part.mean), abs(part.above)) < 100 else 1
    small = 0 < max(abs(part.mean), abs(part.above)) < 1e-3
    value, low, high, above = (
        f"{v:.1e}" if small else f"{v:+.{digits}f}" for v in (part.mean, part.low, part.high, part.above)
    )
    interval = "" if part.seeds == 0 else f" [{low}, {high}]"
    return f"{value}{interval} {part.unit}, > {above}"


def ledger_table(entries: Sequence[Entry], details: bool = False) -> str:
    """The verdicts for the terminal; with every part and its figures, if asked for."""
    blocks = []
    for entry in entries:
        lines = [f"{entry.number:>2}. {entry.statement}", f"    {entry.verdict.upper()}"]
        if entry.condition:
            lines[-1] += f": {entry.condition}"
        if entry.missing:
            lines.append(f"    {entry.missing}")
        if details and entry.parts:
            lines.append(f"    if: {entry.rule}")
            rows = [[p.name, shown(p), p.seeds or "exact", p.verdict] for p in entry.parts]
            lines.append(table(rows, ["", "figure, interval over seeds, threshold", "seeds", ""], "llrl", indent=6))
        elif entry.parts:
            first = entry.parts[0]
            lines.append(f"    {first.name}: {shown(first)}; {entry.seeds} seeds; {', '.join(entry.commands)}")
        if entry.note:
            lines.append(f"    {entry.note}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def ledger_markdown(entries: Sequence[Entry], brief: bool = False) -> str:
    """The verdicts as a Markdown table; if brief, without figures and commands."""
    if brief:
        told = [[e.number, e.statement, f"**{e.verdict}**" + f": {e.condition}" * bool(e.condition)] for e in entries]
        return markdown(told, ["", "claim", "verdict"], "rll")
    rows = []
    for entry in entries:
        verdict = f"**{entry.verdict}**" + (f"<br>{entry.condition}" if entry.condition else "")
        figures = "<br>".join(f"{part.name}: {shown(part)}" for part in entry.parts) or entry.missing
        if entry.note:
            figures += f"<br>{entry.note}"
        commands = "<br>".join(f"`{one}`" for one in entry.commands)
        rows.append(
            [entry.number, f"{entry.statement}<br>*If: {entry.rule}.*", verdict, figures, entry.seeds, commands]
        )
    headers = ["", "claim", "verdict", "figure [interval over seeds], threshold", "seeds", "made by"]
    note = (
        "The intervals of a claim hold together with 95 %, so each is the wider, the more there are. Where a rule says "
        "“less than”, the figure is what is left to the limit.\n"
    )
    return f"{markdown(rows, headers, 'rlllrl')}\n{note}"


COLOURS = {
    Verdict.HOLDS: plotting.BLUE,
    Verdict.FAILS: plotting.VERMILLION,
    Verdict.CONDITION: plotting.PURPLE,
    Verdict.UNKNOWN: plotting.GREY,
}


@plotting.style()
def forest_picture(entries: Sequence[Entry]) -> Figure:
    """Every part as a point with its interval, against its threshold: to the right of 0 the claim's way.

    The units differ from part to part, so the axis is in thresholds' distance in the part's own unit, straight near 0
    and logarithmic further out.
    """
    rows = [(entry, part) for entry in entries for part in entry.parts]
    figure, axis = plotting.new(height=1.2 + 0.19 * max(4, len(rows)))
    labels = []
    for y, (entry, part) in enumerate(rows):
        colour = COLOURS[part.verdict]
        low, mean, high = (value - part.above for value in (part.low, part.mean, part.high))
        axis.plot([low, high], [y, y], color=colour, linewidth=1.4)
        axis.plot(mean, y, "o" if part.seeds else "D", color=colour, markersize=3.5)
        axis.annotate(
            part.unit, (1.01, y), xycoords=("axes fraction", "data"), fontsize=6, va="center", color=plotting.GREY
        )
        labels.append(f"{part.name}  {entry.number:>2}")
        if y and rows[y - 1][0] is not entry:
            axis.axhline(y - 0.5, color="#E3E3E3", linewidth=0.6)
    axis.axvline(0, color=plotting.GREY, linewidth=1)
    axis.set_xscale("symlog", linthresh=0.01)
    axis.set_xticks([-10, -1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10], ["−10", "−1", "−0.1", "", "0", "", "0.1", "1", "10"])
    axis.set_yticks(range(len(rows)), labels, fontsize=6)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("figure − threshold, in the unit at the right; right of 0: as the claim says")
    for x, verdict in zip((0.0, 0.2, 0.55), (Verdict.HOLDS, Verdict.FAILS, Verdict.UNKNOWN), strict=True):
        axis.annotate(
            verdict,
            (x, 1.005),
            xycoords="axes fraction",
            fontsize=8,
            color=COLOURS[verdict],
            va="bottom",
            weight="bold",
        )
    return figure


def summary(entries: Sequence[Entry]) -> str:
    """How many claims have which verdict."""
    counts = {verdict: sum(entry.verdict is verdict for entry in entries) for verdict in Verdict}
    told = ", ".join(f"{verdict}: {n}" for verdict, n in counts.items() if n)
    missing = sum(bool(entry.missing) for entry in entries)
    return told + (f" ({missing} for want of a record)" if missing else "")


# ---------------------------------------------------------------------------------------------- the command


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="make claims", description=__doc__.split("\n\n")[0])
    parser.add_argument("--full", action="store_true", help="measure what the ledger measures itself (resumable)")
    parser.add_argument("--quick", action="store_true", help="the same at its smallest: its verdicts mean nothing")
    parser.add_argument("--details", action="store_true", help="every part of every claim")
    parser.add_argument("--claim", type=int, nargs="+", default=[], metavar="N", help="only these claims")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help="of the lessons")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="for results (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.full and arguments.quick:
        parser.error("--full and --quick exclude each other")
    if unknown := [n for n in arguments.claim if n not in CLAIMS]:
        parser.error(f"no claim {unknown[0]}; there are 1 to {max(CLAIMS)}")
    return arguments


def run(arguments: argparse.Namespace) -> list[Entry]:
    """Measure if asked to, judge, and write table, picture and record into the run's directory.

    A full run's record and table go beside the lessons' records too.
    """
    directory = arguments.out / "claims"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the directory {directory}: {error.strerror}") from None
    measurements = None
    if arguments.full or arguments.quick:
        kept = directory / ("full" if arguments.full else "quick")
        print(f"measuring; done jobs are kept in {kept}: the same command goes on from there", flush=True)
        measurements = own.run(own.FULL if arguments.full else own.QUICK, kept)
    evidence = Evidence.read(arguments.records, measurements)
    entries = ledger(evidence, arguments.claim)
    print(f"\n{ledger_table(entries, arguments.details or bool(arguments.claim))}\n\n{summary(entries)}")
    record = {
        "provenance": files.provenance(),
        "claims": [asdict(entry) for entry in entries],
        "measurements": evidence.records.get(OWN, {}),
    }
    whole = ledger_markdown(entries)
    targets = [directory] + ([arguments.records] if arguments.full and not arguments.claim else [])
    for target in targets:
        files.write_json(target / RECORD, record)
        files.write_atomic(target / "claims.md", whole.encode())
        plotting.save(forest_picture(entries), target / "claims.png")
    print(f"table, picture and record: {', '.join(map(str, targets))}")
    return entries


def main(argv: Sequence[str] | None = None) -> int:
    """``make claims``; gives the exit code: 0 whatever the verdicts are, 1 a run failed, 2 an input is wrong."""
    arguments = parse(argv)
    with runner.one_line("claims") as ended:
        run(arguments)
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
