"""Every kernel of ``kernels/cuda`` by itself: how to launch it, on which shapes, and what must come out.

A case runs its kernels on a device and gives, by name, what came out beside what the reference says in float64. The
launches are written out here, apart from those of the ``_cuda`` forms, because the naive versions have no form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kernels import adamw, attention, cross_entropy, embedding, gelu, layernorm, linear, low_rank
from kernels.cuda.device import COLUMN_ROWS, NULL, WARP, Device, blocks

Results = dict[str, tuple[np.ndarray, Any]]
"""Name → (what came out, what should have)."""


class Case(NamedTuple):
    """Kernels that do the same thing on the same arguments.

    Attributes
    ----------
    source : str
    kernel : str
        Its name without the version.
    versions : tuple of str
    shapes : tuple
        One run each.
    run : (device, kernel, rng, *shape) -> Results
    unordered : tuple of str
        Versions that add atomically: their last bits depend on the order of threads.
    """

    source: str
    kernel: str
    versions: tuple[str, ...]
    shapes: tuple[tuple[Any, ...], ...]
    run: Callable[..., Results]
    unordered: tuple[str, ...] = ()


def f32(x: Any) -> np.ndarray:
    """float32, in memory of its own size, so that the address sanitizer sees its ends."""
    return np.array(x, dtype=np.float32, order="C")


def nan(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Room for a result, full of NaN."""
    return np.full(shape, np.nan, dtype=dtype)


