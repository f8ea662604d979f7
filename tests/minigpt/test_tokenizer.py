"""The tokenizers: exact on any text, fast forms equal to the readable ones, one clear line for bad input."""

import doctest
import errno
import json
import os
import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import bpe
from minigpt import tokenizer as module
from minigpt.bpe import (
    apply_merges,
    apply_merges_fast,
    count_pairs,
    merge_pair,
    train_merges,
    train_merges_fast,
)
from minigpt.errors import InputError, RunError
from minigpt.tokenizer import (
    BYTE_CHARACTERS,
    BYTE_OF_ID,
    END_OF_TEXT,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    split_words,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TEXT = (GOLDEN / "tokenizer_text.txt").read_text(encoding="utf-8")

# Few letters: many ties, and many pairs that overlap.
few_letters = st.text(alphabet="aab \n'", max_size=60)


@pytest.fixture(scope="module")
def golden():
    """What `tokenizers` and `tiktoken` gave: see tests/parity/test_tokenizer_parity.py."""
    return json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, vocab_size=700)


def as_words(text):
    """Counted words in the form that training takes."""
    ids = bytes(BYTE_OF_ID.index(byte) for byte in range(256))
    return Counter(word.encode().translate(ids) for word in split_words(text))


def test_docstring_examples():
    results = [doctest.testmod(m) for m in (module, bpe)]
    assert sum(r.failed for r in results) == 0
    assert sum(r.attempted for r in results) >= 8


# ----------------------------------------------------------------------------------------------------
# Words and bytes
# ----------------------------------------------------------------------------------------------------


def test_byte_alphabet_is_gpt2s():
    assert len(set(BYTE_CHARACTERS)) == 256
    assert all(len(character) == 1 and character.isprintable() for character in BYTE_CHARACTERS)
    assert BYTE_CHARACTERS[ord("A")] == "A"
    assert [BYTE_CHARACTERS[byte] for byte in b"\x00 \n\x7f\xa0\xad"] == ["Ā", "Ġ", "Ċ", "ġ", "ł", "Ń"]
    assert sorted(BYTE_OF_ID) == list(range(256))
    # Ids of the published GPT-2 vocabulary.
    published = {
        0: b"!",
        64: b"a",
        187: b"\xff",
        188: b"\x00",
        198: b"\n",
        220: b" ",
        221: b"\x7f",
        255: b"\xad",
    }
    assert {number: bytes([BYTE_OF_ID[number]]) for number in published} == published


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("Hello world", ["Hello", " world"]),
        ("it's we'll I'd", ["it", "'s", " we", "'ll", " I", "'d"]),
        ("you've they're I'm can't", ["you", "'ve", " they", "'re", " I", "'m", " can", "'t"]),
        ("IT'S we'LL", ["IT", "'", "S", " we", "'", "LL"]),
        ("'sss", ["'s", "ss"]),
        ("a  b", ["a", " ", " b"]),
        ("a \n b", ["a", " \n", " b"]),
        ("a\n\nb", ["a", "\n", "\n", "b"]),
        ("a\r\nb", ["a", "\r", "\n", "b"]),
        ("a   ", ["a", "   "]),
        ("\t\tx", ["\t", "\t", "x"]),
        ("abc123 456-x", ["abc", "123", " 456", "-", "x"]),
        ("what?! (yes)", ["what", "?!", " (", "yes", ")"]),
        ("x_y", ["x", "_", "y"]),
        ("½² Ⅷ ٣", ["½²", " Ⅷ", " ٣"]),
        ("é e\u0301", ["é", " e", "\u0301"]),
        ("日本語 中文", ["日本語", " 中文"]),
        ("a\u00a0b\u3000c", ["a", "\u00a0", "b", "\u3000", "c"]),
        ("\u200b\ufeff", ["\u200b\ufeff"]),
        ("a\x00b", ["a", "\x00", "b"]),
        ("👍🏽 ok", ["👍🏽", " ok"]),
        ("𝔘𠀀", ["𝔘𠀀"]),
        ("<|endoftext|>", ["<|", "endoftext", "|>"]),
    ],
)
def test_splitting_rule(text, words):
    assert list(split_words(text)) == words


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet="ab1 .\n\r\t'\u00a0s", max_size=80), st.integers(1, 9))
def test_splitting_in_chunks_changes_nothing(text, chunk):
    whole = module._WORD.findall(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        assert list(split_words(text)) == whole


def test_a_long_text_is_cut(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 10)
    assert len(list(module._chunks("word " * 100))) > 30


# ----------------------------------------------------------------------------------------------------
# The algorithm
# ----------------------------------------------------------------------------------------------------


def test_count_pairs():
    assert count_pairs([], []) == {}
    assert count_pairs([[], [3]], [5, 5]) == {}
    assert count_pairs([[7, 7, 7]], [1]) == {(7, 7): 2}
    assert count_pairs([[1, 2, 3], [2, 3]], [2, 5]) == {(1, 2): 2, (2, 3): 7}
    assert count_pairs([[1], [1]], [4, 4]) == {}, "no pair reaches from one word into the next"


def test_merge_pair():
    assert merge_pair([], (1, 2), 9) == []
    assert merge_pair([1], (1, 1), 9) == [1]
    assert merge_pair([1, 2], (1, 2), 9) == [9]
    assert merge_pair([2, 1], (1, 2), 9) == [2, 1]
    assert merge_pair([1, 1, 1, 1, 1], (1, 1), 9) == [9, 9, 1]
    assert merge_pair([1, 1, 2, 1], (1, 2), 9) == [1, 9, 1]
    assert merge_pair([9, 9], (9, 9), 9) == [9], "what was written is not read again"
    ids = [1, 2, 3]
    merge_pair(ids, (1, 2), 9)
    assert ids == [1, 2, 3]


def test_ties_go_to_the_smallest_ids():
    assert train_merges({b"\x05\x01": 1, b"\x03\x09": 1, b"\x03\x02": 1}, 3) == [(3, 2), (3, 9), (5, 1)]
    assert train_merges({b"\x05\x01": 2, b"\x03\x09": 1}, 1) == [(5, 1)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.lists(st.integers(0, 2), min_size=1, max_size=14).map(bytes), st.integers(1, 4), max_size=8))
