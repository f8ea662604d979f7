"""Classifiers from few labels as an experiment: ways to train them, starts to train them from, numbers of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from lessons.common import plotting
from lessons.common.classifier import Classifier
from lessons.common.method import Method
from lessons.common.plotting import End
from lessons.common.tasks import LabelTask
from minigpt import GPT, RunError
from minigpt.errors import InputError
from minigpt.training import TrainConfig


class Row(Protocol):
    """One way to get a classifier: a row of a table."""

    @property
    def name(self) -> str:
        """For tables."""

    @property
    def scratch(self) -> bool:
        """Whether it starts from random weights."""

    def method(self, n_labels: int) -> Method:
        """How it is trained."""


@dataclass(frozen=True)
class Budget:
    """What every run may spend.

    Attributes
    ----------
    steps, batch_size : int
    grid : tuple of float
        Learning rates to choose from.
    seeds : int
    test : int
        Texts to test on, and half as many to choose learning rates by.
    workers : int
    """

    steps: int
    batch_size: int
    grid: tuple[float, ...]
    seeds: int = 1
    test: int = 500
    workers: int = 0

    @property
    def runs(self) -> int:
        """Trainings for one outcome."""
        return len(self.grid) + self.seeds - 1


@dataclass(frozen=True)
class Outcome:
    """What one way came to.

    Attributes
    ----------
    lr : float
        Chosen by the validation loss of the first seed.
    accuracies : list of float
        On the test split, one a seed.
    seconds : float
        Of training, on average.
    """

    lr: float
    accuracies: list[float]
    seconds: float

    @property
    def mean(self) -> float:
        """Accuracy over the seeds."""
        return math.fsum(self.accuracies) / len(self.accuracies)


def draw(task: LabelTask, n: int, seed: int) -> LabelTask:
    """The task with n random training texts, as many of each label as there are, up to one.

    Raises
    ------
    ValueError
        If there are fewer than n, or n is less than the number of labels.
    """
    train = task.data.train
    if not task.n_labels <= n <= len(train):
        raise InputError(f"{task.name}: {n} labels were asked for; it must be {task.n_labels} to {len(train)}")
    order = np.random.default_rng([seed, n]).permutation(len(train))
    met = dict.fromkeys(range(task.n_labels), 0)
    ranks = []  # of each text among those with its label
    for i in order:
        ranks.append(met[train[i].label])
        met[train[i].label] += 1
    chosen = order[np.argsort(ranks, kind="stable")[:n]]
    return replace(task, data=replace(task.data, train=[train[i] for i in chosen]))


def train_classifier(
    row: Row, start: GPT, task: LabelTask, n: int, budget: Budget, lr: float, seed: int
) -> tuple[Classifier, float]:
    """A classifier from n labels, and the seconds that its training took.

    Raises
    ------
    RunError
        If training diverges.
    KeyboardInterrupt
        If Ctrl-C ended it.
    """
    method = row.method(task.n_labels)
    tuned = method.apply(GPT(start.config, seed, backend=start.backend) if row.scratch else start, seed)
    config = TrainConfig(budget.steps, lr=lr, beta2=0.999, weight_decay=0.01, seed=seed, workers=budget.workers)
    batches = draw(task, n, seed).batches(budget.batch_size, seed)
    history = method.fit(tuned, task.objective, batches, config, progress=False)
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return tuned, history.seconds


def measure(row: Row, start: GPT, task: LabelTask, n: int, budget: Budget, first: int, bar: tqdm) -> Outcome:
    """Train with every seed: the first one chooses the learning rate, by validation loss, and the others take it.

    Raises
    ------
    RunError
        If training diverges at every rate of the grid.
    """
    tried, faults = [], []
    for lr in budget.grid:
        try:
            model, seconds = train_classifier(row, start, task, n, budget, lr, first)
            loss = task.score(model, "validation", budget.test // 2)["loss"] if len(budget.grid) > 1 else 0.0
            tried.append((loss, lr, task.score(model, "test", budget.test)["accuracy"], seconds))
        except RunError as error:
            faults.append(error)
        bar.update()
    if not tried:
        raise faults[-1]
    _, lr, accuracy, seconds = min(tried)
    accuracies, times = [accuracy], [seconds]
    for seed in range(first + 1, first + budget.seeds):
        model, seconds = train_classifier(row, start, task, n, budget, lr, seed)
        accuracies.append(task.score(model, "test", budget.test)["accuracy"])
        times.append(seconds)
        bar.update()
    return Outcome(lr, accuracies, math.fsum(times) / len(times))


def measure_rows(
    rows: Sequence[Row], start: GPT, task: LabelTask, n: int, budget: Budget, first: int, title: str
) -> dict[str, Outcome]:
    """Every row with the same number of labels."""
    found = {}
    with tqdm(total=len(rows) * budget.runs, unit="run", desc=title, dynamic_ncols=True) as bar:
        for row in rows:
            bar.set_postfix_str(row.name)
            found[row.name] = measure(row, start, task, n, budget, first, bar)
    return found


def measure_curves(
    starts: Mapping[str, tuple[Row, GPT, float]],
    task: LabelTask,
    counts: Sequence[int],
    budget: Budget,
    first: int,
    title: str,
    known: Mapping[tuple[str, int], Outcome],
) -> dict[str, dict[int, Outcome]]:
    """Accuracy by number of labels from each start.

    Parameters
    ----------
    starts : name → (row, model, learning rate)
    counts : sequence of int
        Those that the task does not have are left out; if none is left, a quarter of its labels and all of them.
    known : (name, number of labels) → outcome
        What need not be measured again.
    """
    most = len(task.data.train)
    counts = [n for n in counts if task.n_labels <= n <= most] or sorted({max(task.n_labels, most // 4), most})
    total = sum((name, n) not in known for name in starts for n in counts) * budget.seeds
    with tqdm(total=total, unit="run", desc=f"{title}, few labels", dynamic_ncols=True) as bar:
        return {
            name: {
                n: known.get((name, n)) or measure(row, start, task, n, replace(budget, grid=(lr,)), first, bar)
                for n in counts
            }
            for name, (row, start, lr) in starts.items()
        }


def labels_needed(curve: Mapping[int, float], accuracy: float) -> float | None:
    """How many labels a curve needs for an accuracy, by straight lines over log n; None if it never gets there."""
    points = sorted(curve.items())
    if points[0][1] >= accuracy:
        return float(points[0][0])
    for (n, low), (m, high) in pairwise(points):
        if low < accuracy <= high:
            return math.exp(math.log(n) + (math.log(m) - math.log(n)) * (accuracy - low) / (high - low))
    return None


def commonest(task: LabelTask) -> float:
    """Test accuracy of always giving the commonest label."""
    labels = [example.label for example in task.data.test]
    return max(labels.count(label) for label in set(labels)) / len(labels)


# ---------------------------------------------------------------------------------------------- looking inside


def verdicts(model: Classifier, ids: Sequence[int]) -> np.ndarray:
    """What a classifier says of the beginnings of a text.

    Parameters
    ----------
    model : Classifier
    ids : T integers

    Returns
    -------
    probabilities : (T, n_labels)
        Row t: after t + 1 tokens.
    """
    T = len(ids)
    scores = model.backend.to_numpy(model.logits(np.tile(ids, (T, 1)), np.arange(1, T + 1))).astype(float)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


@plotting.style()
def verdict_picture(probabilities: np.ndarray, tokens: Sequence[str], names: Sequence[str]) -> Figure:
    """How the verdict forms while the text is read.

    Parameters
    ----------
    probabilities : (T, n_labels)
        As from `verdicts`.
    tokens : T strings
    names : sequence of str
        Of the labels.
    """
    figure, axes = plotting.new(height=3.0)
    ends = []
    for label, (name, colour) in enumerate(zip(names, plotting.PALETTE, strict=False)):
        axes.plot(probabilities[:, label], color=colour, marker="o", markersize=4)
        ends.append(End(len(tokens) - 1, float(probabilities[-1, label]), name, colour))
    axes.set_xticks(
        range(len(tokens)), [plotting.drawable(token) for token in tokens], rotation=90, family="DejaVu Sans Mono"
    )
    axes.set_xlim(-0.5, len(tokens) - 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("token, from left to right")
    axes.set_ylabel("probability so far")
    axes.set_title("How the verdict forms while the text is read")
    plotting.label_ends(axes, ends)
    return figure


@plotting.style()
def pooling_picture(hidden: np.ndarray, tokens: Sequence[str], columns: int = 40) -> Figure:
    """Hidden states of a text, which of them hold a column's maximum, and the three rows that pooling makes of them.

    Parameters
    ----------
    hidden : (T, C)
    tokens : T strings
    columns : int
        How many of the C to show.
    """
    shown = hidden[:, :columns]
    pooled = np.stack([shown[-1], shown.max(0), shown.mean(0)])
    figure, (states, rows) = plotting.new(
        2, 1, height=1.9 + 0.21 * len(tokens), sharex=True, gridspec_kw={"height_ratios": [len(tokens), 3]}
    )
    most, labels = float(np.quantile(np.abs(shown), 0.99)), [plotting.drawable(token) for token in tokens]
    for axes, values, names, title in (
        (states, shown, labels, "Hidden states; a dot where a column is largest"),
        (rows, pooled, ("last", "maximum", "mean"), "What pooling keeps"),
    ):
        image = axes.imshow(values, cmap=plotting.SIGNED, vmin=-most, vmax=most, aspect="auto")
        axes.set_yticks(range(len(names)), names, family="DejaVu Sans Mono", fontsize=8)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.set_title(title)
    states.scatter(range(shown.shape[1]), shown.argmax(0), color=plotting.BLACK, s=9)
    rows.set_xlabel(f"column (the first {shown.shape[1]} of {hidden.shape[1]})")
    bar = figure.colorbar(image, ax=(states, rows), location="right", pad=0.01, shrink=0.7)
    bar.set_label("hidden state")
    bar.outline.set_visible(False)
    return figure


# ---------------------------------------------------------------------------------------------- pictures


@plotting.style()
def table_picture(tables: Mapping[str, Mapping[str, Outcome]], marked: str) -> Figure:
    """Test accuracy of every row, a dot a seed and a stroke for their mean; a panel a task.

    Parameters
    ----------
    tables : task → row → outcome
    marked : str
        The row to show in another colour.
    """
    names = list(next(iter(tables.values())))
    figure, axes = plotting.new(1, len(tables), height=1.6 + 0.36 * len(names), sharey=True, squeeze=False)
    for panel, (task, found) in zip(axes[0], tables.items(), strict=True):
        for row, name in enumerate(names):
            if name not in found:
                continue
            colour = plotting.VERMILLION if name == marked else plotting.BLUE
            values = found[name].accuracies
            panel.scatter(values, [row] * len(values), color=colour, s=30, alpha=0.75, linewidth=0, zorder=3)
            panel.scatter([found[name].mean], [row], color=colour, marker="|", s=260, linewidth=2)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("test accuracy")
        panel.set_title(task)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


@plotting.style()
def curve_picture(curves: Mapping[str, Mapping[str, Mapping[int, Outcome]]], chance: Mapping[str, float]) -> Figure:
    """Accuracy against the number of labels, a panel a task; bands from the lowest seed to the highest."""
    figure, axes = plotting.new(len(curves), 1, height=3.6 * len(curves), squeeze=False)
    for panel, (task, starts) in zip(axes[:, 0], curves.items(), strict=True):
        ends = []
        for (name, by_n), colour in zip(starts.items(), plotting.PALETTE, strict=False):
            counts, means = list(by_n), [outcome.mean for outcome in by_n.values()]
            spans = [(min(outcome.accuracies), max(outcome.accuracies)) for outcome in by_n.values()]
            panel.plot(counts, means, color=colour, marker="o", markersize=4)
            panel.fill_between(counts, *zip(*spans, strict=True), color=colour, alpha=0.15, linewidth=0)
            ends.append(End(counts[-1], means[-1], name, colour))
        ends.append(End(counts[-1], chance[task], "one label for all", plotting.GREY))
        panel.axhline(chance[task], color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)))
        panel.set_xscale("log")
        panel.set_xticks(counts, [str(n) for n in counts])
        panel.minorticks_off()
        panel.set_xlim(counts[0] / 1.05, counts[-1])
        panel.set_xlabel("labelled texts")
        panel.set_ylabel("test accuracy")
        panel.set_title(task)
        plotting.label_ends(panel, ends)
    return figure
