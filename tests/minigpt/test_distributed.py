"""Ranks that mpiexec starts: the numbers of one process, equal bytes on all, and an end at once where one fails."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from minigpt import cli, distributed, files
from minigpt.errors import InputError
from minigpt.training import TrainConfig, checkpoints, train
from tests import ranks
from tests.helpers import die_with_parent

ROOT = Path(cli.__file__).resolve().parent.parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
with_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason='needs mpi4py and MPICH: pip install "minigpt[mpi]"',
)
LAUNCHER = [name for pair in distributed.LAUNCHERS for name in pair]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """The tests themselves are run by no launcher."""
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def start(size: int, *arguments: object, **settings) -> subprocess.Popen:
    """Python with these arguments on so many ranks; what they print comes through pipes."""
    return subprocess.Popen(
        [str(MPIEXEC), "-n", str(size), sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"} | settings.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
        **settings,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code and what was printed; one that hangs is killed."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def launch(size: int, *arguments: object, **settings) -> tuple[int, str, str]:
    """Run it to its end."""
    with start(size, *arguments, **settings) as process:
        return finish(process)


SCRIPT = ROOT / "tests" / "ranks.py"


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What two ranks leave of all scenarios."""
    directory = tmp_path_factory.mktemp("two")
    code, out, err = launch(2, SCRIPT, directory, "comms", *ranks.SCENARIOS)
    assert (code, out, err) == (0, "", "")
    return directory


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """Of some of them, three ranks."""
    directory = tmp_path_factory.mktemp("three")
    code, out, err = launch(3, SCRIPT, directory, "comms", "plain", "fewer rows than ranks", "lora")
    assert (code, out, err) == (0, "", "")
    return directory


def found(directory: Path, scenario: str, rank: int = 0) -> dict[str, np.ndarray]:
    with np.load(directory / f"{scenario}-{rank}.npz") as file:
        return dict(file)


def difference(a: dict, b: dict) -> float:
    """Largest difference of any entry, in units of its largest element; hashes and times are left out."""
    assert a.keys() == b.keys()
    numbers = [name for name in a if a[name].dtype.kind == "f"]
    assert all(a[name].shape == b[name].shape for name in numbers)
    return max(float(np.max(np.abs(a[k] - b[k])) / (np.max(np.abs(b[k])) + 1e-30)) for k in numbers)


# ------------------------------------------------------------------------------------------ the same numbers


@with_mpi
@pytest.mark.parametrize("scenario", [name for name in ranks.SCENARIOS if "dropout" not in name])
def test_two_ranks_are_one_process_but_for_rounding(two, tmp_path, scenario):
    expected = ranks.run(scenario, tmp_path, workers=1)
    assert difference(found(two, scenario), expected) < 1e-9
    if scenario == "plain":
        other = ranks.run(scenario, tmp_path, workers=1, seed=2)
        assert difference(other, expected) > 1e-2  # so that being close says something
        assert expected["norm"][0] > 0.5  # clipping was part of it


@with_mpi
@pytest.mark.parametrize("scenario", ["plain", "fewer rows than ranks", "lora"])
def test_three_ranks_on_uneven_batches_and_fewer_rows_than_ranks(three, tmp_path, scenario):
    assert difference(found(three, scenario), ranks.run(scenario, tmp_path, workers=1)) < 1e-9


@with_mpi
@pytest.mark.parametrize("scenario", list(ranks.SCENARIOS))
def test_all_ranks_have_the_same_bytes_after_every_step(two, three, scenario):
    for directory, size in ((two, 2), (three, 3)):
        if not (directory / f"{scenario}-0.npz").exists():
            continue
        first = found(directory, scenario)
        assert len(set(first["hashes"].tolist())) == len(first["hashes"]) >= ranks.STEPS  # and they do change
        for rank in range(1, size):
            other = found(directory, scenario, rank)
            assert first.keys() == other.keys()
            for name, values in first.items():
                assert values.tobytes() == other[name].tobytes(), (rank, name)


