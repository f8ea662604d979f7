"""Model directories and tensor files, exchanged with transformers, torch and safetensors both ways."""

import json
import logging
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
safetensors_torch = pytest.importorskip("safetensors.torch")

from minigpt.config import PRESETS, GPTConfig, parameter_shapes  # noqa: E402
from minigpt.errors import InputError  # noqa: E402
from minigpt.files import load_model, load_tensors, save_model, save_tensors  # noqa: E402

pytestmark = pytest.mark.parity

SHAPES = [
    {"vocab_size": 97, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3},
    {"vocab_size": 31, "n_positions": 9, "n_embd": 7, "n_layer": 3, "n_head": 1},
    {"vocab_size": 50, "n_positions": 1, "n_embd": 10, "n_layer": 1, "n_head": 5, "n_inner": 13},
]


def hf_model(shape: dict, dtype=None, **more):
    torch.manual_seed(0)
    config = transformers.GPT2Config(**shape, **{"bos_token_id": 1, "eos_token_id": 2, **more})
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():  # the initial biases and gains hide an exchange of two of them
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model if dtype is None else model.to(dtype)


def state_of(model) -> dict[str, np.ndarray]:
    return {
        name: tensor.detach().to(torch.float64).numpy()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }


def random_tensors(config: GPTConfig, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in parameter_shapes(config).items()}


@pytest.fixture
def complaints(monkeypatch):
    """Everything that transformers and Python's warnings say during the test."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector = Collector(level=logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(collector)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: lines + [str(warning.message) for warning in caught]
    logger.removeHandler(collector)


def test_complaints_are_heard(complaints):
    transformers.GPT2Config(**SHAPES[0], bos_token_id=10**6)
    assert any("bos_token_id" in line for line in complaints())


@pytest.mark.parametrize("shape", SHAPES, ids=["even", "odd", "inner"])
@pytest.mark.parametrize(
    ("dtype", "ours"),
    [("float32", "float32"), ("float64", "float64"), ("float16", "float32"), ("bfloat16", "float32")],
)
def test_reads_what_transformers_saves(tmp_path, shape, dtype, ours):
    model = hf_model(shape, getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    config, tensors = load_model(tmp_path)
    expected = state_of(model)
    assert list(tensors) == list(parameter_shapes(config))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == ours
        np.testing.assert_array_equal(tensor.astype("float64"), expected[name])
    for field, value in shape.items():
        assert getattr(config, field) == value
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    assert config.n_parameters == model.num_parameters()


def test_reads_the_trunk_saved_alone_and_with_mask_buffers(tmp_path):
    """Names without the prefix, and the buffers that the hub's first files carry."""
    model = hf_model(SHAPES[0])
    model.transformer.save_pretrained(tmp_path)
    tensors = safetensors_torch.load_file(tmp_path / "model.safetensors")
    assert "wte.weight" in tensors
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, 16, 16))
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors_torch.save_file(tensors, tmp_path / "model.safetensors")
    _, loaded = load_model(tmp_path)
    expected = state_of(model)
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor, expected[name])


def test_reads_a_stored_head_only_if_it_is_the_embedding(tmp_path):
    model = hf_model(SHAPES[0])
    model.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    safetensors_torch.save_file(state, tmp_path / "model.safetensors")
    assert "lm_head.weight" not in load_model(tmp_path)[1]
    state["lm_head.weight"][3, 4] += 1
    safetensors_torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head\.weight differs"):
        load_model(tmp_path)


def test_reads_shards_of_transformers(tmp_path):
    model = hf_model(SHAPES[0])
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    _, loaded = load_model(tmp_path)
    expected = state_of(model)
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor, expected[name])


def test_reads_a_default_end_id_outside_the_vocabulary_as_none(tmp_path):
    hf_model(SHAPES[0], bos_token_id=50256, eos_token_id=50256).save_pretrained(tmp_path)
    config, _ = load_model(tmp_path)
    assert config.bos_token_id is None
    assert config.eos_token_id is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation_function", "relu"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("tie_word_embeddings", False),
        ("add_cross_attention", True),
    ],
)
def test_refuses_models_of_transformers_that_compute_something_else(tmp_path, field, value):
    transformers.GPT2Config(**SHAPES[0], **{field: value}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=field):
        load_model(tmp_path)


