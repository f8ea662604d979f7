"""Merges and ids equal to those of `tokenizers`, `transformers` and `tiktoken`.

The golden file of the default tests (tests/golden/tokenizer.json) is made here, by the libraries and not by
our code. To make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_tokenizer_parity.py -k golden

The libraries ship different versions of Unicode, and what a character is (letter, digit, white space or none)
is not known to one that is older than the character. There is no right answer to compare with then, so the
tests use the characters that all of them know, Python and `regex` included. These are at least the
characters of Unicode 14; a test checks that the filter leaves that many.
"""

import json
import os
import random
import re
import shlex
import subprocess
import sys
import sysconfig
import unicodedata
import warnings
from pathlib import Path

import pytest
import regex

tokenizers = pytest.importorskip("tokenizers")
tiktoken = pytest.importorskip("tiktoken")
transformers = pytest.importorskip("transformers")

from minigpt.errors import InputError  # noqa: E402
from minigpt.tokenizer import BYTE_CHARACTERS, BYTE_OF_ID, END_OF_TEXT, CharTokenizer, Tokenizer  # noqa: E402

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TEXT = (GOLDEN / "tokenizer_text.txt").read_text(encoding="utf-8")
GOLDEN_VOCAB_SIZE = 700

# The rule as OpenAI published it (encoder.py of GPT-2).
GPT2_RULE = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Written by hand: each line has something that a splitting rule or a byte table can get wrong.
STRINGS = [
    "",
    " ",
    "a",
    "First Citizen: we are undone already.",
    " leading, trailing ",
    "double  blanks   and    more     ",
    "\n",
    "\n\n\n",
    "line\nline\n\nline\n",
    "windows\r\nline\r\n\r\nends\r",
    "tab\tbed \t mixed \n \t run\n  indented",
    "form\ffeed\vvertical\x1cfile\x1funit\x85next",
    "\u2028line\u2029paragraph \u2028 x",
    "nul\0inside\0\0",
    "\x01\x02\x7f\x80\x9f",
    "it's, don't, I'm, he'd, we're, I've, she'll",
    "IT'S, DON'T, I'M, HE'D, WE'RE, I'VE, SHE'LL",
    "it’s a typographic ’s",
    "'s 't 're 've 'm 'll 'd '",
    "'''s''t' 'tis rock'n'roll 'lll 'rre",
    "3.14159 1,000,000 0x1F 1e-9 12ab34",
    "½ ¼ ² ³ ₂ Ⅷ ⅷ ① ٣٤ ४५ 六 〇",
    "$ € £ ¥ + − × ÷ = < > | ~ ^ ` ¨ ´",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "snake_case camelCase __init__(self, *args, **kwargs) -> None:",
    "def f(x):\n    return x + 1  # comment\n\n\n",
    "https://example.org/a?b=c&d=%20#e",
    "<|endoftext|>",
    "text<|endoftext|>more <|endoftext|> <|endoftext|",
    "naïve café señor Ångström Straße Œuvre ſ ŉ",
    "e\u0301 n\u0303 o\u0308 a\u0300\u0301\u0302",
    "İstanbul ısı DŽ Dž ǆ ﬁ ﬂ",
    "Ελληνικά Кириллица Հայերեն ქართული",
    "שָׁלוֹם עוֹלָם مَرْحَبًا بِالعَالَم",
    "नमस्ते दुनिया ক্ষ தமிழ் తెలుగు ಕನ್ನಡ",
    "สวัสดีชาวโลก ພາສາລາວ မြန်မာ ខ្មែរ",
    "日本語のテキスト、カタカナ。 中文文本！ 한국어 텍스트",
    "ｆｕｌｌ　ｗｉｄｔｈ １２３",
    "ᠮᠣᠩᠭᠣᠯ\u180e x ᚠᚢᚦ ᏣᎳᎩ ⰀⰁ",
    "😀 😃😄 👍🏽 👩‍👩‍👧‍👦 🇨🇭🇳🇵 🏴\U000e0067\U000e0062\U000e007f ❤️ ☎︎ 1️⃣",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 𐍈𐎠 𒀀 𓀀 🂡",
    "𠀀𠀁 𪜀 𫝀 𰀀 𱍐",
    "\ue000 \uf8ff \U000f0000 \U0010fffd",
    "\ufeffbom \ufffe \uffff \U0010ffff \ufffd",
    "\u00a0no\u00a0break\u202f\u2009thin\u3000wide\u1680ogham",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\u00adsoft",
    "\u200e\u200f\u202a\u202b\u202c mixed \u2066bidi\u2069",
    "a" * 300,
    "ab" * 150 + "a",
    " " * 300,
    " " * 300 + "x",
    "\n" * 100 + "x",
    "\r\n" * 50,
    "é" * 100,
    "-" * 80,
    "=+" * 40,
    "1" * 100,
    "the the the the thethethethe THE The",
    "ththththth erererere inining ouou",
]


