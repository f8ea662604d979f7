"""The shipped base models: sizes, files, and that they are as good as their cards say."""

import json
import subprocess
import sys

import pytest

from minigpt import GPT, InputError, bases
from minigpt.bases import build
from minigpt.config import preset
from minigpt.data import tinyworld
from minigpt.evaluation import evaluate_text
from minigpt.tokenizer import Tokenizer
from tests.conftest import ROOT

LIMIT = 8_000_000  # bytes, all bases together


def record(name):
    return json.loads((bases.path(name) / "training.json").read_text(encoding="utf-8"))


def test_all_sizes_fit_into_the_limit():
    files = [f for name in bases.BASES for f in bases.path(name).rglob("*") if f.is_file()]
    assert len(files) >= 4 * len(bases.BASES)
    assert sum(f.stat().st_size for f in files) <= LIMIT


def test_sizes_rise_from_a_tenth_of_a_million_to_a_few_million():
    sizes = [preset(name).n_parameters for name in bases.BASES]
    assert sizes == sorted(sizes)
    assert 0.1e6 <= sizes[0] <= 0.15e6
    assert 2e6 <= sizes[-1] <= 3e6


@pytest.mark.parametrize("name", bases.BASES)
def test_each_opens_with_its_tokenizer(name):
    model, tokenizer = bases.load(name)
    assert model.config == preset(name)
    assert tokenizer.vocab_size == model.config.vocab_size
    assert str(model.dtype) == "float32"
    assert (bases.path(name) / "README.md").stat().st_size > 1000


def test_one_tokenizer_for_all():
    merges = [Tokenizer.from_pretrained(bases.path(name)).merges for name in bases.BASES]
    assert all(m == merges[0] for m in merges)


@pytest.mark.parametrize("name", bases.BASES)
def test_recorded_recipe_is_the_one_that_stands_in_the_code(name):
    recipe = record(name)["recipe"]
    assert (recipe["steps"], recipe["lr"]) == (build.RECIPES[name].steps, build.RECIPES[name].lr)
    assert (recipe["batch_size"], recipe["block_size"]) == (build.BATCH_SIZE, build.BLOCK_SIZE)


def test_the_generated_text_is_still_the_one_they_were_trained_on():
    data = tinyworld.corpus(build.DOCUMENTS)
    for name in bases.BASES:
        assert record(name)["data"]["tinyworld"]["splits"] == data.record()["splits"]


def test_the_smallest_is_as_good_as_its_card_says():
    model, tokenizer = bases.load("base-xs")
    score = evaluate_text(model, tokenizer, tinyworld.corpus(build.DOCUMENTS).validation)
    expected = record("base-xs")["scores"]["tinyworld"]["validation"]
    assert score.tokens == expected["tokens"]
    assert score.loss == pytest.approx(expected["loss"], abs=2e-4)


def test_bigger_is_better_on_both_texts():
    for source in ("pydocs", "tinyworld"):
        losses = [record(name)["scores"][source]["validation"]["loss"] for name in bases.BASES]
        assert losses == sorted(losses, reverse=True)


def test_an_unknown_base_is_named():
    with pytest.raises(InputError, match="no base 'base-xxl'; there are base-xs, base-s, base-m, base-l"):
        bases.load("base-xxl")
    done = subprocess.run(
        [sys.executable, "-m", "minigpt.bases.build", "base-xxl"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "minigpt: no base 'base-xxl'; there are base-xs, base-s, base-m, base-l\n"


def test_a_build_makes_a_directory_with_card_and_record(tmp_path, monkeypatch):
    monkeypatch.setitem(build.RECIPES, "base-xs", build.Recipe(steps=2, lr=1e-3))
    monkeypatch.setattr(build, "DOCUMENTS", 30)
    monkeypatch.setattr(build, "BATCH_SIZE", 2)
    small, world = build.pydocs.corpus(), tinyworld.corpus
    monkeypatch.setattr(build.pydocs, "corpus", lambda: type(small)("pydocs", small.train[:40], *[small.test[:4]] * 2))
    monkeypatch.setattr(build.tinyworld, "corpus", lambda n: world(n, held_out=4))
    monkeypatch.setattr(build, "preset", lambda name: preset(name, vocab_size=build.VOCAB_SIZE))
    monkeypatch.setattr(build, "VOCAB_SIZE", 300)
    build.build(["base-xs"], tmp_path / "work", tmp_path / "out", workers=1, quiet=True)
    directory = tmp_path / "out" / "base-xs"
    assert GPT.from_pretrained(directory).config.vocab_size == 300
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "2 steps of 2 × 256 tokens" in card
    assert "What it cannot do" in card
    scores = json.loads((directory / "training.json").read_text(encoding="utf-8"))["scores"]
    assert set(scores) == {"pydocs", "tinyworld"}
