"""Lesson 10: fine-tuning from preferences. A reward model from rankings, PPO against it, and DPO as the short road.

1. Supervised fine-tuning: the policy learns to answer at all, from the best of the ranked responses.
2. A reward model learns from the rankings to say which response is better.
3. PPO: the policy writes, the reward model judges, and the policy moves towards what was judged well, held near
   its start by a price on the KL divergence.
4. The true reward is known here, so the lesson shows what is hidden elsewhere: without that price the learnt reward
   rises while the true one falls, because the policy finds what the reward model is wrong about.
5. DPO trains on the same rankings with neither a reward model nor sampling; best-of-n needs no training at all.

Ziegler et al. (2019), arXiv:1909.08593; Stiennon et al. (2020), arXiv:2009.01325; Ouyang et al. (2022, InstructGPT),
arXiv:2203.02155; Schulman et al. (2017, PPO), arXiv:1707.06347; Rafailov et al. (2023, DPO), arXiv:2305.18290.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from kernels import Backend
from kernels.array import Array, namespace
from kernels.cross_entropy import IGNORED
from lessons.common import derivation, gradcheck, rlhf, runner
from lessons.common import rlhf_experiment as experiment
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.rlhf import PolicyWithValue, PPOSettings, RewardModel
from lessons.common.rlhf_experiment import FREE, MAIN, Arm, Bench, Recipe
from lessons.common.runner import Run
from minigpt import GPT, GPTConfig
from minigpt.context import Context
from minigpt.data import tinyworld
from minigpt.errors import InputError
from minigpt.heads import token_logprobs
from minigpt.objectives import Batch, Objective
from minigpt.parameters import Gradients

# ---------------------------------------------------------------------------------------------- the reward model


def sigmoid(x: Array) -> Array:
    """1/(1 + exp(−x)), for x of any size."""
    return 0.5 * (1.0 + namespace(x).tanh(0.5 * x))


def log_sigmoid(x: Array) -> Array:
    """log σ(x) = min(x, 0) − log(1 + exp(−|x|)), for x of any size."""
    xp = namespace(x)
    return xp.minimum(x, 0.0) - xp.log1p(xp.exp(-abs(x)))


def reward_loss_forward(
    chosen: Array, rejected: Array, margin: float | Array = 0.0, n_pairs: float | None = None
) -> tuple[float, Any]:
    """How badly scores agree with comparisons: L = −(1/n) Σ log σ(chosen − rejected − margin).

    σ(chosen − rejected) is the probability that the first response is preferred (Bradley, Terry 1952); the loss is
    its negative logarithm. Ouyang et al. (2022), eq. 1; the margin is Touvron et al.'s (2023), arXiv:2307.09288, eq. 2.

    Parameters
    ----------
    chosen, rejected : (P,)
        Scores of the preferred and of the other response of each pair.
    margin : float or (P,)
        By how much the preferred one should win.
    n_pairs : float, optional
        Pairs of the whole batch, n, of which these are a part; by default those here.

    Returns
    -------
    loss : float
        This part's share of the mean.
    cache
        For `reward_loss_backward`: (h, n) with h = chosen − rejected − margin, (P,), and n as a float.
    """
    ### BEGIN SOLUTION
    h = chosen - rejected - margin
    n = float(h.shape[0]) if n_pairs is None else n_pairs
    return -float(log_sigmoid(h).sum()) / n, (h, n)
    ### END SOLUTION


def reward_loss_backward(cache: Any) -> tuple[Array, Array]:
    """Gradients of the loss: dchosen = −σ(−h)/n and drejected = +σ(−h)/n, with h the difference less the margin.

    A pair that is ordered rightly by far gets none. h may be of any size.

    Parameters
    ----------
    cache
        As the forward gave it: (h, n).

    Returns
    -------
    dchosen, drejected : (P,)
    """
    ### BEGIN SOLUTION
    h, n = cache
    dchosen = -sigmoid(-h) / n
    return dchosen, -dchosen
    ### END SOLUTION


@dataclass(frozen=True)
class RewardModelling:
    """The reward model's objective. Batches hold rankings: `ids` (B, K, T), `lengths` and `rewards` (B, K).

    All C(K, 2) pairs of a prompt come from one pass over its K responses, as in InstructGPT: cheaper than a pass a
    pair, and no response is gone through K − 1 times an epoch, which would overfit it.
    """

    def total(self, batch: Batch) -> float:
        """Number of pairs in which one is preferred."""
        rewards = batch["rewards"]
        return float((rewards[:, :, None] > rewards[:, None, :]).sum())

    def forward(
        self, model: RewardModel, batch: Batch, total: float, ctx: Context
    ) -> tuple[float, Callable[[Gradients], None]]:
        """See `minigpt.objectives.Objective`."""
        asarray, xp = model.backend.asarray, model.backend.xp
        texts, rewards = rlhf.flat(batch), batch["rewards"]
        flat, back = model.forward(asarray(texts["ids"]), ctx, asarray(texts["lengths"]))
        scores = flat.reshape(rewards.shape)  # (B, K)
        row, better, worse = (asarray(i) for i in np.nonzero(rewards[:, :, None] > rewards[:, None, :]))
        loss, cache = reward_loss_forward(scores[row, better], scores[row, worse], n_pairs=total)

        def backward(grads: Gradients) -> None:
            dpairs = xp.zeros((2, *scores.shape, scores.shape[1]), dtype=scores.dtype)  # (2, B, K, K)
            dpairs[0, row, better, worse], dpairs[1, row, better, worse] = reward_loss_backward(cache)
            back((dpairs[0].sum(2) + dpairs[1].sum(1)).reshape(-1), grads)  # every pair a response is in adds up

        return loss, backward


# ---------------------------------------------------------------------------------------------- PPO


def kl_rewards(logprobs: Array, reference: Array, scores: Array, mask: Array, beta: float) -> Array:
    """What every token earns: r_t = −β (log π(a_t) − log π_ref(a_t)), and the last token the response's score too.

    Summed over a response that is score − β·log(π/π_ref), whose mean is the score less β times the KL divergence.
    Ziegler et al. (2019), eq. 2.

    Parameters
    ----------
    logprobs, reference : (B, T)
        Of the sampled tokens, under the policy that sampled them and under the reference; any number outside the mask.
    scores : (B,)
    mask : (B, T) bool
        The response's tokens; every row has one at least.
    beta : float

    Returns
    -------
    rewards : (B, T)
        0 outside the mask.
    """
    ### BEGIN SOLUTION
    xp = namespace(logprobs)
    B, T = mask.shape
    rewards = -beta * (logprobs - reference) * mask
    last = T - 1 - mask[:, ::-1].argmax(1)  # (B,)
    rewards[xp.arange(B), last] += scores
    return rewards
    ### END SOLUTION


def gae(rewards: Array, values: Array, mask: Array, gamma: float = 1.0, lam: float = 0.95) -> tuple[Array, Array]:
    """Generalised advantage estimation: by how much each token did better than expected.

    δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γλ A_{t+1},   R_t = A_t + V_t.   After a response's last token V and A
    are 0. λ = 0 trusts the values, λ = 1 what really came. Schulman et al. (2015), arXiv:1506.02438, eq. 16.

    Parameters
    ----------
    rewards, values : (B, T)
        Reward of token t, and the value of the state in which it was chosen; any number outside the mask.
    mask : (B, T) bool
        The response's tokens, without gaps.
    gamma, lam : float in [0, 1]

    Returns
    -------
    advantages, returns : (B, T)
        0 outside the mask.
    """
    ### BEGIN SOLUTION
    xp = namespace(rewards)
    advantages = xp.zeros_like(values)
    next_value = next_advantage = xp.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = next_advantage
    return advantages, (advantages + values) * mask
    ### END SOLUTION


def whiten(x: Array, mask: Array) -> Array:
    """Mean 0 and variance 1 over the valid entries: (x − mean)/√(variance + 1e-8), with n − 1 in the variance.

    The step size then no longer depends on the scale of the rewards.

    Parameters
    ----------
    x : (B, T)
    mask : (B, T) bool
        Two entries at least.

    Returns
    -------
    whitened : (B, T)
        0 outside the mask.

    Raises
    ------
    ValueError
        If fewer than two entries are valid.
    """
    ### BEGIN SOLUTION
    n = float(mask.sum())
    if n < 2:
        raise InputError(f"{n:.0f} valid entries have no variance; at least 2 are needed")
    centred = (x - float((x * mask).sum()) / n) * mask
    variance = float((centred**2).sum()) / (n - 1)
    return centred / math.sqrt(variance + 1e-8)
    ### END SOLUTION


def ppo_policy_loss_forward(
    logprobs: Array, old: Array, advantages: Array, mask: Array, clip: float = 0.2, n_tokens: float | None = None
) -> tuple[float, Any]:
    """PPO's clipped loss: L = (1/n) Σ max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)),   ρ = π(a)/π_old(a).

    In expectation the gradient at ρ = 1 is that of the reward. The maximum ends what can be gained by moving a
    probability further than ε away from where the data was sampled, and only that: what has gone wrong is still
    put right. Schulman et al. (2017), eq. 7, with the sign of a loss.

    Parameters
    ----------
    logprobs, old : (B, T)
        Of the sampled tokens, now and when they were sampled.
    advantages : (B, T)
    mask : (B, T) bool
    clip : float
        ε.
    n_tokens : float, optional
        Valid tokens of the whole batch, n; by default those here.

    Returns
    -------
    loss : float
        This part's share of the mean; the sum runs over the mask.
    cache
        For the backward: (plain, clipped, mask, n) with plain = −A ρ and clipped = −A clip(ρ, 1 − ε, 1 + ε), (B, T),
        which may be any finite numbers outside of the mask, and n as a float.
    """
    ### BEGIN SOLUTION
    xp = namespace(logprobs)
    ratio = xp.exp((logprobs - old) * mask)
    plain, clipped = -advantages * ratio, -advantages * xp.clip(ratio, 1 - clip, 1 + clip)
    n = float(mask.sum()) if n_tokens is None else n_tokens
    return float((xp.maximum(plain, clipped) * mask).sum()) / n, (plain, clipped, mask, n)
    ### END SOLUTION


def ppo_policy_loss_backward(cache: Any) -> Array:
    """Gradient of the loss with respect to the new log-probabilities.

    ∂ρ/∂log π = ρ, so it is −A ρ/n where the clipped term is not larger, and 0 where it is: there the ratio stands
    outside [1 − ε, 1 + ε] and the clipped term does not depend on it.

    Parameters
    ----------
    cache
        As the forward gave it: (plain, clipped, mask, n).

    Returns
    -------
    dlogprobs : (B, T)
        0 outside the mask.
    """
    ### BEGIN SOLUTION
    plain, clipped, mask, n = cache
    return plain * (plain >= clipped) * mask / n
    ### END SOLUTION


def ppo_value_loss_forward(
    values: Array, old: Array, returns: Array, mask: Array, clip: float = 0.2, n_tokens: float | None = None
) -> tuple[float, Any]:
    """The clipped loss of the values: L = (1/n) Σ ½ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²).

    A value gains nothing by moving further than ε in one iteration. lm-human-preferences has it so; the paper does not.

    Parameters
    ----------
    values, old : (B, T)
        Now, and when the data was sampled.
    returns : (B, T)
    mask : (B, T) bool
    clip : float
        ε.
    n_tokens : float, optional
        Valid tokens of the whole batch, n; by default those here.

    Returns
    -------
    loss : float
        This part's share of the mean; the sum runs over the mask.
    cache
        For the backward: (error, clipped, mask, n) with error = V − R and clipped = clip(V, V_old − ε, V_old + ε) − R,
        (B, T), which may be any finite numbers outside of the mask, and n as a float.
    """
    ### BEGIN SOLUTION
    xp = namespace(values)
    error, clipped = values - returns, xp.clip(values, old - clip, old + clip) - returns
    n = float(mask.sum()) if n_tokens is None else n_tokens
    squares = xp.maximum(error**2, clipped**2) * mask
    return 0.5 * float(squares.sum()) / n, (error, clipped, mask, n)
    ### END SOLUTION


def ppo_value_loss_backward(cache: Any) -> Array:
    """Gradient of the loss with respect to the new values: (V − R)/n where the clipped square is not larger, else 0.

    Parameters
    ----------
    cache
        As the forward gave it: (error, clipped, mask, n).

    Returns
    -------
    dvalues : (B, T)
        0 outside the mask.
    """
    ### BEGIN SOLUTION
    error, clipped, mask, n = cache
    return error * (error**2 >= clipped**2) * mask / n
    ### END SOLUTION


def adaptive_kl(beta: float, kl: float, target: float, n: int, horizon: float) -> float:
    """The next β: β (1 + e n/horizon), with e = KL/target − 1, at most 0.2 to either side.

    A controller that pays more for the divergence while it is above the target. Ziegler et al. (2019), section 2.2.

    Parameters
    ----------
    beta : float
    kl : float
        Of the responses of this iteration, nats each.
    target : float
        Above 0.
    n : int
        Responses of this iteration.
    horizon : float
        Responses after which a lasting error of 0.2 has moved β by a fifth.

    Returns
    -------
    beta : float
    """
    ### BEGIN SOLUTION
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * n / horizon)
    ### END SOLUTION


@dataclass(frozen=True)
class PPO:
    """PPO's mathematics in one place: what each token of a rollout was worth, and the loss, L = L_policy + c_v L_value.

    As an objective its batches hold `ids`, `targets`, `logprobs`, `advantages`, `values` and `returns`, all (B, T).

    Attributes
    ----------
    beta : float
        Price of a nat of KL at the start, in standard deviations of the learnt reward.
    target_kl : float or None
        Move β so that the KL comes to this many nats a response.
    horizon : float
        See `adaptive_kl`.
    gamma, lam : float
        See `gae`.
    clip, clip_value : float
        ε of either loss.
    value_coef : float
        c_v.
    temperature : float
        Of the sampling, and hence of every log-probability.

    Raises
    ------
    ValueError
        If a number is outside its range.
    """

    beta: float = 0.2
    target_kl: float | None = None
    horizon: float = 1000.0
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    clip_value: float = 0.2
    value_coef: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta", "value_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be a number of 0 or more")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be in [0, 1]")
        for name in ("target_kl", "horizon", "clip", "clip_value", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be above 0")

    def worth(
        self, logprobs: Array, reference: Array, values: Array, scores: Array, mask: Array, beta: float
    ) -> tuple[Array, Array]:
        """Whitened advantages and returns of a rollout's tokens, (B, T) each; whitened over the whole of it."""
        rewards = kl_rewards(logprobs, reference, scores, mask, beta)
        advantages, returns = gae(rewards, values, mask, self.gamma, self.lam)
        return whiten(advantages, mask), returns

    def next_beta(self, beta: float, kl: float, episodes: int) -> float:
        """The price of the next iteration."""
        return beta if self.target_kl is None else adaptive_kl(beta, kl, self.target_kl, episodes, self.horizon)

    def total(self, batch: Batch) -> float:
        """Number of response tokens."""
        return float((batch["targets"] != IGNORED).sum())

    def forward(
        self, model: PolicyWithValue, batch: Batch, total: float, ctx: Context
    ) -> tuple[float, Callable[[Gradients], None]]:
        """See `minigpt.objectives.Objective`."""
        here = {name: model.backend.asarray(array) for name, array in batch.items()}
        mask = here["targets"] != IGNORED
        (hidden, values), back = model.forward(here["ids"], ctx)
        logprobs, lp_back = token_logprobs(hidden / self.temperature, model.wte, here["targets"], ctx)
        policy_loss, policy_cache = ppo_policy_loss_forward(
            logprobs, here["logprobs"], here["advantages"], mask, self.clip, total
        )
        value_loss, value_cache = ppo_value_loss_forward(
            values, here["values"], here["returns"], mask, self.clip_value, total
        )

        def backward(grads: Gradients) -> None:
            dscaled = lp_back(ppo_policy_loss_backward(policy_cache), grads)
            dvalues = self.value_coef * ppo_value_loss_backward(value_cache)
            back(None if dscaled is None else dscaled / self.temperature, dvalues, grads)

        return policy_loss + self.value_coef * value_loss, backward


