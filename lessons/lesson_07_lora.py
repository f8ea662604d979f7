"""Lesson 7: LoRA. Train a low-rank update beside frozen weights, merge it, swap it, and see what rank buys.

1. The update and its gradient by hand: y = x W + s·(x Aᵀ) Bᵀ with W frozen, checked against central differences.
   Its relatives in a few lines each: rsLoRA scales otherwise, DoRA learns a length for every column, PiSSA starts from
   W's largest singular directions, LoRA+ lets B learn faster.
2. What it costs beside full fine-tuning, and what is left of it once it is merged.
3. Which rank, which matrices, which relative, on two tasks; and whether two runs find the same directions.
4. Several adapters on one base at once: one for each row of a batch, and mixtures of them.

Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kernels import Backend, linear
from kernels.array import Array, namespace
from lessons.common import derivation, gradcheck, lora_study, runner
from lessons.common.classifier import Classifier
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.lora_files import adapter_config, method_settings, pattern_value, targeted
from lessons.common.lora_serving import Branch, MultiLoRA
from lessons.common.method import Method, Tuned, assign, blocks_setting, language_model, listed, register, trunk_of
from lessons.common.peft_files import QUANTIZATION_FILE, load_adapter, save_adapter
from lessons.common.runner import Run
from lessons.common.table import table
from lessons.common.tasks import PairTask, load_task, require_pairs
from minigpt import GPT, GPTConfig, Tokenizer, bases
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.evaluation import evaluate_batches
from minigpt.layers import Backward, Dropout, Layer, Linear
from minigpt.objectives import Batch
from minigpt.optim import ParameterGroup
from minigpt.parameters import Gradients, Parameter

# ---------------------------------------------------------------------------------------------- the mathematics
# `ops` is where the matrix products come from: the reference forms, or a backend's. A is (r, in) and B is (out, r) as
# in peft's files, the frozen weight (in, out) as in GPT-2's.


def lora_scaling(r: int, lora_alpha: float, use_rslora: bool = False) -> float:
    """The factor s on the update.

    α/r in LoRA (arXiv:2106.09685, section 4.1); α/√r in rsLoRA, with which the update's size stays the same for every
    rank (Kalajdzievski 2023, arXiv:2312.03732, theorem 3.2).
    """
    ### BEGIN SOLUTION
    return lora_alpha / (math.sqrt(r) if use_rslora else r)
    ### END SOLUTION


def lora_forward(x: Array, A: Array, B: Array, scaling: float, ops: Any = linear) -> tuple[Array, Array]:
    """What the adapter adds to the layer's output: s·(x Aᵀ) Bᵀ (arXiv:2106.09685, equation 3).

    Two thin products, r·(in + out) multiplications a row; the matrix B A, in·out of them, is never made.

    Parameters
    ----------
    x : (..., in)
    A : (r, in)
    B : (out, r)
    scaling : float
        s.
    ops : namespace, optional
        With ``linear_forward``.

    Returns
    -------
    delta : (..., out)
    z : (..., r)
        s·x Aᵀ, which the gradient of B will need.
    """
    ### BEGIN SOLUTION
    z = ops.linear_forward(x, A.T, None)
    z *= scaling
    return ops.linear_forward(z, B.T, None), z
    ### END SOLUTION


def lora_backward_z(dy: Array, B: Array, scaling: float, ops: Any = linear) -> Array:
    """Gradient with respect to x Aᵀ, through which A and x get theirs: dz = s·dy B.

    Parameters
    ----------
    dy : (..., out)
    B : (out, r)
    scaling : float
    ops : namespace, optional
        With ``linear_backward_input``.

    Returns
    -------
    dz : (..., r)
    """
    ### BEGIN SOLUTION
    dz = ops.linear_backward_input(dy, B.T)
    dz *= scaling
    return dz
    ### END SOLUTION


def lora_backward_A(dz: Array, x: Array, ops: Any = linear, out: Array | None = None) -> Array:
    """Gradient of A, summed over all rows: dA = dzᵀ x.

    With B = 0, as at the start, dz and so dA are 0: in the first step only B moves.

    Parameters
    ----------
    dz : (..., r)
    x : (..., in)
    ops : namespace, optional
        With ``linear_backward_weight``.
    out : (r, in), optional
        Where to write it.

    Returns
    -------
    dA : (r, in)
    """
    ### BEGIN SOLUTION
    return ops.linear_backward_weight(x, dz, out=out)
    ### END SOLUTION


def lora_backward_B(dy: Array, z: Array, ops: Any = linear, out: Array | None = None) -> Array:
    """Gradient of B, summed over all rows: dB = dyᵀ z, z with its factor s.

    Parameters
    ----------
    dy : (..., out)
    z : (..., r)
    ops : namespace, optional
        With ``linear_backward_weight``.
    out : (out, r), optional
        Where to write it.

    Returns
    -------
    dB : (out, r)
    """
    ### BEGIN SOLUTION
    return ops.linear_backward_weight(z, dy, out=out)
    ### END SOLUTION


def lora_backward_input(dz: Array, A: Array, ops: Any = linear) -> Array:
    """The adapter's part of the input's gradient, dz A; the frozen weight's own, dy Wᵀ, is added to it.

    Parameters
    ----------
    dz : (..., r)
    A : (r, in)
    ops : namespace, optional
        With ``linear_backward_input``.

    Returns
    -------
    dx : (..., in)
    """
    return ops.linear_backward_input(dz, A.T)


def merge_delta(A: Array, B: Array, scaling: float, ops: Any = linear) -> Array:
    """The update as one matrix to add to the stored weight: s·(B A)ᵀ.

    Parameters
    ----------
    A : (r, in)
    B : (out, r)
    scaling : float
    ops : namespace, optional

    Returns
    -------
    delta : (in, out)
    """
    ### BEGIN SOLUTION
    return ops.linear_forward(A.T, scaling * B.T, None)
    ### END SOLUTION


def dora_norm(weight: Array, A: Array, B: Array, scaling: float, ops: Any = linear) -> Array:
    """Length of what each output is computed with: the columns of W + s·(B A)ᵀ.

    Parameters
    ----------
    weight : (in, out)
    A : (r, in)
    B : (out, r)
    scaling : float
    ops : namespace, optional

    Returns
    -------
    norm : (out,)
    """
    ### BEGIN SOLUTION
    whole = weight + merge_delta(A, B, scaling, ops)
    return namespace(weight).sqrt((whole * whole).sum(0))
    ### END SOLUTION


def dora_forward(h: Array, magnitude: Array, norm: Array) -> Array:
    """DoRA: every output's direction from W + s·(B A)ᵀ, its length learnt; y = (m/n)·h.

    Liu et al. (2024), "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353, equation 5.

    Parameters
    ----------
    h : (..., out)
        x W + s·(x Aᵀ) Bᵀ, without the bias.
    magnitude : (out,)
        m; at the start it is W's own norm, so that y = x W.
    norm : (out,)
        n, of `dora_norm`.

    Returns
    -------
    y : (..., out)
    """
    ### BEGIN SOLUTION
    return h * (magnitude / norm)
    ### END SOLUTION


def dora_backward(dy: Array, h: Array, magnitude: Array, norm: Array) -> tuple[Array, Array]:
    """Gradients of `dora_forward`; n counts as a constant, which saves memory and loses little (section 4.3).

    Parameters
    ----------
    dy, h : (..., out)
    magnitude, norm : (out,)

    Returns
    -------
    dh : (..., out)
        (m/n)·dy, which goes on to A, B and x.
    dmagnitude : (out,)
        Σ over rows of dy·h/n.
    """
    ### BEGIN SOLUTION
    width = dy.shape[-1]
    dmagnitude = (dy * h).reshape(-1, width).sum(0) / norm
    return dy * (magnitude / norm), dmagnitude
    ### END SOLUTION


def pissa_init(weight: Array, r: int, scaling: float) -> tuple[Array, Array]:
    """Factors whose product is the best rank-r part of the weight: s·B A = the r largest singular terms of Wᵀ.

    With Wᵀ = V Σ Uᵀ: B = V_r √(Σ_r/s) and A = √(Σ_r/s) U_rᵀ. What they hold is taken out of the frozen weight.
    Meng et al. (2024), "PiSSA", arXiv:2404.02948, equations 2 to 4.

    Parameters
    ----------
    weight : (in, out)
    r : int
    scaling : float

    Returns
    -------
    A : (r, in)
    B : (out, r)
    """
    ### BEGIN SOLUTION
    xp = namespace(weight)
    U, S, Vt = xp.linalg.svd(weight, full_matrices=False)
    root = xp.sqrt(S[:r] / scaling)
    return root[:, None] * U[:, :r].T, Vt[:r].T * root
    ### END SOLUTION


def subspace_similarity(A1: Array, A2: Array, i: int, j: int) -> float:
    """How much of the first i directions of one adapter lies in the first j of another: ‖U₁ᵢᵀ U₂ⱼ‖² / min(i, j).

    1 if the smaller of the two subspaces lies in the other, 0 if they are at right angles. Two random subspaces of a
    d-dimensional space reach max(i, j)/d, which is not little where d is small (arXiv:2106.09685, equation 4).

    Parameters
    ----------
    A1 : (r1, in)
    A2 : (r2, in)
    i, j : int
        At most r1 and r2; directions are A's right singular vectors, largest singular value first.

    Returns
    -------
    similarity : float in [0, 1]
    """
    ### BEGIN SOLUTION
    first = np.linalg.svd(A1, full_matrices=False)[2][:i]  # (i, in)
    second = np.linalg.svd(A2, full_matrices=False)[2][:j]
    return float(((first @ second.T) ** 2).sum() / min(i, j))
    ### END SOLUTION


def mix_cat(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Σ wᵢ·sᵢ·Bᵢ Aᵢ exactly, as one pair of factors: the A one below the other, the B side by side.

    The ranks add up. Adding the factors themselves instead would not do: (A₁ + A₂) and (B₁ + B₂) multiply to the cross
    terms B₁ A₂ + B₂ A₁ as well, which neither adapter has learnt (`peft` calls that "linear").

    Parameters
    ----------
    factors : sequence of Factors
        Of one layer.
    weights : sequence of float
        w.

    Returns
    -------
    mixed : Factors
        Of scaling 1: weights and scalings have gone into A.
    """
    ### BEGIN SOLUTION
    xp = namespace(factors[0].A)
    A = xp.concatenate([w * f.scaling * f.A for f, w in zip(factors, weights, strict=True)])
    return Factors(A, xp.concatenate([f.B for f in factors], axis=1), 1.0)
    ### END SOLUTION


