"""The command line: what it prints, the one line and the exit code of everything that can go wrong, Ctrl-C."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from minigpt import GPT, CharTokenizer, Tokenizer, cli, files
from minigpt.cli import build_parser, main, recipe_names, recipe_options
from minigpt.config import PRESETS, preset
from minigpt.training import checkpoints
from tests.helpers import die_with_parent

ROOT = Path(cli.__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors of POSIX")

WORDS = ["the", "cat", "saw", "a", "dog", "that", "ran", "to", "mat"]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 800)) + "\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def options(text: Path, out: Path, **changes) -> list[str]:
    """Arguments of a tiny run; None leaves one out, True is a flag."""
    settings = {
        "data": text, "out": out, "preset": "nano", "tokenizer": "char", "steps": 4, "batch-size": 4, "warmup": 2,
        "eval-every": 2, "checkpoint-every": 2, "log-every": 1, "workers": 1, "quiet": True,
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    arguments = ["train"]
    for name, value in settings.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


@pytest.fixture(scope="module")
def model(text, tmp_path_factory) -> Path:
    """A model directory, as training leaves it."""
    out = tmp_path_factory.mktemp("model") / "out"
    assert main(options(text, out)) == 0
    return out


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """A copy of the model to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def all_files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def refused(capsys, arguments: list, *words: str, code: int = 2) -> str:
    """The one line of a command that fails with this exit code; it has all of `words`."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("minigpt: ")
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def usage(capsys, arguments: list, *words: str) -> None:
    """A command that argparse refuses."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    for word in words:
        assert word in printed.err.splitlines()[-1]


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", ["train", "generate", "eval"])
def test_help_names_and_explains_every_option(capsys, command):
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    (commands,) = build_parser()._subparsers._group_actions
    for action in commands.choices[command]._actions:
        assert all(option in shown for option in action.option_strings)
        assert action.help
        assert " ".join(action.help.split()[:3]) in shown
    assert "None" not in shown
    assert "False" not in shown


def test_the_top_level_help_has_the_commands_and_exit_codes(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("train", "generate", "eval", "0 done", "2 the input is wrong", "1 the run failed", "130"):
        assert word in shown


def test_no_command_and_unknown_options(capsys):
    usage(capsys, [], "required")
    usage(capsys, ["train"], "--out")
    usage(capsys, ["paint"], "paint")
    usage(capsys, ["generate", "--model", "x", "--colour", "red"], "--colour red")


# ------------------------------------------------------------------------------------------ train


def test_train_leaves_a_model_its_tokenizer_and_a_record(capsys, text, tmp_path):
    out = tmp_path / "deep" / "out"
    assert main(options(text, out)) == 0
    printed = capsys.readouterr()
    assert re.match(r"4 steps in \d+ s, training loss \d\.\d{4}, validation loss \d\.\d{4} \(best", printed.out)
    assert f"generate --model {out}" in printed.out
    assert "parameters, " in printed.err
    assert len(printed.err.splitlines()) == 1
    assert set(all_files(out)) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "vocab.json",
        "tokenizer_config.json",
        "run.json",
        "log.jsonl",
        "checkpoints/step-000000004.safetensors",
    }
    record = json.loads((out / "run.json").read_text())
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert record["result"]["steps"] == 4
    assert record["result"]["stopped"] == "done"
    assert record["result"]["validation_loss"] == lines[-1]["validation_loss"]
    assert record["settings"]["lr"] == 2e-3
    assert record["data"]["sha256"] == files.sha256_of_file(text)
    assert record["config"]["n_embd"] == PRESETS["nano"].n_embd
    loaded = GPT.from_pretrained(out)
    assert loaded.config.vocab_size == CharTokenizer.from_pretrained(out).vocab_size == len(set(TEXT))


def test_a_bpe_model_can_be_trained_further(text, tmp_path):
    assert main(options(text, tmp_path / "a", tokenizer="bpe", vocab_size=260, n_positions=16, n_embd=16)) == 0
    first = GPT.from_pretrained(tmp_path / "a")
    assert (first.config.n_positions, first.config.n_embd, first.config.vocab_size) == (16, 16, 260)
    assert first.config.eos_token_id == 259
    further = options(text, tmp_path / "b", init=tmp_path / "a", preset=None, tokenizer=None, steps=2, lr=0, min_lr=0)
    assert main(further) == 0
    second = GPT.from_pretrained(tmp_path / "b")
    assert second.config == first.config
    assert all(np.array_equal(a, b) for a, b in zip(first.state().values(), second.state().values(), strict=True))
    assert Tokenizer.from_pretrained(tmp_path / "b").merges == Tokenizer.from_pretrained(tmp_path / "a").merges


