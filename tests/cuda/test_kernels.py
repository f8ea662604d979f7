"""Every version of every kernel against the reference in float64, in two orders of threads and blocks."""

import multiprocessing
import os
import shutil
from typing import NamedTuple

import numpy as np
import pytest

from tests.cuda.cases import CASES
from tests.cuda.emulated import COMPILER, SOURCES, Emulated, KernelError, kernel_names
from tests.helpers import error

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the kernels run on the CPU with g++, which is not installed")

TOLERANCE = 3e-6  # of the largest number; float32 has 6e-8, and sums of a few hundred
RUNS = [
    pytest.param(case, version, shape, id="-".join([case.kernel + version, *map(str, shape)]))
    for case in CASES
    for version in case.versions
    for shape in case.shapes
]


def check(case, version, shape, sources=SOURCES):
    """Run a case in both orders, and compare."""
    results = []
    for descending in (False, True):
        device = Emulated(descending=descending, sources=sources)
        rng = np.random.default_rng([len(shape), *(x for x in shape if isinstance(x, int))])
        results.append(case.run(device, case.kernel + version, rng, *shape))
    for name, (got, wanted) in results[0].items():
        assert error(got, wanted) < TOLERANCE, f"{name}: off by {error(got, wanted):.1e}"
        if version not in case.unordered:
            again = results[1][name][0]
            assert got.tobytes() == again.tobytes(), f"{name} depends on the order of threads"
        assert error(results[1][name][0], wanted) < TOLERANCE


@pytest.mark.parametrize(("case", "version", "shape"), RUNS)
def test_kernel(case, version, shape):
    check(case, version, shape)


def test_every_kernel_has_a_case():
    device = Emulated()
    for case in CASES:
        for version in case.versions:
            case.run(device, case.kernel + version, np.random.default_rng(0), *case.shapes[0])
    assert device.launched == {(path.stem, name) for path in SOURCES.glob("*.cu") for name in kernel_names(path)}


class Slip(NamedTuple):
    """A slip of the pen: in a file, after a line that contains `after`, `old` became `new`; this kernel must fail."""

    kernel: str
    file: str
    after: str
    old: str
    new: str = ""


SLIPS = [
    Slip("softmax_v2", "warp.cuh", "if (lane == 0) shared", "__syncthreads();"),
    Slip("layernorm_forward_v2", "warp.cuh", "T warp_sum(", "d > 0;", "d > 1;"),
    Slip("layernorm_forward_v3", "warp.cuh", "bool packs(", "C % 4 == 0 && "),
    Slip("layernorm_backward_params_v2", "layernorm.cu", "params_v2_finish(", "dbias[c - C]", "dbias[c]"),
    Slip("layernorm_backward_params_v2", "layernorm.cu", "params_v2(", "row < N;", "row < N - 1;"),
    Slip("layernorm_backward_params_v2", "layernorm.cu", "params_v2(", "__syncthreads();"),
    Slip("bias_gelu_forward_v2", "gelu.cu", "void forward_columns", "c += gridDim.x * blockDim.x * W", "c += C"),
    Slip("embedding_backward_v3", "embedding.cu", "backward_v3(", "i < N &&", "i < N - 1 &&"),
    Slip("embedding_backward_v3", "embedding.cu", "backward_v3(", "first > 0 &&", "first > N &&"),
    Slip("adamw_update_v2", "adamw.cu", "long long rest", "k < head ?", "k <= head ?"),
    Slip("sum_of_squares_v2", "adamw.cu", "sum_of_squares_v2(", "thread < P - tail", "thread + 1 < P - tail"),
    Slip("cross_entropy_v1", "cross_entropy.cu", "cross_entropy_v1(", "__syncthreads();"),
    Slip("token_logprobs_forward_v2", "cross_entropy.cu", "void over_row", "tail + me < V", "tail + me + 1 < V"),
    Slip("attention_forward_v3_d32", "attention.cu", "bool sees(", "s <= n.S", "s < n.S"),
    Slip("attention_forward_v3_d32", "attention.cu", "void forward_tiles", "__syncthreads();  // values", "// values"),
    Slip(
        "attention_forward_v3_d64", "attention.cu", "void forward_tiles", "__syncthreads();  // the keys", "// the keys"
    ),
    Slip("attention_forward_v3_d32", "attention.cu", "float shrink = __expf(largest[i]", "mixed[i][m] *= shrink"),
    Slip("attention_backward_key_v3_d32", "attention.cu", "int earliest", "(n.S - n.T)", "0"),
    Slip("attention_backward_key_v3_d32", "attention.cu", "(to_value, weights, others);", "__syncthreads();"),
    Slip("matmul_v6", "matmul.cu", "left[i / 4]", "__syncthreads();"),
    Slip("low_rank_v2", "low_rank.cu", "low_rank_v2(", "blockIdx.x == 0 &&", "blockIdx.x == 1 &&"),
]


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: f"{slip.kernel}: {slip.old}")
def test_slips_are_caught(tmp_path, slip):
    """What these tests are worth: each slip must make its kernel fail."""
    case, version = next((c, v) for c in CASES for v in c.versions if c.kernel + v == slip.kernel)
    for path in [*SOURCES.glob("*.cuh"), SOURCES / f"{case.source}.cu"]:
        shutil.copy(path, tmp_path)
    changed = tmp_path / slip.file
    before, after, rest = changed.read_text().partition(slip.after)
    changed.write_text(before + after + rest.replace(slip.old, slip.new, 1))
    assert slip.old in rest
    attempt = multiprocessing.get_context("fork").Process(target=attempt_all, args=(case, version, tmp_path))
    attempt.start()  # a process of its own: what is wrong may crash, or never end
    attempt.join(120)
    attempt.kill()
    attempt.join()
    assert attempt.exitcode != 0


def attempt_all(case, version, sources):
    """Leave the process with 0 if nothing is found to be wrong."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        for shape in case.shapes:
            check(case, version, shape, sources)
    except KernelError as error:
        os._exit(0 if "g++ refuses" in str(error) else 1)  # what does not compile shows nothing
    except AssertionError:
        os._exit(1)
    os._exit(0)
