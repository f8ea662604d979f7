"""Keeping freed memory in the process, and counting what arrays take."""

from __future__ import annotations

import ctypes
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


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


class Meter(NamedTuple):
    """Bytes that arrays take, as counted since somewhere before.

    Attributes
    ----------
    now : () -> int
        At the moment.
    peak : () -> int
        The most at once since counting began.
    """

    now: Callable[[], int]
    peak: Callable[[], int]


@contextmanager
def traced_host_memory() -> Iterator[Meter]:
    """Count what NumPy allocates, by `tracemalloc`, which it reports to."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        yield Meter(lambda: tracemalloc.get_traced_memory()[0], lambda: tracemalloc.get_traced_memory()[1])
    finally:
        if not running:
            tracemalloc.stop()


@contextmanager
def traced_pool(cupy: Any) -> Iterator[Meter]:
    """Count what CuPy's pool hands out, in the blocks of 512 bytes that it deals in."""
    used = cupy.get_default_memory_pool().used_bytes
    highest = used()

    class Peak(cupy.cuda.MemoryHook):
        """Looks at the pool whenever it has handed out a block: it keeps no highest mark of its own."""

        name = "Peak"

        def malloc_postprocess(self, **block: Any) -> None:
            nonlocal highest
            highest = max(highest, used())

    with Peak():
        yield Meter(used, lambda: highest)
