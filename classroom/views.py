"""What is compared where several answers are right: named transformations of an answer, the same for both sides.

A view leaves an answer alone whose form it does not know; the judge then says what is wrong with the form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from classroom.values import Named

Args = Mapping[str, Any]


def ppo_loss(args: Args, answer: Any) -> Any:
    """(loss, (plain, clipped, mask, n)): what the two terms of the cache are outside of the mask is free."""
    if type(answer) not in (tuple, list) or len(answer) != 2:
        return answer
    loss, cache = answer
    if type(cache) not in (tuple, list) or len(cache) != 4 or not _shaped(cache[:2], args["mask"].shape):
        return answer
    return loss, (*(np.where(args["mask"], term, 0) for term in cache[:2]), *cache[2:])


def svd_signs(args: Args, answer: Any) -> Any:
    """(U, S, Vt) or (left, right): column k of the first and row k of the last, together, may have either sign.

    They get the sign with which the column's product with a fixed vector is positive.
    """
    if not _matrices(answer, (2, 3)) or answer[0].shape[1] != answer[-1].shape[0]:
        return answer
    signs = _signs(answer[0])
    return (answer[0] * signs, *answer[1:-1], answer[-1] * signs[:, None])


def lora_signs(args: Args, answer: Any) -> Any:
    """(A (r, in), B (out, r)): row k of A and column k of B, together, may have either sign; as `svd_signs`."""
    if not _matrices(answer, (2,)) or answer[0].shape[0] != answer[1].shape[1]:
        return answer
    signs = _signs(answer[1])
    return answer[0] * signs[:, None], answer[1] * signs


def lora_product(args: Args, answer: Any) -> Any:
    """Factors (A (r, in), B (out, r), scaling) → (scaling·B A, scaling, shapes): any factors of that product do."""
    items = answer.items if isinstance(answer, Named) else answer
    if not isinstance(items, tuple) or len(items) != 3 or not _matrices(items[:2], (2,)):
        return answer
    A, B, scaling = items
    if A.shape[0] != B.shape[1] or not isinstance(scaling, (int, float)):
        return answer
    return scaling * (B @ A), scaling, list(A.shape), list(B.shape)


def svd_product(args: Args, answer: Any) -> Any:
    """(left (m, r), right (r, n)) → (left right, shapes): any factors of the same product are right."""
    if not _matrices(answer, (2,)) or answer[0].shape[1] != answer[1].shape[0]:
        return answer
    return answer[0] @ answer[1], list(answer[0].shape), list(answer[1].shape)


def principal_components(args: Args, answer: Any) -> Any:
    """(mean, axes (k, d), scores (n, k), variances) → axes and scores without their signs.

    An axis along which the data do not vary may be any that is at right angles to the others.
    """
    if type(answer) is not tuple or len(answer) != 4 or not _matrices(answer[1:3], (2,)):
        return answer
    mean, axes, scores, variances = answer
    n, d = args["x"].shape
    if axes.shape != (min(n, d), d) or scores.shape != (n, min(n, d)):
        return answer
    varied = min(n - 1, d)
    return mean, axes @ axes.T, scores.T @ scores, scores.T[:varied, :, None] * axes[:varied, None], variances


def rotation(args: Args, answer: Any) -> Any:
    """(cosine, sine): columns of equal length may be turned either way."""
    if args["alpha"] != args["beta"] or type(answer) is not tuple or len(answer) != 2:
        return answer
    c, s = answer
    return c, abs(s) if isinstance(s, (float, np.ndarray)) else s


def near_identity(args: Args, answer: Any) -> Any:
    """(down, down_bias, up, up_bias) → biases, and what the numbers drawn are like: any order of drawing is right."""
    if type(answer) is not tuple or len(answer) != 4 or not _matrices(answer[0::2], (2,)):
        return answer
    down, down_bias, up, up_bias = answer
    if not down.shape == up.shape[::-1] == (args["d"], args["m"]):
        return answer
    alike = np.corrcoef(down.ravel(), up.T.ravel())[0, 1] if down.size >= ENOUGH else 0.0
    return (
        _drawn(down, args["std"]),
        down_bias,
        _drawn(up, args["std"]),
        up_bias,
        {"independent": bool(abs(alike) < 0.1)},
    )


def row_signs(args: Args, answer: Any) -> Any:
    """(k, n) directions: each row may have either sign; as `svd_signs`."""
    if type(answer) is np.ndarray and answer.ndim == 2 and answer.dtype.kind == "f":
        return answer * _signs(answer.T)[:, None]
    return answer


VIEWS: dict[str, Callable[[Args, Any], Any]] = {
    view.__name__: view
    for view in (
        ppo_loss,
        svd_signs,
        lora_signs,
        lora_product,
        row_signs,
        svd_product,
        principal_components,
        rotation,
        near_identity,
    )
}


def seen(name: str, args: Args, answer: Any) -> Any:
    """The answer through the view of this name; unchanged for no name."""
    if not name:
        return answer
    with np.errstate(all="ignore"):
        return VIEWS[name](args, answer)


def both(name: str, args: Args, expected: Any, actual: Any) -> tuple[Any, Any]:
    """Two answers as they are compared: through the view, or both as they are if it leaves the actual one alone.

    An answer that the view fails at is left alone too: what a stranger hands in may have any form.
    """
    try:
        viewed = seen(name, args, actual)
    except Exception:
        viewed = actual
    return (expected, actual) if viewed is actual else (seen(name, args, expected), viewed)


def _shaped(arrays: Any, shape: tuple[int, ...]) -> bool:
    return all(type(a) is np.ndarray and a.shape == shape and a.dtype.kind == "f" for a in arrays)


LONGEST = 1000
"""Axis of a matrix that is multiplied: the product of a stranger's long factors would fill the grader's memory."""


def _matrices(answer: Any, counts: tuple[int, ...]) -> bool:
    ends = [answer[0], answer[-1]] if type(answer) in (tuple, list) and len(answer) in counts else []
    of_floats = bool(ends) and all(type(a) is np.ndarray and a.ndim == 2 and a.dtype.kind == "f" for a in ends)
    return of_floats and max(ends[0].shape + ends[1].shape) <= LONGEST


ENOUGH = 4000
"""Random numbers from which on their spread, mean and correlation tell how they were drawn. What is allowed below is
more than six standard errors of each."""
SPREAD = 0.8796
"""Standard deviation of a standard normal that is cut off at two."""


def _drawn(matrix: np.ndarray, std: float) -> dict[str, Any]:
    # What holds for every right draw, and several things that tell wrong ones apart.
    z = matrix / std
    facts = {
        "shape": list(matrix.shape),
        "dtype": str(matrix.dtype),
        "none above two standard deviations": bool(np.max(z) <= 2.0 + 1e-9),
        "none below minus two": bool(np.min(z) >= -2.0 - 1e-9),
        "any beyond ten standard deviations": bool(np.max(np.abs(z)) > 10.0),
        "any is 0": bool((z == 0).any()),
    }
    if z.size >= ENOUGH:
        facts["many are equal"] = bool(np.unique(z).size < 0.98 * z.size)
        facts["spread of a normal that is cut off at two"] = bool(abs(np.std(z) - SPREAD) < 0.06)
        facts["mean near 0"] = bool(abs(np.mean(z)) < 0.1)
        facts["some near two"] = bool(np.max(np.abs(z)) > 1.9)
        facts["all below a half"] = bool(np.max(np.abs(z)) < 0.5)
    return facts


def _signs(columns: np.ndarray) -> np.ndarray:
    # A fixed vector that no direction is at right angles to, but by chance.
    weights = np.cos(np.arange(1.0, columns.shape[0] + 1)) + 0.1
    return np.where(weights @ columns < 0, -1, 1).astype(columns.dtype)
