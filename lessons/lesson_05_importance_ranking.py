"""Lesson 5: importance ranking. Fine-tune the few entries that matter, and find out how well one can tell which do.

1. Scores for every single entry from a few backward passes: |gradient|, |gradient × weight|, empirical Fisher; and the
   controls: magnitude, chance, the lowest gradients.
2. Masked training by hand: gradients, optimizer state and buffers of the selected entries only, all the rest bit for
   bit as it was.
3. What each ranking picks, what it costs, and how well its choice can be fine-tuned, from 0.1 to 20 % of the entries,
   beside the controls at equal count.
4. Random-forest importance done soundly: which groups of parameters carry a fine-tuning change? Random halves of the
   change, the loss with each, a forest on (mask → loss), permutation importance, gates, comparisons and a final proof.

Sung, Nair, Raffel (2021), "Training Neural Networks with Fixed Sparse Masks" (FISH), arXiv:2111.09839; Breiman (2001).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kernels import Backend
from kernels.array import Array, namespace
from lessons.common import derivation, gradcheck, runner
from lessons.common.classifier import Classification, Classifier
from lessons.common.derivation import Derivation, gradients
from lessons.common.forest import best_split, permutation_importance
from lessons.common.gradcheck import Check
from lessons.common.groups import parameter_groups
from lessons.common.masked import (
    MaskedGPT,
    MaskedMethod,
    Masks,
    selected_embedding_gradient,
    selected_weight_gradient,
)
from lessons.common.measure import step_cost
from lessons.common.method import Tuned, as_batches, register
from lessons.common.ranking import CORE, FULL, HEADLINE, QUICK, Everything, Plan, load, show_forest, show_sweep
from lessons.common.ranking_pictures import KINDS, shares, shares_picture
from lessons.common.runner import Run
from lessons.common.table import table
from lessons.common.tasks import Task
from lessons.common.tuning import DATA_BATCHES
from minigpt import GPT, GPTConfig
from minigpt.errors import InputError
from minigpt.objectives import Batch, LanguageModelling, Objective, rows
from minigpt.parameters import Gradients

# ---------------------------------------------------------------------------------------------- scores


def gradient_importance(gradient: Array) -> Array:
    """How fast the loss changes with each entry: |∂L/∂w|.

    Parameters
    ----------
    gradient : array

    Returns
    -------
    scores : array of the same shape
    """
    ### BEGIN SOLUTION
    return abs(gradient)
    ### END SOLUTION


def gradient_weight_importance(gradient: Array, weight: Array) -> Array:
    """To first order, how much the loss would change if an entry were set to 0: |w · ∂L/∂w|.

    Lee, Ajanthan, Torr (2019), "SNIP", arXiv:1810.02340, equation 6, without its normalisation.

    Parameters
    ----------
    gradient, weight : arrays of the same shape

    Returns
    -------
    scores : array of that shape
    """
    ### BEGIN SOLUTION
    return abs(gradient * weight)
    ### END SOLUTION


def per_example_squares(dy: Array, x: Array) -> Array:
    """Squared weight gradients of y = x W, squared for every example and then summed.

    The gradient of one example is the sum over its own tokens, dW_b = x_bᵀ dy_b; the Fisher score of an entry is
    Σ_b (dW_b)². That is neither (Σ_b dW_b)², in which examples that disagree cancel, nor a sum of squares over tokens.

    Parameters
    ----------
    dy : (B, T, out)
        Gradient of the sum of the examples' losses.
    x : (B, T, in)

    Returns
    -------
    squares : (in, out)

    References
    ----------
    arXiv:2111.09839, equation 4.
    """
    ### BEGIN SOLUTION
    squares = namespace(x).zeros((x.shape[-1], dy.shape[-1]), dtype=x.dtype)
    for x_b, dy_b in zip(x, dy, strict=True):
        gradient = x_b.T @ dy_b  # (in, out): of this example alone
        squares += gradient * gradient
    return squares
    ### END SOLUTION


def top_k_mask(scores: Mapping[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """The k entries with the highest scores over all tensors together.

    Of equal scores the one that stands earlier wins: in the order of the tensors, and within one in row-major order.

    Parameters
    ----------
    scores : dict of str to array
    k : int
        From 1 to the number of all entries.

    Returns
    -------
    masks : dict of str to bool array
        Of the scores' shapes, k times True in all.

    Raises
    ------
    ValueError
        If k is out of range or a score is not a number.
    """
    n = sum(s.size for s in scores.values())
    if not 1 <= k <= n:
        raise InputError(f"k is {k}; it must be from 1 to the {n} entries that there are")
    wrong = [name for name, s in scores.items() if np.isnan(s).any()]
    if wrong:
        raise InputError(f"scores of {', '.join(wrong)} are not numbers")
    ### BEGIN SOLUTION
    flat = np.concatenate([s.reshape(-1) for s in scores.values()])
    chosen = np.zeros(n, dtype=bool)
    chosen[np.argsort(-flat, kind="stable")[:k]] = True
    masks, start = {}, 0
    for name, s in scores.items():
        masks[name] = chosen[start : start + s.size].reshape(s.shape)
        start += s.size
    return masks
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- passes


class PerExample(Backend):
    """A backend whose gradients of parameters are sums of squares over examples.

    The model's own backward runs unchanged; only the operations that make a parameter's gradient are others. The token
    embedding is read at both ends of the model, so its two parts are added up for each example before they are squared.

    Parameters
    ----------
    inner : Backend

    Attributes
    ----------
    scored : (B,) integers
        Rows that each example of the pass sends through the output head.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner.name, inner.xp, inner.suffix, inner.reference, inner.device)
        self.scored: Sequence[int] = ()
        self.head: tuple[Array, Array] | None = None
        self.positions: Array = 0.0
        for op in (self.linear_backward_weight, self.linear_backward_bias, self.layernorm_backward_params,
                   self.embedding_backward):  # fmt: skip
            setattr(self.ops, op.__name__, op)

    def linear_backward_weight(self, dy: Array, x: Array, out: Array | None = None) -> Array:
        """(in, out); the head's part waits for the embedding's."""
        if dy.ndim == 3:
            return per_example_squares(dy, x)
        self.head = (x, dy)
        return self.xp.zeros((x.shape[-1], dy.shape[-1]), dtype=x.dtype)

    def linear_backward_bias(self, dy: Array) -> Array:
        """(out,)."""
        return (dy.sum(1) ** 2).sum(0)

    def layernorm_backward_params(self, dy: Array, cache: Any) -> tuple[Array, Array]:
        """(C,) and (C,)."""
        return ((dy * cache.normalised).sum(1) ** 2).sum(0), (dy.sum(1) ** 2).sum(0)

    def embedding_backward(self, dx: Array, ids: Array, dweight: Array) -> Array:
        """Adds to (V, C); every position occurs once an example, so its squares are those of `dx`."""
        self.positions = (dx**2).sum(0)  # (T, C)
        start = 0
        for b, n in enumerate(self.scored if self.head is not None else [0] * len(dx)):
            gradient = self.xp.zeros_like(dweight)
            if self.head is not None:
                dlogits, hidden = (part[start : start + n] for part in self.head)
                gradient += dlogits.T @ hidden
            self.xp.add.at(gradient, ids[b], dx[b])
            dweight += gradient * gradient
            start += n
        self.head = None
        return dweight