def test_fast_training_equals_the_definition(words):
    expected = train_merges(words, 40)
    assert train_merges_fast(words, 40) == expected
    assert train_merges_fast(words, len(expected) // 2) == expected[: len(expected) // 2]


def test_fast_training_equals_the_definition_on_text():
    words = as_words(TEXT[:6000])
    assert len(train_merges(words, 120)) == 120
    assert train_merges_fast(words, 120) == train_merges(words, 120)


def test_counts_are_exact_integers():
    """Above 2**32, and where the next larger float64 is 2 away."""
    words = {b"\x01\x02": 2**53, b"\x03\x04": 2**53 + 1, b"\x05\x06\x05": 2**40, b"\x07\x08": 2**40 + 1}
    expected = [(3, 4), (1, 2), (7, 8), (5, 6), (259, 5)]
    assert train_merges(words, 9) == expected
    assert train_merges_fast(words, 9) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(few_letters, few_letters, st.integers(0, 30))
def test_fast_encoding_equals_the_definition(training_text, text, n_merges):
    merges = train_merges(as_words(training_text), n_merges)
    merge_ids = {pair: 256 + number for number, pair in enumerate(merges)}
    for word in [*as_words(text), bytes(BYTE_OF_ID.index(byte) for byte in text.encode())]:
        assert apply_merges_fast(word, merge_ids) == apply_merges(word, merge_ids)


class CountedLookups(dict):
    lookups = 0

    def get(self, key, default=None):
        self.lookups += 1
        return super().get(key, default)


@pytest.mark.parametrize("letters", ["a", "abc", "ab aab"])
def test_work_on_a_long_word_grows_linearly(letters):
    """Counted, not timed: 100 kB of one letter would otherwise take hours."""
    merges = Tokenizer.train(letters * 50, vocab_size=300).merges
    work = []
    for n in (2_000, 20_000):
        merge_ids = CountedLookups({pair: 256 + number for number, pair in enumerate(merges)})
        word = bytes(BYTE_OF_ID.index(ord(letter)) for letter in (letters * n)[:n])
        assert len(apply_merges_fast(word, merge_ids)) < n
        work.append(merge_ids.lookups)
    assert work[0] < 6 * 2_000
    assert work[1] < 11 * work[0]


def test_long_word_round_trip(tokenizer):
    text = "e" * 100_000
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[:50] == tokenizer.encode("e" * 1000)[:50]


def test_nothing_but_the_definitions_calls_the_functions_that_students_write(monkeypatch, tokenizer):
    def not_written_yet(*_):
        raise NotImplementedError

    expected = tokenizer.encode(TEXT[:2000])
    for name in ("count_pairs", "merge_pair"):
        monkeypatch.setattr(bpe, name, not_written_yet)
    assert Tokenizer.train(TEXT, vocab_size=700).encode(TEXT[:2000]) == expected


# ----------------------------------------------------------------------------------------------------
# Tokenizer
# ----------------------------------------------------------------------------------------------------


def test_golden_merges_and_ids(golden):
    tokenizer = Tokenizer.train(TEXT, vocab_size=golden["vocab_size"])
    names = [module._file_form(tokenizer.token_bytes(number)) for number in range(tokenizer.vocab_size)]
    assert [f"{names[left]} {names[right]}" for left, right in tokenizer.merges] == golden["merges"]
    assert len(golden["cases"]) > 50
    for text, ids in golden["cases"]:
        assert tokenizer.encode(text) == ids, repr(text)
        assert tokenizer.decode(ids) == text


def test_layout_of_the_vocabulary(tokenizer):
    assert tokenizer.vocab_size == 700
    assert len(tokenizer.merges) == 700 - 257
    assert tokenizer.eos_token_id == 699
    assert tokenizer.token_bytes(699) == END_OF_TEXT.encode()
    assert [tokenizer.token_bytes(number) for number in range(256)] == [bytes([byte]) for byte in BYTE_OF_ID]
    for number, (left, right) in enumerate(tokenizer.merges, start=256):
        assert tokenizer.token_bytes(number) == tokenizer.token_bytes(left) + tokenizer.token_bytes(right)
    assert repr(tokenizer) == "Tokenizer(vocab_size=700)"


def test_without_merges_it_is_bytes():
    tokenizer = Tokenizer.train("ab ab", vocab_size=257)
    assert (tokenizer.vocab_size, tokenizer.merges, tokenizer.eos_token_id) == (257, [], 256)
    assert tokenizer.encode("a\n b") == [64, 198, 220, 65]


def test_vocabulary_ends_where_the_text_has_no_more_pairs():
    tokenizer = Tokenizer.train("abc abc", vocab_size=1000)
    assert tokenizer.vocab_size == 257 + 3
    assert [tokenizer.token_label(number) for number in range(256, 260)] == ["ab", "abc", "␣abc", END_OF_TEXT]
    assert Tokenizer.train("a", vocab_size=1000).vocab_size == 257


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_every_text_comes_back(text):
    tokenizer = Tokenizer.train(TEXT[:3000] + text, vocab_size=400)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert all(type(number) is int and 0 <= number < tokenizer.vocab_size - 1 for number in ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "\0" * 1000,
        "\r\n\r\n",
        "\n\r",
        " " * 999,
        "\t \v\f\x1c\x85\u2028 x",
        "👩‍👩‍👧‍👦🇨🇭",
        "\ufeffx",
        "\uffff\U0010ffff",
    ],
)
def test_awkward_texts_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_all_planes_of_unicode_come_back(tokenizer):
    points = [chr(point) for point in range(0, 0x110000, 11) if not 0xD800 <= point < 0xE000]
    random.Random(0).shuffle(points)
    text = "".join(points)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_arbitrary_bytes_come_back_through_surrogate_free_text(tokenizer):
    data = random.Random(1).randbytes(20_000)
    for text in (data.decode("latin-1"), data.decode("utf-8", errors="replace")):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("position", [0, 5])
