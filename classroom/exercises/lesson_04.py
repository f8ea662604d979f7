"""Lesson 4: targets and loss of completions, a mixture of tasks, and what is forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from classroom.exercises.draws import distinct
from minigpt.data import IGNORED

LESSON = "lessons.lesson_04_instruction_tuning"

# ---------------------------------------------------------------------------------------------- targets and loss


def targets_cases(rng: np.random.Generator) -> list[Case]:
    """Rows that fit, just fit and do not; prompts and completions of one token; as little room as is allowed."""
    P, C = int(rng.integers(5, 9)), int(rng.integers(3, 5))
    ids = rng.permutation(np.arange(0, 40)).tolist()

    def case(name: str, P: int, C: int, max_length: int) -> Case:
        return Case(name, {"prompt": ids[:P], "completion": ids[P : P + C], "max_length": max_length})

    full = P + C - 1
    return [
        case("room to spare", P, C, full + int(rng.integers(2, 9))),
        case("just fits", P, C, full),
        case("one too long", P, C, full - 1),
        case("prompt cut", P, C, C + 2),
        case("one token of the prompt left", P, C, C),
        case("prompt of one token", 1, C, 20),
        case("completion of one token", P, 1, 20),
        case("completion of one token, prompt cut", P, 1, 3),
        case("one token each", 1, 1, 5),
        case("room for one", P, 1, 1),
        case("completion longer than the prompt", 2, P, full),
        Case(
            "the same token throughout",
            {"prompt": (7,) * P, "completion": (7,) * C, "max_length": full},
        ),
    ]


TARGETS = Exercise(
    id="4.01",
    function=f"{LESSON}:completion_targets",
    title="A row of tokens with targets on the completion",
    points=3,
    cases=targets_cases,
    wrong=(
        Wrong(
            "not-shifted",
            "Each token was made its own target. The target of a place is the token after it.",
            "np.array(row[1:], np.int64)",
            "np.array(row[:-1], np.int64)",
        ),
        Wrong(
            "shifted-twice",
            "The targets are two places ahead: they were shifted twice.",
            "np.array(row[1:], np.int64)",
            "np.array([*row[2:], row[-1]], np.int64)",
        ),
        Wrong(
            "prompt-scored",
            "The prompt's own tokens are targets too. Only tokens of the completion are scored.",
            "] = IGNORED",
            "] += 0",
        ),
        Wrong(
            "first-token-not-scored",
            "The first token of the completion is not scored. It is the target of the prompt's last token.",
            "len(ids) - len(completion)]",
            "len(ids) - len(completion) + 1]",
        ),
        Wrong(
            "last-prompt-token-scored",
            "The last token of the prompt is scored. Only tokens of the completion are targets.",
            "len(ids) - len(completion)]",
            "max(0, len(ids) - len(completion) - 1)]",
        ),
        Wrong(
            "completion-masked",
            "The places were masked the wrong way round: the prompt is scored and the completion is not.",
            "targets[: len(ids) - len(completion)]",
            "targets[len(ids) - len(completion) :]",
        ),
        Wrong(
            "end-cut-off",
            "A row that is too long lost its end. It has to lose the beginning of its prompt.",
            "[-(max_length + 1) :]",
            "[: max_length + 1]",
        ),
        Wrong(
            "prompt-length-not-adjusted",
            "The number of masked places was taken from the whole prompt, also where its beginning had been cut off.",
            "targets[: len(ids) - len(completion)]",
            "targets[: len(prompt) - 1]",
        ),
        Wrong(
            "masked-with-zero",
            "Places that are not scored were marked with 0, which is a token. The mark is −100.",
            "= IGNORED",
            "= 0",
        ),
    ),
    alternatives=(
        Alternative(
            "concatenate",
            """\
ids = np.concatenate((np.asarray(prompt), np.asarray(completion)))[:-1].astype(np.int64)
targets = np.full(len(ids), -100, dtype=np.int64)
targets[len(prompt) - 1 :] = completion
start = max(0, len(ids) - max_length)
return ids[start:], targets[start:]
""",
        ),
        Alternative(
            "loop",
            """\
prompt = list(prompt)
while len(prompt) + len(completion) - 1 > max_length:
    prompt.pop(0)
row = prompt + list(completion)
ids, targets = [], []
for place in range(len(row) - 1):
    ids.append(row[place])
    targets.append(row[place + 1] if place + 1 >= len(prompt) else IGNORED)