def test_labelled_texts_and_pairs_can_be_trained_on_and_joined(text, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"the cat {i},{i % 2}\n" for i in range(40)))
    pairs = [json.dumps({"prompt": f"the dog {i} ", "completion": "ran"}) for i in range(40)]
    (tmp_path / "b.jsonl").write_text("\n".join(pairs))
    (tmp_path / "c+d.txt").write_text(TEXT)
    joined = f"{tmp_path / 'a.csv'}+{tmp_path / 'b.jsonl'}"
    assert main(options(joined, tmp_path / "out", validation=0.3, test=0)) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["data"]["splits"]["test"]["records"] == 0
    assert 10 <= record["data"]["splits"]["validation"]["records"] <= 40
    assert main(options(tmp_path / "c+d.txt", tmp_path / "out2")) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["there is no such file"]),
        (b"", ["is empty"]),
        (b" \n\t ", ["is empty"]),
        (b"text\0more", ["byte 4 is zero", "a binary file"]),
        ("text".encode("utf-16"), ["UTF-16"]),
        (b"caf\xe9 au lait", ["byte 3 (0xe9, line 1) is not UTF-8"]),
        (b"x", ["1 characters are too few, nothing is left for train"]),
        (b"abcdefgh" * 4, ["tokens, too few for one window: block_size=32 needs at least 33"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_bad_data(capsys, model, tmp_path, content, words, command):
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    if command == "eval":
        if "too few for one window" in words[0]:
            words = ["is not among the"]  # for a model with another alphabet
        if "nothing is left for train" in words[0]:
            words = ["nothing is left for"]
        refused(capsys, ["eval", "--model", model, "--data", path], *words)
        return
    refused(capsys, options(path, tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, ["give the text to train on with --data"]),
        ({"data": "."}, [".: is a directory, a file is needed"]),
        ({"data": "tinyshakespeare.text"}, ["there is no such file"]),
        ({"n_embd": 33}, ["n_embd must be a multiple of n_head, got n_embd 33 and n_head 2"]),
        ({"n_head": 5}, ["n_embd must be a multiple of n_head"]),
        ({"dropout": 1.0}, ["pdrop must be at least 0 and below 1, got 1.0"]),
        ({"block_size": 33}, ["--block-size 33 is longer than the context, 32"]),
        ({"tokenizer": "bpe", "vocab_size": 200}, ["vocab_size must be an integer of at least 257"]),
        ({"tokenizer": "nowhere"}, ["nowhere"]),
        ({"init": "nowhere"}, ["nowhere: no such directory"]),
        ({"init": "x", "n_layer": 3}, ["n_layer is given, but --init x comes with its own"]),
        ({"init": "x", "dropout": 0.5}, ["dropout is given, but --init x comes with its own"]),
        ({"steps": 0}, ["steps is 0; it must be a whole number of 1 or more"]),
        ({"accumulation": 0}, ["accumulation is 0"]),
        ({"workers": -2}, ["workers is -2"]),
        ({"warmup": -1}, ["warmup is -1"]),
        ({"eval_every": -1}, ["eval_every is -1"]),
        ({"log_every": 0}, ["log_every is 0"]),
        ({"lr": "nan"}, ["lr is nan"]),
        ({"lr": -1}, ["lr is -1"]),
        ({"min_lr": "inf"}, ["min_lr is inf"]),
        ({"beta2": 1.5}, ["beta1 and beta2 are 0.9 and 1.5"]),
        ({"max_norm": -1}, ["max_norm is -1.0; it must be above 0"]),
        ({"eval_every": 0, "patience": 3}, ["patience and keep_best need eval_every"]),
        ({"validation": 0.7, "test": 0.5}, ["validation=0.7, test=0.5: shares"]),
        ({"validation": 0, "test": 0}, ["has nothing in its validation split"]),
        ({"recipe": "haiku"}, ["no recipe 'haiku'; there are shakespeare-char, or give a JSON file"]),
    ],
)
def test_bad_settings(capsys, text, tmp_path, changes, words):
    refused(capsys, options(text, tmp_path / "out", **changes), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": "many"}, ["--steps", "invalid int value: 'many'"]),
        ({"batch_size": 0}, ["--batch-size", "0 is too small, it must be 1 or more"]),
        ({"seed": -1}, ["--seed", "-1 is too small, it must be 0 or more"]),
        ({"n_layer": 0}, ["--n-layer", "0 is too small"]),
        ({"block_size": 0}, ["--block-size", "0 is too small"]),
        ({"eval_windows": -1}, ["--eval-windows", "-1 is too small"]),
        ({"preset": "huge"}, ["--preset", "invalid choice: 'huge'"]),
        ({"schedule": "cubic"}, ["--schedule", "invalid choice"]),
    ],
)
def test_settings_of_the_wrong_kind(capsys, text, tmp_path, changes, words):
    usage(capsys, options(text, tmp_path / "out", **changes), *words)
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there(capsys, text, model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    words = "--backend 'cupy' needs the package cupy"
    refused(capsys, options(text, tmp_path / "out", backend="cupy"), words)
    refused(capsys, ["generate", "--model", model, "--prompt", "a", "--backend", "cupy"], words)
    refused(capsys, ["eval", "--model", model, "--data", text, "--backend", "cupy"], words)
    words = "--precision 'tf32' is for the backend cupy"
    refused(capsys, options(text, tmp_path / "out", precision="tf32"), words)
    refused(capsys, ["generate", "--model", model, "--prompt", "a", "--precision", "tf32"], words)
    refused(capsys, ["eval", "--model", model, "--data", text, "--precision", "tf32"], words)


def test_out_that_cannot_be_written(capsys, text, model, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    refused(capsys, options(text, file), "--out", "is a file; a directory is needed")
    refused(capsys, options(text, file / "below" / "it"), f"{file} is a file; a directory is needed")
    assert file.read_text() == "mine"
    before = all_files(model)
    refused(capsys, options(text, model), "holds a run; go on with --resume, or give another --out")
    assert all_files(model) == before
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(capsys, options(text, tmp_path / "new"), f"no permission to write in {tmp_path}")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="/proc of Linux, where nobody can make anything")
def test_a_directory_that_the_system_refuses_to_make(capsys, text):
    capsys.readouterr()
    assert main(options(text, Path("/proc/new"))) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "minigpt: /proc/new: No such file or directory"


def test_a_model_is_not_overwritten(capsys, text, copy):
    shutil.rmtree(copy / "checkpoints")
    before = all_files(copy)
    for changes in ({}, {"resume": True}):
        refused(capsys, options(text, copy, **changes), "holds a model, which would be overwritten")
    assert all_files(copy) == before


# ------------------------------------------------------------------------------------------ recipes


def test_recipes_are_settings_that_train_knows():
    assert "shakespeare-char" in recipe_names()
    for name in recipe_names():
        arguments = build_parser().parse_args(["train", *recipe_options(name), "--out", "x"])
        assert arguments.steps > 0


def test_what_the_user_gives_wins_over_a_recipe_even_a_default(text, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"about": "tiny", "steps": 3, "lr": 1e-3, "keep_best": True, "seed": 7}))
    assert main([*options(text, tmp_path / "out", lr=2e-3, steps=None), "--recipe", str(recipe)]) == 0
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert (settings["steps"], settings["seed"], settings["keep_best"]) == (3, 7, True)
    assert settings["lr"] == 2e-3 == build_parser().parse_args(["train", "--out", "x"]).lr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"step": 3}', ["has a setting 'step' that train does not know"]),
        ('{"run": "x"}', ["has a setting 'run' that train does not know"]),
        ('{"out": "x"}', ["has a setting 'out' that train does not know"]),
        ('{"resume": true}', ["has a setting 'resume' that train does not know"]),
        ('{"keep_best": 1}', ["keep_best cannot be 1"]),
        ('{"steps": true}', ["steps cannot be true"]),
        ("[1]", ["must be a JSON object, got list"]),
        ("{", ["not JSON"]),
        ("\xff", ["not UTF-8 at byte 0"]),
    ],
)
def test_bad_recipes(capsys, text, tmp_path, content, words):
    recipe = tmp_path / "recipe.json"
    recipe.write_bytes(content.encode("latin-1"))
    refused(capsys, [*options(text, tmp_path / "out"), "--recipe", recipe], str(recipe), *words)


