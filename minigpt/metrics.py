"""What a prediction is worth beside its reference: exact match, ROUGE, BLEU, and how well confidence is calibrated.

ROUGE and BLEU are the ones that papers report: the same numbers as `rouge_score` 0.1.2 and `sacrebleu` 2.6 give. Their
papers leave open how text becomes words and which of several equal alignments counts, and scores differ by points
between implementations that chose otherwise. Loss and perplexity are in `minigpt.evaluation`, choosing among given
answers in `minigpt.multiple_choice`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence, Sized
from functools import cache
from typing import NamedTuple

import numpy as np

from minigpt.errors import InputError, RunError

# ---------------------------------------------------------------------------------------------- right or wrong


def accuracy(predicted: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    """Share of predictions that are right.

    Parameters
    ----------
    predicted, right : sequences of n labels, or of anything else that can be equal

    Raises
    ------
    ValueError
        If there are none, or not equally many.
    """
    _require_equally_many(predicted, right, "right answers")
    return sum(p == r for p, r in zip(predicted, right, strict=True)) / len(predicted)


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of predictions that are equal to one of their references, blanks at the ends left out.

    Parameters
    ----------
    predictions : sequence of n str
    references : sequence of n sequences of str
        All answers that count as right.

    Raises
    ------
    ValueError
        If there are none, or not equally many, or a prediction has no reference.
    """
    _check_references(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return sum(p.strip() in {r.strip() for r in accepted} for p, accepted in pairs) / len(predictions)


def calibration_error(
    confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, bins: int = 10
) -> float:
    """Expected calibration error: how far confidence is from the share of right answers, on average.

    The answers are sorted into bins of equal width by their confidence; each bin counts by its number of answers n_b,
    ECE = Σ_b n_b/n · |share right in b − mean confidence in b|. A model that says 0.8 and is right eight times out of
    ten has 0.

    Parameters
    ----------
    confidences : sequence of n float in [0, 1]
        Probability that the model gave to its own answer.
    right : sequence of n bool
    bins : int
        Bin b holds confidences in (b/bins, (b + 1)/bins]; the first one 0 too.

    Returns
    -------
    error : float in [0, 1]

    Raises
    ------
    ValueError
        If there are none, not equally many, one is outside of [0, 1], or there is no bin.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger (2017), "On Calibration of Modern Neural Networks", arXiv:1706.04599, equation 3.
    """
    _require_equally_many(confidences, right, "judgements")
    if bins < 1:
        raise InputError(f"bins is {bins}; it must be 1 or more")
    values = np.asarray(confidences, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        odd = values[~((values >= 0) & (values <= 1))][0]
        raise InputError(f"a confidence is {odd}; it must be between 0 and 1")
    gaps = np.asarray(right, dtype=np.float64) - values
    place = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(place, gaps, bins)).sum() / len(values))


# ---------------------------------------------------------------------------------------------- ROUGE


class Rouge(NamedTuple):
    """One ROUGE score; a tuple (precision, recall, f1)."""

    precision: float
    recall: float
    f1: float


_WORD = re.compile("[a-z0-9]+")


def rouge(prediction: str, reference: str | Sequence[str], stemming: bool = False) -> dict[str, Rouge]:
    """ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum of a text.

    A word is a run of the letters a–z and digits, after lowering; everything else only separates, letters with accents
    too. ROUGE-n compares n-grams, each counted at most as often as the other text has it. ROUGE-L takes the longest
    common subsequence of words. ROUGE-Lsum takes the texts line by line: a word of a reference line counts if it is
    part of the longest common subsequence with any line of the prediction, and no word more often than both texts
    have it.

    Parameters
    ----------
    prediction : str
    reference : str or sequence of str
        Of several, each score is the one with the best F1 (the first such).
    stemming : bool
        Compare stems (Porter's algorithm with NLTK's extensions) of words longer than three letters. Needs `nltk`.

    Returns
    -------
    scores : dict of str to (precision, recall, f1)
        ``"rouge1"``, ``"rouge2"``, ``"rougeL"``, ``"rougeLsum"``. A text without words scores 0.

    Raises
    ------
    ValueError
        If there is no reference.
    RunError
        If `stemming` is asked for without `nltk`.

    References
    ----------
    Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries"; the numbers are those of `rouge_score`.

    Examples
    --------
    >>> round(rouge("The cat sat on the mat.", "The cat is on the mat.")["rouge2"].f1, 3)
    0.6
    """
    if not isinstance(reference, str):
        if not reference:
            raise InputError("a prediction without a reference cannot be scored")
        each = [rouge(prediction, one, stemming) for one in reference]
        return {name: max((scores[name] for scores in each), key=lambda score: score.f1) for name in each[0]}
    stem = _stemmer() if stemming else None
    ours, theirs = _words(prediction, stem), _words(reference, stem)
    our_lines, their_lines = ([_words(line, stem) for line in text.split("\n")] for text in (prediction, reference))
    common = _common_lengths(theirs, ours)[-1][-1]
    return {
        "rouge1": _overlap(_ngrams(ours, 1), _ngrams(theirs, 1)),
        "rouge2": _overlap(_ngrams(ours, 2), _ngrams(theirs, 2)),
        "rougeL": _rouge(common, len(ours), len(theirs)),
        "rougeLsum": _rouge(_common_by_line(our_lines, their_lines), len(ours), len(theirs)),
    }