return np.array(ids), np.array(targets)
""",
        ),
    ),
)


def loss_cases(rng: np.random.Generator) -> list[Case]:
    """Both means; a whole batch and a part of one; rows of unlike length; log-probabilities where nothing is scored."""
    B, T = distinct(rng, 2, 4, 7)
    V = 11

    def case(name: str, per: str, lengths: Sequence[int], width: int = T, part: bool = False) -> Case:
        targets = np.full((len(lengths), width), IGNORED)
        for row, length in zip(targets, lengths, strict=True):
            start = int(rng.integers(0, width - length + 1))
            row[start : start + length] = rng.integers(0, V, length)
        total = float(sum(lengths) if per == "token" else len(lengths))
        if part:
            total += int(rng.integers(3, 9))
        targets[0, targets[0] != IGNORED] = 0  # the first token of a vocabulary is one like others
        logprobs = -rng.exponential(size=targets.shape)
        return Case(name, {"logprobs": logprobs, "targets": targets, "total": total, "per": per})

    unlike = rng.permutation([1, 2, T - 1, *rng.integers(1, T, B - 3)]).tolist()
    cases = []
    for per in ("token", "example"):
        cases += [
            case(f"per {per}", per, unlike),
            case(f"per {per}, part of a batch", per, unlike, part=True),
            case(f"per {per}, everything scored", per, [T] * B),
            case(f"per {per}, one place in each row", per, [1] * B),
            case(f"per {per}, one row", per, [T - 2]),
            case(f"per {per}, one column", per, [1] * B, width=1),
        ]
    double = case("per token, single precision", "token", unlike)
    narrow = {"logprobs": double.args["logprobs"].astype(np.float32)}
    return [*cases, Case(double.name, {**double.args, **narrow})]


LOSS = Exercise(
    id="4.02",
    function=f"{LESSON}:completion_loss",
    title="Loss of completions, per token and per example",
    points=3,
    cases=loss_cases,
    wrong=(
        Wrong(
            "examples-not-averaged",
            "Per example, each row's sum has to be divided by its own number of scored tokens.",
            "weights = weights / scored.sum(1, keepdims=True)",
            "weights = weights * 1.0",
        ),
        Wrong(
            "averaged-over-all-places",
            "Per example, each row was divided by its width. Only scored places count.",
            "scored.sum(1, keepdims=True)",
            "scored.shape[1]",
        ),
        Wrong(
            "branches-swapped",
            "The two kinds of mean were exchanged.",
            'per == "example"',
            'per == "token"',
        ),
        Wrong(
            "total-ignored",
            "The sum was divided by what is scored in these rows. They may be a part of a larger batch, whose count is "
            "given.",
            "weights = scored / total",
            'weights = scored / (scored.sum() if per == "token" else len(scored))',
        ),
        Wrong(
            "not-divided",
            "The sum was not divided by the total.",
            "scored / total",
            "scored / 1.0",
        ),
        Wrong(
            "everything-scored",
            "Places whose target is −100 are not scored: they add nothing to the loss and get no gradient.",
            "(targets != IGNORED)",
            "(targets == targets)",
        ),
        Wrong(
            "loss-over-everything",
            "The loss adds up places whose target is −100. They are not scored.",
            "-(weights * logprobs).sum()",
            "-(weights.max(1, keepdims=True) * logprobs).sum()",
        ),
        Wrong(
            "sign-of-the-gradient",
            "The gradient has the wrong sign: the loss falls when a log-probability rises.",
            ", -weights",
            ", weights",
        ),
        Wrong(
            "sign-of-the-loss",
            "The loss is the negative sum of the log-probabilities; the sign is missing.",
            "float(-(",
            "float((",
        ),
        Wrong(
            "gradient-of-the-sum",
            "The gradient was not divided by what the loss was divided by.",
            ", -weights",
            ", -scored",
        ),
    ),
    alternatives=(
        Alternative(
            "loop",
            """\
loss = 0.0
dlogprobs = np.zeros_like(logprobs)
for b in range(len(targets)):
    places = [t for t in range(targets.shape[1]) if targets[b, t] != -100]
    for t in places:
        share = 1.0 / total if per == "token" else 1.0 / (total * len(places))
        loss -= share * logprobs[b, t]
        dlogprobs[b, t] -= share
