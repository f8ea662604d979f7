"""Ranks that a launcher has started, on this machine or on many: joined by MPI, or by NCCL where each has a GPU.

``mpiexec -n 4 python -m minigpt train …`` starts the same program four times. Every copy makes the same model and the
same batches, and computes the gradient of its own rows; `train` then is one run of all of them together. What is
written and shown is rank 0's. A script that calls `train` can be started in the same way.

- One process a rank, each with one BLAS thread: start as many ranks as there are cores.
- Whatever the ranks, a batch is cut into them and its gradient is the same up to the rounding of its sum. With dropout
  the ranks draw for their own rows, so another number of ranks is another draw.
- A rank that fails alone ends the job, with one line that names it; so does one that is killed.

The NCCL form has been run against a stand-in for its library only, never on several GPUs.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import threadpoolctl

from kernels.array import Array
from kernels.memory import keep_freed_memory
from minigpt.errors import InputError, RunError
from minigpt.objectives import Objective, shards
from minigpt.optim import AdamW
from minigpt.parallel import Comm, Replica, Shared, Team
from minigpt.parameters import FlatParameters, Parameter

# Where launchers say which rank a process is, and of how many: Open MPI's mpiexec; MPICH's, Intel's and Microsoft's,
# and srun --mpi=pmi2; srun --mpi=pmix.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
)
PATIENCE = 1.0
"""Seconds that a failing rank waits for the others to fail as well, before it ends the job for all."""


class Launched(NamedTuple):
    """Which rank a launcher has started this process as, and of how many."""

    rank: int
    size: int


def launched() -> Launched | None:
    """What the launcher's environment says of this process; None without a launcher. Imports nothing."""
    for rank, size in LAUNCHERS:
        if rank in os.environ and size in os.environ:
            return Launched(int(os.environ[rank]), int(os.environ[size]))
    return None


def several() -> bool:
    """Whether this process is one of several ranks."""
    found = launched()
    return found is not None and found.size > 1


# ---------------------------------------------------------------------------------------------- the job


_watchers: list[subprocess.Popen] = []


class _Job(NamedTuple):
    MPI: Any
    world: Any
    meeting: Any  # a communicator of its own, for `together`


@cache
def _job() -> _Job:
    """MPI, started at the first call, which all ranks have to make."""
    found = launched()
    assert found is not None
    try:
        with warnings.catch_warnings(action="ignore"):  # about a launcher of another MPI: said in one line below
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"the launcher started {found.size} processes, which takes mpi4py ({error}): "
            'pip install "minigpt[mpi]", or pip install mpi4py beside an MPI of your own'
        ) from None
    if found.size != MPI.COMM_WORLD.size:
        library = MPI.Get_library_version().split("\n")[0].strip(" \0")
        raise InputError(
            f"the launcher started {found.size} processes, but mpi4py sees {MPI.COMM_WORLD.size}: "
            f"the launcher has to be that of mpi4py's MPI, {library}"
        )
    _watch(MPI.COMM_WORLD.rank)
    sys.excepthook = _end_job_by_hook
    return _Job(MPI, MPI.COMM_WORLD, MPI.COMM_WORLD.Dup())


def _watch(rank: int) -> None:
    # A rank that is killed can say nothing, and MPICH's mpiexec does not say which one it was: a shell that outlives
    # the rank does. It waits for a line that only a rank that ends by itself writes.
    if os.name != "posix":
        return
    last_words = f'echo "minigpt: rank {rank} has died; the job ends" >&2'
    out = subprocess.DEVNULL
    if "PMI_FD" in os.environ and "HYDI_CONTROL_FD" in os.environ:  # MPICH's launcher: it ends the job when asked to
        # A second later, so that the launcher has read the line before it ends all that it would have read from.
        last_words += f"; sleep 1; echo cmd=abort exitcode={RunError.exit_code}; sleep 5"
        out = int(os.environ["PMI_FD"])
    shell = subprocess.Popen(
        ["/bin/sh", "-c", f'trap "" INT TERM; read -r line || {{ {last_words}; }}'], stdin=subprocess.PIPE, stdout=out
    )
    atexit.register(_dismiss, shell)
    _watchers.append(shell)


def _dismiss(shell: subprocess.Popen) -> None:
    with suppress(BrokenPipeError):  # it was killed itself
        shell.communicate(b"done\n")


