"""Metrics: the numbers of rouge_score and sacrebleu, kept in a golden file, and what must hold without any library."""

import json
import math
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import metrics
from minigpt.errors import InputError, RunError
from minigpt.metrics import SMOOTHING, accuracy, calibration_error, corpus_bleu, exact_match, rouge, words_13a

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8"))
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def close(ours: object, theirs: object) -> None:
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


# ---------------------------------------------------------------------------------------------- golden values


def test_golden_file_has_what_can_go_wrong() -> None:
    texts = [text for case in GOLDEN["rouge"] for text in (case["prediction"], case["reference"])]
    assert "" in texts
    assert any("\n" in text for text in texts)
    assert any("&amp;" in text for text in texts)
    assert any(not text.isascii() for text in texts)
    apart = [c for c in GOLDEN["rouge"] if abs(c["plain"]["rougeL"][2] - c["plain"]["rougeLsum"][2]) > 0.01]
    assert len(apart) > 20
    assert {c["smooth"] for c in GOLDEN["bleu"]} == set(SMOOTHING)
    assert sum(0 < c["score"] < 100 for c in GOLDEN["bleu"]) > 50
    assert sum(c["score"] == 0 for c in GOLDEN["bleu"]) > 10
    assert max(len(r) for c in GOLDEN["bleu"] for r in c["references"]) > 2


def test_rouge_gives_the_numbers_of_rouge_score() -> None:
    for case in GOLDEN["rouge"]:
        scores = rouge(case["prediction"], case["reference"])
        assert tuple(scores) == KINDS
        for kind in KINDS:
            close(scores[kind], tuple(case["plain"][kind]))


def test_rouge_with_stems_gives_the_numbers_of_rouge_score() -> None:
    stems = 0
    for case in GOLDEN["rouge"]:
        scores = rouge(case["prediction"], case["reference"], stemming=True)
        for kind in KINDS:
            close(scores[kind], tuple(case["stemmed"][kind]))
        stems += case["plain"] != case["stemmed"]
    assert stems > 5


def test_bleu_gives_the_numbers_of_sacrebleu() -> None:
    for case in GOLDEN["bleu"]:
        close(corpus_bleu(case["predictions"], case["references"], case["smooth"]), case["score"])


def test_13a_words_are_those_of_sacrebleu() -> None:
    for case in GOLDEN["words_13a"]:
        assert words_13a(case["text"]) == case["words"]


# ---------------------------------------------------------------------------------------------- ROUGE


@pytest.mark.parametrize(
    ("prediction", "reference", "kind", "expected"),
    [
        ("the the the the", "the cat", "rouge1", (1 / 4, 1 / 2, 1 / 3)),
        ("the the the the", "the cat", "rouge2", (0, 0, 0)),
        ("It costs $3.50, e.g. 1,000 units.", "It costs $3.50, for 1,000 units.", "rouge1", (7 / 9, 7 / 8, 14 / 17)),
        ("a b c d", "b d a c", "rougeL", (1 / 2, 1 / 2, 1 / 2)),
        ("d e f\na b c", "a b c\nd e f", "rougeL", (1 / 2, 1 / 2, 1 / 2)),
        ("d e f\na b c", "a b c\nd e f", "rougeLsum", (1, 1, 1)),
        ("a a\na a", "a", "rougeLsum", (1 / 4, 1, 2 / 5)),
        ("a", "a\na\na", "rougeLsum", (1, 1 / 3, 1 / 2)),  # a word of the prediction answers for one line only
        ("Ärger ohne Ende", "rger Ende", "rouge1", (2 / 3, 1, 4 / 5)),  # letters with accents only separate
        ("", "a", "rougeLsum", (0, 0, 0)),
        ("—", "!", "rouge1", (0, 0, 0)),
    ],
)
def test_rouge_by_hand(prediction: str, reference: str, kind: str, expected: tuple[float, ...]) -> None:
    assert rouge(prediction, reference)[kind] == pytest.approx(expected)


def test_best_of_several_references() -> None:
    scores = rouge("a b c", ["a x y", "c a b", "a b"])
    assert scores["rouge1"] == (1, 1, 1)  # of the second
    assert scores["rouge2"] == pytest.approx((1 / 2, 1, 2 / 3))  # of the third
    assert scores == {
        name: max((rouge("a b c", r)[name] for r in ["c a b", "a b"]), key=lambda s: s.f1) for name in scores
    }


WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@given(WORDS, WORDS)
def test_longest_common_subsequence_by_trying_all(first: list[str], second: list[str]) -> None:
    def has(words: list[str], part: tuple[str, ...]) -> bool:
        rest = iter(words)
        return all(word in rest for word in part)

    longest = max(n for n in range(len(first) + 1) if any(has(second, part) for part in combinations(first, n)))
    score = rouge(" ".join(first), " ".join(second))["rougeL"]
    assert score.precision == (longest / len(first) if first else 0)
    assert score.recall == (longest / len(second) if second else 0)


@given(WORDS, WORDS)
def test_rouge_turned_round_exchanges_precision_and_recall(first: list[str], second: list[str]) -> None:
    one, other = rouge(" ".join(first), " ".join(second)), rouge(" ".join(second), " ".join(first))
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert one[kind].precision == other[kind].recall
        assert one[kind].f1 == pytest.approx(other[kind].f1)


