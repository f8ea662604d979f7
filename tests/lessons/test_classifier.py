"""The classifier on a trunk: concat pooling that ignores padding, the head, its objective, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lessons.common.classifier import Classification, Classifier, Head, concat_pool_backward, concat_pool_forward
from lessons.common.measure import count_products, held_bytes
from minigpt import GPT, GPTConfig
from minigpt.parameters import Gradients
from minigpt.training import TrainConfig, train
from tests.helpers import TOLERANCE, assert_gradient, error, numerical_gradient
from tests.standin import BACKEND as STANDIN

GOLDEN = Path(__file__).parent.parent / "golden" / "classifier_tiny.npz"  # by tests/parity/test_lesson_03_parity.py
CONFIG = GPTConfig(vocab_size=11, n_positions=7, n_embd=6, n_layer=2, n_head=2)


def randomised(model: Classifier, seed: int = 0) -> Classifier:
    """With all parameters drawn at random: zeros would hide mistakes."""
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = model.backend.asarray(0.4 * rng.standard_normal(tuple(p.data.shape)))
    return model


def tiny(hidden: int = 5, labels: int = 3, **settings: Any) -> Classifier:
    return randomised(Classifier(GPT(CONFIG, dtype="float64", **settings), labels, hidden=hidden))


def batch(B: int = 3, T: int = 5, labels: int = 3, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, CONFIG.vocab_size, (B, T)),
        "labels": rng.integers(0, labels, B),
        "lengths": rng.integers(1, T + 1, B),
    }


# ---------------------------------------------------------------------------------------------- pooling

SHAPES = {
    "odd": ((3, 7, 5), [7, 3, 1]),
    "one row": ((1, 4, 3), [2]),
    "one token": ((4, 1, 2), [1, 1, 1, 1]),
    "one column": ((2, 5, 1), [5, 4]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_pooling_is_last_maximum_and_mean_of_the_real_tokens(name: str) -> None:
    shape, lengths = SHAPES[name]
    hidden = np.random.default_rng(2).standard_normal(shape)
    pooled, _ = concat_pool_forward(hidden, np.array(lengths))
    for row, n, got in zip(hidden, lengths, pooled, strict=True):
        real = row[:n]
        np.testing.assert_allclose(got, np.concatenate((real[-1], real.max(0), real.mean(0))), rtol=1e-14)


@pytest.mark.parametrize("name", SHAPES)
def test_backward_of_pooling(name: str) -> None:
    shape, lengths = SHAPES[name]
    rng = np.random.default_rng(3)
    hidden, dpooled = rng.standard_normal(shape), rng.standard_normal((shape[0], 3 * shape[2]))
    _, cache = concat_pool_forward(hidden, np.array(lengths))
    dhidden = concat_pool_backward(dpooled, cache)
    assert_gradient(dhidden, lambda h: concat_pool_forward(h, np.array(lengths))[0], hidden, dpooled)
    for row, n in zip(dhidden, lengths, strict=True):
        assert not row[n:].any()


def test_padding_may_hold_anything() -> None:
    rng = np.random.default_rng(4)
    hidden, lengths, dpooled = rng.standard_normal((2, 6, 3)), np.array([4, 2]), rng.standard_normal((2, 9))
    for rubbish in (1e30, -1e30, np.nan, np.inf):
        other = hidden.copy()
        other[0, 4:] = other[1, 2:] = rubbish
        (pooled, cache), (wanted, wanted_cache) = (concat_pool_forward(h, lengths) for h in (other, hidden))
        np.testing.assert_array_equal(pooled, wanted)
        np.testing.assert_array_equal(concat_pool_backward(dpooled, cache), concat_pool_backward(dpooled, wanted_cache))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pooling_keeps_the_type(dtype: str) -> None:
    pooled, cache = concat_pool_forward(np.ones((2, 3, 4), dtype), np.array([3, 1]))
    assert pooled.dtype == dtype
    assert concat_pool_backward(pooled, cache).dtype == dtype


def without_padding(dpooled: Any, cache: Any) -> Any:
    shape, _, real, highest = cache
    return right(dpooled, (shape, np.full(shape[0], shape[1]), np.ones_like(real), highest))


def assigned(dpooled: Any, cache: Any) -> Any:
    """= instead of += where the last token holds a maximum."""
    (B, _, C), _, _, highest = cache
    dhidden = right(dpooled, cache)
    dhidden[np.arange(B)[:, None], highest, np.arange(C)] = dpooled[:, C : 2 * C]
    return dhidden


def mean_over_width(dpooled: Any, cache: Any) -> Any:
    (_, T, C), lengths, *_ = cache
    scaled = dpooled.copy()
    scaled[:, 2 * C :] *= lengths[:, None] / T
    return right(scaled, cache)


right = concat_pool_backward


@pytest.mark.parametrize("wrong", [without_padding, assigned, mean_over_width])
def test_a_wrong_backward_of_pooling_is_caught(wrong: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "concat_pool_backward", wrong)
        with pytest.raises(AssertionError):
            test_backward_of_pooling("odd")


# ---------------------------------------------------------------------------------------------- head and classifier


@pytest.mark.parametrize("hidden", [0, 4])
def test_gradients_of_the_head_with_dropout(hidden: int) -> None:
    rng = np.random.default_rng(5)
    model = tiny()
    head = Head(9, 3, hidden, 0.3, 0, np.float64, np.asarray)
    for p in head.parameters():
        p.data = rng.standard_normal(p.data.shape)
    x, dscores = rng.standard_normal((4, 9)), rng.standard_normal((4, 3))

    def forward(x: Any) -> Any:
        ctx = model.context(grad=True, training=True, rng=model.backend.rng(7))
        ctx.needs_input_gradient(*head.parameters())  # something below is trained
        return head.forward(x, ctx)

    scores, backward = forward(x)
    grads = Gradients(head.parameters(), model.backend)
    dx = backward(dscores, grads)
    assert not np.allclose(scores, head.forward(x, model.context())[0])  # dropout is on
    assert_gradient(dx, lambda x: forward(x)[0], x, dscores, "dx")
    for p in head.parameters():

        def moved(value: Any, p: Any = p) -> Any:
            kept, p.data = p.data, value
            try:
                return forward(x)[0]
            finally:
                p.data = kept

        assert_gradient(grads.as_dict()[p.name], moved, p.data, dscores, p.name)


@pytest.mark.parametrize("hidden", [0, 5])
def test_every_gradient_of_a_padded_batch(hidden: int) -> None:
    config = replace(CONFIG, vocab_size=6, n_positions=5, n_embd=4, n_layer=1)
    model = randomised(Classifier(GPT(config, dtype="float64"), 3, hidden=hidden))
    b = batch()
    b["labels"][1], b["ids"] = -100, b["ids"] % 6
    loss, grads = model.loss_and_grads(b["ids"], b["labels"], b["lengths"])
    assert isinstance(loss, float)
    objective = Classification()
    assert list(grads) == [p.name for p in model.parameters()]
    for p in model.parameters():
        data = p.data

        def moved(value: Any, p: Any = p) -> float:
            p.data = value
            return objective.forward(model, b, 2.0, model.context())[0]

        numerical = numerical_gradient(moved, data, 1.0, step=5e-4)
        p.data = data
        assert error(grads[p.name], numerical, floor=1e-2) < TOLERANCE, p.name


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_scores_loss_and_gradients_are_the_golden_ones(dtype: str, tolerance: float) -> None:
    with np.load(GOLDEN) as golden:
        config = GPTConfig(vocab_size=31, n_positions=9, n_embd=10, n_layer=2, n_head=5)
        model = Classifier(GPT(config, dtype=dtype), 4, hidden=7)
        for p in model.parameters():
            p.data = golden[f"parameter.{p.name}"].astype(dtype)
        ids, labels, lengths = golden["ids"], golden["labels"], golden["lengths"]
        assert error(model.logits(ids, lengths), golden["scores"]) < tolerance
        loss, grads = model.loss_and_grads(ids, labels, lengths)
        assert error(loss, golden["loss"]) < tolerance
        assert {f"gradient.{name}" for name in grads} == {name for name in golden if name.startswith("gradient.")}
        for name, gradient in grads.items():
            assert error(gradient, golden[f"gradient.{name}"]) < tolerance, name


def test_padding_changes_nothing() -> None:
    model, b = tiny(), batch(2, 5)
    lengths = np.array([3, 5])
    scores = model.logits(b["ids"], lengths)
    np.testing.assert_allclose(scores[0], model.logits(b["ids"][:1, :3])[0], rtol=1e-12)
    other = b["ids"].copy()
    other[0, 3:] = (other[0, 3:] + 1) % CONFIG.vocab_size
    np.testing.assert_array_equal(scores, model.logits(other, lengths))
    wider = np.pad(b["ids"], ((0, 0), (0, 2)))
    np.testing.assert_allclose(scores, model.logits(wider, lengths), rtol=1e-12)
    for name, gradient in model.loss_and_grads(wider, b["labels"], lengths)[1].items():
        np.testing.assert_allclose(
            gradient, model.loss_and_grads(b["ids"], b["labels"], lengths)[1][name], rtol=1e-9, atol=1e-14
        )


def test_it_runs_on_another_array_library() -> None:
    here, there, b = tiny(), tiny(backend=STANDIN), batch()
    labels = b["labels"]
    loss, grads = here.loss_and_grads(b["ids"], labels, b["lengths"])
    other_loss, other = there.loss_and_grads(b["ids"], labels, b["lengths"])
    assert loss == pytest.approx(other_loss, rel=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(STANDIN.to_numpy(other[name]), gradient, rtol=1e-10, atol=1e-13)


def test_parts_of_a_batch_add_up() -> None:
    model, objective = tiny(), Classification()
    b = batch(5, 6) | {"labels": np.array([0, -100, 2, 1, 1])}
    total = objective.total(b)
    assert total == 4
    grads = Gradients(model.parameters(), model.backend)
    loss = 0.0
    for part in (slice(0, 2), slice(2, 5)):
        share, backward = objective.forward(
            model, {name: array[part] for name, array in b.items()}, total, model.context(grad=True)
        )
        backward(grads)
        loss += share
    wanted, wanted_grads = model.loss_and_grads(b["ids"], b["labels"], b["lengths"])
    assert loss == pytest.approx(wanted, rel=1e-12)
    for name, gradient in grads.as_dict().items():
        np.testing.assert_allclose(gradient, wanted_grads[name], rtol=1e-9, atol=1e-14)


def test_a_frozen_trunk_costs_no_backward_and_keeps_nothing() -> None:
    model, b = tiny(), batch()
    objective = Classification()
    model.trunk.freeze()
    forward, backward = count_products(model, objective, b)
    assert forward.calls["attention_forward"] == CONFIG.n_layer
    assert dict(backward.calls) == {"linear_backward_weight": 2, "linear_backward_input": 1}  # of the head alone
    _, back = objective.forward(model, b, 3.0, model.context(grad=True, training=True, rng=model.backend.rng(0)))
    B, width, hidden = 3, 3 * CONFIG.n_embd, 5
    # The head's two inputs, where its relu was active, and the softmax; neither the trunk's states nor the pooling's.
    most = 8 * B * (width + hidden + 3) + B * hidden + 64
    assert held_bytes(back, exclude=[*(p.data for p in model.parameters()), *b.values()]) <= most
    before = {p.name: p.data.copy() for p in model.parameters()}
    config = TrainConfig(3, lr=0.1, workers=1)
    train(model, objective, lambda step: b, config, progress=False)
    for p in model.parameters():
        changed = (p.data != before[p.name]).any()
        assert changed == p.name.startswith("score"), p.name


def test_head_has_as_many_parameters_as_its_layers() -> None:
    C = CONFIG.n_embd
    for hidden, wanted in ((0, 3 * C * 4 + 4), (50, (3 * C * 50 + 50) + (50 * 4 + 4))):
        model = Classifier(GPT(CONFIG), 4, hidden=hidden)
        assert model.n_parameters - model.trunk.n_parameters == wanted


def test_a_copy_trains_alone() -> None:
    model, b = tiny(), batch()
    twin = model.copy()
    before = {p.name: p.data.copy() for p in model.parameters()}
    train(twin, Classification(), lambda step: b, TrainConfig(2, lr=0.1, workers=1), progress=False)
    assert all((p.data == before[p.name]).all() for p in model.parameters())
    assert all((p.data != before[p.name]).any() for p in twin.parameters())


def test_seed_decides_about_the_head() -> None:
    def weight(seed: int) -> np.ndarray:
        return next(p.data for p in Classifier(GPT(CONFIG), 3, seed).parameters() if p.name == "score.weight")

    np.testing.assert_array_equal(weight(1), weight(1))
    assert (weight(1) != weight(2)).any()


# ---------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lengths": np.array([0, 2, 3])}, "a length of 0 is outside of 1 to 5"),
        ({"lengths": np.array([1, 6, 3])}, "a length of 6 is outside of 1 to 5"),
        ({"lengths": np.array([1, 2])}, r"lengths must be 3 integers, not int64 of shape \(2,\)"),
        ({"lengths": np.array([1.0, 2.0, 3.0])}, r"lengths must be 3 integers, not float64 of shape \(3,\)"),
        ({"labels": np.array([0, 1, 3])}, "label 3 is not one of the head's, 0 to 2"),
        ({"labels": np.array([0, -1, 2])}, "label -1 is not one of the head's, 0 to 2"),
        ({"labels": np.array([-100, -100, -100])}, "no label to score: all are -100"),
        ({"labels": np.array([0, 1])}, r"labels must be 3 integers, not int64 of shape \(2,\)"),
        ({"labels": np.array([0.0, 1.0, 2.0])}, "labels must be 3 integers, not float64"),
        ({"ids": np.full((3, 5), 11)}, "11"),
        ({"ids": np.full((3, 5), -1)}, "-1"),
        ({"ids": np.zeros((3, 8), int)}, "8 tokens do not fit into the model's context of 7"),
    ],
)
def test_what_does_not_fit_gets_one_line(change: dict[str, np.ndarray], said: str) -> None:
    model, b = tiny(), batch() | change
    if b["ids"].shape[1] == 8:
        b["lengths"] = np.array([8, 2, 3])
    with pytest.raises(ValueError, match=said) as caught:
        model.loss_and_grads(b["ids"], b["labels"], b["lengths"])
    assert "\n" not in str(caught.value)
    objective = Classification()
    with pytest.raises(ValueError, match=said) as caught:  # in training as well
        objective.forward(model, b, objective.total(b), model.context())
    assert "\n" not in str(caught.value)


def test_lengths_are_checked_where_scores_are_asked_for() -> None:
    with pytest.raises(ValueError, match="a length of 9 is outside of 1 to 4"):
        tiny().logits(np.zeros((1, 4), int), [9])