def mix_svd(factors: Sequence[Factors], weights: Sequence[float], rank: int) -> Factors:
    """The best approximation of Σ wᵢ·sᵢ·Bᵢ Aᵢ of a given rank: its largest singular terms (Eckart, Young 1936).

    Exact if `rank` is at least the sum of the ranks.

    Parameters
    ----------
    factors : sequence of Factors
    weights : sequence of float
    rank : int

    Returns
    -------
    mixed : Factors
        Of scaling 1.
    """
    ### BEGIN SOLUTION
    A, B, _ = mix_cat(factors, weights)
    U, S, Vt = namespace(A).linalg.svd(B @ A, full_matrices=False)  # (out, in)
    return Factors(Vt[:rank], U[:, :rank] * S[:rank], 1.0)
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- the layers


class LoRALinear(Layer):
    """A frozen layer with a trained low-rank update beside it: y = base(x) + s·(dropout(x) Aᵀ) Bᵀ.

    Parameters
    ----------
    base : Layer
        Any layer (..., in) -> (..., out) with a `name` whose own parameters are frozen. What needs its numbers asks
        `base_weight`.
    A : (r, in)
    B : (out, r)
    lora_alpha : float
    use_rslora : bool
    dropout : float
        On the adapter's input only, while training.
    """

    def __init__(
        self, base: Layer, A: Array, B: Array, lora_alpha: float, use_rslora: bool = False, dropout: float = 0.0
    ) -> None:
        self.name: str = base.name  # type: ignore[attr-defined]
        self.base = base
        self.lora_A = Parameter(f"{self.name}.lora_A.weight", A)
        self.lora_B = Parameter(f"{self.name}.lora_B.weight", B)
        self.lora_alpha = lora_alpha
        self.use_rslora = use_rslora
        self.drop = Dropout(dropout)
        self.start: tuple[Array, Array] | None = None
        """A and B that were taken out of the base's weight, in PiSSA."""

    @property
    def scaling(self) -> float:
        """s; see `lora_scaling`. The last axis of B is the rank in every form of this layer."""
        return lora_scaling(self.lora_B.data.shape[1], self.lora_alpha, self.use_rslora)

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., in) -> (..., out)."""
        ops = ctx.backend.ops
        y, base_back = self.base.forward(x, ctx)
        ctx.needs_input_gradient(self.lora_A, self.lora_B)  # counted; whether x needs one, the base has found out
        A, B, scaling = self.lora_A.data, self.lora_B.data, self.scaling
        dropped, drop_back = self.drop.forward(x, ctx)
        delta, z = lora_forward(dropped, A, B, scaling, ops)
        y += delta
        ctx.see(self.name, y)
        kept_x = dropped if ctx.grad and self.lora_A.trainable else None
        kept_z = z if ctx.grad and self.lora_B.trainable else None

        def backward(dy: Array, grads: Gradients) -> Array | None:
            dx = base_back(dy, grads)
            if kept_z is not None:
                grads.add(self.lora_B, lora_backward_B(dy, kept_z, ops, grads.slot(self.lora_B)))
            if kept_x is None and dx is None:
                return None
            dz = lora_backward_z(dy, B, scaling, ops)
            if kept_x is not None:
                grads.add(self.lora_A, lora_backward_A(dz, kept_x, ops, grads.slot(self.lora_A)))
            if dx is not None:
                dx += drop_back(lora_backward_input(dz, A, ops), grads)
            return dx

        return y, backward

    def base_weight(self) -> Array:
        """The frozen weight as numbers, (in, out)."""
        return self.base.weight.data  # type: ignore[attr-defined]

    def merged_weight(self) -> Array:
        """One weight that computes the same, (in, out): a fresh array, the base keeps its own."""
        return self.base_weight() + merge_delta(self.lora_A.data, self.lora_B.data, self.scaling)

    def merged(self) -> Linear:
        """An ordinary linear layer that computes the same."""
        return Linear(self.name, self.merged_weight(), self.base.bias.data)  # type: ignore[attr-defined]

    def take_out(self, A: Array, B: Array) -> None:
        """Take s·(B A)ᵀ out of the base's weight, in an array of its own: what A and B hold at the start in PiSSA."""
        bias = self.base.bias.data  # type: ignore[attr-defined]
        self.base = Linear(self.name, self.base_weight() - merge_delta(A, B, self.scaling), bias)
        self.base.freeze()
        self.start = (A, B)

    def factors(self) -> Factors:
        """The update of the base model's own weight as two factors. For PiSSA they have twice the rank:
        B A − B₀ A₀ = [B, −B₀] [A; A₀]."""
        A, B = self.lora_A.data, self.lora_B.data
        if self.start is not None:
            xp = namespace(A)
            A, B = xp.concatenate((A, self.start[0])), xp.concatenate((B, -self.start[1]), axis=1)
        return Factors(A, B, self.scaling)


