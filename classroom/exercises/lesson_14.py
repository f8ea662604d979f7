"""Lesson 14: gradients of shards, all-reduce in a ring, what it costs."""

from __future__ import annotations

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong

LESSON = "lessons.lesson_14_scaling"

# ---------------------------------------------------------------------------------------------- shards


def combine_cases(rng: np.random.Generator) -> list[Case]:
    """Shards that score much and little, nothing, and equally much."""
    P = int(rng.integers(3, 7))

    def case(name: str, *counts: float) -> Case:
        return Case(name, {"gradients": [rng.standard_normal(P) for _ in counts], "counts": [float(c) for c in counts]})

    few, many = int(rng.integers(1, 4)), int(rng.integers(8, 30))
    return [
        case("two ranks, one scores little", many, few),
        case("the other scores little", few, many),
        case("three ranks", few, many, many + 5),
        case("one of three scores nothing", many, 0, few),
        case("all score as much", many, many, many, many),
        case("one rank", many),
    ]


COMBINE = Exercise(
    id="14.01",
    function=f"{LESSON}:combine_gradients",
    title="The gradient of a batch from those of its shards",
    points=2,
    cases=combine_cases,
    wrong=(
        Wrong(
            "mean-of-means",
            "The mean over the ranks was taken. A shard that scores more tokens has to count for more.",
            "(count / total)",
            "(1 / len(counts))",
        ),
        Wrong(
            "not-divided",
            "Each gradient was multiplied by its count and nothing was divided. The weights have to add up to 1.",
            "(count / total)",
            "count",
        ),
        Wrong(
            "divided-by-ranks",
            "The sum was divided by the number of ranks. It is the number of scored tokens that the weights share out.",
            "(count / total)",
            "(count / len(counts))",
        ),
        Wrong(
            "upside-down",
            "A shard counts for what the others score. It has to count for what it scores itself.",
            "(count / total)",
            "((total - count) / total)",
        ),
        Wrong(
            "by-the-largest",
            "The counts were divided by the largest of them. They have to be divided by their sum.",
            "total = sum(counts)",
            "total = max(counts)",
        ),
    ),
    alternatives=(
        Alternative(
            "one product",
            "weights = np.asarray(counts) / sum(counts)\nreturn np.tensordot(weights, np.stack(gradients), 1)\n",
        ),
        Alternative(
            "a sum of sums, divided once",
            "whole = 0.0\nfor i in range(len(counts)):\n    whole = whole + counts[i] * gradients[i]\n"
            "return whole / sum(counts)\n",
        ),
    ),
)

# ---------------------------------------------------------------------------------------------- the ring


def ring_cases(rng: np.random.Generator) -> list[Case]:
    """Numbers of ranks that divide the length and others; more ranks than numbers; one rank."""

    def case(name: str, size: int, length: int) -> Case:
        return Case(name, {"vectors": [rng.standard_normal(length) for _ in range(size)]})

    k = int(rng.integers(2, 5))
    return [
        case("two ranks", 2, 2 * k),
        case("two ranks, an odd length", 2, 2 * k + 1),
        case("three ranks", 3, 3 * k),
        case("four ranks, chunks of two lengths", 4, 4 * k + 3),
        case("five ranks", 5, 5 * k),
        case("more ranks than numbers", 5, 3),
        case("one rank", 1, k),
    ]


