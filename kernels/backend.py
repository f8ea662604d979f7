"""Where arrays live and which implementation each operation has.

A `Backend` is a value that a model carries, not a global: two models in one process can use different ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from kernels.array import Array

# Every operation of the table, by the file it stands in. All functions of a file switch together, because the backward
# of a form reads the cache of the same form's forward.
OPS: dict[str, tuple[str, ...]] = {
    "linear": (
        "linear_forward",
        "linear_backward_input",
        "linear_backward_weight",
        "linear_backward_bias",
    ),
    "embedding": ("embedding_forward", "embedding_backward"),
    "layernorm": (
        "layernorm_forward",
        "layernorm_backward_input",
        "layernorm_backward_params",
        "residual_layernorm_forward",
        "residual_layernorm_backward_input",
    ),
    "gelu": ("bias_gelu_forward", "bias_gelu_backward"),
    "attention": ("attention_forward", "attention_backward"),
    "cross_entropy": (
        "token_logprobs_forward",
        "token_logprobs_backward",
        "cross_entropy_forward",
        "cross_entropy_backward",
    ),
    "dropout": ("dropout_mask", "dropout_forward", "dropout_backward"),
    "adamw": ("adamw_update", "sum_of_squares", "clip_coefficient"),
}


class Backend:
    """An array library, copies to and from it, random numbers, allocation, and the table op → implementation.

    Parameters
    ----------
    name : str
        Shown in records, e.g. ``"numpy"``.
    xp : module
        The array library.
    suffix : str
        Ending of the implementations to prefer over the reference: ``"_fast"`` for NumPy, ``""`` for none.
    reference : iterable of str
        Operations that keep their reference form, so that each fast form's gain can be measured.

    Attributes
    ----------
    ops : namespace
        The table: ``backend.ops.linear_forward(x, weight, bias)``.

    Raises
    ------
    ValueError
        If `reference` names an operation that does not exist.
    """

    def __init__(self, name: str, xp: ModuleType, suffix: str = "", reference: Iterable[str] = ()) -> None:
        self.name = name
        self.xp = xp
        self.suffix = suffix
        self.reference = frozenset(reference)
        unknown = self.reference - OPS.keys()
        if unknown:
            raise ValueError(f"no operation {sorted(unknown)[0]!r}; there are {', '.join(OPS)}")
        self.ops = SimpleNamespace()
        for op, functions in OPS.items():
            module = importlib.import_module(f"kernels.{op}")
            wanted = "" if op in self.reference else suffix
            for function in functions:
                implementation = getattr(module, function + wanted, None) or getattr(module, function)
                setattr(self.ops, function, implementation)

    def __repr__(self) -> str:
        changed = f", reference={sorted(self.reference)}" if self.reference else ""
        return f"Backend({self.name!r}{changed})"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_backend, (self.name, tuple(sorted(self.reference)))

    def with_reference(self, *ops: str) -> Backend:
        """The same backend with these operations switched to their reference form."""
        return type(self)(self.name, self.xp, self.suffix, self.reference | set(ops))

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` on the backend's device; no copy where it is there already."""
        return self.xp.asarray(x, dtype=dtype)

    def to_numpy(self, x: Array) -> np.ndarray:
        """`x` on the host; no copy where it is there already."""
        return x.get() if hasattr(x, "get") else np.asarray(x)

    def rng(self, seed: int | list[int]) -> Any:
        """A random generator of the array library; draws on one backend differ from those on another."""
        return self.xp.random.default_rng(seed)

    def empty(self, shape: tuple[int, ...] | int, dtype: Any) -> Array:
        """An array with undefined contents."""
        return self.xp.empty(shape, dtype=dtype)

    def zeros(self, shape: tuple[int, ...] | int, dtype: Any) -> Array:
        """An array of zeros."""
        return self.xp.zeros(shape, dtype=dtype)


def get_backend(name: str | Backend = "numpy", reference: Iterable[str] = ()) -> Backend:
    """The backend of this name.

    Parameters
    ----------
    name : str or Backend
        ``"numpy"`` or ``"cupy"``; a `Backend` is handed back as it is.
    reference : iterable of str
        Operations to keep in their reference form.

    Raises
    ------
    ValueError
        If there is no such backend, or the one asked for cannot be used on this machine.
    """
    if isinstance(name, Backend):
        return name.with_reference(*reference) if reference else name
    if name == "numpy":
        return Backend("numpy", np, "_fast", reference)
    if name == "cupy":
        return Backend("cupy", _usable_cupy(), "", reference)
    raise ValueError(f"no backend {name!r}; there are numpy and cupy")


def _usable_cupy() -> ModuleType:
    # That cupy imports does not mean that there is a GPU: only its own check tells.
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        raise ValueError("backend 'cupy' needs the package cupy: pip install 'minigpt[gpu]'") from None
    if not cupy.cuda.is_available():
        raise ValueError("backend 'cupy' needs a CUDA GPU and its driver; none is usable on this machine")
    return cupy
