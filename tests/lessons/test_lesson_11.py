"""The comparison: its plan, the choice of learning rates, what is made of the runs, and a whole one at its smallest."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from lessons import METHODS
from lessons import lesson_11_comparison as lesson
from lessons.common.runner import Settings, run_lesson
from lessons.common.sweep import Job, Result
from lessons.common.tasks import LABELLED, PAIRS
from lessons.lesson_11_comparison import SCRATCH, TASKS, Plan, cells, choose, relative, target_loss, tidy, time_to
from minigpt import InputError, RunError

SWEEPS = {
    "prompt length": replace(lesson.SWEEPS["prompt length"], values=(1, 2)),
    "scale": replace(lesson.SWEEPS["scale"], values=("base-xs",)),
}
PLAN = Plan(
    ("bitfit", SCRATCH),
    ("translation",),
    seeds=2,
    shrink=120,
    grid=(1.0, 3.0),
    base="base-xs",
    sweeps=SWEEPS,
    sweep_seeds=1,
)


def result(method: str, score: float = 0.5, error: str = "", **more: Any) -> Result:
    job = {"method": method, "task": "cards", "lr": 0.1, "seed": 0, "steps": 100} | more.pop("job", {})
    values = {
        "scores": {"exact_match": score},
        "forgetting": 0.1,
        "trained": 10,
        "eval_steps": [50, 100],
        "eval_losses": [2.0, 1.0],
        "seconds": 4.0,
    }
    return Result(job, {} if error else values | more, error, 5.0)


def test_every_task_is_one_of_the_course_and_every_kind_is_there() -> None:
    assert TASKS.keys() <= LABELLED.keys() | PAIRS.keys()
    assert any(name in LABELLED and name.startswith("pydocs") for name in TASKS)
    assert {"translation", "addition", "cards"} <= TASKS.keys()


def test_the_plan_holds_every_method_on_every_task() -> None:
    plan = Plan((*METHODS, SCRATCH), tuple(TASKS), seeds=5)
    grid = plan.grid_jobs()
    assert len(grid) == len(plan.methods) * len(TASKS) * 3
    assert not any(job["scored"] for job in grid)
    chosen = {(m, t): 0.1 for m in plan.methods for t in plan.tasks}
    final = plan.final_jobs(chosen)
    assert len(final) == (len(plan.methods) * 5 + 2) * len(TASKS)
    assert all(job["scored"] for job in final)
    assert {job["seed"] for job in final}.isdisjoint({job["seed"] for job in grid})
    rates = {job["lr"] for job in grid if job["method"] == "lora" and job["task"] == "cards"}
    assert rates == {METHODS["lora"].learning_rate * f for f in lesson.GRID}


def test_the_rate_with_the_lowest_validation_loss_is_chosen() -> None:
    def at(lr: float, losses: list[float], error: str = "") -> Result:
        return result("lora", error=error, job={"lr": lr}, eval_losses=losses)

    grid = [at(1.0, [3.0, 2.5]), at(2.0, [2.4, 9.0]), at(3.0, [0.1], error="diverged")]
    assert choose(grid) == {("lora", "cards"): 2.0}
    with pytest.raises(RunError, match="lora on cards"):
        choose(grid[2:])


@pytest.mark.parametrize(
    ("best", "tried", "chosen"),
    [
        (2.0, [], 2.0),  # inside of the grid
        (8.0, [8.0, 16.0], 8.0),  # one further, and the one after it is worse
        (1e9, [8.0, 16.0], 16.0),  # ever better: no more than so many
        (0.5, [0.5, 0.25], 0.5),  # downwards
    ],
)
def test_a_grid_goes_on_where_its_best_rate_is_at_an_end(best: float, tried: list[float], chosen: float) -> None:
    done: list[float] = []

    def runs(jobs: Sequence[Job]) -> list[Result]:
        done.extend(job["lr"] for job in jobs)
        return [Result(dict(job), {"eval_losses": [abs(math.log(job["lr"] / best))]}, "", 0.0) for job in jobs]

    grid = [{"method": "lora", "task": "cards", "lr": lr} for lr in (1.0, 2.0, 4.0)]
    assert lesson.tune(grid, runs) == {("lora", "cards"): chosen}
    assert done == [1.0, 2.0, 4.0, *tried]
    assert lesson.tune(grid[:1], runs) == {("lora", "cards"): 1.0}  # a single rate is no grid


def test_cells_gather_the_seeds() -> None:
    runs = [result("full", 0.9), result("full", 0.7, job={"seed": 1}), result("lora", error="diverged"), result("lora")]
    full, lora = cells(runs, {"cards": "exact_match"})
    assert (full.score, full.diverged, full.seconds_a_step) == ([0.9, 0.7], 0, 0.04)
    assert (lora.score, lora.diverged, lora.trained) == ([0.5], 1, 10)


def test_the_target_is_nine_tenths_of_the_way_of_full_fine_tuning() -> None:
    assert target_loss([result("full")]) == pytest.approx(1.1)
    assert target_loss([]) is None
    assert time_to(result("lora"), 1.1) == 4.0
    assert time_to(result("lora"), 2.0) == 2.0
    assert time_to(result("lora"), 0.9) is None


def test_the_relative_scale_runs_from_scratch_to_full() -> None:
    scores = {SCRATCH: 0.2, "full": 0.6, "lora": 0.5, "ia3": 0.1}
    found = [cell(method, scores=(score, score)) for method, score in scores.items()]
    assert relative(found) == pytest.approx({SCRATCH: 0.0, "full": 1.0, "lora": 0.75, "ia3": -0.25})
    noisy = [replace(found[0], score=[0.1, 0.6]), replace(found[1], score=[0.3, 0.7]), found[2]]
    assert relative(noisy) == {}  # full is not better than scratch beyond the spread: the task says nothing


def cell(method: str, task: str = "cards", scores: tuple[float, ...] = (0.5, 0.5), lost: float = 0.0) -> lesson.Cell:
    seeds = list(range(len(scores)))
    return lesson.Cell(method, task, 0.1, seeds, list(scores), [lost] * len(scores), 0, 10, 1.0, [])


def test_the_interval_is_students() -> None:
    mean, low, high = lesson.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (mean, low, high) == pytest.approx((3.0, 3 - half, 3 + half), rel=1e-6)
    wide = lesson.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0], 0.99)
    assert wide[2] - wide[1] > high - low


def test_a_difference_is_paired_by_seed() -> None:
    luck = [0.0, 5.0, -3.0, 8.0]
    first = {seed: 1.0 + value for seed, value in enumerate(luck)} | {9: 100.0}
    second = dict(reversed(list(enumerate(luck))))  # in another order
    assert lesson.paired_interval(first, second) == pytest.approx((1.0, 1.0, 1.0))


def test_ties_go_to_the_lower_rate_and_diverged_runs_do_not_count() -> None:
    assert lesson.choose_rate([3.0, 1.0, 2.0], [0.5, 0.5, 0.4]) == 2
    assert lesson.choose_rate([3.0, 1.0, 2.0], [0.5, 0.5, math.nan]) == 1
    assert lesson.choose_rate([3.0, 1.0], [math.inf, math.nan]) == -1


def test_the_front_holds_what_nothing_beats() -> None:
    cost = np.array([1.0, 2.0, 2.0, 3.0, 1.0, 4.0])
    quality = np.array([0.5, 0.7, 0.6, 0.7, 0.5, 0.9])
    assert lesson.pareto_front(cost, quality).tolist() == [True, True, False, False, True, True]


def test_a_method_is_held_against_full_on_the_seeds_and_tasks_that_both_have() -> None:
    found = [
        cell("full", "cards", (0.5, 0.7)),
        cell("lora", "cards", (0.4, 0.8)),
        cell("full", "addition", (0.2, 0.2, 0.2)),
        cell("lora", "addition", (0.4, 0.0, 0.9)),
    ]
    assert lesson.against_full(found, "lora") == pytest.approx({0: 0.05, 1: -0.05})
    assert lesson.against_full(found, "ia3") == {}


def test_sweeps_are_those_that_were_asked_for() -> None:
    asked = {("lora", "r"), ("prompt_tuning", "num_virtual_tokens"), ("adapters", "bottleneck"),
             ("importance", "density"), ("prompt_tuning", "base")}  # fmt: skip
    assert {(s.method, s.setting) for s in lesson.SWEEPS.values()} == asked
    plan = Plan((), ("translation",), seeds=1, sweeps=lesson.SWEEPS)
    for name, swept in lesson.SWEEPS.items():
        rates = {lesson.variant(m, v): [0.1, 0.2] for m in swept.methods for v in swept.values}
        jobs = plan.sweep_jobs(name, rates, [0, lesson.GRID_SEED])
        assert len(jobs) == 4 * len(swept.methods) * len(swept.values)
        assert all(job["scored"] == (job["seed"] == 0) for job in jobs)
        where = {job["base"] if swept.setting == "base" else job["settings"][swept.setting] for job in jobs}
        assert where == set(swept.values)


def test_names_in_the_picture_of_forgetting_do_not_cover_each_other() -> None:
    found = [cell(SCRATCH, scores=(0.1, 0.1)), cell("full", scores=(0.9, 0.9), lost=0.5)]
    found += [cell(name, scores=(0.5, 0.5), lost=0.1) for name in METHODS if name != "full"]
    picture = lesson.forgetting_picture(found)
    picture.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in picture.axes[0].texts]  # without the lines that join them
    assert len(boxes) == len(METHODS)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_table_for_the_readme_has_a_row_a_method() -> None:
    cost = {
        "trained": 1104,
        "step": {"bytes": 2.5e6},
        "merged_latency_ms": None,
        "latency_ms": 1.25,
        "base_latency_ms": 0.5,
    }
    found = [cell(m, "cards", s) for m, s in (("full", (0.5, 0.7)), ("zero-shot", (0.1,)), ("few-shot", ()))]
    results = {
        "plan": {"methods": ["full"], "tasks": ["cards"]},
        "cells": [vars(c) for c in found],
        "costs": {"full": cost},
        "relative": {"full": 1.0},
    }
    rows = lesson.readme_table(results).splitlines()[2:]
    assert rows[0] == "| full | 1,104 | 2.5 | 2.5 | +0.00 | 0.600 ± 0.141 |"
    assert rows[1] == "| zero-shot | – | – | – | – | 0.100 |"
    assert rows[2].endswith("| diverged |")


def test_continuations_are_judged_by_their_true_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tokenizer = lesson.bases.load("base-xs")
    task = lesson.load_task("continuations", tokenizer, 8)
    best = [pair.completion for pair in task.data.test[:3]]
    monkeypatch.setattr(type(task), "complete", lambda *_: best)
    judged = lesson.rewarded(base, task, 3)["true_reward"]
    told = [lesson.tinyworld.true_reward(p.prompt, p.completion) for p in task.data.test[:3]]
    assert judged == pytest.approx(sum(told) / 3)
    assert judged > 0.3
    assert lesson.rewarded(base, replace(task, data=replace(task.data, name="other")), 3) == {}


def test_runs_as_csv_keep_settings_and_figures() -> None:
    text = tidy([result("full", 0.25), result("lora", error="diverged, at step 3")])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in rows] == ["full", "lora"]
    assert float(rows[0]["score_exact_match"]) == 0.25
    assert rows[1]["score_exact_match"] == ""
    assert rows[1]["error"] == "diverged, at step 3"


def test_every_method_has_a_family() -> None:
    members = {name for _, names in lesson.FAMILIES.values() for name in names}
    assert members == set(METHODS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesson, "plan_of", lambda run: PLAN)
        run = run_lesson(11, lesson.lesson, Settings(quick=True, brief=True, out=out))
        assert {path.name for path in run.pictures} >= {"quality.png", "memory.png"}
    return json.loads((out / "lesson-11" / "record.json").read_text()), out


def test_the_whole_comparison_runs_and_says_all(whole: tuple[dict[str, Any], Path]) -> None:
    record, out = whole
    assert set(record["figures"]) == {f"translation/{m}" for m in ("bitfit", SCRATCH, "zero-shot", "few-shot")}
    assert len(record["figures"]["translation/bitfit"]["values"]) == 2
    points = record["results"]["sweeps"]
    assert [(p["sweep"], p["method"], p["value"]) for p in points] == [
        ("prompt length", "prompt_tuning", 1),
        ("prompt length", "prompt_tuning", 2),
        ("scale", "prompt_tuning", "base-xs"),
        ("scale", "full", "base-xs"),
    ]
    assert [p["trained"] for p in points] == [48, 96, 20 * 48, 118080]
    assert "| bitfit | 1,104 |" in (out / "lesson-11" / "comparison.md").read_text()
    cost = record["results"]["costs"]["bitfit"]
    assert cost["mixed_latency_ms"] > 0
    assert not cost["one_batch"]
    assert cost["trained"] == 1104
    assert cost["merged_latency_ms"] > 0
    assert record["results"]["costs"][SCRATCH]["stored_bytes"] > cost["stored_bytes"] > 4 * 1104
    rows = list(csv.DictReader((out / "lesson-11" / "runs.csv").open()))
    assert len(rows) == 6 + 2 + 2  # the plan's, two lengths, two methods on one base
    settings = [json.loads(row["settings"]) for row in rows if row["method"] == "prompt_tuning"]
    assert settings == [{"num_virtual_tokens": 1}, {"num_virtual_tokens": 2}, {}]
    assert {row["numpy"] for row in rows} == {np.__version__}
    forgotten = {row["method"]: float(row["forgetting"]) for row in rows}
    assert forgotten["zero-shot"] == 0.0
    assert forgotten[SCRATCH] > 1.0
    assert all(math.isfinite(value) for value in forgotten.values())


def test_a_second_time_nothing_is_done_again(
    whole: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = whole
    monkeypatch.setattr(lesson, "plan_of", lambda run: PLAN)
    monkeypatch.setattr(lesson, "measure", None)
    monkeypatch.setattr(lesson, "costs", None)
    run_lesson(11, lesson.lesson, Settings(quick=True, brief=True, out=out))


def test_own_data_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its own tasks"):
        run_lesson(11, lesson.lesson, Settings(data="x.csv", quick=True, out=tmp_path))
