"""Documentation corpus, the user's files, downloads, and the way from records into tokens."""

import csv
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minigpt.data import (
    IGNORED,
    SPLITS,
    Example,
    Pair,
    TokenWindows,
    bytes_of,
    collate_labelled,
    collate_pairs,
    download,
    encode_documents,
    evaluation_windows,
    files,
    pad_batch,
    pydocs,
    split_of,
)
from minigpt.data.tokens import check_ids
from minigpt.errors import InputError, RunError
from minigpt.tokenizer import CharTokenizer, Tokenizer

ROOT = Path(__file__).resolve().parents[2]
needs_public_sets = pytest.mark.skipif(
    not os.environ.get(files.FOLDER_VARIABLE),
    reason=f"{files.FOLDER_VARIABLE} is not set: tests on tiny Shakespeare and the movie reviews did NOT run",
)


def one_line(error: pytest.ExceptionInfo) -> str:
    """The message, which must be a single line."""
    message = str(error.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------- pydocs


@pytest.fixture(scope="module")
def corpus():
    return pydocs.corpus()


def test_corpus_is_about_five_megabytes_in_three_disjoint_splits(corpus):
    size = sum(len(text.encode()) for split in SPLITS for text in corpus.split(split))
    assert 3e6 < size < 8e6
    assert len(corpus.train) > 3000
    assert min(len(corpus.validation), len(corpus.test)) > 300
    texts = [text for split in SPLITS for text in corpus.split(split)]
    assert len(set(texts)) == len(texts)
    assert len({" ".join(text.split()) for text in texts}) == len(texts)


def test_corpus_split_is_the_hash_of_the_text(corpus):
    for split in SPLITS:
        assert {split_of(text, pydocs.VALIDATION, pydocs.TEST) for text in corpus.split(split)} == {split}


def test_corpus_documents_are_clean(corpus):
    for text in corpus.train + corpus.validation + corpus.test:
        assert len(text) >= pydocs.MIN_CHARACTERS
        assert text == text.strip()
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]|[ ]\n|%\(\w+\)s", text)
        visible = "".join(text.split())
        assert sum(map(str.isalpha, visible)) >= pydocs.MIN_LETTERS * len(visible)


def test_corpus_has_all_sources_and_no_test_suites(corpus):
    names = [document.name for document in pydocs.documents()]
    assert names == sorted(names)
    for name in ("argparse.ArgumentParser", "numpy.linalg._linalg.svd", "matplotlib.axes._axes.Axes.plot"):
        assert name in names
    assert any(name.startswith("numpy.random.Generator.") for name in names)  # written in C
    assert any(name.startswith("pydoc_data.topics.") for name in names)
    parts = {part for name in names for part in name.split(".")[:-1]}
    assert not parts & {"tests", "idlelib", "_vendor", "site-packages", "pytest", "torch"}
    provenance = corpus.provenance
    assert set(provenance["versions"]) == {"python", "numpy", "matplotlib"}
    assert provenance["versions"]["numpy"] == np.__version__
    by_source = provenance["by_source"]
    assert set(by_source) == {"python", "numpy", "matplotlib"}
    assert sum(source["documents"] for source in by_source.values()) == len(names) == provenance["documents"]
    assert sum(source["characters"] for source in by_source.values()) == provenance["characters"]
    json.dumps(corpus.record())


def test_near_duplicates_are_gone(corpus):
    """No document stands to more than half, in lines, in the longer ones."""
    by_length = sorted(pydocs.documents(), key=lambda d: -len(d.text))
    seen: set[str] = set()
    for document in by_length:
        lines = [line.strip() for line in document.text.split("\n") if len(line.strip()) >= pydocs.LINE_CHARACTERS]
        shared = sum(len(line) for line in lines if line in seen)
        assert shared <= pydocs.MAX_REPEATED * sum(map(len, lines))
        seen.update(lines)


