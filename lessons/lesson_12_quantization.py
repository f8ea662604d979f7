"""Lesson 12: weights in four bits. Quantise a base, see what that costs, and train LoRA on what is left (QLoRA).

1. Four bits a weight by hand: sixteen levels where a normal distribution has its quantiles (NF4), a scale for every
   block of weights, two codes in a byte, and the scales themselves quantised once more.
2. Bits against error against loss: NF4 beside FP4, plain four-bit integers and eight-bit integers.
3. QLoRA: the base frozen in four bits, adapters trained on it. Quality and memory beside LoRA and full fine-tuning.
4. Merging: into which weights?

Dettmers et al. (2023), "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from kernels import Backend
from kernels.array import Array, namespace
from lessons.common import derivation, gradcheck, quantization_pictures, runner
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.low_rank import MATRICES, matrices, text_material
from lessons.common.measure import step_cost
from lessons.common.method import Method, Tuned, language_model, register, require_plain
from lessons.common.peft_files import QUANTIZATION_FILE
from lessons.common.runner import Run
from lessons.common.table import spread, table
from lessons.common.tasks import LabelTask, Task, in_batches, load_task, own_task
from lessons.common.tuning import Budget, fine_tune
from lessons.lesson_02_ulmfit_target import Full
from lessons.lesson_07_lora import LoRA, LoRALinear, adapted_layers
from minigpt import GPT, Tokenizer, bases, files
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.evaluation import evaluate_batches
from minigpt.layers import Backward, Layer, Linear
from minigpt.objectives import Batch
from minigpt.parameters import Gradients, Parameter

# ---------------------------------------------------------------------------------------------- levels

NF4_OFFSET = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
"""The outermost quantile, .9677083: halfway between the middles of the outer bins of 15 and of 16 equal ones."""


def nf4_codebook() -> np.ndarray:
    """The sixteen levels of 4-bit NormalFloat: quantiles of the normal distribution, each used about as often.

    7 negative levels, 0, and 8 positive ones. The positive ones are Φ⁻¹ at 9 evenly spaced probabilities from
    `NF4_OFFSET` down to ½, the last of which would give 0 and is left out; the negative ones are −Φ⁻¹ at 8 such,
    likewise. All are divided by the largest, so that they lie in [−1, 1]. The two halves differ because 0 needs a
    level of its own: padding and pruned weights must stay exactly 0.

    Returns
    -------
    levels : (16,) float64
        Rising, from −1 to 1.

    References
    ----------
    arXiv:2305.14314, section 3 and appendix E; its equation 4 describes another average than the published levels.
    """
    ### BEGIN SOLUTION
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(NF4_OFFSET, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(NF4_OFFSET, 0.5, 8)[:-1]]
    levels = np.array(sorted([*negative, 0.0, *positive]))
    return levels / levels.max()
    ### END SOLUTION


def integer_codebook(bits: int) -> np.ndarray:
    """Evenly spaced levels, symmetric around 0: k/K for k = −K … K with K = 2^(bits − 1) − 1.

    Absmax quantisation: one of the 2^bits codes is not used, so that 0 is a level.

    Returns
    -------
    levels : (2^bits − 1,) float64
    """
    largest = 2 ** (bits - 1) - 1
    return np.arange(-largest, largest + 1) / largest


def fp4_codebook() -> np.ndarray:
    """Four-bit floating point, with a sign, two bits of exponent and one of mantissa, as bitsandbytes has it.

    ±{0, 1/16, 2, 3, 4, 6, 8, 12}/12; 0 twice, once for each sign.

    Returns
    -------
    levels : (16,) float64
        Rising.
    """
    positive = np.array([0, 0.0625, 2, 3, 4, 6, 8, 12]) / 12
    return np.concatenate((-positive[::-1], positive))


CODEBOOKS: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
    "nf4": (4, nf4_codebook),
    "fp4": (4, fp4_codebook),
    "int4": (4, lambda: integer_codebook(4)),
    "int8": (8, lambda: integer_codebook(8)),
}
"""Format → bits of a code, and its levels."""


def dynamic_codebook() -> np.ndarray:
    """The levels of the second quantisation: 8 bits that cover seven powers of ten.

    For each exponent i = 0 … 6 there are 2^i levels of either sign, 10^(i − 6) times the middles of 2^i equal parts of
    [0.1, 1]; with 0 and 1 that makes 256. Small values are far apart in number, but near in proportion.

    Returns
    -------
    levels : (256,) float64
        Rising.

    References
    ----------
    Dettmers (2015), "8-bit approximations for parallelism in deep learning", arXiv:1511.04561.
    """
    levels = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1.0, 2**i + 1)
        middles = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        levels += [*middles, *-middles]
    return np.array(sorted(levels))


# ---------------------------------------------------------------------------------------------- codes and scales


def quantize_blocks(x: Array, codebook: Array, blocksize: int) -> tuple[Array, Array]:
    """Every block divided by its largest absolute value, every number replaced by the nearest level's place.

    Parameters
    ----------
    x : (n,) float
        The last block may be shorter than the others.
    codebook : (k,)
        Levels in [−1, 1], rising, k ≤ 256.
    blocksize : int

    Returns
    -------
    codes : (n,) uint8
        c where levels[c] is nearest to x/absmax; of two that are equally near, the lower. Of a block of zeros: level 0.
    absmax : (⌈n/blocksize⌉,) float32
    """
    xp = namespace(x)
    n = x.shape[0]
    padded = xp.zeros(-(-n // blocksize) * blocksize, dtype="float32")
    padded[:n] = x
    blocks = padded.reshape(-1, blocksize)
    middles = ((codebook[1:] + codebook[:-1]) / 2).astype("float32")
    ### BEGIN SOLUTION
    absmax = abs(blocks).max(1)
    scaled = blocks * (1 / xp.maximum(absmax, 1e-38).astype("float32"))[:, None]
    codes = xp.searchsorted(middles, scaled.reshape(-1)[:n], side="left")  # in how many middles x lies above
    return codes.astype("uint8"), absmax
    ### END SOLUTION


def dequantize_blocks(codes: Array, absmax: Array, codebook: Array, blocksize: int) -> Array:
    """Numbers from codes: the level, times its block's scale.

    Parameters
    ----------
    codes : (n,) uint8
    absmax : (⌈n/blocksize⌉,)
    codebook : (k,)
        Its type is the result's.
    blocksize : int

    Returns
    -------
    x : (n,)
    """
    ### BEGIN SOLUTION
    xp = namespace(codes)
    values = xp.take(codebook, codes)
    values *= xp.repeat(absmax, blocksize)[: codes.shape[0]]
    return values
    ### END SOLUTION


def pack_nibbles(codes: Array) -> Array:
    """Two 4-bit codes in every byte, the first in the high half.

    Parameters
    ----------
    codes : (n,) uint8
        Below 16.

    Returns
    -------
    packed : (⌈n/2⌉,) uint8
        codes[2i]·16 + codes[2i + 1]; a last one without a partner has 0 in the low half.
    """
    ### BEGIN SOLUTION
    xp = namespace(codes)
    n = codes.shape[0]
    even = xp.zeros(n + n % 2, dtype="uint8")
    even[:n] = codes
    return xp.left_shift(even[::2], 4) | even[1::2]
    ### END SOLUTION


def unpack_nibbles(packed: Array, n: int) -> Array:
    """The n codes that `pack_nibbles` has packed.

    Parameters
    ----------
    packed : (⌈n/2⌉,) uint8
    n : int

    Returns
    -------
    codes : (n,) uint8
    """
    ### BEGIN SOLUTION
    xp = namespace(packed)
    return xp.stack((xp.right_shift(packed, 4), packed & 15), axis=1).reshape(-1)[:n]
    ### END SOLUTION


SCALES_BLOCK = 256
"""Scales that share one second-level scale."""


def double_quantize(absmax: Array, codebook: Array) -> tuple[Array, Array, Array]:
    """The scales themselves in 8 bits: their mean taken away, then quantised in blocks of 256.

    Scales are positive and alike; what is left without their mean is small and of both signs, which is what the
    codebook is good at.

    Parameters
    ----------
    absmax : (m,) float32
    codebook : (256,)
        Of `dynamic_codebook`.

    Returns
    -------
    codes : (m,) uint8
    scales : (⌈m/256⌉,) float32
    offset : (1,) float32
        The mean.

    References
    ----------
    arXiv:2305.14314, section 3, "Double Quantization".
    """
    ### BEGIN SOLUTION
    offset = absmax.mean().astype("float32").reshape(1)
    codes, scales = quantize_blocks(absmax - offset, codebook, SCALES_BLOCK)
    return codes, scales, offset
    ### END SOLUTION


def double_dequantize(codes: Array, scales: Array, offset: Array, codebook: Array) -> Array:
    """The scales again: each code's level times its block's second-level scale, plus the mean.

    Parameters
    ----------
    codes : (m,) uint8
    scales : (⌈m/256⌉,) float32
    offset : (1,) float32
    codebook : (k,)
        Its type is the result's.

    Returns
    -------
    absmax : (m,)
    """
    ### BEGIN SOLUTION
    return dequantize_blocks(codes, scales, codebook, SCALES_BLOCK) + offset
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- the layer


class QuantizedLinear(Linear):
    """y = x @ W + bias with W held as codes and scales, both frozen.

    The dense weight exists while a product is being computed, in the forward and once more in the backward, and is
    never kept: that costs time and saves the memory.

    Parameters
    ----------
    layer : Linear
        Whose weight is quantised, in blocks along the rows as they lie in memory; the bias stays as it is.
    quant_type : str
        One of `CODEBOOKS`.
    blocksize : int or None
        Weights that share a scale; None: a row of the weight.
    double_quant : bool
        Quantise the scales as well.

    Raises
    ------
    ValueError
        If there is no such format, or the blocksize is not 1 or more.
    """

    def __init__(self, layer: Linear, quant_type: str, blocksize: int | None, double_quant: bool) -> None:
        check_format(quant_type, blocksize)
        weight = layer.weight.data
        xp = namespace(weight)
        self.name = layer.name
        self.bias = layer.bias
        self.shape = weight.shape
        self.quant_type = quant_type
        self.blocksize = blocksize or weight.shape[1]
        self.bits, levels = CODEBOOKS[quant_type]
        self.codebook = xp.asarray(levels().astype(weight.dtype))
        codes, absmax = quantize_blocks(weight.reshape(-1), self.codebook, self.blocksize)

        def frozen(name: str, array: Array) -> Parameter:
            return Parameter(f"{self.name}.weight.{name}", array, trainable=False)

        self.codes = frozen("codes", pack_nibbles(codes) if self.bits == 4 else codes)
        self.scales_codebook = None
        if double_quant:
            self.scales_codebook = xp.asarray(dynamic_codebook().astype(weight.dtype))
            codes, absmax, offset = double_quantize(absmax, self.scales_codebook)
            self.absmax_codes, self.absmax_offset = frozen("absmax_codes", codes), frozen("absmax_offset", offset)
        self.absmax = frozen("absmax", absmax)

    @property
    def weight(self) -> Parameter:  # type: ignore[override]
        """The dense weight, computed now: (in, out)."""
        n = self.shape[0] * self.shape[1]
        codes = unpack_nibbles(self.codes.data, n) if self.bits == 4 else self.codes.data
        absmax = self.absmax.data
        if self.scales_codebook is not None:
            absmax = double_dequantize(self.absmax_codes.data, absmax, self.absmax_offset.data, self.scales_codebook)
        dense = dequantize_blocks(codes, absmax, self.codebook, self.blocksize)
        return Parameter(f"{self.name}.weight", dense.reshape(self.shape), trainable=False)

    @property
    def bits_per_weight(self) -> float:
        """All that stands for the weight, scales included."""
        stored = [p for p in self.parameters() if p is not self.bias]
        return 8 * sum(p.data.nbytes for p in stored) / (self.shape[0] * self.shape[1])

    def forward(self, x: Array, ctx: Context, add_bias: bool = True) -> tuple[Array, Backward]:
        """(..., in) -> (..., out); `add_bias` as in `Linear`."""
        ops = ctx.backend.ops
        needs_dx = ctx.needs_input_gradient(self.bias)
        y = ops.linear_forward(x, self.weight.data, self.bias.data if add_bias else None)
        ctx.see(self.name, y)

        def backward(dy: Array, grads: Gradients) -> Array | None:
            if self.bias.trainable:
                grads.add(self.bias, ops.linear_backward_bias(dy))
            return ops.linear_backward_input(dy, self.weight.data) if needs_dx else None

        return y, backward

    def dense(self) -> Linear:
        """An ordinary layer with the dequantised weight."""
        return Linear(self.name, self.weight.data, self.bias.data)


def check_format(quant_type: str, blocksize: int | None) -> None:
    """Make sure that there is such a format.

    Raises
    ------
    ValueError
    """
    if quant_type not in CODEBOOKS:
        raise InputError(f"quant_type is {quant_type!r}; there are {', '.join(CODEBOOKS)}")
    if blocksize is not None and (not hasattr(blocksize, "__index__") or blocksize < 1):
        raise InputError(f"blocksize is {blocksize}; it must be a whole number of 1 or more")


def quantized(model: GPT, quant_type: str = "nf4", blocksize: int | None = 64, double_quant: bool = True) -> GPT:
    """A copy of a model with the blocks' weights quantised; embeddings, LayerNorms and biases stay as they are.

    Parameters
    ----------
    model : GPT
        Plain; is not changed.
    quant_type, blocksize, double_quant
        As in `QuantizedLinear`.
    """
    require_plain(model)
    twin = model.copy()
    twin.replace(MATRICES, lambda layer, _: QuantizedLinear(layer, quant_type, blocksize, double_quant))  # type: ignore[arg-type]
    return twin


# ---------------------------------------------------------------------------------------------- the method


@register("qlora")
@dataclass(frozen=True, kw_only=True)
class QLoRA(LoRA):
    """LoRA on a frozen base in four bits; LoRA's settings, and those of the quantisation.

    Every linear layer of the blocks is quantised, those without an adapter too. Stored is what LoRA stores, a `peft`
    directory, with the quantisation's settings beside it: the base is at hand, and quantising it again gives the same
    codes.

    Parameters
    ----------
    quant_type : {"nf4", "fp4", "int4", "int8"}
    double_quant : bool
        Quantise the scales as well.
    blocksize : int
        Weights that share a scale.
    """

    target_modules: Sequence[str] | str = "all-linear"
    quant_type: str = "nf4"
    double_quant: bool = True
    blocksize: int = 64

    quantized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_format(self.quant_type, self.blocksize)
        if self.blocksize is None:
            raise InputError("blocksize is None; it must be a whole number of 1 or more")
        if self.use_dora or self.init_lora_weights == "pissa" or self.enable_lora is not None:
            raise InputError("qlora cannot be combined with use_dora, init_lora_weights='pissa' or enable_lora")

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """Quantise all linear layers of the blocks, and put adapters beside the targets."""
        super().install(trunk, seed, data)
        for name, layer in list(trunk.layers()):
            if type(layer) is Linear:  # one without an adapter
                trunk.replace(name, lambda layer, _: self.base(layer))  # type: ignore[arg-type]

    def base(self, layer: Linear) -> QuantizedLinear:
        """The quantised layer that stands under an adapter."""
        return QuantizedLinear(layer, self.quant_type, self.blocksize, self.double_quant)

    def merge(self, tuned: Tuned) -> GPT:
        """An ordinary GPT: the updates added to the *dequantised* weights, in full precision.

        Not to the original weights: the adapter was trained beside the quantised ones and makes up for some of their
        error. And never back into four bits: an update is smaller than the distance between two levels, so that
        rounding would take most of it away again.

        Raises
        ------
        ValueError
            If the model has no adapter (any more), or a classifier head.
        """
        plain = language_model(tuned, self.name).copy()
        adapted_layers(plain)
        for name, layer in list(plain.layers()):
            if isinstance(layer, QuantizedLinear) and not name.endswith(".base"):
                plain.replace(name, lambda _, __, layer=layer: layer.dense())  # type: ignore[misc]
        return super().merge(plain)

    def quantization(self, trunk: GPT) -> dict[str, Any]:
        """How the weights under the adapters are quantised: what the layers hold, whatever this object's settings."""
        layer: Any = next(iter(adapted_layers(trunk).values())).base
        return {
            "quant_type": layer.quant_type,
            "double_quant": layer.scales_codebook is not None,
            "blocksize": layer.blocksize,
        }

    @classmethod
    def rebuilt(cls, model: GPT, settings: dict[str, Any], tensors: dict[str, np.ndarray], directory: Path) -> Any:
        """As `LoRA.rebuilt`, on the base quantised as it was."""
        path = directory / QUANTIZATION_FILE
        stored = files.read_json(path)
        odd = sorted({"quant_type", "double_quant", "blocksize"} ^ stored.keys())
        if odd:
            raise InputError(f"{path}: settings missing or unknown: {', '.join(odd)}")
        return super().rebuilt(model, settings | stored, tensors, directory)