def test_values_in_a_recipe_are_checked_like_options(capsys, text, tmp_path):
    recipe = tmp_path / "recipe.json"
    for content, words in (({"seed": "x"}, ["--seed", "'x'"]), ({"seed": 1.5}, ["--seed", "'1.5'"])):
        recipe.write_text(json.dumps(content))
        usage(capsys, [*options(text, tmp_path / "out"), "--recipe", recipe], *words)


# ------------------------------------------------------------------------------------------ resume


def test_resume_without_a_run_starts_one_and_says_so(capsys, text, model, tmp_path):
    assert main(options(text, tmp_path / "out", resume=True)) == 0
    assert f"no checkpoint in {tmp_path / 'out'}: starting from the beginning\n" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_resume_of_a_finished_run_changes_nothing(text, copy):
    before = all_files(copy)
    assert main(options(text, copy, resume=True)) == 0
    after = all_files(copy)
    times = [json.loads(files.pop("run.json"))["machine"].pop("date") for files in (before, after)]
    assert len(times) == 2
    assert after == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 5}, ["it was made with steps = 4, this run has 5"]),
        ({"lr": 0.5}, ["it was made with lr = 0.002, this run has 0.5"]),
        ({"batch_size": 5}, ["it was made with batch_size = 4, this run has 5"]),
        ({"block_size": 16}, ["it was made with block_size = None, this run has 16"]),
        ({"seed": 1}, ["it was made with seed = 0, this run has 1"]),
        ({"n_layer": 1}, ["it was made with n_layer = None, this run has 1"]),
        ({"dropout": 0.1}, ["it was made with dropout = 0.0, this run has 0.1"]),
        ({"dtype": "float64"}, ["it was made with dtype = float32, this run has float64"]),
        ({"tokenizer": "bpe"}, ["it was made with tokenizer = char, this run has bpe"]),
        ({"eval_windows": 2}, ["it was made with eval_windows = 200, this run has 2"]),
        ({"validation": 0.2}, ["it was made with validation = 0.05, this run has 0.2"]),
        ({"keep_best": True}, ["it was made with keep_best = False, this run has True"]),
        ({"workers": 2}, ["it was made with 1 workers, this run has 2: give workers=1"]),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(capsys, text, copy, changes, words):
    before = all_files(copy)
    capsys.readouterr()
    assert main(options(text, copy, resume=True, **changes)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("minigpt: cannot resume")
    assert words[0] in line
    del before["run.json"]
    assert before.items() <= all_files(copy).items()


def test_a_run_on_other_data_is_not_resumed(capsys, text, copy, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("cat", "tac", 1))
    refused(capsys, options(other, copy, resume=True), "it was trained on other data than other.txt is now")
    other.write_text(TEXT)  # the same text elsewhere is the same
    assert main(options(other, copy, resume=True)) == 0


@pytest.mark.parametrize("record", [None, "{", "{}", '{"settings": []}', '{"settings": null}', '{"data": null}'])
def test_a_damaged_record_of_the_run(capsys, text, copy, record):
    settings = json.loads((copy / "run.json").read_text())["settings"]
    (copy / "run.json").unlink()
    if record == '{"data": null}':
        record = json.dumps({"settings": settings, "data": None})
    if record is not None:
        (copy / "run.json").write_text(record)
    refused(capsys, options(text, copy, resume=True), "run.json")


def test_a_damaged_checkpoint_to_go_on_from(capsys, text, copy):
    (checkpoint,) = checkpoints(copy)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-7])
    capsys.readouterr()
    assert main(options(text, copy, resume=True)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"minigpt: {checkpoint}: truncated")


