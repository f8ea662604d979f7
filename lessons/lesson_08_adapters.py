"""Lesson 8: adapters. Small new layers between frozen ones, and the smallest relatives: BitFit and IA3.

1. A bottleneck adapter: d numbers squeezed through m and back, added to what was there. Its backward, its
   near-identity start, and where it stands: after each sublayer, after the MLP only, or beside the sublayers.
2. BitFit trains the biases and nothing else. IA3 multiplies what flows by learned vectors, which fold into the weights.
3. What each costs: parameters, step time, memory, and time per generated token; an adapter cannot be merged.
4. What each reaches, on made-up sentences and on real documentation: sizes, placements, initial scales, and
   which layers' adapters matter.

Houlsby et al. (2019), arXiv:1902.00751; He et al. (2022), arXiv:2110.04366; Ben Zaken, Ravfogel, Goldberg (2022),
"BitFit", arXiv:2106.10199; Liu et al. (2022), "IA3", arXiv:2205.05638.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kernels import Backend
from kernels.array import Array
from lessons.common import adapter_study as study
from lessons.common import derivation, gradcheck, runner
from lessons.common.classifier import Classifier
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.method import (
    Method,
    Tuned,
    assign,
    blocks_setting,
    language_model,
    listed,
    n_trainable,
    register,
    trunk_of,
)
from lessons.common.peft_files import load_adapter, refuse_settings, save_adapter
from lessons.common.runner import Run
from lessons.common.tasks import load_task
from minigpt import GPT, GPTConfig, bases
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.layers import Backward, Layer, Linear
from minigpt.optim import ParameterGroup
from minigpt.parameters import Gradients, Parameter

# ---------------------------------------------------------------------------------------------- bottleneck adapters


def adapter_forward(
    x: Array, down: Array, down_bias: Array, up: Array, up_bias: Array, ops: Any, keep: bool = True
) -> tuple[Array, Array, Any]:
    """What an adapter adds: f(x) = gelu(x·down + down_bias)·up + up_bias. Houlsby et al. (2019), figure 2.

    Parameters
    ----------
    x : (..., d)
    down : (d, m)
    down_bias : (m,)
    up : (m, d)
    up_bias : (d,)
    ops : namespace
        The backend's operations: `linear_forward(x, weight, bias)`, `bias_gelu_forward(u, bias, keep)`.
    keep : bool
        False where no backward will follow.

    Returns
    -------
    y : (..., d)
    g : (..., m)
        The activations.
    slope
        What `ops.bias_gelu_backward` needs; None without `keep`.
    """
    ### BEGIN SOLUTION
    u = ops.linear_forward(x, down, None)  # (..., m); its bias joins the activation in one operation
    g, slope = ops.bias_gelu_forward(u, down_bias, keep)
    return ops.linear_forward(g, up, up_bias), g, slope
    ### END SOLUTION


def adapter_backward_bottleneck(dy: Array, up: Array, slope: Any, ops: Any) -> Array:
    """Gradient inside the bottleneck, before the activation: du = (dy·upᵀ) ∘ gelu'(u).

    Parameters
    ----------
    dy : (..., d)
        Is not changed.
    up : (m, d)
    slope
        As `adapter_forward` gave it.
    ops : namespace
        `linear_backward_input(dy, weight)`, `bias_gelu_backward(dg, slope)`.

    Returns
    -------
    du : (..., m)
    """
    ### BEGIN SOLUTION
    return ops.bias_gelu_backward(ops.linear_backward_input(dy, up), slope)
    ### END SOLUTION


def adapter_backward_params(dy: Array, du: Array, x: Array, g: Array, ops: Any) -> tuple[Array, Array, Array, Array]:
    """Gradients of the adapter's parameters, summed over all rows.

    Parameters
    ----------
    dy : (..., d)
    du : (..., m)
        As `adapter_backward_bottleneck` gave it.
    x : (..., d)
        The forward's input.
    g : (..., m)
        The forward's activations.
    ops : namespace
        `linear_backward_weight(dy, x)`, `linear_backward_bias(dy)`.

    Returns
    -------
    ddown, ddown_bias, dup, dup_bias : (d, m), (m,), (m, d), (d,)
    """
    ### BEGIN SOLUTION
    return (
        ops.linear_backward_weight(du, x),
        ops.linear_backward_bias(du),
        ops.linear_backward_weight(dy, g),
        ops.linear_backward_bias(dy),
    )
    ### END SOLUTION


def adapter_backward_input(du: Array, down: Array, ops: Any) -> Array:
    """Gradient of the adapter's input along its branch: dx = du·downᵀ. What passes beside it is not in it.

    Parameters
    ----------
    du : (..., m)
    down : (d, m)
    ops : namespace
        `linear_backward_input(dy, weight)`.

    Returns
    -------
    dx : (..., d)
    """
    return ops.linear_backward_input(du, down)


def near_identity(d: int, m: int, std: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Initial parameters with which an adapter adds almost nothing: the model starts as the base.

    Matrices from a normal distribution cut off at two standard deviations (a value beyond is drawn again), biases 0.
    Houlsby et al. (2019), section 3.6: good up to a standard deviation of 0.01; their code has 0.001.

    Parameters
    ----------
    d, m : int
    std : float
        Of the distribution before it is cut.
    rng : numpy Generator

    Returns
    -------
    down, down_bias, up, up_bias : (d, m), (m,), (m, d), (d,) float64
    """

    ### BEGIN SOLUTION
    def truncated_normal(shape: tuple[int, int]) -> np.ndarray:
        values = rng.standard_normal(shape)
        while (outside := np.abs(values) > 2).any():
            values[outside] = rng.standard_normal(int(outside.sum()))
        return std * values

    return truncated_normal((d, m)), np.zeros(m), truncated_normal((m, d)), np.zeros(d)
    ### END SOLUTION


