"""What lessons share: tables, bands, gradient checks, pictures, the run and its record."""

from __future__ import annotations

import io
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kernels import get_backend
from lessons.common import gradcheck, looking, plotting, runner, text
from lessons.common.bands import Band
from lessons.common.gradcheck import Check
from lessons.common.runner import Run, Settings
from lessons.common.source import source
from lessons.common.table import spread, table, width
from minigpt import GPT, GPTConfig, InputError, RunError, Tokenizer
from minigpt.data import DataSet

NUMPY = get_backend("numpy")

# ---------------------------------------------------------------------------------------------- table


def test_table_aligns_columns_and_leaves_no_blanks_behind() -> None:
    lines = table([["a", 1], ["日本", 22]], ["name", "n"], indent=1).split("\n")
    assert lines == [" name   n", " ----  --", " a      1", " 日本  22"]
    assert table([["x", "y"]], ["a", "b"], "rl", indent=0) == "a  b\n-  -\nx  y"


def test_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 headers"):
        table([["a"]], ["x", "y"])


def test_width_counts_what_a_terminal_shows() -> None:
    assert [width(t) for t in ("abc", "日本", "e\u0301", "␣the", "")] == [3, 4, 1, 4, 0]


def test_spread_is_mean_and_sample_deviation() -> None:
    assert spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert spread([0.5]) == "0.500"


# ---------------------------------------------------------------------------------------------- bands


def test_band_around_is_three_deviations_of_seeds_and_allowance_together() -> None:
    band = Band.around([1.0, 2.0, 3.0], allowance=0.0)
    assert (band.low, band.high, band.seeds) == (-1.0, 5.0, 3)
    same = Band.around([2.0, 2.0, 2.0])
    assert 2.0 + 1e-4 in same  # another processor rounds otherwise
    assert 2.0 + 1e-2 not in same
    wider = Band.around([1.0, 2.0, 3.0], allowance=math.sqrt(3.0))
    assert wider.low == pytest.approx(2 - 6)
    assert wider.high == pytest.approx(2 + 6)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (2.9, "inside"),
        (3.2, "inside"),
        (2.89, "below"),
        (3.21, "above"),
        (math.nan, "not a number"),
        (math.inf, "above"),
    ],
)
def test_verdict_says_where_a_figure_lies(value: float, word: str) -> None:
    band = Band(2.9, 3.2, 5)
    assert band.verdict(value, 1).startswith(word)
    assert band.verdict(value, 1).endswith("the expected band 2.9–3.2 over 5 seeds")
    assert (value in band) == (word == "inside")


def test_verdict_gives_the_reason_of_a_band_without_seeds() -> None:
    assert Band(0, 1, 0, "a share").verdict(0.5, 0) == "inside the expected band 0–1 (a share)"


# ---------------------------------------------------------------------------------------------- gradcheck


def scaled(factor: float, wrong: float = 1.0) -> gradcheck.Function:
    def forward(x: np.ndarray, w: np.ndarray) -> Any:
        return factor * x * x * w, lambda dy: {"x": 2 * factor * x * w * dy * wrong, "w": lambda: factor * x * x * dy}

    return forward


INPUTS = {"x": np.array([[1.0, -2.0, 0.5]]), "w": np.array([[0.3, 1.5, -1.0]])}


def test_check_passes_right_gradients_and_names_every_input() -> None:
    checks = gradcheck.check(scaled(3.0), INPUTS, NUMPY)
    assert [(c.name, c.shape, c.verdict) for c in checks] == [("dx", (1, 3), "ok"), ("dw", (1, 3), "ok")]
    assert all(c.difference is not None and c.difference < 1e-8 for c in checks)


@pytest.mark.parametrize("wrong", [1.001, 1.00001, 0.0, -1.0, math.nan, math.inf])
def test_check_finds_a_wrong_gradient_and_no_other(wrong: float) -> None:
    dx, dw = gradcheck.check(scaled(3.0, wrong), INPUTS, NUMPY)
    assert (dx.verdict, dw.verdict) == ("WRONG", "ok")
    assert dx.fault.startswith("dx[0, ")
    assert "central differences give" in dx.fault


