"""Layer normalisation, alone and after the residual addition."""

import numpy as np
import pytest

from tests.helpers import assert_gradient, error

SHAPES = [(2, 3, 5), (4, 7), (1, 1, 2), (3, 1), (1, 6), (2, 1, 3), (5,)]
EPS = 0.3  # large, so that it shows where it stands


def arrays(rng, shape, dtype="float64"):
    x, dy = rng.normal(0.5, 2.0, size=shape), rng.normal(size=shape)
    weight, bias = rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    return [a.astype(dtype) for a in (x, weight, bias, dy)]


def textbook(x, weight, bias, eps):
    y = np.empty(x.shape)
    for place in np.ndindex(x.shape[:-1]):
        row = [float(v) for v in x[place]]
        mean = sum(row) / len(row)
        variance = sum((v - mean) ** 2 for v in row) / len(row)
        y[place] = [(v - mean) / (variance + eps) ** 0.5 for v in row] * weight + bias
    return y


@pytest.mark.parametrize("eps", [EPS, 1e-5])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(form, rng, shape, eps):
    x, weight, bias, delta = arrays(rng, shape)
    put, ops = form.put, form.ops
    y, cache = ops.layernorm_forward(put(x), put(weight), put(bias), eps)
    assert error(form.host(y), textbook(x, weight, bias, eps)) < 1e-12
    assert cache.normalised.shape == shape
    assert cache.rstd.shape == (*shape[:-1], 1)
    total, y, _ = ops.residual_layernorm_forward(put(x), put(delta), put(weight), put(bias), eps)
    assert error(form.host(total), x + delta) == 0
    assert error(form.host(y), textbook(x + delta, weight, bias, eps)) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_backward(form, rng, shape):
    x, weight, bias, dy = arrays(rng, shape)
    put, ops = form.put, form.ops

    def forward(x, weight, bias):
        return form.host(ops.layernorm_forward(put(x), put(weight), put(bias), EPS)[0])

    _, cache = ops.layernorm_forward(put(x), put(weight), put(bias), EPS)
    dx = form.host(ops.layernorm_backward_input(put(dy), put(weight), cache))
    dweight, dbias = ops.layernorm_backward_params(put(dy), cache)
    assert_gradient(dx, lambda x: forward(x, weight, bias), x, dy, "dx")
    assert_gradient(form.host(dweight), lambda weight: forward(x, weight, bias), weight, dy, "dweight")
    assert_gradient(form.host(dbias), lambda bias: forward(x, weight, bias), bias, dy, "dbias")
    again = form.host(ops.layernorm_backward_input(put(dy), put(weight), cache))
    assert error(again, dx) == 0, "the backward changed its cache"


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_after_the_residual_addition(form, rng, shape):
    x, weight, bias, dy = arrays(rng, shape)
    delta, dtotal = rng.normal(size=shape), rng.normal(size=shape)
    put, ops = form.put, form.ops

    def forward(x, delta):
        total, y, _ = ops.residual_layernorm_forward(put(x), put(delta), put(weight), put(bias), EPS)
        return np.stack((form.host(total), form.host(y)))

    _, _, cache = ops.residual_layernorm_forward(put(x), put(delta), put(weight), put(bias), EPS)
    dx = form.host(ops.residual_layernorm_backward_input(put(dtotal), put(dy), put(weight), cache))
    both = np.stack((dtotal, dy))
    assert_gradient(dx, lambda x: forward(x, delta), x, both, "dx")
    assert_gradient(dx, lambda delta: forward(x, delta), delta, both, "ddelta")


def test_row_far_from_zero(form, rng):
    # The variance is that of the centred row: mean(x²) − mean(x)² would lose every digit here.
    x, weight, bias, dy = arrays(rng, (3, 8))
    put, ops = form.put, form.ops
    y, cache = ops.layernorm_forward(put(x + 1e8), put(weight), put(bias), 1e-5)
    moved = (x + 1e8) - 1e8  # what is left of x up there
    expected, expected_cache = ops.layernorm_forward(put(moved), put(weight), put(bias), 1e-5)
    assert error(form.host(y), form.host(expected)) < 1e-7
    dx = ops.layernorm_backward_input(put(dy), put(weight), cache)
    expected_dx = ops.layernorm_backward_input(put(dy), put(weight), expected_cache)
    assert error(form.host(dx), form.host(expected_dx)) < 1e-6


def test_constant_row(form):
    x = np.full((2, 5), 3.0)
    weight, bias = np.arange(5.0), np.arange(5.0, 10.0)
    y, _ = form.ops.layernorm_forward(form.put(x), form.put(weight), form.put(bias), 1e-5)
    assert error(form.host(y), np.broadcast_to(bias, (2, 5))) < 1e-12


def test_float32_stays_float32(form, rng):
    x, weight, bias, dy = arrays(rng, (3, 7, 65), "float32")
    put, ops = form.put, form.ops
    wide = [put(a.astype("float64")) for a in (x, weight, bias, dy)]
    y, cache = ops.layernorm_forward(put(x), put(weight), put(bias), 1e-5)
    y64, cache64 = ops.layernorm_forward(*wide[:3], 1e-5)
    total, y_sum, cache_sum = ops.residual_layernorm_forward(put(x), put(dy), put(weight), put(bias), 1e-5)
    total64, y_sum64, cache_sum64 = ops.residual_layernorm_forward(wide[0], wide[3], *wide[1:3], 1e-5)
    pairs = {
        "y": (y, y64),
        "dx": (ops.layernorm_backward_input(put(dy), put(weight), cache),
               ops.layernorm_backward_input(wide[3], wide[1], cache64)),
        "dweight": (ops.layernorm_backward_params(put(dy), cache)[0],
                    ops.layernorm_backward_params(wide[3], cache64)[0]),
        "dbias": (ops.layernorm_backward_params(put(dy), cache)[1],
                  ops.layernorm_backward_params(wide[3], cache64)[1]),
        "total": (total, total64),
        "y of the sum": (y_sum, y_sum64),
        "dx of the sum": (ops.residual_layernorm_backward_input(put(x), put(dy), put(weight), cache_sum),
                          ops.residual_layernorm_backward_input(wide[0], wide[3], wide[1], cache_sum64)),
    }  # fmt: skip
    for name, (single, double) in pairs.items():
        assert single.dtype == np.float32, name
        assert error(form.host(single), form.host(double)) < 1e-5, name
    assert cache.normalised.dtype == cache.rstd.dtype == np.float32
