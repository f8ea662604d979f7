"""How well a model predicts text: loss per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigpt.data.tokens import Encoder, bytes_of, encode_documents, evaluation_windows
from minigpt.errors import InputError, RunError
from minigpt.objectives import Batch, LanguageModelling


@dataclass(frozen=True)
class TextScore:
    """How well a text is predicted.

    Attributes
    ----------
    loss : float
        Nats a token.
    tokens : int
        Tokens scored.
    bytes : int
        UTF-8 bytes of the text.
    """

    loss: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many equally likely tokens the model is in doubt, on average."""
        return math.exp(self.loss) if self.loss < 709 else math.inf  # where float64 ends

    @property
    def bits_per_byte(self) -> float:
        """Bits to encode one byte of the text: comparable between tokenizers, as a loss per token is not."""
        return self.loss * self.tokens / (self.bytes * math.log(2))


def text_batches(
    tokens: np.ndarray,
    block_size: int,
    batch_size: int,
    limit: int | None = None,
    what: str = "the held-out text",
) -> list[Batch]:
    """Disjoint windows over a token stream, as batches for `LanguageModelling`.

    Parameters
    ----------
    tokens : (n,) integers
    block_size, batch_size : int
        T and B.
    limit : int, optional
        At most this many windows, spread evenly over the text; all of them by default.
    what : str
        What to call the text in error messages.

    Returns
    -------
    batches : list of dict with `ids` and `targets`, (B, T) each

    Raises
    ------
    ValueError
        If there are fewer than two tokens, or a size is not 1 or more.
    """
    for name, size in (("block_size", block_size), ("batch_size", batch_size), ("limit", limit)):
        if size is not None and size < 1:
            raise InputError(f"{name} is {size}; it must be 1 or more")
    ids, targets = evaluation_windows(tokens, block_size, what)
    if limit is not None and limit < len(ids):
        chosen = np.linspace(0, len(ids) - 1, limit).astype(int)
        ids, targets = ids[chosen], targets[chosen]
    return [
        {"ids": ids[i : i + batch_size], "targets": targets[i : i + batch_size]} for i in range(0, len(ids), batch_size)
    ]


def evaluate_batches(model: Any, batches: Sequence[Batch]) -> tuple[float, int]:
    """Mean loss over all scored targets of these batches, and their number.

    Raises
    ------
    ValueError
        If nothing is scored.
    RunError
        If the loss is not finite.
    """
    objective = LanguageModelling()
    total_loss: Any = 0.0
    count = 0
    with np.errstate(all="ignore"):  # an overflow shows in the loss
        for batch in batches:
            total = objective.total(batch)
            if total:
                share, _ = objective.forward(model, batch, total, model.context())
                total_loss += share * total
                count += int(total)
    if not count:
        raise InputError("no target to score: all are -100")
    (loss,) = model.backend.read(total_loss)
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss}: with these weights the model's numbers overflow")
    return loss / count, count


def evaluate_text(
    model: Any,
    tokenizer: Encoder,
    documents: Sequence[str],
    block_size: int | None = None,
    batch_size: int = 16,
) -> TextScore:
    """Score documents, each followed by the tokenizer's end of text, in disjoint windows.

    Parameters
    ----------
    model : GPT
    tokenizer
        With ``encode``, ``vocab_size`` and ``eos_token_id``.
    documents : sequence of str
    block_size : int, optional
        Length of the windows; the model's context by default.
    batch_size : int

    Returns
    -------
    score : TextScore

    Raises
    ------
    ValueError
        If there are fewer than two tokens, one is outside the model's vocabulary, or a window does not fit.
    RunError
        If the loss is not finite.
    """
    tokens = encode_documents(tokenizer, documents)
    room = model.config.n_positions - model.n_virtual
    if block_size is not None and block_size > room:
        raise InputError(f"a block_size of {block_size} does not fit into the model's context of {room}")
    batches = text_batches(tokens, room if block_size is None else block_size, batch_size)
    loss, count = evaluate_batches(model, batches)
    return TextScore(loss, count, bytes_of(documents))
