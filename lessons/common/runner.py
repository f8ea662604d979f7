"""What every lesson's ``main`` does: options, a directory for what comes out, figures with their bands, and a record.

A lesson is a function of a `Run`. It prints as it goes, reports its figures with `Run.report`, keeps what pictures and
notebooks need in `Run.results`, and saves pictures with `Run.picture`. Around it, `run_lesson` parses the options,
compares the figures with the bands of the committed record, and writes this run's own record.

A full run (``FULL=1``) gives every figure once a seed, and makes the bands of the next committed record of them.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from kernels import Backend, get_backend
from kernels.backend import PRECISIONS
from lessons.common import plotting
from lessons.common.bands import Band
from lessons.common.table import spread, table
from minigpt import files
from minigpt.errors import InputError, RunError

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDS = Path(__file__).resolve().parent.parent / "records"

AnyPlan = TypeVar("AnyPlan")


@dataclass(frozen=True)
class Settings:
    """What a lesson is asked to do.

    Attributes
    ----------
    data : str or None
        The user's own data instead of the lesson's.
    full : bool
        All ablations over several seeds.
    quick : bool
        Everything at the smallest size that still runs every line, for tests and CI.
    brief : bool
        Without the derivations.
    check : bool
        Exit with code 1 if a figure is outside its band.
    backend : str or Backend
        As `get_backend` takes it: ``"numpy"``, ``"cupy"``, ``"cupy:tf32"``.
    seed : int
    out : path
        Where the lesson's directory is made.
    cluster : str
        Where its many short runs are done, if not on this machine; see `sweep.run`.
    """

    data: str | None = None
    full: bool = False
    quick: bool = False
    brief: bool = False
    check: bool = False
    backend: str | Backend = "numpy"
    seed: int = 0
    out: Path = Path("runs")
    cluster: str = ""

    @property
    def standard(self) -> bool:
        """Whether this is the run whose figures the committed bands speak of."""
        return self.data is None and not self.quick

    def choose(self, quick: AnyPlan, core: AnyPlan, full: AnyPlan | None = None) -> AnyPlan:
        """The plan that is for this size of run; a lesson without one for the full run takes its core's."""
        if self.quick:
            return quick
        return full if self.full and full is not None else core

    def record(self) -> dict[str, Any]:
        """What belongs in a record: all that decides about the figures."""
        backend = self.backend if isinstance(self.backend, str) else self.backend.spec
        return {"data": self.data, "full": self.full, "quick": self.quick, "backend": backend, "seed": self.seed}


@dataclass
class Reported:
    """One figure of a run.

    Attributes
    ----------
    name, unit : str
    values : list of float
        One a seed; a single one in a core run.
    expected : Band or None
        Where it should be: known before the run.
    measured : Band or None
        The band that the values of a full run make, for later runs.
    digits : int
        To show.
    """

    name: str
    unit: str
    values: list[float]
    expected: Band | None
    measured: Band | None
    digits: int

    @property
    def inside(self) -> bool | None:
        """Whether all values are where they should be; None where that is not known."""
        return None if self.expected is None else all(v in self.expected for v in self.values)

    @property
    def verdict(self) -> str:
        """What is to be said of it; empty where nothing is known."""
        if self.expected is not None:
            return self.expected.verdict(
                next((v for v in self.values if v not in self.expected), self.values[0]), self.digits
            )
        if self.measured is not None:
            low, high = (f"{v:.{self.digits}f}" for v in (self.measured.low, self.measured.high))
            return f"makes the band {low}–{high} over {self.measured.seeds} seeds"
        return ""


