"""Text for language modelling by name or path, and its way into batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.data import DataSet, TokenWindows, download, encode_documents, pydocs, tinyworld
from minigpt.data import files as data_files
from minigpt.data.tokens import Encoder
from minigpt.errors import InputError
from minigpt.objectives import Batch

TINYWORLD_DOCUMENTS = 20_000
NAMES = ("pydocs", "tinyworld")


def load_corpus(source: str, validation: float = 0.05, test: float = 0.05) -> DataSet[str]:
    """Documents in three splits.

    Parameters
    ----------
    source : str
        ``"pydocs"``, ``"tinyworld"``, the name of a fetched set (``"tinyshakespeare.txt"``) or a path;
        several joined by ``+``.
    validation, test : float
        Shares to hold out from the user's own files; the other sources decide by document.

    Returns
    -------
    data : DataSet of str

    Raises
    ------
    ValueError
        If a source does not exist or holds no text.
    """
    names = [source] if Path(source).exists() else source.split("+")
    parts = [_load_one(name.strip(), validation, test) for name in names]
    if len(parts) == 1:
        return parts[0]
    return DataSet(
        name=source,
        train=[d for part in parts for d in part.train],
        validation=[d for part in parts for d in part.validation],
        test=[d for part in parts for d in part.test],
        provenance={"parts": [part.record() for part in parts]},
    )


def _load_one(name: str, validation: float, test: float) -> DataSet[str]:
    if name == "pydocs":
        return pydocs.corpus()
    if name == "tinyworld":
        return tinyworld.corpus(TINYWORLD_DOCUMENTS)
    path = Path(name)
    if name in download.SETS and not path.exists():
        path = data_files.find(name)
    if path.suffix.lower() == ".csv":
        return as_text(data_files.load_labelled(path, validation, test))
    if path.suffix.lower() == ".jsonl":
        return as_text(data_files.load_pairs(path, validation, test))
    return data_files.load_text(path, validation, test)


def as_text(data: DataSet[Any]) -> DataSet[str]:
    """Labelled texts or prompt/completion pairs as plain documents."""

    def plain(record: Any) -> str:
        return record.text if hasattr(record, "text") else record.prompt + record.completion

    return DataSet(
        name=data.name,
        train=[plain(r) for r in data.train],
        validation=[plain(r) for r in data.validation],
        test=[plain(r) for r in data.test],
        provenance=data.provenance,
    )


def language_batches(
    tokens: np.ndarray, batch_size: int, block_size: int, seed: int, what: str
) -> Callable[[int], Batch]:
    """Random windows as training batches, a pure function of the step.

    Parameters
    ----------
    tokens : (n,) integers
    batch_size, block_size : int
        B and T.
    seed : int
    what : str
        What to call the text in error messages.

    Returns
    -------
    batches : (step) -> dict with `ids` and `targets`, (B, T) each

    Raises
    ------
    ValueError
        If the text is shorter than one window.
    """
    windows = TokenWindows(tokens, what)

    def batch(step: int) -> Batch:
        ids, targets = windows.batch(step, batch_size, block_size, seed)
        return {"ids": ids, "targets": targets}

    batch(0)
    return batch


def encode_split(tokenizer: Encoder, data: DataSet[str], split: str) -> np.ndarray:
    """All documents of a split as one stream of token ids.

    Raises
    ------
    ValueError
        If the split is empty.
    """
    documents = data.split(split)
    if not documents:
        raise InputError(f"{data.name} has nothing in its {split} split")
    return encode_documents(tokenizer, documents)
