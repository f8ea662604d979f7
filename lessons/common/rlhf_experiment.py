"""Lesson 10's experiment: a supervised policy and a reward model to start from, what PPO, DPO and best-of-n make of
them, and how that is shown. What the lesson teaches comes in with the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from lessons.common import rlhf, rlhf_pictures
from lessons.common.rlhf import Experience, Judges, PolicyWithValue, PPOSettings, Quality, RewardModel, Sampler
from lessons.common.runner import Run
from lessons.common.table import spread, table
from lessons.common.tasks import cut, epochs
from minigpt import GPT, Tokenizer, bases
from minigpt.data import DataSet, Ranking, tinyworld
from minigpt.evaluation import evaluate_text
from minigpt.objectives import Batch, LanguageModelling, Objective
from minigpt.training import History, State, TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the lesson teaches, and the sizes of its experiment.

    Attributes
    ----------
    rewards : Objective
        Of the reward model.
    ppo : PPOSettings
    dpo : Objective
    base : str
    rankings, held_out : int
        Prompts with K responses each: to train on, and in the validation and the test split each.
    max_new_tokens : int
    sft_steps, sft_batch : int
        Of supervised fine-tuning.
    reward_prompts, reward_steps, reward_batch : int
        Of so many rankings the reward model learns: few enough to be wrong about much that a policy can find.
    dpo_steps, dpo_batch : int
        Its pairs come from the same rankings as the reward model's.
    judged : int
        Prompts on which policies are judged.
    best_of : tuple of int
    documents : int
        Of the base's own kind of text, held out from it, on which forgetting is measured.
    workers : int
        See `TrainConfig`.
    """

    rewards: Objective
    ppo: PPOSettings
    dpo: Objective
    base: str = "base-s"
    rankings: int = 1500
    held_out: int = 200
    max_new_tokens: int = 64
    sft_steps: int = 100
    sft_batch: int = 32
    reward_prompts: int = 800
    reward_steps: int = 100
    reward_batch: int = 8
    dpo_steps: int = 60
    dpo_batch: int = 16
    judged: int = 128
    best_of: tuple[int, ...] = (1, 2, 4, 8)
    documents: int = 60
    workers: int = 0


MAIN, FREE = "PPO", "PPO, β = 0"
"""The lesson's own run, and the one that pays nothing for the distance from its start."""
REWARD_PROMPTS = (100, 1500)
RATES = {"supervised": 2e-3, "reward model": 1e-3, "DPO": 1e-4}


def fit(
    recipe: Recipe,
    model: Any,
    objective: Objective,
    batches: Callable[[int], Batch],
    steps: int,
    lr: float,
    seed: int,
    progress: str,
    **options: Any,
) -> History:
    """Train with the settings that all of this lesson's trainings share.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C ended it.
    """
    config = TrainConfig(
        steps=steps,
        lr=lr,
        schedule="linear",
        warmup=steps // 20,
        weight_decay=0.01,
        seed=seed,
        workers=recipe.workers,
    )
    history = train(model, objective, batches, config, progress=progress, **options)
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return history


def trainable(model: GPT) -> GPT:
    """A model of its own on the same weights, all of them free to move."""
    twin = model.copy()
    twin.unfreeze()
    return twin


def ordered_rightly(scores: np.ndarray, rewards: np.ndarray) -> float:
    """Share of the pairs of one prompt's responses, both (N, K), that scores order as rewards do."""
    row, better, worse = np.nonzero(rewards[:, :, None] > rewards[:, None, :])
    return float((scores[row, better] > scores[row, worse]).mean())


@dataclass(frozen=True)
class Start:
    """What all of a seed's policies start from.

    Attributes
    ----------
    base, policy : GPT
        Before and after supervised fine-tuning.
    reward_model : RewardModel
    accuracy : float
        Share of held-out pairs that it orders rightly.
    rankings, held_out : dict
        Encoded: those that the reward model learns from, and the test split.
    """

    tokenizer: Tokenizer
    base: GPT
    policy: GPT
    reward_model: RewardModel
    accuracy: float
    rankings: Batch
    held_out: Batch
    seed: int