@dataclass
class Run:
    """One run of a lesson.

    Attributes
    ----------
    number : int
    settings : Settings
    directory : path
        ``runs/lesson-NN``.
    results : dict
        What goes into the record beside the figures; ready for JSON.
    """

    number: int
    settings: Settings
    directory: Path
    results: dict[str, Any] = field(default_factory=dict)
    reported: list[Reported] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    committed: dict[str, Any] | None = None

    @property
    def backend(self) -> Backend:
        """The backend that was asked for."""
        try:
            return get_backend(self.settings.backend)
        except ValueError as error:
            raise InputError(str(error)) from None

    def say(self, text: str = "") -> None:
        """Print, in step with a progress bar on the other stream."""
        print(text, flush=True)

    def heading(self, text: str) -> None:
        """Print a heading."""
        self.say(f"\n{text}\n{'=' * len(text)}")

    def report(
        self,
        name: str,
        value: float | Sequence[float],
        unit: str,
        band: Band | None = None,
        allowance: float = 0.0,
        reason: str = "",
        digits: int = 3,
        banded: bool = True,
    ) -> None:
        """A figure of this run.

        Parameters
        ----------
        name : str
        value : float or sequence of float
            In a full run one a seed.
        unit : str
        band : Band, optional
            Where it is expected; by default, for a run on the lesson's own data, that of the committed record.
        allowance, reason
            As for `Band.around`, for the band that a full run makes.
        digits : int
            To show.
        banded : bool
            False for a figure with no band, such as a time, which depends on the machine: shown, never judged.
        """
        values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
        measured = None
        if self.settings.standard and banded:
            band = band or self.committed_band(name)
            if self.settings.full and len(values) > 1:
                measured = Band.around(values, allowance, reason)
        self.reported.append(Reported(name, unit, values, band, measured, digits))

    def committed_band(self, name: str) -> Band | None:
        """The band of the committed record, if there is one."""
        stored = (self.committed or {}).get("bands", {}).get(name)
        return None if stored is None else Band(**stored)

    def picture(self, name: str, figure: Figure) -> Path:
        """Save a figure as ``NAME.png`` in the run's directory."""
        path = plotting.save(figure, self.directory / f"{name}.png")
        self.pictures.append(path)
        return path

    def as_record(self, seconds: float) -> dict[str, Any]:
        """The whole run, ready for JSON."""
        return {
            "lesson": self.number,
            "settings": self.settings.record(),
            "provenance": files.provenance(),
            "figures": {f.name: {"values": f.values, "unit": f.unit} for f in self.reported},
            "bands": {f.name: asdict(band) for f in self.reported if (band := f.measured or f.expected) is not None},
            "verdict": {f.name: {"inside": f.inside, "text": f.verdict} for f in self.reported},
            "results": self.results,
            "pictures": [path.name for path in self.pictures],
            "seconds": round(seconds, 1),
        }


AnyRun = TypeVar("AnyRun", bound=Run)


def committed_path(number: int) -> Path:
    """Where the record of a lesson's full run is kept."""
    return RECORDS / f"lesson-{number:02d}.json"


TEXT = "your own text instead of the lesson's: .txt"
LABELLED = "your own texts instead of the lesson's: .csv (text,label)"
PAIRS = "your own pairs instead of the lesson's: .jsonl (prompt,completion)"
TASK = "your own task instead of the lesson's: .csv (text,label) or .jsonl (prompt,completion)"
TEXT_OR_PAIRS = "your own text or pairs instead of the lesson's: .txt or .jsonl (prompt,completion)"
PREFERENCES = "your own preferences instead of the lesson's: .jsonl (prompt,chosen,rejected)"
NOTHING = "not for this lesson: it runs on its own tasks"
"""What ``DATA`` may be, for ``--help``."""


def parse(
    number: int,
    about: str,
    argv: Sequence[str] | None = None,
    takes: str = TASK,
    clusters: Sequence[str] = (),
) -> Settings:
    """The options that all lessons have.

    Parameters
    ----------
    number : int
    about : str
        What the lesson does, for ``--help``.
    argv : sequence of str, optional
        Arguments; the process' own by default.
    takes : str
        What ``--data`` may be.
    clusters : sequence of str
        What ``--cluster`` may be; without any there is no such option.

    Returns
    -------
    settings : Settings
    """
    parser = argparse.ArgumentParser(
        prog=f"make lesson-{number}",
        description=about.strip().split("\n\n")[0],
        epilog="With make: DATA=… FULL=1 QUICK=1 BRIEF=1 BACKEND=… PRECISION=… SEED=… OUT=…",
    )
    parser.add_argument("--data", metavar="PATH", help=takes)
    parser.add_argument("--full", action="store_true", help="all ablations over several seeds (half an hour)")
    parser.add_argument(
        "--quick", action="store_true", help="as small as it can be, for tests: its figures mean nothing"
    )
    parser.add_argument("--brief", action="store_true", help="leave out the derivations")
    parser.add_argument("--check", action="store_true", help="exit with code 1 if a figure is outside its band")
    parser.add_argument("--backend", choices=["numpy", "cupy"], default="numpy", help="cupy needs a CUDA GPU")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of matrix products on a GPU")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and samples (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="for results (%(default)s)")
    if clusters:
        about_it = "do the runs as a job array there; local: here, to try it"
        parser.add_argument("--cluster", choices=clusters, default="", help=about_it)
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        parser.error(f"--seed is {arguments.seed}; it must be 0 or more")
    if arguments.full and arguments.quick:
        parser.error("--full and --quick exclude each other")
    options = vars(arguments)
    precision = options.pop("precision")
    if precision != "float32":
        options["backend"] += f":{precision}"
    return Settings(**options)