def _words(text: str, stem: Callable[[str], str] | None) -> list[str]:
    words = _WORD.findall(text.lower())
    return [stem(word) if len(word) > 3 else word for word in words] if stem is not None else words


@cache
def _stemmer() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError:
        raise RunError("ROUGE with stemming needs the package nltk: pip install nltk") from None
    return cache(PorterStemmer().stem)


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _overlap(ours: Counter[tuple[str, ...]], theirs: Counter[tuple[str, ...]]) -> Rouge:
    return _rouge((ours & theirs).total(), ours.total(), theirs.total())


def _rouge(common: int, ours: int, theirs: int) -> Rouge:
    if not common:
        return Rouge(0.0, 0.0, 0.0)
    precision, recall = common / ours, common / theirs
    return Rouge(precision, recall, 2 * precision * recall / (precision + recall))


def _common_lengths(reference: Sequence[str], prediction: Sequence[str]) -> list[list[int]]:
    # table[i][j]: length of the longest common subsequence of the first i and the first j words
    table = [[0] * (len(prediction) + 1)]
    for word in reference:
        above, row = table[-1], [0]
        for j, other in enumerate(prediction):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    return table


def _common_places(reference: Sequence[str], prediction: Sequence[str]) -> set[int]:
    # Places in the reference of one longest common subsequence. Of several, ROUGE takes the one that a walk from the
    # end finds which prefers to leave out a word of the reference: the union over lines depends on it.
    table = _common_lengths(reference, prediction)
    i, j = len(reference), len(prediction)
    places = set()
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif table[i - 1][j] >= table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return places


