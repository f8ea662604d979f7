"""Lesson 13: kernels. What an operation waits for, and how to write one that waits for as little as it can.

1. The roofline: a machine moves so many bytes and computes so many products a second; which of the two is short?
2. Passes: the same arithmetic with fewer journeys through memory, counted and timed.
3. Softmax from partial results, and attention without its T × T matrix, forward and backward (flash attention).
4. How a GPU reads: 32 threads in step, sectors of memory, banks of shared memory, sums by shuffles.
5. Launches: the kernels under ``kernels/cuda`` that one training step starts, counted without a GPU.

Williams, Waterman, Patterson (2009), "Roofline", CACM 52(4); Milakov, Gimelshein (2018), arXiv:1805.02867;
Dao et al. (2022), "FlashAttention", arXiv:2205.14135; Dao (2023), "FlashAttention-2", arXiv:2307.08691.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

from kernels import Backend, get_backend
from kernels.array import Array, namespace
from kernels.attention import attention_backward, attention_forward
from kernels.backend import OPS
from kernels.cuda.blas import Call, StridedGemm
from kernels.memory import keep_freed_memory
from lessons.common import derivation, gradcheck, kernel_pictures, runner
from lessons.common.bands import Band
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.measure import median_seconds
from lessons.common.runner import Run
from lessons.common.table import table
from minigpt import GPT
from minigpt.config import preset
from minigpt.errors import InputError
from minigpt.files import read_json
from minigpt.optim import AdamW
from minigpt.parameters import FlatParameters

LANES = 32
"""Threads of a warp: they run in step, and read together."""
SECTOR = 32
"""Bytes that a GPU's memory hands over at least."""
BANKS = 32
"""Of shared memory, each four bytes wide: neighbouring words lie in neighbouring banks."""

# ---------------------------------------------------------------------------------------------- the roofline


def attainable(intensity: Array, peak: float, bandwidth: float) -> Array:
    """The most that an operation can reach on a machine.

    A second is enough for `peak` operations and for `bandwidth` bytes. An operation that makes `intensity` operations
    of every byte it moves can therefore not do more than ``intensity · bandwidth`` of them, nor more than `peak`.

    Parameters
    ----------
    intensity : (...)
        Operations a byte.
    peak : float
        Operations a second.
    bandwidth : float
        Bytes a second.

    Returns
    -------
    rate : (...)
        Operations a second.

    References
    ----------
    Williams, Waterman, Patterson (2009), "Roofline: An Insightful Visual Performance Model", CACM 52(4).
    """
    ### BEGIN SOLUTION
    return namespace(intensity).minimum(peak, intensity * bandwidth)
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- softmax in parts


class Partial(NamedTuple):
    """What is known of a softmax-weighted mean when only some of the scores z have been seen.

    `largest` (...) is their maximum m, `total` (...) is Σ exp(z − m), `mixed` (..., D) is Σ exp(z − m)·v. Before any
    score has been seen they are the lowest number that there is, 0 and 0.
    """

    largest: Array
    total: Array
    mixed: Array


def partial_softmax(scores: Array, values: Array) -> Partial:
    """The partial result of some scores.

    Parameters
    ----------
    scores : (..., T, S)
        The lowest number that there is where a key is hidden.
    values : (..., S, D)

    Returns
    -------
    partial : Partial
        Of shapes (..., T), (..., T) and (..., T, D). Where a query sees none of the keys, it means nothing, and its
        `largest` makes it disappear as soon as it is merged with a part in which the query sees one.
    """
    largest = scores.max(-1)
    weights = namespace(scores).exp(scores - largest[..., None])
    return Partial(largest, weights.sum(-1), weights @ values)


def merge_softmax(first: Partial, second: Partial) -> Partial:
    """The partial result of two sets of scores together, from those of each.

    The larger maximum counts. A sum that was taken under a smaller one is too large by exp(m − m_own) and is brought
    down by it, so that no exponential is ever of a positive number.

    Parameters
    ----------
    first, second : Partial
        Of equal shapes.

    Returns
    -------
    partial : Partial

    References
    ----------
    arXiv:1805.02867, algorithm 3 and section 3.1: the operation is associative, so parts may be merged in any order.
    """
    ### BEGIN SOLUTION
    xp = namespace(first.total)
    largest = xp.maximum(first.largest, second.largest)
    shrink_first = xp.exp(first.largest - largest)
    shrink_second = xp.exp(second.largest - largest)
    total = first.total * shrink_first + second.total * shrink_second
    mixed = first.mixed * shrink_first[..., None] + second.mixed * shrink_second[..., None]
    return Partial(largest, total, mixed)
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- flash attention


