"""Lesson 6: how much of a matrix is needed? The singular value decomposition, and low-rank weights.

1. The SVD by hand, and what it is best at: no matrix of rank r is nearer (Eckart, Young 1936; Mirsky 1960). Other ways
   to rank r are tried against it, optimised ones too.
2. Principal components: the same SVD, of data whose mean has been taken away.
3. Singular spectra of a base's weights, and of what fine-tuning adds to them: which of the two is low-rank?
4. A base with fewer parameters: its weights as products of two thin matrices, what that costs in loss, and how much
   less it costs when the truncation knows what the layer will be fed.

Lesson 7 (LoRA) rests on the answer to the third question.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kernels import Backend
from kernels.array import Array
from lessons.common import derivation, gradcheck, low_rank, runner
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.low_rank import MATRICES, Material, input_grams, matrices, train_on, with_matrices
from lessons.common.measure import count_products
from lessons.common.method import require_plain
from lessons.common.runner import Run
from lessons.common.table import spread, table
from minigpt import GPT, RunError, Tokenizer, bases
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.layers import Backward, Layer
from minigpt.objectives import Batch, LanguageModelling
from minigpt.parameters import Gradients, Parameter

# ---------------------------------------------------------------------------------------------- the SVD


def jacobi_rotation(alpha: float, beta: float, gamma: float) -> tuple[float, float]:
    """Cosine and sine of the rotation that makes two columns orthogonal.

    (a, b) becomes (c·a − s·b, s·a + c·b), whose product is cs·(α − β) + (c² − s²)·γ. With t = s/c and
    ζ = (β − α)/2γ that is 0 where t² + 2ζt − 1 = 0; of the two roots the smaller one turns less and converges.

    Parameters
    ----------
    alpha, beta, gamma : float
        a·a, b·b and a·b.

    Returns
    -------
    c, s : float
        c² + s² = 1; (1, 0) where a·b is 0 already.

    References
    ----------
    Hestenes (1958), "Inversion of matrices by biorthogonalization and related results".
    """
    ### BEGIN SOLUTION
    if gamma == 0.0:
        return 1.0, 0.0
    zeta = (beta - alpha) / (2.0 * gamma)
    t = math.copysign(1.0, zeta) / (abs(zeta) + math.hypot(1.0, zeta))
    c = 1.0 / math.hypot(1.0, t)
    return c, c * t
    ### END SOLUTION


def jacobi_svd(a: np.ndarray, sweeps: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A = U Σ Vᵀ by hand: turn pairs of columns until all are orthogonal (one-sided Jacobi).

    The rotations, multiplied together, are V: A V has orthogonal columns, their lengths are the singular values, and
    the columns divided by their lengths are U.

    Parameters
    ----------
    a : (m, n)
    sweeps : int
        Rounds over all pairs, at most; about eight are needed.

    Returns
    -------
    u : (m, r), s : (r,), vt : (r, n), float64
        Compact: r is the rank, s falls and is positive.

    Raises
    ------
    RunError
        If the columns are not orthogonal after all sweeps.
    """
    m, n = a.shape
    if m < n:
        u, s, vt = jacobi_svd(a.T, sweeps)
        return vt.T, s, u.T
    columns, v = a.astype(np.float64), np.eye(n)
    for _ in range(sweeps):
        turned = False
        for p in range(n - 1):
            for q in range(p + 1, n):
                x, y = columns[:, p], columns[:, q]
                alpha, beta, gamma = float(x @ x), float(y @ y), float(x @ y)
                if abs(gamma) <= 1e-14 * math.sqrt(alpha * beta):
                    continue
                cos, sin = jacobi_rotation(alpha, beta, gamma)
                for pair in (columns, v):
                    pair[:, p], pair[:, q] = cos * pair[:, p] - sin * pair[:, q], sin * pair[:, p] + cos * pair[:, q]
                turned = True
        if not turned:
            break
    else:
        raise RunError(f"the columns of a {m} × {n} matrix are not orthogonal after {sweeps} sweeps")
    lengths = np.sqrt((columns**2).sum(0))
    order = np.argsort(-lengths)
    order = order[lengths[order] > max(m, n) * np.finfo(np.float64).eps * lengths.max(initial=0.0)]
    return columns[:, order] / lengths[order], lengths[order], v[:, order].T


