"""One token at a time, quickly: the arithmetic of a plain GPT for a single place, without the layers around it.

At batch 1 a token costs some hundred calls on arrays of a few hundred numbers, so the calls themselves are the price:
no closures, no caches for a backward, no reshaping of what is a row anyway. `Decoder` says the same as the layers do,
and the tests hold it to that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.gelu import CUBIC, SCALE
from minigpt.context import KVCache
from minigpt.layers import MLP, Attention, Block, Dropout, Embedding, LayerNorm, Linear

if TYPE_CHECKING:
    from minigpt.model import GPT

PLAIN = {Embedding, Block, LayerNorm, Attention, MLP, Linear, Dropout}


def is_plain(model: GPT) -> bool:
    """Whether every layer is the one that GPT-2 has there, on NumPy arrays: what `Decoder` knows."""
    return model.backend.name == "numpy" and all(
        type(layer) in PLAIN and getattr(layer, "prefix", None) is None for _, layer in model.layers()
    )


class Decoder:
    """Next-token logits of a plain GPT, given the keys and values of all tokens before.

    Parameters
    ----------
    model : GPT
    cache : KVCache
        Filled by the prompt; every step adds its token.
    """

    def __init__(self, model: GPT, cache: KVCache) -> None:
        config = model.config
        embedding: Any = model.embedding
        blocks: list[Any] = list(model.h)
        self.cache = cache
        self.H, self.D = config.n_head, config.n_embd // config.n_head
        self.eps = config.layer_norm_epsilon
        self.average = np.full(config.n_embd, 1.0 / config.n_embd, dtype=model.dtype)
        self.wte = model.wte.data
        self.wpe = embedding.wpe.data
        self.ln_f = _pair(model.ln_f)
        self.blocks = [
            (
                _pair(block.ln_1),
                _pair(block.attn.c_attn),
                _pair(block.attn.c_proj),
                _pair(block.ln_2),
                _pair(block.mlp.c_fc),
                _pair(block.mlp.c_proj),
            )
            for block in blocks
        ]

    def step(
        self, tokens: np.ndarray, positions: np.ndarray | None = None, key_mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits after one more token a row.

        Parameters
        ----------
        tokens : (B,) integers
        positions : (B,) integers, optional
            By default the place after what the cache holds.
        key_mask : (B, S) bool, optional
            False where a key is padding; S counts the new token.

        Returns
        -------
        logits : (B, V)
        """
        H, D = self.H, self.D
        B = tokens.shape[0]
        x = self.wte.take(tokens, axis=0)  # (B, C)
        x += self.wpe[self.cache.length] if positions is None else self.wpe.take(positions, axis=0)
        hidden = None if key_mask is None else ~key_mask[:, None, None, :]
        single = B == 1 and hidden is None
        lead: tuple[int, ...] = () if single else (B,)  # a single row goes without its axis, which makes calls cheaper
        x = x.reshape(*lead, H * D)
        for i, (ln_1, c_attn, attn_proj, ln_2, c_fc, mlp_proj) in enumerate(self.blocks):
            qkv = self._normalise(x, ln_1).dot(c_attn[0])
            qkv += c_attn[1]
            if single:
                q, k, v = qkv.reshape(3, H, 1, D)  # three (H, 1, D)
                keys, values = (past[0] for past in self.cache.extend(i, k, v))  # (H, S, D)
            else:
                q, k, v = qkv.reshape(B, 3, H, 1, D).swapaxes(0, 1)  # three (B, H, 1, D)
                keys, values = self.cache.extend(i, k, v)  # (B, H, S, D)
            q *= 1.0 / math.sqrt(D)
            # On AVX-512, OpenBLAS 0.3.31 also multiplies what lies on the stack where D is 5 in float32, and leaves it
            # out of the result: a signalling NaN there raises the flag of an invalid operation that was none.
            with np.errstate(invalid="ignore"):
                weights = np.matmul(q, keys.swapaxes(-1, -2))  # (..., H, 1, S)
            if hidden is not None:
                weights[np.broadcast_to(hidden, weights.shape)] = -np.inf
            weights -= weights.max(-1, keepdims=True)
            np.exp(weights, out=weights)
            mixed = np.matmul(weights, values)  # (..., H, 1, D)
            mixed /= weights.sum(-1, keepdims=True)
            x += mixed.reshape(*lead, H * D).dot(attn_proj[0])
            x += attn_proj[1]
            u = self._normalise(x, ln_2).dot(c_fc[0])
            u += c_fc[1]
            t = u * u
            t *= SCALE * CUBIC
            t += SCALE
            t *= u
            np.tanh(t, out=t)
            t += 1.0
            t *= u
            t *= 0.5
            x += t.dot(mlp_proj[0])
            x += mlp_proj[1]
        self.cache.advance(1)
        last = self._normalise(x, self.ln_f)
        return self.wte.dot(last)[None] if single else last.dot(self.wte.T)

    def _normalise(self, x: np.ndarray, ln: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        if x.ndim == 1:  # two scalars are quicker than two arrays of one number
            h = x - x.dot(self.average)
            h *= 1.0 / math.sqrt(h.dot(h) / x.shape[0] + self.eps)
        else:
            h = x - (x @ self.average)[:, None]
            variance = np.vecdot(h, h) / x.shape[1]
            h *= (1.0 / np.sqrt(variance + self.eps))[:, None]
        h *= ln[0]
        h += ln[1]
        return h


def _pair(layer: Linear | LayerNorm) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.data, layer.bias.data
