"""The one source: bodies between solution markers are found, taken out, replaced by others, and filled in.

A marked body is the end of a function at the top of a module::

    def linear_backward_input(dy, weight):
        \"\"\"Gradient with respect to the input. …\"\"\"
        ### BEGIN SOLUTION
        return dy @ weight.T
        ### END SOLUTION

What stands between the docstring and the first marker is given to the student.
"""

from __future__ import annotations

import ast
import functools
import io
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from minigpt.errors import InputError

FOLDERS = ("kernels", "minigpt", "lessons")
BEGIN = "### BEGIN SOLUTION"
END = "### END SOLUTION"
FAST = "fast forms"
"""Ends the divider line from which on a module holds fast forms only, in ``kernels`` and ``minigpt``."""

Definition = ast.FunctionDef


@dataclass(frozen=True)
class Marked:
    """A marked body.

    Attributes
    ----------
    name : str
        Of its function.
    first, begin, end : int
        Lines of the function's beginning and of the markers, from 1.
    body : str
        What stands between them, dedented.
    """

    name: str
    first: int
    begin: int
    end: int
    body: str


@functools.lru_cache(maxsize=256)
def marked(text: str, path: str) -> Mapping[str, Marked]:
    """The marked bodies of a module, by the name of the function.

    Parameters
    ----------
    text : str
        The module.
    path : str
        For messages.

    Raises
    ------
    InputError
        For a marker that is nested, stray, not closed or misspelt, and for a body that is not the end of a documented
        function at the top of the module; names file and line.
    """
    spans = list(_spans(text, path))
    if not spans:
        return MappingProxyType({})
    lines = _lines(text)
    found: dict[str, Marked] = {}
    statements = _parse(text, path).body
    for begin, end in spans:
        # An end marker is a comment: it may stand behind the last line that the parser counts to the function.
        owner = next((s for s in statements if s.lineno < begin <= _last_line(s)), None)
        if not isinstance(owner, Definition) or any(begin < s.lineno < end for s in statements):
            raise InputError(f"{path}:{begin}: a solution must be code in one function at the top of the module")
        if ast.get_docstring(owner) is None:
            raise InputError(f"{path}:{begin}: {owner.name} needs a docstring that says what to write")
        if owner.name in found:
            raise InputError(f"{path}:{begin}: {owner.name} has a second solution")
        if any(s.lineno > end or s.lineno < begin <= _last_line(s) for s in owner.body):
            raise InputError(f"{path}:{end}: the solution of {owner.name} must be the end of the function")
        first = min([owner.lineno, *(d.lineno for d in owner.decorator_list)])
        found[owner.name] = Marked(owner.name, first, begin, end, textwrap.dedent("".join(lines[begin : end - 1])))
    return MappingProxyType(found)


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the course below `root`: (path from there, with slashes; path), sorted."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path


def all_marked(root: Path) -> dict[str, Marked]:
    """Every marked body below `root`, by ``"package.module:function"``."""
    found = {}
    for relative, path in modules(root):
        module = relative.removesuffix(".py").replace("/", ".")
        for name, body in marked(path.read_text(encoding="utf-8"), relative).items():
            found[f"{module}:{name}"] = body
    return found


def path_of(function: str) -> str:
    """Where the module of ``"package.module:function"`` stands, from the root."""
    return function.split(":")[0].replace(".", "/") + ".py"


# ---------------------------------------------------------------------------------------------- other bodies


def strip(text: str, path: str, messages: Mapping[str, str], solved: Collection[str] = ()) -> str:
    """The module with solutions replaced by stubs.

    Parameters
    ----------
    text, path : str
    messages : mapping of str to str
        Function name → what its NotImplementedError says.
    solved : collection of str, optional
        Names of functions that keep their solution, without the markers.

    Raises
    ------
    InputError
        As `marked`; and for a function without a message.
    """
    bodies = marked(text, path)
    for name, body in bodies.items():
        if name not in messages:
            raise InputError(f"{path}:{body.begin}: {name} belongs to no exercise")
    return _replaced(
        text, {place: place.body if name in solved else _stub(messages[name]) for name, place in bodies.items()}
    )


def substitute(text: str, path: str, bodies: Mapping[str, str]) -> str:
    """The module with other bodies (function name → dedented text) between the markers, which go.

    Raises
    ------
    InputError
        For a function that has no marked body.
    """
    return _replaced(text, {_place(text, path, name): body for name, body in bodies.items()})


def edited(body: str, find: str, replace: str, label: str) -> str:
    """The body with one edit.

    Raises
    ------
    InputError
        Unless `find` stands in the body exactly once.
    """
    times = body.count(find)
    if times != 1:
        raise InputError(f"{label}: the text to replace occurs {times} times in the body, not once: {find!r}")
    return body.replace(find, replace)


