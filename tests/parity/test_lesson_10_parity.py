"""The losses of preference learning against TRL, and PPO against its formulas in torch, through transformers' GPT-2.

TRL 1.16 has the losses of the reward model and of DPO and IPO, which are called here as its trainers call them, and
PPO no longer: that is carried as lm-human-preferences' formulas, differentiated by torch. TRL's label smoothing is of
the "robust" loss, not of cDPO, which is also written out here.

The golden file of the default tests (tests/golden/rlhf.npz) is made here, by those libraries and not by our code. To
make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_lesson_10_parity.py -k golden
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.nn import functional as F  # noqa: E402

from kernels import get_backend  # noqa: E402
from lessons import lesson_10_rlhf as lesson  # noqa: E402
from lessons.common import rlhf  # noqa: E402
from minigpt import GPT, GPTConfig  # noqa: E402
from minigpt.objectives import Batch  # noqa: E402
from minigpt.parameters import Gradients  # noqa: E402
from tests.helpers import error  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden" / "rlhf.npz"
SIZES = {"vocab_size": 31, "n_positions": 14, "n_embd": 12, "n_layer": 2, "n_head": 3}
TOLERANCE = 1e-9


def models(seed: int = 0) -> tuple[Any, GPT]:
    """transformers' GPT-2 with random weights, and ours with the same."""
    drops = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    config = transformers.GPT2Config(
        **SIZES, **drops, attn_implementation="eager", bos_token_id=None, eos_token_id=None
    )
    theirs = transformers.GPT2LMHeadModel(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_((1.0 if p.ndim == 1 else 0.0) + 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    ours = GPT(GPTConfig(**SIZES), dtype="float64")  # type: ignore[arg-type]
    stored = theirs.state_dict()
    for q in ours.parameters():
        q.data = stored[q.name].numpy().copy()
    return theirs, ours


def rankings(seed: int = 1, N: int = 3, K: int = 4) -> Batch:
    """Rankings of random tokens, of unequal length."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 31, rng.integers(1, 5)).tolist() for _ in range(N) for _ in range(1)]
    rows = [(p, rng.integers(0, 31, rng.integers(1, 9)).tolist()) for p in prompts for _ in range(K)]
    batch = rlhf.pack(*zip(*rows, strict=True), room=14)  # type: ignore[arg-type]
    whole = {name: array.reshape(N, K, *array.shape[1:]) for name, array in batch.items()}
    return whole | {"rewards": rng.permutation(N * K).reshape(N, K).astype(float)}


def compare(theirs: Any, ours: Any, extra: dict[str, Any] | None = None) -> None:
    """Every gradient of ours against torch's."""
    named = dict(theirs.named_parameters()) | (extra or {})
    for name, gradient in ours.as_dict().items():
        wanted = named[name].grad.numpy()
        assert error(gradient, wanted, floor=1e-6) < TOLERANCE, name


def run(model: Any, objective: Any, batch: Batch) -> tuple[float, Gradients]:
    grads = Gradients(model.parameters(), get_backend("numpy"))
    loss, back = objective.forward(model, batch, objective.total(batch), model.context(grad=True))
    back(grads)
    return loss, grads


def logprobs_of(logits: Any, targets: np.ndarray) -> Any:
    """Log-probabilities of the targets, 0 where there is none."""
    t = torch.from_numpy(targets)
    values = torch.log_softmax(logits, -1).gather(-1, t.clamp(min=0)[..., None])[..., 0]
    return values * (t != -100)


class Recorder(SimpleNamespace):
    """What TRL's loss functions read of their trainer."""

    def __init__(self, **settings: Any) -> None:
        same = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
        super().__init__(
            model=SimpleNamespace(training=True),
            accelerator=same,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
            **settings,
        )


# ---------------------------------------------------------------------------------------------- reward model


def their_scores(theirs: Any, head: Any, batch: Batch) -> Any:
    texts = rlhf.flat(batch)
    hidden = theirs.transformer(torch.from_numpy(texts["ids"])).last_hidden_state
    last = hidden[torch.arange(len(hidden)), torch.from_numpy(texts["lengths"]) - 1]
    return (last @ head["score.weight"] + head["score.bias"])[:, 0].reshape(batch["rewards"].shape)


def head_of(model: Any) -> dict[str, Any]:
    return {p.name: torch.from_numpy(p.data.copy()).requires_grad_() for p in model.head.parameters()}


def test_reward_model_is_trained_as_by_trl() -> None:
    trl = pytest.importorskip("trl")
    theirs, trunk = models()
    ours, batch = rlhf.RewardModel(trunk, seed=3), rankings()
    head = head_of(ours)
    scores = their_scores(theirs, head, batch)
    row, better, worse = np.nonzero(batch["rewards"][:, :, None] > batch["rewards"][:, None, :])
    both = torch.cat((scores[row, better], scores[row, worse]))
    trainer = Recorder(args=SimpleNamespace(center_rewards_coefficient=None))
    mask = torch.ones(2, 2)
    loss = trl.RewardTrainer.compute_loss(
        trainer, lambda **inputs: SimpleNamespace(logits=both[:, None]), {"attention_mask": mask}
    )
    loss.backward()
    value, grads = run(ours, lesson.RewardModelling(), batch)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    compare(theirs, grads, head)


@pytest.mark.parametrize("pairs", [1, 7])
def test_margins_as_in_trl(pairs: int) -> None:
    trl = pytest.importorskip("trl")
    rng = np.random.default_rng(4)
    scores, margin = 3 * rng.standard_normal((2, pairs)), rng.random(pairs)
    both = torch.from_numpy(scores.reshape(-1)).requires_grad_()
    loss = trl.RewardTrainer.compute_loss(
        Recorder(args=SimpleNamespace(center_rewards_coefficient=None)),
        lambda **inputs: SimpleNamespace(logits=both[:, None]),
        {"attention_mask": torch.ones(2, 2), "margin": torch.from_numpy(margin)},
    )
    loss.backward()
    value, cache = lesson.reward_loss_forward(*scores, margin)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    assert error(np.concatenate(lesson.reward_loss_backward(cache)), both.grad.numpy()) < TOLERANCE


# ---------------------------------------------------------------------------------------------- DPO


def trl_dpo(theirs: Any, batch: Batch, objective: lesson.DPO) -> Any:
    """The loss of TRL's trainer on the pairs of a batch: the preferred responses first, then the others."""
    trl = pytest.importorskip("trl")
    ids = torch.from_numpy(np.concatenate((batch["ids"][:, 0], batch["ids"][:, 1])))
    targets = np.concatenate((batch["targets"][:, 0], batch["targets"][:, 1]))
    reference = torch.from_numpy(batch["reference"])
    completion = torch.zeros_like(ids)
    completion[:, 1:] = torch.from_numpy((targets[:, :-1] != -100).astype(int))
    trainer = Recorder(
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        beta=objective.beta, label_smoothing=0.0, loss_types=[objective.kind], loss_weights=[1.0], use_weighting=False,
    )  # fmt: skip

    def model(input_ids: Any, labels: Any, **rest: Any) -> Any:
        assert torch.equal(labels[:, 1:], torch.from_numpy(targets[:, :-1]))
        logprobs = logprobs_of(theirs(input_ids).logits, targets)[:, :-1]
        zeros = torch.zeros_like(logprobs)
        return SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros > 1)

    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": completion,
        "ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1],
    }  # fmt: skip
    return trl.DPOTrainer._compute_loss(trainer, model, inputs, False)


