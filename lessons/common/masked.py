"""Models of which single entries are trained: a few values of a tensor move, the rest of it stays as it is.

A tensor with selected entries is two parameters: the base's own, frozen and shared with the base, and a vector of the
selected values. A pass works on a copy of the tensor with the values put in. The backward makes the gradient of the
selected entries and of no others, so gradients, optimizer state and flat buffer are as long as the selection, and what
is not selected cannot move: neither by weight decay nor by momentum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.array import Array, namespace
from lessons.common.classifier import Classifier
from lessons.common.method import Method, Tuned, assign, language_model, own, require_plain
from minigpt import GPT
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.layers import Backward, Dropout, Layer
from minigpt.optim import ParameterGroup
from minigpt.parameters import Gradients, Parameter

Masks = Mapping[str, np.ndarray]
"""Parameter name → booleans of the parameter's shape; what is not named has no selected entries."""

SUFFIX = ".selected"
"""Ending of the names of the vectors of selected values."""

DENSE_ABOVE = 0.0075
"""Share of a matrix' entries from which the whole product is faster than a dot product for each entry: it multiplies
over a hundred times more, but forty times as fast. Measured for widths of 80 to 2048: equal between 0.005 and 0.01."""

BLOCK = 1 << 15
"""Numbers gathered at a time from each factor of the dot products, so that they stay in the cache."""


# ---------------------------------------------------------------------------------------------- gradients


