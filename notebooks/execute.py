"""Run the course's notebooks from a clean kernel and keep what they show: ``make notebooks`` calls this.

Without numbers all of them, in place: what a reader sees on the page is what this machine has just computed. A figure
outside its expected band, or any error, ends it, and that notebook's file stays as it was. With ``--quick`` everything
is at its smallest, to see that every cell runs; the files are then left alone, unless ``--out`` says where to write.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from minigpt.files import write_atomic

HERE = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PROGRESS = re.compile(r"\d+%\|.*\||\d+\w*/\d+\w* \[|\d+it \[|^\s*$")
WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookError(Exception):
    """A cell failed; the message names notebook and cell."""


def find(numbers: Sequence[int] = (), folder: Path = HERE) -> list[Path]:
    """The notebooks of these numbers, all if there are none, in order.

    Raises
    ------
    NotebookError
        If there is none of a number.
    """
    known = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    missing = [number for number in numbers if number not in known]
    if missing:
        raise NotebookError(f"no notebook {missing[0]}; there are {', '.join(map(str, known))}")
    return [known[number] for number in numbers or known]


def execute(path: Path, quick: bool = False, results: Path | None = None) -> Any:
    """Run a notebook top to bottom in a clean kernel.

    Parameters
    ----------
    path : path
        Is only read.
    quick : bool
        Everything at its smallest, and no figure is judged.
    results : path, optional
        Where the lesson's pictures and record go; by default ``runs/notebooks`` beside those of ``make lesson-N``.

    Returns
    -------
    notebook : NotebookNode
        With its outputs, tidied.

    Raises
    ------
    NotebookError
        If a cell fails, or writes to its error stream what is no progress bar.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["kernelspec"] = KERNEL
    environment = {**os.environ, "MINIGPT_QUICK": "1" if quick else "", "MINIGPT_CHECK": "" if quick else "1"}
    if results is not None:
        environment["MINIGPT_OUT"] = str(results)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    with tqdm(total=len(code), desc=path.stem, unit="cell", dynamic_ncols=True, leave=False) as bar:
        client = NotebookClient(
            notebook,
            timeout=None,
            record_timing=False,
            store_widget_state=False,
            extra_arguments=["--log-level=40"],  # errors: its own warnings would tear the progress bar
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_executed=lambda **_: bar.update(),
        )
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            failed = next(c for c in code if any(o.output_type == "error" for o in c.get("outputs", [])))
            raise NotebookError(f"{path.name}, cell {failed.id}: {error.ename}: {error.evalue}") from None
    for cell in code:
        try:
            tidy(cell)
        except NotebookError as error:
            raise NotebookError(f"{path.name}, cell {cell.id}: {error}") from None
    notebook.metadata["kernelspec"] = KERNEL
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def tidy(cell: Any) -> None:
    """Leave out what is of the moment: progress bars, and widgets, of which a page without a kernel shows nothing.

    Raises
    ------
    NotebookError
        If something else than a progress bar was written to the error stream.
    """
    kept, errors = [], ""
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            errors += output.text  # in pieces, as they came
        elif output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        elif WIDGET not in output.get("data", {}):
            kept.append(output)
    said = [line for line in re.split(r"[\r\n]", plain(errors)) if not PROGRESS.search(line)]
    if said:
        raise NotebookError(f"it says on its error stream: {said[0].strip()}")
    cell.outputs = kept


def plain(text: str) -> str:
    """A terminal's text without its control sequences."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def write(notebook: Any, path: Path) -> None:
    """Write a notebook as the same bytes for the same contents, or not at all."""
    write_atomic(path, (nbformat.writes(notebook) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; gives the exit code: 0 done, 1 a notebook failed, 130 stopped by Ctrl-C."""
    assert __doc__
    first, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=first, epilog=rest)
    parser.add_argument("numbers", nargs="*", type=int, metavar="N", help="which notebooks (all)")
    parser.add_argument("--quick", action="store_true", help="everything at its smallest; no figure is judged")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write notebooks and results here, not in place")
    arguments = parser.parse_args(argv)
    try:
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
        for path in find(arguments.numbers):
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as scratch:
                results = arguments.out / "runs" if arguments.out else Path(scratch) if arguments.quick else None
                notebook = execute(path, arguments.quick, results and results.resolve())
            if arguments.out or not arguments.quick:
                write(notebook, (arguments.out or HERE) / path.name)
            print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)
    except (NotebookError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