# ---------------------------------------------------------------------------------------------- the mathematics


def check_levels(backend: Backend) -> list[Check]:
    """The levels' places in the normal distribution, taken back from the levels, are evenly spaced."""

    def make() -> list[Check]:
        levels = nf4_codebook()
        shown = np.array([NormalDist().cdf(v * NormalDist().inv_cdf(NF4_OFFSET)) for v in levels])
        below, above = 0.5 - shown[:8], shown[7:] - 0.5
        reach = NF4_OFFSET - 0.5
        return [
            gradcheck.compare("Φ of the 7 negative ones and 0", below, np.linspace(reach, 0, 8), "they should be"),
            gradcheck.compare("Φ of 0 and the 8 positive ones", above, np.linspace(0, reach, 9), "they should be"),
        ]

    return gradcheck.attempt("Φ of the levels", make)


def check_blocks(backend: Backend) -> list[Check]:
    """The codes against a search through all levels; exact round trips of what is on a level."""
    x = np.random.default_rng(0).standard_normal(150).astype(np.float32)
    x[64:128] = 0

    def make() -> list[Check]:
        levels = nf4_codebook()
        codes, absmax = quantize_blocks(backend.asarray(x), backend.asarray(levels), 64)
        codes, absmax = backend.to_numpy(codes), backend.to_numpy(absmax)
        scales = np.repeat(np.maximum(absmax, 1e-38), 64)[:150]
        wanted = np.abs(x[:, None] / scales[:, None] - levels).argmin(1)
        again = dequantize_blocks(
            backend.asarray(codes), backend.asarray(absmax), backend.asarray(levels.astype(np.float32)), 64
        )
        return [
            gradcheck.compare("codes", codes.astype(float), wanted.astype(float)),
            gradcheck.compare("dequantised", backend.to_numpy(again).astype(float), levels[wanted] * scales),
        ]

    return gradcheck.attempt("codes", make)


