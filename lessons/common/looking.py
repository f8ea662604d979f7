"""Looking into a language model: where its heads look, which tokens it finds alike, what it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kernels.array import Array
from kernels.attention import attention_forward
from lessons.common import plotting
from lessons.common.plotting import End
from minigpt import GPT, Tokenizer


def attention_maps(model: GPT, ids: Sequence[int]) -> np.ndarray:
    """Attention probabilities of every head on one sentence, from the queries and keys as they pass by.

    Parameters
    ----------
    model : GPT
    ids : T integers

    Returns
    -------
    maps : (L, H, T, T)
        Row t: how much query t looks at each key.
    """
    H = model.config.n_head
    maps = []

    def watch(name: str, qkv: Array) -> None:
        if name.endswith("attn.c_attn"):
            _, T, C3 = qkv.shape
            q, k, v = qkv.reshape(1, T, 3, H, C3 // (3 * H)).transpose(2, 0, 3, 1, 4)  # three (1, H, T, D)
            _, cache = attention_forward(q, k, v)
            maps.append(model.backend.to_numpy(cache.weights[0]))

    model.forward(model.check_ids([list(ids)]), model.context(watch=watch))
    return np.stack(maps)


def neighbours(model: GPT, tokenizer: Tokenizer, counts: np.ndarray, words: int = 8, near: int = 5) -> list[list[str]]:
    """Frequent words, and the tokens whose embeddings point in the most similar direction.

    Parameters
    ----------
    model : GPT
    tokenizer : Tokenizer
    counts : (V,) integers
        How often each token occurs in the training text.

    Returns
    -------
    rows : list of [word, neighbour, …]
    """
    labels = [tokenizer.token_label(i) for i in range(tokenizer.vocab_size)]
    known = np.flatnonzero(counts >= 50)  # an embedding that was hardly ever trained is near nothing but by chance
    if not known.size:
        return []
    vectors = model.backend.to_numpy(model.wte.data)[known].astype(float)
    vectors -= vectors.mean(0)  # what all tokens share says nothing about any of them
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    by_frequency = known[np.argsort(-counts[known], kind="stable")]
    chosen = [i for i in by_frequency if labels[i][:1] == "␣" and labels[i][1:].isalpha() and len(labels[i]) > 4]
    rows = []
    for i in chosen[:: max(1, len(chosen) // words)][:words]:
        likeness = vectors @ vectors[np.searchsorted(known, i)]
        nearest = known[np.argsort(-likeness, kind="stable")[1 : near + 1]]
        rows.append([labels[i], *(labels[j] for j in nearest)])
    return rows


def samples(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], seed: int, length: int = 120
) -> list[dict[str, str]]:
    """What the model writes after each prompt, up to the end of the text, `length` tokens or its context's end.

    Of a prompt that would fill more than half of the context only the beginning is given.
    """
    end, room = tokenizer.eos_token_id, model.config.n_positions
    written = []
    for prompt in prompts:
        ids = [end, *tokenizer.encode(prompt)][: room // 2]
        new = model.generate(
            [ids], min(length, room - len(ids)), temperature=0.7, top_p=0.9, seed=seed, eos_token_id=end
        )[0, len(ids) :]
        stop = np.flatnonzero(new == end)
        text = tokenizer.decode(new[: stop[0] if stop.size else None].tolist())
        written.append({"prompt": tokenizer.decode(ids[1:]), "text": text})
    return written


def printable(text: str) -> str:
    """A model's text with what could disturb a terminal (control characters) made visible; line ends stay."""
    return "".join(c if c == "\n" or c.isprintable() else "·" for c in text)


def surprises(model: GPT, ids: Sequence[int]) -> np.ndarray:
    """How much each token but the first surprises a model that has read those before it: −log p, in nats.

    Their mean is the loss on this text.

    Parameters
    ----------
    model : GPT
    ids : T integers

    Returns
    -------
    surprises : (T − 1,)
    """
    logits = model.backend.to_numpy(model.logits([list(ids[:-1])]))[0].astype(float)  # (T − 1, V)
    shifted = logits - logits.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(ids) - 1), list(ids[1:])]


