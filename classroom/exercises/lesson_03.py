"""Lesson 3: which layers train when, and the backward of concat pooling."""

from __future__ import annotations

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from classroom.exercises.draws import distinct
from lessons.common.classifier import concat_pool_forward

LESSON = "lessons.lesson_03_ulmfit_classifier"

# ---------------------------------------------------------------------------------------------- which layers when


def gradual_cases(rng: np.random.Generator) -> list[Case]:
    """First, middle and last phases of models of several depths, the smallest included."""
    a, b, c, d, e = distinct(rng, 5, 5, 12)
    places = {
        "first phase": (0, a),
        "second phase": (1, b),
        "middle phase": (int(rng.integers(2, c - 2)), c),
        "last but one phase": (d - 2, d),
        "last phase": (e - 1, e),
        "many groups": (int(rng.integers(4, 10)), int(rng.integers(13, 19))),
        "two groups, first phase": (0, 2),
        "one group": (0, 1),
    }
    return [Case(name, {"phase": phase, "n_groups": n_groups}) for name, (phase, n_groups) in places.items()]


GRADUAL = Exercise(
    id="3.01",
    function=f"{LESSON}:gradual_unfreezing",
    title="Gradual unfreezing",
    points=1,
    cases=gradual_cases,
    wrong=(
        Wrong(
            "from-the-bottom",
            "Groups were thawed from the bottom. The head, which is the top group, comes first.",
            "range(n_groups - 1 - phase, n_groups)",
            "range(phase + 1)",
        ),
        Wrong(
            "descending",
            "The groups are right, but they are to be listed in ascending order.",
            "list(range(n_groups - 1 - phase, n_groups))",
            "list(range(n_groups - 1 - phase, n_groups))[::-1]",
        ),
        Wrong(
            "head-left-out",
            "The head is missing: groups are numbered from 0, so the top one is n_groups − 1.",
            "range(n_groups - 1 - phase, n_groups)",
            "range(n_groups - 2 - phase, n_groups - 1)",
        ),
        Wrong(
            "numbered-from-one",
            "The groups were numbered from 1. They are numbered from 0.",
            "range(n_groups - 1 - phase, n_groups)",
            "range(n_groups - phase, n_groups + 1)",
        ),
        Wrong(
            "a-phase-behind",
            "One group too few trains: the head trains in phase 0 already.",
            "n_groups - 1 - phase",
            "n_groups - phase",
        ),
        Wrong(
            "one-at-a-time",
            "Only the newly thawed group trains. Those that were thawed before go on training.",
            ", n_groups))",
            ", n_groups - phase))",
        ),
    ),
    alternatives=(
        Alternative("filter", "return [group for group in range(n_groups) if group + phase >= n_groups - 1]\n"),
        Alternative("sorted", "return sorted(n_groups - 1 - depth for depth in range(phase + 1))\n"),
    ),
)


def chain_cases(rng: np.random.Generator) -> list[Case]:
    """The head's phase, the bottom's, those between, the last single one and all together; several depths."""
    a, b, c, d, e, f = distinct(rng, 6, 5, 12)
    places = {
        "head": (0, a),
        "bottom": (1, b),
        "second group": (2, c),
        "in the middle": (int(rng.integers(3, d - 1)), d),
        "last group alone": (e - 1, e),
        "all together": (f, f),
        "many groups": (int(rng.integers(4, 12)), int(rng.integers(13, 19))),
        "two groups, bottom": (1, 2),
        "one group, alone": (0, 1),
        "one group, together": (1, 1),
    }
    return [Case(name, {"phase": phase, "n_groups": n_groups}) for name, (phase, n_groups) in places.items()]


CHAIN = Exercise(
    id="3.02",
    function=f"{LESSON}:chain_thaw",
    title="Chain-thaw",
    points=1,
    cases=chain_cases,
    wrong=(
        Wrong(
            "head-last",
            "The head trains first, before the groups below it. Here the groups come in order of their numbers.",
            "n_groups - 1 if phase == 0 else phase - 1",
            "phase",
        ),
        Wrong(
            "from-the-top",
            "After the head the groups come from the bottom to the top. Here they come from the top.",
            "n_groups - 1 if phase == 0 else phase - 1",
            "n_groups - 1 - phase",
        ),
        Wrong(
            "bottom-skipped",
            "The bottom group is left out: phase 1 belongs to group 0.",
            "else phase - 1",
            "else phase",
        ),
        Wrong(
            "head-skipped",
            "In the first phase the head trains, not the bottom group.",
            "n_groups - 1 if phase == 0",
            "0 if phase == 0",
        ),
        Wrong(
            "all-in-descending-order",
            "In the last phase all groups train, but they are to be listed in ascending order.",
            "return list(range(n_groups))",
            "return list(range(n_groups))[::-1]",
        ),
        Wrong(
            "head-not-thawed-in-the-end",
            "In the last phase all groups train; the head is missing.",
            "list(range(n_groups))",
            "list(range(n_groups - 1))",
        ),
    ),
    alternatives=(
        Alternative(
            "table",
            """\
phases = [[n_groups - 1]] + [[group] for group in range(n_groups - 1)]
phases.append(list(range(n_groups)))
return phases[phase]
""",
        ),
        Alternative(
            "remainder",  # −1 is the head
            "return [(phase - 1) % n_groups] if phase < n_groups else [*range(n_groups)]\n",
        ),
    ),
)


