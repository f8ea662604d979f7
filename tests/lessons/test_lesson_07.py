"""Lesson 7: every gradient of LoRA and its relatives, merging, mixing, switching, files; the lesson at its smallest."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kernels import get_backend, linear
from lessons import lesson_07_lora as lesson
from lessons.common import derivation, gradcheck, lora_files, lora_study, runner
from lessons.common.classifier import Classification
from lessons.common.lora_serving import BASE
from lessons.common.measure import count_products, held_bytes
from lessons.common.method import REGISTRY, n_trainable
from lessons.common.runner import Run, Settings
from minigpt import GPT, GPTConfig
from minigpt.decoding import is_plain
from minigpt.errors import InputError
from minigpt.layers import Linear
from minigpt.objectives import LanguageModelling
from minigpt.parameters import Gradients
from minigpt.training import TrainConfig
from tests.helpers import assert_gradient, error, nan_like
from tests.standin import BACKEND as STANDIN

GOLDEN = Path(__file__).parent.parent / "golden" / "lora.npz"
V = 13


def model(dtype: str = "float64", **sizes: int) -> GPT:
    settings = {"vocab_size": V, "n_positions": 8, "n_embd": 6, "n_layer": 2, "n_head": 2} | sizes
    gpt = GPT(GPTConfig(**settings), seed=1, dtype=dtype)
    rng = np.random.default_rng(2)
    for p in gpt.parameters():  # nothing stays 0 or 1
        p.data = (p.data + 0.3 * rng.standard_normal(p.data.shape)).astype(dtype)
    return gpt


def moved(tuned: Any, seed: int = 4, size: float = 0.05) -> Any:
    """The tuned model with every trained number changed, as by training."""
    rng = np.random.default_rng(seed)
    for p in tuned.parameters():
        if p.trainable:
            p.data = (p.data + size * rng.standard_normal(p.data.shape)).astype(p.data.dtype)
    return tuned


def tokens(rows: int = 3, length: int = 7, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (rows, length))


def trained_names(tuned: Any) -> set[str]:
    return {p.name for p in tuned.parameters() if p.trainable}


# ---------------------------------------------------------------------------------------------- single functions


@pytest.mark.parametrize(
    ("rows", "n_in", "r", "n_out"), [((2, 3), 5, 2, 7), ((1,), 1, 1, 1), ((4,), 3, 1, 2), ((2, 1, 3), 2, 2, 6)]
)
def test_gradients_of_the_update(rows: tuple[int, ...], n_in: int, r: int, n_out: int) -> None:
    rng = np.random.default_rng(0)
    x, A, B = rng.standard_normal((*rows, n_in)), rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r))
    s = 1.3
    delta, z = lesson.lora_forward(x, A, B, s)
    assert error(delta, s * np.einsum("...i,ri,or->...o", x, A, B)) < 1e-12
    dy = rng.standard_normal(delta.shape)
    dz = lesson.lora_backward_z(dy, B, s)
    out_A, out_B = nan_like(A), nan_like(B)
    assert lesson.lora_backward_A(dz, x, linear, out_A) is out_A
    assert lesson.lora_backward_B(dy, z, linear, out_B) is out_B
    assert_gradient(out_A, lambda A: lesson.lora_forward(x, A, B, s)[0], A, dy, "dA")
    assert_gradient(out_B, lambda B: lesson.lora_forward(x, A, B, s)[0], B, dy, "dB")
    assert_gradient(lesson.lora_backward_input(dz, A), lambda x: lesson.lora_forward(x, A, B, s)[0], x, dy, "dx")
    assert error(lesson.lora_backward_A(dz, x), out_A) == 0
    assert error(lesson.lora_backward_B(dy, z), out_B) == 0


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1), (4, 2)])
def test_gradients_of_dora(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    h, m, n = rng.standard_normal(shape), rng.standard_normal(shape[-1]), 0.5 + rng.random(shape[-1])
    dy = rng.standard_normal(shape)
    dh, dm = lesson.dora_backward(dy, h, m, n)
    assert_gradient(dh, lambda h: lesson.dora_forward(h, m, n), h, dy, "dh")
    assert_gradient(dm, lambda m: lesson.dora_forward(h, m, n), m, dy, "dmagnitude")


def test_scaling() -> None:
    assert lesson.lora_scaling(8, 16) == 2
    assert lesson.lora_scaling(16, 16, use_rslora=True) == 4


def test_pissa_takes_the_largest_singular_terms() -> None:
    W = np.random.default_rng(2).standard_normal((7, 4))
    values = np.linalg.svd(W, compute_uv=False)
    A, B = lesson.pissa_init(W, 3, 0.5)
    rest = W - 0.5 * (B @ A).T
    assert error(np.linalg.svd(rest, compute_uv=False), [values[3], 0, 0, 0], floor=1) < 1e-12
    assert error((A * A).sum(1), (B * B).sum(0)) < 1e-12


def test_subspace_similarity() -> None:
    rng = np.random.default_rng(3)
    A = rng.standard_normal((4, 9))
    assert lesson.subspace_similarity(A, rng.standard_normal((4, 4)) @ A, 4, 4) == pytest.approx(1)
    assert lesson.subspace_similarity(A, A, 2, 4) == pytest.approx(1)
    Q = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    assert lesson.subspace_similarity(Q[:3], Q[3:7], 3, 4) == pytest.approx(0, abs=1e-12)
    draws = [
        lesson.subspace_similarity(rng.standard_normal((8, 64)), rng.standard_normal((16, 64)), 8, 16)
        for _ in range(50)
    ]
    assert np.mean(draws) == pytest.approx(16 / 64, rel=0.03)  # chance is max(i, j)/d


def random_factors(rng: np.random.Generator, r: int, n_in: int = 6, n_out: int = 5) -> lesson.Factors:
    return lesson.Factors(rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r)), float(rng.random() + 0.5))


def product(f: lesson.Factors) -> np.ndarray:
    return f.scaling * f.B @ f.A


def test_mixtures() -> None:
    rng = np.random.default_rng(4)
    two = [random_factors(rng, 2), random_factors(rng, 2)]
    weights = (0.4, 1.1)
    wanted = sum(w * product(f) for w, f in zip(weights, two, strict=True))
    adapters = [{"layer": f} for f in two]
    cat = lesson.mix_adapters(adapters, weights)["layer"]
    assert cat.A.shape == (4, 6)
    assert error(product(cat), wanted) < 1e-12
    assert error(product(lesson.mix_adapters(adapters, weights, "svd", 4)["layer"]), wanted) < 1e-12
    best = product(lesson.mix_adapters(adapters, weights, "svd", 1)["layer"])
    assert np.linalg.norm(best - wanted, 2) == pytest.approx(np.linalg.svd(wanted, compute_uv=False)[1])
    crossed = product(lesson.mix_adapters(adapters, weights, "linear")["layer"])
    (a, b), (u, v) = two, (math.sqrt(w * f.scaling) for w, f in zip(weights, two, strict=True))
    assert error(crossed - wanted, u * v * (a.B @ b.A + b.B @ a.A)) < 1e-12  # what "linear" has too much
    only = lesson.mix_adapters([{"layer": a}, {"other": b}], weights)
    assert error(product(only["other"]), 1.1 * product(b)) < 1e-12


@pytest.mark.parametrize(
    ("weights", "how", "rank", "said"),
    [
        ((1.0,), "cat", None, "1 weights for 2 adapters"),
        ((1.0, 1.0), "ties", None, "no mixture 'ties'; there are cat, svd, linear"),
        ((1.0, 1.0), "svd", 6, "rank is 6; for layer it must be from 1 to 5"),
        ((1.0, -1.0), "linear", None, "weights of 0 or more"),
    ],
)
def test_impossible_mixtures(weights: Any, how: str, rank: Any, said: str) -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(InputError, match=said):
        lesson.mix_adapters([{"layer": random_factors(rng, 2)}, {"layer": random_factors(rng, 2)}], weights, how, rank)


def test_linear_needs_equal_ranks() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(InputError, match=r"ranks \[2, 3\]"):
        lesson.mix_adapters([{"it": random_factors(rng, 2)}, {"it": random_factors(rng, 3)}], (1.0, 1.0), "linear")


# ---------------------------------------------------------------------------------------------- whole models

METHODS: dict[str, lesson.LoRA] = {
    "all": lesson.LoRA(r=2, target_modules="all-linear"),
    "c_attn": lesson.LoRA(r=3, lora_alpha=5),
    "upper block": lesson.LoRA(r=1, target_modules=["mlp.c_proj"], layers_to_transform=1),
    "patterns": lesson.LoRA(
        r=2, target_modules=["c_attn", "c_proj"], rank_pattern={"mlp.c_proj": 4}, alpha_pattern={r"h\.0\..*": 3}
    ),
    "gaussian": lesson.LoRA(r=2, init_lora_weights="gaussian"),
    "q and v": lesson.LoRA(r=2, enable_lora=(True, False, True)),
    "rslora": lesson.RsLoRA(r=4),
    "dora": lesson.DoRA(r=2, target_modules=["c_attn", "c_proj"]),
    "pissa": lesson.PiSSA(r=2, target_modules=["c_attn", "c_fc"]),
    "loraplus": lesson.LoRAPlus(r=2),
    "pissa and rslora": lesson.PiSSA(r=2, lora_alpha=4, use_rslora=True),
    "q, k and rslora": lesson.LoRA(r=3, lora_alpha=4, enable_lora=(True, True, False), use_rslora=True),
}


@pytest.mark.parametrize("name", METHODS)
def test_starts_as_the_base_and_leaves_it_alone(name: str) -> None:
    base = model()
    before = {p.name: (p.data, p.data.copy(), p.trainable) for p in base.parameters()}
    tuned = METHODS[name].apply(base)
    assert error(tuned.logits(tokens()), base.logits(tokens())) < (1e-12 if "pissa" in name else 1e-30)
    for p in base.parameters():
        assert p.data is before[p.name][0]
        assert (p.data == before[p.name][1]).all()
        assert p.trainable == before[p.name][2]
    assert all("lora_" in each for each in trained_names(tuned))


@pytest.mark.parametrize("name", METHODS)
def test_every_gradient_of_a_tuned_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = moved(METHODS[name].apply(model(n_embd=4, n_head=1)))
    if name == "dora":  # its backward takes the norm for a constant: so do the differences
        norms: dict[bytes, Any] = {}
        norm = lesson.dora_norm
        monkeypatch.setattr(lesson, "dora_norm", lambda W, *rest: norms.setdefault(W.tobytes(), norm(W, *rest)))
    ids, targets = tokens(2, 5), tokens(2, 5, seed=6)
    targets[0, 1:3] = -100
    _, grads = tuned.loss_and_grads(ids, targets)
    assert set(grads) == trained_names(tuned)
    data = {"ids": ids, "targets": targets}
    total = LanguageModelling().total(data)
    checks = gradcheck.check_parameters(
        tuned.parameters(),
        lambda: LanguageModelling().forward(tuned, data, total, tuned.context())[0],
        grads,
        tuned.backend,
    )
    assert {c.name for c in checks} == {each.removeprefix("transformer.") for each in grads}
    assert [c.fault for c in checks if not c.ok] == []


@pytest.mark.parametrize("name", METHODS)
def test_on_another_array_library(name: str) -> None:
    """No layer asks NumPy for what belongs to the device: the same gradients on the stand-in for one."""
    here, there = model(), GPT(model().config, dtype="float64", backend=STANDIN)
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        b.data = there.backend.asarray(a.data)
    tuned = [METHODS[name].apply(base) for base in (here, there)]
    for each in tuned:
        rng = np.random.default_rng(0)
        for p in each.parameters():
            if p.trainable:
                p.data = p.data + each.backend.asarray(0.1 * rng.standard_normal(tuple(p.data.shape)))
    loss, grads = tuned[0].loss_and_grads(tokens(), tokens(seed=6))
    other, theirs = tuned[1].loss_and_grads(tokens(), tokens(seed=6))
    assert other == pytest.approx(loss, rel=1e-9)
    for parameter, gradient in grads.items():
        assert error(tuned[1].backend.to_numpy(theirs[parameter]), gradient, floor=1e-6) < 1e-9
    merged = METHODS[name].merge(tuned[1])
    assert (
        error(merged.backend.to_numpy(merged.logits(tokens())), METHODS[name].merge(tuned[0]).logits(tokens())) < 1e-9
    )


def test_gradients_with_dropout_below_and_beside() -> None:
    """The adapter's dropout masks its own input only; an adapter below gets the gradient through both ways."""
    rng = np.random.default_rng(8)
    layer = Linear("it", rng.standard_normal((4, 3)), rng.standard_normal(3))
    layer.freeze()
    lora = lesson.LoRALinear(layer, rng.standard_normal((2, 4)), rng.standard_normal((3, 2)), 3.0, dropout=0.4)
    gpt = model()
    x, dy = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 5, 3))

    def run(x: np.ndarray) -> Any:
        ctx = gpt.context(grad=True, training=True, rng=gpt.backend.rng(3))
        ctx.needs_input_gradient(lora.lora_A)  # something below is trained
        return lora.forward(x, ctx)

    y, backward = run(x)
    plain = x @ layer.weight.data + layer.bias.data
    assert error(y, plain + 1.5 * x @ lora.lora_A.data.T @ lora.lora_B.data.T) > 1e-3
    grads = Gradients(lora.parameters(), gpt.backend)
    assert_gradient(backward(dy, grads), lambda x: run(x)[0], x, dy, "dx")
    for p in (lora.lora_A, lora.lora_B):
        value = p.data

        def with_value(moved: np.ndarray, p: Any = p) -> Any:
            p.data = moved
            return run(x)[0]

        assert_gradient(grads[p.name], with_value, value, dy, p.name)
        p.data = value
    assert error(lora.forward(x, gpt.context())[0], plain + 1.5 * x @ lora.lora_A.data.T @ lora.lora_B.data.T) < 1e-12


