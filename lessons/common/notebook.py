"""A lesson in a notebook: what its cells need beside the lesson's own functions.

A notebook's cells are the steps of the lesson's ``lesson(run)``, with the reasons between them. `begin` makes the run;
it shows pictures in place, derivations with their code and their check, and at the end its figures beside those of the
committed full record.

Three environment variables decide how a notebook runs, as options do for ``make lesson-N``: ``MINIGPT_QUICK=1``,
everything at its smallest; ``MINIGPT_CHECK=1``, a figure outside its band is an error; ``MINIGPT_OUT=DIR``, where
results go.
"""

from __future__ import annotations

import inspect
import io
import linecache
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from kernels import Backend, get_backend
from kernels.backend import OPS
from lessons.common import derivation, plotting, runner
from lessons.common.derivation import Derivation
from lessons.common.gradcheck import Check
from lessons.common.runner import ROOT, Run, Settings
from lessons.common.source import source
from lessons.common.table import markdown, spread
from minigpt import files
from minigpt.errors import InputError, RunError

SHOWN_WIDTH = 800
"""CSS pixels in which a picture is shown: the width of a notebook's text."""


MANY = 12
"""Gradients; where there are more and all are right, one line says so."""


def switched_on(name: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(name, "") not in ("", "0", "no", "false")


def begin(number: int) -> NotebookRun:
    """The run of a lesson in a notebook: on the GPU where CuPy can use one, and at the size that the environment says.

    Parameters
    ----------
    number : int
        Of the lesson.

    Returns
    -------
    run : NotebookRun

    Raises
    ------
    InputError
        If the directory for its results cannot be written.
    """
    try:
        backend = get_backend("cupy")
    except ValueError:  # no CuPy, or no GPU that it can use
        backend = get_backend("numpy")
    quick = switched_on("MINIGPT_QUICK")
    here = ROOT if (ROOT / "pyproject.toml").is_file() else Path()
    settings = Settings(
        quick=quick,
        check=switched_on("MINIGPT_CHECK") and not quick,
        backend=backend.name,
        out=Path(os.environ.get("MINIGPT_OUT") or os.path.relpath(here / "runs" / "notebooks")),
    )
    run = runner.begin(number, settings, NotebookRun)
    size = "quick: everything at its smallest, the figures mean nothing" if quick else "core: about two minutes"
    run.say(f"lesson {number}, {size}; on {backend.name}")
    return run


@dataclass
class NotebookRun(Run):
    """A run that shows itself in a notebook.

    Attributes
    ----------
    checks : list of Check
        Of all derivations shown so far.
    began : float
        `time.perf_counter` at its start.
    """

    checks: list[Check] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def heading(self, text: str) -> None:
        """A line in bold: the notebook's own text has the headings."""
        show_markdown(f"**{text}**")

    def picture(self, name: str, figure: Figure) -> Path:
        """Save a figure in the run's directory, and show it here."""
        path = super().picture(name, figure)
        show_figure(figure)
        return path

    def show(self, derived: Derivation, forms: Mapping[str, Backend] | None = None, mathematics: bool = True) -> None:
        """A derivation: its formulas, the code in which they stand, and its check.

        Parameters
        ----------
        derived : Derivation
        forms : dict of str to Backend, optional
            Forms of the code to check side by side; by default the run's backend.
        mathematics : bool
            False where the notebook's text has just derived it: then only code and check.
        """
        forms = forms or {"by hand": self.backend}
        checks = {name: derived.check(backend) for name, backend in forms.items()}
        self.checks.extend(check for form in checks.values() for check in form)
        parts = []
        if mathematics:
            parts += [f"**{derived.title}**", f"```text\n{textwrap.dedent(derived.mathematics).strip()}\n```"]
        parts += [f"```python\n{source(function)}\n```\n{where(function)}" for function in derived.functions]
        show_markdown("\n\n".join([*parts, check_table(checks)]))

    def require_gradients(self) -> None:
        """Stop here unless every gradient shown so far is written and right.

        Raises
        ------
        RunError
        """
        derivation.require(self.checks)
        self.say(f"all {len(self.checks)} checks hold")

    def attempt(self, derived: Derivation, *yours: Callable[..., Any]) -> None:
        """Check a derivation with functions of yours in the place of the lesson's of the same name.

        Nothing is changed for good: the lesson's own are back afterwards.

        Parameters
        ----------
        derived : Derivation
        *yours : callables
            Each with the name of one that the derivation shows.

        Raises
        ------
        InputError
            If the derivation shows no function of that name.
        """
        known = {function.__name__: function for function in derived.functions}
        with ExitStack() as stack:
            for function in yours:
                if function.__name__ not in known:
                    raise InputError(f"{derived.title} has no {function.__name__}; it has {', '.join(known)}")
                for module in homes(known[function.__name__]):
                    stack.enter_context(patch.object(module, function.__name__, function))
            try:
                checks = derived.check(self.backend.with_reference(*OPS))  # made now, so that it takes yours
            except (InputError, RunError) as error:  # the course's own, about what yours has given
                show_markdown(f"✗ {error}")
                return
            except Exception as error:
                place = fault_of(error, yours)
                if place is None:
                    raise
                show_markdown(place)
                return
        show_markdown(check_table({"yours": checks}))

    def show_record(self) -> None:
        """The figures of the committed full run: all ablations, several seeds."""
        if self.committed is None:
            show_markdown(self._no_record)
            return
        rows = [
            [name.replace("_", " "), spread(figure["values"], 3), figure["unit"], len(figure["values"])]
            for name, figure in self.committed["figures"].items()
        ]
        show_table(rows, ["figure", "full run: mean ± deviation", "unit", "seeds"], "lrlr")
        show_markdown(self._about_record)

    def conclude(self) -> None:
        """The figures of this run beside those of the full record, with the verdict of their bands; keep them all.

        Raises
        ------
        RunError
            If the environment asks for a check and a figure is outside its band.
        """
        recorded = (self.committed or {}).get("figures", {})
        rows = []
        for f in self.reported:
            full = recorded.get(f.name)
            band = "" if f.expected is None else f"{f.expected.low:.{f.digits}f} to {f.expected.high:.{f.digits}f}"
            verdict = {True: "✓ inside", False: "✗ **outside**", None: ""}[f.inside]
            rows.append(
                [
                    f.name.replace("_", " "), spread(f.values, f.digits),
                    spread(full["values"], f.digits) if full else "–", f.unit, band, verdict,
                ]
            )  # fmt: skip
        headers = ["figure", "here", "full run", "unit", "expected", ""]
        show_table(rows, headers, "lrrlrl")
        show_markdown(self._no_record if self.committed is None else self._about_record)
        files.write_json(self.directory / "record.json", self.as_record(time.perf_counter() - self.began))
        outside = [f"{f.name}: {f.verdict}" for f in self.reported if f.inside is False]
        if outside and self.settings.check:
            raise RunError("; ".join(outside))

    @property
    def _no_record(self) -> str:
        return (
            f"*Not recorded yet: `make lesson-{self.number} FULL=1` runs all ablations over several seeds, and makes "
            "the bands in which figures are expected.*"
        )

    @property
    def _about_record(self) -> str:
        assert self.committed is not None
        made = self.committed["provenance"]
        minutes = round(self.committed["seconds"] / 60)  # of its last sitting, where it went on from others
        return (
            f"*Full run: `make lesson-{self.number} FULL=1`, {f'{minutes} minutes on ' * (minutes > 1)}"
            f"{made['cores']} cores of {made['cpu']}, Python {made['python']}, NumPy {made['numpy']}.*"
        )


# ---------------------------------------------------------------------------------------------- showing


def show_markdown(text: str) -> None:
    """Markdown as a cell's output; the text itself where nothing renders it."""
    display({"text/markdown": text, "text/plain": text}, raw=True)  # type: ignore[no-untyped-call]


def show_table(rows: Sequence[Sequence[Any]], headers: Sequence[str], align: str = "") -> None:
    """A table as a cell's output; arguments as for `lessons.common.table.table`."""
    show_markdown(markdown(rows, headers, align))


def show_figure(figure: Figure) -> None:
    """A figure in place, in few bytes: 256 colours are enough for lines and maps."""
    data, small = io.BytesIO(), io.BytesIO()
    with plotting.style():
        figure.savefig(data, format="png", facecolor="white")
    image = Image.open(data).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(small, "png", optimize=True)
    alt = "; ".join(title for axes in figure.axes if (title := axes.get_title(loc="left")))
    display(
        {"image/png": small.getvalue(), "text/plain": f"picture: {alt}"},
        raw=True,
        metadata={"image/png": {"width": SHOWN_WIDTH}},
    )  # type: ignore[no-untyped-call]


def show_section(title: str, page: str = "README.md") -> None:
    """A section of one of the project's pages, as it stands there.

    Parameters
    ----------
    title : str
        Its heading.
    page : str
        Path from the project's root.

    Raises
    ------
    InputError
        If there is no such page here, as where only the package is installed, or no such section on it.
    """
    path = ROOT / page
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    start = next((i for i, line in enumerate(lines) if line.startswith("#") and line.lstrip("# ") == title), None)
    if start is None:
        raise InputError(f"no section {title!r} in {page} here")
    stop = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("#")), len(lines))
    show_markdown("\n".join(lines[start + 1 : stop]).strip())


