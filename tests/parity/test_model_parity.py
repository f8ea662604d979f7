"""Logits, loss, every gradient, greedy generation, AdamW and clipping equal to PyTorch's and transformers'.

The golden file of the default tests (tests/golden/gpt2_tiny.npz) is made here, by those libraries and not by
our code. To make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_model_parity.py -k golden
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kernels import get_backend  # noqa: E402
from kernels.backend import OPS  # noqa: E402
from minigpt import GPT, GPTConfig  # noqa: E402
from minigpt.heads import lm_logits, token_logprobs  # noqa: E402
from minigpt.parameters import FlatParameters, Gradients  # noqa: E402
from tests.helpers import error  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # these models are too small for two, and waiting for the other costs seconds

GOLDEN = Path(__file__).parent.parent / "golden" / "gpt2_tiny.npz"
BACKENDS = {"fast": get_backend("numpy"), "reference": get_backend("numpy", OPS)}
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}

# Odd widths and heads; one head; a sequence of length 1; several blocks of queries; an MLP of another width
SHAPES = {
    "odd": ({"vocab_size": 37, "n_positions": 19, "n_embd": 15, "n_layer": 3, "n_head": 5}, (3, 17)),
    "one head": ({"vocab_size": 11, "n_positions": 8, "n_embd": 7, "n_layer": 2, "n_head": 1}, (2, 8)),
    "one token": ({"vocab_size": 23, "n_positions": 5, "n_embd": 12, "n_layer": 2, "n_head": 3}, (4, 1)),
    "one position": ({"vocab_size": 5, "n_positions": 1, "n_embd": 6, "n_layer": 1, "n_head": 2}, (1, 1)),
    "long": ({"vocab_size": 65, "n_positions": 150, "n_embd": 24, "n_layer": 2, "n_head": 4}, (2, 140)),
    "inner": (
        {"vocab_size": 29, "n_positions": 9, "n_embd": 9, "n_layer": 1, "n_head": 3, "n_inner": 13},
        (1, 9),
    ),
}


def their_model(settings, dtype, seed=0):
    """transformers' GPT-2 with random weights: none stays 0 or 1, which would hide errors."""
    config = transformers.GPT2Config(
        **settings,
        attn_implementation="eager",
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype)).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            p.copy_(torch.from_numpy(rng.normal(mean, 0.3, size=tuple(p.shape))))
    return model


def our_model(theirs, dtype, backend):
    """Ours with the same weights."""
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon")
    config = GPTConfig(**{name: getattr(theirs.config, name) for name in names})
    model = GPT(config, dtype=dtype, backend=backend)
    weights = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    assert set(weights) == {p.name for p in model.parameters()}
    for p in model.parameters():
        p.data = weights[p.name].copy()
    return model


def make_batch(settings, shape, seed=1):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, settings["vocab_size"], size=(2, *shape))
    if targets.size > 3:
        targets[rng.random(shape) < 0.3] = -100
    return ids, targets


def their_loss(model, ids, targets):
    logits = model(torch.from_numpy(ids)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=-100
    )
    return logits, loss


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_loss_and_every_gradient(shape, dtype, backend):
    settings, batch_shape = SHAPES[shape]
    theirs = their_model(settings, dtype)
    ours = our_model(theirs, dtype, BACKENDS[backend])
    ids, targets = make_batch(settings, batch_shape)
    logits, loss = their_loss(theirs, ids, targets)
    loss.backward()
    tolerance = TOLERANCES[dtype]
    assert error(ours.logits(ids), logits.detach().numpy()) < tolerance
    our_loss, grads = ours.loss_and_grads(ids, targets)
    assert error(our_loss, loss.item()) < tolerance
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert set(grads) == set(expected)
    for name, gradient in grads.items():
        assert gradient.dtype == dtype, name
        # Queries and keys of a single token have the gradient 0: what is left there is rounding.
        floor = 1e-3 if batch_shape[1] == 1 and "attn.c_attn" in name else 0.0
        assert error(gradient, expected[name], floor) < tolerance, name


