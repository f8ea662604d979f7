"""From records to arrays of token ids: windows for language modelling, padded batches for the rest.

Targets are already shifted: ``targets[b, t]`` is the token that follows ``ids[b, t]``, and `IGNORED` where
nothing is to be predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from minigpt.data.base import Example, Pair
from minigpt.errors import InputError

IGNORED = -100  # the target that no loss counts, as in PyTorch


class Encoder(Protocol):
    """What this module needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_id(self) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...


def encode_documents(tokenizer: Encoder, documents: Iterable[str]) -> np.ndarray:
    """All documents as one stream of token ids, each followed by the tokenizer's end of text if it has one.

    Returns
    -------
    ndarray
        (tokens,), uint16 where the vocabulary fits, else uint32.

    Raises
    ------
    InputError
        The tokenizer cannot encode a document.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    # An array per document: a list of all ids as Python integers would take ten times the memory.
    parts = [np.array(tokenizer.encode(document) + end, dtype) for document in documents]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def bytes_of(documents: Iterable[str]) -> int:
    """UTF-8 bytes of the documents' text, ends of text not counted.

    With the summed loss of all their tokens in nats, bits per byte are ``loss / (bytes * log(2))``: a figure
    that can be compared between tokenizers, which a loss per token cannot.
    """
    return sum(len(document.encode("utf-8")) for document in documents)


def check_ids(ids: np.ndarray, vocab_size: int, what: str = "token ids") -> None:
    """Make sure that every id is in ``[0, vocab_size)``.

    Raises
    ------
    InputError
        Names the first id that is not, and where it stands.
    """
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        place = int(np.argmax(outside))
        raise InputError(
            f"{what}: id {ids.flat[place]} at position {place} is outside the vocabulary "
            f"(allowed: 0 to {vocab_size - 1})"
        )


class TokenWindows:
    """Random windows of a token stream, for language-model training.

    Nothing is remembered between batches: a batch is a function of the seed and the step, so that a resumed
    run and every rank of a data-parallel one see the same batches without passing any state.

    Parameters
    ----------
    tokens : ndarray
        (n,), any integer type.
    what : str
        What to call the data in messages, e.g. the file's name.
    vocab_size : int, optional
        If given, all ids are checked against it.

    Raises
    ------
    InputError
        An id outside the vocabulary.
    """

    def __init__(self, tokens: np.ndarray, what: str = "the training text", vocab_size: int | None = None):
        if vocab_size is not None:
            check_ids(tokens, vocab_size, what)
        self.tokens = tokens
        self.what = what

    def batch(self, step: int, batch_size: int, block_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows of one training step, drawn uniformly and with replacement.

        Parameters
        ----------
        step, seed : int
            Not negative.
        batch_size, block_size : int
            B and T.

        Returns
        -------
        inputs, targets : ndarray
            (B, T) int64 each; targets are the inputs moved on by one token.

        Raises
        ------
        InputError
            There are fewer than T + 1 tokens.
        """
        starts_allowed = len(self.tokens) - block_size
        if starts_allowed < 1:
            raise InputError(
                f"{self.what} has {len(self.tokens)} tokens, too few for one window: "
                f"block_size={block_size} needs at least {block_size + 1}"
            )
        starts = np.random.default_rng([seed, step]).integers(0, starts_allowed, size=batch_size)  # (B,)
        windows = self.tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def evaluation_windows(
    tokens: np.ndarray, block_size: int, what: str = "the held-out text"
) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint windows in which every token but the first is a target exactly once.

    Parameters
    ----------
    tokens : ndarray
        (n,), any integer type.
    block_size : int
        T.
    what : str
        What to call the data in messages.

    Returns
    -------
    inputs, targets : ndarray
        (N, T) int64 each, ``N = ceil((n - 1) / T)``; the last window is filled up with id 0 and `IGNORED`.

    Raises
    ------
    InputError
        There are fewer than two tokens, hence nothing to predict.
    """
    n_targets = len(tokens) - 1
    if n_targets < 1:
        raise InputError(f"{what} has {len(tokens)} tokens, too few to evaluate on: at least 2 are needed")
    n_windows = -(-n_targets // block_size)
    inputs = np.zeros(n_windows * block_size, np.int64)
    targets = np.full(n_windows * block_size, IGNORED, np.int64)
    inputs[:n_targets] = tokens[:-1]
    targets[:n_targets] = tokens[1:]
    return inputs.reshape(n_windows, block_size), targets.reshape(n_windows, block_size)


def pad_batch(
    sequences: Sequence[Sequence[int]], side: str = "right", pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of unequal length as one array.

    Parameters
    ----------
    sequences : sequence of sequences of int
        B of them.
    side : {"right", "left"}
        Where the padding goes. Generation needs it on the left, so that all rows end at the same place.
    pad_id : int
        The id that fills up.

    Returns
    -------
    ids : ndarray
        (B, T) int64, T the longest length.
    lengths : ndarray
        (B,) int64.

    Raises
    ------
    InputError
        No sequences, or another `side`.
    """
    if side not in ("right", "left"):
        raise InputError(f"side={side!r}: padding goes to the 'right' or the 'left'")
    if not sequences:
        raise InputError("a batch needs at least one sequence")
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)  # (B,)
    ids = np.full((len(sequences), lengths.max()), pad_id, np.int64)  # (B, T)
    for row, sequence in zip(ids, sequences, strict=True):
        if side == "right":
            row[: len(sequence)] = sequence
        else:
            row[len(row) - len(sequence) :] = sequence
    return ids, lengths