class Factors(NamedTuple):
    """The update s·(B A)ᵀ of one weight.

    Attributes
    ----------
    A : (r, in)
    B : (out, r)
    scaling : float
    """

    A: Array
    B: Array
    scaling: float

    def __call__(self, x: Array, ops: Any = linear) -> Array:
        """What the update adds to the output of the layer, (..., in) -> (..., out)."""
        return lora_forward(x, *self, ops)[0]


class FusedLoRALinear(LoRALinear):
    """LoRA on some of the equal parts of a fused layer's output, such as q and v of c_attn, each with an A of its own.

    loralib's ``MergedLinear``. Written as one pair of factors, A is [A_q; A_v], and B has blocks of zeros.

    Parameters
    ----------
    base : Linear
    A : (k·r, in)
        Of the k enabled parts, one below the other.
    B : (k·out/n, r)
        Likewise.
    enable_lora : sequence of n bool
        Which parts have an adapter.
    lora_alpha, use_rslora, dropout
        As in `LoRALinear`.
    """

    def __init__(
        self,
        base: Layer,
        A: Array,
        B: Array,
        lora_alpha: float,
        use_rslora: bool,
        dropout: float,
        enable_lora: Sequence[bool],
    ) -> None:
        super().__init__(base, A, B, lora_alpha, use_rslora, dropout)
        k, r = sum(enable_lora), B.shape[1]
        width = B.shape[0] // k
        self.out = width * len(enable_lora)
        places = [i for i, enabled in enumerate(enable_lora) if enabled]
        self.parts = [
            (slice(n * r, (n + 1) * r), slice(n * width, (n + 1) * width), slice(i * width, (i + 1) * width))
            for n, i in enumerate(places)
        ]
        """Of every enabled part: its rows of A (places of z), its rows of B, its columns of the output."""

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., in) -> (..., out)."""
        ops, xp = ctx.backend.ops, ctx.backend.xp
        y, base_back = self.base.forward(x, ctx)
        ctx.needs_input_gradient(self.lora_A, self.lora_B)
        A, B, scaling = self.lora_A.data, self.lora_B.data, self.scaling
        dropped, drop_back = self.drop.forward(x, ctx)
        z = ops.linear_forward(dropped, A.T, None)  # (..., k·r)
        z *= scaling
        for rank, rows, columns in self.parts:
            y[..., columns] += ops.linear_forward(z[..., rank], B[rows].T, None)
        ctx.see(self.name, y)
        kept_x = dropped if ctx.grad and self.lora_A.trainable else None
        kept_z = z if ctx.grad and self.lora_B.trainable else None

        def backward(dy: Array, grads: Gradients) -> Array | None:
            dx = base_back(dy, grads)
            if kept_z is not None:
                dB = [lora_backward_B(dy[..., columns], kept_z[..., rank], ops) for rank, _, columns in self.parts]
                grads.add(self.lora_B, xp.concatenate(dB))
            if kept_x is None and dx is None:
                return None
            dz = xp.concatenate(
                [lora_backward_z(dy[..., columns], B[rows], scaling, ops) for _, rows, columns in self.parts], axis=-1
            )
            if kept_x is not None:
                grads.add(self.lora_A, lora_backward_A(dz, kept_x, ops, grads.slot(self.lora_A)))
            if dx is not None:
                dx += drop_back(lora_backward_input(dz, A, ops), grads)
            return dx

        return y, backward

    def merged_weight(self) -> Array:
        """One weight that computes the same, (in, out)."""
        return self.base_weight() + merge_delta(*self.factors())

    def factors(self) -> Factors:
        """One pair of factors of rank k·r that computes the same."""
        A, B = self.lora_A.data, self.lora_B.data
        blocks = namespace(B).zeros((self.out, A.shape[0]), dtype=B.dtype)
        for rank, rows, columns in self.parts:
            blocks[columns, rank] = B[rows]
        return Factors(A, blocks, self.scaling)


class DoRALinear(LoRALinear):
    """LoRA whose columns have learnt lengths: y = (m/n)·(x W + s·(x Aᵀ) Bᵀ) + bias. Parameters as in `LoRALinear`."""

    def __init__(
        self, base: Layer, A: Array, B: Array, lora_alpha: float, use_rslora: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(base, A, B, lora_alpha, use_rslora, dropout)
        norm = dora_norm(self.base_weight(), A, B, self.scaling)
        self.lora_magnitude_vector = Parameter(f"{self.name}.lora_magnitude_vector", norm)

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., in) -> (..., out)."""
        ops = ctx.backend.ops
        needs_dx = ctx.needs_input_gradient(self.lora_A, self.lora_B, self.lora_magnitude_vector)
        A, B, scaling, W, m = (
            self.lora_A.data,
            self.lora_B.data,
            self.scaling,
            self.base_weight(),
            self.lora_magnitude_vector.data,
        )
        norm = dora_norm(W, A, B, scaling, ops)
        dropped, drop_back = self.drop.forward(x, ctx)
        delta, z = lora_forward(dropped, A, B, scaling, ops)
        h = ops.linear_forward(x, W, None)
        h += delta
        y = dora_forward(h, m, norm)
        y += self.base.bias.data  # type: ignore[attr-defined]
        ctx.see(self.name, y)

        def backward(dy: Array, grads: Gradients) -> Array | None:
            dh, dm = dora_backward(dy, h, m, norm)
            if self.lora_magnitude_vector.trainable:
                grads.add(self.lora_magnitude_vector, dm)
            if self.lora_B.trainable:
                grads.add(self.lora_B, lora_backward_B(dh, z, ops, grads.slot(self.lora_B)))
            dz = lora_backward_z(dh, B, scaling, ops)
            if self.lora_A.trainable:
                grads.add(self.lora_A, lora_backward_A(dz, dropped, ops, grads.slot(self.lora_A)))
            if not needs_dx:
                return None
            dx = ops.linear_backward_input(dh, W)
            dx += drop_back(lora_backward_input(dz, A, ops), grads)
            return dx

        return y, backward

    def merged_weight(self) -> Array:
        """One weight that computes the same, (in, out)."""
        A, B, W = self.lora_A.data, self.lora_B.data, self.base_weight()
        gain = self.lora_magnitude_vector.data / dora_norm(W, A, B, self.scaling)
        return gain * (W + merge_delta(A, B, self.scaling))


