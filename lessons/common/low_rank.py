"""What lesson 6 (low-rank weights) needs around its technique: a model's matrices, text to measure on, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure

from kernels.array import Array
from lessons.common import plotting
from lessons.common.plotting import End
from lessons.common.tasks import load_task, require_pairs
from minigpt import GPT, Tokenizer
from minigpt.context import Context
from minigpt.corpora import encode_split, language_batches, load_corpus
from minigpt.data import tinyworld
from minigpt.evaluation import evaluate_batches, text_batches
from minigpt.layers import Backward, Layer, Linear
from minigpt.objectives import Batch, LanguageModelling
from minigpt.training import TrainConfig, train

MATRICES = "h.*.c_*"
"""The linear layers of the blocks: c_attn, c_proj and c_fc. Embeddings and LayerNorms are left as they are."""

# ---------------------------------------------------------------------------------------------- matrices


def matrices(model: GPT) -> dict[str, np.ndarray]:
    """The blocks' weights, by the layer's name, (in, out) in float64 on the host."""
    found: dict[str, np.ndarray] = {}

    def collect(layer: Any, name: str) -> Layer:
        found[name] = model.backend.to_numpy(layer.weight.data).astype(np.float64)
        return layer

    model.copy().replace(MATRICES, collect)
    return found


def with_matrices(model: GPT, weights: Mapping[str, np.ndarray]) -> GPT:
    """A copy of a model with other weights in its blocks."""
    twin = model.copy()

    def put(layer: Any, name: str) -> Layer:
        return Linear(layer.name, model.backend.asarray(weights[name].astype(model.dtype)), layer.bias.data)

    twin.replace(MATRICES, put)
    return twin


class _Watched(Layer):
    """A layer whose inputs' gram matrix is added up on the way."""

    def __init__(self, inner: Layer, gram: np.ndarray) -> None:
        self.inner = inner
        self.gram = gram

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        rows = ctx.backend.to_numpy(x).reshape(-1, x.shape[-1]).astype(np.float64)
        self.gram += rows.T @ rows
        return self.inner.forward(x, ctx)


