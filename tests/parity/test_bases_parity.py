"""The shipped bases open in transformers, model and tokenizer, and say the same."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from minigpt import bases  # noqa: E402

pytestmark = pytest.mark.parity

TEXT = "One morning Anna went to the market. Return the number of elements, or None if there is no axis.\n"


@pytest.mark.parametrize("name", bases.BASES)
def test_base_in_transformers(name):
    model, tokenizer = bases.load(name)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(bases.path(name), dtype=torch.float32).eval()
    their_tokenizer = transformers.GPT2Tokenizer.from_pretrained(bases.path(name))
    ids = tokenizer.encode(TEXT)
    assert their_tokenizer.encode(TEXT) == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    logits = model.logits([ids])
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-5
