"""Causal softmax attention from queries, keys and values to the joined output of all heads.

Vaswani et al. (2017), "Attention Is All You Need", arXiv:1706.03762, section 3.2.1.

There may be more keys than queries (S ≥ T): the first S − T keys come from before, out of a cache or as a learned
prefix. Query t stands at place S − T + t and sees the keys at places 0 … S − T + t.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kernels.array import Array, namespace
from kernels.cuda.device import NULL, WARP, Device, blocks, device_form


class AttentionCache(NamedTuple):
    """What the backward reads; `weights` (B, H, T, S) are the attention probabilities."""

    q: Array
    k: Array
    v: Array
    weights: Array
    dropout_mask: Array | None


def visible(T: int, S: int, key_mask: Array | None, like: Array) -> Array:
    """Which keys each query may look at: none after itself, none that is padding.

    Parameters
    ----------
    T, S : int
        Numbers of queries and keys.
    key_mask : (B, S) bool or None
        False where a key is padding.
    like : any array of the library to use

    Returns
    -------
    visible : (T, S) bool, or (B, 1, T, S) with a `key_mask`
    """
    xp = namespace(like)
    causal = xp.arange(S)[None, :] <= xp.arange(S - T, S)[:, None]  # (T, S)
    return causal if key_mask is None else causal & key_mask[:, None, None, :]


def merge_heads(x: Array) -> Array:
    """(B, H, T, D) -> (B, T, H·D)."""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * D)


def split_heads(x: Array, n_head: int) -> Array:
    """(B, T, H·D) -> (B, H, T, D), a view."""
    B, T, C = x.shape
    return x.reshape(B, T, n_head, C // n_head).swapaxes(1, 2)


def softmax(scores: Array, mask: Array) -> Array:
    """Probabilities over the last axis; exactly 0 where masked, and in rows where nothing is visible.

    Parameters
    ----------
    scores : (..., S)
    mask : bool, broadcasts to `scores`

    Returns
    -------
    probabilities : (..., S)
    """
    xp = namespace(scores)
    lowest = xp.finfo(scores.dtype).min
    scores = xp.where(mask, scores, lowest)
    weights = xp.exp(scores - scores.max(-1, keepdims=True)) * mask
    total = weights.sum(-1, keepdims=True)
    return weights / xp.where(total == 0, 1, total)


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    key_mask: Array | None = None,
    dropout_mask: Array | None = None,
    keep: bool = True,
) -> tuple[Array, Any]:
    """Mix the values of the keys each query may see, weighted by softmax(q·k / √D).

    Parameters
    ----------
    q : (B, H, T, D)
    k, v : (B, H, S, D), S ≥ T
    key_mask : (B, S) bool, optional
        False where a key is padding. A query that sees no key at all gives zeros.
    dropout_mask : (B, H, T, S), optional
        Factors on the attention probabilities.
    keep : bool
        False where no backward will follow: the cache is then None.

    Returns
    -------
    out : (B, T, C), C = H·D
    cache : AttentionCache
        The arguments, and the attention probabilities before dropout.
    """
    ### BEGIN SOLUTION
    T, D = q.shape[-2:]
    S = k.shape[-2]
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(D)  # (B, H, T, S)
    weights = softmax(scores, visible(T, S, key_mask, like=q))
    mixed = (weights if dropout_mask is None else weights * dropout_mask) @ v  # (B, H, T, D)
    cache = AttentionCache(q, k, v, weights, dropout_mask)
    return merge_heads(mixed), cache if keep else None
    ### END SOLUTION


def attention_backward(
    dout: Array, cache: Any, out: tuple[Array, Array, Array] | None = None
) -> tuple[Array, Array, Array]:
    """Gradients with respect to queries, keys and values.

    With P = softmax(Z), Z = q·kᵀ/√D and O = P·v: dv = Pᵀ·dO, dP = dO·vᵀ,
    dZ = P∘(dP − rowsum(P∘dP)), dq = dZ·k/√D, dk = dZᵀ·q/√D. Masked entries have P = 0 and need no more care.
    With dropout factors M, O = (P∘M)·v, so dv = (P∘M)ᵀ·dO and dP = (dO·vᵀ)∘M.

    Parameters
    ----------
    dout : (B, T, C)
    cache : AttentionCache
    out : three arrays of the shapes of q, k and v, optional
        Where to write the results.

    Returns
    -------
    dq : (B, H, T, D)
    dk, dv : (B, H, S, D)
    """
    ### BEGIN SOLUTION
    q, k, v, weights, dropout_mask = cache
    xp = namespace(dout)
    dq, dk, dv = out if out is not None else (None, None, None)
    dmixed = split_heads(dout, q.shape[1])  # (B, H, T, D)
    dropped = weights if dropout_mask is None else weights * dropout_mask
    dv = xp.matmul(dropped.swapaxes(-1, -2), dmixed, out=dv)
    dweights = dmixed @ v.swapaxes(-1, -2)  # (B, H, T, S)
    if dropout_mask is not None:
        dweights = dweights * dropout_mask
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) / math.sqrt(q.shape[-1])
    dq = xp.matmul(dscores, k, out=dq)
    dk = xp.matmul(dscores.swapaxes(-1, -2), q, out=dk)
    return dq, dk, dv
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- fast forms
#
# The time goes into passes over the (T, S) score matrices, so the fast form saves passes:
# - queries go in blocks; keys after a block's last query are never touched, half of the work for long sequences;
# - exp without subtracting each row's maximum: the block's largest score bounds all of them, and where it could
#   overflow, or a row could vanish, the exact form runs instead;
# - the softmax stays unnormalised, E = exp(Z): its row sums go into the small (T, D) arrays,
#   O = (E·v)/l, and with dO' = dO/l, δ' = rowsum(dO'∘O): dv = Eᵀ·dO', dZ = E∘(dO'·vᵀ − δ').

BLOCK = 64  # queries a block
SAFE = 60.0  # exp(±60) and sums of a few thousand of them are far inside float32's range


class FastAttentionCache(NamedTuple):
    """What the fast backward reads: per block of queries its unnormalised weights E (B, H, t, s)."""

    q: Array
    k: Array
    v: Array
    blocks: list[Array]
    inverse_sums: Array
    out: Array
    dropout_mask: Array | None


def attention_forward_fast(
    q: Array,
    k: Array,
    v: Array,
    key_mask: Array | None = None,
    dropout_mask: Array | None = None,
    keep: bool = True,
) -> tuple[Array, Any]:
    """`attention_forward` in blocks of queries with an unnormalised softmax."""
    xp = namespace(q)
    B, H, T, D = q.shape
    S = k.shape[2]
    past = S - T
    scaled = q * (1.0 / math.sqrt(D))  # (B, H, T, D)
    out = xp.empty((B, T, H, D), dtype=q.dtype)
    mixed = out.swapaxes(1, 2)  # (B, H, T, D), a view of the output
    sums = xp.empty((B, H, T), dtype=q.dtype)
    ones = xp.ones(S, dtype=q.dtype)
    triangle = xp.tri(min(BLOCK, T), dtype=q.dtype)
    blocks = []
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        seen, t = past + stop, stop - start
        weights = xp.matmul(scaled[:, :, start:stop], k[:, :, :seen].swapaxes(-1, -2))  # (B, H, t, s)
        if not -SAFE < weights.min() <= weights.max() < SAFE:
            return attention_forward(q, k, v, key_mask, dropout_mask, keep)
        xp.exp(weights, out=weights)
        if t > 1:
            weights[..., past + start :] *= triangle[:t, :t]
        if key_mask is not None:
            weights *= key_mask[:, None, None, :seen]
        xp.matmul(weights, ones[:seen], out=sums[:, :, start:stop])
        dropped = weights if dropout_mask is None else weights * dropout_mask[..., start:stop, :seen]
        xp.matmul(dropped, v[:, :, :seen], out=mixed[:, :, start:stop])
        if keep:
            blocks.append(weights)
    if key_mask is not None:
        sums[sums == 0] = 1.0  # a query that sees no key: its weights are all 0 already
    inverse = xp.reciprocal(sums, out=sums)[..., None]
    mixed *= inverse
    merged = out.reshape(B, T, H * D)
    if not keep:
        return merged, None
    return merged, FastAttentionCache(q, k, v, blocks, inverse, mixed, dropout_mask)


def attention_backward_fast(
    dout: Array, cache: Any, out: tuple[Array, Array, Array] | None = None
) -> tuple[Array, Array, Array]:
    """`attention_backward` in the blocks of the forward, the last one first: it meets every key, so it writes dk and dv
    and the others add to them."""
    if isinstance(cache, AttentionCache):  # the forward met scores too large for the unnormalised form
        return attention_backward(dout, cache, out)
    xp = namespace(dout)
    q, k, v, blocks, inverse, mixed, dropout_mask = cache
    _, H, T, D = q.shape
    past = k.shape[2] - T
    if out is None:
        out = tuple(xp.empty(x.shape, dtype=dout.dtype) for x in (q, k, v))
    dq, dk, dv = out
    dmixed = split_heads(dout, H) * inverse  # (B, H, T, D)
    delta = xp.vecdot(dmixed, mixed)[..., None]  # (B, H, T, 1)
    size = blocks[0].shape[2]
    for i in reversed(range(len(blocks))):
        weights = blocks[i]
        start = i * size
        stop = min(start + size, T)
        seen = past + stop
        part = dmixed[:, :, start:stop]
        dropped = weights
        dscores = xp.matmul(part, v[:, :, :seen].swapaxes(-1, -2))  # (B, H, t, s)
        if dropout_mask is not None:
            dropped = weights * dropout_mask[..., start:stop, :seen]
            dscores *= dropout_mask[..., start:stop, :seen]
        dscores -= delta[:, :, start:stop]
        dscores *= weights
        xp.matmul(dscores, k[:, :, :seen], out=dq[:, :, start:stop])
        if stop == T:
            xp.matmul(dropped.swapaxes(-1, -2), part, out=dv)
            xp.matmul(dscores.swapaxes(-1, -2), q[:, :, start:stop], out=dk)
        else:
            dv[:, :, :seen] += xp.matmul(dropped.swapaxes(-1, -2), part)
            dk[:, :, :seen] += xp.matmul(dscores.swapaxes(-1, -2), q[:, :, start:stop])
    for gradient in (dq, dk):  # once here is less than on every block of scores, and the queries need no scaled copy
        gradient *= 1.0 / math.sqrt(D)
    return dq, dk, dv


# ---------------------------------------------------------------------------------------------- CUDA forms
#
# Flash attention: the (T, S) matrices never leave the chip. What the backward needs of them is one number a query, the
# logarithm of its sum of exponentials.

HEAD_SIZES = {32: (64, 64), 64: (64, 32), 128: (32, 32)}
"""Head size up to which a kernel works: rows that its blocks take in the forward and in the backward."""

MOST_HEADS = 65535  # of all rows together: CUDA's largest grid along its second axis
FEW = 8  # up to so many queries a warp each is better than a tile
WARPS = 4  # a block, where a query has a warp


class CudaAttentionCache(NamedTuple):
    """What the backward reads; `lse` (B, H, T) is each query's log Σ exp(q·k/√D)."""

    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array
    key_mask: Array | None
    dropout_mask: Array | None