# ------------------------------------------------------------------------------------------ damaged models


def read_raw(path: Path) -> tuple[dict, bytearray]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]  # without our checksum, so that the other checks are reached
    return header, bytearray(content[8 + length :])


def write_raw(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


WTE, BIAS = "transformer.wte.weight", "transformer.ln_f.bias"


def missing(header, data):
    ends = header.pop(BIAS)["data_offsets"]
    del data[ends[0] : ends[1]]
    for entry in header.values():
        entry["data_offsets"] = [e - (ends[1] - ends[0] if e >= ends[1] else 0) for e in entry["data_offsets"]]


def extra(header, data):
    header["transformer.h.9.ln_1.bias"] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
    data += bytes(8)


def misshaped(header, data):
    header[WTE]["shape"].reverse()


def not_finite(header, data):
    start = header[WTE]["data_offsets"][0]
    data[start + 8 : start + 12] = struct.pack("<f", float("nan"))


def infinite(header, data):
    start = header[BIAS]["data_offsets"][0]
    data[start : start + 4] = struct.pack("<f", float("-inf"))


def hole(header, data):
    data += bytes(16)
    last = max(header.values(), key=lambda entry: entry["data_offsets"])
    last["data_offsets"] = [end + 16 for end in last["data_offsets"]]


def overlap(header, data):
    entries = sorted(header.values(), key=lambda entry: entry["data_offsets"])
    width = entries[-1]["data_offsets"][1] - entries[-1]["data_offsets"][0]
    entries[-1]["data_offsets"] = [end - 4 for end in entries[-1]["data_offsets"]]
    del data[-4:]
    assert width > 4


def beyond(header, data):
    del data[-4:]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, [f"missing: {BIAS}"]),
        (extra, ["left over: transformer.h.9.ln_1.bias"]),
        (misshaped, [f"wrong shape: {WTE} (32, "]),
        (not_finite, [f"tensor '{WTE}' holds nan at (0, 2)"]),
        (infinite, [f"tensor '{BIAS}' holds -inf at (0)"]),
        (hole, ["a hole of 16 bytes"]),
        (overlap, ["overlap"]),
        (beyond, ["truncated"]),
    ],
)
def test_damaged_weights(capsys, copy, damage, words):
    path = copy / "model.safetensors"
    header, data = read_raw(path)
    write_raw(path, header, data)
    assert main(["generate", "--model", str(copy), "--prompt", "the", "--max-new-tokens", "1"]) == 0
    damage(header, data)
    write_raw(path, header, data)
    before = all_files(copy)
    refused(capsys, ["generate", "--model", copy, "--prompt", "the"], str(path), *words)
    assert all_files(copy) == before


