"""Sweeps: every job once, results kept, parts that together make the whole, and faults that are told."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from lessons.common import runner, sweep
from minigpt.errors import InputError, RunError


def square(job):
    """A job that notes that it ran, and fails where it is told to."""
    with open(job["log"], "a") as log:
        log.write(f"{job['x']} {os.environ.get('OPENBLAS_NUM_THREADS')}\n")
    if job.get("fails"):
        raise {"run": RunError, "input": InputError, "fault": ZeroDivisionError}[job["fails"]](f"at {job['x']}")
    return {"square": job["x"] ** 2}


def jobs(tmp_path: Path, *numbers: int, **settings) -> list[dict]:
    return [{"method": "m", "task": "a/b", "x": x, "log": str(tmp_path / "log"), **settings} for x in numbers]


def ran(tmp_path: Path) -> list[int]:
    log = tmp_path / "log"
    return sorted(int(line.split()[0]) for line in log.read_text().splitlines()) if log.exists() else []


def do(tmp_path: Path, work: list[dict], **settings) -> list[sweep.Result]:
    return sweep.run(square, work, tmp_path / "results", **{"workers": 2, "progress": False, **settings})


def test_every_job_is_done_once_and_kept(tmp_path: Path) -> None:
    first = do(tmp_path, jobs(tmp_path, 3, 1, 2, 3))
    assert [r.values["square"] for r in first] == [9, 1, 4]
    assert [r.job["x"] for r in first] == [3, 1, 2]
    assert ran(tmp_path) == [1, 2, 3]
    again = do(tmp_path, jobs(tmp_path, 2, 4))
    assert [r.values["square"] for r in again] == [4, 16]
    assert ran(tmp_path) == [1, 2, 3, 4]
    names = [path.name for path in (tmp_path / "results").iterdir()]
    assert len(names) == 4
    assert all(name.startswith("m-a_b-") for name in names)


@pytest.mark.parametrize("fails", [None, "fault"])
def test_no_worker_is_left_behind(tmp_path: Path, fails: str | None) -> None:
    with nullcontext() if fails is None else pytest.raises(RunError):
        do(tmp_path, jobs(tmp_path, 1, 2, fails=fails))
    left = [process.cmdline() for process in psutil.Process().children(recursive=True)]
    assert not [line for line in left if "LokyProcess" in " ".join(line)]


INTERRUPTED = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from lessons.common import sweep
from waiting import wait

if __name__ == "__main__":
    try:
        sweep.run(wait, [{"log": sys.argv[1], "x": x} for x in range(8)], sys.argv[2], workers=2, progress=False)
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
"""
WAITING = """
import time
from pathlib import Path

def wait(job):
    Path(job["log"]).touch()
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there, a terminal's Ctrl-C cannot be sent to a group alone")
def test_ctrl_c_in_the_terminal_ends_all_without_a_word_from_the_workers(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    before = set(shared.iterdir()) if shared.is_dir() else set()
    log, results = tmp_path / "log", tmp_path / "results"
    (tmp_path / "waiting.py").write_text(WAITING)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(log), str(results)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while not log.exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        told, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert told == "interrupted\n"
    assert process.returncode == 130
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert not [path for path in (set(shared.iterdir()) - before if before else ()) if str(process.pid) in path.name]
    assert not list(results.iterdir())


def test_each_worker_has_one_thread(tmp_path: Path) -> None:
    do(tmp_path, jobs(tmp_path, 1, 2))
    assert {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()} == {"1"}


def test_the_key_says_all_that_decides(tmp_path: Path) -> None:
    assert sweep.key({"x": 1, "y": 2}) == sweep.key({"y": 2, "x": 1})
    assert len({sweep.key(job) for job in ({"x": 1}, {"x": 2}, {"y": 1}, {"x": 1, "method": "m"})}) == 4


def test_parts_make_the_whole_without_repeating(tmp_path: Path) -> None:
    whole = jobs(tmp_path, *range(5))
    one = do(tmp_path, whole, part=(1, 2))
    assert ran(tmp_path) == [0, 2, 4]
    assert [r.job["x"] for r in one] == [0, 2, 4]
    both = do(tmp_path, whole, part=(2, 2))
    assert ran(tmp_path) == [0, 1, 2, 3, 4]
    assert [r.job["x"] for r in both] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="part 3 of 2"):
        do(tmp_path, whole, part=(3, 2))


def test_a_run_that_failed_is_a_result(tmp_path: Path) -> None:
    good, bad = do(tmp_path, [*jobs(tmp_path, 1), *jobs(tmp_path, 2, fails="run")])
    assert (good.error, good.values) == ("", {"square": 1})
    assert (bad.error, bad.values) == ("at 2", {})
    do(tmp_path, jobs(tmp_path, 2, fails="run"))
    assert ran(tmp_path) == [1, 2]  # it would fail again


@pytest.mark.parametrize(
    ("fails", "kind", "text"), [("input", InputError, "at 7"), ("fault", RunError, "ZeroDivisionError")]
)
def test_wrong_settings_and_faults_stop_the_sweep(tmp_path: Path, fails: str, kind: type, text: str) -> None:
    with pytest.raises(kind, match=text):
        do(tmp_path, jobs(tmp_path, 7, fails=fails))
    assert not list((tmp_path / "results").iterdir())


def test_a_foreign_file_in_the_results_is_named(tmp_path: Path) -> None:
    (work,) = jobs(tmp_path, 1)
    path = tmp_path / "results" / f"{sweep.key(work)}.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"something": "else"}))
    with pytest.raises(InputError, match=path.name):
        do(tmp_path, [work])


# ------------------------------------------------------------------------------------------ on a cluster


def test_a_job_array_does_what_processes_do_and_goes_on(tmp_path: Path) -> None:
    work = jobs(tmp_path, 3, 1, 2, 5, 4)
    do(tmp_path, work[:2])
    found = do(tmp_path, work, cluster="local")
    assert [r.values["square"] for r in found] == [9, 1, 4, 25, 16]
    assert ran(tmp_path) == [1, 2, 3, 4, 5]
    here = do(tmp_path / "here", [dict(job) for job in work])
    assert [(r.job, r.values, r.error) for r in here] == [(r.job, r.values, r.error) for r in found]
    names = {path.name for path in (tmp_path / "results").glob("*.json")}
    assert names == {path.name for path in (tmp_path / "here" / "results").glob("*.json")}
    assert ran(tmp_path) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]  # the second half of them by `here`
    do(tmp_path, work, cluster="local")
    assert len(ran(tmp_path)) == 10


@pytest.mark.parametrize(
    ("fails", "kind", "words"), [("input", InputError, "at 2"), ("fault", RunError, "ZeroDivisionError: at 2")]
)
def test_a_fault_in_a_job_array_ends_it(tmp_path: Path, fails: str, kind: type, words: str) -> None:
    work = [*jobs(tmp_path, 1), *jobs(tmp_path, 2, fails=fails)]
    with pytest.raises(kind, match=words):
        do(tmp_path, work, workers=1, cluster="local")
    assert ran(tmp_path) == [1, 2]
    failed = do(tmp_path, jobs(tmp_path, 3, fails="run"), cluster="local")
    assert [r.error for r in failed] == ["at 3"]


def die(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_of_a_job_array_that_dies_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a task of the job array has died \(\w+\): see .*submitit.*err"):
        sweep.run(die, jobs(tmp_path, 1), tmp_path / "results", progress=False, cluster="local")


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("submitit") is not None:
        with pytest.raises(InputError, match="no cluster 'moon'; there are slurm, local"):
            do(tmp_path, jobs(tmp_path, 1), cluster="moon")
        if shutil.which("srun") is None:
            with pytest.raises(RunError, match="cannot submit to slurm: "):
                do(tmp_path, jobs(tmp_path, 1), cluster="slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"takes submitit .*: pip install \"minigpt\[cluster\]\""):
        do(tmp_path, jobs(tmp_path, 1), cluster="local")


def test_only_the_comparison_has_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.parse(11, "About.", ["--cluster", "slurm"], clusters=sweep.CLUSTERS).cluster == "slurm"
    assert runner.parse(11, "About.", [], clusters=sweep.CLUSTERS).cluster == ""
    with pytest.raises(SystemExit):
        runner.parse(7, "About.", ["--cluster", "slurm"])
    assert "unrecognized arguments: --cluster slurm" in capsys.readouterr().err
