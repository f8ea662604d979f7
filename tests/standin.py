"""An array library that is not NumPy: what runs on it lets no ``numpy`` slip past the seam.

Importing this module puts a module ``standin`` into `sys.modules`, as importing CuPy would put ``cupy``
there. Its arrays compute with NumPy, but show nothing of it: any NumPy function or NumPy array that meets
one of them raises TypeError, as does any conversion but ``.get()``. Results of reductions and of indexing
are arrays of no axes, not numbers, and the module has those names only that CuPy has too, so that a
function which is not there is missed here and not on a machine with a GPU.

It also knows what makes the host wait for a GPU: reading numbers back, and everything whose result's shape
depends on numbers. Within `synchronisations` each such call is noted, with the place it was made from.

>>> from tests.standin import BACKEND, standin
>>> standin.exp(standin.zeros(2)).get()
array([1., 1.])
>>> import numpy as np
>>> np.exp(standin.zeros(2))
Traceback (most recent call last):
TypeError: operand 'ndarray' does not support ufuncs (__array_ufunc__=None)
"""

from __future__ import annotations

import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from kernels import Backend

# Functions that both NumPy and CuPy 14 have under the same name, with the meaning the code here relies on.
FUNCTIONS = """
    abs absolute all allclose any arange argmax argmin argpartition argsort argwhere array asarray
    ascontiguousarray atleast_1d atleast_2d average bincount broadcast_to ceil choose clip
    concatenate copyto count_nonzero cumprod cumsum diag diagonal diff digitize dot einsum empty
    empty_like expand_dims eye fill_diagonal flatnonzero flip floor full full_like hstack identity
    inner interp isclose isin kron lexsort linspace logspace matmul max mean median meshgrid min
    moveaxis nan_to_num nanmax nanmean nanmin nansum nonzero ones ones_like outer pad partition
    percentile prod put_along_axis quantile ravel repeat reshape roll round searchsorted sort split
    squeeze stack std sum swapaxes take take_along_axis tensordot tile trace transpose tri tril
    tril_indices triu triu_indices unique unravel_index var vdot vstack where zeros zeros_like
"""
UFUNCS = """
    add arccos arcsin arctan arctan2 bitwise_and bitwise_or bitwise_xor cos cosh divide equal exp
    exp2 expm1 floor_divide greater greater_equal invert isfinite isinf isnan left_shift less
    less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum
    minimum mod multiply negative not_equal power reciprocal remainder right_shift rint sign sin
    sinh sqrt square subtract tan tanh true_divide
"""
CONSTANTS = """
    bool_ dtype e finfo float16 float32 float64 iinfo inf int16 int32 int64 int8 nan newaxis pi
    uint16 uint32 uint64 uint8
"""
METHODS = """
    all any argmax argmin argpartition argsort astype choose clip conj copy cumprod cumsum diagonal
    dot fill flatten max mean min nonzero prod ravel repeat reshape round searchsorted sort squeeze
    std sum swapaxes take trace transpose var view
"""
AT = ("add", "subtract")  # ufuncs that have `.at`

FROM_HOST = ("array", "asarray", "ascontiguousarray")  # the ways in: these copy to the device

# What looks at the numbers before it can give a result, as CuPy 14.2's sources have it; so do an index that is a
# mask, `where` of a condition alone, `average` with weights, and `repeat` as often as an array says. Going through
# the first axis in a loop does not: it makes views.
WAITING = ("argwhere", "bincount", "flatnonzero", "nanmax", "nanmin", "nonzero", "unique", "unravel_index")

_notes: list[list[str]] = []
_copies: list[list[int]] = []


@contextmanager
def synchronisations() -> Iterator[list[str]]:
    """Note every call that makes the host wait for the device, as ``"kind at file:line"``.

    >>> with synchronisations() as waits:
    ...     y = standin.ones(3).sum() * 2
    >>> waits
    []
    """
    waits: list[str] = []
    _notes.append(waits)
    try:
        yield waits
    finally:
        _notes.pop()


@contextmanager
def copies_to_device() -> Iterator[list[int]]:
    """Note the bytes of every copy from the host."""
    sizes: list[int] = []
    _copies.append(sizes)
    try:
        yield sizes
    finally:
        _copies.pop()


def _waits(kind: str) -> None:
    if _notes:
        caller = next(f for f in reversed(traceback.extract_stack()) if f.filename != __file__)
        for waits in _notes:
            waits.append(f"{kind} at {caller.filename}:{caller.lineno}")


class ndarray:
    """An array of the stand-in library, around a NumPy array that nobody outside may touch."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("made by the library's functions only")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion of a stand-in array to a NumPy array; use get()")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} called with a stand-in array")

    def get(self) -> np.ndarray:
        """A copy on the host."""
        _waits("get")
        return self._host.copy()

    def item(self) -> Any:
        _waits("item")
        return self._host.item()

    def tolist(self) -> Any:
        _waits("tolist")
        return self._host.tolist()

    @property
    def data(self) -> Any:
        """Where the array begins, as CuPy's arrays say it."""
        return SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def T(self) -> ndarray:
        return wrap(self._host.T)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def dtype(self) -> np.dtype:
        return self._host.dtype

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def flags(self) -> Any:
        return self._host.flags

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> ndarray:
        return wrap(self._host[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[_index(index)] = _inside(value)

    def __float__(self) -> float:
        _waits("float")
        return float(self._host)

    def __int__(self) -> int:
        _waits("int")
        return int(self._host)

    def __index__(self) -> int:
        _waits("index")
        return operator.index(self._host)

    def __bool__(self) -> bool:
        _waits("bool")
        return bool(self._host)

    def __repr__(self) -> str:
        _waits("repr")
        return f"standin.{self._host!r}"


def wrap(host: Any) -> ndarray:
    """A stand-in array around a NumPy array or number, without a copy."""
    x = object.__new__(ndarray)
    x._host = np.asarray(host)
    return x


def _inside(x: Any) -> Any:
    # What an operation may be given: stand-in arrays and numbers, never an array of NumPy.
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, (tuple, list)):
        return type(x)(_inside(item) for item in x)
    if isinstance(x, np.ndarray):
        raise TypeError("a NumPy array among stand-in arrays; use asarray()")
    return x


def _index(index: Any) -> Any:
    if isinstance(index, list):
        raise TypeError("a list as an index: every use copies it to the device")
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, ndarray) and part.dtype.kind == "b":
            _waits("mask")
    return _inside(index)


