"""Embedding: row look-up, and the scatter-add that is its backward."""

from __future__ import annotations

import numpy as np

from kernels.array import Array, namespace
from kernels.cuda.device import Device, device_form


def embedding_forward(ids: Array, weight: Array) -> Array:
    """Look rows up.

    Parameters
    ----------
    ids : (...) integers in [0, V)
    weight : (V, C)

    Returns
    -------
    y : (..., C)
    """
    return weight[ids]


def embedding_backward(dy: Array, ids: Array, dweight: Array) -> Array:
    """Add each row's gradient to the row of the table it was read from.

    A token that occurs several times was read several times: its gradients add up.

    Parameters
    ----------
    dy : (..., C)
    ids : (...) integers in [0, V)
    dweight : (V, C)
        Added to in place (a tied output head may already have put its part there).

    Returns
    -------
    dweight : (V, C)
        The same array.
    """
    ### BEGIN SOLUTION
    xp = namespace(dy)
    xp.add.at(dweight, ids.reshape(-1), dy.reshape(-1, dy.shape[-1]))
    return dweight
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- fast forms


def embedding_forward_fast(ids: Array, weight: Array) -> Array:
    """`embedding_forward` by `take`, which copies whole rows without the bookkeeping of fancy indexing."""
    return weight.take(ids, axis=0)


def embedding_backward_fast(dy: Array, ids: Array, dweight: Array) -> Array:
    """`embedding_backward` as sums over runs of equal tokens, after sorting the rows by token."""
    xp = namespace(dy)
    flat = ids.reshape(-1)
    order = flat.argsort(kind="stable")
    tokens = flat[order]
    starts = xp.flatnonzero(xp.concatenate((xp.ones(1, dtype=bool), tokens[1:] != tokens[:-1])))
    rows = dy.reshape(-1, dy.shape[-1]).take(order, axis=0)
    dweight[tokens[starts]] += xp.add.reduceat(rows, starts, axis=0)
    return dweight


# ---------------------------------------------------------------------------------------------- CUDA forms

THREADS = 128


@device_form(embedding_forward)
def embedding_forward_cuda(ids: Array, weight: Array, *, device: Device) -> Array:
    """`embedding_forward`, a block a row."""
    C = weight.shape[-1]
    xp = namespace(weight)
    y = xp.empty((*ids.shape, C), dtype=weight.dtype)
    tokens, N = _tokens(ids)
    device.launch(
        "embedding",
        "embedding_forward_v2",
        (N,),
        (THREADS,),
        (tokens, xp.ascontiguousarray(weight), y, np.int32(N), np.int32(C)),
    )
    return y


@device_form(embedding_backward)
def embedding_backward_cuda(dy: Array, ids: Array, dweight: Array, *, device: Device) -> Array:
    """`embedding_backward` as sums over runs of equal tokens, after sorting them: always in the same order."""
    C = dy.shape[-1]
    tokens, N = _tokens(ids)
    order = tokens.argsort(kind="stable")
    device.launch(
        "embedding",
        "embedding_backward_v3",
        (N,),
        (THREADS,),
        (namespace(dy).ascontiguousarray(dy), tokens[order], order, dweight, np.int32(N), np.int32(C)),
    )
    return dweight


def _tokens(ids: Array) -> tuple[Array, int]:
    # All ids in one row, as the kernels take them.
    tokens = namespace(ids).ascontiguousarray(ids.reshape(-1), dtype=np.int64)
    return tokens, tokens.shape[0]
