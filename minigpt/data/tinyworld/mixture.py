"""The text that base models are pre-trained on, and labelled texts written as prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigpt.data.base import DataSet, Example, Pair, split_of
from minigpt.data.tinyworld.chance import TEST, VALIDATION, Chance, data_set
from minigpt.data.tinyworld.games import sum_pair
from minigpt.data.tinyworld.reviews import CLOSINGS, review
from minigpt.data.tinyworld.sentences import rewriting_pair
from minigpt.data.tinyworld.storybook import question, tell
from minigpt.data.tinyworld.topics import LABELS as TOPICS
from minigpt.data.tinyworld.topics import activity_text
from minigpt.errors import InputError

SHARES = {  # of a hundred documents
    "story": 60,
    "review": 15,
    "activity": 8,
    "questions": 9,
    "rewriting": 5,
    "addition": 3,
}


def _story(chance: Chance) -> tuple[str, str]:
    story = tell(chance)
    return story.key, story.text


def _review(chance: Chance) -> tuple[str, str]:
    """A review without its label; one in four goes on with a sentence that lets the verdict be guessed."""
    label = chance.below(2)
    key, text = review(chance, label)
    return key, f"{text} {chance.pick(CLOSINGS[label])}" if chance.happens(0.25) else text


def _activity(chance: Chance) -> tuple[str, str]:
    return activity_text(chance, chance.below(len(TOPICS)))


def _shots(make: Callable[[Chance], tuple[str, Pair]], least: int, most: int) -> Callable[[Chance], tuple[str, str]]:
    """Several solved tasks of one kind with a blank line between them, all from one split."""

    def document(chance: Chance) -> tuple[str, str]:
        key, pair = make(chance)
        split = split_of(key, VALIDATION, TEST)
        solved = [pair.prompt + pair.completion]
        count = chance.between(least, most)
        while len(solved) < count:
            next_key, pair = make(chance)
            if split_of(next_key, VALIDATION, TEST) == split:
                solved.append(pair.prompt + pair.completion)
        return key, "\n\n".join(solved)

    return document


_KINDS: dict[str, Callable[[Chance], tuple[str, str]]] = {
    "story": _story,
    "review": _review,
    "activity": _activity,
    "questions": _shots(question, 1, 2),
    "rewriting": _shots(rewriting_pair, 2, 4),
    "addition": _shots(lambda chance: sum_pair(chance, digits=1), 4, 8),
}


def corpus(n_documents: int, seed: int = 0, held_out: int = 500) -> DataSet[str]:
    """The pre-training text of the general domain.

    In: stories, reviews (unlabelled), texts about activities (unlabelled), and, solved, one to several a
    document, questions on stories, rewriting, and addition of one-digit numbers. Only from each task's own
    split: what a task tests on is in no training document. Out: the target domain, the labels of sentiment
    and topic, addition of longer numbers, preferences, and every trace of the dialect and of cards.

    Parameters
    ----------
    n_documents, held_out : int
        Number of training documents, and of validation and of test documents.
    """
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]

    def make(attempt: int) -> tuple[str, str]:
        chance = Chance("corpus", seed, attempt)
        return _KINDS[chance.pick(kinds)](chance)

    return data_set("corpus", make, n_documents, held_out, {"seed": seed, "shares": SHARES})


def as_pairs(data: DataSet[Example], question: str | None = None) -> DataSet[Pair]:
    """Labelled texts as prompts ("…\\nQuestion: …\\nAnswer:") with the name of the label as completion.

    Parameters
    ----------
    data : DataSet of Example
        Its `label_names` become the completions.
    question : str, optional
        By default the one that tinyworld's labelled tasks bring along.

    Raises
    ------
    InputError
        If there are no label names, or no question is given and the data has none.
    """
    asked = question or data.provenance.get("question")
    if not data.label_names:
        raise InputError(f"{data.name} has no label names to answer with")
    if not asked:
        raise InputError(f"{data.name} brings no question along; give question=…")

    def pair(example: Any) -> Pair:
        answer = f" {data.label_names[example.label]}"
        return Pair(f"{example.text}\nQuestion: {asked}\nAnswer:", answer, (answer,))

    return DataSet(
        name=data.name,
        train=[pair(e) for e in data.train],
        validation=[pair(e) for e in data.validation],
        test=[pair(e) for e in data.test],
        provenance={**data.provenance, "question": asked},
        ceiling=data.ceiling,
    )
