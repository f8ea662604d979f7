"""The ledger: every verdict flips with made-up figures, too few or overlapping ones decide nothing, and what is missing
is told in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lessons import claim_measurements as own
from lessons import claims
from lessons import lesson_11_comparison as comparison
from lessons.claims import CLAIMS, OWN, Evidence, ledger_markdown, ledger_table, settle
from lessons.common.runner import RECORDS
from lessons.common.sweep import Result
from lessons.common.verdicts import Judged, Part, Verdict, combined, condition, judge, student_t
from lessons.lesson_11_comparison import mean_interval
from minigpt import InputError, files

UP = [0.40, 0.41, 0.39, 0.42, 0.40]
DOWN = [-v for v in UP]
ACROSS = [0.4, -0.4, 0.1, -0.1, 0.02]
FEW = UP[:2]
TASKS = list(comparison.TASKS)

Records = dict[int, Any]
Effects = list[float]


def put(records: Records, lesson: int, *path_and_value: Any) -> None:
    """Into a record of made-up figures."""
    *path, last, value = path_and_value
    at = records.setdefault(lesson, {} if lesson == OWN else {"figures": {}, "results": {}})
    for key in path:
        at = at.setdefault(key, {})
    at[last] = value


def figure(records: Records, lesson: int, name: str, values: list[float]) -> None:
    put(records, lesson, "figures", name, "values", values)


def arm(records: Records, study: str, name: str, **told: list[float]) -> None:
    for what, values in told.items():
        put(records, OWN, "arms", study, name, what, {str(seed): v for seed, v in enumerate(values)})


def add(records: Records, what: str, many: list[dict[str, Any]], **settings: Any) -> None:
    found = records.setdefault(OWN, {}).setdefault(what, [])
    found += [one | {"job": {"what": what, "seed": seed} | settings} for seed, one in enumerate(many)]


def cell(records: Records, method: str, task: str, score: list[float], forgetting: list[float] | None = None) -> None:
    put(records, 11, "results", "plan", "tasks", TASKS)
    entry = {"method": method, "task": task, "seeds": list(range(len(score))), "score": score}
    found = records[11]["results"].setdefault("cells", [])
    found.append(entry | {"forgetting": forgetting or [0.0] * len(score)})


def swept(records: Records, sweep: str, method: str, value: Any, parameters: int = 1, **told: list[float]) -> None:
    put(records, 11, "results", "plan", "tasks", TASKS)
    entry = {"sweep": sweep, "method": method, "value": value, "parameters": parameters}
    n = len(next(iter(told.values())))
    records[11]["results"].setdefault("sweeps", []).append(entry | {"seeds": list(range(n)), **told})


def ones(d: Effects) -> list[float]:
    return [1.0] * len(d)


def plus(d: Effects, by: float = 1.0, times: float = 1.0) -> list[float]:
    return [by + times * v for v in d]


# Made-up records for every claim, in which each of its inequalities has the effects d beyond its threshold.


def one(r: Records, d: Effects) -> None:
    for recipe in ("one rate", "ULMFiT's rates"):
        arm(r, "unfreezing", f"gradual, {recipe}", forgetting=ones(d), score=ones(d))
        arm(r, "unfreezing", f"all at once, {recipe}", forgetting=plus(d), score=ones(d))


def lesson_2(r: Records, steps: str, row: str, losses: list[float], old: list[float] | None = None) -> None:
    put(r, 2, "results", "data", {"name": "z"})
    put(r, 2, "results", "before", {"a": 1.0, "z": 9.0})
    old = old or ones(losses)
    runs = [{"test": {"a": was, "z": loss}} for was, loss in zip(old, losses, strict=True)]
    put(r, 2, "results", "after", steps, row, "runs", runs)


def two(r: Records, d: Effects) -> None:
    for steps in ("30", "80", "240"):
        lesson_2(r, steps, "slanted triangular, one rate", ones(d))
        lesson_2(r, steps, "constant, one rate", plus(d))
    put(r, OWN, "slant", "0.1", {str(i): 1.0 for i in range(len(d))})
    put(r, OWN, "slant", "0.9", {str(i): 1.0 + v for i, v in enumerate(d)})


def three(r: Records, d: Effects) -> None:
    lesson_2(r, "80", "slanted triangular, discriminative", ones(d), ones(d))
    lesson_2(r, "80", "slanted triangular, one rate", plus(d), plus(d))
    put(r, 3, "results", "tables", "sentiment-target", "all at once + stlr", {"accuracies": ones(d)})
    put(r, 3, "results", "tables", "sentiment-target", "all at once + discr + stlr", {"accuracies": plus(d)})


def four(r: Records, d: Effects) -> None:
    for task in ("translation", "pydocs-topics"):
        put(r, 5, "results", "sweep", task, {"random": {"0.01": plus(d)}, "gradient": {"0.01": ones(d)}})


def five(r: Records, d: Effects) -> None:
    figure(r, 5, "spearman_first_order", plus(d, 0.5))
    put(r, 5, "results", "proof", {"single entries, gradient": plus(d), "forest, top": ones(d)})
    put(r, 5, "results", "study", {"masks": 540})


def six(r: Records, d: Effects) -> None:
    for base in ("base-xs", "base-l"):
        add(r, "ranking price", [{"ranking": 2 * (1 + v), "training": 2.0} for v in d], base=base)


def seven(r: Records, d: Effects) -> None:
    add(r, "rivals", [{"frobenius": v, "spectral": v} for v in d])
    figure(r, 6, "plain_loss_above_base", ones(d))
    figure(r, 6, "aware_loss_above_base", plus(d))


def eight(r: Records, d: Effects) -> None:
    add(r, "components", [{"cosine": 0.99 + 0.02 * v, "error": 1e-6 * (1 + v)} for v in d])


def nine(r: Records, d: Effects) -> None:
    up = sum(d) > 0
    add(r, "counted", [{"lora": 4608 if up else 30000, "weight": 32768}])
    figure(r, 7, "lora_memory", [0.1 if up else 0.9])


def ten(r: Records, d: Effects) -> None:
    for task in TASKS:
        cell(r, "full", task, ones(d))
        cell(r, "lora", task, plus(d, 1 - claims.MARGIN))
    for method in ("full", "lora"):
        put(r, 11, "results", "costs", method, {"trained": 10})


def eleven(r: Records, d: Effects) -> None:
    losses = {1: [5.0] * len(d), 4: plus(d, 5.0, -1), 32: plus(d, 0.5, -1), 64: [0.0] * len(d)}
    for rank, values in losses.items():
        put(r, 7, "results", "rewriting", "rank", str(rank), {"loss": values})
        swept(r, "rank", "lora", rank, loss=values)


def twelve(r: Records, d: Effects) -> None:
    for task in ("cards", "translation"):
        arm(r, "targets", f"all, {task}", score=ones(d))
        arm(r, "targets", f"all of attention, {task}", score=plus(d, 1 - claims.MARGIN))


def thirteen(r: Records, d: Effects) -> None:
    add(
        r,
        "latency",
        [{"base": 1, "LoRA, merged": 1.05 - v, "adapters": 1.05 + v, "LoRA, not merged": 1.2} for v in d],
    )


def fourteen(r: Records, d: Effects) -> None:
    off = {"difference": 0.0 if sum(d) > 0 else 1.0, "base_moved": 0.0}
    for method in ("lora", "adapters"):
        add(r, "swapped", [{"own": 1.0, "other": 1.0 + v} | off for v in d], method=method)


def fifteen(r: Records, d: Effects) -> None:
    for task in ("addition", "cards"):
        cell(r, "zero-shot", task, [0.2])
        cell(r, "few-shot", task, [0.1])
        cell(r, "full", task, [0.9] * len(d))
        cell(r, "lora", task, plus(d, 0.3, -1))


def sixteen(r: Records, d: Effects) -> None:
    for task in TASKS:
        cell(r, "full", task, ones(d), plus(d, 0.05))
        for method in claims.PEFT:
            cell(r, method, task, ones(d), [0.05] * len(d))
    for text in ("tinyworld", "pydocs"):
        figure(r, 4, f"mixture_{text}_loss_change", plus(d, 0.05, -1))
    figure(r, 4, "mixture_score", plus(d, 0.45))
    figure(r, 4, "one_task_each_score", [0.5] * len(d))


def seventeen(r: Records, d: Effects) -> None:
    names = ("gradients", "optimizer", "activations", "bytes", "measured_peak")
    put(r, 7, "results", "step", "full fine-tuning", dict.fromkeys(names, 100))
    put(r, 7, "results", "step", "LoRA on all", dict.fromkeys(names, 50 - 100 * d[0]))


def eighteen(r: Records, d: Effects) -> None:
    put(r, 5, "results", "sweep", "translation", "gradient", {"0.2": plus(d, 1.05, -1)})
    figure(r, 5, "pairs_loss_all", ones(d))
    swept(r, "density", "importance", 0.2, score=plus(d, 0.98))
    swept(r, "scale", "full", "base-s", score=ones(d))


def nineteen(r: Records, d: Effects) -> None:
    gaps = {"base-xs": plus(d, claims.MARGIN), "base-l": [claims.MARGIN] * len(d)}
    for n, (base, gap) in enumerate(gaps.items()):
        accuracy = {"all parameters": gap, "soft prompt": [0.0] * len(d)}
        put(r, 9, "results", "scale", base, {"n_parameters": 10**n} | accuracy)
    for n, (base, values) in enumerate({"base-xs": d, "base-l": [0.0] * len(d)}.items()):
        swept(r, "scale", "prompt_tuning", base, 10**n, loss=plus(values))
        swept(r, "scale", "full", base, 10**n, loss=ones(d))


def twenty(r: Records, d: Effects) -> None:
    for task in ("sentiment-pairs", "topic-pairs"):
        add(r, "reading", [{"trained": 0.1 + v, "untrained": 0.1, "chance": 0.1} for v in d], task=task)


def twenty_one(r: Records, d: Effects) -> None:
    for task in ("sentiment-target", "pydocs-topics"):
        figure(r, 3, f"{task}_all_at_once", plus(d, 0.52))
        figure(r, 3, f"{task}_head_only", [0.5] * len(d))
    for task in TASKS:
        cell(r, "full", task, plus(d, 0.52))
        cell(r, "last_layer", task, [0.5] * len(d))


def twenty_two(r: Records, d: Effects) -> None:
    figure(r, 10, "supervised_true_reward", ones(d))
    for name, sign in (("ppo", 1), ("ppo_without_price", -1)):
        figure(r, 10, f"{name}_true_reward", plus(d) if sign > 0 else ones(d))
        figure(r, 10, f"{name}_learnt_reward", ones(d) if sign > 0 else plus(d))
        figure(r, 10, f"{name}_kl", ones(d) if sign > 0 else plus(d))


def twenty_three(r: Records, d: Effects) -> None:
    for task in ("a", "b"):
        scratch = {n: {"accuracies": ones(d)} for n in ("250", "700", "2000")}
        base = {n: {"accuracies": plus(d)} for n in ("250", "700", "2000")}
        put(r, 3, "results", "labels", task, {"from scratch": scratch, "from the base": base})


def twenty_four(r: Records, d: Effects) -> None:
    curves = [
        {
            "curve": {
                "50": {"one task each": 0.52 + v, "mixture": 0.5},
                "250": {"one task each": 1.0, "mixture": 0.5},
                "1000": {"one task each": 1.0, "mixture": 0.6 + v},
            }
        }
        for v in d
    ]
    put(r, 4, "results", "runs", curves)


def twenty_five(r: Records, d: Effects) -> None:
    few = plus(d, 1 - claims.MARGIN)
    for task in ("cards", "translation"):
        arm(r, "data", f"lora, 0.25, {task}", score=few)
        arm(r, "data", f"lora, 1, {task}", score=few)
        arm(r, "data", f"full, 0.25, {task}", score=plus(d, 1.0, -1))
        arm(r, "data", f"full, 1, {task}", score=ones(d))


def twenty_six(r: Records, d: Effects) -> None:
    weight = 0.5 + math.fsum(d) / len(d)
    figure(r, 6, "weights_error_at_rank_8", [weight] * len(d))
    figure(r, 6, "update_error_at_rank_8", plus(d, weight, -1))
    losses = [{"before": 1.0, "after": 0.0, "update_losses": dict.fromkeys(("8", "32"), 0.1 - v)} for v in d]
    put(r, 6, "results", "updates", losses)


def twenty_seven(r: Records, d: Effects) -> None:
    figure(r, 10, "supervised_forgets_more_than_ppo", d)
    paths = {"PPO": [[[0.1, 9.0], [0.2, 1.0]] for _ in d], "more supervised": [[[0.1, 9.0], [0.2, 1 + v]] for v in d]}
    put(r, 10, "results", "forgetting", paths)


def twenty_eight(r: Records, d: Effects) -> None:
    halves = {"bleu": 30.0, "average": 100.0}
    add(r, "bleu", [{"difference": 1 - v, "spearman": 0.95 + 0.1 * v, "halves": halves} for v in d])


MADE_UP: dict[int, Callable[[Records, Effects], None]] = dict(
    enumerate(
        (one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen,
         sixteen, seventeen, eighteen, nineteen, twenty, twenty_one, twenty_two, twenty_three, twenty_four,
         twenty_five, twenty_six, twenty_seven, twenty_eight),
        start=1,
    )
)  # fmt: skip
COUNTED = (9, 17)
"""All parts are counted: there is no spread to be undecided about."""
PARTLY_COUNTED = (7, 14, 26)
"""Some are, and they stand whatever the seeds say."""


def verdict(number: int, effects: Effects) -> Verdict:
    records: Records = {}
    MADE_UP[number](records, effects)
    entry = settle(CLAIMS[number], Evidence(records))
    assert not entry.missing
    return entry.verdict


def test_all_claims_of_the_course_are_there() -> None:
    assert sorted(CLAIMS) == list(range(1, 29))
    assert MADE_UP.keys() == CLAIMS.keys()
    for number, one_claim in CLAIMS.items():
        assert one_claim.number == number
        assert one_claim.statement.endswith(".")
        assert one_claim.sources


@pytest.mark.parametrize("number", CLAIMS)
def test_figures_for_it_make_it_hold_and_opposite_ones_refute_it(number: int) -> None:
    assert verdict(number, UP) is Verdict.HOLDS
    assert verdict(number, DOWN) is Verdict.FAILS


@pytest.mark.parametrize("number", [n for n in CLAIMS if n not in (*COUNTED, *PARTLY_COUNTED)])
def test_overlapping_figures_and_too_few_seeds_decide_nothing(number: int) -> None:
    assert verdict(number, ACROSS) is Verdict.UNKNOWN
    assert verdict(number, FEW) is Verdict.UNKNOWN


@pytest.mark.parametrize("number", PARTLY_COUNTED)
def test_what_is_counted_stands_beside_what_is_undecided(number: int) -> None:
    records: Records = {}
    MADE_UP[number](records, FEW)
    entry = settle(CLAIMS[number], Evidence(records))
    assert entry.verdict is Verdict.CONDITION
    assert "undecided for" in entry.condition


@pytest.mark.parametrize("number", CLAIMS)
def test_a_missing_record_or_figure_is_one_clear_line(number: int) -> None:
    sources = CLAIMS[number].sources
    entry = settle(CLAIMS[number], Evidence({}))
    assert entry.verdict is Verdict.UNKNOWN
    assert entry.parts == []
    assert "not there yet" in entry.missing
    assert any(claims.command(source) in entry.missing for source in sources)
    hollow: Records = {source: {} if source == OWN else {"figures": {}, "results": {}} for source in sources}
    entry = settle(CLAIMS[number], Evidence(hollow))
    assert "make it again" in entry.missing
    assert "\n" not in entry.missing
    assert any(claims.command(source) in entry.missing for source in sources)


def test_a_claim_that_holds_here_and_not_there_names_both() -> None:
    records: Records = {}
    one(records, UP)
    arm(records, "unfreezing", "gradual, one rate", forgetting=[3.0] * 5)
    entry = settle(CLAIMS[1], Evidence(records))
    assert entry.verdict is Verdict.CONDITION
    assert entry.condition == "holds for: ULMFiT's rates; not for: one rate"


def test_lora_is_not_blamed_where_full_fine_tuning_fails_too() -> None:
    records: Records = {}
    fifteen(records, UP)
    for each in records[11]["results"]["cells"]:
        if each["method"] == "full":
            each["score"] = [0.05 + claims.CHANCE.get(each["task"], 0.0)] * 5
    entry = settle(CLAIMS[15], Evidence(records))
    assert entry.verdict is Verdict.UNKNOWN
    assert "full fine-tuning learns next to nothing there" in entry.parts[0].name


def test_seeds_are_paired_and_one_that_diverged_is_left_out() -> None:
    assert claims.less({0: 1.0, 2: 5.0}, {0: 0.5, 1: 9.0, 2: 3.0}) == [0.5, 2.0]
    assert claims.mean_over([{0: 1.0, 1: 2.0}, {1: 4.0}]) == {1: 3.0}


# ---------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 4, 2.77645), (0.95, 7, 1.89458), (0.995, 30, 2.75)],
)
def test_quantiles_are_those_of_the_tables(p: float, df: int, t: float) -> None:
    assert student_t(p, df) == pytest.approx(t, rel=2e-6)
    assert student_t(1 - p, df) == pytest.approx(-t, rel=2e-6)


@pytest.mark.parametrize(("p", "df"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_quantiles_out_of_range_are_refused(p: float, df: int) -> None:
    with pytest.raises(InputError, match=r"0 < p < 1"):
        student_t(p, df)


def part(values: list[float], **more: Any) -> Judged:
    return judge([Part("x", values, **more)], mean_interval)[0]


def test_an_interval_on_one_side_of_the_threshold_decides() -> None:
    assert part([1.0, 1.1, 0.9]).verdict is Verdict.HOLDS
    assert part([1.0, 1.1, 0.9], above=2.0).verdict is Verdict.FAILS
    assert part([1.0, 1.1, 0.9], above=0.95).verdict is Verdict.UNKNOWN
    assert part([1.0, 1.1]).verdict is Verdict.UNKNOWN
    assert part([1.0], exact=True).verdict is Verdict.HOLDS
    assert part([1.0], exact=True, above=1.0).verdict is Verdict.FAILS
    assert part([1.0, 1.0, 1.0], void="no reason").verdict is Verdict.UNKNOWN


def test_more_parts_make_wider_intervals() -> None:
    values = [0.40, 0.10, 0.25]
    alone, beside = part(values), judge([Part("x", values)] * 4, mean_interval)[0]
    assert alone.verdict is Verdict.UNKNOWN
    assert beside.high - beside.low > 1.9 * (alone.high - alone.low)
    counted = judge([Part("x", values), Part("y", [1.0], exact=True)], mean_interval)[0]
    assert (counted.low, counted.high) == (alone.low, alone.high)


@pytest.mark.parametrize("values", [[], [math.nan, 1.0, 1.0], [math.inf]])
def test_figures_that_are_no_numbers_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="x: its figures"):
        part(values)


def test_verdicts_combine() -> None:
    yes, no, unsure = (part([1.0, 1.1, 0.9], above=above) for above in (0.0, 2.0, 0.95))
    assert combined([yes, yes]) is Verdict.HOLDS
    assert combined([yes, no]) is Verdict.CONDITION
    assert combined([yes, unsure]) is Verdict.CONDITION
    assert combined([no, unsure]) is Verdict.FAILS
    assert combined([unsure, unsure]) is Verdict.UNKNOWN
    assert condition([yes, yes]) == ""
    assert condition([yes, unsure]) == "holds for: x; undecided for: x"


# ---------------------------------------------------------------------------------------------- the whole


def fake(function: Any, jobs: Any, *_: Any, **__: Any) -> Iterator[Result]:
    """In the place of a sweep: figures without runs, for every kind of job."""
    answers = {
        "arm": {"eval_losses": [1.0], "scores": dict.fromkeys(("accuracy", "bleu", "exact_match", "loss"), 0.5)},
        "slant": {"eval_losses": [1.0], "loss": 1.0},
        "ranking price": {"ranking": 1.0, "training": 10.0},
        "rivals": {"frobenius": 0.01, "spectral": 0.01},
        "components": {"cosine": 0.5, "error": 1e-15},
        "counted": {"lora": 4608, "weight": 32768},
        "latency": {"base": 1.0, "LoRA, merged": 1.0, "LoRA, not merged": 1.2, "adapters": 1.3},
        "swapped": {"own": 1.0, "other": 2.0, "difference": 0.0, "base_moved": 0.0},
        "reading": {"trained": 0.2, "untrained": 0.1, "chance": 0.0},
        "bleu": {"difference": 5.0, "spearman": 0.5, "halves": {"bleu": 30.0, "average": 100.0}},
    }
    answers["arm"]["forgetting"] = 0.1
    return [Result(dict(job), answers[job["what"]], "", 0.0) for job in jobs]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the ledger would measure itself, with made-up figures, as it comes back from a file."""
    monkeypatch.setattr(own.sweep, "run", fake)
    found = own.run(own.FULL, tmp_path)
    return json.loads(json.dumps(found, sort_keys=True))


