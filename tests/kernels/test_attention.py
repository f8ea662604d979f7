"""Causal attention: masks, keys from before, dropout, blocks of queries, scores of any size."""

import math
import warnings

import numpy as np
import pytest

import kernels.attention
from kernels import get_backend
from kernels.backend import OPS
from tests.helpers import assert_gradient, error

# B, H, T, S, D: several of each, one of each, one head, one query, keys from before, one query on many keys
PIECES = {"kernels.attention.BLOCK": 2}

SHAPES = [
    (2, 3, 5, 5, 2),
    (1, 1, 1, 1, 1),
    (2, 1, 4, 4, 3),
    (1, 2, 3, 7, 1),
    (1, 2, 5, 6, 2),
    (2, 1, 1, 6, 4),
    (3, 2, 2, 2, 1),
]
EVERYTHING = [(False, False), (True, False), (False, True), (True, True)]


def arrays(rng, B, H, T, S, D, scale=1.0):
    q, k, v = (rng.normal(0, scale, size=(B, H, n, D)) for n in (T, S, S))
    return q, k, rng.normal(size=v.shape), rng.normal(size=(B, T, H * D))


def masks(rng, B, H, T, S, padded, dropped):
    key_mask = dropout_mask = None
    if padded:
        key_mask = rng.random((B, S)) < 0.6
        key_mask[0, : S - T + 1] = False  # in the first row the first query sees nothing
        key_mask[-1, -1] = True
    if dropped:
        dropout_mask = (rng.random((B, H, T, S)) < 0.7) / 0.7
    return key_mask, dropout_mask


def textbook(q, k, v, key_mask=None, dropout_mask=None):
    """Loops over all indices, in the words of the definition."""
    B, H, T, D = q.shape
    S = k.shape[2]
    out = np.zeros((B, T, H, D))
    for b, h, t in np.ndindex(B, H, T):
        seen = [s for s in range(S) if s <= S - T + t and (key_mask is None or key_mask[b, s])]
        if not seen:
            continue
        scores = {s: float(q[b, h, t] @ k[b, h, s]) / math.sqrt(D) for s in seen}
        highest = max(scores.values())
        total = sum(math.exp(z - highest) for z in scores.values())
        for s, z in scores.items():
            factor = 1.0 if dropout_mask is None else dropout_mask[b, h, t, s]
            out[b, t, h] += math.exp(z - highest) / total * factor * v[b, h, s]
    return out.reshape(B, T, H * D)


def put_all(form, *arrays):
    return [None if a is None else form.put(a) for a in arrays]


@pytest.mark.parametrize(("padded", "dropped"), EVERYTHING)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(form, rng, shape, padded, dropped):
    q, k, v, dout = arrays(rng, *shape)
    masked = masks(rng, *shape[:4], padded, dropped)

    def forward(q, k, v):
        return form.host(form.ops.attention_forward(*put_all(form, q, k, v, *masked))[0])

    out, cache = form.ops.attention_forward(*put_all(form, q, k, v, *masked))
    assert error(form.host(out), textbook(q, k, v, *masked)) < 1e-13
    dq, dk, dv = (form.host(d) for d in form.ops.attention_backward(form.put(dout), cache))
    assert_gradient(dq, lambda q: forward(q, k, v), q, dout, "dq")
    assert_gradient(dk, lambda k: forward(q, k, v), k, dout, "dk")
    assert_gradient(dv, lambda v: forward(q, k, v), v, dout, "dv")


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("shape", [(2, 3, 5, 5, 2), (1, 2, 3, 7, 1), (2, 1, 1, 1, 4)])
def test_gradients_are_written_into_their_slots(form, rng, shape, scale):
    # In the model the three stand side by side in one array, as the inputs do. With the second scale the scores are too
    # large for the fast form, which must write there all the same.
    B, H, T, S, D = shape
    q, k, v, dout = arrays(rng, *shape, scale)
    _, cache = form.ops.attention_forward(*put_all(form, q, k, v))
    expected = form.ops.attention_backward(form.put(dout), cache)
    together = form.scratch(np.full((B, T + 2 * S, H, D), np.nan))
    slots = together[:, :T], together[:, T : T + S], together[:, T + S :]
    slots = tuple(slot.transpose(0, 2, 1, 3) for slot in slots)
    results = form.ops.attention_backward(form.put(dout), cache, out=slots)
    for slot, result, right in zip(slots, results, expected, strict=True):
        assert error(form.host(slot), form.host(right)) < 1e-14
        assert error(form.host(result), form.host(right)) < 1e-14