def pairs_of(trunk: GPT, seed: int = 5) -> Batch:
    """All pairs of the rankings, with a reference not far from the policy."""
    batch = rankings()
    logprobs = rlhf.response_logprobs(trunk, rlhf.flat(batch)).sum(1).reshape(batch["rewards"].shape)
    return rlhf.all_pairs(batch, logprobs + np.random.default_rng(seed).standard_normal(logprobs.shape))


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_trained_as_by_trl(beta: float) -> None:
    theirs, ours = models()
    batch, objective = pairs_of(ours), lesson.DPO(beta=beta)
    loss = trl_dpo(theirs, batch, objective)
    loss.backward()
    value, grads = run(ours, objective, batch)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    compare(theirs, grads)


def test_ipo_is_that_of_trl_but_for_its_averaging() -> None:
    """TRL divides a response's log-ratio by its length, end of text and all; for responses of one token it is ours."""
    theirs, ours = models()
    batch = rankings()
    batch = {name: array.copy() for name, array in batch.items()}
    rng = np.random.default_rng(6)
    rows = [([1, 2], [int(t)]) for t in rng.integers(3, 31, 12)]
    single = rlhf.pack(*zip(*rows, strict=True), room=14)  # type: ignore[arg-type]
    whole = {name: array.reshape(3, 4, *array.shape[1:]) for name, array in single.items()}
    pairs = rlhf.all_pairs(whole | {"rewards": batch["rewards"]}, rng.standard_normal((3, 4)) - 4)
    objective = lesson.DPO(beta=0.3, kind="ipo")
    loss = trl_dpo(theirs, pairs, objective)
    loss.backward()
    value, grads = run(ours, objective, pairs)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    compare(theirs, grads)


