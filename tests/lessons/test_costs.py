"""Every method is as cheap as it claims: no product that nobody asked for, no gradient made and thrown away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lessons import METHODS
from lessons.common.classifier import Classification
from lessons.common.masked import DENSE_ABOVE
from lessons.common.measure import StepCost, count_products, step_cost
from minigpt import GPT, GPTConfig
from minigpt.objectives import LanguageModelling
from minigpt.optim import AdamW
from minigpt.parameters import Gradients

B, T, C, L, V = 4, 24, 32, 3, 64
N = B * T
BASE = GPT(GPTConfig(vocab_size=V, n_positions=64, n_embd=C, n_layer=L, n_head=4), seed=0)
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, V, (B, T))
PAIRS = {"ids": IDS, "targets": RNG.integers(0, V, (B, T))}
LABELS = {"ids": IDS, "labels": RNG.integers(0, 3, B), "lengths": np.full(B, T)}
NAMES = list(METHODS)


def tuned(name: str, n_labels: int | None = None) -> Any:
    batch = LABELS if n_labels else PAIRS
    return METHODS[name](n_labels=n_labels).apply(BASE, seed=0, data=[batch])


def cost(name: str) -> StepCost:
    return step_cost(tuned(name), LanguageModelling(), PAIRS, repeats=1)


@pytest.fixture(scope="module")
def costs() -> dict[str, StepCost]:
    return {name: cost(name) for name in NAMES}


@pytest.mark.parametrize("name", [n for n in NAMES if n != "importance"])
def test_a_weight_product_is_made_for_each_trainable_matrix_and_no_other(name: str) -> None:
    model = tuned(name)
    _, backward = count_products(model, LanguageModelling(), PAIRS)
    matrices = [p for p in model.parameters() if p.trainable and p.data.ndim == 2]
    looked_up = ("wte.weight", "wpe.weight", "prompt_embeddings", ".ia3_l")  # read, repeated or multiplied by elements
    wanted = sum(2 * N * p.data.size for p in matrices if not p.name.endswith(looked_up))
    if any(p.name.endswith("wte.weight") for p in matrices):
        wanted += 2 * N * C * V  # the tied head's part
    assert backward.flops["linear_backward_weight"] == wanted


@pytest.mark.parametrize("density", [0.002, 0.02, 0.3])
def test_a_mask_makes_whole_products_only_of_tensors_with_many_selected_entries(density: float) -> None:
    few = METHODS["importance"](density=density).apply(BASE, seed=0, data=[PAIRS])
    _, backward = count_products(few, LanguageModelling(), PAIRS)
    matrices = [e.base.data for e in few.entries() if e.base.data.ndim == 2 and "wpe" not in e.base.name]
    chosen = [e.index.size for e in few.entries() if e.base.data.ndim == 2 and "wpe" not in e.base.name]
    whole = [m.size for m, k in zip(matrices, chosen, strict=True) if k > DENSE_ABOVE * m.size]
    assert backward.flops["linear_backward_weight"] == sum(2 * N * size for size in whole)


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_make_no_more_than_full_fine_tuning_and_the_technique(name: str) -> None:
    forward, backward = count_products(tuned(name), LanguageModelling(), PAIRS)
    full_forward, full_backward = count_products(tuned("full"), LanguageModelling(), PAIRS)
    longer = (T + 20) / T if name == "prompt_tuning" else 1.0  # its vectors pass through the trunk
    inputs, most = backward.flops["linear_backward_input"], full_backward.flops["linear_backward_input"]
    own = forward.flops["linear_forward"] - longer * full_forward.flops["linear_forward"]
    assert inputs <= longer * most + max(own, 0) + 1


@pytest.mark.parametrize("name", NAMES)
def test_bytes_follow_what_is_trained(name: str, costs: dict[str, StepCost]) -> None:
    c = costs[name]
    model = tuned(name)
    trained = sum(p.data.size for p in model.parameters() if p.trainable)
    assert c.trainable == trained
    assert c.gradients == 4 * trained
    assert c.optimizer == 8 * trained
    assert c.measured_gradients == pytest.approx(c.gradients, abs=20_000)
    assert c.measured_optimizer == pytest.approx(c.optimizer, abs=20_000)
    assert c.measured_activations == pytest.approx(c.activations, rel=0.15, abs=40_000)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("full", "ulmfit")])
def test_training_less_takes_less(name: str, costs: dict[str, StepCost]) -> None:
    full, less = costs["full"], costs[name]
    assert less.trainable < full.trainable
    assert less.gradients + less.optimizer < full.gradients + full.optimizer
    if name not in ("adapters", "prompt_tuning", "dora"):  # these pass through more layers or longer rows
        assert sum(less.backward.values()) < sum(full.backward.values())


def test_a_head_alone_runs_no_backward_through_the_trunk() -> None:
    model = METHODS["full"](n_labels=3).apply(BASE)
    model.trunk.freeze()
    _, backward = count_products(model, Classification(), LABELS)
    assert set(backward.flops) == {"linear_backward_weight"}
    assert backward.flops["linear_backward_weight"] == 2 * B * 3 * C * 3


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_that_is_made_is_of_a_trainable_parameter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # `add` of a frozen parameter would fail; `slot` and `start` of one too: nothing but the trainable has a place.
    model = tuned(name)
    grads = Gradients(model.parameters(), model.backend)
    _, backward = LanguageModelling().forward(model, PAIRS, N, model.context(grad=True))
    backward(grads)
    assert set(grads) == {p.name for p in model.parameters() if p.trainable}
    reached = {name for name in grads if name in grads}
    assert reached == set(grads), "a trainable parameter that no backward reaches"
    assert AdamW.order(model.parameters(), (), 0.0)