def test_check_finds_one_wrong_element_and_names_it() -> None:
    def forward(x: np.ndarray) -> Any:
        def backward(dy: np.ndarray) -> Any:
            dx = 2 * x * dy
            dx[0, 2] += 1e-3
            return {"x": dx}

        return x * x, backward

    (dx,) = gradcheck.check(forward, {"x": INPUTS["x"]}, NUMPY)
    assert "dx[0, 2] is" in dx.fault


def test_check_draws_the_output_gradient_so_that_softmax_cannot_pass_with_zeros() -> None:
    def softmax(x: np.ndarray) -> Any:
        e = np.exp(x)
        return e / e.sum(), lambda dy: {"x": np.zeros_like(x)}

    (dx,) = gradcheck.check(softmax, {"x": INPUTS["x"]}, NUMPY)
    assert dx.verdict == "WRONG"


def test_a_gradient_that_is_zero_passes_up_to_the_noise_and_no_further() -> None:
    def shifted(x: np.ndarray, slope: float = 0.0) -> Any:
        e = np.exp(x - x.max())
        return np.log(e.sum()) + x.max() - np.log(np.exp(x).sum()), lambda dy: {"x": np.full(x.shape, slope)}

    (dx,) = gradcheck.check(shifted, {"x": INPUTS["x"]}, NUMPY)
    assert dx.ok, dx.fault
    (dx,) = gradcheck.check(lambda x: shifted(x, 1e-8), {"x": INPUTS["x"]}, NUMPY)
    assert not dx.ok


def test_check_tells_a_wrong_shape_from_a_wrong_value() -> None:
    (dx,) = gradcheck.check(lambda x: (2 * x, lambda dy: {"x": 2 * dy[0]}), {"x": INPUTS["x"]}, NUMPY)
    assert dx.fault == "its shape is (3,), it should be (1, 3)"
    assert dx.verdict == "WRONG"


def test_check_handles_several_outputs_and_a_scalar() -> None:
    def forward(x: np.ndarray) -> Any:
        return (2 * x, float((x * x).sum())), lambda dy, dloss: {"x": 2 * dy + 2 * x * dloss}

    (dx,) = gradcheck.check(forward, {"x": INPUTS["x"]}, NUMPY)
    assert dx.ok


def test_check_gives_every_call_its_own_copies() -> None:
    def greedy(x: np.ndarray) -> Any:
        x *= 3
        y = x.copy()
        return y, lambda dy: {"x": 3 * dy}

    before = INPUTS["x"].copy()
    (dx,) = gradcheck.check(greedy, {"x": INPUTS["x"]}, NUMPY)
    assert dx.ok
    assert (INPUTS["x"] == before).all()


def test_what_is_not_written_yet_is_no_error_and_hides_nothing() -> None:
    def todo() -> Any:
        raise NotImplementedError

    def half(x: np.ndarray, w: np.ndarray) -> Any:
        return x * w, lambda dy: {"x": todo, "w": x * dy}

    dx, dw = gradcheck.check(half, INPUTS, NUMPY)
    assert (dx.verdict, dw.verdict) == ("not written yet", "ok")
    assert dx.missing
    assert not dx.ok
    assert [c.verdict for c in gradcheck.check(lambda x, w: todo(), INPUTS, NUMPY)] == ["not written yet"] * 2


def tiny(**settings: Any) -> GPT:
    return GPT(GPTConfig(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=2), dtype="float64", **settings)


IDS = np.array([[0, 1, 2, 1]])
TARGETS = np.array([[1, 2, -100, 4]])


def test_check_model_covers_every_parameter() -> None:
    model = tiny()
    checks = gradcheck.check_model(model, IDS, TARGETS)
    assert [f"transformer.{c.name}" for c in checks] == [p.name for p in model.parameters()]
    assert all(c.ok for c in checks), [c.fault for c in checks]


