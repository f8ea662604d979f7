"""What lesson 4 measures in a run, and how it is shown: tables, and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lessons.common import plotting
from lessons.common.plotting import End
from lessons.common.runner import Run
from lessons.common.scenarios import METRICS, main_metric
from lessons.common.table import spread, table
from lessons.common.tasks import PairTask
from minigpt.data import IGNORED, collate_pairs

PROMPTED = ("zero-shot", "few-shot")
MODELS = (*PROMPTED, "one task each", "mixture, last layer", "mixture")


@dataclass
class Measured:
    """What one seed gave; scores are each task's main metric.

    Attributes
    ----------
    scenarios : dict
        Model → task → metric → value; the tasks are those trained on.
    unseen : dict
        Task or template that was not trained on → model → metric → value.
    from_base : (1 + K + 1, K)
        Rows: the base, a model for each task, the mixture's; columns: scored on.
    after_mixture : (1 + K, K)
        Rows: the mixture's model, and then trained on each task alone.
    gained, forgotten : (K,)
        What `after_mixture` says of each of the later tasks.
    held_out : dict
        Model → text → loss, nats a token.
    curve : dict
        Examples a task → ``"one task each"``, ``"mixture"`` → mean score over the tasks.
    """

    scenarios: dict[str, dict[str, dict[str, float]]]
    unseen: dict[str, dict[str, dict[str, float]]]
    from_base: list[list[float]]
    after_mixture: list[list[float]]
    gained: list[float]
    forgotten: list[float]
    held_out: dict[str, dict[str, float]]
    curve: dict[int, dict[str, float]]

    def score(self, model: str) -> float:
        """Mean over the tasks."""
        return mean([scores["main"] for scores in self.scenarios[model].values()])

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Measured:
        """What a record holds of it."""
        return cls(**{**record, "curve": {int(n): scores for n, scores in record["curve"].items()}})


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


# ---------------------------------------------------------------------------------------------- tables


def show_tasks(run: Run, labels: Sequence[str], tasks: Sequence[PairTask]) -> None:
    """A pair of each task, and what its rows are made of."""
    run.heading("The tasks")
    rows = []
    for label, task in zip(labels, tasks, strict=True):
        whole = task.encoded("train")
        scored = whole["targets"] != IGNORED
        cut = collate_pairs(task.tokenizer, task.data.train, task.max_length)["truncated"].sum()
        rows.append(
            [label, len(task.data.train), f"{whole['lengths'].mean():.0f}", f"{scored.sum(1).mean():.0f}",
             f"{scored.sum() / whole['lengths'].sum():.0%}", int(cut), main_metric(task).replace("_", " ")]
        )  # fmt: skip
    headers = ["task", "pairs", "tokens a row", "of them scored", "share", "prompts cut", "judged by"]
    run.say(table(rows, headers, "lrrrrrl"))
    for label, task in zip(labels, tasks, strict=True):
        pair = task.data.train[0]
        prompt = pair.prompt if len(pair.prompt) < 300 else f"… {pair.prompt[-300:]}"
        run.say(f"\n  {label}\n" + "\n".join(f"    | {line}" for line in f"{prompt}【{pair.completion}】".splitlines()))


def averaged(trees: Sequence[Any]) -> Any:
    """Nested dicts of numbers, averaged over the runs."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: averaged([tree[key] for tree in trees]) for key in first}
    return mean(trees)


def show_scores(run: Run, labels: Sequence[str], results: Sequence[Measured]) -> None:
    """Every model on every task, and what fine-tuning is worth over prompting."""
    run.heading("Prompting, one model for each task, one model for all")
    rows = []
    for name in MODELS:
        cells = [spread([r.scenarios[name][label]["main"] for r in results], 2) for label in labels]
        rows.append([name, *cells, spread([r.score(name) for r in results], 2)])
    run.say(table(rows, ["score on the test pairs", *labels, "mean"]))
    scenarios = averaged([r.scenarios for r in results])
    for name in MODELS[2:]:
        losing = [
            label
            for label in labels
            if scenarios[name][label]["main"] <= max(scenarios[p][label]["main"] for p in PROMPTED)
        ]
        run.say(
            f"  {name}: "
            + (f"no better than prompting on {', '.join(losing)}" if losing else "beats prompting on every task")
        )
    run.say("\n  By every metric. BLEU asks for four words in a row: it is 0 where the answers are shorter.")
    for label in labels:
        run.say(f"\n  {label}")
        rows = [[m, *(f"{scenarios[m][label][key]:.3f}" for key in METRICS)] for m in MODELS]
        run.say(table(rows, ["model", *(key.replace("_", " ") for key in METRICS)], indent=4))


