"""What stands on top of the trunk: functions from hidden states to a loss, and the gradient to feed back.

Each gives its value and ``backward(…, grads) -> dhidden``. A language model, a classifier, a reward model and a policy
are the same trunk with another of these on top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.array import Array
from kernels.cross_entropy import IGNORED
from minigpt.context import Context
from minigpt.layers import Backward, Layer
from minigpt.parameters import Gradients, Parameter


def lm_logits(hidden: Array, wte: Parameter | Layer, ctx: Context) -> Array:
    """Scores of every next token: the output head is the transposed token embedding.

    Parameters
    ----------
    hidden : (..., C)
    wte : Parameter (V, C), or a layer in its place: (..., C) -> (..., V)
    ctx : Context

    Returns
    -------
    logits : (..., V)
    """
    return _head(hidden, wte, ctx)[0]


def lm_loss(
    hidden: Array,
    wte: Parameter | Layer,
    targets: Array,
    ctx: Context,
    n_scored: float | None = None,
    index: Array | None = None,
) -> tuple[float, Callable[[Gradients], Array | None]]:
    """Cross-entropy of the next tokens; only rows with a target pass through the head.

    Parameters
    ----------
    hidden : (B, T, C)
    wte : Parameter (V, C), or a layer in its place
    targets : (B, T) integers, -100 where not scored
    ctx : Context
    n_scored : float, optional
        Scored targets in the whole batch, of which this is a part; by default those here.
    index : (N,) integers, optional
        Where the scored targets stand, counted through all rows. They are looked for if absent, and a GPU is then
        waited for.

    Returns
    -------
    loss : float
        This part's share of the batch mean. On a GPU it is an array of no axes: see `kernels.array.number`.
    backward : (grads) -> (B, T, C)

    Raises
    ------
    ValueError
        If nothing is scored.
    """
    ops = ctx.backend.ops
    rows, of_rows, _, scatter = _scored_rows(hidden, targets, ctx.backend.xp, index)
    logits, head_back = _head(rows, wte, ctx)  # (N, V)
    ctx.see("logits", logits)
    if n_scored is None:
        n_scored = of_rows.shape[0]
    if n_scored == 0:
        raise ValueError("no target to score: all are -100")
    loss, cache = ops.cross_entropy_forward(logits, of_rows, n_scored)
    return loss, lambda grads: scatter(head_back(ops.cross_entropy_backward(cache), grads))


def token_logprobs(
    hidden: Array, wte: Parameter | Layer, targets: Array, ctx: Context
) -> tuple[Array, Callable[[Array, Gradients], Array | None]]:
    """Log-probability of every target token, for losses on the policy (PPO, DPO).

    Parameters
    ----------
    hidden : (B, T, C)
    wte : Parameter (V, C), or a layer in its place
    targets : (B, T) integers, -100 where not wanted
    ctx : Context

    Returns
    -------
    logprobs : (B, T)
        0 where not wanted.
    backward : (dlogprobs (B, T), grads) -> (B, T, C)
    """
    ops, xp = ctx.backend.ops, ctx.backend.xp
    rows, of_rows, index, scatter = _scored_rows(hidden, targets, xp)
    logits, head_back = _head(rows, wte, ctx)
    values, cache = ops.token_logprobs_forward(logits, of_rows)
    logprobs = xp.zeros(targets.shape, dtype=hidden.dtype)
    logprobs.reshape(-1)[index] = values

    def backward(dlogprobs: Array, grads: Gradients) -> Array | None:
        return scatter(head_back(ops.token_logprobs_backward(dlogprobs.reshape(-1)[index], cache), grads))

    return logprobs, backward


def pool_last(hidden: Array, lengths: Array, ctx: Context) -> tuple[Array, Callable[[Array], Array]]:
    """Hidden state of each row's last real token, for classifiers and reward models on right-padded batches.

    Parameters
    ----------
    hidden : (B, T, C)
    lengths : (B,) integers in [1, T]
    ctx : Context

    Returns
    -------
    pooled : (B, C)
    backward : (dpooled) -> (B, T, C)
    """
    xp = ctx.backend.xp
    rows, last = xp.arange(hidden.shape[0]), lengths - 1

    def backward(dpooled: Array) -> Array:
        dhidden = xp.zeros(hidden.shape, dtype=dpooled.dtype)
        dhidden[rows, last] = dpooled
        return dhidden

    return hidden[rows, last], backward


def _scored_rows(
    hidden: Array, targets: Array, xp: Any, index: Array | None = None
) -> tuple[Array, Array, Array, Callable[..., Array | None]]:
    # The rows that have a target, their targets, which rows they are, and the way back to (B, T, C) for the rows'
    # gradient if there is one.
    shape = hidden.shape
    rows, flat = hidden.reshape(-1, shape[-1]), targets.reshape(-1)
    if index is None:
        index = xp.flatnonzero(flat != IGNORED)
    every = index.shape[0] == flat.shape[0]

    def scatter(drows: Array | None) -> Array | None:
        if drows is None or every:
            return None if drows is None else drows.reshape(shape)
        dhidden = xp.zeros(shape, dtype=drows.dtype)
        dhidden.reshape(-1, shape[-1])[index] = drows
        return dhidden

    return (rows, flat, index, scatter) if every else (rows[index], flat[index], index, scatter)


def _head(rows: Array, wte: Parameter | Layer, ctx: Context) -> tuple[Array, Backward]:
    # The product with the transposed token embedding; a layer in its place has its own.
    if isinstance(wte, Layer):
        return wte.forward(rows, ctx)
    ops = ctx.backend.ops
    needs_dx = ctx.needs_input_gradient(wte)
    logits = ops.linear_forward(rows, wte.data.T, None)
    kept = rows if ctx.grad and wte.trainable else None

    def backward(dlogits: Array, grads: Gradients) -> Array | None:
        if kept is not None:  # logits = rows @ wteᵀ, so dwte = dlogitsᵀ @ rows
            grads.add(wte, ops.linear_backward_weight(kept, dlogits, out=grads.slot(wte)))
        return ops.linear_backward_input(dlogits, wte.data.T) if needs_dx else None

    return logits, backward
