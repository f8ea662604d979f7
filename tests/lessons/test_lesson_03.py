"""Lesson 3: what thaws when, ULMFiT and the last layer as methods, few labels, and the whole lesson at its smallest."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from kernels import get_backend
from lessons import METHODS
from lessons import lesson_03_ulmfit_classifier as lesson
from lessons.common import classification, runner
from lessons.common.classification import Budget, Outcome, draw, labels_needed
from lessons.common.classifier import Classification, Classifier
from lessons.common.measure import count_products
from lessons.common.method import n_trainable
from lessons.common.tasks import LabelTask
from lessons.lesson_02_ulmfit_target import layer_groups, members, slanted_triangular
from lessons.lesson_03_ulmfit_classifier import (
    UNFREEZING,
    LastLayer,
    Ulmfit,
    chain_thaw,
    dulled_scales,
    gradual_unfreezing,
    phase_scales,
    phase_steps,
)
from minigpt import GPT, GPTConfig, Tokenizer
from minigpt.data import DataSet, Example
from minigpt.objectives import LanguageModelling
from minigpt.training import History, RunError, State, TrainConfig
from tests.helpers import TOLERANCE, error, is_picture, numerical_gradient
from tests.standin import BACKEND as STANDIN

NUMPY = get_backend("numpy")
CONFIG = GPTConfig(vocab_size=11, n_positions=6, n_embd=4, n_layer=3, n_head=2)
TRAIN = TrainConfig(24, lr=0.02, workers=1)


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the committed record, nor depends on it."""
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def labelled(step: int = 0, B: int = 4, T: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([3, step])
    return {
        "ids": rng.integers(0, CONFIG.vocab_size, (B, T)),
        "labels": rng.integers(0, 3, B),
        "lengths": rng.integers(1, T + 1, B),
    }


def text(step: int = 0) -> dict[str, np.ndarray]:
    ids, targets = np.random.default_rng([4, step]).integers(0, CONFIG.vocab_size, (2, 2, 5))
    return {"ids": ids, "targets": targets}


def weights(tuned: Any) -> dict[str, np.ndarray]:
    return {p.name: p.data.copy() for p in tuned.parameters()}


def fit(method: Ulmfit, tuned: Any, config: TrainConfig = TRAIN, **options: Any) -> History:
    return method.fit(tuned, Classification(), labelled, config, progress=False, **options)


# ---------------------------------------------------------------------------------------------- what thaws when


def test_gradual_unfreezing_adds_one_group_at_a_time_from_the_top() -> None:
    assert [gradual_unfreezing(phase, 4) for phase in range(4)] == [[3], [2, 3], [1, 2, 3], [0, 1, 2, 3]]
    assert gradual_unfreezing(0, 1) == [0]


def test_chain_thaw_trains_one_group_at_a_time_and_then_all() -> None:
    assert [chain_thaw(phase, 3) for phase in range(4)] == [[2], [0], [1], [0, 1, 2]]
    assert [chain_thaw(phase, 1) for phase in range(2)] == [[0], [0]]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_dulled_unfreezing_lies_between_gradual_and_all_at_once(n: int) -> None:
    for phase in range(n):
        thawed = [float(g in gradual_unfreezing(phase, n)) for g in range(n)]
        assert dulled_scales(phase, n, 0.0) == thawed
        assert dulled_scales(phase, n, 1.0) == [1.0] * n
        between = dulled_scales(phase, n, 0.4)
        assert all(a <= b <= 1.0 for a, b in zip(thawed, between, strict=True))
        assert between == sorted(between)
    assert dulled_scales(0, 3, 0.5) == [0.25, 0.5, 1.0]


def test_phases_of_every_kind_end_with_what_they_are_for() -> None:
    for kind in UNFREEZING:
        phases = phase_scales(kind, 4, 0.3)
        assert all(len(scales) == 4 for scales in phases)
        wanted = {"head only": [0, 0, 0, 1], "last layer": [0, 0, 1, 1]}.get(kind, [1, 1, 1, 1])
        assert phases[-1] == wanted
        assert len(phases) == {"gradual": 4, "dulled": 4, "chain-thaw": 5}.get(kind, 1)


def test_steps_of_the_phases_add_up() -> None:
    assert phase_steps(100, 4, 0.5) == [16, 17, 17, 50]
    assert phase_steps(100, 1, 0.5) == [100]
    assert phase_steps(60, 4, 1.0) == [20, 20, 20, 0]
    assert phase_steps(60, 4, 0.0) == [0, 0, 0, 60]
    for steps in range(1, 40):
        for phases in range(1, 7):
            assert sum(phase_steps(steps, phases, 0.5)) == steps
            assert min(phase_steps(steps, phases, 0.5)) >= 0


WRONG: dict[str, tuple[str, Any]] = {
    "from the bottom": ("gradual_unfreezing", lambda phase, n: list(range(phase + 1))),
    "one at a time": ("gradual_unfreezing", lambda phase, n: [n - 1 - phase]),
    "one late": ("gradual_unfreezing", lambda phase, n: list(range(n - max(phase, 1), n))),
    "chain from the top": ("chain_thaw", lambda phase, n: list(range(n)) if phase == n else [n - 1 - phase]),
    "chain without the head": ("chain_thaw", lambda phase, n: list(range(n)) if phase == n else [phase]),
    "never together": ("chain_thaw", lambda phase, n: [n - 1 if phase in (0, n) else phase - 1]),
    "dulls the top": ("dulled_scales", lambda phase, n, s: dulled_scales(phase, n, s)[::-1]),
    "never clears": ("dulled_scales", lambda phase, n, s: [s ** (n - 1 - g) for g in range(n)]),
    "once for all": ("dulled_scales", lambda phase, n, s: [1.0 if n - 1 - g <= phase else s for g in range(n)]),
    "pooling without its mean": ("concat_pool_backward", lambda d, cache: _without(d, cache, 2)),
    "pooling without its maximum": ("concat_pool_backward", lambda d, cache: _without(d, cache, 1)),
}
right = lesson.concat_pool_backward


def _without(dpooled: Any, cache: Any, part: int) -> Any:
    C = dpooled.shape[1] // 3
    kept = dpooled.copy()
    kept[:, part * C : (part + 1) * C] = 0
    return right(kept, cache)


def checks(backend: Any = NUMPY) -> list[Any]:
    return [c for d in lesson.DERIVATIONS for c in d.check(backend)]


@pytest.mark.parametrize("name", WRONG)
def test_the_lesson_sees_a_wrong_variant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = WRONG[name]
    monkeypatch.setattr(lesson, function, wrong)
    found = [c for i in (0, 2) for c in lesson.DERIVATIONS[i].check(NUMPY)]
    assert any(c.verdict == "WRONG" for c in found)
    assert any(c.ok for c in found) or function == "concat_pool_backward"


def test_the_lessons_own_checks_pass_and_wait_for_what_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (NUMPY, STANDIN):
        assert all(c.ok for c in checks(backend))

    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    for name in ("gradual_unfreezing", "chain_thaw", "dulled_scales", "concat_pool_backward"):
        monkeypatch.setattr(lesson, name, todo)
    monkeypatch.setattr("lessons.common.classifier.concat_pool_backward", todo)
    assert all(c.missing for c in checks())


# ---------------------------------------------------------------------------------------------- ULMFiT as a method


def test_all_gradients_of_the_classifier_it_makes() -> None:
    config = replace(CONFIG, n_layer=1, vocab_size=6)
    tuned = Ulmfit(n_labels=3, hidden=4).apply(GPT(config, dtype="float64"))
    rng = np.random.default_rng(1)
    for p in tuned.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.data.shape)
    b = labelled()
    b["ids"] %= 6
    _, grads = tuned.loss_and_grads(b["ids"], b["labels"], b["lengths"])
    base_names = [p.name for p in GPT(config).parameters()]
    head = ["score_hidden.weight", "score_hidden.bias", "score.weight", "score.bias"]
    assert list(grads) == base_names + head
    for p in tuned.parameters():
        data = p.data

        def moved(value: Any, p: Any = p) -> float:
            p.data = value
            return Classification().forward(tuned, b, 4.0, tuned.context())[0]

        numerical = numerical_gradient(moved, data, 1.0, step=5e-4)
        p.data = data
        assert error(grads[p.name], numerical, floor=1e-2) < TOLERANCE, p.name


