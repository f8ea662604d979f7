"""Everything that only a GPU can tell, in one run of under ten minutes.

Whether every kernel is right, against float64; whether matrix products and whole steps are as exact as PyTorch's at the
same precision; how often a step waits for the GPU; what it takes of memory; and how fast all of it is, beside PyTorch
and beside what this GPU reaches on a large copy and a large product.

Each part runs in a process of its own: one that fails, crashes or hangs leaves the others their results. Needs CuPy and
a CUDA GPU; the comparisons need PyTorch, the one of generation transformers too. Exit codes: 0 all is as it should be,
1 something is not, 2 there is no GPU.

    python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --quick            # small, without torch.compile
    python -m benchmarks.gpu_check --part kernels     # only this one; may be given again
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import ROOT, SIZES, Size, machine, markdown_table, note, write_results
from kernels import Backend, get_backend
from kernels.array import Array

MODULE = "benchmarks.gpu_check"
BUDGET = 570.0
"""Seconds that all parts together may take."""

GPT2 = Size(vocab_size=50257, n_positions=1024, n_layer=12, n_head=12, n_embd=768, batch_size=16)
PRECISIONS = ("float32", "tf32", "bfloat16")
COMPARED_WITH = ("torch", "transformers")

KERNEL_BOUND = 3e-6
"""Largest error of a kernel, relative to the largest number: the tests' own on the CPU."""

PRODUCT_BOUNDS = {"float32": (0.0, 3e-6), "tf32": (1e-5, 3e-3), "bfloat16": (3e-4, 2e-2)}
"""Smallest and largest error of a matrix product: rounding that does not show means that the setting does nothing."""

STEP_FACTOR, STEP_FLOOR = 3.0, 1e-5
"""A gradient may be off by so many times what PyTorch's is at the same precision, or by so little in any case."""

LOSS_BOUNDS = {"float32": 2e-4, "tf32": 5e-3, "bfloat16": 3e-2}
"""Relative difference between the sides' losses in the first steps of training."""

GOALS = {"float32": (0.9, 1.2), "tf32": (0.9, 1.2), "bfloat16": (0.65, 1.1)}
"""Least and wanted ratio, PyTorch eager's time over ours, of a GPT-2 step."""

LESSON_GOALS = (2.0, 5.0)  # of a lesson-size step that is captured as a graph
BANDWIDTH_GOALS = (0.75, 0.92)  # of the measured copy
ATTENTION_GOALS = (0.5, 0.85)  # of PyTorch's attention


@dataclass
class Found:
    """What a part has found.

    Attributes
    ----------
    title, text : str
    header, rows
        Of its table.
    failures : list of str
        One line for everything that is not as it should be.
    data : dict
        More for the record.
    """

    title: str
    text: str
    header: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def require(self, right: bool, failure: str) -> None:
        """Note a failure unless all is right."""
        if not right:
            self.failures.append(failure)


@dataclass(frozen=True)
class Gpu:
    """What the parts run on; a test gives one that is none.

    Attributes
    ----------
    backend : (precision) -> Backend
    torch : str
        PyTorch's name of the device.
    waiting : (allowed) -> context manager
        Within it, waiting for the device is allowed or an error.
    """

    backend: Callable[[str], Backend]
    torch: str
    waiting: Callable[[bool], AbstractContextManager[Any]]


def cupy_gpu() -> Gpu:
    """The GPU of this machine."""
    import cupyx

    return Gpu(lambda precision: get_backend("cupy", precision=precision), "cuda", cupyx.allow_synchronize)


# ---------------------------------------------------------------------------------------------- kernels


