"""Lesson 8: adapters, BitFit and IA3 by hand, against differences, closed forms, and what torch and peft once said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kernels import get_backend
from lessons import lesson_08_adapters as lesson
from lessons.common import adapter_study as study
from lessons.common import derivation, runner
from lessons.common.measure import CountingBackend, count_products, step_cost
from lessons.common.method import n_trainable
from lessons.common.runner import Run, Settings
from lessons.lesson_08_adapters import IA3, PLACEMENTS, Adapters, BitFit
from minigpt import GPT, GPTConfig, InputError, files
from minigpt.heads import lm_loss
from minigpt.objectives import LanguageModelling
from minigpt.training import TrainConfig, train
from tests.helpers import assert_gradient, error, numerical_gradient
from tests.seams import with_prefix
from tests.standin import BACKEND as STANDIN

NUMPY = get_backend("numpy")
SETTINGS = {"vocab_size": 11, "n_positions": 9, "n_embd": 6, "n_layer": 2, "n_head": 3}
CONFIG = GPTConfig(**SETTINGS)
TINY = GPTConfig(vocab_size=7, n_positions=6, n_embd=4, n_layer=2, n_head=2)


def randomise(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Random values by name: none is 0 or 1, which would hide errors; gains are around 1."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.3, size=shape)
        for name, shape in sorted(shapes.items())
    }


def golden_batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    ids, targets = rng.integers(0, SETTINGS["vocab_size"], size=(2, 3, 8))
    targets[rng.random(targets.shape) < 0.3] = -100
    return ids, targets


def random_model(config: GPTConfig = TINY, dtype: str = "float64", seed: int = 0, backend: Any = "numpy") -> GPT:
    model = GPT(config, dtype=dtype, backend=backend)
    values = randomise({p.name: p.data.shape for p in model.parameters()}, seed)
    for p in model.parameters():
        p.data = model.backend.asarray(values[p.name].astype(dtype))
    return model


def moved(tuned: Any, seed: int = 3) -> Any:
    """The model with its trainable parameters at random values; scales around 1."""
    rng = np.random.default_rng(seed)
    for p in tuned.parameters():
        if p.trainable:
            centre = 1.0 if "ia3_l" in p.name or (p.data.ndim == 1 and p.name.endswith("weight")) else 0.0
            p.data = tuned.backend.asarray(rng.normal(centre, 0.3, p.data.shape).astype(tuned.dtype))
    return tuned


# ---------------------------------------------------------------------------------------------- the functions

SHAPES = [((2, 3, 5), 2), ((4, 3), 1), ((1, 1, 4), 3), ((3, 1), 1), ((1, 7), 9)]


@pytest.mark.parametrize("form", ["reference", "fast"])
@pytest.mark.parametrize(("shape", "m"), SHAPES)
def test_adapter_backward(shape: tuple[int, ...], m: int, form: str) -> None:
    ops = (NUMPY if form == "fast" else NUMPY.with_reference("gelu", "linear")).ops
    rng = np.random.default_rng(0)
    d = shape[-1]
    inputs = [rng.standard_normal(s) for s in (shape, (d, m), (m,), (m, d), (d,))]
    dy = rng.standard_normal(shape)
    x, down, _, up, _ = inputs
    before = dy.copy()
    y, g, slope = lesson.adapter_forward(*inputs, ops)
    assert y.shape == shape
    du = lesson.adapter_backward_bottleneck(dy, up, slope, ops)
    assert du.shape == (*shape[:-1], m)
    gradients = [
        lesson.adapter_backward_input(du, down, ops),
        *lesson.adapter_backward_params(dy, du, x, g, ops),
    ]
    assert (dy == before).all()
    for i, (gradient, name) in enumerate(zip(gradients, ("x", "down", "down_bias", "up", "up_bias"), strict=True)):

        def f(value: np.ndarray, i: int = i) -> np.ndarray:
            arguments = [a.copy() for a in inputs]
            arguments[i] = value
            return lesson.adapter_forward(*arguments, ops)[0]

        assert_gradient(gradient, f, inputs[i], dy, name)


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 3), (1, 1), (1, 1, 1)])
def test_scale_backward(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, dy, scale = rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(shape[-1])
    assert_gradient(lesson.scale_backward_input(dy, scale), lambda v: v * scale, x, dy, "dx")
    assert_gradient(lesson.scale_backward_vector(dy, x), lambda v: x * v, scale, dy, "dscale")


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 4), (4, 1)])
def test_scale_merge(rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, rows)), rng.standard_normal((rows, columns)), rng.standard_normal(columns)
    before = weight.copy(), bias.copy()
    for feedforward, n in ((False, columns), (True, rows)):
        scale = rng.standard_normal(n)
        wanted = (x * scale) @ weight + bias if feedforward else (x @ weight + bias) * scale
        merged_weight, merged_bias = lesson.scale_merge(weight, bias, scale, feedforward)
        assert error(x @ merged_weight + merged_bias, wanted) < 1e-14
        merged_weight += 1
        merged_bias += 1
        assert (weight == before[0]).all()
        assert (bias == before[1]).all()


def test_near_identity_is_a_normal_distribution_cut_off_and_not_clipped() -> None:
    down, down_bias, up, up_bias = lesson.near_identity(50, 40, 0.02, np.random.default_rng(0))
    assert (down.shape, down_bias.shape, up.shape, up_bias.shape) == ((50, 40), (40,), (40, 50), (50,))
    assert not down_bias.any()
    assert not up_bias.any()
    for matrix in (down, up):
        assert np.abs(matrix).max() <= 0.04
        assert np.unique(matrix).size == matrix.size  # clipping would put many at the bound
        assert matrix.std() == pytest.approx(0.8796 * 0.02, rel=0.05)
        assert abs(matrix.mean()) < 0.002
    assert not np.allclose(down, up.T)
    again = lesson.near_identity(50, 40, 0.02, np.random.default_rng(0))
    assert all((a == b).all() for a, b in zip(again, (down, down_bias, up, up_bias), strict=True))


def test_bias_names_are_all_biases_and_nothing_that_only_sounds_like_one() -> None:
    names = [p.name for p in GPT(CONFIG).parameters()]
    assert lesson.bias_names(names) == [n for n in names if n.endswith(".bias")]
    assert len(lesson.bias_names(names)) == 6 * 2 + 1
    assert lesson.bias_names(["a.bias", "a.unbias", "a.bias.weight", "bias"]) == ["a.bias", "bias"]


# ---------------------------------------------------------------------------------------------- counts

ODD = GPTConfig(vocab_size=7, n_positions=5, n_embd=10, n_layer=3, n_head=2, n_inner=17)
COUNTED = [
    *(
        Adapters(bottleneck=m, placement=p, train_layernorm=ln)
        for p in PLACEMENTS
        for m in (1, 7)
        for ln in (False, True)
    ),
    Adapters(bottleneck=4, layers_to_transform=(0, 2)),
    Adapters(bottleneck=4, layers_to_transform=1, train_layernorm=False),
    BitFit(),
    IA3(),
    IA3(target_modules=("c_proj", "c_fc"), feedforward_modules=("c_fc",)),
    IA3(target_modules=("c_proj",), feedforward_modules=("c_proj",)),
    IA3(target_modules=("transformer.h.1.attn.c_attn",), feedforward_modules=()),
]


@pytest.mark.parametrize("method", COUNTED, ids=str)
def test_counts_are_the_closed_forms(method: Any) -> None:
    assert n_trainable(method.apply(GPT(ODD))) == method.count(ODD)


def test_closed_forms_by_hand() -> None:
    d, m, L = 10, 7, 3
    assert lesson.adapter_count(d, m) == 2 * d * m + d + m == 157
    assert Adapters(bottleneck=m, train_layernorm=False).count(ODD) == 2 * L * 157
    assert Adapters(bottleneck=m).count(ODD) == 2 * L * 157 + 7 * 2 * d
    assert BitFit().count(ODD) == lesson.bias_count(10, 17, 3) == 3 * (7 * 10 + 17) + 10
    assert IA3().count(ODD) == 3 * (3 * 10 + 17)
    assert lesson.bias_count(d, 4 * d, L) == 11 * d * L + d


# ---------------------------------------------------------------------------------------------- whole models

WHOLE = [
    *(Adapters(bottleneck=3, placement=p, train_layernorm=ln) for p in PLACEMENTS for ln in (True, False)),
    Adapters(bottleneck=1, layers_to_transform=(1,)),
    BitFit(),
    IA3(),
    IA3(target_modules=("c_attn", "c_proj", "c_fc"), feedforward_modules=("c_fc",)),
    IA3(target_modules=("attn.c_proj", "c_attn"), feedforward_modules=("attn.c_proj", "c_attn")),
]


def check_gradients(tuned: Any, per_tensor: int = 6) -> None:
    """Every trainable tensor's gradient at some random elements against central differences."""
    rng = np.random.default_rng(5)
    ids, targets = rng.integers(0, TINY.vocab_size, (2, 2, 5))
    targets[0, 2] = -100
    _, grads = tuned.loss_and_grads(ids, targets)
    trainable = [p for p in tuned.parameters() if p.trainable]
    assert set(grads) == {p.name for p in trainable}
    for p in trainable:
        data = p.data

        def loss(value: np.ndarray, p: Any = p) -> float:
            p.data = value
            ctx = tuned.context()
            hidden, _ = tuned.forward(ids, ctx)
            return lm_loss(hidden, tuned.wte, targets, ctx)[0]

        entries = rng.permutation(data.size)[:per_tensor]
        expected = numerical_gradient(loss, data, 1.0, entries, step=3e-4)  # LayerNorms of four are curved
        p.data = data
        assert error(grads[p.name].reshape(-1)[entries], expected, floor=1e-2) < 1e-8, p.name


