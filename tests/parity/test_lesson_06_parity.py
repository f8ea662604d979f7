"""Lesson 6 beside scikit-learn and torch: SVD, PCA, truncation, and the factored layer's gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels import get_backend
from lessons import lesson_06_low_rank_svd as lesson
from minigpt.context import Context
from minigpt.parameters import Gradients, Parameter
from tests.helpers import error

torch = pytest.importorskip("torch")
decomposition = pytest.importorskip("sklearn.decomposition")

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parent.parent / "golden" / "low_rank.npz"


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def make_golden() -> dict[str, np.ndarray]:
    """What tests/golden/low_rank.npz holds: ``python -m tests.parity.test_lesson_06_parity`` writes it."""
    x = draw(12, 5) @ draw(5, 7, seed=1) + draw(7, seed=2)
    fitted = decomposition.PCA(n_components=5, svd_solver="full").fit(x)
    u, s, vt = torch.linalg.svd(torch.from_numpy(x), full_matrices=False)
    return {
        "x": x,
        "axes": fitted.components_,
        "scores": fitted.transform(x),
        "variances": fitted.explained_variance_,
        "rank_3": ((u[:, :3] * s[:3]) @ vt[:3]).numpy(),
    }


def test_golden_file_is_what_the_libraries_say() -> None:
    stored = np.load(GOLDEN)
    fresh = make_golden()
    assert set(stored.files) == set(fresh)
    assert all(error(stored[name], fresh[name]) < 1e-10 for name in fresh)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 3), (9, 9)])
def test_svd_by_hand_is_torchs(shape: tuple[int, int]) -> None:
    a = draw(*shape)
    u, s, vt = lesson.jacobi_svd(a)
    tu, ts, tvt = (t.numpy() for t in torch.linalg.svd(torch.from_numpy(a), full_matrices=False))
    assert error(s, ts) < 1e-13
    signs = np.sign((u * tu).sum(0))
    assert error(u * signs, tu) < 1e-10
    assert error(vt * signs[:, None], tvt) < 1e-10


@pytest.mark.parametrize("rank", [1, 3])
def test_truncated_svd_is_scikit_learns(rank: int) -> None:
    a = draw(10, 6)
    model = decomposition.TruncatedSVD(rank, algorithm="arpack").fit(a)
    left, right = lesson.truncated_svd(a, rank)
    assert error(left @ right, model.inverse_transform(model.transform(a))) < 1e-10
    assert error(np.linalg.norm(left @ right, 2), model.singular_values_[0]) < 1e-10


@pytest.mark.parametrize("shape", [(30, 5), (4, 9)])
def test_principal_components_are_scikit_learns(shape: tuple[int, int]) -> None:
    x = draw(*shape) * np.arange(1, shape[1] + 1) + 3
    k = min(shape[0] - 1, shape[1])  # what is left without the mean has one direction less
    fitted = decomposition.PCA(n_components=k, svd_solver="full").fit(x)
    mean, axes, scores, variances = lesson.pca(x)
    signs = np.sign((axes[:k] * fitted.components_).sum(1))
    assert error(mean, fitted.mean_) < 1e-12
    assert error(variances[:k], fitted.explained_variance_) < 1e-12
    assert error(axes[:k] * signs[:, None], fitted.components_) < 1e-9
    assert error(scores[:, :k] * signs, fitted.transform(x)) < 1e-9


def test_layer_is_torchs() -> None:
    backend = get_backend("numpy")
    arrays = {"x": draw(2, 3, 5), "left": draw(5, 2, seed=1), "right": draw(2, 4, seed=2), "bias": draw(4, seed=3)}
    dy = draw(2, 3, 4, seed=4)
    layer = lesson.LowRankLinear("it", arrays["left"], arrays["right"], arrays["bias"])
    ctx = Context(backend, grad=True)
    ctx.needs_input_gradient(Parameter("below", arrays["x"]))
    y, backward = layer.forward(arrays["x"], ctx)
    grads = Gradients(layer.parameters(), backend)
    dx = backward(dy, grads)
    t = {name: torch.from_numpy(a).requires_grad_() for name, a in arrays.items()}
    ty = torch.nn.functional.linear(t["x"] @ t["left"], t["right"].T, t["bias"])
    ty.backward(torch.from_numpy(dy))
    assert error(y, ty.detach().numpy()) < 1e-12
    assert error(dx, t["x"].grad.numpy()) < 1e-12
    for name in ("left", "right", "bias"):
        assert error(grads[f"it.{name}"], t[name].grad.numpy()) < 1e-12


if __name__ == "__main__":
    np.savez(GOLDEN, **make_golden())
