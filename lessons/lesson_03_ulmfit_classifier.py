"""Lesson 3: a classifier on a pre-trained model, thawed layer by layer, and how many labels pre-training saves.

1. Concat pooling, [last, maximum, mean] of the hidden states without the padding, and its backward; the head.
2. What training the head alone saves: no backward through the trunk, counted.
3. Which layers to train when: the head only, the last layer, gradual unfreezing, dulled unfreezing, chain-thaw, all at
   once; each with and without lesson 2's rates and schedule.
4. Accuracy against the number of labels: from the base, from the base after lesson 2, from scratch.

This is the last of ULMFiT's three steps (Howard, Ruder 2018, arXiv:1801.06146, section 3.3).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kernels import Backend
from kernels.array import Array
from lessons.common import derivation, gradcheck, runner
from lessons.common.adaptation import Domain, Laboratory, Plan
from lessons.common.classification import (
    Budget,
    Outcome,
    commonest,
    curve_picture,
    labels_needed,
    measure_curves,
    measure_rows,
    table_picture,
)
from lessons.common.classifier import Classification, Classifier, Head, concat_pool_backward, concat_pool_forward
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.measure import step_cost
from lessons.common.method import Method, Tuned, assign, register
from lessons.common.runner import Run
from lessons.common.table import spread, table
from lessons.common.tasks import LabelTask, load_task, own_task, require_labels
from lessons.lesson_02_ulmfit_target import SCHEDULES, Variant, layer_groups, rate_groups, rate_map
from minigpt import GPT, GPTConfig, Tokenizer, bases
from minigpt.corpora import as_text
from minigpt.errors import InputError
from minigpt.objectives import Batch, Objective
from minigpt.training import History, TrainConfig, train

# ---------------------------------------------------------------------------------------------- the technique


def gradual_unfreezing(phase: int, n_groups: int) -> list[int]:
    """Which layer groups train in a phase: the top one first, then one more below it in every phase.

    Howard, Ruder (2018), section 3.3: the head learns first, so that its random weights spoil nothing below; each
    further group starts to move when those above have settled.

    Parameters
    ----------
    phase : int
        From 0 to n_groups − 1.
    n_groups : int
        Groups are numbered from 0 at the bottom to n_groups − 1, the head.

    Returns
    -------
    groups : list of int
        Ascending.
    """
    ### BEGIN SOLUTION
    return list(range(n_groups - 1 - phase, n_groups))
    ### END SOLUTION


def chain_thaw(phase: int, n_groups: int) -> list[int]:
    """Which layer groups train in a phase: one at a time, and all of them in the end.

    Felbo et al. (2017), arXiv:1708.00524, section 3.3: first the new layers (here: the head, the top group), then each
    of the others alone from the bottom to the top, at last all together.

    Parameters
    ----------
    phase : int
        From 0 to n_groups.
    n_groups : int
        Groups are numbered from 0 at the bottom to n_groups − 1, the head.

    Returns
    -------
    groups : list of int
        Ascending.
    """
    ### BEGIN SOLUTION
    if phase == n_groups:
        return list(range(n_groups))
    return [n_groups - 1 if phase == 0 else phase - 1]
    ### END SOLUTION


def dulled_scales(phase: int, n_groups: int, scalar: float) -> list[float]:
    """What every group's learning rate is multiplied by in a phase: unfreezing that is gradual in amount as well.

    Gradual unfreezing thaws group g in phase n_groups − 1 − g. Here nothing is frozen: a group's updates are dulled by
    `scalar` once for every phase that it would still have to wait,

        scale_g = scalar ^ max(0, n_groups − 1 − g − phase)

    In the first phase that is scalar to the power of the depth below the head. A scalar of 1 trains everything at once;
    a scalar of 0 is gradual unfreezing (0⁰ = 1).

    Parameters
    ----------
    phase : int
        From 0 to n_groups − 1.
    n_groups : int
    scalar : float
        In [0, 1].

    Returns
    -------
    scales : list of n_groups floats
        From the bottom group to the head.
    """
    ### BEGIN SOLUTION
    return [scalar ** max(0, n_groups - 1 - group - phase) for group in range(n_groups)]
    ### END SOLUTION


UNFREEZING = ("gradual", "dulled", "chain-thaw", "last layer", "head only", "all at once")


def phase_scales(unfreezing: str, n_groups: int, scalar: float) -> list[list[float]]:
    """A factor on every group's learning rate, phase by phase; a group with 0 is frozen.

    Parameters
    ----------
    unfreezing : str
        One of `UNFREEZING`.
    n_groups : int
        The head included.
    scalar : float
        For ``"dulled"``.
    """

    def only(groups: Sequence[int]) -> list[float]:
        return [float(group in groups) for group in range(n_groups)]

    if unfreezing == "gradual":
        return [only(gradual_unfreezing(phase, n_groups)) for phase in range(n_groups)]
    if unfreezing == "chain-thaw":
        return [only(chain_thaw(phase, n_groups)) for phase in range(n_groups + 1)]
    if unfreezing == "dulled":
        return [dulled_scales(phase, n_groups, scalar) for phase in range(n_groups)]
    topmost = {"head only": 1, "last layer": 2, "all at once": n_groups}[unfreezing]
    return [only(range(n_groups - topmost, n_groups))]


def phase_steps(steps: int, n_phases: int, thawing: float) -> list[int]:
    """Steps of every phase: a share `thawing` of all of them for the phases before the last, in equal parts."""
    bounds = [int(steps * thawing * i / max(1, n_phases - 1)) for i in range(n_phases)]
    return [b - a for a, b in pairwise([*bounds, steps])]


def thaw(tuned: Tuned, scales: Sequence[float]) -> None:
    """Free the layer groups whose scale is not 0, and freeze the others."""
    tuned.freeze()
    for patterns, scale in zip(layer_groups(tuned), scales, strict=True):
        if scale:
            tuned.unfreeze(patterns)


@register("ulmfit")
@dataclass(frozen=True, kw_only=True)
class Ulmfit(Method):
    """ULMFiT: discriminative rates, a slanted triangular schedule, and for a classifier gradual unfreezing.

    Without `n_labels` it is the language model's step (lesson 2): all parameters at once, since there is no new layer
    to protect the others from; `unfreezing` has no effect then.

    The paper's head has batch normalisation in it; here it has none, so that a row's scores depend on that row alone.

    Parameters
    ----------
    factor : float
        How many times slower each layer group learns than the one above it; 1 for one rate.
    schedule : str
        Of every phase: ``"slanted triangular"``, ``"one-cycle"`` or ``"constant"``.
    unfreezing : str
        One of `UNFREEZING`.
    scalar : float
        Of ``"dulled"`` unfreezing; see `dulled_scales`.
    thawing : float
        Share of the steps before all groups train; it is cut into equal phases.
    hidden : int
        Units of the head's hidden layer; 0 for none.
    """

    factor: float = 2.6
    schedule: str = "slanted triangular"
    unfreezing: str = "gradual"
    scalar: float = 0.3
    thawing: float = 0.3
    hidden: int = 50

    learning_rate: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("schedule", tuple(SCHEDULES)), ("unfreezing", UNFREEZING)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if not self.factor >= 1:
            raise InputError(f"factor is {self.factor}; it must be 1 or more")
        for name in ("scalar", "thawing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be in [0, 1]")
        if self.hidden < 0:
            raise InputError(f"hidden is {self.hidden}; it must be 0 or more")

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """All parameters are free; `fit` freezes some of them for a while."""
        trunk.unfreeze()

    def with_head(self, trunk: GPT, seed: int) -> Classifier:
        """The model under a fresh head with a hidden layer."""
        assert self.n_labels is not None
        return Classifier(trunk, self.n_labels, seed, self.hidden)

    def fit(
        self,
        tuned: Tuned,
        objective: Objective,
        batches: Callable[[int], Batch],
        config: TrainConfig,
        validation: Sequence[Batch] = (),
        **options: Any,
    ) -> History:
        """Train in phases, each with a schedule of its own; arguments as for `minigpt.training.train`.

        With `keep_best`, the model ends with the weights of the best evaluation of all phases. Logs and checkpoints of
        a phase are in a directory of its own, ``phase-1`` and so on, and a run can be resumed.

        Returns
        -------
        history : History
            All phases as one run.
        """
        groups = layer_groups(tuned)
        kind = self.unfreezing if self.n_labels is not None else "all at once"
        plan = phase_scales(kind, len(groups), self.scalar)
        lengths = phase_steps(config.steps, len(plan), self.thawing)
        whole, best, parameters = History(), {}, list(tuned.parameters())
        try:
            for number, (scales, steps) in enumerate(zip(plan, lengths, strict=True), start=1):
                if not steps:
                    continue
                thaw(tuned, scales)
                start = len(whole.steps)
                part = train(
                    tuned,
                    objective,
                    lambda step, start=start: batches(start + step),  # type: ignore[misc]
                    replace(config, steps=steps),
                    validation,
                    rate_groups(groups, steps, config.lr, self.schedule, self.factor, scales),
                    **_of_phase(options, number, len(plan)),
                )
                better = part.best_loss is not None and (whole.best_loss is None or part.best_loss < whole.best_loss)
                _append(whole, part)
                if config.keep_best and better:
                    best = {p.name: p.data for p in parameters}  # the next phase trains in memory of its own
                if part.stopped not in ("done", "early stop"):
                    return whole
            for p in parameters:
                p.data = best.get(p.name, p.data)
            return whole
        finally:
            tuned.unfreeze()

    def state(self, tuned: Tuned) -> dict[str, np.ndarray]:
        """All parameters: every phase trains others, and what an earlier one has changed is to be kept."""
        return {p.name: tuned.backend.to_numpy(p.data) for p in tuned.parameters()}

    def restore(self, model: GPT, tensors: dict[str, np.ndarray], directory: str | Path) -> Any:
        """The tuned model with these tensors as its parameters."""
        tuned = self.apply(model)
        assign(tuned.parameters(), tensors, tuned, directory)
        return tuned


def _of_phase(options: Mapping[str, Any], number: int, n_phases: int) -> dict[str, Any]:
    # Options of `train` for one phase of several.
    changed = dict(options)
    if changed.get("directory") is not None:
        changed["directory"] = Path(changed["directory"]) / f"phase-{number}"
    if isinstance(changed.get("progress"), str) and n_phases > 1:
        changed["progress"] += f", phase {number}/{n_phases}"
    return changed


def _append(whole: History, part: History) -> None:
    start = len(whole.steps)
    whole.steps += [start + step for step in part.steps]
    whole.eval_steps += [start + step for step in part.eval_steps]
    for name in ("losses", "rates", "norms", "eval_losses"):
        getattr(whole, name).extend(getattr(part, name))
    if part.best_loss is not None and (whole.best_loss is None or part.best_loss < whole.best_loss):
        assert part.best_step is not None
        whole.best_loss, whole.best_step = part.best_loss, start + part.best_step
    whole.stopped = part.stopped
    whole.seconds += part.seconds


@register("last_layer")
@dataclass(frozen=True, kw_only=True)
class LastLayer(Method):
    """Only the last block and the final LayerNorm are trained (and the classifier's head, if there is one)."""

    learning_rate: ClassVar[float] = 2e-3

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """Free the last block and the final LayerNorm."""
        trunk.unfreeze([f"transformer.h.{trunk.config.n_layer - 1}.*", "transformer.ln_f.*"])


# ---------------------------------------------------------------------------------------------- the mathematics


def probe_pooling(backend: Backend) -> gradcheck.Function:
    """Rows of five, two and one real tokens."""
    lengths = backend.asarray(np.array([5, 2, 1]))

    def forward(hidden: Array) -> Any:
        pooled, cache = concat_pool_forward(hidden, lengths)
        return pooled, lambda dpooled: {"hidden": concat_pool_backward(dpooled, cache)}

    return forward


def check_classifier(backend: Backend) -> list[Check]:
    """A tiny classifier with a hidden layer, every parameter moved, rows padded and one label not scored."""
    config = GPTConfig(vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=2)
    model = Classifier(GPT(config, dtype="float64", backend=backend), 3, hidden=5)
    rng = np.random.default_rng(4)
    for p in model.parameters():
        p.data = backend.asarray(0.4 * rng.standard_normal(tuple(p.data.shape)))
    labels, lengths = np.array([2, -100, 0]), np.array([5, 3, 2])
    batch = {"ids": rng.integers(0, 7, (3, 5)), "labels": labels, "lengths": lengths}
    try:
        _, grads = model.loss_and_grads(**batch)
    except NotImplementedError:
        return [Check(p.name.removeprefix("transformer."), tuple(p.data.shape), None) for p in model.parameters()]

    def loss() -> float:
        return Classification().forward(model, batch, 2.0, model.context())[0]

    return gradcheck.check_parameters(model.parameters(), loss, grads, backend)


def check_phases(backend: Backend) -> list[Check]:
    """Three groups, phase by phase: which of them train, and how dulled."""

    def thawed(groups_of: Callable[[int, int], list[int]], phases: int) -> list[list[float]]:
        return [[float(group in groups_of(phase, 3)) for group in range(3)] for phase in range(phases)]

    gradual = [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
    chain = [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 1, 1]]
    return [
        gradcheck.agree("gradual", gradual, lambda: thawed(gradual_unfreezing, 3)),
        gradcheck.agree("chain-thaw", chain, lambda: thawed(chain_thaw, 4)),
        gradcheck.agree("dulled by ½", [[0.25, 0.5, 1], [0.5, 1, 1], [1, 1, 1]], lambda: _dulled(0.5)),
        gradcheck.agree("dulled by 0", gradual, lambda: _dulled(0.0)),
    ]


def _dulled(scalar: float) -> list[list[float]]:
    return [dulled_scales(phase, 3, scalar) for phase in range(3)]


DERIVATIONS = (
    Derivation(
        "Concat pooling",
        """
        h = [H_last,  max_t H_t,  (1/n) Σ_t H_t]       H (B, T, C), h (B, 3C); t over the n real tokens of a row

        A classifier needs one vector a text. The decisive word may stand anywhere, so the last state alone is not
        enough. Padding is in none of the three: its states are noise, and the mean divides by n, not by T.
          last   hands its gradient to the last real token
          max    hands each column's to the token that holds the maximum: the others do not move it
          mean   hands 1/n of it to every real token
        Where they meet (the last token may hold a maximum), they add up.
        """,
        (concat_pool_forward, concat_pool_backward),
        gradients(probe_pooling, {"hidden": (3, 5, 4)}),
    ),
    Derivation(
        "The head, and the whole classifier",
        """
        scores = relu(h W₁ + b₁) W₂ + b₂,   L = cross-entropy of the labels

        Two linear layers (lesson 1), between them relu, whose gradient is 1 where its input was above 0, else 0. The
        trunk is the language model's without its output head. Every parameter moved:
        """,
        (Head.forward, Classifier.forward),
        check_classifier,
    ),
    Derivation(
        "Which layers train when",
        """
        A head that starts from random weights sends random gradients down. Three ways to protect what is below, here
        for three groups (bottom, middle, head), a row a phase, 1 for training and 0 for frozen:
        """,
        (gradual_unfreezing, chain_thaw, dulled_scales),
        check_phases,
    ),
)

# ---------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Way:
    """One way to get a classifier: a row of the table.

    Attributes
    ----------
    unfreezing, factor, schedule
        As for `Ulmfit`.
    scratch : bool
        From random weights instead of the base.
    """

    unfreezing: str
    factor: float = 1.0
    schedule: str = "constant"
    scratch: bool = False

    @property
    def name(self) -> str:
        """As in the paper's table: what is added to the plain choice."""
        schedule = {"slanted triangular": " + stlr", "one-cycle": " + one-cycle", "constant": ""}[self.schedule]
        discr = " + discr" if self.factor != 1 else ""
        return f"{'from scratch' if self.scratch else self.unfreezing}{discr}{schedule}"

    def method(self, n_labels: int) -> Ulmfit:
        """The method with these settings."""
        return Ulmfit(n_labels=n_labels, factor=self.factor, schedule=self.schedule, unfreezing=self.unfreezing)


STLR = "slanted triangular"
SCRATCH = Way("all at once", 1.0, STLR, scratch=True)
HEAD = Way("head only", 1.0, STLR)
LAST = Way("last layer", 1.0, STLR)
AT_ONCE = Way("all at once")
AT_ONCE_TUNED = Way("all at once", 2.6, STLR)
CHAIN = Way("chain-thaw")
ULMFIT = Way("gradual", 2.6, STLR)
DULLED = Way("dulled", 2.6, STLR)
CORE_WAYS = (SCRATCH, HEAD, LAST, AT_ONCE, AT_ONCE_TUNED, CHAIN, ULMFIT, DULLED)
FULL_WAYS = (
    *(SCRATCH, HEAD, LAST, AT_ONCE),
    *(Way("all at once", 2.6), Way("all at once", 1.0, STLR), AT_ONCE_TUNED),
    *(CHAIN, Way("gradual"), Way("gradual", 2.6), Way("gradual", 1.0, STLR), Way("gradual", 1.0, "one-cycle"), ULMFIT),
    *(Way("dulled"), DULLED),
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiment.

    Attributes
    ----------
    tasks : tuple of str
        The first one gets the longest table; in a core run, only that one has curves.
    records : int
        Training records to draw from, and the text of the language model's fine-tuning.
    labels : int
        Labels of the table.
    low_shot : tuple of int
        Numbers of labels of the curves.
    budget : Budget
    language : Plan
        Of the language model's fine-tuning; it names the base.
    """

    tasks: tuple[str, ...]
    records: int
    labels: int
    low_shot: tuple[int, ...]
    budget: Budget
    language: Plan


CORE = Sizes(
    tasks=("sentiment-target", "pydocs-topics"),
    records=4000,
    labels=2000,
    low_shot=(250, 700, 2000),
    budget=Budget(steps=240, batch_size=16, grid=(3e-3,)),
    language=Plan("base-s", 0, (80,), (3e-3,), batch_size=8, block_size=128, windows=32),
)
FULL = replace(
    CORE,
    tasks=(*CORE.tasks, "movie-reviews"),
    budget=replace(CORE.budget, grid=(1e-3, 3e-3), seeds=3),
)
QUICK = Sizes(
    tasks=("sentiment-target",),
    records=40,
    labels=12,
    low_shot=(8, 16),
    budget=Budget(steps=8, batch_size=4, grid=(3e-3, 1e-3), test=20, workers=1),
    language=Plan("base-xs", 0, (2,), (1e-2,), batch_size=2, block_size=32, windows=4, workers=1),
)
STARTS = FROM_SCRATCH, FROM_BASE, FROM_ADAPTED = "from scratch", "from the base", "from the base, after the texts"


# ---------------------------------------------------------------------------------------------- the lesson


def lesson(run: Run) -> None:
    """Everything that `make lesson-3` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    settings = run.settings
    sizes = settings.choose(QUICK, CORE, FULL)
    base, tokenizer = bases.load(sizes.language.base, backend=run.backend)
    tables: dict[str, dict[str, Outcome]] = {}
    curves: dict[str, dict[str, dict[int, Outcome]]] = {}
    chance: dict[str, float] = {}
    for number, (name, task) in enumerate(find_tasks(run, tokenizer, sizes).items()):
        chance[name] = commonest(task)
        run.heading(f"{name}: {len(task.data.train):,} texts, {task.n_labels} labels")
        if number == 0:
            show_cost(run, task, base)
        ways = ways_for(number == 0, settings.full)
        n = min(sizes.labels, len(task.data.train))
        tables[name] = measure_rows(ways, base, task, n, sizes.budget, settings.seed, name)
        show_table(run, tables[name], n, sizes.budget)
        if number == 0 or settings.full:
            curves[name] = try_starts(run, name, task, base, tokenizer, sizes, tables[name])
    run.picture("table", table_picture(tables, ULMFIT.name))
    run.picture("labels", curve_picture(curves, chance))
    report(run, tables, chance)
    run.results |= {
        "sizes": asdict(sizes),
        "chance": chance,
        "tables": {name: {way: asdict(o) for way, o in found.items()} for name, found in tables.items()},
        "labels": {
            name: {start: {str(n): asdict(o) for n, o in by_n.items()} for start, by_n in starts.items()}
            for name, starts in curves.items()
        },
    }


def try_starts(
    run: Run,
    name: str,
    task: LabelTask,
    base: GPT,
    tokenizer: Tokenizer,
    sizes: Sizes,
    found: Mapping[str, Outcome],
) -> dict[str, dict[int, Outcome]]:
    """Accuracy by number of labels from the base, from the base after lesson 2, and from scratch.

    Parameters
    ----------
    found : dict of str to Outcome
        The task's table: its learning rates are taken, and its outcomes are not measured again.
    """
    n = min(sizes.labels, len(task.data.train))
    adapted = adapt(run, task, base, tokenizer, sizes.language)
    starts = {
        FROM_SCRATCH: (SCRATCH, base),
        FROM_BASE: (AT_ONCE_TUNED, base),
        FROM_ADAPTED: (AT_ONCE_TUNED, adapted),
    }
    rated = {start: (way, model, found[way.name].lr) for start, (way, model) in starts.items()}
    known = {(start, n): found[starts[start][0].name] for start in (FROM_SCRATCH, FROM_BASE)}
    curves = measure_curves(rated, task, sizes.low_shot, sizes.budget, run.settings.seed, name, known)
    show_curves(run, curves)
    return curves


def recorded(
    results: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Outcome]], dict[str, dict[str, dict[int, Outcome]]]]:
    """A record's `results` as the pictures take them.

    Returns
    -------
    tables : task → way → outcome
        In the order of the lesson.
    curves : task → start → number of labels → outcome
    """
    tables, curves = {}, {}
    for number, task in enumerate(name for name in results["sizes"]["tasks"] if name in results["tables"]):
        found, starts = results["tables"][task], results["labels"][task]
        tables[task] = {way.name: Outcome(**found[way.name]) for way in ways_for(number == 0, full=True)}
        curves[task] = {
            start: {n: Outcome(**starts[start][str(n)]) for n in sorted(map(int, starts[start]))} for start in STARTS
        }
    return tables, curves


