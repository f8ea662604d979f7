"""Fine-tuning from preferences, without its mathematics: the two models, rankings as arrays, sampling and judging.

A row of a batch is a prompt, a response and, where the response has one, the end of text, padded on the right.
``targets[b, t]`` is the token after ``ids[b, t]`` where that belongs to the response, else -100, so that one row serves
the policy, which predicts it, and the reward model, which reads it to its last token.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kernels.array import Array
from kernels.cross_entropy import IGNORED
from lessons.common.tasks import cut
from minigpt import GPT, Tokenizer
from minigpt.context import Context
from minigpt.data import DataSet, Ranking, pad_batch, split_of
from minigpt.data.tinyworld import true_reward
from minigpt.errors import InputError, RunError
from minigpt.heads import pool_last, token_logprobs
from minigpt.layers import Backward, Layer, Linear
from minigpt.objectives import Batch, rows, take
from minigpt.parameters import Gradients

PASS = 64  # rows of a pass without gradients


# ---------------------------------------------------------------------------------------------- the two models


class OnTrunk(Layer):
    """A GPT's trunk with a single linear output on top, called ``score``.

    Parameters
    ----------
    trunk : GPT
    weight : (C, 1) float64
        Of the output; its bias starts at 0.
    """

    trunk: GPT

    def __init__(self, trunk: GPT, weight: np.ndarray) -> None:
        self.trunk = trunk
        asarray, dtype = trunk.backend.asarray, trunk.dtype
        self.head = Linear("score", asarray(weight.astype(dtype)), asarray(np.zeros(1, dtype)))

    # What training asks of a model is the trunk's.
    config = property(lambda self: self.trunk.config)
    backend = property(lambda self: self.trunk.backend)
    dtype = property(lambda self: self.trunk.dtype)
    n_virtual = property(lambda self: self.trunk.n_virtual)
    wte = property(lambda self: self.trunk.wte)

    def context(self, **settings: Any) -> Context:
        """A pass context; see `GPT.context`."""
        return self.trunk.context(**settings)

    def copy(self) -> Any:
        """A model of its own on the same trunk weights; see `GPT.copy`."""
        twin = copy.copy(self)
        twin.trunk = self.trunk.copy()
        twin.head = copy.deepcopy(self.head)
        return twin


class RewardModel(OnTrunk):
    """One number for a text: a linear output on the hidden state of its last token.

    Preferences fix differences of scores only, so the scale is chosen afterwards: `normalise` gives the scores mean 0
    and variance 1 on the responses of the policy that training starts from.

    Parameters
    ----------
    trunk : GPT
    seed : int
        Of the output's weights, drawn with standard deviation 1/√(C + 1).

    Attributes
    ----------
    gain, shift : float
        Score = gain · output + shift.

    References
    ----------
    Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593, section 2.
    """

    def __init__(self, trunk: GPT, seed: int = 0) -> None:
        C = trunk.config.n_embd
        super().__init__(trunk, np.random.default_rng(seed).normal(0.0, (C + 1) ** -0.5, (C, 1)))
        self.gain, self.shift = 1.0, 0.0

    def forward(self, ids: Array, ctx: Context, lengths: Array | None = None) -> tuple[Array, Backward]:
        """Scores of whole texts.

        Parameters
        ----------
        ids : (B, T) integers, padded on the right
        ctx : Context
        lengths : (B,) integers in [1, T], optional
            All T by default.

        Returns
        -------
        scores : (B,)
        backward : (dscores (B,), grads) -> None
        """
        if lengths is None:
            lengths = ctx.backend.xp.full(ids.shape[0], ids.shape[1])
        hidden, trunk_back = self.trunk.forward(ids, ctx)
        pooled, pool_back = pool_last(hidden, lengths, ctx)
        below = ctx.keep
        output, head_back = self.head.forward(pooled, ctx)  # (B, 1)
        ctx.see("scores", output)
        gain = self.gain

        def backward(dscores: Array, grads: Gradients) -> None:
            dpooled = head_back(gain * dscores[:, None], grads)
            if below:
                trunk_back(pool_back(dpooled), grads)

        return gain * output[:, 0] + self.shift, backward

    def scores(self, batch: Batch) -> np.ndarray:
        """Scores of the texts of a batch (`ids`, `lengths`), (B,) on the host."""

        def score(part: Batch) -> tuple[Array, ...]:
            asarray = self.backend.asarray
            return (self.forward(asarray(part["ids"]), self.context(), asarray(part["lengths"]))[0],)

        return _in_passes(self, batch, score)[0]

    def normalise(self, batch: Batch) -> None:
        """Choose gain and shift so that the scores of these texts have mean 0 and variance 1.

        Raises
        ------
        RunError
            If all scores are equal.
        """
        scores = self.scores(batch).astype(np.float64)
        deviation = float(scores.std())
        if not deviation > 0:
            raise RunError(f"the reward model gives all {len(scores)} responses the score {scores[0]}")
        self.shift = (self.shift - float(scores.mean())) / deviation
        self.gain /= deviation


class PolicyWithValue(OnTrunk):
    """A language model with a second output at every token: V(s), the return that it expects from there.

    Policy and value share the trunk, as in the code of Ziegler et al. (2019): one pass gives both, and half the weights
    do. The price is that the value's gradient moves the policy too, which is why it enters the loss with a small
    coefficient; InstructGPT has a second network instead. V starts at 0, the mean of normalised scores.

    Parameters
    ----------
    trunk : GPT
        The policy.
    """

    def __init__(self, trunk: GPT) -> None:
        super().__init__(trunk, np.zeros((trunk.config.n_embd, 1)))

    def forward(self, ids: Array, ctx: Context) -> tuple[tuple[Array, Array], Backward]:
        """Hidden states and values.

        Parameters
        ----------
        ids : (B, T) integers
        ctx : Context

        Returns
        -------
        (hidden, values) : (B, T, C) and (B, T)
        backward : (dhidden (B, T, C) or None, dvalues (B, T), grads) -> None
        """
        hidden, trunk_back = self.trunk.forward(ids, ctx)
        below = ctx.keep
        output, head_back = self.head.forward(hidden, ctx)  # (B, T, 1)
        ctx.see("values", output)

        def backward(dhidden: Array | None, dvalues: Array, grads: Gradients) -> None:
            of_values = head_back(dvalues[..., None], grads)
            if below and dhidden is not None:
                trunk_back(dhidden + of_values, grads)

        return (hidden, output[..., 0]), backward

    def logprobs_and_values(self, batch: Batch, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Of every response token and the state before it, (B, T) each on the host, 0 elsewhere."""

        def read(part: Batch) -> tuple[Array, ...]:
            asarray, ctx = self.backend.asarray, self.context()
            targets = asarray(part["targets"])
            (hidden, values), _ = self.forward(asarray(part["ids"]), ctx)
            logprobs, _ = token_logprobs(hidden / temperature, self.wte, targets, ctx)
            return logprobs, values * (targets != IGNORED)

        logprobs, values = _in_passes(self, batch, read)
        return logprobs, values