def test_lone_surrogates_are_refused(tokenizer, position):
    text = "hello"[:position] + "\udc80 and more \ud800"
    message = rf"^the text has a lone surrogate \(U\+DC80\) at position {position}, .*errors='replace'$"
    with pytest.raises(InputError, match=message):
        tokenizer.encode(text)
    with pytest.raises(InputError, match=rf"^document 1 of the training text has a lone .* position {position}"):
        Tokenizer.train(["fine", text], vocab_size=300)


def test_specials_are_plain_text(tokenizer):
    ids = tokenizer.encode(f"a{END_OF_TEXT}b")
    assert tokenizer.eos_token_id not in ids
    assert len(ids) > 5
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
    assert Tokenizer.train(END_OF_TEXT * 100, vocab_size=400).eos_token_id not in tokenizer.encode(END_OF_TEXT)


def test_training_depends_on_the_counts_of_words_only():
    documents = [TEXT[start : start + 500] for start in range(0, 6000, 500)]
    expected = Tokenizer.train(documents, vocab_size=400).merges
    assert Tokenizer.train(iter(documents[::-1]), vocab_size=400).merges == expected
    assert Tokenizer.train(TEXT, vocab_size=400).merges == Tokenizer.train([TEXT], vocab_size=400).merges


def test_no_pair_reaches_over_the_end_of_a_document():
    assert Tokenizer.train(["a", "b"] * 50, vocab_size=300).merges == []
    assert Tokenizer.train(["a", "b", "cd"], vocab_size=300).merges == [(66, 67)]


