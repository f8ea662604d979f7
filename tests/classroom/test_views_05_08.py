"""Views of lessons 5 to 8: of several right answers each passes, and of the wrong ones none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from classroom import judge, views
from classroom.recorded import Outcome, Tolerance
from classroom.values import plain

TOLERANCE = Tolerance(1e-9, 1e-6, 1e-3)


def same(view: str, args: Any, a: Any, b: Any) -> bool:
    """Whether the judge takes b for a."""
    first, second = views.both(view, args, plain(a), plain(b))
    return judge.compare(Outcome(first, {}), Outcome(second, {}), TOLERANCE, float32=False) is None


def test_factors_may_have_other_signs_or_be_others_of_the_same_product() -> None:
    rng = np.random.default_rng(0)
    left, right, turn = rng.standard_normal((5, 2)), rng.standard_normal((2, 4)), rng.standard_normal((2, 2))
    flip = np.array([1.0, -1.0])
    other = left @ turn, np.linalg.solve(turn, right)
    assert same("svd_signs", {}, (left, right), (left * flip, flip[:, None] * right))
    assert not same("svd_signs", {}, (left, right), (left * flip, right))
    assert not same("svd_signs", {}, (left, right), other)
    assert same("svd_product", {}, (left, right), other)
    assert not same("svd_product", {}, (left, right), (left, 1.001 * right))
    assert same("lora_signs", {}, (right, left), (flip[:, None] * right, left * flip))
    assert not same("lora_signs", {}, (right, left), other[::-1])
    assert same("lora_product", {}, (right, left, 1.0), (*other[::-1], 1.0))
    assert not same("lora_product", {}, (right, left, 1.0), (right, left, 1.1))
    assert not same("lora_product", {}, (right, left, 1.0), (right, 0.5 * left, 2.0))


def test_columns_of_equal_length_may_be_turned_either_way() -> None:
    for alpha, turned in ((2.0, True), (2.1, False)):
        assert same("rotation", {"alpha": alpha, "beta": 2.0}, (0.7, 0.7), (0.7, -0.7)) is turned
    assert not same("rotation", {"alpha": 2.0, "beta": 2.0}, (0.7, 0.7), (-0.7, 0.7))


def test_principal_components_may_point_either_way() -> None:
    from lessons.lesson_06_low_rank_svd import pca

    x = np.random.default_rng(1).standard_normal((3, 7))
    mean, axes, scores, variances = right = pca(x)
    flip = np.array([-1.0, 1.0, -1.0])
    free = np.linalg.svd(np.concatenate([axes[:2], np.eye(7)[:1]]), full_matrices=True)[2][6]
    args = {"x": x}
    for other, passes in (
        ((mean, flip[:, None] * axes, scores * flip, variances), True),
        ((mean, flip[:, None] * axes, scores, variances), False),
        ((mean, np.stack([*axes[:2], free]), scores, variances), True),  # three observations vary along two axes
        ((mean, np.stack([*axes[:2], 2 * free]), scores, variances), False),
        ((mean, axes[[1, 0, 2]], scores[:, [1, 0, 2]], variances), False),
    ):
        assert same("principal_components", args, right, other) is passes


def test_a_start_may_be_drawn_in_any_order_and_from_no_other_distribution() -> None:
    from lessons.lesson_08_adapters import near_identity

    d, m, std = 90, 46, 0.01
    args = {"d": d, "m": m, "std": std}
    right = near_identity(d, m, std, np.random.default_rng(0))
    for seed in range(1, 60):
        assert same("near_identity", args, right, near_identity(d, m, std, np.random.default_rng(seed)))
    rng = np.random.default_rng(7)
    down, b, up, c = near_identity(d, m, std, rng)
    for other in (
        (rng.uniform(-0.02, 0.02, down.shape), b, up, c),
        (down, b, down.T.copy(), c),
        (down, b, np.broadcast_to(up[:1], up.shape).copy(), c),
        (down, b, 1.2 * up, c),
        (down + 0.002, b, up, c),
        (down, b, up, c + 1e-3),
        (down.astype(np.float32), b, up, c),
        (down.T, b, up.T, c),
        (np.zeros((0, 0)), b, up, c),
        (np.full_like(down, math.nan), b, up, c),
    ):
        assert not same("near_identity", args, right, other)