@pytest.mark.parametrize("number", [n for n, c in CLAIMS.items() if c.sources == (OWN,)])
def test_what_is_measured_is_what_its_claims_look_for(number: int, measured: dict[str, Any]) -> None:
    entry = settle(CLAIMS[number], Evidence({OWN: measured}))
    assert not entry.missing
    assert {p.seeds for p in entry.parts} <= {0, own.FULL.seeds}


@pytest.mark.parametrize("number", [n for n, c in CLAIMS.items() if c.sources != (OWN,)])
def test_committed_records_hold_what_the_claims_look_for(number: int, measured: dict[str, Any]) -> None:
    evidence = Evidence.read(RECORDS, measured)
    assert not settle(CLAIMS[number], evidence).missing


def test_tables_and_picture_show_every_claim(tmp_path: Path) -> None:
    records: Records = {}
    MADE_UP[1](records, UP)
    MADE_UP[9](records, DOWN)
    entries = claims.ledger(Evidence(records))
    assert len(entries) == 28
    told = ledger_table(entries)
    assert " 1. Gradual unfreezing" in told
    assert "HOLDS" in told
    assert "`make lesson-5 FULL=1` makes it" in told
    assert "forgetting" not in ledger_table(entries[:1]).split("\n")[1]
    detailed = ledger_table(entries[:1], details=True)
    assert "ULMFiT's rates" in detailed
    lines = ledger_markdown(entries).splitlines()
    rows, rest = lines[2:30], lines[30:]
    assert all(line.count(" | ") == 5 for line in rows)
    assert "*If: " in rows[0]
    assert "what is left to the limit" in rest[-1]
    figure_ = claims.forest_picture(entries)
    labels = [label.get_text() for label in figure_.axes[0].get_yticklabels()]
    assert len(labels) == 4
    assert labels[0].startswith("one rate")
    assert claims.summary(entries) == "holds: 1, does not hold: 1, the data cannot say: 26 (26 for want of a record)"