# ---------------------------------------------------------------------------------------------- the methods


@register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Low-rank updates of some linear layers; settings as in `peft.LoraConfig`.

    Parameters
    ----------
    r : int
        Rank, 1 to the smaller side of the layer's weight.
    lora_alpha : float
        α; the update is scaled by α/r.
    target_modules : sequence of str, or "all-linear"
        Names of layers, or how they end: ``"c_proj"`` means attn.c_proj and mlp.c_proj in every block.
    lora_dropout : float
    use_rslora, use_dora : bool
    rank_pattern, alpha_pattern : mapping of str to number
        Other values for the layers whose names end in (or match) a key.
    layers_to_transform : int or sequence of int, optional
        Only these blocks.
    init_lora_weights : True, "gaussian" or "pissa"
        A uniform in ±1/√in, or normal of deviation 1/r, with B = 0; or the weight's largest singular terms.
    enable_lora : sequence of bool, optional
        loralib's: adapt only some of the equal parts of the target's output, each with an A and a B of its own. For
        c_attn ``(True, False, True)`` means q and v. Saved as the equal LoRA of that many times the rank.
    n_labels : int, optional
    """

    r: int = 8
    lora_alpha: float = 16
    target_modules: Sequence[str] | str = ("c_attn",)
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: Sequence[int] | int | None = None
    init_lora_weights: bool | str = True
    enable_lora: Sequence[bool] | None = None

    learning_rate: ClassVar[float] = 1e-2
    quantized: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.target_modules, str):
            names = listed("target_modules", self.target_modules, str, "a list of layers' names, or 'all-linear'")
            object.__setattr__(self, "target_modules", names)
        if self.enable_lora is not None and not (
            isinstance(self.enable_lora, (tuple, list)) and all(isinstance(on, bool) for on in self.enable_lora)
        ):
            raise InputError(f"enable_lora is {self.enable_lora!r}; it must be a list of True and False")
        blocks_setting(self.layers_to_transform)
        for name in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(self, name)
            if not isinstance(pattern, Mapping) or not all(
                isinstance(v, (int, float)) and not isinstance(v, bool) for v in pattern.values()
            ):
                raise InputError(f"{name} is {pattern!r}; it must map names to numbers")
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
                raise InputError(f"lora_alpha is {alpha!r}; it must be a number above 0")
        if not isinstance(self.lora_dropout, (int, float)) or not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout is {self.lora_dropout!r}; it must be at least 0 and below 1")
        if self.init_lora_weights not in (True, "gaussian", "pissa"):
            raise InputError(f"init_lora_weights is {self.init_lora_weights!r}; there are True, 'gaussian' and 'pissa'")
        if self.enable_lora is not None and not any(self.enable_lora):
            raise InputError("enable_lora enables none of the parts; one at least must be True")
        special = [
            name
            for name, on in (
                ("use_dora", self.use_dora),
                ("init_lora_weights='pissa'", self.init_lora_weights == "pissa"),
                ("enable_lora", self.enable_lora is not None),
            )
            if on
        ]
        if len(special) > 1:
            raise InputError(f"{' and '.join(special)} cannot be combined")

    # ------------------------------------------------------------------------------------------ putting it in place

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """Wrap the target layers."""
        names = targeted(trunk, self.target_modules, self.layers_to_transform)
        ranks = pattern_value("rank_pattern", self.rank_pattern, names, self.r)
        alphas = pattern_value("alpha_pattern", self.alpha_pattern, names, self.lora_alpha)
        for number, name in enumerate(names):
            rng = np.random.default_rng([seed, number])
            trunk.replace(
                name.removeprefix("transformer."),
                lambda layer, _, name=name, rng=rng: self.wrap(layer, ranks[name], alphas[name], trunk, rng),  # type: ignore[misc]
            )

    def wrap(self, layer: Any, r: int, alpha: float, trunk: GPT, rng: np.random.Generator) -> LoRALinear:
        """The layer with a fresh adapter.

        Parameters
        ----------
        layer : Linear
            Frozen.
        r : int
        alpha : float
        trunk : GPT
            For its backend and type.
        rng : numpy Generator
        """
        n_in, n_out = layer.weight.data.shape
        if self.enable_lora is not None and n_out % len(self.enable_lora):
            raise InputError(f"{layer.name} has {n_out} outputs, which are not {len(self.enable_lora)} equal parts")
        k = 1 if self.enable_lora is None else sum(self.enable_lora)
        part = n_out if self.enable_lora is None else n_out // len(self.enable_lora)
        highest = min(n_in, part)
        if not hasattr(r, "__index__") or not 1 <= r <= highest:
            raise InputError(f"r is {r}; for {layer.name}, a matrix of {n_in} × {part}, it must be from 1 to {highest}")

        def array(values: np.ndarray) -> Array:
            return trunk.backend.asarray(values.astype(trunk.dtype))

        if self.init_lora_weights == "gaussian":
            A = array(rng.normal(0.0, 1 / r, (k * r, n_in)))
        else:
            A = array(rng.uniform(-(n_in**-0.5), n_in**-0.5, (k * r, n_in)))  # Kaiming, a = √5, as peft and loralib
        B = array(np.zeros((k * part, r)))
        if self.enable_lora is not None:
            return FusedLoRALinear(
                layer, A, B, alpha, self.use_rslora, self.lora_dropout, tuple(map(bool, self.enable_lora))
            )
        kind = DoRALinear if self.use_dora else LoRALinear
        adapted = kind(self.base(layer), A, B, alpha, self.use_rslora, self.lora_dropout)
        if self.init_lora_weights == "pissa":
            A, B = map(array, pissa_init(trunk.backend.to_numpy(layer.weight.data), r, adapted.scaling))
            adapted.lora_A.data, adapted.lora_B.data = A, B
            adapted.take_out(A.copy(), B.copy())
        return adapted

    def base(self, layer: Linear) -> Layer:
        """What stands under the adapter in the layer's place; QLoRA puts a quantised weight there."""
        return layer

    # ------------------------------------------------------------------------------------------ taking it away

    def merge(self, tuned: Tuned) -> GPT:
        """An ordinary GPT with the updates added to its weights; `tuned` keeps its own.

        Raises
        ------
        ValueError
            If the model has no adapter (any more), or a classifier head.
        """
        plain = language_model(tuned, self.name).copy()
        layers = adapted_layers(plain)
        for name, layer in layers.items():
            plain.replace(name.removeprefix("transformer."), lambda _, __, layer=layer: layer.merged())  # type: ignore[misc]
        return super().merge(plain)

    # ------------------------------------------------------------------------------------------ files

    def save(self, tuned: Tuned, directory: str | Path) -> None:
        """Write a `peft` directory, after what the model's layers hold, whatever this object's settings.

        A classifier's head goes with it (``modules_to_save``).
        """
        trunk = trunk_of(tuned)
        host = tuned.backend.to_numpy
        tensors, shapes = {}, {}
        for name, layer in (layers := adapted_layers(trunk)).items():
            A, B, _ = layer.factors()
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = host(A), host(B)
            if isinstance(layer, DoRALinear):
                tensors[layer.lora_magnitude_vector.name] = host(layer.lora_magnitude_vector.data)
            growth = A.shape[0] / layer.lora_B.data.shape[1]
            shapes[name] = (A.shape[0], layer.lora_alpha * (math.sqrt(growth) if layer.use_rslora else growth))
        first = next(iter(layers.values()))
        config = adapter_config(trunk, shapes, first.use_rslora, isinstance(first, DoRALinear), first.drop.p)
        if isinstance(tuned, Classifier):
            tensors |= {p.name: host(p.data).T for p in tuned.head.parameters()}  # torch stores (out, in)
            config |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
        save_adapter(directory, config, tensors, quantization=self.quantization(trunk))

    def quantization(self, trunk: GPT) -> dict[str, Any] | None:
        """How the weights under the adapters are quantised; None, because they are not."""
        return None

    @classmethod
    def load(cls, model: GPT, directory: str | Path) -> Any:
        """The tuned model of a `peft` directory, on its base.

        Raises
        ------
        ValueError
            One line that names the keys: tensors that are missing, left over or mis-shaped, and settings that would
            change what is computed and are not known here.
        """
        config, tensors = load_adapter(directory, "LORA", model.dtype)
        if not cls.quantized and Path(directory, QUANTIZATION_FILE).exists():
            raise InputError(f"{directory} is an adapter of a quantised base: load it with METHODS['qlora']")
        settings = method_settings(config, directory)
        head = {name: tensors.pop(name).T for name in ("score.weight", "score.bias") if name in tensors}
        if ("score.weight" in head) != (config.get("modules_to_save") == ["score"]):
            raise InputError(
                f"{directory}: modules_to_save is {config.get('modules_to_save')}, the file has another head"
            )
        n_labels = head["score.weight"].shape[1] if head else None
        tuned = cls.rebuilt(model, settings | {"n_labels": n_labels}, tensors, Path(directory))
        assign((p for p in tuned.parameters() if p.trainable), tensors | head, tuned, directory)
        return tuned

    @classmethod
    def rebuilt(cls, model: GPT, settings: dict[str, Any], tensors: dict[str, np.ndarray], directory: Path) -> Any:
        """A tuned model for these tensors, which are assigned afterwards."""
        if settings["init_lora_weights"] == "pissa":
            raise InputError(
                f"{directory}: init_lora_weights = 'pissa' changes the base; load it with METHODS['pissa']"
            )
        return cls(**settings).apply(model)


