"""Multiple choice: against each choice scored on its own from the model's logits, and models made by hand."""

from typing import Any

import numpy as np
import pytest

from minigpt import GPT, GPTConfig, Tokenizer, multiple_choice
from minigpt.errors import InputError
from minigpt.multiple_choice import Question, encode_request, lettered, loglikelihoods, score_choices
from tests.seams import SEAMS

TEXT = "the cat sat on the mat and the dog saw the cat. Question: who sat? Answer: the cat. Anna sees a ship. " * 20
TOKENIZER = Tokenizer.train(TEXT, vocab_size=300)


def small(n_positions: int = 64, seed: int = 0) -> GPT:
    config = GPTConfig(vocab_size=TOKENIZER.vocab_size, n_positions=n_positions, n_embd=16, n_layer=2, n_head=2)
    model = GPT(config, seed=seed, dtype="float64")
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = p.data + 0.2 * rng.standard_normal(p.data.shape)
    return model


def one_by_one(model: GPT, context: list[int], continuation: list[int]) -> float:
    """Σ log softmax, token after token, from the logits of the whole text so far."""
    room = model.config.n_positions - model.n_virtual
    total = 0.0
    row = [*context, *continuation][-(room + 1) :]
    for place in range(len(row) - len(continuation), len(row)):
        logits = model.logits([row[:place]])[0, -1]
        total += logits[row[place]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    return float(total)


REQUESTS = [
    ("Question: who sat?\nAnswer:", " the cat"),
    ("Question: who sat?\nAnswer:", " a ship and the dog"),
    ("Question: who sat?\nAnswer: ", "the cat"),
    ("", " the cat"),
    ("the", " cat"),
    ("the cat sat on the mat " * 6, " and the dog saw"),  # loses its beginning
]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("seam", ["plain", *SEAMS])
def test_loglikelihoods_of_batches_are_those_of_each_alone(batch_size: int, seam: str) -> None:
    model = small(40)
    if seam != "plain":
        SEAMS[seam](model, 3)
    found = loglikelihoods(model, TOKENIZER, REQUESTS, batch_size)
    expected = [one_by_one(model, *encode_request(TOKENIZER, *request)) for request in REQUESTS]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert len(set(expected)) == len(expected) - 1  # a blank at the end of the context goes to the continuation


def test_context_that_does_not_fit_keeps_its_end() -> None:
    model = small(8)
    context, continuation = encode_request(TOKENIZER, *REQUESTS[-1])
    assert len(context) > 20
    room = 8 + 1 - len(continuation)
    cut = loglikelihoods(model, TOKENIZER, [REQUESTS[-1]])[0]
    assert cut == pytest.approx(one_by_one(model, context[-room:], continuation), rel=1e-10)
    assert cut != pytest.approx(one_by_one(model, context[-room + 1 :], continuation), rel=1e-6)


def test_requests_are_cut_into_tokens_as_one_text() -> None:
    whole = TOKENIZER.encode("Answer: the cat")
    context, continuation = encode_request(TOKENIZER, "Answer:", " the cat")
    assert context + continuation == whole
    assert context == TOKENIZER.encode("Answer:")
    assert encode_request(TOKENIZER, "Answer: ", "the cat") == (context, continuation)
    assert (
        encode_request(TOKENIZER, "Answer:\n ", "the cat")[1] == TOKENIZER.encode("Answer:\n the cat")[len(context) :]
    )
    end = [TOKENIZER.eos_token_id]
    assert encode_request(TOKENIZER, "", " the cat") == (end, TOKENIZER.encode(" the cat"))
    assert encode_request(TOKENIZER, "  ", "the") == (end, TOKENIZER.encode("  the"))


# ---------------------------------------------------------------------------------------------- the metrics


class ByCharacter:
    """A tokenizer of bytes."""

    vocab_size = 257
    eos_token_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))