def check_nibbles(backend: Backend) -> list[Check]:
    """1, 2, 15 are the bytes 0x12 and 0xF0; any codes come back."""
    codes = np.random.default_rng(0).integers(0, 16, 31).astype(np.uint8)

    def make() -> list[Check]:
        few = backend.to_numpy(pack_nibbles(backend.asarray(np.array([1, 2, 15], np.uint8))))
        back = backend.to_numpy(unpack_nibbles(pack_nibbles(backend.asarray(codes)), 31))
        return [
            gradcheck.compare("packed 1, 2, 15", few.astype(float), np.array([0x12, 0xF0], float)),
            gradcheck.compare("unpacked", back.astype(float), codes.astype(float)),
        ]

    return gradcheck.attempt("packed", make)


def check_double(backend: Backend) -> list[Check]:
    """The scales against a search through all levels."""
    absmax = np.random.default_rng(0).uniform(0.5, 1.5, 300).astype(np.float32)
    levels = dynamic_codebook()

    def make() -> list[Check]:
        book = backend.asarray(levels.astype(np.float32))
        parts = double_quantize(backend.asarray(absmax), book)
        again = backend.to_numpy(double_dequantize(*parts, book))
        rest = absmax - absmax.mean()
        scales = np.repeat([np.abs(rest[:256]).max(), np.abs(rest[256:]).max()], [256, 44])
        nearest = levels[np.abs((rest / scales)[:, None] - levels).argmin(1)] * scales + absmax.mean()
        return [gradcheck.compare("scales", again.astype(float), nearest)]

    return gradcheck.attempt("scales", make)


