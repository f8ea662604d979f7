"""The acceptance cases of a grader, 1 to 40 and 44: what honest, faulty and hostile submissions get.

Each runs in a real sandbox of the strongest level that this machine offers. What the machine cannot enforce is told by
a skip of just that assertion.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classroom import sandbox
from classroom.recorded import Recorded
from classroom.reports import clean, text
from classroom.sandbox import Isolation, Sandbox
from minigpt.errors import InputError
from tests.classroom import toy

FULL = [3, 2, 1]
REST = FULL[1:]


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    return sandbox.offered()


def enforced(isolation: Isolation, what: str) -> None:
    """Skip, with the reason, what this machine cannot enforce; the report must say so too."""
    assert (what in isolation.enforced) != (what in isolation.not_enforced)
    if what not in isolation.enforced:
        pytest.skip(f"not enforced on this machine: {what} ({'; '.join(isolation.refused)})")


# ---------------------------------------------------------------------------------------------- honest


def test_01_the_reference_gets_full_marks(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, toy.RIGHT)
    assert toy.points(report) == FULL
    assert (report["total"], report["max"]) == (6, 6)
    assert [e["status"] for e in report["exercises"]] == ["passed"] * 3
    assert not any(e["message"] or e["diagnosis"] for e in report["exercises"])


def test_02_a_stub_is_not_implemented(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, {name: toy.BASE[name] for name in toy.RIGHT})
    assert toy.points(report) == [0, 0, 0]
    assert {(e["status"], e["diagnosis"], e["message"]) for e in report["exercises"]} == {("not_implemented", "", "")}


def test_03_float32_counts_where_the_exercise_says_so(tmp_path: Path) -> None:
    files = toy.with_body("return (x.astype('f') @ weight.astype('f') + bias.astype('f'))")
    assert toy.points(toy.grade(tmp_path, files)) == FULL
    strict = toy.inputs()
    strict = replace(strict, exercises=tuple(replace(e, float32=False) for e in strict.exercises))
    report = toy.grade(tmp_path, files, inputs=strict)
    assert toy.points(report) == [0, *REST]
    assert "float32, not float64" in report["exercises"][0]["message"]


@pytest.mark.parametrize(
    "body",
    [
        "return np.einsum('ri,io->ro', x, weight) + bias",
        "y = np.empty((len(x), len(bias)))\nfor r in range(len(x)):\n"
        "    for o in range(len(bias)):\n        y[r, o] = bias[o]\n"
        "        for i in range(len(weight)):\n            y[r, o] += x[r, i] * weight[i, o]\n"
        "return y",
        "out = np.zeros((bias.size, len(x)))\nnp.matmul(weight.T, x.T, out=out)\nout += bias[:, None]\nreturn out.T",
    ],
    ids=["einsum", "loop", "buffer"],
)
def test_04_other_right_ways(tmp_path: Path, body: str) -> None:
    assert toy.points(toy.grade(tmp_path, toy.with_body(body))) == FULL


@pytest.mark.parametrize(
    ("body", "label"),
    [("return x @ weight", "no-bias"), ("return x @ weight + bias + bias", "bias-twice")],
)
def test_05_a_typical_mistake_gets_its_label(tmp_path: Path, body: str, label: str) -> None:
    report = toy.grade(tmp_path, toy.with_body(body))
    first = report["exercises"][0]
    assert (first["status"], first["diagnosis"], first["points"]) == ("failed", label, 0)
    assert "Case “plain”: affine(x (3, 4), weight (4, 5), bias (5,))" in first["message"]
    assert "at [0, 0]: expected " in first["message"]
    assert "Likely cause: The bias is" in first["message"]
    assert toy.points(report)[1:] == REST


def test_05_partly_right_gets_part_of_the_points(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, toy.with_body("return x @ weight + (bias if len(x) == 1 else 0)"))
    assert report["exercises"][0]["points"] == 1.0  # one of three cases of three points
    assert report["exercises"][0]["diagnosis"] not in ("no-bias", "bias-twice")


def test_06_one_exercise_missing_the_others_graded(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, toy.RIGHT | {"kernels/toy.py": toy.HEAD + toy.MOMENTS})
    assert toy.points(report) == [0, *REST]
    assert "AttributeError" in report["exercises"][0]["message"]
    (tmp_path / "kernels/toy.py").unlink()
    report = toy.grade(tmp_path, {"kernels/more.py": toy.RIGHT["kernels/more.py"]})
    assert toy.points(report) == [0, 0, 1]
    assert "kernels/toy.py was not handed in" in report["submission"]["ignored"]


def test_07_a_syntax_error_costs_its_own_file(tmp_path: Path) -> None:
    report = toy.grade(
        tmp_path, toy.RIGHT | {"kernels/toy.py": toy.HEAD + "def affine(x, weight, bias):\n    return (x\n"}
    )
    assert toy.points(report) == [0, 0, 1]
    assert "SyntaxError" in report["exercises"][0]["message"]
    assert report["not_imported"] == ["kernels/toy.py"]
    assert "kernels/toy.py, line 4" in report["exercises"][0]["message"]


def test_08_prints_and_warnings_do_no_harm(tmp_path: Path) -> None:
    body = "import sys, warnings\nprint('x', x)\nwarnings.warn('careful')\nprint('error', file=sys.stderr)\n"
    assert toy.points(toy.grade(tmp_path, toy.with_body(body + "return x @ weight + bias"))) == FULL


def test_09_slow_and_right(tmp_path: Path) -> None:
    body = "import time\nstart = time.process_time()\nwhile time.process_time() < start + 0.6:\n    pass\n"
    assert toy.points(toy.grade(tmp_path, toy.with_body(body + "return x @ weight + bias"))) == FULL


def test_10_files_that_are_not_graded_are_named_or_not_read(tmp_path: Path) -> None:
    os.symlink("/etc/hostname", tmp_path / "link")
    (tmp_path / "kernels").mkdir()
    os.symlink("/etc/hostname", tmp_path / "kernels" / "more.py")
    report = toy.grade(tmp_path, {"kernels/toy.py": toy.RIGHT["kernels/toy.py"], "kernels/toy (1).py": "x"})
    assert toy.points(report) == [3, 2, 0]
    assert any("kernels/more.py is no regular file" in note for note in report["submission"]["ignored"])
    assert report["submission"]["files"] == ["kernels/toy.py"]


# ---------------------------------------------------------------------------------------------- values

VALUES = {
    "11 NaN": ("return (x @ weight + bias) * np.nan", "not-finite-nan", "got nan"),
    "11 one NaN": ("y = x @ weight + bias\ny[-1, -1] = np.nan\nreturn y", "not-finite-nan", "got nan"),
    "11 infinity": ("return np.full((len(x), len(bias)), np.inf)", "not-finite-infinite", "got inf"),
    "12 masked": ("return np.ma.masked_all((len(x), len(bias)))", "", "masked array"),
    "12 masked, right": ("return np.ma.array(x @ weight + bias)", "", "masked array"),
    "13 empty": ("return np.zeros((0, len(bias)))", "", "shape (0, 5), not (3, 5)"),
    "13 leading axis": ("return (x @ weight + bias)[None]", "other-shape", "shape (1, 3, 5), not (3, 5)"),
    "13 transposed": ("return (x @ weight + bias).T", "transposed", "shape (5, 3), not (3, 5)"),
    "14 list": ("return (x @ weight + bias).tolist()", "", "a list of 3"),
    "14 matrix": ("return np.matrix(x @ weight + bias)", "", "numpy.matrix"),
    "14 object": ("return (x @ weight + bias).astype(object)", "", "dtype object"),
    "14 complex": ("return (x @ weight + bias) + 0j", "", "complex128"),
    "14 half": ("return (x @ weight + bias).astype(np.float16)", "", "float16"),
    "14 integers": ("return np.zeros((len(x), len(bias)), int)", "", "int64"),
    "14 generator": ("return (row for row in x @ weight + bias)", "", "a generator"),
    "14 tuple": ("return (x @ weight + bias,)", "", "a tuple of 1"),
    "14 text": ("return 'passed'", "", "a text"),
    "15 subclass, wrong": (
        "class Yes(np.ndarray):\n    def __eq__(self, other):\n        return True\n"
        "return np.ones((len(x), len(bias))).view(Yes)",
        "",
        "expected",
    ),
    "16 scalar": ("return 0.0", "", "a single number"),
    "16 zeros": ("return np.zeros((len(x), len(bias)))", "all-zeros", "got 0"),
    "18 none": ("x @ weight + bias", "returns-none", "None"),
    "sign": ("return -(x @ weight + bias)", "sign-flipped", "expected"),
    "factor": ("return (x @ weight + bias) / (2 * len(bias))", "constant-factor", "0.1 times what it should be"),
    "named factor": (
        "return (x @ weight + bias) / len(bias)",
        "constant-factor",
        "1/5; 5 is the size of axis 1 of weight",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_11_to_18_values(tmp_path: Path, name: str) -> None:
    body, label, told = VALUES[name]
    first, *rest = toy.grade(tmp_path, toy.with_body(body))["exercises"]
    assert first["status"] == "failed"
    assert first["points"] == 0
    assert told in first["message"], first["message"]
    assert not label or first["diagnosis"] == label
    assert [e["points"] for e in rest] == REST


def test_15_a_subclass_is_judged_by_its_bytes(tmp_path: Path) -> None:
    body = "class Mine(np.ndarray):\n    pass\nreturn (x @ weight + bias).view(Mine)"
    assert toy.points(toy.grade(tmp_path, toy.with_body(body))) == FULL


@pytest.mark.parametrize(
    "body", ["x *= 1.5\nreturn x @ weight / 1.5 + bias", "bias += 1\nreturn x @ weight + bias - 1"]
)
def test_17_an_argument_changed_in_place_is_named(tmp_path: Path, body: str) -> None:
    first, *rest = toy.grade(tmp_path, toy.with_body(body))["exercises"]
    assert (first["points"], first["diagnosis"]) == (0, "argument-changed")
    assert f"changes its argument {body.split()[0]} in place" in first["message"]
    assert [e["points"] for e in rest] == REST


def test_17_an_edit_that_the_process_keeps_to_itself_counts(tmp_path: Path) -> None:
    body = """import sys