def test_the_first_step_moves_B_alone() -> None:
    tuned = METHODS["all"].apply(model())
    _, grads = tuned.loss_and_grads(tokens(), tokens(seed=6))
    for name, gradient in grads.items():
        assert gradient.any() == ("lora_B" in name), name


@pytest.mark.parametrize("name", METHODS)
def test_training_moves_adapters_and_nothing_else(name: str) -> None:
    base = model("float32")
    tuned = METHODS[name].apply(base)
    before = {p.name: p.data.copy() for p in tuned.parameters()}
    ids, targets = tokens(), tokens(seed=6)
    method = METHODS[name]
    batches = lambda step: {"ids": ids, "targets": targets}  # noqa: E731
    config = TrainConfig(steps=3, lr=1e-2, workers=1)
    history = method.fit(tuned, LanguageModelling(), batches, config)
    assert history.losses[-1] < history.losses[0]
    for p in tuned.parameters():
        assert (p.data != before[p.name]).any() == p.trainable, p.name


def test_loraplus_lets_B_learn_faster() -> None:
    tuned = METHODS["loraplus"].apply(model())
    (group,) = METHODS["loraplus"].groups(tuned)
    assert (group.pattern, group.lr_scale) == ("*.lora_B.weight", 16)
    steps = {}
    for method in (lesson.LoRA(r=2), METHODS["loraplus"]):
        tuned = method.apply(model())
        batches = lambda step: {"ids": tokens(), "targets": tokens(seed=6)}  # noqa: E731
        method.fit(tuned, LanguageModelling(), batches, TrainConfig(steps=1, lr=1e-3, weight_decay=0.0, workers=1))
        steps[method.name] = max(float(np.abs(p.data).max()) for p in tuned.parameters() if "lora_B" in p.name)
    assert steps["loraplus"] == pytest.approx(16 * steps["lora"], rel=1e-3)  # a first step of Adam is ±lr


