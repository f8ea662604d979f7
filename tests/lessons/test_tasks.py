"""Tasks and fine-tuning runs: what every lesson trains on, and that a run changes nothing but its own model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lessons.common.classifier import Classifier
from lessons.common.method import Method
from lessons.common.tasks import (
    LABELLED,
    PAIRS,
    LabelTask,
    PairTask,
    answers,
    cut,
    epochs,
    in_batches,
    load_task,
    require_labels,
    require_pairs,
)
from lessons.common.tuning import Budget, fine_tune
from minigpt import GPT, GPTConfig, Tokenizer
from minigpt.data import DataSet, Example, Pair
from minigpt.errors import InputError

TOKENIZER = Tokenizer.train("Question: what is red? Answer: a cat sat on the mat. good bad " * 30, vocab_size=290)
END = TOKENIZER.eos_token_id


def model(seed: int = 0, **settings: Any) -> GPT:
    sizes = {"n_positions": 48, "n_embd": 8, "n_layer": 2, "n_head": 2} | settings
    return GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, **sizes), seed=seed)


def pairs(n: int = 20) -> PairTask:
    records = [Pair(f"Question: what is {'red ' * (i % 4)}{i}?\nAnswer:", f" a cat {i % 3}") for i in range(n + 10)]
    return PairTask(DataSet("pairs", records[:n], records[n : n + 4], records[n + 4 :]), TOKENIZER, 40)


def labelled(n: int = 20) -> LabelTask:
    records = [Example(f"{'good' if i % 2 else 'bad'} cat {'sat ' * (i % 5)}{i}", i % 2) for i in range(n + 10)]
    data = DataSet("labels", records[:n], records[n : n + 4], records[n + 4 :], label_names=("bad", "good"))
    return LabelTask(data, TOKENIZER, 40)


# ---------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("task", [pairs(20), labelled(20)])
def test_an_epoch_shows_every_record_once(task: Any) -> None:
    batches = task.batches(5, seed=1)
    whole = task.encoded("train")
    rows = {tuple(row[:n].tolist()) for row, n in zip(whole["ids"], whole["lengths"], strict=True)}
    assert len(rows) == 20
    for epoch in range(3):
        seen = [
            tuple(row[:n].tolist())
            for step in range(4 * epoch, 4 * epoch + 4)
            for row, n in zip(*(batches(step)[name] for name in ("ids", "lengths")), strict=True)
        ]
        assert len(seen) == 20
        assert set(seen) == rows
    assert any((batches(0)["lengths"] != batches(4)["lengths"]).tolist())  # another order
    assert all((batches(2)[name] == task.batches(5, seed=1)(2)[name]).all() for name in whole)
    assert any((batches(s)["lengths"] != task.batches(5, seed=2)(s)["lengths"]).any() for s in range(4))


def test_batches_are_no_wider_than_their_longest_row() -> None:
    whole = pairs().encoded("train")
    for batch in [*in_batches(whole, 11, 4), cut(whole, np.array([3]))]:
        assert batch["ids"].shape[1] == batch["targets"].shape[1] == batch["lengths"].max()
    batches = in_batches(whole, 11, 4)
    assert [len(b["lengths"]) for b in batches] == [4, 4, 3]
    lengths = np.concatenate([b["lengths"] for b in batches])
    assert (np.diff(lengths) >= 0).all()
    assert sorted(lengths) == sorted(whole["lengths"][:11])


def test_more_rows_than_there_are() -> None:
    batches = epochs(pairs(6).encoded("train"), 100, 0)
    assert len(batches(0)["lengths"]) == len(batches(9)["lengths"]) == 6


def test_fewer_records_are_the_first_ones() -> None:
    for task in (pairs(), labelled()):
        assert task.limited(4).data.train == task.data.train[:4]
        assert len(task.limited(4).encoded("train")["lengths"]) == 4
        assert task.limited(4).data.test == task.data.test
        for n in (0, 21):
            with pytest.raises(InputError, match=f"has 20 training records; {n} were asked for"):
                task.limited(n)


# ---------------------------------------------------------------------------------------------- scores


def test_score_of_pairs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    task, gpt = pairs(), model()
    test = task.data.test
    written = [pair.completion for pair in test]
    written[0] = " a dog"
    monkeypatch.setattr(PairTask, "complete", lambda self, m, prompts, new: written[: len(prompts)])
    scores = task.score(gpt, limit=4)
    assert scores["accuracy"] == 0.75
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    loss, n = 0.0, 0
    for pair in test[:4]:
        prompt, completion = TOKENIZER.encode(pair.prompt), [*TOKENIZER.encode(pair.completion), END]
        logits = gpt.logits([[*prompt, *completion[:-1]]])[0, len(prompt) - 1 :].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss -= logprobs[np.arange(len(completion)), completion].sum()
        n += len(completion)
    assert scores["loss"] == pytest.approx(loss / n, rel=1e-5)


def test_every_reference_counts_as_right() -> None:
    assert answers(Pair("Q", " one ", ("two", " three"))) == {"one", "two", "three"}


def test_score_of_labels_by_hand() -> None:
    task = labelled()
    classifier = Classifier(model(), 2, seed=1)
    scores = task.score(classifier, limit=5)
    right, loss = 0, 0.0
    for example in task.data.test[:5]:
        ids = TOKENIZER.encode(example.text)
        logits = classifier.logits(np.array([ids]), np.array([len(ids)]))[0].astype(np.float64)
        right += int(logits.argmax()) == example.label
        loss -= logits[example.label] - np.log(np.exp(logits).sum())
    assert scores["accuracy"] == right / 5
    assert scores["loss"] == pytest.approx(loss / 5, rel=1e-5)


def test_completions_of_many_prompts_are_those_of_each_alone() -> None:
    task, gpt = pairs(), model(seed=3)
    prompts = ["Question:", "Question: what is red?", "a", "", "Question: what is red red red 9?\nAnswer:"]
    together = task.complete(gpt, prompts, 6)
    assert together == [task.complete(gpt, [prompt], 6)[0] for prompt in prompts]
    for prompt, text in zip(prompts, together, strict=True):
        ids = gpt.generate([TOKENIZER.encode(prompt) or [END]], 6, temperature=0.0, eos_token_id=END)[0]
        new = ids[len(TOKENIZER.encode(prompt)) or 1 :].tolist()
        assert text == TOKENIZER.decode(new[: new.index(END)] if END in new else new)


def test_a_prompt_that_is_too_long_keeps_its_end() -> None:
    task, gpt = pairs(), model(n_positions=12)
    long = "a cat sat on the mat. " * 20 + "Question: what is red?"
    ids = TOKENIZER.encode(long)[-8:]
    assert task.complete(gpt, [long], 4) == [TOKENIZER.decode(_new(gpt, ids))]
    short = replace(task, max_length=9)  # in training a row has 9 inputs and 10 tokens: so many here
    assert short.complete(model(), [long], 4) == [TOKENIZER.decode(_new(model(), TOKENIZER.encode(long)[-6:]))]
    with pytest.raises(InputError, match="12 new tokens leave no room for a prompt in a context of 12"):
        task.complete(gpt, ["Q"], 12)


def _new(gpt: GPT, ids: list[int]) -> list[int]:
    new = gpt.generate([ids], 4, temperature=0.0, eos_token_id=END)[0, len(ids) :].tolist()
    return new[: new.index(END)] if END in new else new


# ---------------------------------------------------------------------------------------------- by name


def test_tasks_load_with_as_many_records_as_asked_for() -> None:
    assert not {*LABELLED} & {*PAIRS}
    for name in ("sentiment-target", "topic-pairs", "translation", "addition"):
        task = load_task(name, TOKENIZER, 12)
        assert len(task.data.train) == 12, name
        assert isinstance(task, LabelTask if name in LABELLED else PairTask)
        assert len(task.data.test) >= 100
        texts = [r.text if isinstance(r, Example) else r.prompt for r in task.data.train]
        assert not set(texts) & {r.text if isinstance(r, Example) else r.prompt for r in task.data.test}


def test_own_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.JSONL"
    lines = [json.dumps({"prompt": f"What is {i}?", "completion": f" {i}"}) for i in range(60)]
    path.write_text("\n".join(lines), encoding="utf-8")
    task = load_task(str(path), TOKENIZER)
    assert isinstance(task, PairTask)
    assert sum(len(task.data.split(s)) for s in ("train", "validation", "test")) == 60
    csv = tmp_path / "mine.csv"
    csv.write_text("text,label\n" + "".join(f"{'good' if i % 2 else 'bad'} {i},{i % 2}\n" for i in range(60)))
    assert isinstance(load_task(str(csv), TOKENIZER), LabelTask)
    labelled = require_labels(load_task(str(csv), TOKENIZER))
    assert labelled.n_labels == 2
    most = max(sum(e.label == label for e in labelled.data.test) for label in (0, 1))
    told = labelled.describe()
    assert f"{len(labelled.data.train)} records to train on" in told
    assert f"right in {most / len(labelled.data.test):.0%} of the test" in told
    assert require_pairs(task) is task
    with pytest.raises(InputError, match="this lesson needs labelled texts"):
        require_labels(task)
    with pytest.raises(InputError, match="this lesson needs pairs"):
        require_pairs(load_task(str(csv), TOKENIZER))


def test_impossible_tasks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no task 'chess'; there are sentiment, "):
        load_task("chess", TOKENIZER)
    path = tmp_path / "two.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}')
    with pytest.raises(InputError, match="too few"):
        load_task(str(path), TOKENIZER)
    with pytest.raises(InputError, match=r"all training texts have the label \['bad'\]; at least two are needed"):
        LabelTask(DataSet("x", [Example("a", 0)] * 3, [], [], label_names=("bad", "good")), TOKENIZER)


# ---------------------------------------------------------------------------------------------- a run


class LastBias(Method):
    """The last block's biases."""

    learning_rate = 5e-2
    name = "last biases"
    seen: Any = None

    def install(self, trunk: GPT, seed: int, data: Any) -> None:
        type(self).seen = data
        trunk.unfreeze(["*.h.1.*.bias"])


