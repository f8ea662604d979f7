"""Exercises of lesson 5: importance scores, masked gradients and a forest's split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from classroom.exercises.draws import distinct

# ---------------------------------------------------------------------------------------------- scores


def gradient_cases(rng: np.random.Generator) -> Sequence[Case]:
    """One array of any shape."""
    a, b, c = distinct(rng, 3, 3, 8)
    gaps = rng.standard_normal((b, c))
    gaps[rng.random((b, c)) < 0.4] = 0.0
    gaps[0, 0], gaps[-1, -1] = -0.7, 0.0
    return [
        Case("a matrix, both signs", {"gradient": rng.standard_normal((a, b))}),
        Case("a vector", {"gradient": rng.standard_normal(c)}),
        Case("three axes", {"gradient": rng.standard_normal((a, b, 2))}),
        Case("all negative", {"gradient": -rng.uniform(0.2, 3.0, (b, a))}),
        Case("all positive", {"gradient": rng.uniform(0.2, 3.0, (c, a))}),
        Case("some zeros", {"gradient": gaps}),
        Case("one number", {"gradient": np.array([[-float(rng.uniform(1.2, 2.0))]])}),
        Case("large", {"gradient": 1e6 * rng.standard_normal((a, c))}),
    ]


def gradient_weight_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Two arrays of one shape."""
    a, b, c = distinct(rng, 3, 3, 8)

    def case(name: str, gradient: np.ndarray, weight: np.ndarray) -> Case:
        return Case(name, {"gradient": gradient, "weight": weight})

    gaps = rng.standard_normal((2, b, c))
    gaps[0, 0] = gaps[1, 1] = 0.0
    return [
        case("a matrix, both signs", *rng.standard_normal((2, a, b))),
        case("a vector", *rng.standard_normal((2, c))),
        case("three axes", *rng.standard_normal((2, 2, a, c))),
        case("weights all negative", rng.standard_normal((b, a)), -rng.uniform(0.2, 3.0, (b, a))),
        case("gradients all negative", -rng.uniform(0.2, 3.0, (b, c)), rng.standard_normal((b, c))),
        case("some zeros", *gaps),
        case("large weights", rng.standard_normal((a, c)), 1e3 * rng.standard_normal((a, c))),
        case("one number", np.array([[float(rng.uniform(1.2, 2.0))]]), np.array([[-0.3]])),
    ]


