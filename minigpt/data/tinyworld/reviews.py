"""The sentiment task: short reviews whose verdict hangs on structure, not on which words occur.

Good and bad words stand in reviews of both labels. Seven rules decide; only the plain reviews (three in ten)
can be got right by looking for good and bad words:

=============  ======================================================  =====================================
rule           example (positive)                                      what decides
=============  ======================================================  =====================================
plain          The soup was great.                                     the word
negation       The soup was not at all dull.                           the word, turned round by "not"
but            The room was dull, but the soup was great.              the clause after "but"
although       The soup was great, although the room was dull.         the clause without "although"
who            Tom called the soup dull. I call it great.              what the writer thinks, not others
comparison     I tried the soup. The nice jam was worse than the soup. which side of "worse" the thing is on
expectation    I thought the soup would be dull. I was wrong.          whether what was expected came true
=============  ======================================================  =====================================
"""

from __future__ import annotations

from typing import Any

from minigpt.data.base import DataSet, Example
from minigpt.data.tinyworld import world
from minigpt.data.tinyworld.chance import Chance, data_set
from minigpt.data.tinyworld.storybook import check_domain
from minigpt.data.tinyworld.tale import expand
from minigpt.data.tinyworld.world import listed
from minigpt.errors import InputError

LABELS = ("negative", "positive")
QUESTION = "Is this review positive or negative?"

# Per domain: the thing reviewed, side matters, good and bad words, how the review begins, a neutral remark.
_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "general": {
        "thing": listed("""
            soup, bread, stew, cheese, jam, cake, play, song, dance, feast, fair, story, boat trip,
            puppet show, honey, tea
        """),
        "side": listed("""
            room, table, music, service, weather, chair, light, view, walk, company, price, wait
        """),
        "good": listed("""
            good, fine, lovely, great, nice, pleasant, charming, wonderful, excellent, delightful
        """),
        "bad": listed("""
            bad, poor, dull, awful, weak, nasty, boring, terrible, dreadful, horrible
        """),
        "place": world.PLACES,
        "came": (
            "We tried the {thing} {place}[ yesterday|].",
            "I was {place} for the {thing}.",
            "{Q} told me to try the {thing} {place}.",
            "Last {season} I tried the {thing} {place}.",
        ),
        "remark": (
            "There were {n} of us.",
            "It took about {n} hours.",
            "{R} the {Rjob} was there too.",
            "It was a {weather} day.",
            "We paid {n} coins.",
            "I sat next to {R}.",
        ),
    },
    "target": {
        "thing": listed("""
            shuttle, ration pack, bunk, oxygen mask, star map, cargo crane, space suit, repair crew,
            hull paint, docking service, crew lounge, engine oil, moon tour, medical bay
        """),
        "side": listed("""
            queue, noise, gravity, air, staff, paperwork, display, seal, lighting, manual, fee, timing
        """),
        "good": listed("""
            reliable, smooth, solid, superb, efficient, precise, sturdy, optimal, flawless, first class
        """),
        "bad": listed("""
            faulty, shaky, useless, sloppy, flawed, outdated, clumsy, dismal, defective, second rate
        """),
        "place": world.STATIONS,
        "came": (
            "[Tested|Used] the {thing} {place}.",
            "Stop {place}, {thing} inspected.",
            "Crew of the {ship} rating the {thing} {place}.",
            "{Qjob} {Q} ordered the {thing} {place}.",
        ),
        "remark": (
            "Stay: {n} days.",
            "Fee: {n} credits.",
            "{Rjob} {R} present.",
            "Crew of {n}.",
            "Logged by the {ship}.",
            "Seen by {R}.",
        ),
    },
}

# In twentieths. Plain reviews teach which words are good and bad; without them there is no slope to learn on.
_SHARES = {"plain": 6, "negation": 3, "but": 3, "although": 2, "who": 3, "comparison": 1, "expectation": 2}
# {yes} and {yes2} are words of the label's own kind, {no} of the other, {any} of either. Both labels use the
# same templates.
_RULES: dict[str, tuple[str, ...]] = {
    "plain": (
        "The {thing} was {yes}.",
        "I [must say|think] the {thing} was {yes}.",
        "The {thing} was {yes} and {yes2}.",
        "The {side} was {yes2}, and the {thing} was {yes} too.",
    ),
    "negation": (
        "The {thing} was not [really |at all |]{no}.",
        "I would not call the {thing} {no}.",
        "Nobody can say that the {thing} was {no}.",
        "The {thing} was not {no}, it was {yes}.",
    ),
    "but": (
        "The {side} was {no}, but the {thing} was {yes}[ all the same|].",
        "I found the {side} {no}, but the {thing} [itself |]was {yes}.",
    ),
    "although": (
        "The {thing} was {yes}, although the {side} was {no}.",
        "Although the {side} was {no}, the {thing} was {yes}.",
    ),
    "who": (
        "{P} called the {thing} {no}. I [call|found] it {yes}.",
        "I found the {thing} {yes}. {P} called it {no}.",
        "{P} called it {yes}, and {Pshe} was right.",
        "{P} called it {no}, and {Pshe} was wrong.",
    ),
    "comparison": (
        "The {thing} was {more} than the {any} {other}.",
        "The {any} {other} was {less} than the {thing}.",
    ),
    "expectation": (
        "I thought the {thing} would be {no}. I was wrong.",
        "I thought the {thing} would be {yes}. I was right.",
        "I expected it to be {no}, and it was not.",
        "I expected it to be {yes}, and it was.",
    ),
}
CLOSINGS = (
    ("I will not come again.", "I want my money back.", "Next time I will stay away."),
    ("I will come again soon.", "It was worth the money.", "Next time I will bring my friends."),
)


