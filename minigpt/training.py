"""The training loop: steps, evaluation, early stop, checkpoints and resume, log, progress bar, callbacks."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minigpt import distributed, files
from minigpt.context import Context
from minigpt.errors import InputError, RunError
from minigpt.objectives import Batch, Objective, rows, shards, take
from minigpt.optim import SCHEDULES, AdamW, ParameterGroup, Schedule, make_schedule
from minigpt.parallel import LocalTeam, Team, passes
from minigpt.parameters import Gradients, Parameter

Callback = Callable[["State"], None]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Attributes
    ----------
    steps : int
        Optimizer steps.
    accumulation : int
        Passes in which each worker runs its part of the batch: more need less memory, for the same gradient.
    lr, schedule, warmup, min_lr
        Learning rate; ``schedule`` is "cosine", "linear" or "constant".
    beta1, beta2, eps, weight_decay
        Of AdamW. Only matrices decay.
    max_norm : float or None
        Clip the global norm of the gradient.
    eval_every : int
        Evaluate on the validation batches every so many steps, and at the end; 0: never.
    patience : int
        Stop after so many evaluations in a row without a new best; 0: never.
    keep_best : bool
        End with the weights of the best evaluation instead of the last step's.
    checkpoint_every : int
        Write a checkpoint every so many steps; 0: only when interrupted. Needs a directory.
    log_every : int
        Write a line of the log every so many steps.
    seed : int
        Of dropout; initial weights and batches have their own.
    workers : int
        Processes on this machine, each with one BLAS thread; 0: one a core. If a launcher such as ``mpiexec`` has
        started this process, each rank is one process.
    """

    steps: int
    accumulation: int = 1
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 0
    min_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_norm: float | None = 1.0
    eval_every: int = 0
    patience: int = 0
    keep_best: bool = False
    checkpoint_every: int = 0
    log_every: int = 10
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (
            ("steps", 1), ("accumulation", 1), ("warmup", 0), ("eval_every", 0), ("patience", 0),
            ("checkpoint_every", 0), ("log_every", 1), ("seed", 0), ("workers", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not hasattr(value, "__index__") or value < lowest:
                raise InputError(f"{name} is {value}; it must be a whole number of {lowest} or more")
            object.__setattr__(self, name, operator.index(value))  # JSON knows no integers of NumPy's
        if self.schedule not in SCHEDULES:
            raise InputError(f"no schedule {self.schedule!r}; there are {', '.join(SCHEDULES)}")
        for name in ("lr", "min_lr", "eps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be a number of 0 or more")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise InputError(f"beta1 and beta2 are {self.beta1} and {self.beta2}; they must be in [0, 1)")
        if self.max_norm is not None and not self.max_norm > 0:
            raise InputError(f"max_norm is {self.max_norm}; it must be above 0")
        if (self.patience or self.keep_best) and not self.eval_every:
            raise InputError("patience and keep_best need eval_every: nothing is evaluated otherwise")

    @property
    def rate(self) -> Schedule:
        """Learning rate by step."""
        return make_schedule(self.schedule, self.lr, self.steps, self.warmup, self.min_lr)


@dataclass
class History:
    """What a run measured.

    Attributes
    ----------
    steps, losses, rates, norms : list
        One entry a step: its number (from 1), training loss of its batch, learning rate, gradient norm.
    eval_steps, eval_losses : list
        One entry an evaluation.
    best_step, best_loss
        Of the best evaluation; None without one.
    stopped : str
        Why the run ended: ``"done"``, ``"early stop"``, ``"stopped by a callback"``, ``"interrupted"``.
    seconds : float
        Wall-clock time, all sittings of a resumed run together.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    eval_steps: list[int] = field(default_factory=list)
    eval_losses: list[float] = field(default_factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    stopped: str = "done"
    seconds: float = 0.0


@dataclass
class State:
    """What a callback sees after every step; setting `stop` ends the run.

    Attributes
    ----------
    step : int
        Steps done.
    model
    history : History
    evaluated : bool
        Whether this step was followed by an evaluation.
    stop : bool
    rank : int
        Of this process among those that a launcher has started: callbacks are called on each of them.
    """

    step: int
    model: Any
    history: History
    evaluated: bool = False
    stop: bool = False
    rank: int = 0


@distributed.together()
def train(
    model: Any,
    objective: Objective,
    batches: Callable[[int], Batch],
    config: TrainConfig,
    validation: Sequence[Batch] = (),
    groups: Sequence[ParameterGroup] = (),
    callbacks: Sequence[Callback] = (),
    directory: str | Path | None = None,
    resume: bool = False,
    progress: bool | str = True,
) -> History:
    """Train a model's trainable parameters, in place.

    In a program that ``mpiexec`` or ``srun --mpi`` has started, all ranks have to make the same call, with the same
    model and data: they train it together, see `minigpt.distributed`. Rank 0 writes and shows what there is.

    Parameters
    ----------
    model
        Anything with ``forward``, ``parameters``, ``context`` and ``backend``, such as a `GPT`.
    objective : Objective
        The loss.
    batches : (step) -> Batch
        The batch of a step (from 0); a pure function, so that a resumed run sees the same data.
    config : TrainConfig
    validation : sequence of Batch
        Evaluated every `eval_every` steps.
    groups : sequence of ParameterGroup
        Learning rates, decay and schedules of some parameters.
    callbacks : sequence of callables
        Called with a `State` after every step.
    directory : path, optional
        Where the log and the checkpoints go.
    resume : bool
        Go on from the newest checkpoint in `directory`, if there is one.
    progress : bool or str
        Show a progress bar, with this text in front.

    Returns
    -------
    history : History

    Raises
    ------
    ValueError
        If settings do not fit, or a checkpoint to resume from does not belong to this run.
    RunError
        If a loss or gradient is not finite (the message names the step and the first such array), a worker
        dies, or log or checkpoint cannot be written. The model has the weights from before the failed step.
    """
    if config.eval_every and not validation:
        raise InputError("eval_every is set, but there is no validation data")
    if (resume or config.checkpoint_every) and directory is None:
        raise InputError("checkpoints and resume need a directory")
    parameters = AdamW.order(model.parameters(), groups, config.weight_decay)
    optimizer = AdamW(parameters, model.backend, groups, (config.beta1, config.beta2), config.eps, config.weight_decay)
    first = batches(0)
    size = team_size(config.workers, model.backend.name, rows(first))
    team: Team
    if distributed.several():
        team = distributed.LaunchedTeam(model, objective, parameters, optimizer)
    else:
        team = LocalTeam(model, objective, parameters, optimizer, size)
    identity = {}
    if directory is not None:
        identity = _identity(model, parameters, config, groups, team.size, first, validation)
    with (
        team,
        interruptible() as interrupted,
        _Run(team, model, config, optimizer, directory, identity) as run,
    ):
        team.require_equal(lambda: _ingredients(model, config, first, validation))
        start = run.resume() if resume else run.begin()
        with _bar(progress if team.rank == 0 else False, config.steps, start) as bar:
            run.loop(start, batches, validation, callbacks, interrupted, bar)
        return run.finish()


def team_size(workers: int, backend: str, batch_rows: int) -> int:
    """How many processes a run uses on this machine: as asked, or one a core; at most one a row.

    A rank that a launcher has started is one process.

    Raises
    ------
    ValueError
        If workers are asked for on top of several ranks.
    """
    found = distributed.launched()
    if found is not None and found.size > 1 and workers > 1:
        raise InputError(
            f"workers is {workers}, but the launcher has started {found.size} ranks, which are one process each: "
            "leave workers out"
        )
    if backend != "numpy" or (found is not None and not workers):
        return 1
    if not workers:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(workers, batch_rows))


class _Run:
    """One run's moving parts; `train` is its only user."""

    def __init__(
        self,
        team: Team,
        model: Any,
        config: TrainConfig,
        optimizer: AdamW,
        directory: str | Path | None,
        identity: dict[str, Any],
    ) -> None:
        self.team = team
        self.model = model
        self.config = config
        self.optimizer = optimizer
        self.directory = Path(directory) if directory is not None else None
        self.identity = identity
        self.history = History()
        self.best: np.ndarray | None = None
        self.since_best = 0
        self.checkpointed = -1
        self.log: Any = None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.log is not None:
            self.log.close()

    # ------------------------------------------------------------------------------------------ the loop

    def loop(
        self,
        start: int,
        batches: Callable[[int], Batch],
        validation: Sequence[Batch],
        callbacks: Sequence[Callback],
        interrupted: Callable[[], bool],
        bar: Any,
    ) -> None:
        config, history = self.config, self.history
        if config.patience and self.since_best >= config.patience:
            history.stopped = "early stop"
            return
        began = time.perf_counter() - history.seconds
        state = State(start, self.model, history, rank=self.team.rank)
        for step in range(start, config.steps):
            rates = self.optimizer.rates(config.rate, step)
            batch = batches(step)
            loss, norm = self.team.step(batch, config.accumulation, step, rates, config.max_norm, config.seed)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                culprit = self.culprit(batch, step)
                raise RunError(
                    f"step {step + 1}: loss is {loss}, gradient norm is {norm}; first not finite: {culprit}. "
                    "A smaller learning rate or a longer warm-up usually helps."
                )
            done = step + 1
            history.steps.append(done)
            history.losses.append(loss)
            history.rates.append(max(rates))
            history.norms.append(norm)
            state.step, state.evaluated = done, False
            bar.update(1)
            if config.eval_every and (done % config.eval_every == 0 or done == config.steps):
                self.evaluate(done, validation)
                state.evaluated = True
            history.seconds = time.perf_counter() - began
            if done % config.log_every == 0 or state.evaluated or done == config.steps:
                self.write_log(done, state.evaluated)
                shown = {"loss": f"{np.mean(history.losses[-20:]):.3f}"}
                if history.eval_losses:
                    shown["val"] = f"{history.eval_losses[-1]:.3f}"
                bar.set_postfix(shown, refresh=False)
            for callback in callbacks:
                callback(state)
            state.stop, stop_now = self.team.any((state.stop, interrupted()))
            if config.patience and self.since_best >= config.patience:
                history.stopped = "early stop"
            elif state.stop:
                history.stopped = "stopped by a callback"
            elif stop_now and done < config.steps:
                history.stopped = "interrupted"
            ending = history.stopped != "done" or done == config.steps
            if self.directory is not None and (
                (config.checkpoint_every and (done % config.checkpoint_every == 0 or ending))
                or history.stopped == "interrupted"
            ):
                self.checkpoint(done)
            if ending:
                return

    def evaluate(self, step: int, validation: Sequence[Batch]) -> None:
        loss = self.team.evaluate(validation)
        history = self.history
        if not math.isfinite(loss):
            objective = self.team.replica.objective
            each = ((batch, objective.total(batch), self.model.context()) for batch in validation)
            culprit = first_nonfinite(self.model, objective, each)
            raise RunError(f"step {step}: validation loss is {loss}; first not finite: {culprit}")
        history.eval_steps.append(step)
        history.eval_losses.append(loss)
        if history.best_loss is None or loss < history.best_loss:
            history.best_loss, history.best_step = loss, step
            self.since_best = 0
            if self.config.keep_best:
                self.best = self.model.backend.to_numpy(self.team.flat.buffer).copy()
        else:
            self.since_best += 1

    def culprit(self, batch: Batch, step: int) -> str:
        """What was not finite first in a training step: its passes once more, with their dropout."""
        config, objective, size = self.config, self.team.replica.objective, self.team.size
        total = objective.total(batch)
        each = (
            (part, total, ctx)
            for rank, shard in enumerate(shards(rows(batch), size))
            for part, ctx in passes(self.model, take(batch, shard), config.accumulation, [config.seed, step, rank])
        )
        return first_nonfinite(self.model, objective, each)

    def finish(self) -> History:
        if self.config.keep_best and self.best is not None and self.history.stopped != "interrupted":
            self.team.flat.buffer[...] = self.model.backend.asarray(self.best)
        return self.history

    # ------------------------------------------------------------------------------------------ log

    def write_log(self, step: int, evaluated: bool) -> None:
        if self.log is None:
            return
        history = self.history
        line = {
            "step": step,
            "loss": history.losses[-1],
            "lr": history.rates[-1],
            "grad_norm": history.norms[-1],
            "seconds": round(history.seconds, 3),
        }
        if evaluated:
            line["validation_loss"] = history.eval_losses[-1]
        rest, end = json.dumps(line).encode() + b"\n", self.log.tell()
        try:
            while rest:  # a disk that is getting full takes a part first
                rest = rest[self.log.write(rest) :]
        except OSError as error:
            with suppress(OSError):  # the first error is the one to report
                self.log.truncate(end)
            raise RunError(f"cannot write {self.log.name}: {error.strerror}") from None

    # ------------------------------------------------------------------------------------------ checkpoints

    def begin(self) -> int:
        """Start afresh: an empty log, and no checkpoint of an earlier run to be mistaken for this one's."""
        if self.directory is not None and self.team.rank == 0:
            folder = self.directory / "checkpoints"
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                files.clean_leftovers(self.directory)
                if folder.is_dir():
                    files.remove_directory(folder)
                self._open_log("wb")
            except OSError as error:
                raise RunError(f"cannot write to {self.directory}: {error.strerror}") from None
        return 0

    def checkpoint(self, step: int) -> None:
        """Write all that a resume needs into one file, so that there is always a whole checkpoint on disk."""
        if self.checkpointed == step:
            return
        assert self.directory is not None
        m, v = self.team.moments
        self.checkpointed = step
        if self.team.rank:
            return
        to_numpy = self.model.backend.to_numpy
        tensors = {"parameters": to_numpy(self.team.flat.buffer), "m": to_numpy(m), "v": to_numpy(v)}
        if self.best is not None:
            tensors["best"] = self.best
        state = {
            "step": step,
            "identity": self.identity,
            "history": asdict(self.history) | {"stopped": "done"},
            "since_best": self.since_best,
        }
        folder = self.directory / "checkpoints"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make {folder}: {error.strerror}") from None
        files.save_tensors(folder / f"step-{step:09d}.safetensors", tensors, {"state": json.dumps(state)})
        self._tidy()

    def resume(self) -> int:
        """Go on where the newest checkpoint was written; from the start if there is none."""
        found = self.team.share(self._newest)
        if found is None:
            return self.begin()
        tensors, state = found
        asarray = self.model.backend.asarray
        self.team.flat.buffer[...] = asarray(tensors["parameters"])
        m, v = self.team.moments
        m[...], v[...] = asarray(tensors["m"]), asarray(tensors["v"])
        self.best = tensors.get("best")
        self.since_best = state["since_best"]
        self.history = History(**state["history"])
        self.checkpointed = state["step"]
        if self.team.rank == 0:
            self._tidy()
            self._cut_log(self.checkpointed)
        return self.checkpointed

    def _newest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and state of the newest checkpoint, if there is one and it is of this run."""
        assert self.directory is not None
        there = checkpoints(self.directory)
        if not there:
            return None
        newest = there[-1]
        tensors, metadata = files.load_tensors(newest)
        if not {"state", "sha256"} <= metadata.keys():
            raise InputError(f"{newest} is not the checkpoint of a run")
        state = json.loads(metadata["state"])
        theirs, mine = state["identity"], self.identity
        if distributed.several() and "workers" in theirs:
            # The launcher, not this program, says how many ranks there are: a cluster may have fewer of them to give
            # than before. The run goes on as the same one but for rounding, and for what dropout draws. On one machine
            # any number of workers can be had, so there a resumed run is held to the same bytes.
            theirs = {**theirs, "workers": mine["workers"]}
        if theirs != mine:
            raise InputError(f"cannot resume from {newest}: {_difference(theirs, mine)}")
        return tensors, state

    def _tidy(self) -> None:
        # What a kill may have left, and all checkpoints but the newest.
        assert self.directory is not None
        *older, newest = checkpoints(self.directory)
        for old in older:
            old.unlink()
        files.clean_leftovers(newest.parent)

    def _cut_log(self, step: int) -> None:
        # Steps after the checkpoint will be run again: their old lines go.
        assert self.directory is not None
        path = self.directory / "log.jsonl"
        kept = b""
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                found = re.match(rb'\{"step": (\d+),', line)
                if found and int(found[1]) <= step and line.endswith(b"\n"):
                    kept += line
        files.write_atomic(path, kept)
        self._open_log("ab")

    def _open_log(self, mode: str) -> None:
        # Unbuffered: a line that the disk refuses is not kept for another try when the file is closed.
        assert self.directory is not None
        self.log = open(self.directory / "log.jsonl", mode, buffering=0)  # noqa: SIM115 (closed by __exit__)


def checkpoints(directory: str | Path) -> list[Path]:
    """Checkpoints in a run's directory, oldest first."""
    return sorted(Path(directory, "checkpoints").glob("step-*.safetensors"))


_FREE = ("workers", "checkpoint_every", "log_every")  # settings that a resumed run may change


def _identity(
    model: Any,
    parameters: Sequence[Parameter],
    config: TrainConfig,
    groups: Sequence[ParameterGroup],
    size: int,
    first: Batch,
    validation: Sequence[Batch],
) -> dict[str, Any]:
    """What has to be the same for a resumed run to be the same run, ready for JSON."""
    trained = {id(p) for p in parameters}
    frozen = {p.name: model.backend.to_numpy(p.data) for p in model.parameters() if id(p) not in trained}
    return {
        "settings": {name: value for name, value in asdict(config).items() if name not in _FREE},
        "workers": size,
        "parameters": _digest([(p.name, str(p.data.dtype), p.data.shape) for p in parameters]),
        "groups": _digest([(g.pattern, g.lr_scale, g.weight_decay, g.schedule is not None) for g in groups]),
        "frozen": _digest(frozen),
        "batches": _digest(first),
        "validation": _digest(*validation),
    }


def _ingredients(model: Any, config: TrainConfig, first: Batch, validation: Sequence[Batch]) -> dict[str, str]:
    """What has to be the same on all ranks of a run."""
    return {
        "settings": _digest(list(asdict(config).items())),
        "weights": _digest({p.name: model.backend.to_numpy(p.data) for p in model.parameters()}),
        "training batches": _digest(first),
        "validation batches": _digest(*validation),
    }


def _digest(*things: Any) -> str:
    """SHA-256 of what can be printed, and of the numbers in dicts of arrays."""
    digest = hashlib.sha256()
    for thing in things:
        if not isinstance(thing, dict):
            digest.update(repr(thing).encode())
            continue
        for name, array in sorted(thing.items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    part = next(part for part in mine if theirs.get(part) != mine[part])
    if part == "settings":
        name = next(k for k in mine[part] if theirs[part].get(k) != mine[part][k])
        return f"it was made with {name} = {theirs[part].get(name)}, this run has {mine[part][name]}"
    if part == "workers":
        return f"it was made with {theirs[part]} workers, this run has {mine[part]}: give workers={theirs[part]}"
    return {
        "parameters": "it is of a model with other trainable parameters",
        "groups": "it was made with other parameter groups",
        "frozen": "it is of a model with other frozen weights",
        "batches": "it was made with other training batches",
        "validation": "it was made with other validation batches",
    }[part]


def first_nonfinite(model: Any, objective: Objective, each: Iterable[tuple[Batch, float, Context]]) -> str:
    """Name of the first array that is not finite: a parameter, else what flows forward, else a gradient.

    Parameters
    ----------
    model
    objective : Objective
    each : iterable of (batch, total, Context)
        The passes to look at, and what their losses divide by. Gradients count if the context has them.

    Returns
    -------
    name : str
    """
    xp = model.backend.xp
    for p in model.parameters():
        if not bool(xp.isfinite(p.data).all()):
            return f"parameter {p.name}"
    seen: list[str] = []

    def watch(name: str, array: Any) -> None:
        if not seen and not bool(xp.isfinite(array).all()):
            seen.append(f"output of {name}")

    grads = Gradients(model.parameters(), model.backend)
    with np.errstate(all="ignore"):
        for batch, total, ctx in each:
            ctx.watch = watch
            loss, backward = objective.forward(model, batch, total, ctx)
            if seen:
                return seen[0]
            if not math.isfinite(loss):
                return "the loss itself"
            if ctx.grad:
                backward(grads)
                for name, array in reversed(grads.as_dict().items()):
                    if not bool(xp.isfinite(array).all()):
                        return f"gradient of {name}"
    return "the sum of squares, which overflows"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C finish the step at hand; a second one interrupts at once.

    Yields
    ------
    interrupted : () -> bool
    """
    flag = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # ignored: a job in the background
        yield flag.is_set
        return

    def handler(signum: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _bar(progress: bool | str, steps: int, start: int) -> Any:
    text = progress if isinstance(progress, str) else "training"
    return tqdm(
        total=steps,
        initial=start,
        desc=text,
        unit="step",
        disable=progress is False,
        dynamic_ncols=True,
        mininterval=0.2,
    )
