"""Lesson 12: levels, codes and scales, the layer that holds them, QLoRA's surface and files, and the lesson itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kernels import get_backend
from lessons import lesson_12_quantization as lesson
from lessons.common import runner
from lessons.common.measure import held_bytes, step_cost
from lessons.common.method import n_trainable
from lessons.lesson_07_lora import LoRA, LoRALinear
from minigpt import GPT, GPTConfig, InputError
from minigpt.context import Context
from minigpt.layers import Linear
from minigpt.objectives import LanguageModelling
from minigpt.parameters import Gradients, Parameter
from minigpt.training import TrainConfig, train
from tests.helpers import assert_gradient, error
from tests.standin import BACKEND as STANDIN

NUMPY = get_backend("numpy")
GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "quantization.npz")
QLoRA = lesson.QLoRA
FORMATS = [(kind, double) for kind in lesson.CODEBOOKS for double in (False, True)]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tiny(seed: int = 0, dtype: str = "float64", backend: Any = "numpy", **settings: Any) -> GPT:
    config = {"vocab_size": 9, "n_positions": 6, "n_embd": 6, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    return GPT(GPTConfig(**config | settings), seed=seed, dtype=dtype, backend=backend)


def batches(step: int) -> dict[str, np.ndarray]:
    ids, targets = np.random.default_rng(step).integers(0, 9, (2, 4, 6))
    return {"ids": ids, "targets": targets}


def moved(tuned: Any, seed: int = 5) -> Any:
    """The model with its adapters away from B = 0."""
    rng = np.random.default_rng(seed)
    for p in tuned.parameters():
        if p.trainable:
            p.data = tuned.backend.asarray(0.3 * rng.standard_normal(tuple(p.data.shape)).astype(tuned.dtype))
    return tuned


# ---------------------------------------------------------------------------------------------- levels

PUBLISHED = [
    -1, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0, 0.07958030, 0.16093020,
    0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1,
]  # fmt: skip


def test_nf4_levels_are_the_published_ones() -> None:
    levels = lesson.nf4_codebook()
    assert pytest.approx(0.9677083, abs=1e-7) == lesson.NF4_OFFSET
    assert np.abs(levels - PUBLISHED).max() < 1e-6
    assert ((levels < 0).sum(), (levels == 0).sum(), (levels > 0).sum()) == (7, 1, 8)
    assert np.abs(levels - GOLDEN["nf4_levels"]).max() < 1e-6


def test_other_levels() -> None:
    assert np.abs(lesson.fp4_codebook() - GOLDEN["fp4_levels"]).max() < 1e-7
    assert np.abs(lesson.dynamic_codebook() - GOLDEN["dynamic_levels"]).max() < 1e-7
    assert np.allclose(lesson.integer_codebook(4) * 7, np.arange(-7, 8))
    assert len(lesson.integer_codebook(8)) == 255
    for bits, book in lesson.CODEBOOKS.values():
        assert (np.diff(book()) >= 0).all()
        assert len(book()) <= 2**bits
        assert (book().min(), book().max()) == (-1, 1)
        assert 0 in book()


# ---------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_bytes_and_numbers_of_bitsandbytes(kind: str, double: bool) -> None:
    x, name = GOLDEN["x"], kind + ("_double" if double else "")
    layer = lesson.QuantizedLinear(Linear("it", x.reshape(1, -1), np.zeros(len(x), np.float32)), kind, 64, double)
    if kind == "nf4":
        assert np.array_equal(layer.codes.data, GOLDEN[f"{name}_codes"])
    if double:
        assert error(layer.absmax.data, GOLDEN[f"{name}_scales"]) < 1e-6
        assert (layer.absmax_codes.data != GOLDEN[f"{name}_absmax"]).sum() <= 1  # the mean is summed in another order
        assert error(layer.weight.data.reshape(-1), GOLDEN[f"{name}_dense"]) < 1e-3
    else:
        assert np.array_equal(layer.absmax.data, GOLDEN[f"{name}_absmax"])
        assert error(layer.weight.data.reshape(-1), GOLDEN[f"{name}_dense"]) < 1e-6


@pytest.mark.parametrize("kind", lesson.CODEBOOKS)
@pytest.mark.parametrize(("n", "blocksize"), [(1, 64), (64, 64), (130, 64), (7, 1), (50, 1000), (96, 32)])
def test_codes_are_nearest_and_blocks_are_on_their_own(kind: str, n: int, blocksize: int) -> None:
    x, levels = draw(n), lesson.CODEBOOKS[kind][1]()
    codes, absmax = lesson.quantize_blocks(x, levels, blocksize)
    assert codes.dtype == np.uint8
    assert absmax.dtype == np.float32
    assert absmax.shape == (-(-n // blocksize),)
    again = lesson.dequantize_blocks(codes, absmax, levels, blocksize)
    for start, scale in zip(range(0, n, blocksize), absmax, strict=True):
        block = x[start : start + blocksize]
        assert scale == pytest.approx(np.abs(block).max(), rel=1e-6)
        distances = np.abs(block[:, None] - levels * scale)
        assert np.abs(np.abs(block - again[start : start + blocksize]) - distances.min(1)).max() < 1e-6
    assert again[np.abs(x).argmax()] == pytest.approx(x[np.abs(x).argmax()], rel=1e-6)  # the largest is a level


def test_between_two_levels_the_lower_one_is_taken() -> None:
    codes, _ = lesson.quantize_blocks(np.array([1, 0.25, -0.25, 0]), np.array([-1, -0.5, 0, 0.5, 1]), 4)
    assert codes.tolist() == [4, 2, 1, 2]


def test_zeros_stay_zeros() -> None:
    for kind, double in FORMATS:
        weight = np.zeros((3, 64))
        weight[1] = draw(64)
        weight[1, ::2] = 0
        layer = lesson.QuantizedLinear(Linear("it", weight, np.zeros(64)), kind, 64, double)
        assert np.isfinite(layer.weight.data).all()
        assert (layer.weight.data[1, ::2] == 0).all(), (kind, double)
        if not double:
            assert (layer.weight.data[[0, 2]] == 0).all()


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
def test_nibbles(n: int) -> None:
    codes = np.random.default_rng(n).integers(0, 16, n).astype(np.uint8)
    packed = lesson.pack_nibbles(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == ((n + 1) // 2,)
    assert np.array_equal(lesson.unpack_nibbles(packed, n), codes)
    assert lesson.pack_nibbles(np.array([1, 2, 15], np.uint8)).tolist() == [0x12, 0xF0]


def test_double_quantisation_is_close_and_exact_where_it_can_be() -> None:
    book = lesson.dynamic_codebook()
    scales = np.exp(draw(600) / 4).astype(np.float32)
    codes, absmax, offset = lesson.double_quantize(scales, book)
    assert (codes.shape, absmax.shape, offset.shape) == ((600,), (3,), (1,))
    assert codes.dtype == np.uint8
    again = lesson.double_dequantize(codes, absmax, offset, book)
    assert np.abs(again - scales).max() < 0.01 * np.abs(scales - scales.mean()).max()
    same = lesson.double_dequantize(*lesson.double_quantize(np.full(5, 0.7, np.float32), book), book)
    assert np.allclose(same, 0.7, rtol=1e-6)


def test_bits_and_errors_of_the_reference() -> None:
    x = draw(256, 256) * 0.02
    found = {form.name: lesson.relative_error(x, form) for form in lesson.FORMATS}
    assert found["NF4"] == pytest.approx(0.0920, abs=4e-4)
    assert found["NF4 + double quantisation"] == pytest.approx(found["NF4"], rel=2e-3)
    assert found["FP4"] == pytest.approx(0.122, abs=1e-3)
    assert found["int4"] == pytest.approx(0.107, abs=2e-3)
    assert (
        found["int8"]
        < found["int8, a scale a row"]
        < 0.01
        < found["NF4"]
        < found["int4"]
        < found["int4, a scale a row"]
    )
    layer = Linear("it", np.zeros((256, 256), np.float32), np.zeros(256, np.float32))

    def bits(kind: str, blocksize: int | None, double: bool) -> float:
        return lesson.QuantizedLinear(layer, kind, blocksize, double).bits_per_weight

    assert bits("nf4", 64, False) == 4 + 32 / 64
    assert bits("nf4", 64, True) == 4 + 8 / 64 + 32 / (64 * 256) + 32 / 256**2  # the last: one offset a matrix
    assert bits("int8", None, False) == 8 + 32 / 256


def test_a_scale_for_each_row_is_a_block_of_its_width() -> None:
    weight = draw(5, 7)
    layer = lesson.QuantizedLinear(Linear("it", weight, np.zeros(7)), "int8", None, False)
    scales = np.abs(weight).max(1)
    assert error(layer.absmax.data, scales) < 1e-6
    assert np.abs(layer.weight.data - np.round(weight / scales[:, None] * 127) / 127 * scales[:, None]).max() < 1e-6


# ---------------------------------------------------------------------------------------------- the layer


def run_layer(layer: Any, x: np.ndarray, dy: np.ndarray, below: bool = True) -> tuple[Any, Any, Any]:
    ctx = Context(NUMPY, grad=True)
    ctx.needs_input_gradient(Parameter("below", x, trainable=below))
    y, backward = layer.forward(x, ctx)
    grads = Gradients(layer.parameters(), NUMPY)
    return y, backward(dy, grads), grads


@pytest.mark.parametrize(("kind", "double"), FORMATS)
@pytest.mark.parametrize(("shape", "n_out"), [((2, 3, 5), 7), ((4, 1), 1), ((1, 8), 16)])
def test_layer_backward(kind: str, double: bool, shape: tuple[int, ...], n_out: int) -> None:
    layer = lesson.QuantizedLinear(Linear("it", draw(shape[-1], n_out), draw(n_out, seed=1)), kind, 8, double)
    x, dy = draw(*shape, seed=2), draw(*shape[:-1], n_out, seed=3)
    y, dx, grads = run_layer(layer, x, dy)
    assert error(y, x @ layer.weight.data + layer.bias.data) < 1e-13
    assert_gradient(dx, lambda x: run_layer(layer, x, dy)[0], x, dy)
    assert error(grads["it.bias"], dy.reshape(-1, n_out).sum(0)) < 1e-13
    assert run_layer(layer, x, dy, below=False)[1] is None


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_no_dense_weight_is_kept(kind: str) -> None:
    layer = lesson.QuantizedLinear(Linear("it", draw(64, 96), draw(96)), kind, 64, True)
    layer.freeze()
    ctx = Context(NUMPY, grad=True)
    ctx.needs_input_gradient(Parameter("below", draw(1)))
    _, backward = layer.forward(draw(3, 64), ctx)
    assert held_bytes(backward, [p.data for p in layer.parameters()]) == 0
    held = [v for v in vars(layer).values() if isinstance(v, np.ndarray)]
    held += [p.data for p in layer.parameters()]
    assert sum(a.nbytes for a in held) < 64 * 96 * 1.3 + 8 * (255 + 256 + 96)  # codes, scales, levels, bias


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_type": "nf3"}, "quant_type is 'nf3'; there are nf4, fp4, int4, int8"),
        ({"blocksize": 0}, "blocksize is 0; it must be a whole number of 1 or more"),
        ({"blocksize": 6.4}, "blocksize is 6.4"),
        ({"blocksize": None}, "blocksize is None"),
        ({"use_dora": True}, "qlora cannot be combined"),
        ({"init_lora_weights": "pissa"}, "qlora cannot be combined"),
        ({"enable_lora": (True, False, True)}, "qlora cannot be combined"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        QLoRA(**settings)


def test_impossible_requests() -> None:
    with pytest.raises(InputError, match=r"r is 7; for transformer\.h\.0\.attn\.c_attn"):
        QLoRA(r=7).apply(tiny())
    with pytest.raises(InputError, match="target_modules has 'nothing'"):
        QLoRA(target_modules=["nothing"]).apply(tiny())
    with pytest.raises(InputError, match="has been changed"):
        lesson.quantized(lesson.quantized(tiny()))
    method = QLoRA(r=2)
    with pytest.raises(InputError, match="no layer of this model has a LoRA adapter"):
        method.merge(method.merge(method.apply(tiny())))
    with pytest.raises(InputError, match="no layer of this model has a LoRA adapter"):
        method.merge(lesson.quantized(tiny()))
    with pytest.raises(InputError, match="cannot become a plain GPT"):
        method.merge(replace(method, n_labels=2).apply(tiny()))


# ---------------------------------------------------------------------------------------------- QLoRA


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("int8", True)])
def test_every_gradient_of_a_whole_model(kind: str, double: bool) -> None:
    base = tiny(n_layer=1, initializer_range=0.1)
    tuned = moved(QLoRA(r=2, lora_alpha=1, quant_type=kind, double_quant=double, blocksize=16).apply(base))
    batch = batches(0)
    _, grads = tuned.loss_and_grads(batch["ids"], batch["targets"])
    trained = [p for p in tuned.parameters() if p.trainable]
    assert set(grads) == {p.name for p in trained}
    assert "transformer.h.0.attn.c_attn.lora_A.weight" in grads
    for p in trained[:3] if kind != "nf4" else trained:
        data = p.data

        def loss(value: np.ndarray, p: Parameter = p) -> float:
            p.data = value
            return tuned.loss_and_grads(batch["ids"], batch["targets"])[0]

        assert_gradient(grads[p.name], loss, data, 1.0, p.name)
        p.data = data


def test_it_is_lora_on_the_dequantised_base() -> None:
    base, batch = tiny(), batches(0)
    dense = base.copy()
    quantized = {layer.name: layer for _, layer in lesson.quantized(base).layers() if hasattr(layer, "bits_per_weight")}
    dense.replace("h.*.c_*", lambda layer, _: quantized[layer.name].dense())
    wanted = moved(LoRA(r=2, target_modules="all-linear").apply(dense))
    tuned = moved(QLoRA(r=2).apply(base))
    assert error(tuned.logits(batch["ids"]), wanted.logits(batch["ids"])) < 1e-12
    (loss, grads), (other, others) = (m.loss_and_grads(batch["ids"], batch["targets"]) for m in (tuned, wanted))
    assert loss == pytest.approx(other, rel=1e-12)
    assert grads.keys() == others.keys()
    assert all(error(grads[name], others[name]) < 1e-10 for name in grads)
    assert (
        error(
            tuned.logits(batch["ids"]), moved(LoRA(r=2, target_modules="all-linear").apply(base)).logits(batch["ids"])
        )
        > 1e-3
    )


def test_all_linear_layers_are_quantised_and_nothing_else() -> None:
    base = tiny()
    tuned = QLoRA(r=2, target_modules=["c_attn"]).apply(base)
    for block in tuned.h:
        assert type(block.attn.c_attn) is LoRALinear
        assert type(block.attn.c_attn.base) is lesson.QuantizedLinear
        for layer in (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            assert type(layer) is lesson.QuantizedLinear
    kept = {p.name: p.data for p in tuned.parameters()}
    for p in base.parameters():
        if not (p.name.endswith("weight") and ".c_" in p.name):
            assert kept[p.name] is p.data, p.name
    assert not any(p.trainable for p in tuned.parameters() if ".lora_" not in p.name)


def test_trainable_parameters_are_loras() -> None:
    base, C, r = tiny(), 6, 2
    closed = 2 * r * ((C + 3 * C) + (C + C) + (C + 4 * C) + (4 * C + C))
    assert n_trainable(QLoRA(r=r).apply(base)) == closed
    assert n_trainable(LoRA(r=r, target_modules="all-linear").apply(base)) == closed
    assert n_trainable(QLoRA(r=r, n_labels=3).apply(base)) == closed + 3 * C * 3 + 3


def test_weights_fall_and_the_rest_stays() -> None:
    base = tiny(dtype="float32", n_embd=64, vocab_size=16)
    batch = {name: array % 16 for name, array in batches(0).items()}
    lora, qlora = (
        step_cost(m.apply(base), LanguageModelling(), batch, repeats=1)
        for m in (LoRA(r=2, target_modules="all-linear"), QLoRA(r=2))
    )
    dense = 2 * 12 * 64 * 64
    packed = dense / 2 + dense / 64 + 2 * 4 * (4 + 4) + 4 * dense / 64 / 256
    assert lora.weights - qlora.weights == pytest.approx(4 * dense - packed, abs=8 * 8)
    assert (qlora.gradients, qlora.optimizer, qlora.activations) == (lora.gradients, lora.optimizer, lora.activations)
    assert (qlora.forward, qlora.backward) == (lora.forward, lora.backward)
    assert qlora.measured_activations < 1.05 * lora.measured_activations + 4096


@pytest.mark.parametrize("workers", [1, 2])
def test_training_leaves_the_codes_as_they_are(workers: int) -> None:
    base = tiny(dtype="float32")
    before = {name: array.copy() for name, array in base.state().items()}
    tuned = QLoRA(r=2).apply(base)
    frozen = {p.name: p.data.copy() for p in tuned.parameters() if not p.trainable}
    config = TrainConfig(15, lr=3e-2, workers=workers)
    history = train(tuned, LanguageModelling(), lambda step: batches(0), config, progress=False)
    assert history.losses[-1] < history.losses[0]
    assert all((p.data == frozen[p.name]).all() for p in tuned.parameters() if not p.trainable)
    assert all((array == before[name]).all() for name, array in base.state().items())


def test_merged_into_the_dequantised_base() -> None:
    base, ids = tiny(), batches(0)["ids"]
    for targets in ("all-linear", ["c_attn"]):
        method = QLoRA(r=2, target_modules=targets)
        tuned = moved(method.apply(base))
        logits = tuned.logits(ids)
        plain = method.merge(tuned)
        assert type(plain.h[0].mlp.c_fc) is Linear
        assert all(p.trainable for p in plain.parameters())
        assert plain.state().keys() == base.state().keys()
        assert error(plain.logits(ids), logits) < 1e-12
        assert error(tuned.logits(ids), logits) == 0  # is left as it was
        again = lesson.quantized(plain)
        assert error(again.logits(ids), logits) > 1e-3  # why it is never quantised again


def test_the_three_ways_to_merge_are_what_they_say() -> None:
    base, ids, method = tiny(), batches(0)["ids"], QLoRA(r=2)
    tuned = moved(method.apply(base))
    plain = LoRA(r=2, target_modules="all-linear")
    merged = lesson.merge_three_ways(base, method, tuned, lambda model: model.logits(ids))  # type: ignore[arg-type]
    as_it_is, dequantised, original, again = merged.values()
    assert error(dequantised, as_it_is) < 1e-12
    assert error(original, plain.merge(moved(plain.apply(base))).logits(ids)) < 1e-12
    assert error(again, lesson.quantized(method.merge(tuned)).logits(ids)) == 0


def test_quantising_what_was_dequantised_gives_the_same_codes() -> None:
    first = lesson.QuantizedLinear(Linear("it", draw(8, 64), np.zeros(64)), "nf4", 64, False)
    again = lesson.QuantizedLinear(first.dense(), "nf4", 64, False)
    assert np.array_equal(first.codes.data, again.codes.data)


def test_saved_and_loaded(tmp_path: Path) -> None:
    base, ids = tiny(dtype="float32"), batches(0)["ids"]
    for settings in ({}, {"quant_type": "int8", "double_quant": False, "blocksize": 16, "target_modules": ["c_fc"]}):
        method = QLoRA(r=2, lora_alpha=5, **settings)
        tuned = moved(method.apply(base))
        QLoRA().save(tuned, tmp_path / "it")  # whatever the object's settings
        names = {path.name for path in (tmp_path / "it").iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "quantization.json"}
        again = QLoRA.load(base, tmp_path / "it")
        assert (again.logits(ids) == tuned.logits(ids)).all()
    with pytest.raises(InputError, match=r"quantised base: load it with METHODS\['qlora'\]"):
        LoRA.load(base, tmp_path / "it")
    LoRA(r=2).save(LoRA(r=2).apply(base), tmp_path / "it")  # takes its place, and leaves nothing of it behind
    assert LoRA.load(base, tmp_path / "it").logits(ids).shape == tuned.logits(ids).shape
    labelled = moved(QLoRA(r=2, n_labels=3).apply(base))
    QLoRA().save(labelled, tmp_path / "labelled")
    assert (QLoRA.load(base, tmp_path / "labelled").logits(ids) == labelled.logits(ids)).all()


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    base = tiny(dtype="float32")
    LoRA(r=2).save(LoRA(r=2).apply(base), tmp_path / "lora")
    with pytest.raises(InputError, match=r"quantization\.json"):
        QLoRA.load(base, tmp_path / "lora")
    QLoRA(r=2).save(QLoRA(r=2).apply(base), tmp_path / "it")
    path = tmp_path / "it" / "quantization.json"
    stored = json.loads(path.read_text())
    for change, said in (
        ({"bits": 4}, "settings missing or unknown: bits"),
        ({"quant_type": "nf3"}, "quant_type is 'nf3'"),
    ):
        path.write_text(json.dumps(stored | change))
        with pytest.raises(InputError, match=said):
            QLoRA.load(base, tmp_path / "it")
    path.write_text(json.dumps({"quant_type": "nf4"}))
    with pytest.raises(InputError, match="blocksize, double_quant"):
        QLoRA.load(base, tmp_path / "it")


def test_generates_and_classifies() -> None:
    tuned = moved(QLoRA(r=2).apply(tiny(dtype="float32")))
    plain = QLoRA().merge(tuned)
    ids = batches(0)["ids"][:, :3]
    assert np.array_equal(tuned.generate(ids, 3, temperature=0), plain.generate(ids, 3, temperature=0))
    labelled = QLoRA(r=2, n_labels=3).apply(tiny(dtype="float32"))
    assert labelled.logits(ids).shape == (4, 3)
    _, grads = labelled.loss_and_grads(ids, np.array([0, 1, 2, -100]))
    assert "score.weight" in grads


def test_the_same_on_another_array_library() -> None:
    batch = batches(0)
    for kind, double in FORMATS:
        method = QLoRA(r=2, quant_type=kind, double_quant=double)
        here, there = (moved(method.apply(tiny(backend=b))) for b in ("numpy", STANDIN))
        loss, grads = here.loss_and_grads(batch["ids"], batch["targets"])
        other, others = there.loss_and_grads(batch["ids"], batch["targets"])
        assert other == pytest.approx(loss, rel=1e-9)
        assert all(error(others[name].get(), g, floor=1e-6) < 1e-7 for name, g in grads.items())
        assert method.merge(there).logits(batch["ids"]).shape == (4, 6, 9)


# ---------------------------------------------------------------------------------------------- wrong solutions


def verdicts() -> list[str]:
    return [c.verdict for d in lesson.DERIVATIONS for c in d.check(NUMPY)]


RIGHT: dict[str, Callable[..., Any]] = {
    name: getattr(lesson, name)
    for name in (
        "nf4_codebook", "quantize_blocks", "dequantize_blocks", "pack_nibbles", "unpack_nibbles", "double_quantize",
        "double_dequantize",
    )
}  # fmt: skip


def eight_negative() -> np.ndarray:
    return -RIGHT["nf4_codebook"]()[::-1]


def averaged_quantiles() -> np.ndarray:  # the paper's equation 4, which is not what is published as NF4
    quantile = lesson.NormalDist().inv_cdf
    levels = np.array([(quantile(i / 17) + quantile((i + 1) / 17)) / 2 for i in range(1, 16)] + [0.0])
    return np.sort(levels) / np.abs(levels).max()


def one_scale(x: np.ndarray, book: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    codes, absmax = RIGHT["quantize_blocks"](x, book, len(x))
    return codes, np.repeat(absmax, -(-len(x) // blocksize))


def signed_scale(x: np.ndarray, book: np.ndarray, blocksize: int) -> tuple[np.ndarray, np.ndarray]:
    codes, absmax = RIGHT["quantize_blocks"](np.maximum(x, 0), book, blocksize)
    return codes, absmax


WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "eight negative levels": ("nf4_codebook", eight_negative),
    "the paper's averages": ("nf4_codebook", averaged_quantiles),
    "even levels": ("nf4_codebook", lambda: np.linspace(-1, 1, 16)),
    "one scale for all": ("quantize_blocks", one_scale),
    "negative ones lost": ("quantize_blocks", signed_scale),
    "rounded down": (
        "quantize_blocks",
        lambda x, book, n: (
            np.maximum(RIGHT["quantize_blocks"](x, book, n)[0], 1) - 1,
            RIGHT["quantize_blocks"](x, book, n)[1],
        ),
    ),
    "scale forgotten": (
        "dequantize_blocks",
        lambda c, a, book, n: RIGHT["dequantize_blocks"](c, np.ones_like(a), book, n),
    ),
    "scale applied twice": ("dequantize_blocks", lambda c, a, book, n: RIGHT["dequantize_blocks"](c, a * a, book, n)),
    "low half first": ("pack_nibbles", lambda c: RIGHT["pack_nibbles"](c) // 16 + RIGHT["pack_nibbles"](c) % 16 * 16),
    "halves swapped": ("unpack_nibbles", lambda p, n: RIGHT["unpack_nibbles"](p // 16 + p % 16 * 16, n)),
    "mean left in": (
        "double_quantize",
        lambda a, book: (*RIGHT["quantize_blocks"](a, book, 256), np.zeros(1, np.float32)),
    ),
    "mean not added again": ("double_dequantize", lambda c, s, o, book: RIGHT["double_dequantize"](c, s, 0 * o, book)),
}


def test_right_solutions_pass() -> None:
    assert set(verdicts()) == {"ok"}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_solutions_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = WRONG[name]
    monkeypatch.setattr(lesson, function, wrong)
    assert "WRONG" in verdicts()


@pytest.mark.parametrize("function", RIGHT)
def test_what_is_not_written_yet_is_no_crash(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(lesson, function, todo)
    assert set(verdicts()) == {"not written yet", "ok"}


# ---------------------------------------------------------------------------------------------- the whole lesson


@pytest.fixture(autouse=True)
def no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")


def test_quick_lesson_does_all_that_it_promises(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for text in ("def nf4_codebook", "def double_quantize", "bits a weight", "qlora", "into the dequantised base"):
        assert text in printed
    assert "SOLUTION" not in printed
    record = json.loads((tmp_path / "lesson-12" / "record.json").read_text(encoding="utf-8"))
    figures = {name: f["values"][0] for name, f in record["figures"].items()}
    assert figures["int8_error"] < figures["nf4_error"] < figures["int4_error"]
    assert 4.12 < figures["bits_with_double_quantisation"] < 4.2
    assert figures["weight_memory_saved"] > 0.2
    merges = record["results"]["merges"][0]
    assert merges["into the dequantised base"] == pytest.approx(merges["not merged"], rel=1e-5)
    assert record["pictures"] == ["levels.png", "formats.png", "methods.png", "memory.png"]
    for name in record["pictures"]:
        pixels = imread(tmp_path / "lesson-12" / name)
        assert pixels.shape[1] > 1000
        assert float(pixels.std()) > 0.01


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick run has looked at them; drawing is half of a run's time."""
    monkeypatch.setattr(runner.Run, "picture", lambda run, name, figure: None)


