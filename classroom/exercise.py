"""What an exercise is: a function to write, cases to call it with, typical mistakes and other right ways.

An exercise names a function of the course that stands between solution markers. Its reference is that body; nothing
of it is repeated here.

Arguments and answers may be: float, int, bool, str and None; NumPy arrays of bool, int, uint8, float32 or float64;
tuples, lists, dicts (keys str, int or tuples of int) and the course's NamedTuples of these; and, as arguments only,
`Rng` and `Ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classroom.values import Ops, Rng

__all__ = ["Alternative", "Case", "Exercise", "Ops", "Rng", "Wrong"]


@dataclass(frozen=True)
class Case:
    """One call of the function.

    Attributes
    ----------
    name : str
        What the case is about ("size-1 axes"); unique in the exercise and the same for every seed.
    args : mapping of str to value
        Argument name → value, in the order of the signature.
    """

    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Wrong:
    """A typical mistake, as one edit of the reference body.

    Attributes
    ----------
    label : str
        Slug, unique in the exercise: ``"no-max-shift"``.
    hint : str
        What to tell the student: one or two sentences that name the mistake and give no code.
    find : str
        Text that occurs exactly once in the reference body; it may span lines.
    replace : str
        What stands there instead.
    """

    label: str
    hint: str
    find: str
    replace: str


@dataclass(frozen=True)
class Alternative:
    """A different body that is right too.

    Attributes
    ----------
    name : str
        What is different: ``"einsum"``, ``"loop"``, ``"float32"``.
    body : str
        The text that stands between the markers instead, dedented.
    """

    name: str
    body: str


@dataclass(frozen=True)
class Exercise:
    """A graded function.

    Attributes
    ----------
    id : str
        ``"7.02"``: lesson, then the place in the order in which a student should do them.
    function : str
        ``"kernels.layernorm:layernorm_backward_input"``.
    title : str
        ``"LayerNorm: gradient of the input"``.
    points : int
        1 (a line) to 5 (the backward of attention).
    cases : callable
        Generator → cases. The public generator is fixed; grading uses a secret one. Names do not depend on it.
    wrong : tuple of Wrong
        At least four.
    alternatives : tuple of Alternative
        At least one.
    needs : tuple of str
        Ids of the exercises whose functions the reference body calls.
    mutates : tuple of str
        Arguments that the specification says are changed in place; they are judged as answers. Of a generator:
        whether anything was drawn from it.
    view : str
        Name in `classroom.views` of what is applied to arguments and answer before comparing, where several answers
        are right; empty for none.
    float32 : bool
        Whether a float32 answer to float64 inputs is judged at float32's tolerance; else its dtype is wrong.
    seconds : float
        CPU seconds that a case may take.
    """

    id: str
    function: str
    title: str
    points: int
    cases: Callable[[np.random.Generator], Sequence[Case]]
    wrong: tuple[Wrong, ...]
    alternatives: tuple[Alternative, ...] = ()
    needs: tuple[str, ...] = ()
    mutates: tuple[str, ...] = ()
    view: str = ""
    float32: bool = True
    seconds: float = 5.0

    @property
    def lesson(self) -> int:
        """Number of the lesson that the exercise belongs to."""
        return int(self.id.split(".")[0])

    @property
    def module(self) -> str:
        """Dotted name of the module that holds the function."""
        return self.function.split(":")[0]

    @property
    def name(self) -> str:
        """Name of the function in its module."""
        return self.function.split(":")[1]
