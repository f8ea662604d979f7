"""Lesson 5: scores, masks, training that moves selected entries only, groups of parameters, and the whole lesson."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kernels import get_backend
from kernels.backend import OPS
from lessons import METHODS
from lessons import lesson_05_importance_ranking as lesson
from lessons.common import derivation, forest, groups, masked, ranking, runner
from lessons.common.classifier import Classification, Classifier
from lessons.common.groups import ChosenGroups, Groups, Interventions, budget_masks, parameter_groups, study
from lessons.common.masked import MaskedGPT, selected_embedding_gradient, selected_weight_gradient
from lessons.common.method import n_trainable
from lessons.common.ranking import QUICK, load
from lessons.common.runner import Run, Settings
from lessons.lesson_05_importance_ranking import SCORES, Importance, fisher, fisher_one_by_one, top_k_mask
from minigpt import GPT, GPTConfig, InputError, RunError
from minigpt.objectives import LanguageModelling
from minigpt.parameters import FlatParameters
from minigpt.training import TrainConfig, train
from tests.helpers import assert_gradient, error, nan_like
from tests.standin import BACKEND as STANDIN

V = 13
GOLDEN = Path(__file__).parent.parent / "golden" / "importance.npz"
RNG = np.random.default_rng(0)


def model(dtype: str = "float64", backend: Any = "numpy", **sizes: int) -> GPT:
    settings = {"vocab_size": V, "n_positions": 8, "n_embd": 6, "n_layer": 2, "n_head": 2} | sizes
    gpt = GPT(GPTConfig(**settings), dtype=dtype, backend=backend)
    rng = np.random.default_rng(2)
    for p in gpt.parameters():  # nothing stays 0 or 1
        weight = (p.data.ndim == 1 and p.name.endswith("weight")) + 0.3 * rng.standard_normal(tuple(p.data.shape))
        p.data = gpt.backend.asarray(weight.astype(dtype))
    return gpt


def batch(step: int = 0, rows: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([3, step])
    ids, targets = rng.integers(0, V, (2, rows, 6))
    targets[0, :3] = -100
    return {"ids": ids, "targets": targets}


def labelled(step: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([4, step])
    return {"ids": batch(step)["ids"], "labels": rng.integers(0, 3, 4), "lengths": np.array([6, 4, 1, 5])}


def random_masks(gpt: GPT, share: float = 0.3, seed: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {p.name: rng.random(tuple(p.data.shape)) < share for p in gpt.parameters()}


def weights(gpt: Any) -> dict[str, np.ndarray]:
    return {p.name: p.data.copy() for p in gpt.parameters()}


# ---------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(("lead", "inputs", "outputs", "k"), [((2, 5), 4, 7, 9), ((1, 1), 1, 1, 1), ((33,), 5, 1, 5)])
@pytest.mark.parametrize("block", [1, 40, 1 << 15])
def test_gradient_of_selected_entries_of_a_weight(
    lead: tuple[int, ...], inputs: int, outputs: int, k: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked, "BLOCK", block)
    x, dy = RNG.normal(size=(*lead, inputs)), RNG.normal(size=(*lead, outputs))
    weight = RNG.normal(size=(inputs, outputs))
    places = np.sort(RNG.choice(weight.size, k, replace=False))

    def product(values: np.ndarray) -> np.ndarray:
        full = weight.copy()
        full.reshape(-1)[places] = values
        return x @ full

    gradient = selected_weight_gradient(dy, x, places // outputs, places % outputs)
    assert_gradient(gradient, product, weight.reshape(-1)[places], dy)


@pytest.mark.parametrize(("shape", "rows", "width", "k"), [((2, 7), 5, 3, 6), ((1, 1), 1, 1, 1), ((3, 4), 40, 2, 30)])
def test_gradient_of_selected_entries_of_an_embedding(shape: tuple[int, int], rows: int, width: int, k: int) -> None:
    ids, dy = RNG.integers(0, rows, shape), RNG.normal(size=(*shape, width))
    table = RNG.normal(size=(rows, width))
    places = np.sort(RNG.choice(table.size, k, replace=False))

    def look_up(values: np.ndarray) -> np.ndarray:
        full = table.copy()
        full.reshape(-1)[places] = values
        return full[ids]

    gradient = selected_embedding_gradient(dy, ids, places // width, places % width)
    assert_gradient(gradient, look_up, table.reshape(-1)[places], dy)


def test_no_place_has_read_a_selected_row() -> None:
    gradient = selected_embedding_gradient(np.ones((1, 2, 3)), np.array([[0, 1]]), np.array([2, 4]), np.array([0, 1]))
    assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dense_above", [0.0, 0.31, 2.0])
@pytest.mark.parametrize("backend", [get_backend("numpy"), get_backend("numpy", OPS), STANDIN], ids=str)
def test_gradients_are_the_bases_inside_the_masks_and_0_outside(
    dense_above: float, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked, "DENSE_ABOVE", dense_above)
    base, host = model(backend=backend), backend.to_numpy
    masks = random_masks(base)
    tuned = MaskedGPT(base, masks)
    wanted_loss, wanted = base.loss_and_grads(**batch())
    loss, grads = tuned.loss_and_grads(**batch())
    assert loss == pytest.approx(wanted_loss, rel=1e-12)
    assert set(grads) == set(wanted)
    for name, gradient in grads.items():
        assert error(host(gradient), host(wanted[name]) * masks[name]) < 1e-12, name
        assert not host(gradient)[~masks[name]].any(), name
    assert error(host(tuned.logits(batch()["ids"])), host(base.logits(batch()["ids"]))) < 1e-12


@pytest.mark.parametrize(
    "only", ["wte.weight", "wpe.weight", "ln_f.bias", "h.1.ln_2.weight", "h.0.mlp.c_fc.bias", "h.1.attn.c_attn.weight"]
)
def test_a_mask_on_one_tensor_leaves_all_other_layers_as_they_are(only: str) -> None:
    base = model()
    name = f"transformer.{only}"
    shape = weights(base)[name].shape
    mask = RNG.random(shape) < 0.4
    mask.flat[0] = True
    tuned = MaskedGPT(base, {name: mask})
    assert [p.name for p in tuned.parameters() if p.trainable] == [name + masked.SUFFIX]
    assert [e.base.name for e in tuned.entries()] == [name]
    grads, wanted = tuned.loss_and_grads(**batch())[1], base.loss_and_grads(**batch())[1]
    assert error(grads[name], wanted[name] * mask) < 1e-12
    assert not any(g.any() for other, g in grads.items() if other != name)


def test_frozen_values_get_no_gradient_and_keep_nothing() -> None:
    tuned = MaskedGPT(model(), random_masks(model()))
    tuned.freeze(["*mlp*", "*ln_*", "*attn*"])
    grads = tuned.loss_and_grads(**batch())[1]
    moved = {name for name, g in grads.items() if g.any()}
    assert moved == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_positions_may_be_given_and_rows_be_padded_on_the_left() -> None:
    base = model()
    tuned = MaskedGPT(base, random_masks(base))
    for p in tuned.parameters():
        if p.trainable:
            p.data = p.data + 0.1
    prompts = np.array([[0, 0, 3, 5], [1, 2, 3, 4]])
    written = tuned.generate(prompts, 3, temperature=0, lengths=[2, 4])
    alone = tuned.generate(prompts[:1, 2:], 3, temperature=0)
    assert (written[0, 4:] == alone[0, 2:]).all()


# ---------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(("B", "T", "inputs", "outputs"), [(3, 5, 4, 2), (1, 1, 1, 1), (4, 1, 3, 3), (1, 6, 2, 5)])
def test_per_example_squares(B: int, T: int, inputs: int, outputs: int) -> None:
    x, dy = RNG.normal(size=(B, T, inputs)), RNG.normal(size=(B, T, outputs))
    wanted = sum((x[b].T @ dy[b]) ** 2 for b in range(B))
    assert error(lesson.per_example_squares(dy, x), wanted) < 1e-12


def with_head(gpt: GPT) -> Classifier:
    trunk = gpt.copy()
    classifier = Classifier(trunk, 3, seed=1)
    classifier.freeze(["score*"])
    return classifier


@pytest.mark.parametrize("backend", [get_backend("numpy"), get_backend("numpy", OPS), STANDIN], ids=str)
@pytest.mark.parametrize("kind", ["language model", "classifier"])
def test_fisher_in_one_pass_is_fisher_by_its_definition(kind: str, backend: Any) -> None:
    gpt = model(backend=backend)
    if kind == "classifier":
        subject, objective, batches = with_head(gpt), Classification(), [labelled(0), labelled(1)]
    else:
        unscored = batch(2)
        unscored["targets"][1] = -100  # an example without a target adds 0, and counts
        subject, objective, batches = gpt, LanguageModelling(), [batch(0), batch(1, 1), unscored]
    found, wanted = fisher(subject, objective, batches), fisher_one_by_one(subject, objective, batches)
    assert set(found) == set(wanted)
    for name, square in wanted.items():
        assert error(found[name], square) < 1e-10, name
    summed = lesson.mean_gradient(subject, objective, batches)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert error(summed[name] ** 2, wanted[name]) > 0.1  # the square of the batch's gradient is something else


def test_rankings_for_a_classifier_look_through_the_head_that_training_starts_from() -> None:
    wanted = fisher_one_by_one(with_head(model()), Classification(), [labelled(0), labelled(1)])
    found = Importance(score="fisher", n_labels=3).scores(model(), 1, [labelled(0), labelled(1)])
    assert set(found) == set(wanted)
    for name, square in wanted.items():
        assert error(found[name], square) < 1e-10, name
    head = Importance(n_labels=3).apply(model(), seed=1, data=[labelled()]).head
    assert (head.score.weight.data == with_head(model()).head.score.weight.data).all()


def test_fisher_equals_autograds() -> None:
    """Golden values made by tests/parity/test_lesson_05_parity.py."""
    with np.load(GOLDEN) as stored:
        golden = {name: stored[name] for name in stored.files}
    weight = {n.removeprefix("weight."): a for n, a in golden.items() if n.startswith("weight.")}
    V, C = weight["transformer.wte.weight"].shape
    gpt = GPT(GPTConfig(vocab_size=V, n_positions=9, n_embd=C, n_layer=2, n_head=2), dtype="float64")
    for p in gpt.parameters():
        p.data = weight[p.name]
    found = fisher(gpt, LanguageModelling(), [{"ids": golden["batch.ids"], "targets": golden["batch.targets"]}])
    for name, scores in found.items():
        assert error(scores, golden[f"fisher.{name}"]) < 1e-9, name


def test_top_k_is_over_all_tensors_and_the_first_of_equals_wins() -> None:
    scores = {"a": np.array([[1.0, 5.0], [3.0, 3.0]]), "b": np.array([3.0, 7.0, 3.0])}
    masks = top_k_mask(scores, 4)
    assert masks["a"].tolist() == [[False, True], [True, True]]
    assert masks["b"].tolist() == [False, True, False]
    assert all(m.all() for m in top_k_mask(scores, 7).values())
    assert sum(int(m.sum()) for m in top_k_mask(scores, 1).values()) == 1
    assert (top_k_mask({"b": scores["b"], "a": scores["a"]}, 4)["b"] == [True, True, True]).all()


@pytest.mark.parametrize("k", [0, -1, 8])
def test_top_k_outside_of_what_there_is_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}; it must be from 1 to the 7 entries"):
        top_k_mask({"a": np.zeros(7)}, k)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="scores of b are not numbers"):
        top_k_mask({"a": np.zeros(2), "b": nan_like(np.zeros(2))}, 1)


def test_each_ranking_is_what_its_name_says() -> None:
    base, data = model(), [batch(0), batch(1)]
    gradient = lesson.mean_gradient(base, LanguageModelling(), data)
    both = {name: np.concatenate((data[0][name], data[1][name])) for name in data[0]}
    wanted = base.loss_and_grads(**both)[1]
    assert all(error(gradient[name], wanted[name]) < 1e-12 for name in wanted)
    for score, function in {
        "gradient": lambda g, w: abs(g),
        "gradient_weight": lambda g, w: abs(g * w),
        "bottom_k": lambda g, w: -abs(g),
        "magnitude": lambda g, w: abs(w),
    }.items():
        found = Importance(score=score).scores(base, 0, data)
        for p in base.parameters():
            assert error(found[p.name], function(wanted[p.name], p.data)) < 1e-12, (score, p.name)
    squares = Importance(score="fisher").scores(base, 0, data)
    assert list(squares) == [p.name for p in base.parameters()]
    assert all((s >= 0).all() for s in squares.values())


def picked(method: Importance, seed: int = 0, data: Any = None) -> np.ndarray:
    return np.concatenate([m.reshape(-1) for m in method.masks(model(), seed, data).values()])


def test_controls() -> None:
    data = [batch()]
    random = [picked(Importance(score="random", density=0.1), seed) for seed in (0, 0, 1)]
    assert (random[0] == random[1]).all()
    assert (random[0] != random[2]).any()
    top, bottom = (picked(Importance(score=s, density=0.3), 0, data) for s in ("gradient", "bottom_k"))
    assert not (top & bottom).any()
    plain, even = (picked(Importance(score="gradient", density=0.1, per_tensor=p), 0, data) for p in (False, True))
    assert (plain != even).any()
    assert plain.sum() == even.sum()


def test_per_tensor_divides_by_the_tensors_mean() -> None:
    base, data = model(), [batch()]
    raw = Importance().scores(base, 0, data)
    share = {name: s / s.mean() for name, s in raw.items()}
    n = base.n_parameters
    wanted = top_k_mask(share, round(0.05 * n))
    found = Importance(density=0.05, per_tensor=True).masks(base, 0, data)
    assert all((found[name] == m).all() for name, m in wanted.items())


# ---------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("density", [0.0001, 0.01, 0.37, 1.0])
def test_as_many_are_trained_as_the_density_says(density: float) -> None:
    base = model()
    tuned = Importance(density=density).apply(base, data=[batch()])
    k = max(1, round(density * base.n_parameters))
    assert n_trainable(tuned) == k
    flat = FlatParameters(tuned.copy().parameters(), tuned.backend)
    assert flat.size == k
    head = Importance(density=density, n_labels=3).apply(base, data=[labelled()])
    assert n_trainable(head) == k + 3 * 6 * 3 + 3
    grads = head.loss_and_grads(**labelled())[1]
    assert set(grads) == {*weights(base), "score.weight", "score.bias"}
    assert grads["score.weight"].any()
    assert sum(np.count_nonzero(g) for name, g in grads.items() if not name.startswith("score")) <= k


def test_data_come_in_several_forms_and_give_the_same_choice() -> None:
    whole = batch()
    forms: list[Any] = [
        [whole],
        whole,
        (whole["ids"], whole["targets"]),
        [(whole["ids"], whole["targets"])],
        (whole["ids"].tolist(), whole["targets"].tolist()),
    ]
    wanted = picked(Importance(), 0, [whole])
    for form in forms:
        assert (picked(Importance(), 0, form) == wanted).all()
    two = [(b["ids"], b["targets"]) for b in (whole, batch(1))]  # two batches, not ids and targets
    assert (picked(Importance(density=0.3), 0, two) == picked(Importance(density=0.3), 0, [whole, batch(1)])).all()
    labels = labelled()
    chosen = Importance(n_labels=3)
    given = {"ids": labels["ids"], "labels": labels["labels"]}
    assert (picked(chosen, 0, given) == picked(chosen, 0, (labels["ids"], labels["labels"]))).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "density is 0.0; it must be above 0 and at most 1"),
        ({"density": 1.5}, "density is 1.5"),
        ({"density": float("nan")}, "density is nan"),
        ({"score": "gut feeling"}, "no score 'gut feeling'; there are gradient, "),
        ({"n_labels": 1}, "n_labels is 1"),
    ],
)
def test_impossible_settings_get_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Importance(**settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "looks at training batches before it starts: give data="),
        ([], "looks at training batches before it starts"),
        ([{"ids": np.zeros((1, 2), int)}], "needs data=.*; a batch has ids"),
        ([labelled()], "needs data=.*; a batch has ids, labels, lengths"),
        ([3], "needs data=.*; a batch has int"),
    ],
)
@pytest.mark.parametrize("score", ["gradient", "gradient_weight", "fisher", "bottom_k"])
def test_missing_data_get_one_line(data: Any, message: str, score: str) -> None:
    with pytest.raises(InputError, match=f"importance with score='{score}' {message}") as caught:
        Importance(score=score).apply(model(), data=data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_blind_controls_need_no_data(score: str) -> None:
    assert n_trainable(Importance(score=score).apply(model())) > 0


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="nothing is selected"):
        MaskedGPT(model(), {})
    with pytest.raises(InputError, match=r"a mask of shape \(2,\) for transformer.ln_f.bias, which is \(6,\)"):
        MaskedGPT(model(), {"transformer.ln_f.bias": np.ones(2, dtype=bool)})
    with pytest.raises(InputError, match="which is no parameter"):
        MaskedGPT(model(), {"transformer.ln_g.bias": np.ones(2, dtype=bool)})


def test_a_tuned_or_merged_model_is_no_base_and_is_not_merged_twice() -> None:
    method = Importance()
    tuned = method.apply(model(), data=[batch()])
    with pytest.raises(InputError, match="plain GPT"):
        method.apply(tuned, data=[batch()])
    with pytest.raises(InputError, match="has been merged already"):
        method.merge(method.merge(tuned))
    with pytest.raises(InputError, match="classifier head"):
        method.merge(Importance(n_labels=3).apply(model(), data=[labelled()]))


# ---------------------------------------------------------------------------------------------- training


def trained(tuned: Any, steps: int = 5, workers: int = 1, **settings: Any) -> Any:
    config = TrainConfig(steps=steps, lr=0.05, weight_decay=0.3, schedule="constant", workers=workers, **settings)
    train(tuned, LanguageModelling(), batch, config, progress=False)
    return tuned


@pytest.mark.parametrize("score", SCORES)
def test_training_moves_the_selected_entries_and_not_one_bit_of_the_rest(score: str) -> None:
    base = model("float32")
    before = weights(base)
    method = Importance(density=0.1, score=score)
    tuned = trained(method.apply(base, data=[batch()]))
    masks = {e.base.name: e.index for e in tuned.entries()}
    after = method.merge(tuned).state()
    moved = 0
    for name, old in before.items():
        assert base.state()[name].tobytes() == old.tobytes(), name
        changed = set(np.flatnonzero(after[name] != old).tolist())
        assert changed <= set(masks.get(name, np.zeros(0)).tolist()), name
        moved += len(changed)
    k = n_trainable(tuned)
    assert moved > (0.9 * k if score != "bottom_k" else -1)  # the lowest gradients may all be 0


def test_compact_training_is_dense_training_with_a_masked_gradient() -> None:
    base, steps, lr, (b1, b2), eps = model(), 4, 0.05, (0.9, 0.99), 1e-8
    masks = random_masks(base)
    tuned = trained(MaskedGPT(base, masks), steps, max_norm=None)
    dense = base.copy()
    state = {p.name: (np.zeros_like(p.data), np.zeros_like(p.data)) for p in dense.parameters()}
    for step in range(steps):
        grads = dense.loss_and_grads(**batch(step))[1]
        for p in dense.parameters():
            g, (m, v) = grads[p.name] * masks[p.name], state[p.name]
            m[...] = b1 * m + (1 - b1) * g
            v[...] = b2 * v + (1 - b2) * g * g
            t = step + 1
            p.data = p.data - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) * masks[p.name]
    for name, wanted in dense.state().items():
        assert error(tuned.state()[name], wanted) < 1e-9, name


def test_two_workers_do_what_one_does() -> None:
    base = model()
    masks = random_masks(base)
    alone, together = (trained(MaskedGPT(base, masks), 3, workers) for workers in (1, 2))
    for name, wanted in alone.state().items():
        assert error(together.state()[name], wanted) < 1e-9, name


def test_training_goes_on_where_it_was_stopped_on_the_same_model(tmp_path: Path) -> None:
    base = model()
    masks = random_masks(base)
    wanted = trained(MaskedGPT(base, masks), 4).state()
    tuned = MaskedGPT(base, masks)
    config = TrainConfig(steps=4, lr=0.05, weight_decay=0.3, schedule="constant", workers=1, checkpoint_every=2)

    def stop(state: Any) -> None:
        state.stop = state.step == 2

    train(tuned, LanguageModelling(), batch, config, callbacks=[stop], directory=tmp_path, progress=False)
    train(tuned, LanguageModelling(), batch, config, directory=tmp_path, resume=True, progress=False)
    assert all(tuned.state()[name].tobytes() == array.tobytes() for name, array in wanted.items())


def test_a_copy_is_trained_alone() -> None:
    tuned = MaskedGPT(model(), random_masks(model()))
    before = tuned.state()
    twin = trained(tuned.copy())
    assert all((tuned.state()[name] == array).all() for name, array in before.items())
    assert any((twin.state()[name] != array).any() for name, array in before.items())


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("n_labels", [None, 3])
def test_files_hold_values_places_and_head_and_nothing_else(n_labels: int | None, tmp_path: Path) -> None:
    base = model()
    method = Importance(density=0.05, n_labels=n_labels)
    tuned = method.apply(base, data=[labelled() if n_labels else batch()])
    for p in tuned.parameters():
        if p.trainable:
            p.data = p.data + 0.1
    method.save(tuned, tmp_path / "it")
    trunk = tuned.trunk if n_labels else tuned
    k = sum(e.index.size for e in trunk.entries())
    stored, _ = masked_tensors(tmp_path / "it")
    assert sum(a.size for n, a in stored.items() if n.endswith(masked.SUFFIX)) == k
    assert sum(a.size for n, a in stored.items() if n.endswith(masked.PLACES)) == k
    assert len([n for n in stored if n.startswith("score")]) == (2 if n_labels else 0)
    loaded = METHODS["importance"].load(base, tmp_path / "it")
    ids = batch()["ids"]
    assert (loaded.logits(ids) == tuned.logits(ids)).all()
    assert n_trainable(loaded) == n_trainable(tuned)
    if not n_labels:
        plain = method.merge(loaded)
        plain.save_pretrained(tmp_path / "plain")
        assert error(GPT.from_pretrained(tmp_path / "plain").logits(ids), tuned.logits(ids)) < 1e-12


def masked_tensors(directory: Path) -> Any:
    from minigpt import files

    return files.load_tensors(directory / "method.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, n: t.pop(n + ".selected"), r"missing: .*c_attn\.weight\.selected"),
        (lambda t, n: t.pop(n + ".places"), r"left over: .*c_attn\.weight\.selected"),
        (lambda t, n: t.update({n + ".places": t[n + ".places"][::-1].copy()}), "must rise from 0 to 107 at most"),
        (lambda t, n: t.update({n + ".places": t[n + ".places"] + 100}), "must rise from 0 to 107 at most"),
        (lambda t, n: t.update({n + ".places": t[n + ".places"] - 100}), "must rise from 0 to 107 at most"),
        (lambda t, n: t.update({n + ".places": t[n + ".places"] + 0.5}), "must be a list of whole numbers"),
        (lambda t, n: t.update({"transformer.x.places": t[n + ".places"]}), r"for transformer\.x of this base"),
        (lambda t, n: [t.pop(name) for name in list(t)], "nothing is selected"),
        (lambda t, n: t.update({n + ".selected": t[n + ".selected"][:-1]}), r"is \(\d+,\) instead of \(\d+,\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    mask = np.zeros((6, 18), dtype=bool)
    mask[:, 3] = True
    tuned = MaskedGPT(model(), {name: mask, "transformer.ln_f.bias": np.ones(6, dtype=bool)})
    method = Importance()
    tensors = method.state(tuned)
    change(tensors, name)
    with pytest.raises(InputError, match=message) as caught:
        method.restore(model(), tensors, tmp_path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- groups


def test_groups_are_a_partition_with_the_sizes_of_their_parts() -> None:
    base = model()
    found = parameter_groups(base)
    assert len(found.names) == 2 * 8 + 3
    sizes = dict(zip(found.names, found.sizes.tolist(), strict=True))
    C = 6
    for i in range(2):
        assert [sizes[f"{i} {x}"] for x in "qkv"] == [C * C + C] * 3
        assert sizes[f"{i} attn-out"] == C * C + C
        assert sizes[f"{i} fc"] == 4 * C * C + 4 * C
        assert sizes[f"{i} proj"] == 4 * C * C + C
        assert sizes[f"{i} ln_1"] == sizes[f"{i} ln_2"] == 2 * C
    assert (sizes["wte"], sizes["wpe"], sizes["ln_f"]) == (V * C, 8 * C, 2 * C)
    assert sum(sizes.values()) == base.n_parameters
    qkv = found.member["transformer.h.1.attn.c_attn.weight"]
    assert [found.names[qkv[0, column]] for column in (0, 5, 6, 12, 17)] == ["1 q", "1 q", "1 k", "1 v", "1 v"]


def test_a_budget_takes_whole_groups_in_order_and_a_part_of_the_last() -> None:
    base = model()
    found = parameter_groups(base)
    order = [found.names.index(name) for name in ("0 ln_1", "1 q", "wpe")]
    order += [i for i in range(len(found.names)) if i not in order]
    k = 12 + 42 + 10
    for seed in (0, 1):
        masks = budget_masks(found, order, k, seed)
        assert masks["transformer.h.0.ln_1.weight"].all()
        assert masks["transformer.h.1.attn.c_attn.weight"][:, :6].all()
        assert not masks["transformer.h.1.attn.c_attn.weight"][:, 6:].any()
        assert masks["transformer.wpe.weight"].sum() == 10
        assert sum(int(m.sum()) for m in masks.values()) == k
    first, second = (budget_masks(found, order, k, seed)["transformer.wpe.weight"] for seed in (0, 1))
    assert (first != second).any()
    with pytest.raises(InputError, match="k is 0; it must be from 1 to the model's"):
        budget_masks(found, order, 0)
    chosen = ChosenGroups(order=tuple(order), density=0.05).apply(base)
    assert n_trainable(chosen) == round(0.05 * base.n_parameters)


@pytest.fixture(scope="module")
def interventions() -> Interventions:
    base = model()
    tuned = base.copy()
    tuned.unfreeze()
    trained(tuned, 6)
    return Interventions(base, tuned, parameter_groups(base), LanguageModelling(), batch(50, 6))


def test_interventions_apply_the_change_of_the_groups_that_are_on(interventions: Interventions) -> None:
    base, names = model(), interventions.groups.names
    G = len(names)
    held_out = batch(50, 6)
    assert interventions.loss(np.zeros(G)) == pytest.approx(base.loss_and_grads(**held_out)[0], rel=1e-12)
    tuned = base.copy()
    tuned.unfreeze()
    trained(tuned, 6)
    assert interventions.loss(np.ones(G)) == pytest.approx(tuned.loss_and_grads(**held_out)[0], rel=1e-12)
    only = (np.arange(G) == names.index("1 k")).astype(float)
    mixed = base.copy()
    for p in mixed.parameters():
        if p.name.startswith("transformer.h.1.attn.c_attn"):
            after = tuned.state()[p.name]
            p.data = np.concatenate((p.data[..., :6], after[..., 6:12], p.data[..., 12:]), axis=-1)
    assert interventions.loss(only) == pytest.approx(mixed.loss_and_grads(**held_out)[0], rel=1e-12)


def test_first_order_is_the_slope_at_the_base(interventions: Interventions) -> None:
    G, step = len(interventions.groups.names), 1e-4
    slopes = [(interventions.loss(-step * one) - interventions.loss(step * one)) / (2 * step) for one in np.eye(G)]
    assert error(interventions.first_order(), slopes) < 1e-6


def test_study_ranks_and_its_gates_refuse(interventions: Interventions) -> None:
    found = study(interventions, 200, n_trees=60, repeats=20)
    assert found.names[-1] == groups.DUMMY
    assert found.masks.shape == (200, len(interventions.groups.names) + 1)
    assert abs(np.corrcoef(found.masks.T) - np.eye(20)).max() < 0.35
    assert found.r2 > groups.LEAST_R2
    assert found.refusal() == ""
    assert sorted(found.ranking()) == sorted(interventions.groups.names)
    G = len(interventions.groups.names)
    for i, left in ((0, 0.0), (5, 0.0)):
        mask = np.ones(G)
        mask[i] = left
        assert found.leave_one_out[i] == pytest.approx(interventions.loss(mask) - found.tuned_loss)
    everything = forest.Importance(*(np.ones(G + 1) for _ in range(3)))
    for broken, message in (
        (replace(found, r2=0.3), "explains 0.30 of the variance on rows it has not seen, less than 0.5"),
        (replace(found, importance=everything), "a column that changes nothing has an importance of 1.0000 to 1.0000"),
        (replace(found, shuffled_r2=0.4), "shuffled losses are explained to 0.40"),
    ):
        with pytest.raises(RunError, match=f"no ranking: .*{message}"):
            broken.ranking()


def test_interventions_leave_base_and_tuned_model_alone() -> None:
    base = model()
    tuned = with_head(base)
    for p in tuned.trunk.parameters():
        p.data = p.data + 0.1
    before = weights(base), weights(tuned)
    found = Interventions(base, tuned, parameter_groups(base), Classification(), labelled())
    found.loss(np.arange(19) % 2.0)
    assert np.isfinite(found.first_order()).all()
    for gpt, old in zip((base, tuned), before, strict=True):
        assert all((array == old[name]).all() for name, array in weights(gpt).items())


# ---------------------------------------------------------------------------------------------- the lesson


def _flipped_sign(scores: Any, k: int) -> Any:
    return top_k_mask({name: -values for name, values in scores.items()}, k)


def _last_of_equals(scores: Any, k: int) -> Any:
    return top_k_mask({name: values + 1e-9 * _place(values) for name, values in scores.items()}, k)


def _of_each_tensor(scores: Any, k: int) -> Any:
    return {name: top_k_mask({name: v}, min(k, v.size))[name] for name, v in scores.items()}


def _rows_for_columns(dy: Any, x: Any, rows: Any, columns: Any) -> Any:
    return selected_weight_gradient(dy, x, columns % x.shape[-1], rows)


def _double_gain(X: Any, y: Any, min_leaf: int) -> Any:
    column, gain = forest.best_split(X, y, min_leaf)
    return column, 2 * gain


def _without_the_best(X: Any, y: Any, min_leaf: int) -> Any:
    return forest.best_split(np.where(np.arange(X.shape[1]) == forest.best_split(X, y)[0], 0, X), y, min_leaf)


WRONG = {
    "fisher of the batch": ("per_example_squares", lambda dy, x: np.einsum("bti,bto->io", x, dy) ** 2),
    "fisher of tokens": ("per_example_squares", lambda dy, x: np.einsum("bti,bto->io", x**2, dy**2)),
    "fisher not squared": ("per_example_squares", lambda dy, x: abs(np.einsum("bti,bto->bio", x, dy)).sum(0)),
    "signed gradient": ("gradient_importance", lambda g: g),
    "gradient by weight": ("gradient_weight_importance", lambda g, w: abs(g / w)),
    "bottom k": ("top_k_mask", _flipped_sign),
    "last of equals": ("top_k_mask", _last_of_equals),
    "k of each tensor": ("top_k_mask", _of_each_tensor),
    "rows for columns": ("selected_weight_gradient", _rows_for_columns),
    "one reading of a row": ("selected_embedding_gradient", lambda dy, ids, i, j: _once(dy, ids, i, j)),
    "twice the gain": ("best_split", _double_gain),
    "second best": ("best_split", _without_the_best),
    "error instead of R²": ("permutation_importance", lambda *a: forest.permutation_importance(*a) * np.var(a[1])),
    "every bit flipped": (
        "permutation_importance",
        lambda X, y, p, f, o: forest.permutation_importance(X, y, p, f, 0 * o),
    ),
}


def _place(values: np.ndarray) -> np.ndarray:
    return np.arange(values.size).reshape(values.shape)


def _once(dy: np.ndarray, ids: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    table = np.zeros((ids.max() + 1, dy.shape[-1]))
    table[ids.reshape(-1)] = dy.reshape(-1, dy.shape[-1])
    return table[rows, columns]


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the committed record, nor depends on it."""
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    return tmp_path / "records"


