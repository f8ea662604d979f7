"""Where the notebooks are, and the module that runs them, which is a script and no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
LESSONS = sorted((ROOT / "lessons").glob("lesson_[0-9][0-9]_*.py"))

_spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
assert _spec
assert _spec.loader
execute: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)


def read(path: Path) -> Any:
    """A notebook as it lies there."""
    return nbformat.read(path, as_version=4)


def is_code(cell: Any) -> bool:
    """Whether a cell is run."""
    return cell.cell_type == "code"