def test_each_rule_drops_what_it_says(monkeypatch):
    lines = [f"This is line {n} of a text that many documents share." for n in range(6)]
    raw = {
        "b.whole": "\n".join(lines),
        "a.part": "\n".join(lines[:3]),  # stands in b.whole
        "c.half": "\n".join(
            [
                *lines[:2],
                "A line of its own, which none of the other documents has.",
                "And one more of that kind, so that it is half and half.",
            ]
        ),
        "b.copy": "  " + "\n\n  ".join(lines),  # equal words, an earlier name
        "d.short": "Too short to be kept.",
        "e.table": "\n".join(f"0x{n:04x} = {n:6d}, {n:6d}; ok" for n in range(9)),
        "f.nul": "\0" + "A text that is long enough and yet has a character that is none. " * 2,
    }
    monkeypatch.setattr(pydocs, "_docstrings_in_files", lambda dropped: list(raw.items())[::-1])
    monkeypatch.setattr(pydocs, "_docstrings_of_compiled", list)
    monkeypatch.setattr(pydocs, "_help_topics", list)
    kept, provenance = pydocs._documents.__wrapped__()
    assert [document.name for document in kept] == ["b.copy", "c.half"]
    assert provenance["dropped"] == {
        "duplicates": 1, "near_duplicates": 1, "short": 1, "tables": 1, "unprintable": 1,
    }  # fmt: skip


def test_corpus_is_the_same_in_another_process(corpus):
    program = "import json; from minigpt.data import pydocs; print(json.dumps(pydocs.corpus().record()))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == corpus.record()


def test_what_other_programs_put_into_builtins_changes_nothing(monkeypatch):
    before = list(pydocs._docstrings_of_compiled())
    assert ("builtins.str.join", str.join.__doc__) in before
    assert any(name == "math.hypot" for name, _ in before)
    monkeypatch.setattr("builtins.input", lambda prompt="": "a notebook's own")
    monkeypatch.setattr("builtins.display", print, raising=False)
    assert list(pydocs._docstrings_of_compiled()) == before


def test_docstrings_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "tests").mkdir()
    (tmp_path / "not-a-package").mkdir()
    (tmp_path / "package" / "module.py").write_text(
        textwrap.dedent(
            '''
            """Module."""
            if True:
                class A:
                    """Class."""
                    async def f(self):
                        """Method."""
            else:
                def g():
                    """Other."""
            try:
                def h():
                    """Tried."""
            except E:
                pass
            def k():
                x = """no docstring"""
            '''
        )
    )
    for unwanted in ("package/tests/a.py", "not-a-package/a.py", "package/test_a.py", "package/conftest.py"):
        (tmp_path / unwanted).write_text('"""Unwanted."""')
    found = list(pydocs._python_files(tmp_path))
    assert found == [tmp_path / "package" / "module.py"]
    tree = pydocs.ast.parse(found[0].read_text())
    assert sorted(pydocs._docstrings_in(tree, "m")) == [
        ("m", "Module."),
        ("m.A", "Class."),
        ("m.A.f", "Method."),
        ("m.g", "Other."),
        ("m.h", "Tried."),
    ]


def test_clean_dedents_and_cuts_place_holders_out():
    raw = "First.\n\n    a %(x)s b  \n    %(Line2D:kwdoc)s\n        indented\n    ${LIKE}\n    "
    assert pydocs._clean(raw) == "First.\n\na  b\n    indented"


@pytest.fixture(scope="module")
def topics():
    return pydocs.topics()


def test_topics_are_exactly_balanced_and_follow_the_corpus_split(topics):
    data = topics
    assert len(data.label_names) >= 6
    for split in SPLITS:
        counts = Counter(example.label for example in data.split(split))
        assert set(counts) == set(range(len(data.label_names)))
        assert len(set(counts.values())) == 1
        assert counts[0] == data.provenance["per_class"][split]
    assert data.provenance["per_class"]["train"] >= 100
    texts = [example.text for split in SPLITS for example in data.split(split)]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 600
    # What became of each document's text, on the way that `topics` goes, leads back to the document's split.
    split_of_text = {}
    for document in pydocs.documents():
        split_of_text.setdefault(pydocs._truncated(pydocs._without_module_names(document.text), 600), set()).add(
            document.split
        )
    for split in SPLITS:
        assert all(split in split_of_text[example.text] for example in data.split(split))
    labels = [example.label for example in data.train[:50]]
    assert labels != sorted(labels)