def per_example_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Examples and tokens, alone, many, and such that cancel."""
    B, T, inputs, outputs = distinct(rng, 4, 3, 8)

    def case(name: str, b: int, t: int, i: int, o: int) -> Case:
        return Case(name, {"dy": rng.standard_normal((b, t, o)), "x": rng.standard_normal((b, t, i))})

    x, dy = rng.standard_normal((1, T, inputs)), rng.standard_normal((1, T, outputs))
    apart = Case("two examples that pull apart", {"dy": np.concatenate([dy, -dy]), "x": np.concatenate([x, x])})
    x, dy = rng.standard_normal((B, 1, inputs)), rng.standard_normal((B, 1, outputs))
    cancel = Case(
        "tokens of an example that cancel",
        {
            "dy": np.concatenate([dy, -dy, rng.standard_normal((B, 1, outputs))], axis=1),
            "x": np.concatenate([x, x, rng.standard_normal((B, 1, inputs))], axis=1),
        },
    )
    padded = case("padding, without gradient", B, T, inputs, outputs)
    padded.args["dy"][0, 1:] = 0.0
    padded.args["dy"][1] = 0.0
    return [
        case("all sizes different", B, T, inputs, outputs),
        case("one example", 1, T, inputs, outputs),
        case("one token", B, 1, inputs, outputs),
        case("one input, one output", B, T, 1, 1),
        case("two examples, many tokens", 2, 11, outputs, inputs),
        apart,
        cancel,
        padded,
    ]


def top_k_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Several tensors; ties in one and between them; k from one to all."""
    a, b, c = distinct(rng, 3, 3, 8)

    def draws() -> dict[str, np.ndarray]:
        return {
            "wte": rng.standard_normal((a, b)),
            "h.0.mlp.bias": rng.standard_normal(c) + 0.5,
            "a.weight": 3.0 * rng.standard_normal((2, c, a)),
        }

    def whole(low: int, high: int) -> dict[str, np.ndarray]:
        # Whole numbers: many entries share a score, in a tensor and between two.
        return {
            "second": rng.integers(low, high, (b, c)).astype(float),
            "first": rng.integers(low, high, a).astype(float),
            "third": rng.integers(low, high, (c, 2)).astype(float),
        }

    def size(scores: dict[str, np.ndarray]) -> int:
        return sum(s.size for s in scores.values())

    def case(name: str, scores: dict[str, np.ndarray], k: Any) -> Case:
        return Case(name, {"scores": scores, "k": int(k)})

    several, ties, more_ties = draws(), whole(0, 3), whole(-2, 2)
    equal = {"b": np.full((b, a), 0.25), "a": np.full(c, 0.25)}
    one_takes_all = {"small": rng.uniform(0, 1, (a, b)), "large": rng.uniform(5, 6, (b, c))}
    return [
        case("one tensor", {"weight": rng.standard_normal((a, b))}, rng.integers(2, a * b - 2)),
        case("several tensors", several, rng.integers(a, size(several) // 2)),
        case("the single best", draws(), 1),
        case("all but one", several, size(several) - 1),
        case("all", draws(), size(several)),
        case("all scores negative", {n: -abs(s) for n, s in draws().items()}, rng.integers(a, size(several) // 2)),
        case("ties, few chosen", ties, 1 + max(1, sum(int((s == 2).sum()) for s in ties.values())) // 2),
        case("ties, half chosen", more_ties, size(more_ties) // 2),
        case("ties at zero", {n: np.maximum(s, 0.0) for n, s in draws().items()}, int(0.7 * size(several))),
        case("all equal, across two tensors", equal, b * a + 2),
        case("all equal, in the first tensor", equal, b * a - 2),
        case("one tensor takes all", one_takes_all, b * c - 1),
        case(
            "sizes of 1", {"x": rng.standard_normal((1, 1)), "y": rng.standard_normal(1) + 9, "z": np.array([8.0])}, 2
        ),
    ]


# ---------------------------------------------------------------------------------------------- masked gradients


def selected_weight_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Entries once, twice, all in a column; any number of leading axes."""
    B, T, inputs, outputs = distinct(rng, 4, 3, 8)

    def case(name: str, lead: tuple[int, ...], i: int, o: int, rows: Any, columns: Any) -> Case:
        return Case(
            name,
            {
                "dy": rng.standard_normal((*lead, o)),
                "x": rng.standard_normal((*lead, i)),
                "rows": np.array(rows),
                "columns": np.array(columns),
            },
        )

    def places(i: int, o: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        flat = np.sort(rng.choice(i * o, k, replace=False))
        return flat // o, flat % o

    last = [0, 0, inputs - 1, inputs - 1], [0, outputs - 1, 0, outputs - 1]
    rows, columns = places(inputs, outputs, 5)
    order = rng.permutation(5)
    return [
        case("batch and time", (B, T), inputs, outputs, *places(inputs, outputs, 6)),
        case("rows only", (B,), inputs, outputs, *places(inputs, outputs, 4)),
        case("three leading axes", (2, T, 3), inputs, outputs, *places(inputs, outputs, 7)),
        case("the corners", (B, T), inputs, outputs, *last),
        case("one entry", (B, T), inputs, outputs, [inputs - 1], [1]),
        case("all of one row", (T, B), inputs, outputs, [2] * outputs, range(outputs)),
        case("all of one column", (T, B), inputs, outputs, range(inputs), [1] * inputs),
        case("in no order, one twice", (B, T), inputs, outputs, [*rows[order].tolist(), rows[0]],
             [*columns[order].tolist(), columns[0]]),
        case("one row of input", (1, 1), inputs, outputs, *places(inputs, outputs, 6)),
        case("one input, one output", (B, T), 1, 1, [0], [0]),
        case("many rows, many entries", (7, 39), 14, 13, *places(14, 13, 150)),
    ]  # fmt: skip


def selected_embedding_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Rows read never, once and often; rows with no, one and many selected entries."""
    B, T, C, V = distinct(rng, 4, 4, 9)

    def case(name: str, ids: np.ndarray, rows: Any, columns: Any, width: int = C) -> Case:
        dy = rng.standard_normal((*ids.shape, width))
        return Case(name, {"dy": dy, "ids": ids, "rows": np.array(rows), "columns": np.array(columns)})

    def places(k: int) -> tuple[np.ndarray, np.ndarray]:
        flat = np.sort(rng.choice(V * C, k, replace=False))
        return flat // C, flat % C

    often = rng.integers(0, V, (B, T))
    often[0, :3] = often[1, 1] = V - 1
    often[1, 0] = often[-1, -1] = 0
    ends = [0, 0, 1, V - 1, V - 1, V - 1], [0, C - 1, 2, 0, 1, C - 1]
    return [
        case("tokens that repeat", often, *ends),
        case("drawn at random", rng.integers(0, V, (B, T)), *places(9)),
        case("one axis of ids", rng.integers(0, V, T + B), *places(8)),
        case("three axes of ids", rng.integers(0, V, (2, T, 3)), *places(8)),
        case("rows that are never read", rng.integers(0, 2, (B, T)), [0, 0, 1, 2, 3], [1, 3, 2, 0, 1]),
        case("tokens without selected entries", rng.integers(0, V, (B, T)), [2, 2, 3], [0, 2, 1]),
        case("none of them is read", rng.integers(0, 2, (T, B)), [2, 3, 3], [0, 1, 2]),
        case("one token for all", np.full((B, T), 2), [1, 2, 2, 3], [0, 0, C - 1, 1]),
        case("one entry", often, [V - 1], [C - 2]),
        case("columns in no order", often, [0, 0, 0, V - 1, V - 1], [3, 0, 2, 2, 1]),
        case("one place", np.array([[1]]), [0, 1, 1], [1, 0, 2]),
        case("width 1", often, [0, 2, V - 1], [0, 0, 0], 1),
    ]


# ---------------------------------------------------------------------------------------------- the forest


def best_split_cases(rng: np.random.Generator) -> Sequence[Case]:
    """With and without a limit on the leaves, ties, and nothing to split."""
    n, columns = int(rng.integers(15, 24)), int(rng.integers(4, 8))

    def bits(n: int, g: int) -> np.ndarray:
        X = rng.integers(0, 2, (n, g)).astype(float)
        X[0], X[1] = 0.0, 1.0  # no column is constant
        return X

    def case(name: str, X: np.ndarray, y: np.ndarray, min_leaf: int | None = None) -> Case:
        return Case(name, {"X": X, "y": y} | ({} if min_leaf is None else {"min_leaf": min_leaf}))

    def steered(X: np.ndarray, column: int, strength: float) -> np.ndarray:
        return strength * X[:, column] + 0.3 * rng.standard_normal(len(X))

    plain, last = bits(n, columns), bits(n, columns)
    lonely = bits(n, columns)  # the best question sets apart three rows of all
    lonely[:, 1] = 0.0
    lonely[:3, 1] = 1.0
    lonely[:, 2] = 1.0 - (np.arange(n) < n // 2)
    twins = bits(n, columns)
    twins[:, 3] = twins[:, 1]
    whole = 3.0 * twins[:, 1] + rng.integers(0, 2, n)  # whole numbers: equal gains are equal to the last bit
    constant = bits(n, columns)
    constant[:, 0], constant[:, 2] = 0.0, 1.0
    edge = np.zeros((8, 2))  # three ones in the first column, two in the second
    edge[:3, 0] = edge[:2, 1] = 1.0
    return [
        case("drawn at random", bits(n, columns), rng.standard_normal(n)),
        case("the last column explains y", last, steered(last, columns - 1, 2.0)),
        case("higher with a 0", plain, steered(plain, 1, -2.0)),
        case("far from zero", plain, 50.0 + steered(plain, 2, 1.0)),
        case("y negative", plain, -20.0 + steered(plain, 3, 1.0), 2),
        case("the best leaves too few rows", lonely, steered(lonely, 1, 6.0) + steered(lonely, 2, 1.0), 4),
        case("the best leaves just enough rows", lonely, steered(lonely, 1, 6.0), 3),
        case("too few rows with a 0", 1.0 - lonely, steered(lonely, 1, 6.0) + steered(lonely, 2, 1.0), 4),
        case("exactly so many rows", edge, np.array([4.0, 4.5, 3.0, 1.0, 0.0, -1.0, 0.5, 0.0]), 3),
        case("equal columns", twins, whole),
        case("some columns constant", constant, steered(constant, 1, 1.0)),
        case("some columns constant, any leaf allowed", constant, steered(constant, 1, 1.0), 0),
        case("nothing to gain", constant, np.zeros(n)),
        case("all columns constant", np.tile([0.0, 1.0, 1.0], (n, 1)), rng.standard_normal(n)),
        case("no leaf large enough", plain, rng.standard_normal(n), n // 2 + 1),
        case("one row", np.array([[0.0, 1.0]]), np.array([2.5])),
        case("two rows", np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), np.array([0.5, 4.0])),
        case("one column", bits(n, 1), rng.standard_normal(n), 2),
    ]


def permutation_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Predictions of a formula and such that are just numbers; one and several permutations."""
    n, G, repeats = (int(v) for v in (rng.integers(9, 15), rng.integers(4, 7), rng.integers(2, 4)))

    def case(name: str, X: np.ndarray, y: np.ndarray, p: np.ndarray, flipped: np.ndarray, deals: np.ndarray) -> Case:
        return Case(name, {"X": X, "y": y, "prediction": p, "flipped": flipped, "permutations": deals})

    def deals(count: int, n: int) -> np.ndarray:
        return np.array([rng.permutation(n) for _ in range(count)])

    def bits(n: int) -> np.ndarray:
        X = rng.integers(0, 2, (n, G)).astype(float)
        X[0], X[1] = 0.0, 1.0
        return X

    X = bits(n)
    effect = np.array([2.0, 0.0, -1.0] + [0.3] * (G - 3))
    p, flipped = 3.0 + X @ effect, 3.0 + (X @ effect)[:, None] + (1 - 2 * X) * effect
    y, some = p + 0.5 * rng.standard_normal(n), rng.standard_normal(n)
    constant = X.copy()
    constant[:, 1] = 1.0
    cycle = np.roll(np.arange(n), 1)[None]  # not its own inverse
    return [
        case("a formula", X, y, p, flipped, deals(repeats, n)),
        case("any predictions", bits(n), 2 * some, some + 1, rng.standard_normal((n, G)), deals(repeats, n)),
        case("one permutation", X, y, p, flipped, deals(1, n)),
        case("every row gets its neighbour's", X, y, p, flipped, cycle),
        case("nobody moves", X, y, p, flipped, np.arange(n)[None]),
        case("a column with one answer", constant, y, p, rng.standard_normal((n, G)), deals(repeats, n)),
        case("y far from zero", X, y + 40, p + 40, flipped + 40.5, deals(repeats, n)),
        case("poor predictions", X, y, -p, 2 - flipped, deals(repeats, n)),
        case("two rows", X[:2], np.array([1.0, -0.5]), np.array([0.5, 0.2]), rng.standard_normal((2, G)),
             np.array([[1, 0], [0, 1]])),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- exercises

EXERCISES = (
    Exercise(
        id="5.01",
        function="lessons.lesson_05_importance_ranking:gradient_importance",
        title="Importance by gradient",
        points=1,
        cases=gradient_cases,
        wrong=(
            Wrong(
                "signed",
                "The sign is still there: an entry whose gradient is far below 0 matters as much as one far above.",
                "abs(gradient)",
                "gradient * 1",
            ),
            Wrong(
                "squared",
                "This is the squared gradient; the score is its absolute value.",
                "abs(gradient)",
                "gradient * gradient",
            ),
            Wrong(
                "only-positive",
                "Negative gradients have become 0; they count with their absolute value.",
                "abs(gradient)",
                "gradient.clip(0.0)",
            ),
            Wrong(
                "negated",
                "The order is turned round: the largest gradient must get the highest score.",
                "abs(gradient)",
                "-abs(gradient)",
            ),
            Wrong(
                "normalised",
                "The scores are divided by the largest one, so tensors cannot be compared any more.",
                "abs(gradient)",
                "abs(gradient) / abs(gradient).max()",
            ),
        ),
        alternatives=(
            Alternative("where", "return np.where(gradient < 0, -gradient, gradient)"),
            Alternative("root of the square", "return (gradient * gradient) ** 0.5"),
            Alternative("float32", "return np.abs(gradient).astype(np.float32)"),
        ),
    ),
    Exercise(
        id="5.02",
        function="lessons.lesson_05_importance_ranking:gradient_weight_importance",
        title="Importance by gradient × weight",
        points=1,
        cases=gradient_weight_cases,
        wrong=(
            Wrong(
                "signed",
                "The sign is still there: the size of the change counts, not whether the loss rises or falls.",
                "abs(gradient * weight)",
                "gradient * weight",
            ),
            Wrong(
                "sign-of-the-weight",
                "The sign of the weight is still there; the absolute value is of the product.",
                "abs(gradient * weight)",
                "abs(gradient) * weight",
            ),
            Wrong(
                "sign-of-the-gradient",
                "The sign of the gradient is still there; the absolute value is of the product.",
                "abs(gradient * weight)",
                "gradient * abs(weight)",
            ),
            Wrong(
                "sum",
                "Gradient and weight are added; they are multiplied.",
                "abs(gradient * weight)",
                "abs(gradient + weight)",
            ),
            Wrong(
                "squared",
                "This is the square of the product; the score is its absolute value.",
                "abs(gradient * weight)",
                "(gradient * weight) ** 2",
            ),
            Wrong(
                "gradient-only",
                "The weight is not in it: an entry that is nearly 0 loses little when it is set to 0.",
                "abs(gradient * weight)",
                "abs(gradient)",
            ),
            Wrong(
                "normalised",
                "The scores are divided by their sum; this form of SNIP goes without that.",
                "abs(gradient * weight)",
                "abs(gradient * weight) / abs(gradient * weight).sum()",
            ),
        ),
        alternatives=(
            Alternative("two absolute values", "return np.abs(gradient) * np.abs(weight)"),
            Alternative(
                "own buffer",
                "out = np.empty_like(weight)\nnp.multiply(gradient, weight, out=out)\nreturn np.absolute(out, out=out)",
            ),
            Alternative("float32", "return np.abs(gradient.astype(np.float32) * weight.astype(np.float32))"),
        ),
    ),
    Exercise(
        id="5.03",
        function="lessons.lesson_05_importance_ranking:per_example_squares",
        title="Fisher: squared gradients of each example",
        points=3,
        cases=per_example_cases,
        wrong=(
            Wrong(
                "square-of-the-sum",
                "The gradients of all examples are summed before they are squared, so examples that pull apart cancel.",
                "return squares",
                "return (x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])) ** 2",
            ),
            Wrong(
                "squares-of-tokens",
                "Every token is squared on its own; the tokens of an example belong to one "
                "gradient, which is squared as a whole.",
                "squares += gradient * gradient",
                "squares += (x_b * x_b).T @ (dy_b * dy_b)",
            ),
            Wrong(
                "not-squared",
                "The gradients of the examples are summed without squaring them.",
                "squares += gradient * gradient",
                "squares += gradient",
            ),
            Wrong(
                "absolute",
                "The absolute values of the examples' gradients are summed; the Fisher score sums their squares.",
                "squares += gradient * gradient",
                "squares += abs(gradient)",
            ),
            Wrong(
                "averaged-over-examples",
                "The sum over the examples is divided by their number; it is to be a sum.",
                "return squares",
                "return squares / len(x)",
            ),
            Wrong(
                "last-example-only",
                "Every example overwrites the one before; their squares add up.",
                "squares += gradient * gradient",
                "squares = gradient * gradient",
            ),
            Wrong(
                "averaged-over-tokens",
                "An example's gradient is the sum over its tokens, not their mean.",
                "x_b.T @ dy_b",
                "x_b.T @ dy_b / len(x_b)",
            ),
            Wrong(
                "root",
                "A square root has been taken at the end; the score is the sum of squares itself.",
                "return squares",
                "return squares**0.5",
            ),
        ),
        alternatives=(
            Alternative(
                "einsum", 'each = np.einsum("bti,bto->bio", x, dy)\nreturn np.einsum("bio,bio->io", each, each)'
            ),
            Alternative("batched product", "return (np.matmul(x.transpose(0, 2, 1), dy) ** 2).sum(axis=0)"),
            Alternative(
                "loop",
                "squares = np.zeros((x.shape[2], dy.shape[2]))\nfor b in range(len(x)):\n"
                "    gradient = np.zeros_like(squares)\n    for t in range(x.shape[1]):\n"
                "        gradient += np.outer(x[b, t], dy[b, t])\n    squares += gradient**2\nreturn squares",
            ),
            Alternative(
                "float32",
                'each = np.einsum("bti,bto->bio", x.astype(np.float32), dy.astype(np.float32))\n'
                "return (each * each).sum(0)",
            ),
        ),
    ),
    Exercise(
        id="5.04",
        function="lessons.lesson_05_importance_ranking:top_k_mask",
        title="The k highest scores of all tensors",
        points=3,
        cases=top_k_cases,
        wrong=(
            Wrong("lowest", "The lowest scores are chosen, not the highest.", "np.argsort(-flat", "np.argsort(flat"),
            Wrong(
                "by-magnitude",
                "Scores are compared by their absolute value; a score of −3 is lower than one of 1.",
                "np.argsort(-flat",
                "np.argsort(-abs(flat)",
            ),
            Wrong(
                "last-of-ties",
                "Of equal scores the last one is chosen; the one that stands earlier wins.",
                'np.argsort(-flat, kind="stable")[:k]',
                'np.argsort(flat, kind="stable")[::-1][:k]',
            ),
            Wrong(
                "all-ties",
                "Everything that reaches the k-th score is chosen: with ties that is more than k.",
                'chosen[np.argsort(-flat, kind="stable")[:k]] = True',
                "chosen = flat >= np.sort(flat)[-k]",
            ),
            Wrong(
                "above-the-threshold",
                "Only what lies above the k-th score is chosen, so that one itself is missing.",
                'chosen[np.argsort(-flat, kind="stable")[:k]] = True',
                "chosen = flat > np.sort(flat)[-k]",
            ),
            Wrong("one-too-few", "k − 1 entries are chosen.", "[:k]", "[: k - 1]"),
            Wrong(
                "per-tensor",
                "Every tensor gets its share of k; the k highest of all tensors together are wanted.",
                "masks[name] = chosen[start : start + s.size].reshape(s.shape)",
                "masks[name] = s >= np.sort(s.reshape(-1))[-max(1, k * s.size // n)]",
            ),
            Wrong(
                "columns-first",
                "The mask of a tensor is filled column by column, its scores are read row by row.",
                ".reshape(s.shape)",
                '.reshape(s.shape, order="F")',
            ),
            Wrong(
                "sorted-names",
                "Scores are read in the order of the mapping, masks are handed out in that of the alphabet.",
                "for name, s in scores.items():",
                "for name, s in sorted(scores.items()):",
            ),
        ),
        alternatives=(
            Alternative(
                "sorted places",
                "places = [(-s.flat[i], t, i) for t, s in enumerate(scores.values()) for i in range(s.size)]\n"
                "masks = {name: np.zeros(s.shape, dtype=bool) for name, s in scores.items()}\n"
                "names = list(scores)\nfor _, t, i in sorted(places)[:k]:\n    masks[names[t]].flat[i] = True\n"
                "return masks",
            ),
            Alternative(
                "threshold, then ties in order",
                "flat = np.concatenate([s.ravel() for s in scores.values()])\n"
                "threshold = np.partition(flat, n - k)[n - k]\nchosen = flat > threshold\n"
                "ties = np.flatnonzero(flat == threshold)\nchosen[ties[: k - chosen.sum()]] = True\n"
                "parts = np.split(chosen, np.cumsum([s.size for s in scores.values()])[:-1])\n"
                "return {name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}",
            ),
        ),
    ),
    Exercise(
        id="5.05",
        function="lessons.common.masked:selected_weight_gradient",
        title="Gradient of selected entries of a weight",
        points=3,
        cases=selected_weight_cases,
        wrong=(
            Wrong(
                "averaged",
                "The gradient is a sum over the rows, not their mean.",
                "return gradient",
                "return gradient / inputs.shape[0]",
            ),
            Wrong(
                "last-block-only",
                "Every block of rows overwrites the one before; the blocks add up.",
                "gradient += ",
                "gradient = ",
            ),
            Wrong(
                "sums-before-product",
                "Columns of x and dy are summed before they are multiplied; the products of a row are what is summed.",
                '"nk,nk->k"',
                '"nk,mk->k"',
            ),
            Wrong(
                "sign", "The sign is turned round: this is the step, not the gradient.", "gradient += ", "gradient -= "
            ),
            Wrong(
                "whole-blocks-only",
                "Rows that do not fill a block are left out.",
                "range(0, inputs.shape[0], step)",
                "range(0, inputs.shape[0] - step + 1, step)",
            ),
            Wrong(
                "first-row-left-out",
                "The first row is not counted.",
                "range(0, inputs.shape[0], step)",
                "range(1, inputs.shape[0], step)",
            ),
            Wrong(
                "last-axis-summed",
                "An entry belongs to one output, but here all the outputs' gradients go into it.",
                "outputs[part].take(columns, axis=1)",
                "outputs[part].sum(1, keepdims=True).repeat(len(columns), 1)",
            ),
        ),
        alternatives=(
            Alternative(
                "whole product",
                "dweight = x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])\nreturn dweight[rows, columns]",
            ),
            Alternative(
                "all at once",
                "axes = tuple(range(x.ndim - 1))\nreturn (x[..., rows] * dy[..., columns]).sum(axis=axes)",
            ),
            Alternative(
                "loop",
                "gradient = np.empty(len(rows))\nfor e, (i, j) in enumerate(zip(rows, columns, strict=True)):\n"
                "    gradient[e] = np.vdot(x[..., i], dy[..., j])\nreturn gradient",
            ),
            Alternative(
                "float32",
                "a, b = (v.reshape(-1, v.shape[-1]).astype(np.float32) for v in (x, dy))\n"
                'return np.einsum("nk,nk->k", a[:, rows], b[:, columns])',
            ),
        ),
    ),
    Exercise(
        id="5.06",
        function="lessons.common.masked:selected_embedding_gradient",
        title="Gradient of selected entries of an embedding",
        points=4,
        cases=selected_embedding_cases,
        wrong=(
            Wrong(
                "repeats-overwrite",
                "A token that occurs more than once counts once only: all places that read a row add to it.",
                "xp.add.at(gradient, entry, places[place, columns[entry]])",
                "gradient[entry] += places[place, columns[entry]]",
            ),
            Wrong(
                "averaged-over-places",
                "The gradient is a sum over the places, not divided by their number.",
                "return gradient",
                "return gradient / flat.size",
            ),
            Wrong(
                "averaged-over-readers",
                "What the places that read a row send back is averaged; it adds up.",
                "return gradient",
                "return gradient / xp.maximum(1, xp.bincount(entry, minlength=rows.shape[0]))",
            ),
            Wrong(
                "columns-summed",
                "An entry gets the gradient of its whole row; only that of its column is its own.",
                "places[place, columns[entry]]",
                "places[place].sum(-1)",
            ),
            Wrong(
                "one-entry-a-row",
                "Of several selected entries in one row only the first gets a gradient.",
                'xp.searchsorted(rows, flat, side="right") - first',
                'xp.minimum(xp.searchsorted(rows, flat, side="right") - first, 1)',
            ),
            Wrong(
                "first-place-left-out",
                "The first place of the batch is not counted.",
                "ends = counts.cumsum()",
                "counts[0] = 0\nends = counts.cumsum()",
            ),
            Wrong(
                "sign",
                "The sign is turned round: this is the step, not the gradient.",
                "entry, places[place",
                "entry, -places[place",
            ),
        ),
        alternatives=(
            Alternative(
                "whole table",
                "V = max(int(rows.max()), int(ids.max())) + 1\ntable = np.zeros((V, dy.shape[-1]))\n"
                "np.add.at(table, ids.ravel(), dy.reshape(-1, dy.shape[-1]))\nreturn table[rows, columns]",
            ),
            Alternative(
                "loop",
                "gradient = np.zeros(len(rows))\nfor e in range(len(rows)):\n"
                "    gradient[e] = dy[ids == rows[e]][:, columns[e]].sum()\nreturn gradient",
            ),
            Alternative(
                "comparison as a matrix",
                "read = (ids.reshape(-1, 1) == rows).astype(np.float32)\n"
                "return (read * dy.reshape(-1, dy.shape[-1]).astype(np.float32)[:, columns]).sum(0)",
            ),
        ),
    ),
    Exercise(
        id="5.07",
        function="lessons.common.forest:best_split",
        title="Forest: the best split",
        points=3,
        cases=best_split_cases,
        wrong=(
            Wrong(
                "no-min-leaf",
                "Splits are allowed that leave fewer rows on a side than asked for.",
                ">= max(1, min_leaf)",
                ">= 1",
            ),
            Wrong(
                "more-than-min-leaf",
                "A side with exactly the fewest rows is refused; it is allowed.",
                ">= max(1, min_leaf)",
                "> max(1, min_leaf)",
            ),
            Wrong(
                "one-side-only",
                "Only the side of the ones is held to the fewest rows; both sides are.",
                "np.minimum(n0, n1) >= max(1, min_leaf)",
                "(n0 > 0) & (n1 >= max(1, min_leaf))",
            ),
            Wrong(
                "parent-left-out",
                "The gain is compared with no split at all: the unsplit rows' own term is to be taken away.",
                " - total**2 / n",
                "",
            ),
            Wrong(
                "last-of-equal",
                "Of equal gains the last column is named, not the first.",
                "int(gains.argmax())",
                "int(len(gains) - 1 - gains[::-1].argmax())",
            ),
            Wrong(
                "sides-not-weighted",
                "The two sides count alike however many rows they have.",
                "s0**2 / n0 + s1**2 / n1 - total**2 / n",
                "(s0 / n0) ** 2 + (s1 / n1) ** 2 - (total / n) ** 2",
            ),
            Wrong(
                "mean-squared",
                "The gain is that of the mean squared error; that of the sum is asked for.",
                "float(gains[column])",
                "float(gains[column]) / n",
            ),
            Wrong(
                "difference-of-means",
                "Columns are ranked by the difference of their sides' means; a large one "
                "between few rows gains little.",
                "s0**2 / n0 + s1**2 / n1 - total**2 / n",
                "abs(s1 / n1 - s0 / n0)",
            ),
        ),
        alternatives=(
            Alternative(
                "loop over squared errors",
                "def squared(part):\n    return float(((part - part.mean()) ** 2).sum())\n\n"
                "column, gain = -1, 0.0\nfor j in range(X.shape[1]):\n    ones = X[:, j] == 1\n"
                "    if min(ones.sum(), (~ones).sum()) < max(1, min_leaf):\n        continue\n"
                "    here = squared(y) - squared(y[ones]) - squared(y[~ones])\n"
                "    if column < 0 or here > gain:\n        column, gain = j, here\nreturn column, gain",
            ),
            Alternative(
                "difference of means, weighted",
                "ones = X.sum(0)\nzeros = len(y) - ones\n"
                "may = (ones >= max(1, min_leaf)) & (zeros >= max(1, min_leaf))\n"
                "if not may.any():\n    return -1, 0.0\ncentred = y - y.mean()\n"
                "safe0, safe1 = np.maximum(zeros, 1), np.maximum(ones, 1)\n"
                "difference = centred @ X / safe1 - centred @ (1 - X) / safe0\n"
                "gains = np.where(may, ones * zeros / len(y) * difference**2, -1.0)\n"
                "best = int(np.argmax(gains))\nreturn best, float(gains[best])",
            ),
        ),
    ),
    Exercise(
        id="5.08",
        function="lessons.common.forest:permutation_importance",
        title="Forest: permutation importance",
        points=3,
        cases=permutation_cases,
        wrong=(
            Wrong(
                "not-divided",
                "These are sums of squared errors; R² divides them by the variance of y.",
                " / variance",
                " / 1.0",
            ),
            Wrong(
                "mean-in-the-variance",
                "The errors are summed but the variance is a mean: both are sums.",
                "((y - y.mean()) ** 2).sum()",
                "((y - y.mean()) ** 2).mean()",
            ),
            Wrong(
                "variance-around-zero",
                "The variance is that around the mean of y, not around 0.",
                "((y - y.mean()) ** 2).sum()",
                "(y**2).sum()",
            ),
            Wrong(
                "every-row-flipped",
                "A row that is dealt the bit it had keeps its prediction.",
                "(added * (X[order] != X)).sum(0)",
                "added.sum(0)",
            ),
            Wrong(
                "error-not-subtracted",
                "The error with the row's own bit is not taken away: the importance is a difference of two R².",
                " - error[:, None]",
                "",
            ),
            Wrong("sign", "The sign is turned round: importance is how much R² falls.", "(added * ", "(-added * "),
            Wrong(
                "mean-over-rows",
                "The errors are averaged over the rows but divided by a sum.",
                ".sum(0) for order",
                ".mean(0) for order",
            ),
            Wrong(
                "inverse-permutation",
                "Row n gets the bit of row permutations[r, n], not the other way round.",
                "X[order]",
                "X[np.argsort(order)]",
            ),
            Wrong(
                "variance-of-the-prediction",
                "R² divides by the variance of y, not by that of the prediction.",
                "((y - y.mean()) ** 2).sum()",
                "((prediction - prediction.mean()) ** 2).sum() + 1e-3",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "def r2(p):\n    return 1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum()\n\n"
                "out = np.empty((len(permutations), X.shape[1]))\nfor r, order in enumerate(permutations):\n"
                "    for j in range(X.shape[1]):\n"
                "        p = np.where(X[order, j] == X[:, j], prediction, flipped[:, j])\n"
                "        out[r, j] = r2(prediction) - r2(p)\nreturn out",
            ),
            Alternative(
                "einsum",
                "moved = (X[permutations] != X).astype(np.float64)\n"
                "added = (flipped - prediction[:, None]) * (flipped + prediction[:, None] - 2 * y[:, None])\n"
                'return np.einsum("rng,ng->rg", moved, added) / np.sum((y - np.mean(y)) ** 2)',
            ),
            Alternative(
                "float32",
                "y, p, f = (v.astype(np.float32) for v in (y, prediction, flipped))\n"
                "added = (y[:, None] - f) ** 2 - (y - p)[:, None] ** 2\n"
                "moved = (X[permutations] != X).astype(np.float32)\n"
                "return (moved * added).sum(1) / ((y - y.mean()) ** 2).sum()",
            ),
        ),
    ),
)