@pytest.mark.parametrize("unfreezing", UNFREEZING)
def test_every_phase_trains_its_groups_and_no_others(unfreezing: str) -> None:
    method = Ulmfit(n_labels=3, unfreezing=unfreezing, hidden=3, schedule="constant", factor=2.0)
    base = GPT(CONFIG, dtype="float64")
    before_all = weights(base)
    tuned = method.apply(base)
    groups = layer_groups(tuned)
    plan = phase_scales(unfreezing, 4, method.scalar)
    ends = np.cumsum(phase_steps(TRAIN.steps, len(plan), method.thawing)).tolist()
    at = {0: weights(tuned)}
    seen: list[int] = []

    def remember(state: State) -> None:
        seen.append(state.step)
        at[len(seen)] = weights(tuned)

    history = fit(method, tuned, callbacks=[remember])
    assert history.steps == list(range(1, 25))
    assert len(history.losses) == len(history.rates) == len(history.norms) == 24
    start = 0
    for scales, end in zip(plan, ends, strict=True):
        for scale, names in zip(scales, members(groups, at[0]), strict=True):
            for name in names:
                # wpe holds places that no text reaches, and a key bias has no gradient but rounding
                moved = (at[start][name] != at[end][name]).any()
                assert moved == bool(scale) or name.endswith("c_attn.bias"), (name, scale)
        start = end
    assert all(p.trainable for p in tuned.parameters())  # whatever the last phase froze
    assert all((p.data == before_all[p.name]).all() for p in base.parameters())


