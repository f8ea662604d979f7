"""Hand-written gradients against central differences, in float64, before the student's eyes.

What is checked is written like a layer: a function of named arrays that gives its output and ``backward``, which turns
the output's gradient into a dict of the arrays' gradients. The output's gradient is drawn at random: with ones, as for
a loss that is a plain sum, a softmax or a LayerNorm has the gradient 0, and every multiple of the right answer passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import Backend
from lessons.common.table import table
from minigpt.context import Context
from minigpt.heads import lm_loss
from minigpt.parameters import Parameter

STEP = 1e-5  # truncation and rounding of a central difference in float64 are about equal here
TOLERANCE = 1e-6  # a hundred times their noise
FLOOR = 1e-3  # a gradient that is 0 has to be so up to the noise of differences, which is not relative to it

Function = Callable[..., tuple[Any, Callable[..., Mapping[str, Any]]]]


@dataclass(frozen=True)
class Check:
    """One array's gradient beside its central differences.

    Attributes
    ----------
    name : str
    shape : tuple of int
    difference : float or None
        max|gradient − differences| / max|differences|; None where the gradient is not written yet.
    fault : str
        What is wrong, with the first wrong element; empty if nothing is.
    needs : str
        What is not written yet, as it says itself; empty if it does not say.
    """

    name: str
    shape: tuple[int, ...]
    difference: float | None
    fault: str = ""
    needs: str = ""

    @property
    def missing(self) -> bool:
        """Whether a function that the gradient needs is not written yet."""
        return self.difference is None and not self.fault

    @property
    def ok(self) -> bool:
        """Whether the gradient is there and right."""
        return self.difference is not None and not self.fault

    @property
    def verdict(self) -> str:
        """``"ok"``, ``"WRONG"`` or ``"not written yet"``."""
        return "ok" if self.ok else "not written yet" if self.missing else "WRONG"


def numerical_gradient(f: Callable[[np.ndarray], float], x: np.ndarray, step: float = STEP) -> np.ndarray:
    """Gradient of a scalar function by central differences, (f(x + h) − f(x − h)) / 2h in every element.

    Parameters
    ----------
    f : array of x's shape -> float
    x : float64 array
    step : float
        h.

    Returns
    -------
    gradient : x's shape
    """
    gradient = np.zeros(x.shape)
    for place in range(x.size):
        moved = x.copy()
        moved.flat[place] = x.flat[place] + step
        above = f(moved)
        moved.flat[place] = x.flat[place] - step
        gradient.flat[place] = (above - f(moved)) / (2 * step)
    return gradient


def compare(name: str, value: Any, wanted: np.ndarray, source: str = "central differences give") -> Check:
    """Judge a gradient, a NumPy array, by the differences that it should equal, or a value by another source's."""
    shape = wanted.shape
    value = np.asarray(value)
    if value.shape != shape:
        return Check(name, shape, None, f"its shape is {value.shape}, it should be {shape}")
    off = np.abs(value - wanted)
    scale = max(float(np.abs(wanted).max(initial=0.0)), FLOOR)
    difference = float(off.max(initial=0.0)) / scale
    if difference < TOLERANCE:  # False for NaN too
        return Check(name, shape, difference)
    place = np.unravel_index(int(np.argmax(~(off < TOLERANCE * scale))), shape)
    where = f"[{', '.join(map(str, place))}]"
    return Check(
        name,
        shape,
        difference,
        f"{name}{where} is {value[place]:.6g}, {source} {wanted[place]:.6g}",
    )


def agree(name: str, wanted: Any, value: Callable[[], Any]) -> Check:
    """Judge a value on the host by what it should be; one that is not written yet is no error.

    Parameters
    ----------
    name : str
    wanted : array or number
    value : () -> array or number
        Computes it.
    """
    wanted = np.asarray(wanted, dtype=np.float64)
    try:
        return compare(name, np.asarray(value(), dtype=np.float64), wanted, "it should be")
    except NotImplementedError as error:
        return Check(name, wanted.shape, None, needs=str(error))


def attempt(name: str, make: Callable[[], list[Check]]) -> list[Check]:
    """Checks, or one of this name that says that what they need is not written yet."""
    try:
        return make()
    except NotImplementedError as error:
        return [Check(name, (), None, needs=str(error))]