# ---------------------------------------------------------------------------------------------- DPO


def dpo_loss_forward(
    chosen: Array,
    rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    kind: str = "sigmoid",
    n_pairs: float | None = None,
) -> tuple[float, Any]:
    """Direct preference optimisation, on h = (chosen − reference_chosen) − (rejected − reference_rejected).

    The policy that is best for a reward r under a price β on the KL is π ∝ π_ref exp(r/β), so a policy has the reward
    β log(π/π_ref), but for a constant that depends on the prompt only and falls out of a pair's difference:

    - ``"sigmoid"``: L = −(1/n) Σ [(1 − ε) log σ(βh) + ε log σ(−βh)]. Rafailov et al. (2023), eq. 7; ε > 0 says that a
      share of the labels is wrong (Mitchell 2023, "cDPO").
    - ``"ipo"``: L = (1/n) Σ (h − 1/(2β))², which does not go on pushing pairs apart that are ordered already.
      Azar et al. (2023), arXiv:2310.12036, eq. 17.

    Parameters
    ----------
    chosen, rejected, reference_chosen, reference_rejected : (P,)
        Log-probabilities of whole responses: summed over their tokens, not averaged.
    beta : float
    label_smoothing : float in [0, 0.5)
        ε, for ``"sigmoid"``.
    kind : {"sigmoid", "ipo"}
    n_pairs : float, optional
        Pairs of the whole batch, n; by default those here.

    Returns
    -------
    loss : float
        This part's share of the mean.
    cache
        For the backward: (h, β, ε, kind, n), h (P,), n as a float.
    """
    ### BEGIN SOLUTION
    h = (chosen - reference_chosen) - (rejected - reference_rejected)
    n = float(h.shape[0]) if n_pairs is None else n_pairs
    if kind == "ipo":
        losses = (h - 1 / (2 * beta)) ** 2
    else:
        losses = -(1 - label_smoothing) * log_sigmoid(beta * h) - label_smoothing * log_sigmoid(-beta * h)
    return float(losses.sum()) / n, (h, beta, label_smoothing, kind, n)
    ### END SOLUTION


