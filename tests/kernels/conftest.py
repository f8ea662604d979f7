"""Every test of an operation runs on each of its forms, and on memory that is full of NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels import get_backend
from kernels.backend import OPS
from tests import standin


class Form:
    """One implementation of the table of operations, and the way of arrays to it and back."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "standin":
            backend = standin.BACKEND
        else:
            backend = get_backend("numpy", OPS if name == "reference" else ())
        self.backend = backend
        self.ops = backend.ops

    def put(self, x: Any) -> Any:
        """A copy that cannot be written to: what an operation may not change."""
        host = np.array(x)
        host.flags.writeable = False
        return standin.wrap(host) if self.name == "standin" else host

    def scratch(self, x: Any) -> Any:
        """A copy that may be overwritten."""
        return standin.wrap(np.array(x)) if self.name == "standin" else np.array(x)

    def host(self, x: Any) -> np.ndarray:
        """Back in NumPy."""
        if self.name == "standin":
            assert isinstance(x, standin.ndarray), f"{type(x)} came out of the stand-in library"
        return self.backend.to_numpy(x)

    def number(self, x: Any) -> float:
        """A sum that an operation gave: a Python float, on a device an array of no axes that nobody waited for."""
        if self.name == "standin":
            assert isinstance(x, standin.ndarray), f"{type(x)} came out of the stand-in library"
            assert x.shape == ()
            assert x.dtype == np.float64
        else:
            assert type(x) is float
        return self.backend.read(x)[0]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that asks for a `form` all of them.

    These are the reference, the fast form, and the reference on an array library that is not NumPy. Where a
    fast form works in pieces, the test file says in PIECES how small to make them, so that several make up
    any array here: that is a form of its own.
    """
    if "form" in metafunc.fixturenames:
        pieces = ["pieces"] if hasattr(metafunc.module, "PIECES") else []
        metafunc.parametrize("form", ["reference", "fast", *pieces, "standin"], indirect=True)


@pytest.fixture
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """An implementation of the table of operations."""
    if request.param == "pieces":
        for name, size in request.module.PIECES.items():
            monkeypatch.setattr(name, size)
    return Form(request.param)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `empty` gives is full of NaN, so that nothing can rely on what happens to be there."""
    standin.poison_empty(monkeypatch)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)
