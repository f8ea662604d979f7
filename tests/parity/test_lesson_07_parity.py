"""LoRA's relatives equal to peft's, in both directions: made here and loaded there, made there and loaded here.

The golden file of the default tests (tests/golden/lora.npz) is made here, by peft on transformers and not by our code.
To make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_lesson_07_parity.py -k golden
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from lessons.common.method import REGISTRY as METHODS  # noqa: E402
from lessons.lesson_07_lora import Factors, factors_of, mix_adapters, stack_adapters  # noqa: E402
from minigpt import GPT, GPTConfig  # noqa: E402
from tests.helpers import error  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden" / "lora.npz"
SIZES = {"vocab_size": 31, "n_positions": 11, "n_embd": 12, "n_layer": 2, "n_head": 3}
EVERY = ("c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")

# What both sides are asked for, under peft's names
CASES: dict[str, dict[str, Any]] = {
    "c_attn": {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"]},
    "attn.c_proj": {"r": 3, "lora_alpha": 16, "target_modules": ["attn.c_proj"]},
    "c_fc": {"r": 1, "lora_alpha": 1, "target_modules": ["c_fc"]},
    "mlp.c_proj": {"r": 12, "lora_alpha": 5, "target_modules": ["mlp.c_proj"]},
    "both c_proj": {"r": 2, "lora_alpha": 4, "target_modules": ["c_proj"]},
    "all-linear": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "one by its full name": {"r": 2, "lora_alpha": 4, "target_modules": ["transformer.h.1.mlp.c_fc"]},
    "one block": {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_fc"], "layers_to_transform": [1]},
    "patterns": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["c_attn", "c_proj"],
        "rank_pattern": {"mlp.c_proj": 5, "h.1.attn.c_proj": 1, "c_attn": 3},
        "alpha_pattern": {"c_proj": 7, r"h\.0\.attn\.c_attn": 9},
    },
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"], "use_rslora": True},
    "dora": {"r": 3, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True},
    "dora and patterns": {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["c_attn", "c_fc"],
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"c_fc": 2},
    },
    "dropout": {"r": 3, "lora_alpha": 6, "target_modules": ["c_attn", "c_fc"], "lora_dropout": 0.3},
}


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Of a tiny base: nothing is 0 or 1, which would hide errors."""
    rng = np.random.default_rng(seed)
    return {
        p.name: ((p.name.find("ln_") > 0 and p.name.endswith("weight")) + 0.2 * rng.standard_normal(p.data.shape))
        for p in GPT(GPTConfig(**SIZES)).parameters()
    }


def our_base(dtype: str = "float32") -> GPT:
    model = GPT(GPTConfig(**SIZES), dtype=dtype)
    weights = random_weights()
    for p in model.parameters():
        p.data = weights[p.name].astype(dtype)
    return model


def their_base(dtype: str = "float32") -> Any:
    config = transformers.GPT2Config(
        **SIZES, attn_implementation="eager", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype))
    weights = {name: torch.from_numpy(np.asarray(array)) for name, array in random_weights().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing == ["lm_head.weight"]
    model.tie_weights()
    return model.eval()


def wrapped(config: Any, dtype: str = "float32", seed: int = 0) -> Any:
    """Their base with an adapter whose every number is random."""
    torch.manual_seed(seed)  # of peft's own initial values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(their_base(dtype), config).to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.eval()


def lora_config(settings: dict[str, Any], **more: Any) -> Any:
    return peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **settings, **more)