def check_table(forms: Mapping[str, Sequence[Check]]) -> str:
    """The check: how far each form of the code is from central differences, or what else is right; and the verdict.

    Parameters
    ----------
    forms : dict of str to sequence of Check
        Name of a form → the same checks in the same order.
    """
    everything = [check for form in forms.values() for check in form]
    if len(everything) > MANY * len(forms) and all(check.ok for check in everything):
        worst = max(everything, key=lambda check: check.difference or 0.0)
        return (
            f"✓ all {len(everything) // len(forms)} arrays are right, in each form of the code; the farthest, "
            f"`{worst.name}`, is off by {worst.difference:.0e}"
        )
    rows, faults = [], []
    for per_form in zip(*forms.values(), strict=True):
        first_wrong = next((c for c in per_form if not c.ok), per_form[0])
        off = ["–" if c.difference is None else f"{c.difference:.0e}" for c in per_form]
        verdict = {"ok": "✓", "WRONG": "✗ **wrong**"}.get(first_wrong.verdict, first_wrong.verdict)
        rows.append([f"`{per_form[0].name}`", str(per_form[0].shape), *off, verdict])
        faults += [f"- {form}: {c.fault}" for form, c in zip(forms, per_form, strict=True) if c.fault]
    headers = ["checked", "shape", *(f"{form} off by" for form in forms), ""]
    table = markdown(rows, headers, "ll" + "r" * len(forms) + "l")
    return "\n\n".join([table, "\n".join(faults)]) if faults else table