class HostArrays:
    """A device that takes NumPy arrays: memory goes to the GPU before a launch and comes back after it.

    Views keep their place in the memory that they share, and their distance from a multiple of 16 bytes, which decides
    how a kernel may load them.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared: int = 0,
    ) -> None:
        """See `kernels.cuda.device.Device.launch`."""
        blocks: dict[int, tuple[np.ndarray, Array, int]] = {}
        given = []
        for x in args:
            if isinstance(x, np.ndarray):
                whole = _whole(x)
                if id(whole) not in blocks:
                    shift = whole.ctypes.data % 16
                    content = np.concatenate([np.zeros(shift, np.uint8), whole.reshape(-1, order="A").view(np.uint8)])
                    blocks[id(whole)] = whole, self.backend.asarray(content), shift
                whole, there, shift = blocks[id(whole)]
                x = np.uint64(there.data.ptr + shift + x.ctypes.data - whole.ctypes.data)
            given.append(x)
        device: Any = self.backend.device
        device.launch(source, kernel, grid, block, tuple(given), shared)
        for whole, there, shift in blocks.values():
            if whole.flags.writeable:
                whole.reshape(-1, order="A").view(np.uint8)[...] = self.backend.to_numpy(there)[shift:]


def _whole(x: np.ndarray) -> np.ndarray:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


def worst_error(got: np.ndarray, wanted: Any) -> float:
    """Largest difference relative to the largest number; infinite where something is not finite."""
    wanted = np.asarray(wanted)
    off = np.abs(got.astype(np.float64) - wanted)
    if not np.isfinite(off).all():
        return math.inf
    return float(off.max(initial=0.0) / max(np.abs(wanted).max(initial=0.0), 1e-30))


def kernels(gpu: Gpu, quick: bool) -> Found:
    """Every version of every kernel against the reference in float64, on the shapes of the tests."""
    from tests.cuda.cases import CASES

    found = Found(
        "Kernels against float64",
        f"Largest error relative to the largest number, over all shapes; {KERNEL_BOUND:.0e} is allowed.",
        ["kernel", "shapes", "error", "on the shape"],
    )
    device = HostArrays(gpu.backend("float32"))
    for case in CASES:
        for version in case.versions:
            worst, where, kernel = 0.0, "", case.kernel + version
            shapes = case.shapes[:2] if quick else case.shapes
            for shape in shapes:
                try:
                    results = case.run(device, kernel, np.random.default_rng(0), *shape)
                    off = max(worst_error(got, wanted) for got, wanted in results.values())
                except Exception as error:  # the other kernels still have their turn
                    found.failures.append(f"{kernel} on {shape}: {one_line(error)}")
                    off = math.inf
                if off >= worst:
                    worst, where = off, str(shape)
            found.rows.append([kernel, len(shapes), f"{worst:.1e}", where])
            found.require(worst < KERNEL_BOUND, f"{kernel} on {where} is off by {worst:.1e}")
    return found


def products(gpu: Gpu, quick: bool) -> Found:
    """Matrix products at every precision and layout against float64."""
    found = Found(
        "Matrix products against float64",
        "Largest error over operands as they lie, transposed, in batches and accumulated; a precision must show.",
        ["precision", "shape", "error", "allowed"],
    )
    rng = np.random.default_rng(0)
    shapes = [((), 33, 65, 130), ((5,), 64, 48, 96), ((1, 3), 17, 33, 64)]
    for precision, (batch, m, n, k) in itertools.product(PRECISIONS, shapes):
        low, high = PRODUCT_BOUNDS[precision]
        backend = gpu.backend(precision)
        device: Any = backend.device
        worst, least = 0.0, math.inf
        a, b, c = (rng.standard_normal((*batch, *s), dtype=np.float32) for s in ((m, k), (k, n), (m, n)))
        exact = a.astype(np.float64) @ b
        for ta, tb, as_view, accumulate in itertools.product((False, True), repeat=4):
            x, y = (
                backend.asarray(np.ascontiguousarray(z.swapaxes(-1, -2)) if t else z) for z, t in ((a, ta), (b, tb))
            )
            flags = {"transpose_a": ta, "transpose_b": tb}
            if as_view:
                x, y = (z.swapaxes(-1, -2) if t else z for z, t in ((x, ta), (y, tb)))
                flags = {}
            out = backend.asarray(c.copy()) if accumulate else None
            got = backend.to_numpy(device.gemm(x, y, out, accumulate=accumulate, **flags))
            off = worst_error(got, exact + c if accumulate else exact)
            worst, least = max(worst, off), min(least, off)
        shape = f"{batch or ''} ({m}, {k}) @ ({k}, {n})".strip()
        found.rows.append([precision, shape, f"{worst:.1e}", f"{low:.0e} to {high:.0e}"])
        found.require(low <= least and worst <= high, f"{precision} products of {shape} are off by {worst:.1e}")
    return found


# ---------------------------------------------------------------------------------------------- whole steps


def gpt(size: Size, backend: Backend | str = "numpy") -> Any:
    """Our model."""
    from minigpt import GPT, GPTConfig

    return GPT(GPTConfig(**size.sizes), seed=0, backend=backend)


def torch_gradients(gpu: Gpu, size: Size, precision: str, batch: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's gradients of the same loss, under our names; ``"float64"`` is the truth."""
    import torch

    from benchmarks.rivals import TorchTrainer

    rival = TorchTrainer(size.sizes, gpt(size).state(), device=gpu.torch, precision=precision)
    if precision == "float64":
        rival.model.double()
    with rival.products():
        with torch.autocast(gpu.torch, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = rival.model(*rival.put(*batch))
        loss.backward()
    gradients = {}
    for name, p in rival.model.named_parameters():
        gradient = p.grad.detach().double().cpu().numpy()
        gradients[f"transformer.{name}"] = gradient.T if name.endswith(".weight") and ".c_" in name else gradient
    return gradients


def steps(gpu: Gpu, quick: bool) -> Found:
    """Gradients and the first losses of training, ours and PyTorch's at the same precision."""
    from benchmarks.ours import OurTrainer
    from benchmarks.rivals import TorchTrainer
    from benchmarks.training_speed import COMPARED, batches

    found = Found(
        "Whole steps against PyTorch",
        "The worst gradient's error against PyTorch in float64, ours and PyTorch's own at the same precision "
        f"({STEP_FACTOR:g} times that is allowed); the largest relative difference of the first {COMPARED} losses.",
        ["size", "precision", "our gradients", "PyTorch's", "losses differ by", "allowed"],
    )
    sizes = {"mini": replace(SIZES["mini"], batch_size=4)}
    if not quick:
        sizes["GPT-2's width"] = replace(GPT2, n_positions=256, n_layer=4, batch_size=2)
    for name, size in sizes.items():
        data = batches(size, COMPARED)
        truth = torch_gradients(gpu, size, "float64", data[0])
        for precision in PRECISIONS:
            backend = gpu.backend(precision)
            _, ours = gpt(size, backend).loss_and_grads(*data[0])
            theirs = torch_gradients(gpu, size, precision, data[0])
            errors = [
                max(worst_error(gradients[parameter], truth[parameter]) for parameter in truth)
                for gradients in ({p: backend.to_numpy(g) for p, g in ours.items()}, theirs)
            ]
            with OurTrainer(size.sizes, size.batch_size, 1, model=gpt(size, backend)) as trainer:
                losses = [trainer.step(*batch) for batch in data]
            rival = TorchTrainer(size.sizes, gpt(size).state(), device=gpu.torch, precision=precision)
            differ = max(abs(a / rival.step(*batch) - 1) for a, batch in zip(losses, data, strict=True))
            bound = LOSS_BOUNDS[precision]
            found.rows.append([name, precision, *(f"{e:.1e}" for e in errors), f"{differ:.1e}", f"{bound:.0e}"])
            what = f"{name}, {precision}"
            allowed = max(STEP_FACTOR * errors[1], STEP_FLOOR)
            found.require(
                errors[0] <= allowed, f"{what}: a gradient is off by {errors[0]:.1e}, {allowed:.1e} is allowed"
            )
            found.require(differ <= bound, f"{what}: losses differ by {differ:.1e}")
    return found


def replica(backend: Backend, size: Size, lora: bool = False) -> Any:
    """One rank of a training run, all of a model or LoRA on it."""
    from lessons import METHODS
    from minigpt.objectives import LanguageModelling
    from minigpt.optim import AdamW
    from minigpt.parallel import Comm, Replica
    from minigpt.parameters import FlatParameters

    model = gpt(size, backend)
    if lora:
        model = METHODS["lora"](r=8, lora_alpha=16, target_modules=["c_attn"]).apply(model, seed=0)
    parameters = AdamW.order(model.parameters(), (), 0.1)
    optimizer = AdamW(parameters, backend, (), (0.9, 0.99), 1e-8, 0.1)
    return Replica(model, LanguageModelling(), FlatParameters(parameters, backend), optimizer, Comm())


def take_steps(rank: Any, size: Size, count: int, accumulation: int = 1) -> None:
    """Steps on random windows, clipped."""
    from benchmarks.training_speed import batches

    rates = [1e-3] * len(rank.optimizer.segments)
    for i, (ids, targets) in enumerate(batches(size, count)):
        rank.step({"ids": ids, "targets": targets}, size.tokens, accumulation, i, rates, 1.0, 0)


def waits(gpu: Gpu, quick: bool) -> Found:
    """How often a training step waits for the GPU: once, to read loss and norm."""
    found = Found(
        "Waiting in a training step",
        "CuPy raises an error at every wait within a step; only the one read of loss and norm is let through.",
        ["step", "reads a step"],
    )
    size, count = replace(SIZES["mini"], batch_size=4), 3
    for name, lora, accumulation in (("all parameters", False, 1), ("accumulated", False, 2), ("LoRA", True, 1)):
        backend = gpu.backend("float32")
        try:
            rank = replica(backend, size, lora)
            take_steps(rank, size, 1, accumulation)  # the first step compiles
        except Exception as error:
            found.failures.append(f"{name}: {one_line(error)}")
            continue
        read, reads = backend.read, 0

        def counted(*values: Any, read: Any = read) -> list[float]:
            nonlocal reads
            reads += 1
            with gpu.waiting(True):
                return read(*values)

        backend.read = counted  # type: ignore[method-assign]
        try:
            with gpu.waiting(False):
                take_steps(rank, size, count, accumulation)
        except Exception as error:
            found.failures.append(f"{name}: {one_line(error)}")
            continue
        found.rows.append([name, f"{reads / count:g}"])
        found.require(reads == count, f"{name}: {reads} reads in {count} steps")
    return found


def memory(gpu: Gpu, quick: bool) -> Found:
    """The most that a training step has at once, ours and PyTorch's."""
    import torch

    from benchmarks.rivals import TorchTrainer
    from benchmarks.training_speed import batches

    found = Found(
        "Memory of a training step",
        "The most at once in MB, with weights, gradients and optimizer state, float32 throughout but for PyTorch's "
        "bfloat16 autocast.",
        ["size", "ours", "PyTorch float32", "PyTorch bfloat16", "share of float32"],
    )
    for name, size in {"10m": SIZES["10m"], **({} if quick else {"GPT-2 124M": replace(GPT2, batch_size=4)})}.items():
        backend = gpu.backend("float32")
        with backend.memory() as meter:
            before = meter.now()
            take_steps(replica(backend, size), size, 2)
            ours = meter.peak() - before
        peaks = []
        for precision in ("float32", "bfloat16"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            begun = torch.cuda.memory_allocated()
            rival = TorchTrainer(size.sizes, gpt(size).state(), device=gpu.torch, precision=precision)
            for batch in batches(size, 2):
                rival.step(*batch)
            peaks.append(torch.cuda.max_memory_allocated() - begun)
            del rival
        found.rows.append([name, *(f"{n / 1e6:.0f}" for n in (ours, *peaks)), f"{ours / peaks[0]:.2f}"])
        found.data[name] = {"ours": ours, "torch_float32": peaks[0], "torch_bfloat16": peaks[1]}
    return found


# ---------------------------------------------------------------------------------------------- speed


def seconds_of(
    call: Callable[[], Any],
    synchronize: Callable[[], Any],
    least: float = 0.1,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median time of a call on a device that is given work ahead.

    As many calls as fill `least` seconds run between two looks at the clock, so that giving the work out and doing it
    overlap as they do in use.
    """

    def run(count: int) -> float:
        synchronize()
        began = clock()
        for _ in range(count):
            call()
        synchronize()
        return (clock() - began) / count

    run(2)
    count = max(1, math.ceil(least / max(run(2), 1e-7)))
    return statistics.median(run(count) for _ in range(rounds))


def torch_synchronize(gpu: Gpu) -> Callable[[], Any]:
    """What waits for PyTorch's work."""
    import torch

    return torch.cuda.synchronize if gpu.torch == "cuda" else lambda: None


def ceilings(gpu: Gpu, quick: bool) -> dict[str, float]:
    """Bytes a second of a large copy, and operations a second of a large product at each precision."""
    backend = gpu.backend("float32")
    xp, n = backend.xp, 256 if quick else 8192
    source, target = (xp.zeros(n * n * 4, dtype=np.float32) for _ in range(2))
    copying = seconds_of(lambda: xp.copyto(target, source), backend.synchronize)
    rates = {"copy": 2 * source.nbytes / copying}
    draw = np.random.default_rng(0).standard_normal
    left, right = (backend.asarray(draw((n, n), dtype=np.float32)) for _ in range(2))
    out = xp.empty((n, n), dtype=np.float32)
    for precision in PRECISIONS:
        device: Any = gpu.backend(precision).device
        rates[precision] = (
            2 * n**3 / seconds_of(lambda device=device: device.gemm(left, right, out), backend.synchronize)
        )
    return rates


def speed(gpu: Gpu, quick: bool) -> Found:
    """Bytes a second of the kernels that memory bounds, and attention beside PyTorch's."""
    from lessons.lesson_13_kernels import QUICK, Sizes, workloads

    sizes = QUICK if quick else Sizes(16 * 1024, 768, 50257, 16, 12, 1024, 64, 124_000_000)
    backend = gpu.backend("float32")
    rates = ceilings(gpu, quick)
    reached = ", ".join(f"{rates[p] / 1e12:.1f} TFLOP/s in {p}" for p in PRECISIONS)
    low, aim = BANDWIDTH_GOALS
    found = Found(
        "Speed of the kernels",
        "GB/s counts what goes in and comes out once. Here a large copy reaches "
        f"{rates['copy'] / 1e9:.0f} GB/s, a large product {reached}. Aim of the kernels that memory bounds: {low:.0%} "
        f"of the copy, better {aim:.0%}; of attention against PyTorch's: "
        "{:.0%}, better {:.0%}.".format(*ATTENTION_GOALS),
        ["kernel", "µs", "GB/s", "share of the copy", "GFLOP/s"],
    )
    listed = []
    for work in workloads(sizes):
        seconds = seconds_of(work.prepare(backend, lambda array: array), backend.synchronize)
        share = work.least / seconds / rates["copy"]
        found.rows.append(
            [work.name, f"{seconds * 1e6:.1f}", f"{work.least / seconds / 1e9:.0f}", f"{share:.0%}",
             f"{work.flops / seconds / 1e9:.0f}"]
        )  # fmt: skip
        listed.append(
            {"name": work.name, "microseconds": seconds * 1e6, "gigabytes_a_second": work.least / seconds / 1e9,
             "share_of_copy": share, "gflops": work.flops / seconds / 1e9}
        )  # fmt: skip
    found.data = {"ceilings": rates, "kernels": listed}
    try:
        found.rows += attention_rows(gpu, sizes, next(k["microseconds"] for k in listed if k["name"] == "attention"))
    except ModuleNotFoundError as error:
        found.failures.append(f"attention is compared with nothing: {one_line(error)}")
    return found


def attention_rows(gpu: Gpu, sizes: Any, ours: float) -> list[list[str]]:
    """PyTorch's attention on the same numbers, in microseconds, and our share of its speed."""
    import torch
    from torch.nn import functional as F

    rows = []
    for kind in (torch.float32, torch.bfloat16):
        shape = (sizes.batch, sizes.heads, sizes.time, sizes.head_size)
        q, k, v = (torch.randn(shape, device=gpu.torch, dtype=kind) for _ in range(3))
        with torch.no_grad():
            seconds = seconds_of(
                lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True), torch_synchronize(gpu)
            )
        name = f"PyTorch's attention, {str(kind).removeprefix('torch.')}"
        rows.append([name, f"{seconds * 1e6:.1f}", "", f"ours has {seconds * 1e6 / ours:.0%} of its speed", ""])
    return rows


def training(gpu: Gpu, quick: bool) -> Found:
    """Time of a training step beside PyTorch, eager and compiled, the sides in turns."""
    from benchmarks.ours import OurTrainer
    from benchmarks.rivals import TorchTrainer
    from benchmarks.training_speed import batches

    found = Found(
        "Training steps beside PyTorch",
        "ms a step, median; PyTorch has SDPA, fused AdamW, and autocast for bfloat16. Ratio: PyTorch's time over ours "
        "in the same round, median (smallest-largest), above 1 we are quicker. GFLOP/s by 6N + 12·L·C·T a token. The "
        "goal of lesson sizes is that of a step captured as a graph.",
        [
            "size",
            "precision",
            "ours",
            "eager",
            "compiled",
            "over eager",
            "over compiled",
            "least / aim",
            "ours GFLOP/s",
        ],
    )
    sizes = {"mini": SIZES["mini"]} if quick else {**SIZES, "GPT-2 124M": GPT2}
    compiled = () if quick else (("mini512", "float32"), ("GPT-2 124M", "bfloat16"))  # each takes a minute to compile
    for name, size in sizes.items():
        data, weights = itertools.cycle(batches(size, 4)), gpt(size).state()
        for precision in PRECISIONS if size is GPT2 or quick else ("float32", "bfloat16"):
            backend, goal = gpu.backend(precision), GOALS[precision] if size is GPT2 else LESSON_GOALS
            rivals = {
                side: TorchTrainer(size.sizes, weights, side == "compiled", device=gpu.torch, precision=precision)
                for side in (("eager", "compiled") if (name, precision) in compiled else ("eager",))
            }
            with OurTrainer(size.sizes, size.batch_size, 1, model=gpt(size, backend)) as ours:
                steps = {"ours": (ours, backend.synchronize)}
                steps |= {side: (rival, torch_synchronize(gpu)) for side, rival in rivals.items()}
                times = in_rounds(
                    {side: (partial(step_of, trainer, data), wait) for side, (trainer, wait) in steps.items()}
                )
            median = {side: statistics.median(seconds) for side, seconds in times.items()}
            shown = {side: f"{seconds * 1e3:.2f}" for side, seconds in median.items()}
            found.rows.append(
                [name, precision, shown["ours"], shown["eager"], shown.get("compiled", ""), ratio(times, "eager"),
                 ratio(times, "compiled"), f"{goal[0]} / {goal[1]}", f"{size.flops / median['ours'] / 1e9:.0f}"]
            )  # fmt: skip
            found.data[f"{name}, {precision}"] = {"size": asdict(size), "seconds": times, "goal": goal}
    return found


def step_of(trainer: Any, data: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    """A step on the next batch."""
    trainer.step(*next(data))


def in_rounds(
    sides: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]], rounds: int = 3, least: float = 0.3
) -> dict[str, list[float]]:
    """Times of all sides' calls, the sides in turns."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, (call, synchronize) in sides.items():
            times[side].append(seconds_of(call, synchronize, least, rounds=1))
    return times


def ratio(times: Mapping[str, Sequence[float]], side: str) -> str:
    """A side's times over ours, round by round."""
    if side not in times:
        return ""
    ratios = [b / a for a, b in zip(times["ours"], times[side], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def generation(gpu: Gpu, quick: bool) -> Found:
    """ms a token at batch 1 with a cache, beside transformers' `generate`."""
    import torch

    from benchmarks.rivals import transformers_model

    found = Found(
        "Generation beside transformers",
        "ms a token, greedy, batch 1, with a key/value cache; the tokens must be the same.",
        ["size", "ours", "transformers", "ratio"],
    )
    name, size = ("mini", SIZES["mini"]) if quick else ("GPT-2 124M", GPT2)
    new = 16 if quick else 64
    prompt = np.random.default_rng(0).integers(0, size.vocab_size, (1, 16))
    model, weights = gpt(size, gpu.backend("float32")), gpt(size).state()
    rival = transformers_model(size.sizes, weights).to(gpu.torch)
    there = torch.from_numpy(prompt).to(gpu.torch)

    def theirs() -> Any:
        mask = torch.ones_like(there)
        return rival.generate(there, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)

    def ours() -> Any:
        return model.generate(prompt, new, temperature=0.0)

    same = ours().tolist() == theirs().cpu().tolist()
    found.require(same, f"{name}: other tokens than transformers'")
    wait = torch_synchronize(gpu)
    times = in_rounds({"ours": (ours, lambda: None), "transformers": (theirs, wait)}, least=0.0)
    each = {side: statistics.median(seconds) / new * 1e3 for side, seconds in times.items()}
    found.rows.append([name, *(f"{ms:.3f}" for ms in each.values()), ratio(times, "transformers")])
    found.data = {"ms_a_token": each}
    return found


PARTS: dict[str, Callable[[Gpu, bool], Found]] = {
    part.__name__: part for part in (kernels, products, steps, waits, training, speed, memory, generation)
}


# ---------------------------------------------------------------------------------------------- all together


def one_line(error: BaseException) -> str:
    """An error as one line: its kind, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no word'}"


def run_part(name: str, gpu: Callable[[], Gpu], quick: bool) -> dict[str, Any]:
    """A part's findings, ready for JSON; what it raises is a failure of it."""
    try:
        return asdict(PARTS[name](gpu(), quick))
    except Exception as error:
        traceback.print_exc()
        return asdict(Found(name, "", [], failures=[one_line(error)]))


def run_apart(name: str, quick: bool, limit: float) -> dict[str, Any]:
    """A part in a process of its own, stopped after `limit` seconds."""
    command = [sys.executable, "-m", MODULE, "--child", name, *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return asdict(Found(name, "", [], failures=[f"stopped after {limit:.0f} s"]))
    if done.returncode:
        return asdict(Found(name, "", [], failures=[f"its process ended with exit code {done.returncode}"]))
    return json.loads(done.stdout.splitlines()[-1])


def check(
    names: Sequence[str],
    run: Callable[[str, float], dict[str, Any]],
    budget: float = BUDGET,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, dict[str, Any]]:
    """All parts in turn, as long as the time lasts; one that is not reached has failed."""
    results: dict[str, dict[str, Any]] = {}
    began = clock()
    for name in names:
        start = clock()
        left = budget - (start - began)
        if left <= 0:
            results[name] = asdict(Found(name, "", [], failures=["not run: the time was up"]))
        else:
            note(f"{name} ...")
            results[name] = run(name, left)
        results[name]["seconds"] = round(clock() - start, 1)
        for failure in results[name]["failures"]:
            note(f"  {name}: {failure}")
    return results


def report(record: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    parts = record["parts"]
    overview = [
        [name, f"{part['seconds']:.0f}", f"{len(part['failures'])} failures" if part["failures"] else "as it should be"]
        for name, part in parts.items()
    ]
    lines = [
        "# GPU check" + (", quick" if record["quick"] else ""),
        record["gpu"],
        markdown_table(["part", "seconds", ""], overview),
    ]
    for part in parts.values():
        lines += [f"## {part['title']}", *([part["text"]] if part["text"] else [])]
        if part["failures"]:
            lines.append("\n".join(f"- **{failure}**" for failure in part["failures"]))
        if part["rows"]:
            lines.append(markdown_table(part["header"], part["rows"]))
    return "\n\n".join(lines)


def gpu_line() -> str:
    """The GPU, its driver, and what the figures were made with."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    versions = {}
    for name in ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton", "transformers"):
        with _if_installed():
            versions[name] = importlib.metadata.version(name)
    cuda = runtime.runtimeGetVersion()
    return (
        f"{machine()['date']}; {properties['name'].decode()}, compute capability {properties['major']}."
        f"{properties['minor']}, {properties['multiProcessorCount']} multiprocessors, "
        f"{properties['totalGlobalMem'] / 2**30:.0f} GiB; CUDA {cuda // 1000}.{cuda % 1000 // 10}; "
        f"Python {sys.version.split()[0]}, {', '.join(f'{n} {v}' for n, v in versions.items())}"
    )


@contextmanager
def _if_installed() -> Iterator[None]:
    try:
        yield
    except importlib.metadata.PackageNotFoundError:
        return


def main(argv: Sequence[str] | None = None) -> int:
    """``make gpu-check``; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small, without torch.compile")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this one; may be given again")
    parser.add_argument("--child", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        print(json.dumps(run_part(arguments.child, cupy_gpu, arguments.quick)))
        return 0
    try:
        get_backend("cupy")
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    missing = [name for name in COMPARED_WITH if importlib.util.find_spec(name) is None]
    if missing:
        note(f"not installed: {', '.join(missing)}; what is compared with them will be missing")
    names = arguments.part or list(PARTS)
    parts = check(names, lambda name, left: run_apart(name, arguments.quick, left))
    record = {"quick": arguments.quick, "machine": machine(), "gpu": gpu_line(), "parts": parts}
    record["kernels"] = parts.get("speed", {}).get("data", {}).get("kernels", [])
    whole = not arguments.quick and not arguments.part
    write_results("gpu_check" if whole else "gpu_check_quick", record, report(record))
    return 1 if any(part["failures"] for part in parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
