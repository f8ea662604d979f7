"""Lesson 6: the SVD by hand and what it is best at, low-rank layers, truncation that knows its inputs, the lesson."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kernels import get_backend
from lessons import lesson_06_low_rank_svd as lesson
from lessons.common import gradcheck, low_rank, runner
from lessons.common.measure import count_products, held_bytes
from minigpt import GPT, GPTConfig, InputError
from minigpt.context import Context
from minigpt.objectives import LanguageModelling
from minigpt.parameters import Gradients, Parameter
from minigpt.training import TrainConfig, train
from tests.helpers import assert_gradient, error
from tests.standin import BACKEND as STANDIN

NUMPY = get_backend("numpy")
GOLDEN = Path(__file__).parent.parent / "golden" / "low_rank.npz"


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tiny(seed: int = 0, dtype: str = "float64", backend: Any = "numpy", **settings: Any) -> GPT:
    config = {"vocab_size": 9, "n_positions": 6, "n_embd": 6, "n_layer": 2, "n_head": 2} | settings
    return GPT(GPTConfig(**config), seed=seed, dtype=dtype, backend=backend)


def batches(step: int) -> dict[str, np.ndarray]:
    ids, targets = np.random.default_rng(step).integers(0, 9, (2, 4, 6))
    return {"ids": ids, "targets": targets}


# ---------------------------------------------------------------------------------------------- the SVD


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1), (1, 1)])
def test_jacobi_svd_is_lapacks(shape: tuple[int, int]) -> None:
    a = draw(*shape)
    u, s, vt = lesson.jacobi_svd(a)
    k = min(shape)
    assert (u.shape, s.shape, vt.shape) == ((shape[0], k), (k,), (k, shape[1]))
    assert error(s, np.linalg.svd(a, compute_uv=False)) < 1e-13
    assert error((u * s) @ vt, a) < 1e-13
    for gram in (u.T @ u, vt @ vt.T):
        assert np.abs(gram - np.eye(k)).max() < 1e-13


def test_jacobi_svd_is_compact() -> None:
    a = draw(8, 2) @ draw(2, 6, seed=1)
    u, s, vt = lesson.jacobi_svd(a)
    assert (u.shape, s.shape, vt.shape) == ((8, 2), (2,), (2, 6))
    assert error((u * s) @ vt, a) < 1e-13
    assert lesson.jacobi_svd(np.zeros((3, 2)))[1].shape == (0,)


def test_jacobi_svd_says_when_it_has_not_come_to_an_end() -> None:
    with pytest.raises(lesson.RunError, match="5 × 4 matrix are not orthogonal after 1 sweeps"):
        lesson.jacobi_svd(draw(5, 4), sweeps=1)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_rotation_makes_columns_orthogonal_by_the_smaller_turn(scale: float) -> None:
    a, b = draw(2, 9)
    b *= scale
    c, s = lesson.jacobi_rotation(a @ a, b @ b, a @ b)
    turned = c * a - s * b, s * a + c * b
    assert abs(turned[0] @ turned[1]) < 1e-14 * np.linalg.norm(turned[0]) * np.linalg.norm(turned[1]) + 1e-15 * scale
    assert c**2 + s**2 == pytest.approx(1, abs=1e-15)
    assert abs(s) <= c  # 45 degrees at most
    assert lesson.jacobi_rotation(2.0, 3.0, 0.0) == (1.0, 0.0)
    assert lesson.jacobi_rotation(2.0, 2.0, 1.0) == pytest.approx((0.5**0.5, 0.5**0.5))


# ---------------------------------------------------------------------------------------------- Eckart, Young, Mirsky


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 4)])
def test_truncated_svd_has_the_promised_error_and_nothing_is_nearer(shape: tuple[int, int]) -> None:
    a, s = draw(*shape), np.linalg.svd(draw(*shape), compute_uv=False)
    rng = np.random.default_rng(3)
    for rank in range(1, min(shape) + 1):
        left, right = lesson.truncated_svd(a, rank)
        assert (left.shape, right.shape) == ((shape[0], rank), (rank, shape[1]))
        rest = a - left @ right
        spectral, frobenius = lesson.optimal_error(s, rank)
        assert np.linalg.norm(rest, 2) == pytest.approx(spectral, abs=1e-12)
        assert np.linalg.norm(rest) == pytest.approx(frobenius, abs=1e-12)
        assert np.abs(left.T @ left - right @ right.T).max() < 1e-12  # balanced
        for size in (1e-3, 1e-1, 1.0):
            moved = (left + size * rng.standard_normal(left.shape)) @ (right + size * rng.standard_normal(right.shape))
            assert np.linalg.norm(a - moved) >= frobenius
            assert np.linalg.norm(a - moved, 2) >= spectral


def test_optimal_error_of_nothing_and_of_everything_cut() -> None:
    s = np.array([3.0, 2.0, 1.0])
    assert lesson.optimal_error(s, 3) == (0.0, 0.0)
    assert lesson.optimal_error(s, 1) == (2.0, pytest.approx(5**0.5))
    assert lesson.optimal_error(s, 0) == (3.0, pytest.approx(14**0.5))


def test_effective_rank_lies_between_one_and_all() -> None:
    assert lesson.effective_rank(np.full(6, 0.2)) == pytest.approx(6)
    assert lesson.effective_rank(np.array([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert lesson.effective_rank(np.array([3.0, 1.0])) == pytest.approx(
        np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    )


@pytest.mark.parametrize("rank", [1, 3])
def test_factor_gradients(rank: int) -> None:
    weight, left, right = draw(5, 4), draw(5, rank, seed=1), draw(rank, 4, seed=2)
    dleft, dright = lesson.factor_gradients(weight, left, right)

    def half(left: np.ndarray, right: np.ndarray) -> float:
        return 0.5 * float(((weight - left @ right) ** 2).sum())

    assert_gradient(dleft, lambda x: half(x, right), left, 1.0)
    assert_gradient(dright, lambda x: half(left, x), right, 1.0)


def test_no_rival_beats_the_truncated_svd_and_the_optimised_ones_come_near() -> None:
    rivals = lesson.compete(draw(12, 9), 3, 1500, seed=0)
    for norm in ("frobenius", "spectral"):
        assert rivals[norm]["truncated SVD"] == pytest.approx(1, abs=1e-9)
        assert all(value > 1 - 1e-9 for value in rivals[norm].values())
    for name, errors in rivals["curves"].items():
        assert len(errors) == 1500
        assert min(errors) > 1 - 1e-12
        assert errors[-1] < 1.001 < errors[0], name
    for name in ("random combinations of columns", "longest columns", "random directions"):
        assert rivals["frobenius"][name] > 1.01


# ---------------------------------------------------------------------------------------------- knowing the inputs


def test_activation_aware_truncation_is_the_best_in_its_own_norm() -> None:
    weight, x = draw(6, 5), draw(40, 6, seed=1) * [8, 4, 1, 1, 0.3, 0.1]
    gram, damping = x.T @ x, 1e-3
    damped = damping * np.trace(gram) / 6

    def cost(approximation: np.ndarray) -> float:
        rest = weight - approximation
        return float(((x @ rest) ** 2).sum() + damped * (rest**2).sum())

    rng = np.random.default_rng(2)
    for rank in range(1, 6):
        left, right = lesson.activation_aware_svd(weight, gram, rank, damping)
        plain = np.matmul(*lesson.truncated_svd(weight, rank))
        best = cost(left @ right)
        assert best <= cost(plain) + 1e-9
        if rank < 5:
            assert best < 0.9 * cost(plain)
            assert ((x @ (weight - left @ right)) ** 2).sum() < ((x @ (weight - plain)) ** 2).sum()
        for size in (1e-3, 1e-1):
            moved = (left + size * rng.standard_normal(left.shape)) @ (right + size * rng.standard_normal(right.shape))
            assert cost(moved) >= best
        gradient = x.T @ x @ (left @ right - weight) + damped * (left @ right - weight)
        assert max(np.abs(gradient @ right.T).max(), np.abs(left.T @ gradient).max()) < 1e-9 * np.abs(gram).max()


def test_inputs_of_low_rank_need_a_weight_of_that_rank_only() -> None:
    weight, x = draw(6, 5), draw(30, 2, seed=1) @ draw(2, 6, seed=2)
    left, right = lesson.activation_aware_svd(weight, x.T @ x, 2, damping=1e-9)
    assert error(x @ left @ right, x @ weight) < 1e-4
    assert error(np.matmul(*lesson.truncated_svd(weight, 2)), weight) > 0.1


def test_gram_matrices_count_only_up_to_a_factor() -> None:
    weight, gram = draw(4, 5), draw(9, 4, seed=1).T @ draw(9, 4, seed=1)
    once, thrice = (np.matmul(*lesson.activation_aware_svd(weight, c * gram, 2)) for c in (1.0, 3.0))
    assert error(once, thrice) < 1e-12


@pytest.mark.parametrize("rank", [0, 5, -1])
def test_impossible_ranks(rank: int) -> None:
    for call in (
        lambda: lesson.truncated_svd(draw(6, 4), rank),
        lambda: lesson.activation_aware_svd(draw(6, 4), np.eye(6), rank),
    ):
        with pytest.raises(InputError, match=rf"rank is {rank}; a 6 × 4 matrix can have 1 to 4"):
            call()


@pytest.mark.parametrize(("gram", "damping"), [(np.zeros((6, 6)), 1e-4), (np.eye(6), 0.0), (np.eye(6), np.nan)])
def test_nothing_to_whiten_with(gram: np.ndarray, damping: float) -> None:
    with pytest.raises(InputError, match="both must be above 0"):
        lesson.activation_aware_svd(draw(6, 4), gram, 2, damping)


# ---------------------------------------------------------------------------------------------- PCA


@pytest.mark.parametrize("shape", [(20, 4), (3, 6), (2, 1)])
def test_principal_components(shape: tuple[int, int]) -> None:
    x = draw(*shape) + 7
    mean, axes, scores, variances = lesson.pca(x)
    k = min(shape)
    assert (axes.shape, scores.shape, variances.shape) == ((k, shape[1]), (shape[0], k), (k,))
    assert error(mean + scores @ axes, x) < 1e-13
    covariance = np.atleast_2d(np.cov(x, rowvar=False))
    assert np.abs(np.sort(np.linalg.eigvalsh(covariance))[::-1][:k] - variances).max() < 1e-12
    assert np.abs(axes @ covariance @ axes.T - np.diag(variances)).max() < 1e-12
    moved = lesson.pca(x + 100)
    assert error(moved[3], variances, floor=1) < 1e-10  # where the data lie does not matter


def test_without_centring_the_first_axis_is_the_mean() -> None:
    x = draw(50, 5) + np.array([20, 0, 10, 0, 0])
    first = np.linalg.svd(x, full_matrices=False)[2][0]
    assert abs(first @ x.mean(0)) / np.linalg.norm(x.mean(0)) > 0.999
    assert abs(lesson.pca(x)[1][0] @ x.mean(0)) / np.linalg.norm(x.mean(0)) < 0.9


def test_one_observation_has_no_components() -> None:
    with pytest.raises(InputError, match="1 observations; principal components need 2 or more"):
        lesson.pca(draw(1, 3))


def test_as_scikit_learn_and_torch_compute_it() -> None:
    golden = np.load(GOLDEN)
    x = golden["x"]
    _, axes, scores, variances = lesson.pca(x)
    axes, scores, variances = axes[:5], scores[:, :5], variances[:5]  # the data have five directions
    signs = np.sign((axes * golden["axes"]).sum(1))
    assert error(axes * signs[:, None], golden["axes"]) < 1e-10
    assert error(scores * signs, golden["scores"]) < 1e-10
    assert error(variances, golden["variances"]) < 1e-10
    assert error(np.matmul(*lesson.truncated_svd(x, 3)), golden["rank_3"]) < 1e-10


# ---------------------------------------------------------------------------------------------- the layer


def layer_of(n_in: int, rank: int, n_out: int, asarray: Any = np.asarray) -> lesson.LowRankLinear:
    arrays = (draw(n_in, rank, seed=1), draw(rank, n_out, seed=2), draw(n_out, seed=3))
    return lesson.LowRankLinear("it", *(asarray(a) for a in arrays))


def run_layer(layer: Any, x: np.ndarray, dy: np.ndarray, below: bool = True) -> tuple[Any, Any, Any]:
    ctx = Context(NUMPY, grad=True)
    ctx.needs_input_gradient(Parameter("below", x, trainable=below))
    y, backward = layer.forward(x, ctx)
    grads = Gradients(layer.parameters(), NUMPY)
    return y, backward(dy, grads), grads


@pytest.mark.parametrize(
    ("shape", "rank", "n_out"), [((2, 3, 5), 2, 4), ((3, 1), 1, 1), ((1, 1, 4), 1, 7), ((6,), 3, 3)]
)
def test_layer_backward(shape: tuple[int, ...], rank: int, n_out: int) -> None:
    layer, x, dy = layer_of(shape[-1], rank, n_out), draw(*shape), draw(*shape[:-1], n_out, seed=9)
    y, dx, grads = run_layer(layer, x, dy)
    assert error(y, x @ layer.left.data @ layer.right.data + layer.bias.data) < 1e-13
    assert_gradient(dx, lambda x: run_layer(layer, x, dy)[0], x, dy)
    for p in layer.parameters():
        data = p.data

        def moved(value: np.ndarray, p: Parameter = p) -> np.ndarray:
            p.data = value
            return run_layer(layer, x, dy)[0]

        assert_gradient(grads[p.name], moved, data, dy, p.name)
        p.data = data


@pytest.mark.parametrize("frozen", ["left", "right", "bias"])
def test_a_frozen_part_gets_no_gradient_and_keeps_nothing(frozen: str) -> None:
    layer, x, dy = layer_of(5, 2, 4), draw(7, 5), draw(7, 4, seed=9)
    _, dx, wanted = run_layer(layer, x, dy)
    getattr(layer, frozen).trainable = False
    _, again, grads = run_layer(layer, x, dy)
    assert (again == dx).all()
    assert f"it.{frozen}" not in grads
    assert all((grads[name] == wanted[name]).all() for name in grads)
    assert run_layer(layer, x, dy, below=False)[1] is None
    weights = [p.data for p in layer.parameters()]
    _, backward = layer.forward(x, Context(NUMPY, grad=True))
    kept = {"left": 7 * 2 * 8, "right": 7 * 5 * 8, "bias": 7 * (2 + 5) * 8}[frozen]
    assert held_bytes(backward, weights) == kept


# ---------------------------------------------------------------------------------------------- a factored model


def test_every_gradient_of_a_factored_model() -> None:
    model = lesson.factorise(tiny(), 0.7)
    checks = gradcheck.check_model(model, *(batches(0)[k][:, :5] for k in ("ids", "targets")))
    assert sum(c.name.endswith((".left", ".right")) for c in checks) == 16
    assert [c for c in checks if not c.ok] == []


def test_factored_models_have_the_parameters_of_the_closed_form_and_as_few_products() -> None:
    base = tiny(n_embd=16)
    whole = sum(w.size for w in low_rank.matrices(base).values())
    batch = batches(0)

    def products(model: GPT) -> tuple[int, int]:
        forward, backward = count_products(model, LanguageModelling(), batch)
        return forward.flops["linear_forward"], backward.total

    for share in (1.0, 0.5, 0.2):
        model = lesson.factorise(base, share)
        ranks = {n: lesson.rank_for(share, *w.shape) for n, w in low_rank.matrices(base).items()}
        closed = sum(ranks[n] * sum(w.shape) for n, w in low_rank.matrices(base).items())
        assert model.n_parameters == base.n_parameters - whole + closed
        assert closed <= share * whole
        rows = batch["ids"].size
        assert products(base)[0] - products(model)[0] == 2 * rows * (whole - closed)
    assert products(lesson.factorise(base, 0.5))[1] < products(base)[1]


def test_full_rank_factors_change_nothing_and_less_changes_more() -> None:
    base, ids = tiny(n_embd=8), batches(0)["ids"]
    before = {name: array.copy() for name, array in base.state().items()}
    logits = base.logits(ids)
    full = low_rank.with_matrices(
        base, {n: np.matmul(*lesson.truncated_svd(w, min(w.shape))) for n, w in low_rank.matrices(base).items()}
    )
    assert error(full.logits(ids), logits) < 1e-12
    losses = [np.abs(lesson.factorise(base, share).logits(ids) - logits).max() for share in (1.0, 0.6, 0.3)]
    assert losses == sorted(losses)
    assert all((array == before[name]).all() for name, array in base.state().items())


def test_grams_are_those_of_what_the_layers_are_fed() -> None:
    model, seen = tiny(), {}
    two = [batches(0), batches(1)]
    for batch in two:
        model.forward(batch["ids"], model.context(watch=lambda n, a: seen.setdefault(n, []).append(a.copy())))
    grams = low_rank.input_grams(model, two)
    assert set(grams) == set(low_rank.matrices(model))
    for name, layer in (("h.1.mlp.c_fc", "h.1.ln_2"), ("h.0.attn.c_attn", "h.0.ln_1")):
        rows = np.concatenate([a.reshape(-1, 6) for a in seen[f"transformer.{layer}"]])
        assert error(grams[name], rows.T @ rows / 48) < 1e-12
    assert grams["h.0.mlp.c_proj"].shape == (24, 24)
    factored, weight = lesson.factorise(model, 0.5, grams), low_rank.matrices(model)["h.1.mlp.c_proj"]
    layer: Any = factored.h[1].mlp.c_proj
    rank = lesson.rank_for(0.5, *weight.shape)
    aware = np.matmul(*lesson.activation_aware_svd(weight, grams["h.1.mlp.c_proj"], rank))
    assert error(layer.left.data @ layer.right.data, aware) < 1e-12


def test_activation_aware_truncation_changes_the_layers_outputs_less() -> None:
    model = tiny(n_embd=12, seed=3)
    data = [batches(i) for i in range(12)]
    grams, weights = low_rank.input_grams(model, data), low_rank.matrices(model)
    for name, weight in weights.items():
        rank = lesson.rank_for(0.5, *weight.shape)
        rests = [
            weight - left @ right
            for left, right in (
                lesson.activation_aware_svd(weight, grams[name], rank),
                lesson.truncated_svd(weight, rank),
            )
        ]
        aware, plain = (float(np.trace(rest.T @ grams[name] @ rest)) for rest in rests)
        assert aware <= plain * (1 + 1e-3), name


def test_a_factored_model_trains_and_what_is_frozen_stays() -> None:
    model = lesson.factorise(tiny(dtype="float32", initializer_range=0.3), 0.6)
    model.freeze()
    model.unfreeze(["*.left", "*.right"])
    before = {name: array.copy() for name, array in model.state().items()}
    history = train(
        model, LanguageModelling(), lambda step: batches(0), TrainConfig(60, lr=3e-2, workers=1), progress=False
    )
    assert history.losses[-1] < history.losses[0] - 0.1
    for name, array in model.state().items():
        assert (array == before[name]).all() == (not name.endswith((".left", ".right"))), name


def test_factors_on_another_array_library() -> None:
    here, there = (lesson.factorise(tiny(backend=b), 0.6) for b in ("numpy", STANDIN))
    batch = batches(0)
    loss, grads = here.loss_and_grads(batch["ids"], batch["targets"])
    other, others = there.loss_and_grads(batch["ids"], batch["targets"])
    assert other == pytest.approx(loss, rel=1e-12)
    assert all(error(others[name].get(), g, floor=1e-6) < 1e-9 for name, g in grads.items())
    grams = low_rank.input_grams(tiny(backend=STANDIN), [batch])
    assert error(grams["h.0.attn.c_attn"], low_rank.input_grams(tiny(), [batch])["h.0.attn.c_attn"]) < 1e-12


def test_rank_for_keeps_within_the_share() -> None:
    assert lesson.rank_for(0.5, 128, 128) == 32
    assert lesson.rank_for(1.0, 128, 384) == 96
    for share in (0.0, -0.5, 1.5, 1e-3, float("nan")):
        with pytest.raises(InputError, match="as factors hold"):
            lesson.rank_for(share, 16, 16)
    with pytest.raises(InputError, match="1 × 1 weights"):
        lesson.rank_for(1.0, 1, 1)
    with pytest.raises(InputError, match="changed"):
        lesson.factorise(lesson.factorise(tiny(), 0.5), 0.5)


# ---------------------------------------------------------------------------------------------- wrong solutions


def verdicts() -> list[str]:
    return [c.verdict for d in lesson.DERIVATIONS for c in d.check(NUMPY)]


SVD = np.linalg.svd


def unsquared(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    u, s, vt = SVD(weight, full_matrices=False)
    return u[:, :rank] * s[:rank], s[:rank, None] * vt[:rank]


def one_sided(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    u, s, vt = SVD(weight, full_matrices=False)
    return u[:, :rank] * s[:rank], vt[:rank]


def smallest(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    u, s, vt = SVD(weight, full_matrices=False)
    return u[:, -rank:] * s[-rank:] ** 0.5, s[-rank:, None] ** 0.5 * vt[-rank:]


def aware(weight: np.ndarray, gram: np.ndarray, rank: int, damping: float, how: str) -> tuple[np.ndarray, np.ndarray]:
    scale = float(np.trace(gram)) / len(gram)
    lower = np.linalg.cholesky(gram + damping * scale * np.eye(len(gram)))
    whitening = lower if how == "untransposed" else lower.T
    left, right = lesson.truncated_svd(whitening @ weight, rank)
    return (left if how == "left white" else np.linalg.solve(whitening, left)), right


def uncentred(x: np.ndarray) -> tuple[np.ndarray, ...]:
    u, s, vt = SVD(x, full_matrices=False)
    return x.mean(0), vt, u * s, s**2 / (len(x) - 1)


def over_n(x: np.ndarray) -> tuple[np.ndarray, ...]:
    mean, axes, scores, variances = RIGHT["pca"](x)
    return mean, axes, scores, variances * (len(x) - 1) / len(x)


RIGHT: dict[str, Callable[..., Any]] = {
    name: getattr(lesson, name) for name in ("pca", "factor_gradients", "jacobi_rotation")
}
WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "Σ in both factors": ("truncated_svd", unsquared),
    "Σ in one factor": ("truncated_svd", one_sided),
    "the smallest ones kept": ("truncated_svd", smallest),
    "one too many": ("truncated_svd", lambda w, r, right=lesson.truncated_svd: right(w, r + 1)),
    "σ_r for σ_r+1": ("optimal_error", lambda s, r: (float(s[r - 1]), float(np.sqrt((s[r:] ** 2).sum())))),
    "squares not rooted": ("optimal_error", lambda s, r: (float(s[r]), float((s[r:] ** 2).sum()))),
    "sum for root of squares": ("optimal_error", lambda s, r: (float(s[r]), float(s[r:].sum()))),
    "C for Cᵀ": ("activation_aware_svd", lambda w, g, r, d=1e-4: aware(w, g, r, d, "untransposed")),
    "not un-whitened": ("activation_aware_svd", lambda w, g, r, d=1e-4: aware(w, g, r, d, "left white")),
    "inputs ignored": ("activation_aware_svd", lambda w, g, r, d=1e-4: lesson.truncated_svd(w, r)),
    "not centred": ("pca", uncentred),
    "divided by n": ("pca", over_n),
    "residual's sign": ("factor_gradients", lambda w, x, y: tuple(-g for g in RIGHT["factor_gradients"](w, x, y))),
    "factors swapped": ("factor_gradients", lambda w, x, y: RIGHT["factor_gradients"](w, x, y)[::-1]),
    "turned the other way": (
        "jacobi_rotation",
        lambda a, b, g: (lambda c, s: (c, -s))(*RIGHT["jacobi_rotation"](a, b, g)),
    ),
    "not turned": ("jacobi_rotation", lambda a, b, g: (1.0, 0.0)),
}


def test_right_solutions_pass() -> None:
    assert set(verdicts()) == {"ok"}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_solutions_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, wrong = WRONG[name]
    monkeypatch.setattr(lesson, function, wrong)
    if function == "jacobi_rotation":  # columns that never become orthogonal
        with pytest.raises(lesson.RunError, match="are not orthogonal after"):
            verdicts()
    else:
        assert "WRONG" in verdicts()


@pytest.mark.parametrize(
    "function", ["jacobi_rotation", "truncated_svd", "optimal_error", "activation_aware_svd", "pca", "factor_gradients"]
)
def test_what_is_not_written_yet_is_no_crash(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def todo(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(lesson, function, todo)
    assert {"not written yet", "ok"} == set(verdicts())


# ---------------------------------------------------------------------------------------------- the whole lesson


@pytest.fixture(autouse=True)
def no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")


PICTURES = ["rivals.png", "components.png", "spectra.png", "update_rank.png", "truncation.png"]


def test_quick_lesson_does_all_that_it_promises(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for text in ("def jacobi_rotation", "Ŵ = C⁻ᵀ", "truncated SVD", "activation-aware", "W + ΔW_r"):
        assert text in printed
    assert "SOLUTION" not in printed
    record = json.loads((tmp_path / "lesson-06" / "record.json").read_text(encoding="utf-8"))
    figures = {name: f["values"][0] for name, f in record["figures"].items()}
    assert figures["best_rival_over_optimum"] > 1
    assert figures["uncentred_axis_to_mean"] > 0.9
    assert figures["random_error_at_rank_4"] > figures["weights_error_at_rank_4"] > figures["update_error_at_rank_4"]
    assert 0 < figures["parameters_kept"] <= 0.5
    assert {"plain_loss_above_base", "aware_loss_above_base", "healed_aware_loss_above_base"} <= set(figures)
    results = record["results"]
    assert set(results["updates"][0]["spectra"]) == {"weights", "update", "gradient", "signs of the gradient", "random"}
    assert record["pictures"] == PICTURES
    for name in PICTURES:
        pixels = imread(tmp_path / "lesson-06" / name)
        assert pixels.shape[1] > 1000
        assert float(pixels.std()) > 0.01


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick run has looked at them; drawing is half of a run's time."""
    monkeypatch.setattr(runner.Run, "picture", lambda run, name, figure: None)


