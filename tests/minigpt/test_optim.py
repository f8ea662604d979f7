"""Learning-rate schedules, and AdamW over groups of parameters in one flat buffer."""

import math
from itertools import pairwise

import numpy as np
import pytest

from kernels import get_backend
from kernels.adamw import adamw_update
from minigpt.errors import InputError
from minigpt.optim import SCHEDULES, AdamW, ParameterGroup, constant, cosine, linear, make_schedule
from minigpt.parameters import FlatParameters, Parameter

BACKEND = get_backend()


def shaped(*shapes_by_name: tuple[str, tuple[int, ...]]) -> list[Parameter]:
    """Parameters of these names and shapes with random numbers in float64."""
    rng = np.random.default_rng(7)
    return [Parameter(name, rng.normal(size=shape)) for name, shape in shapes_by_name]


def model_like() -> list[Parameter]:
    """Matrices and vectors in turn, as the layers of a model have them."""
    return shaped(
        ("wte.weight", (5, 4)),
        ("h.0.ln_1.weight", (4,)),
        ("h.0.attn.weight", (4, 12)),
        ("h.0.attn.bias", (12,)),
        ("h.1.attn.weight", (4, 12)),
        ("h.1.attn.bias", (12,)),
    )


# ------------------------------------------------------------------------------------------ schedules


def nanogpt(it: int, lr: float, warmup: int, steps: int, min_lr: float) -> float:
    """The rate of nanoGPT's train.py, case by case as that file has it."""
    if it < warmup:
        return lr * (it + 1) / (warmup + 1)
    if it > steps:
        return min_lr
    ratio = (it - warmup) / (steps - warmup)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (lr - min_lr)


@pytest.mark.parametrize(("lr", "warmup", "steps", "min_lr"), [(1e-3, 100, 2000, 1e-4), (3.0, 0, 7, 0.5), (1, 6, 7, 0)])
def test_cosine_is_nanogpts_formula(lr, warmup, steps, min_lr):
    rate = cosine(lr, steps, warmup, min_lr)
    for step in range(steps + 20):
        assert rate(step) == pytest.approx(nanogpt(step, lr, warmup, steps, min_lr), rel=1e-12, abs=1e-15)


