"""A text as tokens, how well it is predicted by counting alone, and how far another text like it would differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minigpt import GPT, Tokenizer
from minigpt.corpora import encode_split
from minigpt.data import DataSet, bytes_of
from minigpt.evaluation import TextScore, evaluate_text


@dataclass(frozen=True)
class Text:
    """A text as tokens, and how well it is predicted without a network.

    `yardsticks` are losses in nats a token on the held-out part, from the plainest to the best.
    """

    name: str
    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray
    documents: list[str]
    n_bytes: int
    yardsticks: dict[str, float]

    def score(self, loss: float) -> TextScore:
        """A loss a token on the held-out text, with what it means a byte."""
        return TextScore(loss, len(self.held_out) - 1, self.n_bytes)


def read_text(data: DataSet[str], vocab_size: int) -> Text:
    """Learn a tokenizer from the training documents, and encode both parts with it."""
    tokenizer = Tokenizer.train(data.train, vocab_size)
    train, held_out = (encode_split(tokenizer, data, split) for split in ("train", "validation"))
    documents = data.validation
    yardsticks = count_yardsticks(train, held_out, tokenizer.vocab_size)
    return Text(data.name, tokenizer, train, held_out, documents, bytes_of(documents), yardsticks)


def count_yardsticks(train: np.ndarray, held_out: np.ndarray, V: int) -> dict[str, float]:
    """Losses of three models that only count: all tokens alike, by frequency, by frequency after the token before.

    Parameters
    ----------
    train, held_out : (n,) integers
    V : int

    Returns
    -------
    losses : dict of str to float
        Nats a token of the held-out text, its first token excepted.
    """
    before, after = held_out[:-1].astype(int), held_out[1:].astype(int)
    frequency = (np.bincount(train, minlength=V) + 1.0) / (len(train) + V)
    pairs = np.bincount(train[:-1].astype(int) * V + train[1:], minlength=V * V).reshape(V, V)
    trust = 10.0  # a pair table believes the frequencies as much as ten occurrences of its own
    likely = (pairs[before, after] + trust * frequency[after]) / (pairs.sum(1)[before] + trust)
    return {
        "guessing (log V)": math.log(V),
        "token frequencies": -float(np.log(frequency[after]).mean()),
        "pairs of tokens": -float(np.log(likely).mean()),
    }


def opening(documents: Sequence[str], n: int = 200) -> str:
    """The first words of the first document, on one line."""
    return " ".join(documents[0][: 4 * n].split())[:n]


def usual_opening(documents: Sequence[str]) -> str:
    """The two words with which most documents begin; empty if none share theirs."""
    counts = Counter(tuple(document.split(maxsplit=2)[:2]) for document in documents)
    words, count = counts.most_common(1)[0]
    return " ".join(words) if count > 1 else ""


def text_error(model: GPT, text: Text, parts: int = 20) -> float:
    """How much bits a byte would differ with another held-out text of the same kind, relative to their value.

    Other versions of Python, NumPy and Matplotlib have other documentation. Its like is estimated by the differences
    between `parts` parts of this one: the standard error of their mean.
    """
    cuts = np.linspace(0, len(text.documents), parts + 1).astype(int)
    chunks = [text.documents[a:b] for a, b in pairwise(cuts)]
    scores = [evaluate_text(model, text.tokenizer, chunk) for chunk in chunks]
    total = sum(s.bytes for s in scores)
    mean = sum(s.bits_per_byte * s.bytes for s in scores) / total
    variance = sum(((s.bits_per_byte - mean) * s.bytes / total) ** 2 for s in scores) * parts / (parts - 1)
    return math.sqrt(variance) / mean
