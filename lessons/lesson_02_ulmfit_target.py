"""Lesson 2: fine-tune a language model on the text of the task, no labels needed, with a rate for each layer.

1. Discriminative learning rates: every layer group learns 2.6 times slower than the one above it.
2. The slanted triangular schedule, the fault of its published formula, and the one-cycle schedule that came after it.
3. A base goes on training on text that it has never seen; what it gains there and what it forgets elsewhere.
4. Is it the schedule, or the rates by depth? Each against the plain choice, at equal steps.

This is the second of ULMFiT's three steps (Howard, Ruder 2018, arXiv:1801.06146, section 3.2); lesson 1 was the first,
lesson 3 is the third.
"""

from __future__ import annotations

import fnmatch
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kernels import Backend
from lessons.common import derivation, gradcheck, plotting, runner
from lessons.common.adaptation import (
    Domain,
    Laboratory,
    Outcome,
    Plan,
    Result,
    ablation_picture,
    budget_picture,
    curve_picture,
    general_texts,
    movie_reviews,
    scored_windows,
    target_text,
)
from lessons.common.bands import Band
from lessons.common.classifier import Classifier
from lessons.common.derivation import Derivation
from lessons.common.gradcheck import Check
from lessons.common.method import Method, register
from lessons.common.runner import Run, Settings
from lessons.common.table import spread, table
from minigpt import GPT, GPTConfig, Tokenizer, bases
from minigpt.corpora import load_corpus
from minigpt.objectives import Batch, LanguageModelling
from minigpt.optim import ParameterGroup
from minigpt.training import TrainConfig, train

# ---------------------------------------------------------------------------------------------- the technique


def discriminative_rates(lr: float, n_groups: int, factor: float = 2.6) -> list[float]:
    """Learning rate of every layer group: each group has the rate of the one above it, divided by `factor`.

    η_(l−1) = η_l / factor, where the topmost group has `lr`. Howard, Ruder (2018), section 3.2.

    Parameters
    ----------
    lr : float
        Of the top group.
    n_groups : int
    factor : float
        1 gives all groups the same rate.

    Returns
    -------
    rates : list of n_groups floats
        From the bottom group to the top one.
    """
    ### BEGIN SOLUTION
    return [lr / factor ** (n_groups - 1 - group) for group in range(n_groups)]
    ### END SOLUTION


def slanted_triangular(step: int, steps: int, lr: float, cut_frac: float = 0.1, ratio: float = 32) -> float:
    """A short steep rise and a long slow fall, both straight; never below lr/ratio.

    With cut = ⌊steps · cut_frac⌋ (truncated to an integer), a share p of the way from lr/ratio to lr:

        p = step / cut                              while step < cut
        p = 1 − (step − cut) / (steps − cut)        afterwards
        η = lr · (1 + p · (ratio − 1)) / ratio

    Howard, Ruder (2018), eq. 3, print another denominator for the fall; see `slanted_triangular_as_published`.

    Parameters
    ----------
    step : int
        From 0 to steps − 1.
    steps : int
        All steps of the run, 1 or more. If ``cut`` is 0, there is no rise.
    lr : float
        The peak.
    cut_frac : float
        Share of the steps in which the rate rises.
    ratio : float
        How many times smaller the lowest rate is than the peak.

    Returns
    -------
    rate : float
        In [lr/ratio, lr].
    """
    ### BEGIN SOLUTION
    cut = int(steps * cut_frac)
    p = step / cut if step < cut else 1 - (step - cut) / (steps - cut)
    return lr * (1 + p * (ratio - 1)) / ratio
    ### END SOLUTION


def slanted_triangular_as_published(
    step: int, steps: int, lr: float, cut_frac: float = 0.1, ratio: float = 32
) -> float:
    """The same schedule as the paper prints it, for comparison: do not train with it.

    The fall has the denominator cut · (1/cut_frac − 1), which is steps − cut only where steps · cut_frac is whole.
    Elsewhere ⌊ ⌋ has made ``cut`` too small, the fall is too steep, and the rate is *negative* before the end; with
    fewer than 1/cut_frac steps it divides by zero.
    """
    cut, low = int(cut_frac * steps), lr / ratio
    p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_frac - 1))
    return low + p * (lr - low)