@pytest.mark.parametrize("method", WHOLE, ids=str)
def test_gradients_of_a_tuned_model(method: Any) -> None:
    check_gradients(moved(method.apply(random_model())))


@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_adapters_around_attention_with_a_learned_prefix(placement: str) -> None:
    tuned = with_prefix(random_model(), 1)
    tuned.freeze(["*.weight", "*.bias"])
    Adapters(bottleneck=2, placement=placement).install(tuned, 0, None)
    assert sum(p.trainable and p.name.startswith("prefix.") for p in tuned.parameters()) == 4
    check_gradients(moved(tuned))
    cached = tuned.generate([[1, 2]], 2, temperature=0)
    ids = np.array([[1, 2]])
    for _ in range(2):
        ids = np.concatenate((ids, tuned.logits(ids)[:, -1].argmax(-1)[:, None]), axis=1)
    assert (cached == ids).all()


def test_a_third_of_the_fused_bias_cannot_learn() -> None:
    ids, targets = golden_batch()
    _, grads = BitFit().apply(random_model(CONFIG)).loss_and_grads(ids, targets)
    queries, keys, values = np.split(grads["transformer.h.1.attn.c_attn.bias"], 3)
    assert np.abs(keys).max() < 1e-12 * np.abs(values).max()
    assert np.abs(queries).max() > 1e-6 * np.abs(values).max()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_start_is_the_base(placement: str) -> None:
    base = random_model(CONFIG)
    ids, _ = golden_batch()
    wanted = base.logits(ids)
    near = Adapters(bottleneck=3, placement=placement).apply(base, seed=1).logits(ids)
    assert 0 < error(near, wanted) < 1e-4
    assert error(Adapters(bottleneck=3, placement=placement, init_std=0).apply(base).logits(ids), wanted) == 0
    assert error(Adapters(bottleneck=3, placement=placement, init_std=1).apply(base).logits(ids), wanted) > 0.1
    assert (near != Adapters(bottleneck=3, placement=placement).apply(base, seed=2).logits(ids)).any()