def dpo_loss_backward(cache: Any) -> tuple[Array, Array]:
    """Gradients of the loss with respect to the policy's log-probabilities: dchosen = ∂L/∂h, drejected = −∂L/∂h.

    ∂L/∂h is −β [(1 − ε) σ(−βh) − ε σ(βh)]/n, or 2 (h − 1/(2β))/n for ``"ipo"``; h may be of any size.

    Parameters
    ----------
    cache
        As the forward gave it: (h, β, ε, kind, n).

    Returns
    -------
    dchosen, drejected : (P,)
    """
    ### BEGIN SOLUTION
    h, beta, label_smoothing, kind, n = cache
    if kind == "ipo":
        dh = 2 * (h - 1 / (2 * beta)) / n
    else:
        dh = -beta * ((1 - label_smoothing) * sigmoid(-beta * h) - label_smoothing * sigmoid(beta * h)) / n
    return dh, -dh
    ### END SOLUTION


@dataclass(frozen=True)
class DPO:
    """DPO's objective. Batches hold pairs: `ids`, `targets` (B, 2, T), `lengths`, `reference` (B, 2), chosen first.

    Attributes
    ----------
    beta : float
    label_smoothing : float
    kind : {"sigmoid", "ipo"}

    Raises
    ------
    ValueError
        If a setting is outside its range.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    kind: str = "sigmoid"

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise InputError(f"beta is {self.beta}; it must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 0.5)")
        if self.kind not in ("sigmoid", "ipo") or (self.kind == "ipo" and self.label_smoothing):
            raise InputError(f"kind is {self.kind!r}; it must be 'sigmoid', or 'ipo' without label_smoothing")

    def total(self, batch: Batch) -> float:
        """Number of pairs."""
        return float(batch["ids"].shape[0])

    def forward(
        self, model: GPT, batch: Batch, total: float, ctx: Context
    ) -> tuple[float, Callable[[Gradients], None]]:
        """See `minigpt.objectives.Objective`."""
        asarray, texts = model.backend.asarray, rlhf.flat(batch)
        hidden, back = model.forward(asarray(texts["ids"]), ctx)
        logprobs, lp_back = token_logprobs(hidden, model.wte, asarray(texts["targets"]), ctx)
        sums, reference = logprobs.sum(1).reshape(-1, 2), asarray(batch["reference"])
        loss, cache = dpo_loss_forward(
            sums[:, 0], sums[:, 1], reference[:, 0], reference[:, 1],
            self.beta, self.label_smoothing, self.kind, total,
        )  # fmt: skip

        def backward(grads: Gradients) -> None:
            xp = model.backend.xp
            dsums = xp.stack(dpo_loss_backward(cache), axis=1).reshape(-1, 1)  # (2B, 1)
            # every token of a sum gets the sum's gradient
            back(lp_back(xp.broadcast_to(dsums, logprobs.shape), grads), grads)

        return loss, backward


# ---------------------------------------------------------------------------------------------- the mathematics

MASK = np.array([[False, True, True, True, False], [False, False, True, False, False], [True] * 5])
"""Response tokens of the three small rows that the checks work on: in the middle, a single one, and all."""


def probe_reward(backend: Backend) -> gradcheck.Function:
    """The loss of six comparisons, with a margin."""

    def forward(chosen: Array, rejected: Array) -> Any:
        loss, cache = reward_loss_forward(chosen, rejected, 0.3, 5.0)

        def backward(dloss: float) -> Any:
            dchosen, drejected = reward_loss_backward(cache)
            return {"chosen": dloss * dchosen, "rejected": dloss * drejected}

        return loss, backward

    return forward


def probe_policy(backend: Backend) -> gradcheck.Function:
    """The clipped policy loss; the ratios are on both sides of the range and inside, the advantages of both signs."""
    old, advantages = (backend.asarray(a) for a in np.random.default_rng(3).standard_normal((2, *MASK.shape)))
    mask = backend.asarray(MASK)

    def forward(logprobs: Array) -> Any:
        loss, cache = ppo_policy_loss_forward(0.4 * logprobs, 0.4 * old, advantages, mask, 0.2, 7.0)
        return loss, lambda dloss: {"logprobs": 0.4 * dloss * ppo_policy_loss_backward(cache)}

    return forward


def probe_value(backend: Backend) -> gradcheck.Function:
    """The clipped value loss."""
    old, returns = (backend.asarray(a) for a in np.random.default_rng(4).standard_normal((2, *MASK.shape)))
    mask = backend.asarray(MASK)

    def forward(values: Array) -> Any:
        loss, cache = ppo_value_loss_forward(values, old, returns, mask, 0.5, 7.0)
        return loss, lambda dloss: {"values": dloss * ppo_value_loss_backward(cache)}

    return forward


def probe_dpo(kind: str, label_smoothing: float) -> Callable[[Backend], gradcheck.Function]:
    """The loss of six pairs."""

    def probe(backend: Backend) -> gradcheck.Function:
        first, second = (backend.asarray(a) for a in np.random.default_rng(5).standard_normal((2, 6)))

        def forward(chosen: Array, rejected: Array) -> Any:
            loss, cache = dpo_loss_forward(chosen, rejected, first, second, 0.7, label_smoothing, kind, 5.0)

            def backward(dloss: float) -> Any:
                dchosen, drejected = dpo_loss_backward(cache)
                return {"chosen": dloss * dchosen, "rejected": dloss * drejected}

            return loss, backward

        return forward

    return probe


def with_values(
    check: Callable[[Backend], list[Check]], *values: tuple[str, Callable[[Backend], Any], float]
) -> Callable[[Backend], list[Check]]:
    """A check of gradients, and of the loss itself at points that can be worked out by hand.

    Differences say that a gradient belongs to its loss, not that the loss is the right one.
    """

    def checks(backend: Backend) -> list[Check]:
        return [*check(backend), *(gradcheck.agree(name, right, partial(f, backend)) for name, f, right in values)]

    return checks


def pair_loss(backend: Backend, forward: Callable[..., Any], *scores: float, **settings: Any) -> float:
    """A loss on a single pair."""
    return forward(*(backend.asarray(np.array([score])) for score in scores), **settings)[0]


def token_loss(backend: Backend, forward: Callable[..., Any], *numbers: float, clip: float) -> float:
    """A loss on a single token."""
    arrays = (backend.asarray(np.array([[x]])) for x in numbers)
    return forward(*arrays, backend.asarray(np.array([[True]])), clip)[0]


def check_advantages(backend: Backend) -> list[Check]:
    """Rewards, advantages and whitening against their definitions, row by row and with sums written out."""
    rng = np.random.default_rng(6)
    logprobs, reference, values = rng.standard_normal((3, *MASK.shape))
    scores, beta, gamma, lam = rng.standard_normal(len(MASK)), 0.3, 0.9, 0.8
    wanted_rewards, wanted = np.zeros(MASK.shape), np.zeros(MASK.shape)
    for b, row in enumerate(MASK):
        places = np.flatnonzero(row)
        r = -beta * (logprobs[b, places] - reference[b, places]) + scores[b] * (places == places[-1])
        v = np.append(values[b, places], 0.0)
        delta = r + gamma * v[1:] - v[:-1]
        wanted_rewards[b, places] = r
        wanted[b, places] = [sum((gamma * lam) ** i * d for i, d in enumerate(delta[t:])) for t in range(len(places))]
    host, asarray = backend.to_numpy, backend.asarray
    mask, valid = asarray(MASK), wanted[MASK]
    whitened = np.where(MASK, (wanted - valid.mean()) / math.sqrt(valid.var(ddof=1) + 1e-8), 0.0)

    args = (asarray(wanted_rewards), asarray(values), mask, gamma, lam)
    return [
        gradcheck.agree(
            "rewards",
            wanted_rewards,
            lambda: host(kl_rewards(asarray(logprobs), asarray(reference), asarray(scores), mask, beta)),
        ),
        gradcheck.agree("advantages", wanted, lambda: host(gae(*args)[0])),
        gradcheck.agree("returns", np.where(MASK, wanted + values, 0.0), lambda: host(gae(*args)[1])),
        gradcheck.agree("whitened", whitened, lambda: host(whiten(asarray(wanted), mask))),
    ]


def tiny_rankings() -> Batch:
    """Three rankings of three responses, in seven tokens, one pair of rewards equal."""
    rng = np.random.default_rng(7)
    ids = rng.integers(0, 7, (3, 3, 6))
    lengths = np.array([[6, 3, 4], [5, 6, 2], [4, 4, 6]])
    place = np.arange(6)
    inside = (place >= 1) & (place < lengths[..., None] - 1)  # the prompt has two tokens; the last predicts nothing
    targets = np.where(inside, np.roll(ids, -1, axis=2), IGNORED)
    targets[1, 2, 0] = ids[1, 2, 1]  # a prompt of a single token
    return {
        "ids": ids,
        "targets": targets,
        "lengths": lengths,
        "rewards": np.array([[3.0, 1, 2], [0, 5, 5], [1, 2, 3]]),
    }


def tiny_cases(backend: Backend, seed: int = 0) -> dict[str, tuple[Any, Objective, Batch]]:
    """Each objective with a model and a batch small enough to move every parameter, in float64."""
    rng = np.random.default_rng([8, seed])
    config = GPTConfig(vocab_size=7, n_positions=6, n_embd=4, n_layer=1, n_head=2)
    rankings = tiny_rankings()
    texts = rlhf.flat(rankings)
    mask = texts["targets"] != IGNORED
    old, values, advantages, returns = rng.standard_normal((4, *mask.shape)) * mask
    rollout = {
        "logprobs": (0.3 * old - math.log(7)) * mask, "values": values, "advantages": advantages, "returns": returns,
    }  # fmt: skip
    pairs = rlhf.all_pairs(rankings, rng.standard_normal((3, 3)) - 8)

    def trunk() -> GPT:
        model = GPT(config, dtype="float64", backend=backend)
        for p in model.parameters():
            gain = 1.0 if p.data.ndim == 1 and p.name.endswith("weight") else 0.0
            p.data = backend.asarray(gain + 0.3 * rng.standard_normal(tuple(p.data.shape)))
        return model

    policy = PolicyWithValue(trunk())
    policy.head.weight.data = backend.asarray(rng.standard_normal((4, 1)))
    ppo = {**{name: texts[name] for name in ("ids", "targets")}, **rollout}
    return {
        "reward model": (RewardModel(trunk(), seed=1), RewardModelling(), rankings),
        "PPO": (policy, PPO(value_coef=0.7, temperature=1.3), ppo),
        "DPO": (trunk(), DPO(beta=0.4, label_smoothing=0.1), pairs),
    }


def check_objective(model: Any, objective: Objective, batch: Batch) -> list[Check]:
    """Every parameter of a tiny model moved: an objective's gradients against what its loss does."""
    total = objective.total(batch)

    def loss() -> float:
        return objective.forward(model, batch, total, model.context())[0]

    grads = Gradients(model.parameters(), model.backend)
    try:
        objective.forward(model, batch, total, model.context(grad=True))[1](grads)
    except NotImplementedError:
        return [Check("all parameters", (), None)]
    checks = gradcheck.check_parameters(model.parameters(), loss, grads.as_dict(), model.backend)
    worst = max(checks, key=lambda c: math.inf if c.difference is None else c.difference)
    return [c for c in checks if not c.ok] or [replace(worst, name=f"{len(checks)} tensors, {worst.name} the furthest")]


