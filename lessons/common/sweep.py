"""Many short runs side by side: each in a process with one BLAS thread, each result a file, so that a sweep goes on
where it was stopped. The processes are this machine's, or the tasks of a job array on a cluster.

A job is a plain dict that says everything about a run. Its result is kept under a hash of it: a job that was done in
an earlier sitting, or by another part of the same sweep on another machine, is not done again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import threadpoolctl
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import resource_tracker
from tqdm import tqdm

from minigpt import files
from minigpt.errors import InputError, RunError

Job = Mapping[str, Any]

CLUSTERS = ("slurm", "local")
ARRAY = 32
"""Tasks of a job array, unless another number is asked for."""
HOURS = 4
"""What each of them asks for; ``SBATCH_TIMELIMIT`` asks for another time."""


@dataclass(frozen=True)
class Result:
    """What a job gave.

    Attributes
    ----------
    job : dict
    values : dict
        What the function returned; empty if it failed.
    error : str
        One line, if a run failed as a run (it diverged); empty otherwise.
    seconds : float
    """

    job: dict[str, Any]
    values: dict[str, Any]
    error: str
    seconds: float


def run(
    function: Callable[[Job], dict[str, Any]],
    jobs: Iterable[Job],
    directory: str | Path,
    workers: int = 0,
    part: tuple[int, int] = (1, 1),
    title: str = "runs",
    progress: bool = True,
    cluster: str = "",
) -> list[Result]:
    """Do all jobs that have no result yet, and give the results of all.

    Parameters
    ----------
    function : (job) -> dict
        Of a module, so that other processes can import it; its result has to be ready for JSON.
    jobs : iterable of dict
        Ready for JSON. Equal ones are done once.
    directory : path
        Where results are kept.
    workers : int
        Processes; 0: one a core, on a cluster `ARRAY`.
    part : (i, n)
        Do only the i-th of n parts, counted from 1, as a job array on a cluster does; results of the other parts are
        given where they are there.
    title : str
        Of the progress bar, which estimates the time that is left.
    progress : bool
        Show it.
    cluster : str
        Where the processes run, if not here: ``"slurm"``, as tasks of a job array, or ``"local"``, which is the same
        on this machine, to try it. The directory has to be one that all machines see.

    Returns
    -------
    results : list of Result
        In the order of the jobs. A run that failed as a run (`RunError`) is a result with its error.

    Raises
    ------
    InputError
        What a job raised: its settings are wrong, and the sweep stops.
    RunError
        If results cannot be written, or a process dies.
    """
    i, n = part
    if not 1 <= i <= n:
        raise InputError(f"part {i} of {n}: parts are counted from 1 to {n}")
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the directory {folder}: {error.strerror}") from None
    wanted = list({key(job): dict(job) for job in jobs}.items())
    mine = [(name, job) for name, job in wanted[i - 1 :: n] if not (folder / f"{name}.json").exists()]
    if mine:
        all_of_mine = len(wanted[i - 1 :: n])
        if cluster:
            _submit(function, mine, folder, cluster, workers, title, progress, all_of_mine)
        else:
            _work(function, mine, folder, workers or cores(), title, progress, all_of_mine)
    return [_read(folder / f"{name}.json") for name, _ in wanted if (folder / f"{name}.json").exists()]


def key(job: Job) -> str:
    """The name under which a job's result is kept: its method and task, if it has them, and a hash of all it says."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
    return "-".join([*(str(job[part]) for part in ("method", "task") if job.get(part)), digest]).replace("/", "_")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(
    function: Callable[[Job], dict[str, Any]],
    jobs: Sequence[tuple[str, dict[str, Any]]],
    folder: Path,
    workers: int,
    title: str,
    progress: bool,
    total: int,
) -> None:
    tasks = (joblib.delayed(_do)(function, job, str(folder / f"{name}.json")) for name, job in jobs)
    with (
        joblib.parallel_config("loky", n_jobs=min(workers, len(jobs)), inner_max_num_threads=1),
        tqdm(
            total=total, initial=total - len(jobs), desc=title, unit="run", disable=not progress, dynamic_ncols=True
        ) as bar,
    ):
        results = None
        try:
            with _shielded():
                results = joblib.Parallel(return_as="generator_unordered", batch_size=1)(tasks)
            for fault in results:
                bar.update(1)
                if fault is not None:
                    kind, message = fault
                    raise kind(message)
        finally:
            if results is not None:
                results.close()
            get_reusable_executor().shutdown(wait=True, kill_workers=True)  # leaves no process behind
            # loky gives its semaphores back when its objects are collected: now, not while the process is ending.
            results = None
            gc.collect()


