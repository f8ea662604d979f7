"""What the methods are trained and measured on: labelled texts and prompt/completion pairs, by name.

A task has batches to train on, batches to validate on and a score on its test split, whatever its kind, so that a
lesson loops over tasks as it loops over methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from lessons.common.classifier import Classification
from minigpt import GPT, Tokenizer
from minigpt.data import (
    SPLITS,
    DataSet,
    Example,
    Pair,
    collate_labelled,
    collate_pairs,
    files,
    pad_batch,
    pydocs,
    tinyworld,
)
from minigpt.errors import InputError
from minigpt.evaluation import evaluate_batches
from minigpt.metrics import exact_match
from minigpt.objectives import Batch, LanguageModelling, Objective, rows

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class _Task:
    # What both kinds of tasks share: their splits as padded batches.

    data: DataSet[Any]
    tokenizer: Tokenizer
    max_length: int

    @property
    def name(self) -> str:
        """Of the data."""
        return self.data.name

    @cached_property
    def _encoded(self) -> dict[str, Batch]:
        return {}

    def collate(self, split: str) -> Batch:
        raise NotImplementedError

    def encoded(self, split: str) -> Batch:
        """A whole split as one padded batch, made when it is first asked for."""
        if split not in self._encoded:
            whole = self.collate(split)
            whole.pop("truncated")
            self._encoded[split] = whole
        return self._encoded[split]

    def limited(self, n: int) -> Self:
        """The same task with its first n training records only."""
        return replace(self, data=replace(self.data, train=_first(self.data, n)))

    def batches(self, batch_size: int, seed: int = 0) -> Callable[[int], Batch]:
        """The training batch of a step: epochs over the training records, each in an order of its own."""
        return epochs(self.encoded("train"), batch_size, seed)

    def validation(self, limit: int | None = None) -> list[Batch]:
        """Batches of the validation split."""
        return in_batches(self.encoded("validation"), limit)

    def describe(self) -> str:
        """One line: how many records there are to learn from and to judge by."""
        train, validation, test = (len(self.data.split(split)) for split in SPLITS)
        return f"{self.name}: {train:,} records to train on, {validation:,} to validate on, {test:,} to test on"


@dataclass(frozen=True)
class LabelTask(_Task):
    """Texts with labels, for a classifier.

    Attributes
    ----------
    data : DataSet of Example
    tokenizer : Tokenizer
    max_length : int
        Tokens of a text; the rest is left out.

    Raises
    ------
    ValueError
        If the training labels are fewer than two.
    """

    data: DataSet[Example]
    tokenizer: Tokenizer
    max_length: int = 128

    def __post_init__(self) -> None:
        found = {example.label for example in self.data.train}
        if len(found) < 2:
            names = [self.data.label_names[label] for label in found]
            raise InputError(f"{self.name}: all training texts have the label {names}; at least two are needed")

    @property
    def n_labels(self) -> int:
        """Number of different labels."""
        return len(self.data.label_names)

    @property
    def objective(self) -> Objective:
        """What training minimises."""
        return Classification()

    def describe(self) -> str:
        """As for every task; and what guessing the commonest label reaches."""
        labels = [example.label for example in self.data.test]
        counts = np.bincount(labels, minlength=self.n_labels)
        name, share = self.data.label_names[int(counts.argmax())], counts.max() / len(labels)
        return f"{super().describe()}; always guessing {name!r} is right in {share:.0%} of the test"

    def collate(self, split: str) -> Batch:
        """A whole split: `ids`, `lengths`, `labels`, `truncated`."""
        return collate_labelled(self.tokenizer, self.data.split(split), self.max_length)

    def score(self, model: Any, split: str = "test", limit: int | None = None) -> dict[str, float]:
        """``accuracy`` and ``loss`` (nats a text) of a classifier."""
        right, loss, n = 0, 0.0, 0
        to_numpy = model.backend.to_numpy
        for batch in in_batches(self.encoded(split), limit):
            scores = to_numpy(model.logits(batch["ids"], batch["lengths"])).astype(np.float64)
            labels = batch["labels"]
            shifted = scores - scores.max(-1, keepdims=True)
            logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            right += int((scores.argmax(-1) == labels).sum())
            loss -= float(logprobs[np.arange(len(labels)), labels].sum())
            n += len(labels)
        return {"accuracy": right / n, "loss": loss / n}


@dataclass(frozen=True)
class PairTask(_Task):
    """Prompts and completions, for a language model; only the completion is scored.

    Attributes
    ----------
    data : DataSet of Pair
    tokenizer : Tokenizer
    max_length : int
        Tokens of a row; a longer prompt loses its beginning.
    """

    data: DataSet[Pair]
    tokenizer: Tokenizer
    max_length: int = 192

    n_labels = None

    @property
    def objective(self) -> Objective:
        """What training minimises."""
        return LanguageModelling()

    def collate(self, split: str) -> Batch:
        """A whole split: `ids`, `targets`, `lengths`, `truncated`."""
        return collate_pairs(self.tokenizer, self.data.split(split), self.max_length)

    def score(self, model: Any, split: str = "test", limit: int | None = None) -> dict[str, float]:
        """``accuracy`` (exact match of the greedy completion with a reference), ``loss`` and ``perplexity`` a token."""
        loss, _ = evaluate_batches(model, in_batches(self.encoded(split), limit))
        pairs = self.data.split(split)[:limit]
        written = self.complete(model, [pair.prompt for pair in pairs], self.longest(split))
        right = exact_match(written, [list(answers(pair)) for pair in pairs])
        return {"accuracy": right, "loss": loss, "perplexity": math.exp(loss) if loss < 709 else math.inf}

    def longest(self, split: str) -> int:
        """Most tokens of a completion in the split, end of text included."""
        return int((self.encoded(split)["targets"] != -100).sum(1).max())

    def complete(self, model: GPT, prompts: Sequence[str], max_new_tokens: int, **sampling: Any) -> list[str]:
        """What the model writes after each prompt, up to its end of text; greedy unless `sampling` says otherwise.

        A prompt too long for `max_length` or the model's context loses its beginning, as in training.
        """
        end = self.tokenizer.eos_token_id
        context = min(model.config.n_positions - model.n_virtual, self.max_length + 1)
        room = context - max_new_tokens
        if room < 1:
            raise InputError(f"{max_new_tokens} new tokens leave no room for a prompt in a context of {context}")
        encoded = [(self.tokenizer.encode(prompt) or [end])[-room:] for prompt in prompts]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        written = [""] * len(encoded)
        sampling = {"temperature": 0.0, **sampling}
        for start in range(0, len(order), EVALUATION_BATCH):
            part = order[start : start + EVALUATION_BATCH]
            ids, lengths = pad_batch([encoded[i] for i in part], "left")
            out = model.generate(ids, max_new_tokens, eos_token_id=end, lengths=lengths, **sampling)
            for i, row in zip(part, out[:, ids.shape[1] :].tolist(), strict=True):
                written[i] = self.tokenizer.decode(row[: row.index(end)] if end in row else row)
        return written


Task = LabelTask | PairTask


class TrainingData(Protocol):
    """What `fine_tune` asks of a task: batches to train on and to validate on, and what is minimised."""

    @property
    def objective(self) -> Objective: ...

    def batches(self, batch_size: int, seed: int = 0) -> Callable[[int], Batch]: ...

    def validation(self, limit: int | None = None) -> list[Batch]: ...


def answers(pair: Pair) -> set[str]:
    """All completions that count as right."""
    return {text.strip() for text in (pair.completion, *pair.references)}


def epochs(whole: Batch, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """Batches over all rows again and again, a pure function of the step.

    Every epoch has a random order of its own; the rows of a batch are cut to the longest of them.

    Parameters
    ----------
    whole : dict with `lengths` (n,), and arrays of n rows
    batch_size : int
        At most n are taken.
    seed : int
    """
    n = rows(whole)
    size = min(batch_size, n)
    a_pass = n // size

    def batch(step: int) -> Batch:
        epoch, place = divmod(step, a_pass)
        order = np.random.default_rng([seed, epoch]).permutation(n)
        return cut(whole, order[place * size : (place + 1) * size])

    return batch


def in_batches(whole: Batch, limit: int | None = None, batch_size: int = EVALUATION_BATCH) -> list[Batch]:
    """The first `limit` rows in batches of similar length, so that little is padding."""
    order = np.argsort(whole["lengths"][:limit], kind="stable")
    return [cut(whole, order[i : i + batch_size]) for i in range(0, len(order), batch_size)]


def cut(whole: Batch, chosen: np.ndarray) -> Batch:
    """Some rows, no wider than the longest of them."""
    width = int(whole["lengths"][chosen].max())
    return {
        name: np.ascontiguousarray(array[chosen, :width]) if array.ndim == 2 else array[chosen]
        for name, array in whole.items()
    }


def _first(data: DataSet[Any], n: int) -> list[Any]:
    if not 1 <= n <= len(data.train):
        raise InputError(f"{data.name} has {len(data.train)} training records; {n} were asked for")
    return data.train[:n]


# ---------------------------------------------------------------------------------------------- by name

LABELLED: dict[str, Callable[[int], DataSet[Example]]] = {
    "sentiment": lambda n: tinyworld.sentiment(n),
    "sentiment-target": lambda n: tinyworld.sentiment(n, domain="target"),
    "topic": lambda n: tinyworld.topic(n),
    "pydocs-topics": lambda n: pydocs.topics(),
    "movie-reviews": lambda n: mixed(files.load_labelled(files.find("movie_reviews.csv"), 0.1, 0.1)),
}
PAIRS: dict[str, Callable[[int], DataSet[Pair]]] = {
    "questions": lambda n: tinyworld.questions(n),
    "rewriting": lambda n: tinyworld.rewriting(n),
    "translation": lambda n: tinyworld.translation(n),
    "addition": lambda n: tinyworld.addition(n),
    "cards": lambda n: tinyworld.cards(n),
    "sentiment-pairs": lambda n: tinyworld.as_pairs(tinyworld.sentiment(n)),
    "topic-pairs": lambda n: tinyworld.as_pairs(tinyworld.topic(n)),
    "summaries": lambda n: pydocs.summaries(),
    "continuations": lambda n: best_continuations(n),
}
"""The course's tasks; a function of the number of training records. Adding one is one entry here."""