def test_the_command_writes_record_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records: Records = {}
    MADE_UP[22](records, UP)
    (tmp_path / "records").mkdir()
    files.write_json(tmp_path / "records" / "lesson-10.json", records[10])
    options = ["--records", str(tmp_path / "records"), "--out", str(tmp_path / "runs")]
    assert claims.main([*options, "--claim", "22"]) == 0
    assert "HOLDS" in capsys.readouterr().out
    made = tmp_path / "runs" / "claims"
    record = json.loads((made / "claims.json").read_text())
    assert record["claims"][0]["verdict"] == "holds"
    assert {path.name for path in made.iterdir()} == {"claims.json", "claims.md", "claims.png"}
    assert not (tmp_path / "records" / "claims.json").exists()
    assert claims.main(options) == 0  # every claim, most of them without a record


def test_wrong_options_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        claims.main(["--claim", "29"])
    assert stopped.value.code == 2
    assert "no claim 29; there are 1 to 28" in capsys.readouterr().err
    (tmp_path / "runs").write_text("a file")
    assert claims.main(["--out", str(tmp_path / "runs"), "--claim", "1"]) == 2
    assert "cannot make the directory" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- the small studies


def test_lora_on_the_layer_of_the_claim_trains_4608() -> None:
    found = own.measure({"what": "counted", "rank": 8})
    assert (found["lora"], found["weight"], found["shape"]) == (4608, 32768, [64, 512])


