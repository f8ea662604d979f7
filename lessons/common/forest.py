"""A random forest for regression on yes/no inputs, and permutation importance on the rows that its trees have not seen.

Breiman (2001), "Random Forests", Machine Learning 45, 5–32. With inputs of 0 and 1 a split has no threshold to look
for: a column divides the rows, or it does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# ---------------------------------------------------------------------------------------------- one tree


def best_split(X: np.ndarray, y: np.ndarray, min_leaf: int = 1) -> tuple[int, float]:
    """The column whose split lowers the squared error most.

    Rows with 0 go to one side and rows with 1 to the other, and each side predicts its mean. A side of n rows with sum
    s then has the squared error Σy² − s²/n, so a split gains s₀²/n₀ + s₁²/n₁ − s²/n.

    Parameters
    ----------
    X : (n, G) of 0 and 1, float64
    y : (n,) float64
    min_leaf : int
        Fewest rows on either side.

    Returns
    -------
    column : int
        Of equal gains the first; -1 if no column leaves `min_leaf` rows on both sides.
    gain : float
        By how much the squared error falls; 0 if there is no column.
    """
    ### BEGIN SOLUTION
    n, total = len(y), y.sum()
    n1, s1 = X.sum(0), y @ X  # (G,): rows on the side of the ones, and their sum
    n0, s0 = n - n1, total - s1
    allowed = np.minimum(n0, n1) >= max(1, min_leaf)
    if not allowed.any():
        return -1, 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = np.where(allowed, s0**2 / n0 + s1**2 / n1 - total**2 / n, -np.inf)
    column = int(gains.argmax())
    return column, float(gains[column])
    ### END SOLUTION


class Tree(NamedTuple):
    """A regression tree as arrays, one place a node; node 0 is the root.

    Attributes
    ----------
    column : (nodes,) int
        What a node asks for; a leaf asks for column 0 and goes on to itself whatever the answer.
    child : (nodes, 2) int
        Where to go with a 0 and with a 1.
    value : (nodes,) float
        Mean of the rows that came here.
    depth : int
        Questions on the longest way.
    """

    column: np.ndarray
    child: np.ndarray
    value: np.ndarray
    depth: int


def grow_tree(X: np.ndarray, y: np.ndarray, max_features: int, min_leaf: int, rng: np.random.Generator) -> Tree:
    """Split until no split gains or leaves `min_leaf` rows on both sides (CART).

    Parameters
    ----------
    X : (n, G) of 0 and 1, float64
    y : (n,) float64
    max_features : int
        Columns that each node draws to choose from; more only if those drawn are all constant there.
    min_leaf : int
    rng : numpy Generator

    Returns
    -------
    tree : Tree
    """
    columns, children, values = [0], [[0, 0]], [float(y.mean())]
    open_nodes = [(0, np.arange(len(y)), 0)]
    depth = 0
    while open_nodes:
        node, rows, level = open_nodes.pop()
        here, wanted = X[rows], y[rows] - values[node]  # around their mean: sums of large numbers would lose digits
        if len(rows) < 2 * min_leaf:
            continue
        order = rng.permutation(X.shape[1])
        varied = np.flatnonzero((here != here[0]).any(0)[order])  # places in this order whose column is not constant
        if not varied.size:
            continue
        drawn = order[: max(max_features, varied[0] + 1)]
        place, gain = best_split(here[:, drawn], wanted, min_leaf)
        if place < 0 or gain <= 1e-12 * float(wanted @ wanted):
            continue
        columns[node] = int(drawn[place])
        children[node] = [len(columns), len(columns) + 1]
        depth = max(depth, level + 1)
        answer = here[:, columns[node]] > 0
        for part in (rows[~answer], rows[answer]):
            open_nodes.append((len(columns), part, level + 1))
            columns.append(0)
            children.append([len(children), len(children)])
            values.append(float(y[part].mean()))
    return Tree(np.array(columns), np.array(children), np.array(values), depth)


# ---------------------------------------------------------------------------------------------- many trees


@dataclass(frozen=True)
class Forest:
    """Trees grown on bootstrap samples of the same rows.

    Attributes
    ----------
    trees : list of Tree
    in_bag : (trees, n) bool
        Which rows each tree was grown on.
    X : (n, G) of 0 and 1, float64
    y : (n,) float64
    """

    trees: list[Tree]
    in_bag: np.ndarray
    X: np.ndarray
    y: np.ndarray

    @classmethod
    def grow(
        cls,
        X: np.ndarray,
        y: np.ndarray,
        n_trees: int = 300,
        max_features: int | None = None,
        min_leaf: int = 3,
        seed: int = 0,
    ) -> Forest:
        """A forest on rows of yes/no answers.

        Parameters
        ----------
        X : (n, G) of 0 and 1
        y : (n,)
        n_trees : int
        max_features : int, optional
            Columns that each node chooses from; by default a third of all.
        min_leaf : int
            Fewest rows in a leaf.
        seed : int

        Raises
        ------
        ValueError
            If X holds anything but 0 and 1.
        """
        X, y = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
        if not np.isin(X, (0.0, 1.0)).all():
            raise ValueError("a forest of yes/no questions needs inputs of 0 and 1")
        rng = np.random.default_rng(seed)
        n, G = X.shape
        trees, in_bag = [], np.zeros((n_trees, n), dtype=bool)
        for number in range(n_trees):
            rows = rng.integers(0, n, n)
            in_bag[number, rows] = True
            trees.append(grow_tree(X[rows], y[rows], max_features or max(1, G // 3), min_leaf, rng))
        return cls(trees, in_bag, X, y)

    def each(self, X: np.ndarray) -> np.ndarray:
        """What every tree predicts.

        Parameters
        ----------
        X : (n, G) of 0 and 1

        Returns
        -------
        predictions : (trees, n)
        """
        bits = np.asarray(X).astype(np.intp)
        rows = np.arange(len(bits))
        predictions = np.empty((len(self.trees), len(bits)))
        for number, tree in enumerate(self.trees):
            node = np.zeros(len(bits), dtype=np.intp)
            for _ in range(tree.depth):
                node = tree.child[node, bits[rows, tree.column[node]]]
            predictions[number] = tree.value[node]
        return predictions

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Mean of the trees, (n, G) -> (n,)."""
        return self.each(X).mean(0)

    def out_of_bag(self, X: np.ndarray | None = None) -> np.ndarray:
        """Mean over the trees that a row was not used for.

        Parameters
        ----------
        X : (n, G) of 0 and 1, optional
            The forest's own rows with some answers changed; by default as they are.

        Returns
        -------
        prediction : (n,)
            NaN for a row that every tree has seen.
        """
        unseen = ~self.in_bag
        with np.errstate(invalid="ignore"):
            return (self.each(self.X if X is None else X) * unseen).sum(0) / unseen.sum(0)

    def out_of_bag_r2(self) -> float:
        """Share of the variance of y that the out-of-bag predictions explain."""
        return r2(self.y, self.out_of_bag())

    def flipped(self) -> np.ndarray:
        """Out-of-bag predictions with one answer turned round, (n, G)."""
        out = np.empty_like(self.X)
        for column in range(self.X.shape[1]):
            X = self.X.copy()
            X[:, column] = 1 - X[:, column]
            out[:, column] = self.out_of_bag(X)
        return out


