"""Lesson 4: instruction tuning. Fine-tune on prompts with their completions: one task or many, and what is forgotten.

1. From a prompt and its completion to a row of tokens with a loss on the completion only; what the mean is taken over;
   how a mixture of tasks is drawn; forgetting as a matrix.
2. The baselines that fine-tuning must beat: asking the untuned base, without and with solved examples in the prompt.
3. A model for each task against one model for the mixture, and how many examples they need; last layers only.
4. What is forgotten: the mixture's model trains on one more task (row) and is scored on all (column); the loss on the
   base's own text before and after.
5. Each model on each task by several metrics: exact match, ROUGE-L, BLEU, multiple choice, calibration, loss.

Wei et al. (2022), "Finetuned Language Models Are Zero-Shot Learners", arXiv:2109.01652; Ouyang et al. (2022), "Training
language models to follow instructions with human feedback", arXiv:2203.02155, section 3.5.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from kernels import Backend
from kernels.array import Array
from lessons.common import derivation, gradcheck, runner
from lessons.common.bands import Band
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.instruction import (
    MODELS,
    Measured,
    averaged,
    mean,
    scenarios_picture,
    show_curve,
    show_forgetting,
    show_scores,
    show_tasks,
    show_unseen,
)
from lessons.common.runner import Run
from lessons.common.scenarios import OTHER, few_shot, measure, written_scores
from lessons.common.table import spread, table
from lessons.common.tasks import PairTask, load_task, own_task, require_pairs
from lessons.common.tuning import Budget, fine_tune
from minigpt import GPT, GPTConfig, InputError, bases
from minigpt.context import Context
from minigpt.data import IGNORED, DataSet, Pair, collate_pairs, encode_documents, pad_batch, pydocs, tinyworld
from minigpt.evaluation import evaluate_batches, text_batches
from minigpt.heads import token_logprobs
from minigpt.objectives import Batch, LanguageModelling, Objective
from minigpt.parameters import Gradients

# ---------------------------------------------------------------------------------------------- the technique


def completion_targets(
    prompt: Sequence[int], completion: Sequence[int], max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """A row of input tokens, and for each of them the token that it has to predict, or -100.

    The row is prompt + completion. ``targets[t]`` is the token after ``ids[t]``: the shift is done here, once. Only
    tokens of the completion are targets, so the first scored place is the prompt's last token. The last token of the
    completion (the end of text) is a target and no input. A row that has more than `max_length` inputs loses the
    beginning of its prompt, where it hurts least; the completion stays whole.

    Parameters
    ----------
    prompt : sequence of P int, P ≥ 1
    completion : sequence of C int, C ≥ 1
        Ends with the end of text.
    max_length : int
        At least C, so that one token of the prompt is left.

    Returns
    -------
    ids, targets : (T,) int64, T = min(P + C − 1, max_length)
        Of the targets, the first T − C are -100.
    """
    ### BEGIN SOLUTION
    row = [*prompt, *completion][-(max_length + 1) :]
    ids, targets = np.array(row[:-1], np.int64), np.array(row[1:], np.int64)
    targets[: len(ids) - len(completion)] = IGNORED
    return ids, targets
    ### END SOLUTION


def completion_loss(logprobs: Array, targets: Array, total: float, per: str) -> tuple[float, Array]:
    """A batch's share of the mean loss, and its gradient with respect to the log-probabilities.

    With n_b scored tokens in row b:

        per token      L = −(1/N) Σ_b Σ_t log p_bt            N: scored tokens
        per example    L = −(1/B) Σ_b (1/n_b) Σ_t log p_bt    B: rows

    Parameters
    ----------
    logprobs : (B, T)
        Of the targets.
    targets : (B, T) integers
        Where they are -100, nothing is scored. Every row has a scored place.
    total : float
        N or B of the whole batch, of which these rows may be a part.
    per : {"token", "example"}

    Returns
    -------
    loss : float
    dlogprobs : (B, T), of logprobs' dtype
    """
    ### BEGIN SOLUTION
    scored = (targets != IGNORED).astype(logprobs.dtype)  # (B, T)
    weights = scored / total
    if per == "example":
        weights = weights / scored.sum(1, keepdims=True)
    return float(-(weights * logprobs).sum()), -weights
    ### END SOLUTION


def mixture_weights(sizes: Sequence[int], temperature: float = 1.0, limit: float = math.inf) -> np.ndarray:
    """With which probability a row of the mixture comes from each task.

    w_k ∝ min(n_k, limit)^(1/temperature): in proportion to the tasks' sizes at temperature 1, nearer to equal shares
    the hotter it is, equal at infinity. Raffel et al. (2020), arXiv:1910.10683, section 3.5.2.

    Parameters
    ----------
    sizes : sequence of K int
        Training examples n_k of each task.
    temperature : float
        Above 0; may be infinite.
    limit : float
        No task counts as larger.

    Returns
    -------
    weights : (K,) float64
        They add up to 1.
    """
    ### BEGIN SOLUTION
    weights = np.minimum(np.asarray(sizes, dtype=np.float64), limit) ** (1 / temperature)
    return weights / weights.sum()
    ### END SOLUTION


class Forgetting(NamedTuple):
    """What training on each task did.

    Attributes
    ----------
    gained : (K,)
        To the score on the task itself.
    forgotten : (K,)
        Of the scores on the others, on average; below 0 where they rose.
    """

    gained: np.ndarray
    forgotten: np.ndarray


def forgetting(before: np.ndarray, after: np.ndarray) -> Forgetting:
    """Read a task × task matrix: the diagonal is what was learnt, the rest of a row what was lost meanwhile.

        gained_i = after_ii − before_i            forgotten_i = 1/(K − 1) Σ_{j≠i} (before_j − after_ij)

    Parameters
    ----------
    before : (K,)
        Score on each task of the model that all rows started from.
    after : (K, K)
        ``after[i, j]``: score on task j after training on task i only.

    Returns
    -------
    read : Forgetting
        With one task alone nothing else can be forgotten: NaN.
    """
    ### BEGIN SOLUTION
    change = np.asarray(after) - np.asarray(before)  # (K, K): row i is one model
    gained = np.diagonal(change).copy()
    others = len(change) - 1
    lost = -(change.sum(1) - gained)
    return Forgetting(gained, lost / others if others else np.full(1, np.nan))
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- put to work


@dataclass(frozen=True)
class CompletionLoss:
    """An objective: `completion_loss` on top of a language model. Per token it is `LanguageModelling`'s loss.

    Attributes
    ----------
    per : {"token", "example"}
    """

    per: str = "token"

    def total(self, batch: Batch) -> float:
        """Scored tokens, or rows."""
        scored = batch["targets"] != IGNORED
        return float(scored.sum() if self.per == "token" else scored.any(1).sum())

    def forward(
        self, model: Any, batch: Batch, total: float, ctx: Context
    ) -> tuple[float, Callable[[Gradients], None]]:
        """See `Objective.forward`."""
        targets = model.backend.asarray(batch["targets"])
        hidden, trunk_back = model.forward(model.backend.asarray(batch["ids"]), ctx)
        logprobs, head_back = token_logprobs(hidden, model.wte, targets, ctx)
        loss, dlogprobs = completion_loss(logprobs, targets, total, self.per)
        return loss, lambda grads: trunk_back(head_back(dlogprobs, grads), grads)


@dataclass(frozen=True)
class Mixture:
    """Several tasks to be trained on at once: each row of a batch is drawn from a task, and then from its pairs.

    Attributes
    ----------
    tasks : tuple of PairTask
    temperature : float
        As in `mixture_weights`.
    objective : Objective
    whole_text : bool
        Score the prompts too, as in pre-training.
    """

    tasks: tuple[PairTask, ...]
    temperature: float = 1.0
    objective: Objective = field(default_factory=LanguageModelling)
    whole_text: bool = False

    def batches(self, batch_size: int, seed: int = 0) -> Callable[[int], Batch]:
        """The training batch of a step, a pure function of it."""
        encoded = [task.encoded("train") for task in self.tasks]
        sizes = [len(whole["lengths"]) for whole in encoded]
        weights = mixture_weights(sizes, self.temperature)

        def batch(step: int) -> Batch:
            rng = np.random.default_rng([seed, step])
            chosen = [(k, int(rng.integers(sizes[k]))) for k in rng.choice(len(sizes), batch_size, p=weights)]
            lengths = [int(encoded[k]["lengths"][i]) for k, i in chosen]
            rows = {
                name: [encoded[k][name][i, :n] for (k, i), n in zip(chosen, lengths, strict=True)]
                for name in ("ids", "targets")
            }
            if self.whole_text:
                rows["targets"] = [np.append(ids[1:], t[-1]) for ids, t in zip(*rows.values(), strict=True)]
            return {
                "ids": pad_batch(rows["ids"])[0],
                "targets": pad_batch(rows["targets"], pad_id=IGNORED)[0],
                "lengths": np.array(lengths, np.int64),
            }

        return batch

    def validation(self, limit: int | None = None) -> list[Batch]:
        """Batches of all tasks' validation splits."""
        return [batch for task in self.tasks for batch in task.validation(limit)]


