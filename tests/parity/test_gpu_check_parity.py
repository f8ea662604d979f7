"""The parts of the GPU check that compare with PyTorch, on the CPU: equal work on both sides, and mistakes noticed."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import gpu_check
from benchmarks.common import Size
from kernels import get_backend

pytestmark = pytest.mark.parity
TINY = Size(vocab_size=9, n_positions=6, n_layer=2, n_head=2, n_embd=8, batch_size=3)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setitem(gpu_check.SIZES, "mini", TINY)
    return gpu_check.Gpu(lambda precision: get_backend("numpy"), "cpu", None)


def test_steps(gpu):
    found = gpu_check.steps(gpu, quick=True)
    assert found.failures == []
    ours, theirs = (np.array([float(row[i]) for row in found.rows]) for i in (2, 3))
    assert [row[1] for row in found.rows] == list(gpu_check.PRECISIONS)
    assert (ours < 1e-5).all(), "gradients under other names, or transposed"
    assert theirs[0] < 1e-5 < 1e-3 < theirs[2], "PyTorch's bfloat16 does not show"


def test_a_wrong_gradient_and_another_loss_are_noticed(gpu, monkeypatch):
    def backend(precision):
        made = get_backend("numpy")
        right = made.ops.linear_backward_weight
        made.ops.linear_backward_weight = lambda dy, x, out=None: right(dy, x, out).__imul__(np.float32(1.05))
        return made

    failures = gpu_check.steps(gpu_check.Gpu(backend, "cpu", None), quick=True).failures
    assert sum("a gradient is off" in failure for failure in failures) >= 2, failures
    seeds = itertools.count()
    monkeypatch.setattr(gpu_check, "gpt", lambda size, backend="numpy": other(size, backend, seeds))
    failures = gpu_check.steps(gpu, quick=True).failures
    assert any("losses differ" in failure for failure in failures), failures


def other(size, backend, seeds):
    """Models that start from different weights."""
    from minigpt import GPT, GPTConfig

    model = GPT(GPTConfig(**size.sizes), seed=0, backend=backend)
    model.wte.data *= 1 + next(seeds)
    return model


def test_training(gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(gpu_check, "seconds_of", lambda call, synchronize, *rest, **more: calls.append(call()) or 2e-3)
    found = gpu_check.training(gpu, quick=True)
    assert found.failures == []
    assert [row[:5] for row in found.rows] == [["mini", p, "2.00", "2.00", ""] for p in gpu_check.PRECISIONS]
    assert found.rows[0][5] == "1.00 (1.00-1.00)"
    assert len(calls) == 3 * 2 * 3


def test_generation(gpu, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setitem(gpu_check.SIZES, "mini", Size(9, 40, 1, 2, 8, 1))
    monkeypatch.setattr(gpu_check, "seconds_of", lambda call, synchronize, *rest, **more: 16e-3)
    found = gpu_check.generation(gpu, quick=True)
    assert found.failures == []
    assert found.rows == [["mini", "1.000", "1.000", "1.00 (1.00-1.00)"]]
