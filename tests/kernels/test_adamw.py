"""AdamW against the algorithm written out for one number, clipping, and the norm."""

import math

import numpy as np
import pytest

import kernels.adamw
from tests.helpers import error

PIECES = {"kernels.adamw.PIECE": 3}

SETTINGS = [
    {"lr": 1e-2},
    {"lr": 0.3, "betas": (0.7, 0.95), "eps": 0.1, "weight_decay": 0.2},  # all of them large enough to show
    {"lr": 0.1, "betas": (0.0, 0.5), "eps": 1e-3, "weight_decay": 0.0},
    {"lr": 0.0, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.5},
    {"lr": [0.5, 0.0, 0.01, 0.2, 1.0, 0.3, 0.03], "betas": (0.8, 0.9), "eps": 0.05, "weight_decay": 0.4},
]


def textbook(theta, gradients, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Algorithm 2 of arXiv:1711.05101 for one parameter, with the learning rate in front of the decay."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        decayed = theta - lr * weight_decay * theta
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        theta = decayed - lr * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
    return theta, m, v


def run(form, theta, gradients, settings):
    settings = dict(settings)
    if isinstance(settings["lr"], list):
        settings["lr"] = form.put(np.array(settings["lr"], dtype=theta.dtype))
    param, m, v = form.scratch(theta), form.scratch(np.zeros_like(theta)), form.scratch(np.zeros_like(theta))
    for t, g in enumerate(gradients, start=1):
        assert form.ops.adamw_update(param, form.put(g), m, v, t, **settings) is None
    return [form.host(x) for x in (param, m, v)]


@pytest.mark.parametrize("P", [7, 1])
@pytest.mark.parametrize("settings", SETTINGS)
def test_update(form, rng, settings, P):
    steps = 12
    settings = dict(settings)
    if isinstance(settings["lr"], list):
        settings["lr"] = settings["lr"][:P]
    theta, gradients = rng.normal(size=P), rng.normal(size=(steps, P))
    gradients[3] = 0.0
    rates = settings["lr"] if isinstance(settings["lr"], list) else [settings["lr"]] * P
    rest = {k: v for k, v in settings.items() if k != "lr"}
    expected = [textbook(theta[i], gradients[:, i].tolist(), rates[i], **rest) for i in range(P)]
    results = run(form, theta, gradients, settings)
    for name, got, right in zip(("param", "m", "v"), results, zip(*expected, strict=True), strict=True):
        assert error(got, np.array(right)) < 1e-13, name


def test_first_step_is_the_learning_rate(form):
    # The corrections make the first step lr·sign(g), whatever the size of the gradient.
    theta, g = np.zeros(3), np.array([1e-3, -20.0, 5.0])
    param, _, _ = run(form, theta, [g], {"lr": 0.25, "betas": (0.9, 0.999), "eps": 0.0})
    assert error(param, -0.25 * np.sign(g)) < 1e-12


def test_no_decay_and_no_gradient_is_no_change(form, rng):
    theta = rng.normal(size=5)
    param, m, v = run(form, theta, [np.zeros(5)] * 3, {"lr": 0.1})
    assert (param == theta).all()
    assert (m == 0).all()
    assert (v == 0).all()


def test_decay_knows_nothing_of_the_gradient(form, rng):
    theta = rng.normal(size=5)
    param, _, _ = run(form, theta, [np.zeros(5)] * 2, {"lr": 0.1, "weight_decay": 0.5})
    assert error(param, theta * 0.95**2) < 1e-15


@pytest.mark.parametrize(("pieces", "more"), [(0, 1), (1, -1), (1, 0), (1, 1), (2, 7)])
def test_pieces_of_real_size(rng, pieces, more):
    P = pieces * kernels.adamw.PIECE + more
    theta, gradients, lr = rng.normal(size=P), rng.normal(size=(3, P)), rng.random(P)
    results = []
    for update in (kernels.adamw.adamw_update, kernels.adamw.adamw_update_fast):
        param, m, v = theta.copy(), np.zeros(P), np.zeros(P)
        for t, g in enumerate(gradients, start=1):
            update(param, g, m, v, t, lr, (0.8, 0.9), 1e-3, 0.1)
        results.append((param, m, v))
    for a, b in zip(*results, strict=True):
        assert error(a, b) < 1e-14


def test_float32_stays_float32(form, rng):
    theta, gradients = rng.normal(size=7).astype("float32"), rng.normal(size=(20, 7)).astype("float32")
    for settings in SETTINGS:
        single = run(form, theta, gradients, settings)
        double = run(form, theta.astype("float64"), gradients.astype("float64"), settings)
        for a, b in zip(single, double, strict=True):
            assert a.dtype == np.float32
            assert error(a, b) < 1e-5


# -------------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("P", [1, 2, 3, 8, 100])
def test_sum_of_squares(form, rng, P):
    x = rng.normal(size=P)
    value = form.number(form.ops.sum_of_squares(form.put(x)))
    assert error(value, math.fsum(v * v for v in x)) < 1e-14


@pytest.mark.parametrize(("pieces", "more"), [(1, -1), (1, 0), (1, 1), (2, 7)])
def test_sum_of_squares_of_many_in_float32(form, pieces, more):
    # All equal: a running sum in float32 would be off by a thousandth.
    x = np.full(pieces * kernels.adamw.PIECE + more, 0.1, dtype="float32")
    assert error(form.number(form.ops.sum_of_squares(form.put(x))), x.size * float(x[0]) ** 2) < 1e-5


def test_global_norm(rng):
    x = rng.normal(size=50).astype("float32")
    assert error(kernels.adamw.global_norm(x), math.sqrt(math.fsum(float(v) ** 2 for v in x))) < 1e-14
    assert kernels.adamw.global_norm(np.zeros(3)) == 0.0


def test_clipping_only_makes_smaller(form):
    clip = form.ops.clip_coefficient
    assert clip(0.0, 1.0) == 1.0
    assert clip(0.5, 1.0) == 1.0
    assert clip(4.0, 1.0) == pytest.approx(1 / (4 + 1e-6), rel=1e-15)
    assert clip(4.0, 8.0) == 1.0
    assert clip(9.0, 3.0) == pytest.approx(3 / (9 + 1e-6), rel=1e-15)
    assert clip(1e-6, 1e-6) == pytest.approx(0.5, rel=1e-12)
    assert clip(1e30, 1.0) == pytest.approx(1e-30, rel=1e-12)
