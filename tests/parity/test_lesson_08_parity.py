"""Adapters, BitFit and IA3 equal to torch on transformers' GPT-2 and to peft; IA3 directories go both ways.

The `adapters` library needs an older transformers than the one the course is held to, so Houlsby's, Pfeiffer's and the
parallel adapter are compared with their formulas, hooked into transformers' model.

The golden file of the default tests (tests/golden/adapters.npz) is made here, by those libraries and not by our code.
To make it again::

    MINIGPT_UPDATE_GOLDEN=1 python -m pytest tests/parity/test_lesson_08_parity.py -k golden
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from lessons.lesson_08_adapters import IA3, PLACEMENTS, Adapters, BitFit, Serial  # noqa: E402
from minigpt import GPT, GPTConfig  # noqa: E402
from tests.helpers import error  # noqa: E402
from tests.lessons.test_lesson_08 import GOLDEN, GOLDEN_METHODS, SETTINGS, golden_batch, randomise  # noqa: E402

pytestmark = pytest.mark.parity
torch.set_num_threads(1)

TARGETS = {
    "default": (("c_attn", "mlp.c_proj"), ("mlp.c_proj",)),
    "outputs only": (("c_attn", "c_fc"), ()),
    "every layer": (("c_attn", "c_proj", "c_fc"), ("c_proj",)),
    "some inputs": (("attn.c_proj", "c_fc", "mlp.c_proj"), ("c_fc", "attn.c_proj")),
}


def their_model(seed=0, dtype=torch.float64):
    """transformers' GPT-2 with random weights: none stays 0 or 1, which would hide errors."""
    config = transformers.GPT2Config(
        **SETTINGS,
        attn_implementation="eager",
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config).to(dtype).eval()
    values = randomise({name: tuple(p.shape) for name, p in model.named_parameters()}, seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(values[name]))
    return model


def our_model(theirs, dtype="float64"):
    """Ours with the same weights."""
    model = GPT(GPTConfig(**SETTINGS), dtype=dtype)
    weights = {name: p.detach().numpy().astype(dtype) for name, p in theirs.named_parameters()}
    for p in model.parameters():
        p.data = weights[p.name].copy()
    return model


def their_loss(model, ids, targets):
    logits = model(torch.from_numpy(ids)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=-100
    )
    loss.backward()
    return logits.detach().numpy(), loss.item()


# ---------------------------------------------------------------------------------------------- bottleneck adapters


def hook_adapters(theirs, placement, arrays):
    """Houlsby's formula around transformers' sublayers; gives the torch parameters by our names."""
    join, sublayers = PLACEMENTS[placement]
    own = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in arrays.items()}

    def hook(prefix):
        down, down_bias, up, up_bias = (
            own[f"{prefix}.{part}"] for part in ("down.weight", "down.bias", "up.weight", "up.bias")
        )

        def after(module, args, kwargs, output):
            x = args[0] if args else kwargs["hidden_states"]
            y = output[0] if isinstance(output, tuple) else output
            inside = y if join is Serial else x
            y = y + torch.nn.functional.gelu(inside @ down + down_bias, approximate="tanh") @ up + up_bias
            return (y, *output[1:]) if isinstance(output, tuple) else y

        return after

    for i, block in enumerate(theirs.transformer.h):
        for sublayer in sublayers:
            getattr(block, sublayer).register_forward_hook(
                hook(f"transformer.h.{i}.{sublayer}.adapter"), with_kwargs=True
            )
    return own


def adapters_in_torch(method):
    """Loss, logits and gradients of the trainable parameters, from torch."""
    theirs = their_model()
    shapes = {p.name: p.data.shape for p in method.apply(our_model(theirs)).parameters() if ".adapter." in p.name}
    own = hook_adapters(theirs, method.placement, randomise(shapes, 1))
    logits, loss = their_loss(theirs, *golden_batch())
    grads = {name: p.grad.numpy() for name, p in own.items()}
    if method.train_layernorm:
        grads |= {name: p.grad.numpy() for name, p in theirs.named_parameters() if "ln_" in name}
    return theirs, own, loss, logits, grads


@pytest.mark.parametrize("train_layernorm", [True, False])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_adapters_are_their_formula_in_torch(placement, train_layernorm):
    method = Adapters(bottleneck=3, placement=placement, train_layernorm=train_layernorm)
    theirs, own, loss, logits, grads = adapters_in_torch(method)
    tuned = method.apply(our_model(theirs))
    for p in tuned.parameters():
        if p.name in own:
            p.data = own[p.name].detach().numpy().copy()
    ids, targets = golden_batch()
    assert error(tuned.logits(ids), logits) < 1e-9
    our_loss, ours = tuned.loss_and_grads(ids, targets)
    assert error(our_loss, loss) < 1e-9
    assert set(ours) == set(grads)
    for name, gradient in ours.items():
        assert error(gradient, grads[name]) < 1e-9, name


# ---------------------------------------------------------------------------------------------- BitFit


def bitfit_in_torch():
    theirs = their_model()
    for name, p in theirs.named_parameters():
        p.requires_grad_("bias" in name)
    logits, loss = their_loss(theirs, *golden_batch())
    return theirs, loss, logits, {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.requires_grad}


def test_bitfit_gradients_are_torchs_bias_gradients():
    theirs, loss, _, grads = bitfit_in_torch()
    our_loss, ours = BitFit().apply(our_model(theirs)).loss_and_grads(*golden_batch())
    assert error(our_loss, loss) < 1e-9
    assert set(ours) == set(grads)
    for name, gradient in ours.items():
        assert error(gradient, grads[name]) < 1e-9, name