def moved(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy that starts `offset` numbers after an address that packs of four could be loaded from."""
    room = np.empty(x.size + 8, dtype=x.dtype)
    start = -(room.ctypes.data // x.itemsize) % 4 + offset
    view = room[start : start + x.size]
    view[...] = x.reshape(-1)
    return view.reshape(x.shape)


def sizes(*n: int) -> tuple[np.int32, ...]:
    """Numbers as the kernels take them."""
    return tuple(map(np.int32, n))


def wide(*arrays: np.ndarray | None) -> list[Any]:
    """In float64, for the reference."""
    return [None if x is None else x.astype(np.float64) for x in arrays]


def or_null(x: np.ndarray | None) -> Any:
    """A pointer argument that may be absent."""
    return NULL if x is None else x


def flat(kernel: str, size: int, threads: int = 64) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block of a thread a number."""
    return (blocks(size, threads),), (threads,)


# ---------------------------------------------------------------------------------------------- layernorm

ROWS = ((1, 1), (3, 5), (7, 33), (5, 130), (2, 64), (9, 36, 1))  # (N, C), and by how much weights are out of place


def rows_of(kernel: str, N: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # A thread a row, or a warp a row, two in a block.
    return ((blocks(N, 32),), (32,)) if kernel.endswith("v1") else ((blocks(N, 2),), (64,))


def layernorm_inputs(rng: Any, N: int, C: int, offset: int) -> list[np.ndarray]:
    x, delta, dy, dtotal = (f32(rng.normal(0.5, 2.0, (N, C))) for _ in range(4))
    weight, bias = (moved(f32(rng.normal(size=C)), offset) for _ in range(2))
    return [x, delta, dy, dtotal, weight, bias]


def layernorm_forward(device: Device, kernel: str, rng: Any, N: int, C: int, offset: int = 0) -> Results:
    x, delta, _, _, weight, bias = layernorm_inputs(rng, N, C, offset)
    results: Results = {}
    for residual in (False, True):
        total, y, mean, rstd = nan(N, C), nan(N, C), nan(N), nan(N)
        pointers = (x, delta if residual else NULL, weight, bias, total if residual else NULL, y, mean, rstd)
        device.launch("layernorm", kernel, *rows_of(kernel, N), (*pointers, *sizes(N, C), np.float32(1e-3)))
        stream = wide(x + delta if residual else x)[0]
        wanted, cache = layernorm.layernorm_forward(stream, *wide(weight, bias), 1e-3)
        results |= {
            f"y, residual {residual}": (y, wanted),
            f"mean, residual {residual}": (mean, stream.mean(-1)),
            f"rstd, residual {residual}": (rstd, cache.rstd[:, 0]),
        }
        if residual:
            results["total"] = (total, x + delta)
    return results


def layernorm_backward_input(device: Device, kernel: str, rng: Any, N: int, C: int, offset: int = 0) -> Results:
    x, _, dy, dtotal, weight, bias = layernorm_inputs(rng, N, C, offset)
    _, cache = layernorm.layernorm_forward(*wide(x, weight, bias), 0.3)
    mean, rstd = f32(x.mean(-1)), f32(cache.rstd[:, 0])
    results: Results = {}
    for residual in (False, True):
        dx = nan(N, C)
        arguments = (dtotal if residual else NULL, dy, x, weight, mean, rstd, dx, *sizes(N, C))
        device.launch("layernorm", kernel, *rows_of(kernel, N), arguments)
        wanted = layernorm.layernorm_backward_input(*wide(dy, weight), cache)
        results[f"dx, residual {residual}"] = (dx, wanted + dtotal if residual else wanted)
    return results


def layernorm_backward_params(device: Device, kernel: str, rng: Any, N: int, C: int, offset: int = 0) -> Results:
    x, _, dy, _, weight, bias = layernorm_inputs(rng, N, C, offset)
    _, cache = layernorm.layernorm_forward(*wide(x, weight, bias), 0.3)
    mean, rstd, dweight, dbias = f32(x.mean(-1)), f32(cache.rstd[:, 0]), nan(C), nan(C)
    if kernel.endswith("v1"):
        arguments = (dy, x, mean, rstd, dweight, dbias, *sizes(N, C))
        device.launch("layernorm", kernel, *flat(kernel, C), arguments)
    else:
        shares = 3
        partial = nan(shares, 2, C)
        grid, block = (blocks(C, WARP), shares), (WARP, COLUMN_ROWS)
        device.launch("layernorm", kernel, grid, block, (dy, x, mean, rstd, partial, *sizes(N, C)))
        arguments = (partial, dweight, dbias, *sizes(shares, C))
        device.launch("layernorm", f"{kernel}_finish", *flat(kernel, 2 * C), arguments)
    wanted = layernorm.layernorm_backward_params(wide(dy)[0], cache)
    return {"dweight": (dweight, wanted[0]), "dbias": (dbias, wanted[1])}


# ---------------------------------------------------------------------------------------------- gelu


def columns_of(kernel: str, N: int, C: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # A thread a number, or threads that keep their columns: too few for all columns and rows, so that they must stride.
    return flat(kernel, N * C) if kernel.endswith("v1") else ((1, min(N, 2)), (32,))


def bias_gelu(device: Device, kernel: str, rng: Any, N: int, C: int, offset: int = 0) -> Results:
    u, dy = f32(rng.normal(0, 3, (N, C))), f32(rng.normal(size=(N, C)))
    u[0, 0] = 40.0  # where the exponential overflows
    bias = moved(f32(rng.normal(size=C)), offset)
    results: Results = {}
    for given in (bias, None):
        wanted, cache = gelu.bias_gelu_forward(*wide(u, given))
        if "backward" in kernel:
            got, wanted = nan(N, C), gelu.bias_gelu_backward(wide(dy)[0], cache)
            arguments: tuple[Any, ...] = (dy, u, or_null(given), got)
        else:
            got = nan(N, C)
            arguments = (u, or_null(given), got)
        device.launch("gelu", kernel, *columns_of(kernel, N, C), (*arguments, *sizes(N, C)))
        results[f"bias {given is not None}"] = (got, wanted)
    return results


# ---------------------------------------------------------------------------------------------- linear


def bias_add(device: Device, kernel: str, rng: Any, N: int, C: int, offset: int = 0) -> Results:
    x, bias = f32(rng.normal(size=(N, C))), moved(f32(rng.normal(size=C)), offset)
    y = x.copy()
    device.launch("linear", kernel, *columns_of(kernel, N, C), (y, bias, *sizes(N, C)))
    return {"y": (y, x + bias)}


def column_sum(device: Device, kernel: str, rng: Any, N: int, C: int, offset: int = 0) -> Results:
    x, sums = f32(rng.normal(size=(N, C))), nan(C)
    if kernel.endswith("v2"):
        partial = nan(3, C)
        device.launch("linear", kernel, (blocks(C, WARP), 3), (WARP, COLUMN_ROWS), (x, partial, *sizes(N, C)))
        device.launch("linear", "column_sum_v1", *flat(kernel, C), (partial, sums, *sizes(3, C)))
    else:
        device.launch("linear", kernel, *flat(kernel, C), (x, sums, *sizes(N, C)))
    return {"sums": (sums, linear.linear_backward_bias(wide(x)[0]))}


# ---------------------------------------------------------------------------------------------- embedding


def embedding_forward(device: Device, kernel: str, rng: Any, N: int, C: int, V: int) -> Results:
    weight, ids, y = f32(rng.normal(size=(V, C))), rng.integers(0, V, N), nan(N, C)
    launch = flat(kernel, N * C) if kernel.endswith("v1") else ((N,), (32,))
    device.launch("embedding", kernel, *launch, (ids, weight, y, *sizes(N, C)))
    return {"y": (y, embedding.embedding_forward(ids, weight))}


def embedding_backward(device: Device, kernel: str, rng: Any, N: int, C: int, V: int) -> Results:
    dy, ids = f32(rng.normal(size=(N, C))), rng.integers(0, V, N)
    start = f32(rng.normal(size=(V, C)))
    dweight = start.copy()
    if kernel.endswith("v3"):
        order = ids.argsort(kind="stable")
        device.launch("embedding", kernel, (N,), (32,), (dy, ids[order], order, dweight, *sizes(N, C)))
    else:
        launch = flat(kernel, N * C) if kernel.endswith("v1") else ((V,), (32,))
        device.launch("embedding", kernel, *launch, (dy, ids, dweight, *sizes(N, C)))
    wanted = embedding.embedding_backward(wide(dy)[0], ids, wide(start)[0])
    return {"dweight": (dweight, wanted)}


# ---------------------------------------------------------------------------------------------- adamw


def adamw_update(device: Device, kernel: str, rng: Any, P: int, offsets: tuple[int, ...]) -> Results:
    param, grad, m = (f32(rng.normal(size=P)) for _ in range(3))
    v, rates = f32(rng.random(P)), f32(rng.random(P))
    step, betas, eps, decay = 3, (0.9, 0.95), 1e-3, 0.1
    root = np.sqrt(1 - betas[1] ** step)
    results: Results = {}
    for lr in (0.3, rates):
        p, g, mi, vi, r = (moved(x, offset) for x, offset in zip((param, grad, m, v, rates), offsets, strict=True))
        scalars = (0.3, *betas, 1 - betas[0], 1 - betas[1], root / (1 - betas[0] ** step), eps * root, decay)
        grid, block = flat(kernel, P) if kernel.endswith("v1") else ((2,), (32,))
        pointers = (p, g, mi, vi, NULL if isinstance(lr, float) else r)
        device.launch("adamw", kernel, grid, block, (*pointers, np.int64(P), *map(np.float32, scalars)))
        wanted = wide(param, m, v)
        rate = lr if isinstance(lr, float) else wide(lr)[0]
        adamw.adamw_update(wanted[0], wide(grad)[0], wanted[1], wanted[2], step, rate, betas, eps, decay)
        kind = "one rate" if isinstance(lr, float) else "rates"
        results |= {f"{kind}, {n}": pair for n, pair in zip("pmv", zip((p, mi, vi), wanted, strict=True), strict=True)}
    return results


def sum_of_squares(device: Device, kernel: str, rng: Any, P: int, offset: int) -> Results:
    x, total = moved(f32(rng.normal(size=P)), offset), np.zeros(1)
    if kernel.endswith("v1"):
        device.launch("adamw", kernel, (3,), (64,), (x, total, np.int64(P)))
    else:
        total, partial = nan(1, dtype=np.float64), nan(3, dtype=np.float64)
        device.launch("adamw", kernel, (3,), (64,), (x, partial, np.int64(P)))
        device.launch("adamw", f"{kernel}_finish", (1,), (64,), (partial, total, *sizes(3)))
    return {"total": (total, np.array([adamw.sum_of_squares(x)]))}


# ---------------------------------------------------------------------------------------------- cross-entropy


def logits_and_targets(rng: Any, N: int, V: int) -> tuple[np.ndarray, np.ndarray]:
    logits, targets = f32(rng.normal(0, 4, (N, V))), rng.integers(0, V, N)
    logits[0] += 300.0  # exp of it overflows
    if N > 2:
        targets[1] = cross_entropy.IGNORED
        logits[2] -= 300.0
    return logits, targets


def row_launch(kernel: str, N: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return ((blocks(N, 32),), (32,)) if kernel.endswith("v1") and "cross" not in kernel else ((N,), (64,))


def token_logprobs(device: Device, kernel: str, rng: Any, N: int, V: int) -> Results:
    logits, targets = logits_and_targets(rng, N, V)
    dlogprobs, z = f32(rng.normal(size=N)), logits.copy()
    logprobs, largest, total = nan(N), nan(N), nan(N)
    forward = (z, targets, logprobs, largest, total, *sizes(N, V))
    device.launch("cross_entropy", kernel, *row_launch(kernel, N), forward)
    wanted, cache = cross_entropy.token_logprobs_forward(wide(logits)[0], targets)
    assert (z == logits).all(), "the forward changed the logits"
    dwanted = cross_entropy.token_logprobs_backward(wide(dlogprobs)[0], cache)
    backward = (z, targets, largest, total, dlogprobs, *sizes(N, V))
    device.launch("cross_entropy", kernel.replace("forward", "backward"), *row_launch(kernel, N), backward)
    return {"logprobs": (logprobs, wanted), "dlogits": (z, dwanted)}


def fused_loss(device: Device, kernel: str, rng: Any, N: int, V: int) -> Results:
    logits, targets = logits_and_targets(rng, N, V)
    z, logprobs, loss, n = logits.copy(), nan(N), nan(1, dtype=np.float64), 2.5
    arguments = (z, targets, logprobs, np.float32(1 / n), *sizes(N, V))
    device.launch("cross_entropy", kernel, *row_launch(kernel, N), arguments)
    device.launch("cross_entropy", "total_v1", (1,), (64,), (logprobs, loss, np.float64(-1 / n), *sizes(N)))
    wanted, cache = cross_entropy.cross_entropy_forward(wide(logits)[0], targets, n)
    return {"loss": (loss, np.array([wanted])), "dlogits": (z, cross_entropy.cross_entropy_backward(cache))}


# ---------------------------------------------------------------------------------------------- attention


class Heads(NamedTuple):
    """Arguments of attention, q, k and v as views of one array where there is no past."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    key_mask: np.ndarray | None
    dropout: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """B, H, T, S, D."""
        B, H, T, D = self.q.shape
        return B, H, T, self.k.shape[2], D

    def reference(self) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        """Output, log Σ exp of the scores, and gradients, in float64."""
        q, k, v, dropout, dout = wide(self.q, self.k, self.v, self.dropout, self.dout)
        out, cache = attention.attention_forward(q, k, v, self.key_mask, dropout)
        mask = np.broadcast_to(attention.visible(q.shape[2], k.shape[2], self.key_mask, q), cache.weights.shape)
        scores = np.where(mask, q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
        largest = np.maximum(scores.max(-1), -1e30)
        sums = np.exp(scores - largest[..., None]).sum(-1)
        lse = np.where(sums > 0, largest + np.log(np.where(sums > 0, sums, 1)), 0)
        return out, lse, attention.attention_backward(dout, cache)


def heads(rng: Any, B: int, H: int, T: int, S: int, D: int, masked: bool, dropout: bool) -> Heads:
    if S == T:
        q, k, v = f32(rng.normal(size=(B, T, 3, H, D))).transpose(2, 0, 3, 1, 4)
    else:
        q = f32(rng.normal(size=(B, H, T, D)))
        k, v = (f32(rng.normal(size=(B, H, S + 2, D)))[:, :, :S] for _ in range(2))
    key_mask = None
    if masked:
        key_mask = rng.random((B, S)) < 0.7
        key_mask[0, : S - T + 1] = False  # the first query of the first row sees no key
    factors = f32((rng.random((B, H, T, S)) < 0.7) / 0.7) if dropout else None
    return Heads(q, k, v, f32(rng.normal(size=(B, T, H * D))), key_mask, factors)


def steps(*arrays: np.ndarray) -> tuple[np.int64, ...]:
    return tuple(np.int64(s // 4) for x in arrays for s in x.strides[:3])


ATTENTION_SHAPES = (
    # B, H, T, S, D, padded keys, dropout
    (1, 1, 1, 1, 1, False, False),
    (2, 2, 5, 5, 3, True, False),
    (1, 2, 3, 41, 8, False, False),
    (2, 1, 34, 70, 32, True, True),
)
TILE_SHAPES = {
    32: (*ATTENTION_SHAPES, (1, 1, 130, 130, 32, False, False)),
    64: ((1, 1, 1, 66, 33, False, False), (2, 1, 67, 67, 64, True, True)),
    128: ((1, 1, 35, 35, 65, True, True), (1, 2, 17, 50, 128, False, False)),
}


def tile_rows(width: int, forward: bool) -> int:
    return attention.HEAD_SIZES[width][0 if forward else 1]


def attention_forward(device: Device, kernel: str, rng: Any, *shape: Any) -> Results:
    a = heads(rng, *shape)
    B, H, T, _, D = a.shape
    tiles = "v3" in kernel
    dropout = a.dropout if tiles else None
    a = a._replace(dropout=dropout)
    out, lse = nan(B, T, H * D), nan(B, H, T)
    rest = (*sizes(*a.shape), *steps(a.q, a.k, a.v), np.float32(1 / np.sqrt(D)))
    masks = (or_null(a.key_mask), or_null(dropout)) if tiles else (or_null(a.key_mask),)
    if tiles:
        grid, block = (blocks(T, tile_rows(int(kernel.rpartition("d")[2]), True)), B * H), (16, 16)
    else:
        grid, block = ((blocks(T, 32), B * H), (32,)) if kernel.endswith("v1") else ((blocks(T, 2), B * H), (64,))
    device.launch("attention", kernel, grid, block, (a.q, a.k, a.v, *masks, out, lse, *rest))
    wanted, of_sums, _ = a.reference()
    return {"out": (out, wanted), "lse": (lse, of_sums)}


def attention_delta(device: Device, kernel: str, rng: Any, B: int, H: int, T: int, D: int) -> Results:
    dout, out = (f32(rng.normal(size=(B, T, H * D))) for _ in range(2))
    delta = nan(B, H, T)
    device.launch("attention", kernel, (blocks(B * T * H, 2),), (64,), (dout, out, delta, *sizes(B, H, T, D)))
    product = (wide(dout)[0] * out).reshape(B, T, H, D).sum(-1)
    return {"delta": (delta, product.transpose(0, 2, 1))}


def attention_backward(device: Device, kernel: str, rng: Any, *shape: Any) -> Results:
    a = heads(rng, *shape)
    B, H, T, S, D = a.shape
    tiles = "v3" in kernel
    a = a._replace(dropout=a.dropout if tiles else None)
    out, lse, wanted = a.reference()
    delta = f32((out * a.dout).reshape(B, T, H, D).sum(-1).transpose(0, 2, 1))
    masks = (or_null(a.key_mask), or_null(a.dropout)) if tiles else (or_null(a.key_mask),)
    inputs = (a.dout, a.q, a.k, a.v, *masks, f32(lse), delta)
    dq, dk, dv = nan(B, T, 3, H, D).transpose(2, 0, 3, 1, 4) if S == T else (nan(*x.shape) for x in a[:3])
    per_block, block = (tile_rows(int(kernel.rpartition("d")[2]), False), (16, 16)) if tiles else (2, (64,))
    scale = np.float32(1 / np.sqrt(D))
    if "query" in kernel:
        rest = (*sizes(*a.shape), *steps(a.q, a.k, a.v, dq), scale)
        device.launch("attention", kernel, (blocks(T, per_block), B * H), block, (*inputs, dq, *rest))
        return {"dq": (dq, wanted[0])}
    rest = (*sizes(*a.shape), *steps(a.q, a.k, a.v, dk, dv), scale)
    device.launch("attention", kernel, (blocks(S, per_block), B * H), block, (*inputs, dk, dv, *rest))
    return {"dk": (dk, wanted[1]), "dv": (dv, wanted[2])}


# ---------------------------------------------------------------------------------------------- dropout


def dropout_factors(device: Device, kernel: str, rng: Any, P: int) -> Results:
    uniform, x = f32(rng.random(P)), f32(rng.normal(size=P))
    mask, y, p = nan(P), nan(P), np.float32(0.25)
    uniform[0] = p  # kept
    outputs = (x, y, mask) if "forward" in kernel else (mask,)
    rest = (np.int64(P), p, np.float32(1 / 0.75))
    device.launch("dropout", kernel, *flat(kernel, P), (uniform, *outputs, *rest))
    factors = np.where(uniform < p, 0, 1 / 0.75)
    return {"mask": (mask, factors)} | ({"y": (y, x * factors)} if "forward" in kernel else {})


# ---------------------------------------------------------------------------------------------- for teaching


def softmax(device: Device, kernel: str, rng: Any, N: int, V: int) -> Results:
    x, y = logits_and_targets(rng, N, V)[0], nan(N, V)
    device.launch("softmax", kernel, *row_launch(kernel, N), (x, y, *sizes(N, V)))
    return {"y": (y, attention.softmax(wide(x)[0], np.ones((N, V), dtype=bool)))}


MATMUL_TILES = {"v4": (64, 64), "v5": (128, 128), "v6": (128, 128)}


def matmul(device: Device, kernel: str, rng: Any, M: int, N: int, K: int) -> Results:
    A, B, C = f32(rng.normal(size=(M, K))), f32(rng.normal(size=(K, N))), nan(M, N)
    version = kernel[-2:]
    if version == "v1":
        grid, block = (blocks(M, 8), blocks(N, 8)), (8, 8)
    elif version == "v2":
        grid, block = (blocks(N, 8), blocks(M, 8)), (8, 8)
    elif version == "v3":
        grid, block = (blocks(N, WARP), blocks(M, WARP)), (WARP, WARP)
    else:
        tile = MATMUL_TILES[version]
        grid, block = (blocks(N, tile[1]), blocks(M, tile[0])), (512 if version == "v4" else 256,)
    device.launch("matmul", kernel, grid, block, (A, B, C, *sizes(M, N, K)))
    return {"C": (C, wide(A)[0] @ B)}


def low_rank_product(device: Device, kernel: str, rng: Any, N: int, I: int, O: int, R: int) -> Results:
    x, weight, bias = f32(rng.normal(size=(N, I))), f32(rng.normal(size=(I, O))), f32(rng.normal(size=O))
    A, B, scaling = f32(rng.normal(size=(I, R))), f32(rng.normal(size=(R, O))), 0.7
    results: Results = {}
    for given in (bias, None):
        wanted, of_rank = low_rank.low_rank_forward(*wide(x, weight, given, A, B), scaling)
        if kernel.endswith("v1"):
            z = f32(of_rank)
            y = f32(wanted - scaling * (of_rank @ B))
            grid, block = (blocks(O, 16), blocks(N, 4)), (16, 4)
            device.launch("low_rank", kernel, grid, block, (z, B, y, *sizes(N, O, R), np.float32(scaling)))
        else:
            y, z = nan(N, O), nan(N, R)
            pointers = (x, weight, or_null(given), A, B, y, z)
            grid = (blocks(O, 64), blocks(N, 64))
            device.launch("low_rank", kernel, grid, (256,), (*pointers, *sizes(N, I, O, R), np.float32(scaling)))
        results |= {f"y, bias {given is not None}": (y, wanted), f"z, bias {given is not None}": (z, of_rank)}
    return results


# ---------------------------------------------------------------------------------------------- all

TOKENS = ((1, 1, 1), (9, 5, 4), (40, 36, 7), (6, 8, 30))  # N, C, V
LOGITS = ((1, 1), (5, 3), (4, 65), (3, 256), (3, 301))
WIDTHS = ("32", "64", "128")

CASES = (
    Case("layernorm", "layernorm_forward_", ("v1", "v2", "v3"), ROWS, layernorm_forward),
    Case("layernorm", "layernorm_backward_input_", ("v1", "v2", "v3"), ROWS, layernorm_backward_input),
    Case(
        "layernorm",
        "layernorm_backward_params_",
        ("v1", "v2"),
        (*ROWS, (60, 34)),
        layernorm_backward_params,
    ),
    Case("gelu", "bias_gelu_forward_", ("v1", "v2"), ROWS, bias_gelu),
    Case("gelu", "bias_gelu_backward_", ("v1", "v2"), ROWS, bias_gelu),
    Case("linear", "bias_add_", ("v1", "v2"), ROWS, bias_add),
    Case("linear", "column_sum_", ("v1", "v2"), (*ROWS, (60, 34)), column_sum),
    Case("embedding", "embedding_forward_", ("v1", "v2"), TOKENS, embedding_forward),
    Case("embedding", "embedding_backward_", ("v1", "v2", "v3"), TOKENS, embedding_backward, ("v1",)),
    Case(
        "adamw",
        "adamw_update_",
        ("v1", "v2"),
        tuple(
            (P, offsets)
            for P in (1, 3, 130, 523)
            for offsets in ((0,) * 5, (1,) * 5, (3,) * 5, (1, 1, 2, 1, 1), (0, 0, 0, 0, 2))
        ),
        adamw_update,
    ),
    Case(
        "adamw",
        "sum_of_squares_",
        ("v1", "v2"),
        tuple((P, offset) for P in (1, 2, 130, 1001) for offset in (0, 1, 3)),
        sum_of_squares,
        ("v1",),
    ),
    Case(
        "cross_entropy",
        "token_logprobs_forward_",
        ("v1", "v2"),
        LOGITS,
        token_logprobs,
    ),
    Case("cross_entropy", "cross_entropy_v1", ("",), LOGITS, fused_loss),
    Case(
        "attention",
        "attention_forward_",
        ("v1", "v2"),
        (*ATTENTION_SHAPES, (1, 2, 4, 14, 100, True, False)),
        attention_forward,
    ),
    Case("attention", "attention_delta", ("",), ((1, 1, 1, 1), (2, 3, 5, 33), (1, 2, 4, 128)), attention_delta),
    *(
        Case(
            "attention",
            f"attention_backward_{of}_v2",
            ("",),
            (*ATTENTION_SHAPES, (1, 2, 4, 14, 100, True, False)),
            attention_backward,
        )
        for of in ("query", "key")
    ),
    *(
        Case("attention", f"attention_{step}_v3_d{width}", ("",), TILE_SHAPES[int(width)], run)
        for width in WIDTHS
        for step, run in (
            ("forward", attention_forward),
            ("backward_query", attention_backward),
            ("backward_key", attention_backward),
        )
    ),
    Case("dropout", "dropout_mask_", ("v1",), ((1,), (70,)), dropout_factors),
    Case("dropout", "dropout_forward_", ("v1",), ((1,), (70,)), dropout_factors),
    Case("softmax", "softmax_", ("v1", "v2", "v3"), LOGITS, softmax),
    Case(
        "matmul",
        "matmul_",
        ("v1", "v2", "v3", "v4", "v5", "v6"),
        ((1, 1, 1), (5, 3, 7), (33, 65, 34), (130, 136, 20)),
        matmul,
    ),
    Case("low_rank", "low_rank_", ("v1", "v2"), ((1, 1, 1, 1), (5, 3, 7, 2), (70, 33, 65, 16)), low_rank_product),
)