def test_check_parameters_puts_everything_back_also_after_an_error() -> None:
    model = tiny()
    before = {p.name: (p.data, p.data.copy()) for p in model.parameters()}
    calls = iter(range(5))

    def loss() -> float:
        return float(next(calls))

    with pytest.raises(StopIteration):
        gradcheck.check_parameters(model.parameters(), loss, {}, NUMPY)
    assert all(p.data is before[p.name][0] for p in model.parameters())
    assert all((p.data == before[p.name][1]).all() for p in model.parameters())


def test_check_parameters_leaves_frozen_ones_out() -> None:
    model = tiny()
    model.freeze()
    model.unfreeze(["*ln_f.bias"])
    _, grads = model.loss_and_grads(IDS, TARGETS)
    checks = gradcheck.check_parameters(model.parameters(), lambda: model.loss_and_grads(IDS, TARGETS)[0], grads, NUMPY)
    assert [(c.name, c.ok) for c in checks] == [("ln_f.bias", True)]


def test_check_model_finds_a_wrong_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("numpy").with_reference("gelu")
    right = backend.ops.bias_gelu_backward
    monkeypatch.setattr(backend.ops, "bias_gelu_backward", lambda dy, cache: 1.01 * right(dy, cache))
    verdicts = {c.name: c.verdict for c in gradcheck.check_model(tiny(backend=backend), IDS, TARGETS)}
    assert verdicts["h.0.mlp.c_proj.weight"] == "ok"  # above the mistake
    assert verdicts["h.0.mlp.c_fc.weight"] == verdicts["wte.weight"] == "WRONG"  # it and all below


def test_lines_have_one_line_a_tensor_with_every_form() -> None:
    right = [Check("dx", (2, 3), 1e-11), Check("dw", (3,), 2e-11)]
    wrong = [Check("dx", (2, 3), 0.5, "dx[0, 1] is 1, central differences give 2"), Check("dw", (3,), None)]
    lines = gradcheck.lines({"reference": right, "fast": wrong}).split("\n")
    assert lines[0].split() == ["gradient", "shape", "reference", "off", "by", "fast", "off", "by"]
    assert lines[2].split() == ["dx", "(2,", "3)", "1e-11", "5e-01", "WRONG"]
    assert lines[3].split() == ["dw", "(3,)", "2e-11", "–", "not", "written", "yet"]
    assert lines[4] == "  fast: dx[0, 1] is 1, central differences give 2"


# ---------------------------------------------------------------------------------------------- source


def documented(x: int) -> int:
    """What it does.

    At length.
    """
    ### BEGIN SOLUTION
    return x + 1  # why
    ### END SOLUTION


def test_source_is_the_code_without_docstring_and_markers() -> None:
    assert source(documented) == "def documented(x: int) -> int:\n    return x + 1  # why"


def test_source_of_a_method_is_dedented() -> None:
    assert source(Check.verdict.fget).startswith("@property\ndef verdict(self) -> str:\n    return")


# ---------------------------------------------------------------------------------------------- plotting


def test_pictures_are_white_whole_and_the_same_each_time(tmp_path: Path) -> None:
    def draw(path: Path) -> Path:
        figure, axes = plotting.new(height=2)
        axes.plot([0, 1], [0, 1])
        axes.set_xlabel("x")
        return plotting.save(figure, path)

    first, second = draw(tmp_path / "deep" / "a.png"), draw(tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    pixels = imread(io.BytesIO(first.read_bytes()))
    assert pixels.shape[1] == plotting.WIDTH * plotting.STYLE["savefig.dpi"]
    assert (pixels[0, 0] == 1).all()  # white and opaque, in a dark notebook too
    assert pixels.std() > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "deep"]  # nothing half-written left


@pytest.mark.filterwarnings("error::UserWarning")
def test_any_token_can_be_drawn(tmp_path: Path) -> None:
    assert plotting.drawable("␣día 日") == "␣día \\u65e5"
    figure, axes = plotting.new(height=2)
    with plotting.style():
        axes.set_title(plotting.drawable("$a{$ 日本"))
    assert plotting.save(figure, tmp_path / "a.png").stat().st_size > 0


