"""The comparison: its plan, the choice of learning rates, what is made of the runs, and a whole one at its smallest."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lessons import METHODS
from lessons import lesson_11_comparison as lesson
from lessons.common.runner import Settings, run_lesson
from lessons.common.sweep import Result
from lessons.common.tasks import LABELLED, PAIRS
from lessons.lesson_11_comparison import SCRATCH, TASKS, Plan, cells, choose, relative, target_loss, tidy, time_to
from minigpt import InputError, RunError

PLAN = Plan(("bitfit", SCRATCH), ("translation",), seeds=2, shrink=120, grid=(1.0, 3.0), base="base-xs")


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
    def cell(method: str, *scores: float) -> lesson.Cell:
        return lesson.Cell(method, "cards", 0.1, list(scores), [0.0] * len(scores), 0, 1, 1.0, [])

    found = [cell(SCRATCH, 0.2, 0.2), cell("full", 0.6, 0.6), cell("lora", 0.5, 0.5), cell("ia3", 0.1, 0.1)]
    assert relative(found) == pytest.approx({SCRATCH: 0.0, "full": 1.0, "lora": 0.75, "ia3": -0.25})
    noisy = [replace(found[0], score=[0.1, 0.6]), replace(found[1], score=[0.3, 0.7]), found[2]]
    assert relative(noisy) == {}  # full is not better than scratch beyond the spread: the task says nothing


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
    cost = record["results"]["costs"]["bitfit"]
    assert cost["trained"] == 1104
    assert cost["merged_latency_ms"] > 0
    assert record["results"]["costs"][SCRATCH]["stored_bytes"] > cost["stored_bytes"] > 4 * 1104
    rows = list(csv.DictReader((out / "lesson-11" / "runs.csv").open()))
    assert len(rows) == 6
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
