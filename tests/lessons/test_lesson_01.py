"""Lesson 1 at its smallest: what it prints, draws and records, and that it sees a wrong gradient."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import Backend, get_backend
from lessons import lesson_01_pretraining as lesson
from lessons.common import runner
from lessons.common.runner import Run, Settings
from minigpt import GPT, load_tokenizer
from minigpt.data import DataSet
from minigpt.data.base import split_of
from tests.helpers import is_picture
from tests.standin import BACKEND as STANDIN

SUBJECTS = ["the cat", "a dog", "my sister", "the old man", "our teacher", "a tall girl"]
VERBS = ["sees", "hears", "likes", "follows", "finds", "remembers"]
PLACES = ["by the river", "in the garden", "near the red house", "under the bridge", "behind the school"]


def story(seed: int) -> str:
    rng = np.random.default_rng(seed)

    def sentence() -> str:
        first, verb, second, place = (rng.choice(words) for words in (SUBJECTS, VERBS, SUBJECTS, PLACES))
        return f"{first} {verb} {second} {place}.".capitalize()

    return " ".join(sentence() for _ in range(12))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories of mine.txt"
    path.write_text("<|endoftext|>".join(story(i) for i in range(80)), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the committed record, nor depends on it."""
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def read(directory: Path) -> Any:
    return json.loads((directory / "record.json").read_text(encoding="utf-8"))


def check_lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.endswith((" ok", " WRONG", " not written yet"))]


# ---------------------------------------------------------------------------------------------- the whole lesson


