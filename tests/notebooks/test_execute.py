"""What runs the notebooks, tried on small ones made here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebooks.helpers import execute, read


def write(path: Path, *sources: str) -> Path:
    notebook = nbformat.v4.new_notebook()
    for number, source in enumerate(sources):
        cell = nbformat.v4.new_code_cell(source)
        cell["id"] = f"cell-{number}"
        notebook.cells.append(cell)
    nbformat.write(notebook, path)
    return path


SAYS_ITS_ENVIRONMENT = """
import os
print([os.environ[f"MINIGPT_{name}"] for name in ("QUICK", "CHECK", "OUT")])
"""


def test_runs_in_a_clean_kernel_and_keeps_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "01_it.ipynb", SAYS_ITS_ENVIRONMENT, "x = 1", "x + 1")
    before = path.read_bytes()
    results = tmp_path / "results"
    for quick, said in ((True, f"['1', '', '{results}']\n"), (False, f"['', '1', '{results}']\n")):
        done = execute.execute(path, quick, results)
        assert done.cells[0].outputs[0].text == said
        assert done.cells[2].outputs[0].data["text/plain"] == "2"
        assert [cell.execution_count for cell in done.cells] == [1, 2, 3]
        assert [cell.id for cell in done.cells] == ["cell-0", "cell-1", "cell-2"]
        assert all(cell.metadata == {} for cell in done.cells)
        assert done.metadata["language_info"] == {"name": "python"}
    assert path.read_bytes() == before


def test_an_error_names_notebook_and_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "01_it.ipynb", "1", "raise ValueError('the second one')", "2")
    with pytest.raises(execute.NotebookError, match=r"01_it\.ipynb, cell cell-1: ValueError: the second one"):
        execute.execute(path)


BAR = """
import sys
from tqdm import tqdm
for i in tqdm(range(3), desc="training", unit="step"):
    pass
with tqdm(total=2, dynamic_ncols=True) as bar:
    bar.set_postfix_str("loss 3.2")
    bar.update(2)
"""


def test_what_is_shown_keeps_its_order(tmp_path: Path) -> None:
    shows = "from IPython.display import Markdown, display\n"
    shows += "print('a')\ndisplay(Markdown('**b**'))\nprint('c', flush=True)\nprint('d')"
    first, heading, last = execute.execute(write(tmp_path / "01_it.ipynb", shows)).cells[0].outputs
    assert (first.text, last.text) == ("a\n", "c\nd\n")
    assert heading.data["text/markdown"] == "**b**"


def test_progress_bars_are_not_kept_and_warnings_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "01_it.ipynb", BAR + "print('done')")
    assert [output.text for output in execute.execute(path).cells[0].outputs] == ["done\n"]
    for said in ("print('overflow in exp', file=sys.stderr)", "import warnings; warnings.warn('overflow in exp')"):
        path = write(tmp_path / "01_it.ipynb", BAR + said)
        with pytest.raises(execute.NotebookError, match=r"cell cell-0: it says on its error stream: .*overflow in exp"):
            execute.execute(path)


def test_widgets_are_for_those_who_sit_there(tmp_path: Path) -> None:
    path = write(
        tmp_path / "01_it.ipynb",
        "from lessons.common import notebook\nnotebook.explore(lambda x: f'x is {x}', [{'x': 1}, {'x': 2}], x=(0, 3))",
    )
    done = execute.execute(path)
    assert [output.get("text") for output in done.cells[0].outputs] == ["x is 1\nx is 2\n"]
    assert "widgets" not in done.metadata


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(execute, "HERE", tmp_path)
    found = execute.find.__defaults__
    monkeypatch.setattr(execute.find, "__defaults__", (found[0], tmp_path))
    return tmp_path


def test_in_place_only_what_ran(folder: Path, capsys: Any) -> None:
    good, bad = write(folder / "01_good.ipynb", "print('hello')"), write(folder / "02_bad.ipynb", "1 / 0")
    before = bad.read_bytes()
    assert execute.main([]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("01_good.ipynb: ")
    assert "02_bad.ipynb, cell cell-0: ZeroDivisionError" in printed.err
    assert "Traceback" not in printed.err
    assert read(good).cells[0].outputs[0].text == "hello\n"
    assert bad.read_bytes() == before
    once = good.read_bytes()
    assert execute.main(["1"]) == 0
    assert good.read_bytes() == once  # the same bytes for the same contents


def test_quick_leaves_the_files_alone(folder: Path) -> None:
    path = write(folder / "01_good.ipynb", SAYS_ITS_ENVIRONMENT)
    before, out = path.read_bytes(), folder / "out"
    assert execute.main(["--quick"]) == 0
    assert path.read_bytes() == before
    assert execute.main(["--quick", "1", "--out", str(out)]) == 0
    assert path.read_bytes() == before
    assert read(out / path.name).cells[0].outputs[0].text == f"['1', '', '{out / 'runs'}']\n"


def test_a_number_that_is_not_there(folder: Path, capsys: Any) -> None:
    write(folder / "01_good.ipynb", "1")
    assert execute.main(["3"]) == 1
    assert capsys.readouterr().err == "no notebook 3; there are 1\n"


def test_a_figure_out_of_its_band_fails(tmp_path: Path) -> None:
    report = """
from lessons.common import notebook
from lessons.common.bands import Band
run = notebook.begin(1)
run.report("loss", {value}, "nats", Band(1.0, 2.0))
run.conclude()
"""
    inside = execute.execute(write(tmp_path / "01_it.ipynb", report.format(value=1.5)), results=tmp_path)
    assert "✓ inside" in str(inside.cells[0].outputs)
    outside = write(tmp_path / "01_it.ipynb", report.format(value=2.5))
    with pytest.raises(execute.NotebookError, match=r"RunError: loss: above the expected band 1\.000–2\.000"):
        execute.execute(outside, results=tmp_path)
    quick = execute.execute(outside, quick=True, results=tmp_path)
    assert "**outside**" in str(quick.cells[0].outputs)
    assert os.path.isfile(tmp_path / "lesson-01" / "record.json")
