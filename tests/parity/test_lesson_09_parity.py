"""Prompt and prefix tuning equal to peft's: files both ways, logits, gradients, generation.

The golden files of the default tests (tests/golden/soft_prompts.npz and the two adapter directories beside it) are made
here, by those libraries and not by our code. To make them again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_lesson_09_parity.py -k golden
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from lessons.lesson_09_soft_prompts import PrefixTuning, PromptTuning, text_init  # noqa: E402
from minigpt import GPT, GPTConfig, bases  # noqa: E402
from minigpt.files import load_tensors  # noqa: E402
from tests.helpers import error  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent.parent / "golden"
SETTINGS = {"vocab_size": 37, "n_positions": 24, "n_embd": 15, "n_layer": 3, "n_head": 5}
P, T, NEW = 4, 9, 6
KINDS = {"prompt_tuning": P * 15, "prefix_tuning": P * 2 * 3 * 15}
METHODS = {"prompt_tuning": PromptTuning, "prefix_tuning": PrefixTuning}
DTYPES = ["float32", "float64"]
TOLERANCE = 1e-5


def their_base(dtype: str = "float32", settings: dict = SETTINGS, seed: int = 0):
    """transformers' GPT-2 with random weights: none stays 0 or 1, which would hide errors."""
    config = transformers.GPT2Config(
        **settings, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            p.copy_(torch.from_numpy(rng.normal(mean, 0.3, size=tuple(p.shape))))
    return model.to(getattr(torch, dtype)).eval()


def our_base(theirs, settings: dict = SETTINGS) -> GPT:
    weights = {name: p.detach().numpy() for name, p in theirs.named_parameters() if "prompt_encoder" not in name}
    dtype = str(next(iter(weights.values())).dtype)
    model = GPT(GPTConfig(**settings), dtype=dtype)
    for p in model.parameters():
        p.data = weights[p.name].copy()
    return model


def make_batch(settings: dict = SETTINGS, seed: int = 1):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, settings["vocab_size"], size=(2, 3, T))
    targets[rng.random((3, T)) < 0.3] = -100
    return ids, targets


def their_tuned(base, kind: str, seed: int = 2):
    """peft's model with its matrix drawn at random."""
    config = {"prompt_tuning": peft.PromptTuningConfig, "prefix_tuning": peft.PrefixTuningConfig}[kind]
    model = peft.get_peft_model(base, config(task_type="CAUSAL_LM", num_virtual_tokens=P))
    matrix = model.prompt_encoder.default.embedding.weight
    with torch.no_grad():
        matrix.copy_(torch.from_numpy(np.random.default_rng(seed).normal(0.0, 0.5, tuple(matrix.shape))))
    model.prompt_encoder.to(base.dtype)
    return model.eval()


def their_logits(model, ids: np.ndarray):
    """Of the real tokens, with the virtual tokens' own ones left out."""
    ids = torch.from_numpy(ids)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]


def their_gradient(model, ids: np.ndarray, targets: np.ndarray):
    """Loss over the same targets as ours, and the gradient of the matrix."""
    logits = their_logits(model, ids)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    matrix = model.prompt_encoder.default.embedding.weight
    return loss.item(), torch.autograd.grad(loss, matrix)[0].numpy()


def their_generation(model, ids: np.ndarray) -> np.ndarray:
    ids = torch.from_numpy(ids)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        ).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_made_by_peft_loaded_here(kind: str, dtype: str, tmp_path: Path) -> None:
    base = their_base(dtype)
    ours = our_base(base)
    theirs = their_tuned(base, kind)
    theirs.save_pretrained(tmp_path)
    tuned = METHODS[kind].load(ours, tmp_path)
    assert sum(p.data.size for p in tuned.parameters() if p.trainable) == KINDS[kind]
    ids, targets = make_batch()
    assert error(tuned.logits(ids), their_logits(theirs, ids).detach().numpy()) < TOLERANCE
    expected_loss, expected = their_gradient(theirs, ids, targets)
    loss, grads = tuned.loss_and_grads(ids, targets)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert list(grads) == ["prompt_embeddings"]
    assert error(grads["prompt_embeddings"], expected) < TOLERANCE
    assert tuned.generate(ids, NEW, temperature=0).tolist() == their_generation(theirs, ids).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_made_here_loaded_by_peft(kind: str, dtype: str, tmp_path: Path) -> None:
    base = their_base(dtype)
    method = METHODS[kind](num_virtual_tokens=P)
    tuned = method.apply(our_base(base), seed=3)
    matrix = next(p for p in tuned.parameters() if p.trainable)
    matrix.data = np.random.default_rng(4).normal(0.0, 0.5, matrix.data.shape).astype(dtype)
    method.save(tuned, tmp_path / "adapter")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert not [str(w.message) for w in caught if "adapter" in str(w.message)]
    ids, _ = make_batch()
    with torch.no_grad():
        assert error(tuned.logits(ids), their_logits(theirs, ids).numpy()) < TOLERANCE
    assert tuned.generate(ids, NEW, temperature=0).tolist() == their_generation(theirs, ids).tolist()