def test_topic_names_cannot_be_read_in_the_texts(topics):
    data = topics
    packages = {package.partition(".")[0] for group in pydocs.TOPICS.values() for package in group}
    forbidden = re.compile(rf"\b(?:{'|'.join([*packages, *data.label_names])})\b", re.IGNORECASE)
    for split in SPLITS:
        for example in data.split(split):
            assert not forbidden.search(example.text), example
    assert pydocs._without_module_names("See asyncio.Future.cancel and np.ma.array.") == "See cancel and array."


def test_topics_can_be_fewer(topics):
    few = pydocs.topics(n_per_class=5)
    assert Counter(e.label for e in few.train) == dict.fromkeys(range(len(few.label_names)), 5)
    assert set(few.train) < set(topics.train)
    assert few.test == topics.test
    with pytest.raises(InputError) as error:
        pydocs.topics(n_per_class=100_000)
    assert "n_per_class=100000" in one_line(error)
    with pytest.raises(InputError, match="at least 1"):
        pydocs.topics(n_per_class=0)
    with pytest.raises(InputError, match="max_characters=0"):
        pydocs.topics(max_characters=0)


def test_topics_say_so_where_python_has_no_sources(monkeypatch):
    without = tuple(d for d in pydocs.documents() if not d.name.startswith(pydocs.TOPICS["web"]))
    monkeypatch.setattr(pydocs, "documents", lambda: without)
    with pytest.raises(RunError) as error:
        pydocs.topics()
    assert "web" in one_line(error)


def test_summaries_lead_from_the_body_to_the_first_line(corpus):
    data = pydocs.summaries(max_characters=300)
    assert len(data.train) > 1000
    assert min(len(data.validation), len(data.test)) > 100
    corpus_text = {split: "\0".join(corpus.split(split)) for split in SPLITS}
    for split in SPLITS:
        for pair in data.split(split)[:150]:
            assert pair.prompt.startswith("Text: ")
            assert pair.prompt.endswith("\nSummary:")
            body = pair.prompt.removeprefix("Text: ").removesuffix("\nSummary:")
            summary = pair.completion.removeprefix(" ")
            assert len(body) <= 300
            assert summary not in body
            assert pair.completion[0] == " "
            assert summary[0].isupper()
            assert summary[-1] == "."
            assert f"{summary}\n\n" in corpus_text[split]
            assert body in corpus_text[split]


def test_truncation_is_at_a_blank():
    assert pydocs._truncated("one two three", 13) == "one two three"
    assert pydocs._truncated("one two three", 12) == "one two"
    assert pydocs._truncated("one two three", 7) == "one two"
    assert pydocs._truncated("unbreakable", 4) == "unbr"


# ----------------------------------------------------------------------------------------------- files


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_is_cut_into_contiguous_parts_and_kept_as_it_is(tmp_path):
    text = "".join(f"Zeile {n} äöü\r\n" for n in range(200))
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbf" + text.encode())
    data = files.load_text(path)
    assert [len(data.split(split)) for split in SPLITS] == [1, 1, 1]
    assert data.train[0] + data.validation[0] + data.test[0] == text
    assert len(data.train[0]) == int(len(text) * 0.9)
    assert len(data.test[0]) == len(text) - int(len(text) * 0.95)
    assert data.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.provenance["source"] == path.name  # records are shared; where the file lay is nobody's business
    assert data.provenance["bytes"] == path.stat().st_size
    assert data.provenance["characters"] == len(text)


@pytest.mark.parametrize("n", [10, 11, 99, 1001, 12345])
def test_text_split_without_test_is_nanogpts(tmp_path, n):
    text = "".join(chr(97 + k % 26) for k in range(n))
    data = files.load_text(write(tmp_path, "a.txt", text), validation=0.1, test=0.0)
    assert data.train == [text[: int(n * 0.9)]]
    assert data.validation == [text[int(n * 0.9) :]]
    assert data.test == []


def test_text_with_separators_is_split_by_document(tmp_path):
    documents = [f"Document {n}\nhas two lines." for n in range(300)]
    data = files.load_text(write(tmp_path, "a.txt", "\n<|endoftext|>\n".join([*documents, " "])))
    assert sorted(data.train + data.validation + data.test) == sorted(documents)
    assert all(split_of(d) == split for split in SPLITS for d in data.split(split))
    assert min(len(data.validation), len(data.test)) >= 3