def probe_qlora(backend: Backend) -> gradcheck.Function:
    """LoRA on a quantised weight, whose last block is a short one."""
    rng = np.random.default_rng(5)
    weight, bias = backend.asarray(rng.standard_normal((5, 6))), backend.asarray(rng.standard_normal(6))

    def forward(x: Array, A: Array, B: Array) -> Any:
        base = QuantizedLinear(Linear("it", weight, bias), "nf4", 8, True)
        base.bias.trainable = False
        layer = LoRALinear(base, A, B, lora_alpha=3.0)
        ctx = Context(backend, grad=True)
        ctx.needs_input_gradient(Parameter("below", x))
        y, back = layer.forward(x, ctx)

        def backward(dy: Array) -> Any:
            grads = Gradients(layer.parameters(), backend)
            dx = back(dy, grads)
            return {"x": dx, "A": grads["it.lora_A.weight"], "B": grads["it.lora_B.weight"]}

        return y, backward

    return forward


DERIVATIONS = (
    Derivation(
        "Sixteen levels for a normal distribution",
        """
        Weights are close to normal. With evenly spaced levels, the few in the tails have as many levels as the many
        near 0. Put the levels at quantiles, and each of them is used about as often:
          positive: Φ⁻¹(p) for 8 probabilities from .9677 down, evenly spaced towards ½      Φ: the normal distribution
          negative: −Φ⁻¹(p) for 7 such;  between them 0 itself, so that a zero stays a zero
        Quantiles 0 and 1 would be infinite: .9677 is halfway between 1 − 1/30 and 1 − 1/32, the middles of the
        outermost of 15 and of 16 equal bins. All are divided by the largest.
        """,
        (nf4_codebook,),
        check_levels,
    ),
    Derivation(
        "A scale for every block",
        """
        absmax = max |w| of 64 weights in a row,   code = nearest level to w/absmax,   ŵ = level · absmax
        The nearest level's place is the number of middles between levels that w/absmax lies above. An outlier spoils
        the precision of its own block only.
        """,
        (quantize_blocks, dequantize_blocks),
        check_blocks,
    ),
    Derivation(
        "Two codes in a byte",
        """
        byte = 16·first + second      bits a weight so far: 4 + 32/64 = 4.5
        """,
        (pack_nibbles, unpack_nibbles),
        check_nibbles,
    ),
    Derivation(
        "Double quantisation",
        """
        A scale in 32 bits for 64 weights is half a bit a weight. Less their mean, in 8 bits, with a 32-bit scale for
        256 of them:
          8/64 + 32/(64·256) = .127 bits instead of .5      3 GB less for 65 billion weights
        """,
        (double_quantize, double_dequantize),
        check_double,
    ),
    Derivation(
        "LoRA on a quantised base",
        """
        y = x Ŵ + b + s·(x Aᵀ) Bᵀ,   Ŵ = dequantised codes
          dA, dB as in lesson 7;  dx = dy Ŵᵀ + s·(dy B) A      the gradient passes through Ŵ and never to it
        A rounded weight has no useful gradient (0 almost everywhere), and none is needed: only A and B learn.
        """,
        (QuantizedLinear.forward,),
        gradients(probe_qlora, {"x": (2, 3, 5), "A": (2, 5), "B": (6, 2)}),
    ),
)