def adapter_count(d: int, m: int) -> int:
    """Parameters of one adapter.

    Parameters
    ----------
    d : int
        Width of the model.
    m : int
        Width of the bottleneck.
    """
    ### BEGIN SOLUTION
    return 2 * d * m + m + d
    ### END SOLUTION


class Adapter(Layer):
    """The branch f of an adapter, without what passes beside it.

    Parameters
    ----------
    name : str
        Prefix of the parameters' names.
    arrays : (down (d, m), down_bias (m,), up (m, d), up_bias (d,))
    """

    def __init__(self, name: str, arrays: Sequence[Array]) -> None:
        self.name = name
        names = ("down.weight", "down.bias", "up.weight", "up.bias")
        self.own = [Parameter(f"{name}.{part}", array) for part, array in zip(names, arrays, strict=True)]

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., d) -> (..., d), a fresh array."""
        ops = ctx.backend.ops
        needs_dx = ctx.needs_input_gradient(*self.own)
        own = ctx.grad and any(p.trainable for p in self.own)
        down, down_bias, up, up_bias = (p.data for p in self.own)
        y, g, slope = adapter_forward(x, down, down_bias, up, up_bias, ops, own or needs_dx)
        kept = (x, g) if own else None
        ctx.see(self.name, y)

        def backward(dy: Array, grads: Gradients) -> Array | None:
            if not (own or needs_dx):
                return None
            du = adapter_backward_bottleneck(dy, up, slope, ops)
            if kept is not None:
                for p, gradient in zip(self.own, adapter_backward_params(dy, du, *kept, ops), strict=True):
                    if p.trainable:
                        grads.add(p, gradient)
            return adapter_backward_input(du, down, ops) if needs_dx else None

        return y, backward


class Serial(Layer):
    """A sublayer, and an adapter on its output: y = a + f(a), a = inner(x).

    Parameters
    ----------
    inner : Layer
    adapter : Adapter
    """

    def __init__(self, inner: Layer, adapter: Adapter) -> None:
        self.inner = inner
        self.adapter = adapter

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(B, T, d) -> (B, T, d)."""
        a, inner_back = self.inner.forward(x, ctx)
        y, adapter_back = self.adapter.forward(a, ctx)
        y += a

        def backward(dy: Array, grads: Gradients) -> Array | None:
            da = adapter_back(dy, grads)
            if da is None:
                return None
            da += dy
            return inner_back(da, grads)

        return y, backward


