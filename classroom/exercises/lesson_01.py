"""Lesson 1: the backward of every operation of a GPT, attention, AdamW and byte-pair encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from classroom.exercises.draws import distinct
from kernels.attention import attention_forward
from kernels.cross_entropy import IGNORED, cross_entropy_forward, token_logprobs_forward
from kernels.layernorm import LayerNormCache, layernorm_forward

Args = Mapping[str, Any]


def as_cases(args: Mapping[str, Args]) -> list[Case]:
    """Cases from their arguments by name."""
    return [Case(name, values) for name, values in args.items()]


# ---------------------------------------------------------------------------------------------- linear


def linear_input_cases(rng: np.random.Generator) -> list[Case]:
    """Any number of leading axes; axes of size 1."""
    A, B, T, C, O = distinct(rng, 5)

    def args(lead: tuple[int, ...], inputs: int, outputs: int) -> Args:
        return {"dy": rng.normal(size=(*lead, outputs)), "weight": rng.normal(size=(inputs, outputs))}

    return as_cases(
        {
            "batch of sequences": args((B, T), C, O),
            "matrix": args((T,), C, O),
            "one vector": args((), C, O),
            "four axes": args((A, B, T), C, O),
            "one input": args((B, T), 1, O),
            "one output": args((B, T), C, 1),
            "one row": args((1, 1), C, O),
            "as many outputs as inputs": args((B, T), C, C),
        }
    )


LINEAR_INPUT = Exercise(
    id="1.01",
    function="kernels.linear:linear_backward_input",
    title="Linear layer: gradient of the input",
    points=1,
    cases=linear_input_cases,
    wrong=(
        Wrong(
            "reshaped-not-transposed",
            "The weight was brought to the shape (out, in) by reshaping, which keeps the order of the numbers. "
            "A transpose exchanges rows and columns.",
            "weight.T",
            "weight.reshape(weight.shape[::-1])",
        ),
        Wrong(
            "upstream-ignored",
            "The answer does not depend on the gradient that comes in: each output's gradient was taken for 1.",
            "dy @",
            "namespace(dy).ones_like(dy) @",
        ),
        Wrong(
            "averaged-over-batch",
            "The gradient was divided by the length of the first axis. Averages belong to the loss, not to a layer.",
            "dy @ weight.T",
            "dy @ weight.T / dy.shape[0]",
        ),
        Wrong(
            "sign-flipped",
            "The sign is the wrong way round: a gradient is not yet a step downhill.",
            "dy @",
            "-dy @",
        ),
        Wrong(
            "averaged-over-outputs",
            "The sum over the outputs became a mean: it was divided by their number.",
            "dy @ weight.T",
            "dy @ weight.T / dy.shape[-1]",
        ),
        Wrong(
            "outputs-summed-apart",
            "The incoming gradient and the weight were summed over the outputs one by one and then multiplied. The sum "
            "has to run over their products.",
            "dy @ weight.T",
            "dy.sum(-1, keepdims=True) * weight.sum(1)",
        ),
    ),
    alternatives=(
        Alternative("einsum", 'return namespace(dy).einsum("...o,io->...i", dy, weight)\n'),
        Alternative(
            "loop",
            """\
import numpy as np

dx = np.zeros((*dy.shape[:-1], weight.shape[0]))
for i in range(weight.shape[0]):
    for o in range(weight.shape[1]):
        dx[..., i] += dy[..., o] * weight[i, o]
return dx
""",
        ),
        Alternative("float32", 'return dy.astype("float32") @ weight.astype("float32").T\n'),
    ),
)


def linear_weight_cases(rng: np.random.Generator) -> list[Case]:
    """Any number of leading axes; axes of size 1; a fresh result, and one written into a given array."""
    A, B, T, C, O = distinct(rng, 5)

    def args(lead: tuple[int, ...], inputs: int, outputs: int) -> Args:
        return {"dy": rng.normal(size=(*lead, outputs)), "x": rng.normal(size=(*lead, inputs))}

    return as_cases(
        {
            "batch of sequences": args((B, T), C, O),
            "matrix": args((T,), C, O),
            "one vector": args((), C, O),
            "four axes": args((A, B, T), C, O),
            "one input": args((B, T), 1, O),
            "one output": args((B, T), C, 1),
            "one row": args((1, 1), C, O),
            "into a given array": {**args((B, T), C, O), "out": rng.normal(size=(C, O))},
            "one row into a given array": {**args((), C, O), "out": rng.normal(size=(C, O))},
        }
    )


LINEAR_WEIGHT = Exercise(
    id="1.02",
    function="kernels.linear:linear_backward_weight",
    title="Linear layer: gradient of the weight",
    points=2,
    cases=linear_weight_cases,
    mutates=("out",),
    wrong=(
        Wrong(
            "averaged-over-rows",
            "The sum over the rows became a mean. The loss has already divided by what it wants.",
            "namespace(x).matmul(rows_x.T, rows_dy, out=out)",
            "namespace(x).matmul(rows_x.T, rows_dy / len(rows_dy), out=out)",
        ),
        Wrong(
            "averaged-over-batch",
            "The gradient was divided by the length of the first axis. It is a sum over all rows.",
            "namespace(x).matmul(rows_x.T, rows_dy, out=out)",
            "namespace(x).matmul(rows_x.T, rows_dy / dy.shape[0], out=out)",
        ),
        Wrong(
            "reshaped-not-transposed",
            "The input's rows were reshaped to (in, N), which keeps the order of the numbers. "
            "A transpose exchanges rows and columns.",
            "rows_x.T",
            "rows_x.reshape(rows_x.shape[::-1])",
        ),
        Wrong(
            "given-array-ignored",
            "The answer is right, but where an array for the result is given, it must be written there.",
            "out=out",
            "out=None",
        ),
        Wrong(
            "added-to-given-array",
            "The result was added to what stood in the given array. It has to replace it.",
            "return namespace(x).matmul(rows_x.T, rows_dy, out=out)",
            "return namespace(x).add(rows_x.T @ rows_dy, 0 if out is None else out, out=out)",
        ),
        Wrong(
            "upstream-ignored",
            "The answer does not depend on the values of the incoming gradient: it was taken for 1 everywhere.",
            "dy.reshape(-1, dy.shape[-1])",
            "namespace(dy).ones_like(dy).reshape(-1, dy.shape[-1])",
        ),
        Wrong(
            "last-row-missing",
            "The last row of the batch is missing in the sum.",
            "matmul(rows_x.T, rows_dy, out=out)",
            "matmul(rows_x[:-1].T, rows_dy[:-1], out=out)",
        ),
    ),
    alternatives=(
        Alternative(
            "tensordot",
            """\
lead = tuple(range(x.ndim - 1))
result = namespace(x).tensordot(x, dy, axes=(lead, lead))
if out is None:
    return result
out[...] = result
return out
""",
        ),
        Alternative(
            "loop",
            """\
import numpy as np

if out is None:
    out = np.empty((x.shape[-1], dy.shape[-1]))
out.fill(0.0)
for row_x, row_dy in zip(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])):
    out += np.outer(row_x, row_dy)
return out
""",
        ),
    ),
)


def linear_bias_cases(rng: np.random.Generator) -> list[Case]:
    """Any number of leading axes; axes of size 1."""
    A, B, T, O = distinct(rng, 4)
    shapes = {
        "batch of sequences": (B, T, O),
        "matrix": (T, O),
        "one vector": (O,),
        "four axes": (A, B, T, O),
        "one output": (B, T, 1),
        "one row": (1, 1, O),
        "one sequence": (1, T, O),
    }
    return as_cases({name: {"dy": rng.normal(size=shape)} for name, shape in shapes.items()})


LINEAR_BIAS = Exercise(
    id="1.03",
    function="kernels.linear:linear_backward_bias",
    title="Linear layer: gradient of the bias",
    points=1,
    cases=linear_bias_cases,
    wrong=(
        Wrong(
            "averaged-over-rows",
            "The sum over the rows became a mean. The loss has already divided by what it wants.",
            ".sum(0)",
            ".mean(0)",
        ),
        Wrong(
            "averaged-over-batch",
            "The gradient was divided by the length of the first axis. It is a sum over all rows.",
            ".sum(0)",
            ".sum(0) / dy.shape[0]",
        ),
        Wrong(
            "last-row-missing",
            "The last row of the batch is missing in the sum.",
            ".sum(0)",
            "[:-1].sum(0)",
        ),
        Wrong(
            "axes-mixed",
            "The numbers were reshaped in another order before summing: values of different outputs were added up.",
            "dy.reshape(-1, dy.shape[-1]).sum(0)",
            "dy.reshape(dy.shape[-1], -1).sum(1)",
        ),
        Wrong(
            "upstream-ignored",
            "The answer counts the rows: the incoming gradient was taken for 1 everywhere.",
            "dy.reshape",
            "namespace(dy).ones_like(dy).reshape",
        ),
    ),
    alternatives=(
        Alternative("axes", "return dy.sum(axis=tuple(range(dy.ndim - 1)))\n"),
        Alternative(
            "product with ones",
            """\
