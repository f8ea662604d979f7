"""The kernels of ``kernels/cuda`` through NVIDIA's own compiler, which needs no GPU and no driver.

It comes as Python packages: ``pip install 'minigpt[nvrtc]'``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cuda.emulated import SOURCES

MISSING = "NVIDIA's compiler is not installed: pip install '.[nvrtc]'"


class Usage(NamedTuple):
    """What a kernel takes of the machine: per thread, and per block."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int


def compile_for(source: Path, architecture: str) -> dict[str, Usage]:
    """Compile a .cu file to machine code; skips the test where the compiler is missing.

    Parameters
    ----------
    source : Path
    architecture : str
        E.g. ``"sm_90"``.

    Returns
    -------
    usage : dict of str to Usage
        Of every kernel.

    Raises
    ------
    AssertionError
        With the compiler's messages, if it refuses the file.
    """
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason=MISSING)
    pathfinder = pytest.importorskip("cuda.pathfinder", reason=MISSING)
    headers = pathfinder.find_nvidia_header_directory("cudart")
    assert headers, "the package nvidia-cuda-runtime is missing"

    def check(answer: tuple[Any, ...]) -> Any:
        result, *values = answer
        assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, result
        return values[0] if values else None

    program = check(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []))
    # As CuPy compiles them, and with the assembler's report.
    options = ["-std=c++17", f"-I{SOURCES}", f"-I{headers}", f"-arch={architecture}",
               "--device-as-default-execution-space", "--ptxas-options=-v"]  # fmt: skip
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
    check(nvrtc.nvrtcGetProgramLog(program, log))
    text = log.decode(errors="replace")
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, f"{source.name} for {architecture}:\n{text}"
    assert "warning" not in text, text
    check(nvrtc.nvrtcDestroyProgram(program))
    return usage(text)


def usage(log: str) -> dict[str, Usage]:
    """The assembler's report, kernel by kernel."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert frame, part
        assert used, part
        stack, stores, loads = map(int, frame.groups())
        found[part.split("'")[0]] = Usage(int(used[1]), int(shared[1]) if shared else 0, stack, stores + loads)
    return found
