"""The user's own data: a text file, a CSV of labelled texts, or JSON lines of prompts and completions.

A file is read once, as UTF-8 (a byte-order mark is accepted), and everything wrong with it is said in one
line with the file's name and the line or byte at fault. Characters are kept as they are; line ends of a text
file too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from minigpt.data.base import SPLITS, DataSet, Example, Pair, split_of
from minigpt.errors import InputError

FOLDER_VARIABLE = "MINIGPT_DATA"
SEPARATOR = "<|endoftext|>"

PathLike = str | os.PathLike[str]
Record = TypeVar("Record")


def load(path: PathLike) -> DataSet[str] | DataSet[Example] | DataSet[Pair]:
    """Read a data file by its extension: ``.csv`` labelled texts, ``.jsonl`` pairs, anything else text.

    Raises
    ------
    InputError
        As the function that reads the kind.
    """
    readers: dict[str, Callable[[PathLike], Any]] = {".csv": load_labelled, ".jsonl": load_pairs}
    return readers.get(Path(path).suffix.lower(), load_text)(path)


def load_text(path: PathLike, validation: float = 0.05, test: float = 0.05) -> DataSet[str]:
    """Read any UTF-8 text for language modelling.

    A file with ``<|endoftext|>`` separators is a collection: each document goes to the split that a hash of
    it says, and blank documents are left out. Any other file is one text, held out from the end in contiguous
    parts: first the training text, then validation, then test, cut at ``int(n * (1 - validation - test))``
    and ``int(n * (1 - test))`` of its n characters.

    Parameters
    ----------
    path : path
    validation, test : float
        Shares to hold out, not negative, together less than 1. ``validation=0.1, test=0.0`` is nanoGPT's
        split.

    Returns
    -------
    DataSet of str

    Raises
    ------
    InputError
        The file is missing, a directory, empty, binary or not UTF-8; or too short for the shares asked for.
    """
    _check_shares(validation, test)
    text, provenance = _read(path)
    provenance |= {"characters": len(text), "held_out": {"validation": validation, "test": test}}
    if SEPARATOR in text:
        documents = [document.strip("\r\n") for document in text.split(SEPARATOR)]
        documents = [document for document in documents if document.strip()]
        if not documents:
            raise InputError(f"{path}: there is nothing but separators and blanks")
        splits = _by_hash(path, documents, documents, validation, test)
        return DataSet(Path(path).name, *splits, provenance={**provenance, "split": "documents by hash"})
    train_end = int(len(text) * (1 - (validation + test)))
    validation_end = int(len(text) * (1 - test))
    parts = [text[:train_end], text[train_end:validation_end], text[validation_end:]]
    for split, part, share in zip(SPLITS, parts, (1.0, validation, test), strict=True):
        if share > 0 and not part:
            raise InputError(f"{path}: {len(text)} characters are too few, nothing is left for {split}")
    train, held_out, last = ([part] if part else [] for part in parts)
    return DataSet(Path(path).name, train, held_out, last, provenance={**provenance, "split": "contiguous"})


def load_labelled(path: PathLike, validation: float = 0.05, test: float = 0.05) -> DataSet[Example]:
    """Read labelled texts from a CSV file with a header that names the columns ``text`` and ``label``.

    Labels are integers or words; the classes are numbered in ascending order and named in `label_names`.
    Other columns and blank lines are ignored. The split is decided by a hash of the text.

    Raises
    ------
    InputError
        The file cannot be read as text; a column is missing; a row is malformed, has an empty text or label;
        there are no rows, only one class, or too few rows to hold any out, or a class has no training row.
    """
    _check_shares(validation, test)
    content, provenance = _read(path)
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    texts: list[str] = []
    labels: list[str] = []
    header: list[str] = []
    line = 1  # where the row at hand begins: a quoted text may span lines
    try:
        for row in reader:
            here, line = line, reader.line_num + 1
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row]
                for column in ("text", "label"):
                    if header.count(column) != 1:
                        raise InputError(
                            f"{path}, line {here}: the header must name the columns text and label, "
                            f"each once; it is {','.join(header)!r}"
                        )
                continue
            if len(row) != len(header):
                raise InputError(f"{path}, line {here}: {len(row)} fields where the header names {len(header)}")
            text, label = row[header.index("text")], row[header.index("label")].strip()
            if not text.strip():
                raise InputError(f"{path}, line {here}: the text is empty")
            if not label:
                raise InputError(f"{path}, line {here}: the label is empty")
            texts.append(text)
            labels.append(label)
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not a valid CSV row ({error})") from error
    if not texts:
        raise InputError(f"{path}: no rows under the header")

    rows_of = Counter(labels)
    if len(rows_of) < 2:
        raise InputError(
            f"{path}: all {len(labels)} rows have the label {labels[0]!r}; at least two classes are needed"
        )
    names = sorted(rows_of, key=_label_order(rows_of))
    number = {name: n for n, name in enumerate(names)}
    examples = [Example(text, number[label]) for text, label in zip(texts, labels, strict=True)]
    splits = _by_hash(path, examples, texts, validation, test)
    unseen = set(range(len(names))) - {example.label for example in splits[0]}
    if unseen:
        name = names[min(unseen)]
        raise InputError(f"{path}: none of the {rows_of[name]} rows with the label {name!r} is in the training split")
    provenance |= {
        "split": "rows by hash of the text",
        "held_out": {"validation": validation, "test": test},
        "classes": {name: rows_of[name] for name in names},
    }
    return DataSet(Path(path).name, *splits, provenance=provenance, label_names=tuple(names))


def load_pairs(path: PathLike, validation: float = 0.05, test: float = 0.05) -> DataSet[Pair]:
    """Read pairs from JSON lines: one object a line with the strings ``prompt`` and ``completion``.

    ``references``, a list of strings, is optional; other keys and blank lines are ignored. The split is
    decided by a hash of the prompt, so that no prompt is in two splits.

    Raises
    ------
    InputError
        The file cannot be read as text; a line is no JSON object, or lacks a key, or has a value of another
        type or an empty completion; there are no pairs, or too few to hold any out.
    """
    _check_shares(validation, test)
    content, provenance = _read(path)
    pairs: list[Pair] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            pairs.append(_pair(f"{path}, line {number}", line))
    if not pairs:
        raise InputError(f"{path}: no pairs in it")
    splits = _by_hash(path, pairs, [pair.prompt for pair in pairs], validation, test)
    provenance |= {
        "split": "pairs by hash of the prompt",
        "held_out": {"validation": validation, "test": test},
    }
    return DataSet(Path(path).name, *splits, provenance=provenance)


def find(name: str) -> Path:
    """Where one of the well-known public sets lies on this machine.

    Looked for in the folder that the environment variable ``MINIGPT_DATA`` names, then among what `make data`
    downloaded.

    Parameters
    ----------
    name : str
        A file name of `minigpt.data.download.SETS`, e.g. ``"tinyshakespeare.txt"``.

    Raises
    ------
    InputError
        There is no set of this name, or it is in neither place.
    """
    from minigpt.data import (
        download,
    )  # at the top, `python -m minigpt.data.download` would meet itself imported

    download.check_name(name)
    folders = [Path(os.environ[FOLDER_VARIABLE])] if os.environ.get(FOLDER_VARIABLE) else []
    folders.append(download.cache_folder())
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked_in = " or ".join(map(str, folders))
    raise InputError(f"{name} is not in {looked_in}: `make data` downloads it (or set {FOLDER_VARIABLE} to its folder)")


def _read(path: PathLike) -> tuple[str, dict[str, Any]]:
    """The text of a file, without byte-order mark, and the file's own provenance."""
    if os.path.isdir(path):
        raise InputError(f"{path}: is a directory, a file is needed")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    nul = data.find(b"\0")
    if nul >= 0:
        hint = "UTF-16 text, to be saved as UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "a binary file"
        raise InputError(f"{path}: byte {nul} is zero, which text in UTF-8 never has; this looks like {hint}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the codec counts from behind a byte-order mark
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, start) + 1
        raise InputError(
            f"{path}: byte {start} (0x{data[start]:02x}, line {line}) is not UTF-8, which the file must be saved as"
        ) from error
    if not text.strip():
        raise InputError(f"{path}: is empty")
    # The name alone: records are made to be shared, and the hash says which file it was.
    provenance = {"source": Path(path).name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return text, provenance


def _by_hash(
    path: PathLike, records: list[Record], keys: list[str], validation: float, test: float
) -> tuple[list[Record], list[Record], list[Record]]:
    """Training, validation and test records: each in the split of its key, and one at least where asked for.

    Small sets would often get an empty split by chance; the first training key in the order of hashes fills
    it.
    """
    split_by_key = {key: split_of(key, validation, test) for key in keys}
    for split, share in (("validation", validation), ("test", test)):
        if share > 0 and split not in split_by_key.values():
            training = [key for key, its_split in split_by_key.items() if its_split == "train"]
            if len(training) < 2:
                raise InputError(f"{path}: {len(records)} records are too few, nothing is left for {split}")
            split_by_key[min(training, key=_digest)] = split
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record, key in zip(records, keys, strict=True):
        splits[split_by_key[key]].append(record)
    if not splits["train"]:
        raise InputError(f"{path}: {len(records)} records are too few, nothing is left for train")
    return splits["train"], splits["validation"], splits["test"]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def _check_shares(validation: float, test: float) -> None:
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise InputError(f"validation={validation}, test={test}: shares must not be negative and add up to less than 1")


def _label_order(labels: Counter[str]) -> Callable[[str], Any]:
    """Numbers in the order of numbers, if all labels are; else the order of words."""
    try:
        values = {label: int(label) for label in labels}
    except ValueError:
        return str
    return lambda label: (values[label], label)


def _pair(where: str, line: str) -> Pair:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, column {error.colno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: must be a JSON object with the keys prompt and completion")
    for key in ("prompt", "completion"):
        if key not in record:
            raise InputError(f"{where}: the key {key!r} is missing; there are {', '.join(map(repr, record)) or 'none'}")
        if not isinstance(record[key], str):
            raise InputError(f"{where}: {key!r} must be a string, it is {json.dumps(record[key])[:40]}")
    references = record.get("references", [])
    if not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
        raise InputError(f"{where}: 'references' must be a list of strings")
    if not record["completion"]:
        raise InputError(f"{where}: the completion is empty")
    for text in (record["prompt"], record["completion"], *references):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{where}: an unpaired surrogate (\\ud800 to \\udfff) is no character")
    return Pair(record["prompt"], record["completion"], tuple(references))