def truncated_svd(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best approximation of a matrix by one of rank r, as two factors.

    Only the r largest singular values are kept: W ≈ U_r Σ_r V_rᵀ. Each factor takes √Σ_r, so that both have the same
    size: if they are trained, neither moves faster than the other.

    Parameters
    ----------
    weight : (m, n)
    rank : int
        1 to min(m, n).

    Returns
    -------
    left : (m, r), right : (r, n), float64
        ``left @ right`` is the approximation, left = U_r √Σ_r, right = √Σ_r V_rᵀ.

    Raises
    ------
    ValueError
        If the rank is not possible.

    References
    ----------
    Eckart, Young (1936), "The approximation of one matrix by another of lower rank".
    """
    check_rank(rank, weight.shape)
    ### BEGIN SOLUTION
    u, s, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)  # LAPACK: what `jacobi_svd` computes, fast
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, None] * vt[:rank]
    ### END SOLUTION


def optimal_error(s: np.ndarray, rank: int) -> tuple[float, float]:
    """How far the nearest matrix of rank r is: what has been cut off the spectrum.

    Parameters
    ----------
    s : (k,)
        Singular values, falling.
    rank : int
        0 to k.

    Returns
    -------
    spectral : float
        Largest stretch of a unit vector by the difference: σ_{r+1}, 0 if there is none.
    frobenius : float
        Root of the sum of the difference's squared entries: √(Σ_{i>r} σ_i²).

    References
    ----------
    Mirsky (1960), "Symmetric gauge functions and unitarily invariant norms", theorem 2: the same matrix is best in
    every norm that depends on the singular values only.
    """
    ### BEGIN SOLUTION
    rest = s[rank:]
    return float(rest.max(initial=0.0)), float(np.sqrt((rest**2).sum()))
    ### END SOLUTION


def effective_rank(s: np.ndarray) -> float:
    """How many singular values matter: exp of the entropy of their shares, from 1 (one only) to k (all alike).

    With p_i = σ_i/Σσ, exp(−Σ p_i log p_i). Roy, Vetterli (2007), "The effective rank: a measure of effective
    dimensionality".

    Parameters
    ----------
    s : (k,)
        Singular values, not all 0.
    """
    ### BEGIN SOLUTION
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
    ### END SOLUTION


def factor_gradients(weight: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of ½‖W − L R‖² with respect to the factors.

    The product is linear in each factor, so with E = L R − W: dL = E Rᵀ, dR = Lᵀ E.

    Parameters
    ----------
    weight : (m, n)
    left : (m, r)
    right : (r, n)

    Returns
    -------
    dleft : (m, r), dright : (r, n)
    """
    ### BEGIN SOLUTION
    error = left @ right - weight
    return error @ right.T, left.T @ error
    ### END SOLUTION


def activation_aware_svd(
    weight: np.ndarray, gram: np.ndarray, rank: int, damping: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """The factors of rank r that change the layer's *output* least on the inputs it has been seen with.

    Minimises ‖X(W − L R)‖² + λ‖W − L R‖² over all L, R. With G = XᵀX + λI = C Cᵀ (Cholesky, C lower triangular) that
    is ‖Cᵀ W − Cᵀ L R‖²: plain truncation of Cᵀ W, whose left factor is then multiplied by C⁻ᵀ.

    Parameters
    ----------
    weight : (in, out)
    gram : (in, in)
        XᵀX of the layer's inputs X, or any multiple of it.
    rank : int
        1 to min(in, out).
    damping : float
        λ as a share of the mean of the gram matrix's diagonal, above 0: directions that were never seen are not free.

    Returns
    -------
    left : (in, r), right : (r, out), float64

    Raises
    ------
    ValueError
        If rank or damping is not possible, or the gram matrix is 0.

    References
    ----------
    Whitening before truncation: Wang et al. (2024), "SVD-LLM", arXiv:2403.07378, section 3.1.
    """
    check_rank(rank, weight.shape)
    scale = float(np.trace(gram)) / len(gram)
    if not damping > 0 or not scale > 0:
        raise InputError(f"damping is {damping} and the inputs' mean square {scale:.3g}; both must be above 0")
    ### BEGIN SOLUTION
    lower = np.linalg.cholesky(gram.astype(np.float64) + damping * scale * np.eye(len(gram)))
    left, right = truncated_svd(lower.T @ weight, rank)
    return np.linalg.solve(lower.T, left), right
    ### END SOLUTION


def pca(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Principal components: the SVD of the data after each column's mean has been taken away.

    With X − mean = U Σ Vᵀ: the axes are the rows of Vᵀ, the scores (the data along them) U Σ, and the variance along
    an axis σ²/(n − 1), because that is what the covariance (X − mean)ᵀ(X − mean)/(n − 1) has on its diagonal there.

    Parameters
    ----------
    x : (n, d)
        One row an observation, two or more.

    Returns
    -------
    mean : (d,)
    axes : (k, d)
        k = min(n, d); orthonormal rows, by falling variance, each free to point either way.
    scores : (n, k)
    variances : (k,)

    Raises
    ------
    ValueError
        If there are fewer than two observations.
    """
    if len(x) < 2:
        raise InputError(f"{len(x)} observations; principal components need 2 or more")
    ### BEGIN SOLUTION
    x = x.astype(np.float64)
    mean = x.mean(0)
    u, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    return mean, vt, u * s, s**2 / (len(x) - 1)
    ### END SOLUTION


def check_rank(rank: int, shape: Sequence[int]) -> None:
    """Make sure that a matrix of this shape can have this rank.

    Raises
    ------
    ValueError
    """
    if not 1 <= rank <= min(shape):
        raise InputError(f"rank is {rank}; a {shape[0]} × {shape[1]} matrix can have 1 to {min(shape)}")


def rank_for(share: float, inputs: int, outputs: int) -> int:
    """The rank at which two factors hold this share of the full matrix' parameters.

    r·(in + out) ≤ share·in·out. A square matrix has to go down to half its rank before anything is saved.

    Raises
    ------
    ValueError
        If the share is not in (0, 1], or too small for rank 1.
    """
    rank = int(share * inputs * outputs / (inputs + outputs)) if 0 < share <= 1 else 0
    if rank < 1:
        raise InputError(
            f"a share of {share:g}: {inputs} × {outputs} weights as factors hold {1 / inputs + 1 / outputs:.2g} to 1"
        )
    return min(rank, inputs, outputs)


# ---------------------------------------------------------------------------------------------- the layer


class LowRankLinear(Layer):
    """y = (x @ left) @ right + bias: a linear layer of rank r with r·(in + out) weights.

    Parameters
    ----------
    name : str
        Prefix of the parameters' names: ``{name}.left``, ``{name}.right``, ``{name}.bias``.
    left : (in, r)
    right : (r, out)
    bias : (out,)
    """

    def __init__(self, name: str, left: Array, right: Array, bias: Array) -> None:
        self.name = name
        self.left = Parameter(f"{name}.left", left)
        self.right = Parameter(f"{name}.right", right)
        self.bias = Parameter(f"{name}.bias", bias)

    def forward(self, x: Array, ctx: Context) -> tuple[Array, Backward]:
        """(..., in) -> (..., out)."""
        ops = ctx.backend.ops
        needs_dx = ctx.needs_input_gradient(self.left, self.right, self.bias)
        left, right = self.left.data, self.right.data
        z = ops.linear_forward(x, left, None)  # (..., r)
        y = ops.linear_forward(z, right, self.bias.data)
        ctx.see(self.name, y)
        kept_x = x if ctx.grad and self.left.trainable else None
        kept_z = z if ctx.grad and self.right.trainable else None

        def backward(dy: Array, grads: Gradients) -> Array | None:
            if self.bias.trainable:
                grads.add(self.bias, ops.linear_backward_bias(dy))
            if kept_z is not None:  # y = z R: dR = zᵀ dy
                grads.add(self.right, ops.linear_backward_weight(dy, kept_z, out=grads.slot(self.right)))
            if not needs_dx and kept_x is None:
                return None
            dz = ops.linear_backward_input(dy, right)  # (..., r)
            if kept_x is not None:  # z = x L: dL = xᵀ dz
                grads.add(self.left, ops.linear_backward_weight(dz, kept_x, out=grads.slot(self.left)))
            return ops.linear_backward_input(dz, left) if needs_dx else None

        return y, backward


def factorise(model: GPT, share: float, grams: Mapping[str, np.ndarray] | None = None) -> GPT:
    """A copy of a model whose blocks' weights are products of two factors.

    Parameters
    ----------
    model : GPT
        Is not changed.
    share : float
        Of the parameters of these weights that are kept, at most.
    grams : mapping of str to (in, in) array, optional
        From `input_grams`, for activation-aware truncation.

    Returns
    -------
    factored : GPT
        Every factor trainable, all other parameters as they were.

    Raises
    ------
    ValueError
        If the model is not a plain GPT, or the share is not possible.
    """
    require_plain(model)
    twin = model.copy()
    to_numpy, asarray = model.backend.to_numpy, model.backend.asarray

    def factored(layer: Any, name: str) -> Layer:
        weight = to_numpy(layer.weight.data)
        rank = rank_for(share, *weight.shape)
        factors = truncated_svd(weight, rank) if grams is None else activation_aware_svd(weight, grams[name], rank)
        left, right = (asarray(factor.astype(model.dtype)) for factor in factors)
        return LowRankLinear(layer.name, left, right, layer.bias.data)

    twin.replace(MATRICES, factored)
    return twin


# ---------------------------------------------------------------------------------------------- the mathematics


def probe_factored(backend: Backend) -> gradcheck.Function:
    """The factored layer."""

    def forward(x: Array, left: Array, right: Array, bias: Array) -> Any:
        layer = LowRankLinear("it", left, right, bias)
        ctx = Context(backend, grad=True)
        ctx.needs_input_gradient(Parameter("below", x))
        y, back = layer.forward(x, ctx)

        def backward(dy: Array) -> Any:
            grads = Gradients(layer.parameters(), backend)
            dx = back(dy, grads)
            return {"x": dx} | {name: grads[f"it.{name}"] for name in ("left", "right", "bias")}

        return y, backward

    return forward


def probe_factor_loss(backend: Backend) -> gradcheck.Function:
    """½‖W − L R‖², as a function of the factors."""
    weight = np.random.default_rng(3).standard_normal((5, 4))

    def forward(left: Array, right: Array) -> Any:
        left, right = backend.to_numpy(left), backend.to_numpy(right)
        loss = 0.5 * float(((left @ right - weight) ** 2).sum())

        def backward(dloss: float) -> Any:
            return dict(zip(("left", "right"), (dloss * g for g in factor_gradients(weight, left, right)), strict=True))

        return loss, backward

    return forward


def check_svd(backend: Backend) -> list[Check]:
    """Our own SVD beside LAPACK's."""
    a = np.random.default_rng(0).standard_normal((7, 5))

    def make() -> list[Check]:
        u, s, vt = jacobi_svd(a)
        return [
            gradcheck.compare("singular values", s, np.linalg.svd(a, compute_uv=False)),
            gradcheck.compare("U Σ Vᵀ", (u * s) @ vt, a),
            gradcheck.compare("UᵀU", u.T @ u, np.eye(5)),
            gradcheck.compare("VᵀV", vt @ vt.T, np.eye(5)),
        ]

    return gradcheck.attempt("singular values", make)


def check_truncation(backend: Backend) -> list[Check]:
    """The truncated SVD's distance is the promised one, and no small step improves on it."""
    a = np.random.default_rng(1).standard_normal((7, 5))
    s = np.linalg.svd(a, compute_uv=False)

    def make() -> list[Check]:
        left, right = truncated_svd(a, 2)
        rest = left @ right - a
        found = np.array([np.linalg.norm(rest, 2), np.linalg.norm(rest)])
        stationary = np.concatenate([g.ravel() for g in factor_gradients(a, left, right)])
        return [
            gradcheck.compare("‖A − LR‖, spectral and Frobenius", np.array(optimal_error(s, 2)), found),
            gradcheck.compare("gradient at the optimum", stationary, np.zeros(24)),
            gradcheck.compare("LᵀL = RRᵀ", left.T @ left, right @ right.T),
        ]

    return gradcheck.attempt("‖A − LR‖, spectral and Frobenius", make)


def check_activation_aware(backend: Backend) -> list[Check]:
    """Stationary in the norm that it minimises; the plain truncation where all directions are fed alike."""
    rng = np.random.default_rng(2)
    weight, x = rng.standard_normal((6, 5)), rng.standard_normal((40, 6)) * [4, 2, 1, 1, 0.5, 0.1]
    gram, damping = x.T @ x, 1e-2

    def make() -> list[Check]:
        left, right = activation_aware_svd(weight, gram, 2, damping)
        damped = gram + damping * np.trace(gram) / 6 * np.eye(6)
        error = damped @ (left @ right - weight)
        stationary = np.concatenate([(error @ right.T).ravel(), (left.T @ error).ravel()]) / np.abs(error).max()
        plain, even = truncated_svd(weight, 2), activation_aware_svd(weight, 3 * np.eye(6), 2, damping)
        return [
            gradcheck.compare("gradient at the optimum", stationary, np.zeros(22)),
            gradcheck.compare("even inputs: plain", even[0] @ even[1], plain[0] @ plain[1]),
        ]

    return gradcheck.attempt("gradient at the optimum", make)


def check_pca(backend: Backend) -> list[Check]:
    """The scores are uncorrelated, with the eigenvalues of the covariance as variances."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((30, 4)) @ rng.standard_normal((4, 4)) + 5

    def make() -> list[Check]:
        mean, axes, scores, variances = pca(x)
        covariance = np.cov(x, rowvar=False)
        return [
            gradcheck.compare("variances", variances, np.linalg.eigvalsh(covariance)[::-1]),
            gradcheck.compare("covariance of scores", np.cov(scores, rowvar=False), np.diag(variances)),
            gradcheck.compare("mean + scores · axes", mean + scores @ axes, x),
        ]

    return gradcheck.attempt("variances", make)


DERIVATIONS = (
    Derivation(
        "The singular value decomposition",
        """
        A = U Σ Vᵀ      A (m, n); U, V with orthonormal columns (the singular vectors), Σ diagonal, σ₁ ≥ σ₂ ≥ … ≥ 0

        Every matrix turns (Vᵀ), stretches each axis by its own σ, and turns again (U).
        Turn two columns a, b of A in their plane, so that they become orthogonal:
          a' = c a − s b,  b' = s a + c b,   a'·b' = cs(α − β) + (c² − s²)γ = 0      α = a·a, β = b·b, γ = a·b
        The sum of all squared products between columns falls each time; when all are 0, A V = U Σ stands there.
        """,
        (jacobi_rotation, jacobi_svd),
        check_svd,
    ),
    Derivation(
        "Eckart, Young, Mirsky: the truncated SVD is the nearest matrix of rank r",
        """
        min over rank(B) ≤ r of ‖A − B‖ is σ_{r+1} (spectral) and √(Σ_{i>r} σ_i²) (Frobenius); B = U_r Σ_r V_rᵀ has both

        Spectral: B sends some unit vector x of the span of v₁…v_{r+1} to 0 (r + 1 directions, rank r), so
          ‖A − B‖² ≥ ‖A x‖² = Σ_{i≤r+1} σ_i² (v_i·x)² ≥ σ_{r+1}²
        Frobenius: by Weyl's inequality σ_{i+r}(A) ≤ σ_i(A − B) + σ_{r+1}(B) = σ_i(A − B), so
          ‖A − B‖_F² = Σ σ_i(A − B)² ≥ Σ_i σ_{i+r}(A)²
        It is the only one in the Frobenius norm iff σ_r > σ_{r+1}.
        """,
        (truncated_svd, optimal_error),
        check_truncation,
    ),
    Derivation(
        "The same by gradient descent",
        """
        f(L, R) = ½‖L R − W‖²,   E = L R − W      f moves by Σ E∘(dL R + L dR)
          ∂f/∂L = E Rᵀ,   ∂f/∂R = Lᵀ E
        Both are 0 where L R keeps *any* r singular triples; only the r largest are a minimum, the others are saddles.
        """,
        (factor_gradients,),
        gradients(probe_factor_loss, {"left": (5, 2), "right": (2, 4)}),
    ),
    Derivation(
        "Truncation that knows its inputs",
        """
        What a layer loses is ‖X W − X Ŵ‖, not ‖W − Ŵ‖: a direction that no input has may be dropped for nothing.
          ‖X E‖² + λ‖E‖² = tr Eᵀ(XᵀX + λI)E = tr Eᵀ C Cᵀ E = ‖Cᵀ E‖²      XᵀX + λI = C Cᵀ, C lower triangular
        Cᵀ is invertible, so Ŵ and Cᵀ Ŵ have the same rank, and the best Cᵀ Ŵ is the truncated SVD of Cᵀ W:
          Ŵ = C⁻ᵀ · trunc_r(Cᵀ W)
        It is the best of all matrices of rank r in this norm, hence never worse in it than the plain truncation.
        """,
        (activation_aware_svd,),
        check_activation_aware,
    ),
    Derivation(
        "Principal components are the SVD of centred data",
        """
        X_c = X − mean = U Σ Vᵀ,   covariance = X_cᵀ X_c/(n − 1) = V · Σ²/(n − 1) · Vᵀ
        axes: rows of Vᵀ; scores: X_c V = U Σ; variances: σ²/(n − 1)
        Without centring, the first axis points to the mean. Where two singular values are equal, nothing is lost but
        that their axes may be any two of their plane.
        """,
        (pca,),
        check_pca,
    ),
    Derivation(
        "A layer of two factors",
        """
        z = x L,   y = z R + b      two linear layers with nothing between
          dR = zᵀ dy,   dz = dy Rᵀ,   dL = xᵀ dz,   dx = dz Lᵀ      r·(in + out) weights instead of in·out
        """,
        (LowRankLinear.forward,),
        gradients(probe_factored, {"x": (2, 3, 5), "left": (5, 2), "right": (2, 4), "bias": (4,)}),
    ),
)

# ---------------------------------------------------------------------------------------------- the rivals


def random_projection(weight: np.ndarray, rank: int, rng: np.random.Generator) -> np.ndarray:
    """W projected on r random directions of its output space."""
    q, _ = np.linalg.qr(rng.standard_normal((weight.shape[1], rank)))
    return weight @ q @ q.T


def sketched(weight: np.ndarray, rank: int, rng: np.random.Generator) -> np.ndarray:
    """W projected on r random combinations of its own columns (Halko, Martinsson, Tropp 2011, arXiv:0909.4061)."""
    q, _ = np.linalg.qr(weight @ rng.standard_normal((weight.shape[1], rank)))
    return q @ (q.T @ weight)


def column_selection(weight: np.ndarray, rank: int) -> np.ndarray:
    """W from its r longest columns, by least squares."""
    chosen = weight[:, np.argsort(-(weight**2).sum(0))[:rank]]
    return chosen @ np.linalg.lstsq(chosen, weight, rcond=None)[0]


def optimised(
    weight: np.ndarray, rank: int, steps: int, rng: np.random.Generator, alternating: bool
) -> tuple[np.ndarray, list[float]]:
    """Factors found by optimisation from a random start.

    Parameters
    ----------
    weight : (m, n)
    rank, steps : int
    rng : Generator
    alternating : bool
        Solve for one factor at a time (alternating least squares) instead of gradient descent on both.

    Returns
    -------
    approximation : (m, n)
    errors : list of float
        ‖W − L R‖ after every step.
    """
    largest = float(np.linalg.norm(weight, 2))
    left, right = (
        rng.standard_normal(shape) * math.sqrt(largest / max(weight.shape))
        for shape in ((weight.shape[0], rank), (rank, weight.shape[1]))
    )
    errors = []
    for _ in range(steps):
        if alternating:
            left = np.linalg.lstsq(right.T, weight.T, rcond=None)[0].T
            right = np.linalg.lstsq(left, weight, rcond=None)[0]
        else:
            dleft, dright = factor_gradients(weight, left, right)
            rate = 0.3 / largest  # the loss curves by up to 2σ₁ near the optimum: below 1/σ₁ descent is stable
            left, right = left - rate * dleft, right - rate * dright
        errors.append(float(np.linalg.norm(weight - left @ right)))
    return left @ right, errors


def compete(weight: np.ndarray, rank: int, steps: int, seed: int) -> dict[str, dict[str, Any]]:
    """Approximate a matrix in all ways.

    Returns
    -------
    rivals : dict
        ``frobenius`` and ``spectral``: way → error as a multiple of the truncated SVD's; ``curves``: optimised way →
        the Frobenius one after every step.
    """
    rng = np.random.default_rng(seed)
    weight = weight.astype(np.float64)
    spectral, frobenius = optimal_error(np.linalg.svd(weight, compute_uv=False), rank)
    left, right = truncated_svd(weight, rank)
    descended, descent = optimised(weight, rank, steps, rng, alternating=False)
    alternated, alternation = optimised(weight, rank, steps, rng, alternating=True)
    found = {
        "truncated SVD": left @ right,
        "alternating least squares": alternated,
        "gradient descent": descended,
        "random combinations of columns": sketched(weight, rank, rng),
        "longest columns": column_selection(weight, rank),
        "random directions": random_projection(weight, rank, rng),
    }
    return {
        "frobenius": {way: float(np.linalg.norm(weight - b)) / frobenius for way, b in found.items()},
        "spectral": {way: float(np.linalg.norm(weight - b, 2)) / spectral for way, b in found.items()},
        "curves": {
            "gradient descent": [e / frobenius for e in descent],
            "alternating least squares": [e / frobenius for e in alternation],
        },
    }


# ---------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes
    ----------
    base : str
    documents : int
        Of generated text.
    block, windows, calibration : int
        Tokens of a window; windows held out; batches of 16 that activation-aware truncation looks at.
    records, steps, heal : int
        Of the task; training steps on it, and of a truncated model on its text.
    rank : int
        At which figures are compared.
    ranks : tuple of int
    shares : tuple of float
        Of the parameters kept.
    healed : float
        The share at which a truncated model is trained on.
    race : int
        Steps of the optimised rivals.
    workers : int
        Of training.
    """

    base: str = "base-m"
    documents: int = 3000
    block: int = 128
    windows: int = 64
    calibration: int = 8
    records: int = 1000
    steps: int = 150
    heal: int = 60
    rank: int = 8
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    shares: tuple[float, ...] = (1.0, 0.75, 0.5, 0.35, 0.25)
    healed: float = 0.5
    race: int = 2000
    workers: int = 0


CORE = Sizes()
QUICK = Sizes("base-xs", 80, 32, 4, 1, 64, 3, 2, 4, (1, 4), (0.75, 0.5), 0.5, 20, workers=1)
SEEDS = 5
TASKS = ("translation", "rewriting", "sentiment-pairs", "addition")


def text_of(tokenizer: Tokenizer, sizes: Sizes, path: str | None, seed: int) -> Material:
    """Text that the bases know, or the user's own."""
    return low_rank.text_material(tokenizer, path, sizes.documents, sizes.block, sizes.windows, seed)


def task_of(tokenizer: Tokenizer, sizes: Sizes, path: str | None, seed: int) -> Material:
    """Something that is new to the bases, or the user's own."""
    if path and not path.lower().endswith(".jsonl"):
        return text_of(tokenizer, sizes, path, seed)
    return low_rank.pair_material(tokenizer, path or "translation", sizes.records, 2 * sizes.windows, seed)


@dataclass(frozen=True)
class Spectra:
    """Singular values of matrices of one kind, one (k,) array a matrix."""

    values: dict[str, np.ndarray]

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray]) -> Spectra:
        """Of these matrices."""
        return cls({name: np.linalg.svd(w, compute_uv=False) for name, w in weights.items()})

    def error(self, rank: int) -> float:
        """Relative Frobenius error of the best approximation of this rank, mean over the matrices."""
        each = [optimal_error(s, min(rank, len(s)))[1] / float(np.linalg.norm(s)) for s in self.values.values()]
        return math.fsum(each) / len(each)

    @property
    def effective(self) -> float:
        """Effective rank as a share of the full one, mean over the matrices."""
        return math.fsum(effective_rank(s) / len(s) for s in self.values.values()) / len(self.values)

    def record(self) -> dict[str, Any]:
        """For pictures: σ_k/σ₁ by k and the relative error by rank, means over the matrices; the effective rank."""
        profile = np.mean([s / s[0] for s in self.values.values()], axis=0)
        remaining = [self.error(r) for r in range(len(profile) + 1)]
        return {
            "profile": np.round(profile, 5).tolist(),
            "remaining": np.round(remaining, 5).tolist(),
            "effective": self.effective,
        }


@dataclass(frozen=True)
class Updates:
    """A fine-tuning run seen through the SVD.

    Attributes
    ----------
    spectra : dict of str to Spectra
        Of the weights, the update, a batch's gradient and its signs, and random matrices.
    before, after : float
        Held-out loss of the base and the tuned model.
    update_losses : dict of int to float
        With the update cut to each rank.
    weight_losses : dict of int to float
        With the tuned weights themselves cut to it.
    """

    spectra: dict[str, Spectra]
    before: float
    after: float
    update_losses: dict[int, float]
    weight_losses: dict[int, float]

    def gain_kept(self, rank: int) -> float:
        """Share of the fine-tuning's gain that is there with the update cut to this rank."""
        return (self.before - self.update_losses[rank]) / (self.before - self.after)


def measure_updates(base: GPT, material: Material, sizes: Sizes, seed: int, title: str) -> Updates:
    """Train all of the blocks' weights, and look at what has been added to them."""
    tuned = base.copy()
    tuned.freeze()
    tuned.unfreeze([f"transformer.{MATRICES}.weight"])
    first = material.batches(0)
    _, grads = tuned.loss_and_grads(first["ids"], first["targets"])
    gradient = {
        name.removeprefix("transformer.").removesuffix(".weight"): base.backend.to_numpy(g).astype(np.float64)
        for name, g in grads.items()
    }
    train_on(tuned, material, sizes.steps, 1e-3, title, sizes.workers)
    old, new = matrices(base), matrices(tuned)
    update = {name: new[name] - old[name] for name in old}
    rng = np.random.default_rng(seed)
    kinds = {
        "weights": old,
        "update": update,
        "gradient": gradient,
        "signs of the gradient": {name: np.sign(g) for name, g in gradient.items()},
        "random": {name: rng.standard_normal(w.shape) for name, w in old.items()},
    }

    def cut(weight: np.ndarray, rank: int) -> np.ndarray:
        left, right = truncated_svd(weight, rank)
        return left @ right

    return Updates(
        {kind: Spectra.of(weights) for kind, weights in kinds.items()},
        material.loss(base),
        material.loss(tuned),
        {r: material.loss(with_matrices(base, {n: old[n] + cut(update[n], r) for n in old})) for r in sizes.ranks},
        {r: material.loss(with_matrices(base, {n: cut(new[n], r) for n in old})) for r in sizes.ranks},
    )


@dataclass(frozen=True)
class Truncated:
    """Held-out loss of a base with fewer parameters.

    Attributes
    ----------
    parameters, flops : float
        Of the blocks' matrices and of their products in a forward pass, as a share of the full ones.
    plain, aware : float
        Nats a token.
    healed_plain, healed_aware : float or None
        After some training on the text.
    """

    parameters: float
    flops: float
    plain: float
    aware: float
    healed_plain: float | None = None
    healed_aware: float | None = None


def linear_flops(model: GPT, batch: Batch) -> int:
    """Floating-point operations of a forward pass' linear layers, the output head included."""
    return count_products(model, LanguageModelling(), batch)[0].flops["linear_forward"]


def measure_truncation(
    base: GPT,
    text: Material,
    share: float,
    grams: Mapping[str, np.ndarray],
    heal: int = 0,
    title: str = "",
    workers: int = 0,
) -> Truncated:
    """Truncate a base both ways, count what it has left and what that costs."""
    plain, aware = factorise(base, share), factorise(base, share, grams)
    full = sum(w.size for w in matrices(base).values())
    batch = text.held_out[0]
    head = 2 * batch["ids"].size * base.config.vocab_size * base.config.n_embd
    flops = (linear_flops(plain, batch) - head) / (linear_flops(base, batch) - head)
    losses = [text.loss(plain), text.loss(aware)]
    healed: list[float | None] = [None, None]
    if heal:
        for i, model in enumerate((plain, aware)):
            way = ("plain", "activation-aware")[i]
            train_on(model, text, heal, 1e-3, f"{title}{way}, trained on", workers)
            healed[i] = text.loss(model)
    return Truncated((full - base.n_parameters + plain.n_parameters) / full, flops, *losses, *healed)


# ---------------------------------------------------------------------------------------------- the lesson


def lesson(run: Run) -> None:
    """Everything that `make lesson-6` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    settings = run.settings
    sizes = settings.choose(QUICK, CORE)
    base, tokenizer = bases.load(sizes.base, backend=run.backend)
    seeds = range(settings.seed, settings.seed + (SEEDS if settings.full else 1))
    run.results["sizes"] = asdict(sizes)
    for material in (text_of, task_of):  # what cannot be used is said before anything is computed
        material(tokenizer, sizes, settings.data, settings.seed)

    rivals = show_rivals(run, base, sizes)
    cosine = show_components(run, base, tokenizer, sizes)
    updates = show_updates(run, base, tokenizer, sizes, seeds)
    truncated = show_truncation(run, base, tokenizer, sizes, seeds)
    if settings.full:
        show_ablations(run, tokenizer, sizes)
    report(run, sizes, rivals, cosine, updates, truncated)


def report(
    run: Run,
    sizes: Sizes,
    rivals: Mapping[str, Mapping[str, Any]],
    cosine: float,
    updates: Sequence[Updates],
    truncated: Sequence[Sequence[Truncated]],
) -> None:
    """The figures, each with the band where it is expected; arguments as the steps of the lesson give them."""
    r, at = sizes.rank, sizes.healed
    chosen = [next(t for share, t in zip(sizes.shares, runs, strict=True) if share == at) for runs in truncated]
    text_losses = run.results["text_loss"]
    best = min(value for name, value in rivals["frobenius"].items() if name != "truncated SVD")
    run.report("best_rival_over_optimum", best, "× its error", digits=6, banded=False)
    run.report("uncentred_axis_to_mean", cosine, "cosine", digits=4, banded=False)
    for kind in ("weights", "update", "random"):
        values = [u.spectra[kind].error(r) for u in updates]
        run.report(f"{kind}_error_at_rank_{r}", values, "of the norm")
    run.report(f"gain_kept_at_rank_{r}", [u.gain_kept(r) for u in updates], "of the gain")
    run.report("tuned_loss", [u.after for u in updates], "nats a token")
    for way in ("plain", "aware", "healed_plain", "healed_aware"):
        rises = [getattr(t, way) - loss for t, loss in zip(chosen, text_losses, strict=True)]
        run.report(f"{way}_loss_above_base", rises, "nats a token")
    run.report("parameters_kept", [t.parameters for t in chosen], "of the blocks' matrices", banded=False)


def show_rivals(run: Run, base: GPT, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """The truncated SVD against other ways to the same rank."""
    name = f"h.{base.config.n_layer // 2}.mlp.c_fc"
    weight = matrices(base)[name]
    run.heading("Is anything of rank r nearer than the truncated SVD?")
    run.say(f"  {name} of {sizes.base}, {weight.shape[0]} × {weight.shape[1]}, at rank {sizes.rank}")
    rivals = compete(weight, sizes.rank, sizes.race, run.settings.seed)
    rows = [[way, f"{e:.6f}", f"{rivals['spectral'][way]:.6f}"] for way, e in rivals["frobenius"].items()]
    run.say(table(rows, ["error as a multiple of the optimum", "Frobenius", "spectral"]))
    run.say("  expect 1 in the first row and no figure below it: the optimised ones come near from above, and stop")
    run.results["rivals"] = rivals
    run.picture("rivals", low_rank.rivals_picture(rivals, f"{name}, rank {sizes.rank}"))
    return rivals


def show_components(run: Run, base: GPT, tokenizer: Tokenizer, sizes: Sizes) -> float:
    """Principal components of hidden states; gives the cosine between the mean and the first axis without centring."""
    states, labels, names = low_rank.states_of_texts(base, tokenizer, 10 if run.settings.quick else 80)
    mean, _, scores, variances = pca(states)
    vt = np.linalg.svd(states, full_matrices=False)[2]
    cosine = abs(float(vt[0] @ mean)) / float(np.linalg.norm(mean))
    share = variances / variances.sum()
    run.heading("Principal components: centre first")
    run.say(
        f"  hidden states of {len(states)} texts of {len(names)} kinds, each the mean over its tokens\n"
        f"  centred: the first two axes carry {share[0]:.0%} and {share[1]:.0%} of the variance\n"
        f"  not centred: the first axis has cosine {cosine:.4f} with the mean: it says where the data are, "
        "not how they differ"
    )
    run.results["components"] = {"shares": share[:10].tolist(), "cosine_to_mean": cosine}
    run.picture("components", low_rank.components_picture(scores[:, :2], (states @ vt.T)[:, :2], labels, names, cosine))
    return cosine


def show_updates(run: Run, base: GPT, tokenizer: Tokenizer, sizes: Sizes, seeds: Sequence[int]) -> list[Updates]:
    """Which is low-rank: the weights, or what fine-tuning adds to them?"""
    run.heading("Weights and their updates")
    updates = []
    for seed in seeds:
        material = task_of(tokenizer, sizes, run.settings.data, seed)
        updates.append(measure_updates(base, material, sizes, seed, f"fine-tuning on {material.name}, seed {seed}"))
    first = updates[0]
    run.say(
        f"  all matrices of the blocks trained on {material.name}: "
        f"held-out loss {first.before:.3f} → {first.after:.3f}\n"
    )
    columns = [r for r in sizes.ranks if r <= min(len(s) for s in first.spectra["weights"].values.values()) // 2]
    rows = [
        [kind, *(spread([u.spectra[kind].error(r) for u in updates]) for r in columns), f"{spectra.effective:.0%}"]
        for kind, spectra in first.spectra.items()
    ]
    run.say("  relative error ‖A − A_r‖/‖A‖ of the best approximation, mean over the matrices")
    run.say(table(rows, ["", *(f"r = {r}" for r in columns), "effective rank"]))
    run.say("  expect the update below the weights and both below the random matrix")
    if "gradient" in first.spectra:
        run.say(
            "  expect the gradient of a batch below all: AdamW divides each entry by its own size, which makes\n"
            "  updates of a higher rank than their gradients"
        )
    rows = [
        [str(r), f"{first.update_losses[r]:.3f}", f"{first.gain_kept(r):.0%}", f"{first.weight_losses[r]:.3f}"]
        for r in sizes.ranks
    ]
    run.say("\n  held-out loss when only the update is cut to rank r, and when the tuned weights are")
    run.say(table(rows, ["rank", "W + ΔW_r", "gain kept", "(W + ΔW)_r"], "rrrr"))
    run.results["updates"] = [
        {
            "spectra": {kind: spectra.record() for kind, spectra in u.spectra.items()},
            "before": u.before,
            "after": u.after,
            "update_losses": u.update_losses,
            "weight_losses": u.weight_losses,
        }
        for u in updates
    ]
    run.picture("spectra", low_rank.spectra_picture(run.results["updates"][0]["spectra"]))
    run.picture("update_rank", low_rank.update_rank_picture(run.results["updates"]))
    return updates


def show_truncation(
    run: Run, base: GPT, tokenizer: Tokenizer, sizes: Sizes, seeds: Sequence[int]
) -> list[list[Truncated]]:
    """What it costs to keep fewer parameters."""
    run.heading("A base with fewer parameters")
    everything, intact = [], []
    for seed in seeds:
        text = text_of(tokenizer, sizes, run.settings.data, seed)
        grams = input_grams(base, [text.batches(i) for i in range(sizes.calibration)])
        intact.append(text.loss(base))
        runs = []
        for share in sizes.shares:
            heal = sizes.heal if share == sizes.healed else 0
            runs.append(measure_truncation(base, text, share, grams, heal, f"seed {seed}, ", sizes.workers))
        everything.append(runs)
    run.say(f"  held-out loss on {text.name}, nats a token; as it is: {spread(intact)}")
    rows = []
    for i, first in enumerate(everything[0]):
        column = [runs[i] for runs in everything]
        rows.append(
            [
                f"{first.parameters:.1%}",
                f"{first.flops:.1%}",
                spread([t.plain for t in column]),
                spread([t.aware for t in column]),
                *(
                    spread([v for v in values if v is not None]) if None not in values else ""
                    for values in ([t.healed_plain for t in column], [t.healed_aware for t in column])
                ),
            ]
        )
    headers = ["weights kept", "products", "plain", "activation-aware"]
    headers += [f"plain, {sizes.heal} steps on", f"aware, {sizes.heal} steps on"]
    run.say(table(rows, headers, "rrrrrr"))
    run.say("  expect the activation-aware column below the plain one: the same size, another norm")
    run.results["text_loss"] = intact
    run.results["truncation"] = [[asdict(t) for t in runs] for runs in everything]
    run.picture("truncation", low_rank.truncation_picture(run.results["truncation"], intact, sizes.heal))
    return everything


def show_ablations(run: Run, tokenizer: Tokenizer, sizes: Sizes) -> None:
    """How the answers depend on what is learnt, on the base's size, and on the text that the truncation has seen."""
    settings, seed = run.settings, run.settings.seed
    base, _ = bases.load(sizes.base, backend=run.backend)
    run.heading("Other tasks, other bases, more text for calibration")
    by_task = []
    for name in TASKS:
        material = low_rank.pair_material(tokenizer, name, sizes.records, 2 * sizes.windows, seed)
        u, r = measure_updates(base, material, sizes, seed, f"fine-tuning on {name}"), sizes.rank
        moved = f"{u.before:.3f} → {u.after:.3f}"
        by_task.append([name, moved, f"{u.spectra['update'].error(r):.3f}", f"{u.gain_kept(r):.0%}"])
    at = f"r = {sizes.rank}"
    run.say(table(by_task, ["task", "held-out loss", f"update's error, {at}", f"gain kept, {at}"]) + "\n")

    by_base = []
    for name in bases.BASES:
        model, _ = bases.load(name, backend=run.backend)
        text = text_of(tokenizer, sizes, settings.data, seed)
        grams = input_grams(model, [text.batches(i) for i in range(sizes.calibration)])
        loss, cut = text.loss(model), measure_truncation(model, text, sizes.healed, grams)
        by_base.append([name, f"{loss:.3f}", f"{cut.plain - loss:.3f}", f"{cut.aware - loss:.3f}"])
    run.say(table(by_base, [f"{sizes.healed:.0%} of the weights", "as it is", "plain adds", "aware adds"]) + "\n")

    text = text_of(tokenizer, sizes, settings.data, seed)
    loss, by_text = text.loss(base), []
    for batches in (1, 4, 16, 64):
        grams = input_grams(base, [text.batches(i) for i in range(batches)])
        aware = text.loss(factorise(base, sizes.healed, grams)) - loss
        by_text.append([f"{batches * 16 * sizes.block:,}", f"{aware:.3f}"])
    run.say(table(by_text, ["tokens seen", "aware adds"], "rr"))
    run.results["ablations"] = {"by_task": by_task, "by_base": by_base, "by_calibration": by_text}


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-6``; gives the exit code."""
    return runner.main(6, __doc__, lesson, argv, takes=runner.TEXT_OR_PAIRS)


if __name__ == "__main__":
    sys.exit(main())