def input_grams(model: GPT, batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """XᵀX/N of what each linear layer of the blocks is fed on N tokens of text.

    Parameters
    ----------
    model : GPT
    batches : sequence of Batch
        With `ids`.

    Returns
    -------
    grams : dict of str to (in, in) float64 array
        By the layer's name.
    """
    twin = model.copy()
    grams: dict[str, np.ndarray] = {}

    def watched(layer: Any, name: str) -> Layer:
        width = layer.weight.data.shape[0]
        grams[name] = np.zeros((width, width))
        return _Watched(layer, grams[name])

    twin.replace(MATRICES, watched)
    for batch in batches:
        twin.forward(twin.check_ids(batch["ids"]), twin.context())
    tokens = sum(batch["ids"].size for batch in batches)
    return {name: gram / tokens for name, gram in grams.items()}


# ---------------------------------------------------------------------------------------------- text


@dataclass(frozen=True)
class Material:
    """Something to train a language model on.

    Attributes
    ----------
    name : str
    batches : (step) -> Batch
    held_out : list of Batch
    """

    name: str
    batches: Callable[[int], Batch]
    held_out: list[Batch]

    def loss(self, model: GPT) -> float:
        """Nats a token on what is held out."""
        return evaluate_batches(model, self.held_out)[0]


def text_material(
    tokenizer: Tokenizer, path: str | None, documents: int, block: int, windows: int, seed: int
) -> Material:
    """Running text: the general domain of `tinyworld`, which the bases know, or the user's own.

    Parameters
    ----------
    tokenizer : Tokenizer
    path : str or None
        Of the user's own text.
    documents : int
        To generate otherwise.
    block, windows : int
        Tokens of a window, and how many windows are held out.
    seed : int
        Of the batches.
    """
    data = load_corpus(path, 0.1, 0.0) if path else tinyworld.corpus(documents, held_out=documents // 6)
    tokens, held_out = (encode_split(tokenizer, data, split) for split in ("train", "validation"))
    return Material(
        data.name,
        language_batches(tokens, 16, block, seed, data.name),
        text_batches(held_out, block, 16, windows, f"the held-out part of {data.name}"),
    )


def pair_material(tokenizer: Tokenizer, name: str, records: int, held_out: int, seed: int) -> Material:
    """A task of prompts and completions, by name, or a file of the user's own."""
    task = require_pairs(load_task(name, tokenizer, records))
    return Material(task.name, task.batches(16, seed), task.validation(held_out))


def states_of_texts(model: GPT, tokenizer: Tokenizer, n: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Mean hidden state of each of n texts of every kind in `tinyworld`.

    Returns
    -------
    states : (n · kinds, C) float64
    labels : (n · kinds,)
    names : tuple of str
        Of the kinds.
    """
    kinds = {
        "stories": tinyworld.stories(n, held_out=1).train,
        "reviews": [example.text for example in tinyworld.sentiment(n, held_out=1).train],
        "activities": [example.text for example in tinyworld.topic(n, held_out=1).train],
        "sums": [pair.prompt for pair in tinyworld.addition(n, held_out=1).train],
        "rewriting": [pair.prompt for pair in tinyworld.rewriting(n, held_out=1).train],
    }
    states = []
    for text in (text for texts in kinds.values() for text in texts[:n]):
        ids = tokenizer.encode(text)[: model.config.n_positions]
        hidden, _ = model.forward(model.check_ids([ids]), model.context())
        states.append(model.backend.to_numpy(hidden)[0].mean(0))
    return np.array(states, np.float64), np.repeat(np.arange(len(kinds)), n), tuple(kinds)


def train_on(model: GPT, material: Material, steps: int, lr: float, title: str, workers: int = 0) -> None:
    """Train what is trainable, in place. Without decay: W would shrink, and ΔW would have a part of W in it."""
    config = TrainConfig(
        steps, lr=lr, schedule="linear", warmup=steps // 10, weight_decay=0.0, beta2=0.999, workers=workers
    )
    history = train(model, LanguageModelling(), material.batches, config, progress=title)
    if history.stopped == "interrupted":
        raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------------- pictures
# Each takes what the lesson's record has under the same name, so that a notebook can draw the committed one.

COLOURS = {
    "weights": plotting.BLUE,
    "update": plotting.VERMILLION,
    "gradient": plotting.GREEN,
    "signs of the gradient": plotting.PURPLE,
    "random": plotting.GREY,
}


def landscape() -> np.ndarray:
    """The heights of a stretch of the Appalachians that comes with Matplotlib, in metres, (344, 403)."""
    with np.load(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as found:
        return np.asarray(found["elevation"], np.float64)


@plotting.style()
def landscape_picture(rank: int) -> Figure:
    """A landscape from few singular triples, and what each rank leaves out of it; shuffled, it has no such shape.

    Parameters
    ----------
    rank : int
    """
    heights = landscape()
    shuffled = np.random.default_rng(0).permutation(heights.ravel()).reshape(heights.shape)
    middle = heights.mean()
    u, s, vt = np.linalg.svd(heights - middle, full_matrices=False)
    figure, (left, right, rest) = plotting.new(1, 3, height=3.3, gridspec_kw={"width_ratios": [1, 1, 1.1]})
    share = rank * sum(heights.shape) / heights.size
    greys = colormaps["Greys_r"].resampled(24)  # enough to see, and a small file
    for axes, image, title in (
        (left, heights, "A landscape:\n{} × {} heights".format(*heights.shape)),
        (right, middle + (u[:, :rank] * s[:rank]) @ vt[:rank], f"Rank {rank}:\n{share:.1%} of the numbers"),
    ):
        axes.imshow(image, cmap=greys, vmin=heights.min(), vmax=heights.max(), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title)
    ends = []
    for name, matrix, colour in (
        ("landscape", heights, plotting.BLUE),
        ("the same,\nshuffled", shuffled, plotting.VERMILLION),
    ):
        values = np.linalg.svd(matrix - middle, compute_uv=False)
        remaining = np.sqrt(np.maximum(0, 1 - np.cumsum(values**2) / (values**2).sum()))
        shown = np.concatenate(([1.0], remaining))[:101]
        rest.plot(shown, color=colour)
        rest.scatter([rank], [shown[rank]], color=colour, s=30, zorder=3)
        ends.append(End(100, float(shown[-1]), name, colour))
    rest.set_xlim(0, 100)
    rest.set_ylim(0, 1.02)
    rest.set_xlabel("rank r")
    rest.set_ylabel("error, share of the norm")
    rest.set_title("What rank r leaves out")
    plotting.label_ends(rest, ends)
    return figure


@plotting.style()
def ellipse_picture(matrix: np.ndarray) -> Figure:
    """What a 2 × 2 matrix does to the unit circle: turn (or mirror), stretch each axis, turn."""
    u, s, vt = np.linalg.svd(matrix)
    right = np.where(vt[:, 0] < 0, -1.0, 1.0)  # each pair of vectors may point either way: here to the right
    u, vt = u * right, right[:, None] * vt
    circle = np.array([np.cos(t := np.linspace(0, 2 * np.pi, 200)), np.sin(t)])
    figure, panels = plotting.new(1, 4, height=2.8, sharex=True, sharey=True)
    reach = 1.15 * max(1.0, s[0])
    for axes, done, title in zip(
        panels,
        (np.eye(2), vt, s[:, None] * vt, matrix),
        ("x", "Vᵀ x: turned", "Σ Vᵀ x: stretched", "U Σ Vᵀ x: turned again"),
        strict=True,
    ):
        axes.plot(*(done @ circle), color=plotting.GREY, linewidth=1.2)
        for i, colour in enumerate((plotting.BLUE, plotting.VERMILLION)):
            tip = done @ vt[i]
            axes.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
            length, above = float(np.linalg.norm(tip)), 6 if tip[1] > -0.1 else -14
            name = ("v₁", "v₂")[i] if axes is panels[0] else "1" if axes is panels[1] else f"σ{'₁₂'[i]} = {length:.2g}"
            axes.annotate(name, tip, xytext=(0, above), textcoords="offset points", color=colour, ha="center")
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.set_title(title, fontsize=10)
    return figure


@plotting.style()
def rivals_picture(rivals: Mapping[str, Any], what: str) -> Figure:
    """How far every other way to rank r is above the optimum; the optimised ones by step."""
    figure, axes = plotting.new(height=4.4)
    floor = 1e-8  # where rounding takes over
    ends = []
    for (name, errors), colour in zip(rivals["curves"].items(), plotting.PALETTE, strict=False):
        above = np.maximum(np.array(errors) - 1, floor)
        steps = np.arange(1, len(errors) + 1)
        axes.plot(steps, above, color=colour)
        ends.append(End(float(steps[-1]), float(above[-1]), name, colour))
    still = [n for n in rivals["frobenius"] if n != "truncated SVD" and n not in rivals["curves"]]
    for name in still:
        above = rivals["frobenius"][name] - 1
        axes.axhline(above, color=plotting.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        ends.append(End(float(steps[-1]), above, name, plotting.GREY))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlim(1, steps[-1])
    axes.set_ylim(floor, None)
    axes.set_xlabel(f"step of the optimised ones ({what})")
    axes.set_ylabel("Frobenius error above the truncated SVD's\n(share of its error)")
    axes.set_title("All other ways lie above the truncated SVD")
    plotting.label_ends(axes, ends)
    return figure


@plotting.style()
def components_picture(
    centred: np.ndarray, uncentred: np.ndarray, labels: np.ndarray, names: Sequence[str], cosine: float
) -> Figure:
    """Scores on the first two axes with and without centring, a colour a kind.

    Parameters
    ----------
    centred, uncentred : (n, 2)
    labels : (n,)
    names : sequence of str
    cosine : float
        Between the first axis without centring and the mean.
    """
    figure, panels = plotting.new(1, 2, height=4.2)
    for axes, scores, title, first in (
        (panels[0], centred, "Centred: how texts differ", "axis 1"),
        (panels[1], uncentred, "Not centred: where they are", f"axis 1 (cosine with the mean: {cosine:.3f})"),
    ):
        tops = []
        for label, name in enumerate(names):
            points, colour = scores[labels == label], plotting.PALETTE[label % len(plotting.PALETTE)]
            axes.scatter(points[:, 0], points[:, 1], color=colour, s=14, alpha=0.6, linewidth=0)
            tops.append(End(float(np.median(points[:, 0])), float(points[:, 1].max()), name, colour))
        axes.margins(0.08)
        plotting.label_tops(axes, tops)
        axes.axvline(0, color=plotting.GREY, linewidth=0.8)
        axes.axhline(0, color=plotting.GREY, linewidth=0.8)
        axes.set_xlabel(f"score on {first}")
        axes.set_title(title)
    panels[0].set_ylabel("score on axis 2")
    return figure


@plotting.style()
def spectra_picture(spectra: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Singular values, and what is left beyond each rank, of weights, updates and gradients beside a random matrix."""
    figure, (values, rest) = plotting.new(1, 2, height=4.6)
    ends: list[End] = []
    for kind, record in spectra.items():
        profile, remaining, colour = record["profile"], record["remaining"], COLOURS[kind]
        values.plot(range(1, len(profile) + 1), profile, color=colour)
        rest.plot(range(len(remaining)), remaining, color=colour)
        ends.append(End(len(profile), remaining[len(profile) // 4], kind, colour))
    values.set_xlabel("k")
    values.set_ylabel("singular value σ_k / σ₁")
    values.set_title("Singular values")
    values.set_xlim(1, len(profile))
    rest.set_xlabel("rank r")
    rest.set_ylabel("‖A − A_r‖ / ‖A‖")
    rest.set_title("What rank r leaves out")
    rest.set_xlim(0, len(profile))
    for axes in (values, rest):
        axes.set_ylim(0, 1)
    plotting.label_ends(rest, ends)  # all end at 0: named in their order at a quarter of the rank
    return figure


@plotting.style()
def update_rank_picture(updates: Sequence[Mapping[str, Any]]) -> Figure:
    """Held-out loss with the update, or the tuned weights themselves, cut to each rank."""
    figure, axes = plotting.new(height=4.2)
    ranks = sorted(int(r) for r in updates[0]["update_losses"])
    ends = []
    for key, text, colour in (
        ("weight_losses", "tuned weights cut to rank r", plotting.BLUE),
        ("update_losses", "only the update cut to rank r", plotting.VERMILLION),
    ):
        for update in updates:
            by_rank = {int(r): loss for r, loss in update[key].items()}  # a record has its keys as words
            losses = [by_rank[r] for r in ranks]
            axes.plot(ranks, losses, color=colour, marker="o", markersize=4, alpha=0.8)
        ends.append(End(ranks[-1], losses[-1], text, colour))
    for key, text in (("before", "base"), ("after", "fine-tuned, full rank")):
        level = float(np.mean([u[key] for u in updates]))
        axes.axhline(level, color=plotting.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        ends.append(End(ranks[-1], level, f"{text} {level:.2f}", plotting.GREY))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(r) for r in ranks])
    axes.set_xlim(ranks[0], ranks[-1])
    axes.set_xlabel("rank r")
    axes.set_ylabel("held-out loss (nats a token)")
    axes.set_title("The update can be cut where the weights cannot")
    plotting.label_ends(axes, ends)
    return figure


@plotting.style()
def truncation_picture(runs: Sequence[Sequence[Mapping[str, Any]]], intact: Sequence[float], heal: int) -> Figure:
    """Loss above the base's against the share of the weights that is kept, a line a seed."""
    figure, axes = plotting.new(height=4.2)
    ends: list[End] = []
    for key, text, colour in (("plain", "plain", plotting.BLUE), ("aware", "activation-aware", plotting.VERMILLION)):
        for run, loss in zip(runs, intact, strict=True):
            kept = [100 * t["parameters"] for t in run]
            axes.plot(kept, [t[key] - loss for t in run], color=colour, marker="o", markersize=4, alpha=0.8)
            for t in run:
                healed = t[f"healed_{key}"]
                if healed is not None:
                    axes.scatter([100 * t["parameters"]], [healed - loss], color=colour, marker="D", s=40, zorder=3)
        ends.append(End(kept[-1], runs[-1][-1][key] - intact[-1], text, colour))
    axes.invert_xaxis()
    axes.set_xlabel("weights kept in the blocks (%); diamonds: the same after "
                    f"{heal} steps of training")  # fmt: skip
    axes.set_ylabel("loss above the base's (nats a token)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_title("Fewer parameters, and what they cost")
    plotting.label_ends(axes, ends)
    return figure
