"""The table of operations, switching to references, and what is said where a backend cannot be had."""

import importlib
import inspect
import pickle
import pkgutil
import sys
import tracemalloc
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import kernels
from kernels import Backend, get_backend
from kernels.array import namespace, number
from kernels.backend import OPS
from tests.standin import BACKEND, copies_to_device, standin, synchronisations

FUNCTIONS = [name for functions in OPS.values() for name in functions]


def implementations(backend):
    return {name: getattr(backend.ops, name) for name in FUNCTIONS}


def test_table_names_functions_that_exist():
    for op, functions in OPS.items():
        module = importlib.import_module(f"kernels.{op}")
        for name in functions:
            assert inspect.isfunction(getattr(module, name)), f"{op}.{name}"
    assert len(FUNCTIONS) == len(set(FUNCTIONS))


def test_every_fast_form_is_in_the_table():
    found = 0
    for info in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"kernels.{info.name}")
        for name, value in vars(module).items():
            if name.endswith("_fast") and inspect.isfunction(value):
                assert name.removesuffix("_fast") in OPS[info.name], name
                assert getattr(get_backend("numpy").ops, name.removesuffix("_fast")) is value
                assert inspect.signature(value).parameters.keys() == (
                    inspect.signature(getattr(module, name.removesuffix("_fast"))).parameters.keys()
                ), f"{name} takes other arguments than its reference"
                found += 1
    assert found > 10


def test_reference_has_no_fast_form():
    for backend in (get_backend("numpy", OPS), get_backend("numpy").with_reference(*OPS), BACKEND):
        for name, function in implementations(backend).items():
            assert function.__name__ == name


def test_one_file_switches_as_a_whole():
    fast = get_backend("numpy")
    for op, functions in OPS.items():
        mixed = fast.with_reference(op)
        for name, function in implementations(mixed).items():
            if name in functions:
                assert function.__name__ == name
            else:
                assert function is getattr(fast.ops, name)
        assert mixed.reference == {op}
        assert op in repr(mixed)
    assert not fast.reference, "with_reference changed the backend it was called on"
    assert fast.with_reference("gelu").with_reference("linear").reference == {"gelu", "linear"}
    assert get_backend(fast, ["gelu"]).reference == {"gelu"}


def test_get_backend_gives_back_a_backend():
    backend = get_backend("numpy")
    assert get_backend(backend) is backend
    assert get_backend().xp is np
    assert get_backend().name == "numpy"


def test_backends_are_values():
    first, second = get_backend("numpy"), get_backend("numpy", ["gelu"])
    assert first.ops is not second.ops
    assert first.ops.bias_gelu_forward is not second.ops.bias_gelu_forward


def test_unknown_names_are_told_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'torch'.*numpy and cupy"):
        get_backend("torch")
    with pytest.raises(ValueError, match=r"'softmax'.*linear.*attention"):
        get_backend("numpy", ["softmax"])
    with pytest.raises(ValueError, match="'adamw_update'"):
        get_backend("numpy").with_reference("adamw_update")


def test_pickling_keeps_the_references():
    backend = pickle.loads(pickle.dumps(get_backend("numpy", ["attention", "gelu"])))
    assert backend.reference == {"attention", "gelu"}
    assert backend.xp is np
    assert implementations(backend) == implementations(get_backend("numpy", ["gelu", "attention"]))


def one_line(error):
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("backend 'cupy' needs")
    assert error.value.__cause__ is None
    return str(error.value)


def test_cupy_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match="cupy") as error:
        get_backend("cupy")
    assert "pip install" in one_line(error)


def test_cupy_without_a_gpu(monkeypatch):
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(ValueError, match="cupy") as error:
        get_backend("cupy")
    assert "GPU" in one_line(error)


@pytest.mark.parametrize("backend", [get_backend("numpy"), BACKEND], ids=repr)
def test_arrays_there_and_back(backend):
    host = np.arange(6.0).reshape(2, 3)
    x = backend.asarray(host)
    assert namespace(x) is backend.xp
    assert backend.asarray(x) is x
    assert backend.asarray([1, 2], dtype="float32").dtype == np.float32
    assert type(backend.to_numpy(x)) is np.ndarray
    assert (backend.to_numpy(x) == host).all()
    assert backend.empty((2, 3), "float32").shape == (2, 3)
    assert backend.empty(4, np.dtype("float64")).dtype == np.float64
    assert (backend.to_numpy(backend.zeros((2, 1), "float32")) == 0).all()
    draws = [backend.to_numpy(backend.rng(seed).random(5)) for seed in (1, 1, 2, [1, 2])]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    assert (draws[2] != draws[3]).any()


@pytest.mark.parametrize("backend", [get_backend("numpy"), BACKEND], ids=repr)
def test_one_copy_there_and_one_read_back(backend):
    host = [np.arange(6, dtype=np.uint16).reshape(2, 3), np.array([[-100], [4]], dtype=np.int32), np.zeros(0, int)]
    with copies_to_device() as copies:
        there = backend.send(*host)
    assert copies == ([] if backend.xp is np else [8 * 8])
    for x, original in zip(there, host, strict=True):
        assert namespace(x) is backend.xp
        assert x.shape == original.shape
        assert (backend.to_numpy(x) == original).all()
        assert x is original if backend.xp is np else x.dtype == np.int64
    x = backend.asarray(np.array([0.1, 2.0], dtype=np.float32))
    with synchronisations() as waits:
        numbers = backend.read(x.sum(), 3, x[0] * 2, 0.1)
        backend.synchronize()
    assert len(waits) == (backend.xp is not np)
    assert all(type(value) is float for value in numbers)
    assert numbers[1] == 3.0
    assert numbers[2] == float(np.float32(0.1) * 2)
    assert numbers[3] == 0.1


@pytest.mark.parametrize("backend", [get_backend("numpy"), BACKEND], ids=repr)
@pytest.mark.parametrize("running", [False, True])
def test_memory(backend, running):
    if running:
        tracemalloc.start()
    try:
        with backend.memory() as meter:
            before = meter.now()
            x = backend.zeros(100_000, "float32")
            y = backend.zeros(50_000, "float32")
            del y
            assert abs(meter.now() - before - 400_000) < 20_000
            assert abs(meter.peak() - before - 600_000) < 20_000
            assert x.nbytes == 400_000
        assert tracemalloc.is_tracing() == running
    finally:
        tracemalloc.stop()


def test_number():
    assert type(number(np.float32(0.5))) is float
    assert type(number(np.zeros(()))) is float
    there = number(standin.ones(2, dtype="float32").sum())
    assert there.shape == ()
    assert there.dtype == np.float64


def test_namespace():
    assert namespace(np.zeros(1)) is np
    assert namespace(standin.zeros(1)) is standin


def test_a_backend_of_ones_own():
    assert Backend("mine", np, "_fast", ["gelu"]).with_reference("linear").name == "mine"