def test_strided_inputs(form, rng):
    B, T, H, D = 2, 5, 3, 2
    together = rng.normal(size=(B, T, 3, H, D))
    q, k, v = form.put(together).transpose(2, 0, 3, 1, 4)
    dout = rng.normal(size=(B, T, H * D))
    out, cache = form.ops.attention_forward(q, k, v)
    plain = [form.put(np.ascontiguousarray(a)) for a in together.transpose(2, 0, 3, 1, 4)]
    expected, expected_cache = form.ops.attention_forward(*plain)
    assert error(form.host(out), form.host(expected)) < 1e-14
    for got, right in zip(
        form.ops.attention_backward(form.put(dout), cache),
        form.ops.attention_backward(form.put(dout), expected_cache),
        strict=True,
    ):
        assert error(form.host(got), form.host(right)) < 1e-14


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_nothing_is_kept_where_no_backward_follows(form, rng, scale):
    q, k, v, _ = arrays(rng, 2, 2, 5, 6, 3, scale)
    masked = masks(rng, 2, 2, 5, 6, True, True)
    kept, _ = form.ops.attention_forward(*put_all(form, q, k, v, *masked))
    out, cache = form.ops.attention_forward(*put_all(form, q, k, v, *masked), keep=False)
    assert cache is None
    assert error(form.host(out), form.host(kept)) == 0


def test_future_and_padding_have_no_influence(form, rng):
    # Not even where they are so large that they would win every softmax.
    q, k, v, _ = arrays(rng, 2, 2, 4, 6, 3)
    key_mask = np.array([[1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]], dtype=bool)
    before = form.host(form.ops.attention_forward(*put_all(form, q, k, v, key_mask))[0])
    for unseen in (1.0, 1e3):
        k2, v2 = k.copy(), v.copy()
        k2[:, :, 5] = unseen * rng.normal(size=(2, 2, 3))  # only the last query sees the last key
        v2[:, :, 5] = 7.0
        for array in (k2, v2):
            array.swapaxes(1, 2)[~key_mask] = unseen
        after = form.host(form.ops.attention_forward(*put_all(form, q, k2, v2, key_mask))[0])
        assert error(after[:, :3], before[:, :3]) < 1e-13
        assert error(after[1, 0], np.zeros(6)) == 0  # sees nothing: zeros, and no 0/0
        assert np.isfinite(after).all()


def test_padding_gets_no_gradient(form, rng):
    q, k, v, dout = arrays(rng, 2, 2, 3, 5, 2)
    key_mask = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 1, 1]], dtype=bool)
    _, cache = form.ops.attention_forward(*put_all(form, q, k, v, key_mask))
    dq, dk, dv = (form.host(d) for d in form.ops.attention_backward(form.put(dout), cache))
    for gradient in (dk, dv):
        assert (gradient.swapaxes(1, 2)[~key_mask] == 0).all()
        assert (gradient.swapaxes(1, 2)[key_mask] != 0).any()
    assert (dq[1, :, 0] == 0).all()  # a query that sees nothing


# ------------------------------------------------------------------------------- against the reference


