"""GELU in its tanh form, alone and after the addition of a bias."""

import math

import numpy as np
import pytest

import kernels.gelu
from tests.helpers import assert_gradient, error

PIECES = {"kernels.gelu.PIECE": 7}

SHAPES = [(2, 3, 5), (7, 3), (1, 1), (1, 1, 9), (4, 1), (6,)]


def textbook(u):
    flat = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in u.reshape(-1)]
    return np.array(flat).reshape(u.shape)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(form, rng, shape, with_bias):
    u, dy = rng.normal(0, 2, size=shape), rng.normal(size=shape)
    bias = rng.normal(size=shape[-1]) if with_bias else None
    shifted = u if bias is None else u + bias

    def forward(u, keep=True):
        return form.ops.bias_gelu_forward(form.scratch(u), None if bias is None else form.put(bias), keep)

    y, cache = forward(u)
    assert error(form.host(y), textbook(shifted), floor=1.0) < 1e-15
    du = form.host(form.ops.bias_gelu_backward(form.scratch(dy), cache))
    assert_gradient(du, lambda u: form.host(forward(u)[0]), u, dy)
    unkept, nothing = forward(u, keep=False)
    assert nothing is None
    assert error(form.host(unkept), form.host(y), floor=1.0) < 1e-15


def test_unfused_form(rng):
    u, dy = rng.normal(0, 2, size=(3, 4)), rng.normal(size=(3, 4))
    y, cache = kernels.gelu.gelu_forward(u)
    assert error(y, textbook(u)) < 1e-14
    du = kernels.gelu.gelu_backward(dy, cache)
    assert_gradient(du, lambda u: kernels.gelu.gelu_forward(u)[0], u, dy)


def test_strided_input(form, rng):
    u = rng.normal(size=(4, 6))
    strided = form.scratch(np.repeat(u, 2, axis=1))[:, ::2]
    y, _ = form.ops.bias_gelu_forward(strided, None)
    assert error(form.host(y), textbook(u)) < 1e-14


def test_far_from_zero_it_is_the_identity_or_nothing(form):
    u = np.array([[-1e4, -40.0, 0.0, 40.0, 1e4]])
    y, cache = form.ops.bias_gelu_forward(form.scratch(u), None)
    assert error(form.host(y), np.array([[0, 0, 0, 40.0, 1e4]])) == 0
    du = form.ops.bias_gelu_backward(form.scratch(np.ones((1, 5))), cache)
    assert error(form.host(du), np.array([[0, 0, 0.5, 1, 1]])) == 0


@pytest.mark.parametrize("size", ["small", "several pieces", "a row is more than a piece"])
def test_float32_stays_float32(form, rng, size):
    piece = kernels.gelu.PIECE
    shape = {"small": (5, 33), "several pieces": (2 * piece // 37 + 3, 37)}.get(size, (2, piece + 5))
    u, bias, dy = (rng.normal(0, 2, size=s).astype("float32") for s in (shape, shape[-1:], shape))
    y, cache = form.ops.bias_gelu_forward(form.scratch(u), form.put(bias))
    du = form.ops.bias_gelu_backward(form.scratch(dy), cache)
    shifted = u.astype("float64") + bias
    expected, expected_cache = kernels.gelu.gelu_forward(shifted)
    assert y.dtype == du.dtype == np.float32
    assert error(form.host(y), expected) < 1e-5
    assert error(form.host(du), kernels.gelu.gelu_backward(dy.astype("float64"), expected_cache)) < 1e-5
