"""Ranks to measure: as processes of this machine, or started by mpiexec where there is one.

`under_mpi` runs ``mpiexec -n 2 python -m lessons.common.ranks TASK``. The task is JSON, and so is what rank 0 prints.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from minigpt import GPT, GPTConfig, distributed
from minigpt.errors import RunError
from minigpt.objectives import Batch, LanguageModelling
from minigpt.optim import AdamW, constant
from minigpt.parallel import ONE_THREAD, LocalTeam, Team

MISSING = "mpi4py and mpiexec are not installed"


def mpiexec() -> str | None:
    """The launcher that belongs to this Python, or is on the path; None if MPI cannot be used."""
    if importlib.util.find_spec("mpi4py") is None or distributed.several():
        return None
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("mpiexec", path=places)


def under_mpi(size: int, task: Mapping[str, Any]) -> dict[str, Any]:
    """What `perform` gives for a task on so many ranks.

    Raises
    ------
    RunError
        If there is no MPI, or it fails.
    """
    launcher = mpiexec()
    if launcher is None:
        raise RunError(MISSING)
    done = subprocess.run(
        [launcher, "-n", str(size), sys.executable, "-m", "lessons.common.ranks", json.dumps(task)],
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunError(f"mpiexec ended with exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def perform(size: int, task: Mapping[str, Any]) -> dict[str, Any]:
    """Train with so many ranks, or measure what they say to each other.

    Parameters
    ----------
    size : int
        Processes of this machine, unless a launcher has started the ranks.
    task : dict
        ``kind`` is ``"train"``: ``config`` of the model, ``rows`` and ``tokens`` of a batch, ``steps``, ``warmup``,
        ``accumulation``; or ``"all_reduce"``: ``sizes`` in bytes and ``repeats``, which takes MPI.

    Returns
    -------
    result : dict
        ``losses``, ``sha256`` of the weights and median ``seconds`` of a step; or ``seconds`` for each size.
    """
    if task["kind"] == "all_reduce":
        return {"seconds": [all_reduce_seconds(nbytes, task["repeats"]) for nbytes in task["sizes"]]}
    model = GPT(GPTConfig(**task["config"]), seed=0)
    parameters = AdamW.order(model.parameters(), (), 0.1)
    optimizer = AdamW(parameters, model.backend, weight_decay=0.1)
    batches = random_batches(model.config.vocab_size, task["rows"], task["tokens"])
    losses, times = [], []
    with threadpoolctl.threadpool_limits(1, "blas"), team_of(model, parameters, optimizer, size) as team:
        for step in range(task["warmup"] + task["steps"]):
            batch, rates = batches(step), optimizer.rates(constant(1e-3), step)
            began = time.perf_counter()
            losses.append(team.step(batch, task["accumulation"], step, rates, 1.0, seed=0)[0])
            times.append(time.perf_counter() - began)
        weights = model.backend.to_numpy(team.flat.buffer)
        digest = hashlib.sha256(weights.tobytes()).hexdigest()
    return {"losses": losses, "sha256": digest, "seconds": statistics.median(times[task["warmup"] :])}


def team_of(model: GPT, parameters: list[Any], optimizer: AdamW, size: int) -> Team:
    """The ranks that a launcher has started, or so many processes."""
    if distributed.several():
        return distributed.LaunchedTeam(model, LanguageModelling(), parameters, optimizer)
    return LocalTeam(model, LanguageModelling(), parameters, optimizer, size)


def random_batches(vocab_size: int, rows: int, tokens: int) -> Callable[[int], Batch]:
    """Batches of a step, of ids drawn at random."""

    def batches(step: int) -> Batch:
        ids = np.random.default_rng([7, step]).integers(0, vocab_size, (rows, tokens + 1))
        return {"ids": ids[:, :-1], "targets": ids[:, 1:]}

    return batches


def all_reduce_seconds(nbytes: int, repeats: int) -> float:
    """Median time in which the launched ranks sum a float32 vector: reduce-scatter and all-gather, as training does."""
    comm = distributed.joined()
    flat = np.ones(max(1, nbytes // 4), np.float32)
    times = []
    for _ in range(repeats + 1):
        comm.sum([0.0])  # all begin together
        began = time.perf_counter()
        comm.reduce_scatter(flat)
        comm.all_gather(flat)
        times.append(time.perf_counter() - began)
    return statistics.median(comm.sum([t])[0] / comm.size for t in times[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Perform the task; rank 0 prints the result."""
    (text,) = sys.argv[1:] if argv is None else argv
    found = distributed.launched()
    assert found is not None
    with distributed.together():
        result = perform(found.size, json.loads(text))
    if found.rank == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