def _outside(x: Any) -> Any:
    if isinstance(x, (np.ndarray, np.generic)):
        return wrap(x)
    if isinstance(x, (tuple, list)):
        return type(x)(_outside(item) for item in x)
    return x


def _function(name: str) -> Callable[..., Any]:
    host = getattr(np, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out")
        if (
            name in WAITING
            or (name == "where" and len(args) == 1)
            or (name == "average" and kwargs.get("weights") is not None)
            or (name == "repeat" and isinstance(args[1], ndarray))
        ):
            _waits(name)
        if name in FROM_HOST:
            first, *rest = args
            inside = isinstance(first, ndarray)
            if name == "asarray" and inside and kwargs.get("dtype") in (None, first.dtype):
                return first
            if not inside:
                for sizes in _copies:
                    sizes.append(np.asarray(first).nbytes)
            result = host(first._host if inside else np.array(first), *rest, **kwargs)
        else:
            result = host(*(_inside(a) for a in args), **{k: _inside(v) for k, v in kwargs.items()})
        if name in ("empty", "empty_like"):
            poison(result)
        return out if isinstance(out, ndarray) else _outside(result)

    call.__name__ = name
    return call


def poison(host: np.ndarray) -> np.ndarray:
    """Fill a NumPy array with what must never be read: NaN, or a number far outside any range."""
    kind = host.dtype.kind
    host.fill(np.nan if kind == "f" else np.iinfo(host.dtype).max if kind in "iu" else True)
    return host


def poison_empty(monkeypatch: Any) -> None:
    """Make NumPy's `empty` give poisoned memory too, for one test."""
    for name in ("empty", "empty_like"):
        allocate = getattr(np, name)
        monkeypatch.setattr(np, name, lambda *a, allocate=allocate, **k: poison(allocate(*a, **k)))


def _at(name: str) -> Callable[..., None]:
    def at(x: ndarray, indices: Any, b: Any) -> None:
        getattr(np, name).at(_inside(x), _index(indices), _inside(b))

    return at


def _method(name: str) -> Callable[..., Any]:
    def call(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        if name in WAITING:
            _waits(name)
        host = getattr(self._host, name)
        return _outside(host(*(_inside(a) for a in args), **{k: _inside(v) for k, v in kwargs.items()}))

    call.__name__ = name
    return call


def _operator(name: str, reflected: bool) -> Callable[..., ndarray]:
    function = getattr(operator, name)

    def call(self: ndarray, other: Any) -> ndarray:
        a, b = self._host, _inside(other)
        return wrap(function(b, a) if reflected else function(a, b))

    return call


def _unary(name: str) -> Callable[..., ndarray]:
    function = getattr(operator, name)
    return lambda self: wrap(function(self._host))


def _in_place(name: str) -> Callable[..., ndarray]:
    function = getattr(operator, f"i{name.strip('_')}")  # iadd, imul, iand …

    def call(self: ndarray, other: Any) -> ndarray:
        function(self._host, _inside(other))
        return self

    return call


class Generator:
    """The random numbers of the library: those of NumPy's generator with the same seed."""

    def __init__(self, seed: Any) -> None:
        self._host = np.random.default_rng(seed)


def _draw(name: str) -> Callable[..., ndarray]:
    def call(self: Generator, *args: Any, **kwargs: Any) -> ndarray:
        return wrap(getattr(self._host, name)(*args, **kwargs))

    return call


def _library() -> ModuleType:
    library = ModuleType("standin", "A stand-in for CuPy.")
    for name in (FUNCTIONS + UFUNCS).split():
        setattr(library, name, _function(name))
    for name in AT:
        getattr(library, name).at = _at(name)
    for name in CONSTANTS.split():
        setattr(library, name, getattr(np, name))
    for name in METHODS.split():
        setattr(ndarray, name, _method(name))
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
        short = name.strip("_")
        setattr(ndarray, f"__{short}__", _operator(name, reflected=False))
        setattr(ndarray, f"__r{short}__", _operator(name, reflected=True))
        setattr(ndarray, f"__i{short}__", _in_place(name))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__{name}__", _operator(name, reflected=False))
    for name in ("neg", "pos", "abs", "invert"):
        setattr(ndarray, f"__{name}__", _unary(name))
    for name in ("random", "standard_normal", "integers", "uniform", "exponential"):
        setattr(Generator, name, _draw(name))
    ndarray.__module__ = Generator.__module__ = "standin"  # where `kernels.array.namespace` looks
    library.linalg = ModuleType("standin.linalg")
    library.linalg.svd = lambda a, full_matrices=True: tuple(map(wrap, np.linalg.svd(_inside(a), full_matrices)))
    library.ndarray = ndarray
    library.random = ModuleType("standin.random")
    library.random.Generator = Generator
    library.random.default_rng = Generator
    return library


standin = sys.modules["standin"] = _library()
BACKEND = Backend("standin", standin)