frame = sys._getframe()
while "answers" not in frame.f_locals:
    frame = frame.f_back
values = frame.f_locals["values"]
encode = values.encode
values.encode = lambda reply: encode({**reply, "args": {}})
y = x @ weight + bias
x += 1
return y"""
    first, *_ = toy.grade(tmp_path, toy.with_body(body))["exercises"]
    assert (first["points"], first["diagnosis"]) == (0, "argument-changed")


# ---------------------------------------------------------------------------------------------- process

FAULTS = {
    "exit_in_call": ("failed", "ended before answering"),
    "system_exit": ("failed", "ended the process before answering"),
    "endless": ("timeout", "did not come back in time"),
    "endless_regex": ("timeout", "did not come back in time"),
    "deaf": ("timeout", "did not come back in time"),
    "sleeper": ("timeout", "did not come back in time"),
    "memory_bomb": ("failed", "resource limit"),
    "segfault": ("failed", "crashed (signal 11, SIGSEGV)"),
    "recursion": ("failed", "RecursionError"),
    "flood": ("failed", "None"),
    "patched_numpy": ("failed", "shape (1,), not (3, 5)"),
    "searcher": ("failed", "None"),
    "caller_frames": ("failed", ""),
    "equal_to_all": ("failed", ""),
    "equal_object": ("failed", "which is no answer"),
    "faked_report": ("failed", "None"),
    "late_writer": ("failed", "None"),
    "skipped": ("failed", "It raised Skipped"),
    "raises_markup": ("failed", "It raised ValueError"),
    "hostile_message": ("failed", "It raised Trap"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_19_to_40_attacks_gain_nothing_and_the_rest_is_graded(tmp_path: Path, name: str) -> None:
    status, told = FAULTS[name]
    first, *rest = toy.grade(tmp_path / "in", toy.attacked(name))["exercises"]
    assert (first["status"], first["points"]) == (status, 0), first["message"]
    assert told in first["message"]
    # `caller_frames` and `patched_numpy` have broken the process that the student's next functions run in.
    if name not in ("caller_frames", "patched_numpy"):
        assert [e["points"] for e in rest] == REST
    assert not any((tmp_path / "in").rglob("owned"))


def test_19_exit_at_import_costs_its_own_file(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, toy.attacked("exit_at_import"))
    assert toy.points(report) == [0, 0, 1]
    assert "ended before answering" in report["exercises"][0]["message"]


def test_24_a_fork_bomb_is_limited_and_cleared(tmp_path: Path, isolation: Isolation, boxes: list[Sandbox]) -> None:
    enforced(isolation, "number of processes")
    first, *rest = toy.grade(tmp_path, toy.attacked("fork_bomb"))["exercises"]
    assert (first["status"], first["points"]) == ("timeout", 0)
    assert [e["points"] for e in rest] == REST
    assert boxes
    assert not any(tasks_with(box._token) for box in boxes)


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[Sandbox]:
    """All sandboxes of a test, once they are entered."""
    entered: list[Sandbox] = []
    start = Sandbox.__enter__

    def enter(self: Sandbox) -> Sandbox:
        entered.append(self)
        return start(self)

    monkeypatch.setattr(Sandbox, "__enter__", enter)
    return entered


@pytest.fixture(params=["process", "auto"])
def probes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sandbox]:
    stage = toy.write(tmp_path / "stage", {"probes.py": (toy.ATTACKS / "probes.py").read_text()})
    for folder in (tmp_path, stage):
        folder.chmod(0o755)
    with Sandbox(stage, request.param, toy.LIMITS) as box:
        yield box


def probe(box: Sandbox, function: str, **args: Any) -> Any:
    reply = box.call(f"probes:{function}", args, 2.0)
    assert reply.kind == "message", reply
    return reply.message["answer"]


def tasks_with(token: str) -> list[int]:
    """Processes of one sandbox: they carry its token in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += [int(entry.name)] * (token.encode() in (entry / "environ").read_bytes())
            except OSError:
                continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_25_what_outlives_the_call_is_ended(probes: Sandbox) -> None:
    assert probes._alone()  # then a machine that is busy gets it more time
    assert probe(probes, "outlive", seconds=600.0) == "started"
    until = time.monotonic() + 30
    while len(tasks_with(probes._token)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(tasks_with(probes._token)) >= 3
    assert not probes._alone()
    probes.close()
    assert tasks_with(probes._token) == []


def test_25_a_daemon_does_not_cost_the_answer(tmp_path: Path) -> None:
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n    os._exit(0)\n"
    body = daemon + "return x @ weight + bias"
    assert toy.points(toy.grade(tmp_path, toy.with_body(body))) == FULL


def test_25_a_process_that_comes_back_twice_answers_once(tmp_path: Path) -> None:
    assert toy.points(toy.grade(tmp_path, toy.with_body("import os\nos.fork()\nreturn x @ weight + bias"))) == FULL


def test_28_what_is_printed_is_cut(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, toy.attacked("flood"))
    assert "all tests passed" in report["printed"]
    assert len(report["printed"]) <= 4000


def test_29_a_large_file_is_refused(probes: Sandbox) -> None:
    assert probe(probes, "write", path="big", size=1 << 30).startswith("refused")
    assert probe(probes, "write", path="small", size=1 << 20) == 1 << 20


def test_30_the_keeper_killed_from_inside_is_told(tmp_path: Path, isolation: Isolation) -> None:
    report = toy.grade(tmp_path, toy.attacked("keeper_killer"))
    first = report["exercises"][0]
    assert first["points"] == 0
    assert toy.points(report)[1:] == REST
    if "signals to the grader" not in isolation.enforced:
        assert first["status"] == "suspicious"


def test_30_a_stopped_keeper_is_told_and_a_slow_one_is_nobodys_fault(
    tmp_path: Path, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "END_SECONDS", 0.5)
    with Sandbox(toy.write(tmp_path, toy.BASE)) as box:
        os.kill(box._process.pid, signal.SIGSTOP)
    assert "stopped from inside" in box.suspicious
    send = subprocess.Popen.send_signal  # SIGTERM as if it had not been heard yet; SIGKILL goes by the same way
    monkeypatch.setattr(
        subprocess.Popen, "send_signal", lambda self, number: None if number == signal.SIGTERM else send(self, number)
    )
    with pytest.raises(sandbox.GraderFault, match=r"did not end within 0\.5 s"), Sandbox(tmp_path) as box:
        pass
    assert not box.suspicious


def test_30_without_protection_the_row_is_suspicious(tmp_path: Path) -> None:
    if "an identity without rights" in sandbox.offered("process").enforced and os.geteuid() == 0:
        pytest.skip("the runner has another identity here, and cannot signal the keeper")
    report = toy.grade(tmp_path, toy.attacked("keeper_killer"), "process")
    assert (report["exercises"][0]["status"], report["exercises"][0]["points"]) == ("suspicious", 0)
    assert "ended from inside" in report["exercises"][0]["message"]
    assert toy.points(report)[1:] == REST


def test_30_other_processes_cannot_be_signalled(tmp_path: Path, probes: Sandbox) -> None:
    enforced(probes.isolation, "signals to the grader")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        try:
            assert probe(probes, "send_signal", pid=other.pid, number=int(signal.SIGKILL)).startswith("refused")
            assert probe(probes, "trace", pid=other.pid).startswith("refused")
            assert probe(probes, "memory_read", pid=other.pid, address=id(other)).startswith("refused")
            time.sleep(0.1)
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_30_the_graders_memory_is_closed(probes: Sandbox) -> None:
    if os.geteuid() == 0 and probes.isolation.level == "process":
        pytest.skip("root reads every process's environment where there is no isolation; a class is refused then")
    assert probe(probes, "memory_of", pid=os.getpid()).startswith("refused")


# ---------------------------------------------------------------------------------------------- cheating


def test_32_nothing_of_the_grader_is_in_the_process(probes: Sandbox) -> None:
    assert [name for name in probe(probes, "modules") if name.startswith("classroom")] == []
    root = str(Path(sandbox.__file__).resolve().parent.parent)
    assert [entry for entry in probe(probes, "path") if entry.rstrip("/") == root] == []


def test_32_the_reference_runs_when_the_tree_is_dead(tmp_path: Path, boxes: list[Sandbox]) -> None:
    def complete(recorded: Recorded) -> Recorded:
        assert boxes
        assert all(box._process.poll() is not None for box in boxes)
        assert not any(tasks_with(box._token) for box in boxes)
        return toy.complete(recorded)

    toy.write(tmp_path, toy.attacked("late_writer"))
    report = toy.grading.grade(tmp_path, toy.inputs(), complete, toy.BASE, limits=toy.LIMITS)
    assert [e["status"] for e in report["exercises"]] == ["failed", "passed", "passed"]


@pytest.mark.parametrize("what", ["classroom/grading.py", "classroom/exercises/lesson_01.py", "kernels/layernorm.py"])
def test_33_the_teachers_files_cannot_be_read(probes: Sandbox, what: str) -> None:
    enforced(probes.isolation, "reading other files")
    path = Path(sandbox.__file__).resolve().parent.parent / what
    assert probe(probes, "read", path=str(path)).startswith("refused")
    assert probe(probes, "listing", path=str(path.parent)).startswith("refused")
    assert probe(probes, "listing", path="/").startswith("refused") or len(probe(probes, "listing", path="/")) < 12
    assert probe(probes, "read", path="/etc/passwd").startswith("refused")
    assert not probe(probes, "read", path=str(probes.stage / "probes.py")).startswith("refused")


def test_33_other_submissions_cannot_be_read_or_written(tmp_path: Path, probes: Sandbox) -> None:
    enforced(probes.isolation, "writing other files")
    other = tmp_path / "other.py"
    other.write_text("x = 1")
    other.chmod(0o666)
    assert probe(probes, "read", path=str(other)).startswith("refused")
    for path in (other, probes.stage / "probes.py", Path("/tmp/x"), Path(np.__file__)):
        assert str(probe(probes, "write", path=str(path), size=1 << 20)).startswith("refused"), path
    assert other.read_text() == "x = 1"


def test_33_no_way_back_to_root_and_no_programs(probes: Sandbox) -> None:
    enforced(probes.isolation, "an identity without rights")
    assert probe(probes, "identity")[0] != 0
    if os.geteuid() == 0:
        assert probe(probes, "become_root").startswith("refused")
    enforced(probes.isolation, "reading other files")
    assert probe(probes, "program") != 0


SHADOWS = {
    "conftest.py": "raise SystemExit(0)",
    "pytest.ini": "[pytest]\naddopts = --collect-only",
    "sitecustomize.py": "import os; os._exit(0)",
    "usercustomize.py": "import os; os._exit(0)",
    "numpy.py": "raise SystemExit(0)",
    "json.py": "raise SystemExit(0)",
    "kernels/conftest.py": "raise SystemExit(0)",
    "x.pth": "import os; os._exit(0)",
}


def test_34_files_that_steer_a_test_run_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "conftest.py"))
    assert toy.points(toy.grade(tmp_path, SHADOWS | toy.RIGHT)) == FULL
    report = toy.grade(tmp_path, SHADOWS | toy.with_body("return None"))
    assert toy.points(report) == [0, *REST]
    assert report["submission"]["files"] == sorted(toy.RIGHT)