RIGHT = math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))

DERIVATIONS = (
    Derivation(
        "Reward model: comparisons make a scale",
        """
        P(c preferred to r) = σ(s_c − s_r)                    s: the score of a prompt with its response
        L = −(1/n) Σ log σ(h),   h = s_c − s_r − margin

        σ' = σ(1 − σ), so d log σ(h)/dh = 1 − σ(h) = σ(−h):
          ds_c = −σ(−h)/n,   ds_r = +σ(−h)/n                  the surer and righter, the less is learnt
        Only differences enter: nothing says where 0 is, nor, beyond what the noise of the labels fixes, how large 1 is.
        """,
        (reward_loss_forward, reward_loss_backward),
        with_values(
            gradients(probe_reward, {"chosen": (6,), "rejected": (6,)}),
            ("equal scores: log 2", lambda b: pair_loss(b, reward_loss_forward, 1.0, 1.0), math.log(2)),
            (
                "1 ahead, margin 3: log(1 + e²)",
                lambda b: pair_loss(b, reward_loss_forward, 1.0, 0.0, margin=3.0),
                RIGHT[0],
            ),
        ),
    ),
    Derivation(
        "What a token was worth: rewards, advantages, whitening",
        """
        r_t = −β (log π(a_t) − log π_ref(a_t)) + [t last] · score
        δ_t = r_t + γ V_{t+1} − V_t,   A_t = Σ_l (γλ)^l δ_{t+l} = δ_t + γλ A_{t+1}

        The policy's gradient is E[A_t ∇log π(a_t)] for any A_t = (what came after t) − (what does not depend on a_t).
        With λ = 1 the sum telescopes to Σ_l γ^l r_{t+l} − V_t: unbiased, and as noisy as all the rest is.
        With λ = 0 it is δ_t: quiet, and as wrong as the values are. λ between them weighs the two.
        """,
        (kl_rewards, gae, whiten),
        check_advantages,
    ),
    Derivation(
        "PPO: several steps on the same data",
        """
        E_π[A] = E_π_old[ρ A],   ρ = π(a)/π_old(a)            importance sampling: old data, new policy
        L = (1/n) Σ max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε))

        dρ/dlog π = ρ, hence dlog π = −A ρ/n where the plain term is the larger. Where the clipped one is larger,
        either A > 0 and ρ > 1 + ε, or A < 0 and ρ < 1 − ε: the good token is likely enough, the bad one rare enough,
        and the gradient is 0. A good token that became rarer, or a bad one that became likelier, keeps its gradient.
        """,
        (ppo_policy_loss_forward, ppo_policy_loss_backward),
        with_values(
            gradients(probe_policy, {"logprobs": MASK.shape}),
            (
                "A = 2, ρ = e, ε = 0.2: −2.4",
                lambda b: token_loss(b, ppo_policy_loss_forward, 1.0, 0.0, 2.0, clip=0.2),
                -2.4,
            ),
            (
                "A = −2, ρ = e: 2e",
                lambda b: token_loss(b, ppo_policy_loss_forward, 1.0, 0.0, -2.0, clip=0.2),
                2 * math.e,
            ),
        ),
    ),
    Derivation(
        "PPO: the values",
        """
        L = (1/n) Σ ½ max((V − R)², (clip(V, V_old ± ε) − R)²)

        dV = (V − R)/n where the plain square is the larger; where the clipped one is, V is outside V_old ± ε on the
        side of R, and the clipped term does not depend on it.
        """,
        (ppo_value_loss_forward, ppo_value_loss_backward),
        with_values(
            gradients(probe_value, {"values": MASK.shape}),
            (
                "V = 3, was 1, R = 4, ε = 0.5",
                lambda b: token_loss(b, ppo_value_loss_forward, 3.0, 1.0, 4.0, clip=0.5),
                3.125,
            ),
        ),
    ),
    Derivation(
        "DPO: the policy is its own reward model",
        """
        max_π E_π[r] − β KL(π, π_ref)   is solved by   π = π_ref exp(r/β)/Z(prompt)
        hence r = β log(π/π_ref) + β log Z, and in a difference of two responses to one prompt Z is gone:
          h = log π(c)/π_ref(c) − log π(r)/π_ref(r),   L = −(1/n) Σ log σ(βh)

        which is the reward model's loss with s = β log(π/π_ref):
          dlog π(c) = −β σ(−βh)/n,   dlog π(r) = +β σ(−βh)/n
        A share ε of wrong labels adds ε times the loss of the pair turned round.
        """,
        (dpo_loss_forward, dpo_loss_backward),
        with_values(
            gradients(probe_dpo("sigmoid", 0.1), {"chosen": (6,), "rejected": (6,)}),
            ("h = 4, β = 0.5", lambda b: pair_loss(b, dpo_loss_forward, -1.0, -7.0, -2.0, -4.0, beta=0.5), RIGHT[1]),
        ),
    ),
    Derivation(
        "DPO, IPO's loss",
        """
        L = (1/n) Σ (h − 1/(2β))²,   dh = 2 (h − 1/(2β))/n
        At h = 1/(2β) nothing pulls; a pair that is ordered by more is pulled back.
        """,
        (dpo_loss_backward,),
        with_values(
            gradients(probe_dpo("ipo", 0.0), {"chosen": (6,), "rejected": (6,)}),
            (
                "h = 4, β = 0.5: 9",
                lambda b: pair_loss(b, dpo_loss_forward, -1.0, -7.0, -2.0, -4.0, beta=0.5, kind="ipo"),
                9.0,
            ),
        ),
    ),
)


