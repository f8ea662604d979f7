"""Two tasks with hard rules: adding numbers, and saying which of two card hands wins.

Numbers are written digit by digit with spaces ("2 7"): a byte-level BPE then makes each digit one token,
always the same one (" 2"), wherever it stands. Written as "27", a number would be cut by what merges happened
to be learnt.
"""

from __future__ import annotations

import itertools

from minigpt.data.base import DataSet, Pair
from minigpt.data.tinyworld.chance import Chance, data_set
from minigpt.errors import InputError


def spaced(number: int) -> str:
    """``spaced(27)`` is "2 7"."""
    return " ".join(str(number))


def sum_pair(chance: Chance, digits: int) -> tuple[str, Pair]:
    """One sum of two numbers of at most `digits` digits: (key, pair). a + b and b + a have the same key."""
    a, b = chance.below(10**digits), chance.below(10**digits)
    prompt = f"Question: What is {spaced(a)} plus {spaced(b)}?\nAnswer:"
    answer = f" {spaced(a + b)}"
    return f"sum|{min(a, b)}|{max(a, b)}", Pair(prompt, answer, (answer,))


def addition(n: int, digits: int = 2, seed: int = 0, held_out: int = 500) -> DataSet[Pair]:
    """Sums of two numbers from 0 to 10^digits - 1; no sum is in two splits, not even turned round.

    Parameters
    ----------
    n, held_out : int
        Number of training sums, and of validation and of test sums. Of two digits there are 7,972 for
        training, 971 for validation and 1,057 for test.
    digits : int
        1 to 6.
    """
    if isinstance(digits, bool) or not isinstance(digits, int) or not 1 <= digits <= 6:
        raise InputError(f"tinyworld addition: digits must be a whole number from 1 to 6, not {digits!r}")
    return data_set(
        "addition",
        lambda attempt: sum_pair(Chance("addition", digits, seed, attempt), digits),
        n,
        held_out,
        {"digits": digits, "seed": seed},
    )


RANKS = tuple(range(2, 10))
SUITS = ("cups", "coins", "swords", "leaves")
CATEGORIES = ("high card", "pair", "flush", "straight", "three")
Card = tuple[int, str]  # rank, suit


def strength(hand: tuple[Card, ...]) -> tuple[int, ...]:
    """How strong a hand of three cards is; the greater tuple wins.

    Three of a kind beats a straight (three ranks in a row), a straight beats a flush (one suit), a flush
    beats a pair, a pair beats a high card; a straight in one suit counts as a straight. Within a category the
    rank of the pair decides first, then the highest card, then the next. Suits have no order.
    """
    ranks = sorted((rank for rank, _ in hand), reverse=True)
    different = len(set(ranks))
    if different == 1:
        category = "three"
    elif different == 3 and ranks[0] - ranks[2] == 2:
        category = "straight"
    elif len({suit for _, suit in hand}) == 1:
        category = "flush"
    elif different == 2:
        category = "pair"
        if ranks[1] == ranks[2]:
            ranks.reverse()
    else:
        category = "high card"
    return (CATEGORIES.index(category), *ranks)


def _draw_hand(chance: Chance, category: str) -> tuple[Card, ...]:
    """Three different cards of the given category, in random order."""
    if category == "three":
        rank = chance.pick(RANKS)
        return tuple((rank, suit) for suit in chance.some(SUITS, 3))
    while True:
        if category == "pair":
            twice, once = chance.some(RANKS, 2)
            hand = [*((twice, suit) for suit in chance.some(SUITS, 2)), (once, chance.pick(SUITS))]
        else:
            low = chance.pick(RANKS[:-2])
            ranks = [low, low + 1, low + 2] if category == "straight" else chance.some(RANKS, 3)
            suit = chance.pick(SUITS)
            hand = [(rank, suit if category == "flush" else chance.pick(SUITS)) for rank in ranks]
        if CATEGORIES[strength(tuple(hand))[0]] == category:
            return tuple(chance.shuffled(hand))


def _draw_game(chance: Chance) -> tuple[tuple[Card, ...], tuple[Card, ...]]:
    """Two hands from one pack, the winner first; all categories equally frequent, ties drawn again."""
    while True:
        one, two = (_draw_hand(chance, chance.pick(CATEGORIES)) for _ in range(2))
        if not set(one) & set(two) and strength(one) != strength(two):
            return (one, two) if strength(one) > strength(two) else (two, one)


def _game_key(winner: tuple[Card, ...], loser: tuple[Card, ...]) -> str:
    """The same for all orders of the cards and all renamings of the suits."""
    forms = []
    for names in itertools.permutations(range(len(SUITS))):
        name = dict(zip(SUITS, names, strict=True))
        forms.append([sorted((rank, name[suit]) for rank, suit in hand) for hand in (winner, loser)])
    return f"cards|{min(forms)}"


def _written(hand: tuple[Card, ...]) -> str:
    return ", ".join(f"{rank} {suit}" for rank, suit in hand)


def cards(n: int, seed: int = 0, held_out: int = 500) -> DataSet[Pair]:
    """Two hands of three cards, and which of them wins: " first" or " second", half of each.

    Parameters
    ----------
    n, held_out : int
        Number of training games, and of validation and of test games. Two games that differ only in the order
        of hands or cards, or in the names of the suits, are in the same split.
    """
    answers = ("first", "second")

    def make(attempt: int, label: int) -> tuple[str, Pair]:
        winner, loser = _draw_game(Chance("cards", seed, label, attempt))
        first, second = (loser, winner) if label else (winner, loser)
        hands = f"First hand: {_written(first)}\nSecond hand: {_written(second)}"
        prompt = f"{hands}\nQuestion: Which hand wins?\nAnswer:"
        answer = f" {answers[label]}"
        return _game_key(winner, loser), Pair(prompt, answer, (answer,))

    return data_set("cards", make, n, held_out, {"seed": seed}, labels=2)