# ---------------------------------------------------------------------------------------------- counts and costs


def test_closed_forms_of_the_counts() -> None:
    """512×64 at r = 8: 4,608 of 32,768, 86 % fewer; 1000×1000 at r = 2: 4,000 of a million."""
    rng = np.random.default_rng(0)
    for n_in, n_out, r, count in ((512, 64, 8, 4_608), (64, 512, 8, 4_608), (1000, 1000, 2, 4_000)):
        layer = Linear("it", np.zeros((n_in, n_out), "float32"), np.zeros(n_out, "float32"))
        lora = lesson.LoRA(r=r).wrap(layer, r, 16, model("float32"), rng)
        assert lora.lora_A.data.size + lora.lora_B.data.size == count
    assert round(1 - 4_608 / (512 * 64), 2) == 0.86
    C, L, r = 6, 2, 3
    counts = {
        ("c_attn",): L * r * 4 * C,
        ("attn.c_proj",): L * r * 2 * C,
        ("mlp.c_fc",): L * r * 5 * C,
        ("c_proj",): L * r * (2 + 5) * C,
        "all-linear": L * r * (4 + 2 + 5 + 5) * C,
    }
    for target, count in counts.items():
        assert n_trainable(lesson.LoRA(r=r, target_modules=target).apply(model())) == count
    assert n_trainable(lesson.DoRA(r=r).apply(model())) == counts[("c_attn",)] + L * 3 * C
    both = lesson.LoRA(r=2, enable_lora=[True, False, True]).apply(model())
    assert n_trainable(both) == L * 2 * 2 * (C + C)  # as many as r = 2 on the whole of c_attn: 4·C·r


