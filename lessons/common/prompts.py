"""Around soft prompts: choosing among answers, prompting with words, runs that are made once, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tqdm import tqdm

from lessons.common import plotting
from lessons.common.method import Method
from lessons.common.plotting import End
from lessons.common.sweep import cores
from lessons.common.tasks import EVALUATION_BATCH, LabelTask, PairTask, Task, cut, in_batches
from lessons.common.tuning import Budget, fine_tune
from minigpt import GPT, Tokenizer
from minigpt.data import Pair, collate_pairs
from minigpt.data.tinyworld import as_pairs
from minigpt.evaluation import evaluate_batches
from minigpt.heads import token_logprobs

MOST_CHOICES = 12
"""A task with more different completions than this is one of writing, not of choosing."""


# ---------------------------------------------------------------------------------------------- tasks in words


def as_pair_task(task: Task, question: str = "Which label does this text have?") -> PairTask:
    """Labelled texts as prompts with a question, and the name of the label as completion."""
    if isinstance(task, LabelTask):
        return PairTask(as_pairs(task.data, question), task.tokenizer, task.max_length)
    return task


def choices(task: PairTask) -> tuple[str, ...]:
    """The completions that there are, sorted; none if they are more than `MOST_CHOICES`."""
    found = sorted({pair.completion for pair in task.data.train})
    return tuple(found) if len(found) <= MOST_CHOICES else ()


def question_of(task: PairTask) -> str:
    """What every prompt of the task ends in, where its first line is the text; else the first prompt."""
    prompt = task.data.train[0].prompt
    return prompt.partition("\n")[2] or prompt


def few_shot(task: PairTask, k: int, max_length: int) -> PairTask:
    """The task with k solved examples before every prompt of the test split, of as many different answers as there are.

    Parameters
    ----------
    task : PairTask
    k : int
    max_length : int
        Tokens of a row; where they do not suffice, the first example loses its beginning.
    """
    by_answer: dict[str, list[Pair]] = {}
    for pair in task.data.train:
        by_answer.setdefault(pair.completion, []).append(pair)
    turns = [pairs[i] for i in range(k) for pairs in by_answer.values() if i < len(pairs)]
    solved = "".join(f"{pair.prompt}{pair.completion}\n\n" for pair in turns[:k])
    test = [Pair(solved + pair.prompt, pair.completion, pair.references) for pair in task.data.test]
    return replace(task, data=replace(task.data, test=test), max_length=max_length)


# ---------------------------------------------------------------------------------------------- scoring


def choice_scores(
    model: GPT, task: PairTask, split: str = "test", limit: int | None = None, members: int | None = None
) -> np.ndarray:
    """Log-probability of every possible answer to every prompt.

    Parameters
    ----------
    model : GPT
    task : PairTask
        With `choices`.
    split : str
    limit : int, optional
        Prompts to look at.
    members : int, optional
        Prompts of a `PromptBank`; all of them answer each batch in one pass.

    Returns
    -------
    scores : (members or 1, prompts, choices)
        Nats, end of text included.
    """
    answers = choices(task)
    pairs = task.data.split(split)[:limit]
    rows = [Pair(pair.prompt, answer) for pair in pairs for answer in answers]
    whole = collate_pairs(task.tokenizer, rows, task.max_length)
    order = np.argsort(whole["lengths"], kind="stable")
    backend, M = model.backend, members or 1
    scores = np.empty((M, len(rows)))
    for i in range(0, len(order), EVALUATION_BATCH):
        chosen = order[i : i + EVALUATION_BATCH]
        batch = cut(whole, chosen)
        ids, targets = (backend.asarray(np.tile(batch[name], (M, 1))) for name in ("ids", "targets"))
        which = backend.asarray(np.repeat(np.arange(M), len(chosen)))
        ctx = model.context(adapters=None if members is None else which)
        hidden, _ = model.forward(ids, ctx)
        logprobs, _ = token_logprobs(hidden, model.wte, targets, ctx)
        scores[:, chosen] = backend.to_numpy(logprobs).sum(1).reshape(M, -1)
    return scores.reshape(M, len(pairs), len(answers))


def right_choices(task: PairTask, split: str = "test", limit: int | None = None) -> np.ndarray:
    """Which of the `choices` is right for every prompt, (n,) integers."""
    answers = choices(task)
    return np.array([answers.index(pair.completion) for pair in task.data.split(split)[:limit]])


def chance_loss(task: PairTask, limit: int | None = None) -> float:
    """Loss of a model that knows which answers there are and nothing else, in nats a token of the completions."""
    answers = choices(task)
    tokens = [len(task.tokenizer.encode(pair.completion)) + 1 for pair in task.data.test[:limit]]
    return float(np.log(len(answers)) * len(tokens) / sum(tokens))


def evaluate(model: GPT, task: PairTask, limit: int | None = None) -> dict[str, float]:
    """Scores on the test split.

    ``accuracy``: how often the right one of the task's `choices` is the likeliest; where there are none, how often the
    greedy completion is exactly right. ``in_form``: how often the greedy completion is one of the choices.
    ``loss``: nats a token of the completions.
    """
    answers = choices(task)
    if not answers:
        return task.score(model, "test", limit)
    loss, _ = evaluate_batches(model, in_batches(task.encoded("test"), limit))
    chosen = choice_scores(model, task, "test", limit)[0].argmax(-1)
    written = task.complete(model, [pair.prompt for pair in task.data.test[:limit]], task.longest("test"))
    return {
        "accuracy": float((chosen == right_choices(task, "test", limit)).mean()),
        "in_form": sum(text in answers for text in written) / len(written),
        "loss": loss,
    }


# ---------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Job:
    """One training run: a method on a base and a task.

    Attributes
    ----------
    method : Method
    base, task : str
        Names on the bench.
    seed : int
    lr : float or None
        The method's own by default.
    longer : int
        How many times the steps of the bench's budget.
    """

    method: Method
    base: str
    task: str
    seed: int = 0
    lr: float | None = None
    longer: int = 1


@dataclass(frozen=True)
class Trial:
    """What a job gave.

    Attributes
    ----------
    scores : dict
        See `evaluate`.
    n_trainable : int
    seconds : float
        Of training.
    prompt : dict of str to array
        The trained vectors of a prompt- or prefix-tuned model, by name; empty for others.
    """

    scores: dict[str, float]
    n_trainable: int
    seconds: float
    prompt: dict[str, np.ndarray]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.scores["accuracy"]

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.scores["loss"]

    def record(self) -> dict[str, float]:
        """The figures, ready for JSON."""
        return {**self.scores, "n_trainable": self.n_trainable}


class Bench:
    """Bases and tasks by name, one budget, and the trials made so far: the same job is never run twice.

    Parameters
    ----------
    models : mapping of str to GPT
    tasks : mapping of str to PairTask
    budget : Budget
        Of one worker: the runs are side by side.
    limit : int
        Test prompts that are scored.
    workers : int
        Runs side by side; 0: one a core. On a GPU one.
    """

    def __init__(
        self,
        models: Mapping[str, GPT],
        tasks: Mapping[str, PairTask],
        budget: Budget,
        limit: int,
        workers: int = 0,
    ) -> None:
        self.models = models
        self.tasks = tasks
        self.budget = budget
        self.limit = limit
        self.workers = workers
        self.done: dict[Job, Trial] = {}

    def run(self, jobs: Iterable[Job]) -> None:
        """Do the jobs that have not been done, with one progress bar."""
        new = [job for job in dict.fromkeys(jobs) if job not in self.done]
        on_host = all(model.backend.name == "numpy" for model in self.models.values())
        workers = min(self.workers or cores(), max(1, len(new))) if on_host else 1
        calls = (
            joblib.delayed(one_run)(job, self.models[job.base], self.tasks[job.task], self.budget, self.limit)
            for job in new
        )
        with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
            trials = joblib.Parallel(return_as="generator", batch_size=1)(calls)
            for job, trial in zip(new, tqdm(trials, total=len(new), desc="training", unit="run"), strict=True):
                self.done[job] = trial


def one_run(job: Job, model: GPT, task: PairTask, budget: Budget, limit: int) -> Trial:
    """Do one job."""
    budget = replace(budget, steps=budget.steps * job.longer, lr=job.lr)
    run = fine_tune(job.method, model, task, budget, job.seed)
    virtual = {p.name: run.model.backend.to_numpy(p.data) for p in run.model.parameters() if p.trainable}
    return Trial(
        evaluate(run.model, task, limit),
        run.n_trainable,
        run.history.seconds,
        virtual if run.model.n_virtual else {},
    )


# ---------------------------------------------------------------------------------------------- pictures


@plotting.style()
def input_picture(prompt: np.ndarray, tokens: np.ndarray, labels: Sequence[str], title: str) -> Figure:
    """What the first block reads: the vectors of a prompt, then those of the text's tokens, a column each.

    Parameters
    ----------
    prompt : (P, C)
    tokens : (T, C)
    labels : T strings
    title : str
    """
    P, C = prompt.shape
    limit = 3 * float(tokens.std())  # of the text's, so that pictures of other prompts can be compared
    figure, axes = plotting.new(height=4.2)
    columns = np.concatenate((prompt, np.full((1, C), np.nan), tokens)).T  # (C, P + 1 + T), a gap between
    image = axes.imshow(columns, cmap=plotting.SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.add_patch(Rectangle((-0.5, -0.5), P, C, fill=False, edgecolor=plotting.BLACK, linewidth=2, clip_on=False))
    names = ["prompt", *(plotting.drawable(label) for label in labels)]
    places = [(P - 1) / 2, *range(P + 1, P + 1 + len(labels))]
    axes.set_xticks(places, names, rotation=90, family="DejaVu Sans Mono", fontsize=8)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("dimension of the embedding")
    axes.set_xlabel(f"{P} vectors of the prompt, then the text")
    axes.set_title(title)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="both")
    bar.set_label("value", fontsize=9)
    bar.outline.set_visible(False)
    return figure


def of_sizes(points: Mapping[str, Sequence[Mapping[str, float]]], key: str) -> list[tuple[float, list[float]]]:
    """A curve of `curve_picture` from a record: size → trials, in whatever order, and which of their figures."""
    return sorted((float(size), [trial[key] for trial in trials]) for size, trials in points.items())


@plotting.style()
def answers_picture(found: Mapping[str, np.ndarray], right: np.ndarray, answers: Sequence[str]) -> Figure:
    """How models share their probability among the answers, a bar a prompt, sorted by the answer that is right.

    Parameters
    ----------
    found : dict of str to (n, k)
        Name of a model → log-probability of every answer to every prompt; see `choice_scores`.
    right : (n,) integers
    answers : k strings
    """
    order = np.argsort(right, kind="stable")
    colours = [plotting.PALETTE[i % len(plotting.PALETTE)] for i in range(len(answers))]
    figure, panels = plotting.new(1, len(found), height=3.4, sharey=True, squeeze=False)
    places = np.arange(len(order))
    for panel, (name, scores) in zip(panels[0], found.items(), strict=True):
        bottom = np.zeros(len(order))
        for choice, colour in enumerate(colours):
            heights = np.exp(scores[order, choice])
            panel.bar(places, heights, 0.9, bottom=bottom, color=colour, linewidth=0)
            bottom += heights
        for edge in np.flatnonzero(np.diff(right[order])):
            panel.axvline(edge + 0.5, color=plotting.BLACK, linewidth=1)
        there = np.unique(right)
        panel.set_xticks([places[right[order] == c].mean() for c in there], [answers[c].strip() for c in there])
        for label, choice in zip(panel.get_xticklabels(), there, strict=True):
            label.set(color=colours[choice], weight="bold")
        panel.tick_params(axis="x", length=0)
        panel.grid(axis="x", visible=False)
        panel.set_ylim(0, 1)
        panel.set_title(name)
        panel.set_xlabel("prompts, by their right answer")
    panels[0][0].set_ylabel("probability of each answer")
    return figure


@plotting.style()
def space_picture(table: np.ndarray, prompts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Prompts among the token embeddings, before and after training, in the two main directions of all of them.

    Parameters
    ----------
    table : (V, C)
    prompts : dict of str to (before, after), (P, C) each
    """
    everything = np.concatenate([table, *(after for _, after in prompts.values())])
    centre = everything.mean(0)
    axes_of = np.linalg.svd(everything - centre, full_matrices=False)[2][:2]  # (2, C)

    def place(vectors: np.ndarray) -> np.ndarray:
        return (vectors - centre) @ axes_of.T

    figure, panels = plotting.new(1, len(prompts), height=4.2, sharex=True, sharey=True, squeeze=False)
    tokens = place(table)
    for panel, (name, (before, after)), colour in zip(panels[0], prompts.items(), plotting.PALETTE, strict=False):
        start, end = place(before), place(after)
        panel.scatter(*tokens.T, s=6, color="#B5B5B5", linewidth=0, label="tokens")
        panel.plot(*np.stack((start, end), axis=1).T, color=colour, linewidth=0.8, alpha=0.6)
        panel.scatter(*start.T, s=26, facecolor="white", edgecolor=colour, linewidth=1.2, zorder=3, label="before")
        panel.scatter(*end.T, s=26, color=colour, linewidth=0, zorder=4, label="after")
        panel.set_title(name)
        panel.set_xlabel("first main direction")
        panel.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    panels[0][0].set_ylabel("second main direction")
    return figure


