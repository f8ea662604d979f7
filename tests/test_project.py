"""The project around the code: make targets, pinned versions, one-way imports, nothing of a developer's machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from minigpt.files import provenance

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LESSONS = sorted((ROOT / "lessons").glob("lesson_[0-9][0-9]_*.py"))
SETTINGS = ("DATA", "FULL", "QUICK", "BRIEF", "CHECK", "BACKEND", "SEED", "OUT", "ARGS", "VENV", "PYTHON")

# ---------------------------------------------------------------------------------------------- make

needs_make = pytest.mark.skipif(shutil.which("make") is None or os.name == "nt", reason="no make, or no POSIX shell")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in SETTINGS and not k.startswith("MAKE")}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def documented_targets() -> list[str]:
    return re.findall(r"^## ([\w-]+): ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def made(tmp_path: Path) -> str:
    """``VENV=…`` of an environment that is set up, in which Python only shows what it is called with."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '<%s>\\n' \"$@\"\n", encoding="utf-8")
    python.chmod(0o755)
    for extra in ("", "-notebooks", "-dev", "-parity"):  # each newer than the one before
        stamp = f".installed{extra}"
        (tmp_path / "venv" / stamp).touch()
    return f"VENV={tmp_path / 'venv'}"


@needs_make
def test_make_alone_lists_every_target_with_a_line() -> None:
    listed = make()
    assert listed.returncode == 0
    for target in documented_targets():
        assert re.search(rf"^  make {target} +\S", listed.stdout, re.MULTILINE), target
    assert "lesson-1" in listed.stdout


@needs_make
def test_every_target_of_the_makefile_is_documented() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    families = {"$(LESSONS)": "lesson-N", "$(NOTEBOOKS)": "notebook-N", "$(GRADES)": "grade-N"}
    phony = [families.get(name, name) for name in " ".join(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)).split()]
    assert sorted(phony) == sorted(documented_targets())
    assert {"lesson-N", "test", "parity", "lint", "bases", "data", "bench", "clean", "help"} <= set(phony)


@needs_make
@pytest.mark.parametrize(
    "target", [*(t for t in documented_targets() if not t.endswith("-N")), "lesson-1", "notebook-1"]
)
def test_targets_parse_and_say_what_they_would_do(target: str, tmp_path: Path) -> None:
    planned = make("-n", target, f"VENV={tmp_path / 'venv'}")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.strip()
    assert not (tmp_path / "venv").exists()


@needs_make
def test_a_lesson_gets_its_settings_whatever_they_contain(made: str) -> None:
    data, out = 'my file\'s $HOME "text".txt', "some where"
    # make itself reads $$ as $
    called = make(
        "lesson-1",
        made,
        f"DATA={data.replace('$', '$$')}",
        f"OUT={out}",
        "FULL=1",
        "SEED=3",
        "BACKEND=cupy",
        "PRECISION=tf32",
        "BRIEF=yes",
    )
    assert called.returncode == 0, called.stderr
    said = [line[1:-1] for line in called.stdout.splitlines() if line.startswith("<")]
    assert said == [
        "-m", "lessons", "1", "--data", data, "--out", out,
        "--backend", "cupy", "--precision", "tf32", "--seed", "3", "--full", "--brief",
    ]  # fmt: skip


@needs_make
def test_a_setting_that_is_off_is_not_passed_on(made: str) -> None:
    said = make("lesson-1", made, "FULL=0", "QUICK=", "DATA=").stdout.split()
    assert said == ["<-m>", "<lessons>", "<1>"]


@needs_make
def test_lessons_runs_every_one(made: str) -> None:
    said = make("lessons", made, "QUICK=1").stdout.split()
    numbers = [str(int(path.stem.split("_")[1])) for path in LESSONS]
    assert said == [word for n in numbers for word in ("<-m>", "<lessons>", f"<{n}>", "<--quick>")]


@needs_make
@pytest.mark.parametrize("name", ["lesson-99", "lesson-x", "lesson-01x"])
def test_a_lesson_that_is_not_there_gets_a_clear_message(name: str, tmp_path: Path) -> None:
    missing = make(name, f"VENV={tmp_path / 'venv'}")
    assert missing.returncode == 2
    assert f"There is no lesson {name.removeprefix('lesson-')} yet" in missing.stderr
    assert "lesson-1" in missing.stderr
    assert not (tmp_path / "venv").exists()  # said at once, not after a minute of setting up