@pytest.mark.parametrize(("smoothing", "kind"), [(0.0, "sigmoid"), (0.2, "sigmoid"), (0.0, "ipo")])
def test_dpo_through_gpt2(smoothing: float, kind: str) -> None:
    theirs, ours = models(2)
    batch, objective = pairs_of(ours), lesson.DPO(beta=0.4, label_smoothing=smoothing, kind=kind)
    flat = rlhf.flat(batch)
    sums = logprobs_of(theirs(torch.from_numpy(flat["ids"])).logits, flat["targets"]).sum(1).reshape(-1, 2)
    ratios = sums - torch.from_numpy(batch["reference"])
    h = ratios[:, 0] - ratios[:, 1]
    if kind == "ipo":
        loss = ((h - 1 / 0.8) ** 2).mean()
    else:
        loss = (-(1 - smoothing) * F.logsigmoid(0.4 * h) - smoothing * F.logsigmoid(-0.4 * h)).mean()
    loss.backward()
    value, grads = run(ours, objective, batch)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    compare(theirs, grads)


# ---------------------------------------------------------------------------------------------- PPO


def masked_mean(x: Any, mask: Any) -> Any:
    return (x * mask).sum() / mask.sum()


def torch_advantages(
    logprobs: Any, reference: Any, values: Any, scores: Any, mask: Any, beta: float, gamma: float, lam: float
) -> tuple[Any, Any, Any]:
    """Rewards, whitened advantages and returns, response by response."""
    rewards, advantages = torch.zeros_like(values), torch.zeros_like(values)
    for b in range(len(mask)):
        places = mask[b].nonzero()[:, 0]
        r = -beta * (logprobs[b, places] - reference[b, places])
        r[-1] = r[-1] + scores[b]
        v = values[b, places]
        last, found = torch.zeros((), dtype=v.dtype), []
        for t in reversed(range(len(places))):
            following = v[t + 1] if t < len(places) - 1 else 0.0
            last = r[t] + gamma * following - v[t] + gamma * lam * last
            found.append(last)
        rewards[b, places] = r
        advantages[b, places] = torch.stack(found[::-1])
    valid = advantages[mask]
    whitened = torch.where(mask, (advantages - valid.mean()) * torch.rsqrt(valid.var(unbiased=True) + 1e-8), 0.0)
    return rewards, whitened, torch.where(mask, advantages + values, 0.0)


def torch_ppo(new: Any, old: Any, values: Any, before: Any, advantages: Any, returns: Any, mask: Any) -> Any:
    """Policy loss and value loss, ε = 0.2 and 0.3."""
    ratio = torch.exp(new - old)
    policy = masked_mean(torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)), mask)
    clipped = torch.clamp(values, before - 0.3, before + 0.3)
    value = 0.5 * masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)
    return policy, value


def rollout(seed: int) -> tuple[Batch, dict[str, np.ndarray]]:
    """Texts, and random numbers for what was there when they were sampled."""
    texts = rlhf.flat(rankings(seed))
    rng = np.random.default_rng(seed)
    mask = texts["targets"] != -100
    noise = rng.standard_normal((4, *mask.shape)) * mask
    scores = rng.standard_normal(len(mask))
    return texts, dict(zip(("old", "reference", "values", "new"), noise, strict=True)) | {"scores": scores}


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5)])
def test_advantages(gamma: float, lam: float) -> None:
    texts, x = rollout(7)
    mask = texts["targets"] != -100
    t = {name: torch.from_numpy(array) for name, array in x.items()}
    rewards, white, returns = torch_advantages(
        t["old"], t["reference"], t["values"], t["scores"], torch.from_numpy(mask), 0.2, gamma, lam
    )
    ours = lesson.kl_rewards(x["old"], x["reference"], x["scores"], mask, 0.2)
    assert error(ours, rewards.numpy()) < TOLERANCE
    settings = lesson.PPO(gamma=gamma, lam=lam)
    advantages, ours_returns = settings.worth(x["old"], x["reference"], x["values"], x["scores"], mask, 0.2)
    assert error(advantages, white.numpy()) < TOLERANCE
    assert error(ours_returns, returns.numpy()) < TOLERANCE


