"""Fisher scores equal to torch autograd on transformers' GPT-2, forest and permutation importance to scikit-learn's.

The golden file of the default tests (tests/golden/importance.npz) is made here, by those libraries and not by our
code. To make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_lesson_05_parity.py -k golden
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from sklearn.ensemble import RandomForestRegressor  # noqa: E402
from sklearn.inspection import permutation_importance as their_importance  # noqa: E402
from sklearn.linear_model import Ridge  # noqa: E402
from sklearn.tree import DecisionTreeRegressor  # noqa: E402

from lessons.common.forest import (  # noqa: E402
    Forest,
    forest_importance,
    grow_tree,
    permutation_importance,
    r2,
    ridge_effects,
    spearman,
)
from lessons.lesson_05_importance_ranking import Importance, fisher, mean_gradient  # noqa: E402
from minigpt import GPT, GPTConfig  # noqa: E402
from minigpt.objectives import LanguageModelling  # noqa: E402
from tests.helpers import error  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden" / "importance.npz"
SETTINGS = {"vocab_size": 13, "n_positions": 9, "n_embd": 6, "n_layer": 2, "n_head": 2}


def their_model():
    config = transformers.GPT2Config(
        **SETTINGS, attn_implementation="eager", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).double().eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            p.copy_(torch.from_numpy(rng.normal(mean, 0.3, size=tuple(p.shape))))
    return model


def our_model(weights):
    model = GPT(GPTConfig(**SETTINGS), dtype="float64")
    assert set(weights) == {p.name for p in model.parameters()}
    for p in model.parameters():
        p.data = weights[p.name].copy()
    return model


def make_batch():
    """Four examples of which unequal numbers of tokens are scored."""
    rng = np.random.default_rng(1)
    ids, targets = rng.integers(0, SETTINGS["vocab_size"], (2, 4, 7))
    targets[0, :4] = targets[1, 5:] = targets[3, :6] = -100
    return {"ids": ids, "targets": targets}


def their_scores(model, batch):
    """Mean squared gradient of each example's own log-probability, and the gradient of the mean loss, by autograd."""
    ids, targets = torch.from_numpy(batch["ids"]), torch.from_numpy(batch["targets"])

    def loss(rows, reduction):
        logits = model(ids[rows]).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets[rows].flatten(), ignore_index=-100, reduction=reduction
        )

    squares = {}
    for b in range(len(ids)):
        model.zero_grad()
        loss(slice(b, b + 1), "sum").backward()
        for name, p in model.named_parameters():
            squares[name] = squares.get(name, 0.0) + p.grad.numpy() ** 2 / len(ids)
    model.zero_grad()
    loss(slice(None), "mean").backward()
    return squares, {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


def test_fisher_and_gradients_equal_autograds():
    theirs = their_model()
    batch = make_batch()
    squares, gradients = their_scores(theirs, batch)
    ours = our_model({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    found = fisher(ours, LanguageModelling(), [batch])
    halves = [{name: array[part] for name, array in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    in_two = fisher(ours, LanguageModelling(), halves)
    mean = mean_gradient(ours, LanguageModelling(), halves)
    assert set(found) == set(squares)
    for name, wanted in squares.items():
        assert error(found[name], wanted) < 1e-9, name
        assert error(in_two[name], wanted) < 1e-9, name
        assert error(mean[name], gradients[name]) < 1e-9, name
    chosen = Importance(score="fisher", density=0.05).masks(ours, data=[batch])
    flat = np.concatenate([squares[name].reshape(-1) for name in chosen])
    picked = np.concatenate([chosen[name].reshape(-1) for name in chosen])
    assert flat[picked].min() >= flat[~picked].max()


def rows(n=400, G=10, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 2, (n, G)).astype(float)
    clean = X @ np.array([3.0, 2.2, 1.6, 1.1, 0.7, 0.4, 0.2, 0.0, 0.0, 0.0]) + 1.5 * X[:, 0] * X[:, 1]
    return X, clean + 0.3 * rng.normal(size=n)


def their_forest(X, y, n_trees=300):
    # Leaves of one row: scikit-learn counts a row that was drawn twice once, we count it twice, as Breiman's does.
    return RandomForestRegressor(n_trees, max_features=max(1, X.shape[1] // 3), oob_score=True, random_state=0).fit(
        X, y
    )


@pytest.mark.parametrize("min_leaf", [1, 4, 30])
def test_a_tree_equals_scikit_learns(min_leaf):
    X, y = rows(150)
    theirs = DecisionTreeRegressor(min_samples_leaf=min_leaf, random_state=0).fit(X, y)
    tree = grow_tree(X, y, X.shape[1], min_leaf, np.random.default_rng(0))
    ours = Forest([tree], np.zeros((1, 150), dtype=bool), X, y)
    assert error(ours.predict(X), theirs.predict(X)) < 1e-12
    assert tree.depth == theirs.get_depth()


@pytest.mark.parametrize("seed", [0, 1])
def test_forest_agrees_with_scikit_learns(seed):
    X, y = rows(seed=seed)
    theirs = their_forest(X, y)
    ours = Forest.grow(X, y, n_trees=300, min_leaf=1, seed=seed)
    assert abs(ours.out_of_bag_r2() - theirs.oob_score_) < 0.01
    new, wanted = rows(1000, seed=seed + 50)
    assert abs(r2(wanted, ours.predict(new)) - theirs.score(new, wanted)) < 0.01
    importance = their_importance(theirs, X, y, n_repeats=10, random_state=0)
    assert spearman(forest_importance(ours).mean[:8], importance.importances_mean[:8]) > 0.9


def dealt(model, X, y, n_repeats=5):
    """Their importances, and the permutations that they drew for every column: (G, repeats, n)."""
    seen = []

    class Watched:
        def fit(self, X, y):
            return self

        def predict(self, X):
            seen.append(X.copy())
            return model.predict(X)

        def score(self, X, y):
            return r2(y, self.predict(X))

    labelled = np.hstack([X, np.arange(len(X))[:, None]])  # a column that tells which row's value has come

    class Numbered(Watched):
        def predict(self, X):
            return super().predict(X[:, :-1])

    found = their_importance(Numbered(), labelled, y, n_repeats=n_repeats, random_state=0).importances
    # The same draws again on row numbers: a column's seed and the shuffles depend on nothing but the random state.
    numbers = np.repeat(np.arange(len(X))[:, None], X.shape[1] + 1, axis=1)
    orders = []

    class Orders(Watched):
        def predict(self, X):
            orders.append(X.copy())
            return np.zeros(len(X))

    their_importance(Orders(), numbers, y, n_repeats=n_repeats, random_state=0)
    drawn = np.array(orders[1:]).reshape(X.shape[1] + 1, n_repeats, len(X), -1)  # the first is the unpermuted one
    permutations = np.array([drawn[column, :, :, column] for column in range(X.shape[1])])
    return found[:-1].T, permutations


def test_importance_equals_scikit_learns_on_the_same_permutations():
    X, y = rows(120)
    theirs = their_forest(X, y, 20)
    wanted, permutations = dealt(theirs, X, y)
    flipped = np.stack([theirs.predict(np.where(np.arange(10) == j, 1 - X, X)) for j in range(10)], axis=1)
    for column in range(10):
        found = permutation_importance(X, y, theirs.predict(X), flipped, permutations[column])
        assert found[:, column] == pytest.approx(wanted[:, column], abs=1e-12)
    assert np.abs(wanted).max() > 0.1


def test_ridge_equals_scikit_learns():
    X, y = rows(60)
    assert ridge_effects(X, y, 2.5) == pytest.approx(Ridge(2.5).fit(X, y).coef_, abs=1e-10)


def make_golden():
    theirs = their_model()
    squares, _ = their_scores(theirs, make_batch())
    X, y = rows(160)
    forest = their_forest(X, y)
    importance, permutations = dealt(forest, X, y, 3)
    flipped = np.stack([forest.predict(np.where(np.arange(10) == j, 1 - X, X)) for j in range(10)], axis=1)
    return {
        **{f"batch.{name}": array for name, array in make_batch().items()},
        **{f"weight.{name}": p.detach().numpy() for name, p in theirs.named_parameters()},
        **{f"fisher.{name}": square for name, square in squares.items()},
        "forest.X": X.astype(np.uint8),
        "forest.y": y,
        "forest.oob_r2": np.array(forest.oob_score_),
        "forest.prediction": forest.predict(X),
        "forest.flipped": flipped,
        "forest.importance": importance,
        "forest.permutations": permutations.astype(np.uint8),
    }


def test_golden_file_is_what_these_libraries_give():
    made = make_golden()
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        np.savez_compressed(GOLDEN, **made)
    with np.load(GOLDEN) as stored:
        assert set(stored.files) == set(made)
        for name, array in made.items():
            assert error(stored[name], array, floor=1e-12) < 1e-7, name
