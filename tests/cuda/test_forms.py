"""The ``_cuda`` forms of the operations, on the emulated device, against the references in float64."""

import importlib
import inspect
import re
import tomllib

import numpy as np
import pytest

from kernels import Backend, get_backend
from kernels.backend import OPS
from kernels.cross_entropy import IGNORED
from tests import standin
from tests.cuda.emulated import COMPILER, SOURCES, Emulated, kernel_names
from tests.helpers import error

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the kernels run on the CPU with g++, which is not installed")

REFERENCE = get_backend("numpy", OPS).ops
TOLERANCE = 3e-6

TEACHING = {
    # What is there to be read: the operation whose own kernels, or whose products, do the same.
    "softmax": "cross_entropy",
    "matmul": "linear",
    "low_rank": "linear",
}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    standin.poison_empty(monkeypatch)


@pytest.fixture
def rng():
    return np.random.default_rng(20241107)


@pytest.fixture(params=["ascending", "descending"])
def cuda(request):
    return Backend("emulated", np, "_cuda", device=Emulated(descending=request.param == "descending"))


def frozen(*arrays):
    """float32 copies that cannot be written to."""
    copies = []
    for x in arrays:
        x = None if x is None else np.array(x, dtype=np.float32 if np.asarray(x).dtype.kind == "f" else None)
        if x is not None:
            x.flags.writeable = False
        copies.append(x)
    return copies[0] if len(copies) == 1 else copies


def strided(x):
    """The same numbers, not next to each other in memory."""
    room = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, dtype=np.float32)
    room[..., ::2] = x
    return room[..., ::2]


def close(got, wanted):
    if isinstance(wanted, tuple):
        assert len(got) == len(wanted)
        for g, w in zip(got, wanted, strict=True):
            close(g, w)
        return
    if isinstance(got, np.ndarray):
        assert got.dtype == np.float32
    assert error(got, wanted) < TOLERANCE


