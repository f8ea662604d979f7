"""The check of a GPU, without one: its parts on a fake CuPy, what they must notice, and how all is put together."""

import itertools
import json
import math
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks import gpu_check
from benchmarks.common import Size
from benchmarks.gpu_check import Found, Gpu, HostArrays, check, main, report, seconds_of, worst_error
from kernels import get_backend
from kernels.cuda.blas import StridedGemm
from kernels.cuda.cupy_device import CupyDevice
from tests import standin
from tests.cuda import cases, emulated, fake_cupy

needs_gxx = pytest.mark.skipif(emulated.COMPILER is None, reason="compiles CUDA C++ with g++, which is not installed")


ALLOWED = [True]


@contextmanager
def waiting(allowed):
    """cupyx.allow_synchronize for the stand-in library."""
    ALLOWED.append(allowed)
    try:
        yield
    finally:
        ALLOWED.pop()


@pytest.fixture
def gpu(monkeypatch):
    def waits(kind):
        if not ALLOWED[-1]:
            raise RuntimeError(f"device synchronised: {kind}")

    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(standin, "_waits", waits)
    monkeypatch.setitem(gpu_check.SIZES, "mini", Size(9, 4, 1, 2, 8, 2))
    return Gpu(lambda precision: get_backend("cupy", precision=precision), "cpu", waiting)


# ------------------------------------------------------------------------------------------ the parts


@needs_gxx
def test_kernels_are_run_and_compared(gpu, monkeypatch):
    few = [c for c in cases.CASES if c.source in ("adamw", "embedding", "linear", "attention")]
    few = [c._replace(shapes=c.shapes[:2]) for c in few if "v3_d" not in c.kernel]
    monkeypatch.setattr(cases, "CASES", few)
    found = gpu_check.kernels(gpu, quick=False)
    assert found.failures == []
    assert [row[0] for row in found.rows] == [c.kernel + v for c in few for v in c.versions]
    assert all(0 <= float(row[2]) < gpu_check.KERNEL_BOUND for row in found.rows)
    assert any(float(row[2]) > 0 for row in found.rows)


@needs_gxx
def test_a_wrong_kernel_and_one_that_fails_are_failures(gpu, monkeypatch):
    case = next(c for c in cases.CASES if c.kernel == "bias_add_")

    def wrong(*arguments):
        results = case.run(*arguments)
        return {name: (got + 1e-3, wanted) for name, (got, wanted) in results.items()}

    def fails(*arguments):
        raise RuntimeError("an illegal address\nwas met")

    def unfinished(*arguments):
        return {"y": (np.array([np.nan], np.float32), np.zeros(1))}

    broken = [case._replace(kernel="bias_add_v1", versions=("",), shapes=((3, 5),), run=run)
              for run in (wrong, fails, unfinished, case.run)]  # fmt: skip
    monkeypatch.setattr(cases, "CASES", broken)
    found = gpu_check.kernels(gpu, quick=True)
    assert len(found.rows) == 4
    assert len(found.failures) == 4, found.failures
    assert "RuntimeError: an illegal address" in found.failures[1]
    assert all("\n" not in failure for failure in found.failures)


def test_memory_goes_there_and_back(gpu):
    class Device:
        def launch(self, source, kernel, grid, block, args, shared):
            self.args = args
            for pointer in args[:-1]:  # every array's first number, where the kernel would find it
                fake_cupy.memory(int(pointer), fake_cupy.F32, 1, 1, 1, 0, 1)[...] += 1
            assert args[-1] is number

    backend, number = gpu.backend("float32"), np.int32(4)
    backend.device = Device()
    q, k = np.zeros((3, 2, 4), dtype=np.float32).transpose(1, 0, 2)  # views of one array
    room = np.zeros(9, dtype=np.float32)
    frozen = np.zeros(3, dtype=np.float32)
    frozen.flags.writeable = False
    columns = np.zeros((2, 3), dtype=np.float32, order="F")
    odd = room[1:]
    HostArrays(backend).launch("x", "y", (1,), (1,), (q, k, odd, frozen, columns[:, 1:], number))
    assert q[0, 0] == k[0, 0] == odd[0] == columns[0, 1] == 1
    assert q.sum() + k.sum() + room.sum() + columns.sum() == 4
    assert frozen.sum() == 0
    there = backend.device.args
    assert there[1] - there[0] == k.ctypes.data - q.ctypes.data
    assert int(there[2]) % 16 == odd.ctypes.data % 16 or int(backend.asarray(room).data.ptr) % 16