@register("rslora")
@dataclass(frozen=True, kw_only=True)
class RsLoRA(LoRA):
    """LoRA scaled by α/√r: a high rank no longer damps its own learning (arXiv:2312.03732)."""

    use_rslora: bool = True

    learning_rate: ClassVar[float] = 5e-3


@register("dora")
@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """LoRA with a learnt length for every output (arXiv:2402.09353)."""

    use_dora: bool = True


@register("pissa")
@dataclass(frozen=True, kw_only=True)
class PiSSA(LoRA):
    """LoRA that starts from the weight's largest singular terms and trains those (arXiv:2404.02948).

    Saved as a plain LoRA of the original base, which has twice the rank.
    """

    init_lora_weights: bool | str = "pissa"

    @classmethod
    def rebuilt(cls, model: GPT, settings: dict[str, Any], tensors: dict[str, np.ndarray], directory: Path) -> Any:
        """As `LoRA.rebuilt`; the second half of every factor is what was taken out of the base at the start."""
        if settings["init_lora_weights"] == "pissa":  # as peft saves it unconverted: the start is computed again
            return cls(**settings).apply(model)
        odd = [name for name, array in tensors.items() if name.endswith("lora_A.weight") and array.shape[0] % 2]
        if odd:
            raise InputError(f"{directory}: a saved PiSSA has even ranks; {odd[0]} has {tensors[odd[0]].shape[0]}")
        whole = LoRA(**settings)  # says so if the file's settings are of the wrong kind
        growth = math.sqrt(2) if whole.use_rslora else 2
        half = settings | {
            "r": whole.r // 2,
            "lora_alpha": whole.lora_alpha / growth,
            "rank_pattern": {key: r // 2 for key, r in whole.rank_pattern.items()},
            "alpha_pattern": {key: alpha / growth for key, alpha in whole.alpha_pattern.items()},
        }
        tuned = cls(**half).apply(model)
        asarray = model.backend.asarray
        for name, layer in adapted_layers(trunk_of(tuned)).items():
            A, B = (tensors.get(f"{name}.lora_{x}.weight") for x in "AB")
            if A is not None and B is not None and A.shape[0] == B.shape[1] == 2 * layer.lora_B.data.shape[1]:
                r = A.shape[0] // 2
                layer.take_out(asarray(A[r:].copy()), asarray(-B[:, r:]))
                tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = A[:r], B[:, :r]
        return tuned


@register("loraplus")
@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA):
    """LoRA whose B learns faster than its A (Hayou, Ghosh, Yu 2024, arXiv:2402.12354).

    Parameters
    ----------
    loraplus_lr_ratio : float
        B's learning rate over A's.
    """

    loraplus_lr_ratio: float = 16.0

    learning_rate: ClassVar[float] = 2e-3

    def groups(self, tuned: Tuned) -> Sequence[ParameterGroup]:
        """B's own rate."""
        return (ParameterGroup("*.lora_B.weight", lr_scale=self.loraplus_lr_ratio),)