@plotting.style()
def surprise_picture(found: Mapping[str, np.ndarray], labels: Sequence[str]) -> Figure:
    """The surprise at each token of a sentence, for one model or two, and its mean: the loss.

    Parameters
    ----------
    found : dict of str to (T,)
        Name of a model → `surprises`.
    labels : T strings
        The tokens.
    """
    figure, ax = plotting.new(height=3.6)
    places, wide = np.arange(len(labels)), 0.8 / len(found)
    ends = []
    for number, (name, nats) in enumerate(found.items()):
        colour = plotting.PALETTE[number]
        ax.bar(places + (number - (len(found) - 1) / 2) * wide, nats, wide, color=colour)
        mean = float(nats.mean())
        ax.axhline(mean, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
        ends.append(End(len(labels) - 0.4, mean, f"{name}:\nmean {mean:.2f}", colour))
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.set_xticks(places, [plotting.drawable(label) for label in labels], rotation=90, family="DejaVu Sans Mono")
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("token, from left to right")
    ax.set_ylabel("surprise −log p (nats)")
    ax.set_title("How much each token surprises a model that has read those before it")
    plotting.label_ends(ax, ends, gap=30)
    return figure


@plotting.style()
def attention_picture(maps: np.ndarray, labels: Sequence[str]) -> Figure:
    """Attention of the head with most to show, with all heads beside it in small.

    Parameters
    ----------
    maps : (L, H, T, T)
    labels : T strings
    """
    L, H, T, _ = maps.shape
    chosen = choosy_head(maps)
    labels = [plotting.drawable(label) for label in labels]
    figure, axes = plotting.new(1, 2, height=4.9, gridspec_kw={"width_ratios": [1.25, 1]})
    large, overview = axes
    future = np.triu(np.ones((T, T), dtype=bool), 1)
    large.set_facecolor("#F2F2F2")
    image = large.imshow(np.ma.array(maps[chosen], mask=future), cmap=plotting.INTENSITY, vmin=0, vmax=1)
    large.text(T * 0.7, T * 0.3, "not to be seen:\nthe future", color=plotting.GREY, ha="center", va="center")
    large.set_xticks(range(T), labels, rotation=90, family="DejaVu Sans Mono", fontsize=8)
    large.set_yticks(range(T), labels, family="DejaVu Sans Mono", fontsize=8)
    large.set_xlabel("token looked at")
    large.set_ylabel("token that looks, to predict the next")
    large.set_title("Block {}, head {}".format(*chosen))
    bar = figure.colorbar(image, ax=large, location="top", shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("attention (each row adds up to 1)", fontsize=9)
    bar.outline.set_visible(False)
    wide = T + 2
    sheet = np.full((L * wide - 2, H * wide - 2), np.nan)
    for layer, head in np.ndindex(L, H):
        sheet[layer * wide : layer * wide + T, head * wide : head * wide + T] = maps[layer, head]
    overview.imshow(sheet, cmap=plotting.INTENSITY, vmin=0, vmax=1)
    middles = np.arange(max(L, H)) * wide + (T - 1) / 2
    overview.set_xticks(middles[:H], [f"head {i}" for i in range(H)])
    overview.set_yticks(middles[:L], [f"block {i}" for i in range(L)])
    overview.set_title("All heads on this sentence")
    corner = (chosen[1] * wide - 1, chosen[0] * wide - 1)
    overview.add_patch(
        Rectangle(corner, T + 1, T + 1, fill=False, edgecolor=plotting.VERMILLION, linewidth=2, clip_on=False)
    )
    for ax in axes:
        ax.grid(False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure


def choosy_head(maps: np.ndarray) -> tuple[int, int]:
    """The head whose choice depends most on the token that looks: not one that always takes the same few.

    Parameters
    ----------
    maps : (L, H, T, T)

    Returns
    -------
    block, head : int
    """
    T = maps.shape[-1]
    back = np.tril(maps, -1)
    usual = back.sum(-2) / np.maximum(1, T - 1 - np.arange(T))  # (L, H, T): what each key gets on average
    surprise = np.tril(back - usual[:, :, None, :], -1)
    return divmod(int(surprise.max(-1).mean(-1).argmax()), maps.shape[1])


@plotting.style()
def model_picture() -> Figure:
    """The GPT as a chain from token ids to logits, with what is inside a block and the shapes on the way."""
    figure, ax = plotting.new(height=3.0)
    stream, above = 0.0, 1.5

    def box(x: float, y: float, text: str, colour: str) -> None:
        style = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": colour, "linewidth": 1.4}
        ax.text(x, y, text, ha="center", va="center", fontsize=8, bbox=style, zorder=3)

    def arrow(points: Sequence[tuple[float, float]], colour: str = plotting.GREY, width: float = 1.2) -> None:
        xs, ys = zip(*points[:-1], strict=True)
        ax.plot(xs, ys, color=colour, linewidth=width, solid_capstyle="butt", zorder=1)
        ax.annotate(
            "", xy=points[-1], xytext=points[-2], zorder=1,
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip

    ax.add_patch(Rectangle((2.62, -0.85), 7.5, 3.1, facecolor="#F3F5F7", edgecolor=plotting.GREY, linewidth=0.8))
    ax.text(2.75, 2.02, "a block, L times one after the other", fontsize=9, va="center", color=plotting.BLACK)
    joints = (5.65, 9.75)
    for start, end in zip((1.7, joints[0] + 0.17, joints[1] + 0.17), (*(j - 0.17 for j in joints), 10.5), strict=True):
        arrow([(start, stream), (end, stream)], plotting.BLUE, 2.4)
    for x, left, first in zip(joints, (2.85, 6.1), (3.45, 6.7), strict=True):
        box(first, above, "Layer-\nNorm", plotting.GREEN)
        arrow([(left, stream), (left, above), (first - 0.36, above)])
        arrow([(x, above), (x, stream + 0.17)])
        circle = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": plotting.BLUE, "linewidth": 1.4}
        ax.text(x, stream, "+", ha="center", va="center", fontsize=11, zorder=3, bbox=circle)
    box(4.72, above, "attention\nq k v, mix, proj", plotting.VERMILLION)
    ax.plot([3.8, joints[0]], [above, above], color=plotting.GREY, linewidth=1.2, zorder=1)
    for x, text in ((7.52, "fc\nC → 4C"), (8.31, "GELU"), (9.1, "proj\n4C → C")):
        box(x, above, text, plotting.PURPLE)
    ax.plot([7.05, joints[1]], [above, above], color=plotting.GREY, linewidth=1.2, zorder=1)
    ax.text(8.31, 0.86, "MLP, each token by itself", ha="center", fontsize=8, color=plotting.PURPLE)
    ax.text(4.4, 0.86, "looks at other tokens", ha="center", fontsize=8, color=plotting.VERMILLION)

    box(0.0, stream, "ids", plotting.BLACK)
    arrow([(0.25, stream), (0.68, stream)])
    box(1.2, stream, "wte[id]\n+ wpe[place]", plotting.BLUE)
    box(10.85, stream, "Layer-\nNorm", plotting.GREEN)
    arrow([(11.21, stream), (11.48, stream)])
    box(11.85, stream, "· wteᵀ", plotting.BLUE)
    arrow([(12.25, stream), (12.6, stream)])
    box(12.97, stream, "logits", plotting.BLACK)
    for x, text in ((0.0, "(B, T)"), (1.2, "(B, T, C)"), (6.0, "the residual stream (B, T, C)"), (12.97, "(B, T, V)")):
        ax.text(x, -0.58, text, ha="center", fontsize=8, color=plotting.BLUE if "stream" in text else plotting.GREY)
    ax.set_xlim(-0.45, 13.45)
    ax.set_ylim(-0.95, 2.35)
    ax.set_title("From token ids to logits")
    ax.axis("off")
    return figure
