"""Lesson 9: prompt tuning, prefix tuning and embedding rows; their gradients, files, starts, and the lesson itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kernels import Backend
from lessons import lesson_09_soft_prompts as lesson
from lessons.common import prompt_study as study
from lessons.common import prompts, runner
from lessons.common.classifier import Classification, Classifier
from lessons.common.method import Method, n_trainable
from lessons.common.runner import Run, Settings
from lessons.common.tasks import load_task, own_task, require_pairs
from lessons.common.tuning import Budget, fine_tune
from lessons.lesson_09_soft_prompts import (
    EmbeddingRows,
    PrefixTuning,
    PromptTuning,
    class_label_init,
    keys_and_values,
    majority,
    nearest_tokens,
    prefix_backward,
    prefix_forward,
    prepend_backward,
    prepend_forward,
    prompt_bank,
    sample_vocab_init,
    text_init,
    token_pool,
)
from minigpt import GPT, GPTConfig, bases, files
from minigpt.data import DataSet, Example
from minigpt.heads import lm_loss
from minigpt.objectives import LanguageModelling
from minigpt.training import TrainConfig, train
from tests.helpers import assert_gradient, error
from tests.standin import BACKEND as STANDIN

V, C, H, L, N_POSITIONS = 23, 6, 2, 2, 16
B, T = 3, 5
GOLDEN = Path(__file__).parent.parent / "golden"
XS = str(bases.path("base-xs"))


def tiny(seed: int = 0, dtype: str = "float64", backend: str | Backend = "numpy", **settings: Any) -> GPT:
    """A model with random biases and gains: zeros and ones would hide mistakes."""
    config = {"vocab_size": V, "n_positions": N_POSITIONS, "n_embd": C, "n_layer": L, "n_head": H} | settings
    model = GPT(GPTConfig(**config), seed=seed, dtype=dtype, backend=backend)
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        gain = 1.0 if p.data.ndim == 1 and p.name.endswith("weight") else 0.0
        scale = (
            1.0 if p.name in (lesson.WTE, "transformer.wpe.weight") else 0.3
        )  # LayerNorm bends small vectors sharply
        p.data = model.backend.asarray((gain + scale * rng.standard_normal(p.data.shape)).astype(dtype))
    return model


def batch(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, V, (B, T))
    targets[rng.random((B, T)) < 0.3] = -100
    return {"ids": rng.integers(0, V, (B, T)), "targets": targets}


METHODS: dict[str, Callable[[], Method]] = {
    "prompt": lambda: PromptTuning(num_virtual_tokens=4),
    "one vector": lambda: PromptTuning(num_virtual_tokens=1, prompt_tuning_init="RANDOM"),
    "prefix": lambda: PrefixTuning(num_virtual_tokens=3),
    "zero prefix": lambda: PrefixTuning(num_virtual_tokens=1, init_weights="zero"),
    "rows": lambda: EmbeddingRows(token_indices=(2, 5, 7)),
    "all rows": lambda: EmbeddingRows(),
}
COUNTS = {
    "prompt": 4 * C,
    "one vector": C,
    "prefix": 3 * 2 * L * C,
    "zero prefix": 2 * L * C,
    "rows": 3 * C,
    "all rows": V * C,
}


# ---------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("shape", [(3, 5, 6, 4), (1, 1, 1, 1), (2, 1, 3, 7)], ids=str)
def test_prepend_backward(shape: tuple[int, ...]) -> None:
    b, t, c, p = shape
    rng = np.random.default_rng(0)
    tokens, prompt, positions = (rng.standard_normal(s) for s in ((b, t, c), (p, c), (p, c)))
    dx = rng.standard_normal((b, p + t, c))
    dprompt, dtokens = prepend_backward(dx, p)
    assert_gradient(dprompt, lambda a: prepend_forward(tokens, a, positions), prompt, dx)
    assert_gradient(dprompt, lambda a: prepend_forward(tokens, prompt, a), positions, dx)
    assert_gradient(dtokens, lambda a: prepend_forward(a, prompt, positions), tokens, dx)


def test_prepend_forward_with_a_prompt_a_row() -> None:
    rng = np.random.default_rng(0)
    tokens, prompt, positions = (rng.standard_normal(s) for s in ((2, 3, 4), (2, 5, 4), (5, 4)))
    x = prepend_forward(tokens, prompt, positions)
    for row in range(2):
        assert (x[row] == prepend_forward(tokens[row : row + 1], prompt[row], positions)[0]).all()


@pytest.mark.parametrize("shape", [(3, 4, 2, 3, 5), (1, 1, 1, 1, 1), (2, 3, 1, 5, 2)], ids=str)
def test_prefix_backward(shape: tuple[int, ...]) -> None:
    b, p, n_layer, h, d = shape
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((p, 2 * n_layer * h * d))
    for layer in range(n_layer):
        dk, dv = rng.standard_normal((2, b, h, p, d))
        start = rng.standard_normal(matrix.shape)
        gradient = prefix_backward(dk, dv, start.copy(), layer, n_layer) - start  # it adds

        def forward(m: np.ndarray, layer: int = layer) -> np.ndarray:
            return np.stack(prefix_forward(m, layer, n_layer, h, b))

        assert_gradient(gradient, forward, matrix, np.stack((dk, dv)))


def test_prefix_has_pefts_layout() -> None:
    p, h, d = 3, 2, 4
    matrix = np.arange(p * 2 * L * h * d, dtype=float).reshape(p, -1)
    viewed = matrix.reshape(p, 2 * L, h, d)
    for layer in range(L):
        k, v = prefix_forward(matrix, layer, L, h, B)
        assert k.shape == v.shape == (B, h, p, d)
        for row, head, place in np.ndindex(B, h, p):
            assert (k[row, head, place] == viewed[place, 2 * layer, head]).all()
            assert (v[row, head, place] == viewed[place, 2 * layer + 1, head]).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("config", [{}, {"n_head": 1, "n_layer": 1, "n_embd": 5}, {"n_embd": 9, "n_head": 3}], ids=str)
def test_every_trained_number_of_a_tuned_model(name: str, config: dict[str, int]) -> None:
    tuned = METHODS[name]().apply(tiny(**config), seed=3)
    data = batch()
    loss, grads = tuned.loss_and_grads(**data)
    trained = [p for p in tuned.parameters() if p.trainable]
    if name == "rows":
        assert not np.delete(grads[lesson.WTE], (2, 5, 7), axis=0).any()
        assert not any(g.any() for key, g in grads.items() if key != lesson.WTE)
        grads = {trained[0].name: grads[lesson.WTE][[2, 5, 7]].reshape(-1)}
    assert list(grads) == [p.name for p in trained]
    for p in trained:
        value = p.data

        def f(x: np.ndarray, p: Any = p) -> float:
            p.data = x
            hidden, _ = tuned.forward(data["ids"], tuned.context())
            return lm_loss(hidden, tuned.wte, data["targets"], tuned.context())[0]

        assert loss == pytest.approx(f(value), rel=1e-12)
        assert_gradient(grads[p.name], f, value, 1.0, p.name)
        p.data = value


def test_gradients_with_a_classifier_head_and_with_free_positions() -> None:
    tuned = PromptTuning(num_virtual_tokens=3, n_labels=4).apply(tiny())
    assert isinstance(tuned, Classifier)
    tuned.trunk.unfreeze(["transformer.wpe.weight"])
    ids, labels, lengths = batch()["ids"], np.array([3, 0, 1]), np.array([5, 2, 1])
    _, grads = tuned.loss_and_grads(ids, labels, lengths)
    assert set(grads) == {"prompt_embeddings", "transformer.wpe.weight", "score.weight", "score.bias"}
    inputs = {"ids": ids, "labels": labels, "lengths": lengths}
    for p in tuned.parameters():
        if p.trainable:
            value = p.data

            def f(x: np.ndarray, p: Any = p) -> float:
                p.data = x
                return Classification().forward(tuned, inputs, 3, tuned.context())[0]

            assert_gradient(grads[p.name], f, value, 1.0, p.name)
            p.data = value


@pytest.mark.parametrize("name", ["prompt", "prefix", "rows"])
def test_the_same_on_another_array_library(name: str) -> None:
    here, there = (METHODS[name]().apply(tiny(backend=b), seed=1) for b in ("numpy", STANDIN))
    data = batch()
    loss, grads = here.loss_and_grads(**data)
    loss_there, grads_there = there.loss_and_grads(**data)
    assert loss_there == pytest.approx(loss, rel=1e-12)
    for key, gradient in grads.items():
        assert error(STANDIN.to_numpy(grads_there[key]), gradient) < 1e-12
    assert (
        here.generate(data["ids"], 3, temperature=0).tolist() == there.generate(data["ids"], 3, temperature=0).tolist()
    )


# ---------------------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("method", [PromptTuning(num_virtual_tokens=4), PrefixTuning(num_virtual_tokens=4)], ids=str)
def test_a_start_from_tokens_is_the_base_with_these_tokens_before_the_text(method: Method) -> None:
    model, ids = tiny(), batch()["ids"]
    drawn = np.random.default_rng(7).choice(np.arange(V), 4, replace=False)
    longer = np.concatenate((np.broadcast_to(drawn, (B, 4)), ids), axis=1)
    tuned = method.apply(model, seed=7)
    assert error(tuned.logits(ids), model.logits(longer)[:, 4:]) < 1e-12
    written = tuned.generate(ids, 4, temperature=0)
    assert written.tolist() == model.generate(longer, 4, temperature=0)[:, 4:].tolist()
    lengths = [5, 2, 3]  # prompts of unequal length stand at the right end: padding comes after the virtual tokens
    padded = tuned.generate(ids, 4, temperature=0, lengths=lengths)
    for row, n in zip(range(B), lengths, strict=True):
        alone = tuned.generate(ids[row : row + 1, -n:], 4, temperature=0)
        assert padded[row, T:].tolist() == alone[0, n:].tolist()


def test_keys_and_values_are_those_of_every_layer() -> None:
    model, ids = tiny(), np.array([3, 1, 4])
    matrix = keys_and_values(model, ids)
    assert matrix.shape == (3, 2 * L * C)
    seen: dict[str, np.ndarray] = {}
    model.forward(ids[None], model.context(watch=lambda name, array: seen.update({name: array.copy()})))
    for layer in range(L):
        qkv = seen[f"transformer.h.{layer}.attn.c_attn"][0]
        k, v = prefix_forward(matrix, layer, L, H, 1)
        assert (k[0].transpose(1, 0, 2).reshape(3, C) == qkv[:, C : 2 * C]).all()
        assert (v[0].transpose(1, 0, 2).reshape(3, C) == qkv[:, 2 * C :]).all()


def test_virtual_tokens_take_places_of_the_context() -> None:
    for method in (PromptTuning(num_virtual_tokens=10), PrefixTuning(num_virtual_tokens=10)):
        tuned = method.apply(tiny())
        rng = np.random.default_rng(0)
        assert tuned.logits(rng.integers(0, V, (2, 6))).shape == (2, 6, V)
        with pytest.raises(ValueError, match="7 tokens do not fit into the model's context of 6"):
            tuned.logits(rng.integers(0, V, (2, 7)))
        with pytest.raises(ValueError, match="context of 6"):
            tuned.generate(rng.integers(0, V, (1, 4)), 3)
        assert tuned.generate(rng.integers(0, V, (1, 4)), 2).shape == (1, 6)


@pytest.mark.parametrize("kind", [PromptTuning, PrefixTuning])
def test_golden_files_of_peft(kind: Any) -> None:
    with np.load(GOLDEN / "gpt2_tiny.npz") as tiny_file, np.load(GOLDEN / "soft_prompts.npz") as golden:
        names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
        model = GPT(GPTConfig(**{n: tiny_file[f"config/{n}"].item() for n in names}), dtype="float64")
        for p in model.parameters():
            p.data = tiny_file[f"weights/{p.name}"]
        tuned = kind.load(model, GOLDEN / f"peft_{kind.name}")
        ids = golden["ids"]
        assert error(tuned.logits(ids), golden[f"{kind.name}/logits"]) < 1e-9
        loss, grads = tuned.loss_and_grads(ids, golden["targets"])
        assert loss == pytest.approx(golden[f"{kind.name}/loss"].item(), rel=1e-9)
        assert error(grads["prompt_embeddings"], golden[f"{kind.name}/gradient"]) < 1e-9
        written = golden[f"{kind.name}/generated"]
        assert tuned.generate(ids[:, :2], written.shape[1] - 2, temperature=0).tolist() == written.tolist()


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("n_labels", [None, 3])
@pytest.mark.parametrize("name", METHODS)
def test_training_moves_what_it_trains_and_nothing_else(name: str, n_labels: int | None) -> None:
    model = tiny(dtype="float32")
    before = {p.name: (p.data, p.data.copy()) for p in model.parameters()}
    method = replace(METHODS[name](), n_labels=n_labels)
    tuned = method.apply(model, seed=2)
    count = COUNTS[name] + (0 if n_labels is None else 3 * (3 * C + 1))
    assert n_trainable(tuned) == count
    start = {p.name: p.data.copy() for p in tuned.parameters()}
    data: dict[str, np.ndarray] = batch()
    objective: Any = LanguageModelling()
    if n_labels is not None:
        objective, data = Classification(), {"ids": data["ids"], "labels": np.array([2, 0, 1])}
    config = TrainConfig(4, lr=0.05, weight_decay=0.1, workers=1)
    history = method.fit(tuned, objective, lambda step: data, config, progress=False)
    assert n_labels or history.losses[-1] < history.losses[0]  # the head's dropout makes losses uneven
    for p in tuned.parameters():
        changed = (p.data != start[p.name]).reshape(len(p.data), -1).any(1)
        if n_labels and name in ("rows", "all rows"):  # rows that are not read have no gradient
            assert changed.any() == p.trainable
        else:
            assert changed.all() == changed.any() == p.trainable, p.name
    for p in model.parameters():
        assert p.data is before[p.name][0]
        assert (p.data == before[p.name][1]).all()
    assert model.n_virtual == 0


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_virtual_tokens_do_not_decay(name: str) -> None:
    ends = []
    for decay in (0.0, 0.5):
        method = METHODS[name]()
        tuned = method.apply(tiny(), seed=1)
        config = TrainConfig(2, lr=0.1, weight_decay=decay, workers=1)
        method.fit(tuned, LanguageModelling(), lambda step: batch(), config, progress=False)
        ends.append(next(p.data for p in tuned.parameters() if p.trainable))
    assert (ends[0] == ends[1]).all()


def test_two_workers_train_as_one() -> None:
    data = batch()
    ends = []
    for workers in (1, 2):
        tuned = PrefixTuning(num_virtual_tokens=3).apply(tiny(), seed=1)
        config = TrainConfig(2, lr=0.05, workers=workers)
        train(tuned, LanguageModelling(), lambda step: data, config, progress=False)
        ends.append(next(p.data for p in tuned.parameters() if p.trainable))
    assert error(ends[1], ends[0]) < 1e-10


def test_a_copy_goes_its_own_way() -> None:
    for make in METHODS.values():
        tuned = make().apply(tiny())
        ids = batch()["ids"]
        before = tuned.logits(ids)
        twin = tuned.copy()
        train(twin, LanguageModelling(), lambda step: batch(), TrainConfig(1, lr=0.1, workers=1), progress=False)
        assert (tuned.logits(ids) == before).all()
        assert error(twin.logits(ids), before) > 1e-4


# ---------------------------------------------------------------------------------------------- files and merging


@pytest.mark.parametrize("n_labels", [None, 3])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_comes_back(name: str, n_labels: int | None, tmp_path: Path) -> None:
    model, ids = tiny(dtype="float32"), batch()["ids"]
    method = replace(METHODS[name](), n_labels=n_labels)
    tuned = method.apply(model, seed=5)
    rng = np.random.default_rng(6)
    for p in tuned.parameters():
        if p.trainable:
            p.data = p.data + 0.1 * rng.standard_normal(p.data.shape).astype("float32")
    method.save(tuned, tmp_path / "tuned")
    again = type(method).load(model, tmp_path / "tuned")
    assert (again.logits(ids) == tuned.logits(ids)).all()
    assert {p.name for p in again.parameters() if p.trainable} == {p.name for p in tuned.parameters() if p.trainable}
    method.save(again, tmp_path / "again")
    for path in (tmp_path / "tuned").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes() or path.suffix == ".json"
    other = tiny(dtype="float32", n_embd=4)
    with pytest.raises(ValueError, match=r"does not fit|is not known here"):
        type(method).load(other, tmp_path / "tuned")


def test_the_file_of_rows_holds_these_rows_only(tmp_path: Path) -> None:
    method = EmbeddingRows(token_indices=(7, 2, 5, 2))
    assert method.token_indices == (2, 5, 7)
    method.save(method.apply(tiny()), tmp_path)
    tensors, _ = files.load_tensors(tmp_path / "method.safetensors")
    assert {name: array.shape for name, array in tensors.items()} == {lesson.WTE: (3, C)}


def saved(tmp_path: Path, **changes: Any) -> Path:
    """A directory of a prompt of 4, with changes to its configuration."""
    method = PromptTuning(num_virtual_tokens=4)
    method.save(method.apply(tiny()), tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "gone"}))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type 'PREFIX_TUNING', not 'PROMPT_TUNING'"),
        ({"token_dim": 8}, "token_dim = 8"),
        ({"num_layers": 3}, "num_layers = 3"),
        ({"num_attention_heads": 3}, "num_attention_heads = 3"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules = 2"),
        ({"task_type": "SEQ_CLS"}, "task_type = 'SEQ_CLS'"),
        ({"modules_to_save": ["wte"]}, "modules_to_save"),
        ({"num_virtual_tokens": 5}, r"prompt_embeddings is \(4, 6\) instead of \(5, 6\)"),
        ({"num_virtual_tokens": 16}, "a context of 16 allows 1 to 15"),
        ({"num_virtual_tokens": "gone"}, "num_virtual_tokens is None"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
    ],
    ids=str,
)
def test_files_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        PromptTuning.load(tiny(), saved(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "missing: prompt_embeddings"),
        ({"prompt_embeddings": np.zeros((4, C)), "more": np.zeros(1)}, "left over: more"),
        ({"base_model.model.prompt_embeddings": np.zeros((4, C))}, "missing: prompt_embeddings; left over: base_model"),
        ({"prompt_embeddings": np.zeros((C, 4))}, r"is \(6, 4\) instead of \(4, 6\)"),
    ],
    ids=["empty", "more", "prefix", "shape"],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    saved(tmp_path)
    files.save_tensors(tmp_path / "adapter_model.safetensors", tensors)
    with pytest.raises(ValueError, match=message):
        PromptTuning.load(tiny(), tmp_path)


def test_null_sizes_are_no_fault(tmp_path: Path) -> None:
    sizes = dict.fromkeys(("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"))
    tuned = PromptTuning.load(tiny(), saved(tmp_path, **sizes, task_type=None))
    assert tuned.n_virtual == 4


def test_the_configuration_says_where_the_prompt_started(tmp_path: Path) -> None:
    model = bases.load("base-xs")[0]
    text = {"prompt_tuning_init_text": "a b", "tokenizer_name_or_path": bases.path("base-xs")}
    for settings, said in (
        ({"prompt_tuning_init": "RANDOM"}, {"prompt_tuning_init": "RANDOM"}),
        ({}, {"prompt_tuning_init": "SAMPLE_VOCAB"}),
        ({"prompt_tuning_init": "TEXT", **text}, {"prompt_tuning_init_text": "a b", "tokenizer_name_or_path": XS}),
        (
            {"prompt_tuning_init": "CLASS_LABELS", "class_labels": (" a",), "tokenizer_name_or_path": XS},
            {"prompt_tuning_init": "SAMPLE_VOCAB"},
        ),
    ):
        method = PromptTuning(num_virtual_tokens=2, **settings)  # type: ignore[arg-type]
        method.save(method.apply(model), tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert said.items() <= config.items()
        assert config["inference_mode"] is True
        PromptTuning.load(model, tmp_path)


def test_merging() -> None:
    ids = batch()["ids"]
    for name in ("prompt", "prefix"):
        method = METHODS[name]()
        with pytest.raises(ValueError, match="cannot be merged: virtual tokens are input, not weights"):
            method.merge(method.apply(tiny()))
    for name in ("rows", "all rows"):
        method = METHODS[name]()
        tuned = method.apply(tiny())
        train(tuned, LanguageModelling(), lambda step: batch(), TrainConfig(2, lr=0.1, workers=1), progress=False)
        plain = method.merge(tuned)
        assert (plain.logits(ids) == tuned.logits(ids)).all()
        assert all(p.trainable for p in plain.parameters())
        assert error(plain.logits(ids), tiny().logits(ids)) > 1e-3
        PromptTuning(num_virtual_tokens=2).apply(plain)  # plain enough to start again from
    with_head = EmbeddingRows(n_labels=2)
    with pytest.raises(ValueError, match="classifier head"):
        with_head.merge(with_head.apply(tiny()))


# ---------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PromptTuning(num_virtual_tokens=16).apply(tiny()),
            "num_virtual_tokens is 16; a context of 16 allows 1 to 15",
        ),
        (
            lambda: PrefixTuning(num_virtual_tokens=99).apply(tiny()),
            "num_virtual_tokens is 99; a context of 16 allows 1 to 15",
        ),
        (lambda: PromptTuning(num_virtual_tokens=0), "num_virtual_tokens is 0; it must be a whole number of 1 or more"),
        (lambda: PrefixTuning(num_virtual_tokens=2.5), "num_virtual_tokens is 2.5"),  # type: ignore[arg-type]
        (lambda: PromptTuning(prompt_tuning_init="WORDS"), "one of RANDOM, SAMPLE_VOCAB, TEXT, CLASS_LABELS"),
        (lambda: PromptTuning(prompt_tuning_init="TEXT"), "TEXT needs prompt_tuning_init_text"),
        (
            lambda: PromptTuning(prompt_tuning_init="TEXT", prompt_tuning_init_text="a"),
            "TEXT needs tokenizer_name_or_path",
        ),
        (lambda: PromptTuning(prompt_tuning_init="CLASS_LABELS"), "CLASS_LABELS needs class_labels"),
        (lambda: PromptTuning(class_labels=("a",)), "class_labels is for prompt_tuning_init CLASS_LABELS"),
        (lambda: PromptTuning(prompt_tuning_init_text="a"), "is for prompt_tuning_init TEXT, not SAMPLE_VOCAB"),
        (lambda: PromptTuning(init_std=1.0), "init_std is for prompt_tuning_init RANDOM"),
        (
            lambda: PromptTuning(
                prompt_tuning_init="TEXT", prompt_tuning_init_text="Anna", tokenizer_name_or_path=XS
            ).apply(tiny(n_positions=64)),
            "gives tokens .* some of 0 to 22",
        ),
        (lambda: PrefixTuning(init_weights="ones"), "init_weights is 'ones'; it must be None or 'zero'"),
        (lambda: EmbeddingRows(token_indices=()), "token_indices is empty"),
        (
            lambda: EmbeddingRows(token_indices=(1, V)).apply(tiny()),
            "has 23; the vocabulary allows 0 to 22",
        ),
        (lambda: EmbeddingRows(token_indices=(-1,)).apply(tiny()), "token_indices has -1"),
        (
            lambda: PromptTuning(num_virtual_tokens=2).apply(PrefixTuning(num_virtual_tokens=2).apply(tiny())),
            "plain GPT",
        ),
        (lambda: prompt_bank([tiny()]), "soft prompts of one length"),
        (
            lambda: prompt_bank([PromptTuning(num_virtual_tokens=n).apply(tiny()) for n in (2, 3)]),
            r"of one length, not \[2, 3\]",
        ),
    ],
)
def test_impossible_requests_get_one_clear_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- starts and readings

TABLE = np.random.default_rng(9).standard_normal((V, C))


def test_starts() -> None:
    rng = np.random.default_rng
    pool = np.array([3, 8, 15, 20])
    drawn = sample_vocab_init(TABLE, 4, rng(0), pool)
    assert sorted(nearest_tokens(drawn, TABLE, 1)[0][:, 0].tolist()) == pool.tolist()  # each once
    assert set(nearest_tokens(sample_vocab_init(TABLE, 9, rng(0), pool), TABLE, 1)[0][:, 0].tolist()) <= set(
        pool.tolist()
    )
    assert (text_init(TABLE, [5, 1, 2], 2) == TABLE[[5, 1]]).all()
    assert (text_init(TABLE, [5, 1], 5) == TABLE[[5, 1, 5, 1, 5]]).all()
    labels = [[4], [6, 7, 7]]
    start = class_label_init(TABLE, labels, 5, rng(0), pool)
    assert start.shape == (5, C)
    assert (start[0] == TABLE[4]).all()
    assert np.allclose(start[1], (TABLE[6] + 2 * TABLE[7]) / 3)
    assert (start[2:] == sample_vocab_init(TABLE, 3, rng(0), pool)).all()
    assert (class_label_init(TABLE, labels, 1, rng(0), pool) == TABLE[[4]]).all()
    before = TABLE.copy()
    text_init(TABLE, [1], 1)[...] = 0  # a start is no view of the table, which training would change
    assert (before == TABLE).all()


def test_starts_of_the_method() -> None:
    model, tokenizer = bases.load("base-xs")
    table = model.wte.data

    def start(data: Any = None, seed: int = 0, **settings: Any) -> np.ndarray:
        return PromptTuning(num_virtual_tokens=50, **settings).apply(model, seed, data).embedding.prompt.data

    random = start(prompt_tuning_init="RANDOM")
    assert random.dtype == table.dtype
    assert random.std() == pytest.approx(table.std(), rel=0.1)
    assert start(prompt_tuning_init="RANDOM", init_std=1.0).std() == pytest.approx(1.0, rel=0.1)
    assert (start(seed=1) != start(seed=2)).any()
    assert (start(seed=1) == start(seed=1)).all()
    ids = np.array([[7, 9, 11], [9, 9, 300]])
    near, cosines = nearest_tokens(start(data=[{"ids": ids}, {"ids": ids[:1]}]), table, 1)
    assert set(near[:, 0].tolist()) == {7, 9, 11, 300}
    assert np.allclose(cosines, 1, atol=1e-5)
    assert token_pool(V, None).tolist() == list(range(V))
    assert token_pool(V, [{"ids": np.array([[3, 0], [5, 9]]), "lengths": np.array([1, 2])}]).tolist() == [3, 5, 9]
    label = start(prompt_tuning_init="CLASS_LABELS", class_labels=(" good",), tokenizer_name_or_path=XS)
    assert np.allclose(label[0], table[tokenizer.encode(" good")].mean(0))


def test_nearest_tokens() -> None:
    vectors = np.stack((3.0 * TABLE[4], -TABLE[2], TABLE[4] + 0.01 * TABLE[8]))
    ids, cosines = nearest_tokens(vectors, TABLE, V)
    assert ids[0, 0] == ids[2, 0] == 4
    assert cosines[0, 0] == pytest.approx(1)
    assert ids[1, -1] == 2
    assert cosines[1, -1] == pytest.approx(-1)
    assert (np.diff(cosines, axis=1) <= 1e-12).all()
    for row, token in np.ndindex(3, V):
        a, b = vectors[row], TABLE[ids[row, token]]
        assert cosines[row, token] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
    assert nearest_tokens(vectors, TABLE * np.arange(1, V + 1)[:, None], 1)[0][:, 0].tolist() == ids[:, 0].tolist()


def test_majority() -> None:
    choices = np.array([[0, 1, 2, 1], [0, 2, 1, 1], [1, 2, 0, 0], [1, 0, 1, 0], [1, 1, 0, 2]])
    assert majority(choices).tolist() == [1, 1, 1, 1]  # 2:3; 1 and 2 tie and voter 0 says 1; 1 and 0, voter 1; ...
    assert majority(choices[:1]).tolist() == choices[0].tolist()
    rng = np.random.default_rng(0)
    many = rng.integers(0, 4, (7, 50))
    counts = np.stack([(many == k).sum(0) for k in range(4)])
    assert (np.take_along_axis(counts, majority(many)[None], 0)[0] == counts.max(0)).all()


def test_a_bank_answers_for_each_prompt_as_the_prompt_alone() -> None:
    model = tiny()
    members = [PromptTuning(num_virtual_tokens=3).apply(model, seed=s) for s in range(3)]
    bank = prompt_bank(members)
    ids = batch()["ids"]
    which = np.array([2, 0, 1])
    hidden, _ = bank.forward(ids, bank.context(adapters=which))
    for row, member in enumerate(which):
        alone, _ = members[member].forward(ids[row : row + 1], members[member].context())
        assert error(hidden[row], alone[0]) < 1e-12
    with pytest.raises(ValueError, match="which one each row has"):
        bank.logits(ids)
    assert n_trainable(bank) == 0
    assert all(n_trainable(member) == 3 * C for member in members)


# ---------------------------------------------------------------------------------------------- scoring and words


@pytest.fixture(scope="module")
def small() -> tuple[GPT, Any]:
    model, tokenizer = bases.load("base-xs")
    return model, require_pairs(load_task("sentiment-pairs", tokenizer, 24))


def test_choice_scores_are_log_probabilities(small: Any) -> None:
    model, task = small
    members = [PromptTuning(num_virtual_tokens=3).apply(model, seed=s) for s in range(2)]
    scores = prompts.choice_scores(prompt_bank(members), task, "test", 5, members=2)
    assert scores.shape == (2, 5, 2)
    for m, n in np.ndindex(2, 5):
        for k, answer in enumerate(prompts.choices(task)):
            prompt = task.tokenizer.encode(task.data.test[n].prompt)
            rest = [*task.tokenizer.encode(answer), task.tokenizer.eos_token_id]
            logits = members[m].logits([[*prompt, *rest[:-1]]])[0, len(prompt) - 1 :].astype(float)
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            assert scores[m, n, k] == pytest.approx(sum(logprobs[i, t] for i, t in enumerate(rest)), abs=1e-3)
    right = prompts.right_choices(task, "test", 5)
    assert [prompts.choices(task)[i] for i in right] == [pair.completion for pair in task.data.test[:5]]
    accuracy = prompts.evaluate(members[1], task, 5)["accuracy"]
    assert accuracy == (scores[1].argmax(-1) == right).mean()


def test_tasks_in_words(small: Any, tmp_path: Path) -> None:
    _, task = small
    assert prompts.choices(task) == (" negative", " positive")
    assert prompts.question_of(task) == "Question: Is this review positive or negative?\nAnswer:"
    alike_first = replace(task.data, train=sorted(task.data.train, key=lambda pair: pair.completion))
    shots = prompts.few_shot(replace(task, data=alike_first), 3, 256)
    first = shots.data.test[0]
    solved = first.prompt.split("\n\n")
    assert len(solved) == 4
    assert solved[-1] == task.data.test[0].prompt
    assert {text.rsplit(" ", 1)[1] for text in solved[:3]} == {"negative", "positive"}
    assert shots.data.train == alike_first.train
    translation = require_pairs(load_task("translation", task.tokenizer, 30))
    assert prompts.choices(translation) == ()
    path = tmp_path / "own.csv"
    rows = [f"the {word} number {i},{label}" for i in range(30) for word, label in (("good", "up"), ("bad", "down"))]
    path.write_text("\n".join(["text,label", *rows]))
    own = prompts.as_pair_task(own_task(str(path), task.tokenizer))
    assert prompts.choices(own) == (" down", " up")
    assert own.data.train[0].prompt.endswith("Question: Which label does this text have?\nAnswer:")


def test_a_bench_runs_each_job_once(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = small
    runs = []
    monkeypatch.setattr(prompts, "fine_tune", lambda *a, **k: runs.append(a) or fine_tune(*a, **k))
    bench = prompts.Bench({"b": model}, {"t": task}, Budget(steps=1, batch_size=2, workers=1), 4, workers=1)
    jobs = [prompts.Job(PromptTuning(num_virtual_tokens=2), "b", "t", seed) for seed in (0, 1, 0)]
    bench.run(jobs)
    assert len(runs) == len(bench.done) == 2
    first = bench.done[jobs[0]]
    assert first.n_trainable == 96
    assert first.prompt["prompt_embeddings"].shape == (2, 48)
    assert {"accuracy", "in_form", "loss"} == set(first.scores)
    bench.run([*jobs, replace(jobs[0], lr=0.5)])
    assert len(runs) == 3
    assert runs[2][3].lr == 0.5
    assert bench.done[jobs[0]] is first


# ---------------------------------------------------------------------------------------------- wrong variants


def checks(tmp_path: Path) -> list[Any]:
    run = Run(9, Settings(quick=True, brief=True), tmp_path)
    return lesson.derivation.derive(run, lesson.DERIVATIONS)


def _prepend(change: Callable[[Any, Any, int], Any]) -> Any:
    return lambda dx, P: change(*prepend_backward(dx, P), dx.shape[0])


def _swapped(dk: Any, dv: Any, dprompt: Any, layer: int, n_layer: int) -> Any:
    return prefix_backward(dv, dk, dprompt, layer, n_layer)


def _overwritten(dk: Any, dv: Any, dprompt: Any, layer: int, n_layer: int) -> Any:
    dprompt[...] = 0
    return prefix_backward(dk, dv, dprompt, layer, n_layer)


def _one_row(dk: Any, dv: Any, dprompt: Any, layer: int, n_layer: int) -> Any:
    return prefix_backward(dk[:1], dv[:1], dprompt, layer, n_layer)


def _heads_mixed(dk: Any, dv: Any, dprompt: Any, layer: int, n_layer: int) -> Any:
    return prefix_backward(dk[:, ::-1], dv[:, ::-1], dprompt, layer, n_layer)


def _block_of_keys(matrix: Any, layer: int, n_layer: int, n_head: int, b: int) -> Any:
    return tuple(x * 1.01 for x in prefix_forward(matrix, layer, n_layer, n_head, b))


WRONG = {
    "prepend mean": ("prepend_backward", _prepend(lambda p, t, b: (p / b, t))),
    "prepend sign": ("prepend_backward", _prepend(lambda p, t, b: (-p, t))),
    "prepend tokens": ("prepend_backward", _prepend(lambda p, t, b: (p, t[:, ::-1]))),
    "prepend forward": ("prepend_forward", lambda t, p, w: prepend_forward(t, p, 2 * w)),
    "prefix swapped": ("prefix_backward", _swapped),
    "prefix overwritten": ("prefix_backward", _overwritten),
    "prefix one row": ("prefix_backward", _one_row),
    "prefix heads": ("prefix_backward", _heads_mixed),
    "prefix forward": ("prefix_forward", _block_of_keys),
    "start drawn twice": ("sample_vocab_init", lambda table, n, rng, pool: table[rng.choice(pool, n)]),
    "text not cut": ("text_init", lambda table, ids, n: table[np.asarray(ids)]),
    "text turned round": ("text_init", lambda table, ids, n: text_init(table, ids[::-1], n)),
    "labels summed": ("class_label_init", lambda table, labels, *rest: 2 * class_label_init(table, labels, *rest)),
    "labels alone": ("class_label_init", lambda table, labels, *rest: class_label_init(table, labels, *rest)[:2]),
    "nearest by product": ("nearest_tokens", lambda v, table, k: _by_product(v, table, k)),
    "farthest": ("nearest_tokens", lambda v, table, k: nearest_tokens(-v, table, k)),
    "first voter": ("majority", lambda choices: choices[0]),
    "median": ("majority", lambda choices: np.median(choices, 0)),
}


def _by_product(vectors: Any, table: Any, k: int) -> Any:
    products = vectors @ table.T
    return np.argsort(-products)[:, :k], -np.sort(-products)[:, :k]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_shown_as_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = WRONG[name]
    assert all(c.ok for c in checks(tmp_path))
    monkeypatch.setattr(lesson, function, wrong)
    assert any(c.verdict == "WRONG" for c in checks(tmp_path))


def test_what_is_not_written_yet_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def todo(*arguments: Any) -> Any:
        raise NotImplementedError

    for function in sorted({function for function, _ in WRONG.values()}):
        with monkeypatch.context() as patch:
            patch.setattr(lesson, function, todo)
            assert any(c.missing for c in checks(tmp_path))


# ---------------------------------------------------------------------------------------------- the whole lesson


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the committed record, nor depends on it."""
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")