def both_forms(q, k, v, dout, key_mask=None, dropout_mask=None):
    results = []
    for backend in (get_backend("numpy", OPS), get_backend("numpy")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out, cache = backend.ops.attention_forward(q, k, v, key_mask, dropout_mask)
            results.append((out, *backend.ops.attention_backward(dout, cache)))
    return results


@pytest.mark.parametrize(("padded", "dropped"), EVERYTHING)
@pytest.mark.parametrize(("T", "S"), [(63, 63), (64, 64), (65, 65), (1, 129), (128, 128), (130, 133), (70, 200)])
def test_blocks_of_real_size(rng, T, S, padded, dropped):
    q, k, v, dout = arrays(rng, 2, 2, T, S, 5)
    masked = masks(rng, 2, 2, T, S, padded, dropped)
    reference, fast = both_forms(q, k, v, dout, *masked)
    for name, a, b in zip(("out", "dq", "dk", "dv"), fast, reference, strict=True):
        assert error(a, b) < 1e-12, name


def extreme_scores(rng, case):
    """Queries and keys whose scores q·k/√D are what the case says, to a unit or so."""
    B, H, T, D = 2, 2, 9, 4
    q, k, v, dout = arrays(rng, B, H, T, T, D)
    if case == "200":
        q *= 200 / abs(q @ k.swapaxes(-1, -2) / 2).max()
    elif case == "all 200":
        q[..., 0], k[..., 0] = 20.0, 20.0
    elif case == "all -200":
        q[..., 0], k[..., 0] = 20.0, -20.0
    elif case == "rows 500 apart":
        q[..., 0], k[..., 0] = np.where(np.arange(T) % 2, 25.0, -25.0), 20.0
    elif case == "one block only":
        q[:, :, 6:8, 0], k[..., 0] = 20.0, 20.0
    elif case == "hidden winner":
        k[:, :, -1] = 1e3
    elif case == "10000":
        q *= 1e4
    return q, k, v, dout


@pytest.mark.parametrize(("padded", "dropped"), [(False, False), (True, True)])
@pytest.mark.parametrize("block", [2, 64])
@pytest.mark.parametrize(
    "case", ["200", "all 200", "all -200", "rows 500 apart", "one block only", "hidden winner", "10000"]
)
def test_scores_of_any_size(rng, monkeypatch, case, block, padded, dropped):
    monkeypatch.setattr(kernels.attention, "BLOCK", block)
    q, k, v, dout = extreme_scores(rng, case)
    masked = masks(rng, *q.shape[:3], k.shape[2], padded, dropped)
    reference, fast = both_forms(q, k, v, dout, *masked)
    assert error(reference[0], textbook(q, k, v, *masked)) < 1e-11
    for name, a, b in zip(("out", "dq", "dk", "dv"), fast, reference, strict=True):
        assert np.isfinite(b).all(), name
        assert error(a, b) < 1e-12, name


@pytest.mark.parametrize("case", ["200", "all 200", "all -200", "rows 500 apart", "one block only", "10000"])
def test_scores_of_any_size_in_float32(rng, case):
    arrays64 = extreme_scores(rng, case)
    arrays32 = [a.astype("float32") for a in arrays64]
    exact = both_forms(*(a.astype("float64") for a in arrays32))[0]
    for results in both_forms(*arrays32):
        for name, a, b in zip(("out", "dq", "dk", "dv"), results, exact, strict=True):
            assert a.dtype == np.float32
            assert np.isfinite(a).all(), name
            # A score of 500 is known to 500·2⁻²⁴ in float32, and so is the logarithm of each probability.
            # Where one key takes everything, the exact gradient is far below that.
            assert error(a, b, floor=1.0) < 1e-3, name


@pytest.mark.parametrize("score", [-59.0, 59.0])
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_limits_of_the_unnormalised_softmax_in_float32(rng, score, size):
    # exp(±59) sums over the keys, and the gradient is divided by that sum: still far from float32's ends.
    B, H, T, D = 1, 2, 70, 4
    q, k, v, dout = (a.astype("float32") for a in arrays(rng, B, H, T, T, D, 0.2))
    q[..., 0], k[..., 0] = math.sqrt(2 * abs(score)), math.copysign(math.sqrt(2 * abs(score)), score)
    dout *= np.float32(size)
    exact = both_forms(*(a.astype("float64") for a in (q, k, v, dout)))[0]
    fast = both_forms(q, k, v, dout)[1]
    _, cache = get_backend("numpy").ops.attention_forward(q, k, v)
    assert isinstance(cache, kernels.attention.FastAttentionCache), "the scores are not inside the limits"
    for name, a, b in zip(("out", "dq", "dk", "dv"), fast, exact, strict=True):
        assert error(a, b) < 1e-4, name


@pytest.mark.parametrize(("padded", "dropped"), [(False, False), (True, True)])
def test_float32_stays_float32(form, rng, padded, dropped):
    shape = (2, 3, 33, 40, 8) if form.name != "pieces" else (2, 3, 7, 9, 8)
    q, k, v, dout = (a.astype("float32") for a in arrays(rng, *shape))
    key_mask, dropout_mask = masks(rng, *shape[:4], padded, dropped)
    single_mask = None if dropout_mask is None else dropout_mask.astype("float32")
    out, cache = form.ops.attention_forward(*put_all(form, q, k, v, key_mask, single_mask))
    results = (out, *form.ops.attention_backward(form.put(dout), cache))
    exact = both_forms(*(a.astype("float64") for a in (q, k, v, dout)), key_mask, dropout_mask)[0]
    for name, a, b in zip(("out", "dq", "dk", "dv"), results, exact, strict=True):
        assert a.dtype == np.float32, name
        assert error(form.host(a), b) < 1e-5, name


# ------------------------------------------------------------------------------------------- its parts


def test_heads_are_consecutive_columns(rng):
    x = rng.normal(size=(2, 3, 8))
    heads = kernels.attention.split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert (heads[1, 3, 2] == x[1, 2, 6:8]).all()
    assert (kernels.attention.merge_heads(heads) == x).all()


def test_visible():
    like = np.zeros(1)
    assert kernels.attention.visible(2, 4, None, like).tolist() == [[True, True, True, False], [True] * 4]
    key_mask = np.array([[False, True, True, True], [True, True, False, True]])
    assert kernels.attention.visible(1, 4, key_mask, like).tolist() == [
        [[[False, True, True, True]]],
        [[[True, True, False, True]]],
    ]


def test_softmax_of_rows():
    scores = np.array([[0.0, math.log(3), 50.0], [1e4, -1e4, 1e4], [1.0, 2.0, 3.0]])
    mask = np.array([[True, True, False], [True, True, True], [False, False, False]])
    expected = [[0.25, 0.75, 0], [0.5, 0, 0.5], [0, 0, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert error(kernels.attention.softmax(scores, mask), np.array(expected)) < 1e-12