def test_stemming_without_nltk_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._stemmer.cache_clear()
    for name in ("nltk", "nltk.stem", "nltk.stem.porter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match=r"^ROUGE with stemming needs the package nltk: pip install nltk$"):
        rouge("running", "run", stemming=True)
    assert rouge("running", "run")["rouge1"].f1 == 0  # needs nothing


# ---------------------------------------------------------------------------------------------- BLEU


def test_bleu_by_hand() -> None:
    prediction, reference = "the cat sat on the mat", "the cat sat on a mat"
    # matches: the cat sat on mat | the-cat cat-sat sat-on | the-cat-sat cat-sat-on | the-cat-sat-on
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert corpus_bleu([prediction], [[reference]]) == pytest.approx(expected)
    longer = [["the cat sat on a mat in the house"]]
    expected = 100 * math.exp(1 - 9 / 6) * (6 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert corpus_bleu([prediction], longer) == pytest.approx(expected)


def test_smoothing_by_hand() -> None:
    prediction, references = ["a b x d e y"], [["a b c d e z"]]  # 4 of 6, 2 of 5, 0 of 4, 0 of 3
    two = 4 / 6 * 2 / 5
    assert corpus_bleu(prediction, references, "none") == 0
    assert corpus_bleu(prediction, references, "exp") == pytest.approx(100 * (two * (1 / 2 / 4) * (1 / 4 / 3)) ** 0.25)
    assert corpus_bleu(prediction, references, "floor") == pytest.approx(100 * (two * 0.1 / 4 * 0.1 / 3) ** 0.25)
    add = 4 / 6 * 3 / 6 * 1 / 5 * 1 / 4
    assert corpus_bleu(prediction, references, "add-k") == pytest.approx(100 * add**0.25)


def test_nearest_reference_and_of_two_as_near_the_shorter() -> None:
    prediction = "a b c d e f"
    # r = 5 where 5 and 7 are as near: no penalty
    assert corpus_bleu([prediction], [["a b c d e f g", "a b c d e"]]) == pytest.approx(100)
    assert corpus_bleu([prediction], [["a b c d e f g", "a b c"]]) == pytest.approx(100 * math.exp(1 - 7 / 6))


def test_counts_add_up_over_the_corpus_before_dividing() -> None:
    predictions, references = ["a b c d e", "v w x y z"], [["a b c d e"], ["q r s t u"]]
    assert corpus_bleu(predictions, references) == pytest.approx(50)  # 5 of 10, 4 of 8, 3 of 6, 2 of 4
    assert corpus_bleu(predictions[1:], references[1:]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], []), "no predictions"),
        ((["a"], []), "1 predictions cannot be compared with 0"),
        ((["a"], ["a"]), "references of prediction 0 are a str"),
        ((["a", "b"], [["a"], []]), "prediction 1 has no reference"),
        ((["a"], [["a"]], "laplace"), "no smoothing 'laplace'; there are none, floor, add-k, exp"),
    ],
)
def test_impossible_requests_to_bleu(arguments: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        corpus_bleu(*arguments)


def test_rouge_without_a_reference() -> None:
    with pytest.raises(InputError, match="without a reference"):
        rouge("a", [])


# ---------------------------------------------------------------------------------------------- the others


def test_accuracy_and_exact_match() -> None:
    assert accuracy([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75
    assert exact_match([" by the river", "Tom"], [["at sea", "by the river "], ["Anna"]]) == 0.5
    with pytest.raises(InputError, match="2 predictions cannot be compared with 1 right answers"):
        accuracy([1, 2], [1])
    with pytest.raises(InputError, match="no predictions"):
        accuracy([], [])
    with pytest.raises(InputError, match="has no reference"):
        exact_match(["a"], [[]])


def test_calibration_error_by_hand() -> None:
    # bins (0.4, 0.5]: 0.5 confident, none right; (0.8, 0.9]: 0.85 on average, 2 of 4 right
    confidences, right = [0.5, 0.81, 0.85, 0.85, 0.89], [False, True, False, True, False]
    assert calibration_error(confidences, right) == pytest.approx(1 / 5 * 0.5 + 4 / 5 * 0.35)
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([0.0], [True]) == 1
    assert calibration_error([0.3, 0.9], [False, True], bins=1) == pytest.approx(0.1)


def test_an_edge_belongs_to_the_bin_below() -> None:
    # 0.5 shares a bin with 0.41, not with 0.59
    together = calibration_error([0.5, 0.41], [True, False])
    assert together == pytest.approx(abs(1 - 0.91) / 2)
    assert calibration_error([0.5, 0.59], [True, False]) == pytest.approx((0.5 + 0.59) / 2)


def test_sure_of_what_is_right_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.random(20_000)
    assert calibration_error(confidences, rng.random(20_000) < confidences) < 0.03
    assert calibration_error(confidences, rng.random(20_000) < 0.5) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], []), "no predictions"),
        (([0.5], [True, False]), "1 predictions cannot be compared with 2 judgements"),
        (([1.5], [True]), r"a confidence is 1\.5; it must be between 0 and 1"),
        (([math.nan], [True]), "a confidence is nan"),
        (([0.5], [True], 0), "bins is 0; it must be 1 or more"),
    ],
)
def test_impossible_requests_to_calibration(arguments: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        calibration_error(*arguments)
