"""What the notebooks of lessons 2 and 3 draw beside the lessons' own pictures: rates by step, movement, verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lessons import lesson_02_ulmfit_target as target
from lessons import lesson_03_ulmfit_classifier as labelled
from lessons.common import adaptation, classification, low_rank, plotting
from lessons.common.classifier import Classifier
from minigpt import GPT, GPTConfig
from tests.helpers import is_picture

MODEL = GPT(GPTConfig(vocab_size=11, n_positions=7, n_embd=6, n_layer=2, n_head=2), seed=1)


def test_rates_by_group_and_step() -> None:
    rates = target.rate_map(3, 40, 0.1)
    assert rates.shape == (3, 40)
    assert rates.max(1) == pytest.approx([0.1 / 2.6**2, 0.1 / 2.6, 0.1])
    assert rates.argmax(1).tolist() == [4, 4, 4]


def test_rates_of_a_way_are_those_of_its_phases() -> None:
    frozen = labelled.phase_rates(labelled.ULMFIT, 3, 100) == 0
    assert frozen.sum(1).tolist() == [30, 15, 0]  # 15 steps a phase, until 30 % have passed
    assert frozen[0, :30].all()
    dulled = labelled.phase_rates(labelled.Way("dulled"), 3, 100)
    assert dulled[:, [0, 15, 30]] == pytest.approx(np.array([[0.09, 0.3, 1], [0.3, 1, 1], [1, 1, 1]]))


def test_movement_is_relative_to_each_part() -> None:
    tuned = MODEL.copy()
    tuned.unfreeze()
    for p in tuned.parameters():
        if p.name.startswith("transformer.h.1."):
            p.data = 1.5 * p.data
        if p.name == "transformer.wpe.weight":
            p.data = 0.0 * p.data
    moved = adaptation.movement(MODEL, tuned)
    assert list(moved) == ["embeddings", "block 0", "block 1"]
    tokens, places = (float(np.linalg.norm(MODEL.state()[f"transformer.{name}.weight"])) for name in ("wte", "wpe"))
    assert moved == pytest.approx(
        {"embeddings": places / math.hypot(tokens, places), "block 0": 0, "block 1": 0.5}, rel=1e-5
    )


def test_verdicts_are_those_of_every_beginning() -> None:
    model = Classifier(MODEL, 3, seed=2)
    found = classification.verdicts(model, [3, 1, 4, 1, 5])
    for t in range(5):
        scores = model.logits([[3, 1, 4, 1, 5][: t + 1]])[0].astype(float)
        assert found[t] == pytest.approx(np.exp(scores) / np.exp(scores).sum(), rel=1e-4)


def test_a_record_becomes_what_the_pictures_take() -> None:
    outcomes = [adaptation.Scored(0.1, 1.0, {"new": 2.0 + seed, "a": 5.0, "b": 7.0}, 1.5) for seed in range(2)]
    rows = {variant.name: adaptation.Result(outcomes, outcomes[:1]).as_record() for variant in target.VARIANTS}
    results = {
        "plan": {"steps": [80, 30]},
        "data": {"name": "new"},
        "before": {"a": 1.0, "b": 2.0, "new": 9.0},
        "after": {"30": rows, "80": rows},
    }
    found, before = target.recorded(json.loads(json.dumps(results, sort_keys=True)))
    assert list(found) == [80, 30]
    assert list(found[80]) == [variant.name for variant in target.VARIANTS]
    assert next(iter(before)) == "new"
    assert found[30][target.ULMFIT.name].of("new") == [2.0, 3.0]
    assert found[30][target.ULMFIT.name].forgotten(before) == [4.5, 4.5]
    assert math.isnan(found[30][target.ULMFIT.name].tried[0].seconds)


def test_the_lessons_order_comes_back_from_a_record() -> None:
    outcome = {"lr": 0.1, "accuracies": [0.5, 0.7], "seconds": 1.0}

    def table(ways: Sequence[labelled.Way]) -> dict[str, Any]:
        return {way.name: outcome for way in ways}

    results = {
        "sizes": {"tasks": ["z", "a", "absent"]},
        "tables": {"z": table(labelled.FULL_WAYS), "a": table(labelled.CORE_WAYS)},
        "labels": {task: {start: {"700": outcome, "2000": outcome} for start in labelled.STARTS} for task in "za"},
    }
    tables, curves = labelled.recorded(json.loads(json.dumps(results, sort_keys=True)))
    assert list(tables) == list(curves) == ["z", "a"]
    assert list(tables["z"]) == [way.name for way in labelled.FULL_WAYS]
    assert list(curves["a"][labelled.FROM_BASE]) == [700, 2000]
    assert curves["a"][labelled.FROM_BASE][700].mean == pytest.approx(0.6)


def test_pictures(tmp_path: Any) -> None:
    rates = {way.name: labelled.phase_rates(way, 3, 20) for way in (labelled.ULMFIT, labelled.CHAIN, labelled.AT_ONCE)}
    drawn = [
        adaptation.rate_picture(rates, ["bottom", "middle", "head"]),
        adaptation.movement_picture({"a": {"bottom": 0.1, "top": 0.2}, "b": {"bottom": 0.2, "top": 0.2}}),
        classification.verdict_picture(np.array([[0.4, 0.6], [0.9, 0.1]]), ["x", "y"], ["no", "yes"]),
        classification.pooling_picture(np.random.default_rng(0).standard_normal((4, 6)), list("abcd")),
        low_rank.ellipse_picture(np.array([[1.4, 0.8], [0.2, 0.7]])),
        low_rank.landscape_picture(3),
    ]
    for number, figure in enumerate(drawn):
        assert is_picture(plotting.save(figure, tmp_path / f"{number}.png"))