def test_quick_lesson_does_all_that_it_promises(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "def prepend_backward" in printed
    assert "SOLUTION" not in printed
    directory = tmp_path / "lesson-09"
    record = json.loads((directory / "record.json").read_text(encoding="utf-8"))
    assert set(record["figures"]) >= {"prompt_accuracy", "prompt_loss", "full_accuracy", "prefix_accuracy"}
    results = record["results"]
    assert set(results) >= {"costs", "rivals", "starts", "lengths", "reading", "vote", "scale", "plan", "data"}
    assert set(results["starts"]) == {"random", "random, N(0, 1)", "vocabulary", "text", "labels"}
    costs = results["costs"]
    assert "linear_backward_weight" not in costs["soft prompt of 3"]["backward"]
    assert costs["soft prompt of 3"]["optimizer"] < costs["all parameters"]["optimizer"] / 100
    assert record["pictures"] == ["lengths.png", "space.png", "nearest.png", "scale.png"]
    for name in record["pictures"]:
        pixels = imread(directory / name)
        assert pixels.shape[1] > 1000
        assert float(pixels.std()) > 0.01


def test_own_pairs_without_choices(tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": f"say {i} {i % 7}", "completion": f" {i % 13} and {i}"} for i in range(120)]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "lesson-09" / "record.json").read_text(encoding="utf-8"))
    assert "labels" not in record["results"]["starts"]
    assert "vote" not in record["results"]
    assert "def prepend_backward" not in capsys.readouterr().out


def test_all_of_a_full_run_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables that only a full run makes, at the size of a quick one."""
    documents = DataSet("d", *([Example(f"reads {w} {i}", w == "b") for i in range(9) for w in "ab"] for _ in range(3)))
    monkeypatch.setattr(study.pydocs, "topics", lambda **k: replace(documents, label_names=("files", "web")))
    plan = replace(study.QUICK, tasks=("topic-pairs", "pydocs-topics"), records=20, limit=4, steps=1, lengths=(2,))
    monkeypatch.setattr(study, "FULL", replace(plan, rates=(0.01, 0.5), headline_seeds=3))
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    run = runner.run_lesson(9, lesson.lesson, Settings(full=True, brief=True, out=tmp_path))
    assert set(run.results["rates"]) == {"0.01", "0.1", "0.5"}
    assert {name.split(":")[0] for name in run.results["tasks"]} == {"topic-pairs", "pydocs-topics"}
    assert len(run.results["vote"]["each"]) == 3
    assert [len(f.values) for f in run.reported if f.name == "prompt_accuracy"] == [3]
