"""Exercises of lesson 8: bottleneck adapters, BitFit and IA3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Ops, Rng, Wrong
from classroom.exercises.draws import distinct

# ---------------------------------------------------------------------------------------------- adapters


def forward_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any number of leading axes; small and large activations; with and without what a backward needs."""
    b, t, d = distinct(rng, 3, 3, 9)
    m = int(rng.choice([size for size in range(3, 10) if size not in (b, t, d)]))

    def case(name: str, lead: tuple[int, ...], d: int, m: int, keep: bool | None = True, size: float = 1.0) -> Case:
        args = {
            "x": size * rng.standard_normal((*lead, d)),
            "down": rng.standard_normal((d, m)),
            "down_bias": rng.standard_normal(m),
            "up": rng.standard_normal((m, d)),
            "up_bias": rng.standard_normal(d),
            "ops": Ops(),
        }
        return Case(name, args if keep is None else args | {"keep": keep})

    start = case("biases of 0", (b, t), d, m)
    start.args["down_bias"][:] = start.args["up_bias"][:] = 0.0
    return [
        case("batch and time", (b, t), d, m),
        case("rows only", (t,), d, m),
        case("three leading axes", (2, t, 3), d, m),
        case("no backward will follow", (b, t), d, m, False),
        case("a backward by default", (b, t), d, m, None),
        case("bottleneck of 1", (b, t), d, 1),
        case("wider inside", (b,), d, d + 3),
        case("as wide inside", (b, t), d, d),
        case("all sizes equal", (3, 3), 3, 3),
        case("width 1", (b, t), 1, 2),
        case("one row", (1, 1), d, m),
        case("small inputs", (b, t), d, m, True, 1e-2),
        case("large inputs", (b, t), d, m, True, 30.0),
        start,
    ]


def bottleneck_cases(rng: np.random.Generator) -> Sequence[Case]:
    """The slope is that of the reference's forward: what stands before the activation."""
    b, t, d, m = distinct(rng, 4, 3, 9)

    def case(name: str, lead: tuple[int, ...], d: int, m: int, size: float = 1.0) -> Case:
        dy, up = rng.standard_normal((*lead, d)), rng.standard_normal((m, d))
        return Case(name, {"dy": dy, "up": up, "slope": size * rng.standard_normal((*lead, m)), "ops": Ops()})

    negative = case("before the activation all negative", (b, t), d, m)
    negative.args["slope"][...] = -abs(negative.args["slope"])
    return [
        case("batch and time", (b, t), d, m),
        case("rows only", (t,), d, m),
        case("three leading axes", (2, t, 3), d, m),
        case("bottleneck of 1", (b, t), d, 1),
        case("wider inside", (b,), d, d + 3),
        case("as wide inside", (b, t), d, d),
        case("all sizes equal", (3, 3), 3, 3),
        case("width 1", (b, t), 1, m),
        case("one row", (1, 1), d, m),
        case("small before the activation", (b, t), d, m, 0.01),
        case("large before the activation", (b, t), d, m, 6.0),
        negative,
    ]


def params_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any number of leading axes."""
    b, t, d, m = distinct(rng, 4, 3, 9)

    def case(name: str, lead: tuple[int, ...], d: int, m: int) -> Case:
        shapes = {"dy": d, "du": m, "x": d, "g": m}
        return Case(name, {n: rng.standard_normal((*lead, size)) for n, size in shapes.items()} | {"ops": Ops()})

    padded = case("rows without gradient", (b, t), d, m)
    padded.args["dy"][1:, -2:] = padded.args["du"][1:, -2:] = 0.0
    return [
        case("batch and time", (b, t), d, m),
        case("rows only", (t,), d, m),
        case("three leading axes", (2, t, 3), d, m),
        case("bottleneck of 1", (b, t), d, 1),
        case("as wide inside", (b, t), d, d),
        case("all sizes equal", (3, 3), 3, 3),
        case("width 1", (b, t), 1, m),
        case("one row", (1, 1), d, m),
        padded,
    ]


def near_identity_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Large enough for the spread to be told, and small; several standard deviations and seeds."""

    def case(name: str, d: int, m: int, std: float) -> Case:
        return Case(name, {"d": d, "m": m, "std": std, "rng": Rng(int(rng.integers(2**31)))})

    return [
        case("many numbers", 90, int(rng.integers(45, 60)), 0.01),
        case("as small as in Houlsby's code", int(rng.integers(80, 95)), 60, 1e-3),
        case("a large start", 60, int(rng.integers(80, 95)), 2.5),
        case("standard deviation 1", 80, 71, 1.0),
        case("as wide inside", 75, 75, 0.3),
        case("few numbers", 5, 3, 0.1),
        case("bottleneck of 1", 7, 1, 0.02),
        case("width 1", 1, 4, 0.5),
    ]