@needs_gxx
def test_products_show_their_precision(gpu, monkeypatch):
    assert gpu_check.products(gpu, quick=True).failures == []
    monkeypatch.setattr(CupyDevice, "_operand", StridedGemm._operand)
    monkeypatch.setattr(CupyDevice, "__init__", lambda self, precision: CupyDevice.plain(self))

    def plain(self):
        self.precision, self.xp = "float32", standin.standin
        self._cublas, self._type, self._result_type, self._compute = self.xp.cuda.cublas, 0, 0, 68
        self._one, self._zero = np.ones(1, np.float32), np.zeros(1, np.float32)

    monkeypatch.setattr(CupyDevice, "plain", plain, raising=False)
    failures = gpu_check.products(gpu, quick=True).failures
    assert len(failures) == 6, "tf32 and bfloat16 that compute in float32 have to be noticed"
    assert not any("float32 products" in failure for failure in failures if failure.startswith("float32"))


@needs_gxx
def test_waits_are_counted(gpu, monkeypatch):
    found = gpu_check.waits(gpu, quick=True)
    assert found.failures == []
    assert [row[1] for row in found.rows] == ["1", "1", "1"]
    from minigpt.optim import AdamW

    update = AdamW.update
    monkeypatch.setattr(AdamW, "update", lambda self, param, *rest: (float(param[0]), update(self, param, *rest)))
    found = gpu_check.waits(gpu, quick=True)
    assert len(found.failures) == 3
    assert all("device synchronised: float" in failure for failure in found.failures)


@needs_gxx
def test_speed_of_kernels(gpu, monkeypatch):
    monkeypatch.setattr(gpu_check, "attention_rows", lambda *arguments: [["PyTorch's", "", "", "", ""]])
    monkeypatch.setattr(gpu_check, "seconds_of", lambda call, synchronize: (call(), synchronize(), 1e-3)[2])
    found = gpu_check.speed(gpu, quick=True)
    assert found.failures == []
    assert found.rows[-1][0] == "PyTorch's"
    assert {"name", "microseconds", "gigabytes_a_second", "share_of_copy", "gflops"} == set(found.data["kernels"][0])
    assert found.data["ceilings"]["copy"] == 2 * 4 * 4 * 256**2 / 1e-3
    assert found.data["ceilings"]["tf32"] == 2 * 256**3 / 1e-3


def test_errors():
    assert worst_error(np.array([1.0, 2.0], np.float32), np.array([1.0, 2.5])) == 0.2
    assert worst_error(np.zeros(2, np.float32), np.zeros(2)) == 0.0
    assert worst_error(np.array([np.nan], np.float32), np.ones(1)) == math.inf
    assert worst_error(np.array([np.inf], np.float32), np.ones(1)) == math.inf
    assert worst_error(np.zeros((0, 3), np.float32), np.zeros((0, 3))) == 0.0


# ------------------------------------------------------------------------------------------ times


def test_times_are_those_of_work_that_is_done():
    """Calls only queue work; what is done by then shows when somebody waits."""
    now, queued, calls = 0.0, 0.0, 0

    def call():
        nonlocal now, queued, calls
        now, queued, calls = now + 1e-4, queued + 1e-2, calls + 1

    def synchronize():
        nonlocal now, queued
        now, queued = now + queued, 0.0

    measured = seconds_of(call, synchronize, least=0.1, rounds=3, clock=lambda: now)
    assert measured == pytest.approx(1.01e-2)
    assert calls == 2 + 2 + 3 * math.ceil(0.1 / 1.01e-2)


def test_the_median_of_the_rounds_counts():
    durations = iter([1.0, 1.0, *(d for d in (5.0, 1.0, 2.0))])
    ticks = itertools.count()
    times = []

    def clock():
        if next(ticks) % 2 == 0:
            times.append(sum(times[-1:]))
        else:
            times.append(times[-1] + next(durations))
        return times[-1]

    assert seconds_of(lambda: None, lambda: None, least=0.0, rounds=3, clock=clock) == 2.0