def collate_pairs(tokenizer: Encoder, pairs: Sequence[Pair], max_length: int, pad_id: int = 0) -> dict[str, np.ndarray]:
    """Prompt, completion and end of text in one row, with a loss on the completion only.

    Prompt and completion are encoded on their own, so that the model meets the same prompt tokens in training
    as in generation. A row that would be longer than `max_length` loses the beginning of its prompt, and
    `truncated` says so; a completion is never cut. An empty prompt becomes one end-of-text token, which is
    what a new document follows in pre-training.

    Parameters
    ----------
    tokenizer : Encoder
    pairs : sequence of Pair
        B of them.
    max_length : int
        Most tokens a row may have as a model's input. The last target is no input and does not count.
    pad_id : int
        The id that fills up.

    Returns
    -------
    dict
        ``ids`` (B, T) int64, padded on the right; ``targets`` (B, T) int64, already shifted, `IGNORED` on
        prompt and padding; ``lengths`` (B,) int64, tokens of each row; ``truncated`` (B,) bool.

    Raises
    ------
    InputError
        A completion that does not fit beside one token of its prompt, or has no tokens; an empty prompt where
        the tokenizer has no end of text; no pairs.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[list[int]] = []
    targets: list[list[int]] = []
    truncated: list[bool] = []
    for number, pair in enumerate(pairs):
        prompt = tokenizer.encode(pair.prompt) or end
        completion = tokenizer.encode(pair.completion) + end
        room = max_length + 1 - len(completion)  # tokens of the prompt that fit
        if not prompt:
            raise InputError(f"pair {number} of the batch has an empty prompt, and the tokenizer has no end of text")
        if not completion:
            raise InputError(f"pair {number} of the batch has an empty completion")
        if room < 1:
            raise InputError(
                f"pair {number} of the batch: its completion has {len(completion)} tokens, "
                f"end of text included; max_length={max_length} allows as many at most"
            )
        kept = prompt[-room:]
        row = kept + completion
        ids.append(row[:-1])
        targets.append([IGNORED] * (len(kept) - 1) + completion)
        truncated.append(len(kept) < len(prompt))
    padded, lengths = pad_batch(ids, pad_id=pad_id)
    return {
        "ids": padded,
        "targets": pad_batch(targets, pad_id=IGNORED)[0],
        "lengths": lengths,
        "truncated": np.array(truncated),
    }


def collate_labelled(
    tokenizer: Encoder, examples: Sequence[Example], max_length: int, pad_id: int = 0
) -> dict[str, np.ndarray]:
    """Labelled texts as one padded batch.

    A text longer than `max_length` tokens keeps its beginning, and `truncated` says so.

    Parameters
    ----------
    tokenizer : Encoder
    examples : sequence of Example
        B of them.
    max_length : int
    pad_id : int
        The id that fills up.

    Returns
    -------
    dict
        ``ids`` (B, T) int64, padded on the right; ``lengths`` (B,) int64; ``labels`` (B,) int64;
        ``truncated`` (B,) bool.

    Raises
    ------
    InputError
        A text without tokens; no examples.
    """
    encoded: list[list[int]] = []
    for number, example in enumerate(examples):
        encoded.append(tokenizer.encode(example.text))
        if not encoded[-1]:
            raise InputError(f"example {number} of the batch has an empty text")
    ids, lengths = pad_batch([row[:max_length] for row in encoded], pad_id=pad_id)
    return {
        "ids": ids,
        "lengths": lengths,
        "labels": np.array([example.label for example in examples], np.int64),
        "truncated": np.array([len(row) > max_length for row in encoded]),
    }
