"""The layers of a GPT. Each has one method, ``forward(x, ctx) -> (y, backward)``.

``backward(dy, grads) -> dx`` is defined right under the forward it undoes and keeps just what it will read. It adds
the gradients of the layer's trainable parameters to ``grads`` and returns the gradient of the input, or None
where nothing below is trainable.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kernels.array import Array
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.parameters import Gradients, Parameter

Backward = Callable[..., Any]
"""(dy, grads) -> dx"""


class Layer:
    """Something with parameters and a forward. Its attributes that are layers are its children, in order."""

    def children(self) -> Iterator[tuple[str, Layer]]:
        """The layers directly inside this one, with their names relative to it (``"h.0"`` in a list)."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield f"{name}.{i}", item

    def layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """All layers inside this one with their dotted names, outer before inner."""
        for name, child in self.children():
            yield prefix + name, child
            yield from child.layers(f"{prefix}{name}.")

    def parameters(self) -> Iterator[Parameter]:
        """All parameters inside this layer, in order, each once."""
        seen: set[int] = set()
        for p in self._all_parameters():
            if id(p) not in seen:
                seen.add(id(p))
                yield p

    def _all_parameters(self) -> Iterator[Parameter]:
        for value in vars(self).values():
            if isinstance(value, Parameter):
                yield value
            elif isinstance(value, Layer):
                yield from value._all_parameters()
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, Parameter):
                        yield item
                    elif isinstance(item, Layer):
                        yield from item._all_parameters()

    def freeze(self, patterns: Iterable[str] = ("*",)) -> None:
        """Make parameters whose names match one of the shell-style patterns not trainable.

        Raises
        ------
        ValueError
            If a pattern matches nothing.
        """
        self._set_trainable(patterns, False)

    def unfreeze(self, patterns: Iterable[str] = ("*",)) -> None:
        """Make parameters whose names match one of the shell-style patterns trainable.

        Raises
        ------
        ValueError
            If a pattern matches nothing.
        """
        self._set_trainable(patterns, True)

    def _set_trainable(self, patterns: Iterable[str], trainable: bool) -> None:
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            hits = [p for p in self.parameters() if fnmatch.fnmatchcase(p.name, pattern)]
            if not hits:
                raise InputError(f"no parameter matches {pattern!r}; names are like {next(self.parameters()).name}")
            for p in hits:
                p.trainable = trainable

    def forward(self, x: Array, ctx: Context) -> tuple[Any, Backward]:
        """Output, and the function that turns its gradient into the input's."""
        raise NotImplementedError


class Linear(Layer):
    """y = x @ weight + bias.

    Parameters
    ----------
    name : str
        Prefix of the parameters' names, e.g. ``"transformer.h.0.attn.c_attn"``.
    weight : (in, out)
    bias : (out,)
    """

    def __init__(self, name: str, weight: Array, bias: Array) -> None:
        self.name = name
        self.weight = Parameter(f"{name}.weight", weight)
        self.bias = Parameter(f"{name}.bias", bias)

    def forward(self, x: Array, ctx: Context, add_bias: bool = True) -> tuple[Array, Backward]:
        """(..., in) -> (..., out); with ``add_bias=False`` the caller adds the bias in an operation of its own."""
        ops = ctx.backend.ops
        needs_dx = ctx.needs_input_gradient(self.weight, self.bias)
        y = ops.linear_forward(x, self.weight.data, self.bias.data if add_bias else None)
        ctx.see(self.name, y)
        kept = x if ctx.grad and self.weight.trainable else None

        def backward(dy: Array, grads: Gradients) -> Array | None:
            if kept is not None:
                grads.add(self.weight, ops.linear_backward_weight(dy, kept, out=grads.slot(self.weight)))
            if self.bias.trainable:
                grads.add(self.bias, ops.linear_backward_bias(dy))
            return ops.linear_backward_input(dy, self.weight.data) if needs_dx else None

        return y, backward