def selected_weight_gradient(dy: Array, x: Array, rows: Array, columns: Array) -> Array:
    """Gradient of selected entries of the weight of y = x W, and of no others.

    dW_ij = Σ_n x_ni dy_nj is the dot product of column i of x with column j of dy.

    Parameters
    ----------
    dy : (..., out)
    x : (..., in)
    rows, columns : (k,) integers
        Where the entries stand in W (in, out).

    Returns
    -------
    gradient : (k,)
    """
    ### BEGIN SOLUTION
    xp = namespace(x)
    inputs, outputs = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])  # (N, in), (N, out)
    gradient = xp.zeros(rows.shape[0], dtype=x.dtype)
    step = max(1, BLOCK // rows.shape[0])
    for start in range(0, inputs.shape[0], step):
        part = slice(start, start + step)
        gradient += xp.einsum("nk,nk->k", inputs[part].take(rows, axis=1), outputs[part].take(columns, axis=1))
    return gradient
    ### END SOLUTION


def selected_embedding_gradient(dy: Array, ids: Array, rows: Array, columns: Array) -> Array:
    """Gradient of selected entries of a table of which y = W[ids] reads rows, and of no others.

    Entry (i, j) gets dy_nj from every place n that has read row i.

    Parameters
    ----------
    dy : (..., C)
    ids : (...) integers in [0, V)
    rows, columns : (k,) integers
        Where the entries stand in W (V, C), by ascending row.

    Returns
    -------
    gradient : (k,)
    """
    ### BEGIN SOLUTION
    xp = namespace(dy)
    flat, places = ids.reshape(-1), dy.reshape(-1, dy.shape[-1])
    first = xp.searchsorted(rows, flat, side="left")  # of the entries in the row that a place has read
    counts = xp.searchsorted(rows, flat, side="right") - first
    ends = counts.cumsum()
    pairs = xp.arange(int(ends[-1]))  # all pairs of a place and a selected entry of its row
    place = xp.searchsorted(ends, pairs, side="right")
    entry = first[place] + pairs - (ends - counts)[place]
    gradient = xp.zeros(rows.shape[0], dtype=dy.dtype)
    xp.add.at(gradient, entry, places[place, columns[entry]])
    return gradient
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- layers


class Entries(Layer):
    """One tensor, some of whose entries are trained.

    Parameters
    ----------
    base : Parameter
        Frozen; its array is never written to.
    index : (k,) integers
        Ascending places of the entries in the flattened tensor; there may be none.

    Attributes
    ----------
    values : Parameter (k,) or None
        The entries' values; None if there are none.
    """

    def __init__(self, base: Parameter, index: Array) -> None:
        self.base = base
        self.index = index
        self.values = Parameter(base.name + SUFFIX, base.data.reshape(-1)[index]) if index.shape[0] else None

    @property
    def trainable(self) -> bool:
        """Whether a gradient of the selected entries is wanted."""
        return self.values is not None and self.values.trainable

    @property
    def places(self) -> tuple[Array, Array]:
        """Rows and columns of the entries of a matrix, (k,) each."""
        width = self.base.data.shape[1]
        return self.index // width, self.index % width

    def dense(self) -> Array:
        """The tensor with the values in their places."""
        if self.values is None:
            return self.base.data
        return self.spread(self.values.data, self.base.data.copy())

    def spread(self, values: Array, onto: Array) -> Array:
        """Write one number an entry into a tensor, and give it back."""
        onto.reshape(-1)[self.index] = values
        return onto

    def add(self, gradient: Array, grads: Gradients) -> None:
        """Add a contribution to the entries' gradient, (k,)."""
        assert self.values is not None
        grads.add(self.values, gradient)

    def add_product(self, dy: Array, x: Array, grads: Gradients, ops: Any) -> None:
        """Add the entries' gradient as the weight of y = x W; by whichever way is the faster one for so many."""
        if self.index.shape[0] > DENSE_ABOVE * self.base.data.size:
            gradient = ops.linear_backward_weight(dy, x).reshape(-1)[self.index]
        else:
            gradient = selected_weight_gradient(dy, x, *self.places)
        self.add(gradient, grads)


class MaskedLinear(Layer):
    """y = x @ weight + bias with selected entries.

    Parameters
    ----------
    name : str
    weight, bias : Entries
    """

    def __init__(self, name: str, weight: Entries, bias: Entries) -> None:
        self.name = name
        self.weight = weight
        self.bias = bias

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., in) -> (..., out)."""
        ops = ctx.backend.ops
        weight, bias = self.weight, self.bias
        needs_dx = ctx.needs_input_gradient(weight.values, bias.values)
        y = ops.linear_forward(x, weight.dense(), bias.dense())
        ctx.see(self.name, y)
        kept = x if ctx.grad and weight.trainable else None

        def backward(dy: Array, grads: Gradients) -> Array | None:
            if kept is not None:
                weight.add_product(dy, kept, grads, ops)
            if bias.trainable:
                bias.add(ops.linear_backward_bias(dy[..., bias.index]), grads)
            # Put together once more rather than kept: a copy of a weight is cheap, holding one in every layer is not.
            return ops.linear_backward_input(dy, weight.dense()) if needs_dx else None

        return y, backward


class MaskedLayerNorm(Layer):
    """`LayerNorm` with selected entries.

    Parameters
    ----------
    name : str
    weight, bias : Entries
    eps : float
    """

    def __init__(self, name: str, weight: Entries, bias: Entries, eps: float) -> None:
        self.name = name
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def forward(self, x: Array, ctx: Context, delta: Array | None = None) -> tuple[Any, Backward]:
        """(..., C) -> two (..., C); see `LayerNorm.forward`."""
        ops = ctx.backend.ops
        own = self.weight.trainable or self.bias.trainable
        needs_dx = ctx.needs_input_gradient(self.weight.values, self.bias.values)
        weight, bias = self.weight.dense(), self.bias.dense()
        if delta is None:
            total = x
            y, cache = ops.layernorm_forward(x, weight, bias, self.eps)
        else:
            total, y, cache = ops.residual_layernorm_forward(x, delta, weight, bias, self.eps)
        ctx.see(self.name, y)
        kept = cache if ctx.grad and (own or needs_dx) else None

        def backward(dtotal: Array | None, dy: Array, grads: Gradients) -> Array | None:
            if own:
                gradients = ops.layernorm_backward_params(dy, kept)
                for entries, gradient in zip((self.weight, self.bias), gradients, strict=True):
                    if entries.trainable:
                        entries.add(gradient[entries.index], grads)
            if not needs_dx:
                return None
            if dtotal is None:
                return ops.layernorm_backward_input(dy, weight, kept)
            return ops.residual_layernorm_backward_input(dtotal, dy, weight, kept)

        return (total, y), backward


class MaskedEmbedding(Layer):
    """Token and position embedding with selected entries.

    Parameters
    ----------
    wte, wpe : Entries
    drop : Dropout
    """

    def __init__(self, wte: Entries, wpe: Entries, drop: Dropout) -> None:
        self.wte = wte
        self.wpe = wpe
        self.drop = drop

    def forward(self, ids: Array, ctx: Context) -> tuple[Array, Backward]:
        """(B, T) integers -> (B, T, C)."""
        ops, xp = ctx.backend.ops, ctx.backend.xp
        ctx.needs_input_gradient(self.wte.values, self.wpe.values)
        positions = ctx.positions
        if positions is None:
            positions = xp.broadcast_to(ctx.start + xp.arange(ids.shape[1]), ids.shape)
        x = ops.embedding_forward(ids, self.wte.dense())
        x += ops.embedding_forward(positions, self.wpe.dense())
        x, drop_back = self.drop.forward(x, ctx)
        ctx.see("transformer.embedding", x)

        def backward(dx: Array, grads: Gradients) -> None:
            dx = drop_back(dx, grads)
            for entries, read in ((self.wte, ids), (self.wpe, positions)):
                if entries.trainable:
                    entries.add(selected_embedding_gradient(dx, read, *entries.places), grads)

        return x, backward


class MaskedHead(Layer):
    """The output head that is the transposed token embedding, with that one's selected entries.

    Stands in the place of the model's `wte`.

    Parameters
    ----------
    wte : Entries
    """

    def __init__(self, wte: Entries) -> None:
        self.wte = wte

    @property
    def data(self) -> Array:
        """The token embedding, (V, C)."""
        return self.wte.dense()

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., C) -> (..., V)."""
        ops, wte = ctx.backend.ops, self.wte
        needs_dx = ctx.needs_input_gradient(wte.values)
        logits = ops.linear_forward(x, wte.dense().T, None)
        kept = x if ctx.grad and wte.trainable else None

        def backward(dlogits: Array, grads: Gradients) -> Array | None:
            if kept is not None:  # logits = x @ wteᵀ, so dwte = dlogitsᵀ @ x
                wte.add_product(kept, dlogits, grads, ops)
            return ops.linear_backward_input(dlogits, wte.dense().T) if needs_dx else None

        return logits, backward