def dulled_cases(rng: np.random.Generator) -> list[Case]:
    """First, middle and last phases; a scalar inside (0, 1) and at both ends; several depths."""
    n = int(rng.integers(5, 9))
    scalar = float(rng.uniform(0.2, 0.8))
    places = {
        "first phase": (0, n, scalar),
        "second phase": (1, n, scalar),
        "middle phase": (int(rng.integers(2, n - 2)), n, scalar),
        "last but one phase": (n - 2, n, scalar),
        "last phase": (n - 1, n, scalar),
        "scalar of one": (1, n, 1.0),
        "scalar of zero": (2, n, 0.0),
        "scalar of zero, first phase": (0, n, 0.0),
        "scalar of zero, last phase": (n - 1, n, 0.0),
        "one group": (0, 1, scalar),
        "two groups": (0, 2, scalar),
        "many groups": (3, int(rng.integers(10, 14)), 0.5),
    }
    return [
        Case(name, {"phase": phase, "n_groups": n_groups, "scalar": value})
        for name, (phase, n_groups, value) in places.items()
    ]


DULLED = Exercise(
    id="3.03",
    function=f"{LESSON}:dulled_scales",
    title="Dulled unfreezing",
    points=2,
    cases=dulled_cases,
    wrong=(
        Wrong(
            "phase-ignored",
            "The scales are those of the first phase throughout. A group waits one phase less in every phase.",
            " - phase)",
            ")",
        ),
        Wrong(
            "upside-down",
            "The scales are in the wrong order: the list goes from the bottom group, the most dulled, to the head.",
            "n_groups - 1 - group - phase",
            "group - phase",
        ),
        Wrong(
            "one-phase-too-long",
            "Every group waits one phase too long: the head is not dulled at all, and in the last phase nothing is.",
            "n_groups - 1 - group - phase",
            "n_groups - group - phase",
        ),
        Wrong(
            "dulled-once",
            "All groups that still wait have the same scale. Each phase of waiting multiplies by the scalar once more.",
            "max(0, n_groups - 1 - group - phase)",
            "(n_groups - 1 - group - phase > 0)",
        ),
        Wrong(
            "frozen",
            "Groups that still wait were frozen. They train with dulled updates, unless the scalar is 0.",
            "scalar ** max(0, n_groups - 1 - group - phase)",
            "float(n_groups - 1 - group <= phase)",
        ),
        Wrong(
            "exponent-without-floor",
            "Once a group has thawed, its scale is 1. The distance went on counting on the other side of 0.",
            "max(0, n_groups - 1 - group - phase)",
            "abs(n_groups - 1 - group - phase)",
        ),
        Wrong(
            "multiplied-not-raised",
            "The scalar was multiplied by the number of phases to wait. It is raised to that power.",
            "scalar ** max(0, n_groups - 1 - group - phase)",
            "(scalar * max(0, n_groups - 1 - group - phase) or 1.0)",
        ),
    ),
    alternatives=(
        Alternative(
            "loop",
            """\
scales = [1.0] * n_groups
for group in range(n_groups - 2 - phase, -1, -1):
    scales[group] = scales[group + 1] * scalar
return scales
""",
        ),
        Alternative(
            "NumPy",
            """\
waiting = np.clip(n_groups - 1 - phase - np.arange(n_groups), 0, None)
return (float(scalar) ** waiting).tolist()
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- concat pooling


def pool_cases(rng: np.random.Generator) -> list[Case]:
    """Rows with and without padding, of one token and of all; the maximum at the first, the last and a padded place."""
    B, T, C = distinct(rng, 3, 3, 7)

    def case(name: str, hidden: np.ndarray, lengths: np.ndarray) -> Case:
        pooled, cache = concat_pool_forward(hidden, lengths)
        return Case(name, {"dpooled": rng.normal(size=pooled.shape), "cache": cache})

    mixed = rng.integers(1, T + 1, B)
    mixed[rng.permutation(B)[:2]] = (1, T - 1)
    padded = rng.normal(size=(B, T, C))
    padded[:, -1] = 9.0
    first, last = rng.normal(size=(2, B, T, C))
    first[:, 0] = 9.0
    last[np.arange(B), mixed - 1] = 9.0
    return [
        case("no padding", rng.normal(size=(B, T, C)), np.full(B, T)),
        case("some padding", rng.normal(size=(B, T, C)), mixed),
        case("one real token each", rng.normal(size=(B, T, C)), np.ones(B, int)),
        case("all but one token", rng.normal(size=(B, T, C)), np.full(B, T - 1)),
        case("largest in the padding", padded, np.minimum(mixed, T - 1)),
        case("largest in the first place", first, mixed),
        case("largest in the last place", last, mixed),
        case("all states below zero", -1.0 - rng.random((B, T, C)), mixed),
        case("one row", rng.normal(size=(1, T, C)), np.array([T - 1])),
        case("one place", rng.normal(size=(B, 1, C)), np.ones(B, int)),
        case("one column", rng.normal(size=(B, T, 1)), mixed),
    ]


POOL = Exercise(
    id="3.04",
    function="lessons.common.classifier:concat_pool_backward",
    title="Concat pooling: backward",
    points=4,
    cases=pool_cases,
    wrong=(
        Wrong(
            "mean-over-all-places",
            "The mean's share was divided by the width of the batch. Each row has its own number of real tokens.",
            "dmean / lengths[:, None].astype(dpooled.dtype)",
            "dmean / real.shape[1]",
        ),
        Wrong(
            "mean-not-divided",
            "The mean hands each real token 1/length of its gradient; the division is missing.",
            " / lengths[:, None].astype(dpooled.dtype)",
            "",
        ),
        Wrong(
            "padding-gets-the-mean",
            "Padding got a share of the mean's gradient. It took no part in the forward and gets nothing.",
            "xp.where(real, share[:, None], 0)",
            "xp.where(real, share[:, None], share[:, None])",
        ),
        Wrong(
            "mean-missing",
            "The mean's third of the gradient is missing.",
            "share[:, None], 0)",
            "0 * share[:, None], 0)",
        ),
        Wrong(
            "last-place-of-the-batch",
            "The last state is that of the last real token of each row, not of the last place of the batch.",
            "dhidden[rows, lengths - 1] += dlast",
            "dhidden[rows, -1] += dlast",
        ),
        Wrong(
            "last-overwritten",
            "At the last token the gradient was set where it has to be added to: the mean's share is there already.",
            "dhidden[rows, lengths - 1] += dlast",
            "dhidden[rows, lengths - 1] = dlast",
        ),
        Wrong(
            "largest-overwritten",
            "At the places of the maxima the gradient was set where it has to be added to: the mean's share and the "
            "last state's may be there already.",
            "columns[None, :]] += dlargest",
            "columns[None, :]] = dlargest",
        ),
        Wrong(
            "last-and-largest-swapped",
            "The thirds stand in the order last, maximum, mean; the first two were exchanged.",
            "dlast, dlargest, dmean =",
            "dlargest, dlast, dmean =",
        ),
        Wrong(
            "largest-and-mean-swapped",
            "The thirds stand in the order last, maximum, mean; the last two were exchanged.",
            "dlast, dlargest, dmean =",
            "dlast, dmean, dlargest =",
        ),
        Wrong(
            "largest-missing",
            "The maximum's third of the gradient is missing.",
            "columns[None, :]] += dlargest",
            "columns[None, :]] += 0 * dlargest",
        ),
        Wrong(
            "largest-at-one-place",
            "Each column has its own place of the maximum. All of a row's columns were sent to the first column's.",
            "highest, columns",
            "highest[:, :1], columns",
        ),
    ),
    alternatives=(
        Alternative(
            "loop",
            """\
import numpy as np

(B, T, C), lengths, real, highest = cache
dhidden = np.zeros((B, T, C))
for b in range(B):
    n = int(lengths[b])
    dhidden[b, n - 1] += dpooled[b, :C]
    for c in range(C):
        dhidden[b, highest[b, c], c] += dpooled[b, C + c]
    dhidden[b, :n] += dpooled[b, 2 * C :] / n
return dhidden
""",
        ),
        Alternative(
            "one-hot",
            """\
import numpy as np

shape, lengths, real, highest = cache
places = np.arange(shape[1])[None, :, None]
dlast, dlargest, dmean = np.split(dpooled[:, None, :], 3, axis=2)
at_last = places == (lengths - 1)[:, None, None]
at_largest = places == highest[:, None, :]
return at_last * dlast + at_largest * dlargest + real * dmean / lengths[:, None, None]
""",
        ),
    ),
)


EXERCISES = (GRADUAL, CHAIN, DULLED, POOL)