# ---------------------------------------------------------------------------------------------- IA3


def ia3_in_peft(targets, feedforward, seed=1, dtype=torch.float64):
    """peft's IA3 with random scales on transformers' model."""
    config = peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=list(targets),
        feedforward_modules=list(feedforward),
        fan_in_fan_out=True,
    )
    model = peft.get_peft_model(their_model(dtype=dtype), config).eval()
    scales = {name: p for name, p in model.named_parameters() if "ia3_l" in name}
    values = randomise({name: tuple(p.shape) for name, p in scales.items()}, seed)
    with torch.no_grad():
        for name, p in scales.items():
            p.copy_(torch.from_numpy(1 + values[name]))
    return model


def by_our_name(name):
    return name.removeprefix("base_model.model.").replace(".default", "")


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_peft_directory_opens_here_with_the_same_logits_and_gradients(name, dtype, tolerance, tmp_path):
    theirs = ia3_in_peft(*TARGETS[name], dtype=dtype)
    theirs.save_pretrained(tmp_path)
    ours = IA3.load(our_model(their_model(), str(dtype).removeprefix("torch.")), tmp_path)
    ids, targets = golden_batch()
    logits, loss = their_loss(theirs, ids, targets)
    assert error(ours.logits(ids), logits) < tolerance
    our_loss, grads = ours.loss_and_grads(ids, targets)
    assert error(our_loss, loss) < tolerance
    expected = {by_our_name(n): p.grad.numpy() for n, p in theirs.named_parameters() if p.requires_grad}
    assert set(grads) == set(expected)
    for parameter, gradient in grads.items():
        assert error(gradient, expected[parameter]) < tolerance, parameter


@pytest.mark.parametrize("name", TARGETS)
def test_our_directory_opens_in_peft_and_merges_the_same(name, tmp_path):
    targets, feedforward = TARGETS[name]
    method = IA3(target_modules=targets, feedforward_modules=feedforward)
    base = our_model(their_model())
    ours = method.apply(base)
    for p in ours.parameters():
        if p.trainable:
            p.data = 1 + randomise({p.name: p.data.shape}, 2)[p.name]
    method.save(ours, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft only warns of keys that it misses
        theirs = peft.PeftModel.from_pretrained(their_model(), str(tmp_path))
    ids, _ = golden_batch()
    with torch.no_grad():
        assert error(ours.logits(ids), theirs(torch.from_numpy(ids)).logits.numpy()) < 1e-9
        merged = theirs.merge_and_unload()
    plain = method.merge(ours)
    assert error(plain.logits(ids), ours.logits(ids)) < 1e-12
    for parameter, p in merged.named_parameters():
        assert error(plain.state()[parameter], p.detach().numpy()) < 1e-12, parameter


def test_merging_and_taking_out_leaves_our_base_as_it_was_and_pefts_not():
    theirs = ia3_in_peft(*TARGETS["default"])
    before = {name: p.detach().clone() for name, p in theirs.named_parameters() if "base_layer" in name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.merge_adapter()
        theirs.unmerge_adapter()
    # peft divides by l + 1e-8
    assert any(not torch.equal(p, before[name]) for name, p in theirs.named_parameters() if name in before)
    base = our_model(their_model())
    tuned = IA3().apply(base)
    state = {name: array.copy() for name, array in base.state().items()}
    IA3().merge(tuned)
    for model in (base, tuned):
        assert all((model.state()[name] == array).all() for name, array in state.items())


def test_defaults_are_pefts(tmp_path):
    model = peft.get_peft_model(their_model(), peft.IA3Config(task_type="CAUSAL_LM"))
    config = model.peft_config["default"]
    assert set(config.target_modules) == set(IA3().target_modules)
    assert set(config.feedforward_modules) == set(IA3().feedforward_modules)
    model.save_pretrained(tmp_path)
    tuned = IA3.load(our_model(their_model()), tmp_path)
    assert error(tuned.logits(golden_batch()[0]), our_model(their_model()).logits(golden_batch()[0])) == 0


# ---------------------------------------------------------------------------------------------- golden file


def make_golden():
    """Trainable values, loss, logits and gradients of every method, from torch and peft."""
    arrays = {}
    for label, method in GOLDEN_METHODS.items():
        if isinstance(method, Adapters):
            _, own, loss, logits, grads = adapters_in_torch(method)
            values = {name: p.detach().numpy() for name, p in own.items()}
        elif isinstance(method, BitFit):
            _, loss, logits, grads = bitfit_in_torch()
            values = {}
        else:
            theirs = ia3_in_peft(method.target_modules, method.feedforward_modules)
            logits, loss = their_loss(theirs, *golden_batch())
            trained = {by_our_name(n): p for n, p in theirs.named_parameters() if p.requires_grad}
            values = {name: p.detach().numpy() for name, p in trained.items()}
            grads = {name: p.grad.numpy() for name, p in trained.items()}
        arrays |= {f"{label}/loss": np.array(loss), f"{label}/logits": logits}
        arrays |= {f"{label}/value/{name}": array for name, array in values.items()}
        arrays |= {f"{label}/grad/{name}": array for name, array in grads.items()}
    return arrays


def test_golden_file():
    arrays = make_golden()
    if os.environ.get("MINIGPT_UPDATE_GOLDEN"):
        np.savez_compressed(GOLDEN, **arrays)
    assert GOLDEN.stat().st_size < 200_000
    with np.load(GOLDEN) as golden:
        assert set(golden.files) == set(arrays)
        for name, array in arrays.items():
            assert error(golden[name], array, floor=1e-8) < 1e-9, name
