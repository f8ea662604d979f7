"""Text, labelled examples and prompt/completion pairs behind one interface, and their way into tokens.

The sources are modules of their own: `pydocs` and `tinyworld` are there on every machine, `files` reads the
user's own, `download` brings the well-known public sets.
"""

from minigpt.data.base import SPLITS, DataSet, Example, Pair, Ranking, fingerprint, split_of
from minigpt.data.tokens import (
    IGNORED,
    TokenWindows,
    bytes_of,
    collate_labelled,
    collate_pairs,
    encode_documents,
    evaluation_windows,
    pad_batch,
)

__all__ = [
    "IGNORED",
    "SPLITS",
    "DataSet",
    "Example",
    "Pair",
    "Ranking",
    "TokenWindows",
    "bytes_of",
    "collate_labelled",
    "collate_pairs",
    "encode_documents",
    "evaluation_windows",
    "fingerprint",
    "pad_batch",
    "split_of",
]