def response_logprobs(model: GPT, batch: Batch, temperature: float = 1.0) -> np.ndarray:
    """Log-probability of every response token, (B, T) on the host, 0 elsewhere.

    The logits are h·W_eᵀ, so dividing h by the temperature divides them. Sampling and every log-probability of a run
    must have the same one: otherwise the "KL" compares distributions that nobody sampled from, and comes out negative.
    """

    def read(part: Batch) -> tuple[Array, ...]:
        ctx, asarray = model.context(), model.backend.asarray
        hidden, _ = model.forward(asarray(part["ids"]), ctx)
        return (token_logprobs(hidden / temperature, model.wte, asarray(part["targets"]), ctx)[0],)

    return _in_passes(model, batch, read)[0]


def _in_passes(model: Any, batch: Batch, read: Callable[[Batch], tuple[Array, ...]]) -> list[np.ndarray]:
    # What `read` gives for a batch, in parts whose activations fit into the processor's cache.
    starts = range(0, rows(batch), PASS)
    with np.errstate(all="ignore"):  # an overflow shows in the numbers, which are checked where they are used
        parts = [read(take(batch, slice(start, start + PASS))) for start in starts]
    return [np.concatenate([model.backend.to_numpy(a) for a in arrays]) for arrays in zip(*parts, strict=True)]