def _common_by_line(prediction: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> int:
    # Words of the reference's lines in the union of their common subsequences with the prediction's lines. A word of
    # the prediction answers for one of them only, as in the ROUGE-1.5.5 program; the paper leaves that out.
    left = Counter(word for line in prediction for word in line)
    common = 0
    for line in reference:
        places = set().union(*(_common_places(line, other) for other in prediction))
        for place in sorted(places):
            if left[line[place]] > 0:
                left[line[place]] -= 1
                common += 1
    return common


# ---------------------------------------------------------------------------------------------- BLEU

ORDER = 4
SMOOTHING: dict[str, float] = {"none": 0.0, "floor": 0.1, "add-k": 1.0, "exp": 0.0}
"""What is done about n-gram orders without a match, with the value that goes with it (Chen, Cherry 2014, W14-3346)."""


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], smooth: str = "exp") -> float:
    """BLEU of a corpus: the geometric mean of its 1- to 4-gram precisions, times a penalty for being short.

    BLEU = 100 · BP · exp(¼ Σ_n log p_n). p_n = matches/n-grams, both summed over all predictions before dividing; an
    n-gram matches at most as often as it stands in the one reference that has it most often. BP = exp(1 − r/c) if the
    predictions' c words are fewer than r, the sum of the nearest references' lengths (of two as near, the shorter).
    Words are mteval-v13a's (`words_13a`), with their case.

    Parameters
    ----------
    predictions : sequence of n str
    references : sequence of n sequences of str
        One or more for each prediction.
    smooth : {"exp", "floor", "add-k", "none"}
        For an order n without a match. ``exp``: the k-th such order counts 1/2ᵏ matches; ``floor``: 0.1 matches;
        ``add-k``: all orders from 2 on get 1 more match and 1 more n-gram; ``none``: the score is 0.

    Returns
    -------
    score : float in [0, 100]
        0 if no word matches, and if no prediction is long enough to have a 4-gram.

    Raises
    ------
    ValueError
        If there are no predictions, not equally many references, one has none, or there is no such smoothing.

    References
    ----------
    Papineni, Roukos, Ward, Zhu (2002), "BLEU"; Post (2018), "A Call for Clarity in Reporting BLEU Scores",
    arXiv:1804.08771: the numbers are those of `sacrebleu`.

    Examples
    --------
    >>> round(corpus_bleu(["The cat sat on the mat."], [["The cat is on the mat."]]), 2)
    48.89
    """
    _check_references(predictions, references)
    if smooth not in SMOOTHING:
        raise InputError(f"no smoothing {smooth!r}; there are {', '.join(SMOOTHING)}")
    matches, totals = [0] * ORDER, [0] * ORDER
    length, reference_length = 0, 0
    for prediction, accepted in zip(predictions, references, strict=True):
        ours, theirs = words_13a(prediction), [words_13a(one) for one in accepted]
        length += len(ours)
        reference_length += min((abs(len(one) - len(ours)), len(one)) for one in theirs)[1]
        for n in range(ORDER):
            mine, most = _ngrams(ours, n + 1), Counter[tuple[str, ...]]()
            for one in theirs:
                most |= _ngrams(one, n + 1)
            matches[n] += (mine & most).total()
            totals[n] += mine.total()
    if not any(matches):
        return 0.0
    precisions = _precisions(matches, totals, smooth)
    if min(precisions) == 0.0:
        return 0.0
    brevity = min(1.0, math.exp(1 - reference_length / length))
    return 100.0 * brevity * math.exp(sum(math.log(p) for p in precisions) / ORDER)


def _precisions(matches: Sequence[int], totals: Sequence[int], smooth: str) -> list[float]:
    value, without = SMOOTHING[smooth], 0
    precisions = []
    for n, (match, total) in enumerate(zip(matches, totals, strict=True), start=1):
        more = value if smooth == "add-k" and n > 1 else 0.0
        found, of = match + more, total + more
        if found == 0.0 and smooth == "exp":
            without += 1
            found = 0.5**without
        elif found == 0.0 and smooth == "floor":
            found = value
        precisions.append(found / of if of else 0.0)
    return precisions


# ASCII signs that stand alone: all but the apostrophe, comma, hyphen and full stop.
_SIGN = re.compile(r"([ -&(-+/:-@\[-`{-~])")
_STOP_AFTER_NO_DIGIT = re.compile(r"([^0-9])([.,])")
_STOP_BEFORE_NO_DIGIT = re.compile(r"([.,])([^0-9])")
_HYPHEN_AFTER_DIGIT = re.compile("([0-9])-")
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}


def words_13a(text: str) -> list[str]:
    """The words of a text as mteval-v13a, the tokenizer of the WMT translation tasks, cuts it.

    Parameters
    ----------
    text : str

    Returns
    -------
    words : list of str

    Examples
    --------
    >>> words_13a("It costs $3.50, e.g. 5-6 &amp; more.")
    ['It', 'costs', '$', '3.50', ',', 'e', '.', 'g', '.', '5', '-', '6', '&', 'more', '.']
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES.items():  # in this order: "&amp;lt;" becomes "<"
        text = text.replace(entity, sign)
    text = _SIGN.sub(r" \1 ", f" {text} ")
    text = _STOP_AFTER_NO_DIGIT.sub(r"\1 \2 ", text)
    text = _STOP_BEFORE_NO_DIGIT.sub(r" \1 \2", text)
    return _HYPHEN_AFTER_DIGIT.sub(r"\1 - ", text).split()


# ---------------------------------------------------------------------------------------------- checks


def _require_equally_many(predictions: Sized, others: Sized, what: str) -> None:
    if len(predictions) != len(others):
        raise InputError(f"{len(predictions)} predictions cannot be compared with {len(others)} {what}")
    if not len(predictions):
        raise InputError("there are no predictions to score")


def _check_references(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    _require_equally_many(predictions, references, "lists of references")
    for number, accepted in enumerate(references):
        if isinstance(accepted, str):
            raise InputError(f"references of prediction {number} are a str; give a list of strings for each prediction")
        if not accepted:
            raise InputError(f"prediction {number} has no reference")
