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
from minigpt.parameters import Gradients, Parameter


def lm_logits(hidden: Array, wte: Parameter, ctx: Context) -> Array:
    """Scores of every next token: the output head is the transposed token embedding.

    Parameters
    ----------
    hidden : (..., C)
    wte : Parameter (V, C)
    ctx : Context

    Returns
    -------
    logits : (..., V)
    """
    return ctx.backend.ops.linear_forward(hidden, wte.data.T, None)


def lm_loss(
    hidden: Array, wte: Parameter, targets: Array, ctx: Context, n_scored: float | None = None
) -> tuple[float, Callable[[Gradients], Array | None]]:
    """Cross-entropy of the next tokens; only rows with a target pass through the head.

    Parameters
    ----------
    hidden : (B, T, C)
    wte : Parameter (V, C)
    targets : (B, T) integers, -100 where not scored
    ctx : Context
    n_scored : float, optional
        Scored targets in the whole batch, of which this is a part; by default those here.

    Returns
    -------
    loss : float
        This part's share of the batch mean.
    backward : (grads) -> (B, T, C)

    Raises
    ------
    ValueError
        If nothing is scored.
    """
    ops, xp = ctx.backend.ops, ctx.backend.xp
    needs_dx = ctx.needs_input_gradient(wte)
    rows, of_rows, scatter = _scored_rows(hidden, targets, xp)
    logits = ops.linear_forward(rows, wte.data.T, None)  # (N, V)
    ctx.see("logits", logits)
    if n_scored is None:
        n_scored = of_rows.shape[0]
    if n_scored == 0:
        raise ValueError("no target to score: all are -100")
    loss, cache = ops.cross_entropy_forward(logits, of_rows, n_scored)
    backward = _head_backward(rows, wte, ctx, needs_dx, scatter)
    return loss, lambda grads: backward(ops.cross_entropy_backward(cache), grads)


def token_logprobs(
    hidden: Array, wte: Parameter, targets: Array, ctx: Context
) -> tuple[Array, Callable[[Array, Gradients], Array | None]]:
    """Log-probability of every target token, for losses on the policy (PPO, DPO).

    Parameters
    ----------
    hidden : (B, T, C)
    wte : Parameter (V, C)
    targets : (B, T) integers, -100 where not wanted
    ctx : Context

    Returns
    -------
    logprobs : (B, T)
        0 where not wanted.
    backward : (dlogprobs (B, T), grads) -> (B, T, C)
    """
    ops, xp = ctx.backend.ops, ctx.backend.xp
    needs_dx = ctx.needs_input_gradient(wte)
    rows, of_rows, scatter = _scored_rows(hidden, targets, xp)
    values, cache = ops.token_logprobs_forward(ops.linear_forward(rows, wte.data.T, None), of_rows)
    scored = targets != IGNORED
    logprobs = xp.zeros(targets.shape, dtype=hidden.dtype)
    logprobs[scored] = values
    backward = _head_backward(rows, wte, ctx, needs_dx, scatter)
    return logprobs, lambda dlogprobs, grads: backward(ops.token_logprobs_backward(dlogprobs[scored], cache), grads)


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


def _scored_rows(hidden: Array, targets: Array, xp: Any) -> tuple[Array, Array, Callable[[Array], Array]]:
    # The rows that have a target, their targets, and the way back to (B, T, C).
    shape = hidden.shape
    rows, flat = hidden.reshape(-1, shape[-1]), targets.reshape(-1)
    index = xp.flatnonzero(flat != IGNORED)
    if index.shape[0] == flat.shape[0]:
        return rows, flat, lambda drows: drows.reshape(shape)

    def scatter(drows: Array) -> Array:
        dhidden = xp.zeros(rows.shape, dtype=drows.dtype)
        dhidden[index] = drows
        return dhidden.reshape(shape)

    return rows[index], flat[index], scatter


def _head_backward(
    rows: Array, wte: Parameter, ctx: Context, needs_dx: bool, scatter: Callable[[Array], Array]
) -> Callable[[Array, Gradients], Array | None]:
    ops = ctx.backend.ops
    kept = rows if ctx.grad and wte.trainable else None

    def backward(dlogits: Array, grads: Gradients) -> Array | None:
        if kept is not None:  # logits = rows @ wteᵀ, so dwte = dlogitsᵀ @ rows
            grads.add(wte, ops.linear_backward_weight(kept, dlogits, out=grads.slot(wte)))
        return scatter(ops.linear_backward_input(dlogits, wte.data.T)) if needs_dx else None

    return backward
