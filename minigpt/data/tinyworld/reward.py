"""Preferences with a known true reward: cheerful, well-formed, varied stories about the people in the prompt.

The reward is defined on any text, whatever a model writes. It is a product of six factors, each in [0, 1]:

==========  ==================================================================================================
cheer       0.1 + 0.9 × mean over sentences: cheerful 1, plain 0.4, gloomy (or "not" cheerful) 0
form        share of neighbouring words and marks that the story grammar can put next to each other
variety     share of different sentences (people taken as equal) × share of different word triples
focus       0.5 + 0.5 × share of the people named who are also in the prompt (0.5 if nobody is named)
length      1 for 12 to 60 words; words / 12 below, 60 / words above
ending      1 after a full stop, question or exclamation mark, else 0.5
==========  ==================================================================================================

What cannot be gained: by repetition (variety), by a heap of cheerful words (form), by a few words or very
many (length), by breaking off (ending), by other people's luck (focus). What can: the reward sees no plot, so
two or three stock sentences about happy people score near 1 after every prompt, also where they contradict
it, and a policy that learns to say only those has given up the variety between texts, which no reward on
single texts sees.
"""

from __future__ import annotations

import functools
import re
from itertools import pairwise

from minigpt.data.base import DataSet, Ranking
from minigpt.data.tinyworld import world
from minigpt.data.tinyworld.chance import Chance, data_set
from minigpt.data.tinyworld.storybook import tell
from minigpt.data.tinyworld.tale import Tale, expand
from minigpt.data.tinyworld.village import CHEERFUL, GLOOMY, PLAIN, begin_meeting
from minigpt.errors import InputError

