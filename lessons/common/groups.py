"""Which groups of parameters carry a fine-tuning change: interventions, a forest on them, and what it must pass.

The weights of one model are one point, without label and without variation: no forest can be fitted to them. What can
be varied is the change that fine-tuning made. A row is a random half m of the groups that get their change, and its
response is the loss of θ₀ + m∘(θ_ft − θ₀) on a fixed batch. A forest on such rows says which groups the loss depends
on, interactions included, and the rows that its trees have not seen say how far to believe it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from lessons.common.forest import Forest, Importance, forest_importance, ridge_effects
from lessons.common.masked import MaskedMethod, Masks
from lessons.common.method import Tuned, trunk_of
from minigpt import GPT
from minigpt.errors import InputError, RunError
from minigpt.objectives import Batch, Objective
from minigpt.parameters import FlatParameters, Gradients

LEAST_R2 = 0.5
"""Share of the variance that the forest has to explain on rows it has not seen, or its ranking is not to be used."""

MOST_SHUFFLED_R2 = 0.1
"""Most that it may explain of shuffled responses."""

DUMMY = "dummy"
"""A column of the masks that changes nothing."""


@dataclass(frozen=True)
class Groups:
    """A partition of a model's entries.

    Attributes
    ----------
    names : list of str
    member : dict of str to int array
        Parameter name → the group of each entry, in the parameter's shape.
    """

    names: list[str]
    member: dict[str, np.ndarray]

    @property
    def sizes(self) -> np.ndarray:
        """Entries of each group, (G,)."""
        return np.bincount(self.flat, minlength=len(self.names))

    @property
    def flat(self) -> np.ndarray:
        """The group of every entry of the model, its parameters end to end."""
        return np.concatenate([m.reshape(-1) for m in self.member.values()])


def parameter_groups(model: GPT) -> Groups:
    """Per layer q, k, v, attention output, fc, proj, ln_1 and ln_2, weights and biases together; token and position
    embeddings; the final LayerNorm.

    Parameters
    ----------
    model : GPT
        A plain one.

    Returns
    -------
    groups : Groups
        8 a layer, and 3.
    """
    names: list[str] = []
    member = {}

    def number(name: str) -> int:
        if name not in names:
            names.append(name)
        return names.index(name)

    short = {"attn.c_proj": "attn-out", "mlp.c_fc": "fc", "mlp.c_proj": "proj"}
    for p in model.parameters():
        path = p.name.removeprefix("transformer.").rsplit(".", 1)[0]
        found = re.fullmatch(r"h\.(\d+)\.(.+)", path)
        layer, part = (f"{found[1]} ", found[2]) if found else ("", path)
        if part == "attn.c_attn":
            thirds = np.repeat([number(f"{layer}{x}") for x in "qkv"], p.data.shape[-1] // 3)
            member[p.name] = np.broadcast_to(thirds, p.data.shape)
        else:
            member[p.name] = np.full(p.data.shape, number(layer + short.get(part, part)))
    return Groups(names, member)


def budget_masks(groups: Groups, order: Sequence[int], k: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Masks of k entries: whole groups in this order, and of the last one a random part.

    Parameters
    ----------
    groups : Groups
    order : sequence of int
        Groups, the ones to take first in front.
    k : int
    seed : int

    Raises
    ------
    ValueError
        If the model has fewer entries.
    """
    flat = groups.flat
    if not 1 <= k <= flat.size:
        raise InputError(f"k is {k}; it must be from 1 to the model's {flat.size} entries")
    rank = np.empty(len(groups.names), dtype=int)
    rank[list(order)] = np.arange(len(groups.names))
    luck = np.random.default_rng(seed).random(flat.size)
    chosen = np.zeros(flat.size, dtype=bool)
    chosen[np.lexsort((luck, rank[flat]))[:k]] = True
    masks, start = {}, 0
    for name, m in groups.member.items():
        masks[name] = chosen[start : start + m.size].reshape(m.shape)
        start += m.size
    return masks


