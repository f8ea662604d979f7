"""Dropout: which factors there are, how often, and that the backward has the same ones."""

import numpy as np
import pytest

from tests.helpers import assert_gradient, error


class Numbers:
    """A random generator that gives these numbers."""

    def __init__(self, numbers):
        self.numbers = numbers

    def random(self, shape, dtype):
        assert self.numbers.shape == shape
        return self.numbers.astype(dtype)


def test_kept_are_the_draws_of_at_least_p(form):
    draws = np.array([[0.0, 0.249, 0.25], [0.5, 0.75, 0.999]])
    numbers = draws if form.name != "standin" else form.put(draws)
    x = np.arange(1.0, 7.0).reshape(2, 3)
    y, mask = form.ops.dropout_forward(form.put(x), 0.25, Numbers(numbers))
    expected = np.array([[0, 0, 1], [1, 1, 1]]) / 0.75
    assert error(form.host(mask), expected) < 1e-15
    assert error(form.host(y), x * expected) < 1e-15
    everything = form.ops.dropout_mask((2, 3), 0.0, Numbers(numbers), like=form.put(x))
    assert error(form.host(everything), np.ones((2, 3))) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_mean(form, p, dtype):
    like = form.put(np.zeros(1, dtype=dtype))
    mask = form.ops.dropout_mask((300, 401), p, form.backend.rng(3), like=like)
    assert mask.dtype == dtype
    host = form.host(mask).astype("float64")
    dropped = host == 0
    assert error(host[~dropped], np.full((~dropped).sum(), 1 / (1 - p))) < 1e-6
    n = host.size
    assert abs(dropped.mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
    # No pattern along either axis: each row's and each column's share is near p.
    assert abs(dropped.mean(0) - p).max() < 5 * np.sqrt(p * (1 - p) / 300)
    assert abs(dropped.mean(1) - p).max() < 5 * np.sqrt(p * (1 - p) / 401)


def test_same_seed_same_mask(form):
    like = form.put(np.zeros(1))

    def mask(rng):
        return form.host(form.ops.dropout_mask((5, 7), 0.4, rng, like=like))

    rng = form.backend.rng([1, 2])
    first, second = mask(rng), mask(rng)
    assert error(mask(form.backend.rng([1, 2])), first) == 0
    assert (first != second).any()
    assert (mask(form.backend.rng([1, 3])) != first).any()


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1), (5,)])
def test_backward(form, rng, shape):
    x, dy = rng.normal(size=shape), rng.normal(size=shape)

    def forward(x):
        return form.ops.dropout_forward(form.put(x), 0.4, form.backend.rng(7))

    _, mask = forward(x)
    dx = form.ops.dropout_backward(form.put(dy), mask)
    assert_gradient(form.host(dx), lambda x: form.host(forward(x)[0]), x, dy)


def test_float32_stays_float32(form, rng):
    x, dy = rng.normal(size=(2, 3, 4)).astype("float32")
    y, mask = form.ops.dropout_forward(form.put(x), 0.3, form.backend.rng(0))
    dx = form.ops.dropout_backward(form.put(dy), mask)
    assert y.dtype == mask.dtype == dx.dtype == np.float32
    assert error(form.host(y), x * form.host(mask)) < 1e-7
    assert error(form.host(dx), dy * form.host(mask)) < 1e-7
