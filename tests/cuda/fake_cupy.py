"""CuPy as far as the project uses it, on the stand-in library and without a GPU.

Its arrays are the stand-in's, so that nothing of NumPy slips in and every wait is noted. cuBLAS computes on raw
addresses, by columns, in the types it is told. Kernels run on the CPU, as in `tests.cuda.emulated`.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from kernels.cuda import cupy_device
from tests.cuda import emulated
from tests.standin import ndarray, standin

HANDLE = 0x77
F32, BF16 = 0, 14  # library_types.h: cudaDataType_t
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77  # cublas_api.h: cublasComputeType_t


def memory(address: int, kind: int, rows: int, columns: int, ld: int, stride: int, batch: int) -> np.ndarray:
    """Matrices at an address, as cuBLAS reads them: (batch, rows, columns), a view."""
    assert ld >= max(1, rows), "cuBLAS refuses a leading dimension smaller than a column"
    size = (batch - 1) * stride + (columns - 1) * ld + rows
    item = {F32: ctypes.c_float, BF16: ctypes.c_uint16}[kind]
    flat = np.ctypeslib.as_array((item * size).from_address(address))
    n = flat.itemsize
    return np.lib.stride_tricks.as_strided(flat, (batch, rows, columns), (stride * n, n, ld * n))


def operand(x: np.ndarray, compute: int) -> np.ndarray:
    """What the tensor cores multiply: float32 as it is or cut to TF32's 10 bits of fraction, or bfloat16."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if compute == COMPUTE_32F_FAST_TF32:
        return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return x


class Cublas:
    """The part of ``cupy.cuda.cublas`` that multiplies, with its arguments in its order."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT = 0, 1, -1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 = COMPUTE_32F, COMPUTE_32F_FAST_TF32

    def __init__(self) -> None:
        self.calls: list[str] = []

    def gemmEx(
        self, handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute,
        algo,
    ) -> None:  # fmt: skip
        """One product."""
        self.gemmStridedBatchedEx(
            handle, transa, transb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1,
            compute, algo,
        )  # fmt: skip
        self.calls[-1] = "gemmEx"

    def gemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb, stride_b, beta, c,
        c_type, ldc, stride_c, batch, compute, algo,
    ) -> None:  # fmt: skip
        """Products at equal distances."""
        assert handle == HANDLE
        assert algo == self.CUBLAS_GEMM_DEFAULT
        assert c_type == F32
        self.calls.append("gemmStridedBatchedEx")
        one, before = (ctypes.c_float.from_address(pointer).value for pointer in (alpha, beta))
        first = operand(memory(a, a_type, *((k, m) if transa else (m, k)), lda, stride_a, batch), compute)
        second = operand(memory(b, b_type, *((n, k) if transb else (k, n)), ldb, stride_b, batch), compute)
        result = memory(c, c_type, m, n, ldc, stride_c, batch)
        for p in range(batch):
            product = one * ((first[p].T if transa else first[p]) @ (second[p].T if transb else second[p]))
            result[p] = product if before == 0 else before * result[p] + product


class ElementwiseKernel:
    """``cupy.ElementwiseKernel`` of one input and one output, its body compiled for the CPU at the first call."""

    TYPES: ClassVar[dict[str, str]] = {"float32": "float", "uint16": "unsigned short"}

    def __init__(self, into: str, out: str, body: str, name: str) -> None:
        (self.x_type, x), (self.y_type, y) = (parameter.split() for parameter in (into, out))
        x_code, y_code = self.TYPES[self.x_type], self.TYPES[self.y_type]
        self.code = (
            "#include <cstring>\n"
            "static unsigned __float_as_uint(float x) { unsigned u; std::memcpy(&u, &x, 4); return u; }\n"
            f'extern "C" void run(const {x_code} *xs, {y_code} *ys, long n) {{\n'
            f"for (long i = 0; i < n; i++) {{ const {x_code} {x} = xs[i]; {y_code} &{y} = ys[i]; {body} }} }}\n"
        )

    def __call__(self, x: ndarray, y: ndarray) -> ndarray:
        assert (str(x.dtype), str(y.dtype)) == (self.x_type, self.y_type)
        values = np.ascontiguousarray(x._host)
        results = np.empty(values.shape, y.dtype)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (values, results))
        compiled(self.code).run(*pointers, ctypes.c_long(values.size))
        y._host[...] = results
        return y


@functools.cache
def compiled(code: str) -> ctypes.CDLL:
    """C++ as a library, once a process."""
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory, "code.cpp"), Path(directory, "code.so")
        source.write_text(code)
        subprocess.run([str(emulated.COMPILER), "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        return ctypes.CDLL(str(library))


class RawModule:
    """``cupy.RawModule`` of one of the project's files."""

    launched: ClassVar[set[str]] = set()

    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        source = next(path for path in emulated.SOURCES.glob("*.cu") if path.read_text() == code)
        self.library = emulated.library(source)

    def get_function(self, name: str) -> Callable[..., None]:
        """A kernel."""

        def launch(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int) -> None:
            assert 0 not in grid, "CUDA refuses a grid without blocks"
            host = tuple(x._host if isinstance(x, ndarray) else x for x in args)
            emulated.run(self.library, name, grid, block, host, False, shared_mem)
            self.launched.add(name)

        return launch


class MemoryHook:
    """``cupy.cuda.MemoryHook``."""

    def __enter__(self) -> MemoryHook:
        POOL.hooks.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        POOL.hooks.remove(self)


class Pool:
    """``cupy.get_default_memory_pool()``; a test takes and gives back by hand."""

    def __init__(self) -> None:
        self.used = 0
        self.hooks: list[Any] = []

    def used_bytes(self) -> int:
        """Bytes handed out."""
        return self.used

    def take(self, nbytes: int) -> None:
        """Hand out a block, or take one back."""
        self.used += nbytes
        for hook in self.hooks if nbytes > 0 else ():
            hook.malloc_postprocess(device_id=0, size=nbytes, mem_size=nbytes, mem_ptr=1, pmem_id=1)


POOL = Pool()


def install(monkeypatch: pytest.MonkeyPatch, capability: str = "90", available: bool = True) -> Any:
    """Let ``import cupy`` find the stand-in library, with what belongs to a GPU, for one test.

    Parameters
    ----------
    monkeypatch : pytest fixture
    capability : str
        Compute capability of the GPU.
    available : bool
        Whether there is one.
    """
    cuda = SimpleNamespace(
        is_available=lambda: available,
        Device=lambda: SimpleNamespace(compute_capability=capability),
        cublas=Cublas(),
        runtime=SimpleNamespace(CUDA_R_32F=F32, CUDA_R_16BF=BF16),
        device=SimpleNamespace(get_cublas_handle=lambda: HANDLE),
        MemoryHook=MemoryHook,
        get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None),
    )
    for name, value in {
        "cuda": cuda,
        "ElementwiseKernel": ElementwiseKernel,
        "RawModule": RawModule,
        "get_default_memory_pool": lambda: POOL,
    }.items():
        monkeypatch.setattr(standin, name, value, raising=False)
    cupy_device.kernel_function.cache_clear()
    cupy_device._module.cache_clear()
    monkeypatch.setattr(standin.random, "Philox4x3210", lambda seed: seed, raising=False)
    monkeypatch.setitem(sys.modules, "cupy", standin)
    return standin
