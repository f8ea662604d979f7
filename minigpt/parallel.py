"""Data-parallel training: ranks that each run a shard of the batch, and the sum of their flat gradients.

A `Replica` is one rank: it has the model, computes its shard's gradient into a flat buffer, and updates its
own part of the flat parameters. A `Comm` joins the ranks, and a `Team` is all of them, as one of them sees it.
`LocalTeam` runs further ranks in processes of their own on this machine, with one BLAS thread each and all flat
buffers in shared memory: two processes lose nothing to each other, where two threads lose a fifth to the interpreter
lock. Ranks that a launcher has started, on one machine or many, are a `minigpt.distributed.LaunchedTeam`.

The workers are plain child processes that are told everything over their standard input. They need neither a
``__main__`` guard nor fork, work from scripts, notebooks and make alike, and end when that pipe closes,
however their parent ends.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any, NamedTuple, Self, TypeVar

import cloudpickle
import numpy as np
import threadpoolctl

from kernels.array import Array
from kernels.memory import keep_freed_memory
from minigpt.context import Context
from minigpt.errors import InputError, RunError
from minigpt.objectives import Batch, Objective, rows, shards, take
from minigpt.optim import AdamW
from minigpt.parameters import FlatParameters, Gradients, Parameter

Shared = TypeVar("Shared")

# The variables by which BLAS libraries are told how many threads to use.
ONE_THREAD = dict.fromkeys(
    (
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "BLIS_NUM_THREADS",
    ),
    "1",
)


class Comm:
    """How ranks join their work. This one is for a single rank: there is nobody to talk to.

    Attributes
    ----------
    rank, size : int
    """

    rank = 0
    size = 1

    def own(self, n: int) -> slice:
        """The part of an n-vector that this rank reduces and updates."""
        return shards(n, self.size)[self.rank]

    def reduce_scatter(self, flat: Array) -> None:
        """Sum all ranks' vectors; afterwards this rank's `own` part of its vector holds the sum."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum a few numbers over the ranks, in rank order, so that all ranks get the same bits."""
        return list(values)

    def all_gather(self, flat: Array) -> None:
        """Give every rank the `own` parts of all the others."""


class Replica:
    """One rank of a training run.

    Parameters
    ----------
    model
        Anything with ``forward``, ``parameters`` and ``backend``.
    objective : Objective
    flat : FlatParameters
        The trainable parameters.
    optimizer : AdamW
    comm : Comm
    moments, grads : arrays, optional
        m and v, (2, P), and this rank's gradient, (P,); allocated if absent.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        flat: FlatParameters,
        optimizer: AdamW,
        comm: Comm,
        moments: Array | None = None,
        grads: Array | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.flat = flat
        self.optimizer = optimizer
        self.comm = comm
        backend = model.backend
        self.moments = backend.zeros((2, flat.size), flat.dtype) if moments is None else moments
        self.grads = Gradients(flat.parameters, backend, grads)
        self.own = comm.own(flat.size)

    @np.errstate(all="ignore")  # an overflow shows in loss and norm, which are checked
    def step(
        self,
        shard: Batch,
        total: float,
        accumulation: int,
        step: int,
        rates: Sequence[float],
        max_norm: float | None,
        seed: int,
    ) -> tuple[float, float]:
        """Gradient of the whole batch and one optimizer step.

        Parameters
        ----------
        shard : Batch
            This rank's rows; there may be none.
        total : float
            What the loss divides by, over all ranks.
        accumulation : int
            In how many passes the shard is run, to bound the memory of activations.
        step : int
            From 0.
        rates : sequence of float
            Learning rate of every optimizer segment.
        max_norm : float or None
            Clip the global norm of the gradient.
        seed : int
            Of dropout.

        Returns
        -------
        loss : float
            Mean over the whole batch.
        norm : float
            Global norm of the gradient before clipping.
            If loss or norm is not finite, no parameter has been changed.
        """
        loss = self.accumulate(shard, total, accumulation, [seed, step, self.comm.rank])
        flat_grad = self.grads.buffer
        self.comm.reduce_scatter(flat_grad)
        backend = self.model.backend
        ops = backend.ops
        # The one place of a step that waits for a GPU, before anything that a failed step must not change.
        loss, squares = self.comm.sum(backend.read(loss, ops.sum_of_squares(flat_grad[self.own])))
        norm = math.sqrt(squares) if squares >= 0 else math.nan
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return loss, norm
        if max_norm is None and squares > np.finfo(self.flat.dtype).max:
            return loss, math.inf  # the second moment would overflow, and stop the parameter for good
        if max_norm is not None:
            factor = ops.clip_coefficient(norm, max_norm)
            if factor < 1.0:
                flat_grad[self.own] *= factor
        m, v = self.moments
        self.optimizer.update(self.flat.buffer, flat_grad, m, v, step + 1, rates, self.own)
        self.comm.all_gather(self.flat.buffer)
        return loss, norm

    def accumulate(self, shard: Batch, total: float, accumulation: int, seed: list[int]) -> Any:
        """This rank's share of the loss, on a GPU an array of no axes; its gradient goes into the flat buffer."""
        self.grads.clear()
        loss = 0.0
        for part, ctx in passes(self.model, shard, accumulation, seed):
            share, backward = self.objective.forward(self.model, part, total, ctx)
            backward(self.grads)
            loss += share
        self.grads.finish()
        return loss

    @np.errstate(all="ignore")
    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Sum of losses and of what they are means over, for this rank's batches."""
        loss: Any = 0.0
        count = 0.0
        for batch in batches:
            total = self.objective.total(batch)
            if total:
                share, _ = self.objective.forward(self.model, batch, total, self.model.context())
                loss += share * total
                count += total
        return self.model.backend.read(loss)[0], count


