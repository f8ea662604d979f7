"""Inverted dropout.

Srivastava et al. (2014), "Dropout", JMLR 15; scaled by 1/(1 − p) while training, so that nothing changes at use.
"""

from __future__ import annotations

from typing import Any

from kernels.array import Array, namespace


def dropout_mask(shape: tuple[int, ...], p: float, rng: Any, like: Array) -> Array:
    """Draw the factors: 0 with probability p, else 1/(1 − p).

    Parameters
    ----------
    shape : tuple of int
    p : float in [0, 1)
    rng : the backend's random generator
    like : array whose dtype and device the mask takes

    Returns
    -------
    mask : `shape`
    """
    xp = namespace(like)
    kept = rng.random(shape, dtype=xp.float32) >= p
    return kept.astype(like.dtype) * (1.0 / (1.0 - p))


def dropout_forward(x: Array, p: float, rng: Any) -> tuple[Array, Array]:
    """Set a share p of the elements to zero and scale the others up.

    Parameters
    ----------
    x : (...)
    p : float in [0, 1)
    rng : the backend's random generator

    Returns
    -------
    y : (...)
    mask : (...)
        The factors, which are the cache.
    """
    mask = dropout_mask(x.shape, p, rng, like=x)
    return x * mask, mask


def dropout_backward(dy: Array, mask: Array) -> Array:
    """Gradient with respect to the input: each element's own factor.

    Parameters
    ----------
    dy, mask : (...)

    Returns
    -------
    dx : (...)
    """
    ### BEGIN SOLUTION
    return dy * mask
    ### END SOLUTION
