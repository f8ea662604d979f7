"""Arithmetic of a GPT: each operation forward and backward, by hand, on arrays; knows no model.

One operation a file. In each: first the reference, written to be read, then (names ending in ``_fast``) the
form for NumPy that is written to be quick and proven equal to it, then (``_cuda``) the one that launches the kernels of
``kernels/cuda``. `kernels.backend` binds them to a table.

Letters: B batch, T time (queries), S keys seen (past ones included), C width, H heads, D head size, V vocabulary,
N = B·T rows. ``d<name>`` is the gradient of the loss with respect to ``<name>``.
"""

from kernels.backend import Backend, get_backend

__all__ = ["Backend", "get_backend"]
