"""How a free function finds the array library of its arguments."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

Array = Any  # numpy.ndarray, cupy.ndarray or a test's stand-in


def namespace(x: Array) -> ModuleType:
    """The module whose functions take `x`: ``numpy`` for a NumPy array, ``cupy`` for a CuPy array.

    An array's type is defined in the library that computes with it, so no list of libraries is needed.
    """
    return sys.modules[type(x).__module__.partition(".")[0]]
