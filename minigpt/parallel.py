"""Data-parallel training: ranks that each run a shard of the batch, and the sum of their flat gradients.

A `Replica` is one rank: it has the model, computes its shard's gradient into a flat buffer, and updates its own part of
the flat parameters. A `Comm` joins the ranks. `LocalTeam` runs further ranks in processes of their own on this
machine, with one BLAS thread each and all flat buffers in shared memory: two processes lose nothing to each other,
where two threads lose a fifth to the interpreter lock.

The workers are plain child processes that are told everything over their standard input. They need neither a
``__main__`` guard nor fork, work from scripts, notebooks and make alike, and end when that pipe closes, however
their parent ends.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple

import cloudpickle
import numpy as np
import threadpoolctl

from kernels.array import Array
from kernels.memory import keep_freed_memory
from minigpt.errors import RunError
from minigpt.objectives import Batch, Objective, rows, shards, take
from minigpt.optim import AdamW
from minigpt.parameters import FlatParameters, Gradients, Parameter, layout

ONE_THREAD = {
    name: "1"
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS")
}


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
        ops = self.model.backend.ops
        loss, squares = self.comm.sum((loss, ops.sum_of_squares(flat_grad[self.own])))
        norm = math.sqrt(squares) if squares >= 0 else math.nan
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return loss, norm
        if max_norm is not None:
            factor = ops.clip_coefficient(norm, max_norm)
            if factor < 1.0:
                flat_grad[self.own] *= factor
        m, v = self.moments
        self.optimizer.update(self.flat.buffer, flat_grad, m, v, step + 1, rates, self.own)
        self.comm.all_gather(self.flat.buffer)
        return loss, norm

    def accumulate(self, shard: Batch, total: float, accumulation: int, seed: list[int]) -> float:
        """This rank's share of the loss; its gradient goes into the flat buffer."""
        model = self.model
        self.grads.clear()
        loss = 0.0
        n = rows(shard)
        for i, part in enumerate(shards(n, min(accumulation, n)) if n else ()):
            ctx = model.context(grad=True, training=True, rng=model.backend.rng([*seed, i]))
            share, backward = self.objective.forward(model, take(shard, part), total, ctx)
            backward(self.grads)
            loss += share
        self.grads.finish()
        return loss

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Sum of losses and of what they are means over, for this rank's batches."""
        loss, count = 0.0, 0.0
        for batch in batches:
            total = self.objective.total(batch)
            if total:
                share, _ = self.objective.forward(self.model, batch, total, self.model.context())
                loss += share * total
                count += total
        return loss, count


# ------------------------------------------------------------------------------------------ processes on one machine


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
        self.nbytes = nbytes
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