def batch() -> dict[str, np.ndarray]:
    return {"ids": tokens(4, 8), "targets": tokens(4, 8, seed=6)}


@pytest.mark.parametrize("target", [["c_attn"], ["mlp.c_proj"], "all-linear"])
def test_no_gradient_is_made_for_what_is_frozen(target: Any) -> None:
    tuned = lesson.LoRA(r=2, target_modules=target).apply(model())
    adapters = len(lesson.adapted_layers(tuned))
    forward, backward = count_products(tuned, LanguageModelling(), batch())
    linears = 4 * tuned.config.n_layer
    assert forward.calls["linear_forward"] == linears + 2 * adapters + 1  # and the head
    assert backward.calls["linear_backward_weight"] == 2 * adapters
    whole, r = tuned.backend.to_numpy(batch()["ids"]).size, 2
    sizes = [layer.base_weight().shape for layer in lesson.adapted_layers(tuned).values()]
    assert backward.flops["linear_backward_weight"] == sum(2 * whole * r * (n_in + n_out) for n_in, n_out in sizes)


def test_q_and_v_cost_their_own_parts_only() -> None:
    tuned = METHODS["q and v"].apply(model())
    _, backward = count_products(tuned, LanguageModelling(), batch())
    N, C, r = 32, 6, 2
    assert backward.flops["linear_backward_weight"] == 2 * (2 * N * C * 2 * r + 2 * (2 * N * r * C))


def test_the_pass_ends_at_the_lowest_adapter() -> None:
    tuned = METHODS["upper block"].apply(model())
    _, backward = count_products(tuned, LanguageModelling(), batch())
    assert backward.calls["linear_backward_input"] == 2  # through the head, and to z
    assert "attention_backward" not in backward.calls


def kept(tuned: Any) -> int:
    ctx = tuned.context(grad=True, training=True, rng=tuned.backend.rng(0))
    data = batch()
    _, backward = LanguageModelling().forward(tuned, data, 32.0, ctx)
    return held_bytes(backward, [*(p.data for p in tuned.parameters()), *data.values()])


def test_only_x_and_z_are_kept() -> None:
    """c_attn in the last block: what attention and all above it keep anyway, LayerNorm's output x, and z."""
    base = model()
    base.freeze()
    base.unfreeze(["*h.1.attn.c_attn.bias"])  # needs the same pass, keeps nothing for a weight
    tuned = lesson.LoRA(r=2, layers_to_transform=[1]).apply(model())
    N, C, r = 32, 6, 2
    assert kept(tuned) - kept(base) == 8 * N * (C + r)


def test_lora_keeps_less_and_multiplies_less_than_full() -> None:
    full = model(n_embd=32)
    tuned = METHODS["all"].apply(full)
    costs = {
        name: sum(p.total for p in count_products(m, LanguageModelling(), batch()))
        for name, m in (("full", full), ("lora", tuned))
    }
    assert costs["lora"] < 0.8 * costs["full"]
    assert kept(tuned) < kept(full)