RING = Exercise(
    id="14.02",
    function=f"{LESSON}:ring_all_reduce",
    title="All-reduce in a ring",
    points=4,
    cases=ring_cases,
    wrong=(
        Wrong(
            "gather-adds",
            "In the all-gather the chunks were added. They are complete by then and replace what the receiver has.",
            "own[(rank + 1) % n][chunks[(rank + 1 - t) % n]] = message",
            "own[(rank + 1) % n][chunks[(rank + 1 - t) % n]] += message",
        ),
        Wrong(
            "no-gather",
            "Every rank has one complete chunk only: the all-gather is missing.",
            "for t in range(n - 1):  # all-gather",
            "for t in range(0):",
        ),
        Wrong(
            "a-step-short",
            "The reduce-scatter ends a step too early. A chunk passes n − 1 times until it is the sum of n ranks.",
            "for t in range(n - 1):  # reduce-scatter",
            "for t in range(n - 2):",
        ),
        Wrong(
            "backwards",
            "In the reduce-scatter the chunks went to the previous rank. They go to the next, which passes them on.",
            "own[(rank + 1) % n][chunks[(rank - t) % n]] += message",
            "own[(rank - 1) % n][chunks[(rank - t) % n]] += message",
        ),
        Wrong(
            "mean",
            "The sum was divided by the number of ranks. What is asked for is the sum.",
            "return Reduced(own, sent)",
            "return Reduced([vector / n for vector in own], sent)",
        ),
        Wrong(
            "numbers-counted",
            "The numbers that are sent were counted. Bytes are asked for: `nbytes` of what is sent.",
            "return Reduced(own, sent)",
            "return Reduced(own, [b // own[0].itemsize for b in sent])",
        ),
        Wrong(
            "received-counted-too",
            "What a rank receives was counted beside what it sends.",
            "return Reduced(own, sent)",
            "return Reduced(own, [b + sent[rank - 1] for rank, b in enumerate(sent)])",
        ),
    ),
    alternatives=(
        Alternative(
            "both phases in one loop",
            "for t in range(2 * (n - 1)):\n"
            "    messages = [own[rank][chunks[(rank - t) % n]].copy() for rank in range(n)]\n"
            "    for rank in range(n):\n"
            "        place = own[(rank + 1) % n][chunks[(rank - t) % n]]\n"
            "        place[:] = messages[rank] + (place if t < n - 1 else 0)\n"
            "        sent[rank] += messages[rank].nbytes\n"
            "return Reduced(own, sent)\n",
        ),
        Alternative(
            "the sum, and the bytes by counting chunks",
            "whole = np.sum(vectors, axis=0)\n"
            "width = [(c.stop - c.start) * whole.itemsize for c in chunks]\n"
            "sent = [2 * whole.nbytes - width[(r + 1) % n] - width[(r + 2) % n] for r in range(n)]\n"
            "return Reduced([whole.copy() for _ in vectors], sent)\n",
        ),
    ),
)

# ---------------------------------------------------------------------------------------------- cost


def cost_cases(rng: np.random.Generator) -> list[Case]:
    """Few and many ranks; messages that are all latency, and all content."""
    latency, bandwidth = float(10 ** rng.uniform(-6, -4)), float(10 ** rng.uniform(8.5, 11))
    nbytes = float(rng.integers(10**5, 10**8))

    def case(name: str, size: int, nbytes: float = nbytes, latency: float = latency) -> Case:
        return Case(name, {"nbytes": nbytes, "size": size, "latency": latency, "bandwidth": bandwidth})

    return [
        case("two ranks", 2),
        case("eight ranks", 8),
        case("many ranks", int(rng.integers(50, 2000))),
        case("one rank", 1),
        case("nothing to send", int(rng.integers(3, 20)), nbytes=0.0),
        case("no latency", int(rng.integers(3, 20)), latency=0.0),
    ]


COST = Exercise(
    id="14.03",
    function=f"{LESSON}:all_reduce_seconds",
    title="What an all-reduce costs",
    points=1,
    cases=cost_cases,
    wrong=(
        Wrong(
            "one-phase",
            "Only one of the two phases was counted: reduce-scatter and all-gather have n − 1 steps each.",
            "2 * (size - 1)",
            "(size - 1)",
        ),
        Wrong(
            "n-steps",
            "A phase has n − 1 steps, not n: a rank sends nothing to itself.",
            "2 * (size - 1)",
            "2 * size",
        ),
        Wrong(
            "whole-vectors",
            "Whole vectors were sent in every step. It is one chunk, the n-th part of a vector.",
            "nbytes / (size * bandwidth)",
            "nbytes / bandwidth",
        ),
        Wrong(
            "one-latency",
            "The latency was counted once. Every step waits for the one before it, and has its own.",
            "2 * (size - 1) * (latency + nbytes / (size * bandwidth))",
            "latency + 2 * (size - 1) * nbytes / (size * bandwidth)",
        ),
        Wrong(
            "no-latency",
            "The latency is missing.",
            "(latency + nbytes / (size * bandwidth))",
            "nbytes / (size * bandwidth)",
        ),
    ),
    alternatives=(
        Alternative(
            "step by step",
            "seconds = 0.0\nfor _ in range(2):\n    for _ in range(size - 1):\n"
            "        seconds += latency + nbytes / size / bandwidth\nreturn seconds\n",
        ),
    ),
)

EXERCISES = (COMBINE, RING, COST)