def test_a_text_start_is_pefts(tmp_path: Path) -> None:
    """Both with the text repeated and with the text cut, and its file loads there although it names a tokenizer."""
    base_path = bases.path("base-xs")
    base = transformers.GPT2LMHeadModel.from_pretrained(base_path, dtype=torch.float32)
    ours = bases.load("base-xs")[0]
    text = "Question: Is this review positive or negative?"
    for n in (5, 70):
        settings = {
            "num_virtual_tokens": n,
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": text,
            "tokenizer_name_or_path": str(base_path),
        }
        theirs = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", **settings))
        expected = theirs.prompt_encoder.default.embedding.weight.detach().numpy()
        method = METHODS["prompt_tuning"](**settings)
        tuned = method.apply(ours)
        assert (tuned.embedding.prompt.data == expected).all()
        method.save(tuned, tmp_path / str(n))
        again = peft.PeftModel.from_pretrained(base, tmp_path / str(n))
        assert again.active_peft_config.prompt_tuning_init_text == text
    assert text_init(ours.wte.data, [1, 2], 3).shape == (3, 48)


def test_inputs_embeds_is_the_same_prompt() -> None:
    """transformers without peft: the prompt's vectors and the tokens' embeddings, concatenated."""
    base = their_base("float64")
    tuned = METHODS["prompt_tuning"](num_virtual_tokens=P).apply(our_base(base))
    ids, _ = make_batch()
    prompt = torch.from_numpy(tuned.embedding.prompt.data).expand(len(ids), -1, -1)
    embedded = torch.cat((prompt, base.transformer.wte(torch.from_numpy(ids))), dim=1)
    with torch.no_grad():
        expected = base(inputs_embeds=embedded).logits[:, P:].numpy()
    assert error(tuned.logits(ids), expected) < 1e-9


def test_pefts_own_loss_scores_one_more_token() -> None:
    """The trap in comparing losses: given labels, peft scores the first real token too, from the last virtual one."""
    base = their_base("float64")
    theirs = their_tuned(base, "prompt_tuning")
    ids, _ = make_batch()
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        whole = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens)
    first = torch.nn.functional.cross_entropy(whole.logits[:, P - 1], tokens[:, 0]).item()
    tuned = METHODS["prompt_tuning"](num_virtual_tokens=P).apply(our_base(base))
    tuned.embedding.prompt.data = theirs.prompt_encoder.default.embedding.weight.detach().numpy()
    targets = np.concatenate((ids[:, 1:], np.full((len(ids), 1), -100)), axis=1)
    ours, _ = tuned.loss_and_grads(ids, targets)
    assert whole.loss.item() == pytest.approx(((T - 1) * ours + first) / T, rel=1e-6)  # theirs is in float32
    assert abs(whole.loss.item() - ours) > 1e-3


def test_a_projected_prefix_can_be_loaded(tmp_path: Path) -> None:
    """peft stores what its projection gives, so no projection is needed here."""
    base = their_base()
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=7
    )
    ours = our_base(base)
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["prefix_projection"] is True
    ids, _ = make_batch()
    tuned = METHODS["prefix_tuning"].load(ours, tmp_path)
    with torch.no_grad():
        assert error(tuned.logits(ids), their_logits(theirs, ids).numpy()) < TOLERANCE


# ---------------------------------------------------------------------------------------------- the golden files


def make_golden(directory: Path) -> dict[str, np.ndarray]:
    """What the default tests compare with: peft's directories, and what peft computes with them in float64."""
    with np.load(GOLDEN / "gpt2_tiny.npz") as tiny:
        settings = {n: tiny[f"config/{n}"].item() for n in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
        weights = {name.removeprefix("weights/"): tiny[name] for name in tiny.files if name.startswith("weights/")}
    rng = np.random.default_rng(5)
    ids, targets = rng.integers(0, settings["vocab_size"], size=(2, 3, 5))
    targets[0, :3] = -100
    arrays = {"ids": ids, "targets": targets}
    for kind in KINDS:
        base = their_base("float64", settings)
        with torch.no_grad():
            for name, p in base.named_parameters():
                p.copy_(torch.from_numpy(weights[name]))
        model = their_tuned(base, kind)
        model.save_pretrained(directory / f"peft_{kind}")
        (directory / f"peft_{kind}" / "README.md").unlink()
        loss, gradient = their_gradient(model, ids, targets)
        arrays |= {
            f"{kind}/logits": their_logits(model, ids).detach().numpy(),
            f"{kind}/loss": np.array(loss),
            f"{kind}/gradient": gradient,
            f"{kind}/generated": their_generation(model, ids[:, :2]),
        }
    return arrays


def test_golden_files(tmp_path: Path) -> None:
    arrays = make_golden(tmp_path)
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        np.savez_compressed(GOLDEN / "soft_prompts.npz", **arrays)
        for kind in KINDS:
            shutil.copytree(tmp_path / f"peft_{kind}", GOLDEN / f"peft_{kind}", dirs_exist_ok=True)
    with np.load(GOLDEN / "soft_prompts.npz") as golden:
        assert set(golden.files) == set(arrays)
        for name, array in arrays.items():
            assert golden[name].dtype == array.dtype, name
            assert error(golden[name], array) < 1e-10, name
    for kind in KINDS:
        (stored, _), (fresh, _) = (
            load_tensors(place / f"peft_{kind}" / "adapter_model.safetensors") for place in (GOLDEN, tmp_path)
        )
        assert stored.keys() == fresh.keys()
        assert all((stored[name] == fresh[name]).all() for name in stored)