class Parallel(Layer):
    """A sublayer, and an adapter beside it: y = inner(x) + f(x). He et al. (2022), arXiv:2110.04366, section 3.3.

    Parameters
    ----------
    inner : Layer
    adapter : Adapter
    """

    def __init__(self, inner: Layer, adapter: Adapter) -> None:
        self.inner = inner
        self.adapter = adapter

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(B, T, d) -> (B, T, d)."""
        a, inner_back = self.inner.forward(x, ctx)
        y, adapter_back = self.adapter.forward(x, ctx)
        y += a

        def backward(dy: Array, grads: Gradients) -> Array | None:
            dx = adapter_back(dy, grads)
            dx_inner = inner_back(dy, grads)
            if dx is None or dx_inner is None:
                return None
            dx += dx_inner
            return dx

        return y, backward


PLACEMENTS: dict[str, tuple[type[Serial] | type[Parallel], tuple[str, ...]]] = {
    "houlsby": (Serial, ("attn", "mlp")),
    "pfeiffer": (Serial, ("mlp",)),
    "parallel": (Parallel, ("attn", "mlp")),
    "parallel_mlp": (Parallel, ("mlp",)),
}
"""How an adapter is joined to which sublayers. Pfeiffer et al. (2021), arXiv:2005.00247, found the MLP's enough."""


def _joined(join: type[Serial] | type[Parallel], adapter: Adapter, inner: Layer, name: str) -> Layer:
    return join(inner, adapter)


@register("adapters")
@dataclass(frozen=True, kw_only=True)
class Adapters(Method):
    """Bottleneck adapters.

    Parameters
    ----------
    bottleneck : int
        m, the width inside.
    placement : {"houlsby", "pfeiffer", "parallel", "parallel_mlp"}
        Serially after attention and MLP (before the residual addition), after the MLP, beside both, beside the MLP.
    init_std : float
        Of the initial matrices; see `near_identity`.
    train_layernorm : bool
        Also the LayerNorms of the blocks that have adapters, and the final one, as Houlsby et al. do.
    layers_to_transform : int or sequence of int, optional
        Blocks that get adapters; all by default.
    """

    bottleneck: int = 16
    placement: str = "houlsby"
    init_std: float = 1e-3
    train_layernorm: bool = True
    layers_to_transform: int | tuple[int, ...] | None = None

    learning_rate: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.bottleneck, "__index__") or self.bottleneck < 1:
            raise InputError(f"bottleneck is {self.bottleneck}; it must be a whole number of 1 or more")
        if self.placement not in PLACEMENTS:
            raise InputError(f"no placement {self.placement!r}; there are {', '.join(PLACEMENTS)}")
        if not 0 <= self.init_std < math.inf:
            raise InputError(f"init_std is {self.init_std}; it must be a number of 0 or more")
        object.__setattr__(self, "layers_to_transform", blocks_setting(self.layers_to_transform))

    def blocks(self, n_layer: int) -> tuple[int, ...]:
        """The blocks that get adapters.

        Raises
        ------
        ValueError
            If there is no such block.
        """
        chosen: Any = tuple(range(n_layer)) if self.layers_to_transform is None else self.layers_to_transform
        odd = [i for i in chosen if not 0 <= i < n_layer]
        if odd or not chosen:
            what = f"block {odd[0]}" if odd else "no block"
            raise InputError(f"layers_to_transform names {what}; this model has 0 to {n_layer - 1}")
        return tuple(sorted(set(chosen)))

    def install(self, trunk: GPT, seed: int, data: Any) -> None:
        """See `Method.install`."""
        join, sublayers = PLACEMENTS[self.placement]
        for i in self.blocks(trunk.config.n_layer):
            for place, sublayer in enumerate(sublayers):
                rng = np.random.default_rng([seed, i, place])
                arrays = near_identity(trunk.config.n_embd, self.bottleneck, self.init_std, rng)
                on_device = [trunk.backend.asarray(array.astype(trunk.dtype)) for array in arrays]
                adapter = Adapter(f"transformer.h.{i}.{sublayer}.adapter", on_device)
                trunk.replace(f"h.{i}.{sublayer}", partial(_joined, join, adapter))
            if self.train_layernorm:
                trunk.unfreeze([f"transformer.h.{i}.ln_*"])
        if self.train_layernorm:
            trunk.unfreeze(["transformer.ln_f.*"])

    def count(self, config: GPTConfig) -> int:
        """Trainable parameters of a model of this shape, without a classifier head."""
        blocks, (_, sublayers) = len(self.blocks(config.n_layer)), PLACEMENTS[self.placement]
        norms = (2 * blocks + 1) * 2 * config.n_embd if self.train_layernorm else 0
        return blocks * len(sublayers) * adapter_count(config.n_embd, self.bottleneck) + norms

    def require_own(self, trunk: GPT) -> None:
        """See `Method.require_own`."""
        if not any(isinstance(layer, Adapter) for _, layer in trunk.layers()):
            raise InputError("adapters did not make this model: it has none")

    def merge(self, tuned: Tuned) -> GPT:
        """Not possible.

        Raises
        ------
        ValueError
        """
        raise InputError(
            "adapters cannot be merged: a GELU stands between their two matrices, so no weight matrix computes the "
            "same; they stay, and cost their time at every token"
        )


