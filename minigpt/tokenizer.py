"""Text to token ids and back: GPT-2's byte-level BPE, and one token per character.

Byte-pair encoding in four steps (3 and 4 are in `minigpt.bpe`):

1. `split_words` cuts a text into words by GPT-2's rule; no token crosses a word.
2. Every word becomes the ids of its UTF-8 bytes (0 to 255), so that nothing is ever "unknown".
3. Training (`train_merges`): count the pairs of neighbouring ids (`count_pairs`), give the most frequent
   pair a new id, write that id wherever the pair stands (`merge_pair`), and repeat.
4. Encoding (`apply_merges`): play the same merges, in the order in which they were learnt, on a new word.

Files are those of a Hugging Face GPT-2 directory: `vocab.json` (token -> id) and `merges.txt`. They hold
text, so each byte has a printable stand-in character (`BYTE_CHARACTERS`), and ids 0 to 255 are the bytes in
the order of these characters: that order is GPT-2's, and it is not the numeric one.

References
----------
Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword Units (2016), section 3.2.
Radford et al.: Language Models are Unsupervised Multitask Learners (2019), section 2.2.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from operator import index
from pathlib import Path

import regex

from minigpt import bpe
from minigpt.bpe import N_BYTES, Pair
from minigpt.errors import InputError, RunError
from minigpt.files import read_json, write_atomic

END_OF_TEXT = "<|endoftext|>"

# Looked up by name, as `kernels.backend` does it: a student's copy of the course has no fast forms.
_train_merges = getattr(bpe, "train_merges_fast", bpe.train_merges)
_apply_merges = getattr(bpe, "apply_merges_fast", bpe.apply_merges)

# GPT-2's rule. Only lower-case contractions are cut off; a word takes one blank before it; of a run of
# white space the last character is left to the word that follows.
_WORD = regex.compile(
    r"'(?:[stmd]|re|ve|ll)"  # the endings of it's, don't, I'm, he'd, we're, I've, she'll
    r"| ?\p{L}+"  # letters
    r"| ?\p{N}+"  # digits
    r"| ?[^\s\p{L}\p{N}]+"  # everything else that is visible
    r"|\s+(?!\S)"  # white space, but for the last one before a word
    r"|\s+"
)
# A word contains white space at its beginning only, so every place where white space follows something
# visible is a boundary: a long text can be cut there without changing one word.
_SAFE_CUT = regex.compile(r"(?<=\S)\s")
_CHUNK = 1_000_000  # characters split at a time: the words of a text need many times its memory

_CACHED_WORDS = 200_000  # words remembered with their ids, each of at most
_CACHED_LENGTH = 64  # characters

_VOCAB_FILE = "vocab.json"
_MERGES_FILE = "merges.txt"
_CONFIG_FILE = "tokenizer_config.json"
_MERGES_HEADER = "#version"
_CHAR_CLASS = "CharTokenizer"  # the `tokenizer_class` by which a directory says that it is character level


def _byte_characters() -> tuple[str, ...]:
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    stand_ins = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(stand_ins)) for byte in range(N_BYTES))


BYTE_CHARACTERS = _byte_characters()
"""The printable character that stands for each byte in `vocab.json` and `merges.txt`, at index = byte."""

BYTE_OF_ID = bytes(sorted(range(N_BYTES), key=lambda byte: BYTE_CHARACTERS[byte]))
"""The byte that each of the ids 0 to 255 means, at index = id."""

# Its inverse, as a table for bytes.translate: the ids of a word's bytes are again 256 small numbers.
_ID_OF_BYTE = bytes(BYTE_OF_ID.index(byte) for byte in range(N_BYTES))


def split_words(text: str) -> Iterator[str]:
    """Cut a text into words by GPT-2's rule.

    Parameters
    ----------
    text : str
        Any text; nothing is dropped or changed.

    Returns
    -------
    iterator of str
        The words in order; joined together they are `text`.

    Examples
    --------
    >>> list(split_words("I can't  wait: 25 days"))
    ['I', ' can', "'t", ' ', ' wait', ':', ' 25', ' days']
    """
    return chain.from_iterable(_WORD.findall(text, start, end) for start, end in _chunks(text))


def _chunks(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        cut = _SAFE_CUT.search(text, start + _CHUNK)
        end = cut.start() if cut else len(text)
        yield start, end
        start = end


# ----------------------------------------------------------------------------------------------------
# Tokenizers
# ----------------------------------------------------------------------------------------------------


class _TokenTable:
    """What both tokenizers share: from ids back to bytes."""

    def __init__(self, tokens: list[bytes]):
        self._tokens = tokens

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids go from 0 to `vocab_size - 1`."""
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Encode several texts; nothing is put between or around them.

        Parameters
        ----------
        texts : iterable of str

        Returns
        -------
        list of list of int
            The ids of each text.
        """
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that a sequence of ids stands for, exactly.

        Parameters
        ----------
        ids : iterable of int
            Ids of one sequence (a list, or a NumPy array of shape (T,)).

        Returns
        -------
        bytes

        Raises
        ------
        InputError
            For an id outside 0 to `vocab_size - 1`, and for anything but integers.
        """
        try:
            numbers = [index(number) for number in ids]
        except TypeError:
            raise InputError(
                f"decode takes one sequence of integer token ids, not {type(ids).__name__} {_short(ids)}"
            ) from None
        if numbers and not (min(numbers) >= 0 and max(numbers) < self.vocab_size):
            place = next(i for i, number in enumerate(numbers) if not 0 <= number < self.vocab_size)
            raise InputError(
                f"token id {numbers[place]} at position {place} is not in the vocabulary: "
                f"ids go from 0 to {self.vocab_size - 1}"
            )
        tokens = self._tokens
        return b"".join([tokens[number] for number in numbers])

    def decode(self, ids: Iterable[int]) -> str:
        """The text that a sequence of ids stands for.

        Any sequence of ids can be decoded: bytes that are no UTF-8 (a character cut in two by the end of a
        sample) become U+FFFD, the replacement character. Use `decode_bytes` to get them unchanged.

        Parameters
        ----------
        ids : iterable of int

        Returns
        -------
        str

        Raises
        ------
        InputError
            As in `decode_bytes`.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token.

        Raises
        ------
        InputError
            If there is no such token.
        """
        return self.decode_bytes([token_id])

    def token_label(self, token_id: int) -> str:
        r"""One token as a short readable string, for figures and tables; different for different tokens.

        A blank is shown as `␣`, line ends and tabs as `\n`, `\r`, `\t`, and every byte that has no printable
        form as `\xNN` (so is a part of a character that is split over several tokens).

        Raises
        ------
        InputError
            If there is no such token.

        Examples
        --------
        >>> Tokenizer([]).token_label(220)
        '␣'
        """
        text = self.token_bytes(token_id).decode("utf-8", errors="surrogateescape")
        return "".join(map(_label, text))


