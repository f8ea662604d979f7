"""Lesson 10, fine-tuning from preferences: cases and typical mistakes.

The backward of a loss takes the cache that the course's own forward made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from lessons import lesson_10_rlhf as course

LESSON = "lessons.lesson_10_rlhf"


def number(rng: np.random.Generator, low: float, high: float) -> float:
    """One of the numbers between that nobody would guess."""
    return round(float(rng.uniform(low, high)), 3)


def responses(rng: np.random.Generator, B: int, T: int, end: int = 1) -> np.ndarray:
    """Masks of responses of different lengths: row i is i + 1 tokens long or longer, and ends before the last `end`."""
    mask = np.zeros((B, T), dtype=bool)
    for b in range(B):
        length = min(b + 1, T - end - 1)
        start = int(rng.integers(1, T - end - length + 1))
        mask[b, start : start + length] = True
    return mask


# ---------------------------------------------------------------------------------------------- preferences


def cases_reward_loss_forward(rng: np.random.Generator) -> Sequence[Case]:
    """With and without a margin and a batch size; scores so far apart that exp overflows, both ways round."""
    P = int(rng.integers(4, 8))
    chosen, rejected, margins = rng.standard_normal((3, P))
    far = rng.uniform(750, 1500, P) * np.resize([1, -1], P)
    return [
        Case("no margin", {"chosen": chosen, "rejected": rejected}),
        Case("one margin for all", {"chosen": chosen, "rejected": rejected, "margin": number(rng, 0.5, 2)}),
        Case("a margin for each pair", {"chosen": chosen, "rejected": rejected, "margin": abs(margins)}),
        Case(
            "a part of a batch",
            {
                "chosen": rejected,
                "rejected": chosen,
                "margin": number(rng, 0.2, 1),
                "n_pairs": float(P + rng.integers(2, 6)),
            },
        ),
        Case("one pair", {"chosen": chosen[:1], "rejected": rejected[:1]}),
        Case("equal scores", {"chosen": chosen, "rejected": chosen.copy(), "margin": 0.0}),
        Case("scores far apart", {"chosen": far / 2, "rejected": -far / 2}),
        Case("ordered rightly by far", {"chosen": 20 + chosen, "rejected": rejected - 20, "margin": 1.0}),
    ]


def cases_reward_loss_backward(rng: np.random.Generator) -> Sequence[Case]:
    """Differences of both signs, near 0 and far from it; n is seldom the number of pairs."""
    P = int(rng.integers(4, 8))
    chosen, rejected = rng.standard_normal((2, P))

    def case(name: str, chosen: np.ndarray, margin: Any = 0.0, n: float | None = None) -> Case:
        return Case(name, {"cache": course.reward_loss_forward(chosen, rejected[: len(chosen)], margin, n)[1]})

    far = rng.uniform(750, 1500, P) * np.resize([1, -1], P)
    return [
        case("whole batch", chosen),
        case("with a margin", chosen, number(rng, 0.5, 2)),
        case("a part of a batch", chosen, abs(rng.standard_normal(P)), float(P + rng.integers(2, 6))),
        case("one pair", chosen[:1]),
        case("one pair of many", chosen[:1], 0.3, 5.0),
        case("scores far apart", far),
        case("ordered rightly by far", chosen + 20),
        case("ordered wrongly by far", chosen - 20),
    ]


def cases_dpo_loss_forward(rng: np.random.Generator) -> Sequence[Case]:
    """Both kinds, with and without smoothing and a batch size, prices from small to large."""
    P = int(rng.integers(4, 8))
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected")

    def case(name: str, P: int = P, scale: float = 3.0, **settings: Any) -> Case:
        logprobs = -20 + scale * rng.standard_normal((4, P))
        return Case(name, dict(zip(names, logprobs, strict=True)) | settings)

    part = float(P + rng.integers(2, 6))
    return [
        case("as it comes"),
        case("another price", beta=number(rng, 0.3, 0.9)),
        case("labels smoothed", beta=number(rng, 0.3, 0.9), label_smoothing=number(rng, 0.1, 0.4)),
        case("a part of a batch", beta=number(rng, 0.3, 0.9), label_smoothing=0.1, kind="sigmoid", n_pairs=part),
        case("one pair", P=1, beta=number(rng, 0.3, 0.9)),
        case("far apart", scale=1000.0, beta=number(rng, 1.5, 2), label_smoothing=0.0),
        case("far apart and smoothed", scale=1000.0, beta=number(rng, 1.5, 2), label_smoothing=0.2),
        case("IPO", beta=number(rng, 0.3, 0.9), label_smoothing=0.0, kind="ipo"),
        case("IPO, smoothing means nothing", beta=number(rng, 0.3, 0.9), label_smoothing=0.3, kind="ipo"),
        case("IPO, a high price", beta=number(rng, 2, 3), label_smoothing=0.0, kind="ipo"),
        case("IPO, a part of a batch", beta=number(rng, 0.1, 0.2), label_smoothing=0.0, kind="ipo", n_pairs=part),
    ]


def cases_dpo_loss_backward(rng: np.random.Generator) -> Sequence[Case]:
    """The caches of the forward's cases."""
    cases = []
    for case in cases_dpo_loss_forward(rng):
        cases.append(Case(case.name, {"cache": course.dpo_loss_forward(**case.args)[1]}))
    return cases


# ---------------------------------------------------------------------------------------------- advantages


def cases_kl_rewards(rng: np.random.Generator) -> Sequence[Case]:
    """Responses in the middle, at the start and at the end of their rows, of one token and of all."""
    B, T = int(rng.integers(3, 5)), int(rng.integers(7, 10))

    def case(name: str, mask: np.ndarray, beta: float, distance: float = 1.0) -> Case:
        logprobs = -2 + rng.standard_normal(mask.shape)
        reference = logprobs + distance * rng.standard_normal(mask.shape)
        scores = 2 * rng.standard_normal(len(mask))
        args = {"logprobs": logprobs, "reference": reference, "scores": scores, "mask": mask, "beta": beta}
        return Case(name, args)

    middle = responses(rng, B, T)
    start = np.arange(T) < np.arange(2, B + 2)[:, None]
    end = np.arange(T) >= np.arange(2, B + 2)[:, None]
    one = np.arange(T) == rng.permutation(np.arange(1, T))[:B, None]
    return [
        case("responses in the middle of the rows", middle, number(rng, 0.05, 0.5)),
        case("responses at the start of the rows", start, number(rng, 0.05, 0.5)),
        case("responses to the end of the rows", end, number(rng, 0.05, 0.5)),
        case("responses of one token", one, number(rng, 0.05, 0.5)),
        case("whole rows", np.ones((B, T), bool), number(rng, 2, 4)),
        case("one row", middle[:1], number(rng, 0.05, 0.5)),
        case("one column", np.ones((B, 1), bool), number(rng, 0.05, 0.5)),
        case("no price", middle, 0.0),
        case("the policy is the reference", middle, number(rng, 0.05, 0.5), distance=0.0),
    ]