# ---------------------------------------------------------------------------------------------- BitFit


def bias_names(names: Iterable[str]) -> list[str]:
    """Which parameters BitFit trains: all biases, the LayerNorms' included, in their order.

    Parameters
    ----------
    names : iterable of str
        Of a model's parameters, such as ``"transformer.h.0.attn.c_attn.bias"``.
    """
    ### BEGIN SOLUTION
    return [name for name in names if name.rsplit(".", 1)[-1] == "bias"]
    ### END SOLUTION


def bias_count(d: int, inner: int, n_layer: int) -> int:
    """Number of a GPT-2's biases: per block two LayerNorms, queries, keys and values, two projections of width d, and
    the MLP's inside; and the final LayerNorm.

    Parameters
    ----------
    d : int
        Width of the model.
    inner : int
        Width inside the MLP.
    n_layer : int
    """
    ### BEGIN SOLUTION
    return n_layer * (2 * d + 3 * d + d + inner + d) + d
    ### END SOLUTION


@register("bitfit")
@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Train the biases, nothing else. Ben Zaken, Ravfogel, Goldberg (2022), arXiv:2106.10199."""

    learning_rate: ClassVar[float] = 1e-2

    def install(self, trunk: GPT, seed: int, data: Any) -> None:
        """See `Method.install`."""
        trunk.unfreeze(bias_names(p.name for p in trunk.parameters()))

    def count(self, config: GPTConfig) -> int:
        """Trainable parameters of a model of this shape, without a classifier head."""
        return bias_count(config.n_embd, config.inner_size, config.n_layer)


# ---------------------------------------------------------------------------------------------- IA3


def scale_backward_input(dy: Array, scale: Array) -> Array:
    """Gradient of x in y = x ∘ scale.

    Parameters
    ----------
    dy : (..., n)
    scale : (n,)

    Returns
    -------
    dx : (..., n), a fresh array
    """
    ### BEGIN SOLUTION
    return dy * scale
    ### END SOLUTION


def scale_backward_vector(dy: Array, x: Array) -> Array:
    """Gradient of scale in y = x ∘ scale: every row is scaled by the same vector, so the rows add up.

    Parameters
    ----------
    dy, x : (..., n)

    Returns
    -------
    dscale : (n,)
    """
    ### BEGIN SOLUTION
    return (dy * x).reshape(-1, x.shape[-1]).sum(0)
    ### END SOLUTION


def scale_merge(weight: Array, bias: Array, scale: Array, feedforward: bool) -> tuple[Array, Array]:
    """Weight and bias of the linear layer that does the scaling too.

    (x·W + b) ∘ l for a layer whose output is scaled; (x ∘ l)·W + b for one whose input is (`feedforward`).

    Parameters
    ----------
    weight : (in, out)
    bias : (out,)
    scale : (out,), or (in,) if `feedforward`
    feedforward : bool

    Returns
    -------
    weight, bias : fresh (in, out), (out,)
    """
    ### BEGIN SOLUTION
    if feedforward:
        return weight * scale[:, None], bias.copy()
    return weight * scale, bias * scale
    ### END SOLUTION


class ScaledLinear(Layer):
    """A linear layer whose output, or whose input, is scaled by a learned vector.

    Parameters
    ----------
    inner : Linear
    feedforward : bool
        `peft`'s word for scaling the input.
    """

    def __init__(self, inner: Linear, feedforward: bool, backend: Backend) -> None:
        self.inner = inner
        self.feedforward = feedforward
        rows, columns = inner.weight.data.shape
        ones = np.ones((1, rows) if feedforward else (columns, 1), inner.weight.data.dtype)
        self.ia3_l = Parameter(f"{inner.name}.ia3_l", backend.asarray(ones))

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., in) -> (..., out)."""
        ops, scale = ctx.backend.ops, self.ia3_l.data.reshape(-1)
        own = ctx.grad and self.ia3_l.trainable
        weight, bias = self.inner.weight.data, self.inner.bias.data
        again = not self.feedforward and weight.shape[0] < weight.shape[1]  # see `backward_scale`
        if self.feedforward:
            needs_dx = ctx.needs_input_gradient(self.ia3_l)
            scaled, kept = x * scale, x if own else None
            y, inner_back = self.inner.forward(scaled, ctx)
        else:
            unscaled, inner_back = self.inner.forward(x, ctx)
            needs_dx = ctx.needs_input_gradient(self.ia3_l)
            y, kept = unscaled * scale, (x if again else unscaled) if own else None

        def backward_scale(d: Array, grads: Gradients) -> Array | None:
            if kept is not None:
                # What was scaled; a wide output is computed again from its narrow input: with three times the memory
                # kept, IA3 would need as much as full fine-tuning.
                what = ops.linear_forward(kept, weight, bias) if again else kept
                grads.add(self.ia3_l, scale_backward_vector(d, what).reshape(self.ia3_l.data.shape))
            return scale_backward_input(d, scale) if needs_dx else None

        def backward(dy: Array, grads: Gradients) -> Array | None:
            if self.feedforward:
                dscaled = inner_back(dy, grads)
                return None if dscaled is None else backward_scale(dscaled, grads)
            dunscaled = backward_scale(dy, grads)
            return None if dunscaled is None else inner_back(dunscaled, grads)

        return y, backward

    def merged(self) -> Linear:
        """A linear layer that computes the same."""
        inner = self.inner
        arrays = scale_merge(inner.weight.data, inner.bias.data, self.ia3_l.data.reshape(-1), self.feedforward)
        return Linear(inner.name, *arrays)


