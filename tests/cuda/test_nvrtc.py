"""NVIDIA's own compiler takes every kernel, and what it makes of them fits the machine."""

import pytest

from tests.cuda.emulated import SOURCES
from tests.cuda.nvrtc import Usage, compile_for, usage

pytestmark = pytest.mark.parity

STATIC_SHARED = 48 * 1024  # bytes a block may have without asking for more
REGISTERS = 64 * 1024  # that the threads of an SM share
THREADS = 256  # the most a block of a kernel with many registers has; matmul_v4 has 512 and says so itself


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.cu")), ids=lambda path: path.stem)
def test_compiles_without_spills(source, architecture):
    kernels = compile_for(source, architecture)
    assert kernels
    for name, used in kernels.items():
        assert used.spilled_bytes == 0, f"{name} has too many variables for its registers"
        assert used.stack_bytes == 0, f"{name} keeps an array in memory"
        assert used.shared_bytes <= STATIC_SHARED, name
        assert used.registers * THREADS * 2 <= REGISTERS, f"{name}: not two blocks fit on an SM"


def test_what_it_refuses_is_told(tmp_path):
    wrong = tmp_path / "wrong.cu"
    wrong.write_text('extern "C" __global__ void wrong(float* x) { x[0] = missing; }\n')
    with pytest.raises(AssertionError, match=r"wrong\.cu for sm_90(.|\n)*missing"):
        compile_for(wrong, "sm_90")


def test_spills_are_seen(tmp_path):
    crowded = tmp_path / "crowded.cu"
    crowded.write_text(
        'extern "C" __global__ void __launch_bounds__(1024) crowded(volatile float* x) {\n'
        "    float many[100];\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 100; i++) many[i] = x[i];\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 100; i++) x[i] = many[99 - i];\n"
        "}\n"
    )
    assert compile_for(crowded, "sm_90")["crowded"].spilled_bytes > 0


def test_report_is_read():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 256 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 17 registers, used 0 barriers
"""
    assert usage(log) == {"first": Usage(40, 256, 8, 16), "second": Usage(17, 0, 0, 0)}
