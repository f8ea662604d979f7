"""What the notebooks are made with: a derivation and its check, a student's attempt, the record beside the figures."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from lessons import lesson_01_pretraining as first
from lessons import lesson_05_importance_ranking as importance
from lessons import lesson_07_lora as lora
from lessons.common import course, forest, looking, lora_study, notebook, plotting, runner
from lessons.common.bands import Band
from lessons.common.gradcheck import Check
from lessons.common.notebook import NotebookRun
from minigpt import GPT, GPTConfig
from minigpt.errors import InputError, RunError

DERIVED = {d.title: d for d in first.DERIVATIONS}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is displayed, instead of displaying it."""
    outputs: list[dict[str, Any]] = []
    monkeypatch.setattr(notebook, "display", lambda data, **_: outputs.append(data))
    return outputs


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Any) -> NotebookRun:
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    monkeypatch.setenv("MINIGPT_OUT", str(tmp_path / "out"))
    for name in ("QUICK", "CHECK"):
        monkeypatch.delenv(f"MINIGPT_{name}", raising=False)
    return notebook.begin(1)


def text_of(shown: list[dict[str, Any]]) -> str:
    return "\n".join(each["text/markdown"] for each in shown if "text/markdown" in each)


@pytest.mark.parametrize(("quick", "check"), [("", "1"), ("1", "1"), ("0", ""), ("no", "")])
def test_the_environment_decides(quick: str, check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("QUICK", quick), ("CHECK", check), ("OUT", str(tmp_path))):
        monkeypatch.setenv(f"MINIGPT_{name}", value)
    settings = notebook.begin(3).settings
    assert settings.quick is (quick == "1")
    assert settings.check is (check == "1" and quick != "1")  # figures of a quick run mean nothing
    assert settings.out == tmp_path
    assert (tmp_path / "lesson-03").is_dir()


def test_results_lie_beside_those_of_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MINIGPT_OUT", raising=False)
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert notebook.begin(1).directory == Path("../runs/notebooks/lesson-01")  # no path of a machine on the page


def test_a_derivation_is_shown_with_code_and_check(run: NotebookRun, shown: Any) -> None:
    run.show(DERIVED["Linear layer"], first.forms_of(run.backend))
    text = text_of(shown)
    for part in ("dW = xᵀ dy", "```python\ndef linear_backward_input", "*in `kernels/linear.py`*", "reference off by"):
        assert part in text
    assert text.count("✓") == 3
    assert "SOLUTION" not in text
    assert len(run.checks) == 6
    run.require_gradients()
    shown.clear()
    run.show(DERIVED["Linear layer"], mathematics=False)
    assert "dW = xᵀ dy" not in text_of(shown)
    assert "def linear_backward_input" in text_of(shown)


def test_a_wrong_gradient_is_shown_and_stops_the_run(run: NotebookRun, shown: Any) -> None:
    broken = DERIVED["Dropout"]._replace(check=lambda backend: [Check("dx", (2,), 0.5, "dx[0] is 1, it should be 2")])
    run.show(broken)
    assert "✗ **wrong**" in text_of(shown)
    assert "- by hand: dx[0] is 1, it should be 2" in text_of(shown)
    with pytest.raises(RunError, match="1 gradients are wrong"):
        run.require_gradients()


def test_many_right_checks_are_one_line_and_a_wrong_one_is_not_lost(run: NotebookRun) -> None:
    many = [Check(f"d{i}", (2,), 1e-9 * i) for i in range(20)]
    line = notebook.check_table({"reference": many, "fast": many})
    assert "all 20 arrays" in line
    assert "`d19`" in line
    assert "2e-08" in line
    wrong = [*many[:-1], Check("d19", (2,), 0.5, "d19[0] is off")]
    table = notebook.check_table({"reference": many, "fast": wrong})
    assert table.count("✓") == 19
    assert "✗ **wrong**" in table
    assert "fast: d19[0] is off" in table
    assert "not written yet" in notebook.check_table({"yours": [*many, Check("last", (), None)]})


