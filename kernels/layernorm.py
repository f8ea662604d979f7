"""Layer normalisation, alone and fused with the residual addition before it.

Ba, Kiros, Hinton (2016), "Layer Normalization", arXiv:1607.06450, eq. 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kernels.array import Array, namespace
from kernels.cuda.device import COLUMN_ROWS, NULL, WARP, Device, blocks, device_form, row_shares


class LayerNormCache(NamedTuple):
    """What the backward reads: normalised rows (..., C) and 1/standard deviation (..., 1)."""

    normalised: Array
    rstd: Array


def layernorm_forward(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, LayerNormCache]:
    """Bring every row to mean 0 and variance 1, then scale and shift each column.

    Parameters
    ----------
    x : (..., C)
    weight, bias : (C,)
    eps : float
        Added to the variance.

    Returns
    -------
    y : (..., C)
    cache : LayerNormCache
    """
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    rstd = 1.0 / namespace(x).sqrt(variance + eps)
    normalised = centred * rstd
    return normalised * weight + bias, LayerNormCache(normalised, rstd)


def layernorm_backward_input(dy: Array, weight: Array, cache: LayerNormCache) -> Array:
    """Gradient with respect to the input.

    With n = (x − μ)·s and s = 1/σ, every x_i moves its own n_i, and through μ and σ all the others:
    dx = s·(g − mean(g) − n·mean(g·n)), where g = dy·weight. The two means take out what the normalisation cannot
    pass on: a common shift of the row and a common stretch of it.

    Parameters
    ----------
    dy : (..., C)
    weight : (C,)
    cache : LayerNormCache

    Returns
    -------
    dx : (..., C)
    """
    ### BEGIN SOLUTION
    normalised, rstd = cache
    g = dy * weight
    shift = g.mean(-1, keepdims=True)
    stretch = (g * normalised).mean(-1, keepdims=True)
    return rstd * (g - shift - normalised * stretch)
    ### END SOLUTION


def layernorm_backward_params(dy: Array, cache: LayerNormCache) -> tuple[Array, Array]:
    """Gradients with respect to scale and shift, summed over all rows.

    Parameters
    ----------
    dy : (..., C)
    cache : LayerNormCache

    Returns
    -------
    dweight, dbias : (C,)
    """
    ### BEGIN SOLUTION
    rows = dy.reshape(-1, dy.shape[-1])
    normalised = cache.normalised.reshape(rows.shape)
    return (rows * normalised).sum(0), rows.sum(0)
    ### END SOLUTION


def residual_layernorm_forward(
    x: Array, delta: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, LayerNormCache]:
    """Add a sublayer's output to the residual stream and normalise the sum.

    Parameters
    ----------
    x, delta : (..., C)
    weight, bias : (C,)
    eps : float

    Returns
    -------
    total : (..., C)
        x + delta, the stream from here on.
    y : (..., C)
        The normalised sum.
    cache : LayerNormCache
    """
    total = x + delta
    y, cache = layernorm_forward(total, weight, bias, eps)
    return total, y, cache


def residual_layernorm_backward_input(dtotal: Array, dy: Array, weight: Array, cache: LayerNormCache) -> Array:
    """Gradient of the sum, which is that of both its terms: straight down the stream, and through the normalisation.

    Parameters
    ----------
    dtotal, dy : (..., C)
    weight : (C,)
    cache : LayerNormCache

    Returns
    -------
    dx : (..., C)
        Also the gradient of `delta`.
    """
    return dtotal + layernorm_backward_input(dy, weight, cache)


# ---------------------------------------------------------------------------------------------- fast forms
#
# Row sums are products with a constant vector: BLAS reads a row once at memory speed, where a reduction over a short
# last axis pays its overhead for every row. Everything else happens in place.


def layernorm_forward_fast(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, LayerNormCache]:
    """`layernorm_forward` with row sums by matrix-vector products."""
    xp = namespace(x)
    C = x.shape[-1]
    rows = x.reshape(-1, C)
    average = xp.full(C, 1.0 / C, dtype=x.dtype)
    normalised = rows - (rows @ average)[:, None]
    rstd = xp.vecdot(normalised, normalised)
    rstd *= 1.0 / C
    rstd += eps
    xp.sqrt(rstd, out=rstd)
    xp.reciprocal(rstd, out=rstd)
    normalised *= rstd[:, None]
    y = normalised * weight
    y += bias
    return y.reshape(x.shape), LayerNormCache(normalised.reshape(x.shape), rstd.reshape(*x.shape[:-1], 1))


def layernorm_backward_input_fast(dy: Array, weight: Array, cache: LayerNormCache) -> Array:
    """`layernorm_backward_input` with row sums by matrix-vector products.

    mean(g) = dy @ (weight/C) needs no g; mean(g·n) is a row-wise dot product.
    """
    xp = namespace(dy)
    C = dy.shape[-1]
    rows = dy.reshape(-1, C)
    normalised = cache.normalised.reshape(-1, C)
    rstd = cache.rstd.reshape(-1, 1)
    shift = rows @ (weight * (1.0 / C))
    dx = rows * weight
    stretch = xp.vecdot(dx, normalised)
    stretch *= 1.0 / C
    dx -= shift[:, None]
    dx -= normalised * stretch[:, None]
    dx *= rstd
    return dx.reshape(dy.shape)


def layernorm_backward_params_fast(dy: Array, cache: LayerNormCache) -> tuple[Array, Array]:
    """`layernorm_backward_params` with column sums by vector-matrix products."""
    rows = dy.reshape(-1, dy.shape[-1])
    ones = namespace(dy).ones(rows.shape[0], dtype=dy.dtype)
    return ones @ (rows * cache.normalised.reshape(rows.shape)), ones @ rows


def residual_layernorm_forward_fast(
    x: Array, delta: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, LayerNormCache]:
    """`residual_layernorm_forward` on the fast normalisation."""
    total = x + delta
    y, cache = layernorm_forward_fast(total, weight, bias, eps)
    return total, y, cache


def residual_layernorm_backward_input_fast(dtotal: Array, dy: Array, weight: Array, cache: LayerNormCache) -> Array:
    """`residual_layernorm_backward_input` with the sum in place."""
    dx = layernorm_backward_input_fast(dy, weight, cache)
    dx += dtotal
    return dx


# ---------------------------------------------------------------------------------------------- CUDA forms

ROWS_PER_BLOCK = 4  # a warp each


class CudaLayerNormCache(NamedTuple):
    """What the backward reads: the forward's input (..., C), each row's mean and 1/standard deviation (...)."""

    x: Array
    mean: Array
    rstd: Array

    @property
    def normalised(self) -> Array:
        """The normalised rows (..., C), made anew."""
        return (self.x - self.mean[..., None]) * self.rstd[..., None]


@device_form(layernorm_forward)
def layernorm_forward_cuda(
    x: Array, weight: Array, bias: Array, eps: float, *, device: Device
) -> tuple[Array, CudaLayerNormCache]:
    """`layernorm_forward`, a warp a row."""
    x = namespace(x).ascontiguousarray(x)
    return _forward(device, x, NULL, weight, bias, NULL, x, eps)


@device_form(residual_layernorm_forward)
def residual_layernorm_forward_cuda(
    x: Array, delta: Array, weight: Array, bias: Array, eps: float, *, device: Device
) -> tuple[Array, Array, CudaLayerNormCache]:
    """`residual_layernorm_forward` in one look at each row."""
    xp = namespace(x)
    x, delta = xp.ascontiguousarray(x), xp.ascontiguousarray(delta)
    total = xp.empty(x.shape, dtype=x.dtype)
    return total, *_forward(device, x, delta, weight, bias, total, total, eps)


def _forward(
    device: Device, x: Array, delta: Any, weight: Array, bias: Array, total: Any, kept: Array, eps: float
) -> tuple[Array, CudaLayerNormCache]:
    xp, C = namespace(x), x.shape[-1]
    y = xp.empty(x.shape, dtype=x.dtype)
    cache = CudaLayerNormCache(kept, *(xp.empty(x.shape[:-1], dtype=x.dtype) for _ in range(2)))
    N = x.size // C
    device.launch(
        "layernorm",
        "layernorm_forward_v3",
        (blocks(N, ROWS_PER_BLOCK),),
        (ROWS_PER_BLOCK * WARP,),
        (x, delta, weight, bias, total, y, cache.mean, cache.rstd, np.int32(N), np.int32(C), np.float32(eps)),
    )
    return y, cache


@device_form(layernorm_backward_input)
def layernorm_backward_input_cuda(dy: Array, weight: Array, cache: CudaLayerNormCache, *, device: Device) -> Array:
    """`layernorm_backward_input`, a warp a row."""
    return _backward_input(device, NULL, dy, weight, cache)


@device_form(residual_layernorm_backward_input)
def residual_layernorm_backward_input_cuda(
    dtotal: Array, dy: Array, weight: Array, cache: CudaLayerNormCache, *, device: Device
) -> Array:
    """`residual_layernorm_backward_input` in the same kernel as without the residual."""
    return _backward_input(device, namespace(dy).ascontiguousarray(dtotal), dy, weight, cache)


def _backward_input(device: Device, dtotal: Any, dy: Array, weight: Array, cache: CudaLayerNormCache) -> Array:
    xp, C = namespace(dy), dy.shape[-1]
    dy = xp.ascontiguousarray(dy)
    dx = xp.empty(dy.shape, dtype=dy.dtype)
    N = dy.size // C
    device.launch(
        "layernorm",
        "layernorm_backward_input_v3",
        (blocks(N, ROWS_PER_BLOCK),),
        (ROWS_PER_BLOCK * WARP,),
        (dtotal, dy, cache.x, weight, cache.mean, cache.rstd, dx, np.int32(N), np.int32(C)),
    )
    return dx


@device_form(layernorm_backward_params)
def layernorm_backward_params_cuda(dy: Array, cache: CudaLayerNormCache, *, device: Device) -> tuple[Array, Array]:
    """`layernorm_backward_params` in two steps: sums over shares of the rows, then the shares added up."""
    xp, C = namespace(dy), dy.shape[-1]
    dy = xp.ascontiguousarray(dy)
    N = dy.size // C
    shares = row_shares(N, C)
    partial = xp.empty((shares, 2, C), dtype=dy.dtype)
    device.launch(
        "layernorm",
        "layernorm_backward_params_v2",
        (blocks(C, WARP), shares),
        (WARP, COLUMN_ROWS),
        (dy, cache.x, cache.mean, cache.rstd, partial, np.int32(N), np.int32(C)),
    )
    dweight, dbias = (xp.empty(C, dtype=dy.dtype) for _ in range(2))
    device.launch(
        "layernorm",
        "layernorm_backward_params_v2_finish",
        (blocks(2 * C, 256),),
        (256,),
        (partial, dweight, dbias, np.int32(shares), np.int32(C)),
    )
    return dweight, dbias
