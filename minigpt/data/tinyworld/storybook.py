"""Stories of either domain, and questions about them.

The key of a story is its plot and state without the wording, so two tellings of the same events are always in
the same split.
"""

from __future__ import annotations

from minigpt.data.base import DataSet, Pair
from minigpt.data.tinyworld import logs, village
from minigpt.data.tinyworld.chance import Chance, data_set
from minigpt.data.tinyworld.tale import Story, Tale
from minigpt.errors import InputError

_DOMAINS = {"general": village, "target": logs}
DOMAINS = tuple(_DOMAINS)


def check_domain(domain: str) -> None:
    """Raise InputError unless `domain` is one of `DOMAINS`."""
    if domain not in DOMAINS:
        raise InputError(f"tinyworld: no domain {domain!r}; there are {', '.join(DOMAINS)}")


def tell(chance: Chance, domain: str = "general", brief: bool = False) -> Story:
    """Tell one story.

    Parameters
    ----------
    brief : bool
        Only what questions are about (35–75 words) instead of the full story (60–200 words).
    """
    plots = _DOMAINS[domain].PLOTS
    plot = chance.pick(tuple(plots))
    t = Tale(chance, plot, brief)
    well = plots[plot](t)
    if not brief:
        _DOMAINS[domain].end(t, well)
    return Story("|".join(t.key), tuple(t.sentences), tuple(t.facts))


def stories(n: int, domain: str = "general", seed: int = 0, held_out: int = 500) -> DataSet[str]:
    """Coherent stories of 60–200 words.

    Parameters
    ----------
    n, held_out : int
        Number of training stories, and of validation and of test stories.
    domain : {"general", "target"}
        Village life, or the terse logs of ships in space.
    """
    check_domain(domain)

    def make(attempt: int) -> tuple[str, str]:
        story = tell(Chance("stories", domain, seed, attempt), domain)
        return story.key, story.text

    return data_set("stories", make, n, held_out, {"domain": domain, "seed": seed})


def question(chance: Chance, domain: str = "general") -> tuple[str, Pair]:
    """A brief story with one of its questions: (key of the story, pair)."""
    story = tell(chance, domain, brief=True)
    asked, answer = chance.pick(story.facts)
    return story.key, Pair(f"{story.text}\nQuestion: {asked}\nAnswer:", f" {answer}", (f" {answer}",))


def questions(n: int, domain: str = "general", seed: int = 0, held_out: int = 500) -> DataSet[Pair]:
    """Brief stories with a question (who, where, what, how many) and its short answer.

    Parameters as for `stories`. A story that is told in one split of any data set is asked about in that
    split only.
    """
    check_domain(domain)

    def make(attempt: int) -> tuple[str, Pair]:
        return question(Chance("questions", domain, seed, attempt), domain)

    return data_set("questions", make, n, held_out, {"domain": domain, "seed": seed})
