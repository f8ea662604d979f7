"""Log-probabilities and cross-entropy: ignored targets, shares of a batch, logits of any size."""

import math
import warnings

import numpy as np
import pytest

import kernels.cross_entropy
from kernels import get_backend
from kernels.backend import OPS
from tests.helpers import assert_gradient, error

SHAPES = [(7, 5), (1, 1), (1, 6), (4, 1), (6, 2)]
IGNORED = -100


def arrays(rng, N, V):
    targets = rng.integers(0, V, size=N)
    targets[1::3] = IGNORED
    if N > 3:
        targets[2] = targets[3]
    return rng.normal(0, 2, size=(N, V)), targets


def textbook(logits, targets):
    values = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        highest = max(row)
        total = sum(math.exp(z - highest) for z in row)
        values.append(0.0 if target == IGNORED else row[target] - highest - math.log(total))
    return np.array(values)


@pytest.mark.parametrize("integers", ["int64", "int32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_token_logprobs(form, rng, shape, integers):
    logits, targets = arrays(rng, *shape)
    targets = targets.astype(integers)
    dlogprobs = rng.normal(size=shape[0])  # a gradient for the ignored rows too, which must go nowhere

    def forward(logits):
        return form.ops.token_logprobs_forward(form.scratch(logits), form.put(targets))

    values, cache = forward(logits)
    assert error(form.host(values), textbook(logits, targets), floor=1.0) < 1e-14
    dlogits = form.host(form.ops.token_logprobs_backward(form.put(dlogprobs), cache))
    assert_gradient(dlogits, lambda logits: form.host(forward(logits)[0]), logits, dlogprobs)
    assert (dlogits[targets == IGNORED] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_scored", [None, 11])
def test_cross_entropy(form, rng, shape, n_scored):
    logits, targets = arrays(rng, *shape)
    n = (targets != IGNORED).sum() if n_scored is None else n_scored

    def forward(logits):
        loss, cache = form.ops.cross_entropy_forward(form.scratch(logits), form.put(targets), n_scored)
        return form.number(loss), cache

    loss, cache = forward(logits)
    assert error(loss, -textbook(logits, targets).sum() / n, floor=1.0) < 1e-14
    dlogits = form.host(form.ops.cross_entropy_backward(cache))
    assert_gradient(dlogits, lambda logits: forward(logits)[0], logits, 1.0)
    assert (dlogits[targets == IGNORED] == 0).all()


def test_shares_add_up(form, rng):
    logits, targets = arrays(rng, 8, 5)
    n = int((targets != IGNORED).sum())
    whole, cache = form.ops.cross_entropy_forward(form.scratch(logits), form.put(targets))
    dlogits = form.host(form.ops.cross_entropy_backward(cache))
    total, parts = 0.0, []
    for rows in (slice(0, 1), slice(1, 2), slice(2, 8)):  # the one row of the second part is not scored
        share, cache = form.ops.cross_entropy_forward(form.scratch(logits[rows]), form.put(targets[rows]), n)
        total += form.number(share)
        parts.append(form.host(form.ops.cross_entropy_backward(cache)))
    assert error(total, form.number(whole)) < 1e-14
    assert error(np.concatenate(parts), dlogits) < 1e-14


def test_nothing_to_score(form, rng):
    logits, targets = form.put(rng.normal(size=(3, 4))), form.put(np.full(3, IGNORED))
    with pytest.raises(ValueError, match="no target to score"):
        form.ops.cross_entropy_forward(form.scratch(form.host(logits)), targets)
    loss, cache = form.ops.cross_entropy_forward(form.scratch(form.host(logits)), targets, 5)
    assert form.number(loss) == 0
    assert (form.host(form.ops.cross_entropy_backward(cache)) == 0).all()


def test_no_rows_at_all(form):
    # The part of a batch in which nothing is scored: its share is 0 and its gradient empty.
    logits, targets = np.zeros((0, 4)), np.zeros(0, dtype="int64")
    loss, cache = form.ops.cross_entropy_forward(form.scratch(logits), form.put(targets), 5)
    assert form.number(loss) == 0
    assert form.ops.cross_entropy_backward(cache).shape == (0, 4)
    values, cache = form.ops.token_logprobs_forward(form.scratch(logits), form.put(targets))
    assert values.shape == (0,)
    assert form.ops.token_logprobs_backward(form.put(np.zeros(0)), cache).shape == (0, 4)


# ---------------------------------------------------------------------------------- logits of any size


def extreme_logits(rng, case):
    logits, targets = arrays(rng, 9, 6)
    rows = np.arange(9)[:, None]
    return {
        "200": logits * 200 / abs(logits).max(),
        "all 200": logits + 200,
        "all -200": logits - 200,
        "rows 500 apart": logits + np.where(rows % 2, 500, 0),
        "rows 500 below": logits - np.where(rows % 2, 500, 0),
        "columns 500 apart": logits + np.where(np.arange(6) % 2, 500, 0),
        "10000": logits * 1e4,
        "79": logits / abs(logits).max() * 79.9,
        "near 79": logits / abs(logits).max() * 0.5 + 79,
        "near -79": logits / abs(logits).max() * 0.5 - 79,
    }[case], targets


RESULTS = ("logprobs", "dlogits", "loss", "dlogits of the loss")
CASES = ["200", "all 200", "all -200", "rows 500 apart", "rows 500 below", "columns 500 apart", "10000", "79"]
CASES += ["near 79", "near -79"]


def run(ops, logits, targets, dlogprobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, cache = ops.token_logprobs_forward(logits.copy(), targets)
        dlogits = ops.token_logprobs_backward(dlogprobs, cache)
        loss, cache = ops.cross_entropy_forward(logits.copy(), targets)
        return values, dlogits, np.array(loss), ops.cross_entropy_backward(cache)


@pytest.mark.parametrize("case", CASES)
def test_logits_of_any_size(rng, case):
    logits, targets = extreme_logits(rng, case)
    dlogprobs = rng.normal(size=9)
    reference = run(get_backend("numpy", OPS).ops, logits, targets, dlogprobs)
    fast = run(get_backend("numpy").ops, logits, targets, dlogprobs)
    assert error(reference[0], textbook(logits, targets)) < 1e-12
    for name, a, b in zip(RESULTS, fast, reference, strict=True):
        assert np.isfinite(a).all(), name
        assert error(a, b) < 1e-12, name


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_logits_of_any_size_in_float32(rng, case, reference):
    logits, targets = extreme_logits(rng, case)
    logits, dlogprobs = logits.astype("float32"), rng.normal(size=9).astype("float32")
    exact = run(get_backend("numpy", OPS).ops, logits.astype("float64"), targets, dlogprobs.astype("float64"))
    single = run(get_backend("numpy", OPS if reference else ()).ops, logits, targets, dlogprobs)
    for name, a, b in zip(RESULTS, single, exact, strict=True):
        assert np.isfinite(a).all(), name
        assert error(a, b) < 2e-5, name  # exp(79.9) is known to 79.9·2⁻²⁴ = 5e-6 of itself


@pytest.mark.parametrize("level", [79.5, -79.5, 60.0])
def test_large_vocabulary_in_float32(form, level):
    # As many terms as GPT-2 has tokens, all of them large: their sum must stay inside float32.
    N, V = 2, 50257
    logits, targets = np.full((N, V), level, dtype="float32"), np.array([0, V - 1])
    values, _ = form.ops.token_logprobs_forward(form.scratch(logits), form.put(targets))
    assert error(form.host(values), np.full(N, -math.log(V))) < 1e-5
    loss, cache = form.ops.cross_entropy_forward(form.scratch(logits), form.put(targets))
    assert error(form.number(loss), math.log(V)) < 1e-5
    dlogits = form.host(form.ops.cross_entropy_backward(cache))
    assert error(dlogits[:, 1:-1], np.full((N, V - 2), 1 / V / N)) < 1e-4


def test_float32_stays_float32(form, rng):
    logits, targets = arrays(rng, 40, 37)
    single, dlogprobs = logits.astype("float32"), rng.normal(size=40).astype("float32")
    ops = form.ops
    exact = run(get_backend("numpy", OPS).ops, single.astype("float64"), targets, dlogprobs.astype("float64"))
    values, cache = ops.token_logprobs_forward(form.scratch(single), form.put(targets))
    dlogits = ops.token_logprobs_backward(form.put(dlogprobs), cache)
    loss, cache = ops.cross_entropy_forward(form.scratch(single), form.put(targets))
    of_loss = ops.cross_entropy_backward(cache)
    assert values.dtype == dlogits.dtype == of_loss.dtype == np.float32
    for a, b in zip((values, dlogits, None, of_loss), exact, strict=True):
        if a is not None:
            assert error(form.host(a), b) < 1e-5
    assert error(form.number(loss), exact[2]) < 1e-6


def test_the_value_for_not_scored():
    assert kernels.cross_entropy.IGNORED == IGNORED
