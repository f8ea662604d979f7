"""The pictures of lesson 12 (quantisation); each takes what the lesson's record has under the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lessons.common import plotting
from lessons.common.plotting import End
from lessons.common.table import deviation

COLOURS = {"full": plotting.BLUE, "lora": plotting.VERMILLION, "qlora": plotting.GREEN}


@plotting.style()
def levels_picture(codebooks: Mapping[str, np.ndarray]) -> Figure:
    """Where the levels of each 4-bit format lie, under the distribution of normal weights in blocks of 64."""
    figure, (density, ticks) = plotting.new(
        2, 1, height=4.0, sharex=True, gridspec_kw={"height_ratios": [2, 1.2]}
    )  # fmt: skip
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((4000, 64))
    scaled = (blocks / np.abs(blocks).max(1, keepdims=True)).ravel()
    density.hist(scaled, bins=161, range=(-1, 1), density=True, color=plotting.SKY, linewidth=0)
    density.set_ylabel("density")
    density.set_title("Normal weights, each divided by its block's largest, and the levels for them")
    formats = [(n, codebooks[n]) for n in ("nf4", "fp4", "int4")]
    for row, ((name, levels), colour) in enumerate(zip(formats, plotting.PALETTE, strict=False)):
        ticks.vlines(levels, row - 0.35, row + 0.35, color=colour, linewidth=2)
        ticks.text(1.03, row, name.upper() if name != "int4" else name, color=colour, va="center")
    ticks.set_yticks([])
    ticks.set_ylim(len(formats) - 0.4, -0.6)
    ticks.grid(visible=False)
    ticks.spines["left"].set_visible(False)
    ticks.set_xlim(-1.02, 1.02)
    ticks.set_xlabel("w / absmax")
    return figure


@plotting.style()
def block_picture(block: np.ndarray, again: np.ndarray, levels: np.ndarray) -> Figure:
    """A block of weights before and after rounding, over the levels that its scale leaves it.

    Parameters
    ----------
    block, again : (n,)
        The weights, and what their codes and their scale give.
    levels : (k,)
        In [−1, 1].
    """
    figure, axes = plotting.new(height=3.6)
    largest = int(np.abs(block).argmax())
    others = np.arange(len(block)) != largest
    error = np.linalg.norm((again - block)[others]) / np.linalg.norm(block[others])
    places = np.arange(len(block))
    axes.hlines(levels * abs(block[largest]), -1, len(block), color="#D9D9D9", linewidth=0.8)
    axes.vlines(places, block, again, color=plotting.VERMILLION, linewidth=1.2)
    axes.scatter(places, block, s=16, facecolor="white", edgecolor=plotting.GREY, zorder=3)
    axes.scatter(places, again, s=12, color=plotting.VERMILLION, linewidth=0, zorder=4)
    axes.grid(visible=False)
    axes.set_xlim(-1, len(block))
    axes.set_xlabel(f"place in the block of {len(block)}")
    axes.set_ylabel("weight")
    axes.set_title(f"Largest weight {abs(block[largest]):.2f}: the others are off by {error:.1%} of their size")
    plotting.label_ends(
        axes,
        [
            End(len(block), levels[-1] * abs(block[largest]), "levels", plotting.GREY),
            End(len(block), 0.0, "○ weight", plotting.GREY),
            End(len(block), 0.0, "● rounded", plotting.VERMILLION),
        ],
    )
    return figure


@plotting.style()
def usage_picture(scaled: np.ndarray, codebooks: Mapping[str, np.ndarray]) -> Figure:
    """How often weights use each level of a format, a panel a format.

    A bar stands over all the numbers that are rounded to its level. The more equal the bars, the more a code says: with
    H bits of entropy, a format's codes say as much as 2^H levels that are used equally often.

    Parameters
    ----------
    scaled : (n,)
        Weights, each divided by the largest of its block.
    codebooks : dict of str to (k,)
        Name of a format → its levels, rising.
    """
    figure, panels = plotting.new(len(codebooks), 1, height=0.8 + 1.35 * len(codebooks), sharex=True, sharey=True)
    for panel, (name, levels), colour in zip(panels, codebooks.items(), plotting.PALETTE, strict=False):
        edges = np.concatenate(([-1.0], (levels[1:] + levels[:-1]) / 2, [1.0]))
        shares = np.histogram(scaled, edges)[0] / len(scaled)
        used = shares[shares > 0]
        alike = 2 ** -float((used * np.log2(used)).sum())
        panel.bar(edges[:-1], 100 * shares, np.diff(edges), align="edge", color=colour, edgecolor="white", alpha=0.75)
        panel.plot(levels, np.zeros(len(levels)), "|", color=plotting.BLACK, markersize=9, clip_on=False)
        panel.axhline(100 / len(levels), color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)))
        panel.set_title(f"{name}: as good as {alike:.1f} levels used equally often", fontsize=10, pad=4)
    panels[len(panels) // 2].set_ylabel("share of the weights (%)")
    panels[-1].set_xlim(-1.02, 1.02)
    panels[-1].set_xlabel("w / absmax; a tick: a level")
    return figure


@plotting.style()
def formats_picture(rows: Sequence[Mapping[str, Any]], intact: float) -> Figure:
    """Bits, error and added loss of every format, a row a format, the cheapest below."""
    ordered = sorted(rows, key=lambda r: -r["bits"])
    figure, panels = plotting.new(1, 3, height=1.2 + 0.34 * len(rows), sharey=True)
    columns = (
        ("bits a weight", [r["bits"] for r in ordered], "{:.2f}"),
        ("error (% of the weights)", [100 * r["error"] for r in ordered], "{:.1f}"),
        ("loss added (nats a token)", [r["loss"] - intact for r in ordered], "{:.3f}"),
    )
    for axes, (label, values, form) in zip(panels, columns, strict=True):
        colours = [plotting.VERMILLION if r["name"].startswith("NF4") else plotting.BLUE for r in ordered]
        axes.barh(range(len(ordered)), values, color=colours, height=0.6)
        widest = max(values)
        for row, value in enumerate(values):
            axes.text(max(value, 0.0) + 0.02 * widest, row, form.format(value), va="center", size=9)
        axes.set_xlim(min(0.0, *values), 1.3 * widest)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(ordered)), [r["name"] for r in ordered])
    panels[0].set_ylim(len(ordered) - 0.4, -0.6)
    return figure


@plotting.style()
def methods_picture(scores: Mapping[str, Mapping[str, Sequence[float]]], labels: Mapping[str, bool]) -> Figure:
    """Every seed's score on each task, a row a method.

    Parameters
    ----------
    scores : task → method → values
    labels : dict of str to bool
        Whether a task has labels (accuracy) or completions (loss).
    """
    figure, panels = plotting.new(1, len(scores), height=2.6, squeeze=False)
    for axes, (task, by_method) in zip(panels[0], scores.items(), strict=True):
        for row, (name, values) in enumerate(by_method.items()):
            axes.scatter(values, [row] * len(values), color=COLOURS[name], s=40, alpha=0.75, linewidth=0, zorder=3)
            if len(values) > 1:
                mean = float(np.mean(values))
                axes.plot([mean - deviation(values), mean + deviation(values)], [row + 0.22] * 2, color=COLOURS[name])
        axes.set_yticks(range(len(by_method)), list(by_method))
        axes.set_ylim(len(by_method) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("accuracy" if labels[task] else "held-out loss (nats a token)")
        axes.set_title(task)
    return figure


@plotting.style()
def memory_picture(costs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Memory of a training step as stacked bars: what the method decides about, and the activations."""
    figure, (held, activations) = plotting.new(1, 2, height=3.0, sharey=True, gridspec_kw={"width_ratios": [2.2, 1]})
    parts = (("weights", plotting.BLUE), ("gradients", plotting.VERMILLION), ("optimizer", plotting.GREEN))
    totals = [sum(cost[part] for part, _ in parts) / 1e6 for cost in costs.values()]
    for row, (cost, total) in enumerate(zip(costs.values(), totals, strict=True)):
        start = 0.0
        for part, colour in parts:
            size = cost[part] / 1e6
            held.barh(row, size, left=start, color=colour, height=0.7)
            if size > 0.14 * max(totals):
                name = f"{part}\n{size:.2f}" if row == 0 else f"{size:.2f}"
                held.text(start + size / 2, row, name, color="white", ha="center", va="center", size=9)
            start += size
        held.text(start + 0.01 * max(totals), row, f"{total:.2f}", va="center")
    sizes = [cost["activations"] / 1e6 for cost in costs.values()]
    activations.barh(range(len(sizes)), sizes, color="#BFBFBF", height=0.7)
    for row, size in enumerate(sizes):
        activations.text(size / 2, row, f"{size:.2f}", ha="center", va="center")
    held.set_yticks(range(len(costs)), list(costs))
    held.invert_yaxis()
    held.set_xlim(0, 1.15 * max(totals))
    for axes, title in ((held, "Weights, gradients, optimizer"), (activations, "Activations")):
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("memory of a training step (MB)" if axes is held else "MB")
        axes.set_title(title)
    return figure
