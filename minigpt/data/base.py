"""What every data source gives: plain records in three splits, and where they came from.

A source is a function that returns one of the four kinds below. The kinds differ in their records only:
documents (`str`), labelled texts (`Example`), prompt/completion pairs (`Pair`) and ranked responses
(`Ranking`). Everything downstream (tokenising, batching, evaluation) depends on the kind, never on the source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Record = TypeVar("Record")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One labelled text.

    Attributes
    ----------
    text : str
    label : int
        Index into the data's `label_names`.
    """

    text: str
    label: int


@dataclass(frozen=True)
class Pair:
    """One prompt and the completion a model should give; `references` are all completions that count as right."""

    prompt: str
    completion: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """K responses to one prompt with their known true rewards (higher is better)."""

    prompt: str
    responses: tuple[str, ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class DataSet(Generic[Record]):
    """Records of one kind in three splits.

    Attributes
    ----------
    name : str
        Short name for tables and logs, e.g. ``"pydocs"``.
    train, validation, test : list of Record
    provenance : dict
        What the records were made from: versions, sizes, settings, seeds. Goes into every run's record.
    label_names : tuple of str
        Names of the labels for labelled texts, else empty.
    ceiling : float or None
        For generated tasks with label noise: the accuracy that a perfect model reaches on this data.
    """

    name: str
    train: list[Record]
    validation: list[Record]
    test: list[Record]
    provenance: dict[str, Any] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    ceiling: float | None = None

    def split(self, name: str) -> list[Record]:
        """The records of ``"train"``, ``"validation"`` or ``"test"``."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r}; there are {', '.join(SPLITS)}")
        return getattr(self, name)

    def record(self) -> dict[str, Any]:
        """Provenance with the number of records and a SHA-256 of each split, ready for JSON."""
        return {
            "name": self.name,
            **self.provenance,
            "splits": {s: {"records": len(self.split(s)), "sha256": fingerprint(self.split(s))} for s in SPLITS},
        }


def fingerprint(records: Iterable[Any]) -> str:
    """SHA-256 over the records' canonical JSON, the same on every machine."""
    digest = hashlib.sha256()
    for record in records:
        plain = record if isinstance(record, str) else list(vars(record).values())
        digest.update(json.dumps(plain, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def split_of(text: str, validation: float = 0.05, test: float = 0.05) -> str:
    """The split a document belongs to, decided by a hash of its own text.

    A document that several versions or machines share is in the same split on all of them, so nothing
    that one of them trained on can be in another's test split.

    Parameters
    ----------
    text : str
    validation, test : float
        Shares of documents, each in [0, 1).
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test:
        return "test"
    if place < test + validation:
        return "validation"
    return "train"
