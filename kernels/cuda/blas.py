"""Matrix products of row-major arrays, put in the terms of cuBLAS.

cuBLAS reads memory by columns. Rows of a row-major matrix are columns to it, so it sees the transposed matrix, and
out = a @ b is asked for as outᵀ = bᵀ @ aᵀ: the operands change places and nothing moves in memory. Whether an operand
lies by rows or by columns is told by its strides and passed on as a flag: a transposed view costs no copy.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from kernels.array import Array, namespace


class Matrices(NamedTuple):
    """Equal matrices at equal distances in memory, as cuBLAS can read them.

    Attributes
    ----------
    by_rows : bool
        The elements of a row are neighbours; else those of a column are.
    ld : int
        Elements from one row (or column) to the next: the leading dimension.
    stride : int
        Elements from one matrix to the next; 0 where all are the same one.
    """

    by_rows: bool
    ld: int
    stride: int


class Call(NamedTuple):
    """Arguments of ``gemmStridedBatchedEx``; for a single product also those of ``gemmEx``.

    Attributes
    ----------
    b_first : bool
        cuBLAS' first operand is our second one.
    transa, transb : bool
        Whether cuBLAS is to transpose what it reads by columns.
    m, n, k : int
        The product cuBLAS computes is (m, k) @ (k, n).
    lda, stride_a, ldb, stride_b, ldc, stride_c : int
        Of cuBLAS' first operand, its second, and the result, in elements.
    batch : int
    """

    b_first: bool
    transa: bool
    transb: bool
    m: int
    n: int
    k: int
    lda: int
    stride_a: int
    ldb: int
    stride_b: int
    ldc: int
    stride_c: int
    batch: int


def matrices(shape: tuple[int, ...], strides: tuple[int, ...], batch: tuple[int, ...]) -> Matrices | None:
    """How cuBLAS can read an array, or None where it cannot and a copy is needed.

    Parameters
    ----------
    shape : (..., R, C)
        The leading axes broadcast to `batch`.
    strides : tuple of int
        In elements.
    batch : tuple of int

    Returns
    -------
    matrices : Matrices or None
    """
    rows, columns = shape[-2:]
    down, right = strides[-2:]
    stride = _batch_stride(shape[:-2], strides[:-2], batch)
    if stride is None:
        return None
    # The stride along an axis of length 1 means nothing; what is passed in its place must still be a legal one.
    if (columns == 1 or right == 1) and (rows == 1 or down >= columns):
        return Matrices(True, columns if rows == 1 else down, stride)
    if (rows == 1 or down == 1) and (columns == 1 or right >= rows):
        return Matrices(False, rows if columns == 1 else right, stride)
    return None


def _batch_stride(shape: tuple[int, ...], strides: tuple[int, ...], batch: tuple[int, ...]) -> int | None:
    # The one distance between consecutive matrices, if all leading axes together have one.
    missing = len(batch) - len(shape)
    lengths, steps = (1,) * missing + tuple(shape), (0,) * missing + tuple(strides)
    axes = [(n, 0 if length == 1 else step) for n, length, step in zip(batch, lengths, steps, strict=True) if n > 1]
    for (_, outer), (n, inner) in itertools.pairwise(axes):
        if outer != n * inner:
            return None
    stride = axes[-1][1] if axes else 0
    return stride if stride >= 0 else None


def arrange(a: Matrices, b: Matrices, out: Matrices, m: int, n: int, k: int, batch: int) -> Call:
    """The call that computes out (m, n) = a (m, k) @ b (k, n)."""
    if out.by_rows:  # by columns that is outᵀ (n, m) = bᵀ @ aᵀ, and an operand that lies by rows is transposed already
        return Call(
            True, not b.by_rows, not a.by_rows, n, m, k, b.ld, b.stride, a.ld, a.stride, out.ld, out.stride, batch
        )
    return Call(False, a.by_rows, b.by_rows, m, n, k, a.ld, a.stride, b.ld, b.stride, out.ld, out.stride, batch)


class StridedGemm:
    """`Device.gemm` on top of one call of a library that speaks like cuBLAS.

    Whoever inherits from it gives `_multiply`, and `_operand` if operands are to be converted.
    """

    def gemm(
        self,
        a: Array,
        b: Array,
        out: Array | None = None,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        accumulate: bool = False,
    ) -> Array:
        """See `kernels.cuda.device.Device.gemm`; `out` must not overlap the operands.

        Raises
        ------
        ValueError
            If shapes do not fit, or there is nothing to accumulate to.
        TypeError
            If an array is not float32.
        """
        a = a.swapaxes(-1, -2) if transpose_a else a
        b = b.swapaxes(-1, -2) if transpose_b else b
        m, k = a.shape[-2:]
        n = b.shape[-1]
        if b.shape[-2] != k:
            raise ValueError(f"a product of {tuple(a.shape)} and {tuple(b.shape)}: {k} columns, {b.shape[-2]} rows")
        batch = np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
        shape = (*batch, m, n)
        if out is None:
            if accumulate:
                raise ValueError("there is no `out` to accumulate to")
            out = namespace(a).empty(shape, dtype=np.float32)
        elif tuple(out.shape) != shape:
            raise ValueError(f"out is {tuple(out.shape)}, the product is {shape}")
        for x in (a, b, out):
            if x.dtype != np.float32:
                raise TypeError(f"matrix products on the device are of float32 arrays, not of {x.dtype}")
        if out.size == 0:
            return out
        if k == 0:
            if not accumulate:
                out[...] = 0
            return out
        a, of_a = self._ready(a, batch)
        b, of_b = self._ready(b, batch)
        of_out = _layout(out, batch)
        if of_out is None or (of_out.stride == 0 and out.size > m * n):
            product = namespace(a).empty(shape, dtype=np.float32)
            self._run(a, of_a, b, of_b, product, _layout(product, batch), False)
            if accumulate:
                out += product
            else:
                out[...] = product
            return out
        self._run(a, of_a, b, of_b, out, of_out, accumulate)
        return out

    def _ready(self, x: Array, batch: tuple[int, ...]) -> tuple[Array, Any]:
        readable = _layout(x, batch) is not None
        if not readable and x.ndim > 2:  # leading axes of which only some broadcast have no one distance either
            x = namespace(x).broadcast_to(x, (*batch, *x.shape[-2:]))
        x = self._operand(x, readable)
        return x, _layout(x, batch)

    def _operand(self, x: Array, readable: bool) -> Array:
        """`x` as the library is to read it; where it is not readable as it lies, a copy by rows."""
        return x if readable else namespace(x).ascontiguousarray(x)

    def _run(self, a: Array, of_a: Any, b: Array, of_b: Any, out: Array, of_out: Any, accumulate: bool) -> None:
        m, n = out.shape[-2:]
        call = arrange(of_a, of_b, of_out, m, n, a.shape[-1], out.size // (m * n))
        first, second = (b, a) if call.b_first else (a, b)
        self._multiply(call, first, second, out, accumulate)

    def _multiply(self, call: Call, first: Array, second: Array, out: Array, accumulate: bool) -> None:
        raise NotImplementedError


def _layout(x: Array, batch: tuple[int, ...]) -> Matrices | None:
    return matrices(tuple(x.shape), tuple(step // x.dtype.itemsize for step in x.strides), batch)