def test_quick_lesson_on_a_file_does_all_that_it_promises(text_file: Path, tmp_path: Path, capsys: Any) -> None:
    code = lesson.main(["--quick", "--check", "--data", str(text_file), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0
    lines = check_lines(printed)
    assert len(lines) > 30
    assert all(line.endswith(" ok") for line in lines)
    for name in ("def attention_backward", "def layernorm_backward_input", "def adamw_update", "dP = dO vᵀ"):
        assert name in printed
    for word in ("SOLUTION", '"""Gradient'):
        assert word not in printed
    directory = tmp_path / "lesson-01"
    record = read(directory)
    assert record["settings"]["quick"] is True
    assert record["provenance"]["numpy"] == np.__version__
    assert set(record["figures"]) >= {"bits_per_byte", "held_out_loss", "training_loss", "perplexity"}
    assert all(record["verdict"][name]["inside"] for name in ("bits_per_byte", "held_out_loss", "training_loss"))
    assert set(record["bands"]) == {"bits_per_byte", "held_out_loss", "training_loss"}
    assert record["results"]["data"]["splits"]["validation"]["records"] > 0
    assert record["results"]["recipe"] == asdict(lesson.QUICK)
    assert record["pictures"] == ["loss.png", "attention.png"]
    assert all(is_picture(directory / name) for name in record["pictures"])
    loss, perplexity = (record["figures"][name]["values"][0] for name in ("held_out_loss", "perplexity"))
    assert perplexity == pytest.approx(math.exp(loss))
    assert f"{loss:.3f}" in printed
    model, tokenizer = GPT.from_pretrained(directory / "model"), load_tokenizer(directory / "model")
    assert tokenizer.vocab_size == model.config.vocab_size
    assert (directory / "log.jsonl").read_text().count("\n") > 0


def test_lesson_runs_on_another_array_library(text_file: Path, tmp_path: Path, capsys: Any) -> None:
    settings = Settings(quick=True, brief=True, data=str(text_file), out=tmp_path)
    here = runner.run_lesson(1, lesson.lesson, settings)
    printed = capsys.readouterr().out
    there = runner.run_lesson(1, lesson.lesson, replace(settings, backend=STANDIN))
    elsewhere = capsys.readouterr().out
    for text in (printed, elsewhere):
        lines = check_lines(text)
        assert len(lines) > 30
        assert all(line.endswith(" ok") for line in lines)
        assert "def attention_backward" not in text  # brief: no derivations, but all the checks
        assert "dP = dO vᵀ" not in text
    for a, b in zip(here.reported[:3], there.reported[:3], strict=True):
        assert a.values[0] == pytest.approx(b.values[0], rel=1e-3), a.name
    assert there.settings.record()["backend"] == "standin"


def test_same_seed_same_model(text_file: Path) -> None:
    text = lesson.read_text(lesson.load_corpus(str(text_file)), 280)
    recipe = replace(lesson.QUICK, steps=6, eval_every=3)

    def trained(seed: int, lr: float) -> tuple[float, np.ndarray]:
        result = lesson.pretrain(text, replace(recipe, lr=lr), get_backend("numpy"), seed, "it")
        return result.score.loss, result.model.state()["transformer.wte.weight"]

    assert trained(0, 1e-3)[0] == trained(0, 1e-3)[0] != trained(1, 1e-3)[0]
    assert (trained(0, 0.0)[1] != trained(1, 0.0)[1]).any()  # other weights from the start, not only other batches


# ---------------------------------------------------------------------------------------------- wrong gradients


class Patched(Backend):
    """The NumPy backend with one operation of its table changed, in both of its forms."""

    op: tuple[str, Any] = ("", None)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        name, change = self.op
        setattr(self.ops, name, change(getattr(self.ops, name)))


def patched(name: str, change: Any) -> Backend:
    numpy = get_backend("numpy")
    kind = type("Changed", (Patched,), {"op": (name, change)})
    return kind(numpy.name, numpy.xp, numpy.suffix)


def derive(tmp_path: Path, backend: Backend) -> list[Any]:
    return lesson.derive(Run(1, Settings(quick=True, brief=True), tmp_path), backend)


WRONG = {
    "linear_backward_input": lambda f: lambda dy, weight: 1.01 * f(dy, weight),
    "linear_backward_weight": lambda f: lambda dy, x, out=None: -f(dy, x, out),
    "linear_backward_bias": lambda f: lambda dy: f(dy) / dy.shape[-1],
    "embedding_backward": lambda f: lambda dy, ids, dweight: _assigned(dy, ids, dweight),
    "layernorm_backward_params": lambda f: lambda dy, cache: f(dy, cache)[::-1],
    "residual_layernorm_backward_input": lambda f: lambda dt, dy, weight, cache: f(0 * dt, dy, weight, cache),
    "attention_backward": lambda f: lambda dout, cache, out=None: _unscaled(f(dout, cache, out)),
    "bias_gelu_backward": lambda f: lambda dy, cache: 1.001 * f(dy, cache),
    "cross_entropy_backward": lambda f: lambda cache: f(cache) + 1e-4,
    "dropout_backward": lambda f: lambda dy, mask: dy * (mask > 0),
    "adamw_update": lambda f: lambda p, g, m, v, step, *rest: f(p, g, m, v, step + 1, *rest),
}


def _assigned(dy: Any, ids: Any, dweight: Any) -> Any:
    dweight[ids.reshape(-1)] = dy.reshape(-1, dy.shape[-1])  # a token read twice keeps its last gradient only
    return dweight


def _unscaled(gradients: Any) -> Any:
    dq, dk, dv = gradients
    dq *= math.sqrt(dq.shape[-1])
    return dq, dk, dv


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_shown_as_wrong(name: str, tmp_path: Path, capsys: Any) -> None:
    checks = derive(tmp_path, patched(name, WRONG[name]))
    wrong = [c for c in checks if c.verdict == "WRONG"]
    assert wrong
    printed = capsys.readouterr().out
    assert " WRONG" in printed
    assert wrong[0].fault in printed
    assert any(c.ok for c in checks)


def test_nothing_is_trained_on_a_wrong_gradient(tmp_path: Path, text_file: Path) -> None:
    settings = Settings(quick=True, brief=True, data=str(text_file), out=tmp_path)
    backend = patched("bias_gelu_backward", WRONG["bias_gelu_backward"])
    with pytest.raises(runner.RunError, match=r"\d+ gradients are wrong and 0 not written yet"):
        runner.run_lesson(1, lesson.lesson, replace(settings, backend=backend))


@pytest.mark.parametrize("name", ["linear_backward_bias", "attention_forward", "adamw_update"])
def test_what_is_not_written_yet_is_no_crash(name: str, tmp_path: Path, capsys: Any) -> None:
    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    checks = derive(tmp_path, patched(name, lambda f: todo))
    assert any(c.missing for c in checks)
    assert any(c.ok for c in checks)
    assert all(c.ok or c.missing for c in checks)
    assert " not written yet" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no such file"), (b"", "is empty"), (b"abc\0def", "binary"), (b"too short " * 9, "too few")],
)
def test_data_that_cannot_be_used_gets_one_line_and_code_2(
    content: bytes | None, said: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.startswith("lesson 1: ")
    assert "\n" not in error
    assert not (tmp_path / "lesson-01" / "record.json").exists()


# ---------------------------------------------------------------------------------------------- the full run


def test_full_run_makes_bands_and_ablations(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    documents = [story(i) for i in range(160)]
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        parts[split_of(document, 0.3, 0.1)].append(document)
    monkeypatch.setattr(lesson, "load_corpus", lambda name: DataSet(name, **parts))
    recipe = replace(lesson.QUICK, steps=12, eval_every=6, warmup=2, n_layer=1)
    monkeypatch.setattr(lesson, "CORE", recipe)
    monkeypatch.setattr(lesson, "SEEDS", 3)
    monkeypatch.setattr(lesson, "ABLATION_SEEDS", 1)
    tried: list[Any] = []
    pretrain = lesson.pretrain

    def small(text: Any, recipe: Any, backend: Any, seed: int, title: str, *rest: Any, **named: Any) -> Any:
        variant = named.get("variant", lesson.VARIANTS[0])
        tried.append((variant.name, seed, recipe.lr / lesson.CORE.lr, recipe.warmup))
        if variant.name == "learning rate × 3":
            raise runner.RunError("step 3: loss is nan")
        return pretrain(text, recipe, backend, seed, title, *rest, **named)

    monkeypatch.setattr(lesson, "pretrain", small)
    assert lesson.main(["--full", "--brief", "--seed", "5", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    committed = json.loads((records / "lesson-01.json").read_text(encoding="utf-8"))
    assert committed == read(tmp_path / "lesson-01")
    assert [t[:2] for t in tried] == [
        *(("as it is", seed) for seed in (5, 6, 7)),
        *((variant.name, 5) for variant in lesson.VARIANTS[1:]),
    ]
    by_name = {name: rest for name, _, *rest in tried}
    assert by_name["learning rate ÷ 3"] == [pytest.approx(1 / 3), 2]
    assert by_name["no warm-up"] == [1, 0]
    values = committed["figures"]["bits_per_byte"]["values"]
    assert len(values) == 3
    band = committed["bands"]["bits_per_byte"]
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    allowance = committed["results"]["relative_text_error"] * mean
    assert allowance > 0
    assert band["high"] - mean == pytest.approx(3 * math.hypot(deviation, allowance))
    assert band["seeds"] == 3
    ablations = committed["results"]["ablations"]
    assert [len(ablations[v.name]) for v in lesson.VARIANTS] == [3, 1, 1, 1, 1, 1]
    assert ablations["learning rate × 3"] == [None]
    assert "1 diverged" in printed
    assert is_picture(tmp_path / "lesson-01" / "ablations.png")

    tried.clear()
    assert lesson.main(["--brief", "--seed", "5", "--out", str(tmp_path)]) == 0  # a core run is held to the band
    assert "over 3 seeds" in capsys.readouterr().out
    assert read(tmp_path / "lesson-01")["verdict"]["bits_per_byte"]["inside"] is True


def test_variants_change_the_initial_weights(text_file: Path) -> None:
    data = lesson.load_corpus(str(text_file))
    text = lesson.read_text(data, 280)
    recipe = replace(lesson.QUICK, steps=1, lr=0.0, eval_every=1)
    numpy = get_backend("numpy")

    def weight_scale(name: str, **settings: Any) -> float:
        variant = lesson.Variant("it", **settings)
        model = lesson.pretrain(text, recipe, numpy, 0, "it", variant=variant).model
        return float(model.state()[name].std())

    proj, fc = "transformer.h.0.mlp.c_proj.weight", "transformer.h.0.mlp.c_fc.weight"
    assert weight_scale(fc, init=0.1) == pytest.approx(5 * weight_scale(fc), rel=1e-3)
    assert weight_scale(proj, residual_scaling=False) == pytest.approx(2 * weight_scale(proj), rel=1e-3)
    assert weight_scale(fc, residual_scaling=False) == pytest.approx(weight_scale(fc), rel=1e-6)


COMMITTED = Path(lesson.__file__).parent / "records" / "lesson-01.json"


def test_committed_record_is_of_this_lesson() -> None:
    record = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert record["results"]["recipe"] == asdict(lesson.CORE)
    assert set(record["results"]["ablations"]) == {v.name for v in lesson.VARIANTS}
    assert len(record["figures"]["bits_per_byte"]["values"]) >= 5
    for name in ("bits_per_byte", "held_out_loss", "training_loss"):
        band = record["bands"][name]
        assert band["seeds"] >= 5
        assert all(band["low"] <= v <= band["high"] for v in record["figures"][name]["values"])
    assert record["settings"] == {"data": None, "full": True, "quick": False, "backend": "numpy", "seed": 0}