@pytest.mark.parametrize("task", [pairs(), labelled()])
def test_fine_tuning_changes_its_own_model_only(task: Any) -> None:
    base = model()
    before = {name: array.copy() for name, array in base.state().items()}
    method = LastBias(n_labels=task.n_labels)
    run = fine_tune(method, base, task, Budget(30, 8, workers=1), seed=2)
    assert all((array == before[name]).all() for name, array in base.state().items())
    assert len(LastBias.seen) == 16
    trained = run.model.trunk if task.n_labels else run.model
    for name, array in trained.state().items():
        if name.startswith("transformer.h.1") and name.endswith(".bias"):
            assert (array != before[name]).any(), name
        else:
            assert (array == before[name]).all(), name
    assert run.n_trainable == sum(p.data.size for p in run.model.parameters() if p.trainable)
    assert len(run.history.losses) == 30
    assert np.mean(run.history.losses[-5:]) < np.mean(run.history.losses[:5])
    assert max(run.history.rates) == pytest.approx(5e-2, rel=0.1)
    again = fine_tune(method, base, task, Budget(30, 8, workers=1), seed=2)
    assert again.history.losses == run.history.losses
    assert fine_tune(method, base, task, Budget(30, 8, workers=1), seed=3).history.losses != run.history.losses


def test_budget() -> None:
    config = Budget(steps=100, lr=0.3, evaluations=4, workers=1).config(LastBias(), 5)
    assert (config.lr, config.warmup, config.eval_every, config.keep_best, config.seed) == (0.3, 10, 25, True, 5)
    assert Budget(steps=100).config(LastBias(), 0).lr == 5e-2
    assert Budget(steps=100).config(LastBias(), 0).eval_every == 0
    run = fine_tune(LastBias(), model(), pairs(), Budget(8, 8, evaluations=2, workers=1))
    assert run.history.eval_steps == [4, 8]
