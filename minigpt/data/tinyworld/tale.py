"""How a story is told: templates, and the story while it grows.

Templates: ``{slot}`` is a value of the state, ``[one|two|]`` one of the wordings.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from minigpt.data.tinyworld import world
from minigpt.data.tinyworld.chance import Chance

SHORTEST = 60  # words of a full story


@dataclass(frozen=True)
class Story:
    """A told story.

    Attributes
    ----------
    key : str
        Plot and world state; decides the split.
    sentences : tuple of str
    facts : tuple of (question, answer)
        Each answer is stated in the sentences.
    """

    key: str
    sentences: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@functools.cache
def _parts(template: str) -> tuple[tuple[str, ...], ...]:
    """The template as a row of alternatives."""
    return tuple(tuple(part.split("|")) for part in re.split(r"\[|\]", template))


def expand(chance: Chance, template: str, slots: dict[str, str]) -> str:
    """One wording of a template, with the slots filled and a capital letter at the start."""
    text = "".join(part[0] if len(part) == 1 else chance.pick(part) for part in _parts(template))
    text = text.format_map(slots)
    return text[0].upper() + text[1:]


class Tale:
    """A story while it is being told: the state drawn so far, what was said, what may be asked."""

    def __init__(self, chance: Chance, plot: str, brief: bool) -> None:
        self.chance = chance
        self.brief = brief
        self.key = ["story", plot]
        self.slots: dict[str, str] = {}
        self.sentences: list[str] = []
        self.facts: list[tuple[str, str]] = []
        self.used: set[str] = set()
        self.alone = False  # P ends the story without Q

    def meet(self, letters: str, people: tuple[world.Person, ...]) -> None:
        """Draw one person for each letter."""
        for letter, person in zip(letters, self.chance.some(people, len(letters)), strict=True):
            self.slots |= person.words(letter)
            self.key.append(person.name)

    def state(self, **values: str) -> None:
        """Fix facts of the world: they become slots and part of the key."""
        self.slots |= values
        self.key += values.values()

    def say(self, *templates: str) -> None:
        """Add one sentence in one of several wordings, none of which is used twice."""
        template = self.chance.pick([t for t in templates if t not in self.used])
        self.used.add(template)
        self.sentences.append(expand(self.chance, template, self.slots))

    def colour(self, *templates: str) -> None:
        """Like `say`, for what no question asks about: not in brief stories, and not always in full ones."""
        if not self.brief and self.chance.happens(0.6):
            self.say(*templates)

    def words(self) -> int:
        """Number of words so far."""
        return sum(len(sentence.split()) for sentence in self.sentences)

    def ask(self, question: str, answer: str) -> None:
        """List a question that the sentences answer."""
        self.facts.append((question.format_map(self.slots), answer.format_map(self.slots)))
