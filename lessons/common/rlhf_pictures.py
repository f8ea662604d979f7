"""Lesson 10's pictures: what a price on the KL does, what a token is worth, PPO's clipped loss; reward against KL, the
way there, what the reward model knows, and what sweeps and forgetting came to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lessons.common import plotting
from lessons.common.plotting import End
from lessons.common.rlhf import best_of_kl

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


LIKELY = np.array([0.30, 0.24, 0.17, 0.12, 0.08, 0.05, 0.03, 0.01])
LEARNT = np.array([0.00, 0.15, 0.35, 0.55, 0.75, 0.85, 0.93, 1.00])
TRUE = np.array([0.10, 0.30, 0.50, 0.70, 0.85, 0.95, 0.40, 0.05])
"""Eight made-up responses to one prompt: how likely they are at the start, and their rewards. Those that the start
hardly ever writes are those of which the reward model has seen least, and it is wrong about the last two."""


def tilted(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """The policy that is best for a reward under a price on the KL: π = π_ref exp(r/β)/Z.

    Parameters
    ----------
    reference, rewards : (n,)
        Probability and reward of each response.
    beta : float
        Above 0.

    Returns
    -------
    policy : (n,)

    References
    ----------
    Rafailov et al. (2023), arXiv:2305.18290, eq. 4.
    """
    policy = reference * np.exp((rewards - rewards.max()) / beta)
    return policy / policy.sum()


@plotting.style()
def price_picture(beta: float) -> Figure:
    """What the best policy under a price on the KL does with eight made-up responses.

    Parameters
    ----------
    beta : float
        The price, above 0.
    """
    policy = tilted(LIKELY, LEARNT, beta)
    kl = float((policy * np.log(np.maximum(policy, 1e-300) / LIKELY)).sum())
    figure, (chances, rewards) = plotting.new(2, 1, height=4.2, sharex=True, gridspec_kw={"height_ratios": [1.5, 1]})
    places = np.arange(len(LIKELY))
    chances.bar(places - 0.2, LIKELY, 0.38, color="#BFBFBF")
    chances.bar(places + 0.2, policy, 0.38, color=plotting.BLUE)
    chances.set_ylim(0, 1)
    chances.set_ylabel("probability")
    chances.set_title(
        f"β = {beta:g}: KL {kl:.2f} nats, learnt reward {policy @ LEARNT:.2f}, true reward {policy @ TRUE:.2f}"
    )
    chances.text(0.02, 0.9, "before", color=plotting.GREY, transform=chances.transAxes)
    chances.text(0.12, 0.9, "after", color=plotting.BLUE, weight="bold", transform=chances.transAxes)
    rewards.plot(places, LEARNT, color=plotting.BLACK, marker="o", markersize=4)
    rewards.plot(places, TRUE, color=plotting.VERMILLION, marker="o", markersize=4)
    rewards.set_ylim(-0.08, 1.08)
    rewards.set_ylabel("reward")
    rewards.set_xticks(places, [str(place + 1) for place in places])
    rewards.set_xlim(-0.6, len(places) - 0.4)
    rewards.set_xlabel("response, the most likely first")
    plotting.label_ends(
        rewards,
        [End(places[-1], 1.0, "learnt", plotting.BLACK), End(places[-1], TRUE[-1], "true", plotting.VERMILLION)],
    )
    return figure


@plotting.style()
def credit_picture(gae: Callable[..., tuple[Any, Any]], lams: Sequence[float] = (0.0, 0.5, 0.95, 1.0)) -> Figure:
    """Which tokens of a response get the credit for its score, with different λ.

    Left the weight of a surprise so many tokens ahead; right what each token of a made-up response is worth, whose
    score of 1 comes at the end, and of which the values know halfway that it will be good.

    Parameters
    ----------
    gae : (rewards, values, mask, gamma, lam) -> (advantages, returns)
        The lesson's.
    lams : sequence of float
    """
    T, turn = 12, 7
    rewards, values = np.zeros((1, T)), np.zeros((1, T))
    rewards[0, -1], values[0, turn:] = 1.0, 0.7
    figure, (weights, worth) = plotting.new(1, 2, height=3.8)
    ahead, places = np.arange(T), np.arange(1, T + 1)
    ends: tuple[list[End], list[End]] = [], []
    for lam, colour in zip(lams, plotting.PALETTE, strict=False):
        heights = np.power(lam, ahead)
        advantages = gae(rewards, values, np.ones((1, T), bool), 1.0, lam)[0][0]
        weights.plot(ahead, heights, color=colour, marker="o", markersize=3.5)
        worth.plot(places, advantages, color=colour, marker="o", markersize=3.5)
        for where, axis_ends, x, y in ((weights, ends[0], ahead, heights), (worth, ends[1], places, advantages)):
            axis_ends.append(End(x[-1], y[-1], f"λ = {lam:g}" if where is weights else "", colour))
    plotting.label_ends(weights, ends[0])
    worth.axvline(turn + 0.5, color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)))
    worth.text(turn + 0.65, 1.08, "from here on\nV = 0.7", color=plotting.GREY, va="top", fontsize=9)
    worth.set_ylim(-0.08, 1.12)
    weights.set_xlabel("tokens until the surprise δ")
    weights.set_ylabel("its weight (γλ)ˡ, with γ = 1")
    weights.set_title("How far back a surprise counts")
    worth.set_xlabel("token of the response")
    worth.set_ylabel("advantage A")
    worth.set_title("A score of 1 after the last token")
    return figure


@plotting.style()
def clip_picture(
    forward: Callable[..., tuple[float, Any]], backward: Callable[[Any], Any], clip: float = 0.2
) -> Figure:
    """PPO's loss of a single token over the ratio ρ, and what pulls at it, for a good token and a bad one.

    Parameters
    ----------
    forward : (logprobs, old, advantages, mask, clip) -> (loss, cache)
    backward : cache -> dlogprobs
        The lesson's loss and its gradient.
    clip : float
        ε.
    """
    ratios = np.linspace(0.4, 1.8, 281)
    figure, axes = plotting.new(2, 2, height=5.0, sharex=True, sharey="row")
    one = np.array([[True]])
    for column, (advantage, title) in zip(
        axes.T, ((1.0, "A good token: A = 1"), (-1.0, "A bad one: A = −1")), strict=True
    ):
        losses, pulls = [], []
        for ratio in ratios:
            loss, cache = forward(np.log([[ratio]]), np.zeros((1, 1)), np.array([[advantage]]), one, clip)
            losses.append(loss)
            pulls.append(-float(backward(cache)[0, 0]))
        for axis, values, colour in zip(column, (losses, pulls), (plotting.BLUE, plotting.VERMILLION), strict=True):
            axis.axvspan(1 - clip, 1 + clip, color="#F0F0F0")
            axis.plot(ratios, values, color=colour)
            axis.axvline(1, color=plotting.GREY, linewidth=1, linestyle=(0, (4, 3)))
        column[0].plot(ratios, -advantage * ratios, color=plotting.BLUE, linewidth=1, linestyle=(0, (1, 2)))
        column[1].axhline(0, color=plotting.GREY, linewidth=1)
        column[0].set_title(title)
        column[1].set_xlabel("ratio ρ = π(a)/π_old(a)")
    axes[0, 0].set_ylabel("loss (dotted: not clipped)")
    axes[1, 0].set_ylabel("pull on log π(a),\n−∂L/∂ log π")
    axes[1, 0].text(1, axes[1, 0].get_ylim()[0], " start", color=plotting.GREY, va="bottom", fontsize=9)
    return figure


def averaged(results: Mapping[str, Any], names: Mapping[str, str]) -> tuple[dict[str, Curve], dict[int, Any]]:
    """What `over_optimisation` and `training` draw, from a record's ``results``: means over its seeds.

    Parameters
    ----------
    results : dict
        With ``arms`` and ``best_of``, a seed each.
    names : dict of str to str
        What to call a curve → the name of the PPO run.

    Returns
    -------
    curves : dict of str to curve
    best_of : dict of int to (kl, learnt, true)
    """
    curves: dict[str, Curve] = {}
    for label, name in names.items():
        runs = [arms[name]["curve"] for arms in results["arms"]]
        curves[label] = [
            {key: float(np.mean([point[key] for point in points])) for key in AXES}
            for points in zip(*runs, strict=True)
        ]
    best_of = {}
    for n in sorted(results["best_of"][0], key=int):
        true, learnt = np.mean([seed[n] for seed in results["best_of"]], axis=0)
        best_of[int(n)] = (best_of_kl(int(n)), float(learnt), float(true))
    return curves, best_of


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
        for name_of in axis.texts:  # a line may end under another one
            name_of.set_path_effects([withStroke(linewidth=3, foreground="white")])
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
    axes[-1].set_xlabel("rollout")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
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