class LayerNorm(Layer):
    """Layer normalisation, with the residual addition before it.

    Parameters
    ----------
    name : str
    weight, bias : (C,)
    eps : float
    """

    def __init__(self, name: str, weight: Array, bias: Array, eps: float) -> None:
        self.name = name
        self.weight = Parameter(f"{name}.weight", weight)
        self.bias = Parameter(f"{name}.bias", bias)
        self.eps = eps

    def forward(self, x: Array, ctx: Context, delta: Array | None = None) -> tuple[Any, Backward]:
        """Normalise x + delta.

        Parameters
        ----------
        x : (..., C)
            The residual stream.
        delta : (..., C), optional
            What a sublayer adds to it.

        Returns
        -------
        (total, y) : two (..., C)
            The stream from here on, and its normalised form.
        backward : (dtotal, dy, grads) -> dx
            `dx` is the gradient of both `x` and `delta`. `dtotal` may be None.
        """
        ops = ctx.backend.ops
        needs_dx = ctx.needs_input_gradient(self.weight, self.bias)
        weight, bias = self.weight.data, self.bias.data
        if delta is None:
            total = x
            y, cache = ops.layernorm_forward(x, weight, bias, self.eps)
        else:
            total, y, cache = ops.residual_layernorm_forward(x, delta, weight, bias, self.eps)
        ctx.see(self.name, y)
        own = self.weight.trainable or self.bias.trainable
        kept = cache if ctx.grad and (own or needs_dx) else None

        def backward(dtotal: Array | None, dy: Array, grads: Gradients) -> Array | None:
            if own:
                dweight, dbias = ops.layernorm_backward_params(dy, kept)
                if self.weight.trainable:
                    grads.add(self.weight, dweight)
                if self.bias.trainable:
                    grads.add(self.bias, dbias)
            if not needs_dx:
                return None
            if dtotal is None:
                return ops.layernorm_backward_input(dy, weight, kept)
            return ops.residual_layernorm_backward_input(dtotal, dy, weight, kept)

        return (total, y), backward


class Dropout(Layer):
    """Dropout with probability p while training, nothing otherwise."""

    def __init__(self, p: float) -> None:
        self.p = p

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(...) -> (...)."""
        if not (ctx.training and self.p):
            return x, lambda dy, grads: dy
        ops = ctx.backend.ops
        y, mask = ops.dropout_forward(x, self.p, ctx.rng)

        def backward(dy: Array | None, grads: Gradients) -> Array | None:
            return None if dy is None else ops.dropout_backward(dy, mask)

        return y, backward


class Embedding(Layer):
    """Token embedding plus learned position embedding.

    Parameters
    ----------
    wte : (V, C)
    wpe : (n_positions, C)
    dropout : float
    """

    def __init__(self, wte: Array, wpe: Array, dropout: float) -> None:
        self.wte = Parameter("transformer.wte.weight", wte)
        self.wpe = Parameter("transformer.wpe.weight", wpe)
        self.drop = Dropout(dropout)

    def forward(self, ids: Array, ctx: Context) -> tuple[Array, Backward]:
        """(B, T) integers -> (B, T, C)."""
        ops = ctx.backend.ops
        ctx.needs_input_gradient(self.wte, self.wpe)
        T = ids.shape[1]
        tokens = ops.embedding_forward(ids, self.wte.data)
        positions = ctx.positions
        places = slice(ctx.start, ctx.start + T)
        if positions is None:
            tokens += self.wpe.data[places]
        else:
            tokens += ops.embedding_forward(positions, self.wpe.data)
        x, drop_back = self.drop.forward(tokens, ctx)
        ctx.see("transformer.embedding", x)

        def backward(dx: Array, grads: Gradients) -> None:
            if not (self.wte.trainable or self.wpe.trainable):
                return
            dx = drop_back(dx, grads)
            if self.wte.trainable:
                ops.embedding_backward(dx, ids, grads.start(self.wte))
            if self.wpe.trainable:
                dwpe = grads.start(self.wpe)
                if positions is None:
                    dwpe[places] += dx.sum(0)
                else:
                    ops.embedding_backward(dx, positions, dwpe)

        return x, backward


class Attention(Layer):
    """Multi-head causal self-attention.

    Parameters
    ----------
    name : str
    c_attn : Layer
        (..., C) -> (..., 3C): queries, keys and values side by side.
    c_proj : Layer
        (..., C) -> (..., C).
    n_head : int
    index : int
        Which layer of the cache is this one's.
    attn_dropout, resid_dropout : float
        On the attention probabilities, and on the output.
    """

    def __init__(
        self,
        name: str,
        c_attn: Layer,
        c_proj: Layer,
        n_head: int,
        index: int,
        attn_dropout: float,
        resid_dropout: float,
    ) -> None:
        self.name = name
        self.c_attn = c_attn
        self.c_proj = c_proj
        self.n_head = n_head
        self.index = index
        self.attn_dropout = attn_dropout
        self.drop = Dropout(resid_dropout)
        self.prefix: Layer | None = None
        """Learned keys and values that every query sees first; its forward takes the batch size and gives
        (k, v), each (B, H, P, D), and a backward that takes (dk, dv)."""

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(B, T, C) -> (B, T, C)."""
        ops, xp = ctx.backend.ops, ctx.backend.xp
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        qkv, c_attn_back = self.c_attn.forward(x, ctx)
        q, k, v = qkv.reshape(B, T, 3, H, D).transpose(2, 0, 3, 1, 4)  # three (B, H, T, D), views
        P = 0
        if self.prefix is not None and (ctx.cache is None or ctx.cache.length == 0):
            (prefix_k, prefix_v), prefix_back = self.prefix.forward(B, ctx)
            P = prefix_k.shape[2]
            k = xp.concatenate((prefix_k, k), axis=2)
            v = xp.concatenate((prefix_v, v), axis=2)
        if ctx.cache is not None:
            k, v = ctx.cache.extend(self.index, k, v)
        dropout_mask = None
        if ctx.training and self.attn_dropout:
            shape = (B, H, T, k.shape[2])
            dropout_mask = ops.dropout_mask(shape, self.attn_dropout, ctx.rng, like=x)
        key_mask = ctx.key_mask
        unnamed = 0 if key_mask is None else k.shape[2] - key_mask.shape[1]
        if unnamed:  # a prefix stands before the keys that the mask speaks of, and is never padding
            key_mask = xp.concatenate((xp.ones((B, unnamed), dtype=bool), key_mask), axis=1)
        keep = ctx.keep
        mixed, cache = ops.attention_forward(q, k, v, key_mask, dropout_mask, keep)
        y, c_proj_back = self.c_proj.forward(mixed, ctx)
        y, drop_back = self.drop.forward(y, ctx)
        ctx.see(self.name, y)

        def backward(dy: Array, grads: Gradients) -> Array | None:
            dmixed = c_proj_back(drop_back(dy, grads), grads)
            if not keep:
                return None
            dqkv = xp.empty((B, T, 3, H, D), dtype=dmixed.dtype)
            dq, dk, dv = dqkv.transpose(2, 0, 3, 1, 4)
            if P == 0:
                ops.attention_backward(dmixed, cache, out=(dq, dk, dv))
            else:
                dq[...], all_dk, all_dv = ops.attention_backward(dmixed, cache)
                dk[...], dv[...] = all_dk[:, :, P:], all_dv[:, :, P:]
                prefix_back((all_dk[:, :, :P], all_dv[:, :, :P]), grads)
            return c_attn_back(dqkv.reshape(B, T, 3 * C), grads)

        return y, backward