def test_style_does_not_leak() -> None:
    import matplotlib

    before = matplotlib.rcParams["font.size"], matplotlib.rcParams["axes.spines.top"]
    with plotting.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    plotting.new()
    assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["axes.spines.top"]) == before


def test_spaced_moves_only_what_is_too_near() -> None:
    assert plotting.spaced([0, 10, 100], 4) == [0, 10, 100]
    assert plotting.spaced([10, 11], 4) == [8.5, 12.5]
    assert plotting.spaced([0, 0, 0], 2) == [-2, 0, 2]
    crowded = plotting.spaced([0, 3, 4, 5, 9], 3)
    assert all(b - a >= 3 - 1e-9 for a, b in pairwise(crowded))
    assert plotting.spaced([], 3) == []
    assert plotting.spaced([0, 0, 9], 2, lowest=1) == [1, 3, 9]  # nothing under the axes


def test_label_ends_writes_each_name_in_its_colour() -> None:
    figure, axes = plotting.new()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    ends = [plotting.End(1, 0.5, "upper", plotting.BLUE), plotting.End(1, 0.49, "lower", plotting.VERMILLION)]
    plotting.label_ends(axes, ends)
    placed = {t.get_text(): t for t in axes.texts}
    assert {name: t.get_color() for name, t in placed.items()} == {"upper": plotting.BLUE, "lower": plotting.VERMILLION}
    figure.draw_without_rendering()
    boxes = {name: t.get_window_extent() for name, t in placed.items()}
    assert boxes["lower"].y1 <= boxes["upper"].y0 + 1


# ---------------------------------------------------------------------------------------------- text and looking


def test_yardsticks_are_the_losses_of_counting() -> None:
    train, held_out = np.array([0, 1, 0, 1, 0, 2], np.uint16), np.array([0, 1, 2], np.uint16)
    losses = text.count_yardsticks(train, held_out, 3)
    frequency = np.array([4, 3, 2]) / 9  # one more of each than there are
    assert losses["guessing (log V)"] == pytest.approx(math.log(3))
    assert losses["token frequencies"] == pytest.approx(-(math.log(frequency[1]) + math.log(frequency[2])) / 2)
    pairs = [(2 + 10 * frequency[1]) / 13, (0 + 10 * frequency[2]) / 12]
    assert losses["pairs of tokens"] == pytest.approx(-sum(map(math.log, pairs)) / 2)


def sentences(n: int = 60) -> DataSet[str]:
    words = ["the", "cat", "dog", "sees", "hears", "a", "red", "blue", "house", "and", "then", "it", "runs", "away"]
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(words, 25)) + "." for _ in range(n)]
    return DataSet("sentences", documents[: n - 20], documents[n - 20 :], [])


def test_usual_opening_is_the_commonest_one() -> None:
    assert text.usual_opening(["Return the sum.", "A b", "Return the  mean", "A b c", "Return the"]) == "Return the"
    assert text.usual_opening(["only one text"]) == ""
    assert text.opening(["two\n\nlines  here", "x"], 9) == "two lines"


def test_text_error_shrinks_with_more_text() -> None:
    few = text.read_text(sentences(40), 280)
    many = text.Text(**{**vars(few), "documents": few.documents * 4})
    model = GPT(GPTConfig(vocab_size=280, n_positions=16, n_embd=8, n_layer=1, n_head=1), seed=0)
    error = text.text_error(model, few, parts=5)
    assert 0 < error < 0.1
    assert text.text_error(model, many, parts=20) < error


def test_attention_maps_are_those_of_the_forward() -> None:
    model = GPT(GPTConfig(vocab_size=7, n_positions=6, n_embd=8, n_layer=2, n_head=2), seed=1, dtype="float64")
    model.h[1].attn.c_attn.weight.data *= 40  # away from even attention
    ids = [3, 1, 4, 1, 5]
    maps = looking.attention_maps(model, ids)
    assert maps.shape == (2, 2, 5, 5)
    assert np.allclose(maps.sum(-1), 1)
    assert (np.triu(maps, 1) == 0).all()
    reference = model.backend.with_reference("attention")
    kept: list[np.ndarray] = []
    forward = reference.ops.attention_forward

    def keep(*args: Any) -> Any:
        out, cache = forward(*args[:5], True)
        kept.append(cache.weights[0])
        return out, cache

    reference.ops.attention_forward = keep
    model.backend = reference
    model.logits([ids])
    assert np.allclose(maps, np.stack(kept), atol=1e-12)
    assert np.abs(maps[1] - maps[1].mean(-1, keepdims=True)).max() > 0.2