def test_a_flipped_bit_is_noticed(capsys, text, copy, tmp_path):
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    refused(capsys, ["generate", "--model", copy, "--prompt", "the"], str(path), "damaged: the SHA-256")
    refused(capsys, ["eval", "--model", copy, "--data", text], str(path), "damaged: the SHA-256")
    refused(capsys, options(text, tmp_path / "new", init=copy), str(path), "damaged: the SHA-256")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", None, ["no model.safetensors in it"]),
        ("model.safetensors", b"", ["truncated: 0 bytes"]),
        ("model.safetensors", b"\xff" * 64, ["not a safetensors file"]),
        ("config.json", None, ["config.json: no such file"]),
        ("config.json", b"{", ["config.json: not JSON"]),
        ("config.json", b"[]", ["config.json: must be a JSON object"]),
        ("config.json", b'{"model_type": "bert"}', ["model_type must be 'gpt2'"]),
        ("vocab.json", None, ["vocab.json"]),
        ("vocab.json", b'{"a": 0, "b": 7}', ["vocab.json", "none has 1"]),
        ("tokenizer_config.json", None, ["merges.txt"]),
    ],
)
def test_files_that_are_missing_or_something_else(capsys, copy, name, content, words):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    refused(capsys, ["generate", "--model", copy, "--prompt", "the"], *words)


def test_a_tokenizer_of_another_vocabulary(capsys, text, copy, tmp_path):
    CharTokenizer("abc").save_pretrained(copy)
    size = preset("nano", vocab_size=len(set(TEXT))).vocab_size
    words = f"the tokenizer has a vocabulary of 3 tokens, the model one of {size}"
    refused(capsys, ["generate", "--model", copy, "--prompt", "a"], words)
    refused(capsys, ["eval", "--model", copy, "--data", text], words)
    refused(capsys, options(text, tmp_path / "new", init=copy), words)


# ------------------------------------------------------------------------------------------ generate


