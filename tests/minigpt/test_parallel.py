"""Ranks on one machine: the same numbers as one, from anywhere, with any layer, and no process left behind."""

import errno
import gc
import hashlib
import json
import mmap
import operator
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import threadpoolctl

from minigpt import GPT, GPTConfig, InputError, RunError, parallel
from minigpt.layers import Layer
from minigpt.objectives import LanguageModelling, shards
from minigpt.optim import AdamW, ParameterGroup, constant
from minigpt.parallel import LocalTeam
from minigpt.parameters import Parameter
from minigpt.training import TrainConfig, train
from tests.helpers import die_with_parent

ROOT = Path(parallel.__file__).resolve().parent.parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc of Linux")

CONFIG = GPTConfig(vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=2)


def batch_of(step: int, n: int = 7) -> dict[str, np.ndarray]:
    """n rows; some targets are not scored, one row has none that is."""
    rng = np.random.default_rng(step)
    ids, targets = rng.integers(0, 11, (2, n, 8))
    targets[rng.random((n, 8)) < 0.3] = -100
    targets[-1] = -100
    if n == 1:
        targets[0, 0] = 3
    return {"ids": ids, "targets": targets}


def numbers(model, size: int, accumulation: int = 1, steps: int = 3, rows: int = 7) -> dict:
    """Losses, norms, moments and weights after some steps of a team of this size."""
    parameters = AdamW.order(model.parameters(), (), 0.1)
    optimizer = AdamW(parameters, model.backend, betas=(0.9, 0.99), weight_decay=0.1)
    out = {"loss": [], "norm": []}
    with LocalTeam(model, LanguageModelling(), parameters, optimizer, size) as team:
        for step in range(steps):
            rates = optimizer.rates(constant(1e-2), step)
            loss, norm = team.step(batch_of(step, rows), accumulation, step, rates, 0.5, seed=3)
            out["loss"].append(loss)
            out["norm"].append(norm)
        out["validation"] = team.evaluate([batch_of(100 + i, 3) for i in range(4)])
        m, v = team.moments
        out |= {"m": m.copy(), "v": v.copy()}
    return out | {p.name: p.data for p in parameters}


def difference(a: dict, b: dict) -> float:
    """Largest difference of any entry, in units of its largest element."""
    assert a.keys() == b.keys()
    return max(float(np.max(np.abs(np.subtract(a[k], b[k]))) / (np.max(np.abs(b[k])) + 1e-30)) for k in a)


def as_bytes(results: dict) -> bytes:
    return b"".join(np.asarray(value).tobytes() for value in results.values())


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


# ------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize(("size", "accumulation"), [(1, 3), (2, 1), (3, 1), (2, 2)])
def test_ranks_and_accumulation_change_nothing_but_rounding(size, accumulation):
    expected = numbers(GPT(CONFIG, seed=1, dtype="float64"), 1)
    found = numbers(GPT(CONFIG, seed=1, dtype="float64"), size, accumulation)
    # AdamW's first steps divide a gradient by its own size: that magnifies rounding where it is small.
    assert difference(found, expected) < 1e-9
    assert abs(found["loss"][0] - expected["loss"][0]) < 1e-14
    assert expected["norm"][0] > 0.5  # so that clipping was part of it


def test_first_moments_are_the_gradient_of_the_whole_batch():
    model = GPT(CONFIG, seed=1, dtype="float64")
    batch = batch_of(0)
    loss, gradients = model.loss_and_grads(batch["ids"], batch["targets"])
    parameters = AdamW.order(model.parameters(), (), 0.1)
    flat = np.concatenate([gradients[p.name].reshape(-1) for p in parameters])
    found = numbers(model, 2, steps=1)
    clipped = flat * (0.5 / (found["norm"][0] + 1e-6))
    assert found["loss"][0] == pytest.approx(loss, rel=1e-13)
    assert found["norm"][0] == pytest.approx(np.linalg.norm(flat), rel=1e-12)
    np.testing.assert_allclose(found["m"], 0.1 * clipped, rtol=1e-9, atol=1e-12)


