"""What is trained for: from a batch to a loss and the backward that fills the gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from kernels.cross_entropy import IGNORED
from minigpt.context import Context
from minigpt.data.tokens import check_ids
from minigpt.errors import InputError
from minigpt.heads import lm_loss
from minigpt.parameters import Gradients

Batch = dict[str, np.ndarray]
"""Named arrays with one row an example along their first axis, so that any batch can be split into shards."""


class Objective(Protocol):
    """A loss that is a mean over the whole batch, computed shard by shard."""

    def total(self, batch: Batch) -> float:
        """What the loss divides by, counted over the whole batch."""

    def forward(
        self, model: Any, batch: Batch, total: float, ctx: Context
    ) -> tuple[float, Callable[[Gradients], None]]:
        """A shard's share of the mean, and its backward. The shares of all shards add up to the loss.

        On a GPU the share is an array of no axes, which nobody has waited for: see `kernels.array.number`.
        """


class LanguageModelling:
    """Cross-entropy of the next token. Batches hold `ids` and `targets`, both (B, T), on the host.

    Targets of -100 are not scored.
    """

    def total(self, batch: Batch) -> float:
        """Number of scored targets."""
        return float((batch["targets"] != IGNORED).sum())

    def forward(
        self, model: Any, batch: Batch, total: float, ctx: Context
    ) -> tuple[float, Callable[[Gradients], None]]:
        """See `Objective.forward`.

        Raises
        ------
        ValueError
            If an id or target is outside the model's vocabulary, or T is larger than its context.
        """
        vocab_size, room = model.config.vocab_size, model.config.n_positions - model.n_virtual
        length, scored = batch["ids"].shape[1], batch["targets"] != IGNORED
        if length > room:
            raise InputError(f"{length} tokens do not fit into the model's context of {room}")
        check_ids(batch["ids"], vocab_size)
        check_ids(batch["targets"][scored], vocab_size, "targets")
        ids, targets, index = model.backend.send(batch["ids"], batch["targets"], np.flatnonzero(scored))
        hidden, trunk_back = model.forward(ids, ctx)
        loss, head_back = lm_loss(hidden, model.wte, targets, ctx, total, index)
        return loss, lambda grads: trunk_back(head_back(grads), grads)


def rows(batch: Batch) -> int:
    """Number of examples in a batch."""
    return next(iter(batch.values())).shape[0]


def take(batch: Batch, part: slice) -> Batch:
    """Some of a batch's examples."""
    return {name: array[part] for name, array in batch.items()}


def shards(n: int, parts: int) -> list[slice]:
    """n rows cut into consecutive parts whose sizes differ by at most one; with fewer rows than parts, some are empty.

    Part i has the rows from ⌊i·n/parts⌋ up to ⌊(i + 1)·n/parts⌋: every row is in one part.
    """
    bounds = [i * n // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]
