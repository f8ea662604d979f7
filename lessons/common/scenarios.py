"""A task as a scenario: one model, several metrics, with or without solved examples in the prompt.

One figure hides as much as it shows: a model may know an answer and not its form, match no reference word for word and
still be close, or be right and not know when. So each task is looked at from all sides (Liang et al. 2022, "Holistic
Evaluation of Language Models", arXiv:2211.09110).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lessons.common.tasks import PairTask, answers, in_batches
from minigpt import GPT, Tokenizer
from minigpt.data import Pair
from minigpt.errors import InputError
from minigpt.evaluation import evaluate_batches
from minigpt.metrics import calibration_error, corpus_bleu, exact_match, rouge
from minigpt.multiple_choice import Question, score_choices

SEPARATOR = "\n\n"
"""Between solved examples, as in the documents that the bases were trained on."""
MOST_LABELS = 12
"""With more different completions than this, a task is one of writing, and gets a few distractors as choices."""
N_CHOICES = 4


class Metric(NamedTuple):
    """What a metric is called in a picture, and whether more of it is better."""

    title: str
    more_is_better: bool = True


METRICS = {
    "exact_match": Metric("exact match"),
    "rougeL": Metric("ROUGE-L (F1)"),
    "bleu": Metric("BLEU ÷ 100"),
    "acc": Metric("multiple choice, acc"),
    "acc_norm": Metric("multiple choice, acc_norm"),
    "calibration": Metric("calibration error", more_is_better=False),
    "loss": Metric("loss (nats a token)", more_is_better=False),
}
_OWN = {"translation": "bleu", "summaries": "rougeL"}


def main_metric(task: PairTask) -> str:
    """The metric that a task is judged by where there is room for one: exact match, if that can be asked for."""
    return _OWN.get(task.name.rpartition(".")[2], "exact_match")


def measure(model: GPT, task: PairTask, limit: int, first_line: bool = False) -> dict[str, float]:
    """All metrics of a model on the first test pairs of a task.

    Parameters
    ----------
    model : GPT
    task : PairTask
    limit : int
        Test pairs.
    first_line : bool
        Only the first line of what is written counts. A model that is prompted goes on with more text of the same
        kind; nobody has told it where to stop.

    Returns
    -------
    scores : dict of str to float
        Of each of `METRICS`; of `main_metric` again as ``"main"``.
    """
    scores = written_scores(model, task, limit, first_line)
    loss, _ = evaluate_batches(model, in_batches(task.encoded("test"), limit))
    choices = score_choices(model, task.tokenizer, as_questions(task, limit), delimiter=delimiter(task))
    return scores | {
        "acc": choices.acc,
        "acc_norm": choices.acc_norm,
        "calibration": calibration_error(choices.confidences, choices.right),
        "loss": loss,
    }


def written_scores(model: GPT, task: PairTask, limit: int, first_line: bool = False) -> dict[str, float]:
    """What can be said of the greedy completions: ``exact_match``, ``rougeL``, ``bleu``, and which is ``main``."""
    pairs = task.data.test[:limit]
    written = task.complete(model, [pair.prompt for pair in pairs], task.longest("test"))
    if first_line and not any("\n" in pair.completion.strip() for pair in pairs):
        written = [text.strip().partition("\n")[0] for text in written]
    references = [sorted(answers(pair)) for pair in pairs]
    each = [rouge(text, accepted)["rougeL"].f1 for text, accepted in zip(written, references, strict=True)]
    scores = {
        "exact_match": exact_match(written, references),
        "rougeL": math.fsum(each) / len(each),
        "bleu": corpus_bleu(written, references) / 100,
    }
    return scores | {"main": scores[main_metric(task)]}


# ---------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Template:
    """The form that a question is put into; a model learns it together with the task.

    Attributes
    ----------
    before, after : str
        What stands around the question.
    """

    before: str
    after: str

    def fill(self, task: PairTask) -> PairTask:
        """The task with its test prompts in this form instead of the course's."""
        test = [
            replace(pair, prompt=self.before + pair.prompt.removesuffix(PLAIN.after) + self.after)
            for pair in task.data.test
        ]
        return replace(task, data=replace(task.data, test=test))


PLAIN = Template("", "\nAnswer:")
"""The course's own: every prompt of its tasks is in it."""
OTHER = Template("Task: ", "\nResponse:")
"""One that says the same to a reader."""


def few_shot(task: PairTask, k: int, n_positions: int) -> PairTask:
    """The task with solved training pairs before every test prompt, as many of k as fit into the model's context."""
    room = n_positions - task.longest("test")
    shots = task.data.train[:k]
    test = [replace(pair, prompt=few_shot_prompt(task.tokenizer, shots, pair.prompt, room)) for pair in task.data.test]
    return replace(task, data=replace(task.data, test=test), max_length=n_positions)


def few_shot_prompt(tokenizer: Tokenizer, shots: Sequence[Pair], prompt: str, room: int) -> str:
    """The first shots, solved, a blank line after each, and then the prompt.

    Parameters
    ----------
    tokenizer : Tokenizer
    shots : sequence of Pair
    prompt : str
    room : int
        Tokens; shots that would not fit are left out, the later ones first. The prompt stays whole.
    """
    solved = [shot.prompt + shot.completion + SEPARATOR for shot in shots]
    while solved and len(tokenizer.encode("".join(solved) + prompt)) > room:
        solved.pop()
    return "".join(solved) + prompt


def delimiter(task: PairTask) -> str:
    """The blanks that completions of the task begin with."""
    completion = task.data.train[0].completion
    return completion[: len(completion) - len(completion.lstrip())]


def as_questions(task: PairTask, limit: int, seed: int = 0) -> list[Question]:
    """The first test pairs as multiple choice.

    With few different completions all of them are the choices, in alphabetical order. Otherwise the right one stands
    among completions of other test pairs, drawn once for all.

    Parameters
    ----------
    task : PairTask
    limit, seed : int

    Raises
    ------
    ValueError
        If all completions are the same.
    """
    pool = sorted({pair.completion.strip() for pair in task.data.test})
    if len(pool) < 2:
        raise InputError(f"{task.name}: all test completions are {pool[0]!r}; choosing needs two different ones")
    questions = []
    for number, pair in enumerate(task.data.test[:limit]):
        right = pair.completion.strip()
        choices = pool
        if len(pool) > MOST_LABELS:
            rng = np.random.default_rng([seed, number])
            others = [text for text in pool if text not in answers(pair)]
            drawn = rng.choice(len(others), min(N_CHOICES - 1, len(others)), replace=False)
            choices = [right, *(others[i] for i in drawn)]
            choices = [choices[i] for i in rng.permutation(len(choices))]
        questions.append(Question(pair.prompt, tuple(choices), choices.index(right)))
    return questions