# ---------------------------------------------------------------------------------------------- the mathematics


def compared(name: str, wanted: Any, function: Callable[..., Any], *arguments: Any, part: Any = None) -> Check:
    """What a function gives, or a part of it, beside what it should be; one that is not written yet is no error."""

    def value() -> Any:
        given = function(*arguments)
        return given if part is None else given[part]

    return gradcheck.agree(name, wanted, value)


class Ends:
    """A tokenizer for checks: a letter is a token, and 0 the end of text."""

    vocab_size = 128
    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        """Code points."""
        return [ord(letter) for letter in text]


def check_targets(backend: Backend) -> list[Check]:
    """Against what the data pipeline makes of the same pairs: whole, truncated, and of the least lengths."""
    tokenizer = Ends()
    checks = []
    for prompt, completion, room in (("abcd", "xyz", 20), ("abcd", "xyz", 6), ("abcdef", "xyz", 4), ("a", "x", 2)):
        wanted = collate_pairs(tokenizer, [Pair(prompt, completion)], room)
        row = (tokenizer.encode(prompt), [*tokenizer.encode(completion), 0], room)
        for part, name in enumerate(("ids", "targets")):
            title = f"{name} of {prompt}·{completion}, {room} at most"
            checks.append(compared(title, wanted[name][0], completion_targets, *row, part=part))
    return checks