def test_rates_restart_in_every_phase_and_fall_by_depth() -> None:
    rates: list[float] = []
    method = Ulmfit(n_labels=3, hidden=0)
    tuned = method.apply(GPT(CONFIG))
    rates = fit(method, tuned, replace(TRAIN, steps=80)).rates
    wanted = [
        slanted_triangular(step, steps, 0.02) for steps in phase_steps(80, 4, method.thawing) for step in range(steps)
    ]
    assert rates == pytest.approx(wanted)  # of the head, which trains in every phase
    chain = Ulmfit(n_labels=3, unfreezing="chain-thaw", schedule="constant", hidden=0)
    rates = fit(chain, chain.apply(GPT(CONFIG)), replace(TRAIN, steps=80)).rates
    assert sorted({round(r, 9) for r in rates}) == pytest.approx([0.02 / 2.6**i for i in (3, 2, 1, 0)])


def test_dulled_updates_are_smaller_by_their_scale() -> None:
    method = Ulmfit(n_labels=3, unfreezing="dulled", scalar=0.5, factor=2.0, schedule="constant", hidden=0)
    tuned = method.apply(GPT(CONFIG, dtype="float64"))
    before = weights(tuned)

    def stop(state: State) -> None:
        state.stop = True

    fit(method, tuned, replace(TRAIN, eps=1e-14, weight_decay=0.0, max_norm=None), callbacks=[stop])
    after = weights(tuned)
    for group, name in enumerate([f"transformer.h.{i}.mlp.c_fc.weight" for i in range(3)] + ["score.weight"]):
        depth = 3 - group
        assert np.abs(after[name] - before[name]).max() == pytest.approx(0.02 * 0.5**depth / 2.0**depth, rel=1e-6)


def test_batches_go_on_from_phase_to_phase() -> None:
    asked: list[int] = []

    def batches(step: int) -> dict[str, np.ndarray]:
        asked.append(step)
        return labelled(step)

    method = Ulmfit(n_labels=3)
    method.fit(method.apply(GPT(CONFIG)), Classification(), batches, TRAIN, progress=False)
    assert sorted(set(asked)) == list(range(24))


def test_the_best_weights_of_all_phases_are_kept() -> None:
    method = Ulmfit(n_labels=3, schedule="constant", factor=1.0)
    for lr in (0.003, 0.5):  # with the high rate, the last phase is worse than the first
        tuned = method.apply(GPT(CONFIG))
        validation = [labelled(1000)]
        config = replace(TRAIN, lr=lr, eval_every=2, keep_best=True)
        history = method.fit(tuned, Classification(), lambda step: labelled(), config, validation, progress=False)
        assert history.best_loss == min(history.eval_losses)
        assert history.eval_steps[history.eval_losses.index(history.best_loss)] == history.best_step
        assert history.eval_steps == sorted(set(history.eval_steps))
        b = validation[0]
        loss, _ = tuned.loss_and_grads(b["ids"], b["labels"], b["lengths"])
        assert loss == pytest.approx(history.best_loss, rel=1e-5)