def adapted_layers(model: GPT) -> dict[str, LoRALinear]:
    """The layers with an adapter, by name.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = {layer.name: layer for _, layer in model.layers() if isinstance(layer, LoRALinear)}
    if not found:
        raise InputError("no layer of this model has a LoRA adapter: it never had one, or is merged already")
    return found


# ---------------------------------------------------------------------------------------------- several at once


def factors_of(source: Tuned | str | Path, model: GPT) -> dict[str, Factors]:
    """What an adapter adds to each layer of its base.

    Parameters
    ----------
    source : tuned model, or a `peft` directory
    model : GPT
        The base.

    Raises
    ------
    ValueError
        If it is no update of this base's weights alone: DoRA rescales the base's own output, a classifier has another
        head.
    """
    tuned = LoRA.load(model, source) if isinstance(source, (str, Path)) else source
    if isinstance(tuned, Classifier):
        raise InputError("a classifier's adapter cannot share a language model with others: its head is its own")
    layers = adapted_layers(tuned)
    if any(isinstance(layer, DoRALinear) for layer in layers.values()):
        raise InputError(
            "DoRA rescales the base's own output, so rows with and without it cannot share a pass; merge it"
        )
    plain = {layer.name: layer.weight.data.shape for _, layer in model.layers() if isinstance(layer, Linear)}
    for name, layer in layers.items():
        if layer.base_weight().shape != plain.get(name):
            raise InputError(f"the adapter's {name} does not fit this base")
    return {name: layer.factors() for name, layer in layers.items()}


def stack_adapters(model: GPT, adapters: Mapping[str, Tuned | str | Path]) -> MultiLoRA:
    """A model with several adapters, each row of a batch using the one it names; see `MultiLoRA`.

    Parameters
    ----------
    model : GPT
        The base of all of them.
    adapters : mapping
        Name → tuned model or `peft` directory.
    """
    branches: dict[str, Mapping[str, Branch]] = {name: factors_of(source, model) for name, source in adapters.items()}
    return MultiLoRA(model, branches)


MIXTURES = ("cat", "svd", "linear")


def mix_adapters(
    adapters: Sequence[Mapping[str, Factors]], weights: Sequence[float], how: str = "cat", rank: int | None = None
) -> dict[str, Factors]:
    """A weighted sum of adapters as one adapter, as `peft`'s ``add_weighted_adapter`` makes it.

    Parameters
    ----------
    adapters : sequence of mappings
        As `factors_of` gives them.
    weights : sequence of float
        One each.
    how : {"cat", "svd", "linear"}
        Exact, with the sum of the ranks; the best of rank `rank`; or the sum of the factors, with its cross terms.
    rank : int, optional
        For "svd"; by default the largest of the adapters'.

    Raises
    ------
    ValueError
        If there are not as many weights as adapters, no such way of mixing, a rank the matrix does not have, or
        different ranks for "linear".
    """
    if len(weights) != len(adapters) or not adapters:
        raise InputError(f"{len(weights)} weights for {len(adapters)} adapters; each needs one")
    if how not in MIXTURES:
        raise InputError(f"no mixture {how!r}; there are {', '.join(MIXTURES)}")
    mixed = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter):
        present = [(adapter[name], w) for adapter, w in zip(adapters, weights, strict=True) if name in adapter]
        factors, shares = [f for f, _ in present], [w for _, w in present]
        if how == "cat":
            mixed[name] = mix_cat(factors, shares)
            continue
        ranks = [f.A.shape[0] for f in factors]
        if how == "svd":
            wanted, highest = max(ranks) if rank is None else rank, min(factors[0].A.shape[1], factors[0].B.shape[0])
            if not 1 <= wanted <= highest:
                raise InputError(f"rank is {wanted}; for {name} it must be from 1 to {highest}")
            mixed[name] = mix_svd(factors, shares, wanted)
        elif len(set(ranks)) > 1 or min(shares) < 0:
            raise InputError(f'"linear" needs equal ranks and weights of 0 or more; {name} has ranks {ranks}')
        else:
            roots = [math.sqrt(w * f.scaling) for f, w in present]
            mixed[name] = Factors(
                sum(c * f.A for c, f in zip(roots, factors, strict=True)),
                sum(c * f.B for c, f in zip(roots, factors, strict=True)),
                1.0,
            )
    return mixed


# ---------------------------------------------------------------------------------------------- derivations


def probe_lora(backend: Backend) -> gradcheck.Function:
    """What an adapter adds."""
    ops, scaling = backend.ops, 1.7

    def forward(x: Array, A: Array, B: Array) -> Any:
        delta, z = lora_forward(x, A, B, scaling, ops)
        return delta, lambda dy: {
            "x": lambda: lora_backward_input(lora_backward_z(dy, B, scaling, ops), A, ops),
            "A": lambda: lora_backward_A(lora_backward_z(dy, B, scaling, ops), x, ops),
            "B": lambda: lora_backward_B(dy, z, ops),
        }

    return forward


def probe_dora(backend: Backend) -> gradcheck.Function:
    """The lengths of DoRA, the norm held fixed as its backward holds it."""
    norm = backend.asarray(np.array([0.5, 1.5, 2.0]))

    def forward(h: Array, magnitude: Array) -> Any:
        y = dora_forward(h, magnitude, norm)
        return y, lambda dy: {
            "h": lambda: dora_backward(dy, h, magnitude, norm)[0],
            "magnitude": lambda: dora_backward(dy, h, magnitude, norm)[1],
        }

    return forward


def _agree(checks: Mapping[str, Any]) -> list[Check]:
    # Each a function that gives what was computed and what it has to be.
    done = []
    for name, pair in checks.items():
        try:
            found, wanted = pair()
        except NotImplementedError:
            done.append(Check(name, (), None))
            continue
        done.append(gradcheck.compare(name, np.asarray(found), np.asarray(wanted, dtype=np.float64)))
    return done


def _random(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape) for shape in shapes]


def check_merge(backend: Backend) -> list[Check]:
    """A merged weight computes what weight and adapter compute; both scalings; DoRA's norm and start."""
    x, W, A, B = _random((4, 5), (5, 3), (2, 5), (3, 2))
    return _agree(
        {
            "merged": lambda: (x @ (W + merge_delta(A, B, 0.6)), x @ W + 0.6 * (x @ A.T) @ B.T),
            "scaling": lambda: ([lora_scaling(4, 6.0), lora_scaling(4, 6.0, True)], [1.5, 3.0]),
            "DoRA's norm": lambda: (
                dora_norm(W, A, B, 0.6) ** 2,
                [sum((W[i, j] + 0.6 * B[j] @ A[:, i]) ** 2 for i in range(5)) for j in range(3)],
            ),
        }
    )