# ---------------------------------------------------------------------------------------------- models


class MaskedGPT(GPT):
    """A GPT of which selected entries are trained, on a base's weights.

    Its gradients have the base's names and shapes, with zeros outside the masks; its trainable parameters are vectors
    of the selected values.

    Parameters
    ----------
    model : GPT
        A plain one; is not changed, and its arrays are shared.
    masks : Masks

    Raises
    ------
    ValueError
        If a mask is of no parameter or of another shape, or nothing is selected.
    """

    def __init__(self, model: GPT, masks: Masks) -> None:
        vars(self).update(vars(model.copy()))
        self.freeze()
        shapes = {p.name: tuple(p.data.shape) for p in self.parameters()}
        for name, mask in masks.items():
            if shapes.get(name) != mask.shape:
                raise InputError(
                    f"a mask of shape {mask.shape} for {name}, which is {shapes.get(name, 'no parameter')}"
                )
        if not any(mask.any() for mask in masks.values()):
            raise InputError("nothing is selected: the masks are empty")
        asarray = self.backend.asarray

        def entries(p: Parameter) -> Entries:
            return Entries(p, asarray(np.flatnonzero(masks.get(p.name, np.zeros(0)))))

        def selected(*parameters: Parameter) -> bool:
            return any(masks[p.name].any() for p in parameters if p.name in masks)

        def linear(layer: Any, name: str) -> Layer:
            if not selected(layer.weight, layer.bias):
                return layer
            return MaskedLinear(layer.name, entries(layer.weight), entries(layer.bias))

        def layernorm(layer: Any, name: str) -> Layer:
            if not selected(layer.weight, layer.bias):
                return layer
            return MaskedLayerNorm(layer.name, entries(layer.weight), entries(layer.bias), layer.eps)

        for pattern, wrap in (("h.*.c_*", linear), ("h.*.ln_*", layernorm), ("ln_f", layernorm)):
            self.replace(pattern, wrap)
        embedding: Any = self.embedding
        if selected(embedding.wte, embedding.wpe):
            wte = entries(embedding.wte)
            self.embedding = MaskedEmbedding(wte, entries(embedding.wpe), embedding.drop)
            if wte.values is not None:
                self.wte = MaskedHead(wte)  # type: ignore[assignment]  # heads take a layer there

    def entries(self) -> Iterator[Entries]:
        """The tensors that have selected entries, each once."""
        found = {id(layer): layer for _, layer in self.layers() if isinstance(layer, Entries)}
        return (layer for layer in found.values() if layer.values is not None)

    def state(self) -> dict[str, np.ndarray]:
        """The base's parameter names → arrays with the trained values in their places."""
        dense = {entries.base.name: entries.dense() for entries in self.entries()}
        frozen = {p.name: p.data for p in self.parameters() if not p.name.endswith(SUFFIX)}
        return {name: self.backend.to_numpy(array) for name, array in (frozen | dense).items()}

    def plain(self) -> GPT:
        """An ordinary GPT that computes the same; what is not selected is shared with this one."""
        plain = GPT(self.config, dtype=self.dtype.name, backend=self.backend)
        state = self.state()
        for p in plain.parameters():
            p.data = self.backend.asarray(state[p.name])
        return plain

    def loss_and_grads(self, ids: Any, targets: Any) -> tuple[float, dict[str, Array]]:
        """See `GPT.loss_and_grads`; gradients of the base's shapes, 0 outside the masks."""
        loss, grads = super().loss_and_grads(ids, targets)
        return loss, dense_gradients(self, grads)

    def generate(self, *arguments: Any, **settings: Any) -> np.ndarray:
        """See `GPT.generate`; the values are put in their places once, not for every token."""
        return self.plain().generate(*arguments, **settings)