def test_generate_continues_the_prompt(capsys, model):
    ask = ["generate", "--model", str(model), "--prompt", "the cat", "--max-new-tokens", "9"]
    assert main(ask) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert re.fullmatch(r"the cat.{9}\n?", first.out, re.DOTALL)
    assert main([*ask, "--seed", "0"]) == 0
    assert capsys.readouterr().out == first.out
    outputs = set()
    for seed in range(5):
        assert main([*ask, "--seed", str(seed)]) == 0
        outputs.add(capsys.readouterr().out)
    assert len(outputs) > 1


def test_generate_writes_what_the_context_has_room_for(capsys, model):
    assert main(["generate", "--model", str(model), "--prompt", "the"]) == 0
    assert len(capsys.readouterr().out) == PRESETS["nano"].n_positions + 1  # and a line end


def test_generate_several_samples_greedy_and_not(capsys, model):
    ask = ["generate", "--model", str(model), "--prompt", "a", "--max-new-tokens", "5", "--num-samples", "3"]
    assert main([*ask, "--temperature", "0"]) == 0
    samples = capsys.readouterr().out.split("\n" + "-" * 80 + "\n")
    assert len(samples) == 3
    assert len({sample.strip("\n") for sample in samples}) == 1
    assert main([*ask, "--temperature", "5"]) == 0
    assert len(set(capsys.readouterr().out.split("\n" + "-" * 80 + "\n"))) > 1
    assert main([*ask, "--top-k", "1"]) == 0
    assert len({s.strip("\n") for s in capsys.readouterr().out.split("\n" + "-" * 80 + "\n")}) == 1


def test_generate_stops_at_the_end_of_a_document(capsys, text, tmp_path):
    assert main(options(text, tmp_path / "a", tokenizer="bpe", vocab_size=257, steps=1, eval_every=0)) == 0
    model = GPT.from_pretrained(tmp_path / "a")
    for p in model.parameters():
        p.data[:] = 0
    model.ln_f.bias.data[0] = 1
    model.wte.data[256, 0] = 50  # the end of text is all that it ever says
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    model.save_pretrained(tmp_path / "a")
    capsys.readouterr()
    assert main(["generate", "--model", str(tmp_path / "a"), "--prompt", "so"]) == 0
    assert capsys.readouterr().out == "so\n"
    assert main(["generate", "--model", str(tmp_path / "a")]) == 0  # a new document needs no prompt
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "the cat " * 9], ["72 tokens do not fit into the model's context of 32"]),
        (["--prompt", "the", "--max-new-tokens", 30], ["3 tokens and 30 new ones do not fit", "context of 32"]),
        (["--prompt", "the Cat"], ["the character 'C' (U+0043) at position 4 is not among the"]),
        (["--prompt", "\udcff"], ["the character '\\udcff'"]),
        (["--prompt", ""], ["no token to begin a document with: give a --prompt"]),
        (["--prompt", "a", "--temperature", -1], ["temperature is -1.0"]),
        (["--prompt", "a", "--temperature", "nan"], ["temperature is nan"]),
        (["--prompt", "a", "--top-k", 0], ["top_k is 0"]),
        (["--prompt", "a", "--top-p", 0], ["top_p is 0.0"]),
        (["--prompt", "a", "--top-p", 1.5], ["top_p is 1.5"]),
    ],
)
def test_bad_requests(capsys, model, arguments, words):
    refused(capsys, ["generate", "--model", model, *arguments], *words)


def test_requests_of_the_wrong_kind(capsys, model):
    for option, value in (("--num-samples", 0), ("--max-new-tokens", -1), ("--seed", -1), ("--top-k", "x")):
        usage(capsys, ["generate", "--model", model, "--prompt", "a", option, value], option, str(value))


def test_a_model_that_is_not_there(capsys, text, tmp_path):
    for command in (["generate", "--prompt", "a"], ["eval", "--data", text]):
        refused(capsys, [*command, "--model", tmp_path / "none"], "none: no such directory")


# ------------------------------------------------------------------------------------------ eval


