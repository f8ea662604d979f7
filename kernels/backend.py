"""Where arrays live and which implementation each operation has.

A `Backend` is a value that a model carries, not a global: two models in one process can use different ones.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from kernels.array import Array
from kernels.cuda.cupy_device import LEAST, CupyDevice, LateGenerator
from kernels.cuda.device import Device
from kernels.memory import Meter, traced_host_memory, traced_pool

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

PRECISIONS = tuple(LEAST)
"""Of matrix products on a GPU: float32 as it is, or operands rounded to TF32 or bfloat16."""


class Backend:
    """An array library, copies to and from it, random numbers, allocation, and the table op → implementation.

    Parameters
    ----------
    name : str
        Shown in records, e.g. ``"numpy"``.
    xp : module
        The array library.
    suffix : str
        Ending of the implementations to prefer over the reference: ``"_fast"`` for NumPy, ``"_cuda"`` for a GPU,
        ``""`` for none.
    reference : iterable of str
        Operations that keep their reference form, so that each fast form's gain can be measured.
    device : Device, optional
        What the ``"_cuda"`` forms run on.

    Attributes
    ----------
    ops : namespace
        The table: ``backend.ops.linear_forward(x, weight, bias)``.

    Raises
    ------
    ValueError
        If `reference` names an operation that does not exist.
    """

    def __init__(
        self,
        name: str,
        xp: ModuleType,
        suffix: str = "",
        reference: Iterable[str] = (),
        device: Device | None = None,
    ) -> None:
        self.name = name
        self.xp = xp
        self.suffix = suffix
        self.device = device
        self.reference = frozenset(reference)
        unknown = self.reference - OPS.keys()
        if unknown:
            raise ValueError(f"no operation {sorted(unknown)[0]!r}; there are {', '.join(OPS)}")
        self.ops = SimpleNamespace()
        for op, functions in OPS.items():
            module = importlib.import_module(f"kernels.{op}")
            wanted = "" if op in self.reference else suffix
            for function in functions:
                implementation = getattr(module, function + wanted, None) if wanted else None
                if implementation is not None and device is not None:
                    implementation = functools.partial(implementation, device=device)
                setattr(self.ops, function, implementation or getattr(module, function))

    def __repr__(self) -> str:
        changed = f", reference={sorted(self.reference)}" if self.reference else ""
        return f"Backend({self.name!r}{changed})"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_backend, (self.spec, tuple(sorted(self.reference)))

    @property
    def precision(self) -> str:
        """Of matrix products: ``"float32"``, or what the device was set to."""
        return self.device.precision if self.device is not None else "float32"

    @property
    def spec(self) -> str:
        """What `get_backend` takes to make such a backend again, in another process: ``"numpy"``, ``"cupy:tf32"``."""
        return self.name if self.precision == "float32" else f"{self.name}:{self.precision}"

    def with_reference(self, *ops: str) -> Backend:
        """The same backend with these operations switched to their reference form."""
        return type(self)(self.name, self.xp, self.suffix, self.reference | set(ops), self.device)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """`x` on the backend's device; no copy where it is there already."""
        return self.xp.asarray(x, dtype=dtype)

    def to_numpy(self, x: Array) -> np.ndarray:
        """`x` on the host; no copy where it is there already."""
        return x.get() if hasattr(x, "get") else np.asarray(x)

    def send(self, *arrays: np.ndarray) -> list[Array]:
        """Integer arrays of the host on the device, all in one copy; themselves where there is no device.

        Parameters
        ----------
        arrays : integer arrays of any shapes

        Returns
        -------
        arrays : list of int64 arrays of these shapes
        """
        if self.xp is np:
            return list(arrays)
        together = self.xp.asarray(np.concatenate([a.reshape(-1).astype(np.int64, copy=False) for a in arrays]))
        bounds = np.cumsum([0, *(math.prod(a.shape) for a in arrays)]).tolist()
        return [together[i:j].reshape(a.shape) for a, i, j in zip(arrays, bounds, bounds[1:], strict=False)]

    def read(self, *values: Any) -> list[float]:
        """Numbers that may still be in the making on the device, as Python floats.

        This waits until they are there: the one place where a training step does so.

        Parameters
        ----------
        values : numbers, or arrays of no axes
        """
        if self.xp is np:
            return [float(value) for value in values]
        together = self.xp.stack([self.xp.asarray(value, dtype=np.float64) for value in values])
        return self.to_numpy(together).tolist()

    def synchronize(self) -> None:
        """Wait until all that was asked for is done, before looking at the clock."""
        if self.name == "cupy":
            self.xp.cuda.get_current_stream().synchronize()

    def memory(self) -> AbstractContextManager[Meter]:
        """Count the bytes that arrays take: by `tracemalloc` on the host, in CuPy's pool on a GPU."""
        return traced_pool(self.xp) if self.name == "cupy" else traced_host_memory()

    def rng(self, seed: int | list[int]) -> Any:
        """A random generator of the array library; draws on one backend differ from those on another."""
        return LateGenerator(self.xp, seed) if self.name == "cupy" else self.xp.random.default_rng(seed)

    def empty(self, shape: tuple[int, ...] | int, dtype: Any) -> Array:
        """An array with undefined contents."""
        return self.xp.empty(shape, dtype=dtype)

    def zeros(self, shape: tuple[int, ...] | int, dtype: Any) -> Array:
        """An array of zeros."""
        return self.xp.zeros(shape, dtype=dtype)


def get_backend(name: str | Backend = "numpy", reference: Iterable[str] = (), precision: str = "float32") -> Backend:
    """The backend of this name.

    Parameters
    ----------
    name : str or Backend
        ``"numpy"``, ``"cupy"``, or ``"cupy:"`` with a precision; a `Backend` is handed back as it is.
    reference : iterable of str
        Operations to keep in their reference form.
    precision : {"float32", "tf32", "bfloat16"}
        Of matrix products on a GPU. Weights, gradients, optimizer state and sums are float32 in each case.

    Raises
    ------
    ValueError
        If there is no such backend or precision, or the one asked for cannot be used on this machine.
    """
    if isinstance(name, str) and ":" in name:
        name, precision = name.split(":", 1)
    if precision != "float32" and name != "cupy":
        raise ValueError(f"precision {precision!r} is for the backend cupy; {name} computes in the arrays' own")
    if isinstance(name, Backend):
        return name.with_reference(*reference) if reference else name
    if name == "numpy":
        return Backend("numpy", np, "_fast", reference)
    if name == "cupy":
        device = CupyDevice(precision)
        return Backend("cupy", device.xp, "_cuda", reference, device)
    raise ValueError(f"no backend {name!r}; there are numpy and cupy")
