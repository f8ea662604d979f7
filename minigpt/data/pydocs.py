"""Real English on every machine: the documentation of the user's own Python, NumPy and Matplotlib.

A document is one docstring, or one topic of Python's built-in help (``pydoc_data.topics``). Docstrings are
read from the ``.py`` files with `ast`, so that no module is run for its text; functions and types written
in C have no such file, and theirs are read from a fixed list of modules of the standard library and from
NumPy.

What is kept, in this order:

1. Test suites, bundled copies of other projects, IDLE and ``site-packages`` are not looked at.
2. Text goes through `inspect.cleandoc`; place holders that the libraries fill in at run time (``%(…)s``,
   ``${…}``) are cut out.
3. Documents under `MIN_CHARACTERS`, or with control characters or unpaired surrogates, are dropped.
4. *Tables*: documents in which fewer than `MIN_LETTERS` of the visible characters are letters are dropped
   (listings of codes and numbers, examples with hardly a word).
5. *Duplicates*: of documents with equal words the one first in name order stays. Of near duplicates the
   longest stays: a document goes if more than `MAX_REPEATED` of its text, counted in lines of
   `LINE_CHARACTERS` or more, stands in longer documents (help topics are often parts of each other, and the
   six polynomial bases share one manual). Without this, much of the held-out text would have been seen in
   training.

The split is decided by a hash of the document's text (`minigpt.data.base.split_of`). Both tasks made from the
documents keep it: what a base model was pre-trained on is in the train split of each task, and nothing else.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib
import importlib.util
import inspect
import os
import platform
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from sysconfig import get_paths
from typing import Any

import numpy as np

from minigpt.data.base import SPLITS, DataSet, Example, Pair, split_of
from minigpt.errors import InputError, RunError

MIN_CHARACTERS = 80
MIN_LETTERS = 0.6
MAX_REPEATED = 0.5
LINE_CHARACTERS = 20
# A tenth each, not a twentieth: a topic has a few hundred documents, and ten held-out ones measure nothing.
VALIDATION, TEST = 0.1, 0.1

_NOT_DOCUMENTATION = {
    "__phello__",
    "_bundled",
    "_examples",
    "_vendor",
    "_vendored",
    "idlelib",
    "test",
    "tests",
    "vendored",
}
# Without `sys`, whose hooks other programs replace.
_COMPILED = (
    "array",
    "builtins",
    "datetime",
    "decimal",
    "functools",
    "io",
    "itertools",
    "math",
    "numpy",
    "numpy.random",
    "os",
    "socket",
    "time",
)
_MPL_TOOLKITS = ("axes_grid1", "axisartist", "mplot3d")  # the folder is shared: others may install into it
_PLACE_HOLDER = re.compile(r"%\([^()\n]+\)s|\$\{[A-Z_]+\}")
_PLACE_HOLDER_LINE = re.compile(rf"^[ \t]*(?:{_PLACE_HOLDER.pattern})[ \t]*\n?", re.MULTILINE)
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")

# Each group has more than two hundred documents, so that balance costs little, and is part of every
# Python from 3.11 on (Tk, for one, is often left out).
TOPICS: dict[str, tuple[str, ...]] = {
    "arrays": ("numpy._core", "numpy.lib", "numpy.ndarray"),
    "artists": (
        "matplotlib.artist",
        "matplotlib.collections",
        "matplotlib.legend",
        "matplotlib.legend_handler",
        "matplotlib.lines",
        "matplotlib.offsetbox",
        "matplotlib.text",
    ),
    "axes": ("matplotlib.axes", "matplotlib.axis", "matplotlib.ticker"),
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "queue", "subprocess", "threading"),
    "files": ("glob", "io", "os", "pathlib", "shutil", "tarfile", "tempfile", "zipfile"),
    "geometry": ("matplotlib.bezier", "matplotlib.patches", "matplotlib.path", "matplotlib.transforms"),
    "mail": ("email", "imaplib", "mailbox", "poplib", "smtplib"),
    "numbers": ("_pydecimal", "decimal", "fractions", "math", "numbers", "statistics"),
    "testing": ("bdb", "doctest", "numpy.testing", "pdb", "timeit", "trace", "unittest"),
    "web": ("html", "http", "urllib", "wsgiref", "xml", "xmlrpc"),
}


@dataclass(frozen=True)
class Document:
    """One docstring or help topic.

    Attributes
    ----------
    name : str
        Qualified name, e.g. ``"numpy.ma.core.MaskedArray.compressed"``.
    text : str
    split : str
        ``"train"``, ``"validation"`` or ``"test"``, by the hash of `text`.
    """

    name: str
    text: str
    split: str


def corpus() -> DataSet[str]:
    """Every kept document, ordered by qualified name within each split.

    Returns
    -------
    DataSet of str
        About 5 MB; the exact size depends on the installed versions, which `provenance` records.
    """
    found, provenance = _documents()
    return DataSet(
        name="pydocs",
        train=[document.text for document in found if document.split == "train"],
        validation=[document.text for document in found if document.split == "validation"],
        test=[document.text for document in found if document.split == "test"],
        provenance=provenance,
    )


def documents() -> tuple[Document, ...]:
    """The kept documents with their names, sorted by name."""
    return _documents()[0]


def topics(n_per_class: int | None = None, max_characters: int = 600) -> DataSet[Example]:
    """The topic of a docstring, a labelled task: which group of subpackages (`TOPICS`) it comes from.

    Every class has the same number of examples within each split. Names of the packages and of the topics
    themselves are cut out of all texts (``asyncio.Future.cancel`` becomes ``cancel``), whatever their class,
    so that neither a name nor its absence gives the label away.

    Parameters
    ----------
    n_per_class : int, optional
        Training examples per class; by default as many as the smallest class has. Validation and test are
        always as large as balance allows.
    max_characters : int
        Texts are cut after the last whole word within this many characters.

    Raises
    ------
    InputError
        `n_per_class` or `max_characters` is not positive, or `n_per_class` is more than there are.
    RunError
        This Python was installed without its ``.py`` files, so that a topic has no documents.
    """
    _require_positive("max_characters", max_characters)
    names = tuple(sorted(TOPICS))
    pools: dict[str, list[list[str]]] = {split: [[] for _ in names] for split in SPLITS}
    seen: set[str] = set()
    for document in sorted(documents(), key=_hash_order):
        label = _topic_of(document.name, names)
        if label is None:
            continue
        text = _truncated(_without_module_names(document.text), max_characters)
        if len(text) < MIN_CHARACTERS or text in seen:
            continue
        seen.add(text)
        pools[document.split][label].append(text)

    sizes = {split: min(len(texts) for texts in pools[split]) for split in SPLITS}
    for split, size in sizes.items():
        if size == 0:
            missing = [name for name, texts in zip(names, pools[split], strict=True) if not texts]
            raise RunError(
                f"no {split} documents on {', '.join(missing)}: this Python seems to be installed without its .py files"
            )
    if n_per_class is not None:
        _require_positive("n_per_class", n_per_class)
        if n_per_class > sizes["train"]:
            raise InputError(
                f"n_per_class={n_per_class}: the documentation on this machine gives at most "
                f"{sizes['train']} training examples per class"
            )
        sizes["train"] = n_per_class
    records = {
        split: sorted(
            (Example(text, label) for label, texts in enumerate(pools[split]) for text in texts[: sizes[split]]),
            key=_hash_order,
        )
        for split in SPLITS
    }
    provenance = {
        **corpus().provenance,
        "max_characters": max_characters,
        "per_class": sizes,
        "available": {n: {s: len(pools[s][i]) for s in SPLITS} for i, n in enumerate(names)},
    }
    return DataSet(
        "pydocs-topics",
        records["train"],
        records["validation"],
        records["test"],
        provenance,
        label_names=names,
    )


def summaries(max_characters: int = 600) -> DataSet[Pair]:
    """Body → first line, a summarisation task whose references the authors of the documentation wrote.

    Taken are docstrings whose first paragraph is one line that reads as a sentence (20 to 120 characters, a
    capital at its start, a full stop at its end, four words or more) and is not repeated in the body, which
    has at least `MIN_CHARACTERS`. Prompts are ``"Text: …\\nSummary:"``, completions begin with a blank.

    Parameters
    ----------
    max_characters : int
        The body is cut after the last whole word within this many characters.

    Raises
    ------
    InputError
        `max_characters` is not positive.
    """
    _require_positive("max_characters", max_characters)
    records: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for document in sorted(documents(), key=_hash_order):
        first, _, body = document.text.partition("\n\n")
        body = body.strip()
        is_sentence = first[:1].isupper() and first.endswith(".") and len(first.split()) >= 4
        if "\n" in first or not 20 <= len(first) <= 120 or not is_sentence:
            continue
        if len(body) < MIN_CHARACTERS or first in body:
            continue
        records[document.split].append(Pair(f"Text: {_truncated(body, max_characters)}\nSummary:", f" {first}"))
    provenance = {**corpus().provenance, "max_characters": max_characters}
    return DataSet("pydocs-summaries", records["train"], records["validation"], records["test"], provenance)


@cache
def _documents() -> tuple[tuple[Document, ...], dict[str, Any]]:
    """All kept documents by name, and what they were made from."""
    dropped: Counter[str] = Counter()
    distinct: dict[str, tuple[str, str]] = {}  # words -> name and text
    raw = sorted([*_docstrings_in_files(dropped), *_docstrings_of_compiled(), *_help_topics()])
    for name, docstring in raw:
        text = _clean(docstring)
        words = " ".join(text.split())
        if len(text) < MIN_CHARACTERS:
            dropped["short"] += 1
        elif _UNPRINTABLE.search(text):
            dropped["unprintable"] += 1
        elif sum(map(str.isalpha, words)) < MIN_LETTERS * len(words.replace(" ", "")):
            dropped["tables"] += 1
        elif words in distinct:
            dropped["duplicates"] += 1
        else:
            distinct[words] = name, text

    kept: list[Document] = []
    lines_seen: set[str] = set()
    for name, text in sorted(distinct.values(), key=lambda pair: (-len(pair[1]), pair[0])):
        lines = [line for line in map(str.strip, text.split("\n")) if len(line) >= LINE_CHARACTERS]
        repeated = sum(len(line) for line in lines if line in lines_seen)
        if repeated > MAX_REPEATED * sum(map(len, lines)):
            dropped["near_duplicates"] += 1
            continue
        lines_seen.update(lines)
        kept.append(Document(name, text, split_of(text, VALIDATION, TEST)))
    kept.sort(key=lambda document: document.name)

    sources: dict[str, dict[str, int]] = {}
    for document in kept:
        source = document.name.partition(".")[0]
        source = {"numpy": "numpy", "matplotlib": "matplotlib", "mpl_toolkits": "matplotlib"}.get(source, "python")
        count = sources.setdefault(source, {"documents": 0, "characters": 0})
        count["documents"] += 1
        count["characters"] += len(document.text)
    provenance = {
        "source": "documentation of Python, NumPy and Matplotlib",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "matplotlib": metadata.version("matplotlib"),
        },
        "documents": len(kept),
        "characters": sum(len(document.text) for document in kept),
        "by_source": {source: sources[source] for source in sorted(sources)},
        "dropped": {reason: dropped[reason] for reason in sorted(dropped)},
        "held_out": {"validation": VALIDATION, "test": TEST},
    }
    return tuple(kept), provenance


def _docstrings_in_files(dropped: Counter[str]) -> list[tuple[str, str]]:
    """(qualified name, docstring) of all that is written in Python."""
    matplotlib = _package_folder("matplotlib")
    roots = [
        (Path(get_paths()["stdlib"]), ""),
        (_package_folder("numpy"), "numpy."),
        (matplotlib, "matplotlib."),
        *((matplotlib.parent / "mpl_toolkits" / part, f"mpl_toolkits.{part}.") for part in _MPL_TOOLKITS),
    ]
    found: list[tuple[str, str]] = []
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are many small objects and no rubbish: the collector would double the time
    try:
        for root, prefix in roots:
            for path in _python_files(root):
                source = path.read_bytes()
                if b'"""' not in source and b"'''" not in source:
                    continue
                module = prefix + ".".join(path.relative_to(root).with_suffix("").parts)
                module = module.removesuffix(".__init__").removesuffix(".")
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # invalid escapes in other people's code
                        tree = ast.parse(source)
                except (SyntaxError, ValueError):
                    dropped["unparsable_files"] += 1
                    continue
                found.extend(_docstrings_in(tree, module))
    finally:
        if collecting:
            gc.enable()
    return found


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # finds a top-level package without running it
    if spec is None or spec.origin is None:
        raise RunError(
            f"{name} is not installed; pydocs reads its documentation: install minigpt with its dependencies"
        )
    return Path(spec.origin).parent