def test_our_loss_is_the_one_their_labels_give():
    # Their labels are the inputs, shifted inside; our targets are shifted already.
    settings, batch_shape = SHAPES["odd"]
    theirs = their_model(settings, "float64")
    ours = our_model(theirs, "float64", BACKENDS["fast"])
    ids, _ = make_batch(settings, batch_shape)
    loss = theirs(torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss.item()
    targets = np.concatenate((ids[:, 1:], np.full((len(ids), 1), -100)), axis=1)
    assert error(ours.loss_and_grads(ids, targets)[0], loss) < 1e-6  # they take theirs from float32 logits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_gradient_of_log_probabilities(dtype, backend):
    """The other way through the head, with a random upstream gradient."""
    settings, batch_shape = SHAPES["odd"]
    theirs = their_model(settings, dtype)
    ours = our_model(theirs, dtype, BACKENDS[backend])
    ids, targets = make_batch(settings, batch_shape)
    upstream = np.random.default_rng(4).normal(size=batch_shape).astype(dtype)
    scored = targets != -100
    logits = theirs(torch.from_numpy(ids)).logits.log_softmax(-1)
    values = logits.gather(-1, torch.from_numpy(np.where(scored, targets, 0))[..., None])[..., 0]
    (values * torch.from_numpy(upstream * scored)).sum().backward()

    ctx = ours.context(grad=True)
    grads = Gradients(ours.parameters(), ours.backend)
    hidden, trunk_back = ours.forward(ids, ctx)
    logprobs, head_back = token_logprobs(hidden, ours.wte, targets, ctx)
    trunk_back(head_back(upstream, grads), grads)
    assert error(logprobs, values.detach().numpy() * scored) < TOLERANCES[dtype]
    for name, p in theirs.named_parameters():
        assert error(grads[name], p.grad.numpy()) < TOLERANCES[dtype], name


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_to_the_right(backend):
    settings, (B, T) = SHAPES["odd"]
    theirs = their_model(settings, "float64")
    ours = our_model(theirs, "float64", BACKENDS[backend])
    ids, _ = make_batch(settings, (B, T))
    real = np.arange(T) < np.array([[T], [5], [1]])
    expected = theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(real.astype("int64"))).logits
    ctx = ours.context(key_mask=real)
    got = lm_logits(ours.forward(ids, ctx)[0], ours.wte, ctx)
    assert error(got[real], expected.detach().numpy()[real]) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ["odd", "one head", "long", "inner"])
def test_greedy_generation(shape, backend):
    settings, _ = SHAPES[shape]
    theirs = their_model(settings, "float64")
    ours = our_model(theirs, "float64", BACKENDS[backend])
    new = settings["n_positions"] - 3
    prompt = np.random.default_rng(7).integers(0, settings["vocab_size"], size=(5, 3))
    expected = their_generate(theirs, prompt, new)
    got = ours.generate(prompt, max_new_tokens=new, temperature=0)
    assert got.tolist() == expected.tolist()
    assert len(np.unique(got[:, 3:])) > 1, "one token over and over shows nothing"


def their_generate(model, prompt, new):
    with torch.no_grad():
        ids = model.generate(
            torch.from_numpy(prompt),
            attention_mask=torch.ones(prompt.shape, dtype=torch.int64),  # without it, it guesses the padding
            pad_token_id=0,
            max_new_tokens=new,
            do_sample=False,
        )
    return ids.numpy()


# ---------------------------------------------------------------------------------- AdamW and clipping

