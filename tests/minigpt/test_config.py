"""GPTConfig: what it accepts, its sizes in closed form, and config.json both ways."""

import dataclasses
import json
import math

import numpy as np
import pytest

from minigpt.config import PRESETS, GPTConfig, parameter_shapes, preset
from minigpt.errors import InputError

SIZES = {"vocab_size": 65, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}


def refused(call, *words: str) -> str:
    """The one line that an `InputError` says, which has all of `words`."""
    with pytest.raises(InputError) as caught:
        call()
    assert type(caught.value) is InputError
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        *[(name, value, name) for name in SIZES for value in (0, -1, 1.5, "8", None, True, [4])],
        ("n_head", 5, "multiple"),
        ("n_inner", 0, "n_inner"),
        ("n_inner", 2.0, "n_inner"),
        ("layer_norm_epsilon", 0, "above 0"),
        ("layer_norm_epsilon", math.nan, "nan"),
        ("layer_norm_epsilon", "1e-5", "layer_norm_epsilon"),
        ("layer_norm_epsilon", 10**400, "layer_norm_epsilon"),
        ("initializer_range", -0.1, "at least 0"),
        ("initializer_range", math.inf, "inf"),
        ("resid_pdrop", 1.0, "below 1"),
        ("embd_pdrop", -0.1, "at least 0"),
        ("attn_pdrop", None, "attn_pdrop"),
        ("attn_pdrop", True, "attn_pdrop"),
        ("bos_token_id", 65, "vocab_size 65"),
        ("eos_token_id", -1, "eos_token_id"),
        ("eos_token_id", [3], "eos_token_id"),
    ],
)
def test_refuses(field, value, word):
    refused(lambda: GPTConfig(**{**SIZES, field: value}), field, word)


def test_takes_the_edges_of_what_is_allowed():
    config = GPTConfig(1, 1, 1, 1, 1, n_inner=1, bos_token_id=0, initializer_range=0, resid_pdrop=0.999)
    assert config.head_size == 1
    assert config.inner_size == 1


def test_numpy_numbers_become_plain_ones():
    config = GPTConfig(**{name: np.int64(value) for name, value in SIZES.items()}, attn_pdrop=np.float32(0.5))
    assert config == GPTConfig(**SIZES, attn_pdrop=0.5)
    assert all(type(value) in (int, float) or value is None for value in dataclasses.astuple(config))
    json.dumps(config.to_json_dict())


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig(**SIZES).n_embd = 24  # type: ignore[misc]


def test_inner_size_follows_the_width():
    config = GPTConfig(**SIZES)
    assert config.inner_size == 48
    assert dataclasses.replace(config, n_embd=24).inner_size == 96
    assert GPTConfig(**SIZES, n_inner=7).inner_size == 7
    assert config.head_size == 4


@pytest.mark.parametrize("n_inner", [None, 7])
def test_number_of_parameters_is_that_of_the_shapes(n_inner):
    for config in [GPTConfig(**SIZES, n_inner=n_inner), *PRESETS.values()]:
        assert config.n_parameters == sum(math.prod(shape) for shape in parameter_shapes(config).values())


def test_known_sizes():
    """Counts that are published: GPT-2 small, and what nanoGPT prints for its two models of tiny
    Shakespeare, which are without biases and counted without positions."""
    assert PRESETS["gpt2"].n_parameters == 124_439_808
    for name, millions in [("mini", 0.80), ("small", 10.65)]:
        config = PRESETS[name]
        positions = config.n_positions * config.n_embd
        biases = (11 * config.n_layer + 1) * config.n_embd
        assert round((config.n_parameters - positions - biases) / 1e6, 2) == millions


def test_shapes_of_one_layer():
    shapes = parameter_shapes(GPTConfig(vocab_size=11, n_positions=5, n_embd=6, n_layer=1, n_head=2, n_inner=9))
    assert list(shapes.items()) == [
        ("transformer.wte.weight", (11, 6)),
        ("transformer.wpe.weight", (5, 6)),
        ("transformer.h.0.ln_1.weight", (6,)),
        ("transformer.h.0.ln_1.bias", (6,)),
        ("transformer.h.0.attn.c_attn.weight", (6, 18)),
        ("transformer.h.0.attn.c_attn.bias", (18,)),
        ("transformer.h.0.attn.c_proj.weight", (6, 6)),
        ("transformer.h.0.attn.c_proj.bias", (6,)),
        ("transformer.h.0.ln_2.weight", (6,)),
        ("transformer.h.0.ln_2.bias", (6,)),
        ("transformer.h.0.mlp.c_fc.weight", (6, 9)),
        ("transformer.h.0.mlp.c_fc.bias", (9,)),
        ("transformer.h.0.mlp.c_proj.weight", (9, 6)),
        ("transformer.h.0.mlp.c_proj.bias", (6,)),
        ("transformer.ln_f.weight", (6,)),
        ("transformer.ln_f.bias", (6,)),
    ]


