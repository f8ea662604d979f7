"""What a user types for a GPU, on a fake CuPy: train, generate and eval, and a lesson."""

import json

import numpy as np
import pytest

from lessons.common import runner
from minigpt import GPT, GPTConfig, files
from minigpt.cli import main
from tests.cuda import emulated, fake_cupy

pytestmark = pytest.mark.skipif(emulated.COMPILER is None, reason="compiles CUDA C++ with g++, which is not installed")

TEXT = " ".join(np.random.default_rng(0).choice(["the", "cat", "saw", "a", "dog"], 300)) + "\n"


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    return fake_cupy.install(monkeypatch)


def train(text, out, *more):
    return main([
        "train", "--data", str(text), "--out", str(out), "--preset", "nano", "--n-embd", "8", "--n-layer", "1",
        "--n-head", "2", "--n-positions", "8", "--tokenizer", "char", "--steps", "2", "--batch-size", "2",
        "--eval-every", "2", "--eval-windows", "2", "--warmup", "0", "--quiet", "--backend", "cupy", *more,
    ])  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_train_generate_eval(cupy, tmp_path, capsys, precision):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(TEXT)
    chosen = ["--precision", precision]
    fake_cupy.RawModule.launched.clear()
    assert train(text, out, *chosen) == 0
    assert any(name.startswith("adamw_update") for name in fake_cupy.RawModule.launched)
    settings = files.read_json(out / "run.json")["settings"]
    assert (settings["backend"], settings["precision"]) == ("cupy", precision)
    capsys.readouterr()
    device = ["--model", str(out), "--backend", "cupy", *chosen]
    assert main(["generate", "--prompt", "the", "--max-new-tokens", "3", "--temperature", "0", *device]) == 0
    assert capsys.readouterr().out.startswith("the")
    assert main(["eval", "--data", str(text), "--json", *device]) == 0
    on_device = json.loads(capsys.readouterr().out)
    assert main(["eval", "--data", str(text), "--json", "--model", str(out)]) == 0
    difference = abs(on_device["loss"] / json.loads(capsys.readouterr().out)["loss"] - 1)
    assert difference < {"float32": 1e-6, "tf32": 1e-3, "bfloat16": 1e-2}[precision]
    if precision != "float32":
        assert difference > 1e-9, "the precision does not show"


def test_a_lesson_says_where_it_ran(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")

    def lesson(run):
        model = GPT(GPTConfig(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=2), backend=run.backend)
        run.report("loss", model.loss_and_grads([[1, 2]], [[2, 3]])[0], "nats")

    arguments = ["--out", str(tmp_path), "--backend", "cupy", "--precision", "tf32"]
    assert runner.main(3, "About.", lesson, arguments) == 0
    assert files.read_json(tmp_path / "lesson-03" / "record.json")["settings"]["backend"] == "cupy:tf32"