class MLP(Layer):
    """Two linear layers with GELU between.

    Parameters
    ----------
    name : str
    c_fc : Layer
        (..., C) -> (..., 4C).
    c_proj : Layer
        (..., 4C) -> (..., C).
    dropout : float
    """

    def __init__(self, name: str, c_fc: Layer, c_proj: Layer, dropout: float) -> None:
        self.name = name
        self.c_fc = c_fc
        self.c_proj = c_proj
        self.drop = Dropout(dropout)

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., C) -> (..., C)."""
        ops = ctx.backend.ops
        bias = None
        if type(self.c_fc) is Linear:  # its bias joins GELU in one operation; a layer put in its place adds its own
            u, c_fc_back = self.c_fc.forward(x, ctx, add_bias=False)
            bias = self.c_fc.bias.data
        else:
            u, c_fc_back = self.c_fc.forward(x, ctx)
        keep = ctx.keep
        g, cache = ops.bias_gelu_forward(u, bias, keep)
        y, c_proj_back = self.c_proj.forward(g, ctx)
        y, drop_back = self.drop.forward(y, ctx)
        ctx.see(self.name, y)

        def backward(dy: Array, grads: Gradients) -> Array | None:
            dg = c_proj_back(drop_back(dy, grads), grads)
            return c_fc_back(ops.bias_gelu_backward(dg, cache), grads) if keep else None

        return y, backward


class Block(Layer):
    """One transformer block, pre-LayerNorm: x ← x + attn(ln_1(x)), then x ← x + mlp(ln_2(x)).

    The stream comes in and goes out as two terms whose sum it is, what was there and what the last sublayer adds,
    so that each addition happens inside the LayerNorm that follows it.

    Parameters
    ----------
    ln_1, attn, ln_2, mlp : Layer
    """

    def __init__(self, ln_1: LayerNorm, attn: Layer, ln_2: LayerNorm, mlp: Layer) -> None:
        self.ln_1 = ln_1
        self.attn = attn
        self.ln_2 = ln_2
        self.mlp = mlp

    def forward(self, x: tuple[Array, Array | None], ctx: Context) -> tuple[tuple[Array, Array], Backward]:
        """Two (B, T, C) terms -> two (B, T, C) terms; the backward takes and gives the gradient of their sum."""
        stream, delta = x
        (stream, h), ln_1_back = self.ln_1.forward(stream, ctx, delta)
        a, attn_back = self.attn.forward(h, ctx)
        (stream, h), ln_2_back = self.ln_2.forward(stream, ctx, a)
        m, mlp_back = self.mlp.forward(h, ctx)

        def backward(dy: Array, grads: Gradients) -> Array | None:
            dh = mlp_back(dy, grads)
            if dh is None:
                return None
            dy = ln_2_back(dy, dh, grads)
            if dy is None:
                return None
            dh = attn_back(dy, grads)
            return None if dh is None else ln_1_back(dy, dh, grads)

        return (stream, m), backward


def residual_scale(n_layer: int) -> float:
    """GPT-2 starts the 2L projections that write into the residual stream smaller by 1/√(2L)."""
    return 1.0 / math.sqrt(2 * n_layer)
