"""What a fine-tuning method puts into a model from outside, in short: learned vectors before the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigpt import GPT
from minigpt.layers import Layer
from minigpt.parameters import Parameter


class SoftPrompt(Layer):
    """P learned vectors before the embedded tokens; stands in the place of the embedding.

    Parameters
    ----------
    inner : Embedding
    vectors : (P, C)
    """

    def __init__(self, inner: Any, vectors: np.ndarray) -> None:
        self.inner = inner
        self.prompt = Parameter("prompt_embeddings", vectors)

    def forward(self, ids, ctx):
        """(B, T) -> (B, P + T, C); with a cache, the vectors are there already after its first pass."""
        ctx.needs_input_gradient(self.prompt)
        x, inner_back = self.inner.forward(ids, ctx)
        if ctx.cache is not None and ctx.cache.length:
            return x, inner_back
        xp, wpe, P = ctx.backend.xp, self.inner.wpe, self.prompt.data.shape[0]
        vectors = self.prompt.data + wpe.data[:P]
        y = xp.concatenate((xp.broadcast_to(vectors, (x.shape[0], *vectors.shape)), x), axis=1)

        def backward(dy, grads):
            dvectors = dy[:, :P].sum(0)
            if self.prompt.trainable:
                grads.add(self.prompt, dvectors)
            if wpe.trainable:
                grads.start(wpe)[:P] += dvectors
            inner_back(dy[:, P:], grads)

        return y, backward


class Prefix(Layer):
    """P learned keys and values of one attention layer.

    Parameters
    ----------
    name : str
    keys, values : (H, P, D)
    """

    def __init__(self, name: str, keys: np.ndarray, values: np.ndarray) -> None:
        self.keys = Parameter(f"{name}.keys", keys)
        self.values = Parameter(f"{name}.values", values)

    def forward(self, batch, ctx):
        """Keys and values, (B, H, P, D) each."""
        ctx.needs_input_gradient(self.keys, self.values)
        xp = ctx.backend.xp
        k, v = (xp.broadcast_to(p.data, (batch, *p.data.shape)) for p in (self.keys, self.values))

        def backward(dkv, grads):
            for p, d in zip((self.keys, self.values), dkv, strict=True):
                if p.trainable:
                    grads.add(p, d.sum(0))

        return (k, v), backward


def with_soft_prompt(model: GPT, P: int) -> GPT:
    """The model, changed: with P random vectors before its input."""
    vectors = np.random.default_rng(8).normal(size=(P, model.config.n_embd))
    model.replace("embedding", lambda layer, name: SoftPrompt(layer, model.backend.asarray(vectors)))
    model.n_virtual = P
    return model


def with_prefix(model: GPT, P: int) -> GPT:
    """The model, changed: with P random keys and values in each layer."""
    rng = np.random.default_rng(9)
    H = model.config.n_head
    for i, block in enumerate(model.h):
        arrays = rng.normal(size=(2, H, P, model.config.n_embd // H))
        block.attn.prefix = Prefix(f"prefix.{i}", *(model.backend.asarray(a) for a in arrays))
    model.n_virtual = P
    return model


SEAMS = {"soft prompt": with_soft_prompt, "prefix": with_prefix}
