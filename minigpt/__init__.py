"""An ordinary GPT-2: tokenizer, data, layers, model, training, generation; knows no fine-tuning method."""

from minigpt.config import GPTConfig
from minigpt.errors import InputError, RunError
from minigpt.model import GPT
from minigpt.tokenizer import CharTokenizer, Tokenizer, load_tokenizer

__all__ = ["GPT", "CharTokenizer", "GPTConfig", "InputError", "RunError", "Tokenizer", "load_tokenizer"]