def phase_rates(way: Way, n_groups: int, steps: int) -> np.ndarray:
    """What a way makes of a learning rate of 1: every layer group's at every step.

    Parameters
    ----------
    way : Way
    n_groups : int
        The head included.
    steps : int

    Returns
    -------
    rates : (n_groups, steps)
        0 where a group is frozen.
    """
    method = way.method(2)
    phases = phase_scales(method.unfreezing, n_groups, method.scalar)
    lengths = phase_steps(steps, len(phases), method.thawing)
    return np.concatenate(
        [
            np.array(scales)[:, None] * rate_map(n_groups, length, 1.0, method.schedule, method.factor)
            for scales, length in zip(phases, lengths, strict=True)
            if length
        ],
        axis=1,
    )


def ways_for(first: bool, full: bool) -> tuple[Way, ...]:
    """The rows of a task's table: all of them for the first task."""
    if first:
        return FULL_WAYS if full else CORE_WAYS
    return CORE_WAYS if full else (SCRATCH, HEAD, AT_ONCE_TUNED)


def find_tasks(run: Run, tokenizer: Tokenizer, sizes: Sizes) -> dict[str, LabelTask]:
    """The user's own task, or the lesson's by name; one that is not on this machine is left out, with a word."""
    own = run.settings.data
    if own is not None:
        task = require_labels(own_task(own, tokenizer))
        run.say(f"\n  {task.describe()}")
        return {Path(own).name: shortened(task, sizes.budget.test)}
    found = {}
    for name in sizes.tasks:
        try:
            found[name] = shortened(require_labels(load_task(name, tokenizer, sizes.records)), sizes.budget.test)
        except InputError as error:
            if name != "movie-reviews":
                raise
            run.say(f"\n  without {name}: {error}")
    return found