rows = dy.reshape(-1, dy.shape[-1])
return namespace(dy).ones(rows.shape[0]) @ rows
""",
        ),
        Alternative("float32", 'return dy.reshape(-1, dy.shape[-1]).astype("float32").sum(axis=0)\n'),
    ),
)


# ---------------------------------------------------------------------------------------------- dropout, GELU


def keep_factors(rng: np.random.Generator, shape: tuple[int, ...], p: float) -> np.ndarray:
    """A dropout mask: 0 or 1/(1 − p), each at least once where there is room and p is not 0."""
    kept = rng.random(shape) >= p
    if p and kept.size > 1:
        kept.flat[rng.permutation(kept.size)[:2]] = (True, False)
    return kept / (1 - p)


def dropout_cases(rng: np.random.Generator) -> list[Case]:
    """Several shares, none and nearly all of the elements dropped, any number of axes."""
    B, T, C = distinct(rng, 3, 3, 7)

    def args(shape: tuple[int, ...], p: float) -> Args:
        return {"dy": rng.normal(size=shape), "mask": keep_factors(rng, shape, p)}

    return as_cases(
        {
            "half dropped": args((B, T, C), 0.5),
            "a tenth dropped": args((B, T, C), 0.1),
            "most dropped": args((T, C), 0.8),
            "nothing dropped": args((T, C), 0.0),
            "all dropped": {"dy": rng.normal(size=(T, C)), "mask": np.zeros((T, C))},
            "one axis": args((C,), 0.3),
            "four axes": args((2, B, 1, C), 0.25),
        }
    )


DROPOUT = Exercise(
    id="1.04",
    function="kernels.dropout:dropout_backward",
    title="Dropout: gradient of the input",
    points=1,
    cases=dropout_cases,
    wrong=(
        Wrong(
            "not-scaled",
            "What was kept in the forward was scaled up there by 1/(1 − p); its gradient is scaled by the same factor.",
            "dy * mask",
            "dy * (mask > 0)",
        ),
        Wrong(
            "mask-ignored",
            "Elements that were dropped in the forward did not reach the loss, so their gradient is 0.",
            "dy * mask",
            "dy * 1.0",
        ),
        Wrong(
            "mask-inverted",
            "The gradient passes where the forward dropped, and stops where it kept.",
            "dy * mask",
            "dy * (mask.max() - mask)",
        ),
        Wrong(
            "scaled-twice",
            "The factor 1/(1 − p) is in the mask already; here it was applied once more.",
            "dy * mask",
            "dy * mask * mask",
        ),
        Wrong(
            "upstream-ignored",
            "The answer does not depend on the incoming gradient: it was taken for 1 everywhere.",
            "dy * mask",
            "namespace(dy).ones_like(dy) * mask",
        ),
    ),
    alternatives=(
        Alternative("where", "return namespace(dy).where(mask == 0, 0.0, dy * mask)\n"),
        Alternative("own buffer", "dx = namespace(dy).empty_like(dy)\ndx[...] = dy\ndx *= mask\nreturn dx\n"),
    ),
)


def gelu_cases(rng: np.random.Generator) -> list[Case]:
    """Both signs, near 0 and at it, the bend, both tails; any number of axes."""
    B, T, C = distinct(rng, 3)
    shape = (B, T, C)

    def args(u: np.ndarray) -> Args:
        return {"dy": rng.normal(size=u.shape), "cache": u}

    return as_cases(
        {
            "batch of sequences": args(rng.normal(size=shape)),
            "vector": args(rng.normal(size=C)),
            "one element": args(rng.normal(size=(1, 1, 1))),
            "near zero": args(rng.normal(size=shape) * 1e-3),
            "at zero": args(np.zeros((T, C))),
            "bend": args(rng.uniform(-3.0, 3.0, size=shape)),
            "left tail": args(rng.uniform(-6.0, -2.0, size=shape)),
            "right tail": args(rng.uniform(2.0, 6.0, size=shape)),
            "large": args(rng.normal(size=shape) * 100.0),
        }
    )


GELU = Exercise(
    id="1.05",
    function="kernels.gelu:gelu_backward",
    title="GELU: gradient of the input",
    points=2,
    cases=gelu_cases,
    wrong=(
        Wrong(
            "second-term-missing",
            "GELU is a product of u and a function of u. The term in which the second factor changes is missing.",
            " + 0.5 * u * (1.0 - t * t) * slope",
            "",
        ),
        Wrong(
            "first-term-missing",
            "GELU is a product of u and a function of u. The term in which u itself changes is missing.",
            "0.5 * (1.0 + t) + ",
            "",
        ),
        Wrong(
            "tanh-slope",
            "The derivative of tanh(z) is 1 − tanh(z)²; the square is missing.",
            "1.0 - t * t",
            "1.0 - t",
        ),
        Wrong(
            "cubic-slope",
            "The derivative of c·u³ is 3c·u²; the 3 is missing.",
            "3.0 * CUBIC",
            "CUBIC",
        ),
        Wrong(
            "inner-slope-missing",
            "The chain rule stops too early: the derivative of what stands inside tanh is missing.",
            " * slope)",
            ")",
        ),
        Wrong(
            "scale-missing-in-slope",
            "What stands inside tanh has the factor √(2/π), and so has its derivative; there it is missing.",
            "slope = SCALE * (",
            "slope = (",
        ),
        Wrong(
            "upstream-ignored",
            "This is GELU's derivative alone. It has to be multiplied by the incoming gradient.",
            "dy * (",
            "namespace(u).ones_like(dy) * (",
        ),
    ),
    alternatives=(
        Alternative(
            "logistic function",  # ½(1 + tanh z) = 1/(1 + exp(−2z))
            """\
import numpy as np

u = cache
z = math.sqrt(2.0 / math.pi) * (u + CUBIC * u**3)
share = 0.5 * (np.tanh(z) + 1.0)
return dy * share + dy * u * share * (1.0 - share) * 2.0 * SCALE * (1.0 + 3.0 * CUBIC * u**2)
""",
        ),
        Alternative(
            "loop",
            """\
import numpy as np

du = np.empty_like(dy)
for at in np.ndindex(*dy.shape):
    u = float(cache[at])
    t = math.tanh(SCALE * (u + CUBIC * u**3))
    du[at] = dy[at] * 0.5 * ((1.0 + t) + u * (1.0 - t**2) * SCALE * (1.0 + 3.0 * CUBIC * u**2))
return du
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- embedding


def embedding_cases(rng: np.random.Generator) -> list[Case]:
    """Tokens once, several times, all the same, the first and the last; an empty table and a filled one."""
    B, T, C = distinct(rng, 3, 2, 6)
    V = int(rng.integers(9, 13))

    def args(ids: np.ndarray, width: int = C, start: float = 1.0) -> Args:
        return {
            "dy": rng.normal(size=(*ids.shape, width)),
            "ids": ids,
            "dweight": rng.normal(size=(V, width)) * start,
        }

    repeated = rng.integers(0, 4, (B, T))  # at least four tokens of four values
    repeated.flat[:2] = repeated.flat[-1]
    ends = rng.permutation(np.concatenate(([0, 0, V - 1], rng.integers(0, V, T))))
    return as_cases(
        {
            "each token once": args(rng.permutation(V)[: T + 1]),
            "repeated tokens": args(repeated),
            "first and last token": args(ends),
            "one token throughout": args(np.full((B, T), int(rng.integers(1, V - 1)))),
            "table of zeros": args(repeated, start=0.0),
            "width of one": args(repeated, width=1),
            "one place": args(rng.integers(1, V, (1, 1))),
            "three axes": args(rng.integers(0, V, (2, B, T))),
        }
    )


