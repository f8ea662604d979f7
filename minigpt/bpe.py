"""Byte-pair encoding on plain data: counting pairs, merging them, learning merges, playing them.

`train_merges` and `apply_merges` are written to be read. `train_merges_fast` and `apply_merges_fast` give the same ids
in a fraction of the time and are what the tokenizer uses where they are there.

References
----------
Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword Units (2016), section 3.2.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from tqdm import tqdm

N_BYTES = 256
"""Ids of the single bytes are 0 to 255; merges follow."""

Pair = tuple[int, int]


def count_pairs(sequences: Sequence[Sequence[int]], frequencies: Sequence[int]) -> dict[Pair, int]:
    """Count the pairs of neighbouring ids in a collection of words.

    A pair is two ids that stand next to each other inside one word, in this order: `(left, right)`. Pairs may
    overlap: the word `[7, 7, 7]` has the pair `(7, 7)` twice. The last id of one word and the first id of
    the next are no pair.

    Parameters
    ----------
    sequences : sequence of sequences of int
        The distinct words, each as its ids. A word of one id (or none) has no pair.
    frequencies : sequence of int
        How often each word occurs in the text, as many as there are `sequences`. Every pair of word `i`
        counts `frequencies[i]` times.

    Returns
    -------
    dict
        `(left, right)` -> how often the pair occurs in the text. Pairs that do not occur have no entry.

    Examples
    --------
    >>> count_pairs([[1, 2, 1, 2], [2, 1]], [10, 3])
    {(1, 2): 20, (2, 1): 13}
    """
    ### BEGIN SOLUTION
    counts: dict[Pair, int] = {}
    for ids, frequency in zip(sequences, frequencies, strict=True):
        for pair in pairwise(ids):
            counts[pair] = counts.get(pair, 0) + frequency
    return counts
    ### END SOLUTION


def merge_pair(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace a pair of neighbouring ids by one new id, wherever it stands in a word.

    The word is read from left to right. Where `pair[0]` is directly followed by `pair[1]`, both are replaced
    by `new_id`, and reading goes on behind them: an id is used by one replacement only, so of the
    overlapping pairs in `[7, 7, 7]` the left one is merged. Ids that have just been written are not looked
    at again.

    Parameters
    ----------
    ids : sequence of int
        The word. It is not changed.
    pair : tuple of two int
        `(left, right)`; the two may be equal.
    new_id : int
        The id that stands for the pair.

    Returns
    -------
    list of int
        A new list; equal to `ids` where the pair does not occur.

    Examples
    --------
    >>> merge_pair([5, 1, 2, 1, 2, 1], (1, 2), 256)
    [5, 256, 256, 1]
    >>> merge_pair([7, 7, 7], (7, 7), 256)
    [256, 7]
    """
    ### BEGIN SOLUTION
    merged: list[int] = []
    position = 0
    while position < len(ids):
        if tuple(ids[position : position + 2]) == tuple(pair):
            merged.append(new_id)
            position += 2
        else:
            merged.append(ids[position])
            position += 1
    return merged
    ### END SOLUTION


def train_merges(words: Mapping[bytes, int], n_merges: int, progress: bool = False) -> list[Pair]:
    """Learn merges from a counted vocabulary, by the definition.

    In each round the most frequent pair of the whole text becomes a new token: the first gets the id 256, the
    next 257, and so on. Of pairs that are equally frequent the one with the smallest ids is taken (the
    smaller left id, then the smaller right one); `BpeTrainer` of Hugging Face `tokenizers` has the same rule.

    Parameters
    ----------
    words : mapping from bytes to int
        Each distinct word, as the ids of its bytes (a `bytes` object is a sequence of small ints), with the
        number of times it occurs.
    n_merges : int
        How many merges to learn.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    list of (int, int)
        The merged pairs in order; fewer than `n_merges` if no pair is left.
    """
    sequences: list[Sequence[int]] = list(words)
    frequencies = list(words.values())
    merges: list[Pair] = []
    for _ in tqdm(range(n_merges), desc="merges", unit="", disable=not progress):
        counts = count_pairs(sequences, frequencies)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        sequences = [merge_pair(ids, best, N_BYTES + len(merges)) for ids in sequences]
        merges.append(best)
    return merges


def apply_merges(ids: Sequence[int], merge_ids: Mapping[Pair, int]) -> list[int]:
    """Encode one word, by the definition: always the earliest merge that fits, everywhere, until none fits.

    Parameters
    ----------
    ids : sequence of int
        The word as the ids of its bytes.
    merge_ids : mapping from (int, int) to int
        Merged pair -> id of the new token. Ids rise in the order in which the merges were learnt.

    Returns
    -------
    list of int
        The word's token ids.
    """
    ids = list(ids)
    while True:
        known = [pair for pair in pairwise(ids) if pair in merge_ids]
        if not known:
            return ids
        earliest = min(known, key=merge_ids.__getitem__)
        ids = merge_pair(ids, earliest, merge_ids[earliest])


# ---------------------------------------------------------------------------------------------- fast forms