# ---------------------------------------------------------------------------------------------- rankings


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], room: int) -> Batch:
    """Prompts and responses as rows of one batch.

    Parameters
    ----------
    prompts, responses : B sequences of token ids
        Of one token at least.
    room : int
        Most tokens of a row. A longer prompt loses its beginning.

    Returns
    -------
    batch : dict
        `ids` (B, T), `targets` (B, T) and `lengths` (B,), int64.

    Raises
    ------
    ValueError
        If a prompt or response has no token, or a response leaves no room for one token of its prompt.
    """
    ids, targets = [], []
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt or not response:
            raise InputError(f"{'prompt' if not prompt else 'response'} {number} has no tokens; at least 1 is needed")
        if len(response) >= room:
            raise InputError(f"response {number} has {len(response)} tokens; the context of {room} allows {room - 1}")
        kept = [*prompt][len(response) - room :] if len(prompt) + len(response) > room else [*prompt]
        ids.append([*kept, *response])
        targets.append([*[IGNORED] * (len(kept) - 1), *response, IGNORED])
    padded, lengths = pad_batch(ids)
    return {"ids": padded, "targets": pad_batch(targets, pad_id=IGNORED)[0], "lengths": lengths}


def encode_rankings(tokenizer: Tokenizer, rankings: Sequence[Ranking], room: int) -> Batch:
    """Rankings as arrays with one row a prompt, so that no shard ever splits a prompt's comparisons.

    Parameters
    ----------
    tokenizer : Tokenizer
    rankings : sequence of Ranking
        N of them, each with K responses.
    room : int
        Most tokens of a prompt with its response and end of text.

    Returns
    -------
    batch : dict
        `ids` (N, K, T), `targets` (N, K, T), `lengths` (N, K), `rewards` (N, K).

    Raises
    ------
    ValueError
        If there are none, a prompt has fewer than two responses or others another number of them, or a prompt's
        rewards are all equal or not finite.
    """
    if not rankings:
        raise InputError("there are no rankings; at least 1 is needed")
    K = len(rankings[0].responses)
    for number, r in enumerate(rankings):
        if len(r.responses) < 2 or len(r.responses) != K or len(r.rewards) != K:
            raise InputError(
                f"ranking {number} has {len(r.responses)} responses and {len(r.rewards)} rewards; "
                f"all need equally many, 2 or more (the first has {K})"
            )
        if not all(map(math.isfinite, r.rewards)) or len(set(r.rewards)) == 1:
            raise InputError(f"ranking {number} prefers nothing: its rewards are {list(r.rewards)}")
    end = tokenizer.eos_token_id
    prompts = [tokenizer.encode(r.prompt) or [end] for r in rankings for _ in range(K)]
    responses = [[*tokenizer.encode(text), end] for r in rankings for text in r.responses]
    batch = pack(prompts, responses, room)
    batch["rewards"] = np.array([r.rewards for r in rankings])
    return {name: array.reshape(len(rankings), K, *array.shape[1:]) if name != "rewards" else array
            for name, array in batch.items()}  # fmt: skip


def flat(batch: Batch) -> Batch:
    """Rows (N, K, …) as rows (N·K, …), cut to the longest text."""
    width = int(batch["lengths"].max())
    texts = {name: batch[name].reshape(-1, batch[name].shape[-1])[:, :width] for name in ("ids", "targets")}
    return {**texts, "lengths": batch["lengths"].reshape(-1)}


def best_responses(batch: Batch) -> Batch:
    """The best response to each prompt: what supervised fine-tuning imitates."""
    place = np.arange(rows(batch)), batch["rewards"].argmax(1)
    return {name: batch[name][place] for name in ("ids", "targets", "lengths")}


def all_pairs(batch: Batch, reference: np.ndarray) -> Batch:
    """Every comparison as a row of its own, the preferred response first.

    Parameters
    ----------
    batch : dict
        As from `encode_rankings`.
    reference : (N, K)
        Log-probability of each response under the reference policy.

    Returns
    -------
    pairs : dict
        `ids`, `targets` (P, 2, T), `lengths` (P, 2), `reference` (P, 2).
    """
    rewards = batch["rewards"]
    row, better, worse = np.nonzero(rewards[:, :, None] > rewards[:, None, :])
    both = row[:, None], np.stack((better, worse), axis=1)  # (P, 1) and (P, 2)
    return {**{name: batch[name][both] for name in ("ids", "targets", "lengths")}, "reference": reference[both]}


