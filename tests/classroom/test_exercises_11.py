"""Lesson 11's exercises: mistakes that nobody listed are caught as well, those that look right on easy cases too.

What holds of every exercise (form, references, other right ways, listed mistakes) is in ``test_exercises.py``.
"""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest

from classroom import assignment, judge, source
from classroom.exercise import Exercise
from classroom.recorded import Outcome, RecordedExercise
from classroom.values import plain

EXERCISES = {exercise.name: exercise for exercise in assignment.load(11)}
SEEDS = (assignment.PUBLIC_SEED, b"a secret")


@functools.cache
def lesson(seed: bytes) -> dict[str, RecordedExercise]:
    return {r.id: r for r in assignment.complete(assignment.inputs(11, seed)).exercises}


def failed(exercise: Exercise, body: str, seed: bytes) -> list[str]:
    """The cases in which a body is wrong, or raises."""
    function = source.function(importlib.import_module(exercise.module), exercise.name, body)
    names = []
    for case in lesson(seed)[exercise.id].cases:
        assert case.expected is not None
        assert case.tolerance is not None
        try:
            with np.errstate(all="ignore"):
                answer = assignment.outcome(function, case.args, exercise.mutates)
        except Exception:
            names.append(case.name)
            continue
        expected, actual = (Outcome(plain(o.answer), {}) for o in (case.expected, answer))
        if judge.compare(expected, actual, case.tolerance, exercise.float32) is not None:
            names.append(case.name)
    return names


UNSEEN = [
    ("choose_rate", "return int(np.argmin(losses))"),
    ("choose_rate", "return int(np.nanargmin(losses)) if np.isfinite(losses).any() else -1"),
    ("choose_rate", "losses = [l if math.isfinite(l) else 1e9 for l in losses]\nreturn losses.index(min(losses))"),
    ("choose_rate", "return rates.index(min(rates))"),
    ("choose_rate", "known = [l for l in losses if l == l]\nreturn losses.index(min(known)) if known else -1"),
    ("choose_rate", "return max(range(len(rates)), key=lambda i: (-losses[i], rates[i]))"),
    ("mean_interval", "m = float(np.mean(values))\ns = float(np.std(values))\nreturn m, m - 2 * s, m + 2 * s"),
    (
        "mean_interval",
        "x = np.array(values)\ns = float(x.std(ddof=1)) / len(x) ** 0.5\nm = float(x.mean())\n"
        "return m, m - 1.96 * s, m + 1.96 * s",
    ),
    ("mean_interval", "return float(np.mean(values)), float(min(values)), float(max(values))"),
    (
        "mean_interval",
        "x = np.array(values)\nh = student_t(0.975, len(x) - 1) * float(x.std(ddof=1)) / len(x) ** 0.5\n"
        "return float(x.mean()), float(x.mean()) - h, float(x.mean()) + h",
    ),
    (
        "mean_interval",
        "x = np.array(values)\nh = student_t(level, len(x) - 1) * float(x.std()) / (len(x) - 1) ** 0.5\n"
        "return float(x.mean()), float(x.mean()) - h, float(x.mean()) + h",
    ),
    (
        "paired_interval",
        "a, b = mean_interval(list(first.values()), level), mean_interval(list(second.values()), level)\n"
        "return a[0] - b[0], a[1] - b[2], a[2] - b[1]",
    ),
    ("paired_interval", "return mean_interval([first[s] - second[s] for s in first], level)"),
    (
        "paired_interval",
        "return mean_interval([first[s] - second[s] for s in sorted(first.keys() & second.keys())], 0.95)",
    ),
    (
        "paired_interval",
        "return mean_interval([a - b for (_, a), (_, b) in zip(sorted(first.items()), sorted(second.items()))], level)",
    ),
    (
        "paired_interval",
        "return mean_interval([first[s] / second[s] - 1 for s in first.keys() & second.keys()], level)",
    ),
    ("pareto_front", "return quality == quality.max()"),
    ("pareto_front", "return cost == cost.min()"),
    ("pareto_front", "return (cost <= np.median(cost)) & (quality >= np.median(quality))"),
    ("pareto_front", "return np.array([not ((cost < c) & (quality > q)).any() for c, q in zip(cost, quality)])"),
    ("pareto_front", "return np.array([(quality[cost <= c] <= q).all() for c, q in zip(cost, quality)])"),
    (
        "pareto_front",
        "front = np.zeros(len(cost), dtype=bool)\nbest = -np.inf\nfor i in np.argsort(cost, kind='stable'):\n"
        "    if quality[i] > best:\n        front[i], best = True, quality[i]\nreturn front",
    ),
    (
        "pareto_front",
        "front = np.zeros(len(cost), dtype=bool)\nbest = 0.0\nfor i in np.lexsort((-quality, cost)):\n"
        "    if quality[i] > best:\n        front[i], best = True, quality[i]\nreturn front",
    ),
]


@pytest.mark.parametrize("seed", SEEDS, ids=["public", "secret"])
@pytest.mark.parametrize(("name", "body"), UNSEEN, ids=[f"{name}-{i}" for i, (name, _) in enumerate(UNSEEN)])
def test_mistakes_that_nobody_listed_are_caught(name: str, body: str, seed: bytes) -> None:
    assert failed(EXERCISES[name], body, seed)


def test_what_is_right_would_not_be_caught() -> None:
    for exercise in EXERCISES.values():
        assert failed(exercise, assignment.reference_body(exercise.function), b"a secret") == []