ADAMW = [
    {"lr": 1e-3},
    {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
    {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("settings", ADAMW)
@pytest.mark.parametrize("max_norm", [None, 50.0])
def test_adamw_and_clipping_over_50_steps(settings, max_norm, dtype, tolerance, backend):
    """Gradients of changing size, so that clipping is on in some steps and off in others."""
    ops = BACKENDS[backend].ops
    rng = np.random.default_rng(0)
    P = 1003
    start = rng.normal(size=P).astype(dtype)
    gradients = (rng.normal(size=(50, P)) * rng.lognormal(0.5, 1, size=(50, 1))).astype(dtype)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    rest = {"weight_decay": 0.0, **settings}
    optimizer = torch.optim.AdamW([theirs], **rest, foreach=False)
    param, m, v = start.copy(), np.zeros(P, dtype), np.zeros(P, dtype)
    factors = []
    for step, g in enumerate(gradients, start=1):
        theirs.grad = torch.from_numpy(g.copy())
        ours = g.copy()
        if max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_([theirs], max_norm)
            our_norm = np.sqrt(ops.sum_of_squares(ours))
            assert error(our_norm, norm.item()) < max(tolerance, 1e-15)
            factors.append(ops.clip_coefficient(our_norm, max_norm))
            ours *= factors[-1]
            assert error(ours, theirs.grad.numpy()) < tolerance
        optimizer.step()
        ops.adamw_update(param, ours, m, v, step, **rest)
        assert error(param, theirs.detach().numpy()) < tolerance, f"step {step}"
    assert param.dtype == dtype
    state = optimizer.state[theirs]
    assert error(m, state["exp_avg"].numpy()) < tolerance
    assert error(v, state["exp_avg_sq"].numpy()) < tolerance
    if max_norm is not None:
        assert 5 < sum(f < 1 for f in factors) < 45, "clipping has to be on in some steps only"


@pytest.mark.parametrize("backend", BACKENDS)
def test_learning_rates_of_groups(backend):
    rng = np.random.default_rng(0)
    sizes, rates = (5, 3, 9), (0.1, 0.0, 0.02)
    start, gradients = rng.normal(size=sum(sizes)), rng.normal(size=(50, sum(sizes)))
    bounds = np.cumsum((0, *sizes))
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    theirs = [torch.nn.Parameter(torch.from_numpy(start[part].copy())) for part in parts]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(theirs, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1, foreach=False)
    param, m, v = start.copy(), np.zeros(len(start)), np.zeros(len(start))
    lr = np.repeat(rates, sizes)
    for step, g in enumerate(gradients, start=1):
        for p, part in zip(theirs, parts, strict=True):
            p.grad = torch.from_numpy(g[part].copy())
        optimizer.step()
        BACKENDS[backend].ops.adamw_update(param, g, m, v, step, lr, weight_decay=0.1)
    for p, part in zip(theirs, parts, strict=True):
        assert error(param[part], p.detach().numpy()) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_training_together(dtype, backend):
    """50 steps of both models side by side, from the same weights, each by its own gradients."""
    settings, batch_shape = SHAPES["odd"]
    theirs = their_model(settings, dtype)
    ours = our_model(theirs, dtype, BACKENDS[backend])
    batches = [make_batch(settings, batch_shape, seed) for seed in range(50)]
    expected, _ = their_training(theirs, batches)
    got = our_training(ours, batches)
    assert error(got, expected) < {"float64": 1e-9, "float32": 1e-3}[dtype]
    assert np.mean(expected[-5:]) < np.mean(expected[:5]) - 0.3


TRAINING = {"lr": 3e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MAX_NORM = 1.0


def their_training(model, batches):
    optimizer = torch.optim.AdamW(model.parameters(), **TRAINING, foreach=False)
    losses, norms = [], []
    for ids, targets in batches:
        optimizer.zero_grad()
        _, loss = their_loss(model, ids, targets)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def our_training(model, batches):
    ops = model.backend.ops
    flat = FlatParameters(model.parameters(), model.backend)
    m, v = (np.zeros(flat.size, flat.dtype) for _ in range(2))
    losses = []
    for step, (ids, targets) in enumerate(batches, start=1):
        loss, grads = model.loss_and_grads(ids, targets)
        gradient = np.concatenate([grads[name].reshape(-1) for name in flat.places])
        gradient *= ops.clip_coefficient(np.sqrt(ops.sum_of_squares(gradient)), MAX_NORM)
        ops.adamw_update(flat.buffer, gradient, m, v, step, **TRAINING)
        losses.append(loss)
    return losses


# ------------------------------------------------------------------------------------- the golden file


def make_golden():
    """What the default tests compare with, computed by PyTorch in float64."""
    settings = {"vocab_size": 17, "n_positions": 12, "n_embd": 10, "n_layer": 2, "n_head": 2}
    model = their_model(settings, "float64", seed=11)
    ids, targets = make_batch(settings, (3, 9), seed=12)
    arrays = {f"config/{name}": np.array(value) for name, value in settings.items()}
    arrays |= {f"weights/{name}": p.detach().numpy().copy() for name, p in model.named_parameters()}
    logits, loss = their_loss(model, ids, targets)
    loss.backward()
    arrays |= {"ids": ids, "targets": targets}
    arrays |= {"logits": logits.detach().numpy(), "loss": np.array(loss.item())}
    arrays |= {f"grads/{name}": p.grad.numpy().copy() for name, p in model.named_parameters()}
    arrays["prompt"] = ids[:, :3]
    arrays["generated"] = their_generate(model, ids[:, :3], 9)
    losses, norms = their_training(model, [(ids, targets)] * 10)
    arrays |= {f"adamw/{name}": np.array(value) for name, value in TRAINING.items()}
    arrays |= {"adamw/max_norm": np.array(MAX_NORM)}
    arrays |= {"adamw/losses": np.array(losses), "adamw/norms": np.array(norms)}
    return arrays


def test_golden_file():
    arrays = make_golden()
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        np.savez_compressed(GOLDEN, **arrays)
    assert GOLDEN.stat().st_size < 300_000
    with np.load(GOLDEN) as golden:
        assert set(golden.files) == set(arrays)
        for name, array in arrays.items():
            assert golden[name].dtype == array.dtype, name
            assert error(golden[name], array) < 1e-10, name
