"""What one training step costs: matrix products, and bytes of weights, gradients, optimizer state and activations.

Each is counted from the model itself (what the arrays that are held add up to) and measured while a step runs
(by `Backend.memory`, which asks what hands the memory out), so that a saving that is claimed can be seen to be one.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from kernels import Backend
from minigpt.errors import InputError
from minigpt.objectives import Batch, Objective
from minigpt.optim import AdamW
from minigpt.parameters import FlatParameters, Gradients


@dataclass
class Products:
    """Matrix products of a pass, by the operation that made them.

    Attributes
    ----------
    calls, flops : Counter
        Number of calls, and floating-point operations (a product of (n, k) and (k, m) has 2·n·k·m).
    """

    calls: Counter[str] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)

    def note(self, op: str, flops: int) -> None:
        """Count one call."""
        self.calls[op] += 1
        self.flops[op] += flops

    @property
    def total(self) -> int:
        """All floating-point operations."""
        return sum(self.flops.values())


def _rows(x: Any) -> int:
    return x.size // x.shape[-1]


# How much work an operation's arguments mean. What is not here multiplies no matrices.
_WORK: dict[str, Callable[..., int]] = {
    "linear_forward": lambda x, weight, bias: 2 * _rows(x) * weight.shape[0] * weight.shape[1],
    "linear_backward_input": lambda dy, weight: 2 * _rows(dy) * weight.shape[0] * weight.shape[1],
    "linear_backward_weight": lambda dy, x, **_: 2 * _rows(dy) * dy.shape[-1] * x.shape[-1],
}


class CountingBackend(Backend):
    """A backend that counts the matrix products of the operations it is asked for.

    Parameters
    ----------
    inner : Backend

    Attributes
    ----------
    products : Products
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner.name, inner.xp, inner.suffix, inner.reference, inner.device)
        self.products = Products()
        self.ops = SimpleNamespace(**{name: self._counted(name, op) for name, op in vars(inner.ops).items()})

    def _counted(self, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        if name == "attention_forward":
            return self._attention_forward(op)
        if name == "attention_backward":
            return self._attention_backward(op)
        work = _WORK.get(name)
        if work is None:
            return op

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.products.note(name, work(*args, **kwargs))
            return op(*args, **kwargs)

        return counted

    def _attention_forward(self, op: Callable[..., Any]) -> Callable[..., Any]:
        def counted(q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
            work = 4 * q.size * k.shape[-2]
            self.products.note("attention_forward", work)
            out, cache = op(q, k, *args, **kwargs)
            return out, None if cache is None else (work, cache)

        return counted

    def _attention_backward(self, op: Callable[..., Any]) -> Callable[..., Any]:
        def counted(dout: Any, cache: Any, *args: Any, **kwargs: Any) -> Any:
            work, inner = cache
            self.products.note("attention_backward", 2 * work)
            return op(dout, inner, *args, **kwargs)

        return counted


@dataclass(frozen=True)
class StepCost:
    """What one training step of a model on a batch takes.

    Attributes
    ----------
    trainable : int
        Parameters that are trained.
    weights, gradients, optimizer, activations : int
        Bytes counted: of all parameters; of the trained ones' gradients and AdamW moments; of the arrays that the
        backward pass will read, weights left out.
    measured_gradients, measured_optimizer, measured_activations, measured_peak : int
        Bytes by `Backend.memory`; the peak is the most that the step has at once over the weights.
    forward, backward : dict
        Floating-point operations of matrix products, by operation.
    seconds : float
        Median time of a step, in this process.
    """

    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    measured_gradients: int
    measured_optimizer: int
    measured_activations: int
    measured_peak: int
    forward: dict[str, int]
    backward: dict[str, int]
    seconds: float

    @property
    def bytes(self) -> int:
        """Weights, gradients, optimizer state and activations together, counted."""
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def flops(self) -> int:
        """Floating-point operations of the step's matrix products."""
        return sum(self.forward.values()) + sum(self.backward.values())

    def as_record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"bytes": self.bytes, "flops": self.flops}


def step_cost(tuned: Any, objective: Objective, batch: Batch, repeats: int = 5, seed: int = 0) -> StepCost:
    """Count and measure one training step. The model is left as it is.

    Parameters
    ----------
    tuned
        A GPT or a model with another head; what is trainable decides.
    objective : Objective
    batch : Batch
    repeats : int
        Steps whose median time is taken.
    seed : int
        Of dropout.

    Raises
    ------
    ValueError
        If nothing is trainable.
    """
    parameters = list(tuned.parameters())
    trained = [p for p in parameters if p.trainable]
    if not trained:
        raise InputError("nothing to train: every parameter is frozen")
    total = objective.total(batch)
    products = count_products(tuned, objective, batch, seed)

    def context() -> Any:
        return tuned.context(grad=True, training=True, rng=tuned.backend.rng(seed))

    with tuned.backend.memory() as meter:
        now = meter.now
        start = now()
        grads = Gradients(trained, tuned.backend)
        after_gradients = now()
        moments = tuned.backend.zeros((2, sum(p.data.size for p in trained)), trained[0].data.dtype)
        after_optimizer = now()
        loss, backward = objective.forward(tuned, batch, total, context())
        after_forward = now()
        activations = held_bytes(backward, exclude=[*(p.data for p in parameters), *batch.values()])
        backward(grads)
        peak = meter.peak()
        del loss, backward, grads, moments
    return StepCost(
        trainable=sum(p.data.size for p in trained),
        weights=unique_bytes(p.data for p in parameters),
        gradients=sum(p.data.nbytes for p in trained),
        optimizer=2 * sum(p.data.nbytes for p in trained),
        activations=activations,
        measured_gradients=after_gradients - start,
        measured_optimizer=after_optimizer - after_gradients,
        measured_activations=after_forward - after_optimizer,
        measured_peak=peak - start,
        forward=dict(products[0].flops),
        backward=dict(products[1].flops),
        seconds=step_seconds(tuned, objective, batch, repeats, seed),
    )


def count_products(tuned: Any, objective: Objective, batch: Batch, seed: int = 0) -> tuple[Products, Products]:
    """Matrix products of one step's forward and of its backward."""
    counting = CountingBackend(tuned.backend)
    ctx = replace(tuned.context(grad=True, training=True, rng=tuned.backend.rng(seed)), backend=counting)
    _, backward = objective.forward(tuned, batch, objective.total(batch), ctx)
    forward, counting.products = counting.products, Products()
    backward(Gradients(tuned.parameters(), tuned.backend))
    return forward, counting.products


def step_seconds(tuned: Any, objective: Objective, batch: Batch, repeats: int = 5, seed: int = 0) -> float:
    """Median time of forward, backward and optimizer step in this process, the model left as it is."""
    twin = tuned.copy()
    parameters = AdamW.order(twin.parameters(), (), 0.0)
    flat = FlatParameters(parameters, twin.backend)
    optimizer = AdamW(parameters, twin.backend)
    m, v = twin.backend.zeros((2, flat.size), flat.dtype)
    grads = Gradients(parameters, twin.backend)
    total, everything = objective.total(batch), slice(0, flat.size)
    steps = itertools.count()

    def once() -> None:
        step = next(steps)
        ctx = twin.context(grad=True, training=True, rng=twin.backend.rng([seed, step]))
        grads.clear()
        _, backward = objective.forward(twin, batch, total, ctx)
        backward(grads)
        grads.finish()
        optimizer.update(flat.buffer, grads.buffer, m, v, step + 1, [0.0] * len(optimizer.segments), everything)

    return median_seconds(once, repeats, twin.backend.synchronize)


def median_seconds(work: Callable[[], Any], repeats: int, synchronize: Callable[[], None] = lambda: None) -> float:
    """Median time of a call, after one that warms up.

    Parameters
    ----------
    work : () -> anything
    repeats : int
    synchronize : () -> None
        Waits until a device has done what `work` asked of it.
    """
    times = []
    for _ in range(repeats + 1):
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def in_turns(timings: Mapping[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """Median of what each of several timings gives; they take turns, so that what else the machine does falls on all.

    Parameters
    ----------
    timings : dict of str to () -> float
        Each does something once and gives the seconds that it took.
    turns : int
    """
    times: dict[str, list[float]] = {name: [] for name in timings}
    for _ in range(turns):
        for name, timing in timings.items():
            times[name].append(timing())
    return {name: statistics.median(each) for name, each in times.items()}


def held_bytes(backward: Any, exclude: Iterable[Any] = ()) -> int:
    """Bytes of the arrays that a backward function holds on to, each memory block once.

    Parameters
    ----------
    backward : function
        Its closure is searched, with all functions, sequences and caches in it.
    exclude : iterable of arrays
        Whose memory does not count, such as the weights'.
    """
    skip = {id(_block(a)) for a in exclude}
    blocks: dict[int, int] = {}
    for array in _arrays(backward, set()):
        block = _block(array)
        if id(block) not in skip:
            blocks[id(block)] = block.nbytes
    return sum(blocks.values())


def unique_bytes(arrays: Iterable[Any]) -> int:
    """Bytes of these arrays, shared ones once."""
    return sum({id(a): a.nbytes for a in arrays}.values())


def _block(array: Any) -> Any:
    while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array


def _arrays(thing: Any, seen: set[int]) -> Iterator[Any]:
    # All arrays that are reachable through closures and containers, but not through layers and parameters.
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # a name that was never bound
                continue
            yield from _arrays(content, seen)
    elif isinstance(thing, (list, tuple)):
        for item in thing:
            yield from _arrays(item, seen)
    elif isinstance(thing, dict):
        for item in thing.values():
            yield from _arrays(item, seen)
    elif hasattr(thing, "__array__") and hasattr(thing, "nbytes") and not np.isscalar(thing):
        yield thing
