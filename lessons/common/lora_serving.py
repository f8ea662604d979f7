"""One base model, several adapters, and every row of a batch with the one it asks for.

Rows with the same adapter go through it together, so a batch costs one pass through the base and one thin product an
adapter, however its rows are mixed (Sheng et al. 2023, "S-LoRA", arXiv:2311.03285).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kernels.array import Array
from lessons.common.method import require_plain
from minigpt import GPT
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.layers import Backward, Layer


class Branch(Protocol):
    """What an adapter adds to a layer's output."""

    def __call__(self, x: Array, ops: Any) -> Array:
        """(..., in) -> (..., out), with the products of `ops`."""


BASE = "__base__"
"""The name that stands for no adapter, as in `peft`."""


class SwitchedLinear(Layer):
    """A layer with several branches beside it; the pass' `adapters` say which rows use which.

    Parameters
    ----------
    base : Layer
        With a `name`.
    bank : dict of str to mapping
        Adapter → layer's name → branch. It may change between passes.
    """

    def __init__(self, base: Any, bank: dict[str, Mapping[str, Branch]]) -> None:
        self.name: str = base.name
        self.base = base
        self.bank = bank

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(B, T, in) -> (B, T, out)."""
        y, _ = self.base.forward(x, ctx)
        for adapter, rows in ctx.adapters.items():
            branch = self.bank[adapter].get(self.name)
            if branch is not None:
                y[rows] += branch(x[rows], ctx.backend.ops)
        ctx.see(self.name, y)

        def backward(dy: Array, grads: Any) -> Array:
            raise RuntimeError("adapters that are switched by row are there to be used, not trained")

        return y, backward


class MultiLoRA:
    """A base model with several adapters in memory.

    Parameters
    ----------
    model : GPT
        Plain; is not changed.
    adapters : mapping
        Name → what it adds to which layer.
    """

    def __init__(self, model: GPT, adapters: Mapping[str, Mapping[str, Branch]]) -> None:
        require_plain(model)
        self.trunk = model.copy()
        self.trunk.freeze()
        self.bank: dict[str, Mapping[str, Branch]] = {BASE: {}}
        self._switched: set[str] = set()
        for name, branches in adapters.items():
            self.put(name, branches)

    @property
    def names(self) -> list[str]:
        """The adapters that a row may ask for."""
        return list(self.bank)

    def put(self, name: str, branches: Mapping[str, Branch]) -> None:
        """Add an adapter, or swap the one of this name for it; the next pass uses it.

        Raises
        ------
        ValueError
            If the name is the base's.
        """
        if name == BASE:
            raise InputError(f"{BASE} is the model without an adapter; give the adapter another name")
        for layer in branches.keys() - self._switched:
            self.trunk.replace(layer.removeprefix("transformer."), lambda base, _: SwitchedLinear(base, self.bank))
            self._switched.add(layer)
        self.bank[name] = branches

    def drop(self, name: str) -> None:
        """Forget an adapter.

        Raises
        ------
        ValueError
            If there is none of this name.
        """
        self._known([name])
        if name == BASE:
            raise InputError(f"{BASE} is the model itself")
        del self.bank[name]

    def using(self, name: str) -> GPT:
        """The model with one adapter for all rows, as a GPT that can be evaluated; it sees later swaps.

        Raises
        ------
        ValueError
            If there is no such adapter.
        """
        self._known([name])
        return _Request(self.trunk, {name: slice(None)})

    def logits(self, ids: Any, adapters: Sequence[str] | str = BASE) -> Array:
        """Scores of every next token.

        Parameters
        ----------
        ids : (B, T) integers
        adapters : str, or B of them
            Which adapter all rows use, or each.

        Returns
        -------
        logits : (B, T, V)

        Raises
        ------
        ValueError
            If there is no such adapter, or they are not one a row.
        """
        return self._request(ids, adapters).logits(ids)

    def generate(
        self, ids: Any, max_new_tokens: int, adapters: Sequence[str] | str = BASE, **sampling: Any
    ) -> np.ndarray:
        """Continue each row with its own adapter; other arguments as for `GPT.generate`."""
        return self._request(ids, adapters).generate(ids, max_new_tokens, **sampling)

    def _request(self, ids: Any, adapters: Sequence[str] | str) -> GPT:
        n = self.trunk.check_ids(ids).shape[0]
        names = [adapters] * n if isinstance(adapters, str) else list(adapters)
        if len(names) != n:
            raise InputError(f"{len(names)} adapters for {n} rows; give one for all, or one a row")
        self._known(names)
        asarray = self.trunk.backend.asarray
        rows = {name: np.flatnonzero([each == name for each in names]) for name in dict.fromkeys(names)}
        if len(rows) == 1:  # no need to gather them
            return self.using(names[0])
        return _Request(self.trunk, {name: asarray(index) for name, index in rows.items()})

    def _known(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.bank]
        if unknown:
            raise InputError(f"no adapter is called {unknown[0]!r}; there are {', '.join(self.bank)}")


class _Request(GPT):
    """The model for one batch: its passes know which rows use which adapter."""

    _adapters: Mapping[str, Any]

    def __init__(self, trunk: GPT, adapters: Mapping[str, Any]) -> None:
        self.__dict__ = vars(trunk) | {"_adapters": adapters}

    def context(self, **settings: Any) -> Context:
        """See `GPT.context`."""
        return super().context(adapters=self._adapters, **settings)