@plotting.style()
def curve_picture(
    curves: Mapping[str, Sequence[tuple[float, Sequence[float]]]],
    levels: Mapping[str, float],
    x_label: str,
    title: str,
    y_label: str,
) -> Figure:
    """Figures over a size, a dot a seed and a line through the means, beside levels that do not depend on it.

    Parameters
    ----------
    curves : dict of str to sequence of (size, values)
    levels : dict of str to float
    x_label, title, y_label : str
    """
    figure, axes = plotting.new(height=4.0)
    ends = []
    sizes = sorted({size for points in curves.values() for size, _ in points})
    for (name, points), colour in zip(curves.items(), plotting.PALETTE, strict=False):
        means = [float(np.mean(values)) for _, values in points]
        axes.plot([size for size, _ in points], means, color=colour)
        for size, values in points:
            axes.scatter([size] * len(values), values, color=colour, s=28, alpha=0.8, linewidth=0, zorder=3)
        ends.append(End(points[-1][0], means[-1], name, colour))
    for name, level in levels.items():
        axes.axhline(level, color=plotting.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        ends.append(End(sizes[-1], level, name, plotting.GREY))
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlim(sizes[0] / 1.15, sizes[-1])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    plotting.label_ends(axes, ends)
    return figure


@plotting.style()
def neighbour_picture(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A table of the nearest tokens of each vector, before and after training.

    Parameters
    ----------
    rows : sequence of dict
        ``place``; ``before`` and ``after``: (label, cosine) of the nearest tokens.
    title : str
    """
    figure, axes = plotting.new(height=0.9 + 0.27 * len(rows))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows), -1)
    axes.set_title(title)
    for x, text in ((0.0, "place"), (0.08, "before training"), (0.54, "after training")):
        axes.text(x, -0.5, text, weight="bold", va="center")
    for i, row in enumerate(rows):
        axes.axhline(i, color="#E3E3E3", linewidth=0.8)
        axes.text(0.0, i + 0.5, str(row["place"]), va="center", fontsize=10)
        for x, near, colour in ((0.08, row["before"], plotting.GREY), (0.54, row["after"], plotting.BLUE)):
            text = "   ".join(f"{plotting.drawable(label)} {cosine:.2f}" for label, cosine in near)
            axes.text(x, i + 0.5, text, va="center", fontsize=9, family="DejaVu Sans Mono", color=colour)
    return figure


def neighbour_rows(
    before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """What `nearest_tokens` found for each vector, in words."""

    def words(found: tuple[np.ndarray, np.ndarray], place: int) -> list[tuple[str, float]]:
        pairs = zip(found[0][place].tolist(), found[1][place].tolist(), strict=True)
        return [(tokenizer.token_label(token), round(cosine, 3)) for token, cosine in pairs]

    return [
        {"place": place, "before": words(before, place), "after": words(after, place)} for place in range(len(after[0]))
    ]