@pytest.fixture(scope="module")
def documents():
    """English and Python: sources of the standard library, one document a file, cut at 20 kB; about 1 MB."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::3]
    texts = [path.read_bytes().decode("utf-8", errors="replace")[:20_000] for path in paths]
    assert sum(map(len, texts)) > 400_000
    return [*texts, TEXT]


@pytest.fixture(scope="module")
def tokenizer(documents):
    return Tokenizer.train(documents, vocab_size=3000)


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return directory


def tiktoken_encoding(tokens):
    """A tiktoken encoding made by hand: `tokens` are the bytes of all tokens but <|endoftext|>, in order."""
    return tiktoken.Encoding(
        "minigpt",
        pat_str=GPT2_RULE,
        mergeable_ranks={token: number for number, token in enumerate(tokens)},
        special_tokens={END_OF_TEXT: len(tokens)},
    )


@pytest.fixture(scope="module")
def peers(tokenizer, directory):
    """name -> function from text to ids."""
    tokens = [tokenizer.token_bytes(number) for number in range(tokenizer.vocab_size - 1)]
    byte_level = tokenizers.ByteLevelBPETokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))
    slow = transformers.GPT2Tokenizer.from_pretrained(directory)
    fast = transformers.GPT2TokenizerFast.from_pretrained(directory)
    return {
        "tokenizers": lambda text: byte_level.encode(text).ids,
        "GPT2Tokenizer": lambda text: slow(text)["input_ids"],
        "GPT2TokenizerFast": lambda text: fast(text)["input_ids"],
        "tiktoken": tiktoken_encoding(tokens).encode_ordinary,
    }


def assert_same_ids(tokenizer, peers, strings):
    for text in strings:
        ids = tokenizer.encode(text)
        for name, encode in peers.items():
            assert encode(text) == ids, f"{name} differs on {text!r}"
        assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def known_characters():
    """The characters that Python, `regex`, `tokenizers` and `tiktoken` all regard as assigned."""
    everything = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    in_tokenizers = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\p{Cn}+"), "removed")
    unassigned_only = tiktoken.Encoding(
        "unassigned",
        pat_str=r"\p{Cn}+",  # tiktoken drops what its rule does not match
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={},
    )
    unknown_to_tiktoken = set(unassigned_only.decode(unassigned_only.encode_ordinary(everything)))
    known = {
        *"".join(part for part, _ in in_tokenizers.pre_tokenize_str(everything)),
    } & set(regex.findall(r"\P{Cn}", everything))
    return sorted(
        character for character in known - unknown_to_tiktoken if unicodedata.category(character) not in ("Cn", "Cs")
    )


def test_known_characters_are_at_least_unicode_14(known_characters):
    """144,697 characters and controls, and 137,468 places for private use, in seven planes."""
    assert len(known_characters) >= 144_697 + 137_468
    assert {ord(character) >> 16 for character in known_characters} == {0, 1, 2, 3, 14, 15, 16}


# ----------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------


def merges_by_tokenizers(documents, vocab_size):
    """Merges as text, from a vocabulary that counts <|endoftext|>, as ours does."""
    trainer = tokenizers.ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        documents, vocab_size=vocab_size, min_frequency=1, special_tokens=[END_OF_TEXT], show_progress=False
    )
    merges = json.loads(trainer.to_str())["model"]["merges"]
    return [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]


def merges_as_text(tokenizer):
    names = [
        "".join(BYTE_CHARACTERS[byte] for byte in tokenizer.token_bytes(number))
        for number in range(tokenizer.vocab_size)
    ]
    return [f"{names[left]} {names[right]}" for left, right in tokenizer.merges]


def test_merges_learnt_from_text(documents, tokenizer):
    expected = merges_by_tokenizers(documents, 3000)
    assert len(expected) == 3000 - 257
    assert merges_as_text(tokenizer) == expected


def test_merges_learnt_from_many_scripts():
    text = "\n".join(STRINGS * 3) + TEXT
    expected = merges_by_tokenizers([text], 2000)
    assert merges_as_text(Tokenizer.train(text, vocab_size=2000)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_merges_with_ties_to_the_last_pair(seed):
    """Few letters, short texts: most choices are ties, many pairs overlap, and the pairs run out."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices("aab \n'éz", k=rng.randrange(1, 80))) for _ in range(8)]
    assert merges_as_text(Tokenizer.train(texts, vocab_size=5000)) == merges_by_tokenizers(texts, 5000)