def fault_of(error: Exception, yours: Sequence[Callable[..., Any]]) -> str | None:
    """Where a function of a reader's raised, in Markdown; None if none of them was under way."""
    codes = {function.__code__: function.__name__ for function in yours}
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    inside = [(code, line) for code, line in frames if code in codes]
    if not inside:
        return None
    code, line = inside[-1]
    text = linecache.getline(code.co_filename, line).strip()
    at = f"line {line - code.co_firstlineno + 1} of your `{codes[code]}`" + (f": `{text}`" if text else "")
    return f"✗ **{type(error).__name__}**: {error}\n\n*in {at}*"


def homes(function: Callable[..., Any]) -> list[ModuleType]:
    """The course's modules that know a function by its name: its own, and those that import it from there."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("lessons", "kernels")]
    return [module for module in modules if vars(module).get(function.__name__) is function]


def where(function: Callable[..., Any]) -> str:
    """The file of a function, as its reader will look for it."""
    path = Path(inspect.getfile(function)).resolve()
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return f"*in `{name}`*"


def explore(draw: Callable[..., Figure | str], examples: Sequence[Mapping[str, Any]], **controls: Any) -> None:
    """Something to play with: drawn for the examples, so that it can be read, and then again as often as one likes.

    Parameters
    ----------
    draw : callable
        Gives a figure, or text.
    examples : sequence of dict
        Arguments of `draw`, each shown here and now.
    **controls
        What `ipywidgets.interactive` makes sliders, menus and fields of, one for each argument of `draw`.
    """
    # IPython's widgets are needed where somebody sits, and nowhere else.
    from ipywidgets import interactive

    def show(**values: Any) -> None:
        shown = draw(**values)
        show_figure(shown) if isinstance(shown, Figure) else print(shown)

    for example in examples:
        show(**example)
    display(interactive(show, {"manual": True, "manual_name": "show"}, **controls))  # type: ignore[no-untyped-call]