@register("ia3")
@dataclass(frozen=True, kw_only=True)
class IA3(Method):
    """Learned vectors that scale keys, values (here the fused queries too) and the inside of the MLP; `peft`'s IA3.

    Parameters
    ----------
    target_modules : sequence of str
        Linear layers by the ends of their names, ``"c_attn"`` or ``"mlp.c_proj"``.
    feedforward_modules : sequence of str
        Those of them whose input is scaled instead of their output; others that it names are left alone.
    """

    target_modules: tuple[str, ...] = ("c_attn", "mlp.c_proj")
    feedforward_modules: tuple[str, ...] = ("mlp.c_proj",)

    learning_rate: ClassVar[float] = 5e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "feedforward_modules"):
            value = listed(name, getattr(self, name), str, "a list of names, such as ['c_attn']")
            object.__setattr__(self, name, value)
        if not self.target_modules:
            raise InputError("target_modules is empty; it must name at least one layer, such as 'c_attn'")

    def install(self, trunk: GPT, seed: int, data: Any) -> None:
        """See `Method.install`."""
        linear = [f"transformer.{name}" for name, layer in trunk.layers() if type(layer) is Linear]
        for target in self.target_modules:
            if not any(_is_one_of(name, [target]) for name in linear):
                there = sorted({name.split(".", 3)[3] for name in linear})
                raise InputError(f"no linear layer is called {target!r}; there are {', '.join(there)}")
        for name in linear:
            if _is_one_of(name, self.target_modules):
                feedforward = _is_one_of(name, self.feedforward_modules)
                trunk.replace(name.removeprefix("transformer."), partial(_scaled, feedforward, trunk.backend))

    def count(self, config: GPTConfig) -> int:
        """Trainable parameters of a model of this shape, without a classifier head."""
        d, inner = config.n_embd, config.inner_size
        sizes = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}
        names = {f"transformer.h.{i}.{name}": size for i in range(config.n_layer) for name, size in sizes.items()}
        return sum(
            size[0 if _is_one_of(name, self.feedforward_modules) else 1]
            for name, size in names.items()
            if _is_one_of(name, self.target_modules)
        )

    def groups(self, tuned: Tuned) -> Sequence[ParameterGroup]:
        """No weight decay: it would pull the scales towards 0, and their neutral value is 1."""
        return (ParameterGroup("*.ia3_l", weight_decay=0.0),)

    def merge(self, tuned: Tuned) -> GPT:
        """See `Method.merge`."""
        plain = language_model(tuned, self.name).copy()
        self.require_own(plain)
        for name in [name for name, layer in plain.layers() if isinstance(layer, ScaledLinear)]:
            plain.replace(name, _merged)
        return super().merge(plain)

    def require_own(self, trunk: GPT) -> None:
        """See `Method.require_own`."""
        if not any(isinstance(layer, ScaledLinear) for _, layer in trunk.layers()):
            raise InputError("ia3: this model has no scales; has it been merged already?")

    def save(self, tuned: Tuned, directory: str | Path) -> None:
        """Write a `peft` directory; a classifier's head goes with it (``modules_to_save``)."""
        self.require_own(trunk_of(tuned))
        tensors = self.state(tuned)
        config = {
            "peft_type": "IA3",
            "target_modules": list(self.target_modules),
            "feedforward_modules": list(self.feedforward_modules),
            "fan_in_fan_out": True,
        }
        if isinstance(tuned, Classifier):
            tensors |= {name: tensors[name].T for name in HEAD}  # torch stores (out, in)
            config |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
        save_adapter(directory, config, tensors)

    @classmethod
    def load(cls, model: GPT, directory: str | Path) -> Any:
        """The tuned model of a `peft` directory, ours or theirs, on its base; see `Method.load`."""
        config, tensors = load_adapter(directory, "IA3", model.dtype)
        head = {name: tensors[name].T for name in HEAD if name in tensors}
        refuse_settings(
            config, {"exclude_modules": (None, []), "modules_to_save": (["score"],) if head else (None, [])}, directory
        )
        lists: dict[str, Any] = {name: config.get(name) for name in ("target_modules", "feedforward_modules")}
        if lists["feedforward_modules"] is None:
            del lists["feedforward_modules"]
        for name, value in lists.items():
            if not isinstance(value, list):
                raise InputError(f"{directory}: {name} is {value!r}; it must be a list of names")
        n_labels = len(head["score.bias"]) if "score.bias" in head else None
        tuned = cls(**lists, n_labels=n_labels).apply(model)
        assign((p for p in tuned.parameters() if p.trainable), tensors | head, tuned, directory)
        return tuned


