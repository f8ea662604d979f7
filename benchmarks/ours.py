"""Our side of the comparisons: the step that the trainer takes, driven from outside its loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minigpt import GPT, GPTConfig
from minigpt.objectives import LanguageModelling
from minigpt.optim import AdamW
from minigpt.parallel import LocalTeam
from minigpt.training import team_size


class OurTrainer:
    """`minigpt.training`'s step: forward, backward, clip to global norm 1, AdamW with decay on matrices only.

    Parameters
    ----------
    sizes : mapping
        As in `GPTConfig`.
    batch_size : int
    workers : int
        Processes; 0 for the trainer's own choice.
    model : GPT, optional
        What to train, instead of all of a fresh model.
    """

    def __init__(
        self, sizes: Mapping[str, int], batch_size: int, workers: int = 0, lr: float = 1e-3, model: GPT | None = None
    ) -> None:
        self.model = GPT(GPTConfig(**sizes), seed=0) if model is None else model
        weight_decay = 0.1
        parameters = AdamW.order(self.model.parameters(), (), weight_decay)
        optimizer = AdamW(parameters, self.model.backend, (), (0.9, 0.99), 1e-8, weight_decay)
        self.rates = [lr] * len(optimizer.segments)
        self.workers = team_size(workers, "numpy", batch_size)
        self.team = LocalTeam(self.model, LanguageModelling(), parameters, optimizer, self.workers)
        self.done = 0

    def __enter__(self) -> OurTrainer:
        self.team.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.team.__exit__(*error)

    def step(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """One step on a batch (B, T); the loss before it."""
        loss, _ = self.team.step({"ids": ids, "targets": targets}, 1, self.done, self.rates, 1.0, 0)
        self.done += 1
        return loss
