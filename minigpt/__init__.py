"""An ordinary GPT-2: tokenizer, data, layers, model, training, generation; knows no fine-tuning method."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minigpt.errors import InputError, RunError

if TYPE_CHECKING:
    from minigpt.config import GPTConfig
    from minigpt.model import GPT
    from minigpt.tokenizer import CharTokenizer, Tokenizer, load_tokenizer

__all__ = ["GPT", "CharTokenizer", "GPTConfig", "InputError", "RunError", "Tokenizer", "load_tokenizer"]

# Imported at first use: a grader, which needs the errors only, must run beside a model that a student has broken.
_HOME = {
    "GPT": "minigpt.model",
    "GPTConfig": "minigpt.config",
    "CharTokenizer": "minigpt.tokenizer",
    "Tokenizer": "minigpt.tokenizer",
    "load_tokenizer": "minigpt.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