def test_encode_batch(tokenizer):
    texts = ["First Citizen:", "", "you and I"]
    assert tokenizer.encode_batch(iter(texts)) == [tokenizer.encode(text) for text in texts]


def test_cache_is_bounded_and_changes_nothing(monkeypatch):
    expected = Tokenizer.train(TEXT, vocab_size=500).encode(TEXT)
    monkeypatch.setattr(module, "_CACHED_WORDS", 10)
    monkeypatch.setattr(module, "_CACHED_LENGTH", 4)
    small = Tokenizer.train(TEXT, vocab_size=500)
    assert small.encode(TEXT) == expected
    assert len(small._cache) == 10
    assert max(map(len, small._cache)) <= 4


def test_pickles_without_its_cache(tokenizer):
    fresh = Tokenizer(tokenizer.merges)
    size = len(pickle.dumps(fresh))
    fresh.encode(TEXT)
    assert len(pickle.dumps(fresh)) == size
    copy = pickle.loads(pickle.dumps(fresh))
    assert copy.encode(TEXT) == fresh.encode(TEXT)
    characters = CharTokenizer.train(TEXT)
    assert pickle.loads(pickle.dumps(characters)).encode(TEXT) == characters.encode(TEXT)


def test_progress_goes_to_stderr(capsys):
    Tokenizer.train(TEXT, vocab_size=300)
    assert capsys.readouterr() == ("", "")
    Tokenizer.train(TEXT, vocab_size=300, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "43/43" in err


def test_decode_takes_any_integers(tokenizer):
    ids = tokenizer.encode("my lord")
    assert tokenizer.decode(np.array(ids)) == "my lord"
    assert tokenizer.decode(np.array(ids, dtype=np.uint16)) == "my lord"
    assert tokenizer.decode(iter(ids)) == "my lord"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([tokenizer.eos_token_id]) == END_OF_TEXT


def test_decode_of_broken_utf8(tokenizer):
    ids = [BYTE_OF_ID.index(byte) for byte in b"x\xe2\x82y\xff"]
    assert tokenizer.decode(ids) == "x\ufffdy\ufffd"
    assert tokenizer.decode_bytes(ids) == b"x\xe2\x82y\xff"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 700], r"^token id 700 at position 1 is not in the vocabulary: ids go from 0 to 699$"),
        ([-1], r"^token id -1 at position 0 .* 0 to 699$"),
        (np.array([3, 4, -5]), r"^token id -5 at position 2 "),
        ([0.0], r"^decode takes one sequence of integer token ids, not list \[0\.0\]$"),
        (["a"], r"^decode takes one sequence of integer token ids"),
        (np.zeros((2, 3), int), r"^decode takes one sequence of integer token ids, not ndarray"),
        (7, r"^decode takes one sequence of integer token ids, not int 7$"),
        (None, r"^decode takes one sequence"),
    ],
)
def test_bad_ids(tokenizer, ids, message):
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(InputError, match=message) as caught:
            decode(ids)
        assert "\n" not in str(caught.value)