def tile_scores(q: Array, k: Array, first_query: int, first_key: int) -> Array:
    """Scores q·k/√D of a tile of queries and keys, the lowest number that there is where a key comes after its query.

    Parameters
    ----------
    q : (..., t, D)
    k : (..., s, D)
    first_query, first_key : int
        Places of the tile's first query and key in the sequence.

    Returns
    -------
    scores : (..., t, s)
    """
    xp = namespace(q)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    queries = first_query + xp.arange(q.shape[-2])
    keys = first_key + xp.arange(k.shape[-2])
    return xp.where(keys[None, :] <= queries[:, None], scores, xp.finfo(q.dtype).min)


def flash_attention_forward(q: Array, k: Array, v: Array, block: int) -> tuple[Array, Array]:
    """Causal attention tile by tile: no array of T × T is ever made.

    For every block of queries the tiles of keys up to its end are taken one after the other, and their partial results
    merged; at the end the mixed values are divided by the total. What the backward needs of the softmax is one number
    a row, the logarithm of Σ exp(z).

    Parameters
    ----------
    q, k, v : (B, H, T, D)
    block : int
        Queries, and keys, of a tile.

    Returns
    -------
    out : (B, H, T, D)
    logsumexp : (B, H, T)

    References
    ----------
    arXiv:2307.08691, algorithm 1.
    """
    ### BEGIN SOLUTION
    xp = namespace(q)
    T = q.shape[-2]
    out, logsumexp = xp.empty_like(q), xp.empty(q.shape[:-1], dtype=q.dtype)
    for i in range(0, T, block):
        queries = slice(i, min(i + block, T))
        rows = q[..., queries, :]
        nothing = xp.full(rows.shape[:-1], xp.finfo(q.dtype).min, dtype=q.dtype)
        seen = Partial(nothing, xp.zeros_like(nothing), xp.zeros_like(rows))
        for j in range(0, queries.stop, block):
            keys = slice(j, min(j + block, T))
            scores = tile_scores(rows, k[..., keys, :], i, j)
            seen = merge_softmax(seen, partial_softmax(scores, v[..., keys, :]))
        out[..., queries, :] = seen.mixed / seen.total[..., None]
        logsumexp[..., queries] = seen.largest + xp.log(seen.total)
    return out, logsumexp
    ### END SOLUTION


def flash_attention_backward(
    dout: Array, q: Array, k: Array, v: Array, out: Array, logsumexp: Array, block: int
) -> tuple[Array, Array, Array]:
    """Gradients of `flash_attention_forward`: every tile of probabilities is computed again.

    P = exp(Z − logsumexp) is exact at once, without a maximum to look for. With δ = rowsum(dO∘O), which equals
    rowsum(dP∘P) because O = P·v: dv = Pᵀ·dO, dP = dO·vᵀ, dZ = P∘(dP − δ), dq = dZ·k/√D, dk = dZᵀ·q/√D, each a sum
    over tiles.

    Parameters
    ----------
    dout : (B, H, T, D)
    q, k, v, out : (B, H, T, D)
    logsumexp : (B, H, T)
    block : int

    Returns
    -------
    dq, dk, dv : (B, H, T, D)

    References
    ----------
    arXiv:2307.08691, algorithm 2.
    """
    ### BEGIN SOLUTION
    xp = namespace(q)
    T, scale = q.shape[-2], 1 / math.sqrt(q.shape[-1])
    dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
    delta = (dout * out).sum(-1)[..., None]
    for i in range(0, T, block):
        queries = slice(i, min(i + block, T))
        for j in range(0, queries.stop, block):
            keys = slice(j, min(j + block, T))
            scores = tile_scores(q[..., queries, :], k[..., keys, :], i, j)
            weights = xp.exp(scores - logsumexp[..., queries, None])
            dv[..., keys, :] += weights.swapaxes(-1, -2) @ dout[..., queries, :]
            dweights = dout[..., queries, :] @ v[..., keys, :].swapaxes(-1, -2)
            dscores = weights * (dweights - delta[..., queries, :])
            dq[..., queries, :] += dscores @ k[..., keys, :] * scale
            dk[..., keys, :] += dscores.swapaxes(-1, -2) @ q[..., queries, :] * scale
    return dq, dk, dv
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- a GPU's memory