_LABELS = {" ": "␣", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _label(character: str) -> str:
    if character in _LABELS:
        return _LABELS[character]
    if character.isprintable() and character != "␣":
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors="surrogateescape"))


class _WordCache(dict[str, tuple[int, ...]]):
    """word -> ids, filled as words are met."""

    def __init__(self, merge_ids: Mapping[Pair, int]):
        self._merge_ids = merge_ids

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(_apply_merges(word.encode("utf-8").translate(_ID_OF_BYTE), self._merge_ids))
        if len(word) <= _CACHED_LENGTH and len(self) < _CACHED_WORDS:
            self[word] = ids
        return ids


class Tokenizer(_TokenTable):
    r"""Byte-level BPE as in GPT-2: ids 0 to 255 are bytes, then the merges in order, then `<|endoftext|>`.

    Every text can be encoded and comes back exactly, with its NULs, its CRLFs and its runs of blanks. The one
    exception are lone surrogates (half of a UTF-16 character, which Python allows in a str): they are not
    text and have no UTF-8 form, so `encode` and `train` refuse them.

    Parameters
    ----------
    merges : iterable of (int, int)
        The merged pairs of ids; merge `k` makes the token `256 + k` out of two tokens that exist already.

    Raises
    ------
    InputError
        If a merge uses an id that does not exist yet, or makes a token that exists already.

    Examples
    --------
    >>> tokenizer = Tokenizer.train("low lower lowest low low", vocab_size=260)
    >>> [tokenizer.token_label(i) for i in tokenizer.encode(" lowlow\n")]
    ['␣low', 'low', '\\n']
    """

    def __init__(self, merges: Iterable[Pair] = ()):
        tokens = [bytes([byte]) for byte in BYTE_OF_ID]
        known = {*tokens, END_OF_TEXT.encode()}
        merge_ids: dict[Pair, int] = {}
        for left, right in merges:
            new = len(tokens)
            if not (0 <= left < new and 0 <= right < new):
                raise InputError(
                    f"merge {len(merge_ids)} joins the tokens {left} and {right}, "
                    f"but only the ids 0 to {new - 1} exist before it"
                )
            token = tokens[left] + tokens[right]
            if token in known:  # two ids for the same bytes could not both be named in vocab.json
                raise InputError(f"merge {len(merge_ids)} makes the token {token!r}, which exists already")
            merge_ids[left, right] = new
            tokens.append(token)
            known.add(token)
        super().__init__([*tokens, END_OF_TEXT.encode()])
        self._merge_ids = merge_ids
        self._cache = _WordCache(merge_ids)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[list[Pair]]]:
        return type(self), (self.merges,)  # leaves the cache behind, so that worker processes start quickly

    @property
    def merges(self) -> list[Pair]:
        """The merged pairs of ids in order; merge `k` made the token `256 + k`."""
        return list(self._merge_ids)

    @property
    def eos_token_id(self) -> int:
        """Id of `<|endoftext|>`, the last one. `encode` never gives it; put it between documents yourself."""
        return self.vocab_size - 1

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int, progress: bool = False) -> Tokenizer:
        """Learn a vocabulary from text.

        Deterministic: the result depends on how often each word occurs and on nothing else (see
        `train_merges` for ties), and equals that of Hugging Face `tokenizers`.

        Parameters
        ----------
        text : str or iterable of str
            One text, or the documents of a collection; words do not reach from one document into the next.
        vocab_size : int
            256 bytes + merges + 1 for `<|endoftext|>`: at least 257. A text so short that no pair is left to
            merge gives a smaller vocabulary; `tokenizer.vocab_size` is the true one.
        progress : bool
            Show a progress bar on stderr.

        Returns
        -------
        Tokenizer

        Raises
        ------
        InputError
            For a `vocab_size` below 257, an empty text, a document that is no str, a lone surrogate.
        """
        if not hasattr(vocab_size, "__index__") or vocab_size < N_BYTES + 1:
            raise InputError(
                f"vocab_size must be an integer of at least {N_BYTES + 1} (256 bytes and {END_OF_TEXT}), "
                f"got {vocab_size!r}"
            )
        counts: Counter[str] = Counter()
        for document in _documents(text):
            counts.update(split_words(document))
        words = {word.encode("utf-8").translate(_ID_OF_BYTE): count for word, count in counts.items()}
        return cls(_train_merges(words, index(vocab_size) - N_BYTES - 1, progress))

    def encode(self, text: str) -> list[int]:
        """Turn a text into token ids.

        `<|endoftext|>` inside the text is text like any other, so a document cannot end itself.

        Parameters
        ----------
        text : str

        Returns
        -------
        list of int
            `decode` of it is `text` again. Empty for the empty text.

        Raises
        ------
        InputError
            If `text` is no str or contains a lone surrogate.
        """
        _check_text(text, "the text")
        return list(chain.from_iterable(map(self._cache.__getitem__, split_words(text))))

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `vocab.json`, `merges.txt` and `tokenizer_config.json`.

        `transformers` opens the directory as a GPT-2 tokenizer. Each file is complete or not there at all.
        The directory is made if it does not exist.

        Raises
        ------
        InputError
            If `directory` cannot be one.
        RunError
            If the files cannot be written (disk full).
        """
        names = [_file_form(token) for token in self._tokens[:-1]]
        vocabulary = {name: number for number, name in enumerate([*names, END_OF_TEXT])}
        lines = [
            f"{_MERGES_HEADER}: 0.2",
            *(f"{names[left]} {names[right]}" for left, right in self._merge_ids),
        ]
        config = {
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        }
        _write_files(
            directory,
            {
                _VOCAB_FILE: json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n",
                _MERGES_FILE: "\n".join(lines) + "\n",
                _CONFIG_FILE: json.dumps(config, indent=2) + "\n",
            },
        )

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> Tokenizer:
        """Read `vocab.json` and `merges.txt` of a GPT-2 directory.

        The two files are checked against each other: ids 0 to 255 must be the bytes in GPT-2's order, then
        one token per line of `merges.txt`, then `<|endoftext|>`.

        Raises
        ------
        InputError
            If a file is missing, damaged or does not fit the other; the message names the file and, where
            there is one, the line.
        """
        directory = Path(directory)
        if _is_character_level(directory):
            raise InputError(
                f"{directory} holds a character-level tokenizer: open it with CharTokenizer or load_tokenizer"
            )
        _check_has(directory, _VOCAB_FILE, _MERGES_FILE)
        vocabulary = read_json(directory / _VOCAB_FILE)
        path = directory / _MERGES_FILE
        lines = _read_lines(path)
        first_line = 2 if lines and lines[0].startswith(_MERGES_HEADER) else 1

        ids = {BYTE_CHARACTERS[byte]: number for number, byte in enumerate(BYTE_OF_ID)}
        for name, number in ids.items():
            if vocabulary.get(name) != number:
                raise InputError(
                    f"{directory / _VOCAB_FILE} is no GPT-2 vocabulary: the byte token {name!r} must have "
                    f"the id {number}, and has {vocabulary.get(name, 'none')}"
                )
        merges: list[Pair] = []
        for line_number, line in enumerate(lines[first_line - 1 :], start=first_line):
            where = f"{path}, line {line_number}"
            parts = line.split(" ")
            if len(parts) != 2:
                raise InputError(f"{where}: expected two tokens with one blank between them, got {_short(line)}")
            for part in parts:
                if part not in ids:
                    raise InputError(f"{where}: {part!r} is neither a byte nor made by an earlier line")
            name, number = "".join(parts), N_BYTES + len(merges)
            if name in ids:
                raise InputError(f"{where}: {name!r} was made by an earlier line already")
            if vocabulary.get(name) != number:
                raise InputError(
                    f"{where}: makes {name!r} with the id {number}, but {_VOCAB_FILE} gives it "
                    f"{vocabulary.get(name, 'none')}"
                )
            merges.append((ids[parts[0]], ids[parts[1]]))
            ids[name] = number
        left_over = [name for name in vocabulary if name not in ids and name != END_OF_TEXT]
        if left_over:
            raise InputError(
                f"{directory / _VOCAB_FILE} has {len(left_over)} tokens that {path} does not make: "
                f"{_short(left_over)} (it ends at line {len(lines)})"
            )
        if vocabulary.get(END_OF_TEXT) != len(ids):
            raise InputError(
                f"{directory / _VOCAB_FILE}: {END_OF_TEXT} must come last, with the id {len(ids)}, "
                f"and has {vocabulary.get(END_OF_TEXT, 'none')}"
            )
        return cls(merges)


class CharTokenizer(_TokenTable):
    """One token per character, as in the published character-level recipes.

    The vocabulary is what occurs in the training text and nothing else: there is no token for unknown
    characters and none for the end of a text (`eos_token_id` is None).

    Parameters
    ----------
    characters : iterable of str
        The vocabulary in order of ids; each one character, no two the same.

    Raises
    ------
    InputError
        If there is no character, one comes twice, or one is no single character.

    Examples
    --------
    >>> tokenizer = CharTokenizer.train("hello")
    >>> tokenizer.encode("hole"), tokenizer.decode([1, 0])
    ([1, 3, 2, 0], 'he')
    """

    def __init__(self, characters: Iterable[str]):
        self._characters = list(characters)
        self._ids = {character: number for number, character in enumerate(self._characters)}
        if not self._characters:
            raise InputError("a character vocabulary needs at least one character")
        for number, character in enumerate(self._characters):
            if len(character) != 1:
                raise InputError(
                    f"token {number} of a character vocabulary must be one character, got {_short(character)}"
                )
            if self._ids[character] != number:
                raise InputError(f"the character {character!r} is in the vocabulary twice")
            _check_text(character, f"token {number}")
        super().__init__([character.encode("utf-8") for character in self._characters])

    def __reduce__(self) -> tuple[type[CharTokenizer], tuple[list[str]]]:
        return type(self), (self._characters,)

    @property
    def eos_token_id(self) -> None:
        """None: no token ends a text."""
        return None

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int | None = None, progress: bool = False) -> CharTokenizer:
        """Take the characters of a text, sorted by code point, as the vocabulary.

        Parameters
        ----------
        text : str or iterable of str
            One text, or the documents of a collection.
        vocab_size : int, optional
            The most characters that are allowed. By default, as many as there are.
        progress : bool
            Accepted for the sake of `Tokenizer.train`; there is nothing to wait for.

        Returns
        -------
        CharTokenizer

        Raises
        ------
        InputError
            For an empty text, more characters than `vocab_size`, a document that is no str, a lone surrogate.
        """
        characters: set[str] = set()
        for document in _documents(text):
            characters.update(document)
        if vocab_size is not None and len(characters) > vocab_size:
            raise InputError(f"the text has {len(characters)} different characters, more than vocab_size={vocab_size}")
        return cls(sorted(characters))

    def encode(self, text: str) -> list[int]:
        """Turn a text into the ids of its characters.

        Parameters
        ----------
        text : str

        Returns
        -------
        list of int
            As many as there are characters.

        Raises
        ------
        InputError
            If `text` is no str, or has a character that the training text did not have.
        """
        _check_is_str(text, "the text")
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            unknown = error.args[0]
            raise InputError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) at position {text.index(unknown)} is not "
                f"among the {self.vocab_size} of this vocabulary: remove it, or train the tokenizer on text "
                f"that has it"
            ) from None

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `vocab.json` (character -> id) and `tokenizer_config.json`, which says what it is.

        Each file is complete or not there at all. The directory is made if it does not exist.

        Raises
        ------
        InputError
            If `directory` cannot be one.
        RunError
            If the files cannot be written (disk full).
        """
        _write_files(
            directory,
            {
                _VOCAB_FILE: json.dumps(self._ids, ensure_ascii=False, indent=0) + "\n",
                _CONFIG_FILE: json.dumps({"tokenizer_class": _CHAR_CLASS}, indent=2) + "\n",
            },
        )

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> CharTokenizer:
        """Read what `save_pretrained` wrote.

        Raises
        ------
        InputError
            If a file is missing or damaged, or the directory holds another kind of tokenizer.
        """
        directory = Path(directory)
        if not _is_character_level(directory):
            raise InputError(
                f"{directory} holds no character-level tokenizer: {_CONFIG_FILE} must say "
                f'"tokenizer_class": "{_CHAR_CLASS}"'
            )
        path = directory / _VOCAB_FILE
        _check_has(directory, _VOCAB_FILE)
        vocabulary = read_json(path)
        characters = {number: character for character, number in vocabulary.items() if type(number) is int}
        for number in range(len(vocabulary)):
            if number not in characters:
                raise InputError(
                    f"{path} has {len(vocabulary)} entries, whose ids must be 0 to {len(vocabulary) - 1}: "
                    f"none has {number}"
                )
        try:
            return cls(characters[number] for number in range(len(vocabulary)))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer | CharTokenizer:
    """Open the tokenizer of a model directory, whichever kind it is.

    Parameters
    ----------
    directory : path
        A GPT-2 directory, or one that `CharTokenizer.save_pretrained` wrote; `tokenizer_config.json` tells
        them apart.

    Returns
    -------
    Tokenizer or CharTokenizer

    Raises
    ------
    InputError
        As `from_pretrained` of the two.
    """
    if _is_character_level(Path(directory)):
        return CharTokenizer.from_pretrained(directory)
    return Tokenizer.from_pretrained(directory)