def test_small_collections_have_no_empty_split(tmp_path):
    for n in range(3, 30):
        documents = [f"d{k}" for k in range(n)]
        data = files.load_text(write(tmp_path, "a.txt", files.SEPARATOR.join(documents)))
        assert min(len(data.split(split)) for split in SPLITS) >= 1
        assert sorted(data.train + data.validation + data.test) == sorted(documents)
        other_order = files.load_text(write(tmp_path, "a.txt", files.SEPARATOR.join(documents[::-1])))
        assert all(other_order.split(split) == data.split(split)[::-1] for split in SPLITS)
    with pytest.raises(InputError) as error:
        files.load_text(write(tmp_path, "a.txt", "one<|endoftext|>two"))
    assert "too few" in one_line(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ["is empty"]),
        (b"\xef\xbb\xbf \r\n\t", ["is empty"]),
        (b"abc\x00def", ["byte 3", "binary", "UTF-8"]),
        ("text".encode("utf-16"), ["UTF-16", "UTF-8"]),
        ("line\nnaïve".encode("latin-1"), ["byte 7", "line 2", "0xef", "UTF-8"]),
        (b"\xef\xbb\xbfab\xff", ["byte 5", "line 1", "0xff"]),
        (b"ends in half a character \xc3", ["byte 25"]),
        (b"abc", ["3 characters", "too few"]),
        (b"<|endoftext|>\n<|endoftext|>", ["separators"]),
    ],
)
@pytest.mark.parametrize("name", ["bad.txt"])
def test_bad_text_gets_one_line(tmp_path, name, content, said):
    path = write(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        files.load(path)
    message = one_line(error)
    assert message.startswith(str(path))
    assert all(part in message for part in said), message


def test_missing_files_and_directories_get_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file") as error:
        files.load_text(tmp_path / "missing.txt")
    one_line(error)
    with pytest.raises(InputError, match="is a directory"):
        files.load_text(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        files.load_text(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.5, 0.5), (float("nan"), 0.1)])
def test_impossible_shares_are_refused(tmp_path, shares):
    path = write(tmp_path, "a.txt", "x" * 100)
    with pytest.raises(InputError, match="shares"):
        files.load_text(path, *shares)


def test_a_file_is_read_once(tmp_path, monkeypatch):
    path = write(tmp_path, "a.txt", "word " * 100)
    reads = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or read_bytes(self))
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("a second way of reading"))
    files.load_text(path)
    assert reads == [path]


def labelled_csv(rows: list[tuple[str, object]]) -> str:
    return "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows)


def test_labelled_rows_are_split_by_text(tmp_path):
    rows = [(f"Row {n}, with comma\nand line", n % 3 - 1) for n in range(300)]
    data = files.load(write(tmp_path, "a.csv", labelled_csv(rows)))
    assert data.label_names == ("-1", "0", "1")
    everything = [(e.text, int(data.label_names[e.label])) for s in SPLITS for e in data.split(s)]
    assert sorted(everything) == sorted(rows)
    assert all(split_of(e.text) == split for split in SPLITS for e in data.split(split))
    assert data.provenance["classes"] == {"-1": 100, "0": 100, "1": 100}


def test_labels_are_ordered_as_numbers_or_as_words(tmp_path):
    rows = [(f"Row {n}", n % 11) for n in range(110)]
    data = files.load_labelled(write(tmp_path, "a.csv", labelled_csv(rows)))
    assert data.label_names == tuple(map(str, range(11)))
    words = [(f"Row {n}", ["spam", "ham", "10"][n % 3]) for n in range(60)]
    data = files.load_labelled(write(tmp_path, "a.csv", labelled_csv(words)))
    assert data.label_names == ("10", "ham", "spam")