def one_cycle(
    step: int, steps: int, lr: float, pct_start: float = 0.25, div: float = 25.0, div_final: float = 1e5
) -> float:
    """Half a cosine up from lr/div to lr, then half a cosine down to lr/div_final.

    The settings of fastai's ``fit_one_cycle``, which took the place of the slanted triangle there. The peak is at step
    pct_start · steps − 1 (steps count from 0; it need not be whole), but not before step 0, and the lowest rate at the
    last step, as in PyTorch's ``OneCycleLR``. A share p of the way from a rate a to a rate b along half a cosine is

        b + (a − b) · (1 + cos(π p)) / 2

    Smith, Topin (2018), "Super-convergence", arXiv:1708.07120, had straight lines, and moved the momentum against the
    rate; AdamW's β₁ stays as it is here.

    Parameters
    ----------
    step : int
        From 0 to steps − 1.
    steps : int
        1 or more; a single step has the rate lr.
    lr : float
        The peak.
    pct_start : float
        Share of the steps in which the rate rises.
    div, div_final : float
        How many times smaller than the peak the first rate and the last one are.

    Returns
    -------
    rate : float
    """
    ### BEGIN SOLUTION
    peak, last = max(pct_start * steps - 1, 0.0), steps - 1
    if step < peak:
        start, end, p = lr / div, lr, step / peak
    else:
        start, end, p = lr, lr / div_final, (step - peak) / (last - peak) if last > peak else 0.0
    return end + (start - end) * (1 + math.cos(math.pi * p)) / 2
    ### END SOLUTION


def constant(step: int, steps: int, lr: float) -> float:
    """The same rate throughout."""
    return lr


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "slanted triangular": slanted_triangular,
    "one-cycle": one_cycle,
}
"""Rate by (step, steps, peak)."""


def layer_groups(model: GPT | Classifier) -> list[tuple[str, ...]]:
    """Which parameters belong together, bottom to top: one group a block, and the classifier's head if there is one.

    The embeddings go with the first block and the final LayerNorm with the last. The token embedding is the language
    model's output head as well; here it counts as what it is first, the bottom.

    Parameters
    ----------
    model : GPT or Classifier

    Returns
    -------
    groups : list of tuples of str
        Shell-style patterns on parameter names. Every parameter of the model matches exactly one of them.
    """
    blocks = [[f"transformer.h.{i}.*"] for i in range(model.config.n_layer)]
    blocks[0] += ["transformer.wte.*", "transformer.wpe.*"]
    blocks[-1] += ["transformer.ln_f.*"]
    head = [["score*"]] if isinstance(model, Classifier) else []
    return [tuple(patterns) for patterns in blocks + head]


def rate_groups(
    groups: Sequence[tuple[str, ...]],
    steps: int,
    lr: float,
    schedule: str = "slanted triangular",
    factor: float = 2.6,
    scales: Sequence[float] | None = None,
) -> list[ParameterGroup]:
    """Discriminative rates and a schedule as the parameter groups that `minigpt.training.train` takes.

    Parameters
    ----------
    groups : list of tuples of str
        As from `layer_groups`, bottom to top.
    steps : int
    lr : float
        Peak of the top group.
    schedule : str
        One of `SCHEDULES`.
    factor : float
        As for `discriminative_rates`.
    scales : sequence of float, optional
        One more factor for each group.
    """
    rates = discriminative_rates(lr, len(groups), factor)
    curve = SCHEDULES[schedule]
    return [
        ParameterGroup(pattern, schedule=partial(curve, steps=steps, lr=rate * scale))
        for patterns, rate, scale in zip(groups, rates, scales or [1.0] * len(groups), strict=True)
        for pattern in patterns
    ]