def checks(tmp_path: Path) -> list[Any]:
    run = Run(5, Settings(quick=True, brief=True), tmp_path)
    return derivation.derive(run, lesson.DERIVATIONS)


def test_every_check_of_the_lesson_holds(tmp_path: Path) -> None:
    assert all(c.ok for c in checks(tmp_path))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_shown_as_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = WRONG[name]
    monkeypatch.setattr(lesson, function, wrong)
    assert any(c.verdict == "WRONG" for c in checks(tmp_path))


@pytest.mark.parametrize(
    "function",
    [
        "gradient_importance", "gradient_weight_importance", "per_example_squares", "top_k_mask", "best_split",
        "selected_weight_gradient", "selected_embedding_gradient", "permutation_importance",
    ],
)  # fmt: skip
def test_what_is_not_written_yet_is_no_crash(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(lesson, function, todo)
    found = checks(tmp_path)
    assert any(c.missing for c in found)
    assert any(c.ok for c in found)
    assert not any(c.verdict == "WRONG" for c in found)


def test_quick_lesson_does_all_that_it_promises(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for part in ("def per_example_squares", "def best_split", "def selected_weight_gradient", "dW_b = x_bᵀ dy_b"):
        assert part in printed
    for word in ("SOLUTION", "Parameters\n"):
        assert word not in printed
    directory = tmp_path / "lesson-05"
    record = json.loads((directory / "record.json").read_text(encoding="utf-8"))
    figures = record["figures"]
    for score in ("gradient", "fisher", "magnitude", "random", "bottom_k", "all"):
        assert np.isfinite(figures[f"pairs_loss_{score}"]["values"][0])
        assert np.isfinite(figures[f"labels_loss_{score}"]["values"][0])
    for score in ("gradient", "random", "full"):
        assert 0 <= figures[f"labels_accuracy_{score}"]["values"][0] <= 1
    assert figures["forest_r2"]["values"][0] <= 1
    results = record["results"]
    assert set(results["picked"]) == {*SCORES, "gradient, per tensor"}
    for places in results["picked"].values():
        assert sum(sum(row.values()) for row in places.values()) == pytest.approx(1)
    trained_ = [results["cost"][name]["trainable"] for name in ("all", "10 %", "1 %", "0.1 %")]
    assert trained_ == [118080, 11808, 1181, 118]
    assert set(results["study"]) >= {"r2", "shuffled_r2", "importance", "ridge", "leave one out", "first order"}
    assert len(results["study"]["names"]) == 20
    assert record["pictures"][:2] == ["picked.png", "density.png"]
    for name in record["pictures"]:
        pixels = imread(directory / name)
        assert pixels.shape[1] > 1000
        assert pixels.std() > 0.01


def test_lesson_runs_on_the_users_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.csv"
    rng = np.random.default_rng(0)
    words = ["red", "blue", "dark", "light", "old", "new"]
    texts = [" ".join(rng.choice(words, 4)) + f" {i}" for i in range(80)]
    path.write_text("text,label\n" + "\n".join(f"{t},{'warm' if 'red' in t else 'cold'}" for t in texts))
    monkeypatch.setattr(lesson, "DERIVATIONS", lesson.DERIVATIONS[:1])
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "lesson-05" / "record.json").read_text(encoding="utf-8"))
    assert 0 <= record["figures"]["labels_accuracy_gradient"]["values"][0] <= 1
    assert np.isfinite(record["figures"]["own_loss_gradient"]["values"][0])
    assert str(path) in record["results"]["sweep"]