def test_the_same_team_twice_gives_the_same_bytes():
    config = GPTConfig(11, 8, 12, 2, 2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    first, second = (numbers(GPT(config, seed=1), 3) for _ in range(2))
    assert as_bytes(first) == as_bytes(second)


def test_fewer_rows_than_ranks():
    expected = numbers(GPT(CONFIG, seed=1, dtype="float64"), 1, rows=1)
    assert difference(numbers(GPT(CONFIG, seed=1, dtype="float64"), 3, rows=1), expected) < 1e-9


def test_shards_cover_all_rows_in_order():
    for n in range(8):
        for parts in range(1, 5):
            cut = [list(range(n))[part] for part in shards(n, parts)]
            assert [row for part in cut for row in part] == list(range(n))
            assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_dropout_differs_between_ranks_and_steps():
    class Draws(LanguageModelling):
        def forward(self, model, batch, total, ctx):
            return float(ctx.rng.random()), lambda grads: None

    model = GPT(CONFIG, seed=1)
    parameters = list(model.parameters())
    optimizer = AdamW(parameters, model.backend)
    rates = [0.0] * len(optimizer.segments)
    with LocalTeam(model, Draws(), parameters, optimizer, 2) as team:
        sums = [team.step(batch_of(0), 2, step, rates, None, 5)[0] for step in (0, 1)]
    for step in (0, 1):
        draws = [np.random.default_rng([5, step, rank, i]).random() for rank in (0, 1) for i in (0, 1)]
        assert len(set(draws)) == 4
        assert sums[step] == pytest.approx(sum(draws), rel=1e-15)
    assert sums[0] != sums[1]


# ------------------------------------------------------------------------------------------ frozen weights


class Fingerprint(LanguageModelling):
    """A "loss" that is a checksum of the frozen weights as a rank has them, 0 if they are not in shared memory."""

    def __init__(self) -> None:
        self.parent = os.getpid()

    def total(self, batch):
        return 1.0

    def forward(self, model, batch, total, ctx):
        digest = hashlib.sha256()
        for p in model.parameters():
            if not p.trainable:
                digest.update(f"{p.name} {p.data.dtype} {p.data.shape}".encode() + p.data.tobytes())
                base = p.data
                while isinstance(base, np.ndarray):
                    base = base.base
                if os.getpid() != self.parent and not isinstance(getattr(base, "obj", base), mmap.mmap):
                    return 0.0, lambda grads: None
        return float(int(digest.hexdigest()[:12], 16)), lambda grads: None


class Codes(Layer):
    """A layer with frozen arrays of other types, as a quantised one has."""

    def __init__(self, inner: Layer) -> None:
        rng = np.random.default_rng(0)
        self.inner = inner
        self.codes = Parameter("codes", rng.integers(0, 255, (3, 5), dtype=np.uint8), trainable=False)
        self.scales = Parameter("scales", rng.normal(size=7).astype(np.float16), trainable=False)
        self.wide = Parameter("wide", rng.normal(size=(2, 1, 3)), trainable=False)

    def forward(self, x, ctx):
        return self.inner.forward(x, ctx)


def test_frozen_weights_are_the_same_to_the_bit_and_travel_shared(monkeypatch):
    sent = []
    describe = parallel._describe
    monkeypatch.setattr(parallel, "_describe", lambda *a: sent.append(describe(*a)) or sent[-1])
    model = GPT(GPTConfig(2000, 8, 64, 1, 2), seed=1)
    model.replace("h.0.attn.c_proj", lambda layer, name: Codes(layer))
    model.freeze(["*.wte.weight", "*.wpe.weight", "*ln_1*"])
    frozen = {p.name: p.data for p in model.parameters() if not p.trainable}
    before = {name: data.tobytes() for name, data in frozen.items()}
    objective = Fingerprint()
    expected, _ = objective.forward(model, {}, 1.0, None)
    parameters = AdamW.order(model.parameters(), (), 0.1)
    optimizer = AdamW(parameters, model.backend)
    with LocalTeam(model, objective, parameters, optimizer, 2) as team:
        assert team.evaluate([batch_of(0), batch_of(1)]) == expected
        team.step(batch_of(0), 1, 0, [0.1] * len(optimizer.segments), None, 0)
    assert expected > 0
    assert {p.name: p.data.tobytes() for p in model.parameters() if p.name in before} == before
    assert all(p.data is frozen[p.name] for p in model.parameters() if p.name in frozen)
    assert len(sent[0][-1]) < 20_000 < frozen["transformer.wte.weight"].nbytes


# ------------------------------------------------------------------------------------------ after the run


def test_parameters_are_ordinary_arrays_afterwards_and_the_trained_ones():
    model = GPT(CONFIG, seed=1)
    results = numbers(model, 2)
    gc.collect()
    for p in model.parameters():
        assert p.data.base is None
        assert p.data.flags.owndata
        assert p.data.flags.writeable
        assert p.data is results[p.name]
    assert np.isfinite(model.logits([[1, 2, 3]])).all()
    fresh = {p.name: p.data for p in GPT(CONFIG, seed=1).parameters()}
    assert all((p.data != fresh[p.name]).any() for p in model.parameters())


def test_nothing_of_the_process_is_changed():
    def state():
        threads = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return (
            dict(os.environ),
            os.getcwd(),
            list(sys.path),
            threads,
            signal.getsignal(signal.SIGINT),
            open_files,
        )

    numbers(GPT(CONFIG, seed=1), 2, steps=1)  # the first time may load libraries
    gc.collect()
    before, began = state(), time.monotonic()
    numbers(GPT(CONFIG, seed=1), 2, steps=1)
    assert time.monotonic() - began < 9  # workers end by themselves; after ten seconds they would be killed
    gc.collect()
    assert state() == before


def test_workers_have_one_blas_thread_and_so_has_the_parent_meanwhile():
    class Threads(LanguageModelling):
        def forward(self, model, batch, total, ctx):
            pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
            return float(max(pool["num_threads"] for pool in pools)), lambda grads: None

    model = GPT(CONFIG)
    parameters = list(model.parameters())
    with LocalTeam(model, Threads(), parameters, AdamW(parameters, model.backend), 2) as team:
        assert team.evaluate([batch_of(0), batch_of(1)]) == 1.0


# ------------------------------------------------------------------------------------------ from anywhere


def test_a_layer_and_an_objective_defined_in_a_function():
    class Doubled(Layer):
        def __init__(self, inner: Layer) -> None:
            self.inner = inner

        def forward(self, x, ctx):
            y, back = self.inner.forward(x, ctx)
            return 2 * y, lambda dy, grads: back(2 * dy, grads)

    def doubled(dtype: str) -> GPT:
        model = GPT(CONFIG, seed=1, dtype=dtype)
        model.replace("h.*.mlp.c_proj", lambda layer, name: Doubled(layer))
        return model

    expected = numbers(doubled("float64"), 1)
    assert difference(numbers(doubled("float64"), 2), expected) < 1e-9
    assert difference(numbers(GPT(CONFIG, seed=1, dtype="float64"), 1), expected) > 1e-3


def test_from_a_thread():
    found = {}
    model = GPT(CONFIG, seed=1, dtype="float64")
    thread = threading.Thread(target=lambda: found.update(numbers(model, 2)))
    thread.start()
    thread.join()
    assert difference(found, numbers(GPT(CONFIG, seed=1, dtype="float64"), 1)) < 1e-9


SETUP = """
import os, sys, json
import numpy as np
from minigpt import GPT, GPTConfig
from minigpt.layers import Layer
from minigpt.objectives import LanguageModelling
from minigpt.training import TrainConfig, train

PARENT = os.getpid()

class Noisy(Layer):
    # Defined in __main__: prints, and reads what it can get hold of.
    def __init__(self, inner):
        self.inner = inner
    def forward(self, x, ctx):
        if os.getpid() != PARENT:
            print("noise from Python")
            os.write(1, b"noise from C\\n")
            assert os.read(0, 100) == b""
            assert __name__ == "__main__" or "minigpt" in sys.modules
        return self.inner.forward(x, ctx)

def batches(step):
    ids, targets = np.random.default_rng(step).integers(0, 11, (2, 4, 8))
    return {"ids": ids, "targets": targets}

model = GPT(GPTConfig(11, 8, 12, 2, 2), seed=1)
model.replace("h.0.mlp.c_proj", lambda layer, name: Noisy(layer))
"""
SHORT_RUN = """
config = TrainConfig(steps=3, workers=2, eval_every=3)
history = train(model, LanguageModelling(), batches, config, [batches(9)], progress=False)
with open(sys.argv[1], "w") as file:
    json.dump([history.losses, history.eval_losses], file)
"""
LONG_RUN = """
import psutil, time

def callback(state):
    if state.step == 1:
        print(*[p.pid for p in psutil.Process().children()], flush=True)
    time.sleep(600 if sys.argv[1] == "resting" else 0)

config = TrainConfig(steps=1_000_000, workers=3)
train(model, LanguageModelling(), batches, config, callbacks=[callback], progress=False)
"""


def start(script: list, *arguments, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        preexec_fn=settings.pop("preexec_fn", die_with_parent),
        **settings,
    )


def finish(process: subprocess.Popen, given: str | None = None) -> tuple[str, str]:
    """What a process prints; one that hangs is killed."""
    try:
        return process.communicate(given, timeout=60)
    finally:
        process.kill()


def expected_of_script() -> list:
    def batches(step):
        ids, targets = np.random.default_rng(step).integers(0, 11, (2, 4, 8))
        return {"ids": ids, "targets": targets}

    model = GPT(GPTConfig(11, 8, 12, 2, 2), seed=1)
    config = TrainConfig(steps=3, workers=2, eval_every=3)
    history = train(model, LanguageModelling(), batches, config, [batches(9)], progress=False)
    return [history.losses, history.eval_losses]


def test_from_a_script_without_a_guard_whose_layer_prints_and_reads(tmp_path):
    script, answer = tmp_path / "script.py", tmp_path / "answer"
    script.write_text(SETUP + SHORT_RUN)
    with start([script], answer, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = finish(process)
    assert process.returncode == 0, err
    assert json.loads(answer.read_text()) == expected_of_script()
    assert out == ""
    assert err.count("noise from Python\n") == err.count("noise from C\n") == 3  # a step each


@pytest.mark.skipif(os.name != "posix", reason="descriptors of POSIX")
def test_from_standard_input_or_without_any_standard_stream(tmp_path):
    # As a notebook's kernel has it: no script, no terminal, Python's streams replaced by objects without a number.
    replaced = "import io, sys; sys.stdin = None; sys.stdout = sys.stderr = io.StringIO()"
    answers = [tmp_path / "kernel", tmp_path / "closed"]
    kernel = start(["-"], answers[0], cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    script = tmp_path / "script.py"
    script.write_text(SETUP + SHORT_RUN)

    def close_all() -> None:
        die_with_parent()
        os.closerange(0, 3)

    closed = start([script], answers[1], cwd=tmp_path, preexec_fn=close_all)
    finish(kernel, replaced + SETUP + SHORT_RUN)
    finish(closed)
    assert kernel.returncode == closed.returncode == 0
    for answer in answers:
        assert json.loads(answer.read_text()) == expected_of_script()


def test_a_module_in_the_current_directory_does_not_shadow_ours(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    assert len(numbers(GPT(CONFIG, seed=1), 2, steps=1)["loss"]) == 1


# ------------------------------------------------------------------------------------------ what goes wrong


class Fails(LanguageModelling):
    """Raises in a worker only."""

    def __init__(self, error: Exception) -> None:
        self.parent = os.getpid()
        self.error = error

    def forward(self, model, batch, total, ctx):
        if os.getpid() != self.parent:
            raise self.error
        return super().forward(model, batch, total, ctx)


def run(objective=None, model=None, callbacks=(), **settings):
    """Train a tiny model with two workers."""
    model = model or GPT(CONFIG, seed=1)
    config = TrainConfig(**{"steps": 3, "workers": 2} | settings)
    return train(
        model,
        objective or LanguageModelling(),
        batch_of,
        config,
        [batch_of(9)],
        callbacks=callbacks,
        progress=False,
    )


def test_a_workers_exception_is_shown_with_its_place():
    model = GPT(CONFIG, seed=1)
    with pytest.raises(RunError) as caught:
        run(Fails(ZeroDivisionError("only here")), model)
    assert "ZeroDivisionError: only here" in str(caught.value)
    assert "raise self.error" in str(caught.value)
    assert all(p.data.base is None for p in model.parameters())


@pytest.mark.parametrize("error", [RunError("no good"), MemoryError("3 GB")])
def test_errors_that_speak_for_themselves_come_through_as_they_are(error):
    with pytest.raises(type(error)) as caught:
        run(Fails(error))
    assert str(caught.value) == str(error)


class Unreadable:
    """Cannot be unpickled: one is divided by zero."""

    def __reduce__(self):
        return operator.truediv, (1, 0)


def test_a_worker_that_fails_while_it_is_sent_something_still_has_its_last_words():
    def batches(step):
        # More than a pipe holds: the worker is gone before all of it is sent.
        many = {"many": np.zeros((7, 1_000_000))}
        return batch_of(step) | {"bad": np.array([Unreadable() for _ in range(7)])} | many

    config = TrainConfig(steps=1, workers=2)
    with pytest.raises(RunError, match="ZeroDivisionError"):
        train(GPT(CONFIG), LanguageModelling(), batches, config, progress=False)


def test_an_id_outside_the_vocabulary_of_one_workers_rows_is_named():
    def batches(step):
        batch = batch_of(step)
        batch["ids"][-1, 2] = 99
        return batch

    config = TrainConfig(steps=1, workers=2)
    with pytest.raises(InputError, match=r"id 99 at position \d+ is outside the vocabulary"):
        train(GPT(CONFIG), LanguageModelling(), batches, config, progress=False)


@pytest.mark.parametrize("when", ["at rest", "at work"])
def test_a_killed_worker_ends_the_run_with_one_line(when):
    others = psutil.Process().children()  # of other tests, such as joblib's resource tracker

    def kill(state):
        (worker,) = (p for p in psutil.Process().children() if p not in others)
        worker.kill()
        while when == "at rest" and running(worker):
            time.sleep(0.01)

    model = GPT(CONFIG, seed=1)
    with pytest.raises(RunError) as caught:
        run(model=model, callbacks=[kill])
    assert re.fullmatch(r"worker process \d+ has died \(exit code -9\)", str(caught.value))
    assert all(p.data.base is None for p in model.parameters())
    assert np.isfinite(model.logits([[1]])).all()


def test_an_exception_in_the_parent_ends_the_workers_at_once():
    class Slow(LanguageModelling):
        def __init__(self) -> None:
            self.parent = os.getpid()

        def forward(self, model, batch, total, ctx):
            if os.getpid() == self.parent:
                time.sleep(0.3)
                raise KeyboardInterrupt
            time.sleep(60)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(Slow())
    assert time.monotonic() - began < 9  # 10 is what a worker is given to end by itself


def test_memory_that_cannot_be_had_is_an_error_of_its_own(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        run()


def test_what_cannot_be_sent_is_said_and_one_worker_can_do_without():
    class Holds(LanguageModelling):
        def __init__(self) -> None:
            self.lock = threading.Lock()

    model = GPT(CONFIG, seed=1)
    before = {p.name: p.data.copy() for p in model.parameters()}
    with pytest.raises(
        InputError, match=r"cannot be sent to worker processes \(.*lock.*\); train with workers=1"
    ) as caught:
        run(Holds(), model)
    assert len(str(caught.value).splitlines()) == 1
    for p in model.parameters():
        assert isinstance(p.data, np.ndarray)
        assert p.data.base is None
        assert (p.data == before[p.name]).all()
    run(Holds(), model, workers=1)


def test_nothing_scored_is_said():
    def batches(step):
        batch = batch_of(step)
        batch["targets"][:] = -100
        return batch

    with pytest.raises(InputError, match="step 1: nothing in the batch is scored"):
        train(GPT(CONFIG), LanguageModelling(), batches, TrainConfig(steps=1, workers=1), progress=False)
    model = GPT(CONFIG)
    parameters = list(model.parameters())
    with (
        LocalTeam(model, LanguageModelling(), parameters, AdamW(parameters, model.backend)) as team,
        pytest.raises(InputError, match="nothing in the validation data is scored"),
    ):
        team.evaluate([batches(0)])


def test_workers_need_numpy():
    from tests.standin import BACKEND

    model = GPT(CONFIG, backend=BACKEND)
    parameters = list(model.parameters())
    with pytest.raises(ValueError, match="worker processes need the numpy backend, not standin"):
        LocalTeam(model, LanguageModelling(), parameters, AdamW(parameters, BACKEND), 2)


@linux
@pytest.mark.parametrize("state", ["resting", "busy"])
def test_workers_end_when_their_parent_is_killed(tmp_path, state):
    script = tmp_path / "script.py"
    script.write_text(SETUP + LONG_RUN)
    with start([script], state, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(running, workers))


def running(process: psutil.Process) -> bool:
    """Whether a process is still at work; one that nobody has buried is not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_groups_with_schedules_of_any_kind_reach_the_workers():
    def both(size):
        model = GPT(CONFIG, seed=1, dtype="float64")
        groups = [
            ParameterGroup("*.h.0.*", schedule=lambda step: 0.01 * step),
            ParameterGroup("*", lr_scale=0.5),
        ]
        config = TrainConfig(steps=4, workers=size, lr=1e-2)
        train(model, LanguageModelling(), batch_of, config, groups=groups, progress=False)
        return {p.name: p.data for p in model.parameters()}

    assert difference(both(2), both(1)) < 1e-9
