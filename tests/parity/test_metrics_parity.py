"""ROUGE and BLEU equal to those of `rouge_score` and `sacrebleu`, on thousands of random texts.

The golden file of the default tests (tests/golden/metrics.json) is made here, by the libraries and not by our code. To
make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_metrics_parity.py -k golden
"""

import json
import os
import random
import re
from importlib.metadata import version
from pathlib import Path

import pytest

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
sacrebleu = pytest.importorskip("sacrebleu")

from minigpt.metrics import SMOOTHING, corpus_bleu, rouge, words_13a  # noqa: E402

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "metrics.json"
KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
SCORERS = {stemming: rouge_scorer.RougeScorer(KINDS, use_stemmer=stemming) for stemming in (False, True)}
TOKENIZER = sacrebleu.metrics.BLEU().tokenizer

# What the two libraries' ways from text to words can be told apart by.
WORDS = re.split(
    r"[ \n]",
    """the a cat Cat CATS sat on mat is it's It e.g. U.S. running runners ran quickly happily dying skies news ponies
1 12 3.50 1,000 $5 5-6 10% 3.x x.3 well-known a_b re-do &amp; &lt; &gt; &quot; &amp;lt; &apos; <skipped> ... -- - . ,
; ! "ok" (so) [it] {x} ~ ` ^ @ # / \\ | + = naïve Ärger straße İstanbul ΑΣ café 日本 語 ١٢ ½ Ⅻ 😀 \u212a \u2028 \x1c""",
)
INFLECTED = re.split(
    r"[ \n]",
    """run runs running runner quick quickly happy happily happiness die dying dies sky skies news fly flies flying
generous generously relate related relational conditional national hope hoping hopped agreed plastered caresses ponies
ties feed sing motoring size sized falling failing filing crying cries enjoyment innings outing early only succeed""",
)
SEPARATORS = [" "] * 12 + ["", "\n", "  ", "-\n", "\t", "\r\n", "\u3000", "\x85"]
SIGNS = "aAbB09.,-'& \n<>;\"é"


def random_text(rng: random.Random, vocabulary: list[str]) -> str:
    if rng.random() < 0.15:
        return "".join(rng.choice(SIGNS) for _ in range(rng.randrange(12)))
    if rng.random() < 0.05:
        return "".join(chr(rng.choice([rng.randrange(0x20, 0x300), rng.randrange(0x20, 0xD800)])) for _ in range(8))
    n = rng.choice([0, 1, 2, 3, 5, 8, 13, 21])
    return "".join(rng.choice(vocabulary) + rng.choice(SEPARATORS) for _ in range(n))


def related(rng: random.Random, text: str, vocabulary: list[str]) -> str:
    """A text with much in common with the first, so that long n-grams match too."""
    if rng.random() < 0.2:
        return random_text(rng, vocabulary)
    words = text.split(" ")
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(words) + 1)
        what = rng.random()
        if what < 0.4:
            words.insert(place, rng.choice(vocabulary))
        elif what < 0.7:
            words[place : place + 1] = []
        else:
            words[place:], words[:place] = words[:place], words[place:]
    return " ".join(words)


def some_words(rng: random.Random) -> list[str]:
    words = rng.choice([WORDS, WORDS, INFLECTED])
    return rng.sample(words, rng.choice([2, 4, 8, len(words)]))


def random_pairs(seed: int, n: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    pairs = []
    for _ in range(n):
        vocabulary = some_words(rng)
        prediction = random_text(rng, vocabulary)
        pairs.append((prediction, related(rng, prediction, vocabulary)))
    return pairs


def random_corpus(rng: random.Random) -> tuple[list[str], list[list[str]]]:
    predictions, references = [], []
    for _ in range(rng.choice([1, 1, 2, 5])):
        vocabulary = some_words(rng)
        predictions.append(random_text(rng, vocabulary))
        references.append([related(rng, predictions[-1], vocabulary) for _ in range(rng.choice([1, 1, 2, 3, 4]))])
    return predictions, references


def their_rouge(prediction: str, reference: str, stemming: bool) -> dict[str, tuple[float, float, float]]:
    scores = SCORERS[stemming].score(reference, prediction)
    return {kind: (float(s.precision), float(s.recall), float(s.fmeasure)) for kind, s in scores.items()}


def their_bleu(predictions: list[str], references: list[list[str]], smooth: str) -> float:
    most = max(map(len, references))
    streams = [[accepted[i] if i < len(accepted) else None for accepted in references] for i in range(most)]
    return sacrebleu.corpus_bleu(predictions, streams, smooth_method=smooth, force=True).score


def close(ours: object, theirs: object, what: object) -> None:
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12), what


@pytest.mark.parametrize("stemming", [False, True])
def test_rouge_on_random_texts(stemming: bool) -> None:
    between = 0
    for prediction, reference in random_pairs(1 + stemming, 4000):
        ours, theirs = rouge(prediction, reference, stemming), their_rouge(prediction, reference, stemming)
        for kind in KINDS:
            close(ours[kind], theirs[kind], (prediction, reference, kind))
        between += 0 < theirs["rouge2"][2] < 1
    assert between > 500