def mean_gradient(model: Tuned, objective: Objective, batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """Gradient of the mean loss over all batches together, of the trainable parameters."""
    grads = Gradients(model.parameters(), model.backend)
    total = sum(objective.total(batch) for batch in batches)
    for batch in batches:
        _, backward = objective.forward(model, batch, total, model.context(grad=True))
        backward(grads)
    return {name: model.backend.to_numpy(g) for name, g in grads.as_dict().items()}


def fisher(model: Tuned, objective: Objective, batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """Diagonal of the empirical Fisher information, F = (1/n) Σ_i (∂ log p(y_i|x_i)/∂w)², one pass a batch.

    Parameters
    ----------
    model : GPT or Classifier
        Plain layers; all of the trunk trainable, a head frozen.
    objective : Objective
        Gives the negative log-probability of an example's targets when it divides by 1.
    batches : sequence of Batch

    Returns
    -------
    scores : dict of str to array
    """
    backend = PerExample(model.backend)
    grads = Gradients(model.parameters(), model.backend)
    trunk = model.trunk if isinstance(model, Classifier) else model
    places = np.zeros(trunk.embedding.wpe.data.shape)  # type: ignore[attr-defined]
    for batch in batches:
        backend.scored = (batch["targets"] != -100).sum(1).tolist() if "targets" in batch else ()
        _, backward = objective.forward(model, batch, 1.0, replace(model.context(grad=True), backend=backend))
        backward(grads)
        squares = model.backend.to_numpy(backend.positions)
        places[: len(squares)] += squares
    n = sum(rows(batch) for batch in batches)
    squares = {name: model.backend.to_numpy(g) for name, g in grads.as_dict().items()}
    squares["transformer.wpe.weight"] = places.astype(model.dtype)
    return {name: square / n for name, square in squares.items()}


def fisher_one_by_one(model: Tuned, objective: Objective, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """The same by its definition, one pass an example: what `fisher` is checked against."""
    squares: dict[str, np.ndarray] = {}
    n = 0
    for batch in batches:
        for b in range(rows(batch)):
            one = {name: array[b : b + 1] for name, array in batch.items()}
            grads = Gradients(model.parameters(), model.backend)
            objective.forward(model, one, 1.0, model.context(grad=True))[1](grads)
            for name, g in grads.as_dict().items():
                squares[name] = squares.get(name, 0.0) + model.backend.to_numpy(g) ** 2
            n += 1
    return {name: square / n for name, square in squares.items()}


# ---------------------------------------------------------------------------------------------- the method

SCORES = ("gradient", "gradient_weight", "fisher", "magnitude", "random", "bottom_k")
"""Rankings by name; the last three are controls, ``bottom_k`` the entries with the smallest |gradient|."""

BLIND = ("magnitude", "random")
"""Those that look at no data."""


@register("importance")
@dataclass(frozen=True, kw_only=True)
class Importance(MaskedMethod):
    """Trains the entries that a ranking puts first, over all tensors of the model, and leaves the rest as it is.

    Selected entries have no weight decay. A classifier head is always trained, beside the selection.

    Parameters
    ----------
    density : float
        Share of the base's parameters that is selected, in (0, 1].
    score : str
        One of `SCORES`.
    per_tensor : bool
        Divide scores by their tensor's mean first: LayerNorm gains, of which each moves a whole column, often win a
        ranking by the raw gradient.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    density: float = 0.01
    score: str = "gradient"
    per_tensor: bool = False

    learning_rate: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise InputError(f"density is {self.density}; it must be above 0 and at most 1")
        if self.score not in SCORES:
            raise InputError(f"no score {self.score!r}; there are {', '.join(SCORES)}")

    def masks(self, model: GPT, seed: int = 0, data: Any = None) -> Masks:
        """Which entries are selected, as `top_k_mask` gives them; arguments as for `apply`."""
        scores = self.scores(model, seed, data)
        if self.per_tensor:
            scores = {name: s / (s.mean() or 1.0) for name, s in scores.items()}
        n = sum(s.size for s in scores.values())
        return top_k_mask(scores, max(1, round(self.density * n)))

    def scores(self, model: GPT, seed: int = 0, data: Any = None) -> dict[str, np.ndarray]:
        """The score of every entry, by parameter name; arguments as for `apply`."""
        weights = model.state()
        if self.score == "magnitude":
            return {name: abs(w) for name, w in weights.items()}
        if self.score == "random":
            rng = np.random.default_rng([seed, 5])
            return {name: rng.random(w.shape) for name, w in weights.items()}
        scored, objective, batches = self.scored_model(model, seed, data)
        if self.score == "fisher":
            return in_order(fisher(scored, objective, batches), weights)
        grads = in_order(mean_gradient(scored, objective, batches), weights)
        if self.score == "gradient_weight":
            return {name: gradient_weight_importance(g, weights[name]) for name, g in grads.items()}
        sign = -1.0 if self.score == "bottom_k" else 1.0
        return {name: sign * gradient_importance(g) for name, g in grads.items()}

    def scored_model(self, model: GPT, seed: int, data: Any) -> tuple[Tuned, Objective, list[Batch]]:
        """A model whose whole trunk is trainable, what it is trained for, and the batches to look at."""
        batches = as_batches(data, self.target, f"importance with score={self.score!r}", ("ids", self.target))
        trunk = model.copy()
        trunk.unfreeze()
        if self.n_labels is None:
            return trunk, LanguageModelling(), batches
        scored = Classifier(trunk, self.n_labels, seed)  # the head that training will start from
        scored.freeze(["score*"])
        return scored, Classification(), batches


def in_order(scores: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same scores in another mapping's order, on which ties depend."""
    return {name: scores[name] for name in like}


# ---------------------------------------------------------------------------------------------- the mathematics

PLACE = np.array([0, 3, 4, 9, 14])  # selected entries of a matrix with 5 columns, counted flat


def probe_selected_weight(backend: Backend) -> gradcheck.Function:
    """y = x W, of which a few entries are the variables."""
    weight, places = np.random.default_rng(3).normal(size=(4, 5)), backend.asarray(PLACE)

    def forward(x: Array, values: Array) -> Any:
        full = backend.asarray(weight.copy())
        full.reshape(-1)[places] = values
        return x @ full, lambda dy: {
            "x": dy @ full.T,
            "values": lambda: selected_weight_gradient(dy, x, places // 5, places % 5),
        }

    return forward


def probe_selected_embedding(backend: Backend) -> gradcheck.Function:
    """Rows of a table, of which a few entries are the variables; one row is read twice, one never."""
    table_, places = np.random.default_rng(3).normal(size=(4, 5)), backend.asarray(PLACE)
    ids = backend.asarray(np.array([[0, 2, 0], [3, 1, 1]]))

    def forward(values: Array) -> Any:
        full = backend.asarray(table_.copy())
        full.reshape(-1)[places] = values
        return full[ids], lambda dy: {"values": lambda: selected_embedding_gradient(dy, ids, places // 5, places % 5)}

    return forward


def check_scores(backend: Backend) -> list[Check]:
    """The scores of one layer against central differences of the loss of each example."""
    rng = np.random.default_rng(4)
    x, dy, weight = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4, 5)), rng.normal(size=(2, 5))

    def loss(b: int) -> Callable[[np.ndarray], float]:
        return lambda w: float((x[b] @ w * dy[b]).sum())

    each = np.array([gradcheck.numerical_gradient(loss(b), weight) for b in range(3)])
    whole, host = each.sum(0), backend.to_numpy
    return [
        gradcheck.agree("gradient", abs(whole), lambda: host(gradient_importance(backend.asarray(whole)))),
        gradcheck.agree(
            "gradient × weight",
            abs(whole) * abs(weight),
            lambda: host(gradient_weight_importance(backend.asarray(whole), backend.asarray(weight))),
        ),
        gradcheck.agree(
            "Fisher",
            (each**2).sum(0),
            lambda: host(per_example_squares(backend.asarray(dy), backend.asarray(x))),
        ),
    ]


def check_fisher(backend: Backend) -> list[Check]:
    """Fisher in one pass a batch against one pass an example, on every tensor of a tiny model."""
    model, batch = tiny(backend), tiny_batch()
    one_by_one = fisher_one_by_one(model, LanguageModelling(), [batch])
    try:
        scores = fisher(model, LanguageModelling(), [batch])
    except NotImplementedError:
        return [Check(name.removeprefix("transformer."), f.shape, None) for name, f in one_by_one.items()]
    return [gradcheck.compare(name.removeprefix("transformer."), scores[name], f) for name, f in one_by_one.items()]


def check_top_k(backend: Backend) -> list[Check]:
    """Against sorting all entries by hand, with ties within and between tensors."""
    rng = np.random.default_rng(5)
    scores = {"a": rng.integers(0, 4, (3, 4)).astype(float), "b": rng.integers(0, 4, (5,)).astype(float)}
    every = [(-s, place) for place, s in enumerate(np.concatenate([v.reshape(-1) for v in scores.values()]))]

    def chosen(k: int) -> np.ndarray:
        return np.concatenate([mask.reshape(-1) for mask in top_k_mask(scores, k).values()])

    checks = []
    for k in (1, 6, 17):
        wanted = np.zeros(17)
        wanted[[place for _, place in sorted(every)[:k]]] = 1
        checks.append(gradcheck.agree(f"k = {k}", wanted, partial(chosen, k)))
    return checks


def check_masked_model(backend: Backend) -> list[Check]:
    """A tiny model with a third of its entries selected, each of them moved."""
    model, batch = tiny(backend), tiny_batch()
    rng = np.random.default_rng(6)
    tuned = MaskedGPT(model, {p.name: rng.random(p.data.shape) < 0.3 for p in model.parameters()})

    def loss() -> float:
        return LanguageModelling().forward(tuned, batch, LanguageModelling().total(batch), tuned.context())[0]

    try:
        _, grads = GPT.loss_and_grads(tuned, batch["ids"], batch["targets"])
    except NotImplementedError:
        return [Check(p.name, tuple(p.data.shape), None) for p in tuned.parameters() if p.trainable]
    return gradcheck.check_parameters(tuned.parameters(), loss, grads, backend)


def check_forest(backend: Backend) -> list[Check]:
    """The split and the importance against their definitions, column by column."""
    rng = np.random.default_rng(7)
    X, permutations = rng.integers(0, 2, (40, 6)).astype(float), np.array([rng.permutation(40) for _ in range(3)])

    def predict(X: np.ndarray) -> np.ndarray:
        return 2 * X[:, 1] - X[:, 3] * X[:, 4]

    y = predict(X) + 0.3 * rng.normal(size=40)
    gains = []
    for column in X.T:
        sides = [y[column == bit] for bit in (0, 1)]
        within = sum(float(((side - side.mean()) ** 2).sum()) for side in sides)
        gains.append(float(((y - y.mean()) ** 2).sum()) - within)
    drops = np.empty((3, 6))
    for (r, column), _ in np.ndenumerate(drops):
        dealt = X.copy()
        dealt[:, column] = X[permutations[r], column]
        drops[r, column] = ((y - predict(dealt)) ** 2 - (y - predict(X)) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    flipped = np.stack([predict(np.where(np.arange(6) == column, 1 - X, X)) for column in range(6)], axis=1)
    return [
        gradcheck.agree("best split", [int(np.argmax(gains)), max(gains)], lambda: best_split(X, y, 1)),
        gradcheck.agree("importance", drops, lambda: permutation_importance(X, y, predict(X), flipped, permutations)),
    ]


def tiny(backend: Backend) -> GPT:
    """A model small enough to move each of its parameters, all of them random."""
    model = GPT(GPTConfig(vocab_size=7, n_positions=5, n_embd=6, n_layer=1, n_head=2), dtype="float64", backend=backend)
    rng = np.random.default_rng(8)
    for p in model.parameters():
        p.data = backend.asarray((p.data.ndim == 1 and "ln" in p.name) + 0.4 * rng.normal(size=tuple(p.data.shape)))
    return model


def tiny_batch() -> Batch:
    """Two examples of unequal length."""
    ids, targets = np.random.default_rng(9).integers(0, 7, (2, 2, 4))
    targets[0, 0] = targets[1, 2:] = -100
    return {"ids": ids, "targets": targets}


DERIVATIONS = (
    Derivation(
        "Three scores of an entry",
        """
        L(w + Δ) ≈ L(w) + Σ g_i Δ_i               g = ∂L/∂w
          |g_i|        where a small step would change the loss most
          |g_i w_i|    what setting the entry to 0 would change, to first order
          F_i = (1/n) Σ_b (∂ log p(y_b|x_b)/∂w_i)²       how much an entry moves the model's predictions

        F needs the gradient of every example b on its own. For y = x W it is dW_b = x_bᵀ dy_b, so one backward for the
        batch gives all of them. Squaring the batch's gradient instead lets examples cancel that pull apart.
        """,
        (gradient_importance, gradient_weight_importance, per_example_squares),
        check_scores,
    ),
    Derivation(
        "Fisher of a whole model, beside one pass an example",
        """
        The model's backward stays as it is; the operations that make a parameter's gradient square it an example first.
        """,
        (PerExample.embedding_backward, fisher),
        check_fisher,
    ),
    Derivation(
        "The k highest scores of all tensors", "Ties go to the entry that stands first.", (top_k_mask,), check_top_k
    ),
    Derivation(
        "Gradient of selected entries of a weight",
        """
        y = x W,   dW_ij = Σ_n x_ni dy_nj        one dot product for each selected (i, j)
        """,
        (selected_weight_gradient,),
        gradients(probe_selected_weight, {"x": (2, 3, 4), "values": (5,)}),
    ),
    Derivation(
        "Gradient of selected entries of an embedding",
        """
        y_n = W[id_n],   dW_ij = Σ_n [id_n = i] dy_nj      only places that have read a row with selected entries count
        """,
        (selected_embedding_gradient,),
        gradients(probe_selected_embedding, {"values": (5,)}),
    ),
    Derivation(
        "A whole model with a third of its entries selected, each of them moved",
        "A pass puts the selected values into a copy of the tensor; the frozen one is never written to.",
        (MaskedGPT.loss_and_grads,),
        check_masked_model,
    ),
    Derivation(
        "A forest on yes/no questions",
        """
        A side of n rows with sum s that predicts its mean has the squared error Σy² − s²/n.
        Importance of a question: how much R² falls when its answers are dealt out anew among the rows.
        """,
        (best_split, permutation_importance),
        check_forest,
    ),
)


# ---------------------------------------------------------------------------------------------- the lesson


def lesson(run: Run) -> None:
    """Everything that `make lesson-5` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    settings = run.settings
    plan = settings.choose(QUICK, CORE, FULL)
    names = [settings.data] if settings.data else [plan.pairs, plan.labels]
    tasks = {name: load(plan.base, name, plan.records, run.backend.spec)[1] for name in names}
    base = load(plan.base, names[0], plan.records, run.backend.spec)[0]
    first = tasks[names[0]]
    if settings.data:
        run.say(f"\n  {first.describe()}")
    run.say(f"\n  every check holds; the base is {plan.base}, {base.n_parameters:,} parameters")
    show_choice(run, plan, base, first)
    show_cost(run, plan, base, first)
    with tempfile.TemporaryDirectory() as scratch:
        show_sweep(run, plan, base, tasks, SCORES, Path(scratch))
        show_forest(run, plan, base, names[0], first, Path(scratch))
    run.results |= {"plan": asdict(plan), "base": plan.base, "n_parameters": base.n_parameters}


def show_choice(run: Run, plan: Plan, base: GPT, task: Task) -> None:
    """What each ranking picks, and what it costs."""
    run.heading(f"What the rankings pick: {100 * HEADLINE:g} % of {base.n_parameters:,} entries, on {task.name}")
    source, groups = task.batches(plan.batch_size, run.settings.seed), parameter_groups(base)
    data = [source(step) for step in range(DATA_BATCHES)]
    examples = sum(rows(batch) for batch in data)
    passes = {"magnitude": 0, "random": 0}
    table_rows: list[list[Any]] = []
    picked, every = {}, {}
    for score in [*SCORES, "gradient, per tensor"]:
        kind = score.removesuffix(", per tensor")
        method = Importance(n_labels=task.n_labels, density=HEADLINE, score=kind, per_tensor=kind != score)
        began = time.perf_counter()
        masks = every[score] = method.masks(base, run.settings.seed, data)
        seconds = time.perf_counter() - began
        picked[score] = shares(masks, groups)
        by_kind = [100 * sum(row[kind] for row in picked[score].values()) for kind in KINDS]
        same = sum(int((masks[name] & m).sum()) for name, m in every["gradient"].items())
        overlap = same / sum(int(m.sum()) for m in masks.values())
        table_rows.append(
            [score, passes.get(kind, len(data)), f"{seconds:.2f}", *(f"{v:.0f}" for v in by_kind), f"{overlap:.2f}"]
        )
    short = {"token embedding": "wte", "position embedding": "wpe"}
    headers = ["ranking", "passes", "s", *(f"{short.get(kind, kind)} %" for kind in KINDS), "same as gradient"]
    run.say(table(table_rows, headers))
    began = time.perf_counter()
    scored, objective, batches = Importance(n_labels=task.n_labels, score="fisher").scored_model(base, 0, data)
    fisher_one_by_one(scored, objective, batches)
    run.say(
        f"  {examples} examples in {len(data)} batches. Fisher by its definition takes {examples} passes and "
        f"{time.perf_counter() - began:.1f} s.\n  The lowest gradients are those of entries that no text reaches, such "
        "as the last positions: a control that cannot learn."
    )
    run.results["picked"] = picked
    run.picture("picked", shares_picture(picked, HEADLINE))


def show_cost(run: Run, plan: Plan, base: GPT, task: Task) -> None:
    """What a step takes with fewer and fewer entries."""
    run.heading("What a step costs")
    source = task.batches(plan.batch_size, run.settings.seed)
    batch, data = source(0), [source(0)]
    table_rows, costs = [], {}
    methods: dict[str, Any] = {"all": Everything(n_labels=task.n_labels)}
    for density in (0.1, 0.01, 0.001):
        methods[f"{100 * density:g} %"] = Importance(n_labels=task.n_labels, density=density)
    for name, method in methods.items():
        cost = step_cost(method.apply(base, run.settings.seed, data), task.objective, batch, repeats=3)
        costs[name] = cost.as_record()
        kb = [f"{b / 1e3:,.0f}" for b in (cost.gradients, cost.optimizer, cost.activations)]
        table_rows.append([name, f"{cost.trainable:,}", *kb, f"{cost.flops / 1e9:.2f}", f"{1e3 * cost.seconds:.0f}"])
    headers = ["entries", "trained", "gradients (kB)", "optimizer (kB)", "activations (kB)", "GFLOP", "ms"]
    run.say(table(table_rows, headers))
    run.say(
        "  Gradients and optimizer state shrink with the selection. Of the time only the weights' products can go,\n"
        "  a third of all, and the activations hardly shrink: the backward has to pass everywhere."
    )
    run.results["cost"] = costs


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-5``; gives the exit code."""
    return runner.main(5, __doc__, lesson, argv, takes=runner.TASK)


if __name__ == "__main__":
    sys.exit(main())
