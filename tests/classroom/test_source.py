"""Solution markers: found, taken out, replaced, filled in."""

from __future__ import annotations

import ast
import importlib.util
import textwrap

import pytest

from classroom import source
from minigpt.errors import InputError

MODULE = '''"""A module."""

from __future__ import annotations

import math

LIMIT = 3


def given(x):
    """Twice."""
    return 2 * x


def first(x: float, times: int = 2) -> float:
    """Says what to write.

    Even in several lines.
    """
    if x < 0:
        raise ValueError(x)
    ### BEGIN SOLUTION
    # the square comes first
    y = x * x

    return math.sqrt(y) + given(times)
    ### END SOLUTION


def second(x):
    """No prelude."""
    ### BEGIN SOLUTION
    return min(x, LIMIT)
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- fast forms


def second_fast(x):
    """Also a solution."""
    return x if x < LIMIT else LIMIT
'''

STUBS = {"first": "write first", "second": "write second"}


def run(text: str) -> dict:
    namespace: dict = {}
    exec(compile(text, "module", "exec"), namespace)
    return namespace


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "course_module.py"
    path.write_text(MODULE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("course_module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------- finding


def test_every_marked_body_is_found_with_its_lines_and_without_its_indent():
    found = source.marked(MODULE, "m.py")
    assert list(found) == ["first", "second"]
    lines = MODULE.splitlines()
    for body in found.values():
        assert lines[body.begin - 1].strip() == source.BEGIN
        assert lines[body.end - 1].strip() == source.END
        assert lines[body.first - 1].startswith(f"def {body.name}(")
    assert found["first"].body == "# the square comes first\ny = x * x\n\nreturn math.sqrt(y) + given(times)\n"


def test_lines_are_counted_as_the_parser_counts_them():
    text = MODULE.replace("LIMIT = 3", 'LIMIT = 3  # a form feed: \f and "\u2028"')
    assert source.marked(text, "m.py")["second"].body == "return min(x, LIMIT)\n"


def marked_function(body: str) -> str:
    return 'def f(x):\n    """Write it."""\n' + textwrap.indent(textwrap.dedent(body), "    ")


B, E = source.BEGIN, source.END

BROKEN = {
    "nested": (marked_function(f"{B}\n{B}\nreturn x\n{E}\n"), 4, "inside the one that begins in line 3"),
    "not closed": (marked_function(f"{B}\nreturn x\n"), 3, "does not end"),
    "closed twice": (marked_function(f"{B}\nreturn x\n{E}\n{E}\n"), 6, "has not begun"),
    "stray end": (f"x = 1\n{E}\n", 2, "has not begun"),
    "misspelt": (marked_function("### BEGIN SOLUTIONS\nreturn x\n"), 3, "is no marker"),
    "two hashes": (marked_function("## BEGIN SOLUTION\nreturn x\n"), 3, "is no marker"),
    "outside of a function": (f"{B}\nx = 1\n{E}\n", 1, "in one function at the top"),
    "in a class": (
        f'class A:\n    def f(self):\n        """W."""\n        {B}\n        return 1\n        {E}\n',
        4,
        "top",
    ),
    "over two functions": (
        marked_function(f"{B}\nreturn x\n") + "\n\n" + marked_function(f"return x\n{E}\n"),
        3,
        "top",
    ),
    "in a block": (marked_function(f"if x:\n    {B}\n    return x\n    {E}\n"), 6, "end of the function"),
    "code behind it": (marked_function(f"{B}\ny = x\n{E}\nreturn y\n"), 5, "end of the function"),
    "empty": (marked_function(f"{B}\n# nothing\n{E}\n"), 3, "must be code"),
    "no docstring": (f"def f(x):\n    {B}\n    return x\n    {E}\n", 2, "docstring"),
    "two in a function": (marked_function(f"{B}\ny = x\n{E}\n{B}\nreturn y\n{E}\n"), 5, "end of the function"),
    "no Python": ("def f(x)\n    return x\n" + marked_function(f"{B}\nreturn x\n{E}\n"), 1, "expected ':'"),
}


@pytest.mark.parametrize(("text", "line", "says"), BROKEN.values(), ids=BROKEN)
def test_wrong_markers_are_an_error_that_names_file_and_line(text, line, says):
    with pytest.raises(InputError) as caught:
        source.marked(text, "kernels/x.py")
    assert str(caught.value).startswith(f"kernels/x.py:{line}: ")
    assert says in str(caught.value)


def test_all_marked_walks_the_three_folders_and_no_other(tmp_path):
    for path in ("kernels/a.py", "minigpt/deep/b.py", "lessons/c.py", "tests/d.py", "benchmarks/e.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(marked_function(f"{B}\nreturn x\n{E}\n"))
    assert set(source.all_marked(tmp_path)) == {"kernels.a:f", "minigpt.deep.b:f", "lessons.c:f"}
    assert source.path_of("minigpt.deep.b:f") == "minigpt/deep/b.py"


# ---------------------------------------------------------------------------------------------- other bodies


def test_a_stripped_module_keeps_everything_but_the_solutions():
    text = source.strip(MODULE, "m.py", STUBS)
    assert "SOLUTION" not in text
    assert "math.sqrt" not in text
    assert "the square" not in text
    assert "import math" in text
    namespace = run(text)
    assert namespace["given"](3) == 6
    assert "Even in several lines." in namespace["first"].__doc__
    with pytest.raises(NotImplementedError, match=r"^write first$"):
        namespace["first"](1.0)
    with pytest.raises(ValueError, match="-1"):  # the prelude is given
        namespace["first"](-1)
    with pytest.raises(NotImplementedError, match=r"^write second$"):
        namespace["second"](1.0)


def test_stripping_refuses_a_function_without_a_message():
    with pytest.raises(InputError, match=r"m\.py:\d+: second belongs to no exercise"):
        source.strip(MODULE, "m.py", {"first": "write first"})


def test_substituting_changes_one_body():
    namespace = run(source.substitute(MODULE, "m.py", {"second": "return -x\n"}))
    assert namespace["second"](5) == -5
    assert namespace["first"](3.0) == 7.0
    with pytest.raises(InputError, match="no marked function given"):
        source.substitute(MODULE, "m.py", {"given": "return 0"})


def test_an_edit_must_fit_exactly_once():
    body = "y = x * x\nreturn x + y\n"
    assert source.edited(body, "x + y", "x - y", "1.01 sign") == "y = x * x\nreturn x - y\n"
    with pytest.raises(InputError, match=r"1\.01 sign: .*occurs 3 times"):
        source.edited(body, "x", "z", "1.01 sign")
    with pytest.raises(InputError, match="occurs 0 times"):
        source.edited(body, "w", "z", "1.01 sign")


def test_a_function_with_another_body_runs_in_a_copy_of_the_module(module):
    other = source.function(module, "first", "global LIMIT\nLIMIT = 100\nreturn given(x) + second(1000)\n")
    assert other(2.0) == 4 + 3  # what it calls is the module's own
    assert module.LIMIT == 3
    assert module.first(3.0) == 7.0
    with pytest.raises(ValueError, match="-1"):
        other(-1)
    assert other.__doc__ == module.first.__doc__
    assert other.__defaults__ == (2,)
    assert other.__annotations__ == {"x": "float", "times": "int", "return": "float"}


def test_what_follows_the_divider_is_dropped():
    text = source.without_fast_forms(MODULE)
    assert "second_fast" in MODULE
    assert "fast" not in text
    assert set(source.marked(text, "m.py")) == {"first", "second"}
    assert source.without_fast_forms(text) == text


# ---------------------------------------------------------------------------------------------- a student's file


def test_a_suite_round_trips_through_a_stub():
    stub = source.strip(MODULE, "m.py", STUBS)
    for name in STUBS:
        solved = source.with_suite(stub, "m.py", name, source.suite(MODULE, "m.py", name))
        assert source.same_code(source.suite(solved, "m.py", name), source.suite(MODULE, "m.py", name))
        assert not source.same_code(source.suite(stub, "m.py", name), source.suite(MODULE, "m.py", name))
        stub = solved
    plain = MODULE.replace(f"    {B}\n", "").replace(f"    {E}\n", "")
    assert stub == plain


def test_layout_and_comments_make_no_other_code_and_anything_else_does():
    assert source.same_code("x = 1  # one\n\nreturn x\n", "x=1\nreturn (x)")
    assert not source.same_code("return 1\n", "return 2\n")
    assert not source.same_code("# nothing\n", "return 2\n")


STUDENTS = {
    "without the docstring": "def second(x):\n    raise NotImplementedError\n",
    "with helpers around": "def a():\n    pass\n\n\ndef second(x):\n    '''Doc.'''\n    return a()\n\n\nz = 1\n",
    "defined twice": "def second(x):\n    return 0\n\n\ndef second(x):\n    '''Doc.'''\n    return 1\n",
    "with markers": f"def second(x):\n    '''Doc.'''\n    {B}\n    return 1\n    {E}\n\n\nz = 1\n",
    "over several lines": "def second(\n    x,\n):\n    '''Doc.\n\n    More.'''\n    return (\n        x\n    )\n",
    "with a comment at its end": "def second(x):\n    '''Doc.'''\n    return 1\n    # the end\n\n\nz = 1\n",
}


@pytest.mark.parametrize("text", STUDENTS.values(), ids=STUDENTS)
def test_a_suite_is_replaced_in_any_file(text):
    filled = source.with_suite(text, "m.py", "second", "return 7 * x\n")
    assert run(filled)["second"](2) == 14
    untouched = [ast.dump(n) for n in ast.parse(text).body if getattr(n, "name", "") != "second"]
    assert [ast.dump(n) for n in ast.parse(filled).body if getattr(n, "name", "") != "second"] == untouched
    assert "SOLUTION" not in filled


def test_what_cannot_be_filled_is_named():
    with pytest.raises(InputError, match=r"m\.py: no function second"):
        source.with_suite("x = 1\n", "m.py", "second", "return 1\n")
    with pytest.raises(InputError, match=r"m\.py:1: second must have its body on lines of its own"):
        source.with_suite("def second(x): return 1\n", "m.py", "second", "return 1\n")
    with pytest.raises(InputError, match=r"m\.py:2: "):
        source.with_suite("x = 1\ndef second(x:\n", "m.py", "second", "return 1\n")
    with pytest.raises(InputError, match=r"m\.py:1: "):
        source.suite("x = 1\0\n", "m.py", "second")
    assert source.suite("x = 1\n", "m.py", "second") is None
