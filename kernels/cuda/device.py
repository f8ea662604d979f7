"""What the ``_cuda`` forms of the operations run on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from kernels.array import Array

NULL = np.uint64(0)
"""The argument of a kernel's pointer parameter that has nothing to point to."""

WARP = 32  # threads that run in step


def blocks(n: int, size: int) -> int:
    """How many blocks of this size n things need."""
    return -(-n // size)


COLUMN_ROWS = 8  # rows that a block of column sums reads at a time


def row_shares(N: int, C: int) -> int:
    """Into how many shares of rows a sum over N rows of C columns is split, so that enough blocks are at work.

    It depends on the shape alone: the same sums on every machine.
    """
    return max(1, min(blocks(N, 8 * COLUMN_ROWS), blocks(1024, blocks(C, WARP))))


def column_grid(N: int, C: int, size: int = 128) -> tuple[int, int]:
    """Blocks for threads that keep four columns each and stride down the rows."""
    across = blocks(C, 4 * size)
    return across, min(N, blocks(4096, across))


class Device(Protocol):
    """Launches kernels and multiplies matrices.

    Attributes
    ----------
    precision : {"float32", "tf32", "bfloat16"}
        Of matrix products only; everything else is float32.
    """

    precision: str

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared: int = 0,
    ) -> None:
        """Start a kernel; a grid without blocks starts nothing.

        Parameters
        ----------
        source : str
            Stem of a file of this directory, e.g. ``"layernorm"``.
        kernel : str
            Name of an ``extern "C"`` function in it.
        grid, block : tuples of 1 to 3 int
            Blocks, and threads in each.
        args : tuple
            Arrays, whose addresses are passed; `NULL`; np.int32, np.int64, np.float32 and np.float64 scalars of
            exactly the parameters' types.
        shared : int
            Bytes of dynamic shared memory.
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
        """a @ b, either transposed in its last two axes, without a copy of what is transposed.

        Parameters
        ----------
        a : (..., m, k), or (..., k, m) with `transpose_a`
        b : (..., k, n), or (..., n, k) with `transpose_b`
        out : (..., m, n), optional
            Where to write the product; a fresh array if absent.
        accumulate : bool
            Add to `out` instead.

        Returns
        -------
        out : (..., m, n)
        """


def device_form(reference: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a ``_cuda`` form hand over to its reference where the arrays are not float32.

    The kernels compute in float32. A model in float64, which gradient checks use, runs the reference forms on the same
    device instead; as its forward gives the reference's cache, the backward finds what it expects.

    Parameters
    ----------
    reference : function
        The operation's reference form.
    """

    def decorate(form: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(form)
        def call(*args: Any, device: Device, **kwargs: Any) -> Any:
            found = _floating((*args, *kwargs.values()))
            if found is None or found == np.float32:
                return form(*args, device=device, **kwargs)
            return reference(*args, **kwargs)

        return call

    return decorate


def _floating(args: tuple[Any, ...]) -> np.dtype | None:
    # The type of the first array of floating-point numbers among the arguments, caches included.
    for x in args:
        if isinstance(x, tuple):
            found = _floating(x)
            if found is not None:
                return found
        elif getattr(x, "ndim", 0) and x.dtype.kind == "f":  # not a number of NumPy's, such as a learning rate
            return x.dtype
    return None