# ---------------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("name", METHODS)
def test_merged_is_a_plain_model_that_computes_the_same(name: str) -> None:
    base = model()
    method = METHODS[name]
    tuned = moved(method.apply(base))
    logits = tuned.logits(tokens())
    plain = method.merge(tuned)
    assert error(plain.logits(tokens()), logits) < 1e-12
    assert is_plain(plain)
    assert all(p.trainable for p in plain.parameters())
    assert (tuned.logits(tokens()) == logits).all()
    again = method.merge(tuned)
    assert all((a.data == b.data).all() for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    prompt = tokens(2, 3)
    assert (plain.generate(prompt, 4, temperature=0) == tuned.generate(prompt, 4, temperature=0)).all()
    with pytest.raises(InputError, match="no layer of this model has a LoRA adapter"):
        method.merge(plain)
    with pytest.raises(InputError, match="no layer of this model has a LoRA adapter"):
        method.merge(base)


def test_merged_in_float32() -> None:
    """To the rounding of float32: 1e-6 of the largest logit."""
    base = GPT(GPTConfig(vocab_size=V, n_positions=8, n_embd=32, n_layer=2, n_head=4), seed=3)
    method = lesson.LoRA(r=4, target_modules="all-linear")
    tuned = moved(method.apply(base))
    assert error(base.logits(tokens()), tuned.logits(tokens())) > 0.1
    assert error(method.merge(tuned).logits(tokens()), tuned.logits(tokens())) < 1e-6


def test_merging_a_classifier_is_refused() -> None:
    tuned = lesson.LoRA(r=2, n_labels=3).apply(model())
    with pytest.raises(InputError, match="classifier head"):
        lesson.LoRA().merge(tuned)
    assert is_plain(lesson.LoRA().merge(tuned.trunk))


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    base, method = model("float32"), METHODS[name]
    tuned = moved(method.apply(base))
    method.save(tuned, tmp_path / "it")
    back = type(method).load(base, tmp_path / "it")
    assert error(back.logits(tokens()), tuned.logits(tokens())) < 1e-6
    names = {p.name: p.data.shape for p in back.parameters() if p.trainable}
    if method.enable_lora is None:  # else it is saved as the equal LoRA of twice the rank
        assert names == {p.name: p.data.shape for p in tuned.parameters() if p.trainable}
        assert {n for n in names if "magnitude" not in n} == {
            f"{layer}.lora_{x}.weight" for layer in lesson.adapted_layers(tuned) for x in "AB"
        }
    plain = lesson.LoRA.load(base, tmp_path / "it")
    assert error(plain.logits(tokens()), tuned.logits(tokens())) < 1e-6
    lesson.LoRA().save(back, tmp_path / "again")  # the layers know what they are, whatever the settings
    assert error(type(method).load(base, tmp_path / "again").logits(tokens()), tuned.logits(tokens())) < 1e-6


def test_a_classifier_is_saved_with_its_head(tmp_path: Path) -> None:
    base = model("float32")
    method = lesson.DoRA(r=2, n_labels=3)
    tuned = moved(method.apply(base))
    lengths = np.array([3, 7, 5])
    method.save(tuned, tmp_path / "it")
    back = lesson.DoRA.load(base, tmp_path / "it")
    assert error(back.logits(tokens(), lengths), tuned.logits(tokens(), lengths)) < 1e-6
    tensors, _ = lora_files_tensors(tmp_path / "it")
    assert tensors["base_model.model.score.weight"].shape == (3, 18)  # torch's orientation
    config = json.loads((tmp_path / "it" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    labels = np.array([0, 2, 1])
    data = {"ids": tokens(), "lengths": lengths, "labels": labels}
    loss, grads = back.loss_and_grads(data["ids"], labels, lengths)
    assert set(grads) == trained_names(tuned)
    assert Classification().total(data) == 3
    assert math.isfinite(loss)


def lora_files_tensors(directory: Path) -> Any:
    from minigpt import files

    return files.load_tensors(directory / "adapter_model.safetensors")


def edited(directory: Path, to: Path, change: Any) -> Path:
    """A copy of an adapter directory with its config and tensors changed, without the checksum of ours."""
    from safetensors.numpy import save_file

    shutil.copytree(directory, to)
    tensors, _ = lora_files_tensors(to)
    config = json.loads((to / "adapter_config.json").read_text())
    change(config, tensors)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, to / "adapter_model.safetensors")
    (to / "adapter_config.json").write_text(json.dumps(config))
    return to


P = "base_model.model.transformer.h.0.attn.c_attn"
FAULTS: dict[str, tuple[Any, str]] = {
    "missing": (lambda c, t: t.pop(f"{P}.lora_B.weight"), r"missing: transformer\.h\.0\.attn\.c_attn\.lora_B\.weight"),
    "left over": (lambda c, t: t.update({f"{P}.lora_C.weight": np.ones(2)}), r"left over: .*lora_C"),
    "another layer": (
        lambda c, t: t.update({f"{P.replace('0', '7')}.lora_A.weight": np.ones((2, 6))}),
        r"left over: transformer\.h\.7",
    ),
    "prefix": (lambda c, t: t.update({P.removeprefix("base_model."): np.ones(2)}), "names must begin with"),
    "shape": (lambda c, t: t.update({f"{P}.lora_A.weight": np.ones((3, 6))}), r"is \(3, 6\) instead of \(2, 6\)"),
    "bias": (lambda c, t: c.update(bias="all"), "bias = 'all'"),
    "lora_bias": (lambda c, t: c.update(lora_bias=True), "lora_bias = True"),
    "modules_to_save": (lambda c, t: c.update(modules_to_save=["wpe"]), r"modules_to_save = \['wpe'\]"),
    "a head that is not there": (lambda c, t: c.update(modules_to_save=["score"]), "modules_to_save"),
    "olora": (lambda c, t: c.update(init_lora_weights="olora"), "init_lora_weights = 'olora'"),
    "pissa": (lambda c, t: c.update(init_lora_weights="pissa"), r"METHODS\['pissa'\]"),
    "exclude_modules": (lambda c, t: c.update(exclude_modules=["h.0.attn.c_attn"]), "exclude_modules = "),
    "unknown": (lambda c, t: c.update(use_something=1), "use_something = 1"),
    "another kind": (lambda c, t: c.update(peft_type="IA3"), "peft_type 'IA3', not 'LORA'"),
    "no rank": (lambda c, t: c.pop("r"), "lacks r"),
    "alpha": (lambda c, t: c.update(lora_alpha="much"), "lora_alpha is 'much'"),
    "regex": (lambda c, t: c.update(target_modules=".*c_attn"), "must be a list"),
    "rank_pattern": (lambda c, t: c.update(rank_pattern={"c_fc": 4}), "'c_fc', which fits none of the target layers"),
    "dora": (lambda c, t: c.update(use_dora=True), r"missing: .*lora_magnitude_vector"),
    "not finite": (lambda c, t: t.update({f"{P}.lora_A.weight": np.full((2, 6), np.nan)}), "nan"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "it"
    lesson.LoRA(r=2).save(moved(lesson.LoRA(r=2).apply(model("float32"))), directory)
    return directory


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(fault: str, saved: Path, tmp_path: Path) -> None:
    change, said = FAULTS[fault]
    path = edited(saved, tmp_path / "bad", change)
    with pytest.raises(InputError, match=said) as caught:
        lesson.LoRA.load(model("float32"), path)
    assert "\n" not in str(caught.value)


def test_settings_without_effect_are_no_obstacle(saved: Path, tmp_path: Path) -> None:
    """As peft writes them."""

    def change(config: dict[str, Any], tensors: Any) -> None:
        config.update(
            inference_mode=False, peft_version="0.19", revision=None, loftq_config={}, megatron_config=None,
            lora_dropout=0.1, init_lora_weights="gaussian", exclude_modules=None, runtime_config={"a": 1},
        )  # fmt: skip

    base = model("float32")
    loaded = lesson.LoRA.load(base, edited(saved, tmp_path / "it", change))
    assert error(loaded.logits(tokens()), lesson.LoRA.load(base, saved).logits(tokens())) == 0
    assert next(iter(lesson.adapted_layers(loaded).values())).drop.p == 0.1


def test_a_pissa_of_odd_rank_is_none(tmp_path: Path) -> None:
    lesson.LoRA(r=3).save(lesson.LoRA(r=3).apply(model()), tmp_path / "it")
    with pytest.raises(InputError, match="even ranks"):
        lesson.PiSSA.load(model(), tmp_path / "it")


def test_target_names_are_short_where_they_can_be(tmp_path: Path) -> None:
    for method, names in (
        (lesson.LoRA(r=1, target_modules=["c_proj"]), ["attn.c_proj", "mlp.c_proj"]),
        (lesson.LoRA(r=1, layers_to_transform=[1]), ["transformer.h.1.attn.c_attn"]),
    ):
        method.save(method.apply(model()), tmp_path / "it")
        assert json.loads((tmp_path / "it" / "adapter_config.json").read_text())["target_modules"] == names


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"r": 0}, r"r is 0; for transformer\.h\.0\.attn\.c_attn, a matrix of 6 × 18, it must be from 1 to 6"),
        ({"r": 7}, "r is 7; .* from 1 to 6"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": 7, "enable_lora": (True, False, True)}, "a matrix of 6 × 6, it must be from 1 to 6"),
        ({"rank_pattern": {"c_attn": 99}}, "r is 99"),
        ({"rank_pattern": {"c_fc": 2}}, "fits none of the target layers: transformer.h.0.attn.c_attn"),
        ({"target_modules": ["q_proj"]}, "'q_proj', which is no linear layer; there are attn.c_attn, attn.c_proj"),
        ({"target_modules": ["c_attn", "nowhere"]}, "'nowhere'"),
        ({"target_modules": ["attn"]}, "'attn', which is no linear layer"),
        ({"target_modules": ["wte"]}, "the token embedding is the output head too"),
        ({"target_modules": ["lm_head"]}, "the token embedding is the output head too"),
        ({"target_modules": "c_attn"}, "must be a list"),
        ({"target_modules": []}, "must be a list"),
        ({"layers_to_transform": [2]}, r"layers_to_transform is \[2\]; blocks are 0 to 1"),
        ({"lora_alpha": 0}, "lora_alpha is 0; it must be a number above 0"),
        ({"rank_pattern": {"c_attn(": 2}}, r"'c_attn\(', which is no regular expression"),
        ({"lora_dropout": "much"}, "lora_dropout is 'much'"),
        ({"alpha_pattern": {"c_attn": -1}}, "lora_alpha is -1"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"enable_lora": (False, False, False)}, "enables none"),
        ({"enable_lora": (True,) * 5}, "18 outputs, which are not 5 equal parts"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "cannot be combined"),
        ({"n_labels": 1}, "n_labels is 1"),
    ],
)
def test_impossible_settings_get_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        lesson.LoRA(**({"r": 2} | settings)).apply(model())
    assert "\n" not in str(caught.value)


