"""How a free function finds the array library of its arguments."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray, cupy.ndarray or a test's stand-in


def namespace(x: Array) -> ModuleType:
    """The module whose functions take `x`: ``numpy`` for a NumPy array, ``cupy`` for a CuPy array.

    An array's type is defined in the library that computes with it, so no list of libraries is needed.
    """
    return sys.modules[type(x).__module__.partition(".")[0]]


def number(x: Array) -> Any:
    """What a sum over all elements gave, as a number: a Python float from NumPy.

    On a device it stays an array of no axes, in float64, so that nobody waits for it; `Backend.read` does once a step.
    """
    return float(x) if isinstance(x, (np.generic, np.ndarray)) else x.astype(np.float64)