def learn_rewards(
    policy: GPT, rankings: Batch, held_out: Batch, recipe: Recipe, seed: int, progress: str
) -> tuple[RewardModel, float]:
    """A reward model on the policy's trunk, and its accuracy on held-out pairs."""
    model = RewardModel(trainable(policy), seed)
    batches = rlhf.shuffled(rankings, recipe.reward_batch, seed)
    fit(recipe, model, recipe.rewards, batches, recipe.reward_steps, RATES["reward model"], seed, progress)
    scores = model.scores(rlhf.flat(held_out)).reshape(held_out["rewards"].shape)
    return model, ordered_rightly(scores, held_out["rewards"])


def begin(run: Run, recipe: Recipe, data: DataSet[Ranking], seed: int) -> Start:
    """Supervised fine-tuning on the best response to each prompt, then the reward model."""
    base = GPT.from_pretrained(bases.path(recipe.base), backend=run.backend)
    tokenizer = Tokenizer.from_pretrained(bases.path(recipe.base))
    room = base.config.n_positions
    rankings, held_out = (rlhf.encode_rankings(tokenizer, data.split(s), room) for s in ("train", "test"))
    policy = trainable(base)
    batches = epochs(rlhf.best_responses(rankings), recipe.sft_batch, seed)
    fit(recipe, policy, LanguageModelling(), batches, recipe.sft_steps, RATES["supervised"], seed, "supervised")
    some = {name: array[: recipe.reward_prompts] for name, array in rankings.items()}
    reward_model, accuracy = learn_rewards(policy, some, held_out, recipe, seed, "reward model")
    return Start(tokenizer, base, policy, reward_model, accuracy, some, held_out, seed)


@dataclass(frozen=True)
class Arm:
    """A policy that was trained, and what came of it.

    Attributes
    ----------
    policy : GPT
    quality : Quality
    forgotten : float
        Change of the base's loss on its own kind of text, nats a token.
    curve : list of dict
        PPO's rollouts.
    seconds, rollouts : float
        Of training, and the part of it that went into PPO's rollouts.
    """

    policy: GPT
    quality: Quality
    forgotten: float
    curve: list[dict[str, float]]
    seconds: float
    rollouts: float

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        curve = [{name: round(value, 4) for name, value in point.items()} for point in self.curve]
        times = {"seconds": round(self.seconds, 2), "rollouts": round(self.rollouts, 2)}
        return {**asdict(self.quality), "forgotten": self.forgotten, **times, "curve": curve}


