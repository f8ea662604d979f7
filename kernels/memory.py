"""Keeping freed memory in the process."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Tell the C library to keep large freed blocks for the next allocation instead of handing them back.

    A training step allocates the same arrays again and again. By default glibc maps every block above a threshold
    afresh, and the kernel then clears its pages one by one at first touch; plain allocations become as quick
    as hand-managed buffers once it stops doing so.

    Returns
    -------
    done : bool
        False where the C library is not glibc; nothing is changed then.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))
