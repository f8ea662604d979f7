"""Products as cuBLAS is asked for them, on an emulation of cuBLAS that sees raw memory by columns and nothing else."""

import itertools

import numpy as np
import pytest

from kernels.cuda.blas import Matrices, StridedGemm, matrices
from tests.helpers import error

ITEM = 4


def by_columns(x, rows, columns, ld, stride, batch, address):
    """Matrices in memory as cuBLAS reads them: element (i, j) of number p is p·stride + i + j·ld after the start."""
    assert ld >= max(1, rows), "cuBLAS refuses a leading dimension smaller than a column"
    assert stride >= 0
    last = (batch - 1) * stride + (rows - 1) + (columns - 1) * ld
    whole = x
    while whole.base is not None:
        whole = whole.base
    assert isinstance(whole, np.ndarray)
    begin = (address - whole.ctypes.data) // ITEM
    assert 0 <= begin <= begin + last < whole.size, "outside of the array's memory"
    memory = np.lib.stride_tricks.as_strided(whole.reshape(-1, order="A")[begin:], (last + 1,), (ITEM,))
    return np.lib.stride_tricks.as_strided(memory, (batch, rows, columns), (stride * ITEM, ITEM, ld * ITEM))


class ByColumns(StridedGemm):
    """What gemmStridedBatchedEx does with its arguments."""

    def __init__(self):
        self.calls = []
        self.copies = 0

    def _operand(self, x, readable):
        self.copies += not readable
        return super()._operand(x, readable)

    def _multiply(self, call, first, second, out, accumulate):
        self.calls.append(call)
        _, transa, transb, m, n, k, lda, stride_a, ldb, stride_b, ldc, stride_c, batch = call
        a = by_columns(first, *((k, m) if transa else (m, k)), lda, stride_a, batch, first.ctypes.data)
        b = by_columns(second, *((n, k) if transb else (k, n)), ldb, stride_b, batch, second.ctypes.data)
        c = by_columns(out, m, n, ldc, stride_c, batch, out.ctypes.data)
        for p in range(batch):  # one after the other: where results share memory this shows
            product = (a[p].T if transa else a[p]) @ (b[p].T if transb else b[p])
            c[p] = c[p] + product if accumulate else product


def rows_apart(rng, shape):
    """A part of wider rows, with more before and after."""
    return rng.standard_normal((*shape[:-1], shape[-1] + 3), dtype=np.float32)[..., 1:-2]


LAYOUTS = {
    "by rows": lambda rng, s: rng.standard_normal(s, dtype=np.float32),
    "by columns": lambda rng, s: rng.standard_normal((*s[:-2], s[-1], s[-2]), dtype=np.float32).swapaxes(-1, -2),
    "part of wider rows": rows_apart,
    "part of longer columns": lambda rng, s: rows_apart(rng, (*s[:-2], s[-1], s[-2])).swapaxes(-1, -2),
}
NEED_COPIES = {
    "every second column": lambda rng, s: rng.standard_normal((*s[:-1], 2 * s[-1]), dtype=np.float32)[..., ::2],
    "backwards": lambda rng, s: rng.standard_normal(s, dtype=np.float32)[..., ::-1, :],
    "one row for all": lambda rng, s: np.broadcast_to(rng.standard_normal((*s[:-2], 1, s[-1]), dtype=np.float32), s),
}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def check(gemm, a, b, out=None, accumulate=False, **flags):
    """One product against NumPy's, with operands that must stay as they are; gives the result."""
    before = a.copy(), b.copy()
    left = a.swapaxes(-1, -2) if flags.get("transpose_a") else a
    right = b.swapaxes(-1, -2) if flags.get("transpose_b") else b
    expected = left.astype(np.float64) @ right.astype(np.float64)
    if accumulate:
        expected = out.astype(np.float64) + expected
    elif out is not None:
        out[...] = np.nan  # what was there must not be read
    got = gemm.gemm(a, b, out, accumulate=accumulate, **flags)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert error(got, expected) < 1e-6
    assert out is None or got is out
    assert all((x == y).all() for x, y in zip((a, b), before, strict=True))
    return got


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (1, 4), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("size", list(itertools.product((1, 4), (1, 3), (1, 5))), ids=str)
def test_every_layout(rng, size, batch):
    m, n, k = size
    wide = rng.standard_normal((*batch, m, n + 2), dtype=np.float32)
    for (_, make_a), (_, make_b) in itertools.product(LAYOUTS.items(), repeat=2):
        a, b = make_a(rng, (*batch, m, k)), make_b(rng, (*batch, k, n))
        for flags in ({}, {"transpose_a": True}, {"transpose_b": True}, {"transpose_a": True, "transpose_b": True}):
            left = a.swapaxes(-1, -2) if "transpose_a" in flags else a
            right = b.swapaxes(-1, -2) if "transpose_b" in flags else b
            gemm = ByColumns()
            check(gemm, left, right, **flags)
            for out in (wide[..., 1:-1], np.empty((*batch, n, m), dtype=np.float32).swapaxes(-1, -2)):
                check(gemm, left, right, out, **flags)
                check(gemm, left, right, out, accumulate=True, **flags)
            assert gemm.copies == 0
            assert len(gemm.calls) == 5
    assert np.isfinite(wide).all(), "something beside the result was written"