def cases_gae(rng: np.random.Generator) -> Sequence[Case]:
    """Discounts and λ inside and at the ends of their range; rewards and values outside of the mask mean nothing."""
    B, T = int(rng.integers(3, 5)), int(rng.integers(7, 10))

    def case(name: str, mask: np.ndarray, **settings: float) -> Case:
        rewards, values = rng.standard_normal((2, *mask.shape))
        return Case(name, {"rewards": rewards, "values": 1 + 2 * values, "mask": mask} | settings)

    middle = responses(rng, B, T)
    start = np.arange(T) < np.arange(2, B + 2)[:, None]
    end = np.arange(T) >= np.arange(2, B + 2)[:, None]
    one = np.arange(T) == rng.permutation(np.arange(1, T))[:B, None]
    return [
        case("as it comes", middle),
        case("discounted", middle, gamma=number(rng, 0.6, 0.95), lam=number(rng, 0.5, 0.9)),
        case("responses at the start of the rows", start, gamma=number(rng, 0.6, 0.95), lam=number(rng, 0.5, 0.9)),
        case("responses to the end of the rows", end, gamma=number(rng, 0.6, 0.95), lam=number(rng, 0.5, 0.9)),
        case("one step ahead only", middle, gamma=number(rng, 0.6, 0.95), lam=0.0),
        case("all that came", middle, gamma=number(rng, 0.6, 0.95), lam=1.0),
        case("nothing later counts", middle, gamma=0.0, lam=number(rng, 0.5, 0.9)),
        case("responses of one token", one, gamma=number(rng, 0.6, 0.95), lam=number(rng, 0.5, 0.9)),
        case("whole rows", np.ones((B, T), bool), gamma=number(rng, 0.6, 0.95), lam=number(rng, 0.5, 0.9)),
        case("one row", end[:1], gamma=number(rng, 0.6, 0.95), lam=number(rng, 0.5, 0.9)),
        case("one column", np.ones((B, 1), bool), gamma=number(rng, 0.6, 0.95), lam=number(rng, 0.5, 0.9)),
    ]


def cases_whiten(rng: np.random.Generator) -> Sequence[Case]:
    """Numbers large and small against 1e-8, far from 0 and all alike; what is outside of the mask means nothing."""
    B, T = int(rng.integers(3, 5)), int(rng.integers(7, 10))

    def case(name: str, mask: np.ndarray, mean: float = 0.5, scale: float = 2.0) -> Case:
        x = mean + scale * rng.standard_normal(mask.shape)
        return Case(name, {"x": np.where(mask, x, x + 7 * scale), "mask": mask})

    middle = responses(rng, B, T)
    two = np.zeros((B, T), bool)
    two[0, 1] = two[-1, 3] = True
    return [
        case("responses of different lengths", middle),
        case("everything valid", np.ones((B, T), bool)),
        case("two entries", two),
        case("one row", np.arange(T)[None] % 4 > 0),
        case("one column", np.ones((B, 1), bool)),
        case("far from zero", middle, mean=-30.0),
        case("small numbers", middle, mean=1e-4, scale=2e-4),
        case("large numbers", middle, mean=300.0, scale=1000.0),
        Case("all alike", {"x": np.where(middle, 0.75, rng.standard_normal((B, T))), "mask": middle}),
    ]


# ---------------------------------------------------------------------------------------------- PPO


def on_both_sides(rng: np.random.Generator, shape: tuple[int, ...], clip: float) -> np.ndarray:
    """Changes below, inside and above ±clip, none near it, in equal shares."""
    parts = np.array([[-4.0, -1.7], [-0.8, -0.1], [0.1, 0.8], [1.7, 4.0]])
    low, high = parts[rng.permutation(np.resize(np.arange(4), int(np.prod(shape))))].T
    return (clip * rng.uniform(low, high)).reshape(shape)


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of both signs, none near 0."""
    return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.3, 3, shape)


def cases_ppo_policy_loss_forward(rng: np.random.Generator) -> Sequence[Case]:
    """Ratios below, inside and above the range with advantages of both signs."""
    B, T = int(rng.integers(3, 5)), int(rng.integers(7, 10))

    def case(
        name: str, mask: np.ndarray, moved: float = 1.0, sign: float = 0.0, size: float = 1.0, **settings: Any
    ) -> Case:
        shape, clip = mask.shape, settings.get("clip", 0.2)
        old = -3 + rng.standard_normal(shape)
        advantages = size * signs(rng, shape)
        if sign:
            advantages = sign * abs(advantages)
        logprobs = old + moved * on_both_sides(rng, shape, clip)
        args = {"logprobs": logprobs, "old": old, "advantages": advantages, "mask": mask}
        return Case(name, args | settings)

    middle, whole = responses(rng, B, T), np.ones((B, T), bool)
    part = float(B * T + rng.integers(2, 9))
    outside = case("far off outside of the mask", middle)
    outside.args["logprobs"][~middle] += 2000.0
    return [
        case("as it comes", middle),
        outside,
        case("another range", middle, clip=number(rng, 0.3, 0.4)),
        case("a part of a batch", middle, clip=0.2, n_tokens=part),
        case("whole rows", whole, clip=number(rng, 0.05, 0.15)),
        case("good tokens only", whole, sign=1.0, clip=0.25),
        case("bad tokens only", whole, sign=-1.0, clip=0.25),
        case("small advantages", whole, size=0.01, clip=0.2),
        case("large advantages", whole, size=100.0, clip=0.2),
        case("nothing has moved", middle, moved=0.0),
        case("all inside the range", middle, moved=0.2, clip=0.3),
        case("one row", whole[:1], clip=0.2, n_tokens=float(T)),
        case("one token", np.ones((1, 1), bool), clip=0.1),
    ]


def cases_ppo_policy_loss_backward(rng: np.random.Generator) -> Sequence[Case]:
    """The caches of the forward's cases; nothing outside of the mask may come through."""
    return [
        Case(case.name, {"cache": course.ppo_policy_loss_forward(**case.args)[1]})
        for case in cases_ppo_policy_loss_forward(rng)
    ]