@pytest.mark.parametrize("shape", SHAPES, ids=["even", "odd", "inner"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("last_id", [True, False])
def test_transformers_reads_ours_without_a_word(tmp_path, complaints, shape, dtype, last_id):
    end = shape["vocab_size"] - 1 if last_id else None
    config = GPTConfig(**shape, bos_token_id=end, eos_token_id=end, layer_norm_epsilon=3e-5)
    tensors = random_tensors(config, dtype)
    save_model(tmp_path, config, tensors)
    model, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert complaints() == []
    assert str(model.dtype) == f"torch.{dtype}"
    state = state_of(model)
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(state[name], tensor.astype("float64"))
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    for field in (
        "vocab_size",
        "n_positions",
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "layer_norm_epsilon",
    ):
        assert getattr(model.config, field) == getattr(config, field)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (end, end)
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (end, end)
    assert model.config.resid_pdrop == 0.0


def test_auto_classes_open_ours(tmp_path, complaints):
    config = GPTConfig(**SHAPES[0], bos_token_id=96, eos_token_id=96)
    save_model(tmp_path, config, random_tensors(config, "float32"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, pad_token_id=0)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert complaints() == []


def test_there_and_back_again(tmp_path):
    """Ours to transformers and back: the same arrays, the same configuration."""
    config = GPTConfig(**SHAPES[0], bos_token_id=96, eos_token_id=96, attn_pdrop=0.25)
    tensors = random_tensors(config, "float32")
    save_model(tmp_path / "ours", config, tensors)
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again, loaded = load_model(tmp_path / "theirs")
    assert again == config
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)


@pytest.mark.parametrize("name", ["nano", "mini", "base-xs", "base-s", "base-m", "base-l", "small"])
def test_presets_have_as_many_parameters_as_in_transformers(name):
    config = PRESETS[name]
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config.to_json_dict()))
        model.tie_weights()
    assert config.n_parameters == model.num_parameters()


TENSORS = {
    "bool": np.array([[True, False, True]]),
    "u8": np.arange(5, dtype="u1"),
    "i8": np.arange(-2, 3, dtype="i1"),
    "i16": np.arange(-2, 3, dtype="i2"),
    "i32": np.arange(6, dtype="i4").reshape(1, 2, 3),
    "i64": np.array(7, dtype="i8"),
    "f16": np.array([0.5, -2.0], "f2"),
    "f32": np.linspace(0, 1, 12, dtype="f4").reshape(3, 4),
    "f64": np.linspace(0, 1, 3),
    "empty": np.zeros((0, 4), "f4"),
}


def test_the_library_reads_ours(tmp_path):
    save_tensors(tmp_path / "x.safetensors", TENSORS, {"step": "12"})
    for load in (safetensors_numpy.load_file, safetensors_torch.load_file):
        loaded = load(tmp_path / "x.safetensors")
        assert loaded.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            value = np.asarray(loaded[name])
            assert value.dtype == tensor.dtype
            np.testing.assert_array_equal(value, tensor)


def test_we_read_the_library(tmp_path):
    safetensors_numpy.save_file(TENSORS, tmp_path / "x.safetensors", {"step": "12"})
    loaded, metadata = load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"step": "12"}
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        np.testing.assert_array_equal(loaded[name], tensor)


def test_every_finite_bfloat16_and_float16(tmp_path):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = {"bf16": bits.view(torch.bfloat16), "f16": bits.view(torch.float16)}
    values = {name: value[torch.isfinite(value)].contiguous() for name, value in values.items()}
    safetensors_torch.save_file(values, tmp_path / "x.safetensors")
    for dtype in ("float32", "float64"):
        loaded, _ = load_tensors(tmp_path / "x.safetensors", dtype=dtype)
        for name, value in values.items():
            expected = value.to(getattr(torch, dtype)).numpy()
            np.testing.assert_array_equal(loaded[name], expected)
            np.testing.assert_array_equal(np.signbit(loaded[name]), np.signbit(expected))


def test_eight_bit_floats_are_refused_by_name(tmp_path):
    values = {"w": torch.ones(4).to(torch.float8_e4m3fn)}
    safetensors_torch.save_file(values, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x\.safetensors: tensor 'w' has the unknown dtype 'F8_E4M3'"):
        load_tensors(tmp_path / "x.safetensors")


def test_both_refuse_the_same_layouts(tmp_path):
    """Random offsets of three tensors: where the library says no, so do we, and the other way."""
    rng = np.random.default_rng(0)
    path = Path(tmp_path / "x.safetensors")
    verdicts = set()
    for _ in range(400):
        starts = rng.integers(0, 4, 3)
        sizes = rng.integers(0, 3, 3)
        header = {
            name: {"dtype": "U8", "shape": [int(size)], "data_offsets": [int(start), int(start + size)]}
            for name, start, size in zip("abc", starts, sizes, strict=True)
        }
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(int(rng.integers(0, 6))))
        try:
            safetensors_numpy.load_file(path)
            theirs = True
        except Exception:
            theirs = False
        try:
            load_tensors(path)
            ours = True
        except InputError:
            ours = False
        assert ours == theirs, header
        verdicts.add(ours)
    assert verdicts == {True, False}