def check(function: Function, inputs: Mapping[str, np.ndarray], backend: Backend, seed: int = 0) -> list[Check]:
    """Check the gradients of a function of arrays.

    Parameters
    ----------
    function : (**arrays) -> (output, backward)
        Output: an array, a float or a tuple of arrays, on the backend. ``backward`` takes as many gradients as there
        are outputs and gives a dict: name of an input → its gradient, or a function that computes it, so that one
        which is not written yet does not hide the others. Arrays may be overwritten; every call gets copies.
    inputs : dict of str to float64 array
        On the host.
    backend : Backend
    seed : int
        Of the random output gradient.

    Returns
    -------
    checks : list of Check
        One for every input, called ``d<name>``.
    """

    def run(**arrays: np.ndarray) -> tuple[tuple[Any, ...], Callable[..., Mapping[str, Any]]]:
        y, backward = function(**{name: backend.asarray(x.copy()) for name, x in arrays.items()})
        return (y if isinstance(y, tuple) else (y,)), backward

    def host(y: Any) -> np.ndarray:
        return np.asarray(y) if isinstance(y, float) else backend.to_numpy(y)

    try:
        outputs, backward = run(**inputs)
        rng = np.random.default_rng(seed)
        dys = [rng.standard_normal(np.shape(host(y))) for y in outputs]
        gradients = backward(*(float(dy) if dy.ndim == 0 else backend.asarray(dy.copy()) for dy in dys))
    except NotImplementedError as error:
        return [Check(f"d{name}", x.shape, None, needs=str(error)) for name, x in inputs.items()]

    checks = []
    for name, x in inputs.items():
        gradient = gradients[name]
        if callable(gradient):
            try:
                gradient = gradient()
            except NotImplementedError as error:
                checks.append(Check(f"d{name}", x.shape, None, needs=str(error)))
                continue

        def total(moved: np.ndarray, name: str = name) -> float:
            outputs, _ = run(**{**inputs, name: moved})
            return sum(float((host(y) * dy).sum()) for y, dy in zip(outputs, dys, strict=True))

        checks.append(compare(f"d{name}", host(gradient), numerical_gradient(total, x)))
    return checks


def check_parameters(
    parameters: Iterable[Parameter], loss: Callable[[], float], grads: Mapping[str, Any], backend: Backend
) -> list[Check]:
    """Check a whole model: move every element of every trainable parameter and see what the loss does.

    Parameters
    ----------
    parameters : iterable of Parameter
        In float64; they have their values again afterwards.
    loss : () -> float
        The loss with the parameters as they are.
    grads : dict of str to array
        What the backward pass says, by parameter name.
    backend : Backend

    Returns
    -------
    checks : list of Check
    """
    checks = []
    for p in parameters:
        if not p.trainable:
            continue
        data = p.data

        def with_value(value: np.ndarray, p: Parameter = p) -> float:
            p.data = backend.asarray(value)
            return backend.read(loss())[0]

        try:
            numerical = numerical_gradient(with_value, backend.to_numpy(data))
        finally:
            p.data = data
        checks.append(compare(p.name.removeprefix("transformer."), backend.to_numpy(grads[p.name]), numerical))
    return checks


def check_model(model: Any, ids: np.ndarray, targets: np.ndarray, scale: float = 0.3, seed: int = 0) -> list[Check]:
    """Check a language model's ``loss_and_grads``, with all its parameters drawn at random.

    A bias of 0 or a gain of 1, as in a fresh model, would hide many mistakes. The model keeps the random parameters.

    Parameters
    ----------
    model : GPT
        In float64, and tiny: the loss is computed twice for every parameter element.
    ids, targets : (B, T) integers
    scale : float
        Standard deviation of the parameters; gains are around 1.
    seed : int

    Returns
    -------
    checks : list of Check
    """
    rng = np.random.default_rng(seed)
    backend = model.backend
    parameters = list(model.parameters())
    for p in parameters:
        gain = 1.0 if p.data.ndim == 1 and p.name.endswith("weight") else 0.0
        p.data = backend.asarray(gain + scale * rng.standard_normal(tuple(p.data.shape)))

    def loss() -> float:
        ctx: Context = model.context()
        hidden, _ = model.forward(backend.asarray(ids), ctx)
        return lm_loss(hidden, model.wte, backend.asarray(targets), ctx)[0]

    try:
        _, grads = model.loss_and_grads(ids, targets)
    except NotImplementedError:
        return [
            Check(p.name.removeprefix("transformer."), tuple(p.data.shape), None) for p in parameters if p.trainable
        ]
    return check_parameters(parameters, loss, grads, backend)


def lines(forms: Mapping[str, Sequence[Check]]) -> str:
    """One line a tensor: its name and shape, how far each form of the code is from the differences, and the verdict.

    Parameters
    ----------
    forms : dict of str to sequence of Check
        Name of a form (``"reference"``, ``"fast"``) → the same checks in the same order.
    """
    rows, faults = [], []
    for per_form in zip(*forms.values(), strict=True):
        first = per_form[0]
        worst = next((c for c in per_form if not c.ok), first)
        shown = ["–" if c.difference is None else f"{c.difference:.0e}" for c in per_form]
        rows.append([first.name, str(first.shape), *shown, worst.verdict])
        faults += [f"  {form}: {c.fault}" for form, c in zip(forms, per_form, strict=True) if c.fault]
    headers = ["gradient", "shape", *(f"{form} off by" for form in forms), ""]
    return "\n".join([table(rows, headers, "ll" + "r" * len(forms) + "l"), *faults])