@contextmanager
def together() -> Iterator[None]:
    """What fails on all ranks is an ordinary exception; what fails on some of them ends the job.

    The others may be waiting for the rank that failed, and would wait for ever. Without a launcher, or with a single
    rank, nothing is done.

    Raises
    ------
    InputError
        If the launcher has started several ranks, but MPI cannot be used.
    """
    if not several():
        yield
        return
    job = _job()
    try:
        yield
    except BaseException as error:
        if not _all_fail(job):
            _end_job(error)
        raise
    if job.meeting.allreduce(0):
        time.sleep(60)  # another rank has failed, and is about to end the job


def _all_fail(job: _Job) -> bool:
    """Say that this rank has failed, and hear whether all have."""
    failed = np.zeros(1, dtype="int64")
    request = job.meeting.Iallreduce(np.ones(1, dtype="int64"), failed)
    end = time.monotonic() + PATIENCE
    while not request.Test():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return int(failed[0]) == job.world.size


def _end_job(error: BaseException) -> NoReturn:
    """End all ranks, with one line that says which one failed and why."""
    text = str(error)
    code = RunError.exit_code
    if isinstance(error, InputError | RunError):
        code = error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        text, code = "interrupted", 128 + signal.SIGINT
    else:
        traceback.print_exception(error, file=sys.__stderr__)
        text = f"{type(error).__name__}: {error}"
    print(f"minigpt: rank {_job().world.rank}: {text}", file=sys.__stderr__, flush=True)
    for shell in _watchers:
        _dismiss(shell)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI has something to say about this, too
    _job().world.Abort(code)
    raise AssertionError("MPI_Abort does not return")


def _end_job_by_hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    # For exceptions that end a script: without this the others would wait, and so would the end of this process.
    if not _all_fail(_job()):
        _end_job(error)
    if _job().world.rank == 0:
        sys.__excepthook__(kind, error, trace)


# ---------------------------------------------------------------------------------------------- comms


class MPIComm(Comm):
    """Ranks joined by MPI, with vectors in the memory of the host.

    Parameters
    ----------
    mpi
        ``mpi4py.MPI``.
    world
        A communicator.
    """

    def __init__(self, mpi: Any, world: Any) -> None:
        self._mpi = mpi
        self.world = world
        self.rank = world.rank
        self.size = world.size

    def reduce_scatter(self, flat: Array) -> None:
        """See `Comm`. Each element is summed by one rank, so that no two ranks can disagree about it."""
        parts = shards(flat.shape[0], self.size)
        counts = [part.stop - part.start for part in parts]
        self.world.Reduce_scatter(self._mpi.IN_PLACE, flat, counts, op=self._mpi.SUM)
        # In place MPI leaves the result at the front.
        flat[parts[self.rank]] = flat[: counts[self.rank]]

    def sum(self, values: Sequence[float]) -> list[float]:
        """See `Comm`."""
        everyone = self.world.allgather([float(value) for value in values])
        return [float(sum(column)) for column in zip(*everyone, strict=True)]

    def all_gather(self, flat: Array) -> None:
        """See `Comm`."""
        parts = shards(flat.shape[0], self.size)
        layout = ([part.stop - part.start for part in parts], [part.start for part in parts])
        self.world.Allgatherv(self._mpi.IN_PLACE, [flat, layout])


class NcclComm(MPIComm):
    """Ranks with a GPU each: NCCL moves the vectors, MPI has started the ranks and moves the few numbers.

    The calls run in the GPU's order of work; nothing waits for them. Has not been run on several GPUs.

    Parameters
    ----------
    mpi, world
        As of `MPIComm`.
    cupy
        The module.

    References
    ----------
    NVIDIA Collective Communication Library, "In-place Operations" and "Group Calls".
    """

    def __init__(self, mpi: Any, world: Any, cupy: Any) -> None:
        super().__init__(mpi, world)
        self._cupy = cupy
        self._nccl = cupy.cuda.nccl
        unique = world.bcast(self._nccl.get_unique_id() if self.rank == 0 else None)
        self._ranks = self._nccl.NcclCommunicator(self.size, unique, self.rank)

    def own(self, n: int) -> slice:
        """Equal parts, as NCCL has them; the few elements that are left over are the last rank's."""
        part = n // self.size
        return slice(self.rank * part, (self.rank + 1) * part if self.rank < self.size - 1 else n)

    def reduce_scatter(self, flat: Array) -> None:
        """See `Comm`."""
        part, left, kind, stream = self._plan(flat)
        nccl, whole, own = self._nccl, flat.data.ptr, flat[self.rank * part :].data.ptr
        nccl.groupStart()
        self._ranks.reduceScatter(whole, own, part, kind, nccl.NCCL_SUM, stream)
        if left:
            tail = flat[self.size * part :].data.ptr
            self._ranks.reduce(tail, tail, left, kind, nccl.NCCL_SUM, self.size - 1, stream)
        nccl.groupEnd()

    def all_gather(self, flat: Array) -> None:
        """See `Comm`."""
        part, left, kind, stream = self._plan(flat)
        nccl, whole, own = self._nccl, flat.data.ptr, flat[self.rank * part :].data.ptr
        nccl.groupStart()
        self._ranks.allGather(own, whole, part, kind, stream)
        if left:
            tail = flat[self.size * part :].data.ptr
            self._ranks.broadcast(tail, tail, left, kind, self.size - 1, stream)
        nccl.groupEnd()

    def _plan(self, flat: Array) -> tuple[int, int, int, int]:
        n = flat.shape[0]
        kind = {"float32": self._nccl.NCCL_FLOAT32, "float64": self._nccl.NCCL_FLOAT64}[str(flat.dtype)]
        return n // self.size, n % self.size, kind, self._cupy.cuda.get_current_stream().ptr


