"""Multiple choice by log-likelihood: which of the given answers does the model find likeliest after the question?

Nothing is generated, so a model that knows the answer but not the form scores too. The definitions are those of
lm-evaluation-harness, which most published figures come from: a choice is scored as its text after one blank, and how
the log-likelihood is set against the length of the choice is what its metrics differ in.

===============  ==========================================================================
metric           the answer given is the choice with the largest
===============  ==========================================================================
acc              Σ log p(tokens of the choice | context): favours short choices
acc_norm         the same divided by the characters of the choice
acc_bytes        the same divided by its UTF-8 bytes
acc_mutual_info  the same less the log-likelihood without context: what the context adds
===============  ==========================================================================
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigpt.data.tokens import IGNORED, Encoder, pad_batch
from minigpt.errors import InputError
from minigpt.heads import token_logprobs
from minigpt.metrics import accuracy


@dataclass(frozen=True)
class Question:
    """A question with its choices.

    Attributes
    ----------
    context : str
        What stands before the choice: a prompt, solved examples included.
    choices : tuple of str
        Without the blank that stands before each in the text.
    answer : int
        Which one is right.
    """

    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2:
            raise InputError(f"a question needs two choices or more; this one has {list(self.choices)}")
        if not all(self.choices):
            raise InputError(f"a choice is empty: {list(self.choices)}")
        if not 0 <= self.answer < len(self.choices):
            raise InputError(f"the answer is {self.answer}; it must be one of the choices 0 to {len(self.choices) - 1}")


@dataclass(frozen=True)
class ChoiceScores:
    """How a model chose.

    Attributes
    ----------
    acc, acc_norm, acc_bytes : float
    acc_mutual_info : float or None
        None where it was not asked for.
    loglikelihoods : list of (n_choices,) float64
        Of each question's choices, in nats.
    confidences : (n,) float64
        Share of the likeliest choice among all of a question's: what `acc` is to be calibrated against.
    right : (n,) bool
        Where the likeliest choice is the right one.
    """

    acc: float
    acc_norm: float
    acc_bytes: float
    acc_mutual_info: float | None
    loglikelihoods: list[np.ndarray]
    confidences: np.ndarray
    right: np.ndarray


def score_choices(
    model: Any,
    tokenizer: Encoder,
    questions: Sequence[Question],
    mutual_info: bool = False,
    batch_size: int = 64,
    delimiter: str = " ",
) -> ChoiceScores:
    """Let a model choose. Of choices that are equally good, the first one is taken.

    Parameters
    ----------
    model : GPT
        Or one with layers replaced.
    tokenizer
        With ``encode`` and ``eos_token_id``.
    questions : sequence of Question
    mutual_info : bool
        Score the choices without context too.
    batch_size : int
    delimiter : str
        What stands between context and choice.

    Raises
    ------
    ValueError
        If there are no questions, or as `loglikelihoods`.
    """
    if not questions:
        raise InputError("there are no questions to score")
    requests = [(q.context, delimiter + choice) for q in questions for choice in q.choices]
    bounds = np.cumsum([len(q.choices) for q in questions])[:-1]
    lls = np.split(loglikelihoods(model, tokenizer, requests, batch_size), bounds)
    answers = [q.answer for q in questions]

    def acc(scores: list[np.ndarray]) -> float:
        return accuracy([int(s.argmax()) for s in scores], answers)

    def per(length: Callable[[str], int]) -> float:
        return acc([ll / [length(choice) for choice in q.choices] for ll, q in zip(lls, questions, strict=True)])

    information = None
    if mutual_info:
        alone = sorted({choice for _, choice in requests})  # the same choices return in question after question
        prior = dict(zip(alone, loglikelihoods(model, tokenizer, [("", c) for c in alone], batch_size), strict=True))
        without = np.split(np.array([prior[choice] for _, choice in requests]), bounds)
        information = acc([ll - before for ll, before in zip(lls, without, strict=True)])
    return ChoiceScores(
        acc=acc(lls),
        acc_norm=per(len),
        acc_bytes=per(lambda choice: len(choice.encode("utf-8"))),
        acc_mutual_info=information,
        loglikelihoods=lls,
        confidences=np.array([1.0 / np.exp(ll - ll.max()).sum() for ll in lls]),
        right=np.array([int(ll.argmax()) == q.answer for ll, q in zip(lls, questions, strict=True)]),
    )


def loglikelihoods(
    model: Any, tokenizer: Encoder, requests: Sequence[tuple[str, str]], batch_size: int = 64
) -> np.ndarray:
    """log p(continuation | context) of each request, in nats.

    Parameters
    ----------
    model : GPT
    tokenizer
    requests : sequence of (context, continuation)
        An empty context stands for the beginning of a document. A context that is too long loses its beginning.
    batch_size : int

    Returns
    -------
    loglikelihoods : (n,) float64

    Raises
    ------
    ValueError
        If a continuation has no tokens of its own, or more than fit into the model's context.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
    room = model.config.n_positions - model.n_virtual
    ids: list[list[int]] = []
    targets: list[list[int]] = []
    for context, continuation in requests:
        before, after = encode_request(tokenizer, context, continuation)
        if not 1 <= len(after) <= room:
            raise InputError(
                f"the continuation {continuation!r} has {len(after)} tokens; "
                f"it must have at least 1, and fit into the model's context of {room}"
            )
        row = [*before, *after][-(room + 1) :]
        ids.append(row[:-1])
        targets.append([IGNORED] * (len(row) - 1 - len(after)) + after)
    found = np.zeros(len(ids))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # rows of similar length: little padding
    asarray, to_numpy = model.backend.asarray, model.backend.to_numpy
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        ctx = model.context()
        hidden, _ = model.forward(asarray(pad_batch([ids[i] for i in part])[0]), ctx)
        wanted = pad_batch([targets[i] for i in part], pad_id=IGNORED)[0]
        logprobs, _ = token_logprobs(hidden, model.wte, asarray(wanted), ctx)
        found[part] = to_numpy(logprobs).astype(np.float64).sum(1)
    return found