def adapter_count_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Narrow, wide and equal."""
    d, m = sorted(distinct(rng, 2, 5, 30))
    return [
        Case("a bottleneck", {"d": m, "m": d}),
        Case("wider inside", {"d": d, "m": m}),
        Case("equal", {"d": m, "m": m}),
        Case("bottleneck of 1", {"d": m, "m": 1}),
        Case("width 1", {"d": 1, "m": m}),
        Case("ones", {"d": 1, "m": 1}),
        Case("GPT-2's width", {"d": 768, "m": 64}),
    ]


# ---------------------------------------------------------------------------------------------- BitFit


def bias_names_cases(rng: np.random.Generator) -> Sequence[Case]:
    """A model's names, in any order, and names in which "bias" stands elsewhere."""
    first = int(rng.integers(0, 40))
    parts = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    model = ["transformer.wte.weight", "transformer.wpe.weight"]
    model += [
        f"transformer.h.{i}.{part}.{kind}" for i in (first, first + 1) for part in parts for kind in ("weight", "bias")
    ]
    model += ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    weights = [name for name in model if name.endswith("weight")]
    elsewhere = ["h.0.bias_proj.weight", "bias.weight", "h.1.rel_bias", "h.1.bias.scale", "unbias", "h.0.mlp.bias",
                 "h.0.biases", "h.2.Bias"]  # fmt: skip
    return [
        Case("a model", {"names": model}),
        Case("a model, shuffled", {"names": [model[i] for i in rng.permutation(len(model))]}),
        Case("backwards", {"names": model[::-1]}),
        Case("a head's too", {"names": [*model[2:9], "score.weight", "score.bias"]}),
        Case("bias elsewhere in the name", {"names": [elsewhere[i] for i in rng.permutation(len(elsewhere))]}),
        Case("no dot", {"names": ["weight", "bias", "scale"]}),
        Case("twice the same", {"names": ["b.bias", "a.bias", "a.weight", "b.bias"]}),
        Case("none", {"names": weights}),
        Case("no names", {"names": []}),
    ]


def bias_count_cases(rng: np.random.Generator) -> Sequence[Case]:
    """MLPs of four times the width and others; one block and many."""
    d, inner, layers = (int(v) for v in (rng.integers(5, 20), rng.integers(23, 60), rng.integers(3, 9)))
    return [
        Case("any widths", {"d": d, "inner": inner, "n_layer": layers}),
        Case("four times the width inside", {"d": d, "inner": 4 * d, "n_layer": layers}),
        Case("narrower inside", {"d": inner, "inner": d, "n_layer": layers}),
        Case("one block", {"d": d, "inner": inner, "n_layer": 1}),
        Case("no block", {"d": d, "inner": inner, "n_layer": 0}),
        Case("equal widths", {"d": d, "inner": d, "n_layer": 2}),
        Case("GPT-2", {"d": 768, "inner": 3072, "n_layer": 12}),
    ]


# ---------------------------------------------------------------------------------------------- IA3