def r2(y: np.ndarray, prediction: np.ndarray) -> float:
    """1 − squared error / variance, over the rows that have a prediction."""
    known = ~np.isnan(prediction)
    y = y[known]
    return 1.0 - float(((y - prediction[known]) ** 2).sum() / ((y - y.mean()) ** 2).sum())


# ---------------------------------------------------------------------------------------------- importance


def permutation_importance(
    X: np.ndarray, y: np.ndarray, prediction: np.ndarray, flipped: np.ndarray, permutations: np.ndarray
) -> np.ndarray:
    """How much R² falls when a column's answers are dealt out anew among the rows.

    A row whose bit is dealt the same value keeps its prediction; one that is dealt the other value gets the prediction
    with that bit flipped. So one flipped prediction a column serves any number of permutations, exactly.

    Parameters
    ----------
    X : (n, G) of 0 and 1
    y : (n,)
    prediction : (n,)
        Of the rows as they are.
    flipped : (n, G)
        Column j: predictions of the rows with bit j turned round.
    permutations : (repeats, n) integers
        Row n gets the bit of row ``permutations[r, n]``.

    Returns
    -------
    importance : (repeats, G)
        R² as it is, minus R² with that column permuted. 0 for a column that the predictions do not depend on.

    References
    ----------
    Breiman (2001), section 10; Fisher, Rudin, Dominici (2019), arXiv:1801.01489.
    """
    ### BEGIN SOLUTION
    variance = ((y - y.mean()) ** 2).sum()
    error = (y - prediction) ** 2  # (n,)
    added = (y[:, None] - flipped) ** 2 - error[:, None]  # (n, G): what a flip adds to a row's squared error
    return np.array([(added * (X[order] != X)).sum(0) for order in permutations]) / variance
    ### END SOLUTION


class Importance(NamedTuple):
    """Permutation importance of every column.

    Attributes
    ----------
    mean, low, high : (G,)
        Mean over the repeats, and three standard deviations to either side.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def covers_zero(self, column: int) -> bool:
        """Whether a column may well be of no importance."""
        return bool(self.low[column] <= 0.0 <= self.high[column])


def forest_importance(forest: Forest, repeats: int = 100, seed: int = 0) -> Importance:
    """Permutation importance on out-of-bag rows, with intervals.

    Every repeat deals the answers out anew among rows that are themselves drawn with replacement: the interval allows
    for the luck of the deal and for that of the rows.

    Parameters
    ----------
    forest : Forest
    repeats : int
        Ten or more.
    seed : int
    """
    rng = np.random.default_rng(seed)
    prediction, flipped = forest.out_of_bag(), forest.flipped()
    known = np.flatnonzero(~np.isnan(prediction))
    found = []
    for _ in range(repeats):
        rows = rng.choice(known, known.size)
        deal = rng.permutation(known.size)[None]
        found.append(permutation_importance(forest.X[rows], forest.y[rows], prediction[rows], flipped[rows], deal)[0])
    mean, deviation = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
    return Importance(mean, mean - 3 * deviation, mean + 3 * deviation)


def ridge_effects(X: np.ndarray, y: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """Main effects by ridge regression: how much y changes with each answer, all others alike.

    Parameters
    ----------
    X : (n, G) of 0 and 1
    y : (n,)
    penalty : float

    Returns
    -------
    effects : (G,)
    """
    centred = X - X.mean(0)
    return np.linalg.solve(centred.T @ centred + penalty * np.eye(X.shape[1]), centred.T @ (y - y.mean()))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks, equal values sharing theirs."""
    ranks = [_ranks(np.asarray(v, dtype=np.float64)) for v in (a, b)]
    centred = [r - r.mean() for r in ranks]
    norm = math.sqrt(float(centred[0] @ centred[0]) * float(centred[1] @ centred[1]))
    return float(centred[0] @ centred[1]) / norm if norm else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def top_overlap(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Share of the k largest of one that are among the k largest of the other."""
    first, second = (set(np.argsort(-np.asarray(v), kind="stable")[:k].tolist()) for v in (a, b))
    return len(first & second) / k