@pytest.mark.usefixtures("no_pictures")
def test_full_run_makes_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(lesson, "CORE", replace(lesson.QUICK, tasks=("translation",)))
    monkeypatch.setattr(lesson, "SEEDS", 2)
    assert lesson.main(["--full", "--brief", "--seed", "3", "--out", str(tmp_path)]) == 0
    assert "NF4, blocks of 256" in capsys.readouterr().out
    record = json.loads((tmp_path / "records" / "lesson-12.json").read_text(encoding="utf-8"))
    for name in ("full_on_translation", "lora_on_translation", "qlora_on_translation"):
        assert len(record["figures"][name]["values"]) == record["bands"][name]["seeds"] == 2
    errors = {row["name"]: row["error"] for row in record["results"]["formats"]}
    assert errors["NF4, blocks of 16"] < errors["NF4"] < errors["NF4, blocks of 1024"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_lesson_on_ones_own_data(kind: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / f"mine.{kind}"
    rows = [(f"the {word} cat sees {n} dogs", word) for n in range(25) for word in ("red", "blue")]
    if kind == "csv":
        path.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in rows), encoding="utf-8")
    else:
        lines = (json.dumps({"prompt": text, "completion": f" {label}"}) for text, label in rows)
        path.write_text("\n".join(lines), encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    assert "mine" in capsys.readouterr().out


def test_data_that_cannot_be_used_gets_one_line(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--brief", "--data", str(tmp_path / "none.csv"), "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("lesson 12: ")
    assert "none.csv" in message