# ---------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Format:
    """A way to store weights.

    Attributes
    ----------
    name : str
    quant_type : str
    blocksize : int or None
        None: a scale for each row.
    double_quant : bool
    """

    name: str
    quant_type: str
    blocksize: int | None = 64
    double_quant: bool = False


FORMATS = (
    Format("int8", "int8"),
    Format("int8, a scale a row", "int8", None),
    Format("NF4", "nf4"),
    Format("NF4 + double quantisation", "nf4", 64, True),
    Format("int4", "int4"),
    Format("int4, a scale a row", "int4", None),
    Format("FP4", "fp4"),
)


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes
    ----------
    base : str
    tasks : tuple of str
    records, test : int
        To train on, at most; and to be scored on.
    budget : Budget
    documents, block, windows : int
        Of the text on which the base is scored: how much to generate, tokens of a window, windows.
    """

    base: str = "base-m"
    tasks: tuple[str, ...] = ("translation", "pydocs-topics")
    records: int = 1000
    test: int = 500
    budget: Budget = field(default_factory=lambda: Budget(steps=100, batch_size=16))
    documents: int = 2000
    block: int = 128
    windows: int = 64


CORE = Sizes()
QUICK = Sizes("base-xs", ("translation", "topic"), 32, 8, Budget(steps=2, batch_size=8, workers=1), 60, 32, 4)
SEEDS = 5
COMPARED: dict[str, type[Method]] = {"full": Full, "lora": LoRA, "qlora": QLoRA}


def method(name: str, task: Task) -> Any:
    """The method as this lesson compares it: adapters of rank 8 on every linear layer of the blocks."""
    settings: dict[str, Any] = {"n_labels": task.n_labels}
    if name != "full":
        settings |= {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    return COMPARED[name](**settings)


def relative_error(x: np.ndarray, form: Format) -> float:
    """Root mean square of what quantisation changes, over that of the weights."""
    layer = Linear("it", x.astype(np.float32), np.zeros(x.shape[1], np.float32))
    again = QuantizedLinear(layer, form.quant_type, form.blocksize, form.double_quant).weight.data
    return float(np.linalg.norm(again - x) / np.linalg.norm(x))


def bits_per_weight(model: GPT) -> float:
    """Mean over the quantised layers, by their numbers of weights."""
    layers = [layer for _, layer in model.layers() if isinstance(layer, QuantizedLinear)]
    sizes = [math.prod(layer.shape) for layer in layers]
    return sum(layer.bits_per_weight * size for layer, size in zip(layers, sizes, strict=True)) / sum(sizes)


def measure_formats(base: GPT, loss: Callable[[GPT], float], formats: Sequence[Format]) -> list[dict[str, Any]]:
    """Bits, error and loss of a base in each format.

    Returns
    -------
    rows : list of dict
        ``name``, ``bits`` a weight, relative ``error`` of the weights (mean over the matrices) and ``normal_error`` of
        normal ones, ``loss`` in nats a token.
    """
    normal = np.random.default_rng(0).normal(0, 0.02, (256, 256))
    weights = matrices(base).values()
    rows = []
    for form in formats:
        model = quantized(base, form.quant_type, form.blocksize, form.double_quant)
        rows.append(
            {
                "name": form.name,
                "bits": bits_per_weight(model),
                "error": math.fsum(relative_error(w, form) for w in weights) / len(weights),
                "normal_error": relative_error(normal, form),
                "loss": loss(model),
            }
        )
    return rows


def score_of(task: Task, model: Any, limit: int) -> float:
    """What the task is judged by: accuracy for labels, held-out loss in nats a token for pairs."""
    if isinstance(task, LabelTask):
        return task.score(model, limit=limit)["accuracy"]
    return evaluate_batches(model, in_batches(task.encoded("test"), limit))[0]


def lesson(run: Run) -> None:
    """Everything that `make lesson-12` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    settings = run.settings
    sizes = settings.choose(QUICK, CORE)
    base, tokenizer = bases.load(sizes.base, backend=run.backend)
    seeds = range(settings.seed, settings.seed + (SEEDS if settings.full else 1))
    run.results["sizes"] = asdict(sizes)
    if settings.data:
        tasks = [own_task(settings.data, tokenizer)]
        run.say(f"\n  {tasks[0].describe()}")
    else:
        tasks = [load_task(name, tokenizer, sizes.records) for name in sizes.tasks]
    run.picture("levels", quantization_pictures.levels_picture({k: book() for k, (_, book) in CODEBOOKS.items()}))

    show_formats(run, base, tokenizer, sizes)
    show_methods(run, base, tasks, sizes, seeds)
    show_memory(run, base, tasks[0])