CONTINUATIONS = "tinyworld.continuations"


def best_continuations(n: int) -> DataSet[Pair]:
    """Beginnings of stories, each with the best of its continuations; `tinyworld.true_reward` judges any other."""
    ranked = tinyworld.preferences(n)

    def pairs(split: str) -> list[Pair]:
        return [Pair(r.prompt, max(zip(r.rewards, r.responses, strict=True))[1]) for r in ranked.split(split)]

    train, validation, test = map(pairs, SPLITS)
    return DataSet(CONTINUATIONS, train, validation, test, provenance=ranked.provenance)


def load_task(name: str, tokenizer: Tokenizer, n: int = 2000) -> Task:
    """A task by name, or of the user's own file: a CSV (`text,label`) or JSONL (`prompt,completion`).

    Parameters
    ----------
    name : str
        One of `LABELLED` and `PAIRS`, or a path.
    tokenizer : Tokenizer
    n : int
        Training records; of real data at most as many as there are.

    Raises
    ------
    ValueError
        If there is no such task, or the file cannot be used.
    """
    if name in LABELLED:
        return LabelTask(_at_most(LABELLED[name](n), n), tokenizer)
    if name in PAIRS:
        return PairTask(_at_most(PAIRS[name](n), n), tokenizer)
    if Path(name).exists() or Path(name).suffix:
        return own_task(name, tokenizer)
    raise InputError(f"no task {name!r}; there are {', '.join([*LABELLED, *PAIRS])}, and files (.csv, .jsonl)")