def cases_ppo_value_loss_forward(rng: np.random.Generator) -> Sequence[Case]:
    """Values below, inside and above the range around the old ones, with returns on either side and far away."""
    B, T = int(rng.integers(3, 5)), int(rng.integers(7, 10))

    def case(
        name: str, mask: np.ndarray, moved: float = 1.0, away: float = 1.0, between: bool = False, **settings: Any
    ) -> Case:
        shape, clip = mask.shape, settings.get("clip", 0.2)
        old = 1 + 2 * rng.standard_normal(shape)
        values = old + moved * on_both_sides(rng, shape, clip)
        returns = old + away * signs(rng, shape)
        if between:
            clipped = np.clip(values, old - clip, old + clip)
            returns = values + rng.choice([rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.9)], shape) * (clipped - values)
        return Case(name, {"values": values, "old": old, "returns": returns, "mask": mask} | settings)

    middle, whole = responses(rng, B, T), np.ones((B, T), bool)
    part = float(B * T + rng.integers(2, 9))
    return [
        case("as it comes", middle),
        case("another range", middle, clip=number(rng, 0.4, 0.9)),
        case("a part of a batch", middle, clip=0.5, n_tokens=part),
        case("whole rows", whole, clip=number(rng, 0.05, 0.15)),
        case("returns near the old values", whole, away=0.1, clip=0.5),
        case("returns far away", whole, away=10.0, clip=0.5),
        case("returns between the clipped values and the values", whole, between=True, clip=0.5),
        case("a narrow range and small changes", whole, away=0.01, clip=0.01),
        case("nothing has moved", middle, moved=0.0),
        case("all inside the range", middle, moved=0.2, clip=0.6),
        case("one row", whole[:1], clip=0.2, n_tokens=float(T)),
        case("one token", np.ones((1, 1), bool), clip=0.1),
    ]


def cases_ppo_value_loss_backward(rng: np.random.Generator) -> Sequence[Case]:
    """The caches of the forward's cases; nothing outside of the mask may come through."""
    return [
        Case(case.name, {"cache": course.ppo_value_loss_forward(**case.args)[1]})
        for case in cases_ppo_value_loss_forward(rng)
    ]


def cases_adaptive_kl(rng: np.random.Generator) -> Sequence[Case]:
    """Divergences a little and far from the target on either side, and on it."""

    def case(name: str, ratio: float, beta: float | None = None) -> Case:
        target, horizon = number(rng, 2, 9), float(rng.integers(500, 2000))
        beta, n = number(rng, 0.05, 0.5) if beta is None else beta, int(rng.integers(16, 300))
        return Case(name, {"beta": beta, "kl": ratio * target, "target": target, "n": n, "horizon": horizon})

    return [
        case("a little above the target", number(rng, 1.05, 1.15)),
        case("a little below the target", number(rng, 0.85, 0.95)),
        case("far above the target", number(rng, 1.5, 4)),
        case("far below the target", number(rng, 0.1, 0.6)),
        case("no divergence at all", 0.0),
        case("on the target", 1.0),
        case("next to the target", number(rng, 1.005, 1.015)),
        case("a high price", number(rng, 1.5, 4), beta=number(rng, 3, 8)),
        case("a low price", number(rng, 0.1, 0.6), beta=number(rng, 0.001, 0.009)),
        Case("a target below 1", {"beta": 0.3, "kl": 0.27, "target": 0.25, "n": 64, "horizon": 640.0}),
        Case("more responses than the horizon", {"beta": 0.1, "kl": 30.0, "target": 6.0, "n": 300, "horizon": 100.0}),
        Case("many responses below the target", {"beta": 0.7, "kl": 1.0, "target": 6.0, "n": 300, "horizon": 100.0}),
    ]


