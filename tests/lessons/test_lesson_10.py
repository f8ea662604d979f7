"""Lesson 10: the losses of reward model, PPO and DPO, the models and the loop around them, and the whole lesson."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kernels import get_backend
from lessons import lesson_10_rlhf as lesson
from lessons.common import rlhf, rlhf_experiment, rlhf_pictures, runner
from lessons.common.runner import Run, Settings
from minigpt import GPT, GPTConfig
from minigpt.data import Ranking, tinyworld
from minigpt.errors import InputError, RunError
from minigpt.heads import token_logprobs
from minigpt.objectives import take
from minigpt.parameters import Gradients
from minigpt.training import TrainConfig, train
from tests.helpers import assert_gradient
from tests.standin import BACKEND as STANDIN

NUMPY = get_backend("numpy")
SHAPES = [(1, 1), (1, 7), (4, 1), (3, 5)]


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the committed record, nor depends on it."""
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def mask_of(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A run of valid places in every row, of random begin and length."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for row in mask:
        begin, end = sorted(rng.choice(shape[1] + 1, 2, replace=False))
        row[begin:end] = True
    return mask


# ---------------------------------------------------------------------------------------------- reward model


@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_reward_loss(pairs: int) -> None:
    chosen, rejected, margin = normal(1, 3, pairs) * 2
    loss, cache = lesson.reward_loss_forward(chosen, rejected, margin, 4.5)
    wanted = -np.log(1 / (1 + np.exp(-(chosen - rejected - margin)))).sum() / 4.5
    assert loss == pytest.approx(wanted, rel=1e-12)
    dchosen, drejected = lesson.reward_loss_backward(cache)
    assert_gradient(dchosen, lambda c: lesson.reward_loss_forward(c, rejected, margin, 4.5)[0], chosen, 1.0)
    assert_gradient(drejected, lambda r: lesson.reward_loss_forward(chosen, r, margin, 4.5)[0], rejected, 1.0)
    assert lesson.reward_loss_forward(chosen, rejected)[0] == pytest.approx(
        lesson.reward_loss_forward(chosen, rejected, 0.0, float(pairs))[0]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_of_extreme_scores_are_finite(dtype: str) -> None:
    far = np.array([1e4, -1e4, 0.0], dtype)
    loss, cache = lesson.reward_loss_forward(far, -far)
    assert loss == pytest.approx((2e4 + math.log(2)) / 3, rel=1e-6)
    np.testing.assert_allclose(lesson.reward_loss_backward(cache)[0], [0, -1 / 3, -0.5 / 3], rtol=1e-6)
    loss, cache = lesson.dpo_loss_forward(far, -far, 0 * far, 0 * far, 1.0, 0.1)
    assert math.isfinite(loss)
    assert all(np.isfinite(d).all() for d in lesson.dpo_loss_backward(cache))


# ---------------------------------------------------------------------------------------------- PPO


def advantages_by_definition(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    wanted = np.zeros(mask.shape)
    for b, row in enumerate(mask):
        places = np.flatnonzero(row)
        v = [*values[b, places], 0.0]
        delta = [rewards[b, p] + gamma * v[i + 1] - v[i] for i, p in enumerate(places)]
        for i, p in enumerate(places):
            wanted[b, p] = sum((gamma * lam) ** j * d for j, d in enumerate(delta[i:]))
    return wanted


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (0.7, 1.0)])
def test_gae(shape: tuple[int, int], gamma: float, lam: float) -> None:
    mask = mask_of(2, shape)
    rewards, values = normal(3, 2, *shape)
    rewards *= mask
    before = values.copy()
    advantages, returns = lesson.gae(rewards, values, mask, gamma, lam)
    wanted = advantages_by_definition(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(advantages, wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(returns, (wanted + values) * mask, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(values, before)
    elsewhere = lesson.gae(rewards, np.where(mask, values, 77.0), mask, gamma, lam)[0]
    np.testing.assert_array_equal(elsewhere, advantages)  # what stands beside the response does not matter


def test_gae_between_its_ends() -> None:
    rewards, values = normal(4, 2, 2, 6)
    mask = np.ones((2, 6), bool)
    to_come = rewards[:, ::-1].cumsum(1)[:, ::-1]
    np.testing.assert_allclose(lesson.gae(rewards, values, mask, 1.0, 1.0)[1], to_come)
    one_step = rewards + np.concatenate((values[:, 1:], np.zeros((2, 1))), 1)
    np.testing.assert_allclose(lesson.gae(rewards, values, mask, 1.0, 0.0)[1], one_step)


@pytest.mark.parametrize("shape", SHAPES)
def test_kl_rewards(shape: tuple[int, int]) -> None:
    mask = mask_of(5, shape)
    logprobs, reference = normal(6, 2, *shape) * mask
    scores = normal(7, shape[0])
    rewards = lesson.kl_rewards(logprobs, reference, scores, mask, 0.3)
    np.testing.assert_allclose(rewards.sum(1), scores - 0.3 * (logprobs - reference).sum(1))
    last = [np.flatnonzero(row)[-1] for row in mask]
    without = rewards.copy()
    without[np.arange(shape[0]), last] -= scores
    np.testing.assert_allclose(without, -0.3 * (logprobs - reference), atol=1e-12)
    assert not rewards[~mask].any()


def test_whiten() -> None:
    mask = mask_of(8, (5, 9))
    x = 3 + 5 * normal(9, 5, 9)
    white = lesson.whiten(x, mask)
    assert white[mask].mean() == pytest.approx(0, abs=1e-12)
    assert white[mask].var(ddof=1) == pytest.approx(1, rel=1e-8)
    assert not white[~mask].any()
    np.testing.assert_array_equal(lesson.whiten(np.where(mask, x, 1e9), mask), white)
    constant = lesson.whiten(np.full((2, 2), 4.0), np.ones((2, 2), bool))
    assert not constant.any()
    with pytest.raises(ValueError, match="1 valid entries have no variance; at least 2"):
        lesson.whiten(x, np.eye(1, 45, dtype=bool).reshape(5, 9))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_losses(shape: tuple[int, int], seed: int) -> None:
    mask = mask_of(seed, shape)
    logprobs, advantages = normal(10 + seed, 2, *shape)
    moved = np.random.default_rng(seed).choice(
        [-0.6, -0.3, -0.1, 0.1, 0.3, 0.6], shape
    )  # log 0.8 is −0.22, log 1.2 0.18
    old = logprobs - moved
    ratio = np.exp(moved)
    loss, cache = lesson.ppo_policy_loss_forward(logprobs, old, advantages, mask, 0.2, 3.5)
    wanted = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.2))[mask].sum() / 3.5
    assert loss == pytest.approx(wanted, rel=1e-12)
    gradient = lesson.ppo_policy_loss_backward(cache)
    assert_gradient(
        gradient, lambda x: lesson.ppo_policy_loss_forward(x, old, advantages, mask, 0.2, 3.5)[0], logprobs, 1.0
    )
    assert not gradient[~mask].any()

    values, returns = normal(20 + seed, 2, *shape)
    before = values + 2 * moved  # 0.5 is none of the distances
    clipped = np.clip(values, before - 0.5, before + 0.5)
    loss, cache = lesson.ppo_value_loss_forward(values, before, returns, mask, 0.5, 3.5)
    wanted = 0.5 * np.maximum((values - returns) ** 2, (clipped - returns) ** 2)[mask].sum() / 3.5
    assert loss == pytest.approx(wanted, rel=1e-12)
    gradient = lesson.ppo_value_loss_backward(cache)
    assert_gradient(
        gradient, lambda v: lesson.ppo_value_loss_forward(v, before, returns, mask, 0.5, 3.5)[0], values, 1.0
    )
    assert not gradient[~mask].any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "has_gradient"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.1, 1.0, True), (0.9, -1.0, True)],
)
def test_clipping_ends_gains_only(ratio: float, advantage: float, has_gradient: bool) -> None:
    one = np.ones((1, 1))
    _, cache = lesson.ppo_policy_loss_forward(math.log(ratio) * one, 0 * one, advantage * one, one > 0, 0.2)
    gradient = float(lesson.ppo_policy_loss_backward(cache)[0, 0])
    assert gradient == pytest.approx(-advantage * ratio if has_gradient else 0.0)


