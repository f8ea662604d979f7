"""The lessons, and the fine-tuning methods that they add.

>>> from lessons import METHODS
>>> sorted(METHODS)[:3]
['adapters', 'bitfit', 'dora']
>>> METHODS["lora"](r=4).r
4
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping

from lessons.common.method import REGISTRY, Method


class _Methods(Mapping[str, type[Method]]):
    """Name → class of every method, in the order of the lessons; the lessons are imported when it is first asked."""

    def _all(self) -> dict[str, type[Method]]:
        for module in pkgutil.iter_modules(__path__):
            if module.name.startswith("lesson_"):
                importlib.import_module(f"{__name__}.{module.name}")
        return REGISTRY

    def __getitem__(self, name: str) -> type[Method]:
        methods = self._all()
        if name not in methods:
            raise KeyError(f"no method {name!r}; there are {', '.join(methods)}")
        return methods[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


METHODS: Mapping[str, type[Method]] = _Methods()

__all__ = ["METHODS", "Method"]