TARGETS = np.array([[-100, -100, 3, 1], [-100, 2, -100, -100], [0, 4, 1, 2]])


def probe_loss(per: str, total: float) -> Callable[[Backend], gradcheck.Function]:
    """The loss as a function of the log-probabilities."""

    def probe(backend: Backend) -> gradcheck.Function:
        def forward(logprobs: Array) -> Any:
            loss, dlogprobs = completion_loss(logprobs, backend.asarray(TARGETS), total, per)
            return loss, lambda dloss: {"logprobs": dlogprobs * dloss}

        return forward

    return probe


def check_loss(backend: Backend) -> list[Check]:
    """The gradient by differences, and the loss where the row with a single scored token is the bad one."""
    targets = backend.asarray(TARGETS)
    logprobs = backend.asarray(-np.array([[1.0], [5.0], [1.0]]) * np.ones(TARGETS.shape))
    checks = []
    for per, total, wanted in (("token", 7.0, (2 + 5 + 4) / 7), ("example", 3.0, (1 + 5 + 1) / 3)):
        checks += gradients(probe_loss(per, total), {"logprobs": TARGETS.shape})(backend)
        checks.append(compared(f"mean per {per}", wanted, completion_loss, logprobs, targets, total, per, part=0))
    return checks


def check_whole(backend: Backend) -> list[Check]:
    """A tiny model under the loss per example, every parameter moved."""
    config = GPTConfig(vocab_size=7, n_positions=5, n_embd=6, n_layer=1, n_head=2)
    model = GPT(config, dtype="float64", backend=backend)
    rng = np.random.default_rng(3)
    for p in model.parameters():
        p.data = backend.asarray(backend.to_numpy(p.data) + 0.3 * rng.standard_normal(p.data.shape))
    batch = {"ids": rng.integers(0, 7, TARGETS.shape), "targets": TARGETS}
    objective = CompletionLoss("example")

    def loss() -> float:
        return objective.forward(model, batch, objective.total(batch), model.context())[0]

    grads = Gradients(model.parameters(), backend)
    try:
        objective.forward(model, batch, objective.total(batch), model.context(grad=True))[1](grads)
    except NotImplementedError:
        return [Check(p.name, tuple(p.data.shape), None) for p in model.parameters()]
    return gradcheck.check_parameters(model.parameters(), loss, grads.as_dict(), backend)