def test_choosy_head_is_the_one_that_depends_on_the_token() -> None:
    T = 6
    even = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    sink = np.zeros((T, T))
    sink[:, 0] = 1
    before = np.eye(T, k=-1)
    before[0, 0] = 1
    assert looking.choosy_head(np.stack([[even, sink], [before, even]])) == (1, 0)


def test_neighbours_are_tokens_of_like_direction() -> None:
    tokenizer = Tokenizer.train(["some more words some more words"] * 3, 290)
    V = tokenizer.vocab_size
    model = GPT(GPTConfig(vocab_size=V, n_positions=4, n_embd=8, n_layer=1, n_head=1), seed=0)
    labels = {tokenizer.token_label(i): i for i in range(V)}
    more, words = labels["␣more"], labels["␣words"]
    model.wte.data[words] = 5 * model.wte.data[more]
    counts = np.full(V, 100)
    rows = looking.neighbours(model, tokenizer, counts, words=100, near=3)
    by_word = {word: near for word, *near in rows}
    assert by_word["␣more"][0] == "␣words"
    assert len(by_word["␣more"]) == 3
    assert looking.neighbours(model, tokenizer, np.zeros(V, int)) == []


def test_samples_keep_to_the_context_and_do_not_show_control_characters() -> None:
    tokenizer = Tokenizer.train("abc abc", 258)
    config = GPTConfig(vocab_size=258, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=257, eos_token_id=257)
    first, second = looking.samples(GPT(config, seed=0), tokenizer, ["", "a long prompt"], seed=0)
    assert first["prompt"] == ""
    assert second["prompt"] == "a l"
    assert looking.printable("a\x1b[31m\nb\r\x07c") == "a·[31m\nb··c"


# ---------------------------------------------------------------------------------------------- runner


def run(tmp_path: Path, lesson: Any, **settings: Any) -> Run:
    return runner.run_lesson(3, lesson, Settings(out=tmp_path, **settings))


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_leaves_a_record_with_all_that_is_promised(tmp_path: Path, records: Path, capsys: Any) -> None:
    def lesson(run: Run) -> None:
        run.report("loss", 3.0, "nats a token", Band(2.9, 3.2, 5))
        run.report("time", 7, "s", digits=0)
        run.results["curve"] = [1, 2]
        run.picture("loss", plotting.new(height=1)[0])

    run(tmp_path, lesson, seed=4)
    record = read(tmp_path / "lesson-03" / "record.json")
    assert record["lesson"] == 3
    assert record["settings"] == {"data": None, "full": False, "quick": False, "backend": "numpy", "seed": 4}
    assert record["figures"] == {
        "loss": {"values": [3.0], "unit": "nats a token"},
        "time": {"values": [7.0], "unit": "s"},
    }
    assert record["bands"] == {"loss": {"low": 2.9, "high": 3.2, "seeds": 5, "reason": ""}}
    text = "inside the expected band 2.900–3.200 over 5 seeds"
    assert record["verdict"] == {"loss": {"inside": True, "text": text}, "time": {"inside": None, "text": ""}}
    assert record["provenance"]["numpy"] == np.__version__
    assert record["results"] == {"curve": [1, 2]}
    assert record["pictures"] == ["loss.png"]
    assert (tmp_path / "lesson-03" / "loss.png").stat().st_size > 0
    assert text in capsys.readouterr().out
    assert not records.exists()