@dataclass(frozen=True, kw_only=True)
class ChosenGroups(MaskedMethod):
    """Trains whole groups of parameters, taken in an order up to a budget.

    Parameters
    ----------
    order : tuple of int
        Groups, the ones to take first in front; see `parameter_groups`.
    density : float
        Share of the base's parameters, in (0, 1].
    """

    order: tuple[int, ...] = ()
    density: float = 0.1

    def masks(self, model: GPT, seed: int = 0, data: Any = None) -> Masks:
        """See `budget_masks`."""
        return budget_masks(parameter_groups(model), self.order, round(self.density * model.n_parameters), seed)


# ---------------------------------------------------------------------------------------------- interventions


class Interventions:
    """A fine-tuned model whose change can be applied group by group.

    Parameters
    ----------
    base : GPT
        Where fine-tuning started.
    tuned : GPT or Classifier
        The same, fine-tuned; a head keeps its trained weights throughout.
    groups : Groups
    objective : Objective
    batch : Batch
        On which the loss is taken.
    """

    def __init__(self, base: GPT, tuned: Tuned, groups: Groups, objective: Objective, batch: Batch) -> None:
        self.model = tuned.copy()
        self.groups = groups
        self.objective = objective
        self.batch = batch
        self.total = objective.total(batch)
        trunk = trunk_of(self.model)
        self.model.freeze()
        trunk.unfreeze()
        xp = base.backend.xp
        asarray = base.backend.asarray
        start = {p.name: p.data for p in base.parameters()}
        self.base = xp.concatenate([start[p.name].reshape(-1) for p in trunk.parameters()])
        self.change = xp.concatenate([p.data.reshape(-1) for p in trunk.parameters()]) - self.base
        self.member = asarray(groups.flat)
        self.flat = FlatParameters(trunk.parameters(), base.backend)

    def apply(self, mask: np.ndarray) -> None:
        """Give the groups with a 1 their change, (G,) of 0 and 1."""
        backend = self.model.backend
        on = backend.asarray(mask.astype(self.flat.dtype))
        self.flat.buffer[...] = self.base + on[self.member] * self.change

    def loss(self, mask: np.ndarray) -> float:
        """Loss with the change of the groups that have a 1."""
        self.apply(mask)
        loss, _ = self.objective.forward(self.model, self.batch, self.total, self.model.context())
        return self.model.backend.read(loss)[0]

    def first_order(self) -> np.ndarray:
        """By how much each group's change lowers the loss to first order at the base, −Σ g·δ, (G,)."""
        self.apply(np.zeros(len(self.groups.names)))
        grads = Gradients(self.flat.parameters, self.model.backend)
        ctx = self.model.context(grad=True)
        self.objective.forward(self.model, self.batch, self.total, ctx)[1](grads)
        grads.finish()
        products = self.model.backend.to_numpy(grads.buffer * self.change)
        return -np.bincount(self.groups.flat, products, len(self.groups.names))


