"""Log-probabilities of given tokens, and the cross-entropy loss on top of them.

A target of -100 is not scored: it adds nothing to the loss and its row gets no gradient.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kernels.array import Array, namespace, number
from kernels.cuda.device import Device, device_form

IGNORED = -100


class LogProbCache(NamedTuple):
    """What the backward reads: probabilities (N, V), targets (N,) with ignored ones at 0, and which are scored."""

    probabilities: Array
    targets: Array
    scored: Array


def token_logprobs_forward(logits: Array, targets: Array) -> tuple[Array, LogProbCache]:
    """Log-probability of each row's target.

    Parameters
    ----------
    logits : (N, V)
        May be overwritten.
    targets : (N,) integers in [0, V), or -100 for a row that is not scored

    Returns
    -------
    logprobs : (N,)
        0 where the target is not scored.
    cache : LogProbCache
    """
    xp = namespace(logits)
    scored = targets != IGNORED
    targets = xp.where(scored, targets, 0)
    shifted = logits - logits.max(-1, keepdims=True)
    exponentials = xp.exp(shifted)
    total = exponentials.sum(-1, keepdims=True)
    rows = xp.arange(targets.shape[0])
    logprobs = shifted[rows, targets] - xp.log(total[:, 0])
    return logprobs * scored, LogProbCache(exponentials / total, targets, scored)


def token_logprobs_backward(dlogprobs: Array, cache: LogProbCache) -> Array:
    """Gradient with respect to the logits.

    log p_t = z_t − log Σ_j exp(z_j), so ∂log p_t/∂z_j = [j = t] − p_j. A row that is not scored gets zeros, whatever
    its `dlogprobs`.

    Parameters
    ----------
    dlogprobs : (N,)
    cache : LogProbCache
        Read only here. Faster forms overwrite it, so a caller must not use it again.

    Returns
    -------
    dlogits : (N, V)
    """
    ### BEGIN SOLUTION
    probabilities, targets, scored = cache
    dlogprobs = dlogprobs * scored
    dlogits = -probabilities * dlogprobs[:, None]
    dlogits[namespace(dlogits).arange(targets.shape[0]), targets] += dlogprobs
    return dlogits
    ### END SOLUTION


def cross_entropy_forward(
    logits: Array, targets: Array, n_scored: float | None = None
) -> tuple[float, tuple[Array, LogProbCache]]:
    """Mean negative log-likelihood of the targets.

    Parameters
    ----------
    logits : (N, V)
        May be overwritten.
    targets : (N,) integers in [0, V), or -100 for a row that is not scored
    n_scored : float, optional
        What to divide by: the number of scored targets in the whole batch of which these rows are a part.
        By default the number of scored targets here.

    Returns
    -------
    loss : float
        This part's share of the mean: over all parts of a batch the shares add up to it. On a device it is an array of
        no axes: see `kernels.array.number`.
    cache

    Raises
    ------
    ValueError
        If there is nothing to score.
    """
    logprobs, cache = token_logprobs_forward(logits, targets)
    n = float(cache.scored.sum()) if n_scored is None else n_scored
    if n == 0:
        raise ValueError("no target to score: all are -100")
    return -number(logprobs.sum()) / n, (n, cache)


def cross_entropy_backward(cache: tuple[Array, LogProbCache]) -> Array:
    """Gradient of the loss with respect to the logits: (softmax − one-hot)/n on scored rows, 0 elsewhere.

    Parameters
    ----------
    cache : (n, LogProbCache)
        As the forward gave it; n is what it divided by. Read only here. Faster forms overwrite it, so a caller must not
        use it again.

    Returns
    -------
    dlogits : (N, V)
    """
    ### BEGIN SOLUTION
    n, (probabilities, targets, scored) = cache
    dlogits = probabilities * (scored / n)[:, None].astype(probabilities.dtype)
    dlogits[namespace(dlogits).arange(targets.shape[0]), targets] -= scored / n
    return dlogits
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- fast forms

LARGEST = 80.0  # exp(±80) is inside float32's range, whose logarithm ends at 88.7


def token_logprobs_forward_fast(logits: Array, targets: Array) -> tuple[Array, LogProbCache]:
    """`token_logprobs_forward` in place, row by row only where it has to be.

    One bound for all rows replaces each row's maximum as long as no row can overflow or vanish.
    """
    xp = namespace(logits)
    V = logits.shape[1]
    scored = targets != IGNORED
    targets = xp.where(scored, targets, 0)
    rows = xp.arange(targets.shape[0])
    shifted = logits
    highest = min(LARGEST, 88.0 - math.log(V))  # so that a sum of V such terms is inside it too
    if logits.size and not -LARGEST < logits.min() <= logits.max() < highest:
        shifted -= logits.max(-1, keepdims=True)
    of_target = shifted[rows, targets]
    xp.exp(shifted, out=shifted)
    total = shifted @ xp.ones(V, dtype=logits.dtype)
    logprobs = of_target - xp.log(total)
    shifted *= xp.reciprocal(total)[:, None]
    return logprobs * scored, LogProbCache(shifted, targets, scored)


def token_logprobs_backward_fast(dlogprobs: Array, cache: LogProbCache) -> Array:
    """`token_logprobs_backward` in place."""
    dlogits, targets, scored = cache
    dlogprobs = dlogprobs * scored
    dlogits *= -dlogprobs[:, None]
    dlogits[namespace(dlogits).arange(targets.shape[0]), targets] += dlogprobs
    return dlogits


def cross_entropy_forward_fast(
    logits: Array, targets: Array, n_scored: float | None = None
) -> tuple[float, tuple[Array, LogProbCache]]:
    """`cross_entropy_forward` on the fast log-probabilities."""
    logprobs, cache = token_logprobs_forward_fast(logits, targets)
    n = float(cache.scored.sum()) if n_scored is None else n_scored
    if n == 0:
        raise ValueError("no target to score: all are -100")
    return -float(logprobs.sum()) / n, (n, cache)


def cross_entropy_backward_fast(cache: tuple[Array, LogProbCache]) -> Array:
    """`cross_entropy_backward` in place."""
    n, inner = cache
    xp = namespace(inner.probabilities)
    dlogprobs = xp.full(inner.targets.shape, -1.0 / n, dtype=inner.probabilities.dtype)
    return token_logprobs_backward_fast(dlogprobs, inner)


# ---------------------------------------------------------------------------------------------- CUDA forms
#
# Nothing of the logits' size is made beside them: their gradient takes their place.

THREADS = 256


class CudaLogProbCache(NamedTuple):
    """What the backward reads: logits (N, V), targets (N,), and each row's softmax as its largest logit and the sum of
    exponentials under it, (N,) each."""

    logits: Array
    targets: Array
    largest: Array
    total: Array


@device_form(token_logprobs_forward)
def token_logprobs_forward_cuda(logits: Array, targets: Array, *, device: Device) -> tuple[Array, CudaLogProbCache]:
    """`token_logprobs_forward` in one look at the logits."""
    xp = namespace(logits)
    N, V = logits.shape
    logits, targets = _ready(logits, targets)
    logprobs, largest, total = (xp.empty(N, dtype=logits.dtype) for _ in range(3))
    device.launch(
        "cross_entropy",
        "token_logprobs_forward_v2",
        (N,),
        (THREADS,),
        (logits, targets, logprobs, largest, total, np.int32(N), np.int32(V)),
    )
    return logprobs, CudaLogProbCache(logits, targets, largest, total)


@device_form(token_logprobs_backward)
def token_logprobs_backward_cuda(dlogprobs: Array, cache: CudaLogProbCache, *, device: Device) -> Array:
    """`token_logprobs_backward` in place of the logits."""
    logits, targets, largest, total = cache
    N, V = logits.shape
    dlogprobs = namespace(logits).ascontiguousarray(dlogprobs)
    device.launch(
        "cross_entropy",
        "token_logprobs_backward_v2",
        (N,),
        (THREADS,),
        (logits, targets, largest, total, dlogprobs, np.int32(N), np.int32(V)),
    )
    return logits


@device_form(cross_entropy_forward)
def cross_entropy_forward_cuda(
    logits: Array, targets: Array, n_scored: float | None = None, *, device: Device
) -> tuple[float, Any]:
    """`cross_entropy_forward`, and in the same kernel the gradient, which the backward only hands out."""
    xp = namespace(logits)
    n = float((targets != IGNORED).sum()) if n_scored is None else n_scored
    if n == 0:
        raise ValueError("no target to score: all are -100")
    N, V = logits.shape
    logits, targets = _ready(logits, targets)
    logprobs, loss = xp.empty(N, dtype=logits.dtype), xp.empty((), dtype=np.float64)
    device.launch(
        "cross_entropy",
        "cross_entropy_v1",
        (N,),
        (THREADS,),
        (logits, targets, logprobs, np.float32(1.0 / n), np.int32(N), np.int32(V)),
    )
    device.launch("cross_entropy", "total_v1", (1,), (THREADS,), (logprobs, loss, np.float64(-1.0 / n), np.int32(N)))
    return number(loss), (n, logits)


@device_form(cross_entropy_backward)
def cross_entropy_backward_cuda(cache: Any, *, device: Device) -> Array:
    """`cross_entropy_backward`: the forward has made it."""
    return cache[1]


def _ready(logits: Array, targets: Array) -> tuple[Array, Array]:
    xp = namespace(logits)
    return xp.ascontiguousarray(logits), xp.ascontiguousarray(targets, dtype=np.int64)
