"""One fine-tuning run: a method on a base and a task, at a stated budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lessons.common.method import Method, n_trainable
from lessons.common.tasks import TrainingData
from minigpt import GPT
from minigpt.training import History, TrainConfig


@dataclass(frozen=True)
class Budget:
    """How long a run trains, and at which rate.

    Attributes
    ----------
    steps, batch_size : int
    lr : float or None
        Peak; the method's own by default.
    warmup : float
        Share of the steps in which the rate rises; then it falls along a line to 0.
    weight_decay : float
    evaluations : int
        On the validation split, spread over the steps; the best one's weights are kept. 0: never.
    validation_limit : int
        Records of the validation split that are looked at.
    workers : int
        As in `TrainConfig`; a lesson that runs several trainings side by side gives each one worker.
    """

    steps: int = 200
    batch_size: int = 16
    lr: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    evaluations: int = 0
    validation_limit: int = 256
    workers: int = 0

    def config(self, method: Method, seed: int) -> TrainConfig:
        """Settings for `train`."""
        return TrainConfig(
            steps=self.steps,
            lr=method.learning_rate if self.lr is None else self.lr,
            schedule="linear",
            warmup=int(self.steps * self.warmup),
            weight_decay=self.weight_decay,
            beta2=0.999,
            eval_every=max(1, self.steps // self.evaluations) if self.evaluations else 0,
            keep_best=bool(self.evaluations),
            seed=seed,
            workers=self.workers,
        )


@dataclass(frozen=True)
class Run:
    """What came out of one fine-tuning run.

    Attributes
    ----------
    model : GPT or Classifier
    history : History
    n_trainable : int
    """

    model: Any
    history: History
    n_trainable: int


def fine_tune(
    method: Method, base: GPT, task: TrainingData, budget: Budget, seed: int = 0, progress: bool | str = False
) -> Run:
    """Apply a method to a base and train it on a task.

    Parameters
    ----------
    method : Method
        Its `n_labels` has to be the task's.
    base : GPT
        Is not changed.
    task : Task
        Or anything else that gives batches, such as a mixture of tasks.
    budget : Budget
    seed : int
        Of new parameters, the order of the batches, and dropout.
    progress : bool or str
        Show a progress bar, with this text in front.

    Raises
    ------
    ValueError
        If method and task do not fit.
    RunError
        If training diverges; see `minigpt.training.train`.
    KeyboardInterrupt
        If Ctrl-C ended it.
    """
    batches = task.batches(budget.batch_size, seed)
    tuned = method.apply(base, seed, data=[batches(step) for step in range(DATA_BATCHES)])
    validation = task.validation(budget.validation_limit) if budget.evaluations else ()
    config = budget.config(method, seed)
    history = method.fit(tuned, task.objective, batches, config, validation, progress=progress)
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return Run(tuned, history, n_trainable(tuned))


DATA_BATCHES = 16
"""Training batches that a method may look at before it starts, such as for the importance of parameters."""
