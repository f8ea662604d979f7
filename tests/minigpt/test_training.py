"""The training loop: what it records, when it stops, and that it goes on as if it had never been stopped."""

import json
import os
import re
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.survival import survive
from minigpt import GPT, CharTokenizer, GPTConfig, InputError, RunError, files
from minigpt.context import Context
from minigpt.corpora import language_batches
from minigpt.evaluation import evaluate_text, text_batches
from minigpt.layers import Layer
from minigpt.objectives import LanguageModelling
from minigpt.optim import ParameterGroup
from minigpt.parameters import Parameter
from minigpt.training import TrainConfig, checkpoints, first_nonfinite, interruptible, team_size, train

posix = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")

LETTERS = "abcdefg "
TEXT = "".join(np.random.default_rng(1).choice(list(LETTERS), 600))
OTHER = "".join(np.random.default_rng(2).choice(list(LETTERS), 150))
TOKENIZER = CharTokenizer.train(LETTERS)
CONFIG = GPTConfig(8, 12, 12, 2, 2, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
BATCHES = language_batches(np.array(TOKENIZER.encode(TEXT[:60])), 4, 12, 0, "text")
VALIDATION = text_batches(np.array(TOKENIZER.encode(OTHER)), 12, 5)
# Sixty characters are soon learnt by heart: the loss on others rises after a few evaluations.
SETTINGS = {"steps": 24, "lr": 2e-2, "workers": 1, "eval_every": 3, "checkpoint_every": 4, "log_every": 2}


def new_model(config: GPTConfig = CONFIG) -> GPT:
    return GPT(config, seed=1)


def run(directory=None, model=None, batches=BATCHES, validation=VALIDATION, **settings):
    """Train; what is no setting of `TrainConfig` goes to `train`."""
    model = model or new_model()
    others = {k: settings.pop(k) for k in ("groups", "callbacks", "resume", "objective") if k in settings}
    objective = others.pop("objective", LanguageModelling())
    config = TrainConfig(**{**SETTINGS, "checkpoint_every": 4 if directory else 0} | settings)
    history = train(model, objective, batches, config, validation, directory=directory, progress=False, **others)
    return model, history


def state_of(directory: Path) -> dict:
    """What the newest checkpoint holds, without the time it took."""
    tensors, metadata = files.load_tensors(checkpoints(directory)[-1])
    state = json.loads(metadata["state"])
    del state["history"]["seconds"]
    return {**{name: array.tobytes() for name, array in tensors.items()}, **state}


def log_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def weights(model) -> dict[str, bytes]:
    return {p.name: p.data.tobytes() for p in model.parameters()}


def all_files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


class Crash(Exception):
    """Ends a run in the middle, with nothing saved, like a kill."""


def crash_at(step: int):
    def callback(state) -> None:
        if state.step == step:
            raise Crash

    return callback


# ------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number of 1 or more"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number of 1 or more"),
        ({"steps": "9"}, "steps is 9; it must be a whole number of 1 or more"),
        ({"accumulation": 0}, "accumulation is 0; it must be a whole number of 1 or more"),
        ({"warmup": -1}, "warmup is -1; it must be a whole number of 0 or more"),
        ({"eval_every": -1}, "eval_every is -1; it must be a whole number of 0 or more"),
        ({"patience": -1}, "patience is -1; it must be a whole number of 0 or more"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1; it must be a whole number of 0 or more"),
        ({"log_every": 0}, "log_every is 0; it must be a whole number of 1 or more"),
        ({"seed": -1}, "seed is -1; it must be a whole number of 0 or more"),
        ({"workers": -1}, "workers is -1; it must be a whole number of 0 or more"),
        ({"lr": float("nan")}, "lr is nan; it must be a number of 0 or more"),
        ({"lr": float("inf")}, "lr is inf; it must be a number of 0 or more"),
        ({"min_lr": -1.0}, "min_lr is -1.0; it must be a number of 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be a number of 0 or more"),
        ({"eps": -1e-8}, "eps is -1e-08; it must be a number of 0 or more"),
        ({"beta2": 1.0}, "beta1 and beta2 are 0.9 and 1.0; they must be in [0, 1)"),
        ({"max_norm": 0.0}, "max_norm is 0.0; it must be above 0"),
        ({"schedule": "cubic"}, "no schedule 'cubic'; there are cosine, linear, constant"),
        ({"patience": 1}, "patience and keep_best need eval_every: nothing is evaluated otherwise"),
        ({"keep_best": True}, "patience and keep_best need eval_every: nothing is evaluated otherwise"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        TrainConfig(**{"steps": 3} | settings)


def test_integers_of_numpy_are_welcome_and_ready_for_json():
    assert json.dumps(asdict(TrainConfig(steps=np.int64(3), seed=np.uint8(4))))


def test_settings_that_need_something_else():
    with pytest.raises(InputError, match="eval_every is set, but there is no validation data"):
        run(validation=[])
    with pytest.raises(InputError, match="checkpoints and resume need a directory"):
        run(checkpoint_every=2)
    with pytest.raises(InputError, match="checkpoints and resume need a directory"):
        run(resume=True)
    model = new_model()
    model.freeze()
    with pytest.raises(InputError, match="nothing to train"):
        run(model=model)


def test_team_size():
    assert team_size(3, "numpy", 8) == 3
    assert team_size(3, "numpy", 2) == 2
    assert team_size(5, "cupy", 8) == 1
    assert team_size(1, "numpy", 0) == 1
    assert 1 <= team_size(0, "numpy", 1000) <= (os.cpu_count() or 1)


# ------------------------------------------------------------------------------------------ what is recorded


def test_history_and_log(tmp_path):
    seen = []

    def look(state) -> None:
        seen.append((state.step, state.evaluated, len(state.history.losses), state.model is model))

    model = new_model()
    _, history = run(tmp_path, model, callbacks=[look], steps=7, warmup=2)
    assert history.steps == [1, 2, 3, 4, 5, 6, 7]
    assert history.eval_steps == [3, 6, 7]
    assert history.stopped == "done"
    assert history.best_loss == min(history.eval_losses)
    assert history.best_step == history.eval_steps[history.eval_losses.index(history.best_loss)]
    assert history.rates[:3] == pytest.approx([2e-2 / 3, 4e-2 / 3, 2e-2])
    assert len(history.losses) == len(history.norms) == len(history.rates) == 7
    assert all(0 < norm < 100 for norm in history.norms)
    assert history.losses[-1] < history.losses[0]
    assert history.seconds > 0
    assert seen == [(step, step in (3, 6, 7), step, True) for step in range(1, 8)]
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 7]
    for line in lines:
        index = line["step"] - 1
        assert line["loss"] == history.losses[index]
        assert line["lr"] == history.rates[index]
        assert line["grad_norm"] == history.norms[index]
    assert [line.get("validation_loss") for line in lines if line["step"] in (3, 6, 7)] == history.eval_losses
    assert all("validation_loss" not in line for line in lines if line["step"] in (2, 4))


def test_a_new_run_does_not_keep_anything_of_an_old_one(tmp_path):
    run(tmp_path, steps=9)
    run(tmp_path, steps=2, checkpoint_every=0, seed=5)
    assert [line["step"] for line in log_of(tmp_path)] == [2]
    assert all_files(tmp_path) == {"log.jsonl"}


def test_the_first_loss_is_that_of_the_model():
    model = new_model(GPTConfig(8, 12, 12, 2, 2))
    batch = BATCHES(0)
    expected, _ = model.loss_and_grads(batch["ids"], batch["targets"])
    _, history = run(model=model, steps=1)
    assert history.losses == [pytest.approx(expected, rel=1e-6)]


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_over_all_windows_is_that_of_the_text(workers):
    model, history = run(steps=3, workers=workers)
    score = evaluate_text(model, TOKENIZER, [OTHER])
    assert score.tokens == len(OTHER) - 1
    assert history.eval_losses[-1] == pytest.approx(score.loss, rel=1e-6)
    assert score.perplexity == pytest.approx(np.exp(score.loss))
    assert score.bits_per_byte == pytest.approx(score.loss * score.tokens / len(OTHER) / np.log(2))


def test_evaluation_refuses_what_it_cannot_do():
    model = new_model()
    for block_size, message in ((0, "block_size is 0"), (13, "does not fit into the model's context of 12")):
        with pytest.raises(InputError, match=message):
            evaluate_text(model, TOKENIZER, [OTHER], block_size)
    with pytest.raises(InputError, match="limit is 0; it must be 1 or more"):
        text_batches(np.arange(8), 4, 2, limit=0)
    with pytest.raises(InputError, match="too few to evaluate on"):
        evaluate_text(model, TOKENIZER, ["a"])
    model.h[0].mlp.c_fc.weight.data[:] = 3e38
    with pytest.raises(RunError, match="the loss is nan"):
        evaluate_text(model, TOKENIZER, [OTHER])


def test_a_limited_evaluation_has_windows_from_all_over_the_text():
    batches = text_batches(np.arange(101), 10, 4, limit=3)
    assert [batch["ids"].shape for batch in batches] == [(3, 10)]
    assert batches[0]["ids"][:, 0].tolist() == [0, 40, 90]


# ------------------------------------------------------------------------------------------ when it stops


def test_a_callback_can_stop(tmp_path):
    def stop(state) -> None:
        state.stop = state.step == 5

    _, history = run(tmp_path, callbacks=[stop])
    assert history.steps == [1, 2, 3, 4, 5]
    assert history.stopped == "stopped by a callback"
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000005.safetensors"]


def test_early_stop_and_the_best_weights():
    kept = {}

    def keep(state) -> None:
        if state.evaluated:
            kept[state.step] = weights(state.model)

    model, history = run(callbacks=[keep], patience=2, keep_best=True)
    assert history.stopped == "early stop"
    assert history.steps[-1] == history.best_step + 2 * SETTINGS["eval_every"] < SETTINGS["steps"]
    assert history.best_loss == min(history.eval_losses)
    assert weights(model) == kept[history.best_step] != kept[history.steps[-1]]
    model, history = run(patience=2)
    assert weights(model) == kept[history.steps[-1]]


def test_without_a_new_best_to_wait_for_a_run_goes_to_its_end():
    _, history = run(patience=9)
    assert history.stopped == "done"
    assert history.steps[-1] == SETTINGS["steps"]


# ------------------------------------------------------------------------------------------ going on


PLAIN: dict = {}
BEST = {"keep_best": True}
EARLY = {"keep_best": True, "patience": 2}


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        # before the first checkpoint, just before and on one, after it, the last step
        (PLAIN, [1]),
        (PLAIN, [4, 5, 23]),
        (PLAIN | {"accumulation": 2, "weight_decay": 0.5, "schedule": "linear"}, [11, 24]),
        (PLAIN | {"workers": 2}, [9]),
        (BEST, [3, 7, 14, 24]),
        (EARLY, [5, 8]),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, settings, points):
    expected, history = run(tmp_path / "whole", **settings)
    if "patience" in settings:
        assert history.stopped == "early stop"
        points = [*points, history.steps[-1] - 1, history.steps[-1]]
    for point in points:
        with pytest.raises(Crash):
            run(tmp_path / "parts", callbacks=[crash_at(point)], resume=True, **settings)
        with open(tmp_path / "parts" / "log.jsonl", "a") as log:
            log.write('{"step": 24, "loss": 1')  # as a kill leaves it
    found, resumed = run(tmp_path / "parts", resume=True, **settings)
    for model, name in ((expected, "a"), (found, "b")):
        model.save_pretrained(tmp_path / name)
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert saved[0] == saved[1]
    assert state_of(tmp_path / "parts") == state_of(tmp_path / "whole")
    assert asdict(resumed) | {"seconds": 0} == asdict(history) | {"seconds": 0}
    logs = [[line | {"seconds": 0} for line in log_of(tmp_path / part)] for part in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert all_files(tmp_path / "whole") == all_files(tmp_path / "parts")


def test_a_finished_run_resumed_is_still_finished(tmp_path):
    expected, history = run(tmp_path, **EARLY)
    before = {name: (tmp_path / name).read_bytes() for name in all_files(tmp_path) if "." in name}
    found, again = run(tmp_path, resume=True, **EARLY)
    assert weights(found) == weights(expected)
    assert again == history
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_a_run_stopped_by_a_callback_goes_on(tmp_path):
    expected, _ = run()

    def stop(state) -> None:
        state.stop = True

    run(tmp_path, callbacks=[stop])
    found, history = run(tmp_path, resume=True)
    assert history.stopped == "done"
    assert weights(found) == weights(expected)


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    expected, history = run(tmp_path / "a")
    found, resumed = run(tmp_path / "b", resume=True)
    assert resumed.steps == history.steps
    assert weights(found) == weights(expected)


def test_groups_and_frozen_parameters_go_on_too(tmp_path):
    def half_frozen() -> GPT:
        model = new_model()
        model.freeze(["*.h.0.*", "*.w?e.*"])
        return model

    groups = [ParameterGroup("*.h.1.*", lr_scale=0.3, weight_decay=0.2, schedule=lambda step: 0.01 / (step + 1))]
    expected, _ = run(model=half_frozen(), groups=groups)
    with pytest.raises(Crash):
        run(tmp_path, half_frozen(), groups=groups, callbacks=[crash_at(9)])
    found, _ = run(tmp_path, half_frozen(), groups=groups, resume=True)
    assert weights(found) == weights(expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 25}, "it was made with steps = 24, this run has 25"),
        ({"lr": 1e-2}, "it was made with lr = 0.02, this run has 0.01"),
        ({"schedule": "linear"}, "it was made with schedule = cosine, this run has linear"),
        ({"warmup": 1}, "it was made with warmup = 0, this run has 1"),
        ({"min_lr": 1e-3}, "it was made with min_lr = 0.0, this run has 0.001"),
        ({"beta1": 0.8}, "it was made with beta1 = 0.9, this run has 0.8"),
        ({"eps": 1e-6}, "it was made with eps = 1e-08, this run has 1e-06"),
        ({"weight_decay": 0.0}, "it was made with weight_decay = 0.1, this run has 0.0"),
        ({"max_norm": None}, "it was made with max_norm = 1.0, this run has None"),
        ({"accumulation": 2}, "it was made with accumulation = 1, this run has 2"),
        ({"eval_every": 2}, "it was made with eval_every = 3, this run has 2"),
        ({"patience": 9}, "it was made with patience = 0, this run has 9"),
        ({"keep_best": True}, "it was made with keep_best = False, this run has True"),
        ({"seed": 1}, "it was made with seed = 0, this run has 1"),
        ({"workers": 2}, "it was made with 1 workers, this run has 2: give workers=1"),
        ({"groups": [ParameterGroup("*", lr_scale=0.5)]}, "it was made with other parameter groups"),
        ({"model": GPT(GPTConfig(8, 12, 12, 1, 2))}, "it is of a model with other trainable parameters"),
        ({"model": GPT(CONFIG, 1, "float64")}, "it is of a model with other trainable parameters"),
        ({"batches": lambda step: BATCHES(step + 1)}, "it was made with other training batches"),
        ({"validation": VALIDATION[:-1]}, "it was made with other validation batches"),
    ],
)
def test_a_run_that_has_changed_is_not_resumed(tmp_path, changed, message):
    run(tmp_path, callbacks=[lambda state: setattr(state, "stop", True)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(InputError) as caught:
        run(tmp_path, resume=True, **changed)
    (newest,) = checkpoints(tmp_path)
    assert str(caught.value) == f"cannot resume from {newest}: {message}"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_other_frozen_weights_are_another_run(tmp_path):
    def frozen(seed: int) -> GPT:
        model = GPT(CONFIG, seed=seed)
        model.freeze(["*.wte.weight"])
        return model

    run(tmp_path, frozen(1), steps=4)
    with pytest.raises(InputError, match=r"it is of a model with other frozen weights$"):
        run(tmp_path, frozen(2), steps=4, resume=True)


def test_what_is_only_shown_or_kept_may_change(tmp_path):
    expected, _ = run(tmp_path / "a")
    with pytest.raises(Crash):
        run(tmp_path / "b", callbacks=[crash_at(9)])
    found, _ = run(tmp_path / "b", resume=True, checkpoint_every=5, log_every=1)
    assert weights(found) == weights(expected)


@posix
def test_kills_at_random_moments_leave_no_trace():
    # The short form of `python -m benchmarks.survival --kills 200`.
    report = survive(4, seed=int.from_bytes(os.urandom(4)))
    assert report.different == []
    assert report.kills.total() == sum(report.per_run) == 4


# ------------------------------------------------------------------------------------------ damaged checkpoints


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped after its first checkpoint."""
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Crash):
        run(directory, callbacks=[crash_at(6)])
    return directory


def copy_of(stopped: Path, directory: Path) -> Path:
    """A copy of the run; returns its checkpoint."""
    (directory / "checkpoints").mkdir()
    (directory / "log.jsonl").write_bytes((stopped / "log.jsonl").read_bytes())
    (newest,) = checkpoints(stopped)
    copy = directory / "checkpoints" / newest.name
    copy.write_bytes(newest.read_bytes())
    return copy


def refused(directory: Path) -> str:
    before = {path: path.read_bytes() for path in directory.rglob("*.*")}
    with pytest.raises(InputError) as caught:
        run(directory, resume=True)
    assert {path: path.read_bytes() for path in directory.rglob("*.*")} == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.3, 0.9, -1])
def test_a_truncated_checkpoint_is_refused(stopped, tmp_path, keep):
    checkpoint = copy_of(stopped, tmp_path)
    content = checkpoint.read_bytes()
    end = int(len(content) * keep) if isinstance(keep, float) else keep
    checkpoint.write_bytes(content[:end])
    assert refused(tmp_path).startswith(f"{checkpoint}: truncated")


def test_a_flipped_bit_anywhere_is_refused(stopped, tmp_path):
    checkpoint = copy_of(stopped, tmp_path)
    content = checkpoint.read_bytes()
    rng = np.random.default_rng(4)
    header = 8 + int.from_bytes(content[:8], "little")
    # the padding after the header is the one place whose bits mean nothing
    end = len(content[:header].rstrip(b" "))
    places = [*rng.integers(0, end, 25), content.index(b"sha256") + 2, *rng.integers(header, len(content), 10)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        checkpoint.write_bytes(damaged)
        assert str(checkpoint) in refused(tmp_path)


def test_another_file_in_the_place_of_a_checkpoint_is_refused(stopped, tmp_path):
    checkpoint = copy_of(stopped, tmp_path)
    files.save_tensors(checkpoint, {"parameters": np.zeros(3, np.float32)})
    assert refused(tmp_path) == f"{checkpoint} is not the checkpoint of a run"


def test_what_a_killed_process_left_is_swept_away(stopped, tmp_path):
    copy_of(stopped, tmp_path)
    host = files.storage._temporary_name(Path("x"), "tmp").name.split(".")[2].split("-")[0]
    dead = 2**22 + 5  # above any pid of Linux
    for _ in range(2):  # on the way, and when there is nothing left to do
        for path in (tmp_path / "checkpoints" / "step-000000008.safetensors", tmp_path / "log.jsonl"):
            path.with_name(f".{path.name}.{host}-{dead}-00000000-0.tmp").write_bytes(b"half of it")
        (tmp_path / "checkpoints" / "step-000000003.safetensors").write_bytes(b"not yet deleted")
        run(tmp_path, resume=True)
        assert all_files(tmp_path) == {"log.jsonl", "checkpoints", "checkpoints/step-000000024.safetensors"}


@pytest.mark.parametrize("end", [0, -5, -60])
def test_a_log_that_lost_its_end_goes_on_with_whole_lines(stopped, tmp_path, end):
    # As a power failure may leave it: only the checkpoint was forced to the disk.
    copy_of(stopped, tmp_path)
    content = (tmp_path / "log.jsonl").read_bytes().split(b'{"step": 6')[0]
    (tmp_path / "log.jsonl").write_bytes(content[: len(content) + end] if end else b"")
    run(tmp_path, resume=True)
    steps = [line["step"] for line in log_of(tmp_path)]
    assert steps[-3:] == [21, 22, 24]
    assert steps == sorted(set(steps))


def test_only_the_newest_checkpoint_is_kept(tmp_path):
    seen = []
    run(tmp_path, callbacks=[lambda state: seen.append([path.name for path in checkpoints(tmp_path)])])
    assert seen[3] == []  # callbacks come before the checkpoint of their step
    assert seen[4] == seen[7] == ["step-000000004.safetensors"]
    assert seen[8] == ["step-000000008.safetensors"]


# ------------------------------------------------------------------------------------------ not finite


class Spoils(Layer):
    """Passes on what comes, and spoils the gradient on its way back."""

    def __init__(self, inner: Layer) -> None:
        self.inner = inner

    def forward(self, x, ctx):
        y, back = self.inner.forward(x, ctx)
        return y, lambda dy, grads: back(dy * np.float32("inf"), grads)


class Grows(LanguageModelling):
    """Language modelling whose loss, or its gradient, is multiplied by a large number."""

    def __init__(self, loss: float = 1.0, gradient: float = 1.0) -> None:
        self.factors = loss, gradient

    def forward(self, model, batch, total, ctx):
        loss, backward = super().forward(model, batch, total, ctx)

        def scaled(grads) -> None:
            backward(grads)
            grads.buffer *= np.float32(self.factors[1])

        return loss * self.factors[0], scaled


def poisoned(what: str) -> tuple[GPT, LanguageModelling]:
    model, objective = new_model(), LanguageModelling()
    if what == "parameter":
        model.h[1].mlp.c_fc.bias.data[3] = np.nan
    elif what == "activation":
        model.h[1].mlp.c_fc.weight.data[:] = 3e38
    elif what == "gradient":
        model.replace("h.0.mlp.c_fc", lambda layer, name: Spoils(layer))
    elif what == "loss":
        objective = Grows(loss=1e308 * 10)
    else:
        objective = Grows(gradient=1e25)
    return model, objective


@pytest.mark.parametrize(
    ("what", "workers", "culprit"),
    [
        ("parameter", 1, "parameter transformer.h.1.mlp.c_fc.bias"),
        ("activation", 1, "output of transformer.h.1.mlp.c_fc"),
        ("activation", 2, "output of transformer.h.1.mlp.c_fc"),
        ("gradient", 1, "gradient of transformer.h.0.mlp.c_fc.bias"),
        ("gradient", 2, "gradient of transformer.h.0.mlp.c_fc.bias"),
        ("loss", 1, "the loss itself"),
        ("squares", 1, "the sum of squares, which overflows"),
    ],
)
def test_the_first_array_that_is_not_finite_is_named(what, workers, culprit):
    model, objective = poisoned(what)
    before = weights(model)
    with pytest.raises(RunError) as caught:
        run(model=model, objective=objective, workers=workers, max_norm=None)
    message = str(caught.value)
    assert message.startswith("step 1: loss is ")
    assert f"; first not finite: {culprit}. A smaller learning rate" in message
    assert len(message.splitlines()) == 1
    assert weights(model) == before
    assert RunError.exit_code == 1


def test_a_gradient_whose_squares_overflow_is_clipped_like_any_other():
    expected, _ = run(steps=3, max_norm=0.01)
    found, history = run(steps=3, max_norm=0.01, objective=Grows(gradient=1e25))
    assert min(history.norms) > 1e24
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        np.testing.assert_allclose(p.data, q.data, atol=1e-4)


class Marked(LanguageModelling):
    """Language modelling that overflows on rows marked with a 2."""

    def forward(self, model, batch, total, ctx):
        loss, backward = super().forward(model, batch, total, ctx)
        largest = np.float32(3e38) * batch["mark"].max().astype(np.float32)
        ctx.see("the marked rows", largest)
        return loss if np.isfinite(largest) else float("nan"), backward


def marked(batch: dict[str, np.ndarray], last: int = 1) -> dict[str, np.ndarray]:
    mark = np.ones(len(batch["ids"]), np.int64)
    mark[-1] = last
    return batch | {"mark": mark}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_divergence_on_the_way_leaves_the_last_good_weights(tmp_path, workers):
    # The fourth step overflows, in a row that the last worker has.
    kept = {}
    model = new_model()
    with pytest.raises(RunError, match=r"^step 4: loss is nan, .*; first not finite: output of the marked rows\. A"):
        run(
            tmp_path,
            model,
            lambda step: marked(BATCHES(step), 2 if step == 3 else 1),
            [marked(batch) for batch in VALIDATION],
            objective=Marked(),
            workers=workers,
            checkpoint_every=1,
            callbacks=[lambda state: kept.update(weights(state.model))],
        )
    assert weights(model) == kept != weights(new_model())
    assert all_files(tmp_path) == {"log.jsonl", "checkpoints", "checkpoints/step-000000003.safetensors"}
    assert [line["step"] for line in log_of(tmp_path)] == [2, 3]


def test_the_search_meets_the_same_dropout():
    # Half of all masks drop the one number that doubling makes infinite: the search has to draw the step's own.
    one = {name: array[:1, :1] for name, array in BATCHES(0).items()}
    stopped = 0
    for seed in range(8):
        model = new_model(GPTConfig(8, 12, 12, 2, 2, embd_pdrop=0.5))
        model.embedding.wpe.data[0, 0] = 3e38
        messages = []
        try:
            run(model=model, steps=1, seed=seed, batches=lambda step: one, eval_every=0)
        except RunError as error:
            messages.append(str(error))
        stopped += len(messages)
        assert all("first not finite: output of transformer.embedding." in message for message in messages)
    assert 0 < stopped < 8


def test_a_validation_loss_that_is_not_finite_stops_the_run():
    validation = [marked(batch) for batch in VALIDATION]
    validation[-1] = marked(VALIDATION[-1], 2)
    with pytest.raises(RunError) as caught:
        run(batches=lambda step: marked(BATCHES(step)), validation=validation, objective=Marked())
    assert str(caught.value) == "step 3: validation loss is nan; first not finite: output of the marked rows"


def test_all_finite_is_not_blamed_on_anything():
    model, batch = new_model(), BATCHES(0)
    found = first_nonfinite(model, LanguageModelling(), [(batch, 48.0, Context(model.backend, grad=True))])
    assert found == "the sum of squares, which overflows"


# ------------------------------------------------------------------------------------------ ids and shapes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ids", 8, r"token ids: id 8 at position 5 is outside the vocabulary \(allowed: 0 to 7\)"),
        ("ids", -1, r"token ids: id -1 at position 5 is outside the vocabulary \(allowed: 0 to 7\)"),
        ("targets", 8, r"targets: id 8 at position 5 is outside the vocabulary \(allowed: 0 to 7\)"),
        ("targets", -1, r"targets: id -1 at position 5 is outside the vocabulary \(allowed: 0 to 7\)"),
    ],
)
def test_ids_outside_the_vocabulary_are_named(name, value, message):
    def batches(step: int):
        batch = BATCHES(step)
        batch[name][0, 5] = value
        return batch

    with pytest.raises(InputError, match=f"^{message}$"):
        run(batches=batches)


def test_rows_longer_than_the_context_are_refused():
    batches = language_batches(np.array(TOKENIZER.encode(TEXT)), 2, 13, 0, "text")
    with pytest.raises(InputError, match=r"^13 tokens do not fit into the model's context of 12$"):
        run(batches=batches)


# ------------------------------------------------------------------------------------------ a full disk


class Limit:
    """No file may grow beyond so many bytes: for the system the same as a disk that is full."""

    def __init__(self, at_step: int, nbytes: int) -> None:
        self.at_step, self.nbytes = at_step, nbytes

    def __call__(self, state) -> None:
        if state.step == self.at_step:
            self.resource.setrlimit(self.resource.RLIMIT_FSIZE, (self.nbytes, self.before[1]))

    def __enter__(self):
        import resource

        self.resource = resource
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        return self

    def __exit__(self, *error) -> None:
        self.resource.setrlimit(self.resource.RLIMIT_FSIZE, self.before)


@posix
def test_a_disk_that_fills_up_at_a_checkpoint(tmp_path):
    expected, _ = run()
    with Limit(5, 20_000) as limit, pytest.raises(RunError) as caught:
        run(tmp_path, callbacks=[limit])
    path = tmp_path / "checkpoints" / "step-000000008.safetensors"
    assert str(caught.value) == f"file size limit reached while writing {path}; nothing was changed"
    assert all_files(tmp_path) == {"log.jsonl", "checkpoints", "checkpoints/step-000000004.safetensors"}
    found, _ = run(tmp_path, resume=True)
    assert weights(found) == weights(expected)


@posix
def test_a_disk_that_fills_up_at_the_log(tmp_path):
    with Limit(1, 400) as limit, pytest.raises(RunError) as caught:
        run(tmp_path, callbacks=[limit], log_every=1, checkpoint_every=0)
    assert str(caught.value) == f"cannot write {tmp_path / 'log.jsonl'}: File too large"
    lines = log_of(tmp_path)  # whole ones
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert 2 <= len(lines) <= 5


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full of Linux")
def test_a_full_disk_from_the_start(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"^cannot write .*log\.jsonl: No space left on device$"):
        run(tmp_path)


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"^cannot write to .*file: File exists$"):
        run(tmp_path / "file")


# ------------------------------------------------------------------------------------------ Ctrl-C


def interrupt(step: int):
    def callback(state) -> None:
        if state.step == step:
            signal.raise_signal(signal.SIGINT)

    return callback


@pytest.mark.parametrize("checkpoint_every", [4, 0])
def test_ctrl_c_finishes_the_step_and_saves(tmp_path, checkpoint_every):
    expected, _ = run()
    before = signal.getsignal(signal.SIGINT)
    model, history = run(tmp_path, callbacks=[interrupt(6)], checkpoint_every=checkpoint_every)
    assert signal.getsignal(signal.SIGINT) is before
    assert history.stopped == "interrupted"
    assert history.steps[-1] == 6
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000006.safetensors"]
    found, history = run(tmp_path, resume=True, checkpoint_every=checkpoint_every)
    assert history.stopped == "done"
    assert weights(found) == weights(expected)
    assert weights(found) != weights(model)


def test_ctrl_c_in_the_last_step_finds_the_run_done():
    _, history = run(callbacks=[interrupt(SETTINGS["steps"])])
    assert history.stopped == "done"


def test_ctrl_c_keeps_the_last_weights_even_where_the_best_are_wanted():
    model, history = run(callbacks=[interrupt(20)], keep_best=True)
    last, _ = run(callbacks=[lambda state: setattr(state, "stop", state.step == 20)])
    assert history.best_step < 20
    assert weights(model) == weights(last)


def test_a_second_ctrl_c_interrupts_at_once():
    def twice(state) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still there")

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[twice])


@posix
def test_ctrl_c_stays_ignored_where_it_was():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, history = run(callbacks=[interrupt(2)], steps=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert history.stopped == "done"


def test_a_thread_leaves_signals_alone():
    def body() -> None:
        with interruptible() as interrupted:
            seen.append((signal.getsignal(signal.SIGINT), interrupted()))

    seen: list = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGINT), False)]


# ------------------------------------------------------------------------------------------ on another library


def test_training_and_resume_on_another_array_library(tmp_path):
    from tests.standin import BACKEND

    assert "cupy" not in sys.modules

    def standin() -> GPT:
        return GPT(GPTConfig(8, 12, 12, 2, 2), seed=1, backend=BACKEND)

    def bytes_of(model) -> dict[str, bytes]:
        return {name: array.tobytes() for name, array in model.state().items()}

    expected, history = run(tmp_path / "whole", standin(), steps=6, keep_best=True)
    with pytest.raises(Crash):
        run(tmp_path / "parts", standin(), steps=6, keep_best=True, callbacks=[crash_at(5)])
    found, _ = run(tmp_path / "parts", standin(), steps=6, keep_best=True, resume=True)
    assert bytes_of(found) == bytes_of(expected)
    _, ours = run(model=new_model(GPTConfig(8, 12, 12, 2, 2)), steps=6, keep_best=True)
    assert ours.losses == pytest.approx(history.losses, rel=1e-4)


def test_two_parameters_of_one_name_are_refused():
    model = new_model()
    model.extra = Parameter("transformer.wte.weight", model.wte.data.copy())
    with pytest.raises(ValueError, match=r"two parameters are called transformer\.wte\.weight"):
        run(model=model)
