"""What a step costs: the products counted against closed forms, the bytes counted against tracemalloc's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from kernels import get_backend
from lessons.common import measure
from lessons.common.classifier import Classification, Classifier
from lessons.common.measure import CountingBackend, StepCost, count_products, held_bytes, step_cost, unique_bytes
from lessons.lesson_09_soft_prompts import EmbeddingRows, PrefixTuning, PromptTuning
from minigpt import GPT, GPTConfig
from minigpt.objectives import LanguageModelling
from minigpt.optim import AdamW

B, T, C, H, L, V, P = 3, 10, 12, 3, 2, 17, 4
N = B * T
SCORED = 7
LINEARS = 2 * 12 * C * C  # floating-point operations of a block's four linear layers, a row
HEAD = 2 * SCORED * C * V


def tiny(**settings: Any) -> GPT:
    config = {"vocab_size": V, "n_positions": 16, "n_embd": C, "n_layer": L, "n_head": H} | settings
    return GPT(GPTConfig(**config))


def pairs(b: int = B, t: int = T, v: int = V, scored: int = SCORED) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = np.full((b, t), -100)
    targets.flat[rng.choice(b * t, scored, replace=False)] = rng.integers(0, v, scored)
    return {"ids": rng.integers(0, v, (b, t)), "targets": targets}


def products(model: Any, **more: Any) -> tuple[dict[str, int], dict[str, int]]:
    forward, backward = count_products(model, LanguageModelling(), pairs(), **more)
    return dict(forward.flops), dict(backward.flops)


# ---------------------------------------------------------------------------------------------- products


def test_products_of_a_plain_gpt_are_the_closed_forms() -> None:
    forward, backward = products(tiny())
    attention = L * 4 * B * T * T * C  # q·kᵀ and P·v, all T × T places of them
    assert forward == {"linear_forward": L * N * LINEARS + HEAD, "attention_forward": attention}
    assert backward == {
        "linear_backward_input": L * N * LINEARS + HEAD,
        "linear_backward_weight": L * N * LINEARS + HEAD,
        "attention_backward": 2 * attention,
    }


def test_calls_are_counted_too() -> None:
    forward, backward = count_products(tiny(), LanguageModelling(), pairs())
    assert forward.calls == {"linear_forward": 4 * L + 1, "attention_forward": L}
    assert backward.calls["linear_backward_weight"] == 4 * L + 1
    assert forward.total == sum(forward.flops.values())


def test_frozen_weights_make_no_weight_products() -> None:
    model = tiny()
    model.freeze()
    model.unfreeze(["*.bias"])
    _, backward = products(model)
    assert "linear_backward_weight" not in backward
    # ln_1's bias of block 0 is the lowest: c_attn above it needs its input's gradient, and so does all else
    assert backward["linear_backward_input"] == L * N * LINEARS + HEAD


@pytest.mark.parametrize(
    ("lowest", "inputs", "attentions"),
    [
        ("transformer.ln_f.weight", 0, 0),
        ("transformer.h.1.mlp.c_proj.weight", 0, 0),
        ("transformer.h.1.mlp.c_fc.weight", 4 * C * C, 0),
        ("transformer.h.1.ln_2.weight", 8 * C * C, 0),
        ("transformer.h.1.attn.c_proj.weight", 8 * C * C, 0),
        ("transformer.h.1.attn.c_attn.weight", 9 * C * C, 1),
        ("transformer.h.1.ln_1.weight", 12 * C * C, 1),
        ("transformer.h.0.attn.c_attn.weight", 21 * C * C, 2),
        ("transformer.wte.weight", 24 * C * C, 2),
    ],
)
def test_the_backward_stops_at_the_lowest_trained_parameter(lowest: str, inputs: int, attentions: int) -> None:
    model = tiny()
    model.freeze()
    model.unfreeze([lowest])
    _, backward = products(model)
    assert backward.get("linear_backward_input", 0) == 2 * N * inputs + HEAD
    assert backward.get("attention_backward", 0) == attentions * 8 * B * T * T * C
    own = next(p for p in model.parameters() if p.trainable)
    linear = own.data.ndim == 2 and own.name != "transformer.wte.weight"
    expected = 2 * N * own.data.size if linear else HEAD if own.name == "transformer.wte.weight" else 0
    assert backward.get("linear_backward_weight", 0) == expected


def test_training_the_head_alone_makes_no_product_in_the_trunk() -> None:
    trunk = tiny()
    trunk.freeze()
    model = Classifier(trunk, 5, dropout=0.0)
    rng = np.random.default_rng(0)
    batch = {"ids": rng.integers(0, V, (B, T)), "labels": np.arange(B), "lengths": np.array([T, 1, 4])}
    forward, backward = count_products(model, Classification(), batch)
    assert forward.flops["linear_forward"] == L * N * LINEARS + 2 * B * 3 * C * 5
    assert backward.flops == {"linear_backward_weight": 2 * B * 3 * C * 5}
    trunk.unfreeze(["transformer.wpe.weight"])
    _, backward = count_products(model, Classification(), batch)
    assert backward.flops["linear_backward_input"] == L * N * LINEARS + 2 * B * 3 * C * 5


def test_a_soft_prompt_pays_the_way_down_and_no_weight_products() -> None:
    forward, backward = products(PromptTuning(num_virtual_tokens=P).apply(tiny()))
    longer = B * (P + T)
    attention = L * 4 * B * (P + T) ** 2 * C
    assert forward == {"linear_forward": L * longer * LINEARS + HEAD, "attention_forward": attention}
    assert backward == {
        "linear_backward_input": L * longer * LINEARS + HEAD,
        "attention_backward": 2 * attention,
    }


def test_a_prefix_ends_the_way_down_at_the_lowest_keys_and_values() -> None:
    forward, backward = products(PrefixTuning(num_virtual_tokens=P).apply(tiny()))
    attention = L * 4 * B * T * (P + T) * C
    assert forward == {"linear_forward": L * N * LINEARS + HEAD, "attention_forward": attention}
    assert backward == {
        "linear_backward_input": L * N * LINEARS + HEAD - 2 * N * 3 * C * C,  # not through the lowest c_attn
        "attention_backward": 2 * attention,
    }


def test_the_counting_backend_counts_and_computes_the_same() -> None:
    numpy = get_backend("numpy")
    counting = CountingBackend(numpy)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 5))
    assert (counting.ops.linear_forward(x, weight, None) == numpy.ops.linear_forward(x, weight, None)).all()
    assert counting.products.flops == {"linear_forward": 2 * 6 * 4 * 5}
    q = rng.standard_normal((1, 2, 3, 4))
    for keep in (True, False):
        out, cache = counting.ops.attention_forward(q, q, q, None, None, keep)
        assert (out == numpy.ops.attention_forward(q, q, q, None, None, keep)[0]).all()
        assert (cache is None) is not keep


# ---------------------------------------------------------------------------------------------- bytes

# Large enough that the Python objects of a pass, which tracemalloc sees too, are a small part.
WIDE = {"vocab_size": 200, "n_positions": 80, "n_embd": 96, "n_layer": 3, "n_head": 4}


def trained_partly(patterns: list[str]) -> GPT:
    model = tiny(**WIDE)
    model.freeze()
    model.unfreeze(patterns)
    return model


MODELS: dict[str, Any] = {
    "all": lambda: tiny(**WIDE),
    "biases": lambda: trained_partly(["*.bias"]),
    "last block": lambda: trained_partly(["transformer.h.2.*", "transformer.ln_f.*"]),
    "last norm": lambda: trained_partly(["transformer.ln_f.*"]),
    "with dropout": lambda: tiny(**WIDE, attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1),
    "soft prompt": lambda: PromptTuning(num_virtual_tokens=16).apply(tiny(**WIDE)),
    "prefix": lambda: PrefixTuning(num_virtual_tokens=16).apply(tiny(**WIDE)),
    "embedding rows": lambda: EmbeddingRows(token_indices=(1, 2)).apply(tiny(**WIDE)),
}


def cost_of(name: str) -> StepCost:
    return step_cost(MODELS[name](), LanguageModelling(), pairs(8, 64, WIDE["vocab_size"], 400), repeats=1)


@pytest.fixture(scope="module")
def costs() -> dict[str, StepCost]:
    return {name: cost_of(name) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_counted_bytes_are_what_tracemalloc_sees(name: str, costs: dict[str, StepCost]) -> None:
    cost = costs[name]
    assert cost.measured_activations == pytest.approx(cost.activations, rel=0.03, abs=60_000)
    assert cost.measured_gradients == pytest.approx(cost.gradients, rel=0.01, abs=20_000)
    assert cost.measured_optimizer == pytest.approx(cost.optimizer, rel=0.01, abs=4_000)
    assert cost.measured_peak > cost.gradients + cost.optimizer + 0.97 * cost.activations
    trainable = sum(p.data.size for p in MODELS[name]().parameters() if p.trainable)
    assert (cost.gradients, cost.optimizer) == (4 * trainable, 8 * trainable)


def test_less_trained_is_less_kept(costs: dict[str, StepCost]) -> None:
    order = ["all", "biases", "last block", "last norm"]
    kept = [costs[name].activations for name in order]
    assert all(more > 1.2 * less for more, less in pairwise(kept))
    assert costs["with dropout"].activations > 1.1 * costs["all"].activations
    flops = [sum(costs[name].backward.values()) for name in order]
    assert all(more > less for more, less in pairwise(flops))


def test_what_is_kept_for_the_last_norm_alone_is_its_own_and_the_heads(costs: dict[str, StepCost]) -> None:
    """Nothing of the blocks below: 8 · 64 rows of 96 normalised numbers and a scale, and 400 scored rows of logits."""
    rows, width, scored, vocab = 8 * 64, WIDE["n_embd"], 400, WIDE["vocab_size"]
    needed = 4 * (rows * (width + 1) + scored * vocab)
    indices = 8 * (rows + 3 * scored)  # which rows are scored, and their targets
    assert needed <= costs["last norm"].activations <= needed + indices


def test_training_the_head_alone_keeps_nothing_of_the_trunk() -> None:
    trunk = tiny(**WIDE)
    trunk.freeze()
    rng = np.random.default_rng(0)
    batch = {"ids": rng.integers(0, 200, (8, 64)), "labels": np.arange(8) % 3, "lengths": np.full(8, 64)}
    cost = step_cost(Classifier(trunk, 3, dropout=0.0), Classification(), batch, repeats=1)
    pooled = 4 * 8 * 3 * WIDE["n_embd"]
    assert pooled <= cost.activations < 3 * pooled  # with the places of the maxima: far less than one layer's 196,608
    assert cost.measured_activations < cost.activations + 60_000


def test_a_step_cost_leaves_the_model_as_it_is() -> None:
    model = tiny()
    before = {p.name: (p.data, p.data.copy()) for p in model.parameters()}
    cost = step_cost(model, LanguageModelling(), pairs(), repeats=2)
    for p in model.parameters():
        assert p.data is before[p.name][0]
        assert (p.data == before[p.name][1]).all()
        assert not p.in_buffer
    assert cost.weights == 4 * model.n_parameters
    assert cost.trainable == model.n_parameters
    record = cost.as_record()
    assert record["flops"] == cost.flops == sum(cost.forward.values()) + sum(cost.backward.values())
    assert record["bytes"] == cost.weights + cost.gradients + cost.optimizer + cost.activations


def test_nothing_trainable_is_refused() -> None:
    model = tiny()
    model.freeze()
    with pytest.raises(ValueError, match="nothing to train: every parameter is frozen"):
        step_cost(model, LanguageModelling(), pairs())


def test_held_bytes_counts_each_block_once() -> None:
    block, other, weight = np.zeros(100), np.zeros(7), np.zeros(50)
    view, inside = block[10:20], [other, (other, {"again": other[2:]})]
    text, number = "no array", np.float64(1.0)

    def inner() -> Any:
        return view, weight

    def backward() -> Any:
        return inner, block.reshape(10, 10), inside, text, number

    assert held_bytes(backward) == 800 + 56 + 400
    assert held_bytes(backward, exclude=[weight[1:]]) == 800 + 56
    assert unique_bytes([block, block, other]) == 856


def test_a_step_is_the_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed are forward, backward and an update of every trained parameter, at rate 0."""
    updates = []
    update = AdamW.update

    def noted(self: AdamW, param: Any, grad: Any, *rest: Any) -> None:
        updates.append((param.size, float(np.abs(grad).max()), rest[3]))
        update(self, param, grad, *rest)

    monkeypatch.setattr(AdamW, "update", noted)
    model = tiny()
    assert measure.step_seconds(model, LanguageModelling(), pairs(), repeats=2) > 0
    assert [size for size, _, _ in updates] == [model.n_parameters] * 3
    assert all(largest > 0 for _, largest, _ in updates)
    assert all(rate == 0 for _, _, rates in updates for rate in rates)