class _Arrays:
    """The vectors of a run, cut out of one region: parameters, m and v, a gradient a rank, frozen weights, scalars."""

    ALIGN = 64

    def __init__(self, flat_size: int, frozen_size: int, size: int, dtype: str, handle: Any = None) -> None:
        self.spec = (flat_size, frozen_size, size, dtype)
        self._offset = 0
        item = np.dtype(dtype).itemsize
        lengths = [flat_size] * (3 + size) + [frozen_size]
        nbytes = sum(self._padded(n * item) for n in lengths) + self._padded(8 * 4 * size)
        self.region = _Region(nbytes, handle)
        self.params = self._cut((flat_size,), dtype)
        m, v = self._cut((flat_size,), dtype), self._cut((flat_size,), dtype)
        self.moments = (m, v)
        self.grads = [self._cut((flat_size,), dtype) for _ in range(size)]
        self.frozen = self._cut((frozen_size,), dtype)
        self.scalars = self._cut((size, 4), "float64")

    def _padded(self, nbytes: int) -> int:
        return -(-nbytes // self.ALIGN) * self.ALIGN

    def _cut(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        count = math.prod(shape)
        array = np.frombuffer(self.region.memory, dtype, count, self._offset).reshape(shape)
        self._offset += self._padded(array.nbytes)
        return array


class _Channel:
    """Python objects over a pair of pipes."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: Any) -> None:
        pickle.dump(message, self._writer, protocol=pickle.HIGHEST_PROTOCOL)
        self._writer.flush()

    def receive(self) -> Any:
        return pickle.load(self._reader)

    def close(self) -> None:
        for pipe in (self._writer, self._reader):
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # the other side is gone already, which is what closing is for


class _WorkerError(Exception):
    """A worker's own traceback, carried to the parent."""


class LocalTeam:
    """A model trained by `size` ranks on this machine; rank 0 is the calling process.

    Use it as a context manager. While it is open the trainable parameters live in the team's flat buffer; afterwards
    they are ordinary arrays again, with the trained values.

    Parameters
    ----------
    model
        Anything with ``forward``, ``parameters``, ``context`` and ``backend``; its layers may have been replaced.
    objective : Objective
    parameters : list of Parameter
        The trainable ones in the order of the flat buffer (`AdamW.order`).
    optimizer : AdamW
    size : int
        Number of ranks; 1 starts no process.

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
        self.size = size
        self._model = model
        self._objective = objective
        self._parameters = parameters
        self._optimizer = optimizer
        self._workers: list[tuple[subprocess.Popen, _Channel]] = []
        self._stack = ExitStack()

    def __enter__(self) -> LocalTeam:
        keep_freed_memory()
        backend = self._model.backend
        if self.size == 1:
            self.flat = FlatParameters(self._parameters, backend)
            self.replica = Replica(self._model, self._objective, self.flat, self._optimizer, Comm())
            return self
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop()
        for p in self._parameters:
            p.data = p.data.copy()  # out of the shared memory, which can then go

    def _start(self) -> None:
        self._stack.enter_context(threadpoolctl.threadpool_limits(1, "blas"))
        trainable = {id(p) for p in self._parameters}
        frozen = [p for p in self._model.parameters() if id(p) not in trainable]
        dtype = str(self._model.dtype)
        arrays = _Arrays(
            sum(p.data.size for p in self._parameters), sum(p.data.size for p in frozen), self.size, dtype
        )
        self.flat = FlatParameters(self._parameters, self._model.backend, arrays.params)
        message = _describe(
            self._model, self._objective, self._parameters, frozen, self._optimizer, arrays
        )
        for rank in range(1, self.size):
            process = subprocess.Popen(
                [sys.executable, "-c", f"from minigpt.parallel import work; work({rank})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
                pass_fds=arrays.region.inherited,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            channel = _Channel(process.stdout, process.stdin)
            self._workers.append((process, channel))
            self._send(channel, message)
        for process, channel in self._workers:
            self._receive(process, channel)
        arrays.region.close_handle()
        comm = _SharedComm(0, arrays.grads, arrays.scalars, self._barrier)
        self.replica = Replica(
            self._model, self._objective, self.flat, self._optimizer, comm, arrays.moments, arrays.grads[0]
        )

    def _stop(self) -> None:
        for _, channel in self._workers:
            channel.close()
        for process, _ in self._workers:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._workers = []
        self._stack.close()

    def _send(self, channel: _Channel, message: Any) -> None:
        try:
            channel.send(message)
        except BrokenPipeError:
            raise RunError("a worker process has died; the run cannot go on") from None

    def _receive(self, process: subprocess.Popen, channel: _Channel) -> Any:
        try:
            answer = channel.receive()
        except EOFError:
            code = process.wait()
            raise RunError(f"worker process {process.pid} has died (exit code {code})") from None
        if isinstance(answer, _WorkerError):
            raise RunError(f"a worker process failed:\n{answer}")
        return answer

    def _barrier(self) -> None:
        for process, channel in self._workers:
            self._receive(process, channel)
        for _, channel in self._workers:
            self._send(channel, None)

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
            raise RunError(f"step {step}: nothing in the batch is scored")
        parts = [take(batch, part) for part in shards(rows(batch), self.size)]
        common = (total, accumulation, step, rates, max_norm, seed)
        for (_, channel), part in zip(self._workers, parts[1:], strict=True):
            self._send(channel, ("step", (part, *common)))
        return self.replica.step(parts[0], *common)

    def evaluate(self, batches: Sequence[Batch]) -> float:
        """Mean loss over all that is scored in these batches, without dropout.

        Raises
        ------
        RunError
            If nothing is scored.
        """
        for rank, (_, channel) in enumerate(self._workers, start=1):
            self._send(channel, ("evaluate", (batches[rank :: self.size],)))
        sums = [self.replica.evaluate(batches[:: self.size])]
        sums += [self._receive(process, channel) for process, channel in self._workers]
        loss, count = (math.fsum(column) for column in zip(*sums, strict=True))
        if count == 0:
            raise RunError("nothing in the validation data is scored")
        return loss / count

    @property
    def moments(self) -> Any:
        """m and v, two (P,) vectors."""
        return self.replica.moments


class _Unsent(NamedTuple):
    """Stands for a weight while its model travels: the numbers are in the shared region."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)


def _describe(
    model: Any,
    objective: Objective,
    parameters: list[Parameter],
    frozen: list[Parameter],
    optimizer: AdamW,
    arrays: _Arrays,
) -> tuple[Any, bytes]:
    """All that a worker needs to become a rank, with the frozen weights put into the shared region."""
    for p, place in zip(frozen, layout(frozen).values(), strict=True):
        arrays.frozen[place] = p.data.reshape(-1)
    every = [*parameters, *frozen]
    data = [p.data for p in every]
    try:
        for p in every:
            p.data = _Unsent(p.data.shape, p.data.dtype)
        # cloudpickle sends by value what was defined in a notebook or a script
        body = cloudpickle.dumps((model, objective, parameters, frozen, optimizer))
    finally:
        for p, array in zip(every, data, strict=True):
            p.data = array
    return (arrays.region.handle, arrays.spec), body


def work(rank: int) -> None:
    """Body of a worker process: become rank `rank` of the team that the parent describes, until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    channel = _Channel(sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the code prints must not get into the protocol
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
    except Exception:
        try:
            channel.send(_WorkerError(traceback.format_exc()))
        except BrokenPipeError:
            pass  # nobody is left to tell
        os._exit(1)


def _become(rank: int, channel: _Channel) -> Replica:
    (handle, spec), body = channel.receive()
    model, objective, parameters, frozen, optimizer = pickle.loads(body)
    arrays = _Arrays(*spec, handle=handle)
    arrays.region.close_handle()
    flat = FlatParameters(parameters, model.backend, arrays.params, fill=False)
    for p, place in zip(frozen, layout(frozen).values(), strict=True):
        p.data = arrays.frozen[place].reshape(p.data.shape)

    def barrier() -> None:
        channel.send(None)
        channel.receive()

    comm = _SharedComm(rank, arrays.grads, arrays.scalars, barrier)
    return Replica(model, objective, flat, optimizer, comm, arrays.moments, arrays.grads[rank])