def _submit(
    function: Callable[[Job], dict[str, Any]],
    jobs: Sequence[tuple[str, dict[str, Any]]],
    folder: Path,
    cluster: str,
    workers: int,
    title: str,
    progress: bool,
    total: int,
) -> None:
    # Each task of the array does every n-th job, one after the other: a run is short beside what a task costs Slurm.
    try:
        import submitit
    except ImportError as error:
        raise InputError(f'a sweep on a cluster takes submitit ({error}): pip install "minigpt[cluster]"') from None
    if cluster not in CLUSTERS:
        raise InputError(f"no cluster {cluster!r}; there are {', '.join(CLUSTERS)}")
    n = min(len(jobs), workers or (ARRAY if cluster == "slurm" else cores()))
    paths = [(job, str((folder / f"{name}.json").absolute())) for name, job in jobs]
    try:
        executor = submitit.AutoExecutor(folder / "submitit", cluster=cluster)
        executor.update_parameters(name="minigpt", timeout_min=60 * HOURS, tasks_per_node=1, cpus_per_task=1)
        tasks = executor.map_array(_do_in_turn, [function] * n, [paths[i::n] for i in range(n)])
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:  # no Slurm here, or it will not take the jobs
        raise RunError(f"cannot submit to {cluster}: {str(error).strip()}") from None
    try:
        with tqdm(
            total=total, initial=total - len(jobs), desc=title, unit="run", disable=not progress, dynamic_ncols=True
        ) as bar:
            waiting = list(tasks)
            while waiting:
                time.sleep(POLL)
                bar.update(total - len(jobs) + sum(os.path.exists(path) for _, path in paths) - bar.n)
                ended, waiting = [t for t in waiting if t.done()], [t for t in waiting if not t.done()]
                for task in ended:
                    _told(task)
    finally:
        for task in tasks:  # a task that has ended does not mind
            task.cancel()


POLL = 0.5
"""Seconds between looks at what the tasks of an array have done."""


def _told(task: Any) -> None:
    # What a task of an array had to say: a fault, or that it was ended from outside.
    try:
        fault = task.result()
    except Exception as error:
        raise RunError(f"a task of the job array has died ({type(error).__name__}): see {task.paths.stderr}") from None
    if fault is not None:
        kind, message = fault
        raise kind(message)


def _do_in_turn(
    function: Callable[[Job], dict[str, Any]], jobs: Sequence[tuple[dict[str, Any], str]]
) -> tuple[type, str] | None:
    for job, path in jobs:
        fault = None if os.path.exists(path) else _do(function, job, path)  # an earlier array may still be at work
        if fault is not None:
            return fault
    return None


@contextmanager
def _shielded() -> Iterator[None]:
    # Processes that are started in here never see Ctrl-C, which a terminal sends to all of them: it is for the one that
    # waits for them, and it ends them. What is pressed in the meantime comes when the shield is gone.
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # loky's own process; starting it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _do(function: Callable[[Job], dict[str, Any]], job: dict[str, Any], path: str) -> tuple[type, str] | None:
    # In another process. A failed run is a result; wrong settings and faults of the program stop the sweep.
    began, values, error = time.perf_counter(), {}, ""
    with threadpoolctl.threadpool_limits(1):
        try:
            values = function(job)
        except RunError as failed:
            error = str(failed)
        except InputError as wrong:
            return InputError, f"{job}: {wrong}"
        except NotImplementedError as missing:  # in a student's copy of the course; it says which exercise
            return RunError, str(missing)
        except Exception:
            return RunError, f"{job} failed:\n{traceback.format_exc()}"
    files.write_json(
        path,
        {"job": job, "values": values, "error": error, "seconds": round(time.perf_counter() - began, 2)},
    )
    return None


def _read(path: Path) -> Result:
    stored = files.read_json(path)
    try:
        return Result(**stored)
    except TypeError:
        raise InputError(f"{path} is not the result of a run: remove it") from None
