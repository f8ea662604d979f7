"""Exercises of lesson 7: LoRA and its relatives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from classroom.exercises.draws import distinct


def _scaling(rng: np.random.Generator) -> float:
    """A scaling that is not 1, and not its own square or inverse."""
    return float(rng.uniform(1.3, 1.9))


def _matrix(rng: np.random.Generator, m: int, n: int, scale: float = 1.0) -> np.ndarray:
    """A matrix whose singular values lie well apart, so that its singular vectors are sharp."""
    k = min(m, n)
    u, v = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    values = scale * rng.uniform(0.8, 1.0, k) * 1.6 ** -np.arange(k)
    return (u * values) @ v.T


# ---------------------------------------------------------------------------------------------- the update


def scaling_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Both formulas; rank 1, alpha above and below the rank."""
    r, alpha = int(rng.integers(3, 20)), float(rng.uniform(20.5, 40.0))
    return [
        Case("LoRA", {"r": r, "lora_alpha": alpha, "use_rslora": False}),
        Case("rsLoRA", {"r": r, "lora_alpha": alpha, "use_rslora": True}),
        Case("LoRA by default", {"r": r + 1, "lora_alpha": alpha}),
        Case("LoRA, small alpha", {"r": r + 8, "lora_alpha": 0.37, "use_rslora": False}),
        Case("rsLoRA, small alpha", {"r": r + 8, "lora_alpha": 0.37, "use_rslora": True}),
        Case("LoRA of rank 1", {"r": 1, "lora_alpha": alpha, "use_rslora": False}),
        Case("rsLoRA of rank 1", {"r": 1, "lora_alpha": alpha, "use_rslora": True}),
        Case("alpha a whole number", {"r": 4, "lora_alpha": 6, "use_rslora": False}),
        Case("a large rank, rsLoRA", {"r": 256, "lora_alpha": 24.0, "use_rslora": True}),
    ]


def forward_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any number of leading axes; rank 1, B at its start, scalings at and away from 1."""
    b, t, inputs, outputs, r = distinct(rng, 5, 3, 9)

    def case(name: str, lead: tuple[int, ...], i: int, o: int, r: int, scaling: float) -> Case:
        x, A, B = rng.standard_normal((*lead, i)), rng.standard_normal((r, i)), rng.standard_normal((o, r))
        return Case(name, {"x": x, "A": A, "B": B, "scaling": float(scaling)})

    start = case("B at its start", (b, t), inputs, outputs, r, _scaling(rng))
    start.args["B"][:] = 0.0
    return [
        case("batch and time", (b, t), inputs, outputs, r, _scaling(rng)),
        case("rows only", (t,), inputs, outputs, 2, _scaling(rng)),
        case("three leading axes", (2, t, 3), inputs, outputs, r, 0.4),
        case("rank 1", (b, t), inputs, outputs, 1, _scaling(rng)),
        case("scaling 1", (b, t), outputs, inputs, r, 1.0),
        case("a small scaling", (b, t), inputs, outputs, r, 1 / 16),
        case("equal widths", (t,), inputs, inputs, 2, _scaling(rng)),
        case("all sizes equal", (3, 3), 3, 3, 3, _scaling(rng)),
        case("one input, one output", (b, t), 1, 1, 2, _scaling(rng)),
        case("one row", (1, 1), inputs, outputs, r, 2.5),
        start,
    ]


def backward_z_cases(rng: np.random.Generator) -> Sequence[Case]:
    """As for the forward."""
    b, t, outputs, r = distinct(rng, 4, 3, 9)

    def case(name: str, lead: tuple[int, ...], o: int, r: int, scaling: float) -> Case:
        dy, B = rng.standard_normal((*lead, o)), rng.standard_normal((o, r))
        return Case(name, {"dy": dy, "B": B, "scaling": float(scaling)})

    return [
        case("batch and time", (b, t), outputs, r, _scaling(rng)),
        case("rows only", (t,), outputs, r, _scaling(rng)),
        case("three leading axes", (2, t, 3), outputs, r, 0.4),
        case("rank 1", (b, t), outputs, 1, _scaling(rng)),
        case("as many outputs as the rank", (b, t), r, r, _scaling(rng)),
        case("all sizes equal", (3, 3), 3, 3, _scaling(rng)),
        case("scaling 1", (b, t), outputs, r, 1.0),
        case("a small scaling", (b, t), outputs, r, 1 / 16),
        case("one output", (b, t), 1, 2, _scaling(rng)),
        case("one row", (1, 1), outputs, r, 2.5),
    ]


def _factor_gradient_cases(rng: np.random.Generator, first: str, second: str) -> Sequence[Case]:
    b, t, wide, r = distinct(rng, 4, 3, 9)
    widths = {"dz": 0, "z": 0, "x": 1, "dy": 1}

    def case(name: str, lead: tuple[int, ...], r: int, wide: int, into: bool = False) -> Case:
        sizes = [r if widths[n] == 0 else wide for n in (first, second)]
        args: dict[str, object] = {
            n: rng.standard_normal((*lead, size)) for n, size in zip((first, second), sizes, strict=True)
        }
        return Case(name, args | ({"out": rng.standard_normal(sizes)} if into else {"out": None}))

    padded = case("rows without gradient", (b, t), r, wide)
    padded.args[first][1:, -2:] = 0.0
    return [
        case("batch and time", (b, t), r, wide),
        case("rows only", (t,), r, wide),
        case("three leading axes", (2, t, 3), r, wide),
        case("rank 1", (b, t), 1, wide),
        case("as wide as the rank", (b, t), r, r),
        case("all sizes equal", (3, 3), 3, 3),
        case("width 1", (b, t), r, 1),
        case("one row", (1, 1), r, wide),
        padded,
        case("into an array that is there", (b, t), r, wide, True),
        case("rows only, into an array that is there", (t,), wide, r, True),
    ]


def backward_a_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any number of leading axes; with and without a place to write to."""
    return _factor_gradient_cases(rng, "dz", "x")


