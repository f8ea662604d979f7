"""Everything runs on an array library that is not NumPy, with NumPy's results: nothing slips past.

The operations one by one run on it in the other files of this folder; here are the whole model, and what the
stand-in refuses.
"""

import copy
import operator
import pickle

import numpy as np
import pytest

from kernels import get_backend
from kernels.backend import OPS
from minigpt import GPT, GPTConfig
from minigpt.heads import pool_last, token_logprobs
from minigpt.parameters import FlatParameters, Gradients
from tests.helpers import error
from tests.standin import BACKEND, ndarray, standin, wrap

CONFIG = GPTConfig(vocab_size=13, n_positions=12, n_embd=6, n_layer=2, n_head=3)


@pytest.fixture
def models():
    """The same weights on NumPy and on the stand-in."""
    numpy_model = GPT(CONFIG, seed=3, dtype="float64", backend=get_backend("numpy", OPS))
    other = GPT(CONFIG, seed=3, dtype="float64", backend=BACKEND)
    rng = np.random.default_rng(0)
    for p, q in zip(numpy_model.parameters(), other.parameters(), strict=True):
        assert isinstance(q.data, ndarray), q.name
        p.data += rng.normal(0, 0.3, size=p.data.shape)
        q.data = standin.asarray(p.data)
    return numpy_model, other


@pytest.fixture
def batch(rng):
    ids, targets = rng.integers(0, 13, size=(2, 3, 7))
    targets[0, 2:5] = -100
    return ids, targets


def test_logits(models, batch):
    expected, got = (m.logits(batch[0]) for m in models)
    assert isinstance(got, ndarray)
    assert error(got.get(), expected) < 1e-13


def test_loss_and_gradients(models, batch):
    (loss, grads), (other_loss, other_grads) = (m.loss_and_grads(*batch) for m in models)
    assert type(other_loss) is float
    assert error(other_loss, loss) < 1e-13
    assert list(other_grads) == list(grads)
    for name, gradient in other_grads.items():
        assert isinstance(gradient, ndarray), name
        assert error(gradient.get(), grads[name]) < 1e-12, name


def test_float32(batch):
    loss, grads = GPT(CONFIG, seed=3, backend=BACKEND).loss_and_grads(*batch)
    expected, expected_grads = GPT(CONFIG, seed=3).loss_and_grads(*batch)
    assert error(loss, expected) < 1e-5
    for name, gradient in grads.items():
        assert gradient.dtype == np.float32, name
        assert error(gradient.get(), expected_grads[name]) < 1e-5, name


def test_arrays_that_are_already_there(models, batch):
    ids, targets = (standin.asarray(a) for a in batch)
    loss, _ = models[1].loss_and_grads(ids, targets)
    assert error(loss, models[0].loss_and_grads(*batch)[0]) < 1e-13


@pytest.mark.parametrize("settings", [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 4},
    {"temperature": 0.0, "lengths": [4, 1, 2]},
    {"seed": 1, "eos_token_id": 3},
])  # fmt: skip
def test_generate(models, batch, settings):
    expected, got = (m.generate(batch[0][:, :4], max_new_tokens=6, **settings) for m in models)
    assert type(got) is np.ndarray
    assert got.dtype == np.int64
    assert got.tolist() == expected.tolist()


