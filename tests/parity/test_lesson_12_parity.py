"""Lesson 12 beside bitsandbytes and torch: levels, codes bit for bit, double quantisation, QLoRA's gradients.

Two faults of bitsandbytes 0.50 are kept out. Its docstring counts "8 negative and 9 positive" levels where there are 7,
0 and 8; and its `dequantize_4bit` on the CPU is wrong where the last axis is not a multiple of the block size, so that
every matrix is handed over as one row.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import get_backend
from lessons import lesson_12_quantization as lesson
from lessons.lesson_07_lora import LoRALinear
from minigpt.context import Context
from minigpt.layers import Linear
from minigpt.parameters import Gradients, Parameter
from tests.helpers import error

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a machine without a GPU
    bnb = pytest.importorskip("bitsandbytes.functional")

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parent.parent / "golden" / "quantization.npz"


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def theirs(x: np.ndarray, quant_type: str, double_quant: bool, blocksize: int = 64) -> dict[str, np.ndarray]:
    """Codes, scales and dequantised numbers of a vector by bitsandbytes on the CPU."""
    row = torch.from_numpy(x.astype(np.float32)).reshape(1, -1)
    packed, state = bnb.quantize_4bit(row, blocksize=blocksize, compress_statistics=double_quant, quant_type=quant_type)
    out = {
        "codes": packed.reshape(-1).numpy(),
        "absmax": state.absmax.numpy(),
        "dense": bnb.dequantize_4bit(packed, state).reshape(-1).numpy(),
    }
    if double_quant:
        out |= {"scales": state.state2.absmax.numpy(), "offset": state.offset.reshape(1).numpy()}
    return out


def ours(x: np.ndarray, quant_type: str, double_quant: bool, blocksize: int = 64) -> Any:
    """The same as a layer of one row."""
    row = x.astype(np.float32).reshape(1, -1)
    return lesson.QuantizedLinear(
        Linear("it", row, np.zeros(row.shape[1], np.float32)), quant_type, blocksize, double_quant
    )


def make_golden() -> dict[str, np.ndarray]:
    """What tests/golden/quantization.npz holds: ``python -m tests.parity.test_lesson_12_parity`` writes it."""
    x = np.concatenate((draw(2000), np.zeros(64), 50 * draw(16, seed=1))).astype(np.float32)  # 33 blocks, one short
    golden = {"x": x}
    for quant_type in ("nf4", "fp4"):
        for double_quant in (False, True):
            name = quant_type + ("_double" if double_quant else "")
            golden |= {f"{name}_{key}": value for key, value in theirs(x, quant_type, double_quant).items()}
    golden["nf4_levels"] = bnb.get_4bit_type("nf4", device="cpu").numpy()
    golden["fp4_levels"] = np.sort(bnb.get_4bit_type("fp4", device="cpu").numpy())
    golden["dynamic_levels"] = bnb.create_dynamic_map().numpy()
    return golden


def test_golden_file_is_what_the_library_says() -> None:
    stored, fresh = np.load(GOLDEN), make_golden()
    assert set(stored.files) == set(fresh)
    for name, array in fresh.items():
        assert np.array_equal(stored[name], array), name


def test_levels() -> None:
    for quant_type in ("nf4", "fp4"):
        published = np.sort(bnb.get_4bit_type(quant_type, device="cpu").numpy())
        assert np.abs(lesson.CODEBOOKS[quant_type][1]() - published).max() < 1e-6
    assert np.abs(lesson.dynamic_codebook() - bnb.create_dynamic_map().numpy()).max() < 1e-7


@pytest.mark.parametrize("blocksize", [32, 64, 256])
@pytest.mark.parametrize("n", [64, 6144, 96, 1001, 1])
def test_nf4_codes_bit_for_bit(n: int, blocksize: int) -> None:
    x = draw(n, seed=n)
    wanted, layer = theirs(x, "nf4", False, blocksize), ours(x, "nf4", False, blocksize)
    # a last block without a partner is filled up with the code of 0 there and with 0 here
    whole = n // 2
    assert np.array_equal(layer.codes.data[:whole], wanted["codes"][:whole])
    assert np.array_equal(layer.codes.data[whole:] & 0xF0, wanted["codes"][whole:] & 0xF0)
    assert np.array_equal(layer.absmax.data, wanted["absmax"])
    assert error(layer.weight.data.reshape(-1), wanted["dense"]) < 1e-6


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_double_quantisation(quant_type: str) -> None:
    x = draw(300 * 64, seed=3) * np.repeat(np.exp(draw(300, seed=4) / 2), 64)
    wanted, layer = theirs(x, quant_type, True), ours(x, quant_type, True)
    assert error(layer.absmax_offset.data, wanted["offset"]) < 1e-6
    assert error(layer.absmax.data, wanted["scales"]) < 1e-6
    assert (layer.absmax_codes.data != wanted["absmax"]).mean() < 0.01  # their mean is summed in another order
    dense = layer.weight.data.reshape(-1)
    assert error(dense, wanted["dense"]) < 1e-3
    assert np.median(np.abs(dense - wanted["dense"])) < 1e-6


def test_relative_errors_of_the_reference() -> None:
    x = draw(256 * 256) * 0.02
    for quant_type, double_quant in (("nf4", False), ("nf4", True), ("fp4", False)):
        dense, again = ours(x, quant_type, double_quant).weight.data, theirs(x, quant_type, double_quant)["dense"]
        here, there = (np.linalg.norm(x - y.reshape(-1)) / np.linalg.norm(x) for y in (dense, again))
        assert here == pytest.approx(there, rel=1e-4)


def test_qlora_layer_is_torchs() -> None:
    backend = get_backend("numpy")
    arrays = {"x": draw(2, 3, 64), "A": draw(2, 64, seed=1), "B": draw(128, 2, seed=2)}
    weight, bias, dy = draw(64, 128, seed=3), draw(128, seed=4), draw(2, 3, 128, seed=5)
    base = lesson.QuantizedLinear(Linear("it", weight, bias), "nf4", 64, False)
    base.bias.trainable = False
    layer = LoRALinear(base, arrays["A"], arrays["B"], lora_alpha=6.0)
    ctx = Context(backend, grad=True)
    ctx.needs_input_gradient(Parameter("below", arrays["x"]))
    y, backward = layer.forward(arrays["x"], ctx)
    grads = Gradients(layer.parameters(), backend)
    dx = backward(dy, grads)
    t = {name: torch.from_numpy(a).requires_grad_() for name, a in arrays.items()}
    dense = torch.from_numpy(theirs(weight.reshape(-1), "nf4", False)["dense"].reshape(64, 128)).double()
    ty = t["x"] @ dense + torch.from_numpy(bias) + 3.0 * (t["x"] @ t["A"].T) @ t["B"].T
    ty.backward(torch.from_numpy(dy))
    assert error(y, ty.detach().numpy()) < 1e-6
    assert error(dx, t["x"].grad.numpy()) < 1e-6
    assert error(grads["it.lora_A.weight"], t["A"].grad.numpy()) < 1e-12
    assert error(grads["it.lora_B.weight"], t["B"].grad.numpy()) < 1e-12


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **make_golden())
