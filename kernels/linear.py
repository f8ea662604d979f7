"""Linear layer, y = x @ weight + bias, with the weight stored (in, out).

The backward has three independent parts, so that a frozen weight or an input that nobody needs costs nothing.
Their caches are the forward's own arguments, which the caller keeps only for the parts it will ask for.
"""

from __future__ import annotations

import numpy as np

from kernels.array import Array, namespace
from kernels.cuda.device import COLUMN_ROWS, WARP, Device, blocks, column_grid, device_form, row_shares


def linear_forward(x: Array, weight: Array, bias: Array | None) -> Array:
    """Apply the layer.

    Parameters
    ----------
    x : (..., in)
    weight : (in, out)
    bias : (out,) or None

    Returns
    -------
    y : (..., out)
    """
    y = x @ weight
    return y if bias is None else y + bias


def linear_backward_input(dy: Array, weight: Array) -> Array:
    """Gradient with respect to the input.

    y_j = Σ_i x_i W_ij, so dx_i = Σ_j dy_j W_ij: every output hands its gradient back along the weight it came by.

    Parameters
    ----------
    dy : (..., out)
    weight : (in, out)

    Returns
    -------
    dx : (..., in)
    """
    ### BEGIN SOLUTION
    return dy @ weight.T
    ### END SOLUTION


def linear_backward_weight(dy: Array, x: Array, out: Array | None = None) -> Array:
    """Gradient with respect to the weight, summed over all rows.

    dW_ij = Σ_rows x_i dy_j.

    Parameters
    ----------
    dy : (..., out)
    x : (..., in)
        The forward's input.
    out : (in, out), optional
        Where to write the result; a fresh array if absent.

    Returns
    -------
    dweight : (in, out)
    """
    ### BEGIN SOLUTION
    rows_x = x.reshape(-1, x.shape[-1])  # (N, in)
    rows_dy = dy.reshape(-1, dy.shape[-1])  # (N, out)
    return namespace(x).matmul(rows_x.T, rows_dy, out=out)
    ### END SOLUTION


def linear_backward_bias(dy: Array) -> Array:
    """Gradient with respect to the bias: the bias is added to every row, so its gradient is the sum over rows.

    Parameters
    ----------
    dy : (..., out)

    Returns
    -------
    dbias : (out,)
    """
    ### BEGIN SOLUTION
    return dy.reshape(-1, dy.shape[-1]).sum(0)
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- fast forms


def linear_forward_fast(x: Array, weight: Array, bias: Array | None) -> Array:
    """`linear_forward` with one product over all rows and the bias added in place."""
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ weight
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def linear_backward_input_fast(dy: Array, weight: Array) -> Array:
    """`linear_backward_input` with one product over all rows."""
    dx = dy.reshape(-1, dy.shape[-1]) @ weight.T
    return dx.reshape(*dy.shape[:-1], weight.shape[0])


def linear_backward_bias_fast(dy: Array) -> Array:
    """`linear_backward_bias` as a matrix-vector product: BLAS sums columns faster than a reduction does."""
    rows = dy.reshape(-1, dy.shape[-1])
    return namespace(dy).ones(rows.shape[0], dtype=dy.dtype) @ rows


# ---------------------------------------------------------------------------------------------- CUDA forms
#
# The products are the device's own, which takes transposed views as they are; kernels/cuda/matmul.cu shows how such a
# product comes about.


@device_form(linear_forward)
def linear_forward_cuda(x: Array, weight: Array, bias: Array | None, *, device: Device) -> Array:
    """`linear_forward` with one product over all rows and the bias added in place."""
    y = device.gemm(x.reshape(-1, x.shape[-1]), weight)
    N, C = y.shape
    if bias is not None:
        device.launch("linear", "bias_add_v2", column_grid(N, C, 128), (128,), (y, bias, np.int32(N), np.int32(C)))
    return y.reshape(*x.shape[:-1], C)


@device_form(linear_backward_input)
def linear_backward_input_cuda(dy: Array, weight: Array, *, device: Device) -> Array:
    """`linear_backward_input` with one product over all rows."""
    dx = device.gemm(dy.reshape(-1, dy.shape[-1]), weight, transpose_b=True)
    return dx.reshape(*dy.shape[:-1], weight.shape[0])


@device_form(linear_backward_weight)
def linear_backward_weight_cuda(dy: Array, x: Array, out: Array | None = None, *, device: Device) -> Array:
    """`linear_backward_weight` as one product."""
    return device.gemm(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]), out, transpose_a=True)


@device_form(linear_backward_bias)
def linear_backward_bias_cuda(dy: Array, *, device: Device) -> Array:
    """`linear_backward_bias` in two steps: sums over shares of the rows, then the shares added up."""
    xp, C = namespace(dy), dy.shape[-1]
    dy = xp.ascontiguousarray(dy)
    N = dy.size // C
    shares = row_shares(N, C)
    partial = xp.empty((shares, C), dtype=dy.dtype)
    device.launch(
        "linear",
        "column_sum_v2",
        (blocks(C, WARP), shares),
        (WARP, COLUMN_ROWS),
        (dy, partial, np.int32(N), np.int32(C)),
    )
    dbias = xp.empty(C, dtype=dy.dtype)
    device.launch("linear", "column_sum_v1", (blocks(C, 256),), (256,), (partial, dbias, np.int32(shares), np.int32(C)))
    return dbias
