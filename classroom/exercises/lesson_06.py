"""Exercises of lesson 6: singular values, low-rank factors and principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from classroom.exercises.draws import distinct


def _matrix(rng: np.random.Generator, m: int, n: int, scale: float = 1.0) -> np.ndarray:
    """A matrix whose singular values lie well apart, so that its singular vectors are sharp."""
    k = min(m, n)
    u, v = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    values = scale * rng.uniform(0.8, 1.0, k) * 1.6 ** -np.arange(k)
    return (u * values) @ v.T


def _falling(rng: np.random.Generator, k: int) -> np.ndarray:
    return np.sort(rng.uniform(0.1, 3.0, k))[::-1].copy()


# ---------------------------------------------------------------------------------------------- the SVD


def rotation_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Which column is longer, the sign of their product, and columns that are nearly, or not at all, orthogonal."""

    def case(name: str, alpha: float, beta: float, gamma: float) -> Case:
        return Case(name, {"alpha": float(alpha), "beta": float(beta), "gamma": float(gamma)})

    u, v, w = rng.uniform(0.5, 2.0, 3)
    x, y = rng.standard_normal((2, 7))
    return [
        case("two columns", x @ x, y @ y, x @ y),
        case("the first longer", 3 + u, v, 0.8),
        case("the first longer, product negative", 4 + u, 1 + v, -1.1),
        case("the second longer", v, 2 + w, 0.6),
        case("the second longer, product negative", 1 + w, 5 + v, -1.7),
        case("nearly orthogonal", u, 1 + u + v, 1e-2 * w),
        case("nearly parallel", u, 4 * u, 1.99 * u),
        case("nearly parallel, the second shorter", 4 * v, v, -1.98 * v),
        case("orthogonal", u, v + 2, 0.0),
        case("orthogonal and equal", w, w, 0.0),
        case("columns of 0", 0.0, 0.0, 0.0),
        case("equal lengths", u, u, 0.4 * u),
        case("equal lengths, product negative", w, w, -0.7 * w),
        case("long columns", 3e6 * u, 1e6 * v, 5e5 * w),
        case("short columns", 1e-6 * u, 4e-6 * v, -1e-6 * u),
        case("very short columns", 1e-13 * u, 4e-13 * v, -1e-13 * u),
    ]


def truncated_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Tall, wide and thin matrices; ranks from 1 to full."""
    m, n, p = sorted(distinct(rng, 3, 4, 9))

    def case(name: str, weight: np.ndarray, rank: int) -> Case:
        return Case(name, {"weight": weight, "rank": int(rank)})

    return [
        case("tall", _matrix(rng, p, m), 2),
        case("wide", _matrix(rng, m, n), 3),
        case("rank 1", _matrix(rng, n, p), 1),
        case("full rank, tall", _matrix(rng, n, m), m),
        case("full rank, wide", _matrix(rng, m, p), m),
        case("one less than full", _matrix(rng, p, n), n - 1),
        case("one row", rng.standard_normal((1, p)), 1),
        case("one column", rng.standard_normal((m, 1)), 1),
        case("large entries", _matrix(rng, m, n, 1e3), 2),
        case("small entries", _matrix(rng, n, m, 1e-3), 2),
        case("all entries positive", 2.0 + _matrix(rng, n, m), 1),
        case("single precision", _matrix(rng, m, n).astype(np.float32), 2),
    ]


def error_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Ranks from 0 to all; values that are equal or 0."""
    k = int(rng.integers(5, 10))

    def case(name: str, s: np.ndarray, rank: Any) -> Case:
        return Case(name, {"s": s, "rank": int(rank)})

    zeros = _falling(rng, k)
    zeros[-2:] = 0.0
    return [
        case("some cut off", _falling(rng, k), rng.integers(2, k - 2)),
        case("nothing kept", _falling(rng, k), 0),
        case("one kept", _falling(rng, k), 1),
        case("one cut off", _falling(rng, k), k - 1),
        case("nothing cut off", _falling(rng, k), k),
        case("a single value, cut off", _falling(rng, 1), 0),
        case("a single value, kept", _falling(rng, 1), 1),
        case("all alike", np.full(k, 1.7), 2),
        case("zeros at the end", zeros, k - 3),
        case("only zeros cut off", zeros, k - 2),
        case("large values", 1e4 * _falling(rng, k), 2),
    ]


