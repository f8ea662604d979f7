"""The classifier equal to transformers' GPT-2 under concat pooling and a head in PyTorch: scores, loss, every gradient.

The golden file of the default tests (tests/golden/classifier_tiny.npz) is made here, by those libraries and not by
our code. To make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_lesson_03_parity.py -k golden
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kernels import get_backend  # noqa: E402
from kernels.backend import OPS  # noqa: E402
from lessons.lesson_03_ulmfit_classifier import Ulmfit, thaw  # noqa: E402
from minigpt import GPT, GPTConfig  # noqa: E402
from tests.helpers import error  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden" / "classifier_tiny.npz"
BACKENDS = {"fast": get_backend("numpy"), "reference": get_backend("numpy", OPS)}
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
SETTINGS: dict[str, Any] = {"vocab_size": 31, "n_positions": 9, "n_embd": 10, "n_layer": 2, "n_head": 5}
BATCHES = {
    "padded": ([9, 4, 1, 6], [2, 0, -100, 3]),
    "one row": ([7], [1]),
    "one token": ([1, 1, 1], [3, 0, 3]),
    "full": ([5, 5], [1, 2]),
}


class Theirs(torch.nn.Module):
    """GPT2Model, [last, maximum, mean] over the real tokens, and one or two linear layers."""

    def __init__(self, n_labels: int, hidden: int, dtype: str) -> None:
        super().__init__()
        config = transformers.GPT2Config(
            **SETTINGS, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager"
        )
        self.transformer = transformers.GPT2Model(config)
        width = 3 * SETTINGS["n_embd"]
        self.score_hidden = torch.nn.Linear(width, hidden) if hidden else None
        self.score = torch.nn.Linear(hidden or width, n_labels)
        self.to(getattr(torch, dtype))
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for name, p in self.named_parameters():
                mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
                p.copy_(torch.from_numpy(rng.normal(mean, 0.3, size=tuple(p.shape))))

    def forward(self, ids: Any, lengths: Any) -> Any:
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        states = self.transformer(ids, attention_mask=mask.long()).last_hidden_state
        pooled = torch.stack(
            [
                torch.cat((row[:n][-1], row[:n].max(0).values, row[:n].mean(0)))
                for row, n in zip(states, lengths.tolist(), strict=True)
            ]
        )
        if self.score_hidden is not None:
            pooled = torch.relu(self.score_hidden(pooled))
        return self.score(pooled)


def arrays(theirs: Theirs, what: str = "data") -> dict[str, np.ndarray]:
    """Parameters or gradients under our names, linear layers of the head the other way round."""
    found = {}
    for name, p in theirs.named_parameters():
        array = (p.detach() if what == "data" else p.grad).numpy()
        found[name] = array.T.copy() if name.startswith("score") and array.ndim == 2 else array.copy()
    return found


def ours_from(weights: dict[str, np.ndarray], n_labels: int, hidden: int, dtype: str, backend: Any) -> Any:
    tuned = Ulmfit(n_labels=n_labels, hidden=hidden).apply(GPT(GPTConfig(**SETTINGS), dtype=dtype, backend=backend))
    assert {p.name for p in tuned.parameters()} == set(weights)
    for p in tuned.parameters():
        p.data = weights[p.name].copy()
    return tuned


def make_batch(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths, labels = (np.array(values) for values in BATCHES[name])
    ids = np.random.default_rng(1).integers(0, SETTINGS["vocab_size"], (len(lengths), lengths.max()))
    return ids, labels, lengths


def their_results(theirs: Theirs, name: str) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    ids, labels, lengths = (torch.from_numpy(a) for a in make_batch(name))
    theirs.zero_grad()
    scores = theirs(ids, lengths)
    loss = torch.nn.functional.cross_entropy(scores, labels, ignore_index=-100)
    loss.backward()
    return scores.detach().numpy(), loss.item(), arrays(theirs, "grad")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("hidden", [0, 7])
@pytest.mark.parametrize("name", BATCHES)
def test_scores_loss_and_every_gradient(name: str, hidden: int, dtype: str, backend: str) -> None:
    theirs = Theirs(4, hidden, dtype)
    ours = ours_from(arrays(theirs), 4, hidden, dtype, BACKENDS[backend])
    scores, loss, gradients = their_results(theirs, name)
    ids, labels, lengths = make_batch(name)
    tolerance = TOLERANCES[dtype]
    assert error(ours.logits(ids, lengths), scores) < tolerance
    our_loss, grads = ours.loss_and_grads(ids, labels, lengths)
    assert error(our_loss, loss) < tolerance
    assert set(grads) == set(gradients)
    for parameter, gradient in grads.items():
        assert gradient.dtype == dtype
        # Queries and keys of a single token have the gradient 0: what is left there is rounding.
        floor = 1e-3 if name == "one token" and "attn.c_attn" in parameter else 0.0
        assert error(gradient, gradients[parameter], floor) < tolerance, parameter


@pytest.mark.parametrize("free", ["score", "transformer.h.1"])
def test_gradients_with_layers_frozen(free: str) -> None:
    theirs = Theirs(4, 7, "float64")
    ours = ours_from(arrays(theirs), 4, 7, "float64", BACKENDS["fast"])
    thaw(ours, [0.0, float(free != "score"), 1.0])
    _, _, gradients = their_results(theirs, "padded")
    ids, labels, lengths = make_batch("padded")
    _, grads = ours.loss_and_grads(ids, labels, lengths)
    assert any(name.startswith(free) for name in grads)
    assert not any(name.startswith(("transformer.h.0", "transformer.w")) for name in grads)
    for name, gradient in grads.items():
        assert error(gradient, gradients[name]) < 1e-9, name


def test_golden_classifier() -> None:
    theirs = Theirs(4, 7, "float64")
    scores, loss, gradients = their_results(theirs, "padded")
    ids, labels, lengths = make_batch("padded")
    made = {"ids": ids, "labels": labels, "lengths": lengths, "scores": scores, "loss": np.array(loss)}
    made |= {f"parameter.{name}": array for name, array in arrays(theirs).items()}
    made |= {f"gradient.{name}": array for name, array in gradients.items()}
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        np.savez_compressed(GOLDEN, **made)
    with np.load(GOLDEN) as stored:
        assert set(stored) == set(made)
        for name, array in made.items():
            assert error(stored[name], array, floor=1e-6) < 1e-9, name
