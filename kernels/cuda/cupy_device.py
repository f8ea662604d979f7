"""The GPU, through CuPy: kernels compiled from their source at first use, matrix products by cuBLAS.

CuPy's own ``@`` would do for plain float32 matrices. For three axes and more it copies every transposed operand, knows
no accumulation, ignores TF32 and fails on bfloat16; so products go to cuBLAS directly.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from kernels.array import Array
from kernels.cuda.blas import Call, StridedGemm

SOURCES = Path(__file__).parent
STATIC_SHARED = 48 * 1024
"""Bytes of shared memory that a block may have without asking for more."""

LEAST = {"float32": (7, 5), "tf32": (8, 0), "bfloat16": (8, 0)}
"""Compute capability that a precision of matrix products needs: CUDA 13 compiles for 7.5 and up, and tensor cores know
TF32 and bfloat16 from 8.0 on."""

# The upper half of a float32, rounded to nearest, ties to even; adding to a NaN could carry it over into an infinity.
ROUND_TO_BFLOAT16 = """
    unsigned int u = __float_as_uint(x);
    y = (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
"""


def usable_cupy(precision: str) -> Any:
    """CuPy, if it is installed and can compute here at this precision.

    That CuPy imports does not mean that there is a GPU: only its own look at the driver tells.

    Raises
    ------
    ValueError
        One line that says what is missing.
    """
    if precision not in LEAST:
        raise ValueError(f"no precision {precision!r}; there are {', '.join(LEAST)}")
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        raise ValueError("backend 'cupy' needs the package cupy: pip install 'minigpt[gpu]'") from None
    if not cupy.cuda.is_available():
        raise ValueError("backend 'cupy' needs a CUDA GPU and its driver; none is usable on this machine")
    major, minor = divmod(int(cupy.cuda.Device().compute_capability), 10)
    if (major, minor) < LEAST[precision]:
        least = "{}.{}".format(*LEAST[precision])
        raise ValueError(
            f"backend 'cupy' needs a GPU of compute capability {least} or newer for {precision}; "
            f"this one has {major}.{minor}"
        )
    return cupy


class CupyDevice(StridedGemm):
    """A `Device` on the current GPU and the current stream.

    Parameters
    ----------
    precision : {"float32", "tf32", "bfloat16"}
        Of matrix products: strict; operands rounded to TF32 by the tensor cores; operands rounded to bfloat16
        beforehand. Sums, results and all other arrays are float32 in each case.

    Raises
    ------
    ValueError
        If there is no such precision, or no GPU for it.
    """

    def __init__(self, precision: str = "float32") -> None:
        self.xp = usable_cupy(precision)
        self.precision = precision
        self._cublas = self.xp.cuda.cublas
        runtime = self.xp.cuda.runtime
        bfloat16, tf32 = precision == "bfloat16", precision == "tf32"
        self._type = runtime.CUDA_R_16BF if bfloat16 else runtime.CUDA_R_32F
        self._result_type = runtime.CUDA_R_32F
        self._compute = self._cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if tf32 else self._cublas.CUBLAS_COMPUTE_32F
        self._round = self.xp.ElementwiseKernel("float32 x", "uint16 y", ROUND_TO_BFLOAT16, "round_to_bfloat16")
        # cuBLAS reads the factors of the product and of what was there from the host, at the time of the call.
        self._one, self._zero = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32)

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared: int = 0,
    ) -> None:
        """See `kernels.cuda.device.Device.launch`."""
        if 0 in grid:  # nothing to do, which CUDA calls an error
            return
        function = kernel_function(self.xp, source, kernel)
        if shared > STATIC_SHARED:
            function.max_dynamic_shared_size_bytes = shared
        function(grid, block, args, shared_mem=shared)

    def _operand(self, x: Array, readable: bool) -> Array:
        if self.precision != "bfloat16":
            return super()._operand(x, readable)
        # In the order of memory: a transposed view is read and written along its rows, and transposed by the product.
        return self._round(x, self.xp.empty_like(x, dtype=np.uint16, order="K" if readable else "C"))

    def _multiply(self, call: Call, first: Array, second: Array, out: Array, accumulate: bool) -> None:
        cublas = self._cublas
        handle = self.xp.cuda.device.get_cublas_handle()
        transa, transb = (cublas.CUBLAS_OP_T if flag else cublas.CUBLAS_OP_N for flag in (call.transa, call.transb))
        beta = self._one if accumulate else self._zero
        common = (handle, transa, transb, call.m, call.n, call.k, self._one.ctypes.data)
        a, b, c = first.data.ptr, second.data.ptr, out.data.ptr
        how = (self._compute, cublas.CUBLAS_GEMM_DEFAULT)
        if call.batch == 1:
            cublas.gemmEx(
                *common, a, self._type, call.lda, b, self._type, call.ldb,
                beta.ctypes.data, c, self._result_type, call.ldc, *how,
            )  # fmt: skip
        else:
            cublas.gemmStridedBatchedEx(
                *common, a, self._type, call.lda, call.stride_a, b, self._type, call.ldb, call.stride_b,
                beta.ctypes.data, c, self._result_type, call.ldc, call.stride_c, call.batch, *how,
            )  # fmt: skip


class LateGenerator:
    """A random generator of CuPy that is made when it is first drawn from: most passes draw nothing.

    Philox (Salmon et al., 2011) starts from its seed at once, where CuPy's default generator prepares a quarter of a
    million states.

    Parameters
    ----------
    cupy : module
    seed : int or list of int
    """

    def __init__(self, cupy: Any, seed: int | list[int]) -> None:
        self._make = lambda: cupy.random.Generator(cupy.random.Philox4x3210(seed))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if "_generator" not in self.__dict__:
            self._generator = self._make()
        return getattr(self._generator, name)


@functools.cache
def kernel_function(xp: Any, source: str, kernel: str) -> Any:
    """A kernel of a ``.cu`` file of this directory; compiled once a process, and kept on disk by CuPy."""
    return _module(xp, source).get_function(kernel)


@functools.cache
def _module(xp: Any, source: str) -> Any:
    code = (SOURCES / f"{source}.cu").read_text(encoding="utf-8")
    return xp.RawModule(code=code, options=("-std=c++17", f"-I{SOURCES}"))