def _python_files(root: Path) -> Iterator[Path]:
    """Python files under `root`, without tests, bundled projects and folders that are no packages."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if s.isidentifier() and s not in _NOT_DOCUMENTATION)
        for file in sorted(files):
            if file.endswith(".py") and not file.startswith(("test_", "conftest")):
                yield Path(folder, file)


def _docstrings_in(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Docstrings of a module, class or function and of all defined within, also under ``if`` and ``try``."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield name, docstring
    for block in ("body", "orelse"):
        for child in getattr(node, block, ()):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings_in(child, f"{name}.{child.name}")
            elif isinstance(child, ast.If | ast.Try):
                yield from _docstrings_in(child, name)


def _docstrings_of_compiled() -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of functions, types and their members that are written in C."""
    for module_name in _COMPILED:
        for name, value in sorted(vars(importlib.import_module(module_name)).items()):
            is_type = isinstance(value, type)
            # Notebooks and test runners put functions of their own into `builtins`, but replace no type.
            is_function = module_name != "builtins" and (inspect.isbuiltin(value) or isinstance(value, np.ufunc))
            if name.startswith("_") or not (is_type or is_function):
                continue
            candidates = [(f"{module_name}.{name}", value)]
            if is_type:
                candidates += (
                    (f"{module_name}.{name}.{member_name}", member)
                    for member_name, member in sorted(vars(value).items())
                    if inspect.isdatadescriptor(member)
                    or (inspect.isroutine(member) and not inspect.isfunction(member))
                )
            for qualified_name, documented in candidates:
                docstring = getattr(documented, "__doc__", None)
                if isinstance(docstring, str):
                    yield qualified_name, docstring


