"""The forest on yes/no questions: splits, trees, out-of-bag predictions, permutation importance, and scikit-learn's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lessons.common.forest import (
    Forest,
    best_split,
    forest_importance,
    grow_tree,
    permutation_importance,
    r2,
    ridge_effects,
    spearman,
    top_overlap,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "importance.npz"


def answers(n: int, G: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (n, G)).astype(float)


def response(X: np.ndarray, noise: float = 0.1, seed: int = 1) -> np.ndarray:
    """Two large effects, a small one, and two columns that count only together."""
    clean = 3 * X[:, 0] - 2 * X[:, 2] + 0.5 * X[:, 3] + 2 * X[:, 4] * X[:, 5]
    return clean + noise * np.random.default_rng(seed).normal(size=len(X))


@pytest.fixture(scope="module")
def forest() -> Forest:
    X = answers(300, 9)
    return Forest.grow(X, response(X), n_trees=60, seed=2)


def squared_error(y: np.ndarray) -> float:
    return float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0


# ---------------------------------------------------------------------------------------------- splits and trees


@pytest.mark.parametrize(("n", "G", "min_leaf"), [(30, 5, 1), (30, 5, 8), (7, 1, 1), (2, 3, 1), (40, 12, 3)])
def test_best_split_is_the_one_with_the_least_error_left(n: int, G: int, min_leaf: int) -> None:
    X = answers(n, G, seed=n)
    y = np.random.default_rng(n).normal(size=n) + 100.0  # far from 0: sums must not lose the differences
    gains = []
    for column in X.T:
        sides = [y[column == bit] for bit in (0, 1)]
        enough = min(map(len, sides)) >= min_leaf
        gains.append(squared_error(y) - sum(map(squared_error, sides)) if enough else -1.0)
    column, gain = best_split(X, y, min_leaf)
    if max(gains) < 0:
        assert (column, gain) == (-1, 0.0)
    else:
        assert column == int(np.argmax(gains))
        assert gain == pytest.approx(max(gains), rel=1e-6, abs=1e-8)


def test_best_split_takes_the_first_of_equal_columns_and_none_of_constant_ones() -> None:
    column = np.array([0.0, 1, 1, 0])
    X = np.stack([np.ones(4), np.zeros(4), column, 1 - column, column], axis=1)
    y = np.array([0.0, 2, 2, 0])
    assert best_split(X, y) == (2, pytest.approx(4.0))
    assert best_split(X[:, :2], y) == (-1, 0.0)
    assert best_split(X, y, min_leaf=3) == (-1, 0.0)


def test_a_tree_with_all_columns_and_leaves_of_one_learns_its_rows_by_heart() -> None:
    X = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=float)
    y = np.arange(8.0) ** 2
    tree = grow_tree(X, y, 3, 1, np.random.default_rng(0))
    single = Forest([tree], np.zeros((1, 8), dtype=bool), X, y)
    assert single.predict(X) == pytest.approx(y)
    assert tree.depth == 3


@pytest.mark.parametrize("min_leaf", [1, 5, 20])
def test_leaves_have_enough_rows_and_hold_their_mean(min_leaf: int) -> None:
    X = answers(100, 6)
    y = response(X)
    tree = grow_tree(X, y, 2, min_leaf, np.random.default_rng(1))
    bits, node = X.astype(int), np.zeros(100, dtype=int)
    for _ in range(tree.depth):
        node = tree.child[node, bits[np.arange(100), tree.column[node]]]
    for leaf in np.unique(node):
        assert (tree.child[leaf] == leaf).all()
        assert (node == leaf).sum() >= min_leaf
        assert tree.value[leaf] == pytest.approx(y[node == leaf].mean())


def test_a_constant_response_is_one_leaf() -> None:
    tree = grow_tree(answers(20, 3), np.full(20, 7.0), 3, 1, np.random.default_rng(0))
    assert (tree.depth, tree.value.tolist()) == (0, [7.0])


# ---------------------------------------------------------------------------------------------- the forest


def test_out_of_bag_predictions_are_means_over_trees_that_have_not_seen_the_row(forest: Forest) -> None:
    each, prediction = forest.each(forest.X), forest.out_of_bag()
    for row in (0, 17, 299):
        unseen = ~forest.in_bag[:, row]
        assert prediction[row] == pytest.approx(each[unseen, row].mean())
    assert 0.3 < (~forest.in_bag).mean() < 0.44  # (1 − 1/n)ⁿ ≈ 1/e


def test_a_forest_explains_rows_that_it_has_not_seen(forest: Forest) -> None:
    assert forest.out_of_bag_r2() > 0.8
    new = answers(200, 9, seed=9)
    assert r2(response(new, 0.0), forest.predict(new)) > 0.8
    assert r2(forest.y, forest.predict(forest.X)) > forest.out_of_bag_r2()


def test_shuffled_responses_are_not_explained(forest: Forest) -> None:
    shuffled = Forest.grow(forest.X, np.random.default_rng(3).permutation(forest.y), n_trees=60)
    assert shuffled.out_of_bag_r2() < 0.1


def test_a_row_that_every_tree_has_seen_has_no_prediction() -> None:
    X = answers(12, 2)
    few = Forest.grow(X, response(np.hstack([X, answers(12, 4)])), n_trees=2)
    seen = few.in_bag.all(0)
    assert seen.any()
    assert (np.isnan(few.out_of_bag()) == seen).all()
    assert np.isfinite(few.out_of_bag_r2())
    assert np.isfinite(forest_importance(few, repeats=3).mean).all()


def test_the_same_seed_gives_the_same_forest() -> None:
    X = answers(50, 4)
    y = response(np.hstack([X, X[:, :2]]))
    a, b, c = (Forest.grow(X, y, 5, seed=seed).predict(X) for seed in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()


def test_inputs_other_than_yes_and_no_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs of 0 and 1"):
        Forest.grow(np.array([[0.0, 0.5]]), np.zeros(1))


# ---------------------------------------------------------------------------------------------- importance


def test_importance_is_the_fall_of_r2_when_a_column_is_permuted(forest: Forest) -> None:
    rng = np.random.default_rng(4)
    permutations = np.array([rng.permutation(300) for _ in range(3)])
    found = permutation_importance(forest.X, forest.y, forest.out_of_bag(), forest.flipped(), permutations)
    before = r2(forest.y, forest.out_of_bag())
    for (repeat, column), value in np.ndenumerate(found):
        X = forest.X.copy()
        X[:, column] = X[permutations[repeat], column]
        assert value == pytest.approx(before - r2(forest.y, forest.out_of_bag(X)), abs=1e-12)


def test_importance_finds_what_counts_and_covers_zero_where_nothing_does(forest: Forest) -> None:
    found = forest_importance(forest, repeats=50)
    assert set(np.argsort(-found.mean)[:2].tolist()) == {0, 2}
    assert {4, 5} <= set(np.argsort(-found.mean)[:4].tolist())  # they count only together
    assert all(found.low[column] > 0 for column in (0, 2, 4, 5))
    assert all(found.covers_zero(column) for column in (1, 6, 7, 8))
    assert (found.low <= found.mean).all()
    assert (found.mean <= found.high).all()


def test_ridge_gives_the_main_effects_of_independent_columns() -> None:
    X = answers(4000, 6)
    effects = ridge_effects(X, response(X, 0.0))
    assert effects == pytest.approx([3, 0, -2, 0.5, 1, 1], abs=0.1)


def test_rank_correlation_and_overlap() -> None:
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 30])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486832980505138)
    assert np.isnan(spearman(np.array([1.0, 1]), np.array([1.0, 2])))
    assert top_overlap(np.array([3.0, 2, 1, 0]), np.array([0.0, 2, 3, 1]), 2) == 0.5


# ---------------------------------------------------------------------------------------------- scikit-learn's


@pytest.fixture(scope="module")
def theirs() -> Any:
    with np.load(GOLDEN) as stored:
        return {name.removeprefix("forest."): stored[name] for name in stored.files if name.startswith("forest.")}


def test_forest_agrees_with_scikit_learns(theirs: Any) -> None:
    """Golden values made by tests/parity/test_lesson_05_parity.py."""
    ours = Forest.grow(theirs["X"], theirs["y"], n_trees=200, min_leaf=1)
    assert ours.out_of_bag_r2() == pytest.approx(float(theirs["oob_r2"]), abs=0.02)
    assert spearman(forest_importance(ours).mean[:8], theirs["importance"].mean(0)[:8]) > 0.9


def test_importance_equals_scikit_learns_on_the_same_permutations(theirs: Any) -> None:
    found = permutation_importance(
        theirs["X"], theirs["y"], theirs["prediction"], theirs["flipped"], theirs["permutations"][0]
    )
    assert found[:, 0] == pytest.approx(theirs["importance"][:, 0], abs=1e-12)
    for column, permutations in enumerate(theirs["permutations"]):
        found = permutation_importance(theirs["X"], theirs["y"], theirs["prediction"], theirs["flipped"], permutations)
        assert found[:, column] == pytest.approx(theirs["importance"][:, column], abs=1e-12)