EMBEDDING = Exercise(
    id="1.06",
    function="kernels.embedding:embedding_backward",
    title="Embedding: gradient of the table",
    points=2,
    cases=embedding_cases,
    mutates=("dweight",),
    wrong=(
        Wrong(
            "repeated-tokens-lost",
            "Of a token that occurs several times only one gradient arrived: an indexed += reads and writes each row "
            "once.",
            "xp.add.at(dweight, ids.reshape(-1), dy.reshape(-1, dy.shape[-1]))",
            "dweight[ids.reshape(-1)] += dy.reshape(-1, dy.shape[-1])",
        ),
        Wrong(
            "rows-overwritten",
            "The rows were set to the gradient of one occurrence. They have to be added to.",
            "xp.add.at(dweight, ids.reshape(-1), dy.reshape(-1, dy.shape[-1]))",
            "dweight[ids.reshape(-1)] = dy.reshape(-1, dy.shape[-1])",
        ),
        Wrong(
            "table-not-added-to",
            "What stood in the table before is gone. The table may hold the output head's gradient already: add to it.",
            "xp = namespace(dy)",
            "xp = namespace(dy)\ndweight[...] = 0.0",
        ),
        Wrong(
            "given-table-unchanged",
            "The sums are right, but they stand in a new array. The given one has to be added to, and returned.",
            "xp = namespace(dy)",
            "xp = namespace(dy)\ndweight = dweight.copy()",
        ),
        Wrong(
            "subtracted",
            "The gradients were subtracted from the table: a gradient is not yet a step downhill.",
            "xp.add.at",
            "xp.subtract.at",
        ),
        Wrong(
            "averaged-over-occurrences",
            "The gradients of a token that occurs several times were averaged. They add up.",
            "dy.reshape(-1, dy.shape[-1]))",
            "dy.reshape(-1, dy.shape[-1]) / (ids.reshape(-1)[:, None] == ids.reshape(-1)).sum(1, keepdims=True))",
        ),
        Wrong(
            "upstream-ignored",
            "The answer counts the tokens: the incoming gradient was taken for 1 everywhere.",
            "dy.reshape(-1, dy.shape[-1])",
            "xp.ones_like(dy).reshape(-1, dy.shape[-1])",
        ),
    ),
    alternatives=(
        Alternative(
            "loop",
            """\
for token, row in zip(ids.reshape(-1).tolist(), dy.reshape(-1, dy.shape[-1])):
    dweight[token] += row
return dweight
""",
        ),
        Alternative(
            "one-hot product",
            """\
import numpy as np

onehot = np.arange(len(dweight))[:, None] == ids.ravel()[None, :]
dweight += onehot.astype(dy.dtype) @ dy.reshape(ids.size, -1)
return dweight
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- LayerNorm


def layernorm_cache(x: np.ndarray, eps: float) -> LayerNormCache:
    """The forward's cache; its scale and shift play no part in it."""
    width = x.shape[-1]
    return layernorm_forward(x, np.ones(width), np.zeros(width), eps)[1]


def layernorm_inputs(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, float]]:
    """Inputs x and ε: any number of leading axes, two values of ε, rows of unlike spread, rows without any."""
    A, B, T, C = distinct(rng, 4, 3, 8)  # two columns leave the input's gradient nothing but rounding
    spread = 10.0 ** rng.permutation(np.linspace(-2, 3, T))
    flat = rng.normal(size=(B, T, C)) * 1e-3 + rng.normal(size=(B, T, 1))
    return {
        "batch of sequences": (rng.normal(size=(B, T, C)), 1e-5),
        "matrix": (rng.normal(size=(T, C)) * 2.0 + 1.0, 1e-5),
        "one vector": (rng.normal(size=C), 1e-5),
        "four axes": (rng.normal(size=(A, B, T, C)), 1e-3),
        "one row": (rng.normal(size=(1, 1, C)) - 3.0, 1e-5),
        "one column": (rng.normal(size=(B, T, 1)), 1e-5),
        "rows of unlike spread": (rng.normal(size=(B, T, C)) * spread[:, None], 1e-5),
        "rows nearly flat": (flat, 1e-5),
        "large epsilon": (rng.normal(size=(B, T, C)), 0.5),
    }


def layernorm_params_cases(rng: np.random.Generator) -> list[Case]:
    """Gradients of either sign for every kind of input."""
    return as_cases(
        {
            name: {"dy": rng.normal(size=x.shape), "cache": layernorm_cache(x, eps)}
            for name, (x, eps) in layernorm_inputs(rng).items()
        }
    )


LAYERNORM_PARAMS = Exercise(
    id="1.07",
    function="kernels.layernorm:layernorm_backward_params",
    title="LayerNorm: gradients of scale and shift",
    points=2,
    cases=layernorm_params_cases,
    wrong=(
        Wrong(
            "averaged-over-rows",
            "Both sums over the rows became means. The loss has already divided by what it wants.",
            "rows = dy.reshape(-1, dy.shape[-1])",
            "rows = dy.reshape(-1, dy.shape[-1]) * dy.shape[-1] / dy.size",
        ),
        Wrong(
            "shift-averaged",
            "The gradient of the shift is a mean over the rows. It is their sum.",
            "rows.sum(0)",
            "rows.mean(0)",
        ),
        Wrong(
            "scale-averaged",
            "The gradient of the scale is a mean over the rows. It is their sum.",
            "(rows * normalised).sum(0)",
            "(rows * normalised).mean(0)",
        ),
        Wrong(
            "order-swapped",
            "The two gradients are right but in the wrong order: scale first, then shift.",
            "(rows * normalised).sum(0), rows.sum(0)",
            "rows.sum(0), (rows * normalised).sum(0)",
        ),
        Wrong(
            "not-normalised",
            "The scale multiplies the normalised rows. Here its gradient was made from rows that are centred only.",
            "cache.normalised.reshape",
            "(cache.normalised / cache.rstd).reshape",
        ),
        Wrong(
            "normalised-ignored",
            "The scale multiplies the normalised rows, so these are a factor of its gradient.",
            "(rows * normalised).sum(0)",
            "rows.sum(0)",
        ),
        Wrong(
            "divided-by-deviation",
            "The gradient of the scale was divided by the rows' standard deviation, which is in the normalised rows "
            "already.",
            "cache.normalised.reshape",
            "(cache.normalised * cache.rstd).reshape",
        ),
    ),
    alternatives=(
        Alternative(
            "einsum",
            """\
C = dy.shape[-1]
rows = dy.reshape(-1, C)
return namespace(dy).einsum("nc,nc->c", rows, cache.normalised.reshape(-1, C)), rows.sum(axis=0)
""",
        ),
        Alternative(
            "loop",
            """\
import numpy as np

width = dy.shape[-1]
dweight, dbias = np.zeros(width), np.zeros(width)
for row, n in zip(dy.reshape(-1, width), cache.normalised.reshape(-1, width)):
    dweight += row * n
    dbias += row
return dweight, dbias
""",
        ),
    ),
)


def layernorm_input_cases(rng: np.random.Generator) -> list[Case]:
    """Scales of either sign for every kind of input, and scales of which some are zero."""
    inputs = layernorm_inputs(rng)
    args = {
        name: {
            "dy": rng.normal(size=x.shape),
            "weight": rng.normal(size=x.shape[-1]) * 1.5,
            "cache": layernorm_cache(x, eps),
        }
        for name, (x, eps) in inputs.items()
    }
    x, eps = inputs["batch of sequences"]
    some: np.ndarray = rng.normal(size=x.shape[-1:])
    some[rng.permutation(some.size)[:2]] = 0.0
    args["scales of zero"] = {"dy": rng.normal(size=x.shape), "weight": some, "cache": layernorm_cache(x, eps)}
    level = rng.normal(size=(*x.shape[:-1], 1)) + rng.normal(size=x.shape) * 1e-2
    args["gradients nearly level"] = {"dy": level, "weight": np.ones(some.size), "cache": layernorm_cache(x, eps)}
    return as_cases(args)


LAYERNORM_INPUT = Exercise(
    id="1.08",
    function="kernels.layernorm:layernorm_backward_input",
    title="LayerNorm: gradient of the input",
    points=4,
    cases=layernorm_input_cases,
    wrong=(
        Wrong(
            "both-means-missing",
            "Mean and deviation of the row were taken for constants. Every input moves them too, which takes the "
            "common shift and the common stretch out of the gradient.",
            "g - shift - normalised * stretch",
            "g",
        ),
        Wrong(
            "shift-missing",
            "Every input also moves the row's mean: the term that takes the common shift out of the gradient is "
            "missing.",
            "g - shift - normalised",
            "g - normalised",
        ),
        Wrong(
            "stretch-missing",
            "Every input also moves the row's deviation: the term that takes the common stretch out of the gradient is "
            "missing.",
            " - normalised * stretch",
            "",
        ),
        Wrong(
            "deviation-missing",
            "The gradient has to be divided by the row's standard deviation, as the forward divided the row by it.",
            "rstd * (",
            "(",
        ),
        Wrong(
            "scale-missing",
            "The gradient of the normalised row is the incoming one times the scale; the scale is missing.",
            "g = dy * weight",
            "g = dy * 1.0",
        ),
        Wrong(
            "scale-at-the-end",
            "The scale multiplies the result. It belongs to the incoming gradient, before the two means are taken.",
            "g = dy * weight",
            "g, rstd = dy * 1.0, rstd * weight",
        ),
        Wrong(
            "stretch-not-averaged",
            "The common stretch is a mean over the row. Here it is the sum.",
            "(g * normalised).mean(",
            "(g * normalised).sum(",
        ),
        Wrong(
            "shift-not-averaged",
            "The common shift is a mean over the row. Here it is the sum.",
            "shift = g.mean(",
            "shift = g.sum(",
        ),
        Wrong(
            "stretch-not-along-the-row",
            "The common stretch acts along the normalised row; this factor is missing.",
            "normalised * stretch",
            "stretch",
        ),
        Wrong(
            "means-over-the-first-axis",
            "The common shift was averaged over the first axis. Rows are normalised one by one: over the last.",
            "g.mean(-1, keepdims=True)",
            "g.mean(0, keepdims=True)",
        ),
    ),
    alternatives=(
        Alternative(
            "loop",
            """\
import numpy as np

width = dy.shape[-1]
dx = np.empty(dy.shape)
rows, out = dy.reshape(-1, width), dx.reshape(-1, width)
for i, (n, s) in enumerate(zip(cache.normalised.reshape(-1, width), cache.rstd.reshape(-1))):
    # The Jacobian of one row: s·(I − 1/C − n·nᵀ/C).
    jacobian = s * (np.eye(width) - 1.0 / width - np.outer(n, n) / width)
    out[i] = jacobian @ (rows[i] * weight)
return dx
""",
        ),
        Alternative(
            "sums",
            """\
C = dy.shape[-1]
dn = weight * dy
total = namespace(dy).einsum("...c->...", dn)[..., None]
along = namespace(dy).einsum("...c,...c->...", dn, cache.normalised)[..., None]
return cache.rstd / C * (C * dn - total - cache.normalised * along)
""",
        ),
        Alternative(
            "own buffer",
            """\
n, s = cache
dx = dy * weight
stretch = (dx * n).mean(axis=-1)[..., None]
dx -= dx.mean(axis=-1)[..., None]
dx -= n * stretch
dx *= s
return dx
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- cross-entropy


def scored_rows(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and targets: all, some and no rows scored; first and last word; one row; certain predictions."""
    N, V = distinct(rng, 2, 4, 8)
    targets = rng.integers(0, V, N)
    some = rng.integers(1, V, N)
    some[rng.permutation(N)[: N // 2]] = IGNORED
    ends = rng.permutation(np.concatenate(([0, V - 1, IGNORED], rng.integers(0, V, N - 3))))
    certain = rng.normal(size=(N, V)) * 1e3
    return {
        "all scored": (rng.normal(size=(N, V)), targets),
        "some not scored": (rng.normal(size=(N, V)), some),
        "none scored": (rng.normal(size=(N, V)), np.full(N, IGNORED)),
        "first and last word": (rng.normal(size=(N, V)), ends),
        "one target throughout": (rng.normal(size=(N, V)), np.full(N, int(rng.integers(1, V)))),
        "one row": (rng.normal(size=(1, V)), targets[:1]),
        "two words": (rng.normal(size=(N, 2)), np.arange(N) % 2),
        "certain": (certain, rng.permutation(V)[rng.integers(0, V, N)]),
    }


def token_logprobs_cases(rng: np.random.Generator) -> list[Case]:
    """Gradients of either sign, and not zero where a row is not scored."""
    return as_cases(
        {
            name: {"dlogprobs": rng.normal(size=targets.shape), "cache": token_logprobs_forward(logits, targets)[1]}
            for name, (logits, targets) in scored_rows(rng).items()
        }
    )


TOKEN_LOGPROBS = Exercise(
    id="1.09",
    function="kernels.cross_entropy:token_logprobs_backward",
    title="Log-probabilities: gradient of the logits",
    points=3,
    cases=token_logprobs_cases,
    wrong=(
        Wrong(
            "sign-flipped",
            "The sign is the wrong way round: raising a target's logit raises its log-probability.",
            "dlogprobs = dlogprobs * scored",
            "dlogprobs = -dlogprobs * scored",
        ),
        Wrong(
            "not-scored-rows-kept",
            "Rows whose target is −100 are not scored; their gradient is 0.",
            "dlogprobs = dlogprobs * scored",
            "dlogprobs = dlogprobs * 1.0",
        ),
        Wrong(
            "target-term-missing",
            "The target's own logit has a second term: it enters the log-probability directly, with derivative 1.",
            "+= dlogprobs",
            "+= 0.0 * dlogprobs",
        ),
        Wrong(
            "target-overwritten",
            "The target's gradient was set where it has to be added to: its probability is subtracted as well.",
            "+= dlogprobs",
            "= dlogprobs",
        ),
        Wrong(
            "probabilities-missing",
            "Only the target got a gradient. Every logit enters the normalising sum, in proportion to its probability.",
            "-probabilities * ",
            "0.0 * probabilities * ",
        ),
        Wrong(
            "upstream-missing-for-target",
            "The target's term is 1 for every row. It has to be multiplied by the row's incoming gradient.",
            "+= dlogprobs",
            "+= scored",
        ),
        Wrong(
            "averaged-over-rows",
            "The gradient was divided by the number of rows. Nothing is averaged here: each row has its own.",
            "dlogprobs = dlogprobs * scored",
            "dlogprobs = dlogprobs * scored / len(dlogprobs)",
        ),
        Wrong(
            "gradient-of-probability",
            "This is the gradient of the probability. That of its logarithm has no factor p of the target.",
            "dlogprobs = dlogprobs * scored",
            "dlogprobs = dlogprobs * scored * probabilities[range(len(targets)), targets]",
        ),
    ),
    alternatives=(
        Alternative(
            "one-hot",
            """\
import numpy as np

probabilities, targets, scored = cache
onehot = np.arange(probabilities.shape[1]) == targets[:, None]
return (onehot - probabilities) * np.where(scored, dlogprobs, 0.0)[:, None]
""",
        ),
        Alternative(
            "loop",
            """\
import numpy as np

dlogits = np.zeros(cache.probabilities.shape)
for row in np.flatnonzero(cache.scored):
    dlogits[row, cache.targets[row]] = dlogprobs[row]
    dlogits[row] -= cache.probabilities[row] * dlogprobs[row]
return dlogits
""",
        ),
    ),
)


def cross_entropy_cases(rng: np.random.Generator) -> list[Case]:
    """Rows that are a batch of their own, and rows that are a part of a larger one."""
    rows = scored_rows(rng)
    caches = {
        name: cross_entropy_forward(logits, targets)[1]
        for name, (logits, targets) in rows.items()
        if name != "none scored"
    }
    larger = float(rng.integers(11, 30))
    for name in ("all scored", "some not scored", "none scored"):
        caches[f"{name}, part of a larger batch"] = cross_entropy_forward(*rows[name], larger)[1]
    return as_cases({name: {"cache": cache} for name, cache in caches.items()})


CROSS_ENTROPY = Exercise(
    id="1.10",
    function="kernels.cross_entropy:cross_entropy_backward",
    title="Cross-entropy: gradient of the logits",
    points=2,
    cases=cross_entropy_cases,
    wrong=(
        Wrong(
            "not-averaged",
            "The loss is a mean, and its gradient has the factor 1/n; it is missing.",
            "n, (probabilities, targets, scored) = cache",
            "(probabilities, targets, scored), n = cache[1], 1",
        ),
        Wrong(
            "averaged-over-all-rows",
            "The gradient was divided by the number of rows. The forward divided by the number of scored ones in the "
            "whole batch, which is in the cache.",
            "n, (probabilities, targets, scored) = cache",
            "(probabilities, targets, scored), n = cache[1], len(cache[1].targets)",
        ),
        Wrong(
            "averaged-over-these-rows",
            "The gradient was divided by the number of targets scored here. The rows may be a part of a larger batch: "
            "the forward's divisor is in the cache.",
            "n, (probabilities, targets, scored) = cache",
            "(probabilities, targets, scored), n = cache[1], max(1, int(cache[1].scored.sum()))",
        ),
        Wrong(
            "not-scored-rows-kept",
            "Rows whose target is −100 are not scored; their gradient is 0.",
            "n, (probabilities, targets, scored) = cache",
            "n, (probabilities, targets, scored) = cache[0], (*cache[1][:2], cache[1].scored | True)",
        ),
        Wrong(
            "not-scored-rows-half-kept",
            "Rows whose target is −100 are not scored. Their probabilities stand in the gradient nevertheless.",
            "probabilities * (scored / n)",
            "probabilities * (scored**0 / n)",
        ),
        Wrong(
            "sign-flipped",
            "The sign is the wrong way round: the loss is the negative log-likelihood.",
            "n, (probabilities, targets, scored) = cache",
            "n, (probabilities, targets, scored) = -cache[0], cache[1]",
        ),
        Wrong(
            "target-missing",
            "The gradient is the probabilities minus a 1 at the target; the 1 is missing.",
            "-= scored / n",
            "-= 0.0 * scored",
        ),
        Wrong(
            "target-not-averaged",
            "The 1 that is subtracted at the target has to be divided by n like the probabilities.",
            "-= scored / n",
            "-= scored",
        ),
    ),
    alternatives=(
        Alternative(
            "one-hot",
            """\
import numpy as np

n, (p, targets, scored) = cache
onehot = np.zeros_like(p)
onehot[np.arange(len(targets)), targets] = 1.0
return np.where(scored[:, None], p - onehot, 0.0) / n
""",
        ),
        Alternative(
            "loop",
            """\
n, inner = cache
dlogits = inner.probabilities.copy()
for row, target in enumerate(inner.targets):
    if inner.scored[row]:
        dlogits[row, target] -= 1.0
        dlogits[row] /= n
    else:
        dlogits[row] = 0.0
return dlogits
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- attention


def attention_inputs(rng: np.random.Generator, steep: float) -> dict[str, Args]:
    """Queries, keys, values and masks: with and without past, padding on either side or in places, dropout.

    `steep` is the size of the scores of one case.
    """
    axes = distinct(rng, 5, 2, 6)
    T, S = sorted(axes[:2])
    B, H, D = axes[2:]

    def args(T: int, S: int, B: int = B, H: int = H, D: int = D, factor: float = 1.0) -> dict[str, Any]:
        return {
            "q": rng.normal(size=(B, H, T, D)) * factor,
            "k": rng.normal(size=(B, H, S, D)) * factor,
            "v": rng.normal(size=(B, H, S, D)),
        }

    def right(S: int) -> np.ndarray:
        lengths = rng.integers(1, S, B)  # every row has padding
        return np.arange(S) < lengths[:, None]

    def left(S: int) -> np.ndarray:
        skipped = rng.integers(1, S, B)  # so that early queries see nothing
        return np.arange(S) >= skipped[:, None]

    def dropped(T: int, S: int, p: float) -> np.ndarray:
        return keep_factors(rng, (B, H, T, S), p)

    anywhere = rng.random((B, S)) < 0.6
    anywhere[0, :2] = (True, False)
    return {
        "no past": args(S, S),
        "keys from before": args(T, S),
        "padding on the right": {**args(S, S), "key_mask": right(S)},
        "padding on the left": {**args(S, S), "key_mask": left(S)},
        "padding in places": {**args(T, S), "key_mask": anywhere},
        "dropout": {**args(S, S), "key_mask": None, "dropout_mask": dropped(S, S, 0.4)},
        "dropout, padding and past": {**args(T, S), "key_mask": left(S), "dropout_mask": dropped(T, S, 0.2)},
        "one query": args(1, S),
        "one query, padding on the left": {**args(1, S), "key_mask": left(S)},
        "as many heads as places": args(S, S, H=S),
        "one place": args(1, 1),
        "one head of size one": args(T, T, H=1, D=1),
        "steep scores": args(S, S, factor=steep**0.5),
        "steep scores, padding and past": {**args(T, S, factor=steep**0.5), "key_mask": right(S)},
        "equal scores": {**args(T, S), "q": np.zeros((B, H, T, D))},
    }


def attention_forward_cases(rng: np.random.Generator) -> list[Case]:
    """Every kind of input; scores of a thousand; no cache wanted."""
    args = attention_inputs(rng, steep=1e3)
    args["no backward to follow"] = {**args["padding on the right"], "dropout_mask": None, "keep": False}
    args["no backward to follow, dropout"] = {**args["dropout, padding and past"], "keep": False}
    return as_cases(args)


ATTENTION_FORWARD = Exercise(
    id="1.11",
    function="kernels.attention:attention_forward",
    title="Attention: forward",
    points=4,
    cases=attention_forward_cases,
    wrong=(
        Wrong(
            "not-scaled",
            "The scores have to be divided by √D, or they grow with the size of a head and the softmax saturates.",
            " / math.sqrt(D)",
            "",
        ),
        Wrong(
            "scaled-by-size",
            "The scores were divided by the size of a head, not by its square root.",
            "math.sqrt(D)",
            "D",
        ),
        Wrong(
            "scaled-by-width",
            "The scores were divided by the root of the whole width. Each head has its own size D.",
            "math.sqrt(D)",
            "math.sqrt(D * q.shape[1])",
        ),
        Wrong(
            "future-seen",
            "Queries look at keys that come after them: the causal mask is missing.",
            "visible(T, S, key_mask, like=q)",
            "namespace(q).ones((1, 1, 1, S), bool) if key_mask is None else key_mask[:, None, None, :]",
        ),
        Wrong(
            "mask-off-by-one",
            "The causal mask is off by one: each query also sees the key after itself.",
            "visible(T, S, key_mask, like=q)",
            "namespace(q).tri(T, S, S - T + 1, dtype=bool) & (key_mask is None or key_mask[:, None, None, :])",
        ),
        Wrong(
            "past-forgotten",
            "With more keys than queries the first keys come from before. The mask was laid out as if query 0 "
            "stood at place 0.",
            "visible(T, S, key_mask, like=q)",
            "namespace(q).tri(T, S, dtype=bool) & (key_mask is None or key_mask[:, None, None, :])",
        ),
        Wrong(
            "padding-seen",
            "Keys that are padding take part. The key mask has to be joined with the causal one.",
            "visible(T, S, key_mask, like=q)",
            "visible(T, S, None, like=q)",
        ),
        Wrong(
            "masked-after-softmax",
            "The mask was applied after the softmax: what is left of a row no longer adds up to 1.",
            "softmax(scores, visible(T, S, key_mask, like=q))",
            "softmax(scores, scores == scores) * visible(T, S, key_mask, like=q)",
        ),
        Wrong(
            "softmax-over-queries",
            "The weights were normalised over the queries. Each query's weights over its keys add up to 1.",
            "softmax(scores, visible(T, S, key_mask, like=q))",
            "softmax(scores.swapaxes(-1, -2), (visible(T, S, key_mask, like=q) | (scores != scores)).swapaxes(-1, -2))"
            ".swapaxes(-1, -2)",
        ),
        Wrong(
            "dropout-ignored",
            "The dropout factors were not applied to the weights.",
            "weights * dropout_mask)",
            "weights)",
        ),
        Wrong(
            "dropped-weights-cached",
            "The cache has to hold the probabilities before dropout: the backward of the softmax reads them.",
            "AttentionCache(q, k, v, weights, dropout_mask)",
            "AttentionCache(q, k, v, weights if dropout_mask is None else weights * dropout_mask, dropout_mask)",
        ),
        Wrong(
            "heads-not-side-by-side",
            "The heads were joined by a reshape alone, which mixes times and heads. Exchange their axes first.",
            "merge_heads(mixed)",
            "mixed.reshape(q.shape[0], T, -1)",
        ),
    ),
    alternatives=(
        Alternative(
            "einsum",
            """\
import numpy as np

B, H, T, D = q.shape
S = k.shape[2]
seen = np.tril(np.ones((T, S), bool), S - T)[None, None]
if key_mask is not None:
    seen = seen & key_mask[:, None, None]
scores = np.where(seen, np.einsum("bhtd,bhsd->bhts", q, k) * D**-0.5, -1e30)
weights = np.exp(scores - scores.max(axis=3, keepdims=True))
weights /= weights.sum(axis=3, keepdims=True)
weights *= seen.any(axis=3, keepdims=True)
factors = 1.0 if dropout_mask is None else dropout_mask
out = np.einsum("bhts,bhsd->bthd", weights * factors, v).reshape(B, T, H * D)
return out, (AttentionCache(q, k, v, weights, dropout_mask) if keep else None)
""",
        ),
        Alternative(
            "loop",
            """\
import numpy as np

B, H, T, D = q.shape
S = k.shape[2]
weights = np.zeros((B, H, T, S))
out = np.zeros((B, T, H * D))
for b in range(B):
    for h in range(H):
        for t in range(T):
            seen = [s for s in range(S - T + t + 1) if key_mask is None or key_mask[b, s]]
            if not seen:
                continue
            scores = np.array([q[b, h, t] @ k[b, h, s] for s in seen]) / np.sqrt(D)
            e = np.exp(scores - scores.max())
            weights[b, h, t, seen] = e / e.sum()
            row = weights[b, h, t] if dropout_mask is None else weights[b, h, t] * dropout_mask[b, h, t]
            out[b, t, h * D : (h + 1) * D] = row @ v[b, h]
return out, AttentionCache(q, k, v, weights, dropout_mask) if keep else None
""",
        ),
    ),
)


def attention_backward_cases(rng: np.random.Generator) -> list[Case]:
    """Every kind of input, with random gradients; fresh results and results written into given arrays.

    Scores stay below where the softmax is so certain that nothing but rounding is left of a gradient.
    """
    args = {}
    for name, inputs in attention_inputs(rng, steep=8.0).items():
        out, cache = attention_forward(**inputs)
        args[name] = {"dout": rng.normal(size=out.shape), "cache": cache}
    for name in ("no past", "dropout, padding and past"):
        dout, cache = rng.normal(size=args[name]["dout"].shape), args[name]["cache"]
        buffers = tuple(rng.normal(size=x.shape) for x in (cache.q, cache.k, cache.v))
        args[f"{name}, into given arrays"] = {"dout": dout, "cache": cache, "out": buffers}
    return as_cases(args)


ATTENTION_BACKWARD = Exercise(
    id="1.12",
    function="kernels.attention:attention_backward",
    title="Attention: backward",
    points=5,
    cases=attention_backward_cases,
    mutates=("out",),
    wrong=(
        Wrong(
            "not-scaled",
            "The forward divided the scores by √D; the gradients of queries and keys need the same factor.",
            " / math.sqrt(q.shape[-1])",
            "",
        ),
        Wrong(
            "scaled-by-size",
            "The gradient of the scores was divided by the size of a head, not by its square root.",
            "math.sqrt(q.shape[-1])",
            "q.shape[-1]",
        ),
        Wrong(
            "row-sum-missing",
            "The weights of a row are tied by the softmax: raising one lowers the others. The sum over the row that "
            "says so is missing.",
            " - (weights * dweights).sum(-1, keepdims=True)",
            "",
        ),
        Wrong(
            "row-mean",
            "The softmax's backward subtracts a sum over the row. Here it is a mean.",
            "(weights * dweights).sum(",
            "(weights * dweights).mean(",
        ),
        Wrong(
            "row-sum-unweighted",
            "The softmax's backward subtracts the sum of the gradients weighted by the probabilities. The weights are "
            "missing in the sum.",
            "(weights * dweights).sum",
            "dweights.sum",
        ),
        Wrong(
            "sum-over-queries",
            "The softmax's backward sums over the keys of a query. Here the sum runs over the queries.",
            ".sum(-1, keepdims=True)",
            ".sum(-2, keepdims=True)",
        ),
        Wrong(
            "softmax-forgotten",
            "The probabilities are no factor of the scores' gradient here: the softmax's own derivative is missing.",
            "dscores = weights * (",
            "dscores = (weights > 0) * (",
        ),
        Wrong(
            "values-without-dropout",
            "The forward mixed the values with the weights after dropout; so their gradient needs the dropped weights.",
            "xp.matmul(dropped.swapaxes",
            "xp.matmul(weights.swapaxes",
        ),
        Wrong(
            "weights-without-dropout",
            "The gradient of the weights has to pass the dropout factors on its way back.",
            "dweights = dweights * dropout_mask",
            "dweights = dweights * 1.0",
        ),
        Wrong(
            "softmax-of-dropped-weights",
            "The softmax made the weights before dropout; its backward was taken with those after it.",
            "dscores = weights * (dweights - (weights * dweights)",
            "dscores = dropped * (dweights - (dropped * dweights)",
        ),
        Wrong(
            "heads-reshaped",
            "The incoming gradient was cut into heads by a reshape alone, which mixes times and heads.",
            "split_heads(dout, q.shape[1])",
            "dout.reshape(q.shape)",
        ),
        Wrong(
            "given-arrays-ignored",
            "The answer is right, but where arrays for the results are given, it must be written there.",
            "dq, dk, dv = out if out is not None else (None, None, None)",
            "dq, dk, dv = (None, None, None)",
        ),
    ),
    alternatives=(
        Alternative(
            "einsum",
            """\
import numpy as np

q, k, v, P, M = cache
B, H, T, D = q.shape
dO = dout.reshape(B, T, H, D)
dropped = P if M is None else P * M
dP = np.einsum("bthd,bhsd->bhts", dO, v)
if M is not None:
    dP *= M
dZ = P * dP
dZ -= P * np.einsum("bhts->bht", dZ)[..., None]
dZ *= D**-0.5
results = (
    np.einsum("bhts,bhsd->bhtd", dZ, k),
    np.einsum("bhts,bhtd->bhsd", dZ, q),
    np.einsum("bhts,bthd->bhsd", dropped, dO),
)
if out is None:
    return results
for buffer, result in zip(out, results):
    buffer[...] = result
return tuple(out)
""",
        ),
        Alternative(
            "loop",
            """\
import numpy as np

q, k, v = cache.q, cache.k, cache.v
B, H, T, D = q.shape
S = k.shape[2]
dq, dk, dv = out if out is not None else (np.empty(q.shape), np.empty(k.shape), np.empty(v.shape))
for array in (dq, dk, dv):
    array[...] = 0.0
for b in range(B):
    for h in range(H):
        for t in range(T):
            p = cache.weights[b, h, t]
            factor = np.ones(S) if cache.dropout_mask is None else cache.dropout_mask[b, h, t]
            d = dout[b, t, h * D : (h + 1) * D]
            dv[b, h] += np.outer(p * factor, d)
            dp = (v[b, h] @ d) * factor
            dz = (np.diag(p) - np.outer(p, p)) @ dp / np.sqrt(D)
            dq[b, h, t] = dz @ k[b, h]
            dk[b, h] += np.outer(dz, q[b, h, t])
return dq, dk, dv
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- AdamW


def clip_cases(rng: np.random.Generator) -> list[Case]:
    """Clipping needed and not; limits on either side of 1; no gradient at all; norms where the 10⁻⁶ counts."""
    limit = float(rng.uniform(0.2, 0.8))
    high = float(rng.uniform(2.0, 6.0))
    pairs = {
        "above the limit": (limit * float(rng.uniform(1.5, 9.0)), limit),
        "below the limit": (limit * float(rng.uniform(0.1, 0.9)), limit),
        "above a high limit": (high * float(rng.uniform(1.5, 9.0)), high),
        "below a high limit": (high * float(rng.uniform(0.4, 0.9)), high),
        "no gradient": (0.0, limit),
        "far above": (float(rng.uniform(1e4, 1e5)), 1.0),
        "tiny": (float(rng.uniform(2e-6, 6e-6)), 1e-6),
        "just below the limit": (limit * float(rng.uniform(0.85, 0.97)), limit),
    }
    return as_cases({name: {"norm": norm, "max_norm": max_norm} for name, (norm, max_norm) in pairs.items()})


CLIP = Exercise(
    id="1.13",
    function="kernels.adamw:clip_coefficient",
    title="Clipping by global norm: the factor",
    points=1,
    cases=clip_cases,
    wrong=(
        Wrong(
            "scaled-up",
            "Gradients below the limit were scaled up to it. Clipping only ever makes them smaller.",
            "min(1.0, max_norm / (norm + 1e-6))",
            "max_norm / (norm + 1e-6)",
        ),
        Wrong(
            "branches-swapped",
            "The factor is 1 where the norm is above the limit, and something else below it: it is the other way "
            "round.",
            "min(",
            "max(",
        ),
        Wrong(
            "ratio-upside-down",
            "The ratio is upside down: the larger the norm, the smaller the factor has to be.",
            "max_norm / (norm + 1e-6)",
            "(norm + 1e-6) / max_norm",
        ),
        Wrong(
            "squared-norm",
            "The limit was divided by the square of the norm.",
            "(norm + 1e-6)",
            "(norm * norm + 1e-6)",
        ),
        Wrong(
            "limit-ignored",
            "The gradient was brought to norm 1. Its norm may be as large as the limit.",
            "max_norm / (",
            "1.0 / (",
        ),
        Wrong(
            "epsilon-missing",
            "The 10⁻⁶ that is added to the norm is missing.",
            "(norm + 1e-6)",
            "(norm or 1e-6)",
        ),
    ),
    alternatives=(
        Alternative(
            "branch",
            """\
factor = max_norm / (norm + 1e-6)
if factor > 1.0:
    return 1.0
return factor
""",
        ),
        Alternative("NumPy", "import numpy as np\n\nreturn float(np.clip(max_norm / (norm + 1e-6), None, 1.0))\n"),
    ),
)


def adamw_cases(rng: np.random.Generator) -> list[Case]:
    """The first step and later ones; decay and none; one rate and one for each element; several constants."""
    P = int(rng.integers(5, 12))

    def args(step: int, lr: Any, size: int = P, scale: float = 1.0, **settings: Any) -> dict[str, Any]:
        first = step == 1
        return {
            "param": rng.normal(size=size),
            "grad": rng.normal(size=size) * scale,
            "m": np.zeros(size) if first else rng.normal(size=size) * 0.3 * scale,
            "v": np.zeros(size) if first else rng.uniform(0.1, 0.9, size=size) * scale**2,
            "step": step,
            "lr": lr,
            **settings,
        }

    def rate() -> float:
        return float(rng.uniform(0.01, 0.1))

    later = int(rng.integers(3, 9))
    decay: dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": float(rng.uniform(0.1, 0.5))}
    still = args(1, rate())
    still["grad"][:2] = 0.0
    idle = args(later, rate(), **decay)
    idle["grad"][:] = 0.0
    return as_cases(
        {
            "first step": args(1, rate()),
            "later step": args(later, rate()),
            "second step": args(2, rate(), betas=(0.8, 0.95)),
            "weight decay": args(later, rate(), **decay),
            "weight decay at the first step": args(1, rate(), **decay),
            "a rate for each element": args(later, rng.uniform(0.01, 0.1, P), **decay),
            "a rate for each element, first step": args(1, rng.uniform(0.01, 0.1, P)),
            "other averages": args(later, rate(), betas=(0.5, 0.7)),
            "large epsilon": args(later, rate(), betas=(0.9, 0.999), eps=0.3),
            "gradients near epsilon": args(1, rate(), scale=1e-4, betas=(0.9, 0.999), eps=1e-4),
            "some gradients are zero": still,
            "all gradients are zero": idle,
            "large gradients": args(later, rate(), scale=1e3, **decay),
            "one element": args(later, rate(), size=1),
            "late step": args(20000, rate(), **decay),
            "a hundred steps later": args(int(rng.integers(100, 140)), rate()),
        }
    )


ADAMW = Exercise(
    id="1.14",
    function="kernels.adamw:adamw_update",
    title="AdamW: one step",
    points=3,
    cases=adamw_cases,
    mutates=("param", "m", "v"),
    wrong=(
        Wrong(
            "no-bias-correction",
            "Both averages start at 0 and are too small at first; neither was corrected for it.",
            "m_hat = m / (1.0 - beta1**step)\nv_hat = v / (1.0 - beta2**step)",
            "m_hat = m\nv_hat = v",
        ),
        Wrong(
            "first-average-not-corrected",
            "The average of the gradients starts at 0 and is too small at first; it was not corrected for it.",
            "m / (1.0 - beta1**step)",
            "m",
        ),
        Wrong(
            "second-average-not-corrected",
            "The average of the squares starts at 0 and is too small at first; it was not corrected for it.",
            "v / (1.0 - beta2**step)",
            "v",
        ),
        Wrong(
            "decay-in-the-gradient",
            "The decay was added to the gradient, as in Adam with an L2 penalty. In AdamW it acts on the parameters "
            "and does not pass through the averages.",
            "param *= 1.0 - lr * weight_decay",
            "grad = grad + weight_decay * param",
        ),
        Wrong(
            "decay-without-rate",
            "The decay has to be multiplied by the learning rate.",
            "lr * weight_decay",
            "weight_decay",
        ),
        Wrong(
            "no-decay",
            "The weight decay is missing: it shrinks the parameters whatever the gradient.",
            "param *= 1.0 - lr * weight_decay\n",
            "",
        ),
        Wrong(
            "decay-grows",
            "The parameters grow where they should decay: the sign of the decay is wrong.",
            "1.0 - lr * weight_decay",
            "1.0 + lr * weight_decay",
        ),
        Wrong(
            "epsilon-inside-the-root",
            "ε was added under the root. It is added to the root.",
            "namespace(v).sqrt(v_hat) + eps",
            "namespace(v).sqrt(v_hat + eps)",
        ),
        Wrong(
            "averages-swapped",
            "The two β were exchanged: the first belongs to the average of the gradients.",
            "beta1, beta2 = betas",
            "beta2, beta1 = betas",
        ),
        Wrong(
            "uphill",
            "The step goes uphill: it has to be subtracted.",
            "param -= lr",
            "param += lr",
        ),
        Wrong(
            "steps-from-zero",
            "The bias correction counts the steps from 0 and adds 1. The first step is already number 1.",
            "beta1, beta2 = betas",
            "beta1, beta2, step = *betas, step + 1",
        ),
        Wrong(
            "root-missing",
            "The step was divided by the average of the squares, without the root.",
            "namespace(v).sqrt(v_hat)",
            "v_hat",
        ),
        Wrong(
            "square-of-the-average",
            "The second average was fed with the square of the first one. It takes the square of the gradient.",
            "(1.0 - beta2) * grad * grad",
            "(1.0 - beta2) * m * m",
        ),
    ),
    alternatives=(
        Alternative(
            "corrections in the rate",
            """\
b1, b2 = betas
m[...] = b1 * m + (1 - b1) * grad
v[...] = b2 * v + (1 - b2) * grad**2
c1, c2 = 1 - b1**step, 1 - b2**step
new = param - lr * weight_decay * param - lr / c1 * m / ((v / c2) ** 0.5 + eps)
param[...] = new
""",
        ),
        Alternative(
            "loop",
            """\
import numpy as np

rates = np.broadcast_to(lr, param.shape)
for i in range(len(param)):
    g = float(grad[i])
    m[i] += (1 - betas[0]) * (g - m[i])
    v[i] += (1 - betas[1]) * (g * g - v[i])
    param[i] -= rates[i] * weight_decay * param[i]
    param[i] -= rates[i] * (m[i] / (1 - betas[0] ** step)) / (math.sqrt(v[i] / (1 - betas[1] ** step)) + eps)
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- byte-pair encoding


def words(rng: np.random.Generator, count: int, letters: int, longest: int) -> list[list[int]]:
    """Distinct words of few letters, two or more of them each."""
    found: set[tuple[int, ...]] = set()
    while len(found) < count:
        found.add(tuple(rng.integers(0, letters, rng.integers(2, longest + 1)).tolist()))
    return [list(word) for word in sorted(found)]


def count_pairs_cases(rng: np.random.Generator) -> list[Case]:
    """Words with shared, repeated, overlapping and reversed pairs; words without a pair; frequencies of 1 and more."""

    def args(sequences: Any, frequencies: Any = None) -> Args:
        if frequencies is None:
            frequencies = rng.integers(2, 50, len(sequences)).tolist()
        return {"sequences": sequences, "frequencies": frequencies}

    a, b, c = rng.permutation(np.arange(1, 300))[:3].tolist()
    plain = words(rng, 6, 4, 6)
    return as_cases(
        {
            "several words": args(plain),
            "frequencies of one": args(plain, [1] * len(plain)),
            "overlapping pairs": args([[a, a, a], [b, a, a, a, a]]),
            "both orders": args([[a, b, a], [b, a, c]]),
            "one word": args([words(rng, 1, 3, 8)[0]]),
            "words of one id and of none": args([[a], [], [b, c], [b]]),
            "no pair at all": args([[a], [b]]),
            "no words": args([], []),
            "the same pair in every word": args([[a, b], [a, b, c], [c, a, b]]),
            "merged ids": args([[256, a, 256], [300, 256, a, 300]]),
            "words as tuples": args(tuple(tuple(word) for word in words(rng, 5, 3, 5))),
        }
    )


COUNT_PAIRS = Exercise(
    id="1.15",
    function="minigpt.bpe:count_pairs",
    title="Byte-pair encoding: count the pairs",
    points=2,
    cases=count_pairs_cases,
    wrong=(
        Wrong(
            "frequencies-ignored",
            "Every pair was counted once for each word. A word that occurs ten times counts ten times.",
            "counts.get(pair, 0) + frequency",
            "counts.get(pair, 0) + 1",
        ),
        Wrong(
            "overwritten",
            "A pair that was met before got a new count where it has to be added to.",
            "counts.get(pair, 0) + frequency",
            "frequency",
        ),
        Wrong(
            "once-for-each-word",
            "A pair that stands in a word several times was counted once there.",
            "in pairwise(ids)",
            "in set(pairwise(ids))",
        ),
        Wrong(
            "order-ignored",
            "A pair and its reverse were counted as one. The order of the two ids matters.",
            "in pairwise(ids)",
            "in (tuple(sorted(p)) for p in pairwise(ids))",
        ),
        Wrong(
            "first-pair-missing",
            "The first pair of each word was not counted.",
            "pairwise(ids)",
            "pairwise(ids[1:])",
        ),
        Wrong(
            "last-pair-missing",
            "The last pair of each word was not counted.",
            "pairwise(ids)",
            "pairwise(ids[:-1])",
        ),
        Wrong(
            "without-overlap",
            "Pairs were counted side by side, every second one. They may overlap.",
            "pairwise(ids)",
            "zip(ids[::2], ids[1::2])",
        ),
    ),
    alternatives=(
        Alternative(
            "Counter",
            """\
from collections import Counter

counts = Counter()
for i in range(len(sequences)):
    word = sequences[i]
    for left, right in zip(word, word[1:]):
        counts[left, right] += frequencies[i]
return dict(counts)
""",
        ),
        Alternative(
            "indices",
            """\
counts = {}
for number, word in enumerate(sequences):
    position = 0
    while position + 1 < len(word):
        pair = (word[position], word[position + 1])
        if pair not in counts:
            counts[pair] = 0
        counts[pair] += frequencies[number]
        position += 1
return counts
""",
        ),
    ),
)


def merge_pair_cases(rng: np.random.Generator) -> list[Case]:
    """Pairs at every place of a word, side by side, overlapping, of equal ids, reversed, broken off, and absent."""
    a, b, c, d = rng.permutation(np.arange(1, 256))[:4].tolist()
    new = int(rng.integers(256, 400))
    odd = 2 * int(rng.integers(1, 4)) + 1
    word = rng.choice([a, b, c], size=int(rng.integers(12, 20)))
    word[3:5] = (a, b)
    p, q = rng.permutation(np.arange(10, 25))[:2].tolist()

    def args(ids: Any, pair: tuple[int, int] = (a, b), new_id: int = new) -> Args:
        return {"ids": ids, "pair": pair, "new_id": new_id}

    return as_cases(
        {
            "long word": args(word.tolist()),
            "at the beginning": args([a, b, c, d]),
            "at the end": args([c, d, a, b]),
            "side by side": args([c, a, b, a, b, a]),
            "nothing but the pair": args([a, b]),
            "equal ids, odd run": args([c] + [a] * odd, (a, a)),
            "equal ids, even run": args([a] * (odd + 1) + [c], (a, a)),
            "left id twice": args([a, a, b, c, a]),
            "right id twice": args([c, a, b, b]),
            "reversed": args([b, a, c, b, a]),
            "not neighbours": args([a, c, b]),
            "absent": args([c, d, c]),
            "one id": args([a]),
            "empty word": args([]),
            "new id makes the pair again": args([a, b, b, c], (a, b), a),
            "tuple": args((d, a, b, d)),
            "ids that are written alike": args([100 + p, q, d, p, 10 * q + 3, p, q], (p, q)),
        }
    )


MERGE_PAIR = Exercise(
    id="1.16",
    function="minigpt.bpe:merge_pair",
    title="Byte-pair encoding: merge a pair",
    points=2,
    cases=merge_pair_cases,
    wrong=(
        Wrong(
            "right-id-kept",
            "The new id stands for both ids of the pair; the right one was written as well.",
            "position += 2",
            "position += 1",
        ),
        Wrong(
            "first-only",
            "Only the first occurrence in the word was merged.",
            "== tuple(pair):",
            "== tuple(pair) and new_id not in merged:",
        ),
        Wrong(
            "order-ignored",
            "The reverse of the pair was merged too. The order of the two ids matters.",
            "tuple(ids[position : position + 2]) == tuple(pair):",
            "sorted(ids[position : position + 2]) == sorted(pair):",
        ),
        Wrong(
            "last-id-lost",
            "An id at the end of the word that belongs to no pair is missing.",
            "while position < len(ids):",
            "while position < len(ids) - 1:",
        ),
        Wrong(
            "pair-at-the-end-missed",
            "A pair at the end of the word was not merged.",
            "== tuple(pair):",
            "== tuple(pair) and position < len(ids) - 2:",
        ),
        Wrong(
            "pair-at-the-beginning-missed",
            "A pair at the beginning of the word was not merged.",
            "== tuple(pair):",
            "== tuple(pair) and position > 0:",
        ),
        Wrong(
            "merged-again",
            "An id that had just been written was merged with the one after it. Reading goes on behind what was "
            "written.",
            "merged.append(new_id)\n        position += 2",
            "ids = [*ids[:position], new_id, *ids[position + 2 :]]",
        ),
    ),
    alternatives=(
        Alternative(
            "recursion",
            """\
ids = list(ids)
for at in range(len(ids) - 1):
    if ids[at] == pair[0] and ids[at + 1] == pair[1]:
        return ids[:at] + [new_id] + merge_pair(ids[at + 2 :], pair, new_id)
return ids
""",
        ),
        Alternative(
            "waiting id",
            """\
merged = []
waiting = None
for current in ids:
    if waiting is not None and (waiting, current) == (pair[0], pair[1]):
        merged.append(new_id)
        waiting = None
        continue
    if waiting is not None:
        merged.append(waiting)
    waiting = current
if waiting is not None:
    merged.append(waiting)
return merged
""",
        ),
    ),
)


EXERCISES = (
    LINEAR_INPUT,
    LINEAR_WEIGHT,
    LINEAR_BIAS,
    DROPOUT,
    GELU,
    EMBEDDING,
    LAYERNORM_PARAMS,
    LAYERNORM_INPUT,
    TOKEN_LOGPROBS,
    CROSS_ENTROPY,
    ATTENTION_FORWARD,
    ATTENTION_BACKWARD,
    CLIP,
    ADAMW,
    COUNT_PAIRS,
    MERGE_PAIR,
)