# ----------------------------------------------------------------------------------------------------
# Encoding
# ----------------------------------------------------------------------------------------------------


def test_ids_of_strings_written_by_hand(tokenizer, peers):
    strings = [text for text in STRINGS if END_OF_TEXT not in text]
    assert_same_ids(tokenizer, peers, strings)
    assert_same_ids(tokenizer, peers, [first + second for first in strings for second in strings[::7]])


def test_ids_of_documents(tokenizer, peers, documents):
    assert_same_ids(tokenizer, peers, documents)


@pytest.mark.parametrize("codec", ["latin-1", "utf-8"])
def test_ids_of_random_bytes(tokenizer, peers, codec):
    rng = random.Random(codec)
    strings = [rng.randbytes(rng.randrange(60)).decode(codec, errors="replace") for _ in range(1500)]
    assert_same_ids(tokenizer, peers, strings)


def test_ids_of_every_known_character(tokenizer, peers, known_characters):
    """Each beside letters, digits, signs, blanks and itself, so that its class decides where words end."""
    peers = {name: peers[name] for name in ("tokenizers", "tiktoken")}  # transformers calls the first of them
    private = [character for character in known_characters if unicodedata.category(character) == "Co"]
    # All of one class, by definition: a part of them is enough.
    characters = sorted(set(known_characters) - set(private)) + private[::16]
    size = 400
    strings = [
        "".join(f"a{c}a 1{c}1 .{c}. {c} {c}{c}\n{c}" for c in characters[start : start + size])
        for start in range(0, len(characters), size)
    ]
    assert_same_ids(tokenizer, peers, strings)


def test_ids_of_random_characters_of_all_planes(tokenizer, peers, known_characters):
    rng = random.Random(2)
    planes = {}
    for character in known_characters:
        planes.setdefault(ord(character) >> 16, []).append(character)
    assert sorted(planes) == [0, 1, 2, 3, 14, 15, 16]
    for characters in planes.values():
        strings = []
        for _ in range(250):
            mixture = rng.choices(characters, k=rng.randrange(30)) + rng.choices(" \n'sa1.", k=rng.randrange(15))
            rng.shuffle(mixture)
            strings.append("".join(mixture))
        assert_same_ids(tokenizer, peers, strings)


@pytest.mark.parametrize(
    "alphabet",
    [
        " \n\r\t",
        " \n\r\ta.1",
        " \u00a0\u2009\u3000\u2028\x85\x0b\x0c\x1cx",
        "'stmdrevlSTMDREVL ",
        "😀👍🏽\u200d👩👧❤\ufe0f🇨🇭 a",
        "the TH\r\n",
        "0123456789 .,-x",
    ],
)
def test_ids_of_random_runs(tokenizer, peers, alphabet):
    rng = random.Random(alphabet)
    strings = ["".join(rng.choices(alphabet, k=rng.randrange(50))) for _ in range(300)]
    assert_same_ids(tokenizer, peers, strings)


def test_ids_of_words_of_training_pieces(tokenizer, peers):
    """Words glued from tokens: merges compete with each other at every seam."""
    rng = random.Random(3)
    pieces = [tokenizer.token_bytes(number) for number in range(256, tokenizer.vocab_size - 1)]
    strings = [b"".join(rng.choices(pieces, k=rng.randrange(1, 12))).decode(errors="replace") for _ in range(1500)]
    assert_same_ids(tokenizer, peers, strings)


@pytest.mark.parametrize("letters", ["a", "e", "ing", "=", "\n", "é"])
def test_ids_of_long_words(tokenizer, peers, letters):
    assert_same_ids(tokenizer, peers, [letters * 5001])


