"""What the cases of several lessons draw."""

from __future__ import annotations

import numpy as np


def distinct(rng: np.random.Generator, n: int, low: int = 2, high: int = 7) -> tuple[int, ...]:
    """n different sizes from low to high, so that no array is square by accident."""
    return tuple(int(size) for size in rng.choice(np.arange(low, high + 1), n, replace=False))