def check_pissa(backend: Backend) -> list[Check]:
    """What PiSSA leaves in the frozen weight are the smaller singular values."""
    (W,) = _random((6, 4))
    values = np.linalg.svd(W, compute_uv=False)

    def left() -> tuple[Any, Any]:
        A, B = pissa_init(W, 2, 0.8)
        return np.linalg.svd(W - 0.8 * (B @ A).T, compute_uv=False), [*values[2:], 0.0, 0.0]

    def shared() -> tuple[Any, Any]:
        A, B = pissa_init(W, 2, 0.8)
        return [(A * A).sum(1), (B * B).sum(0)], [values[:2] / 0.8, values[:2] / 0.8]

    return _agree({"what is left": left, "A and B share": shared})


def check_similarity(backend: Backend) -> list[Check]:
    """Equal subspaces, subspaces at right angles, and the mean over all axes, which is what chance gives."""
    Q, mix = _random((6, 6), (2, 2))
    Q = np.linalg.qr(Q)[0]
    plane = _random((4, 6))[0]
    return _agree(
        {
            "equal": lambda: (subspace_similarity(Q[:2], mix @ Q[:2], 2, 2), 1.0),
            "at right angles": lambda: (subspace_similarity(Q[:2], Q[2:5], 2, 3), 0.0),
            "inside": lambda: (subspace_similarity(Q[:1], Q[:4], 1, 4), 1.0),
            "by chance": lambda: (np.mean([subspace_similarity(q[None], plane, 1, 4) for q in Q]), 4 / 6),
            "first ones only": lambda: (
                subspace_similarity(np.diag([3.0, 2.0, 1.0]), np.diag([1.0, 2.0, 3.0]), 1, 1),
                0,
            ),
        }
    )


def check_mixtures(backend: Backend) -> list[Check]:
    """A mixture is the weighted sum of the updates; of lower rank, the best there is."""
    A1, B1, A2, B2 = _random((2, 5), (4, 2), (1, 5), (4, 1))
    both, weights = [Factors(A1, B1, 0.5), Factors(A2, B2, 2.0)], [0.3, 0.9]
    wanted = 0.3 * 0.5 * B1 @ A1 + 0.9 * 2.0 * B2 @ A2
    rest = (np.linalg.svd(wanted, compute_uv=False)[1:] ** 2).sum()

    def product(f: Factors) -> Any:
        return f.scaling * f.B @ f.A

    return _agree(
        {
            "cat": lambda: (product(mix_cat(both, weights)), wanted),
            "svd, rank 3": lambda: (product(mix_svd(both, weights, 3)), wanted),
            "svd, rank 1": lambda: (((product(mix_svd(both, weights, 1)) - wanted) ** 2).sum(), rest),
        }
    )


def check_whole(backend: Backend) -> list[Check]:
    """A tiny model with adapters everywhere, every trained number moved."""
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(0, 7, (2, 2, 5))
    targets[0, 1] = -100
    config = GPTConfig(vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=2)
    try:
        tuned = LoRA(r=2, target_modules="all-linear").apply(GPT(config, dtype="float64", backend=backend))
    except NotImplementedError:
        return [Check("whole model", (), None)]
    return gradcheck.check_model(tuned, ids, targets)


CHAIN = """
The adapter stands beside the layer, so its part of dx joins the layer's own. Below the lowest adapter nothing is
trained, and the pass ends there.
"""

DERIVATIONS = [
    Derivation(
        "LoRA: a low-rank update beside a frozen weight",
        """
        y = x W + s·(x Aᵀ) Bᵀ,   W (in, out) frozen, A (r, in), B (out, r)

        With z = s·x Aᵀ the update is a linear layer on top of another, so
          dB = dyᵀ z                     (a row of dy times a row of z, summed over rows)
          dz = s·dy B                    (what reaches x Aᵀ)
          dA = dzᵀ x
          dx = dy Wᵀ + dz A              (the frozen weight still hands the gradient down)
        Nothing is kept for W, and no dW is made: that product is a third of a linear layer's work in training.
        B starts at 0, so y starts as x W, dz as 0 and dA as 0: the first step moves B alone.
        """,
        (lora_forward, lora_backward_z, lora_backward_A, lora_backward_B, lora_backward_input),
        gradients(probe_lora, {"x": (2, 3, 4), "A": (2, 4), "B": (5, 2)}),
    ),
    Derivation(
        "DoRA: a learnt length for every output",
        """
        y_j = (m_j/n_j)·h_j,   h = x W + s·(x Aᵀ) Bᵀ,   n_j the length of column j of W + s·(B A)ᵀ

        With n held constant:  dh_j = (m_j/n_j)·dy_j,   dm_j = Σ_rows dy_j h_j/n_j
        dh goes on to A, B and x as in LoRA.
        """,
        (dora_norm, dora_forward, dora_backward),
        gradients(probe_dora, {"h": (2, 4, 3), "magnitude": (3,)}),
    ),
    Derivation(
        "Merging, and the scale of the update",
        """
        x W + s·(x Aᵀ) Bᵀ = x (W + s·(B A)ᵀ): one weight, and generation as fast as the base's.
        s = α/r in LoRA; α/√r in rsLoRA: an update of r terms that are about independent grows with √r, not with r.
        """,
        (lora_scaling, merge_delta),
        check_merge,
    ),
    Derivation(
        "PiSSA: start from the largest singular terms",
        """
        Wᵀ = V Σ Uᵀ.  B = V_r √(Σ_r/s), A = √(Σ_r/s) U_rᵀ, and the frozen weight keeps W − s·(B A)ᵀ.
        Neither factor starts at 0, so both learn from the first step on.
        """,
        (pissa_init,),
        check_pissa,
    ),
    Derivation(
        "How alike two adapters are",
        """
        ‖U₁ᵢᵀ U₂ⱼ‖²_F / min(i, j) over A's right singular vectors: the share of the smaller subspace that lies in the
        larger. A random direction has the share j/d of its square in a j-dimensional subspace: that is the floor.
        """,
        (subspace_similarity,),
        check_similarity,
    ),
    Derivation(
        "Mixing adapters",
        """
        w₁·s₁·B₁ A₁ + w₂·s₂·B₂ A₂ = [B₁, B₂] [w₁s₁·A₁; w₂s₂·A₂]: exact, and the ranks add up.
        (B₁ + B₂)(A₁ + A₂) has B₁ A₂ + B₂ A₁ too, which nobody trained.
        """,
        (mix_cat, mix_svd),
        check_mixtures,
    ),
    Derivation("A whole model with adapters, each of their numbers moved", CHAIN, (LoRALinear.forward,), check_whole),
]