def backward_b_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any number of leading axes; with and without a place to write to."""
    return _factor_gradient_cases(rng, "dy", "z")


def merge_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Unequal and equal widths, rank 1, scalings at and away from 1."""
    inputs, outputs, r = distinct(rng, 3, 3, 9)

    def case(name: str, i: int, o: int, r: int, scaling: float) -> Case:
        args = {"A": rng.standard_normal((r, i)), "B": rng.standard_normal((o, r)), "scaling": float(scaling)}
        return Case(name, args)

    return [
        case("all sizes different", inputs, outputs, r, _scaling(rng)),
        case("low rank", outputs, inputs, 2, _scaling(rng)),
        case("rank 1", inputs, outputs, 1, _scaling(rng)),
        case("equal widths", inputs, inputs, 2, _scaling(rng)),
        case("all sizes equal", r, r, r, _scaling(rng)),
        case("scaling 1", inputs, outputs, r, 1.0),
        case("a small scaling", inputs, outputs, r, 1 / 16),
        case("one input", 1, outputs, 2, _scaling(rng)),
        case("one output", inputs, 1, 2, 2.5),
    ]


# ---------------------------------------------------------------------------------------------- relatives


def dora_norm_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Unequal and equal widths; an update of 0, and one larger than the weight."""
    inputs, outputs, r = distinct(rng, 3, 3, 9)

    def case(name: str, i: int, o: int, r: int, scaling: float, size: float = 1.0) -> Case:
        factors = {"A": size * rng.standard_normal((r, i)), "B": rng.standard_normal((o, r))}
        return Case(name, {"weight": rng.standard_normal((i, o)), **factors, "scaling": float(scaling)})

    start = case("B at its start", inputs, outputs, r, _scaling(rng))
    start.args["B"][:] = 0.0
    return [
        case("all sizes different", inputs, outputs, r, _scaling(rng)),
        case("low rank", outputs, inputs, 2, _scaling(rng)),
        case("rank 1", inputs, outputs, 1, _scaling(rng)),
        case("equal widths", inputs, inputs, 2, _scaling(rng)),
        case("all sizes equal", r, r, r, _scaling(rng)),
        case("scaling 1", inputs, outputs, r, 1.0),
        case("a small update", inputs, outputs, 2, 1 / 16, 0.1),
        case("a large update", inputs, outputs, 2, 2.5, 20.0),
        case("one input", 1, outputs, 2, _scaling(rng)),
        case("one output", inputs, 1, 2, _scaling(rng)),
        start,
    ]


def dora_forward_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any number of leading axes; magnitudes of either sign and at the norm."""
    b, t, n = distinct(rng, 3, 3, 9)

    def case(name: str, shape: tuple[int, ...], low: float = 0.3, high: float = 3.0) -> Case:
        norm, magnitude = rng.uniform(low, high, (2, shape[-1]))
        return Case(name, {"h": rng.standard_normal(shape), "magnitude": magnitude, "norm": norm})

    start, negative = case("at the start", (b, t, n)), case("a negative magnitude", (b, t, n))
    start.args["magnitude"][:] = start.args["norm"]
    negative.args["magnitude"][::2] *= -1
    return [
        case("batch and time", (b, t, n)),
        case("rows only", (t, n)),
        case("three leading axes", (2, t, 3, n)),
        case("as many rows as outputs", (n, n)),
        case("one output", (b, t, 1)),
        case("one row", (1, 1, n)),
        case("short", (b, t, n), 0.01, 0.2),
        case("long", (b, t, n), 20.0, 90.0),
        start,
        negative,
    ]


def dora_backward_cases(rng: np.random.Generator) -> Sequence[Case]:
    """As for the forward, with a gradient from above."""
    return [
        Case(case.name, {"dy": rng.standard_normal(case.args["h"].shape), **case.args})
        for case in dora_forward_cases(rng)
    ]