SHAPES = [(2, 3, 5), (4, 36), (1, 1), (7,), (0, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_layernorm(cuda, rng, shape):
    x, delta, dy, dtotal = (rng.normal(0.5, 2, shape) for _ in range(4))
    weight, bias = rng.normal(size=(2, shape[-1]))
    for layout in (frozen, strided):
        y, cache = cuda.ops.layernorm_forward(layout(x), *frozen(weight, bias), 0.3)
        wanted, reference = REFERENCE.layernorm_forward(x, weight, bias, 0.3)
        close(y, wanted)
        close(cache.normalised, reference.normalised)
        total, y, cache = cuda.ops.residual_layernorm_forward(layout(x), layout(delta), *frozen(weight, bias), 0.3)
        *wanted, reference = REFERENCE.residual_layernorm_forward(x, delta, weight, bias, 0.3)
        close((total, y), tuple(wanted))
        close(
            cuda.ops.layernorm_backward_input(layout(dy), frozen(weight), cache),
            REFERENCE.layernorm_backward_input(dy, weight, reference),
        )
        close(
            cuda.ops.residual_layernorm_backward_input(layout(dtotal), layout(dy), frozen(weight), cache),
            REFERENCE.residual_layernorm_backward_input(dtotal, dy, weight, reference),
        )
        close(cuda.ops.layernorm_backward_params(layout(dy), cache), REFERENCE.layernorm_backward_params(dy, reference))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_gelu(cuda, rng, shape, keep, biased):
    u, dy, bias = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape[-1])
    given = bias if biased else None
    for layout in (np.float32, strided):
        y, cache = cuda.ops.bias_gelu_forward(layout(u), frozen(given), keep)
        wanted, reference = REFERENCE.bias_gelu_forward(u, given)
        close(y, wanted)
        assert (cache is not None) == keep
        if keep:
            close(cuda.ops.bias_gelu_backward(layout(dy), cache), REFERENCE.bias_gelu_backward(dy, reference))


@pytest.mark.parametrize("shape", SHAPES)
def test_linear(cuda, rng, shape):
    x, weight, bias = rng.normal(size=shape), rng.normal(size=(shape[-1], 7)), rng.normal(size=7)
    dy = rng.normal(size=(*shape[:-1], 7))
    for layout in (frozen, strided, lambda x: frozen(x.T).T):
        for given in (bias, None):
            got = cuda.ops.linear_forward(layout(x), layout(weight), frozen(given))
            close(got, REFERENCE.linear_forward(x, weight, given))
        close(cuda.ops.linear_backward_input(layout(dy), layout(weight)), REFERENCE.linear_backward_input(dy, weight))
        close(cuda.ops.linear_backward_weight(layout(dy), layout(x)), REFERENCE.linear_backward_weight(dy, x))
        close(cuda.ops.linear_backward_bias(layout(dy)), REFERENCE.linear_backward_bias(dy))
    out = np.full((shape[-1], 7), np.nan, dtype=np.float32)
    assert cuda.ops.linear_backward_weight(frozen(dy), frozen(x), out=out) is out
    close(out, REFERENCE.linear_backward_weight(dy, x))


@pytest.mark.parametrize(("shape", "V", "C"), [((2, 3), 4, 5), ((40,), 7, 36), ((1, 1), 1, 1), ((0, 3), 2, 4)])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16"])
def test_embedding(cuda, rng, shape, V, C, dtype):
    ids, weight = rng.integers(0, V, shape).astype(dtype), rng.normal(size=(V, C))
    dy, start = rng.normal(size=(*shape, C)), rng.normal(size=(V, C))
    close(cuda.ops.embedding_forward(frozen(ids), frozen(weight)), REFERENCE.embedding_forward(ids, weight))
    dweight = np.float32(start)
    assert cuda.ops.embedding_backward(strided(dy), frozen(ids), dweight) is dweight
    close(dweight, REFERENCE.embedding_backward(dy, ids, start))


@pytest.mark.parametrize(
    ("B", "H", "T", "S", "D"),
    [(2, 3, 5, 5, 4), (1, 2, 1, 9, 8), (2, 1, 20, 23, 32), (1, 1, 12, 12, 40), (1, 1, 10, 70, 128), (1, 1, 9, 9, 130)],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_attention(cuda, rng, B, H, T, S, D, masked, dropped):
    q, k, v = rng.normal(size=(B, H, T, D)), *rng.normal(size=(2, B, H, S, D))
    dout = rng.normal(size=(B, T, H * D))
    key_mask = None
    if masked:
        key_mask = rng.random((B, S)) < 0.6
        key_mask[0, : S - T + 1] = False  # a query that sees nothing
    factors = (rng.random((B, H, T, S)) < 0.7) / 0.7 if dropped else None
    wanted, reference = REFERENCE.attention_forward(q, k, v, key_mask, factors)
    gradients = REFERENCE.attention_backward(dout, reference)
    for layout in (frozen, strided):
        arguments = (layout(q), layout(k), layout(v), frozen(key_mask), frozen(factors))
        out, cache = cuda.ops.attention_forward(*arguments)
        close(out, wanted)
        close(cuda.ops.attention_forward(*arguments, keep=False)[0], wanted)
        assert cuda.ops.attention_forward(*arguments, keep=False)[1] is None
        close(cuda.ops.attention_backward(layout(dout), cache), gradients)
    for places in (
        np.full((B, max(T, S), 3, H, D), np.nan, dtype=np.float32).transpose(2, 0, 3, 1, 4),
        np.full((3, B, H, max(T, S), 2 * D), np.nan, dtype=np.float32)[..., ::2],
    ):
        dq, dk, dv = (place[:, :, :n] for place, n in zip(places, (T, S, S), strict=True))
        results = cuda.ops.attention_backward(frozen(dout), cache, out=(dq, dk, dv))
        assert all(result is place for result, place in zip(results, (dq, dk, dv), strict=True))
        close(results, gradients)


def test_attention_of_more_heads_than_a_grid_has(cuda, rng):
    q, k, v, dout = np.float32(rng.normal(size=(4, 65536, 1, 1, 2)))
    out, cache = cuda.ops.attention_forward(q, k, v)
    assert (out[:, 0] == v[:, 0, 0]).all(), "one key has all the weight"
    assert (cuda.ops.attention_backward(dout[:, :, 0], cache)[2] == dout).all()


def test_a_mask_of_numbers_is_a_mask(cuda, rng):
    q, k, v = np.float32(rng.normal(size=(3, 2, 1, 9, 4)))
    mask = rng.integers(0, 2, (2, 9))
    got, wanted = (cuda.ops.attention_forward(q, k, v, m)[0] for m in (mask, mask.astype(bool)))
    assert (got == wanted).all()


@pytest.mark.parametrize(("N", "V"), [(5, 3), (1, 1), (4, 65), (3, 260), (0, 4)])
def test_log_probabilities(cuda, rng, N, V):
    logits, targets, dlogprobs = rng.normal(0, 5, (N, V)), rng.integers(0, V, N), rng.normal(size=N)
    if N > 2:
        targets[1] = IGNORED
    for dtype in ("int64", "int32"):
        values, cache = cuda.ops.token_logprobs_forward(np.float32(logits), frozen(targets.astype(dtype)))
        wanted, reference = REFERENCE.token_logprobs_forward(logits, targets) if N else (np.zeros(0), None)
        close(values, wanted)
        if N:
            dlogits = REFERENCE.token_logprobs_backward(dlogprobs, reference)
            close(cuda.ops.token_logprobs_backward(frozen(dlogprobs), cache), dlogits)


@pytest.mark.parametrize(("N", "V"), [(5, 3), (1, 1), (4, 65), (3, 260)])
@pytest.mark.parametrize("n", [None, 7.0])
def test_cross_entropy(cuda, rng, N, V, n):
    logits, targets = rng.normal(0, 5, (N, V)), rng.integers(0, V, N)
    if N > 2:
        targets[1] = IGNORED
    loss, cache = cuda.ops.cross_entropy_forward(np.float32(logits), frozen(targets), n)
    wanted, reference = REFERENCE.cross_entropy_forward(logits, targets, n)
    assert isinstance(loss, float)
    assert loss == pytest.approx(wanted, abs=1e-6)
    close(cuda.ops.cross_entropy_backward(cache), REFERENCE.cross_entropy_backward(reference))


def test_cross_entropy_makes_nothing_of_the_logits_size(cuda, rng):
    logits = np.float32(rng.normal(size=(4, 9)))
    _, cache = cuda.ops.cross_entropy_forward(logits, rng.integers(0, 9, 4))
    assert cuda.ops.cross_entropy_backward(cache) is logits


def test_cross_entropy_of_nothing(cuda):
    nothing = np.full(2, IGNORED)
    with pytest.raises(ValueError, match="no target to score: all are -100"):
        cuda.ops.cross_entropy_forward(np.zeros((2, 3), dtype=np.float32), nothing)
    loss, cache = cuda.ops.cross_entropy_forward(np.zeros((0, 3), dtype=np.float32), nothing[:0], 5.0)
    assert loss == 0
    assert cuda.ops.cross_entropy_backward(cache).shape == (0, 3)


@pytest.mark.parametrize("P", [1, 6, 1030])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw(cuda, rng, P, start, decay):
    for lr in (0.3, rng.random(P)):
        state = [rng.normal(size=P), rng.normal(size=P), rng.normal(size=P), rng.random(P)]
        ours = [np.concatenate((np.zeros(start), x)).astype(np.float32)[start:] for x in state]
        rates = lr if isinstance(lr, float) else frozen(lr)
        for step in (1, 2, 3):
            REFERENCE.adamw_update(*state, step, lr, (0.8, 0.95), 1e-3, decay)
            cuda.ops.adamw_update(*ours, step, rates, (0.8, 0.95), 1e-3, decay)
        for got, wanted in zip(ours, state, strict=True):
            close(got, wanted)
    squares = cuda.ops.sum_of_squares(frozen(state[0]))
    assert isinstance(squares, float)
    assert squares == pytest.approx(REFERENCE.sum_of_squares(np.float32(state[0])), rel=1e-12)


def test_sum_of_squares_beyond_float32(cuda):
    huge = np.full(5, 1e30, dtype=np.float32)
    assert cuda.ops.sum_of_squares(huge) == pytest.approx(5e60, rel=1e-6)
    assert cuda.ops.sum_of_squares(huge[:0]) == 0


@pytest.mark.parametrize("shape", [(3, 5), (1,), (2, 0), (700,)])
def test_dropout(cuda, shape, rng):
    x = np.float32(rng.normal(size=shape))
    for p in (0.0, 0.4):
        mask = cuda.ops.dropout_mask(shape, p, np.random.default_rng(3), x)
        close(mask, REFERENCE.dropout_mask(shape, p, np.random.default_rng(3), x))
        y, mask = cuda.ops.dropout_forward(strided(x), p, np.random.default_rng(3))
        wanted, factors = REFERENCE.dropout_forward(x, p, np.random.default_rng(3))
        close((y, mask), (wanted, factors))
        close(cuda.ops.dropout_backward(x, mask), REFERENCE.dropout_backward(x, factors))


def run_all(backend, dtype):
    """Every operation of the table once or more, and what comes out."""
    rng = np.random.default_rng(5)
    ops, results = backend.ops, []

    def new(*shape):
        return rng.normal(size=shape).astype(dtype)

    x, weight, bias, delta = new(4, 8), new(8), new(8), new(4, 8)
    y, cache = ops.layernorm_forward(x, weight, bias, 0.1)
    results += [y, ops.layernorm_backward_input(x, weight, cache), *ops.layernorm_backward_params(x, cache)]
    total, y, cache = ops.residual_layernorm_forward(x, delta, weight, bias, 0.1)
    results += [total, y, ops.residual_layernorm_backward_input(delta, x, weight, cache)]
    y, cache = ops.bias_gelu_forward(x.copy(), bias)
    results += [y, ops.bias_gelu_backward(delta.copy(), cache)]
    matrix = new(8, 3)
    y = ops.linear_forward(x, matrix, bias[:3].copy())
    results += [y, ops.linear_backward_input(y, matrix), ops.linear_backward_weight(y, x), ops.linear_backward_bias(y)]
    ids = rng.integers(0, 5, (2, 3))
    y = ops.embedding_forward(ids, new(5, 8))
    results += [y, ops.embedding_backward(y, ids, new(5, 8))]
    for T, D in ((3, 4), (12, 4), (10, 40), (9, 100)):
        q, k, v = new(3, 1, 2, T, D)
        y, cache = ops.attention_forward(q, k, v)
        results += [y, *ops.attention_backward(y, cache)]
    targets = rng.integers(0, 8, 4)
    logprobs, cache = ops.token_logprobs_forward(x.copy(), targets)
    results += [logprobs, ops.token_logprobs_backward(logprobs, cache)]
    loss, cache = ops.cross_entropy_forward(x.copy(), targets)
    results += [loss, ops.cross_entropy_backward(cache)]
    mask = ops.dropout_mask((5,), np.float64(0.5), np.random.default_rng(1), like=x)
    y, factors = ops.dropout_forward(x, 0.5, np.random.default_rng(2))
    results += [mask, y, ops.dropout_backward(y, factors)]
    p, g, m, v = new(50), new(50), new(50), np.abs(new(50))
    ops.adamw_update(p, g, m, v, 2, np.float64(0.1))
    return [*results, p, m, v, ops.sum_of_squares(g), ops.clip_coefficient(3.0, 1.0)]


def test_float64_is_the_references_business():
    cuda = Backend("emulated", np, "_cuda", device=Emulated())
    for got, wanted in zip(run_all(cuda, "float64"), run_all(get_backend("numpy", OPS), "float64"), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()
    assert not cuda.device.launched


def test_single_operations_switch_back():
    device = Emulated()
    cuda = Backend("emulated", np, "_cuda", device=device)
    wanted = run_all(cuda, "float32")
    everything = device.launched.copy()
    for op in OPS:
        device.launched.clear()
        mixed = cuda.with_reference(op)
        assert mixed.device is device
        for got, right in zip(run_all(mixed, "float32"), wanted, strict=True):
            assert error(got, right) < 1e-5
        assert device.launched == {launch for launch in everything if launch[0] != op}


def test_table():
    """Every form has a place in the table and the arguments of its reference."""
    found = set()
    for op, functions in OPS.items():
        module = importlib.import_module(f"kernels.{op}")
        for name, value in vars(module).items():
            if name.endswith("_cuda"):
                reference = name.removesuffix("_cuda")
                assert reference in functions
                names = [*inspect.signature(getattr(module, reference)).parameters, "device"]
                assert list(inspect.signature(value).parameters) == names
                found.add(reference)
    without = {name for functions in OPS.values() for name in functions} - found
    assert without == {"dropout_backward", "clip_coefficient"}, "one product; one division on the host"


def test_every_kernel_is_reached_from_the_table():
    """A .cu file that no operation launches, or whose newest version none does, is either dead or for teaching."""
    device = Emulated()
    run_all(Backend("emulated", np, "_cuda", device=device), "float32")
    files = {path.stem for path in SOURCES.glob("*.cu")}
    assert {source for source, _ in device.launched} == files - TEACHING.keys()
    assert set(TEACHING.values()) <= OPS.keys()
    for source in files - TEACHING.keys():
        names = kernel_names(SOURCES / f"{source}.cu")
        newest: dict[str, int] = {}
        versions = {name: re.fullmatch(r"(\w+?)_v(\d+)\w*", name) for name in names}
        for match in filter(None, versions.values()):
            newest[match[1]] = max(newest.get(match[1], 0), int(match[2]))
        for name, match in versions.items():
            if match is None or int(match[2]) == newest[match[1]]:
                assert (source, name) in device.launched, f"{name} of {source}.cu is never launched"


def test_kernels_are_part_of_the_package():
    package = SOURCES.parent
    patterns = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path for pattern in patterns["kernels"] for path in package.glob(pattern)}
    assert {path for path in SOURCES.iterdir() if path.suffix not in (".py", "")} == shipped


def test_same_bits_in_any_order():
    runs = [
        run_all(Backend("emulated", np, "_cuda", device=Emulated(descending=descending)), "float32")
        for descending in (False, True)
    ]
    for first, second in zip(*runs, strict=True):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes()
