"""Whole models through the kernels: what they compute, train and generate is what NumPy's forms do."""

import numpy as np
import pytest

from kernels import Backend, get_backend
from lessons import METHODS
from minigpt import GPT, GPTConfig
from minigpt.context import Context
from minigpt.corpora import language_batches
from minigpt.objectives import LanguageModelling
from minigpt.training import TrainConfig, train
from tests import standin
from tests.cuda.emulated import COMPILER, Emulated
from tests.helpers import error

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the kernels run on the CPU with g++, which is not installed")

CONFIG = GPTConfig(vocab_size=17, n_positions=20, n_embd=12, n_layer=2, n_head=3)
DROPOUT = GPTConfig(17, 20, 12, 2, 3, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.2)
RNG = np.random.default_rng(4)
IDS = RNG.integers(0, 17, (3, 15))
TARGETS = RNG.integers(0, 17, (3, 15))
TARGETS[1, 3:7] = -100


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    standin.poison_empty(monkeypatch)


def emulated(descending=False, precision="float32"):
    return Backend("emulated", np, "_cuda", device=Emulated(precision, descending))


def model_on(backend, config=CONFIG, dtype="float32"):
    """Weights and biases large enough that every part of the model shows in the result."""
    model = GPT(config, seed=0, dtype=dtype, backend=backend)
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.data[...] += 0.3 * rng.standard_normal(p.data.shape)
    return model


def same(got, wanted, tolerance=1e-5):
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        assert error(gradient, wanted[name]) < tolerance, name


def test_logits_and_gradients():
    ours, numpy = model_on(emulated()), model_on(get_backend("numpy"))
    assert error(ours.logits(IDS), numpy.logits(IDS)) < 1e-5
    (loss, grads), (wanted, gradients) = (m.loss_and_grads(IDS, TARGETS) for m in (ours, numpy))
    assert type(loss) is float
    assert abs(loss - wanted) < 1e-5
    same(grads, gradients)


def test_padding():
    """Left-padded rows, as generation batches them, with their keys masked."""
    key_mask = np.arange(15) >= np.array([[0], [4], [9]])
    positions = np.maximum(np.arange(15) - np.array([[0], [4], [9]]), 0)
    hidden = []
    for backend in (emulated(), get_backend("numpy")):
        model = model_on(backend)
        hidden.append(model.forward(IDS, Context(backend, key_mask=key_mask, positions=positions))[0])
    assert error(*hidden) < 1e-5


def test_float64_model_runs_the_references():
    backend = emulated()
    ours, numpy = model_on(backend, dtype="float64"), model_on(get_backend("numpy"), dtype="float64")
    (loss, grads), (wanted, gradients) = (m.loss_and_grads(IDS, TARGETS) for m in (ours, numpy))
    assert abs(loss - wanted) < 1e-12
    same(grads, gradients, 1e-12)
    assert not backend.device.launched


@pytest.mark.parametrize(("precision", "low", "high"), [("tf32", 1e-5, 1e-2), ("bfloat16", 1e-4, 1e-1)])
def test_rounded_products(precision, low, high):
    ours, exact = model_on(emulated(precision=precision)), model_on(emulated())
    assert low < error(ours.logits(IDS), exact.logits(IDS)) < high


def training(backend, config, method=None):
    model = model_on(backend, config)
    if method is not None:
        model = METHODS[method](r=2, lora_alpha=4, target_modules=["c_attn", "c_proj"]).apply(model, seed=0)
    tokens = np.random.default_rng(2).integers(0, 17, 300)
    settings = TrainConfig(steps=10, lr=3e-3, eps=1e-3, max_norm=0.5, workers=1, accumulation=2, seed=3)
    batches = language_batches(tokens, 4, 12, 0, "text")
    history = train(model, LanguageModelling(), batches, settings, progress=False)
    return model, history


@pytest.mark.parametrize("config", [CONFIG, DROPOUT], ids=["plain", "dropout"])
def test_training(config):
    (ours, history), (numpy, wanted) = (training(b, config) for b in (emulated(), get_backend("numpy")))
    assert len(history.losses) == 10
    assert error(history.losses, wanted.losses) < 1e-5
    same(ours.state(), numpy.state(), 1e-4)


def test_training_gives_the_same_bytes_in_any_order():
    states = [training(emulated(descending), DROPOUT)[0].state() for descending in (False, True)]
    assert all(states[0][name].tobytes() == states[1][name].tobytes() for name in states[0])


def test_lora():
    (ours, history), (numpy, wanted) = (training(b, CONFIG, "lora") for b in (emulated(), get_backend("numpy")))
    assert error(history.losses, wanted.losses) < 1e-5
    assert error(ours.logits(IDS), numpy.logits(IDS)) < 1e-4
    same(*(m.loss_and_grads(IDS, TARGETS)[1] for m in (ours, numpy)), 1e-3)


@pytest.mark.parametrize("lengths", [None, [4, 2, 3]])
def test_generation(lengths):
    """Token by token with a cache, greedy and drawn, padded or not."""
    ours, numpy = model_on(emulated()), model_on(get_backend("numpy"))
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 5, "seed": 7}):
        results = [m.generate(IDS[:, :4], 12, lengths=lengths, **settings) for m in (ours, numpy)]
        assert (results[0] == results[1]).all()