def show_unseen(run: Run, results: Sequence[Measured]) -> None:
    """What the mixture did not hold: its tasks in another template, and other tasks."""
    run.heading("What was not in the mixture")
    unseen = averaged([r.unseen for r in results])
    rows = [
        [f"{task}: {model}", *(f"{scores[key]:.3f}" for key in METRICS)]
        for task, models in unseen.items()
        for model, scores in models.items()
    ]
    run.say(table(rows, ["task: model", *(key.replace("_", " ") for key in METRICS)]))


def show_curve(run: Run, labels: Sequence[str], results: Sequence[Measured]) -> None:
    """How many examples each way needs."""
    run.heading("How many examples?")
    curves = curves_of(results)
    rows = [[n, *(spread(curves[name][n], 3) for name in curves)] for n in results[0].curve]
    run.say(table(rows, ["examples a task", *(f"{name}: mean score" for name in curves)]))
    run.say("  Both ways show each task's rows equally often: the mixture of K tasks trains for K times the steps of a")
    run.say("  model for one task, so it also has the longer schedule. A full run tells the two reasons apart.")
    run.picture("examples", examples_picture(curves, prompting(results)))


def curves_of(results: Sequence[Measured]) -> dict[str, dict[int, list[float]]]:
    """Way of training → examples a task → mean score of each run."""
    return {
        name: {n: [r.curve[n][name] for r in results] for n in results[0].curve}
        for name in ("one task each", "mixture")
    }


def prompting(results: Sequence[Measured]) -> dict[str, float]:
    """Mean score of the base, without and with solved examples."""
    return {name: mean([r.score(name) for r in results]) for name in PROMPTED}


def show_forgetting(run: Run, labels: Sequence[str], results: Sequence[Measured]) -> None:
    """The matrices, and the loss on the base's own text."""
    run.heading("What is forgotten")
    from_base = np.mean([r.from_base for r in results], 0)
    after = np.mean([r.after_mixture for r in results], 0)
    lost = np.mean([r.forgotten for r in results], 0)
    gained = np.mean([r.gained for r in results], 0)
    rows = [
        [f"then {label}", *(f"{v:.2f}" for v in after[1 + i]), f"{gained[i]:+.2f}", f"{lost[i]:.2f}"]
        for i, label in enumerate(labels)
    ]
    rows = [["mixture", *(f"{v:.2f}" for v in after[0]), "", ""], *rows]
    run.say(table(rows, ["trained on", *(f"on {label}" for label in labels), "gained", "forgotten"]))
    run.picture("forgetting", forgetting_picture(from_base, after, labels))

    held_out = averaged([r.held_out for r in results])
    texts = list(held_out["base"])
    rows = [
        [
            name,
            *(f"{losses[t]:.3f}" for t in texts),
            *("" if name == "base" else f"{losses[t] - held_out['base'][t]:+.3f}" for t in texts),
        ]
        for name, losses in held_out.items()
    ]
    run.say("\n  loss on held-out text of the kind that the base was trained on, nats a token")
    run.say(table(rows, ["trained on", *texts, *(f"{t}, change" for t in texts)]))


# ---------------------------------------------------------------------------------------------- pictures


@plotting.style()
def row_picture(reads: Sequence[str], predicts: Sequence[str | None], tall: float = 1.05) -> Figure:
    """A row of training data: what the model reads at each place, and under it what it has to predict there.

    Parameters
    ----------
    reads : T strings
        Input tokens.
    predicts : T strings or None
        Targets; None where nothing is scored.
    tall : float
        Height of a token's box, inches.
    """
    figure, ax = plotting.new(height=2 * tall + 0.95)
    scored = [place for place, target in enumerate(predicts) if target is not None]
    rows = ((2, reads, "#E3E3E3", plotting.SKY), (0.7, predicts, "#F7F7F7", plotting.ORANGE))
    for height, tokens, quiet, loud in rows:
        for place, token in enumerate(tokens):
            mine = place in scored if tokens is predicts else place > scored[0]
            box = Rectangle((place + 0.05, height), 0.9, 1, facecolor=loud if mine else quiet)
            ax.add_patch(box)
            text = "·" if token is None else plotting.drawable(token)
            ax.text(place + 0.5, height + 0.5, text, rotation=90, ha="center", va="center",
                    fontsize=9 if len(text) < 10 else 7, family="DejaVu Sans Mono")  # fmt: skip
    for place in scored:
        ax.annotate("", (place + 0.5, 1.7), (place + 0.5, 2), arrowprops={"arrowstyle": "->", "color": plotting.GREY})
    first, last = scored[0], scored[-1]
    ax.text((first + 1) / 2, 3.08, "prompt", ha="center", va="bottom", color=plotting.GREY)
    ax.text((first + last) / 2 + 1, 3.08, "completion", ha="center", va="bottom", color=plotting.BLUE)
    ax.text(first / 2, 0.6, f"{first} places: not scored", ha="center", va="top", color=plotting.GREY)
    ax.text((first + last + 1) / 2, 0.6, f"{len(scored)} places: the loss", ha="center", va="top",
            color=plotting.VERMILLION)  # fmt: skip
    ax.set_yticks([2.5, 1.2], ["it reads", "it must\npredict"])
    ax.tick_params(length=0)
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_xlim(-0.2, len(reads) + 0.2)
    ax.set_ylim(0.3, 3.4)
    return figure