def with_peft(directory: Path, dtype: str = "float32") -> Any:
    """Their base with the adapter of a directory; a warning of missing keys is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(their_base(dtype), directory, is_trainable=True).eval()


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    ids, targets = rng.integers(0, SIZES["vocab_size"], (2, 3, 9))
    targets[0, :4] = -100
    return ids, targets


def their_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def their_grads(model: Any, ids: np.ndarray, targets: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients under our names."""
    logits = model(torch.from_numpy(ids)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.from_numpy(targets).reshape(-1), ignore_index=-100
    )
    loss.backward()
    return loss.item(), {
        name.removeprefix("base_model.model.")
        .replace(".default.weight", ".weight")
        .replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): p.grad.numpy()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def randomised(tuned: Any, seed: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    for p in tuned.parameters():
        if p.trainable:
            p.data = (p.data + 0.1 * rng.standard_normal(p.data.shape)).astype(p.data.dtype)
    return tuned


def save_theirs(model: Any, directory: Path, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, **options)


@pytest.mark.parametrize("case", CASES)
def test_made_there_loaded_here(case: str, tmp_path: Path) -> None:
    theirs = wrapped(lora_config(CASES[case]))
    save_theirs(theirs, tmp_path / "adapter")
    ours = METHODS["lora"].load(our_base(), tmp_path / "adapter")
    ids, targets = batch()
    assert error(ours.logits(ids), their_logits(theirs, ids)) < 1e-5
    loss, grads = ours.loss_and_grads(ids, targets)
    their_loss, expected = their_grads(theirs, ids, targets)
    assert abs(loss - their_loss) < 1e-5
    assert set(grads) == set(expected)
    for name, gradient in grads.items():
        assert error(gradient, expected[name]) < 1e-5, name


@pytest.mark.parametrize("case", CASES)
def test_made_here_loaded_there(case: str, tmp_path: Path) -> None:
    method = METHODS["lora"](**CASES[case])
    ours = randomised(method.apply(our_base()))
    method.save(ours, tmp_path / "adapter")
    theirs = with_peft(tmp_path / "adapter")
    ids, targets = batch()
    assert error(ours.logits(ids), their_logits(theirs, ids)) < 1e-5
    _, grads = ours.loss_and_grads(ids, targets)
    _, expected = their_grads(theirs, ids, targets)
    assert set(grads) == set(expected)
    for name, gradient in grads.items():
        assert error(gradient, expected[name]) < 1e-5, name
    # merged here, merged there and not merged are one function
    plain = method.merge(ours)
    assert error(plain.logits(ids), ours.logits(ids)) < 1e-6
    with torch.no_grad():
        merged = theirs.merge_and_unload()
    assert error(plain.logits(ids), their_logits(merged, ids)) < 1e-5
    for name, p in merged.named_parameters():
        assert error(plain.state()[name], p.detach().numpy()) < 1e-6, name


@pytest.mark.parametrize("case", ["c_attn", "patterns", "rslora", "dora"])
def test_gradients_in_float64(case: str, tmp_path: Path) -> None:
    theirs = wrapped(lora_config(CASES[case]), "float64")
    save_theirs(theirs, tmp_path / "adapter")
    ours = METHODS["lora"].load(our_base("float64"), tmp_path / "adapter")
    ids, targets = batch()
    _, grads = ours.loss_and_grads(ids, targets)
    _, expected = their_grads(theirs, ids, targets)
    for name, gradient in grads.items():
        assert error(gradient, expected[name]) < 1e-9, name


def test_the_start_is_theirs() -> None:
    """The same distribution of A, B = 0, and DoRA's lengths those of the base."""
    settings = {"r": 8, "target_modules": ["c_fc"]}
    ours = {p.name: p.data for p in METHODS["dora"](**settings).apply(our_base()).parameters() if p.trainable}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(their_base(), lora_config(settings, use_dora=True))
    bound = SIZES["n_embd"] ** -0.5
    for name, p in theirs.named_parameters():
        if not p.requires_grad:
            continue
        name = name.removeprefix("base_model.model.").replace(".default", "")
        value = p.detach().numpy()
        if "lora_A" in name:
            for A in (ours[name], value):
                assert np.abs(A).max() <= bound
                assert A.std() == pytest.approx(bound / 3**0.5, rel=0.15)
        elif "lora_B" in name:
            assert not value.any()
            assert not ours[name].any()
        else:
            assert error(ours[name.removesuffix(".weight")], value) < 1e-6


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa(use_rslora: bool, tmp_path: Path) -> None:
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj"], "use_rslora": use_rslora}
    method = METHODS["pissa"](**settings)
    fresh = method.apply(our_base())
    ids, _ = batch()
    assert error(fresh.logits(ids), our_base().logits(ids)) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(their_base(), lora_config(settings, init_lora_weights="pissa"))
    mine = {p.name: p.data for p in fresh.parameters()}
    scaling = 5 / 3**0.5 if use_rslora else 5 / 3
    for i in range(SIZES["n_layer"]):  # A and B up to the signs of singular vectors, so by their product
        name = f"transformer.h.{i}.attn.c_attn"
        layer = theirs.get_submodule(f"base_model.model.{name}")
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert error(mine[f"{name}.lora_B.weight"] @ mine[f"{name}.lora_A.weight"], product.detach().numpy()) < 1e-5
        assert error(mine[f"{name}.weight"], layer.base_layer.weight.detach().numpy()) < 1e-5
        assert layer.scaling["default"] == pytest.approx(scaling)
    # made here: a plain LoRA of the original base for them
    ours = randomised(fresh)
    method.save(ours, tmp_path / "ours")
    assert error(their_logits(with_peft(tmp_path / "ours"), ids), ours.logits(ids)) < 1e-5
    # made there: unconverted, and converted by them
    start = tmp_path / "start"
    theirs.peft_config["default"].init_lora_weights = True
    save_theirs(theirs, start)
    theirs.peft_config["default"].init_lora_weights = "pissa"
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    theirs.eval()
    save_theirs(theirs, tmp_path / "unconverted")
    expected = their_logits(theirs, ids)
    assert error(METHODS["pissa"].load(our_base(), tmp_path / "unconverted").logits(ids), expected) < 1e-4
    with pytest.raises(ValueError, match="METHODS\\['pissa'\\]"):
        METHODS["lora"].load(our_base(), tmp_path / "unconverted")
    save_theirs(theirs, tmp_path / "converted", path_initial_model_for_weight_conversion=str(start))
    for kind in ("lora", "pissa"):
        assert error(METHODS[kind].load(our_base(), tmp_path / "converted").logits(ids), expected) < 1e-4


def test_q_and_v_only_is_their_lora_of_twice_the_rank(tmp_path: Path) -> None:
    """loralib's MergedLinear written as peft's file: A = [A_q; A_v], B in blocks, α doubled."""
    method = METHODS["lora"](r=2, lora_alpha=6, target_modules=["c_attn"], enable_lora=(True, False, True))
    ours = randomised(method.apply(our_base()))
    method.save(ours, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 12)
    ids, _ = batch()
    assert error(their_logits(with_peft(tmp_path / "adapter"), ids), ours.logits(ids)) < 1e-5
    # loralib's own formula: a grouped convolution of kernel 1 over z, its parts laid where they are enabled
    name = "transformer.h.0.attn.c_attn"
    parts = {p.name: torch.from_numpy(p.data) for p in ours.parameters()}
    A, B = parts[f"{name}.lora_A.weight"], parts[f"{name}.lora_B.weight"]
    delta = torch.nn.functional.conv1d(A[None], B[..., None], groups=2)[0]  # (2·C, in)
    C = SIZES["n_embd"]
    expected = torch.zeros(3 * C, C)
    expected[:C], expected[2 * C :] = delta[:C], delta[C:]
    f = factors_of(ours, our_base())[name]
    assert error(f.scaling * f.B @ f.A, 3 * expected.numpy()) < 1e-6


def two_adapters(tmp_path: Path) -> tuple[Any, list[Any]]:
    """Their model with two adapters of one configuration, and ours of the same directories."""
    for seed, name in enumerate("ab"):
        save_theirs(wrapped(lora_config(CASES["c_attn"] | {"lora_alpha": 8 + 4 * seed}), seed=seed), tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(their_base(), tmp_path / "a", adapter_name="a")
        theirs.load_adapter(tmp_path / "b", adapter_name="b")
    return theirs.eval(), [factors_of(tmp_path / name, our_base()) for name in "ab"]


@pytest.mark.parametrize(("how", "rank"), [("cat", None), ("svd", 8), ("svd", 3), ("linear", None)])
def test_mixtures(how: str, rank: int | None, tmp_path: Path) -> None:
    theirs, ours = two_adapters(tmp_path)
    weights = [0.7, 0.4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.add_weighted_adapter(["a", "b"], weights, "mix", combination_type=how, svd_rank=rank)
    theirs.set_adapter("mix")
    mixed = mix_adapters(ours, weights, how, rank)
    stack = stack_adapters(our_base(), {})
    stack.put("mix", mixed)
    ids, _ = batch()
    assert error(stack.logits(ids, "mix"), their_logits(theirs, ids)) < 1e-5


def test_a_batch_with_several_adapters(tmp_path: Path) -> None:
    theirs, _ = two_adapters(tmp_path)
    stack = stack_adapters(our_base(), {name: tmp_path / name for name in "ab"})
    ids = np.random.default_rng(5).integers(0, SIZES["vocab_size"], (4, 6))
    names = ["b", "__base__", "a", "b"]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), adapter_names=names).logits.numpy()
    assert error(stack.logits(ids, names), expected) < 1e-5


def test_what_they_pass_over_is_refused_here(tmp_path: Path) -> None:
    """A wrong prefix or an extra tensor loads there without an error, and does nothing."""
    from safetensors.numpy import load_file, save_file

    save_theirs(wrapped(lora_config(CASES["c_attn"])), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.transformer.h.0.attn.c_attn.lora_C.weight": np.ones((2, 2))}, path)
    with_peft(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"left over: transformer\.h\.0\.attn\.c_attn\.lora_C\.weight"):
        METHODS["lora"].load(our_base(), tmp_path / "adapter")
    save_file({name.removeprefix("base_model.model."): array for name, array in tensors.items()}, path)
    with pytest.raises(ValueError, match=r"names must begin with 'base_model\.model\.'"):
        METHODS["lora"].load(our_base(), tmp_path / "adapter")


# ---------------------------------------------------------------------------------------------- golden


GOLDEN_CASES = ("patterns", "rslora", "dora")


def golden() -> dict[str, np.ndarray]:
    """Adapters with their logits and gradients by peft, in float64."""
    ids, targets = batch()
    out: dict[str, np.ndarray] = {"ids": ids, "targets": targets}
    out |= {f"base/{name}": array for name, array in random_weights().items()}
    for case in GOLDEN_CASES:
        theirs = wrapped(lora_config(CASES[case]), "float64")
        loss, grads = their_grads(theirs, ids, targets)
        out[f"{case}/config"] = np.array(json.dumps(CASES[case]))
        out[f"{case}/logits"] = their_logits(theirs, ids)
        out[f"{case}/loss"] = np.array(loss)
        state = peft.get_peft_model_state_dict(theirs)
        for name, tensor in state.items():
            name = name.removeprefix("base_model.model.")
            out[f"{case}/tensor/{name}"] = tensor.numpy()
            out[f"{case}/grad/{name}"] = grads[name]
    return out


def test_golden_file_is_what_peft_says() -> None:
    fresh = golden()
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        np.savez_compressed(GOLDEN, **fresh)
    with np.load(GOLDEN) as stored:
        assert set(stored.files) == set(fresh)
        for name, array in fresh.items():
            if array.dtype.kind in "Ui":
                assert (stored[name] == array).all(), name
            else:
                assert error(stored[name], array, floor=1e-6) < 1e-9, name


def test_factors_know_their_scaling() -> None:
    """What is mixed and stacked is peft's own delta."""
    theirs = wrapped(lora_config(CASES["rslora"]))
    layer = theirs.get_submodule("base_model.model.transformer.h.0.attn.c_attn")
    A, B = (layer.get_parameter(f"lora_{x}.default.weight").detach().numpy() for x in "AB")
    f = Factors(A, B, 8 / 4**0.5)
    assert error(f.scaling * f.B @ f.A, layer.get_delta_weight("default").detach().numpy().T) < 1e-6
