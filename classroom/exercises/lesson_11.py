"""Lesson 11, the comparison: cases and typical mistakes.

Scores and losses are drawn apart from each other by more than rounding could hide, and ties are exact: nothing decides
them but the specification.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong

LESSON = "lessons.lesson_11_comparison"


def apart(rng: np.random.Generator, n: int, low: float = 1.0, gap: float = 0.1) -> list[float]:
    """n numbers in random order, none nearer to another than `gap`."""
    return rng.permutation(low + np.cumsum(rng.uniform(gap, 3 * gap, n))).tolist()


def cases_choose_rate(rng: np.random.Generator) -> Sequence[Case]:
    """Rates in any order; runs that diverged both ways, one of them first; ties that the order alone would decide."""
    n = int(rng.integers(5, 9))
    rates = apart(rng, n, 0.01, 0.02)
    by_rate = np.argsort(rates).tolist()  # places, the lowest rate first

    def case(name: str, losses: Sequence[float], own: Sequence[float] | None = None) -> Case:
        return Case(name, {"rates": list(rates if own is None else own), "losses": [float(v) for v in losses]})

    def best_at(*places: int) -> list[float]:
        losses = apart(rng, n, 2.0)
        for place in places:
            losses[place] = 1.5
        return losses

    def diverged(losses: Sequence[float], kinds: dict[int, float]) -> list[float]:
        return [kinds.get(i, loss) for i, loss in enumerate(losses)]

    last_high = best_at(n - 1)
    rising, falling = sorted(rates), sorted(rates, reverse=True)
    tied = [1.5, 1.5, *apart(rng, n - 2, 2.0)]
    return [
        case("all different", apart(rng, n, 0.5)),
        case("the best is the highest rate", best_at(by_rate[-1])),
        case("the best is in the middle", best_at(by_rate[n // 2])),
        case("the first two diverged", diverged(last_high, {0: math.nan, 1: math.inf})),
        case("all but one diverged", diverged([math.nan] * n, {n - 2: 3.0 + float(rng.random())})),
        case("equal losses, rates rising", tied, rising),
        case("equal losses, rates falling", tied, falling),
        case("three equal losses", best_at(by_rate[1], by_rate[3], by_rate[4])),
        case("all losses equal", [float(rng.uniform(1, 2))] * n),
        case("all NaN", [math.nan] * n),
        case("all infinite", [math.inf] * n, falling),
        case("one rate", [float(rng.uniform(1, 3))], rates[:1]),
        case("negative losses", [-v for v in apart(rng, n, 0.5)]),
    ]


def cases_mean_interval(rng: np.random.Generator) -> Sequence[Case]:
    """From two values to many, at several levels; equal values, an outlier, large and negative means."""
    draw = rng.standard_normal

    def case(name: str, values: np.ndarray, level: float) -> Case:
        return Case(name, {"values": values.tolist(), "level": level})

    middle = int(rng.integers(6, 10))
    return [
        case("two values", draw(2), 0.95),
        case("three values", 2 + draw(3), 0.95),
        case("five values", 0.7 + 0.1 * draw(5), 0.95),
        case("more values", draw(middle), 0.9),
        case("many values", 3 + draw(23), 0.95),
        case("a high level", draw(middle), 0.99),
        case("a low level", draw(4), 0.6),
        case("equal values", np.full(4, rng.uniform(1, 2)), 0.95),
        case("an outlier", np.append(0.1 * draw(5), 9.0), 0.95),
        case("a large mean", 1e3 + draw(5), 0.95),
        case("a negative mean", -4 + 0.5 * draw(middle), 0.8),
    ]


def cases_paired_interval(rng: np.random.Generator) -> Sequence[Case]:
    """Seeds in different orders, seeds that one of them lacks; a spread that both share."""

    def case(name: str, seeds: Sequence[Sequence[int]], level: float, common: float = 1.0, by: float = 0.3) -> Case:
        luck = {seed: common * float(rng.standard_normal()) for seed in (*seeds[0], *seeds[1])}
        first, second = (
            {seed: shift + luck[seed] + 0.1 * float(rng.standard_normal()) for seed in of}
            for of, shift in zip(seeds, (by, 0.0), strict=True)
        )
        return Case(name, {"first": first, "second": second, "level": level})

    five = list(range(5))
    return [
        case("the same seeds", (five, five), 0.95),
        case("another order", (five, [3, 0, 4, 1, 2]), 0.95),
        case("the first lacks a seed", ([0, 1, 3, 4], five), 0.95),
        case("the second lacks the first two", (five, [2, 3, 4]), 0.95),
        case("both lack one", ([4, 2, 0, 1], [0, 4, 3, 1]), 0.9),
        case("two seeds in common", ([7, 3, 1], [1, 9, 7]), 0.95),
        case("a high level", (list(range(7)), list(range(7))), 0.99),
        case("the first is worse", (five, five), 0.95, by=-0.6),
        case("a large spread in common", (five, five[::-1]), 0.95, common=20.0),
        case("no spread in common", (five, five), 0.8, common=0.0, by=0.0),
    ]


def cases_pareto_front(rng: np.random.Generator) -> Sequence[Case]:
    """Points in general position and on a coarse grid; equal points, equal costs, equal qualities."""
    n = int(rng.integers(7, 12))

    def case(name: str, cost: np.ndarray, quality: np.ndarray) -> Case:
        order = rng.permutation(len(cost))
        return Case(name, {"cost": cost[order].astype(float), "quality": quality[order].astype(float)})

    rising = np.sort(rng.uniform(1, 9, n))
    grid = rng.integers(0, 4, (2, 3 * n))
    cost, quality = rng.uniform(1, 9, n), rng.uniform(0, 1, n)
    best = int(rng.integers(n))
    twice = np.append(np.arange(n), rng.integers(0, n, 3))
    champion_cost, champion_quality = cost.copy(), quality.copy()
    champion_cost[best], champion_quality[best] = 0.5, 2.0
    ladder = np.repeat(np.arange(1, 5), 2)
    return [
        case("in general position", cost, quality),
        case("many on a coarse grid", grid[0], grid[1]),
        case("all on the front", rising, rising**2),
        case("one beats all", champion_cost, champion_quality),
        case("the best one twice", np.append(champion_cost, 0.5), np.append(champion_quality, 2.0)),
        case("equal points", cost[twice], quality[twice]),
        case("equal costs", np.full(n, cost[0]), quality),
        case("equal qualities", cost, np.full(n, quality[0])),
        case("two at every cost", ladder, np.array([1, 2, 3, 2.5, 3, 3, 4, 5]) + rng.uniform(0, 0.4)),
        case("negative qualities", cost, -10 * quality),
        case("one point", cost[:1], quality[:1]),
        case("costs of very different size", 10.0 ** rng.permutation(n), quality),
    ]


EXERCISES = (
    Exercise(
        id="11.01",
        function=f"{LESSON}:choose_rate",
        title="Choosing a learning rate on validation losses",
        points=2,
        cases=cases_choose_rate,
        wrong=(
            Wrong(
                "ties-to-the-first",
                "Of equal losses yours is the one that stands first. It should be the one with the lowest rate.",
                "(losses[i], rates[i])",
                "losses[i]",
            ),
            Wrong(
                "ties-to-the-highest-rate",
                "Of equal losses yours is the one with the highest rate; the lowest is asked for.",
                "(losses[i], rates[i])",
                "(losses[i], -rates[i])",
            ),
            Wrong(
                "highest-loss",
                "The rate with the highest loss is chosen. A loss is better the lower it is.",
                "min(known",
                "max(known",
            ),
            Wrong(
                "lowest-rate",
                "The losses seem to have no part in your choice: it is always the lowest rate that did not diverge.",
                "(losses[i], rates[i])",
                "rates[i]",
            ),
            Wrong(
                "zero-if-all-diverged",
                "If every run diverged there is no rate to choose, and 0 is the index of one: see what is asked for.",
                "default=-1",
                "default=0",
            ),
            Wrong(
                "infinite-loss-counts",
                "NaN is left out, but an infinite loss is taken for a result. A run with either has diverged.",
                "math.isfinite(loss)",
                "not math.isnan(loss)",
            ),
            Wrong(
                "place-among-the-rest",
                "The index counts only the runs that did not diverge; it should count all rates that were given.",
                "return min(known, key=lambda i: (losses[i], rates[i]), default=-1)",
                "return known.index(min(known, key=lambda i: (losses[i], rates[i]))) if known else -1",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "chosen = -1\n"
                "for i, loss in enumerate(losses):\n"
                "    if not math.isfinite(loss):\n"
                "        continue\n"
                "    if chosen < 0 or loss < losses[chosen] or (loss == losses[chosen] and rates[i] < rates[chosen]):\n"
                "        chosen = i\n"
                "return chosen",
            ),
            Alternative(
                "sorting",
                "order = np.lexsort((np.asarray(rates), np.asarray(losses)))  # NaN and infinity come last\n"
                "first = int(order[0])\n"
                "return first if np.isfinite(losses[first]) else -1",
            ),
        ),
    ),
    Exercise(
        id="11.02",
        function=f"{LESSON}:mean_interval",
        title="A mean over seeds, with Student's interval",
        points=2,
        cases=cases_mean_interval,
        wrong=(
            Wrong(
                "divides-by-n",
                "The variance is divided by n. A sample's deviations are from its own mean, which makes them too "
                "small: divide by n − 1.",
                "for v in values) / (n - 1)",
                "for v in values) / n",
            ),
            Wrong(
                "one-sided",
                "The quantile is taken at the level itself, which leaves all of the rest on one side. Half of it "
                "belongs to each side.",
                "(1 + level) / 2",
                "level",
            ),
            Wrong(
                "spread-of-one-value",
                "Your interval is that of a single value. The mean of n values varies less, by the root of n.",
                "math.sqrt(variance / n)",
                "math.sqrt(variance)",
            ),
            Wrong(
                "divides-by-n-not-its-root",
                "The standard deviation is divided by n; the mean's is that of a value over the root of n.",
                "math.sqrt(variance / n)",
                "math.sqrt(variance) / n",
            ),
            Wrong(
                "normal-instead-of-t",
                "The quantile is the normal distribution's. With few seeds the spread is itself a guess, and Student's "
                "t is wider.",
                "student_t((1 + level) / 2, n - 1)",
                "statistics.NormalDist().inv_cdf((1 + level) / 2)",
            ),
            Wrong(
                "n-degrees-of-freedom",
                "Student's t is taken with n degrees of freedom; one of them went into the mean.",
                "n - 1) * math",
                "n) * math",
            ),
            Wrong(
                "variance-instead-of-deviation",
                "The half width is made of the variance. It should have the unit of the values: take the root.",
                "math.sqrt(variance / n)",
                "(variance / n)",
            ),
            Wrong(
                "ends-swapped",
                "The ends of the interval are in the wrong order: the lower one comes first.",
                "mean - margin, mean + margin",
                "mean + margin, mean - margin",
            ),
            Wrong(
                "median",
                "The middle of the interval is the median; the mean is asked for.",
                "mean = math.fsum(values) / n",
                "mean = statistics.median(values)",
            ),
        ),
        alternatives=(
            Alternative(
                "arrays",
                "x = np.asarray(values, dtype=np.float64)\n"
                "margin = student_t(0.5 + level / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)\n"
                "return float(x.mean()), float(x.mean() - margin), float(x.mean() + margin)",
            ),
            Alternative(
                "statistics",
                "mean = statistics.fmean(values)\n"
                "error = statistics.stdev(values) / len(values) ** 0.5\n"
                "half = error * -student_t((1 - level) / 2, len(values) - 1)\n"
                "return mean, mean - half, mean + half",
            ),
        ),
    ),
    Exercise(
        id="11.03",
        function=f"{LESSON}:paired_interval",
        title="The difference of two methods, seed by seed",
        points=2,
        cases=cases_paired_interval,
        needs=("11.02",),
        wrong=(
            Wrong(
                "second-minus-first",
                "The differences have the wrong sign: the second is to be taken from the first.",
                "first[seed] - second[seed]",
                "second[seed] - first[seed]",
            ),
            Wrong(
                "pairs-by-place",
                "Scores are paired by the place at which they stand. A pair is two runs with the same seed.",
                "[first[seed] - second[seed] for seed in shared]",
                "[a - b for a, b in zip(first.values(), second.values())]",
            ),
            Wrong(
                "missing-counts-as-zero",
                "A run that diverged counts as a score of 0. Its seed is to be left out of both.",
                "shared = sorted(first.keys() & second.keys())\n"
                "return mean_interval([first[seed] - second[seed] for seed in shared], level)",
                "shared = sorted(first.keys() | second.keys())\n"
                "return mean_interval([first.get(seed, 0.0) - second.get(seed, 0.0) for seed in shared], level)",
            ),
            Wrong(
                "level-left-out",
                "The level that was asked for has no effect: the interval is always the one of 95 %.",
                "for seed in shared], level)",
                "for seed in shared])",
            ),
            Wrong(
                "sizes-of-differences",
                "The signs of the differences are lost, so that gains and losses add up instead of cancelling.",
                "[first[seed] - second[seed] for",
                "[abs(first[seed] - second[seed]) for",
            ),
            Wrong(
                "against-the-mean",
                "The second method's mean is taken from every score of the first. What a seed does to both then stays "
                "in the spread.",
                "[first[seed] - second[seed] for seed in shared]",
                "[first[seed] - sum(second[s] for s in shared) / len(shared) for seed in shared]",
            ),
            Wrong(
                "drops-a-pair",
                "One of the shared seeds is missing from your differences.",
                "sorted(first.keys() & second.keys())",
                "sorted(first.keys() & second.keys())[: max(2, len(first.keys() & second.keys()) - 1)]",
            ),
        ),
        alternatives=(
            Alternative(
                "in the first one's order",
                "differences = []\n"
                "for seed, score in first.items():\n"
                "    if seed in second:\n"
                "        differences.append(score - second[seed])\n"
                "return mean_interval(differences, level)",
            ),
            Alternative(
                "arrays",
                "seeds = [seed for seed in second if seed in first]\n"
                "gaps = np.array([first[s] for s in seeds]) - np.array([second[s] for s in seeds])\n"
                "return mean_interval(gaps.tolist(), level=level)",
            ),
        ),
    ),
    Exercise(
        id="11.04",
        function=f"{LESSON}:pareto_front",
        title="What nothing else beats: the Pareto front",
        points=3,
        cases=cases_pareto_front,
        wrong=(
            Wrong(
                "equal-points-beat-each-other",
                "Of equal points none is on your front. Only what is strictly better in something beats a point.",
                "(cheap & good & strict)",
                "(cheap & good & ~np.eye(len(cost), dtype=bool))",
            ),
            Wrong(
                "same-cost-never-beats",
                "A point of the same cost and higher quality should beat another; yours asks for a lower cost.",
                "cost[:, None] <= cost[None, :]",
                "cost[:, None] < cost[None, :]",
            ),
            Wrong(
                "same-quality-never-beats",
                "A cheaper point of the same quality should beat another; yours asks for a higher quality.",
                "quality[:, None] >= quality[None, :]",
                "quality[:, None] > quality[None, :]",
            ),
            Wrong(
                "strict-in-both",
                "Yours is beaten only by what is strictly better in both. Strictly better in one of the two is enough.",
                ") | (",
                ") & (",
            ),
            Wrong(
                "dear-is-better",
                "A high cost counts as an advantage in your comparison; less is better.",
                "cost[:, None] <= cost[None, :]",
                "cost[:, None] >= cost[None, :]",
            ),
            Wrong(
                "beats-nothing",
                "You have found the points that beat no other; the front are those that no other beats.",
                "axis=0",
                "axis=1",
            ),
            Wrong(
                "the-beaten-ones",
                "True and False are swapped: you mark the points that are beaten.",
                "np.logical_not(",
                "np.asarray(",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "front = np.ones(len(cost), dtype=bool)\n"
                "for i in range(len(cost)):\n"
                "    for j in range(len(cost)):\n"
                "        no_worse = cost[j] <= cost[i] and quality[j] >= quality[i]\n"
                "        if no_worse and (cost[j], quality[j]) != (cost[i], quality[i]):\n"
                "            front[i] = False\n"
                "return front",
            ),
            Alternative(
                "sorting",
                "front = np.zeros(len(cost), dtype=bool)\n"
                "best, last = -np.inf, None\n"
                "for i in np.lexsort((-quality, cost)):  # by cost; the best of equal ones first\n"
                "    here = (cost[i], quality[i])\n"
                "    if quality[i] > best or here == last:\n"
                "        front[i], best, last = True, quality[i], here\n"
                "return front",
            ),
        ),
    ),
)