# ----------------------------------------------------------------------------------------------------
# What goes in and out
# ----------------------------------------------------------------------------------------------------


def _documents(text: str | Iterable[str]) -> Iterator[str]:
    """The documents of a training text, checked one by one; InputError at the end if all were empty."""
    empty = True
    if isinstance(text, str | bytes) or not isinstance(text, Iterable):
        _check_text(text, "the training text")
        text = [text]
    for number, document in enumerate(text):
        _check_text(document, f"document {number} of the training text")
        empty = empty and not document
        yield document
    if empty:
        raise InputError("the training text is empty: a vocabulary is learnt from at least one character")


def _check_is_str(text: str, what: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"{what} must be a str, not {type(text).__name__} {_short(text)}")


def _check_text(text: str, what: str) -> None:
    _check_is_str(text, what)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} has a lone surrogate (U+{ord(text[error.start]):04X}) at position {error.start}, which "
            f"is no character: read the file again with errors='replace'"
        ) from None


def _short(value: object) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."


def _file_form(token: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


def _is_character_level(directory: Path) -> bool:
    path = directory / _CONFIG_FILE
    # The original GPT-2 files come without a config.
    return path.exists() and read_json(path).get("tokenizer_class") == _CHAR_CLASS


def _check_has(directory: Path, *names: str) -> None:
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    missing = [name for name in names if not (directory / name).is_file()]
    if not missing:
        return
    fault = f"{directory}: no {' and no '.join(missing)} in it"
    single_file = directory / "tokenizer.json"
    if single_file.is_file():  # all that newer versions of transformers write
        fault += (
            f", only tokenizer.json; write {' and '.join(names)} with "
            f'python -c "from tokenizers import Tokenizer as T; '
            f'T.from_file({str(single_file)!r}).model.save({str(directory)!r})"'
        )
    raise InputError(fault)


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        line_number = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise InputError(f"{path}, line {line_number}: not UTF-8 (byte 0x{byte:02x})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return lines[:-1] if lines[-1] == "" else lines


def _write_files(directory: str | os.PathLike[str], contents: Mapping[str, str]) -> None:
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{directory}: cannot make a directory, there is a file of that name") from None
    except OSError as error:
        raise RunError(f"{directory}: cannot make this directory: {error.strerror}") from None
    for name, text in contents.items():
        write_atomic(directory / name, text.encode("utf-8"))
