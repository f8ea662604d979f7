"""Lesson 4: the technique against differences and by hand, wrong versions that its own checks see, and a quick run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import get_backend
from lessons import METHODS
from lessons import lesson_04_instruction_tuning as lesson
from lessons.common import derivation, instruction, runner
from lessons.common.runner import Run, Settings
from lessons.common.scenarios import (
    METRICS,
    OTHER,
    PLAIN,
    as_questions,
    few_shot,
    few_shot_prompt,
    main_metric,
    measure,
)
from lessons.common.tasks import PairTask
from lessons.common.tuning import Budget, fine_tune
from lessons.lesson_04_instruction_tuning import (
    CompletionLoss,
    Mixture,
    completion_loss,
    completion_targets,
    forgetting,
    mixture_weights,
)
from minigpt import GPT, GPTConfig, InputError, Tokenizer, bases
from minigpt.data import IGNORED, DataSet, Pair
from minigpt.data.tokens import collate_pairs
from minigpt.objectives import LanguageModelling, shards, take
from minigpt.parameters import Gradients
from tests.helpers import assert_gradient, error, is_picture, numerical_gradient
from tests.standin import BACKEND as STANDIN

NUMPY = get_backend("numpy")
TOKENIZER = Tokenizer.train("Question: What is 1 2 plus 3 4?\nAnswer: a b c red green blue " * 30, vocab_size=280)


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the committed record, nor depends on it."""
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def task(name: str, n: int, first: int = 0, answer: str = " red") -> PairTask:
    pairs = [Pair(f"Question {name}: {i}?\nAnswer:", f"{answer} {i % 7}") for i in range(first, first + n + 8)]
    return PairTask(DataSet(name, pairs[:n], pairs[n : n + 2], pairs[n + 2 :]), TOKENIZER, 64)


def tiny(dtype: str = "float64", seed: int = 0, backend: Any = NUMPY) -> GPT:
    config = GPTConfig(vocab_size=280, n_positions=64, n_embd=8, n_layer=2, n_head=2)
    return GPT(config, seed=seed, dtype=dtype, backend=backend)


# ---------------------------------------------------------------------------------------------- the technique

TOKENS = st.integers(1, 200)


@given(st.lists(TOKENS, min_size=1, max_size=12), st.lists(TOKENS, min_size=1, max_size=6), st.integers(0, 15))
def test_completion_targets(prompt: list[int], completion: list[int], more: int) -> None:
    max_length = len(completion) + more
    ids, targets = completion_targets(prompt, completion, max_length)
    T = min(len(prompt) + len(completion) - 1, max_length)
    assert ids.shape == targets.shape == (T,)
    assert ids.dtype == targets.dtype == np.int64
    assert targets[targets != IGNORED].tolist() == completion
    assert (targets[: T - len(completion)] == IGNORED).all()
    first = T - len(completion)
    assert ids[first] == prompt[-1]  # the answer's first token is predicted from the prompt's last
    assert ids.tolist() == [*prompt, *completion][:-1][-T:]


def test_completion_targets_are_those_of_the_data_pipeline() -> None:
    pairs = task("a", 5).data.train
    whole = collate_pairs(TOKENIZER, pairs, 20)
    for row, pair in enumerate(pairs):
        completion = [*TOKENIZER.encode(pair.completion), TOKENIZER.eos_token_id]
        ids, targets = completion_targets(TOKENIZER.encode(pair.prompt), completion, 20)
        n = whole["lengths"][row]
        assert ids.tolist() == whole["ids"][row, :n].tolist()
        assert targets.tolist() == whole["targets"][row, :n].tolist()