@device_form(attention_forward)
def attention_forward_cuda(
    q: Array,
    k: Array,
    v: Array,
    key_mask: Array | None = None,
    dropout_mask: Array | None = None,
    keep: bool = True,
    *,
    device: Device,
) -> tuple[Array, Any]:
    """`attention_forward` in tiles with an online softmax; the reference where there are no kernels for the shape."""
    B, H, T, D = q.shape
    if max(HEAD_SIZES) < D or B * H > MOST_HEADS:
        return attention_forward(q, k, v, key_mask, dropout_mask, keep)
    xp, S = namespace(q), k.shape[2]
    q, k, v = (_dense_rows(x) for x in (q, k, v))
    masks = [
        None if x is None else xp.ascontiguousarray(x, dtype=dtype)
        for x, dtype in ((key_mask, bool), (dropout_mask, q.dtype))
    ]
    out, lse = xp.empty((B, T, H * D), dtype=q.dtype), xp.empty((B, H, T), dtype=q.dtype)
    given = [NULL if x is None else x for x in masks]
    sizes = (*map(np.int32, (B, H, T, S, D)), *_steps(q, k, v), np.float32(1.0 / math.sqrt(D)))
    if T <= FEW and dropout_mask is None:
        grid, block = (blocks(T, WARPS), B * H), (WARPS * WARP,)
        device.launch("attention", "attention_forward_v2", grid, block, (q, k, v, given[0], out, lse, *sizes))
    else:
        width = _width(D)
        grid = (blocks(T, HEAD_SIZES[width][0]), B * H)
        name = f"attention_forward_v3_d{width}"
        device.launch("attention", name, grid, (16, 16), (q, k, v, *given, out, lse, *sizes))
    return out, CudaAttentionCache(q, k, v, out, lse, *masks) if keep else None