@pytest.mark.parametrize("kind", range(12))
def test_37_forged_answers(tmp_path: Path, kind: int) -> None:
    if sys.platform == "linux":
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = toy.grade(tmp_path, toy.attacked("forged", KIND=kind))
    first, *rest = report["exercises"]
    assert (first["status"], first["points"]) == ("failed", 0)
    assert "no valid answer" in first["message"] or "ended before answering" in first["message"]
    assert [e["points"] for e in rest] == REST
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_38_answers_learnt_by_heart_fail_on_other_inputs(tmp_path: Path) -> None:
    known = toy.complete(toy.inputs(0)).exercises[0].cases
    table = {hashlib.sha256(c.args["x"].tobytes()).hexdigest(): c.expected.answer.tolist() for c in known if c.expected}
    body = (
        f"import hashlib\nknown = {table!r}\nreturn np.array(known.get(hashlib.sha256(x.tobytes()).hexdigest(), [0.0]))"
    )
    assert toy.points(toy.grade(tmp_path, toy.with_body(body))) == FULL
    assert toy.points(toy.grade(tmp_path, toy.with_body(body), inputs=toy.inputs(1))) == [0, *REST]


def test_39_no_tcp(probes: Sandbox) -> None:
    enforced(probes.isolation, "TCP")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert probe(probes, "tcp", port=server.getsockname()[1]).startswith("refused")


