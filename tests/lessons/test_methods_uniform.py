"""The one surface of all fine-tuning methods: what holds for every name in `METHODS`, on a model of two tiny blocks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lessons import METHODS
from lessons.common.classifier import Classification, Classifier
from lessons.common.method import n_trainable
from minigpt import GPT, GPTConfig
from minigpt.errors import InputError
from minigpt.objectives import LanguageModelling
from minigpt.training import TrainConfig
from tests.helpers import error, numerical_gradient

CONFIG = GPTConfig(vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2)
V, C = CONFIG.vocab_size, CONFIG.n_embd
B, T, N_LABELS = 3, 6, 3

# Settings for a model this small, where the defaults are for larger ones.
SETTINGS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"num_virtual_tokens": 3},
    "prefix_tuning": {"num_virtual_tokens": 3},
}

# Names of gradients that are relied on from outside, with their shapes as functions of what the layer has.
SIZES = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
LAYER = r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\."
LORA = LAYER + r"(lora_A\.weight|lora_B\.weight)"
OF_THE_BASE = {"full": ".*", "bitfit": r".*\.bias", "last_layer": r"transformer\.(h\.1|ln_f)\..*", "importance": ".*"}
OF_PEFT = {
    **dict.fromkeys(("lora", "rslora", "pissa", "qlora"), LORA),
    "dora": LAYER + r"(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)",
    "ia3": LAYER + "ia3_l",
    "prompt_tuning": "prompt_embeddings",
    "prefix_tuning": "prompt_embeddings",
}
MASKED = {"importance"}
"""Train single entries, kept in vectors of their own; their gradients come in the base's names and shapes."""
DETACHED = {"dora": "lora_[AB]"}
"""Gradients that leave a way out on purpose: DoRA takes the norm that it divides by for a constant."""

NAMES = list(METHODS)


def method(name: str, **settings: Any) -> Any:
    return METHODS[name](**SETTINGS.get(name, {}), **settings)


def base(dtype: str = "float32") -> GPT:
    """Random weights, larger than initial ones: none stays 0 or 1, which would hide errors."""
    model = GPT(CONFIG, dtype=dtype)
    rng = np.random.default_rng(0)
    for p in model.parameters():
        gain = 1.0 if p.data.ndim == 1 and p.name.endswith("weight") else 0.0
        p.data = (gain + 0.3 * rng.standard_normal(p.data.shape)).astype(dtype)
    return model