def test_a_tuned_model_is_no_base() -> None:
    with pytest.raises(InputError, match="a method needs a plain GPT"):
        lesson.LoRA(r=2).apply(lesson.LoRA(r=2).apply(model()))


def test_registered() -> None:
    assert {name: REGISTRY[name] for name in ("lora", "rslora", "dora", "pissa", "loraplus")} == {
        "lora": lesson.LoRA, "rslora": lesson.RsLoRA, "dora": lesson.DoRA, "pissa": lesson.PiSSA,
        "loraplus": lesson.LoRAPlus,
    }  # fmt: skip
    assert lesson.LoRA(r=4).name == "lora"
    assert lesson.DoRA().name == "dora"


def test_the_seed_decides_about_A() -> None:
    first, again, other = (lesson.LoRA(r=2).apply(model(), seed=seed) for seed in (0, 0, 1))
    name = "transformer.h.0.attn.c_attn.lora_A.weight"
    values = [{p.name: p.data for p in tuned.parameters()}[name] for tuned in (first, again, other)]
    assert (values[0] == values[1]).all()
    assert (values[0] != values[2]).all()
    assert np.abs(values[0]).max() <= 6**-0.5


# ---------------------------------------------------------------------------------------------- several at once


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, dict[str, Any], Any]:
    base = model("float32")
    tuned = {
        "a": moved(lesson.LoRA(r=2).apply(base), 1),
        "b": moved(lesson.PiSSA(r=3, target_modules=["c_proj"]).apply(base), 2),
        "c": moved(lesson.LoRA(r=1, target_modules="all-linear", use_rslora=True).apply(base), 3),
    }
    directory = tmp_path_factory.mktemp("stack") / "c"
    lesson.LoRA().save(tuned["c"], directory)
    return base, tuned, lesson.stack_adapters(base, tuned | {"c": directory})


def test_every_row_has_its_own_adapter(three: Any) -> None:
    base, tuned, stack = three
    names = ["b", BASE, "a", "c", "a", BASE, "b"]
    ids = tokens(len(names), 6)
    logits = stack.logits(ids, names)
    alone = {BASE: base} | tuned
    for row, name in enumerate(names):
        assert error(logits[row], alone[name].logits(ids[row : row + 1])[0]) < 1e-5, name
    written = stack.generate(ids[:, :3], 4, names, temperature=0)
    for row, name in enumerate(names):
        assert (written[row] == alone[name].generate(ids[row : row + 1, :3], 4, temperature=0)[0]).all()
    assert error(stack.logits(ids, "b"), tuned["b"].logits(ids)) < 1e-5
    assert error(stack.logits(ids), base.logits(ids)) == 0