def effective_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any scale; all alike, one only, and zeros."""
    k = int(rng.integers(5, 10))
    zeros = _falling(rng, k)
    zeros[-2:] = 0.0
    one = np.zeros(k)
    one[0] = 2.3
    return [
        Case("falling values", {"s": _falling(rng, k)}),
        Case("values below 1", {"s": 0.05 * _falling(rng, k)}),
        Case("tiny values", {"s": 1e-10 * _falling(rng, k)}),
        Case("large values", {"s": 1e3 * _falling(rng, k)}),
        Case("all alike", {"s": np.full(k, 0.4)}),
        Case("a single value", {"s": np.array([3.7])}),
        Case("zeros at the end", {"s": zeros}),
        Case("one value and zeros", {"s": one}),
        Case("falling fast", {"s": 2.0 * 0.3 ** np.arange(k)}),
        Case("two values", {"s": np.array([2.0, 0.5]) * rng.uniform(0.8, 1.2)}),
    ]


def factor_gradient_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Ranks below, at and above the sizes; near to the optimum and far from it."""
    m, n, r = distinct(rng, 3, 3, 8)

    def case(name: str, m: int, n: int, r: int, scale: float = 1.0) -> Case:
        left, right = rng.standard_normal((m, r)), rng.standard_normal((r, n))
        return Case(name, {"weight": scale * rng.standard_normal((m, n)), "left": left, "right": right})

    small = min(m, n, r)
    left, right = rng.standard_normal((m, 2)), rng.standard_normal((2, n))
    near = {"weight": left @ right + 1e-3 * rng.standard_normal((m, n)), "left": left, "right": right}
    zero = {"weight": rng.standard_normal((n, m)), "left": np.zeros((n, 2)), "right": rng.standard_normal((2, m))}
    return [
        case("all sizes different", m, n, r),
        case("low rank", max(m, n), max(m, n, r) + 2, small - 1),
        case("rank 1", m, n, 1),
        case("one row", 1, n, 2),
        case("one column", m, 1, 2),
        case("one number", 1, 1, 1),
        case("a large weight", n, m, 2, 100.0),
        Case("near the optimum", near),
        Case("a left factor of 0", zero),
    ]


def aware_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Inputs of unequal size, correlated and too few; damping left out, small and large."""
    a, b, c = sorted(distinct(rng, 3, 4, 9))

    def case(
        name: str, inputs: int, outputs: int, rank: int, damping: float | None = None, seen: int = 40, unit: float = 1.0
    ) -> Case:
        mixed = rng.standard_normal((inputs, inputs)) + np.diag(np.linspace(0.5, 4.0, inputs))
        x = unit * rng.standard_normal((seen, inputs)) @ mixed
        args = {"weight": rng.standard_normal((inputs, outputs)), "gram": x.T @ x, "rank": int(rank)}
        return Case(name, args if damping is None else args | {"damping": damping})

    return [
        case("more inputs", b, a, 2),
        case("more outputs", a, c, 2),
        case("rank 1", b, c, 1, 1e-3),
        case("full rank", a, b, a, 1e-2),
        case("one less than full", c, b, b - 1, 0.1),
        case("strong damping", b, c, 2, 2.0),
        case("weak damping", c, a, 3, 1e-6),
        case("small inputs", b, a, 2, 0.05, unit=1e-2),
        case("large inputs", a, b, 2, 0.3, unit=30.0),
        case("fewer inputs seen than there are", c, b, 2, 0.02, seen=3),
        case("one input", 1, c, 1, 0.5),
        case("one output", b, 1, 1, 0.5),
    ]


def pca_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Many and few observations; data far from zero; columns of unequal spread."""
    d, n = sorted(distinct(rng, 2, 3, 7))
    n += 4

    def case(name: str, n: int, d: int, centre: float = 0.0, unit: float = 1.0) -> Case:
        x = _matrix(rng, n, d, unit) * np.sqrt(n) + centre * np.linspace(-1.0, 1.5, d) * (-1.0) ** np.arange(d)
        return Case(name, {"x": x})

    return [
        case("more observations than columns", n, d, 0.3),
        case("fewer observations than columns", d, n, 0.4),
        case("far from zero", n, d, 50.0),
        case("two observations", 2, d, 1.0),
        case("three observations of three", 3, 3, 1.0),
        case("one column", n, 1, 2.0),
        case("large numbers", n + 1, d, 1e3, 1e3),
        case("small numbers", n, d + 1, 1e-3, 1e-3),
        case("many observations", 30, 3, 1.0),
    ]


