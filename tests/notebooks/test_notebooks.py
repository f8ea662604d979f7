"""The notebooks as they lie there: what a reader on the page relies on."""

from __future__ import annotations

import ast
import base64
import io
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from codespell_lib import main as codespell
from matplotlib.image import imread

from tests.notebooks.helpers import FOLDER, LESSONS, NOTEBOOKS, ROOT, execute, is_code, read

MOST_LINES = 25
MOST_BYTES = 15_000_000
OUR_WORDS = ("rouge", "dout")  # a metric, and the gradient of an output
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_lesson = pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem[:2] != "00"], ids=lambda path: path.stem)


def python(cell: Any) -> str:
    """A cell's code; a line of IPython's own is a ``pass``."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3


@each_notebook
def test_format(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]+", i) and not re.fullmatch(r"[0-9a-f]{8}", i) for i in ids), ids
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell.metadata == {} for cell in notebook.cells)  # no times of execution


@each_notebook
def test_committed_as_it_ran(path: Path) -> None:
    cells = [cell for cell in read(path).cells if is_code(cell)]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result"), cell.id
            assert output.get("name", "stdout") == "stdout", cell.id
            assert "widget-view" not in str(output.get("data", {}).keys()), cell.id
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2


@each_notebook
def test_quick_figures_are_never_committed(path: Path) -> None:
    assert "quick: everything at its smallest" not in "".join(str(c.get("outputs")) for c in read(path).cells)


@each_notebook
def test_no_cell_is_long(path: Path) -> None:
    for cell in read(path).cells:
        if is_code(cell):
            assert cell.source.count("\n") < MOST_LINES, cell.id


@each_notebook
def test_what_a_lesson_owns_is_imported(path: Path) -> None:
    for cell in read(path).cells:
        if not is_code(cell):
            continue
        for node in ast.walk(ast.parse(python(cell))):
            assert not isinstance(node, ast.ClassDef), cell.id
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno  # type: ignore[operator]
                assert lines <= 6, f"{cell.id}: {node.name} is long for a notebook: it belongs to the lesson"


@each_notebook
def test_begins_with_what_installs_the_course(path: Path) -> None:
    first = next(cell for cell in read(path).cells if is_code(cell))
    assert first.source == next(cell for cell in read(NOTEBOOKS[0]).cells if is_code(cell)).source
    assert "%pip install" in first.source


@each_lesson
def test_has_what_every_lesson_has(path: Path) -> None:
    notebook = read(path)
    code = "\n".join(cell.source for cell in notebook.cells if is_code(cell))
    text = "\n".join(cell.source for cell in notebook.cells if not is_code(cell))
    number = int(path.stem[:2])
    assert f"notebook.begin({number})" in code
    assert "run.show(" in code
    assert "run.require_gradients()" in code
    assert code.rindex("run.conclude()") > code.index("run.require_gradients()")
    assert text.startswith(f"# {number}. ")
    for part in (
        "**The question.**",
        "## The mathematics",
        "## What to expect",
        "urprise",
        "## Exercises",
        "## Go further",
    ):
        assert part in text, part
    assert f"make grade-{number}" in text
    assert "arxiv.org" in text
    assert 2 <= len(re.findall(r"^\*\*\d\. ", text, re.MULTILINE)) <= 4
    assert any(output.get("data", {}).get("image/png") for cell in notebook.cells for output in cell.get("outputs", []))


@each_notebook
def test_links_resolve(path: Path) -> None:
    for cell in read(path).cells:
        if is_code(cell):
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            if target.startswith("https://"):
                assert re.match(r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.)", target), target
            else:
                assert (FOLDER / target.split("#")[0]).exists(), target


def test_the_map_leads_to_every_notebook() -> None:
    start = "\n".join(cell.source for cell in read(NOTEBOOKS[0]).cells)
    for path in NOTEBOOKS[1:]:
        assert f"({path.name})" in start, path.name
    for path in LESSONS:
        number = int(path.stem.split("_")[1])
        assert re.search(rf"^\| \[{number} ", start, re.MULTILINE), path.name


def misspelt(text: str, folder: Path, capsys: Any) -> str:
    """What codespell's list of common misspellings finds."""
    file = folder / "text.txt"
    file.write_text(text, encoding="utf-8")
    codespell("--quiet-level", "3", "--ignore-words-list", ",".join(OUR_WORDS), str(file))
    return str(capsys.readouterr().out)


@each_notebook
def test_spelling(path: Path, tmp_path: Path, capsys: Any) -> None:
    assert misspelt("\n\n".join(cell.source for cell in read(path).cells), tmp_path, capsys) == ""


def test_spelling_is_looked_at(tmp_path: Path, capsys: Any) -> None:
    assert "receive" in misspelt("what we recieve", tmp_path, capsys)


@each_notebook
def test_pictures_are_pictures(path: Path) -> None:
    for cell in read(path).cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                pixels = imread(io.BytesIO(base64.b64decode(png)), format="png")
                assert pixels.shape[1] > 1000, cell.id
                assert float(np.std(pixels)) > 0.01, cell.id
                assert output.data["text/plain"].startswith("picture: "), cell.id


def test_all_together_are_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MOST_BYTES


@pytest.mark.notebooks
@each_notebook
def test_runs_top_to_bottom(path: Path, tmp_path: Path) -> None:
    notebook = execute.execute(path, quick=True, results=tmp_path)
    assert all(cell.execution_count for cell in notebook.cells if is_code(cell))
    assert str(ROOT) not in nbformat.writes(notebook)