@pytest.mark.parametrize("kind", list(NEED_COPIES))
def test_what_cannot_be_read_as_it_lies_is_copied(rng, kind):
    gemm = ByColumns()
    a, b = NEED_COPIES[kind](rng, (3, 4, 6)), LAYOUTS["by rows"](rng, (3, 6, 5))
    check(gemm, a, b)
    check(gemm, b, a, transpose_a=True, transpose_b=True)
    assert gemm.copies == 2
    out = np.zeros((3, 4, 10), dtype=np.float32)[..., ::2]
    check(gemm, a, b, out)
    check(gemm, a, b, out, accumulate=True)


@pytest.mark.parametrize(("lead_a", "lead_b"), [((), (4,)), ((4,), ()), ((1,), (4,)), ((2, 3), (3,)), ((2, 1), (2, 3))])
def test_leading_axes_broadcast(rng, lead_a, lead_b):
    gemm = ByColumns()
    a, b = (rng.standard_normal((*lead, *s), dtype=np.float32) for lead, s in ((lead_a, (3, 4)), (lead_b, (4, 2))))
    out = check(gemm, a, b)
    check(gemm, a, b, out, accumulate=True)
    check(gemm, b, a, transpose_a=True, transpose_b=True)


def test_one_matrix_for_all_is_not_repeated_in_memory(rng):
    gemm = ByColumns()
    a, b = rng.standard_normal((4, 3, 5), dtype=np.float32), rng.standard_normal((5, 2), dtype=np.float32)
    check(gemm, a, b)
    assert gemm.copies == 0
    assert gemm.calls[0].b_first
    assert gemm.calls[0].stride_a == 0


def test_heads_of_attention_are_read_where_they_lie(rng):
    # Queries, keys and values side by side, as the layer has them, one sequence: no copy, not even of kᵀ.
    T, H, D = 5, 3, 4
    q, k, v = rng.standard_normal((1, T, 3, H, D), dtype=np.float32).transpose(2, 0, 3, 1, 4)
    gemm = ByColumns()
    scores = check(gemm, q, k, transpose_b=True)
    out = np.empty((1, T, H, D), dtype=np.float32).swapaxes(1, 2)
    check(gemm, scores, v, out)
    gradients = np.empty((1, T, 3, H, D), dtype=np.float32).transpose(2, 0, 3, 1, 4)
    check(gemm, scores, out, gradients[2], transpose_a=True)
    assert gemm.copies == 0
    assert [call.batch for call in gemm.calls] == [H, H, H]


def test_results_that_share_memory_are_made_apart(rng):
    # Two distances between matrices cannot be told to cuBLAS: the result is made elsewhere and copied.
    B, T, H, D = 2, 5, 3, 4
    q, k, _ = rng.standard_normal((B, T, 3, H, D), dtype=np.float32).transpose(2, 0, 3, 1, 4)
    gemm = ByColumns()
    scores = check(gemm, q, k, transpose_b=True)
    out = np.full((B, T, H, D), 7, dtype=np.float32).swapaxes(1, 2)
    check(gemm, scores, k, out)
    check(gemm, scores, k, out, accumulate=True)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_nothing_to_multiply(batch):
    gemm = ByColumns()
    for m, n, k in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        a, b = np.ones((*batch, m, k), dtype=np.float32), np.ones((*batch, k, n), dtype=np.float32)
        out = np.full((*batch, m, n), 5, dtype=np.float32)
        assert (gemm.gemm(a, b, out, accumulate=True) == 5).all()
        assert (gemm.gemm(a, b, out) == 0).all()
        assert gemm.gemm(a, b).shape == out.shape
    assert gemm.gemm(np.ones((0, 2, 3), np.float32), np.ones((3, 4), np.float32)).shape == (0, 2, 4)
    assert not gemm.calls


def test_what_does_not_fit_is_refused():
    gemm, x = ByColumns(), np.ones((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="3 columns, 2 rows"):
        gemm.gemm(x, x)
    with pytest.raises(ValueError, match=r"out is \(2, 3\), the product is \(2, 2\)"):
        gemm.gemm(x, x, x, transpose_b=True)
    with pytest.raises(ValueError, match="accumulate"):
        gemm.gemm(x, x, transpose_b=True, accumulate=True)
    with pytest.raises(TypeError, match="float64"):
        gemm.gemm(x, x.astype(np.float64), transpose_b=True)


def test_matrices():
    assert matrices((3, 4), (4, 1), ()) == Matrices(True, 4, 0)
    assert matrices((3, 4), (9, 1), ()) == Matrices(True, 9, 0)
    assert matrices((3, 4), (1, 3), ()) == Matrices(False, 3, 0)
    assert matrices((3, 4), (1, 2), ()) is None  # columns that overlap
    assert matrices((3, 4), (0, 1), ()) is None
    assert matrices((3, 4), (-4, 1), ()) is None
    assert matrices((1, 4), (77, 1), ()) == Matrices(True, 4, 0)
    assert matrices((3, 1), (1, 77), ()) == Matrices(True, 1, 0)
    assert matrices((5, 2, 3, 4), (24, 12, 4, 1), (5, 2)) == Matrices(True, 4, 12)
    assert matrices((5, 2, 3, 4), (30, 12, 4, 1), (5, 2)) is None
    assert matrices((5, 1, 3, 4), (30, 12, 4, 1), (5, 1)) == Matrices(True, 4, 30)
    assert matrices((3, 4), (4, 1), (5, 2)) == Matrices(True, 4, 0)
    assert matrices((2, 3, 4), (12, 4, 1), (5, 2)) is None  # all over again for each of five: no one distance