class MaskedClassifier(Classifier):
    """A classifier on a `MaskedGPT`; all of its head is trained."""

    trunk: MaskedGPT

    def loss_and_grads(self, ids: Any, labels: Any, lengths: Any = None) -> tuple[float, dict[str, Array]]:
        """See `Classifier.loss_and_grads`; gradients of the base's shapes, 0 outside the masks."""
        loss, grads = super().loss_and_grads(ids, labels, lengths)
        return loss, dense_gradients(self.trunk, grads)


def dense_gradients(model: MaskedGPT, grads: Mapping[str, Array]) -> dict[str, Array]:
    """Gradients of the selected entries in arrays of the base's shapes and names, and all others as they are."""
    dense = {
        p.name: model.backend.zeros(p.data.shape, p.data.dtype)
        for p in model.parameters()
        if not p.name.endswith(SUFFIX)
    }
    for entries in model.entries():
        if entries.values is not None and entries.values.name in grads:
            entries.spread(grads[entries.values.name], dense[entries.base.name])
    return dense | {name: gradient for name, gradient in grads.items() if not name.endswith(SUFFIX)}


# ---------------------------------------------------------------------------------------------- methods

PLACES = ".places"
"""Ending of the names under which the places of selected entries are saved."""


UNDER_A_HEAD = 0.3
"""Factor on the learning rate of selected entries under a fresh classifier head."""


