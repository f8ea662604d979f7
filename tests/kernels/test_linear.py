"""Linear layer: outputs, the three parts of the backward, slots to write into."""

import numpy as np
import pytest

from tests.helpers import assert_gradient, error, nan_like

SHAPES = [((4, 3), 5), ((2, 3, 4), 1), ((2, 1, 5), 3), ((1, 1), 1), ((7, 1), 2), ((3,), 2)]


def arrays(rng, shape, n_out, dtype="float64"):
    x, weight, bias = rng.normal(size=shape), rng.normal(size=(shape[-1], n_out)), rng.normal(size=n_out)
    dy = rng.normal(size=(*shape[:-1], n_out))
    return [a.astype(dtype) for a in (x, weight, bias, dy)]


@pytest.mark.parametrize(("shape", "n_out"), SHAPES)
def test_forward_is_a_sum_of_products(form, rng, shape, n_out):
    x, weight, bias, _ = arrays(rng, shape, n_out)
    expected = sum(x[..., i, None] * weight[i] for i in range(shape[-1]))
    put = form.put
    assert error(form.host(form.ops.linear_forward(put(x), put(weight), None)), expected) < 1e-14
    assert error(form.host(form.ops.linear_forward(put(x), put(weight), put(bias))), expected + bias) < 1e-14


@pytest.mark.parametrize(("shape", "n_out"), SHAPES)
def test_backward(form, rng, shape, n_out):
    x, weight, bias, dy = arrays(rng, shape, n_out)
    put, ops = form.put, form.ops

    def forward(x, weight, bias):
        return form.host(ops.linear_forward(put(x), put(weight), put(bias)))

    dx = form.host(ops.linear_backward_input(put(dy), put(weight)))
    dweight = form.host(ops.linear_backward_weight(put(dy), put(x)))
    dbias = form.host(ops.linear_backward_bias(put(dy)))
    assert_gradient(dx, lambda x: forward(x, weight, bias), x, dy, "dx")
    assert_gradient(dweight, lambda weight: forward(x, weight, bias), weight, dy, "dweight")
    assert_gradient(dbias, lambda bias: forward(x, weight, bias), bias, dy, "dbias")


def test_weight_gradient_is_written_into_its_slot(form, rng):
    x, weight, _, dy = arrays(rng, (2, 3, 4), 5)
    slot = form.scratch(nan_like(weight))
    result = form.ops.linear_backward_weight(form.put(dy), form.put(x), out=slot)
    assert result is slot
    assert error(form.host(slot), np.einsum("bti,btj->ij", x, dy)) < 1e-14


def test_transposed_and_strided_arguments(form, rng):
    # The output head is a transposed table, and queries, keys and values are every third of an array.
    table, rows = rng.normal(size=(5, 4)), rng.normal(size=(6, 3, 4))
    dy = rng.normal(size=(6, 5))
    x = form.put(rows)[:, 1]
    ops = form.ops
    assert error(form.host(ops.linear_forward(x, form.put(table).T, None)), rows[:, 1] @ table.T) < 1e-14
    assert error(form.host(ops.linear_backward_input(form.put(dy), form.put(table).T)), dy @ table) < 1e-14
    assert error(form.host(ops.linear_backward_weight(form.put(dy.T).T, x)), rows[:, 1].T @ dy) < 1e-14
    assert error(form.host(ops.linear_backward_bias(form.put(dy.T).T)), dy.sum(0)) < 1e-14


def test_float32_stays_float32(form, rng):
    x, weight, bias, dy = arrays(rng, (3, 17, 33), 9, "float32")
    put, ops = form.put, form.ops
    x64, dy64 = x.astype("float64"), dy.astype("float64")
    results = {
        "y": (ops.linear_forward(put(x), put(weight), put(bias)), x64 @ weight + bias),
        "dx": (ops.linear_backward_input(put(dy), put(weight)), dy64 @ weight.T),
        "dweight": (ops.linear_backward_weight(put(dy), put(x)), np.einsum("bti,btj->ij", x64, dy64)),
        "dbias": (ops.linear_backward_bias(put(dy)), dy64.sum((0, 1))),
    }
    for name, (result, expected) in results.items():
        assert result.dtype == np.float32, name
        assert error(form.host(result), expected) < 1e-5, name