def test_ppo_through_gpt2() -> None:
    theirs, trunk = models(3)
    ours = rlhf.PolicyWithValue(trunk)
    ours.head.weight.data = np.random.default_rng(8).standard_normal((12, 1))
    head = head_of(ours)
    texts, x = rollout(9)
    mask = torch.from_numpy(texts["targets"] != -100)
    temperature = 1.4
    logprobs, values = ours.logprobs_and_values(texts, temperature)
    old = logprobs + 0.4 * x["old"]
    before = values + 0.5 * x["values"]
    settings = lesson.PPO(clip=0.2, clip_value=0.3, value_coef=0.6, temperature=temperature)
    advantages, returns = settings.worth(old, old + x["reference"], before, x["scores"], mask.numpy(), 0.1)
    out = theirs.transformer(torch.from_numpy(texts["ids"])).last_hidden_state
    new = logprobs_of(theirs.lm_head(out) / temperature, texts["targets"])
    new_values = (out @ head["score.weight"] + head["score.bias"])[..., 0]
    policy, value = torch_ppo(
        new, torch.from_numpy(old), new_values, *map(torch.from_numpy, (before, advantages, returns)), mask
    )
    loss = policy + 0.6 * value
    loss.backward()
    batch = texts | {"logprobs": old, "values": before, "advantages": advantages, "returns": returns}
    found, grads = run(ours, settings, batch)
    assert found == pytest.approx(loss.item(), rel=1e-12)
    compare(theirs, grads, head)


# ---------------------------------------------------------------------------------------------- golden


def golden() -> dict[str, np.ndarray]:
    """Inputs, losses and gradients of all losses, by torch and TRL."""
    trl = pytest.importorskip("trl")
    made: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(10)
    scores, margin = 2 * rng.standard_normal((2, 5)), rng.random(5)
    both = torch.from_numpy(scores.reshape(-1)).requires_grad_()
    loss = trl.RewardTrainer.compute_loss(
        Recorder(args=SimpleNamespace(center_rewards_coefficient=None)),
        lambda **inputs: SimpleNamespace(logits=both[:, None]),
        {"attention_mask": torch.ones(2, 2), "margin": torch.from_numpy(margin)},
    )
    loss.backward()
    made |= {"reward.scores": scores, "reward.margin": margin, "reward.loss": np.array(loss.item())}
    made["reward.grad"] = both.grad.numpy().reshape(2, 5)

    texts, x = rollout(11)
    mask = texts["targets"] != -100
    t = {name: torch.from_numpy(array) for name, array in x.items()}
    torch_mask = torch.from_numpy(mask)
    rewards, white, returns = torch_advantages(
        t["old"], t["reference"], t["values"], t["scores"], torch_mask, 0.2, 0.9, 0.8
    )
    new = (t["old"] + 0.3 * t["new"]).requires_grad_()
    values = (t["values"] + t["new"]).requires_grad_()
    losses = torch_ppo(new, t["old"], values, t["values"], white, returns, torch_mask)
    sum(losses).backward()
    made |= {f"ppo.{name}": array for name, array in x.items()} | {"ppo.mask": mask}
    made |= {"ppo.rewards": rewards.numpy(), "ppo.advantages": white.numpy(), "ppo.returns": returns.numpy()}
    made |= {"ppo.losses": np.array([p.item() for p in losses])}
    made |= {"ppo.dlogprobs": new.grad.numpy(), "ppo.dvalues": values.grad.numpy()}

    sums = rng.standard_normal((4, 6))
    made["dpo.sums"] = sums
    for name, smoothing in (("sigmoid", 0.0), ("cdpo", 0.2), ("ipo", 0.0)):
        chosen, rejected = (torch.from_numpy(s).requires_grad_() for s in sums[:2])
        h = (chosen - torch.from_numpy(sums[2])) - (rejected - torch.from_numpy(sums[3]))
        if name == "ipo":
            dpo = ((h - 1 / 0.6) ** 2).mean()
        else:
            dpo = (-(1 - smoothing) * F.logsigmoid(0.3 * h) - smoothing * F.logsigmoid(-0.3 * h)).mean()
        dpo.backward()
        made[f"dpo.{name}.loss"] = np.array(dpo.item())
        made[f"dpo.{name}.grad"] = np.stack((chosen.grad.numpy(), rejected.grad.numpy()))
    return made


def test_golden_file() -> None:
    made = golden()
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        np.savez_compressed(GOLDEN, **made)  # type: ignore[arg-type]
    with np.load(GOLDEN) as stored:
        assert set(stored.files) == set(made)
        for name, array in made.items():
            np.testing.assert_allclose(stored[name], array, rtol=1e-12, atol=1e-14, err_msg=name)