def test_sides_take_turns_and_are_compared_round_by_round(monkeypatch):
    order = []
    each = {"ours": iter([1.0, 2.0, 1.0]), "eager": iter([2.0, 6.0, 1.5])}

    def seconds(call, synchronize, least, rounds):
        call()
        return next(each[order[-1]])

    monkeypatch.setattr(gpu_check, "seconds_of", seconds)
    times = gpu_check.in_rounds({side: (lambda side=side: order.append(side), None) for side in each})
    assert order == ["ours", "eager"] * 3
    assert times == {"ours": [1.0, 2.0, 1.0], "eager": [2.0, 6.0, 1.5]}
    assert gpu_check.ratio(times, "eager") == "2.00 (1.50-3.00)"
    assert gpu_check.ratio(times, "compiled") == ""


# ------------------------------------------------------------------------------------------ all together


def part(title, *failures, rows=()):
    return {**gpu_check.asdict(Found(title, "About it.", ["a", "b"], list(rows), list(failures)))}


def test_one_part_that_fails_leaves_the_others(capsys):
    results = check(["one", "two", "three"], lambda name, left: part(name, *(["bad"] if name == "two" else [])))
    assert [bool(r["failures"]) for r in results.values()] == [False, True, False]
    assert "two: bad" in capsys.readouterr().err


def test_parts_for_which_there_is_no_time_have_failed():
    now = iter(np.cumsum([0, 0, 100, 0, 450, 0, 0]).tolist())
    given = []
    results = check(
        ["one", "two", "three"], lambda name, left: given.append(left) or part(name), 500, lambda: next(now)
    )
    assert given == [500, 400]
    assert results["three"]["failures"] == ["not run: the time was up"]
    assert [r["seconds"] for r in results.values()] == [100, 450, 0]


def test_what_a_part_raises_is_its_failure(monkeypatch, capsys):
    def broken(gpu, quick):
        raise ValueError("no such thing\nat all")

    monkeypatch.setitem(gpu_check.PARTS, "kernels", broken)
    assert gpu_check.run_part("kernels", lambda: None, False)["failures"] == ["ValueError: no such thing"]
    assert "Traceback" in capsys.readouterr().err
    assert gpu_check.run_part("products", lambda: 1 / 0, False)["failures"] == ["ZeroDivisionError: division by zero"]


@pytest.mark.parametrize(("program", "failure"), [
    ("import os; os.abort()", "its process ended with exit code -6"),
    ("import time; time.sleep(60)", "stopped after 1 s"),
    ("print('hello'); print('{\"failures\": [], \"rows\": []}')", None),
])  # fmt: skip
def test_a_part_that_crashes_or_hangs(monkeypatch, program, failure):
    run = subprocess.run
    monkeypatch.setattr(
        gpu_check.subprocess, "run", lambda command, **settings: run([sys.executable, "-c", program], **settings)
    )
    result = gpu_check.run_apart("kernels", False, 1.0 if "sleep" in program else 60.0)
    assert result["failures"] == ([failure] if failure else [])


def test_the_report():
    parts = {
        "kernels": {**part("Kernels", rows=[["gelu_v1", "1e-7"]]), "seconds": 12.3},
        "steps": {**part("Steps", "a gradient is off"), "seconds": 4.0},
    }
    text = report({"quick": True, "gpu": "A GPU, CUDA 13.0", "parts": parts})
    assert text.startswith("# GPU check, quick\n\nA GPU, CUDA 13.0\n")
    assert "| kernels | 12 | as it should be |" in text
    assert "| steps | 4 | 1 failures |" in text
    assert "| a | b |\n| --- | --- |\n| gelu_v1 | 1e-7 |" in text
    assert "- **a gradient is off**" in text


@pytest.mark.parametrize("failures", [[], ["bad"]])
def test_exit_code_and_files(monkeypatch, tmp_path, capsys, failures):
    monkeypatch.setattr(gpu_check, "get_backend", lambda name: None)
    monkeypatch.setattr(gpu_check, "run_apart", lambda name, quick, left: part(name, *failures))
    monkeypatch.setattr(gpu_check, "gpu_line", lambda: "A GPU")
    monkeypatch.setattr("benchmarks.common.RESULTS", tmp_path)
    assert main(["--part", "kernels"]) == (1 if failures else 0)
    record = json.loads((tmp_path / "gpu_check_quick.json").read_text())
    assert list(record["parts"]) == ["kernels"]
    assert main([]) == (1 if failures else 0)
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert list(record["parts"]) == list(gpu_check.PARTS)
    assert record["kernels"] == []
    assert "# GPU check" in (tmp_path / "gpu_check.md").read_text()


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["gpu_check: backend 'cupy' needs the package cupy: pip install 'minigpt[gpu]'"]