class Bench:
    """Trains a seed's policies, and judges each on the same prompts with the same draws.

    Parameters
    ----------
    start : Start
    recipe : Recipe
    data : DataSet of Ranking
        Its training prompts are written on, its test prompts are judged on.
    """

    def __init__(self, start: Start, recipe: Recipe, data: DataSet[Ranking]) -> None:
        self.start, self.recipe = start, recipe
        self.sampler = Sampler(start.tokenizer, recipe.max_new_tokens, recipe.ppo.loss.temperature)
        self.prompts = [ranking.prompt for ranking in data.train]
        asked = tuple(ranking.prompt for ranking in data.test[: recipe.judged])
        validation = [ranking.prompt for ranking in data.validation]
        self.normalised(start.reward_model, validation)
        self.judges = Judges(self.sampler, start.policy, start.reward_model, asked)
        self.old_text = tinyworld.corpus(1, held_out=recipe.documents).validation
        self.old_loss = self.held_out_loss(start.base)

    def normalised(self, reward_model: RewardModel, prompts: Sequence[str]) -> RewardModel:
        """The reward model with mean 0 and variance 1 on what the policy writes at the start."""
        reward_model.normalise(self.sampler.draw(self.start.policy, prompts, self.start.seed).batch)
        return reward_model

    def held_out_loss(self, model: GPT) -> float:
        """On text of the kind that the base was pre-trained on, nats a token."""
        return evaluate_text(model, self.start.tokenizer, self.old_text).loss

    def arm(
        self, policy: GPT, curve: Sequence[dict[str, float]] = (), seconds: float = 0.0, rollouts: float = 0.0
    ) -> Arm:
        """Judge a policy."""
        forgotten = self.held_out_loss(policy) - self.old_loss
        return Arm(policy, self.judges.judge(policy), forgotten, list(curve), seconds, rollouts)

    def ppo(self, settings: PPOSettings, title: str, reward_model: RewardModel | None = None, **options: Any) -> Arm:
        """PPO from the start's policy, on the training prompts."""
        start = self.start
        policy = PolicyWithValue(trainable(start.policy))
        experience = Experience(
            policy, start.policy, reward_model or start.reward_model, self.prompts, self.sampler, settings, start.seed
        )
        steps = settings.iterations * settings.updates
        history = fit(self.recipe, policy, settings.loss, experience, steps, settings.lr, start.seed, title, **options)
        return self.arm(policy.trunk, experience.curve, history.seconds, experience.seconds)

    def dpo(self, objective: Objective, title: str) -> Arm:
        """DPO from the start's policy, on the rankings that the reward model had."""
        start, recipe = self.start, self.recipe
        policy = trainable(start.policy)
        logprobs = rlhf.response_logprobs(start.policy, rlhf.flat(start.rankings)).sum(1)
        pairs = rlhf.all_pairs(start.rankings, logprobs.reshape(start.rankings["rewards"].shape))
        batches = rlhf.shuffled(pairs, recipe.dpo_batch, start.seed)
        history = fit(recipe, policy, objective, batches, recipe.dpo_steps, RATES["DPO"], start.seed, title)
        return self.arm(policy, seconds=history.seconds)

    def more_supervised(self, rankings: Batch, title: str, **options: Any) -> Arm:
        """More supervised fine-tuning, on the quarter of all responses that has the highest true rewards.

        At PPO's learning rate: at the first stage's, five times as high, the rate alone would forget far more.
        """
        texts, rewards = rlhf.flat(rankings), rankings["rewards"].reshape(-1)
        best = cut(texts, np.argsort(-rewards, kind="stable")[: max(1, len(rewards) // 4)])
        policy, steps = trainable(self.start.policy), self.recipe.sft_steps
        batches = epochs(best, self.recipe.sft_batch, self.start.seed)
        history = fit(
            self.recipe,
            policy,
            LanguageModelling(),
            batches,
            steps,
            self.recipe.ppo.lr,
            self.start.seed,
            title,
            **options,
        )
        return self.arm(policy, seconds=history.seconds)


def show_data(run: Run, data: DataSet[Ranking]) -> None:
    """One ranking, and what counts as good."""
    run.heading("The preferences")
    first = data.train[0]
    run.say(f"  {len(data.train):,} prompts with {len(first.responses)} responses each, such as\n\n  {first.prompt}")
    for reward, text in sorted(zip(first.rewards, first.responses, strict=True), reverse=True):
        run.say(f"    {reward:.2f} |{text}")
    run.say(
        "\n  The true reward wants cheerful, well-formed, varied stories about the people in the prompt. Training\n"
        "  sees the order of the responses only; the number is kept for judging."
    )


def show(run: Run, bench: Bench, arms: dict[str, Arm], best_of: dict[int, tuple[float, float]]) -> None:
    """The table, the pictures and some responses of one seed."""
    run.heading("What came of it")
    run.say(
        f"  the reward model orders {bench.start.accuracy:.1%} of held-out pairs rightly\n"
        f"  judged on {len(bench.judges.prompts)} held-out prompts, at temperature {bench.sampler.temperature:g}\n"
    )
    rows = [
        [name, f"{q.true:.3f}", f"{q.learnt:+.2f}", f"{q.kl:.1f}", f"{q.finished:.0%}", f"{q.words:.0f}",
         f"{q.distinct:.0%}", f"{arm.forgotten:+.3f}", f"{arm.seconds:.0f} s" if arm.seconds else ""]
        for name, arm in arms.items() for q in [arm.quality]
    ]  # fmt: skip
    rows += [
        [f"best of {n}", f"{true:.3f}", f"{learnt:+.2f}", f"≤ {rlhf.best_of_kl(n):.1f}", "", "", "", "", ""]
        for n, (true, learnt) in best_of.items() if n > 1
    ]  # fmt: skip
    headers = ["policy", "true reward", "learnt (σ)", "KL", "ends", "words", "distinct", "forgotten", "trained"]
    run.say(table(rows, headers))
    run.say(
        "\n  KL: nats a response from the supervised policy. distinct: different sentences among all written.\n"
        "  forgotten: change of the base's loss on its own kind of text, nats a token.\n"
        "  What to expect: PPO with a price on KL raises the true reward and then stays where it is; without one the\n"
        "  learnt reward rises on and on, and the true one, after a rise, falls far below its start."
    )
    run.say(
        f"  Of PPO's {arms[MAIN].seconds:.0f} s, {arms[MAIN].rollouts:.0f} s went into rollouts: writing, and scoring "
        "with policy, reference and reward model."
    )
    curves = {name: arms[name].curve for name in (MAIN, FREE)}
    points = {n: (rlhf.best_of_kl(n), learnt, true) for n, (true, learnt) in best_of.items()}
    labels = {MAIN: f"β = {bench.recipe.ppo.loss.beta:g}", FREE: "β = 0"}
    named = {labels[name]: curve for name, curve in curves.items()}
    run.picture("reward_against_kl", rlhf_pictures.over_optimisation(named, points))
    run.picture("ppo", rlhf_pictures.training(named))
    written = {name: bench.judges.responses(arms[name].policy) for name in ("supervised", MAIN, FREE)}
    score = bench.start.reward_model.scores
    run.picture(
        "reward_model",
        rlhf_pictures.calibration({name: (w.true, score(w.batch)) for name, w in written.items()}),
    )
    run.say(f"\n  {bench.judges.prompts[0]}")
    for name, w in written.items():
        run.say(f"    {name} ({w.true[0]:.2f}):{w.texts[0]}")
    run.results["samples"] = {name: [w.texts[i] for i in range(min(4, len(w.texts)))] for name, w in written.items()}


def sweep(
    bench: Bench,
    data: DataSet[Ranking],
    arms: dict[str, Arm],
    ppo: Mapping[str, Mapping[str, PPOSettings]],
    dpo: Mapping[str, Objective],
    results: dict[str, dict[str, list[float]]],
) -> None:
    """Runs that differ from the recipe's in one thing; adds the true reward that each ends with to `results`.

    Parameters
    ----------
    bench : Bench
    data : DataSet of Ranking
    arms : dict of str to Arm
        The seed's own runs.
    ppo : dict of str to dict of str to PPOSettings
        Name of a sweep → name of a variant → settings.
    dpo : dict of str to Objective
    results : dict of str to dict of str to list of float
    """
    recipe, start = bench.recipe, bench.start

    def note(name: str, variant: str, arm: Arm) -> None:
        results.setdefault(name, {}).setdefault(variant, []).append(arm.quality.true)

    note("PPO", "as it is", arms[MAIN])
    note("PPO", "β = 0", arms[FREE])
    for name, settings in ppo.items():
        for variant, changed in settings.items():
            note(name, variant, bench.ppo(changed, f"{name} {variant}"))
    validation = [ranking.prompt for ranking in data.validation]
    for n in REWARD_PROMPTS:
        rankings = rlhf.encode_rankings(start.tokenizer, data.train[:n], start.base.config.n_positions)
        longer = replace(recipe, reward_steps=min(2 * recipe.reward_steps, max(1, n // recipe.reward_batch * 3)))
        reward_model, _ = learn_rewards(start.policy, rankings, start.held_out, longer, start.seed, f"rewards of {n}")
        bench.normalised(reward_model, validation)
        note("rankings", f"{n}", bench.ppo(recipe.ppo, f"PPO, {n} rankings", reward_model))
    note("DPO", "as it is", arms["DPO"])
    for variant, objective in dpo.items():
        note("DPO", variant, bench.dpo(objective, f"DPO, {variant}"))


def remember(bench: Bench, data: DataSet[Ranking], paths: dict[str, list[list[tuple[float, float]]]]) -> None:
    """PPO and more supervised training on the way: true reward, and what has been forgotten, at several steps."""
    rankings = rlhf.encode_rankings(bench.start.tokenizer, data.train, bench.start.base.config.n_positions)
    settings = bench.recipe.ppo
    begun = bench.arm(bench.start.policy)

    def watch(every: int) -> tuple[list[tuple[float, float]], Callable[[State], None]]:
        path = [(begun.quality.true, begun.forgotten)]

        def look(state: State) -> None:
            if state.step % every == 0:
                policy = state.model.trunk if isinstance(state.model, PolicyWithValue) else state.model
                path.append((bench.judges.judge(policy).true, bench.held_out_loss(policy) - bench.old_loss))

        return path, look

    path, look = watch(max(1, settings.iterations // 5) * settings.updates)
    bench.ppo(settings, "PPO, remembering", callbacks=[look])
    paths.setdefault("PPO", []).append(path)
    path, look = watch(max(1, bench.recipe.sft_steps // 5))
    bench.more_supervised(rankings, "supervised, remembering", callbacks=[look])
    paths.setdefault("more supervised", []).append(path)


def matched_forgetting(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> float:
    """How much more the second path has forgotten than the first at the highest true reward that both reach."""

    def at(path: Sequence[tuple[float, float]], reward: float) -> float:
        for (r0, f0), (r1, f1) in pairwise(path):
            if r0 <= reward <= r1:
                return f0 + (f1 - f0) * ((reward - r0) / (r1 - r0) if r1 > r0 else 0.0)
        return path[-1][1]

    reward = min(max(r for r, _ in path) for path in (first, second))
    return at(second, reward) - at(first, reward)


def show_sweeps(
    run: Run, sweeps: dict[str, dict[str, list[float]]], paths: dict[str, list[list[tuple[float, float]]]]
) -> None:
    """What each choice came to, and what was forgotten at equal true reward."""
    run.heading("What each choice comes to")
    rows = [[f"{n}: {v}", len(values), spread(values)] for n, found in sweeps.items() for v, values in found.items()]
    run.say(table(rows, ["variant", "seeds", "true reward"]))
    run.picture("sweeps", rlhf_pictures.sweeps(sweeps))
    run.picture("forgetting", rlhf_pictures.forgetting(paths))
    more = [matched_forgetting(p, s) for p, s in zip(paths["PPO"], paths["more supervised"], strict=True)]
    run.say(
        f"\n  At equal true reward, more supervised training has forgotten {spread(more)} nats a token more than PPO."
    )
    run.report("supervised_forgets_more_than_ppo", more, "nats a token")


def report(
    run: Run,
    recipe: Recipe,
    headline: list[dict[str, Arm]],
    accuracies: list[float],
    best_of: list[dict[int, tuple[float, float]]],
) -> None:
    """The figures."""
    most = max(recipe.best_of)
    run.report("reward_model_accuracy", accuracies, "share of held-out pairs")
    for name, figure in (("supervised", "supervised"), (MAIN, "ppo"), (FREE, "ppo_without_price"), ("DPO", "dpo")):
        run.report(f"{figure}_true_reward", [arms[name].quality.true for arms in headline], "0 to 1")
    run.report(f"best_of_{most}_true_reward", [seed[most][0] for seed in best_of], "0 to 1")
    for name, figure in ((MAIN, "ppo"), (FREE, "ppo_without_price")):
        run.report(f"{figure}_learnt_reward", [arms[name].quality.learnt for arms in headline], "σ", digits=2)
        run.report(f"{figure}_kl", [arms[name].quality.kl for arms in headline], "nats a response", digits=1)
    for name, figure in ((MAIN, "ppo"), ("DPO", "dpo"), ("supervised", "supervised")):
        run.report(f"{figure}_forgotten", [arms[name].forgotten for arms in headline], "nats a token")
    run.report("ppo_time", [arms[MAIN].seconds for arms in headline], "s", digits=0, banded=False)


def own_preferences(run: Run, recipe: Recipe) -> None:
    """The user's own preferences (JSONL: prompt, chosen, rejected): reward model and DPO, judged on held-out pairs.

    PPO is left out: without a true reward nobody can say whether what it finds is a better text.
    """
    assert run.settings.data is not None
    data = rlhf.load_preferences(run.settings.data)
    run.heading(f"{data.name}: {len(data.train):,} preferences to train on, {len(data.test):,} held out")
    start = begin(run, recipe, data, run.settings.seed)
    texts, shape = rlhf.flat(start.held_out), start.held_out["rewards"].shape
    reference = rlhf.response_logprobs(start.policy, texts).sum(1).reshape(shape)
    policy = trainable(start.policy)
    logprobs = rlhf.response_logprobs(start.policy, rlhf.flat(start.rankings)).sum(1)
    pairs = rlhf.all_pairs(start.rankings, logprobs.reshape(start.rankings["rewards"].shape))
    batches = rlhf.shuffled(pairs, recipe.dpo_batch, start.seed)
    fit(recipe, policy, recipe.dpo, batches, recipe.dpo_steps, RATES["DPO"], start.seed, "DPO")
    implied = rlhf.response_logprobs(policy, texts).sum(1).reshape(shape) - reference
    policy.save_pretrained(run.directory / "model")
    start.tokenizer.save_pretrained(run.directory / "model")
    run.report("reward_model_accuracy", start.accuracy, "share of held-out pairs")
    run.report("dpo_accuracy", ordered_rightly(implied, start.held_out["rewards"]), "share of held-out pairs")
    run.say(f"\n  the policy after DPO: {run.directory / 'model'}")
    run.results |= {"recipe": asdict(recipe), "data": data.record()}