def test_ratios_outside_of_the_response_do_not_overflow() -> None:
    logprobs, mask = np.array([[900.0, 0.1]]), np.array([[False, True]])
    loss, cache = lesson.ppo_policy_loss_forward(logprobs, 0 * logprobs, np.ones((1, 2)), mask)
    assert math.isfinite(loss)
    assert np.isfinite(lesson.ppo_policy_loss_backward(cache)).all()


@pytest.mark.parametrize(
    ("kl", "wanted"), [(6.0, 0.1), (6.6, 0.1 * 1.01), (60.0, 0.1 * 1.02), (5.4, 0.1 * 0.99), (-3.0, 0.1 * 0.98)]
)
def test_adaptive_kl(kl: float, wanted: float) -> None:
    assert lesson.adaptive_kl(0.1, kl, 6.0, 50, 500.0) == pytest.approx(wanted)


# ---------------------------------------------------------------------------------------------- DPO


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.3), ("ipo", 0.0)])
@pytest.mark.parametrize("pairs", [1, 6])
def test_dpo_loss(kind: str, smoothing: float, pairs: int) -> None:
    chosen, rejected, *reference = normal(40, 4, pairs)

    def loss(c: np.ndarray, r: np.ndarray) -> float:
        return lesson.dpo_loss_forward(c, r, *reference, 0.7, smoothing, kind, 2.5)[0]  # type: ignore[misc]

    h = (chosen - reference[0]) - (rejected - reference[1])
    if kind == "ipo":
        wanted = (h - 1 / 1.4) ** 2
    else:
        wanted = -(1 - smoothing) * np.log(1 / (1 + np.exp(-0.7 * h))) - smoothing * np.log(1 / (1 + np.exp(0.7 * h)))
    assert loss(chosen, rejected) == pytest.approx(wanted.sum() / 2.5, rel=1e-12)
    _, cache = lesson.dpo_loss_forward(chosen, rejected, *reference, 0.7, smoothing, kind, 2.5)  # type: ignore[misc]
    dchosen, drejected = lesson.dpo_loss_backward(cache)
    assert_gradient(dchosen, lambda c: loss(c, rejected), chosen, 1.0)
    assert_gradient(drejected, lambda r: loss(chosen, r), rejected, 1.0)


