"""The pre-trained base models that come with the package: four sizes, one tokenizer, trained on the same text.

>>> from minigpt import bases
>>> model, tokenizer = bases.load("base-xs")
>>> model.config.n_layer
2
"""

from __future__ import annotations

from pathlib import Path

from kernels import Backend
from minigpt.errors import InputError
from minigpt.model import GPT
from minigpt.tokenizer import Tokenizer

BASES = ("base-xs", "base-s", "base-m", "base-l")
"""Names, smallest first."""


def path(name: str) -> Path:
    """Directory of a base, a Hugging Face GPT-2 directory with its tokenizer and model card.

    Raises
    ------
    ValueError
        If there is no such base.
    """
    directory = Path(__file__).parent / name
    if name not in BASES or not directory.is_dir():
        raise InputError(f"no base {name!r}; there are {', '.join(BASES)}")
    return directory


def load(name: str, dtype: str = "float32", backend: str | Backend = "numpy") -> tuple[GPT, Tokenizer]:
    """A base and its tokenizer.

    Parameters
    ----------
    name : str
        One of `BASES`.
    dtype : {"float32", "float64"}
    backend : str or Backend

    Raises
    ------
    ValueError
        If there is no such base.
    """
    directory = path(name)
    return GPT.from_pretrained(directory, dtype, backend), Tokenizer.from_pretrained(directory)
