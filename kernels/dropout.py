"""Inverted dropout.

Srivastava et al. (2014), "Dropout", JMLR 15; scaled by 1/(1 − p) while training, so that nothing changes at use.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.array import Array, namespace
from kernels.cuda.device import Device, blocks, device_form


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


# ---------------------------------------------------------------------------------------------- CUDA forms

THREADS = 256


@device_form(dropout_mask)
def dropout_mask_cuda(shape: tuple[int, ...], p: float, rng: Any, like: Array, *, device: Device) -> Array:
    """`dropout_mask`, in the place of the random numbers."""
    mask = rng.random(shape, dtype=np.float32)
    device.launch(
        "dropout", "dropout_mask_v1", (blocks(mask.size, THREADS),), (THREADS,), (mask, mask, *_settings(mask, p))
    )
    return mask


@device_form(dropout_forward)
def dropout_forward_cuda(x: Array, p: float, rng: Any, *, device: Device) -> tuple[Array, Array]:
    """`dropout_forward` with factor and product in one kernel."""
    xp = namespace(x)
    x = xp.ascontiguousarray(x)
    mask, y = rng.random(x.shape, dtype=np.float32), xp.empty(x.shape, dtype=x.dtype)
    device.launch(
        "dropout", "dropout_forward_v1", (blocks(x.size, THREADS),), (THREADS,), (mask, x, y, mask, *_settings(x, p))
    )
    return y, mask


def _settings(x: Array, p: float) -> tuple[Any, ...]:
    return np.int64(x.size), np.float32(p), np.float32(1.0 / (1.0 - p))