def _label_words(chance: Chance, words: dict[str, tuple[str, ...]], label: int) -> dict[str, str]:
    own, other = (words["good"], words["bad"]) if label else (words["bad"], words["good"])
    yes, yes2 = chance.some(own, 2)
    more, less = ("better", "worse") if label else ("worse", "better")
    return {
        "yes": yes,
        "yes2": yes2,
        "no": chance.pick(other),
        "any": chance.pick(words["good"] + words["bad"]),
        "more": more,
        "less": less,
    }


def review(chance: Chance, label: int, domain: str = "general") -> tuple[str, str]:
    """A review of the given label: (key, text). The key names rule, thing and deciding words."""
    words = _WORDS[domain]
    thing, other = chance.some(words["thing"], 2)
    state = {"thing": thing, "other": other, "side": chance.pick(words["side"])}
    state |= _label_words(chance, words, label)
    cast = chance.some(world.PEOPLE if domain == "general" else world.CREW, 3)
    slots = state | {
        "place": chance.pick(words["place"]),
        "season": chance.pick(world.SEASONS),
        "weather": chance.pick(world.WEATHER),
        "ship": chance.pick(world.SHIPS),
        "n": world.NUMBERS[chance.between(2, 12)],
    }
    for letter, person in zip("PQR", cast, strict=True):
        slots |= person.words(letter)
    rule = chance.pick([rule for rule, share in _SHARES.items() for _ in range(share)])
    template = chance.pick(_RULES[rule])
    sentences = [expand(chance, chance.pick(words["came"]), slots), expand(chance, template, slots)]
    if chance.happens(0.5):
        sentences.insert(chance.between(1, 2), expand(chance, chance.pick(words["remark"]), slots))
    deciding = [value for name, value in state.items() if name == "thing" or f"{{{name}}}" in template]
    return "|".join(["review", domain, rule, str(label), *deciding]), " ".join(sentences)


def sentiment(
    n: int, noise: float = 0.0, domain: str = "general", seed: int = 0, held_out: int = 1000
) -> DataSet[Example]:
    """Reviews with the writer's verdict: 0 negative, 1 positive.

    Parameters
    ----------
    n, held_out : int
        Number of training reviews, and of validation and of test reviews.
    noise : float
        Share of labels, in all three splits, that are replaced by one drawn at random (which may be the
        same). The texts are the same whatever the noise, and the labels changed by a lower noise are among
        those changed by a higher one.
    domain : {"general", "target"}

    Returns
    -------
    DataSet of Example
        `ceiling` is ``1 - noise / 2``.
    """
    check_domain(domain)

    def make(attempt: int, label: int) -> tuple[str, Example]:
        key, text = review(Chance("sentiment", domain, seed, label, attempt), label, domain)
        return key, Example(text, label)

    settings = {"domain": domain, "noise": noise, "seed": seed, "question": QUESTION}
    return labelled("sentiment", make, n, held_out, settings, LABELS)


def labelled(
    task: str, make: Any, n: int, held_out: int, settings: dict[str, Any], label_names: tuple[str, ...]
) -> DataSet[Example]:
    """Balanced over the labels, then blurred by `settings["noise"]`; `ceiling` says what that leaves."""
    noise, k = settings["noise"], len(label_names)
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise <= 1:
        raise InputError(f"tinyworld {task}: noise must be between 0 and 1, not {noise!r}")

    def blur(example: Example) -> Example:
        chance = Chance("noise", task, settings["seed"], example.text)
        return Example(example.text, chance.below(k)) if chance.happens(noise) else example

    return data_set(task, make, n, held_out, settings, k, blur, label_names, 1 - noise * (k - 1) / k)