# ---------------------------------------------------------------------------------------------- exercises

EXERCISES = (
    Exercise(
        id="6.01",
        function="lessons.lesson_06_low_rank_svd:jacobi_rotation",
        title="The rotation that makes two columns orthogonal",
        points=3,
        cases=rotation_cases,
        view="rotation",
        wrong=(
            Wrong(
                "larger-root",
                "This is the other root of the equation for t: the columns become orthogonal, but "
                "turn by more than 45°.",
                "math.copysign(1.0, zeta) / (",
                "-math.copysign(1.0, zeta) * (",
            ),
            Wrong(
                "difference-turned-round", "ζ has the wrong sign: it is (β − α)/2γ.", "(beta - alpha)", "(alpha - beta)"
            ),
            Wrong("two-missing", "ζ divides by twice the product of the columns.", "(2.0 * gamma)", "gamma"),
            Wrong(
                "sign-of-zeta-missing",
                "t has the sign of ζ, or the rotation goes the wrong way.",
                "math.copysign(1.0, zeta)",
                "1.0",
            ),
            Wrong(
                "sine-and-cosine-swapped",
                "Cosine and sine are given in the wrong order.",
                "return c, c * t",
                "return c * t, c",
            ),
            Wrong(
                "tangent", "The second number is the tangent; the sine is asked for.", "return c, c * t", "return c, t"
            ),
            Wrong(
                "equal-lengths-not-turned",
                "Columns of equal length are not turned: the sign of 0 is not 0 here.",
                "math.copysign(1.0, zeta)",
                "float(np.sign(zeta))",
            ),
            Wrong(
                "root-missing",
                "The cosine is one over the root of 1 + t².",
                "1.0 / math.hypot(1.0, t)",
                "1.0 / (1.0 + t * t)",
            ),
        ),
        alternatives=(
            Alternative(
                "angle",
                "if gamma == 0:\n    return 1.0, 0.0\nif alpha == beta:\n"
                "    angle = math.copysign(math.pi / 4, gamma)\nelse:\n"
                "    angle = 0.5 * math.atan(2 * gamma / (beta - alpha))\nreturn math.cos(angle), math.sin(angle)",
            ),
            Alternative(
                "the smaller of both roots",
                "if not gamma:\n    return 1.0, 0.0\nzeta = (beta - alpha) / (2 * gamma)\n"
                "root = math.sqrt(zeta**2 + 1)\nt = min(-zeta + root, -zeta - root, key=abs)\n"
                "c = (1 + t**2) ** -0.5\nreturn c, t * c",
            ),
        ),
    ),
    Exercise(
        id="6.02",
        function="lessons.lesson_06_low_rank_svd:truncated_svd",
        title="Truncated SVD as two factors",
        points=2,
        cases=truncated_cases,
        view="svd_signs",
        float32=False,
        wrong=(
            Wrong(
                "no-root",
                "Both factors carry the singular values in full, so the product has their squares.",
                "np.sqrt(s[:rank])",
                "s[:rank]",
            ),
            Wrong(
                "values-left-out", "The singular values are in neither factor.", "np.sqrt(s[:rank])", "np.ones(rank)"
            ),
            Wrong(
                "left-only",
                "The roots of the singular values are in the left factor only.",
                "root[:, None] * vt[:rank]",
                "vt[:rank]",
            ),
            Wrong(
                "not-shared",
                "The product is right, but the left factor has the singular values and the right one "
                "has none: each takes their root.",
                "u[:, :rank] * root, root[:, None] * vt[:rank]",
                "u[:, :rank] * root**2, vt[:rank]",
            ),
            Wrong(
                "smallest-kept",
                "The smallest singular values are kept; the largest ones make the best approximation.",
                "root = np.sqrt(s[:rank])",
                "u, s, vt = u[:, ::-1], s[::-1], vt[::-1]\nroot = np.sqrt(s[:rank])",
            ),
            Wrong(
                "last-term-missing",
                "One term fewer than the rank is kept.",
                "np.sqrt(s[:rank])",
                "np.sqrt(s[:rank] * (np.arange(rank) < rank - 1))",
            ),
            Wrong(
                "centred",
                "The mean has been taken away first: that belongs to principal components, not to the SVD of a weight.",
                "weight.astype(np.float64)",
                "weight.astype(np.float64) - weight.mean()",
            ),
        ),
        alternatives=(
            Alternative(
                "by hand",
                "u, s, vt = jacobi_svd(weight)\nhalf = np.diag(np.sqrt(s))\n"
                "return (u @ half)[:, :rank], (half @ vt)[:rank]",
            ),
            Alternative(
                "eigenvectors",
                "w = np.asarray(weight, dtype=np.float64)\nsquares, v = np.linalg.eigh(w.T @ w)\n"
                "squares, v = squares[::-1][:rank], v[:, ::-1][:, :rank]\nroot = squares**0.25\n"
                "return w @ v / root, (v * root).T",
            ),
        ),
    ),
    Exercise(
        id="6.03",
        function="lessons.lesson_06_low_rank_svd:optimal_error",
        title="How far the nearest matrix of a rank is",
        points=1,
        cases=error_cases,
        wrong=(
            Wrong(
                "one-more-kept",
                "One singular value too many is kept: σ_{r+1} stands at place r, counted from 0.",
                "s[rank:]",
                "s[rank + 1 :]",
            ),
            Wrong(
                "what-is-kept",
                "This is the size of what is kept; the error is what is cut off.",
                "s[rank:]",
                "s[:rank]",
            ),
            Wrong(
                "not-rooted",
                "The Frobenius norm is the root of the sum of squares.",
                "np.sqrt((rest**2).sum())",
                "(rest**2).sum()",
            ),
            Wrong(
                "nuclear",
                "The singular values are summed; the Frobenius norm sums their squares, under a root.",
                "np.sqrt((rest**2).sum())",
                "rest.sum()",
            ),
            Wrong(
                "smallest-value",
                "The spectral norm is the largest of the values that are cut off, not the last.",
                "rest.max(initial=0.0)",
                "rest.min(initial=rest.max(initial=0.0))",
            ),
            Wrong(
                "largest-kept-value",
                "The spectral norm is of the difference: its largest singular value is the first that is cut off.",
                "rest.max(initial=0.0)",
                "s.max(initial=0.0)",
            ),
            Wrong(
                "spectral-squared",
                "The spectral norm is a singular value, not its square.",
                "rest.max(initial=0.0)",
                "rest.max(initial=0.0) ** 2",
            ),
            Wrong(
                "relative",
                "The error is divided by the size of the whole; the error itself is asked for.",
                "np.sqrt((rest**2).sum())",
                "np.sqrt((rest**2).sum() / (s**2).sum())",
            ),
        ),
        alternatives=(
            Alternative("norm", "return (float(s[rank]) if rank < len(s) else 0.0), float(np.linalg.norm(s[rank:]))"),
            Alternative(
                "loop",
                "largest, squares = 0.0, 0.0\nfor value in s.tolist()[rank:]:\n    largest = max(largest, value)\n"
                "    squares += value * value\nreturn largest, squares**0.5",
            ),
        ),
    ),
    Exercise(
        id="6.04",
        function="lessons.lesson_06_low_rank_svd:effective_rank",
        title="Effective rank",
        points=2,
        cases=effective_cases,
        wrong=(
            Wrong(
                "entropy",
                "This is the entropy; the effective rank is its exponential.",
                "np.exp(-(p * np.log(p)).sum())",
                "-(p * np.log(p)).sum()",
            ),
            Wrong(
                "shares-of-squares",
                "The shares are those of the squared singular values; here they are of the values themselves.",
                "s[s > 0] / s.sum()",
                "s[s > 0] ** 2 / (s**2).sum()",
            ),
            Wrong("base-2", "The logarithm is to base 2, but the exponential to base e.", "np.log(p)", "np.log2(p)"),
            Wrong("sign", "The minus of the entropy is missing.", "np.exp(-(", "np.exp(("),
            Wrong(
                "count",
                "This counts the values that are not 0, large and small alike.",
                "np.exp(-(p * np.log(p)).sum())",
                "len(p)",
            ),
            Wrong(
                "participation-ratio",
                "This is one over the sum of squared shares, another measure than the one with the entropy.",
                "np.exp(-(p * np.log(p)).sum())",
                "1.0 / (p * p).sum()",
            ),
            Wrong(
                "divided-by-the-largest",
                "The shares are to add up to 1: divide by the sum, not by the largest.",
                "/ s.sum()",
                "/ s.max()",
            ),
            Wrong(
                "stable-rank",
                "This is the stable rank, ‖A‖²_F over the largest σ²; the effective rank has the "
                "entropy of the shares.",
                "np.exp(-(p * np.log(p)).sum())",
                "(s**2).sum() / s.max() ** 2",
            ),
        ),
        alternatives=(
            Alternative(
                "product", "p = s / s.sum()\nreturn float(np.prod([float(q) ** -float(q) for q in p if q > 0]))"
            ),
            Alternative(
                "loop",
                "total = float(sum(s))\nentropy = 0.0\nfor value in s:\n    if value > 0:\n"
                "        entropy -= value / total * math.log(value / total)\nreturn math.exp(entropy)",
            ),
        ),
    ),
    Exercise(
        id="6.05",
        function="lessons.lesson_06_low_rank_svd:factor_gradients",
        title="Gradients of two factors",
        points=2,
        cases=factor_gradient_cases,
        wrong=(
            Wrong(
                "sign",
                "The error is turned round: these are steps downhill, not gradients.",
                "left @ right - weight",
                "weight - left @ right",
            ),
            Wrong(
                "twice",
                "The loss has a factor ½, so its gradient has no 2.",
                "left @ right - weight",
                "2.0 * (left @ right - weight)",
            ),
            Wrong(
                "averaged",
                "The loss is a sum over the entries, not their mean.",
                "left @ right - weight",
                "(left @ right - weight) / weight.size",
            ),
            Wrong(
                "without-the-weight",
                "The matrix that is to be approximated is not in the error.",
                "left @ right - weight",
                "left @ right",
            ),
            Wrong(
                "one-after-the-other",
                "The second gradient is taken after a step with the first; both are of the factors as they are.",
                "left.T @ error",
                "(left - error @ right.T).T @ error",
            ),
            Wrong(
                "distance-not-squared",
                "This is the gradient of the distance; that of half its square is asked for.",
                "left @ right - weight",
                "(left @ right - weight) / np.sqrt(((left @ right - weight) ** 2).sum())",
            ),
            Wrong(
                "decay",
                "The left factor has been added: there is no penalty on the factors.",
                "return error @ right.T",
                "return error @ right.T + left",
            ),
        ),
        alternatives=(
            Alternative(
                "multiplied out",
                "return left @ (right @ right.T) - weight @ right.T, (left.T @ left) @ right - left.T @ weight",
            ),
            Alternative(
                "einsum",
                'error = np.einsum("mr,rn->mn", left, right) - weight\n'
                'return np.einsum("mn,rn->mr", error, right), np.einsum("mn,mr->rn", error, left)',
            ),
            Alternative(
                "loop",
                "dleft, dright = np.zeros_like(left), np.zeros_like(right)\nfor i in range(weight.shape[0]):\n"
                "    for j in range(weight.shape[1]):\n        e = left[i] @ right[:, j] - weight[i, j]\n"
                "        dleft[i] += e * right[:, j]\n        dright[:, j] += e * left[i]\nreturn dleft, dright",
            ),
            Alternative(
                "float32",
                "w, l, r = (v.astype(np.float32) for v in (weight, left, right))\n"
                "e = l @ r - w\nreturn e @ r.T, l.T @ e",
            ),
        ),
    ),
    Exercise(
        id="6.06",
        function="lessons.lesson_06_low_rank_svd:activation_aware_svd",
        title="Truncation that knows the inputs",
        points=4,
        cases=aware_cases,
        needs=("6.02",),
        view="svd_product",
        float32=False,
        wrong=(
            Wrong(
                "inputs-ignored",
                "This is the plain truncation of the weight; the inputs are not in it.",
                "return np.linalg.solve(lower.T, left), right",
                "return truncated_svd(weight, rank)",
            ),
            Wrong(
                "not-undone",
                "The truncated matrix is Cᵀ W; its left factor still has to be multiplied by C⁻ᵀ.",
                "np.linalg.solve(lower.T, left)",
                "left",
            ),
            Wrong(
                "cholesky-transposed",
                "With G = C Cᵀ the norm is that of Cᵀ (W − L R); here C stands in the place of Cᵀ.",
                "np.eye(len(gram)))",
                "np.eye(len(gram))).T",
            ),
            Wrong(
                "weighted-by-c",
                "W is multiplied by C; the norm to minimise has Cᵀ.",
                "lower.T @ weight",
                "lower @ weight",
            ),
            Wrong(
                "undone-by-c",
                "Cᵀ is to be undone, and here C is.",
                "np.linalg.solve(lower.T, left)",
                "np.linalg.solve(lower, left)",
            ),
            Wrong(
                "multiplied-again",
                "Cᵀ has to be undone; the left factor is multiplied by it once more.",
                "np.linalg.solve(lower.T, left)",
                "lower.T @ left",
            ),
            Wrong(
                "damping-not-scaled",
                "λ is a share of the mean of the gram matrix's diagonal; here it does not grow with the inputs.",
                "damping * scale *",
                "damping *",
            ),
            Wrong("undamped", "The damping is left out.", "damping * scale *", "1e-12 * scale *"),
            Wrong(
                "diagonal-only",
                "Only the inputs' sizes are used; their correlations are in the gram matrix too.",
                "gram.astype(np.float64)",
                "np.diag(np.diag(gram))",
            ),
            Wrong(
                "damped-by-the-trace",
                "The damping is relative to the mean of the diagonal, not to its sum.",
                "damping * scale *",
                "damping * scale * len(gram) *",
            ),
        ),
        alternatives=(
            Alternative(
                "symmetric root",
                "values, q = np.linalg.eigh(gram + damping * np.trace(gram) / len(gram) * np.eye(len(gram)))\n"
                "root, inverse = (q * np.sqrt(values)) @ q.T, (q / np.sqrt(values)) @ q.T\n"
                "u, s, vt = np.linalg.svd(root @ weight, full_matrices=False)\n"
                "return inverse @ (u[:, :rank] * s[:rank]), vt[:rank]",
            ),
            Alternative(
                "directions of the output",
                "G = gram + damping * np.diag(gram).mean() * np.identity(gram.shape[0])\n"
                "v = np.linalg.eigh(weight.T @ G @ weight)[1][:, -rank:]\nreturn weight @ v, v.T.copy()",
            ),
        ),
    ),
    Exercise(
        id="6.07",
        function="lessons.lesson_06_low_rank_svd:pca",
        title="Principal components",
        points=3,
        cases=pca_cases,
        view="principal_components",
        wrong=(
            Wrong(
                "not-centred",
                "The mean is not taken away: the first axis then says where the data are, not how they differ.",
                "x - mean",
                "x",
            ),
            Wrong("divided-by-n", "The variance divides by n − 1.", "(len(x) - 1)", "len(x)"),
            Wrong(
                "standard-deviations",
                "The singular values are not squared: a variance is asked for.",
                "s**2 / (len(x) - 1)",
                "s / (len(x) - 1) ** 0.5",
            ),
            Wrong(
                "scores-of-unit-size",
                "The scores are U alone; with the singular values they are the data along the axes.",
                "u * s",
                "u",
            ),
            Wrong(
                "standardised",
                "The columns are divided by their standard deviation; only the mean is taken away.",
                "x - mean, full",
                "(x - mean) / x.std(0), full",
            ),
            Wrong(
                "one-mean-for-all",
                "The mean of all numbers is taken away; each column has its own.",
                "mean = x.mean(0)",
                "mean = np.full(x.shape[1], x.mean())",
            ),
            Wrong("scores-not-centred", "The scores are those of the data with their mean.", "u * s", "x @ vt.T"),
            Wrong(
                "shares",
                "These are shares of the variance; the variances themselves are asked for.",
                "s**2 / (len(x) - 1)",
                "s**2 / (s**2).sum()",
            ),
            Wrong(
                "rising",
                "The axes come by rising variance.",
                "return mean, vt",
                "u, s, vt = u[:, ::-1], s[::-1], vt[::-1]\nreturn mean, vt",
            ),
            Wrong(
                "rows-centred",
                "The mean of every row is taken away; that of every column is to be.",
                "x - mean, full",
                "x - x.mean(1, keepdims=True), full",
            ),
        ),
        alternatives=(
            Alternative(
                "covariance",
                "n, d = x.shape\ncentred = x - x.sum(axis=0) / n\n"
                "values, vectors = np.linalg.eigh(centred.T @ centred / (n - 1))\nk = min(n, d)\n"
                "axes = vectors[:, ::-1][:, :k].T\n"
                "return x.sum(axis=0) / n, axes, centred @ axes.T, values[::-1][:k]",
            ),
            Alternative(
                "axes the other way",
                "mean = np.mean(x, axis=0)\naxes = -np.linalg.svd((x - mean).T, full_matrices=False)[0].T\n"
                "scores = (x - mean) @ axes.T\nreturn mean, axes, scores, (scores**2).sum(0) / (x.shape[0] - 1)",
            ),
        ),
    ),
)