def test_bad_single_ids(tokenizer):
    for number in (-1, 700):
        with pytest.raises(InputError, match=f"token id {number} "):
            tokenizer.token_bytes(number)
        with pytest.raises(InputError, match=f"token id {number} "):
            tokenizer.token_label(number)


@pytest.mark.parametrize("vocab_size", [256, 0, -1, 300.0, "300", None, True])
def test_bad_vocab_size(vocab_size):
    with pytest.raises(InputError, match=r"^vocab_size must be an integer of at least 257 .*, got "):
        Tokenizer.train("some text", vocab_size=vocab_size)


def test_vocab_size_may_be_a_numpy_integer():
    assert Tokenizer.train("ab ab", vocab_size=np.int64(258)).vocab_size == 258


@pytest.mark.parametrize("kind", [Tokenizer, CharTokenizer])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^the training text is empty"),
        ([], r"^the training text is empty"),
        (["", ""], r"^the training text is empty"),
        (b"bytes", r"^the training text must be a str, not bytes b'bytes'$"),
        (None, r"^the training text must be a str, not NoneType None$"),
        (["fine", b"bytes"], r"^document 1 of the training text must be a str, not bytes b'bytes'$"),
    ],
)
def test_bad_training_text(kind, text, message):
    with pytest.raises(InputError, match=message):
        kind.train(text, vocab_size=300)


@pytest.mark.parametrize("text", [b"abc", None, 3, ["a"]])
def test_encode_takes_str_only(tokenizer, text):
    for encode in (tokenizer.encode, CharTokenizer("abc").encode):
        with pytest.raises(InputError, match=r"^the text must be a str, not "):
            encode(text)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([(0, 256)], r"^merge 0 joins the tokens 0 and 256, but only the ids 0 to 255 exist before it$"),
        ([(0, 1), (-1, 0)], r"^merge 1 joins the tokens -1 and 0, but only the ids 0 to 256 exist"),
        ([(64, 65), (64, 65)], r"^merge 1 makes the token b'ab', which exists already$"),
        (
            [(64, 65), (65, 66), (256, 66), (64, 257)],
            r"^merge 3 makes the token b'abc', which exists already$",
        ),
    ],
)
def test_bad_merges(merges, message):
    with pytest.raises(InputError, match=message):
        Tokenizer(merges)


def test_labels_are_readable_and_differ(tokenizer):
    everything = Tokenizer.train([TEXT, "␣␣ \u2423x \\n \\x00 \x85\x85 \xa0\xa0" + " é" * 50] * 3, vocab_size=1500)
    labels = [everything.token_label(number) for number in range(everything.vocab_size)]
    assert len(set(labels)) == everything.vocab_size
    assert all(label and label.isprintable() and " " not in label for label in labels)
    assert [labels[number] for number in (0, 198, 201, 197, 220, 188, 59)] == [
        "!",
        "\\n",
        "\\r",
        "\\t",
        "␣",
        "\\x00",
        "\\\\",
    ]
    assert "␣the" in labels
    assert "␣é" in labels
    assert tokenizer.token_label(tokenizer.eos_token_id) == END_OF_TEXT


# ----------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_save_and_load(saved, tokenizer):
    assert sorted(path.name for path in saved.iterdir()) == [
        "merges.txt",
        "tokenizer_config.json",
        "vocab.json",
    ]
    loaded = Tokenizer.from_pretrained(saved)
    assert loaded.merges == tokenizer.merges
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert Tokenizer.from_pretrained(str(saved)).merges == tokenizer.merges