def test_warmup_rises_in_equal_steps_to_the_peak():
    for kind in SCHEDULES:
        rate = make_schedule(kind, 0.6, steps=50, warmup=5)
        assert [rate(step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@pytest.mark.parametrize("make", [cosine, linear])
def test_falls_from_peak_to_minimum_and_stays_there(make):
    rate = make(2.0, 10, 0, 0.5)
    values = [rate(step) for step in range(14)]
    assert values[0] == 2.0
    assert values[5] == pytest.approx(1.25)  # half way
    assert values[10:] == [0.5] * 4
    assert all(a > b for a, b in pairwise(values[:11]))


def test_linear_is_a_straight_line():
    rate = linear(1.0, 10)
    assert [rate(step) for step in range(11)] == pytest.approx([1 - step / 10 for step in range(11)])


def test_constant_stays():
    rate = constant(0.3, warmup=2)
    assert [rate(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    assert constant(0.3)(0) == 0.3


def test_a_warmup_longer_than_the_run_only_rises():
    rate = cosine(1.0, 5, warmup=9)
    assert [rate(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_an_unknown_schedule_is_named():
    with pytest.raises(InputError, match="no schedule 'cosin'; there are cosine, linear, constant"):
        make_schedule("cosin", 1.0, 10)


# ------------------------------------------------------------------------------------------ groups


def test_order_brings_equal_settings_together_and_keeps_the_order_within():
    parameters = model_like()
    ordered = AdamW.order(parameters, (), 0.1)
    assert [p.name for p in ordered] == [
        "wte.weight", "h.0.attn.weight", "h.1.attn.weight", "h.0.ln_1.weight", "h.0.attn.bias", "h.1.attn.bias",
    ]  # fmt: skip
    assert [(s.start, s.stop, s.weight_decay) for s in AdamW(ordered, BACKEND, weight_decay=0.1).segments] == [
        (0, 20 + 48 + 48, 0.1),
        (116, 116 + 4 + 12 + 12, 0.0),
    ]


def test_the_first_group_that_matches_has_a_parameter():
    first, second = ParameterGroup("h.1.*", lr_scale=2.0), ParameterGroup("h.*", lr_scale=3.0)
    groups = (first, second)
    ordered = AdamW.order(model_like(), groups, 0.1)
    optimizer = AdamW(ordered, BACKEND, groups, weight_decay=0.1)
    places = FlatParameters(ordered, BACKEND).places
    scale = {
        name: next(s.group.lr_scale for s in optimizer.segments if s.start <= place.start < s.stop)
        for name, place in places.items()
    }
    assert scale == {
        "wte.weight": 1.0,
        "h.0.ln_1.weight": 3.0,
        "h.0.attn.weight": 3.0,
        "h.0.attn.bias": 3.0,
        "h.1.attn.weight": 2.0,
        "h.1.attn.bias": 2.0,
    }
    # Two groups with decay and without, and one matrix of the default group.
    assert len(optimizer.segments) == 5


def test_weight_decay_is_for_matrices_unless_a_group_says_otherwise():
    groups = (ParameterGroup("*.bias", weight_decay=0.7), ParameterGroup("wte.*", weight_decay=0.0))
    parameters = model_like()
    decay = {
        name: s.weight_decay
        for s in AdamW(parameters, BACKEND, groups, weight_decay=0.1).segments
        for name, place in FlatParameters(parameters, BACKEND).places.items()
        if s.start <= place.start < s.stop
    }
    assert decay == {
        "wte.weight": 0.0,
        "h.0.ln_1.weight": 0.0,
        "h.0.attn.weight": 0.1,
        "h.0.attn.bias": 0.7,
        "h.1.attn.weight": 0.1,
        "h.1.attn.bias": 0.7,
    }


def test_frozen_parameters_have_no_place():
    parameters = model_like()
    parameters[2].trainable = False
    assert parameters[2] not in AdamW.order(parameters, (), 0.1)


def test_a_group_of_frozen_parameters_is_fine_one_of_none_is_not():
    parameters = model_like()
    parameters[0].trainable = False
    AdamW.order(parameters, (ParameterGroup("wte.*"),), 0.1)
    with pytest.raises(InputError, match=r"no parameter matches the group 'h\.7\.\*'"):
        AdamW.order(parameters, (ParameterGroup("h.7.*"),), 0.1)


def test_nothing_to_train_is_said():
    parameters = model_like()
    for p in parameters:
        p.trainable = False
    with pytest.raises(InputError, match="nothing to train"):
        AdamW.order(parameters, (), 0.1)


def test_rates_are_scaled_and_a_group_may_have_its_own_schedule():
    groups = (
        ParameterGroup("h.0.*", lr_scale=0.5),
        ParameterGroup("h.1.*", lr_scale=2.0, schedule=lambda step: 10.0 + step),
    )
    ordered = AdamW.order(model_like(), groups, 0.0)
    optimizer = AdamW(ordered, BACKEND, groups)
    assert optimizer.rates(lambda step: 1.0 * step, 4) == [2.0, 28.0, 4.0]


# ------------------------------------------------------------------------------------------ updates


def settings() -> tuple[tuple[ParameterGroup, ...], dict]:
    groups = (ParameterGroup("h.1.*", lr_scale=0.1), ParameterGroup("*.bias", weight_decay=0.3))
    return groups, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}


def test_update_is_adamw_on_each_parameter_with_its_own_settings():
    groups, others = settings()
    parameters = AdamW.order(model_like(), groups, others["weight_decay"])
    optimizer = AdamW(parameters, BACKEND, groups, **others)
    alone = {p.name: [p.data.copy(), np.zeros_like(p.data), np.zeros_like(p.data)] for p in parameters}
    flat = FlatParameters(parameters, BACKEND)
    m, v = np.zeros((2, flat.size))
    rng = np.random.default_rng(3)
    for step in range(1, 6):
        gradient = rng.normal(size=flat.size)
        rates = optimizer.rates(lambda step: 0.01 / step, step)
        optimizer.update(flat.buffer, gradient, m, v, step, rates, slice(0, flat.size))
        for name, (data, own_m, own_v) in alone.items():
            lr = 0.01 / step * (0.1 if name.startswith("h.1.") else 1.0)
            decay = 0.2 if data.ndim == 2 else 0.3 if name == "h.0.attn.bias" else 0.0
            own = gradient[flat.places[name]].reshape(data.shape)
            adamw_update(data, own, own_m, own_v, step, lr, others["betas"], others["eps"], decay)
    for p in parameters:
        for whole, part in zip((flat.buffer, m, v), alone[p.name], strict=True):
            np.testing.assert_allclose(whole[flat.places[p.name]], part.reshape(-1), rtol=1e-12, atol=1e-15)


def test_updates_of_slices_are_the_update_of_the_whole_to_the_bit():
    groups, others = settings()
    ordered = AdamW.order(model_like(), groups, others["weight_decay"])
    optimizer = AdamW(ordered, BACKEND, groups, **others)
    size = sum(p.data.size for p in ordered)
    rng = np.random.default_rng(5)
    start, gradient = rng.normal(size=(2, size)).astype(np.float32)
    results = []
    for cuts in ([0, size], [0, 1, 19, 20, 77, size], [0, 50, 50, size]):
        param, grad = start.copy(), gradient.copy()
        m, v = np.zeros((2, size), np.float32)
        for step in (1, 2, 3):
            rates = optimizer.rates(lambda step: 1e-2, step)
            for a, b in pairwise(cuts):
                optimizer.update(param, grad, m, v, step, rates, slice(a, b))
        results.append((param.tobytes(), m.tobytes(), v.tobytes()))
    assert results[0] == results[1] == results[2]
    assert results[0][0] != start.tobytes()


def test_nothing_outside_the_own_slice_is_touched_or_read():
    ordered = AdamW.order(model_like(), (), 0.1)
    optimizer = AdamW(ordered, BACKEND, weight_decay=0.1)
    size = sum(p.data.size for p in ordered)
    vectors = np.ones((4, size))
    vectors[:, :30] = vectors[:, 90:] = np.nan
    optimizer.update(*vectors, 1, [0.1, 0.1], slice(30, 90))
    assert np.isnan(vectors[:, :30]).all()
    assert np.isnan(vectors[:, 90:]).all()
    assert np.isfinite(vectors[:, 30:90]).all()


def test_state_is_each_parameters_own():
    ordered = AdamW.order(model_like(), (), 0.0)
    optimizer = AdamW(ordered, BACKEND)
    flat = FlatParameters(ordered, BACKEND)
    before = flat.buffer.copy()
    m, v = np.zeros((2, flat.size))
    place = flat.places["h.0.attn.bias"]
    for step in (1, 2, 3):
        gradient = np.zeros(flat.size)
        gradient[place] = step
        rates = optimizer.rates(lambda step: 0.1, step)
        optimizer.update(flat.buffer, gradient, m, v, step, rates, slice(0, flat.size))
    others = np.ones(flat.size, bool)
    others[place] = False
    assert not m[others].any()
    assert not v[others].any()
    assert flat.buffer[others].tobytes() == before[others].tobytes()
    assert (flat.buffer[place] < before[place]).all()