def batch(step: int = 0, labelled: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([7, step])
    ids, targets = rng.integers(0, V, (2, B, T))
    if not labelled:
        targets[rng.random(targets.shape) < 0.3] = -100
        targets[0, 0] = 1
        return {"ids": ids, "targets": targets}
    return {"ids": ids, "labels": rng.integers(0, N_LABELS, B), "lengths": np.array([T, T - 2, 1])}


def data(labelled: bool) -> list[dict[str, np.ndarray]]:
    return [batch(100 + i, labelled) for i in range(3)]


def applied(name: str, model: GPT, labelled: bool = False, seed: int = 0) -> Any:
    chosen = method(name, n_labels=N_LABELS) if labelled else method(name)
    return chosen.apply(model, seed=seed, data=data(labelled))


def shaken(tuned: Any, size: float = 0.1) -> Any:
    """What is trained moved a little, as training would: a LoRA whose B is 0 shows nothing."""
    rng = np.random.default_rng(3)
    for p in tuned.parameters():
        if p.trainable:
            p.data = (p.data + size * rng.standard_normal(p.data.shape)).astype(p.data.dtype)
    return tuned


def trainable(tuned: Any) -> dict[str, Any]:
    return {p.name: p for p in tuned.parameters() if p.trainable}


def of_parameters(name: str, tuned: Any, grads: dict[str, Any]) -> dict[str, Any]:
    """Gradients by trainable parameter. A mask's: its entries', and everything else is 0."""
    if name not in MASKED:
        return grads
    found = {key: gradient for key, gradient in grads.items() if key.startswith("score")}
    rest = {key: gradient.copy() for key, gradient in grads.items() if key not in found}
    for entries in getattr(tuned, "trunk", tuned).entries():
        flat = rest[entries.base.name].reshape(-1)
        found[entries.values.name] = flat[entries.index].copy()
        flat[entries.index] = 0
    assert not any(gradient.any() for gradient in rest.values())
    return found


def copied(model: Any) -> dict[str, np.ndarray]:
    return {p.name: p.data.copy() for p in model.parameters()}


def same_bytes(model: Any, before: dict[str, np.ndarray]) -> bool:
    now = {p.name: p.data for p in model.parameters()}
    return now.keys() == before.keys() and all(now[n].tobytes() == a.tobytes() for n, a in before.items())


def one_line(caught: Any) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labelled", [False, True], ids=["language model", "classifier"])
def test_apply_and_training_leave_the_base_and_what_is_frozen_alone(name: str, labelled: bool) -> None:
    model = base()
    before, kinds, free = copied(model), [(n, type(layer)) for n, layer in model.layers()], list(trainable(model))
    chosen = method(name, n_labels=N_LABELS) if labelled else method(name)
    tuned = chosen.apply(model, seed=1, data=data(labelled))
    assert isinstance(tuned, Classifier) == labelled
    assert n_trainable(tuned) > 0
    start, moving = copied(tuned), set(trainable(tuned))
    config = TrainConfig(steps=3, lr=0.05, workers=1, weight_decay=0.1)
    objective = Classification() if labelled else LanguageModelling()
    history = chosen.fit(tuned, objective, lambda step: batch(step, labelled), config, progress=False)
    assert len(history.losses) == 3
    moved = {p.name for p in tuned.parameters() if p.data.tobytes() != start[p.name].tobytes()}
    assert moved, "nothing has been trained"
    assert moved <= moving
    assert same_bytes(model, before)
    assert [(n, type(layer)) for n, layer in model.layers()] == kinds
    assert list(trainable(model)) == free


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_of_what_is_trained_under_the_documented_names(name: str) -> None:
    tuned = applied(name, base())
    loss, grads = tuned.loss_and_grads(**batch())
    assert isinstance(loss, float)
    parameters = trainable(tuned)
    by_parameter = of_parameters(name, tuned, grads)
    assert set(by_parameter) == set(parameters)
    for key, gradient in by_parameter.items():
        assert gradient.shape == parameters[key].data.shape, key
        assert gradient.dtype == np.float32, key
        assert np.isfinite(gradient).all(), key
    shapes = {p.name: p.data.shape for p in base().parameters()}
    if name in OF_THE_BASE:
        assert set(grads) <= set(shapes)
        assert {key for key in shapes if re.fullmatch(OF_THE_BASE[name], key)} == set(grads)
        assert all(gradient.shape == shapes[key] for key, gradient in grads.items())
    if name in OF_PEFT:
        for key, gradient in grads.items():
            match = re.fullmatch(OF_PEFT[name], key)
            assert match, key
            if key.endswith("lora_A.weight"):
                r = gradient.shape[0]
                inputs, outputs = SIZES[match[1]]
                assert gradient.shape == (r, inputs)
                assert grads[key.replace("lora_A", "lora_B")].shape == (outputs, r)
            elif key.endswith("lora_magnitude_vector"):
                assert gradient.shape == (SIZES[match[1]][1],)
            elif key.endswith("ia3_l"):
                inputs, outputs = SIZES[match[1]]
                assert gradient.shape in {(outputs, 1), (1, inputs)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labelled", [False, True], ids=["language model", "classifier"])
def test_gradients_are_the_losss_and_stay_float64(name: str, labelled: bool) -> None:
    tuned = shaken(applied(name, base("float64"), labelled))
    assert {p.data.dtype for p in trainable(tuned).values()} == {np.dtype("float64")}
    given = batch(0, labelled)
    assert tuned.logits(given["ids"]).dtype == np.float64
    grads = of_parameters(name, tuned, tuned.loss_and_grads(**given)[1])
    objective = Classification() if labelled else LanguageModelling()
    total = objective.total(given)
    rng = np.random.default_rng(4)
    for key, p in trainable(tuned).items():
        gradient, original = grads[key], p.data
        assert gradient.dtype == np.float64, key
        if name in DETACHED and re.search(DETACHED[name], key):
            continue
        entries = rng.permutation(original.size)[:2]

        def loss(value: np.ndarray, p: Any = p) -> float:
            p.data = value
            return objective.forward(tuned, given, total, tuned.context())[0]

        expected = numerical_gradient(loss, original, 1.0, entries, step=3e-4)
        p.data = original
        assert error(gradient.reshape(-1)[entries], expected, floor=1e-2) < 1e-6, key
    assert any(np.abs(gradient).max() > 1e-6 for gradient in grads.values())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_of_the_real_tokens_and_generation_agrees_with_them(name: str) -> None:
    tuned = shaken(applied(name, base()), 0.3)
    ids = batch()["ids"]
    logits = tuned.logits(ids)
    assert logits.shape == (B, T, V)
    assert logits.dtype == np.float32
    assert error(tuned.logits(ids[:, :-1]), logits[:, :-1]) < 1e-4  # causal
    written = tuned.generate(ids, max_new_tokens=4, temperature=0)
    assert (written.shape, written.dtype) == ((B, T + 4), np.int64)
    again = ids
    for _ in range(4):
        again = np.concatenate((again, tuned.logits(again)[:, -1].argmax(-1)[:, None]), axis=1)
    assert (written == again).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_scores_labels_and_ignores_padding(name: str) -> None:
    tuned = shaken(applied(name, base(), labelled=True))
    given = batch(0, labelled=True)
    scores = tuned.logits(given["ids"], given["lengths"])
    assert scores.shape == (B, N_LABELS)
    for row, length in enumerate(given["lengths"]):
        alone = tuned.logits(given["ids"][row : row + 1, :length])
        assert error(scores[row : row + 1], alone) < 1e-4
    loss, grads = tuned.loss_and_grads(**given)
    shifted = scores - scores.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    assert loss == pytest.approx(-logprobs[np.arange(B), given["labels"]].mean(), rel=1e-5)
    assert {"score.weight", "score.bias"} <= set(grads)
    assert set(of_parameters(name, tuned, grads)) == set(trainable(tuned))


@pytest.mark.parametrize("name", NAMES)
def test_one_label_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="n_labels is 1") as caught:
        method(name, n_labels=1)
    one_line(caught)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labelled", [False, True], ids=["language model", "classifier"])
def test_saved_and_loaded_it_gives_the_same(name: str, labelled: bool, tmp_path: Path) -> None:
    model = base()
    before = copied(model)
    chosen = method(name, n_labels=N_LABELS) if labelled else method(name)
    tuned = chosen.apply(model, seed=1, data=data(labelled))
    config = TrainConfig(steps=2, lr=0.05, workers=1)
    objective = Classification() if labelled else LanguageModelling()
    chosen.fit(tuned, objective, lambda step: batch(step, labelled), config, progress=False)
    chosen.save(tuned, tmp_path / "it")
    loaded = METHODS[name].load(model, tmp_path / "it")
    ids = batch()["ids"]
    assert (loaded.logits(ids) == tuned.logits(ids)).all()
    assert set(trainable(loaded)) == set(trainable(tuned))
    assert same_bytes(model, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_or_foreign_directory_is_refused(name: str, tmp_path: Path) -> None:
    model = base()
    chosen = method(name)
    chosen.save(chosen.apply(model, data=data(False)), tmp_path / "it")
    foreign = "ia3" if name == "bitfit" else "bitfit"
    METHODS[foreign]().save(applied(foreign, model), tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"\w") as caught:
        METHODS[name].load(model, tmp_path / "foreign")
    one_line(caught)
    paths = sorted(path for path in (tmp_path / "it").rglob("*") if path.is_file())
    assert {path.suffix for path in paths} == {".json", ".safetensors"}
    for path in paths:
        content = path.read_bytes()
        other = json.dumps({"something": "else"}).encode()
        broken = content[:-1] + bytes([content[-1] ^ 64])
        for damage in (other, b"") if path.suffix == ".json" else (content[:-5], broken, b""):
            path.write_bytes(damage)
            with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
                METHODS[name].load(model, tmp_path / "it")
            one_line(caught)
        path.unlink()
        with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
            METHODS[name].load(model, tmp_path / "it")
        one_line(caught)
        path.write_bytes(content)
    METHODS[name].load(model, tmp_path / "it")


@pytest.mark.parametrize("name", NAMES)
def test_merged_it_is_a_plain_model_that_computes_the_same_or_says_why_not(name: str, tmp_path: Path) -> None:
    model = base()
    tuned = shaken(applied(name, model))
    ids = batch()["ids"]
    wanted = tuned.logits(ids)
    try:
        plain = method(name).merge(tuned)
    except ValueError as reason:
        text = str(reason)
        assert len(text) > 40
        assert "\n" not in text
    else:
        assert error(plain.logits(ids), wanted) < 1e-6
        assert all(p.trainable for p in plain.parameters())
        plain.save_pretrained(tmp_path / "plain")  # refuses what is not a plain GPT-2
    assert (tuned.logits(ids) == wanted).all()
    with pytest.raises(ValueError, match=r"\w") as caught:
        method(name).merge(applied(name, model, labelled=True))
    one_line(caught)


@pytest.mark.parametrize("name", NAMES)
def test_saving_leaves_other_files_of_a_directory_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    model = base()
    model.save_pretrained(tmp_path)
    made = method(name)
    tuned = made.apply(model, seed=0, data=[batch()])
    made.save(tuned, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (GPT.from_pretrained(tmp_path).logits(batch()["ids"]) == model.logits(batch()["ids"])).all()
    assert (METHODS[name].load(model, tmp_path).logits(batch()["ids"]) == tuned.logits(batch()["ids"])).all()


@pytest.mark.parametrize("name", NAMES)
def test_changing_what_is_trained_in_place_changes_no_other_model(name: str) -> None:
    model = base()
    before = {p.name: p.data.copy() for p in model.parameters()}
    tuned = method(name).apply(model, seed=0, data=[batch()])
    for p in tuned.parameters():
        if p.trainable:
            p.data += 1
    assert all((p.data == before[p.name]).all() for p in model.parameters())
    logits = tuned.logits(batch()["ids"])
    try:
        plain = method(name).merge(tuned)
    except InputError:
        return
    for p in plain.parameters():
        p.data += 1
    assert all((p.data == before[p.name]).all() for p in model.parameters())
    assert (tuned.logits(batch()["ids"]) == logits).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["list of dicts", "dict", "pair", "list of pairs"])
def test_data_comes_in_every_form(name: str, form: str) -> None:
    pair = (batch()["ids"], batch()["targets"])
    given: Any = {"list of dicts": [batch()], "dict": batch(), "pair": pair, "list of pairs": [pair]}[form]
    same = method(name).apply(base(), seed=0, data=[batch()])
    assert (method(name).apply(base(), seed=0, data=given).logits(pair[0]) == same.logits(pair[0])).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", [[{"input_ids": [[1]]}], np.ones((2, 3), int), 5, []])
def test_data_that_is_none_gets_one_line(name: str, given: Any) -> None:
    with pytest.raises(InputError) as caught:
        method(name).apply(base(), seed=0, data=given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_labels", [1, 0, 2.5, "3", float("nan"), True])
def test_impossible_numbers_of_labels_get_one_line(name: str, n_labels: Any) -> None:
    with pytest.raises(InputError, match="n_labels is"):
        METHODS[name](n_labels=n_labels)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_numpy_are_numbers(name: str, tmp_path: Path) -> None:
    made = method(name, n_labels=np.int64(3))
    assert type(made.n_labels) is int
    tuned = made.apply(base(), seed=0, data=[batch(labelled=True)])
    made.save(tuned, tmp_path / "it")
    loaded = METHODS[name].load(base(), tmp_path / "it")
    assert (loaded.logits(batch(labelled=True)["ids"]) == tuned.logits(batch(labelled=True)["ids"])).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_another_method_is_not_saved(name: str, tmp_path: Path) -> None:
    foreign = method("prompt_tuning" if name == "adapters" else "adapters").apply(base(), seed=0)
    with pytest.raises(InputError):
        method(name).save(foreign, tmp_path / "it")
    assert not (tmp_path / "it").exists()
