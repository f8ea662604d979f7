"""Sentences about who does what: rewriting them by an instruction, and translating them into a dialect.

The dialect, Ombric, is invented. Its rules, all of them:

1. Every noun, adjective, verb, number and preposition has its own word (`LEXICON`); names stay as they are.
2. The verb comes last: subject, object, place, verb. Adjectives and numbers follow their noun.
3. Articles are endings: "the" is ``-en`` on the noun, "a" is nothing; after a number the noun takes ``-im``.
   A verb in the past takes ``-uk``.

"Anna washed the red cup in the barn." is "Anna <cup>en <red> <in> <barn>en <wash>uk."
Every sentence has one translation, and the translation can be read back without loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.data.base import DataSet, Pair
from minigpt.data.tinyworld import world
from minigpt.data.tinyworld.chance import Chance, data_set


@dataclass(frozen=True)
class Clause:
    """Who does what to which thing where; the same content in any tense, voice or language.

    Attributes
    ----------
    subject : str
        A name, or a job.
    named : bool
        Whether the subject is a name (no article).
    verb : Verb
    quality, thing : str
    number : int
        1 for "the" or "a" thing; more for "three things".
    definite : bool
        "the" rather than "a", where `number` is 1.
    place : str
        Preposition, article and noun, e.g. "in the barn".
    past : bool
    """

    subject: str
    named: bool
    verb: world.Verb
    quality: str
    thing: str
    number: int
    definite: bool
    place: str
    past: bool

    @property
    def key(self) -> str:
        """The content without tense and determiners; decides the split, whatever the task."""
        return "|".join(["clause", self.subject, self.verb.base, self.quality, self.thing, self.place])

    @property
    def actor(self) -> str:
        """The subject with its article."""
        return self.subject if self.named else f"the {self.subject}"

    @property
    def object(self) -> str:
        """The object with quality and determiner."""
        if self.number > 1:
            return f"{world.NUMBERS[self.number]} {self.quality} {plural(self.thing)}"
        return f"the {self.quality} {self.thing}" if self.definite else world.a(f"{self.quality} {self.thing}")

    @property
    def english(self) -> str:
        """The active sentence."""
        return sentence(self.actor, self.verb.past if self.past else self.verb.third, self.object, self.place)


def plural(noun: str) -> str:
    """The plural of a noun that is not in `world.FOODS`."""
    if noun.endswith(("x", "ch", "sh")):
        return noun + "es"
    return {"knife": "knives", "scarf": "scarves"}.get(noun, noun + "s")


def sentence(*words: str, end: str = ".") -> str:
    """The words with a capital letter and a full stop."""
    text = " ".join(words)
    return text[0].upper() + text[1:] + end


def draw_clause(chance: Chance, simple: bool) -> Clause:
    """A clause; `simple` ones have a single definite object (so that the passive is always "is" or "was")."""
    named = chance.happens(0.5)
    person = chance.pick(world.PEOPLE)
    verb = chance.pick(world.VERBS)
    number = 1 if simple or chance.happens(0.6) else chance.between(2, 9)
    return Clause(
        subject=person.name if named else person.job,
        named=named,
        verb=verb,
        quality=chance.pick(world.QUALITIES),
        thing=chance.pick(verb.objects),
        number=number,
        definite=simple or chance.happens(0.6),
        place=chance.pick(world.PLACES),
        past=chance.happens(0.5),
    )


# ---------------------------------------------------------------- rewriting
def _passive(c: Clause) -> tuple[str, tuple[str, ...]]:
    be = "was" if c.past else "is"
    return c.english, (
        sentence(c.object, be, c.verb.participle, "by", c.actor, c.place),
        sentence(c.object, be, c.verb.participle, c.place, "by", c.actor),
    )


def _past(c: Clause) -> tuple[str, tuple[str, ...]]:
    return (
        sentence(c.actor, c.verb.third, c.object, c.place),
        (sentence(c.actor, c.verb.past, c.object, c.place),),
    )


def _negative(c: Clause) -> tuple[str, tuple[str, ...]]:
    do = "did" if c.past else "does"
    return c.english, (
        sentence(c.actor, do, "not", c.verb.base, c.object, c.place),
        sentence(c.actor, f"{do}n't", c.verb.base, c.object, c.place),
    )


def _polite(c: Clause) -> tuple[str, tuple[str, ...]]:
    order = (c.verb.base, c.object, c.place)
    return sentence(*order), (
        sentence("could you please", *order, end="?"),
        sentence("please", *order),
        sentence("would you please", *order, end="?"),
    )


_REWRITINGS = {
    "in the passive": _passive,
    "in the past": _past,
    "in the negative": _negative,
    "in a polite way": _polite,
}
INSTRUCTIONS = tuple(_REWRITINGS)
_UNWANTED = ("break", "lose", "see")  # what nobody asks for politely


def rewriting_pair(chance: Chance) -> tuple[str, Pair]:
    """One sentence with an instruction and its rewritings: (key, pair)."""
    clause = draw_clause(chance, simple=True)
    instruction = chance.pick([i for i in INSTRUCTIONS if i != "in a polite way" or clause.verb.base not in _UNWANTED])
    given, references = _REWRITINGS[instruction](clause)
    answers = tuple(f" {reference}" for reference in references)
    return clause.key, Pair(f"Rewrite {instruction}: {given}\nAnswer:", answers[0], answers)


def rewriting(n: int, seed: int = 0, held_out: int = 500) -> DataSet[Pair]:
    """Sentences to be put in the passive, in the past, in the negative, or in a polite way.

    Parameters
    ----------
    n, held_out : int
        Number of training pairs, and of validation and of test pairs.

    Returns
    -------
    DataSet of Pair
        The completion is the first of one to three references.
    """
    return data_set(
        "rewriting",
        lambda attempt: rewriting_pair(Chance("rewriting", seed, attempt)),
        n,
        held_out,
        {"seed": seed},
    )


# ---------------------------------------------------------------- the dialect
def _lexicon() -> dict[str, str]:
    """English word -> Ombric word: two or three syllables drawn once for all, no two words alike."""
    nouns = [person.job for person in world.PEOPLE] + [place.split()[-1] for place in world.PLACES]
    nouns += [thing for verb in world.VERBS for thing in verb.objects]
    words = [*nouns, *(verb.base for verb in world.VERBS), *world.QUALITIES, *world.NUMBERS[2:10]]
    words += ["at", "in", "by", "on"]
    lexicon: dict[str, str] = {}
    taken = {"same", *(person.name.lower() for person in world.PEOPLE)}  # no word of the corpus
    for word in dict.fromkeys(words):
        chance = Chance("Ombric", word)
        while True:
            syllables = range(chance.between(2, 3))
            made = "".join(chance.pick("bdfgklmnprstvz") + chance.pick("aeio") for _ in syllables)
            if made not in taken:
                break
        taken.add(made)
        lexicon[word] = made
    return lexicon


LEXICON = _lexicon()


def translate(clause: Clause) -> str:
    """The clause in Ombric."""
    subject = clause.subject if clause.named else LEXICON[clause.subject] + "en"
    thing, quality = LEXICON[clause.thing], LEXICON[clause.quality]
    if clause.number > 1:
        what = [thing + "im", quality, LEXICON[world.NUMBERS[clause.number]]]
    else:
        what = [thing + ("en" if clause.definite else ""), quality]
    preposition, _, *qualities, place = clause.place.split()
    where = [LEXICON[preposition], LEXICON[place] + "en", *(LEXICON[word] for word in qualities)]
    return sentence(subject, *what, *where, LEXICON[clause.verb.base] + ("uk" if clause.past else ""))


def translation(n: int, seed: int = 0, held_out: int = 500) -> DataSet[Pair]:
    """English sentences with their translation into Ombric (6–8 words).

    Parameters
    ----------
    n, held_out : int
        Number of training pairs, and of validation and of test pairs.
    """

    def make(attempt: int) -> tuple[str, Pair]:
        clause = draw_clause(Chance("translation", seed, attempt), simple=False)
        answer = f" {translate(clause)}"
        return clause.key, Pair(f"Translate: {clause.english}\nAnswer:", answer, (answer,))

    return data_set("translation", make, n, held_out, {"seed": seed})
