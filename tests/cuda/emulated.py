"""The kernels of ``kernels/cuda`` on a CPU: a `kernels.cuda.device.Device` on NumPy arrays.

Each ``.cu`` file is compiled by g++, unmodified, against ``cuda_on_cpu.h``; libraries are kept by the hash of what
went into them.

>>> import numpy as np
>>> from kernels import Backend
>>> backend = Backend("emulated", np, "_cuda", device=Emulated())
>>> backend.ops.linear_backward_bias(np.ones((3, 2), dtype=np.float32))
array([3., 3.], dtype=float32)
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import kernels.cuda

SOURCES = Path(kernels.cuda.__file__).parent
HEADER = Path(__file__).parent / "cuda_on_cpu.h"
BUILT = Path(__file__).parents[2] / ".pytest_cache" / "cuda_on_cpu"
COMPILER = shutil.which("g++") if sys.platform == "linux" else None  # sections of a library are ELF's
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-fno-gnu-unique", "-fno-strict-aliasing", "-ffp-contract=off",
         "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-parameter",
         "-Werror")  # fmt: skip
SANITIZERS = (
    "-O0",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fsanitize-sections=cuda_shared",
    "-g1",
)
MANTISSA = {"tf32": 10, "bfloat16": 7}  # bits that a matrix product's operands keep


class KernelError(Exception):
    """A launch that a GPU would refuse, hang on or go wrong with."""


class Emulated:
    """A device without a GPU.

    Parameters
    ----------
    precision : {"float32", "tf32", "bfloat16"}
        Of matrix products.
    descending : bool
        Run blocks and threads from the last to the first.
    sources : Path
        Where the .cu files lie.

    Attributes
    ----------
    launched : set of (source, kernel)
        Every kernel that has run.
    """

    def __init__(self, precision: str = "float32", descending: bool = False, sources: Path = SOURCES) -> None:
        self.precision = precision
        self.sources = sources
        self.descending = descending
        self.launched: set[tuple[str, str]] = set()

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared: int = 0,
    ) -> None:
        """See `Device.launch`.

        Raises
        ------
        KernelError
            If the arguments are not what the kernel takes, or its threads cannot go on.
        """
        run(library(self.sources / f"{source}.cu"), kernel, grid, block, args, self.descending, shared)
        self.launched.add((source, kernel))

    def gemm(
        self,
        a: np.ndarray,
        b: np.ndarray,
        out: np.ndarray | None = None,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        accumulate: bool = False,
    ) -> np.ndarray:
        """See `Device.gemm`; operands are rounded as tensor cores would."""
        if self.precision in MANTISSA:
            a, b = (rounded(x, MANTISSA[self.precision]) for x in (a, b))
        a = a.swapaxes(-1, -2) if transpose_a else a
        b = b.swapaxes(-1, -2) if transpose_b else b
        if not accumulate:
            return np.matmul(a, b, out=out)
        assert out is not None, "nothing to accumulate on"
        out += a @ b
        return out


def rounded(x: np.ndarray, mantissa: int) -> np.ndarray:
    """float32 numbers with so many bits of mantissa left, rounded to the nearest, ties to even."""
    dropped = 23 - mantissa
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    half = ((bits >> np.uint32(dropped)) & np.uint32(1)) + np.uint32((1 << (dropped - 1)) - 1)
    return ((bits + half) & ~np.uint32((1 << dropped) - 1)).view(np.float32)


def run(
    loaded: ctypes.CDLL,
    kernel: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: tuple[Any, ...],
    descending: bool,
    shared: int = 0,
) -> None:
    """Launch a kernel of a compiled library."""
    if 0 in grid:
        return
    if shared:
        raise KernelError("no kernel here asks for dynamic shared memory")
    if not hasattr(loaded, f"{kernel}__parameters"):
        raise KernelError(f"no kernel {kernel}")
    describe, launch = getattr(loaded, f"{kernel}__parameters"), getattr(loaded, f"{kernel}__launch")
    describe.restype = launch.restype = ctypes.c_char_p
    wanted, given = describe().decode(), "".join(map(code, args))
    if len(wanted) != len(given) or any(
        w != g and not (g == "*" and w.isupper()) for w, g in zip(wanted, given, strict=True)
    ):
        raise KernelError(f"{kernel} takes {wanted}, not {given}")
    values = [np.array(x.ctypes.data if isinstance(x, np.ndarray) else x) for x in args]
    addresses = (ctypes.c_void_p * len(values))(*(x.ctypes.data for x in values))
    ones = (1, 1, 1)
    shape = (ctypes.c_uint * 6)(*(*grid, *ones)[:3], *(*block, *ones)[:3])
    message = launch(shape, addresses, ctypes.c_int(descending)).decode()
    if message:
        raise KernelError(f"{kernel}: {message}")


def code(x: Any) -> str:
    """The letter of an argument's type, as `Code` in the header has it."""
    if isinstance(x, np.ndarray):
        return {"float32": "F", "float64": "D", "int32": "I", "int64": "Q", "bool": "B"}[x.dtype.name]
    if isinstance(x, np.generic):
        return {"float32": "f", "float64": "d", "int32": "i", "int64": "q", "uint64": "*"}[x.dtype.name]
    raise KernelError(f"{x!r} is neither an array nor a NumPy scalar")


def kernel_names(source: Path) -> list[str]:
    """The kernels of a .cu file, those that macros write included."""
    command = [str(COMPILER), "-E", "-P", "-x", "c++", f"-I{source.parent}", str(source)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)', text)


def library(source: Path) -> ctypes.CDLL:
    """A .cu file as a library that ctypes can call.

    Built with the address and undefined-behaviour sanitizers where the environment variable CUDA_ON_CPU_SANITIZE is
    set: the process must have been started with the address sanitizer preloaded.
    """
    return _load(source, source.read_text(), "CUDA_ON_CPU_SANITIZE" in os.environ)


@functools.cache
def _load(source: Path, text: str, sanitize: bool) -> ctypes.CDLL:
    flags = (*FLAGS, *SANITIZERS) if sanitize else FLAGS
    includes = "".join(path.read_text() for path in sorted(source.parent.glob("*.cuh")))
    ingredients = (text, includes, HEADER.read_text(), *flags, str(COMPILER))
    built = BUILT / f"{source.stem}-{hashlib.sha256(chr(0).join(ingredients).encode()).hexdigest()[:16]}.so"
    if not built.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        wrapper = built.with_suffix(f".{os.getpid()}.cpp")
        partial = built.with_suffix(f".{os.getpid()}.so")
        lines = [f'#include "{HEADER}"', f'#include "{source}"']
        wrapper.write_text("\n".join([*lines, *(f"CUDA_ON_CPU_KERNEL({name})" for name in kernel_names(source)), ""]))
        command = [str(COMPILER), *flags, f"-I{source.parent}", str(wrapper), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True)
        wrapper.unlink()
        if done.returncode:
            raise KernelError(f"g++ refuses {source.name}:\n{done.stderr[:4000]}")
        partial.replace(built)
    return ctypes.CDLL(str(built))