@device_form(attention_backward)
def attention_backward_cuda(
    dout: Array, cache: Any, out: tuple[Array, Array, Array] | None = None, *, device: Device
) -> tuple[Array, Array, Array]:
    """`attention_backward` in two kernels: one goes through each query's keys, one through each key's queries.

    Scores and weights are computed twice for it, but no two blocks write to the same place.
    """
    if isinstance(cache, AttentionCache):  # the forward's shape had no kernels
        return attention_backward(dout, cache, out)
    q, k, v, forward_out, lse, key_mask, dropout_mask = cache
    xp = namespace(dout)
    B, H, T, D = q.shape
    S = k.shape[2]
    dout, delta = xp.ascontiguousarray(dout), xp.empty((B, H, T), dtype=dout.dtype)
    wanted = out if out is not None else tuple(xp.empty(x.shape, dtype=dout.dtype) for x in (q, k, v))
    dq, dk, dv = made = tuple(x if _is_dense(x) else xp.empty(x.shape, dtype=x.dtype) for x in wanted)
    device.launch(
        "attention",
        "attention_delta",
        (blocks(B * T * H, WARPS),),
        (WARPS * WARP,),
        (dout, forward_out, delta, *map(np.int32, (B, H, T, D))),
    )
    width = _width(D)
    rows = HEAD_SIZES[width][1]
    inputs = (dout, q, k, v, *(NULL if x is None else x for x in (key_mask, dropout_mask)), lse, delta)
    sizes, scale = tuple(map(np.int32, (B, H, T, S, D))), np.float32(1.0 / math.sqrt(D))
    device.launch(
        "attention",
        f"attention_backward_query_v3_d{width}",
        (blocks(T, rows), B * H),
        (16, 16),
        (*inputs, dq, *sizes, *_steps(q, k, v, dq), scale),
    )
    device.launch(
        "attention",
        f"attention_backward_key_v3_d{width}",
        (blocks(S, rows), B * H),
        (16, 16),
        (*inputs, dk, dv, *sizes, *_steps(q, k, v, dk, dv), scale),
    )
    for place, result in zip(wanted, made, strict=True):
        if place is not result:
            place[...] = result
    return wanted


def _width(D: int) -> int:
    # The kernels' head size: the next one that has some.
    return min(width for width in HEAD_SIZES if width >= D)


def _is_dense(x: Array) -> bool:
    return x.shape[-1] == 1 or x.strides[-1] == x.dtype.itemsize


def _dense_rows(x: Array) -> Array:
    # The kernels take any strides but along the last axis.
    return x if _is_dense(x) else namespace(x).ascontiguousarray(x)


def _steps(*arrays: Array) -> tuple[Any, ...]:
    # Strides of each along its first three axes, in numbers.
    return tuple(np.int64(step // x.dtype.itemsize) for x in arrays for step in x.strides[:3])
