"""Lesson 2: rates by depth and two schedules."""

from __future__ import annotations

from typing import Any

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong

# ---------------------------------------------------------------------------------------------- rates by depth


def rates_cases(rng: np.random.Generator) -> list[Case]:
    """One group and many; factors above 1, below it and 1 itself; the factor of the paper, given and by default."""
    lr = float(rng.uniform(1e-3, 9e-3))
    few, many = int(rng.integers(3, 6)), int(rng.integers(7, 14))
    factor = float(rng.uniform(1.5, 4.0))
    return [
        Case("factor of the paper", {"lr": lr, "n_groups": few}),
        Case("another factor", {"lr": lr, "n_groups": few, "factor": factor}),
        Case("many groups", {"lr": 10 * lr, "n_groups": many, "factor": factor}),
        Case("two groups", {"lr": lr, "n_groups": 2, "factor": factor}),
        Case("one group", {"lr": lr, "n_groups": 1, "factor": factor}),
        Case("the same rate for all", {"lr": lr, "n_groups": few, "factor": 1.0}),
        Case("faster below", {"lr": lr, "n_groups": few, "factor": 1 / factor}),
        Case("whole factor, rate of one", {"lr": 1.0, "n_groups": few + 1, "factor": 2.0}),
    ]


RATES = Exercise(
    id="2.01",
    function="lessons.lesson_02_ulmfit_target:discriminative_rates",
    title="Discriminative learning rates",
    points=1,
    cases=rates_cases,
    wrong=(
        Wrong(
            "upside-down",
            "The rates are in the wrong order: the list goes from the bottom group, which is the slowest, to the top.",
            "n_groups - 1 - group",
            "group",
        ),
        Wrong(
            "one-division-too-many",
            "The top group learns at the full rate. Here it was divided already, and so was every group below.",
            "n_groups - 1 - group",
            "n_groups - group",
        ),
        Wrong(
            "multiplied",
            "Each group was given the rate of the one above it times the factor. It is divided by it.",
            "lr / factor",
            "lr * factor",
        ),
        Wrong(
            "divided-once",
            "All groups below the top have the same rate. The division repeats from group to group.",
            "(n_groups - 1 - group)",
            "min(1, n_groups - 1 - group)",
        ),
        Wrong(
            "bottom-has-the-rate",
            "The given rate belongs to the top group. Here the bottom group has it and the others are faster.",
            "lr / factor ** (n_groups - 1 - group)",
            "lr * factor**group",
        ),
        Wrong(
            "straight-line",
            "The divisors grow by the same amount from group to group. They grow by the same factor.",
            "factor ** (n_groups - 1 - group)",
            "(1 + (factor - 1) * (n_groups - 1 - group))",
        ),
        Wrong(
            "squared-factor",
            "The factor was applied twice from each group to the next.",
            "(n_groups - 1 - group)",
            "(2 * (n_groups - 1 - group))",
        ),
    ),
    alternatives=(
        Alternative(
            "from the top",
            """\
rates = [lr]
while len(rates) < n_groups:
    rates.insert(0, rates[0] / factor)
return rates
""",
        ),
        Alternative("NumPy", "return (lr * float(factor) ** np.arange(1 - n_groups, 1)).tolist()\n"),
    ),
)


# ---------------------------------------------------------------------------------------------- schedules


def schedule_cases(rng: np.random.Generator, places: dict[str, tuple[int, int, dict[str, Any]]]) -> list[Case]:
    """Cases at (step, steps, settings), each with a peak of its own."""
    return [
        Case(name, {"step": step, "steps": steps, "lr": float(rng.uniform(1e-3, 9e-1)), **settings})
        for name, (step, steps, settings) in places.items()
    ]