@plotting.style()
def shares_picture(sizes: Mapping[str, int], shares: Mapping[str, Sequence[float]]) -> Figure:
    """How large a part of a mixture each task has, one bar a way of mixing.

    Parameters
    ----------
    sizes : dict of str to int
        Task → examples.
    shares : dict of str to sequence of float
        Way of mixing → a share for each task.
    """
    figure, ax = plotting.new(height=1.2 + 0.42 * len(shares))
    for row, parts in enumerate(shares.values()):
        start = 0.0
        for colour, part in zip(plotting.PALETTE, parts, strict=False):
            ax.barh(row, 100 * part, left=start, color=colour, height=0.72, edgecolor="white")
            if part > 0.05:
                ax.text(start + 50 * part, row, f"{100 * part:.0f} %", color="white", ha="center", va="center",
                        fontsize=9)  # fmt: skip
            start += 100 * part
    ax.set_yticks(range(len(shares)), list(shares))
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.grid(visible=False)
    ax.set_xlabel("share of the rows of a batch (%)")
    handles = [
        Patch(color=colour, label=f"{task}: {n:,} pairs")
        for colour, (task, n) in zip(plotting.PALETTE, sizes.items(), strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=10)
    return figure


@plotting.style()
def ablation_picture(scores: Mapping[str, Sequence[Sequence[float]]], forgot: Mapping[str, Any], text: str) -> Figure:
    """The mixture trained in other ways: mean score over the tasks, and what it does to the base's own text.

    Parameters
    ----------
    scores : dict
        Way → a seed → a score for each task.
    forgot : dict
        Way → a seed → text → change of the loss; a way may be missing.
    text : str
        The text to show.
    """
    figure, (left, right) = plotting.new(1, 2, height=1.3 + 0.34 * len(scores), sharey=True)
    panels = (
        (left, {name: [mean(seed) for seed in seeds] for name, seeds in scores.items()}, plotting.BLUE),
        (right, {name: [change[text] for change in forgot.get(name, [])] for name in scores}, plotting.VERMILLION),
    )
    for ax, values, colour in panels:
        for row, each in enumerate(values.values()):
            ax.scatter(each, [row] * len(each), color=colour, s=26, alpha=0.6, linewidth=0, zorder=3)
            if each:
                ax.scatter([mean(each)], [row], color=colour, marker="|", s=240, linewidth=2)
        low, high = ax.get_xlim()
        ax.set_xlim(min(0.0, low), 1.03 * high)
        for border in range(len(scores) - 1):
            ax.axhline(border + 0.5, color="#D0D0D0", linewidth=0.8)
        ax.grid(axis="y", visible=False)
    left.set_yticks(range(len(scores)), [name.replace(", each", ",\neach") for name in scores], fontsize=9)
    left.set_ylim(len(scores) - 0.5, -0.5)
    left.set_xlabel("score, mean over the tasks\n(more is better)")
    right.set_xlabel(f"nats a token added on {text}\n(less is better)")
    left.set_title("Learnt")
    right.set_title("Forgotten")
    return figure


@plotting.style()
def forgetting_picture(from_base: np.ndarray, after: np.ndarray, labels: Sequence[str]) -> Figure:
    """Two matrices side by side: models made from the base, and models made from the mixture's.

    Parameters
    ----------
    from_base : (K + 2, K)
        The base's scores, those of the models for one task, the mixture's.
    after : (K + 1, K)
        The mixture's scores, and those after one task more.
    labels : sequence of K str
    """
    figure, (left, right) = plotting.new(1, 2, height=2.6 + 0.36 * len(labels))
    _matrix(left, from_base, ["base, no training", *labels, "all of them"], labels, 1)
    left.set_ylabel("trained on")
    left.set_title("From the base")
    _matrix(right, after, ["mixture's model", *(f"then {label}" for label in labels)], labels, 1)
    right.set_title("From the mixture's model")
    return figure


def _matrix(axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], first: int) -> None:
    axes.imshow(values, cmap=plotting.INTENSITY, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if value > 0.6 else "black")
        if i - first == j:
            frame = Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, edgecolor=plotting.ORANGE, linewidth=1.8)
            axes.add_patch(frame)
    axes.set_xticks(range(len(columns)), list(columns), rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_xlabel("scored on")
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)