HEAD = ("score.weight", "score.bias")


def _scaled(feedforward: bool, backend: Backend, inner: Any, name: str) -> Layer:
    return ScaledLinear(inner, feedforward, backend)


def _merged(layer: Any, name: str) -> Layer:
    return layer.merged()


def _is_one_of(name: str, endings: Iterable[str]) -> bool:
    """Whether a layer's name is, or ends in, one of these; whole words of it."""
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


# ---------------------------------------------------------------------------------------------- the mathematics


def probe_adapter(backend: Backend) -> gradcheck.Function:
    """The branch of an adapter."""
    ops = backend.ops

    def forward(x: Array, down: Array, down_bias: Array, up: Array, up_bias: Array) -> Any:
        y, g, slope = adapter_forward(x, down, down_bias, up, up_bias, ops)

        def backward(dy: Array) -> Any:
            du = adapter_backward_bottleneck(dy, up, slope, ops)

            def params(i: int) -> Callable[[], Array]:
                return lambda: adapter_backward_params(dy, du, x, g, ops)[i]

            names = ("down", "down_bias", "up", "up_bias")
            return {"x": lambda: adapter_backward_input(du, down, ops), **{n: params(i) for i, n in enumerate(names)}}

        return y, backward

    return forward


def probe_scale(backend: Backend) -> gradcheck.Function:
    """A learned vector on the input of a product."""
    ops = backend.ops

    def forward(x: Array, scale: Array, weight: Array) -> Any:
        def backward(dy: Array) -> Any:
            dscaled = ops.linear_backward_input(dy, weight)
            return {
                "x": lambda: scale_backward_input(dscaled, scale),
                "scale": lambda: scale_backward_vector(dscaled, x),
                "weight": lambda: ops.linear_backward_weight(dy, x * scale),
            }

        return ops.linear_forward(x * scale, weight, None), backward

    return forward


def check_merge(backend: Backend) -> list[Check]:
    """Scaled and merged compute the same, for scaled outputs and for scaled inputs."""
    rng = np.random.default_rng(4)
    x, weight, bias, of_in, of_out = (
        backend.asarray(rng.standard_normal(shape)) for shape in ((2, 3), (3, 4), (4,), (3,), (4,))
    )
    pairs = {
        "output scaled": ((x @ weight + bias) * of_out, (weight, bias, of_out, False)),
        "input scaled": ((x * of_in) @ weight + bias, (weight, bias, of_in, True)),
    }
    checks = []
    for name, (wanted, arguments) in pairs.items():
        try:
            merged_weight, merged_bias = scale_merge(*arguments)
        except NotImplementedError:
            checks.append(Check(name, wanted.shape, None))
            continue
        merged = backend.to_numpy(x @ merged_weight + merged_bias)
        checks.append(gradcheck.compare(name, merged, backend.to_numpy(wanted)))
    return checks