def show_formats(run: Run, base: GPT, tokenizer: Tokenizer, sizes: Sizes) -> None:
    """The base in every format."""
    run.heading("Bits, error and loss")
    text = text_material(tokenizer, None, sizes.documents, sizes.block, sizes.windows, run.settings.seed)
    intact = text.loss(base)
    formats = list(FORMATS)
    if run.settings.full:
        formats += (Format(f"NF4, blocks of {n}", "nf4", n) for n in (16, 32, 128, 256, 1024))
    rows = measure_formats(base, text.loss, formats)
    run.say(f"  {sizes.base}, held-out loss on {text.name} with 32-bit weights: {intact:.4f} nats a token")
    shown = [
        [r["name"], *(f"{r[key]:.4f}" for key in ("bits", "normal_error", "error")), f"{r['loss'] - intact:+.4f}"]
        for r in rows
    ]
    run.say(table(shown, ["format", "bits a weight", "error, normal weights", "error, this base's", "loss added"]))
    run.say(
        "  expect NF4 to have the smallest error of the 4-bit formats, about .092 of normal weights in blocks of 64,\n"
        "  and double quantisation to save about .37 bits for next to nothing"
    )
    run.results["formats"] = rows
    run.results["text_loss"] = intact
    by_name = {r["name"]: r for r in rows}
    for name, key in (("NF4", "nf4"), ("FP4", "fp4"), ("int4", "int4"), ("int8", "int8")):
        run.report(f"{key}_error", by_name[name]["error"], "of the weights' size", digits=4, banded=False)
        run.report(f"{key}_loss_added", by_name[name]["loss"] - intact, "nats a token", digits=4, banded=False)
    double = by_name["NF4 + double quantisation"]
    run.report("bits_with_double_quantisation", double["bits"], "bits a weight", banded=False)
    run.picture("formats", quantization_pictures.formats_picture(rows, intact))