def encode_request(tokenizer: Encoder, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of its continuation, as lm-evaluation-harness cuts them.

    Blanks at the end of the context go to the continuation, where the tokenizer expects them. Both are encoded as one
    text; what goes beyond the tokens of the context alone is the continuation.

    Parameters
    ----------
    tokenizer
    context, continuation : str

    Returns
    -------
    context, continuation : lists of int
        An empty context becomes the end-of-text token, which every document of the pre-training follows.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    if not context:
        if tokenizer.eos_token_id is None:
            raise InputError("an empty context needs a tokenizer that has an end of text")
        return [tokenizer.eos_token_id], tokenizer.encode(continuation)
    before = tokenizer.encode(context)
    return before, tokenizer.encode(context + continuation)[len(before) :]


# ---------------------------------------------------------------------------------------------- MMLU's form

LETTERS = string.ascii_uppercase


def lettered(question: Question, shots: Sequence[Question] = (), description: str = "") -> Question:
    """A question in the form of MMLU: the choices stand in the prompt under letters, and a letter is the answer.

    Parameters
    ----------
    question : Question
        Its context is the question's own text.
    shots : sequence of Question
        Solved ones that come first, with a blank line between them.
    description : str
        What comes before everything, such as "The following are multiple choice questions (with answers) about …".

    Returns
    -------
    lettered : Question
        Its choices are "A", "B", ….

    Raises
    ------
    ValueError
        If there are more choices than letters.

    References
    ----------
    Hendrycks et al. (2021), "Measuring Massive Multitask Language Understanding", arXiv:2009.03300.

    Examples
    --------
    >>> print(lettered(Question("What is 2 plus 2?", ("3", "4"), 1)).context)
    What is 2 plus 2?
    A. 3
    B. 4
    Answer:
    """
    solved = [f"{_listed(shot)} {LETTERS[shot.answer]}" for shot in shots]
    parts = [description] if description else []
    return Question(
        "\n\n".join([*parts, *solved, _listed(question)]), tuple(LETTERS[: len(question.choices)]), question.answer
    )


def _listed(question: Question) -> str:
    if len(question.choices) > len(LETTERS):
        raise InputError(f"{len(question.choices)} choices are more than there are letters, {len(LETTERS)}")
    choices = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([question.context.strip(), *choices, "Answer:"])
