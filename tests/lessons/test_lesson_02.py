"""Lesson 2: rates by depth, the schedules, full fine-tuning as a method, and the whole lesson at its smallest."""

from __future__ import annotations

import fnmatch
import json
import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import get_backend
from lessons import METHODS
from lessons import lesson_02_ulmfit_target as lesson
from lessons.common import adaptation, runner
from lessons.common.adaptation import Domain, Laboratory, Plan, target_text
from lessons.common.classifier import Classifier
from lessons.common.method import n_trainable
from lessons.lesson_02_ulmfit_target import (
    SCHEDULES,
    Full,
    Variant,
    discriminative_rates,
    layer_groups,
    one_cycle,
    rate_groups,
    slanted_triangular,
    slanted_triangular_as_published,
)
from minigpt import GPT, GPTConfig, Tokenizer
from minigpt.objectives import LanguageModelling
from minigpt.optim import group_of
from minigpt.training import RunError, TrainConfig, train
from tests.helpers import TOLERANCE, error, is_picture, numerical_gradient
from tests.standin import BACKEND as STANDIN

NUMPY = get_backend("numpy")
GOLDEN = Path(__file__).parent.parent / "golden" / "one_cycle.json"  # by tests/parity/test_lesson_02_parity.py
CONFIG = GPTConfig(vocab_size=11, n_positions=7, n_embd=6, n_layer=3, n_head=2)


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the committed record, nor depends on it."""
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def language_batch(seed: int = 0, B: int = 2, T: int = 5) -> dict[str, np.ndarray]:
    ids, targets = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (2, B, T))
    targets[0, 1] = -100
    return {"ids": ids, "targets": targets}


# ---------------------------------------------------------------------------------------------- rates and schedules


def test_each_group_is_slower_by_the_factor() -> None:
    rates = discriminative_rates(0.01, 4)
    assert len(rates) == 4
    assert rates[-1] == 0.01
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([2.6] * 3)
    assert discriminative_rates(0.01, 3, 1.0) == [0.01] * 3
    assert discriminative_rates(0.5, 1) == [0.5]


@pytest.mark.parametrize("cut_frac", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("ratio", [32, 8])
def test_triangle_never_leaves_its_range(cut_frac: float, ratio: float) -> None:
    for steps in range(1, 501):
        rates = np.array([slanted_triangular(step, steps, 0.01, cut_frac, ratio) for step in range(steps)])
        assert rates.min() >= 0.01 / ratio * (1 - 1e-12)
        assert rates.max() == pytest.approx(0.01)  # the peak is reached
        peak = int(rates.argmax())
        assert peak == int(steps * cut_frac)
        assert (np.diff(rates[: peak + 1]) > 0).all()
        assert (np.diff(rates[peak:]) < 0).all()


def test_triangle_is_the_published_one_where_that_one_is_sound() -> None:
    for steps in range(10, 501, 10):
        for step in range(steps):
            ours, theirs = (f(step, steps, 0.01) for f in (slanted_triangular, slanted_triangular_as_published))
            assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("steps", "last"), [(15, -0.0040), (19, -0.0083), (99, -0.0006)])
def test_the_published_formula_goes_below_zero(steps: int, last: float) -> None:
    assert slanted_triangular_as_published(steps - 1, steps, 0.01) == pytest.approx(last, abs=5e-5)
    assert slanted_triangular(steps - 1, steps, 0.01) > 0.01 / 32
    with pytest.raises(ZeroDivisionError):
        slanted_triangular_as_published(0, 9, 0.01)


def test_triangle_rises_nine_times_as_steeply_as_it_falls() -> None:
    rates = [slanted_triangular(step, 200, 1.0) for step in range(200)]
    assert (rates[1] - rates[0]) / (rates[100] - rates[101]) == pytest.approx(9)


def test_one_cycle_begins_peaks_and_ends_where_it_should() -> None:
    for steps in range(2, 200):
        rates = np.array([one_cycle(step, steps, 0.02) for step in range(steps)])
        peak = max(0.25 * steps - 1, 0)
        assert rates[-1] == pytest.approx(0.02 / 1e5)
        assert rates.max() <= 0.02 * (1 + 1e-12)
        assert abs(int(rates.argmax()) - peak) <= 1
        if steps >= 8:
            assert rates[0] == pytest.approx(0.02 / 25)
        assert (np.diff(rates[math.ceil(peak) :]) < 0).all()
    assert one_cycle(0, 1, 0.02) == pytest.approx(0.02)
    assert one_cycle(3, 4, 0.02, pct_start=1.0) == pytest.approx(0.02)


def test_one_cycle_is_the_golden_one() -> None:
    for steps, rates in json.loads(GOLDEN.read_text(encoding="utf-8")).items():
        ours = [one_cycle(step, int(steps), 0.02) for step in range(int(steps))]
        assert error(ours, rates) < 1e-12


WRONG: dict[str, tuple[str, Any]] = {
    "published form": ("slanted_triangular", slanted_triangular_as_published),
    "never rises": ("slanted_triangular", lambda t, T, lr: lr * (1 + (1 - t / T) * 31) / 32),
    "falls to zero": ("slanted_triangular", lambda t, T, lr: lr * (32 * slanted_triangular(t, T, 1) - 1) / 31),
    "straight lines": ("one_cycle", lambda t, T, lr: lr * min((t + 1) / (0.25 * T), (T - t) / (0.75 * T), 1)),
    "ends at first rate": ("one_cycle", lambda t, T, lr: one_cycle(t, T, lr, div_final=25)),
    "peak too late": ("one_cycle", lambda t, T, lr: one_cycle(t, T, lr, pct_start=0.3)),
    "upside down": ("discriminative_rates", lambda lr, n, f=2.6: discriminative_rates(lr, n, f)[::-1]),
    "factor twice": ("discriminative_rates", lambda lr, n, f=2.6: discriminative_rates(lr, n, f * f)),
    "bottom has the rate": ("discriminative_rates", lambda lr, n, f=2.6: [lr * f**i for i in range(n)]),
    "embedding on top": ("layer_groups", lambda model: _moved(layer_groups(model), 0, -1)),
    "ln_f at the bottom": ("layer_groups", lambda model: _moved(layer_groups(model), -1, 0)),
}


def _moved(groups: list[tuple[str, ...]], source: int, target: int) -> list[tuple[str, ...]]:
    # What is not a block goes from one group to another.
    lists = [list(patterns) for patterns in groups]
    extra = [pattern for pattern in lists[source] if ".h." not in pattern]
    lists[source] = [pattern for pattern in lists[source] if pattern not in extra]
    lists[target] += extra
    return [tuple(patterns) for patterns in lists]


@pytest.mark.parametrize("name", WRONG)
def test_the_lesson_sees_a_wrong_variant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = WRONG[name]
    if function == "layer_groups":  # rates by group cannot tell; the groups themselves can
        with pytest.raises(AssertionError):
            check_groups(wrong)
        return
    monkeypatch.setattr(lesson, function, wrong)
    monkeypatch.setitem(SCHEDULES, "constant", lesson.constant)
    verdicts = []
    for d in lesson.DERIVATIONS:
        try:
            verdicts += [c.verdict for c in d.check(NUMPY)]
        except ZeroDivisionError:
            verdicts.append("WRONG")
    assert "WRONG" in verdicts


def test_the_lessons_own_checks_pass_and_wait_for_what_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (NUMPY, STANDIN):
        checks = [c for d in lesson.DERIVATIONS for c in d.check(backend)]
        assert len(checks) >= 8
        assert all(c.ok for c in checks)

    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    for name in ("discriminative_rates", "slanted_triangular", "one_cycle", "layer_groups"):
        monkeypatch.setattr(lesson, name, todo)
    checks = [c for d in lesson.DERIVATIONS for c in d.check(NUMPY)]
    assert all(c.missing for c in checks)


# ---------------------------------------------------------------------------------------------- groups


def check_groups(function: Any = layer_groups) -> None:
    trunk = GPT(CONFIG)
    for model, n in ((trunk, 3), (Classifier(trunk, 4, hidden=5), 4)):
        groups = function(model)
        assert len(groups) == n
        found: dict[str, int] = {}
        for p in model.parameters():
            at = [i for i, patterns in enumerate(groups) for q in patterns if fnmatch.fnmatchcase(p.name, q)]
            assert len(at) == 1, p.name  # exactly one pattern
            found[p.name] = at[0]
        for i in range(3):
            assert {g for name, g in found.items() if name.startswith(f"transformer.h.{i}.")} == {i}
        assert found["transformer.wte.weight"] == found["transformer.wpe.weight"] == 0
        assert found["transformer.ln_f.weight"] == found["transformer.ln_f.bias"] == 2
        if n == 4:
            assert found["score.weight"] == found["score_hidden.bias"] == 3


def test_every_parameter_is_in_one_group() -> None:
    check_groups()


def test_ten_blocks_are_not_taken_for_one() -> None:
    model = GPT(replace(CONFIG, n_layer=11))
    assert len(layer_groups(model)) == 11
    groups = layer_groups(model)
    names = [p.name for p in model.parameters()]
    assert [len(m) for m in lesson.members(groups, dict.fromkeys(names))][1:10] == [12] * 9


def test_one_block_is_bottom_and_top() -> None:
    model = GPT(replace(CONFIG, n_layer=1))
    (patterns,) = layer_groups(model)
    assert all(any(fnmatch.fnmatchcase(p.name, q) for q in patterns) for p in model.parameters())


def test_rate_groups_give_every_parameter_its_schedule() -> None:
    model = GPT(CONFIG)
    groups = rate_groups(layer_groups(model), 20, 0.1, "slanted triangular", 2.0, [1.0, 0.5, 0.25])
    for p in model.parameters():
        schedule = group_of(p, groups).schedule
        assert schedule is not None
        layer = int(p.name.split(".")[2]) if ".h." in p.name else 2 if "ln_f" in p.name else 0
        peak = 0.1 / 2.0 ** (2 - layer) * (1.0, 0.5, 0.25)[layer]
        assert schedule(2) == pytest.approx(peak)
        assert schedule(0) == pytest.approx(peak / 32)


def test_embedding_on_top_moves_the_embedding_only() -> None:
    model = GPT(CONFIG)
    plain, moved = (Variant("constant", 2.0, top).groups(model, 9, 1.0) for top in (False, True))
    rates = [
        {p.name: group_of(p, groups).schedule(0) for p in model.parameters()}  # type: ignore[misc]
        for groups in (plain, moved)
    ]
    assert {name for name in rates[0] if rates[0][name] != rates[1][name]} == {"transformer.wte.weight"}
    assert rates[1]["transformer.wte.weight"] == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("factor", [1.0, 2.6])
def test_training_moves_every_group_by_its_own_rate(schedule: str, factor: float) -> None:
    model = GPT(CONFIG, dtype="float64")
    before = {p.name: p.data.copy() for p in model.parameters()}
    config = TrainConfig(1, lr=7.0, eps=1e-14, weight_decay=0.0, max_norm=None, workers=1)
    groups = rate_groups(layer_groups(model), 1, 0.01, schedule, factor)
    history = train(model, LanguageModelling(), lambda step: language_batch(), config, groups=groups, progress=False)
    first = SCHEDULES[schedule](0, 1, 0.01)
    assert history.rates == [pytest.approx(first)]
    for layer, c_fc in enumerate(f"transformer.h.{i}.mlp.c_fc.weight" for i in range(3)):
        moved = np.abs(next(p.data for p in model.parameters() if p.name == c_fc) - before[c_fc])
        assert moved.max() == pytest.approx(first / factor ** (2 - layer), rel=1e-6)


# ---------------------------------------------------------------------------------------------- full fine-tuning


def test_full_trains_everything_under_the_bases_names() -> None:
    base = GPT(replace(CONFIG, n_embd=4, n_layer=1, n_positions=5), dtype="float64")
    base.freeze()
    tuned = METHODS["full"]().apply(base)
    assert n_trainable(tuned) == base.n_parameters
    b = language_batch()
    rng = np.random.default_rng(1)
    for p in tuned.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.data.shape)
    _, grads = tuned.loss_and_grads(b["ids"], b["targets"])
    assert list(grads) == [p.name for p in base.parameters()]
    for p in tuned.parameters():
        data = p.data

        def moved(value: Any, p: Any = p) -> float:
            p.data = value
            return LanguageModelling().forward(tuned, b, 9.0, tuned.context())[0]

        numerical = numerical_gradient(moved, data, 1.0, step=5e-4)
        p.data = data
        assert error(grads[p.name], numerical, floor=1e-2) < TOLERANCE, p.name
    assert not any(p.trainable for p in base.parameters())


def test_full_leaves_the_base_and_goes_through_files(tmp_path: Path) -> None:
    base, b = GPT(CONFIG), language_batch()
    weights = {p.name: p.data.copy() for p in base.parameters()}
    method = Full()
    tuned = method.apply(base)
    method.fit(tuned, LanguageModelling(), lambda step: b, TrainConfig(3, lr=0.01, workers=1), progress=False)
    assert all((p.data == weights[p.name]).all() for p in base.parameters())
    assert all((p.data != weights[p.name]).any() for p in tuned.parameters())
    method.save(tuned, tmp_path / "full")
    loaded = METHODS["full"].load(base, tmp_path / "full")
    np.testing.assert_array_equal(loaded.logits(b["ids"]), tuned.logits(b["ids"]))
    merged = method.merge(tuned)
    np.testing.assert_array_equal(merged.logits(b["ids"]), tuned.logits(b["ids"]))
    assert all(p.trainable for p in merged.parameters())
    merged.save_pretrained(tmp_path / "plain")
    np.testing.assert_array_equal(GPT.from_pretrained(tmp_path / "plain").logits(b["ids"]), tuned.logits(b["ids"]))


def test_full_with_a_head_cannot_be_merged() -> None:
    method = Full(n_labels=3)
    tuned = method.apply(GPT(CONFIG))
    assert isinstance(tuned, Classifier)
    assert n_trainable(tuned) == tuned.n_parameters
    with pytest.raises(ValueError, match="classifier head cannot become a plain GPT") as caught:
        method.merge(tuned)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- the experiment


@pytest.fixture(scope="module")
def laboratory() -> Laboratory:
    data = target_text(30)
    tokenizer = Tokenizer.train(data.train, 300)
    plan = Plan("base-xs", 30, (6,), (1e-3, 1e-2), 2, 16, 6, seeds=2, workers=1)
    config = replace(CONFIG, vocab_size=300, n_positions=16)
    domain = Domain.encode(data, tokenizer, plan)
    general = {"old": Domain.encode(target_text(10), tokenizer, plan).test}
    return Laboratory(GPT(config, seed=5), domain, general, plan)


def test_the_rate_is_the_one_with_the_lowest_validation_loss(laboratory: Laboratory) -> None:
    (results,) = laboratory.compare([Variant(factor=1.0), Variant(factor=1.0, scratch=True)], 3).values()
    assert list(results) == ["slanted triangular, one rate", "from scratch"]
    for result in results.values():
        assert [o.lr for o in result.tried] == list(laboratory.plan.grid)
        best = min(result.tried, key=lambda o: o.validation)
        assert result.lr == best.lr
        assert result.outcomes[0] is best
        assert [o.lr for o in result.outcomes] == [best.lr] * 2
        assert result.outcomes[0].losses != result.outcomes[1].losses  # another seed
    assert all(p.trainable for p in laboratory.base.parameters())


def test_runs_are_the_same_again_and_the_base_stays(laboratory: Laboratory) -> None:
    weights = {p.name: p.data.copy() for p in laboratory.base.parameters()}
    a, b = (laboratory.run(Variant(), 1e-2, 6, 0, points=2) for _ in range(2))
    assert a.losses == b.losses
    assert a.curve == b.curve
    assert [step for step, _ in a.curve] == [0, 3, 6]
    assert a.curve[0][1] == laboratory.losses(laboratory.base)
    assert a.curve[-1][1] == a.losses
    assert list(a.losses) == ["tinyworld-target", "old"]
    assert a.losses["tinyworld-target"] < a.curve[0][1]["tinyworld-target"]
    assert adaptation.forgetting(a, a.curve[0][1]) == pytest.approx(a.losses["old"] - a.curve[0][1]["old"])
    assert all((p.data == weights[p.name]).all() for p in laboratory.base.parameters())


def test_a_rate_at_which_training_diverges_loses(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Laboratory.run

    def fragile(self: Any, row: Any, lr: float, *rest: Any, **named: Any) -> Any:
        if lr in broken:
            raise RunError(f"step 1: loss is nan at {lr}")
        return run(self, row, lr, *rest, **named)

    monkeypatch.setattr(Laboratory, "run", fragile)
    broken = {1e-2}
    (results,) = laboratory.compare([Variant()], 0).values()
    assert results[Variant().name].lr == 1e-3
    broken = {1e-2, 1e-3}
    with pytest.raises(RunError, match=r"loss is nan at 0\.01"):
        laboratory.compare([Variant()], 0)


# ---------------------------------------------------------------------------------------------- the whole lesson


def read(directory: Path) -> Any:
    return json.loads((directory / "lesson-02" / "record.json").read_text(encoding="utf-8"))


def test_quick_lesson_does_all_that_it_promises(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--check", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for text in ("def slanted_triangular(", "def discriminative_rates(", "p = (T − t)/(T − cut)", "from scratch"):
        assert text in printed
    assert "SOLUTION" not in printed
    record = read(tmp_path)
    figures = {name: f["values"] for name, f in record["figures"].items()}
    assert set(figures) >= {"ulmfit_loss", "constant_loss", "scratch_loss", "ulmfit_forgetting", "constant_forgetting"}
    assert figures["ulmfit_loss"][0] < figures["base_loss"][0]
    after = record["results"]["after"]["4"]
    assert set(after) == {v.name for v in (*lesson.VARIANTS, lesson.SCRATCH)}
    assert after[lesson.ULMFIT.name]["runs"][0]["test"]["tinyworld-target"] == figures["ulmfit_loss"][0]
    assert set(record["results"]["curves"]) == {"ULMFiT", "constant", "from scratch"}
    assert record["results"]["plan"] == json.loads(json.dumps(asdict(lesson.QUICK)))
    assert record["pictures"] == ["schedules.png", "curves.png", "ablation.png"]
    assert all(is_picture(tmp_path / "lesson-02" / name) for name in record["pictures"])


def test_quick_lesson_on_a_file(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "mine.csv"
    rows = [f'"the {i % 17} of {i} went to sea in a green boat {i * 7}",{i % 2}' for i in range(200)]
    path.write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    assert "mine.csv" in capsys.readouterr().out
    assert set(read(tmp_path)["results"]["before"]) == {"mine.csv", "tinyworld"}


def test_a_file_that_cannot_be_used_gets_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(tmp_path / "empty.txt"), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert "is empty" in error
    assert "\n" not in error


def test_full_run_has_budgets_seeds_and_real_text(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plan = replace(lesson.QUICK, steps=(3, 2), grid=(1e-3, 3e-3), seeds=2)
    monkeypatch.setattr(lesson, "FULL", plan)
    monkeypatch.setattr(lesson, "movie_reviews", lambda: replace(target_text(20), name="movie-reviews"))
    monkeypatch.setattr(lesson, "general_texts", lambda n, quick: adaptation.general_texts(n, True))
    assert lesson.main(["--full", "--brief", "--out", str(tmp_path)]) == 0
    record = read(tmp_path)
    assert record["pictures"] == ["schedules.png", "curves.png", "ablation.png", "budgets.png"]
    assert len(record["figures"]["ulmfit_loss"]["values"]) == 2
    assert len(record["figures"]["movie_reviews_loss"]["values"]) == 2
    assert set(record["results"]["after"]) == {"3", "2"}
    assert len(record["results"]["after"]["2"][lesson.PLAIN.name]["tried"]) == 2
    assert set(record["bands"]) >= {"ulmfit_loss", "scratch_loss", "ulmfit_forgetting", "movie_reviews_loss"}
    assert (records / "lesson-02.json").exists()
