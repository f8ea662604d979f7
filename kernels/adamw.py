"""AdamW on a flat buffer of parameters, and clipping by global norm.

Loshchilov, Hutter (2019), "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2, with the
learning rate in front of the decay, as PyTorch has it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.array import Array, namespace, number
from kernels.cuda.device import NULL, Device, blocks, device_form


def adamw_update(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float | Array,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One step, in place.

    First the decay, which knows nothing of the gradient: θ ← θ·(1 − lr·λ). Then the averages of the gradient and of
    its square, m ← β₁m + (1 − β₁)g and v ← β₂v + (1 − β₂)g², both too small at first by the factor 1 − βᵗ because
    they started at 0. Last the step: θ ← θ − lr·m̂/(√v̂ + ε).

    Parameters
    ----------
    param, grad, m, v : (P,)
        All but `grad` are changed in place.
    step : int
        t, from 1.
    lr : float or (P,)
    betas : (float, float)
    eps : float
    weight_decay : float
        λ.
    """
    ### BEGIN SOLUTION
    beta1, beta2 = betas
    param *= 1.0 - lr * weight_decay
    m *= beta1
    m += (1.0 - beta1) * grad
    v *= beta2
    v += (1.0 - beta2) * grad * grad
    m_hat = m / (1.0 - beta1**step)
    v_hat = v / (1.0 - beta2**step)
    param -= lr * m_hat / (namespace(v).sqrt(v_hat) + eps)
    ### END SOLUTION


def global_norm(flat: Array) -> float:
    """Euclidean norm of all elements together, summed in float64.

    Parameters
    ----------
    flat : (P,)

    Returns
    -------
    norm : float
    """
    return math.sqrt(sum_of_squares(flat))


def sum_of_squares(flat: Array) -> float:
    """Sum of the squares of all elements, in float64, so that ranks can add up their parts.

    On a device it is an array of no axes: see `kernels.array.number`.
    """
    wide = flat.astype(namespace(flat).float64)
    return number(wide @ wide)


def clip_coefficient(norm: float, max_norm: float) -> float:
    """The factor that brings a gradient of this norm down to `max_norm`, never up.

    min(1, max_norm/(norm + 10⁻⁶)): the 10⁻⁶ is PyTorch's, and keeps a norm of 0 from dividing.
    Pascanu, Mikolov, Bengio (2013), arXiv:1211.5063, algorithm 1.

    Parameters
    ----------
    norm : float
        Global norm over all parameters.
    max_norm : float

    Returns
    -------
    factor : float in (0, 1]
    """
    ### BEGIN SOLUTION
    return min(1.0, max_norm / (norm + 1e-6))
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- fast forms

PIECE = 64 * 1024  # elements; the four arrays and the scratch of a piece stay in a core's second-level cache
ROW = 2048  # elements of a sum in the array's own precision


def adamw_update_fast(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float | Array,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """`adamw_update` piece by piece, so that each array passes once between memory and cache.

    The bias corrections are folded into the step size and into ε: m̂/(√v̂ + ε) = (√c₂/c₁)·m/(√v + ε·√c₂).
    """
    xp = namespace(param)
    beta1, beta2 = betas
    root = math.sqrt(1.0 - beta2**step)
    factor = root / (1.0 - beta1**step)
    scratch = xp.empty(min(PIECE, param.shape[0]), dtype=param.dtype)
    rates: Any = lr
    per_element = getattr(lr, "ndim", 0) > 0
    for start in range(0, param.shape[0], PIECE):
        piece = slice(start, start + PIECE)
        p, g, mi, vi = param[piece], grad[piece], m[piece], v[piece]
        rate = rates[piece] if per_element else rates
        w = scratch[: p.shape[0]]
        if weight_decay:
            p *= 1.0 - rate * weight_decay
        xp.multiply(g, 1.0 - beta1, out=w)
        mi *= beta1
        mi += w
        xp.multiply(g, g, out=w)
        w *= 1.0 - beta2
        vi *= beta2
        vi += w
        xp.sqrt(vi, out=w)
        w += eps * root
        xp.divide(mi, w, out=w)
        w *= rate * factor
        p -= w


def sum_of_squares_fast(flat: Array) -> float:
    """`sum_of_squares` in short rows: float32 within a row, where rounding stays small, float64 over the rows."""
    xp = namespace(flat)
    whole = flat.shape[0] // ROW * ROW
    rows = flat[:whole].reshape(-1, ROW)
    total = float(xp.vecdot(rows, rows).sum(dtype=xp.float64)) + float(flat[whole:] @ flat[whole:])
    return total if math.isfinite(total) else sum_of_squares(flat)  # float32 may have overflowed, float64 not


# ---------------------------------------------------------------------------------------------- CUDA forms

THREADS = 256
MOST_BLOCKS = 1024  # each thread takes several packs of a long vector


@device_form(adamw_update)
def adamw_update_cuda(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float | Array,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    device: Device,
) -> None:
    """`adamw_update` in one kernel, with the bias corrections folded in as in `adamw_update_fast`."""
    beta1, beta2 = betas
    root = math.sqrt(1.0 - beta2**step)
    rates: Any = lr
    per_element = getattr(lr, "ndim", 0) > 0
    scalars = (
        0.0 if per_element else rates,
        beta1,
        beta2,
        1.0 - beta1,
        1.0 - beta2,
        root / (1.0 - beta1**step),
        eps * root,
        weight_decay,
    )
    P = param.shape[0]
    device.launch(
        "adamw",
        "adamw_update_v2",
        (min(blocks(P, 4 * THREADS), 16 * MOST_BLOCKS),),
        (THREADS,),
        (param, grad, m, v, rates if per_element else NULL, np.int64(P), *map(np.float32, scalars)),
    )


@device_form(sum_of_squares)
def sum_of_squares_cuda(flat: Array, *, device: Device) -> float:
    """`sum_of_squares` in two steps: each block's sum, then the sum of those, in an order that never changes."""
    xp, P = namespace(flat), flat.shape[0]
    n = max(1, min(blocks(P, 4 * THREADS), MOST_BLOCKS))
    partial, total = xp.empty(n, dtype=xp.float64), xp.empty((), dtype=xp.float64)
    device.launch("adamw", "sum_of_squares_v2", (n,), (THREADS,), (flat, partial, np.int64(P)))
    device.launch("adamw", "sum_of_squares_v2_finish", (1,), (THREADS,), (partial, total, np.int32(n)))
    return number(total)