# ---------------------------------------------------------------------------------------------- the lesson


def lesson(run: Run) -> None:
    """Everything that `make lesson-7` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    settings = run.settings
    plan = settings.choose(lora_study.QUICK, lora_study.CORE, lora_study.FULL)
    base, tokenizer = bases.load(plan.base, backend=run.backend)

    run.heading("What a step costs")
    lora_study.show_costs(run, lora_study.step_costs(bases.load(plan.step_base, backend=run.backend)[0], plan))

    task = load_task(settings.data or plan.tasks[0], tokenizer, plan.records)
    run.heading(f"What it reaches: {lora_study.short(task)}")
    if settings.data:
        run.say(f"  {task.describe()}\n")
    studies = lora_study.plan_studies(base, task, plan)
    results = lora_study.try_all(base, studies, task, plan, settings.seed)
    lora_study.show_results(run, task, results, plan)
    if plan.rate_factors:
        losses = lora_study.try_rates(base, studies["methods"], task, plan, settings.seed)
        lora_study.show_rates(run, losses, plan)
    compared = [(task, results["methods"])]
    if settings.data is None:
        labelled = load_task(plan.tasks[1], tokenizer, plan.records)
        found = lora_study.try_labelled(base, labelled, plan, settings.seed)
        lora_study.show_labelled(run, labelled, found)
        compared.append((labelled, found))
    run.picture("methods", lora_study.methods_picture(compared))

    lora_study.show_learnt(run, base, task, results, plan, factors_in, subspace_similarity)
    show_merged(run, base, results["methods"]["LoRA"].models[0], plan)
    if isinstance(task, PairTask) and settings.data is None:
        show_together(run, base, tokenizer, task, results["methods"]["LoRA"].models[0], plan)
    run.results["plan"] = {"base": plan.base, "steps": plan.budget.steps, "batch_size": plan.budget.batch_size}


def factors_in(tuned: Tuned, name: str) -> Factors:
    """The update of one layer of a tuned model."""
    return adapted_layers(trunk_of(tuned))[name].factors()


def show_merged(run: Run, base: GPT, tuned: Tuned, plan: lora_study.Plan) -> None:
    """Time of a generated token: the base, with the adapter beside it, and merged."""
    run.heading("Merged")
    trunk = trunk_of(tuned)
    merged = LoRA().merge(trunk)
    ids = np.random.default_rng(0).integers(0, base.config.vocab_size, (4, 32))
    host = base.backend.to_numpy
    logits = host(trunk.logits(ids))
    difference = float(np.abs(host(merged.logits(ids)) - logits).max() / np.abs(logits).max())
    models = {"the base": base, "adapter beside it": trunk, "merged": merged}
    times = lora_study.token_milliseconds(models, plan.repeats)
    run.say(table([[name, f"{ms:.2f}"] for name, ms in times.items()], ["", "ms a token"]))
    run.say(f"  the logits of the last two differ by {difference:.0e} of the largest")
    run.results["token_milliseconds"] = times
    run.report("merged_difference", difference, "of the largest logit", digits=8, banded=False)
    run.report("merged_token_time", times["merged"] / times["the base"], "of the base's", banded=False)


def show_together(run: Run, base: GPT, tokenizer: Tokenizer, task: PairTask, first: GPT, plan: lora_study.Plan) -> None:
    """Two tasks' adapters on one base: each row its own, and mixtures of both."""
    second = require_pairs(load_task(plan.second, tokenizer, plan.records))
    method = LoRA(r=plan.rank, target_modules=lora_study.ALL)
    trained = lora_study.fine_tune(method, base, second, plan.budget, run.settings.seed).model
    run.heading(f"Two adapters on one base: {lora_study.short(task)} and {lora_study.short(second)}")
    stack = stack_adapters(base, {lora_study.short(task): first, lora_study.short(second): trained})
    parts = [stack.bank[name] for name in (lora_study.short(task), lora_study.short(second))]
    for how in MIXTURES:
        stack.put(f"half of each, {how}", mix_adapters(parts, (0.5, 0.5), how))  # type: ignore[arg-type]
    rows, losses = [], {}
    for name in stack.names:
        model = stack.using(name)
        losses[name] = [evaluate_batches(model, each.validation(plan.scored))[0] for each in (task, second)]
        rows.append([name, *(f"{loss:.3f}" for loss in losses[name])])
    run.say(table(rows, ["adapter", f"loss on {lora_study.short(task)}", f"on {lora_study.short(second)}"]))
    run.results["together"] = losses
    prompts = [each.data.test[0].prompt for each in (task, second)]
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    width = max(map(len, encoded))
    ids = np.full((2, width), tokenizer.eos_token_id)
    for row, tokens in zip(ids, encoded, strict=True):
        row[width - len(tokens) :] = tokens
    out = stack.generate(
        ids,
        min(24, base.config.n_positions - width),
        [lora_study.short(task), lora_study.short(second)],
        temperature=0.0,
        eos_token_id=tokenizer.eos_token_id,
        lengths=[len(tokens) for tokens in encoded],
    )
    run.say("\n  one batch, a row each:")
    for name, prompt, row in zip(
        (lora_study.short(task), lora_study.short(second)), prompts, out[:, width:].tolist(), strict=True
    ):
        written = tokenizer.decode(row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row)
        run.say(f"  {name:>12} | {prompt.strip()!r} → {written.strip()!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-7``; gives the exit code."""
    return runner.main(7, __doc__, lesson, argv, takes=runner.TASK)


if __name__ == "__main__":
    sys.exit(main())
