"""The students' repository as it is built: what is in it, what is not, and that it works (acceptance case 50)."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from classroom import assignment, fill, handout, manifest, recorded, source
from classroom.__main__ import main
from minigpt.errors import InputError

ROOT = Path(__file__).parents[2]
LESSON = 2  # a quick one

# In a process that knows of no installed copy of the project, and that fails at the first use of the network.
ALONE = """
import runpy, sys
sys.path.append({site!r})
def offline(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise RuntimeError(f"network: {{event}} {{arguments}}")
sys.addaudithook(offline)
"""
AS_MODULE = "sys.argv = sys.argv[1:]\nrunpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"


def alone(tree: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a tree, without this repository."""
    start = ALONE.format(site=str(Path(np.__file__).parents[1]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-S", "-B", "-c", start + code, *arguments],
        cwd=tree,
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist") / "deeper" / "handout"
    assert main(["handout", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def files(tree) -> dict[str, bytes]:
    return {p.relative_to(tree).as_posix(): p.read_bytes() for p in sorted(tree.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def texts(files) -> dict[str, str]:
    """What can be read in every file, without blanks; members of archives too."""
    found = {}
    for name, content in files.items():
        found[name] = readable(content)
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                found |= {f"{name}:{m}": readable(archive.read(m)) for m in archive.namelist()}
        if name.endswith(".ipynb"):  # without the escapes of JSON
            cells = json.loads(content)["cells"]
            found[name] += squeezed("\n".join("".join(cell["source"]) for cell in cells))
    return found


def readable(content: bytes) -> str:
    if b"\0" not in content:
        return squeezed(content.decode("utf-8"))
    # Of arrays and other binary data: what might be a line of code.
    return "\n".join(run.decode() for run in re.findall(rb"[!-~]{20,}", content.translate(None, b" \t\r\n")))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def telling(code: str, at_least: int = 25) -> set[str]:
    """The lines of a body that say something, without blanks, comments and commas at the end."""
    lines = {squeezed(line.split("  #")[0]).rstrip(",") for line in code.splitlines()}
    return {line for line in lines if len(line) >= at_least and not line.startswith("#")}


# ---------------------------------------------------------------------------------------------- what is not in it

CALLS = {"ops.linear_backward_bias(dy)", "ops.linear_backward_bias(du)"}
"""Lines of a solution that are nothing but a call which many layers make."""


def test_no_line_of_a_solution_is_in_any_file(texts):
    lines = {line for body in source.all_marked(ROOT).values() for line in telling(body.body)} - CALLS
    assert len(lines) > 150
    for name, text in texts.items():
        assert not [line for line in lines if line in text], name


def test_no_typical_mistake_and_no_other_solution_is_in_any_file(texts):
    lines, course = set(), ""
    for exercise in assignment.every():
        body = assignment.reference_body(exercise.function)
        for wrong in exercise.wrong:
            lines |= telling(body.replace(wrong.find, wrong.replace))
        for alternative in exercise.alternatives:
            lines |= telling(alternative.body)
    # What the course itself says elsewhere, outside of the graded bodies, gives nothing away.
    for path, file in source.modules(ROOT):
        text = file.read_text(encoding="utf-8")
        bare = source.substitute(text, path, dict.fromkeys(source.marked(text, path), "pass"))
        course += squeezed(source.without_fast_forms(bare))
    hidden = {line for line in lines if line not in course}
    assert len(hidden) > 500
    for name, text in texts.items():
        assert not [line for line in hidden if line in text], name


def test_no_marker_is_in_any_module(files):
    for name in files:
        if name.endswith(".py") and name != "classroom/source.py":
            assert b"SOLUTION" not in files[name], name


def test_only_the_students_part_is_in_it(files):
    assert {name.split("/")[0] for name in files} == {
        *("kernels", "minigpt", "lessons", "notebooks", "classroom"),
        *(".gitignore", "MANIFEST.json", "Makefile", "README.md", "constraints.txt", "pyproject.toml"),
    }
    classroom = {name.removeprefix("classroom/") for name in files if name.startswith("classroom/")}
    public = {name for name in classroom if name.startswith("public/")}
    assert classroom - public == set(handout.CLASSROOM)
    lessons = assignment.lessons()
    assert public == {f"public/lesson_{n:02d}/{f}" for n in lessons for f in ("arrays.npz", "exercises.json")}
    for teachers in ("exercises", "assignment", "teacher", "check", "class_run", "solutions", "handout", "base"):
        assert not any(f"classroom/{teachers}" in name for name in files)
    assert not any(name.endswith((".pyc", ".pyo", ".so", ".cu")) or "__pycache__" in name for name in files)


def test_no_fast_form_is_in_it(tree):
    code = """
import importlib, pkgutil
import kernels, minigpt, minigpt.bpe, minigpt.tokenizer
from kernels.backend import OPS, get_backend
operations = [importlib.import_module(f"kernels.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
for module in [minigpt.bpe, *operations]:
    assert not [name for name in vars(module) if "fast" in name], module
backend = get_backend("numpy")
for op, functions in OPS.items():
    for name in functions:
        assert getattr(backend.ops, name) is getattr(importlib.import_module(f"kernels.{op}"), name)
assert minigpt.tokenizer._apply_merges is minigpt.bpe.apply_merges
assert minigpt.tokenizer._train_merges is minigpt.bpe.train_merges
assert importlib.util.find_spec("minigpt.decoding") is None
print("done")
"""
    result = alone(tree, "import importlib.util\n" + code)
    assert result.stdout == "done\n", result.stderr


def test_a_grading_secret_decides_nothing_in_it(tree, monkeypatch):
    for name in ("SECRET", "GRADING_SECRET"):
        monkeypatch.setenv(name, "another")
    public = assignment.complete(assignment.inputs(LESSON, assignment.PUBLIC_SEED))
    recorded.save(public, tree.parent / "again")
    for file in (tree / handout.PUBLIC / f"lesson_{LESSON:02d}").iterdir():
        assert file.read_bytes() == (tree.parent / "again" / file.name).read_bytes()


# ---------------------------------------------------------------------------------------------- what is in it


def test_every_module_of_the_course_is_in_it_and_differs_only_where_it_must(tree):
    for path, file in source.modules(ROOT):
        ours = file.read_text(encoding="utf-8")
        if path in handout.FAST_MODULES:
            assert not (tree / path).exists()
            continue
        theirs = (tree / path).read_text(encoding="utf-8")
        if source.marked(ours, path) or source.without_fast_forms(ours) != ours:
            graded = source.marked(ours, path)
            theirs_now = {n.name: n for n in ast.parse(theirs).body if isinstance(n, ast.FunctionDef)}
            for node in ast.parse(source.without_fast_forms(ours)).body:
                if isinstance(node, ast.FunctionDef):
                    other = theirs_now[node.name]
                    assert ast.get_docstring(node) == ast.get_docstring(other)
                    assert ast.dump(node.args) == ast.dump(other.args)
                    assert (ast.dump(node) == ast.dump(other)) == (node.name not in graded)
        else:
            assert theirs == ours


def test_everything_imports_and_every_exercise_is_a_stub_that_says_which_it_is(tree):
    modules = [p.relative_to(tree).with_suffix("").as_posix().replace("/", ".") for p in sorted(tree.rglob("*.py"))]
    names = [m.removesuffix(".__init__") for m in modules if not m.startswith("notebooks") and "__main__" not in m]
    stubs = {e.function: e.id for e in assignment.every()}
    code = f"""
import importlib, inspect
from pathlib import Path
for name in {names!r}:
    module = importlib.import_module(name)
    assert Path(module.__file__).resolve().is_relative_to(Path.cwd().resolve()), module.__file__
for function, number in {stubs!r}.items():
    module, name = function.split(":")
    function = getattr(importlib.import_module(module), name)
    last = inspect.getsource(function).rstrip().splitlines()[-1]
    assert last.strip().startswith('raise NotImplementedError("'), last
    assert f"exercise {{number}} is not written yet: {{name}} in " in last, last
print(len({stubs!r}))
"""
    result = alone(tree, code)
    assert result.stdout == f"{len(stubs)}\n", result.stderr


def test_the_manifest_has_every_file_and_its_hash(tree, files, tmp_path):
    listed = manifest.read(tree)
    assert set(listed) == set(files) - {manifest.MANIFEST}
    assert all(listed[name] == manifest.sha256(tree / name) for name in listed)
    copy = tmp_path / "copy"
    (copy / "a").mkdir(parents=True)
    (copy / "a" / "b.txt").write_text("b")
    manifest.write(copy)
    before = manifest.handout_hash(copy)
    (copy / "a" / "b.txt").write_text("c")
    manifest.write(copy)
    assert manifest.handout_hash(copy) != before
    (copy / manifest.MANIFEST).write_text("[]")
    with pytest.raises(InputError, match="cannot be read"):
        manifest.handout_hash(copy)
    with pytest.raises(InputError, match="no handout"):
        manifest.read(tmp_path)


def test_its_makefile_has_the_students_targets_and_no_others(tree):
    targets = set(re.findall(r"^## ([\w-]+):", (tree / "Makefile").read_text(), re.MULTILINE))
    assert {"lesson-N", "grade-N", "fill", "setup", "clean", "help"} <= targets
    assert not targets & {"handout", "solutions", "grade-all", "grader-check", "test", "parity", "lint", "bench"}
    if make := shutil.which("make"):
        planned = subprocess.run(
            [make, "--no-print-directory", "-n", "grade-1", "lesson-2", "fill", "PACK=a b.zip", "VENV=none"],
            cwd=tree,
            capture_output=True,
            text=True,
        )
        assert planned.returncode == 0, planned.stderr
        assert "-m classroom grade 1" in planned.stdout
        assert "-m lessons 2" in planned.stdout
        assert '-m classroom fill "$PACK"' in planned.stdout


# ---------------------------------------------------------------------------------------------- that it works


def graded(tree: Path, lesson: int) -> dict:
    result = alone(tree, AS_MODULE, "classroom", "grade", str(lesson), "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_an_untouched_handout_grades_itself_offline_and_nothing_is_begun(tree):
    report = graded(tree, LESSON)
    exercises = assignment.load(LESSON)
    assert {e["id"]: e["status"] for e in report["exercises"]} == {e.id: "not_implemented" for e in exercises}
    assert (report["total"], report["max"]) == (0, sum(e.points for e in exercises))
    assert report["handout_hash"] == manifest.handout_hash(tree)
    shown = alone(tree, AS_MODULE, "classroom", "grade", str(LESSON))
    assert shown.returncode == 0
    assert all(e.id in shown.stdout and e.title in shown.stdout for e in exercises)


def test_a_broken_file_is_named_and_does_not_break_the_grader(tree, tmp_path):
    mine = shutil.copytree(tree, tmp_path / "mine")
    path = mine / source.path_of(assignment.load(1)[0].function)
    path.write_text(path.read_text() + "\ndef broken(:\n")
    (mine / "minigpt" / "model.py").write_text("raise SystemExit('stopped')\n")
    report = graded(mine, 1)
    first = report["exercises"][0]
    assert first["status"] == "failed"
    assert path.name in first["message"]
    assert any(e["status"] == "not_implemented" for e in report["exercises"])


def test_the_command_line_says_what_there_is(tree):
    shown = alone(tree, AS_MODULE, "classroom", "--help")
    assert shown.returncode == 0
    assert "grade" in shown.stdout
    assert "fill" in shown.stdout
    assert "handout" not in shown.stdout
    wrong = alone(tree, AS_MODULE, "classroom", "grade", "99")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("grade: lesson 99 has no exercises; there are 1, 2, 3")
    assert wrong.stderr.count("\n") == 1


def test_a_lesson_that_lacks_exercises_says_which_to_write_first(tree, tmp_path):
    result = alone(tree, AS_MODULE, "lessons", "1", "--quick", "--brief", "--out", str(tmp_path))
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    first = assignment.load(1)[0]
    assert f"exercise {first.id} is not written yet: {first.name} in {source.path_of(first.function)}" in result.stderr
    assert "not written yet" in result.stdout


def packed(tmp_path: Path, lesson: int) -> Path:
    path = tmp_path / f"pack-{lesson}.zip"
    assert main(["solutions", "--lesson", str(lesson), "--out", str(path)]) == 0
    return path


def test_filled_in_it_is_the_course_again_and_runs_on_what_is_written_there(tree, tmp_path):
    mine = shutil.copytree(tree, tmp_path / "mine")
    result = alone(mine, AS_MODULE, "classroom", "fill", str(packed(tmp_path, LESSON)))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(": filled in\n") == len(assignment.load(LESSON))
    for lesson in assignment.lessons():
        done = {line.split(": ")[1] for line in fill.fill(mine, fill.read_pack(packed(tmp_path, lesson)))}
        assert done == {"solved already" if lesson == LESSON else "filled in"}
    for path, file in source.modules(ROOT):
        if path not in handout.FAST_MODULES:
            ours = source.without_fast_forms(file.read_text(encoding="utf-8"))
            assert ast.dump(ast.parse((mine / path).read_text(encoding="utf-8"))) == ast.dump(ast.parse(ours)), path
    assert not list(mine.rglob(f"*{fill.KEPT_SUFFIX}"))
    report = graded(mine, LESSON)
    assert report["total"] == report["max"] > 0

    code = """
import numpy as np
from minigpt import GPT, GPTConfig, Tokenizer
tokenizer = Tokenizer.train("a rose is a rose is a rose, said the rose", vocab_size=270)
ids = np.array([tokenizer.encode("a rose is a rose")])
model = GPT(GPTConfig(vocab_size=270, n_positions=64, n_embd=12, n_layer=2, n_head=3), seed=0, dtype="float64")
loss, grads = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
print(repr((loss, sum(float(np.abs(g).sum()) for g in grads.values()), model.generate(ids, 8, seed=1).tolist())))
"""
    theirs = alone(mine, code)
    ours = alone(ROOT, code)
    assert theirs.returncode == 0, theirs.stderr
    (loss, size, written), (our_loss, our_size, our_written) = (ast.literal_eval(r.stdout) for r in (theirs, ours))
    assert written == our_written
    np.testing.assert_allclose([loss, size], [our_loss, our_size], rtol=1e-10)

    path = mine / "kernels" / "linear.py"
    path.write_text(path.read_text().replace("return dy @ weight.T", "return 2 * dy @ weight.T"))
    changed = ast.literal_eval(alone(mine, code).stdout)
    assert changed[0] == loss
    assert changed[1] > 1.01 * size


# ---------------------------------------------------------------------------------------------- filling in


@pytest.fixture
def mine(tree, tmp_path) -> Path:
    """A student's copy of the modules of lesson 2, one function written, one begun."""
    for exercise in assignment.load(LESSON):
        path = source.path_of(exercise.function)
        (tmp_path / "mine" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tree / path, tmp_path / "mine" / path)
    first, second, *_ = assignment.load(LESSON)
    write(tmp_path / "mine", first, "return 'mine'\n")
    stub = suite(tmp_path / "mine", second)
    write(tmp_path / "mine", second, f"begun = 1\n{stub}")
    return tmp_path / "mine"


def write(tree: Path, exercise, body: str) -> None:
    path = tree / source.path_of(exercise.function)
    path.write_text(source.with_suite(path.read_text(), path.name, exercise.name, body))


def suite(tree: Path, exercise) -> str:
    path = source.path_of(exercise.function)
    return source.suite((tree / path).read_text(), path, exercise.name)


def test_what_a_student_has_written_stays(mine, tmp_path):
    exercises = assignment.load(LESSON)
    before = {e.id: suite(mine, e) for e in exercises}
    pack = fill.read_pack(packed(tmp_path, LESSON))
    lines = list(fill.fill(mine, pack))
    done = {e.id: "filled in" for e in exercises} | {e.id: "yours, left as it is" for e in exercises[:2]}
    assert lines == [f"{e.id}  {e.name}: {done[e.id]}" for e in exercises]
    for exercise in exercises[:2]:
        assert suite(mine, exercise) == before[exercise.id]
    for exercise in exercises[2:]:
        assert source.same_code(suite(mine, exercise), suite(ROOT, exercise))
    assert not list(mine.rglob(f"*{fill.KEPT_SUFFIX}"))
    again = list(fill.fill(mine, pack))
    assert [line.split(": ")[1] for line in again[2:]] == ["solved already"] * len(exercises[2:])


def test_one_exercise_is_filled_over_ones_own_when_it_is_named(mine, tmp_path):
    first, second, third, *_ = assignment.load(LESSON)
    path = mine / source.path_of(first.function)
    before = path.read_text()
    others = suite(mine, second), suite(mine, third)
    (line,) = fill.fill(mine, fill.read_pack(packed(tmp_path, LESSON)), only=[first.id])
    assert line == f"{first.id}  {first.name}: filled in; yours is in {source.path_of(first.function)}.before-fill"
    assert source.same_code(suite(mine, first), suite(ROOT, first))
    assert (suite(mine, second), suite(mine, third)) == others
    assert path.with_name(path.name + fill.KEPT_SUFFIX).read_text() == before


def test_nothing_that_was_kept_is_overwritten(mine, tmp_path):
    first, second, *_ = assignment.load(LESSON)
    path = mine / source.path_of(first.function)
    assert source.path_of(second.function) == source.path_of(first.function)
    pack, texts = fill.read_pack(packed(tmp_path, LESSON)), []
    for exercise, kept in ((first, ".before-fill"), (second, ".before-fill-2")):
        texts.append(path.read_text())
        (line,) = fill.fill(mine, pack, only=[exercise.id])
        assert line.endswith(f"yours is in {source.path_of(first.function)}{kept}")
    assert [path.with_name(path.name + kept).read_text() for kept in (".before-fill", ".before-fill-2")] == texts


def test_a_pack_that_cannot_be_written_is_told_in_a_line(tmp_path, capsys):
    path = tmp_path / "none" / "pack.zip"
    assert main(["solutions", "--lesson", str(LESSON), "--out", str(path)]) == 2
    assert capsys.readouterr().err == f"solutions: {path} cannot be written: No such file or directory\n"


def test_everything_is_filled_when_it_is_asked_for(mine, tmp_path):
    list(fill.fill(mine, fill.read_pack(packed(tmp_path, LESSON)), everything=True))
    for exercise in assignment.load(LESSON):
        assert source.same_code(suite(mine, exercise), suite(ROOT, exercise))


def test_nothing_is_written_unless_everything_can_be(mine, tmp_path):
    pack = fill.read_pack(packed(tmp_path, LESSON))
    first, *_, last = assignment.load(LESSON)
    before = {p: p.read_bytes() for p in mine.rglob("*.py")}
    with pytest.raises(InputError, match=rf"exercise 9\.99 is not in this pack; it has {first.id}"):
        list(fill.fill(mine, pack, only=["9.99"]))
    path = mine / source.path_of(last.function)
    without = path.read_text().replace(f"def {last.name}(", "def renamed(")
    path.write_text(without)
    with pytest.raises(InputError, match=f"no function {last.name}"):
        list(fill.fill(mine, pack, everything=True))
    assert path.read_text() == without
    path.write_text("def broken(:\n")
    with pytest.raises(InputError, match=rf"{path.name}:1: "):
        list(fill.fill(mine, pack))
    path.unlink()
    with pytest.raises(InputError, match="is missing below"):
        list(fill.fill(mine, pack))
    assert all(p.read_bytes() == content for p, content in before.items() if p != path)


@pytest.mark.parametrize("content", [b"no zip", None, b"{}", b'{"schema": 9, "functions": []}', b"[1]"])
def test_what_is_no_pack_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "pack.zip"
    if content == b"no zip":
        path.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(fill.PACK_FILE, content)
    with pytest.raises(InputError) as caught:
        fill.read_pack(path)
    assert "pack.zip" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pack_has_only_its_own_lesson(tmp_path):
    pack = fill.read_pack(packed(tmp_path, LESSON))
    assert [solved.id for solved in pack] == [e.id for e in assignment.load(LESSON)]
    assert all("NotImplementedError" in s.stub and "NotImplementedError" not in s.solution for s in pack)


# ---------------------------------------------------------------------------------------------- building


def test_a_folder_that_is_no_handout_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="is no handout; it stays as it is"):
        handout.build(ROOT, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def small_course(root: Path, function: str = "f") -> None:
    for folder in source.FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "kernels" / "a.py").write_text(
        f'def {function}(x):\n    """Write it."""\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n'
    )


class Planned:
    """As much of an exercise as the messages need."""

    def __init__(self, number: str, function: str) -> None:
        self.id, self.function, self.name = number, function, function.split(":")[1]


def test_every_marked_function_must_belong_to_one_exercise(tmp_path, monkeypatch):
    small_course(tmp_path)
    planned = [Planned("1.01", "kernels.a:f")]
    monkeypatch.setattr(assignment, "every", lambda: iter(planned))
    assert handout.stub_messages(tmp_path) == {
        "kernels/a.py": {"f": "exercise 1.01 is not written yet: f in kernels/a.py"}
    }
    planned.append(Planned("1.02", "kernels.a:f"))
    with pytest.raises(InputError, match=r"kernels\.a:f belongs to two exercises"):
        handout.stub_messages(tmp_path)
    planned[:] = [Planned("1.01", "kernels.a:f"), Planned("1.02", "kernels.b:g")]
    with pytest.raises(InputError, match=r"kernels/b\.py: g is an exercise and has no marked solution"):
        handout.stub_messages(tmp_path)
    planned.clear()
    with pytest.raises(InputError, match=r"kernels/a\.py: f has a marked solution and belongs to no exercise"):
        handout.stub_messages(tmp_path)


def test_a_notebook_keeps_its_cells_and_loses_what_they_put_out():
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["α\n"]},
        {
            "cell_type": "code",
            "execution_count": 7,
            "metadata": {},
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ["return dy @ weight.T"]}],
            "source": ["show(linear_backward_input)"],
        },
    ]
    notebook = {"cells": cells, "metadata": {"widgets": {"state": "dy @ weight.T"}}, "nbformat": 4, "nbformat_minor": 5}
    cleaned = json.loads(handout.notebook(json.dumps(notebook)))
    assert "weight.T" not in json.dumps(cleaned)
    assert [cell["source"] for cell in cleaned["cells"]] == [cell["source"] for cell in cells]
    assert cleaned["cells"][1]["execution_count"] is None


def test_sections_of_the_makefile_are_left_out_whole():
    text = "A = 1\n##@ Learn\nlearn:\n\n##@ Teach\nteach:\n\n##@ Check\ncheck:\n# {}\nrest:\n".format("-" * 30)
    assert handout.makefile(text) == "A = 1\n##@ Learn\nlearn:\n\n# {}\nrest:\n".format("-" * 30)