class Table:
    """A model made by hand: the log-probability of a byte after another, whatever came before."""

    n_virtual = 0

    def __init__(self, rewards: dict[tuple[str, str], float], default: float = -3.0) -> None:
        model = GPT(GPTConfig(vocab_size=257, n_positions=64, n_embd=2, n_layer=1, n_head=1), dtype="float64")
        self.backend, self.config = model.backend, model.config
        self.scores = np.full((257, 257), default)
        for (before, after), value in rewards.items():
            self.scores[256 if before == "" else ord(before), ord(after)] = value

    def loglikelihood(self, context: str, choice: str) -> float:
        ids = [256, *context.encode("utf-8")] if not context else list(context.encode("utf-8"))
        ids += choice.encode("utf-8")
        logits = self.scores - np.log(np.exp(self.scores).sum(1, keepdims=True))
        n = len(choice.encode("utf-8"))
        return float(sum(logits[a, b] for a, b in zip(ids[-n - 1 : -1], ids[-n:], strict=True)))


class Head:
    """Hidden states that are the scores themselves: the output head is the identity."""

    def __init__(self) -> None:
        self.data, self.trainable = np.eye(257), False


def handmade(rewards: dict[tuple[str, str], float]) -> Any:
    table: Any = Table(rewards)
    model = GPT(GPTConfig(vocab_size=257, n_positions=64, n_embd=2, n_layer=1, n_head=1), dtype="float64")
    table.wte = Head()
    table.context = model.context
    table.forward = lambda ids, ctx: (table.scores[ids], None)
    return table


def test_what_the_metrics_differ_in() -> None:
    # every byte costs about the same: the short answer is likelier, the long ones win per character or per byte
    model = handmade({(" ", "z"): -2.0})
    question = Question("Q:", ("z", "abcd", "ééé"), 1)
    scores = score_choices(model, ByCharacter(), [question])
    lls = [model.loglikelihood("Q:", f" {choice}") for choice in question.choices]
    np.testing.assert_allclose(scores.loglikelihoods[0], lls)
    assert np.argmax(lls) == 0
    assert scores.acc == 0
    by_character = [ll / n for ll, n in zip(lls, (1, 4, 3), strict=True)]
    by_byte = [ll / n for ll, n in zip(lls, (1, 4, 6), strict=True)]
    assert np.argmax(by_character) == 1
    assert scores.acc_norm == 1
    assert np.argmax(by_byte) == 2
    assert scores.acc_bytes == 0
    assert scores.acc_mutual_info is None


def test_mutual_information_takes_away_what_a_choice_has_without_context(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {("Q:", " yes"): -2.0, ("Q:", " no"): -1.0, ("", " yes"): -9.0, ("", " no"): -1.5}
    asked = []

    def known(model: Any, tokenizer: Any, requests: list[tuple[str, str]], batch_size: int) -> np.ndarray:
        asked.extend(requests)
        return np.array([table[request] for request in requests])

    monkeypatch.setattr(multiple_choice, "loglikelihoods", known)
    questions = [Question("Q:", ("yes", "no"), 0), Question("Q:", ("no", "yes"), 1)]
    scores = score_choices(None, ByCharacter(), questions, mutual_info=True)
    assert (scores.acc, scores.acc_mutual_info) == (0.0, 1.0)
    assert len(asked) == 4 + 2  # each choice once without context
    monkeypatch.setitem(table, ("Q:", "\nyes"), -1.0)
    monkeypatch.setitem(table, ("Q:", "\nno"), -2.0)
    assert score_choices(None, ByCharacter(), questions, delimiter="\n").acc == 1


class TwoByTwo:
    """A tokenizer of pairs of letters, counted from the beginning of a text."""

    eos_token_id = 0

    def encode(self, text: str) -> list[str]:
        return [text[i : i + 2] for i in range(0, len(text), 2)]


def test_continuation_is_what_goes_beyond_the_tokens_of_the_context() -> None:
    tokenizer: Any = TwoByTwo()
    assert encode_request(tokenizer, "abc", "defg") == (["ab", "c"], ["ef", "g"])
    assert encode_request(tokenizer, "ab", "cdef") == (["ab"], ["cd", "ef"])


def test_mutual_information_of_a_real_model_by_brute_force() -> None:
    model = small(seed=3)
    rng = np.random.default_rng(0)
    choices = ("the cat", "a ship", "the dog and the cat", "Anna")
    questions = [
        Question(f"the dog saw {w}. Question:", choices, int(rng.integers(4))) for w in ("it", "Anna", "a mat", "me")
    ]
    scores = score_choices(model, TOKENIZER, questions, mutual_info=True, batch_size=3)
    table = np.array(
        [[one_by_one(model, *encode_request(TOKENIZER, q.context, f" {c}")) for c in choices] for q in questions]
    )
    prior = np.array([one_by_one(model, *encode_request(TOKENIZER, "", f" {c}")) for c in choices])
    answers = np.array([q.answer for q in questions])
    np.testing.assert_allclose(np.array(scores.loglikelihoods), table, rtol=1e-10)
    assert scores.acc == (table.argmax(1) == answers).mean()
    assert scores.acc_norm == ((table / [len(c) for c in choices]).argmax(1) == answers).mean()
    assert scores.acc_mutual_info == ((table - prior).argmax(1) == answers).mean()
    np.testing.assert_array_equal(scores.right, table.argmax(1) == answers)
    softmax = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    np.testing.assert_allclose(scores.confidences, softmax.max(1), rtol=1e-8)


def test_ties_go_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        multiple_choice, "loglikelihoods", lambda model, tokenizer, requests, size: np.zeros(len(requests))
    )
    for answer, right in ((0, 1.0), (1, 0.0)):
        question = Question("Q:", ("ab", "cd"), answer)
        scores = score_choices(handmade({}), ByCharacter(), [question], mutual_info=True)
        assert scores.acc == scores.acc_norm == scores.acc_bytes == scores.acc_mutual_info == right