def test_dpo_is_the_reward_loss_of_the_implied_reward() -> None:
    chosen, rejected, first, second = normal(41, 4, 5)
    dpo, _ = lesson.dpo_loss_forward(chosen, rejected, first, second, 0.4)
    assert dpo == pytest.approx(lesson.reward_loss_forward(0.4 * (chosen - first), 0.4 * (rejected - second))[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing is 0.5; it must be in \[0, 0.5\)"),
        ({"kind": "hinge"}, "kind is 'hinge'; it must be 'sigmoid', or 'ipo'"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "'ipo' without label_smoothing"),
    ],
)
def test_impossible_dpo(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lesson.DPO(**settings)


# ---------------------------------------------------------------------------------------------- whole models

CASES = ("reward model", "PPO", "DPO")


BELOW = ("*.wte.*", "*.wpe.*", "*.h.0.*")


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        *((name, frozen) for name in CASES for frozen in ((), BELOW)),
        ("reward model", ("transformer.*",)),
        ("PPO", ("transformer.*",)),
    ],
)
def test_every_parameter(name: str, frozen: tuple[str, ...]) -> None:
    model, objective, batch = lesson.tiny_cases(NUMPY, seed=1)[name]
    if frozen:
        model.freeze(frozen)
    checks = lesson.check_objective(model, objective, batch)
    assert all(c.ok for c in checks), checks
    grads = Gradients(model.parameters(), NUMPY)
    objective.forward(model, batch, objective.total(batch), model.context(grad=True))[1](grads)
    assert set(grads) == {p.name for p in model.parameters() if p.trainable}


@pytest.mark.parametrize("name", CASES)
def test_shards_add_up(name: str) -> None:
    model, objective, batch = lesson.tiny_cases(NUMPY, seed=2)[name]
    total = objective.total(batch)

    def run(parts: list[slice]) -> tuple[float, dict[str, np.ndarray]]:
        grads, loss = Gradients(model.parameters(), NUMPY), 0.0
        for part in parts:
            share, back = objective.forward(model, take(batch, part), total, model.context(grad=True))
            back(grads)
            loss += share
        return loss, grads.as_dict()

    whole, wanted = run([slice(None)])
    sum_of_parts, gradients = run([slice(0, 1), slice(1, None)])
    assert sum_of_parts == pytest.approx(whole, rel=1e-12)
    for p, gradient in wanted.items():
        np.testing.assert_allclose(gradients[p], gradient, rtol=1e-9, atol=1e-13)


def test_two_workers_train_as_one() -> None:
    config = TrainConfig(steps=2, lr=0.01, workers=1)

    def after(workers: int) -> dict[str, np.ndarray]:
        model, objective, batch = lesson.tiny_cases(NUMPY, seed=3)["PPO"]
        train(model, objective, lambda step: batch, replace(config, workers=workers), progress=False)
        return {p.name: p.data for p in model.parameters()}

    one, two = after(1), after(2)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-9, atol=1e-12)


def test_no_array_of_the_device_meets_numpy() -> None:
    for derivation in lesson.DERIVATIONS:
        assert all(c.ok for c in derivation.check(STANDIN))
    for name in CASES:
        here, there = (lesson.tiny_cases(backend, seed=4)[name] for backend in (NUMPY, STANDIN))
        losses, gradients = [], []
        for model, objective, batch in (here, there):
            grads = Gradients(model.parameters(), model.backend)
            loss, back = objective.forward(model, batch, objective.total(batch), model.context(grad=True))
            back(grads)
            losses.append(loss)
            gradients.append({p: model.backend.to_numpy(g) for p, g in grads.as_dict().items()})
        assert losses[1] == pytest.approx(losses[0], rel=1e-12)
        for p, gradient in gradients[0].items():
            np.testing.assert_allclose(gradients[1][p], gradient, rtol=1e-10, atol=1e-13)