def test_a_full_run_makes_the_band_and_later_runs_are_held_to_it(tmp_path: Path, records: Path, capsys: Any) -> None:
    def five(run: Run) -> None:
        run.report("loss", [2.9, 3.0, 3.1], "nats", allowance=0.0, reason="seeds")

    run(tmp_path, five, full=True)
    committed = read(records / "lesson-03.json")
    assert committed["bands"]["loss"]["low"] == pytest.approx(2.7)
    assert committed["bands"]["loss"]["seeds"] == 3
    assert "makes the band 2.700–3.300 over 3 seeds" in capsys.readouterr().out

    for value, inside in ((3.29, True), (3.31, False)):
        result = run(tmp_path, lambda run, value=value: run.report("loss", value, "nats"))
        assert result.reported[0].inside is inside
    own = run(tmp_path, lambda run: run.report("loss", 9.0, "nats"), data="mine.txt")
    assert own.reported[0].inside is None  # another text: the band does not speak of it
    quick = run(tmp_path, lambda run: run.report("loss", 9.0, "nats"), quick=True)
    assert quick.reported[0].inside is None


def test_a_full_run_on_other_data_is_not_committed(tmp_path: Path, records: Path) -> None:
    run(tmp_path, lambda run: run.report("loss", [1.0, 2.0], "nats"), full=True, data="mine.txt")
    assert not records.exists()


def test_a_failed_run_leaves_no_older_record(tmp_path: Path, records: Path) -> None:
    run(tmp_path, lambda run: None)

    def fails(run: Run) -> None:
        raise RunError("the disk is full")

    with pytest.raises(RunError):
        run(tmp_path, fails)
    assert not (tmp_path / "lesson-03" / "record.json").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("no"), 2), (RunError("no"), 1), (KeyboardInterrupt(), 130), (MemoryError(), 1), (None, 0)],
)
def test_main_turns_errors_into_one_line_and_a_code(
    error: BaseException | None, code: int, tmp_path: Path, records: Path, capsys: Any
) -> None:
    def lesson(run: Run) -> None:
        if error is not None:
            raise error

    assert runner.main(3, "About.", lesson, ["--out", str(tmp_path)]) == code
    said = capsys.readouterr().err
    assert said.strip().count("\n") == 0
    assert said.strip().startswith("lesson 3: ") == (code != 0)


def test_check_makes_a_figure_outside_its_band_a_failure(tmp_path: Path, records: Path) -> None:
    def lesson(run: Run) -> None:
        run.report("loss", 4.0, "nats", Band(0, 3))

    assert runner.main(3, "About.", lesson, ["--out", str(tmp_path)]) == 0
    assert runner.main(3, "About.", lesson, ["--out", str(tmp_path), "--check"]) == 1


def test_a_directory_that_cannot_be_made_is_the_users_mistake(tmp_path: Path, records: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("x")
    assert runner.main(3, "About.", lambda run: None, ["--out", str(tmp_path / "file")]) == 2
    assert "cannot make the directory" in capsys.readouterr().err


def test_a_backend_that_is_not_there_is_the_users_mistake(
    tmp_path: Path, records: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    arguments = ["--out", str(tmp_path), "--backend", "cupy"]
    assert runner.main(3, "About.", lambda run: run.say(run.backend.name), arguments) == 2
    assert "needs the package cupy" in capsys.readouterr().err
    arguments = ["--out", str(tmp_path), "--precision", "tf32"]
    assert runner.main(3, "About.", lambda run: run.say(run.backend.name), arguments) == 2
    assert "precision 'tf32' is for the backend cupy" in capsys.readouterr().err


def test_backend_and_precision_become_one_setting() -> None:
    for given, setting in {
        (): "numpy",
        ("--backend", "cupy"): "cupy",
        ("--backend", "cupy", "--precision", "float32"): "cupy",
        ("--backend", "cupy", "--precision", "bfloat16"): "cupy:bfloat16",
    }.items():
        settings = runner.parse(3, "About.", given)
        assert settings.backend == settings.record()["backend"] == setting


@pytest.mark.parametrize(
    "arguments",
    [["--seed", "-1"], ["--full", "--quick"], ["--seed", "x"], ["--backend", "abacus"], ["--precision", "half"]],
)
def test_impossible_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        runner.parse(3, "About.", arguments)
    assert stopped.value.code == 2