def test_file_contents(saved, tokenizer):
    vocabulary = json.loads((saved / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(700))
    assert (vocabulary["!"], vocabulary["Ġ"], vocabulary[END_OF_TEXT]) == (0, 220, 699)
    merges = (saved / "merges.txt").read_bytes().decode()
    assert "\r" not in merges
    lines = merges.split("\n")
    assert lines[0] == "#version: 0.2"
    assert lines[-1] == ""
    assert len(lines) == 2 + len(tokenizer.merges)
    for number, line in enumerate(lines[1:-1], start=256):
        left, right = line.split(" ")
        assert vocabulary[left + right] == number
    config = json.loads((saved / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "GPT2Tokenizer"
    assert config["eos_token"] == END_OF_TEXT


def test_loads_the_original_layout(saved, tokenizer):
    """GPT-2's own files: one line of escaped JSON, no tokenizer_config.json; then other ways to end lines."""
    (saved / "tokenizer_config.json").unlink()
    vocabulary = json.loads((saved / "vocab.json").read_text(encoding="utf-8"))
    (saved / "vocab.json").write_text(json.dumps(vocabulary), encoding="ascii")
    merges = (saved / "merges.txt").read_bytes()
    for variant in (merges, merges.replace(b"\n", b"\r\n"), merges.rstrip(b"\n"), merges.split(b"\n", 1)[1]):
        (saved / "merges.txt").write_bytes(variant)
        assert Tokenizer.from_pretrained(saved).merges == tokenizer.merges
        assert load_tokenizer(saved).merges == tokenizer.merges


def edit_merges(change):
    def damage(directory):
        path = directory / "merges.txt"
        lines = path.read_text(encoding="utf-8").split("\n")
        change(lines)
        path.write_text("\n".join(lines), encoding="utf-8")

    return damage


def edit_vocabulary(change):
    def damage(directory):
        path = directory / "vocab.json"
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
        change(vocabulary)
        path.write_text(json.dumps(vocabulary), encoding="utf-8")

    return damage


def swap_two_merges(lines):
    lines[9], lines[10] = lines[10], lines[9]


def swap_two_ids(vocabulary):
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


DAMAGES = {
    "no vocab.json": (lambda d: (d / "vocab.json").unlink(), r"no vocab\.json in it$"),
    "no merges.txt": (lambda d: (d / "merges.txt").unlink(), r"no merges\.txt in it$"),
    "vocab.json is no JSON": (lambda d: (d / "vocab.json").write_text('{"a": 1,'), r"vocab\.json: not JSON"),
    "vocab.json is a list": (lambda d: (d / "vocab.json").write_text("[1, 2]"), r"vocab\.json.* JSON object"),
    "vocab.json is binary": (
        lambda d: (d / "vocab.json").write_bytes(b"\xff\xfe"),
        r"vocab\.json: not UTF-8",
    ),
    "vocab.json is empty": (lambda d: (d / "vocab.json").write_bytes(b""), r"vocab\.json: not JSON"),
    "merges.txt is binary": (
        lambda d: (d / "merges.txt").write_bytes(b"#version: 0.2\nh e\n\xff\xfe"),
        r"merges\.txt, line 3: not UTF-8 \(byte 0xff\)$",
    ),
    "merges.txt is empty": (
        lambda d: (d / "merges.txt").write_bytes(b""),
        r"vocab\.json has 443 tokens that .*line 0\)$",
    ),
    "three parts": (
        edit_merges(lambda lines: lines.insert(4, "a b c")),
        r"merges\.txt, line 5: expected two tokens",
    ),
    "blank line": (
        edit_merges(lambda lines: lines.insert(4, "")),
        r"merges\.txt, line 5: expected two tokens .* got ''$",
    ),
    "unknown token": (
        edit_merges(lambda lines: lines.insert(4, "zzz q")),
        r"merges\.txt, line 5: 'zzz' is neither a byte nor made by an earlier line$",
    ),
    "byte without stand-in": (
        edit_merges(lambda lines: lines.insert(4, "a \u00a0")),
        r"merges\.txt, line 5: '\\xa0' is neither a byte",
    ),
    "line twice": (
        edit_merges(lambda lines: lines.insert(9, lines[4])),
        r"merges\.txt, line 10: .* was made by an earlier line already$",
    ),
    "line lost": (
        edit_merges(lambda lines: lines.pop(400)),
        r"merges\.txt, line 401: makes .* with the id 655, but",
    ),
    "lines swapped": (
        edit_merges(swap_two_merges),
        r"merges\.txt, line 10: makes .* with the id 264, but .* gives it 265$",
    ),
    "cut short": (
        edit_merges(lambda lines: lines.__delitem__(slice(300, None))),
        r"vocab\.json has 144 tokens that .*line 300\)$",
    ),
    "foreign merge": (
        edit_merges(lambda lines: lines.insert(444, "q z")),
        r"merges\.txt, line 445: makes 'qz' .* none$",
    ),
    "byte missing": (
        edit_vocabulary(lambda v: v.pop("a")),
        r"vocab\.json is no GPT-2 vocabulary: .*'a'.*id 64, and has none$",
    ),
    "bytes swapped": (
        edit_vocabulary(swap_two_ids),
        r"vocab\.json is no GPT-2 vocabulary: .*'a'.*id 64, and has 65$",
    ),
    "id is text": (edit_vocabulary(lambda v: v.update(a="64")), r"vocab\.json is no GPT-2 vocabulary"),
    "extra token": (
        edit_vocabulary(lambda v: v.update(extra=700)),
        r"vocab\.json has 1 tokens that .*'extra'",
    ),
    "no end of text": (
        edit_vocabulary(lambda v: v.pop(END_OF_TEXT)),
        r"<\|endoftext\|> must come last, with the id 699, and has none$",
    ),
    "end of text first": (
        edit_vocabulary(lambda v: v.update({END_OF_TEXT: 0})),
        r"<\|endoftext\|> must come last, with the id 699, and has 0$",
    ),
    "config is no JSON": (
        lambda d: (d / "tokenizer_config.json").write_text("{"),
        r"tokenizer_config\.json: not JSON",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files(saved, name):
    damage, message = DAMAGES[name]
    damage(saved)
    for load in (Tokenizer.from_pretrained, load_tokenizer):
        with pytest.raises(InputError, match=message) as caught:
            load(saved)
        assert "\n" not in str(caught.value)
        assert str(saved) in str(caught.value)


def test_missing_directory(tmp_path):
    for load in (Tokenizer.from_pretrained, load_tokenizer):
        with pytest.raises(InputError, match=r"nowhere: no such directory$"):
            load(tmp_path / "nowhere")


def test_only_the_single_file_of_newer_transformers(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    message = r"no vocab\.json and no merges\.txt in it, only tokenizer\.json; write .* with python -c .*\.save\("
    with pytest.raises(InputError, match=message):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("made", [Tokenizer.train("new text", vocab_size=260), CharTokenizer("abc")])
def test_full_disk_leaves_the_old_files(saved, made, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"vocab\.json") as caught:
            made.save_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("made", [Tokenizer(), CharTokenizer("abc")])
def test_save_where_a_file_is(tmp_path, made):
    (tmp_path / "file").write_text("x")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"there is a file of that name$"):
            made.save_pretrained(directory)
    assert (tmp_path / "file").read_text() == "x"


def test_a_crash_between_two_files_is_noticed(saved, monkeypatch):
    """Each file is whole, but the three are not one: a mixture of two tokenizers must not load."""
    other = Tokenizer.train(TEXT[5000:], vocab_size=700)
    real = module.write_atomic

    def die_at_merges(path, data):
        if path.name == "merges.txt":
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(module, "write_atomic", die_at_merges)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(saved)
    with pytest.raises(InputError, match=r"merges\.txt, line \d+: makes "):
        load_tokenizer(saved)


# ----------------------------------------------------------------------------------------------------
# CharTokenizer
# ----------------------------------------------------------------------------------------------------


def test_characters_in_order_of_code_points():
    tokenizer = CharTokenizer.train("hello wörld\n")
    assert [tokenizer.token_bytes(number).decode() for number in range(tokenizer.vocab_size)] == list("\n dehlorwö")
    assert tokenizer.vocab_size == 10
    assert tokenizer.eos_token_id is None
    ids = tokenizer.encode("low\n")
    assert ids == [5, 6, 8, 0]
    assert all(type(number) is int for number in ids)
    assert tokenizer.decode(ids) == "low\n"
    assert tokenizer.decode_bytes([9]) == "ö".encode()
    assert [tokenizer.token_label(number) for number in (0, 1, 9)] == ["\\n", "␣", "ö"]
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch(["he", "l"]) == [[4, 3], [5]]
    assert CharTokenizer.train(["hel", "lo"]).vocab_size == 4
    assert repr(tokenizer) == "CharTokenizer(vocab_size=10)"


def test_unknown_character():
    tokenizer = CharTokenizer.train("abc")
    message = r"^the character 'é' \(U\+00E9\) at position 2 is not among the 3 of this vocabulary: remove it, or "
    with pytest.raises(InputError, match=message):
        tokenizer.encode("abéxé")


def test_character_limit():
    assert CharTokenizer.train("abc", vocab_size=3).vocab_size == 3
    with pytest.raises(InputError, match=r"^the text has 3 different characters, more than vocab_size=2$"):
        CharTokenizer.train("abc", vocab_size=2)


def test_character_decode_errors():
    with pytest.raises(InputError, match=r"^token id 3 at position 0 .* 0 to 2$"):
        CharTokenizer.train("abc").decode([3])


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        ("", r"at least one character$"),
        (["a", "bc"], r"^token 1 of a character vocabulary must be one character, got 'bc'$"),
        ("aba", r"^the character 'a' is in the vocabulary twice$"),
        ("a\ud800", r"^token 1 has a lone surrogate"),
    ],
)
def test_bad_characters(characters, message):
    with pytest.raises(InputError, match=message):
        CharTokenizer(characters)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.text(min_size=1, max_size=40))
def test_characters_survive_files(tmp_path_factory, text):
    tokenizer = CharTokenizer.train(text)
    directory = tmp_path_factory.mktemp("characters")
    tokenizer.save_pretrained(directory)
    loaded = load_tokenizer(directory)
    assert type(loaded) is CharTokenizer
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(tokenizer.encode(text)) == text


def test_each_kind_opens_its_own_directory_only(tmp_path, saved):
    CharTokenizer.train("abc").save_pretrained(tmp_path / "characters")
    with pytest.raises(InputError, match=r"holds a character-level tokenizer"):
        Tokenizer.from_pretrained(tmp_path / "characters")
    with pytest.raises(InputError, match=r"holds no character-level tokenizer"):
        CharTokenizer.from_pretrained(saved)
    assert type(load_tokenizer(saved)) is Tokenizer


def test_saving_one_kind_over_the_other(saved, tokenizer):
    CharTokenizer.train("abc").save_pretrained(saved)
    assert load_tokenizer(saved).encode("cab") == [2, 0, 1]
    tokenizer.save_pretrained(saved)
    assert load_tokenizer(saved).merges == tokenizer.merges


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 0, "b": 2}', r"vocab\.json has 2 entries, whose ids must be 0 to 1: none has 1$"),
        ('{"a": 0, "b": 0}', r"none has 1$"),
        ('{"a": "0"}', r"none has 0$"),
        ('{"a": false}', r"none has 0$"),
        ('{"ab": 0}', r"vocab\.json: token 0 of a character vocabulary must be one character, got 'ab'$"),
        ("{}", r"vocab\.json: a character vocabulary needs at least one character$"),
        ("[]", r"vocab\.json.* JSON object"),
        ("{", r"vocab\.json: not JSON"),
        (None, r"no vocab\.json in it$"),
    ],
)
def test_damaged_character_files(tmp_path, content, message):
    CharTokenizer.train("abc").save_pretrained(tmp_path)
    if content is None:
        (tmp_path / "vocab.json").unlink()
    else:
        (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_tiny_shakespeare_has_65_characters():
    if "MINIGPT_DATA" not in os.environ:
        pytest.skip("MINIGPT_DATA does not name the folder with tinyshakespeare.txt")
    text = (Path(os.environ["MINIGPT_DATA"]) / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = CharTokenizer.train(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.decode(tokenizer.encode(text)) == text
