"""Pictures of rankings: what they pick, how well their choice can be fine-tuned, and which groups carry a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lessons.common import plotting
from lessons.common.forest import spearman
from lessons.common.groups import Groups, Study, compared
from lessons.common.masked import Masks
from lessons.common.plotting import End

KINDS = {
    "token embedding": ("wte",),
    "position embedding": ("wpe",),
    "attention": ("q", "k", "v", "attn-out"),
    "MLP": ("fc", "proj"),
    "LayerNorm": ("ln_1", "ln_2", "ln_f"),
}
"""What the groups of a layer add up to."""


def shares(masks: Masks, groups: Groups) -> dict[str, dict[str, float]]:
    """How the selected entries are spread: place in the model (embeddings, layer, end) → kind → share.

    Parameters
    ----------
    masks : Masks
    groups : Groups

    Returns
    -------
    shares : dict of str to dict of str to float
        All of them add up to 1.
    """
    counts = np.zeros(len(groups.names))
    for name, mask in masks.items():
        counts += np.bincount(groups.member[name][mask], minlength=len(groups.names))
    found: dict[str, dict[str, float]] = {}
    for name, count in zip(groups.names, counts / counts.sum(), strict=True):
        layer, _, part = name.rpartition(" ")
        place = f"layer {layer}" if layer else "end" if part == "ln_f" else "embeddings"
        kind = next(kind for kind, parts in KINDS.items() if part in parts)
        row = found.setdefault(place, dict.fromkeys(KINDS, 0.0))
        row[kind] += float(count)
    return found


@plotting.style()
def entries_picture(gradient: np.ndarray, chosen: Mapping[str, np.ndarray], name: str, parts: Sequence[str]) -> Figure:
    """One matrix: the size of its gradient, and which of its entries each ranking picks.

    Parameters
    ----------
    gradient : (in, out)
    chosen : dict of str to (in, out) bool
        Ranking → mask.
    name : str
        Of the matrix.
    parts : sequence of str
        What the columns make, in parts of equal width.
    """
    rows, columns = gradient.shape
    lines = (len(chosen) + 2) // 2
    figure, axes = plotting.new(lines, 2, height=0.6 + lines * (0.75 + 3.7 * rows / columns), squeeze=False)
    every = list(axes.flat)
    size = np.abs(gradient)
    every[0].imshow(size, cmap=plotting.INTENSITY, vmin=0, vmax=np.quantile(size, 0.995), aspect="auto")
    every[0].set_title(f"|∂L/∂w| of {name}", fontsize=10)
    for panel, (ranking, mask) in zip(every[1:], chosen.items(), strict=False):
        row, column = np.nonzero(mask)
        panel.scatter(column, row, s=3, color=plotting.VERMILLION, linewidth=0)
        panel.set_xlim(-0.5, columns - 0.5)
        panel.set_ylim(rows - 0.5, -0.5)
        panel.set_title(f"{ranking}: {mask.sum():,} entries", fontsize=10)
    for panel in every[len(chosen) + 1 :]:
        panel.remove()
    wide = columns / len(parts)
    for panel in every[: len(chosen) + 1]:
        panel.set_xticks([(i + 0.5) * wide - 0.5 for i in range(len(parts))], list(parts))
        panel.tick_params(axis="x", length=0)
        for i in range(1, len(parts)):
            panel.axvline(i * wide - 0.5, color=plotting.GREY, linewidth=0.8)
        panel.set_yticks([])
        panel.grid(visible=False)
        panel.set_ylabel("inputs", fontsize=9)
        panel.set_xlabel("outputs", fontsize=9)
    return figure


@plotting.style()
def disagreement_picture(each: np.ndarray) -> Figure:
    """Two entries of a matrix with about the same Fisher score, example by example: one on which the examples agree,
    one on which they cancel.

    Parameters
    ----------
    each : (n, in, out)
        Gradient of each example's log-probability alone, summed over its tokens.
    """
    mean, squares = each.mean(0), (each**2).mean(0)
    cancel = np.where(np.abs(mean) < np.median(np.abs(mean)), squares, 0.0).argmax()
    ratio = squares / squares.flat[cancel]
    agree = np.where((ratio > 0.8) & (ratio < 1.25), np.abs(mean), 0.0).argmax()
    figure, panels = plotting.new(1, 2, height=3.6, sharey=True)
    for panel, place, title in zip(panels, (agree, cancel), ("They agree", "They cancel"), strict=True):
        values = each.reshape(len(each), -1)[:, place]
        colours = [plotting.BLUE if v > 0 else plotting.VERMILLION for v in values]
        panel.bar(range(len(values)), values, color=colours, width=0.75)
        panel.axhline(values.mean(), color=plotting.BLACK, linewidth=1.4, linestyle=(0, (4, 3)))
        panel.axhline(0, color="#4D4D4D", linewidth=0.8)
        panel.set_title(f"{title}: |mean| {abs(values.mean()):.3g}, Fisher {np.mean(values**2):.3g}", fontsize=10)
        panel.set_xlabel("example")
        panel.set_xticks([])
        panel.grid(axis="x", visible=False)
    panels[0].set_ylabel("gradient of one entry")
    return figure


@plotting.style()
def shares_picture(picked: Mapping[str, Mapping[str, Mapping[str, float]]], density: float) -> Figure:
    """For each ranking a histogram of its choice over the model, bottom to top, coloured by kind."""
    columns = 4
    lines = -(-len(picked) // columns)
    figure, axes = plotting.new(lines, columns, height=1.0 + 2.3 * lines, sharex=True, sharey=True, squeeze=False)
    every = list(axes.flat)
    for panel, (score, places) in zip(every, picked.items(), strict=False):
        left = np.zeros(len(places))
        for colour, kind in zip(plotting.PALETTE, KINDS, strict=False):
            part = 100 * np.array([row[kind] for row in places.values()])
            panel.barh(range(len(places)), part, left=left, color=colour, height=0.75)
            left += part
        panel.set_yticks(range(len(places)), list(places))
        panel.grid(axis="y", visible=False)
        panel.set_title(score.replace(", ", ",\n"), fontsize=10)
    for panel in every[len(picked) :]:
        panel.remove()
    for panel in axes[-1]:
        panel.set_xlabel("% of the selected", fontsize=9)
    handles = [Patch(color=colour) for colour, _ in zip(plotting.PALETTE, KINDS, strict=False)]
    figure.legend(handles, list(KINDS), loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=9)
    figure.suptitle(f"Which {100 * density:g} % of the entries each ranking picks", x=0.01, ha="left", weight="bold")
    return figure


@plotting.style()
def sweep_picture(
    results: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    lines: Mapping[str, Mapping[str, float]],
    units: Mapping[str, str],
) -> Figure:
    """One panel a task: the figure over the density, one line a ranking, a dot a seed.

    Parameters
    ----------
    results : task → ranking → density → values, one a seed
    lines : task → name → value
        Drawn across, such as full fine-tuning.
    units : task → label of the vertical axis
    """
    figure, panels = plotting.new(1, len(results), height=4.6, squeeze=False)
    for panel, (task, by_score) in zip(panels[0], results.items(), strict=True):
        ends, last = [], 0.0
        for colour, (score, by_density) in zip(plotting.PALETTE, by_score.items(), strict=False):
            densities = sorted(by_density)
            means = [float(np.mean(by_density[d])) for d in densities]
            panel.plot([100 * d for d in densities], means, color=colour, marker="o", markersize=4)
            for d in densities:
                dots = [100 * d] * len(by_density[d])
                panel.scatter(dots, by_density[d], color=colour, s=10, alpha=0.5, linewidth=0, zorder=3, clip_on=False)
            last = max(last, 100 * densities[-1])
            ends.append(End(100 * densities[-1], means[-1], score, colour))
        for name, value in lines[task].items():
            panel.axhline(value, color=plotting.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
            panel.annotate(
                name, (0.02, value), xycoords=panel.get_yaxis_transform(), xytext=(0, 3), textcoords="offset points",
                color=plotting.GREY, fontsize=9,
            )  # fmt: skip
        panel.margins(y=0.12)  # room for the names of lines that end together
        panel.set_xscale("log")
        panel.set_xlim(right=last)
        panel.set_xticks(sorted({100 * d for by in by_score.values() for d in by}))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_xlabel("trained entries (% of the model)")
        panel.set_ylabel(units[task])
        panel.set_title(task)
        plotting.label_ends(panel, ends, gap=12)
    return figure


@plotting.style()
def halves_picture(a: Study, most: int = 6) -> Figure:
    """What a forest learns from, the losses with and without each group's change; and its ranking beside another.

    Parameters
    ----------
    a : Study
        With its masks and losses.
    most : int
        Groups to show, and the dummy.
    """
    figure, (dots, ranks) = plotting.new(1, 2, height=4.4, gridspec_kw={"width_ratios": [1.35, 1]})
    rng = np.random.default_rng(0)
    chosen = [*a.order[:most], len(a.names) - 1]
    for row, group in enumerate(chosen):
        for bit, colour, offset in ((0, plotting.VERMILLION, -0.19), (1, plotting.BLUE, 0.19)):
            losses = a.losses[a.masks[:, group] == bit]
            dots.scatter(losses, row + offset + rng.uniform(-0.12, 0.12, len(losses)), s=6, color=colour, alpha=0.5,
                         linewidth=0)  # fmt: skip
            if len(losses):
                dots.plot([losses.mean()] * 2, [row + offset - 0.18, row + offset + 0.18], color="black", linewidth=1.6)
    dots.set_yticks(range(len(chosen)), [a.names[i] for i in chosen])
    dots.set_ylim(len(chosen) - 0.5, -0.9)
    dots.grid(axis="y", visible=False)
    dots.set_xlabel("loss with a random half of the change (nats)")
    dots.set_title("One dot a mask")
    for x, words, colour in (
        (0.02, "without the group's change", plotting.VERMILLION),
        (0.6, "with it", plotting.BLUE),
    ):
        dots.text(x, -0.72, words, color=colour, va="center", fontsize=9, transform=dots.get_yaxis_transform())

    forest, other = a.importance.mean[:-1], compared(a)["leave one out"]
    places = [np.argsort(np.argsort(-v, kind="stable"), kind="stable") + 1 for v in (forest, other)]
    ranks.plot([1, len(forest)], [1, len(forest)], color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)))
    ranks.scatter(*places, s=30, color=plotting.GREEN, linewidth=0, zorder=3)
    for i in a.order[:most]:
        ranks.annotate(a.names[i], (places[0][i], places[1][i]), xytext=(6, -3), textcoords="offset points", fontsize=9)
    for axis in (ranks.xaxis, ranks.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ranks.invert_xaxis()
    ranks.invert_yaxis()
    ranks.set_xlabel("rank by the forest (1: most important)")
    ranks.set_ylabel("rank by leaving it alone out")
    ranks.set_title(f"Rank correlation {spearman(forest, other):.2f}")
    return figure


@plotting.style()
def ranking_picture(a: Study, proof: Mapping[str, Sequence[float]], unit: str, most: int = 12) -> Figure:
    """The most important groups with their intervals, what other rankings say of them, and the proof."""
    figure, (bars, others, ends) = plotting.new(1, 3, height=4.8, gridspec_kw={"width_ratios": [1.1, 0.8, 1.0]})
    chosen = [*a.order[:most], len(a.names) - 1]
    places = np.arange(len(chosen))
    mean, low, high = (v[chosen] for v in a.importance)
    bars.barh(places, mean, color=plotting.BLUE, height=0.7)
    bars.hlines(places, low, high, color=plotting.BLACK, linewidth=1.2)
    bars.set_yticks(places, [a.names[i] for i in chosen])
    bars.set_ylim(len(chosen) - 0.4, -0.6)
    bars.grid(axis="y", visible=False)
    bars.set_xlabel("fall of R² when permuted")
    bars.set_title("Forest")

    rankings = compared(a)
    share = np.array([100 * v / v.sum() for v in rankings.values()]).T[a.order[:most]]
    others.imshow(share, cmap=plotting.INTENSITY, aspect="auto", vmin=0)
    for (row, column), value in np.ndenumerate(share):
        colour = "white" if value > 0.6 * share.max() else plotting.BLACK
        others.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    others.set_ylim(len(chosen) - 0.4, -0.6)  # the same rows as the bars
    others.set_xticks(range(len(rankings)), [name.replace(" ", "\n") for name in rankings], fontsize=8)
    others.set_yticks([])
    others.grid(visible=False)
    others.set_xlabel("% of its sum", fontsize=9)
    others.set_title("Others")

    for row, title in enumerate(sorted(proof)):  # the order of a record, and so of any two pictures
        values, colour = proof[title], plotting.PALETTE[row % len(plotting.PALETTE)]
        ends.scatter(values, [row] * len(values), color=colour, s=30, alpha=0.7, linewidth=0, zorder=3)
        ends.scatter([float(np.mean(values))], [row], color=colour, marker="|", s=300, linewidth=2)
    ends.set_yticks(range(len(proof)), sorted(proof), fontsize=9)
    ends.invert_yaxis()
    ends.grid(axis="y", visible=False)
    ends.set_xlabel(unit)
    ends.set_title("Proof")
    return figure