EXERCISES = (
    Exercise(
        id="10.01",
        function=f"{LESSON}:reward_loss_forward",
        title="Reward model: the loss of comparisons",
        points=2,
        cases=cases_reward_loss_forward,
        wrong=(
            Wrong(
                "margin-added",
                "The margin is added to the difference; it must be won first, so it is taken away.",
                "- margin",
                "+ margin",
            ),
            Wrong("no-margin", "The margin is left out.", " - margin", ""),
            Wrong(
                "pairs-turned-round",
                "Chosen and rejected have changed places: the loss rewards the wrong response.",
                "chosen - rejected",
                "rejected - chosen",
            ),
            Wrong("summed", "The loss is summed over the pairs; it is divided by n.", "/ n, (h, n)", ", (h, n)"),
            Wrong(
                "batch-size-ignored",
                "The loss is divided by the pairs of this part even where those of the whole batch are given.",
                "float(h.shape[0]) if n_pairs is None else n_pairs",
                "float(h.shape[0])",
            ),
            Wrong(
                "probability-instead-of-its-logarithm",
                "The probability itself is summed; the loss is its negative logarithm.",
                "log_sigmoid(h)",
                "sigmoid(h)",
            ),
            Wrong(
                "logarithm-cut-off",
                "The logarithm of the rounded sigmoid is taken, with a small number inside: pairs that are ordered "
                "wrongly by far lose their loss. The logarithm of the sigmoid can be computed as a whole.",
                "log_sigmoid(h)",
                "np.log(sigmoid(h) + 1e-12)",
            ),
            Wrong(
                "sign-of-the-loss",
                "The loss has the wrong sign: it falls when the wrong response wins.",
                "-float(",
                "float(",
            ),
        ),
        alternatives=(
            Alternative(
                "logaddexp",
                "h = (chosen - margin) - rejected\n"
                "pairs = n_pairs if n_pairs is not None else float(len(h))\n"
                "return float(np.logaddexp(0.0, -h).sum() / pairs), (h, pairs)\n",
            ),
            Alternative(
                "loop",
                "margins = np.broadcast_to(margin, chosen.shape)\n"
                "h = np.array([c - r - m for c, r, m in zip(chosen, rejected, margins)])\n"
                "n = n_pairs or len(h)\n"
                "loss = 0.0\n"
                "for x in h.tolist():\n"
                "    loss += math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))\n"
                "return loss / n, (h, float(n))\n",
            ),
        ),
    ),
    Exercise(
        id="10.02",
        function=f"{LESSON}:reward_loss_backward",
        title="Reward model: gradients of the scores",
        points=1,
        cases=cases_reward_loss_backward,
        wrong=(
            Wrong("sign", "Both gradients have the wrong sign.", "-sigmoid(-h)", "sigmoid(-h)"),
            Wrong(
                "sigmoid-of-the-difference",
                "The sigmoid is that of the difference, not of its negative: pairs that are right already learn most.",
                "-sigmoid(-h)",
                "-sigmoid(h)",
            ),
            Wrong("summed", "The gradient is that of a sum; the loss is divided by n.", " / n", ""),
            Wrong(
                "same-sign",
                "Both scores get the same gradient; only their difference enters, so the signs differ.",
                "dchosen, -dchosen",
                "dchosen, dchosen",
            ),
            Wrong(
                "derivative-of-the-sigmoid",
                "The derivative of the sigmoid stands there; that of its logarithm is needed.",
                "-sigmoid(-h)",
                "-sigmoid(-h) * sigmoid(h)",
            ),
            Wrong(
                "batch-size-ignored",
                "The gradient is divided by the pairs of this part, not by the n of the cache.",
                " / n",
                " / h.shape[0]",
            ),
        ),
        alternatives=(
            Alternative(
                "exp",
                "h, n = cache\ndrejected = np.exp(-np.logaddexp(0, h)) / n\nreturn np.negative(drejected), drejected\n",
            ),
            Alternative(
                "loop, float32",
                "h, n = cache\n"
                "d = np.zeros(h.shape, np.float32)\n"
                "for i, x in enumerate(h):\n"
                "    d[i] = 0.5 * (1 - math.tanh(x / 2)) / n\n"
                "return -d, d\n",
            ),
        ),
    ),
    Exercise(
        id="10.03",
        function=f"{LESSON}:kl_rewards",
        title="PPO: what every token earns",
        points=2,
        cases=cases_kl_rewards,
        wrong=(
            Wrong(
                "divergence-rewarded",
                "The sign of the price is wrong: going away from the reference is paid for.",
                "-beta *",
                "beta *",
            ),
            Wrong(
                "score-at-the-end-of-the-row",
                "The score falls on the last column; it belongs to the last token of the response.",
                "T - 1 - mask[:, ::-1].argmax(1)",
                "xp.full(B, T - 1)",
            ),
            Wrong(
                "score-at-the-first-token",
                "The score falls on the response's first token; it belongs to its last.",
                "T - 1 - mask[:, ::-1].argmax(1)",
                "mask.argmax(1)",
            ),
            Wrong(
                "score-at-every-token",
                "Every token earns the score; only the last one does.",
                "rewards[xp.arange(B), last] += scores",
                "rewards += scores[:, None] * mask",
            ),
            Wrong(
                "price-of-the-last-token-lost",
                "The last token earns the score only; its part of the price is overwritten.",
                "+= scores",
                "= scores",
            ),
            Wrong("no-mask", "Tokens outside of the mask earn something; they must get 0.", " * mask", ""),
            Wrong(
                "length-taken-for-place",
                "The last token's place is taken to be the response's length less one; responses do not start at 0.",
                "T - 1 - mask[:, ::-1].argmax(1)",
                "mask.sum(1) - 1",
            ),
            Wrong(
                "ratio-instead-of-its-logarithm",
                "The price is put on the ratio of the probabilities less one; it is put on the ratio's logarithm.",
                "(logprobs - reference)",
                "(xp.exp(logprobs - reference) - 1)",
            ),
            Wrong(
                "price-on-the-score",
                "The score is multiplied by the price too.",
                "+= scores",
                "+= beta * scores",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "rewards = np.zeros(logprobs.shape)\n"
                "for b in range(len(mask)):\n"
                "    places = np.flatnonzero(mask[b])\n"
                "    for t in places:\n"
                "        rewards[b, t] = beta * (reference[b, t] - logprobs[b, t])\n"
                "    rewards[b, places[-1]] += scores[b]\n"
                "return rewards\n",
            ),
            Alternative(
                "one-hot of the last",
                "count = mask.cumsum(1)\n"
                "is_last = mask & (count == count[:, -1:])\n"
                "return np.where(mask, -beta * (logprobs - reference), 0.0) + is_last * scores[:, None]\n",
            ),
        ),
    ),
    Exercise(
        id="10.04",
        function=f"{LESSON}:gae",
        title="PPO: generalised advantage estimation",
        points=4,
        cases=cases_gae,
        wrong=(
            Wrong(
                "next-value-not-discounted",
                "γ is missing in δ: the next value is not discounted.",
                "gamma * next_value",
                "next_value",
            ),
            Wrong(
                "lambda-missing",
                "λ is missing in the recursion.",
                "gamma * lam * next_advantage",
                "gamma * next_advantage",
            ),
            Wrong(
                "gamma-missing-in-the-recursion",
                "The later advantage is multiplied by λ only; γ belongs there too.",
                "gamma * lam * next_advantage",
                "lam * next_advantage",
            ),
            Wrong(
                "value-after-the-end",
                "The value of the place behind the response is used; after the last token it is 0.",
                "next_value = values[:, t] * mask[:, t]",
                "next_value = values[:, t]",
            ),
            Wrong(
                "advantage-from-behind-the-end",
                "What stands behind the response leaks into its advantages; after the last token they are 0.",
                "(delta + gamma * lam * next_advantage) * mask[:, t]",
                "delta + gamma * lam * next_advantage",
            ),
            Wrong(
                "own-value-missing",
                "The value of the token's own state is not taken away in δ.",
                " - values[:, t]\n",
                "\n",
            ),
            Wrong(
                "front-to-back",
                "The recursion runs from the first token to the last; each needs what comes after it.",
                "reversed(range(values.shape[1]))",
                "range(values.shape[1])",
            ),
            Wrong(
                "returns-not-masked",
                "The returns outside of the mask are not 0.",
                "(advantages + values) * mask",
                "advantages + values",
            ),
            Wrong(
                "returns-without-values",
                "The returns are the advantages alone; the value is added to them again.",
                "(advantages + values) * mask",
                "advantages * mask",
            ),
            Wrong(
                "returns-from-rewards",
                "The rewards are added to the advantages; returns are advantages plus values.",
                "(advantages + values) * mask",
                "(advantages + rewards) * mask",
            ),
        ),
        alternatives=(
            Alternative(
                "sums written out",
                "advantages = np.zeros(values.shape)\n"
                "for b, row in enumerate(mask):\n"
                "    places = np.flatnonzero(row)\n"
                "    r, v = rewards[b, places], values[b, places]\n"
                "    delta = r + gamma * np.append(v[1:], 0.0) - v\n"
                "    for i, t in enumerate(places):\n"
                "        weights = (gamma * lam) ** np.arange(len(places) - i)\n"
                "        advantages[b, t] = weights @ delta[i:]\n"
                "return advantages, np.where(mask, advantages + values, 0.0)\n",
            ),
            Alternative(
                "matrix",
                "T = values.shape[1]\n"
                "after = np.append(mask[:, 1:], np.zeros((len(mask), 1), bool), axis=1)\n"
                "later = np.append(values[:, 1:], np.zeros((len(mask), 1)), axis=1) * after\n"
                "delta = (rewards + gamma * later - values) * mask\n"
                "i, j = np.indices((T, T))\n"
                "weights = np.where(j >= i, float(gamma * lam) ** np.maximum(j - i, 0), 0.0)\n"
                "advantages = np.einsum('ij,bj->bi', weights, delta) * mask\n"
                "return advantages, advantages + values * mask\n",
            ),
            Alternative(
                "float32",
                "out = np.zeros(values.shape, np.float32)\n"
                "carry = np.zeros(len(values), np.float32)\n"
                "following = np.zeros(len(values), np.float32)\n"
                "r, v, valid = (np.asarray(a, np.float32) for a in (rewards, values, mask))\n"
                "for t in range(values.shape[1] - 1, -1, -1):\n"
                "    delta = r[:, t] + np.float32(gamma) * following - v[:, t]\n"
                "    carry = valid[:, t] * (delta + np.float32(gamma * lam) * carry)\n"
                "    following = v[:, t] * valid[:, t]\n"
                "    out[:, t] = carry\n"
                "return out, out + v * valid\n",
            ),
        ),
    ),
    Exercise(
        id="10.05",
        function=f"{LESSON}:whiten",
        title="PPO: whitened advantages",
        points=2,
        cases=cases_whiten,
        wrong=(
            Wrong(
                "divided-by-n",
                "The variance is divided by n; here it is n − 1.",
                "/ (n - 1)",
                "/ n",
            ),
            Wrong(
                "epsilon-outside-the-root",
                "1e-8 is added to the standard deviation; it belongs to the variance, inside the root.",
                "math.sqrt(variance + 1e-8)",
                "(math.sqrt(variance) + 1e-8)",
            ),
            Wrong(
                "mean-over-everything",
                "The mean is taken over the whole array; only entries inside the mask count.",
                "float((x * mask).sum()) / n",
                "float(x.mean())",
            ),
            Wrong(
                "not-masked",
                "Entries outside of the mask are not 0, and count in the variance.",
                "/ n) * mask\n",
                "/ n)\n",
            ),
            Wrong(
                "mean-kept",
                "The numbers are divided by the standard deviation without taking the mean away.",
                "return centred",
                "return x * mask",
            ),
            Wrong(
                "divided-by-the-variance",
                "The numbers are divided by the variance; the root is missing.",
                "math.sqrt(variance + 1e-8)",
                "(variance + 1e-8)",
            ),
            Wrong(
                "row-by-row",
                "Each row has its own mean taken away; there is one mean over all valid entries.",
                "float((x * mask).sum()) / n)",
                "(x * mask).sum(1, keepdims=True) / np.maximum(mask.sum(1, keepdims=True), 1))",
            ),
            Wrong(
                "square-around-zero",
                "The mean square of the numbers stands for the variance; the mean must be taken away first.",
                "centred**2",
                "(x * mask) ** 2",
            ),
        ),
        alternatives=(
            Alternative(
                "valid entries alone",
                "if mask.sum() < 2:\n"
                "    raise ValueError('too few')\n"
                "valid = x[mask]\n"
                "out = np.zeros_like(x)\n"
                "out[mask] = (valid - valid.mean()) / np.sqrt(valid.var(ddof=1) + 1e-8)\n"
                "return out\n",
            ),
            Alternative(
                "loop",
                "numbers = [float(v) for v, m in zip(x.ravel(), mask.ravel()) if m]\n"
                "if len(numbers) < 2:\n"
                "    raise InputError('too few')\n"
                "mean = math.fsum(numbers) / len(numbers)\n"
                "variance = math.fsum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1)\n"
                "return np.where(mask, (x - mean) / (variance + 1e-8) ** 0.5, 0.0)\n",
            ),
        ),
    ),
    Exercise(
        id="10.06",
        function=f"{LESSON}:ppo_policy_loss_forward",
        title="PPO: the clipped loss of the policy",
        points=3,
        cases=cases_ppo_policy_loss_forward,
        view="ppo_loss",
        wrong=(
            Wrong(
                "minimum-of-losses",
                "The smaller of the two terms is taken. Of losses, which are negative gains, it is the larger.",
                "xp.maximum(plain, clipped)",
                "xp.minimum(plain, clipped)",
            ),
            Wrong(
                "ratio-upside-down",
                "The ratio is old over new; it is new over old.",
                "logprobs - old",
                "old - logprobs",
            ),
            Wrong(
                "sign-of-the-advantages",
                "The advantages have no minus: good tokens would be made rarer.",
                "plain, clipped = -advantages * ratio, -advantages *",
                "plain, clipped = advantages * ratio, advantages *",
            ),
            Wrong(
                "clipped-term-only",
                "Only the clipped term is used; a good token that became rarer gets no help.",
                "xp.maximum(plain, clipped)",
                "clipped",
            ),
            Wrong(
                "mean-over-everything",
                "The sum is divided by all places; n counts those inside the mask.",
                "float(mask.sum())",
                "float(mask.size)",
            ),
            Wrong(
                "batch-size-ignored",
                "The sum is divided by the tokens of this part even where those of the whole batch are given.",
                "float(mask.sum()) if n_tokens is None else n_tokens",
                "float(mask.sum())",
            ),
            Wrong(
                "clipped-above-only",
                "The ratio is clipped above 1 + ε only; below 1 − ε too.",
                "xp.clip(ratio, 1 - clip, 1 + clip)",
                "xp.minimum(ratio, 1 + clip)",
            ),
            Wrong(
                "logarithm-clipped",
                "The logarithm of the ratio is clipped to ±ε; the ratio itself is, to 1 ± ε.",
                "xp.clip(ratio, 1 - clip, 1 + clip)",
                "xp.clip(ratio, xp.exp(-clip), xp.exp(clip))",
            ),
            Wrong(
                "no-mask",
                "Places outside of the mask are summed too.",
                "xp.maximum(plain, clipped) * mask",
                "xp.maximum(plain, clipped)",
            ),
            Wrong(
                "no-exponential",
                "The ratio is taken as 1 plus the difference of the log-probabilities; it is its exponential.",
                "xp.exp((logprobs - old) * mask)",
                "1 + (logprobs - old) * mask",
            ),
        ),
        alternatives=(
            Alternative(
                "cases by sign",
                "ratio = np.exp(logprobs - old)\n"
                "bounded = np.where(ratio > 1 + clip, 1 + clip, np.where(ratio < 1 - clip, 1 - clip, ratio))\n"
                "plain, clipped = -(advantages * ratio), -(advantages * bounded)\n"
                "n = n_tokens if n_tokens is not None else np.count_nonzero(mask)\n"
                "return np.where(clipped > plain, clipped, plain)[mask].sum() / n, (plain, clipped, mask, float(n))\n",
            ),
            Alternative(
                "loop",
                "plain, clipped, total = np.zeros(mask.shape), np.zeros(mask.shape), 0.0\n"
                "for place in zip(*np.nonzero(mask)):\n"
                "    rho = math.exp(logprobs[place] - old[place])\n"
                "    plain[place] = -advantages[place] * rho\n"
                "    clipped[place] = -advantages[place] * min(max(rho, 1 - clip), 1 + clip)\n"
                "    total += max(plain[place], clipped[place])\n"
                "n = float(mask.sum()) if n_tokens is None else float(n_tokens)\n"
                "return total / n, (plain, clipped, mask, n)\n",
            ),
        ),
    ),
    Exercise(
        id="10.07",
        function=f"{LESSON}:ppo_policy_loss_backward",
        title="PPO: gradient of the policy's loss",
        points=2,
        cases=cases_ppo_policy_loss_backward,
        wrong=(
            Wrong(
                "gradient-of-the-clipped-term",
                "The gradient is read off the clipped term, which does not depend on the ratio once it is clipped.",
                "return plain *",
                "return clipped *",
            ),
            Wrong(
                "nothing-inside-the-range",
                "Where both terms are equal, inside the range, the gradient is lost.",
                "(plain >= clipped)",
                "(plain > clipped)",
            ),
            Wrong(
                "the-smaller-term",
                "The gradient passes where the plain term is the smaller one; the loss takes the larger.",
                "(plain >= clipped)",
                "(plain <= clipped)",
            ),
            Wrong(
                "never-clipped",
                "The gradient passes everywhere; where the clipped term is the larger, it is 0.",
                "(plain >= clipped) * mask",
                "mask",
            ),
            Wrong("no-mask", "Places outside of the mask get a gradient.", " * mask", ""),
            Wrong("summed", "The gradient is that of a sum; the loss is divided by n.", " / n", ""),
            Wrong("sign", "The gradient has the wrong sign.", "return plain *", "return -plain *"),
            Wrong(
                "batch-size-ignored",
                "The gradient is divided by the tokens of this part, not by the n of the cache.",
                " / n",
                " / mask.sum()",
            ),
        ),
        alternatives=(
            Alternative(
                "where",
                "plain, clipped, mask, n = cache\n"
                "d = np.where(clipped > plain, 0.0, plain / n)\n"
                "d[~mask] = 0\n"
                "return d\n",
            ),
            Alternative(
                "loop, float32",
                "plain, clipped, mask, n = cache\n"
                "d = np.zeros(plain.shape, dtype='float32')\n"
                "for b, t in np.argwhere(mask):\n"
                "    if plain[b, t] >= clipped[b, t]:\n"
                "        d[b, t] = plain[b, t] / n\n"
                "return d\n",
            ),
        ),
    ),
    Exercise(
        id="10.08",
        function=f"{LESSON}:ppo_value_loss_forward",
        title="PPO: the clipped loss of the values",
        points=3,
        cases=cases_ppo_value_loss_forward,
        view="ppo_loss",
        wrong=(
            Wrong(
                "minimum",
                "The smaller of the two squares is taken; it is the larger.",
                "xp.maximum(error**2, clipped**2)",
                "xp.minimum(error**2, clipped**2)",
            ),
            Wrong("no-half", "The factor ½ is missing.", "0.5 * float", "float"),
            Wrong(
                "clipped-term-only",
                "Only the clipped term is used; the larger of the two counts.",
                "xp.maximum(error**2, clipped**2)",
                "clipped**2",
            ),
            Wrong(
                "clipped-around-the-returns",
                "The values are clipped to a range around the returns; it lies around the old values.",
                "xp.clip(values, old - clip, old + clip)",
                "xp.clip(values, returns - clip, returns + clip)",
            ),
            Wrong(
                "range-around-zero",
                "What is clipped is the change, and the old value is not added to it again.",
                "xp.clip(values, old - clip, old + clip)",
                "xp.clip(values - old, -clip, clip)",
            ),
            Wrong(
                "batch-size-ignored",
                "The sum is divided by the tokens of this part even where those of the whole batch are given.",
                "float(mask.sum()) if n_tokens is None else n_tokens",
                "float(mask.sum())",
            ),
            Wrong(
                "maximum-before-the-square",
                "The larger error is squared; it is the larger square that counts, and errors may be negative.",
                "xp.maximum(error**2, clipped**2)",
                "xp.maximum(error, clipped) ** 2",
            ),
            Wrong("no-mask", "Places outside of the mask are summed too.", "clipped**2) * mask", "clipped**2)"),
            Wrong(
                "mean-over-everything",
                "The sum is divided by all places; n counts those inside the mask.",
                "float(mask.sum())",
                "float(mask.size)",
            ),
            Wrong(
                "clipped-by-proportion",
                "The range is a factor of 1 ± ε on the old value; it is the old value ± ε.",
                "xp.clip(values, old - clip, old + clip)",
                "xp.clip(values, old - clip * abs(old), old + clip * abs(old))",
            ),
        ),
        alternatives=(
            Alternative(
                "change clipped",
                "change = values - old\n"
                "kept = old + np.sign(change) * np.minimum(np.abs(change), clip)\n"
                "error, clipped = values - returns, kept - returns\n"
                "larger = np.where(np.abs(error) >= np.abs(clipped), error, clipped)[mask]\n"
                "n = n_tokens if n_tokens is not None else float(mask.sum())\n"
                "return float(larger @ larger) / (2 * n), (error, clipped, mask, n)\n",
            ),
            Alternative(
                "loop",
                "error, clipped, total = np.zeros(mask.shape), np.zeros(mask.shape), 0.0\n"
                "for i in np.ndindex(mask.shape):\n"
                "    if not mask[i]:\n"
                "        continue\n"
                "    error[i] = values[i] - returns[i]\n"
                "    clipped[i] = min(max(values[i], old[i] - clip), old[i] + clip) - returns[i]\n"
                "    total += 0.5 * max(error[i] ** 2, clipped[i] ** 2)\n"
                "n = int(mask.sum()) if n_tokens is None else n_tokens\n"
                "return total / n, (error, clipped, mask, float(n))\n",
            ),
        ),
    ),
    Exercise(
        id="10.09",
        function=f"{LESSON}:ppo_value_loss_backward",
        title="PPO: gradient of the values' loss",
        points=2,
        cases=cases_ppo_value_loss_backward,
        wrong=(
            Wrong(
                "twice",
                "The gradient is twice too large: the loss has a factor ½.",
                "return error *",
                "return 2 * error *",
            ),
            Wrong(
                "errors-compared",
                "The errors are compared, not their squares; errors may be negative.",
                "error**2 >= clipped**2",
                "error >= clipped",
            ),
            Wrong(
                "gradient-of-the-clipped-term",
                "The gradient is the clipped error, which does not depend on the value once it is clipped.",
                "return error *",
                "return clipped *",
            ),
            Wrong(
                "never-clipped",
                "The gradient passes everywhere; where the clipped square is the larger, it is 0.",
                "(error**2 >= clipped**2) * mask",
                "mask",
            ),
            Wrong("no-mask", "Places outside of the mask get a gradient.", " * mask", ""),
            Wrong(
                "nothing-inside-the-range",
                "Where both squares are equal, inside the range, the gradient is lost.",
                "error**2 >= clipped**2",
                "error**2 > clipped**2",
            ),
            Wrong("summed", "The gradient is that of a sum; the loss is divided by n.", " / n", ""),
            Wrong(
                "the-smaller-term",
                "The gradient passes where the plain square is the smaller one; the loss takes the larger.",
                "error**2 >= clipped**2",
                "error**2 <= clipped**2",
            ),
        ),
        alternatives=(
            Alternative(
                "where",
                "error, clipped, mask, n = cache\n"
                "passes = mask & ~(np.abs(clipped) > np.abs(error))\n"
                "return np.where(passes, error, 0) / n\n",
            ),
            Alternative(
                "own buffer, float32",
                "error, clipped, mask, n = cache\n"
                "d = np.zeros_like(error, dtype=np.float32)\n"
                "keep = np.logical_and(mask, error * error >= clipped * clipped)\n"
                "d[keep] = error[keep] / n\n"
                "return d\n",
            ),
        ),
    ),
    Exercise(
        id="10.10",
        function=f"{LESSON}:adaptive_kl",
        title="PPO: the price of the divergence follows a target",
        points=1,
        cases=cases_adaptive_kl,
        wrong=(
            Wrong(
                "other-way-round",
                "The price falls when the divergence is above its target; it must rise.",
                "1.0 + error",
                "1.0 - error",
            ),
            Wrong(
                "not-limited",
                "The error is not limited to 0.2 on either side.",
                "min(max(kl / target - 1.0, -0.2), 0.2)",
                "kl / target - 1.0",
            ),
            Wrong(
                "difference-instead-of-proportion",
                "The error is the difference from the target; it is a proportion of it.",
                "kl / target - 1.0",
                "kl - target",
            ),
            Wrong(
                "responses-ignored",
                "The number of responses is missing: the price moves by what a single one would move it.",
                "error * n / horizon",
                "error / horizon",
            ),
            Wrong(
                "limited-above-only",
                "The error is limited above only; below too.",
                "min(max(kl / target - 1.0, -0.2), 0.2)",
                "min(kl / target - 1.0, 0.2)",
            ),
            Wrong(
                "limited-below-only",
                "The error is limited below only; above too.",
                "min(max(kl / target - 1.0, -0.2), 0.2)",
                "max(kl / target - 1.0, -0.2)",
            ),
            Wrong(
                "limited-too-late",
                "The step is limited after it was multiplied by n/horizon; the error is limited before.",
                "min(max(kl / target - 1.0, -0.2), 0.2)\nreturn beta * (1.0 + error * n / horizon)",
                "kl / target - 1.0\nreturn beta * (1.0 + min(max(error * n / horizon, -0.2), 0.2))",
            ),
            Wrong(
                "step-added",
                "The step is added to the price; it multiplies it.",
                "beta * (1.0 + error * n / horizon)",
                "beta + error * n / horizon",
            ),
        ),
        alternatives=(
            Alternative(
                "clip",
                "e = np.clip((kl - target) / target, -0.2, 0.2)\nreturn float(beta + beta * e * n / horizon)\n",
            ),
            Alternative(
                "cases",
                "if kl > 1.2 * target:\n"
                "    e = 0.2\n"
                "elif kl < 0.8 * target:\n"
                "    e = -0.2\n"
                "else:\n"
                "    e = kl / target - 1\n"
                "return beta * (horizon + e * n) / horizon\n",
            ),
        ),
    ),
    Exercise(
        id="10.11",
        function=f"{LESSON}:dpo_loss_forward",
        title="DPO: the loss",
        points=3,
        cases=cases_dpo_loss_forward,
        wrong=(
            Wrong(
                "no-reference",
                "The reference model is left out.",
                "(chosen - reference_chosen) - (rejected - reference_rejected)",
                "chosen - rejected",
            ),
            Wrong(
                "sign-of-a-reference",
                "The rejected response's reference is added to its log-probability; it is taken away from it.",
                "(rejected - reference_rejected)",
                "(rejected + reference_rejected)",
            ),
            Wrong(
                "beta-outside",
                "β stands before the logarithm of the sigmoid; it multiplies h inside.",
                "-(1 - label_smoothing) * log_sigmoid(beta * h) - label_smoothing * log_sigmoid(-beta * h)",
                "-beta * ((1 - label_smoothing) * log_sigmoid(h) + label_smoothing * log_sigmoid(-h))",
            ),
            Wrong(
                "smoothing-ignored",
                "The smoothing of the labels is left out.",
                "-(1 - label_smoothing) * log_sigmoid(beta * h) - label_smoothing * log_sigmoid(-beta * h)",
                "-log_sigmoid(beta * h)",
            ),
            Wrong(
                "weights-do-not-sum-to-one",
                "The share of the turned pair is added, and that of the pair is not made less.",
                "-(1 - label_smoothing) *",
                "-1.0 *",
            ),
            Wrong(
                "smoothed-the-wrong-way",
                "Pair and turned pair have each other's weights.",
                "-(1 - label_smoothing) * log_sigmoid(beta * h) - label_smoothing * log_sigmoid(-beta * h)",
                "-label_smoothing * log_sigmoid(beta * h) - (1 - label_smoothing) * log_sigmoid(-beta * h)",
            ),
            Wrong(
                "ipo-target",
                "IPO's target is β/2 here; it is 1/(2β).",
                "1 / (2 * beta)",
                "beta / 2",
            ),
            Wrong(
                "ipo-scaled",
                "IPO's h is multiplied by β here; β is in the target only.",
                "(h - 1 / (2 * beta)) ** 2",
                "(beta * h - 1 / (2 * beta)) ** 2",
            ),
            Wrong(
                "batch-size-ignored",
                "The loss is divided by the pairs of this part even where those of the whole batch are given.",
                "float(h.shape[0]) if n_pairs is None else n_pairs",
                "float(h.shape[0])",
            ),
            Wrong("summed", "The loss is summed over the pairs; it is divided by n.", "/ n, (h,", ", (h,"),
            Wrong(
                "pairs-turned-round",
                "Chosen and rejected have changed places.",
                "(chosen - reference_chosen) - (rejected - reference_rejected)",
                "(rejected - reference_rejected) - (chosen - reference_chosen)",
            ),
        ),
        alternatives=(
            Alternative(
                "logaddexp",
                "h = chosen - rejected - (reference_chosen - reference_rejected)\n"
                "n = float(len(chosen)) if n_pairs is None else n_pairs\n"
                "if kind == 'sigmoid':\n"
                "    z = beta * h\n"
                "    # log σ(−z) = log σ(z) − z\n"
                "    loss = (np.logaddexp(0, -z) + label_smoothing * z).sum()\n"
                "else:\n"
                "    loss = np.square(h - 0.5 / beta).sum()\n"
                "return loss / n, (h, beta, label_smoothing, kind, n)\n",
            ),
            Alternative(
                "loop",
                "h = np.zeros(len(chosen))\n"
                "total = 0.0\n"
                "for i in range(len(chosen)):\n"
                "    h[i] = chosen[i] - reference_chosen[i] - rejected[i] + reference_rejected[i]\n"
                "    if kind == 'ipo':\n"
                "        total += (h[i] - 1 / (2 * beta)) ** 2\n"
                "    else:\n"
                "        right, turned = log_sigmoid(beta * h[i : i + 1])[0], log_sigmoid(-beta * h[i : i + 1])[0]\n"
                "        total -= (1 - label_smoothing) * right + label_smoothing * turned\n"
                "n = n_pairs or len(chosen)\n"
                "return float(total / n), (h, beta, label_smoothing, kind, float(n))\n",
            ),
        ),
    ),
    Exercise(
        id="10.12",
        function=f"{LESSON}:dpo_loss_backward",
        title="DPO: gradients of the log-probabilities",
        points=2,
        cases=cases_dpo_loss_backward,
        wrong=(
            Wrong(
                "beta-missing",
                "The factor β of the inner derivative is missing.",
                "-beta * ((1",
                "-1.0 * ((1",
            ),
            Wrong(
                "sigmoid-of-the-difference",
                "The sigmoids have each other's arguments: pairs that are right already learn most.",
                "(1 - label_smoothing) * sigmoid(-beta * h) - label_smoothing * sigmoid(beta * h)",
                "(1 - label_smoothing) * sigmoid(beta * h) - label_smoothing * sigmoid(-beta * h)",
            ),
            Wrong(
                "smoothing-pulls-the-same-way",
                "The share of the turned pair has the sign of the pair; it pulls the other way.",
                "- label_smoothing * sigmoid(beta * h)",
                "+ label_smoothing * sigmoid(beta * h)",
            ),
            Wrong(
                "smoothing-ignored",
                "The smoothing of the labels is left out.",
                "((1 - label_smoothing) * sigmoid(-beta * h) - label_smoothing * sigmoid(beta * h))",
                "sigmoid(-beta * h)",
            ),
            Wrong(
                "same-sign",
                "Both responses get the same gradient; the signs differ.",
                "return dh, -dh",
                "return dh, dh",
            ),
            Wrong("sign", "Both gradients have the wrong sign.", "return dh, -dh", "return -dh, dh"),
            Wrong(
                "ipo-not-doubled",
                "IPO's gradient lacks the 2 of the square.",
                "dh = 2 * (h",
                "dh = (h",
            ),
            Wrong(
                "ipo-target",
                "IPO's target is β/2 here; it is 1/(2β).",
                "1 / (2 * beta)",
                "beta / 2",
            ),
            Wrong(
                "summed",
                "The gradient is that of a sum; the loss is divided by n.",
                "label_smoothing * sigmoid(beta * h)) / n",
                "label_smoothing * sigmoid(beta * h))",
            ),
            Wrong(
                "ipo-summed",
                "IPO's gradient is that of a sum; the loss is divided by n.",
                "(h - 1 / (2 * beta)) / n",
                "(h - 1 / (2 * beta))",
            ),
        ),
        alternatives=(
            Alternative(
                "one sigmoid",
                "h, beta, smoothing, kind, n = cache\n"
                "if kind == 'ipo':\n"
                "    dchosen = (2 * h - 1 / beta) / n\n"
                "else:\n"
                "    dchosen = beta * (sigmoid(beta * h) - 1 + smoothing) / n\n"
                "return dchosen, np.negative(dchosen)\n",
            ),
            Alternative(
                "loop, float32",
                "h, beta, smoothing, kind, n = cache\n"
                "d = np.zeros(len(h), np.float32)\n"
                "for i, x in enumerate(h.tolist()):\n"
                "    p = 0.5 * (1 + math.tanh(beta * x / 2))\n"
                "    slope = beta * (smoothing * p - (1 - smoothing) * (1 - p))\n"
                "    if kind == 'ipo':\n"
                "        slope = 2 * (x - 0.5 / beta)\n"
                "    d[i] = slope / n\n"
                "return d, -d\n",
            ),
        ),
    ),
)
