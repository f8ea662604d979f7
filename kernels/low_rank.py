"""A linear layer with a low-rank product beside it, as LoRA has it: y = x @ weight + bias + scaling·(x @ A) @ B.

Hu et al. (2022), "LoRA", arXiv:2106.09685, section 4.1. No model calls it: LoRA's layers make their products by
`kernels.linear`. The kernels of ``kernels/cuda/low_rank.cu``, which fuse the two products, are checked against it.
"""

from __future__ import annotations

from kernels.array import Array


def low_rank_forward(
    x: Array, weight: Array, bias: Array | None, A: Array, B: Array, scaling: float
) -> tuple[Array, Array]:
    """Apply the layer.

    Parameters
    ----------
    x : (N, in)
    weight : (in, out)
    bias : (out,) or None
    A : (in, r)
    B : (r, out)
    scaling : float

    Returns
    -------
    y : (N, out)
    z : (N, r)
        x @ A, which the backward reads.
    """
    z = x @ A
    y = x @ weight + scaling * (z @ B)
    return (y if bias is None else y + bias), z
