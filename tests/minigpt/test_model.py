"""The whole model: its gradients against central differences, freezing, and the seams that methods use."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kernels import Backend, get_backend
from kernels.backend import OPS
from minigpt import GPT, GPTConfig
from minigpt.config import parameter_shapes
from minigpt.errors import InputError
from minigpt.heads import lm_logits, lm_loss, pool_last, token_logprobs
from minigpt.layers import Layer, Linear
from minigpt.parameters import FlatParameters, Gradients, Parameter, views
from tests.helpers import error, numerical_gradient
from tests.seams import SEAMS, with_prefix
from tests.standin import poison_empty

V, C = 11, 6
BACKENDS = {"fast": get_backend("numpy"), "reference": get_backend("numpy", OPS)}
NAMES = list(parameter_shapes(GPTConfig(vocab_size=V, n_positions=9, n_embd=C, n_layer=2, n_head=2)))
TOLERANCE = 1e-8


def make(backend="fast", dtype="float64", **changes):
    """A tiny model of odd sizes with random weights: zero biases and gains of one would hide errors."""
    settings = {
        "vocab_size": V, "n_positions": 9, "n_embd": C, "n_layer": 2, "n_head": 2, "n_inner": 10,
        "layer_norm_epsilon": 0.05, **changes,
    }  # fmt: skip
    backend = BACKENDS[backend] if isinstance(backend, str) else backend
    model = GPT(GPTConfig(**settings), seed=1, dtype=dtype, backend=backend)
    rng = np.random.default_rng(5)
    for p in model.parameters():
        p.data += rng.normal(0, 0.4, size=p.data.shape).astype(dtype)
    return model


@pytest.fixture
def batch():
    """Tokens 0 to 8 with repetitions, so that 9 and 10 occur in no input; and targets, some not scored."""
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(0, 9, size=(3, 5)), rng.integers(0, V, size=(3, 5))
    ids[0, 0] = ids[0, 3] = ids[2, 1]
    targets[0, 2:] = targets[1, 0] = -100
    return ids, targets


def entries_of(array, n=7):
    """Some entries of an array, all of a small one."""
    if array.size <= n:
        return list(range(array.size))
    return sorted(np.random.default_rng(array.size).choice(array.size, n, replace=False).tolist())


def assert_parameter_gradients(parameters, grads, loss, n=7):
    """Compare the gradients of a loss() with central differences of some entries of each parameter."""
    for p in parameters:
        before = p.data.copy()

        def moved(x, p=p):
            p.data[...] = x
            return loss()

        entries = entries_of(before, n)
        expected = numerical_gradient(moved, before, 1.0, entries, step=3e-4)
        p.data[...] = before
        difference = error(grads[p.name].reshape(-1)[entries], expected, floor=1e-2)
        assert difference < TOLERANCE, f"{p.name} is off by {difference:.1e}"


def plain_loss(logits, targets):
    """Mean cross-entropy, written out."""
    values = []
    for b, t in np.ndindex(targets.shape):
        if targets[b, t] != -100:
            row = np.exp(logits[b, t] - logits[b, t].max())
            values.append(-np.log(row[targets[b, t]] / row.sum()))
    return np.mean(values)


# ---------------------------------------------------------------------------------- loss and gradients


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_parameter_against_central_differences(backend, batch):
    model = make(backend)
    loss, grads = model.loss_and_grads(*batch)
    assert list(grads) == [p.name for p in model.parameters()]
    assert set(grads) == set(NAMES)
    assert_parameter_gradients(model.parameters(), grads, lambda: model.loss_and_grads(*batch)[0])
    assert model.loss_and_grads(*batch)[0] == loss


@pytest.mark.parametrize(
    "changes", [{"n_head": 1}, {"n_head": 6, "n_layer": 1}, {"n_embd": 5, "n_head": 5, "n_inner": None}]
)
def test_other_shapes_against_central_differences(changes, batch):
    model = make(**changes)
    _, grads = model.loss_and_grads(*batch)
    assert_parameter_gradients(model.parameters(), grads, lambda: model.loss_and_grads(*batch)[0], n=3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_token(backend, batch):
    model = make(backend)
    one = batch[0][:1, :1], batch[1][:1, :1]
    loss, grads = model.loss_and_grads(*one)
    assert error(loss, plain_loss(model.logits(one[0]), one[1])) < 1e-13
    assert_parameter_gradients(model.parameters(), grads, lambda: model.loss_and_grads(*one)[0], n=3)
    # One key takes all of a softmax: queries and keys have no influence, values do.
    c_attn = grads["transformer.h.0.attn.c_attn.weight"]
    assert abs(c_attn[:, : 2 * C]).max() < 1e-15 < abs(c_attn[:, 2 * C :]).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_trunk_with_a_random_upstream_gradient(backend, batch):
    model = make(backend)
    dhidden = np.random.default_rng(0).normal(size=(3, 5, C))

    def run(grad):
        ctx = model.context(grad=grad)
        return model.forward(batch[0], ctx)

    _, backward = run(True)
    grads = Gradients(model.parameters(), model.backend)
    backward(dhidden.copy(), grads)
    loss = lambda: float((run(False)[0] * dhidden).sum())  # noqa: E731
    assert_parameter_gradients(model.parameters(), grads.as_dict(), loss, n=4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_is_the_mean_over_scored_targets(backend, batch):
    ids, targets = batch
    model = make(backend)
    loss, _ = model.loss_and_grads(ids, targets)
    assert type(loss) is float
    assert error(loss, plain_loss(model.logits(ids), targets)) < 1e-13


def test_targets_that_are_not_scored_have_no_influence(batch):
    ids, targets = batch
    model = make()
    last = targets.copy()
    last[:, 3:] = -100
    changed = ids.copy()
    changed[:, 3:] = 10  # tokens that only targets which are not scored could see
    (a, grads_a), (b, grads_b) = model.loss_and_grads(ids, last), model.loss_and_grads(changed, last)
    assert error(b, a) < 1e-13
    for name in grads_a:
        assert error(grads_b[name], grads_a[name]) < 1e-12, name


def test_tied_embedding_gets_both_parts(batch):
    ids, targets = batch
    model = make()
    _, tied = model.loss_and_grads(ids, targets)
    head = Parameter("head", model.wte.data.copy())
    grads = Gradients([*model.parameters(), head], model.backend)
    ctx = model.context(grad=True)
    hidden, trunk_back = model.forward(ids, ctx)
    _, head_back = lm_loss(hidden, head, targets, ctx)
    trunk_back(head_back(grads), grads)
    assert error(tied["transformer.wte.weight"], grads["transformer.wte.weight"] + grads["head"]) < 1e-13
    assert abs(grads["transformer.wte.weight"][9:]).max() == 0  # tokens that are in no input
    assert (abs(tied["transformer.wte.weight"]).max(1) > 0).all()


def test_positions_beyond_the_batch_get_zeros(batch):
    _, grads = make().loss_and_grads(*batch)
    assert (grads["transformer.wpe.weight"][5:] == 0).all()
    assert (abs(grads["transformer.wpe.weight"][:5]).max(1) > 0).all()


def test_gradients_are_fresh_arrays(batch):
    model = make()
    _, first = model.loss_and_grads(*batch)
    kept = {name: g.copy() for name, g in first.items()}
    shapes = {p.name: p.data.shape for p in model.parameters()}
    _, second = model.loss_and_grads(batch[0][::-1], batch[1][::-1])
    for name, gradient in second.items():
        assert not np.shares_memory(gradient, first[name])
        assert gradient.shape == shapes[name]
        assert (first[name] == kept[name]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_stays_float32(backend, batch):
    single, double = make(backend, dtype="float32"), make("reference")
    for p, q in zip(double.parameters(), single.parameters(), strict=True):
        p.data[...] = q.data
    logits = single.logits(batch[0])
    assert logits.dtype == single.dtype == np.float32
    assert error(logits, double.logits(batch[0])) < 1e-5
    loss, grads = single.loss_and_grads(*batch)
    expected, expected_grads = double.loss_and_grads(*batch)
    assert error(loss, expected) < 1e-5
    for name, gradient in grads.items():
        assert gradient.dtype == np.float32, name
        assert error(gradient, expected_grads[name]) < 2e-5, name


def test_scores_too_large_for_the_fast_softmax(batch, monkeypatch):
    """The fast attention gives way to the exact one in the middle of a model, and its gradients arrive all the same."""
    poison_empty(monkeypatch)
    results = []
    for backend in BACKENDS:
        model = make(backend)
        model.h[1].attn.c_attn.weight.data[...] *= 30
        results.append(model.loss_and_grads(*batch))
    (loss, grads), (expected, expected_grads) = results
    assert error(loss, expected) < 1e-12
    for name, gradient in grads.items():
        assert error(gradient, expected_grads[name]) < 1e-11, name


def test_nothing_uninitialised_is_read(batch, monkeypatch):
    expected = make().loss_and_grads(*batch)
    poison_empty(monkeypatch)
    loss, grads = make().loss_and_grads(*batch)
    assert loss == expected[0]
    for name, gradient in grads.items():
        assert (gradient == expected[1][name]).all(), name


def test_weights_and_arguments_are_left_alone(batch):
    model = make()
    for array in (*batch, *(p.data for p in model.parameters())):
        array.flags.writeable = False
    model.loss_and_grads(*batch)
    model.logits(batch[0])
    model.generate(batch[0], max_new_tokens=2)


def test_rows_and_later_tokens_have_no_influence(batch):
    model = make()
    logits = model.logits(batch[0])
    for b in range(3):
        for t in range(1, 6):
            assert error(model.logits(batch[0][b : b + 1, :t]), logits[b : b + 1, :t]) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_rows_are_as_if_alone(backend, batch):
    ids, targets = batch[0].copy(), batch[1].copy()
    lengths = np.array([5, 2, 1])
    real = np.arange(5) < lengths[:, None]
    ids[~real], targets[~real] = 9, -100
    targets[0, :2] = 3
    model = make(backend)

    def run(ids, targets, key_mask):
        ctx = model.context(grad=True, key_mask=key_mask)
        grads = Gradients(model.parameters(), model.backend)
        hidden, trunk_back = model.forward(ids, ctx)
        loss, head_back = lm_loss(hidden, model.wte, targets, ctx, n_scored=7)
        trunk_back(head_back(grads), grads)
        return hidden, loss, grads.as_dict()

    hidden, loss, grads = run(ids, targets, real)
    alone = [run(ids[b : b + 1, :n], targets[b : b + 1, :n], None) for b, n in enumerate(lengths)]
    for b, n in enumerate(lengths):
        assert error(hidden[b : b + 1, :n], alone[b][0]) < 1e-12
    assert error(loss, sum(part[1] for part in alone)) < 1e-13
    for name in grads:
        assert error(grads[name], sum(part[2][name] for part in alone)) < 1e-12, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_left_padding_with_positions(backend, batch):
    # Padding to the left moves the tokens, so positions are given; the padding itself sees no key at all.
    model = make(backend)
    ids = np.concatenate((np.full((3, 2), 10), batch[0]), axis=1)
    places = np.arange(7) - 2
    key_mask = np.broadcast_to(places >= 0, (3, 7))
    positions = np.broadcast_to(np.maximum(places, 0), (3, 7))
    ctx = model.context(grad=True, key_mask=key_mask, positions=positions)
    targets = np.concatenate((np.full((3, 2), -100), batch[1]), axis=1)
    hidden, trunk_back = model.forward(ids, ctx)
    assert np.isfinite(hidden).all()
    assert error(lm_logits(hidden, model.wte, ctx)[:, 2:], model.logits(batch[0])) < 1e-12
    loss, head_back = lm_loss(hidden, model.wte, targets, ctx)
    grads = Gradients(model.parameters(), model.backend)
    trunk_back(head_back(grads), grads)
    expected, expected_grads = model.loss_and_grads(*batch)
    assert error(loss, expected) < 1e-13
    for name, gradient in grads.as_dict().items():
        assert error(gradient, expected_grads[name]) < 1e-12, name


# ----------------------------------------------------------------------------------- splitting a batch


def passes(model, parts, n_scored):
    """Loss and gradients of a batch in several passes that fill the same gradients."""
    grads = Gradients(model.parameters(), model.backend)
    total = 0.0
    for ids, targets in parts:
        ctx = model.context(grad=True)
        hidden, trunk_back = model.forward(ids, ctx)
        loss, head_back = lm_loss(hidden, model.wte, targets, ctx, n_scored)
        trunk_back(head_back(grads), grads)
        total += loss
    return total, grads.as_dict()


@pytest.mark.parametrize("backend", BACKENDS)
def test_shares_of_a_split_batch_add_up(backend, batch):
    ids, targets = batch
    model = make(backend)
    whole, expected = model.loss_and_grads(ids, targets)
    parts = [(ids[:2], targets[:2]), (ids[2:], targets[2:])]
    total, grads = passes(model, parts, int((targets != -100).sum()))
    assert error(total, whole) < 1e-13
    for name in expected:
        assert error(grads[name], expected[name]) < 1e-12, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_in_which_nothing_is_scored(backend, batch):
    ids, targets = batch
    targets = targets.copy()
    targets[1] = -100
    model = make(backend)
    whole, expected = model.loss_and_grads(ids, targets)
    parts = [(ids[b : b + 1], targets[b : b + 1]) for b in range(3)]
    total, grads = passes(model, parts, int((targets != -100).sum()))
    assert error(total, whole) < 1e-13
    for name in expected:
        assert error(grads[name], expected[name]) < 1e-12, name


# ----------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("backend", BACKENDS)
def test_token_logprobs(backend, batch):
    ids, targets = batch
    model = make(backend)
    dlogprobs = np.random.default_rng(3).normal(size=targets.shape)  # also where nothing is wanted

    def run(grad=False):
        ctx = model.context(grad=grad)
        hidden, trunk_back = model.forward(ids, ctx)
        values, head_back = token_logprobs(hidden, model.wte, targets, ctx)
        return values, head_back, trunk_back

    values, head_back, trunk_back = run(grad=True)
    logits = model.logits(ids)
    assert values.shape == targets.shape
    for b, t in np.ndindex(targets.shape):
        if targets[b, t] == -100:
            assert values[b, t] == 0
        else:
            row = logits[b, t]
            assert error(values[b, t], row[targets[b, t]] - np.log(np.exp(row).sum())) < 1e-12
    grads = Gradients(model.parameters(), model.backend)
    trunk_back(head_back(dlogprobs, grads), grads)
    loss = lambda: float((run()[0] * dlogprobs).sum())  # noqa: E731
    assert_parameter_gradients(model.parameters(), grads.as_dict(), loss, n=4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_token_logprobs_where_nothing_is_wanted(backend, batch):
    model = make(backend)
    ctx = model.context(grad=True)
    hidden, trunk_back = model.forward(batch[0], ctx)
    values, head_back = token_logprobs(hidden, model.wte, np.full((3, 5), -100), ctx)
    grads = Gradients(model.parameters(), model.backend)
    trunk_back(head_back(np.ones((3, 5)), grads), grads)
    assert (values == 0).all()
    assert all((g == 0).all() for g in grads.as_dict().values())


def test_pool_last(batch):
    model = make()
    lengths, dpooled = np.array([5, 1, 3]), np.random.default_rng(0).normal(size=(3, C))

    def run(grad=False):
        ctx = model.context(grad=grad)
        hidden, trunk_back = model.forward(batch[0], ctx)
        return hidden, *pool_last(hidden, lengths, ctx), trunk_back

    hidden, pooled, pool_back, trunk_back = run(grad=True)
    assert (pooled == np.stack([hidden[0, 4], hidden[1, 0], hidden[2, 2]])).all()
    grads = Gradients(model.parameters(), model.backend)
    trunk_back(pool_back(dpooled), grads)
    loss = lambda: float((run()[1] * dpooled).sum())  # noqa: E731
    assert_parameter_gradients(model.parameters(), grads.as_dict(), loss, n=4)


# -------------------------------------------------------------------------------------------- freezing


def counting(name="fast"):
    """A backend that counts the calls of each operation."""
    backend = Backend("counting", np, "_fast" if name == "fast" else "")
    calls = Counter()
    for op, function in list(vars(backend.ops).items()):

        def counted(*args, op=op, function=function, **kwargs):
            calls[op] += 1
            return function(*args, **kwargs)

        setattr(backend.ops, op, counted)
    return backend, calls


def bottom_up(n_layer):
    """The layers in the order they run: (kind, name)."""
    yield "embedding", "transformer.wte transformer.wpe"
    for i in range(n_layer):
        h = f"transformer.h.{i}"
        yield "layernorm", f"{h}.ln_1"
        yield "linear", f"{h}.attn.c_attn"
        yield "attention", ""
        yield "linear", f"{h}.attn.c_proj"
        yield "layernorm", f"{h}.ln_2"
        yield "linear", f"{h}.mlp.c_fc"
        yield "gelu", ""
        yield "linear", f"{h}.mlp.c_proj"
    yield "layernorm", "transformer.ln_f"
    yield "linear", "head"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_one_trainable_tensor(backend, name, batch):
    """Its gradient is that of the full pass, and nothing is computed that it does not need."""
    _, expected = make(backend).loss_and_grads(*batch)
    counted, calls = counting(backend)
    model = make(counted)
    model.freeze()
    model.unfreeze([name])
    _, grads = model.loss_and_grads(*batch)
    assert list(grads) == [name]
    assert error(grads[name], expected[name]) < 1e-13

    layers = list(bottom_up(2))
    layer, kind = name.rsplit(".", 1)
    own = next(i for i, (_, names) in enumerate(layers) if layer in names.split())
    above = Counter(what for what, _ in layers[own + 1 :])
    assert calls["linear_backward_input"] == above["linear"]
    assert calls["attention_backward"] == above["attention"]
    assert calls["bias_gelu_backward"] == above["gelu"]
    layernorms = calls["layernorm_backward_input"] + calls["residual_layernorm_backward_input"]
    assert layernorms == above["layernorm"]
    what = layers[own][0]
    of_head = layer == "transformer.wte"
    assert calls["linear_backward_weight"] == (of_head or (what == "linear" and kind == "weight"))
    assert calls["linear_backward_bias"] == (what == "linear" and kind == "bias")
    assert calls["layernorm_backward_params"] == (what == "layernorm")
    assert calls["embedding_backward"] == (layer == "transformer.wte")


def test_everything_trainable_makes_each_product_once(batch):
    counted, calls = counting()
    make(counted).loss_and_grads(*batch)
    linears = 4 * 2 + 1
    assert calls["linear_backward_weight"] == linears
    assert calls["linear_backward_input"] == linears
    assert calls["linear_backward_bias"] == linears - 1
    assert calls["attention_forward"] == calls["attention_backward"] == 2
    assert calls["layernorm_backward_params"] == 5


def test_nothing_trainable_runs_no_backward(batch):
    counted, calls = counting()
    model = make(counted)
    model.freeze()
    loss, grads = model.loss_and_grads(*batch)
    assert grads == {}
    assert error(loss, make().loss_and_grads(*batch)[0]) == 0
    assert not [op for op in calls if "backward" in op and op != "cross_entropy_backward"]


def test_own_head_on_a_frozen_trunk(batch):
    ids, targets = batch
    counted, calls = counting()
    model = make(counted)
    model.freeze()
    head = Parameter("head", np.random.default_rng(0).normal(size=(V, C)))
    ctx = model.context(grad=True)
    grads = Gradients([*model.parameters(), head], model.backend)
    hidden, trunk_back = model.forward(ids, ctx)
    loss, head_back = lm_loss(hidden, head, targets, ctx)
    dhidden = head_back(grads)
    trunk_back(dhidden, grads)
    assert dhidden is None
    assert list(grads) == ["head"]
    assert calls["linear_backward_weight"] == 1
    assert not calls["linear_backward_input"]
    assert {op for op in calls if "backward" in op} == {"linear_backward_weight", "cross_entropy_backward"}

    def f(x):
        return lm_loss(hidden, Parameter("head", x), targets, model.context())[0]

    assert error(grads["head"], numerical_gradient(f, head.data, 1.0)) < TOLERANCE
    assert error(loss, f(head.data)) < 1e-13


def owner(array):
    """The array that the memory of a view belongs to."""
    return array if array.base is None else owner(array.base)


def still_alive(model, ids, **settings):
    """Names of the outputs that the backward of a pass, and its result, hold on to."""
    seen = {}

    def watch(name, array):
        seen[name] = weakref.ref(owner(array))

    ctx = model.context(watch=watch, **settings)
    result = model.forward(ids, ctx)
    gc.collect()
    alive = {name.removeprefix("transformer.") for name, reference in seen.items() if reference() is not None}
    del result
    return alive


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_layers_keep_no_activation(backend, batch):
    ids = batch[0]
    model = make(backend)
    everything = still_alive(model, ids, grad=True)
    # Inputs of trained weights, and queries, keys and values.
    needed = {f"h.{i}.{name}" for i in (0, 1) for name in ("ln_1", "attn.c_attn", "ln_2")}
    assert needed <= everything
    assert still_alive(model, ids, grad=False) == {"ln_f"}, "without a backward nothing is kept"
    # Only what comes after the lowest trained layer: the input of that layer is GELU's output here.
    model.freeze()
    model.unfreeze(["transformer.h.1.mlp.c_proj.weight"])
    assert still_alive(model, ids, grad=True) <= {"h.1.mlp.c_proj", "h.1.mlp", "ln_f"}
    # The gradient passes through all layers, but the input of a frozen weight is not needed for that.
    model.freeze()
    model.unfreeze(["transformer.wpe.weight"])
    kept = still_alive(model, ids, grad=True)
    assert not kept & {f"h.{i}.ln_{j}" for i in (0, 1) for j in (1, 2)}
    assert {"h.0.attn.c_attn", "h.1.attn.c_attn"} <= kept


def test_patterns_of_freeze():
    model = make()
    model.freeze(["*.bias", "transformer.w?e.*"])
    frozen = {p.name for p in model.parameters() if not p.trainable}
    assert frozen == {name for name in NAMES if name.endswith("bias") or "wte" in name or "wpe" in name}
    model.freeze()
    assert not [p for p in model.parameters() if p.trainable]
    model.unfreeze("transformer.h.1.*")
    assert {p.name for p in model.parameters() if p.trainable} == {n for n in NAMES if ".h.1." in n}
    for change in (model.freeze, model.unfreeze):
        with pytest.raises(InputError, match=r"no parameter matches 'h\.0\.\*'.*transformer\.wte\.weight"):
            change(["h.0.*"])


# --------------------------------------------------------------------------------------------- dropout

DROPOUTS = ["embd_pdrop", "attn_pdrop", "resid_pdrop"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kinds", [[kind] for kind in DROPOUTS] + [DROPOUTS])
def test_dropout(backend, kinds, batch):
    ids, targets = batch
    model = make(backend, **dict.fromkeys(kinds, 0.3))

    def run(seed, training=True, grad=False):
        ctx = model.context(grad=grad, training=training, rng=model.backend.rng(seed))
        hidden, trunk_back = model.forward(ids, ctx)
        return *lm_loss(hidden, model.wte, targets, ctx), trunk_back

    off = run(0, training=False)[0]
    assert off == model.loss_and_grads(ids, targets)[0] == make(backend).loss_and_grads(ids, targets)[0]
    loss, head_back, trunk_back = run(1, grad=True)
    assert loss == run(1)[0]
    assert len({off, loss, run(2)[0], run(3)[0]}) == 4
    grads = Gradients(model.parameters(), model.backend)
    trunk_back(head_back(grads), grads)
    assert_parameter_gradients(model.parameters(), grads.as_dict(), lambda: run(1)[0], n=3)


def test_where_dropout_acts(batch):
    """Elements of the embedding, and of what a sublayer adds to the stream, are scaled up or set to 0."""
    p = 0.25
    model = make(embd_pdrop=p, resid_pdrop=p)
    outputs = {}
    for training in (False, True):
        model.forward(batch[0], model.context(
            training=training,
            rng=model.backend.rng(0),
            watch=lambda name, array, training=training: outputs.setdefault((name, training), array.copy()),
        ))  # fmt: skip
    name = "transformer.embedding"
    pairs = [(outputs[name, False], outputs[name, True])]
    for sublayer in ("h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp"):
        name = f"transformer.{sublayer}"
        assert (outputs[name, False] == outputs[f"{name}.c_proj", False]).all()
        pairs.append((outputs[f"{name}.c_proj", True], outputs[name, True]))
    for before, after in pairs:
        factors = after / before
        assert set(np.round(factors.reshape(-1), 9)) == {0.0, round(1 / (1 - p), 9)}


def test_attention_dropout_acts_on_the_probabilities(batch):
    # A single token has one key in every head, of probability 1: its values are dropped or scaled as a whole.
    p = 0.5
    model = make(attn_pdrop=p, n_layer=1, n_head=3)
    c_proj = model.h[0].attn.c_proj
    c_proj.weight.data[...], c_proj.bias.data[...] = np.eye(C), 0.0
    seen, factors = {}, []
    for seed in range(6):
        rng = model.backend.rng(seed)
        ctx = model.context(training=True, rng=rng, watch=lambda n, a: seen.update({n: a.copy()}))
        model.forward(batch[0][:, :1], ctx)
        values = seen["transformer.h.0.attn.c_attn"][..., 2 * C :]
        ratio = (seen["transformer.h.0.attn"] / values).reshape(3, 3, 2)
        assert error(ratio[..., 0], ratio[..., 1]) < 1e-12
        factors += np.round(ratio, 9).reshape(-1).tolist()
    assert set(factors) == {0.0, 2.0}


# ------------------------------------------------------------------------------------------- the seams


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("only_new", [True, False])
@pytest.mark.parametrize("seam", SEAMS)
def test_learned_vectors_before_the_tokens(backend, seam, only_new, batch):
    ids, targets = batch
    model = SEAMS[seam](make(backend), 2)
    new = [p for p in model.parameters() if p.name not in NAMES]
    assert new
    if only_new:
        model.freeze(["transformer.*"])
    assert model.logits(ids).shape == (3, 5, V)
    assert error(model.logits(ids), make(backend).logits(ids)) > 0.1
    loss, grads = model.loss_and_grads(ids, targets)
    assert error(loss, plain_loss(model.logits(ids), targets)) < 1e-12
    trained = [p for p in model.parameters() if p.trainable]
    assert set(grads) == {p.name for p in trained}
    assert {p.name for p in new} <= set(grads)
    assert_parameter_gradients(trained, grads, lambda: model.loss_and_grads(ids, targets)[0], n=5)


@pytest.mark.parametrize("seam", SEAMS)
def test_learned_vectors_shorten_the_context(seam):
    model = SEAMS[seam](make(), 2)
    assert model.logits(np.zeros((1, 7), dtype=int)).shape == (1, 7, V)
    with pytest.raises(InputError, match="8 tokens do not fit into the model's context of 7"):
        model.logits(np.zeros((1, 8), dtype=int))


@pytest.mark.parametrize("seam", SEAMS)
def test_learned_vectors_are_never_padding(seam, batch):
    model = SEAMS[seam](make(), 2)
    real = np.arange(5) < np.array([[5], [2], [1]])
    hidden, _ = model.forward(batch[0], model.context(key_mask=real))
    for b, n in enumerate((5, 2, 1)):
        alone, _ = model.forward(batch[0][b : b + 1, :n], model.context())
        assert error(hidden[b : b + 1, :n], alone) < 1e-12


def test_lowest_trained_prefix_ends_the_backward(batch):
    counted, calls = counting()
    model = with_prefix(make(counted, n_layer=3), 2)
    model.freeze()
    model.unfreeze(["prefix.1.*"])
    _, grads = model.loss_and_grads(*batch)
    assert set(grads) == {"prefix.1.keys", "prefix.1.values"}
    assert calls["attention_backward"] == 2
    # The head, four in the block above, and three in its own: not the layer that the prefix stands beside.
    assert calls["linear_backward_input"] == 1 + 4 + 3
    assert not calls["linear_backward_weight"]


class Scaled(Layer):
    """A layer times a learned number for each column."""

    def __init__(self, inner, name):
        self.inner = inner
        factors = np.random.default_rng(len(name)).normal(size=inner.bias.data.shape)
        self.scale = Parameter(f"{name}.scale", factors)

    def forward(self, x, ctx):
        y, inner_back = self.inner.forward(x, ctx)
        ctx.needs_input_gradient(self.scale)

        def backward(dy, grads):
            if self.scale.trainable:
                grads.add(self.scale, (dy * y).reshape(-1, y.shape[-1]).sum(0))
            return inner_back(dy * self.scale.data, grads)

        return y * self.scale.data, backward


@pytest.mark.parametrize("only_new", [True, False])
def test_replaced_layers_run_and_get_gradients(only_new, batch):
    model = make()
    names = model.replace("h.*.c_*", Scaled)
    linears = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names == [f"h.{i}.{part}" for i in range(2) for part in linears]
    if only_new:
        model.freeze(["transformer.*"])
    assert error(model.logits(batch[0]), make().logits(batch[0])) > 0.1
    _, grads = model.loss_and_grads(*batch)
    assert [name for name in grads if name.endswith(".scale")] == [f"{name}.scale" for name in names]
    assert len(grads) == 8 + (0 if only_new else len(NAMES))
    trained = [p for p in model.parameters() if p.trainable]
    assert_parameter_gradients(trained, grads, lambda: model.loss_and_grads(*batch)[0], n=3)


def test_replace_gives_the_old_layer_and_its_name():
    model = make()
    old = dict(model.layers())
    seen = []

    def wrap(layer, name):
        seen.append((layer, name))
        return layer

    assert model.replace("h.1.attn.c_attn", wrap) == ["h.1.attn.c_attn"]
    assert model.replace("h.[01].ln_?", wrap) == ["h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2"]
    assert model.replace("ln_f", wrap) == ["ln_f"]
    assert model.replace("h.0", wrap) == ["h.0"]
    assert model.replace("embedding", wrap) == ["embedding"]
    assert all(layer is old[name] for layer, name in seen)


def test_replace_says_what_there_is():
    with pytest.raises(InputError) as raised:
        make().replace("h.*.attn.q_proj", lambda layer, name: layer)
    message = str(raised.value)
    assert "\n" not in message
    for part in ("'h.*.attn.q_proj'", "h.*.attn.c_attn", "h.*.mlp.c_fc", "embedding", "ln_f"):
        assert part in message
    assert "h.0.attn" not in message
    with pytest.raises(InputError, match="no layer matches"):
        make().replace("transformer.h.0.attn", lambda layer, name: layer)


def test_a_replaced_model_cannot_be_saved_as_a_plain_one(tmp_path):
    model = make()
    model.replace("h.0.attn.c_attn", Scaled)
    with pytest.raises(InputError, match=r"not a plain GPT-2.*h\.0\.attn\.c_attn\.scale"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_copy_is_a_model_of_its_own(batch):
    model = with_prefix(make(), 2)
    logits = model.logits(batch[0])
    twin = model.copy()
    assert twin.config is model.config
    assert twin.backend is model.backend
    assert twin.wte is twin.embedding.wte
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))
    assert len(pairs) == len(NAMES) + 4
    for p, q in pairs:
        assert p is not q
        assert (p.name, p.trainable) == (q.name, q.trainable)
        assert np.shares_memory(p.data, q.data), f"{p.name} was copied"
    ours, theirs = dict(model.layers()), dict(twin.layers())
    assert ours.keys() == theirs.keys()
    assert not {id(layer) for layer in ours.values()} & {id(layer) for layer in theirs.values()}
    assert error(twin.logits(batch[0]), logits) == 0

    twin.freeze(["*.h.0.*"])
    assert all(p.trainable for p in model.parameters())
    twin.replace("h.0.attn.c_attn", Scaled)
    assert type(model.h[0].attn.c_attn) is Linear
    twin.h[1].attn.prefix = None
    assert model.h[1].attn.prefix is not None
    FlatParameters(twin.parameters(), twin.backend).buffer[...] = 0.5
    assert error(twin.logits(batch[0]), logits) > 0.1
    assert error(model.logits(batch[0]), logits) == 0


def test_copy_of_a_model_in_training_does_not_change_with_it(batch):
    model = make()
    flat = FlatParameters(model.parameters(), model.backend)
    twin = model.copy()
    logits = twin.logits(batch[0])
    flat.buffer[...] = 0.5
    assert error(twin.logits(batch[0]), logits) == 0
    flat.release()
    flat.buffer[...] = 0.25
    assert all((p.data == 0.5).all() and not p.in_buffer for p in model.parameters())


def test_replace_takes_the_outer_of_nested_layers():
    model = make()
    assert model.replace("h.*", lambda layer, name: layer) == ["h.0", "h.1"]


def test_a_backward_runs_once(batch):
    model = make()
    hidden, backward = model.forward(batch[0], model.context(grad=True))
    grads = Gradients(model.parameters(), model.backend)
    backward(np.ones_like(hidden), grads)
    with pytest.raises(RuntimeError, match="has been run"):
        backward(np.ones_like(hidden), grads)


def test_watch_sees_what_flows_by_name(batch):
    model = make()
    seen = []
    ctx = model.context(grad=True, watch=lambda name, array: seen.append((name, array.shape)))
    hidden, _ = model.forward(batch[0], ctx)
    lm_loss(hidden, model.wte, batch[1], ctx)
    rows = (3, 5)
    expected = [("embedding", C)]
    for i in range(2):
        expected += [
            (f"h.{i}.ln_1", C), (f"h.{i}.attn.c_attn", 3 * C), (f"h.{i}.attn.c_proj", C), (f"h.{i}.attn", C),
            (f"h.{i}.ln_2", C), (f"h.{i}.mlp.c_fc", 10), (f"h.{i}.mlp.c_proj", C), (f"h.{i}.mlp", C),
        ]  # fmt: skip
    expected.append(("ln_f", C))
    scored = int((batch[1] != -100).sum())
    trunk = [(f"transformer.{name}", (*rows, width)) for name, width in expected]
    assert seen == [*trunk, ("logits", (scored, V))]


# ----------------------------------------------------------------------------- gradients in one buffer


def test_gradients_of_several_passes_add_up(batch):
    model = make()
    _, once = model.loss_and_grads(*batch)
    total, twice = passes(model, [batch, batch], int((batch[1] != -100).sum()))
    assert error(total, 2 * model.loss_and_grads(*batch)[0]) < 1e-14
    for name in once:
        assert error(twice[name], 2 * once[name]) < 1e-13, name


def test_gradient_buffer_is_cleared_without_being_zeroed(batch):
    model = make()
    grads = Gradients(model.parameters(), model.backend)
    for _ in range(2):
        ctx = model.context(grad=True)
        hidden, trunk_back = model.forward(batch[0], ctx)
        _, head_back = lm_loss(hidden, model.wte, batch[1], ctx)
        trunk_back(head_back(grads), grads)
        first = {name: g.copy() for name, g in grads.as_dict().items()}
        grads.clear()
        assert "transformer.wte.weight" not in grads
        with pytest.raises(KeyError, match="no gradient for transformer"):
            grads["transformer.wte.weight"]
        grads.buffer[...] = np.nan
    for name, gradient in make().loss_and_grads(*batch)[1].items():
        assert error(first[name], gradient) == 0, name


def test_what_no_backward_reaches_is_zero(batch):
    model = make()
    unused = Parameter("unused", np.ones((2, 3)))
    parameters = [unused, *model.parameters()]
    grads = Gradients(parameters, model.backend, buffer=np.full(6 + model.n_parameters, np.nan))
    ctx = model.context(grad=True)
    hidden, trunk_back = model.forward(batch[0], ctx)
    trunk_back(np.ones_like(hidden), grads)
    assert "unused" not in grads
    assert (grads.as_dict()["unused"] == 0).all()
    assert np.isfinite(grads.buffer).all()


def test_flat_parameters_are_views_of_one_buffer(batch):
    model = make()
    loss = model.loss_and_grads(*batch)[0]
    model.freeze(["*.bias"])
    trained = [p for p in model.parameters() if p.trainable]
    before = {p.name: p.data.copy() for p in model.parameters()}
    flat = FlatParameters(model.parameters(), model.backend)
    assert flat.size == flat.buffer.size == sum(p.data.size for p in trained)
    for p in model.parameters():
        assert (p.data == before[p.name]).all()
        assert np.shares_memory(p.data, flat.buffer) == p.trainable
    assert model.loss_and_grads(*batch)[0] == loss
    assert list(flat.places) == [p.name for p in trained]
    assert list(flat.places) == list(Gradients(model.parameters(), model.backend))
    named = views(trained, np.arange(flat.size, dtype=float))
    end = 0
    for p in trained:
        assert named[p.name].shape == p.data.shape
        assert (named[p.name].reshape(-1) == np.arange(end, end + p.data.size)).all()
        end += p.data.size
    model.freeze()
    with pytest.raises(ValueError, match="nothing to train"):
        FlatParameters(model.parameters(), model.backend)
    with pytest.raises(ValueError, match="two parameters are called x"):
        FlatParameters([Parameter("x", np.zeros(1)), Parameter("x", np.zeros(1))], model.backend)
    with pytest.raises(ValueError, match="y is float32, the others are float64"):
        FlatParameters([Parameter("x", np.zeros(1)), Parameter("y", np.zeros(1, "f4"))], model.backend)


# --------------------------------------------------------------------------------- bad input, one line


def test_bad_ids_are_named(batch):
    model = make()
    cases = [
        ([[0, 11]], "token id 11 is outside the vocabulary, 0 to 10"),
        ([[0, -1]], "token id -1 is outside the vocabulary"),
        ([0, 1], r"shape \(B, T\), not int64 of shape \(2,\)"),
        ([[0.0, 1.0]], "not float64"),
        (np.zeros((0, 3), dtype=int), "hold no token"),
        (np.zeros((2, 0), dtype=int), "hold no token"),
        (np.zeros((1, 10), dtype=int), "10 tokens do not fit into the model's context of 9"),
    ]
    for ids, message in cases:
        with pytest.raises(InputError, match=message):
            model.logits(ids)
        with pytest.raises(InputError, match=message):
            model.loss_and_grads(ids, ids)


def test_bad_targets_are_named(batch):
    model = make()
    ids, targets = batch
    for bad, message in [
        (np.full((3, 5), -100), "no target to score"),
        (np.where(targets == -100, -1, targets), "target -1 is outside the vocabulary, 0 to 10"),
        (np.where(targets == -100, 11, targets), "target 11 is outside"),
        (targets[:, 1:], r"shape of ids, \(3, 5\), not int64 of shape \(3, 4\)"),
        (targets.astype(float), "not float64"),
    ]:
        with pytest.raises(InputError, match=message):
            model.loss_and_grads(ids, bad)


@pytest.mark.parametrize("integers", ["uint8", "int8", "uint16", "int32", "uint32", "uint64"])
def test_ids_of_any_integer_type(integers, batch):
    ids, targets = batch[0], np.abs(batch[1]) % V
    model = make()
    loss, grads = model.loss_and_grads(ids.astype(integers), targets.astype(integers))
    expected, expected_grads = model.loss_and_grads(ids, targets)
    assert loss == expected
    assert all((grads[name] == g).all() for name, g in expected_grads.items())


@pytest.mark.parametrize("dtype", ["float16", "int32", "double precision"])
def test_bad_dtype_is_named(dtype):
    config = GPTConfig(vocab_size=V, n_positions=9, n_embd=C, n_layer=1, n_head=2)
    with pytest.raises(InputError, match=f"dtype '{dtype}' is not one of float32, float64"):
        GPT(config, dtype=dtype)


def test_initial_weights_are_gpt2s():
    model = GPT(GPTConfig(vocab_size=300, n_positions=40, n_embd=64, n_layer=8, n_head=4), seed=3)
    for p in model.parameters():
        if p.name.endswith("bias"):
            assert (p.data == 0).all(), p.name
        elif p.data.ndim == 1:
            assert (p.data == 1).all(), p.name
        else:
            std = 0.02 / 4 if p.name.endswith("c_proj.weight") else 0.02  # √(2·8) = 4
            n = p.data.size
            assert abs(p.data.std() / std - 1) < 5 / np.sqrt(2 * n), p.name
            assert abs(p.data.mean()) < 5 * std / np.sqrt(n), p.name
    same, other = (GPT(model.config, seed=seed) for seed in (3, 4))
    assert (same.wte.data == model.wte.data).all()
    assert (other.wte.data != model.wte.data).any()
    double = GPT(model.config, seed=3, dtype="float64")
    assert (double.wte.data.astype("float32") == model.wte.data).all()
    assert model.n_parameters == sum(p.data.size for p in model.parameters())


# ------------------------------------------------------------------------------- what PyTorch computed

GOLDEN = Path(__file__).parent.parent / "golden" / "gpt2_tiny.npz"


def from_golden(golden, backend, dtype):
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    config = GPTConfig(**{name: golden[f"config/{name}"].item() for name in names})
    model = GPT(config, dtype=dtype, backend=BACKENDS[backend])
    for p in model.parameters():
        p.data = golden[f"weights/{p.name}"].astype(dtype)
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_golden_logits_loss_and_gradients(backend, dtype, tolerance):
    with np.load(GOLDEN) as golden:
        model = from_golden(golden, backend, dtype)
        assert error(model.logits(golden["ids"]), golden["logits"]) < tolerance
        loss, grads = model.loss_and_grads(golden["ids"], golden["targets"])
        assert error(loss, golden["loss"]) < tolerance
        assert {f"grads/{name}" for name in grads} == {name for name in golden if name.startswith("grads/")}
        for name, gradient in grads.items():
            assert error(gradient, golden[f"grads/{name}"]) < tolerance, name
        prompt, expected = golden["prompt"], golden["generated"]
        ids = model.generate(prompt, expected.shape[1] - prompt.shape[1], temperature=0)
        assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_golden_training(backend, dtype, tolerance):
    with np.load(GOLDEN) as golden:
        model = from_golden(golden, backend, dtype)
        settings = {name: golden[f"adamw/{name}"].tolist() for name in ("lr", "betas", "eps", "weight_decay")}
        ops = model.backend.ops
        flat = FlatParameters(model.parameters(), model.backend)
        m, v = (np.zeros(flat.size, dtype) for _ in range(2))
        losses, norms = [], []
        for step in range(1, len(golden["adamw/losses"]) + 1):
            loss, grads = model.loss_and_grads(golden["ids"], golden["targets"])
            gradient = np.concatenate([grads[name].reshape(-1) for name in flat.places])
            norms.append(np.sqrt(ops.sum_of_squares(gradient)))
            gradient *= ops.clip_coefficient(norms[-1], golden["adamw/max_norm"].item())
            ops.adamw_update(flat.buffer, gradient, m, v, step, **settings)
            losses.append(loss)
        assert error(losses, golden["adamw/losses"]) < tolerance
        assert error(norms, golden["adamw/norms"]) < tolerance
        assert losses[-1] < losses[0] / 2
        assert min(norms) < golden["adamw/max_norm"] < max(norms), "clipping has to be on in some steps only"