def test_principal_components_need_centring_and_not_different_values() -> None:
    found = [own.measure({"what": "components", "seed": seed}) for seed in range(4)]
    assert min(one["cosine"] for one in found) < 0.99
    assert max(one["error"] for one in found) < 1e-12


def test_no_rival_beats_the_truncated_svd() -> None:
    found = own.measure({"what": "rivals", "base": "base-xs", "rank": 4, "steps": 5, "seed": 1})
    assert min(found.values()) > -1e-9


def test_the_plain_average_by_hand() -> None:
    assert own.plain_average(["a b c d"], ["a b c d"]) == 100
    assert own.plain_average(["a b"], ["a b c d"]) == 50  # both shorter orders are right, the others are empty
    assert own.plain_average(["a x c d"], ["a b c d"]) == pytest.approx(100 * (3 / 4 + 1 / 3) / 4)
    assert own.plain_average(["a a a a"], ["a b c d"]) == pytest.approx(100 / 16)


def test_half_of_every_reference_has_a_high_average_and_a_low_bleu() -> None:
    found = own.measure({"what": "bleu", "seed": 0, "n": 12})
    assert found["halves"]["bleu"] < 0.7 * found["halves"]["average"]
    assert found["difference"] > 1
    assert -1 <= found["spearman"] <= 1


