"""GELU in GPT-2's tanh form, alone and fused with the bias addition before it.

Hendrycks, Gimpel (2016), "Gaussian Error Linear Units", arXiv:1606.08415, section 2:
gelu(u) = ½·u·(1 + tanh(√(2/π)·(u + 0.044715·u³))).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.array import Array, namespace
from kernels.cuda.device import NULL, Device, column_grid, device_form

SCALE = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715


def gelu_forward(u: Array) -> tuple[Array, Any]:
    """Apply GELU to every element.

    Parameters
    ----------
    u : (...)

    Returns
    -------
    y : (...)
    cache : the input
    """
    y = 0.5 * u * (1.0 + namespace(u).tanh(SCALE * (u + CUBIC * u * u * u)))
    return y, u


def gelu_backward(dy: Array, cache: Any) -> Array:
    """Gradient with respect to the input.

    With t = tanh(z), z = √(2/π)·(u + c·u³): gelu' = ½(1 + t) + ½·u·(1 − t²)·z', z' = √(2/π)·(1 + 3c·u²).

    Parameters
    ----------
    dy : (...)
    cache : (...)
        The forward's input u.

    Returns
    -------
    du : (...)
    """
    ### BEGIN SOLUTION
    u = cache
    t = namespace(u).tanh(SCALE * (u + CUBIC * u * u * u))
    slope = SCALE * (1.0 + 3.0 * CUBIC * u * u)
    return dy * (0.5 * (1.0 + t) + 0.5 * u * (1.0 - t * t) * slope)
    ### END SOLUTION


def bias_gelu_forward(u: Array, bias: Array | None, keep: bool = True) -> tuple[Array, Any]:
    """GELU of u + bias.

    Parameters
    ----------
    u : (..., C)
        May be overwritten.
    bias : (C,) or None
        None where `u` already has it.
    keep : bool
        False where no backward will follow: the cache is then None.

    Returns
    -------
    y : (..., C)
    cache
    """
    y, cache = gelu_forward(u if bias is None else u + bias)
    return y, cache if keep else None


def bias_gelu_backward(dy: Array, cache: Any) -> Array:
    """Gradient with respect to `u`; the bias' own gradient is its sum over rows.

    Parameters
    ----------
    dy : (..., C)
        May be overwritten.
    cache
        As the forward gave it.

    Returns
    -------
    du : (..., C)
    """
    return gelu_backward(dy, cache)


# ---------------------------------------------------------------------------------------------- fast forms
#
# The value and its derivative share the tanh, so the forward makes both while a piece is in the first-level cache, and
# the backward is one multiplication. No power: u**3 costs twenty times u·u·u.

PIECE = 64 * 1024  # elements; a piece and what is made of it stay inside a core's second-level cache


def bias_gelu_forward_fast(u: Array, bias: Array | None, keep: bool = True) -> tuple[Array, Any]:
    """`bias_gelu_forward` piece by piece, in place, with the derivative as its cache."""
    xp = namespace(u)
    C = u.shape[-1]
    rows = u.reshape(-1, C)
    N = rows.shape[0]
    step = max(1, PIECE // C)
    y = xp.empty_like(rows)
    slope = xp.empty_like(rows) if keep else None
    scratch = xp.empty((min(step, N), C), dtype=u.dtype)
    for start in range(0, N, step):
        a = rows[start : start + step]
        t = y[start : start + step]
        w = scratch[: a.shape[0]]
        if bias is not None:
            a += bias
        xp.multiply(a, a, out=w)  # u²
        xp.multiply(w, SCALE * CUBIC, out=t)
        t += SCALE
        t *= a
        xp.tanh(t, out=t)
        if slope is not None:
            d = slope[start : start + step]
            w *= 1.5 * SCALE * CUBIC
            w += 0.5 * SCALE
            w *= a  # ½·u·z'
            xp.multiply(t, t, out=d)
            xp.subtract(1.0, d, out=d)
            d *= w  # ½·u·(1 − t²)·z'
            t *= 0.5
            t += 0.5
            d += t
        else:
            t *= 0.5
            t += 0.5
        t *= a
    return y.reshape(u.shape), None if slope is None else slope.reshape(u.shape)


def bias_gelu_backward_fast(dy: Array, cache: Any) -> Array:
    """`bias_gelu_backward` with the derivative at hand."""
    dy *= cache
    return dy


# ---------------------------------------------------------------------------------------------- CUDA forms

THREADS = 128


@device_form(bias_gelu_forward)
def bias_gelu_forward_cuda(u: Array, bias: Array | None, keep: bool = True, *, device: Device) -> tuple[Array, Any]:
    """`bias_gelu_forward` in one look; the cache is u and the bias, from which the backward makes the tanh again."""
    xp, C = namespace(u), u.shape[-1]
    u = xp.ascontiguousarray(u)
    N = u.size // C
    y = xp.empty(u.shape, dtype=u.dtype) if keep else u
    device.launch(
        "gelu",
        "bias_gelu_forward_v2",
        column_grid(N, C, THREADS),
        (THREADS,),
        (u, NULL if bias is None else bias, y, np.int32(N), np.int32(C)),
    )
    return y, (u, bias) if keep else None


@device_form(bias_gelu_backward)
def bias_gelu_backward_cuda(dy: Array, cache: Any, *, device: Device) -> Array:
    """`bias_gelu_backward`, in place."""
    u, bias = cache
    C = u.shape[-1]
    N = u.size // C
    dy = namespace(dy).ascontiguousarray(dy)
    device.launch(
        "gelu",
        "bias_gelu_backward_v2",
        column_grid(N, C, THREADS),
        (THREADS,),
        (dy, u, NULL if bias is None else bias, dy, np.int32(N), np.int32(C)),
    )
    return dy