def pissa_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Tall and wide weights; ranks from 1 to full; scalings at and away from 1."""
    a, b, c = sorted(distinct(rng, 3, 4, 9))

    def case(name: str, weight: np.ndarray, r: int, scaling: float) -> Case:
        return Case(name, {"weight": weight, "r": int(r), "scaling": float(scaling)})

    return [
        case("more inputs", _matrix(rng, c, a), 2, _scaling(rng)),
        case("more outputs", _matrix(rng, a, b), 3, _scaling(rng)),
        case("rank 1", _matrix(rng, b, c), 1, _scaling(rng)),
        case("full rank", _matrix(rng, b, a), a, _scaling(rng)),
        case("one less than full", _matrix(rng, b, c), b - 1, 0.3),
        case("equal widths", _matrix(rng, b, b), 2, _scaling(rng)),
        case("scaling 1", _matrix(rng, c, b), 2, 1.0),
        case("a large weight", _matrix(rng, b, c, 50.0), 2, 2.5),
        case("one input", rng.standard_normal((1, c)), 1, _scaling(rng)),
        case("one output", rng.standard_normal((a, 1)), 1, _scaling(rng)),
    ]


def similarity_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Equal and unequal ranks and numbers of directions; the same, other and turned subspaces."""
    inputs = int(rng.integers(9, 13))
    r, s = distinct(rng, 2, 3, 6)

    def case(name: str, first: np.ndarray, second: np.ndarray, i: int, j: int) -> Case:
        return Case(name, {"A1": first, "A2": second, "i": int(i), "j": int(j)})

    def draw(r: int, scale: float = 1.0) -> np.ndarray:
        return _matrix(rng, r, inputs, scale)

    near = draw(r)
    turned = np.linalg.qr(rng.standard_normal((r, r)))[0] @ near  # other rows, the same directions
    return [
        case("fewer of the first", draw(r), draw(s), 1, 3),
        case("fewer of the second", draw(r), draw(s), 3, 2),
        case("as many of both", draw(r), draw(s), 2, 2),
        case("all of both", draw(r), draw(s), r, s),
        case("one of each", draw(r), draw(s), 1, 1),
        case("the same adapter", near, near.copy(), 2, 2),
        case("the same adapter, more of one", near, 3.0 * near, 1, 3),
        case("the same directions from other rows", near, turned, 2, 3),
        case("nearly the same", near, near + 0.05 * rng.standard_normal(near.shape), 2, 3),
        case("rank 1", draw(1), draw(s), 1, 2),
        case("of unequal size", draw(r, 100.0), draw(s, 0.1), 2, 3),
        case("as wide as the rank", _matrix(rng, 4, 4), _matrix(rng, 3, 4), 3, 2),
        case("by far not orthogonal rows", 4.0 + draw(r), 4.0 + draw(s), 2, 3),
    ]


# ---------------------------------------------------------------------------------------------- mixtures


def _adapters(rng: np.random.Generator, inputs: int, outputs: int, ranks: Sequence[int]) -> list[object]:
    from lessons.lesson_07_lora import Factors

    return [
        Factors(rng.standard_normal((r, inputs)), rng.standard_normal((outputs, r)), float(s))
        for r, s in zip(ranks, rng.uniform(0.3, 2.5, len(ranks)), strict=True)
    ]


def cat_cases(rng: np.random.Generator) -> Sequence[Case]:
    """One, two and three adapters, of equal and unequal ranks; weights of either sign."""
    inputs, outputs = distinct(rng, 2, 4, 9)

    def case(name: str, ranks: Sequence[int], weights: Iterable[float], i: int = inputs, o: int = outputs) -> Case:
        return Case(name, {"factors": _adapters(rng, i, o, ranks), "weights": [float(w) for w in weights]})

    return [
        case("two, of equal rank", (2, 2), (0.3, 0.9)),
        case("two, of unequal rank", (3, 1), rng.uniform(0.2, 0.9, 2)),
        case("three", (1, 3, 2), rng.uniform(0.2, 0.9, 3)),
        case("one", (2,), (0.7,)),
        case("one, as it is", (3,), (1.0,)),
        case("weights that add up to 1", (2, 1), (0.25, 0.75)),
        case("one taken away", (2, 2), (1.0, -0.6)),
        case("one left out", (2, 3), (0.0, 0.8)),
        case("equal widths", (2, 1), rng.uniform(0.2, 0.9, 2), inputs, inputs),
        case("all sizes equal", (3, 3), (0.4, 1.7), 3, 3),
        case("one input, one output", (1, 2), (0.4, 1.7), 1, 1),
        case("large weights", (2, 2), (12.0, 30.0)),
    ]