def test_json_both_ways():
    for config in [
        GPTConfig(**SIZES),
        GPTConfig(**SIZES, n_inner=5, layer_norm_epsilon=3e-6, initializer_range=0.1, resid_pdrop=0.1),
        GPTConfig(**SIZES, embd_pdrop=0.2, attn_pdrop=0.3, bos_token_id=0, eos_token_id=64),
        *PRESETS.values(),
    ]:
        assert GPTConfig.from_json_dict(json.loads(json.dumps(config.to_json_dict()))) == config


def test_json_has_what_transformers_looks_for():
    values = GPTConfig(**SIZES).to_json_dict(dtype="float16")
    assert values["architectures"] == ["GPT2LMHeadModel"]
    assert values["model_type"] == "gpt2"
    assert values["activation_function"] == "gelu_new"
    assert values["tie_word_embeddings"] is True
    assert values["dtype"] == values["torch_dtype"] == "float16"
    assert values["n_inner"] is None


def test_a_minimal_json_has_the_defaults_of_transformers():
    config = GPTConfig.from_json_dict({"model_type": "gpt2", **SIZES})
    assert config == GPTConfig(**SIZES, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    large = GPTConfig.from_json_dict({"model_type": "gpt2", **SIZES, "vocab_size": 50257})
    assert large.bos_token_id == large.eos_token_id == 50256


def test_json_ids_outside_the_vocabulary_never_occur():
    values = {"model_type": "gpt2", **SIZES, "bos_token_id": 64, "eos_token_id": 65}
    config = GPTConfig.from_json_dict(values)
    assert (config.bos_token_id, config.eos_token_id) == (64, None)


@pytest.mark.parametrize(
    "harmless",
    [
        {"activation_function": "gelu_pytorch_tanh"},
        {"reorder_and_upcast_attn": True},
        {"n_ctx": 16, "summary_type": "cls_index", "use_cache": False, "unheard_of": [1]},
        {"quantization_config": None},
    ],
)
def test_json_fields_that_change_no_result(harmless):
    values = {**GPTConfig(**SIZES).to_json_dict(), **harmless}
    assert GPTConfig.from_json_dict(values) == GPTConfig(**SIZES)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("model_type", "llama", "'llama'"),
        ("activation_function", "gelu", "'gelu'"),
        ("activation_function", None, "None"),
        ("scale_attn_weights", False, "false"),
        ("scale_attn_by_inverse_layer_idx", True, "true"),
        ("add_cross_attention", True, "true"),
        ("tie_word_embeddings", False, "false"),
        ("tie_word_embeddings", {"a": 1}, '{"a": 1}'),
        ("quantization_config", {"bits": 4}, "quantised"),
        ("n_embd", 12.0, "12.0"),
        ("eos_token_id", [3, 4], "[3, 4]"),
        ("eos_token_id", -3, "-3"),
        ("attn_pdrop", None, "None"),
    ],
)
def test_json_refused(field, value, shown):
    values = {**GPTConfig(**SIZES).to_json_dict(), field: value}
    refused(lambda: GPTConfig.from_json_dict(values), field, shown)


@pytest.mark.parametrize("field", ["model_type", *SIZES])
def test_json_missing_field(field):
    values = GPTConfig(**SIZES).to_json_dict()
    del values[field]
    refused(lambda: GPTConfig.from_json_dict(values), field)


def test_presets():
    assert preset("mini") == GPTConfig(65, n_positions=64, n_embd=128, n_layer=4, n_head=4)
    assert preset("mini", n_layer=1, attn_pdrop=0.1).n_layer == 1
    for name in ("base-xs", "base-s", "base-m", "base-l"):
        config = preset(name)
        assert (config.vocab_size, config.n_positions) == (1024, 256)
        assert config.bos_token_id == config.eos_token_id == 1023
    refused(lambda: preset("huge"), "'huge'", "base-xs")
    refused(lambda: preset("mini", width=3), "width", "n_embd")
    refused(lambda: preset("mini", n_head=3), "n_head")


def test_the_end_of_text_stays_last_in_another_vocabulary():
    for size in (100, 5000, np.int64(5000)):
        config = preset("base-s", vocab_size=size)
        assert config.bos_token_id == config.eos_token_id == size - 1
    config = preset("base-s", vocab_size=5000, eos_token_id=7, bos_token_id=None)
    assert (config.bos_token_id, config.eos_token_id) == (None, 7)
    assert preset("mini", vocab_size=300).eos_token_id is None
    refused(lambda: preset("base-s", vocab_size=0), "vocab_size")
    refused(lambda: preset("base-s", vocab_size="big"), "vocab_size")