def check_start(backend: Backend) -> list[Check]:
    """Small, but not 0, and nothing beyond two standard deviations; an adapter with it adds almost nothing."""
    std, rng = 1e-3, np.random.default_rng(5)
    try:
        down, down_bias, up, up_bias = near_identity(40, 30, std, rng)
        x, D, b, U, c = (backend.asarray(a) for a in (rng.standard_normal((2, 40)), down, down_bias, up, up_bias))
        added, _, _ = adapter_forward(x, D, b, U, c, backend.ops)
    except NotImplementedError:
        return [Check("start", (), None)]
    matrices = np.concatenate((down.reshape(-1), up.reshape(-1))) / std
    spread_of_cut = 0.8796  # standard deviation of a standard normal that is cut off at 2
    faults = {
        "largest": "" if np.abs(matrices).max() <= 2 else "values beyond two standard deviations",
        "spread": "" if abs(matrices.std() - spread_of_cut) < 0.05 else f"spread {matrices.std():.2f} σ, not 0.88 σ",
        "biases": "" if not (down_bias.any() or up_bias.any()) else "biases are not 0",
        "added": "" if float(np.abs(backend.to_numpy(added)).max()) < 100 * std**2 else "the adapter adds too much",
    }
    return [Check(name, (), None if fault else 0.0, fault) for name, fault in faults.items()]


def check_counts(backend: Backend) -> list[Check]:
    """What is counted by formula is what a model has."""
    config = GPTConfig(vocab_size=7, n_positions=5, n_embd=6, n_layer=3, n_head=2, n_inner=10)
    checks = []
    for method in (Adapters(bottleneck=5), Adapters(bottleneck=2, placement="pfeiffer"), BitFit(), IA3()):
        try:
            counted, there = method.count(config), n_trainable(method.apply(GPT(config, backend=backend)))
        except NotImplementedError:
            checks.append(Check(method.name, (), None))
        else:
            fault = "" if counted == there else f"counted {counted:,}, there are {there:,}"
            checks.append(Check(method.name, (), None if fault else 0.0, fault))
    return checks


def check_whole(method: Method, n_layer: int = 1) -> Callable[[Backend], list[Check]]:
    """A tiny model with the technique in place, every trainable parameter moved."""

    def check(backend: Backend) -> list[Check]:
        rng = np.random.default_rng(2)
        ids, targets = rng.integers(0, 7, (2, 2, 5))
        targets[0, 1] = -100
        config = GPTConfig(vocab_size=7, n_positions=5, n_embd=4, n_layer=n_layer, n_head=2)
        try:
            tuned = method.apply(GPT(config, dtype="float64", backend=backend))
        except NotImplementedError:
            return [Check(method.name, (), None)]
        return gradcheck.check_model(tuned, ids, targets)

    return check


ADAPTER_SHAPES = {"x": (2, 3, 5), "down": (5, 2), "down_bias": (2,), "up": (2, 5), "up_bias": (5,)}

