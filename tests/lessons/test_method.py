"""What every method shares: the registry, installing on a copy, files that fit or are refused, merging."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lessons
from lessons.common import method as module
from lessons.common.classifier import Classifier
from lessons.common.method import (
    REGISTRY,
    SETTINGS_FILE,
    TENSORS_FILE,
    Method,
    assign,
    language_model,
    n_trainable,
    register,
    require_plain,
)
from minigpt import GPT, GPTConfig, InputError, files
from minigpt.layers import Layer
from minigpt.objectives import LanguageModelling
from minigpt.optim import ParameterGroup
from minigpt.parameters import Parameter
from minigpt.training import TrainConfig

CONFIG = GPTConfig(vocab_size=11, n_positions=8, n_embd=6, n_layer=2, n_head=2)


@dataclass(frozen=True, kw_only=True)
class Gains(Method):
    """Trains the LayerNorms of some blocks."""

    blocks: tuple[int, ...] = (0, 1)
    rate: float = 1.0

    learning_rate = 0.05

    def install(self, trunk: GPT, seed: int, data: Any) -> None:
        trunk.unfreeze([f"transformer.h.{i}.ln_*" for i in self.blocks])
        rng = np.random.default_rng(seed)
        for p in trunk.parameters():
            if p.trainable and p.name.endswith("weight"):
                p.data = (p.data + 0.1 * rng.standard_normal(p.data.shape)).astype(trunk.dtype)

    def groups(self, tuned: Any) -> Any:
        return (ParameterGroup("*.bias", lr_scale=0.0),)


@pytest.fixture(autouse=True)
def gains() -> Iterator[None]:
    """The toy method is known while a test runs."""
    before = dict(REGISTRY)
    register("gains")(Gains)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def model(seed: int = 0, dtype: str = "float32") -> GPT:
    return GPT(CONFIG, seed=seed, dtype=dtype)


def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 11, (2, 6))


# ---------------------------------------------------------------------------------------------- the registry


def test_a_registered_class_knows_its_name() -> None:
    assert REGISTRY["gains"] is Gains
    assert Gains.name == "gains"
    assert Gains().name == "gains"


def test_the_mapping_knows_every_lessons_methods_and_names_them_when_asked_for_another() -> None:
    names = list(lessons.METHODS)
    assert {"adapters", "bitfit", "ia3"} <= set(names)
    assert len(lessons.METHODS) == len(names) == len(set(names))
    for name in names:
        assert lessons.METHODS[name].name == name
    with pytest.raises(KeyError, match=r"no method 'lorra'; there are .*bitfit"):
        lessons.METHODS["lorra"]
    assert "lorra" not in lessons.METHODS


def test_methods_are_values() -> None:
    assert Gains(blocks=(1,)) == Gains(blocks=(1,)) != Gains()
    with pytest.raises(AttributeError):
        Gains().rate = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Gains(blokcs=(1,))  # type: ignore[call-arg]


# ---------------------------------------------------------------------------------------------- apply


def test_apply_frees_what_is_trained_on_a_copy() -> None:
    base = model()
    kept = {name: array.copy() for name, array in base.state().items()}
    tuned = Gains(blocks=(1,)).apply(base, seed=4)
    free = [p.name for p in tuned.parameters() if p.trainable]
    assert free == [f"transformer.h.1.{ln}.{part}" for ln in ("ln_1", "ln_2") for part in ("weight", "bias")]
    assert n_trainable(tuned) == 4 * 6
    assert all(p.trainable for p in base.parameters())
    assert all(base.state()[name].tobytes() == array.tobytes() for name, array in kept.items())
    assert np.shares_memory(tuned.wte.data, base.wte.data)
    assert (tuned.logits(ids()) != base.logits(ids())).any()
    assert (tuned.logits(ids()) == Gains(blocks=(1,)).apply(base, seed=4).logits(ids())).all()
    assert (tuned.logits(ids()) != Gains(blocks=(1,)).apply(base, seed=5).logits(ids())).any()


def test_a_head_comes_on_top() -> None:
    tuned = Gains(n_labels=3).apply(model(), seed=1)
    assert isinstance(tuned, Classifier)
    assert tuned.logits(ids()).shape == (2, 3)
    assert n_trainable(tuned) == 2 * 4 * 6 + 3 * 6 * 3 + 3


@pytest.mark.parametrize("n_labels", [1, 0, -2])
def test_a_head_needs_two_labels(n_labels: int) -> None:
    with pytest.raises(InputError, match=f"n_labels is {n_labels}; a classifier needs at least 2"):
        Gains(n_labels=n_labels)


class Wrapped(Layer):
    """A layer around another."""

    def __init__(self, inner: Layer) -> None:
        self.inner = inner
        self.extra = Parameter("extra", np.zeros(1))

    def forward(self, x: Any, ctx: Any) -> Any:
        return self.inner.forward(x, ctx)


def test_only_a_plain_model_can_be_a_base() -> None:
    require_plain(model())
    changed = model()
    changed.replace("h.0.mlp", lambda inner, name: Wrapped(inner))
    with pytest.raises(InputError, match=r"plain GPT to start from: this one has been changed \(extra\)"):
        Gains().apply(changed)
    with pytest.raises(InputError, match="this is a Classifier"):
        Gains().apply(Gains(n_labels=2).apply(model()))
    virtual = model()
    virtual.n_virtual = 2
    with pytest.raises(InputError, match="virtual tokens"):
        Gains().apply(virtual)


def test_fit_trains_with_the_methods_groups_and_leaves_the_base() -> None:
    base = model()
    kept = {name: array.copy() for name, array in base.state().items()}
    method = Gains()
    tuned = method.apply(base)
    start = {p.name: p.data.copy() for p in tuned.parameters()}
    batch = {"ids": ids(), "targets": ids()}
    history = method.fit(
        tuned, LanguageModelling(), lambda step: batch, TrainConfig(steps=2, lr=0.1, workers=1), progress=False
    )
    assert len(history.losses) == 2
    for p in tuned.parameters():
        moves = p.trainable and p.name.endswith("weight")  # the group holds the biases still
        assert bool((p.data != start[p.name]).any()) == moves, p.name
    assert all(base.state()[name].tobytes() == array.tobytes() for name, array in kept.items())


# ---------------------------------------------------------------------------------------------- merging


def test_merged_is_plain_and_free() -> None:
    tuned = Gains().apply(model())
    plain = Gains().merge(tuned)
    assert all(p.trainable for p in plain.parameters())
    assert (plain.logits(ids()) == tuned.logits(ids())).all()
    assert not all(p.trainable for p in tuned.parameters())


def test_what_cannot_become_a_plain_model_is_refused() -> None:
    with pytest.raises(InputError, match="gains: a model with a classifier head"):
        Gains().merge(Gains(n_labels=2).apply(model()))
    changed = model()
    changed.replace("h.0.mlp", lambda inner, name: Wrapped(inner))
    with pytest.raises(InputError, match="gains did not make this model"):
        Gains().merge(changed)
    assert language_model(changed, "it") is changed


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_labels", [None, 3])
def test_saved_and_loaded_it_is_the_same(n_labels: int | None, dtype: str, tmp_path: Path) -> None:
    base = model(dtype=dtype)
    method = Gains(blocks=(1,), rate=0.25, n_labels=n_labels)
    tuned = method.apply(base, seed=3)
    method.save(tuned, tmp_path / "it")
    assert sorted(path.name for path in (tmp_path / "it").iterdir()) == [SETTINGS_FILE, TENSORS_FILE]
    stored = json.loads((tmp_path / "it" / SETTINGS_FILE).read_text())
    assert stored == {"method": "gains", "settings": {"n_labels": n_labels, "blocks": [1], "rate": 0.25}}
    tensors, _ = files.load_tensors(tmp_path / "it" / TENSORS_FILE, dtype)
    assert set(tensors) == {p.name for p in tuned.parameters() if p.trainable}
    loaded = Gains.load(base, tmp_path / "it")
    assert (loaded.logits(ids()) == tuned.logits(ids())).all()
    assert loaded.logits(ids()).dtype == dtype
    assert n_trainable(loaded) == n_trainable(tuned)


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    for method in (Gains(), Gains(blocks=(), rate=2), Gains(n_labels=2)):
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(module.asdict(method)))
        assert Gains.from_settings(json.loads(path.read_text()), path) == method


def saved(directory: Path) -> GPT:
    base = model()
    Gains().save(Gains().apply(base), directory)
    return base


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "bitfit", "settings": {}}, "is of the method 'bitfit', not 'gains'"),
        ({"settings": {}}, "is of the method None, not 'gains'"),
        ({"method": "gains"}, "holds no settings"),
        ({"method": "gains", "settings": 5}, "holds no settings"),
        ({"method": "gains", "settings": {}}, "blocks, n_labels, rate missing or unknown"),
        (
            {"method": "gains", "settings": {"blocks": [0], "n_labels": "two", "rate": 1}},
            "n_labels is 'two'; it must be a whole number",
        ),
        ({"method": "gains", "settings": {"blocks": [0], "n_labels": None}}, "rate missing or unknown"),
        (
            {"method": "gains", "settings": {"blocks": [0], "n_labels": None, "rate": 1, "speed": 2}},
            "speed missing or unknown",
        ),
        ({"method": "gains", "settings": {"blocks": [0], "n_labels": 1, "rate": 1}}, "n_labels is 1"),
        ({"method": "gains", "settings": {"blocks": [7], "n_labels": None, "rate": 1}}, "no parameter matches"),
    ],
)
def test_settings_of_something_else_are_refused(settings: Any, said: str, tmp_path: Path) -> None:
    base = saved(tmp_path)
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(settings))
    with pytest.raises(InputError, match=said) as caught:
        Gains.load(base, tmp_path)
    assert "\n" not in str(caught.value)


NAME = "transformer.h.1.ln_2.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(NAME), f"missing: {NAME}$"),
        (lambda t: t.__setitem__("transformer.wte.weight", t[NAME]), "left over: transformer.wte.weight$"),
        (lambda t: t.__setitem__(NAME, np.ones(5, np.float32)), rf"{NAME} is \(5,\) instead of \(6,\)$"),
        (lambda t: t.__setitem__("x", t.pop(NAME)), f"missing: {NAME}; left over: x$"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Any, said: str, tmp_path: Path) -> None:
    base = saved(tmp_path)
    tensors, _ = files.load_tensors(tmp_path / TENSORS_FILE, "float32")
    change(tensors)
    files.save_tensors(tmp_path / TENSORS_FILE, tensors)
    with pytest.raises(InputError, match=f"does not fit this model: {said}") as caught:
        Gains.load(base, tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_gone_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=SETTINGS_FILE):
        Gains.load(model(), tmp_path / "nowhere")
    base = saved(tmp_path / "it")
    path = tmp_path / "it" / TENSORS_FILE
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # one bit of one number
    path.write_bytes(data)
    with pytest.raises(InputError, match=TENSORS_FILE):
        Gains.load(base, tmp_path / "it")
    path.unlink()
    with pytest.raises(InputError, match=TENSORS_FILE):
        Gains.load(base, tmp_path / "it")
    (tmp_path / "it" / SETTINGS_FILE).write_text("{not json")
    with pytest.raises(InputError, match=SETTINGS_FILE):
        Gains.load(base, tmp_path / "it")


def test_assign_changes_nothing_when_it_refuses() -> None:
    tuned = Gains(blocks=(0,)).apply(model())
    before = {p.name: p.data for p in tuned.parameters()}
    tensors = {p.name: np.full(p.data.shape, 7.0) for p in tuned.parameters() if p.trainable}
    tensors.pop("transformer.h.0.ln_1.bias")
    free = [p for p in tuned.parameters() if p.trainable]
    with pytest.raises(InputError, match="missing"):
        assign(free, tensors, tuned, "somewhere")
    assert all(p.data is before[p.name] for p in tuned.parameters())
    tensors["transformer.h.0.ln_1.bias"] = np.full(6, 7.0)
    assign(free, tensors, tuned, "somewhere")
    assert all((p.data == 7).all() and p.data.dtype == np.float32 for p in free)
