"""What the tests of `minigpt.distributed` run under mpiexec: small trainings, and ways in which a rank can fail.

    mpiexec -n 2 python tests/ranks.py DIRECTORY SCENARIO ...

Each rank leaves `SCENARIO-RANK.npz` in the directory, with all that is to be compared. The same scenarios run in one
process, without a launcher, when a test calls `run`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lessons import METHODS
from minigpt import GPT, GPTConfig, distributed
from minigpt.objectives import LanguageModelling
from minigpt.parallel import Comm
from minigpt.training import TrainConfig, train

SIZES = {"vocab_size": 11, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 2}
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulation": 2},
    "fewer rows than ranks": {"rows": 1},
    "frozen": {"frozen": True},
    "lora": {"method": "lora"},
    "float32 and dropout": {"dtype": "float32", "dropout": 0.3},
    "keep best": {"lr": 0.3, "keep_best": True, "eval_every": 1, "patience": 2, "steps": 6},
}
STEPS = 3


def batch_of(step: int, n: int = 7) -> dict[str, np.ndarray]:
    """n rows of different numbers of scored targets; the last has none, unless it is the only one."""
    rng = np.random.default_rng(step)
    ids, targets = rng.integers(0, 11, (2, n, 8))
    targets[rng.random((n, 8)) < 0.3] = -100
    if n > 1:
        targets[-1] = -100
    return {"ids": ids, "targets": targets}


def model_of(
    dtype: str = "float64", dropout: float = 0.0, frozen: bool = False, method: str = "", seed: int = 1
) -> Any:
    """A tiny model, or one with a lesson's method in place."""
    config = GPTConfig(**SIZES, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    model = GPT(config, seed=seed, dtype=dtype)
    if method:
        return METHODS[method](r=2, target_modules=["c_attn"]).apply(model, seed=3)
    for p in model.parameters():
        p.trainable = not frozen or ".h.1." in p.name
    return model


def run(scenario: str, directory: Path, workers: int = 0, seed: int = 1) -> dict[str, np.ndarray]:
    """Train; what came out, also of every step, on this rank."""
    told = dict(SCENARIOS[scenario])
    n = told.pop("rows", 7)
    model = model_of(**{k: told.pop(k) for k in ("dtype", "dropout", "frozen", "method") if k in told}, seed=seed)
    hashes: list[str] = []

    def callback(state: Any) -> None:
        values = [np.ascontiguousarray(p.data) for p in model.parameters()]
        hashes.append(hashlib.sha256(b"".join(v.tobytes() for v in values)).hexdigest())

    settings = {"steps": STEPS, "lr": 1e-2, "max_norm": 0.5, "eval_every": 2, "workers": workers, "seed": 3} | told
    validation = [batch_of(100 + i, 3) for i in range(4)]
    history = train(
        model, LanguageModelling(), lambda step: batch_of(step, n), TrainConfig(**settings), validation, (), [callback],
        progress=False,
    )  # fmt: skip
    out = {p.name: p.data for p in model.parameters()}
    out |= {"loss": history.losses, "norm": history.norms, "validation": history.eval_losses, "hashes": hashes}
    out = {name: np.array(value) for name, value in out.items()}
    np.savez(directory / f"{scenario}-{(distributed.launched() or (0,))[0]}.npz", **out)
    return out


# ---------------------------------------------------------------------------------------------- comms


class Pointed:
    """A vector of which, as of CuPy's, only the address is to be had."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.data = SimpleNamespace(ptr=array.ctypes.data)
        self.dtype, self.shape = array.dtype, array.shape

    def __getitem__(self, part: slice) -> Pointed:
        return Pointed(self.array[part])


def pretended_cupy(world: Any, mpi: Any) -> Any:
    """What `NcclComm` uses of CuPy, on addresses of host memory; MPI moves the numbers."""

    def at(address: int, count: int, kind: int) -> np.ndarray:
        assert grouped[0]
        pointer = ctypes.cast(address, ctypes.POINTER({7: ctypes.c_float, 8: ctypes.c_double}[kind]))
        return np.ctypeslib.as_array(pointer, (count,))

    class Communicator:
        def __init__(self, size: int, unique: bytes, rank: int) -> None:
            assert (size, unique, rank) == (world.size, b"the id of rank 0", world.rank)
            self.size, self.rank = size, rank

        def reduceScatter(self, send: int, receive: int, count: int, kind: int, op: int, stream: int) -> None:
            assert (op, stream) == (0, 77)
            whole = at(send, count * self.size, kind).copy()
            world.Allreduce(mpi.IN_PLACE, whole)
            at(receive, count, kind)[:] = whole[self.rank * count : (self.rank + 1) * count]

        def reduce(self, send: int, receive: int, count: int, kind: int, op: int, root: int, stream: int) -> None:
            assert (op, stream) == (0, 77)
            whole = at(send, count, kind).copy()
            world.Allreduce(mpi.IN_PLACE, whole)
            if self.rank == root:
                at(receive, count, kind)[:] = whole

        def allGather(self, send: int, receive: int, count: int, kind: int, stream: int) -> None:
            assert stream == 77
            world.Allgather(at(send, count, kind).copy(), at(receive, count * self.size, kind))

        def broadcast(self, send: int, receive: int, count: int, kind: int, root: int, stream: int) -> None:
            assert stream == 77
            assert send == receive
            world.Bcast(at(send, count, kind), root)

    grouped = [False]
    nccl = SimpleNamespace(
        NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_SUM=0, NcclCommunicator=Communicator,
        get_unique_id=lambda: b"the id of rank 0",
        groupStart=lambda: grouped.__setitem__(0, True), groupEnd=lambda: grouped.__setitem__(0, False),
    )  # fmt: skip
    return SimpleNamespace(cuda=SimpleNamespace(nccl=nccl, get_current_stream=lambda: SimpleNamespace(ptr=77)))


def check_comm(comm: Comm, wrap: Any) -> None:
    """Reduce-scatter, all-gather and sum, against NumPy's own, for lengths that do not divide."""
    for n in (1, 2, 5, 64, 1001):
        for dtype in ("float32", "float64"):
            vectors = [np.random.default_rng([n, rank]).random(n).astype(dtype) for rank in range(comm.size)]
            flat = vectors[comm.rank].copy()
            own = comm.own(n)
            comm.reduce_scatter(wrap(flat))
            np.testing.assert_allclose(flat[own], sum(vectors)[own], rtol=1e-6 if dtype == "float32" else 1e-14)
            wanted = np.arange(n, dtype=dtype)
            flat[:] = np.nan
            flat[own] = wanted[own]
            comm.all_gather(wrap(flat))
            assert (flat == wanted).all(), (n, flat)
    values = [[0.1 * 3**rank, float(rank), 1e16 * (rank == 0)] for rank in range(comm.size)]
    total = comm.sum(values[comm.rank])
    expected = [0.0, 0.0, 0.0]
    for row in values:
        expected = [a + b for a, b in zip(expected, row, strict=True)]
    assert total == expected, (total, expected)


def comms(directory: Path) -> None:
    """Both kinds of communicator."""
    job = distributed._job()
    check_comm(distributed.MPIComm(job.MPI, job.world), lambda flat: flat)
    check_comm(distributed.NcclComm(job.MPI, job.world, pretended_cupy(job.world, job.MPI)), Pointed)
    (directory / f"comms-{job.world.rank}").write_text("fine")


# ---------------------------------------------------------------------------------------------- failures


class Fails(LanguageModelling):
    """Raises on rank 1, in the second step."""

    def __init__(self, error: BaseException, ranks: tuple[int, ...] = (1,)) -> None:
        self.error, self.ranks, self.calls = error, ranks, 0

    def forward(self, model: Any, batch: Any, total: float, ctx: Any) -> Any:
        self.calls += 1
        if distributed.launched().rank in self.ranks and self.calls == 2:
            raise self.error
        return super().forward(model, batch, total, ctx)


def fail(how: str, directory: Path) -> None:
    """Train, and fail in one of many ways; what ends well leaves a file."""
    rank = distributed.launched().rank
    objective, batches, callbacks, seed = LanguageModelling(), batch_of, [], 1
    settings: dict[str, Any] = {"steps": 4, "lr": 1e-2}
    if how == "exception":
        objective = Fails(ZeroDivisionError("only here"))
    elif how == "everywhere":
        objective = Fails(RuntimeError("the same on all"), (0, 1))
    elif how == "input":

        def batches(step: int) -> dict[str, np.ndarray]:
            batch = batch_of(step)
            if step == 1:
                batch["ids"][0, 2] = 99  # a row of rank 0
            return batch

    elif how == "nan":

        def callback(state: Any) -> None:
            if state.step == 2:
                state.model.h[1].mlp.c_fc.weight.data[...] = np.inf

        callbacks = [callback]
    elif how == "callback":

        def callback(state: Any) -> None:
            assert state.rank == rank
            if rank == 0 and state.step == 2:
                raise OSError("no room")

        callbacks = [callback]
    elif how == "seeds":
        seed = rank
    elif how == "data":

        def batches(step: int) -> dict[str, np.ndarray]:
            return batch_of(step + rank)

    elif how in ("stop", "kill 0", "kill 1", "hold"):

        def callback(state: Any) -> None:
            if how == "stop" and state.step == 2 and rank == 1:
                state.stop = True
            if how == f"kill {rank}" and state.step == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        callbacks = [callback]
        settings["steps"] = 4 if how == "stop" else 10_000_000
    elif how == "script":
        distributed.share(lambda: None)
        if rank == 1:
            raise LookupError("in the script")
        time.sleep(600)
    elif how == "workers":
        settings["workers"] = 2
    model = model_of(seed=seed)
    history = train(model, objective, batches, TrainConfig(**settings), callbacks=callbacks, progress=False)
    (directory / f"ended-{rank}").write_text(f"{history.stopped} after {history.steps[-1]}")


if __name__ == "__main__":
    where = Path(sys.argv[1])
    for wanted in sys.argv[2:]:
        if wanted == "comms":
            comms(where)
        elif wanted.startswith("fail "):
            fail(wanted.removeprefix("fail "), where)
        else:
            run(wanted, where)