def main(
    number: int,
    about: str,
    lesson: Callable[[Run], None],
    argv: Sequence[str] | None = None,
    takes: str = TASK,
    clusters: Sequence[str] = (),
) -> int:
    """``make lesson-N``: parse the options, run the lesson, and turn what can go wrong into one line.

    Parameters
    ----------
    number : int
    about : str
    lesson : (Run) -> None
    argv : sequence of str, optional
    takes : str
        What ``--data`` may be.
    clusters : sequence of str
        What ``--cluster`` may be.

    Returns
    -------
    code : int
        0 done, 1 the run failed, 2 the input is wrong, 130 stopped by Ctrl-C.
    """
    settings = parse(number, about, argv, takes, clusters)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show α shows a question mark
    print(about.strip(), flush=True)
    with one_line(f"lesson {number}") as ended:
        run = run_lesson(number, lesson, settings)
        if settings.check and any(f.inside is False for f in run.reported):
            ended.code = RunError.exit_code
    return ended.code


@dataclass
class Ended:
    """How a command ended.

    Attributes
    ----------
    code : int
        Its exit code.
    """

    code: int = 0


@contextmanager
def one_line(command: str) -> Iterator[Ended]:
    """Turn what can go wrong under it into one line on stderr and an exit code.

    Parameters
    ----------
    command : str
        In front of the line.

    Yields
    ------
    ended : Ended
        Whose code is 0 unless something went wrong, or the block says otherwise.
    """
    ended = Ended()
    try:
        yield ended
    except (InputError, RunError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        ended.code = error.exit_code
    except NotImplementedError as error:  # of a student's copy of the course; the message names the exercise
        print(f"{command}: {error}", file=sys.stderr)
        ended.code = RunError.exit_code
    except MemoryError:
        print(f"{command}: out of memory", file=sys.stderr)
        ended.code = RunError.exit_code
    except KeyboardInterrupt:
        print(f"\n{command}: interrupted", file=sys.stderr)
        ended.code = 128 + signal.SIGINT


def begin(number: int, settings: Settings, kind: type[AnyRun]) -> AnyRun:
    """A run that has not done anything yet, with its directory and the committed record.

    Parameters
    ----------
    number : int
    settings : Settings
    kind : class
        `Run`, or one that shows otherwise.

    Returns
    -------
    run : kind

    Raises
    ------
    InputError
        If the directory cannot be written.
    """
    directory = Path(settings.out) / f"lesson-{number:02d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "record.json").unlink(missing_ok=True)  # of an earlier run: its figures are not this one's
    except OSError as error:
        raise InputError(f"cannot make the directory {directory}: {error.strerror}") from None
    path = committed_path(number)
    return kind(number, settings, directory, committed=files.read_json(path) if path.exists() else None)


def run_lesson(number: int, lesson: Callable[[Run], None], settings: Settings) -> Run:
    """Run a lesson and write its record.

    Parameters
    ----------
    number : int
    lesson : (Run) -> None
    settings : Settings

    Returns
    -------
    run : Run

    Raises
    ------
    InputError, RunError
        What the lesson raised, or a directory that cannot be written.
    """
    run = begin(number, settings, Run)
    if settings.quick:
        run.say("\n  quick: everything at its smallest, to see that it runs; the figures mean nothing")
    began = time.perf_counter()
    lesson(run)
    record = run.as_record(time.perf_counter() - began)
    files.write_json(run.directory / "record.json", record)
    _summary(run, record["seconds"])
    if settings.full and settings.standard:
        _commit(run, record)
    return run


def _summary(run: Run, seconds: float) -> None:
    run.heading("What came out, and what to expect")
    rows = [[f.name.replace("_", " "), spread(f.values, f.digits), f.unit, f.verdict] for f in run.reported]
    run.say(table(rows, ["figure", "value", "unit", ""], "lrll"))
    if run.settings.standard and not run.settings.full and run.committed is None:
        run.say(f"\n  no bands yet: `make lesson-{run.number} FULL=1` measures them")
    run.say(f"\n  {seconds:.0f} s in all; pictures and record in {run.directory}:")
    run.say("  " + ", ".join(path.name for path in [*run.pictures, run.directory / "record.json"]))


def _commit(run: Run, record: dict[str, Any]) -> None:
    # The record is what the repository shows and compares with; outside of a checkout there is none to keep.
    if not (ROOT / "pyproject.toml").is_file():
        return
    path = committed_path(run.number)
    path.parent.mkdir(exist_ok=True)
    files.write_json(path, record)
    run.say(f"  lessons/records/{path.name} is written: later runs are compared with it")