def scale_input_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any number of leading axes; scales of either sign, of 1 and of 0."""
    b, t, n = distinct(rng, 3, 3, 9)

    def case(name: str, shape: tuple[int, ...], scale: np.ndarray | None = None) -> Case:
        drawn = rng.standard_normal(shape[-1]) + 0.3
        return Case(name, {"dy": rng.standard_normal(shape), "scale": drawn if scale is None else scale})

    some = rng.uniform(0.5, 1.5, n)
    some[::2] = 0.0
    return [
        case("batch and time", (b, t, n)),
        case("rows only", (t, n)),
        case("three leading axes", (2, t, 3, n)),
        case("as many rows as numbers", (n, n)),
        case("one number", (b, t, 1)),
        case("one row", (1, 1, n)),
        case("at the start, all 1", (b, t, n), np.ones(n)),
        case("all negative", (b, t, n), -rng.uniform(0.2, 2.0, n)),
        case("all above 1", (b, t, n), rng.uniform(1.5, 4.0, n)),
        case("some 0", (b, t, n), some),
    ]


def scale_vector_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Any number of leading axes; rows without gradient."""
    b, t, n = distinct(rng, 3, 3, 9)

    def case(name: str, shape: tuple[int, ...]) -> Case:
        return Case(name, {"dy": rng.standard_normal(shape), "x": rng.standard_normal(shape)})

    padded, far = case("rows without gradient", (b, t, n)), case("inputs far from zero", (b, t, n))
    padded.args["dy"][1:, -2:] = 0.0
    far.args["x"][...] += 7.0
    return [
        case("batch and time", (b, t, n)),
        case("rows only", (t, n)),
        case("three leading axes", (2, t, 3, n)),
        case("as many rows as numbers", (n, n)),
        case("all sizes equal", (3, 3, 3)),
        case("one number", (b, t, 1)),
        case("one row", (1, 1, n)),
        case("one example", (1, t, n)),
        padded,
        far,
    ]


def scale_merge_cases(rng: np.random.Generator) -> Sequence[Case]:
    """Output and input scaled; unequal, equal and single widths."""
    inputs, outputs = distinct(rng, 2, 3, 9)

    def case(name: str, i: int, o: int, feedforward: bool, scale: np.ndarray | None = None) -> Case:
        drawn = rng.standard_normal(i if feedforward else o) + 0.4
        return Case(
            name,
            {
                "weight": rng.standard_normal((i, o)),
                "bias": rng.standard_normal(o),
                "scale": drawn if scale is None else scale,
                "feedforward": feedforward,
            },
        )

    return [
        case("output scaled", inputs, outputs, False),
        case("input scaled", inputs, outputs, True),
        case("output scaled, equal widths", inputs, inputs, False),
        case("input scaled, equal widths", outputs, outputs, True),
        case("output scaled, one output", inputs, 1, False),
        case("input scaled, one output", inputs, 1, True),
        case("output scaled, one input", 1, outputs, False),
        case("input scaled, one input", 1, outputs, True),
        case("output scaled by 1", inputs, outputs, False, np.ones(outputs)),
        case("input scaled, negative", inputs, outputs, True, -rng.uniform(0.2, 2.0, inputs)),
    ]


# ---------------------------------------------------------------------------------------------- exercises

