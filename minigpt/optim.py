"""Learning-rate schedules, and AdamW over the flat buffer of trainable parameters."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kernels.array import Array
from kernels.backend import Backend
from minigpt.errors import InputError
from minigpt.parameters import Parameter

Schedule = Callable[[int], float]
"""Learning rate of a step; steps count from 0."""


def constant(lr: float, warmup: int = 0) -> Schedule:
    """The same rate throughout, after a linear rise over `warmup` steps."""
    return lambda step: lr * min(1.0, (step + 1) / (warmup + 1))


def cosine(lr: float, steps: int, warmup: int = 0, min_lr: float = 0.0) -> Schedule:
    """Linear rise over `warmup` steps, then half a cosine that reaches `min_lr` after `steps`.

    Loshchilov, Hutter (2017), "SGDR", arXiv:1608.03983, eq. 5, without restarts.
    """
    return lambda step: _after_warmup(step, steps, warmup, lr, min_lr, lambda p: 0.5 * (1 + math.cos(math.pi * p)))


def linear(lr: float, steps: int, warmup: int = 0, min_lr: float = 0.0) -> Schedule:
    """Linear rise over `warmup` steps, then a straight line that reaches `min_lr` after `steps`."""
    return lambda step: _after_warmup(step, steps, warmup, lr, min_lr, lambda p: 1 - p)


SCHEDULES = ("cosine", "linear", "constant")


def make_schedule(kind: str, lr: float, steps: int, warmup: int = 0, min_lr: float = 0.0) -> Schedule:
    """The schedule of this name."""
    if kind == "cosine":
        return cosine(lr, steps, warmup, min_lr)
    if kind == "linear":
        return linear(lr, steps, warmup, min_lr)
    if kind == "constant":
        return constant(lr, warmup)
    raise InputError(f"no schedule {kind!r}; there are {', '.join(SCHEDULES)}")


def _after_warmup(
    step: int, steps: int, warmup: int, lr: float, min_lr: float, fall: Callable[[float], float]
) -> float:
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_lr + fall(progress) * (lr - min_lr)


@dataclass(frozen=True)
class ParameterGroup:
    """Settings of the parameters whose names match.

    Attributes
    ----------
    pattern : str
        Shell-style, on parameter names. The first group that matches a parameter has it.
    lr_scale : float
        Factor on the schedule's rate.
    weight_decay : float or None
        None: the optimizer's own rule (decay of matrices only).
    schedule : Schedule or None
        Instead of the run's.
    """

    pattern: str = "*"
    lr_scale: float = 1.0
    weight_decay: float | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True)
class _Segment:
    start: int
    stop: int
    group: ParameterGroup
    weight_decay: float


class AdamW:
    """AdamW on a slice of the flat buffer.

    Parameters
    ----------
    parameters : sequence of Parameter
        In the order of the flat buffer; see `order`.
    backend : Backend
    groups : sequence of ParameterGroup
    betas, eps, weight_decay
        As in `kernels.adamw`. By default matrices decay and vectors (biases, LayerNorm gains) do not.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        backend: Backend,
        groups: Sequence[ParameterGroup] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.ops = backend.ops
        self.betas = betas
        self.eps = eps
        self.segments: list[_Segment] = []
        start = 0
        for p in parameters:
            group = group_of(p, groups)
            decay = decay_of(p, group, weight_decay)
            last = self.segments[-1] if self.segments else None
            stop = start + p.data.size
            if last is not None and last.group == group and last.weight_decay == decay:
                self.segments[-1] = _Segment(last.start, stop, group, decay)
            else:
                self.segments.append(_Segment(start, stop, group, decay))
            start = stop

    @staticmethod
    def order(
        parameters: Iterable[Parameter], groups: Sequence[ParameterGroup], weight_decay: float
    ) -> list[Parameter]:
        """Trainable parameters, equal settings together: a step is then a few long vector operations.

        Raises
        ------
        ValueError
            If nothing is trainable, or a group's pattern matches nothing, frozen parameters included.
        """
        parameters = list(parameters)
        for group in groups:
            if not any(fnmatch.fnmatchcase(p.name, group.pattern) for p in parameters):
                raise InputError(f"no parameter matches the group {group.pattern!r}")
        trainable = [p for p in parameters if p.trainable]
        if not trainable:
            raise InputError("nothing to train: every parameter is frozen")

        def kind(p: Parameter) -> tuple[int, float]:
            group = group_of(p, groups)
            index = next((i for i, g in enumerate(groups) if g is group), len(groups))
            return index, -decay_of(p, group, weight_decay)

        return sorted(trainable, key=kind)

    def rates(self, schedule: Schedule, step: int) -> list[float]:
        """Learning rate of every segment at a step (from 0)."""
        return [(s.group.schedule or schedule)(step) * s.group.lr_scale for s in self.segments]

    def update(
        self, param: Array, grad: Array, m: Array, v: Array, step: int, rates: Sequence[float], own: slice
    ) -> None:
        """One step on the part `own` of the flat vectors, in place.

        Parameters
        ----------
        param, grad, m, v : (P,)
            Whole vectors; only `own` is read and written.
        step : int
            From 1, for the bias corrections.
        rates : sequence of float
            Learning rate of every segment.
        own : slice
        """
        for segment, lr in zip(self.segments, rates, strict=True):
            part = slice(max(segment.start, own.start), min(segment.stop, own.stop))
            if part.start < part.stop:
                self.ops.adamw_update(
                    param[part],
                    grad[part],
                    m[part],
                    v[part],
                    step,
                    lr,
                    self.betas,
                    self.eps,
                    segment.weight_decay,
                )


_DEFAULT_GROUP = ParameterGroup()


def group_of(parameter: Parameter, groups: Sequence[ParameterGroup]) -> ParameterGroup:
    """The first group whose pattern matches, or the default one."""
    for group in groups:
        if fnmatch.fnmatchcase(parameter.name, group.pattern):
            return group
    return _DEFAULT_GROUP


def decay_of(parameter: Parameter, group: ParameterGroup, weight_decay: float) -> float:
    """The parameter's weight decay: the group's, else the run's on matrices and none on vectors."""
    if group.weight_decay is not None:
        return group.weight_decay
    return weight_decay if parameter.data.ndim >= 2 else 0.0