def show_methods(run: Run, base: GPT, tasks: Sequence[Task], sizes: Sizes, seeds: Sequence[int]) -> None:
    """QLoRA beside LoRA and full fine-tuning, and its adapters merged in three ways."""
    run.heading("Training on four bits")
    scores: dict[str, dict[str, list[float]]] = {}
    merges: list[dict[str, float]] = []
    for task in tasks:
        score = partial(score_of, task, limit=sizes.test)
        for name in COMPARED:
            for seed in seeds:
                technique = method(name, task)
                title = f"{task.name}, {name}, seed {seed}"
                tuned = fine_tune(technique, base, task, sizes.budget, seed, progress=title).model
                scores.setdefault(task.name, {}).setdefault(name, []).append(score(tuned))
                if name == "qlora" and not isinstance(task, LabelTask):
                    merges.append(merge_three_ways(base, technique, tuned, score))
        nothing = "–" if isinstance(task, LabelTask) else f"{score(base):.3f}"
        measure = "accuracy" if isinstance(task, LabelTask) else "held-out loss (nats a token)"
        rows = [["base, not trained", nothing], *([n, spread(v)] for n, v in scores[task.name].items())]
        run.say(table(rows, [task.name, measure]) + "\n")
        for name in COMPARED:
            unit = "accuracy" if isinstance(task, LabelTask) else "nats a token"
            short = task.name.rpartition(".")[2].replace("-", "_")
            run.report(f"{name}_on_{short}", scores[task.name][name], unit)
    run.results["scores"] = scores
    labelled = {task.name: isinstance(task, LabelTask) for task in tasks}
    run.picture("methods", quantization_pictures.methods_picture(scores, labelled))
    if merges:
        run.say("  the same adapters merged: held-out loss (nats a token)")
        run.say(table([[way, spread([m[way] for m in merges], 4)] for way in merges[0]], ["", "loss"]))
        run.say("  expect the first two alike; rounding again takes away part of what was learnt")
        run.results["merges"] = merges