def train_merges_fast(words: Mapping[bytes, int], n_merges: int, progress: bool = False) -> list[Pair]:
    """Learn the merges of `train_merges`, touching only what each merge changes.

    All words lie in one array, linked to lists, so that a merge is a few vector operations on the places
    where its pair stands. Counts are kept up to date from the neighbours of these places. The most frequent
    pair comes from a heap with lazy deletion: a merge makes counts of old pairs only smaller, so an entry is
    at worst too high, and one that no longer agrees with the count is put back in its place when it is met.

    Parameters
    ----------
    words, n_merges, progress
        As in `train_merges`.

    Returns
    -------
    list of (int, int)
        The same pairs as `train_merges`.
    """
    lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    n = int(lengths.sum())
    ends = np.cumsum(lengths)
    # One place per byte, n of them, and place n, to which both ends of every word point: no token (-1).
    token = np.full(n + 1, -1, dtype=np.int32)
    token[:n] = np.frombuffer(b"".join(words), dtype=np.uint8)
    following = np.arange(1, n + 2)
    following[ends - 1] = n
    previous = np.arange(-1, n)
    previous[ends - lengths] = n
    weight = np.repeat(np.fromiter(words.values(), dtype=np.int64, count=len(words)), lengths)

    # Where each token stands, in rising order. Merges make entries stale; they are dropped when read.
    by_token = np.argsort(token[:n], kind="stable")
    places = np.split(by_token, np.searchsorted(token[by_token], np.arange(1, N_BYTES)))

    has_right = np.flatnonzero(following[:n] < n)
    keys = token[has_right].astype(np.int64) * N_BYTES + token[following[has_right]]
    counts = {divmod(key, N_BYTES): count for key, count in _sum_by(keys, weight[has_right])}
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    with tqdm(total=n_merges, desc="merges", unit="", disable=not progress) as bar:
        while heap and len(merges) < n_merges:
            negative_count, pair = heapq.heappop(heap)
            count = counts[pair]
            if count != -negative_count:
                if count:
                    heapq.heappush(heap, (-count, pair))
                continue
            left, right = pair
            new = N_BYTES + len(merges)

            at = places[left]
            at = places[left] = at[token[at] == left]
            at = at[token[following[at]] == right]
            if left == right:
                at = _every_second(at, following)
            swallowed = following[at]
            after = following[swallowed]
            token[at] = new
            token[swallowed] = -1
            following[at] = after
            previous[after] = at
            places.append(at)

            # What now stands beside the new tokens tells which old pairs are gone. Where two new tokens are
            # neighbours, the pair between them was (right, left); it is counted from its left side only.
            for beside, change in _sum_by(token[after], weight[at]):
                if beside != -1:
                    counts[right, left if beside == new else beside] -= change
                    counts[new, beside] = change
                    heapq.heappush(heap, (-change, (new, beside)))
            for beside, change in _sum_by(token[previous[at]], weight[at]):
                if beside not in (-1, new):
                    counts[beside, left] -= change
                    counts[beside, new] = change
                    heapq.heappush(heap, (-change, (beside, new)))
            del counts[pair]
            merges.append(pair)
            bar.update()
    return merges


def _sum_by(keys: np.ndarray, values: np.ndarray) -> Iterable[tuple[int, int]]:
    """(key, sum of its values) for each distinct key; integers throughout, so sums are exact."""
    if not keys.size:
        return ()
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return zip(keys[first].tolist(), np.add.reduceat(values[order], first).tolist(), strict=True)


def _every_second(at: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Of places that directly follow each other (overlapping pairs), every second one, from the first on."""
    number = np.arange(at.size)
    starts_run = np.concatenate(([True], following[at[:-1]] != at[1:]))
    run_start = np.maximum.accumulate(np.where(starts_run, number, 0))
    return at[(number - run_start) % 2 == 0]


def apply_merges_fast(ids: Sequence[int], merge_ids: Mapping[Pair, int]) -> list[int]:
    """Encode one word as `apply_merges` does, in O(n log n) for n bytes.

    The word is a linked list, and the merges that fit somewhere in it wait in a heap.

    A merge that a new token makes possible was learnt after that token, so taking one place at a time, the
    earliest merge first and from left to right, ends where merging everywhere at once ends.
    """
    n = len(ids)
    # One more place, without a token (-1): both ends of the word point to it, as index n and as index -1, and
    # no merge contains -1. A place that was merged away gets -1 too, which makes its heap entries invalid.
    token = [*ids, -1]
    following = list(range(1, n + 2))
    previous = list(range(-1, n))
    merge_of = merge_ids.get
    heap = [(new, place) for place, pair in enumerate(pairwise(ids)) if (new := merge_of(pair)) is not None]
    heapq.heapify(heap)
    while heap:
        new, place = heapq.heappop(heap)
        swallowed = following[place]
        if merge_of((token[place], token[swallowed])) != new:
            continue  # a neighbour was merged since
        after = following[swallowed]
        token[place] = new
        token[swallowed] = -1
        following[place] = after
        previous[after] = place
        before = previous[place]
        if (found := merge_of((new, token[after]))) is not None:
            heapq.heappush(heap, (found, place))
        if (found := merge_of((token[before], new))) is not None:
            heapq.heappush(heap, (found, before))
    return [found for found in token if found != -1]