def without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the parts of the lesson that another test has run."""
    monkeypatch.setattr(lesson, "DERIVATIONS", lesson.DERIVATIONS[:1])
    for part in ("show_choice", "show_cost"):
        monkeypatch.setattr(lesson, part, lambda *rest: None)


def test_full_run_has_every_density_and_seed_and_writes_the_record(
    tmp_path: Path, records: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def instead(job: dict[str, Any]) -> dict[str, Any]:
        seen.append(job)
        rng = np.random.default_rng([job["seed"], len(job["score"]), int(1e4 * job["density"])])
        return {"loss": 2 + rng.random(), "accuracy": 0.5 * rng.random(), "n_trainable": 1}

    monkeypatch.setattr(ranking, "one_run", instead)
    plan = replace(QUICK, densities=(0.001, 0.01, 0.1), label_densities=(0.01, 0.1), seeds=3, pair_steps=2, trees=10)
    monkeypatch.setattr(lesson, "FULL", plan)
    without_looking(monkeypatch)
    assert lesson.main(["--full", "--brief", "--seed", "4", "--out", str(tmp_path)]) == 0
    committed = json.loads((records / "lesson-05.json").read_text(encoding="utf-8"))
    for task, densities in ((plan.pairs, plan.densities), (plan.labels, plan.label_densities)):
        for score in SCORES:
            for density in densities:
                wanted = range(4, 9) if density == ranking.HEADLINE else range(4, 7)
                of_this = {
                    j["seed"]
                    for j in seen
                    if (j["data"], j["score"], j["density"]) == (task, score, density) and not j["per_tensor"]
                }
                assert of_this == set(wanted), (task, score, density)
        assert {j["seed"] for j in seen if j["score"] == "full" and j["data"] == task} == {4, 5, 6}
    keys = [json.dumps(j, sort_keys=True) for j in seen]
    assert len(keys) == len(set(keys))  # none is run twice, the proof's controls included
    assert len(committed["figures"]["pairs_loss_gradient"]["values"]) == 5
    assert committed["bands"]["pairs_loss_gradient"]["seeds"] == 5
    assert len(committed["figures"]["forest_r2"]["values"]) == 3
    printed = capsys.readouterr().out
    assert "at 1 %: " in printed
    if committed["results"]["study"]["refusal"]:
        assert "no ranking" in printed
    else:
        assert all(len(values) == 3 for values in committed["results"]["proof"].values())


def test_verdict_compares_the_plain_ranking_with_the_best_control() -> None:
    values = {"gradient": [3.0], "fisher": [1.0], "random": [3.1], "magnitude": [9.0], "bottom_k": [8.0]}
    assert ranking.verdict(values, 0.01) == (
        "at 1 %: gradient 3.000, best control random 3.100: the ranking is ahead (one seed)"
    )
    values["random"] = [2.9]
    assert ranking.verdict(values, 0.001) == (
        "at 0.1 %: gradient 3.000, best control random 2.900: the ranking is behind (one seed)"
    )
    values |= {"gradient": [2.0, 2.1], "random": [3.0, 3.1]}
    assert ranking.verdict(values, 0.01).endswith("the ranking pays")
    values["gradient"] = [4.0, 4.1]
    assert ranking.verdict(values, 0.01).endswith("the ranking does not pay")
    for close in ([2.0, 3.9], [2.3, 4.2]):
        values["gradient"] = close
        assert ranking.verdict(values, 0.01).endswith("no difference beyond the spread of the seeds")


def test_fewer_entries_go_faster_and_under_a_head_slower_than_the_head() -> None:
    _, pairs = load(QUICK.base, QUICK.pairs, QUICK.records, "numpy")
    assert ranking.rate(1e-6, pairs) == 0.03
    assert ranking.rate(0.09, pairs) == pytest.approx(0.01)
    method = Importance(n_labels=3, density=0.1)
    tuned = method.apply(model(), data=[labelled()])
    (group,) = method.groups(tuned)
    slower = {p.name for p in tuned.parameters() if fnmatch.fnmatchcase(p.name, group.pattern)}
    assert slower == {p.name for p in tuned.parameters() if p.trainable and not p.name.startswith("score")}
    assert 0 < group.lr_scale < 1
    assert list(Importance().groups(Importance().apply(model(), data=[batch()]))) == []


def test_a_run_that_diverges_stops_the_lesson_and_says_which(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def instead(job: dict[str, Any]) -> dict[str, Any]:
        raise RunError("step 3: loss is nan")

    monkeypatch.setattr(ranking, "one_run", instead)
    without_looking(monkeypatch)
    assert lesson.main(["--quick", "--brief", "--out", str(tmp_path)]) == 1
    assert "lesson 5: translation, full, 100 %: step 3: loss is nan" in capsys.readouterr().err


def test_a_refused_ranking_ends_the_proof_and_not_the_lesson(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "LEAST_R2", 1.1)
    run = Run(5, Settings(quick=True, brief=True), tmp_path)
    base, task = load(QUICK.base, QUICK.pairs, QUICK.records, "numpy")
    plan = replace(QUICK, masks_per_group=2, trees=5, pair_steps=1)
    ranking.show_forest(run, plan, base, QUICK.pairs, task, tmp_path)
    printed = capsys.readouterr().out
    assert "no ranking: the forest explains" in printed
    assert "the proof" not in printed
    assert "proof" not in run.results


def test_groups_of_another_partition_work_too() -> None:
    base = model()
    halves = {p.name: np.full(p.data.shape, int("h.1" in p.name)) for p in base.parameters()}
    masks = budget_masks(Groups(["below", "upper block"], halves), [1, 0], 50)
    assert sum(int(m.sum()) for name, m in masks.items() if "h.1" in name) == 50