def joined() -> MPIComm:
    """All launched ranks, for vectors on the host; every rank has to ask."""
    return MPIComm(_job().MPI, _job().world.Dup())


def choose_gpu() -> None:
    """Give each rank of a machine a GPU of its own; to be called before the model is made.

    Raises
    ------
    InputError
        If there are more ranks on this machine than GPUs.
    """
    import cupy

    job = _job()
    local = job.world.Split_type(job.MPI.COMM_TYPE_SHARED).rank
    count = cupy.cuda.runtime.getDeviceCount()
    if local >= count:
        raise InputError(f"rank {job.world.rank} has no GPU of its own: there are {count} for the ranks of its machine")
    cupy.cuda.Device(local).use()


# ---------------------------------------------------------------------------------------------- the team


class LaunchedTeam(Team):
    """The ranks that a launcher has started, as one of them. All of them make the same calls.

    Parameters
    ----------
    model, objective, parameters, optimizer
        As of `Team`; the same on all ranks, see `require_equal`.
    """

    def __init__(self, model: Any, objective: Objective, parameters: list[Parameter], optimizer: AdamW) -> None:
        self.world = _job().world
        super().__init__(model, objective, parameters, optimizer, self.world.size)
        self.rank = self.world.rank

    def __enter__(self) -> Self:
        keep_freed_memory()
        self._stack.enter_context(threadpoolctl.threadpool_limits(1, "blas"))
        backend = self._model.backend
        self.flat = FlatParameters(self._parameters, backend)
        self._stack.callback(self.flat.release)
        world = self.world.Dup()  # so that nothing of this run meets what another one has left
        self._stack.callback(world.Free)
        self.comm = MPIComm(_job().MPI, world)
        if backend.name == "cupy":
            import cupy

            self.comm = NcclComm(_job().MPI, world, cupy)
        self.replica = Replica(self._model, self._objective, self.flat, self._optimizer, self.comm)
        return self

    def _add_up(self, own: tuple[float, float]) -> tuple[float, float]:
        loss, count = self.comm.sum(own)
        return loss, count

    @property
    def moments(self) -> Any:
        """m and v, two (P,) vectors, whole: each rank updates its own part of them, and here they are put together."""
        for moment in self.replica.moments:
            self.comm.all_gather(moment)
        return self.replica.moments

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """See `Team`."""
        return [count > 0 for count in self.comm.sum(flags)]

    def share(self, make: Callable[[], Shared]) -> Shared:
        """See `Team`."""
        return share(make)

    def require_equal(self, facts: Callable[[], dict[str, str]]) -> None:
        """See `Team`."""
        first, *others = self.world.allgather(facts())
        for rank, theirs in enumerate(others, start=1):
            for name, value in first.items():
                if theirs[name] != value:
                    raise InputError(
                        f"rank {rank} has other {name} than rank 0: all ranks have to make the same model from the "
                        "same seed, and to see the same data"
                    )


def share(make: Callable[[], Shared]) -> Shared:
    """What rank 0 has made, on all ranks; what it raises, too. Without a launcher: what this process makes.

    Raises
    ------
    InputError, RunError
        As on rank 0.
    """
    if not several():
        return make()
    world = _job().world
    made, error = None, None
    if world.rank == 0:
        try:
            made = make()
        except (InputError, RunError) as wrong:
            error = wrong
    made, error = world.bcast((made, error))
    if error is not None:
        raise error
    return made  # type: ignore[return-value]