def test_eval_reports_the_loss_of_training(capsys, text, model):
    assert main(["eval", "--model", str(model), "--data", str(text), "--json"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    score = json.loads(printed.out)
    last = json.loads((model / "log.jsonl").read_text().splitlines()[-1])
    assert score["loss"] == pytest.approx(last["validation_loss"], rel=1e-6)
    assert score["perplexity"] == pytest.approx(np.exp(score["loss"]))
    assert score["bits_per_byte"] == pytest.approx(score["loss"] * score["tokens"] / score["bytes"] / np.log(2))
    assert (score["split"], score["data"], score["model"]) == ("validation", "text.txt", str(model))
    assert main(["eval", "--model", str(model), "--data", str(text)]) == 0
    shown = capsys.readouterr().out
    assert f"{score['tokens']:,} tokens" in shown
    assert f"loss {score['loss']:.4f} nats a token, perplexity {score['perplexity']:.2f}" in shown


def test_eval_of_all_splits_counts_all_bytes(capsys, text, model):
    sizes = {}
    for split in ("train", "validation", "test", "all"):
        assert main(["eval", "--model", str(model), "--data", str(text), "--split", split, "--json"]) == 0
        sizes[split] = json.loads(capsys.readouterr().out)["bytes"]
    assert sizes.pop("all") == sum(sizes.values()) == len(TEXT)
    assert sizes["train"] > sizes["validation"] > 0


def test_eval_refuses(capsys, text, model, tmp_path):
    ask = ["eval", "--model", model, "--data", text]
    refused(capsys, [*ask, "--block-size", 33], "block_size of 33 does not fit into the model's context of 32")
    refused(capsys, [*ask, "--split", "test", "--test", 0], "has nothing in its test split")
    refused(capsys, [*ask, "--test", -1], "shares")
    usage(capsys, [*ask, "--block-size", 0], "0 is too small")


# ------------------------------------------------------------------------------------------ runs that fail


def test_a_loss_that_turns_nan(capsys, text, tmp_path):
    # Every weight becomes so large that the products of the second step overflow.
    capsys.readouterr()
    assert main(options(text, tmp_path / "out", lr=1e30, warmup=0, eval_every=0, checkpoint_every=1)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.match(r"minigpt: step 2: loss is nan, gradient norm is nan; first not finite: output of ", lines[1])
    assert set(all_files(tmp_path / "out")) == {"run.json", "log.jsonl", "checkpoints/step-000000001.safetensors"}


def test_out_of_memory_and_other_faults_of_the_machine(capsys, text, tmp_path, monkeypatch):
    def fail(error):
        def train(*arguments, **settings):
            raise error

        monkeypatch.setattr(cli, "train", train)
        capsys.readouterr()
        code = main(options(text, tmp_path / "out", resume=True))
        return code, capsys.readouterr().err.splitlines()[-1]

    assert fail(MemoryError()) == (
        1,
        "minigpt: out of memory; a smaller --batch-size or more --accumulation needs less",
    )
    assert fail(KeyboardInterrupt()) == (130, "minigpt: interrupted")
    assert fail(PermissionError(13, "Permission denied", "some/file")) == (
        1,
        "minigpt: some/file: Permission denied",
    )


def start(arguments: list, code: str | None = None, **settings) -> subprocess.Popen:
    """``python -m minigpt …``, or a script with these arguments, in a process group of its own."""
    command = ["-c", code] if code else ["-m", "minigpt"]
    limit = settings.pop("file_size", None)

    def before() -> None:
        die_with_parent()
        if limit:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        start_new_session=True,
        preexec_fn=before,
        **pipes | settings,
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """What a process prints; one that hangs is killed."""
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()


@posix
def test_a_disk_that_is_full_when_the_model_is_written(text, tmp_path):
    out = tmp_path / "out"
    with start(options(text, out, steps=1, checkpoint_every=0, eval_every=0), file_size=50_000) as process:
        printed, err = finish(process)
    assert process.returncode == 1
    assert printed == ""
    assert err.splitlines()[1:] == [
        f"minigpt: file size limit reached while writing {out / 'model.safetensors'}; nothing was changed"
    ]
    assert set(all_files(out)) == {"run.json", "log.jsonl", "vocab.json", "tokenizer_config.json"}


@posix
def test_a_real_process_has_the_same_lines_and_codes(text, model, tmp_path):
    bad = start(options(tmp_path / "none.txt", tmp_path / "out"))
    good = start(["generate", "--model", model, "--prompt", "the", "--max-new-tokens", "3"])
    assert finish(bad) == ("", f"minigpt: {tmp_path / 'none.txt'}: there is no such file\n")
    out, err = finish(good)
    assert (bad.returncode, good.returncode, err) == (2, 0, "")
    assert re.fullmatch(r"the.{3}\n", out, re.DOTALL)


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_or_that_does_not_fit(model, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ask = ["generate", "--model", model, "--prompt", "the", "--max-new-tokens", "3"]
    for arguments in (ask, ["train", "--help"]):
        read, write = os.pipe()
        os.close(read)
        with start(arguments, stdout=write, env=environment) as process:
            os.close(write)
            assert finish(process)[1] == ""
        assert process.returncode in (0, 1)  # argparse passes over it
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full, start(ask, stdout=full, env=environment) as process:
            assert finish(process)[1] == "minigpt: output: No space left on device\n"
        assert process.returncode == 1


@posix
def test_characters_that_the_terminal_does_not_have_are_replaced(text, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT.replace("a", "ä"), encoding="utf-8")
    assert main(options(tmp_path / "text.txt", tmp_path / "out", steps=1, eval_every=0)) == 0
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ask = ["generate", "--model", tmp_path / "out", "--prompt", "thät", "--max-new-tokens", "3"]
    with start(ask, env=environment) as process:
        out, err = finish(process)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("th?t")


# ------------------------------------------------------------------------------------------ Ctrl-C


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@posix
def test_ctrl_c_saves_says_how_to_go_on_and_resume_gives_the_same_bytes(capsys, text, tmp_path):
    settings = {"steps": 150, "workers": 2, "dropout": 0.1, "keep_best": True, "eval_every": 20, "checkpoint_every": 50}
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    log = stopped / "log.jsonl"
    with start(options(text, stopped, **settings)) as process:
        wait_for(lambda: log.exists() and b"\n" in log.read_bytes(), process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = finish(process)
    assert process.returncode == 130
    (checkpoint,) = checkpoints(stopped)
    step = int(re.search(r"\d+", checkpoint.name)[0])
    assert 0 < step < 150
    last = err.splitlines()[-1]
    assert last.startswith(f"stopped by Ctrl-C after step {step} of 150; everything is saved.")
    assert "--resume" in last
    assert "Traceback" not in err
    assert out.startswith(f"{step} steps in")
    assert json.loads((stopped / "run.json").read_text())["result"]["stopped"] == "interrupted"
    GPT.from_pretrained(stopped)
    assert main(options(text, stopped, resume=True, **settings)) == 0
    assert main(options(text, whole, **settings)) == 0
    assert set(all_files(stopped)) == set(all_files(whole))
    for name in ("model.safetensors", "config.json", "vocab.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


HELD = """
import sys, time
from minigpt import cli, parallel, training

def hold(*_):
    print("here", flush=True)
    for _ in range(1200):  # in slices: a signal that a BLAS thread takes does not end the main thread's sleep
        time.sleep(0.1)

PATCH
sys.exit(cli.main(sys.argv[1:]))
"""
IN_A_STEP = "cli.train = lambda *a, **k: training.train(*a, **k, callbacks=[hold])"
AS_WORKERS_START = "parallel.LocalTeam._receive = hold"


@posix
def test_a_second_ctrl_c_ends_at_once_with_no_process_left(text, tmp_path):
    with start(options(text, tmp_path / "out", workers=2), HELD.replace("PATCH", IN_A_STEP)) as process:
        assert process.stdout.readline() == "here\n"
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(everyone) == 2
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None  # the first one waits for the step to end
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, err = finish(process)
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert err.splitlines()[-1] == "minigpt: interrupted"
    assert "Traceback" not in err
    assert not any(p.is_running() for p in everyone)


@posix
def test_ctrl_c_while_the_workers_start(text, tmp_path):
    with start(options(text, tmp_path / "out", workers=2), HELD.replace("PATCH", AS_WORKERS_START)) as process:
        assert process.stdout.readline() == "here\n"
        (worker,) = psutil.Process(process.pid).children()
        os.killpg(process.pid, signal.SIGINT)
        _, err = finish(process)
    assert process.returncode == 130
    assert err.splitlines()[1:] == ["minigpt: interrupted"]
    assert not worker.is_running()
    assert not checkpoints(tmp_path / "out")