def test_a_prompt_is_read_by_another_base() -> None:
    job = {"what": "reading", "base": "base-xs", "judge": "base-s", "task": "topic-pairs", "n": 32, "steps": 2}
    found = own.measure(job | {"k": 3, "permutations": 5, "seed": 0})
    assert all(-1 <= found[name] <= 1 for name in ("trained", "untrained", "chance"))
    assert 1 / 6 <= found["p"] <= 1
    assert abs(found["chance"]) < 0.2  # names dealt out at random have nothing in common


def test_adapters_that_were_loaded_are_those_that_were_trained() -> None:
    job = {"what": "swapped", "method": "lora", "base": "base-xs", "n": 32, "steps": 2, "seed": 0}
    found = own.measure(job)
    assert found["difference"] < 1e-5
    assert found["base_moved"] == 0.0
    assert np.isfinite([found["own"], found["other"]]).all()


def test_what_takes_time_is_taken_of_every_model() -> None:
    found = own.measure({"what": "latency", "base": "base-xs", "turns": 1, "tokens": 2, "seed": 0})
    assert found.keys() == {"base", "LoRA, merged", "LoRA, not merged", "adapters"}
    price = own.measure({"what": "ranking price", "base": "base-xs", "n": 32, "steps": 10, "seed": 0})
    assert min(*found.values(), price["ranking"], price["training"]) > 0


