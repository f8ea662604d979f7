"""What belongs to one pass through a model and not to its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kernels.array import Array
from kernels.backend import Backend
from minigpt.parameters import Parameter


@dataclass
class Context:
    """One pass: which implementations, whether a backward will follow, random numbers, cache, padding.

    A layer stores nothing of a pass on itself, so one model can be run by several workers at once.

    Attributes
    ----------
    backend : Backend
    grad : bool
        Whether a backward will follow. Without one nothing is kept.
    training : bool
        Whether dropout is on.
    rng : random generator or None
        For dropout.
    cache : KVCache or None
        Keys and values of earlier tokens; the pass adds its own.
    key_mask : (B, S) bool or None
        False where a key is padding; S counts cached keys and this pass' own.
    positions : (B, T) integers or None
        Places of the tokens; by default they follow on what the cache holds.
    offset : int
        Places taken before the first token by what is not a token, such as a learned prefix.
    adapters : object or None
        For lessons: which adapter each row uses.
    watch : callable or None
        Called with (name, array) for what flows between layers: pictures, and finding the first NaN. The
        arrays may be overwritten later in the pass: copy what is to be kept.
    """

    backend: Backend
    grad: bool = False
    training: bool = False
    rng: Any = None
    cache: KVCache | None = None
    key_mask: Array | None = None
    positions: Array | None = None
    offset: int = 0
    adapters: Any = None
    watch: Callable[[str, Array], None] | None = None
    _below: bool = field(default=False, repr=False)

    def needs_input_gradient(self, *parameters: Parameter | None) -> bool:
        """Whether anything below the layer that asks is trainable; counts the layer's own for those above.

        A layer calls this once in its forward, with its parameters. Layers run from the bottom up, so what has been
        counted so far is what lies below: a backward need not go on where the answer was False.
        """
        below = self._below
        if self.grad and not below:
            self._below = any(p is not None and p.trainable for p in parameters)
        return below

    @property
    def start(self) -> int:
        """Place of this pass' first token."""
        return self.offset + (self.cache.length if self.cache is not None else 0)

    @property
    def keep(self) -> bool:
        """Whether an operation without parameters has to keep its cache: something below it is trainable."""
        return self._below

    def see(self, name: str, array: Array) -> None:
        """Show an array to whoever watches the pass."""
        if self.watch is not None:
            self.watch(name, array)


class KVCache:
    """Keys and values of the tokens so far, for every attention layer, in buffers of full length.

    Parameters
    ----------
    backend : Backend
    n_layer, batch, n_head, length, head_size : int
    dtype : dtype
    """

    def __init__(
        self, backend: Backend, n_layer: int, batch: int, n_head: int, length: int, head_size: int, dtype: Any
    ) -> None:
        shape = (n_layer, batch, n_head, length, head_size)
        self._keys = backend.empty(shape, dtype)
        self._values = backend.empty(shape, dtype)
        self._filled = [0] * n_layer
        self.length = 0

    def extend(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Add this pass' keys and values to a layer's and give back all of them.

        Parameters
        ----------
        layer : int
        k, v : (B, H, T, D)

        Returns
        -------
        k, v : (B, H, S, D), views of the cache
        """
        start = self._filled[layer]
        stop = start + k.shape[-2]
        self._keys[layer, :, :, start:stop] = k
        self._values[layer, :, :, start:stop] = v
        self._filled[layer] = stop
        return self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop]

    def advance(self, n: int) -> None:
        """Note that a pass over n tokens is complete."""
        self.length += n