def own_task(path: str, tokenizer: Tokenizer) -> Task:
    """The user's own labelled texts or pairs; held-out shares of a fifth and a tenth.

    Raises
    ------
    ValueError
        If it is no such file, or holds too little.
    """
    if Path(path).suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(f"{path}: a task is a .csv file (text,label) or a .jsonl file (prompt,completion)")
    data = files.load_labelled(path, 0.1, 0.2) if path.lower().endswith(".csv") else files.load_pairs(path, 0.1, 0.2)
    empty = [split for split in ("train", "validation", "test") if not data.split(split)]
    if empty:
        raise InputError(f"{path} has too few records: none for its {' and '.join(empty)} split")
    data = mixed(data)
    return LabelTask(data, tokenizer) if data.label_names else PairTask(data, tokenizer)  # type: ignore[arg-type]


def mixed(data: DataSet[Any]) -> DataSet[Any]:
    """The records of every split in a random order, always the same one: a file is often sorted by its labels, and the
    first records of a split have to stand for all of it."""

    def shuffled(records: list[Any]) -> list[Any]:
        return [records[i] for i in np.random.default_rng(len(records)).permutation(len(records))]

    train, validation, test = (shuffled(data.split(split)) for split in SPLITS)
    return replace(data, train=train, validation=validation, test=test)


def _at_most(data: DataSet[Any], n: int) -> DataSet[Any]:
    return replace(data, train=data.train[:n])


def require_labels(task: Task) -> LabelTask:
    """The task, if it is one of labelled texts.

    Raises
    ------
    ValueError
    """
    if not isinstance(task, LabelTask):
        raise InputError(f"{task.name} has prompts and completions; this lesson needs labelled texts (CSV: text,label)")
    return task


def require_pairs(task: Task) -> PairTask:
    """The task, if it is one of prompts and completions.

    Raises
    ------
    ValueError
    """
    if not isinstance(task, PairTask):
        raise InputError(f"{task.name} has labels; this lesson needs pairs (JSONL: prompt,completion)")
    return task