def check_weights(backend: Backend) -> list[Check]:
    """Proportional, tempered, equal, and limited."""
    return [
        compared("temperature 1", [0.1, 0.9], mixture_weights, [100, 900]),
        compared("temperature 2", [0.25, 0.75], mixture_weights, [100, 900], 2.0),
        compared("temperature ∞", [0.5, 0.5], mixture_weights, [100, 900], math.inf),
        compared("temperature 1, limit 300", [0.25, 0.75], mixture_weights, [100, 900], 1.0, 300),
    ]


def check_forgetting(backend: Backend) -> list[Check]:
    """A matrix read by hand."""
    before, after = np.array([0.5, 0.8, 0.6]), np.array([[0.9, 0.2, 0.6], [0.1, 0.9, 0.4], [0.5, 0.8, 0.7]])
    alone = np.array([0.5]), np.array([[0.75]])
    return [
        compared("gained", [0.4, 0.1, 0.1], forgetting, before, after, part=0),
        compared("forgotten", [0.3, 0.3, 0.0], forgetting, before, after, part=1),
        compared("gained, one task alone", [0.25], forgetting, *alone, part=0),
    ]


DERIVATIONS = (
    Derivation(
        "A prompt and its completion as one row",
        """
        row      p₁ p₂ p₃ c₁ c₂ end             one text to the model: attention knows no border
        ids      p₁ p₂ p₃ c₁ c₂                 every token but the last is an input
        targets  ·  ·  c₁ c₂ end                what comes next; · (-100) is not scored

        The prompt is given, so nothing is learnt from predicting it: it only dilutes the gradient. The first target
        stands at the prompt's last token. Masking one place too many loses c₁, the answer itself where it is one token;
        shifting twice trains on predicting the token after the next. The end of text is a target: a model that never
        saw it answers and goes on. Where it doubles as padding and is masked by its id, it is masked at the row's true
        end too, and the model never learns to stop: padding is known by the rows' lengths.
        """,
        (completion_targets,),
        check_targets,
    ),
    Derivation(
        "What the mean is taken over",
        """
        per token      L = −(1/N) Σ_b Σ_t log p_bt            ∂L/∂log p_bt = −1/N
        per example    L = −(1/B) Σ_b (1/n_b) Σ_t log p_bt    ∂L/∂log p_bt = −1/(B·n_b)      0 where not scored

        Per token, a translation of 27 tokens pulls as hard as seven answers of four tokens. Per example every pair
        counts alike, and a token of a short answer counts more. A mixture of tasks feels the difference.
        N and B are those of the whole batch, however it is split: a mean of the means of its parts is another loss.
        """,
        (completion_loss,),
        check_loss,
    ),
    Derivation(
        "Prompt tokens are not scored, and yet they are trained",
        """
        ∂L/∂z_bt = (p − onehot)·w_bt is 0 at the prompt's places. But the scored places attended to the prompt, and
        attention hands their gradient back to its keys and values: dK = dZᵀ Q/√D, dV = Pᵀ dO. So all weights learn how
        to read the prompt, from the loss on the answer alone. A whole tiny model, each parameter moved:
        """,
        (CompletionLoss.forward,),
        check_whole,
    ),
    Derivation(
        "How much of each task",
        """
        w_k = min(n_k, limit)^(1/T) / Σ_j min(n_j, limit)^(1/T)

        T = 1 shows every example equally often, and a task of a hundred examples hardly ever. T = ∞ shows every task
        equally often, and the examples of the small one again and again. Between them T = 2 is a usual choice.
        """,
        (mixture_weights,),
        check_weights,
    ),
    Derivation(
        "Forgetting as a matrix",
        """
        after_ij: trained on task i only, scored on task j.   before_j: the model that all rows started from.
        gained_i = after_ii − before_i,   forgotten_i = mean over j ≠ i of (before_j − after_ij)
        """,
        (forgetting,),
        check_forgetting,
    ),
)


