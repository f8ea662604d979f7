"""The students' repository, cut from this one: no solution, no hidden case, no typical mistake, no secret.

Every module of the course comes without its solutions and without its fast forms, which are other copies of them: the
course then runs on what the student has written. Tests and benchmarks stay here, because they hold further copies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from classroom import assignment, manifest, recorded, source
from minigpt.errors import InputError
from minigpt.files import atomic_directory

ROOT = Path(__file__).resolve().parent.parent

DATA_SUFFIXES = {
    "kernels": (),
    "minigpt": (".json", ".md", ".safetensors", ".txt", ".typed"),
    "lessons": (".json", ".png"),
}
"""What comes along beside the modules, a folder of the course each."""

FAST_MODULES = ("minigpt/decoding.py",)
"""Modules that are a fast form as a whole: left out."""

CLASSROOM = (
    "__init__.py",
    "__main__.py",
    "confine.py",
    "diagnosis.py",
    "fill.py",
    "grading.py",
    "judge.py",
    "manifest.py",
    "recorded.py",
    "reports/__init__.py",
    "reports/clean.py",
    "reports/text.py",
    "runner.py",
    "sandbox.py",
    "source.py",
    "values.py",
    "views.py",
)
"""The student's part of this package."""

FILES = {
    ".gitignore": ".gitignore",
    "constraints.txt": "constraints.txt",
    "pyproject.toml": "pyproject.toml",
    "classroom/STUDENT.md": "README.md",
}
"""What is copied as it is, and where to."""

TEACHER_SECTIONS = ("Check", "Teach")
"""Of the Makefile: left out."""

PUBLIC = "classroom/public"


def build(root: Path, out: Path) -> None:
    """Write the students' repository.

    Parameters
    ----------
    root : path
        This repository.
    out : path
        Made, or replaced if it is an earlier handout.

    Raises
    ------
    InputError
        If `out` is something else, a marked function belongs to no exercise or to two, or a file is missing.
    """
    if out.exists() and not (out / manifest.MANIFEST).is_file():
        raise InputError(f"{out} exists and is no handout; it stays as it is")
    messages = stub_messages(root)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(out) as tree:
        for path, content in _files(root, messages):
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        for lesson in assignment.lessons():
            public = assignment.complete(assignment.inputs(lesson, assignment.PUBLIC_SEED))
            recorded.save(public, tree / PUBLIC / f"lesson_{lesson:02d}")
        manifest.write(tree)


def stub_messages(root: Path) -> dict[str, dict[str, str]]:
    """What a function that is not written yet says: path of the module → function → message.

    Raises
    ------
    InputError
        Unless every marked function belongs to exactly one exercise and every exercise to a marked function.
    """
    messages: dict[str, dict[str, str]] = {}
    for exercise in assignment.every():
        path = source.path_of(exercise.function)
        of_module = messages.setdefault(path, {})
        if exercise.name in of_module:
            raise InputError(f"{exercise.function} belongs to two exercises; one of them is {exercise.id}")
        of_module[exercise.name] = f"exercise {exercise.id} is not written yet: {exercise.name} in {path}"
    marked = {(source.path_of(function), body.name) for function, body in source.all_marked(root).items()}
    planned = {(path, name) for path, names in messages.items() for name in names}
    for path, name in sorted(marked - planned):
        raise InputError(f"{path}: {name} has a marked solution and belongs to no exercise")
    for path, name in sorted(planned - marked):
        raise InputError(f"{path}: {name} is an exercise and has no marked solution")
    return messages


def module(text: str, path: str, messages: Mapping[str, str], solved: Collection[str] = ()) -> str:
    """A module of the course as students get it, but for functions that are solved already."""
    return source.without_fast_forms(source.strip(text, path, messages, solved))


def notebook(text: str) -> str:
    """A notebook without what it has put out, which may show solutions."""
    content = json.loads(text)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
            cell["execution_count"] = None
    content.get("metadata", {}).pop("widgets", None)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def makefile(text: str) -> str:
    """The Makefile without the teacher's sections. A section goes from its ``##@`` line to the next."""
    parts = re.split(r"^(?=##@ |# -{20})", text, flags=re.MULTILINE)
    return "".join(part for part in parts if not part.startswith(tuple(f"##@ {name}\n" for name in TEACHER_SECTIONS)))


def _files(root: Path, messages: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, bytes]]:
    for path, file in source.modules(root):
        if path in FAST_MODULES:
            continue
        text = module(file.read_text(encoding="utf-8"), path, messages.get(path, {}))
        yield path, text.encode()
    for folder, suffixes in DATA_SUFFIXES.items():
        for file in sorted((root / folder).rglob("*")):
            if file.is_file() and file.suffix in suffixes:
                yield file.relative_to(root).as_posix(), file.read_bytes()
    for file in sorted((root / "notebooks").iterdir()):
        if file.suffix == ".ipynb":
            yield f"notebooks/{file.name}", notebook(file.read_text(encoding="utf-8")).encode()
        elif file.suffix == ".py":
            yield f"notebooks/{file.name}", file.read_bytes()
    for name in CLASSROOM:
        yield f"classroom/{name}", _read(root / "classroom" / name)
    for path, target in FILES.items():
        yield target, _read(root / path)
    yield "Makefile", makefile(_read(root / "Makefile").decode()).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the handout needs it") from None
