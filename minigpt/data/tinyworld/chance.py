"""Random choices that are the same on every machine and Python version, and the filling of the splits.

Python promises a stable stream for `Random.random` only, not for `choice` or `shuffle`, so the few draws
needed here are built on SHAKE-256 of a text key: every record has a generator of its own, named by its task,
seed and number, and no record depends on how many others were made.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from minigpt.data.base import DataSet, split_of
from minigpt.errors import InputError

VERSION = "1.0"
VALIDATION, TEST = (
    0.1,
    0.1,
)  # the same for every task, so that one world state is in the same split everywhere
_WORDS = 128  # 64-bit words made at a time

T = TypeVar("T")


class Chance:
    """A stream of draws named by a key, e.g. ``Chance("stories", "general", seed, index)``."""

    def __init__(self, *key: object) -> None:
        self._key = "|".join(map(str, key))
        self._block = 0
        self._words: list[int] = []

    def word(self) -> int:
        """The next 64 random bits."""
        if not self._words:
            digest = hashlib.shake_256(f"{self._key}#{self._block}".encode()).digest(8 * _WORDS)
            self._words = list(struct.unpack(f"<{_WORDS}Q", digest))
            self._block += 1
        return self._words.pop()

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return self.word() * n >> 64

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def happens(self, probability: float) -> bool:
        """True with the given probability."""
        return self.word() < probability * 2.0**64

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order."""
        return self.some(items, len(items))


def is_count(value: object) -> bool:
    """Whether `value` is a whole number of at least 1 (`True` is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def fill(
    make: Callable[[int], tuple[str, Any]], wanted: dict[str, int], task: str, patience: int = 20_000
) -> dict[str, list[Any]]:
    """Draw different records until each split has as many as are wanted.

    Parameters
    ----------
    make : callable
        Number of the attempt -> (key, record). The key names the world state behind the record, and its hash
        decides the split: two records that differ only in wording never stand on both sides of a split.
    wanted : dict
        Split -> number of records. The first records are the same however many are wanted.
    task : str
        Name for the error message.
    patience : int
        Attempts in a row without a new record after which the task counts as exhausted.

    Raises
    ------
    InputError
        If the task has fewer different records than are wanted.
    """
    filled: dict[str, list[Any]] = {split: [] for split in wanted}
    seen: set[Any] = set()
    missing = sum(wanted.values())
    attempt = idle = 0
    while missing:
        key, record = make(attempt)
        attempt += 1
        place = filled[split := split_of(key, VALIDATION, TEST)]
        if len(place) < wanted[split] and record not in seen:
            seen.add(record)
            place.append(record)
            missing -= 1
            idle = 0
            continue
        idle += 1
        if idle >= patience:
            short = next(s for s in wanted if len(filled[s]) < wanted[s])
            raise InputError(
                f"tinyworld {task}: {wanted[short]:,} {short} records wanted, but only "
                f"{len(filled[short]):,} different ones were found; ask for fewer"
            )
    return filled


def data_set(
    task: str,
    make: Callable[..., tuple[str, Any]],
    n: int,
    held_out: int,
    settings: dict[str, Any],
    labels: int = 0,
    finish: Callable[[Any], Any] = lambda record: record,
    label_names: tuple[str, ...] = (),
    ceiling: float | None = None,
) -> DataSet[Any]:
    """Fill the splits and wrap them with their provenance.

    Parameters
    ----------
    make : callable
        ``make(attempt)``, or ``make(attempt, label)`` if there are `labels`.
    n, held_out : int
        Number of training records, and of records in each of validation and test.
    settings : dict
        What else decides the content: the seed, the domain, …
    labels : int
        Number of labels to balance: every prefix of each split has equally many of each, to within one
        record.
    finish : callable
        Applied to each finished record, e.g. to add label noise.

    Raises
    ------
    InputError
        If `n` or `held_out` is not a positive whole number, or the task has too few different records.
    """
    for name, value in (("n", n), ("held_out", held_out)):
        if not is_count(value):
            raise InputError(f"tinyworld {task}: {name} must be a whole number of at least 1, not {value!r}")
    wanted = {"train": n, "validation": held_out, "test": held_out}
    if labels:
        quota = {split: -(-count // labels) for split, count in wanted.items()}
        filled = [fill(functools.partial(make, label=label), quota, task) for label in range(labels)]
        splits = {s: _interleaved([f[s] for f in filled], task, s)[: wanted[s]] for s in wanted}
    else:
        splits = fill(make, wanted, task)
    provenance = {
        "source": "tinyworld",
        "version": VERSION,
        "task": task,
        "n": n,
        "held_out": held_out,
        **settings,
    }
    return DataSet(
        name=f"tinyworld.{task}",
        provenance=provenance,
        label_names=label_names,
        ceiling=ceiling,
        **{split: [finish(record) for record in records] for split, records in splits.items()},
    )


def _interleaved(columns: list[list[T]], *key: str) -> list[T]:
    """Blocks with one record of each label, each block in random order."""
    blocks: Iterable[tuple[T, ...]] = zip(*columns, strict=True)
    return [record for i, block in enumerate(blocks) for record in Chance("block", *key, i).shuffled(block)]