CHEERFUL_WORDS = frozenset(
    world.listed("""
        laughed, smiled, hugged, thanked, glad, happy, laugh, sang, danced, lovely, merry, warm, proud,
        kind, clapped, cheered, friends, friend, sweet, funny, shone, promised, golden, liked, praised,
        won, good
    """)
)
GLOOMY_WORDS = frozenset(
    world.listed("""
        cried, sighed, alone, angry, sad, dark, bitter, cold, tired, afraid, hard, stale, shouted,
        quarrelled, fell, howled, refused, broke, burned, lost, hungry, late, gone, hurt
    """)
)
NEGATIONS = frozenset(["not", "nobody", "never", "nothing", "no"])
_NAMES = frozenset(person.name for person in world.PEOPLE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_TOKEN = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")
_GRAMMAR_SAMPLE = 3000  # stories: another 3,000 have no neighbours that these lack


def _kinds() -> dict[str, str]:
    """Words that can stand for one another -> the name of their kind."""
    kinds: dict[str, str] = {}
    for kind, words in {
        "<name>": _NAMES,
        "<job>": [p.job for p in world.PEOPLE],
        "<trait>": [p.trait for p in world.PEOPLE],
        "<number>": world.NUMBERS[2:],
        "<thing>": world.THINGS,
        "<look>": world.LOOKS,
        "<food>": world.FOODS,
        "<animal>": world.ANIMALS,
        "<fixture>": world.FIXTURES,
        "<season>": world.SEASONS,
        "<weather>": world.WEATHER,
    }.items():
        kinds |= {word: kind for word in words if word not in kinds}
    return kinds


_KINDS = _kinds()


def _marks(text: str) -> list[str]:
    """The words and punctuation marks, with words of one kind made equal; "." stands before the first."""
    return [".", *(_KINDS.get(token, token) for token in _TOKEN.findall(text))]


@functools.cache
def _grammar() -> frozenset[tuple[str, str]]:
    """All neighbours that occur in a fixed sample of stories."""
    known: set[tuple[str, str]] = set()
    for i in range(_GRAMMAR_SAMPLE):
        known.update(pairwise(_marks(tell(Chance("grammar", i)).text)))
    return frozenset(known)


def tone(sentence: str) -> float:
    """1 for a cheerful sentence, 0 for a gloomy one, 0.4 for a plain one."""
    words = set(re.findall("[a-z]+", sentence.lower()))
    if words & GLOOMY_WORDS:
        return 0.0
    if words & CHEERFUL_WORDS:
        return 0.0 if words & NEGATIONS else 1.0
    return 0.4


def reward_factors(prompt: str, response: str) -> dict[str, float]:
    """The six factors of `true_reward` by name, each in [0, 1]; all zero for a response without a word."""
    words = re.findall("[A-Za-z]+", response)
    if not words:
        return dict.fromkeys(("cheer", "form", "variety", "focus", "length", "ending"), 0.0)
    text = response.strip()
    sentences = _SENTENCE_END.split(text)
    neighbours = list(pairwise(_marks(text)))
    shapes = {tuple(_marks(sentence)) for sentence in sentences}
    triples = list(zip(words, words[1:], words[2:], strict=False))
    named = [word for word in words if word in _NAMES]
    known = _NAMES & set(re.findall("[A-Za-z]+", prompt))
    return {
        "cheer": 0.1 + 0.9 * sum(map(tone, sentences)) / len(sentences),
        "form": sum(pair in _grammar() for pair in neighbours) / len(neighbours),
        "variety": len(shapes) / len(sentences) * (len(set(triples)) / len(triples) if triples else 1.0),
        "focus": 0.5 + 0.5 * (sum(word in known for word in named) / len(named) if named else 0.0),
        "length": min(1.0, len(words) / 12, 60 / len(words)),
        "ending": 1.0 if text[-1] in ".!?" else 0.5,
    }


def true_reward(prompt: str, response: str) -> float:
    """How good a response is, in [0, 1], for any two texts; see the module's docstring for what counts.

    Parameters
    ----------
    prompt : str
        The beginning of a story.
    response : str
        What comes after it, up to and without ``<|endoftext|>``.
    """
    product = 1.0
    for factor in reward_factors(prompt, response).values():
        product *= factor
    return round(product, 4)


def _continuation(chance: Chance, slots: dict[str, str]) -> str:
    """Two to four sentences of mixed tone; three in ten have a fault (repetition, jumbled words, no end)."""
    cheerful = chance.below(4)  # thirds of the sentences that take a tone
    sentences: list[str] = []
    pools = {True: list(CHEERFUL), False: list(GLOOMY)}
    plain = list(PLAIN)
    for _ in range(chance.between(2, 4)):
        pool = plain if chance.happens(0.25) else pools[chance.below(3) < cheerful]
        sentences.append(expand(chance, pool.pop(chance.below(len(pool))), slots))
    if chance.happens(0.3):
        fault = chance.below(3)
        if fault == 0:
            sentences += [sentences[-1]] * chance.between(1, 2)
        elif fault == 1:
            sentences[-1] = " ".join(chance.shuffled(sentences[-1].split()))
        else:
            sentences[-1] = " ".join(sentences[-1].split()[:-2])
    return " " + " ".join(sentences)


def preferences(n: int, k: int = 4, seed: int = 0, held_out: int = 500) -> DataSet[Ranking]:
    """Beginnings of stories with `k` continuations each, in random order, and their true rewards.

    Parameters
    ----------
    n, held_out : int
        Number of training prompts, and of validation and of test prompts.
    k : int
        2 to 9.

    Returns
    -------
    DataSet of Ranking
        ``rewards[i] == true_reward(prompt, responses[i])``; any two rewards of a prompt differ by at least
        0.01.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 2 <= k <= 9:
        raise InputError(f"tinyworld preferences: k must be a whole number from 2 to 9, not {k!r}")

    def make(attempt: int) -> tuple[str, Ranking]:
        chance = Chance("preferences", seed, attempt)
        t = Tale(chance, "meeting", brief=False)
        begin_meeting(t)
        prompt = " ".join(t.sentences)
        chosen: dict[float, str] = {}
        while len(chosen) < k:
            response = _continuation(chance, t.slots)
            reward = true_reward(prompt, response)
            if all(abs(reward - other) >= 0.01 for other in chosen):
                chosen[reward] = response
        return "|".join(t.key), Ranking(prompt, tuple(chosen.values()), tuple(chosen))

    return data_set("preferences", make, n, held_out, {"k": k, "seed": seed})
