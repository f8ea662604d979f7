"""The machine that runs CUDA C on the CPU sees the mistakes it is there to see."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.cuda.emulated import COMPILER, Emulated, KernelError, kernel_names, rounded

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the kernels run on the CPU with g++, which is not installed")

KERNELS = r"""
extern "C" __global__ void places(int* x) {
    int i = ((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x * blockDim.y * blockDim.z +
            (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    x[i] = 1000 * threadIdx.z + 100 * threadIdx.y + 10 * threadIdx.x + blockIdx.z + blockIdx.y + blockIdx.x;
}
extern "C" __global__ void turned_around(float* x) {
    __shared__ float all[64];
    all[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = all[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void without_barrier(float* x) {
    __shared__ float all[64];
    all[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = all[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void warps_without_barrier(float* x) {
    __shared__ float all[64];
    all[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    x[threadIdx.x] = all[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void barrier_for_some(float* x) {
    if (threadIdx.x < 40) __syncthreads();
    x[threadIdx.x] = 1;
}
extern "C" __global__ void two_barriers(float* x) {
    if (threadIdx.x < 40)
        __syncthreads();
    else
        __syncthreads();
    x[threadIdx.x] = 1;
}
extern "C" __global__ void left_over(float* x) {
    __shared__ float all[64];
    x[blockIdx.x] = all[0];
    all[0] = 1;
}
extern "C" __global__ void shuffles(int* x) {
    int lane = threadIdx.x % 32;
    x[threadIdx.x] = __shfl_xor_sync(0xffffffff, lane, 3);
    x[64 + threadIdx.x] = __shfl_down_sync(0xffffffff, lane, 5);
    x[128 + threadIdx.x] = __shfl_up_sync(0xffffffff, lane, 5);
    x[192 + threadIdx.x] = __shfl_sync(0xffffffff, lane + (int)threadIdx.x / 32, 7);
}
extern "C" __global__ void shuffle_in_half_a_warp(float* x) {
    if (threadIdx.x % 32 < 16) x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
}
extern "C" __global__ void last_one_wins(int* x) { x[0] = blockIdx.x * blockDim.x + threadIdx.x; }
extern "C" __global__ void counts(float* x, int n) { for (int i = 0; i < n; i++) atomicAdd(x, 1.0f); }
extern "C" __global__ void all_types(const float* f, double* d, const long long* q, const bool* b, float g, double e,
                                     int i, long long j) {
    d[0] = f ? f[0] + q[0] + b[0] + g + e + i + j : -1;
}
extern "C" __global__ void beyond(float* x, int n) { x[n] = 1; }
extern "C" __global__ void unaligned(float* x) { *reinterpret_cast<float4*>(x + 1) = make_float4(1, 2, 3, 4); }
#define COPY(n) extern "C" __global__ void __launch_bounds__(n) copy_##n(float* x) { x[n] = 0; }
COPY(1) COPY(2)
"""


@pytest.fixture
def machines(tmp_path):
    """Both orders."""
    (tmp_path / "some.cu").write_text(KERNELS)
    return [Emulated(descending=descending, sources=tmp_path) for descending in (False, True)]


def ramp(n):
    return np.arange(n, dtype=np.float32)


def test_every_thread_knows_its_place(machines):
    grid, block = (3, 2, 2), (4, 3, 2)
    expected = [
        1000 * z + 100 * y + 10 * x + bz + by + bx
        for bz in range(2) for by in range(2) for bx in range(3) for z in range(2) for y in range(3) for x in range(4)
    ]  # fmt: skip
    for machine in machines:
        x = np.zeros(len(expected), dtype=np.int32)
        machine.launch("some", "places", grid, block, (x,))
        assert x.tolist() == expected


def test_threads_meet_at_barriers(machines):
    for machine in machines:
        x = ramp(64)
        machine.launch("some", "turned_around", (1,), (64,), (x,))
        assert (x == ramp(64)[::-1]).all()


@pytest.mark.parametrize("kernel", ["without_barrier", "warps_without_barrier"])
def test_a_missing_barrier_shows(machines, kernel):
    for machine in machines:
        x = ramp(64)
        machine.launch("some", kernel, (1,), (64,), (x,))
        assert np.isnan(x).any()


def test_barriers_that_not_all_reach(machines):
    line = 1 + KERNELS[: KERNELS.index("if (threadIdx.x < 40) __syncthreads")].count("\n")
    for machine in machines:
        with pytest.raises(KernelError, match=f"barrier, line {line}, that 24 threads never reach"):
            machine.launch("some", "barrier_for_some", (1,), (64,), (ramp(64),))
        with pytest.raises(KernelError, match=r"different barriers, lines \d+ and \d+"):
            machine.launch("some", "two_barriers", (1,), (64,), (ramp(64),))
        with pytest.raises(KernelError, match="barrier"):
            machine.launch("some", "shuffle_in_half_a_warp", (1,), (64,), (ramp(64),))
        x = ramp(64)
        machine.launch("some", "turned_around", (1,), (64,), (x,))  # a failed launch leaves nothing behind
        assert (x == ramp(64)[::-1]).all()


def test_shared_memory_is_poisoned_for_every_block(machines):
    for machine in machines:
        x = ramp(3)
        machine.launch("some", "left_over", (3,), (1,), (x,))
        assert np.isnan(x).all()


def test_shuffles(machines):
    lane = np.arange(32)
    expected = [lane ^ 3, np.where(lane + 5 < 32, lane + 5, lane), np.where(lane >= 5, lane - 5, lane)]
    for machine in machines:
        x = np.zeros(256, dtype=np.int32)
        machine.launch("some", "shuffles", (1,), (64,), (x,))
        for part, wanted in zip(x.reshape(4, 2, 32)[:3], expected, strict=True):
            assert (part == wanted).all()
        assert (x[192:224] == 7).all()
        assert (x[224:] == 8).all()


def test_orders(machines):
    last = []
    for machine in machines:
        x = np.zeros(1, dtype=np.int32)
        machine.launch("some", "last_one_wins", (2,), (64,), (x,))
        last.append(int(x[0]))
    assert last == [127, 0]


def test_atomic_additions(machines):
    for machine in machines:
        x = np.zeros(1, dtype=np.float32)
        machine.launch("some", "counts", (2,), (64,), (x, np.int32(3)))
        assert x[0] == 2 * 64 * 3


def test_arguments_are_checked(machines):
    machine = machines[0]
    f, d, q, b = ramp(1) + 1, np.zeros(1), np.array([2]), np.array([True])
    right = (f, d, q, b, np.float32(4), np.float64(8), np.int32(16), np.int64(32))
    machine.launch("some", "all_types", (1,), (1,), right)
    assert d[0] == 1 + 2 + 1 + 4 + 8 + 16 + 32
    machine.launch("some", "all_types", (1,), (1,), (np.uint64(0), *right[1:]))
    assert d[0] == -1
    wrong = [d, f, d, q, np.float64(1), np.float32(1), np.int64(1), np.int32(1)]
    for place, value in enumerate(wrong):
        with pytest.raises(KernelError, match="all_types takes FDQBfdiq, not"):
            machine.launch("some", "all_types", (1,), (1,), (*right[:place], value, *right[place + 1 :]))
    for few in (right[:-1], (*right, np.int32(1))):
        with pytest.raises(KernelError, match="takes"):
            machine.launch("some", "all_types", (1,), (1,), few)
    with pytest.raises(KernelError, match="neither an array"):
        machine.launch("some", "all_types", (1,), (1,), (*right[:-1], 32))
    assert machine.launched == {("some", "all_types")}


def test_impossible_launches(machines):
    machine, x = machines[0], ramp(4)
    for grid, block in (((1,), (1025,)), ((1, 65536), (1,)), ((1, 1, 65536), (1,)), ((1,), (0,))):
        with pytest.raises(KernelError, match="block"):
            machine.launch("some", "last_one_wins", grid, block, (x.view(np.int32),))
    with pytest.raises(KernelError, match="no kernel missing"):
        machine.launch("some", "missing", (1,), (1,), (x,))
    machine.launch("some", "last_one_wins", (0,), (1,), (x.view(np.int32),))
    assert (x == ramp(4)).all(), "a grid without blocks starts nothing"


def test_what_does_not_compile_is_told(tmp_path):
    (tmp_path / "wrong.cu").write_text('extern "C" __global__ void wrong(float* x) { x[0] = missing; }\n')
    with pytest.raises(KernelError, match=r"g\+\+ refuses wrong\.cu(.|\n)*missing"):
        Emulated(sources=tmp_path).launch("wrong", "wrong", (1,), (1,), (ramp(1),))


def test_kernels_that_macros_write_are_found(tmp_path):
    (tmp_path / "some.cu").write_text(KERNELS)
    names = kernel_names(tmp_path / "some.cu")
    assert names[:2] == ["places", "turned_around"]
    assert names[-2:] == ["copy_1", "copy_2"]


def test_sanitizers(tmp_path):
    """Every kernel in a process of its own with the sanitizers, and two that they must end."""
    (tmp_path / "some.cu").write_text(KERNELS)
    preload = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(preload):
        pytest.skip("g++ has no address sanitizer here")
    environment = os.environ | {
        "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "CUDA_ON_CPU_SANITIZE": "1",
    }  # fmt: skip

    def python(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)

    setup = (
        "import numpy as np, pathlib, sys; from tests.cuda.emulated import Emulated;"
        "machine = Emulated(sources=pathlib.Path(sys.argv[1])); x = np.zeros(8, dtype=np.float32);"
    )
    for launch, message in (
        ("machine.launch('some', 'beyond', (1,), (1,), (x, np.int32(7)))", ""),
        ("machine.launch('some', 'beyond', (1,), (1,), (x, np.int32(8)))", "heap-buffer-overflow"),
        ("machine.launch('some', 'unaligned', (1,), (1,), (x,))", "misaligned address"),
    ):
        done = python("-c", setup + launch, str(tmp_path))
        assert (done.returncode != 0) == bool(message), done.stderr
        assert message in done.stderr
    done = python("-m", "tests.cuda.sanitized")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "clean\n"


@pytest.mark.parametrize(("mantissa", "step"), [(10, 2.0**-10), (7, 2.0**-7)])
def test_rounding_of_operands(mantissa, step):
    x = np.array([1, 1 + step, 1 + step / 2, 1 + 1.5 * step, 1 + 0.51 * step, -1 - 0.49 * step, 0, 3e38], np.float32)
    wanted = [1, 1 + step, 1, 1 + 2 * step, 1 + step, -1, 0]
    assert rounded(x, mantissa)[:-1].tolist() == wanted
    assert abs(rounded(x, mantissa)[-1] / 3e38 - 1) < step


def test_products():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (2, 4, 5)))
    for machine, tolerance in ((Emulated(), 1e-6), (Emulated("tf32"), 2e-3), (Emulated("bfloat16"), 2e-2)):
        exact = a.astype(float) @ b
        product = machine.gemm(a, b)
        assert (np.abs(product - exact).max() > 1e-5) == (machine.precision != "float32")
        out = np.ones((2, 3, 5), dtype=np.float32)
        results = [
            product,
            machine.gemm(a.swapaxes(1, 2), b, transpose_a=True),
            machine.gemm(a, b.swapaxes(1, 2), transpose_b=True),
            machine.gemm(a, b, out.copy()),
            machine.gemm(a, b, out, accumulate=True) - 1,
        ]
        assert all(np.abs(result - exact).max() < tolerance * 10 for result in results)
        assert (out != 1).all()