def shuffled(whole: Batch, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """Batches over all rows again and again, a pure function of the step; every epoch has an order of its own."""
    n = rows(whole)
    size = min(batch_size, n)

    def batch(step: int) -> Batch:
        epoch, place = divmod(step, n // size)
        order = np.random.default_rng([seed, epoch]).permutation(n)[place * size : (place + 1) * size]
        return {name: array[order] for name, array in whole.items()}

    return batch


def load_preferences(path: str | Path) -> DataSet[Ranking]:
    """Preferences of the user's own: JSON lines with the strings ``prompt``, ``chosen`` and ``rejected``.

    Each becomes a ranking of two with the rewards 1 and 0. A fifth is held out for the test split, a tenth for
    validation, by a hash of the prompt.

    Raises
    ------
    ValueError
        If the file cannot be read, a line is not such an object, or a split would be empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8, as a JSONL file must be ({error.reason})") from None
    splits: dict[str, list[Ranking]] = {"train": [], "validation": [], "test": []}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error})") from None
        keys = ("prompt", "chosen", "rejected")
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in keys):
            raise InputError(f"{path}, line {number}: must be a JSON object with the strings {', '.join(keys)}")
        if record["chosen"] == record["rejected"]:
            raise InputError(f"{path}, line {number}: chosen and rejected are the same text")
        ranking = Ranking(record["prompt"], (record["chosen"], record["rejected"]), (1.0, 0.0))
        splits[split_of(record["prompt"], 0.1, 0.2)].append(ranking)
    for name, rankings in splits.items():
        if not rankings:
            raise InputError(f"{path} has too few prompts: none for its {name} split")
    train, validation, test = splits.values()
    return DataSet(Path(path).name, train, validation, test, provenance={"source": str(path)})


# ---------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Responses:
    """What a policy wrote.

    Attributes
    ----------
    prompts, texts : list of str
    batch : dict
        `ids`, `targets` (B, T), `lengths` (B,).
    finished : (B,) bool
        Which ones ended by themselves.
    """

    prompts: list[str]
    texts: list[str]
    batch: Batch
    finished: np.ndarray

    @property
    def true(self) -> np.ndarray:
        """True rewards, (B,); a response that was broken off is judged as it stands."""
        return np.array([true_reward(p, t) for p, t in zip(self.prompts, self.texts, strict=True)])


@dataclass(frozen=True)
class Sampler:
    """How responses are drawn.

    Attributes
    ----------
    tokenizer : Tokenizer
    max_new_tokens : int
    temperature : float
    """

    tokenizer: Tokenizer
    max_new_tokens: int = 64
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 < self.temperature < math.inf:
            raise InputError(
                f"max_new_tokens is {self.max_new_tokens} and temperature {self.temperature}; "
                "they must be 1 or more, and above 0"
            )

    def draw(self, model: GPT, prompts: Sequence[str], seed: int) -> Responses:
        """One response to each prompt.

        Parameters
        ----------
        model : GPT
        prompts : sequence of str
        seed : int

        Raises
        ------
        ValueError
            If there are no prompts, or the responses leave no room for one.
        """
        if not prompts:
            raise InputError("there are no prompts; at least 1 is needed")
        end = self.tokenizer.eos_token_id
        context = model.config.n_positions - model.n_virtual
        room = context - self.max_new_tokens
        if room < 1:
            raise InputError(f"{self.max_new_tokens} new tokens leave no room for a prompt in a context of {context}")
        encoded = [(self.tokenizer.encode(prompt) or [end])[-room:] for prompt in prompts]
        drawn: list[list[int]] = []
        for start in range(0, len(encoded), PASS):
            ids, lengths = pad_batch(encoded[start : start + PASS], "left")
            out = model.generate(
                ids, self.max_new_tokens, self.temperature, seed=seed + start, eos_token_id=end, lengths=lengths
            )
            for row in out[:, ids.shape[1] :].tolist():
                drawn.append(row[: row.index(end) + 1] if end in row else row)
        finished = np.array([row[-1] == end for row in drawn])
        texts = [self.tokenizer.decode(row[:-1] if row[-1] == end else row) for row in drawn]
        return Responses(list(prompts), texts, pack(encoded, drawn, context), finished)


@dataclass(frozen=True)
class Quality:
    """What a policy's responses are like, means over prompts.

    Attributes
    ----------
    true, learnt : float
        True reward, and the reward model's score.
    kl : float
        Σ_t log π − log π_ref of a response's tokens: nats a response.
    finished : float
        Share that ended by themselves.
    words : float
        Words a response.
    distinct : float
        Different sentences, as a share of all sentences that were written.
    """

    true: float
    learnt: float
    kl: float
    finished: float
    words: float
    distinct: float


@dataclass(frozen=True)
class Judges:
    """Who judges policies: sampling, the reference policy, the reward model, and the prompts to answer.

    Attributes
    ----------
    sampler : Sampler
    reference : GPT
    reward_model : RewardModel
    prompts : tuple of str
    """

    SEED: ClassVar[int] = 99

    sampler: Sampler
    reference: GPT
    reward_model: RewardModel
    prompts: tuple[str, ...]

    def judge(self, policy: GPT) -> Quality:
        """Sample a response to every prompt, and judge them."""
        return self.quality(policy, self.responses(policy))

    def responses(self, policy: GPT) -> Responses:
        """One response to every prompt, the same draws for every policy."""
        return self.sampler.draw(policy, self.prompts, self.SEED)

    def quality(self, policy: GPT, responses: Responses) -> Quality:
        """Judge responses of a policy."""
        temperature = self.sampler.temperature
        logratio = response_logprobs(policy, responses.batch, temperature)
        logratio -= response_logprobs(self.reference, responses.batch, temperature)
        sentences = [s.strip() for text in responses.texts for s in text.replace("!", ".").split(".") if s.strip()]
        return Quality(
            true=float(responses.true.mean()),
            learnt=float(self.reward_model.scores(responses.batch).mean()),
            kl=float(logratio.sum(1).mean()),
            finished=float(responses.finished.mean()),
            words=float(np.mean([len(text.split()) for text in responses.texts])),
            distinct=len(set(sentences)) / max(1, len(sentences)),
        )

    def best_of(self, policy: GPT, ns: Sequence[int]) -> dict[int, tuple[float, float]]:
        """Draw max(ns) responses a prompt and keep, of the first n, the one that the reward model likes most.

        Returns
        -------
        rewards : dict of int to (true, learnt)
            Means over prompts.
        """
        draws = [self.sampler.draw(policy, self.prompts, self.SEED + 1000 * i) for i in range(max(ns))]
        learnt = np.stack([self.reward_model.scores(d.batch) for d in draws])  # (n, prompts)
        true = np.stack([d.true for d in draws])
        columns = np.arange(learnt.shape[1])
        chosen = {n: learnt[:n].argmax(0) for n in ns}
        return {n: (float(true[c, columns].mean()), float(learnt[c, columns].mean())) for n, c in chosen.items()}


def best_of_kl(n: int) -> float:
    """KL of the best of n from the policy that was drawn from, at most: log n − (n − 1)/n nats a response.

    Stiennon et al. (2020), "Learning to summarize from human feedback", arXiv:2009.01325, appendix G.3.
    """
    return math.log(n) - (n - 1) / n


# ---------------------------------------------------------------------------------------------- rollouts


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """How PPO runs.

    Attributes
    ----------
    loss
        The lesson's `PPO`.
    iterations : int
        Rollouts.
    episodes : int
        Responses a rollout.
    epochs, minibatches : int
        Passes over each rollout, and parts of a pass; an optimizer step each.
    lr : float
        Falls along a line to 0.
    missing_eos_penalty : float
        Taken from the score of a response that does not end by itself: the reward model has never seen one.

    Raises
    ------
    ValueError
        If a number is outside its range.
    """

    loss: Any
    iterations: int = 20
    episodes: int = 64
    epochs: int = 2
    minibatches: int = 2
    lr: float = 4e-4
    missing_eos_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("iterations", "episodes", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.minibatches > self.episodes:
            raise InputError(f"minibatches is {self.minibatches}; {self.episodes} episodes make at most as many")
        if not 0 <= self.missing_eos_penalty < math.inf:
            raise InputError(f"missing_eos_penalty is {self.missing_eos_penalty}; it must be a number of 0 or more")

    @property
    def updates(self) -> int:
        """Optimizer steps an iteration."""
        return self.epochs * self.minibatches


class Experience:
    """PPO's data: `batches` for `train`, which writes a new rollout with the policy as it is when an iteration begins.

    One training run spans all iterations, so that AdamW keeps its moments. `train` asks for a batch in the process
    that owns the model, whose parameters are those of the moment. Other than its protocol says, a batch depends on the
    weights and not on the step alone: such a run cannot be resumed from a checkpoint.

    Parameters
    ----------
    policy : PolicyWithValue
        The one that is trained.
    reference : GPT
        Frozen: the policy at the start.
    reward_model : RewardModel
    prompts : sequence of str
    sampler : Sampler
    settings : PPOSettings
    seed : int

    Attributes
    ----------
    beta : float
    curve : list of dict
        A rollout each: `true`, `learnt` reward, `kl`, `beta`, `clipped` (the share of the tokens of the rollout before
        that its updates have moved beyond ε), `finished`, `tokens`.
    seconds : float
        That all rollouts together have taken.
    """

    def __init__(
        self,
        policy: PolicyWithValue,
        reference: GPT,
        reward_model: RewardModel,
        prompts: Sequence[str],
        sampler: Sampler,
        settings: PPOSettings,
        seed: int,
    ) -> None:
        if len(prompts) < settings.episodes:
            raise InputError(f"{settings.episodes} episodes need as many prompts; there are {len(prompts)}")
        if sampler.temperature != settings.loss.temperature:
            raise InputError(
                f"responses are drawn at temperature {sampler.temperature}, but the loss has "
                f"{settings.loss.temperature}; they must be the same"
            )
        self.policy, self.reference, self.reward_model = policy, reference, reward_model
        self.prompts, self.sampler, self.settings, self.seed = prompts, sampler, settings, seed
        self.beta: float = settings.loss.beta
        self.curve: list[dict[str, float]] = []
        self.rollout: Batch = {}
        self.seconds = 0.0

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        iteration, update = divmod(step, self.settings.updates)
        if iteration == len(self.curve):
            began = time.perf_counter()
            self.rollout = self.roll_out(iteration)
            self.seconds += time.perf_counter() - began
        epoch, part = divmod(update, self.settings.minibatches)
        order = np.random.default_rng([self.seed, iteration, epoch]).permutation(self.settings.episodes)
        return cut(self.rollout, order[part :: self.settings.minibatches])

    def roll_out(self, iteration: int) -> Batch:
        """Write responses, have them judged, and work out what each token was worth."""
        settings, temperature = self.settings, self.sampler.temperature
        rng = np.random.default_rng([self.seed, iteration])
        chosen = rng.choice(len(self.prompts), settings.episodes, replace=False)
        moved = self.clipped()
        responses = self.sampler.draw(self.policy.trunk, [self.prompts[i] for i in chosen], int(rng.integers(2**31)))
        batch = responses.batch
        mask = batch["targets"] != IGNORED
        logprobs, values = self.policy.logprobs_and_values(batch, temperature)
        reference = response_logprobs(self.reference, batch, temperature)
        learnt = self.reward_model.scores(batch)
        if not (np.isfinite(learnt).all() and np.isfinite(logprobs).all() and np.isfinite(reference).all()):
            raise RunError(f"rollout {iteration + 1}: a score or a log-probability is not finite")
        scores = learnt - settings.missing_eos_penalty * ~responses.finished
        advantages, returns = settings.loss.worth(logprobs, reference, values, scores, mask, self.beta)
        kl = float((logprobs - reference).sum(1).mean())
        self.curve.append(
            {
                "true": float(responses.true.mean()),
                "learnt": float(learnt.mean()),
                "kl": kl,
                "beta": self.beta,
                "clipped": moved,
                "finished": float(responses.finished.mean()),
                "tokens": float(mask.sum(1).mean()),
            }
        )
        self.beta = settings.loss.next_beta(self.beta, kl, settings.episodes)
        arrays = {"logprobs": logprobs, "values": values, "advantages": advantages, "returns": returns}
        return batch | {name: array.astype(self.policy.dtype) for name, array in arrays.items()}

    def clipped(self) -> float:
        """Share of the last rollout's tokens whose probability the policy has moved beyond ε since."""
        if not self.rollout:
            return 0.0
        logprobs, _ = self.policy.logprobs_and_values(self.rollout, self.sampler.temperature)
        mask = self.rollout["targets"] != IGNORED
        ratio = np.exp((logprobs - self.rollout["logprobs"])[mask])
        return float((abs(ratio - 1) > self.settings.loss.clip).mean())