@plotting.style()
def examples_picture(curves: Mapping[str, Mapping[int, Sequence[float]]], prompting: Mapping[str, float]) -> Figure:
    """Mean score over the number of training examples a task, with a dot for each seed, beside prompting.

    Parameters
    ----------
    curves : dict of str to dict of int to sequence of float
        Way of training → examples a task → a score for each seed.
    prompting : dict of str to float
    """
    figure, axes = plotting.new(height=4.0)
    ends = []
    for colour, (name, points) in zip(plotting.PALETTE, curves.items(), strict=False):
        x = sorted(points)
        y = [float(np.mean(points[n])) for n in x]
        axes.plot(x, y, color=colour)
        for n in x:
            axes.scatter([n] * len(points[n]), points[n], color=colour, s=26, alpha=0.7, linewidth=0, zorder=3)
        ends.append(End(x[-1], y[-1], name, colour))
    for name, score in prompting.items():
        axes.axhline(score, color=plotting.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        ends.append(End(x[-1], score, f"base, {name}", plotting.GREY))
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{n:,}" for n in x])
    axes.minorticks_off()
    axes.set_xlim(x[0] * 0.85, x[-1])
    axes.set_ylim(-0.1, 1)  # room for the names of lines at 0
    axes.set_xlabel("training examples a task")
    axes.set_ylabel("score, mean over the tasks (0 to 1)")
    axes.set_title("How many examples are needed")
    plotting.label_ends(axes, ends)
    return figure


@plotting.style()
def scenarios_picture(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """A panel for each metric: tasks from top to bottom, a dot for each model.

    Parameters
    ----------
    scores : dict
        Model → task → metric → value.
    """
    tasks = list(next(iter(scores.values())))
    columns = 4
    rows = -(-(len(METRICS) + 1) // columns)
    figure, panels = plotting.new(rows, columns, height=1.6 + rows * (0.9 + 0.3 * len(tasks)), sharey=True)
    flat = list(panels.flat)
    for panel, (key, metric) in zip(flat, METRICS.items(), strict=False):
        for place, (colour, of_tasks) in enumerate(zip(plotting.PALETTE, scores.values(), strict=False)):
            values = [of_tasks[task][key] for task in tasks]
            offset = (place - (len(scores) - 1) / 2) * 0.15
            panel.scatter(values, np.arange(len(tasks)) + offset, color=colour, s=30, linewidth=0, zorder=3)
        panel.set_title(metric.title.replace(", ", "\n"), fontsize=10)
        panel.set_xlabel("more is better →" if metric.more_is_better else "← less is better", fontsize=9)
        if key == "loss":
            panel.set_xlim(-0.04 * panel.get_xlim()[1], panel.get_xlim()[1])
        else:
            panel.set_xlim(-0.04, 1.04)
        for border in range(len(tasks) - 1):
            panel.axhline(border + 0.5, color="#D0D0D0", linewidth=0.8)
        panel.grid(axis="y", visible=False)
    flat[0].set_yticks(range(len(tasks)), tasks)
    flat[0].set_ylim(len(tasks) - 0.5, -0.5)
    for panel in flat[len(METRICS) :]:
        panel.set_axis_off()
    key_panel = flat[len(METRICS)]
    for place, (colour, name) in enumerate(zip(plotting.PALETTE, scores, strict=False)):
        height = 0.9 - 0.17 * place
        key_panel.scatter([0.04], [height], color=colour, s=30, transform=key_panel.transAxes, clip_on=False)
        key_panel.text(0.12, height, name, color=colour, transform=key_panel.transAxes, va="center", fontsize=10)
    return figure