@register("full")
@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Full fine-tuning: every parameter of the base is trained."""

    learning_rate: ClassVar[float] = 1e-3

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """All parameters are free."""
        trunk.unfreeze()


# ---------------------------------------------------------------------------------------------- the mathematics


def check_rates(backend: Backend) -> list[Check]:
    """Neighbours differ by the factor; so do the first steps that AdamW takes with these rates."""
    model = GPT(GPTConfig(vocab_size=7, n_positions=5, n_embd=6, n_layer=3, n_head=2), dtype="float64", backend=backend)
    ids, targets = np.random.default_rng(3).integers(0, 7, (2, 2, 5))
    wanted = [0.1 / 6.76, 0.1 / 2.6, 0.1]

    def first_step() -> list[float]:
        tuned = model.copy()
        groups = layer_groups(tuned)
        before = tuned.state()
        config = TrainConfig(1, lr=0.0, eps=1e-14, weight_decay=0.0, max_norm=None, workers=1)
        batch = {"ids": ids, "targets": targets}
        rates = rate_groups(groups, 1, 0.1, "constant")
        train(tuned, LanguageModelling(), lambda step: batch, config, groups=rates, progress=False)
        moved = {name: float(np.abs(array - before[name]).max()) for name, array in tuned.state().items()}
        return [max(moved[name] for name in names) for names in members(groups, moved)]

    return [
        gradcheck.agree("rates of three groups", wanted, lambda: discriminative_rates(0.1, 3)),
        gradcheck.agree("their first steps", wanted, first_step),
    ]


def members(groups: Sequence[tuple[str, ...]], names: Mapping[str, Any]) -> list[list[str]]:
    """The names in every group."""
    return [[n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)] for patterns in groups]


def check_triangular(backend: Backend) -> list[Check]:
    """The straight lines, drawn by interpolation between their ends; also where the published form fails."""
    low, peak = 0.01, 0.32

    def against(name: str, steps: int, corners: list[int], rates: list[float]) -> Check:
        wanted = np.interp(np.arange(steps), corners, rates)
        return gradcheck.agree(name, wanted, lambda: [slanted_triangular(step, steps, peak) for step in range(steps)])

    return [
        against("100 steps, cut at 10", 100, [0, 10, 100], [low, peak, low]),
        against("19 steps, cut at 1", 19, [0, 1, 19], [low, peak, low]),
        against("7 steps, no rise", 7, [0, 7], [peak, low]),
    ]


def check_one_cycle(backend: Backend) -> list[Check]:
    """Ends, peaks, and the middles between them, where half a cosine has gone half its way."""
    first, peak, last = 0.01, 0.25, 0.25e-5
    rising, falling = {0: first, 12: (first + peak) / 2, 24: peak}, {25: peak, 64: (peak + last) / 2, 103: last}
    return [
        gradcheck.agree("up, of 100 steps", [*rising.values()], lambda: [one_cycle(t, 100, peak) for t in rising]),
        gradcheck.agree("down, of 104 steps", [*falling.values()], lambda: [one_cycle(t, 104, peak) for t in falling]),
        gradcheck.agree("a single step", [peak], lambda: [one_cycle(0, 1, peak)]),
    ]


DERIVATIONS = (
    Derivation(
        "Discriminative learning rates",
        """
        θ_l ← θ_l − η_l · (AdamW's direction),   η_(l−1) = η_l / 2.6

        Lower layers hold what is general (spelling, word classes), upper ones what is particular to a text: the upper
        ones have further to go. AdamW divides each gradient by its own size, so a smaller *gradient* would change
        nothing: it is the rate that has to be smaller. Three groups at η = 0.1:
        """,
        (discriminative_rates, layer_groups),
        check_rates,
    ),
    Derivation(
        "Slanted triangular schedule",
        """
        Two lines through (0, η/32), (cut, η) and (T, η/32):
          rising    p = t/cut
          falling   p = (T − t)/(T − cut) = 1 − (t − cut)/(T − cut)
        The paper prints cut·(1/cut_frac − 1) for T − cut. With cut = T·cut_frac that is the same; but cut is rounded
        down, so with T = 19 the paper's line falls to p = 0 at t = 10, and below zero after it.
        """,
        (slanted_triangular,),
        check_triangular,
    ),
    Derivation(
        "One-cycle schedule",
        """
        p of the way from a to b:   b + (a − b)·(1 + cos πp)/2      flat at both ends, steepest in the middle
        Up from η/25 to η in the first quarter, down to η/100,000 in the rest.
        """,
        (one_cycle,),
        check_one_cycle,
    ),
)


# ---------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Variant:
    """How a run is trained.

    Attributes
    ----------
    schedule : str
        One of `SCHEDULES`.
    factor : float
        How many times slower each group is than the one above it.
    embedding_on_top : bool
        The token embedding learns with the top group, as in fastai: it is the output head as well.
    scratch : bool
        From random weights instead of the base.
    """

    schedule: str = "slanted triangular"
    factor: float = 2.6
    embedding_on_top: bool = False
    scratch: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        if self.scratch:
            return "from scratch"
        rates = "one rate" if self.factor == 1 else "discriminative"
        return f"{self.schedule}, {rates}{', embedding on top' if self.embedding_on_top else ''}"

    def groups(self, model: GPT, steps: int, lr: float) -> list[ParameterGroup]:
        """For `minigpt.training.train`."""
        groups = rate_groups(layer_groups(model), steps, lr, self.schedule, self.factor)
        if self.embedding_on_top:  # of the groups that match a parameter, the first one has it
            top = partial(SCHEDULES[self.schedule], steps=steps, lr=lr)
            groups.insert(0, ParameterGroup("transformer.wte.*", schedule=top))
        return groups


ULMFIT = Variant()
PLAIN = Variant("constant", 1.0)
SCRATCH = Variant(factor=1.0, scratch=True)
VARIANTS = (
    *(Variant(schedule, factor) for schedule in SCHEDULES for factor in (1.0, 2.6)),
    replace(ULMFIT, embedding_on_top=True),
)

CORE = Plan("base-s", 1000, (80,), (3e-3, 1e-2), batch_size=8, block_size=128, windows=64)
FULL = replace(CORE, steps=(80, 30, 240), grid=(1e-3, 3e-3, 1e-2), seeds=5)
QUICK = Plan("base-xs", 20, (4,), (3e-3,), 2, 32, 8, evaluations=2, workers=1)


# ---------------------------------------------------------------------------------------------- pictures


def rate_map(
    n_groups: int, steps: int, lr: float, schedule: str = "slanted triangular", factor: float = 2.6
) -> np.ndarray:
    """The learning rate of every layer group at every step, (n_groups, steps); arguments as for `rate_groups`."""
    curve = SCHEDULES[schedule]
    rates = discriminative_rates(lr, n_groups, factor)
    return np.array([[curve(step, steps, rate) for step in range(steps)] for rate in rates])


@plotting.style()
def schedule_picture(n_groups: int, steps: int = 100, lr: float = 1e-2) -> Figure:
    """The rate of the top layer groups over the steps, and what the published formula does at the end of a run."""
    figure, axes = plotting.new(2, 2, height=6.4)
    names = ("top group", "÷ 2.6", "÷ 2.6²", "÷ 2.6³")
    for panel, (schedule, curve) in zip(axes.flat, SCHEDULES.items(), strict=False):
        rates = discriminative_rates(lr, n_groups)[::-1]
        for name, rate, colour in zip(names, rates, plotting.PALETTE, strict=False):
            values = [1e3 * curve(step, steps, rate) for step in range(steps)]
            panel.plot(values, color=colour)
            peak = int(np.argmax(values))
            panel.annotate(name, (max(peak, steps // 10) + steps // 12, values[peak]), color=colour, va="bottom")
        panel.set_title(schedule)
        panel.set_xlabel("step")
        panel.set_ylabel("learning rate (10⁻³)")
        panel.set_ylim(0, 1.18e3 * lr)
    fault_panel(axes[1, 1], 19, lr)
    return figure


def fault_panel(axes: Axes, steps: int, lr: float) -> None:
    """The published formula beside the one used here, for a number of steps that is no multiple of ten."""
    ours = [1e3 * slanted_triangular(step, steps, lr) for step in range(steps)]
    theirs = [1e3 * slanted_triangular_as_published(step, steps, lr) for step in range(steps)]
    axes.axhline(0, color=plotting.GREY, linewidth=1.2)
    axes.plot(theirs, color=plotting.VERMILLION, marker="o", markersize=3)
    axes.plot(ours, color=plotting.BLUE, marker="o", markersize=3)
    axes.annotate("as used here", (9, ours[9]), xytext=(6, 6), textcoords="offset points", color=plotting.BLUE)
    axes.annotate("as published:\nnegative", (10.2, -1.5), color=plotting.VERMILLION, ha="right", va="top")
    axes.set_xticks(range(0, steps, 3))
    axes.set_title(f"slanted triangular, {steps} steps in all")
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate (10⁻³)")


# ---------------------------------------------------------------------------------------------- the lesson


def lesson(run: Run) -> None:
    """Everything that `make lesson-2` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    settings = run.settings
    plan = settings.choose(QUICK, CORE, FULL)
    base, tokenizer = bases.load(plan.base, backend=run.backend)
    run.picture("schedules", schedule_picture(len(layer_groups(base))))
    show_groups(run, base)
    laboratory = prepare(settings, plan, base, tokenizer)
    before = laboratory.losses(base)
    show_texts(run, laboratory, before)
    results = laboratory.compare([*VARIANTS, SCRATCH], settings.seed)
    main_results = results[plan.steps[0]]
    show_gain(run, laboratory, main_results, before)
    show_curves(run, laboratory, main_results)
    show_ablation(run, results, before)
    report(run, main_results, before)
    run.results |= {
        "plan": asdict(plan),
        "data": laboratory.domain.record,
        "before": before,
        "after": {str(steps): {name: r.as_record() for name, r in rows.items()} for steps, rows in results.items()},
    }
    if not settings.data and not settings.quick:
        show_movies(run, laboratory, main_results)


def prepare(settings: Settings, plan: Plan, base: GPT, tokenizer: Tokenizer) -> Laboratory:
    """What there is to learn from, and the base's own texts beside it."""
    general = {
        data.name: scored_windows(data, "test", tokenizer, plan)
        for data in general_texts(plan.documents, settings.quick)
    }
    data = load_corpus(settings.data) if settings.data else target_text(plan.documents)
    return Laboratory(base, Domain.encode(data, tokenizer, plan), general, plan)


def recorded(results: Mapping[str, Any]) -> tuple[dict[int, dict[str, Result]], dict[str, float]]:
    """A record's `results` as the pictures take them.

    Returns
    -------
    found : dict of int to dict
        Number of steps → row of the ablation → its runs.
    before : dict of str to float
        The base's loss on every text, the target's first.
    """
    target = results["data"]["name"]
    found = {
        steps: {v.name: Result.from_record(results["after"][str(steps)][v.name]) for v in VARIANTS}
        for steps in results["plan"]["steps"]
    }
    return found, {target: results["before"][target]} | results["before"]


def show_groups(run: Run, base: GPT) -> None:
    """Which parameters have which rate."""
    run.heading("A rate for each layer group")
    groups = layer_groups(base)
    sizes = {p.name: p.data.size for p in base.parameters()}
    rows = []
    rates = discriminative_rates(1.0, len(groups))
    for patterns, names, rate in zip(groups, members(groups, sizes), rates, strict=True):
        short = ", ".join(pattern.removeprefix("transformer.") for pattern in patterns)
        rows.append([short, f"{sum(sizes[name] for name in names):,}", f"{rate:.3f} η"])
    run.say(table(rows[::-1], ["top to bottom", "parameters", "rate"]))


def show_texts(run: Run, laboratory: Laboratory, before: Mapping[str, float]) -> None:
    """What there is to learn from, and how the base does on it as it is."""
    domain, plan = laboratory.domain, laboratory.plan
    run.heading(f"A text that {plan.base} has never seen")
    run.say(
        f"  {domain.name}: {len(domain.train):,} tokens to train on; {plan.steps[0]} steps of "
        f"{plan.batch_size} × {plan.block_size} tokens\n"
        f"  learning rate of the top group: from {', '.join(f'{lr:g}' for lr in plan.grid)}, by validation loss\n"
        "  to expect: a short training makes the base at home in the new text, where the same training from random\n"
        "  weights is far from it; it pays with some of what it knew, and the less, the slower its lower layers learn"
    )
    rows = [[name, f"{loss:.3f}", f"{math.exp(loss):.1f}"] for name, loss in before.items()]
    run.say("\n" + table(rows, [f"{plan.base} as it is", "loss (nats a token)", "perplexity"]))


def show_gain(run: Run, laboratory: Laboratory, results: Mapping[str, Result], before: Mapping[str, float]) -> None:
    """Before and after, on the new text and on the old ones."""
    run.heading(f"After {laboratory.plan.steps[0]} steps on {laboratory.domain.name}")
    rows = [["the base as it is", "", *(f"{loss:.3f}" for loss in before.values())]]
    for variant in (SCRATCH, PLAIN, ULMFIT):
        result = results[variant.name]
        rows.append([variant.name, f"{result.lr:g}", *(spread(result.of(text)) for text in before)])
    run.say(table(rows, ["test loss (nats a token)", "rate", *before]))


def show_curves(run: Run, laboratory: Laboratory, results: Mapping[str, Result]) -> dict[str, Outcome]:
    """The first seed's runs once more, scored on the way; gives them."""
    plan, seed = laboratory.plan, run.settings.seed
    labels = {"ULMFiT": ULMFIT, "constant": PLAIN, SCRATCH.name: SCRATCH}
    curves = {
        label: laboratory.run(variant, results[variant.name].lr, plan.steps[0], seed, plan.evaluations)
        for label, variant in labels.items()
    }
    run.results["curves"] = {label: outcome.curve for label, outcome in curves.items()}
    run.picture("curves", curve_picture(curves, SCRATCH.name))
    return curves


def show_ablation(run: Run, results: Mapping[int, Mapping[str, Result]], before: Mapping[str, float]) -> None:
    """Schedule × rates by depth, at equal steps."""
    target = next(iter(before))
    variants = {steps: {v.name: rows[v.name] for v in VARIANTS} for steps, rows in results.items()}
    for steps, rows in sorted(variants.items()):
        run.heading(f"Schedule and rates by depth, {steps} steps")
        cells = [
            [name, f"{result.lr:g}", spread(result.of(target)), spread(result.forgotten(before))]
            for name, result in rows.items()
        ]
        run.say(table(cells, ["", "rate", f"loss on {target}", "loss added on the old texts"]))
    run.picture("ablation", ablation_picture(next(iter(variants.values())), before))
    if len(variants) > 1:
        run.picture("budgets", budget_picture(variants, before))


def show_movies(run: Run, laboratory: Laboratory, results: Mapping[str, Result]) -> None:
    """The same on real text, at the learning rates that the made-up one has chosen."""
    data = movie_reviews()
    if data is None:
        run.say("\n  the movie reviews are not on this machine (`make data` fetches them): no real text here")
        return
    plan, tokenizer = laboratory.plan, bases.load(laboratory.plan.base)[1]
    elsewhere = replace(laboratory, domain=Domain.encode(data, tokenizer, plan))
    before = elsewhere.losses(laboratory.base)
    found = {}
    for variant in (SCRATCH, PLAIN, ULMFIT):
        lr = results[variant.name].lr
        seeds = range(run.settings.seed, run.settings.seed + plan.seeds)
        found[variant.name] = Result([elsewhere.run(variant, lr, plan.steps[0], seed) for seed in seeds], [])
    show_gain(run, elsewhere, found, before)
    run.report("movie_reviews_loss", found[ULMFIT.name].of(data.name), "nats a token")
    run.results["movie_reviews"] = {
        "data": elsewhere.domain.record,
        "before": before,
        "after": {name: result.as_record() for name, result in found.items()},
    }


def report(run: Run, results: Mapping[str, Result], before: Mapping[str, float]) -> None:
    """The figures, each with the band where it is expected."""
    target = next(iter(before))
    band = None if run.settings.standard else Band(0.0, before[target], 0, "better than the base as it is")
    tuned, plain, scratch = (results[variant.name] for variant in (ULMFIT, PLAIN, SCRATCH))
    run.report("base_loss", before[target], "nats a token", banded=False)
    run.report("ulmfit_loss", tuned.of(target), "nats a token", band)
    run.report("constant_loss", plain.of(target), "nats a token", band)
    run.report("scratch_loss", scratch.of(target), "nats a token")
    run.report("ulmfit_forgetting", tuned.forgotten(before), "nats a token")
    run.report("constant_forgetting", plain.forgotten(before), "nats a token")
    run.report("training_time", [o.seconds for o in tuned.outcomes], "s", digits=1, banded=False)


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-2``; gives the exit code."""
    return runner.main(2, __doc__, lesson, argv, takes=runner.TEXT)


if __name__ == "__main__":
    sys.exit(main())
