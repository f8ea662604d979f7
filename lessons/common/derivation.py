"""The first part of every lesson: formula, derivation, the code itself, and a check before the student's eyes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels import Backend
from lessons.common import gradcheck
from lessons.common.gradcheck import Check
from lessons.common.runner import Run
from lessons.common.source import source
from minigpt.errors import RunError


class Derivation(NamedTuple):
    """One thing that a lesson derives.

    Attributes
    ----------
    title : str
    mathematics : str
        What it computes, and why its gradient is what it is.
    functions : tuple of callables
        Where that stands: their code is shown.
    check : (Backend) -> list of Check
        That the code does what the mathematics says; see `gradients`.
    """

    title: str
    mathematics: str
    functions: tuple[Callable[..., Any], ...]
    check: Callable[[Backend], list[Check]]


def gradients(
    probe: Callable[[Backend], gradcheck.Function], shapes: Mapping[str, tuple[int, ...]]
) -> Callable[[Backend], list[Check]]:
    """A check of gradients against central differences.

    Parameters
    ----------
    probe : (Backend) -> function
        The function as `gradcheck.check` wants it.
    shapes : dict of str to tuple of int
        Of its inputs, which are drawn at random.
    """

    def check(backend: Backend) -> list[Check]:
        rng = np.random.default_rng(1)
        inputs = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        return gradcheck.check(probe(backend), inputs, backend)

    return check


def derive(run: Run, derivations: Iterable[Derivation], forms: Mapping[str, Backend] | None = None) -> list[Check]:
    """Show each derivation with its code, and check it.

    Parameters
    ----------
    run : Run
        A brief one shows the checks only.
    derivations : iterable of Derivation
    forms : dict of str to Backend, optional
        Forms of the code to check side by side; by default the run's backend.

    Returns
    -------
    checks : list of Check
        All of them.
    """
    done: list[Check] = []
    for d in derivations:
        checks = {name: d.check(backend) for name, backend in (forms or {"by hand": run.backend}).items()}
        if run.settings.brief:
            run.say(f"\n{d.title}")
        else:
            run.heading(d.title)
            run.say(textwrap.indent(textwrap.dedent(d.mathematics).strip(), "  ") + "\n")
            for function in d.functions:
                run.say(textwrap.indent(source(function), "  | ", lambda line: True) + "\n")
        run.say(gradcheck.lines(checks))
        done.extend(c for form in checks.values() for c in form)
    return done


def require(checks: Sequence[Check], what: str = "training") -> None:
    """Stop the lesson unless everything is written and right.

    Raises
    ------
    RunError
    """
    failing = [c for c in checks if not c.ok]
    if failing:
        missing = sum(c.missing for c in failing)
        wrong = len(failing) - missing
        first = next((f". To begin with: {c.needs}" for c in failing if c.needs), "")
        raise RunError(
            f"{wrong} gradients are wrong and {missing} not written yet (see above); {what} needs them all{first}"
        )