def test_temperature_divides_the_logits() -> None:
    model, _, batch = lesson.tiny_cases(NUMPY)["DPO"]
    texts = rlhf.flat({name: batch[name] for name in ("ids", "targets", "lengths")})
    logits = model.logits(texts["ids"]) / 1.7
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.take_along_axis(logs, np.maximum(texts["targets"], 0)[..., None], -1)[..., 0]
    wanted *= texts["targets"] != -100
    np.testing.assert_allclose(rlhf.response_logprobs(model, texts, 1.7), wanted, rtol=1e-12, atol=1e-14)
    policy = rlhf.PolicyWithValue(model)
    policy.head.bias.data = np.ones(1)
    logprobs, values = policy.logprobs_and_values(texts, 1.7)
    np.testing.assert_allclose(logprobs, wanted, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(values, texts["targets"] != -100)


def test_scores_of_a_reward_model() -> None:
    model, _, batch = lesson.tiny_cases(NUMPY)["reward model"]
    texts = rlhf.flat(batch)
    scores = model.scores(texts)
    single = [model.scores({"ids": i[None, :n], "lengths": np.array([n])})[0]
              for i, n in zip(texts["ids"], texts["lengths"], strict=True)]  # fmt: skip
    np.testing.assert_allclose(scores, single, rtol=1e-12)  # padding is not seen
    model.normalise(texts)
    normal_scores = model.scores(texts)
    assert normal_scores.mean() == pytest.approx(0, abs=1e-12)
    assert normal_scores.var() == pytest.approx(1)
    model.normalise(texts)
    np.testing.assert_allclose(model.scores(texts), normal_scores, atol=1e-12)
    assert np.corrcoef(scores, normal_scores)[0, 1] == pytest.approx(1)
    checks = lesson.check_objective(model, lesson.RewardModelling(), batch)  # the gain is in the backward too
    assert all(c.ok for c in checks)
    model.head.weight.data = 0 * model.head.weight.data
    with pytest.raises(RunError, match="all 9 responses the score"):
        model.normalise(texts)
    assert model.copy().head.weight is not model.head.weight


# ---------------------------------------------------------------------------------------------- rankings


class Letters:
    """A tokenizer of six letters and an end."""

    vocab_size, eos_token_id = 7, 6

    def encode(self, text: str) -> list[int]:
        return ["abcdef".index(c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join("abcdef."[i] for i in ids)


LETTERS: Any = Letters()


def test_rows_of_a_ranking() -> None:
    batch = rlhf.encode_rankings(LETTERS, [Ranking("ab", ("c", "def"), (0.1, 0.9))], 8)
    assert batch["ids"].tolist() == [[[0, 1, 2, 6, 0, 0], [0, 1, 3, 4, 5, 6]]]
    assert batch["targets"].tolist() == [[[-100, 2, 6, -100, -100, -100], [-100, 3, 4, 5, 6, -100]]]
    assert batch["lengths"].tolist() == [[4, 6]]
    assert rlhf.best_responses(batch)["ids"].tolist() == [[0, 1, 3, 4, 5, 6]]
    pairs = rlhf.all_pairs(batch, np.array([[-1.0, -2.0]]))
    assert pairs["ids"][0].tolist() == batch["ids"][0][::-1].tolist()  # the preferred one first
    assert pairs["reference"].tolist() == [[-2.0, -1.0]]
    assert rlhf.flat({**batch, "lengths": np.array([[4, 5]])})["ids"].shape == (2, 5)


def test_a_long_prompt_loses_its_beginning() -> None:
    batch = rlhf.pack([[0, 1, 2, 3], [4]], [[5, 6], [5]], room=4)
    assert batch["ids"].tolist() == [[2, 3, 5, 6], [4, 5, 0, 0]]
    assert batch["targets"].tolist() == [[-100, 5, 6, -100], [5, -100, -100, -100]]


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ([], "there are no rankings; at least 1"),
        ([Ranking("a", ("b",), (1.0,))], "ranking 0 has 1 responses and 1 rewards; .* 2 or more"),
        ([Ranking("a", ("b", "c"), (1.0, 0.0)), Ranking("a", ("b", "c", "d"), (1.0, 0.0, 2.0))], "ranking 1 has 3"),
        ([Ranking("a", ("b", "c"), (0.5, 0.5))], r"ranking 0 prefers nothing: its rewards are \[0.5, 0.5\]"),
        ([Ranking("a", ("b", "c"), (0.5, math.nan))], "ranking 0 prefers nothing"),
        ([Ranking("a", ("bcdefabc", "c"), (0.5, 0.1))], "response 0 has 9 tokens; the context of 8 allows 7"),
    ],
)
def test_impossible_rankings(rankings: list[Ranking], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rlhf.encode_rankings(LETTERS, rankings, 8)


def test_equal_rewards_within_a_ranking_make_no_pair() -> None:
    batch = lesson.tiny_rankings()
    assert lesson.RewardModelling().total(batch) == 3 + 2 + 3
    assert len(rlhf.all_pairs(batch, np.zeros((3, 3)))["ids"]) == 8


def test_epochs_of_groups() -> None:
    whole = {"ids": np.arange(7)}
    batches = rlhf.shuffled(whole, 3, seed=1)
    seen = [batches(step)["ids"].tolist() for step in range(4)]
    assert seen == [rlhf.shuffled(whole, 3, seed=1)(step)["ids"].tolist() for step in range(4)]
    assert len({*seen[0], *seen[1]}) == 6
    assert seen[:2] != seen[2:]
    assert rlhf.shuffled(whole, 99, seed=1)(0)["ids"].shape == (7,)


# ---------------------------------------------------------------------------------------------- the loop


class Counter:
    """A reward model that likes one letter."""

    def scores(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        return ((batch["targets"] == 3).sum(1) / np.maximum((batch["targets"] != -100).sum(1), 1)).astype(float)


def letters_model(seed: int = 0) -> GPT:
    config = GPTConfig(vocab_size=7, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    return GPT(config, seed=seed, dtype="float64")


def experience(settings: rlhf.PPOSettings, reward_model: Any = None) -> rlhf.Experience:
    start = letters_model()
    policy = rlhf.PolicyWithValue(start.copy())
    sampler = rlhf.Sampler(LETTERS, 6)
    prompts = ["a", "ab", "abc", "b"] * 8
    return rlhf.Experience(policy, start, reward_model or Counter(), prompts, sampler, settings, 0)


def run_ppo(loop: rlhf.Experience, lr: float, workers: int = 1) -> None:
    s = loop.settings
    config = TrainConfig(steps=s.iterations * s.updates, lr=lr, weight_decay=0.0, schedule="constant", workers=workers)
    train(loop.policy, s.loss, loop, config, progress=False)


def test_ppo_learns_what_is_rewarded() -> None:
    loop = experience(rlhf.PPOSettings(loss=lesson.PPO(beta=0.0), iterations=15, episodes=32))
    before = {p.name: p.data.copy() for p in loop.reference.parameters()}
    run_ppo(loop, 0.02)
    curve = loop.curve
    assert len(curve) == 15
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert curve[0]["clipped"] == 0
    assert curve[-1]["learnt"] > curve[0]["learnt"] + 0.3
    assert curve[-1]["kl"] > 1
    assert all(np.array_equal(p.data, before[p.name]) for p in loop.reference.parameters())


def test_the_price_keeps_the_policy_near_its_start() -> None:
    ends = []
    for beta in (0.0, 0.5):
        loop = experience(rlhf.PPOSettings(loss=lesson.PPO(beta=beta), iterations=10, episodes=32))
        run_ppo(loop, 0.02)
        ends.append(loop.curve[-1]["kl"])
    assert ends[1] < 0.7 * ends[0]


def test_adaptive_price_rises_while_the_divergence_is_too_large() -> None:
    settings = rlhf.PPOSettings(loss=lesson.PPO(beta=0.1, target_kl=0.05, horizon=100.0), iterations=6, episodes=32)
    loop = experience(settings)
    run_ppo(loop, 0.02)
    betas = [point["beta"] for point in loop.curve]
    assert betas[1] == pytest.approx(0.1 * (1 - 0.2 * 32 / 100))  # nothing has moved yet
    assert loop.beta > betas[2]


def test_rollouts_are_written_once_and_by_the_policy_of_the_moment() -> None:
    loop = experience(rlhf.PPOSettings(loss=lesson.PPO(), iterations=2, episodes=8, epochs=2, minibatches=2))
    first, again = loop(0), loop(0)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    parts = [loop(step) for step in range(4)]
    assert len(loop.curve) == 1
    lengths = sorted(n for part in parts[:2] for n in part["lengths"].tolist())
    assert lengths == sorted(loop.rollout["lengths"].tolist())  # an epoch sees every response once
    hidden, _ = loop.policy.trunk.forward(first["ids"], loop.policy.context())
    logprobs, _ = token_logprobs(hidden, loop.policy.wte, first["targets"], loop.policy.context())
    np.testing.assert_allclose(logprobs, first["logprobs"], atol=1e-12)  # every ratio starts at 1
    mask = loop.rollout["targets"] != -100
    assert loop.rollout["advantages"][mask].var(ddof=1) == pytest.approx(1, rel=1e-5)
    loop.policy.trunk.wte.data = 30 * loop.policy.trunk.wte.data
    loop(4)
    assert len(loop.curve) == 2
    assert loop.curve[1]["kl"] > 0.1
    assert loop.curve[1]["clipped"] > 0


def test_a_response_without_end_is_fined() -> None:
    plain, fined = (
        experience(rlhf.PPOSettings(loss=lesson.PPO(lam=1.0), iterations=1, episodes=16, missing_eos_penalty=fine))
        for fine in (0.0, 5.0)
    )
    first, second = plain(0), fined(0)
    np.testing.assert_array_equal(first["ids"], second["ids"])
    ended = (first["targets"] == 6).any(1)
    assert 0 < ended.sum() < len(ended)
    difference = (first["returns"] - second["returns"])[first["targets"] != -100]
    rows = np.nonzero(first["targets"] != -100)[0]
    np.testing.assert_allclose(difference, np.where(ended[rows], 0.0, 5.0), atol=1e-9)


def test_divergence_and_nan_say_where() -> None:
    class Broken:
        def scores(self, batch: dict[str, np.ndarray]) -> np.ndarray:
            return np.full(len(batch["ids"]), np.nan)

    loop = experience(rlhf.PPOSettings(loss=lesson.PPO(), episodes=8), Broken())
    with pytest.raises(RunError, match="rollout 1: a score or a log-probability is not finite"):
        loop(0)
    loop = experience(rlhf.PPOSettings(loss=lesson.PPO(), iterations=3, episodes=8))
    with pytest.raises(RunError, match="not finite"):
        run_ppo(loop, 1e155)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rlhf.PPOSettings(loss=lesson.PPO(), epochs=0), "epochs is 0; it must be 1 or more"),
        (lambda: rlhf.PPOSettings(loss=lesson.PPO(), minibatches=65), "minibatches is 65; 64 episodes"),
        (lambda: rlhf.PPOSettings(loss=lesson.PPO(), missing_eos_penalty=-1.0), "missing_eos_penalty is -1.0"),
        (lambda: lesson.PPO(beta=-0.1), "beta is -0.1; it must be a number of 0 or more"),
        (lambda: lesson.PPO(lam=1.1), r"lam is 1.1; it must be in \[0, 1\]"),
        (lambda: lesson.PPO(target_kl=0.0), "target_kl is 0.0; it must be above 0"),
        (lambda: lesson.PPO(temperature=0.0), "temperature is 0.0; it must be above 0"),
        (lambda: rlhf.Sampler(LETTERS, 0), "max_new_tokens is 0"),
        (lambda: rlhf.Sampler(LETTERS, 16).draw(letters_model(), ["a"], 0), "leave no room for a prompt"),
        (lambda: rlhf.Sampler(LETTERS, 4).draw(letters_model(), [], 0), "there are no prompts"),
        (lambda: experience(rlhf.PPOSettings(loss=lesson.PPO(), episodes=33)), "33 episodes need as many prompts"),
        (
            lambda: experience(rlhf.PPOSettings(loss=lesson.PPO(temperature=0.7), episodes=8)),
            "drawn at temperature 1.0, but the loss has 0.7",
        ),
    ],
)
def test_impossible_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_dpo_orders_pairs() -> None:
    rankings = [Ranking("ab", ("cd", "ef"), (1.0, 0.0)), Ranking("ba", ("fe", "dc"), (0.0, 1.0))] * 4
    batch = rlhf.encode_rankings(LETTERS, rankings, 16)
    model = letters_model(1)
    texts = rlhf.flat(batch)
    reference = rlhf.response_logprobs(model, texts).sum(1).reshape(8, 2)
    pairs = rlhf.all_pairs(batch, reference)
    history = train(
        model,
        lesson.DPO(),
        rlhf.shuffled(pairs, 4, 0),
        TrainConfig(steps=20, lr=0.02, weight_decay=0.0, workers=1),
        progress=False,
    )
    assert history.losses[0] == pytest.approx(math.log(2))
    assert history.losses[-1] < 0.6
    implied = rlhf.response_logprobs(model, texts).sum(1).reshape(8, 2) - reference
    assert rlhf_experiment.ordered_rightly(implied, batch["rewards"]) == 1


def test_reward_model_learns_and_best_of_n_uses_it() -> None:
    assert rlhf_experiment.ordered_rightly(np.array([[1.0, 2, 3]]), np.array([[0.0, 5, 4]])) == pytest.approx(2 / 3)
    assert rlhf.best_of_kl(1) == 0
    assert rlhf.best_of_kl(4) == pytest.approx(math.log(4) - 0.75)
    judges = rlhf.Judges(rlhf.Sampler(LETTERS, 6), letters_model(), Counter(), ("a", "b", "ab", "ba") * 4)  # type: ignore[arg-type]
    best = judges.best_of(letters_model(), (1, 2, 8))
    assert best[1][1] <= best[2][1] <= best[8][1]
    assert best[8][1] > best[1][1]
    quality = judges.judge(letters_model())
    assert quality.kl == pytest.approx(0, abs=1e-9)
    assert quality.learnt == pytest.approx(best[1][1])


def test_forgetting_at_equal_reward() -> None:
    first, second = [(0.1, 0.0), (0.5, 0.2), (0.9, 0.4)], [(0.1, 0.0), (0.7, 0.9)]
    assert rlhf_experiment.matched_forgetting(first, second) == pytest.approx(0.9 - 0.3)


# ---------------------------------------------------------------------------------------------- wrong variants

MUTATIONS = [
    ("reward_loss_forward", "chosen - rejected - margin", "chosen - rejected + margin"),
    ("reward_loss_backward", "sigmoid(-h)", "sigmoid(h)"),
    ("reward_loss_backward", "return dchosen, -dchosen", "return dchosen, dchosen"),
    ("reward_loss_backward", " / n", ""),
    ("kl_rewards", "-beta", "beta"),
    ("kl_rewards", "last] += scores", "last] = scores"),
    ("kl_rewards", "T - 1 - mask[:, ::-1].argmax(1)", "mask.argmax(1)"),
    ("gae", "gamma * lam * next_advantage", "lam * next_advantage"),
    ("gae", "+ gamma * next_value", "+ next_value"),
    ("gae", "next_value = values[:, t] * mask[:, t]", "next_value = values[:, t]"),
    ("gae", "(advantages + values) * mask", "advantages + values"),
    ("whiten", "(n - 1)", "n"),
    ("whiten", "* mask).sum()) / n) * mask", "* mask).sum()) / n)"),
    ("ppo_policy_loss_forward", "xp.maximum(plain, clipped)", "xp.minimum(plain, clipped)"),
    ("ppo_policy_loss_backward", "plain >= clipped", "plain <= clipped"),
    ("ppo_policy_loss_backward", "* (plain >= clipped)", ""),
    ("ppo_policy_loss_backward", "return plain", "return -plain"),
    ("ppo_value_loss_backward", "* (error**2 >= clipped**2)", ""),
    ("ppo_value_loss_forward", "0.5 * ", ""),
    ("dpo_loss_forward", "- (rejected - reference_rejected)", "+ (rejected - reference_rejected)"),
    ("dpo_loss_backward", "-beta * ((1", "-((1"),
    ("dpo_loss_backward", "- label_smoothing * sigmoid(beta * h)", "+ label_smoothing * sigmoid(beta * h)"),
    ("dpo_loss_backward", "2 * (h", "(h"),
    ("dpo_loss_backward", "return dh, -dh", "return dh, dh"),
]


@pytest.mark.parametrize(("function", "right", "wrong"), MUTATIONS)
def test_wrong_variants_are_seen(function: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = inspect.getsource(getattr(lesson, function))
    assert code.count(right) == 1
    module = dict(vars(lesson))
    exec(code.replace(right, wrong), module)
    monkeypatch.setattr(lesson, function, module[function])
    assert not all(c.ok for derivation in lesson.DERIVATIONS for c in derivation.check(NUMPY))


GRADED = sorted({name for name, _, _ in MUTATIONS})


@pytest.mark.parametrize("function", GRADED)
def test_what_is_not_written_yet_is_called_so(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(lesson, function, empty)
    checks = [c for derivation in lesson.DERIVATIONS for c in derivation.check(NUMPY)]
    assert any(c.missing for c in checks)
    assert all(c.ok or c.missing for c in checks)


# ---------------------------------------------------------------------------------------------- the lesson


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lesson.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "lesson-10" / "record.json").read_text(encoding="utf-8"))
    figures = record["figures"]
    for name in ("reward_model_accuracy", "supervised_true_reward", "ppo_true_reward", "ppo_without_price_true_reward",
                 "dpo_true_reward", "ppo_kl", "ppo_forgotten", "best_of_2_true_reward"):  # fmt: skip
        assert len(figures[name]["values"]) == 1
        assert math.isfinite(figures[name]["values"][0])
    arms = record["results"]["arms"][0]
    assert arms["supervised"]["kl"] == pytest.approx(0, abs=1e-6)
    assert arms["base"]["forgotten"] == 0
    assert [len(arms[name]["curve"]) for name in ("PPO", "PPO, β = 0")] == [2, 2]
    assert [arms[name]["curve"][0]["beta"] for name in ("PPO", "PPO, β = 0")] == [lesson.QUICK.ppo.loss.beta, 0]
    for name in ("reward_against_kl", "ppo", "reward_model"):
        assert imread(tmp_path / "lesson-10" / f"{name}.png").std() > 0.01
    assert "every gradient agrees" in printed
    assert "WRONG" not in printed


def test_pictures_of_a_full_run(tmp_path: Path) -> None:
    sweeps = {"PPO": {"as it is": [0.6, 0.7], "β = 0": [0.2, 0.3]}, "DPO": {"IPO": [0.5, 0.6]}}
    paths = {"PPO": [[(0.4, 0.1), (0.6, 0.2)]], "more supervised": [[(0.4, 0.1), (0.5, 0.5)]]}
    run = Run(10, Settings(full=True, out=tmp_path), tmp_path)
    rlhf_experiment.show_sweeps(run, sweeps, paths)
    assert [f.values for f in run.reported] == [[pytest.approx(0.5 - 0.15)]]
    assert {path.stem for path in run.pictures} == {"sweeps", "forgetting"}
    np.testing.assert_allclose(rlhf_pictures.smooth([1.0, 2, 6], 3), [1.5, 3, 4])


@pytest.mark.slow
def test_full_run(tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ppo = replace(lesson.QUICK.ppo, iterations=1)
    monkeypatch.setattr(lesson, "CORE", replace(lesson.QUICK, ppo=ppo, judged=4, best_of=(1, 2), max_new_tokens=8))
    monkeypatch.setattr(lesson, "SEEDS", 2)
    monkeypatch.setattr(lesson, "SWEEP_SEEDS", 1)
    monkeypatch.setattr(rlhf_experiment, "REWARD_PROMPTS", (4, 8))
    assert lesson.main(["--full", "--brief", "--out", str(tmp_path)]) == 0
    committed = json.loads((records / "lesson-10.json").read_text(encoding="utf-8"))
    assert len(committed["figures"]["ppo_true_reward"]["values"]) == 2
    assert len(committed["figures"]["supervised_forgets_more_than_ppo"]["values"]) == 1
    assert {"reward_model_accuracy", "ppo_kl", "dpo_true_reward"} <= committed["bands"].keys()
    sweeps = committed["results"]["sweeps"]
    assert {name: len(variants) for name, variants in sweeps.items()} == {
        "PPO": 2, "β": 2, "adaptive β": 1, "epochs a rollout": 2, "rankings": 2, "DPO": 5,
    }  # fmt: skip
    assert all(len(values) == 1 for variants in sweeps.values() for values in variants.values())
    paths = committed["results"]["forgetting"]
    assert all(len(path) >= 2 and path[0] == paths["PPO"][0][0] for runs in paths.values() for path in runs)


def write_preferences(path: Path, n: int) -> Path:
    records = tinyworld.preferences(n, k=2, held_out=1).train
    lines = []
    for r in records:
        better = int(np.argmax(r.rewards))
        lines.append({"prompt": r.prompt, "chosen": r.responses[better], "rejected": r.responses[1 - better]})
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return path


def test_own_preferences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_preferences(tmp_path / "mine.jsonl", 24)
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "lesson-10" / "record.json").read_text(encoding="utf-8"))
    assert set(record["figures"]) == {"reward_model_accuracy", "dpo_accuracy"}
    assert GPT.from_pretrained(tmp_path / "lesson-10" / "model").config.n_layer == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "too few prompts: none for its train split"),
        ('{"prompt": "a"}', "line 1: must be a JSON object with the strings prompt, chosen, rejected"),
        ("[1", "line 1: not valid JSON"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "line 1: chosen and rejected are the same text"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "too few prompts"),
    ],
)
def test_impossible_files(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        rlhf.load_preferences(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="is not UTF-8"):
        rlhf.load_preferences(path)
    with pytest.raises(InputError, match="cannot be read"):
        rlhf.load_preferences(tmp_path / "none.jsonl")


GOLDEN = Path(__file__).parent.parent / "golden" / "rlhf.npz"


def test_losses_of_the_golden_file() -> None:
    """As TRL and torch compute them; see tests/parity/test_lesson_10_parity.py."""
    with np.load(GOLDEN) as stored:
        g = {name: stored[name] for name in stored.files}
    loss, cache = lesson.reward_loss_forward(*g["reward.scores"], g["reward.margin"])
    assert loss == pytest.approx(float(g["reward.loss"]), rel=1e-12)
    np.testing.assert_allclose(lesson.reward_loss_backward(cache), g["reward.grad"], rtol=1e-9)

    old, mask, values = g["ppo.old"], g["ppo.mask"], g["ppo.values"]
    rewards = lesson.kl_rewards(old, g["ppo.reference"], g["ppo.scores"], mask, 0.2)
    np.testing.assert_allclose(rewards, g["ppo.rewards"], rtol=1e-9, atol=1e-12)
    advantages, returns = lesson.gae(rewards, values, mask, 0.9, 0.8)
    advantages = lesson.whiten(advantages, mask)
    np.testing.assert_allclose(advantages, g["ppo.advantages"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(returns, g["ppo.returns"], rtol=1e-9, atol=1e-12)
    policy, policy_cache = lesson.ppo_policy_loss_forward(old + 0.3 * g["ppo.new"], old, advantages, mask, 0.2)
    value, value_cache = lesson.ppo_value_loss_forward(values + g["ppo.new"], values, returns, mask, 0.3)
    np.testing.assert_allclose([policy, value], g["ppo.losses"], rtol=1e-12)
    np.testing.assert_allclose(lesson.ppo_policy_loss_backward(policy_cache), g["ppo.dlogprobs"], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(lesson.ppo_value_loss_backward(value_cache), g["ppo.dvalues"], rtol=1e-9, atol=1e-13)

    for name, kind, smoothing in (("sigmoid", "sigmoid", 0.0), ("cdpo", "sigmoid", 0.2), ("ipo", "ipo", 0.0)):
        loss, cache = lesson.dpo_loss_forward(*g["dpo.sums"], 0.3, smoothing, kind)  # type: ignore[misc]
        assert loss == pytest.approx(float(g[f"dpo.{name}.loss"]), rel=1e-12)
        np.testing.assert_allclose(lesson.dpo_loss_backward(cache), g[f"dpo.{name}.grad"], rtol=1e-9)