def test_every_adapter_starts_from_numbers_of_its_own() -> None:
    tuned = Adapters(bottleneck=3).apply(GPT(CONFIG))
    starts = [p.data for p in tuned.parameters() if p.name.endswith("adapter.down.weight")]
    assert len({start.tobytes() for start in starts}) == len(starts) == 2 * CONFIG.n_layer


def test_with_both_matrices_at_zero_only_the_last_bias_learns() -> None:
    ids, targets = golden_batch()
    tuned = Adapters(bottleneck=3, init_std=0, train_layernorm=False).apply(random_model(CONFIG))
    _, grads = tuned.loss_and_grads(ids, targets)
    alive = {name.split("adapter.")[1] for name, gradient in grads.items() if np.abs(gradient).max() > 0}
    assert alive == {"up.bias"}


def test_serial_comes_after_and_parallel_beside() -> None:
    base = random_model(TINY)
    ids = np.array([[1, 2, 3]])
    watched: dict[str, np.ndarray] = {}

    def see(method: Any) -> dict[str, np.ndarray]:
        tuned = moved(method.apply(base))
        watched.clear()
        ctx = tuned.context(watch=lambda name, array: watched.__setitem__(name, array.copy()))
        tuned.forward(ids, ctx)
        own = {p.name: p.data for p in tuned.parameters()}
        name = "transformer.h.0.mlp"
        x = watched["transformer.h.0.ln_2" if method.placement == "parallel_mlp" else name]
        arrays = [own[f"{name}.adapter.{part}"] for part in ("down.weight", "down.bias", "up.weight", "up.bias")]
        return {"is": watched[f"{name}.adapter"], "wanted": lesson.adapter_forward(x, *arrays, NUMPY.ops)[0]}

    for placement in ("pfeiffer", "parallel_mlp"):
        seen = see(Adapters(bottleneck=2, placement=placement, train_layernorm=False))
        assert error(seen["is"], seen["wanted"]) < 1e-12


@pytest.mark.parametrize("method", [Adapters(bottleneck=2), Adapters(placement="parallel"), BitFit(), IA3()], ids=str)
def test_on_another_array_library(method: Any) -> None:
    ids, targets = golden_batch()
    here, there = (moved(method.apply(random_model(CONFIG, backend=b))) for b in (NUMPY, STANDIN))
    loss, grads = here.loss_and_grads(ids, targets)
    other_loss, other_grads = there.loss_and_grads(ids, targets)
    assert other_loss == pytest.approx(loss, rel=1e-10)
    for name, gradient in grads.items():
        assert error(other_grads[name].get(), gradient) < 1e-9, name