@with_mpi
def test_two_ranks_and_two_worker_processes_are_the_same_bytes_dropout_included(two, tmp_path):
    by_processes = ranks.run("float32 and dropout", tmp_path, workers=2)
    for name, values in found(two, "float32 and dropout").items():
        assert values.tobytes() == by_processes[name].tobytes(), name
    alone = ranks.run("float32 and dropout", tmp_path, workers=1)
    assert difference(alone, by_processes) > 1e-4  # another number of ranks is another draw


@with_mpi
def test_both_comms_sum_and_gather(two, three):
    assert all((two / f"comms-{rank}").exists() for rank in range(2))
    assert all((three / f"comms-{rank}").exists() for rank in range(3))


@with_mpi
def test_frozen_parameters_stay(two):
    fresh = {p.name: p.data for p in ranks.model_of().parameters()}
    after = found(two, "frozen")
    assert all(((after[name] != fresh[name]).any()) == (".h.1." in name) for name in fresh)


# ------------------------------------------------------------------------------------------ what goes wrong


def running(directory: Path) -> list[psutil.Process]:
    """Processes that were told to write to this directory."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(p.info["cmdline"] or [])]


def failed(size: int, how: str, directory: Path, code: int) -> list[str]:
    """What a job that fails prints; it has to end soon, with this exit code and nothing left running."""
    began = time.monotonic()
    found, out, err = launch(size, SCRIPT, directory, f"fail {how}")
    assert found == code, err
    assert out == ""
    assert time.monotonic() - began < 60
    assert not list(directory.glob("ended-*"))
    while running(directory) and time.monotonic() - began < 60:
        time.sleep(0.02)  # the launcher has told them to end, and does not wait for it
    assert not running(directory)
    return err.splitlines()


@with_mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_job_with_one_line(tmp_path, rank):
    assert failed(2, f"kill {rank}", tmp_path, 1) == [f"minigpt: rank {rank} has died; the job ends"]


@with_mpi
def test_an_exception_of_one_rank_ends_the_job_and_is_shown_with_its_place(tmp_path):
    lines = failed(3, "exception", tmp_path, 1)
    assert lines[0] == "Traceback (most recent call last):"
    assert any("raise self.error" in line for line in lines)
    assert lines[-1] == "minigpt: rank 1: ZeroDivisionError: only here"
    assert len([line for line in lines if "only here" in line]) == 2  # in the traceback, and in the line


@with_mpi
@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("input", 2, r"minigpt: rank 0: token ids: id 99 at position \d+ is outside the vocabulary.*"),
        ("callback", 1, "minigpt: rank 0: OSError: no room"),
        ("script", 1, "minigpt: rank 1: LookupError: in the script"),
    ],
)
def test_what_fails_on_one_rank_names_it(tmp_path, how, code, line):
    lines = failed(2, how, tmp_path, code)
    assert re.fullmatch(line, lines[-1])
    assert len([other for other in lines if other.startswith("minigpt")]) == 1
    assert len(lines) == 1 or code == 1


@with_mpi
@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("nan", r"minigpt\.errors\.RunError: step 3: loss is nan, gradient norm is .*; first not finite: "
         r"parameter transformer\.h\.1\.mlp\.c_fc\.weight\. A smaller learning rate or .*"),
        ("everywhere", "RuntimeError: the same on all"),
        ("seeds", r"minigpt\.errors\.InputError: rank 1 has other weights than rank 0: .* the same seed.*"),
        ("data", r"minigpt\.errors\.InputError: rank 1 has other training batches than rank 0: .*"),
        ("workers", r"minigpt\.errors\.InputError: workers is 2, but the launcher has started 2 ranks.*"),
    ],
)  # fmt: skip
def test_what_fails_on_all_ranks_is_an_ordinary_exception_that_is_shown_once(tmp_path, how, line):
    lines = failed(2, how, tmp_path, 1)
    assert [other for other in lines if "Traceback" in other] == ["Traceback (most recent call last):"]
    assert re.fullmatch(line, lines[-1]), lines[-1]
    assert not [other for other in lines if other.startswith("minigpt: rank")]


@with_mpi
def test_a_callback_of_any_rank_stops_all(tmp_path):
    assert launch(2, SCRIPT, tmp_path, "fail stop") == (0, "", "")
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == ["stopped by a callback after 2"] * 2


# ------------------------------------------------------------------------------------------ the command line

SLOW = """
import sys, time
from minigpt import cli, training
cli.train = lambda *a, **k: training.train(*a, callbacks=[lambda state: time.sleep(0.1)], **k)
sys.exit(cli.main())
"""
WORDS = ["the", "cat", "saw", "a", "dog", "that", "ran", "to", "mat"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 800)) + "\n", encoding="utf-8")
    return path


def command(text: Path, out: Path, **changes) -> list[str]:
    settings = {
        "data": text, "out": out, "preset": "nano", "tokenizer": "char", "steps": 6, "batch-size": 5, "warmup": 2,
        "eval-every": 3, "checkpoint-every": 3, "log-every": 1, "dtype": "float64",
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    words = ["train"]
    for name, value in settings.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def weights(directory: Path) -> dict[str, np.ndarray]:
    return files.load_tensors(directory / "model.safetensors")[0]


def log(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@with_mpi
def test_training_as_a_user_would(text, tmp_path):
    code, out, err = launch(2, "-m", "minigpt", *command(text, tmp_path / "two"))
    assert code == 0, err
    assert [line.split(" in ")[0] for line in out.splitlines()] == [
        "6 steps", f'now: python -m minigpt generate --model {tmp_path / "two"} --prompt "…"'
    ]  # fmt: skip
    assert err.count("writing to") == 1
    assert cli.main([*command(text, tmp_path / "one"), "--workers", "1", "--quiet"]) == 0
    assert difference(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-9
    for ours, theirs in zip(log(tmp_path / "two"), log(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
    assert files.read_json(tmp_path / "two" / "run.json")["ranks"] == 2
    assert "ranks" not in files.read_json(tmp_path / "one" / "run.json")


@with_mpi
def test_ctrl_c_writes_a_checkpoint_and_other_numbers_of_ranks_go_on(text, tmp_path):
    # One process, two ranks, three ranks: 2 steps, then as far as Ctrl-C lets them, then to the end.
    out, steps = tmp_path / "run", 40
    long = {"steps": steps, "eval_every": 0, "checkpoint_every": 0}
    whole = command(text, tmp_path / "whole", **long, quiet=True)
    assert cli.main([*whole, "--workers", "1"]) == 0

    def stop(state):
        state.stop = state.step == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "train", lambda *a, **k: train(*a, callbacks=[stop], **k))
        assert cli.main([*command(text, out, **long | {"checkpoint_every": 2}), "--workers", "1", "--quiet"]) == 0
    (out / "model.safetensors").unlink()
    begun = command(text, out, **long)
    with start(2, "-c", SLOW, *begun, "--resume", "--quiet") as process:
        deadline = time.monotonic() + 60
        while len(log(out)) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert code == 130, err
    said = [line for line in err.splitlines() if "Ctrl-C after step" in line]
    assert len(said) == 1
    done = int(re.search(r"after step (\d+) of 40; everything is saved", said[0])[1])
    assert 8 <= done < steps
    assert [path.name for path in checkpoints(out)] == [f"step-{done:09d}.safetensors"]
    code, _, err = launch(3, "-m", "minigpt", *begun, "--resume", "--quiet")
    assert code == 0, err
    assert [line["step"] for line in log(out)] == list(range(1, steps + 1))
    assert difference(weights(out), weights(tmp_path / "whole")) < 1e-6


@with_mpi
def test_mistakes_are_said_once(text, tmp_path):
    code, out, err = launch(2, "-m", "minigpt", *command(tmp_path / "missing.txt", tmp_path / "out"))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("minigpt: ")
    (tmp_path / "file").write_text("in the way")
    code, out, err = launch(2, "-m", "minigpt", *command(text, tmp_path / "file"))
    assert (code, out) == (2, "")
    assert err == f"minigpt: --out {tmp_path / 'file'}: {tmp_path / 'file'} is a file; a directory is needed\n"
    code, out, err = launch(2, "-m", "minigpt", "train", "--steps", "many")
    assert (code, out) == (2, "")
    assert err.count("usage:") == 1


@with_mpi
def test_one_rank_is_one_process_and_needs_no_mpi(text, tmp_path):
    broken = tmp_path / "broken"
    (broken / "mpi4py").mkdir(parents=True)
    (broken / "mpi4py" / "__init__.py").write_text("raise ImportError('not here')")
    path = f"{broken}{os.pathsep}{ROOT}"
    code, _, err = launch(1, "-m", "minigpt", *command(text, tmp_path / "one"), env={"PYTHONPATH": path})
    assert code == 0, err
    record = checkpoints(tmp_path / "one")[0]
    assert json.loads(files.load_tensors(record)[1]["state"])["identity"]["workers"] == 1
    code, out, err = launch(2, "-m", "minigpt", *command(text, tmp_path / "two"), env={"PYTHONPATH": path})
    assert (code, out) == (2, "")
    assert err == (
        "minigpt: the launcher started 2 processes, which takes mpi4py (not here): "
        'pip install "minigpt[mpi]", or pip install mpi4py beside an MPI of your own\n'
    )


@with_mpi
def test_the_launcher_of_another_mpi_is_named(text, tmp_path):
    environment = {**os.environ, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "minigpt", *command(text, tmp_path / "out")],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(
        "minigpt: the launcher started 2 processes, but mpi4py sees 1: the launcher has to be that of mpi4py's MPI, "
    )
    assert len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------------ without MPI


def test_each_rank_draws_a_dropout_of_its_own():
    row = {name: array[:1] for name, array in ranks.batch_of(0).items()}
    losses = []
    for size in (1, 2):  # one row, and twice the same one: with equal draws the mean would be the same
        batch = {name: np.repeat(array, size, axis=0) for name, array in row.items()}
        config = TrainConfig(steps=1, workers=size)
        model = ranks.model_of(dropout=0.5)
        history = train(model, ranks.LanguageModelling(), lambda step, b=batch: b, config, progress=False)
        losses += history.losses
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "PMIX_RANK": "2"}, (2, 3)),
        ({"PMIX_RANK": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # the script of a batch job, or srun without MPI
        ({"PMI_RANK": "0"}, None),
    ],
)
def test_the_launcher_is_known_by_its_environment(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() == expected
    assert distributed.several() is (expected is not None)


def test_a_rank_alone_may_have_workers(monkeypatch):
    from minigpt.training import team_size

    cores = team_size(0, "numpy", 64)
    assert cores >= 1
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "1")
    assert [team_size(n, "numpy", 64) for n in (0, 1, 3)] == [1, 1, 3]
    monkeypatch.setenv("PMI_SIZE", "2")
    assert [team_size(n, "numpy", 64) for n in (0, 1)] == [1, 1]
    with pytest.raises(InputError, match="workers is 3, but the launcher has started 2 ranks"):
        team_size(3, "numpy", 64)


def test_nothing_is_imported_without_a_launcher():
    code = "import sys, minigpt.cli, minigpt.training; assert 'mpi4py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_ranks_beyond_the_first_do_not_write_or_measure(monkeypatch, capsys):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert cli.main(["generate", "--model", "nowhere"]) == 0
    assert cli.main(["eval", "--model", "nowhere", "--data", "nothing"]) == 0
    assert cli.main(["train", "--out"]) == 2
    assert capsys.readouterr() == ("", "")


def test_without_a_launcher_nothing_is_shared_or_met(tmp_path):
    assert distributed.share(lambda: 3) == 3
    with pytest.raises(KeyError), distributed.together():
        raise KeyError
    config = TrainConfig(steps=1, workers=1)
    model = ranks.model_of()
    seen = []
    train(model, ranks.LanguageModelling(), ranks.batch_of, config, callbacks=[seen.append], progress=False)
    assert [state.rank for state in seen] == [0]
