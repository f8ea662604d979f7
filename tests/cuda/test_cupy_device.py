"""Matrix products through CuPy's cuBLAS, on a fake of it; and what is said where there is no GPU for them."""

import itertools
import pickle

import numpy as np
import pytest

from kernels import get_backend
from kernels.cuda.cupy_device import CupyDevice
from tests.cuda.fake_cupy import POOL, install
from tests.helpers import error
from tests.standin import standin, synchronisations

BOUNDS = {"float32": (0, 1e-6), "tf32": (1e-5, 3e-3), "bfloat16": (3e-4, 1e-2)}
"""Least and largest error of products of random numbers: a precision must show, and no more than its own."""


@pytest.fixture
def cupy(monkeypatch):
    return install(monkeypatch)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def bfloat16(x):
    """The nearest number with 8 significant bits, ties to even, by way of exact arithmetic in float64."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256), exponent - 8)


@pytest.mark.parametrize("precision", list(BOUNDS))
@pytest.mark.parametrize("batch", [(), (3,), (1, 2)], ids=str)
def test_products(cupy, rng, precision, batch):
    device = CupyDevice(precision)
    a, b = (rng.standard_normal((*batch, *s), dtype=np.float32) for s in ((6, 8), (8, 5)))
    exact = a.astype(np.float64) @ b
    at, bt = (np.ascontiguousarray(x.swapaxes(-1, -2)) for x in (a, b))
    low, high = BOUNDS[precision]
    for ta, tb in itertools.product((False, True), repeat=2):
        x, y = standin.asarray(at if ta else a), standin.asarray(bt if tb else b)
        with synchronisations() as waits:
            out = device.gemm(x, y, transpose_a=ta, transpose_b=tb)
            total = device.gemm(x, y, out * 1, transpose_a=ta, transpose_b=tb, accumulate=True)
            views = device.gemm(x.swapaxes(-1, -2) if ta else x, y.swapaxes(-1, -2) if tb else y)
        assert not waits
        assert low <= error(out.get(), exact) <= high
        assert low <= error(total.get(), 2 * exact) <= high
        assert (views.get() == out.get()).all()
        assert out.dtype == np.float32
    assert set(cupy.cuda.cublas.calls) == {"gemmStridedBatchedEx" if batch else "gemmEx"}


def test_bfloat16_rounds_each_operand_once(cupy, rng):
    a, b = (rng.standard_normal(s, dtype=np.float32) for s in ((6, 8), (8, 5)))
    got = CupyDevice("bfloat16").gemm(standin.asarray(a), standin.asarray(b)).get()
    assert error(got, bfloat16(a) @ bfloat16(b)) < 1e-6


def test_rounding_to_bfloat16(cupy, rng):
    x = np.concatenate([
        rng.standard_normal(2000), 10.0 ** rng.uniform(-37, 38, 2000), [0.0, -0.0, 1.0, np.inf, -np.inf, 3.4e38],
        1 + np.arange(64) / 2048,  # with ties, which go to the even one: some down, some up
    ]).astype(np.float32)  # fmt: skip
    bits = CupyDevice("bfloat16")._operand(standin.asarray(x), readable=True).get()
    values = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        assert (values == bfloat16(x).astype(np.float32)).all()
    assert (np.signbit(values) == np.signbit(x)).all()
    nans = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], dtype=np.uint32).view(np.float32)
    bits = CupyDevice("bfloat16")._operand(standin.asarray(nans), readable=True).get()
    assert np.isnan((bits.astype(np.uint32) << np.uint32(16)).view(np.float32)).all()


@pytest.mark.parametrize("precision", list(BOUNDS))
def test_views_that_attention_has(cupy, rng, precision):
    # Also in bfloat16 a converted operand keeps its order in memory, so that it need not be copied once more.
    T, H, D = 5, 3, 4
    host = rng.standard_normal((1, T, 3, H, D), dtype=np.float32)
    q, k, v = standin.asarray(host).transpose(2, 0, 3, 1, 4)
    hq, hk, hv = host.astype(np.float64).transpose(2, 0, 3, 1, 4)
    device = CupyDevice(precision)
    scores = device.gemm(q, k, transpose_b=True)
    out = standin.empty((1, T, H, D), dtype=np.float32).swapaxes(1, 2)
    device.gemm(scores, v, out)
    high = BOUNDS[precision][1]
    assert error(scores.get(), hq @ hk.swapaxes(-1, -2)) < high
    assert error(out.get(), hq @ hk.swapaxes(-1, -2) @ hv) < 2 * high
    turned = device._operand(k.swapaxes(-1, -2), True)
    assert turned.strides[-2] == turned.itemsize, "turned round on the way"
    wide = standin.asarray(rng.standard_normal((2, 3, 8), dtype=np.float32))[..., ::2]
    assert error(device.gemm(wide, q[0, :2, :4]).get(), wide.get().astype(np.float64) @ hq[0, :2, :4]) < high


def test_the_backend(cupy):
    for precision in BOUNDS:
        backend = get_backend("cupy", ["gelu"], precision)
        assert backend.xp is cupy
        assert backend.precision == backend.device.precision == precision
        assert backend.reference == {"gelu"}
        twin = pickle.loads(pickle.dumps(backend))
        assert (twin.name, twin.reference, twin.precision) == ("cupy", {"gelu"}, precision)
        assert backend.with_reference("linear").precision == precision
        assert backend.ops.bias_gelu_forward.__name__ == "bias_gelu_forward"
        assert backend.ops.linear_forward.func.__name__ == "linear_forward_cuda"
        assert backend.ops.linear_forward.keywords == {"device": backend.device}
    assert get_backend("cupy").precision == "float32"
    assert get_backend("numpy").precision == "float32"


@pytest.mark.parametrize(("capability", "precision", "least"), [
    ("70", "float32", "7.5"), ("75", "tf32", "8.0"), ("75", "bfloat16", "8.0"), ("61", "float32", "7.5"),
])  # fmt: skip
def test_a_gpu_that_is_too_old(monkeypatch, capability, precision, least):
    install(monkeypatch, capability)
    with pytest.raises(ValueError, match="compute capability") as refusal:
        get_backend("cupy", (), precision)
    assert str(refusal.value) == (
        f"backend 'cupy' needs a GPU of compute capability {least} or newer for {precision}; "
        f"this one has {capability[0]}.{capability[1]}"
    )


@pytest.mark.parametrize(("capability", "precision"), [("75", "float32"), ("80", "tf32"), ("100", "bfloat16")])
def test_a_gpu_that_is_new_enough(monkeypatch, capability, precision):
    install(monkeypatch, capability)
    assert get_backend("cupy", (), precision).precision == precision


def test_precisions_are_told(cupy):
    with pytest.raises(ValueError, match=r"'float16'.*float32, tf32, bfloat16"):
        get_backend("cupy", (), "float16")
    with pytest.raises(ValueError, match=r"'tf32'.*cupy; numpy"):
        get_backend("numpy", (), "tf32")
    with pytest.raises(ValueError, match=r"'tf32'.*cupy"):
        get_backend(get_backend("numpy"), (), "tf32")


def test_kernels_are_compiled_once_and_launched_as_asked(cupy, monkeypatch):
    made, launches = [], []

    class RawModule:
        def __init__(self, code, options):
            made.append((code, options))

        def get_function(self, name):
            assert f"{name}(" in made[-1][0]

            class Function:
                def __call__(self, grid, block, args, shared_mem):
                    launches.append((name, grid, block, args, shared_mem, vars(self)))

            return Function()

    monkeypatch.setattr(cupy, "RawModule", RawModule, raising=False)
    device, x = CupyDevice(), cupy.zeros(3)
    device.launch("adamw", "adamw_update_v1", (0, 1), (128,), (x,))
    for shared in (0, 48 * 1024, 100 * 1024, 0):
        device.launch("adamw", "adamw_update_v1", (2, 1), (128,), (x, np.int32(3)), shared)
    CupyDevice().launch("adamw", "adamw_update_v1", (1,), (32,), ())
    assert len(made) == 1
    assert "-std=c++17" in made[0][1]
    assert [launch[4] for launch in launches] == [0, 48 * 1024, 100 * 1024, 0, 0]
    assert launches[0][:3] == ("adamw_update_v1", (2, 1), (128,))
    assert launches[0][3][0] is x
    assert launches[2][5] == {"max_dynamic_shared_size_bytes": 100 * 1024}


def test_a_generator_is_made_when_it_is_drawn_from(cupy, monkeypatch):
    made = []
    philox = cupy.random.Philox4x3210
    monkeypatch.setattr(cupy.random, "Philox4x3210", lambda seed: made.append(seed) or philox(seed))
    backend = get_backend("cupy")
    first, second = backend.rng([1, 2]), backend.rng([1, 2])
    assert not made
    x = first.random((3,), dtype=np.float32)
    assert (x.get() == second.random((3,), dtype=np.float32).get()).all()
    assert (x.get() != first.random((3,), dtype=np.float32).get()).any()
    assert made == [[1, 2], [1, 2]]


def test_memory_of_the_pool(cupy):
    backend = get_backend("cupy")
    POOL.take(1000)
    with backend.memory() as meter:
        before = meter.now()
        POOL.take(512)
        POOL.take(4096)
        POOL.take(-4096)
        assert meter.now() - before == 512
        assert meter.peak() - before == 512 + 4096
    POOL.take(1 << 20)
    assert meter.peak() - before == 512 + 4096, "counting has not ended"
    POOL.take(-POOL.used)
