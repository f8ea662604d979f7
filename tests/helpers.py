"""What the tests of arithmetic share: the measure of a difference, and central differences."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread


def error(a: Any, b: Any, floor: float = 0.0) -> float:
    """max|a − b| / max|b|; where b is smaller than `floor` everywhere, relative to that.

    Parameters
    ----------
    a, b : arrays of the same shape
        b is what is taken for right.
    floor : float
        For values that are zero but for the noise of their computation.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, f"shape {a.shape} instead of {b.shape}"
    if a.size == 0:
        return 0.0
    difference, scale = float(np.abs(a - b).max()), max(float(np.abs(b).max()), floor)
    if difference == 0.0:
        return 0.0
    return difference / scale if scale else float("inf")


def numerical_gradient(
    f: Callable[[np.ndarray], Any],
    x: np.ndarray,
    dy: Any,
    entries: Iterable[int] | None = None,
    step: float = 2e-3,
) -> np.ndarray:
    """Gradient of Σ f(x)·dy by central differences over five points: their error is of the order step⁴.

    A random `dy` is part of the check: with ones, as for a loss that is a plain sum, a softmax or a LayerNorm
    has the gradient 0, and every multiple of the right answer passes.

    Parameters
    ----------
    f : array of x's shape -> array or number
    x : float64 array
    dy : as f's result
    entries : iterable of int, optional
        Which elements of x (counted flat) to move; all by default.

    Returns
    -------
    gradient : x's shape; or (len(entries),)
    """
    dy = np.asarray(dy, dtype=np.float64).reshape(-1)
    places = list(range(x.size) if entries is None else entries)
    gradient = np.zeros(len(places))
    for i, place in enumerate(places):
        for steps, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            moved = x.copy()
            moved.flat[place] += steps * step
            gradient[i] += factor * np.dot(np.asarray(f(moved), dtype=np.float64).reshape(-1), dy)
    gradient /= 12 * step
    return gradient.reshape(x.shape) if entries is None else gradient


TOLERANCE = 1e-9  # of central differences in float64: their own noise is below a tenth of it


def assert_gradient(
    gradient: Any, f: Callable[[np.ndarray], Any], x: np.ndarray, dy: Any, what: str = "gradient"
) -> None:
    """Compare a gradient with central differences; one that is zero has to be zero up to their noise."""
    difference = error(gradient, numerical_gradient(f, x, dy), floor=1e-2)
    assert difference < TOLERANCE, f"{what} is off by {difference:.1e} of its largest element"


def nan_like(x: Any) -> np.ndarray:
    """An array of NaN of the same shape and type: memory that has to be written before it is read."""
    return np.full(x.shape, np.nan, dtype=x.dtype)


def die_with_parent() -> None:
    """In a child, before it starts: a test run that is killed takes it along; Ctrl-C is not ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture of notebook width with something on it."""
    pixels = imread(path)
    return pixels.shape[0] > 200 and pixels.shape[1] > 1000 and float(pixels.std()) > 0.01