def test_csv_columns_may_stand_in_any_order(tmp_path):
    content = "\ufefflabel,source,text\r\n" + "".join(f'{n % 2},x,"a ""{n}"""\r\n\r\n' for n in range(40))
    data = files.load_labelled(write(tmp_path, "a.csv", content))
    assert {e.text for s in SPLITS for e in data.split(s)} == {f'a "{n}"' for n in range(40)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,labels\na,1\n", ["line 1", "text,labels"]),
        ("text,label,text\na,1,b\n", ["line 1", "once"]),
        ("text,label\n", ["no rows"]),
        ("text,label\na,1\nb,1\n", ["'1'", "two classes"]),
        ("text,label\na,1\nb\n", ["line 3", "1 fields"]),
        ('text,label\n"a\nb",1\nb,0,2\n', ["line 4", "3 fields"]),
        ("text,label\na,1\n ,0\n", ["line 3", "text is empty"]),
        ("text,label\na,1\nb, \n", ["line 3", "label is empty"]),
        ('text,label\na,1\n"b,0\nc,1\n', ["line 3", "not a valid CSV"]),
        ('text,label\n"a"b,1\n', ["line 2", "not a valid CSV"]),
        (f"text,label\n{'x' * 200_000},1\n", ["line 2", "not a valid CSV"]),
        ("text,label\na,1\nb,0\n", ["too few"]),
        (b"text,label\na\xff,1\n", ["byte 12", "line 2", "UTF-8"]),
        (b"", ["is empty"]),
    ],
)
def test_bad_csv_gets_one_line(tmp_path, content, said):
    path = write(tmp_path, "bad.csv", content)
    with pytest.raises(InputError) as error:
        files.load(path)
    message = one_line(error)
    assert message.startswith(str(path))
    assert all(part in message for part in said), message


def test_a_class_without_training_rows_is_refused(tmp_path):
    held_out = next(text for text in (f"rare {n}" for n in range(1000)) if split_of(text) == "test")
    rows = [(f"Row {n}", n % 2) for n in range(100)] + [(held_out, 2)]
    with pytest.raises(InputError, match="none of the 1 rows with the label '2'"):
        files.load_labelled(write(tmp_path, "a.csv", labelled_csv(rows)))


def test_pairs_are_split_by_prompt(tmp_path):
    pairs = [Pair(f"Q {n // 2}\u2028", f"A {n}", (f"R {n}",) if n % 2 else ()) for n in range(400)]
    records = [{"id": 1, "prompt": p.prompt, "completion": p.completion, "references": p.references} for p in pairs]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    data = files.load(write(tmp_path, "a.jsonl", "\r\n\n".join(lines)))
    everything = [pair for split in SPLITS for pair in data.split(split)]
    assert sorted(everything, key=str) == sorted(pairs, key=str)
    prompts = [{pair.prompt for pair in data.split(split)} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


GOOD = '{"prompt": "p", "completion": "c"}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD + '{"prompt": "p", "completion": }\n', ["line 2", "column 31", "JSON"]),
        (GOOD + "[1, 2]\n", ["line 2", "object"]),
        (GOOD + '\n{"prompt": "p"}\n', ["line 3", "'completion' is missing", "'prompt'"]),
        (GOOD + '{"completion": "c", "prompt": 3}\n', ["line 2", "'prompt' must be a string", "3"]),
        (GOOD + '{"prompt": "p", "completion": ""}\n', ["line 2", "completion is empty"]),
        (GOOD + '{"prompt": "p", "completion": "c", "references": "r"}', ["line 2", "references"]),
        (GOOD + '{"prompt": "\\ud800", "completion": "c"}', ["line 2", "surrogate"]),
        (GOOD + "[" * 100_000, ["line 2", "JSON"]),
        (GOOD + "9" * 10_000, ["line 2", "JSON"]),
        (GOOD * 5, ["too few"]),
        (b"\x80", ["byte 0", "UTF-8"]),
    ],
)
def test_bad_jsonl_gets_one_line(tmp_path, content, said):
    path = write(tmp_path, "bad.jsonl", content)
    with pytest.raises(InputError) as error:
        files.load(path)
    message = one_line(error)
    assert message.startswith(str(path))
    assert all(part in message for part in said), message