def passes(model: Any, shard: Batch, accumulation: int, seed: list[int]) -> Iterator[tuple[Batch, Context]]:
    """The parts in which a rank runs its shard, each with the context of its pass."""
    n = rows(shard)
    for i, part in enumerate(shards(n, min(accumulation, n)) if n else ()):
        yield take(shard, part), model.context(grad=True, training=True, rng=model.backend.rng([*seed, i]))


class Team:
    """A model trained by `size` ranks, as rank `rank` sees it: a context manager.

    While it is open the trainable parameters live in a flat buffer; afterwards they are ordinary arrays again, with
    the trained values.

    Parameters
    ----------
    model
        Anything with ``forward``, ``parameters``, ``context`` and ``backend``; layers may have been replaced.
    objective : Objective
    parameters : list of Parameter
        The trainable ones in the order of the flat buffer (`AdamW.order`).
    optimizer : AdamW
    size : int
        Number of ranks.

    Attributes
    ----------
    rank, size : int
    flat : FlatParameters
    replica : Replica
        This rank.
    """

    rank = 0
    flat: FlatParameters
    replica: Replica

    def __init__(
        self, model: Any, objective: Objective, parameters: list[Parameter], optimizer: AdamW, size: int = 1
    ) -> None:
        self.size = size
        self._model = model
        self._objective = objective
        self._parameters = parameters
        self._optimizer = optimizer
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stack.close()

    def step(
        self,
        batch: Batch,
        accumulation: int,
        step: int,
        rates: Sequence[float],
        max_norm: float | None,
        seed: int,
    ) -> tuple[float, float]:
        """One optimizer step on a whole batch: loss and gradient norm. See `Replica.step`."""
        total = self._objective.total(batch)
        if total == 0:
            raise InputError(f"step {step + 1}: nothing in the batch is scored")
        common = (total, accumulation, step, rates, max_norm, seed)
        orders = [(take(batch, part), *common) for part in shards(rows(batch), self.size)]
        self._tell("step", orders)
        return self.replica.step(*orders[self.rank])

    def evaluate(self, batches: Sequence[Batch]) -> float:
        """Mean loss over all that is scored in these batches, without dropout.

        Raises
        ------
        ValueError
            If nothing is scored.
        """
        orders = [(batches[rank :: self.size],) for rank in range(self.size)]
        self._tell("evaluate", orders)
        loss, count = self._add_up(self.replica.evaluate(*orders[self.rank]))
        if count == 0:
            raise InputError("nothing in the validation data is scored")
        return loss / count

    def _tell(self, command: str, orders: Sequence[tuple[Any, ...]]) -> None:
        """Let the ranks that wait to be told know what to do; by default every rank runs this program itself."""

    def _add_up(self, own: tuple[float, float]) -> tuple[float, float]:
        """The sums over all ranks of what this one found."""
        return own

    @property
    def moments(self) -> Any:
        """m and v, two (P,) vectors, whole. If every rank runs this program, all of them have to ask."""
        return self.replica.moments

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Of each flag, whether a rank that runs this program has raised it."""
        return list(flags)

    def share(self, make: Callable[[], Shared]) -> Shared:
        """What rank 0 has made, on every rank that runs this program; what it raises, too."""
        return make()

    def require_equal(self, facts: Callable[[], dict[str, str]]) -> None:
        """Make sure that every rank that runs this program has the same model and data.

        Raises
        ------
        ValueError
            Naming a rank, and the first of the facts in which it differs from rank 0.
        """


# ------------------------------------------------------------------------------- processes on one machine


class _SharedComm(Comm):
    """Ranks on one machine whose vectors all lie in one shared region; only barriers cross the pipes."""

    def __init__(self, rank: int, grads: list[np.ndarray], scalars: np.ndarray, barrier: Any) -> None:
        self.rank = rank
        self.size = len(grads)
        self._grads = grads
        self._scalars = scalars
        self._barrier = barrier

    def reduce_scatter(self, flat: Array) -> None:
        self._barrier()
        own = self.own(flat.shape[0])
        mine = flat[own]
        others = [g[own] for r, g in enumerate(self._grads) if r != self.rank]
        # Always in rank order: with more than two ranks the order of a sum shows in its last bits.
        if self.size == 2:
            mine += others[0]
        else:
            mine[...] = sum((g[own] for g in self._grads[1:]), start=self._grads[0][own].copy())

    def sum(self, values: Sequence[float]) -> list[float]:
        self._scalars[self.rank, : len(values)] = values
        self._barrier()
        return [float(sum(self._scalars[:, i].tolist())) for i in range(len(values))]

    def all_gather(self, flat: Array) -> None:
        self._barrier()


class _Region:
    """Memory shared by a parent and its children, gone with the last of them however they end."""

    def __init__(self, nbytes: int, handle: Any = None) -> None:
        self.handle: Any
        if os.name == "nt":
            self.handle = handle or f"minigpt-{os.getpid()}-{os.urandom(8).hex()}"
            self.memory = mmap.mmap(-1, nbytes, tagname=self.handle)  # type: ignore[call-arg]
            return
        if handle is None:
            if hasattr(os, "memfd_create"):
                handle = os.memfd_create("minigpt")
            else:
                with tempfile.TemporaryFile() as file:  # unlinked from the start
                    handle = os.dup(file.fileno())
            low = []
            while handle < 3:  # our own stdin or stdout is closed; in a child these numbers are the pipes
                low.append(handle)
                handle = os.dup(handle)
            for number in low:
                os.close(number)
            os.ftruncate(handle, nbytes)
        self.handle = handle
        self.memory = mmap.mmap(handle, nbytes)

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors a child has to inherit."""
        return () if os.name == "nt" else (self.handle,)

    def close_handle(self) -> None:
        """Forget the handle; the memory stays mapped as long as an array looks at it."""
        if os.name != "nt":
            os.close(self.handle)


