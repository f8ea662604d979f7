"""Parameters, the one flat buffer the trainable ones live in, and the gradients a backward pass fills."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kernels.array import Array
from kernels.backend import Backend


class Parameter:
    """One named array of a model.

    Attributes
    ----------
    name : str
        As in a Hugging Face GPT-2 file, e.g. ``"transformer.h.0.attn.c_attn.weight"``.
    data : array
    trainable : bool
        A frozen parameter gets no gradient, no optimizer state, and keeps no activation alive.
    in_buffer : bool
        Whether `data` is a view of a `FlatParameters` buffer, which training changes in place.
    """

    __slots__ = ("data", "in_buffer", "name", "trainable")

    def __init__(self, name: str, data: Array, trainable: bool = True) -> None:
        self.name = name
        self.data = data
        self.trainable = trainable
        self.in_buffer = False

    def __repr__(self) -> str:
        state = "trainable" if self.trainable else "frozen"
        return f"Parameter({self.name}, {tuple(self.data.shape)}, {self.data.dtype}, {state})"


class FlatParameters:
    """Trainable parameters laid end to end in one buffer; each parameter's `data` becomes a view of it.

    What is done to all of them (an optimizer step, clipping, a sum over workers, a checkpoint) is then one operation
    on one vector.

    Parameters
    ----------
    parameters : iterable of Parameter
        In the order they are to stand in. Frozen ones are left out.
    backend : Backend
    buffer : (P,) array, optional
        Memory to live in, for instance shared with other processes; allocated if absent.

    Attributes
    ----------
    buffer : (P,) array
    places : dict of str to slice
        Where each parameter stands.

    Raises
    ------
    ValueError
        If nothing is trainable, two parameters share a name, or the types differ.
    """

    def __init__(
        self, parameters: Iterable[Parameter], backend: Backend, buffer: Array | None = None, fill: bool = True
    ) -> None:
        self.parameters = [p for p in parameters if p.trainable]
        self.backend = backend
        if not self.parameters:
            raise ValueError("nothing to train: every parameter is frozen")
        self.places = layout(self.parameters)
        self.dtype = self.parameters[0].data.dtype
        mixed = [p for p in self.parameters if p.data.dtype != self.dtype]
        if mixed:
            raise ValueError(f"{mixed[0].name} is {mixed[0].data.dtype}, the others are {self.dtype}")
        self.size = sum(p.data.size for p in self.parameters)
        self.buffer = backend.empty(self.size, self.dtype) if buffer is None else buffer
        for p, view in zip(self.parameters, views(self.parameters, self.buffer).values(), strict=True):
            if fill:
                view[...] = p.data
            p.data = view
            p.in_buffer = True

    def release(self) -> None:
        """Give every parameter an array of its own again, with the values of now."""
        for p in self.parameters:
            p.data = p.data.copy()
            p.in_buffer = False


def layout(parameters: Iterable[Parameter]) -> dict[str, slice]:
    """Where each parameter stands when all are laid end to end."""
    places: dict[str, slice] = {}
    start = 0
    for p in parameters:
        if p.name in places:
            raise ValueError(f"two parameters are called {p.name}")
        places[p.name] = slice(start, start + p.data.size)
        start += p.data.size
    return places


def views(parameters: Iterable[Parameter], flat: Array) -> dict[str, Array]:
    """A vector in which the parameters' values stand end to end, cut into named arrays of their shapes."""
    parameters = list(parameters)
    places = layout(parameters)
    return {p.name: flat[places[p.name]].reshape(p.data.shape) for p in parameters}


class Gradients:
    """The sum of what backward passes hand to each trainable parameter, in one flat buffer.

    A layer asks for a `slot` to write the first contribution into directly, and gives every contribution to `add`.

    Parameters
    ----------
    parameters : iterable of Parameter
        Frozen ones are left out.
    backend : Backend
    buffer : (P,) array, optional
        Memory for the gradients, in the layout of `FlatParameters`; allocated if absent. Its contents are ignored.
    """

    def __init__(self, parameters: Iterable[Parameter], backend: Backend, buffer: Array | None = None) -> None:
        trainable = [p for p in parameters if p.trainable]
        if buffer is None:
            size = sum(p.data.size for p in trainable)
            buffer = backend.empty(size, trainable[0].data.dtype if trainable else "float32")
        self.buffer = buffer
        self._views = views(trainable, buffer)
        self._written: set[str] = set()

    def slot(self, parameter: Parameter) -> Array | None:
        """Where to write this parameter's gradient if nothing is there yet, else None."""
        return None if parameter.name in self._written else self._views[parameter.name]

    def add(self, parameter: Parameter, gradient: Array) -> None:
        """Add a contribution, of the parameter's shape; one written into its `slot` is only noted."""
        view = self._views[parameter.name]
        if parameter.name in self._written:
            view += gradient
        else:
            if gradient is not view:
                view[...] = gradient
            self._written.add(parameter.name)

    def start(self, parameter: Parameter) -> Array:
        """The parameter's gradient to add to in place, zeros if nothing is there yet."""
        view = self._views[parameter.name]
        if parameter.name not in self._written:
            view[...] = 0
            self._written.add(parameter.name)
        return view

    def clear(self) -> None:
        """Forget everything: the next contributions are first ones again."""
        self._written.clear()

    def finish(self) -> None:
        """Set to zero what no backward reached, so that the whole buffer is defined."""
        for name, view in self._views.items():
            if name not in self._written:
                view[...] = 0
                self._written.add(name)

    def __getitem__(self, name: str) -> Array:
        if name not in self._written:
            raise KeyError(f"no gradient for {name}")
        return self._views[name]

    def __contains__(self, name: Any) -> bool:
        return name in self._written

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def as_dict(self) -> dict[str, Array]:
        """Name → array of the stored shape, zeros where no backward reached."""
        self.finish()
        return dict(self._views)