@dataclass(frozen=True)
class Study:
    """Random halves of a change, and all that is said of the groups from them; higher is more important.

    Attributes
    ----------
    names : list of str
        G groups and the dummy.
    masks : (N, G + 1) of 0 and 1
    losses : (N,)
    base_loss, tuned_loss : float
        With no group's change, and with all.
    r2, shuffled_r2 : float
        Share of the variance of the losses, and of shuffled ones, that forests explain on rows not seen.
    importance : Importance
        By permutation, of G groups and the dummy.
    ridge, leave_one_out, first_order : (G,)
        Fall of the loss with the group's change by ridge regression; rise when it alone is taken back; −Σ g·δ.
    seconds : float
        That the losses took.
    """

    names: list[str]
    masks: np.ndarray
    losses: np.ndarray
    base_loss: float
    tuned_loss: float
    r2: float
    shuffled_r2: float
    importance: Importance
    ridge: np.ndarray
    leave_one_out: np.ndarray
    first_order: np.ndarray
    seconds: float

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Study:
        """What a record holds of it: everything but the single masks and losses, and how long they took."""
        return cls(
            names=record["names"],
            masks=np.empty((0, len(record["names"]))),
            losses=np.empty(0),
            base_loss=record["base_loss"],
            tuned_loss=record["tuned_loss"],
            r2=record["r2"],
            shuffled_r2=record["shuffled_r2"],
            importance=Importance(*(np.array(record["importance"][name]) for name in Importance._fields)),
            ridge=np.array(record["ridge"]),
            leave_one_out=np.array(record["leave one out"]),
            first_order=np.array(record["first order"]),
            seconds=math.nan,
        )

    @property
    def order(self) -> list[int]:
        """Groups by permutation importance, highest first; the dummy is none of them."""
        return np.argsort(-self.importance.mean[:-1], kind="stable").tolist()

    def refusal(self) -> str:
        """Why the ranking must not be used; empty if it may."""
        if self.r2 < LEAST_R2:
            return (
                f"the forest explains {self.r2:.2f} of the variance on rows it has not seen, less than {LEAST_R2}: "
                f"more than {len(self.losses)} masks are needed"
            )
        dummy = len(self.names) - 1
        if not self.importance.covers_zero(dummy):
            low, high = self.importance.low[dummy], self.importance.high[dummy]
            return f"a column that changes nothing has an importance of {low:.4f} to {high:.4f}, which is not 0"
        if self.shuffled_r2 > MOST_SHUFFLED_R2:
            return f"shuffled losses are explained to {self.shuffled_r2:.2f}, more than {MOST_SHUFFLED_R2}: chance"
        return ""

    def ranking(self) -> list[str]:
        """Names of the groups, the most important first.

        Raises
        ------
        RunError
            If the forest does not pass its gates.
        """
        if refusal := self.refusal():
            raise RunError(f"no ranking: {refusal}")
        return [self.names[i] for i in self.order]


def study(
    interventions: Interventions,
    n_masks: int,
    n_trees: int = 300,
    min_leaf: int = 3,
    repeats: int = 100,
    seed: int = 0,
    progress: bool | str = False,
) -> Study:
    """Draw masks, take the losses, grow the forest and put the other rankings beside it.

    Parameters
    ----------
    interventions : Interventions
    n_masks : int
        20 to 40 a group.
    n_trees, min_leaf : int
        Of the forest.
    repeats : int
        Of the permutations.
    seed : int
    progress : bool or str
        Show a progress bar, with this text in front.
    """
    names = interventions.groups.names
    G = len(names)
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 2, (n_masks, G + 1)).astype(float)  # independent columns; the last is the dummy's
    alone = 1.0 - np.eye(G)
    design = [*masks[:, :G], np.zeros(G), np.ones(G), *alone]
    began = time.perf_counter()
    bar = tqdm(design, desc=str(progress), unit="mask", disable=progress is False, dynamic_ncols=True)
    losses = np.array([interventions.loss(mask) for mask in bar])
    seconds = time.perf_counter() - began
    y, (base_loss, tuned_loss), without = losses[:n_masks], losses[n_masks : n_masks + 2], losses[n_masks + 2 :]
    forest = Forest.grow(masks, y, n_trees, min_leaf=min_leaf, seed=seed)
    shuffled = Forest.grow(masks, rng.permutation(y), max(50, n_trees // 3), min_leaf=min_leaf, seed=seed)
    return Study(
        [*names, DUMMY],
        masks,
        y,
        float(base_loss),
        float(tuned_loss),
        forest.out_of_bag_r2(),
        shuffled.out_of_bag_r2(),
        forest_importance(forest, repeats, seed),
        -ridge_effects(masks[:, :G], y),
        without - tuned_loss,
        interventions.first_order(),
        seconds,
    )


def compared(a: Study) -> dict[str, Any]:
    """The other rankings by name, (G,) each."""
    return {"ridge": np.abs(a.ridge), "leave one out": np.abs(a.leave_one_out), "first order": np.abs(a.first_order)}