@pytest.mark.parametrize("per", ["token", "example"])
@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (4, 1), (1, 1)])
def test_gradient_of_the_loss(per: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    targets = np.where(rng.random(shape) < 0.5, rng.integers(0, 9, shape), IGNORED)
    targets[:, -1] = 3
    logprobs, dloss = -rng.random(shape), rng.standard_normal()
    total = 7.0  # of a larger batch

    _, dlogprobs = completion_loss(logprobs, targets, total, per)
    assert_gradient(dlogprobs * dloss, lambda x: completion_loss(x, targets, total, per)[0], logprobs, dloss)
    assert (dlogprobs[targets == IGNORED] == 0).all()
    single, _ = completion_loss(logprobs.astype(np.float32), targets, total, per)
    assert isinstance(single, float)
    assert completion_loss(logprobs.astype(np.float32), targets, total, per)[1].dtype == np.float32


def batch_of_three() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(0, 280, (2, 3, 6))
    for row, first in enumerate((5, 2, 4)):
        targets[row, :first] = IGNORED
    return {"ids": ids, "targets": targets, "lengths": np.full(3, 6)}


@pytest.mark.parametrize("per", ["token", "example"])
def test_shares_of_a_split_batch_add_up(per: str) -> None:
    model, batch, objective = tiny(), batch_of_three(), CompletionLoss(per)
    total = objective.total(batch)
    assert total == (7 if per == "token" else 3)

    def loss_and_grads(parts: int) -> tuple[float, dict[str, np.ndarray]]:
        grads, loss = Gradients(model.parameters(), model.backend), 0.0
        for part in shards(3, parts):
            share, backward = objective.forward(model, take(batch, part), total, model.context(grad=True))
            backward(grads)
            loss += share
        return loss, grads.as_dict()

    (loss, grads), (split, of_split) = loss_and_grads(1), loss_and_grads(3)
    assert split == pytest.approx(loss, rel=1e-12)
    assert max(error(of_split[name], grads[name], floor=1e-6) for name in grads) < 1e-9


def test_loss_per_token_is_that_of_language_modelling() -> None:
    model, batch = tiny(), batch_of_three()
    loss, _ = CompletionLoss("token").forward(model, batch, 7.0, model.context())
    assert loss == pytest.approx(LanguageModelling().forward(model, batch, 7.0, model.context())[0], rel=1e-12)
    each = [
        LanguageModelling().forward(model, row, LanguageModelling().total(row), model.context())[0]
        for row in (take(batch, part) for part in shards(3, 3))
    ]
    loss, _ = CompletionLoss("example").forward(model, batch, 3.0, model.context())
    assert loss == pytest.approx(np.mean(each), rel=1e-12)


def test_prompt_tokens_are_not_scored_and_yet_trained() -> None:
    model, batch = tiny(), batch_of_three()
    ids = batch["ids"]
    ids[:] = np.arange(ids.size).reshape(ids.shape)  # every token stands once
    _, grads = model.loss_and_grads(ids, batch["targets"])
    wpe = grads["transformer.wpe.weight"]
    assert np.abs(wpe[:2]).max() > 0  # places 0 and 1 are prompt in every row
    numerical = numerical_gradient(
        lambda x: moved(model, "transformer.wpe.weight", x).loss_and_grads(ids, batch["targets"])[0],
        model.state()["transformer.wpe.weight"],
        1.0,
        range(16),
    )
    assert error(wpe.reshape(-1)[:16], numerical) < 1e-6


def moved(model: GPT, name: str, value: np.ndarray) -> GPT:
    twin = model.copy()
    next(p for p in twin.parameters() if p.name == name).data = value
    return twin


def test_mixture_weights() -> None:
    sizes = [10, 1000, 400]
    np.testing.assert_allclose(mixture_weights(sizes), np.array(sizes) / 1410)
    np.testing.assert_allclose(mixture_weights(sizes, math.inf), np.full(3, 1 / 3))
    np.testing.assert_allclose(mixture_weights(sizes, limit=10), np.full(3, 1 / 3))
    tempered = mixture_weights(sizes, 2.0)
    np.testing.assert_allclose(tempered[1] / tempered[0], 10)
    assert tempered.sum() == pytest.approx(1)
    assert mixture_weights([5]).tolist() == [1.0]


def test_forgetting() -> None:
    before, after = np.array([0.5, 0.5, 1.0]), np.array([[1.0, 0.0, 0.5], [0.5, 0.75, 1.0], [1.0, 0.5, 1.0]])
    read = forgetting(before, after)
    np.testing.assert_allclose(read.gained, [0.5, 0.25, 0.0])
    np.testing.assert_allclose(read.forgotten, [0.5, 0.0, -0.25])
    alone = forgetting(np.array([0.25]), np.array([[1.0]]))
    assert alone.gained.tolist() == [0.75]
    assert np.isnan(alone.forgotten).all()


# ---------------------------------------------------------------------------------------------- the mixture


def test_mixture_draws_rows_of_its_tasks_by_weight() -> None:
    tasks = (task("a", 30), task("bb", 10, 100, " green"), task("ccc", 60, 200, " b c"))
    batches = Mixture(tasks).batches(40, seed=3)
    found = dict.fromkeys(range(3), 0)
    seen = set()
    rows = {
        tuple(whole["ids"][i, :n].tolist()): (k, tuple(whole["targets"][i, :n].tolist()))
        for k, whole in enumerate(t.encoded("train") for t in tasks)
        for i, n in enumerate(whole["lengths"])
    }
    assert len(rows) == 100
    for step in range(25):
        batch = batches(step)
        assert batch["ids"].shape == batch["targets"].shape == (40, batch["lengths"].max())
        for ids, targets, n in zip(batch["ids"], batch["targets"], batch["lengths"], strict=True):
            k, wanted = rows[tuple(ids[:n].tolist())]
            assert tuple(targets[:n].tolist()) == wanted
            assert (targets[n:] == IGNORED).all()
            found[k] += 1
            seen.add(tuple(ids[:n].tolist()))
    assert seen == set(rows)  # in 1,000 draws every row of every task comes up
    assert [found[k] / 1000 for k in range(3)] == pytest.approx([0.3, 0.1, 0.6], abs=0.06)
    again = Mixture(tasks).batches(40, seed=3)(7)
    assert all((again[name] == batches(7)[name]).all() for name in again)
    assert (Mixture(tasks).batches(40, seed=4)(7)["lengths"] != again["lengths"]).any()
    hot = Mixture(tasks, temperature=math.inf).batches(600, 0)(0)
    small = sum(rows[tuple(ids[:n].tolist())][0] == 1 for ids, n in zip(hot["ids"], hot["lengths"], strict=True))
    assert small / 600 == pytest.approx(1 / 3, abs=0.08)


def test_whole_text_scores_every_token() -> None:
    tasks = (task("a", 6), task("bb", 6, 50))
    whole, masked = (Mixture(tasks, whole_text=on).batches(8, 1)(0) for on in (True, False))
    assert (whole["ids"] == masked["ids"]).all()
    for ids, targets, n in zip(whole["ids"], whole["targets"], whole["lengths"], strict=True):
        assert targets[: n - 1].tolist() == ids[1:n].tolist()
        assert targets[n - 1] == TOKENIZER.eos_token_id
        assert (targets[n:] == IGNORED).all()
    scored = masked["targets"] != IGNORED
    assert (whole["targets"][scored] == masked["targets"][scored]).all()


@pytest.mark.parametrize("per", ["token", "example"])
def test_training_on_a_mixture_learns_both_tasks(per: str) -> None:
    tasks = (task("a", 20, 0, " red"), task("bb", 20, 50, " b c"))
    objective = LanguageModelling() if per == "token" else CompletionLoss(per)
    start = tiny("float32")
    before = {name: array.copy() for name, array in start.state().items()}
    run = fine_tune(METHODS["full"](), start, Mixture(tasks, objective=objective), Budget(60, 16, 1e-2, workers=1))
    assert np.mean(run.history.losses[-5:]) < 0.5 * run.history.losses[0]
    assert all((before[name] == array).all() for name, array in start.state().items())  # the base is as it was


# ---------------------------------------------------------------------------------------------- wrong versions


def wrong_targets(change: Any) -> Any:
    def wrong(prompt: Any, completion: Any, max_length: int) -> Any:
        return change([*prompt], [*completion], max_length, *completion_targets(prompt, completion, max_length))

    return wrong


def cut_end(p: list[int], c: list[int], room: int, ids: Any, targets: Any) -> Any:
    row = [*p, *c][: room + 1]
    return np.array(row[:-1]), np.array([IGNORED] * (len(p) - 1) + row[len(p) :])


WRONG = {
    "completion_targets": {
        "not shifted": wrong_targets(lambda p, c, n, ids, t: (ids, np.where(t == IGNORED, t, ids))),
        "first answer token masked": wrong_targets(
            lambda p, c, n, ids, t: (ids, np.where(np.arange(len(t)) <= len(t) - len(c), IGNORED, t))
        ),
        "the prompt is scored": wrong_targets(lambda p, c, n, ids, t: (ids, np.append(ids[1:], t[-1]))),
        "the end of text is not scored": wrong_targets(lambda p, c, n, ids, t: (ids, np.append(t[:-1], IGNORED))),
        "cut at the end": wrong_targets(cut_end),
        "one too few kept": wrong_targets(
            lambda p, c, n, ids, t: (ids[-(n - 1) :], t[-(n - 1) :]) if n < 9 else (ids, t)
        ),
    },
    "completion_loss": {
        "wrong sign": lambda x, t, n, per: tuple(-v for v in completion_loss(x, t, n, per)),
        "gradient without the mask": lambda x, t, n, per: (completion_loss(x, t, n, per)[0], -np.ones_like(x) / n),
        "always per token": lambda x, t, n, per: completion_loss(x, t, n, "token"),
        "rows divided by their width": lambda x, t, n, per: tuple(
            v * (t != IGNORED).sum() / t.size for v in completion_loss(x, t, n, per)
        ),
        "gradient twice": lambda x, t, n, per: (completion_loss(x, t, n, per)[0], 2 * completion_loss(x, t, n, per)[1]),
    },
    "mixture_weights": {
        "temperature upside down": lambda s, t=1.0, limit=math.inf: mixture_weights(
            np.minimum(s, limit), min(1 / t, 9) or 9
        ),
        "no limit": lambda s, t=1.0, limit=math.inf: mixture_weights(s, t),
        "not normalised": lambda s, t=1.0, limit=math.inf: np.minimum(np.asarray(s, float), limit) ** (1 / t),
        "always equal": lambda s, t=1.0, limit=math.inf: np.full(len(s), 1 / len(s)),
    },
    "forgetting": {
        "columns for rows": lambda b, a: forgetting(b, a.T),
        "sign": lambda b, a: lesson.Forgetting(forgetting(b, a).gained, -forgetting(b, a).forgotten),
        "own task too": lambda b, a: lesson.Forgetting(forgetting(b, a).gained, (b - a).mean(1)),
        "divided by all": lambda b, a: lesson.Forgetting(
            forgetting(b, a).gained, forgetting(b, a).forgotten * (len(b) - 1) / len(b)
        ),
    },
}


def derive(tmp_path: Path, derivations: Any = lesson.DERIVATIONS, **settings: Any) -> list[Any]:
    return derivation.derive(Run(4, Settings(quick=True, brief=True, **settings), tmp_path), derivations)


OF_FUNCTION = {d.functions[0].__name__: (d,) for d in lesson.DERIVATIONS}


def test_the_lessons_own_checks_pass(tmp_path: Path) -> None:
    checks = derive(tmp_path)
    assert len(checks) > 20
    assert all(check.ok for check in checks)


@pytest.mark.parametrize(
    ("name", "version"), [(name, version) for name, versions in WRONG.items() for version in versions]
)
def test_wrong_versions_are_seen(name: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, name, WRONG[name][version])
    assert any(check.verdict == "WRONG" for check in derive(tmp_path, OF_FUNCTION[name]))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_written_yet_is_no_crash(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(lesson, name, todo)
    checks = derive(tmp_path)
    assert any(check.missing for check in checks)
    assert any(check.ok for check in checks)
    assert all(check.ok or check.missing for check in checks)


def test_checks_pass_on_another_array_library(tmp_path: Path) -> None:
    assert all(check.ok for check in derive(tmp_path, backend=STANDIN))


# ---------------------------------------------------------------------------------------------- scenarios


def test_few_shot_prompts_hold_what_fits() -> None:
    shots = [Pair(f"Q{i}:", f" a{i}") for i in range(3)]
    whole = "Q0: a0\n\nQ1: a1\n\nQ2: a2\n\nQ9:"
    assert few_shot_prompt(TOKENIZER, shots, "Q9:", 1000) == whole
    room = len(TOKENIZER.encode(whole))
    assert few_shot_prompt(TOKENIZER, shots, "Q9:", room) == whole
    assert few_shot_prompt(TOKENIZER, shots, "Q9:", room - 1) == "Q0: a0\n\nQ1: a1\n\nQ9:"
    assert few_shot_prompt(TOKENIZER, shots, "Q9:", 1) == "Q9:"
    assert few_shot_prompt(TOKENIZER, [], "Q9:", 10) == "Q9:"


def test_few_shot_task_fits_into_the_context() -> None:
    plain = task("a", 20)
    prompted = few_shot(plain, 3, 64)
    assert prompted.data.train == plain.data.train
    longest = prompted.longest("test")
    for before, after in zip(plain.data.test, prompted.data.test, strict=True):
        assert after.prompt.endswith(before.prompt)
        assert after.prompt.startswith(plain.data.train[0].prompt + plain.data.train[0].completion + "\n\n")
        assert after.completion == before.completion
        assert len(TOKENIZER.encode(after.prompt)) + longest <= 64


def test_pairs_as_questions() -> None:
    labels = task("a", 20)  # 6 test pairs with answers " red 0" … " red 6"
    pool = sorted({pair.completion.strip() for pair in labels.data.test})
    for question, pair in zip(as_questions(labels, 4), labels.data.test, strict=False):
        assert question.context == pair.prompt
        assert question.choices == tuple(pool)
        assert question.choices[question.answer] == pair.completion.strip()
    many = task("b", 20)
    test = [Pair(f"Q{i}", f" answer {i}", (f" answer {i}", f" answer {i + 1}")) for i in range(30)]
    many = replace(many, data=replace(many.data, test=test))
    places = set()
    for i, question in enumerate(as_questions(many, 30)):
        assert len(set(question.choices)) == 4
        assert question.choices[question.answer] == f"answer {i}"
        assert f"answer {i + 1}" not in question.choices  # another right answer is no distractor
        places.add(question.answer)
    assert places == {0, 1, 2, 3}
    assert as_questions(many, 30) == as_questions(many, 30)
    same = replace(many, data=replace(many.data, test=[Pair("Q", " yes")] * 3))
    with pytest.raises(InputError, match="all test completions are 'yes'"):
        as_questions(same, 3)


class Parrot:
    """Writes what it was told to."""

    def __init__(self, model: GPT, texts: list[str]) -> None:
        self.texts, self.model = texts, model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def test_measure_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = task("a", 20)
    right = [pair.completion for pair in plain.data.test]
    written = [right[0], right[1] + "\nQuestion: more", " red", *right[3:]]
    monkeypatch.setattr(PairTask, "complete", lambda self, model, prompts, new: written[: len(prompts)])
    scores = measure(tiny("float32"), plain, 3)
    assert set(scores) == {*METRICS, "main"}
    assert scores["exact_match"] == scores["main"] == pytest.approx(1 / 3)
    assert scores["rougeL"] == pytest.approx((1 + 2 * 2 / (4 + 2) + 2 * 1 / (1 + 2)) / 3)
    assert 0 <= scores["calibration"] <= 1
    assert scores["loss"] > 0
    lines = measure(tiny("float32"), plain, 3, first_line=True)
    assert lines["exact_match"] == pytest.approx(2 / 3)
    assert lines["loss"] == scores["loss"]


def test_each_task_is_judged_by_its_own_metric() -> None:
    named = {
        name: SimpleNamespace(name=name) for name in ("tinyworld.translation", "pydocs.summaries", "tinyworld.addition")
    }
    assert [main_metric(t) for t in named.values()] == ["bleu", "rougeL", "exact_match"]  # type: ignore[arg-type]
    assert main_metric(task("my.jsonl", 3)) == "exact_match"


def test_names_of_the_courses_tasks_are_those_that_are_judged_otherwise() -> None:
    _, tokenizer = bases.load("base-xs")
    from lessons.common.tasks import load_task

    assert main_metric(load_task("translation", tokenizer, 4)) == "bleu"  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- the whole lesson


def read(directory: Path) -> Any:
    return json.loads((directory / "lesson-04" / "record.json").read_text(encoding="utf-8"))


def test_quick_lesson(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--check", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "def completion_targets" in printed
    assert "SOLUTION" not in printed
    assert " WRONG" not in printed
    record = read(tmp_path)
    assert set(record["figures"]) >= {
        "zero_shot_score",
        "few_shot_score",
        "one_task_each_score",
        "mixture_score",
        "forgotten",
    }
    run, K = record["results"]["runs"][0], len(lesson.QUICK.tasks)
    assert np.shape(run["from_base"]) == (K + 2, K)
    assert np.shape(run["after_mixture"]) == (K + 1, K)
    assert set(run["scenarios"]) == set(instruction.MODELS)
    assert all(set(s) == {*METRICS, "main"} for model in run["scenarios"].values() for s in model.values())
    assert run["held_out"]["mixture"] != run["held_out"]["base"]
    assert sorted(run["curve"]) == ["24", "8"]
    assert record["pictures"] == ["examples.png", "forgetting.png", "scenarios.png"]
    assert all(is_picture(tmp_path / "lesson-04" / name) for name in record["pictures"])
    assert record["figures"]["mixture_score"]["values"] == [pytest.approx(np.mean(run["from_base"][-1]))]


def test_lesson_on_the_users_own_pairs(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"prompt": f"Colour of {i}:", "completion": f" red {i % 3}"}) for i in range(80)]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    assert "your own" in capsys.readouterr().out
    assert read(tmp_path)["results"]["tasks"] == ["your own", *lesson.BESIDE_OWN]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.jsonl", "", "is empty"),
        ("mine.csv", "text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(60)), "this lesson needs pairs"),
        ("mine.txt", "some text", "a task is a .csv file"),
        ("gone.jsonl", None, "there is no such file"),
    ],
)
def test_data_that_cannot_be_used(name: str, content: str | None, said: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 2
    said_so = capsys.readouterr().err.strip()
    assert said in said_so
    assert "\n" not in said_so


def test_full_run_makes_bands_and_ablations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    small = replace(lesson.QUICK, steps=1, test=3, windows=1)
    monkeypatch.setattr(lesson, "CORE", small)
    monkeypatch.setattr(lesson, "FULL", replace(small, tasks=(*small.tasks, "translation"), curve=(4, 12)))
    monkeypatch.setattr(lesson, "SEEDS", 2)
    assert lesson.main(["--full", "--brief", "--out", str(tmp_path)]) == 0
    assert "What each choice is worth" in capsys.readouterr().out
    record = read(tmp_path)
    scores = record["results"]["ablations"]["scores"]
    assert set(scores) == {lesson.LONGER, *(v.name for v in lesson.VARIATIONS)}
    assert all(np.shape(values) == (2, 2) for values in scores.values())
    change = record["results"]["ablations"]["held_out_loss_change"]
    assert len({runs[0]["tinyworld"] for runs in change.values()}) == len(lesson.VARIATIONS)  # each is another training
    assert len(record["results"]["runs"]) == 2
    figures = {"mixture_score", "forgotten", "mixture_tinyworld_loss_change"}
    assert figures | {f"3_tasks_{name}" for name in figures} <= set(record["bands"])
    # The bands of a core run are made by its own plan: the very figures of one with that seed are among them.
    assert lesson.main(["--brief", "--seed", "1", "--out", str(tmp_path)]) == 0
    core = read(tmp_path)["figures"]
    assert {name: figure["values"] for name, figure in core.items()} == {
        name: record["figures"][name]["values"][1:] for name in core
    }
    assert record["results"]["runs"][0]["held_out"]["mixture"] != record["results"]["runs"][1]["held_out"]["mixture"]


def test_variations_change_one_thing() -> None:
    tasks = (task("a", 20), task("bb", 20, 50))
    by_name = {v.name: v.mixture(tasks, task("text", 5)) for v in lesson.VARIATIONS}
    assert isinstance(by_name["mean over examples"].objective, CompletionLoss)
    assert by_name["mean over examples"].objective.per == "example"
    assert by_name["prompts scored too"].whole_text
    assert [len(t.data.train) for t in by_name["unequal sizes, T = 2"].tasks] == [20, 2]
    assert by_name["unequal sizes, T = 2"].temperature == 2
    assert [len(t.data.train) for t in by_name["as it is"].tasks] == [20, 20]
    assert [t.name for t in by_name["the base's text as one task more"].tasks] == ["a", "bb", "text"]


def test_replayed_text_is_scored_as_in_pre_training() -> None:
    experiment = lesson.Experiment(replace(lesson.QUICK, examples=5), NUMPY)
    task = experiment.replay
    whole = task.encoded("train")
    end = experiment.tokenizer.eos_token_id
    assert len(whole["lengths"]) == 5
    for ids, targets, n in zip(whole["ids"], whole["targets"], whole["lengths"], strict=True):
        assert ids[0] == end  # what every document of the pre-training follows
        assert targets[: n - 1].tolist() == ids[1:n].tolist()
        assert targets[n - 1] == end
    assert whole["lengths"].max() <= lesson.QUICK.max_length


def test_another_template() -> None:
    plain = PairTask(DataSet("a", [], [], [Pair("What?\nAnswer:", " so"), Pair("No form", " so")]), TOKENIZER)
    assert [p.prompt for p in OTHER.fill(plain).data.test] == ["Task: What?\nResponse:", "Task: No form\nResponse:"]
    assert PLAIN.fill(plain).data.test[0] == plain.data.test[0]