def test_questions_with_different_numbers_of_choices() -> None:
    model = handmade({(" ", "x"): 2.0})
    questions = [Question("Q:", ("a", "x"), 1), Question("Q:", ("x", "a", "b"), 0), Question("Q:", ("a", "b", "x"), 0)]
    scores = score_choices(model, ByCharacter(), questions)
    assert [len(ll) for ll in scores.loglikelihoods] == [2, 3, 3]
    assert scores.right.tolist() == [True, True, False]
    assert scores.acc == pytest.approx(2 / 3)


# ---------------------------------------------------------------------------------------------- MMLU's form


def test_lettered_prompt() -> None:
    shots = [Question(" What barks?\n", ("a cat", "a dog"), 1), Question("What swims?", ("a fish", "a stone"), 0)]
    question = lettered(Question("What sits?", ("a cat", "a sea", "a log"), 2), shots, "Questions about things.")
    assert question.context == (
        "Questions about things.\n\n"
        "What barks?\nA. a cat\nB. a dog\nAnswer: B\n\n"
        "What swims?\nA. a fish\nB. a stone\nAnswer: A\n\n"
        "What sits?\nA. a cat\nB. a sea\nC. a log\nAnswer:"
    )
    assert question.choices == ("A", "B", "C")
    assert question.answer == 2
    assert lettered(shots[1]).context == "What swims?\nA. a fish\nB. a stone\nAnswer:"


# ---------------------------------------------------------------------------------------------- impossible requests


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Q", ("a",), 0), "needs two choices or more"),
        (("Q", ("a", ""), 0), "a choice is empty"),
        (("Q", ("a", "b"), 2), "the answer is 2; it must be one of the choices 0 to 1"),
        (("Q", ("a", "b"), -1), "the answer is -1"),
    ],
)
def test_impossible_questions(arguments: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Question(*arguments)


def test_impossible_requests() -> None:
    model = small(4)
    with pytest.raises(InputError, match="there are no questions"):
        score_choices(model, TOKENIZER, [])
    with pytest.raises(
        InputError, match=r"has \d+ tokens; it must have at least 1, and fit into the model's context of 4"
    ):
        loglikelihoods(model, TOKENIZER, [("Q", " the dog saw the cat and a ship. Anna sees it.")])
    with pytest.raises(InputError, match="the continuation '' has 0 tokens"):
        loglikelihoods(model, TOKENIZER, [("Q", "")])
    with pytest.raises(InputError, match="batch_size is 0"):
        loglikelihoods(model, TOKENIZER, [("Q", " a")], batch_size=0)
    with pytest.raises(InputError, match="27 choices are more than there are letters, 26"):
        lettered(Question("Q", tuple(map(str, range(27))), 0))