WHOLE = """
The loss is a function of log-probabilities, scores and values; heads and trunk carry its gradient to the parameters.
"""


def whole_models(backend: Backend) -> list[Derivation]:
    """Every objective through a whole tiny model."""

    def check(name: str) -> Callable[[Backend], list[Check]]:
        return lambda backend: check_objective(*tiny_cases(backend)[name])

    return [
        Derivation(f"{name}, every parameter of a small model moved", WHOLE, (type(objective).forward,), check(name))
        for name, (_, objective, _) in tiny_cases(backend).items()
    ]


def derive(run: Run) -> list[Check]:
    """Show and check the mathematics, then every objective through a whole tiny model."""
    return derivation.derive(run, [*DERIVATIONS, *whole_models(run.backend)])


# ---------------------------------------------------------------------------------------------- the experiment

CORE = Recipe(rewards=RewardModelling(), ppo=PPOSettings(loss=PPO()), dpo=DPO())
QUICK = Recipe(
    rewards=RewardModelling(),
    ppo=PPOSettings(loss=PPO(), iterations=2, episodes=8, epochs=1),
    dpo=DPO(),
    base="base-xs",
    rankings=24,
    held_out=12,
    max_new_tokens=12,
    sft_steps=2,
    sft_batch=4,
    reward_prompts=12,
    reward_steps=2,
    reward_batch=4,
    dpo_steps=2,
    dpo_batch=4,
    judged=8,
    best_of=(1, 2),
    documents=2,
    workers=1,
)
SEEDS, SWEEP_SEEDS = 5, 3