@pytest.mark.usefixtures("no_pictures")
def test_full_run_makes_bands_and_ablations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(lesson, "CORE", lesson.QUICK)
    monkeypatch.setattr(lesson, "SEEDS", 2)
    monkeypatch.setattr(lesson, "TASKS", ("rewriting",))
    monkeypatch.setattr(lesson.bases, "BASES", ("base-xs",))
    assert lesson.main(["--full", "--brief", "--seed", "3", "--out", str(tmp_path)]) == 0
    assert "tokens seen" in capsys.readouterr().out
    record = json.loads((tmp_path / "records" / "lesson-06.json").read_text(encoding="utf-8"))
    for name in ("update_error_at_rank_4", "tuned_loss", "aware_loss_above_base"):
        assert len(record["figures"][name]["values"]) == record["bands"][name]["seeds"] == 2
    assert {name: len(rows) for name, rows in record["results"]["ablations"].items()} == {
        "by_task": 1, "by_base": 1, "by_calibration": 4
    }  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_lesson_on_ones_own_data(kind: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / f"mine.{kind}"
    rows = [
        f"the {a} cat sees {n} dogs by the river" for n in range(20) for a in ("red", "blue", "old", "small", "tall")
    ]
    if kind == "txt":
        path.write_text("<|endoftext|>".join(". ".join(rows[i : i + 5]) for i in range(0, 100, 2)), encoding="utf-8")
    else:
        lines = (json.dumps({"prompt": f"Rewrite: {row}", "completion": f" {row.upper()}"}) for row in rows)
        path.write_text("\n".join(lines), encoding="utf-8")
    assert lesson.main(["--quick", "--brief", "--data", str(path), "--out", str(tmp_path)]) == 0
    assert str(path.stem) in capsys.readouterr().out


def test_data_that_cannot_be_used_gets_one_line(tmp_path: Path, capsys: Any) -> None:
    assert lesson.main(["--quick", "--brief", "--data", str(tmp_path / "none.txt"), "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("lesson 6: ")
    assert "\n" not in message
