"""Layer normalisation, alone and fused with the residual addition before it.

Ba, Kiros, Hinton (2016), "Layer Normalization", arXiv:1607.06450, eq. 4.
"""

from __future__ import annotations

from typing import NamedTuple

from kernels.array import Array, namespace


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