def test_an_attempt_is_judged_and_leaves_no_trace(run: NotebookRun, shown: Any) -> None:
    own = DERIVED["Dropout"].functions[0]

    def dropout_backward(dy: Any, mask: Any) -> Any:
        return dy

    def elsewhere() -> None:
        pass

    run.attempt(DERIVED["Dropout"], dropout_backward)
    assert "✗ **wrong**" in text_of(shown)
    shown.clear()
    run.attempt(DERIVED["Dropout"], own)
    assert "✓" in text_of(shown)
    assert run.backend.with_reference("dropout").ops.dropout_backward is own
    assert run.checks == []  # what a student tries does not stop the experiment
    with pytest.raises(InputError, match="Dropout has no elsewhere; it has dropout_backward"):
        run.attempt(DERIVED["Dropout"], elsewhere)


def test_an_attempt_reaches_the_functions_of_a_lesson(run: NotebookRun, shown: Any) -> None:
    derived = lora.DERIVATIONS[0]

    def lora_backward_A(dz: Any, x: Any, ops: Any = None, out: Any = None) -> Any:
        raise NotImplementedError

    def lora_backward_B(dy: Any, z: Any, ops: Any, out: Any = None) -> Any:
        return 2 * ops.linear_backward_weight(z, dy)

    run.attempt(derived, lora_backward_A, lora_backward_B)
    rows = {line.split("`")[1]: line for line in text_of(shown).splitlines() if line.startswith("| `")}
    assert "✓" in rows["dx"]
    assert "not written yet" in rows["dA"]
    assert "✗" in rows["dB"]


def test_an_attempt_reaches_functions_that_the_lesson_only_imports(run: NotebookRun, shown: Any) -> None:
    derived = next(d for d in importance.DERIVATIONS if forest.best_split in d.functions)

    def best_split(X: Any, y: Any, min_leaf: int = 1) -> Any:
        raise NotImplementedError

    run.attempt(derived, best_split)
    assert "not written yet" in text_of(shown)


def test_an_attempt_that_raises_is_told_where(run: NotebookRun, shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    derived = lora.DERIVATIONS[0]

    def lora_backward_A(dz: Any, x: Any, ops: Any = None, out: Any = None) -> Any:
        wrong = dz.T @ x
        return wrong

    run.attempt(derived, lora_backward_A)
    told = text_of(shown)
    assert "✗ **ValueError**: matmul" in told
    assert "line 2 of your `lora_backward_A`: `wrong = dz.T @ x`" in told

    def lora_backward_B(dy: Any, z: Any, ops: Any = None, out: Any = None) -> Any:
        return ops.linear_backward_weight(z, dy)

    def broken(*arrays: Any) -> Any:
        raise ValueError("a fault of the lesson")

    monkeypatch.setattr(lora, "lora_forward", broken)
    with pytest.raises(ValueError, match="a fault of the lesson"):
        run.attempt(derived, lora_backward_B)


def record(values: list[float]) -> dict[str, Any]:
    return {
        "figures": {"loss": {"values": values, "unit": "nats"}},
        "bands": {"loss": {"low": 1.0, "high": 2.0, "seeds": 3, "reason": ""}},
        "provenance": {"cores": 2, "cpu": "a processor", "python": "3.11", "numpy": "2.4"},
        "seconds": 600,
    }


def test_conclude_sets_the_record_beside_the_figures(run: NotebookRun, shown: Any) -> None:
    run.committed = record([1.4, 1.5, 1.6])
    run.report("loss", 1.25, "nats")
    run.report("time", 3.0, "s", banded=False)
    run.conclude()
    row, other = (line for line in text_of(shown).splitlines() if line.startswith(("| loss", "| time")))
    assert row == "| loss | 1.250 | 1.500 ± 0.100 | nats | 1.000 to 2.000 | ✓ inside |"
    assert other == "| time | 3.000 | – | s |  |  |"
    assert "10 minutes on 2 cores" in text_of(shown)
    kept = json.loads((run.directory / "record.json").read_text(encoding="utf-8"))
    assert kept["figures"]["loss"]["values"] == [1.25]
    shown.clear()
    run.show_record()
    assert "| loss | 1.500 ± 0.100 | nats | 3 |" in text_of(shown)


@pytest.mark.parametrize("check", [True, False])
def test_a_figure_out_of_band(check: bool, run: NotebookRun, shown: Any) -> None:
    object.__setattr__(run.settings, "check", check)
    run.report("loss", 2.5, "nats", Band(1.0, 2.0))
    if check:
        with pytest.raises(RunError, match="loss: above the expected band"):
            run.conclude()
    else:
        run.conclude()
    assert "✗ **outside**" in text_of(shown)


def test_without_a_record_it_says_so(run: NotebookRun, shown: Any) -> None:
    run.report("loss", 1.25, "nats")
    run.conclude()
    run.show_record()
    assert text_of(shown).count("Not recorded yet: `make lesson-1 FULL=1`") == 2


def pixels_of(output: dict[str, Any]) -> np.ndarray:
    data = output["image/png"]
    return imread(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data), format="png")