@dataclass(frozen=True, kw_only=True)
class MaskedMethod(Method):
    """Trains entries that a subclass selects with `masks`, and leaves the rest as it is.

    Selected entries have no weight decay. A classifier head is always trained, beside the selection.
    """

    def masks(self, model: GPT, seed: int = 0, data: Any = None) -> Masks:
        """Which entries are selected; arguments as for `apply`."""
        raise NotImplementedError

    def apply(self, model: GPT, seed: int = 0, data: Any = None) -> Any:
        """The base with the selected entries trainable.

        Parameters
        ----------
        model : GPT
        seed : int
            Of a classifier head, and of a choice by chance.
        data : sequence of Batch, Batch or (ids, targets)
            What gradients are taken of; with a classifier head labels in the place of targets.

        Raises
        ------
        ValueError
            If a ranking needs data and there are none, or they do not fit.
        """
        require_plain(model)
        trunk = MaskedGPT(model, self.masks(model, seed, data))
        return trunk if self.n_labels is None else self.with_head(trunk, seed)

    def with_head(self, trunk: GPT, seed: int) -> Classifier:
        """The model under a fresh classifier head."""
        assert self.n_labels is not None
        return MaskedClassifier(trunk, self.n_labels, seed)

    def groups(self, tuned: Tuned) -> Sequence[ParameterGroup]:
        """Under a fresh head the selected entries go slower: its first gradients say little of where to go."""
        if isinstance(tuned, Classifier):
            return (ParameterGroup(f"*{SUFFIX}", lr_scale=UNDER_A_HEAD),)
        return ()

    def merge(self, tuned: Tuned) -> GPT:
        """An ordinary GPT with the trained values in their places."""
        model = language_model(tuned, self.name)
        if not isinstance(model, MaskedGPT):
            raise InputError(f"{self.name} did not make this model, or it has been merged already")
        plain = model.plain()
        own(plain.parameters())
        return plain

    def require_own(self, trunk: GPT) -> None:
        """See `Method.require_own`."""
        if not isinstance(trunk, MaskedGPT):
            raise InputError(f"{self.name} did not make this model")

    def state(self, tuned: Tuned) -> dict[str, np.ndarray]:
        """Values and places of the selected entries, and the head's parameters."""
        to_numpy = tuned.backend.to_numpy
        trunk = tuned.trunk if isinstance(tuned, MaskedClassifier) else tuned
        assert isinstance(trunk, MaskedGPT)
        places = {e.base.name + PLACES: to_numpy(e.index) for e in trunk.entries()}
        return super().state(tuned) | places

    def restore(self, model: GPT, tensors: dict[str, np.ndarray], directory: str | Path) -> Any:
        """The tuned model with these values at these places."""
        require_plain(model)
        shapes = {p.name: tuple(p.data.shape) for p in model.parameters()}
        masks = {}
        for name in [name for name in tensors if name.endswith(PLACES)]:
            places, base = tensors.pop(name), name.removesuffix(PLACES)
            size = math.prod(shapes.get(base, (0,)))
            if places.dtype.kind not in "iu" or places.ndim != 1 or not places.size:
                raise InputError(f"{directory}: {name} must be a list of whole numbers")
            if (np.diff(places) <= 0).any() or places[0] < 0 or places[-1] >= size:
                raise InputError(f"{directory}: {name} must rise from 0 to {size - 1} at most, for {base} of this base")
            masks[base] = np.zeros(shapes[base], dtype=bool)
            masks[base].reshape(-1)[places] = True
        if not masks:
            raise InputError(f"{directory}: no {PLACES} of any parameter: nothing is selected")
        trunk = MaskedGPT(model, masks)
        tuned = trunk if self.n_labels is None else self.with_head(trunk, 0)
        assign((p for p in tuned.parameters() if p.trainable), tensors, tuned, directory)
        return tuned