def test_the_slant_is_that_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"what": "slant", "base": "base-xs", "task": "addition", "n": 32, "steps": 10, "test": 4, "lr": 1e-3}
    rates: dict[float, list[float]] = {}
    true_train = own.train

    def watched(*args: Any, **options: Any) -> Any:
        history = true_train(*args, **options)
        curve = options["groups"][0].schedule
        rates[curve.keywords["cut_frac"]] = [curve(step) for step in range(10)]
        return history

    monkeypatch.setattr(own, "train", watched)
    for cut in (0.1, 0.9):
        assert own.measure(job | {"cut_frac": cut, "seed": 0})["loss"] > 0
    assert int(np.argmax(rates[0.1])) == 1
    assert int(np.argmax(rates[0.9])) == 9


def test_readme_and_table_say_what_the_records_say() -> None:
    """A record that is made anew makes the tables anew: `make compare` and `make claims` print and write them."""
    readme = (RECORDS.parent.parent / "README.md").read_text(encoding="utf-8")
    entries = claims.ledger(claims.Evidence.read(RECORDS))
    assert claims.ledger_markdown(entries, brief=True) in readme
    assert (RECORDS / "claims.md").read_text(encoding="utf-8") == claims.ledger_markdown(entries)
    assert claims.summary(entries) in readme
    compared = files.read_json(RECORDS / "lesson-11.json")["results"]
    assert comparison.readme_table(compared) in readme