class _Form(NamedTuple):
    """Shape and type of an array in the shared region; stands for a weight while its model travels."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _Arrays:
    """A run's arrays, cut out of one region: parameters, m and v, gradients, scalars, frozen weights."""

    ALIGN = 64

    def __init__(self, flat: _Form, frozen: list[_Form], size: int, handle: Any = None) -> None:
        self.spec = (flat, frozen, size)
        scalars = _Form((size, 4), np.dtype("float64"))
        forms = [*[flat] * (3 + size), scalars, *frozen]
        self.region = _Region(sum(self._padded(form.nbytes) for form in forms), handle)
        self._offset = 0
        self.params, m, v, *self.grads = [self._cut(flat) for _ in range(3 + size)]
        self.moments = (m, v)
        self.scalars = self._cut(scalars)
        self.frozen = [self._cut(form) for form in frozen]

    def _padded(self, nbytes: int) -> int:
        return -(-nbytes // self.ALIGN) * self.ALIGN

    def _cut(self, form: _Form) -> np.ndarray:
        array = np.frombuffer(self.region.memory, form.dtype, form.size, self._offset).reshape(form.shape)
        self._offset += self._padded(form.nbytes)
        return array


class _Channel:
    """Python objects over a pair of pipes."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: Any) -> None:
        pickle.dump(message, self._writer, protocol=pickle.HIGHEST_PROTOCOL)
        self._writer.flush()

    def receive(self) -> Any:
        return pickle.load(self._reader)

    def close(self) -> None:
        for pipe in (self._writer, self._reader):
            with suppress(BrokenPipeError):  # the other side is gone already, which is what closing is for
                pipe.close()


class LocalTeam(Team):
    """A team on this machine: rank 0 is the calling process, and starts the others. A team of one starts none.

    Parameters
    ----------
    model, objective, parameters, optimizer, size
        As of `Team`.

    Raises
    ------
    RunError
        If a worker process dies or fails.
    """

    def __init__(
        self, model: Any, objective: Objective, parameters: list[Parameter], optimizer: AdamW, size: int = 1
    ) -> None:
        if size > 1 and model.backend.name != "numpy":
            raise ValueError(f"worker processes need the numpy backend, not {model.backend.name}")
        super().__init__(model, objective, parameters, optimizer, size)
        self._workers: list[tuple[subprocess.Popen, _Channel]] = []

    def __enter__(self) -> Self:
        keep_freed_memory()
        backend = self._model.backend
        if self.size == 1:
            self.flat = FlatParameters(self._parameters, backend)
            self._stack.callback(self.flat.release)
            self.replica = Replica(self._model, self._objective, self.flat, self._optimizer, Comm())
            return self
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stop(at_once=kind is not None)

    def _start(self) -> None:
        self._stack.enter_context(threadpoolctl.threadpool_limits(1, "blas"))
        trainable = {id(p) for p in self._parameters}
        frozen = [p for p in self._model.parameters() if id(p) not in trainable]
        flat = _Form((sum(p.data.size for p in self._parameters),), self._parameters[0].data.dtype)
        arrays = _Arrays(flat, [_Form(p.data.shape, p.data.dtype) for p in frozen], self.size)
        self._stack.callback(arrays.region.close_handle)
        self.flat = FlatParameters(self._parameters, self._model.backend, arrays.params)
        self._stack.callback(self.flat.release)  # out of the shared memory, which can then go
        message = _describe(self._model, self._objective, self._parameters, frozen, self._optimizer, arrays)
        for rank in range(1, self.size):
            process = _worker_process(rank, arrays.region)
            assert process.stdin is not None
            assert process.stdout is not None
            self._workers.append((process, _Channel(process.stdout, process.stdin)))
        for worker in self._workers:
            self._send(worker, message)
        for worker in self._workers:
            self._receive(worker)
        comm = _SharedComm(0, arrays.grads, arrays.scalars, self._barrier)
        self.replica = Replica(
            self._model, self._objective, self.flat, self._optimizer, comm, arrays.moments, arrays.grads[0]
        )

    def _stop(self, at_once: bool) -> None:
        for process, channel in self._workers:
            if at_once:
                process.kill()
            channel.close()
        for process, _ in self._workers:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._workers = []
        self._stack.close()

    def _send(self, worker: _Worker, message: Any) -> None:
        try:
            worker[1].send(message)
        except BrokenPipeError:
            self._receive(worker)  # its last words, or that it had none

    def _receive(self, worker: _Worker) -> Any:
        process, channel = worker
        try:
            answer = channel.receive()
        except (EOFError, pickle.UnpicklingError):
            raise RunError(f"worker process {process.pid} has died (exit code {process.wait()})") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _barrier(self) -> None:
        for worker in self._workers:
            self._receive(worker)
        for worker in self._workers:
            self._send(worker, None)

    def _tell(self, command: str, orders: Sequence[tuple[Any, ...]]) -> None:
        for worker, order in zip(self._workers, orders[1:], strict=True):
            self._send(worker, (command, order))

    def _add_up(self, own: tuple[float, float]) -> tuple[float, float]:
        sums = [own, *(self._receive(worker) for worker in self._workers)]
        loss, count = (math.fsum(column) for column in zip(*sums, strict=True))
        return loss, count


_Worker = tuple[subprocess.Popen, _Channel]


def _worker_process(rank: int, region: _Region) -> subprocess.Popen:
    """A Python that finds the modules that this one finds, and waits to be told what to do."""
    path = [p or os.getcwd() for p in sys.path]
    # In a group of its own, Ctrl-C reaches the parent only, which decides.
    own_group: dict[str, Any] = {"process_group": 0}
    if os.name == "nt":
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:] = {path!a}; from minigpt.parallel import work; work({rank})",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **ONE_THREAD},
        pass_fds=region.inherited,
        **own_group,
    )


def _describe(
    model: Any,
    objective: Objective,
    parameters: list[Parameter],
    frozen: list[Parameter],
    optimizer: AdamW,
    arrays: _Arrays,
) -> tuple[Any, Any, bytes]:
    """All that a worker needs to become a rank, with the frozen weights put into the shared region."""
    for p, shared in zip(frozen, arrays.frozen, strict=True):
        shared[...] = p.data
    every = [*parameters, *frozen]
    data = [p.data for p in every]
    try:
        for p in every:
            p.data = _Form(p.data.shape, p.data.dtype)
        # cloudpickle sends by value what was defined in a notebook or a script
        body = cloudpickle.dumps((model, objective, parameters, frozen, optimizer))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise InputError(
            f"model and objective cannot be sent to worker processes ({error}); train with workers=1"
        ) from error
    finally:
        for p, array in zip(every, data, strict=True):
            p.data = array
    return arrays.region.handle, arrays.spec, body


def work(rank: int) -> None:
    """Body of a worker process: be a rank of the team that the parent describes, until it closes the pipe."""
    channel = _take_pipes()
    keep_freed_memory()
    try:
        replica = _become(rank, channel)
        channel.send(None)
        while True:
            command, arguments = channel.receive()
            if command == "step":
                replica.step(*arguments)
            else:
                channel.send(replica.evaluate(*arguments))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the parent is gone or done; there is nothing to save here
    except (InputError, RunError) as error:
        last_words: Exception = error
    except MemoryError as error:
        last_words = MemoryError(str(error))
    except Exception:
        last_words = RunError(f"a worker process failed:\n{traceback.format_exc()}")
    with suppress(BrokenPipeError):  # nobody is left to tell
        channel.send(last_words)
    os._exit(1)


def _take_pipes() -> _Channel:
    """The pipes to the parent, out of reach of what the model's code reads and prints (to stderr)."""
    nothing = os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:  # the parent has none to inherit
        os.dup2(nothing, 2)
        sys.stderr = os.fdopen(2, "w")
    channel = _Channel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def _become(rank: int, channel: _Channel) -> Replica:
    handle, (flat_form, frozen_forms, size), body = channel.receive()
    model, objective, parameters, frozen, optimizer = pickle.loads(body)
    arrays = _Arrays(flat_form, frozen_forms, size, handle)
    arrays.region.close_handle()
    flat = FlatParameters(parameters, model.backend, arrays.params, fill=False)
    for p, shared in zip(frozen, arrays.frozen, strict=True):
        p.data = shared

    def barrier() -> None:
        channel.send(None)
        channel.receive()

    comm = _SharedComm(rank, arrays.grads, arrays.scalars, barrier)
    return Replica(model, objective, flat, optimizer, comm, arrays.moments, arrays.grads[rank])