def slanted_cases(rng: np.random.Generator) -> list[Case]:
    """First, rising, highest, falling and last steps; a cut that is whole, truncated and 0; several settings."""
    steps = 10 * int(rng.integers(5, 9)) + int(rng.integers(6, 10))  # a tenth of it, truncated or rounded, differs
    cut = steps // 10
    share = float(rng.uniform(0.3, 0.6))
    settings = {"cut_frac": share, "ratio": float(rng.uniform(5.0, 20.0))}
    long = int(share * steps)
    return schedule_cases(
        rng,
        {
            "first step": (0, steps, {}),
            "rising": (int(rng.integers(1, cut)), steps, {}),
            "last step of the rise": (cut - 1, steps, {}),
            "peak": (cut, steps, {}),
            "one after the peak": (cut + 1, steps, {}),
            "falling": (int(rng.integers(cut + 2, steps - 1)), steps, {}),
            "last step": (steps - 1, steps, {}),
            "first step, other settings": (0, steps, settings),
            "rising, other settings": (int(rng.integers(2, long - 1)), steps, settings),
            "falling, other settings": (int(rng.integers(long + 2, steps - 1)), steps, settings),
            "last step, other settings": (steps - 1, steps, settings),
            "whole cut, falling": (int(rng.integers(11, 99)), 100, {"cut_frac": 0.1, "ratio": 32}),
            "too few steps to rise": (0, int(rng.integers(5, 9)), {}),
            "too few steps to rise, falling": (3, int(rng.integers(5, 9)), {}),
            "a single step": (0, 1, {}),
            "rises to the end": (int(rng.integers(2, steps - 1)), steps, {"cut_frac": 1.0, "ratio": 10.0}),
        },
    )


SLANTED = Exercise(
    id="2.02",
    function="lessons.lesson_02_ulmfit_target:slanted_triangular",
    title="Slanted triangular schedule",
    points=2,
    cases=slanted_cases,
    wrong=(
        Wrong(
            "as-published",
            "This is the denominator that the paper prints for the fall. It makes the rate negative before the end "
            "where the cut was truncated; the docstring has the right one.",
            "(steps - cut)",
            "(cut * (1 / cut_frac - 1) or 1)",
        ),
        Wrong(
            "cut-rounded",
            "The cut was rounded to the nearest integer. It is truncated.",
            "int(steps * cut_frac)",
            "round(steps * cut_frac)",
        ),
        Wrong(
            "cut-not-truncated",
            "The cut was left as a fraction. It is truncated to an integer.",
            "int(steps * cut_frac)",
            "steps * cut_frac",
        ),
        Wrong(
            "falls-over-all-steps",
            "The fall was divided by all steps. It lasts from the cut to the end.",
            "1 - (step - cut) / (steps - cut)",
            "1 - (step - cut) / steps",
        ),
        Wrong(
            "fall-from-the-start",
            "The fall was counted from the first step. It begins at the cut.",
            "1 - (step - cut) / (steps - cut)",
            "1 - step / steps",
        ),
        Wrong(
            "no-rise",
            "The rate stands at its peak until the cut; the rise is missing.",
            "step / cut if",
            "1 if",
        ),
        Wrong(
            "falls-to-zero",
            "The rate falls to 0. It never goes below the peak divided by the ratio.",
            "lr * (1 + p * (ratio - 1)) / ratio",
            "lr * p",
        ),
        Wrong(
            "peak-too-high",
            "The peak is too high: of the way from lr/ratio to lr, the length is lr·(ratio − 1)/ratio.",
            "p * (ratio - 1)",
            "p * ratio",
        ),
        Wrong(
            "steps-from-one",
            "The rate is one step ahead: steps count from 0.",
            "p = step / cut if step < cut else 1 - (step - cut)",
            "p = (step + 1) / cut if step + 1 < cut else 1 - (step + 1 - cut)",
        ),
        Wrong(
            "lowest-at-the-last-step",
            "The fall reaches the lowest rate at the last step. It would do so one step after it.",
            "(steps - cut)",
            "max(steps - cut - 1, 1)",
        ),
    ),
    alternatives=(
        Alternative(
            "branches",
            """\
lowest = lr / ratio
cut = math.floor(steps * cut_frac)
if step < cut:
    return lowest + (lr - lowest) * step / cut
return lowest + (lr - lowest) * (steps - step) / (steps - cut)
""",
        ),
        Alternative(
            "NumPy",
            """\
cut = int(steps * cut_frac)
knots = [0.0, cut, steps] if cut else [0.0, steps]
heights = [0.0, 1.0, 0.0] if cut else [1.0, 0.0]
return float(np.interp(step, knots, heights) * (lr - lr / ratio) + lr / ratio)
""",
        ),
    ),
)