def test_find_looks_in_the_folder_then_in_the_cache(tmp_path, monkeypatch):
    cache, folder = tmp_path / "cache", tmp_path / "folder"
    cache.mkdir()
    folder.mkdir()
    monkeypatch.setattr(download, "cache_folder", lambda: cache)
    monkeypatch.delenv(files.FOLDER_VARIABLE, raising=False)
    with pytest.raises(InputError, match="make data") as error:
        files.find("tinyshakespeare.txt")
    assert str(cache) in one_line(error)
    write(cache, "tinyshakespeare.txt", "x")
    assert files.find("tinyshakespeare.txt") == cache / "tinyshakespeare.txt"
    monkeypatch.setenv(files.FOLDER_VARIABLE, str(folder))
    assert files.find("tinyshakespeare.txt") == cache / "tinyshakespeare.txt"
    write(folder, "tinyshakespeare.txt", "x")
    assert files.find("tinyshakespeare.txt") == folder / "tinyshakespeare.txt"
    with pytest.raises(InputError, match="there are tinyshakespeare"):
        files.find("war_and_peace.txt")


@needs_public_sets
def test_public_sets_load(tmp_path):
    path = files.find("tinyshakespeare.txt")
    text = path.read_text("utf-8")
    data = files.load_text(path, validation=0.1, test=0.0)
    assert (len(data.train[0]), len(data.validation[0])) == (1_003_854, 111_540)
    assert data.train[0] + data.validation[0] == text
    assert data.provenance["sha256"] == download.SETS["tinyshakespeare.txt"].sha256

    reviews = files.load(files.find("movie_reviews.csv"))
    assert sum(len(reviews.split(split)) for split in SPLITS) == 10_662
    assert reviews.label_names == ("0", "1")
    assert reviews.provenance["classes"] == {"0": 5331, "1": 5331}
    assert reviews.provenance["sha256"] == download.SETS["movie_reviews.csv"].sha256


@needs_public_sets
def test_reviews_are_built_as_they_are_published():
    """From the sentences as the two source files have them, the recipe gives the known bytes."""
    path = files.find("movie_reviews.csv")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [
        b"".join(row["text"].encode("latin-1") + b" \n" for row in rows if row["label"] == label) for label in "10"
    ]
    assert download._reviews_csv(parts) == path.read_bytes()


