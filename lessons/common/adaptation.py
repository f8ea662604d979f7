"""Language-model fine-tuning as an experiment: a base trains on a new text, and is scored on it and on others.

The learning rate of every row is chosen from the same grid by validation loss, so that no row loses for want of tuning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from tqdm import tqdm

from lessons.common import plotting
from lessons.common.plotting import End
from minigpt import GPT, RunError, Tokenizer
from minigpt.corpora import as_text, encode_split, language_batches
from minigpt.data import DataSet, files, pydocs, tinyworld
from minigpt.errors import InputError
from minigpt.evaluation import evaluate_batches, text_batches
from minigpt.objectives import Batch, LanguageModelling
from minigpt.optim import ParameterGroup
from minigpt.training import State, TrainConfig, train

# ---------------------------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment.

    Attributes
    ----------
    base : str
    documents : int
        Stories, and reviews, of the target domain to train on.
    steps : tuple of int
        Budgets; the first is the one whose figures are reported.
    grid : tuple of float
        Learning rates to choose from.
    batch_size, block_size : int
    windows : int
        How many are scored of each text.
    seeds : int
    evaluations : int
        Points of a curve.
    workers : int
    """

    base: str
    documents: int
    steps: tuple[int, ...]
    grid: tuple[float, ...]
    batch_size: int
    block_size: int
    windows: int
    seeds: int = 1
    evaluations: int = 5
    workers: int = 0


@dataclass(frozen=True)
class Domain:
    """A text as tokens.

    Attributes
    ----------
    name : str
    train : (n,) integers
    validation, test : list of Batch
        Windows to be scored: the first to choose learning rates by, the second to report.
    record : dict
        What the text was.
    """

    name: str
    train: np.ndarray
    validation: list[Batch]
    test: list[Batch]
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def encode(cls, data: DataSet[str], tokenizer: Tokenizer, plan: Plan) -> Domain:
        """A text with the base's tokenizer."""
        train = encode_split(tokenizer, data, "train")
        validation, test = (scored_windows(data, split, tokenizer, plan) for split in ("validation", "test"))
        return cls(data.name, train, validation, test, data.record())


def scored_windows(data: DataSet[str], split: str, tokenizer: Tokenizer, plan: Plan) -> list[Batch]:
    """Disjoint windows spread over a split."""
    tokens = encode_split(tokenizer, data, split)
    return text_batches(tokens, plan.block_size, 32, plan.windows, f"{data.name}, {split}")


def target_text(documents: int) -> DataSet[str]:
    """tinyworld's second domain: logs of ships in space, and reviews of what is sold there, without their labels."""
    stories = tinyworld.stories(documents, domain="target", held_out=200)
    reviews = as_text(tinyworld.sentiment(documents, domain="target", held_out=200))
    return DataSet(
        name="tinyworld-target",
        train=stories.train + reviews.train,
        validation=stories.validation + reviews.validation,
        test=stories.test + reviews.test,
        provenance={"parts": [stories.record(), reviews.record()]},
    )


def general_texts(documents: int, quick: bool = False) -> list[DataSet[str]]:
    """What the bases were pre-trained on: the test splits show what is forgotten. A quick run has tinyworld only."""
    village = replace(tinyworld.corpus(1, held_out=min(documents, 200)), name="tinyworld")
    return [village] if quick else [village, pydocs.corpus()]


def movie_reviews() -> DataSet[str] | None:
    """Real sentences, if they are on this machine."""
    try:
        path = files.find("movie_reviews.csv")
    except InputError:
        return None
    return replace(as_text(files.load_labelled(path, 0.1, 0.1)), name="movie-reviews")


# ---------------------------------------------------------------------------------------------- runs


class Row(Protocol):
    """One way of training: a row of the table."""

    @property
    def name(self) -> str:
        """For tables."""

    @property
    def scratch(self) -> bool:
        """Whether it starts from random weights instead of the base."""

    def groups(self, model: GPT, steps: int, lr: float) -> list[ParameterGroup]:
        """Rates and schedules, for `minigpt.training.train`."""


@dataclass(frozen=True)
class Scored:
    """What a record keeps of a run.

    Attributes
    ----------
    lr : float
    validation : float
        Loss of the target's validation windows, in nats a token.
    losses : dict of str to float
        Loss of the test windows of every text.
    seconds : float
        Of training.
    """

    lr: float
    validation: float
    losses: dict[str, float]
    seconds: float

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Scored:
        """As `Result.as_record` wrote it; the seconds of rates that were only tried are not kept."""
        return cls(record["lr"], record["validation"], record["test"], record.get("seconds", math.nan))