DERIVATIONS = (
    Derivation(
        "Bottleneck adapter",
        """
        u = x D + b,   g = gelu(u),   f(x) = g U + c      D (d, m), U (m, d), m much smaller than d
        serial:   y = a + f(a),  a = what the sublayer gives        parallel:  y = sublayer(x) + f(x)

        Two linear layers and an activation, each with the gradient it has anywhere else:
          dU = gᵀ dy,   dc = Σ_rows dy,   du = (dy Uᵀ) ∘ gelu'(u)
          dD = xᵀ du,   db = Σ_rows du,   dx = du Dᵀ
        In a serial adapter the skip hands dy on as well: da = dy + dx.

        With D and U close to 0, f is close to 0 and the model starts as the base. Not exactly 0: the gradient of D
        has come through U, that of U is made of g = gelu(x D), so with both 0 neither would ever move.
        """,
        (adapter_backward_bottleneck, adapter_backward_params, adapter_backward_input, near_identity),
        lambda backend: gradients(probe_adapter, ADAPTER_SHAPES)(backend) + check_start(backend),
    ),
    Derivation(
        "IA3: a vector that scales",
        """
        output scaled:  y = (x W + b) ∘ l          input scaled ("feedforward"):  y = (x ∘ l) W + b

        Of p = q ∘ l, whatever q is:   dq = dp ∘ l,   dl = Σ_rows dp ∘ q
        A scale folds into the weights: (x W + b) ∘ l = x (W ∘ l) + b ∘ l multiplies W's columns, and
        (x ∘ l) W multiplies its rows. Afterwards the model is an ordinary one.
        """,
        (scale_backward_input, scale_backward_vector, scale_merge),
        lambda backend: (
            gradients(probe_scale, {"x": (2, 3, 4), "scale": (4,), "weight": (4, 5)})(backend) + check_merge(backend)
        ),
    ),
    Derivation(
        "How many parameters",
        """
        adapter: d·m + m down, m·d + d up            L blocks with two each:  2 L (2 d m + m + d),  and the LayerNorms
        BitFit:  2d + 3d + d + 4d + d a block, d for the last LayerNorm      11 d L + d
        IA3:     3d for what c_attn gives, 4d for what mlp.c_proj takes      7 d L
        """,
        (adapter_count, bias_names, bias_count),
        check_counts,
    ),
    Derivation(
        "A whole model with adapters after both sublayers",
        "The skip hands the gradient on beside the adapter: da = dy + what came back through it.",
        (Serial.forward,),
        check_whole(Adapters(bottleneck=2), n_layer=2),
    ),
    Derivation(
        "A whole model with adapters beside them",
        "Both branches have the same input, so their gradients add up.",
        (Parallel.forward,),
        check_whole(Adapters(bottleneck=2, placement="parallel", train_layernorm=False)),
    ),
    Derivation(
        "A whole model with BitFit",
        """
        db = Σ_rows dy reads no input of the layer, so no linear layer has to keep one. A third of c_attn's bias cannot
        learn: adding a constant vector to all keys adds the same number to all of a query's scores, which the softmax
        takes out again. Its gradient is 0.
        """,
        (BitFit.install,),
        check_whole(BitFit()),
    ),
    Derivation(
        "A whole model with IA3",
        "The vector on an input lies below its layer, that on an output above.",
        (ScaledLinear.forward,),
        check_whole(IA3()),
    ),
)


# ---------------------------------------------------------------------------------------------- the experiment


def lesson(run: Run) -> None:
    """Everything that `make lesson-8` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    run.say("\n  every gradient agrees with central differences")

    settings = run.settings
    plan = settings.choose(study.QUICK, study.CORE, study.FULL)
    backend = run.backend.spec
    base, tokenizer = bases.load(plan.base, backend=backend)
    names = plan.tasks if settings.data is None else (settings.data,)
    tasks = [load_task(name, tokenizer, plan.records) for name in names]
    if settings.data:
        run.say(f"\n  {tasks[0].describe()}")
    study.show_costs(run, base, tasks[0], plan)

    run.heading("Training")
    todo = study.everything(plan, dict(zip(names, tasks, strict=True)), base.config.n_layer)
    seeds = range(settings.seed, settings.seed + plan.seeds)
    b = plan.budget
    run.say(f"  {plan.base}, {len(todo) * len(seeds)} runs of {b.steps} steps, {b.batch_size} texts each")
    results = study.try_all(plan, todo, seeds, backend)
    study.show_quality(run, results, base, plan)
    study.show_choices(run, names[0], results[names[0]], base, plan)
    report(run, results, plan)
    run.results |= {
        "outcomes": {
            name: {kind: {label: o.as_record() for label, o in found.items()} for kind, found in outcomes.items()}
            for name, outcomes in results.items()
        },
        "base": plan.base,
        "data": [task.data.record() for task in tasks],
    }


def report(run: Run, results: Mapping[str, study.Outcomes], plan: study.Plan) -> None:
    """The figures."""
    largest = plan.sizes[-1]
    for name, outcomes in results.items():
        short, metric = "own" if run.settings.data else name.replace("-", "_"), study.metric_of(outcomes)
        found = outcomes["methods"] | {"adapters": outcomes["sizes"][f"{plan.placements[0]} m={largest}"]}
        for label, outcome in found.items():
            run.report(
                f"{short}_{metric}_{label.split(' ')[0]}", outcome[metric], "share" if metric == "accuracy" else "nats"
            )
    init = next(iter(results.values()))["init"]
    near, far = (init[f"{std:g}"].loss for std in (1e-3, plan.init_stds[-1]))
    dearer = [f - n for n, f in zip(near, far, strict=True) if math.isfinite(f - n)]
    if dearer:
        run.report("loss_of_a_large_start", dearer, "nats more")


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-8``; gives the exit code."""
    return runner.main(8, __doc__, lesson, argv, takes=runner.TASK)


if __name__ == "__main__":
    sys.exit(main())