def test_pictures_are_shown_small_and_saved(run: NotebookRun, shown: Any) -> None:
    path = run.picture("map", course.map_picture())
    assert shown[-1]["text/plain"] == "picture: Which lesson stands on which"
    assert pixels_of(shown[-1]).shape[:2] == imread(path).shape[:2]
    assert len(shown[-1]["image/png"]) < path.stat().st_size


def test_sections_come_from_the_page_itself(shown: Any) -> None:
    notebook.show_section("Letters")
    text = text_of(shown)
    assert "| B | batch" in text
    assert "#" not in text
    with pytest.raises(InputError, match="no section 'Numbers' in README"):
        notebook.show_section("Numbers")


def test_tables_keep_bars_in_cells(shown: Any) -> None:
    notebook.show_table([["a|b", 1]], ["x", "y"])
    assert text_of(shown) == "| x | y |\n|:---|---:|\n| a\\|b | 1 |\n"


def test_the_map_has_every_lesson_after_what_it_needs() -> None:
    files = Path(first.__file__).parent.glob("lesson_[0-9][0-9]_*.py")
    assert set(course.NEEDS) == {int(path.stem.split("_")[1]) for path in files} == set(course.PLACES)
    for number, (_, needs) in course.NEEDS.items():
        assert all(course.PLACES[before][0] < course.PLACES[number][0] for before in needs)


def test_surprise_is_the_loss_token_by_token() -> None:
    model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2), seed=0)
    ids = [3, 1, 4, 1, 5, 9, 2]
    found = looking.surprises(model, ids)
    assert found.shape == (6,)
    loss, _ = model.loss_and_grads(np.array([ids[:-1]]), np.array([ids[1:]]))
    assert found.mean() == pytest.approx(loss, rel=1e-5)
    for several in ({"it": found}, {"before": found + 1, "after": found}):
        figure = looking.surprise_picture(several, list("abcdef"))
        assert len(figure.axes[0].patches) == 6 * len(several)


def test_pictures_of_lora_from_shapes_updates_and_records(tmp_path: Path) -> None:
    figure = lora_study.shapes_picture(80, 240, 8)
    assert figure.axes[0].get_title(loc="left") == "Rank 8: 2,560 numbers instead of 19,200 (13.3%)"
    rng = np.random.default_rng(0)
    updates = {"one": rng.standard_normal((6, 2)) @ rng.standard_normal((2, 9)), "two": rng.standard_normal((6, 9))}
    titles = [axes.get_title(loc="left") for axes in lora_study.updates_picture(updates, "c_attn").axes]
    assert titles[:2] == ["one: rank 2", "two: rank 6"]
    outcome = lora_study.Outcome(lora_study.make("lora", r=4, target_modules="all-linear"), 7, [0.5], [0.25], [])
    again = lora_study.Outcome.from_record(json.loads(json.dumps(outcome.as_record())))
    assert (again.method.r, again.trainable, again.loss, again.accuracy) == (4, 7, [0.5], [0.25])  # type: ignore[attr-defined]
    committed = json.loads((Path(first.__file__).parent / "records" / "lesson-01.json").read_text(encoding="utf-8"))
    plotting.save(first.ablation_picture(committed["results"]["ablations"]), tmp_path / "ablations.png")