# ---------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Plan:
    """Sizes of an experiment.

    Attributes
    ----------
    base : str
    tasks, unseen : tuple of str
        To train on, and only to be asked about.
    examples : int
        Training pairs a task.
    steps : int
        A task: the mixture of K tasks trains for K times as many.
    batch_size : int
    lr : float
        Of full fine-tuning.
    max_length : int
        Tokens of a row.
    test : int
        Test pairs a task.
    shots : int
        Solved examples in the prompt, at most.
    curve : tuple of int
        Other numbers of training pairs a task.
    windows : int
        Of the base's held-out text, a source.
    texts : tuple of str
        The sources.
    workers : int
        As in `TrainConfig`.
    """

    base: str = "base-s"
    tasks: tuple[str, ...] = ("rewriting", "translation", "topic-pairs")
    unseen: tuple[str, ...] = ("sentiment-pairs",)
    examples: int = 1000
    steps: int = 150
    batch_size: int = 16
    lr: float = 3e-3
    max_length: int = 128
    test: int = 100
    shots: int = 4
    curve: tuple[int, ...] = (250,)
    windows: int = 32
    texts: tuple[str, ...] = ("tinyworld", "pydocs")
    workers: int = 0


CORE = Plan()
FULL = replace(
    CORE,
    tasks=("questions", "rewriting", "translation", "topic-pairs", "summaries"),
    unseen=("sentiment-pairs", "cards", "addition"),
    curve=(50, 250),
)
"""More tasks than a core run has; its own figures say how many. The bands of a core run come from its own plan."""
QUICK = Plan(
    base="base-xs",
    tasks=("rewriting", "addition"),
    unseen=(),
    examples=24,
    steps=2,
    batch_size=8,
    test=4,
    shots=2,
    curve=(8,),
    windows=2,
    texts=("tinyworld",),
    workers=1,
)


BESIDE_OWN = ("rewriting", "addition")
"""Tasks beside the user's own: a mixture and forgetting need others."""
SEEDS = 3


LONGER = "one task each, each as many steps as the mixture"