def _help_topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics as help_topics

    for name, text in help_topics.items():
        yield f"pydoc_data.topics.{name}", text


def _clean(docstring: str) -> str:
    text = _PLACE_HOLDER.sub("", _PLACE_HOLDER_LINE.sub("", inspect.cleandoc(docstring)))
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _hash_order(record: Document | Example) -> bytes:
    """Sort key that mixes the subpackages and needs no seed."""
    return hashlib.sha256(record.text.encode("utf-8")).digest()


def _topic_of(name: str, names: tuple[str, ...]) -> int | None:
    for label, topic in enumerate(names):
        if any(name == package or name.startswith(package + ".") for package in TOPICS[topic]):
            return label
    return None


@cache
def _module_name_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The head of a dotted name that starts in a topic's package, and bare names of packages and topics."""
    packages = [package for group in TOPICS.values() for package in group]
    parts = {"np", "mpl", "plt", *(part for package in packages for part in package.split("."))}
    words = {"np", "mpl", "plt", *(package.partition(".")[0] for package in packages), *TOPICS}
    dotted = rf"\b(?:{'|'.join(sorted(parts))})(?:\.\w+)*\.(?=\w)"
    return re.compile(dotted), re.compile(rf"\b(?:{'|'.join(sorted(words))})\b ?", re.IGNORECASE)


def _without_module_names(text: str) -> str:
    dotted, words = _module_name_patterns()
    return words.sub("", dotted.sub("", text)).strip()


def _truncated(text: str, max_characters: int) -> str:
    """`text`, cut at the last blank or line end within `max_characters`."""
    if len(text) <= max_characters:
        return text
    head = text[: max_characters + 1]
    end = max(head.rfind(" "), head.rfind("\n"))
    return text[: end if end > 0 else max_characters].rstrip()


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name}={value}: must be at least 1")
