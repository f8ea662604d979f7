"""A training step on a device waits for it once, copies its batch in one piece, and gives NumPy's results.

On the stand-in library with the reference forms, and on a fake CuPy with the CUDA kernels and cuBLAS' products.
"""

import math

import numpy as np
import pytest

from kernels import get_backend
from lessons import METHODS
from minigpt import GPT, GPTConfig
from minigpt.objectives import LanguageModelling
from minigpt.optim import AdamW
from minigpt.parallel import Comm, Replica
from minigpt.parameters import FlatParameters
from minigpt.training import TrainConfig, train
from tests import standin
from tests.cuda import emulated, fake_cupy
from tests.helpers import error

CONFIG = GPTConfig(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2)
needs_gxx = pytest.mark.skipif(emulated.COMPILER is None, reason="compiles CUDA C++ with g++, which is not installed")


@pytest.fixture(params=["standin", pytest.param("cupy", marks=needs_gxx)])
def backend(request, monkeypatch):
    if request.param == "standin":
        return standin.BACKEND
    fake_cupy.install(monkeypatch)
    return get_backend("cupy")


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 13, size=(2, 3, 7))
    targets[0, 2:5] = -100
    return {"ids": ids, "targets": targets}


def weights(model, seed=1):
    """Random numbers in all parameters, also where a method starts at zero; the same on every backend."""
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = model.backend.asarray((0.3 * rng.standard_normal(p.data.shape)).astype(np.float32))


def replica_of(backend, kind):
    model = GPT(CONFIG, seed=3, backend=backend)
    if kind == "lora":
        model = METHODS["lora"](r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"]).apply(model, seed=0)
    weights(model)
    parameters = AdamW.order(model.parameters(), (), 0.1)
    optimizer = AdamW(parameters, backend, (), (0.9, 0.99), 1e-2, 0.1)  # no sign of a rounding error as a step
    flat = FlatParameters(parameters, backend)
    return Replica(model, LanguageModelling(), flat, optimizer, Comm())


def steps(replica, batch, accumulation, max_norm, count=2):
    rates = [1e-2] * len(replica.optimizer.segments)
    total = LanguageModelling().total(batch)
    return [replica.step(batch, total, accumulation, i, rates, max_norm, 0) for i in range(count)]


@pytest.mark.parametrize("max_norm", [None, 1e-3, 1e3], ids=["no clipping", "clipped", "not clipped"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_step_waits_once(backend, batch, kind, accumulation, max_norm):
    replica = replica_of(backend, kind)
    with standin.synchronisations() as waits, standin.copies_to_device() as copies:
        (result, again) = steps(replica, batch, accumulation, max_norm)
    assert len(waits) == 2, waits
    assert all("backend.py" in wait for wait in waits), waits
    scored = int((batch["targets"] >= 0).sum())
    sent = [n for n in copies if n > 8]  # single numbers are arguments, such as those that are stacked to be read
    assert len(sent) == 2 * accumulation, copies
    assert sum(sent) == 2 * 8 * (batch["ids"].size + batch["targets"].size + scored)
    expected = replica_of(get_backend("numpy"), kind)
    values = steps(expected, batch, accumulation, max_norm)
    assert all(type(x) is float for pair in (result, again, *values) for x in pair)
    assert error(np.array([result, again]), np.array(values)) < 1e-5
    assert error(backend.to_numpy(replica.flat.buffer), expected.flat.buffer) < 1e-5


def test_a_step_that_fails_changes_nothing(backend, batch):
    replica = replica_of(backend, "full")
    replica.model.h[0].mlp.c_fc.weight.data[0, 0] = math.nan
    before = backend.to_numpy(replica.flat.buffer).copy()
    with standin.synchronisations() as waits:
        ((loss, norm),) = steps(replica, batch, 1, 1.0, count=1)
    assert math.isnan(loss)
    assert math.isnan(norm)
    assert len(waits) == 1
    assert np.array_equal(backend.to_numpy(replica.flat.buffer), before, equal_nan=True)


def test_evaluation_waits_once(backend, batch):
    replica = replica_of(backend, "full")
    with standin.synchronisations() as waits:
        loss, count = replica.evaluate([batch] * 3)
    assert len(waits) == 1, waits
    expected = replica_of(get_backend("numpy"), "full").evaluate([batch] * 3)
    assert type(loss) is float
    assert error(np.array([loss, count]), np.array(expected)) < 1e-6


def test_a_whole_run(backend, batch, tmp_path):
    histories = []
    for where, name in ((backend, "device"), (get_backend("numpy"), "numpy")):
        model = GPT(CONFIG, seed=3, backend=where)
        weights(model)
        config = TrainConfig(steps=3, lr=1e-2, eval_every=2, keep_best=True, checkpoint_every=2, workers=1)
        history = train(
            model, LanguageModelling(), lambda step: batch, config, [batch], directory=tmp_path / name, progress=False
        )
        histories.append(history)
        ids = model.generate(batch["ids"][:, :3], max_new_tokens=4, temperature=0.0)
        assert ids.shape == (3, 7)
    ours, numpys = histories
    for name in ("losses", "norms", "eval_losses"):
        assert error(np.array(getattr(ours, name)), np.array(getattr(numpys, name))) < 1e-4, name
        assert all(type(x) is float for x in getattr(ours, name)), name


def test_what_counts_as_waiting():
    x = standin.standin.asarray(np.array([1.0, 2.0, 0.0]))
    one, mask = x[0], x > 0
    for kind, wait in {
        "get": lambda: x.get(),
        "item": lambda: one.item(),
        "tolist": lambda: x.tolist(),
        "float": lambda: float(one),
        "int": lambda: int(one),
        "index": lambda: range(3)[one.astype(int)],
        "bool": lambda: 1 if one > 0 else 0,
        "repr": lambda: repr(x),
        "mask": lambda: x[mask],
        "flatnonzero": lambda: standin.standin.flatnonzero(x),
        "nonzero": lambda: x.nonzero(),
        "where": lambda: standin.standin.where(mask),
        "unique": lambda: standin.standin.unique(x),
        "repeat": lambda: standin.standin.repeat(x, mask.astype(int)),
    }.items():
        with standin.synchronisations() as outer, standin.synchronisations() as waits:
            wait()
        assert [w.split(" at ")[0] for w in waits] == [kind]
        assert __file__ in waits[0]
        assert outer == waits
    with standin.synchronisations() as waits:
        x[mask] = 0.0
    assert len(waits) == 1
    with standin.synchronisations() as waits:
        a, b, c = x
        x[1:] += a * b
        x[standin.standin.asarray(np.array([0, 2]))] = c
        standin.standin.where(mask, x, 0)
        x.sum(), x.shape, len(x), x @ x, standin.standin.repeat(x, 2)
    assert waits == []
