"""Lesson 10's pictures: reward against KL, the way there, what the reward model knows, and what sweeps and forgetting
came to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lessons.common import plotting
from lessons.common.plotting import End

Curve = Sequence[Mapping[str, float]]

AXES = {
    "learnt": "learnt reward (σ of the start)",
    "true": "true reward (0 to 1)",
    "kl": "KL from the start (nats a response)",
}


def smooth(values: Sequence[float], span: int = 5) -> np.ndarray:
    """Means over `span` neighbours, fewer at the ends, so that a curve keeps its length."""
    half = span // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


@plotting.style()
def over_optimisation(curves: Mapping[str, Curve], best_of: Mapping[int, tuple[float, float, float]]) -> Figure:
    """Learnt and true reward against the distance that was paid for them.

    Parameters
    ----------
    curves : dict of str to curve
        A PPO run each: `learnt`, `true` and `kl` of every rollout.
    best_of : dict of int to (kl, learnt, true)
        Of the best of n.
    """
    figure, axes = plotting.new(1, 2, height=4.4)
    for place, (name, axis) in enumerate(zip(("learnt", "true"), axes, strict=True)):
        ends = []
        for colour, (label, curve) in zip(plotting.PALETTE, curves.items(), strict=False):
            kl, reward = (smooth([point[key] for point in curve]) for key in ("kl", name))
            axis.plot(kl, reward, color=colour)
            axis.scatter(kl[-1:], reward[-1:], color=colour, s=26, zorder=3)
            ends.append(End(kl[-1], reward[-1], label, colour))
        points = [(kl, (learnt, true)[place]) for kl, learnt, true in best_of.values()]
        axis.plot(*zip(*points, strict=True), color=plotting.GREY, marker="s", markersize=4, linewidth=1)
        ends.append(End(*points[-1], f"best of {max(best_of)}", plotting.GREY))
        axis.set_xlabel(AXES["kl"])
        axis.set_ylabel(AXES[name])
        axis.set_xlim(left=0)
        plotting.label_ends(axis, ends)
    axes[0].set_title("What is optimised")
    axes[1].set_title("What is meant")
    return figure


@plotting.style()
def training(curves: Mapping[str, Curve]) -> Figure:
    """True reward, learnt reward and KL of every rollout of PPO runs."""
    figure, axes = plotting.new(3, 1, height=7.2, sharex=True)
    for name, axis in zip(("true", "learnt", "kl"), axes, strict=True):
        ends = []
        for colour, (label, curve) in zip(plotting.PALETTE, curves.items(), strict=False):
            values = [point[name] for point in curve]
            x, y = np.arange(1, len(values) + 1), smooth(values)
            axis.plot(x, values, color=colour, linewidth=0.7, alpha=0.4)
            axis.plot(x, y, color=colour)
            ends.append(End(x[-1], y[-1], label, colour))
        axis.set_ylabel(AXES[name].replace(" (", "\n("))
        axis.set_xlim(1, max(2, *map(len, curves.values())))
        plotting.label_ends(axis, ends)
    axes[0].set_title("PPO, rollout by rollout")
    axes[-1].set_xlabel("iteration")
    return figure


@plotting.style()
def calibration(groups: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """What the reward model says of responses, against what they are worth.

    Parameters
    ----------
    groups : dict of str to (true, learnt)
        A panel each: rewards of responses, (n,).
    """
    figure, axes = plotting.new(1, len(groups), height=3.9, sharex=True, sharey=True, squeeze=False)
    for axis, colour, (name, (true, learnt)) in zip(axes[0], plotting.PALETTE, groups.items(), strict=False):
        axis.scatter(true, learnt, s=12, alpha=0.45, color=colour, linewidth=0)
        correlation = np.corrcoef(true, learnt)[0, 1] if np.std(true) and np.std(learnt) else math.nan
        axis.set_title(f"{name}\nr = {correlation:.2f}, mean true {np.mean(true):.2f}", fontsize=11)
        axis.set_xlabel(AXES["true"])
        axis.set_xlim(-0.03, 1.03)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[0, 0].set_ylabel(AXES["learnt"])
    return figure


@plotting.style()
def forgetting(paths: Mapping[str, Sequence[Sequence[tuple[float, float]]]]) -> Figure:
    """What each way to a better true reward costs in old knowledge.

    Parameters
    ----------
    paths : dict of str to list of paths
        One path a seed: points (true reward, change of the base's held-out loss).
    """
    figure, axis = plotting.new(height=4.2)
    ends = []
    for colour, (name, runs) in zip(plotting.PALETTE, paths.items(), strict=False):
        for run in runs:
            axis.plot(*zip(*run, strict=True), color=colour, marker="o", markersize=4, linewidth=1.3, alpha=0.8)
        last = max((run[-1] for run in runs), key=lambda point: point[0])
        ends.append(End(*last, name, colour))
    axis.set_xlabel(AXES["true"])
    axis.set_ylabel("held-out loss of the base's text,\nchange from the base (nats a token)")
    axis.set_title("What a better policy has forgotten")
    plotting.label_ends(axis, ends)
    return figure


@plotting.style()
def sweeps(results: Mapping[str, Mapping[str, Sequence[Any]]]) -> Figure:
    """True reward at the end of every variant, a dot a seed.

    Parameters
    ----------
    results : dict of str to dict of str to list of float
        Name of a sweep → name of a variant → true rewards.
    """
    names = [(sweep, variant) for sweep, variants in results.items() for variant in variants]
    figure, axis = plotting.new(height=1.0 + 0.29 * len(names))
    for row, (sweep, variant) in enumerate(names):
        colour = plotting.PALETTE[list(results).index(sweep) % len(plotting.PALETTE)]
        values = results[sweep][variant]
        axis.scatter(values, [row] * len(values), color=colour, s=30, alpha=0.75, linewidth=0, zorder=3)
        axis.scatter([np.mean(values)], [row], color=colour, marker="|", s=260, linewidth=2)
    axis.set_yticks(range(len(names)), [f"{sweep}: {variant}" for sweep, variant in names])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"{AXES['true']}, a dot a seed, the mean as a line")
    axis.set_title("What each choice comes to")
    return figure