def ppo_variants(ppo: PPOSettings) -> dict[str, dict[str, PPOSettings]]:
    """PPO runs of a full lesson that differ from the lesson's own in one thing, by sweep and variant."""
    loss = ppo.loss
    return {
        "β": {f"{beta:g}": replace(ppo, loss=replace(loss, beta=beta)) for beta in (loss.beta / 4, loss.beta * 4)},
        "adaptive β": {"KL target 5": replace(ppo, loss=replace(loss, target_kl=5.0))},
        "epochs a rollout": {f"{n}": replace(ppo, epochs=n) for n in (1, 2 * ppo.epochs)},
    }


DPO_VARIANTS = {
    "β = 0.02": DPO(beta=0.02),
    "β = 0.5": DPO(beta=0.5),
    "smoothing 0.2": DPO(label_smoothing=0.2),
    "IPO": DPO(kind="ipo"),
}


def lesson(run: Run) -> None:
    """Everything that `make lesson-10` does."""
    derivation.require(derive(run))
    run.say("\n  every gradient agrees with central differences")
    settings = run.settings
    recipe = settings.choose(QUICK, CORE)
    if settings.data:
        experiment.own_preferences(run, recipe)
        return
    data = tinyworld.preferences(recipe.rankings, held_out=recipe.held_out)
    experiment.show_data(run, data)

    headline: list[dict[str, Arm]] = []
    benches: list[Bench] = []
    best_of: list[dict[int, tuple[float, float]]] = []
    sweeps: dict[str, dict[str, list[float]]] = {}
    paths: dict[str, list[list[tuple[float, float]]]] = {}
    for number in range(SEEDS if settings.full else 1):
        seed = settings.seed + number
        run.heading(f"Training{f', seed {seed}' if settings.full else ''}")
        run.say(f"  {recipe.base}: supervised fine-tuning, a reward model, PPO with and without a price on KL, DPO")
        bench = Bench(experiment.begin(run, recipe, data, seed), recipe, data)
        start, free = bench.start, replace(recipe.ppo, loss=replace(recipe.ppo.loss, beta=0.0))
        arms = {
            "base": bench.arm(start.base),
            "supervised": bench.arm(start.policy),
            MAIN: bench.ppo(recipe.ppo, MAIN),
            FREE: bench.ppo(free, FREE),
            "DPO": bench.dpo(recipe.dpo, "DPO"),
        }
        headline.append(arms)
        benches.append(bench)
        best_of.append(bench.judges.best_of(start.policy, recipe.best_of))
        if number == 0:
            experiment.show(run, bench, arms, best_of[0])
        if settings.full and number < SWEEP_SEEDS:
            experiment.sweep(bench, data, arms, ppo_variants(recipe.ppo), DPO_VARIANTS, sweeps)
            experiment.remember(bench, data, paths)
    if settings.full:
        experiment.show_sweeps(run, sweeps, paths)
    experiment.report(run, recipe, headline, [bench.start.accuracy for bench in benches], best_of)
    run.results |= {
        "recipe": asdict(recipe),
        "arms": [{name: arm.record() for name, arm in arms.items()} for arms in headline],
        "best_of": [{str(n): list(pair) for n, pair in seed.items()} for seed in best_of],
        "sweeps": sweeps,
        "forgetting": paths,
        "data": data.record(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-10``; gives the exit code."""
    return runner.main(10, __doc__, lesson, argv, takes=runner.PREFERENCES)


if __name__ == "__main__":
    sys.exit(main())