@dataclass(frozen=True)
class Variation:
    """The mixture trained in another way: one thing changed."""

    name: str
    per: str = "token"
    whole_text: bool = False
    temperature: float = 1.0
    unequal: bool = False
    replay: bool = False

    def mixture(self, tasks: tuple[PairTask, ...], text: PairTask) -> Mixture:
        """The tasks as this variation mixes them; `unequal` leaves every second one a tenth of its examples, `replay`
        adds the base's own text as one task more."""
        if self.replay:
            tasks = (*tasks, text)
        if self.unequal:
            tasks = tuple(t.limited(max(1, len(t.data.train) // 10)) if k % 2 else t for k, t in enumerate(tasks))
        objective: Objective = LanguageModelling() if self.per == "token" else CompletionLoss(self.per)
        return Mixture(tasks, self.temperature, objective, self.whole_text)


VARIATIONS = (
    Variation("as it is"),
    Variation("mean over examples", per="example"),
    Variation("prompts scored too", whole_text=True),
    Variation("the base's text as one task more", replay=True),
    Variation("unequal sizes, T = 1", unequal=True),
    Variation("unequal sizes, T = 2", unequal=True, temperature=2.0),
    Variation("unequal sizes, T = ∞", unequal=True, temperature=math.inf),
)


class Experiment:
    """A plan with its base, tasks and texts loaded.

    Parameters
    ----------
    plan : Plan
    backend : Backend
    own : str, optional
        The user's own file, in the place of the plan's first task.

    Attributes
    ----------
    models : dict of str to GPT
        Of the seed that was measured last: the base, the mixture's, and those of single tasks by their label.
    """

    def __init__(self, plan: Plan, backend: Backend, own: str | None = None) -> None:
        self.plan = plan
        self.base, self.tokenizer = bases.load(plan.base, backend=backend)
        names = (own, *BESIDE_OWN) if own else plan.tasks
        self.tasks = tuple(self.load(name) for name in names)
        self.labels = tuple("your own" if name == own else name.removesuffix("-pairs") for name in names)
        self.texts = {name: self.text(name) for name in plan.texts}
        self.few_shot = [few_shot(task, plan.shots, self.base.config.n_positions) for task in self.tasks]
        self.unseen = [self.load(name) for name in (() if own else plan.unseen)]
        self.models: dict[str, GPT] = {}

    def load(self, name: str) -> PairTask:
        """A task with as many records as the plan has."""
        task = replace(
            require_pairs(load_task(name, self.tokenizer, self.plan.examples)), max_length=self.plan.max_length
        )
        data = replace(task.data, test=task.data.test[: self.plan.test], validation=task.data.validation[:1])
        task = replace(task, data=replace(data, train=data.train[: self.plan.examples]))
        if task.longest("test") >= self.base.config.n_positions:
            raise InputError(
                f"{name}: a completion has {task.longest('test')} tokens; the context is {self.base.config.n_positions}"
            )
        return task

    def text(self, name: str) -> list[Batch]:
        """Windows of a text that the base was trained on the like of, held out from its training."""
        data = pydocs.corpus() if name == "pydocs" else tinyworld.corpus(1, held_out=4 * self.plan.windows)
        tokens = encode_documents(self.tokenizer, data.validation)
        return text_batches(tokens, self.base.config.n_positions, 16, self.plan.windows)

    @property
    def replay(self) -> PairTask:
        """Text that the base was trained on, as completions of nothing."""
        task, room = self.tasks[0], self.plan.max_length - 1
        documents = tinyworld.corpus(self.plan.examples, held_out=1).train
        texts = [self.tokenizer.decode(self.tokenizer.encode(document)[:room]) for document in documents]
        return replace(task, data=DataSet("text", [Pair("", text) for text in texts], [], []))

    def tune(self, method: str, start: GPT, data: Mixture | PairTask, seed: int, longer: int = 1) -> GPT:
        """Fine-tune; a mixture of K tasks for K times as many steps, a task so many times `longer` than the plan's."""
        from lessons import METHODS

        steps = self.plan.steps * (len(data.tasks) if isinstance(data, Mixture) else longer)
        lr = self.plan.lr if method == "full" else None
        budget = Budget(steps, self.plan.batch_size, lr, workers=self.plan.workers)
        return fine_tune(METHODS[method](), start, data, budget, seed).model

    def row(self, model: GPT, first_line: bool = False) -> list[float]:
        """The model's score on every task."""
        return [written_scores(model, task, self.plan.test, first_line)["main"] for task in self.tasks]

    def everything(self, models: Sequence[GPT], tasks: Sequence[PairTask], first_line: bool = False) -> dict[str, Any]:
        """All metrics: a model for each task."""
        return {
            label: measure(model, task, self.plan.test, first_line)
            for label, model, task in zip(self.labels, models, tasks, strict=True)
        }

    def held_out(self, model: GPT) -> dict[str, float]:
        """Loss on the base's own text."""
        return {name: evaluate_batches(model, batches)[0] for name, batches in self.texts.items()}

    @property
    def n_trainings(self) -> int:
        """Runs that `measure` makes."""
        return 2 * len(self.tasks) + 2 + len(self.plan.curve) * (len(self.tasks) + 1)

    def measure(self, seed: int, bar: Any) -> Measured:
        """All models of one seed, on everything."""

        def tuned(title: str, method: str, start: GPT, data: Mixture | PairTask) -> GPT:
            bar.set_description(f"seed {seed}: {title}")
            model = self.tune(method, start, data, seed)
            bar.update()
            return model

        base, tasks, K = self.base, self.tasks, len(self.tasks)
        singles = [tuned(label, "full", base, task) for label, task in zip(self.labels, tasks, strict=True)]
        mixture = tuned("mixture", "full", base, Mixture(tasks))
        last = tuned("mixture, last layer", "last_layer", base, Mixture(tasks))
        later = [
            tuned(f"mixture, then {label}", "full", mixture, task)
            for label, task in zip(self.labels, tasks, strict=True)
        ]
        bar.set_description(f"seed {seed}: scoring")
        scenarios = {
            "zero-shot": self.everything([base] * K, tasks, True),
            "few-shot": self.everything([base] * K, self.few_shot, True),
            "one task each": self.everything(singles, tasks),
            "mixture, last layer": self.everything([last] * K, tasks),
            "mixture": self.everything([mixture] * K, tasks),
        }
        ready = {name: [s["main"] for s in scenarios[name].values()] for name in ("zero-shot", "mixture")}
        unseen = {
            f"{label}, other template": {"mixture": measure(mixture, OTHER.fill(task), self.plan.test)}
            for label, task in zip(self.labels, tasks, strict=True)
        } | {
            name.removesuffix("-pairs"): {
                "zero-shot": measure(base, task, self.plan.test, True),
                "few-shot": measure(
                    base, few_shot(task, self.plan.shots, base.config.n_positions), self.plan.test, True
                ),
                "mixture": measure(mixture, task, self.plan.test),
            }
            for name, task in zip(self.plan.unseen, self.unseen, strict=False)
        }
        after = [self.row(model) for model in later]
        read = forgetting(np.array(ready["mixture"]), np.array(after))
        named = self.models = {"base": base, "mixture": mixture, "mixture, last layer": last} | dict(
            zip(self.labels, singles, strict=True)
        )
        measured = Measured(
            scenarios=scenarios,
            unseen=unseen,
            from_base=[ready["zero-shot"], *(self.row(model) for model in singles), ready["mixture"]],
            after_mixture=[ready["mixture"], *after],
            gained=read.gained.tolist(),
            forgotten=read.forgotten.tolist(),
            held_out={name: self.held_out(model) for name, model in named.items()},
            curve={},
        )
        for n in sorted(self.plan.curve):
            few = [task.limited(min(n, len(task.data.train))) for task in tasks]
            alone = [
                tuned(f"{label}, {n} examples", "full", base, t) for label, t in zip(self.labels, few, strict=True)
            ]
            together = tuned(f"mixture, {n} examples each", "full", base, Mixture(tuple(few)))
            own = [written_scores(model, t, self.plan.test)["main"] for model, t in zip(alone, tasks, strict=True)]
            measured.curve[n] = {"one task each": mean(own), "mixture": mean(self.row(together))}
        measured.curve[max(len(t.data.train) for t in tasks)] = {
            name: measured.score(name) for name in ("one task each", "mixture")
        }
        return measured


# ---------------------------------------------------------------------------------------------- the lesson


def lesson(run: Run) -> None:
    """Everything that `make lesson-4` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    settings = run.settings
    plan = settings.choose(QUICK, CORE, FULL if settings.standard else None)
    experiment = Experiment(plan, run.backend, settings.data)
    if settings.data:
        run.say(f"\n  {own_task(settings.data, experiment.tokenizer).describe()}")
    show_tasks(run, experiment.labels, experiment.tasks)

    seeds = range(settings.seed, settings.seed + (SEEDS if settings.full else 1))
    results = measure_all(experiment, seeds)
    show_scores(run, experiment.labels, results)
    show_unseen(run, results)
    show_curve(run, experiment.labels, results)
    show_forgetting(run, experiment.labels, results)
    run.picture("scenarios", scenarios_picture(averaged([r.scenarios for r in results])))
    if settings.full:
        core = Experiment(replace(CORE, curve=()), run.backend, settings.data)  # no figure comes from the curve
        ablate(run, core, seeds)
    if settings.full and settings.standard:  # the bands are of what a core run measures
        report(run, measure_all(core, seeds))
        report(run, results, f"{len(experiment.tasks)}_tasks_")
    else:
        report(run, results)
    run.results |= {"plan": asdict(plan), "tasks": list(experiment.labels), "runs": [asdict(r) for r in results]}
    run.results["data"] = [task.data.record() for task in experiment.tasks]


def measure_all(experiment: Experiment, seeds: Sequence[int]) -> list[Measured]:
    """All models of every seed, on everything."""
    with tqdm(total=len(seeds) * experiment.n_trainings, dynamic_ncols=True) as bar:
        return [experiment.measure(seed, bar) for seed in seeds]


def ablate(run: Run, experiment: Experiment, seeds: Sequence[int]) -> None:
    """The mixture with one thing changed at a time, and models for one task that train for as many steps as it."""
    run.heading("What each choice is worth")
    base, tasks, K = experiment.base, experiment.tasks, len(experiment.tasks)
    scores: dict[str, list[list[float]]] = {name: [] for name in (*(v.name for v in VARIATIONS), LONGER)}
    forgot: dict[str, list[dict[str, float]]] = {v.name: [] for v in VARIATIONS}
    replay, before = experiment.replay, experiment.held_out(base)
    with tqdm(total=len(seeds) * (len(VARIATIONS) + K), dynamic_ncols=True) as bar:
        for seed in seeds:
            for variation in VARIATIONS:
                bar.set_description(f"seed {seed}: {variation.name}")
                model = experiment.tune("full", base, variation.mixture(tasks, replay), seed)
                scores[variation.name].append(experiment.row(model))
                after = experiment.held_out(model)
                forgot[variation.name].append({text: after[text] - before[text] for text in before})
                bar.update()
            alone = []
            for label, task in zip(experiment.labels, tasks, strict=True):
                bar.set_description(f"seed {seed}: {label}, {K} times as long")
                model = experiment.tune("full", base, task, seed, longer=K)
                alone.append(written_scores(model, task, experiment.plan.test)["main"])
                bar.update()
            scores[LONGER].append(alone)
    rows = []
    for name, runs in scores.items():
        change = [spread([f[text] for f in forgot[name]], 2) if name in forgot else "" for text in before]
        each = [spread(column, 2) for column in zip(*runs, strict=True)]
        rows.append([name, *each, spread([mean(r) for r in runs], 3), *change])
    headers = ["trained on the mixture", *experiment.labels, "mean", *(f"{text} loss, change" for text in before)]
    run.say(table(rows, headers))
    run.results["ablations"] = {"scores": scores, "held_out_loss_change": forgot}


def report(run: Run, results: Sequence[Measured], prefix: str = "") -> None:
    """The figures, each with the band where it is expected; with a prefix those that no core run has."""
    band = None if run.settings.standard else Band(0.0, 1.0, 0, "a share")

    def key(name: str) -> str:
        return prefix + name.replace(",", "").replace(" ", "_").replace("-", "_")

    for name in MODELS:
        run.report(f"{key(name)}_score", [r.score(name) for r in results], "mean score", band)
    if len(results[0].forgotten) > 1:
        run.report(key("forgotten"), [mean(r.forgotten) for r in results], "points of score")
    for text in results[0].held_out["base"]:
        for name in ("mixture", "mixture, last layer"):
            change = [r.held_out[name][text] - r.held_out["base"][text] for r in results]
            run.report(f"{key(name)}_{text}_loss_change", change, "nats a token")
    for metric in ("acc", "calibration"):
        values = [mean([scores[metric] for scores in r.scenarios["mixture"].values()]) for r in results]
        run.report(key(f"mixture_{metric}"), values, "share right" if metric == "acc" else "calibration error", band)


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-4``; gives the exit code."""
    return runner.main(4, __doc__, lesson, argv, takes=runner.PAIRS)


if __name__ == "__main__":
    sys.exit(main())