def test_a_stop_ends_all_phases_and_leaves_nothing_frozen(tmp_path: Path) -> None:
    method = Ulmfit(n_labels=3)
    tuned = method.apply(GPT(CONFIG))

    def stop(state: State) -> None:
        state.stop = state.step == 2

    history = fit(method, tuned, callbacks=[stop])
    assert history.stopped == "stopped by a callback"
    assert len(history.steps) == 2
    assert all(p.trainable for p in tuned.parameters())


def test_a_run_that_diverges_leaves_nothing_frozen() -> None:
    method = Ulmfit(n_labels=3)
    tuned = method.apply(GPT(CONFIG))

    def poison(state: State) -> None:
        if len(calls) == 5:
            next(tuned.head.parameters()).data[...] = np.nan
        calls.append(0)

    calls: list[int] = []
    with pytest.raises(RunError, match="not finite"):
        fit(method, tuned, callbacks=[poison])
    assert all(p.trainable for p in tuned.parameters())


def test_a_run_in_phases_can_be_resumed(tmp_path: Path) -> None:
    method = Ulmfit(n_labels=3)
    config = replace(TRAIN, checkpoint_every=2, eval_every=2, keep_best=True)

    def run(directory: Path, stop_after: int | None, resume: bool) -> tuple[Any, History]:
        tuned = method.apply(GPT(CONFIG))
        count = [0]

        def stop(state: State) -> None:
            count[0] += 1
            state.stop = count[0] == stop_after

        history = fit(
            method, tuned, config, validation=[labelled(99)], callbacks=[stop], directory=directory, resume=resume
        )
        return tuned, history

    wanted, whole = run(tmp_path / "a", None, False)
    for cut in (2, 7, 13):
        _, part = run(tmp_path / f"b{cut}", cut, False)
        assert len(part.steps) == cut
        tuned, history = run(tmp_path / f"b{cut}", None, True)
        assert history.losses == whole.losses
        assert history.best_loss == whole.best_loss
        for a, b in zip(tuned.parameters(), wanted.parameters(), strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    assert (tmp_path / "a" / "phase-4" / "log.jsonl").exists()


def test_same_seed_same_bytes() -> None:
    method = Ulmfit(n_labels=3)
    runs = []
    for seed in (0, 0, 1):
        tuned = method.apply(GPT(CONFIG), seed=seed)
        fit(method, tuned)
        runs.append(weights(tuned))
    assert all((runs[0][name] == runs[1][name]).all() for name in runs[0])
    assert any((runs[0][name] != runs[2][name]).any() for name in runs[0])


def test_a_language_model_trains_all_at_once_by_lesson_2() -> None:
    method = METHODS["ulmfit"]()
    base = GPT(CONFIG)
    tuned = method.apply(base)
    assert isinstance(tuned, GPT)
    assert list(tuned.loss_and_grads(**text())[1]) == [p.name for p in base.parameters()]
    history = method.fit(tuned, LanguageModelling(), text, TRAIN, progress=False)
    assert history.rates == pytest.approx([slanted_triangular(step, 24, 0.02) for step in range(24)])
    assert all((p.data != q.data).any() for p, q in zip(tuned.parameters(), base.parameters(), strict=True))
    plain = method.merge(tuned)
    np.testing.assert_array_equal(plain.logits(text()["ids"]), tuned.logits(text()["ids"]))


@pytest.mark.parametrize("settings", [{"n_labels": 3}, {"n_labels": 3, "unfreezing": "head only"}, {}])
def test_files_hold_what_every_phase_has_changed(settings: dict[str, Any], tmp_path: Path) -> None:
    base, method = GPT(CONFIG), Ulmfit(**settings)
    tuned = method.apply(base, seed=4)
    objective, batches = (Classification(), labelled) if settings else (LanguageModelling(), text)
    scores: list[np.ndarray] = []

    def save(state: State) -> None:
        if len(scores) == 0 and state.step == 2:  # in the midst of a phase, with most of it frozen
            method.save(tuned, tmp_path / "midst")
            scores.append(tuned.logits(text()["ids"]))

    method.fit(tuned, objective, batches, TRAIN, progress=False, callbacks=[save])
    method.save(tuned, tmp_path / "end")
    scores.append(tuned.logits(text()["ids"]))
    for name, wanted in zip(("midst", "end"), scores, strict=True):
        loaded = METHODS["ulmfit"].load(base, tmp_path / name)
        np.testing.assert_array_equal(loaded.logits(text()["ids"]), wanted)
        assert all(p.trainable for p in loaded.parameters())
    with pytest.raises(ValueError, match="of the method 'ulmfit', not 'last_layer'"):
        METHODS["last_layer"].load(base, tmp_path / "end")
    with pytest.raises(ValueError, match="does not fit this model"):
        METHODS["ulmfit"].load(GPT(replace(CONFIG, n_layer=2)), tmp_path / "end")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_labels": 1}, "n_labels is 1; a classifier needs at least 2"),
        ({"unfreezing": "sudden"}, "unfreezing is 'sudden'; it must be one of gradual, dulled"),
        ({"schedule": "cosine"}, "schedule is 'cosine'; it must be one of constant, slanted triangular, one-cycle"),
        ({"factor": 0.5}, r"factor is 0\.5; it must be 1 or more"),
        ({"factor": float("nan")}, "factor is nan"),
        ({"scalar": 1.5}, r"scalar is 1\.5; it must be in \[0, 1\]"),
        ({"thawing": -0.1}, r"thawing is -0\.1; it must be in \[0, 1\]"),
        ({"hidden": -1}, "hidden is -1; it must be 0 or more"),
    ],
)
def test_impossible_settings_get_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Ulmfit(**settings)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- the last layer