def shortened(task: LabelTask, n: int) -> LabelTask:
    """The task with no more held-out texts than are scored."""
    return replace(task, data=replace(task.data, validation=task.data.validation[:n], test=task.data.test[:n]))


def adapt(run: Run, task: LabelTask, base: GPT, tokenizer: Tokenizer, plan: Plan) -> GPT:
    """Lesson 2 in short: the base learns the task's texts, without their labels."""
    laboratory = Laboratory(base, Domain.encode(as_text(task.data), tokenizer, plan), {}, plan)
    before = laboratory.losses(base)[task.name]
    outcome = laboratory.run(Variant(), plan.grid[0], plan.steps[0], run.settings.seed)
    run.say(
        f"\n  lesson 2 on the texts, without their labels: {plan.steps[0]} steps, "
        f"test loss {before:.2f} → {outcome.losses[task.name]:.2f} nats a token"
    )
    return outcome.model


def show_cost(run: Run, task: LabelTask, base: GPT) -> None:
    """What one step costs, depending on what is frozen."""
    run.say("\n  one training step of 16 texts")
    batch = task.batches(16)(0)
    rows, record = [], {}
    for unfreezing in ("head only", "last layer", "all at once"):
        tuned = Ulmfit(n_labels=task.n_labels).apply(base)
        thaw(tuned, phase_scales(unfreezing, len(layer_groups(tuned)), 1.0)[0])
        cost = step_cost(tuned, task.objective, batch)
        record[unfreezing] = cost.as_record()
        forward, backward = (f"{sum(part.values()) / 1e6:,.1f}" for part in (cost.forward, cost.backward))
        kept, time = f"{cost.activations / 1e3:,.0f}", f"{1e3 * cost.seconds:.1f}"
        rows.append([unfreezing, f"{cost.trainable:,}", forward, backward, kept, time])
    headers = ["trained", "parameters", "forward (MFLOP)", "backward (MFLOP)", "kept for it (kB)", "ms"]
    run.say(table(rows, headers, indent=4))
    run.say(
        "  With a frozen trunk nothing goes back through it, and nothing is kept for that; with the last block\n"
        "  free, the way back ends there. Flops are those of matrix products."
    )
    run.results["step_cost"] = record