def sectors(addresses: np.ndarray, width: int = 4) -> int:
    """How many sectors of memory a warp's read takes.

    The memory hands over whole sectors of 32 bytes, each once, however many threads want a part of it. 32 neighbouring
    floats lie in 4 sectors; 32 floats of 32 rows of a matrix in 32.

    Parameters
    ----------
    addresses : (32,) integers
        Byte at which each thread begins to read.
    width : int
        Bytes that each thread reads.

    Returns
    -------
    sectors : int
    """
    ### BEGIN SOLUTION
    touched = addresses[:, None] + np.arange(width)[None, :]
    return int(np.unique(touched // SECTOR).size)
    ### END SOLUTION


def bank_passes(addresses: np.ndarray) -> int:
    """How often shared memory has to be asked for one read of a warp.

    Word w lies in bank w mod 32, and a bank gives one word at a time; threads that want the same word share it. So it
    is the largest number of *different* words in one bank.

    Parameters
    ----------
    addresses : (32,) integers
        Byte of the four-byte word that each thread reads.

    Returns
    -------
    passes : int
    """
    ### BEGIN SOLUTION
    words = np.unique(addresses // 4)
    return int(np.bincount(words % BANKS).max())
    ### END SOLUTION


def butterfly_sum(values: np.ndarray) -> np.ndarray:
    """The sum over a warp in five steps: afterwards every thread has it.

    With the distances 16, 8, 4, 2 and 1, every thread adds what the thread at its own number XOR the distance holds
    (``__shfl_xor_sync``). No memory is touched, and the order of the additions is the same each time.

    Parameters
    ----------
    values : (32,)
        One a thread.

    Returns
    -------
    sums : (32,)
    """
    ### BEGIN SOLUTION
    lanes = np.arange(LANES)
    for distance in (16, 8, 4, 2, 1):
        values = values + values[lanes ^ distance]
    return values
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- checks


def check_roofline(backend: Backend) -> list[Check]:
    """Below the ridge the memory decides, above it the arithmetic."""
    intensity = np.array([0.1, 1.0, 10.0, 100.0])
    wanted = np.array([10.0, 100.0, 500.0, 500.0])
    return [gradcheck.agree("rate", wanted, lambda: backend.to_numpy(attainable(backend.asarray(intensity), 500, 100)))]


def check_merge(backend: Backend) -> list[Check]:
    """Parts of very unequal scores, merged in either order, against a softmax over all of them."""
    rng = np.random.default_rng(2)
    scores = rng.normal(0, 300, (3, 7))
    scores[1, :4] = np.finfo(np.float64).min  # this query sees nothing of the first part
    values = rng.standard_normal((7, 2))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = weights @ values / weights.sum(-1, keepdims=True)

    def merged(*order: slice) -> np.ndarray:
        with np.errstate(over="raise"):
            parts = [partial_softmax(backend.asarray(scores[:, s]), backend.asarray(values[s])) for s in order]
            both = merge_softmax(*parts)
            return backend.to_numpy(both.mixed / both.total[:, None])

    left, right = slice(0, 4), slice(4, 7)
    return [
        gradcheck.agree("merged", wanted, lambda: merged(left, right)),
        gradcheck.agree("merged, the other order", wanted, lambda: merged(right, left)),
    ]


def probe_flash(backend: Backend) -> gradcheck.Function:
    """Flash attention for the gradient check, in tiles that do not divide the sequence."""

    def function(q: Array, k: Array, v: Array) -> tuple[Array, Callable[[Array], Mapping[str, Any]]]:
        out, logsumexp = flash_attention_forward(q, k, v, 3)

        def backward(dout: Array) -> Mapping[str, Any]:
            found = flash_attention_backward(dout, q, k, v, out, logsumexp, 3)
            return dict(zip("qkv", found, strict=True))

        return out, backward

    return function


def check_flash(backend: Backend) -> list[Check]:
    """Against attention as lesson 1 has it, and against central differences."""
    rng = np.random.default_rng(3)
    q, k, v, dout = (rng.standard_normal((2, 2, 7, 4)) for _ in range(4))
    joined = dout.swapaxes(1, 2).reshape(2, 7, 8)
    mixed, cache = attention_forward(q, k, v)
    wanted = dict(zip(("out", "dq", "dk", "dv"), (mixed, *attention_backward(joined, cache)), strict=True))

    def found(name: str, block: int) -> np.ndarray:
        queries, keys, values = (backend.asarray(a) for a in (q, k, v))
        out, logsumexp = flash_attention_forward(queries, keys, values, block)
        if name == "out":
            return backend.to_numpy(out).swapaxes(1, 2).reshape(2, 7, 8)
        found_ = flash_attention_backward(backend.asarray(dout), queries, keys, values, out, logsumexp, block)
        return backend.to_numpy(found_[("dq", "dk", "dv").index(name)])

    def checked(name: str, block: int) -> Check:
        return gradcheck.agree(f"{name}, tiles of {block}", wanted[name], lambda: found(name, block))

    equal = [checked(name, block) for name in wanted for block in (2, 7)]
    return equal + gradients(probe_flash, dict.fromkeys("qkv", (1, 2, 7, 4)))(backend)


def check_reads(backend: Backend) -> list[Check]:
    """Patterns whose answer is known."""
    lane = np.arange(LANES)
    return [
        gradcheck.agree("sectors, neighbours", 4, lambda: sectors(4 * lane)),
        gradcheck.agree("sectors, a row apart", 32, lambda: sectors(1024 * lane)),
        gradcheck.agree("sectors, one for all", 1, lambda: sectors(0 * lane)),
        gradcheck.agree("bank passes, neighbours", 1, lambda: bank_passes(4 * lane)),
        gradcheck.agree("bank passes, a column", 32, lambda: bank_passes(4 * 32 * lane)),
        gradcheck.agree("bank passes, a padded column", 1, lambda: bank_passes(4 * 33 * lane)),
        gradcheck.agree("butterfly", np.full(LANES, 496.0), lambda: butterfly_sum(lane.astype(float))),
    ]


DERIVATIONS = (
    Derivation(
        "The roofline",
        """
        time ≥ max(operations / peak, bytes / bandwidth)

        With intensity I = operations / bytes:  rate = operations / time ≤ min(peak, I · bandwidth)
        The two meet at the ridge, I = peak / bandwidth. Left of it only fewer bytes help, right of it only fewer
        operations. LayerNorm: about 9 operations for 8 bytes, far left. A product of two n × n matrices: 2n³ operations
        for 12n² bytes, I = n/6: far right once n is some hundred.
        """,
        (attainable,),
        check_roofline,
    ),
    Derivation(
        "Softmax from partial results",
        """
        softmax(z)·v = Σ_s e^{z_s − m} v_s / Σ_s e^{z_s − m}      for any m; m = max z keeps every exponential below 1

        Two sets of scores a, b with their own m, l = Σ e^{z − m}, o = Σ e^{z − m} v. Under m = max(m_a, m_b):
          Σ_{a∪b} e^{z − m} = e^{m_a − m} l_a + e^{m_b − m} l_b, and the same for o
        One pass over the scores is enough, in any order, and nothing but (m, l, o) has to be kept.
        """,
        (merge_softmax,),
        check_merge,
    ),
    Derivation(
        "Flash attention: exact, and never a T × T matrix",
        """
        forward    per block of queries: merge the partial results of the tiles of keys it may see; O = o/l
                   L = m + log l = log Σ e^z is all that is kept of the softmax: T numbers instead of T²
        backward   P = e^{Z − L}, computed again from q and k
                   dZ = P∘(dP − rowsum(dP∘P));  rowsum(dP∘P)_t = Σ_s (dO_t·v_s) P_ts = dO_t·Σ_s P_ts v_s = dO_t·O_t
        More operations (Z twice), far fewer bytes: left of the ridge that is the better bargain.
        """,
        (flash_attention_forward, flash_attention_backward),
        check_flash,
    ),
    Derivation(
        "How 32 threads read",
        """
        global memory   whole sectors of 32 bytes: neighbours share them, threads that are a row apart do not
        shared memory   32 banks of 4 bytes, word w in bank w mod 32: a column of a 32 × 32 tile is one bank, 32 passes;
                        one unused word at the end of each row moves row i by i banks, and a column is one pass
        registers       __shfl_xor_sync hands a value to the thread whose number differs in one bit; after log₂ 32 = 5
                        additions every thread has the sum, as adding over a butterfly's edges visits each leaf once
        """,
        (sectors, bank_passes, butterfly_sum),
        check_reads,
    ),
)

# ---------------------------------------------------------------------------------------------- work and traffic


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes
    ----------
    rows, width, vocabulary : int
        N, C and V of the operations that are timed.
    batch, heads, time, head_size : int
        Of attention.
    parameters : int
        Of AdamW.
    copy, product : int
        Floats of the copy and edge of the matrix product that measure the machine.
    times : tuple of int
        Sequence lengths for the memory of attention, each twice the one before.
    block : int
        Of its tiles.
    repeats : int
    """

    rows: int = 8192
    width: int = 512
    vocabulary: int = 1024
    batch: int = 2
    heads: int = 8
    time: int = 512
    head_size: int = 64
    parameters: int = 1 << 22
    copy: int = 1 << 24
    product: int = 1024
    times: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    block: int = 128
    repeats: int = 7


CORE = Sizes()
FULL = Sizes(repeats=31)
QUICK = Sizes(64, 32, 40, 1, 2, 32, 8, 512, 4096, 64, (16, 32, 64), 8, 2)


class Meter:
    """What `Watched` arrays have been through.

    Attributes
    ----------
    bytes, calls : int
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.calls = 0

    def note(self, arguments: Sequence[Any], result: Any) -> None:
        """An operation: every argument once, and what came out."""
        arrays = {x.ctypes.data: x for x in arguments if isinstance(x, np.ndarray)}
        self.calls += 1
        self.bytes += sum(x.nbytes for x in arrays.values()) + np.asarray(result).nbytes


class Watched(np.ndarray):
    """A NumPy array that notes each pass of an operation over it, and over what comes out of it.

    Counted are the bytes of all arguments, each once, and of the result, as if nothing stayed in a cache between two
    operations: what happens to arrays that are larger than it.
    """

    meter: Meter | None

    def __array_finalize__(self, parent: Any) -> None:
        self.meter = getattr(parent, "meter", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **settings: Any) -> Any:
        watched = next(x for x in (*inputs, *out) if isinstance(x, Watched))
        meter = watched.meter
        assert meter is not None
        plain = [_plain(x) for x in inputs]
        if out:
            settings["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*plain, **settings)
        meter.note(plain, result)
        if out:
            return out[0]
        return watch(result, meter) if isinstance(result, np.ndarray) else result

    def __array_function__(self, function: Any, types: Any, args: Any, settings: Any) -> Any:
        meter = next(x.meter for x in args if isinstance(x, Watched) and x.meter is not None)
        plain = [_plain(x) for x in args]
        result = function(*plain, **{name: _plain(x) for name, x in settings.items()})
        if not isinstance(result, np.ndarray):
            return result
        if not any(isinstance(x, np.ndarray) and np.may_share_memory(result, x) for x in plain):
            meter.note(plain, result)  # a view of an argument moves nothing
        return watch(result, meter)


Watched.__module__ = "numpy"  # `kernels.array.namespace` computes with the library that an array's type comes from


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, Watched) else x


def watch(array: np.ndarray, meter: Meter) -> np.ndarray:
    """The same memory as an array that is watched."""
    watched = array.view(Watched)
    watched.meter = meter
    return watched


@dataclass(frozen=True)
class Workload:
    """An operation at a size.

    Attributes
    ----------
    name : str
    op : str
        The entry of the op table.
    flops : float
        Additions, products, divisions and elementary functions, each one.
    least : int
        Bytes of what goes in and of what comes out, each once.
    prepare : (Backend, watched) -> callable
        Makes the inputs and gives the call; `watched` is applied to every floating-point array first.
    """

    name: str
    op: str
    flops: float
    least: int
    prepare: Callable[[Backend, Callable[[Array], Array]], Callable[[], Any]]


def workloads(s: Sizes) -> list[Workload]:
    """The operations of a training step, at the sizes of a run."""
    rng = np.random.default_rng(0)
    N, C, V, P = s.rows, s.width, s.vocabulary, s.parameters
    rows, tokens = 4 * N * C, s.batch * s.heads * s.time

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def norm_forward(backend: Backend, seen: Callable[[Array], Array]) -> Callable[[], Any]:
        x, delta, weight, bias = (seen(backend.asarray(normal(*shape))) for shape in ((N, C), (N, C), (C,), (C,)))
        return lambda: backend.ops.residual_layernorm_forward(x, delta, weight, bias, 1e-5)

    def norm_backward(backend: Backend, seen: Callable[[Array], Array]) -> Callable[[], Any]:
        x, dy, weight = (seen(backend.asarray(normal(*shape))) for shape in ((N, C), (N, C), (C,)))
        _, cache = backend.ops.layernorm_forward(x, weight, weight, 1e-5)
        return lambda: backend.ops.layernorm_backward_input(dy, weight, cache)

    def gelu(backend: Backend, seen: Callable[[Array], Array]) -> Callable[[], Any]:
        u, bias = seen(backend.asarray(normal(N, C))), seen(backend.asarray(np.zeros(C, np.float32)))
        return lambda: backend.ops.bias_gelu_forward(u, bias, False)

    def classifier(backend: Backend, seen: Callable[[Array], Array]) -> Callable[[], Any]:
        logits, targets = normal(N, V), backend.asarray(rng.integers(0, V, N))
        given = seen(backend.asarray(logits))

        def call() -> Any:
            # A fast form writes over its logits: it gets the same memory again, with what it left there.
            _, cache = backend.ops.cross_entropy_forward(given, targets, float(N))
            return backend.ops.cross_entropy_backward(cache)

        return call

    def attention(backend: Backend, seen: Callable[[Array], Array]) -> Callable[[], Any]:
        q, k, v = (seen(backend.asarray(normal(s.batch, s.heads, s.time, s.head_size))) for _ in range(3))
        return lambda: backend.ops.attention_forward(q, k, v)

    def product(backend: Backend, seen: Callable[[Array], Array]) -> Callable[[], Any]:
        x, weight, bias = (seen(backend.asarray(normal(*shape))) for shape in ((N, C), (C, C), (C,)))
        return lambda: backend.ops.linear_forward(x, weight, bias)

    def adamw(backend: Backend, seen: Callable[[Array], Array]) -> Callable[[], Any]:
        param, grad, m, v = (seen(backend.asarray(abs(normal(P)))) for _ in range(4))
        return lambda: backend.ops.adamw_update(param, grad, m, v, 1, 1e-3, weight_decay=0.1)

    pairs = s.batch * s.heads * s.time * (s.time + 1) / 2  # a query and a key that it sees
    return [
        Workload("residual + LayerNorm", "layernorm", 9 * N * C, 4 * rows, norm_forward),
        Workload("LayerNorm, backward", "layernorm", 8 * N * C, 3 * rows, norm_backward),
        Workload("bias + GELU", "gelu", 9 * N * C, 2 * rows, gelu),
        Workload("cross-entropy, both ways", "cross_entropy", 6 * N * V, 2 * 4 * N * V, classifier),
        Workload("AdamW", "adamw", 14 * P, 7 * 4 * P, adamw),
        Workload("attention", "attention", pairs * (4 * s.head_size + 4), 4 * 4 * tokens * s.head_size, attention),
        Workload("linear", "linear", 2 * N * C * C, 2 * rows + 4 * C * C, product),
    ]


@dataclass(frozen=True)
class Measured:
    """A workload in two forms.

    Attributes
    ----------
    name : str
    flops, least : float
        As of the `Workload`.
    passes : float
        Bytes through which the reference form goes, over the least.
    calls : int
        Operations of the array library that it makes.
    reference, fast : float
        Seconds.
    """

    name: str
    flops: float
    least: float
    passes: float
    calls: int
    reference: float
    fast: float

    @property
    def intensity(self) -> float:
        """Operations for each byte that has to move."""
        return self.flops / self.least


NORM_PASSES = 15 / 4
"""What the reference form of residual + LayerNorm moves, over the least, on arrays that no cache holds.

total = x + δ 3, its mean 1, centred 2, its square 2, their mean 1, normalised 2, times weight 2, plus bias 2: 15 passes
over (N, C); x, δ, total and y are 4.
"""


def measure(backend: Backend, sizes: Sizes) -> list[Measured]:
    """Traffic and times of all workloads."""
    host, slow, rows = get_backend("numpy", OPS), backend.with_reference(*OPS), []
    for work in workloads(sizes):
        meter = Meter()
        counted = work.prepare(host, lambda a, meter=meter: watch(a, meter))  # type: ignore[misc]
        meter.bytes = meter.calls = 0  # without what prepared it
        counted()
        times = [
            median_seconds(work.prepare(form, lambda a: a), sizes.repeats, form.synchronize) for form in (slow, backend)
        ]
        rows.append(Measured(work.name, work.flops, work.least, meter.bytes / work.least, meter.calls, *times))
    return rows


class Ceilings(NamedTuple):
    """What the machine can do: bytes a second of a large copy, and operations a second of a large product."""

    bandwidth: float
    peak: float


def ceilings(backend: Backend, sizes: Sizes) -> Ceilings:
    """Measured on arrays that no cache holds, and on matrices that are large enough."""
    xp = backend.xp
    source, target = backend.zeros(sizes.copy, np.float32), backend.zeros(sizes.copy, np.float32)
    n = sizes.product
    left, right = (xp.ones((n, n), dtype=np.float32) for _ in range(2))
    product = xp.empty((n, n), dtype=np.float32)
    copying = median_seconds(lambda: xp.copyto(target, source), sizes.repeats, backend.synchronize)
    multiplying = median_seconds(lambda: xp.matmul(left, right, out=product), sizes.repeats, backend.synchronize)
    return Ceilings(2 * source.nbytes / copying, 2 * n**3 / multiplying)


def attention_memory(backend: Backend, sizes: Sizes) -> dict[str, list[int]]:
    """Peak bytes of attention's forward pass beside its inputs, by sequence length.

    Returns
    -------
    bytes : dict of str to list of int
        ``"all weights"``: the reference; ``"tiles"``: `flash_attention_forward`.
    """
    rng = np.random.default_rng(0)
    forms: dict[str, Callable[..., Any]] = {
        "all weights": attention_forward,
        "tiles": lambda q, k, v: flash_attention_forward(q, k, v, sizes.block),
    }
    found: dict[str, list[int]] = {name: [] for name in forms}
    for T in sizes.times:
        shape = (1, sizes.heads, T, sizes.head_size)
        q, k, v = (backend.asarray(rng.standard_normal(shape, dtype=np.float32)) for _ in range(3))
        for name, form in forms.items():
            with backend.memory() as meter:
                before = meter.now()
                form(q, k, v)
                found[name].append(meter.peak() - before)
    return found


READS: dict[str, tuple[np.ndarray, int]] = {
    "neighbours": (4 * np.arange(LANES), 4),
    "neighbours, four floats each": (16 * np.arange(LANES), 16),
    "every second float": (8 * np.arange(LANES), 4),
    "from an odd place": (4 * np.arange(LANES) + 12, 4),
    "a row of 128 floats apart": (512 * np.arange(LANES), 4),
}
"""How a warp may read: the byte at which each thread begins, and how many it reads."""

# ---------------------------------------------------------------------------------------------- launches


@dataclass
class Recorder(StridedGemm):
    """A device that only notes what it was asked for: products are zeros, other results whatever lay in memory.

    Attributes
    ----------
    launches : Counter of str
        By kernel.
    moved : Counter of str
        Bytes of a kernel's arguments.
    products : int
        Matrix products.
    flops : int
        Of them.
    """

    precision: str = "float32"
    launches: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    products: int = 0
    flops: int = 0

    def launch(self, source: str, kernel: str, grid: Any, block: Any, args: tuple[Any, ...], shared: int = 0) -> None:
        """Note a launch."""
        self.launches[kernel] += 1
        self.moved[kernel] += sum(a.nbytes for a in args if isinstance(a, np.ndarray) and a.ndim)

    def _multiply(self, call: Call, first: Array, second: Array, out: Array, accumulate: bool) -> None:
        self.products += 1
        self.flops += 2 * call.m * call.n * call.k * call.batch
        out[...] = 0


def recorded_step(size: str, batch: int, T: int) -> Recorder:
    """What one training step of a model of this size starts on a GPU.

    Parameters
    ----------
    size : str
        A preset of `minigpt.config`.
    batch, T : int
    """
    device = Recorder()
    model = GPT(preset(size), backend=Backend("recorder", np, "_cuda", device=device))
    parameters = AdamW.order(model.parameters(), (), 0.1)
    optimizer = AdamW(parameters, model.backend, weight_decay=0.1)
    flat = FlatParameters(parameters, model.backend)
    grads, m, v = np.zeros((3, flat.size), dtype=flat.dtype)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, T + 1))
    with np.errstate(all="ignore"):  # nothing has been computed
        model.loss_and_grads(ids[:, :-1], ids[:, 1:])
        model.backend.ops.sum_of_squares(grads)
        optimizer.update(flat.buffer, grads, m, v, 1, [1e-3] * len(optimizer.segments), slice(0, flat.size))
    return device


# ---------------------------------------------------------------------------------------------- the lesson

GPU_RESULTS = runner.ROOT / "benchmarks" / "results" / "gpu_check.json"
STEP = ("base-m", 16, 128)
"""Preset, batch and T of the training step whose launches are counted."""
SMALLEST_STEP = ("base-xs", 2, 8)


def lesson(run: Run) -> None:
    """Everything that `make lesson-13` does."""
    if run.settings.data is not None:
        raise InputError("the kernels are measured on numbers of their own; the other lessons take DATA")
    derivation.require(derivation.derive(run, DERIVATIONS), "the comparison of forms")
    sizes = run.settings.choose(QUICK, CORE, FULL)
    with threadpoolctl.threadpool_limits(1, "blas"):
        show_roofline(run, sizes)
    show_attention(run, sizes)
    show_reads(run)
    show_launches(run)
    show_gpu(run)


def expect(run: Run, name: str, value: float, unit: str, theory: float, within: float, reason: str) -> None:
    """Report a figure that theory gives; at the smallest sizes what it leaves out is not small."""
    band = Band(theory - within, theory + within, reason=reason) if run.settings.standard else None
    run.report(name, value, unit, band)


def show_roofline(run: Run, sizes: Sizes) -> None:
    """The machine's two ceilings, and where each operation is under them in both of its forms."""
    run.heading("The roofline of this machine, one core" if run.backend.name == "numpy" else "The roofline")
    keep_freed_memory()  # as training does; otherwise a fresh result's first touch is most of what is measured
    machine = ceilings(run.backend, sizes)
    run.say(
        f"  copy {machine.bandwidth / 1e9:.1f} GB/s, product {machine.peak / 1e9:.0f} GFLOP/s: "
        f"the ridge is at {machine.peak / machine.bandwidth:.1f} operations a byte\n"
    )
    found = measure(run.backend, sizes)
    rows = []
    for m in found:
        roof = float(attainable(np.asarray(m.intensity), machine.peak, machine.bandwidth))
        shares = [m.flops / seconds / roof for seconds in (m.reference, m.fast)]
        rows.append(
            [
                m.name, f"{m.intensity:.2f}", "memory" if roof < machine.peak else "arithmetic", f"{m.passes:.1f}",
                m.calls, f"{m.reference * 1e3:.2f}", f"{m.fast * 1e3:.2f}", f"{m.reference / m.fast:.1f}",
                *(f"{share:.0%}" for share in shares),
            ]
        )  # fmt: skip
    headers = [
        "operation", "FLOP/byte", "waits for", "bytes, × least", "calls", "reference (ms)", "fast (ms)", "gain",
        "of its roof", "fast: of it",
    ]  # fmt: skip
    run.say(table(rows, headers, "lrlrrrrrrr"))
    run.say(
        "  bytes: what the reference form reads and writes, over what has to be; expect the gain to be near it where\n"
        "  memory is what an operation waits for, and more where an elementary function is what it waits for"
    )
    run.results["ceilings"] = machine._asdict()
    run.results["operations"] = [vars(m) | {"intensity": m.intensity} for m in found]
    for m in found:
        name = m.name.replace(" + ", "_").replace(", ", "_").replace(" ", "_").replace("-", "_").lower()
        run.report(f"{name}_gain", m.reference / m.fast, "× faster than the reference", digits=2, banded=False)
    norm = next(m for m in found if m.name == "residual + LayerNorm")
    expect(run, "layernorm_passes", norm.passes, "× the least bytes", NORM_PASSES, 0.02, "counted by hand")
    run.picture("roofline", kernel_pictures.roofline_picture(found, machine, attainable))
    run.picture("passes", kernel_pictures.passes_picture(found))


def show_attention(run: Run, sizes: Sizes) -> None:
    """Memory of attention with all its weights, and in tiles."""
    run.heading("Attention without its weights")
    found = attention_memory(run.backend, sizes)
    rows = [
        [T, *(f"{found[name][i] / 1e6:.1f}" for name in found), f"{found['all weights'][i] / found['tiles'][i]:.1f}"]
        for i, T in enumerate(sizes.times)
    ]
    run.say(table(rows, ["T", "all weights (MB)", f"tiles of {sizes.block} (MB)", "ratio"], "rrrr"))
    run.say("  expect the first to grow with T², the second with T")
    run.results["attention_memory"] = {"T": list(sizes.times), **found}
    for name, theory in (("all weights", 2.0), ("tiles", 1.0)):
        value = growth(sizes.times, found[name])
        reason = "the shapes of its arrays"
        expect(run, f"memory_growth_{name.replace(' ', '_')}", value, "power of T", theory, 0.2, reason)
    run.picture("attention-memory", kernel_pictures.memory_picture(sizes.times, found))


def growth(times: Sequence[int], values: Sequence[int]) -> float:
    """The power of T with which values grow at the end, whatever constant stands before them.

    Of the last three, each T twice the one before: if value = a + b·Tᵖ, the last difference is 2ᵖ times the one before.
    """
    first, second, third = values[-3:]
    return math.log2((third - second) / (second - first))


def show_reads(run: Run) -> None:
    """What a warp's read costs, by pattern."""
    run.heading("How a warp reads")
    rows = []
    for name, (addresses, width) in READS.items():
        n = sectors(addresses, width)
        rows.append([name, n, f"{LANES * width / (n * SECTOR):.0%}"])
    run.say(table(rows, ["32 threads read", "sectors", "of what is moved is used"]))
    lane = np.arange(LANES)
    tiles = {"a row": 4 * lane, "a column": 4 * 32 * lane, "a column of padded rows": 4 * 33 * lane}
    run.say("\n" + table([[name, bank_passes(a)] for name, a in tiles.items()], ["of a 32 × 32 tile", "passes"]))
    run.picture("reads", kernel_pictures.reads_picture(READS, SECTOR, sectors))


def show_launches(run: Run) -> None:
    """The kernels of a step, by how many bytes they are given."""
    size, batch, T = run.settings.choose(SMALLEST_STEP, STEP)
    run.heading(f"What a training step of {size} starts on a GPU ({batch} × {T} tokens)")
    device = recorded_step(size, batch, T)
    rows = [[kernel, n, f"{device.moved[kernel] / 1e6:.1f}"] for kernel, n in device.launches.most_common()]
    rows.append(["matrix products", device.products, f"{device.flops / 1e9:.1f} GFLOP"])
    launches = sum(device.launches.values()) + device.products
    run.say(table(rows, ["kernel", "launches", "arguments (MB)"]))
    run.say(
        f"  {launches} launches. If each costs 10 µs of Python, the step takes {launches / 100:.1f} ms at least, with\n"
        "  kernels of any speed: a small model waits for its launches. A captured graph saves that."
    )
    run.results["launches"] = {"kernels": dict(device.launches), "products": device.products, "flops": device.flops}
    run.report("launches", launches, "a step", digits=0, banded=False)


def show_gpu(run: Run) -> None:
    """What `make gpu-check` has recorded."""
    run.heading("On a GPU")
    if not GPU_RESULTS.is_file():
        run.say(
            "  The tests compile the kernels, run them on the processor and compare them with the reference. No GPU\n"
            "  has run them for these pages, so nothing is said of their speed: `make gpu-check` measures it on yours."
        )
        return
    kernels = read_json(GPU_RESULTS)["kernels"]
    rows = [[k["name"], f"{k['microseconds']:.1f}", f"{k['gigabytes_a_second']:.0f}"] for k in kernels]
    run.say(table(rows, ["kernel", "µs", "GB/s"]))


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-13``; gives the exit code."""
    return runner.main(13, __doc__, lesson, argv, takes=runner.NOTHING)


if __name__ == "__main__":
    sys.exit(main())