EXERCISES = (
    Exercise(
        id="8.01",
        function="lessons.lesson_08_adapters:adapter_forward",
        title="Adapter: forward",
        points=2,
        cases=forward_cases,
        wrong=(
            Wrong(
                "input-added",
                "The input is added already; this is the branch alone, what passes beside it is added elsewhere.",
                "return ops",
                "return x + ops",
            ),
            Wrong(
                "no-activation",
                "There is no activation between the two products.",
                "ops.bias_gelu_forward(u, down_bias, keep)",
                "u + down_bias, u + down_bias if keep else None",
            ),
            Wrong(
                "relu",
                "The activation is a ReLU; a GELU is asked for.",
                "g, slope = ops.bias_gelu_forward(u, down_bias, keep)",
                "g, slope = np.maximum(u + down_bias, 0.0), u + down_bias if keep else None",
            ),
            Wrong(
                "no-inner-bias", "The bias inside the bottleneck is missing.", "(u, down_bias, keep)", "(u, None, keep)"
            ),
            Wrong("no-outer-bias", "The bias of the way up is missing.", "(g, up, up_bias)", "(g, up, None)"),
            Wrong(
                "bias-after-the-activation",
                "The bias inside is added after the activation; it comes before.",
                "g, slope = ops.bias_gelu_forward(u, down_bias, keep)",
                "g, slope = ops.bias_gelu_forward(u, None, keep)\ng = g + down_bias",
            ),
            Wrong(
                "activation-at-the-end",
                "There is a second activation at the end; the way up is linear.",
                "return ops.linear_forward(g, up, up_bias), g",
                "return ops.bias_gelu_forward(ops.linear_forward(g, up, up_bias), None)[0], g",
            ),
            Wrong(
                "before-the-activation",
                "What is returned as activations is what stands before the activation.",
                "up_bias), g, slope",
                "up_bias), u + down_bias, slope",
            ),
        ),
        alternatives=(
            Alternative(
                "bias in the product",
                "u = ops.linear_forward(x, down, down_bias)\n"
                "g, slope = ops.bias_gelu_forward(u, None, keep)\n"
                "y = ops.linear_forward(g, up, None)\ny += up_bias\nreturn y, g, slope",
            ),
            Alternative(
                "plain products",
                "g, slope = ops.bias_gelu_forward(x @ down, down_bias, keep=keep)\nreturn g @ up + up_bias, g, slope",
            ),
            Alternative(
                "float32",
                "x, down, b, up, c = (v.astype(np.float32) for v in "
                "(x, down, down_bias, up, up_bias))\ng, slope = ops.bias_gelu_forward(x @ down, b, keep)\n"
                "return g @ up + c, g, slope",
            ),
        ),
    ),
    Exercise(
        id="8.02",
        function="lessons.lesson_08_adapters:adapter_backward_bottleneck",
        title="Adapter: gradient inside the bottleneck",
        points=2,
        cases=bottleneck_cases,
        needs=("1.01",),
        wrong=(
            Wrong(
                "no-activation",
                "The derivative of the activation is missing.",
                "ops.bias_gelu_backward(ops.linear_backward_input(dy, up), slope)",
                "ops.linear_backward_input(dy, up)",
            ),
            Wrong(
                "relu",
                "This is the derivative of a ReLU; the activation is a GELU.",
                "ops.bias_gelu_backward(ops.linear_backward_input(dy, up), slope)",
                "ops.linear_backward_input(dy, up) * (slope > 0)",
            ),
            Wrong(
                "times-the-slope",
                "What the forward kept is multiplied with; what it is, only the operation that made it knows.",
                "ops.bias_gelu_backward(ops.linear_backward_input(dy, up), slope)",
                "ops.linear_backward_input(dy, up) * slope",
            ),
            Wrong(
                "activation-twice",
                "The derivative of the activation is applied twice.",
                "return ops.bias_gelu_backward(ops.linear_backward_input(dy, up), slope)",
                "du = ops.bias_gelu_backward(ops.linear_backward_input(dy, up), slope)\n"
                "return ops.bias_gelu_backward(du, slope)",
            ),
            Wrong(
                "activation-not-derivative",
                "The gradient is multiplied by the activation; its derivative belongs there.",
                "ops.bias_gelu_backward(ops.linear_backward_input(dy, up), slope)",
                "ops.linear_backward_input(dy, up) * ops.bias_gelu_forward(slope, None)[0]",
            ),
            Wrong("sign", "The sign is turned round: this is the step, not the gradient.", "(dy, up)", "(-dy, up)"),
            Wrong(
                "averaged",
                "The gradient is divided by the number of rows; every row has its own.",
                "(dy, up)",
                "(dy / (dy.size // dy.shape[-1]), up)",
            ),
        ),
        alternatives=(
            Alternative("plain product", "dg = dy @ up.T\nreturn ops.bias_gelu_backward(dg, slope)"),
            Alternative("ones first", "return (dy @ up.T) * ops.bias_gelu_backward(np.ones_like(slope), slope)"),
            Alternative(
                "float32",
                'dg = np.einsum("...d,md->...m", dy.astype(np.float32), up.astype(np.float32))\n'
                "return ops.bias_gelu_backward(dg, slope.astype(np.float32))",
            ),
        ),
    ),
    Exercise(
        id="8.03",
        function="lessons.lesson_08_adapters:adapter_backward_params",
        title="Adapter: gradients of its parameters",
        points=2,
        cases=params_cases,
        needs=("1.02", "1.03"),
        wrong=(
            Wrong(
                "down-averaged",
                "The gradient of the way down is a sum over all rows, not their mean.",
                "ops.linear_backward_weight(du, x)",
                "ops.linear_backward_weight(du, x / (x.size // x.shape[-1]))",
            ),
            Wrong(
                "up-averaged",
                "The gradient of the way up is a sum over all rows, not their mean.",
                "ops.linear_backward_weight(dy, g)",
                "ops.linear_backward_weight(dy, g / (g.size // g.shape[-1]))",
            ),
            Wrong(
                "inner-bias-averaged",
                "The gradient of the inner bias is a sum over all rows, not their mean.",
                "ops.linear_backward_bias(du)",
                "ops.linear_backward_bias(du) / (du.size // du.shape[-1])",
            ),
            Wrong(
                "outer-bias-averaged",
                "The gradient of the outer bias is a sum over all rows, not their mean.",
                "ops.linear_backward_bias(dy)",
                "ops.linear_backward_bias(dy) / (dy.size // dy.shape[-1])",
            ),
            Wrong(
                "bias-of-one-example",
                "Only the first example is in the gradient of the inner bias.",
                "ops.linear_backward_bias(du)",
                "ops.linear_backward_bias(du[:1])",
            ),
            Wrong(
                "up-of-one-example",
                "Only the first example is in the gradient of the way up.",
                "ops.linear_backward_weight(dy, g)",
                "ops.linear_backward_weight(dy[:1], g[:1])",
            ),
            Wrong(
                "activation-counted-again",
                "The gradient of the way up is made with the activations, not with their squares.",
                "ops.linear_backward_weight(dy, g)",
                "ops.linear_backward_weight(dy, g * g)",
            ),
        ),
        alternatives=(
            Alternative(
                "rows",
                "dy, du, x, g = (v.reshape(-1, v.shape[-1]) for v in (dy, du, x, g))\n"
                "return x.T @ du, du.sum(0), g.T @ dy, dy.sum(0)",
            ),
            Alternative(
                "einsum",
                "dy, du, x, g = (v.reshape(-1, v.shape[-1]) for v in (dy, du, x, g))\n"
                'ddown, dup = np.einsum("nd,nm->dm", x, du), np.einsum("nm,nd->md", g, dy)\n'
                'return ddown, np.einsum("nm->m", du), dup, np.einsum("nd->d", dy)',
            ),
            Alternative(
                "float32",
                "axes = tuple(range(x.ndim - 1))\ndy, du, x, g = (v.astype(np.float32) for v in (dy, du, x, g))\n"
                "return (np.tensordot(x, du, (axes, axes)), du.sum(axes), np.tensordot(g, dy, (axes, axes)), "
                "dy.sum(axes))",
            ),
        ),
    ),
    Exercise(
        id="8.04",
        function="lessons.lesson_08_adapters:near_identity",
        title="Adapter: a start that adds almost nothing",
        points=2,
        cases=near_identity_cases,
        view="near_identity",
        mutates=("rng",),
        float32=False,
        wrong=(
            Wrong(
                "not-cut",
                "Values beyond two standard deviations are there: they are to be drawn again.",
                "> 2)",
                "> 9)",
            ),
            Wrong(
                "clipped",
                "Values beyond two standard deviations are set to two; they are to be drawn again.",
                "values[outside] = rng.standard_normal(int(outside.sum()))",
                "values = values.clip(-2.0, 2.0)",
            ),
            Wrong("cut-at-one", "Values are cut off at one standard deviation; two are allowed.", "> 2)", "> 1)"),
            Wrong(
                "variance",
                "The numbers are multiplied by the variance; the standard deviation belongs there.",
                "std * values",
                "std**2 * values",
            ),
            Wrong(
                "up-at-zero",
                "The way up starts at 0. Then the way down gets no gradient, and the other way round "
                "it would be the same; both are drawn.",
                "truncated_normal((m, d))",
                "np.zeros((m, d))",
            ),
            Wrong(
                "biases-drawn",
                "The biases are drawn too; they start at 0.",
                "np.zeros(m)",
                "std * rng.standard_normal(m)",
            ),
            Wrong(
                "one-side-cut",
                "Only large positive values are drawn again; the far negative ones are too.",
                "np.abs(values) > 2",
                "values > 2",
            ),
            Wrong(
                "positive-only",
                "All numbers are positive; the distribution is around 0.",
                "return std * values",
                "return std * np.abs(values)",
            ),
            Wrong(
                "beyond-set-to-zero",
                "Values beyond two standard deviations are set to 0; they are to be drawn again.",
                "rng.standard_normal(int(outside.sum()))",
                "0.0",
            ),
        ),
        alternatives=(
            Alternative(
                "one number at a time",
                "def draw():\n    value = rng.normal(0.0, std)\n    while abs(value) > 2 * std:\n"
                "        value = rng.normal(0.0, std)\n    return value\n\n\n"
                "down = np.array([[draw() for _ in range(m)] for _ in range(d)])\n"
                "up = np.array([[draw() for _ in range(d)] for _ in range(m)])\n"
                "return down, np.zeros(m), up, np.zeros(d)",
            ),
            Alternative(
                "more than needed",
                "pool = rng.normal(size=8 * d * m + 200)\npool = std * pool[np.abs(pool) <= 2]\n"
                "up, down = pool[: d * m].reshape(m, d), pool[d * m : 2 * d * m].reshape(d, m)\n"
                "return down, np.zeros(m), up, np.zeros(d)",
            ),
        ),
    ),
    Exercise(
        id="8.05",
        function="lessons.lesson_08_adapters:adapter_count",
        title="Parameters of an adapter",
        points=1,
        cases=adapter_count_cases,
        wrong=(
            Wrong("no-biases", "The two biases are missing.", "2 * d * m + m + d", "2 * d * m"),
            Wrong("no-inner-bias", "The bias inside the bottleneck is missing.", "2 * d * m + m + d", "2 * d * m + d"),
            Wrong("no-outer-bias", "The bias of the way up is missing.", "2 * d * m + m + d", "2 * d * m + m"),
            Wrong("one-matrix", "There are two matrices, one down and one up.", "2 * d * m + m + d", "d * m + m + d"),
            Wrong("biases-twice", "Each of the two layers has one bias.", "2 * d * m + m + d", "2 * (d * m + m + d)"),
            Wrong(
                "outer-bias-too-wide",
                "Both biases have the width of the bottleneck here; that of the way up has the model's.",
                "2 * d * m + m + d",
                "2 * d * m + 2 * m",
            ),
        ),
        alternatives=(Alternative("layer by layer", "down = (d + 1) * m\nup = (m + 1) * d\nreturn down + up"),),
    ),
    Exercise(
        id="8.06",
        function="lessons.lesson_08_adapters:bias_names",
        title="BitFit: which parameters are biases",
        points=1,
        cases=bias_names_cases,
        wrong=(
            Wrong(
                "anywhere",
                "Every name with “bias” anywhere in it is taken; a bias' name ends so.",
                'name.rsplit(".", 1)[-1] == "bias"',
                '"bias" in name',
            ),
            Wrong(
                "part-anywhere",
                "Names are taken in which “bias” is a part before the last.",
                'name.rsplit(".", 1)[-1] == "bias"',
                '"bias" in name.split(".")',
            ),
            Wrong(
                "ending",
                "Names are taken that end in “bias” without a dot before it, such as rel_bias.",
                'name.rsplit(".", 1)[-1] == "bias"',
                'name.endswith("bias")',
            ),
            Wrong(
                "no-layernorms",
                "The LayerNorms' biases are missing.",
                'name.rsplit(".", 1)[-1] == "bias"',
                'name.rsplit(".", 1)[-1] == "bias" and "ln_" not in name',
            ),
            Wrong(
                "no-final-layernorm",
                "The final LayerNorm's bias is missing.",
                'name.rsplit(".", 1)[-1] == "bias"',
                'name.rsplit(".", 1)[-1] == "bias" and "ln_f" not in name',
            ),
            Wrong(
                "sorted",
                "The names are sorted; they keep their order.",
                "for name in names if",
                "for name in sorted(names) if",
            ),
            Wrong("the-others", "These are all parameters but the biases.", '== "bias"', '!= "bias"'),
            Wrong(
                "no-lone-name",
                "A name without a dot can be a bias too.",
                'name.rsplit(".", 1)[-1] == "bias"',
                'name.endswith(".bias")',
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                'found = []\nfor name in names:\n    if name == "bias" or name.endswith(".bias"):\n'
                "        found.append(name)\nreturn found",
            ),
            Alternative("filter", 'return list(filter(lambda name: name.split(".")[-1] == "bias", names))'),
        ),
    ),
    Exercise(
        id="8.07",
        function="lessons.lesson_08_adapters:bias_count",
        title="BitFit: how many biases",
        points=1,
        cases=bias_count_cases,
        wrong=(
            Wrong("no-final-layernorm", "The final LayerNorm is missing.", "+ inner + d) + d", "+ inner + d)"),
            Wrong(
                "final-layernorm-in-every-block",
                "The final LayerNorm is counted in every block; there is one.",
                "+ inner + d) + d",
                "+ inner + d + d)",
            ),
            Wrong(
                "one-width-missing",
                "A block lacks one bias of the model's width: it has two LayerNorms and two projections to that width.",
                "2 * d +",
                "d +",
            ),
            Wrong("query-only", "c_attn makes queries, keys and values: three times the width.", "3 * d", "d"),
            Wrong(
                "four-times-the-width",
                "The MLP's inside has its own width, which need not be four times the model's.",
                "+ inner +",
                "+ 4 * d +",
            ),
            Wrong(
                "weights-of-the-norms",
                "The LayerNorms' weights are counted as well; only their biases are.",
                "2 * d +",
                "4 * d +",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "count = d\nfor _ in range(n_layer):\n    for width in (d, 3 * d, d, d, inner, d):\n"
                "        count += width\nreturn count",
            ),
            Alternative("collected", "return d * (7 * n_layer + 1) + inner * n_layer"),
        ),
    ),
    Exercise(
        id="8.08",
        function="lessons.lesson_08_adapters:scale_backward_input",
        title="IA3: gradient of what is scaled",
        points=1,
        cases=scale_input_cases,
        wrong=(
            Wrong(
                "not-scaled",
                "The gradient is handed on as it came; it goes through the scale like the values.",
                "dy * scale",
                "dy * 1.0",
            ),
            Wrong(
                "residual",
                "There is no way beside the scale: it multiplies by l, not by 1 + l.",
                "dy * scale",
                "dy * (1.0 + scale)",
            ),
            Wrong("scaled-twice", "The scale is applied twice.", "dy * scale", "dy * scale * scale"),
            Wrong("absolute", "The sign of the scale is lost.", "dy * scale", "dy * abs(scale)"),
            Wrong(
                "one-scale-for-all",
                "Every number has its own scale; here all get the mean.",
                "dy * scale",
                "dy * scale.mean()",
            ),
            Wrong("sign", "The sign is turned round: this is the step, not the gradient.", "dy * scale", "-dy * scale"),
        ),
        alternatives=(
            Alternative("diagonal matrix", "return dy @ np.diag(scale)"),
            Alternative("own buffer", "dx = dy.copy()\ndx *= scale\nreturn dx"),
            Alternative("float32", 'return np.einsum("...n,n->...n", dy.astype(np.float32), scale.astype(np.float32))'),
        ),
    ),
    Exercise(
        id="8.09",
        function="lessons.lesson_08_adapters:scale_backward_vector",
        title="IA3: gradient of the scale",
        points=1,
        cases=scale_vector_cases,
        wrong=(
            Wrong("averaged", "The rows are averaged; they add up.", ".sum(0)", ".mean(0)"),
            Wrong("without-the-input", "The input is missing: this would be the gradient of a bias.", "(dy * x)", "dy"),
            Wrong("without-the-gradient", "The gradient from above is missing.", "(dy * x)", "x"),
            Wrong(
                "first-example-only",
                "Only the first example is in it; all rows add up.",
                "(dy * x)",
                "(dy[:1] * x[:1])",
            ),
            Wrong(
                "sums-before-product",
                "Gradient and input are summed before they are multiplied; the products of a row are what is summed.",
                "(dy * x).reshape(-1, x.shape[-1]).sum(0)",
                "dy.reshape(-1, x.shape[-1]).sum(0) * x.reshape(-1, x.shape[-1]).sum(0)",
            ),
            Wrong("absolute", "The products are summed without their signs.", "(dy * x)", "abs(dy * x)"),
            Wrong("sign", "The sign is turned round: this is the step, not the gradient.", "(dy * x)", "(-dy * x)"),
        ),
        alternatives=(
            Alternative("einsum", 'return np.einsum("in,in->n", *(v.reshape(-1, v.shape[-1]) for v in (dy, x)))'),
            Alternative(
                "loop",
                "total = np.zeros(x.shape[-1])\nfor place in np.ndindex(x.shape[:-1]):\n"
                "    total += dy[place] * x[place]\nreturn total",
            ),
            Alternative(
                "float32",
                "product = np.multiply(dy, x).astype(np.float32)\n"
                "return np.sum(product, axis=tuple(range(dy.ndim - 1)))",
            ),
        ),
    ),
    Exercise(
        id="8.10",
        function="lessons.lesson_08_adapters:scale_merge",
        title="IA3: the scale folded into the weights",
        points=2,
        cases=scale_merge_cases,
        wrong=(
            Wrong(
                "bias-not-scaled",
                "Where the output is scaled, the bias is a part of it.",
                "bias * scale",
                "bias.copy()",
            ),
            Wrong(
                "which-by-width",
                "Which of the two it is cannot be told from the widths: they may be equal.",
                "if feedforward:",
                "if len(scale) == len(weight):",
            ),
            Wrong(
                "input-not-scaled",
                "Where the input is scaled, the rows of the weight take the scale.",
                "weight * scale[:, None], bias.copy()",
                "weight.copy(), bias.copy()",
            ),
            Wrong(
                "weight-not-scaled",
                "Where the output is scaled, the columns of the weight take the scale too.",
                "weight * scale, bias",
                "weight.copy(), bias",
            ),
            Wrong("divided", "The weight is divided by the scale.", "weight * scale, bias", "weight / scale, bias"),
            Wrong(
                "residual",
                "The scale is taken for a change: it multiplies by l, not by 1 + l.",
                "weight * scale[:, None]",
                "weight * (1.0 + scale[:, None])",
            ),
            Wrong("bias-left-out", "The bias is lost where the input is scaled.", "bias.copy()", "0.0 * bias"),
        ),
        alternatives=(
            Alternative(
                "diagonal matrices",
                "l = np.diag(scale)\nreturn (l @ weight, bias + 0.0) if feedforward else (weight @ l, bias @ l)",
            ),
            Alternative(
                "einsum",
                'if feedforward:\n    return np.einsum("i,io->io", scale, weight), np.array(bias)\n'
                'return np.einsum("io,o->io", weight, scale), scale * bias',
            ),
            Alternative(
                "float32",
                "weight, bias = weight.astype(np.float32), bias.astype(np.float32)\n"
                "if feedforward:\n    weight *= scale[:, None].astype(np.float32)\nelse:\n"
                "    weight *= scale.astype(np.float32)\n    bias *= scale.astype(np.float32)\nreturn weight, bias",
            ),
        ),
    ),
)