def test_last_layer_trains_the_last_block_and_the_final_layernorm(tmp_path: Path) -> None:
    base, C, L = GPT(CONFIG, dtype="float64"), 4, 3
    block = (4 * C + 12 * C * C + 9 * C) + 2 * C  # two LayerNorms, four matrices, their biases; ln_f
    method = METHODS["last_layer"]()
    rng = np.random.default_rng(2)
    for p in base.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.data.shape)
    tuned = method.apply(base)
    assert n_trainable(tuned) == block
    _, grads = tuned.loss_and_grads(**text())
    wanted = [p.name for p in base.parameters() if f".h.{L - 1}." in p.name or "ln_f" in p.name]
    assert list(grads) == wanted
    for p in tuned.parameters():
        if not p.trainable:
            continue
        data = p.data

        def moved(value: Any, p: Any = p) -> float:
            p.data = value
            return LanguageModelling().forward(tuned, text(), 10.0, tuned.context())[0]

        numerical = numerical_gradient(moved, data, 1.0, step=5e-4)
        p.data = data
        assert error(grads[p.name], numerical, floor=1e-2) < TOLERANCE, p.name
    before = weights(base)
    method.fit(tuned, LanguageModelling(), text, TRAIN, progress=False)
    for p in tuned.parameters():
        assert (p.data != before[p.name]).any() == (p.name in wanted), p.name
    method.save(tuned, tmp_path / "last")
    loaded = METHODS["last_layer"].load(base, tmp_path / "last")
    ids = text()["ids"]
    np.testing.assert_array_equal(loaded.logits(ids), tuned.logits(ids))
    np.testing.assert_array_equal(method.merge(tuned).logits(ids), tuned.logits(ids))


def test_last_layer_with_a_head_trains_that_too() -> None:
    tuned = LastLayer(n_labels=3).apply(GPT(CONFIG))
    assert isinstance(tuned, Classifier)
    assert {p.name.split(".")[0] for p in tuned.parameters() if p.trainable} == {"transformer", "score"}


def test_the_way_back_ends_where_the_frozen_layers_begin() -> None:
    def calls(unfreezing: str) -> dict[str, int]:
        tuned = Ulmfit(n_labels=3).apply(GPT(CONFIG))
        lesson.thaw(tuned, phase_scales(unfreezing, 4, 1.0)[0])
        forward, backward = count_products(tuned, Classification(), labelled())
        assert forward.calls["attention_forward"] == 3
        return dict(backward.calls)

    assert calls("head only") == {"linear_backward_weight": 2, "linear_backward_input": 1}
    last = calls("last layer")
    assert last["attention_backward"] == 1
    assert last["linear_backward_weight"] == 2 + 4
    assert calls("all at once")["attention_backward"] == 3