def inflected(seed: int, n: int) -> list[tuple[str, str]]:
    """Forms of the same few words."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choice(INFLECTED) for _ in range(rng.randrange(12))) for _ in range(2 * n)]
    return list(zip(texts[:n], texts[n:], strict=True))


def test_rouge_with_stems_on_forms_of_the_same_words() -> None:
    differ = 0
    for prediction, reference in inflected(11, 2000):
        ours, theirs = rouge(prediction, reference, True), their_rouge(prediction, reference, True)
        for kind in KINDS:
            close(ours[kind], theirs[kind], (prediction, reference, kind))
        differ += theirs != their_rouge(prediction, reference, False)
    assert differ > 300


def short_lines(seed: int, n: int) -> list[tuple[str, str]]:
    """Few words and many lines: many subsequences are equally long, and which one is taken shows in the union."""
    rng, pairs = random.Random(seed), []
    for _ in range(n):
        prediction, reference = (
            "\n".join(" ".join(rng.choice("abc") for _ in range(rng.randrange(8))) for _ in range(rng.randrange(1, 5)))
            for _ in range(2)
        )
        pairs.append((prediction, reference))
    return pairs


def test_rouge_lsum_on_many_short_lines() -> None:
    differ = 0
    for prediction, reference in short_lines(3, 4000):
        ours, theirs = rouge(prediction, reference), their_rouge(prediction, reference, False)
        close(ours["rougeLsum"], theirs["rougeLsum"], (prediction, reference))
        differ += theirs["rougeL"] != theirs["rougeLsum"]
    assert differ > 1500


def test_rouge_with_several_references() -> None:
    rng = random.Random(4)
    for _ in range(500):
        predictions, references = random_corpus(rng)
        for prediction, accepted in zip(predictions, references, strict=True):
            ours, theirs = rouge(prediction, accepted), SCORERS[False].score_multi(accepted, prediction)
            for kind in KINDS:
                close(ours[kind], tuple(map(float, theirs[kind])), (prediction, accepted, kind))


@pytest.mark.parametrize("smooth", SMOOTHING)
def test_bleu_on_random_corpora(smooth: str) -> None:
    rng, between = random.Random(5), 0
    for _ in range(3000):
        predictions, references = random_corpus(rng)
        theirs = their_bleu(predictions, references, smooth)
        close(corpus_bleu(predictions, references, smooth), theirs, (predictions, references, smooth))
        between += 0 < theirs < 99
    assert between > 200


def test_smoothing_values_are_the_defaults() -> None:
    theirs = sacrebleu.metrics.BLEU.SMOOTH_DEFAULTS
    assert {name: value or 0.0 for name, value in theirs.items()} == SMOOTHING


def test_13a_on_random_texts() -> None:
    for prediction, reference in random_pairs(6, 4000):
        for text in (prediction, reference):
            assert words_13a(text) == TOKENIZER(text.rstrip()).split(), repr(text)


# ---------------------------------------------------------------------------------------------- the golden file


def make_golden() -> dict[str, object]:
    by_hand = [
        ("The cat sat on the mat.", "The cat is on the mat."),
        ("", "hello"),
        ("a", "a"),
        ("the the the the", "the cat"),
        ("It costs $3.50, e.g. 1,000 units.", "It costs $3.50, for 1,000 units."),
        ("running runners ran quickly", "run runner runs quick"),
        ("d e f\na b c", "a b c\nd e f"),
        ("", ""),
    ]
    rng = random.Random(8)
    corpora = [random_corpus(rng) for _ in range(50)]
    corpora.append(([p for p, _ in by_hand], [[r] for _, r in by_hand]))
    texts = [text for pair in random_pairs(9, 100) for text in pair]
    return {
        "made by": {name: version(name) for name in ("rouge_score", "sacrebleu", "nltk")},
        "rouge": [
            {
                "prediction": prediction,
                "reference": reference,
                "plain": their_rouge(prediction, reference, False),
                "stemmed": their_rouge(prediction, reference, True),
            }
            for prediction, reference in [*by_hand, *random_pairs(7, 150), *short_lines(10, 50), *inflected(12, 40)]
        ],
        "bleu": [
            {"predictions": p, "references": r, "smooth": smooth, "score": their_bleu(p, r, smooth)}
            for p, r in corpora
            for smooth in SMOOTHING
        ],
        "words_13a": [{"text": text, "words": TOKENIZER(text.rstrip()).split()} for text in texts],
    }


def a_case_a_line(golden: dict[str, object]) -> str:
    parts = [
        f"{json.dumps(name)}: "
        + ("[\n" + ",\n".join(map(json.dumps, v)) + "\n]" if isinstance(v, list) else json.dumps(v))
        for name, v in golden.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def test_golden_file_is_what_the_libraries_say() -> None:
    made = json.loads(json.dumps(make_golden()))
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        GOLDEN.write_text(a_case_a_line(made), encoding="utf-8")
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert kept | {"made by": None} == made | {"made by": None}