def test_39_no_udp(probes: Sandbox) -> None:
    enforced(probes.isolation, "UDP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.3)
        probe(probes, "udp", port=server.getsockname()[1])
        with pytest.raises(TimeoutError):
            server.recv(100)


def test_39_what_is_not_enforced_is_in_the_report(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, toy.RIGHT, "process")
    assert report["isolation"]["level"] == "process"
    assert {"TCP", "UDP", "reading other files"} <= set(report["isolation"]["not_enforced"])
    assert "not enforced here: " in text.report_text(report)


def test_a_class_is_refused_as_root_without_isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(InputError, match="not graded as root without isolation"):
        Isolation("process", (), ()).for_class()
    Isolation("landlock", (), ()).for_class()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    Isolation("process", (), ()).for_class()
    monkeypatch.undo()
    if os.geteuid() == 0:
        with pytest.raises(InputError, match="as root"):
            toy.grade(tmp_path, toy.RIGHT, "process", of_class=True)
        assert toy.points(toy.grade(tmp_path, toy.RIGHT, "process")) == FULL


# ---------------------------------------------------------------------------------------------- text


def test_44_a_students_text_is_inert(tmp_path: Path) -> None:
    report = toy.grade(tmp_path, toy.attacked("raises_markup"))
    whole = json.dumps(report, ensure_ascii=False)
    whole.encode("utf-8")
    shown = text.report_text(report)
    for mark in ("\x00", "\x1b", "\u202e", "\ud800", "\x07"):
        assert mark not in whole
        assert mark not in shown
    assert "<script>" in shown  # text; what writes HTML and XML escapes it
    assert len(report["exercises"][0]["message"]) <= 4000
    assert clean.clean(report["exercises"][0]["message"]) == report["exercises"][0]["message"]
    element = xml.etree.ElementTree.Element("case")
    element.text = report["exercises"][0]["message"]
    assert xml.etree.ElementTree.fromstring(xml.etree.ElementTree.tostring(element)).text == element.text


def test_every_attack_is_tried_here() -> None:
    named = {*FAULTS, "exit_at_import", "fork_bomb", "probes", "keeper_killer", "forged"}
    assert {path.stem for path in toy.ATTACKS.glob("*.py")} == named