# ---------------------------------------------------------------------------------------------- few labels


@pytest.fixture(scope="module")
def task() -> LabelTask:
    words = ("sun", "rain", "wind")
    examples = [Example(f"{words[i % 3]} over town {i} {words[i % 3]}", i % 3) for i in range(90)]
    data = DataSet("weather", examples[:60], examples[60:75], examples[75:], label_names=words)
    return LabelTask(data, Tokenizer.train([e.text for e in examples], 300))


def test_a_draw_is_balanced_random_and_repeatable(task: LabelTask) -> None:
    drawn = draw(task, 10, 0).data.train
    counts = [sum(e.label == label for e in drawn) for label in range(3)]
    assert sorted(counts) == [3, 3, 4]
    assert len({e.text for e in drawn}) == 10
    assert drawn == draw(task, 10, 0).data.train != draw(task, 10, 1).data.train
    assert draw(task, 60, 0).data.train != task.data.train
    assert sorted(e.text for e in draw(task, 60, 0).data.train) == sorted(e.text for e in task.data.train)
    for n in (2, 61):
        with pytest.raises(ValueError, match=f"{n} labels were asked for; it must be 3 to 60"):
            draw(task, n, 0)


def test_a_draw_takes_what_there_is_of_a_rare_label(task: LabelTask) -> None:
    train = [e for i, e in enumerate(task.data.train) if e.label < 2 or i < 6]
    rare = replace(task, data=replace(task.data, train=train))
    counts = [sum(e.label == label for e in draw(rare, 20, 0).data.train) for label in range(3)]
    assert counts == [9, 9, 2]


def test_labels_needed_reads_the_curve_backwards() -> None:
    curve = {100: 0.6, 400: 0.8, 1600: 0.7}
    assert labels_needed(curve, 0.5) == 100
    assert labels_needed(curve, 0.7) == pytest.approx(200)
    assert labels_needed(curve, 0.8) == pytest.approx(400)
    assert labels_needed(curve, 0.81) is None


def test_pretraining_and_seeds_reach_the_classifier(task: LabelTask, monkeypatch: pytest.MonkeyPatch) -> None:
    start = GPT(replace(CONFIG, vocab_size=300, n_positions=32))
    budget = Budget(3, 4, (1e-3, 1e-2), seeds=2, workers=1)
    bar = tqdm(disable=True)
    outcome = classification.measure(lesson.ULMFIT, start, task, 12, budget, 0, bar)
    assert outcome.lr in budget.grid
    assert len(outcome.accuracies) == 2
    assert outcome == replace(
        classification.measure(lesson.ULMFIT, start, task, 12, budget, 0, bar), seconds=outcome.seconds
    )
    a, _ = classification.train_classifier(lesson.HEAD, start, task, 12, budget, 1e-3, 0)
    assert (a.trunk.wte.data == start.wte.data).all()
    b, _ = classification.train_classifier(lesson.SCRATCH, start, task, 12, budget, 1e-3, 7)
    assert abs(b.trunk.wte.data - start.wte.data).max() > 0.01


def test_a_task_with_few_labels_has_a_curve_of_its_own(task: LabelTask) -> None:
    start = GPT(replace(CONFIG, vocab_size=300, n_positions=32))
    budget, here = Budget(1, 4, (1e-3,), workers=1), {"it": (lesson.HEAD, start, 0.5)}
    known = {("it", 60): Outcome(1.0, [2.0], 3.0)}
    curves = classification.measure_curves(here, task, (100, 200), budget, 0, "it", known)
    assert list(curves["it"]) == [15, 60]
    assert curves["it"][15].lr == 0.5
    assert curves["it"][60] is known["it", 60]


def test_names_of_the_ways_are_the_papers() -> None:
    assert [way.name for way in lesson.CORE_WAYS][:4] == [
        "from scratch + stlr",
        "head only + stlr",
        "last layer + stlr",
        "all at once",
    ]
    names = [way.name for way in lesson.FULL_WAYS]
    assert len(set(names)) == len(names)
    assert set(lesson.CORE_WAYS) < set(lesson.FULL_WAYS)
    assert lesson.ULMFIT.name == "gradual + discr + stlr"
    assert lesson.ULMFIT.method(2) == Ulmfit(n_labels=2)  # the paper's way is the default