@needs_make
def test_tests_parity_and_lint_use_the_environment(made: str) -> None:
    assert make("test", made, "ARGS=-x tests/kernels").stdout.split() == ["<-m>", "<pytest>", "<-x>", "<tests/kernels>"]
    assert "<tests/parity>" in make("parity", made).stdout
    linted = make("lint", made).stdout
    for tool in ("<ruff>", "<mypy>", "importlinter"):
        assert tool in linted
    assert linted.count("<ruff>") == 2


@needs_make
def test_the_environment_is_made_again_when_requirements_change(made: str) -> None:
    stamp = Path(made.removeprefix("VENV=")) / ".installed"
    os.utime(stamp, (0, 0))
    again = make("test", made)
    said = re.findall(r"<(--editable|\.|\.\[dev\]|--constraint|constraints\.txt|pytest)>", again.stdout)
    pinned = ["--constraint", "constraints.txt", "--editable"]
    assert said == [*pinned, ".", *pinned, ".[dev]", "pytest"]
    assert "once, about a minute" in again.stdout
    assert "<pip>" not in make("test", made).stdout


@needs_make
def test_no_python_gets_a_clear_message(tmp_path: Path) -> None:
    setup = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={tmp_path / 'no python'}")
    assert setup.returncode == 2
    assert "No Python 3.11 or newer" in setup.stderr
    assert f"at {tmp_path / 'no python'}" in setup.stderr
    assert not (tmp_path / "venv" / ".installed").exists()


def test_ci_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK) or os.name == "nt"
    assert "set -euo pipefail" in text
    if shutil.which("bash"):
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    used = set(re.findall(r"^stage .* run ([\w-]+)", text, re.MULTILINE))
    assert used <= set(documented_targets())
    assert {"test", "lint", "parity", "lessons"} <= used
    assert "-m notebooks" in text


# ---------------------------------------------------------------------------------------------- lessons


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_lesson_can_be_run_by_make(path: Path) -> None:
    module = importlib.import_module(f"lessons.{path.stem}")
    number = int(path.stem.split("_")[1])
    assert callable(module.main)
    assert (module.__doc__ or "").startswith(f"Lesson {number}: ")


# ---------------------------------------------------------------------------------------------- imports


def test_imports_go_one_way() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    linted = subprocess.run([sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
    assert "1 kept, 0 broken" in linted.stdout


# ---------------------------------------------------------------------------------------------- versions


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    found = {}
    for line in wanted:
        name, separator, version = line.partition("==")
        assert separator, f"{line}: not an exact version"
        assert canonicalize_name(name) not in found, f"{name} is there twice"
        found[canonicalize_name(name)] = Version(version)
    assert wanted == sorted(wanted, key=str.lower)
    return found


def requirements(*extras: str) -> Iterator[Requirement]:
    project = PROJECT["project"]
    for line in [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]:
        requirement = Requirement(line)
        if requirement.name == project["name"]:  # its own other extras
            yield from requirements(*requirement.extras)
        else:
            yield requirement


def test_everything_asked_for_is_pinned_within_what_is_asked() -> None:
    pinned = pins()
    for requirement in requirements("dev", "notebooks", "parity"):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}, pinned is {pinned[name]}"


def test_everything_that_is_pulled_in_is_pinned() -> None:
    pinned = pins()
    todo = [(r.name, r.extras) for r in requirements("dev", "notebooks", "parity")]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        assert canonicalize_name(name) in pinned, f"{name} is not in constraints.txt"
        for requirement in map(Requirement, needs):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((requirement.name, requirement.extras))
    assert len(seen) > 20


def test_versions_agree() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in makefile
    assert f"No Python {oldest} or newer" in makefile
    assert provenance()["minigpt"] == PROJECT["project"]["version"]


# ---------------------------------------------------------------------------------------------- nothing private


def project_files() -> list[Path]:
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
        return [path for name in names if name and (path := ROOT / os.fsdecode(name)).is_file()]
    skipped = {".venv", "venv", "runs", "build", "dist"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not skipped & set(path.parts) and not any("cache" in part for part in path.parts)
    ]


def test_no_path_of_this_machine_is_in_any_file() -> None:
    places = {ROOT, Path.home(), Path(os.environ.get("MINIGPT_DATA", ROOT)).resolve()}
    if sys.prefix != sys.base_prefix:
        places.add(Path(sys.prefix))
    mine = [f"{place}{os.sep}".encode() for place in places if len(place.parts) > 1]
    files = project_files()
    assert len(files) > 50
    for path in files:
        content = path.read_bytes()
        for place in mine:
            assert place not in content, f"{path.relative_to(ROOT)} names {os.fsdecode(place)}"


def test_packages_come_from_wherever_pip_is_told() -> None:
    for name in ("Makefile", "constraints.txt", ".ci/run", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links|--trusted-host", text), name