def mix_svd_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Ranks from 1 to that of the sum."""
    inputs, outputs = distinct(rng, 2, 6, 9)

    def case(name: str, ranks: Sequence[int], weights: Iterable[float], rank: int) -> Case:
        factors = _adapters(rng, inputs, outputs, ranks)
        return Case(name, {"factors": factors, "weights": [float(w) for w in weights], "rank": int(rank)})

    return [
        case("two to the rank of one", (2, 2), (0.3, 0.9), 2),
        case("two of unequal rank", (3, 1), rng.uniform(0.2, 0.9, 2), 2),
        case("three to rank 1", (1, 3, 1), rng.uniform(0.2, 0.9, 3), 1),
        case("exactly", (2, 3), rng.uniform(0.2, 0.9, 2), 5),
        case("all but the smallest term", (2, 3), rng.uniform(0.2, 0.9, 2), 4),
        case("one, to a lower rank", (3,), (0.7,), 2),
        case("one, as it is", (2,), (1.0,), 2),
        case("one taken away", (2, 2), (1.0, -0.6), 3),
        case("large weights", (2, 2), (12.0, 30.0), 3),
    ]


# ---------------------------------------------------------------------------------------------- exercises

EXERCISES = (
    Exercise(
        id="7.01",
        function="lessons.lesson_07_lora:lora_scaling",
        title="LoRA: the factor on the update",
        points=1,
        cases=scaling_cases,
        wrong=(
            Wrong(
                "inverse",
                "The fraction is turned round: alpha is divided by the rank.",
                "lora_alpha / (math.sqrt(r) if use_rslora else r)",
                "(math.sqrt(r) if use_rslora else r) / lora_alpha",
            ),
            Wrong(
                "no-rslora",
                "rsLoRA divides by the root of the rank; here it divides by the rank as well.",
                "math.sqrt(r) if use_rslora else r",
                "r",
            ),
            Wrong(
                "always-rslora",
                "The root of the rank belongs to rsLoRA only.",
                "math.sqrt(r) if use_rslora else r",
                "math.sqrt(r)",
            ),
            Wrong(
                "forms-swapped",
                "LoRA and rsLoRA have changed places.",
                "math.sqrt(r) if use_rslora else r",
                "r if use_rslora else math.sqrt(r)",
            ),
            Wrong(
                "root-of-both",
                "In rsLoRA the root is that of the rank, not of alpha/r.",
                "lora_alpha / (math.sqrt(r) if use_rslora else r)",
                "math.sqrt(lora_alpha / r) if use_rslora else lora_alpha / r",
            ),
            Wrong(
                "whole-division",
                "The fraction is rounded down.",
                "lora_alpha / (math.sqrt(r) if use_rslora else r)",
                "float(lora_alpha // (math.sqrt(r) if use_rslora else r))",
            ),
            Wrong("without-alpha", "Alpha is missing: the factor is alpha over the rank.", "lora_alpha /", "1.0 /"),
        ),
        alternatives=(
            Alternative("power", "return lora_alpha * float(r) ** (-0.5 if use_rslora else -1.0)"),
            Alternative("two cases", "if use_rslora:\n    return lora_alpha / r**0.5\nreturn lora_alpha / r"),
        ),
    ),
    Exercise(
        id="7.02",
        function="lessons.lesson_07_lora:lora_forward",
        title="LoRA: forward",
        points=2,
        cases=forward_cases,
        wrong=(
            Wrong("no-scaling", "The factor s is missing.", "z *= scaling", "z *= 1.0"),
            Wrong(
                "z-without-scaling",
                "The update is right, but z is to have its factor s as well: the gradient of B relies on it.",
                "z *= scaling\nreturn ops",
                "return scaling * ops",
            ),
            Wrong("scaled-twice", "The factor s is applied twice.", "return ops", "return scaling * ops"),
            Wrong(
                "divided-by-scaling", "The update is divided by s; it is multiplied.", "z *= scaling", "z /= scaling"
            ),
            Wrong(
                "nonlinear",
                "There is an activation between the two products: LoRA's update is linear, or it could not be merged.",
                "return ops.linear_forward(z,",
                "return ops.linear_forward(np.maximum(z, 0.0),",
            ),
            Wrong(
                "divided-by-the-rank",
                "The rank is divided by once more; it is in s already.",
                "z *= scaling",
                "z *= scaling / len(A)",
            ),
        ),
        alternatives=(
            Alternative("plain products", "z = scaling * (x @ A.T)\nreturn z @ B.T, z"),
            Alternative(
                "einsum", 'z = np.einsum("...i,ri->...r", x, A) * scaling\nreturn np.einsum("...r,or->...o", z, B), z'
            ),
            Alternative("update first", "delta = x @ (scaling * (B @ A)).T\nreturn delta, x @ (scaling * A).T"),
            Alternative(
                "float32",
                "x, A, B = (v.astype(np.float32) for v in (x, A, B))\n"
                "z = np.float32(scaling) * (x @ A.T)\nreturn z @ B.T, z",
            ),
        ),
    ),
    Exercise(
        id="7.03",
        function="lessons.lesson_07_lora:lora_backward_z",
        title="LoRA: gradient between the two factors",
        points=1,
        cases=backward_z_cases,
        needs=("1.01",),
        wrong=(
            Wrong("no-scaling", "The factor s is missing.", "dz *= scaling", "dz *= 1.0"),
            Wrong(
                "divided-by-scaling",
                "The gradient is divided by s; what is multiplied in the forward is so in the backward.",
                "dz *= scaling",
                "dz /= scaling",
            ),
            Wrong("scaled-twice", "The factor s is applied twice.", "dz *= scaling", "dz *= scaling * scaling"),
            Wrong(
                "averaged",
                "The gradient is divided by the number of rows; every row has its own.",
                "return dz",
                "return dz / (dz.size // dz.shape[-1])",
            ),
            Wrong(
                "sign",
                "The sign is turned round: this is the step, not the gradient.",
                "dz *= scaling",
                "dz *= -scaling",
            ),
            Wrong(
                "divided-by-the-rank",
                "The rank is divided by once more; it is in s already.",
                "dz *= scaling",
                "dz *= scaling / dz.shape[-1]",
            ),
        ),
        alternatives=(
            Alternative("plain product", "return (dy @ B) * scaling"),
            Alternative(
                "loop",
                "dz = np.zeros((*dy.shape[:-1], B.shape[1]))\nfor o in range(len(B)):\n"
                "    dz += dy[..., o, None] * B[o] * scaling\nreturn dz",
            ),
            Alternative(
                "float32", 'return np.einsum("...o,or->...r", dy.astype(np.float32), (scaling * B).astype(np.float32))'
            ),
        ),
    ),
    Exercise(
        id="7.04",
        function="lessons.lesson_07_lora:lora_backward_A",
        title="LoRA: gradient of A",
        points=2,
        cases=backward_a_cases,
        mutates=("out",),
        needs=("1.02",),
        wrong=(
            Wrong(
                "averaged",
                "The gradient is a sum over all rows, not their mean.",
                "(x, dz,",
                "(x / (x.size // x.shape[-1]), dz,",
            ),
            Wrong(
                "averaged-over-examples",
                "The gradient is divided by the batch size; the loss has seen to that already.",
                "(x, dz,",
                "(x / len(x), dz,",
            ),
            Wrong(
                "first-example-only", "Only the first example is in it; all rows add up.", "(x, dz,", "(x[:1], dz[:1],"
            ),
            Wrong("sign", "The sign is turned round: this is the step, not the gradient.", "(x, dz,", "(-x, dz,"),
            Wrong(
                "out-ignored",
                "The result is right, but it is not written to where it was asked for.",
                ", out=out)",
                ")",
            ),
            Wrong(
                "added-to-out",
                "What stands in the array that is to be written to has been added; it is to be overwritten.",
                ", out=out)",
                ") if out is None else np.add(out, ops.linear_backward_weight(x, dz), out=out)",
            ),
        ),
        alternatives=(
            Alternative(
                "einsum",
                'dA = np.einsum("nr,ni->ri", dz.reshape(-1, dz.shape[-1]), x.reshape(-1, x.shape[-1]))\n'
                "if out is None:\n    return dA\nout[...] = dA\nreturn out",
            ),
            Alternative(
                "loop",
                "dA = np.empty((dz.shape[-1], x.shape[-1])) if out is None else out\ndA.fill(0.0)\n"
                "for place in np.ndindex(x.shape[:-1]):\n    dA += np.outer(dz[place], x[place])\nreturn dA",
            ),
            Alternative(
                "sum over axes",
                "axes = list(range(x.ndim - 1))\ndA = np.tensordot(dz, x, axes=(axes, axes))\n"
                "if out is not None:\n    out[:] = dA\nreturn dA",
            ),
            Alternative(
                "float32",
                'dA = dz.reshape(-1, dz.shape[-1]).astype("f").T @ x.reshape(-1, x.shape[-1]).astype("f")\n'
                "if out is None:\n    return dA\nout[...] = dA\nreturn out",
            ),
        ),
    ),
    Exercise(
        id="7.05",
        function="lessons.lesson_07_lora:lora_backward_B",
        title="LoRA: gradient of B",
        points=1,
        cases=backward_b_cases,
        mutates=("out",),
        needs=("1.02",),
        wrong=(
            Wrong(
                "averaged",
                "The gradient is a sum over all rows, not their mean.",
                "(z, dy,",
                "(z / (z.size // z.shape[-1]), dy,",
            ),
            Wrong(
                "averaged-over-examples",
                "The gradient is divided by the batch size; the loss has seen to that already.",
                "(z, dy,",
                "(z / len(z), dy,",
            ),
            Wrong(
                "last-example-only", "Only the last example is in it; all rows add up.", "(z, dy,", "(z[-1:], dy[-1:],"
            ),
            Wrong("sign", "The sign is turned round: this is the step, not the gradient.", "(z, dy,", "(-z, dy,"),
            Wrong(
                "out-ignored",
                "The result is right, but it is not written to where it was asked for.",
                ", out=out)",
                ")",
            ),
            Wrong(
                "added-to-out",
                "What stands in the array that is to be written to has been added; it is to be overwritten.",
                ", out=out)",
                ") if out is None else np.add(out, ops.linear_backward_weight(z, dy), out=out)",
            ),
        ),
        alternatives=(
            Alternative(
                "rows",
                "dB = dy.reshape(-1, dy.shape[-1]).T @ z.reshape(-1, z.shape[-1])\nif out is None:\n    return dB\n"
                "out[:] = dB\nreturn out",
            ),
            Alternative(
                "sum over examples",
                "dB = sum(np.multiply.outer(dy[place], z[place]) for place in np.ndindex(z.shape[:-1]))\n"
                "if out is not None:\n    np.copyto(out, dB)\nreturn dB",
            ),
        ),
    ),
    Exercise(
        id="7.06",
        function="lessons.lesson_07_lora:merge_delta",
        title="LoRA: the update as one matrix",
        points=1,
        cases=merge_cases,
        wrong=(
            Wrong("no-scaling", "The factor s is missing.", "scaling * B.T", "B.T"),
            Wrong(
                "divided-by-scaling", "The update is divided by s; it is multiplied.", "scaling * B.T", "B.T / scaling"
            ),
            Wrong("scaled-twice", "The factor s is applied twice.", "scaling * B.T", "scaling * scaling * B.T"),
            Wrong("sign", "The update is taken away; merging adds it.", "scaling * B.T", "-scaling * B.T"),
            Wrong(
                "divided-by-the-rank",
                "The rank is divided by once more; it is in s already.",
                "scaling * B.T",
                "scaling / len(A) * B.T",
            ),
            Wrong(
                "first-term-only",
                "Only the first of the r terms is in it.",
                "ops.linear_forward(A.T, ",
                "ops.linear_forward(A.T * (np.arange(len(A)) < 1), ",
            ),
        ),
        alternatives=(
            Alternative("transposed product", "return scaling * (B @ A).T"),
            Alternative(
                "sum of terms",
                "delta = np.zeros((A.shape[1], len(B)))\nfor a, b in zip(A, B.T, strict=True):\n"
                "    delta += np.outer(a, b)\ndelta *= scaling\nreturn delta",
            ),
            Alternative(
                "float32",
                'return np.einsum("ri,or->io", A.astype(np.float32), B.astype(np.float32)) * np.float32(scaling)',
            ),
        ),
    ),
    Exercise(
        id="7.07",
        function="lessons.lesson_07_lora:dora_norm",
        title="DoRA: lengths of the columns",
        points=2,
        cases=dora_norm_cases,
        needs=("7.06",),
        wrong=(
            Wrong(
                "weight-only",
                "These are the lengths of the frozen weight's columns; the update is not in them.",
                "weight + merge_delta(A, B, scaling, ops)",
                "weight",
            ),
            Wrong(
                "update-only",
                "These are the lengths of the update's columns; the frozen weight is not in them.",
                "weight + merge_delta(A, B, scaling, ops)",
                "merge_delta(A, B, scaling, ops)",
            ),
            Wrong(
                "no-scaling",
                "The factor s on the update is missing.",
                "merge_delta(A, B, scaling, ops)",
                "merge_delta(A, B, 1.0, ops)",
            ),
            Wrong(
                "update-taken-away",
                "The update is taken away from the weight; it is added.",
                "weight + merge",
                "weight - merge",
            ),
            Wrong(
                "not-rooted",
                "The root of the sum of squares is missing.",
                "namespace(weight).sqrt((whole * whole).sum(0))",
                "(whole * whole).sum(0)",
            ),
            Wrong(
                "absolute-values",
                "The absolute values are summed; a length is the root of the sum of squares.",
                "namespace(weight).sqrt((whole * whole).sum(0))",
                "abs(whole).sum(0)",
            ),
            Wrong("root-mean-square", "The squares are averaged; a length sums them.", ".sum(0)", ".mean(0)"),
            Wrong(
                "lengths-added",
                "The lengths of weight and update are added; the columns are, and then measured.",
                "namespace(weight).sqrt((whole * whole).sum(0))",
                "(weight**2).sum(0) ** 0.5 + ((whole - weight) ** 2).sum(0) ** 0.5",
            ),
        ),
        alternatives=(
            Alternative("norm", "return np.linalg.norm(weight + scaling * (B @ A).T, axis=0)"),
            Alternative(
                "multiplied out",
                "BA = B @ A\nsquares = (weight**2).sum(0) + 2 * scaling * (weight.T * BA).sum(1)\n"
                'squares += scaling**2 * np.einsum("or,rs,os->o", B, A @ A.T, B)\nreturn np.sqrt(squares)',
            ),
            Alternative(
                "float32",
                "w, A, B = (v.astype(np.float32) for v in (weight, A, B))\n"
                "whole = w + A.T @ (np.float32(scaling) * B.T)\n"
                'return np.sqrt(np.einsum("io,io->o", whole, whole))',
            ),
        ),
    ),
    Exercise(
        id="7.08",
        function="lessons.lesson_07_lora:dora_forward",
        title="DoRA: forward",
        points=1,
        cases=dora_forward_cases,
        wrong=(
            Wrong(
                "no-norm", "The norm is not divided by: a direction has length 1.", "(magnitude / norm)", "magnitude"
            ),
            Wrong("no-magnitude", "The learnt length is missing.", "(magnitude / norm)", "(1.0 / norm)"),
            Wrong(
                "inverse",
                "The fraction is turned round: the learnt length over the norm.",
                "(magnitude / norm)",
                "(norm / magnitude)",
            ),
            Wrong(
                "norm-of-the-row",
                "A row's own length is divided by; the norm is that of the weight's columns.",
                "(magnitude / norm)",
                "magnitude / (h * h).sum(-1, keepdims=True) ** 0.5",
            ),
            Wrong("added", "The fraction is added; it multiplies.", "h * (magnitude / norm)", "h + (magnitude / norm)"),
            Wrong("norm-squared", "The norm is divided by twice.", "(magnitude / norm)", "(magnitude / norm / norm)"),
            Wrong("product", "The norm multiplies; it is divided by.", "(magnitude / norm)", "(magnitude * norm)"),
        ),
        alternatives=(
            Alternative("in two steps", "y = h / norm\ny *= magnitude\nreturn y"),
            Alternative("einsum", 'return np.einsum("...o,o,o->...o", h, magnitude, 1 / norm)'),
            Alternative("float32", "return np.multiply(h, magnitude / norm).astype(np.float32)"),
        ),
    ),
    Exercise(
        id="7.09",
        function="lessons.lesson_07_lora:dora_backward",
        title="DoRA: backward",
        points=2,
        cases=dora_backward_cases,
        wrong=(
            Wrong(
                "no-norm-for-h",
                "The norm is missing in the gradient of h.",
                "dy * (magnitude / norm)",
                "dy * magnitude",
            ),
            Wrong(
                "no-magnitude-for-h",
                "The learnt length is missing in the gradient of h.",
                "dy * (magnitude / norm)",
                "dy / norm",
            ),
            Wrong(
                "no-norm-for-the-magnitude",
                "The norm is missing in the gradient of the magnitude.",
                ".sum(0) / norm",
                ".sum(0)",
            ),
            Wrong(
                "averaged",
                "The gradient of the magnitude is a sum over all rows, not their mean.",
                ".sum(0)",
                ".mean(0)",
            ),
            Wrong("without-h", "The gradient of the magnitude is without h.", "(dy * h).reshape", "dy.reshape"),
            Wrong(
                "h-from-the-output",
                "The gradient of the magnitude has the output in it, m/n·h, in the place of h/n.",
                ".sum(0) / norm",
                ".sum(0) / norm * magnitude",
            ),
            Wrong(
                "norm-not-constant",
                "The norm counts as a constant; here the magnitude's gradient is taken along the direction as well.",
                "dy * (magnitude / norm), dmagnitude",
                "(dy - h * dmagnitude / norm) * (magnitude / norm), dmagnitude",
            ),
            Wrong(
                "fraction-turned-round",
                "In the gradient of h the fraction is turned round.",
                "dy * (magnitude / norm)",
                "dy * (norm / magnitude)",
            ),
        ),
        alternatives=(
            Alternative(
                "einsum",
                "flat_dy, flat_h = dy.reshape(-1, len(norm)), h.reshape(-1, len(norm))\n"
                'dmagnitude = np.einsum("no,no,o->o", flat_dy, flat_h, 1 / norm)\n'
                'return np.einsum("...o,o->...o", dy, magnitude / norm), dmagnitude',
            ),
            Alternative(
                "sum over axes",
                "axes = tuple(range(dy.ndim - 1))\ndirection = h / norm\n"
                "return magnitude / norm * dy, (dy * direction).sum(axis=axes)",
            ),
            Alternative(
                "float32",
                "dy, h, m, n = (v.astype(np.float32) for v in (dy, h, magnitude, norm))\n"
                "return dy * m / n, (dy * h / n).reshape(-1, len(m)).sum(0)",
            ),
        ),
    ),
    Exercise(
        id="7.10",
        function="lessons.lesson_07_lora:pissa_init",
        title="PiSSA: start from the largest singular terms",
        points=3,
        cases=pissa_cases,
        view="lora_signs",
        wrong=(
            Wrong(
                "scaling-ignored",
                "The factor s of the forward is not allowed for: it is divided out of Σ.",
                "S[:r] / scaling",
                "S[:r]",
            ),
            Wrong(
                "multiplied-by-scaling",
                "Σ is multiplied by s; it is divided, as the forward multiplies.",
                "S[:r] / scaling",
                "S[:r] * scaling",
            ),
            Wrong(
                "scaling-outside-the-root",
                "s is divided by in both factors in full, so the product has it twice.",
                "xp.sqrt(S[:r] / scaling)",
                "xp.sqrt(S[:r]) / scaling",
            ),
            Wrong(
                "no-root",
                "Each factor takes the root; here both have the singular values in full.",
                "xp.sqrt(S[:r] / scaling)",
                "S[:r] / scaling",
            ),
            Wrong(
                "all-in-a",
                "The product is right, but A has the singular values and B has none: each takes their root.",
                "root[:, None] * U[:, :r].T, Vt[:r].T * root",
                "root[:, None] ** 2 * U[:, :r].T, Vt[:r].T",
            ),
            Wrong(
                "smallest",
                "The smallest singular terms are taken; PiSSA trains the largest.",
                "root = xp.sqrt(S[:r]",
                "U, S, Vt = U[:, ::-1], S[::-1], Vt[::-1]\nroot = xp.sqrt(S[:r]",
            ),
            Wrong(
                "b-at-zero",
                "B starts at 0 as in LoRA; in PiSSA both factors hold a part of the weight.",
                "Vt[:r].T * root",
                "Vt[:r].T * 0.0",
            ),
            Wrong("no-values", "The singular values are in neither factor.", "xp.sqrt(S[:r] / scaling)", "xp.ones(r)"),
        ),
        alternatives=(
            Alternative(
                "of the transposed weight",
                "V, S, Ut = np.linalg.svd(weight.T, full_matrices=False)\nroot = np.diag((S[:r] / scaling) ** 0.5)\n"
                "return root @ Ut[:r], V[:, :r] @ root",
            ),
            Alternative(
                "other signs",
                "U, S, Vt = np.linalg.svd(weight / scaling, full_matrices=False)\n"
                "signs = np.where(U[0] < 0, 1.0, -1.0)\n"
                "U, Vt = U * signs, Vt * signs[:, None]\n"
                "return (U * np.sqrt(S)).T[:r], (Vt.T * np.sqrt(S))[:, :r]",
            ),
            Alternative(
                "float32",
                "U, S, Vt = np.linalg.svd(weight.astype(np.float32), full_matrices=False)\n"
                "root = np.sqrt(S[:r] / np.float32(scaling))\n"
                "return (U[:, :r] * root).T, Vt[:r].T * root",
            ),
        ),
    ),
    Exercise(
        id="7.11",
        function="lessons.lesson_07_lora:subspace_similarity",
        title="How alike two adapters are",
        points=2,
        cases=similarity_cases,
        wrong=(
            Wrong(
                "divided-by-the-larger",
                "The sum is divided by the larger number of directions; the smaller one can be covered in full.",
                "min(i, j)",
                "max(i, j)",
            ),
            Wrong("divided-by-i", "The sum is divided by i; by the smaller of i and j it is.", "min(i, j)", "i"),
            Wrong(
                "not-squared",
                "The cosines are summed; their squares are.",
                "((first @ second.T) ** 2).sum()",
                "abs(first @ second.T).sum()",
            ),
            Wrong(
                "rooted",
                "A square root has been taken; the measure is the squared norm.",
                "float(((first @ second.T) ** 2).sum() / min(i, j))",
                "float((((first @ second.T) ** 2).sum() / min(i, j)) ** 0.5)",
            ),
            Wrong(
                "rows-not-directions",
                "A's own rows are compared; its directions are the right singular vectors.",
                "np.linalg.svd(A1, full_matrices=False)[2][:i]",
                "A1[:i] / np.sqrt((A1[:i] ** 2).sum(1, keepdims=True))",
            ),
            Wrong(
                "orthogonal-rows",
                "The first rows are made orthogonal; the directions are the singular vectors with "
                "the largest singular values.",
                "np.linalg.svd(A1, full_matrices=False)[2][:i]",
                "np.linalg.qr(A1.T)[0].T[:i]",
            ),
            Wrong(
                "smallest-first",
                "The directions with the smallest singular values are compared.",
                "np.linalg.svd(A1, full_matrices=False)[2][:i]",
                "np.linalg.svd(A1, full_matrices=False)[2][::-1][:i]",
            ),
            Wrong(
                "all-directions",
                "All directions of the first adapter are compared; only its first i are.",
                "[2][:i]",
                "[2]",
            ),
        ),
        alternatives=(
            Alternative(
                "eigenvectors",
                "one = np.linalg.eigh(A1.T @ A1)[1][:, ::-1][:, :i]\n"
                "two = np.linalg.eigh(A2.T @ A2)[1][:, ::-1][:, :j]\n"
                "return float(np.linalg.norm(one.T @ two) ** 2 / min(i, j))",
            ),
            Alternative(
                "projections",
                "one = np.linalg.svd(A1)[2][:i]\ntwo = np.linalg.svd(A2)[2][:j]\n"
                "return float(np.trace(one.T @ one @ two.T @ two) / min(i, j))",
            ),
        ),
    ),
    Exercise(
        id="7.12",
        function="lessons.lesson_07_lora:mix_cat",
        title="Mixing adapters exactly",
        points=2,
        cases=cat_cases,
        wrong=(
            Wrong(
                "weights-left-out", "The weights of the mixture are missing.", "w * f.scaling * f.A", "f.scaling * f.A"
            ),
            Wrong("scalings-left-out", "Each adapter's own factor s is missing.", "w * f.scaling * f.A", "w * f.A"),
            Wrong(
                "weights-on-both",
                "The weights are on A and on B, so the product has their squares.",
                "[f.B for f in factors]",
                "[w * f.B for f, w in zip(factors, weights, strict=True)]",
            ),
            Wrong(
                "scaling-kept",
                "The scalings have gone into A, so the mixture's own is 1.",
                "axis=1), 1.0)",
                "axis=1), factors[0].scaling)",
            ),
            Wrong(
                "weights-add-up-to-1",
                "The weights are divided by their sum; they are to be used as they are.",
                "w * f.scaling * f.A",
                "w / sum(weights) * f.scaling * f.A",
            ),
            Wrong(
                "weights-on-b",
                "Weights and scalings are to go into A; the product is right with them elsewhere, "
                "but the mixture is not what is asked for.",
                "[w * f.scaling * f.A for f, w in zip(factors, weights, strict=True)])\n"
                "return Factors(A, xp.concatenate([f.B for f in factors], axis=1), 1.0)",
                "[f.A for f in factors])\nreturn Factors(A, xp.concatenate([w * f.scaling * f.B for f, w in "
                "zip(factors, weights, strict=True)], axis=1), 1.0)",
            ),
            Wrong(
                "first-scaling-for-all",
                "The first adapter's factor s is used for all; each has its own.",
                "w * f.scaling * f.A",
                "w * factors[0].scaling * f.A",
            ),
            Wrong(
                "averaged",
                "The sum is divided by the number of adapters.",
                "w * f.scaling * f.A",
                "w * f.scaling * f.A / len(factors)",
            ),
        ),
        alternatives=(
            Alternative(
                "stacked",
                "A = np.vstack([f.A * (f.scaling * w) for w, f in zip(weights, factors)])\n"
                "return Factors(A=A, B=np.hstack([f.B for f in factors]), scaling=1.0)",
            ),
            Alternative(
                "own buffer",
                "rank = sum(len(f.A) for f in factors)\nA = np.empty((rank, factors[0].A.shape[1]))\n"
                "B = np.empty((len(factors[0].B), rank))\nstart = 0\nfor i in range(len(factors)):\n"
                "    end = start + len(factors[i].A)\n"
                "    A[start:end] = weights[i] * factors[i].scaling * factors[i].A\n"
                "    B[:, start:end] = factors[i].B\n    start = end\nreturn Factors(A, B, 1.0)",
            ),
        ),
    ),
    Exercise(
        id="7.13",
        function="lessons.lesson_07_lora:mix_svd",
        title="Mixing adapters to a rank",
        points=2,
        cases=mix_svd_cases,
        needs=("7.12",),
        view="lora_product",
        wrong=(
            Wrong(
                "values-left-out", "The singular values are in neither factor.", "U[:, :rank] * S[:rank]", "U[:, :rank]"
            ),
            Wrong(
                "values-rooted",
                "The roots of the singular values are in one factor only.",
                "S[:rank]",
                "S[:rank] ** 0.5",
            ),
            Wrong(
                "values-twice",
                "The singular values are in both factors in full.",
                "Factors(Vt[:rank],",
                "Factors(S[:rank, None] * Vt[:rank],",
            ),
            Wrong(
                "cut-not-truncated",
                "The first terms of the adapters are kept, not the largest of their sum.",
                "Factors(Vt[:rank], U[:, :rank] * S[:rank], 1.0)",
                "Factors(A[:rank], B[:, :rank], 1.0)",
            ),
            Wrong(
                "unweighted",
                "The weights of the mixture are missing.",
                "mix_cat(factors, weights)",
                "mix_cat(factors, [1.0] * len(factors))",
            ),
            Wrong(
                "one-term-short",
                "One term fewer than the rank is kept.",
                "S[:rank]",
                "(S[:rank] * (np.arange(rank) < rank - 1))",
            ),
            Wrong(
                "scaling-again",
                "The scalings are in the factors already, so the mixture's own is 1.",
                "], 1.0)",
                "], factors[0].scaling)",
            ),
            Wrong("averaged", "The sum is divided by the number of adapters.", "S[:rank]", "S[:rank] / len(factors)"),
        ),
        alternatives=(
            Alternative(
                "sum of products",
                "total = sum(w * f.scaling * (f.B @ f.A) for f, w in zip(factors, weights, strict=True))\n"
                "U, S, Vt = np.linalg.svd(total)\nroot = np.sqrt(S[:rank])\n"
                "return Factors(root[:, None] * Vt[:rank], U[:, :rank] * root, 1.0)",
            ),
            Alternative(
                "projection",
                "total = sum(w * f.scaling * (f.B @ f.A) for f, w in zip(factors, weights, strict=True))\n"
                "U = np.linalg.svd(total, full_matrices=False)[0][:, :rank]\nreturn Factors(U.T @ total, U, 1.0)",
            ),
        ),
    ),
)
