"""The topic task: what does the main person finally do?

Every text names activities of three different topics, in any order; one person wants, refuses, chooses or is
watched, and only the main person's final choice is the topic. Six rules decide:

============  =====================================================================================
rule          example (topic: fishing)
============  =====================================================================================
change        Anna wanted to bake bread, but then she caught a trout. Tom sewed a coat.
instead       Instead of baking bread, Anna caught a trout. Tom sewed a coat.
request       Tom asked Anna to bake bread. She said no and caught a trout. Leo sewed a coat.
agreement     Tom asked Anna to catch a trout, and she said yes. Leo baked bread. Mia sewed a coat.
choice        Anna could bake bread or catch a trout. She chose the second. Tom sewed a coat.
people        Tom baked bread. Anna caught a trout. Leo sewed a coat.
============  =====================================================================================
"""

from __future__ import annotations

from minigpt.data.base import DataSet, Example
from minigpt.data.tinyworld import world
from minigpt.data.tinyworld.chance import Chance
from minigpt.data.tinyworld.reviews import labelled
from minigpt.data.tinyworld.tale import expand

LABELS = ("cooking", "fishing", "gardening", "music", "building", "sewing")
QUESTION = "What is this story about?"
_ACTIVITIES: dict[str, tuple[tuple[str, str, str], ...]] = {  # infinitive, past, with -ing
    "cooking": (
        ("bake bread", "baked bread", "baking bread"),
        ("make soup", "made soup", "making soup"),
        ("fry eggs", "fried eggs", "frying eggs"),
        ("cook a stew", "cooked a stew", "cooking a stew"),
    ),
    "fishing": (
        ("catch a trout", "caught a trout", "catching a trout"),
        ("cast the net", "cast the net", "casting the net"),
        ("row the boat", "rowed the boat", "rowing the boat"),
        ("dig for worms", "dug for worms", "digging for worms"),
    ),
    "gardening": (
        ("plant beans", "planted beans", "planting beans"),
        ("water the roses", "watered the roses", "watering the roses"),
        ("pull weeds", "pulled weeds", "pulling weeds"),
        ("pick cherries", "picked cherries", "picking cherries"),
    ),
    "music": (
        ("play the flute", "played the flute", "playing the flute"),
        ("sing old songs", "sang old songs", "singing old songs"),
        ("beat the drum", "beat the drum", "beating the drum"),
        ("write a tune", "wrote a tune", "writing a tune"),
    ),
    "building": (
        ("mend the roof", "mended the roof", "mending the roof"),
        ("build a shed", "built a shed", "building a shed"),
        ("saw boards", "sawed boards", "sawing boards"),
        ("nail the fence", "nailed the fence", "nailing the fence"),
    ),
    "sewing": (
        ("sew a coat", "sewed a coat", "sewing a coat"),
        ("knit a scarf", "knitted a scarf", "knitting a scarf"),
        ("stitch a quilt", "stitched a quilt", "stitching a quilt"),
        ("hem a skirt", "hemmed a skirt", "hemming a skirt"),
    ),
}
_OPENINGS = ("This is about {P}.", "{P} the {Pjob} had a free {time}.", "Here is what {P} did one {time}.")

# {x}, {xed}, {xing}: the activity that counts; {y…} one that is wanted, refused or passed over; {z…}
# somebody else's.
_RULES: dict[str, tuple[str, ...]] = {
    "change": (
        "{P} wanted to {y}, but then {Pshe} {xed}.",
        "First {P} wanted to {y}. In the end {Pshe} {xed}.",
    ),
    "instead": ("Instead of {ying}, {P} {xed}.", "{P} {xed} instead of {ying}."),
    "request": (
        "{Q} asked {P} to {y}. {PShe} said no and {xed}.",
        "{P} {xed}, because {Pshe} did not want to {y} with {Q}.",
    ),
    "agreement": ("{Q} asked {P} to {x}, and {Pshe} said yes. {Q} {yed}.",),
    "choice": (
        "{P} could {y} or {x}. {PShe} chose the second.",
        "{P} could {x} or {y}. {PShe} chose the first.",
    ),
    "people": ("{P} {xed}. {Q} {yed}.", "{Q} {yed}, and {P} {xed}.", "{Q} {yed} while {P} {xed}."),
}
_OTHERS = ("{R} {zed}.", "{R} {zed} [all day|with {S}].", "{R} and {S} {zed}.")


def activity_text(chance: Chance, label: int) -> tuple[str, str]:
    """A text of the given topic: (key, text). The key names rule, main person and the three activities."""
    topics = [label, *chance.some([i for i in range(len(LABELS)) if i != label], 2)]
    slots = {"time": chance.pick(world.TIMES)}
    for letter, person in zip("PQRS", chance.some(world.PEOPLE, 4), strict=True):
        slots |= person.words(letter)
    rule = chance.pick(tuple(_RULES))
    key = ["topic", rule, slots["P"]]
    for letter, topic in zip("xyz", topics, strict=True):
        plain, past, gerund = chance.pick(_ACTIVITIES[LABELS[topic]])
        slots |= {letter: plain, letter + "ed": past, letter + "ing": gerund}
        key.append(plain)
    sentences = [expand(chance, chance.pick(_RULES[rule]), slots)]
    sentences.insert(chance.below(2), expand(chance, chance.pick(_OTHERS), slots))
    return "|".join(key), " ".join([expand(chance, chance.pick(_OPENINGS), slots), *sentences])


def topic(n: int, noise: float = 0.0, seed: int = 0, held_out: int = 1000) -> DataSet[Example]:
    """Short texts labelled with what the main person finally does (six balanced topics).

    Parameters
    ----------
    n, held_out : int
        Number of training texts, and of validation and of test texts.
    noise : float
        Share of labels that are replaced by one drawn at random, as in `sentiment`.

    Returns
    -------
    DataSet of Example
        `ceiling` is ``1 - noise * 5 / 6``.
    """

    def make(attempt: int, label: int) -> tuple[str, Example]:
        key, text = activity_text(Chance("topic", seed, label, attempt), label)
        return key, Example(text, label)

    return labelled("topic", make, n, held_out, {"noise": noise, "seed": seed, "question": QUESTION}, LABELS)