@dataclass(frozen=True)
class Outcome(Scored):
    """What one run came to.

    Attributes
    ----------
    model : GPT
    curve : list of (step, losses)
        Losses on the way, from step 0 on, the target's first; empty if nobody asked.
    """

    model: GPT
    curve: list[tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class Result:
    """A row's runs.

    Attributes
    ----------
    outcomes : sequence of Scored
        One a seed, all at the chosen learning rate.
    tried : sequence of Scored
        The first seed's, one a learning rate at which training did not diverge.
    """

    outcomes: Sequence[Scored]
    tried: Sequence[Scored]

    @property
    def lr(self) -> float:
        """The chosen learning rate."""
        return self.outcomes[0].lr

    def of(self, text: str) -> list[float]:
        """Test loss on a text, one a seed."""
        return [outcome.losses[text] for outcome in self.outcomes]

    def forgotten(self, before: Mapping[str, float]) -> list[float]:
        """Loss added on the base's own texts, one a seed."""
        return [forgetting(outcome, before) for outcome in self.outcomes]

    def as_record(self) -> dict[str, Any]:
        """Ready for JSON."""
        runs = [{"lr": o.lr, "validation": o.validation, "test": o.losses, "seconds": o.seconds} for o in self.outcomes]
        tried = [{"lr": o.lr, "validation": o.validation, "test": o.losses} for o in self.tried]
        return {"runs": runs, "tried": tried}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Result:
        """As `as_record` wrote it."""
        return cls([Scored.from_record(r) for r in record["runs"]], [Scored.from_record(r) for r in record["tried"]])


def forgetting(outcome: Scored, before: Mapping[str, float]) -> float:
    """Loss added on the base's own texts, on average, in nats a token. `before` has the target first, as `losses`."""
    _, *general = before
    return math.fsum(outcome.losses[name] - before[name] for name in general) / len(general)


@dataclass(frozen=True)
class Laboratory:
    """What the runs of an experiment share.

    Attributes
    ----------
    base : GPT
    domain : Domain
        The text to fine-tune on.
    general : dict of str to list of Batch
        Windows of other texts to score.
    plan : Plan
    """

    base: GPT
    domain: Domain
    general: dict[str, list[Batch]]
    plan: Plan

    def losses(self, model: GPT) -> dict[str, float]:
        """Nats a token on the test windows of every text, the target's first."""
        texts = {self.domain.name: self.domain.test, **self.general}
        return {name: evaluate_batches(model, batches)[0] for name, batches in texts.items()}

    def run(self, row: Row, lr: float, steps: int, seed: int, points: int = 0) -> Outcome:
        """Train all parameters on the text.

        Parameters
        ----------
        row : Row
        lr : float
        steps : int
        seed : int
            Of the batches, and of random weights.
        points : int
            Score all texts so many times on the way.

        Raises
        ------
        RunError
            If training diverges.
        KeyboardInterrupt
            If Ctrl-C ended it.
        """
        plan, domain = self.plan, self.domain
        model = GPT(self.base.config, seed, backend=self.base.backend) if row.scratch else self.base.copy()
        model.unfreeze()
        curve = [(0, self.losses(model))] if points else []

        def look(state: State) -> None:
            if state.step % max(1, steps // points) == 0:
                curve.append((state.step, self.losses(model)))

        history = train(
            model,
            LanguageModelling(),
            language_batches(domain.train, plan.batch_size, plan.block_size, seed, domain.name),
            TrainConfig(steps, beta2=0.999, weight_decay=0.01, seed=seed, workers=plan.workers),
            groups=row.groups(model, steps, lr),
            callbacks=[look] if points else [],
            progress=False,
        )
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        validation = evaluate_batches(model, domain.validation)[0]
        return Outcome(lr, validation, self.losses(model), round(history.seconds, 2), model, curve)

    def result(self, row: Row, steps: int, first: int, bar: tqdm) -> Result:
        """The first seed chooses the learning rate, by validation loss; the others take it.

        Raises
        ------
        RunError
            If training diverges at every rate of the grid.
        """
        tried, faults = [], []
        for lr in self.plan.grid:
            try:
                tried.append(self.run(row, lr, steps, first))
            except RunError as error:
                faults.append(error)
            bar.update()
        if not tried:
            raise faults[-1]
        outcomes = [min(tried, key=lambda outcome: outcome.validation)]
        for seed in range(first + 1, first + self.plan.seeds):
            outcomes.append(self.run(row, outcomes[0].lr, steps, seed))
            bar.update()
        return Result(outcomes, tried)

    def compare(self, rows: Sequence[Row], first: int) -> dict[int, dict[str, Result]]:
        """Every row at every budget: steps → name → result."""
        plan = self.plan
        total = len(plan.steps) * len(rows) * (len(plan.grid) + plan.seeds - 1)
        results: dict[int, dict[str, Result]] = {steps: {} for steps in plan.steps}
        with tqdm(total=total, unit="run", desc=self.domain.name, dynamic_ncols=True) as bar:
            for steps in plan.steps:
                for row in rows:
                    bar.set_postfix_str(f"{steps} steps, {row.name}")
                    results[steps][row.name] = self.result(row, steps, first, bar)
        return results


# ---------------------------------------------------------------------------------------------- pictures


@plotting.style()
def rate_picture(maps: Mapping[str, np.ndarray], groups: Sequence[str]) -> Figure:
    """Which layer group learns when, and how fast; a panel a way.

    Parameters
    ----------
    maps : dict of str to (groups, steps)
        Name of a way → the learning rate of every group, from the bottom, at every step; 0 where it is frozen.
    groups : sequence of str
        Their names, from the bottom.
    """
    columns = min(2, len(maps))
    rows = -(-len(maps) // columns)
    height = 0.9 + rows * (0.75 + 0.26 * len(groups))
    figure, axes = plotting.new(rows, columns, height=height, squeeze=False, sharey=True)
    shares = {name: rates / rates.max() for name, rates in maps.items()}
    scale = LogNorm(min(1e-2, *(share[share > 0].min() for share in shares.values())), 1)
    for panel, (name, share) in zip(axes.flat, shares.items(), strict=False):
        panel.set_facecolor("#E8E8E8")
        n_groups, steps = share.shape
        image = panel.pcolormesh(
            np.arange(steps + 1) - 0.5, np.arange(n_groups + 1) - 0.5, np.ma.array(share, mask=share == 0),
            norm=scale, cmap=plotting.INTENSITY,
        )  # fmt: skip
        for group in range(n_groups):
            bounds = np.flatnonzero(np.diff(np.concatenate(([0], share[group] == 0, [0]))))
            start, stop = max(zip(bounds[::2], bounds[1::2], strict=True), key=lambda b: b[1] - b[0], default=(0, 0))
            if stop - start > 0.18 * steps:  # otherwise there is no room for the word
                middle = (start + stop - 1) / 2
                panel.text(middle, group, "frozen", color=plotting.GREY, ha="center", va="center", fontsize=9)
        panel.set_yticks(range(n_groups), groups)
        panel.tick_params(axis="y", length=0)
        panel.grid(False)
        panel.set_xlabel("step")
        panel.set_title(name)
    for panel in axes.flat[len(maps) :]:
        panel.set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="right", shrink=0.9, pad=0.02, format="{x:g}")
    bar.minorticks_off()
    bar.set_label("learning rate,\nshare of the highest")
    bar.outline.set_visible(False)
    return figure


@plotting.style()
def movement_picture(moved: Mapping[str, Mapping[str, float]]) -> Figure:
    """How far training has moved every part of the model, beside its size; a dot a way of training.

    Parameters
    ----------
    moved : dict of str to dict
        Name of a way → part of the model, from the bottom → ‖ΔW‖/‖W‖.
    """
    parts = list(next(iter(moved.values())))
    figure, axes = plotting.new(height=1.5 + 0.45 * len(parts))
    tops = []
    for (name, shares), colour in zip(moved.items(), plotting.PALETTE, strict=False):
        values = [100 * shares[part] for part in parts]
        axes.plot(values, range(len(parts)), color=colour, marker="o", markersize=7, linewidth=1.2)
        tops.append(End(values[-1], len(parts) - 0.65, name, colour))
    axes.set_yticks(range(len(parts)), parts)
    axes.set_ylim(-0.5, len(parts) + 0.2)
    axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
    axes.set_xlabel("moved by (% of the norm of the weights)")
    axes.set_title("How far each part went, from the bottom to the top")
    plotting.label_tops(axes, tops, gap=18)
    return figure


def movement(base: GPT, tuned: GPT) -> dict[str, float]:
    """‖ΔW‖/‖W‖ of the embeddings and of every block, from the bottom; as `movement_picture` takes it."""
    before, after = base.state(), tuned.state()
    parts: dict[str, tuple[str, ...]] = {"embeddings": ("transformer.wte.", "transformer.wpe.")}
    parts |= {f"block {i}": (f"transformer.h.{i}.",) for i in range(base.config.n_layer)}

    def norm(arrays: Iterable[np.ndarray]) -> float:
        return math.sqrt(math.fsum(float((a.astype(float) ** 2).sum()) for a in arrays))

    shares = {}
    for part, prefixes in parts.items():
        names = [name for name in before if name.startswith(prefixes)]
        shares[part] = norm(after[name] - before[name] for name in names) / norm(before[name] for name in names)
    return shares


@plotting.style()
def curve_picture(curves: Mapping[str, Outcome], scratch: str) -> Figure:
    """Loss over the steps on the new text and on the texts that the base comes from."""
    figure, (new, old) = plotting.new(1, 2, height=4.2)
    target, *general = next(iter(curves.values())).losses
    new_ends, old_ends = [], []
    for (name, outcome), colour in zip(curves.items(), plotting.PALETTE, strict=False):
        steps = [step for step, _ in outcome.curve]
        values = [losses[target] for _, losses in outcome.curve]
        new.plot(steps, values, color=colour)
        new_ends.append(End(steps[-1], values[-1], name, colour))
        for text, line in zip(general if name != scratch else (), ("solid", (0, (4, 2))), strict=False):
            values = [losses[text] for _, losses in outcome.curve]
            old.plot(steps, values, color=colour, linestyle=line)
            old_ends.append(End(steps[-1], values[-1], text, colour))
    for axes, ends, title in ((new, new_ends, f"New: {target}"), (old, old_ends, "Old: what the base comes from")):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel("test loss (nats a token)")
        axes.set_xlim(0, ends[0].x)
        axes.set_ylim(bottom=0)
        plotting.label_ends(axes, ends)
    return figure


@plotting.style()
def ablation_picture(results: Mapping[str, Result], before: Mapping[str, float]) -> Figure:
    """Where every row ends, a dot a seed; and what is paid for it at every learning rate, a line a row."""
    figure, (learnt, trade) = plotting.new(1, 2, height=4.6, gridspec_kw={"width_ratios": [1, 1.2]})
    target = next(iter(before))
    for row, (result, colour) in enumerate(zip(results.values(), plotting.PALETTE, strict=False)):
        dots(learnt, row, result.of(target), colour)
        points = sorted((o.lr, o.losses[target], forgetting(o, before)) for o in result.tried)
        trade.plot([p[1] for p in points], [p[2] for p in points], color=colour, marker="o", markersize=5, linewidth=1)
    learnt.set_yticks(range(len(results)), [name.replace(", ", "\n", 1) for name in results], fontsize=9)
    for label, colour in zip(learnt.get_yticklabels(), plotting.PALETTE, strict=False):
        label.set_color(colour)
    learnt.invert_yaxis()
    learnt.grid(axis="y", visible=False)
    learnt.set_xlabel(f"test loss on {target}\n(nats a token), a dot a seed")
    learnt.set_title("What is learnt")
    trade.set_xlabel(f"test loss on {target}\n(nats a token), a dot a learning rate")
    trade.set_ylabel("loss added on the base's own texts")
    trade.set_title("What is paid for it")
    return figure


def dots(axes: Axes, row: int, values: Sequence[float], colour: str) -> None:
    """A dot a seed, and a stroke for their mean."""
    axes.scatter(values, [row] * len(values), color=colour, s=36, alpha=0.75, linewidth=0, zorder=3)
    axes.scatter([math.fsum(values) / len(values)], [row], color=colour, marker="|", s=300, linewidth=2)


@plotting.style()
def budget_picture(results: Mapping[int, Mapping[str, Result]], before: Mapping[str, float]) -> Figure:
    """Loss on the new text against the number of steps; bands from the lowest seed to the highest."""
    figure, axes = plotting.new(height=4.4)
    budgets, ends, target = sorted(results), [], next(iter(before))
    for name, colour in zip(results[budgets[0]], plotting.PALETTE, strict=False):
        values = np.array([results[steps][name].of(target) for steps in budgets])
        axes.plot(budgets, values.mean(1), color=colour, marker="o", markersize=4)
        axes.fill_between(budgets, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
        ends.append(End(budgets[-1], values[-1].mean(), name, colour))
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(steps) for steps in budgets])
    axes.set_yscale("log")  # late in training the lines lie close together
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set_xlabel("steps of training")
    axes.set_ylabel("test loss (nats a token)")
    axes.set_title(f"{target}, {before[target]:.2f} before")
    plotting.label_ends(axes, ends, gap=13)
    return figure