# -------------------------------------------------------------------------------------------- download


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine: its address, the files it serves, and a cache folder to download into."""
    served = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = served.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "cache_folder", lambda: tmp_path / "cache")
    yield f"http://127.0.0.1:{web.server_port}", served, tmp_path / "cache"
    web.shutdown()
    thread.join()
    web.server_close()


def public_set(address: str, parts: list[bytes], built: bytes) -> download.PublicSet:
    return download.PublicSet(
        "a test",
        hashlib.sha256(built).hexdigest(),
        tuple((f"{address}/{n}", hashlib.sha256(part).hexdigest()) for n, part in enumerate(parts)),
        lambda contents: b"".join(contents),
    )


def test_fetch_downloads_once_and_repairs(server, monkeypatch, capsys):
    address, served, cache = server
    served.update({"/0": b"one ", "/1": b"two"})
    monkeypatch.setitem(download.SETS, "two.txt", public_set(address, [b"one ", b"two"], b"one two"))
    path = download.fetch("two.txt")
    assert path == cache / "two.txt"
    assert path.read_bytes() == b"one two"
    served.clear()
    assert download.fetch("two.txt") == path
    path.write_bytes(b"damaged")
    assert download.fetch("two.txt").read_bytes() == b"one two"
    assert download.main(["two.txt"]) == 0
    assert str(path) in capsys.readouterr().out


def test_failed_downloads_get_one_line_and_leave_no_file(server, monkeypatch, capsys):
    address, served, cache = server
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        offline = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for known, said in [
            (public_set(offline, [b"one"], b"one"), "online"),
            (public_set(address, [b"one"], b"one"), "HTTP status 404"),
        ]:
            monkeypatch.setitem(download.SETS, "one.txt", known)
            assert download.main(["one.txt"]) == 1
            message = capsys.readouterr().err.strip()
            assert said in message
            assert "\n" not in message
    served["/0"] = b"changed"
    with pytest.raises(RunError, match="SHA-256"):
        download.fetch("one.txt")
    served["/0"] = b"one"
    monkeypatch.setitem(download.SETS, "one.txt", public_set(address, [b"one"], b"another"))
    with pytest.raises(RunError, match="not the known one"):
        download.fetch("one.txt")
    assert not (cache / "one.txt").exists()
    assert download.main(["nothing.txt"]) == 2
    assert "nothing.txt" in capsys.readouterr().err


def test_the_sets_name_fixed_commits_and_hashes():
    for public in download.SETS.values():
        for url, sha256 in public.parts:
            assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+", url)
            assert re.fullmatch(r"[0-9a-f]{64}", sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", public.sha256)


# ---------------------------------------------------------------------------------------------- tokens

BYTES = Tokenizer()  # 256 bytes and the end of text
END = BYTES.eos_token_id


class Wide:
    """A vocabulary that does not fit 16 bits."""

    vocab_size = 2**16 + 1
    eos_token_id = 2**16

    def encode(self, text):
        return [ord(character) for character in text]


def test_documents_become_one_stream():
    stream = encode_documents(BYTES, ["ab", "", "c"])
    assert stream.dtype == np.uint16
    assert stream.tolist() == [*BYTES.encode("ab"), END, END, *BYTES.encode("c"), END]
    characters = CharTokenizer("abc")
    assert encode_documents(characters, ["ab", "c"]).tolist() == characters.encode("abc")
    assert encode_documents(Wide(), ["a"]).dtype == np.uint32
    assert encode_documents(Wide(), ["a"]).tolist() == [97, 2**16]
    assert encode_documents(BYTES, []).shape == (0,)


def test_bytes_are_those_of_utf8():
    assert bytes_of(["aé", "\U0001f600"]) == 3 + 4


def test_ids_outside_the_vocabulary_are_named():
    check_ids(np.array([0, 4], np.uint16), 5)
    for ids in ([[0, 1], [5, 0]], [[0, 1], [-1, 7]]):
        with pytest.raises(InputError) as error:
            TokenWindows(np.array(ids).reshape(-1), "book.txt", vocab_size=5)
        message = one_line(error)
        assert message.startswith("book.txt")
        assert f"id {ids[1][0]} at position 2" in message
        assert "0 to 4" in message


def test_training_windows_are_slices_of_the_stream():
    tokens = np.arange(100, dtype=np.uint16)
    inputs, targets = TokenWindows(tokens).batch(step=3, batch_size=64, block_size=7, seed=1)
    assert inputs.shape == targets.shape == (64, 7)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(7))
    np.testing.assert_array_equal(targets, inputs + 1)


def test_training_windows_are_a_function_of_seed_and_step():
    tokens = np.random.default_rng(0).integers(0, 9, 10_000)
    one, other = TokenWindows(tokens), TokenWindows(tokens)
    other.batch(0, 8, 16, seed=1)
    for left, right in zip(one.batch(5, 8, 16, seed=1), other.batch(5, 8, 16, seed=1), strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(one.batch(5, 8, 16, seed=1)[0], one.batch(6, 8, 16, seed=1)[0])
    assert not np.array_equal(one.batch(5, 8, 16, seed=1)[0], one.batch(5, 8, 16, seed=2)[0])


def test_every_window_can_be_drawn_and_the_shortest_stream_is_enough():
    starts = {int(row[0]) for step in range(20) for row in TokenWindows(np.arange(12)).batch(step, 50, 4, 0)[0]}
    assert starts == set(range(8))
    inputs, targets = TokenWindows(np.arange(5)).batch(0, 2, 4, 0)
    assert inputs.tolist() == [[0, 1, 2, 3]] * 2
    assert targets.tolist() == [[1, 2, 3, 4]] * 2
    with pytest.raises(InputError) as error:
        TokenWindows(np.arange(4), "poem.txt").batch(0, 2, 4, 0)
    message = one_line(error)
    assert all(part in message for part in ("poem.txt", "4 tokens", "block_size=4", "5"))


@pytest.mark.parametrize("n", [2, 3, 8, 9, 10, 17, 100])
@pytest.mark.parametrize("block_size", [1, 4, 8, 200])
def test_evaluation_windows_have_every_token_but_the_first_as_target_once(n, block_size):
    tokens = np.arange(n, dtype=np.uint16) + 10
    inputs, targets = evaluation_windows(tokens, block_size)
    assert inputs.shape == targets.shape == (-(-(n - 1) // block_size), block_size)
    scored = targets != IGNORED
    assert targets[scored].tolist() == tokens[1:].tolist()
    assert inputs[scored].tolist() == tokens[:-1].tolist()
    assert inputs.dtype == targets.dtype == np.int64
    assert not inputs[~scored].any()


def test_evaluation_needs_two_tokens():
    with pytest.raises(InputError, match=r"book.txt has 1 tokens.*at least 2"):
        evaluation_windows(np.arange(1), 4, "book.txt")


def test_padding_goes_to_either_side():
    sequences = [[1, 2, 3], [4], []]
    ids, lengths = pad_batch(sequences, pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert lengths.tolist() == [3, 1, 0]
    ids, lengths = pad_batch(sequences, side="left", pad_id=9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4], [9, 9, 9]]
    assert ids.dtype == lengths.dtype == np.int64
    with pytest.raises(InputError, match="'middle'"):
        pad_batch(sequences, side="middle")
    with pytest.raises(InputError, match="at least one"):
        pad_batch([])


def test_pairs_are_scored_on_their_completion_only():
    pairs = [Pair("Q: ab", " xyz"), Pair("Q", " x")]
    batch = collate_pairs(BYTES, pairs, max_length=50, pad_id=7)
    for row, pair in enumerate(pairs):
        prompt, completion = BYTES.encode(pair.prompt), [*BYTES.encode(pair.completion), END]
        length = len(prompt) + len(completion) - 1
        assert batch["lengths"][row] == length
        assert batch["ids"][row, :length].tolist() == (prompt + completion)[:-1]
        assert set(batch["ids"][row, length:]) <= {7}
        scored = batch["targets"][row] != IGNORED
        assert batch["targets"][row, scored].tolist() == completion
        assert np.flatnonzero(scored).tolist() == list(range(len(prompt) - 1, length))
    assert batch["ids"].shape == batch["targets"].shape == (2, 9)
    assert batch["truncated"].tolist() == [False, False]


def test_long_prompts_lose_their_beginning_and_completions_nothing():
    pair = Pair("0123456789", "abc")
    completion = [*BYTES.encode("abc"), END]
    for max_length in range(4, 20):
        batch = collate_pairs(BYTES, [pair], max_length)
        kept = min(10, max_length + 1 - len(completion))
        row = [*BYTES.encode("0123456789")[-kept:], *completion]
        assert batch["ids"][0].tolist() == row[:-1]
        assert batch["ids"].shape[1] <= max_length
        assert batch["targets"][0].tolist() == [IGNORED] * (kept - 1) + completion
        assert batch["truncated"].tolist() == [kept < 10]
    with pytest.raises(InputError) as error:
        collate_pairs(BYTES, [pair], 3)
    assert all(part in one_line(error) for part in ("pair 0", "4 tokens", "max_length=3"))


def test_empty_prompts_and_completions():
    batch = collate_pairs(BYTES, [Pair("", "a")], 10)
    assert batch["ids"].tolist() == [[END, *BYTES.encode("a")]]
    assert batch["targets"].tolist() == [[*BYTES.encode("a"), END]]
    characters = CharTokenizer("abc")
    assert collate_pairs(characters, [Pair("a", "bc")], 10)["targets"].tolist() == [characters.encode("bc")]
    with pytest.raises(InputError, match="empty prompt"):
        collate_pairs(characters, [Pair("", "a")], 10)
    with pytest.raises(InputError, match="empty completion"):
        collate_pairs(characters, [Pair("a", "")], 10)


def test_labelled_texts_keep_their_beginning():
    batch = collate_labelled(BYTES, [Example("abcdef", 2), Example("ab", 0)], max_length=4, pad_id=1)
    assert batch["ids"].tolist() == [BYTES.encode("abcd"), [*BYTES.encode("ab"), 1, 1]]
    assert batch["lengths"].tolist() == [4, 2]
    assert batch["labels"].tolist() == [2, 0]
    assert batch["labels"].dtype == np.int64
    assert batch["truncated"].tolist() == [True, False]
    with pytest.raises(InputError, match="example 1"):
        collate_labelled(BYTES, [Example("a", 0), Example("", 1)], max_length=4)