# ---------------------------------------------------------------------------------------------- training and cost


def batches(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return dict(zip(("ids", "targets"), rng.integers(0, 11, (2, 4, 8)), strict=True))


@pytest.mark.parametrize("method", [Adapters(bottleneck=2), BitFit(), IA3()], ids=lambda m: m.name)
def test_training_moves_what_is_trainable_and_nothing_else(method: Any) -> None:
    base = random_model(CONFIG, "float32")
    kept = {name: array.copy() for name, array in base.state().items()}
    tuned = method.apply(base)
    start = {p.name: p.data.copy() for p in tuned.parameters()}
    config = TrainConfig(steps=3, lr=0.05, workers=1, weight_decay=0.1)
    history = method.fit(tuned, LanguageModelling(), batches, config, progress=False)
    assert len(history.losses) == 3
    for p in tuned.parameters():
        if p.trainable and not p.name.endswith("c_attn.bias"):
            assert (p.data != start[p.name]).any(), p.name
        elif not p.trainable:
            assert p.data.tobytes() == start[p.name].tobytes(), p.name
    for name, array in base.state().items():
        assert array.tobytes() == kept[name].tobytes(), name


def test_weight_decay_does_not_pull_scales_to_zero() -> None:
    method = IA3()
    tuned = method.apply(random_model(CONFIG))

    class Still:
        """A loss that does not depend on anything."""

        total = staticmethod(lambda batch: 1.0)
        forward = staticmethod(lambda model, batch, total, ctx: (0.0, lambda grads: None))

    config = TrainConfig(steps=2, lr=0.1, workers=1, weight_decay=0.5, max_norm=None)
    method.fit(tuned, Still(), batches, config, progress=False)  # type: ignore[arg-type]
    assert all((p.data == 1).all() for p in tuned.parameters() if p.trainable)
    train(tuned, Still(), batches, config, progress=False)  # type: ignore[arg-type]
    assert all((p.data < 1).all() for p in tuned.parameters() if p.trainable)  # without the method's groups it does


def products(method: Any, config: GPTConfig = CONFIG) -> tuple[Any, Any]:
    tuned = method.apply(GPT(config))
    return count_products(tuned, LanguageModelling(), batches(0))


def test_no_gradient_is_made_that_nobody_needs() -> None:
    everything = GPT(CONFIG)
    all_backward = count_products(everything, LanguageModelling(), batches(0))[1]
    for method in (BitFit(), IA3()):
        assert products(method)[1].calls["linear_backward_weight"] == 0
        assert products(method)[1].total < 0.7 * all_backward.total
    for placement, (_, sublayers) in PLACEMENTS.items():
        calls = products(Adapters(bottleneck=2, placement=placement, train_layernorm=False))[1].calls
        n = CONFIG.n_layer * len(sublayers)
        assert calls["linear_backward_weight"] == 2 * n, placement
    # Frozen matrices on the way down, up to the lowest adapter: after the first attention, so that one is spared.
    houlsby = products(Adapters(bottleneck=2, train_layernorm=False))[1].calls
    assert houlsby["attention_backward"] == CONFIG.n_layer - 1
    # dg of 4 adapters, dx of 3 of them, 4 matrices of the upper block, 2 of the lower MLP, and the head
    assert houlsby["linear_backward_input"] == 4 + 3 + 4 + 2 + 1
    parallel = products(Adapters(bottleneck=2, placement="parallel", train_layernorm=False))[1].calls
    assert parallel["attention_backward"] == CONFIG.n_layer - 1
    assert parallel["linear_backward_input"] == 4 + 3 + 4 + 2 + 1
    top = products(Adapters(bottleneck=2, placement="pfeiffer", train_layernorm=False, layers_to_transform=(1,)))[1]
    assert top.calls["attention_backward"] == 0
    assert top.calls["linear_backward_input"] == 1 + 1  # the head, and into the bottleneck
    # the head, four matrices of the upper block, and all but c_attn of the lower one: the lowest scale lies above that
    scales = products(IA3())[1].calls
    assert scales["linear_backward_input"] == 1 + 4 + 3
    assert scales["linear_forward"] == CONFIG.n_layer  # c_attn's output, which is not kept
    ia3 = products(IA3(target_modules=("mlp.c_proj",)))[1].calls
    assert ia3["attention_backward"] == CONFIG.n_layer - 1


def test_frozen_adapters_hand_the_gradient_on_and_make_none() -> None:
    tuned = moved(Adapters(bottleneck=2).apply(random_model()))
    tuned.freeze(["*.adapter.*"])
    check_gradients(tuned)
    backward = count_products(
        tuned, LanguageModelling(), {name: array[:, :5] % 7 for name, array in batches(0).items()}
    )[1]
    assert backward.calls["linear_backward_weight"] == 0


def test_less_is_kept_when_less_is_trained() -> None:
    def cost(method: Any) -> Any:
        config = replace(CONFIG, n_embd=24, n_positions=32)
        ids, targets = np.random.default_rng(0).integers(0, 11, (2, 4, 32))
        batch = {"ids": ids, "targets": targets}
        return step_cost(method.apply(GPT(config)) if method else GPT(config), LanguageModelling(), batch, 1)

    full, bitfit, ia3, houlsby, lower, upper = (
        cost(method)
        for method in (
            None,
            BitFit(),
            IA3(),
            Adapters(bottleneck=2, train_layernorm=False),
            Adapters(bottleneck=2, train_layernorm=False, layers_to_transform=(0,)),
            Adapters(bottleneck=2, train_layernorm=False, layers_to_transform=(1,)),
        )
    )
    assert bitfit.activations < 0.8 * full.activations
    assert ia3.activations < 0.95 * full.activations
    assert houlsby.activations < full.activations
    assert upper.activations < 0.7 * lower.activations
    assert 20 * houlsby.optimizer < full.optimizer
    assert abs(houlsby.measured_activations - houlsby.activations) < 0.1 * full.activations


def test_a_pass_without_gradients_keeps_nothing() -> None:
    tuned = Adapters(bottleneck=2).apply(GPT(CONFIG))
    counting = CountingBackend(tuned.backend)
    ctx = replace(tuned.context(), backend=counting)
    caches = []
    forward = counting.ops.bias_gelu_forward
    counting.ops.bias_gelu_forward = lambda *args: caches.append(forward(*args)) or caches[-1]
    tuned.forward(golden_batch()[0], ctx)
    assert len(caches) == 2 * 3
    assert all(cache is None for _, cache in caches)


# ---------------------------------------------------------------------------------------------- merging and files


def test_merged_ia3_computes_the_same_and_is_a_plain_model(tmp_path: Path) -> None:
    base = random_model(CONFIG, "float32")
    kept = {name: array.copy() for name, array in base.state().items()}
    method = IA3(target_modules=("c_attn", "c_proj", "c_fc"), feedforward_modules=("c_fc",))
    tuned = moved(method.apply(base))
    ids, _ = golden_batch()
    plain = method.merge(tuned)
    assert error(plain.logits(ids), tuned.logits(ids)) < 1e-6
    plain.save_pretrained(tmp_path / "model")
    assert error(GPT.from_pretrained(tmp_path / "model").logits(ids), plain.logits(ids)) == 0
    assert all(p.trainable for p in plain.parameters())
    assert all(base.state()[name].tobytes() == array.tobytes() for name, array in kept.items())
    assert (moved(method.apply(base)).logits(ids) == tuned.logits(ids)).all()  # merging left the tuned one as it was
    with pytest.raises(InputError, match="merged already"):
        method.merge(plain)


def test_bitfit_is_a_plain_model_at_once() -> None:
    tuned = moved(BitFit().apply(random_model(CONFIG)))
    plain = BitFit().merge(tuned)
    assert (plain.logits(golden_batch()[0]) == tuned.logits(golden_batch()[0])).all()
    assert all(p.trainable for p in plain.parameters())


def test_adapters_do_not_merge() -> None:
    tuned = Adapters(bottleneck=2).apply(random_model(CONFIG))
    with pytest.raises(ValueError, match="GELU stands between") as caught:
        Adapters().merge(tuned)
    assert "\n" not in str(caught.value)


def test_a_trunk_under_a_head_can_be_merged_and_the_whole_cannot() -> None:
    tuned = moved(IA3(n_labels=3).apply(random_model(CONFIG)))
    with pytest.raises(InputError, match="classifier head"):
        IA3().merge(tuned)
    ids, _ = golden_batch()
    assert error(IA3().merge(tuned.trunk).logits(ids), tuned.trunk.logits(ids)) < 1e-12


@pytest.mark.parametrize("n_labels", [None, 3])
@pytest.mark.parametrize(
    "method",
    [
        Adapters(bottleneck=2, placement="parallel", layers_to_transform=[1]),
        BitFit(),
        IA3(target_modules=["c_fc"], feedforward_modules=[]),
    ],
    ids=lambda m: m.name,
)
def test_saved_and_loaded_it_gives_the_same(method: Any, n_labels: int | None, tmp_path: Path) -> None:
    base = random_model(CONFIG, "float32")
    method = replace(method, n_labels=n_labels)
    tuned = moved(method.apply(base))
    method.save(tuned, tmp_path / "it")
    loaded = type(method).load(base, tmp_path / "it")
    ids, _ = golden_batch()
    assert (loaded.logits(ids) == tuned.logits(ids)).all()
    assert [p.name for p in loaded.parameters() if p.trainable] == [p.name for p in tuned.parameters() if p.trainable]


def damaged(directory: Path, change: Any) -> None:
    path = directory / "adapter_model.safetensors"
    tensors, _ = files.load_tensors(path, "float64")
    change(tensors)
    files.save_tensors(path, tensors, {"format": "pt"})


SCALE = "base_model.model.transformer.h.1.attn.c_attn.ia3_l"
DAMAGE = {
    "missing": (lambda t: t.pop(SCALE), "missing: transformer.h.1.attn.c_attn.ia3_l"),
    "left over": (lambda t: t.__setitem__(SCALE.replace("c_attn", "c_proj"), np.ones((6, 1))), "left over: .*c_proj"),
    "other shape": (lambda t: t.__setitem__(SCALE, np.ones((18,))), r"is \(18,\) instead of \(18, 1\)"),
    "other prefix": (lambda t: t.__setitem__("h.0.ia3_l", t.pop(SCALE)), "must begin with"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_peft_passes_over_is_an_error_that_names_the_key(kind: str, tmp_path: Path) -> None:
    change, said = DAMAGE[kind]
    base = random_model(CONFIG)
    IA3().save(IA3().apply(base), tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(InputError, match=said) as caught:
        IA3.load(base, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "LORA"}, "'LORA', not 'IA3'"),
        ({"target_modules": "c_attn"}, "target_modules is 'c_attn'; it must be a list"),
        ({"feedforward_modules": "c_attn"}, "feedforward_modules is 'c_attn'; it must be a list"),
        ({"target_modules": ["wte"], "feedforward_modules": []}, "no linear layer is called 'wte'"),
        ({"exclude_modules": ["c_fc"]}, r"exclude_modules = \['c_fc'\]"),
        ({"modules_to_save": ["wpe"]}, r"modules_to_save = \['wpe'\]"),
    ],
)
def test_configurations_that_mean_something_else_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    base = random_model(CONFIG)
    IA3().save(IA3().apply(base), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=said):
        IA3.load(base, tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Adapters(bottleneck=0), "bottleneck is 0; it must be a whole number of 1 or more"),
        (lambda: Adapters(bottleneck=2.5), "bottleneck is 2.5"),  # type: ignore[arg-type]
        (
            lambda: Adapters(placement="above"),
            "no placement 'above'; there are houlsby, pfeiffer, parallel, parallel_mlp",
        ),
        (lambda: Adapters(init_std=-1), "init_std is -1"),
        (lambda: Adapters(init_std=float("nan")), "init_std is nan"),
        (lambda: Adapters(layers_to_transform=(0, 2)).apply(GPT(CONFIG)), "block 2; this model has 0 to 1"),
        (lambda: Adapters(layers_to_transform=(-1,)).apply(GPT(CONFIG)), "block -1"),
        (lambda: Adapters(layers_to_transform=()).apply(GPT(CONFIG)), "names no block"),
        (lambda: IA3(target_modules="c_attn"), "target_modules is 'c_attn'; it must be a list"),
        (lambda: IA3(target_modules=None), "target_modules is None; it must be a list"),
        (
            lambda: IA3(target_modules=["q"], feedforward_modules=[]).apply(GPT(CONFIG)),
            "no linear layer is called 'q'; there are attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj",
        ),
        (lambda: IA3(target_modules=["proj"], feedforward_modules=[]).apply(GPT(CONFIG)), "is called 'proj'"),
        (lambda: IA3(target_modules=[], feedforward_modules=[]).apply(GPT(CONFIG)), "target_modules is empty"),
        (lambda: Adapters().apply(IA3().apply(GPT(CONFIG))), "this one has been changed"),
        (lambda: IA3().apply(Adapters().apply(GPT(CONFIG))), "this one has been changed"),
    ],
)
def test_impossible_requests_get_one_line(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- golden file

GOLDEN = Path(__file__).parent.parent / "golden" / "adapters.npz"
GOLDEN_METHODS = {
    **{placement: Adapters(bottleneck=3, placement=placement) for placement in PLACEMENTS},
    "bitfit": BitFit(),
    "ia3": IA3(),
    "ia3 elsewhere": IA3(target_modules=("c_proj", "c_fc"), feedforward_modules=("c_fc",)),
}


@pytest.mark.parametrize("label", GOLDEN_METHODS)
def test_what_torch_and_peft_once_said(label: str) -> None:
    with np.load(GOLDEN) as golden:
        said = {name.removeprefix(f"{label}/"): golden[name] for name in golden.files if name.startswith(f"{label}/")}
    tuned = GOLDEN_METHODS[label].apply(random_model(CONFIG))
    for p in tuned.parameters():
        if f"value/{p.name}" in said:
            p.data = said[f"value/{p.name}"]
    ids, targets = golden_batch()
    assert error(tuned.logits(ids), said["logits"]) < 1e-9
    loss, grads = tuned.loss_and_grads(ids, targets)
    assert error(loss, said["loss"]) < 1e-9
    assert {f"grad/{name}" for name in grads} == {name for name in said if name.startswith("grad/")}
    for name, gradient in grads.items():
        assert error(gradient, said[f"grad/{name}"]) < 1e-9, name


# ---------------------------------------------------------------------------------------------- wrong variants


def _shuffled(f: Any) -> Any:
    return lambda dy, du, x, cache, ops: (lambda g: (g[0], g[1], g[2], g[1].sum() + g[3]))(f(dy, du, x, cache, ops))


WRONG = {
    "no activation's slope": ("adapter_backward_bottleneck", lambda f: lambda dy, up, slope, ops: dy @ up.T),
    "slope applied twice": (
        "adapter_backward_bottleneck",
        lambda f: lambda dy, up, slope, ops: ops.bias_gelu_backward(f(dy, up, slope, ops), slope),
    ),
    "bias of another row sum": ("adapter_backward_params", _shuffled),
    "mean over rows": (
        "adapter_backward_params",
        lambda f: lambda dy, du, x, c, ops: tuple(g / len(x) for g in f(dy, du, x, c, ops)),
    ),
    "transposed input": ("adapter_backward_input", lambda f: lambda du, down, ops: f(-du, down, ops)),
    "skip inside": ("adapter_forward", lambda f: lambda x, *rest: (f(x, *rest)[0] + x, *f(x, *rest)[1:])),
    "no bias inside": ("adapter_forward", lambda f: lambda x, d, b, *rest: f(x, d, 0 * b, *rest)),
    "start too large": ("near_identity", lambda f: lambda d, m, std, rng: f(d, m, 100 * std, rng)),
    "start not cut off": (
        "near_identity",
        lambda f: lambda d, m, std, rng: (std * rng.standard_normal((d, m)), *f(d, m, std, rng)[1:]),
    ),
    "start all zero": ("near_identity", lambda f: lambda d, m, std, rng: tuple(0 * a for a in f(d, m, std, rng))),
    "count without biases": ("adapter_count", lambda f: lambda d, m: 2 * d * m),
    "biases of linear layers only": ("bias_names", lambda f: lambda names: [n for n in f(names) if "ln_" not in n]),
    "count of a width of 4d": ("bias_count", lambda f: lambda d, inner, L: f(d, 4 * d, L)),
    "scale's input not scaled": ("scale_backward_input", lambda f: lambda dy, scale: dy),
    "scale from one row": ("scale_backward_vector", lambda f: lambda dy, x: (dy * x).reshape(-1, x.shape[-1])[-1]),
    "scale from the output": ("scale_backward_vector", lambda f: lambda dy, x: f(dy, x * x)),
    "bias not scaled": ("scale_merge", lambda f: lambda w, b, s, ff: (f(w, b, s, ff)[0], b)),
    "bias always scaled": ("scale_merge", lambda f: lambda w, b, s, ff: (f(w, b, s, ff)[0], b * s.mean())),
    "columns for rows": ("scale_merge", lambda f: lambda w, b, s, ff: (w * s.mean(), f(w, b, s, ff)[1])),
}


def derive(tmp_path: Path, derivations: Any = lesson.DERIVATIONS) -> list[Any]:
    return derivation.derive(Run(8, Settings(quick=True, brief=True), tmp_path), derivations)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_variant_is_shown_as_wrong(name: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    function, change = WRONG[name]
    monkeypatch.setattr(lesson, function, change(getattr(lesson, function)))
    checks = derive(tmp_path, lesson.DERIVATIONS[:3])  # each function's own checks see it, not only a whole model's
    assert any(c.verdict == "WRONG" for c in checks)
    assert " WRONG" in capsys.readouterr().out
    with pytest.raises(runner.RunError, match="gradients are wrong"):
        derivation.require(checks)


GRADED = [
    "adapter_forward", "adapter_backward_bottleneck", "adapter_backward_params", "adapter_backward_input",
    "near_identity", "adapter_count", "bias_names", "bias_count", "scale_backward_input", "scale_backward_vector",
    "scale_merge",
]  # fmt: skip


@pytest.mark.parametrize("function", GRADED)
def test_what_is_not_written_yet_is_no_crash(function: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(lesson, function, todo)
    checks = derive(tmp_path)
    assert any(c.missing for c in checks)
    assert any(c.ok for c in checks)
    assert all(c.ok or c.missing for c in checks)


# ---------------------------------------------------------------------------------------------- the whole lesson


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the committed record, nor depends on it."""
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def read(directory: Path) -> Any:
    return json.loads((directory / "record.json").read_text(encoding="utf-8"))


def test_quick_lesson_does_all_that_it_promises(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--check", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "du = (dy Uᵀ) ∘ gelu'(u)" in printed
    assert "def adapter_backward_params" in printed
    assert "SOLUTION" not in printed
    lines = [line for line in printed.splitlines() if line.endswith((" ok", " WRONG", " not written yet"))]
    assert len(lines) > 50
    assert all(line.endswith(" ok") for line in lines)
    directory = tmp_path / "lesson-08"
    record = read(directory)
    names = set(record["figures"])
    for method in ("full", "lora", "bitfit", "ia3", "adapters"):
        assert f"rewriting_loss_{method}" in names
        assert f"topic_accuracy_{method}" in names
    assert names >= {"topic_accuracy_head", "loss_of_a_large_start", "adapter_time_a_token"}
    costs = record["results"]["costs"]
    assert costs["ia3"]["state"] == costs["bitfit"]["state"] == "merged"
    assert all(costs[f"{placement} m=2"]["state"] == "stays" for placement in PLACEMENTS)
    assert costs["bitfit"]["step"]["trainable"] < costs["full"]["step"]["trainable"] / 50
    outcomes = record["results"]["outcomes"]["rewriting"]
    assert set(outcomes) == {"methods", "sizes", "init", "layernorm", "depth"}
    assert outcomes["sizes"]["houlsby m=2"]["settings"]["bottleneck"] == 2
    assert record["pictures"] == ["quality.png", "choices.png", "depth.png"]
    for name in record["pictures"]:
        pixels = imread(directory / name)
        assert pixels.shape[1] > 1000
        assert float(pixels.std()) > 0.01


LABELLED = "text,label\n" + "".join(f"a {word} number {i},{word}\n" for i in range(40) for word in ("good", "bad"))
PAIRS = "".join(json.dumps({"prompt": f"say {i}:", "completion": f" {i}"}) + "\n" for i in range(80))


@pytest.mark.parametrize(
    ("file", "text", "metric"), [("own.csv", LABELLED, "accuracy"), ("own.jsonl", PAIRS, "loss")], ids=["csv", "jsonl"]
)
def test_lesson_on_the_users_own_data(
    file: str, text: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(study, "QUICK", replace(study.QUICK, sizes=(1,), init_stds=(1e-3,)))
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(tmp_path / file), "--out", str(tmp_path)]) == 0
    assert f"own_{metric}_adapters" in read(tmp_path / "lesson-08")["figures"]


def test_data_that_cannot_be_used_gets_one_line_and_code_2(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"text {i},same\n" for i in range(40)))
    assert lesson.main(["--quick", "--brief", "--data", str(tmp_path / "one.csv"), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("lesson 8: ")
    assert "at least two" in said


def test_a_start_that_diverges_is_reported_and_any_other_divergence_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    measure, failing = study.measure, {("init", "1")}

    def diverge(job: Any) -> Any:
        if (job["study"], job["label"]) in failing:
            raise runner.RunError("step 3: the loss is nan")
        return measure(job)

    monkeypatch.setattr(study, "measure", diverge)
    monkeypatch.setattr(study, "QUICK", replace(study.QUICK, sizes=(1,), tasks=("rewriting",)))
    assert lesson.main(["--quick", "--brief", "--out", str(tmp_path)]) == 0
    assert "diverged" in capsys.readouterr().out
    record = read(tmp_path / "lesson-08")
    assert "loss_of_a_large_start" not in record["figures"]
    assert record["results"]["outcomes"]["rewriting"]["init"]["1"]["runs"] == [{"error": "step 3: the loss is nan"}]
    failing.add(("methods", "ia3"))
    assert lesson.main(["--quick", "--brief", "--out", str(tmp_path)]) == 1
    assert "rewriting, ia3: step 3: the loss is nan" in capsys.readouterr().err


def test_switching_all_adapters_off_gives_the_base_back() -> None:
    base = random_model(CONFIG)
    tuned = moved(Adapters(bottleneck=2, train_layernorm=False).apply(base))
    ids, _ = golden_batch()
    before = tuned.logits(ids)
    assert error(study.switched_off(tuned, range(2)).logits(ids), base.logits(ids)) < 1e-12
    half = study.switched_off(tuned, [1]).logits(ids)
    assert error(half, base.logits(ids)) > 1e-3
    assert error(half, before) > 1e-3
    assert (tuned.logits(ids) == before).all()


def test_the_studys_placements_are_the_lessons() -> None:
    assert tuple(PLACEMENTS) == study.PLACEMENTS