def one_cycle_cases(rng: np.random.Generator) -> list[Case]:
    """First, rising, highest, falling and last steps; a peak that is whole, between steps, at either end."""
    steps = 4 * int(rng.integers(10, 20)) + 2  # the peak lies between two steps
    settings = {
        "pct_start": float(rng.uniform(0.4, 0.7)),
        "div": float(rng.uniform(5.0, 15.0)),
        "div_final": float(rng.uniform(20.0, 90.0)),
    }
    peak = settings["pct_start"] * steps - 1
    return schedule_cases(
        rng,
        {
            "first step": (0, steps, {}),
            "rising": (int(rng.integers(2, 6)), steps, {}),
            "last step of the rise": (steps // 4 - 1, steps, {}),
            "first step of the fall": (steps // 4, steps, {}),
            "falling": (int(rng.integers(steps // 2, steps - 6)), steps, {}),
            "last but one step": (steps - 2, steps, {}),
            "last step": (steps - 1, steps, {}),
            "first step, other settings": (0, steps, settings),
            "rising, other settings": (int(rng.integers(2, int(peak) - 2)), steps, settings),
            "falling, other settings": (int(rng.integers(int(peak) + 3, steps - 3)), steps, settings),
            "last step, other settings": (steps - 1, steps, settings),
            "peak on a step": (9, 40, {}),
            "peak before the start": (2, steps, {"pct_start": 0.5 / steps}),
            "no rise": (0, steps, {"pct_start": 0.0}),
            "a single step": (0, 1, {}),
            "a single step, peak at the end": (0, 1, {"pct_start": 1.0}),
            "peak at the end": (steps - 1, steps, {"pct_start": 1.0}),
            "rising to the end": (int(rng.integers(2, steps - 2)), steps, {"pct_start": 1.0}),
        },
    )


ONE_CYCLE = Exercise(
    id="2.03",
    function="lessons.lesson_02_ulmfit_target:one_cycle",
    title="One-cycle schedule",
    points=3,
    cases=one_cycle_cases,
    wrong=(
        Wrong(
            "peak-one-step-late",
            "The peak is at pct_start · steps − 1, because steps count from 0; the 1 was not subtracted.",
            "pct_start * steps - 1",
            "pct_start * steps",
        ),
        Wrong(
            "straight-lines",
            "The rate goes along straight lines. It follows half a cosine up and half a cosine down.",
            "math.cos(math.pi * p)",
            "(1 - 2 * p)",
        ),
        Wrong(
            "quarter-cosine",
            "The cosine runs over a quarter of its period, so neither end is reached.",
            "math.pi * p",
            "math.pi * p / 2",
        ),
        Wrong(
            "divisors-swapped",
            "The first rate is the peak divided by `div`, the last one the peak divided by `div_final`: they were "
            "exchanged.",
            "peak, last = max",
            "div, div_final = div_final, div\npeak, last = max",
        ),
        Wrong(
            "final-below-the-first",
            "The last rate was reckoned from the first one. Both divisors are of the peak.",
            "lr / div_final",
            "lr / div / div_final",
        ),
        Wrong(
            "ends-at-zero",
            "The rate falls to 0. Its last value is the peak divided by `div_final`.",
            "lr, lr / div_final",
            "lr, 0.0",
        ),
        Wrong(
            "starts-at-zero",
            "The rate rises from 0. Its first value is the peak divided by `div`.",
            "lr / div, lr, step / peak",
            "0.0, lr, step / peak",
        ),
        Wrong(
            "lowest-after-the-end",
            "The lowest rate is reached one step after the last. The last step is steps − 1.",
            "steps - 1\n",
            "steps\n",
        ),
        Wrong(
            "fall-from-the-start",
            "The way down was counted from the first step. It begins at the peak.",
            "(step - peak) / (last - peak)",
            "step / last",
        ),
        Wrong(
            "direction-reversed",
            "Both halves run backwards: the cosine is 1 at the beginning of a way and −1 at its end.",
            "(start - end) * (1 + math.cos",
            "(start - end) * (1 - math.cos",
        ),
    ),
    alternatives=(
        Alternative(
            "sine",  # (1 + cos πp)/2 = 1 − sin²(πp/2)
            """\
peak = pct_start * steps - 1.0
if peak < 0.0:
    peak = 0.0
if step < peak:
    done = math.sin(math.pi * step / peak / 2.0) ** 2
    return lr / div * (1.0 - done) + lr * done
if peak >= steps - 1:
    return lr
done = math.sin(math.pi * (step - peak) / (steps - 1 - peak) / 2.0) ** 2
return lr * (1.0 - done) + lr / div_final * done
""",
        ),
        Alternative(
            "NumPy",
            """\
def between(a: float, b: float, p: float) -> float:
    return float(b + (a - b) * (1.0 + np.cos(np.pi * p)) / 2.0)

peak = np.maximum(pct_start * steps - 1, 0)
if step < peak:
    return between(lr / div, lr, step / peak)
rest = steps - 1 - peak
return between(lr, lr / div_final, (step - peak) / rest if rest > 0 else 0.0)
""",
        ),
    ),
)


EXERCISES = (RATES, SLANTED, ONE_CYCLE)