return float(loss), dlogprobs
""",
        ),
        Alternative(
            "rows",
            """\
mask = targets >= 0
if per == "token":
    divisor = np.full((len(targets), 1), total)
else:
    divisor = np.count_nonzero(mask, axis=1)[:, None] * total
dlogprobs = np.where(mask, -1 / divisor, 0).astype(logprobs.dtype)
return float(np.einsum("bt,bt->", dlogprobs, logprobs)), dlogprobs
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- tasks


def mixture_cases(rng: np.random.Generator) -> list[Case]:
    """Temperatures above and below 1 and infinite; limits that some, all and no tasks reach; one task."""
    K = int(rng.integers(4, 7))
    sizes = sorted(rng.choice(np.arange(20, 900), K, replace=False).tolist())
    limit = float(sizes[K // 2]) - 0.5  # some tasks reach it
    shuffled = [sizes[-1], *rng.permutation(sizes[:-1]).tolist()]  # in no order from small to large
    hot, cold = float(rng.uniform(1.5, 4.0)), float(rng.uniform(0.3, 0.8))
    return [
        Case("in proportion", {"sizes": shuffled}),
        Case("hot", {"sizes": shuffled, "temperature": hot}),
        Case("cold", {"sizes": shuffled, "temperature": cold}),
        Case("infinitely hot", {"sizes": shuffled, "temperature": math.inf}),
        Case("limit", {"sizes": shuffled, "temperature": 1.0, "limit": limit}),
        Case("limit, hot", {"sizes": shuffled, "temperature": hot, "limit": limit}),
        Case("limit, cold", {"sizes": shuffled, "temperature": cold, "limit": limit}),
        Case("limit, infinitely hot", {"sizes": shuffled, "temperature": math.inf, "limit": limit}),
        Case("limit that no task reaches", {"sizes": shuffled, "temperature": hot, "limit": 5000.0}),
        Case("limit below all tasks", {"sizes": shuffled, "temperature": hot, "limit": 7.0}),
        Case("one task", {"sizes": shuffled[:1], "temperature": hot}),
        Case("equal sizes", {"sizes": [sizes[0]] * K, "temperature": cold}),
        Case("tuple of two", {"sizes": tuple(shuffled[:2]), "temperature": 2.0}),
    ]


MIXTURE = Exercise(
    id="4.03",
    function=f"{LESSON}:mixture_weights",
    title="Weights of a mixture of tasks",
    points=2,
    cases=mixture_cases,
    wrong=(
        Wrong(
            "limit-ignored",
            "The limit has no effect: no task may count as larger than it.",
            "np.minimum(np.asarray(sizes, dtype=np.float64), limit)",
            "np.asarray(sizes, dtype=np.float64)",
        ),
        Wrong(
            "temperature-ignored",
            "The temperature has no effect: the sizes have to be raised to the power 1/temperature.",
            " ** (1 / temperature)",
            "",
        ),
        Wrong(
            "limit-after-temperature",
            "The limit was applied after the power. It is a number of examples: it comes first.",
            "np.minimum(np.asarray(sizes, dtype=np.float64), limit) ** (1 / temperature)",
            "np.minimum(np.asarray(sizes, dtype=np.float64) ** (1 / temperature), limit)",
        ),
        Wrong(
            "largest-made-one",
            "The weights were divided by the largest. They are probabilities and have to add up to 1.",
            "weights.sum()",
            "weights.max()",
        ),
        Wrong(
            "power-after-the-sum",
            "The shares were raised to the power after they had been divided by their sum, and no longer add up to 1.",
            "weights = np.minimum(np.asarray(sizes, dtype=np.float64), limit) ** (1 / temperature)\n"
            "return weights / weights.sum()",
            "weights = np.minimum(np.asarray(sizes, dtype=np.float64), limit)\n"
            "return (weights / weights.sum()) ** (1 / temperature)",
        ),
        Wrong(
            "interpolated",
            "The weights were mixed with equal ones. The temperature is no share of a mixture but an exponent.",
            "limit) ** (1 / temperature)",
            "limit)\nweights = weights / temperature + (1 - 1 / temperature) * weights.mean()",
        ),
        Wrong(
            "softmax",
            "The weights are a softmax of the shares. The sizes themselves are raised to the power 1/temperature.",
            "limit) ** (1 / temperature)",
            "limit)\nweights = np.exp(weights / weights.sum() / temperature)",
        ),
    ),
    alternatives=(
        Alternative(
            "logarithms",
            """\
logs = np.log(np.minimum(sizes, limit)) / temperature
shares = np.exp(logs - logs.max())
shares /= shares.sum()
return shares
""",
        ),
        Alternative(
            "loop",
            """\
powers = []
for n in sizes:
    powers.append(min(float(n), limit) ** (1.0 / temperature))
return np.array([power / sum(powers) for power in powers])
""",
        ),
    ),
)


def forgetting_cases(rng: np.random.Generator) -> list[Case]:
    """Scores that fall, rise and stay; one task, two and more."""
    K = int(rng.integers(4, 7))

    def scores(*shape: int) -> np.ndarray:
        return rng.uniform(0.05, 0.95, shape)

    steady = scores(K)
    better = scores(K) * 0.3
    percent = 100 * scores(K)
    return [
        Case("several tasks", {"before": scores(K), "after": scores(K, K)}),
        Case("two tasks", {"before": scores(2), "after": scores(2, 2)}),
        Case("three tasks", {"before": scores(3), "after": scores(3, 3)}),
        Case("nothing changed", {"before": steady, "after": np.tile(steady, (K, 1))}),
        Case("only the task itself changed", {"before": steady, "after": steady + np.diag(scores(K))}),
        Case("only the others changed", {"before": steady, "after": steady - scores(K, K) * (1 - np.eye(K))}),
        Case("the others rose", {"before": better, "after": better + 0.5 * scores(K, K)}),
        Case("percentages", {"before": percent, "after": 100 * scores(K, K)}),
        Case("one task alone", {"before": scores(1), "after": scores(1, 1)}),
        Case("from nothing", {"before": np.zeros(K), "after": scores(K, K)}),
    ]


FORGETTING = Exercise(
    id="4.04",
    function=f"{LESSON}:forgetting",
    title="Gained and forgotten",
    points=2,
    cases=forgetting_cases,
    wrong=(
        Wrong(
            "before-by-row",
            "The scores from before belong to the columns: the task that is scored. They were subtracted by row.",
            "np.asarray(before)",
            "np.asarray(before)[:, None]",
        ),
        Wrong(
            "own-task-included",
            "The task itself was counted among the others.",
            "(change.sum(1) - gained)",
            "change.sum(1)",
        ),
        Wrong(
            "divided-by-all",
            "The mean runs over the other tasks: K − 1 of them, not K.",
            "len(change) - 1",
            "len(change)",
        ),
        Wrong(
            "not-averaged",
            "What was lost on the other tasks was added up. It is their mean.",
            "lost / others",
            "lost / 1",
        ),
        Wrong(
            "columns-summed",
            "The sum runs over the column of a task. What one model forgot stands in its row.",
            "change.sum(1)",
            "change.sum(0)",
        ),
        Wrong(
            "sign-flipped",
            "Forgotten is before minus after; the sign is the wrong way round.",
            "lost = -(",
            "lost = (",
        ),
        Wrong(
            "rises-left-out",
            "Scores that rose were left out. They count as less than nothing forgotten.",
            "lost / others if",
            "np.maximum(lost / others, 0.0) if",
        ),
        Wrong(
            "order-swapped",
            "The two answers are in the wrong order: gained first, then forgotten.",
            "Forgetting(gained, lost / others if others else np.full(1, np.nan))",
            "Forgetting(lost / others if others else np.full(1, np.nan), gained)",
        ),
    ),
    alternatives=(
        Alternative(
            "loop",
            """\
K = len(before)
gained, lost = np.zeros(K), np.zeros(K)
for i in range(K):
    gained[i] = after[i, i] - before[i]
    others = [before[j] - after[i, j] for j in range(K) if j != i]
    lost[i] = sum(others) / len(others) if others else np.nan
return Forgetting(gained=gained, forgotten=lost)
""",
        ),
        Alternative(
            "mask",
            """\
off = ~np.eye(len(before), dtype=bool)
lost = np.where(off, before - after, 0.0).sum(axis=1)
with np.errstate(invalid="ignore"):
    return Forgetting(after.diagonal() - before, lost / off.sum(axis=1))
""",
        ),
    ),
)


EXERCISES = (TARGETS, LOSS, MIXTURE, FORGETTING)