# ---------------------------------------------------------------------------------------------- the whole lesson


def read(directory: Path) -> Any:
    return json.loads((directory / "lesson-03" / "record.json").read_text(encoding="utf-8"))


def test_quick_lesson_does_all_that_it_promises(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--check", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for said in ("def concat_pool_backward(", "def gradual_unfreezing(", "scores = relu(h W₁ + b₁) W₂", "head only"):
        assert said in printed
    assert "SOLUTION" not in printed
    lines = [line for line in printed.splitlines() if line.endswith((" ok", " WRONG", " not written yet"))]
    assert len(lines) > 20
    assert all(line.endswith(" ok") for line in lines)
    record = read(tmp_path)
    assert set(record["figures"]) == {
        "sentiment-target_scratch",
        "sentiment-target_head_only",
        "sentiment-target_all_at_once",
        "sentiment-target_gradual",
        "sentiment-target_one_label_for_all",
    }
    assert all(0 <= v <= 1 for f in record["figures"].values() for v in f["values"])
    results = record["results"]
    assert set(results["tables"]["sentiment-target"]) == {way.name for way in lesson.CORE_WAYS}
    assert set(results["labels"]["sentiment-target"]) == {
        lesson.FROM_SCRATCH,
        lesson.FROM_BASE,
        lesson.FROM_ADAPTED,
    }
    cost = results["step_cost"]
    assert sum(cost["head only"]["backward"].values()) < sum(cost["head only"]["forward"].values()) / 100
    activations = [cost[kind]["activations"] for kind in ("head only", "last layer", "all at once")]
    assert activations == sorted(activations)
    assert activations[0] < activations[2] / 100
    assert record["results"]["sizes"] == json.loads(json.dumps(asdict(lesson.QUICK)))
    assert record["pictures"] == ["table.png", "labels.png"]
    assert all(is_picture(tmp_path / "lesson-03" / name) for name in record["pictures"])


def test_quick_lesson_on_a_file(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "mine.csv"
    rows = [f'"{"good" if i < 60 else "bad"} thing number {i}",{"yes" if i < 60 else "no"}' for i in range(120)]
    path.write_text("text,label\n" + "\n".join(rows), encoding="utf-8")  # sorted by its labels
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    assert "mine.csv" in capsys.readouterr().out
    assert set(read(tmp_path)["results"]["tables"]) == {"mine.csv"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("one.csv", "text,label\n" + "good,1\n" * 9, "at least two classes are needed"),
        ("pairs.jsonl", '{"prompt": "a%d", "completion": "b"}\n', "this lesson needs labelled texts"),
        ("none.csv", None, "there is no such file"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_line(
    name: str, content: str | None, said: str, tmp_path: Path, capsys: Any
) -> None:
    if content is not None:
        many = "".join(content % i for i in range(90)) if "%d" in content else content
        (tmp_path / name).write_text(many, encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(tmp_path / name), "--out", str(tmp_path)]) == 2
    error_line = capsys.readouterr().err.strip()
    assert said in error_line
    assert "\n" not in error_line


def test_full_run_has_every_way_on_every_task(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sizes = replace(
        lesson.QUICK,
        tasks=("sentiment-target", "movie-reviews"),
        budget=replace(lesson.QUICK.budget, steps=2, grid=(1e-3,), seeds=2),
    )
    monkeypatch.setattr(lesson, "FULL", sizes)
    monkeypatch.setattr("minigpt.data.files.find", lambda name: _missing(name))
    assert lesson.main(["--full", "--brief", "--out", str(tmp_path)]) == 0
    assert "without movie-reviews: " in capsys.readouterr().out
    record = read(tmp_path)
    assert set(record["results"]["tables"]) == {"sentiment-target"}
    assert set(record["results"]["tables"]["sentiment-target"]) == {way.name for way in lesson.FULL_WAYS}
    assert len(record["figures"]["sentiment-target_gradual"]["values"]) == 2
    assert set(record["bands"]) >= {"sentiment-target_gradual", "sentiment-target_scratch"}
    assert (records / "lesson-03.json").exists()


def _missing(name: str) -> Path:
    raise lesson.InputError(f"{name} is not here")


def test_outcomes_have_a_mean() -> None:
    assert Outcome(1.0, [0.5, 0.7], 1.0).mean == pytest.approx(0.6)
