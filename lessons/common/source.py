"""A function's own lines, to be shown beside the mathematics: always those that run, never a copy."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def source(function: Callable[..., Any]) -> str:
    """The code of a function without its docstring and without markers.

    Parameters
    ----------
    function : callable
        Written in Python, in a file or a notebook's cell.

    Returns
    -------
    text : str
    """
    text = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(text).body[0]
    assert isinstance(definition, ast.FunctionDef)
    first = definition.body[0]
    lines = text.splitlines()
    if ast.get_docstring(definition) is not None:
        lines[first.lineno - 1 : first.end_lineno] = []
    return "\n".join(line for line in lines if not line.lstrip().startswith("###"))