def test_rows_of_one_adapter_go_together(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, stack = three
    calls: list[int] = []
    forward = lesson.lora_forward
    monkeypatch.setattr(lesson, "lora_forward", lambda x, *rest: (calls.append(x.shape[0]), forward(x, *rest))[1])
    stack.logits(tokens(6), ["a", "b", "a", "b", "a", "a"])
    assert calls == [4, 2, 2] * 2  # in every block: a on c_attn, b on both c_proj


def test_adapters_are_swapped_and_dropped(three: Any) -> None:
    base, tuned, _ = three
    stack = lesson.stack_adapters(base, {"it": tuned["a"]})
    view = stack.using("it")
    stack.put("it", lesson.factors_of(tuned["c"], base))  # hot: with other layers and another rank
    assert error(view.logits(tokens()), tuned["c"].logits(tokens())) < 1e-5
    stack.put("sum", lesson.mix_adapters([lesson.factors_of(tuned[n], base) for n in "ab"], [1.0, 0.5]))
    wanted = base.copy()
    for p in wanted.parameters():
        for name, share in (("a", 1.0), ("b", 0.5)):
            factors = lesson.factors_of(tuned[name], base).get(p.name.removesuffix(".weight"))
            if factors is not None and p.name.endswith(".weight"):
                p.data = p.data + share * lesson.merge_delta(*factors)
    assert error(stack.logits(tokens(), "sum"), wanted.logits(tokens())) < 1e-5
    stack.drop("it")
    assert stack.names == [BASE, "sum"]
    for name, call in (
        ("it", lambda: stack.logits(tokens(), "it")),
        ("it", lambda: stack.drop("it")),
        (BASE, lambda: stack.drop(BASE)),
        (BASE, lambda: stack.put(BASE, {})),
    ):
        with pytest.raises(InputError, match=name):
            call()
    with pytest.raises(InputError, match="2 adapters for 3 rows"):
        stack.logits(tokens(3), ["sum", BASE])


def test_what_cannot_share_a_pass_is_refused(three: Any) -> None:
    base, _, stack = three
    with pytest.raises(InputError, match="DoRA rescales"):
        lesson.stack_adapters(base, {"d": lesson.DoRA(r=2).apply(base)})
    with pytest.raises(InputError, match="classifier"):
        lesson.stack_adapters(base, {"d": lesson.LoRA(r=2, n_labels=2).apply(base)})
    with pytest.raises(InputError, match="does not fit this base"):
        lesson.stack_adapters(base, {"d": lesson.LoRA(r=2).apply(model(n_embd=8))})
    view = stack.using("a")
    view.unfreeze(["*wte.weight"])
    with pytest.raises(RuntimeError, match="not trained"):
        view.loss_and_grads(tokens(), tokens())


# ---------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("case", ["patterns", "rslora", "dora"])
def test_peft_says_the_same(case: str, tmp_path: Path) -> None:
    """Logits, loss and gradients that peft gave; made by tests/parity/test_lesson_07_parity.py."""
    with np.load(GOLDEN) as stored:
        golden = dict(stored)
    weights = {name.removeprefix("base/"): array for name, array in golden.items() if name.startswith("base/")}
    base = GPT(GPTConfig(vocab_size=31, n_positions=11, n_embd=12, n_layer=2, n_head=3), dtype="float64")
    for p in base.parameters():
        p.data = weights[p.name]
    tensors = {n.split("/", 2)[2]: a for n, a in golden.items() if n.startswith(f"{case}/tensor/")}
    config = json.loads(str(golden[f"{case}/config"])) | {"peft_type": "LORA"}
    lesson.save_adapter(tmp_path / "it", config, tensors)
    tuned = lesson.LoRA.load(base, tmp_path / "it")
    ids, targets = golden["ids"], golden["targets"]
    assert error(tuned.logits(ids), golden[f"{case}/logits"]) < 1e-9
    loss, grads = tuned.loss_and_grads(ids, targets)
    assert loss == pytest.approx(float(golden[f"{case}/loss"]), rel=1e-12)
    assert set(grads) == set(tensors)
    for name, gradient in grads.items():
        assert error(gradient, golden[f"{case}/grad/{name}"]) < 1e-9, name


# ---------------------------------------------------------------------------------------------- wrong variants

WRONG: dict[str, dict[str, Any]] = {
    "lora_scaling": {
        "always α/r": lambda f: lambda r, alpha, rs=False: alpha / r,
        "α·r": lambda f: lambda r, alpha, rs=False: alpha * f(r, 1.0, rs) * r,
    },
    "lora_forward": {
        "unscaled": lambda f: lambda x, A, B, s, ops=linear: f(x, A, B, 1.0, ops),
        "z without s": lambda f: lambda x, A, B, s, ops=linear: (f(x, A, B, s, ops)[0], x @ A.T),
        "scaled twice": lambda f: lambda x, A, B, s, ops=linear: f(x, A, B, s * s, ops),
    },
    "lora_backward_z": {
        "no s": lambda f: lambda dy, B, s, ops=linear: f(dy, B, 1.0, ops),
        "negative": lambda f: lambda dy, B, s, ops=linear: -f(dy, B, s, ops),
    },
    "lora_backward_A": {
        "mean": lambda f: lambda dz, x, ops=linear, out=None: f(dz, x, ops, out) / x.shape[-1],
        "one row": lambda f: lambda dz, x, ops=linear, out=None: f(dz[:1], x[:1], ops, out),
    },
    "lora_backward_B": {"zero": lambda f: lambda dy, z, ops=linear, out=None: 0 * f(dy, z, ops, out)},
    "lora_backward_input": {"nothing": lambda f: lambda dz, A, ops=linear: 0 * f(dz, A, ops)},
    "merge_delta": {
        "no s": lambda f: lambda A, B, s, ops=linear: f(A, B, 1.0, ops),
        "minus": lambda f: lambda A, B, s, ops=linear: -f(A, B, s, ops),
    },
    "dora_norm": {
        "of the base": lambda f: lambda W, A, B, s, ops=linear: np.sqrt((W * W).sum(0)),
        "squared": lambda f: lambda W, A, B, s, ops=linear: f(W, A, B, s, ops) ** 2,
    },
    "dora_forward": {"no norm": lambda f: lambda h, m, n: h * m + 0 * n},
    "dora_backward": {
        "dm of y": lambda f: lambda dy, h, m, n: (f(dy, h, m, n)[0], f(dy, h, m, n)[1] * m),
        "dh unscaled": lambda f: lambda dy, h, m, n: (dy, f(dy, h, m, n)[1]),
    },
    "pissa_init": {
        "smallest": lambda f: lambda W, r, s: (f(W, min(W.shape), s)[0][-r:], f(W, min(W.shape), s)[1][:, -r:]),
        "no s": lambda f: lambda W, r, s: f(W, r, 1.0),
        "all in A": lambda f: lambda W, r, s: (2 * f(W, r, s)[0], f(W, r, s)[1] / 2),
    },
    "subspace_similarity": {
        "over the larger": lambda f: lambda A1, A2, i, j: f(A1, A2, i, j) * min(i, j) / max(i, j),
        "all directions": lambda f: lambda A1, A2, i, j: f(A1, A2, len(A1), len(A2)),
        "not squared": lambda f: lambda A1, A2, i, j: math.sqrt(f(A1, A2, i, j)),
    },
    "mix_cat": {
        "unweighted": lambda f: lambda fs, ws: f(fs, [1.0] * len(ws)),
        "scaling lost": lambda f: lambda fs, ws: f([x._replace(scaling=1.0) for x in fs], ws),
    },
    "mix_svd": {"smallest": lambda f: lambda fs, ws, r: _last(f(fs, ws, 4), r)},
}


def _last(f: lesson.Factors, rank: int) -> lesson.Factors:
    return lesson.Factors(f.A[-rank:], f.B[:, -rank:], f.scaling)


@pytest.mark.parametrize(("name", "how"), [(name, how) for name, ways in WRONG.items() for how in ways])
def test_a_wrong_variant_is_caught_by_the_lesson(
    name: str, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(lesson, name, WRONG[name][how](getattr(lesson, name)))
    run = Run(7, Settings(quick=True, brief=True), tmp_path)
    checks = derivation.derive(run, lesson.DERIVATIONS)
    assert [c for c in checks if c.verdict == "WRONG"]
    with pytest.raises(runner.RunError, match="wrong"):
        derivation.require(checks)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_written_yet_is_no_crash(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(lesson, name, todo)
    checks = derivation.derive(Run(7, Settings(quick=True, brief=True), tmp_path), lesson.DERIVATIONS)
    assert any(c.missing for c in checks)
    assert any(c.ok for c in checks)
    assert all(c.ok or c.missing for c in checks)


# ---------------------------------------------------------------------------------------------- the whole lesson


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")


def test_quick_lesson_does_all_that_it_promises(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for word in ("def lora_backward_A", "dB = dyᵀ z", "What a step costs", "one batch, a row each", "amplification"):
        assert word in printed
    assert "SOLUTION" not in printed
    record = json.loads((tmp_path / "lesson-07" / "record.json").read_text(encoding="utf-8"))
    figures = {name: each["values"][0] for name, each in record["figures"].items()}
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["lora_matrix_work"] < 1
    assert figures["lora_memory"] < 1
    assert figures["merged_difference"] < 1e-5
    for name in ("full fine-tuning", "LoRA", "rsLoRA", "DoRA", "PiSSA", "LoRA+"):
        assert figures[f"rewriting: {name}"] > 0
    assert record["pictures"] == [
        f"{name}.png" for name in ("rank", "matrices", "methods", "similarity", "updates", "spectrum")
    ]
    for name in record["pictures"]:
        pixels = imread(tmp_path / "lesson-07" / name)
        assert pixels.shape[1] > 1000
        assert float(pixels.std()) > 0.01
    step = record["results"]["step"]
    assert step["LoRA on all"]["measured_gradients"] < step["full fine-tuning"]["measured_gradients"] / 5


def test_lesson_on_the_users_own_labels(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(["red", "blue", "green", "old", "new"], 4)) + f" {i}" for i in range(60)]
    path = tmp_path / "mine.csv"
    rows = [f"{line},{'warm' if 'red' in line else 'cold'}" for line in lines]
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "lesson-07" / "record.json").read_text(encoding="utf-8"))
    assert any(name.endswith(": LoRA") for name in record["figures"])


def test_full_run_makes_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    small = replace(
        lora_study.QUICK,
        seeds=1,
        headline=2,
        targets=False,
        alphas=(),
        rate_factors=(),
        labelled=("full fine-tuning", "LoRA", "head only"),
    )
    monkeypatch.setattr(lora_study, "FULL", small)
    assert lesson.main(["--full", "--brief", "--out", str(tmp_path)]) == 0
    committed = json.loads((tmp_path / "records" / "lesson-07.json").read_text(encoding="utf-8"))
    assert committed["bands"]["rewriting: LoRA"]["seeds"] == 2
    assert len(set(committed["figures"]["rewriting: DoRA"]["values"])) == 2
    assert len(committed["results"]["rewriting"]["rank"]["1"]["loss"]) == 1


def test_core_and_full_train_alike() -> None:
    """The bands of a full run are for the core run: what both report, both do with the same budget."""
    for name in ("base", "tasks", "records", "budget", "label_steps", "rank", "scored"):
        assert getattr(lora_study.CORE, name) == getattr(lora_study.FULL, name), name
    assert set(lora_study.CORE.ranks) <= set(lora_study.FULL.ranks)
    assert max(lora_study.CORE.ranks) == max(lora_study.FULL.ranks)
    assert lora_study.FULL.headline >= 5
    assert lora_study.FULL.seeds >= 3


def test_bad_data_gets_one_line_and_code_2(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "one.csv"
    path.write_text("text,label\n" + "".join(f"a text {i},same\n" for i in range(40)), encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lesson 7: ")
    assert "at least two" in said


def test_backends_have_what_the_functions_ask_for() -> None:
    ops = get_backend("numpy").ops
    assert isinstance(ops, SimpleNamespace)
    x = np.ones((2, 3))
    assert lesson.lora_forward(x, np.ones((1, 3)), np.ones((4, 1)), 2.0, ops)[0].tolist() == [[6.0] * 4] * 2
    assert lora_files.linear_layers(model())[0] == "transformer.h.0.attn.c_attn"