def merge_three_ways(base: GPT, technique: QLoRA, tuned: GPT, score: Callable[[GPT], float]) -> dict[str, float]:
    """Scores of a QLoRA model as it is, and merged into the dequantised, the original and re-quantised weights."""
    merged = technique.merge(tuned)
    onto_original = base.copy()
    for name, layer in adapted_layers(tuned).items():

        def add(old: Any, _: str, layer: LoRALinear = layer) -> Layer:
            return Linear(old.name, old.weight.data + layer.merged_weight() - layer.base_weight(), old.bias.data)

        onto_original.replace(name.removeprefix("transformer."), add)
    again = quantized(merged, technique.quant_type, technique.blocksize, technique.double_quant)
    return {
        "not merged": score(tuned),
        "into the dequantised base": score(merged),
        "into the original base": score(onto_original),
        "into the dequantised base, quantised again": score(again),
    }


def show_memory(run: Run, base: GPT, task: Task) -> None:
    """What a step holds, by method."""
    run.heading("Memory of a training step")
    batch = task.batches(16)(0)
    costs = {name: step_cost(method(name, task).apply(base), task.objective, batch) for name in COMPARED}
    rows = []
    for name, c in costs.items():
        held = (c.weights, c.gradients, c.optimizer, c.activations, c.bytes)
        rows.append([name, *(f"{size / 1e6:.2f}" for size in held), f"{1e3 * c.seconds:.0f}"])
    run.say(f"  {task.name}, a batch of {batch['ids'].shape[0]} × {batch['ids'].shape[1]} tokens; MB, and ms a step")
    run.say(table(rows, ["", "weights", "gradients", "optimizer", "activations", "together", "ms"]))
    saved = 1 - costs["qlora"].weights / costs["lora"].weights
    run.say(
        "  expect qlora's weights well below lora's, its activations the same; on a quiet machine its step is\n"
        "  slower: every product dequantises its weight first, twice a step. With longer texts activations outweigh\n"
        "  all else."
    )
    run.report("weight_memory_saved", saved, "of LoRA's", banded=False)
    slower = costs["qlora"].seconds / costs["lora"].seconds
    run.report("step_time_against_lora", slower, "× LoRA's", digits=2, banded=False)
    run.results["costs"] = {name: c.as_record() for name, c in costs.items()}
    run.picture("memory", quantization_pictures.memory_picture(run.results["costs"]))


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-12``; gives the exit code."""
    return runner.main(12, __doc__, lesson, argv, takes=runner.TASK)


if __name__ == "__main__":
    sys.exit(main())