def test_special_token_in_the_text_is_text(tokenizer, peers, directory):
    strings = [text for text in STRINGS if END_OF_TEXT in text]
    assert strings
    gpt2 = transformers.GPT2Tokenizer.from_pretrained(directory)
    as_text = {
        "tokenizers": peers["tokenizers"],
        "tiktoken": peers["tiktoken"],
        "GPT2Tokenizer": lambda text: gpt2(text, split_special_tokens=True)["input_ids"],
    }
    assert_same_ids(tokenizer, as_text, strings)


def test_decoding_of_any_ids(tokenizer, directory):
    """Half characters and stray bytes included: the same replacement characters."""
    rng = random.Random(4)
    gpt2 = transformers.GPT2Tokenizer.from_pretrained(directory)
    tokens = [tokenizer.token_bytes(number) for number in range(tokenizer.vocab_size - 1)]
    encoding = tiktoken_encoding(tokens)
    for _ in range(1500):
        # Bytes are over-represented, since only they can be broken.
        ids = [rng.randrange(rng.choice([256, tokenizer.vocab_size])) for _ in range(rng.randrange(20))]
        assert tokenizer.decode_bytes(ids) == encoding.decode_bytes(ids)
        assert tokenizer.decode(ids) == encoding.decode(ids) == gpt2.decode(ids)


# ----------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opener", ["GPT2Tokenizer", "GPT2TokenizerFast", "AutoTokenizer"])
def test_transformers_opens_the_directory(tokenizer, directory, opener):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = getattr(transformers, opener).from_pretrained(directory)
    assert isinstance(opened, transformers.GPT2Tokenizer | transformers.GPT2TokenizerFast)
    assert len(opened) == opened.vocab_size == tokenizer.vocab_size
    assert opened.eos_token == opened.bos_token == opened.unk_token == END_OF_TEXT
    assert opened.eos_token_id == tokenizer.eos_token_id
    assert opened(TEXT)["input_ids"] == tokenizer.encode(TEXT)
    assert opened.decode(tokenizer.encode("a , b ' s !")) == "a , b ' s !", "blanks are not tidied"


def test_transformers_does_not_take_characters_for_bpe(tmp_path):
    CharTokenizer.train(TEXT).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer"):
        transformers.AutoTokenizer.from_pretrained(tmp_path)


def test_files_of_tokenizers_open(tokenizer, directory, tmp_path):
    peer = tokenizers.ByteLevelBPETokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"))
    peer.save_model(str(tmp_path))
    assert Tokenizer.from_pretrained(tmp_path).merges == tokenizer.merges


def test_advice_for_directories_of_newer_transformers_works(tokenizer, directory, tmp_path):
    """transformers 5 writes tokenizer.json only; the error message says how to get the two files from it."""
    transformers.GPT2Tokenizer.from_pretrained(directory).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)  # transformers 4 writes all three
    with pytest.raises(InputError) as caught:
        Tokenizer.from_pretrained(tmp_path)
    command = shlex.split(re.search(r"with (python -c .*)$", str(caught.value))[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert Tokenizer.from_pretrained(tmp_path).merges == tokenizer.merges


# ----------------------------------------------------------------------------------------------------
# The golden file of the default tests
# ----------------------------------------------------------------------------------------------------


def golden_content():
    """Merges by `tokenizers`; ids by `tiktoken`, which has to agree with `tokenizers` on them."""
    merges = merges_by_tokenizers([TEXT], GOLDEN_VOCAB_SIZE)
    byte_of = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
    tokens = [bytes([byte]) for byte in BYTE_OF_ID]
    tokens += [bytes(byte_of[character] for character in merge.replace(" ", "")) for merge in merges]
    encoding = tiktoken_encoding(tokens)
    vocabulary = {"".join(BYTE_CHARACTERS[byte] for byte in token): number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    byte_level = tokenizers.ByteLevelBPETokenizer(vocabulary, pairs)
    cases = [[text, encoding.encode_ordinary(text)] for text in STRINGS]
    for text, ids in cases:
        assert byte_level.encode(text).ids == ids, f"tiktoken and tokenizers differ on {text!r}"
    return {"vocab_size": GOLDEN_VOCAB_SIZE, "merges": merges, "cases": cases}


def test_golden_file_is_what_the_libraries_give():
    path = GOLDEN / "tokenizer.json"
    content = golden_content()
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == content