def test_dropout(batch):
    # The stand-in draws NumPy's numbers, so that even these are equal.
    config = GPTConfig(**{**vars(CONFIG), "embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.4})
    hidden = []
    for backend in (get_backend("numpy"), BACKEND):
        model = GPT(config, seed=3, dtype="float64", backend=backend)
        ctx = model.context(grad=True, training=True, rng=backend.rng(5))
        grads = Gradients(model.parameters(), backend)
        y, back = model.forward(backend.asarray(batch[0]), ctx)
        back(backend.asarray(np.ones(y.shape)) * y, grads)
        hidden.append([backend.to_numpy(a) for a in (y, *grads.as_dict().values())])
    for a, b in zip(*hidden, strict=True):
        assert error(a, b) < 1e-12


def test_padding_heads_and_pooling(models, batch):
    ids, targets = batch
    key_mask = np.arange(7) < np.array([[7], [3], [1]])
    results = []
    for model in models:
        put, to_numpy = model.backend.asarray, model.backend.to_numpy
        ctx = model.context(grad=True, key_mask=put(key_mask))
        grads = Gradients(model.parameters(), model.backend)
        hidden, trunk_back = model.forward(put(ids), ctx)
        logprobs, head_back = token_logprobs(hidden, model.wte, put(targets), ctx)
        pooled, pool_back = pool_last(hidden, put(np.array([7, 3, 1])), ctx)
        dhidden = head_back(logprobs * 0.5, grads)
        dhidden += pool_back(pooled * pooled)
        trunk_back(dhidden, grads)
        results.append([to_numpy(a) for a in (logprobs, pooled, *grads.as_dict().values())])
    for a, b in zip(*results, strict=True):
        assert error(b, a) < 1e-12


def test_flat_parameters_copies_and_state(models, batch):
    for model in models:
        loss, grads = model.loss_and_grads(*batch)
        twin = model.copy()
        flat = FlatParameters(twin.parameters(), model.backend)
        gradients = Gradients(twin.parameters(), model.backend)
        for p in twin.parameters():
            gradients.add(p, grads[p.name])
        m, v = (model.backend.zeros(flat.size, flat.dtype) for _ in range(2))
        model.backend.ops.adamw_update(flat.buffer, gradients.buffer, m, v, 1, 0.01)
        assert model.backend.ops.sum_of_squares(gradients.buffer) > 0
        assert twin.loss_and_grads(*batch)[0] < loss == model.loss_and_grads(*batch)[0]
        assert all(type(array) is np.ndarray for array in twin.state().values())


def test_nothing_uninitialised_is_read(models, batch):
    # `empty` of the stand-in gives NaN.
    assert np.isnan(standin.empty((2, 3)).get()).all()
    assert all(np.isfinite(g.get()).all() for g in models[1].loss_and_grads(*batch)[1].values())


# --------------------------------------------------------------------------- what the stand-in refuses


@pytest.mark.parametrize("function", [
    np.exp, np.add.reduce, np.sum, np.asarray, np.array, np.zeros_like, np.max, np.argsort, np.float32,
    np.linalg.norm,
    lambda x: np.add.at(np.zeros(3), [0], x),
    lambda x: np.matmul(np.ones((3, 3)), x),
    lambda x: np.exp(np.ones(3), out=x),
    lambda x: np.where(x > 0, 1, 0),
    lambda x: np.concatenate([x, x]),
    lambda x: np.ones(3) + x,
    lambda x: x + np.ones(3),
    lambda x: operator.iadd(np.ones(3), x),
    lambda x: operator.iadd(x, np.ones(3)),
    lambda x: np.ones(3) @ x,
    lambda x: x @ np.ones(3),
    lambda x: x == np.ones(3),
    lambda x: np.ones(3) < x,
    lambda x: x[np.array([0, 1])],
    lambda x: x[[0, 1]],
    lambda x: operator.setitem(x, 0, np.ones(1)),
    lambda x: operator.setitem(np.ones(3), slice(None), x),
    lambda x: operator.setitem(x, np.array([True, False, True]), 0.0),
    lambda x: standin.where(np.array([True, False, True]), x, x),
    lambda x: standin.matmul(x, x, out=np.zeros(())),
    lambda x: standin.add.at(x, np.array([0]), 1.0),
    lambda x: x.sum(out=np.zeros(())),
    lambda x: x.take(np.array([0])),
])  # fmt: skip
def test_it_does_not_mix_with_numpy(function):
    with pytest.raises(TypeError):
        function(standin.ones(3))


def test_it_has_no_names_that_cupy_lacks():
    for name in ("vecdot", "linalg_vecdot", "unstack", "float128", "sctypes"):
        assert not hasattr(standin, name)


def test_it_computes():
    x = standin.asarray(np.arange(6.0).reshape(2, 3))
    assert (x.get() == np.arange(6.0).reshape(2, 3)).all()
    assert isinstance(x.sum(), ndarray)
    assert isinstance(x[0, 1], ndarray)
    assert float(x.sum()) == 15.0
    assert x.shape == (2, 3)
    assert x.dtype == np.float64
    assert [row.shape for row in x] == [(3,), (3,)]
    out = standin.empty((2, 2))
    assert standin.matmul(x, x.T, out=out) is out
    assert out.get().tolist() == [[5.0, 14.0], [14.0, 50.0]]
    view = x[:, 1:]
    view *= 2
    assert x.get().tolist() == [[0.0, 2.0, 4.0], [3.0, 8.0, 10.0]]
    x[x > 5] = -1.0
    assert x.get().tolist() == [[0.0, 2.0, 4.0], [3.0, -1.0, -1.0]]
    assert ((1 - x) / 2).get().tolist() == [[0.5, -0.5, -1.5], [-1, 1, 1]]
    host = np.ones(2)
    y = standin.asarray(host)
    y += 1
    assert host.tolist() == [1, 1], "asarray must copy from the host"
    assert y.get() is not y.get()


def test_it_copies_and_pickles():
    x = wrap(np.arange(3))
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        twin[0] = 7
        assert isinstance(twin, ndarray)
        assert x.get().tolist() == [0, 1, 2]


def test_singular_values_are_numpys() -> None:
    host = np.random.default_rng(0).standard_normal((4, 3))
    parts = standin.linalg.svd(standin.asarray(host), full_matrices=False)
    for ours, theirs in zip(parts, np.linalg.svd(host, full_matrices=False), strict=True):
        assert type(ours) is standin.ndarray
        assert (ours.get() == theirs).all()
    with pytest.raises(TypeError, match="stand-in array"):
        np.linalg.svd(parts[0])