def show_table(run: Run, found: Mapping[str, Outcome], n: int, budget: Budget) -> None:
    """The paper's table: test accuracy of every way."""
    rates = ", ".join(f"{lr:g}" for lr in budget.grid)
    chosen = f"from {rates}, by validation loss" if len(budget.grid) > 1 else rates
    run.say(
        f"\n  {n} labels, {budget.steps} steps of {budget.batch_size} texts; learning rate of the head: {chosen}\n"
        "  to expect: from the base well above from scratch; the head alone is not enough where the order of words\n"
        "  decides; and in so few steps, thawing slowly may cost more than it protects"
    )
    rows = [[name, f"{o.lr:g}", spread(o.accuracies), f"{o.seconds:.1f}"] for name, o in found.items()]
    run.say(table(rows, ["", "rate", "test accuracy", "seconds"], indent=4))


def show_curves(run: Run, starts: Mapping[str, Mapping[int, Outcome]]) -> None:
    """Accuracy by number of labels, and how many of them pre-training saves."""
    counts = list(starts[FROM_SCRATCH])
    rows = [[name, *(spread(outcome.accuracies) for outcome in by_n.values())] for name, by_n in starts.items()]
    run.say(f"\n  the same steps with fewer labels; from a base: {AT_ONCE_TUNED.name}")
    run.say(table(rows, ["test accuracy by number of labels", *map(str, counts)], indent=4))
    scratch = {n: outcome.mean for n, outcome in starts[FROM_SCRATCH].items()}
    run.say()
    for n in counts:
        reached = starts[FROM_BASE][n].mean
        needed = labels_needed(scratch, reached)
        many = f"more than {counts[-1]}" if needed is None else f"{needed:.0f}"
        run.say(f"    what {n} labels give from the base, {reached:.3f}, takes {many} from scratch")


def report(run: Run, tables: Mapping[str, Mapping[str, Outcome]], chance: Mapping[str, float]) -> None:
    """The figures, each with the band where it is expected."""
    for name, found in tables.items():
        shown = ((SCRATCH, "scratch"), (HEAD, "head_only"), (AT_ONCE_TUNED, "all_at_once"), (ULMFIT, "gradual"))
        for way, short in shown:
            if way.name in found:
                run.report(f"{name}_{short}", found[way.name].accuracies, "accuracy")
        run.report(f"{name}_one_label_for_all", chance[name], "accuracy", banded=False)


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-3``; gives the exit code."""
    return runner.main(3, __doc__, lesson, argv, takes=runner.LABELLED)


if __name__ == "__main__":
    sys.exit(main())