def function(module: ModuleType, name: str, body: str) -> Callable[..., Any]:
    """A function of the module with another body.

    It runs in a copy of the module's namespace: what it calls is the reference, and the module stays as it is.

    Parameters
    ----------
    module : module
        Imported from a file with markers.
    name : str
    body : str
        Dedented text that stands between the markers instead.
    """
    path = module.__file__
    assert path is not None
    text = Path(path).read_text(encoding="utf-8")
    place = _place(text, path, name)
    head = "".join(_lines(text)[place.first - 1 : place.begin - 1])
    code = f"from __future__ import annotations\n{head}{_indented(body)}"
    namespace = dict(vars(module))
    exec(compile(code, f"<{module.__name__}:{name}>", "exec", dont_inherit=True), namespace)
    return namespace[name]


def without_fast_forms(text: str) -> str:
    """The module up to the divider behind which its fast forms stand."""
    lines = _lines(text)
    for number, line in enumerate(lines):
        if line.startswith("# ---") and line.rstrip().endswith(f" {FAST}"):
            return "".join(lines[:number]).rstrip() + "\n"
    return text


# ---------------------------------------------------------------------------------------------- a student's file


def suite(text: str, path: str, name: str) -> str | None:
    """What a function does: its lines after the docstring, dedented, without markers; None if it is not there."""
    definition = _find(text, path, name)
    if definition is None:
        return None
    lines = _lines(text)[_suite_start(definition) : _suite_end(text, definition)]
    return textwrap.dedent("".join(line for line in lines if line.strip() not in (BEGIN, END)))


def same_code(a: str, b: str) -> bool:
    """Whether two suites are the same but for comments and layout."""
    return ast.dump(_in_function(a)) == ast.dump(_in_function(b))


def with_suite(text: str, path: str, name: str, new: str) -> str:
    """The module with another suite in one function.

    Raises
    ------
    InputError
        If the module cannot be parsed or has no such function, or has it on one line.
    """
    definition = _find(text, path, name)
    if definition is None:
        raise InputError(f"{path}: no function {name}")
    if definition.body[0].lineno == definition.lineno:
        raise InputError(f"{path}:{definition.lineno}: {name} must have its body on lines of its own")
    lines = _lines(text)
    lines[_suite_start(definition) : _suite_end(text, definition)] = [_indented(new)]
    return "".join(lines)


# ---------------------------------------------------------------------------------------------- text


def _lines(text: str) -> list[str]:
    """Lines with their ends, as the parser counts them: `str.splitlines` would also split at form feeds."""
    return io.StringIO(text, newline="").readlines()


def _spans(text: str, path: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for number, line in enumerate(_lines(text), 1):
        marker = line.strip()
        if not marker.startswith("#") or "SOLUTION" not in marker:
            continue
        if marker == BEGIN:
            if begin:
                raise InputError(f"{path}:{number}: a solution begins inside the one that begins in line {begin}")
            begin = number
        elif marker == END:
            if not begin:
                raise InputError(f"{path}:{number}: a solution ends that has not begun")
            yield begin, number
            begin = 0
        else:
            raise InputError(f"{path}:{number}: {marker!r} is no marker; there are {BEGIN!r} and {END!r}")
    if begin:
        raise InputError(f"{path}:{begin}: the solution that begins here does not end")


@functools.lru_cache(maxsize=8)  # a module is asked for one function after the other
def _parse(text: str, path: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:  # ValueError: a NUL byte
        line = getattr(error, "lineno", None) or 1
        raise InputError(f"{path}:{line}: {getattr(error, 'msg', error)}") from None


def _place(text: str, path: str, name: str) -> Marked:
    places = marked(text, path)
    if name not in places:
        raise InputError(f"{path}: no marked function {name}")
    return places[name]


def _replaced(text: str, bodies: Mapping[Marked, str]) -> str:
    lines = _lines(text)
    for place, body in sorted(bodies.items(), key=lambda item: -item[0].begin):
        lines[place.begin - 1 : place.end] = [_indented(body)]
    return "".join(lines)


def _stub(message: str) -> str:
    return f'raise NotImplementedError("{message}")\n'


def _indented(body: str) -> str:
    return textwrap.indent(body if body.endswith("\n") else body + "\n", "    ")


def _find(text: str, path: str, name: str) -> ast.FunctionDef | None:
    # Of several definitions of the same name Python keeps the last.
    found = [d for d in _parse(text, path).body if isinstance(d, Definition) and d.name == name]
    return found[-1] if found else None


def _suite_start(definition: ast.FunctionDef) -> int:
    """Index of the first line after the docstring, or after the header where there is none."""
    if ast.get_docstring(definition) is not None:
        return _last_line(definition.body[0])
    return definition.body[0].lineno - 1


def _suite_end(text: str, definition: ast.FunctionDef) -> int:
    """Index after the last line: an end marker that follows belongs to the function."""
    end = _last_line(definition)
    lines = _lines(text)
    return end + 1 if end < len(lines) and lines[end].strip() == END else end


def _last_line(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno


def _in_function(code: str) -> ast.Module:
    return ast.parse(f"def f():\n{_indented(code)}\n    pass\n")  # the code may be nothing but comments
